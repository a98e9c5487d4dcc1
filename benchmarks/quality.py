"""Quality of the bundled models, and the damage table, by networks that saw none of
our data: `python benchmarks/quality.py`.

Writes t2i_tutorial/results/quality.json and quality-samples.png, which chapter 11b
shows. AlexNet and SqueezeNet are used where their weights are in torch's cache (set
TORCH_HOME); the bundled `dead-leaves` always is. About 15 minutes on one core.
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
from t2i_tutorial.evaluation.quality import (
    FEATURE_NETWORKS,
    damage_ladder,
    has_feature_network,
    load_feature_network,
    measure_quality,
)
from t2i_tutorial.hub import bundled_models, load_model
from t2i_tutorial.text import full_caption

SEED = 14_011  # of prompts, renders and noise; nothing else uses it
SHEET = ("critters-32", "critters-32-gigagan")


def rounded(metrics: dict) -> dict:
    "Metrics as JSON, five digits."
    return {
        name: {k: v if v is None else float(f"{v:.5g}") for k, v in asdict(m).items()}
        for name, m in metrics.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--models", nargs="*", help="all that are bundled if not given")
    options = parser.parse_args()
    n, path = options.num_images, RESULTS_DIR / "quality.json"
    networks = [
        load_feature_network(k) for k in FEATURE_NETWORKS if has_feature_network(k)
    ]
    result = {
        "command": "python benchmarks/quality.py",
        "git_commit": git_commit(),
        "hardware": hardware_info(),
        "num_images": n,
        "seed": SEED,
        "damage": {},
        "models": {},
    }
    ladder = damage_ladder(n)
    real = critters.sample_critters(n, 32, seed=SEED + 1, split="val").images
    for network in networks:
        found = {}
        for name, images in ladder.items():
            found[name] = rounded(measure_quality(network, images, real))
            line = {k: v["value"] for k, v in found[name].items()}
            print(network.name, name, line, flush=True)
        result["damage"][network.name] = found
    rows = {}
    for name in options.models or bundled_models():
        model, start = load_model(name, "cpu"), time.time()
        size = model.config.size
        requested = critters.sample_critters(n, size, seed=SEED, split="test")
        prompts = [full_caption(c) for c in requested.critters]
        images = model.sample(prompts, seed=SEED)
        seconds = time.time() - start
        targets = [
            critters.sample_critters(n, size, seed=SEED + k, split="test").images
            for k in (2, 3)
        ]
        quality = {
            k.name: rounded(measure_quality(k, images, *targets)) for k in networks
        }
        result["models"][name] = {"seconds": round(seconds, 1), "quality": quality}
        rows[name] = images[:8]
        for k, row in quality.items():
            print(name, k, {m: v["value"] for m, v in row.items()}, flush=True)
    if path.is_file() and options.models:  # the other models stay as they were
        result["models"] = load_json(path)["models"] | result["models"]
    if all(name in rows for name in SHEET):
        sheet = make_grid(torch.cat([rows[name] for name in SHEET]), columns=8)
        with atomic_write(RESULTS_DIR / "quality-samples.png") as partial:
            to_pil(sheet).save(partial, format="png")
    save_json(path, result)
    print(path)


if __name__ == "__main__":
    main()
