"""Rows of layers without a rule: per-example gradients of the whole model, exact for anything that treats examples alone.

The first choice is `torch.func`: one vectorized reverse pass for a chunk of examples, checked against a plain one. Where that
cannot go or goes wrong (a fused recurrent call, control flow on values, an in-place operation), one example at a time.
"""

import warnings

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap

from natgrad_lab.parameters import Layer
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import DenseRows

_CHUNK = 2**26  # numbers in the gradients of one vectorized chunk


@torch.inference_mode(False)
@torch.no_grad()  # of the parameters that are not asked for; torch.func differentiates all the same
def generic_rows(model: nn.Module, layers: tuple[Layer, ...], inputs: Tensor, vectors: Tensor) -> dict[str, DenseRows]:
    """Rows (K N, P_l) of every layer in `layers`: gradients of v_knᵀ f(x_n) by its parameters.

    Args: inputs: (N, ...). vectors: (K, N, ...) at the outputs.
    Cost: N forward and K N backward passes of the model, vectorized where it can be; K N P_l numbers.
    """
    if not layers:
        return {}
    names = [f"{layer.module_name}.{key}".lstrip(".") for layer in layers for key in layer.parameter_names]
    parameters = {name: model.get_parameter(name).detach() for name in names}
    inputs, vectors = (t.clone() if t.is_inference() else t for t in (inputs, vectors))
    size = vectors.shape[0] * sum(p.numel() for p in parameters.values())
    chunk = max(1, _CHUNK // size)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "There is a performance drop")  # an operation that vmap would loop over
            pieces = [
                _vectorized(model, parameters, inputs[start : start + chunk], vectors[:, start : start + chunk])
                for start in range(0, len(inputs), chunk)
            ]
        right = _agree(model, names, inputs, vectors, pieces)
    except (RuntimeError, NotImplementedError, ValueError, UserWarning):
        right = False
    if not right:
        pieces = [_one_example(model, names, inputs[n : n + 1], vectors[:, n : n + 1]) for n in range(len(inputs))]
    gradients = {name: torch.cat([piece[name] for piece in pieces], dim=1) for name in names}  # (K, N, ...)
    return {layer.name: _layer_rows(layer, gradients) for layer in layers}


def _vectorized(model: nn.Module, parameters: dict[str, Tensor], inputs: Tensor, vectors: Tensor) -> dict[str, Tensor]:
    def gradients_of_one(x: Tensor, v: Tensor) -> dict[str, Tensor]:
        def outputs(p: dict[str, Tensor]) -> Tensor:
            return functional_call(model, p, (x.unsqueeze(0),)).squeeze(0)

        pull = vjp(outputs, parameters)[1]
        return vmap(lambda u: pull(u)[0])(v)

    return vmap(gradients_of_one, in_dims=(0, 1), out_dims=1)(inputs, vectors)


def _agree(model: nn.Module, names: list[str], inputs: Tensor, vectors: Tensor, pieces: list[dict[str, Tensor]]) -> bool:
    """Whether a random combination of the rows is PyTorch's own gradient of it: a few operations' batching rules are wrong."""
    generator = torch.Generator(device=vectors.device).manual_seed(0)
    weights = torch.randn(vectors.shape[:2], generator=generator, dtype=vectors.dtype, device=vectors.device)
    combined = torch.einsum("kn,kn...->n...", weights, vectors)
    bound = torch.finfo(vectors.dtype).eps ** 0.5
    for name, expected in _one_example(model, names, inputs, combined.unsqueeze(0)).items():
        rows = torch.cat([piece[name] for piece in pieces], dim=1)
        if rows.shape != (*vectors.shape[:2], *expected.shape[2:]):
            return False
        found = torch.einsum("kn,kn...->...", weights, rows)
        # relative to what the sum is made of, which may cancel
        if float((found - expected[0, 0]).abs().max()) > bound * float(rows.abs().max()) * rows.shape[0] * rows.shape[1]:
            return False
    return True


def _one_example(model: nn.Module, names: list[str], inputs: Tensor, vectors: Tensor) -> dict[str, Tensor]:
    parameters = [model.get_parameter(name) for name in names]
    with torch.enable_grad():
        outputs = model(inputs)
    kept = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    each = [torch.autograd.grad(outputs, parameters, v, **kept) for v in vectors]
    return {name: torch.stack([g[i] for g in each]).unsqueeze(1) for i, name in enumerate(names)}


def _layer_rows(layer: Layer, gradients: dict[str, Tensor]) -> DenseRows:
    parts = [gradients[f"{layer.module_name}.{key}".lstrip(".")] for key in layer.parameter_names]
    num_scores, num_examples = parts[0].shape[:2]
    if layer.has_rows:
        units = layer.shape[0]
        flat = torch.cat([part.reshape(num_scores * num_examples, units, -1) for part in parts], dim=2).flatten(1)
    else:
        flat = torch.cat([part.reshape(num_scores * num_examples, -1) for part in parts], dim=1)
    return DenseRows(flat.contiguous(), num_scores)
