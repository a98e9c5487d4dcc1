"""The damage table of chapter 11b and the quality of two bundled models, by networks
that saw none of our data: `python benchmarks/quality.py`.

Writes t2i_tutorial/results/quality.json and quality-samples.png, which the chapter
shows. AlexNet and SqueezeNet are used where their weights are in torch's cache (set
TORCH_HOME); the bundled `dead-leaves` always is. The classifier's own features are
measured beside them, as a warning. All images are of the split `val`: measures are
chosen here, models are not reported. About twenty minutes on one core.

`--parts` makes some parts again and leaves the others as they were.
"""

import argparse
import time
from dataclasses import asdict

import torch

from t2i_tutorial import critters
from t2i_tutorial.clip import git_commit, hardware_info
from t2i_tutorial.core import (
    RESULTS_DIR,
    atomic_write,
    load_json,
    make_grid,
    save_json,
    to_pil,
)
from t2i_tutorial.evaluation.classifier import AttributeClassifier, attribute_labels
from t2i_tutorial.evaluation.metrics import (
    extract_features,
    mean_with_interval,
    nearest_neighbours,
    proportion,
)
from t2i_tutorial.evaluation.quality import (
    FEATURE_NETWORKS,
    FeatureNetwork,
    damage_ladder,
    has_feature_network,
    measure_quality,
    quality_difference,
)
from t2i_tutorial.hub import load_model
from t2i_tutorial.text import full_caption

SEED = 14_011  # of renders and prompts
MODELS = ("critters-32", "critters-32-gigagan")
PARTS = (*FEATURE_NETWORKS, "critters-classifier", "other", "models", "timing")
PATH = RESULTS_DIR / "quality.json"


class KeepsFeatures(FeatureNetwork):
    "The same network; features of a set of images are computed once."

    def __init__(self, name: str):
        super().__init__(name)
        self.kept = []

    def extract(self, images, chunk_size: int = 128):
        for known, features in self.kept:
            if known is images:
                return features
        self.kept.append((images, super().extract(images, chunk_size)))
        return self.kept[-1][1]


class ClassifierFeatures:
    "The attribute classifier as a feature network, to show why it is none."

    name = "critters-classifier"

    def __init__(self):
        self.classifier = AttributeClassifier.from_pretrained()

    def extract(self, images):
        return extract_features(self.classifier, images)


def network_by_name(name: str):
    return (
        ClassifierFeatures() if name == "critters-classifier" else KeepsFeatures(name)
    )


def rounded(metrics: dict) -> dict:
    "Metrics as JSON, four digits, without what is not known."
    return {
        name: {k: float(f"{v:.4g}") for k, v in asdict(m).items() if v is not None}
        for name, m in metrics.items()
    }


def real_images(n: int, which: int, size: int = 32) -> torch.Tensor:
    return critters.sample_critters(n, size, seed=SEED + which, split="val").images


def damage_table(network, n: int) -> dict:
    "By damage: the measures, and the difference of each to other real images."
    drawn = critters.sample_critters(n, 32, seed=SEED, split="val")
    real, floor = real_images(n, 1), real_images(n, 2)
    table = {}
    for name, images in damage_ladder(drawn).items():
        found = measure_quality(network, images, real)
        difference = quality_difference(network, images, floor, real, paired=False)
        table[name] = {
            "measures": rounded(found),
            "minus_floor": rounded(difference),
        }
        print(network.name, name, {k: round(m.value, 3) for k, m in found.items()})
    return table


def other_measures(n: int) -> dict:
    "By damage: prompt accuracy, and the share of images that are too near to training."
    drawn = critters.sample_critters(n, 32, seed=SEED, split="val")
    training = critters.sample_critters(40_000, 32, seed=0)
    classifier = AttributeClassifier.from_pretrained()
    distance, _ = nearest_neighbours(real_images(n, 2), training.images, mirror=True)
    threshold, table = distance.quantile(0.01), {}
    for name, images in damage_ladder(drawn).items():
        asked = training.critters[:n] if name == "training images" else drawn.critters
        labels = attribute_labels(asked)
        with torch.no_grad():
            logits = classifier(images)
        right = [logits[k].argmax(1) == labels[k] for k in labels]
        accuracy = mean_with_interval(torch.stack(right).double().mean(0))
        near, _ = nearest_neighbours(images, training.images, mirror=True)
        table[name] = rounded(
            {
                "prompt_accuracy": accuracy,
                "memorisation_rate": proportion(near < threshold),
            }
        )
        print(name, table[name], flush=True)
    return table


def model_table(networks: list, n: int) -> dict:
    "Quality of two models, the difference between them, and their first images."
    prompts = critters.sample_critters(n, 32, seed=SEED + 3, split="val").critters
    captions = [full_caption(c) for c in prompts]
    images, table = {}, {"seconds": {}}
    for name in MODELS:
        start = time.time()
        images[name] = load_model(name, "cpu").sample(captions, seed=SEED)
        table["seconds"][name] = round(time.time() - start, 1)
    real, floor = real_images(n, 1), real_images(n, 2)
    for network in networks:
        row = {
            k: rounded(measure_quality(network, x, real, floor))
            for k, x in images.items()
        }
        difference = quality_difference(network, *images.values(), real)
        row["difference"] = rounded(difference)
        table[network.name] = row
        for k, values in row.items():
            print(
                network.name, k, {m: v["value"] for m, v in values.items()}, flush=True
            )
    sheet = make_grid(torch.cat([x[:8] for x in images.values()]), columns=8)
    with atomic_write(RESULTS_DIR / "quality-samples.png") as partial:
        to_pil(sheet).save(partial, format="png")
    return table


def timing(names: list[str], n: int = 2000) -> dict:
    "Seconds for 2,000 images against 2,000 real ones, with as many for the floor."
    sets, seconds = [real_images(n, k) for k in range(3)], {"num_images": n}
    for name in names:
        start = time.time()
        measure_quality(FeatureNetwork(name), *sets)
        seconds[name] = round(time.time() - start, 1)
        print("seconds", name, seconds[name], flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    n, parts = options.num_images, options.parts
    settings = {
        "command": "python benchmarks/quality.py",
        "num_images": n,
        "seed": SEED,
        "git_commit": git_commit(),
        "hardware": hardware_info(),
    }
    result = {"damage": {}}
    if set(parts) != set(PARTS) and PATH.is_file():
        result = load_json(PATH)
    result |= settings
    at_hand = [k for k in FEATURE_NETWORKS if has_feature_network(k)]
    measured = [*at_hand, "critters-classifier"]
    for name in (k for k in measured if k in parts):
        result["damage"][name] = damage_table(network_by_name(name), n)
        save_json(PATH, result)
    if "other" in parts:
        result["other"] = other_measures(n)
        save_json(PATH, result)
    if "models" in parts:
        result["models"] = model_table([network_by_name(k) for k in measured], n)
        save_json(PATH, result)
    if "timing" in parts:
        result["timing"] = timing(at_hand)
    print(save_json(PATH, result))


if __name__ == "__main__":
    main()
