"""natgrad_lab: exact and approximate natural gradients of neural networks, to compute with, to look at, to teach with.

`import natgrad_lab as ng` loads nothing yet: each room (`ng.fisher`, `ng.optimizers`, ...) is imported where it is
first used, so that the command line starts at once and the core runs where plotly and Jupyter are absent.
"""

from importlib import import_module

__version__ = "0.1.0"

_ROOMS = (
    "cli", "comparison", "course", "datasets", "deep_linear", "derivatives", "errors", "experiments", "explorer", "fisher",
    "likelihoods", "linalg", "metrics", "models", "optimizers", "parameters", "plots", "reproduce", "roots", "structures",
    "widgets",
)  # fmt: skip
_NAMES = {"ParameterLayout": "parameters", "compare": "comparison", "explore": "widgets", "stop_all": "widgets"}
__all__ = ["ParameterLayout", "compare", "explore", "stop_all", *_ROOMS]


def __getattr__(name: str):
    """Import the room `name`, or the room that defines the public name `name`."""
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"natgrad_lab has no {name!r}. It has: {', '.join(__all__)}.")


def __dir__() -> list:
    """List the lazy names too, for completion."""
    return sorted([*globals(), *__all__])
