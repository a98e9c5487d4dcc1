"""`make wheel`: build the wheel and use it as a reader on another machine does, in
fresh environments elsewhere that hold no file of the repository but the tests.

With the oldest and the newest versions that settings.ini allows, and each Python from
3.10 to 3.13 on PATH: the plain installation imports and generates, and says what is
missing before it writes anything; with the extra `train` it trains, resumes and
evaluates, and a part of the tests passes. With the versions that the book is built
with, every notebook runs. A part of all this:

    make wheel WHICH=oldest PYTHONS=python3.10 PARTS="plain train"

Packages are fetched once: uv keeps them in its cache and links to them, where the
environments lie on the same disk (TMPDIR names another place for them). PyTorch's GPU
build takes about 6 GB for each version of it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from constraints import FILES, ROOT, find_uv

PYTHONS = ("python3.10", "python3.11", "python3.12", "python3.13")
PARTS = {
    "oldest": ["plain", "train", "tests"],
    "newest": ["plain", "train", "tests"],
    "tested": ["plain", "notebooks"],
}
# fast, and what depends most on the versions of other packages
TESTS = ("core", "text", "data", "hub", "checkpoints", "pretrained")
# before Pillow 12 the conversion to PA, with which this test begins, loses the alpha
NOT_IN_OLDEST = "tests/test_core.py::test_transparent_becomes_background[PA]"
TOOLS = {
    "tests": ["pytest", "pytest-timeout", "hypothesis"],
    "notebooks": ["ipykernel", "nbclient"],
}
SOURCES = ("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE")
MODELS = {  # a bundled model of each family, and how it is sampled quickly
    "critters-32": ["--num-steps", "2"],
    "critters-32-gigagan": [],
}
TRAININGS = ("imagen", "gigagan")
TINY = ["--preset", "tiny", "num_images=64", "train.batch_size=8", "train.save_every=2"]
TINY += ["train.warmup_steps=1", "train.lr_schedule=constant"]
IMPORT = """
import sys, t2i_tutorial
heavy = {"torch", "numpy", "matplotlib", "transformers"} & set(sys.modules)
assert not heavy, heavy
assert "env" in t2i_tutorial.__file__, t2i_tutorial.__file__
"""
NOTEBOOK = """
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
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
ENVIRONMENT |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}


def call(*command, cwd: Path, refuses: str = "") -> str:
    """Run a program; stop with its output if it fails.

    With `refuses` it must end with exit code 2 and a last line that contains this, and
    no traceback (an old matplotlib says more, at its import).
    """
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = done.stdout
    right = not done.returncode
    if refuses:
        last = (output.splitlines() or [""])[-1]
        right = done.returncode == 2 and refuses in last and "Traceback" not in output
    if not right:
        sys.exit(
            f"{output[-4000:]}\nmake: wheel failed at (exit code {done.returncode}): "
            f"{' '.join(map(str, command))[:200]}"
        )
    return output


def check(right: bool, what: str) -> None:
    "Stop unless it is right."
    if not right:
        sys.exit(f"make: wheel failed: {what}")


class Installation:
    "The wheel in a fresh environment, with one file of constraints and one Python."

    def __init__(
        self,
        elsewhere: Path,  # folder that holds everything
        uv: str,  # the program that installs
        wheel: Path,  # what is installed
        which: str,  # oldest, newest or tested
        python: str,  # the interpreter
    ):
        self.uv, self.wheel, self.which = uv, wheel, which
        self.place = Path(tempfile.mkdtemp(prefix=f"{which}-", dir=elsewhere))
        self.bin = self.place / "env" / "bin"
        self.empty = self.place / "empty"
        self.empty.mkdir()
        call(uv, "venv", "-q", "-p", python, self.place / "env", cwd=self.place)
        self.install(str(wheel))

    def install(self, *packages: str) -> None:
        "From wheels only: nothing is compiled."
        command = [self.uv, "pip", "install", "-q", "--no-build"]
        command += ["-p", self.bin / "python", "-c", ROOT / FILES[self.which]]
        call(*command, *packages, cwd=self.place)

    def t2i(self, *arguments: str, refuses: str = "") -> str:
        "The command, in an empty folder."
        return call(self.bin / "t2i", *arguments, cwd=self.empty, refuses=refuses)

    def plain(self) -> None:
        "What a user has who installs no extra."
        call(self.bin / "python", "-c", IMPORT, cwd=self.empty)
        check(self.t2i("--version").startswith("t2i "), "t2i --version")
        listed = self.t2i("models")
        for model, options in MODELS.items():
            check(model in listed, f"t2i models does not list {model}")
            picture = self.place / f"{model}.png"
            options = [*options, "--num-images", "1", "--output", str(picture)]
            self.t2i("generate", "a small red cat", "--model", model, *options)
            check(picture.read_bytes()[:4] == b"\x89PNG", f"{picture.name} is no PNG")
        missing = "pip install 't2i-tutorial[train]'"
        for name in TRAININGS:
            self.t2i("train", name, *TINY, refuses=missing)
        self.t2i("evaluate", "--prompts", "40", refuses=missing)
        check(not any(self.empty.iterdir()), "a refused command left a file behind")

    def train(self) -> None:
        "A tiny training of each family goes on where it stopped; an evaluation."
        self.install(f"{self.wheel}[train]")
        for name in TRAININGS:
            command = ["train", name, *TINY, "--output", f"runs/{name}"]
            self.t2i(*command, "train.max_steps=4")
            self.t2i(*command, "train.max_steps=6", "--resume")
            checkpoint = self.empty / "runs" / name / "checkpoints" / "step-000006"
            check(checkpoint.is_dir(), f"{name} was not resumed to its last step")
            model = checkpoint.parent.parent / "model"
            options = ["--num-images", "1", *MODELS.get(f"critters-32-{name}", [])]
            self.t2i("generate", "a red cat", "--model", str(model), *options)
        report = self.place / "report.json"
        options = ["--prompts", "40", "--num-steps", "2", "--output", str(report)]
        self.t2i("evaluate", "critters-32", *options)
        check(bool(json.loads(report.read_text())), "the report of t2i evaluate")

    def tests(self) -> None:
        "The tests that depend most on the versions of other packages."
        self.install(f"{self.wheel}[train]", *self.tools("tests"))
        shutil.copytree(ROOT / "tests", self.place / "tests")
        shutil.copy(ROOT / "pyproject.toml", self.place)
        files = [f"tests/test_{name}.py" for name in TESTS]
        if self.which == "oldest":
            files += ["--deselect", NOT_IN_OLDEST]
        output = call(self.bin / "pytest", *files, cwd=self.place)
        print(f"  {output.strip().splitlines()[-1]}", flush=True)

    def notebooks(self) -> None:
        "Every notebook, alone."
        self.install(f"{self.wheel}[train]", *self.tools("notebooks"))
        kernel = ["-m", "ipykernel", "install", "--prefix", self.place / "env"]
        call(self.bin / "python", *kernel, "--name", "python3", cwd=self.place)
        for notebook in sorted((ROOT / "nbs").glob("*.ipynb")):
            start = time.time()
            shutil.copy(notebook, self.empty)
            python = self.bin / "python"
            call(python, "-c", NOTEBOOK, notebook.name, cwd=self.empty)
            seconds = time.time() - start
            print(f"  {notebook.name}: ran alone in {seconds:.0f} s", flush=True)

    def tools(self, part: str) -> list[str]:
        "What a part needs beside the library, as constraints.txt pins it."
        pins = (ROOT / FILES["tested"]).read_text()
        own = (ROOT / FILES[self.which]).read_text()
        names = [n for n in TOOLS[part] if not re.search(rf"^{n}==", own, re.MULTILINE)]
        lines = [s for s in pins.splitlines() if s.partition("==")[0] in names]
        return [s for s in TOOLS[part] if s not in names] + lines


def build(elsewhere: Path, uv: str) -> Path:
    "The wheel, built from a copy, so that the tree stays as it is."
    source = elsewhere / "source"
    source.mkdir()
    for name in (*SOURCES, "README.md"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "t2i_tutorial", source / "t2i_tutorial", ignore=ignored)
    call(uv, "build", "-q", "--wheel", "-o", elsewhere, source, cwd=elsewhere)
    wheel = next(elsewhere.glob("*.whl"))
    print(f"built {wheel.name}, {wheel.stat().st_size / 1e3:.0f} kB", flush=True)
    return wheel


def find_pythons(names: Sequence[str]) -> dict[str, str]:
    "Version -> interpreter; says which are not here."
    found = {}
    ask = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
    for name in names:
        path = shutil.which(name)
        done = path and subprocess.run(
            [path, "-c", ask], capture_output=True, text=True
        )
        if done and not done.returncode:  # pyenv's shims fail for what is switched off
            version, path = done.stdout.strip().split(" ", 1)
            found[version] = path
        else:
            print(f"no {name} on PATH: not tested with it", flush=True)
    check(bool(found), f"none of {', '.join(names)} is on PATH; name one in PYTHONS")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Test the wheel.")
    parser.add_argument("--which", action="append", choices=PARTS)
    parser.add_argument("--pythons", action="append")
    parts = sorted({part for parts in PARTS.values() for part in parts})
    parser.add_argument("--parts", action="append", choices=parts)
    options = parser.parse_args()
    pythons = find_pythons(options.pythons or PYTHONS)
    own = "{}.{}".format(*sys.version_info)
    own = own if own in pythons else min(pythons)
    with tempfile.TemporaryDirectory(prefix="t2i-wheel-") as name:
        elsewhere = Path(name)
        uv = find_uv(elsewhere)
        wheel = build(elsewhere, uv)
        for which in options.which or PARTS:
            for version, python in pythons.items():
                title = f"{which} versions, Python {version}"
                if which == "tested" and version != own:
                    continue  # the notebooks take minutes: with one Python
                installation = Installation(elsewhere, uv, wheel, which, python)
                for part in options.parts or PARTS[which]:
                    start = time.time()
                    getattr(installation, part)()
                    seconds = time.time() - start
                    print(f"{title}: {part} passed in {seconds:.0f} s", flush=True)
                shutil.rmtree(installation.place)


if __name__ == "__main__":
    main()
