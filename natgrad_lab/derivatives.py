"""One forward pass that records what goes into each layer, and batched backward passes to each layer's output.

Everything else is built from these two: for a Linear layer with input a and back-propagated vector s (both per example)
the gradient of [W | b] is s [a; 1]ᵀ, so Jacobians, per-example gradients, Fisher matrices and Kronecker factors are all
products of captured pairs. The model is left as it was: no hook, no `.grad`, no change of mode or of the random state.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from natgrad_lab.errors import NonFiniteError, UnsupportedLayerError
from natgrad_lab.parameters import Layer, ParameterLayout
from natgrad_lab.shapes import Float, Tensor

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm
_DROPOUTS = nn.modules.dropout._DropoutNd


@dataclass(frozen=True)
class ForwardPass:
    """Outputs of one forward pass, the input of each layer, and the way back.

    Attributes:
        layout: the model's parameters.
        outputs: (N, C), detached.
        layer_inputs: one tensor per layer of `layout.layers`, as the layer received it, detached.
    """

    layout: ParameterLayout
    outputs: Float[Tensor, "N C"]
    layer_inputs: tuple[Tensor, ...]
    _graph_outputs: Tensor
    _edges: tuple[GradientEdge, ...]
    _output_shapes: tuple[torch.Size, ...]

    def pull_back(self, vectors: Float[Tensor, "K N C"]) -> tuple[Tensor, ...]:
        """Backpropagate K vectors per example, in one batched pass, to the output of every layer.

        Args: vectors: v at the network's outputs.
        Returns: per layer (∂f/∂(layer output))ᵀ v, shape (K, N, ...) with the layer's own output shape after N.
        Cost: K backward passes without weight gradients; the graph is kept for further calls.
        """
        if vectors.shape[0] == 1:
            pulled = [None if g is None else g.unsqueeze(0) for g in self._backward(self._edges, vectors[0])]
        else:
            pulled = self._backward(self._edges, vectors, is_grads_batched=True)
        shapes = [(len(vectors), *shape) for shape in self._output_shapes]
        return tuple(vectors.new_zeros(shape) if g is None else g for g, shape in zip(pulled, shapes, strict=True))

    def parameter_gradient(self, vectors: Float[Tensor, "N C"]) -> Float[Tensor, " P"]:
        """Σ_n J_nᵀ v_n in the flat order, by PyTorch's own backward pass to the parameters (for checks)."""
        parameters = [parameter for layer in self.layout.layers for parameter in layer.parameters]
        gradients = self._backward(parameters, vectors, materialize_grads=True)
        flat = torch.empty(self.layout.dim, dtype=self.layout.dtype, device=self.layout.device)
        by_parameter = {id(p): gradient for p, gradient in zip(parameters, gradients, strict=True)}
        for parameter, view in self.layout.split(flat):
            view.copy_(by_parameter[id(parameter)])
        return flat

    def _backward(self, ends: Sequence[nn.Parameter | GradientEdge], vectors: Tensor, **choices) -> tuple[Tensor | None, ...]:
        try:
            return torch.autograd.grad(self._graph_outputs, ends, vectors, retain_graph=True, allow_unused=True, **choices)
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            raise UnsupportedLayerError(
                "forward overwrites a tensor that its own gradient needs (an in-place operation on a layer's input after the "
                f"layer has run), so PyTorch cannot differentiate it. Make that operation out of place. ({error})"
            ) from error


def forward_pass(model: nn.Module, layout: ParameterLayout, inputs: Tensor) -> ForwardPass:
    """Run `model` on `inputs` once and record every layer of `layout`.

    Works inside `torch.no_grad()`, with in-place activations, residual connections, and any module without parameters.

    Args:
        inputs: (N, ...), at least one example, finite.
    Raises:
        UnsupportedLayerError: a layer that runs twice or not at all; batch norm or dropout in train mode.
        NonFiniteError: NaN or infinity in weights or outputs.
        ValueError: an empty batch, NaN in inputs, a dtype or device other than the model's, outputs that are not (N, C),
            or a shape the model does not take (with the model's own message).
    """
    refuse_inputs(layout, inputs)
    refuse_modes(model)
    seen_inputs: dict[str, Tensor] = {}
    edges: dict[str, tuple[GradientEdge, torch.Size]] = {}
    with _recording(layout, seen_inputs, edges), torch.inference_mode(False), torch.enable_grad():
        outputs = run_model(model, inputs.clone() if inputs.is_inference() else inputs)
    _refuse_outputs(layout, inputs, outputs)
    for layer in layout.layers:
        if layer.name not in edges:
            raise UnsupportedLayerError(
                f"layer {layer.name!r} ({type(layer.module).__name__}) did not run in the forward pass, or its weights are "
                "used without calling it. Freeze it with requires_grad_(False), or call it in forward."
            )
        if len(seen_inputs[layer.name]) != len(inputs):
            raise UnsupportedLayerError(
                f"layer {layer.name!r} ({type(layer.module).__name__}) received inputs of shape "
                f"{tuple(seen_inputs[layer.name].shape)} for {len(inputs)} examples: positions that share its weights, "
                "flattened into the batch, would count as examples. Keep one row per example."
            )
    names = [layer.name for layer in layout.layers]
    return ForwardPass(
        layout,
        outputs.detach(),
        tuple(seen_inputs[name] for name in names),
        outputs,
        *zip(*(edges[name] for name in names), strict=True),
    )


@contextmanager
def _recording(layout: ParameterLayout, seen_inputs: dict, edges: dict) -> Iterator[None]:
    """Hook every layer; a gradient edge (not the tensor) survives an in-place activation after the layer."""

    def record(layer: Layer):
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            if layer.name in edges:
                raise UnsupportedLayerError(
                    f"layer {layer.name!r} ({type(module).__name__}) runs more than once in one forward pass (shared "
                    "weights). Give each use its own layer, or unroll the computation into one call."
                )
            if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
                raise UnsupportedLayerError(
                    f"layer {layer.name!r} ({type(module).__name__}) does not map one tensor to one tensor, so its inputs "
                    "cannot be recorded."
                )
            if not output.requires_grad:
                raise UnsupportedLayerError(
                    f"layer {layer.name!r} ({type(module).__name__}) runs where gradients are switched off (torch.no_grad() "
                    "in forward?), so nothing can be backpropagated to it. Take that out, or freeze the layer."
                )
            seen_inputs[layer.name] = args[0].detach()
            edges[layer.name] = get_gradient_edge(output), output.shape

        return hook

    handles = [layer.module.register_forward_hook(record(layer)) for layer in layout.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_model(model: nn.Module, inputs: Tensor) -> object:
    """model(inputs), with PyTorch's complaints about shapes and dtypes turned into one about the inputs."""
    try:
        return model(inputs)
    except RuntimeError as error:
        if not any(word in str(error) for word in ("shape", "size", "dtype")):
            raise
        raise ValueError(
            f"the model does not take inputs of shape {tuple(inputs.shape)} and {inputs.dtype} ({error}). Pass (N, ...) with "
            "the features and the dtype that its first layer expects."
        ) from error


def refuse_inputs(layout: ParameterLayout, inputs: Tensor) -> None:
    """Raise for inputs that are no tensor, empty, not finite, or of another dtype or device than the model."""
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"inputs must be a torch.Tensor of shape (N, ...); got {type(inputs).__name__}. Convert them with "
            "torch.as_tensor(...)."
        )
    if inputs.layout != torch.strided:
        raise ValueError(f"inputs are stored as {inputs.layout}. Pass a dense tensor: inputs.to_dense().")
    if inputs.ndim < 1 or inputs.shape[0] == 0 or inputs.numel() == 0:
        raise ValueError(
            f"inputs hold no examples (shape {tuple(inputs.shape)}). Pass at least one: a Fisher is a mean over examples."
        )
    if inputs.device != layout.device:
        raise ValueError(
            f"inputs are on {inputs.device}, the model on {layout.device}. Move them: inputs.to({str(layout.device)!r})."
        )
    if inputs.is_floating_point():
        if inputs.dtype != layout.dtype:
            raise ValueError(
                f"inputs are {inputs.dtype}, the model's parameters {layout.dtype}. Convert one of them: "
                f"inputs.to({layout.dtype}) or model.to({inputs.dtype})."
            )
        # one pass decides unless the sum overflows
        if not torch.isfinite(inputs.detach().sum()) and not torch.isfinite(inputs).all():
            bad = int((~torch.isfinite(inputs)).reshape(inputs.shape[0], -1).any(dim=1).nonzero()[0])
            raise ValueError(f"inputs hold NaN or infinity (first in example {bad}). Remove or repair those examples.")


def refuse_modes(model: nn.Module) -> None:
    """Raise for layers whose output depends on the rest of the batch, or on chance."""
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS) and (module.training or module.running_mean is None):
            raise UnsupportedLayerError(
                f"layer {name!r} ({type(module).__name__}) normalizes with the statistics of the batch (train mode), so "
                "examples have no gradient of their own. Call model.eval() first."
            )
        if isinstance(module, _DROPOUTS) and module.training and module.p > 0:
            raise UnsupportedLayerError(
                f"layer {name!r} ({type(module).__name__}) drops units at random in train mode, so the Fisher is not "
                "determined by model and data. Call model.eval() first."
            )


def refuse_weights(layout: ParameterLayout) -> None:
    """Raise for a parameter that holds NaN or infinity, by name."""
    for layer in layout.layers:
        for key, parameter in zip(layer.parameter_names, layer.parameters, strict=True):
            if not torch.isfinite(parameter).all():
                count = int((~torch.isfinite(parameter)).sum())
                raise NonFiniteError(
                    f"parameter {f'{layer.name}.{key}'.lstrip('.')!r} holds NaN or infinity in {count} of {parameter.numel()} "
                    "entries: training has diverged, or a checkpoint is damaged. Load or initialize the weights again."
                )


def refuse_output_shape(inputs: Tensor, outputs: object) -> None:
    """Raise unless the model returned one row of outputs per example."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[0] != inputs.shape[0]:
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the model must return outputs of shape (N, C) with N = {inputs.shape[0]} examples; got {given}. Flatten or "
            "pool inside the model."
        )


def _refuse_outputs(layout: ParameterLayout, inputs: Tensor, outputs: object) -> None:
    refuse_output_shape(inputs, outputs)
    if outputs.dtype != layout.dtype:
        raise ValueError(
            f"the model returns {outputs.dtype}, its parameters are {layout.dtype}. Return the parameters' dtype: take casts "
            "out of forward, and run without torch.autocast."
        )
    if not outputs.requires_grad:
        raise UnsupportedLayerError(
            "the model's outputs do not depend on its trainable parameters by differentiable operations (detach() or argmax "
            "in forward?). Return the logits or means themselves."
        )
    if not torch.isfinite(outputs.detach().sum()) and not torch.isfinite(outputs).all():
        refuse_weights(layout)
        raise NonFiniteError(
            "the model's outputs hold NaN or infinity although inputs and weights are finite: they overflow "
            f"{outputs.dtype}. Scale the inputs or the weights down, or use float64."
        )
