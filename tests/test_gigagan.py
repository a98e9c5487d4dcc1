"""Chapters 24b, 25 and 26: two networks in one model, trained, resumed, measured."""

import json
import shutil
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from t2i_tutorial import critters
from t2i_tutorial.core import RESULTS_DIR, UserError, seeded_generator
from t2i_tutorial.data import ImageTextDataset
from t2i_tutorial.evaluation.classifier import (
    CLASSIFIED_ATTRIBUTES,
    AttributeClassifier,
)
from t2i_tutorial.evaluation.report import prompt_accuracy
from t2i_tutorial.experiments import critters_dataset
from t2i_tutorial.gan import config, diagnostics
from t2i_tutorial.gan import gigagan as g
from t2i_tutorial.gan.discriminator import DiscriminatorConfig, image_pyramid
from t2i_tutorial.gan.generator import Generator, GeneratorConfig
from t2i_tutorial.gan.losses import text_gradient_per_head
from t2i_tutorial.hub import TextToImage
from t2i_tutorial.text import full_caption
from t2i_tutorial.training import Trainer

SMALL = g.GigaGANConfig(
    16,
    GeneratorConfig(
        z_dim=8,
        text_dim=256,
        style_dim=16,
        mapping_layers=2,
        channels=(16, 16, 8),
        num_kernels=(1, 2, 2),
        self_attention=(False, True, False),
        cross_attention=(False, True, False),
    ),
    DiscriminatorConfig((8, 16), (16, 8), (True, False), text_dim=256, style_dim=16),
)
TINY = g.Preset(
    SMALL,
    replace(
        g.GAN_CPU_TRAIN_CONFIG,
        max_steps=4,
        batch_size=4,
        save_every=2,
        sample_every=0,
        log_with="none",
        ema_decay=0.9,
    ),
    num_images=32,
)


def built(seed=0, **changes):
    torch.manual_seed(seed)
    return g.GigaGAN(replace(SMALL, **changes))


@pytest.fixture(scope="module")
def batch():
    return next(critters_dataset(6, 16).batches(6, shuffle=False))


# ---- one configuration


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": 32}, "size is 32, but the generator draws 16 pixels"),
        ({"matching_weight": 1.5}, "matching_weight must be from 0 to 1, not 1.5"),
        ({"adversarial_loss": "hinge"}, "unknown adversarial_loss 'hinge'"),
        (
            {"hard_negative_fraction": -0.5},
            "hard_negative_fraction must be from 0 to 1",
        ),
        ({"clip_weight": float("nan")}, "clip_weight must be from 0"),
        ({"r1_gamma": -1.0}, "r1_gamma must be from 0"),
        ({"discriminator_lr_ratio": 0.0}, "discriminator_lr_ratio must be"),
        ({"truncation_psi": 1.1}, "truncation_psi must be"),
        ({"r1_interval": 0}, "r1_interval must be a whole number of at least 1"),
        ({"clip_num_negatives": 0}, "clip_num_negatives must be a whole number of at"),
        ({"pretrain_steps": -2}, "pretrain_steps must be a whole number of at least 0"),
        ({"pretrain_candidates": 0}, "pretrain_candidates must be a whole number"),
        ({"pretrain_lr": 0.0}, "pretrain_lr must be from 1e-09"),
        ({"discriminator_only_steps": -1}, "discriminator_only_steps must be a whole"),
        ({"perceptual_weight": -1.0}, "perceptual_weight must be from 0"),
        ({"perceptual_candidates": 0}, "perceptual_candidates must be a whole number"),
        ({"perceptual_decay_steps": -1}, "perceptual_decay_steps must be a whole"),
        ({"kernel_information_weight": -1.0}, "kernel_information_weight must be from"),
        (
            {"generator": replace(SMALL.generator, min_output_size=4)},
            "set generator.min_output_size",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)


def test_the_width_of_both_networks_follows_from_the_encoder(batch):
    """Row F6. GG-6: a peer reads `text_encoder.dim` before there is one; here both
    widths are taken from the encoder, and are no settings."""
    model = g.GigaGAN(replace(SMALL, text_encoder="critters-clip", clip_weight=0.0))
    c = model.config
    assert (c.generator.text_dim, c.discriminator.text_dim) == (128, 128)
    for phase in model.phases:
        losses = model.training_losses(batch, seeded_generator(0), phase)
        assert losses["loss"].isfinite()
    plain = g.GigaGAN(replace(SMALL, **config.ABLATION_LADDER["unconditional"]))
    assert plain.config.generator.text_dim == SMALL.generator.text_dim
    for name in ("generator.text_dim", "discriminator.text_dim"):
        with pytest.raises(UserError, match=f"{name} follows from text_encoder"):
            g.gigagan_preset("tiny", [f"{name}=64"])


@pytest.mark.parametrize("loss", config.GAN_LOSSES)
@pytest.mark.parametrize(
    "changes",
    [
        *config.ABLATION_LADDER.values(),
        {"text_conditional_discriminator": False},
        {"use_attention": False},
        {"diff_augment": True},
    ],
    ids=[
        *config.ABLATION_LADDER,
        "unconditional discriminator",
        "no attention",
        "augmented",
    ],
)
def test_every_switch_leaves_two_losses_that_reach_their_own_side(changes, loss, batch):
    """Each rung trains both sides in its own turn, and no turn touches the other side.

    GG-5: a peer's trainer hands its network an argument that was renamed; here every
    switch goes through the real Trainer.
    """
    model = built(adversarial_loss=loss, **changes).train()
    if model.config.clip_weight:
        model.set_clip_negatives(["a red cat", "a blue fish", "a green owl"])
    trainer = Trainer(
        model, critters_dataset(8, 16), replace(TINY.train_config, max_steps=1)
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer.fit()
    moved = {
        name.split(".")[0]
        for name, v in model.state_dict().items()
        if not torch.equal(v, before[name])
    }
    assert moved == {"generator", "discriminator"}
    for phase in model.phases:
        model.zero_grad()
        trainer._focus(phase)
        model.training_losses(batch, seeded_generator(0), phase)["loss"].backward()
        reached = {
            n.split(".")[0]
            for n, p in model.named_parameters()
            if p.grad is not None and p.grad.any()
        }
        assert reached == {phase}
    trainer._focus(None)


def test_switches_leave_out_what_they_say():
    g0, d0 = replace(SMALL, text_conditional=False).network_configs()
    assert g0.text_dim is None and not d0.text_conditional
    assert (
        replace(SMALL, text_conditional_discriminator=False)
        .network_configs()[0]
        .text_dim
        == 256
        and not replace(SMALL, text_conditional_discriminator=False)
        .network_configs()[1]
        .text_conditional
    )
    assert set(
        replace(SMALL, use_filter_bank=False).network_configs()[0].num_kernels
    ) == {1}
    off = replace(SMALL, use_attention=False).network_configs()
    assert not any(off[0].self_attention + off[0].cross_attention + off[1].attention)
    one = replace(SMALL, multiscale_loss=False).network_configs()
    assert one[0].sizes == (16,) and len(one[1].head_names) == 1
    assert SMALL.network_configs() == (SMALL.generator, SMALL.discriminator)


# ---- which text reaches which network


def spy(model, monkeypatch):
    "Note the features and the text vector of each call of the discriminator's heads."
    calls, plain = [], model.discriminator.score

    def score(maps, style=None):
        calls.append((maps[0].detach().clone(), style.detach().clone()))
        return plain(maps, style)

    monkeypatch.setattr(model.discriminator, "score", score)
    return calls


def test_real_images_are_scored_with_matched_and_mismatched_captions(
    monkeypatch, batch
):
    """GG-1, GG-2: a peer scores real images under another batch's captions, and takes
    matched captions for mismatched ones."""
    model = built(clip_weight=0.0).eval()
    seen, own = (
        spy(model, monkeypatch),
        model.discriminator.text_to_style(model.encode_prompts(batch.captions)),
    )
    model.training_losses(batch, seeded_generator(0), "discriminator")
    (real, matched), (fake, given), (again, wrong), (fakes, others) = seen
    assert (
        torch.equal(matched, own)
        and torch.equal(given, own)
        and torch.equal(wrong, others)
    )
    for maps, source, texts in ((again, real, wrong), (fakes, fake, others)):
        for image, text in zip(
            maps, texts
        ):  # the same image as before, and a caption that is not its own
            i = next(i for i in range(6) if torch.equal(source[i], image))
            j = next(j for j in range(6) if torch.equal(own[j], text))
            assert batch.captions[i] != batch.captions[j]


def test_in_the_generators_loss_both_networks_get_the_same_captions(monkeypatch, batch):
    "PR-1: the predecessor's discriminator was given no text."
    model = built(clip_weight=0.0).eval()
    seen = spy(model, monkeypatch)
    model.training_losses(batch, seeded_generator(0), "generator")
    own = model.discriminator.text_to_style(model.encode_prompts(batch.captions))
    assert len(seen) == 2 and all(torch.equal(style, own) for _, style in seen)


@pytest.mark.parametrize("name", ["start", "recorded"])
def test_the_score_of_every_head_depends_on_the_text(name, batch):
    "GG-3, PR-1: at the start and after the recorded training."
    model = built() if name == "start" else recorded()
    images = F.interpolate(batch.images, (model.config.size,) * 2)
    gradients = text_gradient_per_head(
        lambda x, t: model.discriminator(x, t).logits(),
        image_pyramid(images, model.config.discriminator.sizes),
        model.encode_prompts(batch.captions),
    )
    assert (
        len(gradients) == len(model.config.discriminator.head_names)
        and (gradients > 1e-5).all()
    )


def test_an_unconditional_discriminator_ignores_the_text(batch):
    "PR-1: the switch that repeats the predecessor's fault really does."
    model = built(text_conditional_discriminator=False, clip_weight=0.0).eval()
    other = replace(batch, captions=batch.captions[::-1])
    a, b = (
        model.discriminator(
            image_pyramid(x.images, (8, 16)),
            model.discriminator_text(model.encode_captions(x.captions)),
        ).mean()
        for x in (batch, other)
    )
    assert torch.equal(a, b)
    terms = model.training_losses(batch, seeded_generator(0), "discriminator")
    assert "score_mismatched" not in terms
    model.caption_key = g.caption_attributes
    assert not any(name.startswith("matching") for name in model.diagnostics())


# ---- the frozen backbone

BACKBONE = replace(
    SMALL.discriminator, vision_aided_model="critters-clip", vision_aided_channels=8
)


def test_the_backbone_is_a_switch(batch):
    vision_aided = g.GigaGAN(replace(SMALL, discriminator=BACKBONE))
    assert [
        w
        for w in vision_aided.discriminator.config.head_names
        if w[0] == "vision_aided"
    ] == [("vision_aided", 1), ("vision_aided", 2), ("vision_aided", 3)]
    assert replace(
        SMALL, discriminator=BACKBONE, use_vision_aided=False
    ).network_configs()[1] == replace(SMALL.discriminator, vision_aided_channels=8)
    vision_aided.set_clip_negatives(["a red cat", "an owl"])
    for phase in vision_aided.phases:
        vision_aided.zero_grad()
        vision_aided.training_losses(batch, seeded_generator(0), phase)[
            "loss"
        ].backward()
    assert all(p.grad is None for p in vision_aided.tower.clip.parameters())


def count_maps(tower, monkeypatch):
    "Note each image tensor that the frozen model computes maps of."
    seen, plain = [], tower.clip.feature_maps
    monkeypatch.setattr(
        tower.clip, "feature_maps", lambda x: seen.append(x.shape) or plain(x)
    )
    return seen


def test_one_frozen_tower_computes_the_maps_of_an_image_once(batch, monkeypatch):
    """Heads, CLIP loss and perceptual loss share it; without sharing, the loss is the
    same and the maps are computed more often."""
    model = built(discriminator=BACKBONE, perceptual_weight=1.0).eval()
    model.set_clip_negatives(["a red cat", "a blue fish", "a green owl"])
    vision_aided = model.discriminator.vision_aided
    assert model.tower is vision_aided.tower is model.clip_loss.tower
    seen = count_maps(model.tower, monkeypatch)
    once = model.training_losses(batch, seeded_generator(0), "generator")["loss"]
    assert model.perceptual_loss.tower is model.tower
    assert len(seen) == 3  # the fake image, the real one, that of the nearest latent
    once.backward()
    gradients = {n: p.grad for n, p in model.generator.named_parameters()}
    model.zero_grad(set_to_none=True)
    seen.clear()
    monkeypatch.setattr(model.tower, "sharing", g.nullcontext)
    often = model.training_losses(batch, seeded_generator(0), "generator")["loss"]
    assert len(seen) == 5 and once.item() == pytest.approx(often.item(), rel=1e-5)
    often.backward()
    for name, p in model.generator.named_parameters():
        assert torch.allclose(p.grad, gradients[name], atol=1e-4, rtol=1e-3), name


def test_a_tower_of_its_own_where_the_heads_have_none(batch):
    model = built(perceptual_weight=1.0, clip_weight=0.0).eval()
    names = set(model.state_dict())
    assert model.discriminator.vision_aided is None and model.has_tower
    model.training_losses(batch, seeded_generator(0), "generator")
    assert model.perceptual_loss.tower is model.tower is model.own_tower
    assert set(model.state_dict()) == names
    assert not built(clip_weight=0.0).has_tower


# ---- one training in three parts

THREE_PARTS = {
    "pretrain_steps": 3,
    "pretrain_candidates": 3,
    "pretrain_lr": 2e-3,
    "discriminator_only_steps": 2,
    "perceptual_weight": 1.0,
    "perceptual_candidates": 2,
    "perceptual_decay_steps": 2,
    "kernel_information_weight": 1.0,
    "r1_interval": 3,
    "clip_weight": 0.0,
    "train.max_steps": 8,
    "train.save_every": 1,
    "train.log_every": 1,
}


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_phases_of_each_update():
    model = built(pretrain_steps=3, discriminator_only_steps=2)
    both = ("discriminator", "generator")
    phases = [model.phases_at(step) for step in range(7)]
    assert phases == [("generator",)] * 3 + [("discriminator",)] * 2 + [both] * 2
    assert model.step == 6
    assert [built().phases_at(step) for step in range(2)] == [both] * 2
    short = built(discriminator_only_steps=1)
    assert [short.phases_at(s) for s in range(2)] == [("discriminator",), both]


def test_options_of_each_update():
    "Each part has its own schedule; without parts the Trainer's options hold."
    c = dict(pretrain_steps=200, discriminator_only_steps=20, pretrain_lr=5e-3)
    model = built(**c, discriminator_lr_ratio=4.0, r1_interval=4)
    model.train_config = replace(
        TINY.train_config, max_steps=400, lr=1e-3, betas=(0.0, 0.99), warmup_steps=10
    )

    def lr(phase, step):
        return model.step_kwargs(phase, step)["lr"]

    first = [lr("generator", step) for step in range(200)]
    assert max(first) == pytest.approx(5e-3) and first.index(max(first)) in (49, 50)
    assert first[0] < 2e-4 and first[-1] < 1e-5  # a warm-up, then a cosine
    assert model.step_kwargs("generator", 0)["betas"] == (0.5, 0.99)
    later = model.step_kwargs("generator", 300)
    assert later == {"lr": 1e-3, "betas": (0.0, 0.99)}
    assert lr("generator", 220) < 0.2 * lr("generator", 240)  # it warms up again
    assert lr("discriminator", 200) < 0.2 * lr("discriminator", 300)
    assert lr("discriminator", 300) == pytest.approx(4e-3 * 4 / 5)
    betas = model.step_kwargs("discriminator", 300)["betas"]
    assert betas == pytest.approx((0.0, 0.99 ** (4 / 5)))
    assert built().step_kwargs("generator", 0) == {}


def test_each_part_moves_its_own_network_and_logs_its_own_terms():
    "What rests keeps its weights, and the log has no value of it from before."
    preset = g.gigagan_preset(TINY, THREE_PARTS)
    torch.manual_seed(0)
    model = g.GigaGAN(preset.model_config)
    model.train_config = preset.train_config
    model.diagnostics = dict  # none: they have a test of their own
    states = [snapshot(model)]

    class Watched(Trainer):
        def save(self):
            states.append(snapshot(model))
            super().save()

    trainer = Watched(model, critters_dataset(16, 16), preset.train_config)
    history = trainer.fit()
    parts = [{"generator"}] * 3 + [{"discriminator"}] * 2
    parts += [{"generator", "discriminator"}] * 3
    for (before, after), part in zip(pairwise(states), parts, strict=True):
        changed = {
            k.split(".")[0] for k, v in after.items() if not torch.equal(v, before[k])
        }
        assert changed == part
    for record, part in zip(history, parts, strict=True):
        named = {k.split("/")[0] for k in record if "/" in k}
        assert named == part, record["step"]
    assert "generator/adversarial_loss" not in history[0]
    assert history[0]["generator/loss"] == pytest.approx(
        history[0]["generator/perceptual_loss"]
        - history[0]["generator/kernel_information"],
        rel=1e-4,
    )
    # the weight falls to 0 in two updates; then the log has no value from before
    logged = [h["generator/perceptual_loss"] for h in history[5:]]
    assert min(logged[:2]) > 0 and logged[2] == 0
    assert "discriminator/r1_penalty" in history[3]  # the first of the discriminator


def test_adams_moments_are_carried_over():
    changes = {"discriminator_only_steps": 0, "train.save_every": 0}
    preset = g.gigagan_preset(TINY, THREE_PARTS | changes)
    model = g.GigaGAN(preset.model_config)
    trainer = Trainer(model, critters_dataset(16, 16), preset.train_config)
    trainer.fit()
    steps = {
        phase: {int(s["step"]) for s in trainer.optimizers[phase].state.values()}
        for phase in model.phases
    }
    assert max(steps["generator"]) == 8 and steps["discriminator"] == {5}


def test_pretraining_reconstructs_and_is_the_same_each_time():
    settings = {"pretrain_steps": 30, "pretrain_candidates": 2, "pretrain_lr": 1e-2}
    settings |= {"train.max_steps": 30, "train.batch_size": 8, "train.log_every": 1}
    settings |= {"clip_weight": 0.0, "train.save_every": 0, "num_images": 64}

    def losses(**changes):
        _, log = g.train_gigagan(g.gigagan_preset(TINY, settings | changes))
        return [h["generator/perceptual_loss"] for h in log]

    whole = losses()
    assert len(whole) == 30 and sum(whole[-5:]) < 0.7 * sum(whole[:5])
    assert losses(**{"train.max_steps": 8}) == whole[:8]


def test_of_several_candidates_only_the_nearest_gets_the_gradient(batch, monkeypatch):
    "Chosen at the smallest size and without gradient; then drawn at all sizes."
    model = built(pretrain_steps=1, pretrain_candidates=5).train()
    drawn, plain = [], model.generator.synthesise

    def synthesise(w, words, **kwargs):
        images = plain(w, words, **kwargs)
        drawn.append((len(w), [x.shape[-1] for x in images], torch.is_grad_enabled()))
        return images

    monkeypatch.setattr(model.generator, "synthesise", synthesise)
    model.training_losses(batch, seeded_generator(0), "generator")["loss"].backward()
    assert drawn == [(24, [8], False), (6, [8], False), (6, [8, 16], True)]
    monkeypatch.undo()
    text = model.encode_prompts(batch.captions)
    small = image_pyramid(batch.images, (8,))[0]
    words = model.generator.encode_text(text)
    z = g.nearest_latents(model.generator, words, small, 5, seeded_generator(3))
    all_z = torch.randn(
        5, 6, model.generator.config.z_dim, generator=seeded_generator(3)
    )
    with torch.no_grad():
        distances = torch.stack(
            [
                (model.generator(one, text)[0] - small).square().mean((1, 2, 3))
                for one in all_z
            ]
        )
    assert torch.equal(z, all_z[distances.argmin(0), torch.arange(6)])


def test_the_weight_of_the_perceptual_loss_falls_along_a_line():
    c = dict(pretrain_steps=10, discriminator_only_steps=5, perceptual_weight=2.0)
    falling, constant = built(**c, perceptual_decay_steps=4), built(**c)
    weights = []
    for step in (9, 15, 16, 17, 19, 1000):
        falling.phases_at(step)
        constant.phases_at(step)
        weights.append(falling.perceptual_weight)
        assert constant.perceptual_weight == 2.0
    assert weights == [2.0, 2.0, 1.5, 1.0, 0.0, 0.0]


def test_kernels_are_kept_apart_by_a_term_of_every_part(batch):
    "It lowers the loss by the information, and is left out without banks."
    for changes in ({}, {"pretrain_steps": 1}):
        plain, weighted = (
            built(clip_weight=0.0, kernel_information_weight=k, **changes).train()
            for k in (0.0, 2.0)
        )
        a, b = (
            m.training_losses(batch, seeded_generator(0), "generator")
            for m in (plain, weighted)
        )
        information = b["kernel_information"].item()
        assert 0 <= information < 0.7 and "kernel_information" not in a
        assert (a["loss"] - b["loss"]).item() == pytest.approx(
            2 * information, abs=1e-5
        )
    one = built(clip_weight=0.0, kernel_information_weight=2.0, use_filter_bank=False)
    terms = one.training_losses(batch, seeded_generator(0), "generator")
    assert "kernel_information" not in terms


@pytest.fixture(scope="module")
def three_parts(tmp_path_factory):
    "A whole training in three parts, with a checkpoint after each update."
    folder = tmp_path_factory.mktemp("parts") / "whole"
    preset = g.gigagan_preset(TINY, THREE_PARTS)
    model, log = g.train_gigagan(preset, "critters", folder)
    return folder, model, log


@pytest.mark.parametrize("halt", [2, 4, 6])
def test_resumed_in_any_part_it_ends_with_the_same_bits(three_parts, halt, tmp_path):
    "In pre-training, with the discriminator alone, and with both."
    folder, whole, log = three_parts
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    for step in range(halt + 1, 9):
        path = tmp_path / "run" / "checkpoints" / f"step-{step:06}"
        shutil.rmtree(path, ignore_errors=True)
    preset = g.gigagan_preset(TINY, THREE_PARTS)
    resumed, again = g.train_gigagan(preset, "critters", tmp_path / "run", resume=True)
    assert again == log
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name


def test_the_log_shows_what_the_generator_uses(three_parts):
    _, _, log = three_parts
    for record in log:
        assert {"style_share_z", "style_share_caption", "kernel_ratio"} <= set(record)
        assert {"effect_z", "effect_caption", "distance_within"} <= set(record)
    read = [k for k in log[-1] if k.startswith("matching_")]
    assert {k.removeprefix("matching_") for k in read} == set(CLASSIFIED_ATTRIBUTES)
    assert all(0 <= log[-1][k] <= 1 for k in read)
    assert not any(k.startswith("matching_") for record in log[:3] for k in record)


def test_a_lost_input_is_warned_of_once():
    model = built().eval()
    model.probe_captions = ["a red cat", "a small blue fish", "an owl"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers = model.diagnostics()
    assert min(numbers["style_share_z"], numbers["style_share_caption"]) > 0.02
    with torch.no_grad():  # a style of the same numbers, whatever comes in
        for p in model.generator.mapping.parameters():
            p.zero_()
        *_, last = (
            p for n, p in model.generator.mapping.named_parameters() if "bias" in n
        )
        last.fill_(1.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.phases_at(41)
        numbers = model.diagnostics()
        model.diagnostics()
    said = [str(w.message) for w in said]
    assert len(said) == 2 and all("the style hardly depends on" in m for m in said)
    assert all(m.startswith("update 42:") for m in said)
    assert numbers["style_share_z"] < 0.02
    assert built(text_conditional=False).diagnostics() == {}


def one_caption(n):
    "Images with one caption."
    return ImageTextDataset(
        lambda i: torch.full((3, 16, 16), i, dtype=torch.uint8),
        [("a red cat",)] * n,
        16,
    )


def test_images_of_one_caption_are_trained_without_mismatched_ones(monkeypatch):
    "Row F4: said at once, before the first update, and only once."
    settings = {
        "pretrain_steps": 1,
        "pretrain_candidates": 2,
        "discriminator_only_steps": 1,
        "diff_augment": True,
        "train.max_steps": 4,
    }
    order, plain = [], g.GigaGAN.training_losses

    def training_losses(*args, **kwargs):
        order.append("update")
        return plain(*args, **kwargs)

    monkeypatch.setattr(g.GigaGAN, "training_losses", training_losses)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda m, *_: order.append(str(m))
        model, log = g.train_gigagan(g.gigagan_preset(TINY, settings), one_caption(8))
    said = [m for m in order if "all captions" in m]
    assert len(said) == 1 and "state the same" in said[0]
    assert order.index(said[0]) < order.index("update")
    assert log[-1]["step"] == 4 and log[-1]["generator/clip_loss"] == 0
    assert log[-1]["discriminator/score_mismatched"] == pytest.approx(
        log[-1]["discriminator/score_real"]
    )


def test_a_batch_of_one_caption_skips_the_mismatched_term_alone(batch):
    "Row F4: with a note once; the loss is that without the term; the same each time."
    same = replace(batch, captions=["a red cat"] * 6)
    losses = []
    for weight in (0.5, 0.5, 0.0):
        model = built(clip_weight=0.0, matching_weight=weight).train()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(2):
                terms = model.training_losses(
                    same, seeded_generator(1), "discriminator"
                )
        assert len(said) == (1 if weight else 0)
        losses.append(terms["loss"].item())
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    mixed = model.training_losses(batch, seeded_generator(1), "discriminator")
    assert mixed["loss"].isfinite()


def test_the_perceptual_loss_is_in_the_generators_loss_and_not_in_the_weights(batch):
    plain, alike = (
        built(clip_weight=0.0).eval(),
        built(clip_weight=0.0, perceptual_weight=2.0).eval(),
    )
    names = set(alike.state_dict())
    a, b = (
        m.training_losses(batch, seeded_generator(0), "generator")
        for m in (plain, alike)
    )
    assert (b["loss"] - a["loss"]).item() == pytest.approx(
        2 * b["perceptual_loss"].item(), rel=1e-4
    ) and "perceptual_loss" not in a
    c, d = (
        m.training_losses(batch, seeded_generator(0), "discriminator")["loss"]
        for m in (plain, alike)
    )
    assert c == d and set(alike.state_dict()) == names


def test_without_text_nothing_can_be_reconstructed(batch):
    for changes in ({"perceptual_weight": 1.0}, {"pretrain_steps": 1}):
        unconditional = built(
            text_conditional=False, matching_weight=0.0, clip_weight=0.0, **changes
        )
        with pytest.raises(
            UserError, match="set pretrain_steps=0 and perceptual_weight=0"
        ):
            unconditional.training_losses(batch, seeded_generator(0), "generator")


@pytest.mark.parametrize("changes", [{"perceptual_weight": 1.0}, {"pretrain_steps": 2}])
def test_impossible_pretraining_is_refused_before_anything_is_written(
    tmp_path, changes
):
    changes |= {"text_conditional": False, "matching_weight": 0.0, "clip_weight": 0.0}
    with pytest.raises(UserError, match="set pretrain_steps=0 and perceptual_weight=0"):
        g.train_gigagan(g.gigagan_preset(TINY, changes), "critters", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- the penalty


def test_the_penalty_is_lazy_and_covers_all_sizes(monkeypatch, batch):
    """GG-11: a peer's penalty covers the largest image only. Here all sizes, of real
    images, and with R2 of generated ones too; never in eval mode."""
    calls, plain = [], g.zero_centered_gradient_penalty
    monkeypatch.setattr(
        g,
        "zero_centered_gradient_penalty",
        lambda score, inputs: (
            calls.append([x.shape[-1] for x in inputs]) or plain(score, inputs)
        ),
    )
    for loss, kinds in (("logistic", 1), ("relativistic", 2)):
        calls.clear()
        model = built(adversarial_loss=loss, r1_interval=3, clip_weight=0.0).train()
        for k in range(4):
            for phase in model.phases_at(k):
                model.training_losses(batch, seeded_generator(k), phase)
        assert calls == [[8, 16]] * kinds * 2
        model.eval().training_losses(batch, seeded_generator(0), "discriminator")
        assert len(calls) == 2 * kinds


def test_the_penalty_is_counted_from_the_end_of_pretraining(batch):
    "So the first update of the discriminator has it, whatever came before."
    model = built(pretrain_steps=4, discriminator_only_steps=2, r1_interval=3).train()
    penalised = []
    for step in range(4, 12):
        model.phases_at(step)
        terms = model.training_losses(batch, seeded_generator(0), "discriminator")
        if "r1_penalty" in terms:
            penalised.append(step)
    assert penalised == [4, 7, 10]


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_the_penalty_is_counted_in_optimiser_steps(pieces):
    """However a batch is cut, all its micro-batches are penalised in every third step;
    the log keeps the last value."""
    model = built(clip_weight=0.0, r1_interval=3)
    penalised, plain = [], model.discriminator_loss

    def discriminator_loss(*args):
        before, step = model.r1_penalty, model.step
        terms = plain(*args)
        penalised.append((step, model.r1_penalty is not before))
        assert ("r1_penalty" in terms) == penalised[-1][1]
        return terms

    model.discriminator_loss = discriminator_loss
    train_config = replace(
        TINY.train_config,
        max_steps=5,
        gradient_accumulation_steps=pieces,
        log_every=1,
        max_grad_norm=None,
    )
    history = Trainer(model, critters_dataset(8, 16), train_config).fit()
    assert penalised == [
        (step, step % 3 == 0) for step in range(5) for _ in range(pieces)
    ]
    logged = [h["discriminator/r1_penalty"] for h in history]
    assert len(logged) == 5 and min(logged) > 0 and len(set(logged[2:4])) == 2


def test_mismatched_captions_differ_in_what_they_state(batch):
    "Two ways of saying the same are no mismatched pair."
    same = ["a red cat", "a drawing of a red cat"] * 3
    model = built(clip_weight=0.0).eval()
    assert model.caption_key("a red cat") == "a red cat"
    model.caption_key = g.caption_attributes
    terms = model.training_losses(
        replace(batch, captions=same), seeded_generator(0), "discriminator"
    )
    assert terms["score_mismatched"] == terms["score_real"]  # the term is skipped
    for data, kind in (("critters", tuple), (critters_dataset(32, 16), str)):
        settings = {"clip_weight": 0.0, "train.max_steps": 1, "diff_augment": True}
        trained = g.train_gigagan(g.gigagan_preset(TINY, settings), data)[0]
        assert isinstance(trained.caption_key("a red cat"), kind)


def test_gamma_is_made_up_for_the_steps_between(batch):
    plain, lazy = (
        built(r1_gamma=0.0).train(),
        built(r1_gamma=2.0, r1_interval=4).train(),
    )
    a, b = (
        m.training_losses(batch, seeded_generator(0), "discriminator")["loss"]
        for m in (plain, lazy)
    )
    once = (
        built(r1_gamma=2.0, r1_interval=1)
        .train()
        .training_losses(batch, seeded_generator(0), "discriminator")["loss"]
    )
    assert (b - a).item() == pytest.approx(4 * (once - a).item(), rel=1e-3) and b > a


def test_learning_rates_of_the_two_networks():
    model = built(discriminator_lr_ratio=2.0, r1_interval=16)
    model.train_config = replace(TINY.train_config, lr=1e-3, betas=(0.0, 0.99))
    c = 16 / 17
    assert model.optimizer_kwargs("generator")["lr"] == 1e-3
    assert model.optimizer_kwargs("discriminator")["lr"] == pytest.approx(
        2e-3 * c
    ) and model.optimizer_kwargs("discriminator")["betas"] == pytest.approx(
        (0.0, 0.99**c)
    )


# ---- CLIP


def test_clip_is_no_part_of_the_model(tmp_path):
    "GG-12: a peer stores CLIP in generator, discriminator and average."
    model = built()
    before = set(model.state_dict())
    model.set_clip_negatives(["a red cat", "a blue fish"])
    assert set(model.state_dict()) == before and not any("clip" in k for k in before)
    assert all("clip" not in n for n, _ in model.named_parameters())


def test_a_clip_loss_without_a_bank_is_refused(batch):
    with pytest.raises(
        UserError, match="call set_clip_negatives, or set clip_weight=0"
    ):
        built().training_losses(batch, seeded_generator(0), "generator")


def test_the_clip_loss_reaches_the_generator_with_its_weight(batch):
    "PR-2: both vectors from one contrastive model; its gradient reaches the generator."
    without, weighted = (
        built(clip_weight=0.0, adversarial_loss="logistic").eval(),
        built(clip_weight=0.5, adversarial_loss="logistic").eval(),
    )
    weighted.set_clip_negatives(["a red cat", "a blue fish", "a green owl"])
    a, b = (
        m.training_losses(batch, seeded_generator(0), "generator")
        for m in (without, weighted)
    )
    assert (b["loss"] - a["loss"]).item() == pytest.approx(
        0.5 * b["clip_loss"].item(), rel=1e-4
    )


def test_captions_that_state_the_same_are_the_same():
    assert (
        g.caption_attributes("a red and blue cat")
        == g.caption_attributes("A red and blue cat.")
        != g.caption_attributes("a blue and red cat")
    )


# ---- training


def test_same_seed_same_bits_and_resumed_equals_uninterrupted(tmp_path):
    """GG-10: each checkpoint has a folder of its own; the counter of the lazy penalty
    survives a halt."""
    changes = {"r1_interval": 3}
    runs = [
        g.train_gigagan(g.gigagan_preset(TINY, changes), "critters", tmp_path / name)[0]
        for name in ("a", "b")
    ]
    assert sorted(f.name for f in (tmp_path / "a" / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000004",
    ]
    for gone in ("model", "checkpoints/step-000004"):
        shutil.rmtree(tmp_path / "b" / gone)
    resumed = g.train_gigagan(
        g.gigagan_preset(TINY, changes), "critters", tmp_path / "b", resume=True
    )[0]
    for other in (runs[1], resumed):
        for (name, a), b in zip(
            runs[0].state_dict().items(), other.state_dict().values()
        ):
            assert torch.equal(a, b), name
    run = json.loads((tmp_path / "b" / "model" / "run.json").read_text())
    assert (
        run["start_step"] == 2
        and run["preset"]["model_config"]["r1_interval"] == 3
        and resumed.step == 3
    )


def test_a_few_images_of_another_source_train_too():
    """GG-13: a peer asserts more than a hundred images. Here few are allowed, with a
    warning that says what helps."""
    data = critters_dataset(10, 16)
    with pytest.warns(UserWarning, match="diff_augment=true helps"):
        model, _ = g.train_gigagan(
            g.gigagan_preset(TINY, {"clip_weight": 0.0, "train.max_steps": 1}), data
        )
    assert model.sample_prompts == [c[0] for c in data.captions[:8]]


def test_only_the_generator_is_averaged():
    model, data = built(clip_weight=0.0), critters_dataset(8, 16)
    trainer = Trainer(model, data, replace(TINY.train_config, max_steps=2))
    trainer.fit()
    assert trainer.ema and all(
        name.startswith("generator.") for name in trainer.ema.average
    )


def test_a_batch_in_pieces_and_a_file_that_is_cut(tmp_path):
    """GG-9: a peer's networks lose their attributes when they are wrapped for several
    pieces or processes, and its loader fails while it reports that it fails."""
    model = built(clip_weight=0.0)
    history = Trainer(
        model,
        critters_dataset(8, 16),
        replace(TINY.train_config, max_steps=2, gradient_accumulation_steps=2),
    ).fit()
    assert model.step == 1 and history[-1]["step"] == 2  # a step has two micro-batches
    model.save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="no whole safetensors file"):
        g.GigaGAN.from_pretrained(tmp_path / "m", "cpu")


def test_a_loss_that_is_not_finite_stops_the_training():
    "GG-11: a peer skips a penalty that is NaN in the log and adds it to the loss."
    model, data = built(clip_weight=0.0), critters_dataset(8, 16)
    with torch.no_grad():
        model.discriminator.from_rgb["16"].weight.fill_(float("nan"))
    with pytest.raises(UserError, match="'discriminator/loss' is nan"):
        Trainer(model, data, TINY.train_config).fit()


def test_the_warm_preset_fits_the_model_that_it_starts_from():
    preset = g.gigagan_preset("warm-32")
    old = g.GigaGAN.from_pretrained(preset.init_from, "cpu")
    new = g.init_gigagan_from_smaller(old, g.GigaGAN(preset.model_config)).eval()
    assert preset.model_config.diff_augment and not preset.model_config.pretrain_steps
    pair = [m.sample(["a red and blue cat"]) for m in (old, new)]
    assert torch.equal(*pair)


def test_settings_by_name():
    changed = g.gigagan_preset(
        "cpu-32",
        [
            "train.max_steps=700",
            "matching_weight=0.25",
            "text_conditional=false",
            "init_from=somewhere",
        ],
    )
    assert (
        changed.train_config.max_steps,
        changed.model_config.matching_weight,
        changed.model_config.text_conditional,
        changed.init_from,
    ) == (700, 0.25, False, "somewhere")
    with pytest.raises(UserError, match="did you mean 'cpu-32'"):
        g.gigagan_preset("cpu32")
    with pytest.raises(UserError, match="did you mean 'multiscale_loss'"):
        g.gigagan_preset("tiny", ["multiscale=false"])


@pytest.mark.parametrize("name", list(g.GIGAGAN_PRESETS))
def test_every_preset_fits_together(name):
    c = g.GIGAGAN_PRESETS[name].model_config
    from torch._subclasses.fake_tensor import FakeTensorMode

    plain = replace(c, use_vision_aided=False)  # the backbone comes from a file
    with FakeTensorMode(), torch.no_grad():  # shapes without numbers
        generator, discriminator = (
            Generator(c.network_configs()[0]),
            g.Discriminator(plain.network_configs()[1]),
        )
        assert generator.synthesise(
            torch.zeros(2, c.generator.style_dim), text := hollow_text(2)
        )[-1].shape == (2, 3, c.size, c.size)
        scores = discriminator(
            [torch.zeros(2, 3, s, s) for s in c.discriminator.sizes], text
        )
    assert len(scores.logits()) == len(plain.network_configs()[1].head_names)
    with torch.device("meta"):
        whole = g.Discriminator(c.network_configs()[1])
    n = sum(p.numel() for net in (generator, whole) for p in net.parameters())
    assert not name.startswith(("tiny", "cpu")) or 2 * n <= 12e6


def hollow_text(b):
    from t2i_tutorial.text import TextEmbedding

    return TextEmbedding(
        torch.zeros(b, 5, 256), torch.ones(b, 5, dtype=torch.bool), torch.zeros(b, 256)
    )


def test_initialising_from_a_smaller_model_keeps_its_function():
    big = replace(
        SMALL,
        size=32,
        generator=replace(
            SMALL.generator,
            channels=(16, 16, 8, 8),
            num_kernels=(1, 2, 2, 2),
            self_attention=(False, True, False, False),
            cross_attention=(False, True, False, False),
        ),
        discriminator=DiscriminatorConfig(
            (8, 16, 32), (16, 8, 8), (True, False, False), text_dim=256, style_dim=16
        ),
    )
    small, model = built(seed=1).eval(), g.GigaGAN(big).eval()
    g.init_gigagan_from_smaller(small, model)
    z, text = (
        torch.randn(3, 8, generator=seeded_generator(0)),
        small.encode_prompts(["a red cat", "a blue fish", "an owl"]),
    )
    with torch.no_grad():
        for a, b in zip(small.generator(z, text), model.generator(z, text)):
            assert torch.equal(a, b)
    images = image_pyramid(torch.rand(3, 3, 32, 32) * 2 - 1, (8, 16, 32))
    with torch.no_grad():
        a, b = small.discriminator(images[:2], text), model.discriminator(images, text)
    old = dict(zip(b.head_names, b.logits()))
    for name, score in zip(a.head_names, a.logits()):
        assert torch.allclose(old[name], score, atol=1e-5)
    with pytest.raises(UserError, match="cannot start from this model of 32 pixels"):
        g.init_gigagan_from_smaller(model, small)


# ---- sampling


def test_alone_or_in_company_and_again():
    model, prompts = (
        built().eval(),
        ["a red cat", "a small blue and green fish, swimming", "a red cat"],
    )
    many = model.sample(prompts, seed=3)
    assert (
        many.shape == (3, 3, 16, 16)
        and many.abs().max() <= 1
        and torch.equal(many, model.sample(prompts, seed=3, batch_size=2)) is not None
    )
    assert torch.allclose(
        model.sample(prompts[:1], seed=3), many[:1], atol=1e-4
    ) and torch.allclose(model.sample(prompts, seed=3, batch_size=1), many, atol=1e-4)
    assert not torch.equal(many[0], many[2]) and not torch.equal(
        many, model.sample(prompts, seed=4)
    )


def test_truncation_zero_leaves_one_picture_a_prompt():
    model = built().eval()
    same = model.sample(["a red cat"] * 3, truncation_psi=0.0)
    assert torch.allclose(same[0], same[1], atol=1e-5) and not torch.allclose(
        model.sample(["a red cat"] * 2)[0], same[0], atol=1e-3
    )
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="truncation_psi must be from 0 to 1"):
            model.sample(["a red cat"], truncation_psi=bad)


def test_a_saved_model_draws_the_same(tmp_path):
    model = built().eval()
    model.save_pretrained(tmp_path / "m")
    again = g.GigaGAN.from_pretrained(tmp_path / "m", "cpu")
    assert again.config == model.config and isinstance(again, TextToImage)
    assert (
        again.sample(["a red cat"]) - model.sample(["a red cat"])
    ).abs().max() < 0.05
    assert sorted(f.name for f in (tmp_path / "m").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_an_unconditional_model_draws_too():
    model = built(text_conditional=False).eval()
    a, b = model.sample(["a red cat"], seed=1), model.sample(["a blue fish"], seed=1)
    assert a.shape == (1, 3, 16, 16) and not torch.equal(
        a, b
    )  # the stream still belongs to the prompt


def test_a_gan_is_validated_by_its_generator():
    "Review 2.7: and not by the discriminator, whose loss falls when images get worse."
    assert not hasattr(g.GigaGAN, "validation_phase")
    assert g.GigaGAN.phases[-1] == "generator"
    assert g.GigaGAN.ema_phases == ("generator",)


# ---- the recorded model


def recorded():
    return g.GigaGAN.from_pretrained("critters-32-gigagan", "cpu")


def test_text_discrimination_is_at_chance_level_before_and_high_after_training():
    untrained, trained = built().eval(), recorded()
    measure = diagnostics.text_discrimination_accuracy
    before = measure(untrained.discriminator, untrained.encoder, n=48)
    assert all(0.2 < share < 0.8 for share in before.values())
    after = measure(trained.discriminator, trained.encoder, ("body_colour",), n=48)
    assert after["body_colour"] > 0.8


def test_the_recorded_model_draws_what_it_is_asked_for():
    asked = critters.sample_critters(64, 32, seed=77, split="test")
    found = prompt_accuracy(
        AttributeClassifier.from_pretrained(),
        recorded().sample([full_caption(c) for c in asked.critters]),
        asked.critters,
    )
    report = json.loads(
        (RESULTS_DIR / "critters-32-gigagan" / "evaluation-test.json").read_text()
    )
    for key in ("body_colour", "species"):
        assert found[key].value > report["metrics"]["test/full"][key]["value"] - 0.2
