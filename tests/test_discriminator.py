"""Chapter 23: scores of the right pairs, text dependence of every head, gradients."""

import json
import weakref
from contextlib import nullcontext
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from t2i_tutorial.clip import CLIP
from t2i_tutorial.core import UserError, seeded_generator
from t2i_tutorial.gan.discriminator import (
    Discriminator,
    DiscriminatorBlock,
    DiscriminatorConfig,
    FrozenTower,
    TextHead,
    image_pyramid,
    interaction_residual,
)
from t2i_tutorial.gan.modulation import scaled_leaky_relu
from t2i_tutorial.text import TextEmbedding

SMALL = DiscriminatorConfig(
    sizes=(8, 16), channels=(16, 8), attention=(True, False), text_dim=12, style_dim=16
)
ONE = replace(SMALL, multiscale_loss=False)


def randn(*shape, seed=0):
    return torch.randn(
        *shape, generator=seeded_generator(seed, "test discriminator", *shape)
    )


def texts(b, seed=0, dim=12):
    return TextEmbedding(
        randn(b, 3, dim, seed=seed),
        torch.ones(b, 3, dtype=torch.bool),
        randn(b, dim, seed=seed),
    )


def make_discriminator(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return Discriminator(config)


def images(b, config=SMALL, seed=0):
    return [randn(b, 3, s, s, seed=seed).clamp(-1, 1) for s in config.sizes]


def tables(D, levels, text):
    "For each text head: its score of each image (rows) with each text (columns)."
    with torch.no_grad():
        columns = [
            D(levels, text[[k] * len(levels[0])]).conditional
            for k in range(len(text.pooled))
        ]
    return [torch.stack(rows, 1) for rows in zip(*columns)]


# ---- the pyramid


def test_pyramid_takes_means_of_squares():
    "GG-12: images are averaged over squares, so that every pixel has the same weight."
    x = randn(2, 3, 16, 16).requires_grad_()
    small, same = image_pyramid(x, (4, 16))
    assert torch.equal(same, x) and small.shape == (2, 3, 4, 4)
    assert torch.allclose(
        small.double(), x.double().view(2, 3, 4, 4, 4, 4).mean((3, 5)), atol=1e-6
    )
    (grad,) = torch.autograd.grad(small.sum(), x)
    assert torch.allclose(grad, torch.full_like(x, 1 / 16))


def test_pyramid_keeps_range_and_white():
    x = torch.ones(1, 3, 32, 32)
    assert all(torch.equal(p, torch.ones_like(p)) for p in image_pyramid(x, (4, 8, 16)))
    assert all(
        p.abs().max() <= 1
        for p in image_pyramid(randn(2, 3, 32, 32).clamp(-1, 1), (2, 8))
    )


@pytest.mark.parametrize("size", [24, 64, 0])
def test_pyramid_refuses_sizes_that_do_not_divide(size):
    with pytest.raises(UserError, match=f"cannot be averaged to {size} pixels"):
        image_pyramid(torch.zeros(1, 3, 32, 32), (8, size))


# ---- multi-scale input and output


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_there_are_L_L_plus_1_halves_scores(n):
    config = DiscriminatorConfig(
        tuple(4 * 2**i for i in range(n)),
        (8,) * n,
        (False,) * n,
        text_dim=12,
        style_dim=8,
    )
    scores = make_discriminator(config)(images(2, config), texts(2))
    assert (
        len(scores.conditional)
        == len(scores.unconditional)
        == len(scores.logits())
        == len(scores.head_names)
        == len(set(scores.head_names))
        == n * (n + 1) // 2
    )
    assert scores.head_names == config.head_names and all(
        map < image for image, map in scores.head_names
    )
    assert all(
        s.shape == (2,) for s in scores.conditional + scores.unconditional
    ) and scores.mean().shape == (2,)


def as_drawn(D, levels, text):
    "One image size after the other through its own blocks, without a stack."
    found = {}
    for i, image in zip(D.config.sizes, levels):
        h = scaled_leaky_relu(D.from_rgb[str(i)](image))
        for j in reversed([s for s in D.config.sizes if s <= i]):
            h = D.blocks[str(j)](h)
            found[i, j // 2] = (
                D.text_heads[str(j)](h, D.text_to_style(text)),
                D.unconditional_heads[str(j)](h).mean((1, 2, 3)),
            )
    return found


def test_stacked_equals_one_by_one():
    "GG-1: each score is that of an image with its own caption, computed alone."
    config = DiscriminatorConfig(
        (4, 8, 16), (8, 8, 8), (False, True, False), text_dim=12, style_dim=8
    )
    D, levels, text = make_discriminator(config), images(3, config), texts(3)
    with torch.no_grad():
        scores = D(levels, text)
        for k in range(3):
            alone = as_drawn(D, [p[k : k + 1] for p in levels], text[[k]])
            for name, t, p in zip(
                scores.head_names, scores.conditional, scores.unconditional, strict=True
            ):
                assert torch.allclose(
                    t[k], alone[name][0][0], atol=1e-5
                ) and torch.allclose(p[k], alone[name][1][0], atol=1e-5)


@pytest.mark.parametrize("config", [SMALL, ONE], ids=["multi-scale", "one score"])
def test_a_score_belongs_to_its_own_picture_and_caption(config):
    "GG-1, JZ-1: a caption or an image changes its own sample's scores only."
    D, levels, text = make_discriminator(config), images(3), texts(3)
    other_pooled, changed = text.pooled.clone(), [p.clone() for p in levels]
    other_pooled[1] = randn(12, seed=9)
    for p in changed:
        p[1] = randn(*p.shape[1:], seed=9)
    with torch.no_grad():
        before, other_text, other_image = (
            D(*a)
            for a in (
                (levels, text),
                (levels, replace(text, pooled=other_pooled)),
                (changed, text),
            )
        )
    for a, b, c in zip(
        before.conditional, other_text.conditional, other_image.conditional
    ):
        assert torch.allclose(a[[0, 2]], b[[0, 2]], atol=1e-5) and torch.allclose(
            a[[0, 2]], c[[0, 2]], atol=1e-5
        )
        assert (a[1] - b[1]).abs() > 1e-4 and (a[1] - c[1]).abs() > 1e-4


def test_sizes_are_scored_independently():
    D, levels, text = make_discriminator(), images(2), texts(2)
    other = [levels[0], randn(2, 3, 16, 16, seed=4)]
    with torch.no_grad():
        a, b = D(levels, text), D(other, text)
    for (size, _), s, t in zip(a.head_names, a.logits(), b.logits()):
        assert torch.allclose(s, t, atol=1e-5) == (size == 8)


# ---- vision-aided heads

VISION_AIDED = replace(
    SMALL, vision_aided_model="critters-clip", vision_aided_channels=8
)


def test_vision_aided_encoder_is_frozen_and_in_no_file():
    "Gradients pass through the frozen encoder to the image; it follows the weights."
    D = make_discriminator(VISION_AIDED)
    assert not any(
        "clip" in name for name, _ in [*D.named_parameters(), *D.state_dict().items()]
    )
    x = [p.requires_grad_() for p in images(2, VISION_AIDED)]
    logits = D.score(D.features(x), texts(2)).logits()[-3:]
    gradients = torch.autograd.grad(sum(s.sum() for s in logits), x, allow_unused=True)
    assert (
        gradients[0] is None and (gradients[1].flatten(1).abs().amax(1) > 0).all()
    )  # the largest image only
    assert all(
        p.grad is None and not p.requires_grad
        for p in D.vision_aided.tower.clip.parameters()
    )
    assert all(
        p.dtype == torch.float64
        for p in D.double().vision_aided.tower.clip.parameters()
    )


def test_vision_aided_heads_change_no_other_score():
    D, plain, levels, text = (
        make_discriminator(VISION_AIDED),
        make_discriminator(SMALL),
        images(3),
        texts(3),
    )
    plain.load_state_dict(
        {k: v for k, v in D.state_dict().items() if "vision_aided" not in k}
    )
    with torch.no_grad():
        a, b = D(levels, text), plain(levels, text)
    assert (
        a.head_names
        == b.head_names
        + [("vision_aided", 1), ("vision_aided", 2), ("vision_aided", 3)]
        == VISION_AIDED.head_names
    )
    for s, t in zip(a.logits(), b.logits()):
        assert torch.equal(s, t)


def test_a_style_gives_the_same_scores_as_its_text():
    D, levels, text = make_discriminator(VISION_AIDED), images(3), texts(3)
    with torch.no_grad():
        seen, style = D.features(levels), D.text_to_style(text)
        assert torch.equal(D.score(seen, style).mean(), D.score(seen, text).mean())


# ---- one frozen encoder for several losses


@pytest.fixture
def tower():
    "With `passes`, the images that went through its first convolution."
    tower = FrozenTower(CLIP.from_pretrained("critters-clip"))
    tower.passes = []
    first = tower.clip.image_encoder.stages[0]
    first.register_forward_hook(lambda m, i, o: tower.passes.append(len(i[0])))
    return tower


def pictures(seed=0, size=32):
    return randn(3, 3, size, size, seed=seed).clamp(-1, 1)


def test_shared_maps_are_those_of_the_model_and_so_are_their_gradients(tower):
    a = pictures().requires_grad_()
    b = a.detach().clone().requires_grad_()
    with tower.sharing():
        maps, again = tower.feature_maps(a), tower.feature_maps(a)
        embedding = tower.encode_image(a)
    assert len(tower.passes) == 1 and all(m is n for m, n in zip(maps, again))
    expected = tower.clip.feature_maps(b)
    assert all(torch.equal(m, n) for m, n in zip(maps, expected, strict=True))

    def total(maps, embedding):
        return sum(m.square().sum() for m in maps) + 1e3 * embedding[:, 0].sum()

    total(maps, embedding).backward()  # one for all that share
    total(expected, tower.clip.encode_image(b)).backward()
    error = (a.grad - b.grad).norm() / b.grad.norm()  # another order of sums
    assert b.grad.any() and error < 1e-5


@pytest.mark.parametrize("name", ["critters-clip", "critters-clip-score"])
@pytest.mark.parametrize("size", [16, 32, 48])
def test_embeddings_are_those_of_the_model(name, size):
    "Of an encoder of patches too, which has no feature maps."
    tower, x = FrozenTower(CLIP.from_pretrained(name)), pictures(size=size)
    for sharing in (False, True):
        with tower.sharing() if sharing else nullcontext():
            assert torch.equal(tower.encode_image(x), tower.clip.encode_image(x))


def test_nothing_is_kept_outside_of_the_block(tower):
    x = pictures()
    before = weakref.ref(tower.feature_maps(x)[0])
    assert before() is None  # without a block nothing is kept at all
    with tower.sharing():
        inside = weakref.ref(tower.feature_maps(x)[0])
        assert inside() is not None
        with tower.sharing():  # a block within a block begins with nothing
            tower.feature_maps(x)
        tower.feature_maps(x)
    assert inside() is None and len(tower.passes) == 3
    with pytest.raises(RuntimeError, match="in the block"):
        with tower.sharing():
            failed = weakref.ref(tower.feature_maps(x)[0])
            raise RuntimeError("in the block")
    assert failed() is None
    tower.feature_maps(x), tower.feature_maps(x)
    assert len(tower.passes) == 6


def test_maps_without_a_graph_are_not_given_to_a_loss_that_needs_one(tower):
    x = pictures().requires_grad_()
    with tower.sharing():
        with torch.no_grad():
            without = tower.feature_maps(x)
        with_graph = tower.feature_maps(x)
        with torch.no_grad():
            assert tower.feature_maps(x)[0] is without[0]
        assert tower.feature_maps(x)[0] is with_graph[0]
    assert not without[0].requires_grad and with_graph[0].requires_grad
    assert torch.autograd.grad(with_graph[2].sum(), x)[0].any()


def test_an_image_that_comes_to_need_a_gradient_is_computed_again(tower):
    x = pictures()  # real images: with and without gradients the maps are the same
    with tower.sharing():
        first = tower.feature_maps(x)
        with torch.no_grad():
            assert tower.feature_maps(x)[0] is first[0]
        x.requires_grad_()  # for a gradient penalty
        assert torch.autograd.grad(tower.feature_maps(x)[2].sum(), x)[0].any()


def test_an_image_that_is_changed_in_place_is_computed_again(tower):
    x = pictures()
    with tower.sharing():
        before = tower.feature_maps(x)[0]
        x.mul_(0.5)
        after = tower.feature_maps(x)[0]
        assert not torch.allclose(before, after, atol=1e-2)
        assert tower.feature_maps(x)[0] is after
    assert torch.equal(after, tower.clip.feature_maps(x)[0])
    with torch.inference_mode(), tower.sharing():  # there changes are not counted
        y = pictures()
        before = tower.feature_maps(y)[0]
        y.mul_(0.5)
        assert not torch.allclose(before, tower.feature_maps(y)[0], atol=1e-2)


def test_equal_images_in_another_tensor_are_not_the_same(tower):
    x, y = pictures(), pictures(seed=1)
    with tower.sharing():
        a, b = tower.feature_maps(x), tower.feature_maps(y)
        assert tower.feature_maps(x)[0] is a[0] and tower.feature_maps(y)[0] is b[0]
        assert tower.feature_maps(x.clone())[0] is not a[0]
    assert len(tower.passes) == 3


def test_heads_share_the_encoder_with_whoever_has_their_tower():
    D, levels = make_discriminator(VISION_AIDED), images(2, VISION_AIDED)
    tower, passes = D.vision_aided.tower, []
    tower.clip.image_encoder.stages[0].register_forward_hook(
        lambda *_: passes.append(1)
    )
    alone = D(levels, texts(2)).mean()
    with tower.sharing():
        shared = D(levels, texts(2)).mean()
        tower.encode_image(levels[-1])
    assert torch.equal(alone, shared) and len(passes) == 2


# ---- does every head depend on the text?


def text_gradients(D, levels, text):
    "For each text head the norm of its gradient in the pooled text, per sample."
    pooled = text.pooled.clone().requires_grad_()
    scores = D(levels, replace(text, pooled=pooled)).conditional
    return [
        torch.autograd.grad(s.sum(), pooled, retain_graph=True)[0].norm(dim=1)
        for s in scores
    ]


@pytest.mark.parametrize(
    "config",
    [SMALL, ONE, replace(SMALL, head_layers=0), VISION_AIDED],
    ids=["multi-scale", "one score", "shallow", "vision-aided"],
)
def test_every_head_depends_on_the_text_at_initialisation(config):
    "GG-3, PR-1: every score that is trained on depends on the text."
    D, levels, text = make_discriminator(config), images(4), texts(4)
    assert len(text_gradients(D, levels, text)) == len(config.head_names)
    for s in text_gradients(D, levels, text):
        assert (s > 1e-3).all()
    for t in tables(D, levels, text):
        assert interaction_residual(t).abs().max() > 1e-3  # image and text together


def test_every_head_depends_on_the_text_after_a_short_training():
    "GG-3, PR-1: each head has learned which text belongs to which image."
    D, text, rng = make_discriminator(), texts(4), seeded_generator(0, "short")
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])

    def draw(i, generator):
        return image_pyramid(
            (
                colours[i][:, :, None, None]
                + 0.5 * torch.randn(len(i), 3, 16, 16, generator=generator)
            ).clamp(-1, 1),
            SMALL.sizes,
        )

    optimizer = torch.optim.Adam(D.parameters(), 0.01, betas=(0.5, 0.99))
    for _ in range(40):
        i = torch.randperm(4, generator=rng).repeat(4)
        levels = draw(i, rng)
        loss = sum(
            (F.softplus(-a) + F.softplus(b)).mean()
            for a, b in zip(
                D(levels, text[i]).logits(), D(levels, text[(i + 1) % 4]).logits()
            )
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    levels = draw(torch.arange(4), seeded_generator(1, "short"))
    for s in text_gradients(D, levels, text):
        assert (s > 1e-3).all()
    for t in tables(D, levels, text):
        assert (
            interaction_residual(t).abs().max() > 0.1
            and (t.diagonal() > t.roll(-1, 1).diagonal()).float().mean() >= 0.75
        )


def test_interaction_residual_of_a_sum_is_zero():
    "GG-3: a score f(image) + g(caption) cannot separate right pairs from wrong ones."
    image, caption, both = randn(5), randn(4, seed=1), randn(5, 4, seed=2)
    added = image[:, None] + caption[None]
    assert interaction_residual(added).abs().max() < 1e-5 and torch.allclose(
        interaction_residual(added + both), interaction_residual(both), atol=1e-5
    )
    assert interaction_residual(both).abs().max() > 0.1
    square = added[:4]
    assert torch.allclose(
        square.diagonal().mean(), square.roll(1, 1).diagonal().mean(), atol=1e-6
    )


def test_the_unconditional_term_does_not_depend_on_the_text():
    D, levels = make_discriminator(), images(2)
    with torch.no_grad():
        a, b = D(levels, texts(2)), D(levels, texts(2, seed=5))
    assert all(torch.equal(p, q) for p, q in zip(a.unconditional, b.unconditional))
    assert all(
        torch.allclose(both, t + p)
        for both, t, p in zip(a.logits(), a.conditional, a.unconditional)
    )
    assert torch.allclose(a.mean(), sum(a.logits()) / 3, atol=1e-6)


# ---- gradients for R1, scales of scores


def test_r1_reaches_every_image_size():
    "GG-11: the score has a gradient in every image size, and R1 one in the weights."
    D, levels, text = (
        make_discriminator(),
        [p.requires_grad_() for p in images(2)],
        texts(2),
    )
    grads = torch.autograd.grad(D(levels, text).mean().sum(), levels, create_graph=True)
    assert all((g.flatten(1).abs().amax(1) > 0).all() for g in grads)
    sum(g.square().sum() for g in grads).backward()
    for name, p in D.named_parameters():
        assert p.grad is None or p.grad.isfinite().all(), name
    reached = {
        n for n, p in D.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {
        "from_rgb.8.weight",
        "from_rgb.16.weight",
        "blocks.8.self_attn.qk",
        "text_heads.8.score.weight",
    } <= reached


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        ONE,
        replace(SMALL, text_conditional=False),
        replace(ONE, text_conditional=False),
    ],
    ids=["all", "one", "unconditional", "one, unconditional"],
)
def test_every_parameter_learns_at_once(config):
    "JZ-2: every parameter gets a gradient, with every switch."
    D = make_discriminator(config)
    optimizer = torch.optim.Adam(D.parameters(), 0.01)
    for step in (1, 2):  # text layers start with a zero factor: from the second step on
        optimizer.zero_grad()
        sum(
            F.softplus(-s).mean()
            for s in D(
                images(2), texts(2) if config.text_conditional else None
            ).logits()
        ).backward()
        still = [
            n for n, p in D.named_parameters() if p.grad is None or not p.grad.any()
        ]
        assert not [n for n in still if step == 2 or "text_layers" not in n], still
        optimizer.step()


def test_scores_have_one_scale_at_every_width():
    "GG-7: the scale of the scores does not depend on the width of the layers."
    sizes = []
    for c in (16, 64, 128):
        config = DiscriminatorConfig(
            (8, 16), (c, c), (True, False), text_dim=12, style_dim=c
        )
        with torch.no_grad():
            scores = make_discriminator(config)(images(16), texts(16))
        sizes.append(torch.stack(scores.logits()).square().mean().sqrt().item())
    assert max(sizes) < 4 * min(sizes) and 0.1 < min(sizes) and max(sizes) < 10, sizes


def test_the_score_does_not_depend_on_the_size_of_the_map():
    "Scores are means over positions: a map four times as large has the same score."
    torch.manual_seed(0)
    head, x, style = TextHead(8, 16), randn(2, 8, 3, 3), randn(2, 16)
    assert torch.allclose(
        head(x.repeat_interleave(2, 2).repeat_interleave(2, 3), style),
        head(x, style),
        atol=1e-5,
    )


def test_a_block_halves_the_sides_and_keeps_the_scale():
    torch.manual_seed(0)
    for heads in (0, 4):
        out = DiscriminatorBlock(16, 24, heads)(randn(4, 16, 8, 6))
        assert out.shape == (4, 24, 4, 3) and 0.4 < out.std() < 1.6


# ---- what it is made of


def test_a_discriminator_is_built_from_its_config_and_holds_no_encoder():
    "GG-6, GG-12: no text encoder is needed to build it, and none is stored in it."
    D = make_discriminator(
        DiscriminatorConfig(
            SMALL.sizes, SMALL.channels, SMALL.attention, text_dim=20, style_dim=8
        )
    )
    assert D(images(2), texts(2, dim=20)).mean().shape == (2,)
    assert {n.split(".")[0] for n, _ in D.named_parameters()} == {
        "from_rgb",
        "blocks",
        "unconditional_heads",
        "text_to_style",
        "text_heads",
    } and not list(D.buffers())
    copy = make_discriminator(D.config, seed=1)
    copy.load_state_dict(D.state_dict())
    with torch.no_grad():
        assert torch.equal(
            copy(images(2), texts(2, dim=20)).mean(),
            D(images(2), texts(2, dim=20)).mean(),
        )


def test_without_text():
    D, levels = make_discriminator(replace(SMALL, text_conditional=False)), images(2)
    scores = D(levels)
    assert (
        scores.conditional == []
        and len(scores.unconditional) == 3
        and all(
            torch.equal(a, b) for a, b in zip(scores.logits(), scores.unconditional)
        )
    )
    assert not any(n.startswith("text_") for n, _ in D.named_parameters())


def test_a_single_score_uses_the_largest_image_only():
    D, levels, text = make_discriminator(ONE), images(2), texts(2)
    other = [randn(2, 3, 8, 8, seed=4), levels[1]]
    with torch.no_grad():
        a, b = D(levels, text), D(other, text)
    assert (
        a.head_names == [(16, 4)]
        and len(a.conditional) == len(a.unconditional) == 1
        and torch.equal(a.mean(), b.mean())
    )


def test_what_does_not_fit_is_refused():
    "PR-1: a missing text is an error, and so is one that would be ignored."
    D, levels = make_discriminator(), images(2)
    with pytest.raises(UserError, match="this discriminator is conditioned on text"):
        D(levels)
    with pytest.raises(UserError, match="this discriminator is unconditional"):
        make_discriminator(replace(SMALL, text_conditional=False))(levels, texts(2))
    with pytest.raises(
        UserError, match=r"give images of \(8, 16\) pixels, not \(16, 8\)"
    ):
        D(levels[::-1], texts(2))
    with pytest.raises(UserError, match=r"not \(16,\)"):
        D(levels[1:], texts(2))
    with pytest.raises(UserError, match="2 images but 3 texts"):
        D(levels, texts(3))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(sizes=(8, 32)), "each twice the one before"),
        (dict(sizes=(16, 8)), "each twice the one before"),
        (dict(sizes=()), "each twice"),
        (dict(sizes=(5, 10)), "must be even"),
        (dict(channels=(16,)), "one value for each of the 2 sizes"),
        (dict(attention=(True,)), "one value for each"),
        (dict(channels=(18, 8)), "multiple of the 4 heads, not 18"),
        (dict(channels=(16, 0)), "at least 1"),
        (dict(style_dim=0), "style_dim must be at least 1"),
        (dict(heads=0), "heads must be at least 1"),
        (dict(head_layers=-1), "head_layers must be at least 0"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)


def test_a_configuration_survives_a_file():
    assert DiscriminatorConfig(**json.loads(json.dumps(asdict(SMALL)))) == SMALL
