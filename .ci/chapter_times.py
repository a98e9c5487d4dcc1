"""Run every chapter once and record how long it took and how long it is: `make times`.

The book's first page reads the record; nothing about time is typed in by hand.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def measure(path: Path) -> dict:
    "Title, words and code cells of a notebook, and the seconds that it takes to run from top to bottom."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join(
        "".join(c["source"]) for c in cells if c["cell_type"] == "markdown"
    )
    start = time.time()
    subprocess.run(
        [str(BIN / "nbdev_test"), "--path", str(path)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return {
        "file": path.stem,
        "title": re.search(r"^# (.+)$", text, re.M)[1],
        "words": len(re.findall(r"\w+", text)),
        "code_cells": sum(c["cell_type"] == "code" for c in cells),
        "seconds": round(time.time() - start, 1),
    }


def main() -> None:
    from t2i_tutorial.core import save_json

    listed = re.findall(
        r"file: nbs/(\d\w+)$", (ROOT / "_toc.yml").read_text(encoding="utf-8"), re.M
    )  # no drafts
    chapters = [
        measure(p)
        for p in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
        if p.stem in listed
    ]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, no GPU used, Python {platform.python_version()}"
    save_json(
        ROOT / "t2i_tutorial" / "results" / "chapter_times.json",
        {
            "recorded": date.today().isoformat(),
            "machine": machine,
            "chapters": chapters,
        },
    )


if __name__ == "__main__":
    main()
