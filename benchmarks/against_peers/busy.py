"""How long does `t2i generate` take beside busy programs, and what makes it slow?

    python busy.py [--json FILE] [--busy 2] [--threads 2] [--rounds 5] [--short]

Beside `--busy` programs of `--threads` threads each (they train a small convolutional
network without end) the command draws its four images, with each setting in turn, and
once with nothing beside it. PyTorch's threads are those of OpenMP: at the end of every
parallel part each thread waits for the others, and GNU's libgomp by default *spins* for
some hundred thousand rounds before it sleeps. If a thread's core is given to another
program, the rest of its team burns theirs until it comes back; every program does the
same to the others. With `OMP_WAIT_POLICY=passive` a waiting thread sleeps at once and
leaves its core to those who compute. The variable is read when the library is loaded,
before torch is imported.
"""

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from harness import QUIET, ROOT, Rows, head, parser, record_path, row_of, take_turns

SETTINGS = {
    "as it was": {"OMP_WAIT_POLICY": ""},  # see `environment_of`
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_WAIT_POLICY": "", "OMP_NUM_THREADS": "1"},
    "the command's own": {},
}
BUSY = """
import torch, torch.nn.functional as F
x, w = torch.randn(32, 32, 32, 32), torch.randn(32, 32, 3, 3, requires_grad=True)
print("ready", flush=True)
while True:
    F.relu(F.conv2d(x, w, padding=1)).sum().backward()
"""


def environment_of(setting: dict[str, str], threads: int) -> dict[str, str]:
    """This environment with a setting, and without what would hide it.

    An empty value stands for libgomp's own default: the command leaves a variable alone
    that is there, and GNU's library ignores an empty one.
    """
    hidden = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    hidden += ("PYTHONDONTWRITEBYTECODE",)  # with it every import compiles its sources
    kept = {k: v for k, v in os.environ.items() if k not in hidden}
    return kept | QUIET | {"OMP_NUM_THREADS": str(threads)} | setting


def generate(
    setting: dict[str, str], threads: int, model: str, root: Path = ROOT
) -> dict:
    "One run of the command of a checkout: seconds by the clock, by the processor."
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "t2i_tutorial.cli", "generate"]
        command += ["a blue and red dragon", "--model", model]
        start, before = time.perf_counter(), os.times()
        subprocess.run(
            [*command, "--output", f"{folder}/image.png"],
            check=True,
            cwd=root,
            env=environment_of(setting, threads) | {"PYTHONPATH": str(root)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        after = os.times()
    core = after.children_user + after.children_system
    core -= before.children_user + before.children_system
    return {"seconds": time.perf_counter() - start, "core_seconds": core}


def start_busy(n: int, threads: int) -> list[subprocess.Popen]:
    "Programs that compute until they are ended, as others' programs do."
    environment = environment_of({}, threads)
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", BUSY],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(n)
    ]
    for program in programs:
        program.stdout.readline()
    return programs


def main() -> None:
    options = parser(__doc__, "peers-busy.json")
    options.add_argument("--busy", type=int, default=2)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--model", default="critters-64")
    options = options.parse_args()
    if options.short:
        options.rounds, options.model = 1, "critters-32-gigagan"
    settings = {k: getattr(options, k) for k in ("busy", "threads", "rounds", "model")}
    rows = Rows(record_path(options), settings, head())
    for beside in (0, options.busy):
        programs = start_busy(beside, options.threads)
        try:
            measures = {
                name: partial(generate, setting, options.threads, options.model)
                for name, setting in SETTINGS.items()
                if f"{name} | {beside} beside" not in rows
            }
            found = take_turns(measures, options.rounds)
        finally:
            for program in programs:
                program.kill()
                program.wait()
        for name, turns in found.items():
            row = row_of(turns) | {"load": os.getloadavg()[0]}
            rows.add(f"{name} | {beside} beside", row)


if __name__ == "__main__":
    main()
