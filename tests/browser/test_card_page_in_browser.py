"""Cards on a page without a kernel, in a real Chromium: predict, move by keyboard, the numbers the card itself gives."""

import re
from dataclasses import replace

import plotly.graph_objects as go
import pytest
from playwright.sync_api import expect

from natgrad_lab.course import find_card
from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.plots.style import template
from natgrad_lab.widgets.card_page import card_page

HELD = "two_maps"  # all of its states are in a page


def draw(result):
    figure = go.Figure(layout=template())
    return figure.add_scatter(x=[0, 1], y=[result["a"], result["b"]])


PARTLY = Card(
    name="partly", title="Partly", message="Two numbers.", caption="Two numbers, one beside the other, as a line.",
    controls=tuple(Control(name, name, tuple(range(1, 21)), 10) for name in "ab"), compute=dict, draw=draw,
    headline=lambda result: (f"{result['a']}, {result['b']}", "two numbers"), presets={"optimal": {}, "break it": {"a": 20}},
    prediction=Prediction("Which?", lambda result: 10, "It is {answer}."),
)  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("cards") / "cards.html"
    path.write_text(card_page([find_card(HELD), PARTLY]), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 420)])
def test_predict_move_and_read(address, chromium, artifacts, scheme, width):
    context = chromium.new_context(viewport={"width": width, "height": 1200}, color_scheme=scheme)
    page, complaints, requests = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    root, card = page.locator(f".natgrad-card-{HELD}"), find_card(HELD)
    assert root.locator(".natgrad-plot").count() == 0
    root.get_by_role("button", name="Commit").click()
    expect(root.locator(".natgrad-note")).to_contain_text("Choose one first")
    root.get_by_label(card.prediction.options[0]).check()
    root.get_by_role("button", name="Commit").click()
    root.locator("[data-drawn]").wait_for()
    expect(root.locator(".natgrad-card-said")).to_have_text(f"You said: {card.prediction.options[0]}. It is otherwise.")
    slider = root.locator("input[type=range]").first
    slider.focus()
    place = card.controls[2].values.index(card.controls[2].default)
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    state = card.state({"lr": card.controls[2].values[place - 2]})
    number, words = card.headline(card.compute(state))
    expect(root.locator(".natgrad-card-headline")).to_have_text(number)
    expect(root.locator(".natgrad-card-what")).to_have_text(words)
    root.get_by_role("button", name="break it").click()
    number, words = card.headline(card.result(card.presets["break it"]))
    expect(root.locator(".natgrad-card-headline")).to_have_text(number)
    expect(root.locator(".natgrad-plot")).to_have_attribute("aria-label", re.compile(re.escape(number)))
    code = root.locator("code").inner_text().split('"')[1]
    page.screenshot(path=str(artifacts / f"card_page_{scheme}_{width}.png"), full_page=True)
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")

    page.goto("about:blank")
    page.goto(f"{address}#{code}")
    root.locator("[data-drawn]").wait_for()
    expect(root.locator(".natgrad-card-said"), "a prediction is kept, and asked for once").to_contain_text("You said")
    expect(root.locator(".natgrad-card-headline")).to_have_text(number)
    assert complaints == [] and all(url.startswith(("file:", "about:", "data:", "blob:")) for url in requests)
    context.close()


def test_what_a_page_does_not_hold_is_said(address, chromium):
    page = chromium.new_page()
    page.goto(address)
    root = page.locator(".natgrad-card-partly")
    root.get_by_role("button", name="Show me").click()
    root.locator("[data-drawn]").wait_for()
    assert "holds" in root.inner_text() and "of 400 combinations" in root.inner_text()
    sliders, note = root.locator("input[type=range]"), root.locator(".natgrad-note")
    for number, shown in ((0, "1, 10"), (1, "10, 1")):
        sliders.nth(number).focus()
        page.keyboard.press("Home")
        expect(root.locator(".natgrad-card-headline"), "what was moved last stays where it was put").to_have_text(shown)
        told = "does not hold that combination"
        expect(note).to_contain_text(told) if number else expect(note).not_to_contain_text(told)
    expect(root.locator("code")).to_have_text('ng.widgets.card("partly:9-0")')
    page.close()


def panels(result):
    """Two panels side by side, with a nearly black line and a dark one."""
    figure = go.Figure(layout=template())
    for axis, colour in (("x", "#444444"), ("x2", "#332288")):
        figure.add_scatter(x=[0, 1], y=[0, result["a"]], xaxis=axis, line={"color": colour})
    return figure.update_layout(xaxis={"domain": [0, 0.4]}, xaxis2={"domain": [0.6, 1]})


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 420)])
def test_panels_and_lines_can_be_seen(tmp_path, chromium, scheme, width):
    """On a phone panels keep their width and scroll; on a dark page no line is nearly black."""
    path = tmp_path / "panels.html"
    path.write_text(card_page([replace(PARTLY, name="panels", draw=panels)]), encoding="utf-8")
    page = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.goto(path.as_uri())
    page.get_by_role("button", name="Show me").click()
    page.locator("[data-drawn]").wait_for()
    plot = page.locator(".natgrad-plot")
    assert plot.evaluate("node => node.scrollWidth > node.clientWidth + 2") == (width == 420)
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    drawn = plot.evaluate("node => node.data.map((trace) => trace.line.color)")
    text = plot.evaluate("node => getComputedStyle(node).color")
    assert drawn == (["#444444", "#332288"] if scheme == "light" else [text, "#9d8df1"])
    page.context.close()
