"""What readers predicted, kept in `.natgrad/predictions.json` of the working folder: {"two_maps": "no, ..."}.

The first prediction stays: running a cell again, or predicting again elsewhere, changes nothing in the file.
"""

import json
import os
import threading
from pathlib import Path
from typing import Any

_lock = threading.Lock()


def predictions_file() -> Path:
    """Where predictions are kept: in the working folder."""
    return Path(".natgrad") / "predictions.json"


def all_revealed() -> bool:
    """Whether nobody is asked: NATGRAD_FAST or NATGRAD_REVEAL is set, to anything but 0."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("NATGRAD_FAST", "NATGRAD_REVEAL"))


def predictions(file: Path | None = None) -> dict[str, Any]:
    """Name of a card -> what was predicted; {} if there is no file. Raises: ValueError if the file is of another form."""
    file = predictions_file() if file is None else file
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}). Move it away to begin anew; it is left as it is.") from None
    if not isinstance(kept, dict):
        raise ValueError(f"{file} does not hold predictions by card. Move it away to begin anew; it is left as it is.")
    return kept


def keep_prediction(name: str, said: Any, file: Path | None = None) -> Any:
    """Keep what was predicted for the card `name`, unless there is one already; returns the one that is kept.

    The file is replaced as a whole or not at all. Raises: ValueError as `predictions`; OSError if it cannot be written.
    """
    file = predictions_file() if file is None else file
    with _lock:
        kept = predictions(file)
        if name not in kept:
            kept[name] = said
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f"{file.name}.{os.getpid()}.part")
            part.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            part.replace(file)
        return kept[name]


def read_number(text: str) -> float:
    """The number a reader typed: 12, 1e-3, 0.5, 0,5, 30 %, 1/3 are all understood. Raises: ValueError saying so."""
    plain = text.strip().replace("−", "-").replace(" ", "").rstrip("%°").replace(",", ".")
    above, slash, below = plain.partition("/")
    try:
        number = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise ValueError(f"{text.strip()[:40]!r} is no number. Type one such as 12, 0.5 or 1e-3.")
    return number
