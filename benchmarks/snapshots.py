"""How does a training go on? Each of its checkpoints, measured on the validation split.

    OMP_NUM_THREADS=1 python benchmarks/snapshots.py RUN --model NAME --output FILE
        [--first STEP] [--last STEP] [--raw] [--sheet PNG] [--beside NAME ...]

RUN is the folder of a training that kept its checkpoints, NAME a model with the same
networks, for instance the one that the training ended with. Finished models can be
measured beside them. What the file already holds is not measured again, and checkpoints
before --first or after --last are left out. Beside the measures stand the minutes from
the training's first TensorBoard file to the checkpoint; if the training was stopped and
resumed, with the pause. --raw measures the weights of the moment and not their average,
which hides what the last updates did. --sheet keeps the images of the eight sample
prompts, a row for each checkpoint.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from t2i_tutorial.checkpoints import list_checkpoints, load_weights
from t2i_tutorial.core import UserError, make_grid, save_json
from t2i_tutorial.evaluation.classifier import AttributeClassifier
from t2i_tutorial.experiments import (
    load_or_init_results,
    quick_evaluate,
    save_annotated_png,
)
from t2i_tutorial.hub import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a training")
    parser.add_argument("--model", required=True, help="one with the same networks")
    parser.add_argument("--beside", nargs="*", default=[], help="finished models")
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--raw", action="store_true", help="not averaged")
    parser.add_argument("--sheet", type=Path, help="PNG of the sample prompts")
    parser.add_argument("--first", type=int, default=0, help="checkpoint")
    parser.add_argument("--last", type=int, default=sys.maxsize, help="checkpoint")
    options = parser.parse_args()
    settings = {"num_images": options.num_images, "seed": 26, "split": "val"}
    settings["feature_network"] = "dead-leaves"  # that of `quick_evaluate`
    settings |= {"weights": "raw"} if options.raw else {}
    results = load_or_init_results(options.output, settings)
    classifier, runs = AttributeClassifier.from_pretrained(), results["runs"]

    def measure(name: str, model, **more) -> None:
        runs[name] = more | quick_evaluate(
            model.eval(), options.num_images, settings["seed"], classifier
        )
        print(name, {k: round(m["value"], 3) for k, m in metrics_of(runs[name])})
        save_json(options.output, results)

    saved = list_checkpoints(options.run)
    if not saved:
        raise UserError(f"no checkpoint in {str(options.run)!r}")
    steps = [k for k in saved if options.first <= k <= options.last]
    model, rows = load_model(options.model, "cpu").eval(), []
    for step in steps:
        if str(step) in runs and not options.sheet:
            continue
        load_weights(model, saved[step], ema=not options.raw)
        if str(step) not in runs:
            measure(str(step), model, **minutes_until(saved[step]))
        if options.sheet:
            rows.append(model.sample(model.sample_prompts, seed=0))
    if rows:
        grid = make_grid(torch.cat(rows), columns=len(rows[0]))
        note = "raw weights" if options.raw else "averaged weights"
        save_annotated_png(options.sheet, grid, steps=json.dumps(steps), note=note)
    for name in options.beside:
        if name not in runs:
            measure(name, load_model(name, "cpu"))


def minutes_until(checkpoint: Path) -> dict:
    "How long the training had run, by the times of files; empty without TensorBoard."
    events = (checkpoint.parents[1] / "tensorboard").glob("**/events.out.tfevents.*")
    begun = [int(path.name.split(".")[3]) for path in events]
    if not begun:
        return {}
    seconds = (checkpoint / "state.json").stat().st_mtime - min(begun)
    return {"minutes": round(seconds / 60, 2)}


def metrics_of(run: dict) -> list[tuple[str, dict]]:
    "What was measured, without the seconds."
    return [(k, m) for k, m in run.items() if isinstance(m, dict)]


if __name__ == "__main__":
    main()
