"""Text to Image from Scratch: the library that the notebooks of the book export.

Start with `critters.sample_critters` for captioned critters, `ImageTextDataset` and
`open_dataset` for any captioned images, `show_images` to look at them,
`seed_everything` to get the same again, `training.Trainer` to train, and
`Imagen.from_pretrained`, `GigaGAN.from_pretrained` or `load_model` to generate images
of a prompt. A name is loaded when it is first used: `import t2i_tutorial` stays light.
"""

__version__ = "0.1.0"

from importlib import import_module
from pkgutil import iter_modules

_PUBLIC = {
    "show_images": "core",
    "seed_everything": "core",
    "ImageTextDataset": "data",
    "open_dataset": "data",
    "Imagen": "diffusion.imagen",
    "Cascade": "diffusion.cascade",
    "GigaGAN": "gan.gigagan",
    "load_model": "hub",
}
_MODULES = tuple(
    m.name
    for m in iter_modules(__path__)
    if m.name not in ("cli", "exercises", "_modidx")
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
