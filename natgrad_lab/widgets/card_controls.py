"""A card's controls as ipywidgets, left to right, and its presets as buttons; no behaviour of their own."""

from collections.abc import Mapping
from typing import Any

import ipywidgets as ipw

from natgrad_lab.course.card import Card, Control

_WRAP = {"flex_flow": "row wrap", "grid_gap": "4px 18px", "align_items": "center"}


def value_text(value: Any) -> str:
    """A value as a reader sees it: 0.01, 1e-05, 1,000."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _slider(control: Control) -> ipw.Widget:
    options = [(value_text(value), value) for value in control.values]
    made = ipw.SelectionSlider(
        options=options, value=control.default, description=control.label, style={"description_width": "initial"},
        layout={"width": f"{_width(control.label, options)}px", "max_width": "100%"},
    )  # fmt: skip
    made.add_class("natgrad-card-slider")
    return made


def _width(label: str, options: list) -> int:
    """CSS pixels: the words, and 10 for each stop, but room to drag between 140 and 260."""
    return 7 * len(label) + 100 + min(260, max(140, 10 * len(options)))


def _menu(control: Control) -> ipw.Widget:
    options = [(value_text(value), value) for value in control.values]
    return ipw.Dropdown(
        options=options, value=control.default, description=control.label, style={"description_width": "initial"},
        layout={"width": "auto"},
    )  # fmt: skip


def _toggle(control: Control) -> ipw.Widget:
    layout = {"width": "auto"}
    return ipw.Checkbox(value=bool(control.default), description=control.label, indent=False, layout=layout)


_KINDS = {"slider": _slider, "menu": _menu, "toggle": _toggle}


class CardControls(ipw.HBox):
    """One widget a control; `state` is what they say now."""

    def __init__(self, card: Card):
        """At the card's default state."""
        self.parts = {control.name: _KINDS[control.kind](control) for control in card.controls}
        super().__init__(list(self.parts.values()), layout=_WRAP)
        self.add_class("natgrad-card-controls")

    def state(self) -> dict[str, Any]:
        """Name of a control -> its value."""
        return {name: part.value for name, part in self.parts.items()}

    def set(self, state: Mapping[str, Any]) -> None:
        """Move the controls."""
        for name, value in state.items():
            self.parts[name].value = value


class CardPresets(ipw.HBox):
    """One button a preset."""

    def __init__(self, card: Card):
        """In the card's order, "default" first."""
        self.buttons = {name: _button(name) for name in ("default", *card.presets)}
        super().__init__([ipw.HTML('<span class="natgrad-quiet">set:</span>'), *self.buttons.values()], layout=_WRAP)
        self.add_class("natgrad-card-presets")


def _button(name: str) -> ipw.Button:
    return ipw.Button(description=name, layout={"width": "auto"})
