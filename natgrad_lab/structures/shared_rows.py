"""Row blocks of layers whose weights are used at several positions of one example: sums over positions of outer products.

Rows are ordered k-major, as in `row_blocks`; S counts positions (time steps, pixels, calls of the same layer).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from natgrad_lab.shapes import Float, Int, Tensor
from natgrad_lab.structures.row_blocks import RowBlock

_CHUNK = 1 << 25  # numbers of a block formed at a time by add_gram and diagonal


@dataclass(frozen=True, eq=False, repr=False)
class SharedRows(RowBlock):
    """Row (k, n) is Σ_s scores[k, n, s] ⊗ inputs[n, s]: a Linear on sequences, a convolution on patches.

    Cost: N S D + K N S C numbers. Products 2 N S C D flops a column; with more than K columns, as for the Gram, the rows are
    formed, a few units at a time: 2 K N C D flops a column, and 2 K N S C D once.
    """

    inputs: Float[Tensor, "N S D"]
    scores: Float[Tensor, "K N S C"]

    def __post_init__(self):
        """Refuse shapes that do not fit together."""
        super().__post_init__()
        inputs, scores = tuple(self.inputs.shape), tuple(self.scores.shape)
        if len(inputs) != 3 or len(scores) != 4 or inputs[:2] != scores[1:3] or 0 in inputs + scores:
            raise ValueError(
                f"SharedRows needs inputs (N, S, D) and scores (K, N, S, C) with no size 0; got {inputs} and {scores}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(K N, C D)."""
        return self.scores.shape[0] * self.scores.shape[1], self.scores.shape[3] * self.inputs.shape[2]

    def rows(self, start: int, stop: int) -> Float[Tensor, "r P"]:
        """Rows start to stop, formed."""
        index = torch.arange(start, min(stop, self.shape[0]), device=self.device)
        scores = self.scores.flatten(0, 1)[index]  # (r, S, C)
        return torch.bmm(scores.mT, self.inputs[index % len(self.inputs)]).flatten(1)

    def add_gram(self, out: Float[Tensor, "R R"]) -> None:
        """Add B Bᵀ, summed over strips of units."""
        for strip in self._strips():
            out.addmm_(strip, strip.mT)

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "R *k"]:
        """B x: Σ_s scores[k, n, s]ᵀ X inputs[n, s]."""
        K, N, S, C = self.scores.shape
        if x.ndim == 2 and x.shape[1] > K:
            out, start = x.new_zeros(K * N, x.shape[1]), 0
            for strip in self._strips():
                out.addmm_(strip, x[start : start + strip.shape[1]])
                start += strip.shape[1]
            return out
        matrices = x.reshape(C, self.inputs.shape[2], -1)
        flat, lies_by_unit = self._by_example
        images = [self.inputs @ matrix.mT for matrix in matrices.unbind(2)]  # (N, S, C)
        images = [(image.mT if lies_by_unit else image).reshape(N, S * C, 1) for image in images]
        columns = [torch.bmm(flat, image).squeeze(2).mT.flatten() for image in images]
        return columns[0] if x.ndim == 1 else torch.stack(columns, 1)

    def rmatmul(self, v: Float[Tensor, "R *k"]) -> Float[Tensor, "P *k"]:
        """Bᵀ v: Σ_ns (Σ_k v[k, n] scores[k, n, s]) ⊗ inputs[n, s]."""
        K, N, S, C = self.scores.shape
        if v.ndim == 2 and v.shape[1] > K:
            return torch.cat([strip.mT @ v for strip in self._strips()])
        inputs = self.inputs.flatten(0, 1)
        weights = v.reshape(K, N, 1, -1).transpose(0, 1)
        flat, lies_by_unit = self._by_example
        sums = [torch.bmm(weight.mT, flat) for weight in weights.unbind(3)]
        sums = [each.view(N, C, S).mT if lies_by_unit else each.view(N, S, C) for each in sums]
        columns = [(each.reshape(N * S, C).mT @ inputs).flatten() for each in sums]
        return columns[0] if v.ndim == 1 else torch.stack(columns, 1)

    def diagonal(self) -> Float[Tensor, " P"]:
        """Squared norms of the columns."""
        return torch.cat([strip.square().sum(0) for strip in self._strips()])

    def columns(self, start: int, stop: int) -> Float[Tensor, "R p"]:
        """Columns start to stop: those of the units they lie in, cut."""
        (K, N, _, _), width = self.scores.shape, self.inputs.shape[2]
        first, last = start // width, -(-stop // width)
        formed = (self.scores[..., first:last].mT @ self.inputs).reshape(K * N, -1)
        return formed[:, start - first * width : stop - first * width]

    @property
    def product_flops(self) -> int:
        """N S C D."""
        return len(self.inputs) * self.inputs.shape[1] * self.shape[1]

    def scaled(self, factor: float) -> "SharedRows":
        """The block times a number."""
        return SharedRows(self.inputs, self.scores * factor)

    def select(self, start: int, stop: int | None) -> "SharedRows":
        """The rows of scores start to stop."""
        return SharedRows(self.inputs, self.scores[start:stop])

    def merge(self, other: "SharedRows") -> "SharedRows":
        """The sum of two blocks of the same parameters (two calls of one layer): their positions together."""
        return SharedRows(torch.cat([self.inputs, other.inputs], 1), torch.cat([self.scores, other.scores], 2))

    @property
    def _by_example(self) -> tuple[Float[Tensor, "N K SC"], bool]:
        """The scores of each example, without a copy: a convolution's lie by unit, (K, N, C, S), others by position."""
        lies_by_unit = self.scores.stride(3) > self.scores.stride(2)
        return (self.scores.mT if lies_by_unit else self.scores).flatten(2).transpose(0, 1), lies_by_unit

    def _strips(self):
        """The rows formed, a few units (columns c D to (c + step) D) at a time."""
        K, N, S, C = self.scores.shape
        step = max(1, _CHUNK // (K * N * self.inputs.shape[2]))
        for unit in range(0, C, step):
            scores = self.scores[..., unit : unit + step]
            yield (scores.mT @ self.inputs).reshape(K * N, -1)  # (K, N, c, D)


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddingRows(RowBlock):
    """Row (k, n) is Σ_s e_index[n, s] ⊗ scores[k, n, s]: an Embedding of V entries, whose input is one-hot and never formed.

    Positions with index −1 count nothing (padding).
    """

    scores: Float[Tensor, "K N S D"]
    index: Int[Tensor, "N S"]
    num_entries: int

    def map(self, fn: Callable[..., Tensor], *others: "EmbeddingRows") -> "EmbeddingRows":
        """Apply `fn` to the scores; the index only follows them to their device."""
        scores = fn(self.scores, *(other.scores for other in others))
        return EmbeddingRows(scores, self.index.to(scores.device), self.num_entries)

    def _parts(self):
        yield "scores", self.scores

    @property
    def shape(self) -> tuple[int, int]:
        """(K N, V D)."""
        return self.scores.shape[0] * self.scores.shape[1], self.num_entries * self.scores.shape[3]

    def rows(self, start: int, stop: int) -> Float[Tensor, "r P"]:
        """Rows start to stop, formed."""
        N, D = self.index.shape[0], self.scores.shape[3]
        which = torch.arange(start, min(stop, self.shape[0]), device=self.device)
        scores, index = self._masked.flatten(0, 1)[which], self.index.clamp(min=0)[which % N]
        out = scores.new_zeros(len(which), self.num_entries, D)
        return out.scatter_add_(1, index.unsqueeze(2).expand(-1, -1, D), scores).flatten(1)

    def add_gram(self, out: Float[Tensor, "R R"]) -> None:
        """Add B Bᵀ: products of the scores of equal entries, over strips of rows."""
        K, N, S, D = self.scores.shape
        step = max(1, _CHUNK // self.shape[1])
        for start in range(0, K * N, step):
            for column in range(0, K * N, step):
                block = self.rows(start, start + step) @ self.rows(column, column + step).mT
                out[start : start + step, column : column + step] += block

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "R *k"]:
        """B x: Σ_s scores[k, n, s]ᵀ X[index[n, s]]."""
        D = self.scores.shape[3]
        chosen = x.reshape(self.num_entries, D, -1)[self.index.clamp(min=0)]  # (N, S, D, k)
        return torch.einsum("knsd,nsdj->knj", self._masked, chosen).flatten(0, 1).reshape(-1, *x.shape[1:])

    def rmatmul(self, v: Float[Tensor, "R *k"]) -> Float[Tensor, "P *k"]:
        """Bᵀ v."""
        K, N, S, D = self.scores.shape
        weighted = torch.einsum("knj,knsd->nsdj", v.reshape(K, N, -1), self._masked).flatten(0, 1)
        out = weighted.new_zeros(self.num_entries, *weighted.shape[1:])
        return out.index_add_(0, self.index.clamp(min=0).flatten(), weighted).reshape(self.shape[1], *v.shape[1:])

    def diagonal(self) -> Float[Tensor, " P"]:
        """Squared norms of the columns."""
        step = max(1, _CHUNK // self.shape[1])
        strips = (self.rows(start, start + step) for start in range(0, self.shape[0], step))
        return sum(strip.square().sum(0) for strip in strips)

    def columns(self, start: int, stop: int) -> Float[Tensor, "R p"]:
        """Columns start to stop: those of the entries they lie in, cut."""
        (K, N, _, D) = self.scores.shape
        first, last = start // D, -(-stop // D)
        formed = self.scores.new_zeros(K, N, last - first, D)
        for entry in range(first, last):
            formed[:, :, entry - first] = (self.scores * (self.index == entry).unsqueeze(-1)).sum(2)
        return formed.reshape(K * N, -1)[:, start - first * D : stop - first * D]

    def scaled(self, factor: float) -> "EmbeddingRows":
        """The block times a number."""
        return EmbeddingRows(self.scores * factor, self.index, self.num_entries)

    def select(self, start: int, stop: int | None) -> "EmbeddingRows":
        """The rows of scores start to stop."""
        return EmbeddingRows(self.scores[start:stop], self.index, self.num_entries)

    def merge(self, other: "EmbeddingRows") -> "EmbeddingRows":
        """The sum of two blocks of the same parameters."""
        index = torch.cat([self.index, other.index], 1)
        return EmbeddingRows(torch.cat([self.scores, other.scores], 2), index, self.num_entries)

    @property
    def _masked(self) -> Tensor:
        return self.scores * (self.index >= 0).unsqueeze(-1)


@dataclass(frozen=True, eq=False, repr=False)
class ConcatRows(RowBlock):
    """Blocks side by side: the groups of a grouped convolution, weight and bias of a normalization."""

    blocks: tuple[RowBlock, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(K N, all columns)."""
        return self.blocks[0].shape[0], sum(block.shape[1] for block in self.blocks)

    def rows(self, start: int, stop: int) -> Float[Tensor, "r P"]:
        """Rows start to stop, formed."""
        return torch.cat([block.rows(start, stop) for block in self.blocks], 1)

    def add_gram(self, out: Float[Tensor, "R R"]) -> None:
        """Add every block's B Bᵀ."""
        for block in self.blocks:
            block.add_gram(out)

    def matmul(self, x: Float[Tensor, "P *k"]) -> Float[Tensor, "R *k"]:
        """B x."""
        parts = x.split([block.shape[1] for block in self.blocks])
        return sum(block.matmul(part) for block, part in zip(self.blocks, parts, strict=True))

    def rmatmul(self, v: Float[Tensor, "R *k"]) -> Float[Tensor, "P *k"]:
        """Bᵀ v."""
        return torch.cat([block.rmatmul(v) for block in self.blocks])

    def diagonal(self) -> Float[Tensor, " P"]:
        """Squared norms of the columns."""
        return torch.cat([block.diagonal() for block in self.blocks])

    def columns(self, start: int, stop: int) -> Float[Tensor, "R p"]:
        """Columns start to stop."""
        parts, offset = [], 0
        for block in self.blocks:
            low, high = max(start - offset, 0), min(stop - offset, block.shape[1])
            if low < high:
                parts.append(block.columns(low, high))
            offset += block.shape[1]
        return torch.cat(parts, 1)

    def scaled(self, factor: float) -> "ConcatRows":
        """The block times a number."""
        return ConcatRows(tuple(block.scaled(factor) for block in self.blocks))

    def select(self, start: int, stop: int | None) -> "ConcatRows":
        """The rows of scores start to stop."""
        return ConcatRows(tuple(block.select(start, stop) for block in self.blocks))

    def merge(self, other: "ConcatRows") -> "ConcatRows":
        """The sum of two blocks of the same parameters."""
        return ConcatRows(tuple(one.merge(two) for one, two in zip(self.blocks, other.blocks, strict=True)))
