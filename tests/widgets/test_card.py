"""Cards of the course against a front end that is not there."""

import json
import threading

import numpy as np
import pytest
from cards_for_tests import CHOICE, toy
from toy import wait_until

import natgrad_lab as ng
from natgrad_lab.course.card import Control


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("NATGRAD_FAST", "NATGRAD_REVEAL", "NATGRAD_STILL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def show(page):
    made = []

    def show(card, reveal=True):
        view = ng.widgets.card(card)
        made.append(view)
        page.ready(view.plot)
        if reveal:
            view.reveal()
        return view

    yield show
    for view in made:
        view.close()


def kept(folder):
    return json.loads((folder / ".natgrad" / "predictions.json").read_text())


def frames(page, view):
    return [header for header, _ in page.sent(view.plot)]


# ---- predict first


def test_nothing_is_shown_before_the_reader_has_predicted(page, show):
    asked = []
    view = show(toy(lambda state: asked.append(state) or {"x": 1.0}), reveal=False)
    assert asked == [] and frames(page, view) == [] and view.headline.value == ""
    assert view.plot not in view.children and view.controls not in view.children
    assert {"natgrad-card", "natgrad-card-toy"} <= set(view._dom_classes)


def test_a_number_is_committed_once_and_kept(page, show, own_folder):
    view = show(toy(), reveal=False)
    page.slide(view.question.field, "steep <script>")
    page.click(view.question.commit)
    assert "&lt;script&gt;" in view.question.note.value and "<script>" not in view.question.note.value
    assert view.plot not in view.children and not (own_folder / ".natgrad").exists()
    page.slide(view.question.field, "1,05")
    page.click(view.question.commit)
    assert view.plot in view.children and kept(own_folder) == {"toy": 1.05}
    assert "You said: 1.05 m. That is close." in view.answer.value and "<b>1 m</b>" in view.answer.value
    again = show(toy(), reveal=False)
    assert again.plot in again.children and "You said: 1.05 m" in again.answer.value
    assert [path.name for path in (own_folder / ".natgrad").iterdir()] == ["predictions.json"]


def test_the_first_prediction_stays(page, show, own_folder):
    first, second = show(toy(), reveal=False), show(toy(), reveal=False)
    for view, text in ((first, "3"), (second, "1")):
        page.slide(view.question.field, text)
        page.click(view.question.commit)
    assert kept(own_folder) == {"toy": 3.0} and "You said: 3 m." in second.answer.value


@pytest.mark.parametrize("place, words", [(0, "You said: a. It is otherwise."), (1, "You said: b &lt;x&gt;. Right.")])
def test_an_option(page, show, place, words):
    view = show(toy(prediction=CHOICE), reveal=False)
    page.click(view.question.commit)
    assert "Choose one first" in view.question.note.value and view.plot not in view.children
    page.choose(view.question.field, CHOICE.options[place])
    page.click(view.question.commit)
    assert words in view.answer.value and "So: b &lt;x&gt;." in view.answer.value


def test_show_me_keeps_nothing(page, show, own_folder):
    view = show(toy(), reveal=False)
    page.click(view.question.show_me)
    assert view.plot in view.children and "You said" not in view.answer.value and not (own_folder / ".natgrad").exists()


@pytest.mark.parametrize("name", ["NATGRAD_FAST", "NATGRAD_REVEAL"])
def test_nobody_is_asked_where_the_environment_says_so(show, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    view = show(toy(), reveal=False)
    assert view.plot in view.children and "1.00 &lt;m&gt;" in view.headline.value


def test_a_broken_file_of_predictions_is_left_alone_and_told(page, show, own_folder):
    (own_folder / ".natgrad").mkdir()
    (own_folder / ".natgrad" / "predictions.json").write_text("{broken")
    view = show(toy(), reveal=False)
    assert "predictions.json cannot be read" in view.error.value
    page.slide(view.question.field, "1")
    page.click(view.question.commit)
    assert view.plot in view.children and "cannot be read" in view.error.value
    assert (own_folder / ".natgrad" / "predictions.json").read_text() == "{broken"


@pytest.mark.parametrize(
    "text, number", [("12", 12), (" 1e-3 ", 1e-3), ("0,5", 0.5), ("−2", -2), ("30 %", 30), ("1/4", 0.25), ("1 000", 1000)]
)
def test_numbers_as_people_type_them(text, number):
    from natgrad_lab.widgets.card_predictions import read_number

    assert read_number(text) == number


@pytest.mark.parametrize("text", ["", "abc", "nan", "inf", "1/0", "1e999", "<b>"])
def test_what_is_no_number_is_refused(text):
    from natgrad_lab.widgets.card_predictions import read_number

    with pytest.raises(ValueError, match="is no number"):
        read_number(text)


# ---- move


def test_a_moved_control_changes_headline_figure_and_code(page, show):
    view = show(toy())
    page.choose(view.controls.parts["slope"], "2")
    assert "2.00 &lt;m&gt;" in view.headline.value and view.state() == {"slope": 2.0, "kind": "plain", "on": False}
    last, buffers = page.sent(view.plot)[-1]
    y = last["figure"]["data"][0]["y"]
    assert np.array_equal(np.frombuffer(buffers[y["$buffer"]], y["dtype"]), [0.0, 2.0, 4.0])
    z = last["figure"]["data"][1]["z"]
    assert [list(np.frombuffer(buffers[row["$buffer"]], row["dtype"])) for row in z] == [[2, 0], [0, 2]]
    assert last["stamp"] == view.code() == "toy:2-0-0" and "toy:2-0-0" in view.caption.value
    assert last["alt"].startswith("Height against place") and "2.00 <m>, the slope" in last["alt"]
    page.choose(view.controls.parts["kind"], "odd")
    page.slide(view.controls.parts["on"], True)
    assert view.code() == "toy:2-1-1"


def test_presets_are_one_computation(page, show):
    asked = []
    view = show(toy(lambda state: asked.append(state) or {"x": state["slope"]}))
    asked.clear()
    page.click(view.presets.buttons["break it"])
    assert asked == [{"slope": 0.5, "kind": "odd", "on": False}]
    page.click(view.presets.buttons["optimal"])
    assert view.state() == {"slope": 2.0, "kind": "plain", "on": False} and len(asked) == 2
    page.click(view.presets.buttons["break it"])
    assert len(asked) == 2, "a state that was shown before is not computed again"


def test_a_code_opens_the_same_state(show):
    view = show(toy())
    assert view.load("toy:0-1-1").state() == {"slope": 0.5, "kind": "odd", "on": True}
    assert view.load({"slope": 2.0}).state() == {"slope": 2.0, "kind": "plain", "on": False}
    again = ng.widgets.card("two_maps:1-0-3")
    assert again.code() == "two_maps:1-0-3" and again.state()["method"] == "natural gradient"
    again.close()


@pytest.mark.parametrize("code", ["toy:0-1", "toy:3-0-0", "toy:a-b-c", "toy:-1-0-0", "other:0-0-0", "toy:²-0-0", "toy:0-0-0-0"])
def test_a_wrong_code_is_refused(show, code):
    view = show(toy())
    with pytest.raises(ValueError, match="toy"):
        view.load(code)
    assert view.code() == "toy:1-0-0"


def test_wrong_names_and_kinds_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'two_maps'"):
        ng.widgets.card("two_map")
    with pytest.raises(TypeError):
        ng.widgets.card(3)


def test_words_are_escaped(show):
    view = show(toy())
    opening = view.children[1].value
    assert "A &lt;b&gt;toy&lt;/b&gt;" in opening and "One line &amp; one map." in opening


def test_an_error_of_a_card_is_shown_and_goes_away(page, show):
    def compute(state):
        if state["slope"] == 2.0:
            raise RuntimeError("no <i>slope</i>")
        return {"x": state["slope"]}

    view = show(toy(compute))
    page.choose(view.controls.parts["slope"], "2")
    assert "RuntimeError: no &lt;i&gt;slope&lt;/i&gt;" in view.error.value and view.error in view.children
    page.choose(view.controls.parts["slope"], "0.5")
    assert view.error.value == "" and "0.50" in view.headline.value


def test_a_wish_made_meanwhile_replaces_the_one_that_waits(page, show):
    started, go_on, asked = threading.Event(), threading.Event(), []

    def compute(state):
        asked.append(state["slope"])
        if state["slope"] == 2.0:
            started.set()
            assert go_on.wait(10)
        return {"x": state["slope"]}

    view = show(
        toy(compute, controls=(Control("slope", "s", (0.5, 1.0, 2.0, 3.0, 4.0), 1.0),), presets={"optimal": {}, "break it": {}})
    )
    mover = threading.Thread(target=lambda: page.choose(view.controls.parts["slope"], "2"))
    mover.start()
    assert started.wait(10)
    for label in ("3", "0.5", "4"):
        page.choose(view.controls.parts["slope"], label)
    go_on.set()
    mover.join()
    assert asked == [1.0, 2.0, 4.0] and "4.00" in view.headline.value


# ---- cards that take seconds


def slow(**changes):
    return toy(seconds=4.0, **changes)


def test_a_slow_card_waits_for_run_and_says_how_long(page, show, monkeypatch):
    monkeypatch.setenv("NATGRAD_REVEAL", "1")
    asked = []
    view = show(slow(compute=lambda s: asked.append(threading.current_thread().name) or {"x": s["slope"]}))
    assert asked == [] and view.run.description == "Run (about 4 s)" and "not run yet" in view.headline.value
    assert "comes with the first run" in view.answer.value
    page.click(view.run)
    assert view.wait() and asked == ["natgrad-card-toy"] and "1.00" in view.headline.value and "It is 1.0" in view.answer.value
    page.choose(view.controls.parts["slope"], "2")
    assert "another state" in view.note.value and "1.00" in view.headline.value and len(asked) == 1
    page.click(view.run)
    assert view.wait() and "2.00" in view.headline.value and view.note.value == "" and len(asked) == 2
    page.choose(view.controls.parts["slope"], "1")
    assert view.wait() and "1.00" in view.headline.value and len(asked) == 2, "what was run before is shown at once"


def test_a_prediction_starts_the_run(page, show):
    view = show(slow(), reveal=False)
    page.slide(view.question.field, "1")
    page.click(view.question.commit)
    assert view.wait() and "You said: 1 m. That is close." in view.answer.value and "1.00" in view.headline.value


def test_the_newest_run_wins_and_no_thread_is_left(page, show):
    go_on = threading.Event()
    view = show(slow(compute=lambda state: go_on.wait(10) and {"x": state["slope"]}))
    page.click(view.run)
    assert view.run.description.startswith("Running")
    for label in ("0.5", "2"):
        page.choose(view.controls.parts["slope"], label)
        page.click(view.run)
    go_on.set()
    assert view.wait() and "2.00" in view.headline.value
    assert {header["stamp"] for header in frames(page, view)} <= {"toy:1-0-0", "toy:2-0-0"}
    assert wait_until(lambda: not any(t.name.startswith("natgrad-card") for t in threading.enumerate()))
    assert ng.widgets.running() == ()


def test_an_error_in_the_thread_is_shown(page, show):
    def broken(state):
        raise ValueError("<u>x</u>")

    view = show(slow(compute=broken))
    page.click(view.run)
    assert view.wait() and "ValueError: &lt;u&gt;x&lt;/u&gt;" in view.error.value
    assert view.run.description == "Run (about 4 s)"


# ---- pages without a kernel


def test_while_notebooks_are_made_the_figure_is_there_too(show, monkeypatch):
    from natgrad_lab.notebooks.build import PLOTLY, still

    view = show(toy(), reveal=False)
    bundle = view._repr_mimebundle_()
    assert PLOTLY not in (bundle[0] if isinstance(bundle, tuple) else bundle)
    monkeypatch.setenv("NATGRAD_STILL", "1")
    bundle = view._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert [trace["name"] for trace in data[PLOTLY]["data"]] == ["line", "map"] and still
    json.dumps(data)
