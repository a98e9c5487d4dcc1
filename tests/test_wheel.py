"""The two ends of the ranges in settings.ini, which `make wheel` tests."""

import ast
import os
import re
import subprocess
import sys
from collections import defaultdict
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
WHICH = ("oldest", "newest")
PYTHONS = ("3.10.0", "3.11.9", "3.12.0", "3.13.0")


def required() -> list[Requirement]:
    "What the library and its extra `train` ask for."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    s = config["DEFAULT"]
    words = f"{s['requirements']} {s['train_requirements']}".split()
    return [Requirement(word) for word in words]


def pins(which: str) -> dict[str, list[Requirement]]:
    found = defaultdict(list)
    path = ROOT / "constraints" / f"{which}.txt"
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            found[canonicalize_name(Requirement(line).name)].append(Requirement(line))
    return found


def version(pin: Requirement) -> Version:
    (only,) = pin.specifier
    assert only.operator == "=="
    return Version(only.version)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("python", PYTHONS)
def test_one_version_of_each_requirement_is_pinned_within_its_range(which, python):
    environment = default_environment() | {
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": "linux",
    }
    found = pins(which)
    for r in required():
        lines = found[canonicalize_name(r.name)]
        valid = [p for p in lines if not p.marker or p.marker.evaluate(environment)]
        assert len(valid) == 1, (r.name, python, [str(p) for p in lines])
        assert r.specifier.contains(version(valid[0])), (str(r), str(valid[0]))


def test_the_oldest_versions_are_the_lower_bounds():
    "A bound that is raised is tested only if oldest.txt is written anew."
    found = pins("oldest")
    for r in required():
        (lower,) = (s.version for s in r.specifier if s.operator == ">=")
        (pin,) = found[canonicalize_name(r.name)]
        assert version(pin) == Version(lower), f"{r}; run: make constraints"


def test_nothing_newest_is_older_than_the_oldest():
    oldest, newest = pins("oldest"), pins("newest")
    for r in required():
        name = canonicalize_name(r.name)
        least = min(version(p) for p in newest[name])
        assert max(version(p) for p in oldest[name]) <= least, name


def test_no_file_names_where_packages_come_from():
    "Which index is asked is the user's own setting, of pip and uv."
    files = [ROOT / "constraints.txt", *ROOT.glob("constraints/*.txt")]
    files += [*ROOT.glob(".ci/*"), ROOT / "Makefile", ROOT / "setup.py"]
    for path in filter(Path.is_file, files):
        text = path.read_text(encoding="utf-8").replace("http://127.0.0.1:", "")
        words = re.findall(r"\w+://\S+|--\S*index\S*|--find-links| @ ", text)
        assert not words, (path.name, words)


NEWER = {  # what Python 3.10 does not have: ruff sees syntax, but no names
    "typing": "Self Never LiteralString NotRequired Required Unpack TypeVarTuple "
    "assert_never assert_type reveal_type dataclass_transform override",
    "enum": "StrEnum ReprEnum",
    "datetime": "UTC",
    "itertools": "batched",
    "contextlib": "chdir",
    "hashlib": "file_digest",
    "math": "cbrt exp2 sumprod",
}
ANY = re.compile(rf"\b({'|'.join(' '.join(NEWER.values()).split())}|tomllib)\b")


def newer_names(source: str) -> list[str]:
    "Names of the standard library in a program that came after Python 3.10."
    found = []
    if not ANY.search(source):  # quickly
        return found
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in NEWER:
            used = [(node.module, a.name) for a in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = [(node.value.id, node.attr)]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            top = [a.name for a in node.names] + [getattr(node, "module", "")]
            found += [name for name in top if name == "tomllib"]
            continue
        else:
            continue
        found += [n for module, n in used if n in NEWER.get(module, "").split()]
    return found


def test_no_program_uses_a_name_that_the_oldest_python_lacks():
    assert newer_names("import tomllib\nfrom typing import Self") == ["tomllib", "Self"]
    for folder in ("t2i_tutorial", ".ci", "_ext", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            found = newer_names(path.read_text(encoding="utf-8"))
            assert not found, (path.name, found)


def test_a_python_that_does_not_run_is_not_used(tmp_path):
    "pyenv puts a program on PATH for a version that is switched off; it only fails."
    shim = tmp_path / "python3.10"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "wheel.py", "--pythons", "python3.10"],
        env=os.environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "no python3.10 on PATH: not tested with it\n"
    assert done.returncode == 1 and done.stderr.startswith(
        "make: wheel failed: none of"
    )
