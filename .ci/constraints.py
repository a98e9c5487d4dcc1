"""`make constraints`: write constraints/oldest.txt and constraints/newest.txt, the two
ends of what settings.ini allows. Each file begins with the command that makes it.

In oldest.txt each package that settings.ini names is at its lower bound; if those do
not go together, uv says why and a bound must be raised. In newest.txt everything is as
new as the ranges allow. The same program makes constraints.txt, the versions that the
book is built with: make constraints WHICH=tested
"""

import re
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "oldest": "constraints/oldest.txt",
    "newest": "constraints/newest.txt",
    "tested": "constraints.txt",
}


def find_uv(
    folder: Path,  # where one is installed if there is none here
) -> str:  # the program
    "The program uv, which resolves and installs, from here or from the package index."
    if found := shutil.which("uv"):
        return found
    subprocess.run([sys.executable, "-m", "venv", folder / "uv"], check=True)
    binaries = folder / "uv" / "bin"
    subprocess.run([binaries / "pip", "install", "-q", "uv>=0.5,<1"], check=True)
    return str(binaries / "uv")


def read_settings() -> dict[str, str]:
    "The values of settings.ini."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def direct_requirements(
    which: str,  # oldest, newest or tested
) -> list[str]:  # such as torch>=2.6,<3, and torch==2.6 for the oldest
    "What settings.ini asks for; with what the book and the tests add if `tested`."
    s = read_settings()
    wanted = f"{s['requirements']} {s['train_requirements']}".split()
    if which == "tested":
        wanted += s["export_requirements"].split() + s["dev_requirements"].split()
    if which == "oldest":
        wanted = [re.sub(r">=([\w.]+),.*", r"==\1", r) for r in wanted]
    return wanted


def main() -> None:
    chosen = sys.argv[1:] or ["oldest", "newest"]
    if unknown := set(chosen) - set(FILES):
        sys.exit(f"make: no {unknown.pop()!r}; choose from: {', '.join(FILES)}")
    with tempfile.TemporaryDirectory() as name:
        uv = find_uv(Path(name))
        for which in chosen:
            source = Path(name) / f"{which}.in"
            source.write_text("\n".join(direct_requirements(which)) + "\n")
            command = [uv, "pip", "compile", "--quiet", "--universal", "--upgrade"]
            command += ["--python-version", read_settings()["min_python"]]
            command += ["--custom-compile-command", f"make constraints WHICH={which}"]
            command += ["--no-annotate", source, "--output-file", ROOT / FILES[which]]
            if code := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
                sys.exit(code)
            print(f"wrote {FILES[which]}", flush=True)


if __name__ == "__main__":
    main()
