"""All matrices of one batch that an explorer can show, in one arrangement; each is made when first looked at."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import numpy as np
import torch

from natgrad_lab.explorer.arrange import (
    Arrangement,
    by_parameters,
    by_units,
    eigenvector_order,
    structure_by_parameters,
    structure_by_units,
    structure_whitened,
    unit_orders,
    whitened,
    whitening_maps,
)
from natgrad_lab.explorer.correlation import Correlation
from natgrad_lab.explorer.difference import Difference
from natgrad_lab.explorer.exact import ExactFisher
from natgrad_lab.explorer.inverse import InverseExact, Minus, RowSpectrum, inverse_of
from natgrad_lab.explorer.source import Source
from natgrad_lab.explorer.structure import Approximation
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.structures import Gram, StructuredMatrix

NOT_WHITE = "only exact and Kronecker matrices follow into white coordinates"


class Matrices(Mapping):
    """name → Source: exact, each approximation and its difference, and their damped inverses.

    `order` and `unit_orders` say which parameter of the flat order is at a place: None for the flat order itself.
    """

    def __init__(
        self,
        gram: Gram,
        layout: ParameterLayout,
        approximations: Mapping[str, StructuredMatrix],
        arrangement: Arrangement,
        spectrum: RowSpectrum | None = None,
    ):
        """Put the rows and factors in order; RRᵀ is diagonalized only if that, or an inverse, needs it."""
        self.layout, self.arrangement, self.plain_gram = layout, arrangement, gram
        self.structures, self.order, self.unit_orders = dict(approximations), None, None
        self.left_out: dict[str, str] = {}  # approximations that this arrangement cannot show, and why
        if arrangement.white:
            maps = whitening_maps(gram, layout, arrangement.damping)
            gram, spectrum = whitened(gram, maps), None
            white = {name: structure_whitened(matrix, maps) for name, matrix in self.structures.items()}
            self.structures = {name: matrix for name, matrix in white.items() if matrix is not None}
            self.left_out = {name: NOT_WHITE for name in white if name not in self.structures}
        self.gram, self._spectrum = gram, spectrum
        if arrangement.order == "unit":
            self.unit_orders = unit_orders(gram, layout)
            self.gram = by_units(gram, self.unit_orders)
            self._reorder(lambda matrix: structure_by_units(matrix, self.unit_orders, layout))
        if arrangement.order == "eigenvector":
            self.order = eigenvector_order(self.spectrum.leading)
            self.gram = by_parameters(gram, self.order)
            self._reorder(lambda matrix: structure_by_parameters(matrix, self.order))
        self.analysis: dict | None = None  # kept here by the explorer, as are the limits of colours
        self.limits: dict[str, tuple[float, float]] = {}
        self._makers = self._named()
        self._made: dict[str, Source] = {}
        self._correlations: dict[str, Source] = {}

    @cached_property
    def spectrum(self) -> RowSpectrum:
        """Of the rows, whose eigenvalues no order changes."""
        return self._spectrum or RowSpectrum(self.gram)

    def __getitem__(self, name: str) -> Source:
        """A source; made at the first time."""
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of a menu."""
        return iter(self._makers)

    def __len__(self) -> int:
        """Number of matrices."""
        return len(self._makers)

    def correlation(self, name: str) -> Source:
        """The correlations of a matrix; of a difference, the difference of the correlations."""
        if name not in self._correlations:
            source = self[name]
            if isinstance(source, Difference):
                parts = Correlation(source.approximation), Correlation(source.exact)
            elif isinstance(source, Minus):
                parts = Correlation(source.left), Correlation(source.right)
            else:
                parts = ()
            label = f"correlations of {name}"
            self._correlations[name] = Minus(*parts, label) if parts else Correlation(source)
        return self._correlations[name]

    @property
    def num_bytes(self) -> int:
        """Memory of the rows, of their tables and of the approximations."""
        made = [source for source in self._made.values() if isinstance(source, ExactFisher | Approximation)]
        return sum(source.num_bytes for source in made)

    @property
    def spectrum_or_none(self) -> RowSpectrum | None:
        """That of the flat order, if it was made already."""
        return self.__dict__.get("spectrum")

    def take(self, other: "Matrices") -> None:
        """Use what another damping does not change."""
        for name, source in other._made.items():
            if not name.startswith("inverse") and name in self._makers:
                self._made[name] = source

    def stamp(self, name: str) -> tuple:
        """What a tile of this matrix depends on, besides its place."""
        arrangement = self.arrangement
        damped = arrangement.white or name.startswith("inverse")
        return name, arrangement.order, arrangement.white, arrangement.damping if damped else None

    def _reorder(self, change: Callable[[StructuredMatrix], StructuredMatrix]) -> None:
        self.structures = {name: change(matrix) for name, matrix in self.structures.items()}

    def _named(self) -> dict[str, Callable[[], Source]]:
        damping = self.arrangement.damping
        makers: dict[str, Callable[[], Source]] = {"exact": lambda: ExactFisher(self.gram)}
        for name, matrix in self.structures.items():
            makers[name] = lambda name=name, matrix=matrix: Approximation(matrix, name)
            makers[f"{name} − exact"] = lambda name=name: Difference(self["exact"], self[name])
        makers["inverse of exact"] = self._inverse_exact
        for name, matrix in self.structures.items():
            own = f"inverse of {name}"
            makers[own] = lambda own=own, matrix=matrix: inverse_of(matrix, damping, own)
            both = f"{own} − inverse of exact"
            makers[both] = lambda own=own, both=both: Minus(self[own], self["inverse of exact"], both)
        return makers

    def _inverse_exact(self) -> Source:
        damping = self.arrangement.damping
        if self.gram.num_rows >= self.gram.dim:
            return inverse_of(self.gram, damping, "inverse of exact")
        if self.arrangement.order == "layer":
            return InverseExact(self.spectrum, damping)
        ordered = RowSpectrum(self.gram)
        ordered.pairs = self.spectrum.pairs
        return InverseExact(ordered, damping)


def places(matrices: Matrices) -> np.ndarray | None:
    """The flat place of every place shown, int32, if single parameters are in another order."""
    return None if matrices.order is None else matrices.order.to(torch.int32).numpy()
