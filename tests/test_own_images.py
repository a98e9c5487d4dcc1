"""A model of one's own, from the folder of images to the shared model."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_encoders import save_tiny_encoders

from t2i_tutorial.core import UserError, load_json
from t2i_tutorial.diffusion.imagen import Imagen, train_imagen
from t2i_tutorial.experiments import model_card, share_model, write_model_card
from t2i_tutorial.robots import write_robots

TINY = ["train.max_steps=2", "train.warmup_steps=0", "train.log_with=none"]
TINY += ["train.batch_size=8", "train.save_every=2"]


@pytest.fixture(scope="module")
def hub_folders(tmp_path_factory):
    return save_tiny_encoders(tmp_path_factory.mktemp, ["robot", "red", "on", "legs"])


@pytest.fixture(scope="module")
def robots(tmp_path_factory):
    return write_robots(tmp_path_factory.mktemp("data") / "robots", 24, 16)


@pytest.fixture(scope="module")
def trained(robots, tmp_path_factory):
    "The folder of a training that began with another model."
    runs = tmp_path_factory.mktemp("runs")
    train_imagen("tiny", robots, runs / "first", TINY)
    words = [f"init_from={runs / 'first'}", "val_fraction=0.25", "train.flip=true"]
    train_imagen("tiny", robots, runs / "second", TINY + words)
    return runs / "second"


# ---- text encoders of the hub, by name (tiny ones, of the real classes)


@pytest.mark.parametrize("kind", ["t5", "clip"])
def test_the_same_line_takes_a_text_encoder_of_the_hub(
    kind, hub_folders, robots, tmp_path
):
    words = [*TINY, f"text_encoder={hub_folders[kind]}"]
    model, log = train_imagen("tiny", robots, tmp_path / "first", words)
    assert model.config.unet.text_dim == model.encoder.dim
    assert torch.isfinite(torch.tensor(log[-1]["loss"]))
    warm = [*words, f"init_from={tmp_path / 'first'}"]
    train_imagen("tiny", robots, tmp_path / "second", warm)
    run = load_json(tmp_path / "second" / "model" / "run.json")
    assert run["preset"]["init_from"] == str(tmp_path / "first")
    with pytest.raises(UserError, match="cannot start from 16 pixels") as e:
        train_imagen("tiny", robots, None, [*TINY, f"init_from={tmp_path / 'first'}"])
    assert "\n" not in str(e.value)


# ---- the card


def test_the_card_says_what_the_record_says_and_no_place_of_this_machine(
    trained, robots
):
    card = model_card(trained / "model", "cc-by-4.0", {"copies": "0 of 128"})
    head = re.match(r"---\n(.*?)\n---\n", card, re.S)[1]
    assert "license: cc-by-4.0" in head and "pipeline_tag: text-to-image" in head
    for part in (
        "# second",
        "| model | imagen, 16 pixels |",
        "`first`",
        "robots: 18 images with 18 captions, and 6 kept aside for validation",
        "| steps, batch | 2, 8 |",
        "validation loss",
        "| copies | 0 of 128 |",
    ):
        assert part in card, part
    assert str(robots.parent) not in card and str(trained.parent) not in card


@pytest.mark.parametrize("licence", ["", "CC BY", "a/b"])
def test_a_card_needs_a_licence(trained, licence):
    with pytest.raises(UserError, match="under a licence, for instance cc0") as e:
        model_card(trained / "model", licence)
    assert "\n" not in str(e.value)


def test_a_record_that_is_none_is_refused(trained, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained / "model" / name).read_bytes())
    (tmp_path / "run.json").write_text('{"preset": 3}')
    with pytest.raises(UserError, match="is no record of a training"):
        model_card(tmp_path, "mit")
    (tmp_path / "run.json").unlink()
    with pytest.raises(UserError):
        model_card(tmp_path, "mit")


def test_the_card_is_written_beside_the_model_with_a_sheet(trained):
    path = write_model_card(trained / "model", "mit")
    assert path.read_text(encoding="utf-8") == model_card(trained / "model", "mit")
    assert (path.parent / "samples.png").is_file()
    assert Imagen.from_pretrained(path.parent, "cpu").config.size == 16


# ---- the hub, without one


class StandIn:
    "What is used of huggingface_hub.HfApi; notes what it is handed."

    files: dict[str, bytes] = {}
    private = None

    def __init__(self, token=None):
        pass

    def create_repo(self, repo_id, private, exist_ok):
        StandIn.private = private
        if repo_id == "owner/unreachable":
            raise ConnectionError("no route\nto host")
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, repo_id, folder_path, **_):
        StandIn.files = {f.name: f.read_bytes() for f in Path(folder_path).iterdir()}
        return f"commit to {repo_id}"


def test_a_shared_model_is_whole_and_names_no_folder_of_this_machine(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.HfApi", StandIn)
    said = share_model(trained / "model", "owner/robots", "mit", private=True)
    assert said == "commit to owner/robots" and StandIn.private is True
    names = {"config.json", "model.safetensors", "README.md", "samples.png", "run.json"}
    assert set(StandIn.files) == names
    run = json.loads(StandIn.files["run.json"])
    words = run["command"].split()
    assert words[words.index("--data") + 1] == "robots" and "init_from=first" in words
    for name in names - {"samples.png", "model.safetensors"}:
        assert str(trained.parent.parent).encode() not in StandIn.files[name], name
    for name, content in StandIn.files.items():
        (tmp_path / name).write_bytes(content)
    a, b = (
        Imagen.from_pretrained(f, "cpu").sample(["a red robot"], num_steps=2)
        for f in (tmp_path, trained / "model")
    )
    assert torch.equal(a, b)


def test_sharing_fails_in_one_line(trained, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", StandIn)
    with pytest.raises(
        UserError, match="cannot push to .*no route to host.*login"
    ) as e:
        share_model(trained / "model", "owner/unreachable", "mit")
    assert "\n" not in str(e.value)
    StandIn.files = {}
    with pytest.raises(UserError, match="under a licence"):
        share_model(trained / "model", "owner/robots", "")
    assert StandIn.files == {}


def test_t2i_share(t2i, trained, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", StandIn)
    licence = ("--license", "mit")
    code, out, _ = t2i("share", trained, "owner/robots", *licence, "--private")
    assert code == 0 and out.strip() == "commit to owner/robots" and StandIn.private
    code, out, _ = t2i("share", trained, "owner/robots", *licence, "--card-only")
    assert code == 0 and out.strip().endswith("README.md")
    for words, part in (
        ((trained, "owner/robots"), "--license is missing"),
        ((trained, "owner/robots", "--license", "my own"), "under a licence"),
        ((trained, *licence), "no MODEL and OWNER/NAME; for instance"),
        (("nowhere", "owner/robots", *licence), "unknown model 'nowhere'"),
    ):
        code, out, err = t2i("share", *words)
        assert code == 2 and part in err and "Traceback" not in err and not out
