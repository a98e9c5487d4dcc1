"""The drawings of networks: valid, readable, true to the configuration."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml

from t2i_tutorial.attention import MultiHeadAttention
from t2i_tutorial.core import Diagram, UserError
from t2i_tutorial.diffusion.guidance import guided_denoiser
from t2i_tutorial.diffusion.imagen import IMAGEN_PRESETS, Imagen
from t2i_tutorial.diffusion.samplers import iter_sampling
from t2i_tutorial.diffusion.unet import UNet, UNetConfig
from t2i_tutorial.gan.config import GigaGANConfig
from t2i_tutorial.gan.discriminator import Discriminator, DiscriminatorConfig
from t2i_tutorial.gan.generator import Generator, GeneratorConfig
from t2i_tutorial.hub import prompt_generators, randn_per_prompt
from t2i_tutorial.text import TextEmbedding

ROOT = Path(__file__).resolve().parent.parent
SVG = "{http://www.w3.org/2000/svg}"
SAMPLING = {  # what the chapter has imported
    "guided_denoiser": guided_denoiser,
    "iter_sampling": iter_sampling,
    "partial": partial,
    "prompt_generators": prompt_generators,
    "randn_per_prompt": randn_per_prompt,
}
WIDEST = 688  # pixels of the text column in a window of 1280


def cells(notebook: str) -> list[str]:
    found = json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in found["cells"] if c["cell_type"] == "code"]


def drawing(notebook: str, name: str, **others):
    "The drawing function of a chapter, without the rest of its cell."
    (cell,) = [c for c in cells(notebook) if f"def {name}" in c]
    start, end = cell.index(f"def {name}"), cell.index("    return d\n")
    names = {"Diagram": Diagram, "torch": torch, **others}
    exec(cell[start:end] + "    return d\n", names)
    return names[name]


def pipeline() -> Diagram:
    "The Imagen's, with an untrained network of the smallest size."
    draw = drawing("35_imagen", "draw_pipeline", **SAMPLING)
    return draw(Imagen(IMAGEN_PRESETS["tiny"].model_config), "a red cat")


def index() -> Diagram:
    (cell,) = [c for c in cells("index") if "Diagram(" in c]
    names = {"Diagram": Diagram}
    exec(cell[cell.index("d = Diagram(") :], names)
    return names["d"]


def of(notebook: str, name: str, *defaults):
    "A drawing by the chapter's function, of other things than the defaults if given."
    return lambda *given: drawing(notebook, name)(*(given or defaults))


DRAWINGS = {
    "generator": of("22_generator", "draw_generator", GeneratorConfig()),
    "discriminator": of(
        "23_discriminator", "draw_discriminator", DiscriminatorConfig()
    ),
    "training step": of("25_gigagan", "draw_training_step", GigaGANConfig()),
    "attention": of("08_attention", "draw_attention", MultiHeadAttention(48, 64, 4)),
    "U-Net": of("32_unet", "draw_unet", UNetConfig(), 32),
    "pipeline": pipeline,
    "index": index,
}


def small() -> Diagram:
    d = Diagram("A <title> & more", 'what "it" shows', gap=(20, 20))
    d.box("a", "a < b & *c*", "1 > 0", at=(0, 0), kind="data")
    d.box("b", "<script>alert(1)</script>", at=(0, 1), href="01_images")
    return d.arrow("a", "b", "x < y")


def texts(d: Diagram) -> list[str]:
    root = ElementTree.fromstring(d.svg())
    return ["".join(t.itertext()) for t in root.iter(f"{SVG}text")]


# ---- the class


def test_text_is_escaped_and_comes_back():
    d = small()
    root = ElementTree.fromstring(d.svg())
    assert root.find(f"{SVG}title").text == d.title
    assert root.find(f"{SVG}desc").text == d.description
    found = texts(d)
    assert "a < b & c" in found and "x < y" in found
    assert "<script>alert(1)</script>" in found and "<script" not in d._repr_html_()
    assert root.find(f".//{SVG}tspan").attrib["font-style"] == "italic"


def test_a_subscript_is_lowered_at_the_end_only():
    d = Diagram("t", "d").box("a", "*W*_q", "conv_in", at=(0, 0))
    assert {"Wq", "conv_in"} <= set(texts(d)) and d.svg().count('dy="4"') == 1


def test_boxes_and_arrows_that_cannot_be_are_refused():
    d = Diagram("t", "d").box("a", "A", at=(0, 0))
    with pytest.raises(UserError, match="two boxes are named 'a'"):
        d.box("a", "A", at=(0, 1))
    with pytest.raises(UserError, match="kind of box"):
        d.box("b", "B", at=(0, 1), kind="frosen")
    with pytest.raises(UserError, match="unknown box 'z'"):
        d.arrow("a", "z").svg()


def test_in_a_terminal_it_is_one_line():
    assert repr(small()) == "Diagram('A <title> & more', 2 boxes)"


def test_an_image_is_embedded():
    d = Diagram("t", "d").box("a", "A", at=(0, 0), image=torch.zeros(3, 8, 8))
    assert d.svg().count('href="data:image/png;base64,') == 1


@pytest.mark.parametrize("sides", ["", "rl", "rt", "bl", "bt", "tt", "bb", "rb"])
def test_lines_are_horizontal_or_vertical_and_end_at_the_boxes(sides):
    from t2i_tutorial.core import _route

    a, b = (0.0, 0.0, 80.0, 30.0), (120.0, 90.0, 60.0, 40.0)
    points = _route(a, b, sides, 0.5, 0.5)
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        assert x0 == x1 or y0 == y1
    for (x, y), (left, top, w, h) in ((points[0], a), (points[-1], b)):
        on_side = x in (left, left + w) and top <= y <= top + h
        assert on_side or y in (top, top + h) and left <= x <= left + w


# ---- the drawings of the chapters


@pytest.fixture(scope="module")
def drawn() -> dict[str, Diagram]:
    return {name: draw() for name, draw in DRAWINGS.items()}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_accessible_and_fits_the_page(drawn, name):
    d = drawn[name]
    root = ElementTree.fromstring(d.svg())
    assert root[0].tag == f"{SVG}title" and len(root[0].text) > 8
    assert root[1].tag == f"{SVG}desc" and len(root[1].text) > 80
    links = list(root.iter(f"{SVG}a"))
    # an image has no parts for a screen reader, so one with links is a group
    assert root.attrib["role"] == ("group" if links else "img")
    assert float(root.attrib["width"]) <= WIDEST
    assert 'tabindex="0"' in d._repr_html_() and "overflow-x: auto" in d._repr_html_()


@pytest.mark.parametrize("name", DRAWINGS)
def test_text_is_large_and_in_the_colours_of_the_theme(drawn, name):
    for node in ElementTree.fromstring(drawn[name].svg()).iter():
        if "font-size" in node.attrib:
            assert float(node.attrib["font-size"]) >= 12
        if node.tag == f"{SVG}text":
            assert re.fullmatch(
                r"var\(--pst-color-[\w-]+, currentColor\)", node.attrib["fill"]
            )
        for key in ("fill", "stroke"):  # neither black nor white
            colour = node.attrib.get(key, "none")
            if colour.startswith("#"):
                r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
                assert 60 < 0.3 * r + 0.6 * g + 0.1 * b < 190, colour


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_two_boxes_overlap(drawn, name):
    d = drawn[name]
    places = [d._layout()[k] for k in d.boxes]
    for i, (x, y, w, h) in enumerate(places):
        for left, top, width, height in places[:i]:
            apart = x >= left + width or left >= x + w
            assert apart or y >= top + height or top >= y + h


@pytest.mark.parametrize("name", DRAWINGS)
def test_links_lead_to_chapters(drawn, name):
    for href in re.findall(r'<a href="([^"]+)"', drawn[name].svg()):
        assert (ROOT / "nbs" / href.replace(".html", ".ipynb")).exists(), href


def test_the_first_page_names_the_parts_as_the_table_of_contents_does(drawn):
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    d, captions = drawn["index"], {}
    for part in parts:
        for chapter in part["chapters"]:
            captions[chapter["file"].removeprefix("nbs/")] = part["caption"]
    assert len(d.groups) > 4
    for name, (boxes, _) in d.groups.items():
        assert {captions[b] for b in boxes} == {name}


def shape(tensor) -> str:
    return " × ".join(map(str, tensor.shape[1:]))


def some_text(dim: int) -> TextEmbedding:
    mask = torch.ones(1, 5, dtype=torch.bool)
    return TextEmbedding(torch.zeros(1, 5, dim), mask, torch.zeros(1, dim))


def outputs(module, kinds, *inputs) -> set[str]:
    "Shapes that modules of these names give when the module is called."
    found = set()
    hooks = [
        m.register_forward_hook(lambda m, i, o: found.add(shape(o)))
        for name, m in module.named_modules()
        if re.fullmatch(kinds, name)
    ]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    assert found
    return found


@pytest.mark.parametrize(
    "config",
    [
        GeneratorConfig(),
        GeneratorConfig(
            z_dim=24,
            channels=(32, 16, 8),
            num_kernels=(1, 2, 3),
            self_attention=(False, False, False),
            cross_attention=(False, True, False),
        ),
    ],
)
def test_the_generator_has_the_shapes_that_are_drawn(config):
    found = texts(DRAWINGS["generator"](config))
    z, text = torch.zeros(1, config.z_dim), some_text(config.text_dim)
    assert outputs(Generator(config), r"blocks\.\d+", z, text) <= set(found)
    assert str(config.z_dim) in found
    assert {f"conv, bank of {n}" for n in config.num_kernels} <= set(found)
    returned = {f"3 × {s} × {s}" for s in config.sizes}
    assert returned <= set(found) and found.count("not returned") == 1
    assert not [t for t in texts(DRAWINGS["generator"]()) if "bank of 3" in t]


@pytest.mark.parametrize(
    "config",
    [
        DiscriminatorConfig(),
        DiscriminatorConfig(
            sizes=(4, 8), channels=(24, 16), attention=(False, False), style_dim=40
        ),
        replace(DiscriminatorConfig(), multiscale_loss=False),
    ],
)
def test_the_discriminator_has_the_shapes_and_heads_that_are_drawn(config):
    found = texts(DRAWINGS["discriminator"](config))
    images = [torch.zeros(1, 3, s, s) for s in config.sizes]
    given = outputs(
        Discriminator(config), r"blocks\.\d+", images, some_text(config.text_dim)
    )
    assert given <= set(found)
    assert found.count("score") == len(config.head_names)
    assert any(t.endswith(f": {config.style_dim}") for t in found)


@pytest.mark.parametrize(
    "config, size",
    [
        (UNetConfig(), 32),
        (
            UNetConfig(
                patch_size=2,
                channels=(16, 24),
                num_res_blocks=(2, 1),
                self_attention=(False, True),
                cross_attention=(True, False),
            ),
            64,
        ),
    ],
)
def test_the_u_net_has_the_shapes_that_are_drawn(config, size):
    found = texts(DRAWINGS["U-Net"](config, size))
    inputs = torch.zeros(1, 3, size, size), torch.zeros(1, dtype=torch.long)
    net, kinds = UNet(config), r"(down|up)\.\d+\.\d+|middle"
    assert outputs(net, kinds, *inputs, some_text(config.text_dim)) <= set(found)
    assert f"3 × {size} × {size}" in found
    assert ("pixel unshuffle, conv" in found) == (config.patch_size > 1)


def test_vision_aided_heads_are_drawn_where_there_are_any():
    assert "3 scores" not in texts(DRAWINGS["discriminator"]())
    config = replace(DiscriminatorConfig(), vision_aided_model="critters-clip")
    d = DRAWINGS["discriminator"](config)
    assert "3 scores" in texts(d) and "image encoder" in texts(d)


def test_attention_has_the_shapes_that_are_drawn():
    attn = MultiHeadAttention(32, 24, 2)
    found = texts(DRAWINGS["attention"](attn))
    q, k, v = attn.project(torch.zeros(1, 9, 32), torch.zeros(1, 5, 24))
    for t in (q, k, v):
        assert shape(t).replace("9", "n").replace("5", "m") in found
    assert "n × 32" in found and "m × 24" in found and "2 heads" in found


def test_the_training_step_names_the_terms_that_are_switched_on():
    first = texts(DRAWINGS["training step"]())
    assert {"relativistic", "matching (0.5)", "CLIP (0.1)", "D(x, ĉ)"} <= set(first)
    assert "R1 + R2, γ = 1" in first and "perceptual" not in first
    config = GigaGANConfig(
        adversarial_loss="logistic",
        matching_weight=0.0,
        clip_weight=0.0,
        perceptual_weight=0.5,
        r1_gamma=2.0,
    )
    found = texts(DRAWINGS["training step"](config))
    assert {"logistic", "R1, γ = 2", "perceptual"} <= set(found)
    assert not {"matching (0.5)", "CLIP (0.1)", "D(x, ĉ)", "relativistic"} & set(found)
