"""StructuredMatrix: what every representation of a symmetric positive semidefinite matrix can do.

A structure is a frozen dataclass of tensors. `solve` and `power` always mean M + damping I exactly; caches are
`functools.cached_property`s, which belong to one instance and are never carried into another.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from numbers import Real
from typing import ClassVar

import torch

from natgrad_lab.linalg import check_finite, invertible_spectrum, psd_eigvalsh
from natgrad_lab.shapes import Float, Tensor


@dataclass(frozen=True, eq=False, repr=False)
class TensorFields:
    """A frozen dataclass of tensors of one dtype and device, nested in tuples or in each other; finite unless it says not."""

    _must_be_finite: ClassVar[bool] = True

    def __post_init__(self):
        """Check what holds for all: floating, finite, one dtype, one device. Parts that are structures checked themselves."""
        kind, first = type(self).__name__, None
        for name, part in self._parts():
            if isinstance(part, Tensor):
                if not part.is_floating_point():
                    raise ValueError(f"{kind} needs floating-point tensors; {name} is {part.dtype}. Use .float().")
                if self._must_be_finite:
                    check_finite(part, f"{kind}.{name}")
            if first is None:
                first = (part.dtype, part.device)
            elif (part.dtype, part.device) != first:
                raise ValueError(
                    f"{kind} needs tensors of one dtype and device; {name} is {part.dtype} on {part.device}, the first "
                    f"{first[0]} on {first[1]}. Convert one with .to(...)."
                )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all tensors."""
        return self._first().dtype

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self._first().device

    def _first(self):
        """The first tensor or structure among the fields."""
        for value in self.__dict__.values():
            value = value[0] if isinstance(value, tuple) and value else value
            if isinstance(value, Tensor | TensorFields):
                return value
        return next(self._parts())[1]

    def tensors(self):
        """Yield (path, tensor) for every tensor, depth first."""
        for path, part in self._parts():
            if isinstance(part, Tensor):
                yield path, part
            else:
                yield from ((f"{path}.{inner}", tensor) for inner, tensor in part.tensors())

    def _parts(self):
        """Yield (name, part) for every tensor or structure among the fields, tuples unpacked."""
        for name, value in self._items():
            if isinstance(value, tuple):
                yield from ((f"{name}[{index}]", part) for index, part in enumerate(value))
            elif isinstance(value, Tensor | TensorFields):
                yield name, value

    def map(self, fn: Callable[..., Tensor], *others):
        """Apply `fn` tensor by tensor: the same structure of fn(own tensor, the others' tensors...).

        `F.map(lambda old, now: now.lerp(old, ema_decay), new)` is the moving average, `F.map(lambda t: t.to(device))`
        the move.
        """
        for other in others:
            self._require_alike(other)
        mapped = {name: _map(fn, value, *(getattr(other, name) for other in others)) for name, value in self._items()}
        return type(self).trusted(**mapped)

    @classmethod
    def trusted(cls, **values):
        """One made of all its fields, as they are: for tensors that cannot be wrong because of how they were made."""
        made = object.__new__(cls)
        made.__dict__.update(values)
        return made

    def validated(self):
        """Check what the constructor checks, of this and of every part; returns itself."""
        for _, part in self._parts():
            if not isinstance(part, Tensor):
                part.validated()
        self.__post_init__()
        return self

    def state(self) -> dict:
        """Nested dict of tensors, strings and lists, readable by torch.load(weights_only=True); see `from_state`."""
        return {"structure": type(self).__name__} | {name: _state(value) for name, value in self._items()}

    def __repr__(self) -> str:
        """One line: sizes, never numbers."""
        shapes = (f"{name} {_shapes(value)}" for name, value in self._items() if not isinstance(value, str))
        return f"{type(self).__name__}({', '.join([str(self.dtype).removeprefix('torch.'), *shapes])})"

    def _items(self) -> list:
        return [(name, getattr(self, name)) for name in _field_names(type(self))]

    def _require_alike(self, other) -> None:
        if not _alike(self, other):
            raise ValueError(
                f"map needs structures of one kind and one shape; got {self!r} and {other!r}. Estimate both with the "
                "same function on the same model."
            )


@dataclass(frozen=True, eq=False, repr=False)
class StructuredMatrix(TensorFields, ABC):
    """A symmetric positive semidefinite matrix M of size (dim, dim), acting on vectors (dim,) or columns (dim, k).

    A subclass defines `dim`, `matmul`, `solve` and `power`, and overrides the rest where it can do better.
    """

    note: str = field(default="", kw_only=True)  # how a damped result was made; shown by repr

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number of rows P."""

    @abstractmethod
    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """M x."""

    @abstractmethod
    def solve(self, x: Float[Tensor, "P *k"], damping: Real = 0.0) -> Float[Tensor, "P *k"]:
        """(M + damping I)⁻¹ x, exactly."""

    @abstractmethod
    def power(self, p: Real, damping: Real = 0.0):
        """(M + damping I)^p as a structure; a negative p on a singular matrix needs damping > 0."""

    def to_dense(self) -> Float[Tensor, "P P"]:
        """The matrix itself."""
        return self.matmul(torch.eye(self.dim, dtype=self.dtype, device=self.device))

    def diagonal(self) -> Float[Tensor, " P"]:
        """The diagonal entries."""
        return self.to_dense().diagonal().clone()

    def trace(self) -> Float[Tensor, ""]:
        """Sum of the diagonal."""
        return self.diagonal().sum()

    def eigvalsh(self) -> Float[Tensor, " r"]:
        """All eigenvalues, ascending; negative ones within rounding are 0."""
        return psd_eigvalsh(self.to_dense())

    def logdet(self, damping: Real = 0.0) -> Float[Tensor, ""]:
        """log det(M + damping I), natural logarithm; a singular M needs damping > 0."""
        return invertible_spectrum(self.eigvalsh(), damping).log().sum()

    def __repr__(self) -> str:
        """One line: dimension, dtype, shapes, and how it was damped."""
        kind, rest = super().__repr__().split("(", 1)
        return f"{kind}(dim={self.dim}, {rest[:-1]}{'; ' + self.note if self.note else ''})"

    def _check(self, x: Tensor) -> None:
        """Refuse a right-hand side of the wrong length, shape or dtype."""
        if x.ndim not in (1, 2) or x.shape[0] != self.dim:  # shape[0]: len(x) is slow
            raise ValueError(
                f"{type(self).__name__} of dimension {self.dim} acts on x of shape ({self.dim},) or ({self.dim}, k); "
                f"got length {len(x) if x.ndim else 'none'}, shape {tuple(x.shape)}. The flat order is "
                "ParameterLayout's."
            )
        if x.dtype != self.dtype:
            raise ValueError(f"x is {x.dtype} and {type(self).__name__} is {self.dtype}. Convert one with .to(...).")


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(part.name for part in fields(kind))


def power_note(p: Real, damping: Real) -> str:
    """Say in a repr how a damped result was made."""
    return f"(M + {float(damping):g} I)^{float(p):g}" if damping else ""


def _map(fn, value, *others):
    if isinstance(value, Tensor):
        return fn(value, *others)
    if isinstance(value, tuple):
        return tuple(_map(fn, *parts) for parts in zip(value, *others, strict=True))
    return value.map(fn, *others) if isinstance(value, TensorFields) else value


def _alike(one, other) -> bool:
    """Whether two fields are of one kind and shape."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, TensorFields):
        return type(one) is type(other) and all(_alike(value, getattr(other, name)) for name, value in one._items())
    return True


def _state(value):
    if isinstance(value, tuple):
        return [_state(part) for part in value]
    return value.state() if isinstance(value, TensorFields) else value


def _shapes(value) -> str:
    if isinstance(value, tuple):
        names = [type(part).__name__ for part in value]
        return " + ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    return "function" if callable(value) and not isinstance(value, TensorFields) else repr(value)
