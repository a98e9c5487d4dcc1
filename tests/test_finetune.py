"""Chapters 43 and 43b: robots, new words, corrections of low rank, prior images."""

from dataclasses import replace

import pytest
import torch

from t2i_tutorial import critters
from t2i_tutorial.clip import CLIP, CLIPTextEncoder
from t2i_tutorial.core import UserError, save_tensors
from t2i_tutorial.data import ImageTextDataset, flip_caption, open_dataset
from t2i_tutorial.diffusion import finetune as F
from t2i_tutorial.diffusion.imagen import IMAGEN_PRESETS, Imagen
from t2i_tutorial.robots import (
    ROBOT_ATTRIBUTES,
    Robot,
    render_robots,
    robot_caption,
    robot_colours_found,
    sample_robots,
    square_error,
    write_robots,
)
from t2i_tutorial.training import TrainConfig, Trainer

WORDS = {"robot": "owl", "antennae": ""}
PROMPTS = ["a red robot", "a blue dragon"]
METHODS = {
    "textual_inversion": lambda m: F.textual_inversion(m, WORDS),
    "tune_token_embeddings": lambda m: F.tune_token_embeddings(m, WORDS),
    "add_lora": lambda m: F.add_lora(m, 2, words=WORDS),
    "full_finetuning": lambda m: F.full_finetuning(m, WORDS),
}
SHORT = TrainConfig(
    max_steps=2,
    batch_size=4,
    lr=1e-2,
    weight_decay=0.0,
    ema_decay=0.9,
    save_every=1,
    log_every=1,
    log_with="none",
)


def new_model() -> Imagen:
    "Always the same small model; its text layers are no zeros."
    torch.manual_seed(0)
    config = IMAGEN_PRESETS["tiny"].model_config
    encoder = "critters-clip+token-embeddings"
    model = Imagen(replace(config, text_encoder=encoder))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("attn.out.weight", "conv_out.2.weight")):
                p.normal_(std=0.05)
    return model.eval()


@pytest.fixture(scope="module")
def own():
    robots = sample_robots(12)
    pixels = ((render_robots(robots, 16) + 1) * 127.5).round().to(torch.uint8)
    captions = [(robot_caption(r, i % 3),) for i, r in enumerate(robots)]
    return ImageTextDataset(pixels.__getitem__, captions, 16, cache=pixels)


def state_of(tuning) -> dict:
    return {k: v.clone() for k, v in tuning.state_dict().items()}


def images(model):
    return model.sample(PROMPTS, num_steps=2)


# ---- what learns


@pytest.mark.parametrize("name", METHODS)
def test_only_what_is_meant_changes(name, own):
    tuning = METHODS[name](new_model())
    before, learned = state_of(tuning), set(tuning.learned())
    Trainer(tuning, own, replace(SHORT, ema_decay=None)).fit()
    changed = {
        k for k, v in tuning.state_dict().items() if not torch.equal(v, before[k])
    }
    assert changed and changed <= learned
    vectors = "encoder.text_transformer.token_embedding."
    assert vectors + "new" in changed
    if name == "textual_inversion":
        assert learned == {vectors + "new"}
    if name == "tune_token_embeddings":
        assert learned == {vectors + "new", vectors + "old.weight"} == changed
    if name == "add_lora":
        others = learned - {vectors + "new"}
        assert others and all(k[-2:] in (".A", ".B") for k in others)
        assert all(".cross_attn.attn." in k for k in others)
    if name == "full_finetuning":
        assert {f"model.{k}" for k, _ in tuning.model.named_parameters()} <= learned


def test_gradients_reach_the_new_vectors_and_no_others(own):
    tuning = F.textual_inversion(new_model(), WORDS)
    batch = next(own.batches(6, shuffle=False))
    tuning.training_losses(batch, torch.Generator())["loss"].backward()
    reached = {n for n, p in tuning.named_parameters() if p.grad is not None}
    assert reached == {"encoder.text_transformer.token_embedding.new"}
    assert (tuning.encoder.text_transformer.token_embedding.new.grad != 0).any(1).all()


def test_of_all_vectors_those_that_are_read_get_a_gradient(own):
    tuning = F.tune_token_embeddings(new_model())
    batch = next(own.batches(6, shuffle=False))
    tuning.training_losses(batch, torch.Generator())["loss"].backward()
    grad = tuning.encoder.text_transformer.token_embedding.weight.grad
    read = set(tuning.encoder.tokenizer.encode(batch.captions)[0].flatten().tolist())
    got = set((grad != 0).any(1).nonzero().flatten().tolist())
    assert got and got <= read and len(got) > 0.8 * len(read)


@pytest.mark.parametrize("name", METHODS)
def test_before_the_first_step_old_prompts_give_the_same_images(name):
    plain = images(new_model())
    tuning = METHODS[name](new_model())
    assert torch.equal(images(tuning.model)[1], plain[1])


def test_lora_alone_changes_nothing_before_the_first_step():
    assert torch.equal(images(F.add_lora(new_model()).model), images(new_model()))


def test_textual_inversion_forgets_nothing(own):
    tuning = F.textual_inversion(new_model(), WORDS)
    Trainer(tuning, own, SHORT).fit()
    plain, tuned = images(new_model()), images(tuning.model)
    assert torch.equal(tuned[1], plain[1]) and not torch.equal(tuned[0], plain[0])


def test_a_merged_model_gives_the_same_images_and_is_an_ordinary_one(own, tmp_path):
    plain, tuning = images(new_model()), F.add_lora(new_model(), 2, alpha=4.0)
    Trainer(tuning, own, SHORT).fit()
    beside = images(tuning.model)
    merged = F.merge_lora(tuning.model)
    assert torch.allclose(images(merged), beside, atol=1e-5)
    assert not torch.allclose(beside, plain, atol=1e-3)
    assert merged.state_dict().keys() == new_model().state_dict().keys()
    merged.save_pretrained(tmp_path / "merged")
    again = Imagen.from_pretrained(tmp_path / "merged", "cpu")
    assert torch.allclose(images(again), beside, atol=0.02)  # 16 bits


@pytest.mark.parametrize(
    "tune",
    [
        lambda model: F.add_lora(model, 2, words=WORDS),
        lambda model: F.tune_token_embeddings(model, WORDS),
        F.tune_token_embeddings,
    ],
)
def test_a_model_whose_encoder_learned_is_not_saved_without_it(tune, tmp_path):
    with pytest.raises(UserError, match="use save_finetuned"):
        F.merge_lora(tune(new_model()).model).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_whose_encoder_is_as_it_was_is_saved(tmp_path):
    tuning = F.full_finetuning(new_model())
    assert tuning.model.save_pretrained(tmp_path / "plain").is_dir()


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_training_ends_with_the_same_bits(name, own, tmp_path):
    whole = METHODS[name](new_model())
    Trainer(whole, own, SHORT, tmp_path / "whole").fit()
    half = METHODS[name](new_model())
    Trainer(half, own, replace(SHORT, max_steps=1), tmp_path / "half").fit()
    resumed = METHODS[name](new_model())
    Trainer(resumed, own, SHORT, tmp_path / "half").fit(resume=True)
    a, b = whole.state_dict(), resumed.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- files


@pytest.mark.parametrize("name", METHODS)
def test_what_was_learned_is_kept_and_put_back(name, own, tmp_path):
    tuning = METHODS[name](new_model())
    Trainer(tuning, own, SHORT).fit()
    file = F.save_finetuned(tuning, tmp_path / "learned.safetensors")
    again = F.load_finetuned(new_model(), file)
    assert again.options == tuning.options
    assert torch.equal(images(again.model), images(tuning.model))


def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(1)}, {})
    with pytest.raises(UserError, match="holds no tuning of a model"):
        F.load_finetuned(new_model(), path)
    save_tensors(path, {"a": torch.zeros(1)}, {"finetuning": {"method": "add_lora"}})
    with pytest.raises(UserError, match="was learned with another model"):
        F.load_finetuned(new_model(), path)
    odd = {"finetuning": {"method": "add_lora", "ranks": 3}}
    save_tensors(path, {"a": torch.zeros(1)}, odd)
    with pytest.raises(UserError, match="is damaged"):
        F.load_finetuned(new_model(), path)


# ---- words


@pytest.fixture(scope="module")
def encoder():
    return CLIPTextEncoder(CLIP.from_pretrained("critters-clip"), True)


def test_a_new_word_is_one_token_wherever_it_stands(encoder):
    t = F.WordTokenizer(encoder.tokenizer, ["robot", "antenna", "antennae"])
    robot, antenna, antennae = (t.ids[w] for w in ("robot", "antenna", "antennae"))
    for text in ("robot", "a Robot.", "ROBOT, red", '"robot"', "a red\nrobot"):
        assert t.ids_of(text).count(robot) == 1, text
    assert t.ids_of("one antenna, two antennae").count(antennae) == 1
    assert t.ids_of("one antenna, two antennae").count(antenna) == 1
    for text in ("robots", "a robot-like cat", "microrobot"):
        assert not set(t.ids_of(text)) & set(t.ids.values()), text


@pytest.mark.parametrize("text", ["a red cat, jumping", "a small grey owl", "ü 猫"])
def test_texts_without_new_words_are_tokens_as_before(encoder, text):
    old, _ = encoder.tokenizer.encode([text])
    new, mask = F.WordTokenizer(encoder.tokenizer, ["robot"]).encode([text, "robot"])
    assert new[0, mask[0]].tolist() == old[0].tolist()


def test_a_long_text_with_new_words_is_cut(encoder):
    ids, mask = F.WordTokenizer(encoder.tokenizer, ["robot"]).encode(["robot " * 99])
    assert ids.shape[1] == encoder.tokenizer.max_length and mask.all()


@pytest.mark.parametrize(
    "words, message",
    [
        ({"two words": ""}, "one word in lower case"),
        ({"Robot": ""}, "one word in lower case"),
        ({"": ""}, "one word in lower case"),
        ({"cat": ""}, "is no new word"),
        ({"robot": "toaster"}, "cannot begin with 'toaster'"),
    ],
)
def test_bad_words_are_refused_in_one_line(encoder, words, message):
    with pytest.raises(UserError, match=message) as e:
        F.LearnableTextEncoder(encoder, words)
    assert "\n" not in str(e.value)


def test_other_encoders_and_no_words_are_refused():
    class Other:
        name = "t5"

    with pytest.raises(UserError, match="'t5' is none"):
        F.LearnableTextEncoder(Other(), WORDS)
    with pytest.raises(UserError, match="needs a new word"):
        F.textual_inversion(new_model(), {})
    with pytest.raises(UserError, match="rank must be"):
        F.add_lora(new_model(), 0)


# ---- prior images


def test_batches_with_prior_images_depend_on_their_arguments_alone(own):
    drawn = critters.sample_critters(5, 16)
    prior = ImageTextDataset.from_critters(5, 16)
    mixed = F.WithPrior(own, prior, 0.25)
    a, b = (list(mixed.batches(8, seed=3, epoch=1, drop_last=True)) for _ in range(2))
    assert len(a) == 2 and all(len(batch) == 8 for batch in a)
    assert all(torch.equal(x.images, y.images) for x, y in zip(a, b))
    (late,) = mixed.batches(8, seed=3, epoch=1, start=1, drop_last=True)
    assert torch.equal(late.images, a[1].images) and late.captions == a[1].captions
    assert all(c in drawn.captions for c in a[0].captions[6:])
    assert not any(c in drawn.captions for c in a[0].captions[:6])
    assert next(F.WithPrior(own, prior, 0.0).batches(8)).images.shape[0] == 8


def test_prior_images_are_what_the_model_draws():
    model = new_model()
    prior = F.prior_images(model, PROMPTS, seed=1, num_steps=2)
    drawn = model.sample(PROMPTS, seed=1, num_steps=2)
    assert [c for (c,) in prior.captions] == PROMPTS
    assert (prior[1][0] - drawn[1]).abs().max() < 0.01


# ---- robots


def test_robots_are_drawn_as_they_say(tmp_path):
    robots = sample_robots(60, 7)
    assert sample_robots(20, 7) == robots[:20] and len(set(robots)) > 50
    assert all(r.body_colour != r.second_colour for r in robots)
    small, large = render_robots(robots, 16, 7), render_robots(robots, 64, 7)
    assert torch.equal(large[..., ::4, ::4], small) and square_error(large).max() < 1e-6
    assert robot_colours_found(small, robots).all()
    assert robot_colours_found(small.roll(1, 0), robots).float().mean() < 0.2
    assert square_error(critters.sample_critters(8, 32).images).min() > 0.02


def test_the_mirror_image_of_an_arm_that_points_is_the_other_arm():
    values = {k: v[0] for k, v in ROBOT_ATTRIBUTES.items()} | {"second_colour": "blue"}
    left, right = (
        Robot(**values | {"arms": f"pointing {w}"}) for w in ("left", "right")
    )
    assert flip_caption(robot_caption(left, 0)) == robot_caption(right, 0)
    a, b = render_robots([left, left], 32)[:1], render_robots([right, right], 32)[:1]
    columns = (a != b).any(1).any(1).any(0).nonzero().flatten()
    assert columns.min() < 12 and columns.max() > 20  # both sides differ


def test_a_folder_of_robots_is_a_data_set(tmp_path):
    data = open_dataset(write_robots(tmp_path / "robots", 9, 16), 16)
    assert len(data) == 9 and all("robot" in c for (c,) in data.captions)
    drawn = render_robots(sample_robots(9), 16)
    assert all(torch.allclose(data[i][0], drawn[i], atol=0.01) for i in range(9))
