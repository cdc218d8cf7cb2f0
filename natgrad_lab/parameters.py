"""The one flat order of a network's parameters: layer by layer, each layer as the rows of [W | b].

In this order layer blocks, Kronecker products G ⊗ A and the blocks of single units are contiguous. PyTorch's
`parameters_to_vector` order (all of W, then b) is reached only through `ParameterLayout.to_torch` and `from_torch`.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.nn.utils import parametrize

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.names import called
from natgrad_lab.shapes import Float, Tensor

_ROW_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RECURRENT = nn.RNNBase


@dataclass(frozen=True)
class Layer:
    """One module's trainable parameters and their place in the flat order.

    `shape` is that of the matrix [W | b]: rows are units (output channels), the last column is the bias if `has_bias`.
    A recurrent module has several such layers, named after the module and the weight: `lstm.ih_l0`, `lstm.hh_l0`, ...
    For a module that is no Linear, convolution or recurrent one, `has_rows` is False, the parameters follow each other
    as they are, and `shape` is (1, number of parameters).
    """

    name: str
    module: nn.Module
    start: int
    shape: tuple[int, int]
    has_bias: bool
    parameter_names: tuple[str, ...]
    has_rows: bool = True
    module_name: str = ""

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.shape[0] * self.shape[1]

    @property
    def slice(self) -> slice:
        """Where the layer lies in the flat order."""
        return slice(self.start, self.start + self.size)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The module's trainable parameters, in PyTorch's order."""
        own = self.module._parameters  # several times faster than getattr, and read at every step
        return tuple([own[name] for name in self.parameter_names])


class ParameterLayout:
    """The flat order of the trainable parameters of `model`, and the way to and from PyTorch's.

    Parameters with `requires_grad=False` have no place in it (the repr counts them). Refused by name are: no trainable
    parameter at all, parameters shared by two modules, parametrized modules (weight norm, spectral norm), uninitialized
    lazy modules, a layer whose weight is frozen and whose bias is not, and dtypes other than float32 and float64.

    Attributes:
        layers: one `Layer` per module with trainable parameters, in the order of `model.named_modules()`.
        dim: P, the number of trainable parameters.
    """

    def __init__(self, model: nn.Module):
        """Read the order off `model`; no parameter is copied or changed."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
        self.model = model
        owners: dict[int, str] = {}
        layers: list[Layer] = []
        start = 0
        for name, module in model.named_modules(remove_duplicate=False):
            own = dict(module.named_parameters(recurse=False))
            if own or parametrize.is_parametrized(module):
                _refuse_module(name, module, own, owners)
            trainable = tuple(key for key, parameter in own.items() if parameter.requires_grad)
            for piece in _pieces(name, module, trainable):
                layers.append(_layer(name, module, start, *piece))
                start += layers[-1].size
        if not layers:
            raise UnsupportedLayerError(
                "the model has no trainable parameters. Switch them on with model.requires_grad_(True)."
            )
        self.layers: tuple[Layer, ...] = tuple(layers)
        self.dim: int = start
        self.num_frozen: int = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        _refuse_mixed(self)

    def __repr__(self) -> str:
        """Sizes by layer."""
        rows = ", ".join(f"{layer.name or 'model'} {layer.shape[0]}x{layer.shape[1]}" for layer in self.layers)
        frozen = f", {self.num_frozen} frozen parameters left out" if self.num_frozen else ""
        return f"ParameterLayout({self.dim} parameters: {rows}{frozen})"

    @property
    def dtype(self) -> torch.dtype:
        """Of every trainable parameter."""
        return self.layers[0].parameters[0].dtype

    @property
    def device(self) -> torch.device:
        """Of every trainable parameter."""
        return self.layers[0].parameters[0].device

    @cached_property
    def _flat_of_torch(self) -> Tensor:
        """For each place in PyTorch's order the place in the flat order, (P,)."""
        places = torch.arange(self.dim, device=self.device)
        place = {id(p): i for layer in self.layers for p, i in _views(layer, places[layer.slice])}
        return torch.cat([place[id(p)].reshape(-1) for p in self.model.parameters() if p.requires_grad])

    def to_torch(self, vector: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """Flat order → the order of `torch.nn.utils.parameters_to_vector` over the trainable parameters."""
        return self._checked(vector)[self._flat_of_torch.to(vector.device)]

    def from_torch(self, vector: Float[Tensor, "P *k"]) -> Float[Tensor, "P *k"]:
        """Undo `to_torch`."""
        flat = torch.empty_like(self._checked(vector))
        flat[self._flat_of_torch.to(vector.device)] = vector
        return flat

    def parameter_vector(self) -> Float[Tensor, " P"]:
        """A copy of the current parameters in the flat order."""
        flat = torch.empty(self.dim, dtype=self.dtype, device=self.device)
        for layer in self.layers:
            for parameter, view in _views(layer, flat[layer.slice]):
                view.copy_(parameter.detach())
        return flat

    def split(self, vector: Float[Tensor, " P"]) -> list[tuple[nn.Parameter, Tensor]]:
        """Each trainable parameter with the view of `vector` that belongs to it (of the parameter's shape)."""
        vector = self._checked(vector)
        return [pair for layer in self.layers for pair in _views(layer, vector[layer.slice])]

    def parameter_name(self, index: int) -> str:
        """Name the parameter at a place of the flat order, as `2.weight[3,5]` or `2.bias[3]`."""
        if not 0 <= index < self.dim:
            raise IndexError(f"parameter {index} of {self.dim}: places run from 0 to {self.dim - 1}.")
        layer = next(layer for layer in self.layers if index < layer.slice.stop)
        places = torch.arange(layer.size)
        for (_, view), key in zip(_views(layer, places), layer.parameter_names, strict=True):
            hit = (view == index - layer.start).nonzero()
            if len(hit):
                place = f"[{','.join(str(int(i)) for i in hit[0])}]" if view.ndim else ""
                return f"{layer.module_name}.{key}{place}".lstrip(".")
        raise AssertionError("a layer's views cover its slice")

    def _checked(self, vector: Tensor) -> Tensor:
        if vector.ndim not in (1, 2) or vector.shape[0] != self.dim:
            raise ValueError(f"the model has {self.dim} trainable parameters; got a vector of shape {tuple(vector.shape)}.")
        return vector


def _views(layer: Layer, flat: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter of `layer`, weight first, with its view of the layer's slice `flat` of a vector."""
    if layer.has_rows:
        rows, weight = flat.view(layer.shape), layer.parameters[0]
        pair = (weight, rows[:, : layer.shape[1] - layer.has_bias].view(weight.shape))
        return [pair, (layer.parameters[1], rows[:, -1])] if layer.has_bias else [pair]
    pieces = flat.split([parameter.numel() for parameter in layer.parameters])
    return [(p, piece.view(p.shape)) for p, piece in zip(layer.parameters, pieces, strict=True)]


def _pieces(name: str, module: nn.Module, trainable: tuple[str, ...]) -> list[tuple[str, tuple[str, ...], bool]]:
    """Layers of a module: (name, parameters, whether they are a matrix [W | b])."""
    if not trainable:
        return []
    if isinstance(module, _RECURRENT) and not module.proj_size and len(trainable) == len(list(module._parameters)):
        weights = [key for key in trainable if key.startswith("weight")]
        pairs = [(key, key.replace("weight", "bias")) if module.bias else (key,) for key in weights]
        return [(f"{name}.{pair[0].removeprefix('weight_')}".lstrip("."), pair, True) for pair in pairs]
    if not isinstance(module, _ROW_LAYERS):
        return [(name, trainable, False)]
    if "weight" not in trainable or not {"weight", "bias"}.issuperset(trainable):
        raise UnsupportedLayerError(
            f"{called(name, module)} trains {', '.join(trainable)}; such a layer trains its weight, or its "
            f"weight and bias, and nothing else. Train or freeze it as a whole: model.get_submodule({name!r})"
            ".requires_grad_(True or False)."
        )
    return [(name, trainable, True)]


def _layer(module_name: str, module: nn.Module, start: int, name: str, keys: tuple[str, ...], has_rows: bool) -> Layer:
    parameters = [getattr(module, key) for key in keys]
    size = sum(parameter.numel() for parameter in parameters)
    rows = parameters[0].shape[0] if has_rows else 1
    return Layer(name, module, start, (rows, size // rows), has_rows and len(keys) == 2, keys, has_rows, module_name)


def _refuse_module(name: str, module: nn.Module, own: dict[str, nn.Parameter], owners: dict[int, str]) -> None:
    kind = type(module).__name__
    if parametrize.is_parametrized(module) or hasattr(module, "weight_g"):
        raise UnsupportedLayerError(
            f"layer {name!r} ({kind}) is parametrized (weight norm, spectral norm, ...): its weight is a function of "
            "other parameters. Make it plain with torch.nn.utils.parametrize.remove_parametrizations(...)."
        )
    for key, parameter in own.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise UnsupportedLayerError(
                f"layer {name!r} ({kind}) has no weights yet (lazy module). Run the model once on a batch first."
            )
        here = f"{name}.{key}".lstrip(".")
        if id(parameter) in owners:
            raise UnsupportedLayerError(
                f"{here!r} and {owners[id(parameter)]!r} are the same parameter (tied weights): layer-wise Fisher blocks "
                "would miss their cross terms. Give each layer its own parameter, or freeze the shared one."
            )
        if parameter.requires_grad:
            owners[id(parameter)] = here


def _refuse_mixed(layout: ParameterLayout) -> None:
    parameters = [parameter for layer in layout.layers for parameter in layer.parameters]
    kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
    if len(kinds) > 1:
        given = " and ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise UnsupportedLayerError(
            f"the trainable parameters are {given}; they must share one dtype and one device. Use model.to(dtype=..., "
            "device=...)."
        )
    if layout.device.type == "meta":
        raise UnsupportedLayerError(
            "the parameters are on the meta device: they hold no numbers. Use model.to_empty(device=...) and initialize them."
        )
    if layout.dtype not in (torch.float32, torch.float64):
        raise UnsupportedLayerError(
            f"the parameters are {layout.dtype}; Fisher matrices are computed in float32 or float64. Use model.float() or "
            "model.double()."
        )
