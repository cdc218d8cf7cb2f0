"""Column blocks of the matrix R of a Gram: one per layer, each with all R rows, most of them never formed.

Rows are ordered k-major: row k * N + n belongs to score k of example n.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch

from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import TensorFields


@dataclass(frozen=True, eq=False, repr=False)
class RowBlock(TensorFields):
    """A block (R, P_l) of columns of R, known through its products. The Gram it is put in checks that it is finite."""

    _must_be_finite = False

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Rows and columns (R, P_l)."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Float[Tensor, "r P"]:
        """Rows start to stop, formed."""

    def columns(self, start: int, stop: int) -> Float[Tensor, "R p"]:
        """Columns start to stop of all rows, formed."""
        eye = torch.zeros(self.shape[1], stop - start, dtype=self.dtype, device=self.device)
        eye[start:stop] = torch.eye(stop - start, dtype=self.dtype, device=self.device)
        return self.matmul(eye)

    @abstractmethod
    def add_gram(self, out: Float[Tensor, "R R"]) -> None:
        """Add the upper blocks of B Bᵀ to `out`: all of its upper triangle, and nothing that the lower one needs."""

    @abstractmethod
    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "R *k"]:
        """B x."""

    @abstractmethod
    def rmatmul(self, v: Float[Tensor, "R *k"]) -> Float[Tensor, "P *k"]:
        """Bᵀ v."""

    @abstractmethod
    def diagonal(self) -> Float[Tensor, " P"]:
        """Diagonal of BᵀB: the squared norms of the columns."""

    @abstractmethod
    def scaled(self, factor: float) -> "RowBlock":
        """The block times a number."""

    @abstractmethod
    def select(self, start: int, stop: int | None) -> "RowBlock":
        """The rows that belong to scores start to stop."""

    @abstractmethod
    def merge(self, other: "RowBlock") -> "RowBlock":
        """The sum of two blocks of the same parameters: a layer called twice for one example."""

    @property
    def gram_flops(self) -> int:
        """Operations of `add_gram`, for choosing a route."""
        return self.shape[0] ** 2 * self.shape[1]

    @property
    def product_flops(self) -> int:
        """Operations of one product with a vector."""
        return self.shape[0] * self.shape[1]

    def gram(self) -> Float[Tensor, "R R"]:
        """B Bᵀ."""
        out = torch.zeros(self.shape[0], self.shape[0], dtype=self.dtype, device=self.device)
        self.add_gram(out)
        return mirror_upper(out)

    def to_dense(self) -> Float[Tensor, "R P"]:
        """The block, formed."""
        return self.rows(0, self.shape[0])


@dataclass(frozen=True, eq=False, repr=False)
class KhatriRaoRows(RowBlock):
    """Row (k, n) is scores[k, n] ⊗ inputs[n], the row-major vec of the (C, D) gradient of a linear layer.

    Cost: N D + K N C numbers instead of K N C D. Products cost 2 N C D flops a column, the Gram K² N² C.
    """

    inputs: Float[Tensor, "N D"]
    scores: Float[Tensor, "K N C"]

    def __post_init__(self):
        """Refuse shapes that do not fit together."""
        super().__post_init__()
        inputs, scores = tuple(self.inputs.shape), tuple(self.scores.shape)
        if len(inputs) != 2 or len(scores) != 3 or inputs[0] != scores[1] or 0 in inputs + scores:
            raise ValueError(
                f"KhatriRaoRows needs inputs (N, D) and scores (K, N, C) with no size 0; got {inputs} and {scores}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(K N, C D)."""
        return self.scores.shape[0] * self.scores.shape[1], self.scores.shape[2] * self.inputs.shape[1]

    def rows(self, start: int, stop: int) -> Float[Tensor, "r P"]:
        """Rows start to stop, formed."""
        index = torch.arange(start, min(stop, self.shape[0]), device=self.device)
        scores = self.scores.flatten(0, 1)[index]
        return (scores[:, :, None] * self.inputs[index % len(self.inputs), None, :]).flatten(1)

    def columns(self, start: int, stop: int) -> Float[Tensor, "R p"]:
        """Columns start to stop: those of the units they lie in, cut."""
        (K, N, _), width = self.scores.shape, self.inputs.shape[1]
        first, last = start // width, -(-stop // width)
        formed = (self.scores[:, :, first:last].unsqueeze(3) * self.inputs.unsqueeze(1)).reshape(K * N, -1)
        return formed[:, start - first * width : stop - first * width]

    def add_gram(self, out: Float[Tensor, "R R"]) -> None:
        """Add (inputs inputsᵀ) ∘ (scores scoresᵀ), one strip of rows per k from its diagonal block on.

        That is half the flops, and a strip stays in the cache.
        """
        K, N, C = self.scores.shape
        products, flat = self.inputs @ self.inputs.mT, self.scores.reshape(K * N, C)
        for k in range(K):
            strip = (self.scores[k] @ flat[k * N :].mT).view(N, K - k, N)
            out[k * N : (k + 1) * N, k * N :].view(N, K - k, N).addcmul_(strip, products[:, None, :])

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "R *k"]:
        """B x: (B vec X)[k, n] = scores[k, n]ᵀ X inputs[n]."""
        K, N, C = self.scores.shape
        if x.ndim == 1:
            return (self.scores * (self.inputs @ x.reshape(C, -1).mT)).sum(2).flatten()
        images = self.inputs @ x.mT.reshape(x.shape[1], C, -1).mT  # (k, N, C)
        return torch.einsum("knc,jnc->knj", self.scores, images).reshape(K * N, -1)

    def rmatmul(self, v: Float[Tensor, "R *k"]) -> Float[Tensor, "P *k"]:
        """Bᵀ v: Σ_n (Σ_k v[k, n] scores[k, n]) ⊗ inputs[n]."""
        K, N, C = self.scores.shape
        if v.ndim == 1:
            weighted = v.reshape(K, N, 1) * self.scores
            return ((weighted[0] if K == 1 else weighted.sum(0)).mT @ self.inputs).flatten()
        weighted = torch.einsum("knj,knc->jcn", v.reshape(K, N, -1), self.scores)
        return (weighted @ self.inputs).flatten(1).mT.contiguous()

    def diagonal(self) -> Float[Tensor, " P"]:
        """Squared norms of the columns."""
        return (self.scores.square().sum(0).mT @ self.inputs.square()).flatten()

    @property
    def gram_flops(self) -> int:
        """Half of K² N² C for the scores, N² D for the inputs."""
        K, N, C = self.scores.shape
        return (K * N) ** 2 * C + N**2 * self.inputs.shape[1]

    @property
    def product_flops(self) -> int:
        """N C D: the scores only weigh what the inputs give."""
        return len(self.inputs) * self.shape[1]

    def scaled(self, factor: float) -> "KhatriRaoRows":
        """The block times a number."""
        return KhatriRaoRows(self.inputs, self.scores * factor)

    def select(self, start: int, stop: int | None) -> "KhatriRaoRows":
        """The rows that belong to scores start to stop."""
        return KhatriRaoRows.trusted(inputs=self.inputs, scores=self.scores[start:stop])

    def merge(self, other: "RowBlock") -> "RowBlock":
        """Two calls are two positions of a shared layer."""
        from natgrad_lab.structures.shared_rows import SharedRows  # which builds on this module

        one, two = (
            SharedRows(b.inputs.unsqueeze(1), b.scores.unsqueeze(2)) if isinstance(b, KhatriRaoRows) else b
            for b in (self, other)
        )
        return one.merge(two)


@dataclass(frozen=True, eq=False, repr=False)
class DenseRows(RowBlock):
    """Rows stored whole, for parameters whose gradients have no product form."""

    matrix: Float[Tensor, "R P"]
    num_scores: int = 1

    def __post_init__(self):
        """Refuse what is not a matrix, or does not hold whole scores."""
        super().__post_init__()
        if self.matrix.ndim != 2 or 0 in self.matrix.shape or self.matrix.shape[0] % self.num_scores:
            raise ValueError(
                f"DenseRows needs a matrix (R, P) with no size 0 and R a multiple of num_scores = {self.num_scores}; got "
                f"shape {tuple(self.matrix.shape)}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(R, P_l)."""
        return tuple(self.matrix.shape)

    def rows(self, start: int, stop: int) -> Float[Tensor, "r P"]:
        """Rows start to stop."""
        return self.matrix[start:stop].clone()

    def add_gram(self, out: Float[Tensor, "R R"]) -> None:
        """Add B Bᵀ."""
        out.addmm_(self.matrix, self.matrix.mT)

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "R *k"]:
        """B x."""
        return self.matrix @ x

    def rmatmul(self, v: Float[Tensor, "R *k"]) -> Float[Tensor, "P *k"]:
        """Bᵀ v."""
        return self.matrix.mT @ v

    def diagonal(self) -> Float[Tensor, " P"]:
        """Squared norms of the columns."""
        return self.matrix.square().sum(0)

    def columns(self, start: int, stop: int) -> Float[Tensor, "R p"]:
        """Columns start to stop."""
        return self.matrix[:, start:stop]

    def scaled(self, factor: float) -> "DenseRows":
        """The block times a number."""
        return DenseRows(self.matrix * factor, self.num_scores)

    def select(self, start: int, stop: int | None) -> "DenseRows":
        """The rows that belong to scores start to stop."""
        chosen = range(self.num_scores)[start:stop]
        num_examples = len(self.matrix) // self.num_scores
        return DenseRows(self.matrix[chosen.start * num_examples : chosen.stop * num_examples], len(chosen))

    def merge(self, other: "DenseRows") -> "DenseRows":
        """The sum of two blocks of the same parameters."""
        return DenseRows(self.matrix + other.matrix, self.num_scores)


def mirror_upper(matrix: Float[Tensor, "R R"], width: int = 256) -> Float[Tensor, "R R"]:
    """Copy the upper triangle onto the lower one, in place and strip by strip; returns `matrix`."""
    for start in range(0, len(matrix), width):
        stop = start + width
        square = matrix[start:stop, start:stop]
        square.copy_(square.triu() + square.triu(1).mT)
        matrix[stop:, start:stop] = matrix[start:stop, stop:].mT
    return matrix
