"""Measuring text-to-image models: an attribute classifier, distances, one report.

`evaluate(sample_fn)` measures any function from prompts and a seed to images;
each name is loaded when it is first used.
"""

from importlib import import_module

_PUBLIC = {
    "AttributeClassifier": "classifier",
    "Metric": "metrics",
    "EvaluationReport": "report",
    "evaluate": "report",
    "prompt_accuracy": "report",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
