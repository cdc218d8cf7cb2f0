"""The Fisher explorer in a notebook: the page asks for tiles, a worker computes them, newest question first."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import anywidget
import numpy as np
import torch
import traitlets
from torch import nn

from natgrad_lab.explorer import MEMORY_BUDGET, Explorer, Region, TooDear, explorer
from natgrad_lab.explorer.matrices import places
from natgrad_lab.explorer.page import SCRIPTS, asset
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.plots.style import colour_table
from natgrad_lab.shapes import Tensor
from natgrad_lab.widgets.png import png

_BATCH = 4  # tiles taken on before the questions are looked at again
_TOGETHER = 36  # tiles of a level that is computed as a whole when most of it is asked for
_STEADY = 1.0  # seconds for which dear limits of colours stay
_FIRST = "exact"
_TABLES = ("sequential", "diverging")


class FisherExplorer(anywidget.AnyWidget):
    """An `Explorer` to pan, zoom and search, from the whole matrix down to single entries.

    Whatever the page asks for is computed on one worker thread. A newer question of the same page replaces what is left of
    the older one; every tile that was computed is sent and kept by the page, however late, unless `show` has changed the
    matrix since. `state` is the view (row, column, span, source, scale, order, white, damping): the same view opens again with
    `FisherExplorer(view.explorer, state=view.state)`, or `ng.explore(..., state=view.state)`.
    """

    _esm = asset(*SCRIPTS, "widget.js")
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
        self._jobs: dict[str, Callable[[], None]] = {}
        kept = traits.get("state") or {}
        wanted = {key: kept[key] for key in ("order", "white", "damping") if key in kept}
        if wanted:
            self._seen = self._rearrange(wanted)
        super().__init__(**traits)
        self.on_msg(self._from_page)

    @property
    def explorer(self) -> Explorer:
        """What is shown."""
        return self._seen

    def show(self, seen: Explorer) -> None:
        """Show another matrix over the same parameters, in the same view. From any thread."""
        if _same_parts(seen) != _same_parts(self._seen):
            raise ValueError("show needs an Explorer of the same layers and matrices; open another with ng.explore(...).")
        self._show(seen)

    def _show(self, seen: Explorer) -> None:
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
                self._wanted[view] = _places(message["wanted"])
                if shown := message.get("shown"):  # True: all that is wanted
                    self._shown[view] = _places(message["wanted"] if shown is True else shown)
                self._wake()
            else:
                self._answer(kind, message)

    def _answer(self, kind: str, message: dict) -> None:
        """Answer a message of another kind. The newest of a kind replaces one that waits; all of it after the tiles."""
        jobs = {"arrange": self._arrange, "analysis": self._analyse, "region": self._send_region}
        if kind in jobs:
            self._jobs[kind] = lambda: jobs[kind](message)
            self._wake()

    def _arrange(self, message: dict) -> None:
        """Show another order, coordinates or damping; told to the page where that is refused."""
        wanted = {key: message[key] for key in ("order", "white", "damping") if message.get(key) is not None}
        try:
            other = self._rearrange(wanted)
        except Exception:
            self._to_page({"type": "arranged", "arrangement": self._seen.about()["arrangement"]})
            raise
        with self._ready:
            self._rearranged = True
            if (other.sources.order is None) != (self._seen.sources.order is None):
                self._shown = {}  # other cells: what a page shows of them it asks for
            self._show(other)

    def _rearrange(self, wanted: dict) -> Explorer:
        return self._seen.arranged(**wanted)

    def _analyse(self, _message: dict) -> None:
        seen, epoch = self._seen, self._epoch
        self._to_page({"type": "analysis", "epoch": epoch, "analysis": seen.analysis()})

    def _send_region(self, message: dict) -> None:
        with io.BytesIO() as file:
            self._write_region(file, message)
            self._to_page({"type": "region"}, [file.getvalue()])

    def save_region(self, path: str | Path, text: str, source: str = "exact") -> None:
        """Write the entries of a region, as "W2 x W1[0]", as .npz: entries, the names of its rows and columns, and the state.

        Raises: ValueError above 16 million entries.
        """
        region = self._seen.region(text)
        rows, columns = region.rows, region.columns
        with Path(path).open("wb") as file:
            self._write_region(
                file, {"rows": [rows.start, rows.stop], "columns": [columns.start, columns.stop], "source": source}
            )

    def _write_region(self, file, message: dict) -> None:
        seen, compared = self._seen, message.get("compare")
        rows, columns = (slice(*message[axis]) for axis in ("rows", "columns"))
        values = lambda source: seen.values(Region(rows, columns), source).cpu().numpy()  # noqa: E731
        second = {"compared": compared, "compared_values": values(compared)} if compared else {}
        np.savez(
            file, values=values(message["source"]), source=message["source"], **second,
            rows=[seen.name_at(i) for i in range(rows.start, rows.stop)],
            columns=[seen.name_at(i) for i in range(columns.start, columns.stop)],
            state=json.dumps(self.state | seen.about()["arrangement"]),
        )  # fmt: skip

    def _want_greeting(self) -> None:
        self._greet = True
        self._wake()

    _greet = _renewed = _rearranged = _live = False
    _framed = -1  # the newest matrix of which a frame was sent

    def _wake(self) -> None:
        if self._worker is None or not self._worker.is_alive():
            self._worker = threading.Thread(target=self._work, name="natgrad-explorer", daemon=True)
            self._worker.start()
        self._ready.notify_all()

    def _work(self) -> None:
        while True:
            with self._ready:
                while not (self._closed or self._greet or self._renewed or any(self._wanted.values()) or self._jobs):
                    self._ready.wait()
                if self._closed:
                    return
                seen, epoch = self._seen, self._epoch
                greet, renewed, self._greet, self._renewed = self._greet, self._renewed, False, False
                asked = None if greet or renewed else next((tiles for tiles in self._wanted.values() if tiles), None)
                job = None if greet or renewed or asked else next(iter(self._jobs.values()))
                if job is not None:
                    self._jobs = {name: each for name, each in self._jobs.items() if each is not job}
                batch, together = self._next(seen, asked) if asked else ([], False)
                shown = {view: list(self._shown.get(view, [])) for view in self._wanted} if renewed else {}
            try:
                if greet:
                    self._send_greeting(seen, epoch)
                if renewed:
                    self._send_frame(seen, epoch, shown)
                elif job is not None:
                    job()
                elif asked is not None:
                    if together:
                        seen.picture(batch[0][0], batch[0][1], batch[0][2])
                    self._send_tiles(seen, epoch, batch)
            except Exception as error:  # told to the reader; the next question may be answered
                with self._ready:
                    failed = {each[0] for each in batch}
                    self._wanted = {view: [t for t in tiles if t[0] not in failed] for view, tiles in self._wanted.items()}
                dear = isinstance(error, TooDear)
                self._to_page({"type": "problem", "text": f"{type(error).__name__}: {error}", "dear": dear})

    def _next(self, seen: Explorer, asked: list[tuple]) -> tuple[list[tuple], bool]:
        """Take the next tiles of one matrix from the list: all where they are most of a level, else a few. Says which."""
        alike = [each for each in asked if each[:3] == asked[0][:3]]
        together = self._is_most_of_a_level(seen, alike)
        batch = alike if together else alike[:_BATCH]
        asked[:] = [each for each in asked if each not in batch]
        return batch, together

    @staticmethod
    def _is_most_of_a_level(seen: Explorer, alike: list[tuple]) -> bool:
        level = alike[0][1]
        whole = seen.pyramid.num_tiles(level) ** 2 if level < seen.pyramid.num_levels else 0
        return 0 < whole <= _TOGETHER and 2 * len(alike) > whole

    def _send_greeting(self, seen: Explorer, epoch: int) -> None:
        about = seen.about() | {"limits": {_FIRST: seen.limits(_FIRST)}, "live": self._live}
        tables = [colour_table(name).tobytes() for name in _TABLES]
        header = {"type": "about", "about": about, "epoch": epoch, "colours": _TABLES}
        self._to_page(header, [*tables, *self._places(seen, about)])

    @staticmethod
    def _places(seen: Explorer, about: dict | None) -> list[bytes]:
        """Where single parameters are in another order, their places; else nothing."""
        return [] if about is None or (order := places(seen.sources)) is None else [order.tobytes()]

    def _send_frame(self, seen: Explorer, epoch: int, shown: dict[str, list[tuple]]) -> None:
        """Another matrix in the same view: its limits, the tiles that a page shows and those of its map, in one message.

        Where a view is not most of a level, its tiles follow one by one.
        """
        tiles: list[tuple] = []
        for view, asked in shown.items():
            rest = []
            for kind, alike in _alike(each for each in asked if each[0] in seen.sources).items():
                if self._is_most_of_a_level(seen, alike):
                    seen.picture(*kind)
                    tiles += [*alike, *self._map_tiles(seen, kind)]
                else:
                    rest += alike
            with self._ready:
                if rest and epoch == self._epoch:
                    self._wanted[view] = rest
        headers, buffers = self._packed(seen, tiles)
        about = seen.about() if self._rearranged else None
        told = self._limits_now if about is None else self._limits_of  # other coordinates have other limits, at once
        limits = told(seen, epoch, {each[0] for asked in shown.values() for each in asked} & set(seen.sources))
        self._rearranged = False
        header = {"type": "frame", "epoch": epoch, "limits": limits, "about": about, "tiles": headers, "times": self._times()}
        self._to_page(header, [*buffers, *self._places(seen, about)])
        with self._ready:
            self._framed = epoch
            self._ready.notify_all()

    @staticmethod
    def _map_tiles(seen: Explorer, kind: tuple[str, int, str]) -> list[tuple]:
        """The tiles of the coarsest level, which the small map shows; made from the finer picture."""
        source, _, reduce = kind
        last, coarse = seen.pyramid.num_levels - 1, {"entries": "rms", "correlations": "correlation size"}.get(reduce, reduce)
        seen.picture(source, last, coarse)
        count = range(seen.pyramid.num_tiles(last))
        return [(source, last, coarse, i, j) for i in count for j in count]

    def _times(self) -> dict | None:
        """Where the view is in time, for one that follows a training."""
        return None

    _limited = -_STEADY

    def _limits_now(self, seen: Explorer, epoch: int, shown: set[str]) -> dict:
        """The limits of colours of the matrices shown; where they need a picture of their own, at most once a second."""
        if time.monotonic() - self._limited < _STEADY and not all(map(seen.has_picture, shown)):
            return {}
        self._limited = time.monotonic()
        return self._limits_of(seen, epoch, shown)

    def _limits_of(self, seen: Explorer, epoch: int, names: Iterable[str]) -> dict:
        """Limits that were not told yet for this matrix."""
        if self._told[0] != epoch:
            self._told = epoch, set()
        new = [name for name in names if name not in self._told[1]]
        self._told[1].update(new)
        return {name: seen.limits(name) for name in new}

    _told: tuple[int, set] = (-1, set())

    @staticmethod
    def _packed(seen: Explorer, tiles: Iterable[tuple]) -> tuple[list[tuple], list[bytes]]:
        """[(source, reduce, level, row, column, rows, columns, both), ...] and one buffer with their values in that order.

        Matrices are symmetric: of a tile and its mirror image the first is sent, marked `both`.
        """
        headers, values, asked, sent = [], [], dict.fromkeys(tiles), set()
        for source, level, reduce, row, column in asked:
            if (source, level, reduce, column, row) in sent:
                continue
            sent.add((source, level, reduce, row, column))
            tile = seen.tile(source, level, row, column, reduce)
            both = row != column and (source, level, reduce, column, row) in asked
            headers.append((source, reduce, level, row, column, *tile.shape, both))
            values.append(tile.tobytes())
        return headers, [b"".join(values)]

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
        limits = self._limits_of(seen, epoch, {each[0] for each in group})
        self._to_page({"type": "tiles", "epoch": epoch, "limits": limits, "tiles": headers}, buffers)

    def _to_page(self, header: dict, buffers: list | None = None) -> None:
        if self.comm is not None:  # closed
            self.send(header, buffers or [])

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        return bundle if bundle is None else _with_png(bundle, self._seen)


def _places(asked: list) -> list[tuple]:
    """Tiles a page asks for, as (source, level, reduce, row, column)."""
    return [(source, int(level), reduce, int(row), int(column)) for source, reduce, level, row, column in asked]


def _alike(tiles: Iterable[tuple]) -> dict[tuple[str, int, str], list[tuple]]:
    """The tiles of each matrix, level and reduction."""
    groups: dict[tuple[str, int, str], list[tuple]] = {}
    for each in tiles:
        groups.setdefault(each[:3], []).append(each)
    return groups


def _same_parts(seen: Explorer) -> tuple:
    return seen.layout.dim, seen.about()["layers"], list(seen.sources)


def _with_png(bundle, seen: Explorer):
    """Add the overview to a mime bundle (a dict, or a pair of data and metadata), for pages without a kernel."""
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
    state: dict | None = None,
) -> FisherExplorer:
    """Open the exact Fisher of `model` on a batch in a notebook: `ng.explore(model, ng.likelihoods.Categorical(), inputs)`.

    Args, Raises: as `explorer.explorer`; `approximations=["kfac"]` adds K-FAC, its error and its inverse to
        the matrices to choose from; `state`, of another explorer, opens the same view.
    """
    seen = explorer(
        model, likelihood, inputs, fisher_type, approximations=approximations, targets=targets, num_samples=num_samples,
        generator=generator, memory_budget=memory_budget,
    )  # fmt: skip
    return FisherExplorer(seen, state=state or {})
