"""The book as one EPUB: a tiny one is built here, the whole one is looked at if
`make epub` has made it.
"""

import re
import sys
from pathlib import Path
from posixpath import normpath
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree
from zipfile import ZIP_STORED, ZipFile

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from test_book import CHAPTERS, PAGES

from t2i_tutorial.core import Diagram, interactive_figure, slider_grid

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "_ext"))
XHTML = "{http://www.w3.org/1999/xhtml}"
OPF = "{http://www.idpf.org/2007/opf}"

INDEX = """# Tiny

> A book of two pages.

<div class="t2i-playground" data-mode="small">
<img src="../_static/cover.png" alt="Creatures." width="100%">
<p>With JavaScript switched on, a playground is here.<br>
</div>
<script type="module" src="../_static/playground/page.js"></script>

See {eq}`eq-tiny` and [the page](01_page.ipynb), and
<a href="../search.html" hidden>search</a>.

```{toctree}
:hidden:
:caption: First part

01_page
```
"""
WORDS = """# A page

> What cells say.

Inline $x_t = \\sqrt{\\bar\\alpha_t} x_0, \\dots$ and

$$
\\begin{aligned} a &= \\tfrac12 \\Big(\\textstyle\\sum_i x_i\\Big) \\\\
b & < \\big|x_i\\big|^2 \\end{aligned}
$$ (eq-tiny)

:::{exercise}
:label: ex-tiny
How many? <details><summary>Hint</summary>Count.</details>
:::

:::{solution} ex-tiny
:class: dropdown
Two & no more.
:::
"""
FRAME = """<div>
<style scoped>.dataframe tbody tr th { vertical-align: top; }</style>
<table border="1" class="dataframe"><thead><tr style="text-align: right;"><th></th>
<th>a</th></tr></thead><tbody><tr><th>0</th><td>1&nbsp;&lt;<br>2</td></tr></tbody>
</table><hr><input disabled type=checkbox></div>"""


class Said:
    "The data of one output, as a kernel sends it."

    def __init__(self, **data: str):
        self.output = nbformat.v4.new_output(
            "display_data", {k.replace("_", "/", 1): v for k, v in data.items()}
        )


def cell(source: str, *outputs: Said):
    return nbformat.v4.new_code_cell(source, outputs=[o.output for o in outputs])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    "The folder of a tiny book's EPUB; the package lies in it."
    from sphinx.application import Sphinx

    source, built = tmp_path_factory.mktemp("tiny"), tmp_path_factory.mktemp("built")
    (source / "nbs").mkdir()
    (source / "nbs" / "index.md").write_text(INDEX)
    drawing = Diagram("A diagram", "A box.").box("a", "A", at=(0, 0), href="01_page")
    moved = interactive_figure("first-gan", {"x": [1]}, plt.figure(), "Dots & a line.")
    box = slider_grid(torch.rand(3, 3, 8, 8), {"colour": ["red", "blue", "green"]})
    box.children[0].selected_index = box.children[1].index = 1
    view = {"model_id": box.model_id, "version_major": 2, "version_minor": 0}
    views = {"application_vnd.jupyter.widget-view+json": view}
    cells = [
        nbformat.v4.new_markdown_cell(WORDS),
        cell("frame", Said(text_html=FRAME)),
        cell("#| fig-cap: A drawing.\nd", Said(text_html=drawing._repr_html_())),
        cell("#| fig-cap: Moves.\nlive", Said(text_html=moved.data)),
        cell("#| fig-cap: Slides.\nslides", Said(text_plain="VBox()", **views)),
        cell("#| code-fold: true\nfolded = 1 < 2", Said(text_plain="True & 'so'")),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["widgets"] = {
        "application/vnd.jupyter.widget-state+json": (
            ipywidgets.Widget.get_manager_state()
        )
    }
    (source / "nbs" / "01_page.ipynb").write_text(nbformat.writes(notebook))
    settings = {
        "extensions": ["myst_nb", "sphinx_exercise", "nbdev_book", "epub_book"],
        "root_doc": "nbs/index",
        "copyright": "2026",
        "html_static_path": [str(ROOT / "_static")],
        "myst_enable_extensions": ["amsmath", "colon_fence", "dollarmath"],
        "nb_execution_mode": "off",
        "nb_ipywidgets_js": {},
        "exclude_patterns": [],
        "html_theme_options": {},
    }
    said = open(built / "said.txt", "w+", encoding="utf-8")
    app = Sphinx(
        source,
        None,
        built / "epub",
        built / "doctrees",
        "epub",
        confoverrides=settings,
        status=None,
        warning=said,
    )
    app.build()
    said.seek(0)
    # the scripts that the book's own folder holds are not part of this one
    warnings = [w for w in said if "html_static_path" not in w]
    assert app.statuscode == 0 and not warnings, warnings
    return built / "epub"


def package(folder: Path) -> dict[str, bytes]:
    "The files of the package in a folder; the first one says what it is."
    (file,) = folder.glob("*.epub")
    with ZipFile(file) as z:
        first = z.infolist()[0]
        assert first.filename == "mimetype" and first.compress_type == ZIP_STORED
        assert z.read("mimetype") == b"application/epub+zip"
        return {name: z.read(name) for name in z.namelist()}


def check_package(files: dict[str, bytes]) -> list[str]:
    "Files that are consistent with each other; the names of the pages in their order."
    content = ElementTree.fromstring(files["content.opf"])
    listed = {i.get("id"): i for i in content.iter(f"{OPF}item")}
    names = {unquote(i.get("href")) for i in listed.values()}
    outside = {"mimetype", "content.opf", "META-INF/container.xml"}
    assert names == set(files) - outside, "the manifest lists what is there"
    spine = [listed[r.get("idref")] for r in content.iter(f"{OPF}itemref")]
    assert len({i.get("href") for i in spine}) == len(spine)
    ids, links = {}, []
    for name in sorted(n for n in files if n.endswith(".xhtml")):
        page = ElementTree.fromstring(files[name])  # strict: it raises
        tags = [e.tag for e in page.iter()]
        assert page.tag == f"{XHTML}html"
        for left in ("script", "style", "button", "iframe"):
            assert f"{XHTML}{left}" not in tags, (name, left)
        found = [e.get("id") for e in page.iter() if e.get("id")]
        assert len(found) == len(set(found)), name
        ids[name] = set(found)
        for e in page.iter():
            if e.tag == f"{XHTML}img":
                assert e.get("alt"), name
            for key in ("src", "href"):
                if key in e.attrib:
                    links.append((name, e.tag.split("}")[1], e.get(key)))
    for name, tag, link in links:
        parts = urlsplit(link)
        if parts.scheme in ("http", "https", "mailto"):
            assert tag == "a", (name, link)
            continue
        assert not parts.scheme, (name, link[:80])
        target = name
        if parts.path:
            target = normpath(f"{Path(name).parent}/{unquote(parts.path)}")
        assert target in files, (name, link)
        if parts.fragment and target in ids:
            assert unquote(parts.fragment) in ids[target], (name, link)
    return [unquote(i.get("href")) for i in spine]


def words(files: dict, name: str) -> str:
    return " ".join("".join(ElementTree.fromstring(files[name]).itertext()).split())


def test_a_tiny_book_is_a_strict_package(tiny):
    files = package(tiny)
    assert check_package(files)[:3] == [
        "epub-cover.xhtml",
        "nbs/index.xhtml",
        "nbs/01_page.xhtml",
    ]
    content = files["content.opf"].decode()
    from nbdev_book import book_address, settings

    for said in (settings()["title"], settings()["author"], book_address(), ">en<"):
        assert said in content
    assert re.search(r'cover\.png"[^>]*properties="cover-image"', content)
    assert re.search(r'01_page\.xhtml"[^>]*properties="mathml svg"', content)
    assert "First part" in words(files, "nav.xhtml")


def test_what_needs_a_script_becomes_still(tiny):
    files = package(tiny)
    page = ElementTree.fromstring(files["nbs/01_page.xhtml"])
    text = words(files, "nbs/01_page.xhtml")
    stills = [i.get("src") for i in page.iter(f"{XHTML}img")]
    assert len(stills) == 2 and all(s.startswith("../_images/") for s in stills)
    assert "colour: blue" in text, "the slider as it stood"
    alts = [i.get("alt") for i in page.iter(f"{XHTML}img")]
    assert alts[0] == "Dots & a line." and "Slides." in alts[1] and "blue" in alts[1]
    web = [a.get("href") for a in page.iter(f"{XHTML}a")]
    assert sum(w.endswith("/nbs/01_page.html") for w in web if w) == 2
    assert "With JavaScript" not in words(files, "nbs/index.xhtml")
    assert "/search.html" in files["nbs/index.xhtml"].decode()


def test_formulas_tables_and_folded_parts_are_there(tiny):
    files = package(tiny)
    page = ElementTree.fromstring(files["nbs/01_page.xhtml"])
    text = words(files, "nbs/01_page.xhtml")
    math = list(page.iter("{http://www.w3.org/1998/Math/MathML}math"))
    assert len(math) == 2 and "alpha" in math[0].get("alttext")
    (hat,) = (e for e in math[0].iter() if e.tag.endswith("}mover"))
    index = [e.tag.rpartition("}")[2] for e in math[0].iter()].index("mover") - 1
    assert hat.get("accent") and list(math[0].iter())[index].tag.endswith("}msub")
    rows = [e for e in math[1].iter() if e.tag.endswith("}mtr")]
    assert [len(r) for r in rows] == [2, 2], "no row within another"
    svg = "{http://www.w3.org/2000/svg}svg"
    assert [s.get("viewBox") for s in page.iter(svg)][0]
    assert "1\xa0<2" in "".join(page.itertext())
    assert all(d.get("open") for d in page.iter(f"{XHTML}details"))
    for said in ("Two & no more.", "folded = 1 < 2", "True & 'so'", "Count.", "(1)"):
        assert said in text
    assert "Show code" not in text and "var(" not in files["nbs/01_page.xhtml"].decode()


def test_the_whole_book_is_a_strict_package():
    if not list((ROOT / "_build" / "epub").glob("*.epub")):
        pytest.skip("the EPUB is not built; run make epub first")
    files = package(ROOT / "_build" / "epub")
    order = [n.removesuffix(".xhtml") for n in check_package(files)]
    assert sorted(n for n in order if n in PAGES) == sorted(PAGES)
    assert [n for n in order if n in CHAPTERS] == CHAPTERS
    for name in PAGES:
        assert len(words(files, f"{name}.xhtml")) > 200, name
        assert "Traceback (most recent call last)" not in words(files, f"{name}.xhtml")
    pictures = [n for n in files if n.startswith("_images/")]
    (file,) = (ROOT / "_build" / "epub").glob("*.epub")
    assert len(pictures) > 200 and file.stat().st_size < 25e6
