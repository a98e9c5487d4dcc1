"""Core-seconds an image from a prompt: PyTorch and onnxruntime, one and sixteen images.

    python sampling.py [--json FILE] [--rounds 7] [--short]

The bundled models, one thread, prompts to pixels with the text encoder; Imagen with 20
guided steps of DPM-Solver++. The networks are exported by `t2i export` first (ONNX with
weights in 16 bits, as the playground uses them). One measurement of each in turn.
"""

import shutil
import time
from statistics import median

from harness import ONE_THREAD, WORK, Rows, alternate, head, parser, record_path

MODELS = ("critters-32-gigagan", "critters-32")
STEPS = 20


def by_pytorch(name: str, n: int):
    "A function that draws n images."
    from t2i_tutorial.experiments import SAMPLE_PROMPTS
    from t2i_tutorial.hub import load_model

    model = load_model(name, "cpu")
    prompts = ([*SAMPLE_PROMPTS] * 2)[:n]
    options = {} if "gigagan" in name else {"num_steps": STEPS}
    return lambda: model.sample(prompts, **options)


def by_onnxruntime(name: str, n: int):
    "The same by the exported networks, which take one prompt at a time."
    from t2i_tutorial.experiments import SAMPLE_PROMPTS
    from t2i_tutorial.hub import load_model, prompt_generators, randn_per_prompt
    from t2i_tutorial.playground import ExportedModel, export_model

    folder = WORK / "onnx" / name
    if not (folder / "model.json").exists() and not list(folder.glob("*.onnx")):
        shutil.rmtree(folder, ignore_errors=True)
        export_model(load_model(name, "cpu"), folder)
    model, encoder = ExportedModel(folder), load_model(name, "cpu").encoder
    prompts, s = ([*SAMPLE_PROMPTS] * 2)[:n], model.settings

    def draw(prompt: str):
        ids = encoder.tokenizer.encode([prompt])[0][0].tolist()
        text, generators = model.encode(ids), prompt_generators([prompt], 0)
        if "gigagan" in name:
            z = randn_per_prompt(generators, (s["z_dim"],)).numpy()
            return model.generate(text, z, 1.0)
        shape = (3, s["size"], s["size"])
        noise = randn_per_prompt(generators, shape).numpy()
        scale = s["guidance_scale"]
        return [x for _, x, _ in model.denoise(text, lambda: noise, scale, STEPS)][-1]

    return lambda: [draw(p) for p in prompts]


WAYS = {"pytorch": by_pytorch, "onnxruntime": by_onnxruntime}


def main() -> None:
    options = parser(__doc__, "peers-sampling.json")
    options.add_argument("--rounds", type=int, default=7)
    options = options.parse_args()
    rounds = 1 if options.short else options.rounds
    import torch

    torch.set_num_threads(1)
    settings = {"rounds": rounds, "num_steps": STEPS}
    rows = Rows(record_path(options), settings, head())
    queues = {}
    for name in MODELS:
        for way, make in WAYS.items():
            for n in (1, 16):
                key = f"{name} | {way} | {n}"
                if key not in rows:
                    queues[key] = [(name, way, n, make)] * (rounds + 1)
    drawers, times = {}, {}
    for key, (name, _, n, make) in alternate(queues):
        if key not in drawers:
            drawers[key] = make(name, n)
        clock, start = time.perf_counter(), time.process_time()
        drawers[key]()
        took = time.process_time() - start, time.perf_counter() - clock
        times.setdefault(key, []).append(took)
        if len(times[key]) > rounds:  # the first one warmed up
            core, clock = zip(*times[key][1:])
            row = {"model": name, "images": n}
            row["core_seconds_an_image"] = median(core) / n
            row["seconds_an_image"] = median(clock) / n
            rows.add(key, row)


if __name__ == "__main__":
    import os

    os.environ |= ONE_THREAD  # before torch is imported
    main()
