"""`make book`: export the notebooks, execute what changed, export the models for the
playground, build the HTML with warnings as errors, print the address.

`make epub`: the same chapters as one EPUB.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CACHE = (
    ROOT / "_build" / ".jupyter_cache"
)  # where Jupyter Book looks for executed notebooks
UNFINISHED = ROOT / "_build" / ".unfinished"  # while pages are built


def run(*command: str) -> bool:
    "Run a program of the environment: did it succeed?"
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return (
        subprocess.run(
            [str(BIN / command[0]), *command[1:]], cwd=ROOT, env=environment
        ).returncode
        == 0
    )


def execute(notebook):
    """Run one notebook in a folder of its own.

    None if its kernel did not start (two may want the same port).
    """
    from jupyter_cache.executors.utils import single_nb_execution

    try:
        with TemporaryDirectory() as folder:
            return single_nb_execution(notebook, folder, 300, False)
    except RuntimeError:
        return None


def execute_chapters(together: int = 2) -> None:
    """Fill the cache, some chapters at a time, one thread each.

    What fails is left for the build, which says why.
    """
    import nbformat
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from nbdev_book import translate_notebook

    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    listed = re.findall(
        r"(?:root|file): (nbs/\w+)$",
        (ROOT / "_toc.yml").read_text(encoding="utf-8"),
        re.M,
    )
    cache, todo = get_cache(CACHE), {}
    for path in (ROOT / f"{name}.ipynb" for name in listed):
        if not path.exists():
            continue
        notebook = nbformat.reads(
            translate_notebook(path.read_text(encoding="utf-8"), path.stem),
            as_version=4,
        )
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:
            todo[path] = notebook
    with ProcessPoolExecutor(together) as pool:
        for path, done in zip(todo, pool.map(execute, todo.values())):
            if done is None or done.err:
                continue
            bundle = CacheBundleIn(
                done.nb, str(path), data={"execution_seconds": done.time}
            )
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def build(*options: str) -> None:
    "Jupyter Book, with warnings as errors."
    if run("jupyter-book", "build", ".", *options, "-W", "-n", "--keep-going", "-q"):
        return
    # else the next build would not look at the faulty pages again
    shutil.rmtree(ROOT / "_build" / ".doctrees", ignore_errors=True)
    sys.exit(
        "make: the book failed to build; the reasons stand above, each in a line "
        "with WARNING or ERROR"
    )


def main(as_epub: bool = False) -> None:
    start = time.time()
    if not run("nbdev_export"):
        sys.exit("make: the export failed; the reason stands above")
    execute_chapters()
    if UNFINISHED.exists():  # a build was stopped: its pages may lack their pictures
        shutil.rmtree(UNFINISHED.parent / ".doctrees", ignore_errors=True)
    UNFINISHED.parent.mkdir(exist_ok=True)
    UNFINISHED.touch()
    if as_epub:
        folder = ROOT / "_build" / "epub"
        shutil.rmtree(folder, ignore_errors=True)  # it might have pages that are gone
        build("--builder", "custom", "--custom-builder", "epub")
        UNFINISHED.unlink()
        (file,) = folder.glob("*.epub")
        print(f"the book is packed in {time.time() - start:.0f} s: {file}")
        return
    if not run("python", "_ext/playground_files.py"):
        sys.exit("make: the playground's models could not be exported; see above")
    build()
    UNFINISHED.unlink()
    page = ROOT / "_build" / "html" / "index.html"
    if not page.exists():
        sys.exit(
            "make: the build ended but there is no page; run make clean and make book "
            "again"
        )
    import playground_files

    playground_files.serve()
    print(
        f"the book is built in {time.time() - start:.0f} s; open {page.as_uri()} or "
        "run make serve"
    )


if __name__ == "__main__":
    main("epub" in sys.argv[1:])
