"""One line of a report: one approximation, for the whole network or for one layer; and what every number in it means."""

from dataclasses import asdict, dataclass, field, fields

ALL = "all"  # the `layer` of a row about the whole network


@dataclass(frozen=True)
class Metric:
    """What a column means. `better` is "low", "high", "one" (near 1) or "" where neither is."""

    name: str
    label: str
    meaning: str
    better: str
    format: str = ".3g"

    def show(self, value: float) -> str:
        """The number as a reader wants it; thousands in full."""
        if self.format == ".3g" and 1000 <= abs(value) < 1e7:
            return f"{value:,.0f}"
        return format(value, self.format)


METRICS = {
    each.name: each
    for each in (
        Metric(
            "efficiency", "efficiency",
            "(gᵀv)² / (vᵀF_λv · gᵀF_λ⁻¹g): the share of the possible fall of the quadratic model that direction v reaches with "
            "its best step length; the squared cosine between v and the exact natural gradient in the inner product F_λ",
            "high", ".1%",
        ),
        Metric("cosine", "cosine", "Euclidean cosine between v and the exact natural gradient at the same λ", "high", ".3f"),
        Metric("norm_ratio", "norm ratio", "‖v‖ / ‖exact natural gradient‖", "one"),
        Metric("frobenius_error", "Frobenius error", "‖F̂ - F‖ / ‖F‖, Frobenius norm, undamped", "low"),
        Metric("spectral_error", "spectral error", "‖F̂ - F‖₂ / ‖F‖₂, the worst direction, undamped", "low"),
        Metric("block_frobenius_error", "error to blocks", "‖F̂ - B‖ / ‖B‖, B the exact block-diagonal, Frobenius norm", "low"),
        Metric("condition", "condition", "λmax / λmin of F̂_λ^-½ F_λ F̂_λ^-½: 1 is a perfect preconditioner", "low"),
        Metric("condition_mean", "λmax / mean", "the largest over the mean eigenvalue of F̂_λ^-½ F_λ F̂_λ^-½", "low"),
        Metric(
            "condition_nonzero", "λmax / λmin⁺",
            "of F̂_λ^-½ F F̂_λ^-½, F undamped: over the eigenvalues that are not 0 to rounding", "low",
        ),
        Metric("laplace_kl", "Laplace KL", "KL(N(0, F̂_λ⁻¹) ‖ N(0, F_λ⁻¹)), nats", "low"),
        Metric("affine_distance", "log distance", "‖log(F_λ^-½ F̂_λ F_λ^-½)‖, affine-invariant", "low"),
        Metric("best_step", "best step α*", "gᵀv / vᵀF_λv, the step length that is best for the quadratic model", "one"),
        Metric("predicted_decrease", "predicted fall (α*)", "of the loss by gᵀδ + ½δᵀF_λδ at δ = -α*v, nats", "high"),
        Metric("predicted_undamped", "predicted, no λ (α*)", "of the loss by gᵀδ + ½δᵀFδ at δ = -α*v, nats", "high"),
        Metric("achieved_decrease", "achieved fall (α*)", "of the loss on the batch at δ = -α*v, nats", "high"),
        Metric("kl", "KL moved (α*)", "KL(before ‖ after) on the batch at δ = -α*v, nats per example", ""),
        Metric("kl_quadratic", "½δᵀFδ (α*)", "the same to second order", ""),
        Metric("predicted_decrease_unit", "predicted fall (step 1)", "by gᵀδ + ½δᵀF_λδ at δ = -v, nats", "high"),
        Metric("achieved_decrease_unit", "achieved fall (step 1)", "of the loss on the batch at δ = -v, nats", "high"),
        Metric("kl_unit", "KL moved (step 1)", "KL(before ‖ after) on the batch at δ = -v, nats per example", ""),
        Metric("kl_quadratic_unit", "½δᵀFδ (step 1)", "the same to second order", ""),
        Metric("memory_numbers", "numbers held", "floating-point numbers in the structure", "low", ",.0f"),
        Metric("factorizations", "factorizations", "matrices factored for the estimate and one direction", "low", ",.0f"),
        Metric("seconds", "seconds to estimate", "wall time of the estimate, its passes included", "low"),
        Metric("seconds_solve", "seconds to solve", "wall time of the first direction, factorizations included", "low"),
        Metric("seconds_next", "seconds at another λ", "wall time of the direction at another damping", "low"),
        Metric("rounding", "rounding", "‖v in the model's dtype - v in float64‖ / ‖v in float64‖", "low", ".1e"),
        Metric("residual", "residual", "‖(F̂ + λI)v - g‖ / ‖g‖ in the model's dtype", "low", ".1e"),
        Metric("clamped", "clamped eigenvalues", "eigenvalues that rounding made negative, set to 0", "low", ",.0f"),
        Metric("most_negative", "most negative", "the most negative of them over the largest eigenvalue", "low", ".1e"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Numbers about one approximation. A number that cannot be had is None, and `not_available` says why.

    Attributes:
        approximation, label: its name and how it is shown.
        layer: "all", or a layer's name. In a layer's row F is that layer's exact block, g its part of the gradient, and
            efficiency is measured against (F_l + λI)⁻¹ g_l; cosine and norm ratio against the layer's part of the exact
            natural gradient of the whole network.
        dim: number of parameters. dtype: of the estimate.
        warnings: texts caught while it was made and solved. notes: what a reader has to know.
        The others: see `METRICS`.
    """

    approximation: str
    label: str
    layer: str
    dim: int
    efficiency: float | None = None
    cosine: float | None = None
    norm_ratio: float | None = None
    frobenius_error: float | None = None
    spectral_error: float | None = None
    block_frobenius_error: float | None = None
    condition: float | None = None
    condition_mean: float | None = None
    condition_nonzero: float | None = None
    laplace_kl: float | None = None
    affine_distance: float | None = None
    best_step: float | None = None
    predicted_decrease: float | None = None
    predicted_undamped: float | None = None
    achieved_decrease: float | None = None
    kl: float | None = None
    kl_quadratic: float | None = None
    predicted_decrease_unit: float | None = None
    achieved_decrease_unit: float | None = None
    kl_unit: float | None = None
    kl_quadratic_unit: float | None = None
    memory_numbers: float | None = None
    factorizations: float | None = None
    seconds: float | None = None
    seconds_solve: float | None = None
    seconds_next: float | None = None
    rounding: float | None = None
    residual: float | None = None
    clamped: float | None = None
    most_negative: float | None = None
    dtype: str = ""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    not_available: dict[str, str] = field(default_factory=dict)

    def flat(self) -> dict:
        """As a dict of plain values, for a table."""
        return asdict(self)

    @classmethod
    def from_flat(cls, values: dict) -> "Row":
        """Undo `flat` (and what JSON makes of it)."""
        known = {each.name for each in fields(cls)}
        values = {name: value for name, value in values.items() if name in known}
        return cls(**values | {name: tuple(values.get(name, ())) for name in ("warnings", "notes")})


class Numbers:
    """Collects numbers, and for those that cannot be had the reason."""

    def __init__(self):
        self.values: dict[str, float] = {}
        self.not_available: dict[str, str] = {}
        self.notes: list[str] = []

    def attempt(self, compute, *names: str) -> None:
        """Call `compute` for the numbers `names` (it returns one, or as many); keep the reason if it cannot."""
        try:
            result = compute()
        except Exception as error:  # a report states what failed; the other numbers stand
            self.refuse(_reason(error), *names)
            return
        for name, value in zip(names, result if isinstance(result, tuple) else (result,), strict=True):
            if value is None and name in self.not_available:
                continue
            if value is None or value != value or value in (float("inf"), -float("inf")):
                why = "not available for this structure at this size" if value is None else "undefined or infinite here"
                self.refuse(why, name)
            else:
                self.values[name] = float(value)

    def refuse(self, reason: str, *names: str) -> None:
        """Say why these are not available."""
        self.not_available |= dict.fromkeys(names, reason)


def _reason(error: Exception) -> str:
    from natgrad_lab.comparison.products import NotAvailableError

    text = " ".join(str(error).split())
    return text if isinstance(error, NotAvailableError) else f"{type(error).__name__}: {text}"
