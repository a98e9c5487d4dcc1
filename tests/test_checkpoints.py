"""Checkpoints: complete or absent, no pickle, and what cannot be used is refused."""

import copy
import json
import os
import pickle
import random
import shutil
import signal
import socket
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_trainings import QUICK, Duel, Fit, Line, fit, refusal
from torch import nn

from t2i_tutorial import checkpoints as C
from t2i_tutorial.checkpoints import (
    CHECKPOINT_VERSION,
    LOCK_FILE,
    Checkpoint,
    Checkpointer,
    atomic_directory,
    find_checkpoint,
    flatten_optimizer_state,
    get_rng_state,
    list_checkpoints,
    load_checkpoint,
    load_checkpoint_settings,
    load_optimizer_state,
    load_weights,
    lock_folder,
    prune_checkpoints,
    save_checkpoint,
    set_rng_state,
)
from t2i_tutorial.core import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A finished training."
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_random_states_survive_json():
    random.gauss(0, 1), np.random.randn()  # both keep a spare number
    tensors, values = get_rng_state()
    expected = (
        random.gauss(0, 1),
        np.random.randn(),
        float(torch.randn(1)),
        random.random(),
    )
    set_rng_state(tensors, json.loads(json.dumps(values)))
    assert (
        random.gauss(0, 1),
        np.random.randn(),
        float(torch.randn(1)),
        random.random(),
    ) == expected


@pytest.mark.parametrize(
    "file",
    [
        "model.safetensors",
        "optimizers.safetensors",
        "ema.safetensors",
        "rng.safetensors",
        "state.json",
        "config.json",
    ],
)
@pytest.mark.parametrize("cut", ["half", "empty", "gone", "flipped"])
def test_a_damaged_checkpoint(run, file, cut):
    "Cut off, emptied, missing, a bit changed: the file is named; the one before works."
    path = find_checkpoint(run) / file
    content = bytearray(path.read_bytes())
    if cut == "gone":
        path.unlink()
    elif cut == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2] if cut == "half" else b"")
    if (file, cut) == ("state.json", "flipped"):
        return  # it may still be valid JSON
    assert file in refusal(fit, run, resume=True)
    assert fit(run, resume=run / "checkpoints" / "step-000004").step == 6


def test_a_pickled_checkpoint_is_not_opened(run, tmp_path):
    "Neither by its name nor by its content; the pickle is not run."
    mark = tmp_path / "was-run"

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {mark}",))

    for name, write in {
        "a.pt": lambda p: torch.save({"x": Evil()}, p),
        "b.safetensors": lambda p: p.write_bytes(pickle.dumps(Evil())),
    }.items():
        write(tmp_path / name)
        assert "is a pickle" in refusal(fit, tmp_path / "new", resume=tmp_path / name)
    (tmp_path / "folder").mkdir()
    torch.save({"x": Evil()}, tmp_path / "folder" / "pytorch_model.bin")
    assert "is a pickle" in refusal(fit, tmp_path / "new", resume=tmp_path / "folder")
    path = find_checkpoint(run) / "model.safetensors"
    torch.save({"x": Evil()}, path)
    assert "model.safetensors" in refusal(fit, run, resume=True) and not mark.exists()


def test_another_programs_state_file(run):
    (find_checkpoint(run) / "state.json").write_text('["not", "ours"]')
    assert "no checkpoint: its state.json is of something else" in refusal(
        fit, run, resume=True
    )


def test_a_newer_format(run):
    state = json.loads((find_checkpoint(run) / "state.json").read_text())
    (find_checkpoint(run) / "state.json").write_text(json.dumps(state | {"format": 3}))
    assert "has format 3, this version reads format 2; upgrade" in refusal(
        fit, run, resume=True
    )


def test_another_models_checkpoint(run):
    class Wide(Fit):
        def __init__(self):
            super().__init__()
            self.net[0], self.net[3] = nn.Linear(1, 17), nn.Linear(17, 1)

    assert "another model (Fit): it has no 'g.weight'" in refusal(
        fit, run, model=Duel, resume=True
    )
    assert "'net.0.weight' has shape (16, 1) and not (17, 1)" in refusal(
        fit, run, model=Wide(), resume=True
    )
    assert "another model" in refusal(load_weights, Wide(), find_checkpoint(run))


def test_a_checkpoint_is_safetensors_and_json_only(run):
    files = {p.suffix for p in run.rglob("*") if p.is_file()}
    assert files <= {".safetensors", ".json", ".jsonl", ".png"}
    saved = load_checkpoint(find_checkpoint(run))
    assert (
        {"model", "ema", "optimizers", "rng"} == set(saved.tensors)
        and saved.state["step"] == 6
        and saved.config["max_steps"] == 6
    )
    assert (saved.state["epoch"], saved.state["batch"]) == (1, 1)


def test_tied_weights_are_saved(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)
            self.b.weight = self.a.weight

        def training_losses(self, batch, rng, phase="model"):
            return {"loss": (self.b(self.a(batch["x"])) - batch["y"]).square().mean()}

    trainer = fit(tmp_path, model=Tied())
    assert torch.equal(
        load_weights(Tied(), find_checkpoint(tmp_path), ema=False).b.weight,
        trainer.model.a.weight,
    )


def test_checkpoint_writing_is_whole_or_not_at_all(tmp_path):
    save_checkpoint(
        tmp_path / "step-000001",
        Checkpoint({"model": {"w": torch.zeros(2)}}, {"model": "Net", "step": 1}, {}),
    )
    with pytest.raises(UserError):
        save_checkpoint(
            tmp_path / "step-000001",
            Checkpoint(
                {"model": {"w": torch.ones(2)}}, {"model": "Net", "step": object()}, {}
            ),
        )
    assert (
        load_checkpoint(tmp_path / "step-000001").tensors["model"]["w"].tolist()
        == [0, 0]
        and len(list(tmp_path.iterdir())) == 1
    )


def test_a_folder_that_is_not_empty(run, tmp_path):
    assert "not empty" in (text := refusal(fit, run)) and "--resume" in text
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    assert "not empty" in refusal(
        fit, tmp_path / "photos"
    ) and "not the folder of a training" in refusal(
        fit, tmp_path / "photos", resume=True
    )
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    assert "needs a folder" in refusal(fit, resume=True) and "no checkpoint" in refusal(
        fit, tmp_path / "new", resume=tmp_path / "gone"
    )


def test_resume_where_nothing_is_yet_begins(tmp_path):
    assert fit(tmp_path / "new", resume=True).step == 6


def test_best_is_kept_beside_the_last(tmp_path):
    "The best checkpoint by validation outlives the last k."

    class Worse(Fit):
        def training_losses(self, batch, rng, phase="model"):
            terms = super().training_losses(batch, rng, phase)
            return (
                terms
                if self.training
                else {
                    "loss": torch.tensor([5.0, 1.0, 2.0, 3.0, 4.0, 6.0][self.looks()])
                }
            )

        def looks(self):
            self.n = getattr(self, "n", -1) + 1
            return self.n

    trainer = fit(
        tmp_path,
        replace(QUICK, save_every=1, max_checkpoints=2, val_batches=1),
        Worse(),
        validation=Line(8),
    )
    assert list(list_checkpoints(tmp_path)) == [
        2,
        5,
        6,
    ] and trainer.checkpointer.best == {
        "step": 2,
        "val_loss": 1.0,
    }
    assert (
        find_checkpoint(tmp_path, "best").name == "step-000002"
        and find_checkpoint(tmp_path).name == "step-000006"
    )
    model = load_weights(Worse(), find_checkpoint(tmp_path), ema=True)
    assert torch.equal(model.net[0].weight, trainer.ema.average["net.0.weight"])
    assert torch.equal(
        load_weights(Worse(), find_checkpoint(tmp_path), ema=False).net[0].weight,
        trainer.model.net[0].weight,
    )


def test_an_older_format_is_refused_in_one_line(run):
    "What an earlier release wrote has other names of files; it is not half-read."
    path = find_checkpoint(run)
    state = json.loads((path / "state.json").read_text())
    assert state["format"] == CHECKPOINT_VERSION == 2
    (path / "state.json").write_text(json.dumps(state | {"format": 1}))
    expected = "has format 1, this version reads format 2; train again"
    for action, args in [
        (load_checkpoint, (path,)),
        (load_weights, (Fit(), path)),
        (find_checkpoint, (run, "best")),
    ]:
        assert expected in refusal(action, *args)
    assert expected in refusal(fit, run, resume=True)


def test_no_best_without_validation(run, tmp_path):
    assert "use 'latest'" in refusal(find_checkpoint, run, "best")
    assert "train first" in refusal(find_checkpoint, tmp_path)
    assert "did you mean 'best'" in refusal(find_checkpoint, run, "bets")


def test_an_interrupted_directory_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        with atomic_directory(tmp_path / "a") as partial:
            (partial / "x").write_text("half")
            raise RuntimeError
    assert not list(tmp_path.iterdir())
    with atomic_directory(tmp_path / "a") as partial:
        (partial / "x").write_text("whole")
        assert not (tmp_path / "a").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_optimizer_state_survives():
    "The next update is that of torch's own state_dict, to the last bit."
    torch.manual_seed(0)
    nets = [nn.Linear(3, 2) for _ in range(3)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    first, ours, theirs = (torch.optim.AdamW(n.parameters(), lr=0.1) for n in nets)
    names = [dict(n.named_parameters()) for n in nets]
    x = torch.randn(4, 3)

    def update(net, optimizer):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    for _ in range(5):
        update(nets[0], first)
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    state = flatten_optimizer_state(first, names[0])
    assert set(state) == {
        f"{n}.{k}"
        for n in ("weight", "bias")
        for k in ("step", "exp_avg", "exp_avg_sq")
    }
    load_optimizer_state(ours, names[1], state)
    theirs.load_state_dict(copy.deepcopy(first.state_dict()))
    for net, optimizer in zip(nets, (first, ours, theirs)):
        update(net, optimizer)
    for net in nets[1:]:
        assert torch.equal(net.weight, nets[0].weight)


def test_checkpointer_keeps_the_newest_and_the_best(tmp_path):
    checkpointer = Checkpointer(tmp_path, max_checkpoints=2)
    assert str(checkpointer) == "no checkpoint was saved before"
    for step, loss in enumerate([3.0, 1.0, 2.0, 1.0, 4.0], 1):
        checkpointer.report_validation(step, loss)
        weights = {"model": {"w": torch.full((1,), float(step))}}
        checkpointer.save(step, weights, {"model": "Net"}, {})
    assert checkpointer.best == {"step": 2, "val_loss": 1.0}
    assert list(list_checkpoints(tmp_path)) == [2, 4, 5]
    assert find_checkpoint(tmp_path, "best") == checkpointer.path(2)
    assert checkpointer.find(True) == checkpointer.latest == checkpointer.path(5)
    assert repr(str(checkpointer.path(5))) in str(checkpointer)
    checkpointer.discard_after(4)
    assert list(list_checkpoints(tmp_path)) == [2, 4]
    assert Checkpointer(None).find(False) is None
    assert "needs a folder" in refusal(Checkpointer(None).find, True)


# ---- what a kill leaves behind


def killed_between_the_renames(path):
    "As `atomic_directory` leaves it, killed with the old moved aside and no new one."
    path.rename(path.with_name(f".{path.name}.12ab34cd.old"))
    path.with_name(f".{path.name}.12ab34cd.tmp").mkdir()


def test_a_checkpoint_that_was_moved_aside_is_found_again(run):
    "Killed while a checkpoint replaced one of the same step, its only copy was lost."
    latest = run / "checkpoints" / "step-000006"
    killed_between_the_renames(latest)
    moved = find_checkpoint(run)
    assert moved.name == ".step-000006.12ab34cd.old"  # found where it is
    assert load_checkpoint(moved).state["step"] == 6
    prune_checkpoints(run, 1)
    assert find_checkpoint(run) == moved  # what stands for a checkpoint is kept
    assert Checkpointer(run).find(True) == latest and latest.is_dir()
    assert fit(run, replace(QUICK, max_steps=8), resume=True).step == 8
    assert not list((run / "checkpoints").glob(".*"))


def test_the_window_is_real(tmp_path, monkeypatch):
    "Killed there, the older folder is the one that stands for the step."

    def write(value):
        tensors = {"model": {"w": torch.full((1,), value)}}
        state = {"model": "Net", "step": 3, "best": None}
        path = tmp_path / "checkpoints" / "step-000003"
        return save_checkpoint(path, Checkpoint(tensors, state, {}))

    write(1.0)
    rename, rmtree = Path.rename, shutil.rmtree

    def killed(path, target):
        if path.name.endswith(".tmp"):
            raise KeyboardInterrupt
        rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)  # no cleaning up
    with pytest.raises(KeyboardInterrupt):
        write(2.0)
    monkeypatch.undo()
    assert rmtree is shutil.rmtree
    saved = load_checkpoint(find_checkpoint(tmp_path))
    assert saved.tensors["model"]["w"].item() == 1.0


def test_a_kill_while_a_checkpoint_is_removed_leaves_no_half_of_it(run, monkeypatch):
    "Half-removed it kept its name, and was the newest one of a resumed training."
    removed = []

    def killed(path, **kwargs):
        removed.append(Path(path).name)
        (Path(path) / "state.json").unlink(missing_ok=True)

    monkeypatch.setattr(shutil, "rmtree", killed)
    Checkpointer(run).discard_after(4)
    assert list(list_checkpoints(run)) == [4]
    assert removed[0].startswith(".step-000006.") and removed[0].endswith(".tmp")
    monkeypatch.undo()
    fit(run, resume=True)
    assert not list((run / "checkpoints").glob(".*"))


def test_settings_are_read_without_the_tensors(run):
    path = find_checkpoint(run)
    (path / "model.safetensors").unlink()
    state, config = load_checkpoint_settings(path)
    assert state["step"] == 6 and config["max_steps"] == 6
    (path / "config.json").write_text("{}")
    text = refusal(load_checkpoint_settings, path)
    assert "config.json is cut off" in text
    state_without = {**state, "files": {}}
    (path / "state.json").write_text(json.dumps(state_without))
    assert "config.json was changed" in refusal(load_checkpoint_settings, path)


# ---- one process at a time in a folder


def another_process(folder):
    "A child of ours that holds the lock of a folder until it is killed."
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with lock_folder(folder):
            os.write(write, b"!")
            signal.pause()
    os.close(write)
    assert os.read(read, 1) == b"!"
    os.close(read)
    return pid


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test needs fork")
def test_another_process_locks_until_it_is_killed(tmp_path):
    "F10: refused in one line with its number; after kill -9 taken over with a note."
    pid = another_process(tmp_path / "run")
    try:
        text = refusal(lock_folder(tmp_path / "run").__enter__)
        assert f"is in use by process {pid} on {socket.gethostname()}, since 2" in text
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert (tmp_path / "run" / LOCK_FILE).exists()
    note = f"was left locked by process {pid} on .*; taken over"
    with pytest.warns(UserWarning, match=note), lock_folder(tmp_path / "run"):
        owner = json.loads((tmp_path / "run" / LOCK_FILE).read_text())
        assert owner["pid"] == os.getpid() and owner["started"]
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def left_by(pid, started, host=None):
    host = host or socket.gethostname()
    return json.dumps({"pid": pid, "host": host, "started": started, "since": "?"})


def test_a_number_that_another_program_has_now(tmp_path):
    "F10: the start of the process tells; where the system has no locks, it decides."
    pid = os.getppid()
    started = C._process_start(pid)
    (tmp_path / LOCK_FILE).write_text(left_by(pid, started))
    text = refusal(lock_folder(tmp_path).__enter__)
    assert f"in use by process {pid} on" in text
    for owner in (
        left_by(pid, "another start"),
        left_by(2**22 + 1, started),  # there is no such process
        left_by(os.getpid(), C._process_start(os.getpid())),  # left by our own number
        left_by(pid, started, "elsewhere"),  # the system's lock is free
    ):
        (tmp_path / LOCK_FILE).write_text(owner)
        with pytest.warns(UserWarning, match="taken over"), lock_folder(tmp_path):
            pass
    for damaged in ("", "{", "[]", '{"pid": "x"}'):
        (tmp_path / LOCK_FILE).write_text(damaged)
        with lock_folder(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_a_lock_in_a_lock_and_of_a_thread(tmp_path):
    texts = []

    def other():
        texts.append(refusal(lock_folder(tmp_path).__enter__))

    with lock_folder(tmp_path), lock_folder(None):
        with lock_folder(str(tmp_path) + "/."):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(30)
    assert "is in use by process" in texts[0] and not list(tmp_path.iterdir())


def test_a_folder_made_for_a_lock_goes_with_it(tmp_path):
    "Unless there is something in it by then."
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with lock_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "x").write_text("kept")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["x"]
    (tmp_path / "file").write_text("")
    text = refusal(lock_folder(tmp_path / "file").__enter__)
    assert "cannot write in" in text and "choose another place" in text


def test_the_state_of_another_optimizer_is_refused():
    "Adam would fail in the next step only."
    layer = nn.Linear(2, 3)
    parameters = dict(layer.named_parameters())
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = flatten_optimizer_state(optimizer, parameters)
    load_optimizer_state(optimizer, parameters, state)
    state["bias.exp_avg"] = torch.zeros(1, 3)
    with pytest.raises(UserError, match="'bias.exp_avg' has shape"):
        load_optimizer_state(optimizer, parameters, state)
