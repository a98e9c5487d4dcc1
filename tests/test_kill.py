"""A training that is killed at any moment goes on as if it had never been killed.

The whole of it is `benchmarks/kill_training.py`; here are two kills of it, and what it
found.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_trainings import QUICK, Fit, Line, fit, refusal, same_end

from t2i_tutorial import cli
from t2i_tutorial.checkpoints import LOCK_FILE, list_checkpoints
from t2i_tutorial.training import Trainer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def one_thread():
    "The same in this process and in its forks, where more threads would hang."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def killed(action, *args) -> int:
    "Run in a fork of this process that may kill itself; the exit code."
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action(*args)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_an_imagen_killed_while_saving_and_at_a_random_moment(tmp_path):
    "Weights, average, optimizer, generators, log, samples: every bit is the same."
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_training.py")]
    command += ["--fork", "--kills", "2", "--processes", "1", "--only", "imagen"]
    command += ["--output", str(tmp_path / "log.json")]
    command += ["--settings", "train.max_steps=6", "train.sample_every=6"]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    log = json.loads((tmp_path / "log.json").read_text())
    assert [k["kind"] for k in log["kills"]] == ["saving", "time"]
    assert all(t["differing"] == [] for t in log["trainings"]) and log["trainings"]


class Lazy(Fit):
    "A term of every fourth step only, as the penalty of a GAN."

    def training_losses(self, batch, rng, phase="model"):
        terms = super().training_losses(batch, rng, phase)
        self.step = getattr(self, "step", -1) + 1
        if self.step % 4 == 0:
            terms["penalty"] = terms["loss"].detach() * 2
        return terms


def test_the_log_keeps_the_last_value_of_a_term_also_after_resume(tmp_path):
    config = replace(QUICK, max_steps=8, save_every=3)
    fit(tmp_path / "whole", config, Lazy)
    lines = (tmp_path / "whole" / "losses.jsonl").read_text().splitlines()
    logged = [json.loads(line)["penalty"] for line in lines]
    assert len(set(logged[:4])) == 1 and len(set(logged)) == 2
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))

    class Stopped(Lazy):
        def training_losses(self, batch, rng, phase="model"):
            if self.calls == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().training_losses(batch, rng, phase)

    Stopped.__name__ = Lazy.__name__
    assert killed(fit, tmp_path / "cut", config, Stopped) == -signal.SIGKILL
    assert max(list_checkpoints(tmp_path / "cut")) == 6
    later = Lazy()
    later.step = 5  # six steps are made; the next penalty is that of the ninth
    fit(tmp_path / "cut", config, later, resume=True)
    assert same_end(tmp_path / "whole", tmp_path / "cut") == []


def test_unfinished_files_of_a_killed_process_are_removed(tmp_path):
    "Those of a running process, and what has another name, stay."
    fit(tmp_path)
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    (tmp_path / "samples").mkdir()
    left = [tmp_path / f".losses.png.{dead}-0a1b2c3d.tmp"]
    left += [tmp_path / "samples" / f".step-000004.png.{dead}-0a1b2c3d.tmp"]
    kept = [
        tmp_path / f".losses.png.{os.getpid()}-0a1b2c3d.tmp",
        tmp_path / ".mine.tmp",
    ]
    for path in left + kept:
        path.write_bytes(b"half")
    fit(tmp_path, replace(QUICK, max_steps=8), resume=True)
    assert not any(p.exists() for p in left) and all(p.exists() for p in kept)


def test_killed_after_the_last_checkpoint_a_training_finishes_its_files(tmp_path):
    "Resumed at its end, it removes what it was about to remove, and draws the curves."
    config = replace(QUICK, max_checkpoints=1)
    fit(tmp_path, config)
    curves, gone = tmp_path / "losses.png", tmp_path / "checkpoints"
    (gone / ".step-000004.0a1b2c3d.tmp").mkdir()
    (gone / ".step-000004.0a1b2c3d.tmp" / "config.json").write_text("{}")
    before = curves.read_bytes()
    curves.unlink()
    fit(tmp_path, config, resume=True)
    assert [p.name for p in gone.iterdir()] == ["step-000006"]
    assert curves.read_bytes() == before


def test_samples_are_written_before_the_checkpoint_of_the_same_step(tmp_path):
    "Killed between the two, a training makes both again."
    seen = []

    class Watched(Trainer):
        def save(self):
            seen.append(f"checkpoint {self.step}")
            super().save()

        def save_samples(self):
            seen.append(f"samples {self.step}")

    config = replace(QUICK, max_steps=4, sample_every=2)
    Watched(Fit(), Line(), config, tmp_path).fit()
    assert seen == ["samples 2", "checkpoint 2", "samples 4", "checkpoint 4"]


@pytest.mark.parametrize(
    "error",
    [
        "[/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:5299",
        "NCCL communicator was aborted on rank 1",
    ],
)
def test_a_process_whose_partner_was_killed_says_so_in_one_line(error):
    trainer = Trainer(Fit(), Line(), QUICK)
    trainer.accelerator = SimpleNamespace(num_processes=2)
    text = refusal(trainer._raise_if_left_alone, RuntimeError(error))
    assert text.startswith("step 1: another process") and "--resume" in text
    trainer._raise_if_left_alone(RuntimeError("mat1 and mat2 shapes"))
    trainer.accelerator.num_processes = 1
    trainer._raise_if_left_alone(RuntimeError(error))


def test_a_short_training_that_was_killed_can_be_repeated(tmp_path):
    "t2i train clip and classifier: nothing half-written has a name that counts."
    folder, options = tmp_path / "run", cli.TrainOptions(name="clip")

    def train(aside, end=lambda: None):
        for name in ("model.safetensors", "run.json"):
            (aside / name).write_text(name)
            end()

    def kill_itself():
        os.kill(os.getpid(), signal.SIGKILL)

    code = killed(cli._train_aside, lambda aside: train(aside, kill_itself), folder)
    assert code == -signal.SIGKILL
    assert {p.name for p in folder.iterdir()} == {LOCK_FILE, cli._UNFINISHED}
    cli._check_new_folder(options, str(folder))
    with pytest.warns(UserWarning, match="was left locked by process"):
        cli._train_aside(train, folder)
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "run.json"}
    text = refusal(cli._check_new_folder, options, str(folder))
    assert "is not empty" in text


def test_a_short_training_that_fails_leaves_nothing(tmp_path):
    def train(aside):
        (aside / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cli._train_aside(train, tmp_path / "run")
    assert not list(tmp_path.iterdir())
