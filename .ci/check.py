"""`make test`: ruff and oxlint find nothing, export and clean leave no difference, the
book is built by executing every chapter, pytest (with the browser checks) passes.
"""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CHECKED = ("nbs", "t2i_tutorial", "tests", "_ext", ".ci", "benchmarks", "setup.py")
BY_HAND = tuple(
    f"t2i_tutorial/{n}.py" for n in ("__init__", "cli", "exercises")
)  # the rest is exported
SCRIPTS = ("_ext/static/playground/*.js", "tests/javascript/*.mjs")  # formatted
ENVIRONMENT = os.environ | {
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONDONTWRITEBYTECODE": "",
}  # compiled modules are kept: a dozen kernels import torch one after the other


def run(title: str, *command: str, **environment: str) -> None:
    """Run one step, perhaps with more environment variables.

    Stop with its name if it fails.
    """
    start = time.time()
    print(f"== {title}", flush=True)
    code = subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=ROOT, env=ENVIRONMENT | environment
    ).returncode
    if code:
        sys.exit(f"make: test failed at: {title}")
    print(f"== {title}: passed in {time.time() - start:.0f} s", flush=True)


def sources() -> dict[str, str]:
    "A digest of each notebook and each module."
    files = [*ROOT.glob("nbs/*.ipynb"), *ROOT.glob("t2i_tutorial/**/*.py")]
    return {
        str(f.relative_to(ROOT)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in files
    }


def main() -> None:
    run("ruff: lint", "ruff", "check", *CHECKED)
    run("ruff: format", "ruff", "format", "--check", *CHECKED, *BY_HAND)
    run("oxlint", "oxlint", "--deny-warnings", "_ext/static", "tests/javascript")
    run("oxfmt", "oxfmt", "--check", *SCRIPTS)
    before = sources()
    run("export", "nbdev_export")
    run("clean", "nbdev_clean")
    after = sources()
    if changed := sorted(k for k in before | after if before.get(k) != after.get(k)):
        sys.exit(
            f"make: test failed: export and clean changed {', '.join(changed)}; they "
            "are put right now, look at the difference and commit it"
        )
    # the book executes every chapter, and a cell that fails ends its build; nbdev_test
    # would run them all a second time, so it is tried on the first four alone
    run(
        "nbdev_test",
        "nbdev_test",
        *("--file_re", r"^0[1-4]_", "--n_workers", "2", "--do_print", "--timing"),
        OMP_NUM_THREADS="1",
    )
    run("the book builds, every chapter is executed", "python", "_ext/book.py")
    slowest = ("--durations", "30", "--durations-min", "5")
    run("tests", "pytest", "-n", "2", *slowest, OMP_NUM_THREADS="1")


if __name__ == "__main__":
    main()
