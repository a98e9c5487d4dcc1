"""Everything that `make bench` measures, one script after the other; then the table.

    python run.py [TASK ...] [--short]

A task that was stopped goes on where it was; its rows are in
`t2i_tutorial/results/peers-*.json`, with `--short` in `_build/peers/short/`.
"""

import argparse
import subprocess
import sys
import time

from harness import HERE, QUIET
from report import write_report

TASKS = {  # about so many minutes on one core, see README.md
    "same_minutes": 600,
    "equal_quality": 240,
    "gan_step": 15,
    "sampling": 5,
    "throughput": 15,
    "growth": 60,
    "busy": 10,
    "house": 5,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--short", action="store_true", help="prove the code")
    options = parser.parse_args()
    if unknown := sorted(set(options.tasks) - set(TASKS)):
        parser.error(f"no task {unknown[0]!r}; choose from {', '.join(TASKS)}")
    failed = []
    for task in options.tasks or TASKS:
        start = time.perf_counter()
        command = [sys.executable, str(HERE / f"{task}.py")]
        command += ["--short"] * options.short
        print(f"== {task}", flush=True)
        if subprocess.run(command, env=_environment()).returncode:
            failed.append(task)
        print(f"== {task}: {time.perf_counter() - start:.0f} s", flush=True)
    print(write_report(options.short))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; what they measured is kept")


def _environment() -> dict[str, str]:
    import os

    return os.environ | QUIET


if __name__ == "__main__":
    main()
