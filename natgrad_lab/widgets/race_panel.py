"""A training race on any model, in a notebook: several methods, the same start, the same seconds."""

import threading
from collections.abc import Callable, Mapping, Sequence

import ipywidgets as ipw
from torch import nn

from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.shapes import Tensor
from natgrad_lab.widgets import card_text, race_plot, text
from natgrad_lab.widgets.controller import Frame, LiveRun
from natgrad_lab.widgets.curves import PlotView
from natgrad_lab.widgets.guard import guarded
from natgrad_lab.widgets.keys import Keys
from natgrad_lab.widgets.race_problem import RaceProblem, entrants_of, made

METHODS = ("sgd", "adam", "kfac")


class RacePanel(ipw.VBox):
    """Loss against updates, seconds or examples while the methods train, one worker thread for all; see `race`."""

    def __init__(self, problem: RaceProblem, name: str = "race"):
        """Ready to run."""
        self._lock = threading.RLock()
        self.start = ipw.Button(description="Run", icon="play", button_style="primary", layout={"width": "96px"})
        self.reset = ipw.Button(description="Reset", icon="undo", tooltip="back to the same weights", layout={"width": "96px"})
        self.axis = ipw.Dropdown(
            options=[(words, key) for key, words in race_plot.AXES.items()], value="seconds", description="against",
            style={"description_width": "initial"}, layout={"width": "auto"},
        )  # fmt: skip
        controls = ipw.HBox([self.start, self.reset, self.axis], layout={"flex_flow": "row wrap", "grid_gap": "4px 10px"})
        self.headline, self.table, self.error, self.plot = ipw.HTML(), ipw.HTML(), ipw.HTML(), PlotView(height=380)
        super().__init__([Keys(), controls, self.error, self.headline, self.plot, self.table])
        for each in ("natgrad-card", "natgrad-race"):
            self.add_class(each)
        self.run = LiveRun(problem, {"seed": 0}, name=name, max_fps=3, owner=self, wanted=lambda: self.plot.is_watched)
        self.start.on_click(self._on_start)
        self.reset.on_click(self._on_reset)
        self.axis.observe(self._on_axis, "value")
        self.plot.on_ready(self.run.refresh)
        self.run.subscribe(self._draw)

    def close(self) -> None:
        """Stop the race and take the widgets away."""
        if hasattr(self, "run"):
            self.run.close()
        super().close()

    @guarded
    def _on_start(self, _button) -> None:
        self.run.pause() if self.run.state == "running" else self.run.start()

    @guarded
    def _on_reset(self, _button) -> None:
        self.run.reset()

    @guarded
    def _on_axis(self, _change) -> None:
        if self.run.latest is not None:
            self._draw(self.run.latest)

    def _draw(self, frame: Frame) -> None:
        with self._lock:
            is_running = frame.state == "running"
            self.start.description, self.start.icon = ("Pause", "pause") if is_running else ("Run", "play")
            self.start.disabled = frame.state in ("failed", "closed") or bool(frame.message)
            self.error.value = text.error(frame.error) or card_text.note(frame.message)
            if not frame.arrays:
                return
            entrants, axis = frame.arrays["entrants"], self.axis.value
            number, words = race_plot.headline(entrants)
            self.headline.value = card_text.headline(number, words)
            self.table.value = race_plot.table(entrants)
            self.plot.show(
                lambda: race_plot.race_spec(entrants, axis), urgent=not is_running, stamp=f"axis={axis} step={frame.step}",
                alt=f"Loss against {race_plot.AXES[axis]} for {len(entrants)} methods. Now: {number}, {words}.",
            )  # fmt: skip


def race(
    model: nn.Module | Callable[[], nn.Module],
    likelihood: Likelihood,
    data: tuple[Tensor, Tensor],
    methods: Sequence[str] | Mapping[str, Mapping] = METHODS,
    *,
    batch_size: int | None = None,
    name: str = "race",
) -> RacePanel:
    """A training race on your own model, ready to be the last line of a cell.

        race(lambda: ng.models.mlp((64, 20, 10)), Categorical(), (inputs, targets), methods=("sgd", "kfac"))
        race(model, likelihood, data, {"sgd": {"lr": 1.0}, "gentle": {"method": "kfac", "damping": 0.1}})

    Args:
        model: a module, or a function that makes one; copies are trained, all from the same weights.
        data: inputs and targets.
        methods: keys of `ng.optimizers.METHODS`; or a mapping from any name to lr, damping, options, and "method" where the
            name is none. What is not given has the method's default.
        batch_size: examples an update; None for all. The loss shown is that of the update's batch, before the update.
        name: a race of the same name that was made before is stopped.
    Every update goes to the method that has spent the least seconds on its steps, so all have had the same time.
    Raises: TypeError, ValueError, UnsupportedLayerError for a model, data or a method that do not fit, before training.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise TypeError("race takes the data as (inputs, targets).")
    return RacePanel(RaceProblem(made(model), likelihood, *data, entrants_of(methods), batch_size), name)
