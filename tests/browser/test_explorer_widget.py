"""The Fisher explorer in a real JupyterLab and a real Chromium: names, numbers, moves, late tiles, the time slider."""

import json
import re
import time

import numpy as np
import pytest
from waiting import painted, soon, steady

CELL = """
import torch, natgrad_lab as ng
torch.manual_seed(0)
model = ng.models.mlp((64, 40, 20, 10), dtype=torch.float64)
inputs = ng.datasets.digits(dtype=torch.float64).inputs[:30]
view = ng.explore(model, ng.likelihoods.Categorical(), inputs, approximations=["kfac"])
view
"""
COMPLETE = """() => { const c = document.querySelector('.ngx-pixels');
  return c && Number(c.dataset.drawn) > 1 && c.dataset.missing === '0'; }"""


@pytest.fixture
def explorer(notebook):
    def open_explorer(cell=CELL, **options):
        book = notebook(cell, **options)
        book.page.wait_for_function(COMPLETE)
        return book

    return open_explorer


def settle(book):
    for _ in range(3):
        painted(book.page)
        book.page.wait_for_timeout(60)
        book.page.wait_for_function(COMPLETE)


def canvas(book):
    """The picture when it has come to rest."""
    settle(book)
    return steady(lambda: book.page.evaluate("() => document.querySelector('.ngx-pixels').toDataURL()"))


def shows(book, picture):
    """Wait until the canvas has this picture."""

    def check():
        assert canvas(book) == picture

    soon(check)


def readout(book):
    return book.page.locator(".ngx-readout").inner_text()


def jump(book, text):
    book.page.fill(".ngx-search input", text)
    book.page.keyboard.press("Enter")
    settle(book)


def state(book):
    """What the kernel knows of the view, once it no longer changes."""
    return json.loads(steady(lambda: book.ask_kernel("import json; print(json.dumps(view.state))")))


def assert_state(book, is_so):
    """Wait until the view's state is so."""

    def check():
        now = state(book)
        assert is_so(now), now

    soon(check)
    return state(book)


def assert_clean(book):
    assert book.outside_requests() == []
    assert book.complaints == []


def test_from_the_whole_matrix_to_one_entry(explorer):
    book = explorer()
    whole = canvas(book)
    book.screenshot("explorer_whole")
    jump(book, "W2[3,5] x W1[0,2]")
    code = "r = view.explorer.region('W2[3,5] x W1[0,2]'); print(float(view.explorer.values(r)[0, 0]))"
    entry = float(book.ask_kernel(code))

    def assert_entry():
        text = readout(book)
        assert text.startswith("2.weight[3,5] × 0.weight[0,2]: F = ")
        assert float(text.rpartition("= ")[2]) == pytest.approx(entry, rel=1e-5)

    soon(assert_entry)
    assert canvas(book) != whole
    book.screenshot("explorer_entry")
    jump(book, "W9")
    book.page.locator(".ngx-problem").filter(has_text="there is no place “W9”").wait_for()
    book.page.locator("button[title='show the whole matrix']").click()
    shows(book, whole)  # nothing is lost on the way back
    assert_clean(book)


def test_wheel_drag_keys_and_matrices(explorer):
    book = explorer()
    box = book.page.locator(".ngx-overlay").bounding_box()
    x, y = box["x"] + 300, box["y"] + 250
    book.page.mouse.move(x, y)
    spans = [state(book)["span"]]
    for _ in range(6):
        book.page.mouse.wheel(0, -240)
        book.page.wait_for_timeout(30)
    before = assert_state(book, lambda now: now["span"] < spans[0] / 30)
    soon(lambda: re.search("F = |entries", readout(book))[0])
    book.page.mouse.down()
    book.page.mouse.move(x - 100, y, steps=5)
    book.page.mouse.up()
    before = assert_state(book, lambda now: now["column"] > before["column"])
    book.page.locator(".ngx-overlay").focus()
    book.page.keyboard.press("ArrowUp")
    up = assert_state(book, lambda now: now["row"] < before["row"])
    book.page.keyboard.press("ArrowDown")
    assert_state(book, lambda now: now["row"] > up["row"])
    book.page.keyboard.press("Home")
    assert_state(book, lambda now: now["span"] == spans[0])
    pictures = {canvas(book)}
    choices = [("matrix", "kfac"), ("matrix", "kfac − exact"), ("colours", "signedlog"), ("matrix", "exact")]
    for menu, choice in (*choices, ("colours", "signed"), ("colours", "magnitude")):
        book.page.locator(f"select[data-menu='{menu}']").select_option(choice)

        def assert_another():
            assert canvas(book) not in pictures, "every matrix and every scale is another picture"

        soon(assert_another)
        pictures.add(canvas(book))
    book.screenshot("explorer_scales")
    assert_clean(book)


def assert_reads(book, beginning):
    assert readout(book).startswith(beginning)


def test_every_parameter_has_its_name_on_the_page(explorer):
    book = explorer()
    names = json.loads(
        book.ask_kernel(
            "import json; L = view.explorer.layout; print(json.dumps([[i, L.parameter_name(i)] for i in range(0, L.dim, 97)]))"
        )
    )
    for place, name in names[::5]:
        book.page.fill(".ngx-search input", str(place))
        book.page.keyboard.press("Enter")
        soon(lambda name=name: assert_reads(book, f"{name} × {name}: "))


def test_tiles_late_and_out_of_order(explorer):
    """Slow tiles, a user who moves on at once: in the end the picture is that of a quiet page."""
    slow = CELL + (
        "\nimport time, random\nquick = view._send_tiles\n"
        "def slowly(*a):\n    time.sleep(random.random() * 0.15)\n    quick(*a)\nview._send_tiles = slowly\n"
    )
    book = explorer(slow.replace("\nview\n", "\n", 1) + "view")
    for text in ("W1[3]", "W2", "W3[1] x W1[2]", "W1[20] x W2[3]", "W1"):
        book.page.fill(".ngx-search input", text)
        book.page.keyboard.press("Enter")
        book.page.wait_for_timeout(50)
    jump(book, "W2[5] x W1[7]")
    hurried = canvas(book)
    book.put([CELL])
    book.run_all()
    book.page.wait_for_function(COMPLETE)
    jump(book, "W2[5] x W1[7]")
    shows(book, hurried)


def test_narrow(explorer):
    book = explorer(width=800)
    book.screenshot("explorer_800")
    widths = book.page.evaluate("() => { const r = document.querySelector('.natgrad-explorer');"
                                "return [r.scrollWidth, r.clientWidth]; }")  # fmt: skip
    assert widths[0] <= widths[1]
    assert np.isfinite(float(book.page.locator(".ngx-pixels").get_attribute("data-level")))


LIVE = """
import threading, torch, natgrad_lab as ng
model = ng.models.mlp((64, 32, 32, 10), dtype=torch.float64)
data = ng.datasets.digits(dtype=torch.float64)
inputs, targets = data.inputs[:100], data.targets[:100]
sgd = torch.optim.SGD(model.parameters(), lr=0.1)
view = ng.widgets.LiveExplorer(model, ng.likelihoods.Categorical(), inputs[:50], pace=0.05)
stop = threading.Event()
def train():
    step = 0
    while not stop.is_set():
        sgd.zero_grad(); ng.likelihoods.Categorical().loss(model(inputs), targets).backward(); sgd.step()
        step += 1
        view.update(f"step {step}")
view
"""
FRAMES = """() => { window.ngxEpochs = 0; const root = document.querySelector('.natgrad-explorer');
  new MutationObserver(() => window.ngxEpochs++).observe(root, { attributes: true, attributeFilter: ['data-frames'] }); }"""


def go_to(book, knob, moment):
    """Move the slider of time and wait for the frame that answers."""
    painted = book.page.locator(".natgrad-explorer").get_attribute("data-frames")
    knob.fill(str(moment))
    book.page.wait_for_function(f"() => document.querySelector('.natgrad-explorer').dataset.frames !== '{painted}'")
    settle(book)


def test_live_and_back_in_time(explorer):
    book = explorer(LIVE)
    first = canvas(book)
    assert book.page.locator(".ngx-time").is_hidden()
    book.page.evaluate(FRAMES)
    book.ask_kernel("worker = threading.Thread(target=train, daemon=True); worker.start()")
    began = time.monotonic()
    book.page.wait_for_timeout(3000)
    book.page.wait_for_function("() => window.ngxEpochs >= 4")  # however slow the machine is
    frames = book.page.evaluate("() => window.ngxEpochs") / (time.monotonic() - began)
    last = int(book.ask_kernel("stop.set(); worker.join(); print(view._epoch)"))
    book.page.wait_for_function(f"() => document.querySelector('.natgrad-explorer').dataset.frames === '{last}'")
    print(f"live: {frames:.1f} frames/s, P = 3,466")
    book.screenshot("explorer_live")
    trained = canvas(book)
    assert trained != first
    knob = book.page.locator(".ngx-time input")
    last = int(knob.get_attribute("max"))
    go_to(book, knob, 0)
    book.page.locator(".natgrad-explorer[data-time='start']").wait_for()
    shows(book, first)  # the first moment as it was
    go_to(book, knob, last)
    shows(book, trained)
    assert_clean(book)
