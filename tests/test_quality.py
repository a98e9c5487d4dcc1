"""Quality: measures on features that saw none of our data, their intervals, the damage
table, and paired comparisons.
"""

import math
import os
from pathlib import Path

import pytest
import torch

from t2i_tutorial import critters
from t2i_tutorial.core import RESULTS_DIR, UserError, load_json, seeded_generator
from t2i_tutorial.evaluation import quality as Q
from t2i_tutorial.evaluation.classifier import gaussian_blur
from t2i_tutorial.evaluation.comparison import mcnemar, paired_bootstrap

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "torch_home"
TORCH_HOME = Path(os.environ.get("TORCH_HOME", SHARED))


def images(n: int, seed: int, size: int = 32) -> torch.Tensor:
    return critters.sample_critters(n, size, seed=seed, split="val").images


@pytest.fixture(scope="module")
def network():
    return Q.load_feature_network("dead-leaves")


@pytest.fixture(scope="module")
def sets():
    return [images(160, seed) for seed in (501, 502, 503)]


@pytest.fixture
def torch_home(monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(TORCH_HOME / "hub"))


def gaussians(n: int, count: int, seed: int, dim: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=generator).double() for _ in range(count)]


class Pixels(Q.FeatureNetwork):
    "Images whose pixels are their features."

    def __init__(self):
        torch.nn.Module.__init__(self)

    def extract(self, images, chunk_size=128):
        return images.flatten(1).double()


# ---- features


def test_dead_leaves_are_reproducible_and_in_range():
    a, b = (Q.dead_leaves(8, 24, seeded_generator(3, "leaves")) for _ in range(2))
    assert torch.equal(a, b) and a.shape == (8, 3, 24, 24)
    assert -1 <= a.min() and a.max() <= 1 and a.std() > 0.2
    other = Q.dead_leaves(8, 24, seeded_generator(4, "leaves"))
    assert not torch.equal(a, other)


def test_a_crop_is_a_part_of_its_own_image_unchanged():
    x = torch.rand(5, 3, 12, 10)
    crops = Q.random_crop(x, 7, seeded_generator(0, "crops"))
    assert crops.shape == (5, 3, 7, 7)
    for image, crop in zip(x, crops):
        windows = image.unfold(1, 7, 1).unfold(2, 7, 1).permute(1, 2, 0, 3, 4)
        assert (windows == crop).all(-1).all(-1).all(-1).sum() == 1


def test_all_positions_of_a_crop_occur():
    x = torch.arange(36.0).view(1, 1, 6, 6).expand(400, 3, 6, 6)
    corner = Q.random_crop(x, 4, seeded_generator(0, "crops"))[:, 0, 0, 0]
    assert corner.unique().tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14]


def test_crop_loss_is_small_only_where_crops_belong_together():
    colours = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    x = (colours * 2 - 1).expand(16, 3, 12, 12)
    generator = seeded_generator(0, "crops")
    mean = Q.crop_loss(lambda c: c.mean((2, 3)), x, 8, generator, 50.0)
    blind = Q.crop_loss(lambda c: torch.ones(len(c), 3), x, 8, generator, 50.0)
    assert mean < 0.7 * blind and blind.item() == pytest.approx(math.log(16), rel=1e-4)


def test_the_bundled_network_is_what_its_record_says(network):
    record = load_json(Q.BUNDLED_DIR / "dead-leaves" / "run.json")
    assert record["command"] == "python benchmarks/dead_leaves.py"
    assert sum(p.numel() for p in network.layers.parameters()) == record["parameters"]
    losses = [h["loss"] for h in record["history"]]
    assert losses[-1] < 0.5 * losses[0]


def test_features_do_not_depend_on_the_chunk_and_are_frozen(network, sets):
    x = sets[0][:10]
    features = network.extract(x)
    assert features.shape == (10, 128) and features.dtype == torch.float64
    assert torch.allclose(features, network.extract(x, chunk_size=3), atol=1e-5)
    assert not network.training
    assert not [p for p in network.parameters() if p.requires_grad]


def test_the_best_network_at_hand_is_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert Q.load_feature_network().name == "dead-leaves"
    with pytest.raises(UserError, match="not in torch's cache; set TORCH_HOME") as e:
        Q.load_feature_network("alexnet")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="did you mean 'squeezenet'"):
        Q.load_feature_network("squeezenett")


@pytest.mark.parametrize("content", [b"no weights", b""])
def test_damaged_weights_of_a_feature_network_are_named(tmp_path, monkeypatch, content):
    "Half a download in torch's cache ended in a traceback."
    pytest.importorskip("torchvision")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"
    file.parent.mkdir()
    file.write_bytes(content)
    for name in ("alexnet", None):
        with pytest.raises(UserError, match="alexnet-owt.*damaged.*; delete the file"):
            Q.load_feature_network(name)


@pytest.mark.parametrize("name", ["alexnet", "squeezenet"])
def test_networks_of_photographs_notice_grain(name, torch_home):
    if not Q.has_feature_network(name):
        pytest.skip(f"the weights of {name} are not in torch's cache (TORCH_HOME)")
    network = Q.load_feature_network(name)
    a, b = images(24, 504), images(24, 505)
    noise = 0.2 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0))
    found = Q.quality_difference(network, b + noise, b, a, resamples=10)
    assert network.name == name and found["mmd"].ci_low > 0
    assert network.extract(a[:2]).shape == (2, {"alexnet": 512}.get(name, 1024))


# ---- distances


def slow_mmd(a, b):
    def k(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    n, m = len(a), len(b)
    aa = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j)
    bb = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j)
    ab = sum(k(x, y) for x in a for y in b)
    return aa / (n * (n - 1)) + bb / (m * (m - 1)) - 2 * ab / (n * m)


def test_mmd_is_that_of_the_formula_also_on_a_half():
    a, b = gaussians(14, 2, seed=1)
    b = b[:11] + 0.3
    assert Q.feature_mmd(a, b).value == pytest.approx(slow_mmd(a, b), rel=1e-9)
    take = [Q._halves(len(x), 2, seeded_generator(0, "t")) for x in (a, b)]
    chosen = [x[t[1] > 0] for x, t in zip((a, b), take)]
    assert [len(c) for c in chosen] == [7, 5]
    half = Q._mmd(a, b, *take)[1].item()
    assert half == pytest.approx(slow_mmd(*chosen), rel=1e-9)


def test_frechet_refuses_fewer_images_than_features():
    a, b = gaussians(40, 2, seed=2, dim=8)
    assert Q.feature_frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert Q.feature_frechet(a + 1, a) == pytest.approx(8, rel=1e-6)
    with pytest.raises(UserError, match="on 8 features needs more than 8 images, not"):
        Q.feature_frechet(a[:8], b)
    assert Q.feature_frechet(a[:9], b) > 0


def test_scaled_features_have_no_exploding_column():
    x = torch.cat([gaussians(50, 1, seed=3)[0], torch.full((50, 1), 0.5)], dim=1)
    x[7, -1] += 1e-9
    scaled = Q.FeatureScale.fit(x)(x)
    assert scaled[:, :-1].std(0).allclose(torch.ones(6).double())
    assert scaled[:, -1].abs().max() < 1e-6


# ---- precision, recall, density, coverage


def slow_neighbours(generated, real, k):
    "Kynkäänniemi et al., eq. 1 to 3; Naeem et al., eq. 2 and 3, loop by loop."

    def radius(points, i):
        distances = [(points[i] - p).norm().item() for j, p in enumerate(points)]
        return sorted(distances)[k]  # the first is the point itself

    def inside(x, points, radii):
        return [(x - p).norm().item() <= r for p, r in zip(points, radii)]

    real_radii = [radius(real, i) for i in range(len(real))]
    own_radii = [radius(generated, i) for i in range(len(generated))]
    in_real = [inside(x, real, real_radii) for x in generated]
    in_own = [inside(x, generated, own_radii) for x in real]
    return {
        "precision": sum(any(row) for row in in_real) / len(generated),
        "recall": sum(any(row) for row in in_own) / len(real),
        "density": sum(map(sum, in_real)) / (k * len(generated)),
        "coverage": sum(map(any, zip(*in_real))) / len(real),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbour_measures_are_those_of_the_papers(k):
    real, generated = gaussians(30, 2, seed=k, dim=3)
    generated = 0.7 * generated[:23] + 0.4
    found = Q.precision_recall(generated, real, k, resamples=0)
    assert {n: m.value for n, m in found.items()} == pytest.approx(
        slow_neighbours(generated, real, k)
    )
    assert all(m.ci_low is None for m in found.values())


def test_equal_sets_are_perfect_and_far_ones_are_not():
    (a,) = gaussians(40, 1, seed=4)
    same = Q.precision_recall(a, a)
    assert all(same[k].value == 1 for k in ("precision", "recall", "coverage"))
    assert same["density"].value >= 1
    far = Q.precision_recall(a + 100, a)
    assert {m.value for m in far.values()} == {0.0}


def test_lost_kinds_lower_recall_and_not_precision():
    real, generated = gaussians(200, 2, seed=5, dim=2)
    found = Q.precision_recall(0.2 * generated, real)
    assert found["precision"].ci_low > 0.9 and found["recall"].ci_high < 0.5


def test_too_few_images_are_refused_in_one_line(network):
    x = images(32, 506)
    for wrong in (
        lambda: Q.measure_quality(network, x[:11], x),
        lambda: Q.quality_difference(network, x[:11], x[:11], x),
        lambda: Q.precision_recall(*gaussians(5, 2, seed=0)),
    ):
        with pytest.raises(UserError, match="need at least 12 images in both") as e:
            wrong()
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="at least 4 images"):
        Q.feature_mmd(*gaussians(3, 2, seed=0))
    with pytest.raises(UserError, match="at least 4 images"):
        Q.two_sample_accuracy(*gaussians(3, 2, seed=0))
    with pytest.raises(UserError, match="same prompts, not 32 and 31"):
        Q.quality_difference(network, x, x[:31], x)
    with pytest.raises(UserError, match="at least 32 images, not 31"):
        Q.damage_ladder(critters.sample_critters(31))


# ---- intervals


def test_halves_are_halves_without_repetition():
    take = Q._halves(9, 300, seeded_generator(0, "halves"))
    assert take[0].sum() == 9 and set(take[1:].sum(1).tolist()) == {4.0}
    assert take[1:].mean(0).sub(4 / 9).abs().max() < 0.1


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_intervals_of_differences_contain_the_truth(shift):
    "Forty simulated comparisons; the truth is 0, or the mean of all of them."
    found = []
    for trial in range(40):
        a, b, real = (x.view(80, 3, 1, 2) for x in gaussians(80, 3, seed=100 + trial))
        a = a + shift * torch.tensor([1.0, 0, 0]).view(3, 1, 1)
        found.append(
            Q.quality_difference(
                Pixels(), a, b, real, paired=False, resamples=25, seed=trial
            )
        )
    for name in found[0]:
        values = torch.tensor([f[name].value for f in found])
        truth = values.mean() if shift else 0.0
        inside = [f[name].ci_low <= truth <= f[name].ci_high for f in found]
        assert sum(inside) >= 35, (name, sum(inside))  # 95 % of 40 are 38
        widths = torch.tensor([f[name].ci_high - f[name].ci_low for f in found])
        assert widths.mean() < 4 * 3.92 * values.std(), name  # and they say something
    if shift:
        assert sum(f["mmd"].ci_low > 0 for f in found) > 12  # the damage is seen


def test_pairs_make_the_interval_narrower():
    a, _, real = (x.view(80, 3, 1, 2) for x in gaussians(80, 3, seed=7))
    b = a + 0.05 * gaussians(80, 1, seed=8)[0].view(80, 3, 1, 2)

    def width(paired):
        m = Q.quality_difference(Pixels(), a, b, real, paired=paired)["mmd"]
        return m.ci_high - m.ci_low

    assert width(True) < 0.5 * width(False)


def test_measures_are_reproducible(network, sets):
    first, again = (Q.measure_quality(network, *sets[:2]) for _ in range(2))
    assert first == again


# ---- the two-sample classifier


def test_two_sample_accuracy_is_half_for_real_and_one_for_other_images():
    accuracies = []
    for seed in range(20):
        a, b = gaussians(60, 2, seed=seed)
        m = Q.two_sample_accuracy(a, b)
        accuracies.append(m.ci_low <= 0.5 <= m.ci_high)
    assert sum(accuracies) >= 17
    a, b = gaussians(60, 2, seed=0)
    assert Q.two_sample_accuracy(a + 3, b).value > 0.95
    assert Q.two_sample_accuracy(a + 3, b).chance == 0.5


# ---- all together


def test_no_difference_between_equal_sets(network, sets):
    difference = Q.quality_difference(network, sets[0], sets[0], sets[1])
    assert {m.value for m in difference.values()} == {0.0}


def test_numbers_get_worse_with_growing_blur(network, sets):
    other, real, _ = sets
    found = [
        Q.measure_quality(network, gaussian_blur(other, s) if s else other, real)
        for s in (0, 0.5, 0.7, 1.0)
    ]
    for name in ("mmd", "two_sample", "frechet_distance"):
        values = [f[name].value for f in found]
        assert values == sorted(values), name
    for name in ("precision", "recall", "density", "coverage"):
        values = [f[name].value for f in found]
        assert values[0] > values[2] > values[3], name


def test_the_reference_is_what_real_images_get(network, sets):
    found = Q.measure_quality(network, *sets)
    floor = Q.measure_quality(network, sets[2], sets[1])
    assert set(found) == {*Q.QUALITY_METRICS, "frechet_distance"}
    assert {k: m.reference for k, m in found.items()} == {
        k: m.value for k, m in floor.items()
    }
    few = Q.measure_quality(network, sets[0][:100], sets[1])
    assert "frechet_distance" not in few  # 128 features


def test_the_ladder_changes_what_it_says():
    drawn = critters.sample_critters(40, seed=507, split="val")
    ladder = Q.damage_ladder(drawn)
    x = drawn.images
    assert torch.equal(ladder["real"], x) and torch.equal(ladder["mirrored"].flip(3), x)
    for name, damaged in ladder.items():
        assert damaged.shape == x.shape and damaged.abs().max() <= 1, name
        assert name == "real" or not torch.equal(damaged, x), name
    changed = (ladder["tile borders"] != x).any(1)
    assert not changed[:, :3, :3].any() and changed[:, 3].any()
    assert len(ladder["16 repeated"].unique(dim=0)) == 16
    training = critters.sample_critters(40, seed=0).images
    assert torch.equal(ladder["training images"], training)


# ---- the recorded damage table


@pytest.fixture(scope="module")
def recorded():
    return load_json(RESULTS_DIR / "quality.json")


def test_the_record_has_every_network_and_every_damage(recorded):
    assert set(Q.FEATURE_NETWORKS) < set(recorded["damage"])
    names = set(Q.damage_ladder(critters.sample_critters(32)))
    for table in (*recorded["damage"].values(), recorded["other"]):
        assert set(table) == names


def test_the_record_is_what_the_code_computes(recorded, network):
    "One row again, with the recorded seeds, by the network that is always there."
    n, seed = recorded["num_images"], recorded["seed"]
    x, real = (images(n, s) for s in (seed, seed + 1))
    scale = Q.FeatureScale.fit(network.extract(real))
    a, b = (scale(network.extract(y)) for y in (gaussian_blur(x, 1.0), real))
    found = {"mmd": Q.feature_mmd(a, b, 0), **Q.precision_recall(a, b, resamples=0)}
    row = recorded["damage"]["dead-leaves"]["blur 1"]["measures"]
    for name in found:
        assert found[name].value == pytest.approx(
            row[name]["value"], abs=0.02, rel=0.02
        )


def test_used_metrics_notice_what_they_are_meant_to():
    with pytest.raises(UserError, match="did you mean 'alexnet'"):
        Q.used_metrics("alexnett")
    for name in Q.FEATURE_NETWORKS:
        used = Q.used_metrics(name)
        assert {"mmd", "precision", "recall"} <= set(used) <= set(Q.QUALITY_METRICS)
    assert "coverage" not in Q.used_metrics("dead-leaves")


# ---- pairs


def test_mcnemar_is_the_exact_binomial():
    for only_a, only_b in ((9, 2), (1, 6), (4, 4), (0, 0)):
        both = torch.ones(5, dtype=torch.bool)
        a = torch.cat([both, torch.ones(only_a) > 0, torch.zeros(only_b) > 0])
        b = torch.cat([both, torch.zeros(only_a) > 0, torch.ones(only_b) > 0])
        found, n = mcnemar(a, b), only_a + only_b
        tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1)) / 2**n
        assert found["p"] == pytest.approx(min(1, 2 * tail))
        assert (found["only_a"], found["only_b"]) == (only_a, only_b)
        assert found["difference"] == pytest.approx((only_a - only_b) / len(a))


def test_the_paired_bootstrap_contains_the_truth_and_uses_the_pairs():
    inside = 0
    for seed in range(60):
        (x,) = gaussians(50, 1, seed=seed)
        difference = 0.2 + 0.3 * x[:, 1]
        m = paired_bootstrap(x[:, 0] + difference, x[:, 0], resamples=400, seed=seed)
        assert m.value == pytest.approx(difference.mean().item())
        inside += m.ci_low <= 0.2 <= m.ci_high
    assert 51 <= inside
    assert m.ci_high - m.ci_low < 0.3  # of two unpaired means it would be about 0.8


@pytest.mark.parametrize("sizes", [(3, 4), (0, 0)])
def test_pairs_of_other_lengths_are_refused(sizes):
    a, b = (torch.ones(n) > 0 for n in sizes)
    with pytest.raises(UserError, match=f"same prompts, not {sizes[0]} and {sizes[1]}"):
        mcnemar(a, b)
    with pytest.raises(UserError, match="same prompts"):
        paired_bootstrap(a.float(), b.float())
