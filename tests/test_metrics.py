"""Chapter 11: distances between sets, diversity, LPIPS, memorisation."""

import warnings
from pathlib import Path

import pytest
import torch

from t2i_tutorial import critters
from t2i_tutorial.core import (
    RESULTS_DIR,
    UserError,
    load_json,
    seeded_generator,
    to_uint8,
)
from t2i_tutorial.evaluation import classifier as C
from t2i_tutorial.evaluation import metrics as D

TORCH_HOME = Path(__file__).resolve().parent.parent.parent / "shared" / "torch_home"


@pytest.fixture(scope="module")
def classifier():
    return C.AttributeClassifier.from_pretrained("critters-classifier")


@pytest.fixture(scope="module")
def training():
    return critters.sample_critters(1024, seed=0).images


def test_chance_is_what_shuffling_gives():
    values = [0] * 30 + [1] * 50 + [2] * 20
    g, hits = seeded_generator(0), 0
    for _ in range(400):
        p = torch.randperm(100, generator=g).tolist()
        hits += (
            sum(values[i] == values[j] for i, j in zip(p, p[1:] + p[:1])) / 100
        )  # never a image with itself
    assert D.chance_accuracy(values) == pytest.approx(hits / 400, abs=0.01)


def test_a_frechet_distance_equals_the_formula(classifier):
    a, b = (
        D.extract_features(
            classifier, critters.sample_critters(160, seed=s, split="val").images
        )
        for s in (1, 2)
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
    with pytest.raises(UserError, match="needs at least 2 images of each kind"):
        D.frechet_distance(a[:1], b)


def test_frechet_of_known_gaussians():
    "A closed form: 4 axes, means apart by 2 in each, deviations 1 and 3."
    g = seeded_generator(0, "gauss")
    a, b = (
        torch.randn(40_000, 4, generator=g, dtype=torch.float64),
        2 + 3 * torch.randn(40_000, 4, generator=g, dtype=torch.float64),
    )
    assert D.frechet_distance(a, b) == pytest.approx(
        4 * 2**2 + 4 * (3 - 1) ** 2, rel=0.03
    )


def test_soft_and_grainy_images_differ_in_detail():
    "What the classifier's features ignore, since its augmentation contains it."
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


def test_diversity_of_equal_images_is_0():
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
    x = critters.sample_critters(40, seed=3, split="val").images
    exact = {"mirror": False, "max_shift": 0}
    distance, index = D.nearest_neighbours(x, training, **exact)
    slow = torch.stack([D.pixel_rmse(p.expand_as(training), training) for p in x])
    best, nearest = slow.min(1)
    assert (index == nearest).float().mean() > 0.9  # candidates of a quarter the size
    assert (distance - best).max() < 0.02 and (distance >= best - 0.005).all()
    all_of_them = D.nearest_neighbours(x, training, **exact, candidates=1024)
    assert torch.equal(all_of_them[1], nearest)
    assert torch.allclose(all_of_them[0], best, atol=0.005)


def moved(x, dx, dy):
    side = x.shape[-1]
    x = torch.nn.functional.pad(x, (2,) * 4, mode="replicate")
    return x[..., 2 + dy : 2 + dy + side, 2 + dx : 2 + dx + side]


def changed(copies):
    "Copies as they are, mirrored, moved by one and two pixels, and with noise."
    noise = 0.05 * torch.randn(copies.shape, generator=seeded_generator(0, "noise"))
    return {
        "as they are": copies,
        "mirrored": copies.flip(-1),
        "moved by one": moved(copies, 1, 0),
        "moved by two": moved(copies, -2, 2),
        "mirrored and moved": moved(copies.flip(-1), 2, -1),
        "with noise": (copies + noise).clamp(-1, 1),
        "all of it": (moved(copies.flip(-1), 1, 2) + noise).clamp(-1, 1),
    }


def test_copies_among_all_training_images_are_found():
    "Also beyond the first 4,096."
    training = to_uint8(critters.sample_critters(5000, seed=0).images)
    where = torch.arange(5, 5000, 500)
    fresh, others = (
        critters.sample_critters(n, seed=s, split="val").images
        for n, s in ((10, 8), (100, 9))
    )
    for name, x in changed(D.from_uint8(training[where])).items():
        distance, index = D.nearest_neighbours(x, training)
        assert torch.equal(index, where), name
        assert distance.max() < 0.06, name
    found = D.memorisation_rate(x, fresh, others, training)["memorisation_rate"]
    assert found.value == 1 and found.reference < 0.2
    again = D.memorisation_rate(fresh, fresh, others, training)["memorisation_rate"]
    assert again.value == again.reference < 0.2


def test_without_tolerance_changed_copies_are_missed(training):
    fresh, others = (
        critters.sample_critters(n, seed=s, split="val").images
        for n, s in ((60, 8), (200, 9))
    )
    exact = {"mirror": False, "max_shift": 0}
    for name in ("mirrored", "moved by two"):
        x = changed(training[:60])[name]
        found = D.memorisation_rate(x, fresh, others, training, **exact)
        assert found["memorisation_rate"].value < 0.3, name


@pytest.fixture
def torch_home(monkeypatch):
    if not (TORCH_HOME / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").exists():
        pytest.skip(
            "no SqueezeNet weights here; put them into a torch hub cache and run again"
        )
    monkeypatch.setenv("TORCH_HOME", str(TORCH_HOME))
    monkeypatch.setattr(D, "_LOADED", {})


def test_real_lpips_orders_images_as_expected(torch_home):
    "Identical images 0; a blur nearer than another creature; as recorded."
    found = D.lpips_sanity_check(32)
    assert (
        found["itself"]
        == 0
        < found["drawn again"]
        < found["blurred by 1 pixel"]
        < found["another creature"]
    )
    assert D.lpips_sanity_check(64) == pytest.approx(
        load_json(RESULTS_DIR / "critters-classifier" / "lpips.json")["distances"][
            "64 pixels"
        ],
        abs=1e-3,
    )


def test_unknown_net():
    x = torch.zeros(1, 3, 32, 32)
    with pytest.raises(UserError, match="did you mean 'squeeze'"):
        D.lpips_distance(x, x, net="squeez")


def test_too_few_images_for_a_frechet_distance_warn():
    a = torch.randn(40, 16, dtype=torch.float64, generator=seeded_generator(0))
    with pytest.warns(UserWarning, match="16 images on 16 features.*more than 16"):
        D.frechet_distance(a[:16], a)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        D.frechet_distance(a[:17], a)


def test_tolerance_never_makes_an_image_farther(training):
    x = critters.sample_critters(5, seed=3, split="val").images
    exact, mirror, shift = (
        D.nearest_neighbours(x, training[:30], 16, mirror=m, max_shift=s)[0]
        for m, s in ((False, 0), (True, 0), (False, 1))
    )
    assert (mirror <= exact + 1e-6).all() and (shift <= exact + 1e-6).all()


def test_the_pixel_count_is_stricter_than_the_classifier(classifier):
    "A small tint: still the nearest colour, no longer the exact shade."
    drawn = critters.sample_critters(200, seed=4, split="test")
    tint = torch.rand(200, 3, 1, 1, generator=seeded_generator(0, "tint")) - 0.5
    x = (drawn.images + 0.2 * tint).clamp(-1, 1)
    predicted = C.predict_attributes(classifier, x)["body_colour"]
    labels = C.attribute_labels(drawn.critters)["body_colour"]
    pixels = D.body_colour_accuracy_from_pixels(x, drawn.captions, drawn.images)
    assert (predicted == labels).float().mean() > 0.95
    assert pixels["body_pixels"].ci_high < 0.95


def test_mean_with_interval():
    x = torch.randn(400, generator=seeded_generator(0)) + 2
    m = D.mean_with_interval(x, reference=2.0)
    assert m.value == pytest.approx(x.mean().item()) and m.reference == 2.0
    half = 1.96 * x.std().item() / 20  # of many values the bootstrap is near a normal
    assert (m.ci_low, m.ci_high) == pytest.approx(
        (m.value - half, m.value + half), abs=0.02
    )
    assert m == D.mean_with_interval(x, reference=2.0)
    assert D.mean_with_interval(x[:1]).ci_low is None


def test_diversity_and_neighbours_need_something_to_compare():
    x = torch.zeros(2, 1, 3, 8, 8)
    with pytest.raises(UserError, match="at least 2 images of a prompt"):
        D.intra_prompt_diversity(x, D.pixel_rmse)
    with pytest.raises(UserError, match="there are no training images"):
        D.nearest_neighbours(x[:, 0], x[:0, 0], size=8)


# ---- variety


def test_open_attributes():
    everything = set(C.CLASSIFIED_ATTRIBUTES)
    assert set(D.open_attributes("a red cat")) == everything - {
        "species",
        "body_colour",
    }
    asleep = D.open_attributes("a cat, fast asleep")
    assert "eye_colour" not in asleep and "action" not in asleep
    assert "action" not in D.open_attributes("a cat with closed eyes")
    assert "second_colour" not in D.open_attributes("an owl with purple wings")


def test_entropy_counts_only_what_is_open_and_in_bits():
    right = critters.ATTRIBUTES["facing"].index("right")
    predicted = {k: torch.zeros(8, dtype=torch.long) for k in C.CLASSIFIED_ATTRIBUTES}
    predicted["facing"] = torch.tensor(
        [right, 1 - right, right, 1 - right] + [right] * 4
    )
    prompts = ["a red cat", "a red cat"]
    entropy = D.attribute_entropy(predicted, prompts, 4)
    assert entropy["facing"].tolist() == [1, 0] and entropy["size"].tolist() == [0, 0]
    assert "species" not in entropy and "body_colour" not in entropy
    stated = D.attribute_entropy(predicted, ["a red cat, facing left", "a cat"], 4)
    assert stated["facing"].tolist() == [0] and len(stated["body_colour"]) == 1


def test_silhouettes_and_spread():
    x = torch.ones(1, 3, 16, 16)
    x[:, :, 4:8, 8:12] = -1
    assert D.silhouette(x)[0].tolist() == pytest.approx([10 / 16, 6 / 16, 4 / 16])
    assert D.silhouette(torch.ones(1, 3, 16, 16)).isfinite().all()
    pair = torch.stack([x[0], x[0].roll(2, -1)])[None]
    spread = D.pose_spread(pair)
    assert spread["position"].item() == pytest.approx(2 / 16 / 2**0.5)
    assert spread["extent"].item() == 0


def test_variety_of_the_renderer_is_the_reference_and_of_one_image_is_none(classifier):
    prompts = ["a red cat", "a small blue dragon", "a duck, jumping"]
    kinds = [
        [critters.Critter("cat", "red", c, facing=f, size=s) for c, f, s in combination]
        for combination in [
            [("blue", "left", "small"), ("green", "right", "large")] * 4,
        ]
        * 3
    ]
    real = torch.stack([critters.render(k, seed=i) for i, k in enumerate(kinds)])
    distances = {"pixel": lambda g: D.intra_prompt_diversity(g, D.pixel_rmse)}
    same, none = (
        D.measure_variety(classifier, x, real, prompts, distances)
        for x in (real, real[:, :1].repeat(1, 8, 1, 1, 1))
    )
    assert same["facing_entropy"].value == same["facing_entropy"].reference == 1
    for name, metric in none.items():
        assert metric.value == pytest.approx(0, abs=1e-5), name
        assert (
            metric.reference > 0 or "eye" in name or "action" in name or "body" in name
        )
        assert same[name].value == pytest.approx(same[name].reference)
    assert none["pixel_diversity"].ci_high == 0 < same["pixel_diversity"].ci_low
