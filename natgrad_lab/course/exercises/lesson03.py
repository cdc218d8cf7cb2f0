"""Exercises of lesson 03: solve with a damped Fisher, change coordinates, judge a direction, adapt the damping."""

import torch
from torch import Tensor

from natgrad_lab.course.diagnose import Mistake, as_tensor, expect
from natgrad_lab.course.exercise import Exercise, Part

MISTAKES = {
    "3-relative": "The damping is relative: F was multiplied by it. Add λI to F itself.",
    "3-square": "The damping enters squared.",
    "3-inverse": "An explicit inverse lost digits: this Fisher is nearly singular. Solve the linear system instead.",
}


def _instance(generator: torch.Generator, dim: int = 5, examples: int = 7) -> tuple[Tensor, Tensor]:
    rows = torch.randn(examples, dim, generator=generator, dtype=torch.float64)
    return rows.mT @ rows / examples, torch.randn(dim, generator=generator, dtype=torch.float64)


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
            "3-square": solve(F + damping**2 * eye),
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
        raise Mistake("3-inverse", f"‖Fv − g‖ / ‖g‖ is {residual:.1e}")


def _by_least_squares(F, g, damping):
    return torch.linalg.lstsq(F + damping * torch.eye(len(g)), g[:, None]).solution.flatten().numpy()


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
            ("3-inverse", lambda F, g, damping: torch.linalg.inv(F + damping * torch.eye(len(g))) @ g),
            ("nothing", lambda F, g, damping: None),
        ),
        others=(_by_least_squares,),
        read="Damping",
    ),
)  # fmt: skip
