"""Local Fisher matrices: small matrices G, each shared by the units of a layer, and their roots G^½ and G^−½.

In coordinates w' = G^½ w, gradient descent with G held fixed is natural gradient descent with G as the Fisher:
∂L/∂w' = G^−½ ∇L, so that w moves by −lr G⁻¹ ∇L. Here G is estimated and its root is taken; `sngd.py` steps with it,
`reconstruction.py` builds it into a network.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import singledispatch

import torch
from torch import nn

from natgrad_lab.derivatives import forward_pass
from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.fisher.dense import contract
from natgrad_lab.fisher.scores import ScorePass, rows_of
from natgrad_lab.linalg import symmetrize
from natgrad_lab.parameters import Layer, ParameterLayout
from natgrad_lab.roots import denman_beavers, nystrom
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import (
    ConcatRows,
    Dense,
    Diagonal,
    EmbeddingRows,
    KhatriRaoRows,
    RowBlock,
    SharedRows,
    StructuredMatrix,
    from_state,
)

_LARGEST_BLOCK = 4096  # parameters of a block whose whole Fisher is formed


@dataclass(frozen=True)
class LocalFisher:
    """One matrix G (n, n), in float64, for all `units` of a layer: the metric of the layer's parameters is I ⊗ G.

    `inputs_last` says how they lie in the flat order from `start` on: (units, n), as rows of [W | b], or (n, units), as an
    Embedding's, whose metric is G ⊗ I.
    """

    name: str
    start: int
    units: int
    matrix: StructuredMatrix = field(repr=False)
    inputs_last: bool = True

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.units * self.matrix.dim

    @property
    def place(self) -> tuple:
        """What must agree for another G to be of the same parameters."""
        return self.name, self.start, self.units, self.matrix.dim, self.inputs_last

    def product(self, matrix: StructuredMatrix, vector: Float[Tensor, " P"]) -> Tensor:
        """`matrix` (n, n) applied to every unit's part of a vector in the flat order."""
        part = vector[self.start : self.start + self.size].to(matrix.dtype)
        if self.inputs_last:
            product = matrix.matmul(part.view(self.units, -1).mT).mT
        else:
            product = matrix.matmul(part.view(-1, self.units))
        return product.flatten().to(vector.dtype)

    def state(self) -> dict:
        """Plain data; undone by `LocalFisher.from_state`."""
        return {**self.__dict__, "matrix": self.matrix.state()}

    @staticmethod
    def from_state(state: dict) -> "LocalFisher":
        """Undo `state`."""
        return LocalFisher(**{**state, "matrix": from_state(state["matrix"])})


@dataclass(frozen=True)
class LocalRoot:
    """Roots of a damped local Fisher matrix G + λI, and how they were made.

    Attributes:
        name: of the layer.
        method: "Denman-Beavers"; "Nystrom, m landmarks" where n is too large for it: roots of a low-rank stand-in + λI;
            "diagonal": exact.
        residual: Denman-Beavers: ‖Y² − G‖ / ‖G‖; Nystrom: the share of the trace of G left out; 0 for diagonal.
        inverse_residual: Denman-Beavers: ‖Z G Z − I‖ / √n; else 0, exact for what its root is taken of.
        root, inverse_root: (n, n).
    """

    name: str
    method: str
    residual: float
    inverse_residual: float
    root: StructuredMatrix = field(repr=False)
    inverse_root: StructuredMatrix = field(repr=False)

    def state(self) -> dict:
        """Plain data; undone by `LocalRoot.from_state`."""
        return {**self.__dict__, "root": self.root.state(), "inverse_root": self.inverse_root.state()}

    @staticmethod
    def from_state(state: dict) -> "LocalRoot":
        """Undo `state`."""
        return LocalRoot(**{**state, **{key: from_state(state[key]) for key in ("root", "inverse_root")}})


@dataclass(frozen=True)
class RootChoice:
    """How roots are taken: by Denman-Beavers up to size `dense_up_to`, above from a Nystrom stand-in with `landmarks`."""

    dense_up_to: int = 512
    landmarks: int = 256

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name in ("dense_up_to", "landmarks"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value!r}.")

    def root(self, fisher: LocalFisher, damping: float, dtype: torch.dtype) -> LocalRoot:
        """Roots of G + damping I, computed in float64 and rounded to `dtype`.

        Raises: NotPositiveDefiniteError for a singular G and damping 0 (or a low-rank stand-in and damping 0).
        Cost: n ≤ dense_up_to: 5 to 17 times 8 n³ flops; else 7 n m² for m landmarks.
        """
        G = fisher.matrix
        if isinstance(G, Diagonal):
            made, parts = ("diagonal", 0.0, 0.0), tuple(G.power(p, damping) for p in (0.5, -0.5))
        elif G.dim <= self.dense_up_to:
            found = denman_beavers(G.matrix, damping)
            made, parts = ("Denman-Beavers", found.residual, found.inverse_residual), (found.root, found.inverse_root)
            parts = tuple(Dense(part) for part in parts)
        else:
            low_rank, left_out = nystrom(G.matrix, self.landmarks)
            made = (f"Nystrom, {len(low_rank.eigenvalues)} landmarks", left_out, 0.0)
            parts = tuple(low_rank.power(p, damping) for p in (0.5, -0.5))
        return LocalRoot(fisher.name, *made, *(part.map(lambda tensor: tensor.to(dtype)) for part in parts))


# ---- estimation


def input_fishers(scores: ScorePass) -> tuple[LocalFisher, ...]:
    """G = E[x̄ x̄ᵀ] of every layer's homogeneous inputs x̄ = [x; 1], over examples and positions: no gradient in it.

    It is the Fisher of a linear layer with Gaussian noise of variance 1 on its own outputs. A layer that has no inputs in
    this sense (elementwise weights, no rule) keeps its exact block, for which the pass must have scores.
    """
    pairs = ((each.layer, each.rows if each.rows is not None else each.loss_rows) for each in scores.layers)
    return fishers_of_rows(pairs, scores.num_examples)


def lacks_inputs(scores: ScorePass) -> bool:
    """Whether a layer has no inputs to take second moments of."""
    return any(_is_plain(each.loss_rows) for each in scores.layers)


def _is_plain(rows: RowBlock) -> bool:
    if isinstance(rows, ConcatRows):
        return any(_is_plain(block) for block in rows.blocks)
    return _from_rows.dispatch(type(rows)) is _from_rows.registry[object]


def block_fishers(scores: ScorePass) -> tuple[LocalFisher, ...]:
    """G = each layer's exact block of the Fisher, (P_l, P_l)."""
    return tuple(_whole_block(each.layer.name, each.layer.start, [each.rows], scores.num_examples) for each in scores.layers)


def whole_fisher(scores: ScorePass) -> tuple[LocalFisher, ...]:
    """G = the exact Fisher of all parameters, (P, P): with it and a refresh at every step SNGD is natural gradient descent."""
    return (_whole_block("model", 0, [each.rows for each in scores.layers], scores.num_examples),)


METRICS = {"inputs": input_fishers, "blocks": block_fishers, "exact": whole_fisher}


def captured_input_fishers(model: nn.Module, inputs: Tensor) -> tuple[LocalFisher, ...]:
    """`input_fishers` from a forward pass alone; every layer must have rows of [W | b] (see `ParameterLayout`)."""
    layout = ParameterLayout(model)
    passed = forward_pass(model, layout, inputs, layout.layers)
    zeros = {name: tuple(_zero_scores(inputs, call) for call in calls) for name, calls in passed.calls.items()}
    rows = rows_of(passed, zeros)
    return fishers_of_rows(((layer, rows[layer.name]) for layer in layout.layers), len(inputs))


def _zero_scores(inputs: Tensor, call) -> Tensor:
    steps = (len(call.edges),) if call.stacked else ()
    dtype = inputs.dtype if inputs.is_floating_point() else torch.get_default_dtype()
    return torch.zeros(1, call.shape[0], *steps, *call.shape[1:], dtype=dtype, device=inputs.device)


def fishers_of_rows(pairs: Iterable[tuple[Layer, RowBlock]], num_examples: int) -> tuple[LocalFisher, ...]:
    """Input metrics of layers from their rows of the Jacobian, which hold the inputs."""
    return tuple(fisher for layer, rows in pairs for fisher in _from_rows(rows, layer.name, layer.start, num_examples))


@singledispatch
def _from_rows(rows: RowBlock, name: str, start: int, num_examples: int) -> tuple[LocalFisher, ...]:
    return (_whole_block(name, start, [rows], num_examples),)


@_from_rows.register
def _(rows: KhatriRaoRows, name: str, start: int, num_examples: int) -> tuple[LocalFisher, ...]:
    return (LocalFisher(name, start, rows.scores.shape[2], _second_moment(rows.inputs)),)


@_from_rows.register
def _(rows: SharedRows, name: str, start: int, num_examples: int) -> tuple[LocalFisher, ...]:
    return (LocalFisher(name, start, rows.scores.shape[3], _second_moment(rows.inputs.flatten(0, 1))),)


@_from_rows.register
def _(rows: EmbeddingRows, name: str, start: int, num_examples: int) -> tuple[LocalFisher, ...]:
    counts = torch.bincount(rows.index[rows.index >= 0].flatten(), minlength=rows.num_entries)
    frequencies = Diagonal(counts.double() / rows.index.numel())  # second moment of one-hot inputs
    return (LocalFisher(name, start, rows.scores.shape[3], frequencies, inputs_last=False),)


@_from_rows.register
def _(rows: ConcatRows, name: str, start: int, num_examples: int) -> tuple[LocalFisher, ...]:
    found = []
    for group, block in enumerate(rows.blocks):
        found += _from_rows(block, f"{name}[{group}]", start, num_examples)
        start += block.shape[1]
    return tuple(found)


def _second_moment(inputs: Float[Tensor, "M D"]) -> Dense:
    inputs = inputs.double()  # in float32, rounding makes the smallest eigenvalues negative
    return Dense(symmetrize(inputs.mT @ inputs / len(inputs)))


def _whole_block(name: str, start: int, rows: list[RowBlock], num_examples: int) -> LocalFisher:
    size = sum(block.shape[1] for block in rows)
    if size > _LARGEST_BLOCK:
        raise UnsupportedLayerError(
            f"the metric of {name!r} would be a matrix of {size} x {size} parameters (at most {_LARGEST_BLOCK}). Use "
            "metric='inputs', whose matrices have the size of a layer's inputs; a layer without such inputs can be frozen "
            "with requires_grad_(False)."
        )
    rows = [block.map(lambda tensor: tensor.double()) for block in rows]
    return LocalFisher(name, start, 1, Dense(symmetrize(contract(rows, num_examples))))


def averaged(old: tuple[LocalFisher, ...], new: tuple[LocalFisher, ...], decay: float) -> tuple[LocalFisher, ...]:
    """decay · old + (1 − decay) · new, matrix by matrix."""
    pairs = zip(old, new, strict=True)
    return tuple(replace(now, matrix=now.matrix.map(lambda n, o: n.lerp(o, decay), was.matrix)) for was, now in pairs)
