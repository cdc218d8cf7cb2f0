"""Cells along an axis: ascending integer edges, cell i holding the parameters edges[i] to edges[i + 1] of the flat order.

Cells need not be of one size, nor keep to units and layers. Sums over a cell are sums over its pieces, so that whatever is
known of smaller pieces adds up exactly.
"""

from collections.abc import Callable

import numpy as np
import torch

from natgrad_lab.shapes import Float, Tensor

_WORKSPACE = 2**23  # numbers formed at a time


def checked(edges, dim: int) -> np.ndarray:
    """Edges as an integer array; refuses what is no ascending sequence within 0 .. dim."""
    array = np.asarray(edges)
    whole = array.ndim == 1 and len(array) >= 2 and array.dtype.kind in "iu"
    if not whole or (np.diff(array.astype(np.int64)) <= 0).any() or array[0] < 0 or array[-1] > dim:
        shown = np.array2string(array, threshold=8)
        raise ValueError(
            f"the edges of cells must be at least two ascending whole numbers from 0 to {dim}; got {shown}. "
            "Pyramid(layout).edges(level) gives those of a level."
        )
    return array.astype(np.int64)


def within(edges: np.ndarray, start: int, stop: int) -> tuple[int, np.ndarray] | None:
    """The part of the cells inside start .. stop, counted from start: (first cell, edges); None if there is none."""
    if edges[0] >= stop or edges[-1] <= start:
        return None
    first = int(np.searchsorted(edges, start, side="right")) - 1 if edges[0] < start else 0
    last = int(np.searchsorted(edges, stop, side="left")) if edges[-1] > stop else len(edges) - 1
    return first, edges[first : last + 1].clip(start, stop) - start


def refined(edges: np.ndarray, width: int) -> np.ndarray:
    """The edges, and all multiples of `width` between the first and the last."""
    inside = np.arange(-(-int(edges[0]) // width) * width, int(edges[-1]) + 1, width)
    return np.union1d(edges, inside)


def add_up(values: Float[Tensor, "a b"], fine: tuple[np.ndarray, np.ndarray], coarse: tuple) -> Float[Tensor, "r c"]:
    """Sum values of pieces into the cells that they make up; both edges of `coarse` are among those of `fine`."""
    for axis in (0, 1):
        if len(fine[axis]) != len(coarse[axis]):
            values = _sum_axis(values, np.searchsorted(fine[axis], coarse[axis]), axis)
    return values


def add_strips(form: Callable[[slice, slice], Tensor], rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
    """Sum of `form(rows, columns)`, any function of entries, over every cell; a strip of rows at a time.

    `form` gives values of a rectangle; at most 2²³ of them are asked for at a time, or one row.
    """
    across = slice(int(columns[0]), int(columns[-1]))
    every_column = np.arange(across.start, across.stop + 1)
    most, first, out = max(1, _WORKSPACE // (across.stop - across.start)), 0, []
    while first < len(rows) - 1:
        last = max(first + 1, int(np.searchsorted(rows, rows[first] + most, side="right")) - 1)
        strip, total = rows[first : last + 1], 0
        for start in range(int(strip[0]), int(strip[-1]), most if last == first + 1 else int(strip[-1] - strip[0])):
            stop = min(start + most, int(strip[-1])) if last == first + 1 else int(strip[-1])
            inside = np.array([start, stop]) if last == first + 1 else strip
            values = form(slice(start, stop), across)
            total = total + add_up(values, (np.arange(start, stop + 1), every_column), (inside, columns))
        out.append(total)
        first = last
    return torch.cat(out)


def _sum_axis(values: Tensor, starts: np.ndarray, axis: int) -> Tensor:
    sizes = np.diff(starts)
    if (sizes == sizes[0]).all():
        return values.unflatten(axis, (len(sizes), int(sizes[0]))).sum(axis + 1)
    added = np.add.reduceat(values.cpu().numpy(), starts[:-1], axis=axis)
    return torch.from_numpy(added).to(values.device)
