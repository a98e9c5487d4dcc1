"""What several test files need.

The real pictures, the built book, a browser, and a switch for the shape checks.
"""

import contextlib
import functools
import gzip
import http.server
import os
import shutil
import threading
from pathlib import Path

import jaxtyping
import pytest

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "_build" / "html"


@pytest.fixture
def t2i(tmp_path, monkeypatch, capsys):
    "Run a command in an empty folder: (exit code, standard output, standard error)."
    from t2i_tutorial import cli

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as e:
            code = e.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def untyped():
    """Shape and type checks off, for a test that passes a wrong type on purpose and
    wants our own message.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def pictures_folder() -> Path:
    "A folder of real captioned pictures, which the project does not ship."
    for folder in (
        os.environ.get("T2I_PICTURES"),
        ROOT.parent / "shared" / "data" / "crawl_tiles",
    ):
        if folder and (Path(folder) / "metadata.jsonl").exists():
            return Path(folder)
    pytest.skip("no folder of real captioned pictures here; name one in T2I_PICTURES")


@pytest.fixture(scope="session")
def book() -> Path:
    "The built book."
    if not (BOOK / "index.html").exists():
        pytest.skip("the book is not built; run make book first")
    return BOOK


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(folder: Path, handler: type = _Quiet):
    "The address of a folder that is served on the loopback interface."
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def book_address(book) -> str:
    "The built book, served on the loopback interface."
    with serve(book) as address:
        yield address


def axe_core() -> str:
    "The source of axe-core; test_accessibility.py says where it is from."
    packed = ROOT / "tests" / "javascript" / "axe.min.js.gz"
    return gzip.decompress(packed.read_bytes()).decode()


QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    "Where Chromium is."
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((p for n in names if (p := shutil.which(n))), None)


@pytest.fixture(scope="session")
def browser():
    "Chromium without a window and without a network."
    path = find_chromium()
    if not path:
        pytest.skip(
            "no Chromium here; install it (on Debian: apt install chromium) to run the "
            "browser checks"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=QUIET)
        yield b
        b.close()


@contextlib.contextmanager
def guarded_tab(browser, book_address, **options):
    """An open tab that can reach nothing but the book.

    `problems` of it collects what went wrong on it.
    """
    viewport = {"width": 1280, "height": 900}
    context = browser.new_context(viewport=viewport, **options)
    tab = context.new_page()
    tab.problems = []

    def only_book(route):
        if route.request.url.startswith((book_address, "data:", "blob:")):
            return route.continue_()
        tab.problems.append(f"asks the network for {route.request.url}")
        route.abort()

    context.route("**/*", only_book)
    tab.on("pageerror", lambda e: tab.problems.append(f"script error: {e}"))
    tab.on(
        "response",
        lambda r: r.status >= 400 and tab.problems.append(f"{r.status} for {r.url}"),
    )
    yield tab
    context.close()


@pytest.fixture
def page(browser, book_address):
    """An open tab that can reach nothing but the book.

    `page.problems` collects what went wrong on it.
    """
    with guarded_tab(browser, book_address) as tab:
        yield tab
