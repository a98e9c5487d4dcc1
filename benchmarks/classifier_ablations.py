"""The recorded ablations of the chapter "An attribute classifier".

    OMP_NUM_THREADS=1 python benchmarks/classifier_ablations.py [--output FOLDER]

`augmentation.json`: two small classifiers that differ only in whether their training
images are degraded, under growing noise and blur. `without-held-out.json`: the training
of `critters-classifier` without its second stage, the one with held-out combinations,
evaluated on fresh renders of every split. Both use a GPU where there is one.
"""

import argparse
from pathlib import Path
from time import perf_counter

import torch

from t2i_tutorial import critters
from t2i_tutorial.clip import git_commit, hardware_info
from t2i_tutorial.core import RESULTS_DIR, save_json, seeded_generator
from t2i_tutorial.evaluation.classifier import (
    CLASSIFIED_ATTRIBUTES,
    AttributeClassifier,
    attribute_labels,
    evaluate_classifier,
    gaussian_blur,
    predict_attributes,
    train_classifier,
)

SEED = 1_031  # of the renders that measure the augmentation
NUM_IMAGES = 2_048
NOISE = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8)  # standard deviation
BLUR = (0.0, 0.5, 0.75, 1.0, 1.5)  # pixels
STEPS = 700  # of the small classifiers


def record(call: str) -> dict:
    "What a record starts with."
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    hardware = hardware_info() | {"gpu": gpu}
    return {"call": call, "git_commit": git_commit(), "hardware": hardware}


def accuracy(
    classifier: AttributeClassifier, images: torch.Tensor, labels: dict
) -> dict[str, float]:
    "Of each attribute and of all together."
    predicted = predict_attributes(classifier, images)
    correct = {k: predicted[k] == labels[k] for k in CLASSIFIED_ATTRIBUTES}
    correct["all"] = torch.stack(list(correct.values())).all(0)
    return {k: round(v.float().mean().item(), 4) for k, v in correct.items()}


def robustness(classifier: AttributeClassifier) -> dict[str, dict[str, list[float]]]:
    "For each attribute the accuracy under growing noise and under growing blur."
    drawn = critters.sample_critters(NUM_IMAGES, 32, seed=SEED, split="test")
    labels = attribute_labels(drawn.critters)
    noise = torch.randn(drawn.images.shape, generator=seeded_generator(SEED))
    cases = {
        "noise": [drawn.images + s * noise for s in NOISE],
        "blur": [gaussian_blur(drawn.images, s) if s else drawn.images for s in BLUR],
    }
    rows = {k: [accuracy(classifier, x, labels) for x in v] for k, v in cases.items()}
    return {
        a: {kind: [row[a] for row in rows[kind]] for kind in cases}
        for a in (*CLASSIFIED_ATTRIBUTES, "all")
    }


def augmentation(folder: Path) -> Path:
    "Two small classifiers, trained on clean and on degraded images."
    call = f'train_classifier("tiny", max_steps={STEPS}, augment_images=...)'
    start = perf_counter()
    trained = {
        name: train_classifier("tiny", max_steps=STEPS, augment_images=augment)[0]
        for name, augment in (("clean", False), ("degraded", True))
    }
    return save_json(
        folder / "augmentation.json",
        record(call)
        | {"num_images": NUM_IMAGES, "noise": NOISE, "blur": BLUR}
        | {"trained_on": {k: robustness(v) for k, v in trained.items()}}
        | {"seconds": round(perf_counter() - start, 1)},
    )


def without_held_out(folder: Path) -> Path:
    "The classifier after its first stage."
    call = 'train_classifier("critters-classifier", finetune_steps=0)'
    start = perf_counter()
    classifier, _ = train_classifier("critters-classifier", finetune_steps=0)
    seconds = round(perf_counter() - start, 1)
    rows = evaluate_classifier(classifier, cases=(("as drawn", 32),))
    return save_json(
        folder / "without-held-out.json",
        record(call) | {"seconds": seconds, "robustness": rows},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=RESULTS_DIR / "critters-classifier"
    )
    args = parser.parse_args()
    for make in (augmentation, without_held_out):
        print(make(args.output), flush=True)


if __name__ == "__main__":
    main()
