"""What do one kernel per sample, and a bank of kernels, cost?

    python benchmarks/gan_layers.py [--device cuda] [--batch 16] [--repeats 5]
        [--preset cpu-32] [--model critters-32-gigagan] [--json FILE]

Three tables, each measured in one run, forward and backward (on a CPU in processor
time, so that other programs disturb less): the grouped convolution against the loop
over samples, at the levels of the 32-pixel generator; banks of N = 1, 2, 4, 8 kernels
against the plain layer, time and peak memory, beside N whole convolutions; and a
training step of both networks of `--preset`, rung by rung of `ABLATION_LADDER`. At the
end, the time in which a trained model generates an image.
"""

import argparse
import json
import os
import platform
from functools import partial
from statistics import median
from time import perf_counter, process_time

# before torch is imported: the profiler that counts bytes logs much
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
# ruff: noqa: E402
import pandas as pd
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from t2i_tutorial.core import seeded_generator
from t2i_tutorial.experiments import SAMPLE_PROMPTS, critters_dataset
from t2i_tutorial.gan.config import ABLATION_LADDER, GigaGANConfig, gigagan_preset
from t2i_tutorial.gan.filter_bank import FilterBankConv2d
from t2i_tutorial.gan.gigagan import GigaGAN, caption_attributes
from t2i_tutorial.gan.modulation import modulated_conv2d

LEVELS = ((4, 128), (8, 128), (16, 64), (32, 32))  # pixels of a side, channels
BANKS = (1, 2, 4, 8)
# the last rung with its backbone, which only some presets name
RUNGS = ABLATION_LADDER | {
    "vision-aided": ABLATION_LADDER["vision-aided"]
    | {"discriminator.vision_aided_model": "critters-clip"}
}


def loop(x, kernel, style):
    "One image at a time: the kernel modulated, demodulated, convolved."
    out = []
    for image, s in zip(x, style):
        k = kernel * s[None, :, None, None]
        k = k * torch.rsqrt(k.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        out.append(F.conv2d(image[None], k, padding=k.shape[-1] // 2))
    return torch.cat(out)


def grouped(x, kernel, style):
    "One grouped convolution with a kernel for each sample."
    return modulated_conv2d(x, kernel.expand(len(x), -1, -1, -1, -1), style)


def scaled(x, kernel, style):
    "Factors on the feature maps, one kernel for all samples."
    d = torch.rsqrt(F.linear(style.square(), kernel.square().sum((2, 3))) + 1e-8)
    return (
        F.conv2d(x * style[..., None, None], kernel, padding=kernel.shape[-1] // 2)
        * d[..., None, None]
    )


def n_convolutions(layer, x, w):
    "A bank without mixing kernels: every kernel convolves, the outputs are mixed."
    a, s = layer.kernel_weights(w), layer.style(w)
    return sum(
        a[:, n, None, None, None] * modulated_conv2d(x, k * layer.scale, s)
        for n, k in enumerate(layer.weight)
    )


def step(call):
    "Forward and backward."
    call().square().mean().backward()


def seconds(call, device: torch.device, repeats: int) -> float:
    "The median time of a step after one to warm up."
    times, clock = [], perf_counter if device.type == "cuda" else process_time
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = clock()
        step(call)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return median(times[1:])


def peak_bytes(call, device: torch.device) -> int:
    "The peak of PyTorch's allocations during a step, beyond what was there before."
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(call)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step(call)
    changes = [
        (e.start_ns(), e.nbytes())
        for e in watched.profiler.kineto_results.events()
        if e.name() == "[memory]"
    ]
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def inputs(side: int, channels: int, batch: int, device: torch.device):
    "Features, kernel and styles that require gradients."
    made = (
        torch.randn(batch, channels, side, side),
        torch.randn(channels, channels, 3, 3),
        1 + 0.3 * torch.randn(batch, channels),
    )
    return [t.to(device).requires_grad_() for t in made]


def measure_ways(
    side: int, channels: int, batch: int, device: torch.device, repeats: int
) -> dict:
    "Times of the loop, of two ways without it, and of what `modulated_conv2d` chooses."
    x, kernel, style = inputs(side, channels, batch, device)
    ways = {
        "loop": loop,
        "grouped": grouped,
        "scaled": scaled,
        "chosen": modulated_conv2d,
    }
    with torch.no_grad():
        truth = loop(x.double(), kernel.double(), style.double())
        error = max(
            (way(x, kernel, style) - truth).abs().max().item() for way in ways.values()
        )
    took = {
        name: seconds(lambda way=way: way(x, kernel, style), device, repeats)
        for name, way in ways.items()
    }
    return {"side": side, "channels": channels, "seconds": took, "largest_error": error}


def measure_banks(
    side: int, channels: int, batch: int, device: torch.device, repeats: int
) -> list[dict]:
    "Time and peak memory for every size of the bank, and for N whole convolutions."
    rows = []
    for n in BANKS:
        torch.manual_seed(0)
        layer = FilterBankConv2d(channels, channels, 3, 128, n).to(device)
        w = torch.randn(batch, 128, device=device)
        x = torch.randn(batch, channels, side, side, device=device).requires_grad_()
        calls = {
            "bank": partial(layer, x, w),
            "n_convolutions": partial(n_convolutions, layer, x, w),
        }
        for call in calls.values():
            step(call)  # gradients are allocated before the measurement
        rows.append(
            {
                "side": side,
                "channels": channels,
                "kernels": n,
                "parameters": sum(p.numel() for p in layer.parameters()),
                "seconds": {k: seconds(c, device, repeats) for k, c in calls.items()},
                "peak_bytes": {k: peak_bytes(c, device) for k, c in calls.items()},
            }
        )
    return rows


def build(config: GigaGANConfig, data, device: torch.device) -> GigaGAN:
    "Random weights, with the negatives of the CLIP loss where there is one."
    torch.manual_seed(0)
    model = GigaGAN(config).to(device)
    if model.config.clip_weight:
        model.set_clip_negatives([c[0] for c in data.captions], caption_attributes)
    return model


def update(model: GigaGAN, batch) -> torch.Tensor:
    "The gradients of both networks, as in an update; no weight changes."
    for phase in model.phases:
        for name in model.phases:
            for p in model.trainable_parameters(name):
                p.requires_grad_(name == phase)
        model.training_losses(batch, seeded_generator(0), phase)["loss"].backward()
        for p in model.parameters():
            p.grad = None
    return torch.zeros(1, requires_grad=True)  # what `step` differentiates


def measure_rungs(
    preset: str, batch: int, device: torch.device, repeats: int
) -> list[dict]:
    "Time and peak memory of a step of each network, rung by rung."
    data = critters_dataset(256, gigagan_preset(preset).model_config.size)
    rows = []
    images = next(data.batches(batch, shuffle=False))
    for name, changes in RUNGS.items():
        config = gigagan_preset(preset, changes).model_config
        model = build(config, data, device).eval()  # eval: no penalty
        both = partial(update, model, images)
        rows.append(
            {
                "rung": name,
                "parameters": sum(p.numel() for p in model.parameters()),
                "seconds": seconds(both, device, repeats),
                "peak_bytes": peak_bytes(both, device),
            }
        )
    return rows


def measure_generation(
    name: str, batch: int, device: torch.device, repeats: int
) -> dict:
    "Seconds an image of a trained model, from prompts to pixels, in a batch."
    model, prompts = (
        GigaGAN.from_pretrained(name, str(device)),
        [*SAMPLE_PROMPTS] * (-(-batch // len(SAMPLE_PROMPTS))),
    )
    times, clock = [], perf_counter if device.type == "cuda" else process_time
    for k in range(repeats + 1):
        start = clock()
        model.sample(prompts[:batch], seed=k, batch_size=batch).cpu()
        times.append(clock() - start)
    return {
        "model": name,
        "batch": batch,
        "seconds_an_image": median(times[1:]) / batch,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--preset", default="cpu-32", help="of the third table")
    parser.add_argument("--model", default="critters-32-gigagan", help="a trained one")
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    print(
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads on "
        f"{os.cpu_count()} cores, {platform.machine()}, batch {args.batch}"
    )
    setting = args.batch, device, args.repeats
    ways = [measure_ways(*level, *setting) for level in LEVELS]
    table = pd.json_normalize(ways, sep=" ")
    for name in ("grouped", "scaled", "chosen"):
        table[f"{name}, speed-up"] = table["seconds loop"] / table[f"seconds {name}"]
    print(f"\nmodulated convolutions\n{table.to_string(index=False)}")

    banks = [row for level in LEVELS for row in measure_banks(*level, *setting)]
    table = pd.json_normalize(banks, sep=" ")
    first = table.groupby("side").transform("first")  # the row with one kernel
    for key in ("seconds", "peak_bytes"):
        for way in ("bank", "n_convolutions"):
            table[f"{key} {way}, relative"] = (
                table[f"{key} {way}"] / first[f"{key} bank"]
            )
    print(f"\nfilter banks\n{table.to_string(index=False)}")

    rungs = measure_rungs(args.preset, *setting)
    table = pd.DataFrame(rungs)
    for key in ("seconds", "peak_bytes"):
        table[f"{key}, relative"] = table[key] / table[key][0]
    print(f"\ntraining steps\n{table.to_string(index=False)}")

    generation = measure_generation(args.model, 16, device, args.repeats)
    print(
        f"\n{generation['model']} generates an image in "
        f"{1000 * generation['seconds_an_image']:.1f} ms, "
        f"in a batch of {generation['batch']}"
    )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(
                {
                    "torch": torch.__version__,
                    "device": str(device),
                    "threads": torch.get_num_threads(),
                    "batch": args.batch,
                    "preset": args.preset,
                    "ways": ways,
                    "banks": banks,
                    "rungs": rungs,
                    "generation": generation,
                },
                f,
                indent=1,
            )


if __name__ == "__main__":
    main()
