"""The numbers of lesson 08."""

from natgrad_lab.course.cards.lesson08 import CUTS, PLANE, far_share, ladder, truncated

_CHAIN = CUTS[2]


def cut_fisher_eigenvalue() -> float:
    """Smallest eigenvalue of F + 0.01 I with the blocks beyond neighbours set to zero, at initialization."""
    return truncated("cut F", 1, 0.01, 0)["least"]


def cut_inverse_percent() -> float:
    """Efficiency of the step by the inverse with these blocks set to zero."""
    return 100 * truncated("cut F⁻¹", 1, 0.01, 0)["efficiency"]


def exact_blocks_percent() -> float:
    """Of the exact diagonal blocks."""
    return 100 * truncated("cut F", 0, 0.01, 0)["efficiency"]


def exact_chain_percent() -> float:
    """Of the exact chain."""
    return 100 * truncated(_CHAIN, 1, 0.01, 0)["efficiency"]


def exact_blocks_later_percent() -> float:
    """Of the exact diagonal blocks after 30 steps."""
    return 100 * truncated("cut F", 0, 0.01, 30)["efficiency"]


def exact_chain_later_percent() -> float:
    """Of the exact chain after 30 steps."""
    return 100 * truncated(_CHAIN, 1, 0.01, 30)["efficiency"]


def exact_chain_later_again_percent() -> float:
    """The same from the ladder."""
    return 100 * ladder(30, 0.01)["exact chain"]


def far_share_matrix() -> float:
    """Percentage of Σ|entries| beyond the neighbours in F̃, factored damping, after 30 steps."""
    return 100 * far_share(30, 0.01, "factored")[0]


def far_share_inverse() -> float:
    """In its inverse."""
    return 100 * far_share(30, 0.01, "factored")[1]


def far_share_matrix_start() -> float:
    """In F̃ at initialization."""
    return 100 * far_share(0, 0.01, "factored")[0]


def far_share_inverse_start() -> float:
    """In its inverse at initialization."""
    return 100 * far_share(0, 0.01, "factored")[1]


def far_share_inverse_plain() -> float:
    """In the inverse of F̃ + 0.01 I after 30 steps."""
    return 100 * far_share(30, 0.01, "λI")[1]


def chain_gain_small_damping() -> float:
    """Points that K-FAC's chain is ahead of its blocks, λ = 0.001, after 30 steps."""
    return _gain(1e-3)


def chain_gain_large_damping() -> float:
    """The same at λ = 1."""
    return _gain(1.0)


def _gain(damping: float) -> float:
    rungs = ladder(30, damping, "factored")
    return 100 * (rungs["K-FAC chain"] - rungs["K-FAC blocks"])


def rise_at_one() -> float:
    """By which α = 1, μ = 0 raises the model, in nats."""
    return -PLANE.result()["at one"]


def best_alpha() -> float:
    """α of the model's best point after 10 steps, γ² = 0.01, λ = 0.001."""
    return float(PLANE.result()["best"][0])


def best_mu() -> float:
    """μ there."""
    return float(PLANE.result()["best"][1])


def promised_decrease() -> float:
    """What the model promises there, in nats."""
    return PLANE.result()["decrease"]


def promised_alone() -> float:
    """The best without momentum."""
    return PLANE.result()["alone"]
