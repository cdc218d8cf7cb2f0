"""Exercises of lesson 11: the noisy quadratic model, the critical batch, statistics over workers, and staleness."""

import torch
from torch import Tensor

from natgrad_lab.course.diagnose import Mistake, as_tensor, expect, recognize
from natgrad_lab.course.exercise import Exercise, Part

MISTAKES = {
    "11-batch-squared": "The noise falls too fast with the batch: the variance of a mean of B numbers is 1/B of one.",
    "11-batch-root": "That is how the noise itself falls with the batch; the risk holds its variance.",
    "11-noise-raw": "The noise is not preconditioned. The step multiplies all of the gradient, its noise too.",
    "11-noise-once": "The preconditioner enters the noise once; a variance takes it squared.",
    "11-stationary": "That is the noise after infinitely many steps. After a few it has not yet gathered.",
    "11-no-noise": "The noise is missing.",
    "11-power": "The bias shrinks as in gradient descent: the preconditioner is missing in its factor.",
    "11-once": "θ shrinks by r in each step, and the risk holds its square.",
    "11-half": "The risk is ½ Σ h θ².",
    "11-curvature": "Each coordinate counts with its curvature h.",
    "11-steps-only": "Steps were compared; efficiency compares examples, steps times batch size.",
    "11-first-bad": "That is the first batch size that fails. The last one that holds is asked for.",
    "11-largest": "A larger batch that happens to pass after one that failed does not count: stop at the first that fails.",
    "11-neighbour": "Each batch size was compared with the one before. Efficiency is relative to the smallest.",
    "11-mean-of-means": "A mean of the workers' means weighs a small shard as much as a large one.",
    "11-damped-twice": "The damping was added once for each worker.",
    "11-not-inverted": "That is the damped factor itself. Its inverse is asked for.",
    "11-off-by-one": "The preconditioner is one step too old, or too young.",
    "11-wrapped": "Before step `delay` the index is negative, and Python counts it from the end: that is the future.",
    "11-period": "That refreshes the preconditioner every few steps. Here it is always `delay` steps old.",
    "11-gradient-stale": "The gradient is old as well. Only the preconditioner is; gradients are of this step.",
    "11-fresh": "The delay changes nothing in your answer.",
    "11-last-curvature": "The loss at the end has the curvatures of the last step.",
}


def _rand(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


# ---- 11.1


def nqm_risk(steps: int, batch: int, lr: float, h: Tensor, c: Tensor, power: float) -> float:
    """½ Σ h (r^2t + (lr h^−p)² c/B (1 − r^2t)/(1 − r²)) with r = 1 − lr h^(1−p), from θ = 1."""
    r = 1 - lr * h ** (1 - power)
    shrunk = r ** (2 * steps)
    noise = (lr * h**-power) ** 2 * c / batch * (1 - shrunk) / (1 - r**2)
    return float(0.5 * (h * (shrunk + noise)).sum())


def _model(generator: torch.Generator, dim: int = 6):
    h = torch.arange(1, dim + 1, dtype=torch.float64) ** -1.0 * (0.8 + 0.4 * _rand(generator, dim))
    c = h * (0.5 + _rand(generator, dim))
    return h, c, 0.2 + 0.3 * float(_rand(generator, 1))


def _parts(steps, batch, lr, h, c, power):
    """Bias and noise of every coordinate."""
    r = 1 - lr * h ** (1 - power)
    shrunk = r ** (2 * steps)
    return shrunk, (lr * h**-power) ** 2 * c / batch, (1 - shrunk) / (1 - r**2), r


def _risk(answer, generator):
    h, c, lr = _model(generator)
    for power in (0.5, 0.0, 1.0):
        steps, batch = 7, 5
        bias, kick, gathered, r = _parts(steps, batch, lr, h, c, power)
        total = lambda second, weight=h: 0.5 * (weight * second).sum()  # noqa: E731
        noise = kick * gathered
        plain = (1 - lr * h) ** (2 * steps)
        pairs = (
            ("11-batch-squared", total(bias + noise / batch)), ("11-batch-root", total(bias + noise * batch**0.5)),
            ("M02", total(bias + noise * batch)), ("11-noise-raw", total(bias + lr**2 * c / batch * gathered)),
            ("11-noise-once", total(bias + lr**2 * h**-power * c / batch * gathered)),
            ("11-stationary", total(bias + kick / (1 - r**2))), ("11-no-noise", total(bias)),
            ("11-power", total(plain + noise)), ("11-power", total(plain + kick * (1 - plain) / (1 - (1 - lr * h) ** 2))),
            ("11-once", total(r**steps + noise)), ("11-half", 2 * total(bias + noise)),
            ("11-curvature", total(bias + noise, torch.ones_like(h))),
        )  # fmt: skip
        got, want = as_tensor(answer(steps, batch, lr, h, c, power), ()), float(total(bias + noise))
        recognize(got, want, pairs)
        expect(got, want, about=f"power {power}")


def _recursion(answer, generator):
    """Step by step, at the start and far on."""
    h, c, lr = _model(generator, 4)
    for steps, power in ((0, 0.5), (1, 1.0), (300, 0.25)):
        second = torch.ones_like(h)
        for _ in range(steps):
            second = (1 - lr * h ** (1 - power)) ** 2 * second + (lr * h**-power) ** 2 * c / 3
        expect(answer(steps, 3, lr, h, c, power), float(0.5 * (h * second).sum()), about=f"after {steps} steps")


def _risk_by_steps(steps, batch, lr, h, c, power):
    total = 0.0
    for hi, ci in zip(h.tolist(), c.tolist(), strict=True):
        second, q = 1.0, hi**-power
        for _ in range(steps):
            second = (1 - lr * q * hi) ** 2 * second + (lr * q) ** 2 * ci / batch
        total += 0.5 * hi * second
    return total


# ---- 11.2


def critical_batch(batches: list[int], steps: list[float], efficiency: float) -> int:
    """The last batch size before the first with batches[0] steps[0] < efficiency · batch · steps."""
    found = batches[0]
    for batch, count in zip(batches, steps, strict=True):
        if batches[0] * steps[0] < efficiency * batch * count:
            break
        found = batch
    return found


def _curve(generator: torch.Generator) -> tuple[list[int], list[float]]:
    """Perfect scaling that bends into a floor between the fifth and the eighth of 12 batch sizes."""
    batches = [2 ** (k + 1) for k in range(12)]
    bend = batches[4 + int(4 * _rand(generator, 1))]
    return batches, [float(round(1e6 / batch + 1e6 / bend / 3)) for batch in batches]


def _critical(answer, generator):
    batches, steps = _curve(generator)
    want = critical_batch(batches, steps, 0.6)
    place = batches.index(want)
    by_steps = [b for b, s in zip(batches, steps, strict=True) if s >= 0.6 * steps[0]]
    fair = [a for a, b, s, t in zip(batches[1:], batches, steps[1:], steps, strict=False) if b * t >= 0.6 * a * s]
    pairs = (
        ("11-first-bad", batches[place + 1]), ("11-steps-only", max(by_steps)), ("11-neighbour", max(fair, default=0)),
    )  # fmt: skip
    got = as_tensor(answer(list(batches), list(steps), 0.6), ())
    recognize(got, float(want), ((key, float(value)) for key, value in pairs))
    expect(got, float(want))


def _bumpy(answer, generator):
    batches, steps = _curve(generator)
    want = critical_batch(batches, steps, 0.5)
    lucky = [*steps]
    lucky[-1] = batches[0] * steps[0] / batches[-1]  # one point far on is perfect by chance
    got = float(as_tensor(answer(list(batches), lucky, 0.5), ()))
    if got == batches[-1]:
        raise Mistake("11-largest")
    expect(got, float(want), about="efficiency 0.5")
    expect(answer([8, 16], [100.0, 90.0], 0.9), 8.0, about="only the smallest batch is efficient")
    expect(answer([8, 16, 32], [100.0, 100.0, 90.0], 0.5), 16.0, about="a batch size has exactly that efficiency")


def _by_counting(batches, steps, efficiency):
    examples = torch.tensor(batches) * torch.tensor(steps, dtype=torch.float64)
    good = (examples[0] >= efficiency * examples).long().cumprod(0)
    return torch.tensor(batches)[good.sum() - 1]


# ---- 11.3


def allreduce_stats(shards: list[Tensor], damping: float) -> Tensor:
    """(A + damping I)⁻¹, A the second moment over all examples of all shards: sums are added, divided, then inverted."""
    total = sum(shard.mT @ shard for shard in shards)
    A = total / sum(len(shard) for shard in shards)
    return torch.linalg.inv(A + damping * torch.eye(len(A), dtype=A.dtype))


def _shards(generator: torch.Generator) -> list[Tensor]:
    scales = (0.5, 2.0, 1.0)
    return [
        scale * torch.randn(n, 4, generator=generator, dtype=torch.float64) + 0.5
        for n, scale in zip((5, 17, 9), scales, strict=True)
    ]


def _reduced(answer, generator):
    shards, damping = _shards(generator), 0.1
    eye = torch.eye(4, dtype=torch.float64)
    N, K, every = sum(map(len, shards)), len(shards), torch.cat(shards)
    own = [shard.mT @ shard / len(shard) for shard in shards]
    A, weights = every.mT @ every / N, [len(shard) / N for shard in shards]
    inverse = lambda M: torch.linalg.inv(M + damping * eye)  # noqa: E731
    pairs = (
        ("M21", sum(inverse(each) for each in own) / K),
        ("M21", sum(w * inverse(each) for w, each in zip(weights, own, strict=True))),
        ("11-mean-of-means", inverse(sum(own) / K)), ("M02", inverse(N * A)), ("M02", inverse(sum(own))),
        ("11-damped-twice", torch.linalg.inv(A + K * damping * eye)),
        ("M04", inverse(A - torch.outer(every.mean(0), every.mean(0)))), ("M04", inverse(torch.cov(every.mT))),
        ("11-not-inverted", A + damping * eye), ("11-not-inverted", A), ("M09", torch.linalg.inv(A + damping / N * eye)),
        ("M09", torch.linalg.inv(A + N * damping * eye)),
    )  # fmt: skip
    got, want = answer([shard.clone() for shard in shards], damping), inverse(A)
    if torch.is_tensor(got):
        recognize(got, want, pairs)
    expect(got, want)


def _same_data(answer, generator):
    """However the examples are dealt out, the result is the same."""
    every = torch.cat(_shards(generator))
    want = allreduce_stats([every], 0.3)
    for cuts in ((1, 30), (10, 20), (2, 3)):
        pieces = [every[: cuts[0]], every[cuts[0] : cuts[1]], every[cuts[1] :]]
        expect(answer([piece.clone() for piece in pieces], 0.3), want, about=f"shards of {[len(p) for p in pieces]}")


def _by_stacking(shards, damping):
    U, s, _ = torch.linalg.svd(torch.cat(list(shards)).T, full_matrices=True)
    return (U / (s**2 / sum(len(shard) for shard in shards) + damping)) @ U.T


# ---- 11.4


def staleness_effect(h: Tensor, lr: float, delay: int) -> float:
    """Final loss ½ Σ h_T θ² of θ ← θ − lr h_t θ / h_(t−delay), from θ = 1; before step `delay` the first curvatures serve."""
    theta = torch.ones_like(h[0])
    for t in range(len(h)):
        theta = theta - lr * h[t] * theta / h[max(t - delay, 0)]
    return float(0.5 * (h[-1] * theta**2).sum())


def _drifting(generator: torch.Generator, steps: int = 12, dim: int = 5) -> Tensor:
    start = 0.5 + _rand(generator, dim)
    growth = 0.1 * torch.linspace(-1, 1, dim, dtype=torch.float64) * (0.5 + _rand(generator, steps, dim))
    return start * growth.cumsum(0).exp()


def _with_lag(h, lr, lag, old_gradient=False):
    """As the reference, with the index of the preconditioner from `lag`."""
    path = [torch.ones_like(h[0])]
    for t in range(len(h)):
        at = max(t - lag(t), 0) if lag(t) >= 0 or t - lag(t) < len(h) else len(h) - 1
        source = path[at] if old_gradient else path[-1]
        path.append(path[-1] - lr * (h[at] if old_gradient else h[t]) * source / h[at])
    return path[-1]


def _stale(answer, generator):
    h, lr, delay = _drifting(generator), 0.4, 3
    end = lambda theta, last=h[-1]: 0.5 * (last * theta**2).sum()  # noqa: E731
    want = staleness_effect(h, lr, delay)
    wrapped = torch.ones_like(h[0])
    for t in range(len(h)):
        wrapped = wrapped - lr * h[t] * wrapped / h[t - delay]
    fresh = _with_lag(h, lr, lambda t: 0)
    exact = _with_lag(h, lr, lambda t: delay)
    pairs = (
        ("11-fresh", end(fresh)), ("11-wrapped", end(wrapped)),
        *(("11-off-by-one", end(_with_lag(h, lr, lambda t, d=d: d))) for d in (delay - 1, delay + 1)),
        ("11-period", end(_with_lag(h, lr, lambda t: t % delay))),
        ("11-gradient-stale", end(_with_lag(h, lr, lambda t: delay, old_gradient=True))),
        ("11-half", 2 * end(exact)), ("11-last-curvature", end(exact, h[0])),
        ("11-curvature", end(exact, torch.ones_like(h[0]))),
    )  # fmt: skip
    got = as_tensor(answer(h, lr, delay), ())
    recognize(got, want, pairs)
    expect(got, want)


def _no_delay(answer, generator):
    h = _drifting(generator)
    expect(
        answer(h, 0.5, 0), float(0.5 * h[-1].sum() * 0.25 ** len(h)), tolerance=1e-7, about="no delay: θ halves in every step"
    )
    expect(
        answer(h, 0.4, 100), staleness_effect(h, 0.4, 100), about="a delay longer than the run: the first curvatures all along"
    )


def _at_once(h, lr, delay):
    old = h[(torch.arange(len(h)) - delay).clamp(min=0)]
    return 0.5 * h[-1] @ (1 - lr * h / old).prod(0) ** 2


EXERCISES = (
    Exercise(
        key="11.1",
        name="nqm_risk",
        reference=nqm_risk,
        parts=(Part("structure", 5, _risk), Part("edge cases", 3, _recursion)),
        wrong=(
            ("11-batch-squared", lambda t, B, lr, h, c, p: nqm_risk(t, B * B, lr, h, c, p)),
            ("11-noise-raw", lambda t, B, lr, h, c, p: nqm_risk(t, B, lr, h, c * h ** (2 * p), p)),
            ("11-noise-once", lambda t, B, lr, h, c, p: nqm_risk(t, B, lr, h, c * h**p, p)),
            ("11-no-noise", lambda t, B, lr, h, c, p: nqm_risk(t, B, lr, h, 0 * c, p)),
            ("M02", lambda t, B, lr, h, c, p: nqm_risk(t, 1, lr, h, c, p)),
            ("11-stationary", lambda t, B, lr, h, c, p: nqm_risk(t, B, lr, h, 0 * c, p) + nqm_risk(10**6, B, lr, h, c, p)),
            ("11-half", lambda t, B, lr, h, c, p: 2 * nqm_risk(t, B, lr, h, c, p)),
        ),
        others=(_risk_by_steps,),
        read="The noisy quadratic model",
    ),
    Exercise(
        key="11.2",
        name="critical_batch",
        reference=critical_batch,
        parts=(Part("structure", 4, _critical), Part("edge cases", 2, _bumpy)),
        wrong=(
            ("11-first-bad", lambda b, s, e: b[b.index(critical_batch(b, s, e)) + 1]),
            ("11-steps-only", lambda b, s, e: max(x for x, y in zip(b, s, strict=True) if y >= e * s[0])),
            ("11-largest", lambda b, s, e: max(x for x, y in zip(b, s, strict=True) if b[0] * s[0] >= e * x * y)),
            ("11-neighbour", lambda b, s, e: max(
                (y for x, y, p, q in zip(b, b[1:], s, s[1:], strict=False) if x * p >= e * y * q), default=b[0])),
            ("nothing", lambda b, s, e: None),
        ),
        others=(_by_counting,),
        read="The critical batch size",
    ),
    Exercise(
        key="11.3",
        name="allreduce_stats",
        reference=allreduce_stats,
        parts=(Part("structure", 5, _reduced), Part("scaling", 3, _same_data)),
        wrong=(
            ("M21", lambda shards, damping: sum(allreduce_stats([s], damping) for s in shards) / len(shards)),
            ("M21", lambda shards, damping: sum(
                len(s) * allreduce_stats([s], damping) for s in shards) / sum(map(len, shards))),
            ("11-mean-of-means", lambda shards, damping: _of_means(shards, damping)),
            ("M02", lambda shards, damping: torch.linalg.inv(sum(s.T @ s for s in shards) + damping * torch.eye(4))),
            ("11-damped-twice", lambda shards, damping: allreduce_stats(shards, damping * len(shards))),
            ("M04", lambda shards, damping: torch.linalg.inv(torch.cov(torch.cat(shards).T) + damping * torch.eye(4))),
            ("11-not-inverted", lambda shards, damping: torch.linalg.inv(allreduce_stats(shards, damping))),
        ),
        others=(_by_stacking,),
        read="What may be averaged",
    ),
    Exercise(
        key="11.4",
        name="staleness_effect",
        reference=staleness_effect,
        parts=(Part("structure", 4, _stale), Part("edge cases", 2, _no_delay)),
        wrong=(
            ("11-fresh", lambda h, lr, delay: staleness_effect(h, lr, 0)),
            ("11-off-by-one", lambda h, lr, delay: staleness_effect(h, lr, delay + 1)),
            ("11-wrapped", lambda h, lr, delay: _wrapped(h, lr, delay)),
            ("11-period", lambda h, lr, delay: float(0.5 * h[-1] @ _with_lag(h, lr, lambda t: t % max(delay, 1)) ** 2)),
            ("11-gradient-stale", lambda h, lr, delay: 0.5 * h[-1] @ _with_lag(h, lr, lambda t: delay, True) ** 2),
            ("11-half", lambda h, lr, delay: 2 * staleness_effect(h, lr, delay)),
        ),
        others=(_at_once,),
        read="Old inverses",
    ),
)  # fmt: skip


def _of_means(shards, damping):
    A = sum(s.T @ s / len(s) for s in shards) / len(shards)
    return torch.linalg.inv(A + damping * torch.eye(len(A)))


def _wrapped(h, lr, delay):
    theta = torch.ones_like(h[0])
    for t in range(len(h)):
        theta = theta - lr * h[t] * theta / h[t - delay]
    return 0.5 * h[-1] @ theta**2
