"""What is each saving in the GigaGAN's training step worth? The step without it.

    OMP_NUM_THREADS=1 python benchmarks/gan_savings.py [--preset cpu-32] [--rounds 3]
        [--json FILE]

The update of both networks as it is, then with one saving undone at a time, by turns,
in processor time of one run: feature maps of the frozen network that each loss computes
for itself; discriminator features that are computed anew for each caption; the gradient
penalty in every update; candidates of the nearest latent that are drawn at full size.
Then all of them undone, and the last one in an update of the pre-training. A turn has
16 updates, so that one of them has the lazy penalty.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from time import process_time
from unittest.mock import patch

import torch

from t2i_tutorial.clip import git_commit, hardware_info
from t2i_tutorial.core import save_json, seeded_generator
from t2i_tutorial.experiments import critters_dataset
from t2i_tutorial.gan.config import gigagan_preset
from t2i_tutorial.gan.discriminator import FrozenTower
from t2i_tutorial.gan.gigagan import GigaGAN, caption_attributes
from t2i_tutorial.gan.imle import nearest_latents
from t2i_tutorial.gan.losses import score_pairs

UPDATES = 16  # of a turn, as many as from one penalty to the next


def score_images(self, real, fake, text, captions, rng):
    "`GigaGAN.pair_logits` with features computed for each caption."
    D, c = self.discriminator, self.config
    return score_pairs(
        lambda images, style: D.score(D.features(images), style).logits(),
        real,
        fake,
        self.discriminator_style(text),
        [self.caption_key(caption) for caption in captions],
        rng,
        c.hard_negative_fraction,
    )


def nearest_at_full_size(self, real, text, num_candidates, rng):
    "`GigaGAN.nearest_style` with whole images."
    G = self.generator
    words = G.encode_text(text)
    z = nearest_latents(G, words, real[-1], num_candidates, rng)
    return G.map_style(z, words), words


UNDONE = {  # saving -> what is put in its place
    "one set of feature maps for all losses": partial(
        patch.object, FrozenTower, "sharing", lambda self: nullcontext()
    ),
    "discriminator features once for all captions": partial(
        patch.object, GigaGAN, "pair_logits", score_images
    ),
    "penalty in every 16th update": None,  # a setting
    "candidates at the smallest size": partial(
        patch.object, GigaGAN, "nearest_style", nearest_at_full_size
    ),
}


class Update:
    "One update of the preset's training at a step of it."

    def __init__(self, preset, data):
        torch.manual_seed(0)
        self.config = preset.model_config
        self.model = GigaGAN(self.config).train()
        self.model.train_config = preset.train_config
        self.model.caption_key = caption_attributes
        captions = [group[0] for group in data.captions]
        self.model.set_clip_negatives(captions[: self.config.clip_num_negatives])
        batches = data.batches(preset.train_config.batch_size, shuffle=False)
        self.batches = cycle(list(batches))
        self.optimizers = {
            phase: torch.optim.AdamW(
                list(self.model.trainable_parameters(phase)),
                **self.model.optimizer_kwargs(phase),
            )
            for phase in self.model.phases
        }

    def __call__(self, step: int) -> None:
        model, batch = self.model, next(self.batches)
        for phase in model.phases_at(step):
            for name in model.phases:
                for p in model.trainable_parameters(name):
                    p.requires_grad_(name == phase)
            self.optimizers[phase].zero_grad()
            rng = seeded_generator(0, "step", step, phase)
            model.training_losses(batch, rng, phase)["loss"].backward()
            self.optimizers[phase].step()

    def seconds(self, first: int, undone: list[str]) -> float:
        "Processor time of an update, mean over a turn."
        every = "penalty in every 16th update" in undone
        with ExitStack() as stack:
            for name in undone:
                if UNDONE[name] is not None:
                    stack.enter_context(UNDONE[name]())
            interval = 1 if every else self.config.r1_interval
            self.model.config = replace(self.config, r1_interval=interval)
            start = process_time()
            for k in range(UPDATES):
                self(first + k)
            return (process_time() - start) / UPDATES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="cpu-32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    preset = gigagan_preset(options.preset)
    c, batch = preset.model_config, preset.train_config.batch_size
    update = Update(preset, critters_dataset(512, c.size))
    last = list(UNDONE)[-1]
    turns: dict[tuple[str, str], Callable[[], float]] = {}
    both = c.pretrain_steps + c.discriminator_only_steps
    both += -(both - c.pretrain_steps) % c.r1_interval
    for name in ("", *UNDONE, "all"):
        undone = list(UNDONE) if name == "all" else [name] * bool(name)
        turns["both", name] = partial(update.seconds, both, undone)
    for name in ("", last) if c.pretrain_steps else ():
        turns["pre-training", name] = partial(update.seconds, 0, [name] * bool(name))
    update(both)  # warm
    found = {key: [] for key in turns}
    for _ in range(options.rounds):
        for key, turn in turns.items():
            found[key].append(turn())
            print(*key, f"{found[key][-1]:.3f} s", flush=True)
    rows = [
        {
            "part": part,
            "undone": name,
            "seconds": median(times),
            "images_a_second": batch / median(times),
        }
        for (part, name), times in found.items()
    ]
    record = {
        "preset": options.preset,
        "batch": batch,
        "git_commit": git_commit(),
        "hardware": hardware_info(),
        "rows": rows,
    }
    if options.json:
        save_json(options.json, record)
    as_it_is = {r["part"]: r["seconds"] for r in rows if not r["undone"]}
    for r in rows:
        print(r["part"], r["undone"], f"{r['seconds'] / as_it_is[r['part']]:.2f} x")


if __name__ == "__main__":
    main()
