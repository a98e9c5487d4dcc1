"""The Sphinx hooks: nbdev's directives become tags and captions; docments become field
lists.
"""

import json
import re
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


@pytest.mark.parametrize(
    "line, said",
    [
        ('"Two: a and b."', "Two: a and b."),
        ('"a dragon" and "a cat"', '"a dragon" and "a cat"'),
        ('"A dragon", twice.', '"A dragon", twice.'),
    ],
)
def test_quotes_around_a_caption_are_not_part_of_it(line, said):
    c = cell(f"#| fig-cap: {line}\nplot()")
    assert c["metadata"]["mystnb"]["figure"]["caption"] == said


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
    texts = {m: f"#| default_exp {m}" for m in ("a", "b")} | {"none": "x"}
    for number, module in enumerate(("a", "b"), 1):
        (tmp_path / "nbs" / f"0{number}_{module}.ipynb").write_text(texts[module])
        (tmp_path / "t2i_tutorial" / f"{module}.py").write_text("x = 1")
    monkeypatch.setattr(nbdev_book, "ROOT", tmp_path)
    before = {m: nbdev_book.chapter_hash(text) for m, text in texts.items()}
    (tmp_path / "t2i_tutorial" / "b.py").write_text("x = 2")
    changed = [m for m, t in texts.items() if nbdev_book.chapter_hash(t) != before[m]]
    assert changed == ["b", "none"]


@pytest.mark.parametrize("folder", ["pretrained", "results"])
@pytest.mark.parametrize("entry", ["tiny/model.bin", "tiny.json"])
def test_a_chapter_runs_again_when_a_record_that_it_names_changes(
    folder, entry, tmp_path, monkeypatch
):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "01_a.ipynb").write_text("#| default_exp a")
    library = tmp_path / "t2i_tutorial"
    (library / folder / entry).parent.mkdir(parents=True)
    (library / "a.py").write_text('DEFAULT = "other"')
    texts = {
        "names it": "#| default_exp a\nRESULTS_DIR / 'tiny'",
        "names another": "#| default_exp a\nRESULTS_DIR / 'large'",
        "lists all": "RESULTS_DIR, bundled_models()",
        "reads no results": "#| default_exp a\n'tiny'",
    }
    monkeypatch.setattr(nbdev_book, "ROOT", tmp_path)

    def hashes():
        nbdev_book.files_hash.cache_clear()
        return {k: nbdev_book.chapter_hash(t) for k, t in texts.items()}

    before = hashes()
    (library / folder / entry).write_text("new")
    changed = [k for k, v in hashes().items() if v != before[k]]
    model = ["reads no results"] * (folder == "pretrained")
    assert changed == ["names it", "lists all", *model]
    (library / "a.py").write_text('DEFAULT = "tiny"')  # the library names it, too
    before = hashes()
    (library / folder / entry).write_text("newer")
    assert "names another" in [k for k, v in hashes().items() if v != before[k]]
    nbdev_book.files_hash.cache_clear()


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
    monkeypatch.setattr(nbdev_book, "chapter_hash", lambda *_: "other")
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


def test_code_and_equations_in_a_docstring_do_not_run_into_each_other():
    def target():
        pass

    lines = ["To `a`, {eq}`eq-b`; `UserError` for ``c``."]
    api_pages.add_fields(None, "function", "target", target, {}, lines)
    assert lines[0] == "To ``a``, :eq:`eq-b`; ``UserError`` for ``c``."


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


def test_every_exporting_chapter_has_an_api_page():
    assert [m for m, _ in api_pages.modules()][:1] == ["core"]
    table = [f"# The library\n\n{api_pages.MARK}\n"]
    api_pages.write_library(None, "nbs/92_api", table)
    toc = re.findall(r"file: nbs/(api/\w+)$", (ROOT / "_toc.yml").read_text(), re.M)
    assert toc == [api_pages.page_of(module) for module, _ in api_pages.modules()]
    assert {f"{p}.md" for p in toc} == {
        f"api/{p.name}" for p in (ROOT / "nbs" / "api").iterdir()
    }
    for module, notebook in api_pages.modules():
        assert f"(/nbs/{notebook})" in table[0]
        assert f"({api_pages.page_of(module)}.md)" in table[0]
        page = ROOT / "nbs" / f"{api_pages.page_of(module)}.md"
        source = [page.read_text(encoding="utf-8")]
        api_pages.write_library(None, f"nbs/{page.stem}", source)
        assert f".. automodule:: t2i_tutorial.{module}\n" in source[0]
        assert (
            f"[the library]({api_pages.page_of(module)}.md)"
            in (ROOT / "nbs" / notebook).read_text(encoding="utf-8")
            or module == "core"
        )


def test_the_head_of_a_page_says_what_it_is_about():
    from docutils import nodes

    section = nodes.section("", nodes.title("", "A & B"))
    section += nodes.block_quote("", nodes.paragraph("", 'Two "letters".'))
    context = {"title": "A &amp; B", "metatags": "<!-- first -->"}
    nbdev_book.describe_page(None, "nbs/01_a", "page.html", context, section)
    head = context["metatags"]
    assert '<meta name="description" content="Two &quot;letters&quot;.">' in head
    assert 'property="og:title" content="A &amp; B"' in head
    assert head.startswith("<!-- first -->") and "/nbs/01_a.html" in head
    nbdev_book.describe_page(None, "search", "search.html", context := {}, None)
    assert nbdev_book.settings()["description"] in context["metatags"]


def outputs(*said, caption="What is seen."):
    """The outputs of one captioned cell as MyST-NB gives them to Sphinx.

    Each in a figure, in each of the forms that a page may choose from.
    """
    from docutils import nodes

    forms = {
        "text": lambda: nodes.literal_block("", "0.5"),
        "image": lambda: nodes.image(uri="a.png"),
        "drawing": lambda: nodes.raw("", "<div><svg></svg></div>", format="html"),
        "frame": lambda: nodes.raw("", "<table></table>", format="html"),
        "table": lambda: nodes.table(),
        "widget": lambda: nodes.raw("", '<script type="x/jupyter.widget-view">'),
    }
    cell = nodes.container(nb_element="cell_code_output")
    for kinds in said:
        bundle = nodes.container(nb_element="mime_bundle")
        for kind in kinds.split("+"):
            part = forms[kind]()
            bundle += nodes.container("", part, mime_type=f"x-{kind}")
        cell += nodes.figure("", bundle, nodes.caption("", caption))
    return cell


@pytest.mark.parametrize(
    "said, kept",
    [
        (["text"], []),
        (["image+text"], [1]),
        (["text", "image+text"], [1]),
        (["image+text", "text"], [1]),
        (["frame+text", "image+text"], [1]),
        (["table+text", "drawing+text", "text"], [1]),
        (["text", "widget+text"], [1]),
        (["image+text", "image+text", "text"], [2]),
        (["text", "frame+text"], [1]),
        (["frame+text", "table+text"], [1]),
    ],
)
def test_a_cell_has_one_caption_and_its_picture_has_it(said, kept):
    from docutils import nodes

    cell = outputs(*said)
    nbdev_book.uncaption_text(None, nodes.section("", cell, outputs("image")))
    bundles = [
        n for n in cell.findall(nodes.container) if n.get("nb_element") == "mime_bundle"
    ]
    figures = [n for n in cell.children if isinstance(n, nodes.figure)]
    assert len(bundles) == len(said), "nothing that the cell says is lost"
    assert [sum(isinstance(c, nodes.container) for c in f) for f in figures] == kept
    for f in figures:
        assert isinstance(f[-1], nodes.caption), "and the caption stands below"
        if any("image" in s or "drawing" in s or "widget" in s for s in said):
            assert nbdev_book.is_picture(f)


def test_a_page_is_stored_without_the_documents_that_it_was_read_from():
    from docutils import nodes
    from docutils.utils import new_document

    page, inner = new_document("page"), new_document("inner")
    inner += nodes.paragraph("", "", nodes.literal("", "x"))
    page += inner[0]  # as MyST's directive does
    page[0][0].document = inner
    nbdev_book.own_nodes(None, page)
    assert all(node.document is page for node in page.findall())


def test_figures_of_the_prose_are_left_alone():
    from docutils import nodes

    pair = [nodes.figure("", nodes.image(uri=f"{n}.png")) for n in "ab"]
    tree = nodes.section("", *pair, nodes.figure("", nodes.literal_block("", "x")))
    nbdev_book.uncaption_text(None, tree)
    assert [len(f.children) for f in tree.children] == [1, 1, 1]
