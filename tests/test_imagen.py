"""Imagen: settings, loss, sampling, training, start from a smaller model, records."""

import json
import re
from dataclasses import replace
from math import nan

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_tutorial import critters
from t2i_tutorial.checkpoints import find_checkpoint, load_checkpoint
from t2i_tutorial.core import UserError, seeded_generator, to_pil
from t2i_tutorial.data import Batch, ImageTextDataset
from t2i_tutorial.diffusion import diagnostics
from t2i_tutorial.diffusion import imagen as I
from t2i_tutorial.diffusion.guidance import GuidanceConfig
from t2i_tutorial.diffusion.imagen import (
    IMAGEN_PRESETS,
    Imagen,
    ImagenConfig,
    imagen_preset,
    train_imagen,
)
from t2i_tutorial.diffusion.noise import add_noise, prediction_target
from t2i_tutorial.diffusion.samplers import run_sampler
from t2i_tutorial.experiments import SAMPLE_PROMPTS, critters_dataset, get_preset
from t2i_tutorial.gan.config import GIGAGAN_PRESETS, gigagan_preset
from t2i_tutorial.hub import bundled_models, prompt_generators, randn_per_prompt
from t2i_tutorial.text import TextEmbedding, full_caption
from t2i_tutorial.training import Trainer, setting_names

TINY = IMAGEN_PRESETS["tiny"].model_config
FEW = {
    "train.max_steps": 4,
    "train.warmup_steps": 1,
    "train.batch_size": 8,
    "num_images": 32,
    "train.save_every": 2,
    "train.log_with": "none",
}
PROMPTS = [
    "a blue and red dragon",
    "a small yellow and purple cat with green eyes, sleeping",
    "a fish",
    "a blue and red dragon",
]


def perturbed(config: ImagenConfig = TINY, **how) -> Imagen:
    "A model without weights of zero, so that every part matters."
    torch.manual_seed(0)
    model = Imagen(config, **how).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape)
    return model


@pytest.fixture(scope="module")
def model() -> Imagen:
    return perturbed()


@pytest.fixture(scope="module")
def batch():
    return next(ImageTextDataset.from_critters(8, 16).batches(8, shuffle=False))


def same(a, b) -> bool:
    "Whether two models have the same weights, bit for bit."
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- settings


@pytest.mark.parametrize(
    "values, message",
    [
        ({"size": 34}, "size must be a multiple of 4 for this U-Net, not 34"),
        ({"size": 8}, "size must be a whole number of pixels from 16"),
        ({"prediction_type": "eps"}, "use prediction_type='v'"),
        ({"prediction_type": "w"}, "unknown prediction_type 'w'"),
        ({"loss_weighting": "minsnr"}, "did you mean 'min-snr'"),
        ({"noise_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"cond_drop_prob": 1.5}, "cond_drop_prob must be from 0 to 1, not 1.5"),
        ({"cond_drop_prob": nan}, "cond_drop_prob"),
        (
            {"guidance_scale": -1.0},
            "guidance_scale must be from 0 to 1000, not -1.0",
        ),
        ({"thresholding": "dynamik"}, "did you mean 'dynamic'"),
        (
            {"dynamic_threshold_percentile": 0.0},
            "dynamic_threshold_percentile must be from 1e-06 to 1",
        ),
    ],
)
def test_bad_settings_get_one_line(values, message):
    with pytest.raises(UserError, match=message) as e:
        ImagenConfig(**values)
    assert "\n" not in str(e.value)


def test_a_size_is_one_number(untyped):
    "MI-8: the peer documents a number where it wants a tuple. Ours refuses a tuple."
    assert ImagenConfig(size=64).size == 64
    with pytest.raises(UserError, match="size must be a whole number of pixels"):
        ImagenConfig(size=(64,))


def test_the_width_of_the_text_follows_from_the_encoder(tmp_path):
    "Row F6: it is derived, recorded in config.json, and no setting."
    words = ["text_encoder=critters-clip+token-embeddings"]
    model = Imagen(imagen_preset("tiny", words).model_config)
    assert model.config.unet.text_dim == 256 == model.encoder.dim
    assert imagen_preset("tiny").model_config.unet.text_dim == 128
    loaded = Imagen.from_pretrained(model.save_pretrained(tmp_path), "cpu")
    assert loaded.config == model.config
    assert loaded.sample(["a red cat"], num_steps=1).isfinite().all()
    with pytest.raises(UserError, match="unet.text_dim follows from text_encoder"):
        imagen_preset("tiny", ["unet.text_dim=64"])


def test_every_field_has_a_path_of_its_own():
    "The noise schedule and the learning rate's do not collide; the network is reached."
    changed = imagen_preset(
        "tiny",
        ["noise_schedule=linear", "train.lr_schedule=constant", "unet.heads=8"],
    )
    model, train = changed.model_config, changed.train_config
    assert model.noise_schedule == "linear" and train.lr_schedule == "constant"
    assert model.unet.heads == 8
    for preset in (IMAGEN_PRESETS["tiny"], GIGAGAN_PRESETS["tiny"]):
        names = setting_names(preset.model_config) + setting_names(
            preset.train_config, "train."
        )
        assert len(names) == len(set(names)) > 30
        for name in names:
            if not name.endswith("text_dim"):
                value = preset.train_config if "train." in name else preset.model_config
                for part in name.removeprefix("train.").split("."):
                    value = getattr(value, part)
                assert get_preset({}, preset, {name: value}) == preset, name


def test_no_preset_has_a_percentile_that_it_does_not_use():
    default = ImagenConfig().dynamic_threshold_percentile
    for name, preset in IMAGEN_PRESETS.items():
        c = preset.model_config
        unused = c.thresholding != "dynamic"
        assert not unused or c.dynamic_threshold_percentile == default, name


@pytest.mark.parametrize("preset", [None, 3, [], b"tiny", object()])
def test_what_is_no_preset_is_one_line(untyped, preset):
    for find in (imagen_preset, gigagan_preset):
        with pytest.raises(UserError, match="unknown preset") as e:
            find(preset)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "words, message",
    [
        (["train.max_stepps=3"], "did you mean 'train.max_steps'"),
        (["train.max_steps"], "write it as name=value"),
        (["size=33"], "size must be a multiple"),
        (["unet=3"], "unknown setting 'unet'"),
        ({"train.lr": "fast"}, "lr must be a number"),
        (["num_images=some"], "num_images must be a whole number"),
    ],
)
def test_bad_overrides(words, message):
    with pytest.raises(UserError, match=message):
        imagen_preset("cpu-32", words)


def test_overrides_reach_their_part():
    p = imagen_preset(
        "cpu-32",
        [
            "train.max_steps=700",
            "cond-drop-prob=0.2",
            "num_images=99",
            "init_from=none",
        ],
    )
    assert (
        p.train_config.max_steps,
        p.model_config.cond_drop_prob,
        p.num_images,
        p.init_from,
    ) == (700, 0.2, 99, None)
    assert (
        p.model_config.unet == IMAGEN_PRESETS["cpu-32"].model_config.unet
        and IMAGEN_PRESETS["cpu-32"].train_config.max_steps != 700
    )
    with pytest.raises(UserError, match="did you mean 'cpu-32'"):
        imagen_preset("cpu32")


@pytest.mark.parametrize("name", IMAGEN_PRESETS)
def test_a_preset_builds_what_it_says(name):
    "MI-3: the peer's test preset builds 1,618 million parameters."
    config = IMAGEN_PRESETS[name].model_config
    with torch.device("meta"):
        unet = I.UNet(config.unet)
    n = sum(p.numel() for p in unet.parameters()) + 2 * config.unet.text_dim
    assert (
        unet.conv_in.in_channels == 3 * config.unet.patch_size**2
        and unet.conv_in.out_channels == config.unet.channels[0]
    )
    if name == "tiny":
        assert n <= 0.3e6
    if name.startswith("cpu"):
        assert 2 * n <= 12e6
    if name == "report-64":
        assert (
            config.num_timesteps,
            config.unet.channels[0],
            config.unet.heads,
            config.unet.text_dim,
        ) == (1000, 128, 8, 512)


def test_the_preset_of_the_report_thresholds_dynamically():
    "MI-13: the peer always divides by the 0.9 quantile; a static threshold has none."
    config = IMAGEN_PRESETS["report-64"].model_config
    assert (config.thresholding, config.dynamic_threshold_percentile) == (
        "dynamic",
        0.9,
    )
    assert config.guidance() == GuidanceConfig(5.0, "dynamic", 0.9)
    assert config.guidance(guidance_scale=1.0).guidance_scale == 1.0


def test_presets_use_the_text():
    "MI-14: the peer's example configuration has no cross-attention."
    for p in IMAGEN_PRESETS.values():
        assert any(p.model_config.unet.cross_attention)


def test_defaults_are_the_modern_ones():
    "MI-13: a linear schedule, noise as target, no average, a low percentile."
    c, t = IMAGEN_PRESETS["cpu-32"].model_config, IMAGEN_PRESETS["cpu-32"].train_config
    assert (
        c.noise_schedule,
        c.prediction_type,
        c.zero_terminal_snr,
        c.dynamic_threshold_percentile,
    ) == (
        "cosine",
        "v",
        True,
        0.995,
    )
    assert t.ema_decay and t.lr_schedule == "cosine" and t.warmup_steps


# ---- timesteps and the loss


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 64), st.integers(2, 1000), st.integers(0, 2**31))
def test_timesteps_leave_no_gap(b, T, seed):
    t = I.stratified_timesteps(b, T, seeded_generator(seed)).sort().values
    assert t.min() >= 0 and t.max() < T
    edges = torch.arange(b) * T / b
    assert (t >= edges.floor() - 1).all() and (t <= (edges + T / b).ceil()).all()


def test_all_timesteps_are_equally_likely():
    g = seeded_generator(0)
    counts = torch.bincount(
        torch.cat([I.stratified_timesteps(7, 10, g) for _ in range(6000)]), minlength=10
    )
    assert ((counts / counts.sum() - 0.1).abs() < 0.005).all()


def test_the_loss_is_the_formula(model, batch):
    "By hand, with the same noise: weights times the mean squared difference to v."
    found, g, s = (
        model.training_losses(batch, seeded_generator(3)),
        seeded_generator(3),
        model.schedule,
    )
    t, eps = (
        I.stratified_timesteps(8, 1000, g),
        torch.randn(batch.images.shape, generator=g),
    )
    with torch.no_grad():
        out = model.unet(
            add_noise(batch.images, t, s, eps)[0],
            t,
            model.encode_prompts(batch.captions),
        )
    error = (
        (out - prediction_target("v", batch.images, eps, t, s)).square().mean((1, 2, 3))
    )
    snr = s.snr[t]
    weighted = (error * ((snr + 1).clamp(max=5) / (snr + 1)).float()).mean()
    assert torch.allclose(found["mse"], error.mean()) and torch.allclose(
        found["loss"], weighted
    )
    assert torch.equal(
        found["loss"], model.training_losses(batch, seeded_generator(3))["loss"]
    )


def test_captions_are_dropped_in_training_only(batch):
    "No caption is dropped in eval mode; with a share of 1 all are in training."
    model = perturbed(replace(TINY, cond_drop_prob=1.0))
    other = replace(batch, captions=["a red cat"] * 8)

    def loss(b):
        return model.training_losses(b, seeded_generator(0))["loss"].item()

    model.train()
    assert loss(batch) == loss(other)
    model.eval()
    assert loss(batch) != loss(other)
    assert (
        loss(batch)
        == perturbed(replace(TINY, cond_drop_prob=0.0))
        .training_losses(batch, seeded_generator(0))["loss"]
        .item()
    )


def test_half_of_the_captions_are_dropped_if_asked_for(model, batch, monkeypatch):
    kept, drop = [], type(model.null_text).drop_captions

    def watch(self, text, keep):
        kept.append(keep)
        return drop(self, text, keep)

    monkeypatch.setattr(type(model.null_text), "drop_captions", watch)
    loose = perturbed(replace(TINY, cond_drop_prob=0.5)).train()
    for k in range(60):
        loose.training_losses(batch, seeded_generator(k))
    assert 0.4 < torch.cat(kept).float().mean() < 0.6


def test_gradients_reach_every_parameter(batch):
    model = perturbed().train()
    total = sum(
        model.training_losses(batch, seeded_generator(k))["loss"] for k in range(6)
    )  # some captions dropped, some not
    total.backward()
    assert not [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_text_enters_by_tokens_and_by_their_mean(model):
    "MI-14: each of the two paths alone changes the prediction."
    xt, t, text = (
        torch.randn(1, 3, 16, 16, generator=seeded_generator(1)),
        torch.tensor([500]),
        model.encode_prompts(["a blue cat"]),
    )
    with torch.no_grad():
        out = model.unet(xt, t, text)
        assert not torch.allclose(
            out, model.unet(xt, t, replace(text, pooled=-text.pooled)), atol=1e-4
        )
        assert not torch.allclose(
            out, model.unet(xt, t, replace(text, tokens=-text.tokens)), atol=1e-4
        )


# ---- sampling


def test_an_image_does_not_depend_on_the_other_prompts(model):
    whole = model.sample(PROMPTS, num_steps=4)
    assert torch.equal(whole, model.sample(PROMPTS, num_steps=4))
    for b in (1, 3):
        assert torch.allclose(
            whole, model.sample(PROMPTS, num_steps=4, batch_size=b), atol=1e-4
        )
    for i in (0, 1, 2):
        assert torch.allclose(
            whole[i], model.sample([PROMPTS[i]], num_steps=4)[0], atol=1e-4
        )
    assert (
        whole[0] - whole[3]
    ).abs().max() > 0.01  # the same prompt twice gives two images
    assert (whole - model.sample(PROMPTS, num_steps=4, seed=1)).abs().max() > 0.01


class Padded:
    "An encoder that appends masked junk to every text."

    def __init__(self, inner, junk: int):
        self.inner, self.junk, self.dim, self.name = inner, junk, inner.dim, inner.name

    def encode(self, texts):
        e = self.inner.encode(texts)
        more = 9 * torch.randn(
            len(texts), self.junk, self.dim, generator=seeded_generator(5)
        )
        return TextEmbedding(
            torch.cat([e.tokens, more], 1), F.pad(e.mask, (0, self.junk)), e.pooled
        )

    def oov_words(self, texts):
        return self.inner.oov_words(texts)


def test_padding_changes_nothing(batch):
    "MI-4: padding changes neither the loss nor images, with and without guidance."
    plain, padded = perturbed(), perturbed()
    padded.set_text_encoder(Padded(plain.encoder, 7))
    losses = [
        m.training_losses(batch, seeded_generator(0))["loss"] for m in (plain, padded)
    ]
    assert torch.allclose(*losses, atol=1e-5)
    assert torch.allclose(
        *(m.sample(PROMPTS, num_steps=3) for m in (plain, padded)), atol=1e-4
    )


@pytest.mark.parametrize("n", [1, 2, 3])
def test_scales_0_and_1_are_the_branches(model, n):
    "DD-1: the peer's scale 1 fails at batch 3 and splits the batch at batch 2."
    prompts = PROMPTS[:n]
    text = model.encode_prompts(prompts)

    def run(text):
        def denoise(x, t):
            times = torch.full((n,), t)
            return GuidanceConfig(1.0, model.config.thresholding).threshold(
                clean(model, x, times, text)
            )

        with torch.no_grad():
            return run_sampler(
                denoise,
                lambda: randn_per_prompt(streams, (3, 16, 16)),
                model.schedule,
                4,
            ).clamp(-1, 1)

    for scale, text_or_null in (
        (1.0, text),
        (0.0, model.null_text.expand_as(text)),
    ):
        streams = prompt_generators(prompts)
        assert torch.allclose(
            run(text_or_null),
            model.sample(prompts, guidance_scale=scale, num_steps=4),
            atol=1e-5,
        )


def clean(model, x, times, text):
    "x0 from the network's v."
    alpha, sigma = model.schedule.alpha_sigma(times, x)
    return alpha * x - sigma * model.unet(x, times, text)


def test_sampling_leaves_the_mode_alone_even_after_an_error(model):
    model.train()
    try:
        in_training = model.sample(["a cat"], num_steps=1)
        assert model.training and model.unet.training
        assert torch.equal(in_training, model.eval().sample(["a cat"], num_steps=1))
        model.train()
        for bad in (
            {"num_steps": 0},
            {"sampler": "dmp"},
            {"guidance_scale": -1.0},
            {"thresholding": "dynamik"},
            {"seed": -1},
        ):
            with pytest.raises(UserError):
                model.sample(["a cat"], **bad)
            assert model.training
    finally:
        model.eval()


def test_images_are_in_range_whatever_the_scale(model):
    for threshold in ("none", "static", "dynamic"):
        x = model.sample(
            PROMPTS[:2], guidance_scale=30.0, num_steps=2, thresholding=threshold
        )
        assert x.isfinite().all() and x.abs().max() <= 1


def test_the_sample_grid_is_always_the_same(model):
    a, captions = model.sample_grid(seeded_generator(0))
    b, _ = model.sample_grid(seeded_generator(1))
    assert torch.equal(a, b) and captions == list(SAMPLE_PROMPTS) and len(a) == 8
    assert not model.encoder.oov_words(captions)


# ---- training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Two trainings with the same seed; neither was stopped."
    folder = tmp_path_factory.mktemp("runs")
    return folder, [
        train_imagen("tiny", folder=folder / name, overrides=FEW) for name in ("a", "b")
    ]


def test_the_same_seed_gives_the_same_bits(trained):
    "The training repeated: weights, log and images."
    _, ((a, log_a), (b, log_b)) = trained
    assert (
        same(a, b)
        and log_a == log_b
        and torch.equal(
            a.sample(["a cat"], num_steps=2), b.sample(["a cat"], num_steps=2)
        )
    )
    other, _ = train_imagen("tiny", overrides=FEW | {"train.seed": 1})
    assert not same(a, other)


def test_resumed_equals_uninterrupted(trained, tmp_path):
    "MI-11: the peer's resume restores only weights. Ours ends with the same bits."
    import shutil

    folder, ((a, log_a), _) = trained
    shutil.copytree(folder / "a", tmp_path / "c")
    for gone in ("model", "checkpoints/step-000004"):
        shutil.rmtree(tmp_path / "c" / gone)
    c, log_c = train_imagen("tiny", folder=tmp_path / "c", overrides=FEW, resume=True)
    assert same(a, c) and log_a == log_c
    assert (
        json.loads((tmp_path / "c" / "model" / "run.json").read_text())["start_step"]
        == 2
    )


def test_what_is_returned_and_saved_is_the_average(trained):
    "MI-13: the peer keeps no average."
    folder, ((a, _), _) = trained
    saved = load_checkpoint(find_checkpoint(folder / "a")).tensors
    now = dict(a.named_parameters())
    assert saved["ema"].keys() == now.keys() and all(
        torch.equal(v, now[k]) for k, v in saved["ema"].items()
    )
    assert (
        any(not torch.equal(v, saved["model"][k]) for k, v in saved["ema"].items())
        and not a.training
    )
    assert (
        Imagen.from_pretrained(folder / "a" / "model", "cpu").sample(
            ["a cat"], num_steps=2
        )
        - a.sample(["a cat"], num_steps=2)
    ).abs().max() < 0.05


def test_the_record_says_how_it_was_made(trained):
    folder, ((_, log), _) = trained
    run = json.loads((folder / "a" / "model" / "run.json").read_text())
    assert (
        run["command"].startswith(
            "t2i train imagen --preset tiny train.max_steps=4 train.warmup_steps=1"
        )
        and run["start_step"] == 0
    )
    assert (
        run["preset"]["train_config"]["max_steps"] == 4
        and run["hardware"]["cores"]
        and run["seconds"] > 0
    )
    assert (
        run["history"][-1]["step"] == 4
        and abs(run["history"][-1]["loss"] - log[-1]["loss"]) < 1e-4
        and "val_loss" in log[-1]
    )


def test_clipping_and_averaging_see_all_parameters(model, batch):
    "MI-1: after the peer's first forward pass there are no parameters left to clip."
    data = ImageTextDataset.from_critters(16, 16)
    fresh = perturbed().train()
    trainer = Trainer(
        fresh,
        data,
        replace(
            IMAGEN_PRESETS["tiny"].train_config,
            **{k[6:]: v for k, v in FEW.items() if k.startswith("train.")},
        ),
    )
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    trainer.fit()
    names = {n for n, _ in fresh.named_parameters()}
    assert set(trainer.parameters["model"]) == names == set(trainer.ema.average)
    assert sum(
        p.numel() for g in trainer.optimizers["model"].param_groups for p in g["params"]
    ) == sum(p.numel() for p in fresh.parameters())
    assert all(not torch.equal(before[n], p) for n, p in fresh.named_parameters())


def test_a_training_that_breaks_says_so():
    "MI-5: the peer catches what goes wrong in a batch, and goes on."
    with pytest.raises(UserError, match="step 2: .*lower the learning rate|step [23]"):
        train_imagen(
            "tiny", overrides=FEW | {"train.lr": 1e30, "train.max_grad_norm": None}
        )


def test_validation_is_repeatable_and_leaves_no_trace(batch):
    "MI-6: the peer validates with gradients and fresh noise, and stays in eval mode."
    model = perturbed().train()
    val = critters_dataset(16, 16, split="val")
    trainer = Trainer(
        model,
        val,
        replace(
            IMAGEN_PRESETS["tiny"].train_config,
            max_steps=2,
            warmup_steps=0,
            batch_size=8,
        ),
        validation=val,
    )
    trainer.fit()
    weights, rng = (
        {k: v.clone() for k, v in model.state_dict().items()},
        torch.get_rng_state(),
    )
    assert trainer.validate() == trainer.validate()
    assert all(
        torch.equal(v, weights[k]) for k, v in model.state_dict().items()
    ) and torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None or not p.grad.requires_grad for p in model.parameters())


def test_each_caption_is_encoded_once(tmp_path, monkeypatch):
    "MI-9: the peer encodes each caption every time. Ours does it once per folder."
    from t2i_tutorial.clip import CLIPTextEncoder

    asked, encode = [], CLIPTextEncoder.encode

    def count(self, texts):
        asked.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(CLIPTextEncoder, "encode", count)
    data = ImageTextDataset.from_critters(16, 16)
    train_imagen(
        "tiny",
        data,
        tmp_path / "run",
        FEW | {"train.max_steps": 8, "train.save_every": 8},
    )
    captions = {c for group in data.captions for c in group}
    assert captions <= set(asked) and max(asked.count(c) for c in captions) == 1


def test_a_used_folder_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        train_imagen("tiny", folder=tmp_path, overrides=FEW)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_of_images_in_one_line(tmp_path):
    lines = []
    for k, c in enumerate(critters.sample_critters(9, 20, seed=3).critters):
        to_pil(critters.render([c], 20)[0]).save(tmp_path / f"{k}.png")
        lines.append(
            json.dumps(
                {"file_name": f"{k}.png", "text": f"number {k}: {full_caption(c)}"}
            )
        )
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    model, log = train_imagen("tiny", tmp_path, overrides=FEW | {"train.batch_size": 4})
    assert (
        log[-1]["step"] == 4
        and "val_loss" not in log[-1]
        and model.sample_prompts[3].startswith("number 3: ")
    )
    with pytest.raises(
        UserError, match="batch_size 16 is more than the 9 (picture|image)s"
    ):
        train_imagen("tiny", tmp_path, overrides=FEW | {"train.batch_size": 16})


def test_real_images(pictures_folder):
    "A folder of real captioned images, for a few steps."
    model, log = train_imagen("tiny", pictures_folder, overrides=FEW)
    assert log[-1]["step"] == 4 and len(model.sample_prompts) == 8


def test_it_learns():
    "MI-15: a quick start that only gives noise. A short training must lower the error."
    _, log = train_imagen(
        "tiny",
        overrides={
            "train.max_steps": 40,
            "train.warmup_steps": 5,
            "num_images": 256,
            "train.log_every": 1,
            "train.log_with": "none",
        },
    )

    def mean(part):
        return sum(h["mse"] for h in part) / len(part)

    assert mean(log[-5:]) < 0.8 * mean(log[:3])


# ---- the start from a smaller model


@pytest.mark.parametrize("patch", [1, 2])
def test_patches_are_treated_as_the_small_model_treats_pixels(patch):
    size = 16 * patch
    small = perturbed(
        replace(TINY, size=size, unet=replace(TINY.unet, patch_size=patch))
    )
    large = I.init_imagen_from_smaller(
        small,
        Imagen(
            replace(TINY, size=2 * size, unet=replace(TINY.unet, patch_size=2 * patch))
        ),
    ).eval()
    x, t, text = (
        torch.randn(3, 3, 2 * size, 2 * size, generator=seeded_generator(1)),
        torch.tensor([0, 500, 999]),
        small.encode_prompts(PROMPTS[:3]),
    )
    with torch.no_grad():
        a, b = (
            F.avg_pool2d(large.unet(x, t, text), 2),
            small.unet(F.avg_pool2d(x, 2), t, text),
        )
    assert b.abs().max() > 0.1 and (a - b).abs().max() < 1e-5 * max(
        1, b.abs().max().item()
    )


def test_what_does_not_fit_cannot_start(model):
    for config in (
        replace(TINY, size=32),
        replace(
            TINY, size=32, unet=replace(TINY.unet, patch_size=2, channels=(16, 40))
        ),
    ):
        with pytest.raises(UserError, match="cannot start from 16 pixels with"):
            I.init_imagen_from_smaller(model, Imagen(config))


def test_token_embeddings_change_little_at_first():
    "The token embeddings meet weights of zero: predictions stay, but for the norms."
    small = perturbed(TINY)
    config = replace(
        TINY,
        text_encoder=TINY.text_encoder + "+token-embeddings",
        unet=replace(TINY.unet, text_dim=256),
    )
    large = I.init_imagen_from_smaller(small, Imagen(config)).eval()
    x, t = (
        torch.randn(3, 3, 16, 16, generator=seeded_generator(1)),
        torch.tensor([0, 500, 999]),
    )
    made, beside = small.encode_prompts(PROMPTS[:3]), large.encode_prompts(PROMPTS[:3])
    assert (
        torch.equal(made.tokens, beside.tokens[..., :128])
        and beside.tokens.shape[-1] == beside.pooled.shape[-1] == 256
    )
    with torch.no_grad():
        a, b = small.unet(x, t, made), large.unet(x, t, beside)
        null = small.unet(x, t, small.null_text.expand_as(made)) - large.unet(
            x, t, large.null_text.expand_as(beside)
        )
        for p in (
            large.unet.text_proj[1].weight,
            *(
                m.attn.kv.weight
                for n, m in large.unet.named_modules()
                if n.endswith(".cross_attn") and m is not None
            ),
        ):
            assert (p[:, 128:] == 0).all()
            p[:, 128:] = 1.0
        c = large.unet(x, t, beside)
    assert (
        (a - b).abs().max() < 0.05 * a.abs().max()
        and null.abs().max() < 1e-4
        and (b - c).abs().max() > 0.1
    )


def test_the_presets_that_start_from_another_fit():
    factors = {}
    for name, p in IMAGEN_PRESETS.items():
        if p.init_from:
            start = I.Imagen.from_pretrained(p.init_from, "cpu").config
            factors[name] = I._patch_factor(start, p.model_config)
    assert factors == {"cpu-64": 2, "warm-32": 1, "warm-64": 1}
    assert (
        I._patch_factor(
            IMAGEN_PRESETS["cpu-32-no-token-embeddings"].model_config,
            IMAGEN_PRESETS["cpu-32"].model_config,
        )
        == 1
    )


def test_a_warm_start_of_equal_size_is_the_model_itself():
    "The same weights, so the same images before the first step."
    old = I.Imagen.from_pretrained("critters-32", "cpu")
    new = I.init_imagen_from_smaller(
        old, I.Imagen(IMAGEN_PRESETS["warm-32"].model_config)
    )
    prompt = ["a red and blue cat"]
    pair = [m.eval().sample(prompt, num_steps=2) for m in (old, new)]
    assert torch.equal(*pair)


@torch.no_grad()
def test_with_a_shifted_schedule_amplitudes_do_not_match():
    "Patch means have the small schedule's signal-to-noise ratio at another amplitude."
    small, large = (
        I.make_noise_schedule("cosine", 1000, zero_terminal_snr=False, size=s)
        for s in (32, 64)
    )
    t = torch.tensor([100, 300, 700])
    one = torch.ones(3, dtype=torch.float64)
    (alpha, sigma), (a, s) = large.alpha_sigma(t, one), small.alpha_sigma(t, one)
    assert torch.allclose(alpha / (sigma / 2), a / s)  # averaging halves the noise
    amplitude = (alpha**2 + (sigma / 2) ** 2).sqrt()
    assert (amplitude < 0.97).all() and not torch.allclose(amplitude[0], amplitude[2])


# ---- diagnostics


class Oracle(torch.nn.Module):
    "Predicts as if the image were exactly what the caption says."

    def __init__(self, prediction_type, schedule, images):
        super().__init__()
        self.prediction_type, self.schedule = prediction_type, schedule
        self.images = images

    def forward(self, xt, t, captions):
        x0 = torch.stack([self.images[c] for c in captions])
        alpha, sigma = self.schedule.alpha_sigma(t, xt)
        eps = (xt - alpha * x0) / sigma
        return prediction_target(self.prediction_type, x0, eps, t, self.schedule)


@pytest.mark.parametrize("prediction_type", ["v", "x0", "eps"])
def test_caption_sensitivity_is_1_for_an_oracle_and_0_without_text(prediction_type):
    config = replace(TINY, prediction_type=prediction_type, zero_terminal_snr=False)
    model = Imagen(config).eval()  # untrained: predicts zero, whatever the text
    zero = diagnostics.caption_sensitivity(model, n=8)
    assert zero == {"body_colour": 0.0, "second_colour": 0.0, "eye_colour": 0.0}
    creatures, x0 = diagnostics.probe_critters(8, 16, 0)
    images = dict(zip(map(full_caption, creatures), x0))
    for key in zero:
        swapped = [diagnostics.swap_attribute(c, key) for c in creatures]
        renders = critters.render(swapped, size=16, seed=0)
        images |= dict(zip(map(full_caption, swapped), renders))
    model.unet = Oracle(prediction_type, model.schedule, images)
    model.null_text = torch.nn.Linear(1, 1)  # the device is that of a parameter
    model.encode_prompts = list
    for value in diagnostics.caption_sensitivity(model, n=8).values():
        assert abs(value - 1) < 0.01


def test_a_sampler_sweep_is_continued(model, tmp_path, monkeypatch):
    few = {"dpmpp-2m": (2,), "ddim": (2,)}
    first = diagnostics.run_sampler_sweep(model, 16, few, folder=tmp_path)
    assert (
        set(first["runs"]) == {"dpmpp-2m 2", "ddim 2"}
        and {"mmd", "all", "seconds", "num_steps"} <= first["runs"]["dpmpp-2m 2"].keys()
    )
    assert all(
        r["mmd"]["reference"] is not None and r["mmd"]["ci_low"] is not None
        for r in first["runs"].values()
    )
    monkeypatch.setattr(
        diagnostics,
        "quick_evaluate",
        lambda *a, **k: pytest.fail("measured again"),
    )
    assert diagnostics.run_sampler_sweep(model, 16, few, folder=tmp_path) == first
    with pytest.raises(UserError, match="was measured with num_images=16, not 32"):
        diagnostics.run_sampler_sweep(model, 32, few, folder=tmp_path)


def test_weightings_differ_in_nothing_else(tmp_path):
    p = imagen_preset("tiny", FEW)
    variants = {
        k: diagnostics.LOSS_ABLATIONS[k] for k in ("v, uniform", "eps, uniform")
    }
    found = diagnostics.run_loss_ablation(tmp_path / "w.json", variants, p, n=16)
    assert (
        list(found["runs"]) == list(variants)
        and found["preset"]["train_config"]["max_steps"] == 4
    )
    assert json.loads(json.dumps(found)) == json.loads(
        (tmp_path / "w.json").read_text()
    )
    assert found["runs"]["v, uniform"]["loss"] != found["runs"]["eps, uniform"]["loss"]
    for changes in diagnostics.LOSS_ABLATIONS.values():
        imagen_preset(
            diagnostics.IMAGEN_ABLATION_PRESET, changes
        )  # each of them is possible


# ---- the recorded model


@pytest.fixture(scope="module", params=[32, 64])
def recorded(request) -> Imagen:
    return Imagen.from_pretrained(f"critters-{request.param}", "cpu")


def test_the_recorded_model_is_the_preset(recorded):
    config = IMAGEN_PRESETS[f"cpu-{recorded.config.size}"].model_config
    assert (
        replace(
            recorded.config,
            guidance_scale=config.guidance_scale,
            thresholding=config.thresholding,
            dynamic_threshold_percentile=config.dynamic_threshold_percentile,
            text_encoder=recorded.config.text_encoder.replace("-first", ""),
        )
        == config
    )
    folder = bundled_models()[f"critters-{config.size}"]
    assert (folder / "model.safetensors").stat().st_size <= 12e6


def test_the_recorded_model_follows_prompts(recorded):
    "A few prompts, few steps: far above chance, and not the same for other prompts."
    from t2i_tutorial.evaluation.classifier import AttributeClassifier
    from t2i_tutorial.evaluation.report import prompt_accuracy

    asked = critters.sample_critters(24, recorded.config.size, seed=11, split="test")
    images = recorded.sample([full_caption(c) for c in asked.critters], num_steps=8)
    right = prompt_accuracy(
        AttributeClassifier.from_pretrained(), images, asked.critters
    )
    wrong = prompt_accuracy(
        AttributeClassifier.from_pretrained(),
        images,
        asked.critters[1:] + asked.critters[:1],
    )
    for k in ("species", "body_colour"):
        assert right[k].value > 0.75 and wrong[k].value < 0.5


def test_swapped_captions_raise_the_recorded_error(recorded):
    "Is the text used? The same noise with another's caption must give a larger error."
    unseen = critters.sample_critters(32, recorded.config.size, split="test")
    own = [full_caption(c) for c in unseen.critters]
    errors = []
    for captions in (own, own[1:] + own[:1]):
        batch = Batch(unseen.images, captions, torch.arange(32))
        with torch.no_grad():
            losses = recorded.training_losses(batch, seeded_generator(0))
        errors.append(losses["mse"].item())
    assert errors[1] > 1.05 * errors[0]


def test_a_schedule_of_few_timesteps_is_sampled_whole():
    "Row F2: every grid of such a training failed, and t2i generate refused its model."
    model = Imagen(imagen_preset("tiny", ["num_timesteps=10"]).model_config)
    images, prompts = model.sample_grid(seeded_generator(0))
    assert torch.equal(images, model.sample(prompts, num_steps=10))


@pytest.mark.parametrize("presets", [IMAGEN_PRESETS, GIGAGAN_PRESETS])
def test_every_preset_is_for_the_size_in_its_name(presets):
    "Review 2.11: gpu-256 was one for a stage that does not exist."
    for name, preset in presets.items():
        size = re.search(r"-(\d+)", name)
        assert name == "tiny" or int(size[1]) == preset.model_config.size, name
