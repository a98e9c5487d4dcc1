"""The same core-minutes for every model, and then: whose images are better?

    python same_minutes.py [--json FILE] [--adapters NAME ...] [--minutes 2 10 30]
        [--num-prompts 500] [--judge-minutes 15] [--short]

Every model trains on the same critters with the same captions in the same order, one
thread, in turns of `--turn` core-seconds, one after the other. At each mark it is
judged on 500 prompts of the validation split: share of stated attributes that the
attribute classifier finds, and MMD, precision and coverage by the dead-leaves network,
which saw none of our images. A model whose learning rate falls towards the end (ours)
is trained anew for each mark, and for 3 minutes too; the others are judged on their
way. Of a peer's guidance scales, its own and ours, a pilot of 64 prompts with another
seed decides, and both pilots are kept. Sampling of a judgement takes `--judge-minutes`
at most, with fewer prompts (but 64) if it must.

Snapshots go to `_build/peers/`; they make a stopped run go on, and `equal_quality.py`
reads them.
"""

import sys
from functools import partial

from adapters import NAMES, NUM_IMAGES, TINY
from harness import (
    WORK,
    Rows,
    Worker,
    alternate,
    choose_adapters,
    found_peers,
    head,
    parser,
    record_path,
    start_workers,
)

COMPARED = [n for n in NAMES if "gigagan" not in n]
EXTRA_MINUTES = (3,)  # of ours: is it there where the best peer is after 30?
PARAMETERS = 3_279_939  # of our Imagen `cpu-32`


def runs_of(name: str, minutes: list[float], needs_budget: bool) -> dict[str, list]:
    "The trainings of an adapter: by name, the marks in core-seconds."
    if not needs_budget:
        return {name: [60 * m for m in minutes]}
    more = EXTRA_MINUTES if max(minutes) > max(EXTRA_MINUTES) else ()
    return {f"{name}, {m:g} min": [60 * m] for m in sorted({*minutes, *more})}


class Training:
    "One training of one worker, as turns that the alternation calls."

    def __init__(self, worker, rows: Rows, run: str, options, work):
        self.worker, self.rows, self.run = worker, rows, run
        self.options, self.work = options, work
        self.progress = {}  # what the worker said after its last turn
        self.core_seconds = 0.0
        state = self.file("")
        if state.exists():
            self.core_seconds = worker.ask("load", path=str(state))["core_seconds"]

    def file(self, mark: str, suffix: str = "pt"):
        "Where a state is kept: the newest without a mark."
        return self.work / f"{self.run}{mark}.{suffix}".replace(" ", "")

    def train(self, mark: float) -> None:
        "One turn, at most to the mark; the state is kept."
        seconds = min(self.options.turn, mark - self.core_seconds)
        self.progress = self.worker.ask("train", core_seconds=seconds)
        self.core_seconds = self.progress["core_seconds"]
        self.worker.ask("save", path=str(self.file("")))

    def snapshot(self, mark: float) -> None:
        "Keep the state at a mark for `equal_quality.py`."
        self.worker.ask("save", path=str(self.file(f"-{mark:g}")))

    def judge(self, mark: float, scale: float | None, pilot: bool) -> None:
        "A row: quality at a mark, at one guidance scale; of few prompts as a pilot."
        key = self.key(mark, scale, pilot)
        if key in self.rows:
            return
        options = self.options
        steps = 3 if options.short else self.worker.about["judge_steps"]
        images = str(self.file(f"-{mark:g}", "safetensors"))
        full = {"n": options.num_prompts, "core_seconds": 60 * options.judge_minutes}
        few = {"n": min(64, options.num_prompts), "seed": 2}
        found = self.worker.ask(
            "judge",
            steps=min(steps, 50) if pilot and steps else steps,
            guidance_scale=scale,
            **(few if pilot else full | {"images": images}),
        )
        about = {"run": self.run, "core_minutes": mark / 60, "guidance_scale": scale}
        about |= {"steps": steps, "pilot": pilot}
        self.rows.add(key, about | self.progress | found)

    def key(self, mark: float, scale: float | None, pilot: bool) -> str:
        "The name of a row."
        kind = f"pilot, guidance {scale}" if pilot else "judged"
        return f"{self.run} | {mark / 60:g} min | {kind}"

    def judge_best(self, mark: float) -> None:
        "The row that counts, at the guidance scale whose pilot was more accurate."
        scales = self.worker.about["guidance_scales"]
        best = scales[0]
        if len(scales) > 1:
            pilots = {s: self.rows[self.key(mark, s, True)] for s in scales}
            best = max(scales, key=lambda s: pilots[s]["all"]["value"])
        self.judge(mark, best, pilot=False)

    def turns(self, marks: list[float]):
        "All turns, in order; each is a function without arguments."
        for mark in marks:
            while self.core_seconds < mark - 0.01:
                yield partial(self.train, mark)
            if not self.file(f"-{mark:g}").exists():
                yield partial(self.snapshot, mark)
            scales = self.worker.about["guidance_scales"]
            for scale in scales if len(scales) > 1 else ():
                yield partial(self.judge, mark, scale, True)
            yield partial(self.judge_best, mark)


def main() -> None:
    options = parser(__doc__, "peers-same-minutes.json", COMPARED)
    options.add_argument("--minutes", type=float, nargs="+", default=[2, 10, 30])
    options.add_argument("--judge-minutes", type=float, default=15)
    options.add_argument("--num-prompts", type=int, default=500)
    options.add_argument("--turn", type=float, default=30, help="core-seconds")
    options = options.parse_args()
    parameters, images = PARAMETERS, NUM_IMAGES
    if options.short:
        options.minutes, options.num_prompts, options.turn = [0.05], 24, 2
        parameters, images = TINY, 512
    settings = {
        "minutes": options.minutes,
        "num_prompts": options.num_prompts,
        "parameters": parameters,
        "num_images": images,
        "split": "val",
    }
    rows = Rows(record_path(options), settings, head())
    work = WORK / ("short" if options.short else "same-minutes")
    needs = {name: peer for name, (_, _, peer) in NAMES.items()}
    usable, left_out = choose_adapters(options.adapters, needs, found_peers())
    workers, queues, about = {}, {}, {}

    def start(name: str, budget: float | None = None) -> Worker:
        arguments = ["--parameters", parameters, "--num-images", images]
        arguments += ["--budget", budget] if budget else []
        return Worker(name, *arguments)

    started, failed = start_workers(usable, start)
    for name, worker in started.items():
        about[name] = worker.about
        if worker.about["needs_budget"]:  # a worker for each of its trainings
            worker.close()
        for run, marks in runs_of(
            name, options.minutes, worker.about["needs_budget"]
        ).items():
            if worker.about["needs_budget"]:
                worker = start(name, marks[-1])
            workers[run] = worker
            training = Training(worker, rows, run, options, work)
            queues[run] = training.turns(marks)
    rows.note("left_out", left_out | failed)
    rows.note("adapters", about)
    for run, turn in alternate(queues):
        try:
            turn()
        except RuntimeError as e:  # a peer that fails while it trains is no end of all
            print(f"left out from here on: {e}", file=sys.stderr, flush=True)
            rows.note("left_out", rows.record["left_out"] | {run: str(e)[:400]})
            queues[run].close()
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    main()
