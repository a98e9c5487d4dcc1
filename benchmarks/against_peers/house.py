"""The house: import, a cold `t2i generate`, the book built twice, the tests.

    python house.py [--json FILE] [--rounds 5] [--parts import generate book test]
        [--before REVISION] [--short]

Import time beyond torch's is that of `import t2i_tutorial` and of its `Imagen` in fresh
processes, minus that of the same process that imports only torch. With --before imports
and `t2i generate` are timed in a checkout of an earlier revision, too, in turns with
this one. A first turn, in which Python keeps the compiled sources, is left out. `book`
and `test` run `make book` (twice: the first one may execute chapters, the second finds
all kept) and `make test` in this checkout with the project's environment; they take
minutes and are not run unless they are named.
"""

import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median

from busy import environment_of, generate
from harness import ROOT, WORK, Rows, head, parser, record_path, row_of, take_turns

IMPORTS = {
    "python": "pass",
    "torch": "import torch",
    "t2i_tutorial": "import t2i_tutorial",
    "t2i_tutorial.Imagen": "import torch; from t2i_tutorial import Imagen",
    "t2i_tutorial.GigaGAN": "import torch; from t2i_tutorial import GigaGAN",
    "t2i --version": "from t2i_tutorial.cli import main; main(['--version'])",
}
MAKES = {"book": ("book", "book"), "test": ("test",)}  # the second book is another row


def seconds_of(*command: str, **options) -> float:
    "Of a program, by the clock; it must succeed."
    start = time.perf_counter()
    options = {"cwd": ROOT, "stdout": subprocess.DEVNULL} | options
    subprocess.run(command, check=True, **options)
    return time.perf_counter() - start


def seconds_of_code(code: str, root: Path) -> float:
    "Of a fresh process that runs this code with the library of a checkout."
    environment = environment_of({}, 2) | {"PYTHONPATH": str(root)}
    return seconds_of(sys.executable, "-c", code, cwd=root, env=environment)


def checkouts(before: str | None) -> dict[str, Path]:
    "What is added to the names of rows, and the folder that they are measured in."
    roots = {"": ROOT}
    if before:
        roots[", before"] = WORK / "before"
        shutil.rmtree(WORK / "before", ignore_errors=True)
        command = ["git", "archive", before, "t2i_tutorial"]
        archive = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
            files.extractall(WORK / "before", filter="data")
    return roots


def warm_turns(measures: dict[str, Callable], rounds: int) -> dict[str, list]:
    "What each gives in so many rounds, after one that is left out."
    return {k: turns[1:] for k, turns in take_turns(measures, rounds + 1).items()}


def main() -> None:
    options = parser(__doc__, "peers-house.json")
    options.add_argument("--rounds", type=int, default=5)
    parts = ("import", "generate", *MAKES)
    options.add_argument("--parts", nargs="+", choices=parts, default=parts[:2])
    options.add_argument("--before", help="a revision, for instance of git log")
    options = options.parse_args()
    rounds = 1 if options.short else options.rounds
    settings = {"rounds": rounds, "before": options.before}
    rows = Rows(record_path(options), settings, head())
    roots = checkouts(options.before)
    if "import" in options.parts:
        measures = {
            f"import {name}{when}": partial(seconds_of_code, code, root)
            for name, code in IMPORTS.items()
            for when, root in roots.items()
            if f"import {name}{when}" not in rows and (not when or "t2i" in name)
        }
        for name, turns in warm_turns(measures, rounds).items():
            rows.add(name, {"seconds": median(turns), "turns": turns})
        base = rows["import torch"]["seconds"]
        rows.note(
            "beyond_torch",
            {
                f"{name}{when}": rows[f"import {name}{when}"]["seconds"] - base
                for name in IMPORTS
                for when in roots
                if name.startswith("t2i_tutorial.")
            },
        )
    if "generate" in options.parts:
        measures = {
            f"generate{when}": partial(generate, {}, 2, "critters-64", root)
            for when, root in roots.items()
            if f"generate{when}" not in rows
        }
        for name, turns in warm_turns(measures, rounds).items():
            rows.add(name, row_of(turns))
    for part in (p for p in MAKES if p in options.parts):
        for k, target in enumerate(MAKES[part]):
            key = f"make {target}" + (", again" if k else "")
            if key not in rows:
                rows.add(key, {"seconds": seconds_of("make", target)})


if __name__ == "__main__":
    main()
