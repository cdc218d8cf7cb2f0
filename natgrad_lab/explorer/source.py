"""Where tiles come from: a symmetric matrix known through sums over cells, never through all its entries."""

from abc import ABC, abstractmethod

import numpy as np
import torch

from natgrad_lab.explorer.cells import checked
from natgrad_lab.names import known
from natgrad_lab.shapes import Float, Tensor

REDUCTIONS = ("rms", "mean", "entries")


class TooDear(ValueError):
    """A picture that would take minutes, refused with what to choose instead."""


class Source(ABC):
    """A symmetric (dim, dim) matrix; edges are integer arrays as in `cells`."""

    label = ""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number of parameters P."""

    @abstractmethod
    def squares(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """Sum of squared entries of every cell."""

    @abstractmethod
    def sums(self, rows: np.ndarray, columns: np.ndarray) -> Float[Tensor, "r c"]:
        """Sum of the entries of every cell."""

    @abstractmethod
    def entries(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        """The rectangle itself."""

    @abstractmethod
    def diagonal(self) -> Float[Tensor, " P"]:
        """The diagonal entries."""

    def tile(self, rows, columns, reduce: str = "rms") -> Float[Tensor, "r c"]:
        """One number per cell of rows x columns.

        Args:
            rows, columns: edges of the cells, ascending integers; they may cut units and layers anywhere.
            reduce: "rms", √ of the mean of squared entries; "mean", the signed mean; "entries", the entries themselves,
                for cells of one parameter each.
        When exact: always, to rounding. A root mean square comes from a sum of products in which much may cancel: its
            square is right to eps times the product of the two groups' own mean squares.
        """
        known(reduce, REDUCTIONS, "way to sum up a cell")
        rows, columns = checked(rows, self.dim), checked(columns, self.dim)
        heights, widths = np.diff(rows), np.diff(columns)
        if (heights == 1).all() and (widths == 1).all():
            values = self.entries(slice(int(rows[0]), int(rows[-1])), slice(int(columns[0]), int(columns[-1])))
            return values.abs() if reduce == "rms" else values
        if reduce == "entries":
            raise ValueError(
                f"reduce='entries' needs cells of one parameter each; got cells of up to {heights.max()} x {widths.max()}. "
                "Use reduce='rms' or 'mean', or a smaller region."
            )
        total = self.squares(rows, columns) if reduce == "rms" else self.sums(rows, columns)
        area = torch.from_numpy(np.outer(heights, widths)).to(total)
        return (total.clamp(min=0) / area).sqrt() if reduce == "rms" else total / area
