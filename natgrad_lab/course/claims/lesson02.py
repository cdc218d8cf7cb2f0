"""The numbers of lesson 02."""

from functools import cache

import numpy as np
import torch

from natgrad_lab import metrics
from natgrad_lab.course.cards.lesson02 import (
    SAMPLES,
    from_outputs,
    kronecker_order,
    matrix,
    numbers,
    output_matrices,
    stages,
    where_did_n_go,
)

_NETWORK = "6-8-8-4"
_SEEDS = 10


@cache
def _sampled_error(recipe: str) -> float:
    """Relative error of a sampled Fisher before training, mean over seeds, in percent."""
    stage, exact = stages(_NETWORK)[0], matrix(_NETWORK, 0, "exact Fisher")
    made = (from_outputs(stage.jacobian, output_matrices(stage, recipe, seed)) for seed in range(_SEEDS))
    return 100 * float(np.mean([metrics.relative_error(each, exact) for each in made]))


def one_label() -> float:
    """One sampled label for each example, percent."""
    return _sampled_error("sampled labels, 1 each")


def ten_labels() -> float:
    """Ten."""
    return _sampled_error("sampled labels, 10 each")


def hundred_labels() -> float:
    """A hundred."""
    return _sampled_error("sampled labels, 100 each")


def sampling_power() -> float:
    """Power of the number of samples in the error."""
    errors = [_sampled_error(recipe) for recipe in SAMPLES]
    return float(np.polyfit(np.log(list(SAMPLES.values())), np.log(errors), 1)[0])


def empirical_error() -> float:
    """Empirical Fisher before training, percent."""
    return 100 * numbers(_NETWORK, 0, "empirical Fisher")["error"]


def empirical_error_trained() -> float:
    """After 200 steps."""
    return 100 * numbers(_NETWORK, 200, "empirical Fisher")["error"]


def one_label_trained() -> float:
    """One sampled label after 200 steps (the draw of the figure)."""
    return 100 * numbers(_NETWORK, 200, "sampled labels, 1 each")["error"]


def hessian_error() -> float:
    """Hessian before training, percent."""
    return 100 * numbers(_NETWORK, 0, "Hessian")["error"]


def hessian_error_trained() -> float:
    """After 200 steps."""
    return 100 * numbers(_NETWORK, 200, "Hessian")["error"]


def hessian_negative() -> float:
    """Negative eigenvalues of the Hessian before training."""
    return float(numbers(_NETWORK, 0, "Hessian")["negative"])


def empirical_efficiency() -> float:
    """Percent of the possible fall that the empirical Fisher's step reaches before training."""
    return 100 * numbers(_NETWORK, 0, "empirical Fisher")["efficiency"]


def one_label_efficiency() -> float:
    """The same with one sampled label."""
    return 100 * numbers(_NETWORK, 0, "sampled labels, 1 each")["efficiency"]


def rank() -> float:
    """Rank of the exact Fisher."""
    return float(numbers(_NETWORK, 0, "exact Fisher")["rank"])


def wrong_order() -> float:
    """Error of A ⊗ G, percent, 400 examples."""
    return 100 * kronecker_order(400, "A ⊗ G")["error"]


def right_order() -> float:
    """Error of G ⊗ A, percent."""
    return 100 * kronecker_order(400, "G ⊗ A")["error"]


def worst_factor() -> float:
    """How far the step is off if squares of gradients of the mean loss are summed over 100 examples."""
    state = {
        "examples": 100, "gradient": "mean over examples", "damping": "λ",
        "fisher": "squares of gradients of the mean loss, summed",
    }  # fmt: skip
    return where_did_n_go(state)["worst"]


def two_points_efficiency() -> float:
    """Percent reached by the empirical direction for two points with residuals 1 and 20."""
    residuals, outputs = torch.tensor([1.0, 20.0]), torch.tensor([1.0, 1 / 20])
    return 100 * float((residuals @ outputs) ** 2 / (residuals @ residuals) / (outputs @ outputs))
