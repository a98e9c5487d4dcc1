"""How time and memory grow: image size, batch, channels, kernels, steps, captions.

    python growth.py [--json FILE] [--rounds 3] [--short]

Each row is one setting of one model on one thread: core-seconds of an update (of both
networks for the GAN) and the peak of PyTorch's allocations during it; core-seconds an
image while sampling; and for data sets of 10^3 to 10^6 captions the seconds and memory
of drawing, encoding and caching them, each in a process of its own.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from harness import ONE_THREAD, QUIET, Rows, head, parser, record_path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # gan_layers

SIZES = (16, 32, 64, 128)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CHANNELS = (8, 16, 32, 64)  # of the first level; the others are twice and four times
KERNELS = (1, 2, 4, 8)
STEPS = (5, 10, 20, 50, 100)
CAPTIONS = (10**3, 10**4, 10**5, 10**6)


def imagen_update(size: int, batch: int, channels: int):
    "A function that makes the gradients of an update, and its parameters."
    import torch

    from t2i_tutorial.core import seeded_generator
    from t2i_tutorial.diffusion.imagen import Imagen, imagen_preset
    from t2i_tutorial.experiments import critters_dataset

    config = imagen_preset("cpu-32").model_config
    widths = (channels, 2 * channels, 4 * channels)
    unet = replace(config.unet, channels=widths)
    model = Imagen(replace(config, size=size, unet=unet)).train()
    images = next(critters_dataset(batch, size).batches(batch, shuffle=False))

    def update():
        model.training_losses(images, seeded_generator(0))["loss"].backward()
        for p in model.parameters():
            p.grad = None
        return torch.zeros(1, requires_grad=True)

    return update, sum(p.numel() for p in model.parameters())


def gan_update(kernels: int, batch: int):
    "The same for the GAN, with a bank of so many kernels in each layer."
    from gan_memory import update as both

    from t2i_tutorial.experiments import critters_dataset
    from t2i_tutorial.gan.gigagan import GigaGAN, caption_attributes, gigagan_preset

    config = gigagan_preset("cpu-32").model_config
    banks = (kernels,) * len(config.generator.num_kernels)
    generator = replace(config.generator, num_kernels=banks)
    model = GigaGAN(replace(config, generator=generator)).eval()
    model.step = config.pretrain_steps + config.discriminator_only_steps
    data = critters_dataset(max(batch, 8), 32)
    model.set_clip_negatives([c[0] for c in data.captions], caption_attributes)
    images = next(data.batches(batch, shuffle=False))
    return lambda: both(model, images), sum(p.numel() for p in model.parameters())


def measure(make, rounds: int) -> dict:
    "Time and peak of an update."
    import torch
    from gan_layers import peak_bytes, seconds

    update, parameters = make()
    device = torch.device("cpu")
    took = seconds(update, device, rounds)
    peak = peak_bytes(update, device)
    return {"parameters": parameters, "core_seconds": took, "peak_bytes": peak}


def sampling(steps: int, n: int, rounds: int) -> dict:
    "Core-seconds an image for so many steps of DPM-Solver++."
    from t2i_tutorial.experiments import SAMPLE_PROMPTS
    from t2i_tutorial.hub import load_model

    model, times = load_model("critters-32", "cpu"), []
    for _ in range(rounds + 1):
        start = time.process_time()
        model.sample(SAMPLE_PROMPTS[:n], num_steps=steps)
        times.append((time.process_time() - start) / n)
    return {"core_seconds_an_image": median(times[1:])}


def captions(n: int) -> dict:
    "Draw n captions, encode them and keep them in a cache, in this process."
    import resource
    import tempfile

    from t2i_tutorial.critters import ATTRIBUTES, Critter, sample_attributes
    from t2i_tutorial.experiments import DEFAULT_TEXT_ENCODER
    from t2i_tutorial.hub import load_text_encoder
    from t2i_tutorial.text import CachedTextEncoder, full_caption

    def resident() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    encoder = load_text_encoder(DEFAULT_TEXT_ENCODER)
    encoder.encode(["a blue and red dragon"])
    before, start = resident(), time.process_time()
    values = [
        [options[k] for k in column.tolist()]
        for column, options in zip(
            sample_attributes(n, seed=0).values(), ATTRIBUTES.values()
        )
    ]
    texts = [full_caption(Critter(*row)) for row in zip(*values)]
    drawn = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        cache = CachedTextEncoder(encoder, folder)
        cache.encode(texts)
        encoded = time.process_time()
        size = cache.path.stat().st_size
        CachedTextEncoder(encoder, folder)
        read = time.process_time()
    return {
        "captions": n,
        "different": len(set(texts)),
        "drawing_core_seconds": drawn - start,
        "encoding_core_seconds": encoded - drawn,
        "reading_core_seconds": read - encoded,
        "cache_bytes": size,
        "grown_bytes": resident() - before,
    }


def memory_fits(row: dict, n: int) -> str:  # why not; empty if it does
    "Whether n captions fit into half of the memory, by a row with fewer."
    wanted = (
        2 * row["cache_bytes"] * n / row["captions"]
    )  # in memory, and while written
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted <= there / 2:
        return ""
    return f"would need about {wanted / 1e9:.0f} GB of {there / 1e9:.0f} GB"


def cases(short: bool, rounds: int) -> dict:  # key -> a function that measures it
    "All rows."
    sizes = SIZES[:2] if short else SIZES
    found = {}

    def imagen(key: str, **setting) -> None:
        options = {"size": 32, "batch": 2 if short else 8, "channels": 32} | setting
        if short and "channels" not in setting:
            options["channels"] = 8
        found[key] = lambda: options | measure(lambda: imagen_update(**options), rounds)

    for size in sizes:
        imagen(f"imagen, size {size}", size=size)
    for batch in BATCHES[:2] if short else BATCHES:
        imagen(f"imagen, batch {batch}", batch=batch)
    for channels in CHANNELS[:2] if short else CHANNELS:
        imagen(f"imagen, channels {channels}", channels=channels)
    for kernels in KERNELS[:1] if short else KERNELS:
        batch = 2 if short else 8
        found[f"gigagan, kernels {kernels}"] = lambda k=kernels, b=batch: (
            {
                "kernels": k,
                "batch": b,
            }
            | measure(lambda: gan_update(k, b), rounds)
        )
    for steps in STEPS[:1] if short else STEPS:
        n = 1 if short else 8
        found[f"sampling, steps {steps}"] = lambda s=steps, n=n: (
            {
                "steps": s,
                "images": n,
            }
            | sampling(s, n, rounds)
        )
    return found


def main() -> None:
    options = parser(__doc__, "peers-growth.json")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--captions", type=int, help="one row, in this process")
    options = options.parse_args()
    if options.captions:
        return print(json.dumps(captions(options.captions)))
    import torch

    torch.set_num_threads(1)
    rounds = 1 if options.short else options.rounds
    settings = {"rounds": rounds, "short": options.short}
    rows = Rows(record_path(options), settings, head())
    for key, make in cases(options.short, rounds).items():
        if key not in rows:
            rows.add(key, make())
    last = None
    for n in (200, 400) if options.short else CAPTIONS:
        key = f"captions {n}"
        if last and (why := memory_fits(last, n)):
            rows.add(key, {"captions": n, "not_measured": why})
        elif key not in rows:
            command = [sys.executable, __file__, "--captions", str(n)]
            rows.add(key, json.loads(subprocess.check_output(command).splitlines()[-1]))
        last = rows[key] if "cache_bytes" in rows[key] else last


if __name__ == "__main__":
    os.environ |= ONE_THREAD | QUIET  # before torch is imported
    main()
