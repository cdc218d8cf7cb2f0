"""What a page without a kernel holds of a card: its words, and figure and headline of the states it can show, as JSON."""

import base64
import json
import math
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np

from natgrad_lab.course.card import Card
from natgrad_lab.widgets import card_text
from natgrad_lab.widgets.card_code import state_code
from natgrad_lab.widgets.card_controls import value_text
from natgrad_lab.widgets.card_figure import figure_data, height_of

MOST_BYTES = 3_000_000  # of one card in a page
MOST_STATES = 80
_FLOAT32 = 1e-37, 1e38  # magnitudes that survive in float32
_SHORT = 8  # numbers that are written out; longer arrays go as base64


def card_data(card: Card, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Everything a page needs: plain JSON values.

    The default state and the presets come first, then those of `card.some_states()`, as many as fit into `most_bytes`
    ("held" of "all" says how many). Of a card with `seconds` only the default state and the presets are computed.
    Arrays are rounded to float32 where that changes no digit a figure can show; equal traces are held once.
    Raises: ValueError if not even the first states fit.
    Cost: `compute` and `draw` once a state.
    """
    wanted = _in_order(card)
    pool, states, size = _Pool(), {}, 0
    for state in wanted:
        place = state_code(card, state).partition(":")[2]
        before = pool.size
        kept = _state(card, card.compute(dict(state)), pool)
        size += pool.size - before + len(json.dumps(kept))
        if size > most_bytes:
            break
        states[place] = kept
    first = _places(card, [card.state(), *(card.state(preset) for preset in card.presets.values())])
    if not set(first) <= set(states):
        raise ValueError(
            f"card {card.name!r}: default and presets alone take more than {most_bytes / 1e6:.1f} MB of a page. Draw figures "
            "with fewer points."
        )
    return _words(card) | {
        "pool": pool.parts[: pool.used(states)], "states": states, "held": len(states),
        "all": math.prod(len(control.values) for control in card.controls),
    }  # fmt: skip


def _in_order(card: Card) -> list[dict[str, Any]]:
    """Default, presets, `some_states`, and then what is one control away from a preset, up to `MOST_STATES`."""
    first = [card.state(), *(card.state(preset) for preset in card.presets.values())]
    if card.seconds:
        return list({state_code(card, state): state for state in first}.values())
    beside = (
        card.state({**base, c.name: value}) for base in card.presets.values() for c in card.controls for value in c.values
    )
    found = {}
    for state in chain(first, card.some_states(MOST_STATES), beside):
        if len(found) < MOST_STATES or state in first:
            found.setdefault(state_code(card, state), state)
    return list(found.values())


def _places(card: Card, states: Iterable[Mapping]) -> list[str]:
    return [state_code(card, state).partition(":")[2] for state in states]


def _words(card: Card) -> dict[str, Any]:
    prediction, result = card.prediction, card.result()
    answer = prediction.answer(result)
    return {
        "name": card.name, "title": card.title, "message": card.message, "caption": card.caption,
        "controls": [
            {
                "label": control.label, "kind": control.kind, "values": [value_text(value) for value in control.values],
                "default": control.values.index(control.default),
            }
            for control in card.controls
        ],
        "presets": {
            name: _places(card, [card.state(preset)])[0] for name, preset in {"default": {}, **card.presets}.items()
        },
        "question": prediction.question, "options": prediction.options and list(prediction.options),
        "unit": prediction.unit, "answer": answer if prediction.options else float(answer),
        "answer_text": card_text.answer_text(prediction, answer), "explanation": card_text.explanation(prediction, answer),
    }  # fmt: skip


def _state(card: Card, result: dict, pool: "_Pool") -> dict[str, Any]:
    figure = figure_data(card.draw(result))
    number, words = card.headline(result)
    return {
        "number": number, "words": words, "height": height_of(figure["layout"]), "layout": pool.add(figure["layout"]),
        "data": [pool.add(trace) for trace in figure["data"]],
    }  # fmt: skip


class _Pool:
    """Parts of figures, equal ones once."""

    def __init__(self):
        self.parts, self.size, self._places = [], 0, {}

    def add(self, part: dict) -> int:
        """The place of `part`."""
        plain = json_ready(part)
        text = json.dumps(plain, sort_keys=True)
        if text not in self._places:
            self._places[text] = len(self.parts)
            self.parts.append(plain)
            self.size += len(text)
        return self._places[text]

    def used(self, states: Mapping[str, dict]) -> int:
        """How many parts, from the first, these states need."""
        return 1 + max(max([state["layout"], *state["data"]]) for state in states.values()) if states else 0


def json_ready(value: Any) -> Any:
    """`value` as plotly.js reads it from JSON: long arrays in base64, no NaN or infinity in what is written out."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return _array(np.stack(value)) if _is_matrix(value) else [json_ready(item) for item in value]
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, float):
        return _number(value)
    return value


def _number(value: float) -> float | None:
    return float(f"{value:.9g}") if math.isfinite(value) else None


def _is_matrix(rows: Any) -> bool:
    """Whether these are rows of numbers, of one length: plotly.js reads base64 for a whole matrix, not row by row."""
    return len(rows) > 0 and all(isinstance(row, np.ndarray) and row.shape == rows[0].shape for row in rows)


def _array(values: np.ndarray) -> Any:
    if values.size <= _SHORT:
        return [_number(float(value)) for value in values] if values.ndim == 1 else [_array(row) for row in values]
    sizes = np.abs(values[np.isfinite(values) & (values != 0)].astype(np.float64))
    fits = not len(sizes) or (sizes.min() > _FLOAT32[0] and sizes.max() < _FLOAT32[1])
    kind = "f4" if fits else "f8"
    packed = {"dtype": kind, "bdata": base64.b64encode(values.astype(f"<{kind}").tobytes()).decode("ascii")}
    return packed if values.ndim == 1 else {**packed, "shape": ",".join(map(str, values.shape))}
