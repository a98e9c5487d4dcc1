"""Chapter 20: the modulated convolution against a slow loop; scales and updates."""

import math

import pytest
import torch
import torch.nn.functional as F

from t2i_tutorial.core import (
    RESULTS_DIR,
    UserError,
    load_json,
    seed_everything,
    seeded_generator,
)
from t2i_tutorial.gan.modulation import (
    EqualConv2d,
    EqualLinear,
    ModulatedConv2d,
    ToRGB,
    modulated_conv2d,
    scaled_leaky_relu,
)


def randn(*shape, seed=0):
    return torch.randn(
        *shape, generator=seeded_generator(seed, "test modulation", *shape)
    )


def slowly(x, kernel, style, demodulate=True):
    "StyleGAN2's equations 1 and 3 output value by output value, in float64."
    x, kernel, style = x.double(), kernel.double(), style.double()
    (b, _, h, w), (o, _, k, _) = x.shape, kernel.shape[-4:]
    padded, y = F.pad(x, [k // 2] * 4), torch.zeros(b, o, h, w, dtype=torch.float64)
    for n in range(b):
        for c in range(o):
            mine = (kernel if kernel.ndim == 4 else kernel[n])[c] * style[n][
                :, None, None
            ]
            if demodulate:
                mine = mine / math.sqrt(mine.square().sum().item() + 1e-8)
            for r in range(h):
                for s in range(w):
                    y[n, c, r, s] = (mine * padded[n, :, r : r + k, s : s + k]).sum()
    return y


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("sides", [(2, 3), (7, 6)])
def test_equals_the_formula_in_float64(sides, kernel, demodulate):
    "Small maps (scaled) and large ones (copied kernels), shared and separate kernels."
    x, k, style = (
        randn(3, 4, *sides),
        randn(2, 4, kernel, kernel),
        1 + 0.5 * randn(3, 4),
    )
    for weight in (k, randn(3, 2, 4, kernel, kernel, seed=1)):
        expected = slowly(x, weight, style, demodulate)
        assert (
            modulated_conv2d(x.double(), weight.double(), style.double(), demodulate)
            - expected
        ).abs().max() < 1e-12
        assert (
            modulated_conv2d(x, weight, style, demodulate) - expected
        ).abs().max() < 1e-5


@pytest.mark.parametrize("side", [2, 12])
def test_both_ways_have_the_same_gradients(side):
    x, k, style = (
        randn(3, 4, side, side).double(),
        randn(5, 4, 3, 3).double(),
        (1 + 0.5 * randn(3, 4)).double(),
    )

    def gradients(spread):
        inputs = [t.clone().requires_grad_() for t in (x, k, style)]
        kernel = inputs[1].expand(3, -1, -1, -1, -1) if spread else inputs[1]
        return torch.autograd.grad(
            modulated_conv2d(inputs[0], kernel, inputs[2]).pow(3).sum(), inputs
        )

    for a, b in zip(gradients(False), gradients(True)):
        assert torch.allclose(a, b, atol=1e-9)
    assert torch.autograd.gradcheck(
        modulated_conv2d, tuple(t[:2].clone().requires_grad_() for t in (x, k, style))
    )


@pytest.mark.parametrize("side", [2, 12])
def test_samples_are_independent(side):
    "JZ-1: the batch is laid out as channels for one call; samples stay independent."
    x, k, style = randn(4, 6, side, side), randn(8, 6, 3, 3), 1 + 0.5 * randn(4, 6)
    together = modulated_conv2d(x, k, style)
    alone = torch.cat(
        [modulated_conv2d(x[n : n + 1], k, style[n : n + 1]) for n in range(4)]
    )
    assert torch.allclose(together, alone, atol=1e-5)
    other, said = x.clone(), style.clone()
    other[1], said[1] = 5, -2
    assert torch.equal(modulated_conv2d(other, k, said)[[0, 2, 3]], together[[0, 2, 3]])


def test_a_common_factor_of_a_demodulated_style_has_no_effect():
    x, k, style = randn(2, 6, 8, 8), randn(4, 6, 3, 3), 1 + 0.5 * randn(2, 6)
    assert torch.allclose(
        modulated_conv2d(x, k, 7 * style), modulated_conv2d(x, k, style), atol=1e-5
    )
    assert torch.allclose(
        modulated_conv2d(x, k, -style), -modulated_conv2d(x, k, style), atol=1e-6
    )
    assert torch.allclose(
        modulated_conv2d(x, k, 7 * style, demodulate=False),
        7 * modulated_conv2d(x, k, style, demodulate=False),
        atol=1e-4,
    )


@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
def test_scale_is_constant_whatever_the_style(factor):
    y = modulated_conv2d(
        randn(16, 64, 16, 16), randn(32, 64, 3, 3), factor * (1 + 0.5 * randn(16, 64))
    )
    assert 0.85 < y[..., 1:-1, 1:-1].square().mean().sqrt() < 1.15


def test_a_style_of_zeros_gives_zeros_and_finite_gradients():
    style = torch.zeros(2, 4, requires_grad=True)
    y = modulated_conv2d(randn(2, 4, 5, 5), randn(3, 4, 3, 3), style)
    y.sum().backward()
    assert not y.any() and style.grad.isfinite().all()


@pytest.mark.parametrize("lr_mul", [1.0, 0.01])
def test_output_of_a_mapping_network_does_not_depend_on_its_width(lr_mul):
    """GG-7: the output of eight layers has a scale near 1 at every width.

    Without 1 / sqrt(fan_in) it is 0.0012 at width 64 and 1.97 at width 512.
    """
    seed_everything(0)
    sizes = {}
    for c in (64, 512):
        x = randn(256, c)
        for _ in range(8):
            x = scaled_leaky_relu(EqualLinear(c, c, lr_mul=lr_mul)(x))
        sizes[c] = x.square().mean().sqrt().item()
    assert all(0.5 < s < 2 for s in sizes.values()), sizes


def relative_update(layer, x, lr=1e-3):
    "How far one step of Adam moves the scaled weights, relative to their norm."

    def used():
        return layer.weight.detach() * layer.scale

    before, optimizer = used().clone(), torch.optim.Adam(layer.parameters(), lr)
    layer(x).square().mean().backward()
    optimizer.step()
    return ((used() - before).norm() / before.norm()).item()


def test_learning_rate_is_equal_over_widths_and_lr_mul_slows_it_down():
    "GG-7: lr_mul changes how fast a layer learns and not its initial output."
    seed_everything(0)
    steps = [
        relative_update(EqualLinear(c, 64), randn(32, c)) for c in (16, 64, 256)
    ] + [relative_update(EqualConv2d(c, 16), randn(2, c, 6, 6)) for c in (8, 64)]
    assert all(abs(s - 1e-3) < 2e-4 for s in steps), steps
    assert (
        abs(relative_update(EqualLinear(64, 64, lr_mul=0.01), randn(32, 64)) - 1e-5)
        < 2e-6
    )
    torch.manual_seed(3)
    plain = EqualLinear(8, 8, bias=0.7)
    torch.manual_seed(3)
    slow = EqualLinear(8, 8, bias=0.7, lr_mul=0.01)
    assert torch.allclose(plain(randn(5, 8)), slow(randn(5, 8)), atol=1e-5)


def test_layers_equal_torch_with_scaled_weights():
    dense, conv, x, maps = (
        EqualLinear(12, 5, bias=0.5),
        EqualConv2d(12, 5, 3, stride=2),
        randn(4, 12),
        randn(2, 12, 9, 8),
    )
    assert torch.allclose(dense(x), x @ dense.weight.T / math.sqrt(12) + 0.5, atol=1e-6)
    assert torch.allclose(
        conv(maps),
        F.conv2d(maps, conv.weight / math.sqrt(12 * 9), stride=2, padding=1),
        atol=1e-6,
    )
    assert conv(maps).shape == (2, 5, 5, 4)


def test_scaled_leaky_relu_keeps_the_mean_square():
    assert abs(
        scaled_leaky_relu(randn(100_000)).square().mean() - 1
    ) < 0.02 and torch.equal(
        scaled_leaky_relu(torch.tensor([1.0])),
        -5 * scaled_leaky_relu(torch.tensor([-1.0])),
    )


def test_layer_starts_with_factors_of_one_and_depends_on_its_style():
    seed_everything(0)
    layer, x, w = ModulatedConv2d(16, 24, 3, 8), randn(3, 16, 6, 6), randn(3, 8)
    assert torch.equal(layer.style(torch.zeros(1, 8)), torch.ones(1, 16))
    assert (layer(x, w) - layer(x, w.flip(0))).abs().max() > 0.1
    layer(x, w).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())


def test_to_rgb_is_not_demodulated():
    "A larger style must give stronger colours; demodulation would remove that."
    seed_everything(0)
    layer, x, w = ToRGB(16, 8), randn(2, 16, 6, 6), randn(2, 8)
    expected = slowly(x, layer.weight * layer.scale, layer.style(w), demodulate=False)
    assert (
        layer(x, w).shape == (2, 3, 6, 6)
        and (layer(x, w) - expected).abs().max() < 1e-5
    )
    with torch.no_grad():
        before = layer(x, w)
        layer.style.weight *= 3
        layer.style.bias *= 3
    assert torch.allclose(layer(x, w), 3 * before, atol=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: ModulatedConv2d(4, 4, 2, 8),
            "kernel must be an odd number of pixels, not 2",
        ),
        (lambda: EqualConv2d(4, 4, 0), "kernel must be an odd number of pixels, not 0"),
        (lambda: EqualLinear(4, 4, lr_mul=0.0), "lr_mul must be more than 0, not 0.0"),
        (
            lambda: modulated_conv2d(randn(2, 4, 5, 5), randn(3, 6, 3, 3), randn(2, 4)),
            "the kernel has 6 input channels, the features have 4",
        ),
    ],
)
def test_mistakes_are_named(untyped, call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_the_recorded_benchmark_is_what_the_chapter_says():
    "Scaled maps beat the loop on every level, grouped kernels on large maps only."
    ways = load_json(RESULTS_DIR / "gan-benchmarks.json")["ways"]
    seconds = {row["side"]: row["seconds"] for row in ways}
    assert all(s["scaled"] < s["loop"] for s in seconds.values())
    grouped_wins = {side: s["grouped"] < s["loop"] for side, s in seconds.items()}
    assert grouped_wins == {4: False, 8: False, 16: True, 32: True}
