"""`make book`: export the notebooks, execute what changed, build the HTML with warnings as errors, print the address."""
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def run(*command: str) -> bool:
    "Run a program of the environment: did it succeed?"
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, env=environment).returncode == 0


def main() -> None:
    start = time.time()
    if not run("nbdev_export"): sys.exit("make: the export failed; the reason stands above")
    if not run("jupyter-book", "build", ".", "-W", "-n", "--keep-going", "-q"):
        shutil.rmtree(ROOT / "_build" / ".doctrees", ignore_errors=True)  # else the next build would not look at the faulty pages again
        sys.exit("make: the book failed to build; the reasons stand above, each in a line with WARNING or ERROR")
    page = ROOT / "_build" / "html" / "index.html"
    if not page.exists(): sys.exit("make: the build ended but there is no page; run make clean and make book again")
    print(f"the book is built in {time.time() - start:.0f} s; open {page.as_uri()} or run make serve")


if __name__ == "__main__": main()
