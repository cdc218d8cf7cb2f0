"""What an estimate or a solve did behind the scenes: seconds, factorizations, eigenvalues set to 0, warnings."""

import time
import warnings
from dataclasses import dataclass, field

import torch
from torch.overrides import TorchFunctionMode

_FACTORIZATIONS = {
    torch.linalg.cholesky, torch.linalg.cholesky_ex, torch.linalg.eigh, torch.linalg.eigvalsh, torch.linalg.svd,
    torch.linalg.svdvals, torch.linalg.qr, torch.linalg.inv, torch.linalg.inv_ex, torch.linalg.solve, torch.linalg.solve_ex,
    torch.linalg.lu_factor, torch.linalg.lu_factor_ex, torch.linalg.ldl_factor, torch.linalg.lstsq, torch.linalg.pinv,
    torch.linalg.eig, torch.cholesky_inverse,
}  # fmt: skip


@dataclass
class Work:
    """What was seen.

    Attributes:
        seconds: wall time.
        factorizations: matrices factored (a batched call counts each of its matrices).
        clamped: eigenvalues below 0 that a decomposition of a psd matrix returned; rounding, set to 0 by the package.
        most_negative: the most negative of them relative to the largest eigenvalue beside it, as a positive number.
        warnings: their texts, each once.
    """

    seconds: float = 0.0
    factorizations: int = 0
    clamped: int = 0
    most_negative: float = 0.0
    warnings: list[str] = field(default_factory=list)


class watch(TorchFunctionMode):
    """`with watch() as work:` counts what goes through torch.linalg and catches warnings instead of printing them."""

    def __enter__(self) -> Work:
        """Begin."""
        self.work = Work()
        self._catch = warnings.catch_warnings(record=True)
        self._caught = self._catch.__enter__()
        warnings.simplefilter("always")
        self._started = time.perf_counter()
        super().__enter__()
        return self.work

    def __exit__(self, *error):
        """End; exceptions pass."""
        super().__exit__(*error)
        self.work.seconds += time.perf_counter() - self._started
        self._catch.__exit__(*error)
        self.work.warnings.extend(dict.fromkeys(str(each.message) for each in self._caught))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Look at one call."""
        result = function(*args, **(kwargs or {}))
        if function in _FACTORIZATIONS and args:
            self.work.factorizations += max(1, args[0].shape[:-2].numel())
        if function in (torch.linalg.eigh, torch.linalg.eigvalsh):
            values = result if isinstance(result, torch.Tensor) else result[0]
            self._look_for_negative(values)
        return result

    def _look_for_negative(self, values: torch.Tensor) -> None:
        with torch._C.DisableTorchFunction():
            negative = values < 0
            if bool(negative.any()):
                largest = values.abs().amax(-1, keepdim=True)
                self.work.clamped += int(negative.sum())
                self.work.most_negative = max(self.work.most_negative, float((-values / largest).max()))
