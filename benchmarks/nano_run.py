"""The recorded run of the chapter "All of text-to-image in one file": train longer,
evaluate, write it all down.

    OMP_NUM_THREADS=1 python benchmarks/nano_run.py [--steps 12000] [--output FOLDER]

It trains the chapter's own settings first (about a minute), then the longer ones, and
measures both as every model of the book: full and natural captions of the split `test`
and of what was held out of training, quality, variety and copies. The report of the
longer run is written beside its weights.
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
    from_uint8,
    make_grid,
    save_json,
    save_tensors,
    to_pil,
)
from t2i_tutorial.evaluation.report import (
    EvaluationImages,
    EvaluationReport,
    generate_evaluation_images,
    matching_critters,
    measure_images,
)

NUM_PROMPTS = 2000
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


def evaluate(model: nano.NanoDenoiser) -> tuple[EvaluationReport, EvaluationImages]:
    "The report, and the images that it is about."
    generated = generate_evaluation_images(
        lambda prompts, seed: nano.sample_nano(model, prompts, seed=seed),
        NUM_PROMPTS,
        size=16,
        model="nano",
    )
    seen = critters.sample_critters(model.config.num_images, size=16).images
    return measure_images(generated, training_images=seen), generated


def accuracy(report: EvaluationReport) -> dict:
    "Sections about prompts, for the record."
    sections = report.metrics.items()
    return {
        section: {name: asdict(m) for name, m in metrics.items()}
        for section, metrics in sections
        if "all" in metrics
    }


def samples(generated: EvaluationImages) -> torch.Tensor:
    "Renders and, under each row of them, generated images; the first 36 prompts."
    prompts = generated.prompts["test/full"][:36]
    renders = critters.render(matching_critters(prompts), size=16, seed=1)
    images = from_uint8(generated.images["test/full"][:36])
    shown = torch.stack([renders, images]).view(2, 3, 12, 3, 16, 16)
    return shown.transpose(0, 1).flatten(0, 2)


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
        "sampling": {"guidance_scale": 2.5, "num_steps": 20},
    }
    model, record["live"] = train(LIVE)
    record["live"]["accuracy"] = accuracy(evaluate(model)[0])
    config = nano.NanoConfig(**{**asdict(LONGER), "max_steps": args.steps})
    model, record["longer"] = train(config)
    weights = {key: value.half() for key, value in model.state_dict().items()}
    save_tensors(args.output / "model.safetensors", weights, asdict(config))
    model = nano.load_nano(
        args.output / "model.safetensors"
    )  # what is kept is measured
    report, generated = evaluate(model)
    report.save(args.output / "evaluation-test.json")
    record["longer"]["accuracy"] = accuracy(report)
    record["parameters"] = sum(p.numel() for p in model.parameters())
    with atomic_write(args.output / "samples.png") as partial:
        grid = make_grid(samples(generated), columns=12)
        to_pil(grid, enlarge=3).save(partial, "png", optimize=True)
    save_json(args.output / "run.json", record)
    print(report.table())


if __name__ == "__main__":
    main()
