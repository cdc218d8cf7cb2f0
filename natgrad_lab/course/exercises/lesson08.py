"""Exercises of lesson 08: the chain's inverse, blocks at a glance, which matrix to take, and how long a step."""

import torch
from torch import Tensor

from natgrad_lab.course.diagnose import FIT, Mistake, as_tensor, expect
from natgrad_lab.course.exercise import Exercise, Part

MISTAKES = {
    "8-late": "The factors were damped after Ψ was made of them. Damp first: Ψ needs the damped inverse.",
    "8-wrong side": "Ξ and its transpose changed places: F̂⁻¹ = Ξᵀ Λ Ξ.",
    "8-no subtraction": "Σ is what the regression leaves: subtract what the next layer explains.",
    "8-blocks": "The blocks between layers are not used: this is the block-diagonal inverse.",
    "8-sum": "Blocks have different sizes: take the mean of the entries, not the sum.",
    "8-signed": "Positive and negative entries cancel in a mean: take absolute values first.",
    "8-squares": "These are mean squares. Asked for is the mean absolute value.",
    "8-order": "The sizes of the layers were taken in the wrong order.",
    "8-roundest": "The matrix with the largest smallest eigenvalue is the one nearest to doing nothing to the gradient.",
    "8-length": "The longest step is not the best: its length is a matter of the learning rate.",
    "8-no damping": "λ is missing in the quadratic model: it is ½ δᵀ(F + λI)δ + gᵀδ.",
    "8-separate": "α and μ were chosen one by one. They act together: the model has a mixed term.",
    "8-no momentum": "The last update is not used.",
}
_SIDES = ((3, 2), (4, 3), (2, 5))  # inputs with the 1, and outputs, of three layers


def _eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def _moments(generator: torch.Generator, widths: list[int]) -> list[list[Tensor]]:
    """Second moments of every pair of sides, from common random rows."""
    rows = torch.randn(40, sum(widths), generator=generator, dtype=torch.float64)
    mixed = rows @ (_eye(sum(widths)) + 0.4 * torch.randn(rows.shape[1], rows.shape[1], generator=generator, dtype=rows.dtype))
    parts = mixed.split(widths, 1)
    return [[x.mT @ y / len(rows) for y in parts] for x in parts]


# ---- 8.1


def tridiag_inverse(A: list, G: list, A_cross: list, G_cross: list, root: float) -> Tensor:
    """F̂⁻¹ of the chain whose blocks are G_ii ⊗ A_ii (with `root` added to both factors) and G_{i,i+1} ⊗ A_{i,i+1}."""
    own, psi, sigma = _chain(A, G, A_cross, G_cross, root)
    return _assembled(psi, sigma)


def _damp(factors, root):
    return [each + root * _eye(len(each)) for each in factors]


def _chain(A, G, A_cross, G_cross, root, late=False):
    own = [torch.kron(g, a) for g, a in zip(_damp(G, root), _damp(A, root), strict=True)]
    plain = [torch.kron(g, a) for g, a in zip(G, A, strict=True)] if late else own
    cross = [torch.kron(g, a) for g, a in zip(G_cross, A_cross, strict=True)]
    psi = [each @ torch.linalg.inv(below) for each, below in zip(cross, plain[1:], strict=True)]
    sigma = [one - p @ below @ p.mT for one, p, below in zip(own, psi, own[1:], strict=False)] + own[-1:]
    return own, psi, sigma


def _assembled(psi, sigma, turned=False):
    ends = [0]
    for each in sigma:
        ends.append(ends[-1] + len(each))
    Xi, Lambda = _eye(ends[-1]), torch.zeros(ends[-1], ends[-1], dtype=torch.float64)
    for i, each in enumerate(sigma):
        here = slice(ends[i], ends[i + 1])
        Lambda[here, here] = torch.linalg.inv(each)
        if i < len(psi):
            Xi[here, ends[i + 1] : ends[i + 2]] = -psi[i]
    return Xi @ Lambda @ Xi.mT if turned else Xi.mT @ Lambda @ Xi


def _late(A, G, A_cross, G_cross, root):
    _, psi, sigma = _chain(A, G, A_cross, G_cross, root, late=True)
    return _assembled(psi, sigma)


def _turned(A, G, A_cross, G_cross, root):
    _, psi, sigma = _chain(A, G, A_cross, G_cross, root)
    return _assembled(psi, sigma, turned=True)


def _no_subtraction(A, G, A_cross, G_cross, root):
    own, psi, _ = _chain(A, G, A_cross, G_cross, root)
    return _assembled(psi, own)


def _only_blocks(A, G, A_cross, G_cross, root):
    own, _, _ = _chain(A, G, A_cross, G_cross, root)
    return torch.block_diag(*(torch.linalg.inv(each) for each in own))


def _columns_first(A, G, A_cross, G_cross, root):
    return tridiag_inverse(G, A, G_cross, A_cross, root)


def _cut(A, G, A_cross, G_cross, root):
    own, _, _ = _chain(A, G, A_cross, G_cross, root)
    cross = [torch.kron(g, a) for g, a in zip(G_cross, A_cross, strict=True)]
    matrix, start = torch.block_diag(*own), 0
    for i, each in enumerate(cross):
        middle = start + len(own[i])
        matrix[start:middle, middle : middle + each.shape[1]] = each
        matrix[middle : middle + each.shape[1], start:middle] = each.mT
        start = middle
    return torch.linalg.inv(matrix)


_CHAIN_MISTAKES = {
    "8-late": _late, "8-wrong side": _turned, "8-no subtraction": _no_subtraction, "8-blocks": _only_blocks,
    "M07": _columns_first, "M15": _cut,
}  # fmt: skip


def _chain_instance(generator, layers: int, apart: bool = False):
    A, G = (_moments(generator, [each[side] for each in _SIDES[:layers]]) for side in (0, 1))
    crosses = [[M[i][i + 1] * (0 if apart else 1) for i in range(layers - 1)] for M in (A, G)]
    return [A[i][i] for i in range(layers)], [G[i][i] for i in range(layers)], *crosses


def _chain_part(layers: int, apart: bool = False):
    def check(answer, generator):
        instance = _chain_instance(generator, layers, apart)
        suspects = {key: make(*instance, 0.3) for key, make in _CHAIN_MISTAKES.items()}
        about = f"{layers} layers" + (", nothing between them" if apart else "")
        expect(answer(*instance, 0.3), tridiag_inverse(*instance, 0.3), suspects=suspects, about=about)

    return check


def _by_runs(A, G, A_cross, G_cross, root):
    """Inverses of pairs of neighbours, minus those of the layers that two pairs share."""
    own = [torch.kron(g, a) for g, a in zip(_damp(G, root), _damp(A, root), strict=True)]
    sizes = [len(each) for each in own]
    out = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    for i in range(len(own) - 1):
        cross = torch.kron(G_cross[i], A_cross[i])
        pair = torch.cat([torch.cat([own[i], cross], 1), torch.cat([cross.mT, own[i + 1]], 1)])
        start = sum(sizes[:i])
        out[start : start + len(pair), start : start + len(pair)] += torch.linalg.inv(pair)
        if i > 0:
            out[start : start + sizes[i], start : start + sizes[i]] -= torch.linalg.inv(own[i])
    return out.numpy()


# ---- 8.2


def block_profile(M: Tensor, sizes: list[int]) -> Tensor:
    """Mean absolute entry of each block (i, j) of layers, (L, L)."""
    return torch.stack([torch.stack([block.abs().mean() for block in row.split(sizes, 1)]) for row in M.split(sizes)])


def _profile(reduce):
    return lambda M, sizes: torch.stack([torch.stack([reduce(b) for b in row.split(sizes, 1)]) for row in M.split(sizes)])


_PROFILE_MISTAKES = {
    "8-sum": _profile(lambda b: b.abs().sum()), "8-signed": _profile(torch.mean),
    "8-squares": _profile(lambda b: (b * b).mean()), "8-order": lambda M, sizes: block_profile(M, sizes[::-1]),
}  # fmt: skip


def _profile_part(sizes: tuple[int, ...]):
    def check(answer, generator):
        M = torch.randn(sum(sizes), sum(sizes), generator=generator, dtype=torch.float64)
        suspects = {key: make(M, list(sizes)) for key, make in _PROFILE_MISTAKES.items()} if len(sizes) > 1 else {}
        expect(answer(M, list(sizes)), block_profile(M, list(sizes)), suspects=suspects, about=f"sizes {sizes}")

    return check


def _profile_with_loops(M, sizes):
    import numpy as np

    ends = np.cumsum([0, *sizes])
    array = np.abs(M.numpy())
    return [
        [array[a:b, c:d].mean() for c, d in zip(ends, ends[1:], strict=False)] for a, b in zip(ends, ends[1:], strict=False)
    ]


# ---- 8.3


def choose_truncation(candidates: list, F: Tensor, g: Tensor, damping: float) -> int:
    """Index of the positive definite candidate P whose step P g has the largest efficiency against F + damping I."""
    best, found = -1.0, -1
    for number, P in enumerate(candidates):
        if torch.linalg.eigvalsh(P)[0] > 0 and (share := _share(P @ g, F, g, damping)) > best:
            best, found = share, number
    return found


def _share(v, F, g, damping):
    metric = F + damping * _eye(len(g))
    return float((g @ v) ** 2 / (v @ metric @ v) / (g @ torch.linalg.solve(metric, g)))


def _cosine(v, F, g, damping):
    best = torch.linalg.solve(F + damping * _eye(len(g)), g)
    return float(v @ best / v.norm() / best.norm())


def _largest(score, definite=True):
    def choose(candidates, F, g, damping):
        scores = [score(P, F, g, damping) if not definite or torch.linalg.eigvalsh(P)[0] > 0 else -1.0 for P in candidates]
        return max(range(len(scores)), key=scores.__getitem__)

    return choose


_CHOICES = {
    "M15": _largest(lambda P, F, g, damping: _share(P @ g, F, g, damping), definite=False),
    "M22": _largest(lambda P, F, g, damping: _cosine(P @ g, F, g, damping)),
    "8-roundest": _largest(lambda P, F, g, damping: float(torch.linalg.eigvalsh(P)[0])),
    "8-length": _largest(lambda P, F, g, damping: float((P @ g).norm())),
    "8-no damping": _largest(lambda P, F, g, damping: _share(P @ g, F, g, 0.0)),
}


def _with_step(v: Tensor, g: Tensor, rest: float) -> Tensor:
    """A positive definite P with P g = v, for gᵀv > 0."""
    return torch.outer(v, v) / (g @ v) + rest * (_eye(len(g)) - torch.outer(g, g) / (g @ g))


def _choice_instance(generator):
    """Five candidates: the right one, a better one that is not definite, one with a small angle, a round one, a long one."""
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    values, damping = torch.logspace(0, -3, 6, dtype=torch.float64), 1e-5
    F = basis @ torch.diag(values) @ basis.mT
    natural = basis[:, :5] @ (values[:5] + damping).rsqrt()
    g = (F + damping * _eye(6)) @ natural
    steep, flat = basis[:, 0], basis[:, 5]
    steps = [natural + 40 * flat, natural + 5 * flat, natural + 8 * steep, g, natural + 14 * steep]
    steps = [length * v / v.norm() for v, length in zip(steps, (1, 1, 1, 1, 3), strict=True)]
    candidates = [_with_step(v, g, 1e-3) for v in steps]
    across = torch.linalg.qr(torch.cat([g[:, None], basis[:, 3:5]], 1))[0][:, 1:]  # two negative ones: the determinant is > 0
    candidates[1] = candidates[1] - across @ (across.mT @ candidates[1] @ across + 0.2 * _eye(2)) @ across.mT
    candidates[3] = _eye(6) / g.norm()
    order = torch.randperm(5, generator=generator).tolist()
    return [candidates[i] for i in order], F, g, damping


def _judge_choice(answer, instance, about: str = ""):
    got, want = float(as_tensor(answer(*instance), ())), choose_truncation(*instance)
    if got != want:
        for key, choose in _CHOICES.items():
            if choose(*instance) == got:
                raise Mistake(key, f"it chose candidate {got:g}{about}")
        raise Mistake("unrecognized", f"it chose candidate {got:g} of 0 to 4{about}")


def _choice_part(answer, generator):
    for _ in range(2):
        candidates, F, g, damping = _choice_instance(generator)
        for stronger in (1, 1000):  # another candidate is best then
            _judge_choice(answer, (candidates, F, g, stronger * damping), f", λ = {stronger * damping:g}")


def _units_part(answer, generator):
    """A candidate times a number is as good as it was."""
    candidates, *rest = _choice_instance(generator)
    lengths = [10.0**k for k in torch.randperm(5, generator=generator).tolist()]
    scaled = [c * P for c, P in zip(lengths, candidates, strict=True)]
    _judge_choice(answer, (scaled, *rest), "; the candidates were multiplied by powers of ten")


def _with_cholesky(candidates, F, g, damping):
    import numpy as np

    metric, shares = F.numpy() + damping * np.eye(len(g)), {}
    for number, P in enumerate(candidates):
        try:
            np.linalg.cholesky(P.numpy())
        except np.linalg.LinAlgError:
            continue
        v = P.numpy() @ g.numpy()
        shares[number] = (g.numpy() @ v) ** 2 / (v @ metric @ v)
    return max(shares, key=shares.get)


# ---- 8.4


def alpha_mu(g: Tensor, step: Tensor, last: Tensor | None, F: Tensor, damping: float) -> tuple[float, float]:
    """α and μ that minimize gᵀδ + ½ δᵀ(F + damping I)δ over δ = α step + μ last; (α, 0) without a last update."""
    if last is None or not last.any():
        return float(-(g @ step) / (step @ F @ step + damping * step @ step)), 0.0
    pair = torch.stack([step, last])
    Q = pair @ (F + damping * _eye(len(g))) @ pair.mT
    alpha, mu = torch.linalg.solve(Q, -(pair @ g)).tolist()
    return alpha, mu


def _separately(g, step, last, F, damping):
    return alpha_mu(g, step, None, F, damping)[0], alpha_mu(g, last, None, F, damping)[0] if last is not None else 0.0


def _plane_instance(generator):
    rows = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    F = rows.mT @ rows / 9
    g, last = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(2))
    return g, -torch.linalg.solve(F + 0.5 * _eye(5), g), last, F


def _plane_part(answer, generator):
    g, step, last, F = _plane_instance(generator)
    for damping in (0.0, 0.4):
        want = alpha_mu(g, step, last, F, damping)
        suspects = {
            "8-separate": _separately(g, step, last, F, damping), "8-no momentum": alpha_mu(g, step, None, F, damping),
            "M16": (1.0, 0.0), "8-no damping": alpha_mu(g, step, last, F, 0.0),
        }  # fmt: skip
        expect(_pair(answer(g, step, last, F, damping)), torch.tensor(want), suspects=suspects, about=f"λ = {damping:g}")


def _pair(result) -> Tensor:
    if result is None:
        raise Mistake("nothing")
    if not isinstance(result, tuple | list) or len(result) != 2:
        got = as_tensor(result)
        if got.shape != (2,):
            raise Mistake("shape", "it should be the pair (α, μ)")
        return got
    return torch.stack([as_tensor(each).reshape(()) for each in result])


def _no_last_part(answer, generator):
    g, step, last, F = _plane_instance(generator)
    for given, words in ((None, "last is None"), (torch.zeros_like(last), "last is all zeros")):
        alpha, mu = _pair(answer(g, step, given, F, 0.4)).tolist()
        want = alpha_mu(g, step, None, F, 0.4)[0]
        if not abs(alpha - want) <= FIT * abs(want) or (given is None and mu != 0) or mu != mu:
            raise Mistake("unrecognized", f"{words}: the best is to take α alone, μ = 0")


def _units_of_last_part(answer, generator):
    """Another length of the last update changes μ and not what is done."""
    g, step, last, F = _plane_instance(generator)
    updates = []
    for c in (1.0, 1e4):
        alpha, mu = _pair(answer(g, step, c * last, F, 0.4)).tolist()
        updates.append(alpha * step + mu * c * last)
    expect(updates[1], updates[0], about="the last update multiplied by 10,000")


def _by_least_squares(g, step, last, F, damping):
    pair = torch.stack([step, torch.zeros_like(step) if last is None else last])
    Q = pair @ F @ pair.mT + damping * pair @ pair.mT
    scale = Q.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    x = torch.linalg.pinv(Q / scale / scale[:, None], hermitian=True) @ (-(pair @ g) / scale)
    return (x / scale).numpy()


EXERCISES = (
    Exercise(
        key="8.1", name="tridiag_inverse", reference=tridiag_inverse,
        parts=(Part("structure", 5, _chain_part(3)), Part("scaling", 2, _chain_part(3, apart=True)),
               Part("edge cases", 2, _chain_part(2))),
        wrong=tuple(_CHAIN_MISTAKES.items()), others=(_by_runs,), read="A chain of layers",
    ),
    Exercise(
        key="8.2", name="block_profile", reference=block_profile,
        parts=(Part("structure", 3, _profile_part((3, 5, 2))), Part("edge cases", 1, _profile_part((4,)))),
        wrong=tuple(_PROFILE_MISTAKES.items()), others=(_profile_with_loops,), read="Is the structure in the inverse?",
    ),
    Exercise(
        key="8.3", name="choose_truncation", reference=choose_truncation,
        parts=(Part("structure", 5, _choice_part), Part("scaling", 2, _units_part)),
        wrong=tuple(_CHOICES.items()), others=(_with_cholesky,), read="What neighbours are worth",
    ),
    Exercise(
        key="8.4", name="alpha_mu", reference=alpha_mu,
        parts=(
            Part("structure", 5, _plane_part), Part("scaling", 2, _units_of_last_part), Part("edge cases", 2, _no_last_part),
        ),
        wrong=(
            ("8-no damping", lambda g, step, last, F, damping: alpha_mu(g, step, last, F, 0.0)),
            ("8-separate", _separately),
            ("8-no momentum", lambda g, step, last, F, damping: alpha_mu(g, step, None, F, damping)),
            ("M16", lambda g, step, last, F, damping: (1.0, 0.0)),
            ("sign", lambda g, step, last, F, damping: tuple(-x for x in alpha_mu(g, step, last, F, damping))),
        ),
        others=(_by_least_squares,), read="How far, and how much momentum",
    ),
)  # fmt: skip
