"""Chapter 24c: instruments on tables and networks whose numbers can be predicted."""

import pytest
import torch

from t2i_tutorial.core import seed_everything, seeded_generator
from t2i_tutorial.gan.diagnostics import (
    distance_within_captions,
    distance_within_renders,
    generator_diagnostics,
    kernel_usage,
    lost_inputs,
    style_variance_shares,
    styles,
    swap_effects,
    text_discrimination_accuracy,
)
from t2i_tutorial.gan.filter_bank import FilterBankConv2d
from t2i_tutorial.gan.generator import Generator, GeneratorConfig
from t2i_tutorial.text import TextEmbedding, TextEncoder


def randn(*shape):
    return torch.randn(*shape, generator=seeded_generator(0, "instruments", *shape))


def texts(c=3):
    return TextEmbedding(
        randn(c, 3, 16), torch.ones(c, 3, dtype=torch.bool), randn(c, 16)
    )


def make(num_kernels=(1, 2)):
    seed_everything(0)
    config = GeneratorConfig(
        4, 16, 16, 2, 1.0, 0, (16, 16), num_kernels, (False, False), (False, True)
    )
    return Generator(config).eval()


def test_shares_of_a_table_that_varies_one_way():
    column = torch.tensor([-1.0, 1.0])[:, None, None]
    by_z = column.expand(2, 3, 5)
    assert style_variance_shares(by_z) == {"z": 1.0, "caption": 0.0}
    by_caption = column.transpose(0, 1).expand(4, 2, 5)
    assert style_variance_shares(by_caption) == {"z": 0.0, "caption": 1.0}
    assert style_variance_shares(torch.ones(2, 3, 5)) == {"z": 0.0, "caption": 0.0}


def test_shares_of_a_sum_of_known_parts():
    "w = u(z) + 2 v(c) + 2, u and v are -1 or 1: mean square 1 + 4 + 4."
    side = torch.tensor([-1.0, 1.0])
    w = side[:, None, None] + 2 * side[None, :, None] + 2
    shares = style_variance_shares(w)
    assert shares["z"] == pytest.approx(1 / 9)
    assert shares["caption"] == pytest.approx(4 / 9)


def test_with_a_single_caption_nothing_varies_with_it():
    w, _ = styles(make(), texts(1), 5)
    shares = style_variance_shares(w)
    assert w.shape == (5, 1, 16) and shares["caption"] == 0 < shares["z"]


def test_styles_are_the_generators_own_and_repeat():
    generator, text = make(), texts()
    w, words = styles(generator, text, 4, seed=2)
    z = torch.randn(4, 4, generator=seeded_generator(2, "style"))
    one = generator.map_style(z[[3]], words[[1]])[0]
    assert torch.allclose(w[3, 1], one, atol=1e-6)
    assert torch.equal(w, styles(generator, text, 4, seed=2)[0])
    assert not torch.equal(w, styles(generator, text, 4, seed=3)[0])


@pytest.mark.parametrize("lost", ["z", "caption"])
def test_an_input_that_is_cut_off_is_found_and_named(lost):
    generator = make()
    inputs = slice(0, 4) if lost == "z" else slice(4, None)
    generator.mapping.layers[0].weight.data[:, inputs] = 0
    numbers = generator_diagnostics(generator, texts())
    kept = {"z": "caption", "caption": "z"}[lost]
    assert numbers[f"style_share_{lost}"] < 1e-6 < 0.02 < numbers[f"style_share_{kept}"]
    (sentence,) = lost_inputs(numbers)
    assert {"z": "noise", "caption": "caption"}[
        lost
    ] in sentence and "\n" not in sentence
    assert (numbers["effect_z"] < 1e-5) == (lost == "z")
    assert (numbers["distance_within"] < 1e-5) == (lost == "z")
    assert (numbers["effect_style"] < 1e-5) == (lost == "caption")


def test_a_whole_generator_is_not_warned_of():
    numbers = generator_diagnostics(make(), texts())
    assert lost_inputs(numbers) == [] and len(lost_inputs(numbers, least=9.0)) == 2


class Painted(Generator):
    "One colour, in [-1, 1]: that of the style, plus that of the text's first token."

    def synthesise(self, w, text=None, max_size=None):
        value = w[:, 0] + text.tokens[:, 0, 0]
        return [value[:, None, None, None].expand(-1, 3, 8, 8)]


def test_effects_and_distances_of_painted_images():
    seed_everything(0)
    generator = Painted(make().config)
    w = torch.zeros(2, 2, 16)  # latents, captions
    w[:, :, 0] = torch.tensor([[0.0, 0.1], [0.3, 0.4]])
    text = texts(2)
    text.tokens[:, 0, 0] = torch.tensor([0.0, 0.2])
    effects = swap_effects(generator, w, text)
    expected = {"z": 0.3, "style": 0.1, "words": 0.2, "caption": 0.3}
    assert effects == pytest.approx(expected, abs=1e-5)
    assert distance_within_captions(generator, w, text) == pytest.approx(0.3, abs=1e-5)


def test_renders_of_a_caption_differ_more_the_less_it_states():
    everything = "a small blue and red dragon with green eyes, jumping, facing left"
    own, open_ = (distance_within_renders([c], 16, 4) for c in (everything, "a dragon"))
    assert 0 < own < open_ < 1


def test_kernel_usage_tells_choice_by_z_from_choice_by_caption():
    generator = make((1, 2))
    for module in generator.modules():
        if isinstance(module, FilterBankConv2d) and module.kernel_selector is not None:
            torch.nn.init.zeros_(module.kernel_selector.weight)
            torch.nn.init.zeros_(module.kernel_selector.bias)
            module.kernel_selector.weight.data[:, :2] = 400 * torch.eye(2)
    by_z = torch.zeros(2, 2, 16)
    by_z[:, :, :2] = torch.eye(2)[:, None]
    for w, captions, latents in ((by_z, 1, 2), (by_z.transpose(0, 1), 2, 1)):
        row = kernel_usage(generator, w)["8 px, 0"]
        found = [row[k] for k in ("each", "all", "captions", "latents")]
        assert found == pytest.approx([1, 2, captions, latents], abs=0.01)
    assert kernel_usage(make((1, 1)), by_z) == {}


class Encoder(TextEncoder):
    "A caption as one number, the sum of its letters."

    def encode(self, captions):
        n = torch.tensor([[float(sum(map(ord, c)))] for c in captions])
        mask = torch.ones(len(captions), 1, dtype=torch.bool)
        return TextEmbedding(n[:, None], mask, n)


@pytest.mark.parametrize("kind, expected", [("ignores", 0.5), ("knows", 1.0)])
def test_matching_accuracy_of_discriminators_by_hand(kind, expected):
    "One ignores the text; the other gives the caption that it saw first 1, others 0."
    from t2i_tutorial.gan.discriminator import Discriminator, DiscriminatorConfig

    class ByHand(Discriminator):
        seen = None

        def score(self, features, text):
            if self.seen is None:
                self.seen = text.pooled
            same = (text.pooled == self.seen)[:, 0].float()
            return same if kind == "knows" else torch.zeros(len(same))

    class Logits(ByHand):
        def score(self, features, text):
            values = super().score(features, text)
            return type("Scores", (), {"mean": lambda _: values})()

    seed_everything(0)
    discriminator = Logits(
        DiscriminatorConfig((16,), (16,), (False,), text_dim=16, style_dim=16)
    )
    accuracy = text_discrimination_accuracy(
        discriminator, Encoder(), ("species", "facing"), n=8
    )
    assert accuracy == {"species": expected, "facing": expected}
