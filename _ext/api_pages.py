"""API pages from docments: the comments beside each parameter become the field list
that readers know.

`<!-- library -->` in a Markdown page becomes a table of the modules that the chapters
export, in the chapters' order; `<!-- library: core -->` becomes everything public of
the module `core`, through `sphinx.ext.autodoc`. Each module has a page of its own in
`nbs/api`: `python _ext/api_pages.py` writes the pages that are missing.
"""

import inspect
import json
import re

from nbdev_book import ROOT, module_of

MARK = "<!-- library -->"
ONE = re.compile(r"<!-- library: ([\w.]+) -->")


def modules() -> list[tuple[str, str]]:
    "(module, notebook) for each exporting chapter, in the book's order."
    found = []
    for notebook in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        module = module_of(notebook.read_text(encoding="utf-8"))
        if (
            module
            and (ROOT / "t2i_tutorial" / (module.replace(".", "/") + ".py")).exists()
        ):
            found.append((module, notebook.name))
    return found


def annotation_text(annotation) -> str:
    "An annotation as the chapter wrote it, as far as it can be told."
    if annotation in (inspect.Parameter.empty, None):
        return ""
    if isinstance(annotation, str):
        return annotation
    dims = getattr(annotation, "dim_str", None)  # jaxtyping
    if dims is not None:
        return (
            f"{annotation.dtypes and annotation.__name__.split('[')[0]}[Tensor, "
            f'"{dims}"]'
        )
    text = (
        annotation.__name__
        if isinstance(annotation, type) and not hasattr(annotation, "__args__")
        else str(annotation)
    )
    return re.sub(
        r"\b(?:jaxtyping|torch|typing|pathlib|PIL\.Image|collections\.abc|[a-z_]+(?:\.[a-z_]+)*)\.(?=[A-Z])",
        "",
        text,
    )


def fields(target) -> list[str]:
    """A field list from the docments of a function or class.

    Parameters, types, what is returned.
    """
    from fastcore.docments import docments

    target = (
        inspect.unwrap(target.__init__)
        if inspect.isclass(target) and not hasattr(target, "__dataclass_fields__")
        else target
    )
    try:
        found = docments(target, full=True, returns=True)
    except (TypeError, ValueError, OSError, SyntaxError, IndentationError):
        return []
    lines = []
    for name, doc in found.items():
        text, kind = (
            " ".join((doc.get("docment") or "").split()),
            annotation_text(doc.get("anno")).replace("`", ""),
        )
        if not text and name in ("self", "return", "cls"):
            continue
        kind = f"``{kind}``" if kind else ""
        if name == "return":
            lines += [f":returns: {kind}{', ' if kind and text else ''}{text}"]
        else:
            lines += [f":param {name}: {kind}{': ' if kind and text else ''}{text}"]
    return lines


def _in_rst(match: re.Match) -> str:
    "A reference to an equation, or code, in the language of docstrings."
    return f":eq:`{match[2]}`" if match[1] else f"``{match[2]}``"


def add_fields(app, what, name, obj, options, lines: list[str]) -> None:
    """autodoc has read a docstring.

    Turn Markdown's single backticks into code and add the fields. A module's own line
    stands on the page already.
    """
    if what == "module":
        lines.clear()
    lines[:] = [re.sub(r"(?<!`)(\{eq\})?`([^`]+)`(?!`|_)", _in_rst, k) for k in lines]
    lines[:] = [re.sub(r"(?<!\w)\*(?=\w)", r"\\*", line) for line in lines]
    if what in ("function", "method", "class"):
        lines += ["", *fields(obj), ""]


def page_of(module: str) -> str:
    "The page of a module, in `nbs`."
    return f"api/{module.replace('.', '_')}"


def about(module: str, notebook: str) -> tuple[str, str]:
    "A link to the chapter of a module, and the chapter's subtitle."
    cells = json.loads((ROOT / "nbs" / notebook).read_text(encoding="utf-8"))["cells"]
    text = next("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    title, subtitle = re.match(r"# (.+)\n\n> (.+)", text).groups()
    listed = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    there = f"nbs/{notebook.removesuffix('.ipynb')}\n" in listed
    return f"[{title}](/nbs/{notebook})" if there else title, subtitle


def write_library(app, docname: str, source: list[str]) -> None:
    "Replace the mark by a table of the modules, or by what one module exports."
    if MARK in source[0]:
        lines = ["| module | chapter | |", "|---|---|---|"]
        for module, notebook in modules():
            page = f"[{module}]({page_of(module)}.md)"
            lines.append(f"| {page} | {' | '.join(about(module, notebook))} |")
        source[0] = source[0].replace(MARK, "\n".join(lines))
    if match := ONE.search(source[0]):
        chapter, subtitle = about(match[1], dict(modules())[match[1]])
        source[0] = source[0].replace(
            match[0],
            f"> {subtitle}\n\nThe public names of `t2i_tutorial.{match[1]}`, from the "
            f"chapter {chapter}.\n\n```{{eval-rst}}\n"
            f".. automodule:: t2i_tutorial.{match[1]}\n   :members:\n```\n",
        )


def outdated(app, env, added, changed, removed) -> list[str]:
    """The API pages are read anew at every build.

    They depend on the modules, not on their own files.
    """
    return [d for d in env.found_docs if d.endswith("92_api") or "/api/" in d]


def setup(app):
    app.connect("source-read", write_library)
    app.connect("autodoc-process-docstring", add_fields)
    app.connect("env-get-outdated", outdated)
    return {"version": "1", "parallel_read_safe": True}


if __name__ == "__main__":
    for module, _ in modules():
        file = ROOT / "nbs" / f"{page_of(module)}.md"
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            file.write_text(f"# {module}\n\n<!-- library: {module} -->\n")
            print(f"- file: nbs/{page_of(module)}")
