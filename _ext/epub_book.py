"""The whole book as one EPUB, by Sphinx's own builder: `make epub`.

That builder packs the pages as they are, and a browser forgives what a reader of
EPUBs does not: outputs of cells are HTML, not XHTML, and some need scripts.
`BookBuilder` parses each page with Beautiful Soup and writes it as XHTML without
scripts: an interactive figure becomes its still image with a link to the book on the
web, a formula MathML, what is folded is open.
"""

import json
import re
import shutil
from base64 import b64decode
from hashlib import sha256
from html import escape
from pathlib import Path
from posixpath import normpath, relpath
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

from bs4 import BeautifulSoup, Comment
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from myst_nb.sphinx_ import NbMetadataCollector
from nbdev_book import book_address, settings
from sphinx import addnodes
from sphinx.builders.epub3 import Epub3Builder
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

HERE = Path(__file__).resolve().parent
THEME = ("sphinx_book_theme", "pydata_sphinx_theme", "sphinx_thebe")
SHEETS = ("_static/pygments.css", "_static/epub-book.css")
UID = "book"  # an XML name, by which the package refers to its identifier
OPF = "http://www.idpf.org/2007/opf"
# what a parser of HTML writes in small letters, as SVG wants it
SVG_NAMES = ("viewBox", "preserveAspectRatio", "textLength", "linearGradient")
WIDGET = "application/vnd.jupyter.widget-"
log = logging.getLogger(__name__)


# ---- formulas


def mathml(tex: str, block: bool) -> str:
    "A formula as MathML; as its source, with a warning, if it cannot be read."
    # names that docutils knows: large brackets are an opening and a closing one
    plain = re.sub(r"\\([bB]igg?)(?=[(\[]|\\{|\\lVert)", r"\\\1l", tex)
    plain = re.sub(r"\\([bB]igg?)(?=[)\]]|\\}|\\rVert)", r"\\\1r", plain)
    plain = re.sub(r"\\([bB]igg?|textstyle)(?![a-zA-Z])", "", plain)
    plain = re.sub(r"\\dots(?![a-zA-Z])", r"\\ldots", plain)
    try:
        text = tex2mathml(plain, as_block=block)
    except MathError as e:
        log.warning("no MathML for %s: %s", tex, e)
        return f"<code>{escape(tex)}</code>"
    return text.replace("<math ", f'<math alttext="{escape(tex)}" ', 1)


def visit_math(self, node) -> None:
    self.body.append(mathml(node.astext(), False))
    raise nodes.SkipNode


def visit_displaymath(self, node) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})</span>')
    self.body.append(mathml(node.astext(), True) + "</div>\n")
    raise nodes.SkipNode


# ---- pages


def still_of_widget(state: dict, model: str) -> tuple[str, str] | None:
    "What a slider's box shows at first: PNG in base64, and its sliders' labels."
    entry = state.get(model, {})
    inner = entry.get("state", {})
    children = [c.removeprefix("IPY_MODEL_") for c in inner.get("children", ())]
    kind = entry.get("model_name", "")
    if kind == "ImageModel":
        (image,) = (b["data"] for b in entry["buffers"] if b["path"] == ["value"])
        return image, ""
    if kind == "StackModel":
        return still_of_widget(state, children[inner["selected_index"]])
    if kind != "VBoxModel" or not children:
        return None
    found = still_of_widget(state, children[0])
    sliders = [state[c]["state"] for c in children[1:]]
    labels = [
        f"{s['description']}: {s['_options_labels'][s['index']]}" for s in sliders
    ]
    return found and (found[0], ", ".join(labels))


class Rewriter:
    "One page as a strict reader wants it."

    def __init__(self, text: str, name: str, folder: Path, known: set, state: dict):
        self.soup = BeautifulSoup(text, "html.parser")
        self.name = name  # without suffix, as Sphinx calls the page
        self.folder = folder  # where the package's files lie
        self.known = known  # files that the package will have
        self.state = state  # of the page's widgets
        self.address = f"{book_address()}{name}.html"

    def xhtml(self) -> str:
        "The page, written anew."
        self.replace_head()
        self.still_widgets()
        self.still_figures()
        self.drop()
        self.open_folded()
        self.mend_attributes()
        self.mend_formulas()
        self.store_images()
        self.mend_links()
        return self.soup.decode(formatter="minimal")

    def up(self, file: str) -> str:
        "A file of the package as this page refers to it."
        return relpath(file, str(Path(self.name).parent))

    def new(self, name: str, text: str = "", **attributes):
        "An element."
        tag = self.soup.new_tag(name, attrs=attributes)
        if text:
            tag.string = text
        return tag

    def on_the_web(self, what: str):
        "A line that leads to the same page on the web."
        note = self.new("p", **{"class": "on-the-web"})
        note.append(self.new("a", what, href=self.address))
        return note

    def replace_head(self) -> None:
        "Title and two style sheets are enough."
        title = self.soup.head.title
        self.soup.head.clear()
        self.soup.head.append(self.new("meta", charset="utf-8"))
        self.soup.head.append(title)
        for sheet in SHEETS:
            link = {"rel": "stylesheet", "type": "text/css", "href": self.up(sheet)}
            self.soup.head.append(self.new("link", **link))
        self.soup.html["lang"] = self.soup.html["xml:lang"] = "en"

    def still_widgets(self) -> None:
        "Sliders over images become the image that they show at first."
        for script in self.soup.find_all("script", type=f"{WIDGET}view+json"):
            found = still_of_widget(self.state, json.loads(script.string)["model_id"])
            if not found:
                continue
            image, labels = found
            caption = script.find_parent("figure")
            caption = caption and caption.figcaption
            alt = [caption.get_text(" ", strip=True)] if caption else []
            source = f"data:image/png;base64,{image}"
            look = {"alt": ": ".join([*alt, labels]), "class": "pixels"}
            script.insert_before(
                self.new("img", src=source, **look),
                self.new("p", labels),
                self.on_the_web("On the web, this figure has sliders."),
            )

    def still_figures(self) -> None:
        "What a script would bring to life keeps its still image."
        for script in self.soup.find_all("script", type="module"):
            live = script.find_previous_sibling("div")
            if live is None:
                continue
            said = "On the web, this figure can be moved."
            if "t2i-playground" in live.get("class", ()):
                for line in live.find_all("p"):
                    line.decompose()
                said = "On the web, both models draw your own prompt here."
            live.append(self.on_the_web(said))

    def drop(self) -> None:
        "Scripts, buttons and styles within the text."
        for text in self.soup.find_all(string=lambda t: isinstance(t, Comment)):
            text.extract()
        for name in ("script", "style", "button", "iframe", "template", "noscript"):
            for tag in self.soup.find_all(name):
                tag.decompose()
        for link in self.soup.body.find_all("link"):
            link.decompose()

    def open_folded(self) -> None:
        "Code, hints and answers that wait for a click are shown."
        for details in self.soup.find_all("details"):
            details["open"] = "open"
            if details.parent.name == "p":  # which may hold no blocks
                details.parent.insert_after(details.extract())
            summary = details.summary
            if summary is not None and "hide" in details.get("class", ()):
                outputs = "above-input" not in details["class"]
                summary.clear()
                summary.append("Output" if outputs else "Code")

    def mend_attributes(self) -> None:
        "Old attributes of tables go, those of drawings get their capitals back."
        for tag in self.soup.find_all(["table", "tr", "td", "th", "img", "col"]):
            for name in ("border", "align", "valign", "halign"):
                tag.attrs.pop(name, None)
            if tag.name == "img" and not tag.get("width", "0").isdigit():
                del tag["width"]
        for table in self.soup.select("div.cell_output table:not([class])"):
            table["class"] = "table"
        proper = {name.lower(): name for name in SVG_NAMES}
        for svg in self.soup.find_all("svg"):
            svg["style"] = "max-width: 100%; height: auto"
            for tag in [svg, *svg.find_all(True)]:
                tag.name = proper.get(tag.name, tag.name)
                tag.attrs = {
                    proper.get(k, k): re.sub(r"var\([^,]+, *([^()]+)\)", r"\1", v)
                    if isinstance(v, str)
                    else v
                    for k, v in tag.attrs.items()
                }
        seen = set()
        for tag in self.soup.find_all(id=True):
            if tag["id"] in seen or not tag["id"]:
                del tag["id"]
            else:
                seen.add(tag["id"])

    def mend_formulas(self) -> None:
        "What docutils says in MathML, but readers take otherwise."
        for small in self.soup.find_all("mfrac", displaystyle=True):
            style = {k: small.attrs.pop(k) for k in ("displaystyle", "scriptlevel")}
            small.wrap(self.new("mstyle", **style))
        for both in self.soup.find_all("munderover"):  # a hat, and below it the index
            base, index, hat = both.find_all(True, recursive=False)
            if base.name != "mo" and hat.name == "mo" and hat.get("stretchy"):
                both.name = "msub"
                base.wrap(self.new("mover", accent="true")).append(hat.extract())

    def store_images(self) -> None:
        "Images that are written out in the page become files of the package."
        for tag in self.soup.find_all(["img", "image"]):
            key = "src" if tag.name == "img" else "href"
            match = re.match(r"data:image/(\w+);base64,(.*)", tag.get(key, ""), re.S)
            if match:
                content = b64decode(match[2])
                file = f"_images/{sha256(content).hexdigest()[:32]}.{match[1]}"
                (self.folder / file).parent.mkdir(exist_ok=True)
                (self.folder / file).write_bytes(content)
                tag[key] = self.up(file)

    def mend_links(self) -> None:
        "What the package lacks is on the web."
        for tag in self.soup.find_all("a", href=True):
            parts = urlsplit(tag["href"])
            if parts.scheme or parts.netloc or not parts.path:
                continue
            file = normpath(f"{Path(self.name).parent}/{unquote(parts.path)}")
            if tag.find_parent("svg") and not file.endswith(".xhtml"):
                file = f"{file.removesuffix('.html')}.xhtml"  # of a diagram's boxes
                tag["href"] = self.up(file) + (parts.fragment and f"#{parts.fragment}")
            if file not in self.known:
                file = re.sub(r"\.xhtml$", ".html", file)
                tag["href"] = f"{book_address()}{quote(file)}"


# ---- the builder


class BookBuilder(Epub3Builder):
    "Sphinx's builder of EPUB 3, whose pages a strict reader accepts."

    math_renderer_name = "mathml"

    def init(self) -> None:
        "Formulas as MathML; here, since pages on the web would take it up as well."
        renderer = (visit_math, None), (visit_displaymath, None)
        self.app.add_html_math_renderer("mathml", *renderer)
        super().init()

    def prepare_writing(self, docnames) -> None:
        "The book theme's buttons would look for their theme; an EPUB has another."
        listeners = self.events.listeners["html-page-context"]
        listeners[:] = [
            x for x in listeners if not x.handler.__module__.startswith(THEME)
        ]
        super().prepare_writing(docnames)

    def known_files(self) -> set[str]:
        "The pages that links may lead to."
        names = {*self.env.found_docs, *(name for name, *_ in self.domain_indices)}
        return {f"{n}{self.out_suffix}" for n in names | {"genindex"} if n != "search"}

    def widget_state(self, pagename: str) -> dict:
        "What the page's widgets are made of."
        if pagename not in self.env.found_docs:
            return {}
        for _, kwargs in NbMetadataCollector.get_js_files(self.env, pagename).values():
            if kwargs.get("type") == f"{WIDGET}state+json":
                return json.loads(kwargs["body"])["state"]
        return {}

    def handle_page(self, pagename, addctx, templatename="page.html", *rest, **more):
        super().handle_page(pagename, addctx, templatename, *rest, **more)
        path = Path(self.get_outfilename(pagename))
        if path.exists():
            page = Rewriter(
                path.read_text(encoding="utf-8"),
                pagename,
                Path(self.outdir),
                self.known_files(),
                self.widget_state(pagename),
            )
            path.write_text(page.xhtml(), encoding="utf-8")

    def leave_unused_out(self) -> None:
        "Only pages and what they refer to are packed; the folder has more."
        out = Path(self.outdir)
        shutil.copyfile(HERE / "epub.css", out / SHEETS[1])
        used = {*SHEETS, *(self.config.epub_cover[:1])} | self.known_files()
        for page in out.rglob(f"*{self.out_suffix}"):
            if str(page.relative_to(out)) in used:
                for tag in parse(page).iter():
                    for name in ("src", "href"):
                        if name in tag.attrib and ":" not in tag.attrib[name]:
                            path = page.parent / unquote(
                                urlsplit(tag.attrib[name]).path
                            )
                            used.add(relpath(str(path), str(out)))
        for file in [*out.rglob("_static/**/*"), *out.rglob("_images/**/*")]:
            if file.is_file() and str(file.relative_to(out)) not in used:
                file.unlink()

    def build_content(self) -> None:
        "Sphinx's manifest, and in it which pages have drawings and formulas."
        self.leave_unused_out()
        super().build_content()
        file = Path(self.outdir) / "content.opf"
        ElementTree.register_namespace("", OPF)
        ElementTree.register_namespace("dc", "http://purl.org/dc/elements/1.1/")
        tree = ElementTree.parse(file)
        for unknown in tree.findall(".//{*}contributor"):
            tree.find("{*}metadata").remove(unknown)
        cover = self.config.epub_cover[:1]
        for item in tree.iterfind(".//{*}manifest/{*}item"):
            path = unquote(item.get("href"))
            found = ["cover-image"] if path in cover else []
            if path.endswith(self.out_suffix) and path != "nav.xhtml":
                tags = {
                    e.tag.rpartition("}")[2]
                    for e in parse(Path(self.outdir, path)).iter()
                }
                found += [
                    p for p, t in (("mathml", "math"), ("svg", "svg")) if t in tags
                ]
            if found:
                item.set("properties", " ".join(found))
        tree.write(file, encoding="utf-8", xml_declaration=True)

    def build_toc(self) -> None:
        "The table of contents for old readers, with the identifier of the package."
        super().build_toc()
        file = Path(self.outdir) / "toc.ncx"
        text = file.read_text(encoding="utf-8")
        old, new = (f'"dtb:uid" content="{x}"' for x in (UID, book_address()))
        file.write_text(text.replace(old, new), encoding="utf-8")

    def build_navigation_doc(self) -> None:
        "The table of contents, with the parts of the book."
        super().build_navigation_doc()
        root = self.config.root_doc
        part_of = {}
        for toctree in self.env.get_doctree(root).findall(addnodes.toctree):
            for _, page in toctree["entries"]:
                part_of[f"{page}{self.out_suffix}"] = toctree["caption"]
        file = Path(self.outdir) / "nav.xhtml"
        soup = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
        lists = {}
        for entry in soup.ol.find_all("li", recursive=False):
            part = part_of.get(entry.a["href"].partition("#")[0])
            if part and part not in lists:
                heading, inner = soup.new_tag("span"), soup.new_tag("ol")
                heading.string = part
                frame = soup.new_tag("li")
                frame.extend([heading, inner])
                entry.insert_before(frame)
                lists[part] = inner
            if part:
                lists[part].append(entry.extract())
        file.write_text(soup.decode(formatter="minimal"), encoding="utf-8")


def parse(page: Path) -> ElementTree.Element:
    "A page of the package, or an error where it is not well-formed."
    return ElementTree.fromstring(page.read_text(encoding="utf-8"))


def use_settings(app, config) -> None:
    "What the package says about itself."
    s = settings()
    config.epub_basename = re.sub(r"\W+", "-", s["title"].lower())
    config.epub_description = s["description"]
    config.epub_contributor = s["author"]
    config.epub_identifier = book_address()
    config.epub_uid = UID
    config.epub_cover = ("_static/cover.png", "epub-cover.html")
    config.epub_show_urls = "no"
    config.epub_tocscope = "includehidden"
    config.epub_tocdepth = 2
    config.epub_tocdup = False


def setup(app):
    app.add_builder(BookBuilder, override=True)
    app.connect("config-inited", use_settings, priority=2)
    return {"version": "1", "parallel_read_safe": True}
