"""From second moments to data: a few examples with exactly those moments, so that all functions take (inputs, targets)."""

import torch

from natgrad_lab.linalg import psd_eigh, zero_level
from natgrad_lab.shapes import Float, Tensor


def data_from_moments(
    second_moment: Float[Tensor, "D D"],
    cross_moment: Float[Tensor, "C D"],
    input_mean: Float[Tensor, " D"] | None = None,
    target_mean: Float[Tensor, " C"] | None = None,
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N C"]]:
    """Inputs and targets with E[xxᵀ] = second_moment and E[yxᵀ] = cross_moment, and E[x], E[y] if the means are given.

    Gradients, Fisher matrices and excess losses of a linear network depend on the data through these moments alone; the
    targets have no part that is not linear in the inputs. Networks with biases need the means. N is the rank of
    E[xxᵀ], or of E[[x; 1][x; 1]ᵀ] with the means.

    Raises: NotPositiveDefiniteError if these are nobody's moments; ValueError if E[yxᵀ] points where no input does, or for one
        mean without the other.
    """
    if (input_mean is None) != (target_mean is None):
        raise ValueError("give both means or neither: input_mean and target_mean together are what a bias learns from.")
    second, cross = second_moment.detach(), cross_moment.detach()
    if input_mean is not None:
        row = torch.cat([input_mean.detach(), input_mean.new_ones(1)])
        second = torch.cat([torch.cat([second, row[None, :-1]]), row[:, None]], 1)
        cross = torch.cat([cross, target_mean.detach()[:, None]], 1)
    values, vectors = psd_eigh(second.double())
    kept = values > max(zero_level(len(values), values[-1]), 10 * torch.finfo(second.dtype).eps * float(values[-1]))
    vectors, scale = vectors[:, kept], (values[kept] * kept.sum()).sqrt()
    missed = cross.double() - cross.double() @ vectors @ vectors.mT
    if missed.norm() > 1e3 * torch.finfo(second.dtype).eps ** 0.5 * cross.norm():
        raise ValueError(
            f"cross_moment has a part of relative size {float(missed.norm() / cross.norm()):.1e} in directions in which "
            "second_moment says there are no inputs. Take both moments from the same data."
        )
    inputs, targets = scale[:, None] * vectors.mT, len(scale) / scale[:, None] * (cross.double() @ vectors).mT
    if input_mean is not None:
        inputs, targets = _with_constant_last(inputs, targets)
    return inputs.to(second.dtype), targets.to(second.dtype)


def _with_constant_last(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mix examples by a reflection that makes the last input, of mean square 1, the constant 1; moments stay.

    Of the two reflections, onto 1 and onto −1, the one that divides by no small number.
    """
    sign = 1.0 if inputs[:, -1].sum() > 0 else -1.0
    across = inputs[:, -1] + sign
    across = across / across.norm()
    inputs, targets = (2 * sign * torch.outer(across, across @ each) - sign * each for each in (inputs, targets))
    return inputs[:, :-1], targets
