"""The training panel: controls → `LiveRun.set`, frames → canvas, curves and text. Wiring only."""

import functools
import threading
import time
from dataclasses import replace
from numbers import Real
from pathlib import Path

import ipywidgets as ipw
import plotly.graph_objects as go
from torch import nn

from natgrad_lab.datasets import Dataset
from natgrad_lab.experiments import ExperimentConfig
from natgrad_lab.likelihoods import Categorical, Likelihood
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.plots.curves import loss_spec, spectrum_spec
from natgrad_lab.widgets import export, text
from natgrad_lab.widgets.controller import Frame, LiveRun
from natgrad_lab.widgets.controls import Controls, default_of, uses_damping
from natgrad_lab.widgets.curves import PlotView
from natgrad_lab.widgets.guard import guarded
from natgrad_lab.widgets.heatmap import HeatmapCanvas, with_png
from natgrad_lab.widgets.keys import Keys
from natgrad_lab.widgets.state import WHOLE, picture_choices
from natgrad_lab.widgets.training import TrainingProblem, begin_config, begin_model

_WORDS_EVERY = 0.1  # seconds between texts while running; faster cannot be read
DEFAULT = ExperimentConfig(method="sgd", batch_size=128, steps=100_000)


class TrainingPanel(ipw.VBox):
    """A network trains while its exact Fisher, the Fisher's spectrum and the loss move together.

    `TrainingPanel(config)` trains what an `ExperimentConfig` describes; without one, a 64-32-32-10 network on the 8 x 8
    digits. `TrainingPanel(model=..., likelihood=..., dataset=...)` trains a copy of your own model, from its weights.
    The Fisher is that of the first `probe_size` examples. A panel of the same `name` that was made before is stopped.
    """

    def __init__(
        self,
        config: ExperimentConfig | None = None,
        *,
        model: nn.Module | None = None,
        likelihood: Likelihood | None = None,
        dataset: Dataset | None = None,
        probe_size: int = 50,
        max_fps: Real = 30,
        name: str = "training",
    ):
        """Build the widgets and the run; the first picture is drawn before Start is pressed."""
        config = DEFAULT if config is None else config
        begin = begin_config(config) if model is None else _own_model(config, model, likelihood, dataset)
        if model is None and (likelihood is not None or dataset is not None):
            raise ValueError("likelihood and dataset go with model=...; without a model, name them in the config.")
        self._lock = threading.RLock()
        self._shown: Frame | None = None
        self._past: dict[str, tuple] = {}
        self._worded_at = -float("inf")
        self._probe_size = probe_size
        choices = _first_choices(config)
        training, _ = begin(dict(choices))
        self._probe_size = min(probe_size, len(training.inputs))
        pictures = picture_choices(ParameterLayout(training.model))
        self.controls = Controls(choices, pictures)
        self.heat, self.spectrum, self.loss = HeatmapCanvas(), PlotView(max_redraws=3), PlotView(max_redraws=3)
        self.headline, self.status, self.error = ipw.HTML(), ipw.HTML(), ipw.HTML()
        right = ipw.VBox([self.spectrum, self.loss], layout={"flex": "1 1 300px", "min_width": "0"})
        left = ipw.VBox([self.heat], layout={"flex": "0 1 450px", "min_width": "0"})
        views = ipw.HBox([left, right], layout={"flex_flow": "row wrap", "grid_gap": "8px 16px"})
        super().__init__([Keys(), self.controls, self.headline, self.status, self.error, views])
        self.add_class("natgrad-panel")
        self.run = LiveRun(
            TrainingProblem(begin, probe_size=probe_size), choices, name=name, max_fps=max_fps, owner=self,
            wanted=self._is_watched,
        )  # fmt: skip
        self._wire()

    def close(self) -> None:
        """Stop the run and take the widgets away; may be called again."""
        if hasattr(self, "run"):
            self.run.close()
        super().close()

    def static_figure(self) -> go.Figure:
        """The panel as it is now, as one plotly Figure."""
        return export.panel_figure(*self._static_parts())

    def to_html(self, path: str | Path) -> Path:
        """Write the panel as it is now to one file that needs no network and no kernel."""
        return export.write_html(path, *self._static_parts())

    def _static_parts(self):
        self.run.wait()
        frame = self.run.latest
        if frame is None or not frame.arrays:
            raise RuntimeError("there is no picture yet: the run has failed at its start; its panel says why.")
        return frame.arrays, self._loss_runs(frame), float(frame.choices["damping"])

    # ---- controls → run

    def _wire(self) -> None:
        c = self.controls
        c.start.on_click(self._on_start)
        c.step.on_click(self._on_step)
        c.reset.on_click(self._on_reset)
        c.method.observe(self._on_method, "value")
        for name in ("lr", "damping", "scale", "picture"):
            getattr(c, name).observe(functools.partial(self._on_choice, name), "value")
        self.heat.on_ready(self.run.refresh)
        self.run.subscribe(self._draw)

    @guarded
    def _on_start(self, _button) -> None:
        self.run.pause() if self.run.state == "running" else self.run.start()

    @guarded
    def _on_step(self, _button) -> None:
        self.run.step()

    @guarded
    def _on_reset(self, _button) -> None:
        self._past.clear()
        self.run.reset()

    @guarded
    def _on_method(self, change) -> None:
        method = change["new"]
        lr, damping = default_of(method, "lr"), default_of(method, "damping")
        changes = {"method": method, "lr": lr} | ({} if damping is None else {"damping": damping})
        self.run.set(**changes)
        for name in changes.keys() - {"method"}:
            getattr(self.controls, name).value = changes[name]

    @guarded
    def _on_choice(self, name: str, change) -> None:
        self.run.set(**{name: change["new"]})

    # ---- frames → views (called from the run's thread)

    def _is_watched(self) -> bool:
        return self.heat.is_watched

    def _draw(self, frame: Frame) -> None:
        with self._lock:
            before = self._shown
            if before is not None and frame.epoch < before.epoch:
                return
            self._keep_past(before, frame)
            self._shown = frame
            self.controls.show_state(frame.state)
            self.error.value = text.error(frame.error)
            # A person waits for what differs from the frame before in more than the step; the rest may be a little late.
            is_moved = before is None or before.choices != frame.choices
            is_last = before is None or frame.state != "running" or frame.epoch != before.epoch
            if is_last or is_moved or time.monotonic() - self._worded_at >= _WORDS_EVERY:
                self._worded_at = time.monotonic()
                self._write(frame)
            if frame.arrays:
                self._draw_arrays(frame, is_moved, is_last)

    def _write(self, frame: Frame) -> None:
        self.status.value = self._status_text(frame)
        if frame.arrays:
            names = ("condition_number", "damped_condition_number", "rank", "dim")
            condition, damped, rank, dim = (frame.arrays[name] for name in names)
            damping = float(frame.choices["damping"])
            self.headline.value = text.headline(condition, damped, damping, rank, dim, self._probe_size)

    def _draw_arrays(self, frame: Frame, is_moved: bool, is_last: bool) -> None:
        a, damping = frame.arrays, float(frame.choices["damping"])
        stamp = f"epoch={frame.epoch} step={frame.step} lr={frame.choices['lr']:.4g} damping={damping:.4g}"
        alt = f"Exact Fisher, {a['picture'].title}. Condition number {a['condition_number']:.1e}. Step {frame.step}."
        self.heat.show(a["picture"], a["layout"], stamp=stamp, alt=alt)
        self.spectrum.show(
            lambda: spectrum_spec(a["eigenvalues"][: a["rank"]], damping), urgent=is_last or is_moved, stamp=stamp,
            alt=f"Spectrum: {a['rank']} nonzero eigenvalues, largest {a['eigenvalues'][0]:.1e}.",
        )  # fmt: skip
        self.loss.show(
            lambda: loss_spec(self._loss_runs(frame)), urgent=is_last and not is_moved or not frame.history, stamp=stamp,
            alt=f"Loss after {frame.step} steps: {getattr(frame.record, 'loss', float('nan')):.4g} nats.",
        )  # fmt: skip

    def _status_text(self, frame: Frame) -> str:
        state = {"idle": "ready: press Start"}.get(frame.state, frame.state)
        method = frame.choices["method"]
        note = frame.message or ("" if uses_damping(method) else f"{method} uses no damping")
        return text.status(state, method, frame.step, getattr(frame.record, "loss", None), note)

    def _keep_past(self, before: Frame | None, frame: Frame) -> None:
        """Keep the curve of a method that was left, to compare with."""
        if before is None or before.epoch == frame.epoch:
            return
        if before.history and before.choices["method"] != frame.choices["method"]:
            self._past[before.choices["method"]] = before.history
        self._past.pop(frame.choices["method"], None)

    def _loss_runs(self, frame: Frame) -> dict[str, tuple]:
        return {**self._past, frame.choices["method"]: frame.history}

    def _repr_mimebundle_(self, **kwargs):
        self.run.wait(timeout=10.0)
        return with_png(super()._repr_mimebundle_(**kwargs), self.heat.picture)


def live(config: ExperimentConfig | None = None, **options) -> TrainingPanel:
    """Make a `TrainingPanel`, ready to be the last line of a cell; takes the same arguments."""
    return TrainingPanel(config, **options)


def _first_choices(config: ExperimentConfig) -> dict:
    choices = {"method": config.method, "seed": config.seed, "scale": "log", "picture": WHOLE}
    for name, otherwise in (("lr", 0.1), ("damping", 1e-2)):
        given = getattr(config, name)
        default = default_of(config.method, name)
        choices[name] = float(next(value for value in (given, default, otherwise) if value is not None))
    return choices


def _own_model(config: ExperimentConfig, model, likelihood, dataset):
    if dataset is None:
        raise ValueError("model=... needs dataset=... as well, such as datasets.digits().")
    likelihood = Categorical() if likelihood is None else likelihood
    size = config.batch_size
    if size is not None and size > len(dataset):
        config = replace(config, batch_size=None)
    return begin_model(config, model, likelihood, dataset.inputs, dataset.targets)
