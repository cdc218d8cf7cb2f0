"""The panel's controls, left to right in the order of use."""

import inspect
import math
from typing import Any

import ipywidgets as ipw

from natgrad_lab.optimizers import METHODS
from natgrad_lab.plots.heatmap import SCALES

_STYLE = {"description_width": "initial"}


def default_of(method: str, name: str) -> float | None:
    """Default value of a method's argument, None if it has none."""
    parameter = inspect.signature(METHODS[method]).parameters.get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def uses_damping(method: str) -> bool:
    """Whether damping means something to the method."""
    return default_of(method, "damping") is not None


class Controls(ipw.HBox):
    """Dropdowns, sliders and buttons; no behaviour of its own."""

    def __init__(self, choices: dict[str, Any], pictures: list[tuple[str, Any]]):
        """Show `choices` (method, lr, damping, scale, picture); `pictures` are (label, choice)."""
        dropdown = {"style": _STYLE, "layout": {"width": "auto"}}
        self.method = ipw.Dropdown(options=list(METHODS), value=choices["method"], description="method", **dropdown)
        self.lr = log_slider("learning rate", choices["lr"], -4, 1)
        self.damping = log_slider("damping λ", choices["damping"], -6, 1)
        button = {"layout": {"width": "84px"}}
        self.start = ipw.Button(description="Start", icon="play", button_style="primary", **button)
        self.step = ipw.Button(description="Step", icon="step-forward", tooltip="one optimizer step", **button)
        self.reset = ipw.Button(description="Reset", icon="undo", tooltip="back to step 0", **button)
        scales = [(scale.label, name) for name, scale in SCALES.items()]
        self.scale = ipw.Dropdown(options=scales, value=choices["scale"], description="scale", **dropdown)
        self.picture = ipw.Dropdown(options=pictures, value=choices["picture"], description="part of F", **dropdown)
        wrapped = {"flex_flow": "row wrap", "grid_gap": "2px 10px", "align_items": "center"}
        view = ipw.HBox([self.scale, self.picture], layout=wrapped)
        super().__init__([self.method, self.lr, self.damping, self.start, self.step, self.reset, view], layout=wrapped)
        self.add_class("natgrad-controls")

    def show_state(self, state: str) -> None:
        """Start becomes Pause while running; what cannot be pressed is disabled."""
        is_running = state == "running"
        self.start.description, self.start.icon = ("Pause", "pause") if is_running else ("Start", "play")
        self.start.disabled = state in ("failed", "closed")
        self.step.disabled = state != "idle" and state != "paused"
        self.reset.disabled = state == "closed"


def log_slider(description: str, value: float, low: int, high: int) -> ipw.FloatLogSlider:
    """Slider over powers of ten from 10^low to 10^high, stretched to hold `value`; its number has a fixed width."""
    exponent = math.log10(value)
    return ipw.FloatLogSlider(
        value=value, base=10, min=min(low, math.floor(exponent)), max=max(high, math.ceil(exponent)), step=0.02,
        description=description, readout_format=".1e", continuous_update=True, style=_STYLE, layout={"width": "270px"},
    )  # fmt: skip
