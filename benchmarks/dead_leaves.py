"""Train the small feature network of chapter 11b on random shapes, and record it:
`python benchmarks/dead_leaves.py`.

Writes model.safetensors (the stages that `FeatureNetwork` uses, fp16) and run.json to
t2i_tutorial/pretrained/dead-leaves. No creature, no caption, no label, and no
augmentation but the choice of a crop. About five minutes on one core.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from torch import nn

from t2i_tutorial.clip import ImageEncoder, git_commit, hardware_info, lr_at_step
from t2i_tutorial.core import (
    BUNDLED_DIR,
    from_uint8,
    progress_bar,
    save_json,
    save_tensors,
    seed_everything,
    seeded_generator,
    to_uint8,
)
from t2i_tutorial.evaluation.quality import crop_loss, dead_leaves

TRAINING = {
    "seed": 0,  # of the weights, the images and the crops
    "channels": 32,  # of the first stage
    "dim": 64,  # of the space in which crops are compared
    "image_size": 48,
    "crop_size": 32,
    "num_images": 12_288,  # rendered once
    "max_steps": 800,
    "batch_size": 128,  # images in a step, two crops of each
    "lr": 1e-3,  # of AdamW, after the warm-up, then cosine
    "weight_decay": 0.05,
    "warmup_steps": 40,
}


def train(settings: dict) -> tuple[ImageEncoder, list[dict]]:
    "The network and what each step logged."
    c = argparse.Namespace(**settings)
    seed_everything(c.seed)
    generator = seeded_generator(c.seed, "dead leaves")
    pixels = torch.cat(
        [
            to_uint8(dead_leaves(512, c.image_size, generator))
            for _ in progress_bar(range(c.num_images // 512), "random shapes")
        ]
    )
    network = ImageEncoder(c.crop_size, c.channels, c.dim)
    network.to(memory_format=torch.channels_last)
    log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
    parameters = [*network.parameters(), log_scale]
    optimizer = torch.optim.AdamW(parameters, weight_decay=c.weight_decay)
    history = []
    for step in progress_bar(range(c.max_steps), "training dead-leaves"):
        for group in optimizer.param_groups:
            group["lr"] = lr_at_step(step, c.lr, c.max_steps, c.warmup_steps)
        index = torch.randint(len(pixels), (c.batch_size,), generator=generator)
        scale = log_scale.clamp(0, math.log(50)).exp()
        images = from_uint8(pixels[index])
        loss = crop_loss(network, images, c.crop_size, generator, scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({"step": step, "loss": round(loss.item(), 4)})
    return network.eval().requires_grad_(False), history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=BUNDLED_DIR / "dead-leaves")
    parser.add_argument("--max-steps", type=int, default=TRAINING["max_steps"])
    options = parser.parse_args()
    settings = TRAINING | {"max_steps": options.max_steps}
    start = time.time()
    network, history = train(settings)
    stages = network.stages[:2]  # the first of three: later ones notice blur less
    weights = {k: v.half() for k, v in stages.state_dict().items()}
    save_tensors(options.output / "model.safetensors", weights)
    record = {
        "command": "python benchmarks/dead_leaves.py",
        "training": settings,
        "git_commit": git_commit(),
        "hardware": hardware_info(),
        "seconds": round(time.time() - start, 1),
        "parameters": sum(p.numel() for p in stages.parameters()),
        "history": [h for h in history if h["step"] % 10 == 0 or h is history[-1]],
    }
    save_json(options.output / "run.json", record)
    print(options.output)


if __name__ == "__main__":
    main()
