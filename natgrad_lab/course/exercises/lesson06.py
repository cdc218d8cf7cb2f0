"""Exercises of lesson 06: a root by iteration, the gradients of a Fisher layer, landmarks, and an audit."""

import torch
from torch import Tensor

from natgrad_lab.course.diagnose import Mistake, as_tensor, expect
from natgrad_lab.course.exercise import Exercise, Part

MISTAKES = {
    "6-sequential": "Z was renewed with the new Y. Both have to come from the old pair: Y Z tends to I, and Y² not to A.",
    "6-own-inverse": "Y was averaged with its own inverse, which leads to I. Each is averaged with the inverse of the other.",
    "6-early": "The iteration ended too early: go on until Y Z is I to rounding.",
    "6-inverse": "Z is the inverse of A. It should be the inverse of the root of A.",
    "6-triangular": "That is a triangular factor. L Lᵀ = A is not Y Y = A: the root is symmetric.",
    "6-swapped": "The root and the inverse root have changed places.",
    "6-twice": "The layer multiplies by G⁻¹. It takes the inverse root: the other one is in the weights.",
    "6-root": "The layer multiplies by the root. It takes the inverse root, and the root goes into the weights.",
    "6-undamped": "The damping is missing in G.",
    "6-middle": "The block of the landmarks themselves, A[I, I], has to be divided out, between the columns and their "
    "transpose.",
    "6-multiplied": "A[I, I] was multiplied in. It has to be divided out.",
    "6-pinv": "The block of the landmarks can be singular (two of them may say the same). A plain inverse breaks there.",
    "6-names": "Say for each letter one of the four names, each name once.",
    "6-centred": "PRONG and the paper's SNGD are mixed up. Undamped they are one; look where each adds λ.",
    "6-gate": "The released code and another are mixed up: it has a matrix of its own for every unit, weighted by the "
    "unit's gate.",
    "6-two-sided": "K-FAC was not found. It is the only one that knows anything of the scores.",
}


def _symmetric(generator: torch.Generator, dim: int, condition: float) -> Tensor:
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    values = torch.logspace(0.5, 0.5 - float(torch.tensor(condition).log10()), dim, dtype=torch.float64)
    matrix = basis @ torch.diag(values) @ basis.mT
    return (matrix + matrix.mT) / 2


def _power(matrix: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.mT


def _pair(result, names: str, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    if not isinstance(result, tuple | list) or len(result) != len(shapes):
        raise Mistake("nothing" if result is None else "kind", f"return {names}")
    return tuple(as_tensor(each, shape) for each, shape in zip(result, shapes, strict=True))


# ---- 6.2


def denman_beavers(A: Tensor) -> tuple[Tensor, Tensor]:
    """(A^½, A^−½) by Y ← (Y + Z⁻¹)/2, Z ← (Z + Y⁻¹)/2, both from the old pair."""
    Y, Z = A, torch.eye(len(A), dtype=A.dtype)
    for _ in range(60):
        Y, Z = (Y + torch.linalg.inv(Z)) / 2, (Z + torch.linalg.inv(Y)) / 2
        if torch.linalg.norm(Y @ Z - torch.eye(len(A), dtype=A.dtype)) < 1e-11:
            break
    return Y, Z


def _iterated(A: Tensor, sequential: bool = False, own: bool = False, steps: int = 60) -> tuple[Tensor, Tensor]:
    Y, Z = A, torch.eye(len(A), dtype=A.dtype)
    for _ in range(steps):
        new = (Y + torch.linalg.inv(Y if own else Z)) / 2
        Z = (Z + torch.linalg.inv(Z if own else new if sequential else Y)) / 2
        Y = new
    return Y, Z


def _root(answer, generator, condition=30.0):
    A = _symmetric(generator, 6, condition)
    Y, Z = _pair(answer(A), "Y, Z", (6, 6), (6, 6))
    root, inverse_root = _power(A, 0.5), _power(A, -0.5)
    sequential, own = _iterated(A, sequential=True), _iterated(A, own=True)
    good = float((Y @ Y - A).norm() / A.norm()) < 1e-8 and float((Y - Y.mT).norm() / Y.norm()) < 1e-8
    if not good and float((Y - A @ Z).norm() / Y.norm()) < 1e-8 and float((Y @ Z - torch.eye(6)).norm()) > 1e-8:
        raise Mistake("6-early", f"‖Y Z − I‖ is {float((Y @ Z - torch.eye(6)).norm()):.1g}, the condition number {condition:g}")
    if not good and min(float((Y @ Y.mT - A).norm()), float((Y.mT @ Y - A).norm())) < 1e-8 * float(A.norm()):
        raise Mistake("6-triangular")
    tolerance = 1e-13 * condition**1.2 + 1e-9  # an inverse root has a relative error of about κ eps
    suspects = {"6-sequential": sequential[0], "6-own-inverse": own[0], "6-swapped": inverse_root}
    expect(Y, root, suspects=suspects, tolerance=tolerance, about=f"of Y, condition number {condition:g}")
    suspects = {"6-inverse": torch.linalg.inv(A), "6-sequential": sequential[1], "6-own-inverse": own[1]}
    expect(Z, inverse_root, suspects=suspects, tolerance=10 * tolerance, about=f"of Z, condition number {condition:g}")


def _ill_conditioned(answer, generator):
    _root(answer, generator, 1e6)


def _by_eigenvectors(A):
    return _power(A, 0.5).numpy(), _power(A, -0.5).numpy()


def _scaled(A):
    size, dim = A.diagonal().mean(), len(A)
    Y, Z = A / size, torch.eye(dim)
    for _ in range(12):
        mu = (torch.linalg.det(Y) * torch.linalg.det(Z)) ** (-1 / (2 * dim))
        Y, Z = (mu * Y + torch.linalg.inv(Z) / mu) / 2, (mu * Z + torch.linalg.inv(Y) / mu) / 2
    return [Y * size.sqrt(), Z / size.sqrt()]


def _with_cholesky(A):
    L = torch.linalg.cholesky(A)
    return L, torch.linalg.inv(L)


# ---- 6.1


def fisher_layer_gradients(W1: Tensor, W2: Tensor, x: Tensor, y: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Gradients of mean ½‖W2 G^−½ h − y‖², h = tanh(W1 x), by W1 and W2, G = mean of h hᵀ + damping I a constant."""
    W1, W2 = W1.clone().requires_grad_(), W2.clone().requires_grad_()
    h = torch.tanh(x @ W1.T)
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(h.T @ h / len(h) + damping * torch.eye(h.shape[1], dtype=h.dtype))
        inverse_root = vectors @ torch.diag(values**-0.5) @ vectors.T
    loss = ((h @ inverse_root @ W2.T - y) ** 2).sum() / (2 * len(x))
    return torch.autograd.grad(loss, (W1, W2))


def _gradients(W1, W2, x, y, damping, power=-0.5, through=False, cut=False):
    """As `fisher_layer_gradients`, with a power of G, or a gradient that goes through G, or none into h."""
    W1, W2 = W1.clone().requires_grad_(), W2.clone().requires_grad_()
    h = torch.tanh(x @ W1.T)
    h_for_metric = h if through else h.detach()
    G = h_for_metric.T @ h_for_metric / len(h) + damping * torch.eye(h.shape[1], dtype=h.dtype)
    values, vectors = torch.linalg.eigh(G)
    matrix = torch.eye(len(G), dtype=G.dtype) if power == 0 else (vectors * values**power) @ vectors.T
    loss = (((h.detach() if cut else h) @ matrix @ W2.T - y) ** 2).sum() / (2 * len(x))
    found = torch.autograd.grad(loss, (W1, W2), allow_unused=True)
    return tuple(torch.zeros_like(w) if g is None else g for w, g in zip((W1, W2), found, strict=True))


def _layer(answer, generator):
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    W1, W2, x, y = normal(4, 5), normal(3, 4), normal(11, 5), normal(11, 3)
    arguments = W1, W2, x, y, 0.3
    got = _pair(answer(*arguments), "both gradients", (4, 5), (3, 4))
    want = fisher_layer_gradients(*arguments)
    wrong = {
        "M20": {"through": True}, "6-twice": {"power": -1.0}, "M16": {"power": 0}, "6-root": {"power": 0.5},
        "6-undamped": None,
    }  # fmt: skip
    others = {
        key: _gradients(*(arguments if o is not None else (*arguments[:4], 0.0)), **(o or {})) for key, o in wrong.items()
    }
    sizes = {"N": 11.0, "C": 3.0}
    for place, name in enumerate(("by W1", "by W2")):
        suspects = {key: each[place] for key, each in others.items()}
        expect(got[place], want[place], suspects=suspects, about=name, scalars=sizes, keys={"N": "M02", "C": "M06", "2": "M06"})


def _layer_by_hand(W1, W2, x, y, damping):
    N = len(x)
    h = torch.tanh(x @ W1.T)
    Z = _power(h.T @ h / N + damping * torch.eye(len(W1)), -0.5)
    white = h @ Z
    error = white @ W2.T - y
    back = error @ W2 @ Z * (1 - h**2)
    return torch.einsum("ni,nj->ij", back, x).numpy() / N, torch.einsum("ni,nj->ij", error, white) / N


def _layer_by_backward(W1, W2, x, y, damping):
    W1.requires_grad_(), W2.requires_grad_()
    h = torch.tanh(x @ W1.T)
    Z = _power(h.detach().T @ h.detach() / len(x) + damping * torch.eye(len(W1)), -0.5)
    (0.5 * (h @ Z @ W2.T - y).square().sum(1)).mean().backward()
    return W1.grad, W2.grad


# ---- 6.3


def nystrom(A: Tensor, index: Tensor) -> Tensor:
    """C W⁺ Cᵀ with C = A[:, index], W = A[index, index]."""
    C = A[:, index]
    return C @ torch.linalg.pinv(C[index], hermitian=True, rtol=1e-10) @ C.T


def _truncated(A, index):
    kept = torch.zeros(len(A), dtype=torch.bool)
    kept[index] = True
    return A * (kept[:, None] | kept)


def _stand_in(answer, generator):
    A, index = _symmetric(generator, 7, 50.0), torch.randperm(7, generator=generator)[:3]
    got = as_tensor(answer(A, index), (7, 7))
    if float(torch.linalg.eigvalsh((got + got.mT) / 2)[0]) < -1e-8 * float(A.norm()):
        raise Mistake("M15", f"the smallest eigenvalue is {float(torch.linalg.eigvalsh((got + got.mT) / 2)[0]):.2g}")
    C, W = A[:, index], A[index][:, index]
    suspects = {"6-middle": C @ C.mT, "6-multiplied": C @ W @ C.mT}
    expect(got, nystrom(A, index), suspects=suspects)


def _exact_at_the_rank(answer, generator):
    rows = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    A = rows @ rows.mT
    index = torch.randperm(7, generator=generator)[:5]  # five landmarks, rank 3: their block is singular
    expect(answer(A, index[:3]), A, tolerance=1e-6, about="three landmarks of a matrix of rank 3")
    try:
        got = as_tensor(answer(A, index), (7, 7))
        error = float((got - A).norm() / A.norm())
    except Mistake as mistake:
        if mistake.key not in ("raised", "not_finite"):
            raise
        raise Mistake("6-pinv", mistake.evidence) from None
    if error > 1e-7:  # a pseudo-inverse that cuts at 1e-10 leaves about 1e-12, an inverse of a singular block 1e-2 and more
        raise Mistake("6-pinv", f"five landmarks of a matrix of rank 3: relative error {error:.1g}")


def _by_eigenvalues(A, index):
    values, vectors = torch.linalg.eigh(A[index][:, index])
    keep = values > 1e-9 * values.max()
    factor = A[:, index] @ vectors[:, keep] / values[keep].sqrt()
    return (factor @ factor.T).tolist()


# ---- 6.4

NAMES = ("paper SNGD", "released SNGD", "PRONG", "K-FAC")


def _directions(gradient: Tensor, a: Tensor, z: Tensor, scores: Tensor, damping: float) -> dict[str, Tensor]:
    """What each method makes of the gradient (out, in + 1) of [W | b]."""
    N, width = a.shape
    homogeneous = torch.cat([a, a.new_ones(N, 1)], 1)
    A, G = homogeneous.mT @ homogeneous / N, scores.mT @ scores / N
    eye = torch.eye(width + 1, dtype=a.dtype)
    c = a.mean(0)
    covariance = (a - c).mT @ (a - c) / N + damping * eye[:-1, :-1]
    weight = (gradient[:, :-1] - torch.outer(gradient[:, -1], c)) @ torch.linalg.inv(covariance)
    released = []
    for j in range(len(gradient)):
        M = (homogeneous * torch.sigmoid(z[:, j : j + 1]) ** 2).mT @ homogeneous / N
        released.append(torch.linalg.solve(M + damping * M.trace() * eye, gradient[j]))
    root = damping**0.5
    return {
        "paper SNGD": gradient @ torch.linalg.inv(A + damping * eye),
        "released SNGD": torch.stack(released),
        "PRONG": torch.cat([weight, (gradient[:, -1] - weight @ c)[:, None]], 1),
        "K-FAC": torch.linalg.inv(G + root * torch.eye(len(G), dtype=G.dtype)) @ gradient @ torch.linalg.inv(A + root * eye),
    }


def audit(results: dict, gradient: Tensor, a: Tensor, z: Tensor, scores: Tensor, damping: float) -> dict:
    """Letter → name of the method that made results[letter] of the gradient."""
    made = _directions(gradient, a, z, scores, damping)
    return {letter: min(made, key=lambda name: float((made[name] - result).norm())) for letter, result in results.items()}


def _case(generator: torch.Generator) -> tuple[dict, tuple, dict]:
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    a = normal(13, 4) @ normal(4, 4) + normal(4)
    z, scores = normal(13, 3), normal(13, 3) @ normal(3, 3)
    rest = normal(3, 5), a, z, scores, 0.1
    made = _directions(*rest)
    order = [NAMES[i] for i in torch.randperm(4, generator=generator).tolist()]
    letters = dict(zip("ABCD", order, strict=True))
    return {letter: made[name] for letter, name in letters.items()}, rest, letters


def _named(answer, generator):
    results, rest, letters = _case(generator)
    said = answer(results, *rest)
    if said is None:
        raise Mistake("nothing")
    if not isinstance(said, dict):
        raise Mistake("kind", f"got {type(said).__name__}; return a dictionary, letter → name")
    if sorted(said) != sorted(letters) or sorted(map(str, said.values())) != sorted(NAMES):
        raise Mistake("6-names", f"the names are {', '.join(NAMES)}")
    missed = {letters[letter] for letter in letters if letters[letter] != said[letter]}
    if not missed:
        return
    words = f"not found: {', '.join(sorted(missed))}"
    if missed == {"PRONG", "paper SNGD"}:
        raise Mistake("6-centred", words)
    raise Mistake("6-two-sided" if "K-FAC" in missed else "6-gate", words)


def _misnamed(swap):
    def answer(results, *rest):
        return {letter: swap.get(name, name) for letter, name in audit(results, *rest).items()}

    return answer


def _by_elimination(results, gradient, a, z, scores, damping):
    """Knows only what the methods are blind to: scores changed, the gate changed, the inputs' mean removed."""
    left, found = dict(results), {}
    for name, made in reversed(_directions(gradient, a, z, scores, damping).items()):
        letter = next(each for each, result in left.items() if torch.allclose(result, made, rtol=1e-6))
        found[letter] = name
        del left[letter]
    return found


EXERCISES = (
    Exercise(
        key="6.1",
        name="fisher_layer_gradients",
        reference=fisher_layer_gradients,
        parts=(Part("structure", 8, _layer),),
        wrong=(
            ("M20", lambda *args: _gradients(*args, through=True)),
            ("6-twice", lambda *args: _gradients(*args, power=-1.0)),
            ("M16", lambda *args: _gradients(*args, power=0)),
            ("6-root", lambda *args: _gradients(*args, power=0.5)),
            ("M02", lambda *args: tuple(len(args[2]) * each for each in _gradients(*args))),
            ("M06", lambda *args: tuple(2 * each for each in _gradients(*args))),
            ("M06", lambda *args: tuple(each / len(args[1]) for each in _gradients(*args))),
            ("6-undamped", lambda *args: _gradients(*args[:4], 0.0)),
            ("M25", lambda *args: _gradients(*args, cut=True)),
        ),
        others=(_layer_by_hand, _layer_by_backward),
        read="The reconstructed network",
    ),
    Exercise(
        key="6.2",
        name="denman_beavers",
        reference=denman_beavers,
        parts=(Part("structure", 5, _root), Part("edge cases", 4, _ill_conditioned)),
        wrong=(
            ("6-sequential", lambda A: _iterated(A, sequential=True)),
            ("6-own-inverse", lambda A: _iterated(A, own=True)),
            ("6-early", lambda A: _iterated(A, steps=4)),
            ("6-early", lambda A: _iterated(A, steps=9)),
            ("6-inverse", lambda A: (_power(A, 0.5), torch.linalg.inv(A))),
            ("6-triangular", _with_cholesky),
            ("6-swapped", lambda A: denman_beavers(A)[::-1]),
        ),
        others=(_by_eigenvectors, _scaled),
        read="A root without eigenvectors",
    ),
    Exercise(
        key="6.3",
        name="nystrom",
        reference=nystrom,
        parts=(Part("structure", 4, _stand_in), Part("edge cases", 3, _exact_at_the_rank)),
        wrong=(
            ("M15", _truncated),
            ("6-middle", lambda A, index: A[:, index] @ A[:, index].T),
            ("6-multiplied", lambda A, index: A[:, index] @ A[index][:, index] @ A[:, index].T),
            ("6-pinv", lambda A, index: A[:, index] @ torch.linalg.inv(A[index][:, index]) @ A[:, index].T),
            ("unrecognized", lambda A, index: nystrom(A, torch.arange(len(index)))),
            ("shape", lambda A, index: A[index]),
        ),
        others=(_by_eigenvalues,),
        read="Landmarks",
    ),
    Exercise(
        key="6.4",
        name="audit",
        reference=audit,
        parts=(Part("four names", 6, _named),),
        wrong=(
            ("6-centred", _misnamed({"PRONG": "paper SNGD", "paper SNGD": "PRONG"})),
            ("6-gate", _misnamed({"released SNGD": "paper SNGD", "paper SNGD": "released SNGD"})),
            ("6-two-sided", _misnamed({"K-FAC": "PRONG", "PRONG": "K-FAC"})),
            ("6-names", lambda results, *rest: {letter: "K-FAC" for letter in results}),
            ("6-names", lambda results, *rest: {letter: "sngd" for letter in results}),
        ),
        others=(_by_elimination,),
        read="Audit: what the released code does",
    ),
)
