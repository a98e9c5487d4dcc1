"""Chapter 30: schedules, the forward process, prediction targets and loss weights."""

import math

import diffusers
import pytest
import torch
from diffusers.training_utils import compute_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_tutorial.core import UserError
from t2i_tutorial.diffusion import noise as N

ALL = [(name, ends) for name in N.NOISE_SCHEDULES for ends in (False, True)]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )


@pytest.fixture(params=ALL, ids=lambda p: f"{p[0]}{'-zero' if p[1] else ''}")
def schedule(request):
    return N.make_noise_schedule(request.param[0], zero_terminal_snr=request.param[1])


# ---- tables


def test_linear_table_equals_diffusers():
    theirs = diffusers.DDPMScheduler(beta_schedule="linear").alphas_cumprod
    assert torch.allclose(N.linear_alpha_bar().float(), theirs, rtol=1e-5)


def test_cosine_table_equals_diffusers():
    "MI-13: a peer knows the linear schedule only, for every size."
    theirs = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    assert torch.allclose(N.cosine_alpha_bar().float(), theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "name, kind", [("linear", "linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_zero_terminal_table_equals_diffusers(name, kind):
    theirs = diffusers.DDIMScheduler(
        beta_schedule=kind, rescale_betas_zero_snr=True
    ).alphas_cumprod
    assert torch.allclose(
        N.make_noise_schedule(name).alpha_bar.float(), theirs, atol=2e-6
    )


def test_tables_are_in_float64_and_float32_would_lose_digits(schedule):
    assert (
        schedule.alpha_bar.dtype
        == schedule.snr.dtype
        == schedule.log_snr.dtype
        == torch.float64
    )
    s = 1 - schedule.alpha_bar[:5]
    assert ((1 - schedule.alpha_bar[:5].float()).double() / s - 1).abs().max() > 1e-5


@pytest.mark.parametrize("T", [21, 50, 250, 1000, 4000])
@pytest.mark.parametrize("name", N.NOISE_SCHEDULES)
@pytest.mark.parametrize("size", [16, 32, 64, 256])
def test_snr_falls_strictly_and_power_is_kept(name, T, size):
    for ends in (True, False):
        s = N.make_noise_schedule(name, T, ends, size)
        assert (
            len(s) == T
            and (s.snr.diff() < 0).all()
            and (s.alpha_bar >= 0).all()
            and (s.alpha_bar < 1).all()
        )
        alpha, sigma = s.alpha_sigma(torch.arange(T), randn(T, 1))
        assert torch.allclose(
            alpha**2 + sigma**2, torch.ones(T, 1, dtype=torch.float64), atol=1e-12
        )


@pytest.mark.parametrize("name", N.NOISE_SCHEDULES)
def test_betas_are_in_range(name):
    a = torch.cat([torch.ones(1, dtype=torch.float64), N.NOISE_SCHEDULES[name]()])
    betas = 1 - a[1:] / a[:-1]
    assert (betas > 0).all() and betas.max() <= 0.999 + 1e-9


def test_linear_ends_equally_noisy_for_any_length():
    ends = torch.stack([N.linear_alpha_bar(T)[-1].log() for T in (200, 1000, 4000)])
    assert (ends - ends[1]).abs().max() < 0.6


def test_zero_terminal_keeps_the_first_and_is_exactly_zero_at_the_end():
    for make in N.NOISE_SCHEDULES.values():
        before, after = make(), N.rescale_zero_terminal_snr(make())
        assert (
            after[-1] == 0
            and math.isclose(after[0], before[0], rel_tol=1e-12)
            and (after <= before + 1e-12).all()
        )
        assert (
            N.NoiseSchedule(after).log_snr[-1] == -math.inf
            and not N.NoiseSchedule(after).snr.isnan().any()
        )


@settings(max_examples=50, deadline=None)
@given(size=st.integers(8, 1024), reference=st.integers(8, 256))
def test_shift_divides_the_snr_by_the_number_of_pixels(size, reference):
    a = N.cosine_alpha_bar(100)
    s, shifted = N.NoiseSchedule(a), N.NoiseSchedule(N.shift_snr(a, size, reference))
    assert torch.allclose(shifted.snr, s.snr * (reference / size) ** 2, rtol=1e-8)


def test_averaged_large_images_are_as_noisy_as_small_ones():
    """What `shift_snr` is for: the mean of 2 x 2 pixels at 64 px has the SNR of one
    pixel at 32 px."""
    t = torch.tensor([600])
    small, large = (
        N.make_noise_schedule(zero_terminal_snr=False),
        N.make_noise_schedule(zero_terminal_snr=False, size=64),
    )
    xt, _ = N.add_noise(
        torch.ones(1, 1, 512, 512, dtype=torch.float64), t, large, randn(1, 1, 512, 512)
    )
    means = torch.nn.functional.avg_pool2d(xt, 2)
    assert means.mean() ** 2 / means.var() == pytest.approx(
        small.snr[600].item(), rel=0.05
    )


# ---- the forward process in closed form


def test_closed_form_equals_step_by_step(schedule):
    "Mean and variance of x_t given x_0, followed beta by beta in plain Python."
    mean, variance, before = 1.0, 0.0, 1.0
    alpha, sigma = schedule.alpha_sigma(torch.arange(1000), randn(1000, 1))
    for t, now in enumerate(schedule.alpha_bar.tolist()):
        beta = 1 - now / before
        mean, variance, before = (
            math.sqrt(1 - beta) * mean,
            (1 - beta) * variance + beta,
            now,
        )
        assert math.isclose(alpha[t], mean, abs_tol=1e-12) and math.isclose(
            sigma[t] ** 2, variance, abs_tol=1e-12
        )


@pytest.mark.parametrize("t", [0, 250, 500, 999])
def test_moments_by_monte_carlo(schedule, t):
    x0 = torch.full((200_000, 1), 0.8)
    xt, eps = N.add_noise(
        x0, torch.full((200_000,), t), schedule, randn(200_000, 1, dtype=torch.float32)
    )
    alpha, sigma = (k.item() for k in schedule.alpha_sigma(torch.tensor([t]), x0[:1]))
    assert abs(
        xt.mean() - 0.8 * alpha
    ) < 4 * sigma / 200_000**0.5 + 1e-4 and xt.std() == pytest.approx(sigma, rel=0.01)
    assert torch.equal(xt, alpha * x0 + sigma * eps)


def test_closed_form_equals_diffusers(schedule):
    theirs = diffusers.DDPMScheduler()
    theirs.alphas_cumprod = schedule.alpha_bar
    x0, eps, t = (
        randn(16, 3, 8, 8),
        randn(16, 3, 8, 8, seed=1),
        torch.randint(0, 1000, (16,), generator=torch.Generator().manual_seed(0)),
    )
    assert torch.allclose(
        N.add_noise(x0, t, schedule, eps)[0], theirs.add_noise(x0, eps, t), atol=1e-12
    )


def test_noise_is_drawn_where_none_is_given_and_shapes_are_free(schedule):
    for shape in ((5,), (5, 2), (5, 3, 4, 4)):
        x0 = torch.zeros(shape)
        xt, eps = N.add_noise(x0, torch.arange(5) * 200, schedule)
        assert (
            xt.shape == eps.shape == shape
            and xt.dtype == torch.float32
            and (eps != 0).all()
        )


# ---- what squared error teaches: the posterior mean and the score


MODES, WEIGHTS, WIDTH = (-1.5, 0.65), (0.3, 0.7), 0.15


def two_modes(xt, alpha, sigma):
    "Posterior mean of x0 and log density of xt for a mixture of two Gaussians."
    modes, weights = torch.tensor(MODES).double(), torch.tensor(WEIGHTS).double()
    variance = alpha**2 * WIDTH**2 + sigma**2
    offset = xt[:, None] - alpha * modes
    log_joint = weights.log() - offset**2 / (2 * variance)
    mean = modes + alpha * WIDTH**2 / variance * offset
    return (log_joint.softmax(1) * mean).sum(1), log_joint.logsumexp(1)


@pytest.mark.parametrize("t", [50, 500, 950])
def test_tweedies_formula(schedule, t):
    "The posterior mean holds the score, and the mean noise is the score times -sigma."
    xt = torch.linspace(-2, 2, 33, dtype=torch.float64, requires_grad=True)
    alpha, sigma = (k[0] for k in schedule.alpha_sigma(torch.tensor([t]), randn(1)))
    mean, log_density = two_modes(xt, alpha, sigma)
    (score,) = torch.autograd.grad(log_density.sum(), xt)
    assert torch.allclose((xt + sigma**2 * score) / alpha, mean, atol=1e-6)
    eps = N.eps_from_x0(mean, xt, torch.full((33,), t), schedule)
    assert torch.allclose(eps, -sigma * score, atol=1e-6)


def test_the_posterior_mean_has_the_least_squared_error():
    "By Monte Carlo: no shifted or scaled version of it does better."
    s, n = N.make_noise_schedule(), 200_000
    g = torch.Generator().manual_seed(0)
    mode = torch.multinomial(torch.tensor(WEIGHTS), n, replacement=True, generator=g)
    x0 = torch.tensor(MODES).double()[mode] + WIDTH * randn(n, seed=2)
    t = torch.full((n,), 500)
    xt, eps = N.add_noise(x0, t, s, randn(n, seed=1))
    alpha, sigma = (k[0] for k in s.alpha_sigma(t[:1], xt[:1]))
    mean, _ = two_modes(xt, alpha, sigma)
    best = (mean - x0).square().mean()
    for other in (mean + 0.05, mean - 0.05, 1.1 * mean, 0.9 * mean, xt / alpha):
        assert (other - x0).square().mean() > best
    assert (eps - N.eps_from_x0(mean, xt, t, s)).square().mean() < (
        eps - N.eps_from_x0(1.1 * mean, xt, t, s)
    ).square().mean()


# ---- the start of sampling and the last timestep


def sample(images, schedule, x, num_steps=50):
    "DDIM with the exact denoiser of a finite set of images."
    y = images.flatten(1).double()
    times = torch.linspace(len(schedule) - 1, 0, num_steps).round().long()
    for t, s in zip(times, [*times[1:], None]):
        alpha, sigma = (k[0] for k in schedule.alpha_sigma(t[None], y[:1]))
        distances = torch.cdist(x.flatten(1).double(), alpha * y)
        x0 = ((-(distances**2) / (2 * sigma**2)).softmax(1) @ y).view(x.shape).to(x)
        if s is None:
            return x0
        eps = N.eps_from_x0(x0, x, t.expand(len(x)), schedule)
        x, _ = N.add_noise(x0, s.expand(len(x)), schedule, eps)


def stable_diffusion_table():
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    return (1 - roots**2).cumprod(0)


def test_a_leaking_table_does_no_harm_to_a_single_image():
    image = randn(1, 3, 8, 8, dtype=torch.float32).clamp(-1, 1)
    for table in (stable_diffusion_table(), N.linear_alpha_bar(), N.cosine_alpha_bar()):
        x = sample(image, N.NoiseSchedule(table), randn(16, 3, 8, 8).float())
        assert torch.allclose(x, image.expand_as(x), atol=1e-5)


def test_a_leaking_table_turns_white_into_grey_and_zero_terminal_snr_mends_it():
    images = torch.stack([torch.ones(3, 32, 32), torch.zeros(3, 32, 32)])
    start = randn(64, 3, 32, 32).float()

    def white(table):
        return (sample(images, N.NoiseSchedule(table), start) > 0.5).double().mean()

    table = stable_diffusion_table()
    assert white(table) < 0.25
    assert 0.35 < white(N.rescale_zero_terminal_snr(table)) < 0.65
    assert 0.35 < white(N.cosine_alpha_bar()) < 0.65


def test_float32_would_lose_digits_of_sigma():
    """Relative error of 1 - alpha_bar and of alpha_bar if the linear table ran in
    float32."""
    single = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    exact = N.linear_alpha_bar()
    lost = ((1 - single).double() / (1 - exact) - 1).abs()
    assert lost[:10].max() > 1e-4 and lost.max() > 1000 * 2**-24
    assert (single.double() / exact - 1).abs().max() < lost.max()


def test_the_cosine_schedule_has_fewer_hopeless_timesteps():
    linear, cosine = (
        N.NoiseSchedule(f()) for f in (N.linear_alpha_bar, N.cosine_alpha_bar)
    )
    hopeless = [(s.log_snr < -4).double().mean() for s in (linear, cosine)]
    assert hopeless[1] < hopeless[0] / 2
    assert abs(cosine.log_snr.abs().argmin() - 500) < 10
    assert linear.log_snr.abs().argmin() < 300


def test_v_turns_errors_into_the_smaller_of_the_two():
    s = N.make_noise_schedule()
    alpha, sigma = s.alpha_bar[:-1].sqrt(), (1 - s.alpha_bar[:-1]).sqrt()
    assert (sigma / alpha).max() > 100 and sigma.max() <= 1
    x0, eps, t = randn(4, 8), randn(4, 8, seed=1), torch.tensor([0, 300, 700, 998])
    xt, _ = N.add_noise(x0, t, s, eps)
    for k, size in (("eps", sigma / alpha), ("v", sigma), ("x0", alpha**0)):
        target = N.prediction_target(k, x0, eps, t, s)
        wrong = N.x0_from_prediction(k, target + 1, xt, t, s)
        assert torch.allclose((wrong - x0).abs(), size[t][:, None].expand(4, 8))


# ---- targets


def test_v_equals_diffusers(schedule):
    "MI-13: a peer has no v."
    theirs = diffusers.DDPMScheduler()
    theirs.alphas_cumprod = schedule.alpha_bar
    x0, eps, t = randn(16, 3, 8, 8), randn(16, 3, 8, 8, seed=1), torch.arange(16) * 66
    assert torch.allclose(
        N.prediction_target("v", x0, eps, t, schedule),
        theirs.get_velocity(x0, eps, t),
        atol=1e-12,
    )


@settings(max_examples=60, deadline=None)
@given(
    t=st.integers(0, 998),
    prediction_type=st.sampled_from(N.PREDICTION_TYPES),
    which=st.sampled_from(ALL),
    seed=st.integers(0, 1000),
)
def test_conversions_round_trip(t, prediction_type, which, seed):
    s = N.make_noise_schedule(which[0], zero_terminal_snr=which[1])
    x0, eps, t = (
        randn(2, 3, 4, 4, seed=seed),
        randn(2, 3, 4, 4, seed=seed + 1),
        torch.full((2,), t),
    )
    xt, _ = N.add_noise(x0, t, s, eps)
    target = N.prediction_target(prediction_type, x0, eps, t, s)
    back = N.x0_from_prediction(prediction_type, target, xt, t, s)
    assert torch.allclose(back, x0, atol=1e-8) and torch.allclose(
        N.eps_from_x0(back, xt, t, s), eps, atol=1e-8
    )


def test_at_pure_noise_only_eps_says_nothing():
    s, t = N.make_noise_schedule(), torch.tensor([999])
    x0, eps = randn(1, 8), randn(1, 8, seed=1)
    xt, _ = N.add_noise(x0, t, s, eps)
    assert torch.equal(xt, eps) and torch.equal(
        N.prediction_target("v", x0, eps, t, s), -x0
    )
    for target, finite in (("v", True), ("x0", True), ("eps", False)):
        back = N.x0_from_prediction(
            target, N.prediction_target(target, x0, eps, t, s), xt, t, s
        )
        assert back.isfinite().all() == finite and (not finite or torch.equal(back, x0))


# ---- weights


@pytest.mark.parametrize("loss_weighting", ["x0", "min-snr", "min-snr+1"])
@pytest.mark.parametrize("name", N.NOISE_SCHEDULES)
def test_the_three_targets_weigh_the_same_error_alike(name, loss_weighting):
    s, t = (
        N.make_noise_schedule(name, zero_terminal_snr=False),
        torch.arange(0, 1000, 37),
    )
    x0, guess, eps = (randn(len(t), 8, seed=k) for k in range(3))
    xt, _ = N.add_noise(x0, t, s, eps)

    def loss(k):
        right, wrong = (
            N.prediction_target(k, x, N.eps_from_x0(x, xt, t, s), t, s)
            for x in (x0, guess)
        )
        return N.loss_weight(t, s, k, loss_weighting) * (right - wrong).square().mean(1)

    assert torch.allclose(loss("eps"), loss("x0"), rtol=1e-5) and torch.allclose(
        loss("v"), loss("x0"), rtol=1e-5
    )


def test_min_snr_is_what_the_paper_says():
    """min(SNR, 5) in x0, over SNR for eps, over SNR + 1 for v, with the SNR of
    diffusers."""
    s, t = N.make_noise_schedule(zero_terminal_snr=False), torch.arange(0, 1000, 7)
    theirs = diffusers.DDPMScheduler()
    theirs.alphas_cumprod = s.alpha_bar
    snr = compute_snr(theirs, t)
    for target, by in (("x0", 1), ("eps", snr), ("v", snr + 1)):
        assert torch.allclose(
            N.loss_weight(t, s, target), (snr.clamp(max=5) / by).float(), rtol=1e-4
        )


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_weights_at_both_ends_of_a_zero_terminal_schedule(gamma):
    """Plain min-SNR with v forgets the timestep at which sampling begins; SNR + 1
    keeps it."""
    s, last = N.make_noise_schedule(), torch.tensor([999])
    assert (
        N.loss_weight(last, s, "v", "min-snr", gamma) == 0
        and N.loss_weight(last, s, "v", "min-snr+1", gamma) == 1
    )
    assert N.loss_weight(last, s, "x0", "x0") == N.loss_weight(last, s, "v", "x0") == 1
    for weighting in N.LOSS_WEIGHTINGS:
        for target in ("x0", "v"):
            w = N.loss_weight(torch.arange(1000), s, target, weighting, gamma)
            assert w.isfinite().all() and (w >= 0).all() and w.dtype == torch.float32


def test_uniform_is_one(schedule):
    for target in N.PREDICTION_TYPES:
        assert (
            N.loss_weight(torch.arange(1000), schedule, target, "uniform") == 1
        ).all()


# ---- mistakes


@pytest.mark.parametrize(
    "do, message",
    [
        (lambda: N.make_noise_schedule("cosin"), "did you mean 'cosine'"),
        (lambda: N.make_noise_schedule(num_timesteps=1), "at least 2 timesteps, not 1"),
        (
            lambda: N.make_noise_schedule("linear", num_timesteps=20),
            "more than 20 timesteps, not 20",
        ),
        (
            lambda: N.rescale_zero_terminal_snr(N.cosine_alpha_bar(1)),
            "at least 2 timesteps, not 1",
        ),
        (
            lambda: N.prediction_target(
                "noise",
                randn(1, 1),
                randn(1, 1),
                torch.tensor([0]),
                N.make_noise_schedule(),
            ),
            "unknown prediction_type 'noise'",
        ),
        (
            lambda: N.x0_from_prediction(
                "V",
                randn(1, 1),
                randn(1, 1),
                torch.tensor([0]),
                N.make_noise_schedule(),
            ),
            "did you mean 'v'",
        ),
        (
            lambda: N.loss_weight(
                torch.tensor([0]), N.make_noise_schedule(), "v", "snr"
            ),
            "unknown loss_weighting 'snr'",
        ),
        (
            lambda: N.loss_weight(
                torch.tensor([0]), N.make_noise_schedule(), "eps", "min-snr+1"
            ),
            "no signal is left",
        ),
    ],
)
def test_a_mistake_is_one_line(do, message):
    with pytest.raises(UserError, match=message) as e:
        do()
    assert "\n" not in str(e.value)
