"""What the scripts of this folder share: workers, alternation, rows that are kept.

A *worker* is a process that holds one adapter and does what it is told, one line of
JSON at a time; between its turns it sleeps, so that only one program computes at any
moment and each has an environment of its own. The scripts give the workers short turns,
one after the other: what else the machine does meets all of them alike. Time is the
worker's own processor time, on one thread.

A *row* is one measurement. It is written to the JSON as soon as it is made; a script
that is started again makes only the rows that are missing.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from adapters import NAMES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "_build" / "peers"  # texts, snapshots: what can be made again
RESULTS = ROOT / "t2i_tutorial" / "results"
FOUND = ROOT / "_build" / "bench-env" / "peers.json"
ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
}
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def found_peers() -> dict[str, dict]:
    "What the environment says of each peer: a version, or why it was left out."
    return json.loads(FOUND.read_text())["peers"] if FOUND.exists() else {}


def choose_adapters(
    names: Sequence[str],  # as asked for
    needs: Mapping[str, str | None],  # adapter -> the peer that it needs, None for ours
    found: Mapping[str, Mapping],  # see `found_peers`
) -> tuple[list[str], dict[str, str]]:  # those that can be used; the others, and why
    "Leave out the adapters whose peer is not there."
    usable, left_out = [], {}
    for name in names:
        peer = needs[name]
        entry = found.get(peer, {"left_out": "not installed; run make bench"})
        if peer is None or "left_out" not in entry:
            usable.append(name)
        else:
            left_out[name] = entry["left_out"]
    return usable, left_out


def alternate(queues: Mapping[str, Iterable]) -> Iterator[tuple[str, object]]:
    "One item of each queue in turn, until all are empty."
    iterators = {name: iter(queue) for name, queue in queues.items()}
    while iterators:
        for name in list(iterators):
            try:
                item = next(iterators[name])
            except StopIteration:
                del iterators[name]
                continue
            yield name, item


def take_turns(measures: Mapping[str, Callable], rounds: int) -> dict[str, list]:
    "What each of these gives in so many rounds, one call of each in turn."
    found: dict[str, list] = {name: [] for name in measures}
    for name, measure in alternate({k: [f] * rounds for k, f in measures.items()}):
        found[name].append(measure())
    return found


def row_of(turns: Sequence[Mapping[str, float]]) -> dict:
    "The median of each number, and the turns themselves."
    return {k: median(t[k] for t in turns) for k in turns[0]} | {"turns": turns}


class Rows:
    "The measurements of a script, in a JSON file that is whole after each of them."

    def __init__(
        self,
        path: Path | None,  # None keeps nothing
        settings: dict,  # what the rows depend on; other settings are refused
        head: dict | None = None,  # what else the file says, for instance hardware
    ):
        self.path = path
        settings = json.loads(json.dumps(settings))
        self.record = {"settings": settings, **(head or {}), "rows": {}}
        if path is not None and path.exists():
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved.get("settings") != settings:
                sys.exit(
                    f"{path} was measured with other settings; remove it, or write "
                    f"elsewhere: {saved.get('settings')!r:.300}"
                )
            self.record = saved | self.record | {"rows": saved["rows"]}
            if head and saved.get("versions") != head.get("versions"):
                print(f"note: {path} was begun with other versions", file=sys.stderr)

    def __contains__(self, key: str) -> bool:
        return key in self.record["rows"]

    def __getitem__(self, key: str) -> dict:
        return self.record["rows"][key]

    def keys(self) -> list[str]:
        return list(self.record["rows"])

    def add(self, key: str, row: dict) -> None:
        "Keep a row; the file is replaced at once."
        self.record["rows"][key] = row
        print(key, json.dumps(row)[:300], flush=True)
        self.save()

    def note(self, key: str, value: object) -> None:
        "Something that the file says beside its rows."
        self.record[key] = value
        self.save()

    def save(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        text = json.dumps(self.record, indent=1, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(self.path)


class Worker:
    "A process that answers one line of JSON with another."

    def __init__(self, *arguments: object, environment: Mapping[str, str] = {}):
        command = [sys.executable, str(HERE / "worker.py"), *map(str, arguments)]
        self.name = str(arguments[0])
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ONE_THREAD | QUIET | environment,
        )
        self.about = self._read()  # parameters, batch size, steps of the sampler

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            self.close()
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, do: str, **arguments) -> dict:
        "One turn: the worker computes while this process waits."
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        "End the process."
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait()


def start_workers(
    names: Sequence[str], start: Callable[[str], Worker]
) -> tuple[dict[str, Worker], dict[str, str]]:  # those that run; the others, and why
    "Start a worker for each name; one that cannot be built is left out."
    workers, left_out = {}, {}
    for name in names:
        try:
            workers[name] = start(name)
        except RuntimeError as e:
            left_out[name] = str(e)[:400]
            print(f"left out: {e}", file=sys.stderr, flush=True)
    return workers, left_out


def usable_workers(
    names: Sequence[str],  # of adapters, as asked for
    start: Callable[[str], Worker],
    rows: Rows,
) -> dict[str, Worker]:
    "Workers of all adapters that can be used; `rows` says which cannot, and why."
    needs = {name: peer for name, (_, _, peer) in NAMES.items()}
    usable, left_out = choose_adapters(names, needs, found_peers())
    workers, failed = start_workers(usable, start)
    rows.note("left_out", left_out | failed)
    return workers


def head() -> dict:
    "What a record says of how it was made."
    from t2i_tutorial.clip import git_commit, hardware_info

    record = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    return {
        "git_commit": git_commit(),
        "hardware": hardware_info(),
        "versions": record.get("versions", {}),
        "peers": record.get("peers", {}),
    }


def parser(doc: str, record: str, adapters: Sequence[str] = ()):
    "The options that all scripts have."
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    path = RESULTS / record
    options.add_argument("--json", type=Path, default=path, help="where the rows go")
    options.add_argument(
        "--short", action="store_true", help="seconds, to prove the code; to _build"
    )
    if adapters:
        options.add_argument("--adapters", nargs="+", default=list(adapters))
    return options


def record_path(options) -> Path:
    "Where the rows go: with `--short` never into the recorded results."
    if options.short and options.json.parent == RESULTS:
        return WORK / "short" / options.json.name
    return options.json
