"""The command line `t2i`. Its commands join with the chapters that teach them.

A user's mistake ends in one line and exit code 2, never in a traceback.
"""
import argparse
import sys
from collections.abc import Sequence

from t2i_tutorial import __version__


def parser() -> argparse.ArgumentParser:
    "The arguments of `t2i`."
    p = argparse.ArgumentParser(prog="t2i", description="Text to Image from Scratch: small text-to-image models that you can read in full.",
                                epilog="The commands draw, train, evaluate and compare join with the chapters that teach them.")
    p.add_argument("--version", action="version", version=f"t2i {__version__}")
    return p


def main(
    arguments: Sequence[str] | None = None,  # without the program's name; those of this process if not given
) -> int:  # exit code: 0 if all went well; a user's mistake exits with 2
    "Run the command line."
    p = parser()
    p.parse_args(arguments)
    p.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
