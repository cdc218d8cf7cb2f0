"""Rules by layer type: how a layer's captured inputs and scores become rows of the Jacobian.

A rule is registered on the layer's class. A subclass inherits the rule only if it also inherits `forward`; one with its
own `forward` registers its own rule, as anybody may for a layer of their own:

    @row_block.register(MyLayer)
    def _(module, layer, inputs, scores): ...

A layer without a rule is not refused: `generic.py` takes its rows from per-example gradients of the whole model.
"""

from collections.abc import Callable
from functools import singledispatch

import torch
from torch import nn
from torch.nn import functional

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.names import called
from natgrad_lab.parameters import Layer
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import ConcatRows, DenseRows, EmbeddingRows, KhatriRaoRows, RowBlock, SharedRows


@singledispatch
def row_block(module: nn.Module, layer: Layer, inputs: Tensor, scores: Tensor) -> RowBlock:
    """Rows of Sᵀ J that belong to one call of `layer`: row (k, n) is the gradient of s_kᵀ f(x_n) by its parameters.

    Args:
        module: the layer's module, on whose class the rule is chosen.
        layer: its place and shape.
        inputs: (N, ...) what the module received.
        scores: (K, N, ...) vectors at the module's output.
    """
    raise UnsupportedLayerError(f"no rule for {called(layer.name, module)} in row_block.")


@row_block.register(nn.Linear)
@row_block.register(nn.RNNBase)
def linear_rows(module: nn.Module, layer: Layer, inputs: Tensor, scores: Tensor) -> RowBlock:
    """s ⊗ [a; 1], summed over positions (N, ..., D) if there are several. Recurrent layers are two such, unrolled."""
    if layer.has_bias:
        inputs = homogeneous(inputs)
    if inputs.ndim == 2:
        return KhatriRaoRows(inputs, scores)
    return SharedRows(inputs.flatten(1, -2), scores.flatten(2, -2))


@row_block.register(nn.Conv1d)
@row_block.register(nn.Conv2d)
def convolution_rows(module: nn.Conv1d | nn.Conv2d, layer: Layer, inputs: Tensor, scores: Tensor) -> RowBlock:
    """A convolution is a Linear layer on patches, one position per output pixel; groups are such layers side by side.

    Every stride, dilation, padding ("same" and numbers) and padding mode: the input is padded as the module pads it.
    """
    patches = extract_patches(module, inputs)  # (N, S, channels * kernel)
    scores = scores.flatten(3).mT  # (K, N, S, C)
    blocks = [
        SharedRows(homogeneous(each) if layer.has_bias else each, part)
        for each, part in zip(patches.chunk(module.groups, 2), scores.chunk(module.groups, 3), strict=True)
    ]
    return blocks[0] if len(blocks) == 1 else ConcatRows(tuple(blocks))


def extract_patches(module: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """What each output pixel sees: (N, S, channels · kernel), channels slowest, as the weight's own order."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
    one = (1,) if isinstance(module, nn.Conv1d) else ()
    if one:
        padded = padded.unsqueeze(2)
    options = {"dilation": one + module.dilation, "stride": one + module.stride}
    return functional.unfold(padded, one + module.kernel_size, **options).mT


@row_block.register(nn.Embedding)
def embedding_rows(module: nn.Embedding, layer: Layer, inputs: Tensor, scores: Tensor) -> RowBlock:
    """A Linear layer on one-hot inputs, which are never formed; padding_idx gets no gradient."""
    index = inputs.reshape(inputs.shape[0], -1)
    if module.padding_idx is not None:
        index = index.masked_fill(index == module.padding_idx, -1)
    return EmbeddingRows(scores.reshape(*scores.shape[:2], -1, scores.shape[-1]), index, module.num_embeddings)


@row_block.register(nn.LayerNorm)
def layer_norm_rows(module: nn.LayerNorm, layer: Layer, inputs: Tensor, scores: Tensor) -> RowBlock:
    """Weight: Σ over positions of score · normalized input; bias: Σ of scores."""
    normal = functional.layer_norm(inputs, module.normalized_shape, eps=module.eps)
    size = normal.shape[-len(module.normalized_shape) :].numel()
    return _affine_rows(layer, normal.reshape(len(inputs), -1, size), scores.reshape(*scores.shape[:2], -1, size))


@row_block.register(nn.modules.batchnorm._BatchNorm)
@row_block.register(nn.GroupNorm)
def channel_norm_rows(module: nn.Module, layer: Layer, inputs: Tensor, scores: Tensor) -> RowBlock:
    """Normalizations with a weight per channel (dimension 1): batch norm in eval mode, group norm."""
    if isinstance(module, nn.GroupNorm):
        normal = functional.group_norm(inputs, module.num_groups, eps=module.eps)
    else:
        normal = functional.batch_norm(inputs, module.running_mean, module.running_var, eps=module.eps)
    positions = normal.reshape(*normal.shape[:2], -1).mT  # (N, S, C)
    return _affine_rows(layer, positions, scores.reshape(*scores.shape[:3], -1).mT)


def _affine_rows(layer: Layer, normal: Tensor, scores: Tensor) -> DenseRows:
    """Rows of an elementwise weight and bias: normal (N, S, C), scores (K, N, S, C)."""
    parts = {"weight": (scores * normal).sum(2), "bias": scores.sum(2)}
    rows = torch.cat([parts[key] for key in layer.parameter_names], dim=2)
    return DenseRows(rows.flatten(0, 1), scores.shape[0])


def homogeneous(inputs: Tensor) -> Tensor:
    """[a; 1]: inputs (N, ..., D) with a last column of ones, the input of the bias."""
    return torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], dim=-1)


def rule_for(layer: Layer) -> Callable | None:
    """The rule of `row_block` for `layer`; None where there is none, or where a subclass redefines `forward`."""
    kind = type(layer.module)
    rule = row_block.dispatch(kind)
    if rule is row_block.registry[object]:
        return None
    owner = next((base for base in kind.__mro__ if row_block.registry.get(base) is rule and base is not kind), kind)
    own_forward = kind.forward is not owner.forward and kind not in row_block.registry
    partly = isinstance(layer.module, nn.RNNBase) and not layer.has_rows
    return None if (own_forward and not _torch_forward(kind)) or partly else rule


def _torch_forward(kind: type) -> bool:
    """Whether `forward` is PyTorch's own, though not that of the class the rule is registered on (LSTM of RNNBase)."""
    return kind.forward.__module__.startswith("torch.nn.")
