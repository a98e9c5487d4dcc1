"""`make book`: export the notebooks, execute what changed, build the HTML with warnings as errors, print the address."""
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def run(*command: str) -> None:
    "Run a program of the environment; end with its exit code if it fails."
    code = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, env=os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}).returncode
    if code: sys.exit(f"make: {command[0]} failed; the reason stands above")


def main() -> None:
    start = time.time()
    run("nbdev_export")
    run("jupyter-book", "build", ".", "-W", "-n", "--keep-going", "-q")
    page = ROOT / "_build" / "html" / "index.html"
    if not page.exists(): sys.exit("make: the build ended but there is no page; run make clean and make book again")
    print(f"the book is built in {time.time() - start:.0f} s; open {page.as_uri()} or run make serve")


if __name__ == "__main__": main()
