"""The live panel in a real JupyterLab and a real Chromium, as a reader meets it."""

import re
import statistics
import time

import pytest

PANEL = "import natgrad_lab as ng\npanel = ng.widgets.live({config})\npanel"
DEFAULT = PANEL.format(config="")
SMALL = PANEL.format(
    config="ng.experiments.ExperimentConfig(sizes=(64, 5, 10), bias=False, method='sgd', batch_size=128, steps=100_000)"
)
ATTEMPTS = 3  # timing on a machine that does other things too: the best of so many counts


@pytest.fixture
def panel(notebook):
    def open_panel(cell: str = DEFAULT, **options):
        book = notebook(cell, **options)
        book.wait_drawn()
        for number in range(2):
            book.page.wait_for_function(
                "n => Number(document.querySelectorAll('.natgrad-plot')[n]?.dataset.drawn || 0) > 0", arg=number
            )
        return book

    return open_panel


def assert_clean(book):
    assert book.outside_requests() == []
    assert book.complaints == []


def text_of(book, selector):
    return book.page.locator(selector).first.inner_text()


def stamp(book, selector=".natgrad-heatmap-pixels"):
    words = book.page.locator(selector).first.get_attribute("data-stamp")
    return {name: float(value) for name, value in (word.split("=") for word in words.split())}


def handle(book, number):
    """The knob of slider 0 (learning rate) or 1 (damping)."""
    return book.page.locator(".natgrad-controls .noUi-handle").nth(number)


def test_start_pause_step_reset(panel):
    book = panel()
    assert stamp(book)["step"] == 0 and "κ = " in text_of(book, ".natgrad-big")
    pixels, number = book.pixels(), text_of(book, ".natgrad-big")
    book.screenshot("panel_first")
    book.button("Start").click()
    book.wait_drawn(30)
    assert book.pixels() != pixels and text_of(book, ".natgrad-big") != number
    assert book.page.locator(".natgrad-plot").nth(1).get_attribute("data-stamp") != "step=0"
    book.screenshot("panel_running")
    book.button("Pause").click()
    book.button("Start").wait_for()
    book.page.wait_for_timeout(500)
    step, frames = stamp(book)["step"], book.drawn()
    book.page.wait_for_timeout(500)
    assert stamp(book)["step"] == step, "paused is paused"
    book.button("Step").click()
    book.wait_drawn(frames)
    assert stamp(book)["step"] == step + 1
    book.button("Reset").click()
    book.page.wait_for_function("() => / step=0 /.test(document.querySelector('.natgrad-heatmap-pixels').dataset.stamp)")
    book.page.wait_for_timeout(300)
    assert book.pixels() == pixels, "the same seed gives the same picture"
    assert_clean(book)


def test_sliders_with_mouse_and_keys(panel):
    book = panel()
    book.button("Start").click()
    book.wait_drawn(3)
    before, damped = stamp(book), text_of(book, ".natgrad-damped")
    box = handle(book, 1).bounding_box()
    book.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    book.page.mouse.down()
    book.page.mouse.move(box["x"] + 30, box["y"] + box["height"] / 2, steps=6)
    book.page.mouse.up()
    book.page.wait_for_function(
        "old => !document.querySelector('.natgrad-heatmap-pixels').dataset.stamp.includes(old)",
        arg=f"damping={before['damping']:.4g}",
    )
    book.page.wait_for_timeout(500)
    assert stamp(book)["damping"] > before["damping"] and text_of(book, ".natgrad-damped") != damped
    assert stamp(book, ".natgrad-plot")["damping"] == stamp(book)["damping"], "the line in the spectrum moved as well"
    handle(book, 0).focus()
    for _ in range(5):
        book.page.keyboard.press("ArrowLeft")
    book.page.wait_for_timeout(700)
    deadline, used, shown = time.monotonic() + 15, 0.0, 1.0  # a busy machine is some moves behind
    while abs(used - shown) > 1e-3 * shown and time.monotonic() < deadline:
        used, shown = float(book.ask_kernel("print(panel.run.latest.record.lr)")), stamp(book)["lr"]
    assert shown < before["lr"] and used == pytest.approx(shown, rel=1e-3)
    assert_clean(book)


def test_method_scale_part_and_cursor(panel):
    book = panel()
    menus = book.page.locator(".natgrad-controls select")
    menus.nth(0).select_option("kfac")
    book.page.wait_for_function("() => /epoch=1 /.test(document.querySelector('.natgrad-heatmap-pixels').dataset.stamp)")
    pixels = book.pixels()
    menus.nth(1).select_option("correlation")
    menus.nth(2).select_option(index=6)
    book.page.wait_for_function("() => document.querySelector('.natgrad-heatmap-pixels').width === 330")
    assert book.pixels() != pixels
    overlay = book.page.locator(".natgrad-heatmap-overlay")
    overlay.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Shift+ArrowRight"):
        book.page.keyboard.press(key)
    expected = "4.weight[0,2] × 4.weight[0,11]: correlation = "
    book.page.wait_for_function(
        "text => document.querySelector('.natgrad-heatmap-readout').textContent.startsWith(text)", arg=expected
    )
    fisher = (
        "F = ng.fisher.dense_fisher(panel.run.problem._training.model, ng.likelihoods.Categorical(), "
        "ng.datasets.digits().inputs[:50]).to_dense()[-330:, -330:]; print(float(F[2, 11] / (F[2, 2] * F[11, 11]) ** 0.5))"
    )
    shown = float(text_of(book, ".natgrad-heatmap-readout").split(" = ")[1])
    assert shown == pytest.approx(float(book.ask_kernel(fisher)), rel=1e-3)
    assert "Condition number" in overlay.get_attribute("aria-label")
    box = overlay.bounding_box()
    book.page.mouse.move(box["x"] + 200, box["y"] + 200)
    book.page.wait_for_function(
        "text => !document.querySelector('.natgrad-heatmap-readout').textContent.startsWith(text)", arg=expected
    )
    book.screenshot("panel_block")
    assert_clean(book)


@pytest.mark.parametrize("cell, parameters, least", [(DEFAULT, 3466, 3), (SMALL, 370, 5)], ids=["P=3466", "P=370"])
def test_frames_a_second(panel, cell, parameters, least):
    """Frames keep coming; the rate is printed. `least` is a third of what a quiet machine of two cores shows."""
    book = panel(cell)
    assert int(book.ask_kernel("print(panel.run.latest.arrays['dim'])")) == parameters
    book.button("Start").click()
    book.page.wait_for_timeout(1000)
    rates = []
    while len(rates) < ATTEMPTS and max(rates, default=0) < least:
        book.watch()
        book.page.wait_for_timeout(4000)
        times = [time for time, _ in book.noted()["paints"]]
        rates.append((len(times) - 1) / (times[-1] - times[0]) * 1000)
    print(f"\nframes a second at P={parameters}: {', '.join(f'{rate:.1f}' for rate in rates)}")
    assert max(rates) >= least
    assert_clean(book)


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "paused"])
def test_a_moved_slider_shows_soon(panel, is_running):
    """The median delay is printed: about 75 ms on a quiet machine of two cores; a busy one gets four times 150 ms."""
    book = panel()
    if is_running:
        book.button("Start").click()
        book.page.wait_for_timeout(1000)
    handle(book, 1).focus()
    medians = []
    while len(medians) < ATTEMPTS and min(medians, default=1e9) > 600:
        book.watch()
        for number in range(21):
            # Uneven pauses, so that keys meet the frames at every phase.
            book.page.keyboard.press("ArrowRight" if len(medians) % 2 == 0 else "ArrowLeft")
            book.page.wait_for_timeout(330 + 17 * (number % 5))
        noted = book.noted()
        shown, last = [], None
        for moment, words in noted["paints"]:
            damping = re.search(r"damping=(\S+)", words)[1]
            if damping != last and moment > noted["keys"][0]:
                shown.append(moment)
            last = damping
        # The first key only shows which value was there before.
        delays = [paint - key for key, paint in zip(noted["keys"][-20:], shown[-20:], strict=True)]
        medians.append(statistics.median(delays))
        print(f"\nslider to pixel, ms: median {medians[-1]:.0f}, of 20 from {min(delays):.0f} to {max(delays):.0f}")
    assert min(medians) <= 600
    assert_clean(book)


def test_a_reloaded_page_picks_the_run_up(panel):
    book = panel()
    book.button("Start").click()
    book.wait_drawn(5)
    step = stamp(book)["step"]
    book.command("docmanager:save")
    book.page.reload()
    book.wait_open()
    book.wait_drawn(10)
    assert stamp(book)["step"] > step and book.button("Pause").is_visible()
    assert book.ask_kernel("import threading; print(sum('natgrad-live' in t.name for t in threading.enumerate()))") == "1\n"
    assert_clean(book)


def test_a_cell_run_again_leaves_one_thread(panel):
    book = panel()
    book.button("Start").click()
    book.wait_drawn(5)
    book.run_all()
    book.page.wait_for_function("() => / step=0 /.test(document.querySelector('.natgrad-heatmap-pixels')?.dataset.stamp)")
    assert book.ask_kernel("import threading; print(sum('natgrad-live' in t.name for t in threading.enumerate()))") == "1\n"
    book.ask_kernel("ng.stop_all()")
    assert book.ask_kernel("import threading; print(sum('natgrad-live' in t.name for t in threading.enumerate()))") == "0\n"
    assert_clean(book)


def test_an_exception_shows_in_the_widget(panel):
    book = panel()
    book.ask_kernel("def broken(): raise RuntimeError('no <i>more</i> steps')\npanel.run.problem.step = broken")
    book.button("Start").click()
    error = book.page.locator(".natgrad-error b")
    error.wait_for()
    assert error.inner_text() == "RuntimeError: no <i>more</i> steps"
    assert error.bounding_box()["y"] < book.page.locator(".natgrad-heatmap").bounding_box()["y"]
    book.screenshot("panel_error")
    book.button("Reset").click()
    error.wait_for(state="detached")
    assert_clean(book)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_nothing_sticks_out(panel, theme):
    book = panel()
    book.command("apputils:change-theme", theme=f"JupyterLab {theme}")
    for method in ("sgd", "kfac"):
        book.page.locator(".natgrad-controls select").nth(0).select_option(method)
        book.button("Start").click()
        book.page.wait_for_timeout(1500)
        book.button("Pause").click()
    for width, height in ((800, 1400), (1280, 1000), (1600, 1000)):
        book.page.set_viewport_size({"width": width, "height": height})
        book.page.wait_for_timeout(1000)
        book.screenshot(f"panel_{theme.lower()}_{width}")
        box = book.page.locator(".natgrad-panel").bounding_box()
        for selector in (".natgrad-controls", ".natgrad-headline", ".natgrad-heatmap-stage", ".natgrad-plot .main-svg"):
            for part in book.page.locator(selector).all():
                inner = part.bounding_box()
                assert inner["x"] >= box["x"] - 1, (selector, width)
                assert inner["x"] + inner["width"] <= box["x"] + box["width"] + 1, (selector, width)
    assert_clean(book)
    book.command("apputils:change-theme", theme="JupyterLab Light")  # the server keeps it


def test_menus_have_their_arrow_keys(panel):
    """JupyterLab takes arrow keys for moving between cells; a menu of the panel keeps them."""
    book = panel()
    menu = book.page.locator(".natgrad-controls select").first
    before = menu.evaluate("node => node.selectedIndex")
    menu.focus()
    book.page.keyboard.press("ArrowDown")
    book.page.wait_for_function(
        "before => document.querySelector('.natgrad-controls select').selectedIndex === before + 1", arg=before, timeout=10_000
    )
    assert menu.evaluate("node => node === document.activeElement"), "the focus stays on the menu"
    assert_clean(book)
