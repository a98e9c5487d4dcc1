"""The bundled weights: their tensors and images are what they were recorded with.

After a model was trained again, this prints the checksums and makes its images again:

    python tests/test_pretrained.py critters-32
"""

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from t2i_tutorial import GigaGAN
from t2i_tutorial.core import BUNDLED_DIR, from_pil, to_pil, to_uint8
from t2i_tutorial.hub import load_model

EXPECTED = Path(__file__).parent / "expected"
PROMPTS = ["a blue and red dragon", "a small green cat, sleeping"]
# of the tensors sorted by content
CHECKSUMS = {
    "critters-32": ("cf5bc5fe835f5c3a", 172),
    "critters-32-gigagan": ("c896ca6044805ada", 235),
    "critters-32-gigagan-adversarial": ("977dbf28231322d6", 235),
    "critters-64": ("f55850f5ceaf7337", 172),
    "critters-64-cascade": ("04f5d5e208658e9a", 378),
    "critters-64-gan-upsampler": ("5c083d42bed064f0", 190),
    "critters-clip": ("8a8a79f8a41dc234", 65),
    "critters-clip-score": ("552ad47a1a72ef4c", 62),
    "critters-classifier": ("0ce789cff6f75a35", 48),
    "dead-leaves": ("168871b67150f130", 10),
    "nano": ("189e749bea530c5f", 75),
}

SAMPLED = (
    "critters-32",
    "critters-32-gigagan",
    "critters-32-gigagan-adversarial",
    "critters-64",
    "critters-64-cascade",
)


def checksum(path: Path) -> tuple[str, int]:
    "A digest of types, shapes and bits of all tensors, whatever their names are."
    digests = []
    for tensor in load_file(path).values():
        kind = str(tensor.dtype) + repr(tuple(tensor.shape))
        flat = tensor.contiguous().reshape(-1) if tensor.dim() else tensor.reshape(1)
        content = flat.view(torch.uint8).numpy().tobytes()
        digests.append(hashlib.sha256(kind.encode() + content).hexdigest())
    whole = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    return whole[:16], len(digests)


def test_every_bundled_model_is_listed_here():
    assert {p.parent.name for p in BUNDLED_DIR.glob("*/model.safetensors")} == set(
        CHECKSUMS
    )


@pytest.mark.parametrize("name", CHECKSUMS)
def test_tensors_have_the_bits_that_were_recorded(name):
    assert checksum(BUNDLED_DIR / name / "model.safetensors") == CHECKSUMS[name]


def sample_strip(name: str) -> torch.Tensor:
    "Two images beside each other, as the model was recorded with."
    if "gigagan" in name:
        images = GigaGAN.from_pretrained(name, "cpu").sample(PROMPTS, seed=0)
    else:
        model = load_model(name, "cpu")
        images = model.sample(PROMPTS, seed=0, guidance_scale=2.0, num_steps=4)
    return torch.cat(list(images), dim=2)


@pytest.mark.parametrize("name", SAMPLED)
def test_the_same_prompt_and_seed_give_the_pixels_of_before(name):
    "One level of difference for other processors."
    strip = to_uint8(sample_strip(name)).int()
    expected = to_uint8(from_pil(Image.open(EXPECTED / f"{name}.png"))).int()
    assert strip.shape == expected.shape
    assert (strip - expected).abs().max() <= 1


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, checksum(BUNDLED_DIR / name / "model.safetensors"))
        if name in SAMPLED:
            to_pil(sample_strip(name)).save(EXPECTED / f"{name}.png")
