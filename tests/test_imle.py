"""Chapter 24d: the nearest of several latents, against a search one by one."""

import pytest
import torch

from t2i_tutorial.core import UserError, seed_everything, seeded_generator
from t2i_tutorial.gan.generator import Generator, GeneratorConfig
from t2i_tutorial.gan.imle import nearest_latents
from t2i_tutorial.text import TextEmbedding


def make(text_dim=16):
    seed_everything(0)
    off = (False, False)
    config = GeneratorConfig(
        4, text_dim, 16, 2, 1.0, 0, (16, 16), (1, 2), off, (False, text_dim is not None)
    )
    generator = Generator(config).eval()
    for block in generator.blocks:  # cross-attention starts at zero
        if block.cross_attn is not None:
            for p in block.cross_attn.parameters():
                torch.nn.init.normal_(p, std=0.3)
    return generator.requires_grad_(False)


def randn(*shape):
    return torch.randn(*shape, generator=seeded_generator(0, "test imle", *shape))


def texts(b):
    return TextEmbedding(
        randn(b, 3, 16), torch.ones(b, 3, dtype=torch.bool), randn(b, 16)
    )


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("k", [2, 4, 7])  # less than, equal to, more than one part
def test_the_chosen_latent_is_the_nearest(k, conditional):
    generator = make(16 if conditional else None)
    real, text = randn(3, 3, 8, 8), texts(3) if conditional else None
    z = torch.randn(k, 3, 4, generator=seeded_generator(5))
    expected = []
    for i in range(3):
        own = None if text is None else text[[i]]
        errors = [
            (generator(z[j, [i]], own)[0] - real[[i]]).square().mean() for j in range(k)
        ]
        expected.append(z[torch.stack(errors).argmin(), i])
    found = nearest_latents(generator, text, real, k, seeded_generator(5))
    assert torch.equal(found, torch.stack(expected))


def test_an_image_made_by_a_candidate_finds_it_again():
    "Each caption's target is the image of another candidate: 0, 5 and 2."
    generator, text = make(), texts(3)
    z = torch.randn(6, 3, 4, generator=seeded_generator(1))
    own = z[[0, 5, 2], [0, 1, 2]]
    real = generator(own, text)[0]
    assert torch.equal(
        nearest_latents(generator, text, real, 6, seeded_generator(1)), own
    )


def test_one_candidate_is_the_draw_itself():
    z = torch.randn(1, 2, 4, generator=seeded_generator(3))[0]
    found = nearest_latents(make(), texts(2), randn(2, 3, 8, 8), 1, seeded_generator(3))
    assert torch.equal(found, z)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    generator, text, real = make(), texts(4), randn(4, 3, 8, 8)
    a, b, c = (
        nearest_latents(generator, text, real, 5, seeded_generator(s))
        for s in (0, 0, 1)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_choice_has_no_gradient():
    generator = make().requires_grad_(True)
    z = nearest_latents(generator, texts(2), randn(2, 3, 8, 8), 3, seeded_generator(0))
    assert not z.requires_grad


def test_a_size_that_is_not_generated_is_refused():
    with pytest.raises(UserError, match="max_size must be one of"):
        nearest_latents(make(), texts(2), randn(2, 3, 16, 16), 2, seeded_generator(0))
