"""The reparametrized network of PRONG as a module of its own: V and d are parameters, U and c buffers.

Any torch optimizer trains it; with `torch.optim.SGD` the function it computes follows `Prong` on the original model.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.linalg import check_damping
from natgrad_lab.names import called
from natgrad_lab.optimizers.whitening import InputMoments, Whitening, samples, seen_inputs, whitened_layers
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Float, Tensor

_CONVOLVE = {nn.Conv1d: functional.conv1d, nn.Conv2d: functional.conv2d, nn.Conv3d: functional.conv3d}


class WhitenedLayer(nn.Module):
    """V D U (h − c) + d in the place of one Linear layer or convolution, with the same function until V or d is trained.

    U = D = I and c = 0 at first, so that V and d are the layer's weight and bias. A convolution pads h as the layer does,
    then whitens it across channels (a 1 x 1 convolution), then convolves: a zero of the padding becomes −D U c.

    Attributes:
        V: shape of the layer's weight. d: (out,), or None; a bias that was frozen stays so.
        U, U_inverse: (channels, channels). c, D: (channels,); D is 1 but for PRONG+. Buffers.
    """

    def __init__(self, layer: nn.Module, centred: bool):
        """Take over the weights of `layer`, which is not changed."""
        super().__init__()
        self.template = (copy.deepcopy(layer).to("meta"),)  # its settings; in a tuple, so that it is no submodule
        self.centred = centred
        weight, bias = layer.weight.detach(), layer.bias
        self.V = nn.Parameter(weight.clone())
        self.d = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        width = weight.shape[1]
        for name in ("U", "U_inverse"):
            self.register_buffer(name, torch.eye(width, dtype=weight.dtype, device=weight.device))
        self.register_buffer("c", weight.new_zeros(width))
        self.register_buffer("D", weight.new_ones(width))

    def forward(self, inputs: Tensor) -> Tensor:
        """V D U (h − c) + d."""
        layer, DU = self.template[0], self.D[:, None] * self.U
        convolve = next((function for kind, function in _CONVOLVE.items() if isinstance(layer, kind)), None)
        if convolve is None:
            return functional.linear((inputs - self.c) @ DU.mT, self.V, self.d)
        ones = (1,) * len(layer.kernel_size)
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
        white = convolve(padded - self.c.view(-1, *ones), DU.view(*DU.shape, *ones))
        return convolve(white, self.V, self.d, stride=layer.stride, dilation=layer.dilation)

    def canonical(self) -> nn.Module:
        """The layer with weight W = V D U and bias b = d − Σ_k W_k c."""
        W, b = self._whitening().back(*self._parts(self.V.detach(), None if self.d is None else self.d.detach()))
        layer = copy.deepcopy(self.template[0])
        layer.weight = nn.Parameter(W.mT.reshape(self.V.shape).contiguous())
        if self.d is not None:
            layer.bias = nn.Parameter(b, requires_grad=self.d.requires_grad)
        return layer.train(self.training)

    @torch.no_grad()
    def change(self, new: Whitening, D: Float[Tensor, " width"], optimizer: Optimizer | None) -> None:
        """Other coordinates for the same function; momenta of `optimizer` for V and d go along."""
        old, new_scaled = self._whitening(), _scaled(new, D)
        for V, d in [(self.V, self.d), *_momenta(self.V, self.d, optimizer)]:
            mapped, offset = new_scaled.into(*old.back(*self._parts(V, d)))
            V.copy_(mapped.mT.reshape(V.shape))
            if d is not None:
                d.copy_(offset)
        for buffer, value in ((self.U, new.U), (self.U_inverse, new.U_inverse), (self.c, new.c), (self.D, D)):
            buffer.copy_(value)

    def unscaled(self) -> Whitening:
        """U and c without D."""
        return Whitening(self.U, self.U_inverse, self.c)

    def _whitening(self) -> Whitening:
        return _scaled(self.unscaled(), self.D)

    def _parts(self, V: Tensor, d: Tensor | None) -> tuple[Tensor, Tensor]:
        return V.reshape(*V.shape[:2], -1).mT, V.new_zeros(len(V)) if d is None else d


class WhitenedNetwork(nn.Module):
    """A copy of `model` in which every layer with weights is a `WhitenedLayer`: V, d to be trained, U, c fixed in between.

        network = WhitenedNetwork(model)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for step, (inputs, targets) in enumerate(batches):
            if step % 100 == 0:
                network.reparametrize(inputs, damping=1e-2, optimizer=optimizer)
            ...                                  # loss.backward(), optimizer.step() as ever
        model = network.to_canonical()

    Layers applied to sequences or several times whiten over all they see. Normalizations, activations and whatever `plain`
    names stay as they are: their parameters get the plain gradient.

    Args: plain: names of modules to be left as they are.
    Raises: UnsupportedLayerError by name for layers that cannot be whitened, tied weights, and layers with hooks of their own.
    Cost: per step R D² more than the network's own, for R rows or pixels of D channels at a layer. `Prong` does without.
    References: [Desjardins2015] algorithm 1.
    """

    def __init__(self, model: nn.Module, plain: Sequence[str] = ()):
        """Copy `model`, which is not changed; until `reparametrize`, V and d are its weights and biases."""
        super().__init__()
        layers = whitened_layers(ParameterLayout(model), plain)
        for layer in layers:
            _refuse_hooks(layer.name, layer.module)
        network = copy.deepcopy(model)
        for layer in layers:
            network = _with_module(network, layer.module_name, WhitenedLayer(layer.module, layer.has_bias))
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """What `model` would return with the present weights."""
        return self.network(inputs)

    def reparametrize(self, inputs: Tensor, damping: float, optimizer: Optimizer | None = None) -> None:
        """Whiten by the statistics of `inputs`: U = diag(λ + damping)^-½ Eᵀ, c the mean; V and d such that the function stays.

        Args:
            inputs: what statistics are taken from, with the network in its present mode; running statistics are left alone.
            optimizer: its momentum buffers are mapped to the new coordinates. Without it they stay in the old ones.
        Raises: NotPositiveDefiniteError for damping 0 and inputs of a layer without variance in some direction; then nothing
            has been changed.
        """
        damping, seen, new = check_damping(damping), self._samples(inputs), {}
        for name, layer in self.whitened().items():
            new[name] = InputMoments.of(seen[name], layer.centred, name).whitening(damping, layer.V.dtype, name)
        _refuse_other_state(self.whitened(), optimizer)
        for name, layer in self.whitened().items():
            layer.change(new[name], torch.ones_like(layer.D), optimizer)

    def normalize(self, inputs: Tensor, variance_damping: float, optimizer: Optimizer | None = None) -> None:
        """PRONG+: D = (variance of U(h − c) on `inputs` + variance_damping)^-½; V takes up the change. Before every step."""
        seen = self._samples(inputs)
        _refuse_other_state(self.whitened(), optimizer)
        for name, layer in self.whitened().items():
            whitening = layer.unscaled()
            variances = whitening.whiten(seen[name]).var(0, correction=0)
            layer.change(whitening, (variances + variance_damping).rsqrt(), optimizer)

    def to_canonical(self) -> nn.Module:
        """The same function as the model it was made of: a copy with W = V D U and b = d − W c."""
        model = copy.deepcopy(self.network)
        for name, layer in self.whitened().items():
            model = _with_module(model, name, layer.canonical())
        return model

    def whitened(self) -> dict[str, WhitenedLayer]:
        """The whitened layers, by the names they have in the model ("" for a bare layer)."""
        return {name: module for name, module in self.network.named_modules() if isinstance(module, WhitenedLayer)}

    def _samples(self, inputs: Tensor) -> dict[str, Float[Tensor, "R D"]]:
        layers = self.whitened()
        seen = seen_inputs(self.network, layers, inputs)
        return {name: samples(name, layer.template[0], seen[name]) for name, layer in layers.items()}


def _scaled(whitening: Whitening, D: Tensor) -> Whitening:
    """D U in place of U."""
    return replace(whitening, U=D[:, None] * whitening.U, U_inverse=whitening.U_inverse / D)


def _momenta(V: nn.Parameter, d: nn.Parameter | None, optimizer: Optimizer | None) -> list[tuple[Tensor, Tensor | None]]:
    """The optimizer's momentum buffers of V and d, where it has any."""
    if optimizer is None or optimizer.state.get(V, {}).get("momentum_buffer") is None:
        return []
    other = None if d is None else optimizer.state.get(d, {}).get("momentum_buffer")
    return [(optimizer.state[V]["momentum_buffer"], other)]


def _refuse_other_state(layers: dict[str, WhitenedLayer], optimizer: Optimizer | None) -> None:
    """Only a velocity can be mapped: it is linear in the coordinates."""
    for name, layer in layers.items() if optimizer is not None else ():
        for key, value in optimizer.state.get(layer.V, {}).items():
            if key != "momentum_buffer" and isinstance(value, Tensor) and value.shape == layer.V.shape:
                raise UnsupportedLayerError(
                    f"{type(optimizer).__name__} keeps {key!r} for layer {name!r}, which new coordinates cannot take over. "
                    "Use torch.optim.SGD, or leave out optimizer=... and make a new optimizer after each reparametrization."
                )


def _refuse_hooks(name: str, module: nn.Module) -> None:
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        raise UnsupportedLayerError(
            f"{called(name, module)} has hooks, which its whitened form would lose. Remove them, or leave "
            f"the layer as it is with plain=({name!r},)."
        )


def _with_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """`model` with the module called `name` replaced; `module` itself for the root."""
    if not name:
        return module
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return model
