"""The tests behind the page of faults, collected from the tests themselves.

A test that guards against a fault of another implementation names the fault's id, such
as `GG-5`, in its docstring or in a comment. `<!-- tests: GG-5 -->` in a page becomes
the list of those tests, with links, so that no renamed test is named wrongly.
`<!-- tests: GG-5 | why not -->` says in one sentence why there is no test; it is shown
only as long as no test names the fault.
"""

import ast
import json
import re
from collections import defaultdict
from pathlib import Path

from nbdev_book import ROOT, settings

FAULT = re.compile(r"\b(?:GG|MI|JZ|PR|IP|DD|HF|ST)-\d{1,2}\b")
MARK = re.compile(r"<!-- tests: (?P<id>\S+)(?: \| (?P<reason>[^\n]+?))? -->")
OWN = "test_faults.py"  # tests the page itself and guards against none of the faults


def functions_of(path: Path) -> dict[str, str]:
    "For each test function of a file, its name and its lines."
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found[node.name] = "\n".join(lines[node.lineno - 1 : node.end_lineno])
    return found


def guards() -> dict[str, list[tuple[str, str]]]:
    "For each fault the tests that name it, as pairs of file and function."
    found = defaultdict(list)
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        if path.name == OWN:
            continue
        for name, source in functions_of(path).items():
            for fault in sorted(set(FAULT.findall(source))):
                found[fault].append((f"tests/{path.name}", name))
    return dict(found)


def chapters() -> dict[str, list[tuple[str, str]]]:
    "For each fault the chapters that name it, as pairs of file name and title."
    found = defaultdict(list)
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        for fault in sorted(set(FAULT.findall(text))):
            found[fault].append((path.name, title[1] if title else path.stem))
    return dict(found)


def list_tests(tests: list[tuple[str, str]]) -> str:
    "A list of the tests' files, with links, and of the functions in each."
    s = settings()
    address = f"{s['git_url']}/blob/{s['branch']}"
    files = defaultdict(list)
    for file, name in tests:
        files[file].append(f"`{name}`")
    lines = ["**Tests here:**", ""]
    for file, names in files.items():
        lines.append(f"- [{file}]({address}/{file}): {', '.join(names)}")
    return "\n".join(lines)


def write_tests(text: str) -> str:
    "The page with each mark replaced."
    tests = guards()
    told = chapters()

    def replacement(match: re.Match) -> str:
        fault = match["id"]
        said = f"**No test here:** {match['reason']}"
        if fault in tests:
            said = list_tests(tests[fault])
        links = ", ".join(f"[{title}]({file})" for file, title in told.get(fault, ()))
        return f"{said}\n\nTold in {links}." if links else said

    return MARK.sub(replacement, text)


def read_page(app, docname: str, source: list[str]) -> None:
    "Sphinx is about to parse a page: fill in the tests."
    if MARK.search(source[0]):
        source[0] = write_tests(source[0])


def outdated(app, env, added, changed, removed) -> list[str]:
    "The page is read anew at every build: it depends on the tests too."
    return [d for d in env.found_docs if d.endswith("93_faults")]


def setup(app):
    app.connect("source-read", read_page)
    app.connect("env-get-outdated", outdated)
    return {"version": "1", "parallel_read_safe": True}
