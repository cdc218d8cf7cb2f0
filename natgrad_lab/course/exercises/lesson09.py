"""Exercises of lesson 09: a fair split, times to a target, an update of K-FAC, its γ, online natural gradient."""

import math
import statistics

import torch
from torch import Tensor

from natgrad_lab.course.diagnose import FIT, Mistake, as_tensor, expect
from natgrad_lab.course.exercise import Exercise, Part

MISTAKES = {
    "9-average": "Old and new changed places in the running average: the old one has the weight min(1 − 1/k, 0.95).",
    "9-start": "The first batches count too little: at k = 1 the old average has the weight 0.",
    "9-old": "The step was made with the averages of before. Take the new ones.",
    "9-largest": "The worst candidate won: the lowest M is the best.",
    "9-floor": "γ fell below its least value.",
    "9-nan": "A candidate whose M is not a number must lose.",
    "9-dropped": "Runs that never reach the target were left out. They count, as infinite.",
    "9-own": "Every run was measured against its own last error. All have to reach the same target.",
    "9-lowest": "That is where a run is at its best, not where it first reaches the target.",
    "9-mean": "A mean of times is infinite as soon as one run fails, and hides the rest: take the median.",
    "9-order": "The examples are not shuffled: the first rows always land in the same part.",
    "9-first": "Some examples can never be drawn: draw from all of them, though the parts may be fewer.",
    "9-strict": "An error that equals the target has reached it: at most, not less.",
    "9-weights": "These are the new weights. Asked for are the updates, which are to be added.",
    "9-sizes": "The parts do not have the sizes asked for.",
}


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype)


def _three(result) -> list:
    if result is None:
        raise Mistake("nothing")
    if not isinstance(result, tuple | list) or len(result) != 3:
        raise Mistake("kind", "it should return three things: A, G and the step")
    return list(result)


# ---- 9.1


def fair_split(num_examples: int, sizes: list, generator: torch.Generator) -> list[Tensor]:
    """Disjoint random index tensors of these sizes: to train, to tune, to test."""
    order = torch.randperm(num_examples, generator=generator)
    return list(order[: sum(sizes)].split(list(sizes)))


def _drawn_apart(num_examples, sizes, generator):
    return [torch.randperm(num_examples, generator=generator)[:size] for size in sizes]


def _in_order(num_examples, sizes, generator):
    return list(torch.arange(num_examples)[: sum(sizes)].split(list(sizes)))


def _split_part(answer, generator):
    num_examples, sizes = 53, [29, 11, 7]
    drawn = []
    for seed in torch.randint(2**40, (2,), generator=generator).tolist():  # two equal ones would refuse a right answer
        got = answer(num_examples, sizes, torch.Generator().manual_seed(seed))
        if got is None:
            raise Mistake("nothing")
        if not isinstance(got, tuple | list) or len(got) != len(sizes):
            raise Mistake("kind", "it should return one index tensor for each size")
        parts = [as_tensor(each) for each in got]
        if [tuple(part.shape) for part in parts] != [(size,) for size in sizes]:
            raise Mistake("9-sizes", f"asked for {sizes}, got {[tuple(part.shape) for part in parts]}")
        joined = torch.cat(parts)
        if not ((joined >= 0) & (joined < num_examples) & (joined == joined.round())).all():
            raise Mistake("kind", f"an index is a whole number from 0 to {num_examples - 1}")
        if len(joined.unique()) < len(joined):
            shared = len(joined) - len(joined.unique())
            raise Mistake("M24", f"{shared} of {len(joined)} examples are drawn more than once")
        drawn.append(joined)
    if torch.equal(*(each[:29].sort().values for each in drawn)):
        raise Mistake("9-order", "two generators give the same parts")
    if float(torch.cat(drawn).max()) < sum(sizes):  # with all of them that happens once in 10¹⁴
        raise Mistake("9-first", f"of {num_examples} examples none after the first {sum(sizes)} was drawn")


def _repeatable_part(answer, generator):
    del generator
    pair = [answer(20, [9, 6, 4], torch.Generator().manual_seed(5)) for _ in range(2)]
    for one, two in zip(*pair, strict=True):
        if not torch.equal(as_tensor(one), as_tensor(two)):
            raise Mistake("global_rng", "the same generator gives other parts")


def _split_by_scores(num_examples, sizes, generator):
    order = torch.rand(num_examples, generator=generator).argsort().tolist()
    parts = []
    for size in sizes:
        parts.append(order[:size])
        order = order[size:]
    return parts


# ---- 9.2


def time_to_target(curves: list, target: float) -> tuple[float, float]:
    """(median updates to the first error <= target, inf where it is never reached; share of the runs that reach it)."""
    times = [next((at for at, error in zip(*curve, strict=True) if error <= target), math.inf) for curve in curves]
    return float(statistics.median(times)), sum(map(math.isfinite, times)) / len(times)


def _times_of(curves, target):
    return [next((at for at, error in zip(*curve, strict=True) if error <= target), math.inf) for curve in curves]


def _dropped(curves, target):
    times = [each for each in _times_of(curves, target) if math.isfinite(each)]
    return (statistics.median(times) if times else math.inf), len(times) / len(curves)


def _own_target(curves, target):
    return statistics.median(_times_of([curve], curve[1][-1])[0] for curve in curves), 1.0


def _at_lowest(curves, target):
    return statistics.median(curve[0][curve[1].index(min(curve[1]))] for curve in curves), time_to_target(curves, target)[1]


def _mean_time(curves, target):
    times = _times_of(curves, target)
    return sum(times) / len(times), time_to_target(curves, target)[1]


def _below(curves, target):
    return time_to_target(curves, math.nextafter(target, 0))


_TIMES = {"9-dropped": _dropped, "9-own": _own_target, "9-lowest": _at_lowest, "9-mean": _mean_time, "9-strict": _below}


def _curves_instance(generator, reached: int, runs: int = 5):
    """Errors that fall to exactly 1, on to 0.5, and rise again; so many of the runs reach the target 1."""
    curves = []
    for number in range(runs):
        start = 3.0 + float(torch.rand((), generator=generator, dtype=torch.float64))
        first = 2 + int(torch.randint(3, (), generator=generator)) + number
        errors = [start - 0.1 * i for i in range(first)] + [1.0, 0.9, 0.7, 0.6, 0.5, 0.65]
        if number >= reached:
            errors = [error + 1.0 for error in errors]
        curves.append(([10 * 2**i for i in range(len(errors))], errors))
    order = torch.randperm(runs, generator=generator).tolist()
    return [curves[i] for i in order]


def _pair(result) -> Tensor:
    if result is None:
        raise Mistake("nothing")
    got = torch.stack([as_tensor(each) for each in result]) if isinstance(result, tuple | list) else as_tensor(result)
    if got.numel() != 2:
        raise Mistake("kind", "it should return (median, share of the runs)")
    return got.flatten()


def _judge_times(answer, curves, about: str = ""):
    near = lambda one, two: math.isclose(one, two, rel_tol=FIT)  # noqa: E731
    got, want = _pair(answer(curves, 1.0)).tolist(), time_to_target(curves, 1.0)
    words = f"{round(5 * want[1])} of 5 runs reach the target{about}; you return {tuple(float(f'{x:.6g}') for x in got)}"
    if near(got[0], want[0]) and near(got[1], want[1]):
        return
    for key, make in _TIMES.items():
        wrong = make(curves, 1.0)[0]
        if near(got[0], wrong) and not near(wrong, want[0]):
            raise Mistake(key, words)
    raise Mistake("unrecognized", words + (", and the median is right" if near(got[0], want[0]) else ""))


def _times_part(reached: tuple[int, ...]):
    def check(answer, generator):
        for count in reached:
            _judge_times(answer, _curves_instance(generator, count))

    return check


def _diverged_part(answer, generator):
    curves = _curves_instance(generator, 3)
    curves[0] = ([0, 10, 20], [4.0, math.inf, math.inf])
    _judge_times(answer, curves, ", the errors of one became infinite")


def _times_with_numpy(curves, target):
    import numpy as np

    times = []
    for updates, errors in curves:
        below = np.flatnonzero(np.asarray(errors) <= target)
        times.append(np.inf if len(below) == 0 else updates[below[0]])
    return [float(np.sort(times)[len(times) // 2]), float(np.isfinite(times).mean())]


def _times_with_torch(curves, target):
    times = torch.tensor([next((float(u) for u, e in zip(*curve, strict=True) if e <= target), math.inf) for curve in curves])
    return torch.stack([times.median(), times.isfinite().float().mean()])


# ---- 9.3


def kfac_step(
    A: Tensor, G: Tensor, a: Tensor, s: Tensor, V: Tensor, k: int, damping: float
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """New averages of A and G after batch k, and the step G⁻¹ V A⁻¹ with factored damping."""
    A, G = _averages(A, G, a, s, k)
    return A, G, _step(A, G, V, damping)


def _averages(A, G, a, s, k, keep=None, scale=(1.0, 1.0)):
    a, s = a.detach(), s.detach()
    keep = min(1 - 1 / k, 0.95) if keep is None else keep
    new_A, new_G = scale[0] * a.mT @ a / len(a), scale[1] * s.mT @ s / len(s)
    return keep * A + (1 - keep) * new_A, keep * G + (1 - keep) * new_G


def _step(A, G, V, damping, power=1):
    a, g = (float(each.detach().trace()) / len(each) for each in (A, G))
    pi, root = math.sqrt(a / g) ** power, math.sqrt(damping)
    return torch.linalg.solve(A + pi * root * _eye(A), torch.linalg.solve(G + root / pi * _eye(G), V), left=False)


def _with(averages=_averages, step=_step):
    def answer(A, G, a, s, V, k, damping):
        new = averages(A, G, a, s, k)
        return *new, step(*new, V, damping)

    return answer


def _on_the_old(A, G, a, s, V, k, damping):
    return *_averages(A, G, a, s, k), _step(A, G, V, damping)


def _with_graph(A, G, a, s, V, k, damping):
    keep = min(1 - 1 / k, 0.95)
    A, G = keep * A + (1 - keep) * a.mT @ a / len(a), keep * G + (1 - keep) * s.mT @ s / len(s)
    return A, G, _step(A, G, V, damping)


_STEP_MISTAKES = {
    "9-average": _with(lambda A, G, a, s, k: _averages(A, G, a, s, k, keep=1 - min(1 - 1 / k, 0.95))),
    "9-start": _with(lambda A, G, a, s, k: _averages(A, G, a, s, k, keep=0.95)),
    "M02": _with(lambda A, G, a, s, k: _averages(A, G, a, s, k, scale=(len(a), len(a)))),
    "M03": _with(lambda A, G, a, s, k: _averages(A, G, a, s, k, scale=(1.0, 1 / len(a)))),
    "9-old": _on_the_old,
    "M16": _with(step=lambda A, G, V, damping: V.clone()),
    "M10": _with(step=lambda A, G, V, damping: _step(A, G, V, damping, power=-1)),
    "7-even": _with(step=lambda A, G, V, damping: _step(A, G, V, damping, power=0)),
    "M09": _with(step=lambda A, G, V, damping: _step(A, G, V, damping**2)),
}


def _step_instance(generator):
    a, s = _normal(generator, 7, 4), _normal(generator, 7, 3)
    old_a, old_s = _normal(generator, 20, 4), 0.3 * _normal(generator, 20, 3)
    return [old_a.mT @ old_a / 20, old_s.mT @ old_s / 20, a, s, _normal(generator, 3, 4)]


def _step_part(counts: tuple[int, ...]):
    def check(answer, generator):
        instance = _step_instance(generator)
        for k in counts:
            got = [as_tensor(each) for each in _three(answer(*instance, k, 0.04))]
            want = kfac_step(*instance, k, 0.04)
            for key, make in _STEP_MISTAKES.items():
                wrong = make(*instance, k, 0.04)
                different = any(not torch.allclose(w, x, rtol=1e-6) for w, x in zip(wrong, want, strict=True))
                if different and all(
                    g.shape == w.shape and float((g - w).norm()) <= FIT * float(w.norm())
                    for g, w in zip(got, wrong, strict=True)
                ):
                    raise Mistake(key, f"at batch {k}")
            for name, g, w in zip(("A", "G", "the step"), got, want, strict=True):
                expect(g, w, about=f"{name} at batch {k}")

    return check


def _no_graph_part(answer, generator):
    A, G, a, s, V = _step_instance(generator)
    a.requires_grad_(), s.requires_grad_()
    for result in _three(answer(A, G, a, s, V, 3, 0.04)):
        if isinstance(result, Tensor) and result.requires_grad:
            raise Mistake("M20", "a and s came from a forward and a backward pass and carry their graph")


def _step_with_loops(A, G, a, s, V, k, damping):
    import numpy as np

    a, s, V = a.detach().numpy(), s.detach().numpy(), V.numpy()
    keep = 0.95 if k > 20 else 1 - 1 / k
    A = keep * A.numpy() + (1 - keep) * sum(np.outer(row, row) for row in a) / len(a)
    G = keep * G.numpy() + (1 - keep) * sum(np.outer(row, row) for row in s) / len(s)
    pi = (np.linalg.eigvalsh(A).mean() / np.linalg.eigvalsh(G).mean()) ** 0.5
    root = damping**0.5
    inverses = np.linalg.inv(G + root / pi * np.eye(len(G))), np.linalg.inv(A + pi * root * np.eye(len(A)))
    return [A, G, inverses[0] @ V @ inverses[1]]


# ---- 9.4


def update_gamma(gamma: float, changes: list, omega: float, least: float) -> float:
    """Of ω γ, γ and γ / ω the one with the lowest change M, never below `least`."""
    tried = (omega * gamma, gamma, gamma / omega)
    finite = [(change, value) for change, value in zip(changes, tried, strict=True) if math.isfinite(change)]
    return max(min(finite)[1], least) if finite else gamma


def _any_gamma(pick, floor=True, keep=lambda gamma, best: best):
    def answer(gamma, changes, omega, least):
        best = keep(gamma, (omega * gamma, gamma, gamma / omega)[pick(changes)])
        return max(best, least) if floor else best

    return answer


def _lowest(changes):
    return min(range(3), key=lambda i: changes[i] if math.isfinite(changes[i]) else math.inf)


def _gamma_part(answer, generator):
    gamma = float(0.5 + torch.rand((), generator=generator, dtype=torch.float64))
    seen = {}
    for changes, words in (([-3.0, -2.0, -1.0], "fall"), ([-1.0, -2.0, -3.0], "rise"), ([-1.0, -3.0, -2.0], "stay")):
        got = float(as_tensor(answer(gamma, changes, 0.5, 1e-6), ()))
        seen[words] = got, update_gamma(gamma, changes, 0.5, 1e-6)
    right = {words: math.isclose(got, want, rel_tol=FIT) for words, (got, want) in seen.items()}
    if all(right.values()):
        return
    if right["stay"] and (right["fall"] or right["rise"]):
        words = "rise" if right["fall"] else "fall"
        raise Mistake("M23", f"it should {words} from {gamma:.3g} to {seen[words][1]:.3g}; it became {seen[words][0]:.3g}")
    if math.isclose(seen["fall"][0], seen["rise"][1], rel_tol=FIT):
        raise Mistake("9-largest")
    raise Mistake("unrecognized", f"with the lowest M first, {gamma:.3g} became {seen['fall'][0]:.3g}")


def _bounds_part(answer, generator):
    gamma = float(0.5 + torch.rand((), generator=generator, dtype=torch.float64))
    got = float(as_tensor(answer(gamma, [-3.0, -2.0, -1.0], 0.5, 0.9 * gamma), ()))
    if not math.isclose(got, 0.9 * gamma, rel_tol=FIT):
        words = f"with the lowest M first and least {0.9 * gamma:.3g}, {gamma:.3g} became {got:.3g}"
        raise Mistake("9-floor" if got < 0.9 * gamma else "unrecognized", words)
    for changes, want in (([math.nan, -2.0, -1.0], gamma), ([-1.0, -2.0, math.nan], gamma), ([math.nan, 3.0, 2.0], 2 * gamma)):
        got = float(as_tensor(answer(gamma, changes, 0.5, 1e-6), ()))
        if not math.isclose(got, want, rel_tol=FIT):
            raise Mistake("9-nan", f"M of the three: {changes}")


def _gamma_by_loop(gamma, changes, omega, least):
    best, found = math.inf, gamma
    for power, change in zip((1, 0, -1), changes, strict=True):
        if change < best:
            best, found = change, gamma * omega**power
    return torch.tensor(max(found, least))


def _nan_wins(gamma, changes, omega, least):
    import numpy as np

    return max((omega * gamma, gamma, gamma / omega)[int(np.argmin(changes))], least)


def _nan_is_zero(gamma, changes, omega, least):
    return update_gamma(gamma, [change if math.isfinite(change) else 0.0 for change in changes], omega, least)


# ---- 9.5


def online_ng(Ws: list, X: Tensor, Y: Tensor, lr: float, damping: float) -> list[Tensor]:
    """Updates −(lr / L) (G + √λ I)⁻¹ V (A + √λ I)⁻¹ of a deep linear network with loss ½‖y − f‖²."""
    return [-lr / len(Ws) * _solved(A, G, V, math.sqrt(damping)) for A, G, V in _linear(Ws, X, Y)]


def _linear(Ws, X, Y, labels=False):
    inputs = [X]
    for W in Ws:
        inputs.append(inputs[-1] @ W.mT)
    back, residual = torch.eye(len(Ws[-1]), dtype=X.dtype), inputs[-1] - Y
    found = []
    for W, x in zip(reversed(Ws), reversed(inputs[:-1]), strict=True):
        delta = residual @ back
        G = delta.mT @ delta / len(X) if labels else back.mT @ back
        found.append((x.mT @ x / len(X), G, delta.mT @ x / len(X)))
        back = back @ W
    return found[::-1]


def _solved(A, G, V, root):
    return torch.linalg.solve(A + root * _eye(A), torch.linalg.solve(G + root * _eye(G), V), left=False)


_ONLINE_MISTAKES = {
    "M01": lambda Ws, X, Y, lr, damping: [
        -lr / len(Ws) * _solved(A, G, V, math.sqrt(damping)) for A, G, V in _linear(Ws, X, Y, labels=True)
    ],
    "M09": lambda Ws, X, Y, lr, damping: [-lr / len(Ws) * _solved(A, G, V, damping) for A, G, V in _linear(Ws, X, Y)],
    "M16": lambda Ws, X, Y, lr, damping: [-lr * V for _, _, V in _linear(Ws, X, Y)],
    "9-weights": lambda Ws, X, Y, lr, damping: [W + U for W, U in zip(Ws, online_ng(Ws, X, Y, lr, damping), strict=True)],
}  # fmt: skip


def _times(factor):
    return lambda Ws, X, Y, lr, damping: [factor(Ws, X) * U for U in online_ng(Ws, X, Y, lr, damping)]


def _online_part(damping: float):
    def check(answer, generator):
        widths = (3, 6, 5, 4)
        Ws = [_normal(generator, *shape) for shape in zip(widths[1:], widths, strict=False)]
        X, Y = _normal(generator, 11, 3), _normal(generator, 11, 4)
        got = answer(Ws, X, Y, 0.7, damping)
        if got is None:
            raise Mistake("nothing")
        if not isinstance(got, tuple | list) or len(got) != 3:
            raise Mistake("kind", "it should return a list with one update for each weight matrix")
        flat = torch.cat([as_tensor(each, tuple(W.shape)).flatten() for each, W in zip(got, Ws, strict=True)])
        join = lambda parts: torch.cat([each.flatten() for each in parts])  # noqa: E731
        suspects = {key: join(make(Ws, X, Y, 0.7, damping)) for key, make in _ONLINE_MISTAKES.items()}
        keys = {"N": "M02", "1/N": "M03", "L": "M12", "2": "M06"}
        want = join(online_ng(Ws, X, Y, 0.7, damping))
        expect(flat, want, suspects=suspects, scalars={"N": 11.0, "L": 3.0}, keys=keys, about=f"λ = {damping:g}")

    return check


def _online_by_autograd(Ws, X, Y, lr, damping):
    leaves = [W.clone().requires_grad_() for W in Ws]
    product = torch.linalg.multi_dot(leaves[::-1])
    loss = ((X @ product.mT - Y) ** 2).sum() / (2 * len(X))
    updates = []
    for i, V in enumerate(torch.autograd.grad(loss, leaves)):
        above, below = torch.eye(len(Ws[i])), torch.eye(X.shape[1])
        for W in Ws[i + 1 :]:
            above = W @ above
        for W in Ws[:i]:
            below = W @ below
        a, r = X @ below.mT, damping**0.5
        G = above.mT @ above + r * torch.eye(above.shape[1])
        A = a.mT @ a / len(X) + r * torch.eye(a.shape[1])
        updates.append(-lr / len(Ws) * torch.linalg.inv(G) @ V @ torch.linalg.inv(A))
    return [each.numpy() for each in updates]


EXERCISES = (
    Exercise(
        key="9.1", name="fair_split", reference=fair_split,
        parts=(Part("structure", 4, _split_part), Part("edge cases", 1, _repeatable_part)),
        wrong=(
            ("M24", _drawn_apart),
            ("9-order", _in_order),
            ("9-first", lambda n, sizes, generator: list(torch.randperm(sum(sizes), generator=generator).split(list(sizes)))),
            ("changed_input", lambda n, sizes, generator: sizes.sort() or fair_split(n, sizes, generator)),
            ("9-sizes", lambda n, sizes, generator: list(torch.randperm(n, generator=generator).split(n // len(sizes)))[:3]),
            ("global_rng", lambda n, sizes, generator: list(torch.randperm(n)[: sum(sizes)].split(list(sizes)))),
        ),
        others=(_split_by_scores,), read="A fair comparison",
    ),
    Exercise(
        key="9.2", name="time_to_target", reference=time_to_target,
        parts=(Part("structure", 4, _times_part((3, 1, 4))), Part("edge cases", 2, _diverged_part)),
        wrong=tuple(_TIMES.items()), others=(_times_with_numpy, _times_with_torch), read="How long to a target?",
    ),
    Exercise(
        key="9.3", name="kfac_step", reference=kfac_step,
        parts=(Part("structure", 5, _step_part((3, 40))), Part("scaling", 3, _step_part((1, 2))),
               Part("edge cases", 2, _no_graph_part)),
        wrong=(*_STEP_MISTAKES.items(), ("M20", _with_graph)), others=(_step_with_loops,), read="Assemble an update",
    ),
    Exercise(
        key="9.4", name="update_gamma", reference=update_gamma,
        parts=(Part("structure", 4, _gamma_part), Part("edge cases", 2, _bounds_part)),
        wrong=(
            ("M23", _any_gamma(_lowest, keep=min)),
            ("M23", _any_gamma(_lowest, keep=max)),
            ("9-largest", _any_gamma(lambda changes: max(range(3), key=changes.__getitem__))),
            ("9-floor", _any_gamma(_lowest, floor=False)),
            ("9-nan", _nan_wins),
            ("9-nan", _nan_is_zero),
        ),
        others=(_gamma_by_loop,), read="Find the bug",
    ),
    Exercise(
        key="9.5", name="online_ng", reference=online_ng,
        parts=(Part("structure", 4, _online_part(0.09)), Part("scaling", 2, _online_part(1e-4))),
        wrong=(
            ("M12", _times(lambda Ws, X: len(Ws))),
            ("M03", _times(lambda Ws, X: 1 / len(X))),
            ("M06", _times(lambda Ws, X: 2)),
            ("sign", _times(lambda Ws, X: -1)),
            *_ONLINE_MISTAKES.items(),
        ),
        others=(_online_by_autograd,), read="Others join the race",
    ),
)  # fmt: skip
