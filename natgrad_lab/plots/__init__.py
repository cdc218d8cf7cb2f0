"""Records or matrices in, plotly Figures out. Pure functions; nothing is shown, nothing computed but pictures."""

import sys
import threading

from natgrad_lab.plots.curves import loss_figure, loss_spec, spectrum_figure, spectrum_spec
from natgrad_lab.plots.deep_linear import rate_figure
from natgrad_lab.plots.heatmap import SCALES, Picture, fisher_heatmap_figure, fisher_picture
from natgrad_lab.plots.style import colour_table, method_colour

__all__ = [
    "SCALES", "Picture", "colour_table", "fisher_heatmap_figure", "fisher_picture", "loss_figure", "loss_spec",
    "method_colour", "rate_figure", "spectrum_figure", "spectrum_spec",
]  # fmt: skip


def _plain_buttons() -> None:
    """In a notebook: no button of plotly's that uploads a chart, no logo. Elsewhere its renderers take 2 seconds to load.

    They load in a thread of their own, which is waited for: deep in the imports of a notebook's first cell CPython 3.11 takes
    up to 8 seconds longer, where calls go back and forth over the end of a piece of its stack.
    """
    shell = sys.modules.get("IPython")
    if shell is not None and shell.get_ipython() is not None:
        loading = threading.Thread(target=_set_buttons)
        loading.start()
        loading.join()


def _set_buttons() -> None:
    import plotly.io

    plotly.io.renderers["plotly_mimetype"].config = {"showSendToCloud": False, "displaylogo": False}


_plain_buttons()
