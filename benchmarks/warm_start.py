"""A set of one's own from nothing and from a trained model, at equal numbers of steps.

    python benchmarks/warm_start.py [--tiles FOLDER] [--runs NAME ...] [--output FOLDER]

Each run trains as `t2i train imagen --preset warm-32 --data SET` does, with the changes
in `RUNS`, and writes a JSON file and a sheet of images; one that is there is not made
again. At the steps in `MARKS` the averaged weights are measured on prompts of images
that were never trained on: distance and recall by features that saw none of our data,
colours that the prompts name against those in the pixels, copies of training images,
and the squared error of the prediction on training images and on others.

The set `robots` is chapter 43's. With `--tiles` a folder of captioned images is cut in
two halves: settings are chosen on the first (`tuned`) alone, and the second (`aside`)
is trained on once, with the chosen ones. Their images are written to --output only.
"""

import argparse
import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from t2i_tutorial.clip import git_commit, hardware_info
from t2i_tutorial.core import (
    RESULTS_DIR,
    load_json,
    make_grid,
    save_json,
    seed_everything,
    seeded_generator,
)
from t2i_tutorial.data import Batch, open_dataset, read_metadata
from t2i_tutorial.diffusion.imagen import (
    Imagen,
    imagen_preset,
    init_imagen_from_smaller,
)
from t2i_tutorial.evaluation.metrics import nearest_neighbours, proportion
from t2i_tutorial.evaluation.quality import load_feature_network, measure_quality
from t2i_tutorial.experiments import run_training, save_annotated_png
from t2i_tutorial.gan.config import gigagan_preset
from t2i_tutorial.gan.gigagan import (
    GigaGAN,
    _prepare_training,
    init_gigagan_from_smaller,
)
from t2i_tutorial.robots import (
    render_robots,
    robot_caption,
    robot_colours_found,
    sample_robots,
    square_error,
    write_robots,
)

MARKS = (0, 100, 350, 1000)  # steps at which a run is measured
EVERY = 50  # steps between validation losses
NOTHING = {"init_from": "none", "train.lr": 1.2e-3}  # the rate of the preset cpu-32
RUNS = {  # name -> (sets that it is made on, family, changes of the preset warm-32)
    "warm": (("robots", "tuned", "aside"), "imagen", {}),
    "nothing": (("robots", "tuned", "aside"), "imagen", NOTHING),
    "nothing-lr-6e-4": (("tuned",), "imagen", {"init_from": "none"}),
    "warm-no-flip": (("robots", "tuned"), "imagen", {"train.flip": False}),
    "warm-350": (
        ("robots", "tuned"),
        "imagen",
        {"train.max_steps": 350, "train.ema_decay": 0.99},
    ),
    "warm-lr-1.5e-4": (("tuned",), "imagen", {"train.lr": 1.5e-4}),
    "warm-lr-3e-4": (("tuned",), "imagen", {"train.lr": 3e-4}),
    "warm-lr-1.2e-3": (("tuned",), "imagen", {"train.lr": 1.2e-3}),
    "warm-warmup-0": (("tuned",), "imagen", {"train.warmup_steps": 0}),
    "warm-ema-0.99": (("tuned",), "imagen", {"train.ema_decay": 0.99}),
    "warm-ema-0.998": (("tuned",), "imagen", {"train.ema_decay": 0.998}),
    "warm-50-images": (("robots",), "imagen", {}),
    "warm-3000": (("robots",), "imagen", {"train.max_steps": 3000}),
    "gigagan-warm": (("robots", "tuned"), "gigagan", {}),
    "gigagan-nothing": (
        ("robots",),
        "gigagan",
        {  # as the preset cpu-32 begins, in the same number of updates
            "init_from": "none",
            "pretrain_steps": 350,
            "discriminator_only_steps": 50,
        },
    ),
}
COLOUR_WORDS = (
    "gray brown black blue red green purple yellow teal orange white beige pink"
)


# ---- the sets


@dataclass
class OwnSet:
    "Images to train on, and others that nothing was trained on, to measure by."

    folder: Path  # what is trained on
    prompts: list[str]  # of the images of `real`, in their order
    real: torch.Tensor
    others: torch.Tensor  # more of them, for what a measure gives on real images
    train: torch.Tensor
    train_prompts: list[str]  # one of each

    def colours_found(self, images: torch.Tensor) -> torch.Tensor:
        "For each image whether its most frequent colours are those of its prompt."
        return tile_colours_found(images, self.prompts[: len(images)])


class RobotSet(OwnSet):
    "The robots, whose colours are known exactly."

    robots: Sequence = ()

    def colours_found(self, images):
        return robot_colours_found(images, self.robots[: len(images)])


def colour_words(pixels: torch.Tensor) -> torch.Tensor:
    "For RGB in [0, 1] (last axis) the place of a word in `COLOUR_WORDS`."
    words = COLOUR_WORDS.split()
    value, low = pixels.amax(-1), pixels.amin(-1)
    chroma = (value - low).clamp(min=1e-6)
    r, g, b = pixels.unbind(-1)
    hue = torch.where(value == r, (g - b) / chroma % 6, (r - g) / chroma + 4)
    hue = 60 * torch.where((value == g) & (value != r), (b - r) / chroma + 2, hue)
    saturation = (value - low) / value.clamp(min=1e-6)
    rules = [  # the first that holds
        ("black", value < 0.22),
        ("white", (saturation < 0.18) & (value > 0.85)),
        ("gray", saturation < 0.18),
        ("brown", (hue >= 15) & (hue < 45) & (value < 0.65)),
        ("beige", (hue >= 15) & (hue < 45) & (saturation < 0.5)),
        ("orange", (hue >= 15) & (hue < 45)),
        ("yellow", (hue >= 45) & (hue < 70)),
        ("green", (hue >= 70) & (hue < 165)),
        ("teal", (hue >= 165) & (hue < 200)),
        ("blue", (hue >= 200) & (hue < 260)),
        ("purple", (hue >= 260) & (hue < 320)),
        ("pink", (hue >= 320) & (hue < 345)),
        ("pink", (saturation < 0.5) & (value > 0.75)),
    ]
    found = torch.full(value.shape, words.index("red"))
    for word, holds in reversed(rules):
        found[holds] = words.index(word)
    return found


def tile_colours_found(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Whether the first colour named is among the two most frequent ones. White pixels
    count where white is named; else they are taken for the ground.
    """
    words = COLOUR_WORDS.split()
    pixels = ((images + 1) / 2).clamp(0, 1).flatten(2).transpose(1, 2)
    ground, named = (pixels > 0.97).all(-1), colour_words(pixels)
    found = []
    for row, white, prompt in zip(named, ground, prompts):
        votes = torch.bincount(row[~white], minlength=len(words))
        asked = [w for w in re.findall(r"[a-z]+", prompt) if w in words]
        if "white" not in asked:
            votes[words.index("white")] = 0
        top = [words[k] for k in votes.topk(2).indices.tolist() if votes[k]]
        found.append(bool(asked) and asked[0] in top)
    return torch.tensor(found)


def robot_set(folder: Path, n: int, count: int = 800) -> RobotSet:
    robots, more = sample_robots(n, 1), sample_robots(n, 2)
    trained = sample_robots(count, 0)
    chosen = RobotSet(
        write_robots(folder, count),
        [robot_caption(r, i % 2) for i, r in enumerate(robots)],
        render_robots(robots, 32, 1),
        render_robots(more, 32, 2),
        render_robots(trained, 32, 0),
        [robot_caption(r, i % 3) for i, r in enumerate(trained)],
    )
    chosen.robots = robots
    return chosen


def tile_set(tiles: Path, folder: Path, half: int, n: int) -> OwnSet:
    "Half of a folder of captioned images; a quarter of the half is kept to measure by."
    rows = read_metadata(tiles / "metadata.jsonl")
    order = torch.randperm(len(rows), generator=seeded_generator(0, "halves"))
    mine = order[half::2].tolist()
    aside, kept = mine[: len(mine) // 4], mine[len(mine) // 4 :]
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in kept:
        shutil.copy(tiles / rows[i].file, folder / f"{i}{Path(rows[i].file).suffix}")
        line = {"file_name": f"{i}{Path(rows[i].file).suffix}"}
        lines.append(json.dumps(line | {"text": rows[i].captions[0]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    data = open_dataset(tiles, 32)
    assert [tuple(c) for c in data.captions] == [r.captions for r in rows]

    def images(indices):
        return torch.stack([data[i][0] for i in indices])

    most = 2 * len(aside) // 3
    real, others = aside[:most][:n], aside[most:]
    return OwnSet(
        folder,
        [data.captions[i][0] for i in real],
        images(real),
        images(others),
        images(kept),
        [data.captions[i][0] for i in kept],
    )


# ---- one run


class Marked(Imagen):
    "Keeps copies of its averaged weights at some steps."

    def diagnostics(self) -> dict:
        return keep_weights(self)


class MarkedGAN(GigaGAN):
    "The same for a GigaGAN."

    def diagnostics(self) -> dict:
        return keep_weights(self)


def keep_weights(model) -> dict:
    "What the Trainer calls at every checkpoint."
    model.__dict__["saves"] = model.__dict__.get("saves", 0) + 1
    step = model.saves * EVERY
    if step in (*MARKS, 3000):
        weights = {k: v.clone() for k, v in model.state_dict().items()}
        model.__dict__.setdefault("kept", {})[step] = weights
    return {}


def measure(own: OwnSet, images: torch.Tensor, network) -> dict:
    "All numbers of generated images, one for each prompt, beside those of real ones."
    quality = measure_quality(network, images, own.real, own.others)
    found = {k: [m.value, m.reference] for k, m in quality.items()}
    near, _ = nearest_neighbours(images, own.train)
    fresh, _ = nearest_neighbours(own.real, own.train)
    more, _ = nearest_neighbours(own.others, own.train)
    threshold = more.quantile(0.01)
    rate = proportion(near < threshold, (fresh < threshold).float().mean().item())
    found["nearest_train_distance"] = [near.median().item(), fresh.median().item()]
    found["memorisation_rate"] = [rate.value, rate.reference]
    right, real, mixed = (
        own.colours_found(x).float().mean().item()
        for x in (images, own.real, own.real.roll(1, 0))
    )
    found["colours"] = [right, real, mixed]  # the last: images of other prompts
    if isinstance(own, RobotSet):
        found["square_error"] = [square_error(images).mean().item(), 0.0]
    return {k: [round(x, 4) for x in v] for k, v in found.items() if None not in v}


@torch.no_grad()
def prediction_errors(model: Imagen, own: OwnSet) -> list[float]:
    "Mean squared errors on images that were trained on and on others, the same noise."
    errors, n = [], min(len(own.train), len(own.real))
    for images, prompts in (own.train, own.train_prompts), (own.real, own.prompts):
        batch = Batch(images[:n], prompts[:n], torch.arange(n))
        losses = [model.training_losses(batch, seeded_generator(k)) for k in range(4)]
        errors.append(torch.stack([x["mse"] for x in losses]).mean().item())
    return errors


def run(name: str, own: OwnSet, options) -> tuple[dict, torch.Tensor]:
    "Train and measure; the record, and the sheet (a row for each mark)."
    _, family, changes = RUNS[name]
    changes = dict(changes) | {"train.save_every": EVERY, "train.sample_every": 0}
    changes |= {"train.log_with": "none", "train.max_checkpoints": 1}
    if options.max_steps:
        changes |= {"train.max_steps": options.max_steps, "train.warmup_steps": 0}
    imagen = family == "imagen"
    preset = (imagen_preset if imagen else gigagan_preset)("warm-32", changes)
    cls = Marked if imagen else MarkedGAN
    start = init_imagen_from_smaller if imagen else init_gigagan_from_smaller
    prepare = None if imagen else _prepare_training
    begun, cpu = time.perf_counter(), time.process_time()
    with TemporaryDirectory() as work:
        model, history = run_training(
            cls, preset, str(own.folder), work, prepare=prepare, upscale=start
        )
    record = {
        "name": name,
        "changes": changes,
        "git_commit": git_commit(),
        "hardware": hardware_info(),
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "num_images": len(own.prompts),
        "val_loss": {h["step"]: h["val_loss"] for h in history if "val_loss" in h},
        "loss": {h["step"]: h["loss"] for h in history if "loss" in h},
    }
    seed_everything(preset.train_config.seed)  # the weights that the run began with
    first = cls(preset.model_config)
    if preset.init_from:
        start(cls.from_pretrained(preset.init_from, "cpu"), first)
    weights = {0: first.state_dict()} | model.__dict__.get("kept", {})
    weights[preset.train_config.max_steps] = model.state_dict()
    network, rows, marks = load_feature_network("dead-leaves"), [], {}
    sampling = {"num_steps": 20} if imagen else {}
    for step, state in sorted(weights.items()):
        first.load_state_dict(state)
        images = first.eval().sample(own.prompts, **sampling)
        marks[step] = measure(own, images, network)
        if imagen:
            marks[step]["errors"] = prediction_errors(first, own)
        rows.append(images[:8])
        print(name, step, marks[step], flush=True)
    return record | {"marks": marks}, make_grid(torch.cat(rows), columns=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--sets", nargs="*", default=["robots", "tuned", "aside"])
    parser.add_argument("--tiles", type=Path, help="a folder of captioned images")
    parser.add_argument("--output", type=Path, default=Path("runs/warm-start"))
    parser.add_argument("--num-images", type=int, default=128, help="to measure by")
    parser.add_argument("--max-steps", type=int, help="of every run, for a short proof")
    options = parser.parse_args()
    records = RESULTS_DIR / "warm-start" if not options.max_steps else options.output
    for name in options.runs:
        for kind in RUNS[name][0]:
            path = records / f"{kind}-{name}.json"
            if kind not in options.sets or path.is_file():
                continue
            if kind != "robots" and options.tiles is None:
                continue
            with TemporaryDirectory() as folder:
                folder = Path(folder) / "images"
                if kind == "robots":
                    count = 50 if name == "warm-50-images" else 800
                    own = robot_set(folder, options.num_images, count)
                else:
                    half = ["tuned", "aside"].index(kind)
                    own = tile_set(options.tiles, folder, half, options.num_images)
                record, sheet = run(name, own, options)
            public = records if kind == "robots" else options.output
            public.mkdir(parents=True, exist_ok=True)
            steps = json.dumps(list(record["marks"]))
            save_annotated_png(public / f"{kind}-{name}.png", sheet, 1, steps=steps)
            save_json(path, record | {"set": kind})
            print(load_json(path)["seconds"], path, flush=True)


if __name__ == "__main__":
    main()
