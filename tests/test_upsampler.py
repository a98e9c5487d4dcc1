"""The GAN that enlarges images: network, losses, sampling, cascade, bad input."""

import json
import math
import shutil
from dataclasses import replace
from math import nan

import pytest
import torch
from PIL import Image
from test_cascade import PROMPTS, check_start, picture, randn
from test_cli import refused
from test_imagen import FEW, same

from t2i_tutorial import critters
from t2i_tutorial.core import UserError, load_json, seeded_generator
from t2i_tutorial.data import ImageTextDataset
from t2i_tutorial.diffusion.cascade import (
    SUPER_RESOLUTION_PRESETS,
    Cascade,
    SuperResolution,
    area_downsample,
    enlarge,
    prepare_low_res,
)
from t2i_tutorial.diffusion.imagen import IMAGEN_PRESETS, Imagen
from t2i_tutorial.gan import upsampler as U
from t2i_tutorial.gan.discriminator import DiscriminatorConfig
from t2i_tutorial.gan.upsampler import (
    GAN_UPSAMPLER_PRESETS,
    GANCascade,
    GANCascadeConfig,
    GANUpsampler,
    GANUpsamplerConfig,
    UpsamplerGenerator,
    UpsamplerGeneratorConfig,
    gan_upsampler_preset,
    train_gan_upsampler,
)
from t2i_tutorial.hub import load_model

TINY = GAN_UPSAMPLER_PRESETS["tiny"].model_config
BASE = IMAGEN_PRESETS["tiny"].model_config
SHORT = FEW | {  # all three parts of a training in four updates
    "train.max_steps": 5,
    "pretrain_steps": 2,
    "discriminator_only_steps": 1,
    "r1_interval": 2,
    "train.max_checkpoints": 9,
}


def perturbed(cls=GANUpsampler, config=TINY):
    "A model without weights of zero, so that every part matters."
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape)
    return model


@pytest.fixture(scope="module")
def stage() -> GANUpsampler:
    return perturbed()


@pytest.fixture(scope="module")
def cascade(stage) -> GANCascade:
    return GANCascade.from_stages(perturbed(Imagen, BASE), stage)


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
        ({"low_res_size": 16}, "enlarges 2 times, so low_res_size=16 becomes 32"),
        ({"size": 66, "low_res_size": 33}, "multiple of 4 for this generator, not 33"),
        ({"low_res_size": 0}, "low_res_size"),
        ({"size": 128, "low_res_size": 64}, r"\(32, 64, 128\) pixels, not \(16, 32"),
        ({"aug_level": 0.6}, "aug_level must be from 0 to 0.2, not 0.6"),
        ({"aug_level": nan}, "aug_level"),
        ({"max_aug_level": 1.5}, "max_aug_level must be from 0 to 1, not 1.5"),
        ({"adversarial_loss": "hinge"}, "unknown adversarial_loss 'hinge'"),
        ({"matching_weight": 2.0}, "matching_weight must be from 0 to 1"),
        ({"perceptual_weight": -1.0}, "perceptual_weight"),
        ({"r1_interval": 0}, "r1_interval"),
        ({"pretrain_steps": 1.5}, "pretrain_steps"),
    ],
)
def test_bad_settings_get_one_line(untyped, values, message):
    with pytest.raises(UserError, match=message) as e:
        GANUpsamplerConfig(**values)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"num_kernels": (1, 2)}, "one value for each block up, not 3 and 2"),
        ({"up_channels": (8,), "num_kernels": (1,)}, "more blocks up"),
        ({"down_channels": (8,)}, "at least one block down"),
        ({"down_channels": (8, 12)}, "multiple of 8 and of the 4 heads, not 12"),
        ({"text_dim": 30}, "text_dim must be a multiple of the 4 heads"),
        ({"z_dim": 0}, "z_dim"),
        ({"up_channels": (8, 0, 8)}, "up_channels"),
    ],
)
def test_bad_sizes_of_the_network_get_one_line(values, message):
    with pytest.raises(UserError, match=message) as e:
        UpsamplerGeneratorConfig(**values)
    assert "\n" not in str(e.value)


def test_presets_fit_a_processor_and_have_more_blocks_up_than_down():
    for name, preset in GAN_UPSAMPLER_PRESETS.items():
        c = preset.model_config
        down, up = c.generator.down_channels, c.generator.up_channels
        assert len(up) > len(down) - 1 and c.factor == 2
        with torch.device("meta"):
            n = sum(p.numel() for p in UpsamplerGenerator(c.generator).parameters())
        assert 2 * n <= 12e6
        if name.startswith("cpu"):
            assert (c.low_res_size, c.size) == (32, 64)
    with pytest.raises(UserError, match="text_dim follows from text_encoder"):
        gan_upsampler_preset("tiny", ["generator.text_dim=64"])
    with pytest.raises(UserError, match="did you mean 'cpu-32-64'"):
        gan_upsampler_preset("cpu-32-46")


# ---- the network


@pytest.mark.parametrize("side", [16, 32, 64])
def test_one_network_enlarges_several_sizes(stage, side):
    "16 to 32, 32 to 64, 64 to 128: it has no weight that depends on a size."
    low_res, text = randn(2, 3, side, side), stage.encode_prompts(PROMPTS[:2])
    with torch.no_grad():
        images = stage.generator(low_res, torch.zeros(2), randn(2, 16), text)
    assert [x.shape for x in images] == [(2, 3, side, side), (2, 3, 2 * side, 2 * side)]


def test_three_blocks_up_on_two_down():
    torch.manual_seed(0)
    G = UpsamplerGenerator(UpsamplerGeneratorConfig(text_dim=128))
    text = GANUpsampler(TINY).encode_prompts(PROMPTS[:1])
    with torch.no_grad():
        images = G(randn(1, 3, 32, 32), torch.zeros(1), randn(1, 16), text)
    assert [x.shape[-1] for x in images] == [16, 32, 64]
    assert G.config.factor == 2 and G.config.size_divisor == 4


def test_an_untrained_network_is_bilinear_interpolation(small):
    model = GANUpsampler(TINY).eval()
    for level in (0.0, 0.2):
        eps = randn(4, 3, 16, 16)
        levels = torch.full((4,), level)
        low_res = prepare_low_res(small, 1, levels, eps)
        text = model.encode_prompts(PROMPTS)
        with torch.no_grad():
            images = model.generator(low_res, levels, randn(4, 16), text)
        assert torch.equal(images[-1], enlarge(low_res, 2))
        assert torch.equal(images[0], low_res)
    assert torch.equal(model.upscale(small, aug_level=0.0), enlarge(small, 2))


def test_image_level_noise_and_text_each_change_the_result(stage, small):
    "Both paths of the text, too."
    text, z, levels = stage.encode_prompts(PROMPTS), randn(4, 16), torch.full((4,), 0.1)

    def run(low_res=small, levels=levels, z=z, text=text):
        with torch.no_grad():
            return stage.generator(low_res, levels, z, text)[-1]

    plain = run()
    for other in (
        run(low_res=-small),
        run(levels=4 * levels),
        run(z=-z),
        run(text=replace(text, pooled=-text.pooled)),
        run(text=replace(text, tokens=-text.tokens)),
    ):
        assert (plain - other).abs().amax((1, 2, 3)).min() > 1e-4


def test_a_row_of_the_network_does_not_depend_on_the_others(stage, small):
    text, z, levels = stage.encode_prompts(PROMPTS), randn(4, 16), torch.zeros(4)
    with torch.no_grad():
        whole = stage.generator(small, levels, z, text)
        for i in range(4):
            part = slice(i, i + 1)
            alone = stage.generator(small[part], levels[part], z[part], text[part])
            for a, b in zip(whole, alone):
                assert torch.allclose(a[part], b, atol=1e-4)


# ---- the condition and the losses


def test_one_function_prepares_the_condition_in_training_and_in_sampling(
    batch, monkeypatch
):
    "MI-2, IP-1: that of the diffusion stage, at the small size, for both."
    model, calls, given = perturbed(), [], []
    prepare, forward = U.prepare_low_res, model.generator.forward
    from t2i_tutorial.diffusion import cascade as C

    assert prepare is C.prepare_low_res

    def watch(*args):
        calls.append((args, found := prepare(*args)))
        return found

    def note(low_res, aug_level, z, text):
        given.append((low_res, aug_level))
        return forward(low_res, aug_level, z, text)

    monkeypatch.setattr(U, "prepare_low_res", watch)
    monkeypatch.setattr(model.generator, "forward", note)
    for phase in ("discriminator", "generator", "reconstruction"):
        model.training_losses(batch, seeded_generator(0), phase)
    model.upscale(area_downsample(batch.images, 2), batch.captions, aug_level=0.15)
    assert len(calls) == len(given) == 4
    for (args, found), (low_res, level) in zip(calls, given):
        assert torch.equal(found, low_res) and torch.equal(args[2], level)
        assert args[1] == 1 and torch.equal(args[0], calls[0][0][0])
    levels = calls[0][0][2]
    assert (levels >= 0).all() and (levels <= TINY.max_aug_level).all()
    assert len(set(levels.tolist())) == len(batch.captions)  # one of each image
    assert (calls[-1][0][2] == 0.15).all()


def test_the_consistency_term_is_0_where_the_means_are_right(batch):
    model = perturbed()
    small = area_downsample(batch.images, 2)
    text = model.encode_prompts(batch.captions)
    real = [small, batch.images]
    rng = seeded_generator(0)
    found = model.generator_loss(real, real, small, text, rng)
    assert found["consistency"] < 1e-6 and found["perceptual_loss"] < 1e-6
    assert torch.allclose(found["adversarial_loss"], torch.tensor(math.log(2.0)))
    shifted = [small, batch.images + 0.1]
    found = model.generator_loss(real, shifted, small, None, rng)
    assert found["consistency"].item() == pytest.approx(0.1, abs=1e-4)
    assert "adversarial_loss" not in found


def test_the_crop_of_the_perceptual_loss_is_the_same_in_both_images():
    model = GANUpsampler(gan_upsampler_preset("cpu-32-64").model_config)
    images = critters.sample_critters(4, 64, seed=1).images
    assert model.reconstruction(images, images, seeded_generator(0)) == 0
    crops, known = [], model.perceptual_loss.tower

    class Spy:
        tower = known

        def to(self, device):
            return self

        def __call__(self, a, b):
            crops.append((a[0], b[0]))
            return torch.zeros(4)

    model.perceptual_loss = Spy()
    for k in range(8):
        model.reconstruction(images, images.clone(), seeded_generator(k))
    assert all(a.shape == (4, 3, 32, 32) and torch.equal(a, b) for a, b in crops)
    assert not torch.equal(crops[0][0], crops[1][0])


def is_offset(name: str) -> bool:
    "Whether a parameter is added to every score of a discriminator's head."
    last = name.startswith(("unconditional_heads.", "text_heads."))
    return last and name.endswith(
        (".score.bias", *[f"heads.{k}.bias" for k in (16, 32)])
    )


@pytest.mark.parametrize("loss", ["relativistic", "logistic"])
def test_gradients_reach_every_parameter_of_the_right_network(batch, loss):
    config = replace(TINY, adversarial_loss=loss, cond_drop_prob=0.5, r1_interval=1)
    model = perturbed(config=config).train()
    model.phases_at(TINY.pretrain_steps + TINY.discriminator_only_steps)
    for phase, other in (model.phases, model.phases[::-1]):
        getattr(model, other).requires_grad_(False)
        terms = model.training_losses(batch, seeded_generator(0), phase)
        terms["loss"].backward()
        for name, p in getattr(model, phase).named_parameters():
            if loss == "relativistic" and is_offset(name):
                assert p.grad.abs().max() < 1e-4  # the same in both scores of a pair
                continue
            assert p.grad is not None and p.grad.any(), name
        getattr(model, other).requires_grad_(True)
        assert all(p.grad is None for p in getattr(model, other).parameters())
        model.zero_grad()


def test_the_parts_of_a_training(batch):
    model = perturbed(config=replace(TINY, perceptual_decay_steps=10))
    c, first = model.config, model.config.pretrain_steps
    second = first + c.discriminator_only_steps
    parts = {0: ("generator",), first - 1: ("generator",), first: ("discriminator",)}
    parts |= {second - 1: ("discriminator",), second: model.phases}
    for step, phases in parts.items():
        assert model.phases_at(step) == phases
    weights = [
        model.perceptual_weight
        for step in (0, 5, 10, 20)
        if model.phases_at(second + step)
    ]
    assert weights == [2.0, 1.0, 0.0, 0.0]
    model.phases_at(0)
    assert "adversarial_loss" not in model.training_losses(batch, seeded_generator(0))
    model.phases_at(second)
    assert "adversarial_loss" in model.training_losses(batch, seeded_generator(0))
    alone = model.training_losses(batch, seeded_generator(0), "reconstruction")
    assert "adversarial_loss" not in alone
    lr = model.step_kwargs("generator", first - 1)["lr"]
    assert lr < 0.01 * c.pretrain_lr < model.step_kwargs("generator", first // 2)["lr"]
    assert set(model.step_kwargs("discriminator", second)) == {"lr"}


def test_the_penalty_is_taken_every_few_updates(batch):
    model = perturbed(config=replace(TINY, r1_interval=3)).train()
    found = []
    for step in range(7):
        model.phases_at(TINY.pretrain_steps + step)
        terms = model.training_losses(batch, seeded_generator(0), "discriminator")
        found.append("r1_penalty" in terms)
    assert found == [True, False, False, True, False, False, True]


def test_captions_are_dropped_in_training_only(batch):
    config = replace(TINY, cond_drop_prob=1.0)
    model = perturbed(config=config)
    other = replace(batch, captions=["a red cat"] * 8)

    def loss(b):
        rng = seeded_generator(0)
        return model.training_losses(b, rng, "reconstruction")["loss"].item()

    model.train()
    assert loss(batch) == loss(other)
    model.eval()
    assert loss(batch) != loss(other)


# ---- enlarging


def test_an_image_does_not_depend_on_the_others_of_its_batch(stage, small):
    whole = stage.upscale(small, PROMPTS)
    assert torch.equal(whole, stage.upscale(small, PROMPTS))
    for b in (1, 3):
        parts = stage.upscale(small, PROMPTS, batch_size=b)
        assert torch.allclose(whole, parts, atol=1e-4)
    for i in range(3):
        alone = stage.upscale(small[i : i + 1], [PROMPTS[i]])
        assert torch.allclose(whole[i], alone[0], atol=1e-4)
    assert (whole - stage.upscale(small, PROMPTS, seed=1)).abs().max() > 0


def test_without_prompts_the_null_text_is_used(stage, small):
    plain = stage.upscale(small)
    assert torch.allclose(plain[:2], stage.upscale(small[:2]), atol=1e-4)
    assert not torch.allclose(plain, stage.upscale(small, PROMPTS))


def test_any_size_is_enlarged_and_padding_is_cut_off(stage):
    for h, w in ((16, 16), (33, 7), (1, 1), (5, 18), (40, 24)):
        images = randn(1, 3, h, w, seed=h).clamp(-1, 1)
        found = stage.upscale(images)
        assert found.shape == (1, 3, 2 * h, 2 * w) and found.isfinite().all()
        assert found.abs().max() <= 1


@pytest.mark.parametrize(
    "images, options, message",
    [
        (torch.zeros(1, 3, 8, 129), {}, "at most 128 pixels a side, not 129 x 8"),
        (
            torch.zeros(1, 1, 8, 8),
            {},
            r"shape \(b, 3, h, w\), not Tensor of shape \(1, 1",
        ),
        (torch.zeros(1, 4, 8, 8), {}, "shape"),
        (torch.zeros(1, 3, 8, 8).byte(), {}, "not torch.uint8; convert"),
        (torch.full((1, 3, 8, 8), nan), {}, "192 values"),
        (torch.full((1, 3, 8, 8), 255.0), {}, r"lie in \[-1, 1\], not in \[255, 255\]"),
        (torch.zeros(1, 3, 8, 8), {"aug_level": 0.21}, "from 0 to 0.2, not 0.21"),
        (torch.zeros(1, 3, 8, 8), {"prompts": ["a", "b"]}, "as many prompts, not 2"),
        (torch.zeros(1, 3, 8, 8), {"prompts": [" "]}, "the prompt is empty"),
        (torch.zeros(1, 3, 8, 8), {"seed": -1}, "seed"),
        (torch.zeros(1, 3, 8, 8), {"batch_size": 0}, "batch_size"),
    ],
)
def test_what_cannot_be_enlarged_is_refused(stage, untyped, images, options, message):
    with pytest.raises(UserError, match=message) as e:
        stage.upscale(images, **options)
    assert "\n" not in str(e.value)


def test_a_stage_alone_generates_nothing(stage):
    with pytest.raises(UserError, match="GANCascade.from_stages"):
        stage.sample(["a cat"])


# ---- training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Two trainings with the same seed; neither was stopped."
    folder = tmp_path_factory.mktemp("runs")
    return folder, [
        train_gan_upsampler("tiny", folder=folder / name, overrides=SHORT)
        for name in ("a", "b")
    ]


def test_the_same_seed_gives_the_same_bits(trained):
    "GG-5: the peer's upsampler cannot be trained. Ours has a log of all its parts."
    _, ((a, log_a), (b, log_b)) = trained
    assert same(a, b) and log_a == log_b and "val_loss" in log_a[-1]
    terms = {k.partition("/")[2] for k in log_a[-1]}
    assert {"adversarial_loss", "perceptual_loss", "consistency", "r1_penalty"} <= terms


@pytest.mark.parametrize("step", [2, 4])
def test_resumed_equals_uninterrupted(trained, tmp_path, step):
    "From the end of the first part, and from the third."
    folder, ((a, log_a), _) = trained
    shutil.copytree(folder / "a", tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "model")
    for path in (tmp_path / "c" / "checkpoints").iterdir():
        if path.is_dir() and int(path.name[5:]) > step:
            shutil.rmtree(path)
    c, log_c = train_gan_upsampler(
        "tiny", folder=tmp_path / "c", overrides=SHORT, resume=True
    )
    assert same(a, c) and log_a == log_c
    run = load_json(tmp_path / "c" / "model" / "run.json")
    assert run["start_step"] == step
    assert run["command"].startswith("t2i train gan-upsampler --preset tiny")


def test_a_training_begins_with_the_weights_of_a_trained_stage(trained):
    "They were ignored, without a word."
    check_start(train_gan_upsampler, trained, SHORT | {"pretrain_lr": 1e-9})


def test_a_saved_stage_is_loaded_as_it_was(trained):
    folder, ((a, _), _) = trained
    loaded = load_model(folder / "a" / "model", "cpu")
    assert isinstance(loaded, GANUpsampler) and loaded.config == a.config
    images = randn(1, 3, 16, 16).clamp(-1, 1)
    x, y = (m.upscale(images) for m in (a, loaded))
    assert (x - y).abs().max() < 0.05


def test_the_sample_grid_enlarges_the_first_images(trained):
    _, ((a, _), _) = trained
    images, prompts = a.sample_grid(seeded_generator(0))
    assert images.shape == (8, 3, 32, 32) and len(prompts) == 8
    assert torch.equal(images, a.sample_grid(seeded_generator(1))[0])


def test_reconstruction_is_soon_better_than_interpolation():
    overrides = FEW | {"num_images": 256, "train.max_steps": 80, "pretrain_steps": 80}
    overrides |= {"train.save_every": 80, "train.batch_size": 16}
    overrides |= {"train.warmup_steps": 1}
    model, _ = train_gan_upsampler("tiny", overrides=overrides)
    images = critters.sample_critters(32, 32, seed=9, split="val").images
    small = area_downsample(images, 2)
    found = model.upscale(small, aug_level=0.0)
    errors = [(x - images).square().mean() for x in (found, enlarge(small, 2))]
    assert errors[0] < 0.97 * errors[1], errors
    assert (area_downsample(found, 2) - small).square().mean().sqrt() < 0.15


# ---- the cascade


def test_the_cascade_enlarges_what_its_base_generates(cascade):
    "The small images are the base's own, to the bit."
    small = cascade.base.sample(PROMPTS, num_steps=2, seed=5)
    expected = cascade.super_resolution.upscale(small, PROMPTS, seed=5)
    assert torch.equal(cascade.sample(PROMPTS, num_steps=2, seed=5), expected)
    assert expected.shape == (4, 3, 32, 32)
    assert cascade.config.size == 32 and cascade.config.aug_level == TINY.aug_level


def test_a_cascade_is_one_folder(cascade, tmp_path):
    folder = cascade.save_pretrained(tmp_path / "cascade")
    for loaded in (
        GANCascade.from_pretrained(folder, "cpu"),
        load_model(folder, "cpu"),
    ):
        assert isinstance(loaded, GANCascade)
        assert loaded.config == cascade.config and not loaded.training
        x, y = (m.sample(["a red cat"], num_steps=2) for m in (loaded, cascade))
        assert (x - y).abs().max() < 0.1
    with pytest.raises(UserError, match="holds no cascade model"):
        Cascade.from_pretrained(folder)


def test_stages_that_do_not_fit_are_refused(stage, cascade):
    with pytest.raises(UserError, match="enlarges 32 pixels and its base generates 16"):
        GANCascadeConfig(BASE, GANUpsamplerConfig())
    words = replace(TINY, text_encoder="critters-clip+token-embeddings")
    with pytest.raises(UserError, match="train the stage with its base's"):
        GANCascadeConfig(BASE, words)
    other = SuperResolution(SUPER_RESOLUTION_PRESETS["tiny"].model_config)
    for kind, pair in (
        (GANCascade, (stage, stage)),
        (GANCascade, (cascade.base, other)),
        (Cascade, (cascade.base, stage)),
    ):
        with pytest.raises(UserError, match="is no (imagen|gan-upsampler|super)") as e:
            kind.from_stages(*pair)
        assert "\n" not in str(e.value)


def test_a_damaged_config_of_a_cascade_is_one_line(cascade, tmp_path):
    folder = cascade.save_pretrained(tmp_path / "cascade")
    saved = load_json(folder / "config.json")
    for part, key, value in (
        ("super_resolution", "low_res_size", 8),
        ("super_resolution", "aug_level", 3),
        ("super_resolution", "generator", 3),
        ("base", "size", 32),
    ):
        changed = saved | {part: saved[part] | {key: value}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError) as e:
            load_model(folder)
        assert "\n" not in str(e.value)


def test_a_bad_level_is_refused_before_the_base_samples(cascade, monkeypatch):
    monkeypatch.setattr(cascade.base, "sample", None)
    with pytest.raises(UserError, match="aug_level must be from 0 to 0.2"):
        cascade.sample(["a cat"], aug_level=2.0)


# ---- the command line


@pytest.fixture(scope="module")
def folders(cascade, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    stages = {"base": cascade.base, "stage": cascade.super_resolution}
    for name, model in (stages | {"cascade": cascade}).items():
        model.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    "mode, size, note",
    [
        ("RGB", (16, 16), None),
        ("RGB", (33, 33), None),
        ("L", (20, 9), "is grey"),
        ("P", (8, 8), None),
        ("RGBA", (16, 16), "is transparent in parts; they are laid over white"),
    ],
)
def test_upscale_takes_any_small_image(t2i, folders, mode, size, note):
    picture(mode, *size)
    for model in ("stage", "cascade"):
        words = ("upscale", "in.png", "--model", folders / model)
        code, out, err = t2i(*words, "--output", f"{model}.png")
        assert code == 0 and out.strip() == f"{model}.png"
        assert (note in err) if note else "note" not in err
    with Image.open("stage.png") as a, Image.open("cascade.png") as b:
        assert a.size == (2 * size[0], 2 * size[1]) and a.tobytes() == b.tobytes()
        assert a.text["aug_level"] == str(TINY.aug_level) and a.text["seed"] == "0"
        assert "num_steps" not in a.text


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["large.png"], ["'large.png'", "at most 128 pixels a side, not 200 x 16"]),
        (["in.png", "--aug-level", "0.7"], ["aug_level must be from 0 to 0.2"]),
        (["in.png", "--num-steps", "5"], ["--num-steps does not apply to a GAN"]),
        (["in.png", "--sampler", "ddim"], ["--sampler does not apply to a GAN"]),
        (["in.png", "--guidance-scale", "2"], ["--guidance-scale does not apply"]),
        (["in.png", "--prompt", " "], ["the prompt is empty"]),
    ],
)
def test_upscale_says_in_one_line_what_is_wrong(t2i, folders, arguments, parts):
    for name, size in {"in": (8, 8), "large": (200, 16)}.items():
        picture("RGB", *size, f"{name}.png")
    refused(t2i("upscale", *arguments, "--model", folders / "stage"), *parts)


def test_generate_takes_a_cascade_and_no_stage(t2i, folders):
    few = ("--num-images", 1, "--num-steps", 2)
    word = ("generate", "a cat", *few, "--model")
    assert t2i(*word, folders / "cascade", "--output", "a.png")[0] == 0
    assert t2i(*word, folders / "cascade", "--aug-level", 0.15)[0] == 0
    refused(t2i(*word, folders / "cascade", "--aug-level", 0.9), "from 0 to 0.2")
    refused(t2i(*word, folders / "stage"), "use t2i upscale")


def test_two_stages_are_joined(t2i, folders):
    word = ("cascade", folders / "base", folders / "stage")
    code, out, err = t2i(*word, "--output", "joined")
    assert code == 0 and out.startswith("joined\n") and not err
    joined = load_model("joined", "cpu")
    assert same(joined, load_model(folders / "cascade", "cpu"))
    assert load_json("joined/run.json")["stages"]
    again = ("cascade", folders / "base", folders / "cascade", "--output", "again")
    assert t2i(*again)[0] == 0 and same(joined, load_model("again", "cpu"))
    refused(
        t2i("cascade", "critters-64", folders / "stage", "--output", "x"),
        "enlarges 16 pixels and its base generates 64",
    )


def test_train_upscale_and_a_stopped_training(t2i):
    few = [f"{k}={v}" for k, v in SHORT.items()]
    word = ("train", "gan-upsampler", "--preset", "tiny", "--output", "run", *few)
    code, out, _ = t2i(*word)
    assert code == 0 and "t2i upscale IMAGE --model run/model" in out
    picture("RGB", 16, 16)
    enlarged = ("upscale", "in.png", "--model")
    assert t2i(*enlarged, "run", "--output", "a.png")[0] == 0
    shutil.rmtree("run/model")
    code, _, err = t2i(*enlarged, "run", "--output", "b.png")
    assert code == 0 and "step 5 of a training" in err
    refused(t2i(*word[:2], "--preset", "cpu-32"), "did you mean 'cpu-32-64'")
    refused(t2i(*word[:6], "max_aug_level=2"), "max_aug_level must be from 0 to 1")
    refused(t2i(*word[:6], "low_res_size=12"), "low_res_size=12 becomes 24 pixels")


def test_a_config_of_another_discriminator_is_refused():
    with pytest.raises(UserError, match="conditioned on text"):
        replace(
            TINY,
            discriminator=DiscriminatorConfig(
                (16, 32), (32, 24), (False, False), 4, 128, text_conditional=False
            ),
        )
