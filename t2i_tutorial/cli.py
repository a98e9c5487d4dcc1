"""The command line `t2i`. Its commands join with the chapters that teach them.

A user's mistake ends in one line and exit code 2, never in a traceback.
"""

import argparse
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path

from t2i_tutorial import __version__

FAMILIES = {
    "imagen": (
        "t2i_tutorial.diffusion.imagen",
        "Imagen",
    ),  # config.json's "family" -> module and class
    "gigagan": ("t2i_tutorial.gan.gigagan", "GigaGAN"),
}
SAMPLING = {
    "imagen": {
        "guidance_scale": None,
        "steps": 20,
        "sampler": "dpm",
    },  # family -> options of `sample`, what they are if not given
    "gigagan": {"truncation": None},
}
DEFAULT_MODEL = "critters-64"


class _Parser(argparse.ArgumentParser):
    "An argument parser whose complaints are one line."

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _add_draw(commands) -> None:
    p = commands.add_parser(
        "draw",
        help="draw what a prompt says",
        description="Draw a prompt and write one PNG.",
    )
    p.add_argument("prompt", help="what to draw, for instance 'a blue and red dragon'")
    p.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a bundled name (see t2i models), a folder, or a hub repository; default %(default)s",
    )
    p.add_argument(
        "--number", type=int, default=4, help="how many pictures, default %(default)s"
    )
    _add_sampling(p)
    p.add_argument(
        "--seed",
        type=int,
        default=0,
        help="another seed gives other pictures, default %(default)s",
    )
    p.add_argument(
        "--out",
        metavar="FILE.png",
        help="where to write; named after prompt and seed if not given",
    )
    p.add_argument(
        "--size",
        type=int,
        default=256,
        metavar="PIXELS",
        help="width of each picture in the file, default %(default)s",
    )
    p.add_argument("--device", help="cpu, cuda or mps; the best there is if not given")


def _add_sampling(p) -> None:
    p.add_argument(
        "--text-scale",
        type=float,
        help="Imagen: how hard to push the text: 1 is plain; the model's own if not given",
    )
    p.add_argument(
        "--steps", type=int, help="Imagen: steps of the sampler, 20 if not given"
    )
    p.add_argument("--sampler", help="Imagen: dpm, ddim or ddpm; dpm if not given")
    p.add_argument(
        "--truncation",
        type=float,
        help="GigaGAN: 1 leaves all variety, towards 0 pictures get surer and alike; the model's own if not given",
    )


def _add_train(commands) -> None:
    p = commands.add_parser(
        "train",
        help="train a model",
        description="Train a model and write it to a folder.",
    )
    p.add_argument("name", help=f"what to train: {', '.join(_TRAININGS)}")
    p.add_argument(
        "settings",
        nargs="*",
        metavar="name=value",
        help="settings to change, for instance steps=200 lr=1e-4",
    )
    p.add_argument(
        "--preset", help="a named set of settings; the recorded one if not given"
    )
    p.add_argument(
        "--data",
        default="critters",
        help="'critters', a folder with a metadata.jsonl, or a hub data set; default %(default)s",
    )
    p.add_argument(
        "--out", metavar="FOLDER", help="where to write; runs/NAME-PRESET if not given"
    )
    p.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint in the folder",
    )


def _add_evaluate(commands) -> None:
    p = commands.add_parser(
        "evaluate",
        help="measure a model on creatures",
        description="Measure whether a model draws what prompts ask for.",
    )
    p.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        help="a bundled name, a folder, or a hub repository; default %(default)s",
    )
    p.add_argument(
        "--number", type=int, default=2000, help="pictures to draw, default %(default)s"
    )
    p.add_argument(
        "--split", default="test", help="test or held_out, default %(default)s"
    )
    _add_sampling(p)
    p.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of prompts and pictures, default %(default)s",
    )
    p.add_argument("--out", metavar="FILE.json", help="write the report here too")


def parser() -> argparse.ArgumentParser:
    "The arguments of `t2i`."
    p = _Parser(
        prog="t2i",
        description="Text to Image from Scratch: small text-to-image models that you can read in full.",
    )
    p.add_argument("--version", action="version", version=f"t2i {__version__}")
    commands = p.add_subparsers(dest="command", metavar="COMMAND")
    _add_draw(commands), _add_train(commands), _add_evaluate(commands)
    commands.add_parser("models", help="list the bundled models")
    return p


def load_model(
    name: str,  # a bundled name, a folder, or a hub repository
    device: str | None = None,  # the best there is if not given
):  # an Imagen, or another family's model
    "A text-to-image model of whichever family; raises `UserError` if it cannot be had."
    from t2i_tutorial.core import UserError, load_json
    from t2i_tutorial.models import resolve_model

    folder = resolve_model(name)
    saved = load_json(folder / "config.json")
    family = saved.get("family") if isinstance(saved, dict) else None
    if family not in FAMILIES:
        raise UserError(
            f"{str(folder)!r} is of an unknown family {family!r}; this version reads {', '.join(FAMILIES)}"
        )
    module, cls = FAMILIES[family]
    return getattr(import_module(module), cls).from_pretrained(folder, device)


def sampling(
    a: argparse.Namespace,
    family: str,  # of the model
) -> dict:  # arguments for its `sample`
    "The options of this family; raises `UserError` for one of another family that was given."
    from t2i_tutorial.core import UserError

    known = SAMPLING[family]
    for name in {name for options in SAMPLING.values() for name in options} - set(
        known
    ):
        if getattr(a, name) is not None:
            own = ", ".join(f"--{k.replace('_', '-')}" for k in known)
            raise UserError(
                f"--{name.replace('_', '-')} means nothing to this model, whose family is {family}; leave it out (it knows {own})"
            )
    return {
        name: plain if getattr(a, name) is None else getattr(a, name)
        for name, plain in known.items()
    }


def _check_out(path: Path, ending: str) -> Path:
    "Raise `UserError` unless a file of this kind can be written there."
    from t2i_tutorial.core import UserError

    if path.suffix.lower() != ending:
        raise UserError(f"the output {str(path)!r} must end in {ending}")
    if not path.parent.is_dir():
        raise UserError(
            f"the output folder {str(path.parent)!r} does not exist; make it, or name another"
        )
    if path.is_dir():
        raise UserError(f"the output {str(path)!r} is a folder; name a file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(
            f"the output folder {str(path.parent)!r} cannot be written to; name another"
        )
    return path


def _check_number(name: str, value: int, least: int, most: int) -> None:
    from t2i_tutorial.core import UserError

    if not least <= value <= most:
        raise UserError(f"--{name} must be from {least} to {most}, not {value}")


def draw(a: argparse.Namespace) -> None:
    "`t2i draw`: one PNG with a grid of pictures, what made them in its text chunks."
    from PIL.PngImagePlugin import PngInfo
    from t2i_tutorial.core import atomic_write, make_grid, to_pil
    from t2i_tutorial.models import check_prompts

    (prompt,) = check_prompts([a.prompt])
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "drawing"
    out = _check_out(Path(a.out or f"{slug}-seed{a.seed}.png"), ".png")
    _check_number("number", a.number, 1, 64), _check_number("size", a.size, 16, 2048)
    model = load_model(a.model, a.device)
    how = sampling(a, model.family)
    images = model.sample([prompt] * a.number, seed=a.seed, progress=True, **how)
    how = {
        name: getattr(model.config, name) if value is None else value
        for name, value in how.items()
    }
    made_by = {
        "prompt": prompt,
        "model": a.model,
        "seed": a.seed,
        **how,
        "software": f"t2i-tutorial {__version__}",
    }
    info = PngInfo()
    for key, value in made_by.items():
        info.add_itxt(key, str(value))
    picture = to_pil(
        make_grid(images.cpu(), columns=min(a.number, 4)),
        max(1, round(a.size / images.shape[-1])),
    )
    with atomic_write(out) as partial:
        picture.save(partial, format="png", pnginfo=info)
    print(out)


def models(a: argparse.Namespace) -> None:
    "`t2i models`: a line a bundled model."
    from t2i_tutorial.core import load_json
    from t2i_tutorial.models import bundled_models

    found = bundled_models()
    for name, folder in found.items():
        config, size = (
            load_json(folder / "config.json"),
            (folder / "model.safetensors").stat().st_size,
        )
        print(
            f"{name}  {config['family']}, {config['size']} x {config['size']} pixels, {size / 1e6:.1f} MB"
        )
    if not found:
        print("no text-to-image model is bundled yet; train one: t2i train imagen")


def evaluate(a: argparse.Namespace) -> None:
    "`t2i evaluate`: the judge's table."
    from t2i_tutorial.metrics import evaluate

    out = a.out and _check_out(Path(a.out), ".json")
    model = load_model(a.model)
    how = sampling(a, model.family)
    report = evaluate(
        lambda prompts, seed: model.sample(prompts, seed=seed, **how),
        a.number,
        size=model.config.size,
        seed=a.seed,
        split=a.split,
    )
    print(report.table())
    if out:
        print(report.save(out))


def _changes(config, settings: Sequence[str]) -> dict:
    "Settings as values of a dataclass's simple fields; raises `UserError` for an unknown name or a wrong type."
    from t2i_tutorial.core import check_choice
    from t2i_tutorial.training import apply_overrides, parse_overrides

    words = parse_overrides(settings)
    for name in words:
        check_choice(
            "setting",
            name,
            [f.name for f in fields(config) if f.type in (int, float, str, bool)],
        )
    changed = apply_overrides(config, words)
    return {name: getattr(changed, name) for name in words}


def _new_folder(folder: str) -> Path:
    "Raise `UserError` if there is something in the folder already."
    from t2i_tutorial.core import UserError

    path = Path(folder)
    if path.is_file() or path.is_dir() and any(path.iterdir()):
        raise UserError(f"folder {folder!r} is not empty; choose another with --out")
    return path


def _train_once(module: str, presets: str, train: str, a: argparse.Namespace) -> None:
    "Train a model of a few minutes, which cannot be resumed and knows only creatures."
    from t2i_tutorial.core import UserError, check_choice

    parts = import_module(module)
    if a.resume or a.data != "critters":
        raise UserError(
            f"t2i train {a.name} takes minutes, on creatures: it has no --resume and no --data"
        )
    preset = check_choice(
        "preset",
        a.preset or next(iter(getattr(parts, presets))),
        getattr(parts, presets),
    )
    folder = _new_folder(a.out or f"runs/{a.name}-{preset}")
    getattr(parts, train)(
        preset, folder, **_changes(getattr(parts, presets)[preset], a.settings)
    )
    print(folder)


def _train_clip(a):
    _train_once("t2i_tutorial.clip", "CLIP_PRESETS", "train_clip", a)


def _train_judge(a):
    _train_once("t2i_tutorial.metrics", "JUDGE_PRESETS", "train_judge", a)


def _train_family(family: str, a: argparse.Namespace) -> None:
    "Train a model that draws prompts."
    preset = a.preset or "cpu-32"
    folder = Path(a.out or f"runs/{family}-{preset}")
    getattr(import_module(FAMILIES[family][0]), f"train_{family}")(
        preset, a.data, folder, a.settings, a.resume
    )
    print(
        f'{folder / "model"}\ndraw with it: t2i draw "a blue and red dragon" --model {folder / "model"}'
    )


_TRAININGS = {
    "clip": _train_clip,
    "judge": _train_judge,
    **{family: partial(_train_family, family) for family in FAMILIES},
}


def train(a: argparse.Namespace) -> None:
    "`t2i train`: whichever training was named."
    from t2i_tutorial.core import check_choice

    _TRAININGS[check_choice("training", a.name, _TRAININGS)](a)


_COMMANDS = {"draw": draw, "train": train, "evaluate": evaluate, "models": models}


def main(
    arguments: Sequence[str]
    | None = None,  # without the program's name; those of this process if not given
) -> int:  # exit code: 0 if all went well; a user's mistake exits with 2
    "Run the command line."
    p = parser()
    a, rest = p.parse_known_args(arguments)
    if a.command == "train":  # settings may also stand after options
        a.settings += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        p.error(f"unknown arguments: {' '.join(rest)}")
    if a.command is None:
        p.print_help()
        return 0
    from t2i_tutorial.core import UserError

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, category, *_: (
            issubclass(category, UserWarning)
            and print(f"t2i: note: {message}", file=sys.stderr)
        )
        try:
            _COMMANDS[a.command](a)
        except UserError as e:
            print(f"t2i: {e}", file=sys.stderr)
            return 2
        except ModuleNotFoundError as e:
            if (e.name or "").startswith("t2i_tutorial"):
                raise
            print(
                f"t2i: this needs the package {e.name!r}, which is not installed; run: pip install 't2i-tutorial[train]'",
                file=sys.stderr,
            )
            return 2
        except KeyboardInterrupt as e:
            print(f"t2i: {str(e) or 'stopped'}", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
