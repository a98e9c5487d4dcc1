"""The house itself: packaging, the face of the library, the command line, chapters that
follow the rules, make's messages.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
CHAPTERS = [p for p in NOTEBOOKS if p.name[0].isdigit()]
LESSONS = [p for p in CHAPTERS if "default_exp" in p.read_text(encoding="utf-8")]

REQUIREMENTS = [
    f"{part}requirements" for part in ("", "train_", "export_", "dev_")
]  # the last is for the book and the tests only


def settings() -> dict:
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def python(code: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, **kwargs
    )


def cells(path: Path, kind: str) -> list[str]:
    return [
        "".join(c["source"])
        for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == kind
    ]


# ---- packaging and the public names


def test_import_is_light_and_touches_no_network():
    """IP-1: importing a peer's package asks a hub. Ours opens no socket and loads none
    of the heavy libraries.
    """
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise RuntimeError('network at import')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = "
        "refuse\n"
        "import t2i_tutorial, importlib\n"
        "for m in t2i_tutorial._MODULES: importlib.import_module(f't2i_tutorial.{m}')\n"
        "print([m for m in ('transformers', 'datasets', 'lpips', 'accelerate', "
        "'torchvision', 'matplotlib', 'ipywidgets') if m in sys.modules])"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_package_names_what_a_user_starts_with():
    import t2i_tutorial

    for name in t2i_tutorial.__all__:
        assert getattr(t2i_tutorial, name) is not None and name in dir(t2i_tutorial)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = t2i_tutorial.nonsense


def test_versions_agree():
    import t2i_tutorial

    assert t2i_tutorial.__version__ == settings()["version"]


def test_requirements_are_bounded_ranges():
    s = settings()
    for key in REQUIREMENTS:
        for requirement in s[key].split():
            assert re.fullmatch(r"[\w.-]+(>=[\w.]+,)?<[\w.]+", requirement), requirement


def test_addresses_in_prose_are_those_of_settings():
    """README and notebooks must spell the address out.

    This keeps them true to settings.ini.
    """
    s = settings()
    for path in [ROOT / "README.md", *NOTEBOOKS]:
        for user, repo in re.findall(
            r"git\+https://github\.com/([\w.-]+)/([\w.-]+)",
            path.read_text(encoding="utf-8"),
        ):
            assert (user, repo.rstrip(chr(92))) == (s["user"], s["repo"]), path.name


def test_constraints_pin_every_requirement_within_its_range():
    from packaging.requirements import Requirement

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            r = Requirement(line)
            pins.setdefault(r.name.lower().replace("_", "-"), []).append(
                next(iter(r.specifier)).version
            )
    s = settings()
    for text in " ".join(s[k] for k in REQUIREMENTS).split():
        r = Requirement(text)
        versions = pins[r.name.lower().replace("_", "-")]
        assert all(r.specifier.contains(v) for v in versions), (text, versions)


def test_wheel_carries_the_library_and_the_command(tmp_path):
    """Built without isolation, from a copy, so that nothing is fetched and nothing is
    left in the tree.
    """
    source = tmp_path / "source"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(
            ".*", "_build", "build", "dist", "*.egg-info", "__pycache__"
        ),
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(tmp_path),
            str(source),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    inside = wheel.namelist()
    assert {
        "t2i_tutorial/core.py",
        "t2i_tutorial/critters.py",
        "t2i_tutorial/data.py",
        "t2i_tutorial/cli.py",
    } <= set(inside)
    assert not [n for n in inside if n.startswith(("tests", "nbs", "_ext"))]
    text = {
        n.rsplit("/")[-1]: wheel.read(n).decode()
        for n in inside
        if "dist-info" in n and n.rsplit("/")[-1] in ("METADATA", "entry_points.txt")
    }
    assert "t2i = t2i_tutorial.cli:main" in text["entry_points.txt"]
    assert (
        "License-Expression: Apache-2.0" in text["METADATA"]
        or "License: Apache-2.0" in text["METADATA"]
    )
    assert (
        "Requires-Python: >=3.10" in text["METADATA"]
        and "Provides-Extra: train" in text["METADATA"]
    )


# ---- the command line


def t2i(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "t2i_tutorial.cli", *arguments],
        capture_output=True,
        text=True,
    )


def test_help_and_version():
    assert t2i("--version").stdout.strip() == f"t2i {settings()['version']}"
    assert (
        "usage: t2i" in t2i("--help").stdout
        and t2i("--help").returncode == 0
        and t2i().returncode == 0
    )


@pytest.mark.parametrize("arguments", [["genrate"], ["--vresion"], ["generate"]])
def test_a_mistake_is_one_line_and_exit_code_2(arguments):
    done = t2i(*arguments)
    assert (
        done.returncode == 2
        and len(done.stderr.splitlines()) == 1
        and arguments[0] in done.stderr
    )


# ---- chapters


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_committed_clean(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert not any(
        c.get("outputs") or c.get("execution_count") for c in notebook["cells"]
    )
    assert notebook["metadata"]["accelerator"] == "GPU"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_imports_only_itself_and_earlier_ones(path):
    earlier = [
        m[1]
        for p in CHAPTERS[: CHAPTERS.index(path) + 1]
        for c in cells(p, "code")
        if (m := re.search(r"#\|\s*default_exp\s+([\w.]+)", c))
    ]
    for module in re.findall(
        r"(?:from|import)\s+t2i_tutorial\.([\w.]+)", "\n".join(cells(path, "code"))
    ):
        assert module in [*earlier, "exercises"], module  # which checks answers


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_chapter_has_the_anatomy(path):
    code, text = cells(path, "code"), cells(path, "markdown")
    assert code[0].startswith("#| default_exp") and re.match(r"# .+\n\n> .+", text[0])
    whole = "\n".join(text)
    for part in (
        "What you will build",
        "## Toy and paper",
        "## Summary",
        "## Exercises",
        "## In the library",
        "## Next",
    ):
        assert part in whole, part
    assert 3 <= whole.count(":::{exercise}") <= 5 and whole.count(
        ":::{exercise}"
    ) == whole.count(":::{solution-start}") == whole.count(":::{solution-end}")
    assert settings()["git_url"] in code[1] and "#| eval: false" in code[1]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_figures_have_alt_text_and_british_spelling(path):
    for c in cells(path, "code"):
        if re.search(
            r"show_images\([^)]|plt\.subplots|to_pil\(.*enlarge", c
        ) and not re.search(r"#\|\s*(export|hide|eval: false)|test_fail|def ", c):
            assert "#| fig-alt:" in c, c[:200]
    american = re.findall(
        r"\b(?:color|gray|neighbor|behavior|center|normalize|initialize)s?\b",
        re.sub(r"`[^`]*`|\]\([^)]*\)", "", "\n".join(cells(path, "markdown"))),
    )
    assert not american, american


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_cell_does_not_return_the_figure_that_it_has_drawn(path):
    "The page would show it twice: once as drawn, once as the value of the cell."
    for cell in cells(path, "code"):
        if "plt.subplots(" in cell:
            last = cell.rstrip().splitlines()[-1]
            assert last not in ("figure", "fig", "axes", "ax"), cell[:200]


def test_public_names_have_docstrings():
    for path in sorted((ROOT / "t2i_tutorial").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(
                node, (ast.FunctionDef, ast.ClassDef)
            ) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_no_pickle_and_no_machine_paths():
    """The library holds no pickle.

    A lesson may make one to show that it is refused. Paths of a machine stand nowhere.
    """
    for path in (ROOT / "t2i_tutorial").rglob("*.py"):
        assert not re.findall(
            r"import pickle|pickle\.load|torch\.load\(|torch\.save\(",
            path.read_text(encoding="utf-8"),
        ), path.name
    for path in [
        *(ROOT / "t2i_tutorial").rglob("*.py"),
        *NOTEBOOKS,
        ROOT / "README.md",
        ROOT / "Makefile",
    ]:
        assert not re.findall(
            r"/(?:work|root|home)/\w", path.read_text(encoding="utf-8")
        ), path.name


def test_toc_lists_every_chapter_and_only_those():
    import yaml

    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [c["file"] for part in toc["parts"] for c in part["chapters"]]
    there = [
        f"nbs/{p.stem}" for p in sorted([*CHAPTERS, *(ROOT / "nbs").glob("[0-9]*.md")])
    ]
    assert listed == there and all(part["caption"] for part in toc["parts"])


def test_the_logo_is_what_the_critters_chapter_draws():
    from PIL import Image

    from t2i_tutorial.core import from_pil, to_uint8
    from t2i_tutorial.critters import render_logo

    kept = Image.open(ROOT / "_static" / "logo.png")
    drawn = render_logo(kept.width)
    difference = (to_uint8(from_pil(kept)).int() - to_uint8(drawn[:3]).int()).abs()
    assert difference.max() <= 2


# ---- make


def make(*arguments: str, cwd: Path, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def bare(tmp_path) -> Path:
    "A tree with nothing prepared, as far as making the environment is concerned."
    for name in (
        "Makefile",
        "constraints.txt",
        "settings.ini",
        "setup.py",
        "pyproject.toml",
        "README.md",
    ):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    return tmp_path


def last_line(done) -> str:
    lines = [s for s in done.stderr.splitlines() if not re.match(r"make.*\*\*\*", s)]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


def test_no_python(bare):
    done = make("book", "PYTHON=python9", cwd=bare)
    assert (
        done.returncode == 2
        and "no python9 here; install Python 3.10 or newer" in last_line(done)
    )


def fake_python(bare: Path, prologue: str) -> Path:
    "A Python that is like this one but for one thing."
    path = bare / "fakepython"
    path.write_text(
        f"#!{sys.executable}\nimport runpy, sys\n{prologue}\nsys.argv = "
        "sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    path.chmod(0o755)
    return path


def test_python_too_old(bare):
    python_ = fake_python(
        bare, "sys.version_info = (3, 8, 18); sys.version = '3.8.18 (old)'"
    )
    done = make("book", f"PYTHON={python_}", cwd=bare)
    assert (
        done.returncode == 2
        and "Python 3.10 or newer is needed and this is 3.8.18" in last_line(done)
    )


def test_no_venv_module(bare):
    python_ = fake_python(bare, "sys.modules['ensurepip'] = None")
    done = make("book", f"PYTHON={python_}", cwd=bare)
    assert (
        done.returncode == 2
        and "sudo apt install python3-venv" in last_line(done)
        and not (bare / ".venv").exists()
    )


def test_failed_download(bare):
    """A package index that answers nothing.

    One line, and no stamp, so that the next make tries again.
    """
    done = make(
        "book",
        f"PYTHON={sys.executable}",
        cwd=bare,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_EXTRA_INDEX_URL="",
        PIP_FIND_LINKS="",
        PIP_RETRIES="0",
        PIP_NO_CACHE_DIR="1",
        PIP_CONFIG_FILE=os.devnull,
        PIP_TIMEOUT="2",
    )
    assert (
        done.returncode == 2
        and "the installation failed" in last_line(done)
        and "run make again" in last_line(done)
    )
    assert not (bare / ".venv" / ".installed").exists()


def test_serve_before_book(bare):
    done = make("serve", cwd=bare)
    assert done.returncode == 2 and "run make book first" in last_line(done)


def test_every_package_that_the_library_imports_is_required():
    """A package that is only there because another one brings it is missing in a plain
    installation (tokenizers was).
    """
    listed = " ".join(settings()[k] for k in REQUIREMENTS[:3])
    required = {
        re.match(r"[\w.-]+", r)[0].lower().replace("-", "_") for r in listed.split()
    }
    other = {
        "PIL": "pillow",
        "IPython": "ipywidgets",
        "wandb": "accelerate",
        "torchvision": "lpips",
    }  # ipywidgets needs IPython, lpips torchvision; wandb is asked for by name
    for path in (ROOT / "t2i_tutorial").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            for top in (
                {n.split(".")[0] for n in names}
                - set(sys.stdlib_module_names)
                - {"t2i_tutorial"}
            ):
                assert other.get(top, top).lower() in required, (
                    f"{path.name} imports {top}, which settings.ini does not require"
                )


def test_generating_needs_none_of_the_packages_for_training(tmp_path):
    names = {
        re.match(r"[\w.-]+", r)[0].replace("-", "_")
        for r in settings()["train_requirements"].split()
    }
    code = (
        f"import sys\nfor name in {sorted(names)}: sys.modules[name] = None\n"
        "from t2i_tutorial.cli import main\n"
        "options = ['--num-images', '1', '--num-steps', '1', '--output', 'a.png']\n"
        "print(main(['generate', 'a red cat', *options]), main(['models']), "
        "main(['evaluate', '--prompts', '40']))"
    )
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "0 0 2", (
        done.stdout,
        done.stderr[-2000:],
    )
    assert (
        (tmp_path / "a.png").exists()
        and "pip install 't2i-tutorial[train]'" in done.stderr
        and "Traceback" not in done.stderr
    )
