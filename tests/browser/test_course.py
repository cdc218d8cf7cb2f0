"""The cards of the course in a real JupyterLab and a real Chromium: predict, move a control by keyboard, read the headline.

All cards of a lesson stand in one cell; kernel and page are those of the lesson before. Two notebooks are run whole.
"""

import re

import pytest
from waiting import soon

from natgrad_lab.course import cards
from natgrad_lab.course.lessons import lesson_modules

LESSONS = {lesson: [card.name for card in module.CARDS] for lesson, module in lesson_modules("cards").items()}
WIDTHS, HEIGHT = (1280, 800), 1500
CELL = "import natgrad_lab as ng\nfrom IPython.display import display\ndisplay(*[ng.widgets.card(name) for name in {names}])"
CONTROLS = ".natgrad-card-controls"
HEADLINE = """([name, number, words]) => {
  const text = (part) => document.querySelector(`.natgrad-card-${name} .natgrad-card-${part}`)?.textContent;
  return text("headline") === number && text("what") === words;
}"""
FOCUS = {"slider": ".noUi-handle", "menu": "select", "toggle": "input[type=checkbox]"}
KEYS = {"slider": ("ArrowLeft", "ArrowRight"), "menu": ("ArrowUp", "ArrowDown"), "toggle": ("Space", "Space")}


def one_key(card):
    """(the key that moves the first control one place from its default, the state it moves to)."""
    control = card.controls[0]
    at = control.values.index(control.default)
    forward = at + 1 < len(control.values)
    return KEYS[control.kind][forward], card.state({control.name: control.values[at + 1 if forward else at - 1]})


def reveal(root):
    """Answer with "Show me" and wait for the figure."""
    assert root.locator(".natgrad-plot").count() == 0, "the figure is not there before the reader has predicted"
    root.get_by_role("button", name="Show me").click()
    root.locator(".natgrad-plot[data-drawn]").wait_for()


def wait_headline(book, card, state):
    number, words = card.headline(card.compute(state))
    book.page.wait_for_function(HEADLINE, arg=[card.name, number, words])


def move(book, root, card):
    """Move the first control by keyboard; the headline is the card's."""
    key, state = one_key(card)
    root.locator(f"{CONTROLS} {FOCUS[card.controls[0].kind]}").first.focus()
    book.page.keyboard.press(key)
    if card.seconds is None:
        wait_headline(book, card, state)
    else:  # it waits for Run, which says how long it takes
        root.get_by_text("Press Run").wait_for()
        button = root.locator("button.mod-primary")
        assert f"about {card.seconds:g} s" in button.inner_text()
        assert button.evaluate("node => node.scrollWidth <= node.clientWidth + 1"), "what the button says is cut off"


def assert_described(root, card):
    drawn = root.locator(".natgrad-plot").get_attribute("aria-label")
    assert drawn.startswith(card.caption) and root.locator(".natgrad-card-headline").inner_text() in drawn


def assert_fits(root):
    assert root.evaluate("node => node.scrollWidth <= node.clientWidth + 6"), "it sticks out"


def assert_clean(book):
    errors = book.page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error'], .natgrad-error")
    assert errors.count() == 0, errors.all_inner_texts()
    assert book.outside_requests() == [] and book.complaints == []


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_cards_of_a_lesson(notebook, artifacts, lesson):
    book = notebook(CELL.format(names=LESSONS[lesson]), height=HEIGHT)
    for name in LESSONS[lesson]:
        card, root = cards()[name], book.page.locator(f".natgrad-card-{name}")
        reveal(root)
        if card.seconds is not None:  # it may well race against time, so only its kind of number is known
            root.locator(".natgrad-card-headline").filter(has_text=re.compile(r"\d")).wait_for()
        soon(lambda root=root, card=card: assert_described(root, card))
        for width in WIDTHS:
            book.page.set_viewport_size({"width": width, "height": HEIGHT})
            root.scroll_into_view_if_needed()
            soon(lambda root=root: assert_fits(root))
            root.screenshot(path=str(artifacts / f"card_{name}_{width}.png"))
        move(book, root, card)
    assert_clean(book)


@pytest.mark.parametrize("lesson", ["03", "07"])
def test_a_whole_notebook(notebook, lab, lesson):
    """Every cell runs as a reader's would, though with fewer seeds; each card stands below its cell and lives."""
    path = next(lab[2].glob(f"{lesson}_*.ipynb"))
    book = notebook(file=path.name, height=HEIGHT, before="import os; os.environ['NATGRAD_FAST'] = '1'")
    named = re.findall(r'widgets\.card\(\\"(\w+)\\"\)', path.read_text(encoding="utf-8"))
    assert set(named) == set(LESSONS[lesson])
    failed = book.page.evaluate(
        """() => window.jupyterapp.shell.currentWidget.content.widgets.flatMap((cell) =>
          (cell.model.sharedModel.outputs ?? []).filter((out) => out.output_type === "error").map((out) => out.evalue))"""
    )
    assert failed == []
    for name in named:
        # Lab draws a cell's output only where it is near the view.
        book.page.evaluate(
            """(name) => {
              const book = window.jupyterapp.shell.currentWidget.content;
              const at = book.widgets.findIndex((cell) => cell.model.sharedModel.source.includes(`card("${name}")`));
              book.activeCellIndex = at;
              return book.scrollToItem(at, "start");
            }""",
            name,
        )
        root = book.page.locator(f".natgrad-card-{name}")
        root.locator(".natgrad-plot[data-drawn]").wait_for()
        move(book, root, cards()[name])
    book.screenshot(f"notebook_{lesson}")
    assert_clean(book)
