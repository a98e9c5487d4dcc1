"""What each way of finetuning learns of robots, and what it forgets of creatures.

    python benchmarks/finetuning.py [--runs NAME ...] [--output FILE]

Each run begins with critters-32 and trains on the 800 robots of chapter 43, or on eight
of them. A run that the file holds is not made again. Each method has a learning rate,
set before and not tuned. With prior images a batch has as many of them as of robots,
beside the same number of robots. Measured on images of prompts that no training saw:

- robots: share that a linear classifier on the attribute classifier's features takes
  for robots; it was shown robots and creatures, both on white and on a dark ground, and
  has to say one or the other of any image
- colours, square_error, mmd: as in chapter 43
- old_accuracy: of what a prompt of a creature states, the share that is found
- old_robots: share of images of such prompts that are taken for robots
- nearest_train_distance, beside that of fresh robots
"""

import argparse
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from t2i_tutorial import critters
from t2i_tutorial.clip import git_commit, hardware_info
from t2i_tutorial.core import RESULTS_DIR, load_json, make_grid, save_json
from t2i_tutorial.data import open_dataset
from t2i_tutorial.diffusion.finetune import (
    WithPrior,
    add_lora,
    full_finetuning,
    prior_images,
    textual_inversion,
    tune_token_embeddings,
)
from t2i_tutorial.diffusion.imagen import Imagen
from t2i_tutorial.evaluation.classifier import AttributeClassifier
from t2i_tutorial.evaluation.metrics import extract_features, nearest_neighbours
from t2i_tutorial.evaluation.quality import load_feature_network, measure_quality
from t2i_tutorial.evaluation.report import prompt_accuracy
from t2i_tutorial.experiments import save_annotated_png
from t2i_tutorial.robots import (
    render_robots,
    robot_caption,
    robot_colours_found,
    sample_robots,
    square_error,
    write_robots,
)
from t2i_tutorial.text import full_caption
from t2i_tutorial.training import TrainConfig, Trainer

WORDS = {  # new words, and the known ones that they begin with
    "robot": "owl",
    "pixel": "",
    "art": "",
    "antenna": "",
    "antennae": "",
    "legs": "",
    "two": "",
    "three": "",
    "pointing": "facing",
    "raised": "",
    "lowered": "",
}
METHODS = {
    "new words": lambda model: textual_inversion(model, WORDS),
    "all word vectors": lambda model: tune_token_embeddings(model, WORDS),
    "LoRA": lambda model: add_lora(model, 4, words=WORDS),
    "LoRA, rank 16": lambda model: add_lora(model, 16, words=WORDS),
    "all weights, old words": full_finetuning,
    "all weights": lambda model: full_finetuning(model, WORDS),
}
RATES = {  # learning rates
    "new words": 1e-2,
    "all word vectors": 3e-3,
    "LoRA": 3e-3,
    "LoRA, rank 16": 3e-3,
    "all weights, old words": 6e-4,
    "all weights": 6e-4,
}
RUNS = {"before": (None, 0, False)}  # name -> (method, images, prior images)
RUNS |= {name: (name, 800, False) for name in METHODS}
RUNS |= {f"{k}, with prior": (k, 800, True) for k in ("LoRA", "all weights")}
RUNS |= {f"eight images: {k}": (k, 8, False) for k in ("new words", "LoRA")}
RUNS |= {"eight images: LoRA, with prior": ("LoRA", 8, True)}
RUNS |= {"eight images: all weights": ("all weights", 8, False)}
RUNS |= {"eight images: all weights, with prior": ("all weights", 8, True)}
STEPS = {800: 500, 8: 200}  # images -> steps of 32


# ---- a classifier that was shown robots


class RobotProbe:
    "Robot or creature, by logistic regression on features of the attribute classifier."

    def __init__(self, n: int = 400):
        self.classifier = AttributeClassifier.from_pretrained()
        x, y = self.examples(n, 11)
        features = extract_features(self.classifier, x)
        self.mean, self.std = features.mean(0), features.std(0) + 1e-6
        self.layer = torch.nn.Linear(features.shape[1], 1).double()
        optimizer = torch.optim.LBFGS(self.layer.parameters(), max_iter=200)
        scaled = (features - self.mean) / self.std

        def closure():
            optimizer.zero_grad()
            logits = self.layer(scaled)[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
            loss = loss + 1e-3 * self.layer.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        x, y = self.examples(n, 12)
        self.accuracy = (self(x) == y.bool()).float().mean().item()

    @staticmethod
    def examples(n: int, seed: int):
        "Robots and creatures, both on white and on the robots' ground."
        robots = render_robots(sample_robots(n, seed), 32, seed)
        drawn = critters.sample_critters(n, 32, seed=seed, split="val").images
        ground = robots[:1, :, :1, :1]
        white = torch.ones(())
        on_white = torch.where((robots == ground).all(1, keepdim=True), white, robots)
        on_dark = torch.where((drawn > 0.99).all(1, keepdim=True), ground, drawn)
        x = torch.cat([robots, on_white, drawn, on_dark])
        return x, torch.cat([torch.ones(2 * n), torch.zeros(2 * n)]).double()

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        features = extract_features(self.classifier, images)
        return self.layer((features - self.mean) / self.std)[:, 0] > 0


# ---- one run


class Measures:
    "Prompts and real images, made once."

    def __init__(self, n: int):
        self.probe, self.network = RobotProbe(), load_feature_network("dead-leaves")
        self.robots = sample_robots(n, 1)
        self.prompts = [robot_caption(r, i % 2) for i, r in enumerate(self.robots)]
        self.real = render_robots(self.robots, 32, 1)
        self.others = render_robots(sample_robots(n, 2), 32, 2)
        self.old = critters.sample_critters(n, 32, seed=3, split="val")
        self.old_prompts = [full_caption(c) for c in self.old.critters]

    def __call__(self, model: Imagen, train: torch.Tensor) -> tuple[dict, torch.Tensor]:
        "All numbers, and the images of a sheet: eight robots, eight creatures."
        model.eval()
        images, old = (model.sample(p) for p in (self.prompts, self.old_prompts))
        stated = prompt_accuracy(
            self.probe.classifier, old, self.old.critters, self.old.images
        )
        quality = measure_quality(self.network, images, self.real, self.others)
        near, _ = nearest_neighbours(images, train)
        fresh, _ = nearest_neighbours(self.real, train)
        found = {
            "robots": self.probe(images).float().mean().item(),
            "colours": robot_colours_found(images, self.robots).float().mean().item(),
            "square_error": square_error(images).mean().item(),
            "mmd": quality["mmd"].value,
            "old_robots": self.probe(old).float().mean().item(),
            "nearest_train_distance": near.median().item(),
            "nearest_fresh_distance": fresh.median().item(),
            "old_attributes": {k: round(m.value, 3) for k, m in stated.items()},
        }
        values = [m.value for k, m in stated.items() if k != "all"]
        found["old_accuracy"] = sum(values) / len(values)
        found = {k: round(v, 3) if type(v) is float else v for k, v in found.items()}
        return found, torch.cat([images[:8], old[:8]])


def run(name: str, measures: Measures, steps: int | None) -> tuple[dict, torch.Tensor]:
    method, count, with_prior = RUNS[name]
    model = Imagen.from_pretrained("critters-32", "cpu")
    train = render_robots(sample_robots(max(count, 8)), 32)
    if method is None:
        found, images = measures(model, train)
        return {"parameters": 0, "seconds": 0.0} | found, images
    begun, cpu = time.perf_counter(), time.process_time()
    with TemporaryDirectory() as folder:
        data = open_dataset(write_robots(Path(folder) / "robots", count), 32)
        if count < 64:
            data = data.subset([i % count for i in range(64)])
        if with_prior:
            old = critters.sample_critters(256, 32, seed=4).critters  # of split train
            data = WithPrior(data, prior_images(model, [full_caption(c) for c in old]))
        tuning = METHODS[method](model)
        config = TrainConfig(
            max_steps=steps or STEPS[count],
            batch_size=64 if with_prior else 32,
            lr=RATES[method],
            warmup_steps=min(20, (steps or 100) - 1),
            lr_schedule="cosine",
            weight_decay=0.0,
            ema_decay=0.99,
            log_with="none",
        )
        trainer = Trainer(tuning, data, config)
        history = trainer.fit()
        trainer.ema.copy_to_model()
    record = {
        "parameters": sum(p.numel() for p in tuning.learned().values()),
        "images": count,
        "steps": config.max_steps,
        "lr": config.lr,
        "loss": round(history[-1]["loss"], 4),
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    found, images = measures(tuning.model, train)
    return record | found, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--output", type=Path, default=RESULTS_DIR / "finetuning.json")
    parser.add_argument("--num-images", type=int, default=128, help="to measure by")
    parser.add_argument("--max-steps", type=int, help="of every run, for a short proof")
    options = parser.parse_args()
    measures = Measures(options.num_images)
    head = {"git_commit": git_commit(), "hardware": hardware_info(), "runs": {}}
    results = load_json(options.output) if options.output.is_file() else head
    results |= {"num_images": options.num_images}
    results |= {"probe_accuracy": round(measures.probe.accuracy, 4)}
    sheets = options.output.with_suffix("")
    for name in (n for n in options.runs if n not in results["runs"]):
        record, images = run(name, measures, options.max_steps)
        sheets.mkdir(parents=True, exist_ok=True)
        file = re.sub(r"\W+", "-", name) + ".png"
        save_annotated_png(sheets / file, make_grid(images, columns=8), 1, run=name)
        results["runs"][name] = record
        results["runs"] = {k: results["runs"][k] for k in RUNS if k in results["runs"]}
        save_json(options.output, results)
        record = {k: v for k, v in record.items() if k != "old_attributes"}
        print(name, record, flush=True)


if __name__ == "__main__":
    main()
