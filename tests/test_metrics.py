"""Chapter 10: the judge, the distances, and `evaluate` on models whose faults are known."""

import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from t2i_tutorial import critters
from t2i_tutorial.core import UserError, load_json, seeded_generator, to_uint8
from t2i_tutorial.evaluation import classifier as C
from t2i_tutorial.evaluation import metrics as D
from t2i_tutorial.evaluation import report as R

RECORD = Path(R.__file__).parent / "pretrained" / "critters-classifier"
TARGETS = {
    "species": 0.99,
    "body_colour": 0.99,
    "second_colour": 0.95,
    "eye_colour": 0.95,
    "action": 0.99,
}
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
def judge():
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


# ---- the judge


@pytest.mark.parametrize(
    "split, size", [("test", 32), ("test", 64), ("held_out", 32), ("held_out", 64)]
)
def test_the_judge_reads_fresh_renders(judge, split, size):
    "With 600 pictures: no target lies above the interval."
    drawn = critters.sample_critters(600, size, seed=4242, split=split)
    found = R.prompt_accuracy(judge, drawn.images, drawn.critters)
    for k, t in TARGETS.items():
        assert found[k].ci_high >= t and found[k].value >= t - 0.01, (k, found[k])


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
    rows = [e for e in run["robustness"] if e["num_images"] == "as drawn"]
    assert {(e["split"], e["size"]) for e in rows} == {
        (s, z) for s in ("test", "held_out") for z in (32, 64)
    }
    for e in rows:
        assert e["n"] >= 2000
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
def test_the_judge_is_not_brittle(judge, spoil):
    drawn = critters.sample_critters(400, seed=4243, split="test")
    found = R.prompt_accuracy(judge, spoil(drawn.images), drawn.critters)
    assert (
        min(found[k].value for k in ("species", "body_colour", "action")) > 0.97
        and found["eye_colour"].value > 0.9
    )


@pytest.mark.parametrize("size", [16, 32, 50, 128])
def test_any_size_is_read(judge, size):
    logits = judge(torch.zeros(2, 3, size, size))
    assert {k: v.shape for k, v in logits.items()} == {
        k: (2, len(critters.ATTRIBUTES[k])) for k in C.CLASSIFIED_ATTRIBUTES
    }


def test_features_have_mean_0_and_variance_1(judge):
    f = judge.features(critters.sample_critters(8, seed=1).images)
    assert (
        f.shape == (8, judge.config.dim)
        and f.mean(1).abs().max() < 1e-5
        and (f.var(1, correction=0) - 1).abs().max() < 1e-2
    )


def test_sleepers_have_closed_eyes(judge):
    drawn = [
        c
        for c in critters.sample_critters(300, seed=5, split="test").critters
        if c.action == "sleeping"
    ]
    read = C.predict_attributes(judge, critters.render(drawn))["eye_colour"]
    assert (
        read == critters.ATTRIBUTES["eye_colour"].index("closed")
    ).float().mean() > 0.97


def test_save_and_load_give_the_same(judge, tmp_path):
    again = C.AttributeClassifier.from_pretrained(judge.save_pretrained(tmp_path / "j"))
    x = critters.sample_critters(4, seed=2).images
    assert (
        torch.equal(again.features(x), judge.features(x))
        and again.config == judge.config
    )


def test_bad_judges_get_one_line(judge, tmp_path):
    with pytest.raises(UserError, match="did you mean 'critters-classifier'"):
        C.AttributeClassifier.from_pretrained("critter-judge")
    with pytest.raises(UserError, match="cannot read"):
        C.AttributeClassifier.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds no classifier model"):
        C.AttributeClassifier.from_pretrained(RECORD.parent / "critters-clip")
    folder = judge.save_pretrained(tmp_path / "j")
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
    monkeypatch.setattr(
        M, "robustness", lambda judge: []
    )  # the exam draws thousands of pictures and has tests of its own
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
        (dict(stepz=3), "did you mean 'max_steps'"),
        (dict(batch_size=0), "batch_size must be from 1"),
        (dict(batch_size=10**6), "not 1000000"),
        (dict(lr=-1.0), "above 0"),
        (dict(max_steps=0), "at least 1"),
    ):
        with pytest.raises(UserError, match=words):
            C.train_classifier("tiny", **changes)
    with pytest.raises(UserError, match="unknown preset"):
        C.train_classifier("tinny")


def test_the_judge_never_sees_test_renders():
    "Its pool is drawn from the streams of `train` and `held_out`, with other seeds than exam and evaluation."
    pool = C._classifier_dataset(
        C.make_classifier_config(
            "tiny", num_images=64, num_downscaled_images=32, num_held_out_images=32
        )
    )
    fresh = to_uint8(
        torch.cat(
            [
                critters.sample_critters(64, seed=77, split=s).images
                for s in ("test", "held_out")
            ]
        )
    )
    assert (
        len(pool) == 128
        and not (pool.pixels[:, None] == fresh[None]).flatten(2).all(2).any()
    )
    held = [
        (c.species, c.body_colour) in critters.HELD_OUT_PAIRS for c in pool.critters
    ]
    assert not any(held[:96]) and all(held[96:])


def test_the_first_stage_is_without_held_out_combinations():
    first, second = C._training_stages(C.CLASSIFIER_PRESETS["critters-classifier"])
    assert (
        first.num_held_out_images == 0 < second.num_held_out_images == second.num_images
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


# ---- shares


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
    with pytest.raises(UserError, match="make no share"):
        C.wilson_interval(k, n)


def test_only_what_is_stated_is_counted(judge):
    drawn = [
        critters.Critter("duck", "green", "red"),
        critters.Critter("cat", "blue", "pink", action="jumping"),
    ]
    found = R.prompt_accuracy(
        judge,
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


def test_chance_is_what_shuffling_gives():
    values = [0] * 30 + [1] * 50 + [2] * 20
    g, hits = seeded_generator(0), 0
    for _ in range(400):
        p = torch.randperm(100, generator=g).tolist()
        hits += (
            sum(values[i] == values[j] for i, j in zip(p, p[1:] + p[:1])) / 100
        )  # never a picture with itself
    assert R.chance_accuracy(values) == pytest.approx(hits / 400, abs=0.01)


# ---- distances


def test_distances_equal_the_formulas(judge):
    a, b = (
        D.extract_features(
            judge, critters.sample_critters(160, seed=s, split="test").images
        )
        for s in (1, 2)
    )
    k = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
    off = lambda m: (m.sum() - m.diag().sum()) / (len(m) * (len(m) - 1))
    assert D.polynomial_mmd(a, b, subset=160, subsets=1)[0] == pytest.approx(
        (off(k(a, a)) + off(k(b, b)) - 2 * k(a, b).mean()).item(), abs=1e-9
    )
    covs = [torch.cov(x.T) for x in (a, b)]
    root = torch.linalg.eigvals(covs[0] @ covs[1]).sqrt().real.sum()
    by_hand = (
        (a.mean(0) - b.mean(0)).square().sum()
        + covs[0].trace()
        + covs[1].trace()
        - 2 * root
    )
    assert D.frechet_distance(a, b) == pytest.approx(by_hand.item(), abs=1e-6)


def test_frechet_of_known_gaussians():
    "Two Gaussians whose distance has a closed form: means apart by 2 in each of 4 axes, deviations 1 and 3."
    g = seeded_generator(0, "gauss")
    a, b = (
        torch.randn(40_000, 4, generator=g, dtype=torch.float64),
        2 + 3 * torch.randn(40_000, 4, generator=g, dtype=torch.float64),
    )
    assert D.frechet_distance(a, b) == pytest.approx(
        4 * 2**2 + 4 * (3 - 1) ** 2, rel=0.03
    )


def test_kernel_distance_is_unbiased_and_frechet_is_not():
    g = seeded_generator(0, "bias")
    draw = lambda n: torch.randn(n, 16, generator=g, dtype=torch.float64)
    kernel = [
        D.polynomial_mmd(draw(32), draw(32), subset=32, subsets=1)[0] for _ in range(60)
    ]
    mean, error = sum(kernel) / 60, torch.tensor(kernel).std().item() / 60**0.5
    assert abs(mean) < 3.5 * error and min(kernel) < 0
    assert (
        D.frechet_distance(draw(32), draw(32))
        > 5 * D.frechet_distance(draw(1024), draw(1024))
        > 0
    )


def test_a_missing_variety_moves_away(judge):
    "The more pictures are cats, the farther, by both distances; none is the floor."
    drawn, others = (
        critters.sample_critters(256, seed=1, split="test"),
        critters.sample_critters(256, seed=2, split="test").images,
    )
    cats = critters.render(
        [
            critters.Critter(
                "cat", c.body_colour, c.second_colour, c.eye_colour, c.action
            )
            for c in drawn.critters
        ]
    )
    rows = [
        D.distribution_distances(
            judge, torch.cat([cats[:n], drawn.images[n:]]), drawn.images, others
        )
        for n in (0, 64, 192)
    ]
    for k in ("kid", "frechet"):
        assert (
            rows[0][k].reference
            == rows[0][k].value
            < rows[1][k].value
            < rows[2][k].value
        )


def test_soft_and_grainy_pictures_differ_in_detail():
    "What the judge's features are blind to, since it was trained to look through it."
    real = critters.sample_critters(200, seed=1, split="test").images
    same, soft, grainy = (
        D.sharpness(x, real)["sharpness"]
        for x in (
            real,
            C.gaussian_blur(real, 0.7),
            real + 0.1 * torch.randn(real.shape, generator=seeded_generator(0)),
        )
    )
    assert (
        same.ci_low < same.reference < same.ci_high
        and soft.ci_high < 0.8 * soft.reference
        and grainy.ci_low > 1.05 * grainy.reference
    )


def test_the_global_random_state_is_left_alone(judge):
    a = torch.randn(40, 8, dtype=torch.float64)
    before = torch.get_rng_state()
    assert D.polynomial_mmd(a, a.flip(0), seed=3) == D.polynomial_mmd(
        a, a.flip(0), seed=3
    )
    assert torch.equal(before, torch.get_rng_state())


def test_blur_keeps_the_mean_and_refuses_nonsense():
    x = torch.rand(2, 3, 24, 24)
    inner = torch.nn.functional.pad(x, (8,) * 4)
    assert torch.allclose(C.gaussian_blur(inner, 1.3).sum(), inner.sum(), rtol=1e-5)
    with pytest.raises(UserError, match="sigma must be above 0"):
        C.gaussian_blur(x, 0.0)


# ---- diversity and memorisation


def test_diversity_of_equal_pictures_is_0():
    x = critters.sample_critters(6, seed=1).images
    same, different = x[:1].repeat(3, 1, 1, 1)[None], x[:3][None]
    assert (
        D.intra_prompt_diversity(same, D.pixel_rmse).item()
        == 0
        < D.intra_prompt_diversity(different, D.pixel_rmse).item()
    )


def test_diversity_is_the_mean_over_all_pairs():
    x = critters.sample_critters(8, seed=2).images.reshape(2, 4, 3, 32, 32)
    slow = [
        sum(
            D.pixel_rmse(p[i : i + 1], p[j : j + 1]).item()
            for i in range(4)
            for j in range(i)
        )
        / 6
        for p in x
    ]
    assert D.intra_prompt_diversity(x, D.pixel_rmse).tolist() == pytest.approx(
        slow, rel=1e-5
    )


def test_nearest_equals_a_slow_search(training):
    x = critters.sample_critters(5, seed=3, split="test").images
    distance, place = D.nearest_neighbours(x, training)
    slow = torch.stack([D.pixel_rmse(p.expand_as(training), training) for p in x])
    assert torch.equal(place, slow.argmin(1)) and torch.allclose(
        distance, slow.min(1).values, atol=1e-4
    )


def test_copies_are_memorised_and_fresh_pictures_are_not(training):
    fresh, others = (
        critters.sample_critters(400, seed=s, split="test").images for s in (8, 9)
    )
    assert (
        D.memorisation_rate(training[:400], fresh, others, training)["memorised"].value
        == 1
    )
    assert (
        D.memorisation_rate(fresh, fresh, others, training)["memorised"].ci_low < 0.02
    )


# ---- LPIPS


@pytest.fixture
def torch_home(monkeypatch):
    if not (TORCH_HOME / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").exists():
        pytest.skip(
            "no SqueezeNet weights here; put them into a torch hub cache and run again"
        )
    monkeypatch.setenv("TORCH_HOME", str(TORCH_HOME))
    monkeypatch.setattr(M, "_LOADED", {})


def test_real_lpips_orders_pictures_as_expected(torch_home):
    "Identical pictures 0; a blur nearer than another creature; and the record says the same."
    found = D.lpips_sanity_check(32)
    assert (
        found["itself"]
        == 0
        < found["drawn again"]
        < found["blurred by 1 pixel"]
        < found["another creature"]
    )
    assert D.lpips_sanity_check(64) == pytest.approx(
        load_json(RECORD / "lpips.json")["distances"]["64 pixels"], abs=1e-3
    )


def test_lpips_within_evaluate(torch_home, training):
    stuck = lambda prompts, seed: torch.cat([honest([p], 0) for p in prompts])
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
        "import torch; from t2i_tutorial import critters, metrics as M\n"
        "r = R.evaluate(lambda p, s: torch.zeros(len(p), 3, 32, 32), 16, training=critters.sample(16).images, repeats=(2, 2))\n"
        "assert 'lpips_diversity' not in r.measures\n"
        "print(r.left_out['lpips_diversity'])"
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


def test_unknown_net():
    x = torch.zeros(1, 3, 32, 32)
    with pytest.raises(UserError, match="did you mean 'squeeze'"):
        D.lpips_distance(x, x, net="squeez")


# ---- evaluate: known answers


def test_real_renders_score_at_the_floor(report):
    r = report(honest)
    for k in (*C.CLASSIFIED_ATTRIBUTES, "all", "body_pixels"):
        assert abs(r[k].value - r[k].real) < 0.015 and r[k].value > 0.98, k
    assert (
        abs(r["kid"].value - r["kid"].real) < 0.3 * r["kid"].spread
        and abs(r["frechet"].value / r["frechet"].real - 1) < 0.15
    )
    assert (
        r["clip"].value == pytest.approx(r["clip"].real, abs=0.01)
        and r["memorised"].low < 0.02
    )
    assert r["nearest"].value == pytest.approx(r["nearest"].real, rel=0.05)


def test_shuffled_captions_score_at_chance_but_look_real(report):
    r = report(shuffled)
    for k in (*C.CLASSIFIED_ATTRIBUTES, "body_pixels"):
        assert abs(r[k].value - r[k].chance) < 0.06, k
    assert r["all"].value < 0.02 and abs(r["clip"].value - r["clip"].chance) < 0.05
    assert abs(r["kid"].value - r["kid"].real) < 0.5 * r["kid"].spread


def test_grey_images_score_at_chance_and_look_like_nothing(report):
    r = report(grey)
    for k in (*C.CLASSIFIED_ATTRIBUTES, "body_pixels"):
        assert abs(r[k].value - r[k].chance) < 0.06, k
    assert (
        r["all"].value < 0.02
        and r["kid"].value > 20 * abs(r["kid"].real)
        and r["frechet"].value > 5 * r["frechet"].real
    )


def test_copies_of_training_pictures_are_called_memorised(report, training):
    def parrot(prompts, seed):
        return training[
            torch.randint(
                len(training), (len(prompts),), generator=seeded_generator(seed)
            )
        ]

    r = report(parrot)
    assert r["memorised"].value == 1 and r["nearest"].value < 0.01 * r["nearest"].real


def test_the_same_seed_gives_the_same_numbers(report, training):
    again = R.evaluate(honest, 400, training_images=training, with_lpips=False)
    assert again.metrics == report(honest).measures
    assert (
        R.evaluate(
            honest, 32, seed=1, training_images=training, with_lpips=False
        ).metrics
        != R.evaluate(
            honest, 32, seed=2, training_images=training, with_lpips=False
        ).metrics
    )


def test_what_a_model_is_asked(training):
    "Full captions, each batch with a seed that depends on the seed and the batch's number only."
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
    assert math.isfinite(a["kid"].value)


# ---- the report


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
    assert len(lines) == 2 + len(r.measures) + len(r.left_out) and all(
        line.count("|") == 5 for line in lines
    )
    assert "left out: not asked for" in lines[-1]
    figure = r.figure()
    assert len(figure.axes) == 2 and all(ax.get_xlabel() for ax in figure.axes)
