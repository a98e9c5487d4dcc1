"""Chapter 8: attention against slow loops and PyTorch's own layer, and the properties
that shapes cannot show.
"""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from t2i_tutorial.attention import (
    CrossAttention2d,
    L2SelfAttention2d,
    MultiHeadAttention,
    SelfAttention2d,
    attention_weights,
    pairwise_squared_distance,
)
from t2i_tutorial.core import UserError, seeded_generator


def randn(*shape, seed=0):
    return torch.randn(
        *shape, generator=seeded_generator(seed, "test attention", *shape)
    )


def awake(module, scale=0.3):
    "With random numbers wherever the module begins with zeros."
    for i, p in enumerate(module.parameters()):
        if not p.any():
            p.data = scale * randn(*p.shape, seed=i)
    return module


def slowly(attn, x, context, mask):
    "One sample, one head, one query at a time, over the allowed keys only, in float64."
    attn, x, context = attn.double(), x.double(), context.double()
    size = x.shape[-1] // attn.heads
    weight_k, weight_v = attn.kv.weight.chunk(2)
    y = torch.zeros_like(x)
    for b in range(len(x)):
        for h in range(attn.heads):
            part = slice(h * size, (h + 1) * size)
            keys, values = (
                context[b, mask[b]] @ w[part].T for w in (weight_k, weight_v)
            )
            for i in range(x.shape[1]):
                w = ((x[b, i] @ attn.q.weight[part].T) @ keys.T / size**0.5).softmax(0)
                y[b, i, part] = w @ values
    return y @ attn.out.weight.T + attn.out.bias


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_equals_a_slow_loop(heads):
    attn, x, context = (
        awake(MultiHeadAttention(16, 12, heads)),
        randn(3, 5, 16),
        randn(3, 7, 12),
    )
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    ours = attn(x, context, mask)
    with torch.no_grad():
        assert torch.allclose(ours.double(), slowly(attn, x, context, mask), atol=1e-5)


@pytest.mark.parametrize("cross", [False, True])
def test_equals_torch_multihead_attention(cross):
    attn, x = awake(MultiHeadAttention(24, heads=4)), randn(2, 6, 24)
    context, mask = (
        (randn(2, 5, 24, seed=1), torch.arange(5) < torch.tensor([[5], [2]]))
        if cross
        else (x, torch.arange(6) < torch.tensor([[6], [3]]))
    )
    theirs = nn.MultiheadAttention(24, 4, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([attn.q.weight, attn.kv.weight])
    theirs.out_proj.load_state_dict(attn.out.state_dict())
    expected, weights = theirs(
        x, context, context, key_padding_mask=~mask, average_attn_weights=False
    )
    assert torch.allclose(
        attn(x, context if cross else None, mask), expected, atol=1e-5
    )
    assert torch.allclose(attention_weights(attn, x, context, mask), weights, atol=1e-6)


def test_one_head_is_scaled_dot_product():
    attn, x = awake(MultiHeadAttention(8, heads=1)), randn(2, 5, 8)
    k, v = attn.kv(x).chunk(2, dim=-1)
    assert torch.allclose(
        attn(x),
        attn.out(F.scaled_dot_product_attention(attn.q(x), k, v)),
        atol=1e-6,
    )


def test_begins_as_nothing():
    x, tokens, mask = (
        randn(2, 16, 4, 6),
        randn(2, 3, 12),
        torch.ones(2, 3, dtype=torch.bool),
    )
    assert not MultiHeadAttention(16)(randn(2, 5, 16)).any()
    assert torch.equal(SelfAttention2d(16)(x), x) and torch.equal(
        CrossAttention2d(16, 12)(x, tokens, mask), x
    )


def test_permutation_equivariance_over_places():
    """JZ-1: a peer attends over the batch; shuffled positions must give shuffled
    answers.
    """
    attn, x, order = (
        awake(MultiHeadAttention(16)),
        randn(2, 9, 16),
        torch.randperm(9, generator=seeded_generator(0, "order")),
    )
    assert torch.allclose(attn(x[:, order]), attn(x)[:, order], atol=1e-6)
    assert not torch.allclose(attn(x[:, order]), attn(x), atol=1e-3)


def test_self_attention_2d_mixes_places_along_both_axes():
    """JZ-1: every place must hear of every other, whatever the order of height and
    width.
    """
    layer, x = awake(SelfAttention2d(16)), randn(1, 16, 3, 5)
    assert torch.allclose(layer(x.flip(2, 3)), layer(x).flip(2, 3), atol=1e-5)
    assert torch.allclose(layer(x.transpose(2, 3)), layer(x).transpose(2, 3), atol=1e-5)
    attn, positions = layer.attn, randn(1, 15, 16)
    for j in (0, 7, 14):
        changed = positions.clone()
        changed[0, j] += 1
        assert ((attn(changed) - attn(positions)).abs().amax(-1)[0] > 1e-4).all()


@pytest.mark.parametrize("kind", ["positions", "words"])
def test_samples_are_independent(kind):
    "JZ-1: changing one sample must leave the others as they are."
    x, tokens, mask = (
        randn(3, 16, 4, 4),
        randn(3, 5, 12),
        torch.ones(3, 5, dtype=torch.bool),
    )
    layer = awake(
        SelfAttention2d(16) if kind == "positions" else CrossAttention2d(16, 12)
    )
    call = (
        (lambda x, t: layer(x))
        if kind == "positions"
        else (lambda x, t: layer(x, t, mask[: len(x)]))
    )
    other, said = x.clone(), tokens.clone()
    other[1], said[1] = randn(16, 4, 4, seed=8), randn(5, 12, seed=8)
    before, after = call(x, tokens), call(other, said)
    assert torch.allclose(
        before[[0, 2]], after[[0, 2]], atol=1e-6
    ) and not torch.allclose(before[1] - x[1], after[1] - other[1], atol=1e-3)
    assert torch.allclose(
        call(x[2:], tokens[2:])[0], before[2], atol=1e-5
    )  # alone as in a crowd


def test_cross_attention_reads_the_words():
    """MI-14: a peer's text never enters through tokens; here other words give another
    map, and so do other words of one text.
    """
    layer, x, tokens, mask = (
        awake(CrossAttention2d(16, 12)),
        randn(1, 16, 4, 4),
        randn(1, 5, 12),
        torch.ones(1, 5, dtype=torch.bool),
    )
    changed = tokens.clone()
    changed[0, 2] = randn(12, seed=3)
    assert (layer(x, changed, mask) - layer(x, tokens, mask)).abs().max() > 1e-3
    assert torch.allclose(
        layer(x, tokens.flip(1), mask), layer(x, tokens, mask), atol=1e-5
    )  # but their order is the encoder's affair


def test_padding_has_no_influence():
    """MI-4: a peer's padding dilutes the text. Neither its content nor its length may
    matter.
    """
    layer, x, tokens = (
        awake(CrossAttention2d(16, 12)),
        randn(2, 16, 4, 4),
        randn(2, 6, 12),
    )
    mask = torch.arange(6) < torch.tensor([[6], [2]])
    expected = layer(x, tokens, mask)
    rubbish = tokens.masked_fill(~mask[..., None], 1e4)
    longer = F.pad(rubbish, (0, 0, 0, 11), value=-3.0), F.pad(mask, (0, 11))
    assert torch.allclose(
        layer(x, rubbish, mask), expected, atol=1e-6
    ) and torch.allclose(layer(x, *longer), expected, atol=1e-5)
    assert torch.allclose(
        layer(x[1:], tokens[1:, :2], mask[1:, :2]), expected[1:], atol=1e-5
    )  # or cut it off
    assert not torch.allclose(
        layer(x, rubbish, torch.ones_like(mask)), expected, atol=1e-3
    )  # without the mask it would


def test_weights_are_shares_and_masked_ones_are_zero():
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    w = attention_weights(
        MultiHeadAttention(16, 12, 2), randn(2, 4, 16), randn(2, 5, 12), mask
    )
    assert (
        w.shape == (2, 2, 4, 5)
        and (w >= 0).all()
        and torch.allclose(w.sum(-1), torch.ones(2, 2, 4))
    )
    assert not w[1, ..., 3:].any() and w[1, ..., :3].min() > 0


def steps(module, loss, n=3):
    "The largest gradient of every parameter in each of the first steps."
    rows, optimizer = [], torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(n):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        rows.append(
            {n: p.grad.abs().max().item() for n, p in module.named_parameters()}
        )
    return rows


def test_one_zero_factor_never_two():
    """JZ-2: with q, v and out all zero a peer's attention is dead for ever; ours learns
    in the first step, all of it from the second.
    """
    attn, x, goal = MultiHeadAttention(16), randn(2, 9, 16), randn(2, 9, 16, seed=5)
    assert not attn.out.weight.any() and all(
        p.any() for n, p in attn.named_parameters() if not n.startswith("out")
    )
    rows = steps(attn, lambda: (attn(x) - goal).square().mean())
    assert rows[0]["out.weight"] > 0 and min(rows[1].values()) > 0
    nn.init.zeros_(attn.out.weight)
    nn.init.zeros_(
        attn.kv.weight
    )  # the fault itself, to know that the check can see it
    rows = steps(attn, lambda: (attn(x) - goal).square().mean())
    assert not any(
        row[n] for row in rows for n in ("q.weight", "kv.weight", "out.weight")
    )


def test_gradients_reach_every_parameter_of_the_wrappers():
    """MI-1: parameters that no optimizer can reach; JZ-2: parameters that no gradient
    reaches.
    """
    x, tokens, mask = (
        randn(2, 16, 4, 4),
        randn(2, 5, 12),
        torch.ones(2, 5, dtype=torch.bool),
    )
    for layer, call in (
        (s := SelfAttention2d(16), lambda: s(x)),
        (c := CrossAttention2d(16, 12), lambda: c(x, tokens, mask)),
    ):
        goal = randn(2, 16, 4, 4, seed=4)
        rows = steps(layer, lambda f=call, y=goal: (f() - y).square().mean())
        assert min(rows[-1].values()) > 0, rows[-1]


@pytest.mark.parametrize("dim, heads", [(16, 3), (10, 4), (16, 0)])
def test_heads_must_divide_channels(dim, heads):
    with pytest.raises(
        UserError, match=f"{dim} channels cannot be cut into {heads} heads"
    ):
        MultiHeadAttention(dim, heads=heads)


def test_parameters_are_counted_by_hand():
    "MI-3: a peer's class builds other sizes than its name says."
    assert (
        sum(p.numel() for p in MultiHeadAttention(32, 20, 4).parameters())
        == 32 * 32 + 2 * 20 * 32 + 32 * 32 + 32
    )


# ---- by distance


def l2(channels=16, heads=4, **options):
    torch.manual_seed(0)
    return L2SelfAttention2d(channels, heads, **options)


def test_squared_distance_is_that_of_differences():
    q, k = randn(2, 3, 5, 8), randn(2, 3, 7, 8, seed=1)
    exact = (q.double()[..., None, :] - k.double()[..., None, :, :]).square().sum(-1)
    assert torch.allclose(pairwise_squared_distance(q, k).double(), exact, atol=1e-4)
    assert torch.allclose(
        pairwise_squared_distance(q, k), torch.cdist(q, k).square(), atol=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_squared_distance_is_taken_in_32_bits(dtype):
    """Large terms with a small difference.

    In 16 bits the error would be larger than the distances.
    """
    q = (8 + randn(9, 32)).to(dtype)
    exact = (q.double()[:, None] - q.double()).square().sum(-1)
    with torch.autocast("cpu", torch.bfloat16):
        d = pairwise_squared_distance(q, q)
    assert d.dtype == torch.float32 and (d - exact).abs().max() < 0.01
    sizes = q.square().sum(-1)
    assert (
        sizes[:, None] + sizes - 2 * q @ q.T - exact
    ).abs().max() > 1  # the fault itself
    with torch.autocast("cpu", torch.bfloat16):
        assert l2()(randn(2, 16, 4, 4)).isfinite().all()
    assert l2().to(dtype)(randn(2, 16, 4, 4).to(dtype)).dtype == dtype


def l2_slowly(layer, x):
    "One sample, one head, one place at a time, by differences, in float64."
    layer, x = layer.double(), x.double()
    heads, c, channels = layer.qk.shape
    y = torch.zeros_like(x)
    for b in range(len(x)):
        for h in range(heads):
            q = x[b] @ layer.qk[h].T / channels**0.5
            v = q @ layer.v[h].T / c**0.5
            for i in range(x.shape[1]):
                w = torch.stack(
                    [
                        -((q[i] - q[j]) ** 2).sum() / (8 * c) ** 0.5
                        for j in range(x.shape[1])
                    ]
                ).softmax(0)
                y[b, i, h * c : (h + 1) * c] = w @ v
    return y @ layer.out.T / channels**0.5


@pytest.mark.parametrize("heads", [1, 4])
def test_l2_attention_equals_a_slow_loop(heads):
    layer, x = l2(heads=heads), randn(2, 6, 16)
    ours, maps = layer.attention(x), layer(rearrange(x, "b (h w) c -> b c h w", h=2))
    with torch.no_grad():
        slow = l2_slowly(layer, x)
        assert torch.allclose(ours.double(), slow, atol=1e-5)
        assert torch.allclose(
            maps.double(),
            rearrange(x + 0.1 * slow, "b (h w) c -> b c h w", h=2),
            atol=1e-5,
        )


def test_l2_attention_is_equivariant_over_places_and_independent_across_the_batch():
    """JZ-1: a peer's L2 attention takes the batch for the sequence: samples leak,
    positions are blind.
    """
    layer, x, order = (
        l2(),
        randn(3, 16, 3, 5),
        torch.randperm(15, generator=seeded_generator(0, "order")),
    )
    flat = x.flatten(2)
    assert torch.allclose(
        layer.attention(flat.mT[:, order]),
        layer.attention(flat.mT)[:, order],
        atol=1e-5,
    )
    assert torch.allclose(layer(x.transpose(2, 3)), layer(x).transpose(2, 3), atol=1e-5)
    other = x.clone()
    other[1] = randn(16, 3, 5, seed=8)
    assert torch.allclose(layer(other)[[0, 2]], layer(x)[[0, 2]], atol=1e-6)
    assert torch.allclose(layer(x[2:])[0], layer(x)[2], atol=1e-5)
    for j in (0, 7, 14):
        changed = flat.mT.clone()
        changed[0, j] += 1
        moved = (layer.attention(changed) - layer.attention(flat.mT)).abs().amax(-1)
        assert (moved[0] > 1e-6).all() and not moved[1:].any()


def test_l2_attention_is_alive_at_step_0():
    """JZ-2: a peer begins with q, v and out at zero and stays there; here every weight
    has a slope in the very first step.
    """
    layer, x = l2(), randn(2, 16, 4, 4)
    rows = steps(
        layer, lambda: (layer(x) - randn(2, 16, 4, 4, seed=4)).square().mean(), n=1
    )
    assert (
        set(rows[0]) == {"qk", "v", "out", "gain"} and min(rows[0].values()) > 1e-6
    ), rows[0]
    added = (l2()(x) - x).std() / x.std()
    assert 0.001 < added < 0.2 and (l2(gain=0.0)(x) == x).all()


def test_l2_attention_has_a_second_derivative():
    """R1 trains on a slope.

    At a distance of zero, which each place has to itself, a root would make it NaN.
    """
    layer, x = l2(8, 2).double(), randn(1, 8, 1, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, x) and torch.autograd.gradgradcheck(layer, x)
    same = torch.ones(
        1, 8, 2, 2, dtype=torch.float64, requires_grad=True
    )  # all positions alike
    (slope,) = torch.autograd.grad(layer(same).square().sum(), same, create_graph=True)
    slope.square().sum().backward()
    assert same.grad.isfinite().all() and all(
        p.grad is None or p.grad.isfinite().all() for p in layer.parameters()
    )


def test_l2_attention_compares_by_distance():
    """GG-11: a peer's attention is a dot product unless told otherwise. A distance does
    not change when all positions move together; a place is nearest to itself.
    """
    layer, x, shift = l2(), randn(2, 9, 16), 3 * randn(16, seed=5)
    w, _ = layer.weights_and_values(x)
    assert torch.allclose(w.sum(-1), torch.ones(2, 4, 9), atol=1e-5)
    assert torch.allclose(layer.weights_and_values(x + shift)[0], w, atol=1e-4)
    assert (w.diagonal(dim1=-2, dim2=-1) >= w.amax(-1) - 1e-6).all()
    plain = MultiHeadAttention(16)
    assert not torch.allclose(
        attention_weights(plain, x + shift), attention_weights(plain, x), atol=1e-2
    )


def steepest(answer, x):
    return torch.linalg.matrix_norm(
        torch.autograd.functional.jacobian(answer, x).reshape(x.numel(), -1), 2
    ).item()


def test_only_the_distance_bounds_the_slope():
    """Kim et al. 2021: one place at zero and the others far away break the dot product,
    and not the distance.
    """
    x = randn(1, 12, 16, seed=7)
    x[:, 0] = 0
    layer, plain = l2(), awake(MultiHeadAttention(16))
    dot, ours = (
        [steepest(f, s * x) for s in (1, 8, 64)] for f in (plain, layer.attention)
    )
    assert dot[2] > 20 * dot[1] > 20 * dot[0] and max(ours) < 20


def test_fits_begin_with_variance_1_whatever_the_width():
    for c in (8, 32, 128):
        layer = l2(c, heads=1)
        w, _ = layer.weights_and_values(randn(4, 64, c))
        away = w[0, 0].log()[
            ~torch.eye(64, dtype=torch.bool)
        ]  # the fits, up to a number for each row
        assert 0.4 < away.std() < 2, (c, away.std())


@pytest.mark.parametrize("channels, heads", [(16, 3), (10, 4), (16, 0)])
def test_l2_heads_must_divide_channels(channels, heads):
    with pytest.raises(
        UserError, match=f"{channels} channels cannot be cut into {heads} heads"
    ):
        L2SelfAttention2d(channels, heads)
