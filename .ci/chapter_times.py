"""Run every chapter once and record how long it took and how long it is: `make times`.

The book's first page reads the record; nothing about time is typed in by hand.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NOT_READ = ("#| hide", "#| code-fold", "#| echo: false", "#| default_exp")


def length(path: Path) -> dict:
    "Title, subtitle, words, visible code cells and minutes of reading of a notebook."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = {"code": [], "markdown": []}
    answer = False  # answers of exercises are folded
    for c in cells:
        source = "".join(c["source"])
        if c["cell_type"] == "markdown":
            answer = source.rfind("{solution-start}") > source.rfind("{solution-end}")
            source = re.sub(
                r"\{solution-start\}.*?\{solution-end\}", "", source, flags=re.S
            )
        if c["cell_type"] == "markdown" or not answer:
            sources[c["cell_type"]].append(source)
    text = "\n".join(sources["markdown"])
    visible = [s for s in sources["code"] if not any(d in s for d in NOT_READ)]
    words = len(re.findall(r"\w+", text))
    return {
        "file": path.stem,
        "title": re.search(r"^# (.+)$", text, re.M)[1],
        "subtitle": re.search(r"^> (.+)$", text, re.M)[1],
        "words": words,
        "code_cells": len(visible),
        "reading_minutes": round(words / 200 + 0.75 * len(visible), 1),
    }


def cpu_seconds() -> float:
    "Processor time of the programs that this process has started and waited for."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(path: Path) -> dict:
    """`length`, and the seconds that the notebook runs, from top to bottom.

    Processor time on one thread: what it takes on an idle machine, whatever else runs.
    """
    start = cpu_seconds()
    command = [str(BIN / "nbdev_test"), "--path", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return length(path) | {"seconds": round(cpu_seconds() - start, 1)}


def parts() -> dict[str, str]:
    "Chapter -> part, in the order of the table of contents."
    found, part = {}, None
    for line in (ROOT / "_toc.yml").read_text(encoding="utf-8").splitlines():
        if caption := re.search(r"caption: \"?([^\"]+)\"?$", line):
            part = caption[1]
        if file := re.search(r"file: nbs/(\d\w+)$", line):
            found[file[1]] = part
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()  # refuses arguments
    from t2i_tutorial.core import save_json

    found = {ROOT / "nbs" / f"{n}.ipynb": p for n, p in parts().items()}
    found = {k: p for k, p in found.items() if k.exists() and p != "Reference"}
    with ProcessPoolExecutor(2, max_tasks_per_child=1) as pool:
        done = pool.map(measure, found)
        chapters = [{"part": p} | d for p, d in zip(found.values(), done)]
    hardware = f"one thread of {os.cpu_count()} cores, {platform.machine()}, no GPU, "
    record = {
        "recorded": date.today().isoformat(),
        "hardware": hardware + f"Python {platform.python_version()}",
        "chapters": chapters,
    }
    save_json(ROOT / "t2i_tutorial" / "results" / "chapter_times.json", record)


if __name__ == "__main__":
    main()
