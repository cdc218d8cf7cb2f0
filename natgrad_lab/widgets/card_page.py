"""Cards on a page without a kernel: the same controls, question, presets and headline, in one file that needs no network.

card_page(find_card("two_maps"))                a whole page: write it to a file and open it
card_head() + card_fragment(card) + ...         to put cards into a page of your own; plotly.js once beside them
"""

from collections.abc import Iterable

from plotly.offline import get_plotlyjs

from natgrad_lab.course.card import Card
from natgrad_lab.explorer.page import safe_json
from natgrad_lab.widgets.card_states import MOST_BYTES, card_data
from natgrad_lab.widgets.card_text import escape
from natgrad_lab.widgets.view import source

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"


def card_page(cards: Card | Iterable[Card], title: str = "") -> str:
    """One self-contained HTML page with these cards: plotly.js once, nothing from elsewhere.

    The page can show the states that it holds (`card_states.card_data`); moved to another one, it goes to the nearest
    that it holds and says so. Cost: `compute` and `draw` once a state. Raises: ValueError as `card_data`, or without cards.
    """
    cards = [cards] if isinstance(cards, Card) else list(cards)
    if not cards:
        raise ValueError("card_page needs at least one card.")
    body = "\n".join(card_fragment(card) for card in cards)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title or cards[0].title)}</title>\n<script>{get_plotlyjs()}</script>\n{card_head()}\n</head>\n"
        f'<body class="natgrad-card-page">\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def card_head() -> str:
    """Style and script that a page with `card_fragment`s needs once, before them. It does not hold plotly.js.

    The script draws with the global `Plotly` (`plotly.offline.get_plotlyjs()` in a script element anywhere in the page) and
    finds its cards when the page has been read.
    """
    style, script = source("widgets.css", "card_page.css"), source("narrow.js", "card_page.js")
    return f"<style>\n{style}\n</style>\n<script>\n{script}\n</script>"


def card_fragment(card: Card, most_bytes: int = MOST_BYTES) -> str:
    """The HTML of one card, without style, script and plotly.js, for a page that has `card_head()` and plotly.js once.

    At most `most_bytes`: where the states need more, fewer are held, and the card says how many of how many.
    """
    data = safe_json(card_data(card, most_bytes))
    name = escape(card.name)
    return (
        f'<section class="natgrad-card natgrad-card-{name}" data-natgrad-card="{name}" aria-label="{escape(card.title)}">'
        f"<noscript><h3>{escape(card.title)}</h3><p>{escape(card.message)} {escape(card.caption)}</p></noscript>"
        f'<script type="application/json">{data}</script></section>'
    )
