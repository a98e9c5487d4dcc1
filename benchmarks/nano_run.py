"""The recorded run of the chapter "All of text-to-image in one file": train longer,
evaluate, write it all down.

    OMP_NUM_THREADS=1 python benchmarks/nano_run.py [--steps 12000] [--output FOLDER]

It trains the chapter's own settings first (about a minute), then the longer ones. Both
are evaluated on detailed
captions that no training saw: the split `test` with a seed of its own, and the split
`held_out`, whose pairs of
species and body colour were never drawn in training. The attribute classifier reads
species, colours, eyes and
action off the images; beside each share stands what it reads off real renders of the
same critters.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, process_time

import torch

from t2i_tutorial import critters, nano
from t2i_tutorial.clip import git_commit, hardware_info
from t2i_tutorial.core import (
    atomic_write,
    make_grid,
    save_json,
    save_tensors,
    to_pil,
)
from t2i_tutorial.evaluation.classifier import AttributeClassifier
from t2i_tutorial.evaluation.report import prompt_accuracy

PROMPT_SEED = 42_026  # of the prompts; nothing else uses it
NUM_PROMPTS = 512
LIVE = nano.NanoConfig()
LONGER = nano.NanoConfig(num_images=16_384, max_steps=12_000, ema_decay=0.995)
FOLDER = Path(nano.__file__).parent / "pretrained" / "nano"


def train(config: nano.NanoConfig, seed: int = 0) -> tuple[nano.NanoDenoiser, dict]:
    "The model and what there is to say about its training."
    start, cpu_start = perf_counter(), process_time()
    model, losses = nano.train_nano(config, seed)
    seconds, cpu_seconds = perf_counter() - start, process_time() - cpu_start
    every = max(1, config.max_steps // 120)
    curve = torch.tensor(losses).unfold(0, every, every).mean(1)
    return model, {
        "config": asdict(config),
        "seed": seed,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "loss": {"every": every, "mean": [round(v, 4) for v in curve.tolist()]},
    }


def evaluate(model: nano.NanoDenoiser, split: str) -> tuple[dict, torch.Tensor]:
    """Accuracy by attribute beside that on renders.

    The first images under their renders.
    """
    data = critters.sample_critters(NUM_PROMPTS, size=16, seed=PROMPT_SEED, split=split)
    prompts = [nano.describe(c) for c in data.critters]
    images = nano.sample_nano(model, prompts, seed=PROMPT_SEED)
    classifier = AttributeClassifier.from_pretrained("critters-classifier")
    found = prompt_accuracy(classifier, images, data.critters, data.images)
    table = {
        name: {
            "generated": m.value,
            "ci_low": m.ci_low,
            "ci_high": m.ci_high,
            "renders": m.reference,
            "chance": m.chance,
        }
        for name, m in found.items()
    }
    shown = torch.stack([data.images[:36], images[:36]]).view(2, 3, 12, 3, 16, 16)
    return table, shown.transpose(0, 1).flatten(0, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=LONGER.max_steps)
    parser.add_argument("--output", type=Path, default=FOLDER)
    args = parser.parse_args()
    record = {
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} "
        f"python benchmarks/nano_run.py --steps {args.steps}",
        "git_commit": git_commit(),
        "hardware": hardware_info(),
        "classifier": "critters-classifier",
        "prompts": {
            "number": NUM_PROMPTS,
            "seed": PROMPT_SEED,
            "guidance_scale": 2.5,
            "num_steps": 20,
        },
    }
    model, record["live"] = train(LIVE)
    record["live"]["accuracy"] = {"test": evaluate(model, "test")[0]}
    config = nano.NanoConfig(**{**asdict(LONGER), "max_steps": args.steps})
    model, record["longer"] = train(config)
    weights = {key: value.half() for key, value in model.state_dict().items()}
    save_tensors(args.output / "model.safetensors", weights, asdict(config))
    model = nano.load_nano(
        args.output / "model.safetensors"
    )  # what is kept is measured
    tables = {split: evaluate(model, split) for split in ("test", "held_out")}
    record["longer"]["accuracy"] = {k: table for k, (table, _) in tables.items()}
    record["parameters"] = sum(p.numel() for p in model.parameters())
    with atomic_write(args.output / "samples.png") as partial:
        grid = make_grid(tables["test"][1], columns=12)
        to_pil(grid, enlarge=3).save(partial, "png", optimize=True)
    save_json(args.output / "run.json", record)
    for name in ("live", "longer"):
        for split, table in record[name]["accuracy"].items():
            print(name, split, {k: round(v["generated"], 3) for k, v in table.items()})


if __name__ == "__main__":
    main()
