"""The built book, first as files and then as a reader meets it in a browser that has no
network.
"""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
LISTED = [c for part in TOC["parts"] for c in part["chapters"]]
LISTED += [s for c in LISTED for s in c.get("sections", [])]
PAGES = [TOC["root"], *(c["file"] for c in LISTED)]
CHAPTERS = [p for p in PAGES if (ROOT / f"{p}.ipynb").exists() and p != TOC["root"]]
LESSONS = [
    p for p in CHAPTERS if "default_exp" in (ROOT / f"{p}.ipynb").read_text("utf-8")
]


class Page(HTMLParser):
    """What a test asks of a page.

    Images with their alternative text, links, scripts, styles, ids.
    """

    def __init__(self, text: str):
        super().__init__()
        self.images, self.links, self.loaded, self.ids, self.classes = (
            [],
            [],
            [],
            set(),
            [],
        )
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if "id" in a:
            self.ids.add(a["id"])
        self.classes.append(a.get("class") or "")
        if tag == "img":
            self.images.append((a.get("src", ""), a.get("alt")))
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if tag in ("script", "img", "iframe") and a.get("src"):
            self.loaded.append(a["src"])
        if (
            tag == "link"
            and a.get("rel") in ("stylesheet", "preload", "icon")
            and a.get("href")
        ):
            self.loaded.append(a["href"])


@pytest.fixture(scope="module")
def pages(book) -> dict[str, Page]:
    return {p: Page((book / f"{p}.html").read_text(encoding="utf-8")) for p in PAGES}


def test_every_page_exists_and_is_not_empty(book):
    "A green build of an empty book has happened to others."
    for p in PAGES:
        assert len((book / f"{p}.html").read_text(encoding="utf-8")) > 8000, p


@pytest.mark.parametrize("chapter", LESSONS)
def test_a_chapter_shows_figures_and_library_cells(pages, chapter):
    own = [src for src, _ in pages[chapter].images if "_images" in src]
    own += [c for c in pages[chapter].classes if "t2i-diagram" in c]
    cells = [
        "".join(c["source"])
        for c in json.loads((ROOT / f"{chapter}.ipynb").read_text(encoding="utf-8"))[
            "cells"
        ]
    ]
    promised = sum(
        "#| fig-alt:" in c and not re.search(r"(slider_grid|interactive_figure)\(", c)
        for c in cells
    )  # a slider is a widget, an interactive figure carries its still one along
    assert len(own) >= promised >= 1, (
        "each cell that promises a figure shows one; fewer, and it was not executed or "
        "lost them"
    )
    assert sum("tag_in-library" in c for c in pages[chapter].classes) >= 3


def test_no_cell_failed(book):
    for p in PAGES:
        text = (book / f"{p}.html").read_text(encoding="utf-8")
        assert (
            "Traceback (most recent call last)" not in text
            and "CellExecutionError" not in text
        ), p


def test_directives_and_setup_cells_do_not_show(book):
    for p in PAGES:
        text = re.sub(r"<[^>]+>", "", (book / f"{p}.html").read_text(encoding="utf-8"))
        for hidden in ("#| ", "%load_ext", "%pip install"):
            assert hidden not in text, (p, hidden)


def test_every_figure_has_a_sentence_for_those_who_cannot_see_it(pages):
    for p, page in pages.items():
        for src, alt in page.images:
            assert alt and not alt.endswith((".png", ".svg", ".jpg")), (p, src, alt)
            if "_images" in src:
                assert len(alt) > 20, (p, src, alt)


def test_nothing_is_loaded_from_elsewhere(pages):
    for p, page in pages.items():
        assert not [x for x in page.loaded if re.match(r"(https?:)?//", x)], p


def test_links_within_the_book_arrive(book, pages):
    for p, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (
                ((book / p).parent / unquote(parts.path)).resolve()
                if parts.path
                else book / f"{p}.html"
            )
            assert target.exists(), (p, link)
            if parts.fragment and target.suffix == ".html":
                key = (
                    str(target.relative_to(book.resolve()))[:-5]
                    if target.is_relative_to(book.resolve())
                    else p
                )
                if key in pages:
                    assert unquote(parts.fragment) in pages[key].ids, (p, link)


def test_citations_have_the_label_of_their_entry_and_entries_lead_to_the_paper(book):
    listed = (book / "nbs/91_references.html").read_text(encoding="utf-8")
    parts = re.split(r'<div class="citation" id="(\w+)">', listed)[1:]
    labels = {}
    for name, entry in zip(parts[::2], parts[1::2]):
        entry = entry.split('<div class="citation')[0]
        label, _, rest = entry.partition("</span></span>")
        labels[name] = unescape(re.sub(r"<[^>]+>", "", label)).strip()[1:-1]
        assert re.search(r'href="https?://', rest), f"no link for {labels[name]}"
    assert len(set(labels.values())) == len(labels) > 70
    link = r'<a[^>]+href="91_references\.html#(\w+)"[^>]*>(.*?)</a>'
    cited = 0
    for p in PAGES:
        text = (book / f"{p}.html").read_text(encoding="utf-8")
        for name, shown in re.findall(link, text, re.DOTALL):
            words = unescape(re.sub(r"<[^>]+>", "", shown)).replace("\xa0", " ")
            if name in labels and not re.fullmatch(r"\d{4}[ab]?", words):
                assert labels[name].startswith(words.rstrip(",")), (p, words)
                cited += 1
    assert cited > 100


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_buttons_lead_to_the_repository_of_settings(pages, chapter):
    import configparser

    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini")
    s = config["DEFAULT"]
    links = pages[chapter].links
    assert (
        f"https://colab.research.google.com/github/{s['user']}/{s['repo']}/blob/{s['branch']}/{chapter}.ipynb"
        in links
    )
    assert f"{s['git_url']}/edit/{s['branch']}/{chapter}.ipynb" in links
    assert (
        any(x.startswith(f"{s['git_url']}/issues/new") for x in links)
        and s["git_url"] in links
    )
    assert any(
        x.endswith(f"{chapter.split('/')[-1]}.ipynb") and "_sources" in x for x in links
    ), "no download button"


def test_every_page_has_a_description_and_a_preview(book):
    found = {}
    for p in PAGES:
        head = (book / f"{p}.html").read_text(encoding="utf-8").split("</head>")[0]
        (found[p],) = re.findall(r'<meta name="description" content="([^"]+)"', head)
        (image,) = re.findall(r'property="og:image" content="([^"]+)"', head)
        assert (book / "_static" / image.rsplit("/")[-1]).exists(), p
        assert len(found[p]) > 20 and f"{p}.html" in head
    assert len({found[p] for p in CHAPTERS}) == len(CHAPTERS), "each its own"


def shown_as_text(book) -> list[tuple[str, str]]:
    "(page, text) of each visible output that is plain text."
    found = []
    for p in PAGES:
        page = (book / f"{p}.html").read_text(encoding="utf-8")
        for text in re.findall(
            r'<div class="output (?:text_plain|stream)[^"]*">.*?<pre>(.*?)</pre>',
            page,
            re.S,
        ):
            found.append((p, unescape(re.sub(r"<[^>]+>", "", text)).strip()))
    return found


def test_values_are_rounded_and_no_python_literals(book):
    """A cell's value is shown for readers: `set_value_style` in chapter 1.

    What stays is the representation of tensors, and lines that are quoted as they are.
    """
    texts = shown_as_text(book)
    assert len(texts) > 100
    raw = [(p, t[:80]) for p, t in texts if re.match(r"[\[({]", t)]
    long = [(p, t[:80]) for p, t in texts if re.search(r"\d\.\d{9}", t)]
    assert len(raw) <= 3, raw
    assert len(long) <= 3, long


def test_api_pages_list_every_public_name(pages):
    import importlib

    for path in sorted((ROOT / "t2i_tutorial").rglob("*.py")):
        if "AUTOGENERATED" not in path.read_text(encoding="utf-8"):
            continue
        full = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(full)
        page = pages[f"nbs/api/{'_'.join(full.split('.')[1:])}"]
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing) and getattr(thing, "__module__", "") == module.__name__:
                assert f"{full}.{name}" in page.ids


# ---- in a browser

CODE = """() => {
  for (const d of document.querySelectorAll('details')) d.open = true;
  for (const b of document.querySelectorAll('.toggle-hidden'))
    b.classList.remove('toggle-hidden');
  return [...document.querySelectorAll('article div.cell_input pre')].map(e => [
    parseFloat(getComputedStyle(e).fontSize), e.clientWidth, e.scrollWidth,
    e.innerText.slice(0, 60)]) }"""

SHOWN = """() => [...document.querySelectorAll('.widget-image')]
  .filter(i => i.getClientRects().length).map(i => i.src)"""


def open_page(page, address: str, name: str):
    page.goto(f"{address}/{name}.html", wait_until="load")
    return page


def test_no_page_has_problems_or_needs_a_network(page, book_address):
    for p in PAGES:
        open_page(page, book_address, p)
        page.wait_for_timeout(300)
    assert page.problems == []


@pytest.mark.parametrize("chapter", ["nbs/01_images", "nbs/03_critters"])
def test_a_slider_changes_the_picture_with_no_kernel_and_no_network(
    page, book_address, chapter
):
    open_page(page, book_address, chapter)
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.wait_for(timeout=15000)
    handle.scroll_into_view_if_needed()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.widget-image')].some(i => "
        "i.getClientRects().length && i.naturalWidth > 0)"
    )
    before = page.evaluate(SHOWN)
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    after = page.evaluate(SHOWN)
    assert before and after and before != after
    drawn = page.evaluate(
        "async (u) => { const b = await createImageBitmap(await (await "
        "fetch(u)).blob()); return [b.width, b.height] }",
        after[0],
    )
    assert min(drawn) >= 64
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(300)
    assert len(page.evaluate(SHOWN)) == len(before)
    assert page.problems == []


@pytest.mark.parametrize(
    "chapter", ["nbs/01_images", "nbs/03_critters", "nbs/38_guidance_scale"]
)
@pytest.mark.parametrize("width", [1280, 390])
def test_labels_of_sliders_are_not_cut(page, book_address, chapter, width):
    page.set_viewport_size({"width": width, "height": 900})
    open_page(page, book_address, chapter)
    page.locator(".widget-label").first.wait_for(timeout=15000)
    labels = page.evaluate(
        "() => [...document.querySelectorAll('.widget-label, .widget-readout')]"
        ".map(e => [e.textContent, e.scrollWidth, e.clientWidth])"
    )
    assert labels and not [text for text, need, has in labels if need > has]


@pytest.mark.parametrize("width", [1280, 390])
def test_a_number_and_its_unit_stand_in_one_line(page, book_address, width):
    page.set_viewport_size({"width": width, "height": 900})
    open_page(page, book_address, "nbs/index")
    found = page.evaluate(
        """() => [...document.querySelectorAll('article td p, article td')]
      .filter(e => /^\\d+\\s(min|s|%)$/.test(e.textContent.trim()))
      .flatMap(e => [...e.childNodes]).filter(n => n.nodeType === 3 && n.data.trim())
      .map(n => { const r = document.createRange(); r.selectNodeContents(n);
        return [n.data, r.getClientRects().length] })"""
    )
    assert len(found) > 40 and not [text for text, lines in found if lines > 1]


def test_sliders_do_not_blur_pixels(page, book_address):
    open_page(page, book_address, "nbs/01_images")
    page.locator(".widget-image").first.wait_for(state="attached", timeout=15000)
    assert (
        page.evaluate(
            "() => "
            "getComputedStyle(document.querySelector('.widget-image')).imageRendering"
        )
        == "pixelated"
    )


def test_equations_are_set_and_numbered(page, book_address):
    open_page(page, book_address, "nbs/01_images")
    page.locator("mjx-container").first.wait_for(timeout=15000)
    assert page.locator("mjx-container svg").count() >= 1
    assert page.locator("a[href='#equation-eq-core-range']").count() >= 1


def test_search_finds_text_in_the_middle_of_a_chapter(page, book_address):
    page.goto(f"{book_address}/search.html?q=transparency", wait_until="load")
    page.locator("ul.search li a").first.wait_for(timeout=15000)
    assert "01_images.html" in " ".join(
        page.evaluate(
            "() => [...document.querySelectorAll('ul.search li a')].map(a => a.href)"
        )
    )


def test_answers_are_folded_until_asked_for(page, book_address):
    open_page(page, book_address, "nbs/01_images")
    answer = page.locator(".solution.dropdown").first
    answer.wait_for(timeout=15000)
    body = answer.locator(".cell").first
    assert not body.is_visible()
    answer.locator("button, .toggle-button").first.click()
    page.wait_for_timeout(300)
    assert body.is_visible()


def contrast(page, selector: str) -> float:
    "Contrast ratio of an element's text with what lies behind it (WCAG)."
    return page.evaluate(
        """(selector) => {
      const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
      const linear = v => { v /= 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 };
      const light = c => { const [r, g, b] = c.slice(0, 3).map(linear);
        return 0.2126*r + 0.7152*g + 0.0722*b };
      const e = document.querySelector(selector); let at = e, back = [0, 0, 0, 0];
      const opaque = c => c.length >= 3 && (c.length === 3 || c[3] > 0.5);
      while (at && !opaque(back)) {
        back = parse(getComputedStyle(at).backgroundColor); at = at.parentElement }
      const front = parse(getComputedStyle(e).color);
      const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05) }""",
        selector,
    )


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_both_modes_are_readable(page, book_address, mode):
    page.add_init_script(
        f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', "
        f"'{mode}')"
    )
    open_page(page, book_address, "nbs/01_images")
    assert page.evaluate("() => document.documentElement.dataset.theme") == mode
    page.locator(".widget-label").first.wait_for(timeout=15000)
    for selector in (
        "article p",
        "div.highlight pre",
        "article h1",
        ".widget-subarea .widget-label",
        ".widget-subarea .widget-readout",
    ):
        assert contrast(page, selector) > 4.5, selector
    assert (
        page.evaluate(
            "() => getComputedStyle(document.querySelector('div.cell_output "
            "img')).backgroundColor"
        )
        == "rgba(0, 0, 0, 0)"
    )


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_code_is_cut_and_none_is_small(page, book_address, name):
    "At 1280 pixels, with all that is folded opened."
    open_page(page, book_address, name)
    blocks = page.evaluate(CODE)
    assert blocks or name == "nbs/95_cards"
    assert not [b for b in blocks if b[0] < 13], "letters of at least 13 pixels"
    assert not [b for b in blocks if b[2] > b[1] + 1], "no line is wider than its block"


@pytest.mark.parametrize("name", PAGES)
def test_a_telephone_does_not_scroll_sideways(page, book_address, name):
    page.set_viewport_size({"width": 390, "height": 844})
    open_page(page, book_address, name)
    page.wait_for_timeout(300)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 391
