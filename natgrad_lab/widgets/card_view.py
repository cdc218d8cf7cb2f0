"""A card of the course in a notebook: predict, then move the controls; one headline number, one figure.

ng.widgets.card("two_maps")          # by name
ng.widgets.card("two_maps:1-0-3")    # in the state of that code, which a card shows below its figure
"""

import functools
import os
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import ipywidgets as ipw

from natgrad_lab.course.card import Card
from natgrad_lab.widgets import card_predictions, card_text, text
from natgrad_lab.widgets.card_code import card_and_state, state_code, state_of_code
from natgrad_lab.widgets.card_controls import CardControls, CardPresets
from natgrad_lab.widgets.card_figure import HEIGHT, figure_data, height_of
from natgrad_lab.widgets.card_newest import Newest
from natgrad_lab.widgets.card_question import CardQuestion
from natgrad_lab.widgets.card_states import json_ready
from natgrad_lab.widgets.curves import PlotView
from natgrad_lab.widgets.guard import guarded
from natgrad_lab.widgets.keys import Keys

_KEPT = 32  # results of states that were left, so that going back is immediate
PLOTLY = "application/vnd.plotly.v1+json"


class CardView(ipw.VBox):
    """A card with its controls, ready to be the last line of a cell.

    Before the reader has predicted (or asked to be shown), only title, message and question are there. With NATGRAD_FAST or
    NATGRAD_REVEAL set nobody is asked. A card with `seconds` computes in a thread of its own when Run is pressed; any other
    computes when a control moves, only ever for the newest state.
    """

    def __init__(self, card: Card, state: Mapping[str, Any] | None = None):
        """Show `card`, its controls at `state`."""
        self.card, self._said, self._results = card, None, OrderedDict()
        self._is_moving = self._is_revealed = False
        self._newest = Newest(self._work, thread=f"natgrad-card-{card.name}" if card.seconds else None)
        self.controls, self.presets = CardControls(card), CardPresets(card)
        self.question, self.plot = CardQuestion(card), PlotView(height=HEIGHT)
        self.answer, self.headline, self.caption, self.error, self.note = (ipw.HTML() for _ in range(5))
        self.run = ipw.Button(icon="play", button_style="primary", layout={"width": "auto", "flex": "0 0 auto"})
        self._opening, self._keys = ipw.HTML(card_text.opening(card)), Keys()
        super().__init__([self._keys, self._opening, self.question, self.error])
        for name in ("natgrad-card", f"natgrad-card-{card.name}"):
            self.add_class(name)
        self._wire()
        self.load(state or {})
        self._open()

    def state(self) -> dict[str, Any]:
        """What the controls say now."""
        return self.controls.state()

    def code(self) -> str:
        """A short text of the state; `ng.widgets.card(code)` opens it again."""
        return state_code(self.card, self.state())

    def load(self, state: Mapping[str, Any] | str) -> "CardView":
        """Move the controls to a state (of some or all controls; the others go to their defaults) or to a code's.

        Raises: ValueError for a state or a code that this card does not have.
        """
        state = state_of_code(self.card, state) if isinstance(state, str) else self.card.state(state)
        self._is_moving = True
        try:
            self.controls.set(state)
        finally:
            self._is_moving = False
        self._moved()
        return self

    def reveal(self) -> None:
        """Show everything, whether something was predicted or not."""
        if self._is_revealed:
            return
        self._is_revealed = True
        runs = [ipw.HBox([self.run, self.note])] if self.card.seconds else []
        self.children = [
            self._keys, self._opening, self.answer, self.controls, self.presets, *runs, self.error, self.headline,
            self.plot, self.caption,
        ]  # fmt: skip
        if self.card.seconds:
            self.headline.value = card_text.no_headline()
            self.answer.value = card_text.waiting_answer(self.card, self._said)
        self._moved()

    def wait(self, timeout: float = 60.0) -> bool:
        """Block until the figure shows the newest state that was asked for; False after `timeout` seconds."""
        return self._newest.wait(timeout)

    def close(self) -> None:
        """Stop what is computed and take the widgets away."""
        if hasattr(self, "_newest"):
            self._newest.close()
        super().close()

    # ---- from the page

    def _wire(self) -> None:
        for part in self.controls.parts.values():
            part.observe(self._on_move, "value")
        for name, button in self.presets.buttons.items():
            button.on_click(functools.partial(self._on_preset, name))
        self.run.on_click(self._on_run)
        self.question.commit.on_click(self._on_commit)
        self.question.show_me.on_click(self._on_show_me)

    @guarded
    def _open(self) -> None:
        said = card_predictions.predictions().get(self.card.name)
        if said is not None:
            self._said = said
        if said is not None or card_predictions.all_revealed():
            self.reveal()

    @guarded
    def _on_move(self, _change) -> None:
        if not self._is_moving:
            self._moved()

    @guarded
    def _on_preset(self, name: str, _button) -> None:
        self.load(self.card.presets.get(name, {}))

    @guarded
    def _on_commit(self, _button) -> None:
        said = self.question.said()
        if said is not None:
            self._said = said
            try:
                self._said = card_predictions.keep_prediction(self.card.name, said)
            finally:
                self._on_show_me(_button)

    @guarded
    def _on_show_me(self, _button) -> None:
        self.reveal()
        if self.card.seconds:
            self._newest.ask(self.state())
            self._say_where()

    @guarded
    def _on_run(self, _button) -> None:
        self._newest.ask(self.state())
        self._say_where()

    # ---- to the page; any thread

    def _moved(self) -> None:
        if not self._is_revealed:
            return
        state = self.state()
        self.caption.value = card_text.caption(self.card, state_code(self.card, state))
        if not self.card.seconds or state_code(self.card, state) in self._results:
            self._newest.ask(state)
        self._say_where()

    def _work(self, state: dict[str, Any]) -> None:
        try:
            if not self.answer.value or self.card.seconds:
                self._answer()
            self._show(state)
            self.error.value = ""
        except Exception:  # whatever a card's own mathematics raises is shown, not lost
            self.error.value = text.error(traceback.format_exc())
        self._say_where(is_done=True)

    def _answer(self) -> None:
        given = self.card.prediction.answer(self._result(self.card.state()))
        self.answer.value = card_text.answer(self.card, given, self._said)

    def _show(self, state: dict[str, Any]) -> None:
        result = self._result(state)
        number, words = self.card.headline(result)
        figure = self._figure = figure_data(self.card.draw(result))
        if self.plot.height != height_of(figure["layout"]):
            self.plot.height = height_of(figure["layout"])
        self._shown = state_code(self.card, state)
        self.plot.show(lambda: figure, urgent=True, stamp=self._shown, alt=card_text.alt(self.card, number, words))
        self.headline.value = card_text.headline(number, words)

    _shown, _figure = "", None

    def _result(self, state: dict[str, Any]) -> dict[str, Any]:
        code = state_code(self.card, state)
        if code not in self._results:
            self._results[code] = self.card.compute(dict(state))
            while len(self._results) > _KEPT:
                self._results.popitem(last=False)
        return self._results[code]

    def _say_where(self, is_done: bool = False) -> None:
        """What a card that has to be run is doing, on its button and beside it."""
        if not self.card.seconds:
            return
        about = f"about {self.card.seconds:g} s"
        is_working = self._newest.is_working and not is_done
        self.run.description = f"Running, {about} …" if is_working else f"Run ({about})"
        is_old = bool(self._shown) and self._shown != self.code() and not is_working
        self.note.value = card_text.note("The figure shows another state. Press Run for this one." if is_old else "")

    def _repr_mimebundle_(self, **kwargs):
        """While notebooks are made (NATGRAD_STILL), also the figure at this state, from which a picture is drawn."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if os.environ.get("NATGRAD_STILL", "0") in ("", "0"):
            return bundle
        data, *rest = bundle if isinstance(bundle, tuple) else (bundle,)
        if self._shown != self.code():
            self._show(self.state())
        figure = json_ready(self._figure)
        figure["layout"]["template"] = {"layout": {"hovermode": "closest"}}  # any, so that plotly does not add its own
        data = {**data, PLOTLY: figure}
        return (data, *rest) if rest else data


def card(which: str | Card) -> CardView:
    """The card of that name, or in the state of that code ("two_maps:1-0-3"), or a `Card` of your own.

    Raises: ValueError that names the nearest and all.
    """
    if isinstance(which, Card):
        return CardView(which)
    if not isinstance(which, str):
        raise TypeError(f"card takes a name, a code or a Card; got {type(which).__name__}.")
    return CardView(*card_and_state(which))
