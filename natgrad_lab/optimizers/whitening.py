"""White inputs for a layer: which layers, the statistics of what they see, and the coordinates (V, d) in place of (W, b).

With U(h − c) for the input h, the layer is V U (h − c) + d: the same function for W = V U and b = d − W c, whatever U and c.
A convolution has one matrix W_k for every place k of its kernel and whitens across channels, pixels being its samples. Its
zero padding stays the zero of h, so that −U c is what V is applied to there. Weights are handled as (out, K, D) tensors, K
places of D input channels (K = 1 for a Linear layer), and biases as (out,), zero where there is none.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from natgrad_lab.errors import NonFiniteError, NotPositiveDefiniteError, NumericalWarning, UnsupportedLayerError
from natgrad_lab.linalg import invertible_spectrum, psd_eigh
from natgrad_lab.names import called, known
from natgrad_lab.parameters import Layer, ParameterLayout
from natgrad_lab.shapes import Float, Tensor

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
_SPATIAL = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


@dataclass(frozen=True, eq=False)
class Whitening:
    """U and c of one layer, and U⁻¹."""

    U: Float[Tensor, "D D"]
    U_inverse: Float[Tensor, "D D"]
    c: Float[Tensor, " D"]

    def whiten(self, inputs: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """U(h − c) for rows h."""
        return (inputs - self.c) @ self.U.mT

    def into(self, W: Float[Tensor, "out K D"], b: Float[Tensor, " out"]) -> tuple[Tensor, Tensor]:
        """(W, b) → (V, d): V = W U⁻¹, d = b + Σ_k W_k c. Linear, so differences and velocities map alike."""
        return W @ self.U_inverse, b + W.sum(1) @ self.c

    def back(self, V: Float[Tensor, "out K D"], d: Float[Tensor, " out"]) -> tuple[Tensor, Tensor]:
        """(V, d) → (W, b): W = V U, b = d − Σ_k W_k c."""
        W = V @ self.U
        return W, d - W.sum(1) @ self.c


@dataclass(frozen=True, eq=False)
class InputMetric:
    """What descent on (V, d) is for (W, b): a symmetric matrix Σ, and the damped inverse that descent multiplies by, around c.

    Both are products L diag(values) Rᵀ, or one matrix and `values` None.
    """

    c: Float[Tensor, " D"]
    covariance: tuple[Tensor, Tensor | None]
    inverse: tuple[Tensor, Tensor | None]

    def direction(self, W: Float[Tensor, "out K D"], b: Float[Tensor, " out"]) -> tuple[Tensor, Tensor]:
        """Of a step, from the gradients by W and b."""
        W = _times(W - b[:, None, None] * self.c, *self.inverse)
        return W, b - W.sum(1) @ self.c

    def product(self, W: Float[Tensor, "out K D"], b: Float[Tensor, " out"]) -> tuple[Tensor, Tensor]:
        """The undamped metric [[Σ + ccᵀ, c], [cᵀ, 1]] (Σ at equal places of a kernel, ccᵀ at all) times [W | b]."""
        d = b + W.sum(1) @ self.c
        return _times(W, *self.covariance) + d[:, None, None] * self.c, d

    def factor(self, places: int, has_bias: bool) -> Float[Tensor, "columns columns"]:
        """That matrix, formed, in the order of a weight's columns (channels slowest)."""
        eye = torch.eye(len(self.c), dtype=self.c.dtype, device=self.c.device)
        covariance = _times(eye, *self.covariance)
        mean = torch.cat([self.c.repeat_interleave(places), self.c.new_ones(int(has_bias))])
        A, size = torch.outer(mean, mean), places * len(covariance)
        A[:size, :size] += torch.kron(covariance, torch.eye(places, dtype=A.dtype, device=A.device))
        return A


def _times(x: Tensor, matrix: Tensor, values: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]) @ matrix  # as one product of matrices, whatever the strides
    return (rows if values is None else (rows * values) @ matrix.mT).view(x.shape)


@dataclass(frozen=True, eq=False)
class InputMoments:
    """Mean and covariance E diag(eigenvalues) Eᵀ of a layer's inputs, float64.

    A layer that trains no bias cannot take up a mean: not `centred`, its moments are those about 0, and `mean` is 0.
    """

    mean: Float[Tensor, " D"]
    eigenvalues: Float[Tensor, " D"]
    eigenvectors: Float[Tensor, "D D"]
    centred: bool

    @staticmethod
    def of(samples: Float[Tensor, "R D"], centred: bool, name: str) -> "InputMoments":
        """Moments of R samples, divided by R. Raises: NonFiniteError where they overflow."""
        samples = samples.double()
        mean = samples.mean(0) if centred else samples.new_zeros(samples.shape[1])
        covariance = (samples - mean).mT @ (samples - mean) / len(samples)
        if not torch.isfinite(covariance).all():
            raise NonFiniteError(f"the covariance of the inputs of layer {name!r} is not finite: training has diverged.")
        return InputMoments(mean, *psd_eigh(covariance), centred)

    def whitening(self, damping: float, dtype: torch.dtype, name: str) -> Whitening:
        """U = diag(λ + damping)^-½ Eᵀ and c = mean: UᵀU = (Σ + damping I)⁻¹, and U(h − c) has variances λ/(λ + damping).

        Raises: NotPositiveDefiniteError for damping 0 where a direction has no variance at the precision of `dtype`.
        Warns: NumericalWarning where the damping is below that precision and a direction has no variance.
        """
        try:
            invertible_spectrum(self.eigenvalues.to(dtype), damping)
        except NotPositiveDefiniteError as error:
            raise NotPositiveDefiniteError(
                f"the inputs of layer {name!r} cannot be whitened: a direction of them has no variance (dead or constant "
                f"units, or fewer samples than units). Their covariance, {error}"
            ) from error
        smallest, largest = float(self.eigenvalues[0]), float(self.eigenvalues[-1])
        if 0 < damping and max(damping, smallest) < torch.finfo(dtype).eps * largest:
            warnings.warn(
                f"the inputs of layer {name!r} have variances from {smallest:.1e} to {largest:.1e}, and the damping "
                f"{damping:.1e} is below the rounding of {dtype}: steps along the smallest are noise. Raise the damping.",
                NumericalWarning,
                stacklevel=2,
            )
        root = (self.eigenvalues + damping).sqrt()
        parts = ((self.eigenvectors / root).mT, self.eigenvectors * root, self.mean)
        return Whitening(*(part.to(dtype).contiguous() for part in parts))

    def metric(self, damping: float, dtype: torch.dtype) -> InputMetric:
        """Of PRONG: Σ and (Σ + damping I)⁻¹."""
        spectra = (self.eigenvalues, 1 / (self.eigenvalues + damping))
        both = ((((self.eigenvectors * values) @ self.eigenvectors.mT).to(dtype), None) for values in spectra)
        return InputMetric(self.mean.to(dtype), *both)


def whitened_layers(layout: ParameterLayout, plain: Sequence[str] = ()) -> tuple[Layer, ...]:
    """The layers with trainable weights whose inputs are whitened: Linear and Conv1d, Conv2d, Conv3d without groups.

    Normalizations and PReLU have no matrix and keep their parameters, and so does every module that `plain` names (with what
    is inside it); these get the plain gradient. Frozen layers stay as they are.
    Raises: UnsupportedLayerError for any other layer; ValueError for a name in `plain` that no module has.
    """
    for name in plain:
        known(name, [each for each, _ in layout.model.named_modules()], "module of the model named")
    found = []
    for layer in layout.layers:
        name, kind = layer.module_name or layer.name, type(layer.module)
        if any(name == each or (each and name.startswith(f"{each}.")) for each in plain) or isinstance(layer.module, _NORMS):
            continue
        if why := _not_whitened(layer.module):
            raise UnsupportedLayerError(
                f"the inputs of layer {name!r} ({kind.__name__}) cannot be whitened: {why}. Whitened are Linear, Conv1d, "
                f"Conv2d and Conv3d. Give the layer the plain gradient with plain=({name!r},), or freeze it."
            )
        found.append(layer)
    return tuple(found)


def _not_whitened(module: nn.Module) -> str:
    if not isinstance(module, (nn.Linear, *_SPATIAL)):
        return "there is no rule for it"
    if not type(module).forward.__module__.startswith("torch.nn."):
        return "it redefines forward"
    return "its channels are in groups" if getattr(module, "groups", 1) != 1 else ""


def parts(rows: Float[Tensor, "out columns"], layer: Layer) -> tuple[Tensor, Tensor]:
    """The rows of [W | b] of a layer as W (out, K, D) and b (out,)."""
    width = layer.module.weight.shape[1]
    weight, bias = (rows[:, :-1], rows[:, -1]) if layer.has_bias else (rows, rows.new_zeros(len(rows)))
    return weight.reshape(len(rows), width, -1).mT, bias


def rows_of(W: Float[Tensor, "out K D"], b: Float[Tensor, " out"], layer: Layer) -> Float[Tensor, "out columns"]:
    """Undo `parts`."""
    weight = W.mT.flatten(1)
    return torch.cat([weight, b[:, None]], dim=1) if layer.has_bias else weight


@contextmanager
def recorded_inputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Record copies of what every named module receives, call by call; the hooks are gone afterwards."""
    seen: dict[str, list[Tensor]] = {name: [] for name in modules}

    def hook(name: str):
        def remember(module: nn.Module, args: tuple, options: dict) -> None:
            seen[name].append((args[0] if args else options["input"]).detach().clone())

        return remember

    handles = [module.register_forward_pre_hook(hook(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def seen_inputs(model: nn.Module, modules: Mapping[str, nn.Module], inputs: Tensor) -> dict[str, list[Tensor]]:
    """What the modules receive when the model, in its own mode, runs on `inputs`.

    Buffers (running statistics) and the random state are afterwards as they were.
    """
    devices = [inputs.device] if inputs.is_cuda else []
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with recorded_inputs(modules) as seen, torch.no_grad(), torch.random.fork_rng(devices):
        torch.func.functional_call(model, buffers, (inputs,))
    return seen


def samples(name: str, module: nn.Module, seen: Sequence[Tensor]) -> Float[Tensor, "R D"]:
    """The inputs of all calls as rows: one per example, step of a sequence, or pixel (without padding)."""
    if not seen:
        raise UnsupportedLayerError(
            f"{called(name, module)} did not run in the forward pass, or its weights are used without "
            f"calling it, so its inputs are not known. Give it the plain gradient with plain=({name!r},), or freeze it."
        )
    spatial = next((count for kind, count in _SPATIAL.items() if isinstance(module, kind)), 0)
    rows = [each.movedim(-1 - spatial, -1) for each in seen]
    return torch.cat([each.reshape(-1, each.shape[-1]) for each in rows])
