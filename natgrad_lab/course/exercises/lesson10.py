"""Exercises of lesson 10: factors of a convolution, a step with them, expand or reduce, white channels."""

import torch
from torch import Tensor
from torch.nn import functional

from natgrad_lab.course.diagnose import Mistake, as_tensor, expect
from natgrad_lab.course.exercise import Exercise, Part

MISTAKES = {
    "10-places": "Patches or derivatives were added up over the places of an example before the products were taken.",
    "10-padding": "The patches at the border are missing: pad the pictures as the layer does.",
    "10-one-sided": "Γ is not used: that would be a step of PRONG.",
    "10-other-side": "Ω is not used: only the derivatives' side is preconditioned.",
    "10-multiplied": "The gradient was multiplied by the factors. It has to be multiplied by their inverses.",
    "10-colours": "The step depends on how the channels are mixed and shifted. Undamped, with both factors, it must not.",
    "10-bias": "The bias got a plain step. It is the last column of [W | b] and goes through Ω with the others.",
    "10-always": "The same answer every time. It depends on the layer: on what its derivatives do across places.",
    "10-opposite": "The other way round: adding up over places first belongs to derivatives that are alike everywhere.",
    "10-inputs": "You decided by the inputs. Whether products at different places cancel depends on the derivatives "
    "first of all.",
    "10-word": 'Return the word "expand" or "reduce".',
    "10-compensate": "The function has changed: every place of the kernel subtracts c, so the bias has to take them all up.",
    "10-kernel": "The function has changed: V has to undo U at every place of the kernel.",
    "10-transposed": "U is transposed: eigenvectors are the columns of E, and U has to multiply a pixel's channels by Eᵀ.",
}
N, C, H, WIDTH, K, OUT = 5, 2, 4, 6, 3, 4


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _pair(result, names: str) -> tuple[Tensor, Tensor]:
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Mistake("nothing" if result is None else "kind", f"return {names}")
    return as_tensor(result[0]), as_tensor(result[1])


# ---- 10.1


def kfc_factors(x: Tensor, s: Tensor, kernel: int, padding: int) -> tuple[Tensor, Tensor]:
    """Ω = (1/N) Σ_n Σ_t āāᵀ and Γ = (1/NT) Σ_n Σ_t ssᵀ: patches ā with a 1 at the end, scores s at the outputs."""
    patches = functional.unfold(x, kernel, padding=padding).transpose(1, 2)
    patches = torch.cat([patches, torch.ones_like(patches[:, :, :1])], dim=2).flatten(0, 1)
    scores = s.flatten(2).transpose(1, 2).flatten(0, 1)
    return patches.T @ patches / len(x), scores.T @ scores / len(scores)


def _patches(x: Tensor, kernel: int, padding: int) -> Tensor:
    """(N, T, C·k·k)."""
    return functional.unfold(x, kernel, padding=padding).mT


def _channels_last(patches: Tensor, kernel: int) -> Tensor:
    """The same patches with the channel as the fastest index."""
    return patches.unflatten(-1, (-1, kernel * kernel)).mT.flatten(-2)


def _with_one(patches: Tensor) -> Tensor:
    return torch.cat([patches, patches.new_ones(*patches.shape[:-1], 1)], -1)


def _products(patches: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of rows (..., D) and (..., C): Ω with the mean over rows times places, Γ with the mean."""
    count, places = patches.shape[0], patches.shape[1]
    rows, back = patches.flatten(0, 1), scores.flatten(0, 1)
    return rows.mT @ rows / count, back.mT @ back / (count * places)


def _factors(answer, generator, kernel=K, padding=1, height=H, width=WIDTH):
    x = _normal(generator, N, C, height, width) + 0.5
    places = (height + 2 * padding - kernel + 1) * (width + 2 * padding - kernel + 1)
    s = _normal(generator, N, OUT, height + 2 * padding - kernel + 1, width + 2 * padding - kernel + 1)
    omega, gamma = _pair(answer(x, s, kernel, padding), "Ω, Γ")
    size = C * kernel * kernel
    if gamma.shape == (size + 1, size + 1) and omega.shape == (OUT, OUT):
        raise Mistake("M08")
    if omega.shape == (size, size):
        raise Mistake("M11", f"Ω is {tuple(omega.shape)}")
    for name, got, want in (("Ω", omega, size + 1), ("Γ", gamma, OUT)):
        if got.shape != (want, want):
            raise Mistake("shape", f"{name} is {tuple(got.shape)} and should be {(want, want)}")
    patches, scores = _patches(x, kernel, padding), s.flatten(2).mT
    right = _products(_with_one(patches), scores)
    summed = _with_one(patches).sum(1), scores.sum(1)
    wrong = {
        "M14": _products(_with_one(_channels_last(patches, kernel)), scores),
        "10-places": (summed[0].mT @ summed[0] / N, summed[1].mT @ summed[1] / (N * places)),
        "10-padding": (_products(_with_one(_patches(x, kernel, 0)), scores[:, :1])[0], right[1]) if padding else right,
    }
    suspects = {key: torch.kron(gamma, omega) for key, (omega, gamma) in wrong.items()}
    sizes = {"scalars": {"T": float(places), "N": float(N)}, "keys": {"T": "M13", "N": "M02"}} if places > 1 else {}
    about = f"of Γ ⊗ Ω, {places} places, {N} examples"
    expect(torch.kron(gamma, omega), torch.kron(right[1], right[0]), suspects=suspects, about=about, **sizes)


def _one_place(answer, generator):
    """A kernel as large as the picture: K-FAC of a Linear layer."""
    _factors(answer, generator, kernel=3, padding=0, height=3, width=3)


def _by_loops(x, s, kernel, padding):
    x = functional.pad(x, (padding,) * 4)
    omega, gamma, places = 0, 0, s.shape[2] * s.shape[3]
    for n in range(len(x)):
        for i in range(s.shape[2]):
            for j in range(s.shape[3]):
                a = torch.cat([x[n, :, i : i + kernel, j : j + kernel].reshape(-1), torch.ones(1)])
                omega = omega + torch.outer(a, a) / (len(x) * places)
                gamma = gamma + torch.outer(s[n, :, i, j], s[n, :, i, j]) / len(x)
    return omega.numpy(), gamma


def _changed(change):
    def answer(x, s, kernel, padding):
        omega, gamma = kfc_factors(x, s, kernel, padding)
        return change(omega, gamma, x, s, kernel, padding)

    return answer


def _summed(x, s, kernel, padding):
    patches, scores = _with_one(_patches(x, kernel, padding)).sum(1), s.flatten(2).sum(2)
    return patches.T @ patches / len(x), scores.T @ scores / (len(x) * s.shape[2] * s.shape[3])


# ---- 10.2


def pick_sharing(patches: Tensor, scores: Tensor) -> str:
    """ "expand" or "reduce": whichever Kronecker product is nearer to mean_n of vec(Σ_t s aᵀ) vec(Σ_t s aᵀ)ᵀ."""
    count, places = patches.shape[:2]
    rows = torch.einsum("ntc,ntd->ncd", scores, patches).flatten(1)
    exact = rows.T @ rows / count
    summed = scores.sum(1).T @ scores.sum(1) / count
    mean = patches.mean(1).T @ patches.mean(1) / count
    every = torch.einsum("ntc,nte->ce", scores, scores) / count, torch.einsum("ntd,nte->de", patches, patches) / count / places
    errors = {"expand": torch.kron(*every) - exact, "reduce": torch.kron(summed, mean) - exact}
    return min(errors, key=lambda name: float(errors[name].norm()))


def _layers(generator: torch.Generator) -> list[tuple[Tensor, Tensor, str, bool]]:
    """Layers (patches, scores, right answer, whether the inputs at different places correlate by a half)."""
    found = []
    for alike_inputs, alike_scores in ((False, False), (True, False), (False, True), (True, True)):
        mix = _normal(generator, 3, 3)
        shared, own = _normal(generator, 600, 1, 3), _normal(generator, 600, 6, 3)
        patches = (0.5**0.5 * (shared + own) if alike_inputs else own + 1.0) @ mix
        scores = _normal(generator, 600, 1, 2).expand(600, 6, 2) if alike_scores else _normal(generator, 600, 6, 2)
        scores = scores + 0.05 * _normal(generator, 600, 6, 2)
        found.append((patches, scores, pick_sharing(patches, scores), alike_inputs))
    return found


def _picked(answer, generator):
    layers = _layers(generator)
    said = []
    for patches, scores, _, _ in layers:
        word = answer(patches, scores)
        if word is None:
            raise Mistake("nothing")
        if not isinstance(word, str) or word not in ("expand", "reduce"):
            raise Mistake("10-word", f"got {word!r}" if isinstance(word, str) else f"got {type(word).__name__}")
        said.append(word)
    right = [each[2] for each in layers]
    if said == right:
        return
    words = f"of four layers {sum(a == b for a, b in zip(said, right, strict=True))} are right"
    if len(set(said)) == 1:
        raise Mistake("10-always", words)
    if all(a != b for a, b in zip(said, right, strict=True)):
        raise Mistake("10-opposite", words)
    by_inputs = ["reduce" if each[3] else "expand" for each in layers]
    raise Mistake("10-inputs" if said == by_inputs else "unrecognized", words)


def _likeness(values: Tensor) -> float:
    """Mean square of the mean over places, over the mean square: 1/T for independent places, 1 for equal ones."""
    return float(values.mean(1).square().mean() / values.square().mean())


def _by_likeness(patches, scores):
    return "reduce" if _likeness(scores) > 0.5 else "expand"


# ---- 10.3


def kfc_step(grad_weight: Tensor, grad_bias: Tensor, omega: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Γ⁻¹ V Ω⁻¹ for V = [gradient by the kernel, flattened | by the bias], as a kernel and a bias again."""
    V = torch.cat([grad_weight.flatten(1), grad_bias[:, None]], dim=1)
    V = torch.linalg.solve(gamma, torch.linalg.solve(omega, V.T).T)
    return V[:, :-1].reshape(grad_weight.shape), V[:, -1]


def _spd(generator: torch.Generator, dim: int) -> Tensor:
    rows = _normal(generator, 2 * dim, dim)
    return rows.mT @ rows / (2 * dim)


def _flat(weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([weight.flatten(1), bias[:, None]], 1)


def _step_wrong(key):
    def answer(grad_weight, grad_bias, omega, gamma):
        inverse, left = torch.linalg.inv(omega), torch.linalg.inv(gamma)
        V = _flat(grad_weight, grad_bias)
        if key == "M14":
            V = _flat(grad_weight.permute(0, 2, 3, 1), grad_bias)
            V = left @ V @ inverse
            return V[:, :-1].unflatten(1, (K, K, C)).permute(0, 3, 1, 2), V[:, -1]
        if key == "10-bias":
            return (left @ V[:, :-1] @ torch.linalg.inv(omega[:-1, :-1])).view_as(grad_weight), grad_bias
        V = {
            "M16": lambda: V, "10-one-sided": lambda: V @ inverse, "10-other-side": lambda: left @ V,
            "10-multiplied": lambda: gamma @ V @ omega,
        }[key]()  # fmt: skip
        return V[:, :-1].view_as(grad_weight), V[:, -1]

    return answer


STEP_MISTAKES = ("M14", "M16", "10-one-sided", "10-other-side", "10-multiplied", "10-bias")


def _direction(answer, generator):
    rest = _normal(generator, OUT, C, K, K), _normal(generator, OUT), _spd(generator, C * K * K + 1), _spd(generator, OUT)
    weight, bias = _pair(answer(*rest), "both directions")
    if weight.shape != rest[0].shape or bias.shape != rest[1].shape:
        shapes = tuple(rest[0].shape), tuple(rest[1].shape)
        raise Mistake("shape", f"they are {tuple(weight.shape)} and {tuple(bias.shape)} and should be {shapes}")
    suspects = {key: _flat(*_step_wrong(key)(*rest)) for key in STEP_MISTAKES}
    expect(_flat(weight, bias), _flat(*kfc_step(*rest)), suspects=suspects)


def _whitened_colours(answer, generator):
    """The same convolution on pictures whose channels are mixed and shifted: the same change of its outputs."""
    x, mix, shift = _normal(generator, N * 8, C, H, WIDTH), _normal(generator, C, C), _normal(generator, C)
    mixed = torch.einsum("ij,njhw->nihw", mix, x) + shift[:, None, None]
    s = _normal(generator, N * 8, OUT, H - K + 1, WIDTH - K + 1)
    changes = []
    for inputs in (x, mixed):
        gradient = _normal_equations(inputs, s)
        weight, bias = _pair(answer(*gradient, *kfc_factors(inputs, s, K, 0)), "both directions")
        changes.append(functional.conv2d(inputs, weight.view(OUT, C, K, K), bias))
    gap = float((changes[0] - changes[1]).norm() / changes[0].norm())
    if gap > 1e-8:  # rounding with condition numbers up to about 1e5 leaves 1e-11
        raise Mistake("10-colours", f"the outputs move differently, by {gap:.1g} of the step")


def _normal_equations(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by kernel and bias where s is the gradient at the outputs."""
    V = torch.einsum("nct,ntd->cd", s.flatten(2), _with_one(_patches(x, K, 0))) / len(x)
    return V[:, :-1].reshape(OUT, C, K, K), V[:, -1]


def _by_kronecker(grad_weight, grad_bias, omega, gamma):
    V = torch.linalg.solve(torch.kron(gamma, omega), _flat(grad_weight, grad_bias).flatten()).view(len(gamma), -1)
    return V[:, :-1].reshape(grad_weight.shape).numpy(), V[:, -1].tolist()


# ---- 10.4


def conv_prong(weight: Tensor, bias: Tensor, x: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """V, d, U, c: the convolution by V of U(pixel − c), plus d, is that by weight of x, plus bias; channels are white."""
    pixels = x.transpose(1, 3).flatten(0, 2)
    c = pixels.mean(0)
    values, vectors = torch.linalg.eigh((pixels - c).T @ (pixels - c) / len(pixels))
    scale = torch.sqrt(values + epsilon)
    V = torch.einsum("ochw,cd->odhw", weight, vectors * scale)
    return V, bias + torch.einsum("ochw,c->o", weight, c), (vectors / scale).T, c


def _channel_instance(generator: torch.Generator, channels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    mix, shift = _normal(generator, channels, channels), 2 * _normal(generator, channels)
    x = torch.einsum("ij,njhw->nihw", mix, _normal(generator, 7, channels, 4, 5)) + shift[:, None, None]
    return _normal(generator, 5, channels, 2, 2), _normal(generator, 5), x


def _four(result, weight: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    if not isinstance(result, tuple | list) or len(result) != 4:
        raise Mistake("nothing" if result is None else "kind", "return V, d, U, c")
    channels = x.shape[1]
    shapes = tuple(weight.shape), (len(weight),), (channels, channels), (channels,)
    return tuple(as_tensor(each, shape) for each, shape in zip(result, shapes, strict=True))


def _white_channels(answer, generator):
    weight, bias, x = _channel_instance(generator)
    _, _, U, c = _four(answer(weight, bias, x, 0.05), weight, x)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    covariance = (pixels - pixels.mean(0)).mT @ (pixels - pixels.mean(0)) / len(pixels)
    values, _ = torch.linalg.eigh(covariance)
    eye, places = torch.eye(len(c), dtype=torch.float64), x.shape[2] * x.shape[3]
    metric = lambda matrix: torch.linalg.inv(matrix + 0.05 * eye)  # noqa: E731
    suspects = {
        "M11": metric(pixels.mT @ pixels / len(pixels)), "M13": metric(places * covariance),
        "M02": metric(len(pixels) * covariance), "10-transposed": torch.diag(1 / (values + 0.05)),
    }  # fmt: skip
    sizes = {"scalars": {"T": float(places), "N": float(len(x))}, "keys": {"T": "M13", "N": "M02"}}
    expect(U.mT @ U, metric(covariance), suspects=suspects, about="of UᵀU", **sizes)
    expect(c, pixels.mean(0), suspects={"M11": 0 * c}, about="of c", **sizes)


def _same_convolution(answer, generator):
    weight, bias, x = _channel_instance(generator)
    V, d, U, c = _four(answer(weight, bias, x, 0.05), weight, x)
    if not torch.allclose(torch.einsum("odhw,dc->ochw", V, U), weight, rtol=1e-8, atol=1e-8):
        raise Mistake("10-kernel", "V U is not the kernel at every place")
    white = torch.einsum("dc,nchw->ndhw", U, x - c[:, None, None])
    outputs = functional.conv2d(white, V, d)
    want = functional.conv2d(x, weight, bias)
    if not torch.allclose(outputs, want, rtol=1e-8, atol=1e-8):
        error = float((outputs - want).norm() / want.norm())
        raise Mistake("10-compensate", f"the outputs change by {error:.2g} of their norm")


def _conv_wrong(change):
    def answer(weight, bias, x, epsilon):
        return change(weight, bias, x, epsilon, *conv_prong(weight, bias, x, epsilon))

    return answer


def _conv_from(covariance_of, mean_of=lambda pixels: pixels.mean(0)):
    def answer(weight, bias, x, epsilon):
        pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        c = mean_of(pixels)
        values, vectors = torch.linalg.eigh(covariance_of(pixels - c, x))
        scale = (values + epsilon).sqrt()
        V = torch.einsum("ochw,cd->odhw", weight, vectors * scale)
        return V, bias + torch.einsum("ochw,c->o", weight, c), (vectors / scale).T, c

    return answer


def _transposed(weight, bias, x, epsilon, V, d, U, c):
    pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    values, vectors = torch.linalg.eigh((pixels - c).T @ (pixels - c) / len(pixels))
    U = vectors @ torch.diag((values + epsilon).rsqrt())
    return torch.einsum("ochw,cd->odhw", weight, torch.linalg.inv(U)), d, U, c


def _symmetric_channels(weight, bias, x, epsilon):
    pixels = torch.cat([picture.flatten(1).T for picture in x])
    c = pixels.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(pixels.T, correction=0))
    U = (vectors / (values + epsilon).sqrt()) @ vectors.T
    V = torch.stack([weight[:, :, i, j] @ torch.linalg.inv(U) for i in range(2) for j in range(2)], -1)
    return V.reshape(weight.shape).numpy(), bias + weight.sum((2, 3)) @ c, U, c.tolist()


EXERCISES = (
    Exercise(
        key="10.1",
        name="kfc_factors",
        reference=kfc_factors,
        parts=(Part("structure", 5, _factors), Part("edge cases", 3, _one_place)),
        wrong=(
            ("M13", _changed(lambda omega, gamma, x, s, k, p: (omega, s[0, 0].numel() * gamma))),
            ("M13", _changed(lambda omega, gamma, x, s, k, p: (omega / s[0, 0].numel(), gamma))),
            ("M02", _changed(lambda omega, gamma, x, s, k, p: (len(x) * omega, gamma))),
            ("M14", lambda x, s, k, p: _products(_with_one(_channels_last(_patches(x, k, p), k)), s.flatten(2).mT)),
            ("M08", _changed(lambda omega, gamma, x, s, k, p: (gamma, omega))),
            ("M11", _changed(lambda omega, gamma, x, s, k, p: (omega[:-1, :-1], gamma))),
            ("M25", _changed(lambda omega, gamma, x, s, k, p: (torch.zeros_like(omega), gamma))),
            ("10-places", _summed),
            ("10-padding", _changed(lambda omega, gamma, x, s, k, p: (kfc_factors(x, s, k, 0)[0], gamma))),
        ),
        others=(_by_loops,),
        read="A convolution is one linear layer at many places",
    ),
    Exercise(
        key="10.2",
        name="pick_sharing",
        reference=pick_sharing,
        parts=(Part("four layers", 6, _picked),),
        wrong=(
            ("10-always", lambda patches, scores: "expand"),
            ("10-always", lambda patches, scores: "reduce"),
            ("10-opposite", lambda p, s: "expand" if pick_sharing(p, s) == "reduce" else "reduce"),
            ("10-inputs", lambda p, s: "reduce" if _likeness(p - p.mean((0, 1))) > 0.5 else "expand"),
            ("10-word", lambda patches, scores: "exact"),
        ),
        others=(_by_likeness,),
        read="Expand or reduce",
    ),
    Exercise(
        key="10.3",
        name="kfc_step",
        reference=kfc_step,
        parts=(Part("structure", 5, _direction), Part("invariance", 2, _whitened_colours)),
        wrong=tuple((key, _step_wrong(key)) for key in STEP_MISTAKES),
        others=(_by_kronecker,),
        read="Colours, centring and a step that does not care",
    ),
    Exercise(
        key="10.4",
        name="conv_prong",
        reference=conv_prong,
        parts=(Part("white channels", 4, _white_channels), Part("the same function", 4, _same_convolution)),
        wrong=(
            ("10-compensate", _conv_wrong(lambda w, b, x, e, V, d, U, c: (V, b, U, c))),
            ("10-compensate", _conv_wrong(lambda w, b, x, e, V, d, U, c: (V, b + w.mean((2, 3)) @ c, U, c))),
            ("10-kernel", _conv_wrong(lambda w, b, x, e, V, d, U, c: (w, d, U, c))),
            ("10-transposed", _conv_wrong(_transposed)),
            ("M13", _conv_from(lambda centred, x: centred.T @ centred / len(x))),
            ("M02", _conv_from(lambda centred, x: centred.T @ centred)),
            ("M11", _conv_from(lambda centred, x: centred.T @ centred / len(centred), lambda pixels: 0 * pixels[0])),
        ),
        others=(_symmetric_channels,),
        read="White channels",
    ),
)
