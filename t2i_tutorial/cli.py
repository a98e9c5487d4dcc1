"""The command line `t2i`: generate, upscale, caption-check, train, evaluate and others.

The options of each command are the fields of a dataclass, and those of a training are
the fields of its configuration. Tyro turns both into options and help. A user's mistake
ends in one line and exit code 2, never in a traceback. Torch is imported only when a
command runs.
"""

import sys

try:
    import contextlib
    import hashlib
    import io
    import os
    import re
    import secrets
    import shutil
    import tempfile
    import unicodedata
    import warnings
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from dataclasses import dataclass, field, fields, make_dataclass, replace
    from difflib import get_close_matches
    from functools import partial
    from importlib import import_module
    from importlib.util import find_spec
    from itertools import count
    from pathlib import Path
    from typing import Annotated, get_type_hints

    import tyro

    from t2i_tutorial import __version__
except KeyboardInterrupt:  # while the program starts
    print("t2i: stopped", file=sys.stderr)
    sys.exit(130)

_ABOUT = (
    "Text to Image from Scratch: small text-to-image models that you can read in full."
)
_DEFAULT_MODEL = "critters-64"
_DEFAULT_CASCADE = "critters-64-cascade"
_SAMPLING = {  # model_type -> options of its `sample`, with their defaults here
    "imagen": {"guidance_scale": None, "num_steps": None, "sampler": "dpmpp-2m"},
    "gigagan": {"truncation_psi": None},
    "super-resolution": {},  # it enlarges images, and generates none
    "gan-upsampler": {},  # the same
}
_SAMPLING["cascade"] = _SAMPLING["imagen"] | {"aug_level": None}
_SAMPLING["gan-cascade"] = _SAMPLING["cascade"]
_CASCADES = {"super-resolution": "cascade", "gan-upsampler": "gan-cascade"}
_TRAININGS = {  # name -> module, its presets, its function, the default preset
    "imagen": ("diffusion.imagen", "IMAGEN_PRESETS", "train_imagen", "cpu-32"),
    "gigagan": ("gan.gigagan", "GIGAGAN_PRESETS", "train_gigagan", "cpu-32"),
    "super-resolution": (
        "diffusion.cascade",
        "SUPER_RESOLUTION_PRESETS",
        "train_super_resolution",
        "cpu-32-64",
    ),
    "gan-upsampler": (
        "gan.upsampler",
        "GAN_UPSAMPLER_PRESETS",
        "train_gan_upsampler",
        "cpu-32-64",
    ),
    "clip": ("clip", "CLIP_PRESETS", "train_clip", "critters-clip"),
    "classifier": (
        "evaluation.classifier",
        "CLASSIFIER_PRESETS",
        "train_classifier",
        "critters-classifier",
    ),
}


_EXTRAS = dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export")


class _UsageError(Exception):
    "A command line that cannot be read; the message is one line."


# ---- the options of each command


_Word = tyro.conf.Positional[str]
_Text = Annotated[str | None, tyro.conf.arg(metavar="STR")]
_Whole = Annotated[int | None, tyro.conf.arg(metavar="INT")]
_Prompts = Annotated[int | str | None, tyro.conf.arg(metavar="INT|FILE")]
_Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    "How images are sampled; an option that is not given is the model's own."

    guidance_scale: _Number = None
    """Imagen, cascade: weight of the text; 1 is no guidance; the model's own if not
    given"""
    num_steps: _Whole = None
    """Imagen, cascade: steps of the sampler; 20 if not given (10 in the second stage of a
    cascade), or all of fewer timesteps"""
    sampler: _Text = None
    "Imagen, cascade: dpmpp-2m, ddim or ddpm; dpmpp-2m if not given"
    aug_level: _Number = None
    """cascade: noise in the small image before it is enlarged, from 0; the model's own if
    not given"""
    truncation_psi: _Number = None
    "GigaGAN: 1 is full variety, towards 0 less; the model's own if not given"
    seed: int = 0
    "the same seed gives the same images"
    device: _Text = None
    "cpu, cuda or mps; the best available if not given"


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(SamplingOptions):
    "Generate images of a prompt and write them to one PNG."

    prompt: Annotated[_Word, tyro.conf.arg(metavar="PROMPT")] = tyro.MISSING
    "for instance 'a blue and red dragon'"
    model: str = _DEFAULT_MODEL
    "a name from t2i models, a folder of a model or a training, or a hub repository"
    num_images: int = 4
    "how many images, from 1 to 64"
    share_noise: bool = False
    "the same noise for every prompt, to see what a word changes"
    output: _Text = None
    "PNG to write; named after prompt, model, seed and settings if not given"
    overwrite: bool = False
    "replace the file if it exists"
    image_width: int = 256
    "width of each image in the file, in pixels"


@dataclass(frozen=True, kw_only=True)
class UpscaleOptions:
    "Enlarge an image with a super-resolution stage and write it to a PNG."

    image: Annotated[_Word, tyro.conf.arg(metavar="IMAGE")] = tyro.MISSING
    "a file with an image of up to 128 pixels a side"
    model: str = _DEFAULT_CASCADE
    "a cascade or a super-resolution stage: a folder of a model or a training, a name"
    prompt: _Text = None
    "what the image shows; it may help"
    guidance_scale: _Number = None
    "weight of the prompt; 1 is no guidance; the model's own if not given"
    num_steps: _Whole = None
    """steps of the sampler; 10 if not given, or all of fewer timesteps; a GAN has one
    pass"""
    sampler: _Text = None
    "dpmpp-2m, ddim or ddpm; dpmpp-2m if not given"
    aug_level: _Number = None
    """noise in the image before it is enlarged, from 0: the more, the more is invented; the
    model's own if not given"""
    seed: int = 0
    "the same seed gives the same details"
    device: _Text = None
    "cpu, cuda or mps; the best available if not given"
    output: _Text = None
    "PNG to write; named after the image if not given"
    overwrite: bool = False
    "replace the file if it exists"


@dataclass(frozen=True, kw_only=True)
class CascadeOptions:
    "Join a base model and a super-resolution stage to one model."

    base: Annotated[_Word, tyro.conf.arg(metavar="BASE")] = tyro.MISSING
    "a model that generates small images, for instance critters-32"
    stage: Annotated[_Word, tyro.conf.arg(metavar="STAGE")] = tyro.MISSING
    "a super-resolution stage: a folder of a model or a training"
    output: str = "runs/cascade"
    "folder to write to, new or empty"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SamplingOptions):
    "Measure what was stated, quality, variety and copies of a model on critters."

    model: Annotated[_Word, tyro.conf.arg(metavar="MODEL")] = _DEFAULT_MODEL
    """a name from t2i models, a folder of a model or a training, or a hub repository;
    or saved images: a .safetensors file, or a folder of images with their captions"""
    split: _Text = None
    """val to choose settings; test to report, also on held-out combinations; test if not
    given"""
    prompts: _Whole = None
    """different prompts, 40 to 10000; 64 of them more are asked for 8 times; 2000 if not
    given"""
    batch_size: _Whole = None
    "prompts at a time; with the seed it determines the noise; 500 if not given"
    seed: _Whole = None
    "the same seed gives the same images; 0 if not given"
    feature_network: _Text = None
    """of the quality: alexnet, squeezenet or dead-leaves; the first of them whose weights
    are at hand if not given"""
    save_images: _Text = None
    "safetensors file to write the generated images to, with their prompts"
    generate_only: bool = False
    "write the images, measure nothing"
    training_of: _Text = None
    "for saved images: the model whose training images are searched for copies"
    output: _Text = None
    "JSON to write the report to"
    overwrite: bool = False
    "replace the file if it exists"


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    "Compare two models on the same prompts, in pairs."

    first: Annotated[_Word, tyro.conf.arg(metavar="FIRST")] = tyro.MISSING
    "a model, or saved images, as for t2i evaluate"
    second: Annotated[_Word, tyro.conf.arg(metavar="SECOND")] = tyro.MISSING
    "another one"
    split: _Text = None
    "val to choose; test to report; test, or that of saved images, if not given"
    prompts: _Prompts = None
    """different prompts of critters, 40 to 10000; or a text file with prompts of your
    own, one a line; 2000, or those of saved images, if not given"""
    batch_size: _Whole = None
    "prompts at a time; with the seed it determines the noise; 500 if not given"
    seed: _Whole = None
    "of the noise; 0, or that of saved images, if not given"
    feature_network: _Text = None
    "of the quality, as for t2i evaluate"
    device: _Text = None
    "cpu, cuda or mps; the best available if not given"
    output: _Text = None
    """folder to write comparison.json, table.md and sheet.png (the first 16 prompts)
    to; a name that ends in .json is a file of the differences only"""
    overwrite: bool = False
    "replace the file, or an earlier comparison in the folder"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    "How images of one's own are read."

    text_column: str = "text"
    "column of the captions in the data; several, with commas: a caption of each"
    split: str = "train"
    "split of the data to train on"
    max_caption: int = 1000
    "characters of a caption that are allowed; a longer one is refused"
    crop: bool = False
    "cut the middle out of an image that is no square, instead of white bars"


@dataclass(frozen=True, kw_only=True)
class CaptionCheckOptions(DataOptions):
    "Look at captioned images before a training: faults, copies, words."

    data: Annotated[_Word, tyro.conf.arg(metavar="DATA")] = tyro.MISSING
    "a folder with a metadata.jsonl or .txt captions, or a hub data set"
    text_encoder: _Text = None
    "the text encoder of the training, as its setting text_encoder; usual if not given"
    sheet: _Text = None
    "PNG to write a contact sheet to, of up to 48 images with their captions"
    json: _Text = None
    "JSON to write the report to, with every finding in full"
    overwrite: bool = False
    "replace files that exist"


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions):
    "Train a model and write it to a folder."

    name: Annotated[_Word, tyro.conf.arg(metavar="NAME")] = tyro.MISSING
    """imagen, gigagan, super-resolution, gan-upsampler, clip or classifier; t2i train
    NAME --help lists every setting"""
    preset: _Text = None
    """a named set of settings; the recorded model's if not given, or that for a warm
    start with --init-from MODEL"""
    data: str = "critters"
    "critters, a folder with a metadata.jsonl or .txt captions, or a hub data set"
    output: _Text = None
    "folder to write to; runs/NAME-PRESET if not given"
    resume: bool = False
    "continue from the newest checkpoint in the folder"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    "Write a model as ONNX, for other programs and for a page in a browser."

    model: Annotated[_Word, tyro.conf.arg(metavar="MODEL")] = tyro.MISSING
    """a name from t2i models, a folder of a model or a training, a hub repository, or
    critters-classifier"""
    output: _Text = None
    "folder to write to, new or empty; MODEL-onnx if not given"
    full_precision: bool = False
    "store weights in 32 bits instead of 16"


@dataclass(frozen=True, kw_only=True)
class ShareOptions:
    "Upload a trained model with a card to the hub."

    model: Annotated[_Word, tyro.conf.arg(metavar="MODEL")] = tyro.MISSING
    "a folder of a model or of a training"
    repository: Annotated[_Word, tyro.conf.arg(metavar="OWNER/NAME")] = tyro.MISSING
    "where on the hub; it is made if it does not exist"
    license: _Text = None
    "of the model, for instance cc-by-4.0; only who owns the images can say"
    private: bool = False
    "for nobody else to see"
    card_only: bool = False
    "write the card beside the model and upload nothing"


@dataclass(frozen=True, kw_only=True)
class ModelsOptions:
    "List the bundled models."


# ---- reading the command line


def _nearest(word: str, options: Iterable[str]) -> str:
    "A hint at the option that was meant, or at what there is."
    options = list(options)
    near = get_close_matches(word, options, 1)
    if word and not near:
        near = [o for o in options if o.startswith(word)]
    return (
        f"did you mean {near[0]!r}?" if near else f"choose from: {', '.join(options)}"
    )


def _parse(kind: type, arguments: Sequence[str], prog: str) -> tuple[object, list[str]]:
    "Options as tyro reads them and the rest; raises `_UsageError` with one line."
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                args=arguments,
                prog=prog,
                return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as e:
        if not e.code:
            raise
        message = _plain_words(_one_line(said.getvalue()), kind)
        names, _, example = _POSITIONAL[kind]
        words = [word.partition("=")[0] for word in arguments]
        for name in names:
            if f"--{name}" in words:
                message = f"leave out --{name}; for instance {example}"
        raise _UsageError(f"{prog}: {message}; see {prog} --help") from None


def _one_line(box: str) -> str:
    "The message in the box that tyro draws around an error."
    lines = [line.strip("│╭╮╰╯|+ ") for line in box.splitlines()[1:]]
    message = []
    for line in lines:
        if line and not line.strip("─-"):  # a rule, of hyphens on an ASCII terminal
            if message:
                break
        else:
            message += line.split()
    return " ".join(message)[:300]


_POSITIONAL = {  # command -> its fields without a name, what they are called, an example
    GenerateOptions: (("prompt",), "PROMPT", "t2i generate 'a blue and red dragon'"),
    UpscaleOptions: (("image",), "IMAGE", "t2i upscale small.png"),
    CascadeOptions: (
        ("base", "stage"),
        "BASE and STAGE",
        "t2i cascade critters-32 runs/super-resolution-cpu-32-64",
    ),
    EvaluateOptions: (("model",), "MODEL", "t2i evaluate critters-32"),
    CompareOptions: (
        ("first", "second"),
        "FIRST and SECOND",
        "t2i compare critters-32 critters-32-gigagan",
    ),
    CaptionCheckOptions: (("data",), "DATA", "t2i caption-check my-images"),
    TrainOptions: (("name",), "NAME", "t2i train imagen"),
    ExportOptions: (("model",), "MODEL", "t2i export critters-32"),
    ShareOptions: (
        ("model", "repository"),
        "MODEL and OWNER/NAME",
        "t2i share runs/imagen-warm-32 your-name/robots --license cc-by-4.0",
    ),
    ModelsOptions: ((), "", "t2i models"),
}


def _plain_words(message: str, kind: type) -> str:
    "What tyro says of an option, in our words; its own where we have none."
    names, title, example = _POSITIONAL[kind]
    missing = re.match(r"Missing value for argument '(.+?)'", message)
    if missing and missing[1] in _options(kind):
        return f"{missing[1]} needs a value"
    if missing or message.startswith("Missing from"):
        dash = " (one that begins with - goes last, after --)"
        return f"no {title}{dash * ('prompt' in names)}; for instance {example}"
    wrong = re.match(r"Error parsing --([\w-]+): .*?'(.*?)'", message)
    hint = get_type_hints(kind).get(wrong[1].replace("-", "_")) if wrong else None
    what = {"int": "a whole number", "float": "a number"}
    for kind_name, words in what.items():
        if re.search(rf"\b{kind_name}\b", str(hint)):
            return f"--{wrong[1]} must be {words}, not {wrong[2]!r:.60}"
    return message


def _options(kind: type) -> list[str]:
    "The options of a command, as they are typed."
    names = [f.name for f in fields(kind) if f.name not in _POSITIONAL[kind][0]]
    return [f"--{name.replace('_', '-')}" for name in names]


def _refuse_rest(rest: Sequence[str], kind: type, prog: str) -> None:
    "Raise `_UsageError` for a word that no option and no position takes."
    for word in rest:
        name = word.partition("=")[0]
        if word.startswith("-") and name.replace("_", "-") in _options(kind):
            raise _UsageError(f"{prog}: {name} needs a value; see {prog} --help")
        if word.startswith("-"):
            hint = _nearest(name, [*_options(kind), "--help"])
            raise _UsageError(f"{prog}: unknown option {name!r}; {hint}")
        if kind is GenerateOptions:
            raise _UsageError(
                f"{prog}: unexpected {word[:60]!r} after the prompt; "
                "put the prompt in quotes"
            )
        raise _UsageError(f"{prog}: unexpected {word[:60]!r}; see {prog} --help")


def _read_settings(rest: Sequence[str], prog: str) -> list[str]:
    "Settings in the form name=value from `name=value`, `--name=value`, `--name value`."
    settings, words = [], list(rest)
    while words:
        word = words.pop(0)
        name = word.partition("=")[0]
        if not word.startswith("-"):
            settings.append(word)  # a word without "=" is refused where it is read
        elif near := get_close_matches(name, _options(TrainOptions), 1, cutoff=0.8):
            raise _UsageError(
                f"{prog}: unknown option {name!r}; did you mean {near[0]!r}?"
            )
        elif "=" in word:
            settings.append(word.lstrip("-"))
        else:
            values = []
            while words and not words[0].startswith("--") and "=" not in words[0]:
                values.append(words.pop(0))
            if not values:
                raise _UsageError(f"{prog}: {word} needs a value; see {prog} --help")
            settings.append(f"{word.lstrip('-')}={','.join(values)}")
    return settings


# ---- generate, evaluate, models


def _sampling_options(options: SamplingOptions, model_type: str) -> dict:
    "Arguments for `sample`; raises `UserError` for an option of another kind of model."
    from t2i_tutorial.core import UserError

    if model_type in _CASCADES:
        raise UserError(
            "this model is a super-resolution stage, which enlarges images: use "
            "t2i upscale, or join it to its base with t2i cascade"
        )
    known = _SAMPLING[model_type]
    for name in {n for own in _SAMPLING.values() for n in own} - set(known):
        if getattr(options, name) is not None:
            own = ", ".join(f"--{k.replace('_', '-')}" for k in known)
            raise UserError(
                f"--{name.replace('_', '-')} does not apply to this model, whose "
                f"model_type is {model_type}; leave it out (it has {own})"
            )
    given = {name: getattr(options, name) for name in known}
    return {k: known[k] if v is None else v for k, v in given.items()}


def _check_output(
    output: str, suffix: str, overwrite: bool, option: str = "--output"
) -> Path:
    "Raise `UserError` unless a new file of this kind can be written there."
    from t2i_tutorial.core import UserError

    path, name = Path(output), repr(output)
    if not output:
        raise UserError(f"{option} is empty; name a file, or leave it out")
    if path.is_dir():
        raise UserError(f"the output {name} is a folder; name a file")
    if path.suffix.lower() != suffix:
        raise UserError(f"the output {name} must end in {suffix}, after a name")
    _check_writable(path.parent)
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"the output {name} exists; name another, or give --overwrite")
    return path


def _check_writable(folder: Path) -> None:
    "Raise `UserError` unless files can be made in a folder."
    from t2i_tutorial.core import UserError

    name = repr(str(folder))
    if not folder.is_dir():
        raise UserError(
            f"the output folder {name} does not exist; make it, or name another"
        )
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise UserError(
            f"the output folder {name} cannot be written to ({e.strerror}); "
            "name another"
        ) from e


def _numbered(path: Path) -> Iterator[Path]:
    "A.png, A-2.png, A-3.png and so on."
    yield path
    for n in count(2):
        yield path.with_name(f"{path.stem}-{n}{path.suffix}")


def _write_new(path: Path, write: Callable[[Path], object], overwrite: bool) -> Path:
    """Have `write` make a file; returns where it is.

    It never replaces one that has come there meanwhile, unless that is asked for.
    """
    from t2i_tutorial.core import UserError

    hidden = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        write(hidden)
        if overwrite:
            os.replace(hidden, path)
            return path
        return next(p for p in _numbered(path) if _publish(hidden, p))
    except UserError as e:  # name the place that was asked for
        raise UserError(str(e).replace(str(hidden), str(path))) from e
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink()


def _publish(hidden: Path, path: Path) -> bool:
    "Give a finished file its name; False if another one has it."
    try:
        os.link(hidden, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            target = open(path, "xb")
        except FileExistsError:
            return False
        try:
            with target, open(hidden, "rb") as source:
                shutil.copyfileobj(source, target)
        except BaseException:
            path.unlink()
            raise
    return True


def _check_range(name: str, value: int, minimum: int, maximum: int) -> None:
    from t2i_tutorial.core import UserError

    if not minimum <= value <= maximum:
        raise UserError(
            f"--{name} must be a whole number from {minimum} to {maximum}, not {value}"
        )


def _slug(text: str, limit: int = 60) -> str:
    "Letters, digits and hyphens of a text; a digest if too much is lost."
    text = unicodedata.normalize("NFC", text.lower())
    words = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in text)
    slug = "-".join(words.split())
    try:
        os.fsencode(slug)
    except UnicodeError:  # a file system that has ASCII only
        slug = "-".join(re.findall("[a-z0-9]+", slug))
    cut = slug[:limit]
    while len(cut.encode()) > 2 * limit:  # a name has at most 255 bytes
        cut = cut[:-1]
    cut = cut.strip("-")
    symbols = [c for c in text if not (c.isalnum() or c.isspace() or c in slug)]
    if cut == slug and cut and all(c.isascii() for c in symbols):
        return cut
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:6]
    return f"{cut}-{digest}".strip("-")


def _default_output(prompt: str, model: str, seed: int, settings: dict) -> Path:
    "A file name that says what made the image."
    names = [p for p in Path(model).parts if p not in ("model", "checkpoints")]
    step = names[-1:] if names[-1].startswith("step-") else []
    name = " ".join(names[-2:] if step else names[-1:])
    words = [_slug(prompt), _slug(name), f"seed{seed}"]
    for name, value in settings.items():
        value = f"{value:g}" if isinstance(value, float) else str(value)
        short = name.replace("_", "-")
        words.append(short if value == "True" else f"{short}{value}")
    return Path("-".join(words) + ".png")


def _training_checkpoint(model: str) -> Path | None:
    "The checkpoint that a folder of a training stands for; None for anything else."
    from t2i_tutorial.checkpoints import find_checkpoint, list_checkpoints
    from t2i_tutorial.hub import bundled_models

    path = Path(model).expanduser()
    if not model or model in bundled_models() or not path.is_dir():
        return None
    if (path / "state.json").is_file():
        return path
    if path.name == "checkpoints" and list_checkpoints(path.parent):
        path = path.parent
    if (path / "model.safetensors").is_file() or not (path / "checkpoints").is_dir():
        return None
    return find_checkpoint(path)


def _load(name: str, device: str | None):
    "A model, or what a training has made of it so far; raises `UserError`."
    from t2i_tutorial.core import UserError
    from t2i_tutorial.hub import load_model

    if not name:
        raise UserError("--model is empty; name one, see t2i models")
    checkpoint = _training_checkpoint(name)
    if checkpoint is None:
        finished = Path(name).expanduser() / "model"
        is_training = (finished / "config.json").is_file()
        if is_training and not (finished.parent / "model.safetensors").is_file():
            return load_model(finished, device)
        return load_model(name, device)
    return _load_checkpoint(checkpoint, device)


def _load_checkpoint(checkpoint: Path, device: str | None):
    "The model of a checkpoint, with averaged weights, in eval mode."
    from t2i_tutorial.checkpoints import load_checkpoint_settings, load_weights
    from t2i_tutorial.core import UserError, get_device
    from t2i_tutorial.hub import MODEL_CLASSES
    from t2i_tutorial.training import apply_overrides, setting_names

    state, _ = load_checkpoint_settings(checkpoint)
    classes = {cls: module for module, cls in MODEL_CLASSES.values()}
    settings, cls = state.get("settings"), state["model"]
    if not settings or cls not in classes:
        raise UserError(
            f"checkpoint {str(checkpoint)!r} does not say what model it is of; "
            "resume its training, and name the folder 'model' that it writes"
        )
    cls = getattr(import_module(classes[cls]), cls)
    config = cls.config_class()
    own = {k: settings[k] for k in setting_names(config) if k in settings}
    model = cls(apply_overrides(config, own))
    load_weights(model, checkpoint)
    what = f"step {state['step']} of a training"
    warnings.warn(f"the weights are those of {what}: {checkpoint}", stacklevel=2)
    return model.to(get_device(device)).eval()


def _sample(model, prompts: list[str], seed: int, options: dict, **more):
    "Images; raises `UserError` if they hold values that are no numbers."
    from t2i_tutorial.core import UserError

    images = model.sample(prompts, seed=seed, **options, **more)
    if not images.isfinite().all():
        scale = options.get("guidance_scale")
        remedy = "give a smaller --guidance-scale" if scale else "train it again"
        raise UserError(f"the model gave values that are not finite; {remedy}")
    return images


def _used_settings(sampling: dict, config) -> dict:
    "What the images were sampled with."
    return {k: getattr(config, k) if v is None else v for k, v in sampling.items()}


def _readable(value: object) -> str:
    "As text that any file can hold."
    return str(value).encode("utf-8", "replace").decode()


def _generate(options: GenerateOptions) -> None:
    "`t2i generate`: one PNG with a grid of images, what made them in its text chunks."
    from t2i_tutorial.core import make_grid
    from t2i_tutorial.experiments import save_annotated_png
    from t2i_tutorial.hub import check_prompts

    (prompt,) = check_prompts([options.prompt])
    n, width, seed = options.num_images, options.image_width, options.seed
    if options.output is not None:
        _check_output(options.output, ".png", options.overwrite)
    _check_range("num-images", n, 1, 64)
    _check_range("image-width", width, 16, 2048)
    _check_range("seed", seed, 0, 2**32 - 1)
    model = _load(options.model, options.device)
    name = str(_training_checkpoint(options.model) or options.model)
    sampling = _sampling_options(options, model.model_type)
    if options.share_noise:
        sampling["share_noise"] = True
    used = _used_settings(sampling, model.config)
    output = options.output
    if output is None:
        usual = _used_settings(_SAMPLING[model.model_type], model.config)
        given = {k: v for k, v in used.items() if v != usual.get(k)}
        output = str(_default_output(prompt, name, seed, given))
        _check_output(output, ".png", overwrite=True)
    images = _sample(model, [prompt] * n, seed, sampling, show_progress=True)
    made_by = {"model": name, "seed": seed} | used
    grid = make_grid(images.cpu(), columns=min(n, 4))
    texts = {k: _readable(v) for k, v in {"prompt": prompt, **made_by}.items()}

    def write(path: Path) -> None:
        enlarge = max(1, round(width / images.shape[-1]))
        software = f"t2i-tutorial {__version__}"
        save_annotated_png(path, grid, enlarge, **texts, software=software)

    _print_path(_write_new(Path(output), write, options.overwrite))


def _upscale(options: UpscaleOptions) -> None:
    "`t2i upscale`: one PNG, larger by the factor of the stage."
    from t2i_tutorial.core import UserError
    from t2i_tutorial.experiments import save_annotated_png
    from t2i_tutorial.hub import check_prompts

    if not options.image:
        raise UserError("IMAGE is empty; name a file")
    prompts = None if options.prompt is None else check_prompts([options.prompt])
    _check_range("seed", options.seed, 0, 2**32 - 1)
    output, path = options.output, Path(options.image).expanduser()
    if output is None:
        output = f"{path.stem}-upscaled.png"
    _check_output(output, ".png", options.overwrite)
    image = _read_small_image(path)
    stage = _load_stage(options.model, options.device)
    names = ("guidance_scale", "num_steps", "sampler", "aug_level", "seed")
    given = {k: v for k in names if (v := getattr(options, k)) is not None}
    if stage.model_type == "gan-upsampler":
        names = ("aug_level", "seed")
        for name in set(given) - set(names):
            raise UserError(
                f"--{name.replace('_', '-')} does not apply to a GAN, which enlarges in "
                "one pass without guidance; leave it out"
            )
    else:
        given = {"sampler": "dpmpp-2m"} | given
    enlarged = stage.upscale(image, prompts, **given, show_progress=True)[0].cpu()
    if not enlarged.isfinite().all():
        raise UserError("the model gave values that are not finite; train it again")
    used = {"source": path.name, "model": options.model, "prompt": options.prompt or ""}
    used |= {k: given.get(k, getattr(stage.config, k, None)) for k in names}
    texts = {k: _readable(v) for k, v in used.items()}
    software = f"t2i-tutorial {__version__}"

    def write(path: Path) -> None:
        save_annotated_png(path, enlarged, **texts, software=software)

    _print_path(_write_new(Path(output), write, options.overwrite))


def _read_small_image(path: Path):
    "An image to enlarge, (1, 3, h, w) in [-1, 1]; notes what is changed in it."
    from t2i_tutorial.core import from_pil
    from t2i_tutorial.data import _flatten, read_image
    from t2i_tutorial.diffusion.cascade import check_low_res_size

    def read(image):
        check_low_res_size(*image.size)  # before it is decoded
        transparent = "A" in image.getbands() or "transparency" in image.info
        return image.mode, transparent, from_pil(_flatten(image))

    mode, transparent, image = read_image(path, read)
    name = repr(_readable(path))
    if transparent:
        message = f"image {name} is transparent in parts; they are laid over white"
        warnings.warn(message, stacklevel=2)
    if mode in ("1", "L", "LA") or mode[0] == "I":
        message = f"image {name} is grey; what is added to it may have colours"
        warnings.warn(message, stacklevel=2)
    return image[None]


def _load_stage(name: str, device: str | None):
    "A super-resolution stage, alone or of a cascade; raises `UserError`."
    from t2i_tutorial.core import UserError

    model = _load(name, device)
    if model.model_type in _CASCADES.values():
        return model.super_resolution
    if model.model_type not in _CASCADES:
        raise UserError(
            f"model {name!r} is of type {model.model_type} and enlarges nothing; name a "
            "cascade or a super-resolution stage"
        )
    return model


def _cascade(options: CascadeOptions) -> None:
    "`t2i cascade`: a folder with both stages."
    from t2i_tutorial.checkpoints import atomic_directory
    from t2i_tutorial.core import UserError, save_json
    from t2i_tutorial.hub import MODEL_CLASSES

    names = {"base": options.base, "super_resolution": options.stage}
    for word, name in zip(("BASE", "STAGE"), names.values()):
        if not name:
            raise UserError(f"{word} is empty; name a model")
    output, path = options.output, Path(options.output)
    if not output:
        raise UserError("--output is empty; name a folder, or leave it out")
    if path.is_file() or path.is_dir() and any(path.iterdir()):
        raise UserError(f"the output {output!r} exists; choose a new folder")
    base = _load(options.base, "cpu")
    stage = _load(options.stage, "cpu")
    if stage.model_type in _CASCADES.values():
        stage = stage.super_resolution
    module, kind = MODEL_CLASSES[_CASCADES.get(stage.model_type, "cascade")]
    cascade = getattr(import_module(module), kind).from_stages(base, stage)
    path.resolve().parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(path.resolve()) as folder:
        cascade.save_pretrained(folder)
        run = _run_record(options.stage) | {"stages": names}
        save_json(folder / "run.json", run)
    _print_path(path)
    print(f"generate with it: t2i generate PROMPT --model {_readable(path)}")


def _run_record(name: str) -> dict:
    "The run.json of a model; empty where there is none."
    from t2i_tutorial.core import UserError, load_json
    from t2i_tutorial.hub import resolve_model

    folder = Path(name).expanduser()
    try:
        inner = folder / "model"
        folder = inner if (inner / "run.json").is_file() else resolve_model(name)
        return load_json(folder / "run.json")
    except UserError:
        return {}


def _evaluate(options: EvaluateOptions) -> None:
    "`t2i evaluate`: the table of an evaluation report."
    from t2i_tutorial.core import UserError
    from t2i_tutorial.evaluation.report import measure_images

    _check_packages("torchmetrics")
    if not find_spec("lpips"):
        message = "LPIPS will be skipped: it needs the package lpips"
        warnings.warn(message, stacklevel=2)
    if options.output is not None:
        _check_output(options.output, ".json", options.overwrite)
    if options.save_images is not None:
        path = options.save_images
        _check_output(path, ".safetensors", options.overwrite, "--save-images")
    elif options.generate_only:
        raise UserError("--generate-only needs --save-images FILE.safetensors")
    if options.generate_only and (options.output or options.feature_network):
        raise UserError(
            "--generate-only measures nothing; leave out --output and --feature-network"
        )
    if not options.model:
        raise UserError("MODEL is empty; name one, see t2i models")
    _check_evaluation(replace(options, **_with_usual(options)))
    saved = _saved_images(options.model)
    if saved and (options.save_images or options.generate_only):
        raise UserError(
            f"{options.model!r} holds images that were generated before; "
            "leave out --save-images and --generate-only"
        )
    if saved:
        _refuse_for_saved(options)
    elif options.training_of is not None:
        raise UserError("--training-of is for saved images; leave it out")
    known = _named_training_images(options.training_of)
    options = replace(options, **_with_usual(options))
    network = None if options.generate_only else _feature_network(options)
    generated = saved or _generate_images(
        options.model, _load(options.model, options.device), options, options
    )
    if options.save_images is not None:
        path = Path(options.save_images)
        _print_path(_write_new(path, generated.save, options.overwrite))
    if options.generate_only:
        return
    if not saved:
        known = _training_images(options.model)
    report = measure_images(generated, training_images=known, network=network)
    print(report.table())
    seconds = ", ".join(f"{k} {v:.0f}" for k, v in report.seconds.items())
    _say(f"t2i: seconds: {seconds}")
    if options.output is not None:
        written = _write_new(Path(options.output), report.save, options.overwrite)
        _print_path(written)


_USUAL = {"split": "test", "prompts": 2000, "batch_size": 500, "seed": 0}


def _with_usual(options: "EvaluateOptions | CompareOptions") -> dict:
    "What determines the prompts and the noise: as given, else as usual."
    given = {name: getattr(options, name) for name in _USUAL}
    return {k: _USUAL[k] if v is None else v for k, v in given.items()}


def _refuse_for_saved(options: EvaluateOptions) -> None:
    "Raise `UserError` for an option that changes nothing where images are saved."
    from t2i_tutorial.core import UserError

    sampling = [f.name for f in fields(SamplingOptions)]
    for name in dict.fromkeys([*_USUAL, *sampling]):
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} changes nothing in images that were "
                "generated before; leave it out"
            )


def _feature_network(options: "EvaluateOptions | CompareOptions"):
    "What the quality is measured with, loaded before anything is computed."
    from t2i_tutorial.evaluation.quality import load_feature_network

    return load_feature_network(options.feature_network)


def _check_evaluation(options: "EvaluateOptions | CompareOptions") -> None:
    "Raise `UserError` for numbers and splits that make no sense."
    from t2i_tutorial.core import check_choice
    from t2i_tutorial.evaluation.quality import FEATURE_NETWORKS
    from t2i_tutorial.evaluation.report import REPORTED_SPLITS

    check_choice("split", options.split, REPORTED_SPLITS)
    _check_range("prompts", options.prompts, 40, 10_000)
    _check_range("batch-size", options.batch_size, 1, 100_000)
    _check_range("seed", options.seed, 0, 2**32 - 1)
    if options.feature_network is not None:
        check_choice("feature network", options.feature_network, FEATURE_NETWORKS)


def _saved_images(name: str):
    "Images that were generated before, if the name is theirs; None for a model."
    from t2i_tutorial.evaluation.report import EvaluationImages
    from t2i_tutorial.hub import bundled_models

    path = Path(name).expanduser()
    if name in bundled_models():
        return None
    if path.suffix == ".safetensors" and not path.is_dir():
        return EvaluationImages.load(path)
    if path.is_dir() and not _is_model_folder(path) and _has_captions(path):
        return EvaluationImages.from_folder(path)
    return None


def _is_model_folder(folder: Path) -> bool:
    "Whether a folder is that of a model, of a training or of its checkpoints."
    names = ("config.json", "model.safetensors", "state.json", "checkpoints")
    files = [folder / n for n in (*names, "model/config.json")]
    return folder.name == "checkpoints" or any(f.exists() for f in files)


def _has_captions(folder: Path) -> bool:
    "Whether captions as chapter 6 reads them are in a folder or in its parts."
    from t2i_tutorial.data import METADATA_FILES, _image_files

    parts = [folder, *(p for p in folder.iterdir() if p.is_dir())]
    if any((p / name).exists() for p in parts for name in METADATA_FILES):
        return True
    return any(p.with_suffix(".txt").is_file() for p in _image_files(folder))


def _generate_images(
    name: str,
    model,
    options: "EvaluateOptions | CompareOptions",
    sampling: SamplingOptions,
):
    "The images of an evaluation, by a model."
    from t2i_tutorial.evaluation.report import generate_evaluation_images

    given = _sampling_options(sampling, model.model_type)
    batch_size = options.batch_size
    return generate_evaluation_images(
        lambda p, seed: _sample(model, p, seed, given, batch_size=batch_size),
        options.prompts,
        size=model.config.size,
        split=options.split,
        seed=options.seed,
        batch_size=batch_size,
        **_made_by(name, model, given),
    )


def _made_by(name: str, model, sampling: dict) -> dict:
    "What made images, for the record."
    used = _used_settings(sampling, model.config)
    model_name = _readable(_training_checkpoint(name) or name)
    return {"model": model_name, "device": str(model.device)} | used


def _compare(options: CompareOptions) -> None:
    "`t2i compare`: differences of two models, with intervals."
    from t2i_tutorial.core import UserError

    _check_packages("torchmetrics")
    if options.output is not None:
        _check_comparison_output(options.output, options.overwrite)
    names = options.first, options.second
    for word, name in zip(("FIRST", "SECOND"), names):
        if not name:
            raise UserError(f"{word} is empty; name a model, see t2i models")
    if _is_same(*names):
        raise UserError(f"{names[0]!r} is named twice; name two models")
    own = isinstance(options.prompts, str)
    compare = _compare_own_prompts if own else _compare_evaluations
    images, found = compare(options, names)
    print(found.table())
    if options.output is not None:
        _print_path(_write_comparison(options, images, found))


def _compare_evaluations(options: CompareOptions, names: tuple[str, str]) -> tuple:
    "Images and their `Comparison`, on prompts of a split of critters."
    from t2i_tutorial.evaluation.comparison import compare_images

    _check_evaluation(replace(options, **_with_usual(options)))
    images = [_saved_images(name) for name in names]
    options = _as_saved(options, names, images)
    if not all(images):
        _check_evaluation(options)
    network = _feature_network(options)
    models = [None if x else _load(n, options.device) for n, x in zip(names, images)]
    _check_pair(options, images, models)
    sampling = SamplingOptions(seed=options.seed, device=options.device)
    for i, name in enumerate(names):
        images[i] = images[i] or _generate_images(name, models[i], options, sampling)
    return images, compare_images(*images, network=network)


def _compare_own_prompts(options: CompareOptions, names: tuple[str, str]) -> tuple:
    "Images and their `Comparison`, on prompts of a file."
    from t2i_tutorial.core import UserError
    from t2i_tutorial.evaluation.comparison import compare_prompts

    for name in ("split", "feature_network"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} changes nothing for a file of prompts; "
                "leave it out"
            )
    prompts = _read_prompts(options.prompts)
    options = replace(options, prompts=None)
    options = replace(options, **_with_usual(options))
    _check_evaluation(options)
    for name in names:
        if _saved_images(name):
            raise UserError(
                f"{name!r} holds images that were generated before, for other prompts; "
                "with a file of prompts name two models"
            )
    models = [_load(name, options.device) for name in names]
    images = [_generate_own(n, m, prompts, options) for n, m in zip(names, models)]
    return images, compare_prompts(*images)


def _generate_own(name: str, model, prompts: list[str], options: CompareOptions):
    "The images of prompts of one's own, by a model."
    from t2i_tutorial.core import to_uint8
    from t2i_tutorial.evaluation.report import EvaluationImages, generate_images

    sampling = SamplingOptions(seed=options.seed, device=options.device)
    given, size = _sampling_options(sampling, model.model_type), model.config.size
    more = {"batch_size": options.batch_size, "show_progress": True}
    images = generate_images(
        lambda p, seed: _sample(model, p, seed, given, **more),
        prompts,
        size,
        options.seed,
        options.batch_size,
    )
    settings = _made_by(name, model, given) | {"seed": options.seed}
    return EvaluationImages(
        {"prompts": to_uint8(images)}, {"prompts": prompts}, settings
    )


_MAX_PROMPTS = 10_000


def _read_prompts(file: str) -> list[str]:
    "Different prompts of a text file, one a line; raises `UserError`."
    from t2i_tutorial.core import UserError, clean_text
    from t2i_tutorial.data import _read_text
    from t2i_tutorial.hub import check_prompts

    path, found = Path(file).expanduser(), []
    if not path.is_file():
        raise UserError(
            f"--prompts {file!r} is neither a whole number nor a text file; "
            "check the path"
        )
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if clean_text(line):
            try:
                found += check_prompts([line])
            except UserError as e:
                raise UserError(f"{file!r}, line {number}: {e}") from e
    prompts = list(dict.fromkeys(found))
    if not prompts:
        raise UserError(f"{file!r} holds no prompts; write one a line")
    if len(prompts) > _MAX_PROMPTS:
        raise UserError(
            f"{file!r} holds {len(prompts)} prompts, more than {_MAX_PROMPTS}; "
            "shorten it"
        )
    if twice := len(found) - len(prompts):
        message = f"{file!r} repeats prompts; left out: {twice} lines"
        warnings.warn(message, stacklevel=2)
    return prompts


_COMPARISON_FILES = ("comparison.json", "sheet.png", "table.md")


def _check_comparison_output(output: str, overwrite: bool) -> None:
    "Raise `UserError` unless a comparison can be written there, file or folder."
    from t2i_tutorial.core import UserError

    path, name = Path(output), repr(output)
    suffix = path.suffix.lower()
    if not output or suffix == ".json":
        _check_output(output, ".json", overwrite)
        return
    if suffix in (".md", ".png", ".txt") or path.is_file():
        raise UserError(f"the output {name} must end in .json, or be a folder")
    if path.resolve() == Path.cwd():
        raise UserError(f"the output {name} is the current folder; name another")
    there = os.listdir(path) if path.is_dir() else []
    if other := sorted(set(there) - set(_COMPARISON_FILES)):
        raise UserError(
            f"the output folder {name} holds something else, {other[0]!r}; name another"
        )
    if there and not overwrite:
        raise UserError(f"the output {name} exists; name another, or give --overwrite")
    _check_writable(path.resolve().parent)


def _write_comparison(options: CompareOptions, images: list, found) -> Path:
    "Write one file, or a folder, wholly or not at all; returns where it is."
    from t2i_tutorial.checkpoints import atomic_directory
    from t2i_tutorial.evaluation.comparison import comparison_sheet

    path = Path(options.output)
    if path.suffix.lower() == ".json":
        return _write_new(path, found.save, options.overwrite)
    _check_comparison_output(options.output, options.overwrite)  # hours may have passed
    data, sheet, table = _COMPARISON_FILES
    with atomic_directory(path.resolve()) as folder:
        found.save(folder / data)
        comparison_sheet(*images).savefig(folder / sheet, facecolor="white")
        (folder / table).write_text(found.table() + "\n", encoding="utf-8")
    return path


def _is_same(first: str, second: str) -> bool:
    "Whether two names are of one model or file, however they are spelled."
    from t2i_tutorial.hub import bundled_models

    bundled = bundled_models()
    a, b = (Path(bundled.get(n, n)).expanduser() for n in (first, second))
    return first == second or a.exists() and b.exists() and os.path.samefile(a, b)


def _as_saved(options: CompareOptions, names: tuple[str, str], images: list):
    "Options with the prompts and the seed of saved images; raises `UserError`."
    from t2i_tutorial.core import UserError

    if all(images) and options.device is not None:
        raise UserError("--device changes nothing where images are saved; leave it out")
    keys = {k: "num_prompts" if k == "prompts" else k for k in _USUAL}
    given = {k: getattr(options, k) for k in _USUAL}
    for name, saved in zip(names, images):
        if saved is None:
            continue
        for key, of_file in keys.items():
            value, known = given[key], saved.settings.get(of_file, "an unknown one")
            if value not in (None, known):
                raise UserError(
                    f"--{key.replace('_', '-')} is {value}, but the images of {name!r} "
                    f"were generated with {known}; leave it out"
                )
        found = {k: saved.settings[v] for k, v in keys.items() if v in saved.settings}
        options = replace(options, **found)
    return replace(options, **_with_usual(options))


def _check_pair(options: CompareOptions, images: list, models: list) -> None:
    "Raise `UserError` before sampling unless both have the same prompts and size."
    from t2i_tutorial.evaluation.comparison import _check_same_prompts
    from t2i_tutorial.evaluation.report import evaluation_prompts

    asked = {"split": options.split, "seed": options.seed}
    wanted = {}  # where both are models, the prompts are the same anyhow
    if any(images) and not all(images):
        wanted = evaluation_prompts(options.prompts, **asked)
    _check_same_prompts(
        [x.size if x else m.config.size for x, m in zip(images, models)],
        [x.prompts if x else wanted for x in images],
        [x.settings if x else asked for x in images],
    )


def _named_training_images(model: str | None):
    "Those of `--training-of`; raises `UserError` where they are unknown."
    from t2i_tutorial.core import UserError
    from t2i_tutorial.hub import recorded_training_images

    if model is None:
        return None
    if not model:
        raise UserError("--training-of is empty; name a model, or leave it out")
    return recorded_training_images(model)


def _training_images(model: str):
    "All training images of a model, to look for copies; None where they are unknown."
    from t2i_tutorial.core import UserError
    from t2i_tutorial.hub import recorded_training_images

    try:
        return recorded_training_images(model)
    except UserError as e:
        warnings.warn(f"copies are not looked for: {e}", stacklevel=2)
        return None


def _check_packages(*names: str) -> None:
    "Raise `ModuleNotFoundError` for one that is missing, before anything is computed."
    for name in names:
        if not find_spec(name):
            raise ModuleNotFoundError(name=name)


def _print_path(path: Path) -> None:
    "Print a path, with its own bytes where the terminal has not all letters."
    buffer = getattr(sys.stdout, "buffer", None)
    try:
        str(path).encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeError:
        if buffer is not None:
            sys.stdout.flush()
            buffer.write(os.fsencode(path) + b"\n")
            return
    print(path)


_CLASSIFIER = "critters-classifier"


def _export(options: ExportOptions) -> None:
    "`t2i export`: a folder with ONNX files and a JSON file."
    from t2i_tutorial.core import UserError
    from t2i_tutorial.hub import bundled_models
    from t2i_tutorial.playground import export_classifier, export_model

    _check_packages("onnx", "onnxscript", "onnxruntime")
    name, output = options.model, options.output
    if not name:
        raise UserError("MODEL is empty; name one, see t2i models")
    if output is not None and not output:
        raise UserError("--output is empty; name a folder, or leave it out")
    if output is None:
        words = [p for p in Path(name).parts if p not in ("model", "checkpoints", "/")]
        output = f"{_slug(words[-1]) or 'model'}-onnx" if words else "model-onnx"
    if _readable(output) != output:
        raise UserError(f"--output {output!r} is no UTF-8; choose another name")
    half = not options.full_precision
    if name == _CLASSIFIER:
        from t2i_tutorial.evaluation.classifier import AttributeClassifier

        classifier = AttributeClassifier.from_pretrained(name)
        return _print_path(export_classifier(classifier, output, half=half))
    try:
        model = _load(name, "cpu")
    except UserError as e:
        known = [*bundled_models(), _CLASSIFIER]
        near = get_close_matches(name, known, 1)
        if near and near[0] == _CLASSIFIER:
            raise UserError(f"no model {name!r}; did you mean {_CLASSIFIER!r}?") from e
        raise
    title = _readable(Path(name).name or name)
    _print_path(export_model(model, output, title, half, show_progress=True))


def _models(options: ModelsOptions) -> None:
    "`t2i models`: a line for each bundled model."
    from t2i_tutorial.core import load_json
    from t2i_tutorial.hub import bundled_models

    found = bundled_models()
    for name, folder in found.items():
        config = load_json(folder / "config.json")
        size = (folder / "model.safetensors").stat().st_size / 1e6
        side = (config.get("super_resolution") or config)["size"]
        pixels = f"{side} x {side} pixels"
        print(f"{name}  {config['model_type']}, {pixels}, {size:.1f} MB")
    if not found:
        print("no text-to-image model is bundled; train one: t2i train imagen")


# ---- caption-check, train


def _caption_check(options: CaptionCheckOptions) -> None:
    "`t2i caption-check`: a report on images and captions."
    from t2i_tutorial.caption_check import check_data
    from t2i_tutorial.core import UserError, save_json
    from t2i_tutorial.experiments import DEFAULT_TEXT_ENCODER
    from t2i_tutorial.hub import load_text_encoder
    from t2i_tutorial.training import _save_figure

    sheet, report_file = options.sheet, options.json
    if sheet is not None:
        _check_output(sheet, ".png", options.overwrite, "--sheet")
    if report_file is not None:
        _check_output(report_file, ".json", options.overwrite, "--json")
    if _readable(options.data) != options.data:
        raise UserError(f"DATA {options.data!r} is no UTF-8; rename the folder")
    encoder = options.text_encoder
    if encoder is not None and not encoder:
        raise UserError("--text-encoder is empty; name one, or leave it out")
    report = check_data(
        options.data,
        options.split,
        options.text_column.split(","),
        options.max_caption,
        options.crop,
        load_text_encoder(encoder or DEFAULT_TEXT_ENCODER),
    )
    print(report.text())
    if sheet is not None:
        figure = report.contact_sheet()
        write = partial(_save_figure, figure=figure)
        _print_path(_write_new(Path(sheet), write, options.overwrite))
    if report_file is not None:
        write = partial(save_json, value=report.as_dict())
        _print_path(_write_new(Path(report_file), write, options.overwrite))


def _train(options: TrainOptions, settings: Sequence[str]) -> None:
    "`t2i train`: read the settings, train, say where the model is."
    name, preset, presets, train = _find_training(options, settings)
    if name not in _SAMPLING:
        changes = _changes(presets[preset], settings)
        folder = _training_folder(options, f"runs/{name}-{preset}")
        _check_new_folder(options, folder)
        _train_aside(lambda aside: train(preset, aside, **changes), Path(folder))
        return _print_path(Path(folder))
    _check_training_packages(presets, preset, settings, options.data)
    data = _data(options)
    folder = _training_folder(options, f"runs/{name}-{preset}")
    train(preset, data, folder, settings, options.resume)
    model = Path(folder) / "model"
    _print_path(model)
    if name in _CASCADES:
        print(f"enlarge with it: t2i upscale IMAGE --model {_readable(model)}")
    else:
        print(f"generate with it: t2i generate PROMPT --model {_readable(model)}")


def _check_training_packages(
    presets: dict, preset: str, settings: Sequence[str], data: str
) -> None:
    "Refuse bad settings and missing packages before anything is computed or written."
    from t2i_tutorial.clip import BUNDLED_CLIPS
    from t2i_tutorial.experiments import get_preset
    from t2i_tutorial.hub import _is_clip

    config = get_preset(presets, preset, settings)
    encoder = config.model_config.text_encoder.removesuffix("+token-embeddings")
    own_encoder = encoder in BUNDLED_CLIPS or _is_clip(Path(encoder))
    tracker = config.train_config.log_with
    _check_packages(
        "accelerate",
        *[tracker] * (tracker != "none"),
        *["datasets"] * (data != "critters"),
        *["transformers"] * (not own_encoder),
    )


def _data(options: TrainOptions):
    "The data of a training: a source, or a `DataConfig` with how to read it."
    from t2i_tutorial.core import UserError
    from t2i_tutorial.experiments import DataConfig

    names = ("text_column", "split", "max_caption", "crop")
    usual = {f.name: f.default for f in fields(TrainOptions) if f.name in names}
    given = {k: getattr(options, k) for k in names if getattr(options, k) != usual[k]}
    if _readable(options.data) != options.data:
        raise UserError(f"--data {options.data!r} is no UTF-8; rename the folder")
    return DataConfig(options.data, **given) if given else options.data


_UNFINISHED = ".unfinished"  # in the folder of a short training, until it ends


def _train_aside(train: Callable, folder: Path) -> None:
    "Write the files of a training when it has ended; after a kill it can be repeated."
    from t2i_tutorial.checkpoints import lock_folder
    from t2i_tutorial.core import UserError

    aside = folder / _UNFINISHED
    with lock_folder(folder):
        try:
            shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
            aside.mkdir()
            train(aside)
            for path in sorted(aside.iterdir()):
                os.replace(path, folder / path.name)
        except OSError as e:
            raise UserError(
                f"cannot write {str(folder)!r}: {e.strerror or e}; "
                "free some space or choose another place"
            ) from e
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _find_training(
    options: TrainOptions, settings: Sequence[str] = ()
) -> tuple[str, str, dict, Callable]:
    "Name and preset, checked, the training's presets, and the function that trains."
    from t2i_tutorial.core import check_choice

    name = check_choice("training", options.name, _TRAININGS)
    module, presets, function, default = _TRAININGS[name]
    module = import_module(f"t2i_tutorial.{module}")
    presets = getattr(module, presets)
    preset = options.preset
    if preset is None:
        preset = _warm_preset(name, presets, settings) or default
    preset = check_choice("preset", preset, presets)
    return name, preset, presets, getattr(module, function)


def _warm_preset(name: str, presets: dict, settings: Sequence[str]) -> str | None:
    "The preset for a start from the model that a setting names; None without one."
    from t2i_tutorial.experiments import warm_start_preset
    from t2i_tutorial.hub import MODEL_CLASSES
    from t2i_tutorial.training import parse_overrides

    start = parse_overrides(settings).get("init_from", "none")
    if name not in _SAMPLING or start.lower() == "none":
        return None
    module, cls = MODEL_CLASSES[name]
    return warm_start_preset(getattr(import_module(module), cls), presets, start)


def _training_folder(options: TrainOptions, default: str) -> str:
    "The folder of a training; a note if there is nothing in it to go on from."
    from t2i_tutorial.core import UserError

    folder = default if options.output is None else options.output
    if not folder:
        raise UserError("--output is empty; name a folder, or leave it out")
    if _readable(folder) != folder:
        raise UserError(f"--output {folder!r} is no UTF-8; choose another name")
    if options.resume and not Path(folder).exists() and options.name in _SAMPLING:
        message = f"no training in {folder!r} to resume; it begins at step 0"
        warnings.warn(message, stacklevel=2)
    return folder


def _changes(config, settings: Sequence[str]) -> dict:
    "Settings as the fields of a configuration that they change."
    from t2i_tutorial.training import apply_overrides, parse_overrides

    words = parse_overrides(settings)
    changed = apply_overrides(config, words)
    return {(k := name.partition(".")[0]): getattr(changed, k) for name in words}


def _check_new_folder(options: TrainOptions, folder: str) -> None:
    "Raise `UserError` for a used folder, and for what a short training does not have."
    from t2i_tutorial.checkpoints import LOCK_FILE
    from t2i_tutorial.core import UserError

    if options.resume or options.data != "critters" or _data(options) != "critters":
        raise UserError(
            f"t2i train {options.name} takes minutes, on critters: "
            "it has no --resume and no --data"
        )
    path = Path(folder)
    names = {p.name for p in path.iterdir()} if path.is_dir() else set()
    unfinished = _UNFINISHED in names or names == {LOCK_FILE}  # it was killed
    if path.is_file() or names and not unfinished:
        raise UserError(f"folder {folder!r} is not empty; choose another with --output")


def _training_help(options: TrainOptions, prog: str) -> None:
    "Print every setting of a training, with its default in the chosen preset."
    name, chosen, presets, _ = _find_training(options)
    preset, bare = presets[chosen], tyro.conf.arg(name="")
    no_flags = tyro.conf.FlagConversionOff
    parts = {"options": (TrainOptions, options, bare, tyro.conf.FlagCreatePairsOff)}
    if name in _SAMPLING:  # model fields bare, those of the training under train.
        model, train = preset.model_config, preset.train_config
        images = tyro.conf.arg(help="critters to render, if the data are critters")
        start = tyro.conf.arg(help="a trained model whose weights to begin with")
        share = tyro.conf.arg(help="share of images of one's own kept for validation")
        parts["model"] = (type(model), model, bare, no_flags)
        parts["num_images"] = (int, preset.num_images, images, no_flags)
        parts["init_from"] = (str | None, preset.init_from, start, no_flags)
        parts["val_fraction"] = (float, preset.val_fraction, share, no_flags)
        parts["train"] = (type(train), train, tyro.conf.arg(), no_flags)
    else:
        parts["config"] = (type(preset), preset, bare, no_flags)
    settings = [
        (key, Annotated[kind, arg, flags], field(default=value))
        for key, (kind, value, arg, flags) in parts.items()
    ]
    tyro.cli(
        make_dataclass("_Settings", settings, frozen=True),
        args=["--help"],
        prog=prog,
        description=(
            f"Train: {name}. Write a setting as name=value or --name value, several "
            f"values with commas: {_example(name)}. Presets: {', '.join(presets)}. "
            f"The defaults below are those of {chosen!r}."
        ),
        use_underscores=True,
    )


def _example(name: str) -> str:
    return {
        "imagen": "unet.heads=8 train.lr=1e-4",
        "super-resolution": "max_aug_level=0.3 train.lr=1e-4",
        "gigagan": "generator.heads=8 train.lr=1e-4",
        "gan-upsampler": "perceptual_weight=1 train.lr=1e-4",
    }.get(name, "max_steps=200 lr=1e-4")


# ---- share


def _share(options: ShareOptions) -> None:
    "`t2i share`: a card from the record, then the upload."
    from t2i_tutorial.core import UserError
    from t2i_tutorial.experiments import share_model, write_model_card

    if not options.license:
        raise UserError(
            "--license is missing: name the licence of the model, for instance "
            "cc-by-4.0; only who owns the images can say"
        )
    if options.card_only:
        return _print_path(write_model_card(options.model, options.license))
    print(
        share_model(options.model, options.repository, options.license, options.private)
    )


# ---- the program

_COMMANDS = {
    "generate": (GenerateOptions, _generate),
    "upscale": (UpscaleOptions, _upscale),
    "cascade": (CascadeOptions, _cascade),
    "caption-check": (CaptionCheckOptions, _caption_check),
    "train": (TrainOptions, _train),
    "evaluate": (EvaluateOptions, _evaluate),
    "compare": (CompareOptions, _compare),
    "export": (ExportOptions, _export),
    "share": (ShareOptions, _share),
    "models": (ModelsOptions, _models),
}


def _help() -> str:
    "What `t2i --help` prints."
    lines = [f"  {name:15}{kind.__doc__}" for name, (kind, _) in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: t2i [--help] [--version] COMMAND ...",
            "",
            _ABOUT,
            "",
            *lines,
            "",
            "t2i COMMAND --help lists the options of a command.",
        ]
    )


def _run(arguments: Sequence[str]) -> None:
    "Read a command line and do what it says."
    if len(arguments) > 1 and arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return print(_help())
    if arguments[0] in ("-V", "--version", "version"):
        return print(f"t2i {__version__}")
    if any("\0" in word for word in arguments):
        raise _UsageError("t2i: an argument holds a null character; retype it")
    command, *rest = arguments
    if command not in _COMMANDS:
        what = "option" if command.startswith("-") else "command"
        hint = _nearest(command, [*_COMMANDS, "--help", "--version"])
        if " " in command.strip():
            hint = f"did you mean: t2i generate {command[:60]!r}?"
        raise _UsageError(f"t2i: unknown {what} {command[:60]!r}; {hint}")
    kind, function = _COMMANDS[command]
    prog = f"t2i {command}"
    if kind is not TrainOptions:
        options, rest = _parse(kind, rest, prog)
        _refuse_rest(rest, kind, prog)
        return function(options)
    wants_help = {"-h", "--help"} & set(rest) and not rest[0].startswith("-")
    if wants_help:
        rest = [word for word in rest if word not in ("-h", "--help")]
    options, rest = _parse(kind, rest, prog)
    if wants_help:
        return _training_help(options, prog)
    return function(options, _read_settings(rest, prog))


def _note(message, category, *_) -> None:
    "Print a warning of this library as a note; drop those of others."
    if issubclass(category, UserWarning):
        _say(f"t2i: note: {message}")


def _say(message: object) -> None:
    "A line on standard error, if there is one."
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(message, file=sys.stderr)


def _flush() -> None:
    "Write out what was printed; a reader who has left, as in `| head`, is no mistake."
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as e:
        with contextlib.suppress(OSError, ValueError):  # else Python tries it again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(e, BrokenPipeError):
            raise OSError(e.errno, e.strerror, "standard output") from e


@contextlib.contextmanager
def _lenient_output():
    "Letters that the terminal has not are printed as codes, as on standard error."
    errors = getattr(sys.stdout, "errors", None)
    if errors != "strict" or not hasattr(sys.stdout, "reconfigure"):
        yield
        return
    stream = sys.stdout
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors=errors)


def _explain(e: Exception) -> str | None:
    "A user's mistake in one line; None for an error of the program."
    core = sys.modules.get("t2i_tutorial.core")
    if core is not None and isinstance(e, core.UserError):
        return str(e)
    if isinstance(e, OSError):
        if e.filename is None or not e.strerror:
            return " ".join(str(e.strerror or e).split())[:300]
        return f"cannot use {os.fsdecode(e.filename)!r:.200}: {e.strerror}"
    memory = re.search("out of memory|can't allocate memory", str(e))
    if isinstance(e, MemoryError) or isinstance(e, RuntimeError) and memory:
        return (
            "not enough memory; make the batch or the network smaller "
            "(train.batch_size, --num-images, --batch-size)"
        )
    return None


def _sleep_while_waiting() -> None:
    """Threads that wait for others sleep instead of spinning, beside busy programs.

    OpenMP reads these variables when torch is imported; a choice of the user's stays.
    No number depends on it.
    """
    own = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
    if "torch" not in sys.modules and not any(name in os.environ for name in own):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def main(
    arguments: Sequence[str] | None = None,  # of this process if not given
) -> int:  # exit code: 0 if all went well, 2 after a user's mistake, 130 after Ctrl-C
    "Run the command line."
    _sleep_while_waiting()
    with warnings.catch_warnings(), _lenient_output():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _note
        try:
            _run(sys.argv[1:] if arguments is None else list(arguments))
            _flush()
        except _UsageError as e:
            _say(e)
            return 2
        except ModuleNotFoundError as e:
            if (e.name or "").startswith("t2i_tutorial"):
                raise
            package = f"'t2i-tutorial[{_EXTRAS.get(e.name, 'train')}]'"
            package = e.name if e.name == "wandb" else package
            _say(
                f"t2i: this needs the package {e.name!r}, which is not installed; "
                f"run: pip install {package}"
            )
            return 2
        except KeyboardInterrupt as e:
            _say(f"t2i: {str(e) or 'stopped'}")
            return 130
        except BrokenPipeError:  # as in t2i train imagen --help | head
            _flush()
            return 0
        except SystemExit:  # after the help of a command
            _flush()
            raise
        except Exception as e:
            message = _explain(e)
            if message is None:
                raise
            _say(f"t2i: {message}")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
