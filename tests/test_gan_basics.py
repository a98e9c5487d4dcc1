"""Chapter 5: the rules of the game, one step of each side, R1, DiffAugment, the two
tiny networks.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from t2i_tutorial import critters
from t2i_tutorial.core import UserError, seeded_generator
from t2i_tutorial.gan import basics as G


def noise(*shape, name="x"):
    return torch.randn(*shape, generator=seeded_generator(0, "first", name, *shape))


def rng(name="rng"):
    return seeded_generator(0, "first", name)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return G.ToyGenerator(channels=8), G.ToyDiscriminator(channels=8)


# ---- losses


def test_losses_are_the_logistic_ones():
    real, fake = 3 * noise(64), 3 * noise(64, name="fake")
    bce = F.binary_cross_entropy_with_logits
    both = bce(real, torch.ones(64)) + bce(fake, torch.zeros(64))
    assert torch.allclose(G.logistic_d_loss(real, fake), both, atol=1e-6)
    assert torch.allclose(
        G.nonsaturating_g_loss(fake), bce(fake, torch.ones(64)), atol=1e-6
    )
    assert torch.allclose(
        G.minimax_g_loss(fake), -bce(fake, torch.zeros(64)), atol=1e-6
    )


@pytest.mark.parametrize("score", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_losses_and_slopes_are_finite_far_out(score):
    "GG-4: a loss written as log(1 + exp(-x)) is infinite at x = -100."
    s = torch.full((2,), score, requires_grad=True)
    total = G.logistic_d_loss(s, s) + G.nonsaturating_g_loss(s) + G.minimax_g_loss(s)
    (slope,) = torch.autograd.grad(total, s)
    assert total.isfinite() and slope.isfinite().all()


def test_nobody_can_tell_is_two_log_two():
    assert G.logistic_d_loss(torch.zeros(3), torch.zeros(5)).item() == pytest.approx(
        2 * math.log(2)
    )


def test_best_score_is_the_log_ratio_of_densities():
    """Three places with known shares of real and generated.

    Newton's steps on the loss end at log p / q.
    """
    p, q, score = (
        torch.tensor([0.7, 0.2, 0.1]),
        torch.tensor([0.1, 0.2, 0.7]),
        torch.zeros(3, dtype=torch.float64),
    )
    for _ in range(30):
        s = score.clone().requires_grad_()
        loss = (p * F.softplus(-s) + q * F.softplus(s)).sum()
        (slope,) = torch.autograd.grad(loss, s)
        score = score - slope / ((p + q) * s.sigmoid() * (1 - s.sigmoid())).detach()
    assert torch.allclose(score.float(), (p / q).log(), atol=1e-5)
    counts = [(s, int(1000 * a), int(1000 * b)) for s, a, b in zip(score.float(), p, q)]
    real, fake = (torch.cat([s.expand(c[i]) for s, *c in counts]) for i in (0, 1))
    best = G.logistic_d_loss(real, fake)
    assert all(G.logistic_d_loss(real + e, fake + e) > best for e in (-0.3, 0.3))


def test_minimax_is_silent_where_the_generator_is_seen_through():
    s = torch.tensor([-12.0], requires_grad=True)
    silent, loud = (
        torch.autograd.grad(f(s), s)[0].abs().item()
        for f in (G.minimax_g_loss, G.nonsaturating_g_loss)
    )
    assert silent < 1e-4 and loud > 0.99


# ---- R1


def test_gradient_penalty_on_a_quadratic():
    a, x = torch.tensor(3.0, requires_grad=True), noise(32, 3, 4, 4)
    x.requires_grad_()
    logits = a * x.square().sum((1, 2, 3)) / 2
    penalty = G.zero_centered_gradient_penalty(logits.sum(), [x])
    size = x.square().sum((1, 2, 3)).mean()
    assert torch.allclose(penalty, 9 * size)
    (slope,) = torch.autograd.grad(penalty, a)
    assert torch.allclose(slope, 6 * size)  # it can be trained against


def test_gradient_penalty_leaves_its_input_alone():
    "The penalty stores no gradient, and a step leaves the caller's images as they are."
    x = noise(4, 2).requires_grad_()
    G.zero_centered_gradient_penalty(x.square().sum(), [x])
    assert x.grad is None
    torch.manual_seed(0)
    g, d = G.ToyGenerator(channels=8), G.ToyDiscriminator(channels=8)
    optimizer = torch.optim.Adam(d.parameters(), 2e-3)
    real = noise(4, 3, 16, 16)
    before = real.clone()
    G.discriminator_step(g, d, optimizer, real, rng(), 1.0)
    assert not real.requires_grad and real.grad is None and torch.equal(real, before)


def test_r1_makes_the_score_flatter_at_real_pictures():
    data, steep = critters.sample_critters(64, 16, seed=0).images, []
    for gamma in (0.0, 5.0):
        torch.manual_seed(0)
        g, d = G.ToyGenerator(channels=8), G.ToyDiscriminator(channels=8)
        optimizer = torch.optim.Adam(d.parameters(), 2e-3, betas=(0.0, 0.99))
        for _ in range(25):
            G.discriminator_step(g, d, optimizer, data, rng(), gamma)
        x = data.clone().requires_grad_()
        steep.append(G.zero_centered_gradient_penalty(d(x).sum(), [x]).item())
    assert steep[1] < 0.5 * steep[0]


# ---- the two steps


def weights(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(net, before):
    return all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_each_step_touches_its_own_network_only(pair):
    (g, d), real = pair, noise(8, 3, 16, 16).clamp(-1, 1)
    g_opt, d_opt = (torch.optim.Adam(m.parameters(), 1e-2) for m in pair)
    w, v = weights(g), weights(d)
    said = G.discriminator_step(g, d, d_opt, real, rng(), r1_gamma=1.0)
    assert same(g, w) and not same(d, v) and all(p.grad is None for p in g.parameters())
    assert set(said) == {"real", "fake"} and all(
        math.isfinite(s) for s in said.values()
    )
    v = weights(d)
    G.generator_step(g, d, g_opt, 8, rng())
    assert not same(g, w) and same(d, v)


def test_steps_go_where_they_should(pair):
    "A few steps of D open a gap between the scores; a few of G close it."
    (g, d), real = pair, critters.sample_critters(64, 16, seed=0).images
    g_opt, d_opt = (
        torch.optim.Adam(m.parameters(), 2e-3, betas=(0.0, 0.99)) for m in pair
    )
    r = rng()
    gaps = [
        s["real"] - s["fake"]
        for s in (G.discriminator_step(g, d, d_opt, real, r) for _ in range(20))
    ]
    assert gaps[-1] > gaps[0] + 1
    losses = [G.generator_step(g, d, g_opt, 64, r) for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]


def test_what_d_sees_is_changed_alike_on_both_sides(pair):
    """PR-3: a small data set was trained on without augmentation; who changes only the
    real side draws the changes.
    """
    (g, d), real, calls = pair, noise(4, 3, 16, 16).clamp(-1, 1), []

    def change(x):
        calls.append(x.detach().clone())
        return torch.zeros_like(x) + 0 * x

    optimizers = [torch.optim.SGD(m.parameters(), 0.0) for m in pair]
    said = G.discriminator_step(
        g, d, optimizers[1], real, rng(), r1_gamma=1.0, diff_augment_images=change
    )
    assert (
        len(calls) == 2
        and torch.equal(calls[0], real)
        and not torch.equal(calls[1], real)
    )
    assert said["real"] == pytest.approx(
        said["fake"]
    )  # everything was made alike, so D saw no difference
    G.generator_step(g, d, optimizers[0], 4, rng(), diff_augment_images=change)
    assert len(calls) == 3


# ---- DiffAugment


def test_no_strength_no_change():
    x = noise(3, 3, 16, 16)
    assert torch.equal(G.diff_augment(x, rng(), translation=0.0, cutout=0.0), x)


def test_same_stream_same_change_and_another_for_each_picture():
    x = noise(1, 3, 16, 16).expand(6, -1, -1, -1)
    a, b, c = (
        G.diff_augment(x, rng()),
        G.diff_augment(x, rng()),
        G.diff_augment(x, rng("other")),
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert len({tuple(p.flatten().tolist()) for p in a}) > 3


def test_a_picture_is_changed_without_regard_to_its_neighbours():
    x = noise(4, 3, 16, 16)
    y = x.clone()
    y[0] = 0.5
    assert torch.equal(G.diff_augment(x, rng())[1:], G.diff_augment(y, rng())[1:])


def test_shift_moves_by_whole_pixels_and_brings_in_paper():
    """One dark pixel in the middle.

    It moves by at most 2 of 16 pixels, all ways equally often; nothing else changes.
    """
    x = torch.ones(2000, 1, 16, 16)
    x[:, :, 8, 8] = -1
    out = G.diff_augment(x, rng(), translation=0.125, cutout=0.0)
    _, _, rows, columns = (out == -1).nonzero(as_tuple=True)
    assert len(rows) == 2000 and ((out == 1) | (out == -1)).all()
    for at in (rows, columns):
        counts = torch.bincount(at - 6, minlength=5)
        assert len(counts) == 5 and counts.min() > 300  # 400 each


def test_paper_and_not_darkness_comes_in_at_the_edge():
    out = G.diff_augment(
        torch.zeros(200, 3, 16, 16), rng(), translation=0.125, cutout=0.0
    )
    assert set(out.unique().tolist()) == {0.0, 1.0}


def test_hole_has_the_right_size_and_does_not_leave_the_picture():
    x = torch.ones(500, 1, 16, 16)
    holes = (
        (G.diff_augment(x, rng(), translation=0.0, cutout=0.5) == 0).flatten(1).sum(1)
    )
    assert holes.max() == 64 and holes.min() >= 16


def test_slopes_come_back_through_it():
    """What D says of a changed picture must reach the pixels that are still to be seen,
    each of them once.
    """
    x = noise(5, 3, 16, 16).requires_grad_()
    out = G.diff_augment(x, rng())
    out.sum().backward()
    assert set(x.grad.unique().tolist()) == {0.0, 1.0} and 0.3 < x.grad.mean() < 0.95


def test_colours_are_left_alone():
    """No colour jitter: a caption that says red must stay true. Every pixel is an old
    one, paper, or the hole.
    """
    drawn = critters.render([critters.Critter("dragon", "red", "blue")], 16)
    old = {tuple(p) for p in drawn[0].flatten(1).T.tolist()} | {(1.0,) * 3, (0.0,) * 3}
    assert {
        tuple(p) for p in G.diff_augment(drawn, rng())[0].flatten(1).T.tolist()
    } <= old


@pytest.mark.parametrize("name", ["translation", "cutout"])
@pytest.mark.parametrize("value", [-0.1, 1.0, 2.0, float("nan")])
def test_senseless_strengths_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name} must be at least 0 and less than 1"):
        G.diff_augment(noise(1, 3, 16, 16), rng(), **{name: value})


def test_other_sizes_and_types():
    for size in (8, 32):
        x = noise(2, 3, size, size).to(torch.bfloat16)
        assert (
            G.diff_augment(x, rng()).dtype == torch.bfloat16
            and G.diff_augment(x, rng()).shape == x.shape
        )


# ---- the networks


def test_shapes_range_and_independence(pair):
    g, d = pair
    x = g(noise(4, 32))
    assert x.shape == (4, 3, 16, 16) and x.abs().max() <= 1 and d(x).shape == (4,)
    assert torch.allclose(
        d(x)[:2], d(x[:2]), atol=1e-5
    )  # nobody's score depends on the neighbours


def test_every_weight_gets_a_slope_in_the_first_step(pair):
    g, d = pair
    G.nonsaturating_g_loss(d(g(noise(8, 32)))).backward()
    assert all(p.grad.abs().max() > 0 for m in pair for p in m.parameters())


def test_a_handful_of_pictures_is_enough_to_begin(pair):
    "GG-13: a peer refuses fewer than a hundred pictures."
    g, d = pair
    optimizer = torch.optim.Adam(d.parameters(), 1e-3)
    assert G.discriminator_step(
        g,
        d,
        optimizer,
        noise(2, 3, 16, 16),
        rng(),
        0.5,
        lambda x: G.diff_augment(x, rng()),
    )
