"""The command line `t2i`: generate, train, evaluate, models.

The options of each command are the fields of a dataclass, and those of a training are
the fields of its configuration. Tyro turns both into options and help. A user's mistake
ends in one line and exit code 2, never in a traceback. Torch is imported only when a
command runs.
"""

import contextlib
import io
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from t2i_tutorial import __version__

_ABOUT = (
    "Text to Image from Scratch: small text-to-image models that you can read in full."
)
_DEFAULT_MODEL = "critters-64"
_SAMPLING = {  # model_type -> options of its `sample`, with their defaults here
    "imagen": {"guidance_scale": None, "num_steps": 20, "sampler": "dpmpp-2m"},
    "gigagan": {"truncation_psi": None},
}
_TRAININGS = {  # name -> module, its presets, its function, the default preset
    "imagen": ("diffusion.imagen", "IMAGEN_PRESETS", "train_imagen", "cpu-32"),
    "gigagan": ("gan.gigagan", "GIGAGAN_PRESETS", "train_gigagan", "cpu-32"),
    "clip": ("clip", "CLIP_PRESETS", "train_clip", "critters-clip"),
    "classifier": (
        "evaluation.classifier",
        "CLASSIFIER_PRESETS",
        "train_classifier",
        "critters-classifier",
    ),
}


class _UsageError(Exception):
    "A command line that cannot be read; the message is one line."


# ---- the options of each command


_Word = tyro.conf.Positional[str]


@dataclass(frozen=True)
class SamplingOptions:
    "How images are sampled; an option that is not given is the model's own."

    guidance_scale: float | None = None
    "Imagen: weight of the text; 1 is no guidance; the model's own if not given"
    num_steps: int | None = None
    "Imagen: steps of the sampler; 20 if not given"
    sampler: str | None = None
    "Imagen: dpmpp-2m, ddim or ddpm; dpmpp-2m if not given"
    truncation_psi: float | None = None
    "GigaGAN: 1 is full variety, towards 0 less; the model's own if not given"
    seed: int = 0
    "the same seed gives the same images"
    device: str | None = None
    "cpu, cuda or mps; the best available if not given"


@dataclass(frozen=True)
class GenerateOptions(SamplingOptions):
    "Generate images of a prompt and write them to one PNG."

    prompt: Annotated[_Word, tyro.conf.arg(metavar="PROMPT")] = tyro.MISSING
    "for instance 'a blue and red dragon'"
    model: str = _DEFAULT_MODEL
    "a bundled name (see t2i models), a folder, or a hub repository"
    num_images: int = 4
    "how many images, from 1 to 64"
    output: str | None = None
    "PNG to write; named after prompt and seed if not given"
    image_width: int = 256
    "width of each image in the file, in pixels"


@dataclass(frozen=True)
class EvaluateOptions(SamplingOptions):
    "Measure prompt accuracy, distances and diversity of a model on critters."

    model: Annotated[_Word, tyro.conf.arg(metavar="MODEL")] = _DEFAULT_MODEL
    "a bundled name (see t2i models), a folder, or a hub repository"
    split: str = "test"
    "val to choose settings; test or held_out to report"
    num_images: int = 2000
    "images to generate, at least 16"
    batch_size: int = 100
    "images generated at a time"
    output: str | None = None
    "JSON to write the report to"


@dataclass(frozen=True)
class TrainOptions:
    "Train a model and write it to a folder."

    name: Annotated[_Word, tyro.conf.arg(metavar="NAME")] = tyro.MISSING
    "imagen, gigagan, clip or classifier; t2i train NAME --help lists every setting"
    preset: str | None = None
    "a named set of settings; the recorded model's if not given"
    data: str = "critters"
    "critters, a folder with a metadata.jsonl, or a hub data set"
    output: str | None = None
    "folder to write to; runs/NAME-PRESET if not given"
    resume: bool = False
    "continue from the newest checkpoint in the folder"


@dataclass(frozen=True)
class ModelsOptions:
    "List the bundled models."


# ---- reading the command line


def _nearest(word: str, options: Iterable[str]) -> str:
    "A hint at the option that was meant, or at what there is."
    options = list(options)
    near = get_close_matches(word, options, 1)
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
        message = f"{prog}: {_one_line(said.getvalue())}; see {prog} --help"
        raise _UsageError(message) from None


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


def _options(kind: type) -> list[str]:
    "The options of a command, as they are typed."
    positional = ("prompt", "name") if kind is not EvaluateOptions else ("model",)
    names = [f.name for f in fields(kind) if f.name not in positional]
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


def _check_output(path: Path, suffix: str) -> Path:
    "Raise `UserError` unless a file of this kind can be written there."
    from t2i_tutorial.core import UserError

    folder = str(path.parent)
    if path.suffix.lower() != suffix:
        raise UserError(f"the output {str(path)!r} must end in {suffix}")
    if not path.parent.is_dir():
        raise UserError(
            f"the output folder {folder!r} does not exist; make it, or name another"
        )
    if path.is_dir():
        raise UserError(f"the output {str(path)!r} is a folder; name a file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(
            f"the output folder {folder!r} cannot be written to; name another"
        )
    return path


def _check_range(name: str, value: int, minimum: int, maximum: int) -> None:
    from t2i_tutorial.core import UserError

    if not minimum <= value <= maximum:
        raise UserError(f"--{name} must be from {minimum} to {maximum}, not {value}")


def _default_output(prompt: str, seed: int) -> Path:
    "A file name from prompt and seed that is still free."
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "image"
    path, n = Path(f"{slug}-seed{seed}.png"), 2
    while path.exists():
        path, n = Path(f"{slug}-seed{seed}-{n}.png"), n + 1
    return path


def _generate(options: GenerateOptions) -> None:
    "`t2i generate`: one PNG with a grid of images, what made them in its text chunks."
    from t2i_tutorial.core import make_grid
    from t2i_tutorial.experiments import save_annotated_png
    from t2i_tutorial.hub import check_prompts, load_model

    (prompt,) = check_prompts([options.prompt])
    n, width = options.num_images, options.image_width
    output = options.output
    if output is None:
        output = _default_output(prompt, options.seed)
    output = _check_output(Path(output), ".png")
    _check_range("num-images", n, 1, 64)
    _check_range("image-width", width, 16, 2048)
    model = load_model(options.model, options.device)
    sampling = _sampling_options(options, model.model_type)
    images = model.sample(
        [prompt] * n, seed=options.seed, show_progress=True, **sampling
    )
    used = {
        k: getattr(model.config, k) if v is None else v for k, v in sampling.items()
    }
    made_by = {"model": options.model, "seed": options.seed, **used}
    grid = make_grid(images.cpu(), columns=min(n, 4))
    save_annotated_png(
        output,
        grid,
        max(1, round(width / images.shape[-1])),
        prompt=prompt,
        **{k: str(v) for k, v in made_by.items()},
        software=f"t2i-tutorial {__version__}",
    )
    print(output)


def _evaluate(options: EvaluateOptions) -> None:
    "`t2i evaluate`: the table of an evaluation report."
    from t2i_tutorial.evaluation.report import evaluate
    from t2i_tutorial.hub import load_model

    output = options.output
    if output is not None:
        output = _check_output(Path(output), ".json")
    model = load_model(options.model, options.device)
    sampling = _sampling_options(options, model.model_type)
    report = evaluate(
        lambda prompts, seed: model.sample(prompts, seed=seed, **sampling),
        options.num_images,
        size=model.config.size,
        seed=options.seed,
        split=options.split,
        batch_size=options.batch_size,
    )
    print(report.table())
    if output:
        print(report.save(output))


def _models(options: ModelsOptions) -> None:
    "`t2i models`: a line for each bundled model."
    from t2i_tutorial.core import load_json
    from t2i_tutorial.hub import bundled_models

    found = bundled_models()
    for name, folder in found.items():
        config = load_json(folder / "config.json")
        size = (folder / "model.safetensors").stat().st_size / 1e6
        pixels = f"{config['size']} x {config['size']} pixels"
        print(f"{name}  {config['model_type']}, {pixels}, {size:.1f} MB")
    if not found:
        print("no text-to-image model is bundled; train one: t2i train imagen")


# ---- train


def _train(options: TrainOptions, settings: Sequence[str]) -> None:
    "`t2i train`: read the settings, train, say where the model is."
    name, preset, presets, train = _find_training(options)
    folder = _training_folder(options, f"runs/{name}-{preset}")
    if name in _SAMPLING:
        if not find_spec("accelerate"):  # before anything is computed or written
            raise ModuleNotFoundError(name="accelerate")
        train(preset, options.data, folder, settings, options.resume)
        model = Path(folder) / "model"
        print(f"{model}\ngenerate with it: t2i generate PROMPT --model {model}")
    else:
        _check_new_folder(options, folder)
        changes = _changes(presets[preset], settings)
        _train_aside(lambda aside: train(preset, aside, **changes), Path(folder))
        print(folder)


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


def _find_training(options: TrainOptions) -> tuple[str, str, dict, Callable]:
    "Name and preset, checked, the training's presets, and the function that trains."
    from t2i_tutorial.core import check_choice

    name = check_choice("training", options.name, _TRAININGS)
    module, presets, function, default = _TRAININGS[name]
    module = import_module(f"t2i_tutorial.{module}")
    presets = getattr(module, presets)
    preset = default if options.preset is None else options.preset
    preset = check_choice("preset", preset, presets)
    return name, preset, presets, getattr(module, function)


def _training_folder(options: TrainOptions, default: str) -> str:
    "The folder of a training; a note if there is nothing in it to go on from."
    from t2i_tutorial.core import UserError

    folder = default if options.output is None else options.output
    if not folder:
        raise UserError("--output is empty; name a folder, or leave it out")
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

    if options.resume or options.data != "critters":
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
        parts["model"] = (type(model), model, bare, no_flags)
        parts["num_images"] = (int, preset.num_images, images, no_flags)
        parts["init_from"] = (str | None, preset.init_from, start, no_flags)
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
        "gigagan": "generator.heads=8 train.lr=1e-4",
    }.get(name, "max_steps=200 lr=1e-4")


# ---- the program

_COMMANDS = {
    "generate": (GenerateOptions, _generate),
    "train": (TrainOptions, _train),
    "evaluate": (EvaluateOptions, _evaluate),
    "models": (ModelsOptions, _models),
}


def _help() -> str:
    "What `t2i --help` prints."
    lines = [f"  {name:10}{kind.__doc__}" for name, (kind, _) in _COMMANDS.items()]
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
    if not arguments or arguments[0] in ("-h", "--help"):
        return print(_help())
    if arguments[0] == "--version":
        return print(f"t2i {__version__}")
    command, *rest = arguments
    if command not in _COMMANDS:
        what = "option" if command.startswith("-") else "command"
        hint = _nearest(command, [*_COMMANDS, "--help", "--version"])
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
        print(f"t2i: note: {message}", file=sys.stderr)


def _explain(e: Exception) -> str | None:
    "A user's mistake in one line; None for an error of the program."
    core = sys.modules.get("t2i_tutorial.core")
    if core is not None and isinstance(e, core.UserError):
        return str(e)
    if isinstance(e, OSError):
        return str(e)[:300]  # a name of 5000 letters is in it
    memory = re.search("out of memory|can't allocate memory", str(e))
    if isinstance(e, MemoryError) or isinstance(e, RuntimeError) and memory:
        return (
            "not enough memory; make the batch or the network smaller "
            "(train.batch_size, --num-images, --batch-size)"
        )
    return None


def main(
    arguments: Sequence[str] | None = None,  # of this process if not given
) -> int:  # exit code: 0 if all went well, 2 after a user's mistake, 130 after Ctrl-C
    "Run the command line."
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _note
        try:
            _run(arguments)
        except _UsageError as e:
            print(e, file=sys.stderr)
            return 2
        except ModuleNotFoundError as e:
            if (e.name or "").startswith("t2i_tutorial"):
                raise
            print(
                f"t2i: this needs the package {e.name!r}, which is not installed; "
                "run: pip install 't2i-tutorial[train]'",
                file=sys.stderr,
            )
            return 2
        except KeyboardInterrupt as e:
            print(f"t2i: {str(e) or 'stopped'}", file=sys.stderr)
            return 130
        except BrokenPipeError:  # as in t2i train imagen --help | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as e:
            message = _explain(e)
            if message is None:
                raise
            print(f"t2i: {message}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
