"""Measured curves that cards show without measuring them again: plain JSON, written by `make.py` beside it.

Races of the kept reproductions (benchmarks/reproduce) are cut down to what is drawn; the grid of ε and T is measured here.
"""

import json
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent


@cache
def measured(name: str) -> dict:
    """The contents of NAME.json. Raises: FileNotFoundError if there is none."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
