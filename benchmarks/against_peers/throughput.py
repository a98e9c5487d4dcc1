"""How near is a training step to what the core can do, and where does the rest go?

    python throughput.py [--json FILE] [--rounds 7] [--short]

The U-Net step of our Imagen `cpu-32` (forward, backward, clipping, AdamW, EMA), batch
32, one thread. Its floating-point operations are counted by torch's counter; the core's
peak is the best matrix product measured in the same run, and so are the convolutions
that the U-Net consists of, alone: what a step could reach if nothing else were there.
Then the shares of its parts (data, text, forward, backward, optimiser, logging), and
what each change of settings gives, each in turn with the step as it is:
channels_last, fused and foreach AdamW, `torch.compile` where there is a compiler,
bfloat16 where the processor has it.
"""

import os
import time
from functools import partial
from statistics import median

from harness import ONE_THREAD, Rows, alternate, head, parser, record_path

PARTS = ("data", "text", "forward", "backward", "clip", "optimizer", "ema", "logging")


class Step:
    "A training step of the U-Net in parts, with some settings changed."

    def __init__(self, data, texts, batch_size: int, tiny: bool, change: str = "none"):
        import torch
        from adapters import Stream
        from adapters.ours import SMALL_UNET

        from t2i_tutorial.diffusion.imagen import Imagen, imagen_preset
        from t2i_tutorial.training import EMA, MetricLogger

        preset = imagen_preset("cpu-32", SMALL_UNET if tiny else {})
        torch.manual_seed(0)
        self.config = preset.train_config
        self.stream, self.texts = Stream(data, batch_size), texts
        self.model = Imagen(preset.model_config, texts).train()
        self.change = change
        if change == "channels_last":
            self.model.unet.to(memory_format=torch.channels_last)
        if change == "compile":
            self.model.unet = torch.compile(self.model.unet)
        self.weights = list(self.model.parameters())
        kwargs = {"fused": {"fused": True}, "foreach": {"foreach": True}}
        kwargs |= {"for-loop": {"foreach": False}}
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=self.config.lr, **kwargs.get(change, {})
        )
        self.ema = EMA(dict(self.model.named_parameters()), self.config.ema_decay)
        self.logger, self.num_updates = MetricLogger(None), 0

    def __call__(self) -> dict[str, float]:  # core-seconds of each part
        "One update."
        import torch

        from t2i_tutorial.core import seeded_generator
        from t2i_tutorial.training import clip_grad_norm

        marks = [time.process_time()]

        def mark():
            marks.append(time.process_time())

        batch = self.stream.next()
        if self.change == "channels_last":
            images = batch.images.contiguous(memory_format=torch.channels_last)
            batch = batch._replace(images=images)
        mark()
        self.texts.encode(batch.captions)  # a second time in the forward pass
        mark()
        rng = seeded_generator(0, "step", self.num_updates)
        self.optimizer.zero_grad()
        bf16 = self.change == "bf16"
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = self.model.training_losses(batch, rng)
        mark()
        losses["loss"].backward()
        mark()
        norm = clip_grad_norm(self.weights, self.config.max_grad_norm)
        mark()
        self.optimizer.step()
        mark()
        self.ema.update()
        mark()
        self.num_updates += 1
        if self.num_updates % self.config.log_every == 0:
            self.logger.history.append(
                {"loss": losses["loss"].item(), "grad_norm": norm.item()}
            )
        mark()
        return dict(zip(PARTS, (b - a for a, b in zip(marks, marks[1:]))))


def flops_of_step(step: Step) -> int:
    "Of forward and backward, counted by torch while they run."
    from torch.utils.flop_counter import FlopCounterMode

    from t2i_tutorial.core import seeded_generator

    batch = step.stream.next()
    with FlopCounterMode(display=False) as counter:
        step.model.training_losses(batch, seeded_generator(0))["loss"].backward()
    step.optimizer.zero_grad()
    return counter.get_total_flops()


def matrix_product(n: int) -> tuple:  # a function to be timed, its operations
    import torch

    a, b = torch.randn(n, n), torch.randn(n, n)
    return partial(torch.mm, a, b), 2 * n**3


def convolutions(batch: int, channels: int, side: int) -> tuple:
    "A 3 x 3 convolution of one level, forward and backward."
    import torch
    import torch.nn.functional as F

    x = torch.randn(batch, channels, side, side, requires_grad=True)
    w = torch.randn(channels, channels, 3, 3, requires_grad=True)

    def both():
        F.conv2d(x, w, padding=1).sum().backward()

    return both, 3 * 2 * batch * channels**2 * 9 * side**2


def seconds(call) -> float:
    "Core-seconds of some calls that take at least a tenth of a second together."
    call()
    n, start = 0, time.process_time()
    while (took := time.process_time() - start) < 0.1:
        call()
        n += 1
    return took / n


def changes_to_try(short: bool) -> dict[str, str]:  # name -> why not, or nothing
    "The changes of settings, and why one cannot be tried here."
    import shutil

    import torch

    bf16 = torch.cpu._is_avx512_bf16_supported()
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    no_compile = "" if compiler else "no C++ compiler on this machine"
    return {
        "none": "",
        "channels_last": "",
        "fused": "",
        "foreach": "",
        "for-loop": "",
        "compile": "minutes of compilation" if short else no_compile,
        "bf16": "" if bf16 else "the processor has no bfloat16 instructions",
    }


def main() -> None:
    options = parser(__doc__, "peers-throughput.json")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--updates", type=int, default=8, help="in a turn")
    options = options.parse_args()
    import torch
    from adapters import SIZE, Texts

    from t2i_tutorial.experiments import critters_dataset

    torch.set_num_threads(1)
    batch, images = 32, 4096
    if options.short:
        batch, images, options.rounds, options.updates = 8, 256, 1, 1
    settings = {"batch_size": batch, "rounds": options.rounds, "short": options.short}
    rows = Rows(record_path(options), settings, head())
    data = critters_dataset(images, SIZE)
    texts = Texts([c for group in data.captions for c in group])

    # the peak of the core, and of the U-Net's convolutions alone
    cases = {f"matrix product {n}": matrix_product(n) for n in (256, 512, 1024)}
    for channels, side in ((32, 32), (64, 16), (128, 8)):
        name = f"convolution {channels} x {side} x {side}"
        cases[name] = convolutions(batch, channels, side)
    times = {name: [] for name in cases if name not in rows}
    for name, call in alternate({k: [cases[k][0]] * options.rounds for k in times}):
        times[name].append(seconds(call))
    for name, took in times.items():
        rows.add(name, {"gflops_a_second": cases[name][1] / min(took) / 1e9})

    step = Step(data, texts, batch, options.short)
    rows.note("flops_an_image", flops_of_step(step) / batch)
    possible = changes_to_try(options.short)
    rows.note("not_tried", {k: why for k, why in possible.items() if why})
    names = [k for k, why in possible.items() if not why and f"step, {k}" not in rows]
    steps = {k: Step(data, texts, batch, options.short, k) for k in names}
    found: dict[str, list] = {k: [] for k in names}
    for k, _ in alternate({k: range(options.rounds + 1) for k in names}):
        try:  # the first turn warms up, and compiles
            turns = [steps[k]() for _ in range(options.updates)]
        except Exception as e:  # for instance a compiler that fails
            if k == "none":
                raise
            rows.add(f"step, {k}", {"failed": f"{type(e).__name__}: {e}"[:300]})
            found.pop(k, None)
            steps[k] = lambda: {}
            continue
        if k in found:
            found[k].append({p: median(t[p] for t in turns) for p in PARTS})
    for k, turns in found.items():
        parts = {p: median(t[p] for t in turns[1:]) for p in PARTS}
        total = sum(parts.values())
        rows.add(
            f"step, {k}",
            {
                "images_a_second": batch / total,
                "seconds": total,
                "parts": parts,
                "turns": [sum(t.values()) for t in turns],
            },
        )


if __name__ == "__main__":
    os.environ |= ONE_THREAD  # before torch is imported
    main()
