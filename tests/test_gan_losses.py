"""Chapter 24: losses of scores, pairs of images and captions, R1, CLIP, features."""

import math
from collections import Counter
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_tutorial import critters
from t2i_tutorial.clip import CLIP
from t2i_tutorial.core import UserError, seeded_generator
from t2i_tutorial.gan import losses as L
from t2i_tutorial.gan.discriminator import FrozenTower
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


class TinyDiscriminator(torch.nn.Module):
    "Two images and a text to four scores: two unconditional, two conditional."

    def __init__(self, d=8):
        super().__init__()
        torch.manual_seed(0)
        self.look = torch.nn.ModuleList(torch.nn.Linear(3, d) for _ in range(2))
        self.plain = torch.nn.ModuleList(torch.nn.Linear(d, 1) for _ in range(2))

    def forward(self, images, text):
        seen = [look(x.mean((2, 3))) for look, x in zip(self.look, images)]
        return [p(s.square())[:, 0] for p, s in zip(self.plain, seen)] + [
            (s * text.pooled).sum(1) for s in seen
        ]


def batch(b):
    return [noise(b, 3, 8, 8, name="large"), noise(b, 3, 4, 4, name="small")]


# ---- logistic, over heads


@pytest.mark.parametrize("score", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_every_loss_and_its_gradient_is_finite_for_extreme_scores(score):
    "GG-4: no loss is infinite where log(1 + exp(-x)), written out, overflows."
    s = torch.full((3,), score, requires_grad=True)
    heads = [s, 2 * s]
    logits = L.PairLogits(heads, heads, heads, heads)
    turned = [-h for h in heads]
    values = [
        L.multihead_logistic_d_loss(heads, heads),
        L.multihead_logistic_g_loss(heads),
        L.matching_aware_loss(heads, heads),
        L.matching_aware_loss(heads),
        L.conditional_logistic_d_loss(logits),
        L.relativistic_d_loss(heads, turned),
        L.relativistic_g_loss(heads, turned),
    ]
    for v in values:
        assert (
            v.isfinite()
            and torch.autograd.grad(v, s, retain_graph=True)[0].isfinite().all()
        )


def test_losses_are_logistic_and_averaged_over_heads():
    "GG-11: the logistic loss of the paper, and not the hinge."
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
def test_more_heads_give_no_larger_gradient(heads):
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
    "GG-11: every input of the pyramid is penalised, not the largest image only."
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
    discriminate, text, x = (
        TinyDiscriminator().double(),
        texts(2).to(torch.float64),
        L.detach_with_grad([p.double() for p in batch(2)]),
    )

    def score(images):
        return torch.stack(discriminate(images, text)).mean(0)

    def moved(k, e):
        return [p + e.view_as(p) if j == k else p for j, p in enumerate(x)]

    penalty, step, slow = L.zero_centered_gradient_penalty(score(x).sum(), x), 1e-5, 0.0
    for k, level in enumerate(x):
        for i in range(level[0].numel()):
            e = torch.zeros_like(level).flatten(1)
            e[:, i] = step
            with torch.no_grad():
                up, down = score(moved(k, e)), score(moved(k, -e))
            slow += ((up - down) / (2 * step)).square().mean().item()
    assert penalty.item() == pytest.approx(slow, rel=1e-4)


def test_r1_does_not_depend_on_the_size_of_the_batch():
    discriminate, text, few = TinyDiscriminator(), texts(3), batch(3)

    def penalty(times):
        x = L.detach_with_grad([p.repeat(times, 1, 1, 1) for p in few])
        t = TextEmbedding(
            *(
                v.repeat(times, *[1] * (v.ndim - 1))
                for v in (text.tokens, text.mask, text.pooled)
            )
        )
        return L.zero_centered_gradient_penalty(
            torch.stack(discriminate(x, t)).mean(0).sum(), x
        ).item()

    assert penalty(4) == pytest.approx(penalty(1), rel=1e-4)


def test_r1_refuses_inputs_that_were_not_scored():
    "GG-11: an input that was not scored is an error, not a penalty of 0."
    x = L.detach_with_grad(batch(2))
    with pytest.raises(UserError, match="not depend on input 1"):
        L.zero_centered_gradient_penalty(x[0].sum(), x)
    with pytest.raises(UserError, match="input 0 keeps no gradient"):
        L.zero_centered_gradient_penalty(x[0].sum(), batch(2))
    with torch.no_grad():
        score = x[0].sum()
    with pytest.raises(UserError, match="the logits have no gradient"):
        L.zero_centered_gradient_penalty(score, x[:1])


def test_r1_is_summed_in_32_bits():
    "Squares of small gradients underflow in 16 bits; they are summed in 32."
    x = L.detach_with_grad([torch.zeros(2, 3, 8, 8, dtype=torch.float16)])
    penalty = L.zero_centered_gradient_penalty((x[0] * 1e-4).sum(), x)
    assert penalty.dtype == torch.float32 and penalty.item() == pytest.approx(
        192 * 1e-8, rel=0.05
    )


def test_detach_with_grad_leaves_the_originals_alone():
    images = batch(2)
    for old, new in zip(images, L.detach_with_grad(images)):
        assert new.requires_grad and not old.requires_grad and torch.equal(old, new)


@pytest.mark.parametrize("every", [1, 4, 16])
def test_lazy_penalty_weighs_gamma_half_on_average(every):
    assert sum(
        L.lazy_penalty_weight(k, 0.8, every) for k in range(160)
    ) / 160 == pytest.approx(0.4)


def test_lazy_adam_is_corrected():
    kwargs = L.lazy_adam_kwargs(0.02, (0.0, 0.99), 16)
    assert kwargs == {
        "lr": pytest.approx(0.02 * 16 / 17),
        "betas": (0.0, pytest.approx(0.99 ** (16 / 17))),
    }
    for every in (0, -3):
        with pytest.raises(UserError, match=f"not every {every}"):
            L.lazy_adam_kwargs(0.02, (0.0, 0.99), every)


# ---- mismatched captions


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), max_size=24), st.integers(0, 5))
def test_mismatched_captions_are_never_equal(captions, seed):
    """GG-2: no image gets a caption equal to its own, and each caption is used once.

    All are used, unless one caption has the majority.
    """
    rows, wrong = (i.tolist() for i in L.mismatched_indices(captions, rng(seed)))
    assert all(captions[i] != captions[j] for i, j in zip(rows, wrong, strict=True))
    assert len(set(rows)) == len(rows) and sorted(rows) == sorted(wrong)
    most = max(Counter(captions).values(), default=0)
    assert len(rows) == (
        len(captions) if 2 * most <= len(captions) else 2 * (len(captions) - most)
    )


def test_no_mismatched_captions_if_all_are_equal():
    for captions in ([], ["a"], ["a"] * 5):
        assert len(L.mismatched_indices(captions, rng())[0]) == 0


def test_mismatched_indices_depend_on_the_seed_only():
    captions = [f"caption {i}" for i in range(16)]
    pairs = [
        dict(zip(*(i.tolist() for i in L.mismatched_indices(captions, rng(s)))))
        for s in (0, 0, 1)
    ]
    assert pairs[0] == pairs[1] != pairs[2]


def test_mismatched_indices_compare_any_keys():
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
    "Records pairs: images carry their number in every pixel, texts in every entry."

    def __init__(self):
        self.calls = []

    def __call__(self, images, text):
        for p in images:
            assert torch.equal(p[:, 0, 0, 0], images[0][:, 0, 0, 0])
        numbers = images[0][:, 0, 0, 0], text.pooled[:, 0], text.tokens[:, 0, 0]
        self.calls.append(list(zip(*(n.tolist() for n in numbers))))
        return [images[0][:, 0, 0, 0]]


def numbered(b):
    n = torch.arange(b, dtype=torch.float)
    images = [n.view(-1, 1, 1, 1).expand(b, 3, s, s) for s in (8, 4)]
    mask = torch.ones(b, 2, dtype=torch.bool)
    text = TextEmbedding(
        n.view(-1, 1, 1).expand(b, 2, 4), mask, n[:, None].expand(b, 4)
    )
    return images, [100 + p for p in images], text


def test_real_and_generated_images_are_scored_under_their_own_captions():
    "GG-1: real images are scored under the captions of their own batch."
    real, fake, text = numbered(8)
    seen = Recorder()
    L.score_pairs(seen, real, fake, text, list("abcdefgh"), rng())
    assert seen.calls[0] == [(i, i, i) for i in range(8)] and seen.calls[1] == [
        (100 + i, i, i) for i in range(8)
    ]


def test_mismatched_pairs_use_the_exchanged_captions():
    "GG-2: the exchanged captions are those that are scored, tokens and pooled vector."
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


def test_pairs_of_a_majority_caption_and_of_equal_captions():
    real, fake, text = numbered(4)
    logits = L.score_pairs(Recorder(), real, fake, text, list("aaab"), rng())
    assert (
        len(logits.real[0]) == 4
        and len(logits.mismatched_real[0]) == len(logits.mismatched_fake[0]) == 2
    )
    logits = L.score_pairs(Recorder(), real, fake, text, list("aaaa"), rng())
    assert logits.mismatched_real == [] and torch.equal(
        L.conditional_logistic_d_loss(logits),
        L.multihead_logistic_d_loss(logits.real, logits.fake),
    )


def test_batches_that_do_not_belong_together_are_refused(untyped):
    "GG-1: images and captions of different batches are refused if numbers differ."
    real, fake, text = numbered(4)
    for bad in (
        (real, [p[:3] for p in fake], text, list("abcd")),
        (real, fake, text[[0, 1]], list("abcd")),
        (real, fake, text, list("abc")),
    ):
        with pytest.raises(UserError, match="take all from one batch"):
            L.score_pairs(Recorder(), *bad, rng())


# ---- matching-aware


def test_positives_have_the_same_total_weight_as_negatives():
    "PR-1: the matching loss has real and generated images under mismatched captions."
    kinds = [torch.zeros(4, requires_grad=True) for _ in range(4)]
    for match, parts in (
        (0.5, (-1, 0.5, 0.25, 0.25)),
        (0.2, (-1, 0.8, 0.1, 0.1)),
        (1.0, (-1, 0, 0.5, 0.5)),
    ):
        gradients = torch.autograd.grad(
            L.conditional_logistic_d_loss(L.PairLogits(*([k] for k in kinds)), match),
            kinds,
            allow_unused=True,
        )
        for s, part in zip(gradients, parts):  # softplus has derivative 1/2 at 0
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
def test_a_matching_weight_out_of_range_is_refused(match):
    heads = [noise(4)]
    with pytest.raises(UserError, match="matching_weight must be from 0 to 1"):
        L.conditional_logistic_d_loss(L.PairLogits(heads, heads, heads, heads), match)


def test_matching_loss_trains_all_conditional_heads():
    "GG-3, PR-1: the matching loss reaches the weights that compare image and text."
    discriminate, text = TinyDiscriminator(), texts(6)
    gradients = L.text_gradient_per_head(discriminate, batch(6), text)
    assert (gradients[:2] == 0).all() and (gradients[2:] > 1e-2).all()
    logits = L.score_pairs(
        discriminate,
        batch(6),
        [x.flip(0) for x in batch(6)],
        text,
        list("abcdef"),
        rng(),
    )
    L.matching_aware_loss(
        logits.mismatched_real[2:], logits.mismatched_fake[2:]
    ).backward()
    assert all(look.weight.grad.abs().max() > 0 for look in discriminate.look)


def test_a_discriminator_that_ignores_the_text_is_detected():
    "GG-3: a score without text has gradient 0 in it, and a loss of at least 2 log 2."

    def unconditional(images, text):
        return [images[0].mean((1, 2, 3)), images[1].sum((1, 2, 3)).detach()]

    assert L.text_gradient_per_head(unconditional, batch(4), texts(4)).tolist() == [
        0,
        0,
    ]
    same = [3 * noise(64)]  # real images, right or wrong caption: one score
    assert L.conditional_logistic_d_loss(
        L.PairLogits(same, same, same, same), 1.0
    ) >= 2 * math.log(2)


def test_text_gradient_covers_tokens_and_pooled_and_leaves_the_text_alone():
    text = texts(3)

    def tokens_only(images, t):
        return [(t.tokens.square() * t.mask[..., None]).sum((1, 2))]

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
    "PR-2, GG-8: both vectors are projected, normalised and from the same model."
    bank = WORDS + ["a yellow snail", "a black duck"]
    x = critters.render(FOUR, 32)
    with torch.no_grad():
        vectors = clip.encode_image(x), clip.encode_text(bank), clip.logit_scale
    seen, said, scale = (v.double() for v in vectors)
    for v in (seen, said):
        assert torch.allclose(v.norm(dim=1), torch.ones(len(v)).double(), atol=1e-5)

    def probability(i, k):
        logits = torch.stack([scale * seen[i] @ t for t in said])
        return logits.exp()[k] / logits.exp().sum()

    for turn in (0, 1):  # right captions, and wrong ones, where the loss is far from 0
        slow = sum(-probability(i, (i + turn) % 4).log() for i in range(4)) / 4
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


def test_captions_with_an_equal_key_are_no_negatives(clip):
    def key(c):
        return tuple(sorted(critters.parse_caption(c).items()))

    x, again = critters.render(FOUR[:1], 32), "a drawing of a red dragon"
    plain, stated = (
        L.CLIPContrastiveLoss(clip, [again, "a blue fish"]),
        L.CLIPContrastiveLoss(clip, [again, "a blue fish"], key),
    )
    assert stated(x, WORDS[:1]) < 0.1 < plain(x, WORDS[:1])


def test_many_negatives_detect_what_one_does_not(clip):
    "PR-2: with a batch of 2 the loss has one negative, which is too easy."
    x = critters.render([critters.Critter("cat", "red", "yellow")], 32)
    two, many = (
        L.CLIPContrastiveLoss(clip, b)(x, ["a red dragon"]).item()
        for b in (["a blue fish"], BANK)
    )
    assert many > two + 0.5


def test_clip_loss_gradients_reach_the_images_only(clip):
    loss, x = (
        L.CLIPContrastiveLoss(clip, WORDS),
        critters.render(FOUR, 32).requires_grad_(),
    )
    loss(x, WORDS).backward()
    assert (x.grad.flatten(1).abs().amax(1) > 0).all() and x.grad.isfinite().all()
    assert all(p.grad is None and not p.requires_grad for p in loss.clip.parameters())
    assert all(p.grad is None for p in clip.parameters())


def test_the_frozen_model_is_in_no_checkpoint(clip):
    "GG-12: a model with a CLIP loss has no CLIP weights in its state dict."
    model = torch.nn.Linear(2, 2)
    model.clip_loss = L.CLIPContrastiveLoss(clip, WORDS)
    assert (
        set(model.state_dict()) == {"weight", "bias"}
        and len(list(model.parameters())) == 2
    )
    assert (
        model.clip_loss.clip is not clip and clip.log_logit_scale.requires_grad
    )  # a copy was frozen


def test_larger_images_are_resized_with_antialiasing(clip):
    "GG-12, PR-2: images are resized with antialiasing, and have the trained range."
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
    with pytest.raises(UserError, match="4 images but 1 captions"):
        L.CLIPContrastiveLoss(clip, WORDS)(critters.render(FOUR, 32), WORDS[:1])


# ---- perceptual loss


def sizes_of(x):
    return [F.avg_pool2d(x, x.shape[-1] // s) for s in (8, 16, 32)]


def test_perceptual_loss_is_its_formula_and_zero_for_equal_images(clip):
    a, b = (
        sizes_of(critters.render(FOUR, 32)),
        sizes_of(critters.render(FOUR[1:] + FOUR[:1], 32)),
    )

    def normal(m):
        variance = m.var((1, 2, 3), unbiased=False, keepdim=True)
        return (m - m.mean((1, 2, 3), keepdim=True)) / (variance + 1e-5).sqrt()

    with torch.no_grad():
        slow = (
            sum(
                (normal(m) - normal(n)).square().mean((1, 2, 3))
                for m, n in zip(clip.feature_maps(a[-1]), clip.feature_maps(b[-1]))
            )
            / 3
        )
        slow = slow + 2.0 * sum((m - n).abs().mean((1, 2, 3)) for m, n in zip(a, b)) / 3
        assert (
            torch.allclose(L.PerceptualLoss(clip, 2.0)(a, b), slow, atol=1e-4)
            and slow.min() > 0.1
        )
        assert L.PerceptualLoss(clip)(a, a).abs().max() == 0


def test_perceptual_gradients_stay_within_a_sample_and_spare_the_encoder(clip):
    loss, aim = L.PerceptualLoss(clip), sizes_of(critters.render(FOUR, 32))
    x = [(0.1 * noise(*p.shape, name=str(p.shape))).requires_grad_() for p in aim]
    loss(x, aim)[1].backward()
    for p in x:
        assert p.grad[1].abs().max() > 0 and p.grad[[0, 2, 3]].abs().max() == 0
    assert (
        all(
            p.grad is None and not p.requires_grad for p in loss.tower.clip.parameters()
        )
        and clip.log_logit_scale.requires_grad
    )


def test_a_model_is_copied_and_a_tower_is_shared(clip):
    tower = FrozenTower(deepcopy(clip))
    for make in (lambda c: L.CLIPContrastiveLoss(c, WORDS), L.PerceptualLoss):
        assert make(tower).tower is tower
        own = make(clip).tower.clip
        assert own is not clip and not own.log_logit_scale.requires_grad
    assert clip.log_logit_scale.requires_grad


def test_losses_with_one_tower_are_those_with_one_each_and_cost_one_pass(clip):
    "Values and gradients, and how often the frozen encoder is used for an image."
    tower, aim = FrozenTower(deepcopy(clip)), sizes_of(critters.render(FOUR, 32))
    losses = L.CLIPContrastiveLoss(tower, BANK), L.PerceptualLoss(tower)
    apart = L.CLIPContrastiveLoss(clip, BANK), L.PerceptualLoss(clip)
    passes = []
    first = tower.clip.image_encoder.stages[0]
    first.register_forward_hook(lambda *_: passes.append(1))

    def value_and_gradient(clip_loss, perceptual_loss):
        x = [(0.5 * p).requires_grad_() for p in aim]
        loss = clip_loss(x[-1], WORDS) + perceptual_loss(x, aim).mean()
        return loss.item(), torch.autograd.grad(loss, x)

    with tower.sharing():
        value, gradients = value_and_gradient(*losses)
    expected, expected_gradients = value_and_gradient(*apart)
    assert value == pytest.approx(expected, rel=1e-5)
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)
    assert len(passes) == 2  # generated and real images, once each


def test_an_encoder_of_patches_serves_the_clip_loss():
    patches = CLIP.from_pretrained("critters-clip-score")
    x = critters.render(FOUR, 32)
    loss = L.CLIPContrastiveLoss(patches, WORDS)
    right, wrong = loss(x, WORDS), loss(x, WORDS[1:] + WORDS[:1])
    assert right < wrong and right.isfinite()


def test_mistakes_with_the_perceptual_loss(clip):
    a = sizes_of(critters.render(FOUR, 32))
    with pytest.raises(UserError, match="are no pairs"):
        L.PerceptualLoss(clip)(a, [p[:2] for p in a])
    with pytest.raises(UserError, match="are no pairs"):
        L.PerceptualLoss(clip)(a, a[1:])
    with pytest.raises(UserError, match="pixels must be at least 0, not -1.0"):
        L.PerceptualLoss(clip, -1.0)


# ---- relativistic


def test_relativistic_is_the_formula_and_g_mirrors_d():
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


def test_a_term_of_the_caption_alone_cancels():
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
def test_the_smallest_gan_converges_with_r1_and_r2_only(gamma, settles):
    "Real 0, generated theta, score psi x; the penalties' gradient is 2 gamma psi."
    theta, psi, lr = 1.0, 0.0, 0.1
    for _ in range(300):
        p, t = torch.tensor(psi, requires_grad=True), torch.tensor([theta])
        x = L.detach_with_grad([torch.zeros(1), t])
        loss = L.relativistic_d_loss([p * x[0]], [p * x[1]])
        loss = loss + gamma / 2 * (
            L.zero_centered_gradient_penalty((p * x[0]).sum(), x[:1])
            + L.zero_centered_gradient_penalty((p * x[1]).sum(), x[1:])
        )
        psi -= lr * torch.autograd.grad(loss, p)[0].item()
        t.requires_grad_()
        theta -= (
            lr
            * torch.autograd.grad(
                L.relativistic_g_loss([psi * torch.zeros(1)], [psi * t]), t
            )[0].item()
        )
    assert math.hypot(theta, psi) < 0.01 if settles else math.hypot(theta, psi) > 0.3


# ---- hard negatives


def test_hard_negatives_share_most_words_and_are_never_equal():
    captions = [
        "a red and blue cat, sleeping",
        "a blue and red cat, sleeping",
        "a green fish",
        "a red and blue cat, sleeping",
        "a green fish, swimming",
    ]
    assert L.hard_negative_indices(captions).tolist() == [1, 0, 4, 1, 2]
    assert L.hard_negative_indices(["x"] * 3).tolist() == [
        0,
        1,
        2,
    ] and L.hard_negative_indices(
        [("red", "cat"), ("red", "fish"), ("blue", "owl")]
    ).tolist() == [1, 0, 0]


@pytest.mark.parametrize("near", [0.0, 0.5, 1.0])
def test_hard_negatives_are_mismatched_too(near):
    "GG-2: with any share of hard negatives, none is equal to the image's own caption."
    captions = [
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

    def discriminate(images, t):
        met.append(
            (images[0][:, 0].long().tolist(), (t.pooled[:, 0] / 2).long().tolist())
        )
        return [torch.zeros(len(t.pooled))]

    positions = [torch.arange(6.0)[:, None]]
    logits = L.score_pairs(
        discriminate,
        positions,
        positions,
        text,
        captions,
        seeded_generator(0, "near"),
        hard_negative_fraction=near,
    )
    assert met[2] == met[3] and met[2][0] == logits.rows.tolist()
    assert all(captions[i] != captions[j] for i, j in zip(*met[2]))
    nearest = L.hard_negative_indices(captions).tolist()
    share = sum(nearest[i] == j for i, j in zip(*met[2])) / len(met[2][0])
    assert share == 1.0 if near == 1.0 else share < 1.0


def test_a_term_of_the_image_alone_cancels_in_the_matching_loss():
    "A real image under its own caption against images under mismatched ones."
    image, rows = torch.tensor([100.0, -50.0, 3.0]), torch.tensor([2, 0])
    logits = L.PairLogits([image + 2], [image], [image[rows]], [image[rows] + 3], rows)
    expected = (
        torch.nn.functional.softplus(torch.tensor(-2.0))
        + torch.nn.functional.softplus(torch.tensor(1.0))
    ) / 2
    assert torch.allclose(L.relativistic_matching_loss(logits), expected)


def test_generated_images_are_never_the_higher_side_of_a_matching_pair():
    "Scores of generated images under their own captions have no gradient in it."
    fake = torch.randn(4, generator=seeded_generator(0, "private")).requires_grad_()
    scores = [
        torch.randn(4, generator=seeded_generator(k, "others")).requires_grad_()
        for k in range(3)
    ]
    logits = L.PairLogits(
        [scores[0]], [fake], [scores[1]], [scores[2]], torch.arange(4)
    )
    gradients = torch.autograd.grad(
        L.relativistic_matching_loss(logits), [fake, *scores], allow_unused=True
    )
    assert gradients[0] is None and all((s != 0).all() for s in gradients[1:])


@pytest.mark.parametrize("match", [0.0, 0.3, 1.0])
def test_the_conditional_relativistic_loss_is_a_mixture(match):
    real, fake, wrong_real, wrong_fake = (
        [torch.randn(4, generator=seeded_generator(k, "mix"))] for k in range(4)
    )
    logits = L.PairLogits(real, fake, wrong_real, wrong_fake, torch.arange(4))
    expected = (1 - match) * L.relativistic_d_loss(
        real, fake
    ) + match * L.relativistic_matching_loss(logits)
    assert torch.allclose(L.conditional_relativistic_d_loss(logits, match), expected)
    assert torch.equal(
        L.conditional_relativistic_d_loss(L.PairLogits(real, fake, [], []), match),
        L.relativistic_d_loss(real, fake),
    )
    with pytest.raises(UserError, match="matching_weight must be from 0 to 1, not 1.5"):
        L.conditional_relativistic_d_loss(logits, 1.5)
