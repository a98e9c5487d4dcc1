"""The ladder of runs: what each rung and each fault changes, what memory counts.

The faults are those of the project that this book retells: PR-1 (a discriminator
without the text), a matching loss without real images, PR-2 (a CLIP loss across two
spaces), and a batch of 2.
"""

import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from t2i_tutorial.core import RESULTS_DIR, load_json, load_tensors, seeded_generator
from t2i_tutorial.experiments import critters_dataset
from t2i_tutorial.gan.config import ABLATION_LADDER, gigagan_preset
from t2i_tutorial.gan.discriminator import image_pyramid
from t2i_tutorial.gan.gigagan import GigaGAN, caption_attributes

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gan_ladder  # noqa: E402
import gan_memory  # noqa: E402


@pytest.fixture(scope="module")
def batch():
    return next(critters_dataset(8, 16).batches(8, shuffle=False))


def model_of(kind: str) -> GigaGAN:
    settings = gan_ladder.all_runs([0], 1200)[f"{kind}, seed 0"]
    changes = {k: v for k, v in settings.items() if not k.startswith("train.")}
    changes.pop("num_images")
    torch.manual_seed(0)
    cls = gan_ladder.CLASSES.get(kind, GigaGAN)
    return cls(gigagan_preset(gan_ladder.preset_of(kind), changes).model_config)


def flatten(config: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in config.items():
        inner = isinstance(value, dict)
        found |= flatten(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return found


def test_a_rung_keeps_what_the_ones_before_it_have():
    runs = gan_ladder.all_runs([0, 1, 2], 1200)
    beside = gan_ladder.FAULTS | gan_ladder.CONTROLS
    assert len(runs) == 3 * len(ABLATION_LADDER | beside) + len(gan_ladder.ENDS)
    kinds = [runs[f"{kind}, seed 1"] for kind in ABLATION_LADDER]
    for before, after in zip(kinds, kinds[1:]):
        changed = {k for k in after if after[k] != before.get(k)}
        assert len(changed - {"discriminator.vision_aided_model"}) == 1, changed
    common = {"train.max_steps", "train.save_every", "num_images", "train.ema_decay"}
    for settings in runs.values():
        assert {k: settings[k] for k in common} == {k: kinds[0][k] for k in common}
        assert settings["pretrain_steps"] == 0


@pytest.mark.parametrize("kind", ["unconditional", "vision-aided"])
def test_the_ends_at_32_pixels_differ_in_size_and_widths_alone(kind):
    runs, presets = gan_ladder.all_runs([1], 1200), []
    for name in (kind, f"{kind} at 32 pixels"):
        settings = dict(runs[f"{name}, seed 1"])
        assert settings.pop("train.max_steps") == 1200
        preset = gigagan_preset(gan_ladder.preset_of(name), settings)
        presets.append(asdict(preset))
    small, large = (flatten(p) for p in presets)
    different = {k for k in small if small[k] != large[k]}
    widths = {"channels", "num_kernels", "self_attention", "cross_attention", "sizes"}
    without_use = {"pretrain_candidates", "perceptual_decay_steps"}  # parts are off
    if not large["model_config.use_vision_aided"]:
        without_use.add("vision_aided_model")
    allowed = widths | without_use | {"size", "attention", "max_steps"}
    assert {k.rpartition(".")[2] for k in different} <= allowed
    assert large["model_config.size"] == 32


def test_matching_on_generated_images_alone_never_sees_a_mismatched_real_one(batch):
    model = model_of("matching loss on generated images only")
    text = model.encode_captions(batch.captions)
    real = image_pyramid(batch.images, model.config.discriminator.sizes)
    fake = [torch.rand_like(x) for x in real]
    logits = model.pair_logits(real, fake, text, batch.captions, seeded_generator(0))
    ours = GigaGAN.pair_logits(
        model, real, fake, text, batch.captions, seeded_generator(0)
    )
    for a, b in zip(logits.mismatched_real, ours.mismatched_fake):
        assert torch.equal(a, b)
    assert not torch.equal(ours.mismatched_real[0], ours.mismatched_fake[0])


@pytest.mark.parametrize("kind", gan_ladder.CONTROLS)
def test_with_one_caption_text_heads_have_no_text(batch, kind):
    "The networks of the rung `text`; what is scored does not depend on the captions."
    model, text_model = model_of(kind), model_of("text")
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, text_model)]
    assert counts[0] == counts[1]
    styles = []
    for m in (model, text_model):
        text = m.encode_captions(batch.captions)
        styles.append(m.discriminator_style(text))
    assert torch.equal(styles[0], styles[0][:1].expand_as(styles[0]))
    assert not torch.allclose(styles[1], styles[1][:1].expand_as(styles[1]))
    images = model.sample(["a red cat", "a blue fish"], seed=0, share_noise=True)
    assert torch.equal(images[0], images[1]) == (kind == "one caption")


def test_two_spaces_are_two(batch):
    "PR-2: captions and images are encoded by two models."
    captions = [c[0] for c in critters_dataset(64, 16).captions]
    one, two = model_of("CLIP"), model_of("CLIP loss of two models")
    for model in (one, two):
        model.set_clip_negatives(captions, caption_attributes)
    assert one.clip_loss.vectors.shape == two.clip_loss.vectors.shape
    same = torch.nn.functional.cosine_similarity(
        one.clip_loss.vectors, two.clip_loss.vectors
    )
    assert same.mean() < 0.5
    losses = [m.clip_loss(batch.images, batch.captions).item() for m in (one, two)]
    assert losses[0] < 0.5 * losses[1]  # real images, recognised by one model alone


def test_the_memory_benchmark_adds_levels_and_counts_features(batch):
    config = gan_memory.config_at(256, ABLATION_LADDER["vision-aided"])
    assert config.generator.size == config.size == 256
    assert config.generator.channels[-2:] == (24, 16)
    model = GigaGAN(gigagan_preset("tiny", ABLATION_LADDER["text"]).model_config)
    once = gan_memory.count_features(model.eval(), batch)
    wider = gigagan_preset(
        "tiny", ABLATION_LADDER["text"] | {"generator.channels": (96, 64, 48)}
    )
    assert gan_memory.count_features(GigaGAN(wider.model_config), batch) > once


RECORDS = sorted((RESULTS_DIR / "ladder").glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_records_hold_what_the_chapter_reads(path):
    record = load_json(path)
    assert path.stem == record["name"].replace(", ", "-").replace(" ", "-")
    final, n = record["final"], record["num_images"]
    bits = final["prompt_by_prompt"]
    assert all(len(v) == n for v in bits.values())
    share = bits["species"].count("1") / n
    assert share == pytest.approx(final["species"]["value"], abs=1e-6)
    steps = [h["step"] for h in record["history"]]
    assert steps == sorted(set(steps)) and steps[-1] == 1200
    sheet = load_tensors(path.with_suffix(".safetensors"))[0]["images"]
    size = 32 if "at-32-pixels" in path.stem else 16
    assert sheet.dtype == torch.uint8 and sheet.shape == (8, 3, size, size)


def test_every_kind_is_recorded_with_the_settings_of_today():
    "All but the ends at 32 pixels, at least twice."
    found = [load_json(p) for p in RECORDS]
    names = [r["name"].rpartition(",")[0] for r in found]
    kinds = ABLATION_LADDER | gan_ladder.FAULTS | gan_ladder.CONTROLS
    assert all(names.count(kind) >= 2 for kind in kinds)
    settings = gan_ladder.all_runs([0, 1, 2], 1200)
    assert all(r["settings"] == settings[r["name"]] for r in found)
