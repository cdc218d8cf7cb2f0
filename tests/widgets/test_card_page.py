"""Cards on a page without a kernel: what the page holds is what the card answers, and it is safe and small."""

import base64
import json
import re

import numpy as np
import pytest
from cards_for_tests import CHOICE, toy

from natgrad_lab.course.card import Control, Prediction
from natgrad_lab.widgets import card_text
from natgrad_lab.widgets.card_page import card_fragment, card_head, card_page
from natgrad_lab.widgets.card_states import card_data, json_ready

WIDE = (Control("slope", "slope", tuple(range(1, 31)), 1), Control("kind", "kind", tuple("abcde"), "a"))


def line(data, place):
    trace = data["pool"][data["states"][place]["data"][0]]
    return trace["y"]


def test_a_page_holds_what_the_card_answers():
    card = toy()
    data = card_data(card)
    assert data["held"] == data["all"] == 12
    for place, state in data["states"].items():
        slope, kind, on = (c.values[int(k)] for c, k in zip(card.controls, place.split("-"), strict=True))
        assert state["number"] == f"{slope:.2f} <m>" and state["words"] == "the slope" and state["height"] == 380
        assert line(data, place) == [0.0, slope, 2 * slope]
    assert data["presets"] == {"default": "1-0-0", "optimal": "2-0-0", "break it": "0-1-0"}
    assert (data["answer"], data["answer_text"], data["explanation"]) == (1.0, "1 m", "It is 1.0.")
    assert [(c["kind"], c["values"], c["default"]) for c in data["controls"]] == [
        ("slider", ["0.5", "1", "2"], 1), ("menu", ["plain", "odd"], 0), ("toggle", ["no", "yes"], 0),
    ]  # fmt: skip
    assert len(data["pool"]) == 3 * 2 + 1, "two traces for each slope, and one layout"


@pytest.mark.parametrize(("words", "shown"), [("{answer} m", "5.2 m"), ("{answer:.5f}", "5.19877"), ("far", "far")])
def test_a_number_in_the_explanation_is_short_unless_the_card_says_how(words, shown):
    assert card_text.explanation(Prediction("How far?", lambda r: 0, words), 5.198773795304712) == shown


def test_more_states_than_a_page_holds():
    data = card_data(toy(controls=WIDE, presets={"optimal": {"slope": 9}, "break it": {"kind": "e"}}))
    assert data["all"] == 150 and 34 + 29 <= data["held"] <= 80
    assert {"0-0", "29-0", "0-4", "8-0", "8-3", "17-4"} <= set(data["states"])


def test_a_card_that_takes_seconds_is_computed_at_its_presets_only():
    asked = []
    data = card_data(toy(lambda s: asked.append(s["slope"]) or {"x": s["slope"]}, seconds=3.0))
    assert data["held"] == 3 and len(asked) <= 4


def test_a_budget_leaves_states_out_or_says_that_it_cannot():
    card = toy(controls=WIDE, presets={"optimal": {"slope": 9}, "break it": {"kind": "e"}})
    whole = len(json.dumps(card_data(card)))
    small = card_data(card, most_bytes=whole // 2)
    assert {"0-0", "8-0", "0-4"} <= set(small["states"]) and small["held"] < card_data(card)["held"]
    assert len(json.dumps(small)) < 0.8 * whole
    for state in small["states"].values():
        assert max([state["layout"], *state["data"]]) < len(small["pool"])
    with pytest.raises(ValueError, match="default and presets alone"):
        card_data(card, most_bytes=500)


def test_numbers_as_json():
    values = np.linspace(0, 1, 20)
    packed = json_ready(values)
    assert packed["dtype"] == "f4"
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed["bdata"]), "<f4"), values.astype(np.float32))
    assert json_ready(values * 1e-60)["dtype"] == "f8", "what float32 cannot hold stays in float64"
    rows = json_ready(list(values.reshape(-1, 2)))  # a heatmap's matrix: one block, for plotly.js decodes no single rows
    assert rows["bdata"] == packed["bdata"] and rows["shape"] == f"{len(values) // 2},2"
    assert json_ready([np.array([1.0, 2.0]), np.array([3.0, 4.0])]) == [[1.0, 2.0], [3.0, 4.0]]
    assert json_ready(np.array([1.0, np.nan, np.inf])) == [1.0, None, None]
    assert json_ready({"a": [float("nan"), 1, "x", True, None]}) == {"a": [None, 1, "x", True, None]}


def test_words_cannot_leave_their_place():
    evil = "</script><script>alert(1)</script>"
    card = toy(title=evil, message=evil, caption=f"{evil} and so much more to be said about it", prediction=CHOICE)
    html = card_fragment(card)
    assert "<script>alert" not in html and html.count("</script>") == 1
    held = json.loads(re.search(r'<script type="application/json">(.*)</script>', html, re.S)[1])
    assert held["title"] == evil and held["options"] == ["a", "b <x>"]


def test_one_file_without_addresses():
    html = card_page([toy(), toy(name="second")], title="A & B")
    outside = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert "<title>A &amp; B</title>" in html and not re.search(r"(src|href)\s*=|@import|url\(", outside)
    assert html.count("!function") < 50 and html.count('data-natgrad-card="') == 2
    assert "plotly" not in card_head().lower().replace("window.natgradplotly", "").replace("plotly.react", "").replace(
        "// plotly", ""
    )
    with pytest.raises(ValueError, match="at least one card"):
        card_page([])
