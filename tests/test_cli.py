"""`t2i` as people use it, and as people mistype it: a mistake is one line, exit code 2, and nothing is written."""

import json
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from PIL import Image

from t2i_tutorial import cli
from t2i_tutorial.core import load_json, save_json
from t2i_tutorial.diffusion.imagen import Imagen, imagen_preset
from t2i_tutorial.gan.gigagan import GigaGAN, gigagan_preset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A tiny untrained model, saved as any other."
    torch.manual_seed(0)
    return Imagen(imagen_preset("tiny").model_config).save_pretrained(
        tmp_path_factory.mktemp("model") / "tiny"
    )


@pytest.fixture
def t2i(tmp_path, monkeypatch, capsys):
    "Run a command in an empty folder: (exit code, standard output, standard error)."
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as e:
            code = e.code
        return code, *capsys.readouterr()

    return run


def refused(result, *parts):
    "Exit code 2, one line, these words in it."
    code, out, err = result
    lines = [
        l
        for l in err.replace("\r", "\n").splitlines()
        if l.strip() and not l.startswith("t2i: note:")
    ]
    assert code == 2 and len(lines) == 1 and not out and "Traceback" not in err, (
        code,
        out,
        err,
    )
    for part in parts:
        assert part in lines[0], lines[0]


# ---- draw


def test_draw_writes_one_png_and_prints_its_path(t2i, folder, tmp_path):
    code, out, err = t2i(
        "draw",
        "a blue and red dragon",
        "--model",
        folder,
        "--number",
        3,
        "--steps",
        2,
        "--size",
        64,
        "--seed",
        7,
    )
    files = list((tmp_path / "here").iterdir())
    assert not err.count("t2i:"), err
    assert (
        code == 0
        and out.strip() == files[0].name == "a-blue-and-red-dragon-seed7.png"
        and len(files) == 1
    )
    picture = Image.open(files[0])
    assert picture.size == (
        3 * 64 + 4 * 8,
        64 + 2 * 8,
    )  # three pictures of 16 pixels, four times enlarged, two pixels between
    assert (
        picture.text["prompt"] == "a blue and red dragon"
        and picture.text["seed"] == "7"
        and picture.text["steps"] == "2"
    )
    assert float(picture.text["guidance_scale"]) == imagen_preset(
        "tiny"
    ).model_config.guidance_scale and picture.text["model"] == str(folder)


def test_draw_is_the_same_for_a_seed_and_another_for_another(t2i, folder):
    for name, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
        assert (
            t2i(
                "draw",
                "a cat",
                "--model",
                folder,
                "--number",
                1,
                "--steps",
                2,
                "--seed",
                seed,
                "--out",
                name,
            )[0]
            == 0
        )
    a, b, c = (Image.open(n).tobytes() for n in ("a.png", "b.png", "c.png"))
    assert a == b != c


def test_an_unknown_word_is_noted_and_drawn_all_the_same(t2i, folder):
    code, _, err = t2i(
        "draw", "a purpel cat", "--model", folder, "--number", 1, "--steps", 1
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
            ["a cat", "--steps", "0"],
            ["steps must be a whole number from 1 to 1000, not 0"],
        ),
        (["a cat", "--steps", "1001"], ["not 1001"]),
        (["a cat", "--steps", "many"], ["--steps", "'many'"]),
        (["a cat", "--text-scale", "-1"], ["text scale", "-1.0"]),
        (["a cat", "--text-scale", "nan"], ["text scale", "nan"]),
        (["a cat", "--text-scale", "inf"], ["text scale", "inf"]),
        (["a cat", "--seed", "lucky"], ["--seed", "'lucky'"]),
        (["a cat", "--seed", "-1"], ["seed must be a whole number", "-1"]),
        (["a cat", "--number", "0"], ["--number", "0"]),
        (["a cat", "--size", "1"], ["--size", "1"]),
        (["a cat", "--sampler", "ddmp"], ["did you mean 'ddpm'"]),
        (["a cat", "--device", "gpu"], ["unknown device 'gpu'"]),
        (["a cat", "--out", "no/such/folder/a.png"], ["does not exist"]),
        (["a cat", "--out", "a.jpg"], ["must end in .png"]),
        (["a cat", "--out", "folder.png"], ["is a folder"]),
    ],
)
def test_draw_refuses(t2i, folder, tmp_path, arguments, parts):
    (tmp_path / "here" / "folder.png").mkdir()
    refused(t2i("draw", "--model", folder, *arguments), *parts)
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["folder.png"]


def test_draw_refuses_a_folder_that_cannot_be_written(
    t2i, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(cli.os, "access", lambda *_: False)  # root may write anywhere
    refused(
        t2i("draw", "a cat", "--model", folder, "--out", tmp_path / "a.png"),
        "cannot be written",
    )


def test_draw_names_the_nearest_model(t2i, monkeypatch, folder):
    monkeypatch.setattr(
        "t2i_tutorial.models.bundled_models", lambda: {"critters-32": folder}
    )
    refused(
        t2i("draw", "a cat", "--model", "criters-32"),
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


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "harm, part",
    [
        (cut, "no whole safetensors file"),
        (newer, "format 99"),
        (foreign, "'parti'"),
        (unconfigured, "holds no config.json"),
        (listed, "unknown family"),
        (pickled, "pickle"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_draw_refuses_a_damaged_model(t2i, folder, tmp_path, harm, part):
    broken = shutil.copytree(folder, tmp_path / "broken")
    harm(broken)
    refused(t2i("draw", "a cat", "--model", broken), part)
    assert not list((tmp_path / "here").iterdir())


def test_draw_refuses_a_pickled_checkpoint(t2i, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04")
    refused(t2i("draw", "a cat", "--model", tmp_path / "weights.pt"), "pickle")


# ---- draw with the other family


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    "A tiny untrained GigaGAN."
    torch.manual_seed(0)
    return GigaGAN(gigagan_preset("tiny").model_config).save_pretrained(
        tmp_path_factory.mktemp("model") / "gan"
    )


def test_one_command_draws_with_both_families(t2i, gan, tmp_path):
    code, out, err = t2i(
        "draw",
        "a blue and red dragon",
        "--model",
        gan,
        "--number",
        2,
        "--truncation",
        0.5,
        "--size",
        32,
    )
    picture = Image.open(tmp_path / "here" / out.strip())
    assert (
        code == 0
        and picture.text["truncation"] == "0.5"
        and "steps" not in picture.text
        and picture.size == (2 * 32 + 3 * 4, 32 + 2 * 4)
    )


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (
            ["--steps", "5"],
            [
                "--steps means nothing to this model, whose family is gigagan",
                "it knows --truncation",
            ],
        ),
        (["--text-scale", "2"], ["--text-scale means nothing"]),
        (["--sampler", "dpm"], ["--sampler means nothing"]),
        (["--truncation", "2"], ["truncation must be from 0 to 1, not 2.0"]),
        (["--truncation", "nan"], ["truncation must be", "nan"]),
        (["--truncation", "some"], ["--truncation", "'some'"]),
        (["--seed", "-1"], ["seed must be a whole number"]),
    ],
)
def test_draw_with_a_gan_refuses(t2i, gan, tmp_path, arguments, parts):
    refused(t2i("draw", "a cat", "--model", gan, *arguments), *parts)
    assert not list((tmp_path / "here").iterdir())


def test_an_imagen_has_no_truncation(t2i, folder):
    refused(
        t2i("draw", "a cat", "--model", folder, "--truncation", "0.5"),
        "--truncation means nothing to this model, whose family is imagen",
        "--text-scale",
    )


# ---- train

GAN = [
    "train",
    "gigagan",
    "--preset",
    "tiny",
    "steps=2",
    "batch_size=4",
    "num_images=16",
    "save_every=2",
    "tracker=none",
]


def test_train_a_gan_and_draw_with_it(t2i):
    code, out, _ = t2i(*GAN, "--out", "run")
    assert code == 0 and load_json("run/model/run.json")["command"].startswith(
        "t2i train gigagan --preset tiny steps=2"
    )
    refused(t2i(*GAN, "--out", "run"), "not empty", "--resume")
    assert t2i("draw", "a cat", "--model", "run/model", "--number", 1)[0] == 0


TINY = [
    "train",
    "imagen",
    "--preset",
    "tiny",
    "steps=4",
    "warmup_steps=1",
    "batch_size=4",
    "num_images=16",
    "save_every=2",
    "tracker=none",
]


def test_train_resumes_and_its_model_draws(t2i, tmp_path):
    code, out, _ = t2i(*TINY, "--out", "run")
    assert code == 0 and "run/model" in out
    run = load_json("run/model/run.json")
    assert (
        run["command"].startswith("t2i train imagen --preset tiny steps=4")
        and run["history"][-1]["step"] == 4
    )
    refused(t2i(*TINY, "--out", "run"), "not empty", "--resume")
    assert t2i(*TINY, "--out", "run", "--resume")[0] == 0
    assert (
        t2i("draw", "a cat", "--model", "run/model", "--steps", 1, "--number", 1)[0]
        == 0
    )


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["imagen", "stepps=3"], ["unknown setting 'stepps'", "did you mean 'steps'"]),
        (["imagen", "steps"], ["write it as name=value"]),
        (["imagen", "--preset", "cpu32"], ["did you mean 'cpu-32'"]),
        (["imagen", "batch_size=0"], ["batch_size must be at least 1"]),
        (["imagen", "lr=-1"], ["lr must be"]),
        (
            ["imagen", "prediction_type=eps"],
            ["target='eps' cannot be used with zero_terminal_snr=True"],
        ),
        (
            ["imagen", "num_images=8", "batch_size=64"],
            ["batch_size 64 is more than the 8 pictures"],
        ),
        (["imagen", "cond_drop_prob=2"], ["cond_drop_prob must be from 0 to 1"]),
        (["imagen", "--data", "no-such-folder/"], ["no-such-folder"]),
        (["imagen", "size=33"], ["size must be a multiple of"]),
        (["gigagan", "matsch=0"], ["did you mean 'match'"]),
        (["gigagan", "--preset", "cpu32"], ["did you mean 'cpu-32'"]),
        (["gigagan", "match=2"], ["match must be from 0 to 1"]),
        (["gigagan", "loss=hinge"], ["unknown loss 'hinge'"]),
        (
            [
                "gigagan",
                "--preset",
                "tiny",
                "init_from=nowhere",
                "num_images=16",
                "batch_size=8",
            ],
            ["'nowhere'"],
        ),
        (["gigagan", "size=64"], ["size is 64"]),
        (["imagin"], ["unknown training 'imagin'", "did you mean 'imagen'"]),
        (["judge", "stepps=3"], ["did you mean 'steps'"]),
        (["clip", "steps=x"], ["steps must be a whole number"]),
        (["clip", "--resume"], ["no --resume"]),
        (["judge", "--preset", "critters"], ["unknown preset 'critters'"]),
    ],
)
def test_train_refuses(t2i, tmp_path, arguments, parts):
    refused(t2i("train", *arguments), *parts)
    assert not list((tmp_path / "here").iterdir())


def test_train_refuses_captionless_pictures_and_full_folders(t2i, tmp_path):
    pictures = tmp_path / "here" / "mine"
    pictures.mkdir()
    Image.new("RGB", (40, 40)).save(pictures / "a.png")
    refused(t2i("train", "imagen", "--data", "mine"), "metadata")
    for name in ("clip", "judge"):
        refused(t2i("train", name, "--out", "mine"), "not empty")
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
        "--out",
        "run",
    )
    assert code == 0 and load_json("run/model/config.json")["size"] == 16


# ---- models and evaluate


def test_models_lists_what_is_bundled(t2i, monkeypatch, folder):
    monkeypatch.setattr(
        "t2i_tutorial.models.bundled_models", lambda: {"critters-tiny": folder}
    )
    code, out, _ = t2i("models")
    assert code == 0 and "critters-tiny  imagen, 16 x 16 pixels" in out


def test_evaluate_prints_and_saves_the_table(t2i, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code, out, _ = t2i(
            "evaluate", folder, "--number", 16, "--steps", 1, "--out", "report.json"
        )
    assert code == 0 and "species" in out and load_json("report.json")["n"] == 16
    refused(t2i("evaluate", folder, "--split", "tset"), "did you mean 'test'")
    refused(t2i("evaluate", folder, "--out", "report.txt"), "must end in .json")


def test_the_command_line_starts_without_torch():
    "`t2i --version` and a typing mistake answer at once."
    code = "import sys; from t2i_tutorial.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True).returncode
        == 0
    )
