"""Chapter 10: the attribute classifier, its training, its record, and intervals."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur as torchvision_blur

from t2i_tutorial import critters
from t2i_tutorial.core import (
    BUNDLED_DIR,
    RESULTS_DIR,
    UserError,
    load_json,
    seeded_generator,
    to_uint8,
)
from t2i_tutorial.evaluation import classifier as C
from t2i_tutorial.evaluation.report import prompt_accuracy

RECORD = BUNDLED_DIR / "critters-classifier"
TARGETS = {
    "species": 0.99,
    "body_colour": 0.99,
    "second_colour": 0.95,
    "eye_colour": 0.95,
    "action": 0.99,
    "size": 0.99,
    "facing": 0.99,
}
SPLITS = ("test", *critters.HELD_OUT_KEYS)


@pytest.fixture(scope="module")
def classifier():
    return C.AttributeClassifier.from_pretrained("critters-classifier")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("size", [32, 64])
def test_the_classifier_reads_fresh_renders(classifier, split, size):
    "With 300 images: no target lies above the interval."
    drawn = critters.sample_critters(300, size, seed=4242, split=split)
    found = prompt_accuracy(classifier, drawn.images, drawn.critters)
    for k, t in TARGETS.items():
        assert found[k].ci_high >= t and found[k].value >= t - 0.02, (k, found[k])


def test_the_record_meets_the_targets():
    run = load_json(RECORD / "run.json")
    assert (
        run["command"] == "t2i train classifier --preset critters-classifier"
        and run["seconds"] > 0
        and run["hardware"]["cores"]
    )
    assert (
        run["history"][-1]["step"]
        == run["training"]["max_steps"] + run["training"]["finetune_steps"] - 1
    )
    rows = [e for e in run["robustness"] if e["images"] == "as drawn"]
    cases = [(e["split"], e["pixels"]) for e in rows]
    assert cases == [(s, z) for s in SPLITS for z in (32, 64)]
    for e in rows:
        assert e["num_images"] >= 2000
        for k, t in TARGETS.items():
            assert (
                e[k]["share"] >= t
                and e[k]["ci_low"] <= e[k]["share"] <= e[k]["ci_high"]
            ), (e["split"], k)


def test_the_recorded_files_are_small():
    assert sum(p.stat().st_size for p in RECORD.iterdir()) < 2 * 2**20


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: C.gaussian_blur(x, 1.0),
        lambda x: x + 0.2 * torch.randn(x.shape, generator=seeded_generator(0)),
        lambda x: x.roll((2, -2), (2, 3)),
    ],
    ids=["blur", "grain", "shift"],
)
def test_the_classifier_is_not_brittle(classifier, spoil):
    drawn = critters.sample_critters(400, seed=4243, split="test")
    found = prompt_accuracy(classifier, spoil(drawn.images), drawn.critters)
    assert (
        min(found[k].value for k in ("species", "body_colour", "action")) > 0.97
        and found["eye_colour"].value > 0.9
    )


@pytest.mark.parametrize("size", [16, 32, 50, 128])
def test_any_size_is_read(classifier, size):
    logits = classifier(torch.zeros(2, 3, size, size))
    assert {k: v.shape for k, v in logits.items()} == {
        k: (2, len(critters.ATTRIBUTES[k])) for k in C.CLASSIFIED_ATTRIBUTES
    }


def test_features_have_mean_0_and_variance_1(classifier):
    f = classifier.features(critters.sample_critters(8, seed=1).images)
    assert (
        f.shape == (8, classifier.config.dim)
        and f.mean(1).abs().max() < 1e-5
        and (f.var(1, correction=0) - 1).abs().max() < 1e-2
    )


def test_sleepers_have_closed_eyes(classifier):
    drawn = [
        c
        for c in critters.sample_critters(300, seed=5, split="test").critters
        if c.action == "sleeping"
    ]
    read = C.predict_attributes(classifier, critters.render(drawn))["eye_colour"]
    assert (
        read == critters.ATTRIBUTES["eye_colour"].index("closed")
    ).float().mean() > 0.97


def test_save_and_load_give_the_same(classifier, tmp_path):
    again = C.AttributeClassifier.from_pretrained(
        classifier.save_pretrained(tmp_path / "j")
    )
    x = critters.sample_critters(4, seed=2).images
    assert (
        torch.equal(again.features(x), classifier.features(x))
        and again.config == classifier.config
    )


def test_bad_classifiers_get_one_line(classifier, tmp_path):
    with pytest.raises(UserError, match="did you mean 'critters-classifier'"):
        C.AttributeClassifier.from_pretrained("critter-classifier")
    with pytest.raises(UserError, match="cannot read"):
        C.AttributeClassifier.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds no classifier model"):
        C.AttributeClassifier.from_pretrained(RECORD.parent / "critters-clip")
    folder = classifier.save_pretrained(tmp_path / "j")
    (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:999]
    )
    with pytest.raises(UserError, match="no whole safetensors"):
        C.AttributeClassifier.from_pretrained(folder)
    C.AttributeClassifier(C.ClassifierConfig(channels=8, dim=16)).save_pretrained(
        tmp_path / "k"
    )
    (folder / "model.safetensors").write_bytes(
        (tmp_path / "k" / "model.safetensors").read_bytes()
    )
    with pytest.raises(UserError, match="do not fit its config.json"):
        C.AttributeClassifier.from_pretrained(folder)


def test_training_repeats_itself_and_learns(tmp_path, monkeypatch):
    # it renders thousands of images, and has tests of its own
    monkeypatch.setattr(C, "evaluate_classifier", lambda classifier: [])
    small = dict(num_images=512, max_steps=12, batch_size=32)
    (a, history), (b, _) = (
        C.train_classifier("tiny", tmp_path / "j", **small),
        C.train_classifier("tiny", **small),
    )
    assert (
        all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
        and history[-1]["loss"] < history[0]["loss"]
    )
    run = load_json(tmp_path / "j" / "run.json")
    assert (
        run["command"] == "t2i train classifier --preset tiny"
        and run["training"]["max_steps"] == 12
        and run["robustness"] == []
    )
    assert C.AttributeClassifier.from_pretrained(tmp_path / "j").config == a.config


def test_bad_trainings_get_one_line():
    for changes, words in (
        (dict(max_stepz=3), "did you mean 'max_steps'"),
        (dict(batch_size=0), "batch_size must be from 1"),
        (dict(batch_size=10**6), "not 1000000"),
        (dict(lr=-1.0), "above 0"),
        (dict(max_steps=0), "at least 1"),
    ):
        with pytest.raises(UserError, match=words):
            C.train_classifier("tiny", **changes)
    with pytest.raises(UserError, match="unknown preset"):
        C.train_classifier("tinny")


def test_the_classifier_never_sees_test_renders():
    "Its images come from `train` and held-out splits, with seeds of their own."
    pool = C._classifier_dataset(
        C.make_classifier_config(
            "tiny", num_images=64, num_downscaled_images=32, num_held_out_images=32
        )
    )
    fresh = to_uint8(
        torch.cat(
            [critters.sample_critters(64, seed=77, split=s).images for s in SPLITS]
        )
    )
    assert len(pool) == 96 + 32 * len(critters.HELD_OUT_KEYS)
    assert not (pool.pixels[:, None] == fresh[None]).flatten(2).all(2).any()
    parts = [pool.critters[:96]]
    parts += [pool.critters[i : i + 32] for i in range(96, len(pool), 32)]
    for split, keys in critters.HELD_OUT_KEYS.items():
        for where, part in zip(SPLITS, parts, strict=True):
            new = [
                tuple(getattr(c, k) for k in keys) in critters.HELD_OUT[split]
                for c in part
            ]
            assert all(new) if where == split else not any(new), (split, where)


def test_the_first_stage_is_without_held_out_combinations():
    first, second = C._training_stages(C.CLASSIFIER_PRESETS["critters-classifier"])
    assert (
        first.num_held_out_images == 0 < second.num_held_out_images
        and second.num_images == 4 * second.num_held_out_images
        and second.max_steps == 300
        and second.lr < first.lr
    )
    _, history = C.train_classifier(
        "tiny",
        num_images=64,
        num_held_out_images=64,
        max_steps=3,
        finetune_steps=2,
        batch_size=16,
    )
    assert [h["step"] for h in history] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "k, n, low, high",
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_gives_the_published_intervals(k, n, low, high):
    assert C.wilson_interval(k, n) == pytest.approx((low, high), abs=5e-4)


def test_wilson_solves_its_equation():
    for k, n in ((1, 7), (40, 50), (499, 500)):
        for p in C.wilson_interval(k, n):
            assert abs(k / n - p) == pytest.approx(
                1.96 * math.sqrt(p * (1 - p) / n), rel=1e-6
            )


@pytest.mark.parametrize("k, n", [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses(k, n):
    with pytest.raises(UserError, match="is no proportion"):
        C.wilson_interval(k, n)


def test_blur_keeps_the_mean_and_refuses_nonsense():
    x = torch.rand(2, 3, 24, 24)
    inner = torch.nn.functional.pad(x, (8,) * 4)
    assert torch.allclose(C.gaussian_blur(inner, 1.3).sum(), inner.sum(), rtol=1e-5)
    with pytest.raises(UserError, match="sigma must be above 0"):
        C.gaussian_blur(x, 0.0)


def test_wilson_equals_the_formula_and_the_record():
    "SciPy's interval, at 1.96 standard errors, to the last digits that were recorded."
    for k, n in ((0, 10), (1, 7), (40, 50), (499, 500), (20, 20)):
        p, shrink = k / n, 1 + 1.96**2 / n
        half = 1.96 * math.sqrt(p * (1 - p) / n + 1.96**2 / (4 * n**2))
        middle = p + 1.96**2 / (2 * n)
        formula = ((middle - half) / shrink, (middle + half) / shrink)
        assert C.wilson_interval(k, n) == pytest.approx(formula, abs=1e-9)
    for e in load_json(RECORD / "run.json")["robustness"]:
        for k in (*TARGETS, "all"):
            found = C.wilson_interval(round(e[k]["share"] * 4096), 4096)
            assert found == pytest.approx((e[k]["ci_low"], e[k]["ci_high"]), abs=1e-9)


@pytest.mark.parametrize("case", [0, 3], ids=["as drawn", "noise"])
def test_the_recorded_evaluation_is_reproduced(classifier, case):
    cases = C.ROBUSTNESS_CASES[case : case + 1]
    (found,) = C.evaluate_classifier(classifier, splits=("test",), cases=cases)
    recorded = load_json(RECORD / "run.json")["robustness"][case]
    assert list(found) == list(recorded)
    for k, value in found.items():
        if isinstance(value, dict):
            assert value == pytest.approx(recorded[k], abs=1e-3), k
        else:
            assert value == recorded[k], k


def test_the_first_stage_alone_misclassifies_held_out_combinations():
    "What the second stage is for, as recorded."
    path = RESULTS_DIR / "critters-classifier" / "without-held-out.json"
    before = {e["split"]: e["all"] for e in load_json(path)["robustness"]}
    both = load_json(RECORD / "run.json")["robustness"]
    after = {
        e["split"]: e["all"]
        for e in both
        if (e["images"], e["pixels"]) == ("as drawn", 32)
    }
    assert set(before) == set(after) == set(SPLITS)
    assert before["test"]["share"] > 0.98
    for split in ("held_out", "held_out_colours", "held_out_actions"):
        assert before[split]["ci_high"] < after[split]["ci_low"], split
    assert before["held_out_triples"]["share"] > 0.98  # each two were seen together


def test_augmentation_is_recorded_for_every_attribute():
    recorded = load_json(RESULTS_DIR / "critters-classifier" / "augmentation.json")
    for found in recorded["trained_on"].values():
        assert set(found) == {*C.CLASSIFIED_ATTRIBUTES, "all"}
        for k, by_kind in found.items():
            for kind, shares in by_kind.items():
                assert len(shares) == len(recorded[kind]), (k, kind)
                assert all(0 <= share <= 1 for share in shares)


def test_blur_equals_torchvision_inside_the_border():
    x = critters.sample_critters(4, seed=1).images
    for sigma, r in ((0.7, 3), (1.0, 3), (2.0, 6)):
        theirs = torchvision_blur(x, 2 * r + 1, sigma)
        inside = (..., slice(r, -r), slice(r, -r))
        ours = C.gaussian_blur(x, sigma)
        assert torch.allclose(ours[inside], theirs[inside], atol=1e-6)


def test_wrong_size_and_wrong_facing_are_found(classifier):
    "Each is a mistake by itself, and nothing else is."
    drawn = critters.sample_critters(100, seed=6, split="test").critters
    other = {"small": "large", "large": "small", "left": "right", "right": "left"}
    for key in ("size", "facing"):
        wrong = [replace(c, **{key: other[getattr(c, key)]}) for c in drawn]
        found = prompt_accuracy(classifier, critters.render(wrong), drawn)
        for k in C.CLASSIFIED_ATTRIBUTES:
            assert found[k].value < 0.03 if k == key else found[k].value > 0.95, k
        assert found["all"].value < 0.03


def test_labels_are_compared_attribute_by_attribute(classifier):
    "A wrong label counts, a missing one does not, and nonsense gets one line."
    drawn = critters.sample_critters(40, seed=8, split="test")
    labels = [asdict(c) for c in drawn.critters]
    labels[0]["species"] = "cat" if labels[0]["species"] != "cat" else "dog"
    for label in labels[:7]:
        label["eye_colour"] = None
    labels[7] = {"species": labels[7]["species"]}
    agrees = C.compare_with_labels(classifier, drawn.images, labels)
    assert list(agrees) == list(C.CLASSIFIED_ATTRIBUTES)
    assert agrees["species"][0] is False and sum(agrees["species"]) == 39
    assert (len(agrees["eye_colour"]), len(agrees["facing"])) == (32, 39)
    for bad, words in (
        (labels[:3], "40 images but 3 labels"),
        ([{"specis": "cat"}] * 40, "did you mean 'species'"),
        ([{"species": "catt"}] * 40, "did you mean 'cat'"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            C.compare_with_labels(classifier, drawn.images, bad)
        assert "\n" not in str(caught.value)
