"""Exercises of lesson 02: the exact Fisher, a sampled one, a block from its factors, a diagonal, a trap for labels."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from natgrad_lab.course.diagnose import Mistake, as_tensor, expect
from natgrad_lab.course.exercise import Exercise, Part

MISTAKES = {
    "2-diag": "The output matrix is diag(p) only. Probabilities sum to 1: what one gains the others lose.",
    "2-logits": "Logits are no probabilities: they have to go through softmax.",
    "2-overflow": "exp overflows for large logits. Subtract each example's largest logit first, or let softmax do it.",
    "2-doubles": "Copying the data set must change nothing; a mean over examples has that property, a sum has not.",
    "2-uniform": "Labels are drawn, but not from the prediction of the example.",
    "2-samples": "With more samples the result grows or shrinks: take the mean over the samples.",
    "2-one-draw": "More samples do not make the result more precise: is each of them a new draw?",
    "2-generator": "The same generator in the same state gives another result: randomness comes from elsewhere.",
    "2-reshape": "The entries are products of the right numbers at the wrong places: it is no Kronecker product.",
    "2-sum": "That is a sum of two Kronecker products with identities, not the product.",
    "2-variance": "The variance enters wrongly: the Fisher of a Gaussian's mean is 1/σ².",
    "2-agrees": "On your data the empirical direction is not bad enough. Which residuals does it divide by?",
    "2-flat": "On your data the gradient is zero: the model fits them already.",
    "2-singular": "On your data the Fisher is singular: the line is not determined.",
}
F64 = torch.float64


def _scores_of(p: Tensor) -> Tensor:
    """e_c − p for every class c: (N, C, C), the class of the label first."""
    return torch.eye(p.shape[1], dtype=F64) - p.unsqueeze(1)


def _mean_over_labels(J: Tensor, p: Tensor, weights: Tensor) -> Tensor:
    """(1/N) Σ_n J_nᵀ Σ_c w_nc (e_c − p_n)(e_c − p_n)ᵀ J_n."""
    rows = _scores_of(p) @ J  # (N, C, P)
    return torch.einsum("ncp,nc,ncq->pq", rows, weights, rows) / len(J)


# ---- 2.1


def fisher_softmax(J: Tensor, z: Tensor) -> Tensor:
    """(1/N) Σ_n J_nᵀ (diag(p_n) − p_n p_nᵀ) J_n, p_n = softmax(z_n)."""
    p = z.softmax(1)
    Jp = torch.einsum("nc,ncp->np", p, J)
    return (torch.einsum("ncp,nc,ncq->pq", J, p, J) - Jp.mT @ Jp) / len(J)


def _with_output_matrices(J, output):
    return torch.einsum("ncp,ncd,ndq->pq", J, output, J) / len(J)


def _only_diag(J, z):
    return _with_output_matrices(J, torch.diag_embed(z.softmax(1)))


def _of_logits(J, z):
    return _with_output_matrices(J, torch.diag_embed(z) - z.unsqueeze(2) * z.unsqueeze(1))


def _naive_softmax(J, z):
    p = z.exp() / z.exp().sum(1, keepdim=True)
    return _with_output_matrices(J, torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))


def _softmax_instance(generator, N=7, C=3, P=5):
    J = torch.randn(N, C, P, generator=generator, dtype=F64)
    return J, 1.5 * torch.randn(N, C, generator=generator, dtype=F64)


def _exact_values(answer, generator):
    J, z = _softmax_instance(generator)
    N, C, P = J.shape
    suspects = {"2-diag": _only_diag(J, z), "2-logits": _of_logits(J, z)}
    keys = {"N": "M02", "1/N": "M03", "1/N²": "M03"}
    about = f"{N} examples, {C} classes, {P} parameters"
    expect(
        answer(J, z), fisher_softmax(J, z), suspects=suspects, scalars={"N": float(N), "C": float(C)}, keys=keys, about=about
    )


def _copied_data(answer, generator):
    J, z = _softmax_instance(generator)
    once, twice = (as_tensor(answer(*pair), (5, 5)) for pair in ((J, z), (torch.cat([J, J]), torch.cat([z, z]))))
    if not torch.allclose(once, twice, atol=1e-6 * float(once.abs().max())):
        raise Mistake("2-doubles", f"copied once, its trace goes from {once.trace():.3g} to {twice.trace():.3g}")


def _certain_predictions(answer, generator):
    J, z = _softmax_instance(generator)
    z = z + 800 * one_hot(torch.arange(7) % 3, 3) + 800 * (torch.arange(7) % 2).unsqueeze(1)
    got = as_tensor(answer(J, z))
    if not got.isfinite().all():
        raise Mistake("2-overflow", f"the largest logit is {z.max():.0f}")
    if got.shape != (5, 5) or got.abs().max() > 1e-9:
        raise Mistake("unrecognized", "all predictions are certain, so the Fisher is zero")


def _by_loops(J, z):
    total = torch.zeros(J.shape[2], J.shape[2])
    for j, logits in zip(J, z, strict=True):
        p = torch.softmax(logits, 0)
        for c in range(len(p)):
            score = torch.eye(len(p))[c] - p
            total += p[c] * torch.outer(j.T @ score, j.T @ score)
    return (total / len(J)).numpy()


# ---- 2.2


def fisher_mc(J: Tensor, z: Tensor, y: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """The Fisher with `num_samples` labels drawn for each example from the model."""
    p = z.softmax(1)
    labels = torch.multinomial(p, num_samples, replacement=True, generator=generator)  # (N, S)
    shares = one_hot(labels, p.shape[1]).to(p.dtype).mean(1)
    return _mean_over_labels(J, p, shares)


def _mc_instance(generator, N=5, C=3, P=4):
    """Each example expects a class of its own, mostly the first; its label in the data is one that it does not expect."""
    J = torch.randn(N, C, P, generator=generator, dtype=F64)
    favourite = torch.tensor([0, 1, 0, 2, 0])
    z = 2 * one_hot(favourite, C) + 0.3 * torch.randn(N, C, generator=generator, dtype=F64)
    return J, z, (favourite + 1) % C


def _generator(generator):
    return torch.Generator().manual_seed(int(torch.randint(2**40, (), generator=generator)))


def _draws(answer, generator):
    """What is random, and does it come from the generator?"""
    J, z, y = _mc_instance(generator)
    seed = int(torch.randint(2**40, (), generator=generator))
    fresh = lambda number: torch.Generator().manual_seed(number)  # noqa: E731
    first, again = (as_tensor(answer(J, z, y, 6, fresh(seed)), (4, 4)) for _ in range(2))
    others = [as_tensor(answer(J, z, y, 6, fresh(seed + k)), (4, 4)) for k in (1, 2, 3)]
    p = z.softmax(1)
    empirical = _mean_over_labels(J, p, one_hot(y, 3).to(F64))
    if not first.any():
        raise Mistake("M25")
    for factor in (1, 5, 1 / 5, 6):
        if torch.allclose(first, factor * empirical):
            raise Mistake("M01", "it is the same for every generator, and changes with y")
    if all(torch.allclose(first, other) for other in others):
        raise Mistake("M17", "it is the same for every generator")
    if not torch.allclose(first, again):
        raise Mistake("2-generator")


def _unbiased(answer, generator):
    """The mean of many results is the exact Fisher."""
    J, z, y = _mc_instance(generator)
    own, N, S, repeats = _generator(generator), len(J), 40, 25
    mean = sum(as_tensor(answer(J, z, y, S, own), (4, 4)) for _ in range(repeats)) / repeats
    want, p = fisher_softmax(J, z), z.softmax(1)
    off = lambda value: float((mean - value).norm() / value.norm())  # noqa: E731
    if off(want) < 0.2:  # one label is off by about 1, a thousand by 0.03
        return
    every = lambda w: _mean_over_labels(J, p, w.expand(N, -1))  # noqa: E731
    suspects = (
        ("M17", every(p.mean(0))), ("M17", every(p[0])), ("2-uniform", every(torch.full((3,), 1 / 3, dtype=F64))),
        ("M02", N * want), ("M03", want / N), ("M03", want / N**2), ("2-samples", S * want), ("2-samples", want / S),
    )  # fmt: skip
    key, value = min(suspects, key=lambda pair: off(pair[1]))
    evidence = f"the mean of {repeats} results has {mean.trace() / want.trace():.3g} times the right trace"
    raise Mistake(key if off(value) < 0.15 else "unrecognized", evidence)


def _more_samples(answer, generator):
    """Forty samples instead of four: results that scatter three times less."""
    J, z, y = _mc_instance(generator)
    own, scatter = _generator(generator), []
    for S in (4, 40):
        results = torch.stack([as_tensor(answer(J, z, y, S, own), (4, 4)) for _ in range(16)])
        scatter.append(float(results.std(0).norm() / results.mean(0).norm()))
    if not scatter[1] < scatter[0] / 1.8:
        raise Mistake("2-one-draw", f"results scatter by {scatter[0]:.0%} with 4 samples, by {scatter[1]:.0%} with 40")


def _mc(labels_of):
    """A wrong answer on purpose, which draws its labels (N, S) in its own way."""

    def answer(J, z, y, num_samples, generator):
        p = z.softmax(1)
        labels = labels_of(p, y, num_samples, generator)
        return _mean_over_labels(J, p, one_hot(labels, p.shape[1]).to(F64).mean(1))

    return answer


def _multinomial(p, count, generator):
    return torch.multinomial(p, count, replacement=True, generator=generator)


def _mc_by_uniforms(J, z, y, num_samples, generator):
    p, total = z.softmax(1), torch.zeros(J.shape[2], J.shape[2])
    for _ in range(num_samples):
        u = torch.rand(len(p), 1, generator=generator)
        label = (p.cumsum(1) < u).sum(1).clamp(max=p.shape[1] - 1)
        scores = torch.einsum("ncp,nc->np", J, one_hot(label, p.shape[1]) - p)
        total += scores.T @ scores / len(scores)
    return total / num_samples


# ---- 2.3


def block_from_factors(A: Tensor, G: Tensor) -> Tensor:
    """G ⊗ A: the block of a layer whose weights are flattened row by row."""
    return torch.kron(G, A)


def _factors(generator, outputs=3, inputs=4):
    s, a = (torch.randn(9, size, generator=generator, dtype=F64) for size in (outputs, inputs))
    return a.mT @ a / 9, s.mT @ s / 9


def _reshaped(A, G):
    return torch.einsum("ik,ab->ikab", G, A).reshape(len(G) * len(A), -1)


def _kronecker_sum(A, G):
    return torch.kron(G, torch.eye(len(A), dtype=F64)) + torch.kron(torch.eye(len(G), dtype=F64), A)


def _block_values(answer, generator):
    A, G = _factors(generator)
    suspects = {"M07": torch.kron(A, G), "2-sum": _kronecker_sum(A, G)}
    got, want = as_tensor(answer(A, G)), block_from_factors(A, G)
    same_numbers = got.shape == want.shape and torch.allclose(got.flatten().sort()[0], want.flatten().sort()[0])
    if same_numbers and not any(got.shape == s.shape and torch.allclose(got, s) for s in (want, suspects["M07"])):
        raise Mistake("2-reshape")
    expect(got, want, suspects=suspects, about="3 outputs, 4 inputs")


def _block_times_vector(answer, generator):
    A, G = _factors(generator)
    V = torch.randn(3, 4, generator=generator, dtype=F64)
    product = as_tensor(answer(A, G), (12, 12)) @ V.flatten()
    expect(product, (G @ V @ A).flatten(), suspects={"M07": torch.kron(A, G) @ V.flatten()}, about="block times vec(V)")


def _one_example(answer, generator):
    s, a = (torch.randn(size, generator=generator, dtype=F64) for size in (2, 5))
    gradient = torch.outer(s, a).flatten()  # of one output's score through a layer s = W a, row by row
    A, G = torch.outer(a, a), torch.outer(s, s)
    expect(answer(A, G), torch.outer(gradient, gradient), suspects={"M07": torch.kron(A, G)}, about="one example")


def _block_by_loops(A, G):
    rows, columns = len(G), len(A)
    block = torch.zeros(rows * columns, rows * columns)
    for i in range(rows):
        for k in range(rows):
            block[i * columns : (i + 1) * columns, k * columns : (k + 1) * columns] = G[i, k] * A
    return block


# ---- 2.4


def fisher_diagonal(J: Tensor, variance: float) -> Tensor:
    """Diagonal of the Fisher of a Gaussian with means J θ: (1/N) Σ_n Σ_c J_ncp² / variance."""
    return J.square().sum(1).mean(0) / variance


def _diagonal_values(answer, generator):
    N, C, P = 7, 3, 5
    J = torch.randn(N, C, P, generator=generator, dtype=F64) + 0.5
    variance = 0.3
    want, got = fisher_diagonal(J, variance), as_tensor(answer(J, variance))
    if got.numel() == 1 and N > 1:
        raise Mistake("M05", f"it is one number; there are {P} parameters")
    centred = (J - J.mean(0)).square().sum(1).sum(0) / variance
    suspects = {"M04": centred / N, "2-variance": want * variance}
    for key, value in {"M04": centred / (N - 1), "2-variance": want / variance}.items():
        expect_not(got, value, key)
    expect_not(got, want * math.sqrt(variance), "2-variance")
    expect_not(got, want * variance**2, "2-variance")
    keys = {"N": "M02", "1/N": "M03", "1/N²": "M03", "2": "M06", "C": "M06"}
    expect(got, want, suspects=suspects, scalars={"N": float(N), "C": float(C)}, keys=keys, about=f"{N} examples, {C} outputs")


def expect_not(got: Tensor, wrong: Tensor, key: str) -> None:
    """Raise Mistake(key) if `got` is that wrong result."""
    if got.shape == wrong.shape and torch.allclose(got, wrong, rtol=1e-9, atol=0):
        raise Mistake(key)


def _diagonal_of_copies(answer, generator):
    J = torch.randn(4, 2, 3, generator=generator, dtype=F64)
    got = as_tensor(answer(torch.cat([J, J, J]), 1.0))
    expect(got, fisher_diagonal(J, 1.0), scalars={"copies": 3.0}, keys={"copies": "M02"}, about="a data set copied three times")


def _diagonal_by_loops(J, variance):
    result = [0.0] * J.shape[2]
    for example in J.tolist():
        for output in example:
            result = [old + new * new / variance / len(J) for old, new in zip(result, output, strict=True)]
    return result


# ---- 2.5


def empirical_trap(w: float, b: float) -> tuple[Tensor, Tensor]:
    """Inputs (N,) and targets (N,) on which the empirical Fisher at f = w x + b gives a nearly useless step."""
    x = torch.tensor([-1.0, 1.0], dtype=F64)
    return x, w * x + b + torch.tensor([1.0, 20.0], dtype=F64)


def trap_efficiency(x: Tensor, y: Tensor, w: float, b: float, damping: float = 1e-9) -> float:
    """Squared cosine in F between the natural gradient and the empirical Fisher's direction, for least squares on a line.

    Raises: Mistake "2-flat" or "2-singular" where it is not defined.
    """
    features = torch.stack([x, torch.ones_like(x)], 1)
    residual = y - w * x - b
    g = -(residual.unsqueeze(1) * features).mean(0)
    F = features.mT @ features / len(x)
    E = (residual.unsqueeze(1) * features).mT @ (residual.unsqueeze(1) * features) / len(x)
    if float(g.norm()) < 1e-9 * max(1.0, float(features.norm())):
        raise Mistake("2-flat")
    if float(torch.linalg.cond(F)) > 1e8:
        raise Mistake("2-singular", f"its condition number is {float(torch.linalg.cond(F)):.1e}")
    step = torch.linalg.solve(E + damping * E.trace() * torch.eye(2, dtype=F64), g)
    return float((g @ step) ** 2 / ((step @ F @ step) * (g @ torch.linalg.solve(F, g))))


def _trap(answer, generator):
    w, b = torch.randn(2, generator=generator, dtype=F64).tolist()
    got = answer(w, b)
    if hasattr(got, "tolist"):  # both in one array
        got = got.tolist()
    if not isinstance(got, list | tuple) or len(got) != 2:
        raise Mistake("kind", "return a pair: the inputs and the targets")
    x = as_tensor(got[0])
    y = as_tensor(got[1], x.shape)
    if x.ndim != 1 or len(x) < 2 or not x.isfinite().all():
        raise Mistake("shape", f"inputs are {tuple(x.shape)}; give two finite numbers or more")
    efficiency = trap_efficiency(x, y, w, b)
    if math.isnan(efficiency):
        raise Mistake("not_finite", "in the Fishers of your data: the numbers are too large")
    if efficiency > 0.05:
        raise Mistake("2-agrees", f"its direction still reaches {efficiency:.0%} of the possible decrease; at most 5 %")


def _many_points(w, b):
    x = torch.linspace(-2, 2, 12, dtype=F64)
    return x.tolist(), (w * x + b + torch.where(x > 1.8, 300.0, 0.5 - 0.1 * x)).tolist()


def _noisy_line(w, b):
    x = torch.linspace(-2, 2, 12, dtype=F64)
    return x, 2 * x - 1 + 0.3 * torch.sin(40 * x)


EXERCISES = (
    Exercise(
        key="2.1",
        name="fisher_softmax",
        reference=fisher_softmax,
        parts=(
            Part("values", 5, _exact_values), Part("copied data", 2, _copied_data), Part("edge cases", 2, _certain_predictions),
        ),
        wrong=(
            ("M02", lambda J, z: len(J) * fisher_softmax(J, z)),
            ("M03", lambda J, z: fisher_softmax(J, z) / len(J)),
            ("2-diag", _only_diag),
            ("2-logits", _of_logits),
            ("M25", lambda J, z: torch.zeros(J.shape[2], J.shape[2])),
            ("shape", lambda J, z: fisher_softmax(J, z).diagonal()),
            ("2-overflow", _naive_softmax),
            ("2-overflow", lambda J, z: _naive_softmax(J, z - z.max())),
        ),
        others=(_by_loops,),
        read="Five recipes",
    ),
    Exercise(
        key="2.2",
        name="fisher_mc",
        reference=fisher_mc,
        parts=(Part("draws", 2, _draws), Part("more samples", 2, _more_samples), Part("unbiased", 5, _unbiased)),
        wrong=(
            ("M01", _mc(lambda p, y, S, generator: y.unsqueeze(1))),
            ("M17", _mc(lambda p, y, S, generator: p.argmax(1, keepdim=True))),
            ("M17", _mc(lambda p, y, S, generator: _multinomial(p.mean(0), S, generator).expand(len(p), -1))),
            ("2-uniform", _mc(lambda p, y, S, generator: torch.randint(3, (len(p), S), generator=generator))),
            ("M02", lambda J, z, y, S, generator: len(J) * fisher_mc(J, z, y, S, generator)),
            ("M03", lambda J, z, y, S, generator: fisher_mc(J, z, y, S, generator) / len(J)),
            ("2-samples", lambda J, z, y, S, generator: S * fisher_mc(J, z, y, S, generator)),
            ("2-one-draw", _mc(lambda p, y, S, generator: _multinomial(p, 1, generator).expand(-1, S))),
            ("global_rng", _mc(lambda p, y, S, generator: _multinomial(p, S, None))),
        ),
        others=(_mc_by_uniforms,),
        read="Labels from the model",
    ),
    Exercise(
        key="2.3",
        name="block_from_factors",
        reference=block_from_factors,
        parts=(
            Part("values", 4, _block_values), Part("products", 3, _block_times_vector), Part("one example", 2, _one_example),
        ),
        wrong=(
            ("M07", lambda A, G: torch.kron(A, G)),
            ("2-reshape", _reshaped),
            ("2-sum", _kronecker_sum),
            ("shape", lambda A, G: torch.einsum("ik,ab->iakb", G, A)),
            ("scaled", lambda A, G: 4 * torch.kron(G, A)),
            ("nothing", lambda A, G: None),
        ),
        others=(_block_by_loops, lambda A, G: torch.einsum("ik,ab->iakb", G, A).reshape(len(G) * len(A), -1)),
        read="The order of the parameters",
    ),
    Exercise(
        key="2.4",
        name="fisher_diagonal",
        reference=fisher_diagonal,
        parts=(Part("values", 6, _diagonal_values), Part("copied data", 3, _diagonal_of_copies)),
        wrong=(
            ("M05", lambda J, variance: J.square().sum(1).mean() / variance),
            ("M06", lambda J, variance: 2 * fisher_diagonal(J, variance)),
            ("M06", lambda J, variance: J.square().mean((0, 1)) / variance),
            ("M04", lambda J, variance: J.var(0).sum(0) / variance),
            ("M02", lambda J, variance: J.square().sum((0, 1)) / variance),
            ("M03", lambda J, variance: (J / len(J)).square().sum((0, 1)) / variance),
            ("2-variance", lambda J, variance: J.square().sum(1).mean(0) * variance),
            ("M25", lambda J, variance: torch.zeros(J.shape[2])),
        ),
        others=(_diagonal_by_loops, lambda J, variance: np.diagonal(sum(j.T @ j for j in J.numpy()) / len(J) / variance)),
        read="Where did N go?",
    ),
    Exercise(
        key="2.5",
        name="empirical_trap",
        reference=empirical_trap,
        parts=(Part("trap", 5, _trap),),
        wrong=(
            ("2-agrees", _noisy_line),
            ("2-flat", lambda w, b: (torch.tensor([0.0, 1.0]), torch.tensor([b, w + b]))),
            ("2-singular", lambda w, b: (torch.ones(4), torch.arange(4.0))),
            ("shape", lambda w, b: (torch.ones(4), torch.arange(3.0))),
            ("not_finite", lambda w, b: ([-1e200, 1e200], [1e300, -1e300])),
        ),
        others=(_many_points, lambda w, b: torch.stack(empirical_trap(w, b))),
        read="What the labels do",
    ),
)  # fmt: skip
