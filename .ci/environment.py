"""Make .venv and install the tested versions into it.

Called by make; needs nothing but Python. With the argument `check` it only looks
whether this Python is new enough. Every way in which this can fail ends in one
line that says what to do. It is written so that even a very old Python can read it as
far as the line that refuses it.
"""

import hashlib
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV, LOG = os.path.join(ROOT, ".venv"), os.path.join(ROOT, ".venv", "install.log")
STAMP, PYTHON = os.path.join(VENV, ".installed"), os.path.join(VENV, "bin", "python")
INPUTS = ("constraints.txt", "settings.ini", "setup.py", "pyproject.toml")


def stop(message):
    "End with one line."
    sys.stderr.write("make: %s\n" % message)
    sys.exit(2)


def wanted():
    """What the environment must correspond to.

    The files that define it, the Python, and the folder (a venv cannot be moved).
    """
    digest = hashlib.sha256(repr((sys.version, ROOT)).encode())
    for name in INPUTS:
        with open(os.path.join(ROOT, name), "rb") as f:
            digest.update(f.read())
    return digest.hexdigest()


def ready():
    "Is the environment there, whole and current?"
    if not os.path.exists(PYTHON):
        return False
    try:
        with open(STAMP) as f:
            return f.read() == wanted()
    except (OSError, IOError):
        return False


def create():
    "A fresh, empty environment."
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        stop(
            "this Python cannot make virtual environments; install them (on Debian "
            "and Ubuntu: sudo apt install python3-venv) and run make again"
        )
    if os.path.exists(VENV):
        shutil.rmtree(VENV)
    made = subprocess.run(
        [sys.executable, "-m", "venv", VENV],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    if made.returncode or not os.path.exists(PYTHON):
        reason = (made.stdout.strip().splitlines() or ["no reason given"])[-1]
        stop(
            "could not make .venv (%s); on Debian and Ubuntu: sudo apt install "
            "python3-venv; then run make again" % reason
        )


def install():
    "The library, in place, with all that the book and the tests need."
    command = [
        PYTHON,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-compile",
        "-c",
        "constraints.txt",
        "-e",
        ".[train,dev]",
    ]
    with open(LOG, "w") as log:
        failed = subprocess.run(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    if failed:
        with open(LOG) as log:
            errors = [line.strip() for line in log if line.startswith("ERROR")]
        stop(
            "the installation failed: %s; see .venv/install.log, check the network "
            "and the free space, and run make again (what was fetched is kept)"
            % (errors[-1][:200] if errors else "pip gave no reason")
        )


def main():
    "Check, make, install, stamp."
    if sys.version_info < (3, 10):
        stop(
            "Python 3.10 or newer is needed and this is %s; name a newer one: make %s "
            "PYTHON=python3.12" % (sys.version.split()[0], "book")
        )
    if sys.argv[1:] == ["check"] or ready():
        return
    print(
        "making .venv with Python %s and installing the tested versions (a few "
        "minutes, about 6 GB with PyTorch's GPU build)" % sys.version.split()[0]
    )
    sys.stdout.flush()
    create()
    install()
    with open(STAMP, "w") as f:
        f.write(wanted())


main()
