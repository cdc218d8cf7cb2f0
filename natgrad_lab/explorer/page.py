"""A page that opens without a kernel: tiles of the levels that were kept, in one file, with nothing from outside."""

import base64
import html
import json
import re
from importlib.resources import files

import numpy as np

from natgrad_lab.explorer.explore import Explorer
from natgrad_lab.explorer.pyramid import TILE
from natgrad_lab.plots.style import colour_table

SCRIPTS = (
    "geometry.js", "svg.js", "colours.js", "tiles.js", "lens.js", "overlay.js", "pane.js", "input.js", "aside.js", "panel.js",
    "saves.js", "controls.js", "viewer.js",
)  # fmt: skip
KEPT_CELLS = 1024  # cells a side of the finest level that a page keeps


def page(seen: Explorer, title: str, cells: int = KEPT_CELLS) -> str:
    """The HTML of a page that can be zoomed to the finest level of at most `cells` cells a side (but one level at least).

    With as many cells as parameters that is down to single entries. Of every level the tiles on and above the diagonal are
    kept, as float32, both as root mean squares and as signed means.
    Cost: 4 bytes a cell, 8/3 of that with the coarser levels and both ways to sum up, 4/3 for the text of it.
    """
    if not isinstance(cells, int) or cells < 1:
        raise ValueError(f"cells must be a positive integer; got {cells!r}.")
    sources = [name for name in seen.sources if not name.startswith("inverse")]  # a page has no damping to choose
    levels = range(seen.pyramid.level_for(0, seen.layout.dim, cells), seen.pyramid.num_levels)
    kinds = {"entries": levels[:1] if levels.start == 0 else [], **dict.fromkeys(("rms", "mean"), levels[levels.start == 0 :])}
    tiles = {
        source: {kind: {str(level): _tiles(seen.picture(source, level, kind)) for level in kinds[kind]} for kind in kinds}
        for source in sources
    }
    limits = {name: seen.limits(name) for name in sources}
    about = seen.about() | {"finest": levels.start, "limits": limits, "sources": sources}
    data = {
        "about": about, "analysis": seen.analysis(), "tiles": tiles,
        "counts": {str(level): seen.pyramid.num_cells(level) for level in levels},
        "colours": {name: _text(colour_table(name).tobytes()) for name in ("sequential", "diverging")},
    }  # fmt: skip
    kept = "single entries" if levels.start == 0 else f"cells of {2**levels.start:,} parameters or one unit"
    facts = (
        f"{seen.layout.dim:,} parameters in {len(seen.layout.layers)} layers, {seen.sources['exact'].gram.num_rows:,} rows "
        f"of scores; exact at every level. This page keeps the levels down to {kept}. {TILE} x {TILE} cells a tile."
    )
    parts = {
        "css": asset("explorer.css"), "title": html.escape(title), "facts": html.escape(facts), "data": safe_json(data),
        "js": asset(*SCRIPTS, "page.js"),
    }  # fmt: skip
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], asset("page.html"))  # once: parts may hold braces


def asset(*names: str) -> str:
    """Files of this room's assets, joined."""
    folder = files("natgrad_lab.explorer").joinpath("assets")
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def safe_json(value: object) -> str:
    """JSON that is safe inside a script element, whatever the names of layers are."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _tiles(picture: np.ndarray) -> dict[str, str]:
    count = -(-len(picture) // TILE)
    cut = [slice(n * TILE, (n + 1) * TILE) for n in range(count)]
    return {f"{i},{j}": _text(picture[cut[i], cut[j]].tobytes()) for i in range(count) for j in range(i, count)}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
