"""What a super-resolution stage makes of small images, by augmentation level.

    OMP_NUM_THREADS=1 python benchmarks/super_resolution.py ablation sweep sheets
        [--cascade critters-64-cascade] [--split val] [--output FOLDER]
    OMP_NUM_THREADS=1 python benchmarks/super_resolution.py gan --gan GAN

`ablation` trains two stages that differ in nothing but the augmentation: one on clean
small images, one on small images with noise. `sweep` enlarges three kinds of small
images with interpolation and with each stage at each level and measures the results:
`drawn` by the renderer at 32 pixels, `regenerated` by the base from those, with its
errors (the true 64-pixel image is known for both), and `generated` from prompts, beside
the model that was trained on 64 pixels directly. `larger` goes from 64 to 128. `sheets`
writes images of all. `gan` adds rows of a GAN that enlarges in one pass (a stage or a
cascade: a name, the folder of a model or of a training) to the same file, beside those
of `sweep`, and writes sheets of both. What a file already holds is not made again.
LPIPS is left out where its weights are not at hand (TORCH_HOME).
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from t2i_tutorial import critters
from t2i_tutorial.checkpoints import find_checkpoint
from t2i_tutorial.core import (
    RESULTS_DIR,
    UserError,
    from_uint8,
    make_grid,
    progress_bar,
    save_json,
    to_uint8,
)
from t2i_tutorial.diffusion.cascade import (
    Cascade,
    SuperResolution,
    area_downsample,
    enlarge,
    regenerate,
    train_super_resolution,
)
from t2i_tutorial.evaluation.classifier import AttributeClassifier
from t2i_tutorial.evaluation.metrics import lpips_distance, sharpness
from t2i_tutorial.evaluation.quality import load_feature_network, measure_quality
from t2i_tutorial.evaluation.report import prompt_accuracy
from t2i_tutorial.experiments import load_or_init_results, save_annotated_png
from t2i_tutorial.gan.upsampler import GANUpsampler
from t2i_tutorial.hub import load_model
from t2i_tutorial.text import full_caption

LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
ABLATION = {  # what each short training changes
    "clean": ["max_aug_level=0", "aug_level=0"],
    "augmented": [],
}
SEED, T = 7, 300  # of the creatures; timestep to regenerate from
PARTS = ("ablation", "sweep", "larger", "sheets", "gan")
GAN_LEVELS = (0.0, 0.05, 0.1, 0.2)


def lanczos(images: Tensor, factor: int = 2) -> Tensor:
    "Pillow's, on bytes."
    rows = rearrange(to_uint8(images), "b c h w -> b h w c").numpy()
    size = (factor * images.shape[-1], factor * images.shape[-2])
    how = Image.Resampling.LANCZOS
    large = np.stack([np.asarray(Image.fromarray(r).resize(size, how)) for r in rows])
    return from_uint8(rearrange(torch.from_numpy(large), "b h w c -> b c h w"))


class Bench:
    "The models and images of all parts, made when they are first used."

    def __init__(self, options: argparse.Namespace):
        self.options, self.n = options, options.num_images
        self.classifier = AttributeClassifier.from_pretrained()
        self.network = load_feature_network(options.feature_network)
        for name in ("cascade", "direct", "stage", "drawn", "prompts", "small"):
            setattr(self, name, cache(getattr(self, name)))  # each made once

    def cascade(self) -> Cascade:
        return Cascade.from_pretrained(self.options.cascade, "cpu")

    def direct(self):
        return load_model(self.options.direct, "cpu")

    def stage(self, name: str) -> SuperResolution | GANUpsampler:
        if name == "gan":
            folder = Path(self.options.gan) / "model"
            model = load_model(folder if folder.is_dir() else self.options.gan, "cpu")
            return getattr(model, "super_resolution", model)
        if name == "recorded":
            return self.cascade().super_resolution
        return SuperResolution.from_pretrained(self.options.work / name / "model")

    def drawn(self, size: int) -> critters.CritterBatch:
        "The same creatures at any size."
        return critters.sample_critters(
            self.n, size, seed=SEED, split=self.options.split
        )

    def prompts(self) -> list[str]:
        return [full_caption(c) for c in self.drawn(32).critters]

    def small(self, source: str) -> Tensor:
        if source == "drawn":
            return self.drawn(32).images
        if source == "regenerated":
            return regenerate(
                self.cascade().base, self.small("drawn"), self.prompts(), T
            )
        if source == "larger":
            return self.drawn(64).images
        return self.cascade().base.sample(self.prompts(), seed=SEED)

    def large(self, source: str, method: str, level: float | None) -> Tensor:
        "What a method makes of a source."
        if method == "direct":
            return self.direct().sample(self.prompts(), seed=SEED)
        if method == "base":
            return self.cascade().base.sample(self.prompts(), seed=SEED)  # timed
        small = self.small(source)
        if method in ("bilinear", "bicubic"):
            return enlarge(small, 2, method).clamp(-1, 1)
        if method == "lanczos":
            return lanczos(small)
        stage = self.stage(method)
        return stage.upscale(small, self.prompts(), seed=SEED, aug_level=level)

    def measure(self, source: str, images: Tensor) -> dict:
        "Against the true images where there are such, else against renders."
        if source == "generated":
            drawn, real = self.drawn(64), self.drawn(64).images
            others = critters.sample_critters(
                self.n, 64, seed=SEED + 1, split=self.options.split
            ).images
            found = prompt_accuracy(self.classifier, images, drawn.critters, real)
            found |= measure_quality(self.network, images, others, real)
            found |= sharpness(images, real)
            return {k: asdict(m) for k, m in found.items()}
        true = self.drawn(128 if source == "larger" else 64).images
        mse = (images - true).square().mean((1, 2, 3)).clamp(min=1e-10)
        psnr = 10 * (4 / mse).log10()
        found = {"psnr": psnr.mean().item(), "psnr_std": psnr.std().item()}
        found |= {"sharpness": asdict(sharpness(images, true)["sharpness"])}
        small = area_downsample(true, 2)
        found["rms_to_small"] = (
            (area_downsample(images, 2) - small).square().mean().sqrt().item()
        )
        try:
            side = images.shape[-1]
            found["lpips"] = lpips_distance(images, true, size=side).mean().item()
        except UserError:
            pass  # its weights are not here
        return found

    def run(
        self, path: Path, source: str, rows: list[tuple[str, float | None]]
    ) -> None:
        "Measure each row that the file does not hold."
        settings = {
            "num_images": self.n,
            "split": self.options.split,
            "seed": SEED,
            "timestep": T,
            "feature_network": self.network.name,
            "cascade": self.options.cascade,
            "direct": self.options.direct,
        }
        results = load_or_init_results(path, settings)
        for method, level in progress_bar(rows, source):
            key = f"{source}/{method}" + ("" if level is None else f"/{level:g}")
            if key in results["runs"]:
                continue
            if method not in ("direct", "base"):
                self.small(source)  # not to be counted below
            start = perf_counter()
            images = self.large(source, method, level)
            seconds = (perf_counter() - start) / self.n
            run = {"seconds_an_image": round(seconds, 5)}
            results["runs"][key] = run | self.measure(source, images)
            save_json(path, results)


def ablation(options: argparse.Namespace) -> None:
    "Two short trainings; one that was interrupted goes on."
    for name, changes in ABLATION.items():
        folder = options.work / name
        if (folder / "model" / "run.json").exists():
            continue
        steps = [f"train.max_steps={options.steps}", "train.sample_every=0"]
        resume = folder.exists() and find_checkpoint(folder) is not None
        train_super_resolution(
            "cpu-32-64", folder=folder, overrides=[*changes, *steps], resume=resume
        )


def rows_of(source: str, names: list[str]) -> list[tuple[str, float | None]]:
    "Interpolation, then every stage at every level that it knows."
    if names == ["gan"]:
        return [("gan", level) for level in GAN_LEVELS]
    rows = [("bilinear", None), ("bicubic", None), ("lanczos", None)]
    if source == "generated":
        rows += [("base", None), ("direct", None)]
    for name in names:
        rows += [(name, x) for x in ((0.0,) if name == "clean" else LEVELS)]
    return rows


def sheets(
    bench: Bench, folder: Path, names: list[str], level: float, suffix: str = ""
) -> None:
    "Eight creatures a column, a method a row."
    for source in ("drawn", "regenerated", "generated"):
        methods = {"small": None, "bilinear": None, "lanczos": None}
        own = {"clean": 0.0, "gan": None}  # None: the level of its configuration
        methods |= {name: own.get(name, level) for name in names}
        methods |= {"direct": None} if source == "generated" else {"true": None}
        rows = []
        for method, value in methods.items():
            if method == "true":
                images = bench.drawn(64).images
            elif method == "small":
                images = enlarge(bench.small(source), 2, "nearest")
            else:
                images = bench.large(source, method, value)
            rows.append(images[:8])
        grid = make_grid(torch.cat(rows), columns=8)
        texts = {"methods": ", ".join(methods), "aug_level": f"{level:g}"}
        save_annotated_png(folder / f"{source}{suffix}.png", grid, **texts)


def part_of_training(options: argparse.Namespace) -> list[str]:
    "The stages that there are."
    short = [k for k in ABLATION if (options.work / k / "model" / "run.json").exists()]
    return [*short, "recorded"]


def main(make: Callable = Bench) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--cascade", default="critters-64-cascade")
    parser.add_argument("--direct", default="critters-64")
    parser.add_argument("--gan", default="critters-64-gan-cascade")
    parser.add_argument("--split", default="val", choices=("val", "test"))
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--steps", type=int, default=500, help="of the ablation")
    parser.add_argument("--level", type=float, default=0.1, help="of the sheets")
    parser.add_argument("--feature-network", default=None)
    parser.add_argument("--work", type=Path, default=Path("runs/super-resolution"))
    output = RESULTS_DIR / "critters-64-cascade"
    parser.add_argument("--output", type=Path, default=output)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if "ablation" in options.parts:
        ablation(options)
    names = part_of_training(options)
    path = options.output / f"super-resolution-{options.split}.json"
    if "sweep" in options.parts:
        bench = make(options)
        for source in ("drawn", "regenerated", "generated"):
            bench.run(path, source, rows_of(source, names))
    if "gan" in options.parts:
        bench = make(options)
        for source in ("drawn", "regenerated", "generated"):
            bench.run(path, source, rows_of(source, ["gan"]))
    if "larger" in options.parts:
        options.num_images = min(64, options.num_images)
        larger = options.output / f"larger-{options.split}.json"
        rows = [("bilinear", None), ("lanczos", None), ("recorded", 0.0)]
        make(options).run(larger, "larger", [*rows, ("recorded", options.level)])
    if "sheets" in options.parts:
        options.num_images = 8
        sheets(make(options), options.output, names, options.level)
    if "gan" in options.parts:
        options.num_images = 8
        both = ["recorded", "gan"]
        sheets(make(options), options.output, both, options.level, "-gan")


if __name__ == "__main__":
    main()
