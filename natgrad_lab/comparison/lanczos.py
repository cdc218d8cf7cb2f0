"""The largest eigenvalue of a matrix known by its products, with the residual that bounds its error.

Lanczos with every vector kept orthogonal to all before it, restarted from the best vector so far. The operator is
self-adjoint in an inner product xᵀB y of choice: B⁻¹A in the inner product B is the pencil (A, B), and nothing is factored
that the caller has not factored.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from natgrad_lab.shapes import Float, Tensor

TOLERANCE = 1e-5  # relative residual; the eigenvalue itself is off by its square over the gap, usually
ROUGH = 1e-3  # relative residual that is enough where products are dear
_NUMBERS = 2**25  # in the vectors that are kept: 256 MiB in float64
_RESTARTS = 12
_CHECK = 6  # products between looks at the error
_PATIENCE = 20.0  # seconds after which the best so far is taken, with the error it has


@dataclass(frozen=True)
class Extreme:
    """An eigenvalue of largest magnitude; a true eigenvalue is within `error` of it."""

    value: float
    error: float

    @property
    def is_rough(self) -> bool:
        """Whether the third digit is in doubt."""
        return self.error > ROUGH * abs(self.value)


def largest_eigenvalue(
    apply: Callable[[Tensor], Tensor],
    like: Float[Tensor, " P"],
    metric: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = TOLERANCE,
) -> Extreme:
    """Eigenvalue of largest magnitude of the operator `apply`, self-adjoint in xᵀ metric(y), or in xᵀy without one.

    Args:
        like: a vector of the length, dtype and device to work in; its numbers are not used.
        tolerance: relative error to stop at.
    Cost: up to 12 times m products, 2 P m numbers, m at most 60.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(like), generator=generator, dtype=like.dtype).to(like.device)
    steps = max(2, min(len(like), 60, _NUMBERS // len(like)))
    best, begun = Extreme(0.0, float("inf")), time.monotonic()
    for _ in range(_RESTARTS):
        best, start = _lanczos(apply, start, metric or (lambda x: x), steps, tolerance)
        if best.error <= tolerance * abs(best.value) or time.monotonic() - begun > _PATIENCE:
            break
    return best


def _lanczos(
    apply: Callable[[Tensor], Tensor], start: Tensor, metric: Callable[[Tensor], Tensor], steps: int, tolerance: float
) -> tuple[Extreme, Tensor]:
    """The best pair after at most `steps` products, fewer if it is good enough before."""
    basis, images = start.new_empty(steps, len(start)), start.new_empty(steps, len(start))
    diagonal: list[float] = []
    beside: list[float] = []
    w, image = start, metric(start)
    length = float((w @ image).clamp(min=0).sqrt())
    if length == 0:
        return Extreme(0.0, 0.0), start
    while True:
        k = len(diagonal)
        basis[k], images[k] = w / length, image / length
        w = apply(basis[k])
        diagonal.append(float(w @ images[k]))
        for _ in range(2):  # what rounding left of the earlier vectors goes the second time
            w = w - basis[: k + 1].mT @ (images[: k + 1] @ w)
        image = metric(w)
        length = float((w @ image).clamp(min=0).sqrt())
        last = k + 1 == steps or length <= 1e-14 * max(map(abs, diagonal + beside))
        if last or k % _CHECK == _CHECK - 1:
            best, vector = _ritz(diagonal, beside, length)
            if last or best.error <= tolerance * abs(best.value):
                return best, vector.to(basis) @ basis[: k + 1]
        beside.append(length)


def _ritz(diagonal: list[float], beside: list[float], length: float) -> tuple[Extreme, Tensor]:
    """The eigenvalue of largest magnitude of the tridiagonal matrix so far, its error, and its vector."""
    off = torch.tensor(beside, dtype=torch.float64)
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(tridiagonal)
    best = int(values.abs().argmax())
    return Extreme(float(values[best]), length * abs(float(vectors[-1, best]))), vectors[:, best]
