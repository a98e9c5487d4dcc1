"""One adapter in a process of its own: reads a line of JSON, does it, answers a line.

    python worker.py NAME --parameters N [--budget SECONDS] [--num-images N]

Started by `harness.Worker`; what a peer prints goes to standard error.
"""

import argparse
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]


class Commands:
    "What a worker can be asked; each method is a command."

    def __init__(self, adapter):
        self.adapter = adapter

    def train(self, core_seconds: float) -> dict:
        return self.adapter.train_for(core_seconds)

    def time_sampling(self, n: int, steps=None, guidance_scale=None) -> dict:
        "Core-seconds an image, for so many prompts."
        prompts = [c[0] for c in self.adapter.data.captions[:n]]
        self.adapter.sample(prompts[:1], 0, steps, guidance_scale)
        start = time.process_time()
        self.adapter.sample(prompts, 0, steps, guidance_scale)
        return {"seconds_an_image": (time.process_time() - start) / n}

    def judge(
        self,
        n: int,  # prompts at most
        steps=None,
        guidance_scale=None,
        seed: int = 1,
        images=None,  # file for the first 16 images
        core_seconds=None,  # for sampling: with fewer prompts, if it would take more
        least: int = 64,  # but not fewer than these
    ) -> dict:
        "Accuracy of stated attributes and quality on prompts of the split val."
        from adapters import SIZE

        from t2i_tutorial.core import save_tensors, to_uint8
        from t2i_tutorial.experiments import quick_evaluate

        drawn = []
        if core_seconds is not None and n > least:
            each = self.time_sampling(8, steps, guidance_scale)["seconds_an_image"]
            n = max(least, min(n, int(core_seconds / each)))

        def sample(prompts, seed):
            found = self.adapter.sample(prompts, seed, steps, guidance_scale)
            drawn.append(found[:16])
            return found

        model = SimpleNamespace(config=SimpleNamespace(size=SIZE), sample=sample)
        result = {"num_prompts": n} | quick_evaluate(model, n, seed, split="val")
        if images is not None:
            save_tensors(Path(images), {"images": to_uint8(drawn[0])})
        return result

    def peak(self) -> dict:
        "The peak of PyTorch's allocations during an update, after one to warm up."
        import torch
        from gan_layers import peak_bytes

        def update():
            self.adapter.step(self.adapter.stream.next())
            self.adapter.num_updates += 1
            return torch.zeros(1, requires_grad=True)

        update()
        device = torch.device("cpu")
        return {"peak_bytes": max(peak_bytes(update, device) for _ in range(4))}

    def save(self, path: str) -> dict:
        import torch

        part = Path(path).with_suffix(".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.adapter.state(), part)
        part.replace(path)
        return {}

    def load(self, path: str) -> dict:
        import torch

        self.adapter.load_state(torch.load(path, weights_only=False))  # our own file
        return {"core_seconds": self.adapter.core_seconds}


def build(options):
    "The adapter that was asked for."
    from adapters import SIZE, Texts, load_adapter

    from t2i_tutorial.experiments import critters_dataset

    kind = load_adapter(options.name)
    kind.batch_size = options.batch_size or kind.batch_size
    data = critters_dataset(options.num_images, SIZE)
    captions = [c for group in data.captions for c in group]
    texts = Texts(captions, HERE.parent.parent / "_build" / "peers")
    return kind(data, texts, options.parameters, options.budget, options.seed)


def about(adapter) -> dict:
    "What the harness must know of it."
    return {
        "parameters": adapter.num_parameters,
        "batch_size": adapter.batch_size,
        "needs_budget": adapter.needs_budget,
        "guidance_scales": list(adapter.guidance_scales),
        "step_counts": list(adapter.step_counts),
        "own_steps": adapter.own_steps,
        "judge_steps": adapter.judge_steps or adapter.own_steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--parameters", type=int, required=True)
    parser.add_argument("--budget", type=float)
    parser.add_argument("--num-images", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, help="the adapter's own if not given")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # peers print; answers stay apart
    warnings.simplefilter("ignore")

    def answer(value: dict) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        commands = Commands(build(options))
        answer(about(commands.adapter))
        for line in sys.stdin:
            arguments = json.loads(line)
            answer(getattr(commands, arguments.pop("do"))(**arguments))
    except Exception as e:
        traceback.print_exc()
        answer({"error": f"{type(e).__name__}: {e}"[:400]})


if __name__ == "__main__":
    main()
