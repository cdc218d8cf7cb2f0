"""Records or matrices in, plotly Figures out. Pure functions; nothing is shown, nothing computed but pictures."""

import importlib
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from natgrad_lab.plots.curves import loss_figure, loss_spec, spectrum_figure, spectrum_spec
from natgrad_lab.plots.deep_linear import rate_figure
from natgrad_lab.plots.heatmap import SCALES, Picture, fisher_heatmap_figure, fisher_picture
from natgrad_lab.plots.style import colour_table, method_colour

__all__ = [
    "SCALES", "Picture", "colour_table", "fisher_heatmap_figure", "fisher_picture", "loss_figure", "loss_spec",
    "method_colour", "rate_figure", "spectrum_figure", "spectrum_spec",
]  # fmt: skip


class _Later(ModuleType):
    """Stands for a module that has not been imported, until one of its names is asked for.

    Who looks through all modules (`inspect`, for a file) asks only for names with underscores, and finds none.
    """

    def __getattr__(self, name: str):
        if name.startswith("__") and name != "__path__":
            raise AttributeError(f"{self.__name__} has not been imported: no {name}.")
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _plain_buttons() -> None:
    """In a notebook: no button of plotly's that uploads a chart, no logo. Elsewhere its renderers are not loaded.

    They import nbformat only for its version, which takes most of three seconds (it builds the grammar of web addresses);
    here its version stands there, and it loads when more is asked of it.
    """
    shell = sys.modules.get("IPython")
    if shell is not None and shell.get_ipython() is not None:
        with suppress(PackageNotFoundError):
            if "nbformat" not in sys.modules:
                later = _Later("nbformat")
                later.__version__ = version("nbformat")
                sys.modules["nbformat"] = later
        import plotly.io

        plotly.io.renderers["plotly_mimetype"].config = {"showSendToCloud": False, "displaylogo": False}


_plain_buttons()
