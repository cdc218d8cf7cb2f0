"""A live plotly figure without FigureWidget: arrays in binary, plotly.js once per page, from the installed package."""

import time
from collections.abc import Callable
from numbers import Real

import numpy as np
import traitlets
from plotly.offline import get_plotlyjs

from natgrad_lab.widgets.view import FlowView, source

_TYPES = {"float32", "float64", "int32", "uint8"}


class PlotView(FlowView):
    """Shows plotly figures given as dicts (`plots.loss_spec`), at most `max_redraws` times a second.

    Offline: nothing is loaded from elsewhere, and nothing can be sent away (no "share" button).
    """

    _esm = source("flow.js", "narrow.js", "curves.js")
    height = traitlets.Int(262, help="in CSS pixels").tag(sync=True)

    def __init__(self, *, max_redraws: Real = 4, clock: Callable[[], Real] = time.monotonic, **traits):
        """Begin empty; `show` brings the first figure."""
        self._interval, self._clock = 1.0 / max_redraws, clock
        self._shown_at = -float("inf")
        super().__init__(**traits)

    def show(self, figure: Callable[[], dict], *, urgent: bool = False, stamp: str = "", alt: str = "") -> bool:
        """Show the figure that `figure()` makes, unless one was shown less than 1 / max_redraws seconds ago.

        Args:
            figure: called only if the figure is going to be shown; gives {"data": [...], "layout": {...}}.
            urgent: show it whenever that was: the last frame, or what a person has just changed.
        Returns: whether it was shown.
        """
        now = self._clock()
        if not urgent and now - self._shown_at < self._interval:
            return False
        self._shown_at = now
        buffers: list[bytes] = []
        header = {"type": "frame", "figure": pack(figure(), buffers), "stamp": stamp, "alt": alt}
        self._frames.push(header, buffers)
        return True

    def answer(self, message: dict) -> None:
        """Send plotly.js to the first view of a page that asks for it."""
        if message.get("type") == "library":
            self._to_page({"type": "library"}, [get_plotlyjs().encode("utf-8")])


def pack(value, buffers: list[bytes]):
    """Replace numeric numpy arrays in nested dicts and lists by references into `buffers`."""
    if isinstance(value, np.ndarray):
        array = value if value.dtype.name in _TYPES else value.astype(np.float64)
        buffers.append(np.ascontiguousarray(array).tobytes())
        return {"$buffer": len(buffers) - 1, "dtype": array.dtype.name}
    if isinstance(value, dict):
        return {key: pack(item, buffers) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [pack(item, buffers) for item in value]
    return value
