"""Chapter 24: losses of scores; which picture meets which caption; R1 over all inputs; CLIP's bank; one against one."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_tutorial import critters
from t2i_tutorial.clip import CLIP
from t2i_tutorial.core import UserError, seeded_generator
from t2i_tutorial.gan import losses as L
from t2i_tutorial.text import TextEmbedding


def noise(*shape, name="x"):
    return torch.randn(*shape, generator=seeded_generator(0, "losses", name, *shape))


def rng(seed=0):
    return seeded_generator(seed, "losses", "rng")


def texts(b, n=3, d=8):
    return TextEmbedding(
        noise(b, n, d, name="tokens"),
        torch.ones(b, n, dtype=torch.bool),
        noise(b, d, name="pooled"),
    )


class Critic(torch.nn.Module):
    "Two pictures and a text to four scores: two that see pictures only, two that compare with the text."

    def __init__(self, d=8):
        super().__init__()
        torch.manual_seed(0)
        self.look = torch.nn.ModuleList(torch.nn.Linear(3, d) for _ in range(2))
        self.plain = torch.nn.ModuleList(torch.nn.Linear(d, 1) for _ in range(2))

    def forward(self, pictures, text):
        seen = [look(x.mean((2, 3))) for look, x in zip(self.look, pictures)]
        return [p(s.square())[:, 0] for p, s in zip(self.plain, seen)] + [
            (s * text.pooled).sum(1) for s in seen
        ]


def batch(b):
    return [noise(b, 3, 8, 8, name="large"), noise(b, 3, 4, 4, name="small")]


# ---- logistic, over heads


@pytest.mark.parametrize("score", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_every_loss_and_its_slope_is_finite_far_out(score):
    "GG-4: a peer's matching loss is log(1 + exp(-x)) written out, infinite at x = -100."
    s = torch.full((3,), score, requires_grad=True)
    heads = [s, 2 * s]
    judged = L.PairLogits(heads, heads, heads, heads)
    turned = [-h for h in heads]
    values = [
        L.multihead_logistic_d_loss(heads, heads),
        L.multihead_logistic_g_loss(heads),
        L.matching_aware_loss(heads, heads),
        L.matching_aware_loss(heads),
        L.conditional_logistic_d_loss(judged),
        L.relativistic_d_loss(heads, turned),
        L.relativistic_g_loss(heads, turned),
    ]
    for v in values:
        assert (
            v.isfinite()
            and torch.autograd.grad(v, s, retain_graph=True)[0].isfinite().all()
        )


def test_losses_are_logistic_and_averaged_over_heads():
    "GG-11: a peer takes the hinge where the paper has the logistic loss."
    real, fake = [3 * noise(5), noise(5, name="b")], [noise(7), 3 * noise(7, name="b")]
    bce = F.binary_cross_entropy_with_logits
    d = (
        sum(bce(r, torch.ones(5)) + bce(f, torch.zeros(7)) for r, f in zip(real, fake))
        / 2
    )
    assert torch.allclose(L.multihead_logistic_d_loss(real, fake), d, atol=1e-6)
    assert torch.allclose(
        L.multihead_logistic_g_loss(fake),
        sum(bce(f, torch.ones(7)) for f in fake) / 2,
        atol=1e-6,
    )


@pytest.mark.parametrize("heads", [1, 6, 15])
def test_more_heads_are_no_larger_step(heads):
    s = noise(4).requires_grad_()
    (one,) = torch.autograd.grad(L.multihead_logistic_g_loss([s]), s)
    (many,) = torch.autograd.grad(L.multihead_logistic_g_loss([s] * heads), s)
    assert torch.allclose(one, many, atol=1e-6)


def test_a_head_counts_the_same_whatever_the_batch_of_the_others():
    assert torch.allclose(
        L.multihead_logistic_g_loss([torch.zeros(2), torch.full((200,), 1e3)]),
        torch.tensor(math.log(2) / 2),
    )


def test_lists_that_cannot_be_compared():
    with pytest.raises(UserError, match="list of heads is empty"):
        L.multihead_logistic_g_loss([])
    with pytest.raises(UserError, match=r"lists of \[2, 1\] heads"):
        L.multihead_logistic_d_loss([noise(2)] * 2, [noise(2)])


# ---- R1


def test_r1_is_the_analytic_value_on_a_quadratic_over_all_inputs():
    "GG-11: a peer penalises the picture only; pyramid inputs get no penalty."
    a, x = torch.tensor([2.0, 5.0], requires_grad=True), L.detach_with_grad(batch(6))
    penalty = L.zero_centered_gradient_penalty(
        sum(ai / 2 * xi.square().sum() for ai, xi in zip(a, x)), x
    )
    size = torch.stack([xi.detach().square().flatten(1).sum(1).mean() for xi in x])
    assert torch.allclose(penalty, (a.detach().square() * size).sum(), rtol=1e-5)
    assert torch.allclose(
        torch.autograd.grad(penalty, a)[0], 2 * a.detach() * size, rtol=1e-5
    )


def test_r1_of_a_network_is_that_of_finite_differences():
    critic, text, x = (
        Critic().double(),
        texts(2).to(torch.float64),
        L.detach_with_grad([p.double() for p in batch(2)]),
    )
    score = lambda pictures: torch.stack(critic(pictures, text)).mean(0)
    penalty, step, slow = L.zero_centered_gradient_penalty(score(x).sum(), x), 1e-5, 0.0
    for k, level in enumerate(x):
        for i in range(level[0].numel()):
            e = torch.zeros_like(level).flatten(1)
            e[:, i] = step
            moved = lambda s: [
                p + s * e.view_as(p) if j == k else p for j, p in enumerate(x)
            ]
            with torch.no_grad():
                up, down = score(moved(1)), score(moved(-1))
            slow += ((up - down) / (2 * step)).square().mean().item()
    assert penalty.item() == pytest.approx(slow, rel=1e-4)


def test_r1_does_not_depend_on_the_size_of_the_batch():
    critic, text, few = Critic(), texts(3), batch(3)

    def penalty(times):
        x = L.detach_with_grad([p.repeat(times, 1, 1, 1) for p in few])
        t = TextEmbedding(
            *(
                v.repeat(times, *[1] * (v.ndim - 1))
                for v in (text.tokens, text.mask, text.pooled)
            )
        )
        return L.zero_centered_gradient_penalty(
            torch.stack(critic(x, t)).mean(0).sum(), x
        ).item()

    assert penalty(4) == pytest.approx(penalty(1), rel=1e-4)


def test_r1_refuses_inputs_that_were_not_scored():
    "GG-11: a pyramid input that is forgotten is an error here, not a penalty of nothing."
    x = L.detach_with_grad(batch(2))
    with pytest.raises(UserError, match="does not depend on input 1"):
        L.zero_centered_gradient_penalty(x[0].sum(), x)
    with pytest.raises(UserError, match="input 0 keeps no slope"):
        L.zero_centered_gradient_penalty(x[0].sum(), batch(2))
    with torch.no_grad():
        score = x[0].sum()
    with pytest.raises(UserError, match="the score has no slope"):
        L.zero_centered_gradient_penalty(score, x[:1])


def test_r1_is_added_up_in_32_bits():
    "Squares of small slopes vanish in 16 bits; their sum is taken in 32."
    x = L.detach_with_grad([torch.zeros(2, 3, 8, 8, dtype=torch.float16)])
    penalty = L.zero_centered_gradient_penalty((x[0] * 1e-4).sum(), x)
    assert penalty.dtype == torch.float32 and penalty.item() == pytest.approx(
        192 * 1e-8, rel=0.05
    )


def test_watched_leaves_the_originals_alone():
    pictures = batch(2)
    for old, new in zip(pictures, L.detach_with_grad(pictures)):
        assert new.requires_grad and not old.requires_grad and torch.equal(old, new)


@pytest.mark.parametrize("every", [1, 4, 16])
def test_lazy_penalty_weighs_gamma_half_on_average(every):
    assert sum(
        L.lazy_penalty_weight(k, 0.8, every) for k in range(160)
    ) / 160 == pytest.approx(0.4)


def test_lazy_adam_is_corrected():
    said = L.lazy_adam_kwargs(0.02, (0.0, 0.99), 16)
    assert said == {
        "lr": pytest.approx(0.02 * 16 / 17),
        "betas": (0.0, pytest.approx(0.99 ** (16 / 17))),
    }
    for every in (0, -3):
        with pytest.raises(UserError, match=f"not every {every}"):
            L.lazy_adam_kwargs(0.02, (0.0, 0.99), every)


# ---- wrong captions


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), max_size=24), st.integers(0, 5))
def test_derange_never_hands_out_an_equal_caption(captions, seed):
    "GG-2: a wrong caption must be wrong, whatever repeats; each is used once; all are, unless one has the majority."
    rows, wrong = (i.tolist() for i in L.mismatched_indices(captions, rng(seed)))
    assert all(captions[i] != captions[j] for i, j in zip(rows, wrong, strict=True))
    assert len(set(rows)) == len(rows) and sorted(rows) == sorted(wrong)
    most = max(Counter(captions).values(), default=0)
    assert len(rows) == (
        len(captions) if 2 * most <= len(captions) else 2 * (len(captions) - most)
    )


def test_derange_where_nothing_is_left_to_say():
    for captions in ([], ["a"], ["a"] * 5):
        assert len(L.mismatched_indices(captions, rng())[0]) == 0


def test_derange_varies_and_repeats_with_its_stream():
    captions = [f"caption {i}" for i in range(16)]
    pairs = [
        dict(zip(*(i.tolist() for i in L.mismatched_indices(captions, rng(s)))))
        for s in (0, 0, 1)
    ]
    assert pairs[0] == pairs[1] != pairs[2]


def test_derange_compares_what_is_stated_if_asked():
    captions = [
        "a red dragon",
        "a drawing of a red dragon",
        "a blue owl",
        "an owl, blue",
    ] * 2
    stated = ["red dragon", "red dragon", "blue owl", "blue owl"] * 2
    for seed in range(20):
        pairs = list(
            zip(*(k.tolist() for k in L.mismatched_indices(stated, rng(seed))))
        )
        assert len(pairs) == 8 and all(
            stated[i] != stated[j] and captions[i] != captions[j] for i, j in pairs
        )


class Recorder:
    "Notes which picture met which text: pictures carry their number in every pixel, texts in every entry."

    def __init__(self):
        self.calls = []

    def __call__(self, pictures, text):
        for p in pictures:
            assert torch.equal(p[:, 0, 0, 0], pictures[0][:, 0, 0, 0])
        numbers = pictures[0][:, 0, 0, 0], text.pooled[:, 0], text.tokens[:, 0, 0]
        self.calls.append(list(zip(*(n.tolist() for n in numbers))))
        return [pictures[0][:, 0, 0, 0]]


def numbered(b):
    n = torch.arange(b, dtype=torch.float)
    pictures = [n.view(-1, 1, 1, 1).expand(b, 3, s, s) for s in (8, 4)]
    mask = torch.ones(b, 2, dtype=torch.bool)
    text = TextEmbedding(
        n.view(-1, 1, 1).expand(b, 2, 4), mask, n[:, None].expand(b, 4)
    )
    return pictures, [100 + p for p in pictures], text


def test_real_and_generated_pictures_meet_their_own_captions():
    "GG-1: a peer draws a second batch for the generator, and its captions are used for the real pictures."
    real, fake, text = numbered(8)
    seen = Recorder()
    L.score_pairs(seen, real, fake, text, list("abcdefgh"), rng())
    assert seen.calls[0] == [(i, i, i) for i in range(8)] and seen.calls[1] == [
        (100 + i, i, i) for i in range(8)
    ]


def test_wrong_captions_are_the_exchanged_ones():
    "GG-2: a peer builds the rotated list and hands over the other one. Tokens and pooled vector must move together."
    real, fake, text = numbered(8)
    captions = list("aabbcdef")
    for seed in range(10):
        seen = Recorder()
        L.score_pairs(seen, real, fake, text, captions, rng(seed))
        for call, offset in zip(seen.calls[2:], (0, 100), strict=True):
            assert len(call) == 8 and all(pooled == token for _, pooled, token in call)
            assert all(
                captions[int(p - offset)] != captions[int(c)] for p, c, _ in call
            )
            assert (
                {p - offset for p, *_ in call}
                == {c for _, c, _ in call}
                == set(map(float, range(8)))
            )


def test_a_majority_is_judged_as_far_as_it_goes_and_equal_captions_not_at_all():
    real, fake, text = numbered(4)
    judged = L.score_pairs(Recorder(), real, fake, text, list("aaab"), rng())
    assert (
        len(judged.real[0]) == 4
        and len(judged.mismatched_real[0]) == len(judged.mismatched_fake[0]) == 2
    )
    judged = L.score_pairs(Recorder(), real, fake, text, list("aaaa"), rng())
    assert judged.mismatched_real == [] and torch.equal(
        L.conditional_logistic_d_loss(judged),
        L.multihead_logistic_d_loss(judged.real, judged.fake),
    )


def test_batches_that_do_not_belong_together_are_refused(untyped):
    "GG-1: pictures of one batch and captions of another differ in number sooner or later; they are refused at once."
    real, fake, text = numbered(4)
    for bad in (
        (real, [p[:3] for p in fake], text, list("abcd")),
        (real, fake, text[[0, 1]], list("abcd")),
        (real, fake, text, list("abc")),
    ):
        with pytest.raises(UserError, match="take all from one batch"):
            L.score_pairs(Recorder(), *bad, rng())


# ---- matching-aware


def test_what_is_true_weighs_as_much_as_what_is_false():
    "PR-1: a peer's matching loss is the generated term three times and never touches a real picture."
    kinds = [torch.zeros(4, requires_grad=True) for _ in range(4)]
    for match, parts in (
        (0.5, (-1, 0.5, 0.25, 0.25)),
        (0.2, (-1, 0.8, 0.1, 0.1)),
        (1.0, (-1, 0, 0.5, 0.5)),
    ):
        slopes = torch.autograd.grad(
            L.conditional_logistic_d_loss(L.PairLogits(*([k] for k in kinds)), match),
            kinds,
            allow_unused=True,
        )
        for s, part in zip(slopes, parts):  # the slope of softplus at 0 is 1/2
            assert (0 if s is None else s.sum().item()) == pytest.approx(
                part / 2, abs=1e-6
            )


def test_without_matching_it_is_the_logistic_loss():
    heads = [[noise(4, name=str(k))] for k in range(4)]
    assert torch.equal(
        L.conditional_logistic_d_loss(L.PairLogits(*heads), 0.0),
        L.multihead_logistic_d_loss(heads[0], heads[1]),
    )


@pytest.mark.parametrize("match", [-0.1, 1.1, float("nan")])
def test_senseless_shares_are_refused(match):
    heads = [noise(4)]
    with pytest.raises(UserError, match="match must be from 0 to 1"):
        L.conditional_logistic_d_loss(L.PairLogits(heads, heads, heads, heads), match)


def test_matching_pulls_all_heads_that_read():
    "GG-3, PR-1: the matching loss must reach the weights that compare picture and text; a text head has a slope in it."
    critic, text = Critic(), texts(6)
    slopes = L.text_gradient_per_head(critic, batch(6), text)
    assert (slopes[:2] == 0).all() and (slopes[2:] > 1e-2).all()
    judged = L.score_pairs(
        critic, batch(6), [x.flip(0) for x in batch(6)], text, list("abcdef"), rng()
    )
    L.matching_aware_loss(
        judged.mismatched_real[2:], judged.mismatched_fake[2:]
    ).backward()
    assert all(look.weight.grad.abs().max() > 0 for look in critic.look)


def test_a_deaf_discriminator_is_found_out():
    "GG-3: the peer's score in this loss does not change with the caption. No slope, and no way below 2 log 2."

    def deaf(pictures, text):
        return [pictures[0].mean((1, 2, 3)), pictures[1].sum((1, 2, 3)).detach()]

    assert L.text_gradient_per_head(deaf, batch(4), texts(4)).tolist() == [0, 0]
    same = [3 * noise(64)]  # real pictures, right or wrong caption: one score
    assert L.conditional_logistic_d_loss(
        L.PairLogits(same, same, same, same), 1.0
    ) >= 2 * math.log(2)


def test_text_slopes_sees_tokens_and_pooled_and_leaves_the_text_alone():
    text = texts(3)
    tokens_only = lambda pictures, t: [
        (t.tokens.square() * t.mask[..., None]).sum((1, 2))
    ]
    expected = 2 * text.tokens.abs().max().item()
    assert L.text_gradient_per_head(tokens_only, batch(3), text)[
        0
    ].item() == pytest.approx(expected, rel=1e-5)
    assert not text.tokens.requires_grad and not text.pooled.requires_grad


# ---- CLIP


@pytest.fixture(scope="module")
def clip():
    return CLIP.from_pretrained("critters-clip")


KINDS = (("dragon", "red"), ("fish", "blue"), ("cat", "green"), ("owl", "brown"))
FOUR = [critters.Critter(s, c, "pink") for s, c in KINDS]
WORDS = [f"a {c.body_colour} {c.species}" for c in FOUR]
BANK = sorted({f"a {a} {s}" for a in critters.COLOURS for s in critters.SPECIES})


def test_clip_loss_is_the_formula_in_float64(clip):
    "PR-2, GG-8: both vectors projected, of length 1, from the same model; texts really encoded; written out slowly."
    bank = WORDS + ["a yellow snail", "a black duck"]
    x = critters.render(FOUR, 32)
    with torch.no_grad():
        vectors = clip.encode_image(x), clip.encode_text(bank), clip.scale
    seen, said, scale = (v.double() for v in vectors)
    for v in (seen, said):
        assert torch.allclose(v.norm(dim=1), torch.ones(len(v)).double(), atol=1e-5)
    share = lambda i, k: (
        (scale * seen[i] @ said[k]).exp()
        / sum((scale * seen[i] @ t).exp() for t in said)
    )
    for turn in (0, 1):  # right captions, and wrong ones, where the loss is far from 0
        slow = sum(-share(i, (i + turn) % 4).log() for i in range(4)) / 4
        found = L.CLIPContrastiveLoss(clip, bank)(x, WORDS[turn:] + WORDS[:turn])
        assert found.item() == pytest.approx(slow.item(), abs=1e-3) and (
            slow > 1
        ) == bool(turn)


def test_equal_captions_are_no_negatives(clip):
    x = critters.render(FOUR[:1], 32)
    alone, doubled = (
        L.CLIPContrastiveLoss(clip, bank)
        for bank in (["a blue fish"], ["a blue fish", WORDS[0]] * 2)
    )
    assert doubled.captions == ["a blue fish", WORDS[0]]
    assert torch.allclose(alone(x, WORDS[:1]), doubled(x, WORDS[:1]), atol=1e-6)


def test_what_says_the_same_is_no_negative_if_asked(clip):
    says = lambda c: tuple(sorted(critters.parse_caption(c).items()))
    x, again = critters.render(FOUR[:1], 32), "a drawing of a red dragon"
    plain, stated = (
        L.CLIPContrastiveLoss(clip, [again, "a blue fish"]),
        L.CLIPContrastiveLoss(clip, [again, "a blue fish"], says),
    )
    assert stated(x, WORDS[:1]) < 0.1 < plain(x, WORDS[:1])


def test_a_bank_sees_what_a_batch_of_two_does_not(clip):
    "PR-2: with a batch of 2 the loss is a choice between two captions, which nearly any picture gets right."
    x = critters.render([critters.Critter("cat", "red", "yellow")], 32)
    two, many = (
        L.CLIPContrastiveLoss(clip, b)(x, ["a red dragon"]).item()
        for b in (["a blue fish"], BANK)
    )
    assert many > two + 0.5


def test_slopes_reach_the_pictures_and_nothing_else(clip):
    loss, x = (
        L.CLIPContrastiveLoss(clip, WORDS),
        critters.render(FOUR, 32).requires_grad_(),
    )
    loss(x, WORDS).backward()
    assert (x.grad.flatten(1).abs().amax(1) > 0).all() and x.grad.isfinite().all()
    assert all(p.grad is None and not p.requires_grad for p in loss.clip.parameters())
    assert all(p.grad is None for p in clip.parameters())


def test_the_frozen_model_is_in_no_checkpoint(clip):
    "GG-12: a peer stores CLIP in the generator, the discriminator and the average, so a checkpoint holds it three times."
    model = torch.nn.Linear(2, 2)
    model.judge = L.CLIPContrastiveLoss(clip, WORDS)
    assert (
        set(model.state_dict()) == {"weight", "bias"}
        and len(list(model.parameters())) == 2
    )
    assert (
        model.judge.clip is not clip and clip.log_scale.requires_grad
    )  # a copy was frozen, not yours


def test_larger_pictures_are_resized_without_aliasing(clip):
    "GG-12: a peer resizes to CLIP's size with the nearest pixel; PR-2: another feeds [-1, 1] where [0, 1] is expected."
    x = critters.render(FOUR, 64)
    loss, wrong = L.CLIPContrastiveLoss(clip, BANK), WORDS[1:] + WORDS[:1]
    smooth = F.interpolate(
        x, (32, 32), mode="bicubic", antialias=True, align_corners=False
    )
    near = loss(F.interpolate(x, (32, 32), mode="nearest"), wrong)
    assert (
        torch.allclose(loss(x, wrong), loss(smooth, wrong), atol=1e-4)
        and (near - loss(x, wrong)).abs() > 1e-2
    )
    assert loss(x, WORDS) < loss(
        x / 2 + 0.5, WORDS
    )  # the range is the one that it was trained on


def test_mistakes_with_the_bank(clip):
    with pytest.raises(UserError, match="bank of captions is empty"):
        L.CLIPContrastiveLoss(clip, [])
    with pytest.raises(UserError, match="4 pictures but 1 captions"):
        L.CLIPContrastiveLoss(clip, WORDS)(critters.render(FOUR, 32), WORDS[:1])


# ---- likeness


def sizes_of(x):
    return [F.avg_pool2d(x, x.shape[-1] // s) for s in (8, 16, 32)]


def test_likeness_is_its_formula_and_nothing_for_the_same_picture(clip):
    a, b = (
        sizes_of(critters.render(FOUR, 32)),
        sizes_of(critters.render(FOUR[1:] + FOUR[:1], 32)),
    )
    normal = lambda m: (
        (m - m.mean((1, 2, 3), keepdim=True))
        / (m.var((1, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    )
    with torch.no_grad():
        slow = (
            sum(
                (normal(m) - normal(n)).square().mean((1, 2, 3))
                for m, n in zip(clip.maps(a[-1]), clip.maps(b[-1]))
            )
            / 3
        )
        slow = (
            slow + 2.0 * sum((m - n).square().mean((1, 2, 3)) for m, n in zip(a, b)) / 3
        )
        assert (
            torch.allclose(L.PerceptualLoss(clip, 2.0)(a, b), slow, atol=1e-4)
            and slow.min() > 0.1
        )
        assert L.PerceptualLoss(clip)(a, a).abs().max() == 0


def test_likeness_pulls_each_picture_alone_and_teaches_no_tower(clip):
    loss, aim = L.PerceptualLoss(clip), sizes_of(critters.render(FOUR, 32))
    x = [(0.1 * noise(*p.shape, name=str(p.shape))).requires_grad_() for p in aim]
    loss(x, aim)[1].backward()
    for p in x:
        assert p.grad[1].abs().max() > 0 and p.grad[[0, 2, 3]].abs().max() == 0
    assert (
        all(p.grad is None and not p.requires_grad for p in loss.clip.parameters())
        and clip.log_scale.requires_grad
    )


def test_mistakes_with_likeness(clip):
    a = sizes_of(critters.render(FOUR, 32))
    with pytest.raises(UserError, match="are no pairs"):
        L.PerceptualLoss(clip)(a, [p[:2] for p in a])
    with pytest.raises(UserError, match="are no pairs"):
        L.PerceptualLoss(clip)(a, a[1:])
    with pytest.raises(UserError, match="pixels must be at least 0, not -1.0"):
        L.PerceptualLoss(clip, -1.0)


# ---- one against one


def test_relativistic_is_the_formula_and_the_sides_mirror_each_other():
    real, fake = (
        [noise(6), 2 * noise(6, name="b")],
        [noise(6, name="c"), noise(6, name="d")],
    )
    slow = (
        sum(
            math.log1p(math.exp(-(r - f)))
            for a, b in zip(real, fake)
            for r, f in zip(a.tolist(), b.tolist())
        )
        / 12
    )
    assert L.relativistic_d_loss(real, fake).item() == pytest.approx(slow, abs=1e-5)
    assert torch.equal(
        L.relativistic_g_loss(real, fake), L.relativistic_d_loss(fake, real)
    )


def test_what_is_thought_of_the_caption_as_such_cancels_out():
    real, fake, of_caption = noise(32), noise(32, name="b"), 5 * noise(32, name="c")
    paired, plain = (
        L.relativistic_d_loss([real + of_caption], [fake + of_caption]),
        L.relativistic_d_loss([real], [fake]),
    )
    assert torch.allclose(paired, plain, atol=1e-5)
    assert (
        L.relativistic_d_loss([real + of_caption], [fake + of_caption.roll(1)]) - plain
    ).abs() > 0.1


def test_scores_that_are_no_pairs_are_refused():
    for f in (L.relativistic_d_loss, L.relativistic_g_loss):
        with pytest.raises(UserError, match=". and . scores are no pairs"):
            f([noise(6)], [noise(1)])


@pytest.mark.parametrize("gamma, settles", [(0.0, False), (0.5, True)])
def test_the_smallest_gan_comes_to_rest_with_r1_and_r2_only(gamma, settles):
    "Real 0, generated theta, score psi x, steps in turn; the slope of both penalties together is 2 gamma psi."
    theta, psi, rate = 1.0, 0.0, 0.1
    for _ in range(300):
        p, t = torch.tensor(psi, requires_grad=True), torch.tensor([theta])
        x = L.detach_with_grad([torch.zeros(1), t])
        loss = L.relativistic_d_loss([p * x[0]], [p * x[1]])
        loss = loss + gamma / 2 * (
            L.zero_centered_gradient_penalty((p * x[0]).sum(), x[:1])
            + L.zero_centered_gradient_penalty((p * x[1]).sum(), x[1:])
        )
        psi -= rate * torch.autograd.grad(loss, p)[0].item()
        t.requires_grad_()
        theta -= (
            rate
            * torch.autograd.grad(
                L.relativistic_g_loss([psi * torch.zeros(1)], [psi * t]), t
            )[0].item()
        )
    assert math.hypot(theta, psi) < 0.01 if settles else math.hypot(theta, psi) > 0.3


# ---- wrong captions that are nearly right


def test_the_nearest_wrong_caption_shares_most_words_and_is_never_equal():
    said = [
        "a red and blue cat, sleeping",
        "a blue and red cat, sleeping",
        "a green fish",
        "a red and blue cat, sleeping",
        "a green fish, swimming",
    ]
    assert L.hard_negative_indices(said).tolist() == [1, 0, 4, 1, 2]
    assert L.hard_negative_indices(["x"] * 3).tolist() == [
        0,
        1,
        2,
    ] and L.hard_negative_indices(
        [("red", "cat"), ("red", "fish"), ("blue", "owl")]
    ).tolist() == [1, 0, 0]


@pytest.mark.parametrize("near", [0.0, 0.5, 1.0])
def test_near_captions_are_wrong_too(near):
    "GG-2: whatever the share of nearly right captions, none is equal to the picture's own."
    said = [
        "a red cat",
        "a red cat",
        "a red fish",
        "a blue fish",
        "an owl",
        "a blue owl",
    ]
    text, met = (
        TextEmbedding(
            torch.zeros(6, 1, 2),
            torch.ones(6, 1, dtype=torch.bool),
            torch.arange(12.0).view(6, 2),
        ),
        [],
    )

    def discriminate(pictures, t):
        met.append(
            (pictures[0][:, 0].long().tolist(), (t.pooled[:, 0] / 2).long().tolist())
        )
        return [torch.zeros(len(t.pooled))]

    places = [torch.arange(6.0)[:, None]]
    judged = L.score_pairs(
        discriminate,
        places,
        places,
        text,
        said,
        seeded_generator(0, "near"),
        hard_negative_fraction=near,
    )
    assert met[2] == met[3] and met[2][0] == judged.rows.tolist()
    assert all(said[i] != said[j] for i, j in zip(*met[2]))
    nearest = L.hard_negative_indices(said).tolist()
    share = sum(nearest[i] == j for i, j in zip(*met[2])) / len(met[2][0])
    assert share == 1.0 if near == 1.0 else share < 1.0


def test_pairs_under_one_picture_cancel_what_is_thought_of_it():
    "The relativistic matching loss sees how far a real picture under its caption is above what has a wrong one."
    picture, rows = torch.tensor([100.0, -50.0, 3.0]), torch.tensor([2, 0])
    judged = L.PairLogits(
        [picture + 2], [picture], [picture[rows]], [picture[rows] + 3], rows
    )
    expected = (
        torch.nn.functional.softplus(torch.tensor(-2.0))
        + torch.nn.functional.softplus(torch.tensor(1.0))
    ) / 2
    assert torch.allclose(L.relativistic_matching_loss(judged), expected)


def test_generated_pictures_never_teach_what_a_caption_means():
    "Their scores under their own captions have no slope in the matching loss, or the critic would learn its generator's private signs."
    fake = torch.randn(4, generator=seeded_generator(0, "private")).requires_grad_()
    scores = [
        torch.randn(4, generator=seeded_generator(k, "others")).requires_grad_()
        for k in range(3)
    ]
    judged = L.PairLogits(
        [scores[0]], [fake], [scores[1]], [scores[2]], torch.arange(4)
    )
    slopes = torch.autograd.grad(
        L.relativistic_matching_loss(judged), [fake, *scores], allow_unused=True
    )
    assert slopes[0] is None and all((s != 0).all() for s in slopes[1:])


@pytest.mark.parametrize("match", [0.0, 0.3, 1.0])
def test_the_paired_loss_is_a_mixture(match):
    real, fake, wrong_real, wrong_fake = (
        [torch.randn(4, generator=seeded_generator(k, "mix"))] for k in range(4)
    )
    judged = L.PairLogits(real, fake, wrong_real, wrong_fake, torch.arange(4))
    expected = (1 - match) * L.relativistic_d_loss(
        real, fake
    ) + match * L.relativistic_matching_loss(judged)
    assert torch.allclose(L.conditional_relativistic_d_loss(judged, match), expected)
    assert torch.equal(
        L.conditional_relativistic_d_loss(L.PairLogits(real, fake, [], []), match),
        L.relativistic_d_loss(real, fake),
    )
    with pytest.raises(UserError, match="match must be from 0 to 1, not 1.5"):
        L.conditional_relativistic_d_loss(judged, 1.5)
