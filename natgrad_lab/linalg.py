"""Solving with symmetric positive semidefinite matrices: tensors in, tensors out, no network and no structure in sight.

One convention: a result is for matrix + damping I exactly, or an error or a NumericalWarning says what else was done.
`dim * eps * largest` is the size of what rounding alone adds to a pivot or an eigenvalue; below it nothing tells a
number from 0.
"""

import math
import warnings
from collections.abc import Callable
from numbers import Real

import torch

from natgrad_lab.errors import NotPositiveDefiniteError, NumericalWarning
from natgrad_lab.shapes import Float, Tensor

JITTER_TRIES = 4
_SMALL = 128  # up to here a second copy costs less than naming where the result goes
_DIAGNOSE_DIM = 1000  # up to here a failed factorization is explained by an eigenvalue, which above costs seconds


def keep_freed_memory() -> None:
    """Let this process keep up to 64 MiB that it has freed, where the C library is glibc; nothing happens elsewhere.

    glibc hands freed memory back to the system at once until a larger block was freed, so that every temporary of a few MB is
    paged in anew, page by page: a tenth of a K-FAC step with 536k parameters. One untouched block, made and freed, raises
    that bound. Called when this module is imported.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


keep_freed_memory()


def check_damping(damping: Real) -> float:
    """Return `damping` as a float, refusing negative and non-finite ones."""
    value = float(damping)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(
            f"damping must be a finite number >= 0; got {damping}. It is added to the diagonal: 0 asks for the "
            "undamped system, 1e-3 is a usual start."
        )
    return value


def check_finite(tensor: Tensor, name: str) -> None:
    """Refuse nan and inf. One pass over the numbers: their sum is finite unless one of them, or the sum, is not."""
    if not torch.isfinite(tensor.sum()) and not (finite := torch.isfinite(tensor)).all():
        where = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(
            f"{name} must hold finite numbers; got {int((~finite).sum())} of {tensor.numel()} that are nan or inf, the "
            f"first at {where}. Look for a diverged run, or for nan in inputs or weights."
        )


def symmetrize(matrix: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    """(M + Mᵀ) / 2: takes away the asymmetry that rounding leaves."""
    return (matrix + matrix.mT) / 2


def rounding_level(dim: int, largest: Tensor) -> Tensor:
    """Size of the error that rounding alone leaves in a pivot or an eigenvalue: dim * eps * largest."""
    return dim * torch.finfo(largest.dtype).eps * largest.abs()


def zero_level(dim: int, largest: Tensor) -> float:
    """Below it a pivot or an eigenvalue counts as zero: ten rounding levels, because the matrix itself, a sum, carries some."""
    return 10 * rounding_level(dim, largest).item()


def check_symmetric(matrix: Float[Tensor, "m m"]) -> None:
    """Refuse an asymmetric matrix: Cholesky and eigh would silently read one triangle of it.

    Compares Mv with Mᵀv for one fixed v without special structure: two passes, no copy of the matrix.
    """
    probe = torch.cos(torch.arange(1, len(matrix) + 1, dtype=matrix.dtype, device=matrix.device))
    forward, backward = matrix @ probe, matrix.mT @ probe
    tolerance = math.sqrt(torch.finfo(matrix.dtype).eps) * torch.linalg.vector_norm(matrix) * probe.norm()
    if (difference := (forward - backward).norm()) > tolerance:
        raise ValueError(
            f"the matrix must be symmetric; M v and Mᵀ v differ by {difference.item():.3g}. Pass it through "
            "linalg.symmetrize if the asymmetry is meant to be averaged away."
        )


def damped_cholesky(matrix: Float[Tensor, "m m"], damping: Real = 0.0) -> Float[Tensor, "m m"]:
    """Lower Cholesky factor of matrix + damping I.

    In exact arithmetic every pivot is at least `damping`. With damping 0 a pivot within ten rounding levels counts as
    zero and the matrix is refused, even where Cholesky passes by luck. With damping > 0 a pivot below damping / 2 means
    that rounding has eaten the damping: a jitter of eps times the largest diagonal entry, then 10, 100, 1000 times
    that, is added and stated in a NumericalWarning.

    Raises: NotPositiveDefiniteError if that does not help; ValueError for non-finite or asymmetric input.
    """
    damping = check_damping(damping)
    check_finite(matrix, "matrix")
    check_symmetric(matrix)
    largest = matrix.diagonal().abs().max() + damping
    factor, smallest = _try_cholesky(matrix, damping)
    if damping == 0:
        if smallest is None or smallest <= zero_level(len(matrix), largest):
            raise _singular(matrix, damping, smallest, largest)
        return factor
    jitter = 0.0
    for attempt in range(JITTER_TRIES):
        if smallest is not None and smallest >= (damping + jitter) / 2:
            break
        jitter = (torch.finfo(matrix.dtype).eps * largest).item() * 10**attempt
        factor, smallest = _try_cholesky(matrix, damping + jitter)
    if smallest is None or smallest < (damping + jitter) / 2:
        raise _singular(matrix, damping, smallest, largest)
    if jitter:
        warnings.warn(
            f"rounding ({matrix.dtype}) left a {len(matrix)} x {len(matrix)} matrix indefinite at damping "
            f"{damping:.3g}; jitter {jitter:.3g} was added, so the result is for damping {damping + jitter:.3g}. Use "
            "float64 or a larger damping.",
            NumericalWarning,
            stacklevel=2,
        )
    return factor


def _try_cholesky(matrix: Tensor, shift: float) -> tuple[Tensor, Tensor | None]:
    """Factor of matrix + shift I and its smallest pivot; None for the pivot if the factorization broke down."""
    factor, failed = shifted_cholesky(matrix, shift)
    return factor, None if failed else factor.diagonal().square().min()


def shifted_cholesky(matrix: Float[Tensor, "m m"], shift: Real) -> tuple[Float[Tensor, "m m"], bool]:
    """Lower factor of matrix + shift I as Cholesky leaves it, in the memory of one copy, and whether it broke down."""
    shifted = matrix.clone().mT  # columns contiguous, as LAPACK wants them; symmetric, so nothing changes
    shifted.diagonal().add_(shift)
    if len(matrix) <= _SMALL:
        factor, info = torch.linalg.cholesky_ex(shifted)
        return factor, bool(info.item())
    info = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(shifted, out=(shifted, info))
    return shifted, bool(info.item())


def _singular(matrix: Tensor, damping: float, pivot: Tensor | None, largest: Tensor) -> NotPositiveDefiniteError:
    """Describe why a factorization is refused."""
    if pivot is not None:
        size = f"its smallest pivot is {pivot.item():.3g}"
    elif len(matrix) <= _DIAGNOSE_DIM:
        size = f"its smallest eigenvalue is {torch.linalg.eigvalsh(matrix)[0].item() + damping:.3g}"
    else:
        size = "its Cholesky factorization breaks down"
    return not_positive_definite(len(matrix), size, damping, zero_level(len(matrix), largest))


def not_positive_definite(dim: int, size: str, damping: float, level: float) -> NotPositiveDefiniteError:
    """Build the one message for a system that cannot be inverted."""
    advice = "give more damping, or use float64" if damping else "give damping > 0 (or more, if it was damped before)"
    return NotPositiveDefiniteError(
        f"a {dim} x {dim} system at damping {damping:.3g} is singular to working precision: {size}, and anything up to "
        f"{level:.3g} (10 * dim * eps * largest) is rounding. Its inverse does not exist numerically; {advice}."
    )


def cholesky_solve(factor: Float[Tensor, "m m"], x: Float[Tensor, "m *k"]) -> Float[Tensor, "m *k"]:
    """(L Lᵀ)⁻¹ x for a vector or several columns; unlike PyTorch's it makes no copy of L, which costs more than one column."""
    half = torch.linalg.solve_triangular(factor, x.reshape(len(x), -1), upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True).reshape(x.shape)


def psd_solve(matrix: Float[Tensor, "m m"], x: Float[Tensor, "m *k"], damping: Real = 0.0) -> Float[Tensor, "m *k"]:
    """(matrix + damping I)⁻¹ x by Cholesky; refuses and warns as `damped_cholesky` does."""
    return cholesky_solve(damped_cholesky(matrix, damping), x)


def psd_eigh(matrix: Float[Tensor, "m m"]) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
    """Ascending eigenvalues and the eigenvectors (columns) of a psd matrix; negative values within rounding become 0.

    Where the solver does not converge in the matrix' own precision, float64 is tried before giving up.
    Raises: NotPositiveDefiniteError if an eigenvalue is negative beyond rounding.
    """
    check_finite(matrix, "matrix")
    check_symmetric(matrix)
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        values, vectors = (part.to(matrix.dtype) for part in torch.linalg.eigh(symmetrize(matrix.double())))
    return clamp_spectrum(values), vectors


def psd_eigvalsh(matrix: Float[Tensor, "m m"]) -> Float[Tensor, " m"]:
    """Ascending eigenvalues alone: about a third of the work of `psd_eigh`, the same rules."""
    check_finite(matrix, "matrix")
    check_symmetric(matrix)
    try:
        values = torch.linalg.eigvalsh(matrix)
    except torch.linalg.LinAlgError:
        values = torch.linalg.eigvalsh(symmetrize(matrix.double())).to(matrix.dtype)
    return clamp_spectrum(values)


def clamp_spectrum(eigenvalues: Float[Tensor, "*m"]) -> Float[Tensor, "*m"]:
    """Set negatives within ten rounding levels to 0 (the matrix carries rounding too); refuse other negative ones."""
    level = zero_level(eigenvalues.numel(), eigenvalues.abs().max())
    if (smallest := eigenvalues.min().item()) < -level:
        raise NotPositiveDefiniteError(
            f"a positive semidefinite matrix has no negative eigenvalues; this one of dimension {eigenvalues.numel()} "
            f"has {smallest:.3g}, and rounding explains only {-level:.3g}. Check how it was made: it is not an average "
            "of outer products."
        )
    return eigenvalues.clamp(min=0)


def invertible_spectrum(eigenvalues: Float[Tensor, "*m"], damping: Real = 0.0) -> Float[Tensor, "*m"]:
    """Eigenvalues + damping, all positive; with damping 0 those within ten rounding levels count as 0: refused."""
    damping = check_damping(damping)
    spectrum = clamp_spectrum(eigenvalues) + damping
    level = zero_level(spectrum.numel(), spectrum.max()) if damping == 0 else 0.0
    if (smallest := spectrum.min().item()) <= level:
        raise not_positive_definite(spectrum.numel(), f"its smallest eigenvalue is {smallest:.3g}", damping, level)
    return spectrum


def spectrum_power(eigenvalues: Float[Tensor, "*m"], p: Real, damping: Real = 0.0) -> Float[Tensor, "*m"]:
    """(eigenvalues + damping)^p; a negative p needs an invertible spectrum."""
    if not math.isfinite(p):
        raise ValueError(f"the power p must be a finite number; got {p}. -1 is the inverse, 0.5 the square root.")
    if p < 0:
        return invertible_spectrum(eigenvalues, damping).pow(p)
    return (clamp_spectrum(eigenvalues) + check_damping(damping)).pow(p)


def cg(
    matmul: Callable[[Tensor], Tensor],
    b: Float[Tensor, "P *k"],
    damping: Real = 0.0,
    tolerance: Real = 1e-6,
    max_steps: int = 1000,
) -> tuple[Float[Tensor, "P *k"], float, int]:
    """Conjugate gradients for (M + damping I) x = b from products with M alone, each column of b on its own.

    Returns: x, the true relative residual ‖(M + damping I)x - b‖ / ‖b‖ (of the worst column), and the steps taken.
    Stopping above `tolerance` is stated in a NumericalWarning.
    Cost: one product a step, one more for the residual. Steps grow with the square root of the condition number.
    """
    damping = check_damping(damping)
    check_finite(b, "b")
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    squared = residual.square().sum(0)
    one, steps = torch.ones_like(squared), 0
    scale = squared.sqrt().where(squared > 0, one)
    while steps < max_steps and (squared.sqrt() / scale).max() > tolerance:
        image = matmul(direction) + damping * direction
        curvature = (direction * image).sum(0)
        active = squared > 0
        if not (curvature[active] > 0).all():
            raise not_positive_definite(len(b), f"cg met curvature {curvature[active].min().item():.3g}", damping, 0.0)
        length = torch.where(active, squared / curvature.where(active, one), 0)
        x, residual = x + length * direction, residual - length * image
        previous, squared = squared, residual.square().sum(0)
        direction = residual + torch.where(active, squared / previous.where(active, one), 0) * direction
        steps += 1
    error = ((matmul(x) + damping * x - b).norm(dim=0) / scale).max().item()
    if not error <= 2 * tolerance:
        warnings.warn(
            f"cg stopped after {steps} steps at relative residual {error:.3g}; {tolerance:.3g} was asked for. Allow "
            "more steps or more damping.",
            NumericalWarning,
            stacklevel=2,
        )
    return x, error, steps
