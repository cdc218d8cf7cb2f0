"""The first notebook as `make lab` opens it: run from top to bottom, then Start and a slider."""

import pytest
from waiting import soon


def assert_other(book, pixels, number):
    assert book.pixels() != pixels and book.page.locator(".natgrad-big").inner_text() != number


def test_the_first_notebook_runs_and_its_widget_lives(notebook, lab):
    first = sorted(path.name for path in lab[2].glob("00_*.ipynb"))
    if not first:
        pytest.fail("notebooks/ has no 00_*.py")
    book = notebook(file=first[0], height=1100, before="import os; os.environ['NATGRAD_FAST'] = '1'")
    errors = book.page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']")
    assert errors.count() == 0, errors.all_inner_texts()
    # Lab draws a cell's output only where it is near the view.
    book.page.evaluate(
        """() => {
          const book = window.jupyterapp.shell.currentWidget.content;
          const at = book.widgets.findIndex((cell) => cell.model.sharedModel.source.includes("widgets.live"));
          book.activeCellIndex = at;
          return book.scrollToItem(at, "start");
        }"""
    )
    book.wait_drawn()
    pixels, number = book.pixels(), book.page.locator(".natgrad-big").inner_text()
    book.button("Start").click()
    book.wait_drawn(10)
    soon(lambda: assert_other(book, pixels, number))
    knob = book.page.locator(".natgrad-controls .noUi-handle").nth(1)
    damped = book.page.locator(".natgrad-damped").inner_text()
    box = knob.bounding_box()
    book.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    book.page.mouse.down()
    book.page.mouse.move(box["x"] + 25, box["y"] + box["height"] / 2, steps=5)
    book.page.mouse.up()
    book.page.wait_for_function("old => document.querySelector('.natgrad-damped').innerText !== old", arg=damped)
    book.screenshot("first_notebook")
    assert book.outside_requests() == [] and book.complaints == []
