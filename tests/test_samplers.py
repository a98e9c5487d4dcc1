"""Chapter 34: steps, the loop, exact moments on a Gaussian, and parity with
diffusers."""

import math
from functools import partial

import diffusers
import pytest
import torch

from t2i_tutorial.core import UserError
from t2i_tutorial.diffusion import samplers as S
from t2i_tutorial.diffusion.noise import (
    NoiseSchedule,
    add_noise,
    make_noise_schedule,
    prediction_target,
    x0_from_prediction,
)

MEAN, SPREAD = 0.4, 0.5
TARGETS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def gaussian(schedule):
    "The exact denoiser of a Gaussian."

    def denoise(x, t):
        power = schedule.alpha_bar[t]
        return MEAN + power.sqrt() * SPREAD**2 / (power * SPREAD**2 + 1 - power) * (
            x - power.sqrt() * MEAN
        )

    return denoise


def moments(schedule, sampler, steps, eta=0.0):
    """Exact mean and spread of the samples: a run is affine in each noise, so one
    unit of each is enough."""
    units = iter(
        torch.eye(steps + 2, dtype=torch.float64)[1:]
    )  # call k: a 1 in row k, never one in row 0
    x = S.run_sampler(
        gaussian(schedule), lambda: next(units), schedule, steps, sampler, eta
    )
    return x[0].item(), (x[1:] - x[0]).square().sum().sqrt().item()


# ---- timesteps


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20, 30, 64, 250, 999, 1000])
def test_timesteps_fall_from_the_last_and_equal_diffusers(steps):
    ours = S.sampling_timesteps(1000, steps)
    assert (
        ours[0] == 999
        and len(ours) == steps
        and all(a > b for a, b in zip(ours, ours[1:]))
        and ours[-1] >= 0
    )
    for scheduler in (
        diffusers.DDPMScheduler,
        diffusers.DDIMScheduler,
        diffusers.DPMSolverMultistepScheduler,
    ):
        theirs = scheduler(timestep_spacing="trailing")
        theirs.set_timesteps(steps)
        assert theirs.timesteps.tolist()[:steps] == ours


# ---- a Gaussian with the exact denoiser


@pytest.mark.parametrize(
    "name, ends",
    [("cosine", True), ("cosine", False), ("linear", True), ("linear", False)],
)
@pytest.mark.parametrize(
    "sampler, eta",
    [("dpmpp-2m", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("ddpm", 0.0)],
)
def test_all_steps_recover_mean_and_spread(sampler, eta, name, ends):
    """MI-13: a peer has ancestral DDPM only. On a Gaussian every sampler must
    recover both moments."""
    mean, spread = moments(
        make_noise_schedule(name, zero_terminal_snr=ends), sampler, 1000, eta
    )
    assert mean == pytest.approx(MEAN, abs=4e-3) and spread == pytest.approx(
        SPREAD, rel=0.01
    )


def test_moments_by_monte_carlo():
    "The exact moments are those of many samples."
    s = make_noise_schedule()
    for sampler in S.SAMPLERS:
        g = generator(1)
        x = S.run_sampler(
            gaussian(s),
            partial(torch.randn, 100_000, generator=g, dtype=torch.float64),
            s,
            15,
            sampler,
        )
        mean, spread = moments(s, sampler, 15)
        assert abs(x.mean() - mean) < 0.008 and x.std() == pytest.approx(
            spread, rel=0.01
        )


@pytest.mark.parametrize("sampler", S.SAMPLERS)
def test_error_falls_with_steps(sampler):
    s = make_noise_schedule()
    error = [abs(moments(s, sampler, n)[1] - SPREAD) for n in (3, 10, 30, 100, 300)]
    assert all(b < a for a, b in zip(error, error[1:])) and error[-1] < error[0] / 20


def test_second_order_pays():
    """At 20 steps the error of DPM-Solver++(2M) is less than a tenth of DDIM's, and
    DDIM's less than DDPM's."""
    s = make_noise_schedule()
    dpmpp, ddim, ddpm = (abs(moments(s, k, 20)[1] - SPREAD) for k in S.SAMPLERS)
    assert dpmpp < ddim / 10 and ddim < ddpm


def test_order_of_convergence():
    """Ten times the steps: DDIM's error falls by ten (first order), DPM-
    Solver++(2M)'s by far more, on timesteps inside the schedule."""
    s = make_noise_schedule("linear", num_timesteps=4000, zero_terminal_snr=False)

    def times(n):
        return [round(3200 - k * 2800 / n) for k in range(n + 1)]

    def end(n, memory):
        x, last, d = torch.tensor([0.0, 1.0], dtype=torch.float64), None, gaussian(s)
        ts = times(n)
        for t, u in zip(ts, ts[1:]):
            now, then, x0 = S._amplitudes(s, t), S._amplitudes(s, u), d(x, t)
            x = S.dpmpp_2m_step(x, x0, now, then, last)
            if memory:
                last = (x0, math.log(now[0] / now[1]))
        return x

    exact = end(2800, True)
    error = {
        (n, m): (end(n, m) - exact).abs().max().item()
        for n in (20, 200)
        for m in (False, True)
    }
    assert (
        7 < error[20, False] / error[200, False] < 14
        and error[20, True] / error[200, True] > 40
    )


# ---- the probability-flow ODE


def test_ddim_is_eulers_method_for_the_probability_flow_ode():
    "In x / alpha and sigma / alpha a step is the step size times the predicted noise."
    s = make_noise_schedule()
    for t, u in ((998, 900), (700, 600), (100, 40), (30, -1)):
        current, after = S._amplitudes(s, t), S._amplitudes(s, u)
        x, x0 = randn(32), randn(32, seed=1)
        (a, sigma), (a2, sigma2) = current, after
        euler = x / a + (sigma2 / a2 - sigma / a) * (x - a * x0) / sigma
        ours = S.ddim_step(x, x0, current, after) / a2
        assert torch.allclose(ours, euler, rtol=1e-9, atol=1e-9)


def test_the_ode_keeps_the_marginals():
    """For a Gaussian, small DDIM steps give mean and spread of noisy data at every
    level."""
    s, x = make_noise_schedule(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    for t in range(999, 0, -1):
        x0 = gaussian(s)(x, t)
        x = S.ddim_step(x, x0, S._amplitudes(s, t), S._amplitudes(s, t - 1))
        a, sigma = S._amplitudes(s, t - 1)
        assert x[0].item() == pytest.approx(a * MEAN, abs=4e-3)
        spread = math.sqrt(a**2 * SPREAD**2 + sigma**2)
        assert x.diff().item() == pytest.approx(spread, rel=0.01)


@pytest.mark.parametrize("t", [50, 500, 990])
def test_v_is_the_preconditioning_of_karras_with_unit_data(t):
    "c_skip x + c_out F is x0 for F = -v, and c_in x is our x_t (Karras et al. 2022)."
    s, x0, eps = make_noise_schedule(), randn(8), randn(8, seed=1)
    times = torch.full((8,), t)
    xt, _ = add_noise(x0, times, s, eps)
    v = prediction_target("v", x0, eps, times, s)
    a, sigma = S._amplitudes(s, t)
    x, level = xt / a, sigma / a
    c_skip, c_out = 1 / (level**2 + 1), level / (level**2 + 1) ** 0.5
    assert torch.allclose(c_skip * x + c_out * -v, x0, atol=1e-9)
    assert torch.allclose(x / (level**2 + 1) ** 0.5, xt, atol=1e-9)


# ---- identities


@pytest.mark.parametrize("ends", [True, False])
def test_eta_one_equals_ddpm(ends):
    "With all 1,000 steps and the same noise, DDIM with eta = 1 is DDPM."
    s, out = make_noise_schedule(zero_terminal_snr=ends), []
    for sampler, eta in (("ddim", 1.0), ("ddpm", 0.0)):
        g = generator(2)
        out.append(
            S.run_sampler(
                lambda x, t: torch.tanh(2 * x),
                partial(torch.randn, 64, generator=g, dtype=torch.float64),
                s,
                1000,
                sampler,
                eta,
            )
        )
    assert torch.allclose(*out, atol=1e-8)


def test_eta_one_is_finite_from_pure_noise():
    s = make_noise_schedule()
    for steps in (2, 5, 8, 20):
        assert (
            run_ours(s, predictor("v", s), "v", steps, (4, 3, 8, 8), "ddim", 1.0)
            .isfinite()
            .all()
        )


def test_dpmpp_without_a_previous_prediction_is_ddim():
    s = make_noise_schedule()
    for t, u in ((999, 900), (700, 600), (100, 40), (30, -1)):
        now, then, x, x0 = (
            S._amplitudes(s, t),
            S._amplitudes(s, u),
            randn(32),
            randn(32, seed=1),
        )
        assert torch.allclose(
            S.dpmpp_2m_step(x, x0, now, then), S.ddim_step(x, x0, now, then), atol=1e-12
        )


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t, u", [(999, 800), (800, 300), (300, 0)])
def test_a_true_prediction_keeps_the_marginal(t, u, eta):
    "If the prediction is the truth, x_s is distributed as the forward process says."
    s, x0 = make_noise_schedule(), torch.full((200_000,), 0.7, dtype=torch.float64)
    xt, _ = add_noise(x0, torch.full((200_000,), t), s, randn(200_000))
    now, then = S._amplitudes(s, t), S._amplitudes(s, u)
    for x in (
        S.ddim_step(xt, x0, now, then, eta, randn(200_000, seed=1)),
        S.ddpm_step(xt, x0, now, then, randn(200_000, seed=1)),
        S.dpmpp_2m_step(xt, x0, now, then),
    ):
        assert abs(x.mean() - then[0] * 0.7) < 0.01 and x.std() == pytest.approx(
            then[1], rel=0.01
        )


@pytest.mark.parametrize("sampler", S.SAMPLERS)
def test_one_step_is_the_prediction_and_a_constant_prediction_is_reached(sampler):
    s, goal = make_noise_schedule(), randn(2, 3, 4, 4)
    assert torch.equal(
        S.run_sampler(
            lambda x, t: goal, lambda: randn(2, 3, 4, 4, seed=1), s, 1, sampler
        ),
        goal,
    )
    assert torch.allclose(
        S.run_sampler(
            lambda x, t: goal, lambda: randn(2, 3, 4, 4, seed=1), s, 7, sampler
        ),
        goal,
        atol=1e-12,
    )


# ---- parity, in float64, so that 1e-5 tells a formula from a rounding (diffusers' DPM-
# Solver++ goes through float32 all the same)


def run_theirs(scheduler, schedule, predict, steps, shape, **more):
    g = generator(3)
    scheduler.alphas_cumprod = schedule.alpha_bar
    scheduler.set_timesteps(steps)
    if not isinstance(scheduler, diffusers.DPMSolverMultistepScheduler):
        more["generator"] = g
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, int(t)), t, x, **more).prev_sample
    return x


def run_ours(schedule, predict, target, steps, shape, sampler, eta=0.0):
    g = generator(3)

    def denoise(x, t):
        times = torch.full((len(x),), t)
        return x0_from_prediction(target, predict(x, t), x, times, schedule)

    return S.run_sampler(
        denoise,
        lambda: torch.randn(shape, generator=g, dtype=torch.float64),
        schedule,
        steps,
        sampler,
        eta,
    )


def predictor(target, schedule):
    """A denoiser that is wrong, but sane, in the terms of a target: x0 is a squashed
    x_t."""

    def predict(x, t):
        t = torch.full((len(x),), t)
        x0 = torch.tanh(1.5 * x)
        if target == "x0":
            return x0
        alpha, sigma = schedule.alpha_sigma(t, x)
        return prediction_target(target, x0, (x - alpha * x0) / sigma, t, schedule)

    return predict


TABLES = [
    (name, ends, target)
    for name in ("cosine", "linear")
    for ends in (False, True)
    for target in TARGETS
    if not (target == "eps" and ends)
]  # eps has no answer at an SNR of 0


@pytest.mark.parametrize("name, ends, target", TABLES)
@pytest.mark.parametrize("steps", [1, 5, 20, 30, 100])
def test_ddpm_equals_diffusers(name, ends, target, steps):
    s = make_noise_schedule(name, zero_terminal_snr=ends)
    theirs = diffusers.DDPMScheduler(
        clip_sample=False,
        thresholding=False,
        variance_type="fixed_small",
        prediction_type=TARGETS[target],
        timestep_spacing="trailing",
    )
    a = run_theirs(theirs, s, predictor(target, s), steps, (4, 3, 8, 8))
    assert (
        a - run_ours(s, predictor(target, s), target, steps, (4, 3, 8, 8), "ddpm")
    ).abs().max() < 1e-5


@pytest.mark.parametrize("name, ends, target", TABLES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 5, 20, 100])
def test_ddim_equals_diffusers(name, ends, target, steps, eta):
    """Steps divide 1,000: diffusers' DDIM takes whole strides, which trailing
    timesteps of other counts do not keep.

    From an SNR of 0 its eta stays a little below 1, where rounding can make it take
    the root of a negative number.
    """
    s = make_noise_schedule(name, zero_terminal_snr=ends)
    if ends:
        eta = min(eta, 0.999)
    theirs = diffusers.DDIMScheduler(
        clip_sample=False,
        thresholding=False,
        set_alpha_to_one=True,
        prediction_type=TARGETS[target],
        timestep_spacing="trailing",
    )
    a = run_theirs(theirs, s, predictor(target, s), steps, (4, 3, 8, 8), eta=eta)
    assert (
        a - run_ours(s, predictor(target, s), target, steps, (4, 3, 8, 8), "ddim", eta)
    ).abs().max() < 1e-5


def dpm_of_diffusers(target):
    return diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        thresholding=False,
        prediction_type=TARGETS[target],
        timestep_spacing="trailing",
    )


@pytest.mark.parametrize(
    "name, ends, target", [c for c in TABLES if c != ("cosine", False, "eps")]
)  # alpha 5e-5: float32 fails
@pytest.mark.parametrize("steps", [1, 2, 5, 14, 20, 30, 100])
def test_dpm_equals_diffusers(name, ends, target, steps):
    """diffusers puts 2**-24 where a zero-terminal table ends in 0, since its log-SNR
    must be finite; the same table goes to both here.

    It computes in float32: from eps, a single step divides its rounding by an alpha
    below 0.01, hence the wider bound there.
    """
    s = make_noise_schedule(name, zero_terminal_snr=ends)
    if ends:
        s = NoiseSchedule(s.alpha_bar.clamp(min=2**-24))
    a = run_theirs(
        dpm_of_diffusers(target), s, predictor(target, s), steps, (4, 3, 8, 8)
    )
    assert (
        a - run_ours(s, predictor(target, s), target, steps, (4, 3, 8, 8), "dpmpp-2m")
    ).abs().max() < (1e-4 if (target, steps) == ("eps", 1) else 1e-5)


def test_dpm_at_an_snr_of_exactly_zero():
    """Where diffusers has NaN, ours is finite, and close to what diffusers gives
    with 2**-24 in place of 0."""
    s, predict = make_noise_schedule(), predictor("v", make_noise_schedule())
    ours = run_ours(s, predict, "v", 50, (4, 3, 8, 8), "dpmpp-2m")
    assert run_theirs(dpm_of_diffusers("v"), s, predict, 50, (4, 3, 8, 8)).isnan().any()
    near = run_theirs(
        dpm_of_diffusers("v"),
        NoiseSchedule(s.alpha_bar.clamp(min=2**-24)),
        predict,
        50,
        (4, 3, 8, 8),
    )
    assert ours.isfinite().all() and (ours - near).abs().max() < 0.02


# ---- the loop


def test_every_step_is_yielded():
    s, g = make_noise_schedule(), generator(4)
    walk = list(
        S.iter_sampling(
            gaussian(s), lambda: torch.randn(5, generator=g, dtype=torch.float64), s, 12
        )
    )
    assert [t for t, _, _ in walk] == S.sampling_timesteps(1000, 12) and all(
        x.shape == x0.shape == (5,) for _, x0, x in walk
    )
    assert torch.equal(
        walk[-1][1], walk[-1][2]
    )  # the last step ends at its own prediction
    called = []
    again = S.run_sampler(
        gaussian(s),
        lambda: torch.randn(5, generator=generator(4), dtype=torch.float64),
        s,
        12,
        show_progress=True,
        callback=lambda *step: called.append(step),
    )
    assert torch.equal(again, walk[-1][2])
    assert [t for t, _, _ in called] == [t for t, _, _ in walk]
    for (_, x0, x), (_, x0_called, x_called) in zip(walk, called):
        assert torch.equal(x0, x0_called) and torch.equal(x, x_called)


@pytest.mark.parametrize("sampler, draws", [("dpmpp-2m", 1), ("ddim", 1), ("ddpm", 9)])
def test_noise_is_drawn_and_the_denoiser_called_as_often_as_said(sampler, draws):
    s, asked, drawn = make_noise_schedule(), [], []

    def noise():
        drawn.append(1)
        return torch.zeros(2)

    def denoise(x, t):
        asked.append(t)
        return x

    S.run_sampler(denoise, noise, s, 8, sampler)
    assert len(asked) == 8 and len(drawn) == draws


@pytest.mark.parametrize(
    "more, message",
    [
        (dict(sampler="dpm++"), "choose from: dpmpp-2m, ddim, ddpm"),
        (dict(sampler="dpmpp_2m"), "did you mean 'dpmpp-2m'"),
        (dict(num_steps=0), "from 1 to 1000, not 0"),
        (dict(num_steps=1001), "not 1001"),
        (dict(sampler="ddim", eta=1.5), "eta must be from 0 to 1, not 1.5"),
        (dict(sampler="ddim", eta=math.nan), "not nan"),
    ],
)
def test_a_mistake_is_one_line(more, message):
    with pytest.raises(UserError, match=message) as e:
        S.run_sampler(
            lambda x, t: x, lambda: torch.zeros(1), make_noise_schedule(), **more
        )
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("steps", [True, 2.5, "20"])
def test_steps_must_be_a_whole_number(untyped, steps):
    with pytest.raises(UserError, match="num_steps must be a whole number"):
        S.sampling_timesteps(1000, steps)
