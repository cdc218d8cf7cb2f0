"""The Fisher explorer in a notebook: the page asks for tiles, a worker computes them, newest question first."""

import threading
import time
from collections.abc import Iterable

import anywidget
import torch
import traitlets
from torch import nn

from natgrad_lab.explorer import MEMORY_BUDGET, Explorer, explorer
from natgrad_lab.explorer.page import asset
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.plots.style import colour_table
from natgrad_lab.shapes import Tensor
from natgrad_lab.widgets.png import png

_BATCH = 4  # tiles taken on before the questions are looked at again
_TOGETHER = 36  # tiles of a level that is computed as a whole when most of it is asked for
_STEADY = 1.0  # seconds for which dear limits of colours stay
_TABLES = ("sequential", "diverging")


class FisherExplorer(anywidget.AnyWidget):
    """An `Explorer` to pan, zoom and search, from the whole matrix down to single entries.

    Whatever the page asks for is computed on one worker thread. A newer question of the same page replaces what is left of
    the older one; every tile that was computed is sent and kept by the page, however late, unless `show` has changed the
    matrix since. `state` is the view (row, column, span, source, scale): set it to open the same view again.
    """

    _esm = asset("geometry.js", "viewer.js", "widget.js")
    _css = asset("explorer.css")
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, seen: Explorer, **traits):
        """Open on the whole matrix, or on `state`."""
        self._seen, self._epoch = seen, 0
        self._wanted: dict[str, list[tuple]] = {}
        self._shown: dict[str, list[tuple]] = {}  # what a page asked for at once: sent again, unasked, with another matrix
        self._ready = threading.Condition()
        self._worker: threading.Thread | None = None
        self._closed = False
        super().__init__(**traits)
        self.on_msg(self._from_page)

    @property
    def explorer(self) -> Explorer:
        """What is shown."""
        return self._seen

    def show(self, seen: Explorer) -> None:
        """Show another matrix over the same parameters, in the same view. From any thread."""
        if seen.about() != self._seen.about():
            raise ValueError("show needs an Explorer of the same layers and matrices; open another with ng.explore(...).")
        with self._ready:
            self._seen, self._epoch = seen, self._epoch + 1
            self._wanted = {view: [] for view in self._wanted}
            if self._wanted:
                self._renewed = True
                self._wake()

    def jump(self, text: str) -> None:
        """Go to a place, as "W2[3,5] x W1[0,2]". Raises: ValueError if there is none."""
        self._seen.region(text)
        self._to_page({"type": "jump", "text": text})

    def close(self) -> None:
        """Stop the worker and close the view."""
        if "_ready" in vars(self):  # not if the beginning failed
            with self._ready:
                self._closed = True
                self._ready.notify_all()
        super().close()

    def _from_page(self, _widget, message: dict, _buffers) -> None:
        kind, view = message.get("type"), str(message.get("view"))
        with self._ready:
            if kind == "gone":
                self._wanted.pop(view, None)
                self._shown.pop(view, None)
            elif kind == "ready":
                self._wanted[view] = []
                self._want_greeting()
            elif kind == "tiles" and message.get("epoch") == self._epoch:
                asked = (message["source"], int(message["level"]), message["reduce"])
                self._wanted[view] = [(*asked, int(row), int(column)) for row, column in message["tiles"]]
                if message.get("all"):
                    self._shown[view] = list(self._wanted[view])
                self._wake()
            else:
                self._answer(kind, message)

    def _answer(self, kind: str, message: dict) -> None:
        """Answer a message of another kind; subclasses have some."""

    def _want_greeting(self) -> None:
        self._greet = True
        self._wake()

    _greet = _renewed = False
    _framed = -1  # the newest matrix of which a frame was sent

    def _wake(self) -> None:
        if self._worker is None or not self._worker.is_alive():
            self._worker = threading.Thread(target=self._work, name="natgrad-explorer", daemon=True)
            self._worker.start()
        self._ready.notify_all()

    def _work(self) -> None:
        while True:
            with self._ready:
                while not self._closed and not self._greet and not self._renewed and not any(self._wanted.values()):
                    self._ready.wait()
                if self._closed:
                    return
                seen, epoch = self._seen, self._epoch
                greet, renewed, self._greet, self._renewed = self._greet, self._renewed, False, False
                asked = None if greet or renewed else next(tiles for tiles in self._wanted.values() if tiles)
                together = bool(asked) and self._is_most_of_a_level(seen, asked)
                count = 0 if not asked else len(asked) if together else min(_BATCH, len(asked))
                batch = [asked.pop(0) for _ in range(count)]
                shown = {view: list(self._shown.get(view, [])) for view in self._wanted} if renewed else {}
            try:
                if greet:
                    self._send_greeting(seen, epoch)
                if renewed:
                    self._send_frame(seen, epoch, shown)
                elif asked is not None:
                    if together:
                        seen.picture(batch[0][0], batch[0][1], batch[0][2])
                    self._send_tiles(seen, epoch, batch)
            except Exception as error:  # told to the reader; the next question may be answered
                with self._ready:
                    self._wanted = {view: [] for view in self._wanted}
                self._to_page({"type": "problem", "text": f"{type(error).__name__}: {error}"})

    @staticmethod
    def _is_most_of_a_level(seen: Explorer, asked: list[tuple]) -> bool:
        level = asked[0][1]
        whole = seen.pyramid.num_tiles(level) ** 2 if level < seen.pyramid.num_levels else 0
        return 0 < whole <= _TOGETHER and 2 * len(asked) > whole and all(each[:3] == asked[0][:3] for each in asked)

    def _send_greeting(self, seen: Explorer, epoch: int) -> None:
        about = seen.about() | {"limits": {name: seen.limits(name) for name in seen.sources}}
        tables = [colour_table(name).tobytes() for name in _TABLES]
        self._to_page({"type": "about", "about": about, "epoch": epoch, "colours": _TABLES}, tables)

    def _send_frame(self, seen: Explorer, epoch: int, shown: dict[str, list[tuple]]) -> None:
        """Another matrix in the same view: its limits, the tiles that a page shows and those of its map, in one message.

        Where a view is not most of a level, its tiles follow one by one.
        """
        tiles: list[tuple] = []
        for view, asked in shown.items():
            if asked and self._is_most_of_a_level(seen, asked):
                source, level, reduce = asked[0][:3]
                seen.picture(source, level, reduce)
                last = seen.pyramid.num_levels - 1
                coarse = {"entries": "rms"}.get(reduce, reduce)
                seen.picture(source, last, coarse)
                count = range(seen.pyramid.num_tiles(last))
                tiles += [*asked, *((source, last, coarse, i, j) for i in count for j in count)]
            elif asked:
                with self._ready:
                    if epoch == self._epoch:
                        self._wanted[view] = asked
        headers, buffers = self._packed(seen, dict.fromkeys(tiles))
        limits = self._limits_now(seen, {each[0] for each in tiles})
        self._to_page({"type": "frame", "epoch": epoch, "limits": limits, "tiles": headers}, buffers)
        with self._ready:
            self._framed = epoch
            self._ready.notify_all()

    _limits, _limited = None, -_STEADY

    def _limits_now(self, seen: Explorer, shown: set[str]) -> dict:
        """The limits of colours of the matrices shown; where they need a picture of their own, at most once a second."""
        names = shown & set(self._limits or ()) or set(seen.sources)
        if self._limits is None or time.monotonic() - self._limited >= _STEADY or all(map(seen.has_picture, names)):
            self._limits = (self._limits or {}) | {name: seen.limits(name) for name in names}
            self._limited = time.monotonic()
        return self._limits

    @staticmethod
    def _packed(seen: Explorer, tiles: Iterable[tuple]) -> tuple[list[dict], list[bytes]]:
        headers, buffers = [], []
        for source, level, reduce, row, column in tiles:
            tile = seen.tile(source, level, row, column, reduce)
            place = {"source": source, "reduce": reduce, "level": level, "row": row, "column": column}
            headers.append({**place, "rows": tile.shape[0], "columns": tile.shape[1]})
            buffers.append(tile.tobytes())
        return headers, buffers

    def _send_tiles(self, seen: Explorer, epoch: int, batch: list[tuple]) -> None:
        """Send one message for a few tiles that are there already, else one for each."""
        group: list[tuple] = []
        for source, level, reduce, row, column in batch:
            if group and not seen.is_ready(source, level, row, column, reduce):
                self._send_group(seen, epoch, group)
                group = []
            group.append((source, level, reduce, row, column))
            seen.tile(source, level, row, column, reduce)
        self._send_group(seen, epoch, group)

    def _send_group(self, seen: Explorer, epoch: int, group: list[tuple]) -> None:
        headers, buffers = self._packed(seen, group)
        self._to_page({"type": "tiles", "epoch": epoch, "tiles": headers}, buffers)

    def _to_page(self, header: dict, buffers: list | None = None) -> None:
        if self.comm is not None:  # closed
            self.send(header, buffers or [])

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        return bundle if bundle is None else _with_png(bundle, self._seen)


def _with_png(bundle, seen: Explorer):
    """Add the overview to a mime bundle (a dict, or a pair of data and metadata), for pages without a kernel."""
    import numpy as np

    (_, picture), (low, high) = seen.overview(), seen.limits()
    with np.errstate(divide="ignore"):
        place = (np.log10(np.abs(picture)) - np.log10(low)) / np.log10(high / low)
    image = png(colour_table("sequential")[(255 * place.clip(0, 1) + 0.5).astype(np.uint8)])
    if isinstance(bundle, tuple):
        return ({**bundle[0], "image/png": image}, *bundle[1:])
    return {**bundle, "image/png": image}


def explore(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    *,
    approximations: Iterable[str] = (),
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> FisherExplorer:
    """Open the exact Fisher of `model` on a batch in a notebook: `ng.explore(model, ng.likelihoods.Categorical(), inputs)`.

    Args, Raises: as `explorer.explorer`; `approximations=["kfac"]` adds K-FAC and its error to the matrices to choose from.
    """
    seen = explorer(
        model, likelihood, inputs, fisher_type, approximations=approximations, targets=targets, num_samples=num_samples,
        generator=generator, memory_budget=memory_budget,
    )  # fmt: skip
    return FisherExplorer(seen)
