"""The house: import, a cold `t2i generate`, the book built twice, the tests.

    python house.py [--json FILE] [--rounds 5] [--parts import generate book test]
        [--short]

Import time beyond torch's is that of `import t2i_tutorial` and of its `Imagen` in fresh
processes, minus that of the same process that imports only torch. `book` and `test` run
`make book` (twice: the first one may execute chapters, the second finds all kept) and
`make test` in this checkout with the project's environment; they take minutes and are
not run unless they are named.
"""

import subprocess
import sys
import time
from statistics import median

from busy import generate
from harness import ROOT, Rows, alternate, head, parser, record_path

IMPORTS = {
    "python": "pass",
    "torch": "import torch",
    "t2i_tutorial": "import t2i_tutorial",
    "t2i_tutorial.Imagen": "import torch; from t2i_tutorial import Imagen",
    "t2i_tutorial.GigaGAN": "import torch; from t2i_tutorial import GigaGAN",
    "t2i --version": "from t2i_tutorial.cli import main; main(['--version'])",
}
MAKES = {"book": ("book", "book"), "test": ("test",)}  # the second book is another row


def seconds_of(*command: str) -> float:
    "Of a program, by the clock; it must succeed."
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    options = parser(__doc__, "peers-house.json")
    options.add_argument("--rounds", type=int, default=5)
    parts = ("import", "generate", *MAKES)
    options.add_argument("--parts", nargs="+", choices=parts, default=parts[:2])
    options = options.parse_args()
    rounds = 1 if options.short else options.rounds
    rows = Rows(record_path(options), {"rounds": rounds}, head())
    if "import" in options.parts:
        queues = {
            name: [code] * rounds
            for name, code in IMPORTS.items()
            if f"import {name}" not in rows
        }
        found: dict[str, list] = {}
        for name, code in alternate(queues):
            took = seconds_of(sys.executable, "-c", code)
            found.setdefault(name, []).append(took)
        for name, turns in found.items():
            rows.add(f"import {name}", {"seconds": median(turns), "turns": turns})
        base = rows["import torch"]["seconds"]
        rows.note(
            "beyond_torch",
            {
                name: rows[f"import {name}"]["seconds"] - base
                for name in IMPORTS
                if name.startswith("t2i_tutorial.")
            },
        )
    if "generate" in options.parts and "generate" not in rows:
        turns = [generate({}, 2, "critters-64") for _ in range(rounds)]
        row = {k: median(t[k] for t in turns) for k in turns[0]}
        rows.add("generate", row | {"turns": turns})
    for part in (p for p in MAKES if p in options.parts):
        for k, target in enumerate(MAKES[part]):
            key = f"make {target}" + (", again" if k else "")
            if key not in rows:
                rows.add(key, {"seconds": seconds_of("make", target)})


if __name__ == "__main__":
    main()
