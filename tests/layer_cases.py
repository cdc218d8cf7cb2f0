"""Named problems beyond Linear layers on rows: sequences, pictures, recurrent nets, shared layers, layers without a rule.

`LAYERS` have a rule for every layer, `GENERIC` at least one layer without. A new rule is one line here and then owes every
test of tests/fisher/test_layers.py.
"""

from dataclasses import dataclass

import torch
from cases import LIKELIHOODS, Case
from torch import nn
from torch.nn import functional

from natgrad_lab.likelihoods import Categorical


@dataclass(frozen=True)
class LayerCase(Case):
    class_dim: int | None = None


def layer_case(model, shape, likelihood="categorical", num_examples=4, seed=0, class_dim=None, vocabulary=None, scale=0.5):
    """The model in eval mode with every weight and running statistic drawn anew, inputs (N, *shape), and drawn targets."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    if vocabulary:
        inputs = torch.randint(vocabulary, (num_examples, *shape), generator=generator)
    else:
        inputs = torch.randn(num_examples, *shape, generator=generator)
    outputs = model.eval()(inputs).detach()
    kind = LIKELIHOODS[likelihood]
    if likelihood == "categorical":
        kind = Categorical() if class_dim is None else Categorical(class_dim)
        where = -1 if class_dim is None else class_dim
        shape = outputs.movedim(where, -1).shape
        targets = torch.randint(shape[-1], shape[:-1], generator=generator)
        return LayerCase(model, kind, inputs, targets, where if outputs.ndim > 2 else None)
    targets = torch.rand(outputs.shape, generator=generator)
    return LayerCase(model, kind, inputs, targets.round() if likelihood == "bernoulli" else targets)


def pictures(*layers, shape=(2, 4, 5), **choices):
    """The layers, tanh, and two outputs that see everything."""
    model = nn.Sequential(*layers, nn.Tanh(), nn.Flatten()).eval()
    return layer_case(nn.Sequential(*model, nn.Linear(model(torch.randn(1, *shape)).shape[1], 2)), shape, **choices)


class Recurrent(nn.Module):
    """A recurrent module on (N, T, 2), its last output (or all), and a readout. Not batch_first: examples in dimension 1."""

    def __init__(self, kind, every=False, hidden=None, learned=False, **options):
        super().__init__()
        self.core, self.every, self.learned = kind(2, 3, **options), every, learned
        width = (options.get("proj_size") or 3) * (2 if options.get("bidirectional") else 1)
        self.out, self.hidden = nn.Linear(width, 2), hidden
        if learned:
            self.start = nn.Parameter(torch.zeros(1, 1, 3))

    def forward(self, x):
        first = self.core.batch_first
        state = () if not self.learned else (self.start.expand(-1, len(x), -1).contiguous(),)
        if self.hidden is not None:
            layers = self.core.num_layers * (2 if self.core.bidirectional else 1)
            h = torch.linspace(-1, 1, layers * 3, dtype=x.dtype).view(layers, 1, 3) * (1 + x[:, 0, 0]).view(1, -1, 1)
            state = ((h, h.tanh()) if isinstance(self.core, nn.LSTM) else h,)
        y, last = self.core(x if first else x.transpose(0, 1), *state)
        y = y if first else y.transpose(0, 1)
        if self.every:
            return self.out(y)
        return self.out(y[:, -1]) + (last[0] if isinstance(last, tuple) else last).sum((0, 2))[:, None]


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.fc(torch.tanh(self.fc(x)))))


class TwiceMixed(Twice):
    """One layer, once on rows and once on a sequence."""

    def forward(self, x):
        return self.out(torch.tanh(self.fc(x)) + torch.tanh(self.fc(torch.stack([x, x * x], 1))).sum(1))


class Siamese(nn.Module):
    """One tower on both halves of a picture."""

    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 2, 2, stride=2), nn.Flatten())
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(torch.cat([torch.tanh(self.tower(half)) for half in x.chunk(2, 3)], 1))


class Tokens(nn.Module):
    """Embedding, positions learned as a second Embedding, LayerNorm, a readout at every token."""

    def __init__(self, padding_idx=None):
        super().__init__()
        self.tokens, self.places = nn.Embedding(5, 3, padding_idx=padding_idx), nn.Embedding(4, 3)
        self.norm, self.out = nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x):
        places = torch.arange(x.shape[1]).expand(len(x), -1)
        return self.out(torch.tanh(self.norm(self.tokens(x) + self.places(places))))


class Scale(nn.Module):
    """A custom module with parameters of its own, of odd shapes."""

    def __init__(self):
        super().__init__()
        self.factor, self.shift = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return torch.sin(x @ self.factor) + self.shift


class Flattened(nn.Module):
    """Positions folded into the batch, with as many rows as examples twice over."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(2, 3), nn.Linear(9, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.inner(x.reshape(-1, 2))).reshape(len(x), -1))


class TimeFirst(nn.Module):
    """A Linear that sees (T, N, D) with T = N when there are as many examples as steps."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        y = torch.tanh(self.inner(x.transpose(0, 1)))
        return self.out(y.cumsum(0)[-1])


class Unused(nn.Module):
    """A layer that does not run, and one whose weight is used without calling it."""

    def __init__(self):
        super().__init__()
        self.fc, self.rest, self.bare = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return functional.linear(torch.tanh(self.fc(x)), self.bare.weight)


def frozen_bias(model, *names):
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def transformer():
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Linear(4, 2))


LAYERS = {
    "Linear on a sequence": lambda: pictures(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2, bias=False), shape=(3, 2)),
    "Linear on a picture, per pixel": lambda: layer_case(nn.Linear(3, 2), (2, 2, 3), class_dim=-1),
    "a sequence of one": lambda: layer_case(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), (1, 2)),
    "Conv1d": lambda: pictures(nn.Conv1d(2, 3, 3, stride=2, padding=1), shape=(2, 6)),
    "Conv1d, dilated, same, reflect": lambda: pictures(
        nn.Conv1d(2, 3, 2, dilation=2, padding="same", padding_mode="reflect"), shape=(2, 5), likelihood="gaussian"
    ),
    "Conv1d of groups, no bias": lambda: pictures(nn.Conv1d(4, 2, 2, groups=2, bias=False), shape=(4, 4)),
    "Conv2d": lambda: pictures(nn.Conv2d(2, 2, 2), nn.Tanh(), nn.Conv2d(2, 1, (1, 2), bias=False)),
    "Conv2d, stride and padding": lambda: pictures(nn.Conv2d(2, 2, (2, 3), stride=(2, 1), padding=(1, 2))),
    "Conv2d, dilation, same": lambda: pictures(nn.Conv2d(2, 2, (3, 2), dilation=(1, 2), padding="same")),
    "Conv2d, valid": lambda: pictures(nn.Conv2d(2, 2, 3, padding="valid")),
    "Conv2d, circular": lambda: pictures(nn.Conv2d(2, 2, 3, padding=(1, 2), padding_mode="circular"), likelihood="bernoulli"),
    "Conv2d, reflect": lambda: pictures(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect", stride=2)),
    "Conv2d, replicate, same": lambda: pictures(nn.Conv2d(2, 2, (3, 2), padding="same", padding_mode="replicate")),
    "Conv2d of groups": lambda: pictures(nn.Conv2d(4, 6, 2, groups=2), shape=(4, 3, 3)),
    "depthwise Conv2d": lambda: pictures(nn.Conv2d(3, 3, 2, groups=3, bias=False), nn.Conv2d(3, 2, 1), shape=(3, 3, 3)),
    "Conv2d, frozen bias": lambda: frozen(pictures(nn.Conv2d(2, 2, 2)), "0.bias"),
    "Conv2d at every pixel, classes second": lambda: layer_case(nn.Conv2d(1, 3, 2), (1, 3, 3), class_dim=1),
    "Gaussian pictures": lambda: layer_case(nn.Conv2d(1, 2, 2), (1, 3, 3), "gaussian"),
    "Bernoulli pictures": lambda: layer_case(nn.Conv2d(1, 1, 3, padding=1), (1, 3, 3), "bernoulli"),
    "Embedding": lambda: layer_case(Tokens(), (4,), class_dim=-1, vocabulary=5),
    "Embedding with padding": lambda: layer_case(Tokens(padding_idx=1), (4,), class_dim=-1, vocabulary=5),
    "Embedding of one token": lambda: layer_case(nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2)), (), vocabulary=4),
    "LayerNorm": lambda: pictures(nn.Linear(3, 3), nn.LayerNorm(3), shape=(2, 3)),
    "LayerNorm over two dimensions, no bias": lambda: pictures(
        nn.Conv1d(1, 2, 2), nn.LayerNorm((2, 3), bias=False), shape=(1, 4)
    ),
    "GroupNorm": lambda: pictures(nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), shape=(1, 3, 3)),
    "BatchNorm1d": lambda: pictures(nn.Linear(3, 4), nn.BatchNorm1d(4), shape=(3,)),
    "BatchNorm1d on sequences": lambda: pictures(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), shape=(2, 4)),
    "BatchNorm2d": lambda: pictures(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), shape=(1, 3, 3)),
    "frozen LayerNorm weight": lambda: frozen(pictures(nn.Linear(3, 3), nn.LayerNorm(3), shape=(3,)), "1.weight"),
    "LSTM": lambda: layer_case(Recurrent(nn.LSTM, batch_first=True), (3, 2)),
    "LSTM, classes at every step": lambda: layer_case(Recurrent(nn.LSTM, every=True, batch_first=True), (3, 2), class_dim=-1),
    "LSTM, two layers, both directions": lambda: layer_case(Recurrent(nn.LSTM, num_layers=2, bidirectional=True), (3, 2)),
    "LSTM with a state, no bias": lambda: layer_case(Recurrent(nn.LSTM, hidden=True, bias=False), (3, 2)),
    "GRU": lambda: layer_case(Recurrent(nn.GRU, batch_first=True, num_layers=2), (3, 2), "gaussian"),
    "GRU, both directions, a state": lambda: layer_case(Recurrent(nn.GRU, hidden=True, bidirectional=True), (3, 2)),
    "RNN": lambda: layer_case(Recurrent(nn.RNN, bidirectional=True), (3, 2), "bernoulli"),
    "RNN, relu, one step": lambda: layer_case(Recurrent(nn.RNN, nonlinearity="relu", hidden=True, batch_first=True), (1, 2)),
    "RNN, as many steps as examples": lambda: layer_case(Recurrent(nn.RNN), (4, 2)),
    "a layer run twice": lambda: layer_case(Twice(), (3,)),
    "a layer on rows and on a sequence": lambda: layer_case(TwiceMixed(), (3,)),
    "siamese towers": lambda: layer_case(Siamese(), (1, 4, 8)),
}  # fmt: skip

GENERIC = {
    "transformer": lambda: layer_case(transformer(), (3, 4), class_dim=-1),
    "ConvTranspose": lambda: pictures(nn.ConvTranspose2d(1, 2, 2, stride=2), shape=(1, 2, 2)),
    "Conv3d": lambda: pictures(nn.Conv3d(1, 2, 2), shape=(1, 2, 3, 2)),
    "own parameters": lambda: layer_case(nn.Sequential(nn.Linear(2, 2), Scale(), nn.Linear(2, 2)), (2,)),
    "PReLU, whose batching rule is wrong": lambda: layer_case(
        nn.Sequential(nn.Linear(2, 3), nn.PReLU(3), nn.Linear(3, 2)), (2,), "gaussian"
    ),
    "LSTM with a projection": lambda: layer_case(Recurrent(nn.LSTM, proj_size=2), (3, 2)),
    "partly frozen LSTM": lambda: layer_case(frozen_bias(Recurrent(nn.LSTM), "core.bias_hh_l0"), (3, 2)),
    "learned start": lambda: layer_case(Recurrent(nn.GRU, learned=True), (3, 2)),
    "positions in the batch": lambda: layer_case(Flattened(), (3, 2)),
    "layers that do not run": lambda: layer_case(Unused(), (2,)),
}  # fmt: skip


def frozen(case, *names):
    frozen_bias(case.model, *names)
    return case
