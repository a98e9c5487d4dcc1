"""Chapter 21: the filter bank against the plain layer and N convolutions; selection."""

import math

import pytest
import torch
import torch.nn.functional as F

from t2i_tutorial.core import (
    RESULTS_DIR,
    UserError,
    load_json,
    seed_everything,
    seeded_generator,
)
from t2i_tutorial.gan.filter_bank import (
    FilterBankConv2d,
    effective_num_kernels,
    kernel_information,
)
from t2i_tutorial.gan.modulation import ModulatedConv2d, modulated_conv2d


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded_generator(seed, "test bank", *shape))


def make(bank, c_in=6, c_out=5, kernel=3, seed=0):
    seed_everything(seed)
    return FilterBankConv2d(c_in, c_out, kernel, 8, bank).double()


def plain_with(layer, n):
    "The layer of chapter 20 with kernel n of the bank, and the same style and bias."
    plain = ModulatedConv2d(
        layer.weight.shape[2], layer.weight.shape[1], layer.weight.shape[-1], 8
    ).double()
    plain.style.load_state_dict(layer.style.state_dict())
    plain.weight.data, plain.bias.data = (
        layer.weight.data[n].clone(),
        layer.bias.data.clone(),
    )
    return plain


@pytest.mark.parametrize("side", [2, 9])
def test_a_bank_of_one_equals_the_plain_layer(side):
    layer, x, w = make(1), randn(3, 6, side, side).double(), randn(3, 8).double()
    assert torch.equal(layer(x, w), plain_with(layer, 0)(x, w))
    assert torch.equal(layer.kernel_weights(w), torch.ones(3, 1, dtype=torch.float64))
    assert {n for n, _ in layer.named_parameters()} == {
        n for n, _ in plain_with(layer, 0).named_parameters()
    }


@pytest.mark.parametrize("side", [2, 9])
def test_a_weight_of_one_equals_that_kernel(side):
    layer, x, w = make(4), randn(3, 6, side, side).double(), randn(3, 8).double()
    layer.kernel_selector.weight.data.zero_()
    for n in range(4):
        layer.kernel_selector.bias.data = 1e4 * F.one_hot(torch.tensor(n), 4).double()
        assert (layer(x, w) - plain_with(layer, n)(x, w)).abs().max() < 1e-12


@pytest.mark.parametrize("side", [2, 9])
def test_each_image_selects_for_itself(side):
    "No softmax over the batch: a batch of three is three batches of one."
    layer, x, w = make(4), randn(3, 6, side, side).double(), 2 * randn(3, 8).double()
    alone = torch.cat([layer(x[i : i + 1], w[i : i + 1]) for i in range(3)])
    assert (layer(x, w) - alone).abs().max() < 1e-12
    other_x, other_w = x.clone(), w.clone()
    other_x[1], other_w[1] = 3, -2
    assert (layer(other_x, other_w) - alone)[[0, 2]].abs().max() < 1e-12


def test_equals_n_convolutions_mixed_and_demodulated_last():
    "Mixed outputs over the expected scale of the *mixed* kernel, in float64."
    layer, x, w = make(3), randn(2, 6, 7, 5).double(), 2 * randn(2, 8).double()
    layer.bias.data = randn(5).double()
    a, s, bank = (
        torch.softmax(
            w @ layer.kernel_selector.weight.T / math.sqrt(8)
            + layer.kernel_selector.bias,
            1,
        ),
        layer.style(w),
        layer.weight / math.sqrt(6 * 9),
    )
    assert torch.allclose(layer.kernel_weights(w), a, atol=1e-12)
    for i in range(2):
        y = sum(
            a[i, n]
            * F.conv2d(x[i : i + 1] * s[i][None, :, None, None], bank[n], padding=1)
            for n in range(3)
        )
        kernel = sum(a[i, n] * bank[n] for n in range(3)) * s[i][None, :, None, None]
        expected = (
            y / (kernel.square().sum((1, 2, 3)) + 1e-8).sqrt()[None, :, None, None]
            + layer.bias[:, None, None]
        )
        assert (layer(x, w)[i : i + 1] - expected).abs().max() < 1e-12


def test_demodulating_before_mixing_shrinks_the_output():
    layer, x, w = (
        make(8, 16, 16),
        randn(2, 16, 12, 12).double(),
        0.1 * randn(2, 8).double(),
    )
    first = layer.weight / layer.weight.square().sum((2, 3, 4), keepdim=True).sqrt()
    early = modulated_conv2d(
        x,
        torch.einsum("bn,noikl->boikl", layer.kernel_weights(w), first),
        layer.style(w),
        demodulate=False,
    )

    def rms(y):
        return y[..., 1:-1, 1:-1].square().mean().sqrt().item()

    assert abs(rms(layer(x, w)) - 1) < 0.15 and rms(early) < 0.6


def test_kernel_weights_are_positive_sum_to_one_and_depend_on_the_style():
    layer, w = make(4), randn(64, 8).double()
    a = layer.kernel_weights(w)
    assert (
        a.shape == (64, 4)
        and (a > 0).all()
        and torch.allclose(a.sum(1), torch.ones(64, dtype=torch.float64))
    )
    assert (
        a.std(0).min() > 0.05 and a.mean(0).min() > 0.1
    )  # depends on the style; every kernel is used


def test_gradients_reach_kernels_selection_and_style():
    layer = make(4)
    layer(randn(3, 6, 5, 5).double(), randn(3, 8).double()).pow(2).sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad.abs().max() > 0, name
    small = make(2, 2, 2)
    x, w = (t.double().requires_grad_() for t in (randn(2, 2, 3, 3), randn(2, 8)))
    assert torch.autograd.gradcheck(small, (x, w))


def train(bank, steps=150):
    "Blur for one style, edges for the other, as in the chapter, on random images."
    seed_everything(0)
    blur, edges = torch.ones(3, 3) / 3, torch.tensor([[-1.0, 0, 1]] * 3) / 6**0.5
    goals, words, x = (
        torch.stack([blur, edges])[:, None, None],
        2 * torch.eye(2, 8),
        randn(2, 1, 12, 12),
    )
    layer = FilterBankConv2d(1, 1, 3, 8, bank)
    optimizer = torch.optim.Adam(layer.parameters(), 0.05, betas=(0.9, 0.99))
    expected = torch.cat([F.conv2d(x, g, padding=1) for g in goals])
    for _ in range(steps):
        loss = (
            (layer(torch.cat([x, x]), words.repeat_interleave(2, 0)) - expected)
            .square()
            .mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item(), effective_num_kernels(layer.kernel_weights(words).detach())


def test_a_bank_learns_two_tasks_that_one_kernel_cannot():
    (one, _), (four, use) = train(1), train(4)
    assert four < 0.1 * one and use["all"] > use["each"] + 0.3


def test_effective_num_kernels_counts_kernels():
    even, decided = torch.full((5, 4), 0.25), torch.eye(4)
    assert effective_num_kernels(even) == pytest.approx({"each": 4, "all": 4}, abs=1e-4)
    assert effective_num_kernels(decided) == pytest.approx(
        {"each": 1, "all": 4}, abs=1e-4
    )
    assert effective_num_kernels(decided[:1].expand(7, 4)) == pytest.approx(
        {"each": 1, "all": 1}, abs=1e-4
    )
    assert effective_num_kernels(torch.tensor([[0.5, 0.5, 0.0]]))[
        "each"
    ] == pytest.approx(2, abs=1e-4)


def test_kernel_information_is_zero_for_one_mixture_and_log_n_for_one_kernel_each():
    even, uneven = torch.full((5, 4), 0.25), torch.tensor([[0.7, 0.2, 0.1, 0.0]] * 5)
    for same in (even, uneven, torch.eye(4)[:1].expand(7, 4)):
        assert kernel_information(same).abs() < 1e-6
    for n in (2, 4, 8):
        one_each = torch.eye(n).repeat(3, 1)
        assert kernel_information(one_each).item() == pytest.approx(math.log(n))
    two_of_four = torch.eye(4)[:2]
    assert kernel_information(two_of_four).item() == pytest.approx(math.log(2))


def test_kernel_information_is_the_mutual_information_and_bounds_the_counts():
    a = (2 * randn(64, 5)).softmax(1)
    joint = a.double() / len(a)
    independent = joint.sum(1, keepdim=True) * joint.sum(0)
    mutual = (joint * (joint / independent).log()).sum().item()
    assert kernel_information(a).item() == pytest.approx(mutual, abs=1e-5)
    use = effective_num_kernels(a)  # the mean of exp(H) is at least exp(mean H)
    assert mutual >= math.log(use["all"] / use["each"]) > 0


def test_rewarding_the_information_makes_selections_differ():
    layer, w = make(4), randn(32, 8).double()
    before = kernel_information(layer.kernel_weights(w)).item()
    optimizer = torch.optim.Adam(layer.kernel_selector.parameters(), 0.1)
    for _ in range(60):
        loss = -kernel_information(layer.kernel_weights(w))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.5 < 1.0 < -loss.item() <= math.log(4)


def test_one_mixture_for_all_images_gives_parallel_gradients():
    "Why a bank whose weights depend on nothing goes on depending on nothing."
    layer, x = make(4), randn(6, 6, 5, 5).double()
    for w, parallel in ((randn(1, 8).expand(6, 8), True), (3 * randn(6, 8), False)):
        layer.zero_grad()
        layer(x, w.double()).sub(randn(6, 5, 5, 5)).square().mean().backward()
        gradients = F.normalize(layer.weight.grad.flatten(1), dim=1)
        smallest = (gradients @ gradients.T).min()
        assert smallest > 1 - 1e-9 if parallel else smallest < 0.9


def test_parameters_are_counted_by_hand():
    assert sum(p.numel() for p in make(4).parameters()) == 4 * 5 * 6 * 9 + 5 + (
        8 * 6 + 6
    ) + (8 * 4 + 4)


def test_an_empty_bank_is_refused():
    with pytest.raises(UserError, match="at least one kernel, not 0"):
        FilterBankConv2d(4, 4, 3, 8, num_kernels=0)


def test_the_recorded_benchmark_is_what_the_chapter_says():
    "A bank is cheaper than N convolutions on large maps and dearer on the smallest."
    banks = load_json(RESULTS_DIR / "gan-benchmarks.json")["banks"]
    rows = {(r["side"], r["kernels"]): r for r in banks}

    def ratio(key, side, n):
        cost = rows[side, n][key]
        return cost["bank"] / cost["n_convolutions"]

    assert ratio("seconds", 4, 2) > 3 and ratio("peak_bytes", 4, 2) > 8
    assert ratio("seconds", 32, 8) < 0.2 and ratio("peak_bytes", 32, 8) < 0.5
