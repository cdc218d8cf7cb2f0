"""The dashboard of conditioning: one slider for the damping, the spectra, and condition numbers as a table."""

import threading
import traceback

import ipywidgets as ipw
import numpy as np
from torch import nn

from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.plots import style
from natgrad_lab.shapes import Tensor
from natgrad_lab.widgets import card_text, text
from natgrad_lab.widgets.card_newest import Newest
from natgrad_lab.widgets.conditioning_spectra import PRECONDITIONERS, Conditioning
from natgrad_lab.widgets.curves import PlotView
from natgrad_lab.widgets.guard import guarded
from natgrad_lab.widgets.keys import Keys

DAMPINGS = tuple(float(f"{10 ** (k / 2):.2g}") for k in range(-12, 3))  # 1e-6 to 10, two a decade
DEFAULT = 1e-2


class ConditioningPanel(ipw.VBox):
    """Spectra and condition numbers of a `Conditioning`, for the damping that is chosen; newest choice first."""

    def __init__(self, conditioning: Conditioning, name: str = "conditioning"):
        """Begin at damping 0.01; what takes long is computed in a thread of its own."""
        self.conditioning, self._lock = conditioning, threading.RLock()
        self.damping = ipw.SelectionSlider(
            options=[(text.scientific(value), value) for value in DAMPINGS], value=DEFAULT, description="damping λ",
            style={"description_width": "initial"}, layout={"width": "420px", "max_width": "100%"},
        )  # fmt: skip
        self.damping.add_class("natgrad-card-slider")
        self.headline, self.table, self.error, self.plot = ipw.HTML(), ipw.HTML(), ipw.HTML(), PlotView(height=380)
        super().__init__([Keys(), self.damping, self.error, self.headline, self.plot, self.table])
        for each in ("natgrad-card", "natgrad-conditioning"):
            self.add_class(each)
        self._newest = Newest(self._work, thread=f"natgrad-card-{name}")
        self.damping.observe(self._on_damping, "value")
        self._newest.ask(DEFAULT)

    def wait(self, timeout: float = 60.0) -> bool:
        """Block until what is shown belongs to the slider; False after `timeout` seconds."""
        return self._newest.wait(timeout)

    def close(self) -> None:
        """Stop what is computed and take the widgets away."""
        if hasattr(self, "_newest"):
            self._newest.close()
        super().close()

    @guarded
    def _on_damping(self, change) -> None:
        self._newest.ask(change["new"])

    def _work(self, damping: float) -> None:
        try:
            result = self.conditioning.result(damping)
            number, words = headline(result)
            self.headline.value = card_text.headline(number, words)
            self.table.value = table(result)
            self.plot.show(
                lambda: spectra_spec(result), urgent=True, stamp=f"damping={damping:.4g}",
                alt=f"Spectra, each divided by its largest eigenvalue. {number}, {words}.",
            )  # fmt: skip
            self.error.value = ""
        except Exception:
            self.error.value = text.error(traceback.format_exc())


def conditioning(
    model: nn.Module, likelihood: Likelihood, inputs: Tensor, fisher_type: str = "exact", *, name: str = "conditioning"
) -> ConditioningPanel:
    """How well conditioned the Fisher of your model is on these inputs: with damping, by layer, preconditioned.

    Args, Raises: as `Conditioning`.
    """
    return ConditioningPanel(Conditioning(model, likelihood, inputs, fisher_type), name)


def headline(result: dict) -> tuple[str, str]:
    """The condition number that gradient descent meets, and what is best against it."""
    best = min(PRECONDITIONERS, key=lambda name: result["conditions"][name])
    plain, after, damped = (
        text.scientific(k) for k in (result["conditions"]["F"], result["conditions"][best], result["damped"])
    )
    return (
        f"κ = {plain}",
        f"of the exact Fisher (largest / smallest of its {result['rank']:,} nonzero eigenvalues, of {result['dim']:,}); "
        f"preconditioned by {best} {after}; κ(F + λI) = {damped}",
    )


def spectra_spec(result: dict) -> dict:
    """Every spectrum divided by its largest eigenvalue against rank, log-log; flat is well conditioned."""
    colours = {"F": style.EXACT} | {name: style.method_colour(method) for name, (_, method) in PRECONDITIONERS.items()}
    traces = [
        {
            "type": "scatter", "mode": "lines", "name": "exact F" if name == "F" else f"preconditioned by {name}",
            "x": np.arange(1, len(values) + 1, dtype=np.float32), "y": values / values[0] if len(values) else values,
            "line": {"color": colours[name], "width": 3 if name == "F" else 2},
        }
        for name, values in result["spectra"].items()
    ]  # fmt: skip
    layout = style.template() | {"showlegend": True, "uirevision": "spectra", "height": 380}
    layout["legend"] = {"x": 0.01, "y": 0.02, "xanchor": "left", "yanchor": "bottom"}
    layout["xaxis"] |= {"type": "log", "dtick": 1, "title": layout["xaxis"]["title"] | {"text": "rank (log)"}}
    layout["yaxis"] |= {"type": "log", "title": layout["yaxis"]["title"] | {"text": "eigenvalue / largest (log)"}}
    return {"data": traces, "layout": layout}


def table(result: dict) -> str:
    """Condition numbers as HTML: of the whole, preconditioned, of each layer."""
    whole = [("exact F", f"{result['dim']:,}", result["conditions"]["F"], result["damped"])]
    ways = [(f"preconditioned by {name}", "", result["conditions"][name], None) for name in PRECONDITIONERS]
    layers = [(f"layer {name}", f"{size:,}", plain, damped) for name, size, plain, damped in result["layers"]]
    rows = "".join(
        f"<tr><td>{card_text.escape(name)}</td>"
        + "".join(f'<td class="natgrad-number">{cell}</td>' for cell in (size, text.scientific(plain), _or_empty(damped)))
        + "</tr>"
        for name, size, plain, damped in (*whole, *ways, *layers)
    )
    head = "".join(f"<th>{word}</th>" for word in ("", "parameters", "κ", "κ with + λI"))
    return f'<table class="natgrad-table"><tr>{head}</tr>{rows}</table>'


def _or_empty(value: float | None) -> str:
    return "" if value is None else text.scientific(value)
