"""The claims ledger: every number that a lesson's prose states is measured again by a function of its own.

In a notebook's text a number is followed by the name of its function in an HTML comment, which readers do not see:

    At 60° north the arrow is **31.0**<!--equirectangular_angle-->° off.

The number is right if it differs from what the function returns by at most one unit of its last printed digit.
"""

import inspect
import re
from collections.abc import Callable

from natgrad_lab.course.lessons import lesson_modules

NUMBER = r"[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+|\s?[×x]\s?10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?"
CLAIM = re.compile(rf"(?P<number>{NUMBER})(?P<close>[*_]*)<!--\s*(?P<name>\w+)\s*-->")
_PLAIN = str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789")


def claims(lesson: str) -> dict[str, Callable[[], float]]:
    """Name -> function of the lesson "03"; {} if it states nothing."""
    module = lesson_modules("claims").get(lesson)
    if module is None:
        return {}
    members = inspect.getmembers(module, inspect.isfunction)
    return {name: f for name, f in members if f.__module__ == module.__name__ and not name.startswith("_")}


def value_and_unit(text: str) -> tuple[float, float]:
    """(the number that `text` prints, one unit of its last digit): "9.4e-3" gives (0.0094, 0.0001)."""
    plain = re.sub(r"\s?[×x]\s?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", lambda power: "e" + power[1], text).translate(_PLAIN).replace(",", "")
    mantissa, _, exponent = plain.partition("e")
    digits = len(mantissa.partition(".")[2])
    return float(plain), 10.0 ** (int(exponent or 0) - digits)


def differences(lesson: str, prose: str) -> list[str]:
    """A sentence for each stated number that is not what its function measures, and for each function nobody states."""
    known, wrong, used = claims(lesson), [], set()
    for found in CLAIM.finditer(prose):
        name = found["name"]
        used.add(name)
        if name not in known:
            wrong.append(
                f"lesson {lesson} states {found['number']} as {name!r}, which course/claims/lesson{lesson}.py does not measure."
            )
            continue
        stated, unit = value_and_unit(found["number"])
        measured = float(known[name]())
        if not abs(stated - measured) <= unit * (1 + 1e-9):
            wrong.append(f"lesson {lesson} states {found['number']} for {name}; measured: {measured:.6g}.")
    wrong.extend(f"lesson {lesson} measures {name} and does not state it." for name in sorted(set(known) - used))
    return wrong


def unclaimed(prose: str) -> list[str]:
    """Decimal numbers, powers of ten and percentages in the prose that no claim follows; formulas and code do not count."""
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|```.*?```|`[^`]*`|\]\([^)]*\)|<summary>|\[\w*\d{4}\w*\]", " ", prose, flags=re.S)
    text = CLAIM.sub(" ", text)
    return re.findall(r"\d+\.\d+(?:e[-+]?\d+)?|\d[\d.]*\s?[×x]\s?10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+|\d+\s?%", re.sub(r"(?m)^#+ .*$", " ", text))
