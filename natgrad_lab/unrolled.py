"""Recurrent modules written out step by step, so that the score at every gate's pre-activation can be asked for.

`torch.nn`'s LSTM, GRU and RNN run as one fused call that shows only its outputs. Written out, each is two matrix products
per step, gi_t = W_ih x_t + b_ih and gh_t = W_hh h_{t−1} + b_hh, and elementwise functions of them: two shared linear layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from natgrad_lab.shapes import Tensor


@dataclass(frozen=True)
class Uses:
    """One weight matrix in one unrolled run: what it was multiplied with, (T, N, D), and its products, T tensors (N, C)."""

    key: str
    inputs: list[Tensor]
    products: list[Tensor]


def unroll(module: nn.RNNBase, inputs: Tensor, hidden: Tensor | tuple[Tensor, Tensor] | None) -> tuple[object, list[Uses]]:
    """Recompute `module(inputs, hidden)` with every pre-activation a tensor of its own.

    Args: inputs: (T, N, D), or (N, T, D) if `batch_first`. hidden: as the module takes it; zeros if None.
    Returns: what the module returns, and the uses of every weight matrix.
    """
    sequence = inputs.transpose(0, 1) if module.batch_first else inputs  # (T, N, D)
    lstm = isinstance(module, nn.LSTM)
    directions = 2 if module.bidirectional else 1
    shape = (module.num_layers * directions, sequence.shape[1], module.hidden_size)
    if hidden is None:
        hidden = (sequence.new_zeros(shape), sequence.new_zeros(shape)) if lstm else sequence.new_zeros(shape)
    states = list(zip(*hidden, strict=True)) if lstm else [(h,) for h in hidden]
    uses: list[Uses] = []
    last: list[tuple[Tensor, ...]] = []
    for level in range(module.num_layers):
        sides = []
        for direction in range(directions):
            suffix = f"_l{level}" + ("_reverse" if direction else "")
            order = range(len(sequence) - 1, -1, -1) if direction else range(len(sequence))
            outputs, state = _one_direction(module, suffix, sequence, order, states[level * directions + direction], uses)
            sides.append(outputs)
            last.append(state)
        sequence = torch.cat(sides, dim=2) if directions == 2 else sides[0]
    result = sequence.transpose(0, 1) if module.batch_first else sequence
    final = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
    return (result, final if lstm else final[0]), uses


def _one_direction(
    module: nn.RNNBase, suffix: str, sequence: Tensor, order: range, state: tuple[Tensor, ...], uses: list[Uses]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    weights = {key: getattr(module, f"{key}{suffix}") for key in ("weight_ih", "weight_hh")}
    biases = {key: getattr(module, f"{key}{suffix}") if module.bias else None for key in ("bias_ih", "bias_hh")}
    cell = _CELLS[module.mode]
    into = Uses(f"weight_ih{suffix}", [], [])
    over = Uses(f"weight_hh{suffix}", [], [])
    outputs: dict[int, Tensor] = {}
    for t in order:
        gi = nn.functional.linear(sequence[t], weights["weight_ih"], biases["bias_ih"])
        gh = nn.functional.linear(state[0], weights["weight_hh"], biases["bias_hh"])
        for use, given, product in ((into, sequence[t], gi), (over, state[0], gh)):
            use.inputs.append(given.detach())
            use.products.append(product)
        state = cell(gi, gh, state)
        outputs[t] = state[0]
    uses += [into, over]
    return torch.stack([outputs[t] for t in range(len(sequence))]), state


def _lstm(gi: Tensor, gh: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    i, f, g, o = (gi + gh).chunk(4, dim=1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(gi: Tensor, gh: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (ri, zi, ni), (rh, zh, nh) = gi.chunk(3, dim=1), gh.chunk(3, dim=1)
    z = (zi + zh).sigmoid()
    n = (ni + (ri + rh).sigmoid() * nh).tanh()
    return (n + z * (state[0] - n),)


_CELLS: dict[str, Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": lambda gi, gh, state: ((gi + gh).tanh(),),
    "RNN_RELU": lambda gi, gh, state: ((gi + gh).relu(),),
}
