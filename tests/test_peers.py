"""The comparison with other libraries: its orchestration, by two adapters of the test.

The peers are no requirement of the project; their adapters are imported only where
`make bench` has installed them.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "against_peers"
sys.path.insert(0, str(PEERS))
import adapters  # noqa: E402
import environment  # noqa: E402
import equal_quality  # noqa: E402
import harness  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
import same_minutes  # noqa: E402

RECORDS = sorted(harness.RESULTS.glob("peers-*.json"))


class FakeWorker:
    "Trains by counting; asks are noted in the order of all workers."

    def __init__(self, name: str, asked: list, needs_budget: bool = False):
        self.name, self.asked, self.seconds = name, asked, 0.0
        self.about = {
            "needs_budget": needs_budget,
            "guidance_scales": [3.0, None],
            "judge_steps": 7,
        }

    def ask(self, do: str, **arguments) -> dict:
        self.asked.append((self.name, do))
        if do == "train":
            self.seconds += arguments["core_seconds"]
            return {"core_seconds": self.seconds, "updates": int(self.seconds)}
        if do == "save":
            Path(arguments["path"]).write_text(str(self.seconds))
        if do == "load":
            self.seconds = float(Path(arguments["path"]).read_text())
            return {"core_seconds": self.seconds}
        if do == "judge":  # ours, None, is the better one
            better = arguments["guidance_scale"] is None
            return {"all": {"value": 0.6 if better else 0.5}}
        return {}


class Options:
    turn = 30
    num_prompts = 8
    judge_minutes = 1
    short = False


def go(workers: dict, path: Path, work: Path, stop_after: int | None = None):
    "Run the turns of both workers, perhaps only the first of them."
    work.mkdir(exist_ok=True)
    rows = harness.Rows(path, {"of": "test"})
    queues = {
        name: same_minutes.Training(w, rows, name, Options, work).turns([60, 120])
        for name, w in workers.items()
    }
    for k, (_, turn) in enumerate(harness.alternate(queues)):
        if k == stop_after:
            return rows
        turn()
    return rows


def test_workers_take_turns_and_every_mark_is_judged_at_the_better_guidance(tmp_path):
    asked = []
    workers = {n: FakeWorker(n, asked) for n in ("first", "second")}
    rows = go(workers, tmp_path / "rows.json", tmp_path / "work")
    trained = [name for name, do in asked if do == "train"]
    assert trained == ["first", "second"] * 4  # 120 core-seconds each, in turns of 30
    assert len(rows.keys()) == 2 * 2 * 3  # models, marks; two pilots and what counts
    assert {rows[k]["core_minutes"] for k in rows.keys()} == {1, 2}
    row = rows["first | 1 min | judged"]
    assert row["core_seconds"] == 60 and row["guidance_scale"] is None


@pytest.mark.parametrize("stop_after", [1, 5, 9, 13, 20])
def test_a_stopped_run_goes_on_and_repeats_no_row(tmp_path, stop_after):
    path, work = tmp_path / "rows.json", tmp_path / "work"
    go({n: FakeWorker(n, []) for n in "ab"}, path, work, stop_after)
    before = json.loads(path.read_text())["rows"] if path.exists() else {}
    asked = []
    workers = {n: FakeWorker(n, asked) for n in "ab"}
    rows = go(workers, path, work)
    assert all(w.seconds == 120 for w in workers.values())
    assert len(rows.keys()) == 12
    judged = [do for _, do in asked if do == "judge"]
    assert len(judged) == 12 - len(before)
    snapshots = {p.name: float(p.read_text()) for p in work.glob("?-*.pt")}
    assert snapshots == {"a-60.pt": 60, "a-120.pt": 120, "b-60.pt": 60, "b-120.pt": 120}


def test_rows_of_other_settings_are_refused(tmp_path):
    rows = harness.Rows(tmp_path / "rows.json", {"minutes": [2]})
    rows.add("a", {"x": 1})
    assert "a" in harness.Rows(tmp_path / "rows.json", {"minutes": [2]})
    with pytest.raises(SystemExit, match="other settings"):
        harness.Rows(tmp_path / "rows.json", {"minutes": [3]})


def test_notes_are_kept_when_a_script_is_started_again(tmp_path):
    rows = harness.Rows(tmp_path / "rows.json", {"minutes": [2]}, {"hardware": "old"})
    rows.note("summary", {"x": 1})
    again = harness.Rows(tmp_path / "rows.json", {"minutes": [2]}, {"hardware": "new"})
    again.add("a", {"y": 2})
    saved = json.loads((tmp_path / "rows.json").read_text())
    assert saved["summary"] == {"x": 1} and saved["hardware"] == "new"
    assert saved["rows"] == {"a": {"y": 2}}


def test_a_peer_that_is_not_there_is_left_out_with_its_reason():
    needs = {"ours": None, "theirs": "peer", "others": "gone"}
    found = {"peer": {"version": "1.0", "note": ""}, "gone": {"left_out": "needs 3.6"}}
    usable, left_out = harness.choose_adapters(list(needs), needs, found)
    assert usable == ["ours", "theirs"] and left_out == {"others": "needs 3.6"}
    usable, left_out = harness.choose_adapters(list(needs), needs, {})
    assert usable == ["ours"] and "make bench" in left_out["theirs"]


def test_a_worker_that_cannot_be_built_is_left_out():
    def start(name):
        if name == "bad":
            raise RuntimeError("bad: no module of that name")
        return name

    workers, left_out = harness.start_workers(["good", "bad"], start)
    assert workers == {"good": "good"} and "no module" in left_out["bad"]


def test_equal_quality_takes_the_cheapest_setting_within_five_percent():
    def row(steps, mmd, seconds):
        return {
            "adapter": "a",
            "steps": steps,
            "mmd": {"value": mmd},
            "seconds_an_image": seconds,
        }

    rows = {
        str(s): row(s, *x) for s, x in {5: (9, 1), 10: (1.04, 2), 50: (1, 9)}.items()
    }
    assert equal_quality.equal_quality(rows)["a"]["steps"] == 10


def test_the_table_shows_what_counts_and_no_pilots():
    def row(accuracy, pilot):
        measures = dict.fromkeys(("mmd", "precision", "coverage"), {"value": 0.1})
        about = {"run": "a", "core_minutes": 2, "guidance_scale": 3, "num_prompts": 9}
        return about | {"pilot": pilot, "all": {"value": accuracy}} | measures

    rows = {"pilot": row(0.9, True), "b": row(0.4, False), "c": row(0.6, False)}
    found = report.judged(rows)
    assert [r["accuracy"] for r in found] == [0.6, 0.4]
    assert report.markdown(found).count("\n") == 4


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_a_record_says_how_it_was_made(path):
    "Commit, hardware, versions, and of each peer its version or why it is missing."
    record = json.loads(path.read_text(encoding="utf-8"))
    assert len(record["git_commit"]) == 40 and record["hardware"]["cpu"]
    assert record["versions"]["torch"] and record["rows"]
    assert record["peers"].keys() == environment.PEERS.keys()
    assert all(p.keys() & {"version", "left_out"} for p in record["peers"].values())
    assert path.name in {f"peers-{t.replace('_', '-')}.json" for t in run.TASKS}


def test_the_order_of_images_does_not_depend_on_the_batch_size():
    class Data:
        captions = [(f"{i} a", f"{i} b") for i in range(7)]

        def __len__(self):
            return 7

        def pixels(self, indices):
            return indices[:, None, None, None].expand(-1, 3, 2, 2).to(torch.uint8)

    one, many = adapters.Stream(Data(), 1), adapters.Stream(Data(), 5)
    singles = [one.next() for _ in range(20)]
    fives = [many.next() for _ in range(4)]
    captions = [c for b in singles for c in b.captions]
    assert captions == [c for b in fives for c in b.captions]
    assert sorted(int(c.split()[0]) for c in captions[:7]) == list(range(7))
    again = adapters.Stream(Data(), 5, position=5)
    assert again.next().captions == fives[1].captions


def test_the_width_that_is_nearest_to_the_wanted_number_of_parameters():
    found = adapters.fit_width(lambda w: torch.nn.Linear(w, w), 120, range(2, 40))
    assert found.in_features in (10, 11)


@pytest.mark.parametrize("name", adapters.NAMES)
def test_an_adapter_says_its_settings_and_faults(name):
    module, kind, peer = adapters.NAMES[name]
    source = (PEERS / "adapters" / f"{module}.py").read_text()
    assert f"class {kind}(" in source
    if peer is not None:
        assert "as shipped" in source.partition('"""\n\n')[0], "faults in the docstring"
    if peer is not None and importlib.util.find_spec(peer.replace("-", "_")) is None:
        pytest.skip(f"{peer} is not installed here; make bench installs it")
    cls = adapters.load_adapter(name)
    assert issubclass(cls, adapters.Adapter) and cls.batch_size >= 16


WAIT = """
import os, sys
from t2i_tutorial import cli
cli.main(["--version"])
assert "torch" not in sys.modules
print(os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ({}, "passive"),
        ({"OMP_WAIT_POLICY": "active"}, "active"),
        ({"GOMP_SPINCOUNT": "1000"}, "None"),
        ({"KMP_BLOCKTIME": "1"}, "None"),
    ],
)
def test_the_command_lets_waiting_threads_sleep_unless_the_user_chose(chosen, found):
    hidden = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    said = subprocess.check_output(
        [sys.executable, "-c", WAIT], text=True, env=environment | chosen
    )
    assert said.splitlines()[-1] == found
