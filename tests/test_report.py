"""Chapter 12: prompt accuracy, and `evaluate` on models whose faults are known."""

import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from t2i_tutorial import critters
from t2i_tutorial.core import RESULTS_DIR, UserError, seeded_generator, to_uint8
from t2i_tutorial.evaluation import classifier as C
from t2i_tutorial.evaluation import metrics as D
from t2i_tutorial.evaluation import report as R

TORCH_HOME = Path(__file__).resolve().parent.parent.parent / "shared" / "torch_home"


def creature(prompt):
    return critters.Critter(**critters.parse_caption(prompt))


def honest(prompts, seed):
    return critters.render([creature(p) for p in prompts], seed=seed)


def shuffled(prompts, seed):
    return critters.render([creature(p) for p in prompts[1:] + prompts[:1]], seed=seed)


def grey(prompts, seed):
    return torch.zeros(len(prompts), 3, 32, 32)


@pytest.fixture(scope="module")
def classifier():
    return C.AttributeClassifier.from_pretrained("critters-classifier")


@pytest.fixture(scope="module")
def training():
    return critters.sample_critters(1024, seed=0).images


@pytest.fixture(scope="module")
def report(training):
    "Measure a model once for each test that needs it."
    made = {}

    def of(model, **options):
        if model not in made:
            made[model] = R.evaluate(
                model, 400, training_images=training, with_lpips=False, **options
            )
        return made[model]

    return of


@pytest.fixture
def torch_home(monkeypatch):
    if not (TORCH_HOME / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").exists():
        pytest.skip(
            "no SqueezeNet weights here; put them into a torch hub cache and run again"
        )
    monkeypatch.setenv("TORCH_HOME", str(TORCH_HOME))
    monkeypatch.setattr(D, "_LOADED", {})


def test_only_what_is_stated_is_counted(classifier):
    drawn = [
        critters.Critter("duck", "green", "red"),
        critters.Critter("cat", "blue", "pink", action="jumping"),
    ]
    found = R.prompt_accuracy(
        classifier,
        critters.render(drawn),
        ["a green duck", {"species": "snail", "action": "jumping"}],
    )
    assert set(found) == {"species", "body_colour", "action", "all"}
    assert (
        found["species"].value,
        found["body_colour"].value,
        found["action"].value,
        found["all"].value,
    ) == (0.5, 1, 1, 0.5)


def test_lpips_within_evaluate(torch_home, training):

    def stuck(prompts, seed):
        return torch.cat([honest([p], 0) for p in prompts])

    for model, least, most in ((stuck, 0, 0), (honest, 0.01, 0.5)):
        m = R.evaluate(model, 16, training_images=training, repeats=(3, 3))[
            "lpips_diversity"
        ]
        assert least <= m.value <= most and m.reference > 0


def test_without_weights_lpips_is_left_out_with_one_line(tmp_path):
    "In a process of its own, with an empty cache and an address that answers nothing."
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise OSError('no network')\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        "import torch\n"
        "from t2i_tutorial import critters\n"
        "from t2i_tutorial.evaluation import evaluate\n"
        "grey = lambda p, s: torch.zeros(len(p), 3, 32, 32)\n"
        "known = critters.sample_critters(16).images\n"
        "r = evaluate(grey, 16, training_images=known, repeats=(2, 2))\n"
        "assert 'lpips_diversity' not in r.metrics\n"
        "print(r.skipped['lpips_diversity'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"TORCH_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert (
        len(done.stdout.splitlines()) == 1
        and "the weights of SqueezeNet 1.1" in done.stdout
        and "set TORCH_HOME" in done.stdout
    )


def test_real_renders_score_at_the_floor(report):
    r = report(honest)
    for k in (*C.CLASSIFIED_ATTRIBUTES, "all", "body_pixels"):
        assert abs(r[k].value - r[k].reference) < 0.015 and r[k].value > 0.98, k
    assert (
        abs(r["mmd"].value - r["mmd"].reference) < 0.3 * r["mmd"].std
        and abs(r["frechet_distance"].value / r["frechet_distance"].reference - 1)
        < 0.15
    )
    assert (
        r["clip_score"].value == pytest.approx(r["clip_score"].reference, abs=0.01)
        and r["memorisation_rate"].ci_low < 0.02
    )
    assert r["nearest_train_distance"].value == pytest.approx(
        r["nearest_train_distance"].reference, rel=0.05
    )


def test_shuffled_captions_score_at_chance_but_look_real(report):
    r = report(shuffled)
    for k in (*C.CLASSIFIED_ATTRIBUTES, "body_pixels"):
        assert abs(r[k].value - r[k].chance) < 0.06, k
    assert (
        r["all"].value < 0.02
        and abs(r["clip_score"].value - r["clip_score"].chance) < 0.05
    )
    assert abs(r["mmd"].value - r["mmd"].reference) < 0.5 * r["mmd"].std


def test_grey_images_score_at_chance_and_look_like_nothing(report):
    r = report(grey)
    for k in (*C.CLASSIFIED_ATTRIBUTES, "body_pixels"):
        assert abs(r[k].value - r[k].chance) < 0.06, k
    assert (
        r["all"].value < 0.02
        and r["mmd"].value > 20 * abs(r["mmd"].reference)
        and r["frechet_distance"].value > 5 * r["frechet_distance"].reference
    )


def test_copies_of_training_images_are_called_memorised(report, training):
    def parrot(prompts, seed):
        return training[
            torch.randint(
                len(training), (len(prompts),), generator=seeded_generator(seed)
            )
        ]

    r = report(parrot)
    assert (
        r["memorisation_rate"].value == 1
        and r["nearest_train_distance"].value
        < 0.01 * r["nearest_train_distance"].reference
    )


def test_the_same_seed_gives_the_same_numbers(report, training):
    again = R.evaluate(honest, 400, training_images=training, with_lpips=False)
    assert again.metrics == report(honest).metrics
    assert (
        R.evaluate(
            honest, 32, seed=1, training_images=training, with_lpips=False
        ).metrics
        != R.evaluate(
            honest, 32, seed=2, training_images=training, with_lpips=False
        ).metrics
    )


def test_what_a_model_is_asked(training):
    "Full captions, and a seed for each batch that depends on seed and number only."
    calls = []

    def spy(prompts, seed):
        calls.append((prompts, seed))
        return honest(prompts, seed)

    R.evaluate(
        spy,
        20,
        batch_size=8,
        repeats=(2, 3),
        training_images=training,
        with_lpips=False,
    )
    asked = [p for prompts, _ in calls for p in prompts]
    assert [len(p) for p, _ in calls] == [8, 8, 4, 6] and len(
        {s for _, s in calls}
    ) == 4
    assert (
        all(
            set(R.requested_attributes([p])[0]) == set(C.CLASSIFIED_ATTRIBUTES)
            for p in asked
        )
        and asked[20:] == [asked[0]] * 3 + [asked[1]] * 3
    )
    assert [s for _, s in calls[:3]] == [R.batch_seed(0, i) for i in range(3)]


def test_other_sizes_and_splits(training):
    def big(prompts, seed):
        return critters.render([creature(p) for p in prompts], 48, seed)

    r = R.evaluate(
        big,
        32,
        size=48,
        split="held_out",
        training_images=to_uint8(training),
        with_lpips=False,
    )
    assert (
        r.split == "held_out"
        and r["species"].value > 0.9
        and r.skipped == {"lpips_diversity": "not asked for"}
    )


@pytest.mark.parametrize(
    "model, words",
    [
        (lambda p, s: torch.zeros(len(p), 3, 16, 16), "not a tensor of shape"),
        (lambda p, s: torch.zeros(1, 3, 32, 32), "not a tensor of shape"),
        (lambda p, s: [1, 2], "gave list"),
        (
            lambda p, s: torch.full((len(p), 3, 32, 32), float("nan")),
            "not finite in batch 0",
        ),
    ],
)
def test_bad_images_get_one_line(model, words, training):
    with pytest.raises(UserError, match=words):
        R.evaluate(model, 16, training_images=training, with_lpips=False)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(n=3), "n must be"),
        (dict(batch_size=0), "batch_size must be"),
        (dict(repeats=(2, 1)), "copies in repeats"),
        (dict(split="tset"), "did you mean 'test'"),
        (dict(size=5), "size must be"),
    ],
)
def test_bad_arguments_get_one_line(options, words):
    with pytest.raises(UserError, match=words):
        R.evaluate(honest, **{"n": 16} | options)


def test_images_off_range_are_clamped_and_16_bits_are_welcome(training):
    a = R.evaluate(
        lambda p, s: honest(p, s).bfloat16() * 1.5,
        16,
        training_images=training,
        with_lpips=False,
    )
    assert math.isfinite(a["mmd"].value)


def test_a_report_survives_the_disk(report, tmp_path):
    r = report(honest)
    assert R.EvaluationReport.load(
        r.save(tmp_path / "r.json")
    ) == r and r.to_dict() == asdict(r)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="holds no report"):
        R.EvaluationReport.load(tmp_path / "x.json")
    with pytest.raises(UserError, match="did you mean 'species'"):
        r["specis"]


def test_a_report_as_table_and_figure(report):
    r = report(honest)
    lines = r.table().splitlines()
    assert len(lines) == 2 + len(r.metrics) + len(r.skipped) and all(
        line.count("|") == 5 for line in lines
    )
    assert "skipped: not asked for" in lines[-1]
    figure = r.figure()
    assert len(figure.axes) == 2 and all(ax.get_xlabel() for ax in figure.axes)


def test_the_references_of_a_recorded_report_are_reproduced():
    "They and the chance levels do not depend on the model (but the CLIP score's)."
    recorded = R.EvaluationReport.load(
        RESULTS_DIR / "critters-32" / "evaluation-held_out.json"
    )
    again = R.evaluate(
        grey,
        recorded.num_images,
        seed=recorded.seed,
        split=recorded.split,
        with_lpips=False,
    )
    for k, metric in again.metrics.items():
        assert metric.reference == pytest.approx(
            recorded[k].reference, rel=1e-4, abs=1e-6
        ), k
        if k != "clip_score":
            assert metric.chance == pytest.approx(recorded[k].chance, abs=1e-9), k


def test_mirrored_copies_within_evaluate(training):
    def mirrored(prompts, seed):
        return training[: len(prompts)].flip(-1)

    options = {"training_images": training[:256], "with_lpips": False}
    exact = R.evaluate(mirrored, 32, **options)
    tolerant = R.evaluate(mirrored, 32, mirror=True, max_shift=1, **options)
    assert exact["memorisation_rate"].value < 0.2
    assert tolerant["memorisation_rate"].value > 0.9


def test_diversity_has_an_interval(report):
    m = report(honest)["pixel_diversity"]
    assert m.ci_low < m.value < m.ci_high and m.ci_low < m.reference < m.ci_high


def test_bytes_are_converted_and_other_ranges_are_said(training):
    "Small rows: images from 0 to 255 were clamped to white, and every share was 0."
    prompts = ["a small blue and red dragon with green eyes, standing, facing left"] * 4

    def draw(change):
        return R.generate_images(lambda p, s: change(honest(p, s)), prompts, 32, 0, 2)

    plain = draw(lambda x: x)
    assert (draw(to_uint8) - plain).abs().max() < 1 / 127
    with pytest.raises(UserError, match="to 255, not from -1 to 1; give bytes"):
        draw(lambda x: to_uint8(x).float())
    with pytest.warns(UserWarning, match="if they are meant from 0 to 1, rescale"):
        draw(lambda x: (x + 1) / 2)
    with pytest.raises(UserError, match="training_images came with values"):
        R.evaluate(
            honest, 16, training_images=127.5 * training + 127.5, with_lpips=False
        )


def test_a_report_says_how_many_training_images_were_searched(report):
    of = report(honest)
    assert of.num_training_images == 1024
    assert "memorisation rate, 1,024 searched" in of.table()
    recorded = R.EvaluationReport.load(
        RESULTS_DIR / "critters-32" / "evaluation-test.json"
    )
    assert recorded.num_training_images is None and "searched" not in recorded.table()
