"""What leaves Python: networks, tables and tokenizers against the originals."""

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import warnings
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

from t2i_tutorial import cli, critters, playground
from t2i_tutorial.core import UserError, clean_text, load_json, save_json, to_pil
from t2i_tutorial.diffusion.imagen import Imagen, imagen_preset
from t2i_tutorial.diffusion.noise import make_noise_schedule
from t2i_tutorial.diffusion.samplers import SAMPLERS, run_sampler
from t2i_tutorial.evaluation.classifier import AttributeClassifier, predict_attributes
from t2i_tutorial.hub import load_model, prompt_generators, randn_per_prompt
from t2i_tutorial.playground import (
    ExportedModel,
    export_classifier,
    export_model,
    sampler_table,
    soft_masked_attention,
    tokenizer_as_json,
)
from t2i_tutorial.text import oov_words, sample_captions

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "_build" / "playground"  # what the book serves, once it is built
PROMPT = "a blue and red dragon with green eyes"
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="the packages of the extra 'export' are not installed",
)


@pytest.fixture
def free_shapes():
    "Shape checks off: a network that is exported has symbols for sizes."
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def models():
    names = ("critters-32", "critters-32-gigagan")
    return {name: load_model(name, "cpu") for name in names}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A tiny untrained Imagen, and the folder that it is exported to in 32 bits."
    torch.manual_seed(0)
    model = Imagen(imagen_preset("tiny").model_config).eval()
    for p in model.unet.conv_out.parameters():
        torch.nn.init.normal_(p, std=0.1)  # else it predicts nothing
    jaxtyping.config.update("jaxtyping_disable", True)
    folder = tmp_path_factory.mktemp("tiny") / "exported"
    export_model(model, folder, "tiny", half=False)
    jaxtyping.config.update("jaxtyping_disable", False)
    return model, folder


def exported(name):
    "A bundled model as the book serves it."
    if not (BUILT / name / "model.json").exists():
        pytest.skip("the book is not built; run make book first")
    return ExportedModel(BUILT / name)


def ids_of(model, prompt):
    return model.encoder.tokenizer.encode([prompt])[0][0].tolist()


# ---- tables and tokens


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("zero_terminal", [True, False])
def test_a_table_is_the_sampler(sampler, zero_terminal):
    schedule = make_noise_schedule("cosine", 1000, zero_terminal)

    def denoise(x, t):
        return (x * (0.3 + t / 2000)).tanh()

    def noise():
        return torch.randn(1, 3, generator=rng, dtype=torch.float64)

    rng = torch.Generator().manual_seed(0)
    expected = run_sampler(denoise, noise, schedule, 7, sampler)
    rng = torch.Generator().manual_seed(0)
    x, previous = noise(), 0
    for t, _, _, a, b, c, d in sampler_table(schedule, sampler, 7):
        x0 = denoise(x, t)
        x = a * x + b * x0 + c * previous + (d * noise() if d else 0)
        previous = x0
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-9)


def test_a_table_refuses_what_a_sampler_refuses():
    schedule = make_noise_schedule("cosine", 10)
    with pytest.raises(UserError, match="dpmpp-2m"):
        sampler_table(schedule, "dpm", 5)
    with pytest.raises(UserError, match="num_steps"):
        sampler_table(schedule, "ddim", 11)


def test_the_tokenizer_is_told_in_full(models):
    tokenizer = models["critters-32"].encoder.tokenizer
    told = json.loads(json.dumps(tokenizer_as_json(tokenizer)))
    assert len(told["vocabulary"]) == tokenizer.size
    assert all(len(m.split(" ")) == 2 for m in told["merges"])
    assert told["words"] == list(tokenizer.words)


# ---- the page's JavaScript against Python

TEXTS = [
    PROMPT,
    "A  RED\tcat,  asleep!",
    "an owl's 2nd fire-breathing wyvern…",
    "émigré ćat 日本語 🐉🔥 a\u200bb",
    "it's they'll <end> x",
    "  \u00a0 a dragn and a purpel octopuss",
    "x" * 60,
    "naïve\u0301 İstanbul",
    "a_b c-d--e 'quoted'",
    "١٢٣ ½ ﬁsh",
    "a family 👨\u200d👩\u200d👧 of ducks",
    " ".join(["a blue and red dragon"] * 20),
]


def python_says(tokenizer) -> dict:
    "What the JavaScript must give, worked out by the library."
    texts, noise = [], []
    for text in TEXTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ids = tokenizer.encode([text])[0][0].tolist()
        unknown = [[w, s] for w, s in oov_words([text], tokenizer.words).items()]
        clean = clean_text(text)
        texts.append({"text": text, "clean": clean, "ids": ids, "unknown": unknown})
    for prompt, seed in (("a red cat", 0), (PROMPT, 2**32 - 1), ('é 🐉 "x"', 7)):
        generators = prompt_generators([prompt], seed)
        x = randn_per_prompt(generators, (3, 8, 8)).flatten()
        second = randn_per_prompt(generators, (16,))[0].tolist()
        said = {"prompt": prompt, "seed": seed, "first": x[:20].tolist()}
        noise.append(said | {"sum": x.sum().item(), "second": second})
    captions = [*sample_captions(40), "a red owl", "a duck, looking left"]
    stated = [{"text": c, "stated": critters.parse_caption(c)} for c in captions]
    table = sampler_table(make_noise_schedule("cosine", 1000), "dpmpp-2m", 5)
    start = torch.randn(12, generator=torch.Generator().manual_seed(3))
    x, previous = start, start
    for t, alpha, sigma, a, b, c, _ in table:
        cond, uncond = x.tanh() * (0.3 + t / 2000), x.sin() * 0.2
        cond, uncond = alpha * x - sigma * cond, alpha * x - sigma * uncond
        x0 = (uncond + 2.5 * (cond - uncond)).clamp(-1, 1)
        x, previous = a * x + b * x0 + c * previous, x0
    sampler = {"table": table, "start": start.tolist(), "final": x.tolist()}
    return {
        "tokenizer": tokenizer_as_json(tokenizer),
        "attributes": {k: list(v) for k, v in critters.ATTRIBUTES.items()},
        "parts": sorted(set(critters.SECOND_COLOUR_PARTS.values())),
        "texts": texts,
        "noise": noise,
        "stated": stated,
        "sampler": sampler,
    }


def test_the_javascript_gives_what_python_gives(models, tmp_path):
    node = shutil.which("node")
    if not node:
        pytest.skip("no node here; install Node.js 20 or newer to run the JavaScript")
    fixture = tmp_path / "python.json"
    save_json(fixture, python_says(models["critters-32"].encoder.tokenizer))
    done = subprocess.run(
        [node, "--test", *map(str, sorted((ROOT / "tests/javascript").glob("*.mjs")))],
        env=os.environ | {"PLAYGROUND_FIXTURE": str(fixture)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


# ---- attention with weights


def test_weights_of_one_change_nothing_and_layers_are_put_back(models, free_shapes):
    model = models["critters-32"]
    text, maps = model.encode_prompts([PROMPT]), []
    x, t = torch.randn(1, 3, 32, 32), torch.tensor([400])
    with torch.no_grad():
        expected = model.unet(x, t, text)
        weights = torch.ones(text.tokens.shape[:2])
        with soft_masked_attention(model.unet, maps):
            soft = model.unet(x, t, type(text)(text.tokens, weights, text.pooled))
        torch.testing.assert_close(soft, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.unet(x, t, text), expected)
    assert maps and all(torch.allclose(m.sum(-1), torch.ones(1)) for m in maps)


# ---- networks


@needs_onnx
def test_a_tiny_model_is_the_same_by_onnxruntime(tiny):
    model, folder = tiny
    onnx, rng = ExportedModel(folder), np.random.default_rng(0)
    for prompt in ("a red cat", "a small green and yellow owl, holding a balloon"):
        text = onnx.encode(ids_of(model, prompt))
        expected = model.encode_prompts([prompt])
        assert np.abs(text["tokens"] - expected.tokens.numpy()).max() < 1e-3
        assert np.abs(text["pooled"] - expected.pooled.numpy()).max() < 1e-3
        x = rng.standard_normal((1, 3, 16, 16)).astype(np.float32)
        y, maps = onnx.run("denoiser", xt=x, t=np.array([300]), **text)
        with torch.no_grad():
            args = torch.from_numpy(x), torch.tensor([300])
            both = (
                model.unet(*args, expected),
                model.unet(*args, model.null_text.expand_as(expected)),
            )
        assert np.abs(y - torch.cat(both).numpy()).max() < 1e-3
        assert np.abs(maps.sum(0) - 1).max() < 1e-4


@needs_onnx
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_a_whole_image_is_the_same(tiny, sampler, scale):
    model, folder = tiny
    onnx = ExportedModel(folder)
    expected = model.sample(
        [PROMPT], num_steps=6, sampler=sampler, guidance_scale=scale, seed=4
    )
    generators = prompt_generators([PROMPT], 4)
    text = onnx.encode(ids_of(model, PROMPT))
    *_, (_, x, _) = onnx.denoise(
        text,
        lambda: randn_per_prompt(generators, (3, 16, 16)).numpy(),
        scale,
        6,
        sampler,
    )
    assert np.abs(x.clip(-1, 1) - expected[0].numpy()).max() < 1e-3


@needs_onnx
@pytest.mark.parametrize("name", ["critters-32", "critters-32-gigagan"])
def test_the_books_networks_in_32_bits_are_the_same(
    name, models, tmp_path, free_shapes
):
    model = models[name]
    folder = export_model(model, tmp_path / "exported", name, half=False)
    onnx, rng = ExportedModel(folder), np.random.default_rng(0)
    text, expected = onnx.encode(ids_of(model, PROMPT)), model.encode_prompts([PROMPT])
    assert np.abs(text["tokens"] - expected.tokens.numpy()).max() < 1e-3
    if name == "critters-32":
        x = rng.standard_normal((1, 3, 32, 32)).astype(np.float32)
        found, _ = onnx.run("denoiser", xt=x, t=np.array([300]), **text)
        with torch.no_grad():
            args = torch.from_numpy(x), torch.tensor([300])
            null = model.null_text.expand_as(expected)
            both = model.unet(*args, expected), model.unet(*args, null)
        wanted = torch.cat(both).numpy()
    else:
        z = randn_per_prompt(prompt_generators([PROMPT], 2), (16,)).numpy()
        found = onnx.generate(text, z, 0.7)
        wanted = model.sample([PROMPT], seed=2, truncation_psi=0.7)[0].numpy()
    assert np.abs(found - wanted).max() < 1e-3


@needs_onnx
def test_the_books_imagen_is_the_same_by_onnxruntime(models):
    model, onnx = models["critters-32"], exported("critters-32")
    expected = model.sample([PROMPT], num_steps=8, seed=1)[0].numpy()
    generators = prompt_generators([PROMPT], 1)
    text = onnx.encode(ids_of(model, PROMPT))
    *_, (_, x, _) = onnx.denoise(
        text,
        lambda: randn_per_prompt(generators, (3, 32, 32)).numpy(),
        model.config.guidance_scale,
        8,
    )
    assert 127.5 * np.abs(x.clip(-1, 1) - expected).mean() < 0.5


@needs_onnx
@pytest.mark.parametrize("psi", [1.0, 0.5])
def test_the_books_gan_is_the_same_by_onnxruntime(models, psi):
    model, onnx = models["critters-32-gigagan"], exported("critters-32-gigagan")
    expected = model.sample([PROMPT], truncation_psi=psi, seed=1)[0].numpy()
    z = randn_per_prompt(prompt_generators([PROMPT], 1), (16,)).numpy()
    image = onnx.generate(onnx.encode(ids_of(model, PROMPT)), z, psi)
    assert 127.5 * np.abs(image - expected).mean() < 0.5


@needs_onnx
@pytest.mark.parametrize("size", [32, 48])
def test_the_classifier_is_the_same_at_any_size(size, tmp_path, free_shapes):
    classifier = AttributeClassifier.from_pretrained()
    folder = export_classifier(classifier, tmp_path / "c", size, half=False)
    onnx = ExportedModel(folder)
    images = critters.render([critters.Critter("owl", "red", "blue")], size)
    with torch.no_grad():
        expected = classifier(images)
    found = onnx.run("classifier", image=images.numpy())
    assert list(expected) == list(onnx.settings["attributes"])
    for want, got in zip(expected.values(), found):
        assert np.abs(got - want.numpy()).max() < 1e-3


# ---- what is refused


@needs_onnx
def test_a_folder_in_use_is_left_alone(models, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    for folder in (tmp_path / "used", tmp_path / "used" / "mine.txt"):
        with pytest.raises(UserError, match="not empty"):
            export_model(models["critters-32"], folder)
    assert [p.name for p in tmp_path.iterdir()] == ["used"]


def test_an_export_that_fails_leaves_nothing(models, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(playground, "to_onnx", full)
    with pytest.raises(UserError, match="No space left"):
        export_model(models["critters-32"], tmp_path / "new")
    assert not [*tmp_path.iterdir()]


@needs_onnx
def test_a_damaged_folder_is_refused(tiny, tmp_path):
    _, folder = tiny
    settings = load_json(folder / "model.json")
    for name, value in (("other", {"format": 9}), ("no-files", settings)):
        save_json(tmp_path / name / "model.json", value)
        with pytest.raises(UserError, match="export"):
            ExportedModel(tmp_path / name)
    with pytest.raises(UserError):
        ExportedModel(tmp_path / "nothing")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["critters-23"], "critters-32"),
        (["critter-classifier"], "critters-classifier"),
        ([""], "MODEL is empty"),
        (["critters-32", "--output", ""], "--output is empty"),
        (["critters-32", "--outptu", "x"], "did you mean '--output'"),
        ([], "no MODEL"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_check_packages", lambda *_: None)
    assert cli.main(["export", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert not [*tmp_path.iterdir()]


def test_a_missing_package_is_named_with_its_extra(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert cli.main(["export", "critters-32"]) == 2
    assert "pip install 't2i-tutorial[export]'" in capsys.readouterr().err


# ---- the controls in a notebook


@pytest.fixture
def play():
    return playground.Playground()


def pictures(shown):
    "The images of what a widget shows, as pixels (h, w, 3)."
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', shown.value)
    return [np.asarray(Image.open(BytesIO(b64decode(f)))).astype(int) for f in found]


def drawn(play, name="critters-32"):
    "The image on a model's card, as pixels."
    return pictures(play.cards[name].children[0])[0]


def close(a, b):
    "Whether two images differ by rounding at most."
    return np.abs(a - b).max() <= 1


def as_pixels(image):
    "A model's image as `pictures` gives it."
    return np.asarray(to_pil(image)).astype(int)


def test_show_is_the_playground_and_draws_with_both_models():
    view = playground.show()
    prompt, model = view.children[0], view.children[2]
    draw, bar = view.children[5].children
    assert prompt.value == PROMPT and model.value == playground.Playground.ALL
    draw.click()
    assert bar.value == bar.max == 21 and not draw.disabled
    assert len(view.children[7].children) == 2


@pytest.mark.parametrize(
    "wrong, words",
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("x" * 1001, "1001 characters"),
        ("\ud800 cat", "retype it"),
    ],
)
def test_a_prompt_that_cannot_be_drawn_is_one_line(play, wrong, words):
    play.prompt.value = wrong
    play.draw_button.click()
    assert words in play.message.value and "\n" not in play.message.value
    assert not play.results.children and not play.draw_button.disabled


@pytest.mark.parametrize("odd", ["x" * 500, "a red cat 🐉🔥", "🐉", "<b>wyvern</b>"])
def test_an_odd_prompt_is_drawn_and_what_is_unknown_is_said(play, odd):
    play.prompt.value, play.num_steps.value = odd, 1
    play.draw_button.click()
    assert len(play.results.children) == 2
    said = play.message.value
    assert "\n" not in said and "<b>" not in said
    assert ("not trained on" in said) == ("x" in odd or "wyvern" in odd)
    assert ("tokens are read" in said) == (len(odd) > 400)
    assert "<b>" not in play.cards["critters-32"].children[0].value


def test_a_model_that_is_not_there_is_one_line():
    play = playground.Playground(["critters-23"])
    assert "critters-32" in play.message.value
    play.message.value = ""
    play.draw_button.click()
    assert "critters-32" in play.message.value and not play.results.children
    with pytest.raises(UserError, match="models is empty"):
        playground.Playground([])


def test_without_the_classifier_the_image_is_shown_all_the_same(play, monkeypatch):
    def missing():
        raise UserError("no classifier here; train one")

    monkeypatch.setattr(AttributeClassifier, "from_pretrained", missing)
    play.model.value = "critters-32-gigagan"
    play.draw_button.click()
    card = play.cards["critters-32-gigagan"].children[0]
    assert "no classifier here" in card.value and pictures(card)


def test_the_lists_write_the_prompt_and_follow_it(play):
    lists = play.attributes
    assert lists["species"].value == "dragon" and lists["eye_colour"].value == "green"
    lists["species"].value = "owl"
    assert play.prompt.value == "a blue and red owl with green eyes"
    lists["action"].value, lists["facing"].value = "sleeping", "left"
    lists["size"].value, lists["second_colour"].value = "small", ""
    expected = "a small blue owl with green eyes, sleeping, facing left"
    assert play.prompt.value == expected
    play.prompt.value = "a fluffy red cat, leaping 🐈"
    stated = {k: v.value for k, v in lists.items() if v.value}
    assert stated == {"species": "cat", "body_colour": "red", "action": "jumping"}
    assert play.prompt.value == "a fluffy red cat, leaping 🐈"


def test_any_choice_of_attributes_is_read_back():
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = {k: v[rng.integers(len(v))] for k, v in critters.ATTRIBUTES.items()}
        kept = {k: v for k, v in values.items() if rng.random() < 0.6}
        kept["species"] = values["species"]
        if "body_colour" not in kept:
            kept.pop("second_colour", None)  # one colour alone is the body's
        written = playground.write_prompt(kept)
        assert playground.stated_attributes(written) == kept, written
        assert critters.parse_caption(written) == kept  # the grammar's own words


def test_an_unknown_word_is_named_with_near_ones_to_press(play):
    play.prompt.value = "a Dragn and a dragn-like owl"
    label, *buttons = play.unknown.children
    assert "dragn, dragn-like" in label.value
    next(b for b in buttons if b.description == "dragn → dragon").click()
    assert play.prompt.value == "a dragon and a dragn-like owl"
    play.prompt.value = "a dragon"
    assert not play.unknown.children


def test_an_imagens_steps_end_in_its_image_and_can_be_gone_back_to(play, models):
    play.model.value, play.num_steps.value = "critters-32", 6
    play.draw_button.click()
    sampled = models["critters-32"].sample([PROMPT], guidance_scale=2.0, num_steps=6)
    assert close(drawn(play), as_pixels(sampled[0]))
    assert play.step.value == play.step.max == 6 == play.bar.value
    noisy, clean, *maps = pictures(play.step_view)
    assert (noisy == drawn(play)).all() and (clean == drawn(play)).all()
    assert len(maps) == len(PROMPT.split())
    assert all(m.min() == 0 and m.max() == 255 for m in maps)
    assert ">dragon</figcaption>" in play.step_view.value
    play.step.value = 1
    first_noisy, first_clean, *first_maps = pictures(play.step_view)
    noise = randn_per_prompt(prompt_generators([PROMPT], 0), (3, 32, 32))[0]
    error = np.abs(first_noisy - as_pixels(noise.clamp(-1, 1))).mean()
    assert error < np.abs(first_noisy - noisy).mean()
    assert np.abs(first_clean - clean).mean() > 1
    assert any((a != b).any() for a, b in zip(maps, first_maps, strict=True))
    play.num_steps.value = 3  # fewer than before
    play.draw_button.click()
    assert play.step.max == 3 and len(play.steps) == 3


def test_each_word_has_one_map_however_many_tokens_it_has(models):
    tokenizer = models["critters-32"].encoder.tokenizer
    prompt = "a purpelish 🐉🔥 dragon, asleep"
    n = len(tokenizer.tokens(prompt))
    maps = torch.rand(n + 1, 4, 4)
    words = playground.word_maps(maps, prompt, tokenizer)
    assert n > len(words) and [w for w, _ in words] == prompt.split()
    assert all(m.min() == -1 and m.max() == 1 for _, m in words)
    cut = playground.word_maps(maps[:4], prompt, tokenizer)
    assert 0 < len(cut) <= 3


def test_without_guidance_no_word_is_used(play):
    play.model.value, play.num_steps.value, play.scale.value = "critters-32", 2, 0
    play.draw_button.click()
    assert len(pictures(play.step_view)) == 2


def test_the_verdict_is_the_classifiers(play, models):
    play.model.value, play.num_steps.value = "critters-32", 8
    play.draw_button.click()
    shown = html.unescape(play.cards["critters-32"].children[0].value)
    image = models["critters-32"].sample([PROMPT], guidance_scale=2.0, num_steps=8)
    found = predict_attributes(AttributeClassifier.from_pretrained(), image)
    right, stated = 0, critters.parse_caption(PROMPT)
    for key, values in critters.ATTRIBUTES.items():
        value = values[found[key][0]]
        line = re.search(rf"^.*{key.replace('_', ' ')} .*$", shown, re.M)[0]
        assert value in line
        assert ("as asked" in line) == (stated.get(key) == value)
        right += stated.get(key) == value
    assert f"finds {right} of {len(stated)} stated" in shown


def test_the_latent_sliders_start_at_the_prompts_image(play, models):
    name = "critters-32-gigagan"
    play.model.value, play.psi.value = name, 0.8
    play.draw_button.click()
    expected = models[name].sample([PROMPT], truncation_psi=0.8)[0]
    assert close(drawn(play, name), as_pixels(expected))
    [start] = pictures(play.moved_view)
    assert close(start, drawn(play, name))
    for slider in (play.first, play.second):
        slider.value = 2
        [moved] = pictures(play.moved_view)
        assert np.abs(moved - start).mean() > 1
        slider.value = 0
        assert (pictures(play.moved_view)[0] == start).all()
    play.first.value = -1
    play.draw_button.click()  # a new drawing is a new start
    assert play.first.value == 0 and (pictures(play.moved_view)[0] == start).all()


def test_the_walk_ends_at_the_other_prompt_with_the_same_latent(
    play, models, free_shapes
):
    gan = models["critters-32-gigagan"]
    play.model.value = "critters-32-gigagan"
    play.draw_button.click()
    [start] = pictures(play.moved_view)
    play.mix.value = 0.5
    [middle] = pictures(play.moved_view)
    play.mix.value = 1
    [end] = pictures(play.moved_view)
    z = randn_per_prompt(prompt_generators([PROMPT], 0), (16,))
    with torch.no_grad():
        expected = gan.generator(z, gan.encode_prompts([play.target.value]))[-1][0]
    assert close(end, as_pixels(expected.clamp(-1, 1)))
    assert min(np.abs(a - b).mean() for a, b in [(start, middle), (middle, end)]) > 1
    play.target.value = ""
    assert "prompt is empty" in play.message.value
    play.mix.value = 0
    assert (pictures(play.moved_view)[0] == start).all()


def test_the_line_of_python_makes_the_same_image(play):
    play.prompt.value, play.seed.value, play.num_steps.value = "a red 'cat'", 7, 3
    play.sampler.value, play.psi.value = "ddpm", 0.5
    play.draw_button.click()
    for name, card in play.cards.items():
        made = {}
        exec(play.drawn[name]["python"], made)
        assert close(drawn(play, name), as_pixels(made["image"].cpu()))
        assert play.drawn[name]["python"] in html.unescape(card.children[0].value)


def test_an_image_is_saved_and_a_folder_that_refuses_is_one_line(
    play, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    play.model.value, name = "critters-32-gigagan", "critters-32-gigagan"
    play.prompt.value, play.seed.value = "A red cat / 🐉 ../x", 3
    play.draw_button.click()
    play.cards[name].children[1].click()
    [path] = tmp_path.iterdir()
    assert path.name == "a-red-cat-x-critters-32-gigagan-seed3.png"
    assert path.name in play.message.value
    with Image.open(path) as saved:
        assert saved.size == (256, 256)
        assert saved.text["python"] == play.drawn[name]["python"]
        small = np.asarray(saved).astype(int)[::8, ::8]
    assert (small == drawn(play, name)).all()

    def full(*_, **__):
        raise UserError("cannot write 'x.png': no space left")

    monkeypatch.setattr(playground, "save_annotated_png", full)
    play.cards[name].children[1].click()
    assert "no space left" in play.message.value
