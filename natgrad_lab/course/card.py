"""An interactive figure as plain data: controls with finitely many values, a pure `compute`, a `draw`, a headline.

A card knows nothing of Jupyter. The widget (`ng.widgets.card`), the page without a kernel and the tests all use the same
functions; because every control has finitely many values, a page can hold what the kernel would have answered.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from typing import Any

from natgrad_lab.course.lessons import lesson_modules
from natgrad_lab.names import known

MOST_CONTROLS = 4
PRESETS = ("optimal", "break it")


@dataclass(frozen=True)
class Control:
    """One thing a reader can set: numbers become a slider, words a menu, (False, True) a checkbox.

    Args:
        name: key in the state.
        label: what a reader sees, with the unit: "damping λ", "latitude (degrees)".
        values: every value it can take, in order.
        default: one of `values`.
    """

    name: str
    label: str
    values: tuple
    default: Any

    def __post_init__(self):
        if self.default not in self.values:
            raise ValueError(f"control {self.name!r}: default {self.default!r} is not one of {self.values}.")
        if len(set(self.values)) != len(self.values) or len(self.values) < 2:
            raise ValueError(f"control {self.name!r} needs at least two values, each once; got {self.values}.")

    @property
    def kind(self) -> str:
        """How it is shown: "toggle", "menu" or "slider"."""
        if all(isinstance(value, bool) for value in self.values):
            return "toggle"
        return "menu" if any(isinstance(value, str) for value in self.values) else "slider"


@dataclass(frozen=True)
class Prediction:
    """The question asked before anything is shown.

    Args:
        question: one sentence that ends in a question mark.
        answer: from the result of `compute` at the default state to the right option, or the number.
        options: the answers to choose from; None: the reader types a number.
        unit: of the number: "degrees", "times".
        explanation: two sentences shown with the answer; may hold {answer}.
    """

    question: str
    answer: Callable[[dict], Any]
    explanation: str
    options: tuple[str, ...] | None = None
    unit: str = ""


@dataclass(frozen=True)
class Card:
    """An interactive figure with one message and one headline number.

    Args:
        name: unique in the course, as "two_maps".
        title: a few words.
        message: one sentence: what there is to see.
        controls: at most four.
        compute: state -> plain dict of numbers and NumPy arrays; pure (no global random numbers), and, unless `seconds` is
            given, answering within 150 ms: closed form, or cached by the card's own module.
        draw: result -> plotly Figure with axes, units and stable trace names.
        headline: result -> (number with unit, what it is).
        caption: what the axes are and what to see; read to those who cannot see the figure.
        presets: name -> part of a state; "optimal" and "break it" are always there.
        prediction: asked first.
        seconds: a compute that takes longer is started by a Run button that states this estimate (on two cores).
    """

    name: str
    title: str
    message: str
    controls: tuple[Control, ...]
    compute: Callable[[dict], dict]
    draw: Callable[[dict], Any]
    headline: Callable[[dict], tuple[str, str]]
    caption: str
    presets: Mapping[str, Mapping[str, Any]]
    prediction: Prediction
    seconds: Real | None = field(default=None)

    def __post_init__(self):
        if len(self.controls) > MOST_CONTROLS or not self.controls:
            raise ValueError(f"card {self.name!r} has {len(self.controls)} controls; it may have 1 to {MOST_CONTROLS}.")
        if not set(PRESETS) <= set(self.presets):
            raise ValueError(f"card {self.name!r} needs the presets {PRESETS}; it has {tuple(self.presets)}.")
        for preset in self.presets.values():
            self.state(preset)

    def state(self, choices: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The default state with `choices`. Raises: ValueError for a control or a value that there is not."""
        state = {control.name: control.default for control in self.controls}
        values = {control.name: control.values for control in self.controls}
        for name, value in (choices or {}).items():
            known(name, state, f"control of card {self.name!r}")
            if value not in values[name]:
                raise ValueError(f"card {self.name!r}: {name} is one of {values[name]}; got {value!r}.")
            state[name] = values[name][values[name].index(value)]
        return state

    def result(self, choices: Mapping[str, Any] | None = None) -> dict:
        """`compute` at the default state with `choices`."""
        return self.compute(self.state(choices))

    def some_states(self, most: int = 80) -> Iterator[dict[str, Any]]:
        """States that a page without a kernel can hold: all, if at most `most`; else one control away from a preset at most."""
        from itertools import product

        size = 1
        for control in self.controls:
            size *= len(control.values)
        if size <= most:
            names = [control.name for control in self.controls]
            yield from (dict(zip(names, values, strict=True)) for values in product(*(c.values for c in self.controls)))
            return
        seen = []
        for base in ({}, *self.presets.values()):
            for state in (self.state(base), *(self.state({**base, c.name: v}) for c in self.controls for v in c.values)):
                if state not in seen and (base == {} or state == self.state(base)):
                    seen.append(state)
        yield from seen


@cache
def cards() -> dict[str, Card]:
    """Every card of the course by name, in the order of the lessons."""
    found: dict[str, Card] = {}
    for module in lesson_modules("cards").values():
        for card in module.CARDS:
            if card.name in found:
                raise ValueError(f"two cards are called {card.name!r}.")
            found[card.name] = card
    return found


def find_card(name: str) -> Card:
    """The card of that name. Raises: ValueError that names the nearest and all."""
    return cards()[known(name, cards(), "card")]
