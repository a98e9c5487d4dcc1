"""The training loop: it goes on as if never stopped, clips what it updates,
hides no error, and refuses bad input in one line."""

import errno
import json
import math
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_trainings import QUICK, Duel, Fit, Line, equal, fit, refusal, same_end
from torch import nn

from t2i_tutorial.checkpoints import (
    LOCK_FILE,
    find_checkpoint,
    get_rng_state,
    list_checkpoints,
    load_checkpoint,
    lock_folder,
)
from t2i_tutorial.core import UserError
from t2i_tutorial.data import ImageTextDataset
from t2i_tutorial.training import (
    EMA,
    RESUME_MUTABLE_FIELDS,
    InfiniteBatches,
    TinyDenoiser,
    TrainConfig,
    Trainer,
    TrainingInterrupted,
    apply_overrides,
    check_finite,
    clip_grad_norm,
    evaluation_mode,
    lr_at_step,
    setting_names,
    step_rng,
)

# ---- stopping and going on


def killed_runs(folder):
    """Run as a program of its own: one training that is never stopped, and one that is
    killed ten times. Each runs in a fork of this process."""
    torch.set_num_threads(1)
    folder = Path(folder)
    fit(folder / "warm")  # imports all there is to import, once, before the forks
    config = replace(QUICK, max_steps=240, save_every=4, sample_every=0)

    def child(name, die_before_rename=False):
        pid = os.fork()
        if pid:
            return pid

        def rename(path, target):
            if target.name == "step-000040":
                os.kill(os.getpid(), signal.SIGKILL)
            os.rename(path, target)

        if die_before_rename:
            Path.rename = rename
        try:
            torch.set_num_threads(1)
            fit(folder / name, config, resume=True, validation=Line(16))
            os._exit(0)
        except BaseException as e:
            print(repr(e), flush=True)
            os._exit(1)

    def end(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert end(child("killed", die_before_rename=True)) == -signal.SIGKILL
    half = [p.name[:12] for p in (folder / "killed" / "checkpoints").glob(".step-*")]
    assert half == [".step-000040"] and max(list_checkpoints(folder / "killed")) == 36
    print("killed at the last moment of writing step 40: it does not count", flush=True)
    start = time.time()
    assert end(child("whole")) == 0
    whole = time.time() - start
    draw = random.Random(int.from_bytes(os.urandom(4), "big"))
    kills, names, reached = 0, ["killed"], set()
    while kills < 10:
        pid = child(names[-1])
        time.sleep(draw.uniform(0.02, 0.2 * whole))
        os.kill(pid, signal.SIGKILL)
        code = end(pid)
        if code == 0:  # it was faster than we: the kills go on in another training
            names.append(f"killed{len(names)}")
            continue
        assert code == -signal.SIGKILL
        kills += 1
        last = max(list_checkpoints(folder / names[-1]), default=0)
        half = len(list((folder / names[-1]).glob("checkpoints/.step-*")))
        reached.add((names[-1], last))
        print(
            f"kill {kills}: step {last} of {names[-1]}, {half} incomplete", flush=True
        )
    assert len(reached) >= 4, f"the kills came too early: {reached}"
    assert end(child(names[-1])) == 0
    differing = [d for n in names for d in same_end(folder / "whole", folder / n)]
    print("differing:", differing, flush=True)


def test_killed_ten_times_equals_never_killed(tmp_path):
    """SIGKILL at ten random moments: every bit is the same (MI-11).

    Weights, average, optimizer, random generators, best checkpoint, log.
    """
    done = subprocess.run(
        [sys.executable, __file__, "killed_runs", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=250,
    )
    print(done.stdout)
    assert done.returncode == 0 and "differing: []" in done.stdout, (
        done.stdout + done.stderr
    )
    assert max(list_checkpoints(tmp_path / "killed")) == 240
    assert not list(
        (tmp_path / "killed").glob("checkpoints/.step-*")
    )  # nothing incomplete is left


@pytest.mark.parametrize("at", [1, 5, 6, 7, 11])
def test_resume_from_any_step_is_exact(tmp_path, at):
    "Steps before, at and after the end of an epoch, which has 5 batches."
    config = replace(QUICK, max_steps=12, save_every=1, max_checkpoints=20)
    fit(tmp_path / "whole", config, validation=Line(16))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step, path in list_checkpoints(tmp_path / "cut").items():
        if step > at:
            shutil.rmtree(path)
    fit(tmp_path / "cut", config, seed=99, resume=True, validation=Line(16))
    assert same_end(tmp_path / "whole", tmp_path / "cut") == []


def test_resume_from_an_earlier_checkpoint_removes_the_later_ones(tmp_path):
    config = replace(QUICK, max_checkpoints=5)
    fit(tmp_path / "whole", config)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    early = tmp_path / "again" / "checkpoints" / "step-000002"
    with pytest.raises(RuntimeError):
        fit(tmp_path / "again", config, Fit("error", bad_at=1), resume=early)
    assert list(list_checkpoints(tmp_path / "again")) == [2]
    fit(tmp_path / "again", config, resume=early)
    assert (
        list(list_checkpoints(tmp_path / "again")) == [2, 4, 6]
        and same_end(tmp_path / "whole", tmp_path / "again") == []
    )


def test_another_seed_or_one_weight_changed_is_not_the_same(tmp_path):
    "The comparison of the tests above can fail."
    a, b = fit(tmp_path / "a"), fit(tmp_path / "b", replace(QUICK, seed=1))
    assert {"model", "ema", "optimizers", "log"} <= set(
        same_end(tmp_path / "a", tmp_path / "b")
    )
    assert a.step == b.step == 6


def test_more_steps_later_equal_more_steps_at_once(tmp_path):
    "With a constant learning rate, six steps and six more are twelve."
    config = replace(QUICK, max_steps=12)
    fit(tmp_path / "whole", config)
    fit(tmp_path / "parts")
    fit(tmp_path / "parts", config, seed=5, resume=True)
    assert same_end(tmp_path / "whole", tmp_path / "parts") == []


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    "One Ctrl-C: the step is finished and saved; going on is exact."
    config = replace(QUICK, max_steps=20, save_every=7)

    class Pressed(Fit):
        def training_losses(self, batch, rng, phase="model"):
            if self.calls == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return super().training_losses(batch, rng, phase)

    fit(tmp_path / "whole", config)
    before = signal.getsignal(signal.SIGINT)
    text = refusal(fit, tmp_path / "cut", config, Pressed, kind=TrainingInterrupted)
    assert (
        "step 5 of 20" in text
        and "resume=True" in text
        and "--resume" in text
        and issubclass(TrainingInterrupted, KeyboardInterrupt)
    )
    assert (
        list(list_checkpoints(tmp_path / "cut")) == [5]
        and signal.getsignal(signal.SIGINT) is before
    )
    fit(tmp_path / "cut", config, seed=3, resume=True)
    assert same_end(tmp_path / "whole", tmp_path / "cut") == []


def pressed_at(call):
    "A model during whose so-many-th update Ctrl-C is pressed, once."

    class Pressed(Fit):
        def training_losses(self, batch, rng, phase="model"):
            if self.calls == call:
                os.kill(os.getpid(), signal.SIGINT)
            return super().training_losses(batch, rng, phase)

    Pressed.__name__ = "Fit"  # checkpoints hold the name of the class
    return Pressed


@pytest.mark.parametrize("resume", [True, False])
def test_going_on_with_the_same_trainer_after_ctrl_c(tmp_path, resume):
    "The log holds every step once, in memory and on the disk; the end is the same."
    config = replace(QUICK, max_steps=10, save_every=4)
    fit(tmp_path / "whole", config)
    torch.manual_seed(0)
    trainer = Trainer(pressed_at(4)(), Line(), config, tmp_path / "cut")
    with pytest.raises(TrainingInterrupted):
        trainer.fit()
    assert [r["step"] for r in trainer.logger.history] == [1, 2, 3, 4, 5]
    history = trainer.fit(resume)
    assert [r["step"] for r in history] == list(range(1, 11))
    assert same_end(tmp_path / "whole", tmp_path / "cut") == []


def test_resuming_the_same_trainer_from_an_earlier_checkpoint(tmp_path):
    "The log is taken back to that step first."
    config = replace(QUICK, max_checkpoints=5)
    trainer = fit(tmp_path / "again", config)
    history = trainer.fit(resume=trainer.checkpointer.path(2))
    assert [r["step"] for r in history] == [1, 2, 3, 4, 5, 6]
    fit(tmp_path / "whole", config)
    assert same_end(tmp_path / "whole", tmp_path / "again") == []


def test_second_ctrl_c_stops_at_once(tmp_path):
    class Stuck(Fit):
        def training_losses(self, batch, rng, phase="model"):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
            raise AssertionError("not stopped")

    with pytest.raises(KeyboardInterrupt) as e:
        fit(tmp_path / "run", model=Stuck())
    assert not isinstance(e.value, TrainingInterrupted)


def test_training_in_a_thread_works():
    "Only the main thread may listen for Ctrl-C; another one trains without."
    done = []
    thread = threading.Thread(target=lambda: done.append(fit().step))
    thread.start()
    thread.join(30)
    assert done == [6]


# ---- several processes


def two_processes(folder):
    "Run as a program of its own: the same training in one process and in two, on gloo."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]

    def child(rank, world, name):
        pid = os.fork()
        if pid:
            return pid
        if world > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "ACCELERATE_USE_CPU": "true",
            }
        torch.set_num_threads(1)
        code = 1
        try:
            config = replace(
                QUICK,
                max_steps=30,
                batch_size=8,
                gradient_accumulation_steps=2,
                save_every=10,
            )
            first = fit(
                Path(folder) / name, config, seed=rank, validation=Line(16)
            )  # the second process starts from other weights
            assert first.accelerator.num_processes == world and (
                "gloo" in torch.distributed.get_backend() if world > 1 else True
            )
            again = fit(
                Path(folder) / f"{name}-again", config, seed=7 * rank
            )  # a second training in the same processes
            torch.save(
                [p.detach() for p in again.model.parameters()],
                f"{folder}/{name}-{rank}.weights",
            )
            code = 0
        except BaseException as e:
            print(rank, repr(e), flush=True)
        os._exit(code)

    pids = [child(0, 1, "one"), *(child(r, 2, "two") for r in range(2))]
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)


def test_two_processes_give_the_losses_of_one(tmp_path):
    """Gloo on the CPU, the same global batch: losses, validation and weights to 1e-5,
    and both processes hold the same weights."""
    done = subprocess.run(
        [sys.executable, __file__, "two_processes", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (
        [json.loads(line) for line in open(tmp_path / n / "losses.jsonl")]
        for n in ("one", "two")
    )
    assert (
        len(one) == len(two) == 30
        and one[-1].keys() == two[-1].keys()
        and "val_loss" in one[-1]
    )
    worst = max(abs(a[k] - b[k]) for a, b in zip(one, two) for k in a)
    print("largest difference in the log:", worst)
    assert worst < 1e-5
    w = {n: torch.load(tmp_path / f"{n}.weights") for n in ("one-0", "two-0", "two-1")}
    assert all(torch.equal(a, b) for a, b in zip(w["two-0"], w["two-1"]))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(w["one-0"], w["two-0"]))
    assert (
        load_checkpoint(find_checkpoint(tmp_path / "two")).state["best"]["step"]
        == load_checkpoint(find_checkpoint(tmp_path / "one")).state["best"]["step"]
    )


def test_pieces_give_the_gradient_of_the_whole():
    "Accumulation over four parts is one batch, for a model without randomness."

    class Still(Fit):
        def training_losses(self, batch, rng, phase="model"):
            return {"loss": (self.net(batch["x"]) - batch["y"]).square().mean()}

    def run(parts):
        torch.manual_seed(0)
        model = Still()
        model.net[1].p = 0.0
        trainer = fit(
            config=replace(QUICK, gradient_accumulation_steps=parts), model=model
        )
        return model.state_dict() | {
            "norms": torch.tensor([r["grad_norm"] for r in trainer.logger.history])
        }

    a, b = run(1), run(4)
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


# ---- what a step does


@pytest.mark.parametrize("lr_schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 10])
def test_schedule_equals_transformers(lr_schedule, warmup_steps):
    """Ours after n updates is theirs asked at n + 1 with one step more.

    No update is wasted on a learning rate of zero.
    """
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    name = lr_schedule
    if name == "constant":
        name = "constant_with_warmup"
    theirs = get_scheduler(name, optimizer, warmup_steps, 51)
    config = TrainConfig(
        max_steps=50, warmup_steps=warmup_steps, lr_schedule=lr_schedule, lr=0.01
    )
    model = nn.Linear(1, 1)
    trainer = Trainer(model, Line(80), config)
    trainer.optimizers = {"model": torch.optim.AdamW(model.parameters())}
    trainer.optimizers["model"].param_groups[0]["base"] = {"lr": 0.01}
    for step in range(50):
        optimizer.step()
        theirs.step()
        trainer.step = step
        lr = trainer._set_lr("model")["lr"]
        assert lr == lr_at_step(step, 0.01, 50, warmup_steps, lr_schedule) > 0
        assert lr == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)


def test_ema_equals_torch():
    "The numbers of torch's AveragedModel, with our growing beta and with a fixed one."
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = nn.Linear(3, 2)

    def growing(old, new, n):
        return old.lerp(new, 1 - min(0.9, (1 + int(n)) / (10 + int(n))))

    ramp = AveragedModel(model, avg_fn=growing)
    plain = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for theirs in (ramp, plain):
        theirs.n_averaged.zero_()
        theirs.update_parameters(model)
        theirs.n_averaged.fill_(0)
    ours = EMA(dict(model.named_parameters()), 0.9)
    long = EMA(dict(model.named_parameters()), 0.9)
    for k in range(200):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        long.num_updates = 10**6
        ours.update()
        long.update()
        ramp.n_averaged.fill_(max(k, 0))
        ramp.module.load_state_dict(ramp.module.state_dict())
        if k == 0:  # torch copies at its first call; ours averages from the start
            with torch.no_grad():
                for p, old in zip(ramp.module.parameters(), ours.average.values()):
                    p.copy_(old)
                for p, old in zip(plain.module.parameters(), long.average.values()):
                    p.copy_(old)
            plain.n_averaged.fill_(1)
            continue
        ramp.update_parameters(model)
        plain.update_parameters(model)
    for mine, theirs in ((ours, ramp), (long, plain)):
        assert all(
            torch.allclose(a, b, atol=1e-6)
            for a, b in zip(mine.average.values(), theirs.module.parameters())
        )
    assert not torch.allclose(ours.average["weight"], model.weight)


def test_ema_begins_with_a_short_memory():
    ema = EMA({"w": nn.Parameter(torch.zeros(1))}, 0.999)
    betas = []
    for _ in range(30):
        betas.append(ema.beta)
        ema.update()
    assert betas == [(1 + n) / (10 + n) for n in range(30)]
    ema.num_updates = 10**6
    assert ema.beta == 0.999
    for decay, updates in {0.998: 4490, 0.999: 8990}.items():  # where the decay acts
        ema = EMA({"w": nn.Parameter(torch.zeros(1))}, decay)
        ema.num_updates = updates - 1
        assert ema.beta < decay
        ema.num_updates = updates
        assert ema.beta == pytest.approx(decay, abs=1e-12)


def test_clipping_sees_the_parameters_mi1():
    "MI-1: no parameters, or none with a gradient, is an error and not a norm of zero."
    assert (
        float(torch.nn.utils.clip_grad_norm_([], 1.0)) == 0.0
    )  # what hid the fault for years
    assert "empty" in refusal(clip_grad_norm, [], 1.0)
    assert "none of the 2 parameters" in refusal(
        clip_grad_norm, nn.Linear(2, 2).parameters(), 1.0
    )


def test_clipping_equals_torch():
    torch.manual_seed(0)
    a, b = nn.Linear(5, 5), nn.Linear(5, 5)
    b.load_state_dict(a.state_dict())
    x = torch.randn(7, 5)
    for scale in (0.001, 30.0):
        for m in (a, b):
            m.zero_grad()
            (m(x).square().sum() * scale).backward()
        ours, theirs = (
            clip_grad_norm(iter(a.parameters()), 1.0),
            torch.nn.utils.clip_grad_norm_(b.parameters(), 1.0),
        )
        assert torch.allclose(ours, theirs) and all(
            torch.allclose(p.grad, q.grad)
            for p, q in zip(a.parameters(), b.parameters())
        )
    assert float(clip_grad_norm(a.parameters(), None)) == pytest.approx(
        1.0, abs=1e-4
    )  # measured after clipping: it was clipped


def test_clipping_helps_where_one_batch_is_spoilt():
    "One image far too bright in every epoch: the clipped training ends lower."
    data = ImageTextDataset.from_critters(512, size=16)

    class Spoilt:
        def __len__(self):
            return len(data)

        def batches(self, *args, start=0, **kwargs):
            batches = data.batches(*args, start=start, **kwargs)
            for k, batch in enumerate(batches, start):
                if k == 9:
                    batch.images[0] *= 60
                yield batch

    last = {}
    for max_grad_norm in (0.5, None):
        torch.manual_seed(0)
        config = replace(
            QUICK, max_steps=96, batch_size=32, lr=3e-3, max_grad_norm=max_grad_norm
        )
        history = Trainer(TinyDenoiser(), Spoilt(), config).fit()
        last[max_grad_norm] = history[-1]["loss"]
    assert last[0.5] < last[None]


def test_clipping_follows_the_optimiser_mi1(tmp_path):
    """MI-1: a model that hides its layers in a plain list after the first call is still
    clipped, since the parameters of the optimizer are."""

    class Hides(Fit):
        def training_losses(self, batch, rng, phase="model"):
            terms = super().training_losses(batch, rng, phase)
            self.hidden = (
                [self._modules.pop("net")] if "net" in self._modules else self.hidden
            )
            object.__setattr__(self, "net", self.hidden[0])
            return {k: v * 1000 for k, v in terms.items()}

    torch.manual_seed(0)
    trainer = Trainer(Hides(), Line(), replace(QUICK, max_grad_norm=0.5))
    history = trainer.fit()
    assert (
        not list(trainer.model.parameters())
        and min(r["grad_norm"] for r in history) > 0.5
    )
    length = torch.cat(
        [p.grad.flatten() for p in trainer.parameters["model"].values()]
    ).norm()
    assert float(length) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("bad", ["loss", "size", "grad_norm"])
def test_not_finite_stops_with_step_term_and_checkpoint(tmp_path, bad):
    "The message names step, term and last good checkpoint; weights stay finite."
    model = Fit(bad, bad_at=6)
    text = refusal(fit, tmp_path, replace(QUICK, max_steps=20, save_every=2), model)
    assert "step 6" in text and "step-000004" in text and repr(bad) in text
    assert "net.0.weight" in text or bad != "grad_norm"
    assert all(p.isfinite().all() for p in model.parameters()) and list(
        list_checkpoints(tmp_path)
    ) == [2, 4]
    assert len((tmp_path / "losses.jsonl").read_text().splitlines()) == 5


def test_not_finite_without_a_folder_says_that_nothing_is_saved():
    assert "no checkpoint was saved" in refusal(fit, model=Fit("loss", bad_at=3))


def test_errors_are_not_swallowed_mi5(tmp_path):
    "MI-5: an error in the model ends the training; no step is made again or left out."
    model = Fit("error", bad_at=4)
    with pytest.raises(RuntimeError, match="the model broke"):
        fit(tmp_path, replace(QUICK, max_steps=20), model)
    assert model.calls == 4


def test_finite_check_names_the_first():
    assert check_finite({"a": torch.tensor(1.0)}, {}, 1) == {"a": 1.0}
    assert "'b' is inf" in refusal(
        check_finite,
        {
            "a": torch.tensor(1.0),
            "b": torch.tensor(math.inf),
            "c": torch.tensor(math.nan),
        },
        {},
        3,
    )


def test_step_noise_and_dropout_are_not_the_same_numbers():
    "torch uses 32 bits of a CPU seed: the two generators of a step must differ."
    long_seed = torch.Generator().manual_seed(2**40 + 12345)
    same_bits = torch.Generator().manual_seed(12345)
    assert torch.equal(
        torch.randn(4, generator=long_seed), torch.randn(4, generator=same_bits)
    )
    first = torch.randn(4, generator=step_rng(0, "step", 137))
    assert torch.equal(first, torch.randn(4, generator=step_rng(0, "step", 137)))
    rng = step_rng(0, "step", 5)
    assert not torch.equal(torch.randn(8, generator=rng), torch.randn(8))
    a = torch.randn(8)
    step_rng(0, "step", 5)
    b = torch.randn(8)
    step_rng(0, "step", 5)
    assert torch.equal(torch.randn(8), b) and not torch.equal(a, b)


# ---- two phases, as a GAN has them


def test_phases_take_turns_and_touch_only_their_own(tmp_path):
    trainer = fit(tmp_path / "whole", model=Duel)
    assert trainer.model.seen[:2] == [
        ("discriminator", False, True),
        ("generator", True, False),
    ]
    assert all(p.requires_grad for p in trainer.model.parameters()) and set(
        trainer.ema.average
    ) == {"g.weight", "g.bias"}
    last = trainer.logger.history[-1]
    assert {
        "discriminator/loss",
        "generator/loss",
        "discriminator/grad_norm",
    } <= last.keys() and last["generator/lr"] == 0.02
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(find_checkpoint(tmp_path / "cut"))
    fit(tmp_path / "cut", model=Duel, seed=8, resume=True)
    assert same_end(tmp_path / "whole", tmp_path / "cut") == []


class Staged(Duel):
    "The generator alone, the discriminator alone, then both, every other time."

    def phases_at(self, step):
        self.step = step
        if step < 2:
            return ("generator",)
        return ("discriminator",) if step < 4 or step % 2 else self.phases

    def step_kwargs(self, phase, step):
        if step == 4:
            return {}
        return {"lr": 0.001 * (step + 1), "betas": (0.1 * step, 0.9)}

    def training_losses(self, batch, rng, phase):
        losses = super().training_losses(batch, rng, phase)
        if phase == "generator" and self.step in (1, 4):
            losses["now and then"] = losses["loss"].detach() + 1
        return losses

    def diagnostics(self):
        self.looked_at = self.g.weight.detach().clone(), self.training
        torch.rand(3)  # disturbs nothing
        return {"weight": self.g.weight.norm().item()}


EVERY_STEP = replace(QUICK, max_steps=9, save_every=1, max_checkpoints=20)


def test_a_schedule_of_the_model_trains_only_the_phases_of_an_update(tmp_path):
    trainer = fit(tmp_path, EVERY_STEP, Staged)
    g, d, both = ["generator"], ["discriminator"], ["discriminator", "generator"]
    seen = [phase for phase, *_ in trainer.model.seen]
    assert seen == sum([g, g, d, d, both, d, both, d, both], [])
    saved = [load_checkpoint(p) for p in list_checkpoints(tmp_path).values()]
    for step, (old, new) in enumerate(zip(saved, saved[1:]), start=1):
        phases = trainer.model.phases_at(step)
        for name, phase in (("g.weight", "generator"), ("d.weight", "discriminator")):
            kept = torch.equal(old.tensors["model"][name], new.tensors["model"][name])
            assert kept == (phase not in phases)
            entry = f"{phase}/{name}.exp_avg"  # the averages of Adam are not lost
            if kept and entry in old.tensors["optimizers"]:
                a, b = (x.tensors["optimizers"][entry] for x in (old, new))
                assert torch.equal(a, b)
    for record in trainer.logger.history:
        phases = trainer.model.phases_at(record["step"] - 1)
        for phase in trainer.phases:
            assert (f"{phase}/loss" in record) == (phase in phases)


@pytest.mark.parametrize("at", range(1, 9))
def test_a_schedule_resumes_to_the_same_bits(tmp_path, at):
    "From each of its stages: weights, optimisers and log, terms of some steps too."
    fit(tmp_path / "whole", EVERY_STEP, Staged)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step, path in list_checkpoints(tmp_path / "cut").items():
        if step > at:
            shutil.rmtree(path)
    fit(tmp_path / "cut", EVERY_STEP, Staged, seed=9, resume=True)
    assert same_end(tmp_path / "whole", tmp_path / "cut") == []


def test_options_of_an_update_reach_the_optimiser_and_the_log(monkeypatch):
    "They hold for this update: the next one has its usual options again."
    used, step = [], torch.optim.AdamW.step

    def note(optimizer, *args, **kwargs):
        (group,) = optimizer.param_groups
        used.append((group["lr"], group["betas"]))
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    trainer = fit(model=Staged, config=EVERY_STEP)
    assert used[0] == (0.001, (0.0, 0.9)) and used[3] == (0.004, (0.1 * 3, 0.9))
    assert used[4] == (QUICK.lr, QUICK.betas) and used[5] == (0.02, QUICK.betas)
    logged = [r.get("generator/lr") for r in trainer.logger.history]
    assert logged[:6] == [0.001, 0.002, None, None, 0.02, None]
    assert logged[6] == pytest.approx(0.007)


def test_a_schedule_with_a_wrong_name_is_refused():
    class Misnamed(Staged):
        def phases_at(self, step):
            return super().phases_at(step) if step < 2 else ("reader",)

    class Misspelt(Staged):
        def step_kwargs(self, phase, step):
            return {"learning_rate": 0.1}

    assert "phases_at(2) gives 'reader'" in refusal(fit, model=Misnamed)
    said = refusal(fit, model=Misspelt)
    assert "step_kwargs('generator', 0) gives 'learning_rate'" in said


class Measured(Fit):
    "One phase, and a number of its own."

    def diagnostics(self):
        self.looked_at = self.net[0].weight.detach().clone(), self.training
        torch.rand(3), np.random.rand(), random.random()
        return {"first": self.net[0].weight[0].item(), "count": 3}


def test_diagnostics_are_logged_at_checkpoints_with_averaged_weights(tmp_path):
    config = replace(QUICK, max_steps=7, save_every=3)
    trainer = fit(tmp_path / "measured", config, Measured)
    average = trainer.ema.average["net.0.weight"]
    weight, training = trainer.model.looked_at
    assert torch.equal(weight, average) and not training
    assert not torch.equal(weight, trainer.model.net[0].weight)
    history = trainer.logger.history
    assert [r["step"] for r in history if "first" in r] == [3, 6, 7]
    assert history[-1]["first"] == average[0].item() and history[-1]["count"] == 3
    plain = fit(tmp_path / "plain", config)  # looking changes nothing
    assert equal(plain.model.state_dict(), trainer.model.state_dict())
    for a, b in zip(plain.logger.history, history, strict=True):
        assert a == {k: v for k, v in b.items() if k not in ("first", "count")}


def test_diagnostics_do_not_stay_in_the_log_after_a_resume(tmp_path):
    config = replace(QUICK, max_steps=7, save_every=3)
    fit(tmp_path / "whole", config, Measured)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(find_checkpoint(tmp_path / "cut"))
    fit(tmp_path / "cut", config, Measured, seed=9, resume=True)
    assert same_end(tmp_path / "whole", tmp_path / "cut") == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diagnostic_that_is_not_finite_is_refused(bad):
    class Broken(Measured):
        def diagnostics(self):
            return super().diagnostics() | {"contrast": bad}

    assert f"step 2: 'contrast' is {bad}" in refusal(fit, model=Broken)


def test_hooks_that_change_nothing_give_the_same_bits(tmp_path):
    hooks = {
        "phases_at": lambda self, step: self.phases,
        "step_kwargs": lambda self, phase, step: {},
        "diagnostics": lambda self: {},
    }
    fit(tmp_path / "without", model=Duel)
    fit(tmp_path / "with", model=type("Duel", (Duel,), hooks))
    assert same_end(tmp_path / "without", tmp_path / "with") == []


def test_a_checkpoint_without_terms_goes_on(tmp_path):
    "What an earlier version wrote; the log lacks a term until its next value."
    fit(tmp_path / "run")
    rewrite_state(tmp_path / "run", terms=None)
    assert fit(tmp_path / "run", replace(QUICK, max_steps=8), resume=True).step == 8


def test_every_parameter_belongs_to_a_phase():
    "A layer in no phase, a phase without parameters, phases that say nothing (MI-1)."

    class Forgot(Duel):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(1, 1)

    class Empty(Duel):
        def trainable_parameters(self, phase):
            return self.d.parameters() if phase == "discriminator" else []

    class Mute(Fit):
        phases = ("a", "b")

    frozen = Fit()
    frozen.requires_grad_(False)
    assert "extra.bias" in refusal(fit, model=Forgot()) and "'generator'" in refusal(
        fit, model=Empty()
    )
    assert "trainable_parameters" in refusal(
        fit, model=Mute()
    ) and "no parameters" in refusal(fit, model=frozen)


class Validated(Duel):
    "Notes the phases that are used in evaluation mode."

    def __init__(self):
        super().__init__()
        self.validated = set()

    def training_losses(self, batch, rng, phase):
        if not self.training:
            self.validated.add(phase)
        return super().training_losses(batch, rng, phase)


@pytest.mark.parametrize("chosen", [None, "generator", "discriminator"])
def test_the_model_says_which_phase_validates(tmp_path, chosen):
    "The last phase if it says nothing: a GAN's generator, and not its discriminator."
    model = Validated()
    if chosen:
        model.validation_phase = chosen
    trainer = fit(tmp_path, model=model, validation=Line(16))
    assert model.validated == {chosen or "generator"}
    record = trainer.logger.history[-1]
    assert record["val_loss"] == trainer.validate()
    assert trainer.checkpointer.best["val_loss"] <= record["val_loss"]


def test_frozen_parts_stay_frozen_and_in_eval_mode():
    class Half(Fit):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(
                nn.Linear(1, 1), nn.Dropout(0.5)
            ).requires_grad_(False)
            self.modes = set()

        def training_losses(self, batch, rng, phase="model"):
            self.modes.add((self.training, self.net.training, self.encoder.training))
            return super().training_losses(batch, rng, phase)

    model = Half()
    before = model.encoder[0].weight.clone()
    model.eval()
    fit(model=model)
    assert model.modes == {(True, True, False)} and torch.equal(
        model.encoder[0].weight, before
    )
    assert not model.training and not model.net.training  # as it came


# ---- looking without touching


def test_validation_is_fixed_and_touches_nothing_mi6():
    """MI-6: no autograd, the same noise each time, averaged weights; afterwards
    weights, modes and random generators are as before."""

    class Looks(Fit):
        def training_losses(self, batch, rng, phase="model"):
            self.last = (
                torch.is_grad_enabled(),
                self.training,
                self.net[0].weight.detach().clone(),
            )
            return super().training_losses(batch, rng, phase)

    trainer = fit(model=Looks(), validation=Line(16))
    model, weight = trainer.model, trainer.model.net[0].weight.detach().clone()
    model.train()
    model.net[1].eval()
    states = get_rng_state()
    a, b = trainer.validate(), trainer.validate()
    assert a == b and isinstance(a, float) and model.last[:2] == (False, False)
    assert torch.equal(
        model.last[2], trainer.ema.average["net.0.weight"]
    ) and not torch.equal(model.last[2], weight)
    assert (
        torch.equal(model.net[0].weight, weight)
        and model.training
        and not model.net[1].training
    )
    assert equal(get_rng_state()[0], states[0]) and get_rng_state()[1] == states[1]
    assert trainer.logger.history[-1]["val_loss"] == a


def test_everything_is_put_back_after_an_error():
    model = Fit()
    ema = EMA(dict(model.named_parameters()))
    with torch.no_grad():
        model.net[0].weight.add_(1)
    own, states = model.net[0].weight.detach().clone(), get_rng_state()
    with pytest.raises(ZeroDivisionError):
        with evaluation_mode(model, ema):
            assert (
                not torch.equal(model.net[0].weight, own)
                and not model.training
                and not torch.is_grad_enabled()
            )
            torch.rand(3), random.random(), 1 / 0
    assert (
        torch.equal(model.net[0].weight, own)
        and model.training
        and torch.is_grad_enabled()
        and equal(get_rng_state()[0], states[0])
    )


def test_the_users_random_numbers_go_on_as_before(
    untyped,
):  # beartype itself draws from Python's generator
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(0)
    model = Fit()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    Trainer(model, Line(), QUICK).fit()
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_images_of_samples_and_losses(tmp_path):
    torch.manual_seed(0)

    class Draws(TinyDenoiser):
        def sample_grid(self, rng):
            assert not self.training and not torch.is_grad_enabled()
            return torch.randn(2, 3, 16, 16, generator=rng).clamp(-1, 1), [
                "left",
                "right",
            ]

    config = replace(QUICK, sample_every=3, log_with="tensorboard")
    trainer = Trainer(
        Draws(4), ImageTextDataset.from_critters(16, size=16), config, tmp_path
    )
    history = trainer.fit()
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "step-000003.png",
        "step-000006.png",
    ]
    assert (tmp_path / "samples" / "step-000003.png").read_bytes() == (
        tmp_path / "samples" / "step-000006.png"
    ).read_bytes()  # the same noise
    assert (tmp_path / "losses.png").stat().st_size > 1000 and [
        r["step"] for r in history
    ] == [1, 2, 3, 4, 5, 6]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [s.value for s in events.Scalars("loss")] == pytest.approx(
        [r["loss"] for r in history]
    ) and events.Images("samples")


def test_wandb_offline_or_a_plain_word(tmp_path, monkeypatch):
    "Weights & Biases by name: an offline run, or the message says what to install."
    config = replace(QUICK, log_with="wandb")
    try:
        import wandb  # noqa: F401
    except ImportError:
        assert "pip install wandb" in refusal(fit, tmp_path, config)
        return
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    fit(tmp_path, config)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_trackers_with_a_missing_package_say_so(tmp_path, monkeypatch):
    import importlib.util

    def only_accelerate(name):
        return name == "accelerate" or None

    monkeypatch.setattr(importlib.util, "find_spec", only_accelerate)
    for name in ("wandb", "tensorboard"):
        assert f"pip install {name}" in refusal(
            fit, tmp_path, replace(QUICK, log_with=name)
        )


def test_trainings_with_other_settings_follow_each_other():
    "accelerate's settings are global; a second training must still get its own."
    first = fit(config=replace(QUICK, mixed_precision="bf16"))
    second = fit(config=QUICK)
    third = fit(config=replace(QUICK, mixed_precision="bf16"))
    same = {
        k: torch.equal(v, third.model.state_dict()[k])
        for k, v in first.model.state_dict().items()
    }
    assert all(same.values()) and not torch.equal(
        first.model.net[0].weight, second.model.net[0].weight
    )
    assert all(p.dtype == torch.float32 for p in first.model.parameters())


def test_training_learns():
    "The loss on points falls by far, and so does that of the averaged weights."
    torch.manual_seed(0)
    model = Fit()
    model.net[1].p = 0.0
    trainer = Trainer(
        model,
        Line(),
        TrainConfig(
            max_steps=300,
            batch_size=20,
            lr=0.02,
            log_with="none",
            device="cpu",
            ema_decay=0.98,
        ),
        validation=Line(),
    )
    history = trainer.fit()
    assert (
        history[-1]["loss"] < 0.05 * history[0]["loss"]
        and history[-1]["val_loss"] < 0.05
    )


# ---- settings


def test_settings_from_words():
    c = TrainConfig.from_overrides(
        [
            "lr=1e-4",
            "max_steps=50",
            "betas=0,0.99",
            "max_grad_norm=none",
            "warmup-steps=5",
            "lr_schedule=cosine",
        ]
    )
    assert (
        c.lr,
        c.max_steps,
        c.betas,
        c.max_grad_norm,
        c.warmup_steps,
        c.lr_schedule,
    ) == (1e-4, 50, (0.0, 0.99), None, 5, "cosine")
    assert TrainConfig.from_overrides(json.loads(json.dumps(asdict(c)))) == c
    with pytest.raises(AttributeError):
        c.lr = 2


@pytest.mark.parametrize(
    "words, expected",
    [
        (["learning_rat=1"], "unknown setting 'learning_rat'"),
        (["batchsize=8"], "'batch_size'"),
        (["lr=fast"], "lr must be a number, not 'fast'"),
        (["max_steps=1e3"], "max_steps must be a whole number, not '1e3'"),
        (["max_steps=2.5"], "max_steps"),
        (["betas=0.9"], "betas must be 2 values"),
        (["lr"], "name=value"),
        (["batch_size=0"], "batch_size must be at least 1, not 0"),
        (["lr=-0.1"], "lr must be at least 0, not -0.1"),
        (["lr=0"], "lr must be more than 0"),
        (["lr=nan"], "lr must be a number"),
        (["lr_schedule=linaer"], "did you mean 'linear'"),
        (["lr_schedule=cosin"], "did you mean 'cosine'"),
        (["log_with=tensorbord"], "did you mean 'tensorboard'"),
        (["mixed_precision=fp16"], "choose from: no, bf16"),
        (["ema_decay=1"], "ema_decay must be at least 0 and less than 1"),
        (["betas=0.9,1.0"], "betas"),
        (["warmup_steps=1000"], "warmup_steps=1000 leaves none"),
        (["batch_size=10", "gradient_accumulation_steps=4"], "cut into 4"),
        (["seed=4294967296"], "seed"),
        (["seed=-1"], "seed must be at least 0"),
        (["save_every=-1"], "save_every"),
        (["max_checkpoints=0"], "max_checkpoints"),
        (["max_grad_norm=0"], "max_grad_norm"),
        ({"lr": None}, "lr must be a number, not None"),
        ({"max_steps": True}, "max_steps must be a whole number, not True"),
        ({"betas": [1, 2, 3]}, "betas must be 2"),
    ],
)
def test_bad_settings_name_the_field(words, expected, untyped):
    assert expected in refusal(TrainConfig.from_overrides, words)


def test_a_wrong_type_is_refused_in_the_constructor(untyped):
    assert "lr must be a number, not '1e-4'" in refusal(
        TrainConfig, lr="1e-4"
    ) and "batch_size" in refusal(TrainConfig, batch_size=8.0)
    assert type(TrainConfig(lr=1).lr) is float and TrainConfig(
        betas=[0, 0.5]
    ).betas == (0.0, 0.5)


def test_override_works_for_any_dataclass():
    @dataclass(frozen=True)
    class Net:
        width: int = 8
        deep: bool = False

    assert apply_overrides(Net(), ["width=16", "deep=True"]) == Net(
        16, True
    ) and "deep must be true or false" in refusal(apply_overrides, Net(), ["deep=yes"])


@dataclass(frozen=True)
class Inner:
    heads: int = 4
    channels: Sequence[int] = (8, 16)


@dataclass(frozen=True)
class Outer:
    size: int = 16
    limit: float | None = 1.0
    unet: Inner = field(default_factory=Inner)


def test_overrides_reach_nested_settings():
    assert setting_names(Outer()) == ["size", "limit", "unet.heads", "unet.channels"]
    expected = Outer(32, None, Inner(8, (4, 8, 16)))
    words = ["size=32", "limit=none", "unet.heads=8", "unet.channels=4,8,16"]
    assert apply_overrides(Outer(), words) == expected
    values = {"size": 32, "limit": None, "unet.heads": 8, "unet.channels": [4, 8, 16]}
    assert apply_overrides(Outer(), values) == expected
    one = apply_overrides(Outer(), ["unet.channels=(4,)", "limit=2"])
    assert one == Outer(limit=2.0, unet=Inner(channels=(4,)))
    assert apply_overrides(Outer(), {}) == Outer()


@pytest.mark.parametrize(
    "words, expected",
    [
        (["unet.head=8"], "unknown setting 'unet.head'; did you mean 'unet.heads'?"),
        (["heads=8"], "unknown setting 'heads'; did you mean 'unet.heads'?"),
        (["xyzzy=1"], "known: size, limit, unet.heads, unet.channels"),
        (["unet=1"], "unknown setting 'unet'"),
        (["unet.heads=many"], "heads must be a whole number, not 'many'"),
        (["unet.channels=4,x"], "channels must be a whole number, not 'x'"),
        ({"unet.channels": 4}, "channels must be values with commas between, not 4"),
        (["size=none"], "size must be a whole number, not 'none'"),
        ({"size": None}, "size must be a whole number, not None"),
    ],
)
def test_overrides_that_do_not_fit(words, expected, untyped):
    text = refusal(apply_overrides, Outer(), words)
    assert expected in text
    assert not ("did you mean" in text and "; known:" in text)  # one or the other


# ---- what is refused


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A finished training."
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_batches_know_their_position():
    batches = InfiniteBatches(Line(50), 10)
    seen = [batch["x"] for _, batch in zip(range(7), batches)]
    assert (batches.epoch, batches.batch) == (1, 2)
    later = next(iter(InfiniteBatches(Line(50), 10, epoch=1, batch=1)))
    assert torch.equal(later["x"], seen[6])


def test_a_batch_larger_than_the_data():
    assert (
        refusal(fit, config=replace(QUICK, batch_size=41))
        == "batch_size 41 is more than the 40 images there are; make it smaller"
    )

    class Stream:
        def batches(self, *args, **kwargs):
            return iter([])

    with pytest.raises(UserError, match="no batch of 8"):
        next(iter(InfiniteBatches(Stream(), 8)))


def test_ctrl_c_at_a_saved_step_does_not_write_it_again(tmp_path):
    class Pressed(Fit):
        def training_losses(self, batch, rng, phase="model"):
            if self.calls == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return super().training_losses(batch, rng, phase)

    written = []

    class Counts(Trainer):
        def save(self):
            written.append(self.step), super().save()

    with pytest.raises(TrainingInterrupted):
        Counts(Pressed(), Line(), QUICK, tmp_path).fit()
    assert written == [2]


def test_other_settings_than_before(run):
    "What would change the rest of the training is refused, the rest is not."
    assert "trained with lr=0.001, not 0.01" in refusal(
        fit, run, replace(QUICK, lr=0.01), resume=True
    )
    assert "batch_size=8" in refusal(
        fit, run, replace(QUICK, batch_size=4), resume=True
    )
    assert (
        fit(
            run,
            replace(QUICK, max_steps=8, log_every=3, save_every=5, max_checkpoints=1),
            resume=True,
        ).step
        == 8
    )


def test_more_steps_with_a_cosine_are_refused(tmp_path):
    config = replace(QUICK, lr_schedule="cosine")
    fit(tmp_path, config)
    assert "max_steps=6, not 12" in refusal(
        fit, tmp_path, replace(config, max_steps=12), resume=True
    )


def test_a_full_disk(tmp_path):
    "No file may grow beyond a limit: one line, last checkpoint, nothing incomplete."
    fit(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        text = refusal(
            fit, tmp_path, replace(QUICK, max_steps=8, log_every=100), resume=True
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some space" in text and "step-000006" in text
    assert "step-000008/" in text and ".tmp" not in text  # no name of ours
    assert list(list_checkpoints(tmp_path)) == [4, 6] and not list(
        tmp_path.glob("checkpoints/.*")
    )


def test_more_steps_are_done_than_asked_for(run):
    config = replace(QUICK, max_steps=4)
    text = refusal(fit, run, config, resume=True)
    assert "is of step 6, beyond max_steps=4" in text


def test_the_message_lists_what_may_change_on_resume(run):
    "F3: and the settings of a model are compared as well."
    trainer = Trainer(Fit(), Line(), QUICK, run, settings={"width": 16})
    trainer.fit(resume=True)  # the recorded run knew no width, which is not compared
    longer = replace(QUICK, max_steps=8, lr=0.5)
    before = (run / "config.json").read_bytes()
    text = refusal(fit, run, longer, resume=True)
    assert "trained with lr=0.001, not 0.5; go on with lr=0.001," in text
    free = ("max_steps", *RESUME_MUTABLE_FIELDS)
    assert f"(only {', '.join(free)} may change)" in text
    assert (run / "config.json").read_bytes() == before
    cosine = replace(QUICK, lr_schedule="cosine")
    assert "(only save_every" in refusal(fit, run, cosine, resume=True)


def test_settings_of_the_model_are_compared(tmp_path):
    "F3: a setting that changes no tensor's shape was changed in silence."
    trainer = Trainer(Fit(), Line(), QUICK, tmp_path, settings={"target": "x0"})
    trainer.fit()
    other = replace(QUICK, max_steps=8)
    again = Trainer(Fit(), Line(), other, tmp_path, settings={"target": "v"})
    text = refusal(again.fit, resume=True)
    assert "trained with target=x0, not v; go on with target=x0, or" in text
    same = Trainer(Fit(), Line(), other, tmp_path, settings={"target": "x0"})
    assert same.fit(resume=True)[-1]["step"] == 8


CAPTIONS = [(f"point {i}", f"the point {i}") for i in range(12)]


class Shown(Fit):
    "Learns the mean of images."

    def training_losses(self, batch, rng, phase="model"):
        x = batch.images.mean(dim=(1, 2, 3))[:, None]
        return super().training_losses({"x": x, "y": x}, rng)


def pictures(captions=CAPTIONS, shade=0, order=1):
    "Images of one colour each."

    def read(i):
        return torch.full((3, 16, 16), 9 * (order * i % 12) + shade).byte()

    return ImageTextDataset(read, captions, 16)


@pytest.mark.parametrize(
    "data, difference",
    [
        (lambda: pictures([*CAPTIONS, ("a",), ("b",)], order=5), "2 images added"),
        (lambda: pictures(CAPTIONS[1:]), "1 image removed"),
        (
            lambda: pictures([("other",), *CAPTIONS[1:]]),
            "captions of 1 image changed",
        ),
        (lambda: pictures(shade=1), "12 images added, 12 images removed"),
        (lambda: Line(11), "11 images instead of 12"),
    ],
)
def test_other_data_than_before(tmp_path, data, difference):
    "F3: images added, removed, changed, captions rewritten: one line, nothing written."
    fit(tmp_path, model=Shown, data=pictures())
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    longer = replace(QUICK, max_steps=8)
    text = refusal(fit, tmp_path, longer, Shown, data=data(), resume=True)
    assert "was trained on other data: " in text and difference in text
    assert "or start anew in another folder" in text
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert fit(tmp_path, longer, Shown, data=pictures(), resume=True).step == 8


def rewrite_state(folder, **changes):
    "Change the state of the last checkpoint; with None an entry is removed."
    path = find_checkpoint(folder) / "state.json"
    state = json.loads(path.read_text()) | changes
    gone = [k for k, v in changes.items() if v is None]
    path.write_text(json.dumps({k: v for k, v in state.items() if k not in gone}))


def test_a_checkpoint_that_knows_no_settings_goes_on_with_a_note(run):
    "F3: what an earlier version wrote."
    rewrite_state(run, settings=None, data=None, hardware=None)
    with pytest.warns(UserWarning, match="was written before the model's settings"):
        assert fit(run, replace(QUICK, max_steps=8), resume=True).step == 8


def test_another_machine_is_noted(run):
    "Other threads, torch or processor: one line, since bits may differ; else none."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(run, resume=True)
    hardware = load_checkpoint(find_checkpoint(run)).state["hardware"]
    assert {"torch", "threads", "cpu", "device", "processes"} <= hardware.keys()
    rewrite_state(run, hardware=hardware | {"threads": 99, "torch": "1.0"})
    with pytest.warns(UserWarning, match="torch 1.0, now .*; threads 99, now") as notes:
        fit(run, replace(QUICK, max_steps=8), resume=True)
    assert len(notes) == 1 and "\n" not in str(notes[0].message)


# ---- what must not end a training, and what must


class Poses(Fit):
    "A model whose picture cannot be drawn."

    def sample_grid(self, rng):
        raise ValueError("no\nfont")


def test_a_grid_of_samples_that_fails_is_noted(tmp_path):
    "F2: the training goes on, also on resume, and ends with the same bits."
    config = replace(QUICK, sample_every=3)
    Poses.__name__ = "Fit"
    fit(tmp_path / "whole", QUICK)
    note = r"step 3: the grid of samples failed \(no font\); the training goes on"
    with pytest.warns(UserWarning, match=note):
        fit(tmp_path / "run", config, Poses)
    differing = same_end(tmp_path / "whole", tmp_path / "run")
    assert differing == ["files"]  # config.json, for sample_every
    assert not (tmp_path / "run" / "samples").exists()
    with pytest.warns(UserWarning, match="step 9: the grid"):
        longer = replace(config, max_steps=9)
        assert fit(tmp_path / "run", longer, Poses, resume=True).step == 9


def test_captions_that_cannot_be_drawn_are_noted(tmp_path, monkeypatch):
    "F2: a failure of matplotlib, while it writes the file; no part of it is left."

    class Draws(Fit):
        def sample_grid(self, rng):
            return torch.zeros(1, 3, 16, 16), ["a"]

    def fail(self, path, **options):
        Path(path).write_bytes(b"half")
        raise ValueError("ParseException")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.warns(UserWarning) as notes:
        fit(tmp_path, replace(QUICK, sample_every=6), Draws())
    texts = {str(n.message) for n in notes}
    assert any("step 6: the grid of samples failed (Parse" in t for t in texts)
    assert any("the curves of the losses failed (Parse" in t for t in texts)
    assert max(list_checkpoints(tmp_path)) == 6
    assert not list((tmp_path / "samples").iterdir())
    assert not (tmp_path / "losses.png").exists()


class Fails(Line):
    "Data whose fourth batch is lost."

    def __init__(self, error):
        super().__init__()
        self.error = error

    def batches(self, *args, **kwargs):
        for k, batch in enumerate(super().batches(*args, **kwargs)):
            if k == 3:
                raise self.error
            yield batch


@pytest.mark.parametrize(
    "error", [UserError("image 'a.png' is damaged"), OSError(5, "Input/output error")]
)
def test_lost_data_end_a_training_that_is_saved(tmp_path, error):
    "F9: the last good step is saved and named; with the data again it is as before."
    config = replace(QUICK, save_every=0)
    fit(tmp_path / "whole", config)
    text = refusal(fit, tmp_path / "cut", config, data=Fails(error))
    assert str(error) in text and list(list_checkpoints(tmp_path / "cut")) == [3]
    saved = tmp_path / "cut" / "checkpoints" / "step-000003"
    assert f"the last good checkpoint is {str(saved)!r}" in text
    fit(tmp_path / "cut", config, resume=True)
    assert same_end(tmp_path / "whole", tmp_path / "cut") == []
    text = refusal(fit, config=config, data=Fails(error))
    assert "no checkpoint was saved before" in text


def test_lost_validation_data_save_the_training_s_own_weights(tmp_path):
    "F9: not the averaged ones, which validation uses."
    fit(tmp_path / "whole", validation=Line(16))
    lost = Fails(UserError("gone"))
    config = replace(QUICK, batch_size=8, val_batches=4)
    text = refusal(fit, tmp_path / "cut", config, validation=lost)
    assert text.startswith("validation: gone; the last good checkpoint is")
    cut = load_checkpoint(find_checkpoint(tmp_path / "cut"))
    two = Trainer(Fit(), Line(), replace(QUICK, max_steps=2), tmp_path / "two")
    torch.manual_seed(0)
    two.model = Fit()
    two.fit()
    assert equal(cut.tensors["model"], two.model.state_dict())


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    "One line, the last checkpoint whole, nothing half-written."
    fit(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    mkdir = Path.mkdir

    def read_only(path, *args, **kwargs):
        if path.name.endswith(".tmp"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", read_only)
    config = replace(QUICK, max_steps=8)
    text = refusal(fit, tmp_path, config, resume=True)
    assert "step-000008': Read-only file system" in text
    assert "the last good checkpoint is" in text and "step-000006" in text
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.undo()
    assert fit(tmp_path, config, resume=True).step == 8


def test_a_disk_that_fills_while_a_tensor_is_written(tmp_path, monkeypatch):
    "As above, at any file of the checkpoint."
    fit(tmp_path)
    config, fsync = replace(QUICK, max_steps=8, log_every=100), os.fsync
    for nth in range(1, 8):
        calls = iter(range(nth))

        def full(handle, calls=calls):
            if next(calls, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", full)
        text = refusal(fit, tmp_path, config, resume=True)
        monkeypatch.undo()
        assert "No space left" in text and "free some space" in text
        assert ".tmp" not in text and list(list_checkpoints(tmp_path)) == [4, 6]
        assert not list(tmp_path.rglob("*.tmp"))
    assert fit(tmp_path, config, resume=True).step == 8


def test_the_clock_may_jump(tmp_path, monkeypatch):
    "An hour back and a day forth: the bar and the rate go on."
    jumps = iter([0, -3600, 86400, -86400] * 10_000)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
    rates = []

    class Watched(Trainer):
        def _show(self, bar, record):
            super()._show(bar, record)
            rates.append(float(bar.postfix.rsplit(", ")[-1].removesuffix(" images/s")))
            assert 0 <= bar.format_dict["elapsed"] < 60

    Watched(Fit(), Line(), QUICK, tmp_path).fit()
    assert len(rates) == 6 and min(rates) >= 1


def test_a_new_start_where_a_training_ended_before_its_first_checkpoint(tmp_path):
    "It left settings and a log, which are of no more use; photos are not touched."
    config = replace(QUICK, sample_every=1)

    class Diverges(Fit):
        def sample_grid(self, rng):
            return torch.zeros(1, 3, 16, 16), ["a"]

    with pytest.raises(UserError, match="'loss' is nan; lower the learning rate"):
        fit(tmp_path / "run", config, Diverges(bad="loss", bad_at=2))
    assert {p.name for p in (tmp_path / "run" / "samples").iterdir()} == {
        "step-000001.png"
    }
    trainer = fit(tmp_path / "run", replace(QUICK, lr=1e-4))
    fit(tmp_path / "whole", replace(QUICK, lr=1e-4))
    assert same_end(tmp_path / "run", tmp_path / "whole") == [] and trainer.step == 6
    assert not (tmp_path / "run" / "samples").exists()
    assert "is not empty" in refusal(fit, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "photo.jpg").write_text("mine")
    assert "is not empty" in refusal(fit, tmp_path / "run")


def test_a_new_start_after_ctrl_c_at_once(tmp_path):
    class Stuck(Fit):
        def training_losses(self, batch, rng, phase="model"):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, model=Stuck())
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "losses.jsonl"}
    assert fit(tmp_path).step == 6


# ---- one training at a time in a folder


def test_a_second_training_in_the_same_folder_is_refused(run):
    "F10: also on resume; one line with the process; nothing is touched."
    before, texts = sorted(run.rglob("*")), []
    config = replace(QUICK, max_steps=8)

    def other_thread():
        texts.append(refusal(fit, run, config, resume=True))

    with lock_folder(run):
        assert (run / LOCK_FILE).exists()
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join(30)
    expected = f"is in use by process {os.getpid()} on {socket.gethostname()}, since "
    assert expected in texts[0] and "or choose another folder" in texts[0]
    assert sorted(run.rglob("*")) == before
    assert fit(run, config, resume=True).step == 8  # it was given back


def test_the_lock_is_gone_after_every_end(tmp_path):
    "F10: after the last step, an error, a bad number, Ctrl-C."
    for name, model, kind in [
        ("done", Fit(), None),
        ("error", Fit("error", bad_at=2), RuntimeError),
        ("nan", Fit("loss", bad_at=2), UserError),
        ("pressed", pressed_at(2)(), TrainingInterrupted),
    ]:
        seen = []
        losses = model.training_losses

        def training_losses(
            *args, lock=tmp_path / name / LOCK_FILE, seen=seen, losses=losses, **kwargs
        ):
            seen.append(lock.exists())
            return losses(*args, **kwargs)

        model.training_losses = training_losses
        with pytest.raises(kind) if kind else nullcontext():
            fit(tmp_path / name, model=model)
        assert seen and all(seen) and not (tmp_path / name / LOCK_FILE).exists()


def test_going_on_where_a_second_process_trains(tmp_path):
    "F10: two processes of one training share a lock, that of the first one."
    trainer = Trainer(Fit(), Line(), QUICK, tmp_path)
    with lock_folder(tmp_path):  # as `run_training` does
        assert trainer.fit()[-1]["step"] == 6
        assert (tmp_path / LOCK_FILE).exists()
    assert not (tmp_path / LOCK_FILE).exists()


def test_data_without_captions():
    class Reads(Fit):
        needs_captions = True

    assert "learns from captions, but the data has none" in refusal(fit, model=Reads())


def test_pieces_must_be_shared_out_evenly(monkeypatch):
    trainer = Trainer(Fit(), Line(), QUICK)
    trainer.accelerator = type("Two", (), {"num_processes": 2})()
    assert "gradient_accumulation_steps to a multiple of 2" in refusal(
        trainer._check_start
    )


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])


def test_flip_reaches_the_batches_and_left_and_right_are_swapped():
    data = ImageTextDataset.from_critters(16, 16)
    plain = next(iter(InfiniteBatches(data, 16)))
    mirrored = next(iter(InfiniteBatches(data, 16, flip=True)))
    changed = [
        i for i in range(16) if not torch.equal(plain.images[i], mirrored.images[i])
    ]
    assert 0 < len(changed) < 16
    for i in changed:
        assert torch.equal(mirrored.images[i], plain.images[i].flip(-1))
    told = [i for i in changed if "facing left" in plain.captions[i]]
    assert all("facing right" in mirrored.captions[i] for i in told)
    trainer = Trainer(TinyDenoiser(), data, TrainConfig(batch_size=8, flip=True))
    assert trainer.batches.options == {"drop_last": True, "flip": True}
