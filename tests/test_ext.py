"""The Sphinx hooks: nbdev's directives become tags and captions; docments become field
lists.
"""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "_ext"))
import api_pages  # noqa: E402
import nbdev_book  # noqa: E402


def cell(source: str) -> dict:
    c = {
        "cell_type": "code",
        "metadata": {},
        "source": source.splitlines(keepends=True),
        "outputs": [],
        "execution_count": None,
    }
    nbdev_book.translate_cell(c, "test")
    return c


@pytest.mark.parametrize(
    "line, tag",
    [
        ("#| default_exp core", "remove-cell"),
        ("#| hide", "remove-cell"),
        ("#|hide", "remove-cell"),
        ("#| eval: false", "skip-execution"),
        ("#| slow", "skip-execution"),
        ("#| gpu", "skip-execution"),
        ("#| export", "in-library"),
        ("#| code-fold: true", "hide-input"),
    ],
)
def test_directive_becomes_tag_and_is_dropped(line, tag):
    c = cell(f"{line}\nx = 1\n#| not leading")
    assert c["metadata"]["tags"] == [tag] and c["source"] == "x = 1\n#| not leading"


def test_figure_directives_become_metadata():
    c = cell(
        "#| fig-alt: a red: disc\n#| fig-cap: Before and after.\n#| label: "
        "fig-disc\nplot()"
    )
    assert c["metadata"]["mystnb"] == {
        "image": {"alt": "a red: disc"},
        "figure": {"caption": "Before and after.", "name": "fig-disc"},
    }
    assert c["source"] == "plot()"


def test_tags_that_stood_there_are_kept():
    c = {
        "cell_type": "code",
        "metadata": {"tags": ["hide-output"]},
        "source": ["#| hide\n", "x"],
    }
    nbdev_book.translate_cell(c, "test")
    assert c["metadata"]["tags"] == ["hide-output", "remove-cell"]


def test_unknown_directive_warns(monkeypatch):
    said = []
    monkeypatch.setattr(
        nbdev_book.log, "warning", lambda text, *a: said.append(text % a)
    )
    cell("#| exprot\nx = 1")
    assert len(said) == 1 and "exprot" in said[0]


def test_file_is_not_changed_and_result_is_a_notebook():
    path = ROOT / "nbs" / "01_images.ipynb"
    before = path.read_bytes()
    notebook = json.loads(
        nbdev_book.translate_notebook(path.read_text(encoding="utf-8"))
    )
    assert path.read_bytes() == before
    assert not any(
        line.startswith("#|")
        for c in notebook["cells"]
        if c["cell_type"] == "code"
        for line in c["source"].splitlines()[:1]
    )
    assert (
        sum(
            "in-library" in c["metadata"]["tags"]
            for c in notebook["cells"]
            if c["cell_type"] == "code"
        )
        > 5
    )


def test_a_chapter_runs_again_when_a_module_below_it_changes(tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "t2i_tutorial").mkdir()
    for name, module in [("01_a", "a"), ("02_b", "b")]:
        (tmp_path / "nbs" / f"{name}.ipynb").write_text(f"#| default_exp {module}")
        (tmp_path / "t2i_tutorial" / f"{module}.py").write_text("x = 1")
    monkeypatch.setattr(nbdev_book, "ROOT", tmp_path)
    a, b, all_ = (nbdev_book.library_hash(m) for m in ("a", "b", None))
    (tmp_path / "t2i_tutorial" / "b.py").write_text("x = 2")
    assert (
        nbdev_book.library_hash("a") == a
        and nbdev_book.library_hash("b") != b
        and nbdev_book.library_hash(None) != all_
    )
    (tmp_path / "t2i_tutorial" / "results").mkdir()
    (tmp_path / "t2i_tutorial" / "results" / "r.json").write_text("{}")
    assert nbdev_book.library_hash("a") != a


def test_a_page_is_read_again_when_only_the_library_below_it_changed(monkeypatch):
    "Sphinx compares files of pages and would leave it with its old figures."

    class App:
        pass

    class Env:
        found_docs = ["nbs/01_images", "nbs/90_notation"]

        def doc2path(self, d):
            return str(ROOT / f"{d}.{'ipynb' if d.endswith('images') else 'md'}")

    app, env = App(), Env()
    app.env = env
    assert nbdev_book.outdated(app, env, set(), set(), set()) == ["nbs/01_images"]
    nbdev_book.read_notebook(
        app,
        "nbs/01_images",
        [(ROOT / "nbs" / "01_images.ipynb").read_text(encoding="utf-8")],
    )
    assert nbdev_book.outdated(app, env, set(), set(), set()) == []
    monkeypatch.setattr(nbdev_book, "library_hash", lambda module: "other")
    assert nbdev_book.outdated(app, env, set(), set(), set()) == ["nbs/01_images"]


def test_addresses_come_from_settings():
    class Config:
        html_theme_options, html_static_path = {"kept": 1}, []

    nbdev_book.use_settings(None, Config)
    s = nbdev_book.settings()
    assert (
        Config.html_theme_options["repository_url"] == s["git_url"]
        and Config.html_theme_options["kept"] == 1
    )
    assert s["user"] in s["git_url"] and Config.version == s["version"]


def test_docments_become_fields():
    def scale(
        x: int,  # what to scale, 0 to 9
        by: float = 2.0,  # the factor
    ) -> float:  # the product
        "Scale."

    assert api_pages.fields(scale) == [
        ":param x: ``int``: what to scale, 0 to 9",
        ":param by: ``float``: the factor",
        ":returns: ``float``, the product",
    ]


def test_fields_of_the_library_carry_shapes():
    from t2i_tutorial.core import to_pil

    text = "\n".join(api_pages.fields(to_pil))
    assert '``Float[Tensor, "3 h w"]``' in text and "whole factor" in text


def test_every_exporting_chapter_has_an_api_section():
    assert [m for m, _ in api_pages.modules()][:1] == ["core"]
    source = [f"# The library\n\n{api_pages.MARK}\n"]
    api_pages.write_library(None, "nbs/92_api", source)
    for module, _ in api_pages.modules():
        assert f".. automodule:: t2i_tutorial.{module}" in source[0]


def test_a_caption_belongs_to_the_picture_alone():
    from docutils import nodes

    def figure(*content):
        return nodes.figure("", *content, nodes.caption("", "What is seen."))

    tree = nodes.section(
        "",
        figure(nodes.literal_block("", "0.5")),
        figure(nodes.image(uri="a.png")),
        figure(nodes.raw("", "<b>", format="html")),
    )
    nbdev_book.uncaption_text(None, tree)
    assert [type(n).__name__ for n in tree.children] == [
        "literal_block",
        "figure",
        "figure",
    ]
