"""Check answers to exercises: `check("core-3", flip)` says right, or what differs.

Written by hand and not exported: the answers stand in the chapters, folded. A check
compares an answer with what can be worked out in another way, on inputs of its own, and
imports nothing but the first chapter.
"""

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_tutorial.core import UserError, first_line, seeded_generator


@dataclass(frozen=True)
class Verdict:
    "Whether an answer is right, and what differs if it is not; true if it is right."

    right: bool
    message: str  # one line

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.message


class _Differs(Exception):
    "The answer is not what it should be; the message says how."


_CHECKS: dict[str, Callable] = {}


def _checks(name: str) -> Callable:
    "Register the check of an exercise."

    def register(f: Callable) -> Callable:
        _CHECKS[name] = f
        return f

    return register


def check(
    name: str,  # the exercise's label without "ex-", for instance "bank-3"
    answer,  # the function, class or object that the exercise asks for
) -> Verdict:  # its representation is a line for the reader
    "Say whether an answer is right; raises `UserError` for an unknown exercise."
    name = name.removeprefix("ex-")
    if name not in _CHECKS:
        near = get_close_matches(name, _CHECKS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"no check for {name!r}; {hint}there are: {', '.join(sorted(_CHECKS))}"
        )
    try:
        _CHECKS[name](answer)
    except _Differs as e:
        return Verdict(False, f"{name}: not yet. {e}")
    except Exception as e:  # in the answer, whatever it is
        kind = type(e).__name__
        return Verdict(False, f"{name}: not yet. It raises {kind}: {first_line(e)}")
    return Verdict(True, f"{name}: right")


def _random(*shape: int, name: str = "exercise", seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded_generator(seed, name))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise _Differs(message)


def _compare(got, expected, where: str, atol: float = 1e-4) -> None:
    "The result must have the expected shape and values; `where` names the input."
    if not isinstance(got, Tensor):
        _require(
            isinstance(got, (int, float)) and not isinstance(got, bool),
            f"{where}: a tensor or a number is expected, not {type(got).__name__}",
        )
    got = torch.as_tensor(got).detach().double()
    expected = torch.as_tensor(expected).detach().double()
    shapes = tuple(got.shape), tuple(expected.shape)
    _require(
        shapes[0] == shapes[1],
        f"{where}: the shape is {shapes[0]}, expected is {shapes[1]}",
    )
    _require(bool(got.isfinite().all()), f"{where}: some values are NaN or infinite")
    off = (got - expected).abs()
    if off.max() > atol:
        at = tuple(int(i) for i in (off == off.max()).nonzero()[0])
        place = f" at index {at}" if at else ""
        raise _Differs(
            f"{where}: largest difference{place}: {got[at].item():.4g} in place of "
            f"{expected[at].item():.4g}"
        )


@_checks("core-3")
def _flip(flip: Callable) -> None:
    images = _random(2, 3, 4, 6)
    before = images.clone()
    got = flip(images)
    _require(torch.equal(images, before), "It changes the images that it is given")
    _require(not torch.equal(got, images.flip(-2)), "It turns the images upside down")
    _compare(got, images[..., torch.arange(5, -1, -1)], "images of 4 x 6 pixels")


@_checks("nano-3")
def _heun(sample: Callable) -> None:
    one = torch.ones(2, 3, 1, 1)
    for n in (1, 4, 10):
        h = 1 / n  # for dx/dt = x a step of Heun multiplies by 1 - h + h * h / 2
        expected = one * (1 - h + h * h / 2) ** n
        _compare(sample(lambda x, t: x, one, n), expected, f"dx/dt = x, {n} steps")

    def in_time(x: Tensor, t: Tensor) -> Tensor:
        return t.view(-1, 1, 1, 1).expand_as(x)  # exact for Heun: x falls by a half

    _compare(sample(in_time, one, 5), one - 0.5, "dx/dt = t, 5 steps")


@_checks("first-3")
def _r1(penalty: Callable) -> None:
    for a in (0.5, 3.0):
        x = _random(64, 5)
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad((a * leaf.square().sum(1) / 2).sum(), leaf)
        _compare(penalty(x, a), g.square().sum(1).mean(), f"a = {a:g}", 1e-3)


@_checks("text-3")
def _masked_max(pool: Callable) -> None:
    tokens, mask = _random(3, 5, 4) - 3, torch.arange(5) < torch.tensor([[2], [5], [1]])
    junk = tokens.masked_fill(~mask[..., None], 1e9)
    expected = torch.stack([t[m].max(0).values for t, m in zip(tokens, mask)])
    _compare(pool(tokens, mask), expected, "tokens that are all negative")
    _compare(pool(junk, mask), expected, "with large numbers in the padding")


@_checks("attention-2")
def _positions(kind: Callable) -> None:
    torch.manual_seed(0)
    layer, x = kind(9, 32), _random(2, 9, 32)
    learned = {n: tuple(p.shape) for n, p in layer.named_parameters()}
    _require(
        any(s[-2:] == (9, 32) for s in learned.values()),
        f"No parameter has a vector for each of 9 positions: {learned}",
    )
    for p in layer.parameters():  # also what begins at zero
        torch.nn.init.normal_(p, std=0.3)
    order = torch.arange(8, -1, -1)
    with torch.no_grad():
        y, turned = layer(x), layer(x[:, order])
    _require(y.shape == x.shape, f"The output has the shape {tuple(y.shape)}")
    _require(
        not torch.allclose(turned, y[:, order], atol=1e-3),
        "The order of the positions makes no difference",
    )


@_checks("attention-3")
def _steady_attention(attention: Callable) -> None:
    for scale in (1.0, 100.0):
        q, k = scale * _random(2, 3, 8, name="q"), scale * _random(2, 5, 8, name="k")
        v = _random(2, 5, 4, name="v")
        expected = F.scaled_dot_product_attention(q, k, v)
        _compare(attention(q, k, v), expected, f"q and k times {scale:g}", 1e-3)


@_checks("clip-3")
def _nearest_caption(recall: Callable) -> None:
    images = torch.eye(4)
    captions = torch.diag(torch.tensor([1.0, 0.5, 1.0, 1.0]))
    captions[2, 1] = 0.6  # the second image is nearest to the third caption
    got = recall(images, captions)
    _require(
        abs(float(got) - 1) > 1e-4,
        "This is the other direction: for each caption its nearest image",
    )
    _compare(got, 0.75, "4 images and captions")
    _compare(recall(images, images), 1.0, "captions equal to the images")


@_checks("check-3")
def _beginning(beginning: Callable) -> None:
    cases = {
        ("a photo of a cat", "A photo of me", "x"): ("a photo of", 2 / 3),
        ("red", "red", "a red cat asleep"): ("red", 2 / 3),
    }
    for captions, (start, share) in cases.items():
        got = beginning(list(captions))
        _require(
            isinstance(got, tuple) and len(got) == 2,
            f"A pair (beginning, share) is expected, not {got!r:.60}",
        )
        _require(
            got[0] == start, f"{list(captions)}: {got[0]!r:.60} in place of {start!r}"
        )
        _compare(got[1], share, f"{list(captions)}")


@_checks("comparison-3")
def _holm(holm: Callable) -> None:
    cases = [
        ([0.04, 0.9, 0.8], [0, 0, 0]),
        ([0.03, 0.01], [1, 1]),  # 0.01 < 0.05 / 2, then 0.03 < 0.05
        ([0.03, 0.026], [0, 0]),
        ([0.001, 0.02, 0.03, 0.9], [1, 0, 0, 0]),  # 0.02 > 0.05 / 3: it ends there
    ]
    for p, expected in cases:
        got = holm(torch.tensor(p))
        _compare(torch.as_tensor(got).double(), torch.tensor(expected), f"p = {p}")


@_checks("models-2")
def _safetensors_table(read: Callable) -> None:
    table = {"a": {"dtype": "F16", "shape": [2, 1], "data_offsets": [0, 4]}}
    table["·b"] = {"dtype": "I64", "shape": [], "data_offsets": [4, 12]}
    head = json.dumps(table, ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)  # padded, as the library does
    got = read(struct.pack("<Q", len(head)) + head + b'{"not": "the table"}')
    _require(isinstance(got, dict), f"A dict is expected, not {type(got).__name__}")
    _require(got.keys() == table.keys(), f"Names {sorted(got)}, not {sorted(table)}")
    _require(got == table, "The names are right, their entries are not")


@_checks("modulation-2")
def _instance_normalise(normalise: Callable) -> None:
    y = _random(2, 3, 16, 16) * torch.tensor([0.01, 1.0, 7.0]).view(1, 3, 1, 1)
    got = normalise(y)
    _require(got.shape == y.shape, f"The shape is {tuple(got.shape)}")
    _compare(got.std(dim=(2, 3)), torch.ones(2, 3), "deviation of each map", 1e-2)
    mean = y.mean((2, 3), keepdim=True)
    one, two = (z / z.std((2, 3), keepdim=True) for z in (y, y - mean))
    near = [torch.allclose(got, z, atol=0.05) for z in (one, two)]
    _require(any(near), "The maps are not multiples of what they were")


@_checks("bank-3")
def _hard_selection(select: Callable) -> None:
    logits, direction = _random(5, 4), _random(4, name="direction")
    leaf, soft = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    got = select(leaf)
    expected = F.one_hot(logits.argmax(1), 4).float()
    _compare(got, expected, "weights of 5 images")
    _require(got.requires_grad, "No gradient reaches the logits")
    (got @ direction).sum().backward()
    (soft.softmax(1) @ direction).sum().backward()
    _require(leaf.grad is not None, "No gradient reaches the logits")
    _compare(leaf.grad, soft.grad, "gradient of the logits")


@_checks("losses-3")
def _hinge(loss: Callable) -> None:
    real = [torch.tensor([0.5, 2.0]), torch.tensor([-1.0])]
    fake = [torch.tensor([0.0, -3.0]), torch.tensor([1.0])]
    # heads: 0.25 + 0.5 and 2 + 2
    _compare(loss(real[:1], fake[:1]), 0.75, "one head")
    _compare(loss(real, fake), (0.75 + 4) / 2, "two heads of unequal size")


@_checks("instruments-2")
def _joint_share(share: Callable) -> None:
    z, c = _random(12, 1, 6, name="z"), _random(1, 7, 6, name="c")
    _compare(share(z + 2 * c + 3), 0.0, "w = z + 2 c + 3")
    z, c = z - z.mean(0), c - c.mean(1, keepdim=True)
    _compare(share(z * c), 1.0, "w = z c, without the means of z and c")
    both = (z * c).square().mean()
    w = z * c + 2 * z
    _compare(share(w), both / w.square().mean(), "w = z c + 2 z, without the means")


@_checks("noise-2")
def _straight(schedule) -> None:
    _require(hasattr(schedule, "alpha_bar"), "A `NoiseSchedule` is expected")
    alpha_bar = torch.as_tensor(schedule.alpha_bar).double()
    log_snr = alpha_bar.logit()
    ends = log_snr[0].item(), log_snr[-1].item()
    _require(
        abs(ends[0] - 10) < 0.05 and abs(ends[1] + 10) < 0.05,
        f"The log-SNR begins at {ends[0]:.2f} and ends at {ends[1]:.2f}",
    )
    line = torch.linspace(*ends, len(log_snr), dtype=torch.float64)
    _compare(log_snr, line, "log-SNR against a straight line", 0.02)


@_checks("playground-2")
def _euler_row(row: Callable) -> None:
    for now, later in (((0.3, 0.9), (0.6, 0.8)), ((0.8, 0.6), (1.0, 0.0))):
        now, later = ([v / math.hypot(*p) for v in p] for p in (now, later))
        (alpha, sigma), (alpha2, sigma2) = now, later
        # DDIM: the noise in x is kept, its amount changes
        expected = torch.tensor([sigma2 / sigma, alpha2 - sigma2 * alpha / sigma])
        got = row(tuple(now), tuple(later))
        _require(len(got) == 2, f"Two numbers are expected, not {len(got)}")
        where = f"from alpha {alpha:.2f} to alpha {alpha2:.2f}"
        _compare(torch.tensor([float(g) for g in got]), expected, where)
