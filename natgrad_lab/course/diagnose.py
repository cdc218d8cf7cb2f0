"""Say why a result is wrong: the usual mistakes with Fisher matrices are exact scalars, transposes and permutations.

Everything here compares in float64 and raises `Mistake`, whose key names the mistake and whose evidence holds numbers of
this instance, never the right answer.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-8  # relative to the norm of the right result: float64, small instances with condition numbers up to 1e6
DIGITS = 1e-5  # closer than this, the formula is right and digits were lost: float32 has a relative rounding of 6e-8
FIT = 1e-6  # a result counts as "the right one times r" if what remains is smaller than this


class Mistake(Exception):
    """A property does not hold. `key` is one of `mistakes()`; `evidence` says what was seen."""

    def __init__(self, key: str, evidence: str = ""):
        """Keep both; the message is made by `check`."""
        super().__init__(f"{key}: {evidence}")
        self.key, self.evidence = key, evidence


def as_tensor(value: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    """What an answer returned, as a float64 tensor without a graph: lists, NumPy arrays and numbers are welcome.

    Where `shape` is (), any single number is, also one in a list or in a matrix.

    Raises: Mistake "nothing", "kind", or, where a `shape` is given, "shape" and "not_finite".
    """
    if value is None:
        raise Mistake("nothing")
    try:
        result = _joined(value).detach()
    except (TypeError, ValueError, RuntimeError):
        raise Mistake(
            "kind", f"got {type(value).__name__}; a tensor, an array, a list of numbers or a number is needed"
        ) from None
    if result.is_complex():
        raise Mistake("kind", "got complex numbers")
    result = result.to("cpu", torch.float64).contiguous()  # torch.kron refuses some strides that einsum returns
    if shape == () and result.numel() == 1:
        result = result.reshape(())
    if shape is not None and result.shape != shape:
        raise Mistake("shape", _shapes(result, shape))
    if shape is not None and not result.isfinite().all():
        raise Mistake("not_finite")
    return result


def _joined(value: Any) -> Tensor:
    """A list's rows may be tensors, arrays or lists themselves."""
    if isinstance(value, np.ndarray):
        value = np.array(value)  # in memory of its own: PyTorch takes no reversed and no read-only views
    if isinstance(value, list | tuple) and any(isinstance(each, list | tuple | Tensor | np.ndarray) for each in value):
        return torch.stack([_joined(each) for each in value])
    return torch.as_tensor(value).to_dense()


def _shapes(got: Tensor, want: tuple[int, ...]) -> str:
    return f"it is {tuple(got.shape)} and should be {tuple(want) or 'one number'}"


def expect(
    got: Any, want: Any, *, suspects: Mapping[str, Any] | None = None, scalars: Mapping[str, float] | None = None,
    keys: Mapping[str, str] | None = None, tolerance: float = TOLERANCE, about: str = "",
) -> None:  # fmt: skip
    """Pass if `got` equals `want`; else raise the Mistake that explains the difference best.

    Args:
        got: what the answer returned.
        want: the right result.
        suspects: key of a mistake -> what that mistake would give on this instance.
        scalars: name of a size -> its value on this instance: {"N": 7, "T": 4}; then r, 1/r and their squares are tried too.
        keys: name of a size -> key of the mistake that a factor of it means: {"N": "M02"}; otherwise "scaled".
        tolerance: largest ‖got − want‖ / ‖want‖.
        about: words for the evidence: "with 7 examples".
    """
    want = as_tensor(want)
    got = as_tensor(got)
    if want.shape == () and got.numel() == 1:
        got = got.reshape(())
    about = f" ({about})" if about else ""
    if got.shape != want.shape:
        swapped = want.ndim == 2 and got.shape == want.mT.shape
        words = _shapes(got, want.shape) + about
        raise Mistake("transposed" if swapped and _near(got.mT, want, tolerance) else "shape", words)
    if not got.isfinite().all():
        raise Mistake("not_finite", about.strip())
    if _near(got, want, tolerance):
        return
    if _near(got, want, DIGITS):
        raise Mistake("digits", f"relative error {float((got - want).norm() / want.norm()):.1g}{about}")
    for key, value in (suspects or {}).items():
        suspect = as_tensor(value)
        if suspect.shape == got.shape and not _near(suspect, want, tolerance) and _near(got, suspect, FIT):
            raise Mistake(key, about.strip())
    if not got.any() and want.any():
        raise Mistake("M25", about.strip())
    _raise_if_scaled(got, want, scalars or {}, keys or {}, about)
    if want.ndim == 2 and want.shape[0] == want.shape[1] and _near(got.mT, want, tolerance):
        raise Mistake("transposed", about.strip())
    error = float((got - want).norm() / want.norm()) if want.any() else float(got.norm())
    raise Mistake("unrecognized", f"relative error {error:.2g}{about}")


def recognize(got: Any, want: Any, pairs: Iterable[tuple[str, Any]]) -> None:
    """Raise the Mistake of the first (key, value) that `got` equals and `want` does not; as `suspects`, several a key."""
    got, want = as_tensor(got), as_tensor(want)
    for key, value in pairs:
        suspect = as_tensor(value)
        if _near(got, suspect, FIT) and not _near(suspect, want, FIT):
            raise Mistake(key)


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and float((a - b).norm()) <= tolerance * max(float(b.norm()), 1e-300)


def _raise_if_scaled(got: Tensor, want: Tensor, scalars: Mapping[str, float], keys: Mapping[str, str], about: str) -> None:
    square = float((want * want).sum())
    if square == 0:
        return
    ratio = float((got * want).sum()) / square
    if ratio == 0 or not _near(got, ratio * want, FIT):
        return
    if math.isclose(ratio, -1, rel_tol=FIT):
        raise Mistake("sign", about.strip())
    sizes = {**scalars, "2": 2.0}
    for name, size in sizes.items():
        for power, words in (
            (1, name),
            (-1, f"1/{name}"),
            (2, f"{name}²"),
            (-2, f"1/{name}²"),
            (0.5, f"√{name}"),
            (-0.5, f"1/√{name}"),
        ):
            if math.isclose(abs(ratio), size**power, rel_tol=FIT) and size != 1:
                key = keys.get(words, keys.get(name, "scaled"))
                meaning = "" if name == "2" else f", and {words} is {size**power:.4g} here"
                raise Mistake(key, f"your result is {ratio:.4g} times the right one{meaning}{about}")
    if want.numel() > 1 or "" in keys:  # every wrong number is the right one times another
        raise Mistake(keys.get("", "scaled"), f"your result is {ratio:.6g} times the right one{about}")
