"""What the playground's page loads: the exported models, made when the book is built.

`make book` runs this after the chapters. The models are exported to _build/playground
and copied beside the page's JavaScript; they are made anew only if something that they
are made of has changed.
"""

import hashlib
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
EXPORTED = ROOT / "_build" / "playground"
SERVED = ROOT / "_build" / "html" / "_static" / "playground" / "models"
SOURCES = (
    "attention.py",
    "clip.py",
    "diffusion/*.py",
    "evaluation/classifier.py",
    "gan/filter_bank.py",
    "gan/generator.py",
    "gan/modulation.py",
    "playground.py",
    "species.py",
    "text.py",
    "pretrained/critters-32*/[cm]*",
    "pretrained/critters-cl*/[cmt]*",
)


def digest() -> str:
    "Of all that the exported models are made of."
    found, library = hashlib.sha256(), ROOT / "t2i_tutorial"
    for pattern in SOURCES:
        for path in sorted(library.glob(pattern)):
            found.update(str(path.relative_to(library)).encode() + path.read_bytes())
    return found.hexdigest()


def export() -> Path:
    "The folder of exported models, made anew if it is not current."
    stamp = EXPORTED / "stamp"
    if stamp.exists() and stamp.read_text() == digest():
        return EXPORTED
    from t2i_tutorial.playground import export_playground

    print("exporting the playground's models (about a minute)", flush=True)
    shutil.rmtree(EXPORTED, ignore_errors=True)
    export_playground(EXPORTED, show_progress=True)
    stamp.write_text(digest())
    return EXPORTED


def serve() -> None:
    "Copy them into the built book."
    shutil.rmtree(SERVED, ignore_errors=True)
    ignored = shutil.ignore_patterns("stamp")
    shutil.copytree(EXPORTED, SERVED, ignore=ignored)


if __name__ == "__main__":
    export()
