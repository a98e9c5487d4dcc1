"A training that goes on from a checkpoint with another setting, as chapter 26b does."

import sys
from pathlib import Path

import pytest
import torch
from small_trainings import equal

from t2i_tutorial.checkpoints import list_checkpoints, load_checkpoint
from t2i_tutorial.core import UserError
from t2i_tutorial.gan.gigagan import train_gigagan

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import change_setting  # noqa: E402

SHORT = (
    "num_images=64",
    "train.batch_size=8",
    "train.save_every=2",
    "train.sample_every=0",
    "train.log_with=none",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A training of four updates that kept its checkpoints."
    folder = tmp_path_factory.mktemp("runs") / "whole"
    settings = [*SHORT, "train.max_steps=4", "train.max_checkpoints=9"]
    train_gigagan("tiny", folder=folder, overrides=settings)
    return folder


def change(monkeypatch, run: Path, output: Path, *settings: str, step: int = 2) -> Path:
    "The command, for two updates of the smallest preset."
    words = ["change_setting.py", run, *settings, *SHORT, "--preset", "tiny"]
    words += ["--step", step, "--updates", 2, "--output", output]
    monkeypatch.setattr(sys, "argv", [str(w) for w in words])
    change_setting.main()
    return output


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    "All tensors of a checkpoint."
    saved = load_checkpoint(list_checkpoints(folder)[step])
    return {
        f"{file} {k}": v for file, ts in saved.tensors.items() for k, v in ts.items()
    }


def test_with_the_old_value_it_is_the_training_that_went_on(
    trained, tmp_path, monkeypatch
):
    folder = change(monkeypatch, trained, tmp_path / "same", "clip_weight=0.1")
    assert equal(weights(folder, 4), weights(trained, 4))


@pytest.mark.parametrize("setting", ["clip_weight=0", "train.seed=1"])
def test_it_differs_by_the_setting_and_from_the_step_on(
    trained, tmp_path, monkeypatch, setting
):
    folder = change(monkeypatch, trained, tmp_path / "other", setting)
    assert list(list_checkpoints(folder)) == [2, 4]
    assert equal(weights(folder, 2), weights(trained, 2))
    assert not equal(weights(folder, 4), weights(trained, 4))
    ended = weights(folder, 4)
    change(monkeypatch, trained, tmp_path / "other", setting)  # nothing is left to do
    assert equal(weights(folder, 4), ended)


def test_a_step_without_a_checkpoint_is_one_line(trained, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="has no checkpoint 3"):
        change(monkeypatch, trained, tmp_path / "none", "clip_weight=0", step=3)
    assert not (tmp_path / "none").exists()
