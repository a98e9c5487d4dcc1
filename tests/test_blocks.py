"""Chapter 31: timestep embedding, residual block, down- and upsampling, against
diffusers, slow formulae and each other."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from t2i_tutorial.core import UserError, seeded_generator
from t2i_tutorial.diffusion.blocks import (
    Downsample,
    ResidualBlock,
    TimestepEmbedding,
    Upsample,
    pixel_shuffle,
    pixel_unshuffle,
    timestep_embedding,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded_generator(seed, "test blocks", *shape))


def awake(module, scale=0.3):
    "With random numbers wherever the module begins with zeros."
    for i, p in enumerate(module.parameters()):
        if not p.any():
            p.data = scale * randn(*p.shape, seed=i)
    return module


# ---- time


def test_sinusoids_equal_a_slow_loop():
    t, d = torch.tensor([0, 1, 37, 999]), 8
    slow = [
        [
            f(int(i) * 10000 ** (-k / (d / 2)))
            for f in (math.cos, math.sin)
            for k in range(d // 2)
        ]
        for i in t
    ]
    assert torch.allclose(timestep_embedding(t, d), torch.tensor(slow), atol=1e-4)


@pytest.mark.parametrize("dim", [2, 32, 256])
def test_sinusoids_equal_diffusers(dim):
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.arange(0, 1000, 7)
    assert torch.allclose(
        timestep_embedding(t, dim),
        get_timestep_embedding(t, dim, flip_sin_to_cos=True, downscale_freq_shift=0),
        atol=1e-4,
    )


def test_every_timestep_is_most_like_itself():
    waves = timestep_embedding(torch.arange(1000), 64)
    assert torch.equal(
        (waves @ waves.T).argmax(1), torch.arange(1000)
    ) and torch.allclose(waves.square().sum(1), torch.tensor(32.0))


@pytest.mark.parametrize("dim", [7, 0, -2])
def test_sinusoids_come_in_pairs(dim):
    with pytest.raises(UserError, match=f"even number, not {dim}"):
        timestep_embedding(torch.tensor([1]), dim)


def test_timestep_embedding_distinguishes_neighbours():
    e = TimestepEmbedding(32)(torch.tensor([500, 501, 500]))
    assert (
        e.shape == (3, 32)
        and torch.equal(e[0], e[2])
        and not torch.allclose(e[0], e[1], atol=1e-5)
    )


# ---- residual block


def test_block_equals_its_formula():
    "Written out with means and variances of 8 groups, in float64."
    block, x, condition = (
        awake(ResidualBlock(16, 24, 10)).double(),
        randn(2, 16, 5, 6).double(),
        randn(2, 10).double(),
    )

    def norm(layer, z):
        g = rearrange(z, "b (g c) h w -> b g (c h w)", g=8)
        g = (g - g.mean(-1, keepdim=True)) / (
            g.var(-1, keepdim=True, unbiased=False) + 1e-5
        ).sqrt()
        return (
            rearrange(g, "b g (c h w) -> b (g c) h w", h=5, w=6)
            * layer.weight[:, None, None]
            + layer.bias[:, None, None]
        )

    def silu(z):
        return z / (1 + (-z).exp())

    h = block.conv1(silu(norm(block.norm1, x)))
    scale, shift = (condition @ block.film.weight.T + block.film.bias)[
        ..., None, None
    ].chunk(2, dim=1)
    h = block.conv2(silu((1 + scale) * norm(block.norm2, h) + shift))
    assert torch.allclose(block(x, condition), block.skip(x) + h, atol=1e-10)


@pytest.mark.parametrize("c_in, c_out", [(16, 16), (16, 24), (32, 8)])
def test_block_equals_diffusers(c_in, c_out):
    from diffusers.models.resnet import ResnetBlock2D

    block, x, condition = (
        awake(ResidualBlock(c_in, c_out, 12)),
        randn(2, c_in, 6, 6),
        randn(2, 12),
    )
    theirs = ResnetBlock2D(
        in_channels=c_in,
        out_channels=c_out,
        temb_channels=12,
        groups=8,
        groups_out=8,
        eps=1e-5,
        time_embedding_norm="scale_shift",
    )
    pairs = {
        "norm1": "norm1",
        "conv1": "conv1",
        "film": "time_emb_proj",
        "norm2": "norm2",
        "conv2": "conv2",
    } | ({"skip": "conv_shortcut"} if c_in != c_out else {})
    for mine, other in pairs.items():
        getattr(theirs, other).load_state_dict(getattr(block, mine).state_dict())
    assert torch.allclose(block(x, F.silu(condition)), theirs(x, condition), atol=1e-5)


def test_block_begins_as_the_identity():
    x, condition = randn(2, 16, 4, 4), randn(2, 12)
    assert torch.equal(ResidualBlock(16, 16, 12)(x, condition), x)
    wider = ResidualBlock(16, 24, 12)
    assert torch.equal(wider(x, condition), wider.skip(x))


def test_block_depends_on_its_condition_and_samples_are_independent():
    block, x, condition = (
        awake(ResidualBlock(16, 16, 12)),
        randn(3, 16, 4, 4),
        randn(3, 12),
    )
    other, order = x.clone(), condition.clone()
    other[1] += 1
    order[1] = -order[1]
    assert torch.allclose(
        block(other, order)[[0, 2]], block(x, condition)[[0, 2]], atol=1e-6
    )
    assert (block(x, order) - block(x, condition))[1].abs().max() > 1e-2
    assert torch.allclose(
        block(x[2:], condition[2:])[0], block(x, condition)[2], atol=1e-5
    )


def test_a_scale_of_minus_one_shuts_the_channels_off():
    block, x, condition = (
        awake(ResidualBlock(16, 16, 12)),
        randn(2, 16, 4, 4),
        randn(2, 12),
    )
    block.film.weight.data.zero_()
    block.film.bias.data = torch.cat([-torch.ones(16), torch.zeros(16)])
    assert torch.allclose(
        block(x, condition) - x, block.conv2.bias[:, None, None].expand_as(x), atol=1e-5
    )


def test_gradients_reach_every_parameter_of_the_block():
    """JZ-2: film and the last convolution begin at zero, but not as two factors of
    one product: 1 + 0 lets the signal through."""
    block, x, condition, rows = (
        ResidualBlock(16, 24, 12),
        randn(2, 16, 4, 4),
        randn(2, 12),
        [],
    )
    optimiser = torch.optim.SGD(block.parameters(), 0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (block(x, condition) - randn(2, 24, 4, 4)).square().mean().backward()
        optimiser.step()
        rows.append({n: p.grad.abs().max().item() for n, p in block.named_parameters()})
    assert rows[0]["conv2.weight"] > 0 and min(rows[1].values()) > 0, rows


# ---- down and up


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pixel_unshuffle_and_back_lose_nothing(factor):
    x = randn(2, 3, 8, 12)
    deep = pixel_unshuffle(x, factor)
    assert torch.equal(
        deep, rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=factor, q=factor)
    )
    assert deep.shape == (2, 3 * factor**2, 8 // factor, 12 // factor) and torch.equal(
        pixel_shuffle(deep, factor), x
    )


def test_sides_that_cannot_be_cut_are_refused():
    with pytest.raises(RuntimeError):
        pixel_unshuffle(randn(1, 3, 7, 8), 2)


@pytest.mark.parametrize("factor", [2, 4])
def test_shapes_and_parameters_of_down_and_up(factor):
    "MI-3: sizes are what they say."
    down, up = Downsample(16, 24, factor), Upsample(24, 16, factor)
    assert down(randn(2, 16, 8, 16)).shape == (2, 24, 8 // factor, 16 // factor)
    assert up(randn(2, 24, 2, 3)).shape == (2, 16, 2 * factor, 3 * factor)
    assert sum(p.numel() for p in down.parameters()) == 16 * factor**2 * 24 + 24
    assert sum(p.numel() for p in up.parameters()) == (24 + 1) * 16 * factor**2


def test_down_can_be_a_mean():
    down, x = Downsample(3, 3), randn(2, 3, 8, 8)
    down.conv.weight.data = repeat(torch.eye(3), "o i -> o (i four) 1 1", four=4) / 4
    down.conv.bias.data.zero_()
    assert torch.allclose(down(x), F.avg_pool2d(x, 2), atol=1e-6)


def test_down_is_a_convolution_with_stride_2():
    down, x = Downsample(4, 6), randn(2, 4, 8, 8)
    kernel = rearrange(down.conv.weight, "o (i p q) 1 1 -> o i p q", p=2, q=2)
    assert torch.allclose(
        down(x), F.conv2d(x, kernel, down.conv.bias, stride=2), atol=1e-5
    )


@pytest.mark.parametrize("factor", [2, 4])
def test_up_begins_without_a_checkerboard(factor):
    """A fresh layer copies each place; the same layer with its random start prints a
    pattern."""
    up, x = Upsample(16, 8, factor), randn(2, 16, 5, 5)
    y = up(x)
    assert torch.equal(
        y,
        y[..., ::factor, ::factor]
        .repeat_interleave(factor, -1)
        .repeat_interleave(factor, -2),
    )
    plain = nn.Conv2d(16, 8 * factor**2, 1)
    even = torch.ones(1, 16, 5, 5)
    assert (
        up(even).std((2, 3)).max()
        < 1e-6
        < 0.01
        < pixel_shuffle(plain(even), factor).std((2, 3)).max()
    )


def test_up_copies_differ_between_channels():
    "The cure must not make all channels one."
    y = Upsample(16, 8)(randn(1, 16, 4, 4))
    assert (y[0, 0] - y[0, 1]).abs().max() > 1e-2
