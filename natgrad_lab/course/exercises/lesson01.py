"""Exercises of lesson 01: the Fisher of a Gaussian in four coordinates, Rao's distance, the KL's quadratic, angles."""

import math
from itertools import product

import torch
from torch import Tensor

from natgrad_lab.course.diagnose import Mistake, as_tensor, expect
from natgrad_lab.course.exercise import Exercise, Part

MISTAKES = {
    "1-sigma": "The entry of σ is not that of μ: a change of σ moves the distribution more than an equal change of μ.",
    "1-chain": "These are other coordinates: entries of the Fisher in (μ, σ) must be multiplied by derivatives of σ.",
    "1-jacobian": "The Jacobian is that of the way back: F needs ∂(μ, σ)/∂(your coordinates).",
    "1-side": "The Jacobian is on the wrong side: it has a row for μ and one for σ, and a column for each coordinate of yours.",
    "1-diagonal": "In these coordinates μ and σ are mixed: the Fisher has entries off the diagonal.",
    "1-half": "The ½ of the quadratic is missing or belongs elsewhere: KL ≈ ½ δᵀFδ.",
    "1-order": "The two numbers have changed places: the KL comes first.",
    "1-power": "The KL and its quadratic should differ by a term of third power in the step: one of the two is wrong.",
    "1-kl": "A KL is no distance: it depends on the order, and it grows with the square of a small step.",
    "1-euclid": "That measures on paper. A shift of the mean counts for less where σ is large.",
    "1-reversed": "The two distributions are swapped: the expectation is over the first one, the model before the step.",
    "1-size": "The size of the step does not enter as it should: double the step and the quadratic grows fourfold.",
    "1-radians": "The angle is in radians; degrees are asked for.",
}
COORDS = ("mean, sigma", "mean, log sigma", "mean, variance", "natural")
F64 = torch.float64


def _random(generator: torch.Generator) -> tuple[float, float]:
    """A mean and a standard deviation, neither near 1."""
    mean, u = torch.rand(2, generator=generator, dtype=F64).tolist()
    return 1.5 + mean, 0.3 + 0.4 * u


def _theta(coords: str, mean: float, sigma: float) -> Tensor:
    second = {"mean, sigma": sigma, "mean, log sigma": math.log(sigma), "mean, variance": sigma**2}
    values = (mean / sigma**2, -0.5 / sigma**2) if coords == "natural" else (mean, second[coords])
    return torch.tensor(values, dtype=F64)


def _back(theta: Tensor, coords: str) -> tuple[float, float]:
    """(mean, sigma) of these coordinates."""
    a, b = theta.tolist()
    return {
        "mean, sigma": lambda: (a, b),
        "mean, log sigma": lambda: (a, math.exp(b)),
        "mean, variance": lambda: (a, math.sqrt(b)),
        "natural": lambda: (-a / (2 * b), math.sqrt(-0.5 / b)),
    }[coords]()


# ---- 1.1


def _jacobian(coords: str, mean: float, sigma: float) -> Tensor:
    """∂(μ, σ) / ∂ coordinates."""
    rows = {
        "mean, sigma": [[1.0, 0.0], [0.0, 1.0]],
        "mean, log sigma": [[1.0, 0.0], [0.0, sigma]],
        "mean, variance": [[1.0, 0.0], [0.0, 1 / (2 * sigma)]],
        "natural": [[sigma**2, 2 * mean * sigma**2], [0.0, sigma**3]],
    }
    return torch.tensor(rows[coords], dtype=F64)


def gaussian_fisher(theta: Tensor, coords: str) -> Tensor:
    """The Fisher information of a Gaussian in one of four coordinates."""
    mean, sigma = _back(theta, coords)
    J = _jacobian(coords, mean, sigma)
    return J.mT @ torch.diag(torch.tensor([1 / sigma**2, 2 / sigma**2], dtype=F64)) @ J


def _with(theta, coords, second=2.0, how="right"):
    """Wrong answers on purpose: another entry for σ, or the Jacobian used wrongly."""
    mean, sigma = _back(theta, coords)
    J = _jacobian(coords, mean, sigma)
    J = {"right": J, "back": torch.linalg.inv(J), "none": torch.eye(2, dtype=F64), "side": J.mT}[how]
    return J.mT @ torch.diag(torch.tensor([1 / sigma**2, second / sigma**2], dtype=F64)) @ J


def _only_diagonal(theta, coords):
    return torch.diag(gaussian_fisher(theta, coords).diagonal())


def _fisher_part(*names: str):
    def check(answer, generator):
        mean, sigma = _random(generator)
        for coords in names:
            theta = _theta(coords, mean, sigma)
            suspects = {
                "1-sigma": _with(theta, coords, 1.0), "1-chain": _with(theta, coords, how="none"),
                "1-jacobian": _with(theta, coords, how="back"), "1-diagonal": _only_diagonal(theta, coords),
                "1-side": _with(theta, coords, how="side"),
            }  # fmt: skip
            about = f"coordinates {coords!r}, theta = ({theta[0]:.3g}, {theta[1]:.3g})"
            expect(answer(theta, coords), gaussian_fisher(theta, coords), suspects=suspects, keys={"2": "1-half"}, about=about)

    return check


def _fisher_by_covariance(theta, coords):
    """Minus the second derivative of the log-density, averaged over a grid of values."""
    mean, sigma = _back(theta, coords)
    x = torch.linspace(mean - 12 * sigma, mean + 12 * sigma, 4001, dtype=F64)

    def log_density(at):
        a, b = at
        m, s = {
            "mean, sigma": lambda: (a, b), "mean, log sigma": lambda: (a, b.exp()), "mean, variance": lambda: (a, b.sqrt()),
            "natural": lambda: (-a / (2 * b), (-0.5 / b).sqrt()),
        }[coords]()  # fmt: skip
        return -0.5 * ((x - m) / s) ** 2 - s.log()

    weight = torch.softmax(log_density(theta), 0)
    return torch.autograd.functional.hessian(lambda at: -(weight * log_density(at)).sum(), theta)


# ---- 1.2


def rao_distance(p: Tensor, q: Tensor) -> float:
    """Length of the shortest path between N(p[0], p[1]²) and N(q[0], q[1]²) in the Fisher metric."""
    gap = (p[0] - q[0]) ** 2 / 2 + (p[1] - q[1]) ** 2
    return float(2 * math.sqrt(2) * torch.asinh(torch.sqrt(gap / (4 * p[1] * q[1]))))


def _arccosh(p, q, root=None, half=0.5):
    root = math.sqrt(2) if root is None else root
    gap = half * (p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2
    return root * torch.arccosh(1 + gap / (2 * p[1] * q[1]))


def _half_circle(p, q):
    """Fisher length of the circle in (μ, σ), with the √2 forgotten when it was drawn."""
    (m1, s1), (m2, s2) = p.tolist(), q.tolist()
    if m1 == m2:
        return math.sqrt(2) * abs(math.log(s2 / s1))
    centre = (m2**2 + s2**2 - m1**2 - s1**2) / (2 * (m2 - m1))
    angles = torch.linspace(math.atan2(s1, m1 - centre), math.atan2(s2, m2 - centre), 4001, dtype=F64)
    speed = lambda t: torch.sqrt(torch.sin(t) ** 2 + 2 * torch.cos(t) ** 2) / torch.sin(t)  # noqa: E731
    return abs(float(torch.trapezoid(speed(angles), angles)))


def _kl(p, q):
    ratio = (p[1] / q[1]) ** 2
    return 0.5 * (ratio - 1 - torch.log(ratio) + ((p[0] - q[0]) / q[1]) ** 2)


def _hyperbolic_log(p, q):
    """The same distance as a logarithm of a ratio of lengths in the half-plane of (μ/√2, σ)."""
    a, b = complex(p[0] / math.sqrt(2), p[1]), complex(q[0] / math.sqrt(2), q[1])
    far, near = abs(a - b.conjugate()), abs(a - b)
    return math.sqrt(2) * math.log((far + near) / (far - near))


def _compare_distance(got, p, q):
    got = as_tensor(got)
    if got.numel() != 1:
        raise Mistake("shape", f"it is {tuple(got.shape)} and should be one number")
    got, want = float(got.reshape(())), rao_distance(p, q)
    about = f"from ({p[0]:.3g}, {p[1]:.3g}) to ({q[0]:.3g}, {q[1]:.3g})"
    if not math.isfinite(got):
        raise Mistake("not_finite", about)
    if math.isclose(got, want, rel_tol=1e-6, abs_tol=1e-9):
        return
    suspects = {
        "M18": [_arccosh(p, q, half=1.0), _arccosh(p, q, root=1.0), _arccosh(p, q, 1.0, 1.0), _half_circle(p, q)],
        "1-kl": [_kl(p, q), _kl(q, p), _kl(p, q) + _kl(q, p), *(torch.sqrt(c * _kl(p, q)) for c in (1, 2))],
        "1-euclid": [torch.linalg.norm(p - q)],
    }
    for key, values in suspects.items():
        for value in values:
            if math.isclose(got, float(value), rel_tol=1e-5):
                raise Mistake(key, about)
    if math.isclose(got, -want, rel_tol=1e-6):
        raise Mistake("sign", about)
    raise Mistake("unrecognized", f"your distance is {got:.6g} {about}")


def _points(generator, count=2):
    u = torch.rand(count, 2, generator=generator, dtype=F64)
    return [torch.stack([4 * row[0] - 1, 0.4 + 1.5 * row[1]]) for row in u]


def _equal_means(answer, generator):
    p, q = _points(generator)
    q[0] = p[0]
    _compare_distance(answer(p, q), p, q)


def _general_points(answer, generator):
    p, q = _points(generator)
    _compare_distance(answer(p, q), p, q)
    _compare_distance(answer(q, p), q, p)
    moved = [torch.stack([2.5 * r[0] - 3, 2.5 * r[1]]) for r in (p, q)]  # x → 2.5 x − 3 moves both alike
    _compare_distance(answer(*moved), p, q)


def _close_points(answer, generator):
    p, q = _points(generator)
    _compare_distance(answer(p, p + 1e-3 * (q - p)), p, p + 1e-3 * (q - p))
    _compare_distance(answer(p, p.clone()), p, p)


# ---- 1.3


def kl_vs_quadratic(theta: Tensor, direction: Tensor, eps: float) -> tuple[float, float]:
    """KL(N(theta) ‖ N(theta + eps · direction)) and ½δᵀFδ, in the coordinates (μ, σ)."""
    delta = eps * direction
    fisher = torch.stack([1 / theta[1] ** 2, 2 / theta[1] ** 2])
    return float(_kl(theta, theta + delta)), float(0.5 * (fisher * delta**2).sum())


def _quadratic(theta, direction, eps, factor=0.5, second=2.0, power=2):
    fisher = torch.stack([1 / theta[1] ** 2, second / theta[1] ** 2])
    return factor * eps**power * (fisher * direction**2).sum()


def _taylor_instance(generator):
    mean, sigma = _random(generator)
    direction = 0.3 + torch.rand(2, generator=generator, dtype=F64)
    return torch.tensor([mean, sigma], dtype=F64), direction


def _two_numbers(got, place):
    try:
        values = [float(as_tensor(value).reshape(())) for value in got]
    except (TypeError, RuntimeError):
        raise Mistake("kind", "return two numbers: the KL and the quadratic") from None
    if len(values) != 2:
        raise Mistake("shape", f"return two numbers; got {len(values)}")
    return values[place]


def _check_quadratic(answer, generator):
    theta, direction = _taylor_instance(generator)
    for eps in (0.3, 0.05):
        suspects = {
            "1-half": _quadratic(theta, direction, eps, 1.0), "1-sigma": _quadratic(theta, direction, eps, second=1.0),
            "1-size": _quadratic(theta, direction, eps, power=1), "1-order": _kl(theta, theta + eps * direction),
        }  # fmt: skip
        got = _two_numbers(answer(theta, direction, eps), 1)
        want = _quadratic(theta, direction, eps)
        expect(got, want, suspects=suspects, keys={"2": "1-half"}, about=f"the quadratic, eps = {eps}")


def _check_kl(answer, generator):
    theta, direction = _taylor_instance(generator)
    for eps in (0.3, 0.05):
        there = theta + eps * direction
        suspects = {"1-reversed": _kl(there, theta), "1-kl": _kl(there, theta) + _kl(theta, there)}
        about = f"the KL, eps = {eps}"
        expect(_two_numbers(answer(theta, direction, eps), 0), _kl(theta, there), suspects=suspects, about=about)


def _check_slope(answer, generator):
    theta, direction = _taylor_instance(generator)
    errors = []
    for eps in (0.02, 0.01):
        pair = answer(theta, direction, eps)
        errors.append(abs(_two_numbers(pair, 0) - _two_numbers(pair, 1)))
    power = math.log2(errors[0] / errors[1]) if min(errors) > 0 else 0.0
    if not 2.5 < power < 3.5:
        raise Mistake("1-power", f"the difference goes with the step to the power {power:.2f}")


def _by_distributions(theta, direction, eps):
    p, q = (torch.distributions.Normal(*at) for at in (theta, theta + eps * direction))
    delta = (eps * direction).numpy()
    return torch.distributions.kl_divergence(p, q), (delta[0] ** 2 + 2 * delta[1] ** 2) / (2 * theta[1].item() ** 2)


# ---- 1.4


def angle_between(M: Tensor, a: Tensor, b: Tensor) -> float:
    """Degrees between the steps a and b in the inner product of the metric M."""
    cosine = (a @ M @ b) / torch.sqrt((a @ M @ a) * (b @ M @ b))
    return float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))))


def _nan_is_zero(M, a, b):
    return torch.nan_to_num(torch.rad2deg(torch.arccos((a @ M @ b) / torch.sqrt((a @ M @ a) * (b @ M @ b)))))


def _euclidean_angle(M, a, b):
    return torch.rad2deg(torch.arccos(torch.nn.functional.cosine_similarity(a, b, 0)))


def _forgot_lengths(M, a, b):
    return torch.rad2deg(torch.arccos(((a @ M @ b) / (a.norm() * b.norm())).clamp(-1, 1)))


def _angle_instance(generator, dim=3):
    root = torch.randn(dim + 2, dim, generator=generator, dtype=F64)
    a, b = torch.randn(2, dim, generator=generator, dtype=F64)
    return root.mT @ root / dim, a, b


def _angles(answer, generator):
    M, a, b = _angle_instance(generator)
    for first, second in ((a, b), (3 * a, b), (a, -b)):
        want = angle_between(M, first, second)
        suspects = {
            "M22": _euclidean_angle(M, first, second), "1-radians": math.radians(want),
            "1-lengths": _forgot_lengths(M, first, second),
            "1-inverse": angle_between(torch.linalg.inv(M), first, second),
        }  # fmt: skip
        expect(answer(M, first, second), want, suspects=suspects, tolerance=1e-7)


def _same_angle_on_every_map(answer, generator):
    M, a, b = _angle_instance(generator)
    J = torch.randn(3, 3, generator=generator, dtype=F64) + 2 * torch.eye(3, dtype=F64)
    there = torch.linalg.inv(J)
    here, moved = (as_tensor(answer(*case), ()) for case in ((M, a, b), (there.mT @ M @ there, J @ a, J @ b)))
    if not math.isclose(moved, here, rel_tol=1e-5):
        raise Mistake("M22", "the same two steps in other coordinates, with the metric of these coordinates")
    expect(moved, angle_between(M, a, b), tolerance=1e-6)


def _parallel(answer, generator):
    M, *steps = _angle_instance(generator)
    for a, factor in product(steps, (2.5, 0.3, 7.0, -0.5, -3.0, -0.7)):  # rounding goes either way
        got = as_tensor(answer(M, a, factor * a))
        if not got.isfinite().all():
            raise Mistake("not_finite", "for two parallel steps: rounding makes the cosine a little larger than 1")
        want, got = 180.0 if factor < 0 else 0.0, as_tensor(got, ())
        if abs(got - want) > 1e-4:
            raise Mistake("unrecognized", f"b is {factor:g} times a: {got:.4g} degrees, and it should be {want:g}")


def _angle_by_root(M, a, b):
    root = torch.linalg.cholesky(M).mT
    u, v = (x / x.norm() for x in (root @ a, root @ b))
    return math.degrees(2 * math.atan2(float((u - v).norm()), float((u + v).norm())))


MISTAKES |= {
    "1-lengths": "The lengths in the denominator are Euclidean: they too have to be measured in the metric.",
    "1-inverse": "That is the inner product of the inverse metric, which belongs to gradients, not to steps.",
}

EXERCISES = (
    Exercise(
        key="1.1",
        name="gaussian_fisher",
        reference=gaussian_fisher,
        parts=(
            Part("(μ, σ)", 2, _fisher_part("mean, sigma")),
            Part("other coordinates of σ", 4, _fisher_part("mean, log sigma", "mean, variance")),
            Part("natural coordinates", 3, _fisher_part("natural")),
        ),
        wrong=(
            ("1-sigma", lambda theta, coords: _with(theta, coords, 1.0)),
            ("1-jacobian", lambda theta, coords: _with(theta, coords, how="back")),
            ("1-chain", lambda theta, coords: _with(theta, coords, how="none")),
            ("1-side", lambda theta, coords: _with(theta, coords, how="side")),
            ("1-diagonal", _only_diagonal),
            ("1-half", lambda theta, coords: gaussian_fisher(theta, coords) / 2),
            ("shape", lambda theta, coords: gaussian_fisher(theta, coords).diagonal()),
        ),
        others=(
            _fisher_by_covariance, lambda theta, coords: gaussian_fisher(theta, coords).tolist(),
            lambda theta, coords: list(gaussian_fisher(theta, coords)),
        ),
        read="Other coordinates",
    ),
    Exercise(
        key="1.2",
        name="rao_distance",
        reference=rao_distance,
        parts=(
            Part("equal means", 2, _equal_means), Part("any two", 5, _general_points), Part("close together", 2, _close_points),
        ),
        wrong=(
            ("M18", lambda p, q: _arccosh(p, q, half=1.0)),
            ("M18", lambda p, q: _arccosh(p, q, root=1.0)),
            ("M18", _half_circle),
            ("1-kl", lambda p, q: torch.sqrt(2 * _kl(p, q))),
            ("1-kl", lambda p, q: torch.sqrt(_kl(p, q))),
            ("1-euclid", lambda p, q: torch.linalg.norm(p - q)),
        ),
        others=(_arccosh, _hyperbolic_log, lambda p, q: _arccosh(p.requires_grad_(), q.requires_grad_())),
        read="The half-plane of Gaussians",
    ),
    Exercise(
        key="1.3",
        name="kl_vs_quadratic",
        reference=kl_vs_quadratic,
        parts=(Part("quadratic", 3, _check_quadratic), Part("KL", 3, _check_kl), Part("third power", 3, _check_slope)),
        wrong=(
            ("1-half", lambda t, d, e: (_kl(t, t + e * d), _quadratic(t, d, e, 1.0))),
            ("1-sigma", lambda t, d, e: (_kl(t, t + e * d), _quadratic(t, d, e, second=1.0))),
            ("1-size", lambda t, d, e: (_kl(t, t + e * d), _quadratic(t, d, e, power=1))),
            ("1-order", lambda t, d, e: kl_vs_quadratic(t, d, e)[::-1]),
            ("1-reversed", lambda t, d, e: (_kl(t + e * d, t), _quadratic(t, d, e))),
            ("1-kl", lambda t, d, e: (_kl(t + e * d, t) + _kl(t, t + e * d), _quadratic(t, d, e))),
        ),
        others=(_by_distributions,),
        read="Distance in nats",
    ),
    Exercise(
        key="1.4",
        name="angle_between",
        reference=angle_between,
        parts=(
            Part("angles", 4, _angles), Part("every map", 3, _same_angle_on_every_map), Part("edge cases", 2, _parallel),
        ),
        wrong=(
            ("M22", _euclidean_angle),
            ("1-radians", lambda M, a, b: math.radians(angle_between(M, a, b))),
            ("1-lengths", _forgot_lengths),
            ("1-inverse", lambda M, a, b: angle_between(torch.linalg.inv(M), a, b)),
            ("unrecognized", _nan_is_zero),
        ),
        others=(_angle_by_root,),
        read="The metric of a map",
    ),
)  # fmt: skip
