"""Every card of the course: pure, quick to describe, drawn with axes, the same answer each time."""

import numpy as np
import pytest
import torch

from natgrad_lab.course import cards
from natgrad_lab.course.card import Card, Control, Prediction

ALL = list(cards().values())
name = lambda card: card.name  # noqa: E731


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray | torch.Tensor):
        return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=np.asarray(a).dtype.kind == "f")
    return a == b or (a != a and b != b)


@pytest.mark.parametrize("card", ALL, ids=name)
def test_default_and_presets_compute_draw_and_have_a_headline(card):
    states = [card.state()] if card.seconds else [card.state(preset) for preset in ({}, *card.presets.values())]
    rng, dtype = torch.get_rng_state(), torch.get_default_dtype()
    for state in states:
        kept = dict(state)
        result = card.compute(state)
        figure = card.draw(result)
        number, words = card.headline(result)
        assert state == kept and number and words and any(symbol.isdigit() or symbol == "∞" for symbol in number)
        assert len(figure.data) > 0
        for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
            assert axis.title.text or axis.visible is False, f"an axis of {card.name} has no title"
    assert torch.equal(rng, torch.get_rng_state()) and torch.get_default_dtype() == dtype


@pytest.mark.parametrize("card", [card for card in ALL if not card.seconds], ids=name)
def test_the_same_state_gives_the_same_result_whatever_the_defaults(card):
    first = card.compute(card.state())
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(17)
    assert equal(card.compute(card.state()), first)


@pytest.mark.parametrize("card", [card for card in ALL if not card.seconds], ids=name)
def test_every_control_matters(card):
    default = card.headline(card.result()), card.draw(card.result()).to_json()
    for control in card.controls:
        others = [value for value in control.values if value != control.default]
        shown = (
            (card.headline(r), card.draw(r).to_json())
            for r in (card.result({control.name: v}) for v in others[:: max(1, len(others) // 2)])
        )
        assert any(other != default for other in shown), f"{card.name}: {control.name} changes nothing"


@pytest.mark.parametrize("card", ALL, ids=name)
def test_prediction_and_words(card):
    prediction = card.prediction
    assert prediction.question.endswith("?") and len(card.caption) > 40 and card.message.rstrip()[-1] in ".?"
    if card.seconds is None:
        answer = prediction.answer(card.result())
        assert answer in prediction.options if prediction.options else np.isfinite(float(answer))
        assert prediction.explanation.format(answer=answer)
    assert card.compute.__module__.startswith("natgrad_lab.")


def test_a_card_refuses_what_it_does_not_have():
    control = Control("x", "x", (1, 2), 1)
    prediction = Prediction("Why?", lambda result: 1, "So.")
    presets = {"optimal": {}, "break it": {}}
    card = Card("c", "t", "m.", (control,), dict, lambda r: None, lambda r: ("1", "one"), "caption", presets, prediction)
    with pytest.raises(ValueError, match="no control of card 'c' 'y'"):
        card.state({"y": 1})
    with pytest.raises(ValueError, match="x is one of"):
        card.state({"x": 3})
    with pytest.raises(ValueError, match="default 3"):
        Control("x", "x", (1, 2), 3)
    with pytest.raises(ValueError, match="presets"):
        Card("c", "t", "m.", (control,), dict, lambda r: None, lambda r: ("1", "one"), "caption", {}, prediction)
    assert list(card.some_states()) == [{"x": 1}, {"x": 2}]
