"""The lessons as a static site: an index and one page each, for any browser, without network or kernel, phones included.

Formulas are MathML, figures PNG, cards their interactive twins; plotly.js lies once beside the pages.
"""

import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

from natgrad_lab.classroom.build import CLAIM, Lesson, lessons
from natgrad_lab.classroom.prose import code, code_style, markdown
from natgrad_lab.course.card import find_card
from natgrad_lab.notebooks import difference_of

CARD = re.compile(r'ng\.widgets\.card\("(\w+)"\)\s*$')
STYLE = """
body { font: 17px/1.55 system-ui, sans-serif; color: light-dark(#212121, #e6e6e6); overflow-wrap: break-word; }
.page { max-width: 46rem; margin: 0 auto; padding: 0 4px 4rem; }
.page h1 { line-height: 1.2; font-size: clamp(1.5rem, 5vw, 2.1rem); } .page h2 { margin-top: 2.2em; }
.page a { color: light-dark(#0b57d0, #8ab4f8); } nav { display: flex; gap: 1em; justify-content: space-between; margin: 1em 0; }
.page pre { overflow-x: auto; padding: .7em .9em; border-radius: 6px; font-size: .78em; line-height: 1.45; }
.code pre, .out pre { box-sizing: border-box; width: fit-content; min-width: 100%; max-width: max(100%, 50vw + 21rem); }
.code pre { background: light-dark(#f5f6f8, #1b1f24); margin: 1em 0 .2em; }
.out pre { margin: .2em 0 1em; white-space: pre; } .out img { max-width: 100%; height: auto; border-radius: 4px; }
.page table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1em 0; }
.page th, .page td { border: 1px solid light-dark(#d0d0d0, #444444); padding: .3em .6em; text-align: left; }
.page details { border-left: 3px solid #0072b2; padding: .1em .9em; margin: 1em 0; } summary { cursor: pointer; }
math { font-size: 1.06em; } .formula, .page section { overflow-x: auto; overflow-y: hidden; } .formula { padding: .3em 0; }
.natgrad-card { margin: 1.6em 0; } .lessons li { margin: .8em 0; } .note { color: light-dark(#616161, #a8a8a8); }
"""


def build_site(out: Path, chosen: Iterable[str] = ()) -> list[Path]:
    """Write index.html, NN_title.html for each lesson, plotly.min.js and style.css into the folder `out`.

    Figures and printed numbers are those of the .ipynb beside each source. Cost: every state of every card, once.
    Raises: ValueError if such a file is out of date or a formula cannot be drawn.
    """
    from plotly.offline import get_plotlyjs

    out, listed = Path(out), lessons(chosen)
    stale = [difference for lesson in listed if (difference := difference_of(lesson.path))]
    if stale:
        raise ValueError("the site shows what the notebooks hold, and some are out of date:\n" + "\n".join(stale))
    files = {"plotly.min.js": get_plotlyjs(), "style.css": STYLE + code_style(), "index.html": _index(listed)}
    for number, lesson in enumerate(listed):
        before = listed[number - 1] if number else None
        after = listed[number + 1] if number + 1 < len(listed) else None
        files[_file(lesson)] = page(lesson, before, after)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in files]


def page(lesson: Lesson, before: Lesson | None = None, after: Lesson | None = None) -> str:
    """One lesson as HTML."""
    import nbformat

    from natgrad_lab.widgets.card_page import card_head

    notebook = nbformat.read(lesson.path.with_suffix(".ipynb"), as_version=4)
    body = "\n".join(_cell(cell) for cell in notebook.cells)
    body = re.sub(r'href="(\d\d_\w+)\.(?:ipynb|py)', r'href="\1.html', body)
    has_cards = "data-natgrad-card=" in body
    head = f'<script src="plotly.min.js"></script>\n{card_head()}' if has_cards else ""
    ends = f"<nav>{_link(before, '← {}')}{_link(after, '{} →')}</nav>"
    top = '<nav><a href="index.html">All lessons</a></nav>'
    return _html(lesson.title, f"{top}\n{body}\n{ends}", head)


def _link(lesson: Lesson | None, words: str) -> str:
    return f'<a href="{_file(lesson)}">{words.format(escape(lesson.title))}</a>' if lesson else "<span></span>"


def _cell(cell) -> str:
    if cell.cell_type == "markdown":
        return f"<section>{markdown(CLAIM.sub('', cell.source))}</section>"
    card = CARD.search(cell.source)
    if card:
        from natgrad_lab.widgets.card_page import card_fragment

        return code(cell.source) + card_fragment(find_card(card[1]))
    return code(cell.source) + "".join(_output(output) for output in _joined(cell.outputs))


def _joined(outputs: list) -> list:
    """What was printed in pieces as one piece."""
    joined = []
    for output in outputs:
        is_more = joined and output.output_type == joined[-1].output_type == "stream" and output.name == joined[-1].name
        if is_more:
            joined[-1] = type(output)({**joined[-1], "text": joined[-1].text + output.text})
        else:
            joined.append(output)
    return joined


def _output(output) -> str:
    if output.output_type == "stream":
        return f'<div class="out"><pre>{escape(output.text)}</pre></div>'
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"].split())
        return f'<div class="out"><img alt="The figure of the cell above" src="data:image/png;base64,{picture}"></div>'
    if "text/markdown" in data:
        return f'<div class="out">{markdown(data["text/markdown"])}</div>'
    return f'<div class="out"><pre>{escape(data.get("text/plain", ""))}</pre></div>' if data else ""


def _index(listed: list[Lesson]) -> str:
    items = []
    for lesson in listed:
        points = sum(exercise.points for exercise in lesson.exercises)
        worth = f" {len(lesson.exercises)} exercises, {points} points." if points else ""
        words = f'<span class="note">{escape(lesson.time)}{worth}</span>'
        items.append(f'<li><a href="{_file(lesson)}">{lesson.number} · {escape(lesson.title)}</a><br>{words}</li>')
    body = (
        "<h1>Natural gradients, approximately</h1>\n<p>Lessons to read, with figures to move. They run in JupyterLab with "
        f'<code>natgrad lab</code>; nothing on these pages needs a network.</p>\n<ul class="lessons">{"".join(items)}</ul>'
    )
    return _html("Natural gradients, approximately", body, "")


def _html(title: str, body: str, head: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n{head}\n<link rel="stylesheet" href="style.css">\n</head>\n'
        f'<body class="natgrad-card-page"><main class="page">\n{body}\n</main></body>\n</html>\n'
    )


def _file(lesson: Lesson) -> str:
    return lesson.path.with_suffix(".html").name
