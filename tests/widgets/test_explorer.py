"""The explorer's kernel side against a front end that is not there: every tile right, none lost, late ones known as such."""

import threading
import time

import numpy as np
import pytest
import torch

import natgrad_lab as ng
from natgrad_lab.likelihoods import Categorical
from natgrad_lab.models import mlp


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def page_answers_by_hand(page):
    page.auto = False  # its own answers are those to frames of another kind


@pytest.fixture
def inputs():
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def view(page, inputs):
    made = ng.explore(mlp((8, 12, 4)), Categorical(), inputs, approximations=["kfac"])
    yield made
    made.close()


def ask(page, view, tiles, level=0, source="exact", reduce="entries", epoch=0, name="v", **more):
    wanted = [[source, reduce, level, row, column] for row, column in tiles]
    page.tell(view, type="tiles", epoch=epoch, wanted=wanted, view=name, **more)


def tiles_of(page, view, kind="tiles"):
    """(what it is, values) of every tile sent; a message has one buffer for all of its tiles."""
    found = []
    for content, buffers in page.sent(view, kind):
        start, values = 0, np.frombuffer(buffers[0], np.float32)
        for tile in content["tiles"]:
            place = dict(zip(("source", "reduce", "level", "row", "column", "rows", "columns", "both"), tile, strict=True))
            stop = start + place["rows"] * place["columns"]
            place["epoch"] = content["epoch"]
            found.append((place, values[start:stop]))
            if place["both"]:
                mirror = {"row": place["column"], "column": place["row"], "rows": place["columns"], "columns": place["rows"]}
                mirrored = values[start:stop].reshape(place["rows"], place["columns"]).T.ravel()
                found.append((place | mirror, mirrored))
            start = stop
        assert start == len(values)
    return found


def test_greets_with_everything_a_page_needs(page, view):
    page.ready(view)
    wait_for(lambda: page.sent(view, "about"))
    content, buffers = page.sent(view, "about")[0]
    about = content["about"]
    assert (
        about["dim"] == 160
        and about["sources"][:4] == ["exact", "kfac", "kfac − exact", "inverse of exact"]
        and set(about["limits"]) == {"exact"}
    )
    assert [len(buffer) for buffer in buffers] == [768, 768] and all(low < high for low, high in about["limits"].values())


def test_every_tile_asked_for_comes_and_is_right(page, view):
    page.ready(view)
    dense = view.explorer.sources["exact"].entries(slice(0, 160), slice(0, 160)).numpy()
    wanted = [[i, j] for i in range(3) for j in range(3)]
    ask(page, view, wanted)
    wait_for(lambda: len(tiles_of(page, view)) == 9)
    for content, values in tiles_of(page, view):
        rows, columns = (slice(64 * content[axis], 64 * content[axis] + 64) for axis in ("row", "column"))
        np.testing.assert_allclose(values.reshape(content["rows"], content["columns"]), dense[rows, columns], rtol=1e-6)
    places = [[c["row"], c["column"]] for c, _ in tiles_of(page, view)]
    assert sorted(places) == wanted
    upper = [[i, j] for i, j in wanted if i <= j]
    assert [place for place in places if place in upper] == upper, "in the order asked for: the middle first"
    assert [len(content["tiles"]) for content, _ in page.sent(view, "tiles")] == [6], "mirror images are not sent"


def test_a_newer_question_goes_first_and_what_it_replaced_can_be_asked_again(page, view, monkeypatch):
    from natgrad_lab.widgets import explorer as widget

    page.ready(view)
    wait_for(lambda: page.sent(view, "about"))
    gate, started = threading.Event(), threading.Event()
    quick = view._send_tiles

    def slow(*arguments):
        started.set()
        gate.wait(10)
        quick(*arguments)

    view._send_tiles = slow
    monkeypatch.setattr(widget, "_BATCH", 1), monkeypatch.setattr(widget, "_TOGETHER", 0)
    ask(page, view, [[0, 0], [0, 1], [0, 2]])
    assert started.wait(10)
    ask(page, view, [[2, 2]])
    gate.set()
    wait_for(lambda: len(tiles_of(page, view)) == 2)
    time.sleep(0.05)
    places = [(c["row"], c["column"]) for c, _ in tiles_of(page, view)]
    assert places == [(0, 0), (2, 2)], "the late one is sent as well, the others are not computed for nobody"
    ask(page, view, [[0, 1], [0, 2]])
    wait_for(lambda: len(tiles_of(page, view)) == 4)


def test_two_pages_do_not_starve_each_other(page, view):
    page.tell(view, type="ready", view="a")
    page.tell(view, type="ready", view="b")
    ask(page, view, [[0, 0]], name="a")
    ask(page, view, [[1, 1]], name="b")
    wait_for(lambda: len(tiles_of(page, view)) == 2)


def test_an_error_is_told_and_the_next_question_answered(page, view):
    page.ready(view)
    ask(page, view, [[0, 0]], source="no such")
    wait_for(lambda: page.sent(view, "problem"))
    assert "no matrix 'no such'" in page.sent(view, "problem")[0][0]["text"]
    ask(page, view, [[0, 0]])
    wait_for(lambda: tiles_of(page, view))


def test_closing_ends_the_worker(page, inputs):
    made = ng.explore(mlp((8, 4)), Categorical(), inputs)
    page.ready(made)
    wait_for(lambda: page.sent(made, "about"))
    worker = made._worker
    made.close()
    worker.join(5)
    assert not worker.is_alive()
    made.close()


def test_jump_refuses_what_is_no_place(page, view):
    with pytest.raises(ValueError, match="there is no place 'W7'"):
        view.jump("W7")
    view.jump("W1[2]")
    assert page.sent(view, "jump")[0][0]["text"] == "W1[2]"


def test_a_static_page_gets_the_overview(view):
    bundle = view._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["image/png"].startswith("iVBOR")


# ---- live


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def training(page, inputs):
    model, clock = mlp((8, 12, 4)), Clock()
    made = ng.widgets.LiveExplorer(model, Categorical(), inputs, pace=1.0, clock=clock)
    yield model, made, clock
    made.close()


def move(model, by=0.1):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)


def newest(page, view, kind="about"):
    return page.sent(view, kind)[-1][0]


def test_follows_the_training_at_its_pace(page, training, inputs):
    model, view, clock = training
    page.ready(view)
    wait_for(lambda: page.sent(view, "about"))
    before = [parameter.clone() for parameter in model.parameters()]
    assert not view.update("too early")
    page.tell(view, type="painted", epoch=0)
    clock.now = 1.5
    assert view.update("step 1") and all(map(torch.equal, before, model.parameters()))
    move(model)
    clock.now = 4.0
    assert view.update("step 2")
    wait_for(lambda: page.sent(view, "frame") and newest(page, view, "frame")["epoch"] == 2)
    ask(page, view, [[0, 0]], epoch=1)
    ask(page, view, [[0, 0]], epoch=2)
    wait_for(lambda: tiles_of(page, view))
    content, values = tiles_of(page, view)[-1]
    dense = ng.fisher.dense_fisher(model, Categorical(), inputs).to_dense()
    np.testing.assert_allclose(values.reshape(64, 64), dense[:64, :64], rtol=1e-5, atol=1e-9)
    assert content["epoch"] == 2 and newest(page, view, "frame")["times"]["text"] == "step 2"


def test_waits_for_the_page_but_not_for_ever(page, training):
    model, view, clock = training
    page.ready(view)
    clock.now = 1.5
    assert view.update("step 1"), "one is made while the other is painted"
    clock.now = 3.0
    assert not view.update("the first is not painted"), "frames that replace each other unseen help nobody"
    page.tell(view, type="painted", epoch=0)
    assert view.update("step 2")
    clock.now = 4.6
    assert not view.update("not painted")
    clock.now = 5.1
    assert view.update("a page that vanished")
    page.tell(view, type="gone")
    clock.now = 6.2
    assert view.update("nobody looks")


def test_back_in_time_and_forth(page, training, inputs):
    model, view, clock = training
    page.ready(view)
    first = view.explorer.sources["exact"].diagonal()
    for step in range(1, 4):
        move(model)
        view.update(f"step {step}", now=True)
    page.tell(view, type="time", at=0)
    assert torch.equal(view.explorer.sources["exact"].diagonal(), first)
    move(model)
    view.update("step 4", now=True)
    assert torch.equal(view.explorer.sources["exact"].diagonal(), first), "who looks back stays there"
    page.tell(view, type="time", at=4)
    move(model)
    view.update("step 5", now=True)
    truth = ng.fisher.dense_fisher(model, Categorical(), inputs).diagonal()
    torch.testing.assert_close(view.explorer.sources["exact"].diagonal(), truth)


def test_the_past_keeps_its_budget_its_first_and_its_newest(page, inputs):
    model = mlp((8, 12, 4))
    one = ng.widgets.LiveExplorer(model, Categorical(), inputs, snapshot_budget=1)
    size = one.snapshots[0].num_bytes
    one.close()
    view = ng.widgets.LiveExplorer(model, Categorical(), inputs, snapshot_budget=6 * size)
    for step in range(40):
        view.update(str(step), now=True)
        texts = [each.text for each in view.snapshots]
        assert texts[0] == "start" and texts[-1] == str(step) and len(texts) <= 6
        numbers = np.array([int(text) for text in texts[1:]])
        assert (np.diff(numbers) > 0).all()
    assert len(texts) >= 3
    view.close()


def test_refusals(page, inputs, view):
    with pytest.raises(ValueError, match="pace must be seconds ≥ 0"):
        ng.widgets.LiveExplorer(mlp((8, 4)), Categorical(), inputs, pace=-1)
    with pytest.raises(ValueError, match="same layers and matrices"):
        view.show(ng.explorer.explorer(mlp((8, 4)), Categorical(), inputs))


def test_a_training_that_diverges_is_told_and_goes_on(page, training):
    model, view, clock = training
    page.ready(view)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.warns(ng.errors.NumericalWarning, match="last finite moment. step 1: parameter '0.weight' holds NaN"):
        assert not view.update("step 1", now=True)
    clock.now = 5.0
    assert not view.update("step 2") and "step 2" in newest(page, view, "problem")["text"]
    assert [each.text for each in view.snapshots] == ["start"] and bool(view.explorer.overview()[1].max() > 0)


def test_the_page_says_how_many_frames_may_be_on_their_way(page, training):
    model, view, clock = training
    page.ready(view)

    def frames_before_it_waits():
        clock.now += 1.5
        count = 0
        while view.update(str(count)):
            clock.now, count = clock.now + 1.0, count + 1
        return count

    page.tell(view, type="painted", epoch=0, ahead=1)
    assert frames_before_it_waits() == 2
    page.tell(view, type="painted", epoch=view._epoch, ahead=4)
    assert frames_before_it_waits() == 5
    page.tell(view, type="painted", epoch=view._epoch, ahead=1)
    assert frames_before_it_waits() == 2


def test_tiles_of_two_matrices_in_one_question_and_again_with_another_damping(page, view):
    page.ready(view)
    wanted = [[source, "entries", 0, i, j] for i in range(3) for j in range(3) for source in ("exact", "inverse of kfac")]
    page.tell(view, type="tiles", epoch=0, wanted=wanted, shown=True)
    wait_for(lambda: len(tiles_of(page, view)) == 18)
    assert {content["source"] for content, _ in tiles_of(page, view)} == {"exact", "inverse of kfac"}
    page.tell(view, type="arrange", damping=0.5)
    wait_for(lambda: page.sent(view, "frame"))
    frame = [(content, values) for content, values in tiles_of(page, view, "frame") if content["level"] == 0]
    assert sorted((c["source"], c["row"], c["column"]) for c, _ in frame) == sorted((s, i, j) for s, _, _, i, j in wanted)
    inverse = view.explorer.sources["inverse of kfac"].entries(slice(0, 64), slice(0, 64)).numpy()
    values = next(v for c, v in frame if (c["source"], c["row"], c["column"]) == ("inverse of kfac", 0, 0))
    np.testing.assert_allclose(values.reshape(64, 64), inverse, rtol=1e-6)


def test_an_error_of_one_matrix_does_not_keep_back_the_other(page, view):
    page.ready(view)
    page.tell(view, type="tiles", epoch=0, wanted=[["no such", "entries", 0, 0, 0], ["exact", "entries", 0, 0, 0]])
    wait_for(lambda: page.sent(view, "problem") and tiles_of(page, view))
    assert [content["source"] for content, _ in tiles_of(page, view)] == ["exact"]


def test_the_training_goes_on_between_two_looks_that_take_long(page, training):
    model, view, clock = training
    quick = view._look

    def slow(*arguments, **choices):
        clock.now += 6.0
        return quick(*arguments, **choices)

    view._look, clock.now = slow, 1.5
    assert view.update("step 1") and clock.now == 7.5
    clock.now = 10.4
    assert not view.update("a look takes 6 s, so the training has 3")
    clock.now = 10.5
    assert view.update("step 2")
