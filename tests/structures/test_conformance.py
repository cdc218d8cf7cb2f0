"""Every structure against its dense twin, which is computed here with numpy in float64.

The table is the test: a new structure is one line, (structure from tensors, twin from the same arrays), and owes
everything below. Arrays are rounded to the dtype under test before either is made: a twin is never blamed for rounding.

Tolerances are backward: a computed result must be exact for a matrix within `Case.rounding` = 40 * dim * eps * ‖M‖ of M
(what Cholesky, eigh and products promise, with room for the two factors and the change of basis of the compound
structures). What that does to an answer is then the condition number's doing, and is computed from the spectrum.
"""

import io

import numpy as np
import pytest
import torch

from natgrad_lab.errors import NotPositiveDefiniteError
from natgrad_lab.structures import (
    BlockDiagonal,
    BlockTridiagonalInverse,
    Dense,
    DenseRows,
    Diagonal,
    EigenKronecker,
    FormedKroneckerInverse,
    Gram,
    Inverse,
    KhatriRaoRows,
    Kronecker,
    KroneckerInverse,
    LowRank,
    QuasiDiagonal,
    UnitWise,
    from_state,
)

DAMPINGS = {torch.float64: (0.0, 1e-8, 1e-3, 1.0, 1e3), torch.float32: (0.0, 1e-3, 1.0, 1e3)}
POWERS = (-1, -0.5, 0.5, 2)


def basis(n, columns=None):
    return np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))[0][:, :columns]


def psd(*spectrum):
    return (basis(len(spectrum)) * np.array(spectrum)) @ basis(len(spectrum)).T


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape)


def dense(M):
    return lambda t: Dense(t(M)), M


def diagonal(values):
    return lambda t: Diagonal(t(values)), np.diag(values)


def kronecker(G, A):
    return lambda t: Kronecker(t(G), t(A)), np.kron(G, A)


def eigen_kronecker(L, R, values):
    Q = np.kron(L, R)
    return lambda t: EigenKronecker(t(L), t(R), t(values)), (Q * values.ravel()) @ Q.T


def low_rank(U, values, rest):
    twin = (U * values) @ U.T + rest * (np.eye(len(U)) - U @ U.T)
    return lambda t: LowRank(t(U), t(values), t(rest)), twin


def blocks(*cases):
    sizes = np.cumsum([0] + [len(twin) for _, twin in cases])
    twin = np.zeros((sizes[-1], sizes[-1]))
    for start, stop, (_, block) in zip(sizes, sizes[1:], cases, strict=False):
        twin[start:stop, start:stop] = block
    return lambda t: BlockDiagonal(tuple(build(t) for build, _ in cases)), twin


def khatri_rao(inputs, scores):
    rows = [np.kron(scores[k, n], inputs[n]) for k in range(len(scores)) for n in range(len(inputs))]
    return lambda t: KhatriRaoRows(t(inputs), t(scores)), np.array(rows)


def rows(R):
    return lambda t: DenseRows(t(R)), R


def gram(*cases):
    R = np.concatenate([rows for _, rows in cases], axis=1)
    return lambda t: Gram(tuple(build(t) for build, _ in cases)), R.T @ R


def unit_wise(*units):
    _, twin = blocks(*map(dense, units))
    return lambda t: UnitWise(t(np.stack(units))), twin


def quasi_diagonal(weights, cross, bias):
    """The bias explains part of each weight: two weights covary by the product of what it explains of both."""
    units = []
    for w, c, b in zip(weights, cross, bias, strict=True):
        slope = c / b if b > 0 else 0 * c
        inside = np.diag(w - b * slope**2) + b * np.outer(slope, slope)
        units.append(np.block([[inside, c[:, None]], [c[None], np.array([[b]])]]))
    return lambda t: QuasiDiagonal(t(weights), t(cross), t(bias)), blocks(*map(dense, units))[1]


def chain(G, A, G_cross, A_cross):
    """A block beyond the neighbours is the nearer one, regressed on the layer between."""
    L = len(G)
    twin = {(i, i): np.kron(G[i], A[i]) for i in range(L)} | {(i, i + 1): np.kron(G_cross[i], A_cross[i]) for i in range(L - 1)}
    for j in range(2, L):
        for i in reversed(range(j - 1)):
            twin[i, j] = twin[i, i + 1] @ np.linalg.pinv(twin[i + 1, i + 1], rcond=1e-10) @ twin[i + 1, j]
    twin |= {(j, i): block.T for (i, j), block in twin.items()}
    parts = [tuple(part) for part in (G, A, G_cross, A_cross)]
    return (
        lambda t: BlockTridiagonalInverse(*(tuple(map(t, part)) for part in parts)),
        np.block([[twin[i, j] for j in range(L)] for i in range(L)]),
    )


def moments(r, *samples):
    """Of samples (N, n) on a grid of eighths, so that their products are exact in any dtype: within and between neighbours."""
    samples = [np.round(8 * s) / 8 for s in samples]
    return [r(s.T @ s) for s in samples], [r(s.T @ t) for s, t in zip(samples, samples[1:], strict=False)]


def chain_of(r, score_samples, input_samples):
    (G, G_cross), (A, A_cross) = moments(r, *score_samples), moments(r, *input_samples)
    return chain(G, A, G_cross, A_cross)


def inverse(case):
    build, twin = case
    return lambda t: Inverse(build(t)), np.linalg.inv(twin)


def kronecker_inverse(G, A, dampings=(0.5, 0.25)):
    """By factors that are exact in any dtype: lower triangular, in eighths."""
    left, right = (np.tril(np.round(8 * M) / 8) + 2 * np.eye(len(M)) for M in (G, A))
    twin = np.linalg.inv(np.kron(left @ left.T, right @ right.T))
    return lambda t: KroneckerInverse(t(left), t(right), t(np.array(dampings))), twin


def formed_inverse(G, A, dampings=(0.5, 0.25)):
    return lambda t: FormedKroneckerInverse(t(G), t(A), t(np.array(dampings))), np.kron(G, A)


TABLE = {  # r rounds to the dtype under test
    "dense": lambda r: dense(r(psd(1, 2, 3, 4, 5))),
    "dense 1x1": lambda r: dense(r(np.array([[2.5]]))),
    "dense rank 2 of 5": lambda r: dense(r(psd(0, 0, 0, 1, 3))),
    "dense condition 1e12": lambda r: dense(r(psd(1e-12, 1e-6, 1e-3, 1))),
    "dense zero": lambda r: dense(np.zeros((3, 3))),
    "dense tiny": lambda r: dense(r(psd(1e-10, 3e-10, 2e-10))),
    "diagonal": lambda r: diagonal(r(np.array([3.0, 1, 2]))),
    "diagonal condition 1e12": lambda r: diagonal(r(np.array([1e-12, 1.0]))),
    "diagonal with a zero": lambda r: diagonal(r(np.array([3.0, 0, 2]))),
    "kronecker": lambda r: kronecker(r(psd(1, 2, 3)), r(psd(0.5, 4))),
    "kronecker 1x1": lambda r: kronecker(r(np.array([[3.0]])), r(np.array([[0.5]]))),
    "kronecker scalar left": lambda r: kronecker(r(np.array([[3.0]])), r(psd(1, 2, 3))),
    "kronecker rank-deficient": lambda r: kronecker(r(psd(0, 1, 2)), r(psd(0, 0.5, 4))),
    "kronecker condition 1e12": lambda r: kronecker(r(psd(1e-12, 1, 1)), r(psd(1, 2))),
    "kronecker zero factor": lambda r: kronecker(np.zeros((2, 2)), r(psd(1, 2, 3))),
    "eigen kronecker": lambda r: eigen_kronecker(r(basis(2)), r(basis(3)), r(np.array([[1.0, 2, 3], [4, 5, 6]]))),
    "eigen kronecker zeros": lambda r: eigen_kronecker(r(basis(2)), r(basis(3)), r(np.array([[0.0, 2, 0], [4, 5, 0]]))),
    "low rank": lambda r: low_rank(r(basis(6, 2)), r(np.array([3.0, 1])), r(np.array(0.5))),
    "low rank rest 0": lambda r: low_rank(r(basis(6, 2)), r(np.array([3.0, 1])), np.array(0.0)),
    "low rank full": lambda r: low_rank(r(basis(3)), r(np.array([3.0, 1, 2])), np.array(0.0)),
    "low rank none": lambda r: low_rank(r(basis(3, 0)), np.array([]), r(np.array(2.0))),
    "blocks": lambda r: blocks(dense(r(psd(1, 2))), kronecker(r(psd(1, 2)), r(psd(3, 1, 2))), diagonal(r(np.ones(2)))),
    "one block": lambda r: blocks(kronecker(r(psd(1, 2)), r(psd(1, 3)))),
    "blocks, one singular": lambda r: blocks(dense(r(psd(0, 1))), dense(r(psd(1, 2, 3)))),
    "nested blocks": lambda r: blocks(blocks(dense(r(psd(1, 2))), diagonal(r(np.ones(1)))), dense(r(psd(3, 1)))),
    "unit-wise": lambda r: unit_wise(r(psd(1, 2, 3)), r(psd(0.5, 1, 4))),
    "unit-wise 1x1": lambda r: unit_wise(r(np.array([[2.0]])), r(np.array([[0.5]]))),
    "unit-wise, one unit": lambda r: unit_wise(r(psd(3, 1, 2))),
    "unit-wise, one singular": lambda r: unit_wise(r(psd(0, 1, 2)), r(psd(1, 1, 4))),
    "unit-wise, one zero": lambda r: unit_wise(np.zeros((2, 2)), r(psd(1, 4))),
    "quasi-diagonal": lambda r: quasi_diagonal(
        r(np.array([[2.0, 3], [1, 4]])), r(np.array([[1.0, -1], [0.5, 0]])), r(np.array([1.0, 2]))
    ),
    "quasi-diagonal, large inputs": lambda r: quasi_diagonal(
        r(np.array([[3e3, 0.5]])), r(np.array([[50.0, -0.1]])), r(np.array([1.0]))
    ),
    "quasi-diagonal, one input": lambda r: quasi_diagonal(r(np.array([[2.0]])), r(np.array([[-1.25]])), r(np.array([1.0]))),
    "quasi-diagonal, a dead unit": lambda r: quasi_diagonal(
        r(np.array([[0.0, 0], [1, 4]])), r(np.array([[0.0, 0], [0.5, 1]])), r(np.array([0.0, 2]))
    ),
    "quasi-diagonal, constant inputs": lambda r: quasi_diagonal(
        r(np.array([[4.0, 4]])), r(np.array([[2.0, 2]])), r(np.array([1.0]))
    ),
    "chain of three": lambda r: chain_of(
        r, (normal(9, 2), normal(9, 3), normal(9, 2)), (normal(8, 3), normal(8, 2), normal(8, 2))
    ),
    "chain of two": lambda r: chain_of(r, (normal(7, 2), normal(7, 3)), (normal(6, 2), normal(6, 2))),
    "chain of one": lambda r: chain_of(r, (normal(7, 2),), (normal(6, 3),)),
    "chain of four, one wide each": lambda r: chain_of(r, normal(6, 4).T[:, :, None], normal(5, 4).T[:, :, None] + 1),
    "chain, rank-deficient in the middle": lambda r: chain_of(
        r, (normal(9, 2), normal(9, 1) * np.ones(2), normal(9, 2)), (normal(8, 3), normal(8, 2), normal(8, 2))
    ),
    "chain, a layer determined by the next": lambda r: chain_of(
        r, (normal(9, 2), normal(9, 2)[:, ::-1]), (normal(8, 2), normal(8, 2)[:, ::-1])
    ),
    "inverse of a kronecker": lambda r: inverse(kronecker(r(psd(1, 2, 3)), r(psd(0.5, 4)))),
    "inverse of a chain": lambda r: inverse(chain_of(r, (normal(9, 2), normal(9, 2)), (normal(8, 3), normal(8, 2)))),
    "kronecker inverse": lambda r: kronecker_inverse(normal(3, 3), normal(2, 2)),
    "formed kronecker inverse": lambda r: formed_inverse(r(psd(1, 2, 3)), r(psd(0.5, 4))),
    "kronecker inverse 1x1": lambda r: kronecker_inverse(normal(1, 1), normal(1, 1)),
    "gram rows < P": lambda r: gram(khatri_rao(r(normal(3, 4)), r(normal(2, 3, 2)))),
    "gram rows > P": lambda r: gram(khatri_rao(r(normal(6, 2)), r(normal(3, 6, 2)))),
    "gram rows = P": lambda r: gram(khatri_rao(r(normal(2, 3)), r(normal(3, 2, 2)))),
    "gram one example": lambda r: gram(khatri_rao(r(normal(1, 3)), r(normal(1, 1, 2)))),
    "gram 1x1": lambda r: gram(khatri_rao(r(np.array([[2.0]])), r(np.array([[[1.5]]])))),
    "gram two layers": lambda r: gram(
        khatri_rao(r(normal(4, 3)), r(normal(2, 4, 3))), khatri_rao(r(normal(4, 2)), r(normal(2, 4, 2)))
    ),
    "gram mixed": lambda r: gram(khatri_rao(r(normal(3, 4)), r(normal(2, 3, 2))), rows(r(normal(6, 3)))),
    "gram copied rows": lambda r: gram(
        rows(r(np.tile(normal(2, 7), (2, 1)))), khatri_rao(r(np.tile(normal(2, 3), (2, 1))), np.ones((1, 4, 2)))
    ),
    "gram zero": lambda r: gram(khatri_rao(np.zeros((2, 3)), r(normal(1, 2, 2)))),
}  # fmt: skip


class Case:
    """One line of the table in one dtype: the structure, its twin, and what rounding may do to them."""

    def __init__(self, name, dtype, device="cpu"):
        numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
        self.tensor = lambda a: torch.tensor(np.asarray(a), dtype=dtype, device=device)
        build, self.twin = TABLE[name](lambda a: np.asarray(a).astype(numpy_dtype).astype(np.float64))
        self.make = lambda: build(self.tensor)
        self.structure, self.name, self.dtype, self.dim = self.make(), name, dtype, len(self.twin)
        self.spectrum = np.linalg.eigvalsh(self.twin).clip(0)
        self.vectors = np.linalg.eigh(self.twin)[1]
        self.eps = torch.finfo(dtype).eps
        # The low-rank Gram with R rows rounds sums of R terms: count them as well.
        terms = max(self.dim, getattr(self.structure, "num_rows", 0))
        self.rounding = 40 * terms * self.eps * self.spectrum[-1]

    @property
    def singular(self):
        """Is the smallest eigenvalue within the rounding level (or 0, for the diagonal, where nothing is rounded)?"""
        exact = self.name.startswith("diagonal")
        return self.spectrum[0] <= (0 if exact else self.dim * self.eps * self.spectrum[-1])

    def right_hand_sides(self):
        generator = np.random.default_rng(1)
        return [self.tensor(generator.normal(size=shape)) for shape in ((self.dim,), (self.dim, 3), (self.dim, 1))]

    def power(self, p, damping):
        """The twin's power, and how far `rounding` in the spectrum can move it, relative to the largest power."""
        damped = self.spectrum + damping
        powers = damped**p
        moved = np.abs((damped + self.rounding) ** p - powers).max()
        return (self.vectors * powers) @ self.vectors.T, 2 * moved + 40 * self.dim * self.eps * powers.max()


def array(tensor):
    return tensor.detach().cpu().double().numpy()


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture(params=TABLE)
def case(request, dtype):
    return Case(request.param, dtype)


def check_products(case):
    assert case.structure.dim == case.dim
    for x in case.right_hand_sides():
        product = case.structure.matmul(x)
        assert product.shape == x.shape and product.dtype == case.dtype
        bound = case.rounding * np.linalg.norm(array(x), axis=0).max()
        np.testing.assert_allclose(array(product), case.twin @ array(x), rtol=0, atol=bound)


def check_solves(case):
    for damping in DAMPINGS[case.dtype]:
        if damping == 0 and case.singular:
            continue  # refused: test_singular_systems_are_refused
        damped = case.twin + damping * np.eye(case.dim)
        for x in case.right_hand_sides():
            solution = case.structure.solve(x, damping)
            assert solution.shape == x.shape and solution.dtype == case.dtype
            residual = np.linalg.norm(damped @ array(solution) - array(x), axis=0)
            rounding = case.rounding + 40 * case.eps * damping
            assert (residual <= rounding * np.linalg.norm(array(solution), axis=0)).all(), (damping, residual)


def check_entries(case):
    structure = case.structure
    for computed, exact in (
        (structure.to_dense(), case.twin),
        (structure.diagonal(), case.twin.diagonal()),
        (structure.trace() / case.dim, case.twin.trace() / case.dim),
    ):
        assert computed.dtype == case.dtype and computed.shape == exact.shape
        np.testing.assert_allclose(array(computed), exact, rtol=0, atol=case.rounding)


def check_spectra(case):
    eigenvalues = case.structure.eigvalsh()
    assert eigenvalues.dtype == case.dtype
    kept = min(case.structure.num_rows, case.dim) if isinstance(case.structure, Gram) else case.dim
    assert len(eigenvalues) == kept
    np.testing.assert_allclose(array(eigenvalues), case.spectrum[-kept:], rtol=0, atol=case.rounding)
    assert (array(eigenvalues) >= 0).all()
    for damping in (0.0, 1e-3, 1.0, 1e3):
        if damping == 0 and case.singular:
            continue  # refused: test_singular_systems_are_refused
        damped = case.spectrum + damping
        logdet = case.structure.logdet(damping)
        assert logdet.dtype == case.dtype and logdet.shape == ()
        bound = (case.rounding / damped).sum() + 40 * case.dim * case.eps * (1 + np.abs(np.log(damped)).sum())
        assert abs(logdet.item() - np.log(damped).sum()) <= bound, damping


def check_powers(case):
    x = case.right_hand_sides()[1]
    for p in POWERS:
        for damping in (0.0, 0.01, 10.0):
            if p < 0 and damping == 0 and case.singular:
                continue  # refused: test_singular_systems_are_refused
            power, (twin, bound) = case.structure.power(p, damping), case.power(p, damping)
            assert power.dim == case.dim and power.dtype == case.dtype
            np.testing.assert_allclose(array(power.to_dense()), twin, rtol=0, atol=bound, err_msg=f"{p} {damping}")
            np.testing.assert_allclose(array(power.matmul(x)), twin @ array(x), rtol=0, atol=bound * 10)


CHECKS = {check.__name__: check for check in (check_products, check_solves, check_entries, check_spectra, check_powers)}


@pytest.mark.parametrize("check", CHECKS)
def test_agrees_with_its_dense_twin(case, check):
    CHECKS[check](case)


@pytest.mark.gpu
@pytest.mark.parametrize("check", CHECKS)
def test_agrees_on_the_gpu(dtype, check):
    for name in TABLE:
        CHECKS[check](Case(name, dtype, "cuda"))


def test_singular_systems_are_refused(case):
    if not case.singular:
        case.structure.solve(case.right_hand_sides()[0])
        return
    for attempt in (
        lambda: case.structure.solve(case.right_hand_sides()[0]),
        lambda: case.structure.logdet(),
        lambda: case.structure.power(-1),
        lambda: case.structure.power(-0.5),
    ):
        with pytest.raises(NotPositiveDefiniteError, match=r"a \d+ x \d+ system at damping 0.*smallest.*give damping > 0"):
            attempt()


@pytest.mark.parametrize("damping", [-1e-3, float("nan"), float("inf")])
def test_bad_damping_is_refused(case, damping):
    x = case.right_hand_sides()[0]
    for attempt in (
        lambda: case.structure.solve(x, damping),
        lambda: case.structure.logdet(damping),
        lambda: case.structure.power(-1, damping),
        lambda: case.structure.power(2, damping),
    ):
        with pytest.raises(ValueError, match=f"damping must be a finite number >= 0; got {damping}"):
            attempt()


def test_a_wrong_right_hand_side_is_refused(case):
    wrong = case.tensor(np.ones(case.dim + 2))
    other = torch.ones(case.dim, dtype={torch.float32: torch.float64, torch.float64: torch.float32}[case.dtype])
    for act in (case.structure.matmul, lambda x: case.structure.solve(x, 1.0)):
        with pytest.raises(ValueError, match=rf"dimension {case.dim} acts on x .* got length {case.dim + 2}"):
            act(wrong)
        with pytest.raises(ValueError, match="Convert one"):
            act(other)


def test_state_survives_a_file(case):
    buffer = io.BytesIO()
    torch.save(case.structure.state(), buffer)
    buffer.seek(0)
    again = from_state(torch.load(buffer, weights_only=True))
    assert type(again) is type(case.structure) and again.dtype == case.dtype and repr(again) == repr(case.structure)
    assert torch.equal(again.to_dense(), case.structure.to_dense())


def test_nothing_given_is_changed(case):
    x = case.right_hand_sides()[1]
    before, before_x = [tensor.clone() for _, tensor in case.structure.tensors()], x.clone()
    structure = case.structure
    for result in (
        structure.matmul(x), structure.solve(x, 0.1), structure.diagonal(), structure.to_dense(), structure.eigvalsh(),
        structure.power(0.5, 0.1).to_dense(),
    ):  # fmt: skip
        result.add_(1)  # a result is the caller's: writing into it must not reach the structure either
    structure.logdet(0.1)
    assert torch.equal(x, before_x)
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, structure.tensors(), strict=True))
    check_spectra(case)  # the kept eigenvalues too


def test_map_applies_to_every_tensor(case):
    structure = case.structure
    if isinstance(structure, Gram):
        with pytest.raises(ValueError, match="rows describe one batch"):
            structure.map(lambda t: t)
        return
    assert torch.equal(structure.map(lambda t: t).to_dense(), structure.to_dense())
    average = structure.map(lambda old, now: now.lerp(old, 0.75), structure.map(torch.clone))
    for (_, a), (_, b) in zip(average.tensors(), structure.tensors(), strict=True):
        torch.testing.assert_close(a, b)
    other = torch.float32 if case.dtype == torch.float64 else torch.float64
    moved = structure.map(lambda t: t.to(other))
    assert moved.dtype == other and moved.dim == case.dim
    with pytest.raises(ValueError, match="one kind and one shape"):
        structure.map(torch.add, Dense(torch.eye(case.dim + 1)))


def test_repr_is_short_and_names_the_kind(case):
    text = repr(case.structure)
    assert text.startswith(f"{type(case.structure).__name__}(dim={case.dim}, {str(case.dtype)[6:]}, ")
    assert len(text) < 140
