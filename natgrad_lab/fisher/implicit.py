"""The Fisher as a product: forward through the network's derivative, weigh by the output Fisher, back again."""

import warnings

import torch
from torch import nn
from torch.func import functional_call, jvp

from natgrad_lab.derivatives import (
    overwriting_refused,
    refuse_detached,
    refuse_inputs,
    refuse_modes,
    refuse_outputs,
    refuse_weights,
    run_model,
)
from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.fisher.scores import output_scores, quiet_attention, refuse_choice, refuse_mixed_examples
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import Implicit

_CHUNK = 512  # examples at a time


def implicit_fisher(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Implicit:
    """The same matrix as `dense_fisher`, known through products F v = (1/N) Σ_n J_nᵀ Λ_n J_n v.

    Exact for every module and any number of parameters, rows and outputs, including tied functional uses of a weight; the
    memory is that of training. Weights and buffers are copied: a later step of the model does not change the products.

    Args, Raises: as `dense_fisher`, except that no layer needs a rule.
    Cost: a product is a forward pass, two backward passes and the derivative of one: about four gradients.
    """
    refuse_choice(likelihood, fisher_type, targets, num_samples)
    layout = ParameterLayout(model)
    refuse_weights(layout)
    refuse_inputs(layout, inputs)
    refuse_modes(model)
    with torch.inference_mode(False), quiet_attention():
        inputs = inputs.detach().clone()
        with torch.no_grad():
            raw = run_model(model, inputs)
        refuse_outputs(layout, inputs, raw)
        refuse_mixed_examples(model, inputs, raw)  # compares the last half
        refuse_mixed_examples(model, inputs.flip(0), raw.flip(0))
        with torch.enable_grad():
            refuse_detached(run_model(model, inputs[:1]))
    flat_targets = None if targets is None else likelihood.flat_targets(raw, targets)
    scores = None
    if fisher_type != "exact":
        scores = output_scores(likelihood, likelihood.positions(raw), fisher_type, flat_targets, num_samples, generator)
        scores = likelihood.from_positions(scores, raw)  # (K, N, ...)

    with torch.inference_mode(False):
        state = {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for start in range(0, len(inputs), _CHUNK):
            part = slice(start, start + _CHUNK)
            total += _product(
                model, likelihood, layout, state, inputs[part], vector, None if scores is None else scores[:, part]
            )
        return total / len(inputs)

    nothing = torch.zeros(layout.dim, dtype=layout.dtype, device=layout.device)
    with overwriting_refused():  # one product on one example, to refuse here what cannot be differentiated
        _product(model, likelihood, layout, state, inputs[:1], nothing, None if scores is None else scores[:, :1])
    return Implicit(product, nothing)


def _product(
    model: nn.Module,
    likelihood: Likelihood,
    layout: ParameterLayout,
    state: dict[str, Tensor],
    inputs: Tensor,
    vector: Tensor,
    scores: Tensor | None,
) -> Float[Tensor, " P"]:
    """Σ_n J_nᵀ Λ_n J_n v over one chunk, at the weights and buffers of `state`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def outputs_of(p: dict[str, Tensor]) -> Tensor:
        return functional_call(model, state | p, (inputs,))

    with torch.inference_mode(False), torch.enable_grad(), quiet_attention():
        tangents = {names[id(parameter)]: part.detach().clone() for parameter, part in layout.split(vector)}
        parameters = {name: state[name].detach().requires_grad_() for name in tangents}
        outputs = outputs_of(parameters)
        moved = _forward_derivative(outputs_of, outputs, parameters, tangents)
        with torch.no_grad():
            weighed = _weigh(likelihood, outputs.detach(), moved, scores)
        gradients = torch.autograd.grad(outputs, list(parameters.values()), weighed, allow_unused=True, materialize_grads=True)
    flat = torch.empty_like(vector)
    by_name = dict(zip(parameters, gradients, strict=True))
    for parameter, view in layout.split(flat):
        view.copy_(by_name[names[id(parameter)]])
    return flat


def _forward_derivative(outputs_of, outputs: Tensor, parameters: dict, tangents: dict) -> Tensor:
    """J v, by differentiating u ↦ Jᵀu, which is linear, in the direction v: the transpose of the backward pass by construction
    (a padding index, say, is left out of both). Where an operation has no second derivative, by forward mode.
    """
    u = torch.zeros_like(outputs, requires_grad=True)
    kept = {"allow_unused": True, "materialize_grads": True}
    try:
        pulled = torch.autograd.grad(outputs, list(parameters.values()), u, create_graph=True, **kept)
        inner = sum((g * t).sum() for g, t in zip(pulled, tangents.values(), strict=True))
        return torch.autograd.grad(inner, u, retain_graph=True, **kept)[0].detach()
    except (NotImplementedError, RuntimeError) as error:
        if "inplace operation" in str(error):
            raise
        detached = {name: p.detach() for name, p in parameters.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)  # PyTorch's own use of it
            return jvp(outputs_of, (detached,), (tangents,))[1].detach()
    except NotImplementedError as error:
        raise UnsupportedLayerError(
            "the model has an operation that PyTorch can differentiate only once, backwards, and products need twice. Use "
            f"gram_fisher or dense_fisher, which need once. ({str(error).splitlines()[0]})"
        ) from error


def _weigh(likelihood: Likelihood, outputs: Tensor, moved: Tensor, scores: Tensor | None) -> Tensor:
    """Λ_n (J_n v) from the likelihood's root, or Σ_k s_k s_kᵀ (J_n v) from given scores."""
    if scores is not None:
        products = (scores * moved).flatten(2).sum(2)  # (K, N)
        return (products.reshape(*products.shape, *[1] * (scores.ndim - 2)) * scores).sum(0)
    flat, direction = (likelihood.positions(each).flatten(0, 1) for each in (outputs, moved))
    weighed = likelihood.root_product(flat, likelihood.transposed_root_product(flat, direction))
    return likelihood.from_positions(weighed.view_as(likelihood.positions(outputs)).unsqueeze(0), outputs).squeeze(0)
