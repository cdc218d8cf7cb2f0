"""Names of places in the flat order: of a parameter, of what a reader types, and of the ticks along an axis.

A parameter is called as PyTorch calls it, `2.weight[3,5]`, or by its place in the network: W2[3,5] and b2[3] belong to the
second layer. Indices count from 0, layers from 1.
"""

import re

import numpy as np

from natgrad_lab.parameters import Layer, ParameterLayout

_STEPS = (1, 2, 5)


def describe(layout: ParameterLayout) -> list[dict]:
    """Each layer as plain data, enough for a page to name any parameter."""
    return [_layer(layer, number) for number, layer in enumerate(layout.layers, 1)]


def _layer(layer: Layer, number: int) -> dict:
    weights, biases = layer.parameters[0], layer.parameter_names[1] if layer.has_bias else None
    prefix = f"{layer.module_name}." if layer.module_name else ""
    pieces = [
        {"name": prefix + name, "shape": list(parameter.shape)}
        for name, parameter in zip(layer.parameter_names, layer.parameters, strict=True)
    ]
    return {
        "name": layer.name or "model", "number": number, "start": layer.start, "units": layer.shape[0], "width": layer.shape[1],
        "rows": layer.has_rows, "bias": biases is not None, "weight_shape": list(weights.shape[1:]) or [1], "pieces": pieces,
    }  # fmt: skip


def name_of(layout: ParameterLayout, index: int) -> str:
    """`2.weight[3,5]` or `2.bias[3]`: as `ParameterLayout.parameter_name`, without a pass over the layer."""
    if not 0 <= index < layout.dim:
        raise IndexError(f"parameter {index} of {layout.dim}: places run from 0 to {layout.dim - 1}.")
    layer = next(layer for layer in layout.layers if index < layer.slice.stop)
    prefix, at = f"{layer.module_name}." if layer.module_name else "", index - layer.start
    if not layer.has_rows:
        for name, parameter in zip(layer.parameter_names, layer.parameters, strict=True):
            if at < parameter.numel():
                return f"{prefix}{name}{_bracket(np.unravel_index(at, tuple(parameter.shape)))}"
            at -= parameter.numel()
    unit, column = divmod(at, layer.shape[1])
    if layer.has_bias and column == layer.shape[1] - 1:
        return f"{prefix}{layer.parameter_names[1]}[{unit}]"
    inner = np.unravel_index(column, tuple(layer.parameters[0].shape[1:]))
    return f"{prefix}{layer.parameter_names[0]}{_bracket((unit, *inner))}"


def _bracket(indices) -> str:
    return f"[{','.join(str(int(i)) for i in indices)}]"


def find(layout: ParameterLayout, text: str) -> tuple[slice, slice]:
    """The rows and columns that a text means: "W2[3,5] x W1[0,2]", "W1", "b2", "2.weight[3]", "layer 2", "117".

    One place alone means both rows and columns.
    Raises: ValueError that says what was not understood, and what would be.
    """
    parts = [part for part in re.split(r"\s+[x×]\s+|\s*×\s*", text.strip()) if part]
    if len(parts) not in (1, 2):
        raise ValueError(f"a place is one name, or two with x between them; got {text!r}. {_examples(layout)}")
    places = [_find_one(layout, part.strip()) for part in parts]
    return places[0], places[-1]


def _find_one(layout: ParameterLayout, text: str) -> slice:
    if text.isdecimal():
        return _one(layout, int(text), text)
    match = re.fullmatch(r"(?P<name>[^\[\]]+?)\s*(\[\s*(?P<at>[\d\s,]*)\])?", text)
    if match is None:
        raise ValueError(f"{text!r} is no place. {_examples(layout)}")
    name, at = match["name"], [int(i) for i in (match["at"] or "").replace(",", " ").split()]
    for number, layer in enumerate(layout.layers, 1):
        own = layer.name or "model"
        if name in (own, f"layer {own}", f"W{number}", f"b{number}"):
            return _in_layer(layout, layer, at, name == f"b{number}", name not in (f"W{number}", f"b{number}"), text)
        prefix = f"{layer.module_name}." if layer.module_name else ""
        for key in layer.parameter_names:
            if name == prefix + key:
                return _in_parameter(layout, layer, key, at, text)
    raise ValueError(f"there is no place {text!r}. {_examples(layout)}")


def _in_parameter(layout: ParameterLayout, layer: Layer, key: str, at: list[int], text: str) -> slice:
    if layer.has_rows:
        return _in_layer(layout, layer, at, layer.has_bias and key == layer.parameter_names[1], False, text)
    before = 0
    for name, parameter in zip(layer.parameter_names, layer.parameters, strict=True):
        if name == key:
            return _inside(layer.start + before, tuple(parameter.shape), at, text)
        before += parameter.numel()
    raise AssertionError("the key is one of the layer's")


def _in_layer(layout: ParameterLayout, layer: Layer, at: list[int], bias: bool, whole: bool, text: str) -> slice:
    """A layer, a unit of it, or one weight or bias; all biases of a layer are not contiguous: its whole extent."""
    if bias and not layer.has_bias:
        raise ValueError(f"{text!r}: layer {layer.name!r} has no bias. {_examples(layout)}")
    if not at:
        return layer.slice
    if not layer.has_rows:
        return _inside(layer.start, (layer.size,), at, text)
    units, width = layer.shape
    if at[0] >= units:
        raise ValueError(f"{text!r}: layer {layer.name!r} has the units 0 to {units - 1}; got {at[0]}.")
    start = layer.start + at[0] * width
    if bias and len(at) == 1:
        return slice(start + width - 1, start + width)
    inner = (width,) if whole else tuple(layer.parameters[0].shape[1:])
    return _inside(start, inner, at[1:], text) if at[1:] else slice(start, start + width)


def _inside(start: int, shape: tuple[int, ...], at: list[int], text: str) -> slice:
    """The part of a row-major array that begins at `start` which leading indices name."""
    if len(at) > len(shape) or any(i >= size for i, size in zip(at, shape, strict=False)):
        raise ValueError(f"{text!r}: indices must lie inside {list(shape)}, counted from 0; got {at}.")
    size = int(np.prod(shape))
    for i, length in zip(at, shape, strict=False):
        size //= length
        start += i * size
    return slice(start, start + size)


def _one(layout: ParameterLayout, index: int, text: str) -> slice:
    if index >= layout.dim:
        raise ValueError(f"parameter {text}: places run from 0 to {layout.dim - 1}.")
    return slice(index, index + 1)


def _examples(layout: ParameterLayout) -> str:
    layer = layout.layers[-1]
    return f"Try W1, W{len(layout.layers)}[0,0], {name_of(layout, layer.start)}, or two of them with x between."


def ticks(layout: ParameterLayout, start: int, stop: int, count: int = 6) -> list[tuple[int, str]]:
    """About `count` places of start .. stop with short names: layers, then units, then single parameters, as they fit."""
    inside = [layer for layer in layout.layers if layer.start < stop and layer.slice.stop > start]
    if len(inside) >= count:
        numbered = list(enumerate(layout.layers, 1))
        return [(layer.start, f"W{number}") for number, layer in numbered if start <= layer.start < stop]
    span, places = stop - start, []
    for layer in inside:
        low, high = max(start, layer.start) - layer.start, min(stop, layer.slice.stop) - layer.start
        width = layer.shape[1]
        by_unit = layer.has_rows and span > count * width
        step = _nice(span / count / (width if by_unit else 1)) * (width if by_unit else 1)
        for at in range(-(-low // step) * step, high, step):
            label = f"W{layout.layers.index(layer) + 1}[{at // width}]" if by_unit else name_of(layout, layer.start + at)
            places.append((layer.start + at, label))
    return places


def _nice(step: float) -> int:
    power = 10 ** max(0, int(np.floor(np.log10(max(step, 1)))))
    return next(n * power for n in (*_STEPS, 10) if n * power >= step)
