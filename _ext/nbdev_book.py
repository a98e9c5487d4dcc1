"""Sphinx hooks that make nbdev's notebooks and Jupyter Book agree.

- `read_notebook` (event `source-read`) works on the notebook's JSON in memory, never on
  the file: it takes the leading `#|`
  lines out of each code cell and turns them into the cell tags and metadata that MyST-
  NB knows (see `DIRECTIVES`).
- `uncaption_text` (event `doctree-read`) gives a cell's caption to its picture alone,
  once, whatever else the cell says.
- `own_nodes` (event `doctree-read`) keeps what Sphinx stores of a page small.
- `describe_page` (event `html-page-context`) says in the head of each page what it is
  about, for search engines and previews of links.
- `use_settings` (event `config-inited`) takes title, version, addresses and branch from
  settings.ini.
"""

import hashlib
import json
import re
from configparser import ConfigParser
from functools import cache
from html import escape, unescape
from pathlib import Path

from docutils import nodes
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"^\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$")
CAPTION = (nodes.caption, nodes.legend)
log = logging.getLogger(__name__)

# what each directive becomes: a tag, or nothing
DIRECTIVES = {
    "default_exp": "remove-cell",
    "hide": "remove-cell",
    "slow": "skip-execution",
    "gpu": "skip-execution",
    "export": "in-library",
    "exporti": "in-library",
    "exports": "in-library",
    "code-fold": "hide-input",
    "echo": "remove-input",
}


def settings() -> dict[str, str]:
    "The values of settings.ini."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def split_directives(source: str) -> tuple[list[tuple[str, str]], str]:
    """The leading `#| name: value` lines of a cell as pairs, and the rest of the cell.

    A value may stand in quotes, as YAML wants it if there is a colon in it.
    """
    lines, found = source.splitlines(keepends=True), []
    while lines and (match := LINE.match(lines[0])):
        found.append((match[1], re.sub(r'^"([^"]*)"$', r"\1", match[2])))
        lines.pop(0)
    return found, "".join(lines)


def translate_cell(cell: dict, where: str) -> None:
    "Turn the directives of one code cell into tags and MyST-NB metadata, in place."
    found, cell["source"] = split_directives("".join(cell["source"]))
    metadata = cell.setdefault("metadata", {})
    tags, figure = metadata.setdefault("tags", []), {}
    for name, value in found:
        if name == "eval" and value == "false":
            tags.append("skip-execution")
        elif name == "fig-alt":
            metadata.setdefault("mystnb", {}).setdefault("image", {})["alt"] = value
        elif name == "fig-cap":
            figure["caption"] = value
        elif name == "label":
            figure["name"] = value
        elif name in DIRECTIVES:
            tags.append(DIRECTIVES[name])
        else:
            log.warning(
                "%s: unknown directive '#| %s'; the book does not know what to do with "
                "it",
                where,
                name,
            )
    if figure:
        metadata.setdefault("mystnb", {})["figure"] = figure


@cache
def files_hash(path: Path) -> str:
    "A digest of a file, or of all files of a folder."
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def chapter_hash(text: str) -> str:
    """A digest of all but the notebook's own cells that decides what they return.

    The modules of the chapters up to it (all, if it exports none); the bundled models
    and, if it reads results, the recorded ones whose names stand in its text or in
    those modules (all, if it lists them).
    """
    digest, index, library = hashlib.sha256(), [], ROOT / "t2i_tutorial"
    for notebook in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        if name := module_of(notebook.read_text(encoding="utf-8")):
            index.append(name)
    if (module := module_of(text)) in index:
        index = index[: index.index(module) + 1]
    seen = [text]
    for file in (library / (m.replace(".", "/") + ".py") for m in index):
        if file.is_file():
            seen.append(file.read_text(encoding="utf-8"))
            digest.update(file.name.encode() + seen[-1].encode())
    named = "\n".join(seen)
    for folder in ["pretrained"] + ["results"] * ("RESULTS_DIR" in text):
        for path in sorted((library / folder).glob("*")):
            if path.stem in named or "bundled_models(" in text:
                digest.update(path.name.encode() + files_hash(path).encode())
    return digest.hexdigest()[:16]


def module_of(text: str) -> str | None:
    "The module that a notebook exports, read off its JSON."
    match = re.search(r"#\|\s*default_exp\s+([\w.]+)", text)
    return match[1] if match else None


def translate_notebook(text: str, where: str = "notebook") -> str:
    """The notebook's JSON with every directive translated.

    The cache of executed notebooks looks at the code and the kernel's metadata only. A
    digest of the library goes into the
    latter, so that a chapter runs again when a module or a recorded file below it has
    changed.
    """
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            translate_cell(cell, where)
    notebook["metadata"].setdefault(
        "kernelspec", {"name": "python3", "display_name": "python3"}
    )["library"] = chapter_hash(text)
    return json.dumps(notebook)


def read_notebook(app, docname: str, source: list[str]) -> None:
    """Sphinx is about to parse a file.

    Translate it if it is a notebook, and remember the library that it saw.
    """
    if not app.env.doc2path(docname).endswith(".ipynb"):
        return
    app.env.library_seen = getattr(app.env, "library_seen", {}) | {
        docname: chapter_hash(source[0])
    }
    source[0] = translate_notebook(source[0], docname)


def outdated(app, env, added, changed, removed) -> list[str]:
    """Pages whose file is as it was, but not the library below it.

    Sphinx would leave them.
    """
    notebooks = {
        d: Path(env.doc2path(d))
        for d in env.found_docs
        if str(env.doc2path(d)).endswith(".ipynb")
    }
    seen = getattr(env, "library_seen", {})
    return [
        d
        for d, path in notebooks.items()
        if seen.get(d) != chapter_hash(path.read_text(encoding="utf-8"))
    ]


def use_settings(app, config) -> None:
    """Title, version and addresses from settings.ini.

    The scripts that the static page needs from the book itself.
    """
    s = settings()
    config.project, config.author, config.version, config.release = (
        s["title"],
        s["author"],
        s["version"],
        s["version"],
    )
    config.html_title = s["title"]
    config.html_theme_options |= {
        "repository_url": s["git_url"],
        "repository_branch": s["branch"],
        "path_to_docs": "",
        "use_repository_button": True,
        "use_edit_page_button": True,
        "use_issues_button": True,
        "navbar_persistent": [],
    }
    config.html_static_path.append(
        "_ext/static"
    )  # here, and not in _config.yml, or each script in it would be on every page
    config.nb_ipywidgets_js = {
        "vendor/ipywidgets-embed.js": {},
        "widgets-mathjax.js": {"defer": "defer"},
    }
    config.mathjax_path = "vendor/mathjax-tex-svg.js"


def trim_scripts(app, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Only what the page needs.

    No Thebe (unused, and it would come from a CDN), the widgets' script only where
    widgets are.
    """
    widgets = "application/vnd.jupyter.widget-view+json" in context.get("body", "")

    def wanted(script) -> bool:
        text = (
            f"{getattr(script, 'filename', script)} "
            f"{getattr(script, 'attributes', {}).get('body', '')}"
        ).lower()
        return "thebe" not in text and (
            widgets or not re.search("ipywidgets-embed|widgets-mathjax", text)
        )

    context["script_files"] = [s for s in context["script_files"] if wanted(s)]
    # folded cells are named by their text; entries of the references are no list items
    for said in (
        ' aria-label="Toggle hidden content"',
        ' role="list"',
        ' role="doc-biblioentry"',
    ):
        context["body"] = context.get("body", "").replace(said, "")


def book_address() -> str:
    "Where the book stands on the web, with a slash at the end."
    s = settings()
    return f"https://{s['user']}.github.io/{s['repo']}/"


def describe_page(app, pagename: str, templatename: str, context: dict, doctree):
    "Title, subtitle and a picture in the head of the page."
    quotes = doctree.findall(nodes.block_quote) if doctree else ()
    texts = [" ".join(q.astext().split()) for q in quotes if q.parent.index(q) == 1]
    s = settings()
    title = re.sub(r"<[^>]+>", "", context.get("title") or "")
    description = (texts or [s["description"]])[0]
    found = {
        "og:title": unescape(title) or s["title"],
        "og:description": description,
        "og:type": "article" if texts else "website",
        "og:site_name": s["title"],
        "og:url": f"{book_address()}{pagename}.html",
        "og:image": f"{book_address()}_static/preview.png",
        "og:image:alt": "Creatures that this book's models drew, and its title.",
    }
    lines = [f'<meta name="description" content="{escape(description)}">']
    lines += [f'<meta property="{k}" content="{escape(v)}">' for k, v in found.items()]
    lines.append('<meta name="twitter:card" content="summary_large_image">')
    context["metatags"] = "\n".join([context.get("metatags", ""), *lines])


def is_picture(node: nodes.Node) -> bool:
    "An image, a drawing in the page or a widget: what a caption can belong to."
    if any(node.findall(nodes.image)):
        return True
    kinds = [str(c.get("mime_type", "")) for c in node.findall(nodes.container)]
    drawn = (r.astext() for r in node.findall(nodes.raw))
    return any(
        re.match("image/|application/vnd.jupyter.widget-view", k) for k in kinds
    ) or any(re.search(r"<(img|svg|canvas)\b|jupyter\.widget-view", t) for t in drawn)


def is_table(node: nodes.Node) -> bool:
    "A table that a cell gives as HTML, as pandas does."
    return "<table" in node.astext()


def uncaption_text(app, doctree) -> None:
    """A caption belongs to the picture of a cell, and a cell has one caption.

    What the cell says beside its picture, in text or as a table, stands without one and
    is not counted; a second picture joins the first. A table alone keeps its caption.
    """
    cells = {}
    for figure in doctree.findall(nodes.figure):
        if figure.parent.get("nb_element") == "cell_code_output":
            cells.setdefault(id(figure.parent), []).append(figure)
    for figures in cells.values():
        pictures = [f for f in figures if is_picture(f)]
        tables = [f for f in figures if any(f.findall(nodes.table))]
        tables += [f for f in figures if any(map(is_table, f.findall(nodes.raw)))]
        kept = (pictures or tables)[:1]
        for figure in figures:
            content = [n for n in figure.children if not isinstance(n, CAPTION)]
            if figure in pictures and figure not in kept:
                at = len(kept[0].children) - sum(
                    isinstance(n, CAPTION) for n in kept[0].children
                )
                figure.parent.remove(figure)
                kept[0][at:at] = content
            elif figure not in kept and content:
                figure.replace_self(content)


def own_nodes(app, doctree) -> None:
    """Every node of a page belongs to the page.

    reStructuredText within Markdown (the API pages) is read as a document of its own,
    whose settings hold the whole environment; its nodes would be stored with that.
    """
    for node in doctree.findall():
        node.document = doctree


def setup(app):
    app.add_js_file("accessible.js", loading_method="defer")
    app.connect("config-inited", use_settings, priority=1)
    app.connect("source-read", read_notebook, priority=1)
    app.connect("env-get-outdated", outdated)
    app.connect("doctree-read", uncaption_text, priority=1)
    app.connect("doctree-read", own_nodes, priority=999)
    app.connect("html-page-context", trim_scripts, priority=999)
    app.connect("html-page-context", describe_page)
    return {"version": "1", "parallel_read_safe": True}
