"""The race as a picture and as words."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from natgrad_lab.plots import style
from natgrad_lab.widgets.card_text import escape

AXES = {
    "updates": "updates of the parameters", "seconds": "seconds spent on the steps",
    "examples": "examples seen, repeats counted",
}  # fmt: skip
_FREE = (style.BLUE, style.VERMILLION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY)


def race_spec(entrants: Sequence[dict[str, Any]], axis: str = "updates") -> dict:
    """Loss, log, against one of AXES: a line for each entrant, named at its end."""
    colours, traces, ends = race_colours(entrants), [], {}
    for entrant in entrants:
        losses = np.where(np.isfinite(entrant["losses"]) & (entrant["losses"] > 0), entrant["losses"], np.nan)
        name, colour, x = entrant["name"], colours[entrant["name"]], entrant[axis]
        traces.append(
            {
                "type": "scatter", "mode": "lines", "name": name, "x": x, "y": losses, "line": {"color": colour, "width": 2.5},
                "hovertemplate": f"%{{y:.4g}} nats at %{{x:.4g}} {axis}",
            }
        )  # fmt: skip
        drawn = np.flatnonzero(np.isfinite(losses))
        if len(drawn):
            ends[name] = float(x[drawn[-1]]), float(np.log10(losses[drawn[-1]]))
    heights = [np.log10(trace["y"][np.isfinite(trace["y"])]) for trace in traces]
    span = float(np.ptp(np.concatenate(heights))) if ends else 0.0
    notes = [
        {
            "text": escape(name), "x": x, "y": y, "showarrow": False, "xanchor": "left", "xshift": 6,
            "yshift": shift, "font": {"color": colours[name], "size": 13},
        }
        for (name, (x, y)), shift in zip(ends.items(), _apart([y for _, y in ends.values()], span), strict=True)
    ]  # fmt: skip
    layout = style.template() | {"annotations": notes, "uirevision": axis, "height": 380}
    layout["xaxis"] |= {"rangemode": "tozero", "title": layout["xaxis"]["title"] | {"text": AXES[axis]}}
    layout["yaxis"] |= {"type": "log", "title": layout["yaxis"]["title"] | {"text": "loss (nats per example, log)"}}
    layout["margin"] = layout["margin"] | {"r": 110, "t": 12}
    return {"data": traces, "layout": layout}


def _apart(places: Sequence[float], span: float, pixels: float = 300.0, least: float = 16.0) -> list[float]:
    """Shifts, in pixels, that keep labels at these places `least` pixels apart; an axis of `span` is `pixels` high."""
    scale, below = pixels / span if span > 0 else 0.0, -math.inf
    shifts = [0.0] * len(places)
    for number in sorted(range(len(places)), key=lambda each: places[each]):
        wanted = places[number] * scale
        shifts[number] = max(0.0, below + least - wanted)
        below = wanted + shifts[number]
    return shifts


def race_colours(entrants: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The method's own colour, or a free one where two entrants have the same method."""
    colours: dict[str, str] = {}
    for entrant in entrants:
        own = style.method_colour(entrant["method"])
        free = (colour for colour in (own, *_FREE) if colour not in colours.values())
        colours[entrant["name"]] = next(free, style.GREY)
    return colours


def leader(entrants: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The one with the lowest newest loss; None before the first update."""
    started = [entrant for entrant in entrants if entrant["done"] and np.isfinite(entrant["newest"])]
    return min(started, key=lambda entrant: entrant["newest"]) if started else None


def headline(entrants: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The lowest loss, and whose it is."""
    first = leader(entrants)
    if first is None:
        return "–", "press Run: every method starts from the same weights and gets the same seconds"
    return f"{first['newest']:.4f} nats", f"{first['name']} leads, after {first['done']:,} updates in {first['spent']:.1f} s"


def table(entrants: Sequence[dict[str, Any]]) -> str:
    """Each entrant's updates, seconds, loss, and why it stands still, as HTML."""
    colours = race_colours(entrants)
    head = "".join(f"<th>{word}</th>" for word in ("method", "updates", "seconds", "a step", "loss", ""))
    rows = []
    for entrant in entrants:
        each = 1e3 * entrant["spent"] / entrant["done"] if entrant["done"] else float("nan")
        cells = (f"{entrant['done']:,}", f"{entrant['spent']:.1f}", f"{each:.1f} ms" if entrant["done"] else "–")
        loss = f"{entrant['newest']:.4f}" if np.isfinite(entrant["newest"]) else "–"
        swatch = f'<span class="natgrad-swatch" style="background:{colours[entrant["name"]]}"></span>'
        numbers = "".join(f'<td class="natgrad-number">{cell}</td>' for cell in (*cells, loss))
        rows.append(f"<tr><td>{swatch} {escape(entrant['name'])}</td>{numbers}<td>{escape(entrant['ended'])}</td></tr>")
    return f'<table class="natgrad-table"><tr>{head}</tr>{"".join(rows)}</table>'
