"""The explorer's linked views in a real Chromium: inverses, damping, correlations, orders, whitening, exports, the state."""

import io
import json

import numpy as np
import pytest
import torch
from explorer_bare import Bare
from waiting import soon

import natgrad_lab as ng

DATA = "(document.querySelector('.natgrad-explorer') || document.body).dataset"

IS_SYMMETRIC = """() => {
  const canvas = document.querySelector('.ngx-pixels'), n = canvas.width;
  const pixels = new Uint32Array(canvas.getContext('2d').getImageData(0, 0, n, n).data.buffer);
  return pixels.every((pixel, at) => pixel === pixels[(at % n) * n + Math.floor(at / n)]);
}"""


def make(approximations=("kfac",), **choices):
    torch.manual_seed(0)
    model = ng.models.mlp((64, 12, 8, 10), dtype=torch.float64)
    inputs = ng.datasets.digits(dtype=torch.float64).inputs[:20]
    return ng.explore(model, ng.likelihoods.Categorical(), inputs, approximations=approximations, **choices)


@pytest.fixture
def opened(monkeypatch, chromium):
    made = []

    def open_one(width=1280, **choices):
        made.append(Bare(monkeypatch, chromium, lambda: make(**choices), width))
        made[-1].until(f"() => {DATA}.analysed !== undefined")
        made[-1].settle()
        return made[-1]

    yield open_one
    for each in made:
        each.close()


def canvas(book):
    return book.page.evaluate("() => document.querySelector('.ngx-pixels').toDataURL()")


def steady(book, wanted=None):
    """The picture once it is the same three times in a row, a tenth of a second apart (and is `wanted`, if given)."""
    last, times = None, 0
    for _ in range(200):
        book.settle()
        now = canvas(book)
        times = times + 1 if now == last else 0
        last = now
        if times >= 2 and wanted in (None, now):
            break
        book.page.wait_for_timeout(100)
    return last


def choose(book, menu, choice):
    book.page.locator(f"select[data-menu='{menu}']").select_option(choice)
    if menu == "order":
        book.until(f"() => {DATA}.order === '{choice}'")
    book.settle()


def go_to(book, place):
    book.page.fill(".ngx-search input", place)
    book.page.keyboard.press("Enter")
    book.settle()


def value_is(book, place, value):
    go_to(book, place)

    def check():
        assert float(book.page.inner_text(".ngx-readout").rpartition("= ")[2]) == pytest.approx(float(value), rel=1e-5)

    soon(check, book.settle)


def downloaded(book, title):
    with book.page.expect_download() as saved:
        book.page.locator(f"button[title^='{title}']").click()
        for _ in range(40):
            book.pump()
            book.page.wait_for_timeout(25)
    with open(saved.value.path(), "rb") as file:
        return saved.value.suggested_filename, file.read()


def test_numbers_of_every_view_are_those_of_the_dense_matrix(opened, artifacts):
    book = opened()
    seen = book.view.explorer
    dense = np.asarray(seen.sources["exact"].entries(slice(0, seen.layout.dim), slice(0, seen.layout.dim)))
    i, j = (seen.region(place).rows.start for place in ("W2[3,5]", "W1[2,33]"))
    place = "W2[3,5] x W1[2,33]"
    book.page.screenshot(path=str(artifacts / "explorer_1280.png"))
    assert book.page.evaluate(IS_SYMMETRIC), "tiles below the diagonal are made from those above"
    value_is(book, place, dense[i, j])
    choose(book, "colours", "correlation")
    value_is(book, place, dense[i, j] / np.sqrt(dense[i, i] * dense[j, j]))
    choose(book, "colours", "signedlog"), choose(book, "matrix", "inverse of exact")
    damped = lambda damping: np.linalg.inv(dense + damping * np.eye(len(dense)))[i, j]  # noqa: E731
    value_is(book, place, damped(1e-3))
    book.page.locator(".ngx-damping input").fill("-1")
    book.until("() => Number(document.querySelector('.natgrad-explorer').dataset.frames) > 0")
    book.settle()
    value_is(book, place, damped(0.1))
    values = np.linalg.eigvalsh(dense).clip(0)

    def assert_effective():
        effective = float(book.page.get_attribute(".ngx-panel", "data-effective"))
        assert effective == pytest.approx((values / (values + 0.1)).sum(), rel=1e-6)

    soon(assert_effective, book.settle)
    book.page.locator(".ngx-more summary").click()
    choose(book, "matrix", "exact"), choose(book, "order", "eigenvector")
    value_is(book, place, dense[i, j])
    book.until("() => document.querySelector('.ngx-readout').innerText.startsWith('2.weight[3,5] × 0.weight[2,33]: F = ')")
    choose(book, "order", "unit")
    value_is(book, place, dense[i, j])
    assert book.complaints == [] and book.problem() == ""


def test_white_and_back_in_one_gesture_each(opened, artifacts):
    book = opened()
    before, headline = steady(book), book.page.inner_text(".ngx-headline")
    book.page.locator(".ngx-whiten").click()
    book.until(f"() => {DATA}.white === 'true' && document.querySelector('.ngx-headline').innerText.includes('white')")
    assert steady(book) != before
    spectra = book.view.explorer.analysis()["spectra"]
    assert spectra[0]["condition"] < spectra[1]["condition"] / 10
    book.page.screenshot(path=str(artifacts / "explorer_white.png"))
    book.page.locator(".ngx-whiten").click()
    book.until(f"() => {DATA}.white === 'false' && !document.querySelector('.ngx-headline').innerText.includes('white')")
    assert steady(book, before) == before and book.complaints == []
    book.until(f"() => document.querySelector('.ngx-headline').innerText === {json.dumps(headline)}")


def test_exports_and_the_same_view_again(opened):
    book = opened(width=800)
    assert book.page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    choose(book, "matrix", "kfac − exact"), choose(book, "colours", "signed")
    book.page.locator(".ngx-more summary").click()
    choose(book, "order", "unit")
    go_to(book, "W2[3] x W1[1]")
    name, svg = downloaded(book, "save this view as SVG")
    assert name == "fisher.svg" and svg.startswith(b"<svg") and b"W1[1]" in svg or b"0.weight[1" in svg
    name, data = downloaded(book, "save the entries")
    with np.load(io.BytesIO(data)) as kept:
        rows, columns = list(kept["rows"]), list(kept["columns"])
        assert "2.weight[3,0]" in rows and "0.bias[1]" in columns and str(kept["source"]) == "kfac − exact"
        seen = book.view.explorer
        there = seen.region("W2[3,0] x W1[1,4]")
        exact = float(seen.values(there, "kfac − exact")[0, 0])
        # float64 on both sides: products of another size are summed in another order
        assert kept["values"][rows.index("2.weight[3,0]"), columns.index("0.weight[1,4]")] == pytest.approx(exact, rel=1e-10)
    assert downloaded(book, "save this view as PNG")[0] == "fisher.png"
    book.page.locator("button[title^='copy what']").click()
    state = book.page.evaluate(f"() => {DATA}.copied").replace("True", "true").replace("False", "false")
    again = opened(width=800, state=json.loads(state))
    wanted = steady(book)
    assert steady(again, wanted) == wanted and again.complaints == book.complaints == []


def assert_keys(book, count):
    assert book.page.locator(".ngx-key:visible").count() == count


def assert_both_values(book):
    """The line below the panes: K-FAC, its error, and first minus second, which is the exact Fisher."""
    names, _, values = book.page.inner_text(".ngx-readout").partition(": ")
    told = {name: float(value) for name, value in (part.split(" = ") for part in values.split(", "))}
    seen = book.view.explorer
    region = seen.region(names.replace("×", "x"))
    truth = [float(seen.values(region, name)[0, 0]) for name in ("kfac", "kfac − exact", "exact")]
    assert list(told) == ["kfac", "kfac − exact", "first − second"]
    assert list(told.values()) == pytest.approx(truth, rel=1e-4, abs=1e-5 * abs(truth[2]))
    return truth


def test_two_matrices_of_one_region(opened, artifacts):
    book = opened(width=1280)
    choose(book, "compare", "kfac − exact"), choose(book, "matrix", "kfac"), choose(book, "colours", "signedlog")
    pictures = lambda: book.page.evaluate("() => [...document.querySelectorAll('.ngx-pixels')].map((c) => c.toDataURL())")  # noqa: E731
    steady(book)
    whole = pictures()
    overlays = book.page.locator(".ngx-overlay")
    boxes = [overlays.nth(n).bounding_box() for n in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    book.page.mouse.move(boxes[1]["x"] + 200, boxes[1]["y"] + 200)
    for _ in range(7):
        book.page.mouse.wheel(0, -240)
        book.page.wait_for_timeout(20)
    book.settle()
    book.page.mouse.move(boxes[1]["x"] + 201, boxes[1]["y"] + 201)
    book.settle()

    def assert_both_moved():
        zoomed = pictures()
        assert zoomed[0] != whole[0] and zoomed[1] != whole[1] and zoomed[0] != zoomed[1], "the wheel over one moves both"

    soon(assert_both_moved, book.settle)
    soon(lambda: assert_both_values(book), book.settle)
    go_to(book, "W1[2,20] x W1[3,28]")
    assert 0 not in soon(lambda: assert_both_values(book), book.settle)
    book.page.screenshot(path=str(artifacts / "explorer_two.png"))
    keys_are = lambda count: soon(lambda: assert_keys(book, count), book.settle)  # noqa: E731
    keys_are(1)  # one scale of colours for both
    book.page.locator(".ngx-same input").uncheck()
    keys_are(2)
    overlays.nth(0).focus()
    book.page.keyboard.press("Home")
    book.settle()
    book.page.set_viewport_size({"width": 800, "height": 1000})

    def assert_one_below_the_other():
        boxes = [overlays.nth(n).bounding_box() for n in (0, 1)]
        assert boxes[0]["x"] == boxes[1]["x"] and boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]

    soon(assert_one_below_the_other, book.settle)
    assert book.page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    choose(book, "compare", "")
    book.until("() => document.querySelectorAll('.ngx-pixels').length === 1")
    assert book.complaints == [] and book.problem() == ""


def test_what_white_coordinates_leave_out_is_said_and_comes_back(opened):
    book = opened(approximations=["kfac", "unit_wise"], state={"source": "unit_wise", "compare": "exact"})
    reason = "only exact and Kronecker matrices follow into white coordinates"
    options = (
        "() => [...document.querySelectorAll('select[data-menu=matrix] option')].map((o) => [o.value, o.disabled, o.title])"
    )
    for white in ("true", "false"):
        book.page.locator(".ngx-whiten").click()
        book.until(f"() => {DATA}.white === '{white}'")
        book.settle()

        def assert_said(white=white):
            shown = book.page.locator("select[data-menu='matrix']").input_value()
            said = book.page.inner_text(".ngx-lacking")
            if white == "true":
                assert shown == "exact" and said == f"Without unit_wise: {reason}."
                assert ["unit_wise", True, reason] in book.page.evaluate(options)
            else:
                assert shown == "unit_wise" and said == "" and ["unit_wise", False, ""] in book.page.evaluate(options)

        soon(assert_said, book.settle)
    assert book.complaints == [] and book.problem() == ""
