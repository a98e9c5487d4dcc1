"""Text-to-image in one file: its parts, its promises, its command line, its length."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from t2i_tutorial import critters, nano
from t2i_tutorial.core import UserError, load_json, save_tensors
from t2i_tutorial.evaluation.report import EvaluationReport

TINY = nano.NanoConfig(channels=16, num_images=64, max_steps=12, batch_size=8)


@pytest.fixture(scope="module")
def model() -> nano.NanoDenoiser:
    "Untrained, with an output that is not zero and depends on everything."
    torch.manual_seed(0)
    model = nano.NanoDenoiser(TINY).requires_grad_(False)
    for name, p in model.named_parameters():
        if name.endswith("conv2.weight"):
            nn.init.normal_(p, std=0.1)
    return model


@pytest.fixture(scope="module")
def batch() -> tuple:
    g = torch.Generator().manual_seed(0)
    captions = ["a blue and red dragon", "a cat", "", "a small pink owl, asleep"]
    xt, t = torch.randn(4, 3, 16, 16, generator=g), torch.rand(4, generator=g)
    return xt, t, nano.tokenize(captions)


# ---- the file


def test_the_file_can_be_read_at_one_sitting():
    lines = Path(nano.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 250
    assert all(
        len(x) <= 88 for x in lines if not x.startswith(('"""', "__all__", " " * 11))
    )


def test_it_leans_on_nothing_but_core_and_critters():
    "And on what critters are drawn with."
    code = (
        "import sys, t2i_tutorial.nano\n"
        "print(sorted(m for m in sys.modules if m.startswith('t2i_tutorial.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    names = [
        f"t2i_tutorial.{m}" for m in ("core", "critters", "nano", "shapes", "species")
    ]
    assert done.stdout.strip() == str(names), done.stderr


# ---- captions


def test_tokens_are_start_words_padding():
    tokens = nano.tokenize(["A Blue, fire-breathing dragon!", ""])
    words = [nano.NANO_VOCABULARY[i] for i in tokens[0] if i > 0]
    assert words == ["<start>", "a", "blue", "fire-breathing", "dragon"]
    assert tokens[1].tolist() == [1] + [0] * (nano.MAX_TOKENS - 1)


def test_tokens_are_the_same_however_a_prompt_is_spaced():
    "Row F1."
    odd = ["\ufeffa\u00a0blue\n dragon", "a bl\u200bue dra\u00adgon"]
    assert torch.equal(nano.tokenize(odd), nano.tokenize(["a blue dragon"] * 2))


def test_unknown_words_are_skipped_and_long_captions_refused():
    skipped = nano.tokenize(["a blue wizard", "a blue", "<pad> a <start> blue"])
    assert (skipped == skipped[1]).all()
    nano.tokenize(["red " * (nano.MAX_TOKENS - 1)])
    with pytest.raises(UserError, match="too many"):
        nano.tokenize(["red " * nano.MAX_TOKENS])


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_caption_of_the_data_fits_and_is_known(split):
    data = critters.sample_critters(300, size=16, seed=5, split=split)
    for c, text in zip(data.critters, data.captions):
        detailed = nano.describe(c)
        assert critters.parse_caption(detailed) == {
            k: getattr(c, k) for k in critters.ATTRIBUTES
        }
        words = nano.to_words(detailed) + nano.to_words(text)
        assert set(words) <= set(nano.NANO_VOCABULARY)
    images, captions = nano.load_data(3, 5, split)
    assert torch.equal(images, data.images[:3])
    assert torch.equal(captions[0], nano.tokenize(data.captions[:3]))


# ---- the network


def test_shapes_and_a_silent_start():
    model = nano.NanoDenoiser(TINY)
    xt, t = torch.randn(2, 3, 16, 16), torch.rand(2)
    out = model(xt, t, nano.tokenize(["a cat", "a red owl"]))
    assert out.shape == xt.shape and out.isfinite().all()
    block = nano.ResBlock(16, 16, 8)
    x = torch.randn(2, 16, 4, 4)
    bias = block.conv2.bias.view(1, -1, 1, 1)
    assert torch.allclose(block(x, torch.randn(2, 8)), x + bias)


def test_time_and_every_word_matter(model, batch):
    xt, t, tokens = batch
    out = model(xt, t, tokens)
    assert (out - model(xt, t * 0.5, tokens)).abs().amax((1, 2, 3)).min() > 1e-4
    swapped = nano.tokenize(["a red and blue dragon"])
    assert (out[:1] - model(xt[:1], t[:1], swapped)).abs().max() > 1e-4


def test_padding_does_not_matter(model, batch):
    xt, t, tokens = batch
    out = model(xt, t, tokens)
    longer = nn.functional.pad(tokens, (0, 7))
    shorter = tokens[:, : (tokens > 0).sum(1).max()]
    assert torch.allclose(out, model(xt, t, longer), atol=1e-5)
    assert torch.allclose(out, model(xt, t, shorter), atol=1e-5)
    changed = nano.NanoDenoiser(TINY)
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        changed.embedding.weight[0] = 100.0
    assert torch.allclose(out, changed(xt, t, tokens), atol=1e-5)


def test_images_of_a_batch_do_not_see_each_other(model, batch):
    xt, t, tokens = batch
    out = model(xt, t, tokens)
    alone = [model(xt[i : i + 1], t[i : i + 1], tokens[i : i + 1]) for i in range(4)]
    assert torch.allclose(out, torch.cat(alone), atol=1e-5)


# ---- objective and guidance


def test_the_path_and_its_velocity():
    x, noise = torch.rand(2, 5, 3, 16, 16).unbind()
    zero, one = torch.zeros(5), torch.ones(5)
    assert torch.equal(nano.flow_path(x, noise, zero), x)
    assert torch.equal(nano.flow_path(x, noise, one), noise)
    step = nano.flow_path(x, noise, one * 0.6) - nano.flow_path(x, noise, one * 0.5)
    assert torch.allclose(step / 0.1, noise - x, atol=1e-5)


def test_the_loss_of_known_answers():
    x = torch.full((64, 3, 16, 16), 0.5)

    def perfect(xt, t, tokens):  # x is known, so the noise follows from xt
        t = t.view(-1, 1, 1, 1)
        return (xt - x) / t

    def zero(xt, t, tokens):
        return torch.zeros_like(xt)

    tokens, rng = nano.tokenize([""] * 64), torch.Generator().manual_seed(0)
    assert nano.flow_matching_loss(perfect, x, tokens, rng) < 1e-6
    assert abs(nano.flow_matching_loss(zero, x, tokens, rng) - 1.25) < 0.03


def test_guidance_scale_one_is_the_plain_prediction(model, batch):
    xt, t, tokens = batch
    plain, empty = model(xt, t, tokens), model(xt, t, nano.tokenize([""] * 4))
    guided = [nano.guided_velocity(model, xt, t, tokens, w) for w in (0.0, 1.0, 3.0)]
    assert torch.allclose(guided[0], empty, atol=1e-5)
    assert torch.allclose(guided[1], plain, atol=1e-5)
    assert torch.allclose(guided[2], empty + 3 * (plain - empty), atol=1e-4)
    assert torch.allclose(guided[2][2], empty[2], atol=1e-5)  # its caption is empty


# ---- sampling


@pytest.mark.parametrize("num_steps", [1, 2, 7, 20])
def test_euler_is_exact_on_straight_lines(num_steps):
    g = torch.Generator().manual_seed(0)
    goal, noise = torch.randn(2, 3, 3, 16, 16, generator=g).unbind()

    def velocity(xt, t):
        return (xt - goal) / t.view(-1, 1, 1, 1)

    end = nano.euler_sample(velocity, noise, num_steps)
    assert torch.allclose(end, goal, atol=1e-4)


def test_euler_converges_at_first_order():
    one = torch.ones(1, 3, 1, 1)

    def error(num_steps):
        end = nano.euler_sample(lambda xt, t: xt, one, num_steps)
        return abs(end.mean().item() - math.exp(-1))

    assert error(40) / error(80) == pytest.approx(2, rel=0.05)


def test_samples_depend_on_prompt_place_seed_and_on_nothing_else(model):
    prompts = ["a red cat", "a blue owl", "a red cat"]
    images = nano.sample_nano(model, prompts, num_steps=3, seed=1)
    assert images.shape == (3, 3, 16, 16) and images.abs().max() <= 1
    torch.rand(5)
    again = nano.sample_nano(model, prompts, num_steps=3, seed=1)
    assert torch.equal(images, again)
    alone = nano.sample_nano(model, prompts[:1], num_steps=3, seed=1)
    assert torch.allclose(images[:1], alone, atol=1e-4)
    assert not torch.equal(images[0], images[2])
    other = nano.sample_nano(model, prompts, num_steps=3, seed=2)
    assert not torch.equal(images, other)


# ---- training


def test_same_seed_same_bits_and_the_callback_changes_nothing():
    seen = []

    def watch(step, ema):
        seen.append(nano.sample_nano(ema, ["a red cat"], num_steps=2))
        torch.rand(3)

    (a, la), (b, lb) = nano.train_nano(TINY), nano.train_nano(TINY, callback=watch)
    assert la == lb and len(la) == len(seen) == TINY.max_steps
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key
    assert nano.train_nano(TINY, seed=1)[1] != la


def test_a_short_training_lowers_the_loss():
    config = nano.NanoConfig(channels=16, num_images=128, max_steps=120, batch_size=16)
    model, losses = nano.train_nano(config)
    assert 1.2 < losses[0] < 2.2  # variance of the noise + mean square of the images
    assert sum(losses[-20:]) / 20 < 0.5 * losses[0]
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("p, empty", [(0.0, 0.0), (1.0, 1.0)])
def test_captions_are_dropped_as_often_as_asked(monkeypatch, p, empty):
    shares = []
    loss = nano.flow_matching_loss

    def spy(model, x, tokens, *rest):
        shares.append(((tokens > 0).sum(1) == 1).float().mean().item())
        return loss(model, x, tokens, *rest)

    monkeypatch.setattr(nano, "flow_matching_loss", spy)
    config = nano.NanoConfig(
        channels=16, num_images=64, max_steps=3, batch_size=8, cond_drop_prob=p
    )
    nano.train_nano(config)
    assert shares == [empty] * 3


def test_a_loss_that_is_no_number_stops_the_training():
    config = nano.NanoConfig(channels=16, num_images=16, max_steps=60, lr=1e30)
    with pytest.raises(UserError, match="lower the learning rate"):
        nano.train_nano(config)


# ---- files


def test_a_model_comes_back_from_its_file(tmp_path, model, batch):
    weights = {k: v.half() for k, v in model.state_dict().items()}
    from dataclasses import asdict

    save_tensors(tmp_path / "a.safetensors", weights, asdict(model.config))
    back = nano.load_nano(tmp_path / "a.safetensors")
    assert back.config == TINY
    assert (back(*batch) - model(*batch)).abs().max() < 0.02


def test_the_recorded_run_is_whole_small_and_better_than_the_live_one():
    folder = Path(nano.__file__).parent / "pretrained" / "nano"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 1_400_000
    run = load_json(folder / "run.json")
    assert run["parameters"] == sum(p.numel() for p in nano.load_nano().parameters())
    live, longer = (run[k]["accuracy"]["test/full"] for k in ("live", "longer"))
    for name in ("species", "body_colour", "action"):
        assert live[name]["value"] > 3 * live[name]["chance"]
        assert live[name]["value"] < longer[name]["value"]
    assert longer["species"]["value"] > 0.9 and longer["body_colour"]["value"] > 0.9
    report = EvaluationReport.load(folder / "evaluation-test.json")
    assert report["test/full"]["all"].value == longer["all"]["value"]
    assert report.settings["size"] == 16 and report.settings["num_prompts"] == 2000


# ---- the command line


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "t2i_tutorial.nano", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(Path(nano.__file__).parent.parent)},
    )


def test_the_command_draws_and_says_where(tmp_path):
    prompts = ["a blue and red dragon", "a red wizard"]
    done = command(*prompts, "--recorded", "--output", "new/a.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(Path("new") / "a.png")
    assert done.stderr == "nano: note: skipped wizard\n"
    assert Image.open(tmp_path / "new" / "a.png").size == (8 * 38, 8 * 20)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


MISTAKES = {
    "no prompt": [],
    "an empty prompt": [""],
    "only unknown words": ["ein Drache"],
    "too long": ["red " * 30],
    "no steps": ["a cat", "--steps", "0"],
    "steps in words": ["a cat", "--steps", "many"],
    "no such option": ["a cat", "--colour", "red"],
    "an endless scale": ["a cat", "--guidance-scale", "nan"],
    "a negative seed": ["a cat", "--seed", "-1", "--steps", "1"],
    "no PNG": ["a cat", "--output", "cat.jpg"],
    "a folder": ["a cat", "--output", "folder.png"],
    "a picture that is there": ["a cat", "--recorded", "--output", "mine.png"],  # F5
    "endless steps": ["a cat", "--steps", "9" * 30],
    "a very long name": ["a cat", "--output", "x" * 300 + ".png"],
    "a file as folder": ["a cat", "--output", "file/cat.png"],
}


@pytest.mark.parametrize("arguments", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path, monkeypatch, capsys, arguments
):
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    Path("file").write_text("")
    Path("mine.png").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        nano.nano_main(arguments)
    errors = [x for x in capsys.readouterr().err.splitlines() if "note:" not in x]
    assert stop.value.code == 2 and len(errors) == 1 and errors[0].startswith("nano: ")
    names = ["file", "folder.png", "mine.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert Path("mine.png").read_text() == "mine"


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = command("a cat", "--steps", "0", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


def test_a_place_that_cannot_be_written_to_is_noticed_before_training(monkeypatch):
    monkeypatch.setattr(nano, "train_nano", lambda *a: pytest.fail("it trained"))
    with pytest.raises(SystemExit) as stop:
        nano.nano_main(["a cat", "--output", "/proc/cat.png"])
    assert stop.value.code == 2
