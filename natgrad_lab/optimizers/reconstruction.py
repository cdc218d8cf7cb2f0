"""The reconstructed network: a fixed Local Fisher Layer G^−½ before every weight matrix W' = W G^½.

Plain gradient descent on W' is then SNGD on W. The fixed layers are buffers: the gradient passes through them to earlier
layers, never into them. Refreshing them re-expresses W', so that the network stays the same function.
"""

import copy

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.fisher.layers import extract_patches, homogeneous, rule_for
from natgrad_lab.linalg import check_damping
from natgrad_lab.optimizers.local_fisher import LocalRoot, RootChoice, captured_input_fishers
from natgrad_lab.parameters import Layer, ParameterLayout
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import StructuredMatrix


class LocalFisherLayer(nn.Module):
    """x → G^−½ [x; 1] on the last dimension ([x] alone without bias), a fixed matrix: G = I until it is refreshed.

    Args: size: n, of x, without the constant. has_bias: whether the constant is put on.
    """

    def __init__(self, size: int, has_bias: bool, **options):
        """See the class."""
        super().__init__()
        self.has_bias = has_bias
        for name in ("root", "inverse_root"):
            self.register_buffer(name, torch.eye(size + has_bias, **options))

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) → (..., n + 1)."""
        return (homogeneous(x) if self.has_bias else x) @ self.inverse_root

    def extra_repr(self) -> str:
        """Size and kind."""
        return f"{len(self.root)}, {'with' if self.has_bias else 'without'} constant"

    def weights_out(self, weight: Float[Tensor, "C n"]) -> Float[Tensor, "C n"]:
        """W = W' G^−½: what the layer and W' are together."""
        return weight @ self.inverse_root

    def renew(self, root: StructuredMatrix, inverse_root: StructuredMatrix) -> Tensor:
        """Take another G; returns G_old^−½ G_new^½, which takes W' to its new value, and its velocity too."""
        new = root.to_dense()
        change = self.inverse_root @ new
        self.root.copy_(new)
        self.inverse_root.copy_(inverse_root.to_dense())
        return change


class _Reconstructed(nn.Module):
    """What the reconstructed layers share: per matrix [W | b] of `layers` a LocalFisherLayer and the parameter W'."""

    def __init__(self, layers: tuple[Layer, ...]):
        super().__init__()
        module = copy.deepcopy(layers[0].module)
        self._plain = (module,)  # settings only, in a tuple: no submodule, no parameters of it here
        self.keys = tuple(layer.parameter_names for layer in layers)
        self.shapes = tuple(layer.parameters[0].shape for layer in layers)
        self.fishers, self.weights = nn.ModuleList(), nn.ParameterList()
        for layer in layers:
            weight, *bias = (parameter.detach() for parameter in layer.parameters)
            matrix = torch.cat([weight.flatten(1), *(b[:, None] for b in bias)], 1).clone()
            like = {"dtype": matrix.dtype, "device": matrix.device}
            self.fishers.append(LocalFisherLayer(matrix.shape[1] - layer.has_bias, layer.has_bias, **like))
            self.weights.append(nn.Parameter(matrix))
        if isinstance(module.bias, Tensor) and "bias" not in self.keys[0]:
            self.register_buffer("frozen_bias", module.bias.detach().clone())
        else:
            self.frozen_bias = None

    def __getattr__(self, name: str) -> object:
        """Settings of the layer that it stands for, which a model's forward may read (`batch_first`, `in_features`)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not (plain := self.__dict__.get("_plain")) or isinstance(value := getattr(plain[0], name), Tensor):
                raise
            return value

    def canonical(self) -> dict[str, Tensor]:
        """The layer's own parameters from W' and G, differentiable in W'."""
        values = {}
        for keys, shape, fisher, weight in zip(self.keys, self.shapes, self.fishers, self.weights, strict=True):
            matrix = fisher.weights_out(weight)
            if len(keys) == 2:
                values[keys[1]] = matrix[:, -1]
                matrix = matrix[:, :-1]
            values[keys[0]] = matrix.reshape(shape)
        return values

    def _product(self, x: Tensor) -> Tensor:
        return functional.linear(self.fishers[0](x), self.weights[0], self.frozen_bias)


class ReconstructedLinear(_Reconstructed):
    """y = W' G^−½ [x; 1]; on sequences the same at every position."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., C)."""
        return self._product(x)


class ReconstructedConv(_Reconstructed):
    """The same at every output pixel, x its unfolded patch (channels · kernel)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, ...) → (N, C, ...)."""
        conv = self._plain[0]
        product = self._product(extract_patches(conv, x)).mT  # (N, C, S)
        padding = conv._reversed_padding_repeated_twice[::-1]
        sizes = [
            (size + padding[2 * i] + padding[2 * i + 1] - conv.dilation[i] * (conv.kernel_size[i] - 1) - 1) // conv.stride[i]
            + 1
            for i, size in enumerate(x.shape[2:])
        ]
        return product.unflatten(2, sizes)


class ReconstructedRecurrent(_Reconstructed):
    """An LSTM, GRU or RNN whose gate matrices are local layers: [x_t; 1] and [h_t−1; 1] each meet a fixed G^−½.

    Folded before the run, W = W' G^−½, so that PyTorch's own recurrence runs: the same function and the same gradients.
    """

    def forward(self, *args, **options) -> object:
        """As the module it stands for."""
        module = self._plain[0].train(self.training)
        values = self.canonical()
        for name, value in values.items():
            module._parameters.pop(name, None)
            setattr(module, name, value)
        try:
            return module(*args, **options)
        finally:
            for name, value in values.items():
                setattr(module, name, value.detach()[:0])  # keeps no graph alive, and can be copied


_KINDS = {nn.Linear: ReconstructedLinear, nn.Conv1d: ReconstructedConv, nn.Conv2d: ReconstructedConv}
_KINDS |= {nn.LSTM: ReconstructedRecurrent, nn.GRU: ReconstructedRecurrent, nn.RNN: ReconstructedRecurrent}


class ReconstructedNetwork(nn.Module):
    """A copy of a model in which every weight matrix W is W' = W G^½ behind a fixed G^−½; train it with `torch.optim.SGD`.

    Attributes:
        network: the copy. roots: of the last refresh, with method and residuals.
    """

    def __init__(self, model: nn.Module, damping: float, choice: RootChoice):
        """See `reconstruct`."""
        super().__init__()
        layout = ParameterLayout(model)
        self._original = (copy.deepcopy(model),)  # the architecture; its weights are overwritten when asked for
        self.damping, self.choice = check_damping(damping), choice
        self.roots: tuple[LocalRoot, ...] = ()
        network = copy.deepcopy(model)
        by_module: dict[str, list[Layer]] = {}
        for layer in layout.layers:
            _refuse(layer)
            by_module.setdefault(layer.module_name, []).append(layer)
        for name, layers in by_module.items():
            part = _KINDS[type(layers[0].module)](tuple(layers))
            if name:
                network.set_submodule(name, part)
            else:
                network = part
        self.network = network
        self._places = {layer.name: (name, i) for name, layers in by_module.items() for i, layer in enumerate(layers)}

    def forward(self, *args, **options) -> object:
        """As the model."""
        return self.network(*args, **options)

    def canonical(self) -> nn.Module:
        """The same function as a model of the original form, with weights W = W' G^−½: a new copy."""
        model = copy.deepcopy(self._original[0]).train(self.training)
        ours = dict(self.named_buffers()) | dict(self.named_parameters())
        with torch.no_grad():
            for name, parameter in (*model.named_parameters(), *model.named_buffers()):
                if (same := ours.get(f"network.{name}")) is not None:
                    parameter.copy_(same)
            for name in {name for name, _ in self._places.values()}:
                for key, value in self._part(name).canonical().items():
                    getattr(model.get_submodule(name), key).copy_(value)
        return model

    def refresh(self, inputs: Tensor, optimizer: Optimizer | None = None) -> None:
        """G anew from these inputs, and W' re-expressed, so that the function does not change.

        Args: optimizer: the SGD that trains the weights; its momentum is then carried over into the new coordinates. Left out,
            momentum goes on in coordinates that are no longer those of W'.
        Raises: as `RootChoice.root`; ValueError for an optimizer with a state that cannot be carried over (Adam).
        """
        if optimizer is not None:
            _refuse_state(optimizer)
        fishers = captured_input_fishers(self.canonical(), inputs)
        dtype = next(self.parameters()).dtype
        roots = tuple(self.choice.root(fisher, self.damping, dtype) for fisher in fishers)
        with torch.no_grad():
            for fisher, root in zip(fishers, roots, strict=True):
                name, i = self._places[fisher.name]
                weight = self._part(name).weights[i]
                change = self._part(name).fishers[i].renew(root.root, root.inverse_root)
                weight.copy_(weight @ change)
                velocity = optimizer.state[weight].get("momentum_buffer") if optimizer is not None else None
                if velocity is not None:
                    velocity.copy_(velocity @ change)
        self.roots = roots

    def _part(self, name: str) -> _Reconstructed:
        return self.network.get_submodule(name)


def reconstruct(
    model: nn.Module,
    inputs: Tensor | None = None,
    *,
    damping: float = 1e-2,
    landmarks: int = 256,
    dense_up_to: int = 512,
) -> ReconstructedNetwork:
    """Build the network of Local Fisher Layers from a copy of `model`: the same function, in coordinates W' = W G^½.

    `torch.optim.SGD(net.parameters(), lr)` on it, with `net.refresh(inputs)` every T steps, is `sngd` with update_every=T on
    the model, to rounding. Until its first refresh G = I.

    Args:
        inputs: of the first refresh, if given.
        damping, landmarks, dense_up_to: as `sngd`.
    Raises: UnsupportedLayerError for trained layers other than Linear, Conv1d and Conv2d without groups (G of their unfolded
        patches), LSTM, GRU and RNN (G of the inputs and of the hidden states of each level), which the optimizer `sngd`
        covers; for what `ParameterLayout` refuses.
    Cost: one matrix product more per layer and step than the model; memory of two n x n matrices per layer.
    References: [Liu2024]; docs/sngd.md.
    """
    net = ReconstructedNetwork(model, damping, RootChoice(dense_up_to, landmarks))
    if inputs is not None:
        net.refresh(inputs)
    return net


def _refuse(layer: Layer) -> None:
    kind = type(layer.module)
    groups = getattr(layer.module, "groups", 1)
    if kind in _KINDS and layer.has_rows and groups == 1 and rule_for(layer) is not None:
        return
    why = f"has {groups} groups" if kind in _KINDS and groups > 1 else "trains only some of its parameters"
    raise UnsupportedLayerError(
        f"no Local Fisher Layer can be put before layer {layer.name!r} ({kind.__name__}): "
        + (f"it {why}. " if kind in _KINDS else f"there are forms for {', '.join(k.__name__ for k in _KINDS)}. ")
        + "Freeze it with requires_grad_(False), or train the model itself with METHODS['sngd']."
    )


def _refuse_state(optimizer: Optimizer) -> None:
    for state in optimizer.state.values():
        for key, value in state.items():
            if key != "momentum_buffer" and isinstance(value, Tensor) and value.numel() > 1:
                raise ValueError(
                    f"the state {key!r} of {type(optimizer).__name__} has no meaning in other coordinates. Train with "
                    "torch.optim.SGD, or refresh without optimizer=... and make a new optimizer."
                )
