"""What a super-resolution stage makes of low-resolution images, by augmentation level.

    python benchmarks/super_resolution.py ablation sweep guidance larger sheets gan
        [--cascade critters-64-cascade] [--gan GAN] [--output FOLDER]
    python benchmarks/super_resolution.py sweep larger gan --split test

`ablation` trains the cascade's stage further, twice, with nothing different but the
augmentation: on clean low-resolution images, and on images with noise. `sweep` enlarges
three kinds of images with interpolation and with each stage at each level and measures
the results: `drawn` by the renderer at 64 pixels and averaged to 32, `regenerated` by
the base from those, with its errors (the drawn 64-pixel image is known for both), and
`generated` from prompts, beside the model that was trained on 64 pixels directly.
`guidance` does the same with guidance and thresholding. `larger` goes from 64 to 128.
`sheets` writes images of all. `gan` adds rows of a GAN that enlarges in one pass (a
stage or a cascade: a name, the folder of a model or of a training), and sheets of both.
Seconds are those of the stage alone, without the base. Levels are chosen with `--split
val`; with `--split test` other creatures are enlarged, at the levels of the
configurations only. What a file already holds is not made again. The recorded seconds
are those of one thread (OMP_NUM_THREADS=1). LPIPS is left out where its weights are not
at hand (TORCH_HOME).
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
ABLATION = {  # what each short training changes, beside LIKE_WARM_START
    "clean": ["max_aug_level=0", "aug_level=0"],
    "augmented": [],
}
LIKE_WARM_START = ["train.lr=6e-4", "train.warmup_steps=50", "train.ema_decay=0.99"]
SEEDS = {"val": 7, "test": 70}  # of the creatures and of the noise
T = 300  # timestep to regenerate from
PARTS = ("ablation", "sweep", "guidance", "larger", "sheets", "gan")
GAN_LEVELS = (0.0, 0.05, 0.1, 0.2)
GUIDANCE = [(s, t) for s in (1.0, 2.0, 4.0) for t in ("static", "dynamic")]
Row = tuple[str, float | None, dict]  # method, level, guidance


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
        self.seed = SEEDS[options.split]
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
            self.n, size, seed=self.seed, split=self.options.split
        )

    def prompts(self) -> list[str]:
        return [full_caption(c) for c in self.drawn(32).critters]

    def small(self, source: str) -> Tensor:
        if source == "drawn":  # as in training
            return area_downsample(self.drawn(64).images, 2)
        if source == "regenerated":
            return regenerate(
                self.cascade().base, self.small("drawn"), self.prompts(), T
            )
        if source == "larger":
            return self.drawn(64).images
        return self.cascade().base.sample(self.prompts(), seed=self.seed)

    def large(
        self, source: str, method: str, level: float | None, guidance: dict
    ) -> Tensor:
        "What a method makes of a source."
        if method == "direct":
            return self.direct().sample(self.prompts(), seed=self.seed)
        if method == "base":
            return self.cascade().base.sample(self.prompts(), seed=self.seed)  # timed
        small = self.small(source)
        if method in ("bilinear", "bicubic"):
            return enlarge(small, 2, method).clamp(-1, 1)
        if method == "lanczos":
            return lanczos(small)
        options = {"seed": self.seed, "aug_level": level} | guidance
        return self.stage(method).upscale(small, self.prompts(), **options)

    def measure(self, source: str, images: Tensor) -> dict:
        "Against the true images where there are such, else against renders."
        if source == "generated":
            drawn, real = self.drawn(64), self.drawn(64).images
            others = critters.sample_critters(
                self.n, 64, seed=self.seed + 1, split=self.options.split
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
        shrunk = area_downsample(images, 2)
        rms = (shrunk - self.small(source)).square().mean().sqrt()
        found["rms_to_small"] = rms.item()
        try:
            side = images.shape[-1]
            found["lpips"] = lpips_distance(images, true, size=side).mean().item()
        except UserError:
            pass  # its weights are not here
        return found

    def run(self, path: Path, source: str, rows: list[Row]) -> None:
        "Measure each row that the file does not hold."
        settings = {
            "num_images": self.n,
            "split": self.options.split,
            "seed": self.seed,
            "timestep": T,
            "feature_network": self.network.name,
            "cascade": self.options.cascade,
            "direct": self.options.direct,
        }
        results = load_or_init_results(path, settings)
        for method, level, guidance in progress_bar(rows, source):
            key = f"{source}/{method}" + ("" if level is None else f"/{level:g}")
            key += "".join(f"/{value}" for value in guidance.values())
            if key in results["runs"]:
                continue
            if method == "direct":
                self.direct()  # read before the clock runs
            elif method != "base":
                self.small(source)
            start = perf_counter()
            images = self.large(source, method, level, guidance)
            seconds = (perf_counter() - start) / self.n
            run = {"seconds_an_image": round(seconds, 5)}
            results["runs"][key] = run | self.measure(source, images)
            save_json(path, results)


def ablation(options: argparse.Namespace) -> None:
    "Two short trainings from one start; one that was interrupted goes on."
    start = options.work / "start"
    Cascade.from_pretrained(options.cascade).super_resolution.save_pretrained(start)
    for name, changes in ABLATION.items():
        folder = options.work / name
        if (folder / "model" / "run.json").exists():
            continue
        steps = [f"train.max_steps={options.steps}", "train.sample_every=0"]
        words = [*changes, *LIKE_WARM_START, *steps, f"init_from={start}"]
        resume = folder.exists() and find_checkpoint(folder) is not None
        train_super_resolution(
            "cpu-32-64", folder=folder, overrides=words, resume=resume
        )


def rows_of(source: str, names: list[str], chosen: float | None) -> list[Row]:
    "Interpolation, then every stage at every level that it knows, or at the chosen."
    levels = LEVELS if chosen is None else (chosen,)
    rows = [("bilinear", None), ("bicubic", None), ("lanczos", None)]
    if source == "generated":
        rows += [("base", None), ("direct", None)]
    for name in names:
        rows += [(name, x) for x in ((0.0,) if name == "clean" else levels)]
    return [(*row, {}) for row in rows]


def sheets(
    bench: Bench, folder: Path, names: list[str], level: float, suffix: str = ""
) -> None:
    "Eight creatures a column, a method a row."
    sources = {"drawn": 64, "regenerated": 64, "generated": 64}
    if not suffix:
        sources["larger"] = 128
    for source, side in sources.items():
        methods = {"small": None, "bilinear": None, "lanczos": None}
        own = {"clean": 0.0, "gan": None}  # None: the level of its configuration
        stages = names[-1:] if source == "larger" else names
        methods |= {name: own.get(name, level) for name in stages}
        methods |= {"direct": None} if source == "generated" else {"true": None}
        rows = []
        for method, value in methods.items():
            if method == "true":
                images = bench.drawn(side).images
            elif method == "small":
                images = enlarge(bench.small(source), 2, "nearest")
            else:
                images = bench.large(source, method, value, {})
            rows.append(images[: 512 // side])
        grid = make_grid(torch.cat(rows), columns=512 // side)
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
    parser.add_argument("--gan", default="critters-64-gan-upsampler")
    parser.add_argument("--split", default="val", choices=("val", "test"))
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--steps", type=int, default=500, help="of the ablation")
    parser.add_argument("--level", type=float, default=0.1, help="the chosen one")
    parser.add_argument("--gan-level", type=float, default=0.05, help="the GAN's")
    parser.add_argument("--feature-network", default=None)
    parser.add_argument("--work", type=Path, default=Path("runs/super-resolution"))
    output = RESULTS_DIR / "critters-64-cascade"
    parser.add_argument("--output", type=Path, default=output)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if "ablation" in options.parts:
        ablation(options)
    names = part_of_training(options)
    on_test = options.split == "test"
    path = options.output / f"super-resolution-{options.split}.json"
    sources, bench = ("drawn", "regenerated", "generated"), make(options)
    if "sweep" in options.parts:
        for source in sources:
            rows = rows_of(source, names, options.level if on_test else None)
            bench.run(path, source, rows)
    if "guidance" in options.parts:
        keys = ("guidance_scale", "thresholding")
        rows = [("recorded", options.level, dict(zip(keys, g))) for g in GUIDANCE]
        bench.run(path, "generated", rows)
    if "gan" in options.parts:
        levels = (options.gan_level,) if on_test else GAN_LEVELS
        for source in sources:
            bench.run(path, source, [("gan", level, {}) for level in levels])
    if "larger" in options.parts:
        few = make(argparse.Namespace(**vars(options) | {"num_images": 64}))
        rows = [("bilinear", None), ("lanczos", None), ("recorded", 0.0)]
        rows = [(*row, {}) for row in [*rows, ("recorded", options.level)]]
        few.run(options.output / f"larger-{options.split}.json", "larger", rows)
    few = make(argparse.Namespace(**vars(options) | {"num_images": 8}))
    if "sheets" in options.parts:
        sheets(few, options.output, names, options.level)
    if "gan" in options.parts and not on_test:
        sheets(few, options.output, ["recorded", "gan"], options.level, "-gan")


if __name__ == "__main__":
    main()
