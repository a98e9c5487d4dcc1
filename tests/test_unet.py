"""Chapter 32: the U-Net's sizes, its wiring, its text conditioning, and what must
have no effect."""

import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from t2i_tutorial import critters
from t2i_tutorial.core import UserError, seeded_generator
from t2i_tutorial.diffusion.unet import (
    UNet,
    UNetConfig,
    flops_by_level,
    patch_grid_power,
)
from t2i_tutorial.text import TextEmbedding

SMALL = UNetConfig(
    channels=(16, 32),
    num_res_blocks=(1, 2),
    self_attention=(False, True),
    cross_attention=(True, True),
    cond_dim=32,
    text_dim=24,
)
LEAN = UNetConfig(
    channels=(32, 64, 128), num_res_blocks=(1, 1, 2), down_attention=False
)
CONFIGS = {
    "default": UNetConfig(),
    "small": SMALL,
    "lean": LEAN,
    "patch": replace(LEAN, patch_size=2),
    "refined": replace(LEAN, patch_size=2, refine_channels=8),
    "four levels": UNetConfig(
        channels=(16, 24, 32, 64),
        num_res_blocks=(1, 1, 2, 1),
        self_attention=(False, False, False, True),
        cross_attention=(False, False, True, True),
        heads=8,
    ),
}

COUNTS = {"default": 4_896_963, "lean": 3_130_691, "patch": 3_135_884}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded_generator(seed, "test unet", *shape))


def awake(module, scale=0.05):
    "With random numbers wherever the module begins with zeros."
    for i, p in enumerate(module.parameters()):
        if not p.any():
            p.data = scale * randn(*p.shape, seed=i)
    return module


def some_text(b=2, n=6, d=24, lengths=(6, 3)):
    mask = torch.arange(n) < torch.tensor(lengths)[:b, None]
    return TextEmbedding(
        randn(b, n, d).masked_fill(~mask[..., None], 0), mask, randn(b, d)
    )


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return awake(UNet(SMALL)).eval()


@pytest.fixture
def inputs():
    return randn(2, 3, 16, 16), torch.tensor([10, 700]), some_text()


@pytest.fixture(autouse=True)
def no_gradients(request):
    "Off unless a test is about them."
    with torch.set_grad_enabled(
        "gradient" in request.node.name or "clip" in request.node.name
    ):
        yield


# ---- sizes


def by_hand(c: UNetConfig) -> int:
    "All parameters, from the plan and not from the modules."

    def block(a, b):
        return (
            2 * a
            + 9 * a * b
            + b
            + (c.cond_dim + 1) * 2 * b
            + 2 * b
            + 9 * b * b
            + b
            + (a * b + b if a != b else 0)
        )

    def places(a):
        return 2 * a + 4 * a * a + a

    def words(a):
        return 2 * a + 2 * c.text_dim + 2 * a * a + 2 * c.text_dim * a + a

    def stage(a, i, attention=True):
        b = c.channels[i]
        return block(a, b) + attention * (
            c.self_attention[i] * places(b) + c.cross_attention[i] * words(b)
        )

    n, pixels, first = len(c.channels), 3 * c.patch_size**2, c.channels[0]
    total = (
        65 * c.cond_dim
        + (c.cond_dim + 1) * c.cond_dim
        + 2 * c.text_dim
        + (c.text_dim + 1) * c.cond_dim
    )
    total += (
        9 * pixels * first
        + first
        + 2 * first
        + 9 * first * pixels
        + pixels
        + stage(c.channels[-1], n - 1)
    )
    for i in range(n):
        total += c.num_res_blocks[i] * (
            stage(c.channels[i], i, c.down_attention) + stage(2 * c.channels[i], i)
        )
    for a, b in zip(c.channels, c.channels[1:]):
        total += 4 * a * b + b + (b + 1) * 4 * a
    if r := c.refine_channels:
        total += 9 * 6 * r + r + 9 * r * 3 + 3
    return total


@pytest.mark.parametrize("name", CONFIGS)
def test_it_builds_what_its_config_says(name):
    """MI-3: a peer's named classes build 1.6 billion parameters where 0.1 million
    were meant."""
    assert sum(p.numel() for p in UNet(CONFIGS[name]).parameters()) == by_hand(
        CONFIGS[name]
    )


def test_parameter_counts_do_not_drift():
    "MI-3: weights that were saved for these sizes must fit for good."
    counts = {
        name: sum(p.numel() for p in UNet(CONFIGS[name]).parameters())
        for name in ("default", "lean", "patch")
    }
    assert counts == COUNTS


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_of_costs_adds_up(name):
    """Parameters and work of the parts are those of the whole, counted on a real
    network."""
    from torch.utils.flop_counter import FlopCounterMode

    config, size = CONFIGS[name], 32
    table = flops_by_level(config, size, num_tokens=5)
    assert set(table) == {
        *(f"level {i}" for i in range(len(config.channels))),
        "time and text",
    }
    assert sum(r["parameters"] for r in table.values()) == by_hand(config)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        text = TextEmbedding(
            torch.zeros(1, 5, config.text_dim),
            torch.ones(1, 5, dtype=torch.bool),
            torch.zeros(1, config.text_dim),
        )
        UNet(config)(
            torch.zeros(1, 3, size, size), torch.zeros(1, dtype=torch.long), text
        )
    assert sum(r["flops"] for r in table.values()) == counter.get_total_flops() > 0
    assert [table[f"level {i}"]["side"] for i in range(len(config.channels))] == [
        size // config.patch_size // 2**i for i in range(len(config.channels))
    ]


def test_work_follows_the_pixels_and_patch_size_saves_it():
    def whole(c, size):
        return sum(r["flops"] for r in flops_by_level(c, size).values())

    assert 3.9 < whole(LEAN, 64) / whole(LEAN, 32) < 5 and whole(
        replace(LEAN, patch_size=2), 64
    ) < 1.1 * whole(LEAN, 32)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(channels=(32, 64)), "one value a level"),
        (dict(channels=(32, 64, 100)), "not 100"),
        (dict(heads=5), "5 heads, not 32"),
        (dict(num_res_blocks=(1, 0, 1)), "one block in each"),
        (
            dict(channels=(), num_res_blocks=(), self_attention=(), cross_attention=()),
            "at least one level",
        ),
        (dict(patch_size=0), "patch_size must be at least 1, not 0"),
        (dict(channels=(-8, 64, 128)), "not -8"),
        (dict(heads=0), "heads must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        UNetConfig(**changes)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_survives_json(name):
    assert UNetConfig(**json.loads(json.dumps(asdict(CONFIGS[name])))) == CONFIGS[name]


@pytest.mark.parametrize(
    "name, side", [("default", 32), ("small", 16), ("patch", 32), ("four levels", 24)]
)
def test_prediction_has_the_shape_of_the_image(name, side):
    config = CONFIGS[name]
    text = some_text(d=config.text_dim)
    y = awake(UNet(config))(randn(2, 3, side, side), torch.tensor([0, 999]), text)
    assert y.shape == (2, 3, side, side) and y.isfinite().all() and y.std() > 0


@pytest.mark.parametrize("side", [15, 17])
def test_sides_that_cannot_be_halved_are_refused(unet, inputs, side):
    with pytest.raises(UserError, match=rf"multiples of 2, not \({side}, {side}\)"):
        unet(randn(2, 3, side, side), *inputs[1:])


# ---- wiring


def test_each_block_on_the_way_up_gets_its_skip_connection(unet, inputs):
    "The last one down is the first one up, scaled by 1 / sqrt(2)."
    gave, read = [], []
    hooks = [
        s.register_forward_hook(lambda m, i, o: gave.append(o))
        for level in unet.down
        for s in level
    ]
    hooks += [
        s.register_forward_pre_hook(lambda m, i: read.append(i[0]))
        for level in unet.up
        for s in level
    ]
    unet(*inputs)
    for h in hooks:
        h.remove()
    assert len(read) == len(gave) == sum(SMALL.num_res_blocks)
    for r, g in zip(read, reversed(gave)):
        assert torch.equal(r[:, r.shape[1] // 2 :], g * 2**-0.5)


def test_equals_a_forward_pass_by_hand():
    "A U-Net of one level, put together line by line in float64."
    config = replace(
        SMALL,
        channels=(16,),
        num_res_blocks=(1,),
        self_attention=(True,),
        cross_attention=(True,),
    )
    u, x, t, text = (
        awake(UNet(config)).double(),
        randn(2, 3, 8, 8).double(),
        torch.tensor([3, 900]),
        some_text().to(torch.float64),
    )
    # the timestep's waves are float32, so the condition is made by hand
    waves = torch.stack(
        [
            f(t[:, None] * 10000 ** (-torch.arange(32, dtype=torch.float64) / 32))
            for f in (torch.cos, torch.sin)
        ],
        dim=1,
    ).flatten(1)
    condition = F.silu(u.time_embedding.mlp(waves) + u.text_proj(text.pooled))

    def stage(s, h):
        return s.cross_attn(
            s.self_attn(s.res_block(h, condition)), text.tokens, text.mask
        )

    h = down = stage(u.down[0][0], u.conv_in(x))
    h = stage(u.up[0][0], torch.cat([stage(u.middle, h), down / 2**0.5], dim=1))
    expected = u.conv_out(h)
    u.time_embedding.forward = lambda t: u.time_embedding.mlp(waves)
    assert torch.allclose(u(x, t, text), expected, atol=1e-9)


def test_output_is_zero_at_first(inputs):
    assert not UNet(SMALL)(*inputs).any()


def test_attention_on_the_way_down_can_be_left_out():
    names = [
        n for n, _ in UNet(replace(SMALL, down_attention=False)).named_parameters()
    ]
    assert not any(
        n.startswith("down") and (".self_attn." in n or ".cross_attn." in n)
        for n in names
    )
    assert any(n.startswith("up") and ".cross_attn." in n for n in names) and any(
        n.startswith("middle.self_attn") for n in names
    )


# ---- text


def moved(unet, inputs, text):
    x, t, _ = inputs
    return (unet(x, t, text) - unet(*inputs)).abs().amax((1, 2, 3))


def test_text_comes_in_by_tokens_and_by_the_pooled_vector(unet, inputs):
    """MI-14: in the shipped peer the text enters only by a diluted pooled vector.
    Each way is tested alone."""
    text = inputs[2]
    assert (
        moved(
            unet,
            inputs,
            replace(text, tokens=text.tokens.flip(0), mask=text.mask.flip(0)),
        ).min()
        > 1e-3
    )
    assert moved(unet, inputs, replace(text, pooled=text.pooled.flip(0))).min() > 1e-3
    no_words = awake(UNet(replace(SMALL, cross_attention=(False, False))))
    assert (
        moved(no_words, inputs, replace(text, tokens=text.tokens.flip(0))).max() == 0
    )  # and the check can tell


def test_time_matters(unet, inputs):
    x, t, text = inputs
    assert (unet(x, t + 1, text) - unet(x, t, text)).abs().max() > 1e-5


def test_padding_has_no_influence(unet, inputs):
    "MI-4: neither what stands in the padding nor how much there is."
    text = inputs[2]
    rubbish = replace(text, tokens=text.tokens.masked_fill(~text.mask[..., None], 1e4))
    longer = TextEmbedding(
        F.pad(rubbish.tokens, (0, 0, 0, 20), value=5.0),
        F.pad(text.mask, (0, 20)),
        text.pooled,
    )
    assert (
        moved(unet, inputs, rubbish).max() < 1e-5
        and moved(unet, inputs, longer).max() < 1e-4
    )
    seen = replace(rubbish, mask=torch.ones_like(text.mask))
    assert moved(unet, inputs, seen)[1] > 1e-3  # unmasked rubbish would be noticed


def test_a_short_text_alone_is_as_in_a_batch(unet, inputs):
    x, t, text = inputs
    alone = unet(x[1:], t[1:], text[1].trimmed())
    assert torch.allclose(alone, unet(x, t, text)[1:], atol=1e-4)


def test_samples_are_independent(unet, inputs):
    "JZ-1: another image, timestep or text in the batch changes nothing for this one."
    x, t, text = inputs
    other = unet(torch.cat([x[:1], x[1:] + 1]), torch.tensor([10, 3]), text[[0, 0]])
    assert torch.allclose(
        other[0], unet(x, t, text)[0], atol=1e-5
    ) and not torch.allclose(other[1], unet(x, t, text)[1], atol=1e-3)


# ---- training


@pytest.mark.parametrize("name", ["small", "lean", "four levels"])
def test_gradients_reach_every_parameter(name):
    "JZ-2, MI-1: one zero after another opens within a few steps; none stays shut."
    config = CONFIGS[name]
    u, x, text = UNet(config), randn(2, 3, 32, 32), some_text(d=config.text_dim)
    optimiser, reached = torch.optim.SGD(u.parameters(), 0.1), []
    for _ in range(5):
        optimiser.zero_grad()
        (
            u(x, torch.tensor([10, 700]), text) - randn(2, 3, 32, 32, seed=3)
        ).square().mean().backward()
        nn.utils.clip_grad_norm_(u.parameters(), 1.0)
        optimiser.step()
        reached.append(
            {n for n, p in u.named_parameters() if p.grad is not None and p.grad.any()}
        )
    assert reached[0] == {"conv_out.2.weight", "conv_out.2.bias"}
    assert not {n for n, _ in u.named_parameters()} - reached[-1]


def test_clipping_clips_and_modes_reach_all(inputs):
    """MI-1: a peer hides its U-Nets in a plain list, so clipping sees no parameters
    and train(False) stops short."""
    u = awake(UNet(SMALL))
    before = len(list(u.parameters()))
    u(*inputs).square().sum().backward()
    assert len(list(u.parameters())) == before == len(u.state_dict())
    norm = nn.utils.clip_grad_norm_(u.parameters(), 1e-3)
    clipped = torch.stack([p.grad.norm() for p in u.parameters()]).norm()
    assert norm > 1e-2 and clipped == pytest.approx(1e-3, rel=1e-3)
    assert not any(m.training for m in u.train(False).modules()) and all(
        m.training for m in u.train().modules()
    )


def test_same_seed_same_network(inputs):
    def make():
        torch.manual_seed(5)
        return UNet(SMALL)

    assert all(
        torch.equal(a, b)
        for a, b in zip(make().state_dict().values(), make().state_dict().values())
    )
    u = awake(make())
    assert torch.equal(u(*inputs), u(*inputs))


def test_gradient_steps_overfit_two_images():
    """The smallest training there is: the loss must fall, and the other text must
    give the other image."""
    torch.manual_seed(0)
    u, text, t = UNet(SMALL), some_text(), torch.tensor([900, 900])
    goal = torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 3, 16, 16)
    optimiser, losses = torch.optim.AdamW(u.parameters(), 3e-3), []
    for step in range(30):
        loss = (u(randn(2, 3, 16, 16, seed=step), t, text) - goal).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    with torch.no_grad():
        swapped = u(randn(2, 3, 16, 16, seed=99), t, text[[1, 0]])
    assert swapped[0].mean() > 0.3 and swapped[1].mean() < -0.3


# ---- patches


def test_refinement_changes_nothing_at_first_and_then_sees_across_patches(inputs):
    "A training without it can go on with it; one pixel reaches the next patch."
    xt, t, text = inputs
    torch.manual_seed(0)
    config = replace(SMALL, patch_size=2, text_dim=text.tokens.shape[-1])
    plain, refined = UNet(config), UNet(replace(config, refine_channels=8))
    missing, unexpected = refined.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(k.startswith("refine.") for k in missing)
    torch.nn.init.normal_(plain.conv_out[-1].weight, std=0.1)
    refined.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(plain(xt, t, text), refined(xt, t, text))
    torch.nn.init.normal_(refined.refine[-1].weight, std=0.1)
    pixels = randn(1, 6, 8, 8)
    dot = torch.zeros(8, 8)
    dot[3, 3] = 1
    change = refined.refine(pixels + dot) - refined.refine(pixels)
    reached = change[0].abs().sum(0) > 0
    assert reached[1:6, 1:6].all() and reached.sum() == 25


def test_nonsense_for_the_refinement_is_refused():
    with pytest.raises(UserError, match="refine_channels must be at least 0, not -1"):
        UNetConfig(refine_channels=-1)


def test_a_grid_of_the_patches_is_found_and_noise_is_not():
    images = critters.sample_critters(48, 64, seed=3).images
    noise = torch.randn(images.shape, generator=seeded_generator(0))
    offsets = 0.05 * torch.randn(3, 4, 4, generator=seeded_generator(1))
    for p in (2, 4):
        grid = offsets[:, :p, :p].repeat(1, 64 // p, 64 // p)
        assert 0.5 < patch_grid_power(images, p) < 1.5
        assert 0.5 < patch_grid_power(images + 0.3 * noise, p) < 1.5
        assert patch_grid_power(images + grid, p) > 20
        shifted = patch_grid_power(images + grid.roll(1, 2), p)
        assert shifted == pytest.approx(patch_grid_power(images + grid, p), rel=0.1)
    stripes = 0.02 * torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(16)
    assert patch_grid_power(images + 2 * stripes, 4) > 2
    assert patch_grid_power(images + 2 * stripes, 2) < 1.5  # of another period


@pytest.mark.parametrize("p", [0, 1, 3, 65])
def test_a_patch_that_does_not_fit_is_refused(p):
    with pytest.raises(UserError, match=f"64 x 64 pixels, not {p}"):
        patch_grid_power(torch.zeros(2, 3, 64, 64), p)
