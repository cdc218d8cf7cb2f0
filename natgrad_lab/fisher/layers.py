"""Rules by layer type: how a layer's captured inputs and scores become rows of the Jacobian and Kronecker factors.

A rule is registered on the layer's class. A subclass inherits the rule only if it also inherits `forward`; one with its
own `forward` registers its own rule, as anybody may for a layer of their own:

    @row_block.register(MyLayer)
    def _(module, layer, inputs, scores): ...
"""

from collections.abc import Callable
from functools import singledispatch

import torch
from torch import nn

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.parameters import Layer
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import KhatriRaoRows, Kronecker


@singledispatch
def row_block(module: nn.Module, layer: Layer, inputs: Tensor, scores: Tensor) -> KhatriRaoRows:
    """Rows of Sᵀ J that belong to `layer`: row (k, n) is the gradient of s_kᵀ f(x_n) with respect to [W | b].

    Args:
        module: the layer's module, on whose class the rule is chosen.
        layer: its place and shape.
        inputs: (N, ...) what the module received.
        scores: (K, N, ...) vectors at the module's output.
    """
    raise UnsupportedLayerError(_no_rule(row_block, layer))


@row_block.register(nn.Linear)
def linear_rows(module: nn.Linear, layer: Layer, inputs: Tensor, scores: Tensor) -> KhatriRaoRows:
    """s ⊗ [a; 1]: exact for a Linear layer that sees one vector per example."""
    if inputs.ndim != 2:
        raise UnsupportedLayerError(
            f"layer {layer.name!r} (Linear) received inputs of shape {tuple(inputs.shape)}: several vectors per example "
            "share its weights, and there is no rule for that yet. Flatten to (N, features) before the layer."
        )
    return KhatriRaoRows(homogeneous(inputs) if layer.has_bias else inputs, scores)


def homogeneous(inputs: Tensor) -> Tensor:
    """[a; 1]: inputs (N, D) with a column of ones, the input of the bias."""
    return torch.cat([inputs, inputs.new_ones(inputs.shape[0], 1)], dim=1)


@singledispatch
def kronecker_factors(module: nn.Module, layer: Layer, rows: KhatriRaoRows) -> Kronecker:
    """K-FAC's block of `layer`: G ⊗ A with G = E[Σ_k s_k s_kᵀ] for the rows of [W | b] and A = E[a aᵀ] for its columns."""
    raise UnsupportedLayerError(_no_rule(kronecker_factors, layer))


@kronecker_factors.register(nn.Linear)
def linear_factors(module: nn.Linear, layer: Layer, rows: KhatriRaoRows) -> Kronecker:
    """A from the homogeneous inputs, G from the scores. [MartensGrosse2015] sec. 3."""
    num_examples = rows.inputs.shape[0]
    flat_scores = rows.scores.flatten(0, 1)
    return Kronecker(flat_scores.T @ flat_scores / num_examples, rows.inputs.T @ rows.inputs / num_examples)


def rule_for(rules: Callable, layer: Layer) -> Callable:
    """The rule of `rules` for `layer`, refusing a subclass that redefines `forward` without a rule of its own."""
    kind = type(layer.module)
    rule = rules.dispatch(kind)
    owner = next((base for base in kind.__mro__ if rules.registry.get(base) is rule), kind)
    if rule is rules.registry[object] or kind.forward is not owner.forward:
        raise UnsupportedLayerError(_no_rule(rules, layer))
    return rule


def _no_rule(rules: Callable, layer: Layer) -> str:
    supported = ", ".join(sorted(kind.__name__ for kind in rules.registry if kind is not object))
    kind = type(layer.module)
    own_forward = ", which has its own forward," if any(issubclass(kind, k) for k in rules.registry if k is not object) else ""
    return (
        f"no rule for layer {layer.name!r} ({kind.__name__}{own_forward}) in {rules.__name__}. There are rules for: "
        f"{supported}. Register one with @natgrad_lab.fisher.{rules.__name__}.register({kind.__name__}), or freeze its own "
        f"parameters: model.get_parameter({f'{layer.name}.{layer.parameter_names[0]}'.lstrip('.')!r}).requires_grad_(False)."
    )
