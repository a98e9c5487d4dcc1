"""`check` of the exercises: right answers are right, wrong ones hear what differs."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from t2i_tutorial.core import UserError
from t2i_tutorial.diffusion.noise import NoiseSchedule
from t2i_tutorial.exercises import _CHECKS, Verdict, check

ROOT = Path(__file__).resolve().parent.parent


def heun(velocity, xt, num_steps=20, middle=0.5):
    h = 1 / num_steps
    for step in range(num_steps):
        t = torch.full((len(xt),), 1 - step * h)
        v = velocity(xt, t)
        ahead = velocity(xt - h * v, t - h)
        xt = xt - h * ((1 - middle) * v + middle * ahead)
    return xt


class WithPositions(nn.Module):
    def __init__(self, n, dim, use=True):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(n, dim))
        self.proj = nn.Linear(dim, dim)
        self.use = use

    def forward(self, x):
        x = x + self.positions * self.use
        return self.proj((x @ x.transpose(1, 2)).softmax(-1) @ x)


def attend(q, k, v, shift=True):
    logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    w = (logits - shift * logits.amax(-1, keepdim=True)).exp()
    return w / w.sum(-1, keepdim=True) @ v


def recall(u, v):
    return ((u @ v.T).argmax(1) == torch.arange(len(u))).float().mean().item()


def beginning(captions, n=3):
    starts = Counter(" ".join(c.lower().split()[:n]) for c in captions)
    ((start, times),) = starts.most_common(1)
    return start, times / len(captions)


def holm(p, step=True):
    order = p.argsort()
    small = p[order] < 0.05 / torch.arange(len(p), 0, -1)
    out = torch.zeros(len(p), dtype=torch.bool)
    out[order] = small.cumprod(0).bool() if step else small
    return out


def table(raw, order="little"):
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], order)])


def hard(logits, through=True):
    soft = logits.softmax(-1)
    one = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return one + (soft - soft.detach()) * through


def hinge(real, fake):
    heads = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake)]
    return sum(heads) / len(heads)


def joint(w, mean=True):
    rest = w - w.mean(0) - w.mean(1, keepdim=True) + mean * w.mean((0, 1))
    return (rest.square().mean() / w.square().mean()).item()


def straight(low=-10):
    return NoiseSchedule(torch.linspace(10, low, 1000, dtype=torch.float64).sigmoid())


def euler(now, later):
    (alpha, sigma), (alpha2, sigma2) = now, later
    step = sigma2 / alpha2 - sigma / alpha
    return [alpha2 * (1 / alpha + step / sigma), -alpha2 * step * alpha / sigma]


RIGHT = {
    "core-3": lambda x: x.flip(-1),
    "nano-3": heun,
    "first-3": lambda x, a: (a * x).square().sum(1).mean(),
    "text-3": lambda t, m: t.masked_fill(~m[..., None], -torch.inf).amax(1),
    "attention-2": WithPositions,
    "attention-3": attend,
    "clip-3": recall,
    "check-3": beginning,
    "comparison-3": holm,
    "models-2": table,
    "modulation-2": lambda y: y / y.std(dim=(2, 3), keepdim=True),
    "bank-3": hard,
    "losses-3": hinge,
    "instruments-2": joint,
    "noise-2": straight(),
    "playground-2": euler,
}
WRONG = [  # exercise, answer, a part of what is said
    ("core-3", lambda x: x.flip(-2), "upside down"),
    ("core-3", lambda x: x, "largest difference at index"),
    ("core-3", lambda x: x[..., 1:].flip(-1), "the shape is (2, 3, 4, 5)"),
    ("core-3", lambda x: x.copy_(x.flip(-1)), "changes the images"),
    ("core-3", lambda x: x.flop(-1), "AttributeError"),
    ("nano-3", lambda f, x, n: heun(f, x, n, middle=0), "dx/dt = x, 1 steps"),
    ("nano-3", lambda f, x, n: heun(lambda y, t: f(y, 1 - t), x, n, 1), "dx/dt"),
    ("first-3", lambda x, a: (a * x).square().mean(), "a = 0.5"),
    ("first-3", lambda x, a: a * x.norm(dim=1), "the shape is (64,)"),
    ("text-3", lambda t, m: t.amax(1), "all negative"),
    ("text-3", lambda t, m: (t * m[..., None]).amax(1), "all negative"),
    ("attention-2", lambda n, d: WithPositions(n, d, False), "order"),
    ("attention-2", lambda n, d: nn.Linear(d, d), "No parameter has a vector"),
    ("attention-3", lambda *a: attend(*a, False), "q and k times 100: some values"),
    ("attention-3", lambda q, k, v: v[:, :3], "q and k times 1:"),
    ("clip-3", lambda u, v: recall(v, u), "the other direction"),
    ("clip-3", lambda u, v: "most", "ValueError"),
    ("check-3", lambda c: beginning(c, 2), "'a photo' in place of 'a photo of'"),
    ("check-3", lambda c: beginning(c)[0], "A pair"),
    ("comparison-3", lambda p: p < 0.05 / len(p), "p = [0.03, 0.01]"),
    ("comparison-3", lambda p: holm(p, False), "p = ["),
    ("models-2", lambda raw: table(raw, "big"), "It raises"),
    ("models-2", lambda raw: list(table(raw)), "A dict is expected"),
    ("modulation-2", lambda y: y / y.std(), "deviation of each map"),
    ("modulation-2", lambda y: RIGHT["modulation-2"](torch.rand_like(y)), "multiples"),
    ("bank-3", lambda x: x.softmax(-1), "weights of 5 images"),
    ("bank-3", lambda x: hard(x, False), "gradient of the logits"),
    ("bank-3", lambda x: hard(x.detach()), "No gradient"),
    ("losses-3", lambda r, f: hinge(f, r), "one head"),
    ("losses-3", lambda r, f: hinge([torch.cat(r)], [torch.cat(f)]), "two heads"),
    ("instruments-2", lambda w: joint(w, False), "w = z + 2 c + 3"),
    ("instruments-2", lambda w: 0.0, "w = z c"),
    ("noise-2", straight(-9), "ends at -9.00"),
    (
        "noise-2",
        NoiseSchedule(torch.linspace(0.99, 0.01, 1000, dtype=torch.float64)),
        "begins at 4.6",
    ),
    ("noise-2", 3, "A `NoiseSchedule`"),
    ("playground-2", lambda a, b: [b[0], b[1]], "from alpha 0.32"),
    ("playground-2", lambda a, b: [*euler(a, b), 0.0], "Two numbers"),
]


def test_every_check_has_right_and_wrong_answers_here():
    assert RIGHT.keys() == _CHECKS.keys() == {name for name, *_ in WRONG}
    assert len(_CHECKS) >= 12


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_is_right(name):
    verdict = check(name, RIGHT[name])
    assert verdict and str(verdict) == f"{name}: right"
    assert check(f"ex-{name}", RIGHT[name]).right


@pytest.mark.parametrize("name, answer, said", WRONG)
def test_a_wrong_answer_is_told_what_differs(name, answer, said):
    verdict = check(name, answer)
    assert isinstance(verdict, Verdict) and not verdict
    assert said in verdict.message and len(verdict.message.splitlines()) == 1
    assert verdict.message.startswith(f"{name}: not yet. ")


def test_an_unknown_exercise_is_answered_in_one_line():
    with pytest.raises(UserError, match="did you mean 'nano-3'"):
        check("nano3", heun)


def test_the_chapters_say_how_to_check():
    "Each check is named in its exercise, and the chapter's own answer passes it."
    told, run = set(), set()
    for path in (ROOT / "nbs").glob("[0-9]*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            found = set(re.findall(r'check\("([\w-]+)", \w+\)', text))
            (told if cell["cell_type"] == "markdown" else run).update(found)
            for name in found if cell["cell_type"] == "markdown" else ():
                assert f":label: ex-{name}\n" in text
    assert told == run == _CHECKS.keys()


def test_the_checks_need_no_chapter_but_the_first():
    text = (ROOT / "t2i_tutorial" / "exercises.py").read_text(encoding="utf-8")
    assert set(re.findall(r"from t2i_tutorial\.(\w+)", text)) == {"core"}
    assert math.isclose(straight().log_snr[0].item(), 10, abs_tol=1e-6)
