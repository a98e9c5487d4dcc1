"""How strong should the guidance be? The recorded sweep of chapter 38.

    OMP_NUM_THREADS=1 python benchmarks/guidance_sweep.py [--model NAME] [--output FILE]

Every setting generates images for the same prompts of the validation split from the
same noise. A setting that the file already holds is not generated again.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from einops import rearrange

from t2i_tutorial import critters
from t2i_tutorial.core import RESULTS_DIR, progress_bar, save_json
from t2i_tutorial.evaluation.classifier import AttributeClassifier
from t2i_tutorial.evaluation.metrics import (
    intra_prompt_diversity,
    mean_with_interval,
    pixel_rmse,
)
from t2i_tutorial.experiments import load_or_init_results, quick_evaluate
from t2i_tutorial.hub import load_model
from t2i_tutorial.text import full_caption

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0)
HIGH = (2.0, 3.0, 5.0, 7.5, 10.0)
SOME = (2.0, 5.0, 10.0)
VARIANTS = {
    "static": (SCALES, {"thresholding": "static"}),
    "dynamic": (SCALES[4:], {"thresholding": "dynamic"}),
    "none": (SOME, {"thresholding": "none"}),
    "rescale 0.7": (SOME, {"thresholding": "static", "guidance_rescale": 0.7}),
    "interval": (SOME, {"thresholding": "static", "guidance_interval": (0.2, 0.8)}),
}
STEPS = {2.0: (8, 12, 50), 5.0: (8, 12, 50)}  # beside the usual number


def settings_of_runs(num_steps: int) -> dict[str, dict]:
    "The name of each run and the arguments of `Imagen.sample`."
    runs = {
        f"{name}, {scale:g}": {"guidance_scale": scale, "num_steps": num_steps} | extra
        for name, (scales, extra) in VARIANTS.items()
        for scale in scales
    }
    return runs | {
        f"static, {scale:g}, {steps} steps": {
            "guidance_scale": scale,
            "num_steps": steps,
            "thresholding": "static",
        }
        for scale, counts in STEPS.items()
        for steps in counts
    }


def corner_error(images):
    "Mean distance of the upper corners' 4 x 4 pixels from white, for each image."
    corners = [images[..., :4, :4], images[..., :4, -4:]]
    return sum((1 - c).abs().mean((1, 2, 3)) for c in corners) / 2


def measure_groups(model, prompts: list[str], k: int, seed: int, **sampling) -> dict:
    "Distance within a prompt, from k images of each; and how white the corners are."
    repeated = [p for p in prompts for _ in range(k)]
    images = model.sample(repeated, seed=seed, **sampling).cpu()
    groups = rearrange(images, "(p k) c h w -> p k c h w", k=k)
    return {
        "rmse_diversity": mean_with_interval(
            intra_prompt_diversity(groups, pixel_rmse)
        ),
        "corner_error": mean_with_interval(corner_error(images)),
        "extreme_values": mean_with_interval(
            (images.abs() > 0.99).float().mean((1, 2, 3))
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="critters-32")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--num-prompts", type=int, default=500)
    parser.add_argument("--variants", nargs="+", help="names, like static; default all")
    options = parser.parse_args()
    path = options.output or RESULTS_DIR / options.model / "guidance.json"
    model = load_model(options.model, "cpu")
    classifier = AttributeClassifier.from_pretrained()
    drawn = critters.sample_critters(16, model.config.size, seed=38, split="val")
    prompts = [full_caption(c) for c in drawn.critters]
    settings = {
        "model": options.model,
        "num_prompts": options.num_prompts,
        "split": "val",
        "seed": 38,
        "groups": [len(prompts), 4],
        "corner_error_of_renders": corner_error(drawn.images).mean().item(),
    }
    results = load_or_init_results(path, settings)
    runs = settings_of_runs(model.config.num_steps)
    if options.variants:
        runs = {k: v for k, v in runs.items() if k.split(", ")[0] in options.variants}
    for name, sampling in progress_bar(runs.items(), "settings"):
        if name in results["runs"]:
            continue
        run = quick_evaluate(
            model, options.num_prompts, 38, classifier, "val", **sampling
        )
        groups = measure_groups(model, prompts, 4, 38, **sampling)
        run |= {k: asdict(v) for k, v in groups.items()}
        results["runs"][name] = {"sampling": sampling} | run
        save_json(path, results)


if __name__ == "__main__":
    main()
