"""Words of a card as HTML. Whatever a card or a reader says is escaped here and nowhere else."""

import html
from typing import Any

from natgrad_lab.course.card import Card, Prediction

escape = html.escape


def opening(card: Card) -> str:
    """Title and message."""
    return f'<h3 class="natgrad-card-title">{escape(card.title)}</h3><p class="natgrad-card-message">{escape(card.message)}</p>'


def question(card: Card) -> str:
    """What is asked before anything is shown."""
    return (
        '<p class="natgrad-card-question"><span class="natgrad-card-tag">Predict first</span> '
        f"{escape(card.prediction.question)}</p>"
    )


def answer_text(prediction: Prediction, answer: Any) -> str:
    """The answer as words: an option, or a number with its unit."""
    if prediction.options is not None:
        return str(answer)
    return f"{float(answer):.3g} {prediction.unit}".strip()


def explanation(prediction: Prediction, answer: Any) -> str:
    """The words after the answer, a number in them as short as the answer's own."""
    return prediction.explanation.format(answer=_Short(answer) if prediction.options is None else answer)


class _Short(float):
    """A number that is written with three digits where nothing else is asked for."""

    def __format__(self, form: str) -> str:
        return super().__format__(form or ".3g")


def said_text(prediction: Prediction, said: Any, answer: Any) -> str:
    """What became of what the reader said; "" if nothing was said."""
    if said is None:
        return ""
    if prediction.options is not None:
        return f"You said: {said}. " + ("Right." if said == answer else "It is otherwise.")
    try:
        said, answer = float(said), float(answer)
    except (TypeError, ValueError):
        return f"You said: {said}."
    distance = abs(said - answer) / abs(answer) if answer else abs(said)
    words = "That is close." if distance <= 0.1 else ""
    return f"You said: {said:.3g} {prediction.unit}".rstrip() + f". {words}".rstrip()


def answer(card: Card, given: Any, said: Any) -> str:
    """Question, answer, what the reader said, explanation."""
    prediction = card.prediction
    words = said_text(prediction, said, given)
    said_html = f'<span class="natgrad-card-said">{escape(words)}</span> ' if words else ""
    return (
        f'<div class="natgrad-card-answer"><p class="natgrad-card-asked">{escape(prediction.question)}</p>'
        f"<p><b>{escape(answer_text(prediction, given))}</b> {said_html}</p>"
        f"<p>{escape(explanation(prediction, given))}</p></div>"
    )


def waiting_answer(card: Card, said: Any) -> str:
    """The same before the first result is there."""
    words = f"You said: {said}. " if said is not None else ""
    return (
        f'<div class="natgrad-card-answer"><p class="natgrad-card-asked">{escape(card.prediction.question)}</p>'
        f"<p>{escape(words)}The answer comes with the first run.</p></div>"
    )


def headline(number: str, words: str) -> str:
    """The number in the largest letters, and what it is; read aloud when it changes."""
    return (
        f'<div role="status"><span class="natgrad-card-headline natgrad-number">{escape(number)}</span> '
        f'<span class="natgrad-card-what">{escape(words)}</span></div>'
    )


def no_headline() -> str:
    """Before the first run of a card that has to be run."""
    return headline("–", "not run yet")


def caption(card: Card, code: str) -> str:
    """Below the figure: what it shows, and the code of this state."""
    return (
        f'<p class="natgrad-card-caption">{escape(card.caption)}</p><p class="natgrad-card-code natgrad-quiet">'
        f'This state again: <code>ng.widgets.card("{escape(code)}")</code></p>'
    )


def alt(card: Card, number: str, words: str) -> str:
    """The figure in words (an attribute's plain text, not HTML)."""
    return f"{card.caption} Now: {number}, {words}."


def note(text: str) -> str:
    """A remark to the reader."""
    return f'<p class="natgrad-note" role="status">{escape(text)}</p>' if text else ""
