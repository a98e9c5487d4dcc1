"""One module a peer, each whole: how it is built, trained and sampled.

An adapter is built, then trained for some core-seconds at a time by `train_for`, and
asked for images by `sample`. What is common to all is here: the stream of images and
captions, and the frozen text encoder's embeddings, which are computed before the clock
runs. An adapter does not know of the others.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

NAMES = {  # as given on the command line -> module, class, the peer that it needs
    "ours": ("ours", "OursImagen", None),
    "imagen-pytorch": ("imagen_pytorch", "ImagenPytorch", "imagen-pytorch"),
    "imagen-pytorch-elucidated": ("imagen_pytorch", "Elucidated", "imagen-pytorch"),
    "denoising-diffusion-pytorch": (
        "denoising_diffusion_pytorch",
        "DenoisingDiffusion",
        "denoising-diffusion-pytorch",
    ),
    "diffusers": ("diffusers", "Diffusers", "diffusers"),
    "minimagen": ("minimagen", "MinImagen", "minimagen"),
    "ours-gigagan": ("ours", "OursGigaGAN", None),
    "gigagan-pytorch": ("gigagan_pytorch", "GigaGANPytorch", "gigagan-pytorch"),
}
SIZE = 32  # pixels of a side
NUM_IMAGES = 40_000  # critters of the training set, as in the recorded models
TEXT = "critters-clip+token-embeddings"  # the frozen encoder of all of them
TINY = 120_000  # parameters of a network where only the code is to be proved


@contextmanager
def offline() -> Iterator[None]:
    """Import a peer without a network.

    imagen-pytorch asks the hub for the width of a T5 in a default argument that is
    computed at its import (its issue IP-1); the width is known, and its answer is not
    used, for we give the width of our own text encoder.
    """
    import transformers

    before = transformers.T5Config.from_pretrained
    config = transformers.T5Config(d_model=768)
    transformers.T5Config.from_pretrained = lambda *_, **__: config
    try:
        yield
    finally:
        transformers.T5Config.from_pretrained = before


def load_adapter(name: str) -> type:
    "The class of an adapter; imports its peer."
    module, kind, _ = NAMES[name]
    return getattr(import_module(f"{__name__}.{module}"), kind)


class Batch(NamedTuple):
    "Some images with one caption each; what the library's models train on."

    images: object  # (b, 3, s, s) in [-1, 1]
    captions: list[str]
    indices: object  # of the images in the training set


class Texts:
    "The frozen encoder's embeddings of the training captions, computed once."

    def __init__(self, captions: Sequence[str], folder: Path | None = None):
        import torch

        from t2i_tutorial.hub import load_text_encoder

        self.encoder = load_text_encoder(TEXT)
        self.name, self.dim = self.encoder.name, self.encoder.dim
        self.max_length = 48  # tokens of the longest text that the encoder reads
        self.row = {c: i for i, c in enumerate(dict.fromkeys(captions))}
        path = None if folder is None else folder / f"texts-{len(self.row)}.pt"
        if path is None or not path.exists():
            saved = self._encode(list(self.row))
            if path is not None:  # one file for all workers, and read as it is needed
                folder.mkdir(parents=True, exist_ok=True)
                torch.save(saved, path.with_suffix(".part"))
                path.with_suffix(".part").replace(path)
        if path is not None:
            saved = torch.load(path, mmap=True, weights_only=True)
        self.tokens, self.starts, self.pooled = saved

    def _encode(self, captions: list[str]) -> tuple:
        import torch

        parts = [
            self.encoder.encode(captions[i : i + 256])
            for i in range(0, len(captions), 256)
        ]
        tokens = torch.cat([p.tokens[p.mask] for p in parts]).half()
        lengths = torch.cat([p.mask.sum(1) for p in parts])
        starts = torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
        return tokens, starts, torch.cat([p.pooled for p in parts]).half()

    def encode(self, texts: Sequence[str]):  # a TextEmbedding
        "Embeddings of training captions from memory, of others by the encoder."
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from t2i_tutorial.text import TextEmbedding

        rows = [self.row.get(t, -1) for t in texts]
        if min(rows) < 0:
            return self.encoder.encode(list(texts))
        parts = [self.tokens[self.starts[r] : self.starts[r + 1]] for r in rows]
        lengths = torch.tensor([len(p) for p in parts])
        tokens = pad_sequence(parts, batch_first=True).float()
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        return TextEmbedding(tokens, mask, self.pooled[rows].float())

    def oov_words(self, texts: Sequence[str]) -> dict:
        return self.encoder.oov_words(texts)


class Stream:
    """The training set in one endless order, which does not depend on the batch size.

    Every model sees the same images with the same captions in the same order; a model
    with smaller batches makes more updates of them.
    """

    def __init__(self, data, batch_size: int, position: int = 0):
        self.data, self.batch_size = data, batch_size
        self.position = position  # images taken so far
        self.order, self.epoch = None, -1

    def _index(self, position: int) -> tuple[int, int]:  # epoch, image
        import torch

        from t2i_tutorial.core import seeded_generator

        epoch, k = divmod(position, len(self.data))
        if epoch != self.epoch:
            generator = seeded_generator(0, "peers", epoch)
            self.order = torch.randperm(len(self.data), generator=generator)
            self.epoch = epoch
        return epoch, int(self.order[k])

    def next(self) -> Batch:
        "The next images, in [-1, 1], each with one of its captions."
        import torch

        from t2i_tutorial.core import from_uint8

        first = self.position
        taken = [self._index(p) for p in range(first, first + self.batch_size)]
        self.position += self.batch_size
        captions = []
        for epoch, i in taken:
            group = self.data.captions[i]
            captions.append(group[(epoch + i) % len(group)])
        indices = torch.tensor([i for _, i in taken])
        return Batch(from_uint8(self.data.pixels(indices)), captions, indices)


class Adapter:
    """What the harness asks of a model.

    A subclass offers `step(batch)`, one update of the weights; `draw(prompts, steps,
    guidance_scale)`, images in [-1, 1]; `parts()`, what must be saved to go on later;
    and `modules()`, the networks whose parameters are counted.
    """

    batch_size = 16  # the peer's own
    needs_budget = False  # whether its schedule depends on how long it will be trained
    guidance_scales: tuple = (None,)  # the peer's own first; the better one counts
    step_counts: tuple = (None,)  # of its sampler, for the curve of quality by time
    own_steps: int | None = None  # of its sampler, the peer's own number
    judge_steps: int | None = None  # where the own number would take days; else it
    sample_batch = 64  # prompts at a time

    def __init__(
        self,
        data,  # the training set, see `critters_dataset`
        texts: Texts,
        parameters: int,  # about so many, see `fit_width`
        budget: float | None = None,  # core-seconds that it will be trained for
        seed: int = 0,
    ):
        import torch

        from t2i_tutorial.core import seed_everything

        seed_everything(seed)
        self.data, self.texts, self.budget = data, texts, budget
        self.stream = Stream(data, self.batch_size)
        self.core_seconds, self.num_updates = 0.0, 0
        self.build(parameters)
        self.num_parameters = sum(
            p.numel() for m in self.modules() for p in m.parameters() if p.requires_grad
        )
        torch.manual_seed(seed)

    def train_for(self, core_seconds: float) -> dict:
        "Train until so much processor time is used; what was used, and the updates."
        import torch

        start, before = time.process_time(), self.num_updates
        used = self.core_seconds
        while (now := time.process_time() - start) < core_seconds:
            self.core_seconds = used + now  # a schedule may depend on it
            self.step(self.stream.next())
            self.num_updates += 1
        self.core_seconds = used + time.process_time() - start
        finite = all(p.isfinite().all() for m in self.modules() for p in m.parameters())
        return {
            "core_seconds": round(self.core_seconds, 2),
            "updates": self.num_updates,
            "images": self.stream.position,
            "seconds_an_update": (time.process_time() - start)
            / max(1, self.num_updates - before),
            "finite": bool(finite),
            "threads": torch.get_num_threads(),
        }

    def sample(
        self,
        prompts: Sequence[str],
        seed: int = 0,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ):
        "An image for each prompt, in [-1, 1]."
        import torch

        state = torch.get_rng_state()
        torch.manual_seed(seed)
        n = self.sample_batch
        with torch.no_grad():
            images = [
                self.draw(list(prompts[i : i + n]), steps, guidance_scale)
                for i in range(0, len(prompts), n)
            ]
        torch.set_rng_state(state)
        return torch.cat(images).float().clamp(-1, 1)

    def state(self) -> dict:
        "All that is needed to go on."
        import torch

        return {
            "parts": {k: p.state_dict() for k, p in self.parts().items()},
            "position": self.stream.position,
            "core_seconds": self.core_seconds,
            "num_updates": self.num_updates,
            "rng": torch.get_rng_state(),
        }

    def load_state(self, state: dict) -> None:
        "Go on from what `state` gave."
        import torch

        for k, part in self.parts().items():
            part.load_state_dict(state["parts"][k])
        self.stream.position = state["position"]
        self.core_seconds = state["core_seconds"]
        self.num_updates = state["num_updates"]
        torch.set_rng_state(state["rng"])


def fit_width(
    build: Callable[[int], object],  # a width to a network
    parameters: int,  # wanted
    widths: Sequence[int],  # in rising order
):
    "The network whose number of parameters is nearest to the wanted one."

    def distance(network) -> int:
        return abs(sum(p.numel() for p in network.parameters()) - parameters)

    best = build(widths[0])
    for width in widths[1:]:
        network = build(width)
        if distance(network) >= distance(best):
            break  # they only grow from here
        best = network
    return best
