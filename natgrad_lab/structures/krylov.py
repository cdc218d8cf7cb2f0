"""Approximations of a matrix from a few of its products: Lanczos, conjugate gradients, leading eigenvectors.

Lanczos from a vector g spans g, M g, ..., M^(k-1) g with an orthonormal basis V. The structure V (VᵀM V) Vᵀ is linear and
psd, and solving *with g itself* gives k steps of conjugate gradients on (M + λI) x = g, for every λ at once. With another
right-hand side it does not: k steps of conjugate gradients are no linear function of the right-hand side.
"""

import warnings
from numbers import Real

import torch

from natgrad_lab.errors import NumericalWarning
from natgrad_lab.linalg import check_finite, invertible_spectrum, psd_eigh, symmetrize
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures.base import StructuredMatrix
from natgrad_lab.structures.low_rank import LowRank

_POWERS = 4  # products of a block with M before the basis is renewed
_RESTARTS = 60
_TOLERANCE = 1e-10  # residual of an eigenpair, relative to the largest eigenvalue; eigenvalues are off by its square


def krylov_solve(
    matrix: StructuredMatrix, x: Float[Tensor, "P *k"], damping: Real = 0.0, steps: int = 10
) -> Float[Tensor, "P *k"]:
    """`steps` of conjugate gradients from 0 on (M + damping I) v = x, each column on its own.

    The best approximation, in the norm of M + damping I, from x, M x, ..., M^(steps-1) x. Exact once the steps are as many as
    M has different nonzero eigenvalues (and one more if x has a part outside M's range). Not linear in x.
    Cost: `steps` products, and as many vectors.
    """
    solved = []
    for column in x.reshape(len(x), -1).unbind(1):
        space = lanczos(matrix, column, steps)
        inside = space.basis.mT @ column
        scale = invertible_spectrum(space.eigenvalues, damping) if len(inside) else inside
        solved.append(space.basis @ (inside / scale))
    return torch.stack(solved, 1).reshape(x.shape)


def lanczos(matrix: StructuredMatrix, start: Float[Tensor, " P"], steps: int) -> LowRank:
    """V (VᵀM V) Vᵀ with V the basis of start, M start, ..., M^(steps-1) start; fewer if these become dependent.

    Its nonzero eigenvalues (Ritz values) interlace M's. Equal to M if the span holds M's range.
    Cost: `steps` products; steps · P numbers.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a positive integer; got {steps!r}.")
    check_finite(start, "start")
    wide = start.double()
    if not wide.any():
        return LowRank(start.new_zeros(len(start), 0), start.new_zeros(0), start.new_zeros(()))
    basis = [wide / wide.norm()]
    images: list[Tensor] = []
    largest = 0.0
    for _ in range(steps):
        image = matrix.matmul(basis[-1].to(matrix.dtype)).double()
        images.append(image)
        largest = max(largest, image.norm().item())
        V = torch.stack(basis, 1)
        rest = image
        for _ in range(2):  # what rounding left of the earlier vectors goes the second time
            rest = rest - V @ (V.mT @ rest)
        if len(basis) in (steps, len(start)) or rest.norm() <= 1e3 * torch.finfo(matrix.dtype).eps * largest:
            break
        basis.append(rest / rest.norm())
    return _ritz(torch.stack(basis, 1), torch.stack(images, 1), start.dtype)


def leading_eigenpairs(matrix: StructuredMatrix, rank: int) -> LowRank:
    """The `rank` largest eigenpairs of M by products alone: block Krylov spaces, restarted until the residuals are small.

    Multiple eigenvalues are found (blocks are wider than `rank`); where eigenvalue rank + 1 equals eigenvalue rank, which
    vectors of their eigenspace are kept is arbitrary. Warns with the residual if it stays above 1e-10 of the largest one.
    Cost: some 5 (rank + 10) products a restart, usually a few of them; 5 (rank + 10) P numbers.
    """
    width = min(rank + 10, matrix.dim)
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(matrix.dim, width, generator=generator, dtype=torch.float64).to(matrix.device)
    tolerance = max(_TOLERANCE, 100 * torch.finfo(matrix.dtype).eps)
    for _ in range(_RESTARTS):
        pieces = [block]
        for _ in range(_POWERS if (_POWERS + 1) * width < matrix.dim else 0):
            pieces.append(torch.linalg.qr(matrix.matmul(pieces[-1].to(matrix.dtype)).double()).Q)
        V = torch.linalg.qr(torch.cat(pieces, 1)).Q
        images = matrix.matmul(V.to(matrix.dtype)).double()
        values, vectors = psd_eigh(symmetrize(V.mT @ images))
        values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
        block = V @ vectors
        residual = (images @ vectors - block * values)[:, :rank].norm(dim=0).max().item()
        if residual <= tolerance * values[0].item():
            break
    else:
        warnings.warn(
            f"the {rank} leading eigenpairs have a residual of {residual / values[0].item():.1e}, relative to the largest "
            f"eigenvalue; {tolerance:.0e} was aimed at. Ask for a rank at a gap of the spectrum.",
            NumericalWarning,
            stacklevel=2,
        )
    return truncated(LowRank(*(t.to(matrix.dtype) for t in (block, values, values.new_zeros(())))), rank)


def truncated(matrix: LowRank, rank: int) -> LowRank:
    """The eigenpairs with the `rank` largest of the eigenvalues that are not 0; the same rest."""
    order = matrix.eigenvalues.argsort(descending=True)[:rank]
    order = order[matrix.eigenvalues[order] > 0]
    return LowRank(matrix.basis[:, order], matrix.eigenvalues[order], matrix.rest, note=matrix.note)


def _ritz(V: Float[Tensor, "P s"], images: Float[Tensor, "P s"], dtype: torch.dtype) -> LowRank:
    values, vectors = psd_eigh(symmetrize(V.mT @ images))
    basis = V @ vectors.flip(1)
    return LowRank(basis.to(dtype), values.flip(0).to(dtype), values.new_zeros((), dtype=dtype))
