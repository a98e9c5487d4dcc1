"""Chapter 15: prompts and noise; finding, saving, loading and sharing a model."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from einops import rearrange
from torch import nn

from t2i_tutorial import core
from t2i_tutorial import hub as M
from t2i_tutorial.core import (
    UserError,
    load_json,
    load_tensors,
    save_json,
    save_tensors,
    seed_everything,
    seeded_generator,
)
from t2i_tutorial.data import clean_caption
from t2i_tutorial.diffusion.imagen import IMAGEN_PRESETS, Imagen
from t2i_tutorial.diffusion.samplers import sampling_timesteps
from t2i_tutorial.evaluation.classifier import AttributeClassifier
from t2i_tutorial.experiments import critters_dataset
from t2i_tutorial.nano import load_nano

PROMPTS = [
    "a blue and red dragon",
    "a red cat, sleeping",
    "a red cat, sleeping",
    "a green owl",
]
LONG = "a small blue and red dragon with green eyes, breathing fire, facing left"


@dataclass(frozen=True)
class ToyConfig:
    size: int = 8
    text_encoder: str = "critters-clip"


class Toy(M.TextToImage):
    model_type, config_class = "toy", ToyConfig

    def __init__(self, config=ToyConfig(), encoder=None):
        super().__init__(config, encoder)
        self.colour = nn.Linear(self.encoder.dim, 3)
        self.register_buffer("count", torch.tensor(70_000))

    @torch.no_grad()
    def sample(self, prompts, seed=0):
        prompts = self.validate_prompts(prompts)
        noise = M.randn_per_prompt(
            M.prompt_generators(prompts, seed),
            (3, self.config.size, self.config.size),
            self.device,
        )
        return (
            rearrange(
                self.colour(self.encode_prompts(prompts).pooled), "b c -> b c 1 1"
            )
            + noise
        )


@pytest.fixture(scope="module")
def toy():
    torch.manual_seed(0)
    return Toy()


@pytest.fixture(scope="module")
def imagen():
    "The tiny preset with random weights, so that the text and every layer matter."
    torch.manual_seed(0)
    model = Imagen(IMAGEN_PRESETS["tiny"].model_config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


@pytest.fixture
def folder(toy, tmp_path):
    return toy.save_pretrained(tmp_path / "toy")


class PretendHub:
    "Stands in for huggingface_hub.HfApi and notes what it is handed."

    files: dict[str, bytes] = {}

    def __init__(self, token=None):
        pass

    def create_repo(self, repo_id, **_):
        self.repo_id = repo_id if "/" in repo_id else f"me/{repo_id}"
        return self

    def upload_folder(self, folder_path, repo_id, **_):
        assert repo_id == self.repo_id
        PretendHub.files = {
            str(f.relative_to(folder_path)): f.read_bytes()
            for f in Path(folder_path).rglob("*")
            if f.is_file()
        }
        return f"commit to {self.repo_id}"


# ---- prompts and noise


@pytest.mark.parametrize(
    "prompts, message",
    [
        ("a red cat", "give a list of prompts"),
        ([], "the list is empty"),
        ([""], "prompt is empty"),
        (["a cat", " \n"], "prompt is empty"),
        (["x" * 10_000], "has 10000 characters, at most 1000"),
        ([3], "must be a text, not int"),
        (["a red \udcff cat"], "holds a byte that is not UTF-8"),
    ],
)
def test_bad_prompts_get_one_line(untyped, toy, imagen, prompts, message):
    for ask in (M.check_prompts, toy.sample, imagen.sample):
        with pytest.raises(UserError, match=message) as e:
            ask(prompts)
        assert "\n" not in str(e.value) and len(str(e.value)) < 200


def test_prompts_are_cleaned_as_captions_are():
    "Row F1: one cleaning for both."
    prompts = (" a  red\u00a0cat\t", "ein Drache 龍", "\ufeffa cat ,\ncafe\u0301")
    assert M.check_prompts(prompts) == ["a red cat", "ein Drache 龍", "a cat , café"]
    assert M.check_prompts(prompts) == [clean_caption(p) for p in prompts]
    assert len(M.check_prompts(["x" * 1000 + " " * 9])[0]) == 1000
    with pytest.raises(UserError, match="prompt is empty"):
        M.check_prompts(["\u200b\ufeff \u2028"])


@pytest.mark.parametrize("name", ["critters-32", "critters-64"])
def test_a_prompt_gives_the_same_image_however_it_is_spaced(name):
    "Row F1: bit for bit, on both bundled models; the noise is keyed by clean prompts."
    model = M.load_model(name, "cpu")
    options = {"num_steps": 1} if model.model_type == "imagen" else {}
    prompt = "a blue and red dragon with green eyes, breathing fire"
    want = model.sample([prompt], **options)
    odd = [
        prompt.replace(", ", ",  "),
        prompt.replace(", ", ",\n"),
        prompt.replace(" ", "\u00a0"),
        "\ufeff" + prompt.replace("eyes", "ey\u200bes"),
    ]
    for text in odd:
        assert torch.equal(model.sample([text], **options), want), ascii(text)
    both = model.sample([prompt, odd[0]], **options)
    twice = model.sample([prompt, prompt], **options)
    assert torch.equal(both, twice) and not torch.equal(both[0], both[1])


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.0, "0", None])
def test_bad_seeds_get_one_line(untyped, seed):
    with pytest.raises(UserError, match="seed must be a whole number from 0"):
        M.prompt_generators(["a"], seed)


def test_a_generator_depends_on_seed_prompt_and_occurrence_only():
    def noise(*prompts, seed=0):
        return M.randn_per_prompt(M.prompt_generators(prompts, seed), (4,))

    a = noise("x", "y", "x")
    assert (
        torch.equal(a[0], noise("x")[0])
        and torch.equal(a[2], noise("z", "x", "x", "y")[2])
        and torch.equal(a[1], noise("y")[0])
    )
    rows = [*a, *noise("x", "y", seed=1)]
    assert len({tuple(r.tolist()) for r in rows}) == 5
    assert torch.equal(
        a[2], torch.randn(4, generator=seeded_generator(0, "prompt", "x", 2))
    )  # what recorded images rest on


def test_noise_is_standard_normal_and_a_second_call_goes_on():
    generators = M.prompt_generators([str(i) for i in range(50)])
    a, b = (
        M.randn_per_prompt(generators, (3, 16, 16)),
        M.randn_per_prompt(generators, (3, 16, 16)),
    )
    assert not torch.equal(a, b) and abs(a.mean()) < 0.02 and abs(a.std() - 1) < 0.02
    assert abs((a * b).mean()) < 0.02


def test_shared_noise_depends_on_seed_and_occurrence_only():
    "A changed comma keeps the noise; the second image of a prompt still gets its own."

    def noise(*prompts, seed=0):
        generators = M.prompt_generators(prompts, seed, share_noise=True)
        return M.randn_per_prompt(generators, (4,))

    a = noise("a red cat", "a red, cat", "a red cat")
    assert torch.equal(a[0], a[1]) and not torch.equal(a[0], a[2])
    assert torch.equal(a[2], noise("x", "x")[1])
    assert not torch.equal(a[0], noise("x", seed=1)[0])


# ---- sixteen bits


def test_halving_never_makes_infinite():
    w = {
        "a": torch.tensor([0.1, 65504.0]),
        "b": torch.tensor([1e5]),
        "c": torch.tensor([70_000]),
        "d": torch.tensor([True]),
        "e": torch.ones(2, dtype=torch.bfloat16),
    }
    n = M.cast_to_half(w)
    assert [n[k].dtype for k in w] == [
        torch.float16,
        torch.float32,
        torch.int64,
        torch.bool,
        torch.float16,
    ]
    assert (
        all(torch.isfinite(v.float()).all() for v in n.values())
        and n["c"].item() == 70_000
    )
    assert abs(n["a"][0].item() - 0.1) / 0.1 <= 2**-11


# ---- encoders and names


def test_encoders_by_name_and_by_folder(tmp_path):
    ours = M.load_text_encoder("critters-clip")
    saved = M.CLIP.from_pretrained("critters-clip").save_pretrained(tmp_path / "mine")
    mine = M.load_text_encoder(str(saved))
    assert isinstance(mine, M.CLIPTextEncoder) and torch.equal(
        mine.encode([LONG]).pooled, ours.encode([LONG]).pooled
    )
    assert M.load_text_encoder(f"{saved}+token-embeddings").dim == 2 * ours.dim
    with pytest.raises(UserError, match="'google-t5/t5-small' is none; leave it out"):
        M.load_text_encoder("google-t5/t5-small+token-embeddings")


@pytest.mark.parametrize("content", [None, "[]", '{"model_type": "bert"}'])
def test_other_folders_are_no_contrastive_model(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text("{}")
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError):
        M.load_text_encoder(str(tmp_path))


def test_unknown_encoder_offline(monkeypatch):
    from t2i_tutorial import text

    monkeypatch.setattr(text, "_online", lambda: False)
    with pytest.raises(UserError, match="hub cannot be reached"):
        M.load_text_encoder("owner/no-such-encoder-of-ours")


def test_bundled_models_are_whole_and_of_a_type(folder, tmp_path, monkeypatch):
    assert not {"critters-clip", "critters-clip-score", "critters-classifier"} & set(
        M.bundled_models()
    )
    for name, path in M.bundled_models().items():
        assert load_json(path / "config.json")["model_type"] and not M._missing(path), (
            name
        )
    monkeypatch.setattr(M, "BUNDLED_DIR", tmp_path)
    (tmp_path / "half").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "half")
    assert M.bundled_models() == {"toy": folder}
    assert M.resolve_model("toy") == folder and torch.equal(
        Toy.from_pretrained("toy", "cpu").count, torch.tensor(70_000)
    )
    with pytest.raises(UserError, match=r"unknown model 'toi'; did you mean 'toy'\?"):
        M.resolve_model("toi")


@pytest.mark.parametrize(
    "name",
    [
        "no-such-model",
        "./no/such",
        "a/b/c",
        "~/no-such-folder/x",
        "/no/such",
        "owner/",
        "/x",
    ],
)
def test_unknown_names_get_one_line(name, monkeypatch):
    monkeypatch.setattr(M, "_download", lambda r: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="unknown model") as e:
        M.resolve_model(name)
    assert "\n" not in str(e.value)


# ---- a folder and what can be wrong with it


def test_saved_and_loaded_model_generates_the_same(toy, folder):
    a, b = (Toy.from_pretrained(folder, "cpu") for _ in range(2))
    assert not a.training and torch.equal(a.sample(PROMPTS), b.sample(PROMPTS))
    assert (a.sample(PROMPTS) - toy.sample(PROMPTS)).abs().max() < 0.01
    assert a.config == toy.config and all(
        p.dtype == torch.float32 for p in a.parameters()
    )


def test_folder_holds_two_files_no_pickle_and_no_encoder(toy, folder):
    assert {f.name for f in folder.iterdir()} == {"config.json", "model.safetensors"}
    weights, _ = load_tensors(folder / "model.safetensors")
    assert (
        set(weights) == {"colour.weight", "colour.bias", "count"}
        and weights["colour.weight"].dtype == torch.float16
    )
    assert load_json(folder / "config.json") == {
        "model_type": "toy",
        "format": M.MODEL_VERSION,
        "size": 8,
        "text_encoder": "critters-clip",
    }
    assert (
        not any("encoder" in n for n, _ in toy.named_modules())
        and len(list(toy.parameters())) == 2
    )


def test_too_large_a_weight_survives(toy, tmp_path):
    torch.manual_seed(0)
    big = Toy(encoder=toy.encoder)
    with torch.no_grad():
        big.colour.bias[0] = 1e6
    loaded = Toy.from_pretrained(big.save_pretrained(tmp_path), "cpu")
    assert (
        loaded.colour.bias[0] == 1e6 and loaded.sample(["a red cat"]).isfinite().all()
    )


def _cut(f, n):
    w = f / "model.safetensors"
    w.write_bytes(w.read_bytes()[:n])


def _config(f, **change):
    save_json(f / "config.json", load_json(f / "config.json") | change)


FAULTS = {
    "weights truncated": (lambda f: _cut(f, -40), "no whole safetensors file"),
    "weights cut in the header": (lambda f: _cut(f, 20), "no whole safetensors file"),
    "weights empty": (lambda f: _cut(f, 0), "no whole safetensors file"),
    "weights missing": (
        lambda f: (f / "model.safetensors").unlink(),
        "holds no model.safetensors",
    ),
    "weights of other shapes": (
        lambda f: save_tensors(
            f / "model.safetensors", {"colour.weight": torch.zeros(3, 5)}
        ),
        "do not fit its config",
    ),
    "config missing": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config no JSON": (
        lambda f: (f / "config.json").write_text("{"),
        "not valid JSON, line 1",
    ),
    "config no object": (
        lambda f: (f / "config.json").write_text("[1]"),
        "holds no toy model",
    ),
    "config of another format": (
        lambda f: _config(f, format=3),
        "has format 3, this version reads 2",
    ),
    "config of no format": (lambda f: _config(f, format=None), "has format None"),
    "config with an unknown setting": (
        lambda f: _config(f, sparkle=1),
        r"of another version \('sparkle'\)",
    ),
    "config lacking a setting": (
        lambda f: save_json(
            f / "config.json",
            {"model_type": "toy", "format": 2, "text_encoder": "critters-clip"},
        ),
        r"another version \('size'\)",
    ),
    "config of another model type": (
        lambda f: _config(f, model_type="imagen"),
        r"holds no toy model \(its model_type is 'imagen'\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_folder_gets_one_line(folder, fault):
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(UserError, match=message) as e:
        Toy.from_pretrained(folder, "cpu")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("where", ["file", "beside", "in place"])
def test_a_pickle_is_refused_and_not_run(folder, tmp_path, where):
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    if where == "in place":
        torch.save({"w": Evil()}, path := folder / "model.safetensors")
        target = folder
    else:
        torch.save({"w": Evil()}, path := folder / "pytorch_model.bin")
        target = path if where == "file" else folder
        (folder / "model.safetensors").unlink()
    with pytest.raises(
        UserError,
        match="no whole safetensors" if where == "in place" else "is a pickle",
    ):
        Toy.from_pretrained(target, "cpu")
    assert not mark.exists()
    torch.load(shutil.copy(path, tmp_path / "copy.pt"), weights_only=False)
    assert mark.exists()  # it would have


def test_a_file_instead_of_a_folder(folder):
    with pytest.raises(UserError, match="is a file; name the folder"):
        Toy.from_pretrained(folder / "model.safetensors")


def test_saving_onto_a_file_is_one_line(toy, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        toy.save_pretrained(tmp_path / "taken")


# ---- what a hostile folder can ask for

NESTED = b"[" + b"[]," * 400_000 + b"[]]"
HOSTILE_CONFIGS = {  # path -> a value, and what is said about it
    "size": (10**9, "size must be a whole number of pixels from 16 to 512"),
    "size ": (True, "'size' is True, which is no int"),
    "unet.channels": ([10**9, 16], "cannot be built"),
    "unet.channels ": ([2**70, 16], "cannot be built"),
    "unet.channels  ": (["16", 32], r"which is no Sequence\[int\]"),
    "unet.cond_dim": (10**8, r"do not fit its config.json: 'unet."),
    "unet.heads": (-4, "heads must be at least 1"),
    "unet": (None, "'unet' is None, which is no UNetConfig"),
    "num_timesteps": (10**9, "num_timesteps must be a whole number from 2 to"),
    "cond_drop_prob": (float("nan"), "'cond_drop_prob' is nan, which is no float"),
    "guidance_scale": ("2", "'guidance_scale' is '2', which is no float"),
    "text_encoder": (7, "'text_encoder' is 7, which is no str"),
}
HOSTILE_FILES = {
    "a header of 2^63 bytes": (b"\0" * 7 + b"\x80{}", "no whole safetensors file"),
    "a shape of 10^12": (
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}',
        "no whole safetensors file",
    ),
    "a negative shape": (
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}',
        "no whole safetensors file",
    ),
    "a deep header": (b"[" * 100_000, "no whole safetensors file"),
}


def put(folder, path, value):
    "Change one value in config.json, whether or not JSON should hold it."
    saved = load_json(folder / "config.json")
    *parents, name = path.strip().split(".")
    inner = saved
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    (folder / "config.json").write_text(json.dumps(saved))


@pytest.fixture
def no_memory(monkeypatch):
    "The largest tensor that may be made has a million numbers."

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.device.type != "meta":
                assert made.numel() < 10**6, function
            return made

    with Watch():
        yield


def said(load, folder) -> str:
    with pytest.raises(UserError) as e:
        load(folder)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    return str(e.value)


@pytest.mark.parametrize("path", HOSTILE_CONFIGS)
def test_a_hostile_config_is_one_line_and_no_memory(imagen, tmp_path, path, no_memory):
    folder = imagen.save_pretrained(tmp_path / "imagen")
    value, message = HOSTILE_CONFIGS[path]
    put(folder, path, value)
    assert re.search(message, said(M.load_model, folder))


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("generator.mapping_layers", 10**9, "mapping_layers must be a whole number"),
        ("generator.z_dim", 10**10, "do not fit its config.json: 'generator.mapping"),
        ("r1_gamma", "x", "'r1_gamma' is 'x', which is no float"),
    ],
)
def test_a_hostile_config_of_a_gan(tmp_path, path, value, message, no_memory):
    folder = shutil.copytree(M.BUNDLED_DIR / "critters-32-gigagan", tmp_path / "gan")
    put(folder, path, value)
    assert message in said(M.load_model, folder)


def test_a_billion_layers_are_not_counted_to_the_end(imagen, tmp_path):
    folder = imagen.save_pretrained(tmp_path / "imagen")
    put(folder, "unet.num_res_blocks", [10**9, 1])
    assert "it asks for more than 2,000 tensors" in said(M.load_model, folder)


@pytest.mark.parametrize(
    "content, message",
    [
        (
            b'{"model_type": "imagen", "model_type": "toy"}',
            "'model_type' is there twice",
        ),
        (b"[" * 100_000, "nested too deeply"),
        (NESTED, "more than 1 MB"),
        (b"\xff\xfe{}", "not text in UTF-8"),
        (b'{"size": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
    ids=["twice", "deep", "long", "not UTF-8", "digits"],
)
def test_a_config_that_is_no_json_of_ours(folder, content, message):
    (folder / "config.json").write_bytes(content)
    for load in (M.load_model, Toy.from_pretrained):
        assert message in said(load, folder)


@pytest.mark.parametrize("kind", HOSTILE_FILES)
def test_hostile_weights_are_one_line(folder, kind):
    header, message = HOSTILE_FILES[kind]
    length = b"" if header.startswith(b"\0") else len(header).to_bytes(8, "little")
    (folder / "model.safetensors").write_bytes(length + header)
    assert message in said(Toy.from_pretrained, folder)


def spoil(tensors, how):
    "One fault in named tensors; returns the name and what is said about it."
    name = next(k for k, v in tensors.items() if v.is_floating_point())
    if how == "missing":
        del tensors[name]
        return name, "is in one of the two only"
    if how == "whole numbers":
        tensors[name] = tensors[name].long()
        return name, "holds I64, not torch.float32"
    tensors[name] = torch.full_like(tensors[name], float(how))
    return name, "is not finite"


LOADERS = {
    "critters-32": Imagen.from_pretrained,
    "critters-32-gigagan": M.load_model,
    "critters-clip": M.CLIP.from_pretrained,
    "critters-classifier": AttributeClassifier.from_pretrained,
    "nano": lambda folder: load_nano(folder / "model.safetensors"),
}


@pytest.mark.parametrize("how", ["nan", "inf", "missing", "whole numbers"])
@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_names_the_weight_that_is_wrong(tmp_path, name, how):
    folder = shutil.copytree(M.BUNDLED_DIR / name, tmp_path / name)
    tensors, config = load_tensors(folder / "model.safetensors")
    weight, message = spoil(tensors, how)
    save_tensors(folder / "model.safetensors", tensors, config)
    line = said(LOADERS[name], folder)
    assert repr(weight) in line and message in line


@pytest.mark.parametrize(
    "change", [{"channels": 10**9}, {"channels": "x"}, {"wings": 1}, {"channels": True}]
)
def test_hostile_settings_of_the_nano_model(tmp_path, change, no_memory):
    path = M.BUNDLED_DIR / "nano" / "model.safetensors"
    tensors, config = load_tensors(path)
    save_tensors(tmp_path / "n.safetensors", tensors, config | change)
    said(load_nano, tmp_path / "n.safetensors")


def test_a_text_encoder_that_its_tokenizer_does_not_fit(tmp_path):
    "Tokens that have no vector, padding to 10^9, a pattern that never ends."
    folder = shutil.copytree(M.BUNDLED_DIR / "critters-clip", tmp_path / "clip")
    plain = load_json(folder / "tokenizer.json")
    bpe = plain["bpe"]
    pattern = {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": ""}
    vocabulary = bpe["model"]["vocab"]
    far = bpe["model"] | {"vocab": vocabulary | {list(vocabulary)[-1]: 10**6}}
    hostile = {
        "Replace": plain | {"bpe": bpe | {"normalizer": pattern}},
        "not numbered from 0": plain | {"bpe": bpe | {"model": far}},
        "max_length=1000000": plain | {"max_length": 10**6},
        "words are no texts": plain | {"words": [3]},
        "'list' object": [],
    }
    for message, content in hostile.items():
        save_json(folder / "tokenizer.json", content)
        line = said(M.load_text_encoder, str(folder))
        assert message in line or isinstance(content, list), line
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_id": 0}
    padding |= {"pad_to_multiple_of": None, "pad_type_id": 0, "pad_token": "<pad>"}
    save_json(folder / "tokenizer.json", plain | {"bpe": bpe | {"padding": padding}})
    ours = M.load_text_encoder("critters-clip").encode([LONG])
    assert torch.equal(
        M.load_text_encoder(str(folder)).encode([LONG]).pooled, ours.pooled
    )


def test_a_folder_instead_of_a_file_of_weights(tmp_path):
    "Row F11: safetensors calls whatever it cannot open missing."
    with pytest.raises(UserError, match="cannot read .*: it is a folder"):
        load_tensors(tmp_path)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_whole_numbers_of_numpy_and_torch_are_seeds_and_counts(untyped, toy, kind):
    three = kind(3)
    assert torch.equal(toy.sample(PROMPTS, seed=three), toy.sample(PROMPTS, seed=3))
    assert toy.validate_prompts(PROMPTS, kind(2)) == PROMPTS
    assert seed_everything(three).initial_seed() == 3
    a, b = (seeded_generator(s, "x").initial_seed() for s in (three, 3))
    assert a == b and sampling_timesteps(1000, three) == sampling_timesteps(1000, 3)
    for wrong in (
        np.bool_(True),
        torch.tensor(True),
        np.float64(3),
        torch.tensor([1, 2]),
    ):
        with pytest.raises(UserError, match="seed must be a whole number"):
            seed_everything(wrong)


def test_shared_noise_is_an_option_of_both_models(imagen):
    "Fix the seed, edit the prompt: without it a changed comma changes the noise."
    torch.manual_seed(0)
    gan = M.load_model("critters-32-gigagan", "cpu")
    for model, options in (
        (imagen, {"guidance_scale": 0.0, "num_steps": 2}),
        (gan, {}),
    ):
        two = ["a red cat, sleeping", "a red cat sleeping"]
        own, shared = (
            model.sample(two, share_noise=share, **options) for share in (False, True)
        )
        apart = [(x[0] - x[1]).abs().mean() for x in (own, shared)]
        assert apart[1] < apart[0] * (0.6 if model is imagen else 1)


def test_the_images_that_a_model_was_trained_on(imagen, tmp_path):
    "All that its record names, rendered again; other data are not made up."
    folder = imagen.save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match="cannot read .*run.json"):
        M.recorded_training_images(folder)
    run = {"command": "t2i train imagen --preset tiny", "preset": {"num_images": 40}}
    run["preset"]["model_config"] = {"size": 16}
    data = critters_dataset(40, 16)
    run["captions_digest"] = M.captions_digest(data)
    save_json(folder / "run.json", run)
    images = M.recorded_training_images(folder)
    assert torch.equal(images, data.cache)
    for digest in (None, M.captions_digest(critters_dataset(40, 16, seed=1))):
        save_json(folder / "run.json", run | {"captions_digest": digest})
        with pytest.raises(UserError, match="the creatures of today.s code"):
            M.recorded_training_images(folder)
    for other in (None, "t2i train imagen --preset tiny --data photos"):
        save_json(folder / "run.json", run | {"command": other})
        with pytest.raises(UserError, match="was not trained on our creatures"):
            M.recorded_training_images(folder)
    save_json(folder / "run.json", {"preset": []})
    with pytest.raises(UserError, match="no record of a training"):
        M.recorded_training_images(folder)


# ---- the hub, without one


def test_push_hands_over_no_pickle_and_no_encoder(toy, imagen, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", PretendHub)
    for model in (toy, imagen):
        assert model.push_to_hub("owner/name") == "commit to owner/name"
        assert set(PretendHub.files) == {"config.json", "model.safetensors"}
        (tmp_path / "w.safetensors").write_bytes(PretendHub.files["model.safetensors"])
        weights, _ = load_tensors(tmp_path / "w.safetensors")
        assert set(weights) == set(model.state_dict()) and not any(
            k.startswith("encoder") for k in weights
        )


def test_push_fails_in_one_line(toy, monkeypatch):
    class Unreachable(PretendHub):
        def create_repo(self, *_, **__):
            raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.HfApi", Unreachable)
    with pytest.raises(
        UserError, match="cannot push to 'owner/name' .no route to host.*hf auth login"
    ):
        toy.push_to_hub("owner/name")


def test_push_names_the_owner_and_checks_before_it_makes_anything(toy, monkeypatch):
    class Nothing(PretendHub):
        def create_repo(self, *_, **__):
            raise AssertionError("made")

    monkeypatch.setattr("huggingface_hub.HfApi", PretendHub)
    assert toy.push_to_hub("confetti") == "commit to me/confetti"
    monkeypatch.setattr("huggingface_hub.HfApi", Nothing)
    with pytest.raises(UserError, match="no folder 'nowhere' to upload"):
        M.upload_folder("nowhere", "owner/name")
    with pytest.raises(TypeError, match="comit_message"):
        toy.push_to_hub("owner/name", comit_message="")


def test_push_refuses_an_encoder_that_others_lack(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", PretendHub)
    PretendHub.files = {}
    with pytest.raises(UserError, match="which others do not have"):
        Toy(ToyConfig(text_encoder=str(tmp_path)), toy.encoder).push_to_hub(
            "owner/name"
        )
    assert PretendHub.files == {}


def test_a_hub_repository_is_downloaded_once(folder, monkeypatch):
    calls = []

    def snapshot(repository, local_files_only=False, allow_patterns=()):
        calls.append((repository, local_files_only, tuple(allow_patterns)))
        if local_files_only and len(calls) == 1:
            raise FileNotFoundError("not here yet")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(M, "_online", lambda: True)
    a, b = (Toy.from_pretrained("owner/name", "cpu") for _ in range(2))
    assert torch.equal(a.sample(PROMPTS), b.sample(PROMPTS))
    assert [c[:2] for c in calls] == [
        ("owner/name", True),
        ("owner/name", False),
        ("owner/name", True),
    ]
    assert {p for c in calls for p in c[2]} == {
        "*.json",
        "*.safetensors",
    }  # a pickle is not even fetched


def test_half_a_download_is_fetched_again(folder, tmp_path, monkeypatch):
    (half := tmp_path / "half").mkdir()
    shutil.copy(folder / "config.json", half)
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda _, local_files_only=False, **__: str(
            half if local_files_only else folder
        ),
    )
    monkeypatch.setattr(M, "_online", lambda: True)
    assert M.resolve_model("owner/name") == folder


def test_the_hub_offline_or_without_the_model(monkeypatch):
    monkeypatch.setattr(M, "_online", lambda: False)
    with pytest.raises(
        UserError,
        match="'owner/none-of-ours' is neither bundled .*hub cannot be reached",
    ) as e:
        Toy.from_pretrained("owner/none-of-ours")
    assert "\n" not in str(e.value)

    def missing(*_, **__):
        raise RuntimeError("404\nnot found")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    monkeypatch.setattr(M, "_online", lambda: True)
    with pytest.raises(
        UserError,
        match="cannot get 'owner/none-of-ours' from the hub .404 not found.; "
        "check the name",
    ):
        M.resolve_model("owner/none-of-ours")


def test_import_touches_no_network():
    "Fault IP-1, for this module and the ones above it."
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise RuntimeError('network at import')\n"
        "socket.socket.connect = socket.create_connection = refuse\n"
        "socket.getaddrinfo = refuse\n"
        "import sys, t2i_tutorial.hub, t2i_tutorial.diffusion.imagen\n"
        "heavy = ('transformers', 'datasets', 'lpips', 'huggingface_hub')\n"
        "heavy += ('accelerate', 'diffusers', 'matplotlib')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr


def test_loading_and_sampling_import_no_compiler():
    "PyTorch's compiler takes seconds to import, and arithmetic on `meta` imports it."
    code = (
        "import sys, torch\n"
        "from t2i_tutorial.hub import bundled_models, load_model\n"
        "for name in bundled_models():\n"
        "    model = load_model(name, 'cpu')\n"
        "    if name != 'critters-64-gan-upsampler':\n"
        "        model.sample(['a red cat'])\n"
        "    for module in ('torch._dynamo', 'sympy'):\n"
        "        assert module not in sys.modules, (name, module)\n"
    )
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
        pytest.skip("einops imports the compiler of PyTorch before 2.8 by itself")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_outline_knows_shapes_and_types():
    "Arithmetic that is left out gives what PyTorch's would have given."

    class Computed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            steps = torch.arange(2, 9)
            wave = torch.cos(torch.linspace(0, 1, 7) * 2 - 1).clamp(0, 1).sqrt() ** 2
            self.register_buffer("steps", steps)
            self.register_buffer("halves", steps / 2)
            self.register_buffer("doubled", torch.full((7,), 0.5).double() * steps)
            self.register_buffer("table", 1 - wave[:, None] * torch.randn(3))
            self.register_buffer("short", (wave * 0.5).half().cumprod(0))
            self.register_buffer("noise", torch.normal(torch.zeros(2, 3), 1.0))
            self.register_buffer("product", wave.cumprod(0, dtype=torch.float64))
            self.register_buffer("low", wave.clamp(min=torch.zeros(2, 7)))
            self.register_buffer("counted", torch.arange(start=1, end=5))
            self.register_buffer("powers", 2**wave + 1j)
            self.weight = torch.nn.Parameter(torch.randn(size=(2, 3, 4)) * 0.1)
            torch.nn.init.normal_(self.weight)

            with torch.device("cpu"):  # as a model that is loaded on the way
                inner = torch.nn.Embedding(3, 4)
                assert inner.weight.is_cpu and inner.weight.std() > 0.1
                width = (
                    int(torch.arange(4)[-1]) + 1 + round(torch.randn(9).std().item())
                )
                torch.randn(3)
            assert 4 <= width < 7 and torch.zeros(9, device="cpu").normal_().std() > 0
            self.register_buffer("odd", torch.arange(2, end=5, dtype=None))
            self.register_buffer("step", torch.arange(0, 10, step=3))

    outline, real = core._outline(Computed), Computed().state_dict()
    assert all(v.is_meta for v in outline.values())
    assert {k: (v.shape, v.dtype) for k, v in outline.items()} == {
        k: (v.shape, v.dtype) for k, v in real.items()
    }


# ---- folders of format 1, and a model of whichever type


OLD_CONFIGS = {  # what earlier versions wrote
    "imagen": {"family": "imagen", "format": 1, "size": 16},
    "gigagan": {"family": "gigagan", "format": 1, "size": 16},
    "clip": {"model": "clip", "format": 1, "size": 32},
    "classifier": {"model": "judge", "format": 1, "size": 32},
}


@pytest.mark.parametrize("kind", OLD_CONFIGS)
def test_a_folder_of_format_1_is_refused_in_one_line(folder, tmp_path, kind):
    "Opened by its class, by `load_model`, or as a text encoder."
    from t2i_tutorial.evaluation.classifier import AttributeClassifier
    from t2i_tutorial.gan.gigagan import GigaGAN

    old = shutil.copytree(folder, tmp_path / "old")
    save_json(old / "config.json", OLD_CONFIGS[kind])
    (old / "tokenizer.json").write_text("{}")
    openers = {
        "imagen": [Imagen.from_pretrained, M.load_model],
        "gigagan": [GigaGAN.from_pretrained, M.load_model],
        "clip": [M.CLIP.from_pretrained, M.load_text_encoder, M.load_model],
        "classifier": [AttributeClassifier.from_pretrained, M.load_model],
    }
    for opener in openers[kind]:
        with pytest.raises(UserError, match="format 1, this version reads 2") as e:
            opener(str(old))
        assert "\n" not in str(e.value)


def test_one_function_loads_every_type(imagen, folder, tmp_path):
    types = ["imagen", "gigagan", "cascade", "super-resolution"]
    types += ["gan-cascade", "gan-upsampler"]
    assert list(M.MODEL_CLASSES) == types
    loaded = M.load_model(imagen.save_pretrained(tmp_path / "imagen"), "cpu")
    assert isinstance(loaded, Imagen) and loaded.config == imagen.config
    with pytest.raises(
        UserError, match="holds no imagen or gigagan or .* model .*'toy'"
    ):
        M.load_model(folder)
    for name in ("critters-32-gigagan", "critters-32"):
        model = M.load_model(name, "cpu")
        assert (
            model.model_type
            == load_json(M.resolve_model(name) / "config.json")["model_type"]
        )
    with pytest.raises(UserError, match="did you mean 'critters-64'"):
        M.load_model("criters-64")


# ---- Imagen, which has the same interface


def test_imagen_generates_a_prompt_the_same_in_any_batch(imagen):
    "Up to rounding: a longer prompt in the batch means more padding."
    with pytest.warns(UserWarning, match="'grrreen'"):
        imagen.sample(["a grrreen owl"], num_steps=2)
    whole = imagen.sample([*PROMPTS, LONG], num_steps=3, seed=4)
    assert torch.equal(whole, imagen.sample([*PROMPTS, LONG], num_steps=3, seed=4))
    for batch_size in (1, 2):
        assert torch.allclose(
            whole,
            imagen.sample([*PROMPTS, LONG], num_steps=3, seed=4, batch_size=batch_size),
            atol=1e-4,
        )
    for i in (0, 1, 3, 4):
        assert torch.allclose(
            whole[i],
            imagen.sample([[*PROMPTS, LONG][i]], num_steps=3, seed=4)[0],
            atol=1e-4,
        )
    assert (whole[1] - whole[2]).abs().max() > 0.01  # asked twice: two images
    assert (
        whole - imagen.sample([*PROMPTS, LONG], num_steps=3, seed=5)
    ).abs().max() > 0.01


def test_imagen_saved_and_loaded(imagen, tmp_path):
    folder = imagen.save_pretrained(tmp_path / "imagen")
    loaded = Imagen.from_pretrained(folder, "cpu")
    assert loaded.config == imagen.config and not loaded.training
    assert (
        loaded.sample(PROMPTS[:2], num_steps=3)
        - imagen.sample(PROMPTS[:2], num_steps=3)
    ).abs().max() < 0.05
    with pytest.raises(
        UserError, match="holds no toy model .its model_type is 'imagen'."
    ):
        Toy.from_pretrained(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"unet": {"sparkle": 1}}, "another version .'cha"),
        ({"unet": 3}, "makes no sense"),
        ({"size": 17}, "size must be a multiple"),
        ({"text_encoder": "critters-clap"}, "critters-clap"),
    ],
)
def test_imagen_config_that_makes_no_sense(
    untyped, imagen, tmp_path, change, message, monkeypatch
):
    from t2i_tutorial import text

    monkeypatch.setattr(text, "_online", lambda: False)
    folder = imagen.save_pretrained(tmp_path / "imagen")
    _config(folder, **change)
    with pytest.raises(UserError, match=message) as e:
        Imagen.from_pretrained(folder, "cpu")
    assert "\n" not in str(e.value)


def test_imagen_config_of_another_size_does_not_fit_the_weights(imagen, tmp_path):
    folder = replace(imagen.config, unet=replace(imagen.config.unet, channels=(24, 48)))
    Imagen(folder, imagen.encoder).save_pretrained(tmp_path / "other")
    shutil.copy(
        imagen.save_pretrained(tmp_path / "imagen") / "model.safetensors",
        tmp_path / "other",
    )
    with pytest.raises(UserError, match="do not fit its config.json"):
        Imagen.from_pretrained(tmp_path / "other", "cpu")


WRONG = """
import sys
from t2i_tutorial.core import UserError
from t2i_tutorial.data import clean_caption
from t2i_tutorial.diffusion.imagen import Imagen, imagen_preset
from t2i_tutorial.gan.gigagan import GigaGAN, GIGAGAN_PRESETS
from t2i_tutorial.hub import load_model, load_text_encoder

imagen = Imagen(imagen_preset("tiny").model_config)
gan = GigaGAN(GIGAGAN_PRESETS["tiny"].model_config)
calls = [
    lambda: imagen.sample(None),
    lambda: gan.sample(3),
    lambda: imagen.sample(["a cat"], guidance_scale="x"),
    lambda: imagen.sample(["a cat"], guidance_scale=[1]),
    lambda: imagen.sample(["a cat"], batch_size=0),
    lambda: gan.sample(["a cat"], batch_size=1.5),
    lambda: gan.sample(["a cat"], truncation_psi="x"),
    lambda: load_model(None),
    lambda: Imagen.from_pretrained(3),
    lambda: load_text_encoder(3),
    lambda: imagen.sample(["a cat"], guidance_scale=1e308),
    lambda: imagen.sample(["a cat"], guidance_scale=float("nan")),
    lambda: imagen.sample(["a cat"], guidance_scale=True),
    lambda: imagen.sample(["a cat"], num_steps=0),
    lambda: imagen.sample(["a cat"], num_steps=10**9),
    lambda: imagen.sample(["a cat"], num_steps=2.5),
    lambda: imagen.sample(["a cat"], sampler="euler"),
    lambda: imagen.sample(["a cat"], seed=True),
    lambda: imagen.sample([]),
    lambda: gan.sample(["a cat"], truncation_psi=float("nan")),
    lambda: gan.sample(["a cat"], truncation_psi=True),
    lambda: gan.sample(["a cat"], seed=2**32),
]
for call in calls:
    try:
        call()
    except UserError as e:
        print(e)
"""

WRONG_PARTS = (
    "give a list of prompts, not None",
    "give a list of prompts, not 3",
    "guidance_scale must be from 0 to 1000, not 'x'",
    "guidance_scale must be from 0 to 1000, not [1]",
    "batch_size must be a whole number of at least 1, not 0",
    "batch_size must be a whole number of at least 1, not 1.5",
    "truncation_psi must be from 0 to 1, not 'x'",
    "named by a text or a path, not None",
    "named by a text or a path, not 3",
    "text encoder must be a name, not 3",
    "guidance_scale must be from 0 to 1000, not 1e+308",
    "guidance_scale must be from 0 to 1000, not nan",
    "guidance_scale must be from 0 to 1000, not True",
    "num_steps must be a whole number from 1 to 1000, not 0",
    "num_steps must be a whole number from 1 to 1000, not 1000000000",
    "num_steps must be a whole number from 1 to 1000, not 2.5",
    "unknown sampler 'euler'",
    "seed must be a whole number from 0 to 4294967295, not True",
    "the list is empty",
    "truncation_psi must be from 0 to 1, not nan",
    "truncation_psi must be from 0 to 1, not True",
    "seed must be a whole number from 0 to 4294967295, not 4294967296",
)


def test_arguments_of_a_wrong_type_are_user_errors():
    "In a process of its own: here the annotations are checked, users have no check."
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WRONG], capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(WRONG_PARTS), done.stderr
    for line, part in zip(lines, WRONG_PARTS):
        assert part in line, line
