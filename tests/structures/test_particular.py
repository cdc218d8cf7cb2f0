"""What one structure promises beyond the conformance tests, and what each refuses to be made from."""

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad_lab.structures import (
    BlockDiagonal,
    Dense,
    DenseRows,
    Diagonal,
    EigenKronecker,
    Gram,
    KhatriRaoRows,
    Kronecker,
    LowRank,
    SharedRows,
    factored_tikhonov,
    from_state,
    gram,
    pi_trace_norm,
)
from natgrad_lab.structures.row_blocks import mirror_upper


def psd(*spectrum):
    Q = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum))).Q
    return (Q * torch.tensor(spectrum)) @ Q.mT


EIGENVALUES = st.one_of(st.just(0.0), st.floats(-8, 3).map(lambda e: 10.0**e))
SPECTRA = st.lists(EIGENVALUES, min_size=1, max_size=5)
DAMPINGS = st.floats(-8, 3).map(lambda e: 10.0**e)


@given(left=SPECTRA, right=SPECTRA, damping=DAMPINGS, seed=st.integers(0, 9))
def test_kronecker_solve_is_exact_for_any_spectrum(left, right, damping, seed):
    torch.manual_seed(seed)
    M = Kronecker(psd(*left), psd(*right))
    x = torch.randn(M.dim)
    solution = M.solve(x, damping)
    scale = max(left) * max(right) + damping  # backward error: a solution of a system within rounding of the right one
    twin = torch.kron(M.left, M.right) + damping * torch.eye(M.dim)
    assert (twin @ solution - x).norm() <= 40 * M.dim * 2.2e-16 * scale * solution.norm()
    assert abs(M.logdet(damping) - torch.logdet(twin)) <= 1e-12 * M.dim * (scale / damping + 1) ** 1 + 1e-9


@given(spectrum=SPECTRA, p=st.sampled_from([-1, -0.5, 0.5, 1, 2]), damping=DAMPINGS, seed=st.integers(0, 9))
def test_powers_add_up_for_any_spectrum(spectrum, p, damping, seed):
    torch.manual_seed(seed)
    M = Dense(psd(*spectrum))
    product = M.power(p, damping).to_dense() @ M.power(-p, damping).to_dense()
    condition = (max(spectrum) + damping) / (min(spectrum) + damping)  # ‖M^p‖ ‖M^-p‖ = condition^|p|, eps each
    error = (product - torch.eye(M.dim)).abs().max()
    assert error <= 1e-14 * M.dim * condition ** max(1, abs(p))


def test_exact_and_factored_damping_differ_by_the_two_middle_terms():
    G, A, damping = psd(1.0, 2.0), psd(0.5, 1.0, 4.0), 0.3
    kron = Kronecker(G, A)
    pi, root, I2, I3 = ((5.5 / 3) / (3 / 2)) ** 0.5, 0.3**0.5, torch.eye(2), torch.eye(3)
    assert pi_trace_norm(kron) == pytest.approx(pi, rel=1e-14)
    factored = factored_tikhonov(kron, damping)
    exact = torch.kron(G, A) + damping * torch.eye(6)
    middle = pi * root * torch.kron(G, I3) + root / pi * torch.kron(I2, A)
    torch.testing.assert_close(factored.to_dense(), exact + middle)
    assert "factored damping 0.3, pi" in repr(factored)


def test_pi_follows_the_scale_of_each_factor():
    G, A = psd(1.0, 2.0), psd(0.5, 1.0, 4.0)
    product = factored_tikhonov(Kronecker(G, A), 0.1).to_dense()
    torch.testing.assert_close(factored_tikhonov(Kronecker(G / 7, 7 * A), 0.1).to_dense(), product)
    assert pi_trace_norm(Kronecker(G, 9 * A)) == pytest.approx(3 * pi_trace_norm(Kronecker(G, A)))


@pytest.mark.parametrize("zero", [0, 1])
def test_pi_is_one_where_a_trace_is_zero(zero):
    factors = [psd(1.0, 2.0), psd(1.0, 3.0)]
    factors[zero] = torch.zeros(2, 2)
    assert pi_trace_norm(Kronecker(*factors)) == 1
    assert torch.isfinite(factored_tikhonov(Kronecker(*factors), 0.1).solve(torch.ones(4))).all()


def test_undamped_power_of_a_kronecker_is_a_kronecker():
    M = Kronecker(psd(1.0, 2.0), psd(1.0, 3.0, 5.0))
    assert isinstance(M.power(-1), Kronecker) and isinstance(M.power(-1, 0.1), EigenKronecker)
    assert repr(M.power(-1, 0.1)).endswith("; (M + 0.1 I)^-1)")


KEEPERS = {"dense": lambda: Dense(psd(1.0, 2.0, 3.0, 4.0)), "kronecker": lambda: Kronecker(psd(1.0, 2.0), psd(1.0, 3.0))}


@pytest.mark.parametrize("make", KEEPERS.values(), ids=KEEPERS)
def test_what_is_kept_belongs_to_one_instance(make):
    M, x = make(), torch.randn(4)
    M.solve(x, 0.1), M.solve(x), M.power(0.5), M.eigvalsh()
    grown = M.map(lambda t: 2 * t)
    twin = grown.to_dense()
    torch.testing.assert_close(grown.solve(x, 0.1), torch.linalg.solve(twin + 0.1 * torch.eye(4), x))
    torch.testing.assert_close(grown.solve(x), torch.linalg.solve(twin, x))
    torch.testing.assert_close(grown.eigvalsh(), torch.linalg.eigvalsh(twin))


def test_a_second_damping_reuses_the_eigendecomposition(monkeypatch):
    M, x = Kronecker(psd(1.0, 2.0), psd(1.0, 3.0)), torch.randn(4)
    M.solve(x, 0.1)
    monkeypatch.setattr(torch.linalg, "eigh", None)  # calling it again would fail
    torch.testing.assert_close(M.solve(x, 0.7), torch.linalg.solve(M.to_dense() + 0.7 * torch.eye(4), x))


def test_moving_averages():
    a, b = psd(1.0, 2.0), psd(3.0, 1.0)

    def lerp(old, now):
        return now.lerp(old, 0.9)

    torch.testing.assert_close(Dense(a).map(lerp, Dense(b)).matrix, 0.9 * a + 0.1 * b)
    old, new = (BlockDiagonal((Dense(m), Diagonal(d * torch.ones(3)))) for m, d in ((a, 1.0), (b, 0.0)))
    torch.testing.assert_close(old.map(lerp, new).to_dense(), torch.block_diag(0.9 * a + 0.1 * b, 0.9 * torch.eye(3)))
    factors = Kronecker(a, b).map(lerp, Kronecker(b, a))  # K-FAC averages the factors, not the product
    torch.testing.assert_close(factors.to_dense(), torch.kron(0.9 * a + 0.1 * b, 0.9 * b + 0.1 * a))


def test_two_bases_are_not_averaged():
    M = Kronecker(psd(1.0, 2.0), psd(1.0, 3.0)).power(0.5, 0.1)
    N = Kronecker(psd(1.0, 2.0), psd(1.0, 3.0)).power(0.5, 0.1)
    with pytest.raises(ValueError, match="same eigenvectors; these differ"):
        M.map(torch.add, N)
    U, V = (torch.linalg.qr(torch.randn(4, 2)).Q for _ in range(2))
    with pytest.raises(ValueError, match="same basis; these differ"):
        LowRank(U, torch.ones(2), torch.tensor(0.0)).map(torch.add, LowRank(V, torch.ones(2), torch.tensor(0.0)))


def gram_and_rows(N=3, D=4, K=2, C=2):
    inputs, scores = torch.randn(N, D), torch.randn(K, N, C)
    other = torch.randn(K * N, 3)
    rows = torch.stack([torch.kron(scores[k, n], inputs[n]) for k in range(K) for n in range(N)])
    return Gram((KhatriRaoRows(inputs, scores), DenseRows(other))), torch.cat([rows, other], dim=1)


def test_gram_products_with_rows():
    F, R = gram_and_rows()
    v, x = torch.randn(6, 2), torch.randn(11, 3)
    torch.testing.assert_close(F.row_gram, R @ R.mT)
    for block, columns in zip(F.blocks, R.split([8, 3], dim=1), strict=True):
        torch.testing.assert_close(block.gram(), columns @ columns.mT)
        torch.testing.assert_close(block.to_dense(), columns)
    for columns in (slice(None), 0):
        torch.testing.assert_close(F.rmatmul(v[:, columns]), R.mT @ v[:, columns])
        torch.testing.assert_close(F.rows_matmul(x[:, columns]), R @ x[:, columns])


@pytest.mark.parametrize("lies", ["by position", "by unit"])
@pytest.mark.parametrize("columns", [1, 2, 3, 7])  # up to K = 2 one at a time, then by rows that are formed in strips
def test_products_with_shared_rows(columns, lies, monkeypatch):
    monkeypatch.setattr("natgrad_lab.structures.shared_rows._CHUNK", 20)
    K, N, S, C, D = 2, 3, 5, 4, 3
    inputs, scores = torch.randn(N, S, D), torch.randn(K, N, S, C)
    rows = [sum(torch.kron(scores[k, n, s], inputs[n, s]) for s in range(S)) for k in range(K) for n in range(N)]
    scores = scores.mT.contiguous().mT if lies == "by unit" else scores
    block, R = SharedRows(inputs, scores), torch.stack(rows)
    x, v = torch.randn(C * D, columns), torch.randn(K * N, columns)
    torch.testing.assert_close(block.matmul(x), R @ x)
    torch.testing.assert_close(block.rmatmul(v), R.mT @ v)


@pytest.mark.parametrize("columns", [(), (2,)])
@pytest.mark.parametrize("damping", [0.0, 1e-6, 1e-2, 10.0])
def test_range_solve_is_the_damped_solve_of_a_gradient(damping, columns):
    F, R = gram_and_rows()
    u = torch.randn(6, *columns)
    exact = R.mT @ torch.linalg.solve(R @ R.mT + damping * torch.eye(6), u)
    torch.testing.assert_close(F.range_solve(u, damping), exact)


def ill_conditioned_gram():
    """Rows with 30 singular values from 1 down to 1e-4 and 10 that are zero, P = 60, in float32."""
    U, V = (torch.linalg.qr(torch.randn(n, 30)).Q for n in (40, 60))
    R = ((U * torch.logspace(0, -4, 30)) @ V.mT).float()
    return Gram((DenseRows(R),)), R.double()


@pytest.mark.parametrize("damping", [1e-2, 1e-5, 1e-8])
def test_float32_gram_solves_to_float32_rounding_at_any_damping(damping):
    """At damping 1e-8 float32 alone is off by 100 %; only the result's own rounding may remain."""
    F, R = ill_conditioned_gram()
    u, x = torch.randn(40), torch.randn(60)
    damped = R.mT @ R + damping * torch.eye(60)
    u, x = u.float(), x.float()
    for computed, right in ((F.range_solve(u, damping), R.mT @ u.double()), (F.solve(x, damping), x.double())):
        exact = torch.linalg.solve(damped, right)
        assert computed.dtype == torch.float32
        assert (computed.double() - exact).norm() <= 1e-6 * exact.norm()


def test_gram_takes_float64_only_where_float32_does_not_converge():
    F, _ = ill_conditioned_gram()
    F.range_solve(torch.randn(40).float(), 1e-2)
    assert "row_gram" not in F._double.__dict__
    F.range_solve(torch.randn(40).float(), 1e-9)
    assert "row_gram" in F._double.__dict__


@pytest.mark.parametrize("damping", [1e-4, 1e-9])
def test_gram_solve_survives_cancellation(damping):
    """For x = Rᵀu the terms of the Woodbury form cancel, and one pass leaves a residual of eps / damping."""
    R = torch.linalg.qr(torch.randn(60, 40)).Q.mT * torch.linspace(1, 3, 40)[:, None]
    x = R.mT @ torch.randn(40)
    solution = Gram((DenseRows(R),)).solve(x, damping)
    assert (R.mT @ (R @ solution) + damping * solution - x).norm() <= 1e-13 * x.norm()


def test_gram_solve_in_the_space_of_rows_is_as_exact_as_one_subtraction_allows(monkeypatch):
    """Where products with R are dear, corrections use RRᵀ alone; the last subtraction leaves eps λ_max / damping."""
    monkeypatch.setattr(gram, "_DEAR", 0)
    R = torch.linalg.qr(torch.randn(60, 40)).Q.mT * torch.linspace(1, 3, 40)[:, None]
    for x in (torch.randn(60), R.mT @ torch.randn(40), torch.randn(60, 2)):
        F = Gram((DenseRows(R),))
        monkeypatch.setattr(DenseRows, "gram_flops", 0)
        solution = F.solve(x, 1e-4)
        assert F._double_gram_is_cheaper
        off = (R.mT @ (R @ solution) + 1e-4 * solution - x).norm(dim=0)
        assert (off <= 10 * torch.finfo(R.dtype).eps * 9 / 1e-4 * x.norm(dim=0)).all()


def test_low_rank_solve_survives_cancellation():
    """A right-hand side inside the basis: what float32 leaves outside must not be divided by the damping."""
    U = torch.linalg.qr(torch.randn(60, 5)).Q.float()
    M, x = LowRank(U, torch.arange(1.0, 6).float(), torch.tensor(0.0).float()), U @ torch.randn(5).float()
    solution = M.solve(x, 1e-6)
    assert (M.matmul(solution) + 1e-6 * solution - x).norm() <= 1e-5 * x.norm()


def test_mirror_upper_fills_the_lower_triangle():
    M = psd(1.0, 2.0, 3.0, 4.0, 5.0)
    for width in (1, 2, 3, 8):
        torch.testing.assert_close(mirror_upper(M.triu(), width), M)


def test_gram_power_keeps_the_complement():
    F, R = gram_and_rows()
    power = F.power(-1, 0.5)
    assert isinstance(power, LowRank) and power.rest == 2
    torch.testing.assert_close(power.basis.mT @ power.basis, torch.eye(6))


eye = torch.eye
REFUSALS = {
    "dense not square": (lambda: Dense(torch.ones(2, 3)), r"square matrix .* got shape \(2, 3\)"),
    "dense empty": (lambda: Dense(torch.ones(0, 0)), "at least one row"),
    "dense nan": (lambda: Dense(0 * eye(2) / eye(2)), r"Dense.matrix must hold finite .* 2 of 4 .*\(0, 1\)"),
    "dense integers": (lambda: Dense(torch.ones(2, 2, dtype=torch.int64)), "floating-point tensors; matrix is torch.int64"),
    "dense asymmetric": (lambda: Dense(torch.ones(2, 2).tril()).solve(torch.ones(2)), "must be symmetric.*symmetrize"),
    "dense indefinite": (lambda: Dense(torch.diag(torch.tensor([1.0, -1]))).power(2), "no negative eigenvalues.*has -1"),
    "diagonal matrix": (lambda: Diagonal(eye(2)), r"a vector .* got shape \(2, 2\)"),
    "diagonal negative": (lambda: Diagonal(torch.tensor([1.0, -1])).solve(torch.ones(2), 3.0), "no negative eigenvalues"),
    "no blocks": (lambda: BlockDiagonal(()), "at least one block; got none"),
    "two dtypes": (lambda: BlockDiagonal((Dense(eye(2)), Dense(eye(2).float()))), "one dtype and device"),
    "kronecker not square": (lambda: Kronecker(eye(2), torch.ones(2, 3)), r"right has shape \(2, 3\)"),
    "kronecker inf": (lambda: Kronecker(eye(2), eye(2) / 0), "Kronecker.right must hold finite"),
    "eigen shapes": (lambda: EigenKronecker(eye(2), eye(3), torch.ones(3, 2)), "eigenvalues \\(m, n\\); got shapes"),
    "low rank shapes": (lambda: LowRank(eye(3)[:, :2], torch.ones(3), torch.tensor(0.0)), "eigenvalues \\(r,\\)"),
    "no rows": (lambda: Gram(()), "at least one block of rows; got none"),
    "unequal rows": (lambda: Gram((DenseRows(eye(2)), DenseRows(eye(4)))), r"as many rows each; got \[2, 4\]"),
    "examples differ": (lambda: KhatriRaoRows(torch.ones(2, 3), torch.ones(1, 4, 2)), r"got \(2, 3\) and \(1, 4, 2\)"),
    "empty batch": (lambda: KhatriRaoRows(torch.ones(0, 3), torch.ones(1, 0, 2)), "no size 0"),
    "empty rows": (lambda: DenseRows(torch.ones(0, 3)), "no size 0"),
    "row length": (lambda: Gram((DenseRows(torch.ones(2, 3)),)).range_solve(torch.ones(3), 1.0), r"\(2,\) .* got length 3"),
    "power nan": (lambda: Dense(eye(2)).power(float("nan")), "p must be a finite number; got nan"),
    "unknown kind": (lambda: from_state({"structure": "Toeplitz"}), "got 'Toeplitz'. Known kinds: BlockDiagonal, Dense"),
    "no kind": (lambda: from_state({}), "names its kind under 'structure'; got None"),
}  # fmt: skip


@pytest.fixture
def as_users_run_it():
    """Without the tests' shape checker, which would refuse a wrong shape first and in its own words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_say_what_is_wrong(name, as_users_run_it):
    attempt, text = REFUSALS[name]
    with pytest.raises(ValueError, match=text):
        attempt()


def test_scalars_of_any_kind_are_a_damping():
    M, x = Dense(psd(1.0, 2.0)), torch.ones(2)
    assert torch.equal(M.solve(x, 1), M.solve(x, 1.0)) and torch.equal(M.solve(x, np.float64(1)), M.solve(x, 1.0))
