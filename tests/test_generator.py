"""Chapter 22: the generator's shapes, use of text and noise, truncation, slerp."""

import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from t2i_tutorial.attention import L2SelfAttention2d
from t2i_tutorial.core import (
    UserError,
    dataclass_from_dict,
    seed_everything,
    seeded_generator,
)
from t2i_tutorial.gan.generator import (
    Generator,
    GeneratorConfig,
    MappingNetwork,
    SynthesisBlock,
    TextAttentionLayers,
    kernel_weights_by_layer,
    normalize_2nd_moment,
    slerp,
    upsample2x,
)
from t2i_tutorial.text import TextEmbedding

SMALL = GeneratorConfig(
    z_dim=16,
    text_dim=24,
    style_dim=32,
    mapping_layers=2,
    channels=(16, 16, 8),
    num_kernels=(1, 2, 4),
    self_attention=(False, True, False),
    cross_attention=(False, True, True),
)


def randn(*shape, seed=0):
    return torch.randn(
        *shape, generator=seeded_generator(seed, "test generator", *shape)
    )


def texts(b=3, n=5, d=24, seed=0):
    "Captions of n, n - 1, ... tokens."
    mask = torch.arange(n) < (n - torch.arange(b) % (n - 1))[:, None]
    return TextEmbedding(
        randn(b, n, d, seed=seed) * mask[..., None],
        mask,
        F.normalize(randn(b, d, seed=seed), dim=1),
    )


def make(config=SMALL, awake=False, seed=0):
    "A generator; awake: with random numbers in place of parameters that start at 0."
    seed_everything(seed)
    g = Generator(config)
    if awake:
        for i, p in enumerate(g.parameters()):
            if not p.any():
                p.data = 0.3 * randn(*p.shape, seed=i)
    return g.eval()


def far(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b))


@pytest.mark.parametrize(
    "smallest, sizes", [(4, (4, 8, 16)), (8, (8, 16)), (16, (16,))]
)
def test_a_pyramid_smallest_first(smallest, sizes):
    config = replace(SMALL, min_output_size=smallest)
    assert config.sizes == sizes and config.size == 16
    assert [tuple(p.shape) for p in make(config)(randn(3, 16), texts())] == [
        (3, 3, s, s) for s in sizes
    ]


def test_each_image_is_the_smaller_one_upsampled_plus_colours():
    g, z, text, added = (
        make(replace(SMALL, min_output_size=4)),
        randn(3, 16),
        texts(),
        [],
    )
    for layer in g.to_rgb:
        layer.register_forward_hook(lambda m, i, o: added.append(o))
    small, middle, large = g(z, text)
    assert (
        torch.equal(small, added[0])
        and torch.equal(middle, upsample2x(small) + added[1])
        and torch.equal(large, upsample2x(middle) + added[2])
    )


def test_upsampling_is_the_1331_filter():
    x, taps = randn(2, 3, 9, 9), torch.tensor([1.0, 3, 3, 1]) / 4
    filtered = F.conv_transpose2d(
        x, (taps[:, None] * taps).expand(3, 1, 4, 4), stride=2, padding=1, groups=3
    )
    assert torch.allclose(
        upsample2x(x)[..., 2:-2, 2:-2], filtered[..., 2:-2, 2:-2], atol=1e-5
    )
    assert torch.allclose(upsample2x(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 8, 8))


def test_blocks_go_in_the_papers_order():
    "GG-11: self-attention is the L2 form, as in the paper, and not the dot product."
    seed_everything(0)
    block, order = SynthesisBlock(1, SMALL), []
    for name, part in (
        ("conv 0", block.convs[0]),
        ("conv 1", block.convs[1]),
        ("self-attention", block.self_attn),
        ("cross-attention", block.cross_attn),
    ):
        part.register_forward_hook(lambda *_, name=name: order.append(name))
    block(randn(3, 16, 4, 4), randn(3, 32), texts())
    assert order == ["conv 0", "conv 1", "self-attention", "cross-attention"]
    assert isinstance(block.self_attn, L2SelfAttention2d)
    first = SynthesisBlock(0, SMALL)
    assert len(first.convs) == 1 and first(randn(3, 16, 4, 4), randn(3, 32)).shape == (
        3,
        16,
        4,
        4,
    )


def test_without_text():
    g = make(replace(SMALL, text_dim=None))
    assert all(block.cross_attn is None for block in g.blocks) and g.text_layers is None
    assert (
        g(randn(2, 16))[-1].shape == (2, 3, 16, 16)
        and g(randn(2, 16), truncation=0.5)[-1].isfinite().all()
    )
    with pytest.raises(UserError, match="is unconditional; leave the text out"):
        g(randn(3, 16), texts())
    with pytest.raises(
        UserError, match="is conditioned on text; give one for each image"
    ):
        make()(randn(3, 16))


def test_samples_are_independent():
    "JZ-1: an image does not depend on the other captions and noise of the batch."
    g, z, text = make(awake=True), randn(3, 16), texts()
    together = g(z, text, 0.7)
    for i in range(3):
        assert (
            far(
                g(z[i : i + 1], text[i].trimmed(), 0.7),
                [p[i : i + 1] for p in together],
            )
            < 1e-4
        )


def test_padding_has_no_influence():
    "MI-4, PR-2: neither content nor length of the padding has an influence."
    g, z, text = make(awake=True), randn(3, 16), texts()
    padded = TextEmbedding(
        F.pad(
            text.tokens.masked_fill(~text.mask[..., None], 1e3),
            (0, 0, 0, 4),
            value=-5.0,
        ),
        F.pad(text.mask, (0, 4)),
        text.pooled,
    )
    assert far(g(z, padded), g(z, text)) < 1e-4


def test_text_and_noise_change_the_image():
    g, z, text = make(awake=True), randn(3, 16), texts()
    words = TextEmbedding(texts(seed=1).tokens, text.mask, text.pooled)
    pooled = TextEmbedding(text.tokens, text.mask, texts(seed=1).pooled)
    for other in (g(z, words), g(z, pooled), g(randn(3, 16, seed=1), text)):
        assert far(other, g(z, text)) > 0.05
    fresh = make()  # at initialisation only the pooled text has an effect
    assert far(fresh(z, pooled), fresh(z, text)) > 0.05


def test_caption_and_noise_enter_at_one_scale():
    "GG-7: the scale of w does not depend on the width, and both inputs have an effect."
    for width in (32, 128, 512):
        seed_everything(0)
        mapping, z, pooled = (
            MappingNetwork(64, 128, width),
            randn(64, 64),
            F.normalize(randn(64, 128), dim=1),
        )
        w = mapping(z, pooled)
        by_caption, by_z = (
            (mapping(z, pooled.roll(1, 0)) - w).norm(),
            (mapping(z.roll(1, 0), pooled) - w).norm(),
        )
        assert 0.5 < w.square().mean().sqrt() < 2 and 0.2 < by_caption / by_z < 5, width


def shares(mapping, z, pooled):
    "Shares of w's mean square that vary with z and with the caption."
    with torch.no_grad():
        w = torch.stack([mapping(one.expand(len(pooled), -1), pooled) for one in z])
    energy = w.square().mean()
    return [(w.var(k, unbiased=False).mean() / energy).item() for k in (0, 1)]


@pytest.mark.parametrize("z_dim, text_dim, width", [(16, 256, 128), (128, 24, 32)])
def test_noise_and_caption_have_one_length_whatever_their_numbers(
    z_dim, text_dim, width
):
    "Without the factor the half of more numbers would outweigh the other."
    seed_everything(0)
    mapping = MappingNetwork(z_dim, text_dim, width)
    inputs = []
    mapping.layers[0].register_forward_hook(lambda m, i, o: inputs.append(i[0]))
    by_z, by_caption = shares(mapping, randn(16, z_dim), randn(16, text_dim))
    noise, text = inputs[0].split([z_dim, width], dim=1)
    assert torch.allclose(noise.norm(dim=1), text.norm(dim=1), rtol=1e-3)
    assert torch.allclose(inputs[0].square().mean(1), torch.ones(16), atol=1e-3)
    assert min(by_z, by_caption) > 0.1 and 0.4 < by_z / by_caption < 2.5


def test_standardised_text_has_no_part_that_is_the_same_for_all_captions():
    seed_everything(0)
    mapping, z = MappingNetwork(16, 24, 32), randn(16, 16)
    pooled = 0.3 * randn(64, 24) + randn(1, 24, seed=1)  # mostly the same for all
    _, before = shares(mapping, z, pooled[:16])
    mapping.standardize_text(pooled)
    _, after = shares(mapping, z, pooled[:16])
    assert before < 0.5 * after and after > 0.1
    scaled = (pooled - mapping.text_mean) / mapping.text_std
    assert scaled.mean(0).abs().max() < 1e-5
    assert torch.allclose(scaled.std(0), torch.ones(24), atol=1e-4)
    shifted = MappingNetwork(16, 24, 32)  # scale and offset of the encoder vanish
    shifted.load_state_dict(mapping.state_dict())
    shifted.standardize_text(7 * pooled + 3)
    a, b = mapping(z, pooled[:16]), shifted(z, 7 * pooled[:16] + 3)
    assert torch.allclose(a, b, atol=1e-3)


def test_the_scale_of_the_text_is_saved_with_the_weights_and_not_trained():
    g = make()
    pooled = texts(3).pooled
    g.mapping.standardize_text(pooled)
    names = {n for n, _ in g.named_parameters()}
    for name in ("mapping.text_mean", "mapping.text_std"):
        assert name in g.state_dict() and name not in names
    copy, z, text = make(seed=1), randn(3, 16), texts()
    copy.load_state_dict(g.state_dict())
    assert far(copy(z, text), g(z, text)) == 0
    assert torch.equal(copy.mapping.text_mean, pooled.mean(0))
    assert not list(make(replace(SMALL, text_dim=None)).mapping.buffers())


def test_a_dimension_that_never_varies_stays_finite():
    mapping = MappingNetwork(4, 3, 8)
    mapping.standardize_text(torch.tensor([[1.0, 2.0, 0.0], [1.0, -2.0, 0.0]]))
    assert mapping(randn(2, 4), torch.tensor([[1.0, 0.5, 0.0]] * 2)).isfinite().all()
    with pytest.raises(UserError, match="at least two captions, not 1"):
        mapping.standardize_text(torch.ones(1, 3))


def test_the_style_takes_the_frozen_pooled_vector_and_attention_the_trained_tokens():
    g, text = make(awake=True), texts()
    encoded = g.encode_text(text)
    assert torch.equal(encoded.pooled, text.pooled)
    assert torch.equal(encoded.tokens, g.text_layers(text).tokens)
    assert (encoded.tokens - text.tokens).abs().max() > 0.1
    without = make(replace(SMALL, text_layers=0))
    assert without.encode_text(text) is text
    z = randn(3, 16)
    assert torch.equal(g.map_style(z, encoded), g.mapping(z, text.pooled))


@pytest.mark.parametrize("size, computed", [(8, 2), (16, 3)])
def test_synthesis_stops_at_the_size_that_is_asked_for(size, computed):
    g, z, text = make(awake=True), randn(3, 16), texts()
    encoded, blocks = g.encode_text(text), []
    w = g.map_style(z, encoded)
    whole = g.synthesise(w, encoded)
    for block in g.blocks:
        block.register_forward_hook(lambda *_: blocks.append(1))
    stopped = g.synthesise(w, encoded, max_size=size)
    assert len(blocks) == computed and stopped[-1].shape[-1] == size
    assert far(stopped, whole[: len(stopped)]) == 0
    for wrong in (4, 6, 32):  # below the smallest, between two, above the largest
        with pytest.raises(UserError, match=r"one of \[8, 16\], not"):
            g.synthesise(w, encoded, max_size=wrong)


def test_lr_mul_slows_the_mapping_network_and_not_its_initial_output():
    slow, fast = (MappingNetwork(16, None, 8, 2, lr_mul) for lr_mul in (0.01, 1.0))
    for a, b in zip(slow.layers, fast.layers):
        b.weight.data.copy_(a.weight.data * 0.01)
    z = randn(4, 16)
    assert torch.allclose(slow(z), fast(z), atol=1e-5)
    for m in (slow, fast):
        torch.optim.Adam(m.parameters(), 1e-3).zero_grad()
        m(z).square().sum().backward()
    assert (
        50 < fast.layers[0].weight.grad.norm() / slow.layers[0].weight.grad.norm() < 200
    )
    assert all(
        abs(layer.lr_mul - 0.5) < 1e-9
        for layer in Generator(replace(SMALL, mapping_lr_mul=0.5)).mapping.layers
    )
    for bad in (0.0, 1.5):
        with pytest.raises(
            UserError, match="mapping_lr_mul must be above 0 and at most 1"
        ):
            replace(SMALL, mapping_lr_mul=bad)


def test_normalize_2nd_moment():
    x = 7 * randn(5, 33)
    assert torch.allclose(
        normalize_2nd_moment(x).square().mean(1), torch.ones(5), atol=1e-5
    ) and torch.allclose(
        normalize_2nd_moment(x), normalize_2nd_moment(0.01 * x), atol=1e-4
    )
    assert not normalize_2nd_moment(torch.zeros(1, 4)).isnan().any()


def test_every_parameter_learns_by_the_third_step():
    """JZ-2, MI-1: no parameter is left without a gradient.

    The text layers lie before two factors that start at zero, their own and that of
    cross-attention; all others learn by the second step.
    """
    seed_everything(0)
    g, z, text = Generator(SMALL), randn(3, 16), texts()
    optimizer = torch.optim.SGD(g.parameters(), 0.1)
    waiting = []
    for _ in range(3):
        optimizer.zero_grad()
        sum((p - 1).square().mean() for p in g(z, text)).backward()
        optimizer.step()
        named = g.named_parameters()
        waiting.append([n for n, p in named if p.grad is None or not p.grad.any()])
    assert all(n.startswith("text_layers.") for n in waiting[1]) and not waiting[2]


def test_checkpointing_changes_memory_and_nothing_else():
    def gradients(config):
        g = make(config, awake=True)
        sum(p.square().mean() for p in g(randn(3, 16), texts())).backward()
        return [p.grad for p in g.parameters()]

    def kept(config):
        "Bytes kept for the backward pass."
        g, seen = make(config), {}

        def pack(t):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            _ = g(randn(3, 16), texts())
        return sum(seen.values())

    recomputed = replace(SMALL, gradient_checkpointing=True)
    assert far(gradients(SMALL), gradients(recomputed)) < 1e-6 and kept(
        recomputed
    ) < 0.7 * kept(SMALL)


def test_truncation_moves_towards_the_mean_of_the_same_caption():
    g, z, text = make(awake=True), randn(4, 16), texts()[[0, 0, 1, 1]]
    encoded = g.encode_text(text)
    w, half, mean = (g.map_style(z, encoded, psi) for psi in (1.0, 0.5, 0.0))
    assert torch.allclose(mean[0], mean[1], atol=1e-5) and torch.allclose(
        mean[2], mean[3], atol=1e-5
    )
    assert (mean[0] - mean[2]).abs().max() > 0.1  # not one mean for all captions
    assert torch.allclose(half, (w + mean) / 2, atol=1e-5)
    many = g.map_style(randn(4096, 16), g.encode_text(text[[0] * 4096]), 1.0)
    assert (many.mean(0) - mean[0]).norm() < 0.3 * (many - many.mean(0)).norm(
        dim=1
    ).mean()  # it is that mean, by 64 draws


def test_truncation_of_one_is_exact_and_its_noise_is_in_no_checkpoint():
    g, z, text = make(), randn(3, 16), texts()
    assert (
        far(
            g(z, text, 1.0),
            g.synthesise(g.mapping(z, g.encode_text(text).pooled), g.encode_text(text)),
        )
        == 0
    )
    assert (
        far(make()(z, text, 0.3), g(z, text, 0.3)) == 0
        and "truncation_z" not in g.state_dict()
    )


def test_kernel_weights_name_every_bank():
    g = make()
    weights = kernel_weights_by_layer(g, randn(5, 32))
    assert {k: v.shape[1] for k, v in weights.items()} == {
        "8 px, 0": 2,
        "8 px, 1": 2,
        "16 px, 0": 4,
        "16 px, 1": 4,
    }
    assert all(torch.allclose(v.sum(1), torch.ones(5)) for v in weights.values())


def test_text_layers_only_normalise_at_initialisation():
    layers, text = TextAttentionLayers(24, 2), texts()
    out = layers(text)
    assert torch.allclose(
        out.pooled, F.layer_norm(text.pooled, (24,)), atol=1e-5
    ) and torch.equal(out.mask, text.mask)
    assert torch.allclose(
        out.tokens[text.mask], F.layer_norm(text.tokens, (24,))[text.mask], atol=1e-5
    )


def test_slerp_has_equal_angles_and_meets_its_ends():
    a, b = randn(32), 2 * randn(32, seed=1)
    points = slerp(a, b, 9)
    assert torch.allclose(points[[0, -1]], torch.stack([a, b]), atol=1e-4)
    angles = F.cosine_similarity(points[1:], points[:-1]).acos()
    assert torch.allclose(angles, angles.mean().expand(8), atol=1e-3)
    assert torch.allclose(
        points.norm(dim=1), torch.linspace(a.norm(), b.norm(), 9), atol=1e-3
    )
    assert torch.allclose(slerp(a, a, 5), a.expand(5, -1), atol=1e-2)


def test_the_line_between_two_z_passes_the_same_inputs_as_slerp():
    "The mapping network divides by the root mean square, so only directions count."
    a = randn(32)
    b = F.normalize(randn(32, seed=1), dim=0) * a.norm()
    middle = torch.stack([a.lerp(b, 0.5), slerp(a, b, 3)[1]])
    line, arc = normalize_2nd_moment(middle)
    assert torch.allclose(line, arc, atol=1e-4)


def test_same_seed_same_bits():
    assert far(make()(randn(3, 16), texts()), make()(randn(3, 16), texts())) == 0


def test_config_survives_json():
    assert (
        dataclass_from_dict(GeneratorConfig, json.loads(json.dumps(asdict(SMALL))))
        == SMALL
    )
    assert GeneratorConfig(channels=[8, 8, 8, 8]) == GeneratorConfig(
        channels=(8, 8, 8, 8)
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_kernels": (1, 2)}, "need one value a level, not \\[2, 4\\]"),
        ({"channels": (12, 8, 8, 8)}, "multiples of 8 and of the 4 heads, not 12"),
        (
            {"min_output_size": 64},
            "min_output_size must be one of \\[4, 8, 16, 32\\], not 64",
        ),
        ({"num_kernels": (0, 1, 1, 1)}, "num_kernels must be at least 1"),
        ({"z_dim": 0}, "z_dim must be at least 1, not 0"),
        ({"text_dim": 30}, "text_dim must be a multiple of the 4 heads, not 30"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        GeneratorConfig(**wrong)


def test_default_fits_its_budget():
    "At 16 bits a weight the 32-pixel generator takes a third of 12 MB at most."
    assert (
        GeneratorConfig().sizes == (8, 16, 32)
        and 2 * sum(p.numel() for p in Generator().parameters()) < 4e6
    )
