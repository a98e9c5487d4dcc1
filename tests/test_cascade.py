"""Super-resolution and the cascade: the condition, its loss, sampling, bad input."""

import json
import shutil
from dataclasses import replace
from math import nan, pi, sin
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_cli import refused
from test_imagen import FEW, PROMPTS, same

from t2i_tutorial.core import (
    RESULTS_DIR,
    UserError,
    load_json,
    seeded_generator,
    to_pil,
)
from t2i_tutorial.data import ImageTextDataset
from t2i_tutorial.diffusion import cascade as C
from t2i_tutorial.diffusion.cascade import (
    SUPER_RESOLUTION_PRESETS,
    Cascade,
    CascadeConfig,
    SuperResolution,
    SuperResolutionConfig,
    area_downsample,
    enlarge,
    prepare_low_res,
    super_resolution_preset,
    train_super_resolution,
)
from t2i_tutorial.diffusion.imagen import IMAGEN_PRESETS, Imagen
from t2i_tutorial.diffusion.noise import add_noise, prediction_target
from t2i_tutorial.diffusion.unet import UNetConfig
from t2i_tutorial.hub import load_model

TINY = SUPER_RESOLUTION_PRESETS["tiny"].model_config
BASE = IMAGEN_PRESETS["tiny"].model_config


def perturbed(cls=SuperResolution, config=TINY):
    "A model without weights of zero, so that every part matters."
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape)
    return model


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded_generator(seed))


@pytest.fixture(scope="module")
def stage() -> SuperResolution:
    return perturbed()


@pytest.fixture(scope="module")
def cascade(stage) -> Cascade:
    return Cascade.from_stages(perturbed(Imagen, BASE), stage)


@pytest.fixture(scope="module")
def batch():
    return next(ImageTextDataset.from_critters(8, 32).batches(8, shuffle=False))


@pytest.fixture(scope="module")
def small(batch):
    return area_downsample(batch.images[:4], 2)


# ---- settings


@pytest.mark.parametrize(
    "values, message",
    [
        ({"low_res_size": 48}, "low_res_size must be a whole number from 1 to 32"),
        ({"low_res_size": 24}, "size must be a multiple of low_res_size=24, not 64"),
        ({"low_res_size": 0}, "low_res_size"),
        ({"size": 66}, "size must be a multiple of 4 for this U-Net, not 66"),
        ({"aug_level": 0.6}, "aug_level must be from 0 to 0.5, not 0.6"),
        ({"aug_level": -0.1}, "aug_level must be from 0 to 0.5"),
        ({"aug_level": nan}, "aug_level"),
        ({"max_aug_level": 1.5}, "max_aug_level must be from 0 to 1, not 1.5"),
        ({"prediction_type": "w"}, "unknown prediction_type 'w'"),
        ({"thresholding": "dynamik"}, "did you mean 'dynamic'"),
    ],
)
def test_bad_settings_get_one_line(values, message):
    with pytest.raises(UserError, match=message) as e:
        SuperResolutionConfig(**values)
    assert "\n" not in str(e.value)


def test_presets_build_what_they_say_and_use_image_and_text():
    for name, preset in SUPER_RESOLUTION_PRESETS.items():
        config = preset.model_config
        with torch.device("meta"):
            unet = C.SuperResolutionUNet(config.unet)
        n = sum(p.numel() for p in unet.parameters())
        assert unet.conv_in.in_channels == 6 * config.unet.patch_size**2
        assert any(config.unet.cross_attention) and config.prediction_type == "v"
        assert not config.unet.cross_attention[0] and config.unet.patch_size > 1
        if name.startswith("cpu"):
            assert 2 * n <= 12e6
            assert config.low_res_size == 32 and config.size == 64
    assert super_resolution_preset("tiny", ["aug_level=0.3"]).model_config.aug_level
    with pytest.raises(UserError, match="unet.text_dim follows from text_encoder"):
        super_resolution_preset("tiny", ["unet.text_dim=64"])
    with pytest.raises(UserError, match="did you mean 'cpu-32-64'"):
        super_resolution_preset("cpu-32-46")


# ---- the condition


@settings(max_examples=30, deadline=None)
@given(st.floats(-1, 1), st.floats(0, 1), st.integers(2, 4))
def test_the_condition_keeps_mean_and_variance_in_proportion(grey, level, factor):
    "MI-2: the peer normalises before the noise in training, after it in sampling."
    images = torch.full((1, 3, 24, 24), grey)
    eps = randn(1, 3, 24 * factor, 24 * factor)
    found = prepare_low_res(images, factor, torch.tensor([level]), eps)
    assert found.std().item() == pytest.approx(sin(level * pi / 2), abs=0.05)
    shift = found.mean() - torch.tensor(level * pi / 2).cos() * grey
    assert shift.abs() < 0.06


def test_level_0_is_the_enlarged_image_and_level_1_is_noise_alone(small):
    eps, levels = randn(4, 3, 32, 32), torch.zeros(4)
    assert torch.equal(prepare_low_res(small, 2, levels, eps), enlarge(small, 2))
    assert torch.allclose(prepare_low_res(small, 2, levels + 1, eps), eps, atol=1e-6)
    one_each = prepare_low_res(small, 2, torch.tensor([0.0, 0.2, 0.4, 1.0]), eps)
    assert torch.equal(one_each[:1], enlarge(small[:1], 2))
    assert torch.allclose(one_each[3:], eps[3:], atol=1e-6)


class Spy:
    "What one function is called with, and what the network is then given."

    def __init__(self, model, monkeypatch):
        self.calls, self.given = [], []
        prepare, forward = C.prepare_low_res, model.unet.forward

        def watch(*args):
            self.calls.append((args, found := prepare(*args)))
            return found

        def note(xt, t, text, low_res, aug_level):
            self.given.append((low_res, aug_level))
            return forward(xt, t, text, low_res, aug_level)

        monkeypatch.setattr(C, "prepare_low_res", watch)
        monkeypatch.setattr(model.unet, "forward", note)


def test_one_function_prepares_the_condition_in_training_and_in_sampling(
    batch, monkeypatch
):
    "MI-2: the same image, level and noise give the network the same condition."
    model = perturbed()
    spy = Spy(model, monkeypatch)
    model.training_losses(batch, seeded_generator(0))
    model.upscale(area_downsample(batch.images, 2), batch.captions, num_steps=2)
    assert len(spy.calls) == 2 and len(spy.given) == 3
    (trained, found), (sampled, _) = spy.calls
    assert torch.equal(spy.given[0][0], found) and torch.equal(
        spy.given[0][1], trained[2]
    )
    for low_res, level in spy.given[1:]:  # every step of the sampler
        assert torch.equal(low_res, spy.calls[1][1]) and torch.equal(level, sampled[2])
    assert torch.equal(trained[0], sampled[0])  # the small images, before both
    again = prepare_low_res(sampled[0], 2, trained[2], trained[3])
    assert torch.equal(again, found)
    assert (trained[2] >= 0).all() and (trained[2] <= TINY.max_aug_level).all()
    assert len(set(trained[2].tolist())) == len(batch.captions)  # one of each image


def test_guidance_doubles_the_condition_with_the_batch(small, monkeypatch):
    model = perturbed()
    spy = Spy(model, monkeypatch)
    model.upscale(small, PROMPTS, num_steps=1, guidance_scale=3.0, aug_level=0.3)
    ((low_res, level),) = spy.given
    assert len(low_res) == 8 and torch.equal(low_res[:4], low_res[4:])
    assert torch.equal(low_res[:4], spy.calls[0][1]) and (level == 0.3).all()


def test_image_level_and_text_each_change_the_prediction(stage, small):
    "Both paths of the text, too."
    text = stage.encode_prompts(PROMPTS)
    xt, t, levels = (
        randn(4, 3, 32, 32),
        torch.tensor([10, 300, 600, 999]),
        torch.ones(4),
    )
    low_res = enlarge(small, 2)

    def run(text=text, low_res=low_res, levels=0.1 * levels):
        with torch.no_grad():
            return stage.unet(xt, t, text, low_res, levels)

    plain = run()
    for other in (
        run(low_res=-low_res),
        run(levels=0.2 * levels),
        run(text=replace(text, pooled=-text.pooled)),
        run(text=replace(text, tokens=-text.tokens)),
    ):
        assert (plain - other).abs().amax((1, 2, 3)).min() > 1e-4


# ---- the loss


def test_the_loss_is_the_formula(stage, batch):
    found, g = stage.training_losses(batch, seeded_generator(3)), seeded_generator(3)
    t = C.stratified_timesteps(8, 1000, g)
    eps = torch.randn(batch.images.shape, generator=g)
    torch.rand(8, generator=g)  # captions that are kept
    levels = TINY.max_aug_level * torch.rand(8, generator=g)
    noise = torch.randn(batch.images.shape, generator=g)
    low_res = prepare_low_res(area_downsample(batch.images, 2), 2, levels, noise)
    text, s = stage.encode_prompts(batch.captions), stage.schedule
    with torch.no_grad():
        xt = add_noise(batch.images, t, s, eps)[0]
        out = stage.unet(xt, t, text, low_res, levels)
    target = prediction_target("v", batch.images, eps, t, s)
    error = (out - target).square().mean((1, 2, 3))
    weight = ((s.snr[t] + 1).clamp(max=5) / (s.snr[t] + 1)).float()
    assert torch.allclose(found["mse"], error.mean())
    assert torch.allclose(found["loss"], (weight * error).mean())


def test_the_schedule_is_the_stage_s_own():
    moved = SuperResolution(replace(TINY, size=32, shift_snr=True))
    shifted = SuperResolution(replace(TINY, size=64, low_res_size=32, shift_snr=True))
    plain = SuperResolution(TINY)
    assert torch.equal(moved.schedule.alpha_bar, plain.schedule.alpha_bar)
    assert (shifted.schedule.alpha_bar < plain.schedule.alpha_bar)[:-1].all()


def test_captions_are_dropped_in_training_only(batch):
    model = perturbed(config=replace(TINY, cond_drop_prob=1.0))
    other = replace(batch, captions=["a red cat"] * 8)

    def loss(b):
        return model.training_losses(b, seeded_generator(0))["loss"].item()

    model.train()
    assert loss(batch) == loss(other)
    model.eval()
    assert loss(batch) != loss(other)


def test_gradients_reach_every_parameter(batch):
    model = perturbed().train()
    losses = [model.training_losses(batch, seeded_generator(k)) for k in range(6)]
    sum(x["loss"] for x in losses).backward()
    assert not [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()
    ]


# ---- sampling


def test_an_image_does_not_depend_on_the_others_of_its_batch(stage, small):
    whole = stage.upscale(small, PROMPTS, num_steps=3)
    assert torch.equal(whole, stage.upscale(small, PROMPTS, num_steps=3))
    for b in (1, 3):
        parts = stage.upscale(small, PROMPTS, num_steps=3, batch_size=b)
        assert torch.allclose(whole, parts, atol=1e-4)
    for i in (0, 1, 2):
        alone = stage.upscale(small[i : i + 1], [PROMPTS[i]], num_steps=3)
        assert torch.allclose(whole[i], alone[0], atol=1e-4)
    twice = small[[0, 0, 0, 0]]  # two of them with the same prompt
    twice = stage.upscale(twice, PROMPTS, num_steps=3)
    assert (twice[0] - twice[3]).abs().max() > 0.01
    assert (whole - stage.upscale(small, PROMPTS, num_steps=3, seed=1)).abs().max() > 0


def test_without_prompts_the_null_text_is_used(stage, small):
    plain = stage.upscale(small, num_steps=2)
    for scale in (0.0, 5.0):  # there is nothing to follow more closely
        again = stage.upscale(small, num_steps=2, guidance_scale=scale)
        assert torch.equal(plain, again)
    part = stage.upscale(small[:2], num_steps=2)
    assert torch.allclose(plain[:2], part, atol=1e-4)
    assert not torch.allclose(plain, stage.upscale(small, PROMPTS, num_steps=2))


def test_any_size_is_enlarged_and_padding_is_cut_off(stage):
    for h, w in ((16, 16), (33, 7), (1, 1), (5, 18), (40, 24)):
        images = randn(1, 3, h, w, seed=h).clamp(-1, 1)
        found = stage.upscale(images, num_steps=1)
        assert found.shape == (1, 3, 2 * h, 2 * w) and found.isfinite().all()
    assert stage._pad(torch.zeros(1, 3, 33, 7)).shape == (1, 3, 34, 8)
    edge = stage._pad(torch.arange(3.0).expand(1, 3, 1, 3))
    assert edge[0, 0].tolist() == [[0, 1, 2, 2]] * 2
    three = perturbed(config=replace(TINY, size=48))  # three times
    assert three.upscale(torch.zeros(1, 3, 5, 5), num_steps=1).shape[-1] == 15


def test_images_are_in_range_whatever_is_done_to_x0(stage, small):
    for threshold in ("none", "static", "dynamic"):
        options = {"guidance_scale": 30.0, "num_steps": 2, "thresholding": threshold}
        x = stage.upscale(small[:2], PROMPTS[:2], **options)
        assert x.isfinite().all() and x.abs().max() <= 1


@pytest.mark.parametrize(
    "images, options, message",
    [
        (torch.zeros(1, 3, 8, 129), {}, "at most 128 pixels a side, not 129 x 8"),
        (
            torch.zeros(1, 1, 8, 8),
            {},
            r"shape \(b, 3, h, w\), not Tensor of shape \(1, 1",
        ),
        (torch.zeros(3, 8, 8), {}, "shape"),
        (torch.zeros(1, 3, 8, 8).numpy(), {}, "not ndarray of shape"),
        (torch.zeros(1, 3, 0, 8), {}, "shape"),
        (torch.zeros(1, 3, 8, 8).byte(), {}, "not torch.uint8; convert"),
        (torch.full((1, 3, 8, 8), nan), {}, "192 values"),
        (torch.full((1, 3, 8, 8), 255.0), {}, r"lie in \[-1, 1\], not in \[255, 255\]"),
        (torch.zeros(1, 3, 8, 8), {"aug_level": 0.51}, "from 0 to 0.5, not 0.51"),
        (torch.zeros(1, 3, 8, 8), {"aug_level": nan}, "aug_level"),
        (torch.zeros(1, 3, 8, 8), {"prompts": ["a", "b"]}, "as many prompts, not 2"),
        (torch.zeros(1, 3, 8, 8), {"prompts": [" "]}, "the prompt is empty"),
        (torch.zeros(1, 3, 8, 8), {"num_steps": 0}, "num_steps"),
        (torch.zeros(1, 3, 8, 8), {"sampler": "dmp"}, "sampler"),
        (torch.zeros(1, 3, 8, 8), {"seed": -1}, "seed"),
        (torch.zeros(1, 3, 8, 8), {"batch_size": 0}, "batch_size"),
    ],
)
def test_what_cannot_be_enlarged_is_refused(stage, untyped, images, options, message):
    with pytest.raises(UserError, match=message) as e:
        stage.upscale(images, **options)
    assert "\n" not in str(e.value)


def test_a_stage_alone_generates_nothing(stage):
    with pytest.raises(UserError, match="Cascade.from_stages"):
        stage.sample(["a cat"], num_steps=2)


# ---- training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Two trainings with the same seed; neither was stopped."
    folder = tmp_path_factory.mktemp("runs")
    return folder, [
        train_super_resolution("tiny", folder=folder / name, overrides=FEW)
        for name in ("a", "b")
    ]


def test_the_same_seed_gives_the_same_bits(trained):
    _, ((a, log_a), (b, log_b)) = trained
    assert same(a, b) and log_a == log_b and "val_loss" in log_a[-1]
    other, _ = train_super_resolution("tiny", overrides=FEW | {"train.seed": 1})
    assert not same(a, other)


def test_resumed_equals_uninterrupted(trained, tmp_path):
    folder, ((a, log_a), _) = trained
    shutil.copytree(folder / "a", tmp_path / "c")
    for gone in ("model", "checkpoints/step-000004"):
        shutil.rmtree(tmp_path / "c" / gone)
    c, log_c = train_super_resolution(
        "tiny", folder=tmp_path / "c", overrides=FEW, resume=True
    )
    assert same(a, c) and log_a == log_c
    run = load_json(tmp_path / "c" / "model" / "run.json")
    assert run["start_step"] == 2
    command = "t2i train super-resolution --preset tiny train.max_steps=4"
    assert run["command"].startswith(command)


def check_start(train, trained, words):
    "A training at a rate of nearly 0 ends with the weights that it began with."
    folder, ((a, _), _) = trained
    words = words | {"init_from": str(folder / "a"), "train.lr": 1e-12}
    model, _ = train("tiny", overrides=words)
    old = a.state_dict()
    assert all(
        torch.allclose(w, old[k].to(w), rtol=1e-3, atol=1e-3)
        for k, w in model.state_dict().items()
    )
    for start, message in (("critters-32", "trained"), ("nowhere", "unknown model")):
        with pytest.raises(UserError, match=message):
            train("tiny", overrides=words | {"init_from": start})


def test_a_training_begins_with_the_weights_of_a_trained_stage(trained):
    "They were ignored, without a word."
    check_start(train_super_resolution, trained, FEW)


def test_a_saved_stage_is_loaded_as_it_was(trained):
    folder, ((a, _), _) = trained
    loaded = load_model(folder / "a" / "model", "cpu")
    assert isinstance(loaded, SuperResolution) and loaded.config == a.config
    images = randn(1, 3, 16, 16).clamp(-1, 1)
    x, y = (m.upscale(images, num_steps=2) for m in (a, loaded))
    assert (x - y).abs().max() < 0.05


def test_the_sample_grid_enlarges_the_first_images(trained):
    _, ((a, _), _) = trained
    images, prompts = a.sample_grid(seeded_generator(0))
    assert images.shape == (8, 3, 32, 32) and len(prompts) == 8
    assert torch.equal(images, a.sample_grid(seeded_generator(1))[0])


def test_it_learns_to_use_the_small_image():
    overrides = FEW | {"train.max_steps": 60, "train.warmup_steps": 5}
    overrides |= {"num_images": 256, "train.log_every": 1, "train.save_every": 60}
    overrides |= {"train.batch_size": 32}
    model, log = train_super_resolution("tiny", overrides=overrides)
    assert sum(h["mse"] for h in log[-5:]) < 0.8 * sum(h["mse"] for h in log[:5])
    val = next(ImageTextDataset.from_critters(16, 32, 1).batches(16, shuffle=False))
    shifted = replace(val, images=val.images.roll(1, 0))

    def error(condition_of):
        g, b = seeded_generator(0), 16
        t = torch.full((b,), 700)
        eps = torch.randn(val.images.shape, generator=g)
        xt, _ = add_noise(val.images, t, model.schedule, eps)
        low_res = prepare_low_res(
            area_downsample(condition_of.images, 2), 2, torch.full((b,), 0.1), eps
        )
        with torch.no_grad():
            text = model.encode_prompts(val.captions)
            out = model.unet(xt, t, text, low_res, torch.full((b,), 0.1))
        target = prediction_target("v", val.images, eps, t, model.schedule)
        return (out - target).square().mean()

    assert error(val) < 0.9 * error(shifted), error(val) / error(shifted)


# ---- the cascade


def test_the_cascade_enlarges_what_its_base_generates(cascade):
    "The small images are the base's own, to the bit."
    small = cascade.base.sample(PROMPTS, num_steps=2, seed=5)
    expected = cascade.super_resolution.upscale(small, PROMPTS, num_steps=2, seed=5)
    assert torch.equal(cascade.sample(PROMPTS, num_steps=2, seed=5), expected)
    assert expected.shape == (4, 3, 32, 32)
    assert cascade.config.size == 32 and cascade.config.aug_level == TINY.aug_level


def test_the_noise_of_the_stages_differs(cascade):
    "Equal seeds, yet the second stage does not begin with the noise of the first."
    words = ["a cat"]
    base = C.randn_per_prompt(C.prompt_generators(words, 3), (3, 16, 16)).flatten()
    own = C.randn_per_prompt(C.prompt_generators(words, C.stage_seed(3)), (3, 32, 32))
    both = torch.stack([base, own.flatten()[: len(base)]])
    assert torch.corrcoef(both)[0, 1].abs() < 0.1


def test_prompts_of_a_cascade_do_not_depend_on_each_other(cascade):
    whole = cascade.sample(PROMPTS, num_steps=2)
    parts = cascade.sample(PROMPTS, num_steps=2, batch_size=3)
    assert torch.allclose(whole, parts, atol=1e-4)
    alone = cascade.sample(PROMPTS[1:2], num_steps=2)
    assert torch.allclose(whole[1], alone[0], atol=1e-4)
    assert (whole[0] - whole[3]).abs().max() > 0.01


def test_a_cascade_is_one_folder(cascade, tmp_path):
    folder = cascade.save_pretrained(tmp_path / "cascade")
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    for loaded in (Cascade.from_pretrained(folder, "cpu"), load_model(folder, "cpu")):
        assert loaded.config == cascade.config and not loaded.training
        x, y = (m.sample(["a red cat"], num_steps=2) for m in (loaded, cascade))
        assert (x - y).abs().max() < 0.1
    with pytest.raises(UserError, match="holds no imagen model"):
        Imagen.from_pretrained(folder)


def test_an_encoder_is_shared_and_not_saved(cascade):
    assert cascade.encoder is cascade.base.encoder is cascade.super_resolution.encoder
    assert not any("encoder" in k for k in cascade.state_dict())


def test_stages_that_do_not_fit_are_refused(stage, cascade):
    with pytest.raises(UserError, match="enlarges 32 pixels and its base generates 16"):
        CascadeConfig(BASE, SuperResolutionConfig())
    words = SuperResolutionConfig(text_encoder="critters-clip+token-embeddings")
    with pytest.raises(UserError, match="train the stage with its base's"):
        CascadeConfig(replace(BASE, size=32), words)
    for pair in ((stage, stage), (cascade.base, cascade.base), (cascade.base, cascade)):
        with pytest.raises(UserError, match="is no (imagen|super-resolution)") as e:
            Cascade.from_stages(*pair)
        assert "\n" not in str(e.value)


def test_a_damaged_config_of_a_cascade_is_one_line(cascade, tmp_path):
    folder = cascade.save_pretrained(tmp_path / "cascade")
    saved = load_json(folder / "config.json")
    for part, key, value in (
        ("super_resolution", "low_res_size", 8),
        ("super_resolution", "aug_level", 3),
        ("base", "size", 32),
        ("base", "unet", 3),
    ):
        changed = saved | {part: saved[part] | {key: value}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError) as e:
            load_model(folder)
        assert "\n" not in str(e.value)


def test_a_bad_level_is_refused_before_the_base_samples(cascade, monkeypatch):
    monkeypatch.setattr(cascade.base, "sample", None)
    with pytest.raises(UserError, match="aug_level must be from 0 to 0.5"):
        cascade.sample(["a cat"], aug_level=2.0)


# ---- the command line


@pytest.fixture(scope="module")
def folders(cascade, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    stages = {"base": cascade.base, "stage": cascade.super_resolution}
    for name, model in (stages | {"cascade": cascade}).items():
        model.save_pretrained(folder / name)
    return folder


def picture(mode: str, width: int, height: int, path="in.png") -> Image.Image:
    "A file in the current folder."
    image = to_pil(randn(3, height, width).clamp(-1, 1)).convert(mode)
    if mode == "RGBA":
        image.putalpha(100)
    image.save(path)
    return image


@pytest.mark.parametrize(
    "mode, size, note",
    [
        ("RGB", (16, 16), None),
        ("RGB", (33, 33), None),
        ("RGB", (128, 40), None),
        ("L", (20, 9), "is grey"),
        ("LA", (8, 8), "is grey"),
        ("1", (8, 8), "is grey"),
        ("P", (8, 8), None),
        ("RGBA", (16, 16), "is transparent in parts; they are laid over white"),
    ],
)
def test_upscale_takes_any_small_image(t2i, folders, mode, size, note):
    picture(mode, *size)
    for model in ("stage", "cascade"):
        code, out, err = t2i(
            *("upscale", "in.png", "--model", folders / model, "--num-steps", 1),
            *("--output", f"{model}.png"),
        )
        assert code == 0 and out.strip() == f"{model}.png"
        assert (note in err) if note else "note" not in err
    with Image.open("stage.png") as a, Image.open("cascade.png") as b:
        assert a.size == (2 * size[0], 2 * size[1]) and a.tobytes() == b.tobytes()
        assert a.text["aug_level"] == str(TINY.aug_level) and a.text["seed"] == "0"


def test_upscale_names_its_file_and_replaces_none(t2i, folders, tmp_path):
    picture("RGB", 8, 8)
    arguments = ("upscale", "in.png", "--model", folders / "stage", "--num-steps", 1)
    assert t2i(*arguments)[:2] == (0, "in-upscaled.png\n")
    refused(t2i(*arguments), "exists; name another, or give --overwrite")
    prompted = (*arguments, "--prompt", "a red cat", "--overwrite")
    before = Image.open("in-upscaled.png").tobytes()
    assert t2i(*prompted)[0] == 0
    after = Image.open("in-upscaled.png")
    assert after.text["prompt"] == "a red cat" and after.tobytes() != before


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ([], ["no IMAGE; for instance t2i upscale small.png"]),
        ([""], ["IMAGE is empty"]),
        (["none.png"], ["image 'none.png': no such file"]),
        (["text.png"], ["'text.png'", "not an image"]),
        (["large.png"], ["'large.png'", "at most 128 pixels a side, not 200 x 16"]),
        (["thin.png"], ["'thin.png'", "narrower than 16 to 1"]),
        (["in.png", "--aug-level", "0.7"], ["aug_level must be from 0 to 0.5"]),
        (["in.png", "--aug-level", "-1"], ["aug_level must be from 0 to 0.5"]),
        (["in.png", "--aug-level", "much"], ["--aug-level must be a number"]),
        (["in.png", "--prompt", " "], ["the prompt is empty"]),
        (["in.png", "--output", "a.jpg"], ["must end in .png"]),
        (["in.png", "--output", "none/a.png"], ["does not exist"]),
        (["in.png", "--seed", "-1"], ["--seed"]),
        (["in.png", "--num-steps", "0"], ["num_steps"]),
        (["in.png", "--model", "critters-32"], ["enlarges nothing; name a cascade"]),
        (["in.png", "--model", "none"], ["unknown model 'none'"]),
    ],
)
def test_upscale_says_in_one_line_what_is_wrong(t2i, folders, arguments, parts):
    for name, size in {"in": (8, 8), "large": (200, 16), "thin": (120, 2)}.items():
        picture("RGB", *size, f"{name}.png")
    with open("text.png", "w") as f:
        f.write("no image")
    model = [] if "--model" in arguments else ["--model", folders / "stage"]
    refused(t2i("upscale", *arguments, *model), *parts)


def test_generate_takes_a_cascade_and_no_stage(t2i, folders):
    few = ("--num-images", 1, "--num-steps", 2)
    word = ("generate", "a cat", *few, "--model")
    assert t2i(*word, folders / "cascade", "--output", "a.png")[0] == 0
    assert t2i(*word, folders / "cascade", "--aug-level", 0.4)[0] == 0
    (named,) = (p for p in Path().iterdir() if p.stem != "a")
    assert "aug-level0.4" in named.name
    with Image.open("a.png") as a, Image.open(named) as b:
        assert a.tobytes() != b.tobytes() and a.text["aug_level"] == "0.1"
    refused(t2i(*word, folders / "cascade", "--aug-level", 0.9), "from 0 to 0.5")
    refused(t2i(*word, folders / "stage"), "use t2i upscale")
    refused(t2i(*word, folders / "base", "--aug-level", 0.1), "does not apply")


def test_two_stages_are_joined(t2i, folders):
    word = ("cascade", folders / "base", folders / "stage")
    code, out, err = t2i(*word, "--output", "joined")
    assert code == 0 and out.startswith("joined\n") and not err
    joined = load_model("joined", "cpu")
    whole = load_model(folders / "cascade", "cpu")
    assert same(joined, whole) and load_json("joined/run.json")["stages"]
    assert t2i("generate", "a cat", "--num-steps", 1, "--model", "joined")[0] == 0
    refused(t2i(*word, "--output", "joined"), "'joined' exists")


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ([], ["no BASE and STAGE; for instance t2i cascade"]),
        (["critters-64", "STAGE"], ["enlarges 16 pixels and its base generates 64"]),
        (["STAGE", "STAGE"], ["super-resolution is no imagen"]),
        (["critters-32", "critters-32"], ["imagen is no super-resolution"]),
        (["", "STAGE"], ["BASE is empty"]),
        (["critters-32", "none"], ["unknown model 'none'"]),
        (["critters-32", "STAGE", "--output", ""], ["--output is empty"]),
    ],
)
def test_what_cannot_be_joined_is_one_line(t2i, folders, arguments, parts):
    words = [folders / "stage" if a == "STAGE" else a for a in arguments]
    refused(t2i("cascade", *words), *parts)


def test_a_cascade_is_not_exported(t2i, folders):
    pytest.importorskip("onnx")
    for name in ("cascade", "stage"):
        refused(t2i("export", folders / name), "only an Imagen or a GigaGAN")


def test_train_upscale_and_a_stopped_training(t2i):
    few = [f"{k}={v}" for k, v in FEW.items()]
    word = ("train", "super-resolution", "--preset", "tiny", "--output", "run", *few)
    code, out, _ = t2i(*word)
    assert code == 0 and "t2i upscale IMAGE --model run/model" in out
    picture("RGB", 16, 16)
    enlarged = ("upscale", "in.png", "--num-steps", 1, "--model")
    assert t2i(*enlarged, "run", "--output", "a.png")[0] == 0
    shutil.rmtree("run/model")
    code, _, err = t2i(*enlarged, "run", "--output", "b.png")
    assert code == 0 and "step 4 of a training" in err
    refused(t2i(*word[:2], "--preset", "cpu-32"), "did you mean 'cpu-32-64'")
    refused(t2i(*word[:6], "max_aug_level=2"), "max_aug_level must be from 0 to 1")
    refused(t2i(*word[:6], "low_res_size=12"), "multiple of low_res_size=12")


def test_channels_of_a_u_net_that_takes_more_than_an_image():
    "The U-Net of chapter 32 is unchanged; its subclass reads twice the channels."
    unet = C.SuperResolutionUNet(UNetConfig(patch_size=2, refine_channels=8))
    assert unet.conv_in.in_channels == 24 and unet.conv_out[-1].out_channels == 12


def test_checkpointing_changes_no_number(batch):
    losses, gradients = [], []
    for save in (False, True):
        config = replace(TINY, gradient_checkpointing=save)
        model = perturbed(config=config).train()
        loss = model.training_losses(batch, seeded_generator(0))["loss"]
        loss.backward()
        losses.append(loss)
        gradients.append([p.grad for p in model.parameters()])
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_the_shortcut_gives_a_weighted_sum_of_both_images(small):
    "With the U-Net's last layer at zero, as at the start."
    model = SuperResolution(TINY).eval()
    text, xt = model.encode_prompts(PROMPTS), randn(4, 3, 32, 32)
    low_res, t = enlarge(small, 2), torch.tensor([0, 100, 500, 999])
    with torch.no_grad():
        assert not model.unet(xt, t, text, low_res, torch.zeros(4)).any()
        model.unet.shortcut.bias.copy_(torch.tensor([2.0, -1.0]))
        found = model.unet(xt, t, text, low_res, torch.zeros(4))
    assert torch.allclose(found, 2 * xt - low_res, atol=1e-6)


RESULTS = RESULTS_DIR / "critters-64-cascade"


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_way_to_enlarge_is_recorded(split):
    "Chapter 37c reads these; `benchmarks/super_resolution.py` writes them."
    record = load_json(RESULTS / f"super-resolution-{split}.json")
    assert record["split"] == split
    runs = record["runs"]
    ways = ["bilinear", "lanczos", "recorded/0.1", "gan/0.05"]
    for source in ("drawn", "regenerated"):
        for way in ways:
            run = runs[f"{source}/{way}"]
            assert 10 < run["psnr"] < 60 and 0 < run["lpips"] < 1
    for way in [*ways, "direct"]:
        mmd = runs[f"generated/{way}"]["mmd"]
        assert mmd["ci_low"] <= mmd["value"] <= mmd["ci_high"]
    seeds = {load_json(p)["seed"] for p in RESULTS.glob("super-*.json")}
    assert len(seeds) == 2  # other creatures in the test


@pytest.mark.parametrize("name", ["generated-gan", "larger"])
def test_recorded_sheets_say_what_they_show(name):
    sheet = Image.open(RESULTS / f"{name}.png")
    rows = sheet.text["methods"].split(", ")
    side, columns = (128, 4) if name == "larger" else (64, 8)
    assert sheet.height // len(rows) >= side and sheet.width >= columns * side


def test_the_bundled_cascade_is_its_base_and_a_stage():
    cascade = C.Cascade.from_pretrained("critters-64-cascade", "cpu")
    base = Imagen.from_pretrained("critters-32", "cpu").state_dict()
    for name, tensor in cascade.base.state_dict().items():
        assert torch.equal(tensor, base[name]), name
    images = cascade.sample(["a red dragon"], num_steps=2)
    assert images.shape == (1, 3, 64, 64) and images.isfinite().all()
