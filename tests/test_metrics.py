"""Chapter 11: distances between sets, diversity, LPIPS, memorisation."""

import math
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


def test_distances_equal_the_formulas(classifier):
    a, b = (
        D.extract_features(
            classifier, critters.sample_critters(160, seed=s, split="test").images
        )
        for s in (1, 2)
    )

    def k(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def off(m):
        return (m.sum() - m.diag().sum()) / (len(m) * (len(m) - 1))

    assert D.polynomial_mmd(a, b, subset_size=160, subsets=1)[0] == pytest.approx(
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
    "A closed form: 4 axes, means apart by 2 in each, deviations 1 and 3."
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

    def draw(n):
        return torch.randn(n, 16, generator=g, dtype=torch.float64)

    kernel = [
        D.polynomial_mmd(draw(32), draw(32), subset_size=32, subsets=1)[0]
        for _ in range(60)
    ]
    mean, error = sum(kernel) / 60, torch.tensor(kernel).std().item() / 60**0.5
    assert abs(mean) < 3.5 * error and min(kernel) < 0
    assert (
        D.frechet_distance(draw(32), draw(32))
        > 5 * D.frechet_distance(draw(1024), draw(1024))
        > 0
    )


def test_a_missing_variety_moves_away(classifier):
    "The more images are cats, the farther, by both distances; none is the floor."
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
            classifier, torch.cat([cats[:n], drawn.images[n:]]), drawn.images, others
        )
        for n in (0, 64, 192)
    ]
    for k in ("mmd", "frechet_distance"):
        assert (
            rows[0][k].reference
            == rows[0][k].value
            < rows[1][k].value
            < rows[2][k].value
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


def test_the_global_random_state_is_left_alone(classifier):
    a = torch.randn(40, 8, dtype=torch.float64)
    before = torch.get_rng_state()
    assert D.polynomial_mmd(a, a.flip(0), seed=3) == D.polynomial_mmd(
        a, a.flip(0), seed=3
    )
    assert torch.equal(before, torch.get_rng_state())


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
    x = critters.sample_critters(5, seed=3, split="test").images
    distance, place = D.nearest_neighbours(x, training)
    slow = torch.stack([D.pixel_rmse(p.expand_as(training), training) for p in x])
    assert torch.equal(place, slow.argmin(1)) and torch.allclose(
        distance, slow.min(1).values, atol=1e-4
    )


def test_copies_are_memorised_and_fresh_images_are_not(training):
    fresh, others = (
        critters.sample_critters(400, seed=s, split="test").images for s in (8, 9)
    )
    assert (
        D.memorisation_rate(training[:400], fresh, others, training)[
            "memorisation_rate"
        ].value
        == 1
    )
    assert (
        D.memorisation_rate(fresh, fresh, others, training)["memorisation_rate"].ci_low
        < 0.02
    )


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


def test_mirrored_and_shifted_copies_are_found_when_asked_for(training):
    copies = training[:60]
    fresh, others = (
        critters.sample_critters(n, seed=s, split="test").images
        for n, s in ((60, 8), (200, 9))
    )
    moved = torch.nn.functional.pad(copies, (1,) * 4, mode="replicate")[..., 2:, :-2]
    for x in (copies.flip(-1), moved, moved.flip(-1)):
        exact, tolerant = (
            D.memorisation_rate(x, fresh, others, training[:300], **options)
            for options in ({}, {"mirror": True, "max_shift": 1})
        )
        assert exact["memorisation_rate"].value < 0.2
        assert tolerant["memorisation_rate"].value > 0.95
        assert tolerant["memorisation_rate"].reference < 0.1


def test_nearest_in_many_training_images_given_as_bytes():
    "More than one chunk of 4,096; the copy that is found lies in the last one."
    g = seeded_generator(0, "many")
    many = to_uint8(torch.rand(4100, 3, 8, 8, generator=g) * 2 - 1)
    distance, index = D.nearest_neighbours(D.from_uint8(many[4090:]), many, size=8)
    assert index.tolist() == list(range(4090, 4100)) and distance.max() < 1e-2


def test_tolerance_never_makes_an_image_farther(training):
    x = critters.sample_critters(5, seed=3, split="test").images
    exact, mirror, shift = (
        D.nearest_neighbours(x, training[:50], 16, **options)[0]
        for options in ({}, {"mirror": True}, {"max_shift": 1})
    )
    assert (mirror <= exact).all() and (shift <= exact).all()


def test_the_pixel_count_is_stricter_than_the_classifier(classifier):
    "A small tint: still the nearest colour, no longer the exact shade."
    drawn = critters.sample_critters(200, seed=4, split="test")
    tint = torch.rand(200, 3, 1, 1, generator=seeded_generator(0, "tint")) - 0.5
    x = (drawn.images + 0.2 * tint).clamp(-1, 1)
    predicted = C.predict_attributes(classifier, x)["body_colour"]
    labels = C.attribute_labels(drawn.critters)["body_colour"]
    pixels = D.body_colour_accuracy_from_pixels(x, drawn.critters, drawn.images)
    assert (predicted == labels).float().mean() > 0.95
    assert pixels["body_pixels"].ci_high < 0.95


def test_mean_with_interval():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    m = D.mean_with_interval(x, reference=2.0)
    assert (m.value, m.reference) == (2.5, 2.0)
    half = 1.96 * x.std().item() / 2
    assert (m.ci_low, m.ci_high) == pytest.approx((2.5 - half, 2.5 + half))
    assert D.mean_with_interval(x[:1]).ci_low is None


@pytest.mark.parametrize("subset_size", [0, 1, 41, 2.5, True])
def test_an_mmd_that_cannot_be_computed_is_said(untyped, subset_size):
    "Small rows: a subset of one image gave nan."
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)).double()
    with pytest.raises(UserError, match="subset_size must be a whole number from 2 to"):
        D.polynomial_mmd(x, x, subset_size=subset_size)
    with pytest.raises(UserError, match="subsets must be a whole number of at least 1"):
        D.polynomial_mmd(x, x, subsets=0)
    for distance in (D.polynomial_mmd, D.frechet_distance):
        with pytest.raises(UserError, match="needs at least 2 images of each kind"):
            distance(x[:1], x)
    assert math.isfinite(D.polynomial_mmd(x, x.flip(0), subset_size=2)[0])


def test_diversity_and_neighbours_need_something_to_compare():
    x = torch.zeros(2, 1, 3, 8, 8)
    with pytest.raises(UserError, match="at least 2 images of a prompt"):
        D.intra_prompt_diversity(x, D.pixel_rmse)
    with pytest.raises(UserError, match="there are no training images"):
        D.nearest_neighbours(x[:, 0], x[:0, 0], size=8)
