"""Chapter 25: two networks in one model, each told what the other was told; trained, stopped, resumed, saved, drawn with."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from t2i_tutorial import critters
from t2i_tutorial.core import UserError, seeded_generator
from t2i_tutorial.data import ImageTextDataset
from t2i_tutorial.evaluation.classifier import AttributeClassifier
from t2i_tutorial.evaluation.report import prompt_accuracy
from t2i_tutorial.experiments import critters_dataset
from t2i_tutorial.gan import gigagan as g
from t2i_tutorial.gan.discriminator import DiscriminatorConfig, image_pyramid
from t2i_tutorial.gan.generator import Generator, GeneratorConfig
from t2i_tutorial.gan.losses import text_gradient_per_head
from t2i_tutorial.hub import BUNDLED_DIR, RESULTS_DIR, TextToImage
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
        steps=4,
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
        ({"adversarial_loss": "hinge"}, "unknown loss 'hinge'"),
        (
            {"hard_negative_fraction": -0.5},
            "hard_negative_fraction must be from 0 to 1",
        ),
        ({"clip_weight": float("nan")}, "clip must be from 0"),
        ({"r1_gamma": -1.0}, "r1_gamma must be from 0"),
        ({"discriminator_lr_ratio": 0.0}, "discriminator_lr_ratio must be"),
        ({"truncation_psi": 1.1}, "truncation_psi must be"),
        ({"r1_interval": 0}, "r1_interval must be at least 1"),
        ({"clip_num_negatives": 0}, "clip_num_negatives must be at least 1"),
        (
            {"generator": replace(SMALL.generator, min_output_size=4)},
            "set generator.min_output_size",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)


def test_an_encoder_of_another_width_is_refused():
    "GG-6: a peer reads `text_encoder.dim` before there is one; here the sizes stand in the configuration, and a wrong one is named."
    with pytest.raises(
        UserError,
        match="gives vectors of 128, generator and discriminator take 256 and 256",
    ):
        g.GigaGAN(replace(SMALL, text="critters-clip"))


@pytest.mark.parametrize("loss", g.GAN_LOSSES)
@pytest.mark.parametrize(
    "changes",
    [
        *g.ABLATION_LADDER.values(),
        {"text_conditional_discriminator": False},
        {"attention": False},
        {"diff_augment": True},
    ],
    ids=[*g.ABLATION_LADDER, "deaf critic", "no attention", "augmented"],
)
def test_every_switch_leaves_two_losses_that_reach_their_own_side(changes, loss, batch):
    """Each rung trains both sides in its own turn, and no turn touches the other side.

    GG-5: a peer's trainer hands its network an argument that was renamed; here every switch goes through the real Trainer.
    """
    model = built(loss=loss, **changes).train()
    if model.config.clip_weight:
        model.set_clip_negatives(["a red cat", "a blue fish", "a green owl"])
    trainer = Trainer(
        model, critters_dataset(8, 16), replace(TINY.train_config, steps=1)
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer.fit()
    moved = {
        name.split(".")[0]
        for name, v in model.state_dict().items()
        if not torch.equal(v, before[name])
    }
    assert moved == {"generator", "discriminator", "d_steps"}
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


# ---- who is told what


def spy(model, monkeypatch):
    "Note which style, made of a text, each judgement of the discriminator was given."
    seen, plain = [], model.discriminator.judge

    def judge(maps, style=None):
        seen.append((maps[0].detach().clone(), style.detach().clone()))
        return plain(maps, style)

    monkeypatch.setattr(model.discriminator, "judge", judge)
    return seen


def test_real_pictures_are_judged_under_their_own_captions_and_under_wrong_ones(
    monkeypatch, batch
):
    "GG-1, GG-2: a peer judges real pictures by another batch's captions, and takes the right captions for wrong ones."
    model = built(clip_weight=0.0).eval()
    seen, own = (
        spy(model, monkeypatch),
        model.discriminator.text_to_style(model.encode_prompts(batch.captions)),
    )
    model.training_losses(batch, seeded_generator(0), "discriminator")
    (real, right), (fake, told), (again, wrong), (fakes, others) = seen
    assert (
        torch.equal(right, own)
        and torch.equal(told, own)
        and torch.equal(wrong, others)
    )
    for maps, source, texts in ((again, real, wrong), (fakes, fake, others)):
        for picture, text in zip(
            maps, texts
        ):  # the same picture as before, and a caption that is not its own
            i = next(i for i in range(6) if torch.equal(source[i], picture))
            j = next(j for j in range(6) if torch.equal(own[j], text))
            assert batch.captions[i] != batch.captions[j]


def test_the_generators_turn_tells_both_sides_the_same(monkeypatch, batch):
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
    slopes = text_gradient_per_head(
        lambda x, t: model.discriminator(x, t).logits(),
        image_pyramid(images, model.config.discriminator.sizes),
        model.encode_prompts(batch.captions),
    )
    assert (
        len(slopes) == len(model.config.discriminator.head_names)
        and (slopes > 1e-5).all()
    )


def test_a_deaf_critic_is_deaf(batch):
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
    assert torch.equal(a, b) and set(
        g.text_discrimination_accuracy(model, ("body_colour",), n=16).values()
    ) == {0.5}
    assert "wrong" not in model.training_losses(
        batch, seeded_generator(0), "discriminator"
    )


# ---- borrowed eyes, and lessons

EYES = replace(SMALL.discriminator, eyes="critters-clip", vision_aided_channels=8)


def test_eyes_are_a_switch(batch):
    with_eyes = g.GigaGAN(replace(SMALL, discriminator=EYES))
    assert [
        w for w in with_eyes.discriminator.config.head_names if w[0] == "vision_aided"
    ] == [("vision_aided", 1), ("vision_aided", 2), ("vision_aided", 3)]
    assert replace(SMALL, discriminator=EYES, eyes=False).network_configs()[
        1
    ] == replace(SMALL.discriminator, vision_aided_channels=8)
    with_eyes.set_clip_negatives(["a red cat", "an owl"])
    for phase in with_eyes.phases:
        with_eyes.zero_grad()
        with_eyes.training_losses(batch, seeded_generator(0), phase)["loss"].backward()
    assert all(
        p.grad is None for p in with_eyes.discriminator.vision_aided.clip.parameters()
    )


def test_lessons_teach_reading_and_leave_the_rest_alone():
    data = critters_dataset(256, 16)
    model = g.GigaGAN(replace(SMALL, discriminator=EYES)).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    losses = g.pretrain_discriminator_text(
        model, data, num_steps=30, batch_size=32, lr=5e-3
    )
    assert len(losses) == 30 and sum(losses[-5:]) < 0.95 * sum(losses[:5])
    moved = {
        ".".join(k.split(".")[:2])
        for k, v in model.state_dict().items()
        if not torch.equal(v, before[k])
    }
    assert moved == {"discriminator.style", "discriminator.text", "discriminator.eyes"}
    assert all(p.grad is None for p in model.parameters())
    again = g.GigaGAN(replace(SMALL, discriminator=EYES)).eval()
    again.load_state_dict(before)
    assert (
        g.pretrain_discriminator_text(again, data, num_steps=30, batch_size=32, lr=5e-3)
        == losses
    )


def test_lessons_need_captions_that_differ():
    data = ImageTextDataset(
        lambda i: torch.zeros(3, 16, 16, dtype=torch.uint8), [("a red cat",)] * 8, 16
    )
    with pytest.raises(
        UserError, match="nothing to read; set discriminator_pretrain_steps=0"
    ):
        g.pretrain_discriminator_text(built(), data, num_steps=1, batch_size=4)
    with pytest.raises(
        UserError, match="nothing to teach; set discriminator_pretrain_steps=0"
    ):
        g.pretrain_discriminator_text(
            built(text_conditional_discriminator=False), data, num_steps=1
        )
    with pytest.raises(
        UserError, match="discriminator_pretrain_steps must be at least 0, not -1"
    ):
        replace(SMALL, discriminator_pretrain_steps=-1)


def test_a_training_begins_with_its_lessons(tmp_path):
    settings = {"discriminator_pretrain_steps": 2, "clip_weight": 0.0, "max_steps": 1}
    few = critters_dataset(32, 16)
    taught, plain = (
        g.train_gigagan(
            g.gigagan_preset(TINY, settings | {"discriminator_pretrain_steps": n}), few
        )[0]
        for n in (2, 0)
    )
    assert not torch.equal(
        taught.discriminator.text_to_style.linear1.weight,
        plain.discriminator.text_to_style.linear1.weight,
    )
    assert taught.config.discriminator_pretrain_steps == 2


def test_drawing_lessons_teach_the_generator_and_leave_the_rest_alone():
    data, model = critters_dataset(128, 16), built()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    losses = g.pretrain_generator(model, data, num_steps=30, batch_size=16, lr=1e-2)
    assert len(losses) == 30 and sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert {
        k.split(".")[0]
        for k, v in model.state_dict().items()
        if not torch.equal(v, before[k])
    } == {"generator"}
    assert all(p.grad is None for p in model.parameters())
    again = built()
    again.load_state_dict(before)
    assert (
        g.pretrain_generator(again, data, num_steps=30, batch_size=16, lr=1e-2)
        == losses
    )


def test_of_several_tries_the_nearest_learns(monkeypatch):
    "The loss of a lesson is the least over its draws of chance, picture by picture."
    data, model = critters_dataset(8, 16), built()
    unlike, calls = g._perceptual_loss(model), []

    class Watching:
        see = staticmethod(unlike.features)

        def __call__(self, num_images, real, aims):
            calls.append(unlike(pictures, real))
            return calls[-1]

    monkeypatch.setattr(g, "_likeness", lambda model: Watching())
    (loss,) = g.pretrain_generator(
        model, data, num_steps=1, batch_size=8, num_candidates=3
    )
    assert len(calls) == 4 and loss == pytest.approx(
        torch.stack(calls[:3]).amin(0).mean().item(), rel=1e-4
    )
    assert (calls[0] - calls[1]).abs().max() > 0


def test_likeness_is_a_term_of_the_generators_turn_and_no_part_of_the_model(batch):
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
        2 * b["perceptual_weight"].item(), rel=1e-4
    ) and "likeness" not in a
    c, d = (
        m.training_losses(batch, seeded_generator(0), "discriminator")["loss"]
        for m in (plain, alike)
    )
    assert c == d and set(alike.state_dict()) == names


def test_without_text_there_is_no_picture_to_copy(batch):
    with pytest.raises(
        UserError, match="generator_pretrain_steps must be at least 0, not -2"
    ):
        replace(SMALL, generator_pretrain_steps=-2)
    with pytest.raises(UserError, match="perceptual_weight must be from 0"):
        replace(SMALL, perceptual_weight=-1.0)
    deaf = built(
        text_conditional=False,
        matching_weight=0.0,
        clip_weight=0.0,
        perceptual_weight=1.0,
    )
    with pytest.raises(
        UserError, match="set generator_pretrain_steps=0 and perceptual_weight=0"
    ):
        g.pretrain_generator(deaf, critters_dataset(8, 16), num_steps=1)
    with pytest.raises(
        UserError, match="set generator_pretrain_steps=0 and perceptual_weight=0"
    ):
        deaf.training_losses(batch, seeded_generator(0), "generator")


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {
                "generator_pretrain_steps": 1,
                "discriminator_pretrain_steps": 1,
                "text_conditional_discriminator": False,
            },
            "set discriminator_pretrain_steps=0",
        ),
        (
            {"perceptual_weight": 1.0, "text_conditional": False},
            "set generator_pretrain_steps=0 and perceptual_weight=0",
        ),
    ],
)
def test_lessons_that_cannot_be_given_are_refused_before_anything_is_written(
    tmp_path, changes, message
):
    with pytest.raises(UserError, match=message):
        g.train_gigagan(
            g.gigagan_preset(
                TINY, changes | {"matching_weight": 0.0, "clip_weight": 0.0}
            ),
            "critters",
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_lessons_are_given_once_and_a_resumed_training_ends_with_the_same_bits(
    tmp_path, monkeypatch
):
    changes, given = (
        {
            "discriminator_pretrain_steps": 2,
            "generator_pretrain_steps": 2,
            "perceptual_weight": 1.0,
        },
        [],
    )
    for name in ("teach_reading", "teach_drawing"):
        monkeypatch.setattr(
            g,
            name,
            lambda *a, name=name, teach=getattr(g, name), **k: (
                given.append(name) or teach(*a, **k)
            ),
        )
    whole, halted = (
        g.train_gigagan(g.gigagan_preset(TINY, changes), "critters", tmp_path / name)[0]
        for name in ("a", "b")
    )
    assert given == ["teach_drawing", "teach_reading"] * 2
    import shutil

    for gone in ("model", "checkpoints/step-000004"):
        shutil.rmtree(tmp_path / "b" / gone)
    resumed, _ = g.train_gigagan(
        g.gigagan_preset(TINY, changes), "critters", tmp_path / "b", resume=True
    )
    assert len(given) == 4
    for (name, a), b, c in zip(
        whole.state_dict().items(),
        halted.state_dict().values(),
        resumed.state_dict().values(),
    ):
        assert torch.equal(a, b) and torch.equal(a, c), name


# ---- the penalty


def test_the_penalty_is_lazy_and_covers_all_sizes(monkeypatch, batch):
    "GG-11: a peer's penalty watches the largest picture only. Here all sizes, of real pictures, and with pairs of generated ones too; never in eval mode."
    calls, plain = [], g.zero_centered_gradient_penalty
    monkeypatch.setattr(
        g,
        "r1_penalty",
        lambda score, inputs: (
            calls.append([x.shape[-1] for x in inputs]) or plain(score, inputs)
        ),
    )
    for loss, kinds in (("logistic", 1), ("relativistic", 2)):
        calls.clear()
        model = built(loss=loss, r1_interval=3).train()
        for k in range(4):
            model.training_losses(batch, seeded_generator(k), "discriminator")
        assert calls == [[8, 16]] * kinds * 2 and model.d_steps.item() == 4
        model.eval().training_losses(batch, seeded_generator(0), "discriminator")
        assert len(calls) == 2 * kinds and model.d_steps.item() == 4


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


def test_rates_of_the_two_sides():
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


def test_clip_pulls_at_the_picture_and_weighs_what_it_should(batch):
    "PR-2: both vectors from one contrastive model; its slope reaches the generator."
    quiet, loud = (
        built(clip_weight=0.0, loss="logistic").eval(),
        built(clip_weight=0.5, loss="logistic").eval(),
    )
    loud.set_clip_negatives(["a red cat", "a blue fish", "a green owl"])
    a, b = (
        m.training_losses(batch, seeded_generator(0), "generator")
        for m in (quiet, loud)
    )
    assert (b["loss"] - a["loss"]).item() == pytest.approx(
        0.5 * b["clip"].item(), rel=1e-4
    )


def test_captions_that_state_the_same_are_the_same():
    assert (
        g.caption_attributes("a red and blue cat")
        == g.caption_attributes("A red and blue cat.")
        != g.caption_attributes("a blue and red cat")
    )


# ---- training


def test_same_seed_same_bits_and_resumed_equals_uninterrupted(tmp_path):
    "GG-10: each checkpoint has a place of its own; also the lazy penalty keeps its time across a halt."
    changes = {"r1_interval": 3}
    runs = [
        g.train_gigagan(g.gigagan_preset(TINY, changes), "critters", tmp_path / name)[0]
        for name in ("a", "b")
    ]
    assert sorted(f.name for f in (tmp_path / "a" / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000004",
    ]
    import shutil

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
        and resumed.d_steps.item() == 4
    )


def test_few_pictures_without_captions_of_creatures_train_too():
    "GG-13: a peer asserts more than a hundred pictures. Here few are allowed, with a warning that says what helps."
    data = critters_dataset(10, 16)
    with pytest.warns(UserWarning, match="diff_augment=true helps"):
        model, _ = g.train_gigagan(
            g.gigagan_preset(TINY, {"clip_weight": 0.0, "max_steps": 1}), data
        )
    assert model.sample_prompts == [c[0] for c in data.captions[:8]]


def test_only_the_generator_is_averaged():
    model, data = built(clip_weight=0.0), critters_dataset(8, 16)
    trainer = Trainer(model, data, replace(TINY.train_config, steps=2))
    trainer.fit()
    assert trainer.ema and all(
        name.startswith("generator.") for name in trainer.ema.average
    )


def test_a_batch_in_pieces_and_a_file_that_is_cut(tmp_path):
    "GG-9: a peer's networks lose their attributes when they are wrapped for several pieces or processes, and its loader fails while it reports that it fails."
    model = built(clip_weight=0.0)
    history = Trainer(
        model,
        critters_dataset(8, 16),
        replace(TINY.train_config, steps=2, gradient_accumulation_steps=2),
    ).fit()
    assert (
        model.d_steps.item() == 4 and history[-1]["step"] == 2
    )  # each piece is a turn
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


def test_settings_by_name():
    changed = g.gigagan_preset(
        "cpu-32",
        [
            "max_steps=700",
            "matching_weight=0.25",
            "text_conditional=false",
            "init_from=somewhere",
        ],
    )
    assert (
        changed.train_config.max_steps,
        changed.model_config.matching_weight,
        changed.model_config.reads,
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

    eyeless = replace(c, eyes=False)  # borrowed eyes come from a file, with numbers
    with FakeTensorMode(), torch.no_grad():  # shapes without numbers
        generator, discriminator = (
            Generator(c.parts()[0]),
            g.Discriminator(eyeless.parts()[1]),
        )
        assert generator.synthesise(
            torch.zeros(2, c.generator.style_dim), text := hollow_text(2)
        )[-1].shape == (2, 3, c.size, c.size)
        scores = discriminator(
            [torch.zeros(2, 3, s, s) for s in c.discriminator.sizes], text
        )
    assert len(scores.logits()) == len(eyeless.parts()[1].where)
    with torch.device("meta"):
        whole = g.Discriminator(c.parts()[1])
    n = sum(p.numel() for net in (generator, whole) for p in net.parameters())
    assert not name.startswith(("tiny", "cpu")) or 2 * n <= 12e6


def hollow_text(b):
    from t2i_tutorial.text import TextEmbedding

    return TextEmbedding(
        torch.zeros(b, 5, 256), torch.ones(b, 5, dtype=torch.bool), torch.zeros(b, 256)
    )


def test_widening_keeps_what_was_learned():
    big = replace(
        SMALL,
        size=32,
        generator=replace(
            SMALL.generator,
            channels=(16, 16, 8, 8),
            bank=(1, 2, 2, 2),
            self_attention=(False, True, False, False),
            cross_attention=(False, True, False, False),
        ),
        discriminator=DiscriminatorConfig(
            (8, 16, 32), (16, 8, 8), (True, False, False), text_dim=256, style_dim=16
        ),
    )
    small, model = built(seed=1).eval(), g.GigaGAN(big).eval()
    with torch.no_grad():
        small.d_steps.fill_(7)
    g.init_gigagan_from_smaller(small, model)
    z, text = (
        torch.randn(3, 8, generator=seeded_generator(0)),
        small.encode_prompts(["a red cat", "a blue fish", "an owl"]),
    )
    with torch.no_grad():
        for a, b in zip(small.generator(z, text), model.generator(z, text)):
            assert torch.equal(a, b)
    assert model.d_steps.item() == 7
    images = image_pyramid(torch.rand(3, 3, 32, 32) * 2 - 1, (8, 16, 32))
    with torch.no_grad():
        a, b = small.discriminator(images[:2], text), model.discriminator(images, text)
    old = dict(zip(b.where, b.logits()))
    for place, score in zip(a.where, a.logits()):
        assert torch.allclose(old[place], score, atol=1e-5)
    with pytest.raises(UserError, match="cannot start from this model of 32 pixels"):
        g.init_gigagan_from_smaller(model, small)


# ---- the face


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


# ---- measures


def test_in_proportion_counts_what_is_missing():
    judge, group = (
        AttributeClassifier.from_pretrained(),
        critters.sample_critters(128, 32, seed=2, split="test"),
    )
    whole = g.class_coverage(judge, group.images, group.critters)
    assert (
        whole["share"] > 0.95
        and sum(c["asked"] for c in whole["classes"] if c["attribute"] == "species")
        == 128
    )
    collapsed = g.class_coverage(
        judge, group.images[:1].expand(128, -1, -1, -1), group.critters
    )
    assert collapsed["share"] < 0.15


def test_discerning_is_chance_at_the_start_and_high_after_the_recorded_training():
    assert all(
        0.2 < v < 0.8
        for v in g.text_discrimination_accuracy(built().eval(), n=48).values()
    )
    assert (
        g.text_discrimination_accuracy(recorded(), ("body_colour",), n=48)[
            "body_colour"
        ]
        > 0.8
    )


# ---- the recorded model


def recorded():
    return g.GigaGAN.from_pretrained("critters-32-gigagan", "cpu")


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
        assert found[key].value > report["metrics"][key]["value"] - 0.2


def test_the_record_is_whole():
    folder = BUNDLED_DIR / "critters-32-gigagan"
    assert (folder / "model.safetensors").stat().st_size <= 12e6
    alone = json.loads((folder / "without-generator-pretraining.json").read_text())
    runs = [
        json.loads((folder / f"{name}.json").read_text())
        for name in ("stage1-run", "run")
    ] + alone["runs"]
    assert runs[0]["command"] == "t2i train gigagan --preset cpu-32"
    for run in runs:
        assert (
            run["command"].startswith("t2i train gigagan --preset cpu-")
            and run["seconds"] > 60
            and run["hardware"]["cores"]
            and run["git_commit"]
        )
    clip = [
        h["generator/clip_loss"] for h in alone["runs"][0]["history"]
    ]  # PR-2: between vectors of one model the CLIP loss falls
    assert sum(clip[-5:]) < 0.5 * sum(clip[:5])
    for split in ("test", "held_out"):
        assert (
            alone["evaluation"][split]["n"]
            == json.loads((folder / f"evaluation-{split}.json").read_text())["n"]
        )


def test_compare_settings_goes_on_from_its_file(tmp_path):
    path, preset = (
        tmp_path / "s.json",
        g.gigagan_preset(TINY, {"clip_weight": 0.0, "max_steps": 1}),
    )
    g.run_gigagan_ablation(path, {"as it is": {}}, preset, num_images=16)
    both = g.run_gigagan_ablation(
        path, {"as it is": {}, "other": {"lr": 1e-4}}, preset, num_images=16
    )
    assert list(both["runs"]) == ["as it is", "other"] and both["runs"]["other"][
        "changes"
    ] == {"lr": 1e-4}
    assert {"discriminator/loss", "generator/loss"} <= set(both["runs"]["other"])
    with pytest.raises(UserError, match="was measured with n=16"):
        g.run_gigagan_ablation(path, {}, preset, num_images=32)
