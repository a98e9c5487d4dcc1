"""Text to Image from Scratch: the library that the notebooks of the book export.

Start with `critters.sample_critters` for captioned creatures, `ImageTextDataset` and `open_dataset` for any captioned pictures,
`show_images` to look at them, `seed_everything` to see the same twice, `training.Trainer` to train, and with `Imagen.from_pretrained`
or `GigaGAN.from_pretrained` for pictures of a prompt. Each name is loaded when it is first used, so that `import t2i_tutorial` stays light.
"""

__version__ = "0.1.0"

from importlib import import_module

_PUBLIC = {
    "show_images": "core",
    "seed_everything": "core",
    "ImageTextDataset": "data",
    "open_dataset": "data",
    "Imagen": "diffusion.imagen",
    "GigaGAN": "gan.gigagan",
}
_MODULES = (
    "attention",
    "clip",
    "core",
    "critters",
    "data",
    "diffusion",
    "evaluation",
    "experiments",
    "gan",
    "hub",
    "nano",
    "shapes",
    "text",
    "training",
)
__all__ = [*_PUBLIC, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
