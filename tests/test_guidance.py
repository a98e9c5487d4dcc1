"""Chapter 33: guidance identities, thresholds, the settings, both predictions of one
network."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from t2i_tutorial import critters
from t2i_tutorial.core import UserError, seeded_generator
from t2i_tutorial.data import ImageTextDataset
from t2i_tutorial.diffusion import guidance as G
from t2i_tutorial.diffusion.imagen import IMAGEN_PRESETS, Imagen
from t2i_tutorial.diffusion.noise import (
    eps_from_x0,
    make_noise_schedule,
    x0_from_prediction,
)
from t2i_tutorial.text import NullTextEmbedding, TextEmbedding

SCHEDULE = make_noise_schedule("cosine", 1000)


def noise(*shape, name="x"):
    return torch.randn(*shape, generator=seeded_generator(0, "guidance", name))


def texts(b, n=5, d=8):
    return TextEmbedding(
        noise(b, n, d, name="tokens"),
        torch.ones(b, n, dtype=torch.bool),
        noise(b, d, name="pooled"),
    )


class TextSum(torch.nn.Module):
    "The sum of the text's numbers: of the tokens, the pooled vector, or both."

    def __init__(self, uses=("tokens", "pooled")):
        super().__init__()
        self.uses, self.calls = uses, []

    def forward(self, xt, t, text):
        self.calls.append(len(xt))
        out = 0.1 * xt + t.view(-1, 1, 1, 1) / 1000
        if "tokens" in self.uses:
            out = out + (text.tokens * text.mask[..., None]).sum((1, 2)).view(
                -1, 1, 1, 1
            )
        if "pooled" in self.uses:
            out = out + text.pooled.sum(1).view(-1, 1, 1, 1)
        return out


@pytest.fixture
def null_text():
    torch.manual_seed(0)
    return NullTextEmbedding(8)


def denoise(net, text, null_text, xt, t=400, prediction_type="v", **how):
    how = {"thresholding": "none"} | how
    with torch.no_grad():
        return G.guided_denoiser(
            net, text, null_text, SCHEDULE, prediction_type, G.GuidanceConfig(**how)
        )(xt, t)


# ---- identities


@pytest.mark.parametrize("prediction_type", ["v", "x0", "eps"])
@pytest.mark.parametrize("b", [1, 2, 3])
def test_identities_for_batches_of_one_two_and_three(b, prediction_type, null_text):
    """Fault DD-1: with scale 1 a peer returns one tensor where two are unpacked,
    silently wrong for two images."""
    net, text, xt, t = TextSum(), texts(b), noise(b, 3, 4, 4), torch.full((b,), 400)
    with torch.no_grad():
        c, u = (
            x0_from_prediction(prediction_type, net(xt, t, e), xt, t, SCHEDULE)
            for e in (text, null_text.expand_as(text))
        )
    assert (c - u).abs().min() > 1e-3
    assert torch.equal(
        denoise(
            net,
            text,
            null_text,
            xt,
            prediction_type=prediction_type,
            guidance_scale=1.0,
        ),
        c,
    )
    assert torch.equal(
        denoise(
            net,
            text,
            null_text,
            xt,
            prediction_type=prediction_type,
            guidance_scale=0.0,
        ),
        u,
    )
    for w in (0.5, 3.0, 8.0):
        out = denoise(
            net, text, null_text, xt, prediction_type=prediction_type, guidance_scale=w
        )
        assert out.shape == xt.shape and torch.allclose(out, u + w * (c - u), atol=1e-4)


def test_each_image_is_guided_by_its_own_text(null_text):
    net, text, xt = TextSum(), texts(3), noise(3, 3, 4, 4)
    whole = denoise(net, text, null_text, xt, guidance_scale=3.0)
    for i in range(3):
        assert torch.allclose(
            whole[i : i + 1],
            denoise(net, text[i], null_text, xt[i : i + 1], guidance_scale=3.0),
            atol=1e-5,
        )


@pytest.mark.parametrize("prediction_type", ["v", "eps"])
def test_guiding_the_target_equals_guiding_the_image(prediction_type):
    target = prediction_type
    xt, t = noise(2, 3, 4, 4), torch.tensor([200, 700])
    a, b = noise(2, 3, 4, 4, name="a"), noise(2, 3, 4, 4, name="b")
    late = x0_from_prediction(target, G.apply_cfg(a, b, 3.0), xt, t, SCHEDULE)
    early = G.apply_cfg(
        x0_from_prediction(target, a, xt, t, SCHEDULE),
        x0_from_prediction(target, b, xt, t, SCHEDULE),
        3.0,
    )
    assert torch.allclose(late, early, atol=1e-4)
    assert torch.allclose(
        eps_from_x0(early, xt, t, SCHEDULE),
        G.apply_cfg(
            *(
                eps_from_x0(
                    x0_from_prediction(target, o, xt, t, SCHEDULE), xt, t, SCHEDULE
                )
                for o in (a, b)
            ),
            3.0,
        ),
        atol=1e-4,
    )


def test_scale_is_that_of_ho_and_salimans_plus_one():
    c, u = noise(2, 4, name="c"), noise(2, 4, name="u")
    assert torch.allclose(G.apply_cfg(c, u, 3.0), (1 + 2.0) * c - 2.0 * u, atol=1e-6)


# ---- both branches


@pytest.mark.parametrize("b", [1, 2, 3])
def test_one_pass_equals_two(b, null_text):
    net, text, xt, t = TextSum(), texts(b), noise(b, 3, 4, 4), torch.arange(b) * 100
    null = null_text.expand_as(text)
    with torch.no_grad():
        c, u = G.predict_cond_uncond(net, xt, t, text, null)
        assert net.calls == [2 * b]
        assert torch.allclose(c, net(xt, t, text), atol=1e-6) and torch.allclose(
            u, net(xt, t, null), atol=1e-6
        )


def test_one_pass_equals_two_in_the_real_unet():
    torch.manual_seed(0)
    model = Imagen(IMAGEN_PRESETS["tiny"].model_config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
        text, xt, t = (
            model.encode_prompts(["a red cat", "a blue and green owl, sleeping"]),
            noise(2, 3, 16, 16),
            torch.tensor([300, 600]),
        )
        null = model.null_text.expand_as(text)
        c, u = G.predict_cond_uncond(model.unet, xt, t, text, null)
        assert torch.allclose(c, model.unet(xt, t, text), atol=1e-5) and torch.allclose(
            u, model.unet(xt, t, null), atol=1e-5
        )
    assert (c - u).abs().max() > 1e-3


def test_one_answer_costs_one_pass(null_text):
    for scale, calls in ((0.0, [2]), (1.0, [2]), (3.0, [4])):
        net = TextSum()
        denoise(net, texts(2), null_text, noise(2, 3, 4, 4), guidance_scale=scale)
        assert net.calls == calls


@pytest.mark.parametrize("uses", ["tokens", "pooled"])
def test_null_text_reaches_tokens_and_pooled(uses, null_text):
    """Fault MI-4 and its kin: a network that uses only one of the two must still
    distinguish text from null text."""
    net, text, xt = TextSum((uses,)), texts(3), noise(3, 3, 4, 4)
    plain, without = (
        denoise(net, text, null_text, xt, guidance_scale=w) for w in (1.0, 0.0)
    )
    assert (plain - without).abs().amin((1, 2, 3)).min() > 1e-3
    other = TextEmbedding(text.tokens + 1, text.mask, text.pooled + 1)
    assert torch.equal(
        without, denoise(net, other, null_text, xt, guidance_scale=0.0)
    ) and not torch.allclose(
        plain, denoise(net, other, null_text, xt, guidance_scale=1.0)
    )


# ---- captions dropped in training, and never after


def test_captions_are_dropped_in_training_only():
    torch.manual_seed(0)
    config = IMAGEN_PRESETS["tiny"].model_config
    model, always = Imagen(config), None
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = next(ImageTextDataset.from_critters(4, size=config.size).batches(4))

    def loss(drop, train):
        model.config = replace(config, cond_drop_prob=drop)
        model.train(train)
        with torch.no_grad():
            return model.training_losses(batch, seeded_generator(0, "drop"))["loss"]

    assert torch.equal(loss(1.0, False), loss(0.0, False))
    always, never = loss(1.0, True), loss(0.0, True)
    assert not torch.equal(always, never)
    assert torch.equal(never, loss(0.0, False))


# ---- thresholds


def test_dynamic_threshold_really_rescales():
    "Fault HF-1: with its default bound a peer's dynamic threshold is a static clip."
    x = 1.5 * noise(4, 3, 8, 8)
    ours, s = (
        G.dynamic_threshold(x, 0.9),
        torch.quantile(x.flatten(1).abs(), 0.9, dim=1).view(-1, 1, 1, 1),
    )
    assert (s > 1.5).all() and not torch.allclose(ours, G.static_threshold(x))
    inside = x.abs() < s
    assert (
        torch.allclose(ours[inside], (x / s)[inside], atol=1e-6)
        and (ours[~inside].abs() > 1 - 1e-6).all()
    )
    assert abs(inside.float().mean() - 0.9) < 0.02 and ours.abs().max() <= 1


@pytest.mark.parametrize("p", [0.5, 0.9, 0.995, 1.0])
def test_thresholds_equal_those_of_diffusers(p):
    x = 1.5 * noise(4, 3, 8, 8)

    def theirs(**options):
        return DDPMScheduler(
            thresholding=True, dynamic_thresholding_ratio=p, **options
        )._threshold_sample(x)

    assert torch.allclose(
        theirs(sample_max_value=100.0), G.dynamic_threshold(x, p), atol=1e-6
    )
    assert torch.equal(theirs(), G.static_threshold(x))


def test_an_image_in_range_is_left_alone_and_each_has_its_own_limit():
    x = torch.stack([noise(3, 8, 8).clamp(-1, 1), 4 * noise(3, 8, 8)])
    out = G.dynamic_threshold(x)
    assert (
        torch.equal(out[0], x[0])
        and torch.equal(out[1:], G.dynamic_threshold(x[1:]))
        and not torch.allclose(out[1], x[1].clamp(-1, 1))
    )
    assert G.dynamic_threshold(x.half()).dtype == torch.float16 and G.dynamic_threshold(
        x[:, 0, 0]
    ).shape == (2, 8)


def test_white_pages_turn_grey_at_high_percentiles():
    "The constructed image: 60 % white at 1.0, 2 % overshooting to 1.6."
    x = torch.full((3 * 32 * 32,), -0.5)
    x[: int(0.6 * len(x))], x[-int(0.02 * len(x)) :] = 1.0, 1.6
    white = {
        p: G.dynamic_threshold(x.view(1, 3, 32, 32), p).flatten()[0].item()
        for p in (0.9, 0.95, 0.995)
    }
    assert white[0.9] == white[0.95] == 1 and abs(white[0.995] - 0.625) < 1e-4


def test_rendered_creature_on_white():
    c = critters.render([critters.Critter("dragon", "red", "blue", "green")])
    u = critters.sample_critters(64, size=32, seed=0).images.mean(0, keepdim=True)
    x = G.apply_cfg((c + u) / 2, u, 3.0)
    corner = [
        f(x)[0, :, 0, 0].mean().item()
        for f in (
            G.static_threshold,
            lambda x: G.dynamic_threshold(x, 0.5),
            G.dynamic_threshold,
        )
    ]
    assert corner[0] == 1 and 1 > corner[1] > corner[2] and corner[2] < 0.8


def test_large_batches_have_a_percentile():
    """torch.quantile refused more than 16 million values for years; a batch of large
    images has more."""
    x = torch.zeros(23, 3, 512, 512)
    x[3] = 2.0
    assert x.numel() > 2**24 and G.dynamic_threshold(x)[3].min() == 1


# ---- rescale


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.7, 1.0])
def test_rescale_moves_the_spread(phi):
    c, g = noise(3, 3, 8, 8, name="c"), 4 * noise(3, 3, 8, 8, name="g")

    def std(x):
        return x.flatten(1).std(dim=1)

    out = G.rescale_cfg(g, c, phi)
    assert torch.allclose(std(out), phi * std(c) + (1 - phi) * std(g), rtol=1e-4)
    assert torch.allclose(
        out / g, (out / g).flatten(1)[:, :1, None, None], rtol=1e-3
    )  # one factor an image


def test_rescale_of_a_flat_guess_is_finite():
    flat = torch.ones(1, 3, 4, 4)
    assert (
        G.rescale_cfg(flat, flat, 0.7).isfinite().all()
        and G.rescale_cfg(0 * flat, noise(1, 3, 4, 4)).isfinite().all()
    )


def test_rescale_is_applied_before_the_threshold(null_text):
    net, text, xt = TextSum(), texts(2), noise(2, 3, 4, 4)
    c, x = (denoise(net, text, null_text, xt, guidance_scale=w) for w in (1.0, 5.0))
    out = denoise(
        net,
        text,
        null_text,
        xt,
        guidance_scale=5.0,
        guidance_rescale=0.7,
        thresholding="static",
    )
    assert torch.allclose(out, G.rescale_cfg(x, c, 0.7).clamp(-1, 1), atol=1e-5)


# ---- settings


@pytest.mark.parametrize(
    "setting, message",
    [
        (
            {"guidance_scale": -0.1},
            "guidance_scale must be from 0 to 1000, not -0.1",
        ),
        ({"guidance_scale": float("nan")}, "not nan"),
        ({"guidance_scale": float("inf")}, "not inf"),
        ({"guidance_scale": "3"}, "guidance_scale must be"),
        ({"guidance_scale": True}, "guidance_scale must be"),
        (
            {"guidance_scale": 1e308},
            "guidance_scale must be from 0 to 1000, not 1e\\+308",
        ),
        ({"guidance_scale": torch.ones(2)}, "guidance_scale must be"),
        ({"guidance_interval": None}, "two numbers"),
        ({"guidance_interval": ("a", "b")}, "two numbers"),
        (
            {"dynamic_threshold_percentile": 0},
            "dynamic_threshold_percentile must be from 1e-06 to 1",
        ),
        ({"dynamic_threshold_percentile": 1.01}, "dynamic_threshold_percentile"),
        (
            {"dynamic_threshold_percentile": float("nan")},
            "dynamic_threshold_percentile",
        ),
        ({"guidance_rescale": 1.5}, "guidance_rescale must be from 0 to 1"),
        ({"guidance_rescale": -1}, "guidance_rescale"),
        ({"guidance_interval": (0.8, 0.2)}, "in order"),
        ({"guidance_interval": (0.0, 2.0)}, "from 0 to 1"),
        ({"guidance_interval": (0.5,)}, "two numbers"),
        ({"guidance_interval": (float("nan"), 1.0)}, "guidance_interval"),
        ({"thresholding": "dynamics"}, "did you mean 'dynamic'"),
    ],
)
def test_settings_that_make_no_sense_get_one_line(untyped, setting, message):
    with pytest.raises(UserError, match=message) as e:
        G.GuidanceConfig(**setting)
    assert "\n" not in str(e.value)


def test_interval_guides_inside_and_is_plain_outside(null_text):
    how = G.GuidanceConfig(guidance_scale=4.0, guidance_interval=(0.2, 0.7))
    assert [how.scale_at(t, 1000) for t in (0, 199, 200, 450, 700, 701, 999)] == [
        1,
        1,
        4,
        4,
        4,
        1,
        1,
    ]
    net, text, xt = TextSum(), texts(2), noise(2, 3, 4, 4)
    for t, scale in ((100, 1.0), (450, 4.0), (900, 1.0)):
        assert torch.equal(
            denoise(
                net,
                text,
                null_text,
                xt,
                t,
                guidance_scale=4.0,
                guidance_interval=(0.2, 0.7),
            ),
            denoise(net, text, null_text, xt, t, guidance_scale=scale),
        )


def test_thresholds_are_applied_by_name(null_text):
    net, text, xt = TextSum(), texts(2), 3 * noise(2, 3, 4, 4)
    raw = denoise(net, text, null_text, xt, guidance_scale=3.0)
    assert raw.abs().max() > 1.5
    assert torch.equal(
        denoise(net, text, null_text, xt, guidance_scale=3.0, thresholding="static"),
        raw.clamp(-1, 1),
    )
    assert torch.equal(
        denoise(
            net,
            text,
            null_text,
            xt,
            guidance_scale=3.0,
            thresholding="dynamic",
            dynamic_threshold_percentile=0.9,
        ),
        G.dynamic_threshold(raw, 0.9),
    )
