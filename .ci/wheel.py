"""`make wheel`: build the wheel, install it with the extra `train` into a fresh
environment elsewhere, and run every notebook there.

This is what a reader on another machine has: no repository, only what `pip install`
brings (and Jupyter's kernel).
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = """
import sys, nbformat
from nbclient import NotebookClient
path = sys.argv[1]
notebook = nbformat.read(path, 4)
not_run = ("#| eval: false", "#| slow", "#| gpu")  # the notebook itself says so
for cell in notebook.cells:
    if cell.cell_type == "code" and any(f in cell.source for f in not_run):
        cell.source = ""
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
"""


def call(*command, cwd: Path) -> None:
    "Run a program; stop with its output if it fails."
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(
            f"{done.stdout[-4000:]}\nmake: wheel failed at: "
            f"{' '.join(map(str, command))[:200]}"
        )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        elsewhere = Path(name)
        call(
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--outdir",
            elsewhere,
            ROOT,
            cwd=elsewhere,
        )
        shutil.rmtree(ROOT / "build", ignore_errors=True)
        wheel = next(elsewhere.glob("*.whl"))
        print(f"built {wheel.name}, {wheel.stat().st_size / 1e3:.0f} kB", flush=True)
        call(sys.executable, "-m", "venv", "env", cwd=elsewhere)
        python = elsewhere / "env" / "bin" / "python"
        call(
            python,
            "-m",
            "pip",
            "install",
            "--no-compile",
            "-q",
            "-c",
            ROOT / "constraints.txt",
            f"{wheel}[train]",
            "ipykernel",
            "nbclient",
            cwd=elsewhere,
        )
        call(
            python,
            "-m",
            "ipykernel",
            "install",
            "--prefix",
            elsewhere / "env",
            "--name",
            "python3",
            cwd=elsewhere,
        )
        call(elsewhere / "env" / "bin" / "t2i", "--version", cwd=elsewhere)
        for notebook in sorted((ROOT / "nbs").glob("*.ipynb")):
            start = time.time()
            shutil.copy(notebook, elsewhere / notebook.name)
            call(python, "-c", RUN, notebook.name, cwd=elsewhere)
            print(
                f"{notebook.name}: ran alone in {time.time() - start:.0f} s", flush=True
            )


if __name__ == "__main__":
    main()
