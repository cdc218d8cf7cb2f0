"""Exercises of lesson 07: K-FAC's factors, its solve, its damping, and a test of its invariance."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from natgrad_lab.course.diagnose import FIT, Mistake, as_tensor, expect
from natgrad_lab.course.exercise import Exercise, Part

MISTAKES = {
    "7-after": "The input side has to be the activations that enter a layer, not those that leave it.",
    "7-sum": "The inverse of a Kronecker product is the product of the inverses, not their sum.",
    "7-multiply": "The factors were multiplied onto the gradient. A preconditioner divides by them.",
    "7-squared": "π was taken for π²: the ratio of the mean eigenvalues is the square of π.",
    "7-even": "√λ went on both factors alike. When A is scaled by c and G by 1/c, nothing may change: that is what π is for.",
    "7-nothing": "With factors of zeros nothing is left but the damping: the product has to be λI (take π = 1 there).",
    "7-half": "The gradient was moved to the new coordinates and the factors were not.",
    "7-back": "The two updates are in different coordinates. Bring the new one back before you compare them.",
    "7-wrong way": "The factors were moved the wrong way: inputs become Ω⁻¹a, scores become Φᵀs.",
}
_SIZES = {"examples": 7, "inputs": 3, "hidden": 5, "classes": 4}


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _factor(generator: torch.Generator, size: int) -> Tensor:
    rows = _normal(generator, 3 * size, size)
    return rows.mT @ rows / len(rows)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype)


def _parts(result, count: int, what: str) -> list:
    """A tuple or list of so many things, or the mistake "kind"."""
    if result is None:
        raise Mistake("nothing")
    if not isinstance(result, tuple | list) or len(result) != count:
        raise Mistake("kind", f"it should return {what}")
    return list(result)


def _near(got: Tensor, value) -> bool:
    value = as_tensor(value)
    return got.shape == value.shape and float((got - value).norm()) <= FIT * max(float(value.norm()), 1e-300)


def _refuse(got, suspects: Mapping[str, Tensor], about: str = "") -> None:
    """The mistakes that also change the shape, before the shape is looked at."""
    got = as_tensor(got)
    for key, value in suspects.items():
        if _near(got, value):
            raise Mistake(key, about)


# ---- 7.1


def kfac_factors(W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor, X: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """K-FAC's (A, G) of both layers of softmax(W2 tanh(W1 x + b1) + b2)."""
    N, one = len(X), torch.ones(len(X), 1, dtype=X.dtype)
    hidden = torch.tanh(X @ W1.mT + b1)
    p = torch.softmax(hidden @ W2.mT + b2, 1)
    output = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    back = (1 - hidden**2)[:, :, None] * W2.mT
    first, second = torch.cat([X, one], 1), torch.cat([hidden, one], 1)
    return [(first.mT @ first / N, (back @ output @ back.mT).mean(0)), (second.mT @ second / N, output.mean(0))]


def _from_labels(W1, b1, W2, b2, X, y):
    hidden = torch.tanh(X @ W1.mT + b1)
    scores = torch.nn.functional.one_hot(y, len(b2)).to(X) - torch.softmax(hidden @ W2.mT + b2, 1)
    below = (scores @ W2) * (1 - hidden**2)
    return [(A, s.mT @ s / len(X)) for (A, _), s in zip(kfac_factors(W1, b1, W2, b2, X, y), (below, scores), strict=True)]


def _no_ones(W1, b1, W2, b2, X, y):
    return [(A[:-1, :-1], G) for A, G in kfac_factors(W1, b1, W2, b2, X, y)]


def _after(W1, b1, W2, b2, X, y):
    (_, G1), (A2, G2) = kfac_factors(W1, b1, W2, b2, X, y)
    p = torch.softmax(torch.tanh(X @ W1.mT + b1) @ W2.mT + b2, 1)
    last = torch.cat([p, torch.ones(len(X), 1, dtype=X.dtype)], 1)
    return [(A2, G1), (last.mT @ last / len(X), G2)]


def _network(generator: torch.Generator, examples: int | None = None) -> dict[str, Tensor]:
    N, d, h, c = _SIZES.values()
    N = examples or N
    return {
        "W1": _normal(generator, h, d), "b1": _normal(generator, h), "W2": _normal(generator, c, h),
        "b2": _normal(generator, c), "X": _normal(generator, N, d), "y": torch.randint(c, (N,), generator=generator),
    }  # fmt: skip


def _compare_factors(answer, net: dict[str, Tensor]) -> list:
    got = [_parts(pair, 2, "a pair (A, G) for each layer")
           for pair in _parts(answer(*net.values()), 2, "a list of two pairs (A, G)")]  # fmt: skip
    N = len(net["X"])
    wants, labels, bare, after = (f(**net) for f in (kfac_factors, _from_labels, _no_ones, _after))
    for layer, (A, G) in enumerate(wants):
        about = f"layer {layer + 1}, {N} examples"
        if _near(as_tensor(got[layer][0]), G) and _near(as_tensor(got[layer][1]), A):
            raise Mistake("M08", about)
        _refuse(got[layer][0], {"M11": bare[layer][0], "7-after": after[layer][0]}, about)
        expect(got[layer][0], A, scalars={"N": float(N)}, keys={"N": "M02", "1/N": "M03"}, about=f"A of {about}")
        expect(
            got[layer][1], G, suspects={"M01": labels[layer][1]}, scalars={"N": float(N)}, keys={"N": "M02", "1/N": "M03"},
            about=f"G of {about}",
        )  # fmt: skip
    return got


def _values(answer, generator):
    _compare_factors(answer, _network(generator))


def _copies_change_nothing(answer, generator):
    net = _network(generator)
    _compare_factors(answer, {**net, "X": net["X"].repeat(3, 1), "y": net["y"].repeat(3)})


def _one_example(answer, generator):
    """G ⊗ A is then the Fisher of the layer, from the definition."""
    net = _network(generator, 1)
    (A, G), _ = _compare_factors(answer, net)

    def log_p(W):
        hidden = torch.tanh(W[:, :-1] @ net["X"][0] + W[:, -1])
        return torch.log_softmax(net["W2"] @ hidden + net["b2"], 0)

    W = torch.cat([net["W1"], net["b1"][:, None]], 1)
    J = torch.autograd.functional.jacobian(log_p, W).flatten(1)
    F = J.mT @ (log_p(W).exp()[:, None] * J)
    expect(torch.kron(as_tensor(G), as_tensor(A)), F, about="G ⊗ A against the Fisher of one example")


def _factors_with_loops(W1, b1, W2, b2, X, y):
    d, h, c = len(X[0]) + 1, len(b1) + 1, len(b2)
    A1, G1, A2, G2 = (torch.zeros(n, n, dtype=X.dtype) for n in (d, h - 1, h, c))
    for x in X:
        a = torch.tanh(W1 @ x + b1)
        p = torch.softmax(W2 @ a + b2, 0)
        x1, a1 = torch.cat([x, torch.ones(1, dtype=x.dtype)]), torch.cat([a, torch.ones(1, dtype=x.dtype)])
        A1 += torch.outer(x1, x1) / len(X)
        A2 += torch.outer(a1, a1) / len(X)
        for k in range(c):
            s = torch.eye(c, dtype=x.dtype)[k] - p
            back = (W2.mT @ s) * (1 - a * a)
            G2 += p[k] * torch.outer(s, s) / len(X)
            G1 += p[k] * torch.outer(back, back) / len(X)
    return ((A1.numpy(), G1.numpy()), (A2.numpy(), G2.numpy()))


def _factors_with_einsum(weight, bias, readout, offset, inputs, labels):
    hidden = torch.tanh(inputs @ weight.T + bias)
    p = torch.softmax(hidden @ readout.T + offset, 1)
    scores = torch.eye(p.shape[1]) - p[:, None]
    both = torch.einsum("nkc,ch,nh->nkh", scores, readout, 1 - hidden**2), scores
    sides = (torch.cat([x, torch.ones(len(x), 1)], 1) for x in (inputs, hidden))
    return [
        [torch.einsum("ni,nj->ij", x, x) / len(x), torch.einsum("nk,nki,nkj->ij", p, s, s) / len(x)]
        for x, s in zip(sides, both, strict=True)
    ]


# ---- 7.2


def kfac_precondition(A: Tensor, G: Tensor, V: Tensor) -> Tensor:
    """G⁻¹ V A⁻¹."""
    return torch.linalg.solve(A, torch.linalg.solve(G, V), left=False)


def _solved_in_columns(A, G, V):
    return torch.linalg.solve(torch.kron(A, G), V.flatten()).reshape(V.shape)


def _solved_swapped(A, G, V):
    return torch.linalg.solve(G, torch.linalg.solve(A, V.mT), left=False)


def _solve_part(out: int, inputs: int):
    def check(answer, generator):
        A, G, V = _factor(generator, inputs), _factor(generator, out), _normal(generator, out, inputs)
        suspects = {
            "M16": V, "7-sum": torch.linalg.solve(G, V) + torch.linalg.solve(A, V, left=False), "7-multiply": G @ V @ A,
            "M08": _solved_swapped(A, G, V).mT, "M07": _solved_in_columns(A, G, V),
        }  # fmt: skip
        if out == inputs:
            suspects["M08"] = torch.linalg.solve(A, torch.linalg.solve(G, V, left=False))
        got = answer(A, G, V)
        _refuse(got, {"M08": _solved_swapped(A, G, V)})
        want = torch.linalg.solve(torch.kron(G, A), V.flatten()).reshape(V.shape)
        expect(got, want, suspects=suspects, about=f"V is {out} × {inputs}")

    return check


def _solved_whole(A, G, V):
    return torch.linalg.solve(torch.kron(G, A), V.flatten()).reshape(V.shape)


def _by_eigenvectors(A, G, V):
    (a, P), (g, Q) = torch.linalg.eigh(A), torch.linalg.eigh(G)
    return (Q @ ((Q.mT @ V @ P) / torch.outer(g, a)) @ P.mT).numpy()


# ---- 7.3


def factored_tikhonov(A: Tensor, G: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """(A + π√λ I, G + √λ/π I), π² the ratio of the mean eigenvalues of A and G."""
    a, g = float(A.trace()) / len(A), float(G.trace()) / len(G)
    pi = math.sqrt(a / g) if a > 0 and g > 0 else 1.0
    root = math.sqrt(damping)
    return A + pi * root * _eye(A), G + root / pi * _eye(G)


def _split(A, G, damping, pi, power=0.5):
    return A + pi * damping**power * _eye(A), G + damping**power / pi * _eye(G)


def _pi(A, G):
    return math.sqrt(float(A.trace()) / len(A) / (float(G.trace()) / len(G)))


_SPLITS = {
    "7-even": lambda A, G, damping: _split(A, G, damping, 1.0),
    "M09": lambda A, G, damping: _split(A, G, damping, 1.0, 1.0),
    "M10": lambda A, G, damping: _split(A, G, damping, 1 / _pi(A, G)),
    "7-squared": lambda A, G, damping: _split(A, G, damping, _pi(A, G) ** 2),
}


def _split_part(answer, generator):
    A, G = 5 * _factor(generator, 4), _factor(generator, 3)
    for damping in (0.3, 0.04):
        got = _parts(answer(A, G, damping), 2, "the pair (damped A, damped G)")
        undivided = _split(A, G, damping, math.sqrt(float(A.trace() / G.trace())))
        with_pi = _split(A, G, damping, _pi(A, G), 1.0)
        wrong = [(key, make(A, G, damping)) for key, make in _SPLITS.items()] + [("M10", undivided), ("M09", with_pi)]
        for key, pair in wrong:
            if all(_near(as_tensor(g), w) for g, w in zip(got, pair, strict=True)):
                raise Mistake(key, f"λ = {damping:g}")
        for name, g, w in zip("AG", got, factored_tikhonov(A, G, damping), strict=True):
            expect(g, w, about=f"the damped {name}, λ = {damping:g}")


def _units_part(answer, generator):
    A, G = _factor(generator, 4), _factor(generator, 3)
    products = []
    for c in (1.0, 100.0):
        got = _parts(answer(c * A, G / c, 0.1), 2, "the pair (damped A, damped G)")
        products.append(torch.kron(as_tensor(got[1], (3, 3)), as_tensor(got[0], (4, 4))))
    expect(products[1], products[0], keys={"": "7-even"}, about="A scaled by 100 and G by 1/100")


def _zero_part(answer, generator):
    del generator
    A, G = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    got = _parts(answer(A, G, 0.25), 2, "the pair (damped A, damped G)")
    product = torch.kron(as_tensor(got[1]), as_tensor(got[0]))
    want = 0.25 * torch.eye(12, dtype=torch.float64)
    if product.shape != want.shape or not product.isfinite().all():
        raise Mistake("7-nothing", f"the product holds {float(product.flatten()[0]):g}")
    expect(product, want, keys={"": "M09", "λ": "M09"}, scalars={"λ": 0.25}, about="A = G = 0, λ = 0.25")


def _split_with_eigenvalues(A, G, damping):
    a, g = torch.linalg.eigvalsh(A).mean(), torch.linalg.eigvalsh(G).mean()
    pi = float((a / g).sqrt()) if float(a) > 0 and float(g) > 0 else 1.0
    B, H = A.clone(), G.clone()
    B.diagonal().add_(pi * damping**0.5)
    H.diagonal().add_(damping**0.5 / pi)
    return [B, H]


# ---- 7.4


def invariance_gap(A: Tensor, G: Tensor, V: Tensor, Omega: Tensor, Phi: Tensor, damping: float) -> float:
    """‖Φ Δ† Ω⁻¹ − Δ‖ / ‖Δ‖ in the norm tr(DᵀGDA), Δ the damped step, Δ† that in the coordinates W† = Φ⁻¹ W Ω."""
    step = _step(A, G, V, damping)
    back = Phi @ _step(*_in_new_coordinates(A, G, V, Omega, Phi), damping) @ torch.linalg.inv(Omega)
    return _length(A, G, back - step) / _length(A, G, step)


def _step(A, G, V, damping):
    root = math.sqrt(damping)
    return kfac_precondition(A + root * _eye(A), G + root * _eye(G), V)


def _in_new_coordinates(A, G, V, Omega, Phi):
    into = torch.linalg.inv(Omega)
    return into @ A @ into.mT, Phi.mT @ G @ Phi, Phi.mT @ V @ into.mT


def _length(A, G, D):
    return math.sqrt(float((D * (G @ D @ A)).sum()))


def _gap_suspects(A, G, V, Omega, Phi, damping) -> dict[str, float]:
    step = _step(A, G, V, damping)
    new = _in_new_coordinates(A, G, V, Omega, Phi)
    there, into = _step(*new, damping), torch.linalg.inv(Omega)
    back = Phi @ there @ into
    own = lambda D: _length(A, G, D) / _length(A, G, step)  # noqa: E731
    half = Phi @ _step(A, G, new[2], damping) @ into
    turned = Phi @ _step(Omega.mT @ A @ Omega, into_phi(Phi, G), new[2], damping) @ into
    plain = Phi @ new[2] @ into
    return {
        "7-back": own(there - step), "M22": float((back - step).norm() / step.norm()), "7-half": own(half - step),
        "7-wrong way": own(turned - step), "M16": _length(A, G, plain - V) / _length(A, G, V),
    }  # fmt: skip


def into_phi(Phi: Tensor, G: Tensor) -> Tensor:
    """G moved the wrong way."""
    inverse = torch.linalg.inv(Phi)
    return inverse @ G @ inverse.mT


def _gap_instance(generator):
    A, G, V = _factor(generator, 4), _factor(generator, 3), _normal(generator, 3, 4)
    Omega, Phi = (torch.eye(n, dtype=torch.float64) + 0.5 * _normal(generator, n, n) / math.sqrt(n) for n in (4, 3))
    return A, G, V, Omega, Phi


def _gap_part(answer, generator):
    instance = _gap_instance(generator)
    for damping in (0.1, 1.0):
        want = invariance_gap(*instance, damping)
        got = as_tensor(answer(*instance, damping), ())
        expect(got, want, suspects=_gap_suspects(*instance, damping), about=f"λ = {damping:g}")


def _invariant_part(answer, generator):
    instance = _gap_instance(generator)
    gap = float(as_tensor(answer(*instance, 0.0), ()))
    if not 0 <= gap < 1e-8:  # inverses of well-conditioned matrices of size 4: rounding is about 1e-13
        for key, value in _gap_suspects(*instance, 0.0).items():
            if math.isclose(gap, value, rel_tol=1e-6):
                raise Mistake(key, "λ = 0")
        raise Mistake("unrecognized", f"undamped the gap should be 0 up to rounding; it is {gap:.2g}")


def _no_change_part(answer, generator):
    A, G, V, _, _ = _gap_instance(generator)
    gap = float(as_tensor(answer(A, G, V, _eye(A), _eye(G), 0.3), ()))
    if not abs(gap) < 1e-10:  # the same coordinates: the same step
        raise Mistake("unrecognized", f"in the same coordinates the gap should be 0; it is {gap:.2g}")


def _gap_by_vectors(A, G, V, Omega, Phi, damping):
    F = torch.kron(G, A)
    J = torch.kron(Phi, torch.linalg.inv(Omega).mT)  # vec W = J vec W†
    A2, G2, _ = _in_new_coordinates(A, G, V, Omega, Phi)
    r = damping**0.5
    one = torch.linalg.solve(torch.kron(G + r * _eye(G), A + r * _eye(A)), V.flatten())
    two = J @ torch.linalg.solve(torch.kron(G2 + r * _eye(G), A2 + r * _eye(A)), J.mT @ V.flatten())
    return torch.sqrt((two - one) @ F @ (two - one)) / torch.sqrt(one @ F @ one)


EXERCISES = (
    Exercise(
        key="7.1", name="kfac_factors", reference=kfac_factors,
        parts=(
            Part("structure", 4, _values), Part("scaling", 3, _copies_change_nothing), Part("edge cases", 2, _one_example),
        ),
        wrong=(
            ("M01", _from_labels),
            ("M11", _no_ones),
            ("7-after", _after),
            ("M03", lambda *net: [(A, G / len(net[-1])) for A, G in kfac_factors(*net)]),
            ("M02", lambda *net: [(A * len(net[-1]), G) for A, G in kfac_factors(*net)]),
            ("M08", lambda *net: [(G, A) for A, G in kfac_factors(*net)]),
            ("nothing", lambda *net: None),
        ),
        others=(_factors_with_loops, _factors_with_einsum), read="Two small averages for one large matrix",
    ),
    Exercise(
        key="7.2", name="kfac_precondition", reference=kfac_precondition,
        parts=(Part("structure", 4, _solve_part(3, 5)), Part("scaling", 2, _solve_part(4, 4)),
               Part("edge cases", 2, _solve_part(1, 6))),
        wrong=(
            ("M16", lambda A, G, V: V.clone()),
            ("M07", _solved_in_columns),
            ("M08", _solved_swapped),
            ("7-sum", lambda A, G, V: torch.linalg.solve(G, V) + torch.linalg.solve(A, V, left=False)),
            ("7-multiply", lambda A, G, V: G @ V @ A),
        ),
        others=(_solved_whole, _by_eigenvectors, lambda A, G, V: torch.linalg.inv(G) @ V @ torch.linalg.inv(A)),
        read="The step: two small solves",
    ),
    Exercise(
        key="7.3", name="factored_tikhonov", reference=factored_tikhonov,
        parts=(Part("structure", 4, _split_part), Part("scaling", 3, _units_part), Part("edge cases", 2, _zero_part)),
        wrong=(
            ("M09", _SPLITS["M09"]),
            ("M10", _SPLITS["M10"]),
            ("M10", lambda A, G, damping: _split(A, G, damping, math.sqrt(float(A.trace() / G.trace())))),
            ("7-even", _SPLITS["7-even"]),
            ("7-squared", _SPLITS["7-squared"]),
            ("7-nothing", lambda A, G, damping: _split(A, G, damping, (A.diagonal().mean() / G.diagonal().mean()) ** 0.5)),
        ),
        others=(_split_with_eigenvalues,), read="Damping a product",
    ),
    Exercise(
        key="7.4", name="invariance_gap", reference=invariance_gap,
        parts=(Part("structure", 4, _gap_part), Part("scaling", 3, _invariant_part), Part("edge cases", 1, _no_change_part)),
        wrong=tuple(
            (key, lambda A, G, V, Omega, Phi, damping, key=key: _gap_suspects(A, G, V, Omega, Phi, damping)[key])
            for key in ("7-back", "M22", "7-half", "7-wrong way", "M16")
        ),
        others=(_gap_by_vectors,), read="Who notices other coordinates?",
    ),
)  # fmt: skip
