"""Chapter 26: classes that are left out, mixtures by level, and the record's files."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from t2i_tutorial import critters
from t2i_tutorial.core import BUNDLED_DIR, RESULTS_DIR, load_json
from t2i_tutorial.evaluation.classifier import AttributeClassifier
from t2i_tutorial.evaluation.report import EvaluationReport
from t2i_tutorial.experiments import SAMPLE_PROMPTS
from t2i_tutorial.gan.diagnostics import style_variance_shares, styles
from t2i_tutorial.gan.failures import class_coverage, synthesise_mixed
from t2i_tutorial.gan.gigagan import GigaGAN
from t2i_tutorial.text import full_caption

PRETRAINED = BUNDLED_DIR / "critters-32-gigagan"
RESULTS = RESULTS_DIR / "critters-32-gigagan"
SEEDS_OF_26B = ("", "-seed-1", "-seed-2")


@pytest.fixture(scope="module")
def model():
    return GigaGAN.from_pretrained("critters-32-gigagan", "cpu")


@pytest.fixture(scope="module")
def captions():
    asked = critters.sample_critters(16, 32, seed=3, split="test")
    return [full_caption(c) for c in asked.critters]


@pytest.fixture(scope="module")
def inputs(model, captions):
    "Styles of two latents, and the text."
    return styles(model.generator, model.encode_prompts(captions[:4]), 2)


def test_class_coverage_counts_what_is_missing():
    classifier = AttributeClassifier.from_pretrained()
    group = critters.sample_critters(128, 32, seed=2, split="test")
    whole = class_coverage(classifier, group.images, group.critters)
    species = [c for c in whole["classes"] if c["attribute"] == "species"]
    assert whole["share"] > 0.95 and sum(c["asked"] for c in species) == 128
    same = group.images[:1].expand(128, -1, -1, -1)
    assert class_coverage(classifier, same, group.critters)["share"] < 0.15


def test_classes_that_nobody_asked_for_are_not_missed():
    classifier = AttributeClassifier.from_pretrained()
    group = critters.sample_critters(16, 32, seed=2, split="test")
    dragons = [replace(c, species="dragon") for c in group.critters]
    classes = class_coverage(classifier, group.images, dragons)["classes"]
    species = [c for c in classes if c["attribute"] == "species"]
    assert [(c["value"], c["asked"]) for c in species] == [("dragon", 16)]


def test_a_mixture_of_one_input_is_the_plain_image(model, inputs):
    G, (w, text) = model.generator, inputs
    levels = len(G.blocks)
    with torch.no_grad():
        plain = G.synthesise(w[0], text)[-1].clamp(-1, 1)
    same = synthesise_mixed(G, [w[0]] * levels, [text] * levels)
    assert torch.allclose(same, plain, atol=1e-5)
    assert not same.requires_grad


def test_each_level_takes_its_own_style_and_words(model, inputs):
    "Every level's style moves the image; words move it where there is cross-attention."
    G, (w, text) = model.generator, inputs
    levels, other = len(G.blocks), text[[1, 2, 3, 0]]
    same = synthesise_mixed(G, [w[0]] * levels, [text] * levels)
    for k in range(levels):
        ws, texts = [w[0]] * levels, [text] * levels
        ws[k], texts[k] = w[1], other
        assert (synthesise_mixed(G, ws, [text] * levels) - same).abs().max() > 1e-3
        moved = (synthesise_mixed(G, [w[0]] * levels, texts) - same).abs().max()
        assert (moved > 1e-3) == G.config.cross_attention[k], k


def test_the_style_of_the_recorded_model_depends_on_both_its_inputs(model, captions):
    "The former recorded model's did not: .0016 with z, .0026 with the caption."
    w, _ = styles(model.generator, model.encode_prompts(captions))
    assert min(style_variance_shares(w).values()) > 0.02
    same, _ = styles(model.generator, model.encode_prompts(captions[:1] * 4))
    assert style_variance_shares(same)["caption"] < 1e-6


def test_the_record_is_whole():
    "Weights, run, report and samples: what the chapter reads, and nothing else."
    assert (PRETRAINED / "model.safetensors").stat().st_size <= 12e6
    run = json.loads((PRETRAINED / "run.json").read_text())
    command = run["command"].removesuffix(" train.max_checkpoints=60")  # for 26b
    assert command == "t2i train gigagan --preset cpu-32"
    assert run["seconds"] > 60 and run["hardware"]["cores"] and run["git_commit"]
    settings = run["preset"]["model_config"]
    steps = run["preset"]["train_config"]["max_steps"]
    assert run["history"][-1]["step"] == steps > settings["pretrain_steps"]
    watched = [h for h in run["history"] if "style_share_z" in h]
    assert len(watched) > 10 and "matching_facing" in watched[-1]
    report = EvaluationReport.load(RESULTS / "evaluation-test.json")
    assert report.settings["num_images"] > 2000
    assert report.metrics.keys() > {"test/full", "test/natural", "variety"}
    files = {p.name for p in RESULTS.iterdir()}
    ends_of_26b = (".png", *(f"{end}.json" for end in SEEDS_OF_26B))
    of_26b = {f"reconstruction-{k}{e}" for k in ("kept", "let-go") for e in ends_of_26b}
    of_40 = {"evaluation-test.json", "samples-over-training.png", "snapshots.json"}
    assert files == of_40 | of_26b


@pytest.mark.parametrize("end", SEEDS_OF_26B)
def test_the_run_that_let_its_reconstruction_go_began_as_the_recorded_one(end):
    "Chapter 26b: the same weights at the first checkpoint, and then others."
    kept, gone = (
        load_json(RESULTS / f"reconstruction-{k}{end}.json") for k in ("kept", "let-go")
    )
    assert kept["weights"] == gone["weights"] == "raw"
    kept, gone = kept["runs"], gone["runs"]
    run = load_json(PRETRAINED / "run.json")["preset"]["model_config"]
    first = str(run["pretrain_steps"] + run["discriminator_only_steps"])
    assert first == min(kept, key=int) and kept.keys() == gone.keys()
    for step, measured in kept.items():
        equal = all(
            measured[k]["value"] == gone[step][k]["value"] for k in ("mmd", "all")
        )
        assert equal == (step == first)


def test_the_samples_are_of_this_run():
    sheet = Image.open(RESULTS / "samples-over-training.png")
    moments = json.loads(sheet.text["steps"])
    run = json.loads((PRETRAINED / "run.json").read_text())
    assert moments == sorted(moments) and moments[-1] == run["history"][-1]["step"]
    columns, rows = len(SAMPLE_PROMPTS), len(moments)
    assert sheet.size == (columns * 34 + 2, rows * 34 + 2)
