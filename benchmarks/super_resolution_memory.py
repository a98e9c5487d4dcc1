"""How much memory the training of a super-resolution stage needs, by batch and size.

    OMP_NUM_THREADS=1 python benchmarks/super_resolution_memory.py [--preset gpu-256]

Peak bytes = bytes a parameter x parameters + bytes an image x batch, where an image's
share grows with its pixels. Both are counted on the `meta` device, where nothing is
computed: what autograd keeps for the backward pass, with and without gradient
checkpointing, and in 16 bits where the preset trains so; to that comes what one block
needs while it is computed again. Three points are then measured, each in a process of
its own: the rise of its peak memory by one training step on the CPU, in 32 bits. Writes
super-resolution-memory.json.
"""

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from t2i_tutorial.clip import git_commit, hardware_info
from t2i_tutorial.core import RESULTS_DIR, save_json
from t2i_tutorial.diffusion.cascade import (
    SuperResolutionUNet,
    super_resolution_preset,
)
from t2i_tutorial.diffusion.unet import UNetBlock
from t2i_tutorial.text import TextEmbedding

POINTS = ((1, 64), (2, 64), (1, 128))  # batch, pixels of a side: measured here
TOKENS = 24


def step(unet: nn.Module, batch: int, size: int, device: str, bf16: bool = False):
    "One forward pass on random images; its mean square as a loss."
    dim, x = unet.config.text_dim, torch.zeros(batch, 3, size, size, device=device)
    text = TextEmbedding(
        torch.zeros(batch, TOKENS, dim, device=device),
        torch.ones(batch, TOKENS, dtype=torch.bool, device=device),
        torch.zeros(batch, dim, device=device),
    )
    t = torch.zeros(batch, dtype=torch.long, device=device)
    return unet(x, t, text, x, torch.zeros(batch, device=device)).square().mean()


def storage(tensor) -> int:
    "What tells whether two tensors are views of the same memory."
    return tensor.untyped_storage()._cdata


class Counted:
    "Bytes of the memory that autograd keeps, each once, weights left out."

    def __init__(self, unet: nn.Module, element: int | None = None):
        self.kept, self.bytes = {storage(p): p for p in unet.parameters()}, 0
        self.element = element  # bytes of a float, if not its own

    def pack(self, tensor):
        if storage(tensor) not in self.kept:
            self.kept[storage(tensor)] = tensor
            floating = tensor.is_floating_point() and self.element
            width = self.element if floating else tensor.element_size()
            self.bytes += (
                tensor.untyped_storage().nbytes() // tensor.element_size() * width
            )
        return tensor


def kept_bytes(config, size: int, checkpointing: bool, element: int = 4) -> dict:
    "For one image: what is kept, and what the largest block keeps when it runs again."
    with torch.device("meta"):
        unet = SuperResolutionUNet(config, checkpointing)
        whole = Counted(unet, element)
        blocks = {}

        def watch(block):
            forward = block.forward

            def run(*args):
                before = whole.bytes
                result = forward(*args)
                blocks[block] = whole.bytes - before
                return result

            block.forward = run

        for block in [m for m in unet.modules() if isinstance(m, UNetBlock)]:
            watch(block)
        with torch.autograd.graph.saved_tensors_hooks(whole.pack, lambda x: x):
            step(unet, 1, size, "meta")
        largest = max(blocks.values())
        parameters = sum(p.numel() for p in unet.parameters())
    return {"image": whole.bytes, "block": largest, "parameters": parameters}


def plan(config, batch: int, size: int, checkpointing: bool, element: int = 4) -> int:
    "Peak bytes of a training step, with AdamW and averaged weights."
    kept = kept_bytes(config, size, checkpointing, element)
    image = kept["image"]
    if checkpointing:  # one block at a time keeps everything again
        image += kept_bytes(config, size, False, element)["block"]
    weights = 4 * 5 * kept["parameters"]  # weights, gradient, two moments, average
    if element == 2:
        weights += 2 * kept["parameters"]  # a copy in 16 bits while a step runs
    return weights + batch * image


def measure(config, batch: int, size: int, checkpointing: bool) -> dict:
    "In this process: how far a training step raises the peak, and its seconds."
    torch.set_num_threads(1)
    unet = SuperResolutionUNet(config, checkpointing)
    step(unet, 1, 32, "cpu")  # libraries and buffers
    before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = perf_counter()
    step(unet, batch, size, "cpu").backward()
    after = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"bytes": after - before, "seconds": round(perf_counter() - start, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gpu-256")
    parser.add_argument("--point", nargs=3, type=int, help="of a process of its own")
    output = RESULTS_DIR / "super-resolution-memory.json"
    parser.add_argument("--output", type=Path, default=output)
    options = parser.parse_args()
    preset = super_resolution_preset(options.preset)
    config = preset.model_config.unet
    if options.point:
        batch, size, checkpointing = options.point
        return print(json.dumps(measure(config, batch, size, bool(checkpointing))))
    checked = []
    for batch, size in POINTS:
        for checkpointing in (False, True):
            words = [str(batch), str(size), str(int(checkpointing))]
            command = [sys.executable, __file__, "--preset", options.preset, "--point"]
            said = subprocess.run(
                [*command, *words], check=True, capture_output=True, text=True
            )
            kept = plan(config, batch, size, checkpointing)
            count = kept_bytes(config, size, checkpointing)["parameters"]
            kept -= 4 * 4 * count  # before: weights; no optimizer, no average here
            row = {"batch": batch, "size": size, "checkpointing": checkpointing}
            found = json.loads(said.stdout)
            checked.append(row | {"planned": kept, "measured": found["bytes"]} | found)
            checked[-1].pop("bytes")
            print(checked[-1], flush=True)
    size, element = preset.model_config.size, 4
    if preset.train_config.mixed_precision == "bf16":
        element = 2
    planned = [
        {"batch": b, "size": s, "checkpointing": c}
        | {"bytes": plan(replace(config), b, s, c, element)}
        for s in (size // 2, size)
        for b in (1, preset.train_config.batch_size)
        for c in (False, True)
    ]
    head = {"git_commit": git_commit(), "hardware": hardware_info()}
    record = head | {"preset": options.preset, "element_bytes": element}
    record |= {"checked": checked, "planned": planned}
    record["parameters"] = kept_bytes(config, 64, False)["parameters"]
    print(save_json(options.output, record))


if __name__ == "__main__":
    main()
