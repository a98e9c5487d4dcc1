"""Small trainings, for the tests of checkpoints and of the training loop."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from t2i_tutorial.checkpoints import find_checkpoint, load_checkpoint
from t2i_tutorial.core import UserError, seeded_generator
from t2i_tutorial.training import TrainConfig, Trainer

QUICK = TrainConfig(
    max_steps=6,
    batch_size=8,
    save_every=2,
    log_every=1,
    log_with="none",
    device="cpu",
    ema_decay=0.9,
)


class Line:
    """Points: x, and y = 3x - 1, as dictionaries.

    The order is a function of seed and epoch.
    """

    def __init__(self, n=40):
        self.x = torch.linspace(-1, 1, n)[:, None]

    def __len__(self):
        return len(self.x)

    def batches(self, batch_size, seed=0, epoch=0, start=0, drop_last=False):
        order = torch.randperm(
            len(self.x), generator=seeded_generator(seed, "order", epoch)
        )
        n = len(order) - len(order) % batch_size if drop_last else len(order)
        for i in range(start * batch_size, n, batch_size):
            x = self.x[order[i : min(i + batch_size, n)]]
            yield {"x": x, "y": 3 * x - 1}


class Fit(nn.Module):
    """A network for the points, with everything random that a model may use:
    its own generator, dropout, NumPy, Python."""

    def __init__(self, bad=None, bad_at=None):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(1, 16), nn.Dropout(0.2), nn.SiLU(), nn.Linear(16, 1)
        )
        self.bad, self.bad_at, self.calls = bad, bad_at, 0

    def training_losses(self, batch, rng, phase="model"):
        self.calls += 1
        noise = 0.01 * (
            torch.randn(batch["x"].shape, generator=rng)
            + np.random.rand()
            + random.random()
        )
        error = (self.net(batch["x"]) + noise - batch["y"]).square().mean()
        terms = {"loss": error, "size": error.detach() + 1}
        if self.bad and self.calls == self.bad_at:
            if self.bad == "grad_norm":
                terms["loss"] = (
                    error + (0 * self.net[0].weight).sum().abs().sqrt()
                )  # finite, but its gradient is not
            elif self.bad == "error":
                raise RuntimeError("the model broke")
            else:
                terms[self.bad] = terms[self.bad] * math.nan
        return terms


class Duel(nn.Module):
    "A generator and a discriminator of one layer each."

    phases, ema_phases = ("discriminator", "generator"), ("generator",)

    def __init__(self):
        super().__init__()
        self.g, self.d = nn.Linear(2, 1), nn.Linear(1, 1)
        self.seen = []

    def trainable_parameters(self, phase):
        return (self.d if phase == "discriminator" else self.g).parameters()

    def optimizer_kwargs(self, phase):
        return {"lr": 0.02} if phase == "generator" else {}

    def training_losses(self, batch, rng, phase):
        self.seen.append(
            (phase, self.g.weight.requires_grad, self.d.weight.requires_grad)
        )
        fake = self.g(torch.randn(len(batch["y"]), 2, generator=rng))
        if phase == "generator":
            return {"loss": nn.functional.softplus(-self.d(fake)).mean()}
        return {
            "loss": nn.functional.softplus(self.d(fake.detach())).mean()
            + nn.functional.softplus(-self.d(batch["y"])).mean()
        }


def fit(
    folder=None,
    config=QUICK,
    model=None,
    seed=0,
    resume=False,
    data=None,
    validation=None,
):
    torch.manual_seed(seed)
    if model is None or isinstance(model, type):
        model = (model or Fit)()
    trainer = Trainer(model, data or Line(), config, folder, validation)
    trainer.fit(resume)
    return trainer


def refusal(action, *args, kind=UserError, **kwargs):
    "The message of the error that must come; it must be one line."
    with pytest.raises(kind) as e:
        action(*args, **kwargs)
    assert "\n" not in str(e.value) and len(str(e.value)) < 600
    return str(e.value)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def same_end(a: Path, b: Path) -> list[str]:
    "What differs between the last checkpoints and the logs of two trainings."
    x, y = load_checkpoint(find_checkpoint(a)), load_checkpoint(find_checkpoint(b))
    differing = [k for k in x.tensors if not equal(x.tensors[k], y.tensors[k])] + [
        k for k in x.state if x.state[k] != y.state[k]
    ]
    return differing + ["log"] * (
        (a / "losses.jsonl").read_bytes() != (b / "losses.jsonl").read_bytes()
    )
