"""Exercises of lesson 05: whiten a layer, step in white coordinates, train with a period and momentum, PRONG+."""

import torch
from torch import Tensor

from natgrad_lab.course.diagnose import Mistake, as_tensor, expect, recognize
from natgrad_lab.course.exercise import Exercise, Part

MISTAKES = {
    "5-bias": "The function has changed: when c is subtracted from the inputs, the bias has to take W c up.",
    "5-root": "ε was added after the root. It belongs to the variances: (λ + ε)^-½.",
    "5-transposed": "U is transposed: eigenvectors are the columns of E, and U has to multiply the inputs by Eᵀ.",
    "5-weights": "The function has changed: V has to undo U, so that V U is W again.",
    "5-once": "The gradient was multiplied by Uᵀ or U once. It passes U twice: into V, and back into W.",
    "5-bias-step": "W is right and b is not: when W changes by ΔW, the bias changes by −ΔW c besides its own step.",
    "5-cross": "The gradient by V sees h − c: what the bias' gradient sees times c is missing in W's.",
    "5-reset": "The velocity was thrown away at a reparametrization. Here it is to be carried over.",
    "5-stale": "The whitening is not that of the batch at which it was due: look at which step renews U and c.",
    "5-jump": "V and d were kept when U and c changed, so that the function jumps.",
    "5-compensate": "The function has changed: V has to take up the change of D.",
    "5-axis": "Every unit has one variance, over the examples. You took it over the units of an example.",
    "5-deviation": "D multiplies by the deviation. It has to divide by it.",
    "5-sample": "The variance was divided by N − 1. Here it is a mean over the N examples.",
}
EPSILON = 0.05


def _layer(generator: torch.Generator, examples: int = 11, width: int = 4, out: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """W (out, width), b (out,), inputs a (examples, width), correlated and far from mean 0."""
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    left, _, right = torch.linalg.svd(normal(width, width))
    mixing = left * torch.linspace(2, 0.5, width, dtype=torch.float64) @ right  # of condition 4: without ε nothing else helps
    a = normal(examples, width) @ mixing + 2 * normal(width)
    return normal(out, width), normal(out), a


def _covariance(a: Tensor) -> tuple[Tensor, Tensor]:
    c = a.mean(0)
    return (a - c).mT @ (a - c) / len(a), c


def _ridge(matrix: Tensor, damping: float) -> Tensor:
    return torch.linalg.inv(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype))


# ---- 5.1


def whiten_layer(W: Tensor, b: Tensor, a: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """V, d, U, c with V U (a − c) + d = W a + b and UᵀU = (Cov(a) + epsilon I)⁻¹."""
    c = a.mean(0)
    values, vectors = torch.linalg.eigh((a - c).T @ (a - c) / len(a))
    scale = torch.sqrt(values + epsilon)
    return W @ vectors * scale, b + W @ c, (vectors / scale).T, c


def _four(result, W: Tensor, a: Tensor) -> tuple[Tensor, ...]:
    if not isinstance(result, tuple | list) or len(result) != 4:
        raise Mistake("nothing" if result is None else "kind", "return V, d, U, c")
    width = a.shape[1]
    shapes = (W.shape, (len(W),), (width, width), (width,))
    return tuple(as_tensor(each, tuple(shape)) for each, shape in zip(result, shapes, strict=True))


def _white(answer, generator):
    W, b, a = _layer(generator)
    V, d, U, c = _four(answer(W, b, a, EPSILON), W, a)
    covariance, mean = _covariance(a)
    values, vectors = torch.linalg.eigh(covariance)
    raw = a.mT @ a / len(a)
    metric = U.mT @ U  # the same for every rotation of the white inputs
    suspects = {
        "M11": _ridge(raw, EPSILON), "M02": _ridge(len(a) * covariance, EPSILON),
        "5-sample": _ridge(len(a) / (len(a) - 1) * covariance, EPSILON),
        "5-root": vectors @ torch.diag((values.sqrt() + EPSILON) ** -2) @ vectors.mT,
        "5-transposed": torch.diag(1 / (values + EPSILON)),
    }  # fmt: skip
    expect(
        metric, _ridge(covariance, EPSILON), suspects=suspects, about="of UᵀU", scalars={"N": float(len(a))}, keys={"N": "M02"}
    )
    expect(c, mean, suspects={"M11": 0 * mean}, about="of c", scalars={"N": float(len(a))}, keys={"N": "M02"})


def _same_function(answer, generator):
    W, b, a = _layer(generator)
    V, d, U, c = _four(answer(W, b, a, EPSILON), W, a)
    if not torch.allclose(V @ U, W, rtol=1e-8, atol=1e-8):
        raise Mistake("5-weights", "V U is not W")
    outputs = (a - c) @ U.mT @ V.mT + d
    recognize(outputs, a @ W.mT + b, [("5-bias", (a - c) @ W.mT + bias) for bias in (b, b - W @ c, b + V @ c)])
    expect(outputs, a @ W.mT + b, suspects={"M11": (a - c) @ W.mT}, about="of the outputs")


def _dead_input(answer, generator):
    W, b, a = _layer(generator)
    a[:, 1] = 3.0  # never varies
    V, d, U, c = _four(answer(W, b, a, EPSILON), W, a)
    expect((a - c) @ U.mT @ V.mT + d, a @ W.mT + b, about="of the outputs, with an input that never varies")


def _wrong_whitening(change):
    def answer(W, b, a, epsilon):
        V, d, U, c = whiten_layer(W, b, a, epsilon)
        return change(W, b, a, epsilon, V, d, U, c)

    return answer


def _from(covariance, c, W, b, epsilon, after=False):
    values, vectors = torch.linalg.eigh(covariance)
    scale = values.clamp(min=0).sqrt() + epsilon if after else (values + epsilon).sqrt()
    return W @ vectors * scale, b + W @ c, (vectors / scale).T, c


def _transposed(W, b, a, epsilon, V, d, U, c):
    values, vectors = torch.linalg.eigh(_covariance(a)[0])
    U = vectors @ torch.diag((values + epsilon) ** -0.5)
    return W @ torch.linalg.inv(U), d, U, c


def _symmetric_whitening(W, b, a, epsilon):
    covariance, c = torch.cov(a.T, correction=0).numpy(), a.mean(0)
    values, vectors = torch.linalg.eigh(torch.as_tensor(covariance))
    U = vectors @ torch.diag((values + epsilon) ** -0.5) @ vectors.T
    return torch.linalg.solve(U, W.T).T.numpy(), (b + W @ c).tolist(), U, c


def _by_cholesky(W, b, a, epsilon):
    c = sum(a) / len(a)
    covariance = sum(torch.outer(row - c, row - c) for row in a) / len(a)
    L = torch.linalg.cholesky(covariance + epsilon * torch.eye(len(c)))
    return W @ L, b + W @ c, torch.linalg.inv(L), c


def _upside_down(W, b, a, epsilon):
    """The largest variance first."""
    V, d, U, c = (each.numpy() for each in whiten_layer(W, b, a, epsilon))
    return V[:, ::-1], d, U[::-1], c


# ---- 5.2


def prong_step(grad_W: Tensor, grad_b: Tensor, a: Tensor, epsilon: float, lr: float) -> tuple[Tensor, Tensor]:
    """What one step of gradient descent on (V, d) changes (W, b) by."""
    c = a.mean(0)
    covariance = (a - c).T @ (a - c) / len(a)
    damped = covariance + epsilon * torch.eye(len(c), dtype=a.dtype)
    change = -lr * torch.linalg.solve(damped, (grad_W - torch.outer(grad_b, c)).T).T
    return change, -lr * grad_b - change @ c


def _gradients(W: Tensor, b: Tensor, a: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    scores = torch.randn(len(a), len(W), generator=generator, dtype=torch.float64)
    return scores.mT @ a / len(a), scores.mean(0)


def _two(result, grad_W: Tensor, grad_b: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Mistake("nothing" if result is None else "kind", "return a pair: one of the shape of W, one of the shape of b")
    return as_tensor(result[0], tuple(grad_W.shape)), as_tensor(result[1], tuple(grad_b.shape))


def _rows(result, grad_W: Tensor, grad_b: Tensor) -> Tensor:
    return torch.cat([part if part.ndim == 2 else part[:, None] for part in _two(result, grad_W, grad_b)], 1)


def _step_suspects(grad_W: Tensor, grad_b: Tensor, a: Tensor, epsilon: float, lr: float) -> dict[str, Tensor]:
    covariance, c = _covariance(a)
    raw, N = a.mT @ a / len(a), len(a)
    rows = lambda W, b: -lr * torch.cat([W, b[:, None]], 1)  # noqa: E731
    seen = grad_W - torch.outer(grad_b, c)
    right = seen @ _ridge(covariance, epsilon)
    values, vectors = torch.linalg.eigh(covariance + epsilon * torch.eye(len(c), dtype=a.dtype))
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.mT
    summed, sample = seen @ _ridge(N * covariance, epsilon), seen @ _ridge(N / (N - 1) * covariance, epsilon)
    return {
        "M16": rows(grad_W, grad_b), "M11": rows(grad_W @ _ridge(raw, epsilon), grad_b), "5-bias-step": rows(right, grad_b),
        "5-cross": rows(grad_W @ _ridge(covariance, epsilon), grad_b - grad_W @ _ridge(covariance, epsilon) @ c),
        "5-once": rows(seen @ root, grad_b - seen @ root @ c), "M02": rows(summed, grad_b - summed @ c),
        "5-sample": rows(sample, grad_b - sample @ c),
    }  # fmt: skip


def _one_step(answer, generator, epsilon=EPSILON, about="") -> None:
    W, b, a = _layer(generator)
    grad_W, grad_b = _gradients(W, b, a, generator)
    got = _rows(answer(grad_W, grad_b, a, epsilon, 0.3), grad_W, grad_b)
    if epsilon:
        want = _rows(prong_step(grad_W, grad_b, a, epsilon, 0.3), grad_W, grad_b)
    else:  # K-FAC with G = I: the gradient of [W | b] times the inverse second moment of [a; 1]
        homogeneous = torch.cat([a, a.new_ones(len(a), 1)], 1)
        second_moment = homogeneous.mT @ homogeneous / len(a)
        want = -0.3 * torch.linalg.solve(second_moment, torch.cat([grad_W, grad_b[:, None]], 1).mT).mT
    suspects = _step_suspects(grad_W, grad_b, a, epsilon, 0.3)
    weights_right, bias_right = (torch.allclose(got[:, part], want[:, part], rtol=1e-6) for part in (slice(-1), -1))
    if weights_right and not bias_right:
        raise Mistake("5-bias-step", about)
    expect(got, want, suspects=suspects, scalars={"lr": 0.3, "N": float(len(a))}, keys={"N": "M02"}, about=about)


def _undamped(answer, generator):
    _one_step(answer, generator, 0.0, "ε = 0: it should be K-FAC with G = I")


def _by_hand(grad_W, grad_b, a, epsilon, lr):
    V, d, U, c = whiten_layer(grad_W, grad_b, a, epsilon)
    grad_V = (grad_W - torch.outer(grad_b, c)) @ U.T
    change = -lr * grad_V @ U
    return change.numpy(), (-lr * grad_b - change @ c).tolist()


def _step_wrong(key):
    def answer(grad_W, grad_b, a, epsilon, lr):
        rows = _step_suspects(grad_W, grad_b, a, epsilon, lr)[key]
        return rows[:, :-1], rows[:, -1]

    return answer


# ---- 5.3


def prong_train(
    W: Tensor, b: Tensor, batches: list, lr: float, momentum: float, epsilon: float, every: int
) -> tuple[Tensor, Tensor]:
    """W, b of one linear layer after a step of PRONG on each batch (a, y), loss ½‖y − output‖², whitened every so often."""
    velocity_W, velocity_b = torch.zeros_like(W), torch.zeros_like(b)
    for step, (a, y) in enumerate(batches):
        if step % every == 0:
            V, d, U, c = whiten_layer(W, b, a, epsilon)
            V_velocity, d_velocity = velocity_W @ torch.linalg.inv(U), velocity_b + velocity_W @ c
        white = (a - c) @ U.T
        error = white @ V.T + d - y
        V_velocity = momentum * V_velocity + error.T @ white / len(a)
        d_velocity = momentum * d_velocity + error.mean(0)
        V, d = V - lr * V_velocity, d - lr * d_velocity
        velocity_W, W = V_velocity @ U, V @ U
        velocity_b, b = d_velocity - velocity_W @ c, d - W @ c
    return W, b


def _train(W, b, batches, lr, momentum, epsilon, every, *, mistake=""):
    """As `prong_train`, in (W, b), with one mistake."""
    velocity, old, start = torch.zeros(len(W), W.shape[1] + 1, dtype=W.dtype), None, None
    for step, (a, y) in enumerate(batches):
        due = step % every == 0 if mistake != "5-stale" else step == 0
        if due:
            V, d, U, c = whiten_layer(W, b, a, epsilon)
            # M maps (W, b) to (V, d): rows of [V | d] times M are rows of [W | b]
            M = torch.eye(len(c) + 1, dtype=W.dtype)
            M[:-1, :-1], M[:-1, -1] = U, -U @ c
            if mistake == "M19" and old is not None:
                velocity = velocity @ torch.linalg.inv(old) @ M
            if mistake == "5-reset":
                velocity = 0 * velocity
            if mistake == "5-jump" and old is not None:
                rows = torch.cat([W, b[:, None]], 1) @ torch.linalg.inv(old) @ M
                W, b = rows[:, :-1], rows[:, -1]
            old, start = M, c
        error = (a @ W.T + b - y) * {"M02": len(a), "M06": 2}.get(mistake, 1)
        grad_W, grad_b = error.T @ a / len(a), error.mean(0)
        if mistake == "M16":
            change = torch.cat([grad_W, grad_b[:, None]], 1)
        else:
            raised = (grad_W - torch.outer(grad_b, start)) @ U.T @ U
            change = torch.cat([raised, (grad_b - raised @ start)[:, None]], 1)
        velocity = momentum * velocity + change
        W, b = W - lr * velocity[:, :-1], b - lr * velocity[:, -1]
    return W, b


TRAIN_MISTAKES = ("M19", "5-reset", "5-stale", "5-jump", "M16", "M02", "M06")


def _batches(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor, list]:
    W, b, a = _layer(generator)
    truth = torch.randn(W.shape, generator=generator, dtype=torch.float64)
    batches = []
    for _ in range(count):
        inputs = _layer(generator)[2]
        noise = torch.randn(len(inputs), len(W), generator=generator, dtype=torch.float64)
        batches.append((inputs, inputs @ truth.mT + noise))
    return W, b, batches


def _trained(answer, generator, count, momentum, every, about):
    W, b, batches = _batches(generator, count)
    choices = (0.2, momentum, EPSILON, every)
    got = _rows(answer(W, b, batches, *choices), W, b)
    want = torch.cat([part if part.ndim == 2 else part[:, None] for part in prong_train(W, b, batches, *choices)], 1)
    suspects = {}
    for mistake in TRAIN_MISTAKES:
        there, bias = _train(W, b, batches, *choices, mistake=mistake)
        suspects[mistake] = torch.cat([there, bias[:, None]], 1)
    expect(got, want, suspects=suspects, about=about, tolerance=1e-7)  # a dozen steps with inverses of condition 1e3


def _without_momentum(answer, generator):
    _trained(answer, generator, 5, 0.0, 2, "without momentum, whitened at steps 0, 2 and 4")


def _with_momentum(answer, generator):
    _trained(answer, generator, 7, 0.8, 3, "momentum 0.8, whitened at steps 0, 3 and 6")


def _in_plain_coordinates(W, b, batches, lr, momentum, epsilon, every):
    return _train(W, b, batches, lr, momentum, epsilon, every)


# ---- 5.4


def unit_scales(V: Tensor, D: Tensor, white: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """New V and D: D_j = (variance of white input j + floor)^-½, and V · D as it was."""
    new = (white.var(0, correction=0) + floor) ** -0.5
    return V * D / new, new


def _plus(answer, generator):
    V, _, white = _layer(generator, examples=9)
    D = 0.5 + torch.rand(V.shape[1], generator=generator, dtype=torch.float64)
    result = answer(V, D, white, 0.1)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Mistake("nothing" if result is None else "kind", "return V and D")
    return V, D, white, result


def _scales(answer, generator):
    V, D, white, result = _plus(answer, generator)
    variance, N = white.var(0, correction=0), len(white)
    suspects = {
        "5-sample": (variance * N / (N - 1) + 0.1).rsqrt(), "5-root": 1 / (variance.sqrt() + 0.1),
        "5-deviation": (variance + 0.1).sqrt(), "M11": (white.square().mean(0) + 0.1).rsqrt(),
        "M02": (variance * N + 0.1).rsqrt(),
    }  # fmt: skip
    got = as_tensor(result[1])
    if got.shape != D.shape:
        raise Mistake("5-axis" if got.shape == (N,) else "shape", f"D is {tuple(got.shape)} and should be {tuple(D.shape)}")
    expect(got, (variance + 0.1).rsqrt(), suspects=suspects, about="of D")


def _compensated(answer, generator):
    V, D, white, result = _plus(answer, generator)
    new_V, new_D = as_tensor(result[0], tuple(V.shape)), as_tensor(result[1], tuple(D.shape))
    before = V * D
    products = V * new_D, V, V * D * new_D**2, V * new_D**2 / D  # V as it was, divided by the new D, times it, upside down
    recognize(new_V * new_D, before, [("5-compensate", product) for product in products])
    expect(new_V * new_D, before, about="of V D")


def _units_by_loop(V, D, white, floor):
    new_V, new_D = V.clone(), D.clone()
    for j in range(len(D)):
        column = white[:, j]
        new_D[j] = 1 / (((column - column.mean()) ** 2).mean() + floor).sqrt()
        new_V[:, j] *= D[j] / new_D[j]
    return [new_V, new_D]


def _scaled_wrong(variance):
    def answer(V, D, white, floor):
        new = variance(white, floor)
        return V * D / new if new.shape == D.shape else V, new

    return answer


EXERCISES = (
    Exercise(
        key="5.1",
        name="whiten_layer",
        reference=whiten_layer,
        parts=(Part("structure", 4, _white), Part("the same function", 4, _same_function), Part("edge cases", 2, _dead_input)),
        wrong=(
            ("5-bias", _wrong_whitening(lambda W, b, a, e, V, d, U, c: (V, b, U, c))),
            ("5-bias", _wrong_whitening(lambda W, b, a, e, V, d, U, c: (V, b - W @ c, U, c))),
            ("5-root", lambda W, b, a, e: _from(*_covariance(a), W, b, e, after=True)),
            ("5-transposed", _wrong_whitening(_transposed)),
            ("5-weights", _wrong_whitening(lambda W, b, a, e, V, d, U, c: (W @ U, d, U, c))),
            ("5-weights", _wrong_whitening(lambda W, b, a, e, V, d, U, c: (W, d, U, c))),
            ("M02", lambda W, b, a, e: _from(len(a) * _covariance(a)[0], a.mean(0), W, b, e)),
            ("5-sample", lambda W, b, a, e: _from(torch.cov(a.T), a.mean(0), W, b, e)),
            ("M11", lambda W, b, a, e: _from(a.T @ a / len(a), 0 * a[0], W, b, e)),
            ("nothing", lambda W, b, a, e: None),
        ),
        others=(_symmetric_whitening, _by_cholesky, _upside_down),
        read="The same function in other coordinates",
    ),
    Exercise(
        key="5.2",
        name="prong_step",
        reference=prong_step,
        parts=(Part("structure", 5, _one_step), Part("K-FAC with G = I", 3, _undamped)),
        wrong=(
            *((key, _step_wrong(key)) for key in ("M16", "M11", "5-bias-step", "5-cross", "5-once", "M02", "5-sample")),
            ("5-bias-step", lambda grad_W, grad_b, a, e, lr: (prong_step(grad_W, grad_b, a, e, lr)[0], -lr * grad_b / 2)),
        ),
        others=(_by_hand,),
        read="Surprise: it is half of K-FAC",
    ),
    Exercise(
        key="5.3",
        name="prong_train",
        reference=prong_train,
        parts=(Part("structure", 4, _without_momentum), Part("momentum", 4, _with_momentum)),
        wrong=tuple(
            (key, lambda *args, key=key: _train(*args, mistake=key)) for key in TRAIN_MISTAKES
        ),
        others=(_in_plain_coordinates,),
        read="Whiten rarely: the period T",
    ),
    Exercise(
        key="5.4",
        name="unit_scales",
        reference=unit_scales,
        parts=(Part("unit variance", 3, _scales), Part("the same function", 3, _compensated)),
        wrong=(
            ("5-compensate", lambda V, D, white, floor: (V, unit_scales(V, D, white, floor)[1])),
            ("5-compensate", lambda V, D, white, floor: (
                V / unit_scales(V, D, white, floor)[1], unit_scales(V, D, white, floor)[1])),
            ("5-deviation", _scaled_wrong(lambda white, floor: (white.var(0, correction=0) + floor).sqrt())),
            ("5-sample", _scaled_wrong(lambda white, floor: (white.var(0) + floor).rsqrt())),
            ("5-axis", _scaled_wrong(lambda white, floor: (white.var(1, correction=0) + floor).rsqrt())),
            ("M11", _scaled_wrong(lambda white, floor: (white.square().mean(0) + floor).rsqrt())),
            ("5-root", _scaled_wrong(lambda white, floor: 1 / (white.std(0, correction=0) + floor))),
        ),
        others=(_units_by_loop,),
        read="PRONG+",
    ),
)  # fmt: skip
