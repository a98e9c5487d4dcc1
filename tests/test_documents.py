"""The documents beside the book agree with settings.ini and with make."""

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "_ext"))
from nbdev_book import settings  # noqa: E402

WORKFLOW = ".github/workflows/ci.yml"
DOCUMENTS = ("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", WORKFLOW)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_citation_says_what_the_settings_say():
    s = settings()
    cited = yaml.safe_load(read("CITATION.cff"))
    assert cited["title"] == s["title"] and cited["version"] == s["version"]
    assert cited["repository-code"] == s["git_url"]
    assert [a["name"] for a in cited["authors"]] == [s["author"]]


def test_the_changelog_has_this_version_and_links_each_heading():
    text = read("CHANGELOG.md")
    headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert headings[0] == "Unreleased" and settings()["version"] in headings
    for heading in headings:
        assert f"\n[{heading}]: {settings()['git_url']}/" in text, heading


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "README.md", WORKFLOW])
def test_every_make_target_that_is_named_exists(name):
    targets = re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE)
    for target in re.findall(r"(?:`|^ {4}|run: )make (\w+)", read(name), re.MULTILINE):
        assert target in targets, target


def test_ci_runs_the_same_command_with_a_python_that_is_allowed():
    job = yaml.safe_load(read(WORKFLOW))["jobs"]["test"]
    assert "make test" in [step.get("run") for step in job["steps"]]
    assert job["timeout-minutes"] <= 180
    versions = [step.get("with", {}).get("python-version") for step in job["steps"]]
    (version,) = filter(None, versions)
    least = settings()["min_python"].split(".")
    assert [int(x) for x in version.split(".")] >= [int(x) for x in least]


@pytest.mark.parametrize("name", [*DOCUMENTS, ".pre-commit-config.yaml"])
def test_no_path_of_a_machine(name):
    assert not re.findall(r"/(?:work|root|home|Users)/\w", read(name))
