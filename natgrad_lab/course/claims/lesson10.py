"""The numbers of lesson 10."""

import statistics

from natgrad_lab.course.cards import lesson10 as card


def _places(readout: str, unit: str = "tanh") -> dict:
    return card.microscope({"pictures": "stripes", "readout": readout, "quantity": card.QUANTITIES[0], "unit": unit})


def neighbours_connected() -> float:
    """Correlation of derivatives at neighbouring places under a fully connected layer."""
    return _places("fully connected")["neighbours"]


def spread_connected() -> float:
    """Largest over smallest mean square between places."""
    return _places("fully connected")["spread"]


def neighbours_average() -> float:
    """The correlation under a global average."""
    return _places("global average")["neighbours"]


def neighbours_linear() -> float:
    """The same without an activation."""
    return _places("global average", "none (linear)")["neighbours"]


def _sharing(readout: str, pictures: str = "stripes", unit: str = "tanh") -> dict:
    return card.both_sharings(pictures, 4, readout, unit)


def expand_connected() -> float:
    """Relative error of expand under a fully connected layer, stripes, 16 places."""
    return _sharing("fully connected")["expand"][0]


def reduce_connected() -> float:
    """Of reduce."""
    return _sharing("fully connected")["reduce"][0]


def expand_average() -> float:
    """Relative error of expand under a global average."""
    return _sharing("global average")["expand"][0]


def reduce_average() -> float:
    """Of reduce."""
    return _sharing("global average")["reduce"][0]


def reduce_linear() -> float:
    """Of reduce, without an activation."""
    return _sharing("global average", unit="none (linear)")["reduce"][0]


def reduce_rectifier() -> float:
    """Of reduce, with rectifiers."""
    return _sharing("global average", unit="rectifier")["reduce"][0]


def expand_digits() -> float:
    """Error of expand on digits under a fully connected layer."""
    return _sharing("fully connected", "digits")["expand"][0]


def reduce_digits() -> float:
    """Error of reduce there."""
    return _sharing("fully connected", "digits")["reduce"][0]


def expand_digits_step() -> float:
    """Efficiency of the step with expand there."""
    return _sharing("fully connected", "digits")["expand"][1]


def reduce_digits_step() -> float:
    """Efficiency of the step with reduce there."""
    return _sharing("fully connected", "digits")["reduce"][1]


def kfc_updates() -> float:
    """Updates of KFC to the final loss of SGD with momentum, over what that needs; median of the seeds."""
    return statistics.median(card.needed("KFC", "momentum"))


def kfc_least() -> float:
    """The least of the seeds."""
    return min(card.needed("KFC", "momentum"))


def kfc_most() -> float:
    """The most."""
    return max(card.needed("KFC", "momentum"))


def kfc_seconds() -> float:
    """The same in CPU seconds, median."""
    return statistics.median(card.needed("KFC", "momentum", "seconds"))


def plus_updates() -> float:
    """Updates of PRONG+ to the final loss of SGD with batch normalization, over what that needs; median."""
    return statistics.median(card.needed("PRONG+", "SGD + BatchNorm"))
