"""Chapter 15: prompts and noise; finding, saving, loading and sharing a model."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from einops import rearrange
from torch import nn

from t2i_tutorial import hub as M
from t2i_tutorial.core import (
    UserError,
    load_json,
    load_tensors,
    save_json,
    save_tensors,
    seeded_generator,
)
from t2i_tutorial.data import clean_caption
from t2i_tutorial.diffusion.imagen import IMAGEN_PRESETS, Imagen

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
        self.repo_id = repo_id
        return self

    def upload_folder(self, folder_path, **_):
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


# ---- the hub, without one


def test_push_hands_over_no_pickle_and_no_encoder(toy, imagen, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", PretendHub)
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

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Unreachable)
    with pytest.raises(
        UserError, match="cannot push to 'owner/name' .no route to host.*hf auth login"
    ):
        toy.push_to_hub("owner/name")


def test_push_refuses_an_encoder_that_others_lack(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", PretendHub)
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
        "heavy = ('transformers', 'datasets', 'lpips')\n"
        "heavy += ('accelerate', 'diffusers', 'matplotlib')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr


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
    assert set(M.MODEL_CLASSES) == {"imagen", "gigagan"}
    loaded = M.load_model(imagen.save_pretrained(tmp_path / "imagen"), "cpu")
    assert isinstance(loaded, Imagen) and loaded.config == imagen.config
    with pytest.raises(UserError, match="holds no imagen or gigagan model .*'toy'"):
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
        ({"unet": {"sparkle": 1}}, "makes no sense"),
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
    "guidance_scale must be a number of at least 0, not x",
    "guidance_scale must be a number of at least 0, not [1]",
    "batch_size must be a whole number of at least 1, not 0",
    "batch_size must be a whole number of at least 1, not 1.5",
    "truncation_psi must be from 0 to 1, not 'x'",
    "named by a text or a path, not None",
    "named by a text or a path, not 3",
    "text encoder must be a name, not 3",
)


def test_arguments_of_a_wrong_type_are_user_errors():
    "In a process of its own: here the annotations are checked, users have no check."
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WRONG], capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 10, done.stderr
    for line, part in zip(lines, WRONG_PARTS):
        assert part in line, line
