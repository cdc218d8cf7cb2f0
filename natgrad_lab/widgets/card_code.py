"""A card's state as a short text, "two_maps:1-0-3": the name and, for each control, the place of its value."""

from collections.abc import Mapping
from typing import Any

from natgrad_lab.course import Card, find_card


def state_code(card: Card, state: Mapping[str, Any]) -> str:
    """The text for `state`. Raises: as `Card.state`."""
    state = card.state(state)
    return f"{card.name}:" + "-".join(str(control.values.index(state[control.name])) for control in card.controls)


def card_and_state(code: str) -> tuple[Card, dict[str, Any]]:
    """The course's card that `code` names, and its state; a name alone is the default state. Raises: ValueError."""
    card = find_card(code.partition(":")[0])
    return card, state_of_code(card, code)


def state_of_code(card: Card, code: str) -> dict[str, Any]:
    """The state of `card` that `code` stands for. Raises: ValueError if it is another card's, or of another form."""
    name, _, places = code.strip().partition(":")
    if name != card.name:
        raise ValueError(f"{code!r} is a state of the card {name!r}; this one is {card.name!r}.")
    if not places:
        return card.state()
    numbers = places.split("-")
    sizes = [len(control.values) for control in card.controls]
    fits = len(numbers) == len(sizes) and all(
        number.isascii() and number.isdigit() and int(number) < size for number, size in zip(numbers, sizes, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{code!r} is no state of {card.name!r}: after the colon there are {len(sizes)} numbers with dashes between them, "
            f"each below {', '.join(map(str, sizes))} in turn."
        )
    return {control.name: control.values[int(number)] for control, number in zip(card.controls, numbers, strict=True)}
