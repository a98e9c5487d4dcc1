"""How many creatures are drawn in a second, captions included?

    python benchmarks/bench_critters.py [--repeats 5] [--json FILE]

Prints the median of the repeats beside what the book asks for (on two processor cores),
and the share of the time that goes into pixels.
"""

import argparse
import json
import os
import platform
from statistics import median
from time import perf_counter

import torch

from t2i_tutorial import critters

GOALS = {32: 2000, 64: 500}  # creatures a second


def seconds(call, repeats: int) -> float:
    "The median time of a call after one to warm up."
    call()
    times = []
    for _ in range(repeats):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return median(times)


def measure(size: int, repeats: int, n: int) -> dict:
    """Speed of `sample` at one size, of the attributes and words alone, and of small
    batches.
    """
    whole = seconds(lambda: critters.sample_critters(n, size), repeats)
    generator = torch.Generator()
    at = critters.sample_attributes(n)
    pixels = seconds(
        lambda: critters._draw(at, size, generator.manual_seed(0)), repeats
    )
    small = seconds(lambda: critters.sample_critters(64, size), repeats)
    return {
        "size": size,
        "n": n,
        "per_second": n / whole,
        "per_second_in_batches_of_64": 64 / small,
        "share_in_pixels": min(1.0, pixels / whole),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads on "
        f"{os.cpu_count()} cores, {platform.machine()}\n"
    )
    print(
        f"{'size':>8}{'creatures/s':>14}{'goal':>8}{'ratio':>8}"
        f"{'batches of 64':>16}{'in pixels':>12}"
    )
    rows = [
        measure(size, args.repeats, n=max(16, 2048 * 32 * 32 // size**2))
        for size in (32, 64, 128, 256)
    ]
    for row in rows:
        goal = GOALS.get(row["size"])
        ratio = f"{row['per_second'] / goal:.1f}x" if goal else ""
        print(
            f"{row['size']:>8}{row['per_second']:>14,.0f}{goal or '':>8}{ratio:>8}"
            f"{row['per_second_in_batches_of_64']:>16,.0f}"
            f"{row['share_in_pixels']:>12.0%}"
        )
    at = {row["size"]: row["per_second"] for row in rows}
    print(
        f"\n64 pixels against 32: {at[32] / at[64]:.1f} times slower for 4 times the "
        "pixels"
    )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(
                {
                    "torch": torch.__version__,
                    "threads": torch.get_num_threads(),
                    "rows": rows,
                },
                f,
                indent=1,
            )


if __name__ == "__main__":
    main()
