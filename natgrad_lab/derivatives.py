"""One forward pass that records what goes into each layer, and batched backward passes to each layer's output.

Everything else is built from these two: for a Linear layer with input a and back-propagated vector s (both per example)
the gradient of [W | b] is s [a; 1]ᵀ, so Jacobians, per-example gradients, Fisher matrices and Kronecker factors are all
products of captured pairs. The model is left as it was: no hook, no `.grad`, no change of mode or of the random state.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call

from natgrad_lab.errors import NonFiniteError, UnsupportedLayerError
from natgrad_lab.names import called
from natgrad_lab.parameters import Layer, ParameterLayout
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.unrolled import unroll

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm
_DROPOUTS = nn.modules.dropout._DropoutNd
_ONE_BY_ONE = 2  # up to so many vectors, backward passes of their own cost less than a batched one


@dataclass(frozen=True)
class Call:
    """One use of a layer: its input (N, ..., D), detached, and where its output (N, ..., C) lies in the graph.

    `edges` are several for a recurrent layer: one per time step, the steps then being the input's second dimension.
    `shape` is that of the output at an edge.
    """

    inputs: Tensor
    edges: tuple[GradientEdge, ...]
    shape: torch.Size
    stacked: bool = False


@dataclass(frozen=True)
class ForwardPass:
    """Outputs of one forward pass, the calls of each recorded layer, and the way back.

    Attributes:
        layout: the model's parameters.
        outputs: (N, ..., C), detached.
        calls: by layer name; a layer that was not asked for has no entry.
    """

    layout: ParameterLayout
    outputs: Tensor
    calls: dict[str, tuple[Call, ...]]
    _graph_outputs: Tensor

    def pull_back(self, vectors: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Backpropagate K vectors per example, in one batched pass, to the output of every recorded call.

        Args: vectors: (K, N, ..., C) at the network's outputs.
        Returns: per layer and call (∂f/∂(layer output))ᵀ v, shape (K, N, ...) with the layer's own output shape after N.
        Cost: K backward passes without weight gradients; the graph is kept for further calls.
        """
        edges = self._edges()
        if not edges:
            return {}
        if vectors.shape[0] <= _ONE_BY_ONE:
            flat = [_stacked(each) for each in zip(*(self._backward(edges, v) for v in vectors), strict=True)]
        else:
            flat = self._backward(edges, vectors, is_grads_batched=True)
        return self._by_call(flat, vectors)

    def parameter_gradient(self, vectors: Tensor) -> Float[Tensor, " P"]:
        """Σ_n J_nᵀ v_n in the flat order, by PyTorch's own backward pass to the parameters; v (N, ..., C)."""
        return self.gradient_and_scores(vectors)[0]

    def gradient_and_scores(self, vectors: Tensor) -> tuple[Float[Tensor, " P"], dict[str, tuple[Tensor, ...]]]:
        """`parameter_gradient` and, from the same pass, `pull_back` of the one vector per example."""
        parameters = [parameter for layer in self.layout.layers for parameter in layer.parameters]
        found = self._backward([*parameters, *self._edges()], vectors)
        flat = torch.empty(self.layout.dim, dtype=self.layout.dtype, device=self.layout.device)
        by_parameter = {id(p): gradient for p, gradient in zip(parameters, found, strict=False)}
        for parameter, view in self.layout.split(flat):
            gradient = by_parameter[id(parameter)]
            view.zero_() if gradient is None else view.copy_(gradient)
        one = [None if g is None else g.unsqueeze(0) for g in found[len(parameters) :]]
        return flat, self._by_call(one, vectors.unsqueeze(0))

    def _edges(self) -> list[GradientEdge]:
        return [edge for calls in self.calls.values() for call in calls for edge in call.edges]

    def _by_call(self, flat: Sequence[Tensor | None], vectors: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """What reached the edges, by layer and call; zeros where nothing did."""
        shapes = [call.shape for calls in self.calls.values() for call in calls for _ in call.edges]
        filled = (vectors.new_zeros(len(vectors), *s) if g is None else g for g, s in zip(flat, shapes, strict=True))
        pulled = {}
        for name, calls in self.calls.items():
            parts = [[next(filled) for _ in call.edges] for call in calls]
            pulled[name] = tuple(torch.stack(p, 2) if call.stacked else p[0] for p, call in zip(parts, calls, strict=True))
        return pulled

    def _backward(self, ends: Sequence[nn.Parameter | GradientEdge], vectors: Tensor, **choices) -> tuple[Tensor | None, ...]:
        with overwriting_refused():
            return torch.autograd.grad(self._graph_outputs, ends, vectors, retain_graph=True, allow_unused=True, **choices)


def _stacked(gradients: tuple[Tensor | None, ...]) -> Tensor | None:
    """Gradients of several passes at one edge, which all passes reach or none."""
    return None if gradients[0] is None else torch.stack(gradients) if len(gradients) > 1 else gradients[0].unsqueeze(0)


def forward_pass(model: nn.Module, layout: ParameterLayout, inputs: Tensor, recorded: tuple[Layer, ...]) -> ForwardPass:
    """Run `model` on `inputs` once and record every call of the layers `recorded`.

    Works inside `torch.no_grad()`, with in-place activations, residual connections, layers called several times, and any
    module without parameters. Recurrent modules are replaced, for this one pass, by their unrolled form.

    Args:
        inputs: (N, ...), at least one example, finite.
    Raises:
        UnrecordableLayer: a recorded layer that does not run, or maps other things than one tensor to one tensor.
        UnsupportedLayerError: batch norm or dropout in train mode.
        NonFiniteError: NaN or infinity in weights or outputs.
        ValueError: an empty batch, NaN in inputs, a dtype or device other than the model's, outputs that are not
            (N, ..., C), or a shape the model does not take (with the model's own message).
    """
    refuse_inputs(layout, inputs)
    refuse_modes(model)
    calls: dict[str, list[Call]] = {layer.name: [] for layer in recorded}
    with _recording(recorded, calls, inputs.shape[0]), torch.inference_mode(False), torch.enable_grad():
        outputs = run_model(model, inputs.clone() if inputs.is_inference() else inputs)
    refuse_outputs(layout, inputs, outputs)
    refuse_detached(outputs)
    for layer in recorded:
        if not calls[layer.name]:
            raise UnrecordableLayer(layer, "did not run in the forward pass, or its weights are used without calling it")
    return ForwardPass(layout, outputs.detach(), {name: tuple(each) for name, each in calls.items()}, outputs)


@contextmanager
def _recording(recorded: tuple[Layer, ...], calls: dict[str, list[Call]], num_examples: int) -> Iterator[None]:
    """Hook every module once; a gradient edge (not the tensor) survives an in-place activation after the layer."""
    by_module: dict[int, list[Layer]] = {}
    for layer in recorded:
        by_module.setdefault(id(layer.module), []).append(layer)

    def plain(layers: list[Layer]) -> Callable:
        def hook(module: nn.Module, args: tuple, options: dict, output: object) -> None:
            given = [value for value in (*args, *options.values()) if value is not None]
            if len(given) != 1 or not isinstance(given[0], Tensor) or not isinstance(output, Tensor):
                raise UnrecordableLayer(layers[0], "does not map one tensor to one tensor")
            if given[0].shape[0] != num_examples or output.shape[0] != num_examples:
                raise UnrecordableLayer(layers[0], f"sees {tuple(given[0].shape)}, not {num_examples} examples first")
            _refuse_cut(layers[0], output)
            calls[layers[0].name].append(Call(given[0].detach(), (get_gradient_edge(output),), output.shape))

        return hook

    def recurrent(layers: list[Layer]) -> Callable:
        def hook(module: nn.RNNBase, args: tuple, options: dict, output: object) -> object:
            values = dict(zip(("input", "hx"), args, strict=False)) | options
            if not isinstance(values["input"], Tensor) or values["input"].ndim != 3:
                raise UnrecordableLayer(layers[0], "does not see one (N, T, D) or (T, N, D) tensor")
            if values["input"].shape[0 if module.batch_first else 1] != num_examples:
                raise UnrecordableLayer(layers[0], "has its examples in another dimension than its batch_first says")
            output, uses = unroll(module, values["input"], values.get("hx"))
            name_of = {layer.parameter_names[0]: layer.name for layer in layers}
            for use in uses:
                _refuse_cut(layers[0], use.products[0])
                edges = tuple(get_gradient_edge(product) for product in use.products)
                calls[name_of[use.key]].append(Call(torch.stack(use.inputs, 1), edges, use.products[0].shape, stacked=True))
            return output

        return hook

    handles = []
    for layers in by_module.values():
        hook = recurrent(layers) if isinstance(layers[0].module, nn.RNNBase) else plain(layers)
        # before the user's own hooks, which then act on what is recorded, as on any later layer
        handles.append(layers[0].module.register_forward_hook(hook, prepend=True, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refuse_cut(layer: Layer, output: Tensor) -> None:
    if not output.requires_grad:
        raise UnsupportedLayerError(
            f"{called(layer.name, layer.module)} runs where gradients are switched off (torch.no_grad() in "
            "forward?), so nothing can be backpropagated to it. Take that out, or freeze the layer."
        )


class UnrecordableLayer(UnsupportedLayerError):
    """A layer whose use cannot be recorded in this pass; its rows can still be had by the generic route."""

    def __init__(self, layer: Layer, why: str):
        """Name the layer and say why."""
        super().__init__(f"{called(layer.name, layer.module)} {why}, so its inputs cannot be recorded.")
        self.module = layer.module


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


@contextmanager
def overwriting_refused() -> Iterator[None]:
    """Say what to change in a model whose backward pass finds a tensor overwritten."""
    try:
        yield
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise UnsupportedLayerError(
            "forward overwrites a tensor that its own gradient needs (an in-place operation on a layer's input after the "
            f"layer has run), so PyTorch cannot differentiate it. Make that operation out of place. ({error})"
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
    first = layout.layers[0].parameters[0]  # all parameters are alike
    if inputs.device != first.device:
        raise ValueError(
            f"inputs are on {inputs.device}, the model on {first.device}. Move them: inputs.to({str(first.device)!r})."
        )
    if inputs.is_floating_point():
        if inputs.dtype != first.dtype:
            raise ValueError(
                f"inputs are {inputs.dtype}, the model's parameters {first.dtype}. Convert one of them: "
                f"inputs.to({first.dtype}) or model.to({inputs.dtype})."
            )
        # one pass decides unless the sum overflows
        if not math.isfinite(inputs.detach().sum().item()) and not torch.isfinite(inputs).all():
            bad = int((~torch.isfinite(inputs)).reshape(inputs.shape[0], -1).any(dim=1).nonzero()[0])
            raise ValueError(f"inputs hold NaN or infinity (first in example {bad}). Remove or repair those examples.")


def refuse_modes(model: nn.Module) -> None:
    """Raise for layers whose output depends on the rest of the batch or on chance, or whose gradient is not their output's."""
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS) and (module.training or module.running_mean is None):
            raise UnsupportedLayerError(
                f"{called(name, module)} normalizes with the statistics of the batch (train mode), so "
                "examples have no gradient of their own. Call model.eval() first."
            )
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            _refuse_embedding(name, module)
        chance = module.p if isinstance(module, _DROPOUTS) else getattr(module, "dropout", 0.0)
        if isinstance(module, (_DROPOUTS, nn.RNNBase, nn.MultiheadAttention)) and module.training and chance > 0:
            raise UnsupportedLayerError(
                f"{called(name, module)} drops units at random in train mode, so the Fisher is not "
                "determined by model and data. Call model.eval() first."
            )


def _refuse_embedding(name: str, module: nn.Embedding | nn.EmbeddingBag) -> None:
    trained = module.weight.requires_grad
    if module.max_norm is not None or (trained and (module.scale_grad_by_freq or module.sparse)):
        raise UnsupportedLayerError(
            f"{called(name, module)} renormalizes its weights in forward (max_norm), scales gradients by "
            "frequency (scale_grad_by_freq) or makes them sparse (sparse): its gradient is not a plain one. Switch these off."
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
    """Raise unless the model returned one tensor with the examples first."""
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or outputs.shape[0] != inputs.shape[0]:
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the model must return outputs of shape (N, C), or (N, positions, C), with N = {inputs.shape[0]} examples; got "
            f"{given}. Choose or reshape inside the model."
        )


def refuse_outputs(layout: ParameterLayout, inputs: Tensor, outputs: object) -> None:
    """Raise for outputs of another shape than (N, ..., C), of another dtype than the parameters, or not finite."""
    refuse_output_shape(inputs, outputs)
    if outputs.dtype != layout.dtype:
        raise ValueError(
            f"the model returns {outputs.dtype}, its parameters are {layout.dtype}. Return the parameters' dtype: take casts "
            "out of forward, and run without torch.autocast."
        )
    if not math.isfinite(outputs.detach().sum().item()) and not torch.isfinite(outputs).all():
        refuse_weights(layout)
        raise NonFiniteError(
            "the model's outputs hold NaN or infinity although inputs and weights are finite: they overflow "
            f"{outputs.dtype}. Scale the inputs or the weights down, or use float64."
        )


def refuse_detached(outputs: Tensor) -> None:
    """Raise for outputs, computed with gradients on, that no trainable parameter can be reached from."""
    if not outputs.requires_grad:
        raise UnsupportedLayerError(
            "the model's outputs do not depend on its trainable parameters by differentiable operations (detach(), argmax "
            "or torch.no_grad() in forward?). Return the logits or means themselves."
        )


def output_derivative(
    model: nn.Module, layout: ParameterLayout, inputs: Tensor, vector: Float[Tensor, " P"]
) -> tuple[Tensor, Tensor]:
    """The outputs (N, ..., C) and their derivative J v along `vector`, without a backward pass; both detached.

    By forward-mode differentiation, exact to rounding; where PyTorch has none for an operation (fused recurrent layers), by
    differentiating u ↦ Jᵀu, which is linear.
    Raises: UnsupportedLayerError where an operation has neither.
    Cost: two forward passes; twice a backward pass on the second way.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    pairs = {names[id(parameter)]: (parameter.detach(), part) for parameter, part in layout.split(vector.detach())}
    _load_forward_mode()
    try:
        with torch.inference_mode(False), torch.no_grad(), forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(*pair) for name, pair in pairs.items()}
            outputs, moved = forward_ad.unpack_dual(functional_call(model, duals, (inputs,)))
            return outputs, torch.zeros_like(outputs) if moved is None else moved
    except NotImplementedError:
        return _twice_backwards(model, inputs, pairs)


@cache
def _load_forward_mode() -> None:
    """Let PyTorch load its rules for forward mode, once, without its own use of something it deprecates being reported."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


def _twice_backwards(model: nn.Module, inputs: Tensor, pairs: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """J v as the derivative of uᵀ(J v) by u."""
    kept = {"allow_unused": True, "materialize_grads": True}
    try:
        with torch.inference_mode(False), torch.enable_grad():
            parameters = {name: parameter.clone().requires_grad_() for name, (parameter, _) in pairs.items()}
            outputs = functional_call(model, parameters, (inputs,))
            u = torch.zeros_like(outputs, requires_grad=True)
            pulled = torch.autograd.grad(outputs, list(parameters.values()), u, create_graph=True, **kept)
            inner = sum((g * v).sum() for g, (_, v) in zip(pulled, pairs.values(), strict=True))
            return outputs.detach(), torch.autograd.grad(inner, u, **kept)[0].detach()
    except (NotImplementedError, RuntimeError) as error:
        raise UnsupportedLayerError(
            "the model has an operation that PyTorch differentiates neither forwards nor twice, and the exact quadratic model "
            f"needs one of them. Use a method without it. ({str(error).splitlines()[0]})"
        ) from error
