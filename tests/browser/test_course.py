"""The cards of the course in a real JupyterLab and a real Chromium: predict, move a control by keyboard, read the headline."""

import pytest

from natgrad_lab.course import cards
from natgrad_lab.course.lessons import lesson_modules

LESSONS = {lesson: [card.name for card in module.CARDS] for lesson, module in lesson_modules("cards").items()}
WIDTHS = (1280, 800)
CELL = "import natgrad_lab as ng\nfrom IPython.display import display\ndisplay(*[ng.widgets.card(name) for name in {names}])"


def first_key(card):
    """The key that moves the card's main control away from its default, and how often it is pressed."""
    control = card.controls[0]
    at = control.values.index(control.default)
    kind, forward = control.kind, at + 1 < len(control.values)
    if kind == "toggle":
        return "Space"
    if kind == "menu":
        return "ArrowDown" if forward else "ArrowUp"
    return "ArrowRight" if forward else "ArrowLeft"


def moved_state(card):
    control = card.controls[0]
    at = control.values.index(control.default)
    return card.state({control.name: control.values[at + 1 if at + 1 < len(control.values) else at - 1]})


FOCUS = {"slider": ".natgrad-card-controls .noUi-handle", "menu": ".natgrad-card-controls select",
         "toggle": ".natgrad-card-controls input[type=checkbox]"}  # fmt: skip

HEADLINE = """([name, number, words]) => {
  const text = (part) => document.querySelector(`.natgrad-card-${name} .natgrad-card-${part}`)?.textContent;
  return text("headline") === number && text("what") === words;
}"""


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_cards_of_a_lesson(notebook, lesson):
    book = notebook(CELL.format(names=LESSONS[lesson]), height=1400)
    for name in LESSONS[lesson]:
        card = cards()[name]
        root = book.page.locator(f".natgrad-card-{name}")
        assert root.locator(".natgrad-plot").count() == 0, "the figure is not there before the reader has predicted"
        root.scroll_into_view_if_needed()
        book.screenshot(f"card_{name}_question")
        root.get_by_role("button", name="Show me").click()
        root.locator(".natgrad-plot[data-drawn]").wait_for()
        for width in WIDTHS:
            book.page.set_viewport_size({"width": width, "height": 1400})
            book.page.wait_for_timeout(400)
            root.scroll_into_view_if_needed()
            book.screenshot(f"card_{name}_{width}")
            assert root.evaluate("node => node.scrollWidth <= node.clientWidth + 6"), f"{name} sticks out at {width}"
        root.locator(FOCUS[card.controls[0].kind]).first.focus()
        book.page.keyboard.press(first_key(card))
        number, words = card.headline(card.compute(moved_state(card)))
        book.page.wait_for_function(HEADLINE, arg=[name, number, words], timeout=10_000)
    assert book.outside_requests() == [] and book.complaints == []
