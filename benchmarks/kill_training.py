"""Kill trainings at random moments, go on with --resume, and compare every bit.

    python benchmarks/kill_training.py [--kills 20] [--seed N] [--only gigagan imagen]
                        [--processes 1 2] [--settings train.max_steps=6] [--fork]
                        [--output kill_log.json]

For each training there is one that is never killed. Another is killed with SIGKILL, at
a moment of the clock, at a step of the log, or while something is being written (a
temporary name is there), and goes on with the same command plus --resume until it
ends; then the next one begins, until all kills are spent. Whatever was killed when and
where, the end must be the same: model.safetensors, all tensors of the last checkpoint
(weights, average, optimizers, random generators), log, samples, names of the files.
The trainings with two processes run under `python -m torch.distributed.run`.

Then the faults: a full disk, a disk that becomes read-only, two trainings in one
folder, a lock left by a killed one, a clock that jumps, another number of threads, one
of two processes killed, the launcher killed. What needs root or Linux is skipped, with
the reason. With --fork the sessions are forks of this process instead of commands,
which saves the time of the imports; `tests/test_kill.py` runs a few kills that way.
"""

import argparse
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import psutil
import torch

from t2i_tutorial.checkpoints import list_checkpoints, load_checkpoint
from t2i_tutorial.core import UserError, load_tensors, save_json

SHARED = (
    "num_images=64 train.max_steps=12 train.batch_size=8 train.save_every=3 "
    "train.gradient_accumulation_steps=2 train.log_every=1 train.sample_every=4 "
    "train.warmup_steps=2 train.device=cpu"
).split()
PRETRAINING = "pretrain_steps=4 discriminator_only_steps=2".split()
SHORT = "num_images=256 max_steps=6 batch_size=32 warmup_steps=2".split()
COMMANDS = {
    "gigagan": ["gigagan", "--preset", "tiny", *SHARED, *PRETRAINING],
    "imagen": ["imagen", "--preset", "tiny", *SHARED],
    "clip": ["clip", "--preset", "tiny", *SHORT],
    "classifier": ["classifier", "--preset", "tiny", *SHORT],
}
PATIENCE = 60.0  # seconds that a process may go on after another one was killed
LONGEST = 900.0  # seconds for a session
JUMPING_CLOCK = """
import time
_time, _calls = time.time, [0]
def _jumping():
    _calls[0] += 1
    return _time() + 86400 * (_calls[0] // 7 % 3 - 1)
time.time = _jumping
"""  # a day back, the right time, a day ahead, and again


# ---- one session of a training


class Session:
    "A running `t2i train`, of one process or of two."

    def __init__(
        self,
        training: str,  # one of COMMANDS
        folder: Path,
        resume: bool = False,
        processes: int = 1,
        threads: int = 1,
        clock: bool = False,  # that jumps
        fork: bool = False,
        settings: tuple = (),  # more of them
    ):
        self.arguments = ["train", *COMMANDS[training], *settings]
        self.arguments += ["--output", str(folder), *(["--resume"] if resume else [])]
        self.folder, self.start = folder, time.monotonic()
        self.clock, self.threads = clock, threads
        self.output = Path(tempfile.mkstemp(prefix=f"{folder.name}-", suffix=".txt")[1])
        self.launcher, self.workers, self.codes = None, [], {}
        if fork:
            port = free_port() if processes > 1 else 0
            self.workers = [self._fork(r, processes, port) for r in range(processes)]
        else:
            self._launch(processes)

    def _fork(self, rank: int, processes: int, port: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.setsid()
            handle = os.open(self.output, os.O_WRONLY | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            torch.set_num_threads(self.threads)
            if self.clock:
                exec(JUMPING_CLOCK, {})
            if processes > 1:
                os.environ |= ranks(rank, processes, port)
            from t2i_tutorial.cli import main

            code = main(self.arguments)
        except BaseException as e:
            print(f"Traceback: {e!r}", file=sys.stderr)
        os._exit(code)

    def _launch(self, processes: int) -> None:
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc_per_node", str(processes)]
        command += ["-m", "t2i_tutorial.cli", *self.arguments]
        env = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        env["OMP_WAIT_POLICY"] = "passive"  # two threads on a busy machine
        if self.clock:
            self.site = tempfile.TemporaryDirectory()
            Path(self.site.name, "sitecustomize.py").write_text(JUMPING_CLOCK)
            paths = [self.site.name, os.environ.get("PYTHONPATH", "")]
            env["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
        with open(self.output, "w") as out:
            self.popen = subprocess.Popen(
                command, stdout=out, stderr=out, env=env, start_new_session=True
            )
        if processes > 1:
            self.launcher = self.popen.pid
        else:
            self.workers = [self.popen.pid]

    def find_workers(self) -> list[int]:
        "The processes that train."
        if self.launcher and psutil.pid_exists(self.launcher):
            try:
                below = psutil.Process(self.launcher).children()
                found = [p.pid for p in below if "t2i_tutorial.cli" in p.cmdline()]
            except psutil.Error:
                found = []
            self.workers = found or self.workers
        return self.workers

    @property
    def pids(self) -> list[int]:
        return [*([self.launcher] if self.launcher else []), *self.find_workers()]

    def running(self) -> list[int]:
        "Those of its processes that have not ended; notes the exit codes of the rest."
        alive = []
        for pid in self.pids:
            if pid in self.codes:
                continue
            try:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
                else:
                    alive.append(pid)
            except ChildProcessError:  # the launcher's child, or the launcher waited
                if is_alive(pid):
                    alive.append(pid)
                else:
                    self.codes[pid] = None
        return alive

    def wait(self, seconds: float = LONGEST) -> bool:
        "Whether all ended within so many seconds."
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def kill(self, who: str = "all", number: int = 0) -> None:
        "SIGKILL for all of its processes, for one that trains, or for the launcher."
        workers = self.find_workers()
        chosen = {
            "all": self.pids,
            "one": workers[number : number + 1],
            "launcher": [self.launcher],
        }[who]
        for pid in chosen:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    @property
    def code(self) -> int | None:
        "The exit code of the command (in forks, the largest)."
        if self.launcher:
            return self.codes.get(self.launcher)
        codes = [c for c in self.codes.values() if c is not None]
        return max(codes, key=abs) if codes else None

    def text(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def messages(self) -> list[str]:
        "What it said, without notes and progress bars."
        lines = [part for part in self.text().splitlines() if part.startswith("t2i: ")]
        return [m for m in lines if not m.startswith("t2i: note: ")]

    def notes(self) -> list[str]:
        lines = self.text().splitlines()
        return [m.removeprefix("t2i: ") for m in lines if m.startswith("t2i: note: ")]

    def one_line(self, *expected: str) -> str | None:
        "What is wrong with how it ended; None for exit code 2 and one line."
        messages = list(dict.fromkeys(self.messages()))
        if self.code != 2 or len(messages) != 1 or "Traceback" in self.text():
            return f"exit code {self.code}, {messages or self.text()[-600:]}"
        missing = [word for word in expected if word not in messages[0]]
        return f"no {missing} in {messages[0]!r}" if missing else None


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ranks(rank: int, processes: int, port: int) -> dict[str, str]:
    "What the launcher tells each process."
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


# ---- what a training left


def logged_step(folder: Path) -> int:
    "The step of the last line of the log."
    path = folder / "losses.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def half_written(folder: Path) -> list[str]:
    "Temporary files and folders, also those of a lock or of anything else."
    found = [p for p in folder.rglob("*") if p.suffix in (".tmp", ".old")]
    return sorted(str(p.relative_to(folder)) for p in found)


def last_step(folder: Path) -> int:
    "The step of the newest checkpoint, which is read whole; 0 if there is none."
    step = max(list_checkpoints(folder), default=0)
    if step:
        load_checkpoint(list_checkpoints(folder)[step])
    return step


def names(folder: Path) -> list[str]:
    "All files, but for TensorBoard's, whose names hold times."
    files = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    return sorted(str(f) for f in files if f.parts[0] != "tensorboard")


def tensorboard_steps(folder: Path) -> dict[str, list[int]]:
    "The steps of each number and image that TensorBoard shows."
    from tensorboard.backend.event_processing import event_accumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it notes each restart
    log = event_accumulator.EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0}
    )
    tags = log.Reload().Tags()
    steps = {tag: [e.step for e in log.Scalars(tag)] for tag in tags["scalars"]}
    return steps | {tag: [e.step for e in log.Images(tag)] for tag in tags["images"]}


def differences(whole: Path, killed: Path, tensorboard: bool = True) -> list[str]:
    "What differs between the ends of two trainings; empty if every bit is the same."
    found = []
    a, b = names(whole), names(killed)
    found += [f"without {n}" for n in a if n not in b]
    found += [f"also has {n}" for n in b if n not in a]
    plain = [n for n in a if n in b and Path(n).suffix in (".jsonl", ".safetensors")]
    plain += [n for n in a if n in b and Path(n).suffix == ".png"]
    for name in plain:
        if name.startswith(".texts/"):  # the tensors are compared, the order is free
            continue
        if (whole / name).read_bytes() != (killed / name).read_bytes():
            found.append(name)
    steps = list_checkpoints(whole)
    if steps and list_checkpoints(killed):
        x, y = (
            load_checkpoint(list(list_checkpoints(f).values())[-1])
            for f in (whole, killed)
        )
        for kind in x.tensors:
            s, t = x.tensors[kind], y.tensors.get(kind, {})
            same = s.keys() == t.keys() and all(torch.equal(s[k], t[k]) for k in s)
            found += [] if same else [f"tensors of {kind}"]
        found += [f"state {k}" for k in x.state if x.state[k] != y.state.get(k)]
    for record in ("run.json", "model/run.json"):
        if (whole / record).exists() and (killed / record).exists():
            p, q = (json.loads((f / record).read_text()) for f in (whole, killed))
            if without_times(p["history"]) != without_times(q["history"]):
                found.append(f"history in {record}")
    if tensorboard and (whole / "tensorboard").is_dir():
        if tensorboard_steps(whole) != tensorboard_steps(killed):
            found.append("steps in tensorboard")
    return found


def without_times(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in history]


# ---- the kills


class Trial:
    "A folder for everything, the log of all that was done, and how sessions are run."

    def __init__(self, folder: Path, seed: int, fork: bool):
        self.folder, self.fork = folder, fork
        self.draw = random.Random(seed)
        self.log = {"seed": seed, "kills": [], "trainings": [], "faults": []}
        self.wholes: dict[tuple[str, int], tuple[Path, float]] = {}
        self.count = 0
        self.current: list[Session] = []

    def say(self, *words: object) -> None:
        print(time.strftime("%H:%M:%S"), *words, flush=True)

    def new_folder(self, name: str) -> Path:
        self.count += 1
        return self.folder / f"{name}-{self.count}"

    def session(self, training: str, folder: Path, **options) -> Session:
        self.current = [s for s in self.current if s.running()]
        self.current.append(Session(training, folder, fork=self.fork, **options))
        return self.current[-1]

    def stop(self) -> None:
        "Leave no process behind."
        for session in self.current:
            if session.running():
                session.kill()

    def finish(self, training: str, folder: Path, **options) -> Session:
        "Run to the end."
        session = self.session(training, folder, **options)
        if not session.wait():
            session.kill()
            session.wait()
        return session

    def whole(self, training: str, processes: int = 1) -> tuple[Path, float]:
        "The training that is never killed, and how many seconds it takes."
        key = training, processes
        if key not in self.wholes:
            folder = self.folder / f"{training}-{processes}-whole"
            start = time.monotonic()
            done = self.finish(training, folder, processes=processes)
            if done.code != 0:
                raise RuntimeError(f"{training} does not train: {done.text()[-2000:]}")
            self.wholes[key] = folder, time.monotonic() - start
            self.say(
                f"{training}, {processes} process(es), never killed:", end(self, key)
            )
        return self.wholes[key]

    def fault(self, name: str, wrong: object = None, **facts) -> None:
        "Note how a fault went; `wrong` says what is not as it should be."
        outcome = "wrong" if wrong else "right"
        self.log["faults"].append({"fault": name, "outcome": outcome, **facts})
        if wrong:
            self.log["faults"][-1]["wrong"] = str(wrong)
        self.say(f"{name}: {outcome}", wrong or "", facts or "")

    def skip(self, name: str, reason: str) -> None:
        self.log["faults"].append({"fault": name, "outcome": "skipped", "why": reason})
        self.say(f"{name}: skipped, {reason}")

    @property
    def wrong(self) -> list:
        bad = [t for t in self.log["trainings"] if t["differing"]]
        return bad + [f for f in self.log["faults"] if f["outcome"] == "wrong"]


def end(trial: Trial, key: tuple[str, int]) -> str:
    folder, seconds = trial.wholes[key]
    return f"{seconds:.0f} s, {logged_step(folder)} steps"


def wait_for_moment(trial: Trial, session: Session, kind: str, whole: float) -> str:
    "Wait until the moment has come, or the session has ended; says which one it was."
    draw, folder = trial.draw.uniform, session.folder
    if kind == "time":
        seconds = draw(0, whole)
        session.wait(seconds)
        return f"after {seconds:.2f} s"
    if kind == "step":
        step = logged_step(folder) + trial.draw.randint(0, 5)
        delay = draw(0, 0.3)
        while logged_step(folder) < step and session.running():
            time.sleep(0.005)
        time.sleep(delay)
        return f"{delay:.3f} s after step {step}"
    delay = draw(0, 0.04)
    skipped = trial.draw.randint(0, 2)  # so many temporary names go by
    pattern = "checkpoints/.step-*" if kind == "saving" else "**/.*.tmp"
    seen, checked = set(), time.monotonic()
    before = set(map(str, folder.glob(pattern)))
    while True:
        new = {str(p) for p in globbed(folder, pattern)} - before
        seen |= new
        if new and len(seen) > skipped:
            time.sleep(delay)
            return f"{delay:.3f} s after {Path(min(new)).name[:24]} was there"
        if time.monotonic() - checked > 0.2:
            checked = time.monotonic()
            if not session.running():
                return "not reached"
        time.sleep(0.0005)


def globbed(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:  # a folder was renamed meanwhile
        return []


def kill_often(trial: Trial, training: str, processes: int, kills: int) -> None:
    "Kill trainings so often and compare each that comes to its end."
    whole, seconds = trial.whole(training, processes)
    short = training in ("clip", "classifier")  # begins anew, there is no --resume
    aimed = ("writing",) if short else ("saving", "step", "writing")
    moments = [m for i in range(kills) for m in (aimed[i % len(aimed)], "time")]
    done, in_this = 0, 0
    folder = trial.new_folder(f"{training}-{processes}-killed")
    while True:
        resume = not short
        session = trial.session(training, folder, resume=resume, processes=processes)
        if done < kills:
            kind = moments[done]
            moment = wait_for_moment(trial, session, kind, seconds)
            if session.running():
                session.kill()
                session.wait()
                done, in_this = done + 1, in_this + 1
                note_kill(trial, training, processes, done, kind, moment, session)
                continue
        elif not session.wait():
            session.kill()
        session.wait(10)
        wrong = differences(whole, folder) if session.code == 0 else []
        if session.code != 0:
            wrong = [f"exit code {session.code}: {session.messages()}"]
            wrong += [] if session.messages() else [session.text()[-800:]]
        result = {"training": training, "processes": processes, "kills": in_this}
        trial.log["trainings"].append(result | {"differing": wrong})
        trial.say(f"{training}, {processes}: killed {in_this} times,", wrong or "equal")
        if done >= kills:
            return
        folder, in_this = trial.new_folder(f"{training}-{processes}-killed"), 0


def note_kill(trial, training, processes, number, kind, moment, session) -> None:
    folder, wrong = session.folder, None
    try:
        step = last_step(folder)
    except UserError as e:
        step, wrong = None, str(e)
    facts = {
        "training": training,
        "processes": processes,
        "kill": number,
        "kind": kind,
        "moment": moment,
        "seconds": round(time.monotonic() - session.start, 2),
        "logged": logged_step(folder),
        "checkpoint": step,
        "half_written": half_written(folder),
    }
    trial.log["kills"].append(facts | ({"wrong": wrong} if wrong else {}))
    half = ", ".join(n.split(".tmp")[0] for n in facts["half_written"])
    trial.say(
        f"{training}, {processes}: kill {number} ({kind}, {moment}): log to step "
        f"{facts['logged']}, checkpoint {step}, half-written: {half or 'nothing'}"
    )


# ---- one process of two


def until_step(session: Session, step: int) -> None:
    while session.running() and logged_step(session.folder) < step:
        time.sleep(0.01)


def resume_and_compare(trial: Trial, training: str, folder: Path, **options):
    "Go on to the end: what differs, and the session."
    processes = options.get("processes", 1)
    whole, _ = trial.whole(training, processes)
    session = trial.finish(training, folder, resume=True, **options)
    if session.code != 0:
        return f"exit code {session.code}: {session.text()[-400:]}", session
    return differences(whole, folder), session


def kill_one_process(trial: Trial, training: str, kills: int = 2) -> None:
    "The other one must end by itself within a minute."
    for rank in range(kills):
        folder = trial.new_folder(f"{training}-one-rank")
        session = trial.session(training, folder, processes=2)
        until_step(session, trial.draw.randint(4, 8))
        time.sleep(trial.draw.uniform(0, 0.3))
        start = time.monotonic()
        session.kill("one", rank % 2)
        ended = session.wait(PATIENCE)
        seconds = round(time.monotonic() - start, 1)
        session.kill()
        session.wait(10)
        said = session.messages() or [session.text().strip().splitlines()[-1][:200]]
        wrong, _ = resume_and_compare(trial, training, folder, processes=2)
        if not ended:
            wrong = [f"hangs for {PATIENCE} s", *wrong]
        trial.fault(
            f"one of two processes killed, {training}, rank {rank % 2}",
            wrong,
            seconds=seconds,
            codes=list(session.codes.values()),
            said=said,
        )


def kill_launcher(trial: Trial, training: str) -> None:
    "The processes may go on alone; when they have ended, the training can be resumed."
    name = f"the launcher killed, {training}"
    if trial.fork:
        return trial.skip(name, "with --fork there is no launcher")
    folder = trial.new_folder(f"{training}-launcher")
    session = trial.session(training, folder, processes=2)
    until_step(session, 4)
    session.find_workers()
    session.kill("launcher")
    time.sleep(1)
    left = [pid for pid in session.workers if is_alive(pid)]
    ended = session.wait(PATIENCE)
    session.kill()
    session.wait(10)
    reached = logged_step(folder)
    wrong, _ = resume_and_compare(trial, training, folder, processes=2)
    trial.fault(name, wrong, left=len(left), ended=ended, log_to_step=reached)


# ---- disks


@contextmanager
def small_disk(size: str):
    "A file system in memory; raises `PermissionError` or `OSError` without root."
    place = tempfile.mkdtemp()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise PermissionError("needs root on Linux, to mount a small disk")
    if subprocess.run(mount, capture_output=True).returncode:
        raise PermissionError("this machine does not allow to mount a small disk")
    try:
        yield Path(place)
    finally:
        subprocess.run(["umount", "-l", place], capture_output=True)
        os.rmdir(place)


def full_disk(trial: Trial, training: str, size: str) -> None:
    "Train until the disk is full; then move the folder and go on."
    name = f"full disk of {size}B, {training}"
    try:
        with small_disk(size) as disk:
            folder = disk / "run"
            session = trial.finish(training, folder)
            wrong = session.one_line("free some space", str(disk))
            step, half = last_step(folder), half_written(folder)
            moved = trial.new_folder(f"{training}-moved")
            if folder.exists():
                shutil.copytree(folder, moved)
    except PermissionError as e:
        return trial.skip(name, str(e))
    later, _ = resume_and_compare(trial, training, moved)
    wrong = [w for w in (wrong, half and f"left {half}", later) if w]
    trial.fault(name, wrong, checkpoint=step, said=session.messages())


def make_read_only(place: Path) -> None:
    "What is opened from now on; open files can still be written, as a real one allows."
    subprocess.run(["mount", "--bind", str(place), str(place)], check=True)
    mount = ["mount", "-o", "remount,bind,ro", str(place)]
    while subprocess.run(mount, capture_output=True).returncode:
        time.sleep(0.01)  # a file was open at this moment


def read_only_disk(trial: Trial, training: str) -> None:
    "The disk becomes read-only in the middle of a training; later it can be written."
    name = f"disk becomes read-only, {training}"
    try:
        with small_disk("200m") as disk:
            folder = disk / "run"
            session = trial.session(training, folder)
            until_step(session, 4)
            make_read_only(disk)
            session.wait()
            wrong = session.one_line(str(disk))
            said, step = session.messages(), last_step(folder)
            again = trial.finish(training, folder, resume=True)
            second = again.one_line(str(disk))
            subprocess.run(["umount", str(disk)], check=True)
            later, _ = resume_and_compare(trial, training, folder)
    except PermissionError as e:
        return trial.skip(name, str(e))
    wrong = [w for w in (wrong, second and f"at the start: {second}", later) if w]
    trial.fault(name, wrong, checkpoint=step, said=said, at_start=again.messages())


# ---- two trainings, locks, clocks, threads


def two_trainings(trial: Trial, training: str) -> None:
    "The second one in a folder is refused while the first one runs, and harms nothing."
    whole, _ = trial.whole(training)
    folder = trial.new_folder(f"{training}-shared")
    first = trial.session(training, folder)
    until_step(first, 2)
    os.kill(
        first.workers[0], signal.SIGSTOP
    )  # it holds the folder, however slow we are
    second = trial.finish(training, folder, resume=True)
    third = trial.finish(training, folder)
    os.kill(first.workers[0], signal.SIGCONT)
    first.wait()
    pid = str(first.workers[0])
    wrong = [second.one_line(pid), third.one_line()]
    wrong += differences(whole, folder) if first.code == 0 else [first.text()[-400:]]
    trial.fault(
        f"two trainings in one folder, {training}",
        [w for w in wrong if w],
        said=second.messages() + third.messages(),
    )


def kill_at_step(
    trial: Trial, training: str, folder: Path, step: int, **options
) -> Session:
    "Begin a training and kill it when it has logged a step."
    session = trial.session(training, folder, **options)
    until_step(session, step)
    session.kill()
    session.wait()
    return session


def stale_lock(trial: Trial, training: str) -> None:
    "What a killed training leaves is no obstacle, and there is a note."
    folder = trial.new_folder(f"{training}-stale")
    session = kill_at_step(trial, training, folder, 5)
    wrong, later = resume_and_compare(trial, training, folder)
    pid = str(session.workers[0])
    if not any(pid in note for note in later.notes()):
        wrong = [*wrong, f"no note that names the process {pid}: {later.notes()}"]
    trial.fault(f"lock of a killed training, {training}", wrong, notes=later.notes())


def jumping_clock(trial: Trial, training: str) -> None:
    "The clock goes a day back and a day ahead, within a session and between two."
    whole, _ = trial.whole(training)
    folder = trial.new_folder(f"{training}-clock")
    kill_at_step(trial, training, folder, 7, clock=True)
    wrong, _ = resume_and_compare(trial, training, folder, clock=True)
    trial.fault(f"clock jumps by a day, {training}", wrong)


def other_threads(trial: Trial, training: str) -> None:
    "Another number of threads may change the last bits; there is a note."
    whole, _ = trial.whole(training)
    folder = trial.new_folder(f"{training}-threads")
    kill_at_step(trial, training, folder, 5)
    later = trial.finish(training, folder, resume=True, threads=2)
    wrong = None
    if later.code:
        wrong = later.text()[-400:]
    elif not any("threads" in note for note in later.notes()):
        wrong = f"no note: {later.notes()}"
    trial.fault(
        f"resumed with other threads, {training}",
        wrong,
        notes=later.notes(),
        differing=differences(whole, folder),
    )


def text_cache_is_whole(trial: Trial) -> None:
    "The embeddings on disk can be read after all kills."
    for path in trial.folder.glob("*/.texts/*.safetensors"):
        try:
            load_tensors(path)
        except UserError as e:
            trial.fault(f"text cache {path.parent.parent.name}", e)


# ---- all


def warm_up() -> None:
    "Import once what the forks need."
    import accelerate  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import t2i_tutorial.cli
    import t2i_tutorial.diffusion.imagen  # noqa: F401
    import t2i_tutorial.gan.gigagan  # noqa: F401
    from t2i_tutorial.training import plot_losses

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports torch._dynamo
    plot_losses([{"step": 1, "loss": 1.0}]).savefig(BytesIO())


def run(trial: Trial, only: list[str], kills: int, processes: list[int]) -> None:
    "Everything that was asked for; the log is in `trial`."
    for training in ("gigagan", "imagen"):
        if training in only:
            for i, n in enumerate(processes):  # the kills are shared out
                kill_often(trial, training, n, len(range(i, kills, len(processes))))
    for training in ("clip", "classifier"):
        if training in only:
            kill_often(trial, training, 1, max(1, kills // 5))
    if "processes" in only:
        for training in ("imagen", "gigagan"):
            kill_one_process(trial, training)
        kill_launcher(trial, "imagen")
    if "disks" in only:
        for size in ("1m", "3m", "6m", "8m"):
            full_disk(trial, "imagen", size)
        full_disk(trial, "gigagan", "30m")
        read_only_disk(trial, "imagen")
    if "folders" in only:
        for training in ("imagen", "gigagan"):
            two_trainings(trial, training)
            stale_lock(trial, training)
    if "clock" in only:
        jumping_clock(trial, "imagen")
    if "threads" in only:
        other_threads(trial, "imagen")
    text_cache_is_whole(trial)


PARTS = [*COMMANDS, "processes", "disks", "folders", "clock", "threads"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    seed = int.from_bytes(os.urandom(4), "big")
    parser.add_argument("--kills", type=int, default=20, help="of each training")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=seed, help="of the moments")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--settings", nargs="+", default=[], help="train.max_steps=6")
    parser.add_argument("--fork", action="store_true", help="forks, not commands")
    parser.add_argument(
        "--folder", type=Path, help="kept; a temporary one if not given"
    )
    parser.add_argument("--output", type=Path, default=Path("kill_log.json"))
    args = parser.parse_args()
    COMMANDS["gigagan"] += args.settings
    COMMANDS["imagen"] += args.settings
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    folder = args.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    trial = Trial(folder, args.seed, args.fork)
    trial.say(f"seed {args.seed}, trainings in {folder}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if args.fork:
        warm_up()
    try:
        run(trial, args.only, args.kills, args.processes)
    finally:
        trial.stop()
        trial.log["wrong"] = trial.wrong
        save_json(args.output, trial.log)
        if args.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    trial.say(
        f"{len(trial.log['kills'])} kills, {len(trial.wrong)} wrong; {args.output}"
    )
    return 1 if trial.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
