"""Exercises of lesson 04: the natural gradient of a deep linear network, its rate, its end, and the rank of its Fisher."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from natgrad_lab.course.diagnose import Mistake, as_tensor, expect, recognize
from natgrad_lab.course.exercise import Exercise, Part

MISTAKES = {
    "4-layers": "It has to return one matrix for each layer, of that layer's shape, inputs first.",
    "4-per-step": "That is the slope per step. The rate is per unit of time, and a step takes lr.",
    "4-log10": "The logarithm has base 10; a rate uses the natural one.",
    "4-root": "That is the rate of the error, the root of the loss. The loss falls twice as fast.",
    "4-ends": "Only the first and the last loss are used. Fit a line through all of them.",
    "4-zero": "A loss of exactly 0 has no logarithm: fit the losses before it.",
    "4-last": "The line meets a singular map earlier than you say: the flow ends at the first.",
    "4-positive": "A positive eigenvalue does no harm: on the line both weights, e^(−t) and 1 − e^(−t), are positive too.",
    "4-determinant": "Equal signs of the determinant do not keep the line clear: it can cross twice.",
    "4-complex": "Only real eigenvalues count: a complex one never makes the determinant zero.",
    "4-log": "That is e^t at the crossing, or e^(−t). The time is its logarithm.",
    "4-parameters": "That is the number of parameters, the size of the Fisher.",
    "4-narrow": "The narrowest layer limits the rank, and it is not in your answer.",
    "4-overlap": "Directions are counted twice: a change of rank r seen from the left and from the right share r² of them.",
}


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---- 4.1


def deep_linear_ng(Ws: list[Tensor], X: Tensor, Y: Tensor) -> list[Tensor]:
    """Per layer (1/L) Λ̃⁺ ∇ Λ⁺, uphill; Λ̃ = AᵀA of the product A above the layer, Λ the second moment of its inputs."""
    signals = [X]
    for W in Ws:
        signals.append(signals[-1] @ W.mT)
    error = (signals.pop() - Y) / len(X)
    above, found = torch.eye(len(Ws[-1]), dtype=X.dtype), []
    for W, x in zip(reversed(Ws), reversed(signals), strict=True):
        gradient = above.mT @ error.mT @ x
        left = torch.linalg.pinv(above.mT @ above, hermitian=True, rtol=1e-10)
        right = torch.linalg.pinv(x.mT @ x / len(X), hermitian=True, rtol=1e-10)
        found.insert(0, left @ gradient @ right / len(Ws))
        above = above @ W
    return found


def _network(generator: torch.Generator, widths: tuple[int, ...], examples: int) -> tuple[list[Tensor], Tensor, Tensor]:
    Ws = [_draw(generator, above, below) / below**0.5 for below, above in pairwise(widths)]
    X = _draw(generator, examples, widths[0]) + 0.3
    return Ws, X, _draw(generator, examples, widths[-1])


def _change(Ws: list[Tensor], Vs: list[Tensor]) -> Tensor:
    """Of the product of all layers, to first order."""
    total = 0
    for i, V in enumerate(Vs):
        product = torch.eye(Ws[0].shape[1], dtype=V.dtype)
        for j, W in enumerate(Ws):
            product = (V if i == j else W) @ product
        total = total + product
    return total


def _with(Ws, X, Y, make: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
    """Layers make(gradient, left factor, right factor) / L from residual-free factors."""
    signals = [X]
    for W in Ws:
        signals.append(signals[-1] @ W.mT)
    error, above, found = (signals.pop() - Y) / len(X), torch.eye(len(Ws[-1]), dtype=X.dtype), []
    for W, x in zip(reversed(Ws), reversed(signals), strict=True):
        found.insert(0, make(above.mT @ error.mT @ x, above, x) / len(Ws))
        above = above @ W
    return found


def _plain(g, A, x):
    return g


def _swapped(g, A, x):
    return torch.linalg.pinv(x.mT @ x / len(x)) @ g @ torch.linalg.pinv(A.mT @ A)


def _layers(answer, Ws, X, Y) -> list[Tensor]:
    got = answer([W.clone() for W in Ws], X, Y)
    if got is None:
        raise Mistake("nothing")
    if not isinstance(got, list | tuple) or len(got) != len(Ws):
        raise Mistake("4-layers", f"there are {len(Ws)} of them")
    return [as_tensor(V, tuple(W.shape)) for V, W in zip(got, Ws, strict=True)]


def _judge_change(answer, Ws, X, Y) -> None:
    L, N = len(Ws), len(X)
    best = torch.linalg.lstsq(X, Y).solution.mT
    want = _change(Ws, [Ws[0], *(torch.zeros_like(W) for W in Ws[1:])]) - best
    pairs = [("M16", c * _change(Ws, _with(Ws, X, Y, _plain))) for c in (1.0, L)]
    pairs += [("M01", _change(Ws, [c * V for V in empirical(Ws, X, Y)])) for c in (1.0, L, N, L * N)]
    if {size for W in Ws for size in W.shape} == {len(Ws[0])}:
        pairs += [("M08", c * _change(Ws, _with(Ws, X, Y, _swapped))) for c in (1.0, L)]
    got = _change(Ws, _layers(answer, Ws, X, Y))
    recognize(got, want, pairs)
    sizes, keys = {"N": float(N), "L": float(L), "C": float(len(want))}, {"L": "M12", "N": "M02", "C": "M06", "2": "M06"}
    expect(got, want, scalars=sizes, keys=keys, tolerance=1e-6, about="change of the function")


def empirical(Ws, X, Y):
    """The formula with output factors from the true residuals: what a reader of labels writes."""
    residual = X
    for W in Ws:
        residual = residual @ W.mT
    second = (residual - Y).mT @ (residual - Y) / len(X)

    def make(g, A, x):
        left = torch.linalg.pinv(A.mT @ second @ A, hermitian=True, rtol=1e-10)
        return left @ g @ torch.linalg.pinv(x.mT @ x / len(x), hermitian=True, rtol=1e-10)

    return _with(Ws, X, Y, make)


def _square(answer, generator):
    Ws, X, Y = _network(generator, (4, 4, 4, 4), 11)
    Ws = [W + torch.eye(4, dtype=W.dtype) for W in Ws]  # far from singular
    _judge_change(answer, Ws, X, Y)


def _wide(answer, generator):
    _judge_change(answer, *_network(generator, (3, 7, 6, 4), 13))


def _one_and_five(answer, generator):
    _judge_change(answer, *_network(generator, (3, 2), 8))
    _judge_change(answer, *_network(generator, (3, 9, 8, 7, 10, 2), 12))


def _scaled_factor(power: int):
    return lambda Ws, X, Y: [V * len(X) ** power for V in deep_linear_ng(Ws, X, Y)]


def _minimum_norm(Ws, X, Y):
    """Another natural gradient: Jᵀ(JJᵀ)⁺ E, layer by layer."""
    X, Y = X.double(), Y.double()
    E = torch.linalg.multi_dot(Ws[::-1]) if len(Ws) > 1 else Ws[0]
    E = E - torch.linalg.lstsq(X, Y).solution.T
    pieces = []
    for i in range(len(Ws)):
        A, B = torch.eye(len(Ws[-1])), torch.eye(Ws[0].shape[1])
        for W in Ws[i + 1 :][::-1]:
            A = A @ W
        for W in Ws[:i]:
            B = W @ B
        pieces.append((A, B))
    K = sum(torch.kron(A @ A.T, B.T @ B) for A, B in pieces)
    share = torch.linalg.solve(K, E.flatten()).view_as(E)
    return tuple((A.T @ share @ B.T).numpy() for A, B in pieces)


# ---- 4.2


def fit_rate(losses: list[float], lr: float) -> float:
    """Least-squares slope of log loss against lr · step, over the losses before one that is 0."""
    logs = []
    for loss in losses:
        if not loss > 0:
            break
        logs.append(math.log(loss))
    y = torch.tensor(logs, dtype=torch.float64)
    x = lr * torch.arange(len(y), dtype=torch.float64)
    x = x - x.mean()
    return float(x @ y / (x @ x))


def _losses(generator: torch.Generator, count: int = 30) -> tuple[list[float], float]:
    u = torch.rand(2, generator=generator, dtype=torch.float64)
    lr = 0.01 + 0.1 * float(u[0])
    rate = 1 + 2 * float(u[1])
    noise = 0.1 * _draw(generator, count)
    return [3 * math.exp(-rate * lr * k + float(e)) for k, e in enumerate(noise)], lr


def _slope(answer, generator):
    losses, lr = _losses(generator)
    want = fit_rate(losses, lr)
    pairs = (
        ("4-per-step", want * lr), ("4-log10", want / math.log(10)), ("4-root", want / 2),
        ("4-ends", math.log(losses[-1] / losses[0]) / (lr * (len(losses) - 1))),
        ("4-ends", math.log(losses[-1] / losses[0]) / (lr * len(losses))),
    )  # fmt: skip
    got = as_tensor(answer(losses, lr), ())
    recognize(got, want, pairs)
    expect(got, want)


def _converged(answer, generator):
    losses, lr = _losses(generator)
    want = fit_rate(losses, lr)
    once, got = as_tensor(answer(losses, lr), ()), as_tensor(answer([*losses, 0.0, 0.0, 0.0], lr))
    if not got.isfinite().all() or (got.numel() == 1 and not math.isclose(got, once, rel_tol=1e-8)):
        raise Mistake("4-zero", "three zeros follow the losses")
    expect(got, want)


def _by_lstsq(losses, lr):
    y = torch.tensor([loss for loss in losses if loss > 0]).log()
    A = torch.stack([torch.ones(len(y)), torch.arange(len(y)) * lr], 1)
    return torch.linalg.lstsq(A, y[:, None]).solution[1, 0]


# ---- 4.3


def predict_failure(W0: Tensor, Wstar: Tensor) -> float:
    """log(1 + 1/|μ|) with μ the negative real eigenvalue of W0⁻¹ W* of largest size; ∞ if there is none."""
    values = torch.linalg.eigvals(torch.linalg.solve(W0, Wstar))
    negative = -values.real[(values.imag == 0) & (values.real < 0)]
    return math.log1p(1 / float(negative.max())) if len(negative) else math.inf


def _maps(generator: torch.Generator, eigenvalues: Tensor, size: int = 5) -> tuple[Tensor, Tensor]:
    """W0 and W* = W0 M, where M has these eigenvalues and, in the rest, complex ones with negative real parts."""
    M = torch.zeros(size, size, dtype=torch.float64)
    M[range(len(eigenvalues)), range(len(eigenvalues))] = eigenvalues
    for i in range(len(eigenvalues), size - 1, 2):
        M[i : i + 2, i : i + 2] = torch.tensor([[-3.0, 1.0], [-1.0, -3.0]], dtype=torch.float64)
    basis = torch.linalg.qr(_draw(generator, size, size)).Q + 0.1 * _draw(generator, size, size)
    W0 = _draw(generator, size, size) + 3 * torch.eye(size, dtype=torch.float64)
    return W0, W0 @ basis @ M @ torch.linalg.inv(basis)


def _time(value) -> float:
    """A time, which may be ∞."""
    value = as_tensor(value)
    if value.numel() != 1:
        raise Mistake("shape", f"it is {tuple(value.shape)} and should be one number")
    if value.isnan():
        raise Mistake("not_finite")
    return float(value)


def _times(answer, generator):
    u = torch.rand(3, generator=generator, dtype=torch.float64)
    small, large, positive = -(0.2 + 0.3 * float(u[0])), -(1 + float(u[1])), 2 + float(u[2])
    W0, Wstar = _maps(generator, torch.tensor([small, large, positive], dtype=torch.float64))
    got = _time(answer(W0, Wstar))
    if math.isinf(got):
        raise Mistake("4-determinant", "the determinants of W(0) and W* have the same sign here, and it crosses twice")
    time = lambda mu: math.log1p(1 / abs(mu))  # noqa: E731
    want = time(large)
    pairs = (
        ("4-last", time(small)), ("4-positive", time(positive)), ("4-complex", time(-3.0)), ("4-log", 1 + 1 / abs(large)),
        ("4-log", 1 / (1 + 1 / abs(large))),
    )  # fmt: skip
    recognize(got, want, pairs)
    expect(got, want, tolerance=1e-6)


def _never(answer, generator):
    W0, Wstar = _maps(generator, torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64))
    got = _time(answer(W0, Wstar))
    if not math.isinf(got):
        keys = {-3.0: "4-complex", 0.5: "4-positive", 1.5: "4-positive", 2.5: "4-positive"}
        found = (key for mu, key in keys.items() if math.isclose(got, math.log1p(1 / abs(mu)), rel_tol=1e-6))
        raise Mistake(next(found, "unrecognized"), "no eigenvalue is real and negative here, so it is math.inf")


def _by_walking(W0, Wstar):
    """The first change of sign of the determinant on a fine grid of e^(−t), then bisection."""
    det = lambda q: float(torch.linalg.det(q * W0 + (1 - q) * Wstar))  # noqa: E731
    grid = torch.linspace(1, 1e-6, 4001).tolist()
    for high, low in pairwise(grid):
        if det(high) * det(low) < 0:
            for _ in range(60):
                middle = (high + low) / 2
                high, low = (middle, low) if det(high) * det(middle) > 0 else (high, middle)
            return -math.log(low)
    return math.inf


# ---- 4.4


def fisher_rank(widths: list[int]) -> int:
    """r (n₀ + n_L − r) with r the smallest width, inputs and outputs included."""
    r = min(widths)
    return r * (widths[0] + widths[-1] - r)


def _dense_rank(widths: list[int], generator: torch.Generator) -> int:
    """Of Jᵀ J on white inputs, counted."""
    Ws = [_draw(generator, above, below) for below, above in pairwise(widths)]
    columns = []
    for i, W in enumerate(Ws):
        above, below = torch.eye(widths[-1], dtype=W.dtype), torch.eye(widths[0], dtype=W.dtype)
        for other in Ws[i + 1 :][::-1]:
            above = above @ other
        for other in Ws[:i]:
            below = other @ below
        columns.append(torch.kron(above, below.mT.contiguous()))
    return int(torch.linalg.matrix_rank(torch.cat(columns, 1)))


def _ranks(answer, generator, cases):
    for widths in cases:
        want = _dense_rank(widths, generator)
        r, into, out = min(widths), widths[0], widths[-1]
        parameters = sum(a * b for a, b in pairwise(widths))
        pairs = (
            ("4-parameters", float(parameters)), ("4-narrow", float(into * out)), ("4-overlap", float(r * (into + out))),
            ("4-narrow", float(min(a * b for a, b in pairwise(widths)))),
        )  # fmt: skip
        got = as_tensor(answer(list(widths)), ())
        recognize(got, float(want), pairs)
        expect(got, float(want), about=f"widths {widths}")


def _bottlenecks(answer, generator):
    _ranks(answer, generator, ([6, 9, 2, 7, 5], [6, 4, 5], [7, 3, 8, 3, 4]))


def _no_bottlenecks(answer, generator):
    _ranks(answer, generator, ([3, 7, 6, 4], [5, 2], [4, 4, 4]))


def _rank_by_counting(widths):
    return torch.tensor(_dense_rank(widths, torch.Generator().manual_seed(0)))


EXERCISES = (
    Exercise(
        key="4.1",
        name="deep_linear_ng",
        reference=deep_linear_ng,
        parts=(Part("structure", 5, _square), Part("shape", 3, _wide), Part("edge cases", 2, _one_and_five)),
        wrong=(
            ("M12", lambda Ws, X, Y: [len(Ws) * V for V in deep_linear_ng(Ws, X, Y)]),
            ("M01", empirical),
            ("M02", _scaled_factor(-1)),
            ("M02", _scaled_factor(1)),
            ("M06", lambda Ws, X, Y: [V / Y.shape[1] for V in deep_linear_ng(Ws, X, Y)]),
            ("M08", lambda Ws, X, Y: _with(Ws, X, Y, _swapped)),
            ("M16", lambda Ws, X, Y: [len(Ws) * V for V in _with(Ws, X, Y, _plain)]),
            ("sign", lambda Ws, X, Y: [-V for V in deep_linear_ng(Ws, X, Y)]),
            ("4-layers", lambda Ws, X, Y: deep_linear_ng(Ws, X, Y)[0]),
            ("nothing", lambda Ws, X, Y: None),
        ),
        others=(_minimum_norm,),
        read="The cheap solution",
    ),
    Exercise(
        key="4.2",
        name="fit_rate",
        reference=fit_rate,
        parts=(Part("structure", 4, _slope), Part("edge cases", 2, _converged)),
        wrong=(
            ("4-per-step", lambda losses, lr: fit_rate(losses, 1.0)),
            ("unrecognized", lambda losses, lr: fit_rate(losses[5:], lr)),
            ("4-log10", lambda losses, lr: fit_rate(losses, lr) / math.log(10)),
            ("4-root", lambda losses, lr: fit_rate([loss**0.5 for loss in losses], lr)),
            ("4-ends", lambda losses, lr: math.log(losses[-1] / losses[0]) / (lr * (len(losses) - 1))),
            ("4-zero", lambda losses, lr: fit_rate([max(loss, 1e-300) for loss in losses], lr)),
            ("sign", lambda losses, lr: -fit_rate(losses, lr)),
        ),
        others=(_by_lstsq,),
        read="A straight line in function space",
    ),
    Exercise(
        key="4.3",
        name="predict_failure",
        reference=predict_failure,
        parts=(Part("structure", 4, _times), Part("edge cases", 3, _never)),
        wrong=(
            ("4-last", lambda W0, Wstar: math.log1p(1 / float(_negative(W0, Wstar).min()))),
            ("4-positive", lambda W0, Wstar: math.log1p(1 / _real(W0, Wstar).max().item())),
            ("4-complex", lambda W0, Wstar: math.log1p(1 / -float(_eigenvalues(W0, Wstar).real.min()))),
            ("4-log", lambda W0, Wstar: math.exp(predict_failure(W0, Wstar))),
            ("4-determinant", lambda W0, Wstar: math.inf),
        ),
        others=(_by_walking,),
        read="Where it ends",
    ),
    Exercise(
        key="4.4",
        name="fisher_rank",
        reference=fisher_rank,
        parts=(Part("structure", 4, _bottlenecks), Part("edge cases", 2, _no_bottlenecks)),
        wrong=(
            ("4-parameters", lambda widths: sum(a * b for a, b in pairwise(widths))),
            ("4-narrow", lambda widths: widths[0] * widths[-1]),
            ("4-narrow", lambda widths: min(a * b for a, b in pairwise(widths))),
            ("4-overlap", lambda widths: min(widths) * (widths[0] + widths[-1])),
        ),
        others=(_rank_by_counting,),
        read="Infinitely many natural gradients",
    ),
)  # fmt: skip


def _eigenvalues(W0, Wstar):
    return torch.linalg.eigvals(torch.linalg.solve(W0, Wstar))


def _real(W0, Wstar):
    values = _eigenvalues(W0, Wstar)
    return values.real[values.imag.abs() < 1e-9]


def _negative(W0, Wstar):
    values = _real(W0, Wstar)
    return -values[values < 0]
