"""What does each part of the GAN give? The recorded ladder of chapter 27.

    OMP_NUM_THREADS=1 python benchmarks/gan_ladder.py [--output FOLDER] [--seeds 0 1 2]
        [--part 1/2] [--only NAME ...] [--fresh]

Every rung of `ABLATION_LADDER`, the faults of the project that this book retells, and
two controls that have the networks of the rung "text" and one caption for all images:
trained from random weights with the same images, updates and seeds; and both ends of
the ladder once more at 32 pixels, with the first seed. Measured on the validation split
along the way and on the test split at the end. One JSON a run; a run
whose JSON is there is not made again, and one that was stopped goes on from its last
checkpoint. `--part 1/2` and `--part 2/2` share the runs between two processes of one
core each.
"""

import argparse
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from gan_layers import RUNGS

from t2i_tutorial import critters
from t2i_tutorial.checkpoints import load_weights
from t2i_tutorial.clip import CLIP, git_commit, hardware_info
from t2i_tutorial.core import RESULTS_DIR, save_json, save_tensors, to_uint8
from t2i_tutorial.evaluation.classifier import AttributeClassifier
from t2i_tutorial.evaluation.metrics import (
    clip_cosines,
    lpips_distance,
    mean_with_interval,
)
from t2i_tutorial.evaluation.quality import load_feature_network, measure_quality
from t2i_tutorial.evaluation.report import prompt_accuracy, stated_matches
from t2i_tutorial.experiments import SAMPLE_PROMPTS
from t2i_tutorial.gan import gigagan
from t2i_tutorial.gan.config import GAN_CPU_TRAIN_CONFIG, GIGAGAN_PRESETS
from t2i_tutorial.gan.gigagan import GigaGAN, train_gigagan
from t2i_tutorial.gan.losses import CLIPContrastiveLoss
from t2i_tutorial.text import full_caption

COMMON = {
    "num_images": 10_000,
    "train.max_checkpoints": 5,
    "train.sample_every": 0,
    "train.ema_decay": 0.99,
}
TEXT, MATCHING = RUNGS["text"], RUNGS["matching"]
FAULTS = {
    "discriminator without text": TEXT | {"text_conditional_discriminator": False},
    "matching loss on generated images only": MATCHING,
    "CLIP loss of two models": MATCHING | {"clip_weight": 0.1},
    "batch of 2": MATCHING | {"train.batch_size": 2},
}
# an unconditional head is smaller than a text head: these have text heads, and no text
CONTROLS = {"one caption": TEXT, "one caption for the discriminator": TEXT}
ONE_CAPTION = "a creature"
AT_32 = {  # larger networks, and all else as at 16 pixels
    "train.lr": GAN_CPU_TRAIN_CONFIG.lr,
    "train.warmup_steps": GAN_CPU_TRAIN_CONFIG.warmup_steps,
    "discriminator_lr_ratio": 1.0,
    "hard_negative_fraction": 0.0,
}
ENDS = {
    f"{kind} at 32 pixels": RUNGS[kind] | AT_32
    for kind in ("unconditional", "vision-aided")
}


def preset_of(kind: str) -> str:
    "The preset that the settings of a run change."
    return "cpu-32" if kind in ENDS else "tiny"


class MatchingOnGenerated(GigaGAN):
    "The mismatched pairs hold generated images only."

    def pair_logits(self, *args):
        logits = super().pair_logits(*args)
        fake = logits.mismatched_fake
        return type(logits)(logits.real, logits.fake, fake, fake, logits.rows)


class UnrelatedSpaces(GigaGAN):
    "The CLIP loss compares one model's image vectors with another model's captions."

    def set_clip_negatives(self, captions, caption_key=None):
        super().set_clip_negatives(captions, caption_key)
        other = CLIP.from_pretrained("critters-clip-score").eval()
        loss: CLIPContrastiveLoss = self.clip_loss
        missing = loss.vectors.shape[1] - other.encode_text(["a cat"]).shape[1]

        @torch.no_grad()
        def encode(captions):
            return F.pad(other.encode_text(captions), (0, missing))  # to equal lengths

        loss._encode = encode
        loss.vectors = encode(loss.captions)


class OneCaption(GigaGAN):
    "Both networks get the same text, whatever the caption is."

    def encode_captions(self, captions):
        return super().encode_captions([ONE_CAPTION] * len(captions))


class OneCaptionForDiscriminator(GigaGAN):
    "The generator gets the captions, the discriminator the same text for all."

    def discriminator_text(self, text):
        return self.encode_prompts([ONE_CAPTION] * len(text.pooled))


CLASSES = {
    "one caption": OneCaption,
    "one caption for the discriminator": OneCaptionForDiscriminator,
    "matching loss on generated images only": MatchingOnGenerated,
    "CLIP loss of two models": UnrelatedSpaces,
}


def all_runs(seeds: list[int], steps: int) -> dict[str, dict]:
    "The settings of each run by its name; one seed after the other."
    kinds = RUNGS | FAULTS | CONTROLS | ENDS
    steps = {"train.max_steps": steps, "train.save_every": steps // 4}
    return {
        f"{name}, seed {seed}": COMMON | steps | changes | {"train.seed": seed}
        for seed in seeds
        for name, changes in kinds.items()
        if name not in ENDS or seed == seeds[0]
    }


def measure(model: GigaGAN, classifier: AttributeClassifier, n: int, split: str):
    "Alignment, quality and LPIPS on prompts of one split, from one set of images."
    asked, others = (
        critters.sample_critters(n, model.config.size, seed=s, split=split)
        for s in (27, 2700)
    )
    prompts = [full_caption(c) for c in asked.critters]
    images = model.sample(prompts, seed=27 if split == "val" else 270)
    found = prompt_accuracy(classifier, images, asked.critters, asked.images)
    network = load_feature_network("dead-leaves")  # bundled: no download
    found |= measure_quality(network, images, others.images, asked.images)
    scorer = CLIP.from_pretrained("critters-clip-score")  # no part in any training
    numbers = {
        "clip_score": clip_cosines(scorer, images, prompts)[0],
        "lpips_to_own": lpips_distance(images, asked.images),
        "lpips_to_other": lpips_distance(images, asked.images.roll(1, 0)),
    }
    found |= {k: mean_with_interval(v) for k, v in numbers.items()}
    matches = stated_matches(classifier, images, asked.critters)
    bits = {k: "".join("01"[int(x)] for x in v) for k, v in matches.items()}
    return {k: asdict(v) for k, v in found.items()} | {"prompt_by_prompt": bits}


def run(
    name: str,
    settings: dict,
    folder: Path,
    classifier: AttributeClassifier,
    n: int,
    fresh: bool,
) -> None:
    "Train one run, measure its checkpoints, write its JSON and sheet."
    path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.json"
    if path.exists() and not fresh:
        return
    training = Path(tempfile.gettempdir()) / "t2i-ladder" / path.stem
    if fresh:
        shutil.rmtree(training, ignore_errors=True)
    going_on = (training / "checkpoints").is_dir()
    start = time.process_time()
    kind = name.rpartition(",")[0]
    cls, preset = CLASSES.get(kind, GigaGAN), preset_of(kind)
    with patch.object(gigagan, "GigaGAN", cls):
        model, history = train_gigagan(preset, "critters", training, settings, going_on)
    spent, along = time.process_time() - start, {}
    saved = sorted((training / "checkpoints").iterdir())
    for checkpoint in saved[:-1]:
        load_weights(model, checkpoint)
        step = int(checkpoint.name[5:])
        along[step] = measure(model.eval(), classifier, n // 3, "val")
    load_weights(model, saved[-1])
    final = measure(model.eval(), classifier, n, "test")
    sheet = model.sample(list(SAMPLE_PROMPTS), seed=0, share_noise=True)
    save_tensors(path.with_suffix(".safetensors"), {"images": to_uint8(sheet)}, {})
    record = {
        "name": name,
        "settings": {k: v for k, v in settings.items()},
        "preset": asdict(GIGAGAN_PRESETS[preset]),
        "num_images": n,
        "git_commit": git_commit(),
        "hardware": hardware_info(),
        "cpu_seconds": round(spent, 1),  # without what an interrupted part took
        "parameters": sum(p.numel() for p in model.parameters()),
        "history": history,
        "along": along,
        "final": final,
    }
    save_json(path, record)
    shutil.rmtree(training, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS_DIR / "ladder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", default="1/1", help="which share, like 1/2")
    parser.add_argument("--only", nargs="+", help="names of rungs, faults, controls")
    parser.add_argument("--steps", type=int, default=1200, help="updates of a run")
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--fresh", action="store_true", help="make them again")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    options.output.mkdir(parents=True, exist_ok=True)
    classifier = AttributeClassifier.from_pretrained()
    lpips_distance(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))  # at hand?
    runs = all_runs(options.seeds, options.steps)
    if options.only:
        runs = {k: v for k, v in runs.items() if k.rpartition(",")[0] in options.only}
    for name, settings in list(runs.items())[part - 1 :: parts]:
        print(name, flush=True)
        run(
            name,
            settings,
            options.output,
            classifier,
            options.num_images,
            options.fresh,
        )


if __name__ == "__main__":
    main()
