"""The page of faults: ids are explained, named tests exist, gaps are admitted."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "_ext"))
import fault_tests  # noqa: E402
from nbdev_book import settings  # noqa: E402

SOURCE = (ROOT / "nbs" / "93_faults.md").read_text(encoding="utf-8")
PAGE = fault_tests.write_tests(SOURCE)  # as Sphinx gets to see it
PLACES = ("tests/*.py", "nbs/*.ipynb", "nbs/*.md", "t2i_tutorial/**/*.py", "*.md")
LINK = re.compile(r"^- \[(tests/\w+\.py)\]\((\S+?)\): (.+)$", re.MULTILINE)
HOW = re.compile(
    r"^\*(Reproduced by running|Read in the source|Partly reproduced)", re.MULTILINE
)


def anchor(fault: str) -> str:
    return fault.lower().replace("/", "-")


def sections(text: str) -> dict[str, str]:
    "The text of each fault by its anchor, from the anchor to the next one."
    parts = re.split(r"^\(([\w-]+)\)=\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def named() -> list[tuple[str, str, str]]:
    "Every (function, file, address) that the page names."
    found = []
    for file, address, names in LINK.findall(PAGE):
        found += [(name, file, address) for name in re.findall(r"`(\w+)`", names)]
    return found


def test_every_id_that_is_mentioned_is_explained():
    explained = sections(SOURCE)
    for path in [p for place in PLACES for p in ROOT.glob(place)]:
        for fault in fault_tests.FAULT.findall(path.read_text(encoding="utf-8")):
            assert anchor(fault) in explained, f"{path.name} names {fault}"


def test_anchor_heading_and_mark_agree():
    found = sections(SOURCE)
    assert len(found) == SOURCE.count(")=\n"), "an anchor stands twice"
    for key, text in found.items():
        heading = re.match(r"### (\S+): \S", text)
        assert heading and anchor(heading[1]) == key, key
        assert [m["id"] for m in fault_tests.MARK.finditer(text)] == [heading[1]], key
        assert HOW.search(text), f"{key}: was it run or read?"


def test_a_fault_has_tests_or_says_why_not():
    for key, text in sections(PAGE).items():
        guarded = "**Tests here:**\n\n- [tests/" in text
        excused = re.search(r"\*\*No test here:\*\* (?!None)", text) is not None
        assert guarded != excused, f"{key} needs <!-- tests: {key.upper()} | reason -->"


def test_every_test_that_the_page_names_exists():
    s = settings()
    assert len(named()) == sum(map(len, fault_tests.guards().values())) > 0
    for name, file, address in named():
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *def {name}\(", text, re.MULTILINE), (file, name)
        assert address == f"{s['git_url']}/blob/{s['branch']}/{file}"
    by_hand = set(re.findall(r"\btest_\w+", SOURCE))
    assert by_hand <= {"test_trainer_step"}, "only imagen-pytorch's own, see IP-1"


def test_a_reason_goes_when_there_is_a_test(monkeypatch):
    tests = {"XX-1": [("tests/test_a.py", "test_b"), ("tests/test_a.py", "test_c")]}
    monkeypatch.setattr(fault_tests, "guards", lambda: tests)
    monkeypatch.setattr(fault_tests, "chapters", dict)
    page = "<!-- tests: XX-1 | no such thing. -->\n<!-- tests: XX-2 | not yet. -->"
    text = fault_tests.write_tests(page)
    assert text.startswith("**Tests here:**\n\n- [tests/test_a.py](")
    assert "): `test_b`, `test_c`\n" in text and "no such thing" not in text
    assert text.endswith("**No test here:** not yet.")


def test_docstrings_and_comments_count_and_helpers_do_not(tmp_path, monkeypatch):
    source = """
def helper(): "GG-1"
def test_a():
    "GG-2: it is so."
class TestB:
    def test_b(self):
        x = 1  # MI-3, not XGG-4
"""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(source)
    monkeypatch.setattr(fault_tests, "ROOT", tmp_path)
    found = fault_tests.guards()
    assert found["GG-2"] == [("tests/test_x.py", "test_a")]
    assert found["MI-3"] == [("tests/test_x.py", "test_b")] and len(found) == 2


@pytest.mark.parametrize("text", ["PR-1000", "SUPER-1", "GG-"])
def test_what_only_looks_like_an_id_is_none(text):
    assert not fault_tests.FAULT.findall(text)


def test_the_built_page_has_the_anchors_and_the_names(book):
    html = (book / "nbs" / "93_faults.html").read_text(encoding="utf-8")
    for key in sections(SOURCE):
        assert f'id="{key}"' in html, key
    for name, file, address in named():
        assert name in html and f'href="{address}"' in html, (file, name)
    assert "tests:" not in re.sub(r"<[^>]+>", "", html), "a mark was not filled in"
