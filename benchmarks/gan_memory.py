"""Does the GAN fit into memory? Time and peak memory of a step, part by part.

    OMP_NUM_THREADS=1 python benchmarks/gan_memory.py [--json FILE] [--device cuda]
        [--repeats 3] [--sizes 32 64 256]

Every rung of `ABLATION_LADDER` at 32 pixels (the networks of `cpu-32`), at 64 (those of
`gpu-64`) and, for the first and the last rung, at 256 (`gpu-64` with two more levels
of 24 and 16 channels). The peak is that of one update of both networks, with and
without the gradient penalty, for two batch sizes: from both follow what an image takes
and what does not depend on the batch. Beside it, how many numbers the layers put out
for one image, counted in forward hooks: from it and from the peak at 64 pixels the
chapter predicts the peak at 256.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from gan_layers import RUNGS, build, peak_bytes, seconds, update

from t2i_tutorial.clip import git_commit, hardware_info
from t2i_tutorial.core import RESULTS_DIR, save_json
from t2i_tutorial.experiments import critters_dataset
from t2i_tutorial.gan.config import GigaGANConfig, gigagan_preset
from t2i_tutorial.gan.gigagan import GigaGAN

BATCHES = {32: (4, 8), 64: (2, 4), 256: (2, 3)}


def config_at(size: int, changes: dict) -> GigaGANConfig:
    "The networks of a preset, or those of 64 pixels with two more levels."
    config = gigagan_preset("cpu-32" if size == 32 else "gpu-64", changes).model_config
    if size == config.size:
        return config
    g, d = config.generator, config.discriminator
    off, thin = (False, False), (24, 16)
    g = replace(
        g,
        channels=g.channels + thin,
        num_kernels=g.num_kernels + g.num_kernels[-1:] * 2,
        self_attention=g.self_attention + off,
        cross_attention=g.cross_attention + off,
    )
    d = replace(
        d,
        sizes=(*d.sizes, 128, 256),
        channels=d.channels + thin,
        attention=d.attention + off,
    )
    return replace(config, size=size, generator=g, discriminator=d)


def count_features(model: GigaGAN, batch) -> int:
    "How many numbers the layers of both networks put out for an image, forward."
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        if isinstance(output, torch.Tensor) and not [*module.children()]:
            counted += output.numel()

    networks = model.generator, model.discriminator
    modules = [m for network in networks for m in network.modules()]
    hooks = [m.register_forward_hook(count) for m in modules]
    update(model, batch)
    for hook in hooks:
        hook.remove()
    return counted // len(batch.captions)


def measure(size: int, rung: str, device: torch.device, repeats: int) -> dict:
    "One row: a rung at one size."
    data, peaks = critters_dataset(max(BATCHES[size]), size), {}
    model = build(config_at(size, RUNGS[rung]), data, device)
    for n in BATCHES[size]:
        batch = next(data.batches(n, shuffle=False))
        call = partial(update, model, batch)
        model.eval()  # no penalty
        features = count_features(model, batch)  # what is made once is made here
        peaks[str(n)] = {"without": peak_bytes(call, device)}
        model.train()  # the first of sixteen updates, the one with the penalty
        peaks[str(n)]["with penalty"] = peak_bytes(call, device)
    networks = [model.trainable_parameters(phase) for phase in model.phases]
    trained = sum(p.numel() for network in networks for p in network)
    return {
        "size": size,
        "rung": rung,
        "trained_parameters": trained,
        "features_an_image": features,
        "seconds": seconds(partial(update, model.eval(), batch), device, repeats),
        "batch": n,
        "peak_bytes": peaks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS_DIR / "gan-memory.json")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[*BATCHES])
    options = parser.parse_args()
    device, rows = torch.device(options.device), []
    for size in options.sizes:
        rungs = [*RUNGS]
        for rung in rungs if size < 256 else [rungs[0], rungs[-1]]:
            rows.append(measure(size, rung, device, options.repeats))
            print(rows[-1], flush=True)
    record = {
        "git_commit": git_commit(),
        "hardware": hardware_info(),
        "device": options.device,
        "rows": rows,
    }
    save_json(options.json, record)


if __name__ == "__main__":
    main()
