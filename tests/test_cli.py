"""`t2i` as people use and mistype it: a mistake is one line, exit code 2, no file."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from image_folders import write_images
from PIL import Image

from t2i_tutorial import cli, critters
from t2i_tutorial.checkpoints import load_weights
from t2i_tutorial.clip import CLIP_PRESETS
from t2i_tutorial.core import UserError, load_json, save_json, to_pil
from t2i_tutorial.data import ImageTextDataset
from t2i_tutorial.diffusion.cascade import SUPER_RESOLUTION_PRESETS
from t2i_tutorial.diffusion.imagen import IMAGEN_PRESETS, Imagen, imagen_preset
from t2i_tutorial.evaluation.classifier import CLASSIFIER_PRESETS
from t2i_tutorial.experiments import DataConfig, cli_command, get_preset
from t2i_tutorial.gan.gigagan import GIGAGAN_PRESETS, GigaGAN, gigagan_preset
from t2i_tutorial.gan.upsampler import GAN_UPSAMPLER_PRESETS
from t2i_tutorial.hub import captions_digest
from t2i_tutorial.training import apply_overrides, setting_names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A tiny untrained model, saved as any other."
    torch.manual_seed(0)
    return Imagen(imagen_preset("tiny").model_config).save_pretrained(
        tmp_path_factory.mktemp("model") / "tiny"
    )


def refused(result, *parts):
    "Exit code 2, one line, these words in it."
    code, out, err = result
    lines = [
        line
        for line in err.replace("\r", "\n").splitlines()
        if line.strip() and not line.startswith("t2i: note:")
    ]
    assert code == 2 and len(lines) == 1 and not out and "Traceback" not in err, (
        code,
        out,
        err,
    )
    for part in parts:
        assert part in lines[0], lines[0]


# ---- generate


def test_generate_writes_one_png_and_prints_its_path(t2i, folder, tmp_path):
    code, out, err = t2i(
        "generate",
        "a blue and red dragon",
        "--model",
        folder,
        "--num-images",
        3,
        "--num-steps",
        2,
        "--image-width",
        64,
        "--seed",
        7,
    )
    files = list((tmp_path / "here").iterdir())
    assert not err.count("t2i:"), err
    assert (
        code == 0
        and out.strip() == files[0].name
        and files[0].name == "a-blue-and-red-dragon-tiny-seed7-num-steps2.png"
        and len(files) == 1
    )
    image = Image.open(files[0])
    assert image.size == (
        3 * 64 + 4 * 8,
        64 + 2 * 8,
    )  # three images of 16 pixels, enlarged four times, two pixels between
    assert (
        image.text["prompt"] == "a blue and red dragon"
        and image.text["seed"] == "7"
        and image.text["num_steps"] == "2"
    )
    assert float(image.text["guidance_scale"]) == imagen_preset(
        "tiny"
    ).model_config.guidance_scale and image.text["model"] == str(folder)


def test_generate_is_the_same_for_a_seed_and_another_for_another(t2i, folder):
    for name, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
        assert (
            t2i(
                "generate",
                "a cat",
                "--model",
                folder,
                "--num-images",
                1,
                "--num-steps",
                2,
                "--seed",
                seed,
                "--output",
                name,
            )[0]
            == 0
        )
    a, b, c = (Image.open(n).tobytes() for n in ("a.png", "b.png", "c.png"))
    assert a == b != c


def test_an_unknown_word_is_noted_and_the_image_generated_all_the_same(t2i, folder):
    code, _, err = t2i(
        "generate",
        "a purpel cat",
        "--model",
        folder,
        "--num-images",
        1,
        "--num-steps",
        1,
    )
    assert code == 0 and "t2i: note:" in err and "purple" in err


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (
            [
                "",
            ],
            ["the prompt is empty"],
        ),
        (["   "], ["the prompt is empty"]),
        (["x" * 10_000], ["10000 characters", "shorten it"]),
        (
            ["a cat", "--num-steps", "0"],
            ["steps must be a whole number from 1 to 1000, not 0"],
        ),
        (["a cat", "--num-steps", "1001"], ["not 1001"]),
        (["a cat", "--num-steps", "many"], ["--num-steps", "'many'"]),
        (["a cat", "--guidance-scale", "-1"], ["guidance_scale", "-1.0"]),
        (["a cat", "--guidance-scale", "nan"], ["guidance_scale", "nan"]),
        (["a cat", "--guidance-scale", "inf"], ["guidance_scale", "inf"]),
        (["a cat", "--seed", "lucky"], ["--seed", "'lucky'"]),
        (["a cat", "--seed", "-1"], ["seed must be a whole number", "-1"]),
        (["a cat", "--num-images", "0"], ["--num-images", "0"]),
        (["a cat", "--image-width", "1"], ["--image-width", "1"]),
        (["a cat", "--sampler", "ddmp"], ["did you mean 'ddpm'"]),
        (["a cat", "--device", "gpu"], ["unknown device 'gpu'"]),
        (["a cat", "--output", "no/such/folder/a.png"], ["does not exist"]),
        (["a cat", "--output", "a.jpg"], ["must end in .png"]),
        (["a cat", "--output", "a"], ["'a' must end in .png"]),
        (["a cat", "--output", ".png"], ["must end in .png, after a name"]),
        (["a cat", "--output", "folder.png"], ["is a folder"]),
        (["a cat", "--output", "folder.png/"], ["is a folder"]),
        (["a cat", "--output", ""], ["--output is empty"]),
        (["a cat", "--num-images", "65"], ["from 1 to 64, not 65"]),
        (["a cat", "--num-images", "1e3"], ["must be a whole number, not '1e3'"]),
        (["a cat", "--num-images="], ["--num-images must be a whole number, not ''"]),
        (["a cat", "--num-steps", "1.0"], ["must be a whole number, not '1.0'"]),
        (["a cat", "--guidance-scale", "two"], ["must be a number, not 'two'"]),
        (["a cat", "--guidance-scale", "1e308"], ["guidance_scale", "1e+308"]),
        (["a cat", "--seed", "4294967296"], ["from 0 to 4294967295"]),
        (["a cat", "--seed", "1.5"], ["--seed must be a whole number, not '1.5'"]),
        (["a cat", "--device", "cuda:99"], ["unknown device 'cuda:99'"]),
        (["a cat", "--model", ""], ["--model is empty"]),
        (["a\0cat"], ["null character"]),
        (["-a cat"], ["no PROMPT", "goes last, after --"]),
        (["--prompt", "a cat"], ["leave out --prompt"]),
    ],
)
def test_generate_refuses(t2i, folder, tmp_path, arguments, parts):
    (tmp_path / "here" / "folder.png").mkdir()
    refused(t2i("generate", "--model", folder, *arguments), *parts)
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["folder.png"]


def test_generate_refuses_a_folder_that_cannot_be_written(
    t2i, folder, tmp_path, monkeypatch
):
    def deny(*_, **__):  # root may write anywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cli.tempfile, "TemporaryFile", deny)
    refused(
        t2i("generate", "a cat", "--model", folder, "--output", tmp_path / "a.png"),
        "cannot be written",
    )


def test_generate_names_the_nearest_model(t2i, monkeypatch, folder):
    monkeypatch.setattr(
        "t2i_tutorial.hub.bundled_models", lambda: {"critters-32": folder}
    )
    refused(
        t2i("generate", "a cat", "--model", "criters-32"),
        "unknown model 'criters-32'",
        "did you mean 'critters-32'",
    )


def cut(folder):
    (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:1000]
    )


def newer(folder):
    save_json(
        folder / "config.json", load_json(folder / "config.json") | {"format": 99}
    )


def foreign(folder):
    save_json(
        folder / "config.json",
        load_json(folder / "config.json") | {"model_type": "parti"},
    )


def unconfigured(folder):
    (folder / "config.json").unlink()


def listed(folder):
    (folder / "config.json").write_text("[]")


def listed_type(folder):
    save_json(
        folder / "config.json",
        load_json(folder / "config.json") | {"model_type": ["imagen"]},
    )


def nested(folder):
    (folder / "config.json").write_text("[" * 100_000)


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "harm, part",
    [
        (cut, "no whole safetensors file"),
        (newer, "format 99"),
        (foreign, "'parti'"),
        (unconfigured, "holds no config.json"),
        (listed, "holds no imagen or gigagan"),
        (listed_type, "holds no imagen or gigagan"),
        (nested, "nested too deeply"),
        (pickled, "pickle"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_generate_refuses_a_damaged_model(t2i, folder, tmp_path, harm, part):
    broken = shutil.copytree(folder, tmp_path / "broken")
    harm(broken)
    refused(t2i("generate", "a cat", "--model", broken), part)
    assert not list((tmp_path / "here").iterdir())


def test_generate_refuses_a_pickled_checkpoint(t2i, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04")
    refused(t2i("generate", "a cat", "--model", tmp_path / "weights.pt"), "pickle")


# ---- generate with a GigaGAN


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    "A tiny untrained GigaGAN."
    torch.manual_seed(0)
    return GigaGAN(gigagan_preset("tiny").model_config).save_pretrained(
        tmp_path_factory.mktemp("model") / "gan"
    )


def test_one_command_generates_with_both_families(t2i, gan, tmp_path):
    code, out, err = t2i(
        "generate",
        "a blue and red dragon",
        "--model",
        gan,
        "--num-images",
        2,
        "--truncation-psi",
        0.5,
        "--image-width",
        32,
    )
    image = Image.open(tmp_path / "here" / out.strip())
    assert (
        code == 0
        and image.text["truncation_psi"] == "0.5"
        and "num_steps" not in image.text
        and image.size == (2 * 32 + 3 * 4, 32 + 2 * 4)
    )


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (
            ["--num-steps", "5"],
            [
                "--num-steps does not apply to this model, whose model_type is gigagan",
                "it has --truncation-psi",
            ],
        ),
        (["--guidance-scale", "2"], ["--guidance-scale does not apply"]),
        (["--sampler", "dpmpp-2m"], ["--sampler does not apply"]),
        (["--truncation-psi", "2"], ["truncation_psi must be from 0 to 1, not 2.0"]),
        (["--truncation-psi", "nan"], ["truncation_psi must be", "nan"]),
        (["--truncation-psi", "some"], ["--truncation-psi", "'some'"]),
        (["--seed", "-1"], ["seed must be a whole number"]),
    ],
)
def test_generate_with_a_gan_refuses(t2i, gan, tmp_path, arguments, parts):
    refused(t2i("generate", "a cat", "--model", gan, *arguments), *parts)
    assert not list((tmp_path / "here").iterdir())


def test_an_imagen_has_no_truncation(t2i, folder):
    refused(
        t2i("generate", "a cat", "--model", folder, "--truncation-psi", "0.5"),
        "--truncation-psi does not apply to this model, whose model_type is imagen",
        "--guidance-scale",
    )


# ---- train

GAN = [
    "train",
    "gigagan",
    "--preset",
    "tiny",
    "train.max_steps=2",
    "train.batch_size=4",
    "num_images=16",
    "train.save_every=2",
    "train.log_with=none",
]


def test_train_a_gan_and_generate_with_it(t2i):
    code, out, _ = t2i(*GAN, "--output", "run")
    assert code == 0 and load_json("run/model/run.json")["command"].startswith(
        "t2i train gigagan --preset tiny train.max_steps=2"
    )
    refused(t2i(*GAN, "--output", "run"), "not empty", "--resume")
    assert t2i("generate", "a cat", "--model", "run/model", "--num-images", 1)[0] == 0


TINY = [
    "train",
    "imagen",
    "--preset",
    "tiny",
    "train.max_steps=4",
    "train.warmup_steps=1",
    "train.batch_size=4",
    "num_images=16",
    "train.save_every=2",
    "train.log_with=none",
]


def test_train_resumes_and_its_model_generates(t2i, tmp_path):
    code, out, _ = t2i(*TINY, "--output", "run")
    assert code == 0 and "run/model" in out
    run = load_json("run/model/run.json")
    assert (
        run["command"].startswith("t2i train imagen --preset tiny train.max_steps=4")
        and run["history"][-1]["step"] == 4
    )
    refused(t2i(*TINY, "--output", "run"), "not empty", "--resume")
    assert t2i(*TINY, "--output", "run", "--resume")[0] == 0
    assert (
        t2i(
            "generate",
            "a cat",
            "--model",
            "run/model",
            "--num-steps",
            1,
            "--num-images",
            1,
        )[0]
        == 0
    )


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (
            ["imagen", "train.max_stepps=3"],
            ["unknown setting 'train.max_stepps'", "did you mean 'train.max_steps'"],
        ),
        (["imagen", "max_steps=3"], ["did you mean 'train.max_steps'"]),
        (["imagen", "--unet.haeds", "8"], ["did you mean 'unet.heads'"]),
        (["imagen", "--otput", "x"], ["unknown option '--otput'", "'--output'"]),
        (["imagen", "--presset=tiny"], ["unknown option '--presset'", "'--preset'"]),
        (["imagen", "-x", "3"], ["unknown setting 'x'"]),
        (["imagen", "--unet.heads"], ["--unet.heads needs a value"]),
        (["imagen", "--unet.heads", "--resume"], ["--unet.heads needs a value"]),
        (["imagen", "--unet.heads", "many"], ["heads must be a whole number", "many"]),
        (["imagen", "train.max_steps"], ["write it as name=value"]),
        (["imagen", "--preset", "cpu32"], ["did you mean 'cpu-32'"]),
        (["imagen", "--preset"], ["--preset needs a value"]),
        (["imagen", "--crop"], ["--crop is for images of one's own"]),
        (["gigagan", "--text-column", "title"], ["--text-column is for images"]),
        (["clip", "--crop"], ["--crop is for images of one's own"]),
        (["imagen", "--resume", "run"], ["cannot read the setting 'run'"]),
        (["imagen", "--preset="], ["unknown preset ''"]),
        (["imagen", "--output="], ["--output is empty"]),
        (
            ["imagen", "--preset", "tiny", "unet.cond_dim=1000000"],
            ["not enough memory"],
        ),
        (["imagen", "train.batch_size=0"], ["batch_size must be at least 1"]),
        (["imagen", "train.lr=-1"], ["lr must be"]),
        (
            ["imagen", "prediction_type=eps"],
            ["='eps' cannot be used with zero_terminal_snr=True"],
        ),
        (
            ["imagen", "num_images=8", "train.batch_size=64"],
            ["batch_size 64 is more than the 8"],
        ),
        (["imagen", "cond_drop_prob=2"], ["cond_drop_prob must be from 0 to 1"]),
        (["imagen", "--data", "no-such-folder/"], ["no-such-folder"]),
        (["imagen", "size=33"], ["size must be a multiple of"]),
        (["gigagan", "matching_wieght=0"], ["did you mean 'matching_weight'"]),
        (["gigagan", "--preset", "cpu32"], ["did you mean 'cpu-32'"]),
        (["gigagan", "matching_weight=2"], ["matching_weight must be from 0 to 1"]),
        (["gigagan", "adversarial_loss=hinge"], ["unknown adversarial_loss 'hinge'"]),
        (
            [
                "gigagan",
                "--preset",
                "tiny",
                "init_from=nowhere",
                "num_images=16",
                "train.batch_size=8",
            ],
            ["'nowhere'"],
        ),
        (["imagen", "--init-from", "nowhere"], ["unknown model 'nowhere'"]),
        (["imagen", "--init-from"], ["--init-from needs a value"]),
        (["imagen", "--init-from", "critters-32-gigagan"], ["gigagan", "imagen"]),
        (["gigagan", "--init-from", "critters-32"], ["gigagan", "imagen"]),
        (
            ["imagen", "--preset", "cpu-32", "--init-from", "critters-64"],
            ["cannot start from 64 pixels"],
        ),
        (
            ["imagen", "--init-from", "critters-32", "unet.heads=8"],
            ["cannot start from 32 pixels"],
        ),
        (["clip", "--init-from", "critters-clip"], ["unknown setting 'init_from'"]),
        (["imagen", "val_fraction=2"], ["val_fraction must be from 0 to 0.9"]),
        (["gigagan", "size=64"], ["size is 64"]),
        (["imagin"], ["unknown training 'imagin'", "did you mean 'imagen'"]),
        (["imagin", "--help"], ["did you mean 'imagen'"]),
        (["imagen", "--preset", "tinny", "--help"], ["did you mean 'tiny'"]),
        ([], ["NAME"]),
        (["classifier", "max_stepps=3"], ["did you mean 'max_steps'"]),
        (["clip", "train.max_steps=3"], ["did you mean 'max_steps'"]),
        (["clip", "dim=3"], ["did you mean 'model_config.dim'"]),
        (["clip", "max_steps=x"], ["max_steps must be a whole number"]),
        (["clip", "--resume"], ["no --resume"]),
        (["classifier", "--preset", "critters"], ["unknown preset 'critters'"]),
    ],
)
def test_train_refuses(t2i, tmp_path, arguments, parts):
    refused(t2i("train", *arguments), *parts)
    assert not list((tmp_path / "here").iterdir())


def test_train_refuses_images_without_captions_and_full_folders(t2i, tmp_path):
    pictures = tmp_path / "here" / "mine"
    pictures.mkdir()
    Image.new("RGB", (40, 40)).save(pictures / "a.png")
    refused(t2i("train", "imagen", "--data", "mine"), "metadata")
    for name in ("clip", "classifier"):
        refused(t2i("train", name, "--output", "mine"), "not empty")
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["mine"]


def test_train_on_a_folder_of_ones_own(t2i, tmp_path):
    pictures = tmp_path / "mine"
    pictures.mkdir()
    rows = []
    for i, colour in enumerate(("red", "green", "blue", "black")):
        Image.new("RGB", (40, 30), colour).save(pictures / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"a {colour} wall"}))
    (pictures / "metadata.jsonl").write_text("\n".join(rows))
    code, out, _ = t2i(
        *[a for a in TINY if not a.startswith("num_images")],
        "--data",
        pictures,
        "--output",
        "run",
    )
    assert code == 0 and load_json("run/model/config.json")["size"] == 16


def test_init_from_alone_chooses_the_preset_for_a_warm_start(t2i, walls, monkeypatch):
    "By the size of that model; the preset that is named wins."
    seen = []
    for module, name in (("diffusion.imagen", "imagen"), ("gan.gigagan", "gigagan")):
        monkeypatch.setattr(
            f"t2i_tutorial.{module}.train_{name}",
            lambda preset, data, folder, settings, resume: seen.append(
                (preset, Path(folder).name, settings)
            ),
        )
    start = ("--data", walls, "--init-from")
    assert t2i("train", "imagen", *start, "critters-32")[0] == 0
    assert t2i("train", "imagen", *start, "critters-64")[0] == 0
    assert t2i("train", "gigagan", *start, "critters-32-gigagan")[0] == 0
    named = ("--preset", "cpu-64")
    assert t2i("train", "imagen", *start, "critters-32", *named)[0] == 0
    assert t2i("train", "imagen", *start, "none")[0] == 0
    names = ["warm-32", "warm-64", "warm-32", "cpu-64", "cpu-32"]
    assert [preset for preset, *_ in seen] == names
    assert seen[0][1:] == ("imagen-warm-32", ["init-from=critters-32"])


# ---- how one's own images are read (bug reports, "missing")


@pytest.fixture
def walls(tmp_path):
    "Four images that are no squares, with two columns of captions."
    folder = tmp_path / "walls"
    folder.mkdir()
    rows = []
    for i, colour in enumerate(("red", "green", "blue", "black")):
        Image.new("RGB", (40, 30), colour).save(folder / f"{i}.png")
        texts = {"title": f"a {colour} wall", "text": f"wall {i}"}
        rows.append(json.dumps({"file_name": f"{i}.png", **texts}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def test_train_reads_images_as_its_options_say_and_records_them(
    t2i, walls, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        "t2i_tutorial.diffusion.imagen.train_imagen",
        lambda preset, data, *_: seen.append(data),
    )
    options = ["--data", walls, "--text-column", "title", "--crop"]
    options += ["--max-caption", 20]
    assert t2i("train", "imagen", "--preset", "tiny", *options)[0] == 0
    opened = seen[0].open(16)
    assert opened.captions[0] == ("a red wall",)
    assert opened.cache[0].flatten(1).unique(dim=1).tolist() == [[255], [0], [0]]
    command = cli_command("imagen", "tiny", data=seen[0])
    assert t2i(*shlex.split(command)[1:])[0] == 0  # what is recorded says the same
    assert seen[0] == seen[1]


def test_train_reads_the_split_that_is_named(t2i, walls, monkeypatch):
    for name in ("val", "train"):
        (walls / name).mkdir()
        Image.new("RGB", (8, 8)).save(walls / name / "0.png")
        row = {"file_name": "0.png", "text": f"of {name}"}
        (walls / name / "metadata.jsonl").write_text(json.dumps(row))
    for path in (*walls.glob("*.png"), walls / "metadata.jsonl"):
        path.unlink()
    seen = []
    start = ("train", "imagen", "--preset", "tiny", "--data", walls, "--crop")
    with monkeypatch.context() as patch:
        patch.setattr(
            "t2i_tutorial.diffusion.imagen.train_imagen",
            lambda preset, data, *_: seen.append(data),
        )
        assert t2i(*start, "--split", "val")[0] == 0 and t2i(*start)[0] == 0
    assert [d.open(16).captions[0] for d in seen] == [("of val",), ("of train",)]
    refused(t2i(*start, "--split", "vel"), "vel")


def test_several_columns_give_several_captions(walls):
    opened = DataConfig(str(walls), text_column="title,text").open(16)
    assert opened.captions[0] == ("a red wall", "wall 0")


def test_other_options_of_the_data_are_refused_on_resume_before_they_are_read(
    t2i, walls, monkeypatch
):
    tiny = [a for a in TINY if not a.startswith("num_images")]
    tiny += ["--data", walls, "--output", "run"]
    assert t2i(*tiny, "--text-column", "title", "--crop")[0] == 0
    monkeypatch.setattr("t2i_tutorial.experiments.open_dataset", None)
    refused(t2i(*tiny, "--resume", "--crop"), "go on with --text-column title")
    refused(t2i(*tiny, "--resume", "--text-column", "title"), "go on with --crop")


# ---- models and evaluate


def test_models_lists_what_is_bundled(t2i, monkeypatch, folder):
    monkeypatch.setattr(
        "t2i_tutorial.hub.bundled_models", lambda: {"critters-tiny": folder}
    )
    code, out, _ = t2i("models")
    assert code == 0 and "critters-tiny  imagen, 16 x 16 pixels" in out


@pytest.fixture
def quick(monkeypatch):
    "The small bundled network, no LPIPS: what is tested here is the command."
    monkeypatch.setattr(
        "t2i_tutorial.evaluation.quality.has_feature_network",
        lambda name: name == "dead-leaves",
    )
    monkeypatch.setattr(
        "t2i_tutorial.evaluation.metrics._load_lpips", _raise(UserError("no LPIPS"))
    )


def _raise(error):
    def fail(*_, **__):
        raise error

    return fail


SMALL = ("--prompts", 40, "--num-steps", 1)


def test_evaluate_prints_and_saves_the_table(t2i, folder, quick):
    code, out, err = t2i("evaluate", folder, *SMALL, "--output", "report.json")
    assert code == 0 and "test, full captions" in out and "variety" in out, err
    assert "new pair of colours, natural captions" in out
    assert "skipped: no LPIPS" in out and "copies are not looked for" in err
    saved = load_json("report.json")
    assert saved["format"] == 2 and saved["settings"]["num_prompts"] == 40
    assert saved["metrics"]["test/full"].keys() >= {"size", "facing", "all"}
    assert set(saved["seconds"]) >= {"generating", "text", "quality", "variety"}


def test_evaluate_in_two_steps_is_evaluate_in_one(t2i, folder, quick):
    options = (*SMALL, "--split", "val")
    code, out, _ = t2i("evaluate", folder, *options)
    first = ["evaluate", folder, *options, "--save-images", "a.safetensors"]
    done, said, _ = t2i(*first, "--generate-only")
    assert code == done == 0 and said == "a.safetensors\n"
    code, again, _ = t2i("evaluate", "a.safetensors")
    assert code == 0 and again == out
    refused(t2i(*first), "exists", "--overwrite")
    refused(t2i("evaluate", "a.safetensors", "--generate-only"), "--save-images")
    refused(
        t2i("evaluate", "a.safetensors", "--save-images", "b.safetensors"),
        "were generated before",
    )


def test_evaluate_measures_a_folder_of_images_with_captions(t2i, tmp_path, quick):
    folder = write_images(tmp_path / "images")
    code, out, err = t2i("evaluate", folder)
    assert code == 0, err
    stated = next(line for line in out.splitlines() if "all stated" in line)
    assert float(stated.split("|")[3].split()[0]) > 0.9
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"file_name": "00.png", "text": "a photograph of a horse"})
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    refused(t2i("evaluate", folder), "photograph", "00.png")


@pytest.fixture
def measured(monkeypatch):
    "What is measured, without measuring it: the arguments of each call."
    calls = []

    class Nothing:
        seconds: dict = {}

        def table(self):
            return "a table"

    def note(*images, **options):
        calls.append((images, options))
        return Nothing()

    monkeypatch.setattr("t2i_tutorial.evaluation.report.measure_images", note)
    monkeypatch.setattr("t2i_tutorial.evaluation.comparison.compare_images", note)
    return calls


@pytest.fixture(scope="module")
def images_file(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("generated") / "saved.safetensors"
    options = [*SMALL, "--split", "val", "--seed", 3, "--generate-only"]
    words = ["evaluate", folder, *options, "--save-images", path]
    assert cli.main([str(w) for w in words]) == 0
    return path


@pytest.fixture
def saved(t2i, images_file):
    "Images of an evaluation, as a file saves them."
    shutil.copy(images_file, "saved.safetensors")
    return "saved.safetensors"


@pytest.mark.parametrize(
    "option, value",
    [
        ("--prompts", 40),
        ("--split", "val"),
        ("--seed", 3),
        ("--batch-size", 500),
        ("--num-steps", 1),
        ("--guidance-scale", 2),
        ("--sampler", "ddim"),
        ("--truncation-psi", 1),
        ("--device", "cpu"),
    ],
)
def test_evaluate_refuses_what_changes_nothing_in_saved_images(
    t2i, saved, measured, option, value
):
    refused(t2i("evaluate", saved, option, value), f"{option} changes nothing")
    assert not measured


def test_evaluate_with_a_wrong_name_of_a_training_measures_nothing(
    t2i, folder, saved, measured
):
    "It was a note, and the exit code was 0."
    refused(t2i("evaluate", saved, "--training-of", "critters-23"), "unknown model")
    refused(t2i("evaluate", saved, "--training-of", folder), "run.json")
    refused(t2i("evaluate", saved, "--training-of", ""), "--training-of is empty")
    assert not measured
    assert t2i("evaluate", saved)[0] == 0 and len(measured) == 1


def test_the_feature_network_can_be_chosen(t2i, folder, saved, measured, quick):
    assert t2i("evaluate", saved, "--feature-network", "dead-leaves")[0] == 0
    assert t2i("compare", saved, folder, "--feature-network", "dead-leaves")[0] == 0
    assert [options["network"].name for _, options in measured] == ["dead-leaves"] * 2
    for command in (("evaluate", saved), ("compare", saved, folder)):
        choose = (*command, "--feature-network")
        refused(t2i(*choose, "alexnet"), "alexnet", "not in torch's cache")
        refused(t2i(*choose, "vgg"), "unknown feature network 'vgg'")
    assert "--feature-network" in t2i("evaluate", "--help")[1]


def test_a_folder_of_captions_is_saved_images_and_a_training_is_a_model(
    tmp_path, folder
):
    drawn = critters.sample_critters(12, 16, seed=3, split="val")
    for kind in ("txt", "csv", "train/txt"):
        path = tmp_path / kind.replace("/", "-") / kind.partition("/")[0]
        path.mkdir(parents=True)
        rows = ["file_name,text"]
        for i, (image, caption) in enumerate(zip(drawn.images, drawn.captions)):
            to_pil(image).save(path / f"{i}.png")
            rows.append(f'{i}.png,"{caption}"')
            if kind != "csv":
                (path / f"{i}.txt").write_text(caption)
        if kind == "csv":
            (path / "metadata.csv").write_text("\n".join(rows))
        found = cli._saved_images(str(path.parent if "/" in kind else path))
        assert found is not None and len(found) == 12 and found.size == 16, kind
    for name in ("config.json", "model/config.json", "checkpoints/x", "state.json"):
        model = tmp_path / name.replace("/", "-")
        shutil.copytree(tmp_path / "txt" / "txt", model)
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("{}")
        assert cli._saved_images(str(model)) is None, name
    assert cli._saved_images(str(folder)) is None
    (tmp_path / "empty").mkdir()
    assert cli._saved_images(str(tmp_path / "empty")) is None


def test_compare_looks_before_it_samples(t2i, folder, saved, tmp_path, monkeypatch):
    config = apply_overrides(imagen_preset("tiny").model_config, {"size": "32"})
    large = Imagen(config).save_pretrained(tmp_path / "large")
    monkeypatch.setattr(Imagen, "sample", _raise(AssertionError("sampled")))
    refused(t2i("compare", folder, large), "they differ in size (16 and 32);")
    refused(t2i("compare", saved, large), "they differ in size (16 and 32);")
    refused(t2i("compare", folder, "nothing"), "unknown model 'nothing'")
    images = tmp_path / "images"
    images.mkdir()
    for i in range(12):
        Image.new("RGB", (16, 16)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text("a cat")
    refused(
        t2i("compare", folder, images), "number of prompts", "and 12)", "split (test"
    )


def test_compare_takes_prompts_and_seed_from_saved_images(t2i, folder, saved, measured):
    assert t2i("compare", folder, saved, "--seed", 3)[0] == 0
    ((first, second), _), *_ = measured
    assert first.prompts == second.prompts
    for key in ("split", "seed", "num_prompts", "batch_size"):
        assert first.settings[key] == second.settings[key], key
    for option, value in (
        ("--seed", 0),
        ("--split", "test"),
        ("--prompts", 48),
        ("--batch-size", 8),
    ):
        words = f"{option} is {value}, but the images of 'saved.safetensors' were"
        refused(t2i("compare", folder, saved, option, value), words)
    shutil.copy(saved, "other.safetensors")
    other = ("compare", saved, "other.safetensors")
    refused(t2i(*other, "--device", "cpu"), "--device changes nothing")
    assert t2i(*other)[0] == 0 and len(measured) == 2
    refused(t2i("compare", saved, f"./{saved}"), "is named twice")
    refused(t2i("compare", saved, Path(saved).resolve()), "is named twice")


def test_evaluate_refuses_a_file_that_holds_no_images(t2i, folder):
    refused(t2i("evaluate", "missing.safetensors"), "no such file")
    refused(
        t2i("evaluate", folder / "model.safetensors"),
        "holds no images of an evaluation",
    )
    Path("odd.safetensors").write_text("nothing")
    refused(t2i("evaluate", "odd.safetensors"), "no whole safetensors file")


def test_compare_prints_and_saves_differences(t2i, folder, quick, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    common = ("--prompts", 40, "--split", "val", "--output", "differences.json")
    code, out, err = t2i("compare", folder, other, *common)
    assert code == 0, err
    rows = load_json("differences.json")["differences"]
    assert all(r["difference"] == 0 for r in rows if r["first"] is not None)
    assert {r["p"] for r in rows} == {1, None}  # equal models
    assert "val, natural captions" in out and "quality, dead-leaves" in out


@pytest.mark.parametrize(
    "arguments, part",
    [
        ([], "no FIRST and SECOND; for instance t2i compare"),
        (["critters-32"], "no FIRST and SECOND"),
        (["critters-32", "critters-32"], "is named twice"),
        (["critters-32", "nothing"], "unknown model"),
        (["a", "b", "c"], "unexpected 'c'"),
        (["a", "b", "--prompts", 39], "--prompts must be a whole number from 40"),
        (["a", "b", "--split", "tset"], "did you mean 'test'"),
        (["a", "b", "--output", "x.txt"], "must end in .json, or be a folder"),
        (["a", "b", "--output", ""], "--output is empty"),
        (["a", "b", "--output", "."], "is the current folder"),
        (["a", "b", "--output", "none/x"], "none' does not exist; make it"),
        (["a", "b", "--prompts", "many"], "neither a whole number nor a text file"),
        (["a", "b", "--prompts", ".."], "neither a whole number nor a text file"),
        (["", "b"], "FIRST is empty"),
        (["a", ""], "SECOND is empty"),
        (["a", "b", "--prompts", 10_001], "from 40 to 10000"),
        (["a", "b", "--promts", 40], "did you mean '--prompts'"),
    ],
)
def test_compare_refuses(t2i, monkeypatch, arguments, part):
    monkeypatch.setattr(
        cli, "_generate_images", lambda name, *_: cli._load(name, "cpu")
    )
    refused(t2i("compare", *arguments), part)


OWN = ("a red cat", "a red cat that plays the violin", "a big blue owl")


@pytest.fixture
def own(t2i):
    "A file of three prompts, one of them not of our grammar."
    Path("own.txt").write_text("\n\n".join(OWN) + "\n \n", encoding="utf-8")
    return "own.txt"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    "As `folder`, with twice as many pixels a side."
    config = apply_overrides(imagen_preset("tiny").model_config, {"size": "32"})
    torch.manual_seed(1)
    return Imagen(config).save_pretrained(tmp_path_factory.mktemp("model") / "large")


def test_compare_on_prompts_of_a_file_writes_a_folder(t2i, folder, large, own):
    words = ("compare", folder, large, "--prompts", own, "--seed", 5)
    code, out, err = t2i(*words, "--output", "both")
    assert code == 0 and out.endswith("\nboth\n"), err
    names = {p.name for p in Path("both").iterdir()}
    assert names == {"comparison.json", "sheet.png", "table.md"}
    found = load_json("both/comparison.json")
    assert found["prompts"] == list(OWN) and found["num_images"] == 3
    assert found["split"] is found["feature_network"] is None
    assert (found["first"], found["second"]) == (str(folder), str(large))
    for made, model in zip(found["settings"], (folder, large)):
        assert (made["model"], made["seed"]) == (str(model), 5)
        assert made["num_steps"] and made["device"] == "cpu"
    rows = {d["measure"]: d for d in found["differences"]}
    assert set(rows) >= {"all stated", "species", "CLIP score (cosine)"}
    assert rows["size"]["ci_low"] is None  # one prompt states it
    assert rows["species"]["ci_low"] is not None
    table = Path("both/table.md").read_text(encoding="utf-8")
    assert out == f"{table}both\n" and "| quality | not measured" in table
    assert "| attributes | 1 of 3 prompts state none" in table
    assert "| intervals | rough" in table
    sheet = Image.open("both/sheet.png")  # 32 pixels, five times, two and a gap of 2
    assert sheet.size == (3 * (160 + 8), 22 + 5 * 66 + 13 * 2 + 8)
    refused(t2i(*words, "--output", "both"), "'both' exists", "--overwrite")
    for output in ("both", "list.json"):
        assert t2i(*words, "--overwrite", "--output", output)[0] == 0
    assert load_json("list.json") == load_json("both/comparison.json") == found


def test_compare_shows_what_the_models_draw(t2i, folder, large, own):
    "The same prompts and seed as `t2i generate`, the first model above."
    from t2i_tutorial.evaluation.comparison import comparison_sheet

    pair, sizes = [], {folder: 16, large: 32}
    options = cli.CompareOptions(first="", second="", seed=5, batch_size=2)
    for name in sizes:
        model = cli._load(str(name), "cpu")
        pair.append(cli._generate_own(str(name), model, list(OWN), options))
        again = cli._generate_own(str(name), model, list(OWN), options)
        assert torch.equal(pair[-1].images["prompts"], again.images["prompts"])
        assert pair[-1].size == sizes[name] and len(pair[-1]) == 3
    figure = comparison_sheet(*pair, n=2)
    title, *captions = reversed([t.get_text() for t in figure.texts])
    assert title.startswith("above: ") and "below: " in title
    assert title.count("…") == 2 and "tiny, below" in title and title.endswith("large")
    assert [c.replace("\n", " ") for c in captions[::-1]] == list(OWN[:2])
    sheet = figure.axes[0].get_images()[0].get_array()
    w = (figure.get_figwidth() * 100 - 16) / 2
    scale = round(w / 32)
    first, second = (g.images["prompts"][0].permute(1, 2, 0).numpy() for g in pair)
    for y, image, factor in ((0, first, 2 * scale), (34 * scale, second, scale)):
        side = 32 * scale
        shown = sheet[22 + y : 22 + y + side : factor, 0:side:factor, :3]
        assert (shown == image).all()


def test_compare_on_prompts_of_a_file_looks_before_it_samples(
    t2i, folder, large, own, saved, monkeypatch
):
    monkeypatch.setattr(Imagen, "sample", _raise(AssertionError("sampled")))
    monkeypatch.setattr(cli, "_MAX_PROMPTS", 2)
    for name, content in {
        "empty.txt": b"\n \n\xe2\x80\x8b\n",
        "latin.txt": b"a cat\n\na caf\xe9\n",
        "long.txt": b"a cat\n" + b"a" * 1001,
    }.items():
        Path(name).write_bytes(content)
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    cases = {
        (folder, large, own): ("'own.txt' holds 3 prompts, more than 2",),
        (folder, large, "empty.txt"): ("'empty.txt' holds no prompts",),
        (folder, large, "latin.txt"): ("'latin.txt', line 3", "not UTF-8"),
        (folder, large, "long.txt"): ("'long.txt', line 2", "1001 characters"),
    }
    for (*models, file), parts in cases.items():
        refused(t2i("compare", *models, "--prompts", file), *parts)
    monkeypatch.setattr(cli, "_MAX_PROMPTS", 3)
    words = ("compare", folder, large, "--prompts", own)
    refused(t2i(*words, "--split", "val"), "--split changes nothing")
    refused(t2i(*words, "--feature-network", "alexnet"), "--feature-network changes")
    refused(t2i(*words, "--seed", -1), "--seed must be a whole number")
    refused(t2i("compare", folder, saved, "--prompts", own), saved, "name two models")
    refused(t2i("compare", folder, "nothing", "--prompts", own), "unknown model")
    refused(t2i(*words, "--overwrite", "--output", "full"), "'mine.txt'; name another")
    refused(t2i(*words, "--output", own), "must end in .json, or be a folder")
    Path("plain").write_text("mine")
    refused(t2i(*words, "--output", "plain"), "must end in .json, or be a folder")
    assert Path("full/mine.txt").read_text() == Path("plain").read_text() == "mine"


def test_compare_leaves_no_folder_where_writing_fails(
    t2i, folder, large, own, monkeypatch
):
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", _raise(OSError(28, "No space left"))
    )
    code, out, err = t2i("compare", folder, large, "--prompts", own, "--output", "both")
    assert code == 2 and "cannot write" in err and "No space left" in err
    assert {p.name for p in Path(".").iterdir()} == {own}


def test_compare_merges_prompts_that_stand_twice(t2i):
    Path("own.txt").write_bytes("\ufeffa cat\r\n a  cat\r\na dog\r\n".encode())
    with pytest.warns(UserWarning, match="'own.txt' repeats prompts; left out: 1 l"):
        assert cli._read_prompts("own.txt") == ["a cat", "a dog"]


def test_compare_writes_a_folder_for_prompts_of_a_split(t2i, saved, quick):
    shutil.copy(saved, "other.safetensors")
    Path("both").mkdir()
    code, out, err = t2i("compare", saved, "other.safetensors", "--output", "both")
    assert code == 0, err
    assert load_json("both/comparison.json")["feature_network"] == "dead-leaves"
    width, height = Image.open("both/sheet.png").size
    assert width == 8 * (6 * 16 + 8) and height > 2 * 6 * 33  # two rows of eight


def test_compare_refuses_images_of_other_prompts(t2i, folder, quick):
    for name, n in (("a", 40), ("b", 48)):
        options = ["--prompts", n, "--num-steps", 1, "--generate-only"]
        t2i("evaluate", folder, *options, "--save-images", f"{name}.safetensors")
    refused(
        t2i("compare", "a.safetensors", "b.safetensors"),
        "did not get the same prompts",
        "number of prompts",
    )


def test_evaluate_does_not_replace_a_report(t2i, folder):
    "F5"
    Path("report.json").write_text("mine")
    refused(t2i("evaluate", folder, "--output", "report.json"), "exists", "--overwrite")
    assert Path("report.json").read_text() == "mine"


@pytest.mark.parametrize(
    "option, value, part",
    [
        ("--prompts", 39, "from 40 to 10000"),
        ("--prompts", 10_001, "from 40 to 10000"),
        ("--prompts", "many", "--prompts must be a whole number, not 'many'"),
        ("--seed", -1, "--seed must be a whole number"),
        ("--split", "", "unknown split ''"),
        ("--split", "train", "unknown split 'train'"),
        ("--output", "report.txt", "must end in .json"),
        ("--save-images", "images.png", "must end in .safetensors"),
        ("--save-images", "", "--save-images is empty"),
        ("--training-of", "critters-32", "--training-of is for saved images"),
    ],
)
def test_evaluate_refuses(t2i, folder, option, value, part):
    refused(t2i("evaluate", folder, option, value), part)


def test_evaluate_takes_a_batch_size_and_a_device(t2i, folder, monkeypatch):
    sizes, sample = [], Imagen.sample

    def note(self, prompts, **options):
        sizes.append((len(prompts), str(self.device)))
        return sample(self, prompts, **options)

    monkeypatch.setattr(Imagen, "sample", note)
    options = [*SMALL, "--batch-size", 8, "--generate-only", "--save-images"]
    code, *_ = t2i("evaluate", folder, *options, "a.safetensors", "--device", "cpu")
    assert code == 0 and sizes[:2] == [(8, "cpu"), (8, "cpu")]
    refused(t2i("evaluate", folder, "--batch-size", 0), "--batch-size must be")
    refused(t2i("evaluate", folder, "--truncation-psi", 1), "does not apply")
    refused(t2i("evaluate", "no-such-model"), "unknown model")
    refused(t2i("evaluate", folder, "--generate-only"), "needs --save-images")
    only = ("--generate-only", "--save-images", "b.safetensors", "--output", "b.json")
    refused(t2i("evaluate", folder, *only), "--generate-only measures nothing")
    refused(t2i("evaluate", ""), "MODEL is empty")


# ---- settings by their dotted path


RECORDS = sorted(
    f
    for f in Path(cli.__file__).parent.glob("*/**/*.json")
    if '"command"' in f.read_text(encoding="utf-8")
)


def commands_in(record) -> list[str]:
    "Every command in a recorded file."
    if isinstance(record, list):
        return [c for value in record for c in commands_in(value)]
    if not isinstance(record, dict):
        return []
    own = [record["command"]] if isinstance(record.get("command"), str) else []
    return own + commands_in(list(record.values()))


def test_any_field_of_a_network_is_set_in_either_form(t2i):
    "As `name=value`, `--name=value` and `--name value`, with commas or blanks."
    options = ["unet.heads=2", "--unet.cond_dim=32", "--unet.channels", 16, 24]
    options += ["--noise-schedule", "linear", "zero_terminal_snr=false"]
    options += ["--train.lr", "1e-4", "train.betas=0.8,0.9", "train.ema_decay=none"]
    code, _, err = t2i(*TINY, *options, "--output", "run")
    assert code == 0, err
    model, preset = load_json("run/model/config.json"), load_json("run/model/run.json")
    assert model["unet"]["heads"] == 2 and model["unet"]["cond_dim"] == 32
    assert model["unet"]["channels"] == [16, 24]
    assert model["noise_schedule"] == "linear" and model["zero_terminal_snr"] is False
    train = preset["preset"]["train_config"]
    assert train["lr"] == 1e-4 and train["betas"] == [0.8, 0.9]
    assert train["ema_decay"] is None and "unet.heads=2" in preset["command"]
    words = preset["command"].split()[1:]
    assert t2i(*words, "--output", "again")[0] == 0  # the recorded command runs
    assert load_json("again/model/config.json") == model


def test_a_short_training_takes_settings_of_its_network(t2i, monkeypatch):
    seen = {}
    for name in ("clip", "evaluation.classifier"):
        function = f"train_{name.rpartition('.')[2]}"
        monkeypatch.setattr(
            f"t2i_tutorial.{name}.{function}",
            lambda preset, folder, **changes: seen.update(changes, preset=preset),
        )
    assert t2i("train", "clip", "max_steps=3", "--model_config.dim", 32)[0] == 0
    assert seen["max_steps"] == 3 and seen["model_config"].dim == 32
    assert t2i("train", "classifier", "--preset", "tiny", "lr=1")[0] == 0
    assert seen["preset"] == "tiny" and seen["lr"] == 1.0


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.parent.name + "/" + p.name)
def test_a_recorded_command_names_settings_that_exist(path):
    for command in commands_in(load_json(path)):
        if not command.startswith("t2i "):
            continue  # of another program, such as chapter 4's
        _, train, name, flag, preset, *settings = shlex.split(command)
        assert (train, flag) == ("train", "--preset")
        if name in SAMPLING:
            get_preset(HELP[name], preset, settings)
        else:
            apply_overrides(HELP[name][preset], settings)


HELP = {"imagen": IMAGEN_PRESETS, "gigagan": GIGAGAN_PRESETS}
HELP |= {"super-resolution": SUPER_RESOLUTION_PRESETS}
HELP |= {"gan-upsampler": GAN_UPSAMPLER_PRESETS}
SAMPLING = tuple(HELP)  # the trainings with a model and its training apart
HELP |= {"clip": CLIP_PRESETS, "classifier": CLASSIFIER_PRESETS}


def help_of(t2i, *arguments) -> str:
    code, out, err = t2i("train", *arguments, "--help")
    assert code == 0 and not err
    return out


def shown_settings(name: str, preset: str) -> list[str]:
    "The dotted paths that `t2i train NAME` accepts."
    chosen = HELP[name][preset]
    if name not in SAMPLING:
        return setting_names(chosen)
    train = setting_names(chosen.train_config, "train.")
    own = ["num_images", "init_from", "val_fraction"]
    return [*setting_names(chosen.model_config), *train, *own]


@pytest.mark.parametrize("name", HELP)
def test_train_help_lists_every_setting_and_every_preset(t2i, name):
    text = help_of(t2i, name)
    for setting in shown_settings(name, next(iter(HELP[name]))):
        assert f"--{setting} " in text, setting
    about = " ".join(text.split("╭")[0].split())
    for preset in HELP[name]:
        assert preset in about
    for option in ("--preset", "--data", "--output", "--resume", "--text_column"):
        assert option in text
    assert all(f"--{name}" in text for name in ("split", "max_caption", "crop"))


def test_train_help_shows_docments_and_the_defaults_of_the_chosen_preset(t2i):
    text = " ".join(help_of(t2i, "imagen").replace("│", " ").split())
    assert "--size INT pixels of a side (default: 32)" in text
    assert "(default: 7000)" in text and "those of 'cpu-32'" in text
    text = " ".join(
        help_of(t2i, "imagen", "--preset", "tiny").replace("│", " ").split()
    )
    assert "--size INT pixels of a side (default: 16)" in text
    assert "(default: 300)" in text and "those of 'tiny'" in text


@pytest.mark.parametrize("name", HELP)
def test_train_help_explains_every_setting(t2i, name):
    text = " ".join(help_of(t2i, name).replace("│", " ").split())
    bare = [
        setting
        for setting in shown_settings(name, next(iter(HELP[name])))
        if re.search(
            rf"--{re.escape(setting)} (?:None|True|False|[^a-z(])*\(default", text
        )
    ]
    assert not bare


# ---- the program


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["generat", "a cat"], ["unknown command 'generat'", "'generate'"]),
        (["gen", "a cat"], ["did you mean 'generate'"]),
        (["a cat"], ["did you mean: t2i generate 'a cat'"]),
        (["\udcff"], ["unknown command '\\udcff'"]),
        (["generate", "a cat", "--no-overwrite"], ["did you mean '--overwrite'"]),
        (["train", "imagen", "--data", "\udcff"], ["--data '\\udcff' is no UTF-8"]),
        (["train", "imagen", "--output", "\udcff"], ["--output '\\udcff' is no UTF-8"]),
        (["--vresion"], ["unknown option '--vresion'", "'--version'"]),
        (["generate"], ["PROMPT"]),
        (["generate", "a cat", "--num-setps", "3"], ["did you mean '--num-steps'"]),
        (["generate", "a", "cat"], ["'cat'", "put the prompt in quotes"]),
        (["generate", "a cat", "--seed"], ["--seed"]),
        (["generate", "a cat", "--output", "--seed", "1"], ["--output"]),
        (["generate", "a \udcff cat"], ["not UTF-8"]),
        (["evaluate", "critters-32", "--splt", "val"], ["did you mean '--split'"]),
        (["models", "--all"], ["unknown option '--all'"]),
    ],
)
def test_a_command_line_that_cannot_be_read(t2i, tmp_path, arguments, parts):
    refused(t2i(*arguments), *parts)
    assert not list((tmp_path / "here").iterdir())


def test_a_second_image_does_not_overwrite_the_first(t2i, folder):
    names = []
    for seed in (0, 0, 1):
        options = ["--model", folder, "--num-images", 1, "--num-steps", 1]
        names.append(t2i("generate", "a cat", *options, "--seed", seed)[1].strip())
    stem = "a-cat-tiny-seed"
    assert names == [
        f"{stem}0-num-steps1.png",
        f"{stem}0-num-steps1-2.png",
        f"{stem}1-num-steps1.png",
    ]


def test_ctrl_c_ends_in_one_line_and_exit_code_130(t2i, folder, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Imagen, "sample", stop)
    code, out, err = t2i("generate", "a cat", "--model", folder)
    assert (code, out, err) == (130, "", "t2i: stopped\n")
    assert not list((tmp_path / "here").iterdir())


def test_a_missing_package_is_named_before_anything_is_written(
    t2i, tmp_path, monkeypatch
):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    refused(t2i(*TINY, "--output", "run"), "'accelerate'", "t2i-tutorial[train]")
    assert not list((tmp_path / "here").iterdir())


def test_an_unreadable_file_is_one_line(t2i, folder, monkeypatch):
    def deny(*_, **__):
        raise PermissionError(13, "Permission denied", "x.jsonl")

    monkeypatch.setattr("t2i_tutorial.hub.load_model", deny)
    refused(t2i("generate", "a cat", "--model", folder), "Permission denied", "x.jsonl")


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], [], ["generate", "--help"], ["train", "--help"]]
    + [["evaluate", "--help"], ["generat"], ["generate", "a", "--num-setps", "1"]],
    ids=" ".join,
)
def test_the_command_line_starts_without_torch(arguments):
    "`t2i --version`, help and a typing mistake answer at once."
    code = (
        "import sys; from t2i_tutorial.cli import main\n"
        f"try: main({arguments})\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 0


def test_errors_are_one_line_on_a_terminal_without_unicode(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "t2i_tutorial.cli", "generate", "a", "--seed", "x"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "---" not in result.stderr
    assert result.stderr.count("\n") == 1 and "--seed" in result.stderr


def test_a_long_name_is_a_short_line(t2i, folder):
    long = "x" * 5000
    code, _, err = t2i(
        "generate", "a cat", "--model", folder, "--output", f"{long}.png"
    )
    assert code == 2 and "too long" in err and len(err) < 400


def test_resume_does_not_overwrite_the_config_of_a_model(t2i, folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "model")
    before = (model / "config.json").read_bytes()
    refused(t2i(*TINY, "--output", model, "--resume"), "not the folder of a training")
    assert (model / "config.json").read_bytes() == before


def test_resume_notes_that_there_is_nothing_to_resume(t2i):
    code, _, err = t2i(*TINY, "--output", "rnu", "--resume")
    assert code == 0 and "no training in 'rnu' to resume" in err


def test_a_refused_resume_leaves_the_settings_of_the_training(t2i):
    assert t2i(*TINY, "--output", "run")[0] == 0
    before = load_json("run/config.json")
    refused(t2i(*TINY, "train.lr=0.5", "--output", "run", "--resume"), "lr=")
    assert load_json("run/config.json") == before


# ---- no file is replaced (F5)

SHORT = ["--num-images", 1, "--num-steps", 1]


def generated(t2i, *arguments) -> str:
    "The path that is printed."
    code, out, err = t2i("generate", *arguments)
    assert code == 0, err
    return out.strip()


def test_the_name_tells_models_prompts_and_settings_apart(t2i, folder, gan):
    options = ["--model", folder, *SHORT]
    names = [
        generated(t2i, "a cat", *options),
        generated(t2i, "a cat", "--model", gan, "--num-images", 1),
        generated(t2i, "a cat", *options, "--guidance-scale", 3, "--share-noise"),
        generated(t2i, "一只猫", *options),
        generated(t2i, "一只狗", *options),
    ]
    assert names == [
        "a-cat-tiny-seed0-num-steps1.png",
        "a-cat-gan-seed0.png",
        "a-cat-tiny-seed0-guidance-scale3-num-steps1-share-noise.png",
        "一只猫-tiny-seed0-num-steps1.png",
        "一只狗-tiny-seed0-num-steps1.png",
    ]
    assert sorted(p.name for p in Path().iterdir()) == sorted(names)


@pytest.mark.parametrize(
    "a, b",
    [
        ("a cat " * 150 + "sleeping", "a cat " * 150 + "jumping"),
        ("猫" * 300 + "大", "猫" * 300 + "小"),
        ("a cat \N{CAT FACE}", "a cat \N{DOG FACE}"),
        ("\N{CAT FACE}", "\N{DOG FACE}"),
    ],
)
def test_names_of_long_prompts_and_symbols_differ_and_fit(a, b):
    names = [cli._default_output(p, "owner/" + "m" * 90, 0, {}).name for p in (a, b)]
    assert names[0] != names[1] and all(len(n.encode()) < 240 for n in names)
    assert "/" not in "".join(names)


@pytest.mark.parametrize("prompt", ["CON", "../../etc/passwd", ".", "a:b*c?", "nul"])
def test_no_prompt_gives_a_name_that_a_system_reserves_or_a_path(prompt):
    name = str(cli._default_output(prompt, "critters-64", 0, {}))
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-critters-64-seed0\.png", name)


def test_a_file_system_without_unicode_gets_a_digest(monkeypatch):
    def encode(name):
        return name.encode("ascii")

    monkeypatch.setattr(cli.os, "fsencode", encode)
    names = {str(cli._default_output(p, "m", 0, {})) for p in ("一只猫", "一只狗")}
    assert len(names) == 2 and all(n.isascii() for n in names)


def test_an_output_that_exists_is_replaced_only_when_asked_for(t2i, folder):
    options = ["a cat", "--model", folder, *SHORT, "--output", "a.png"]
    Path("a.png").write_text("mine")
    refused(t2i("generate", *options), "'a.png' exists", "--overwrite")
    assert Path("a.png").read_text() == "mine"
    assert generated(t2i, *options, "--overwrite") == "a.png"
    assert Image.open("a.png").text["prompt"] == "a cat"
    assert [p.name for p in Path().iterdir()] == ["a.png"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_comes_meanwhile_is_kept(t2i, folder, monkeypatch, links):
    "Another process writes the same name while this one samples."
    sample = Imagen.sample

    def other(self, *arguments, **options):
        Path("a.png").write_text("mine")
        return sample(self, *arguments, **options)

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Imagen, "sample", other)
    if not links:
        monkeypatch.setattr(cli.os, "link", refuse)
    options = ["a cat", "--model", folder, *SHORT, "--output", "a.png"]
    assert generated(t2i, *options) == "a-2.png"
    assert Path("a.png").read_text() == "mine"
    assert sorted(p.name for p in Path().iterdir()) == ["a-2.png", "a.png"]


# ---- a stopped training can be looked at ("missing")


@pytest.mark.parametrize("words", [TINY, GAN], ids=["imagen", "gigagan"])
def test_a_checkpoint_of_a_training_generates(t2i, words):
    assert t2i(*words, "--output", "run")[0] == 0
    shutil.rmtree("run/model")  # as if it had been stopped
    newest = sorted(Path("run/checkpoints").iterdir())[-1]
    short = ["a cat", "--num-images", 1]
    for name in ("run", "run/checkpoints", newest):
        code, out, err = t2i("generate", *short, "--model", name)
        assert code == 0 and f"step {int(newest.name[5:])} of a training" in err
        assert out.startswith(f"a-cat-run-{newest.name}-seed0")
        assert Image.open(out.strip()).text["model"] == str(newest)
    assert len(list(Path().glob("*.png"))) == 3


def test_it_has_the_averaged_weights(t2i):
    assert t2i(*TINY, "train.lr=0.01", "--output", "run")[0] == 0
    config = apply_overrides(IMAGEN_PRESETS["tiny"].model_config, {})
    newest = Path("run/checkpoints/step-000004")
    averaged = load_weights(Imagen(config), newest).state_dict()
    raw = load_weights(Imagen(config), newest, ema=False).state_dict()
    with pytest.warns(UserWarning, match="step 4"):
        loaded = cli._load("run", "cpu").state_dict()
    assert all(torch.equal(v, averaged[k]) for k, v in loaded.items())
    assert not all(torch.equal(v, raw[k]) for k, v in loaded.items())


def test_a_training_without_a_checkpoint_is_told_from_a_model(t2i, folder, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    refused(t2i("generate", "a cat", "--model", tmp_path / "run"), "no checkpoint in")
    shutil.copytree(folder, tmp_path / "done" / "model")  # its checkpoints are gone
    assert "done" in generated(t2i, "a cat", "--model", tmp_path / "done", *SHORT)


def test_a_checkpoint_that_does_not_name_its_model_is_refused(t2i, monkeypatch):
    checkpoint = Path("run/checkpoints/step-000001")
    checkpoint.mkdir(parents=True)
    monkeypatch.setattr(
        "t2i_tutorial.checkpoints.load_checkpoint_settings",
        lambda path: ({"model": "Imagen", "step": 1}, {}),
    )
    refused(t2i("generate", "a cat", "--model", "run"), "does not say what model")


# ---- packages and files are looked at first (F11, F12)


@pytest.mark.parametrize(
    "missing, arguments",
    [
        ("accelerate", ["train", "gigagan", "--preset", "tiny"]),
        ("tensorboard", ["train", "imagen", "--preset", "tiny"]),
        ("wandb", ["train", "imagen", "train.log_with=wandb"]),
        ("datasets", ["train", "imagen", "--data", "."]),
        ("transformers", ["train", "imagen", "--preset", "report-64"]),
        ("torchmetrics", ["evaluate", "critters-32"]),
    ],
)
def test_a_missing_package_is_named_first(
    t2i, tmp_path, monkeypatch, missing, arguments
):
    "F12"
    monkeypatch.setattr(cli, "find_spec", lambda name: name != missing)
    refused(t2i(*arguments), f"needs the package '{missing}'", "pip install")
    assert not list((tmp_path / "here").iterdir())


def test_evaluate_says_at_once_that_lpips_will_be_skipped(t2i, monkeypatch):
    "F12"
    monkeypatch.setattr(cli, "find_spec", lambda name: name != "lpips")
    code, _, err = t2i("evaluate", "no-such-model")
    assert code == 2 and err.startswith("t2i: note: LPIPS will be skipped")


def test_an_unreadable_folder_is_one_line(t2i, monkeypatch, walls):
    "F11"

    def deny(path, *_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("t2i_tutorial.data.read_metadata", deny)
    refused(t2i("train", "imagen", "--data", walls), "Permission denied", str(walls))


def test_folders_in_place_of_files_are_one_line(t2i, folder, tmp_path):
    "F11: what cannot be opened for another reason than that it is missing."
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "config.json").unlink()
    (broken / "config.json").mkdir()
    refused(t2i("generate", "a cat", "--model", broken), "config.json")


# ---- the terminal


def run_t2i(*arguments, **options):
    "In a process of its own, with bytes."
    command = [sys.executable, "-m", "t2i_tutorial.cli", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, **options)


def test_a_reader_who_has_left_and_a_full_disk_give_no_traceback():
    "As in `t2i models | head -0`."
    reader, writer = os.pipe()
    os.close(reader)
    done = run_t2i("models", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            done = run_t2i("models", stdout=full)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1
        assert b"No space left" in done.stderr


def test_ctrl_c_while_the_program_starts_is_one_line():
    code = "import sys\nclass Stop:\n def find_spec(self, name, *_):\n"
    code += "  if name == 'tyro': raise KeyboardInterrupt\n"
    code += "sys.meta_path.insert(0, Stop())\nimport t2i_tutorial.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stderr) == (130, b"t2i: stopped\n")


def test_paths_and_tables_are_printed_on_a_terminal_without_unicode(monkeypatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with cli._lenient_output():
        print("0.1 ± 0.2")
        cli._print_path(Path("猫.png"))
    stream.flush()
    assert raw.getvalue() == b"0.1 \\xb1 0.2\n" + os.fsencode("猫.png") + b"\n"
    assert stream.errors == "strict"


@pytest.mark.parametrize("columns", ["5", "20", "200"])
def test_a_message_is_the_same_on_a_narrow_terminal(t2i, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    refused(
        t2i("generate", "a cat", "--num-images", "many"),
        "t2i generate: --num-images must be a whole number, not 'many'",
    )


@pytest.mark.parametrize(
    "words, part",
    [
        (["help"], "usage: t2i [--help]"),
        (["help", "generate"], "usage: t2i generate"),
        (["version"], "t2i "),
        (["-V"], "t2i "),
    ],
)
def test_help_and_version_as_words(t2i, words, part):
    code, out, err = t2i(*words)
    assert not code and out.startswith(part) and not err


def test_a_prompt_may_begin_with_a_hyphen_after_two(t2i, folder):
    name = generated(t2i, "--model", folder, *SHORT, "--", "-a cat")
    assert Image.open(name).text["prompt"] == "-a cat"


def test_a_model_in_a_folder_whose_name_is_no_utf8_is_one_line(t2i, folder, tmp_path):
    "F11: the library safetensors cannot open it."
    odd = os.fsdecode(b"\xff")
    try:
        shutil.copytree(folder, tmp_path / odd)
    except OSError:
        pytest.skip("this file system takes Unicode only")
    refused(t2i("generate", "a cat", "--model", tmp_path / odd, *SHORT), "safetensors")
    assert cli._readable(odd) == "?"  # what a PNG holds of it


def test_evaluate_searches_all_training_images_of_a_record(
    t2i, folder, tmp_path, quick
):
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    size = json.loads((model / "config.json").read_text())["size"]
    preset = {"num_images": 70, "model_config": {"size": size}}
    run = {"command": "t2i train imagen --preset tiny", "preset": preset}
    run["captions_digest"] = captions_digest(ImageTextDataset.from_critters(70, size))
    (model / "run.json").write_text(json.dumps(run))
    code, out, _ = t2i("evaluate", model, *SMALL, "--split", "val")
    assert code == 0 and "copies of 70 training images" in out


@pytest.mark.parametrize(
    "name", ["generate", "evaluate", "compare", "caption-check", "train"]
)
def test_help_explains_every_option(t2i, name):
    "Missing: `--help` of each command; those of a training's settings are above."
    options, _ = cli._COMMANDS[name]
    text = " ".join(t2i(name, "--help")[1].replace("│", " ").split())
    for f in fields(options):
        shown = re.search(rf"(?:--{f.name.replace('_', '-')}|{f.name.upper()})\b", text)
        about = (
            re.match(r"(?: [A-Z]+)* (\(default)?", text[shown.end() :])
            if shown
            else None
        )
        assert about and not about[1], f.name
