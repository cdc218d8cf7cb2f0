"""Exercises of lesson 03: solve with a damped Fisher, change coordinates, judge a direction, adapt the damping."""

import math

import torch
from torch import Tensor

from natgrad_lab.course.diagnose import Mistake, as_tensor, expect, recognize
from natgrad_lab.course.exercise import Exercise, Part

MISTAKES = {
    "3-relative": "The damping is relative: F was multiplied by it. Add λI to F itself.",
    "3-square": "The damping enters squared.",
    "3-none": "The damping has no effect here.",
    "3-entries": "The damping was added to every entry of F. The λ in F + λI stands on the diagonal only.",
    "3-inverse": "Digits were lost: this Fisher is nearly singular. Solve the system, without an inverse or more damping.",
    "3-fisher-kept": "The gradient was carried to the new coordinates and the Fisher was not. Both change.",
    "3-gradient-kept": "The Fisher was carried to the new coordinates and the gradient was not. Both change.",
    "3-jacobian-side": "The Jacobian is on the wrong side: it has a row for each old coordinate, a column for each new one.",
    "3-not-squared": "It is the cosine in the Fisher's inner product, and not yet a share of a decrease: a power is missing.",
    "3-undamped": "The damping is missing in one of the two Fishers. Both lengths are measured in F + λI.",
    "3-length": "The number changes when the direction is made longer. The best step length belongs to each direction.",
    "3-reversed": "It moves the wrong way: where the model predicts well, trust it further.",
    "3-every": "The rate is per step; the damping is adapted only once in several steps.",
    "3-kept": "Between the two thresholds the damping stays as it is.",
    "3-nan": "A ratio that is not a number means that the step failed.",
}


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _instance(generator: torch.Generator, dim: int = 5, examples: int = 7) -> tuple[Tensor, Tensor]:
    rows = _draw(generator, examples, dim)
    return rows.mT @ rows / examples, _draw(generator, dim)


# ---- 3.1


def natural_gradient(F: Tensor, g: Tensor, damping: float) -> Tensor:
    """(F + damping I)⁻¹ g."""
    return torch.linalg.solve(F + damping * torch.eye(len(g), dtype=F.dtype), g)


def _values(answer, generator):
    F, g = _instance(generator)
    eye = torch.eye(len(g), dtype=F.dtype)
    for damping in (0.3, 0.01):
        solve = lambda M: torch.linalg.solve(M, g)  # noqa: E731
        suspects = {
            "M16": g, "M09": solve(7 * F + damping * eye), "3-relative": solve((1 + damping) * F),
            "3-square": solve(F + damping**2 * eye), "3-none": solve(F), "3-entries": solve(F + damping),
        }  # fmt: skip
        expect(answer(F, g, damping), solve(F + damping * eye), suspects=suspects, scalars={"λ": damping, "N": 7})


def _zero_fisher(answer, generator):
    F, g = _instance(generator)
    expect(answer(0 * F, g, 0.25), g / 0.25, keys={"": "M09", "2": "M09"})


def _nearly_singular(answer, generator):
    F, _ = _instance(generator)
    basis, _ = torch.linalg.qr(F)
    hard = basis @ torch.diag(torch.logspace(0, -12, len(F), dtype=F.dtype)) @ basis.mT
    hard = (hard + hard.mT) / 2
    g = hard @ torch.ones(len(F), dtype=F.dtype)
    residual = float((hard @ as_tensor(answer(hard, g, 0.0), g.shape) - g).norm() / g.norm())
    if residual > 1e-10:  # a backward-stable solve leaves about 1e-15, an inverse about 1e-6
        raise Mistake("3-inverse" if residual < 1e-3 else "unrecognized", f"‖Fv − g‖ / ‖g‖ is {residual:.1e}, undamped")


def _by_least_squares(F, g, damping):
    return torch.linalg.lstsq(F + damping * torch.eye(len(g)), g[:, None]).solution.flatten().numpy()


# ---- 3.2


def pullback_step(F: Tensor, g: Tensor, J: Tensor) -> Tensor:
    """(JᵀFJ)⁻¹ Jᵀg: the natural gradient in coordinates z with θ = θ(z), J = ∂θ/∂z."""
    return torch.linalg.solve(J.mT @ F @ J, J.mT @ g)


def _square_map(answer, generator):
    F, g = _instance(generator)
    J, solve = _draw(generator, 5, 5) + 2 * torch.eye(5, dtype=F.dtype), torch.linalg.solve
    pairs = (
        ("M16", J.mT @ g), ("3-fisher-kept", solve(F, J.mT @ g)), ("3-gradient-kept", solve(J.mT @ F @ J, g)),
        ("3-gradient-kept", solve(F, g)), ("3-jacobian-side", solve(J @ F @ J.mT, J @ g)),
        ("3-jacobian-side", solve(J @ F @ J.mT, J.mT @ g)),
    )  # fmt: skip
    got, want = answer(F, g, J), pullback_step(F, g, J)
    recognize(got, want, pairs)
    expect(got, want, tolerance=1e-7)


def _fewer_coordinates(answer, generator):
    F, g = _instance(generator)
    J = _draw(generator, 5, 3)
    expect(answer(F, g, J), pullback_step(F, g, J), tolerance=1e-7)


def _same_arrow(answer, generator):
    """J times the step in z is the step in θ."""
    F, g = _instance(generator, 4, 9)
    J = torch.diag(torch.logspace(-1, 1, 4, dtype=F.dtype))
    got = as_tensor(answer(F, g, J), (4,))
    expect(J @ got, torch.linalg.solve(F, g), about="J times the step in z, with new units")


def _pullback_by_roots(F, g, J):
    root = torch.linalg.cholesky(F).mT  # F = rootᵀ root
    return torch.linalg.lstsq(root @ J, torch.linalg.solve(root.mT, g)[:, None]).solution[:, 0]


# ---- 3.3


def efficiency(v: Tensor, F: Tensor, g: Tensor, damping: float) -> float:
    """(gᵀv)² / (vᵀF_λv · gᵀF_λ⁻¹g)."""
    damped = F + damping * torch.eye(len(g), dtype=F.dtype)
    return float((g @ v) ** 2 / (v @ damped @ v) / (g @ torch.linalg.solve(damped, g)))


def _shares(answer, generator):
    F, g = _instance(generator)
    v, damping, eye = _draw(generator, 5), 0.3, torch.eye(5, dtype=F.dtype)
    damped = F + damping * eye
    best = torch.linalg.solve(damped, g)
    want, top, below, bare = efficiency(v, F, g, damping), g @ v, v @ damped @ v, v @ F @ v
    full, plain = g @ best, g @ torch.linalg.solve(F, g)
    cosines = top / v.norm() / g.norm(), v @ best / v.norm() / best.norm()
    pairs = (
        *(("M22", value) for each in cosines for value in (each, each**2)),
        *(("3-not-squared", value / (below * full).sqrt()) for value in (top, abs(top))),
        *(("3-undamped", top**2 / value) for value in (bare * full, below * plain, bare * plain)),
        *(("3-length", value) for value in (top / below / full, abs(top) / below / full, top**2 / full, top**2 / below)),
    )
    got = as_tensor(answer(v, F, g, damping), ())
    recognize(got, want, pairs)
    expect(got, want)


def _best_and_worst(answer, generator):
    F, g = _instance(generator)
    eye = torch.eye(5, dtype=F.dtype)
    expect(answer(torch.linalg.solve(F + 0.1 * eye, g), F, g, 0.1), 1.0, about="of the natural gradient itself")
    v = _draw(generator, 5)
    v = v - g * (v @ g) / (g @ g)
    share = float(as_tensor(answer(v, F, g, 0.1)).reshape(-1)[0])
    if abs(share) > 1e-12:
        raise Mistake("unrecognized", f"a direction at a right angle to the gradient should get 0, and gets {share:.2g}")


def _invariance(answer, generator):
    F, g = _instance(generator)
    v, J = _draw(generator, 5), _draw(generator, 5, 5) + 2 * torch.eye(5, dtype=F.dtype)
    once = float(as_tensor(answer(v, F, g, 0.0)).reshape(-1)[0])
    for scale in (-3.0, 0.01):
        if not math.isclose(float(as_tensor(answer(scale * v, F, g, 0.0)).reshape(-1)[0]), once, rel_tol=1e-5):
            raise Mistake("3-length", f"v is {scale:g} times as long")
    other = float(as_tensor(answer(torch.linalg.solve(J, v), J.mT @ F @ J, J.mT @ g, 0.0)).reshape(-1)[0])
    if not math.isclose(other, once, rel_tol=1e-5):
        raise Mistake("M22", f"{once:.4g} in one coordinate system, {other:.4g} in another")


def _cosine_squared_in_fisher(v, F, g, damping):
    values, basis = torch.linalg.eigh(F + damping * torch.eye(len(g)))
    a, b = values.sqrt() * (basis.mT @ v), (basis.mT @ g) / values.sqrt()
    return torch.nn.functional.cosine_similarity(a, b, dim=0) ** 2


# ---- 3.4


def adapt_lambda(damping: float, rho: float, rate: float, every: int) -> float:
    """Levenberg-Marquardt: shrink by rate^every above ¾, grow by it below ¼ or at NaN, else keep."""
    factor = rate**every
    if rho > 0.75:
        return damping * factor
    if rho < 0.25 or math.isnan(rho):
        return damping / factor
    return damping


def _numbers(generator: torch.Generator) -> tuple[float, float, int]:
    u = torch.rand(3, generator=generator, dtype=torch.float64)
    return 0.1 + float(u[0]), 0.85 + 0.1 * float(u[1]), 3 + int(3 * u[2])


def _script(answer, generator):
    """Good, middling and bad steps."""
    damping, rate, every = _numbers(generator)
    factor = rate**every
    got = {rho: float(as_tensor(answer(damping, rho, rate, every), ())) / damping for rho in (0.9, 0.1, -2.0, 0.5)}
    near = lambda a, b: math.isclose(a, b, rel_tol=1e-9)  # noqa: E731
    if near(got[0.9], 1 / factor) and near(got[0.1], factor):
        raise Mistake("3-reversed")
    if near(got[0.9], rate) or near(got[0.1], 1 / rate):
        raise Mistake("3-every", f"it is adapted every {every} steps")
    if all(value <= 1 + 1e-12 for value in got.values()) or all(value >= 1 - 1e-12 for value in got.values()):
        raise Mistake("M23", "over good, middling and bad steps it moves one way or not at all")
    if not near(got[0.5], 1):
        raise Mistake("3-kept", "ρ = 0.5")
    for rho, want in ((0.9, factor), (0.1, 1 / factor), (-2.0, 1 / factor)):
        expect(got[rho] * damping, want * damping, about=f"ρ = {rho}")


def _edges(answer, generator):
    damping, rate, every = _numbers(generator)
    failed, bad = (as_tensor(answer(damping, rho, rate, every), ()) for rho in (math.nan, -1.0))
    if not math.isclose(failed, bad, rel_tol=1e-9):
        raise Mistake("3-nan", "ρ is NaN")
    expect(failed, damping / rate**every, about="ρ is NaN")
    expect(answer(damping, -math.inf, rate, every), damping / rate**every, about="the loss overflowed: ρ = −∞")


def _by_table(damping, rho, rate, every):
    power = {True: 1, False: 0}[rho > 3 / 4] - {True: 0, False: 1}[rho >= 1 / 4]
    return torch.tensor(damping) * torch.tensor(rate) ** (every * power)


EXERCISES = (
    Exercise(
        key="3.1",
        name="natural_gradient",
        reference=natural_gradient,
        parts=(
            Part("structure", 4, _values), Part("scaling", 3, _zero_fisher), Part("edge cases", 2, _nearly_singular),
        ),
        wrong=(
            ("M16", lambda F, g, damping: g.clone()),
            ("M09", lambda F, g, damping: torch.linalg.solve(7 * F + damping * torch.eye(len(g)), g)),
            ("3-relative", lambda F, g, damping: torch.linalg.solve((1 + damping) * F, g)),
            ("3-square", lambda F, g, damping: torch.linalg.solve(F + damping**2 * torch.eye(len(g)), g)),
            ("3-none", lambda F, g, damping: torch.linalg.lstsq(F, g[:, None]).solution.flatten()),
            ("3-none", lambda F, g, damping: torch.linalg.solve(F, g)),
            ("3-entries", lambda F, g, damping: torch.linalg.solve(F + damping, g)),
            ("3-inverse", lambda F, g, damping: torch.linalg.inv(F + damping * torch.eye(len(g))) @ g),
            ("nothing", lambda F, g, damping: None),
        ),
        others=(_by_least_squares,),
        read="Damping",
    ),
    Exercise(
        key="3.2",
        name="pullback_step",
        reference=pullback_step,
        parts=(
            Part("structure", 4, _square_map), Part("shape", 2, _fewer_coordinates), Part("scaling", 3, _same_arrow),
        ),
        wrong=(
            ("3-fisher-kept", lambda F, g, J: torch.linalg.solve(F, J.mT @ g)),
            ("3-gradient-kept", lambda F, g, J: torch.linalg.solve(J.mT @ F @ J, g)),
            ("3-gradient-kept", lambda F, g, J: torch.linalg.solve(F, g)),
            ("3-jacobian-side", lambda F, g, J: torch.linalg.solve(J @ F @ J.mT, J @ g)),
            ("3-jacobian-side", lambda F, g, J: torch.linalg.solve(J @ F @ J.mT, J.mT @ g)),
            ("M16", lambda F, g, J: J.mT @ g),
            ("raised", lambda F, g, J: torch.linalg.solve(J, torch.linalg.solve(F, g))),
            ("sign", lambda F, g, J: -pullback_step(F, g, J)),
        ),
        others=(_pullback_by_roots, lambda F, g, J: (torch.linalg.inv(J.T @ F @ J) @ (J.T @ g)).tolist()),
        read="What stays the same",
    ),
    Exercise(
        key="3.3",
        name="efficiency",
        reference=efficiency,
        parts=(
            Part("structure", 4, _shares), Part("edge cases", 2, _best_and_worst), Part("scaling", 3, _invariance),
        ),
        wrong=(
            ("M22", lambda v, F, g, damping: torch.nn.functional.cosine_similarity(v, g, dim=0) ** 2),
            ("M22", lambda v, F, g, damping: torch.nn.functional.cosine_similarity(
                v, torch.linalg.solve(F + damping * torch.eye(len(g)), g), dim=0)),
            ("3-not-squared", lambda v, F, g, damping: efficiency(v, F, g, damping) ** 0.5),
            ("3-undamped", lambda v, F, g, damping: efficiency(v, F, g, 0.0)),
            ("3-undamped", lambda v, F, g, damping: (g @ v) ** 2 / (v @ F @ v) / (g @ natural_gradient(F, g, damping))),
            ("3-length", lambda v, F, g, damping: (g @ v) ** 2 / (g @ natural_gradient(F, g, damping))),
        ),
        others=(_cosine_squared_in_fisher, lambda v, *rest: torch.tensor([[efficiency(v, *rest)]])),
        read="The right yardstick",
    ),
    Exercise(
        key="3.4",
        name="adapt_lambda",
        reference=adapt_lambda,
        parts=(Part("structure", 5, _script), Part("edge cases", 2, _edges)),
        wrong=(
            ("3-reversed", lambda damping, rho, rate, every: adapt_lambda(damping, 1 - rho, rate, every)),
            ("3-every", lambda damping, rho, rate, every: adapt_lambda(damping, rho, rate, 1)),
            ("M23", lambda damping, rho, rate, every: damping * rate**every if rho > 0.75 else damping),
            ("M23", lambda damping, rho, rate, every: damping),
            ("3-kept", lambda damping, rho, rate, every: damping * rate ** (every if rho > 0.25 else -every)),
            ("unrecognized", lambda damping, rho, rate, every: adapt_lambda(damping, rho, rate**every, every)),
            ("3-nan", lambda damping, rho, rate, every: adapt_lambda(damping, 0.5 if rho != rho else rho, rate, every)),
            ("nothing", lambda damping, rho, rate, every: None),
        ),
        others=(_by_table, lambda *args: [adapt_lambda(*args)]),
        read="How far to trust the model",
    ),
)  # fmt: skip
