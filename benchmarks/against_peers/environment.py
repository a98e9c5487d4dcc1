"""Make `_build/bench-env`: this library from the checkout, and the peers from PyPI.

    python3 benchmarks/against_peers/environment.py [--again]

Called by `make bench`; needs nothing but Python. The project's own environment is not
touched. The versions of everything that the library needs are those of constraints.txt,
so that the peers run on the same PyTorch; what only the peers need is pinned in
`constraints.txt` beside this file. A peer that cannot be installed or imported is left
out, and `_build/bench-env/peers.json` says why; the records repeat it.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / ".ci"))
from constraints import find_uv  # noqa: E402

VENV = ROOT / "_build" / "bench-env"
PYTHON = VENV / "bin" / "python"
FOUND = VENV / "peers.json"  # what was installed, and what was left out and why
INPUTS = (
    *(ROOT / n for n in ("constraints.txt", "settings.ini", "setup.py")),
    *(HERE / n for n in ("constraints.txt", "environment.py")),
)


class Peer(NamedTuple):
    "A package that is compared with this library."

    requirement: str  # as pip reads it
    module: str  # what must be importable
    # tried if its own requirements cannot be met: it alone, with these
    bare: tuple[str, ...] = ()


PEERS = {
    "imagen-pytorch": Peer("imagen-pytorch==2.1.0", "imagen_pytorch"),
    "denoising-diffusion-pytorch": Peer(
        "denoising-diffusion-pytorch==2.3.4",
        "denoising_diffusion_pytorch.classifier_free_guidance",
    ),
    "diffusers": Peer("diffusers", "diffusers"),  # as in the project's constraints
    "minimagen": Peer(
        "minimagen==0.0.9",
        "minimagen.Imagen",
        ("einops-exts==0.0.4", "resize-right==0.0.2"),
    ),
    "gigagan-pytorch": Peer("gigagan-pytorch==0.3.0", "gigagan_pytorch"),
}


def stop(message: str) -> None:
    "End with one line."
    sys.exit(f"make: {message}")


def wanted() -> str:
    "A digest of what the environment must correspond to."
    digest = hashlib.sha256(repr((sys.version, str(ROOT))).encode())
    for path in INPUTS:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def ready() -> bool:
    "Is the environment there, whole and current?"
    try:
        return json.loads(FOUND.read_text())["stamp"] == wanted() and PYTHON.exists()
    except (OSError, ValueError, KeyError):
        return False


def last_line(text: str) -> str:
    "The last line that says something: what failed, of a long output."
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "cause"))]
    return (errors or lines or ["no reason given"])[-1][:400]


def run(*command: object) -> str:  # empty if all went well
    "Run a program; the reason if it failed."
    done = subprocess.run(
        [str(c) for c in command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return last_line(done.stdout) if done.returncode else ""


def importable(module: str) -> str:  # empty if it is
    "Import a peer in a process of its own, without a network; the reason if it fails."
    code = "import sys; sys.path.insert(0, sys.argv[1]); from adapters import offline\n"
    code += "with offline():\n    __import__(sys.argv[2])"
    return run(PYTHON, "-W", "ignore", "-c", code, HERE, module)


def install_peer(install: tuple, peer: Peer) -> dict:  # "note", or "left_out"
    "Install one peer beside all that is there, or say why that is impossible."
    why = run(*install, peer.requirement)
    note = ""
    if why and peer.bare:
        note = f"without its own pins, which cannot be met: {why}"
        why = run(*install, "--no-deps", peer.requirement, *peer.bare)
    why = why or importable(peer.module)
    return {"left_out": why} if why else {"note": note}


def versions() -> dict[str, str]:
    "Of every package in the environment."
    code = "from importlib.metadata import distributions as d; import json; "
    code += "print(json.dumps({x.name.lower(): x.version for x in d()}))"
    return json.loads(subprocess.check_output([str(PYTHON), "-c", code], text=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="even if it is current")
    options = parser.parse_args()
    if ready() and not options.again:
        return
    print("making _build/bench-env: PyTorch, this library, the peers", flush=True)
    VENV.parent.mkdir(exist_ok=True)
    uv = find_uv(VENV.parent)
    if why := run(uv, "venv", "-q", "--clear", "-p", sys.executable, VENV):
        stop(f"could not make _build/bench-env ({why})")
    install = (uv, "pip", "install", "-q", "-p", PYTHON, "-c", "constraints.txt")
    if why := run(*install, "-e", ".[train,export]", "pytest"):
        stop(f"the installation failed: {why}; check the network and run make again")
    install += ("-c", HERE / "constraints.txt")
    found = {}
    for name, peer in PEERS.items():
        found[name] = install_peer(install, peer)
        print(f"  {name}: {found[name].get('left_out') or 'installed'}", flush=True)
    known = versions()
    for name, entry in found.items():
        if name in known and "left_out" not in entry:
            entry["version"] = known[name]
    shown = ("torch", "numpy", "transformers", "accelerate", "onnxruntime")
    record = {
        "peers": found,
        "versions": {k: known[k] for k in shown if k in known},
        "stamp": wanted(),
    }
    FOUND.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
