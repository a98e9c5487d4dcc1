"""Chapter 12: prompt accuracy, and `evaluate` on models whose faults are known."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from image_folders import write_images
from PIL import Image

from t2i_tutorial import critters
from t2i_tutorial.clip import CLIP
from t2i_tutorial.core import (
    UserError,
    save_tensors,
    seeded_generator,
    to_uint8,
)
from t2i_tutorial.evaluation import classifier as C
from t2i_tutorial.evaluation import metrics as D
from t2i_tutorial.evaluation import report as R
from t2i_tutorial.evaluation.comparison import (
    Comparison,
    Difference,
    compare_images,
    compare_prompts,
    comparison_sheet,
)
from t2i_tutorial.evaluation.quality import load_feature_network, used_metrics

TORCH_HOME = Path(__file__).resolve().parent.parent.parent / "shared" / "torch_home"
SMALL = {"n": 80, "split": "val", "repeats": (3, 4)}


def honest(prompts, seed):
    return critters.render(R.matching_critters(prompts, seed), seed=seed)


def shuffled(prompts, seed):
    return honest(prompts[1:] + prompts[:1], seed)


def grey(prompts, seed):
    return torch.zeros(len(prompts), 3, 32, 32)


def stuck(prompts, seed):
    return torch.cat([honest([p], 0) for p in prompts])


@pytest.fixture(scope="module")
def classifier():
    return C.AttributeClassifier.from_pretrained("critters-classifier")


@pytest.fixture(scope="module")
def training():
    return critters.sample_critters(256, seed=0).images


@pytest.fixture(scope="module")
def network():
    return load_feature_network("dead-leaves")


@pytest.fixture(scope="module")
def report(training, network):
    "Measure a model once for each test that needs it."
    made = {}

    def of(model):
        if model not in made:
            options = {"training_images": training, "network": network}
            made[model] = R.evaluate(
                model, 200, split="val", repeats=(12, 4), lpips_net=None, **options
            )
        return made[model]

    return of


@pytest.fixture
def torch_home(monkeypatch):
    if not (TORCH_HOME / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").exists():
        pytest.skip(
            "no SqueezeNet weights here; put them into a torch hub cache and run again"
        )
    monkeypatch.setenv("TORCH_HOME", str(TORCH_HOME))
    monkeypatch.setattr(D, "_LOADED", {})


def test_only_what_is_stated_is_counted(classifier):
    drawn = [
        critters.Critter("duck", "green", "red"),
        critters.Critter("cat", "blue", "pink", action="jumping"),
    ]
    found = R.prompt_accuracy(
        classifier,
        critters.render(drawn),
        ["a green duck", {"species": "snail", "action": "jumping"}],
    )
    assert set(found) == {"species", "body_colour", "action", "all"}
    assert (
        found["species"].value,
        found["body_colour"].value,
        found["action"].value,
        found["all"].value,
    ) == (0.5, 1, 1, 0.5)


def test_a_prompt_that_states_nothing_counts_for_nothing(classifier):
    "A colour without its part says nothing about body or second colour."
    drawn = [critters.Critter("duck", "green", "red")] * 2
    found = R.stated_matches(classifier, critters.render(drawn), ["a duck", "purple"])
    assert set(found) == {"species", "all"} and found["all"].tolist() == [True]


def test_size_and_facing_are_seen_when_stated_and_only_then(classifier):
    "The review's test: all creatures at the wrong size and facing were called right."
    drawn = critters.sample_critters(60, seed=5, split="val").critters
    other = {"small": "large", "large": "small", "left": "right", "right": "left"}
    wrong = [
        critters.Critter(
            *(other.get(getattr(c, k), getattr(c, k)) for k in critters.ATTRIBUTES)
        )
        for c in drawn
    ]
    images = critters.render(wrong)
    full = R.prompt_accuracy(classifier, images, drawn)
    assert full["size"].value < 0.1 and full["facing"].value < 0.1
    assert full["all"].value < 0.05 and full["species"].value > 0.95
    short = [f"a {c.body_colour} {c.species}" for c in drawn]
    assert R.prompt_accuracy(classifier, images, short)["all"].value > 0.95


def test_lpips_within_evaluate(torch_home, network):
    for model, least, most in ((stuck, 0, 0), (honest, 0.01, 0.5)):
        found = R.evaluate(model, 40, split="val", repeats=(3, 3), network=network)
        m = found["variety"]["lpips_diversity"]
        assert least <= m.value <= most and m.reference > 0


def test_without_weights_lpips_is_left_out_with_one_line(tmp_path):
    "In a process of its own, with an empty cache and an address that answers nothing."
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise OSError('no network')\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        "import torch\n"
        "from t2i_tutorial.evaluation import evaluate\n"
        "grey = lambda p, s: torch.zeros(len(p), 3, 32, 32)\n"
        "r = evaluate(grey, 40, split='val', repeats=(2, 2))\n"
        "assert 'lpips_diversity' not in r['variety']\n"
        "assert 'feature_diversity' in r['variety']\n"
        "assert r.settings['feature_network'] == 'dead-leaves'\n"
        "print(r.skipped['LPIPS'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"TORCH_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert (
        len(done.stdout.splitlines()) == 1
        and "the weights of SqueezeNet 1.1" in done.stdout
        and "set TORCH_HOME" in done.stdout
    )


def test_real_renders_score_at_the_floor(report):
    r = report(honest)
    for section in ("val/full", "val/natural"):
        for k in (*C.CLASSIFIED_ATTRIBUTES, "all", "body_pixels"):
            m = r[section][k]
            assert abs(m.value - m.reference) < 0.03 and m.value > 0.95, (section, k)
        m = r[section]["clip_score"]
        assert m.value == pytest.approx(m.reference, abs=0.03)
    quality = r["quality, dead-leaves"]
    assert abs(quality["mmd"].value) < 0.1 and quality["precision"].value > 0.85
    assert quality["recall"].value > 0.85 and quality["two_sample"].ci_low < 0.55
    copies = r["copies of 256 training images"]
    assert copies["memorisation_rate"].ci_low < 0.02
    for name, m in r["variety"].items():
        assert m.value == pytest.approx(m.reference, rel=0.5, abs=0.1), name


def test_shuffled_captions_score_at_chance_but_look_real(report):
    r = report(shuffled)
    for k in (*C.CLASSIFIED_ATTRIBUTES, "body_pixels", "clip_score"):
        m = r["val/full"][k]
        assert abs(m.value - m.chance) < 0.12, k
    assert r["val/full"]["all"].value < 0.02
    assert r["quality, dead-leaves"]["precision"].value > 0.85


def test_grey_images_score_at_chance_and_look_like_nothing(report):
    r = report(grey)
    for k in C.CLASSIFIED_ATTRIBUTES:
        m = r["val/full"][k]
        assert abs(m.value - m.chance) < 0.12, k
    quality = r["quality, dead-leaves"]
    assert quality["precision"].value == quality["recall"].value == 0
    assert r["variety"]["pixel_diversity"].value == 0


def test_one_image_for_a_prompt_shows_in_the_variety_alone(report):
    r = report(stuck)
    assert r["val/full"]["all"].value > 0.95
    assert r["quality, dead-leaves"]["recall"].value > 0.8
    for name in (
        "facing_entropy",
        "size_entropy",
        "pixel_diversity",
        "position_spread",
    ):
        m = r["variety"][name]
        assert m.value == 0 < m.reference and m.ci_high == 0, name
    assert r["variety"]["feature_diversity"].value == pytest.approx(0, abs=1e-4)


def test_copies_of_training_images_are_called_memorised(training, network):
    "Also mirrored; among all that are given."

    def parrot(prompts, seed):
        which = torch.randint(256, (len(prompts),), generator=seeded_generator(seed))
        return training[which].flip(-1)

    options = {"network": network, "lpips_net": None}
    r = R.evaluate(parrot, training_images=to_uint8(training), **SMALL, **options)
    copies = r["copies of 256 training images"]
    assert copies["memorisation_rate"].value == 1
    near = copies["nearest_train_distance"]
    assert near.value < 0.05 * near.reference
    r = R.evaluate(parrot, **SMALL, **options)
    assert r.skipped == {"memorisation": "the training images are not known"}


def test_the_same_seed_gives_the_same_numbers(network):
    options = SMALL | {"network": network, "lpips_net": None}
    first, again, other = (R.evaluate(honest, seed=s, **options) for s in (1, 1, 2))
    assert first.metrics == again.metrics != other.metrics


def test_saved_images_give_the_same_numbers(tmp_path, network):
    options = {"network": network, "lpips_net": None}
    generated = R.generate_evaluation_images(honest, **SMALL, model="honest")
    loaded = R.EvaluationImages.load(generated.save(tmp_path / "a.safetensors"))
    assert loaded.prompts == generated.prompts and len(loaded) == 92
    assert list(loaded.images) == list(generated.images)
    assert loaded.settings == generated.settings and loaded.size == 32
    a, b = (R.measure_images(x, **options) for x in (generated, loaded))
    assert a.metrics == b.metrics
    assert a.metrics == R.evaluate(honest, **SMALL, **options).metrics


def _one_less(tensors, config):
    tensors["repeats"] = tensors["repeats"][1:]
    config["prompts"]["repeats"].pop(0)


def _keep(tensors, config, name):
    for key in set(tensors) - {name}:
        tensors.pop(key)
        config["prompts"].pop(key)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t, c: c.update(evaluation=2), "holds no images of an evaluation"),
        (lambda t, c: c.update(prompts=[]), "header is damaged"),
        (lambda t, c: c["prompts"].pop("repeats"), "are missing"),
        (lambda t, c: t.pop("repeats"), "are missing"),
        (lambda t, c: c["prompts"]["repeats"].pop(), "for 11 prompts"),
        (lambda t, c: c["prompts"].update(repeats=[1]), "no prompts for 'repeats'"),
        (lambda t, c: t.update(repeats=t["repeats"].float()), "float32"),
        (lambda t, c: t.update(repeats=t["repeats"][..., :16, :16]), "of one size"),
        (lambda t, c: c.update(evaluation=True), "holds no images of an evaluation"),
        (lambda t, c: c["settings"].update(seed="x"), "its seed is 'x'"),
        (lambda t, c: c["settings"].update(seed=True), "its seed is True"),
        (lambda t, c: c["settings"].update(seconds="long"), "its seconds is 'long'"),
        (lambda t, c: c["settings"].update(split="train"), "its split is 'train'"),
        (
            lambda t, c: t.update(repeats=torch.tensor(1, dtype=torch.uint8)),
            "has \\(\\)",
        ),
        (lambda t, c: _one_less(t, c), "not equally many images of each prompt"),
        (lambda t, c: _keep(t, c, "repeats"), "only of repeats"),
    ],
)
def test_damaged_images_get_one_line(tmp_path, change, words):
    made = R.generate_evaluation_images(grey, **SMALL)
    config = {"evaluation": 1, "prompts": made.prompts, "settings": made.settings}
    tensors = dict(made.images)
    change(tensors, config)
    path = save_tensors(tmp_path / "a.safetensors", tensors, config)
    with pytest.raises(UserError, match=words):
        R.EvaluationImages.load(path)


def test_what_a_model_is_asked():
    "A seed for each batch that depends on seed and number only."
    calls = []

    def spy(prompts, seed):
        calls.append((prompts, seed))
        return grey(prompts, seed)

    R.generate_evaluation_images(spy, 40, split="val", batch_size=16, repeats=(2, 3))
    assert [len(p) for p, _ in calls] == [16, 11, 13, 6]
    assert [s for _, s in calls] == [R.batch_seed(0, i) for i in range(4)]
    asked = R.evaluation_prompts(40, "val", repeats=(2, 3))
    assert calls[3][0] == asked["repeats"] and len(set(asked["repeats"])) == 2
    for prompt in asked["val/full"]:
        assert set(critters.parse_caption(prompt)) == set(C.CLASSIFIED_ATTRIBUTES)


def test_test_has_a_row_for_each_kind_of_captions(network):
    r = R.evaluate(honest, 80, repeats=(2, 2), network=network, lpips_net=None)
    splits = ("test", *critters.HELD_OUT_KEYS)
    kinds = {f"{s}/{style}" for s in splits for style in ("full", "natural")}
    assert kinds < set(r.metrics) and len(r.accuracy_rows()) == 10
    assert all(row["all stated"] > 0.7 for row in r.accuracy_rows())


def test_other_sizes(network):
    def big(prompts, seed):
        return critters.render(R.matching_critters(prompts, seed), 48, seed)

    r = R.evaluate(big, size=48, network=network, lpips_net=None, **SMALL)
    assert r.settings["size"] == 48 and r["val/full"]["species"].value > 0.9


@pytest.mark.parametrize(
    "model, words",
    [
        (lambda p, s: torch.zeros(len(p), 3, 16, 16), "not a tensor of shape"),
        (lambda p, s: torch.zeros(1, 3, 32, 32), "not a tensor of shape"),
        (lambda p, s: [1, 2], "gave list"),
        (
            lambda p, s: torch.full((len(p), 3, 32, 32), float("nan")),
            "not finite in batch 0",
        ),
    ],
)
def test_bad_images_get_one_line(model, words):
    with pytest.raises(UserError, match=words):
        R.evaluate(model, 40)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(n=39), "n must be"),
        (dict(batch_size=0), "batch_size must be"),
        (dict(repeats=(2, 1)), "copies in repeats"),
        (dict(repeats=(1, 2)), "prompts in repeats"),
        (dict(split="tset"), "did you mean 'test'"),
        (dict(split="train"), "unknown split 'train'"),
    ],
)
def test_bad_arguments_get_one_line(options, words):
    with pytest.raises(UserError, match=words):
        R.evaluate(honest, **{"n": 40} | options)


def test_images_off_range_are_clamped_and_16_bits_are_welcome():
    made = R.generate_evaluation_images(
        lambda p, s: honest(p, s).bfloat16() * 1.5, **SMALL
    )
    assert made.images["val/full"].dtype == torch.uint8


def test_a_report_survives_the_disk(report, tmp_path):
    r = report(honest)
    assert R.EvaluationReport.load(r.save(tmp_path / "r.json")) == r
    for text in ("{}", "[]", '{"format": 2}', '{"format": 2, "metrics": []}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match="holds no report"):
            R.EvaluationReport.load(tmp_path / "x.json")
    with pytest.raises(UserError, match="did you mean 'val/full'"):
        r["val/ful"]


def test_a_report_as_table_and_figure(report):
    r = report(honest)
    lines = r.table().splitlines()
    assert len(lines) == 2 + sum(map(len, r.metrics.values())) + len(r.skipped)
    assert all(line.count("|") == 6 for line in lines)
    for name in [k for found in r.metrics.values() for k in found]:
        assert R.METRIC_LABELS[name] in r.table()
    figure = r.figure()
    assert len(figure.axes) == 2 and all(ax.get_xlabel() for ax in figure.axes)


def test_bytes_are_converted_and_other_ranges_are_said(training):
    "Small rows: images from 0 to 255 were clamped to white, and every share was 0."
    prompts = ["a small blue and red dragon with green eyes, standing, facing left"] * 4

    def draw(change):
        return R.generate_images(lambda p, s: change(honest(p, s)), prompts, 32, 0, 2)

    plain = draw(lambda x: x)
    assert (draw(to_uint8) - plain).abs().max() < 1 / 127
    with pytest.raises(UserError, match="to 255, not from -1 to 1; give bytes"):
        draw(lambda x: to_uint8(x).float())
    with pytest.warns(UserWarning, match="if they are meant from 0 to 1, rescale"):
        draw(lambda x: (x + 1) / 2)
    with pytest.raises(UserError, match="training_images came with values"):
        made = R.generate_evaluation_images(grey, **SMALL)
        R.measure_images(made, training_images=127.5 * training + 127.5)


def test_a_folder_of_images_is_read_as_it_is(tmp_path):
    "A stray image that no caption names changed every number."
    folder = write_images(tmp_path / "a")
    Image.new("RGB", (128, 128)).save(folder / "000.png")
    with pytest.warns(UserWarning, match="000.png"):
        found = R.EvaluationImages.from_folder(folder)
    drawn = critters.sample_critters(12, 32, seed=3, split="val")
    assert torch.equal(found.images["images"], to_uint8(drawn.images))
    assert found.prompts["images"] == drawn.captions and found.size == 32


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda p: Image.new("RGB", (64, 64)).save(p),
            "00.png.* 32 x 32 .*07.png.* 64",
        ),
        (lambda p: Image.new("RGB", (32, 48)).save(p), "07.png.* 32 x 48 .*square"),
        (lambda p: p.write_bytes(p.read_bytes()[:60]), "07.png.*damaged.*fetch it"),
        (lambda p: p.write_bytes(b""), "07.png.*is empty"),
    ],
)
def test_a_folder_of_images_of_two_kinds_gets_one_line(tmp_path, change, words):
    folder = write_images(tmp_path / "a")
    change(folder / "07.png")
    with pytest.raises(UserError, match=words):
        R.EvaluationImages.from_folder(folder)


def test_a_damaged_first_image_is_named(tmp_path):
    folder = write_images(tmp_path / "a")
    (folder / "00.png").write_bytes((folder / "00.png").read_bytes()[:20])
    with pytest.raises(UserError, match="00.png.*(fetch it again|take it out)"):
        R.EvaluationImages.from_folder(folder)


def test_grey_images_are_measured_and_noted(tmp_path):
    folder = write_images(tmp_path / "a")
    Image.open(folder / "03.png").convert("L").save(folder / "03.png")
    with pytest.warns(UserWarning, match="1 of 12 images are grey, .*03.png"):
        found = R.EvaluationImages.from_folder(folder)
    grey = found.images["images"][3]
    assert torch.equal(grey[0], grey[1])


def test_a_caption_outside_the_grammar_is_named_with_its_file(tmp_path):
    folder = write_images(tmp_path / "a")
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    lines[5] = json.dumps({"file_name": "05.png", "text": "a photograph"})
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="'a photograph' of .*05.png") as caught:
        R.EvaluationImages.from_folder(folder)
    assert len(str(caught.value)) < 250 + len(str(folder))


def test_few_images_are_refused_before_anything_is_measured(tmp_path):
    found = R.EvaluationImages.from_folder(write_images(tmp_path / "a", 11))
    for measure in (R.measure_images, lambda x: compare_images(x, x)):
        with pytest.raises(UserError, match="at least 12 images, not 11"):
            measure(found)


def test_reports_show_the_measures_that_are_used(report):
    "Chapter 11b says so, and coverage on dead-leaves was shown all the same."
    shown = set(report(honest)["quality, dead-leaves"])
    used = set(used_metrics("dead-leaves"))
    assert used <= shown <= used | {"frechet_distance", "sharpness"}
    assert "coverage" not in shown


def test_the_threshold_of_copies_comes_from_a_thousand_renders(network, monkeypatch):
    "The lowest percent of 24 images is a single one."
    counts = []

    def note(images, real, others, training_images):
        counts.append((len(images), len(real), len(others)))
        return {}

    monkeypatch.setattr(R, "memorisation_rate", note)
    made = R.generate_evaluation_images(grey, **SMALL)
    options = {"network": network, "lpips_net": None}
    r = R.measure_images(made, training_images=torch.zeros(4, 3, 32, 32), **options)
    assert counts == [(80, 80, 1000)] and r.settings["quality_images"] == 80


def test_copies_that_are_blurred_or_shifted_far_are_not_counted(training):
    "As chapter 11 says of its measure."
    _, others = R.render_references(R.generate_evaluation_images(grey, **SMALL), 120)
    copies = training[:24]

    def rate(images):
        found = D.memorisation_rate(images, others[:24], others, training)
        return found["memorisation_rate"].value

    assert rate(copies) == rate(copies.roll(1, -1)) == 1
    assert rate(C.gaussian_blur(copies, 1.0)) < 0.5
    assert rate(copies.roll(4, -1)) < 0.5


def test_repeats_of_a_prompt_that_is_drawn_twice_stay_apart():
    assert R._copies(["a"] * 4 + ["b"] * 4 + ["a"] * 4) == 4
    assert R._copies(["a"] * 8 + ["b"] * 4) == 4 and R._copies(["a", "b"]) == 1


def test_a_clip_score_of_one_prompt_has_no_chance_level():
    clip = CLIP.from_pretrained("critters-clip-score")
    images = critters.sample_critters(2, 32).images
    one = D.clip_score(clip, images[:1], ["a cat"], images[:1])["clip_score"]
    two = D.clip_score(clip, images, ["a cat", "a duck"], images)["clip_score"]
    assert one.chance is None and two.chance is not None


# ---- two models


def test_a_model_is_equal_to_itself_and_worse_when_it_ignores_prompts(network):
    right, wrong = (
        R.generate_evaluation_images(m, model=m.__name__, **SMALL)
        for m in (honest, shuffled)
    )
    same = compare_images(right, right, network=network)
    assert all(d.difference == 0 and d.p in (None, 1) for d in same.differences)
    found = compare_images(right, wrong, network=network)
    rows = {(d.of, d.measure): d for d in found.differences}
    stated = rows["val, full captions", "all stated"]
    assert stated.ci_low > 0.9 and stated.p < 1e-6 and stated.first > 0.95
    assert rows["val, natural captions", "species"].p < 1e-3
    assert rows["val, full captions", "CLIP score (cosine)"].ci_low > 0
    mmd = rows["quality, dead-leaves", "MMD"]
    assert mmd.ci_low < 0 < mmd.ci_high  # both are real images
    assert "honest | shuffled" in found.table()
    other = R.generate_evaluation_images(honest, **SMALL | {"n": 88})
    with pytest.raises(UserError, match=r"number of prompts \(92 and 100\)"):
        compare_images(right, other)
    other = R.generate_evaluation_images(honest, **SMALL | {"seed": 1})
    with pytest.raises(UserError, match=r"differ in seed \(0 and 1\);"):
        compare_images(right, other)


def images_of(prompts, size=32, seed=0, model="a"):
    "Renders of prompts of the grammar, as a model's images of one's own prompts."
    images = to_uint8(critters.render(R.matching_critters(prompts, seed), size, seed))
    return R.EvaluationImages(
        {"prompts": images}, {"prompts": prompts}, {"model": model}
    )


def test_comparison_of_own_prompts_says_what_it_measured():
    shown = [f"a {c} {s}" for c in ("red", "blue") for s in ("cat", "owl", "duck")]
    right, wrong = images_of(shown), images_of(shown[::-1], 64)
    wrong = R.EvaluationImages(wrong.images, right.prompts, {"model": "b"})
    found = compare_prompts(right, wrong)
    rows = {d.measure: d for d in found.differences}
    assert set(rows) == {
        "species",
        "body colour",
        "all stated",
        "CLIP score (cosine)",
    }
    assert rows["all stated"].difference > 0.8 and rows["all stated"].p < 0.1
    assert rows["CLIP score (cosine)"].ci_low > 0
    assert set(found.notes) == {"quality", "intervals"}
    many = images_of([f"a {c} {s}" for c in critters.COLOURS for s in critters.SPECIES])
    same = compare_prompts(many, many)
    assert set(same.notes) == {"quality"} and len(many) > 40
    assert all(d.difference == 0 and not d.differs for d in same.differences)
    with pytest.raises(UserError, match="did not get the same prompts"):
        compare_prompts(right, images_of(shown[:5]))


def test_comparison_of_a_single_prompt_has_no_interval():
    one = images_of(["a red cat"])
    found = compare_prompts(one, images_of(["a red cat"], 64, model="b"))
    assert {d.ci_low for d in found.differences} == {None}
    assert not any(d.differs for d in found.differences) and "None" not in found.table()
    other = R.EvaluationImages(one.images, {"prompts": ["xyz"]}, {})
    (row,) = compare_prompts(other, other).differences
    assert row.measure == "CLIP score (cosine)"


def test_comparison_sheet_shows_at_most_so_many_prompts():
    many = images_of([f"a {c} cat" for c in list(critters.COLOURS)[:9]])
    for n, columns, rows in ((16, 8, 2), (8, 8, 1), (3, 3, 1)):
        figure = comparison_sheet(many, many, n)
        assert len(figure.texts) == min(n, 9) + 1
        width, height = (round(100 * x) for x in figure.get_size_inches())
        w = 32 * max(3, math.ceil(480 / (32 * columns)))
        assert width == columns * (w + 8)
        line = round(13 * max(1, width / 690))  # letters grow with a wide grid
        assert height == 22 + rows * (w * 66 // 32 + line + 8)


def test_a_star_goes_by_p_where_there_is_one_and_by_the_interval_elsewhere():
    def row(p, low, high):
        return Difference("val", "size", 0.9, 0.8, 0.1, low, high, p)

    cases = [
        (row(0.062, 0.01, 0.2), False),  # few prompts differ: the interval is narrow
        (row(0.04, -0.01, 0.2), True),
        (row(None, 0.01, 0.2), True),
        (row(None, -0.2, -0.01), True),
        (row(None, -0.01, 0.2), False),
    ]
    for difference, expected in cases:
        assert difference.differs == expected, difference
        found = Comparison("a", "b", (difference,), "dead-leaves", 40, "val")
        assert ("| * |" in found.table()) == expected


def test_comparison_sees_blur_and_no_variety(network):
    soft, same = (
        R.generate_evaluation_images(m, **SMALL | {"n": 160, "repeats": (12, 4)})
        for m in (lambda p, s: C.gaussian_blur(honest(p, s), 1.0), stuck)
    )
    found = compare_images(soft, same, network=network).differences
    rows = {(d.of, d.measure): d for d in found}
    assert rows["quality, dead-leaves", "MMD"].ci_low > 0
    assert rows["variety", "pixel distance"].ci_low > 0
    assert rows["variety", "facing, entropy in bits"].ci_low > 0
    assert math.isfinite(rows["val, full captions", "all stated"].difference)
