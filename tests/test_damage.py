"""Damage at scale: whatever is wrong with the input, the answer is success or one line.

Each test feeds one kind of input, with random changes, to the functions that read it.
By default a run is small and always the same. A long one, at random, with a count of
outcomes for each target (T2I_DAMAGE_EXAMPLES is the number of examples of all tests
together):

    T2I_DAMAGE_EXAMPLES=5000 pytest tests/test_damage.py -n 0 --timeout 0

A failure prints its least example; `tests/damage.py` says what the changes are.
"""

import hashlib
import io
import json
import os
import socket
from dataclasses import asdict, replace
from pathlib import Path

import jaxtyping
import pytest
import torch
from damage import (
    BYTE_CHANGES,
    FILE_CHANGES,
    JSON_CHANGES,
    NUMBERS,
    OUTCOMES,
    TEXTS,
    VALUES,
    change_bytes,
    change_json,
    check_left,
    count,
    damaged,
    one_line,
    outcome,
    run_cli,
    to_json,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_trainings import QUICK, Fit, Line, fit

from t2i_tutorial import cli
from t2i_tutorial.checkpoints import find_checkpoint, load_checkpoint, load_weights
from t2i_tutorial.clip import CLIP, CLIP_PRESETS, CLIPConfig, make_clip_config
from t2i_tutorial.core import load_json, show_images, to_uint8
from t2i_tutorial.data import ImageTextDataset, clean_caption, load_image
from t2i_tutorial.diffusion.imagen import Imagen, imagen_preset
from t2i_tutorial.evaluation.classifier import (
    CLASSIFIER_PRESETS,
    AttributeClassifier,
    ClassifierConfig,
    make_classifier_config,
)
from t2i_tutorial.evaluation.metrics import Metric
from t2i_tutorial.evaluation.quality import load_feature_network
from t2i_tutorial.evaluation.report import (
    METRIC_LABELS,
    REPORT_VERSION,
    EvaluationReport,
    measure_images,
)
from t2i_tutorial.experiments import (
    load_or_init_results,
    save_annotated_png,
)
from t2i_tutorial.gan.config import gigagan_preset
from t2i_tutorial.gan.gigagan import GigaGAN
from t2i_tutorial.hub import check_prompts, load_model, load_text_encoder
from t2i_tutorial.text import Tokenizer
from t2i_tutorial.training import TrainConfig, Trainer, apply_overrides, setting_names

TOTAL = os.environ.get("T2I_DAMAGE_EXAMPLES")
SHARES = {  # of the examples, by target
    **{"folder": 25, "image": 35, "words": 20, "settings": 40},
    **{"model": 30, "checkpoint": 20, "command": 25, "report": 20},
    "results": 15,
}


def examples(target: str):
    "How often a target is tried, and how."
    share = SHARES[target] / sum(SHARES.values())
    return settings(
        max_examples=max(1, round(int(TOTAL) * share)) if TOTAL else SHARES[target],
        derandomize=not TOTAL,
        database=None,
        deadline=None,  # `outcome` has a limit of its own
        phases=(Phase.generate, Phase.shrink),  # tracing every line costs minutes
        suppress_health_check=list(HealthCheck),
        print_blob=bool(TOTAL),
    )


@pytest.fixture(scope="module", autouse=True)
def surroundings(request):
    "No network, no shape checks (users have none), and a count at the end."
    names = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.delenv(name, raising=False)

        def offline(*_, **__):
            raise OSError("no network")

        patch.setattr(socket, "getaddrinfo", offline)
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)
    if TOTAL:
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            for target, found in OUTCOMES.items():
                numbers = ", ".join(f"{n} {what}" for what, n in sorted(found.items()))
                print(f"\n{target}: {numbers}", end="")


# ---- a folder of captioned images


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    "Three sound images with captions, in each form that is read."
    root = tmp_path_factory.mktemp("data")
    rows = [(f"{n}.png", f"a {n} cat") for n in ("red", "blue", "grey")]
    for kind in ("jsonl", "csv", "txt"):
        (root / kind).mkdir()
        for name, text in rows:
            Image.new("RGB", (20, 16), name[:-4]).save(root / kind / name)
            if kind == "txt":
                (root / kind / name).with_suffix(".txt").write_text(text)
    lines = [json.dumps({"file_name": n, "text": t}) + "\n" for n, t in rows]
    (root / "jsonl" / "metadata.jsonl").write_text("".join(lines))
    table = "file_name,text\n" + "".join(f"{n},{t}\n" for n, t in rows)
    (root / "csv" / "metadata.csv").write_text(table)
    return {kind: root / kind for kind in ("jsonl", "csv", "txt")}


@examples("folder")
@given(
    st.sampled_from(("jsonl", "csv", "txt")),
    st.lists(FILE_CHANGES, min_size=1, max_size=3),
)
def test_a_damaged_folder_is_read_or_refused_in_one_line(folders, kind, changes):
    with damaged(folders[kind], changes) as folder:

        def read():
            data = ImageTextDataset.from_folder(folder, 16)
            return [b.captions for b in data.batches(2, flip=True)]

        outcome(f"folder, {kind}", read, folder)


# ---- the bytes of an image


def _image_files() -> dict[str, bytes]:
    "A small image in each of several formats, some with odd extras."
    picture = Image.effect_noise((20, 16), 40)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x829A] = 6, "a cat", 0.5
    rgb, other = picture.convert("RGB"), picture.rotate(90)
    kinds = {
        "PNG": (rgb, {"pnginfo": None, "icc_profile": b"no profile"}),
        "PNG 16": (picture.convert("I;16"), {}),
        "PNG palette": (rgb.convert("P"), {"transparency": 3}),
        "JPEG": (rgb, {"exif": exif}),
        "JPEG CMYK": (rgb.convert("CMYK"), {}),
        "GIF": (picture, {"save_all": True, "append_images": [other]}),
        "TIFF": (rgb, {"exif": exif}),
        "TIFF float": (picture.convert("F"), {}),
        "BMP": (rgb, {}),
        "WEBP": (rgb, {"exif": exif}),
        "PPM": (rgb, {}),
        "ICO": (rgb, {}),
    }
    found = {}
    for name, (image, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, name.split()[0], **options)
        found[name] = buffer.getvalue()
    return found


IMAGES = _image_files()


@examples("image")
@given(
    st.sampled_from(sorted(IMAGES)),
    st.lists(BYTE_CHANGES, min_size=1, max_size=4),
)
def test_a_damaged_image_is_read_or_refused_in_one_line(kind, changes):
    data = IMAGES[kind]
    for change in changes:
        data = change_bytes(data, change)
    outcome(f"image, {kind}", lambda: load_image(data, 16))


# ---- words


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    "A tiny model of each kind, saved."
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    Imagen(imagen_preset("tiny").model_config).save_pretrained(root / "imagen")
    small = ["generator.channels=8,8,8", "discriminator.channels=8,8"]
    small += ["generator.z_dim=8", "generator.style_dim=8"]
    small += ["generator.heads=1", "discriminator.heads=1"]
    config = gigagan_preset("tiny", small).model_config
    GigaGAN(config).save_pretrained(root / "gigagan")
    words = Tokenizer.train(["a red cat", "a blue dragon"], size=300)
    sizes = CLIPConfig(16, 1, 2, 8, "convolutions", 16, words.size, words.max_length)
    CLIP(sizes, words).save_pretrained(root / "clip")
    AttributeClassifier(ClassifierConfig(8, 16, 16)).save_pretrained(
        root / "classifier"
    )
    return {p.name: p for p in root.iterdir()}


@pytest.fixture(scope="module")
def painter(models) -> Imagen:
    return load_model(models["imagen"], "cpu")


@examples("words")
@given(st.lists(st.one_of(TEXTS, VALUES), max_size=3), st.lists(TEXTS, max_size=3))
def test_any_words_are_drawn_or_refused_in_one_line(painter, prompts, captions):
    outcome("words, check_prompts", lambda: check_prompts(prompts))
    for caption in [*prompts, *captions]:
        outcome("words, clean_caption", lambda c=caption: clean_caption(c))
    # what the checks let pass is sampled, and shown with its caption
    texts = [t for t in [*prompts, *captions] if isinstance(t, str)][:2]
    sampled, _ = outcome("words, sample", lambda: painter.sample(texts, num_steps=1))
    if sampled is None:
        return
    with damaged_nothing() as folder:

        def keep():
            captions = check_prompts(texts)
            show_images(sampled, captions).savefig(folder / "grid.png")
            for caption in captions:
                save_annotated_png(folder / "a.png", sampled[0], prompt=caption)

        _, refusal = outcome("words, shown", keep, folder)
        assert refusal is None  # what can be sampled can be shown and saved


def damaged_nothing():
    "An empty folder, for the length of a block."
    import tempfile
    from contextlib import contextmanager

    @contextmanager
    def empty():
        with tempfile.TemporaryDirectory(prefix="damage-") as scratch:
            yield Path(scratch)

    return empty()


# ---- settings

PRESETS = ("imagen", "gigagan", "clip", "classifier", "train")


def _known(name: str) -> list[str]:
    "The settings that there are."
    if name == "train":
        return setting_names(TrainConfig())
    if name in ("clip", "classifier"):
        return setting_names((CLIP_PRESETS | CLASSIFIER_PRESETS)[f"critters-{name}"])
    preset = {"imagen": imagen_preset, "gigagan": gigagan_preset}[name]("tiny")
    own = ["num_images", "init_from", "val_fraction"]
    return (
        setting_names(preset.model_config)
        + setting_names(preset.train_config, "train.")
        + own
    )


SETTINGS = st.sampled_from(PRESETS).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.lists(
            st.tuples(
                st.one_of(st.sampled_from(_known(name)), TEXTS),
                st.one_of(NUMBERS, TEXTS, VALUES),
            ),
            min_size=1,
            max_size=3,
        ),
        st.sampled_from(("words", "mapping")),
        st.one_of(st.sampled_from(("tiny", "cpu-32", "tyni")), TEXTS),
    )
)


@examples("settings")
@given(SETTINGS)
def test_any_settings_are_taken_or_refused_in_one_line(chosen):
    name, pairs, form, preset = chosen
    overrides = dict(pairs)
    if form == "words":
        overrides = [f"{k}={v}" for k, v in pairs]

    def apply():
        if name == "imagen":
            return imagen_preset(preset, overrides)
        if name == "gigagan":
            return gigagan_preset(preset, overrides)
        if name == "train":
            return TrainConfig.from_overrides(overrides)
        presets = {"clip": CLIP_PRESETS, "classifier": CLASSIFIER_PRESETS}[name]
        make = {"clip": make_clip_config, "classifier": make_classifier_config}[name]
        return make(apply_overrides(presets["tiny"], overrides))

    outcome(f"settings, {name}", apply)
    if name in ("clip", "classifier") and form == "mapping":
        make = {"clip": make_clip_config, "classifier": make_classifier_config}[name]
        fields = {k: v for k, v in pairs if k.isidentifier() and k != "preset"}
        outcome(f"settings, make_{name}_config", lambda: make(preset, **fields))


# ---- the folder of a model

SHOW = {"num_steps": 1}
PIXELS = torch.zeros(1, 3, 16, 16)


def _use(kind: str, folder: Path):
    "Load a model and run it once."
    if kind == "clip":
        clip = CLIP.from_pretrained(folder)
        load_text_encoder(str(folder)).encode(["a red cat"])
        return clip.similarity(PIXELS, ["a red cat"])
    if kind == "classifier":
        return AttributeClassifier.from_pretrained(folder)(PIXELS)
    options = {"num_steps": 1} if kind == "imagen" else {}
    return to_uint8(load_model(folder, "cpu").sample(["a red cat"], **options))


@examples("model")
@given(
    st.sampled_from(("imagen", "gigagan", "clip", "classifier")),
    st.lists(FILE_CHANGES, min_size=1, max_size=2),
)
def test_a_damaged_model_is_used_or_refused_in_one_line(models, kind, changes):
    with damaged(models[kind], changes) as folder:
        outcome(f"model, {kind}", lambda: _use(kind, folder), folder)


# ---- the folder of a training


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    "A training of four steps with two checkpoints."
    folder = tmp_path_factory.mktemp("training") / "run"
    fit(folder, replace(QUICK, max_steps=4), validation=Line(8))
    return folder


def sign_again(folder: Path) -> None:
    "Fit the sizes and digests in every checkpoint to its damaged files."
    for path in folder.glob("checkpoints/*/state.json"):
        try:
            state = load_json(path)
            for name in state["files"]:
                if not (path.parent / name).is_file():
                    continue  # a pipe would never end
                data = (path.parent / name).read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                state["files"][name] = {"bytes": len(data), "sha256": digest}
            path.write_bytes(to_json(state))
        except (ValueError, OSError, TypeError, KeyError):
            pass  # too much damage for that


@examples("checkpoint")
@given(st.lists(FILE_CHANGES, min_size=1, max_size=2), st.booleans())
def test_a_damaged_training_is_resumed_or_refused_in_one_line(trained, changes, sign):
    with damaged(trained, changes) as folder:
        if sign:
            sign_again(folder)

        def look():
            path = find_checkpoint(folder, "best")
            load_weights(Fit(), path)
            return load_checkpoint(path)

        outcome("checkpoint, looked at", look, folder)

        def resume():
            torch.manual_seed(0)
            trainer = Trainer(
                Fit(), Line(), replace(QUICK, max_steps=5), folder, Line(8)
            )
            return trainer.fit(resume=True)

        outcome("checkpoint, resumed", resume, folder)


# ---- a command line

BASES = {
    "generate": ["generate", "a cat", "--model", "MODEL", "--num-images", "1"]
    + ["--num-steps", "1", "--seed", "3", "--output", "a.png", "--image-width", "32"],
    "train": ["train", "imagen", "--preset", "tiny", "train.lr=1e-3"]
    + ["--unet.heads", "2", "unet.channels=16,16", "--output", "run"],
    "short": ["train", "classifier", "--preset", "tiny", "lr=0.1", "--output", "run"],
    "help": ["train", "gigagan", "--preset", "tiny", "--help"],
    "evaluate": ["evaluate", "MODEL", "--prompts", "40", "--num-steps", "1"]
    + ["--split", "val", "--batch-size", "16", "--output", "a.json"],
    "models": ["models"],
}
QUICKLY = ["train.max_steps=1", "train.warmup_steps=0", "train.batch_size=2"]
QUICKLY += [
    "num_images=4",
    "train.val_batches=1",
    "train.gradient_accumulation_steps=1",
]
WORD_CHANGES = st.tuples(
    st.sampled_from(
        ("replace", "replace", "value", "remove", "insert", "swap", "join")
    ),
    st.integers(0, 20),
    st.one_of(
        TEXTS, NUMBERS.map(str), st.sampled_from([w for b in BASES.values() for w in b])
    ),
)


def change_words(words: list[str], change: tuple) -> list[str]:
    "A command line with one change."
    kind, index, text = change
    i, words = index % (len(words) or 1), list(words)
    if not words or kind == "insert":
        return words[:i] + [text] + words[i:]
    if kind == "replace":
        words[i] = text
    elif kind == "value":
        words[i] = words[i].partition("=")[0] + "=" + text
    elif kind == "remove":
        words.pop(i)
    elif kind == "swap":
        words[i], words[-1] = words[-1], words[i]
    elif kind == "join":
        words[i : i + 2] = ["".join(words[i : i + 2])]
    return words


@pytest.fixture(scope="module")
def quick_commands():
    """Trainings without a checkpoint do no steps; two images of a batch are drawn.

    A word that goes missing (`--prompts 40`) asks for thousands of images: no hang.
    """
    small = load_feature_network("dead-leaves")
    draw = cli._sample

    def sample(model, prompts, *args, **more):
        two = draw(model, prompts[:2], *args, **more)
        return two[torch.arange(len(prompts)) % 2]

    def measure(generated, training_images, network):
        quick = {"lpips_net": None, "network": small}
        return measure_images(generated, training_images=PIXELS, **quick)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_sample", sample)
        patch.setattr(f"{measure_images.__module__}.measure_images", measure)
        for module, name, make in (
            ("clip", "train_clip", make_clip_config),
            ("evaluation.classifier", "train_classifier", make_classifier_config),
        ):

            def train(preset, folder, make=make, **changes):
                make(preset, **changes)

            patch.setattr(f"t2i_tutorial.{module}.{name}", train)
        yield


@examples("command")
@given(st.sampled_from(sorted(BASES)), st.lists(WORD_CHANGES, max_size=3))
def test_any_command_line_ends_well_or_in_one_line(
    models, quick_commands, base, changes
):
    words = BASES[base]
    for change in changes:
        words = change_words(words, change)
    if words[:2] in (["train", "imagen"], ["train", "gigagan"]):
        words = [*words, *QUICKLY]
    words = [str(models["imagen"]) if w == "MODEL" else w for w in words]
    was = os.getcwd()
    with damaged_nothing() as folder:
        os.chdir(folder)
        try:
            (code, out, err), _ = outcome("command", lambda: run_cli(cli.main, words))
        finally:
            os.chdir(was)
        lines = [x.rpartition("\r")[2] for x in err.split("\n")]  # without the bars
        lines = [x for x in lines if x.strip()]
        extra = ("t2i: note:", "t2i: seconds:")
        notes = [x for x in lines if x.startswith(extra)]
        for line in lines:
            one_line(line)
        left = [x for x in lines if x not in notes]
        assert code in (0, 2), (code, err)
        assert len(left) == (code == 2), err
        assert all(x.startswith("t2i") for x in left), err
        assert not (code and out), out
        check_left(folder, {}, left[0] if code else None)
    count(f"command, {base}", "refused" if code else "success")


# ---- files of results


@pytest.fixture(scope="module")
def report() -> dict:
    metrics = {k: Metric(0.5, 0.6, 0.1, 0.4, 0.6) for k in METRIC_LABELS}
    sections = {"test/full": metrics, "variety": metrics}
    settings = {"model": "m", "size": 32, "split": "test", "num_images": 80}
    seconds = {"generating": 1.0}
    found = EvaluationReport(sections, {"LPIPS": "not asked for"}, settings, seconds)
    return {"format": REPORT_VERSION} | asdict(found)


def damaged_json(value: dict, changes: list, cuts: list) -> bytes:
    "A copy of a value with changes, written as JSON with cuts."
    value = json.loads(json.dumps(value))
    for change in changes:
        value = change_json(value, change)
    data = to_json(value)
    for cut in cuts:
        data = change_bytes(data, cut)
    return data


@examples("report")
@given(
    st.lists(JSON_CHANGES, min_size=1, max_size=2), st.lists(BYTE_CHANGES, max_size=1)
)
def test_a_damaged_report_is_read_or_refused_in_one_line(report, changes, cuts):
    with damaged_nothing() as folder:
        path = folder / "report.json"
        path.write_bytes(damaged_json(report, changes, cuts))

        def show():
            found = EvaluationReport.load(path)
            found.save(folder / "again.json")
            found.accuracy_rows()
            return found.table()

        _, refusal = outcome("report", show)
        outcome("JSON", lambda: load_json(path), folder)


@examples("results")
@given(
    st.lists(JSON_CHANGES, min_size=1, max_size=2), st.lists(BYTE_CHANGES, max_size=1)
)
def test_damaged_results_are_continued_or_refused_in_one_line(changes, cuts):
    runs = {"a": {"loss": [1.0, 0.5], "seconds": 3.2}, "b": {"loss": []}}
    value = {"seed": 0, "hardware": {"cpu": "one"}, "runs": runs}
    with damaged_nothing() as folder:
        path = folder / "results.json"
        path.write_bytes(damaged_json(value, changes, cuts))

        def go_on():
            found = load_or_init_results(path, {"seed": 0})
            assert found["seed"] == 0 and isinstance(found["runs"], dict)

        outcome("results", go_on, folder)
