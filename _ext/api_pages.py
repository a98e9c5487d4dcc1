"""API pages from docments: the comments beside each parameter become the field list
that readers know.

`<!-- library -->` in a Markdown page becomes one section for each module that a chapter
exports, in the order of the
chapters, through `sphinx.ext.autodoc`.
"""

import inspect
import re

from nbdev_book import ROOT, module_of

MARK = "<!-- library -->"


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


def add_fields(app, what, name, obj, options, lines: list[str]) -> None:
    """autodoc has read a docstring.

    Turn Markdown's single backticks into code and add the fields.
    """
    lines[:] = [re.sub(r"(?<!`)`([^`]+)`(?!`|_)", r"``\1``", line) for line in lines]
    lines[:] = [re.sub(r"(?<!\w)\*(?=\w)", r"\\*", line) for line in lines]
    if what in ("function", "method", "class"):
        lines += ["", *fields(obj), ""]


def write_library(app, docname: str, source: list[str]) -> None:
    "Replace the mark by a section for each module."
    if MARK not in source[0]:
        return
    parts, listed = [], (ROOT / "_toc.yml").read_text(encoding="utf-8")
    for module, notebook in modules():
        full, chapter = f"t2i_tutorial.{module}", notebook.removesuffix(".ipynb")
        origin = (
            f"From the chapter [{chapter}]({notebook})."
            if f"nbs/{chapter}\n" in listed
            else f"Its chapter, `{chapter}`, is being written."
        )
        parts.append(
            f"## `{full}`\n\n{origin}\n\n"
            f"```{{eval-rst}}\n.. automodule:: {full}\n   :members:\n```\n"
        )
    source[0] = source[0].replace(MARK, "\n".join(parts))


def outdated(app, env, added, changed, removed) -> list[str]:
    """The API page is read anew at every build.

    It depends on the modules, not on its own file.
    """
    return [d for d in env.found_docs if d.endswith("92_api")]


def setup(app):
    app.connect("source-read", write_library)
    app.connect("autodoc-process-docstring", add_fields)
    app.connect("env-get-outdated", outdated)
    return {"version": "1", "parallel_read_safe": True}
