"""Square roots and Nystrom stand-ins, against eigendecompositions and pseudo-inverses in NumPy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad_lab.errors import NotPositiveDefiniteError, NumericalWarning
from natgrad_lab.roots import denman_beavers, nystrom

EPS = {torch.float64: 2.2e-16, torch.float32: 1.2e-7}


def spd(dim, condition, dtype=torch.float64, scale=1.0, seed=0):
    """A random basis, eigenvalues evenly spread on a logarithmic axis; and its eigenvalues and basis."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]
    values = scale * np.logspace(0, -np.log10(condition), dim)
    return torch.tensor((basis * values) @ basis.T).to(dtype), values, basis


def of_rank(rank, dim=12, seed=0):
    B = torch.randn(dim, rank, generator=torch.Generator().manual_seed(seed))
    return B @ B.mT


# ---- Denman-Beavers


@pytest.mark.parametrize("dtype, condition", [
    (torch.float64, 1), (torch.float64, 1e2), (torch.float64, 1e4), (torch.float64, 1e6), (torch.float64, 1e8),
    (torch.float32, 1e1), (torch.float32, 1e3),
])  # fmt: skip
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_both_roots_equal_those_of_the_eigendecomposition(dtype, condition, scale):
    """The root to √κ eps, the inverse root to κ eps: what the conditioning of each allows, with room for 30 x 30 sums."""
    M, values, basis = spd(30, condition, dtype, scale)
    found = denman_beavers(M)
    root, inverse_root = (basis * values**0.5) @ basis.T, (basis * values**-0.5) @ basis.T
    off = np.linalg.norm(found.root.double().numpy() - root) / np.linalg.norm(root)
    inverse_off = np.linalg.norm(found.inverse_root.double().numpy() - inverse_root) / np.linalg.norm(inverse_root)
    assert off < 30 * condition**0.5 * EPS[dtype] and inverse_off < 30 * condition * EPS[dtype]
    assert found.root.dtype == found.inverse_root.dtype == dtype
    assert torch.equal(found.root, found.root.mT) or (found.root - found.root.mT).abs().max() < 1e-6 * found.root.abs().max()


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e8])
def test_the_residuals_said_are_those_of_what_is_returned(condition):
    M, *_ = spd(20, condition)
    found, numbers = denman_beavers(M), M.numpy()
    Y, Z = found.root.numpy(), found.inverse_root.numpy()
    residual = np.linalg.norm(Y @ Y - numbers) / np.linalg.norm(numbers)
    assert found.residual == found.residuals[-1] and len(found.residuals) == len(found.products)
    assert found.products[-1] == pytest.approx(np.linalg.norm(Y @ Z - np.eye(20)) / 20**0.5, rel=1, abs=1e-13)
    assert abs(found.residual - residual) < 20 * condition**0.5 * EPS[torch.float64]  # both are rounding
    inverse_residual = np.linalg.norm(Z @ numbers @ Z - np.eye(20)) / 20**0.5
    assert found.inverse_residual == pytest.approx(inverse_residual, rel=1, abs=1e-14)
    assert found.residual < 1e-12 and found.inverse_residual < 1e-9  # 2e-13 and 2e-10 at condition 1e8
    assert np.linalg.norm(Y @ Z - np.eye(20)) < 1e-11  # the product form leaves 2e-9 here


def test_convergence_is_quadratic():
    """log of the residual doubles: each is at most a constant times the square of the one before."""
    residuals = denman_beavers(spd(20, 1e4)[0], tolerance=0.0).products
    fast = [(a, b) for a, b in itertools.pairwise(residuals) if 1e-6 < a < 0.1]
    assert len(fast) >= 2 and all(b < 2 * a**2 for a, b in fast)
    assert not all(b < 2 * a**3 for a, b in fast)


def test_scaling_saves_iterations():
    M, *_ = spd(20, 1e6)
    scaled, plain = denman_beavers(M), denman_beavers(M, scaled=False)
    assert len(scaled.residuals) <= 8 and len(plain.residuals) >= 13
    assert (scaled.root - plain.root).norm() < 1e-9 * plain.root.norm()


def test_it_stops_at_the_tolerance_and_says_when_steps_run_out():
    M, *_ = spd(20, 1e4)
    every = denman_beavers(M).products
    early = denman_beavers(M, tolerance=1e-3).products
    assert early[-1] <= 1e-3 < early[-2] and len(early) < len(every) and early == every[: len(early)]
    with pytest.warns(NumericalWarning, match="ended after 2 steps at ‖YZ − I‖ / √m = "):
        cut = denman_beavers(M, max_steps=2)
    assert cut.products == every[:2]


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("condition", [1e4, 1e8])
@pytest.mark.parametrize("large", [1, 15, 29])
def test_two_clusters_of_eigenvalues(large, condition, scaled):
    """‖Y² − M‖ is small here long before the inverse root is right."""
    basis, values = spd(30, 1.0)[2], np.full(30, 1 / condition)
    values[:large] = 1.0
    found = denman_beavers(torch.tensor((basis * values) @ basis.T), scaled=scaled)
    inverse_root = (basis * values**-0.5) @ basis.T
    off = np.linalg.norm(found.inverse_root.numpy() - inverse_root) / np.linalg.norm(inverse_root)
    assert off < 100 * condition * EPS[torch.float64] and found.inverse_residual < 100 * condition * EPS[torch.float64]


def test_damping_is_added_to_the_matrix():
    M = of_rank(3)
    found, damped = denman_beavers(M, 0.1).root, M + 0.1 * torch.eye(12)
    assert (found @ found - damped).norm() < 1e-14 * 100 * damped.norm()
    assert torch.equal(M, of_rank(3)), "the matrix given is left alone"


def test_a_number_and_the_identity():
    assert denman_beavers(torch.tensor([[9.0]])).root.item() == 3.0
    found = denman_beavers(torch.eye(4))
    assert torch.equal(found.root, torch.eye(4)) and found.residuals == (0.0,)


@pytest.mark.parametrize("matrix, words", [
    (torch.diag(torch.tensor([1.0, -1.0])), "smallest eigenvalue is -1"),
    (torch.diag(torch.tensor([1.0, 0.0])), "singular to working precision"),
    (torch.zeros(2, 2), "singular to working precision"),
])  # fmt: skip
def test_what_has_no_root_is_refused(matrix, words):
    with pytest.raises(NotPositiveDefiniteError, match=words):
        denman_beavers(matrix)


def test_damping_that_rounding_has_eaten_is_refused():
    M = torch.diag(torch.tensor([1.0, -1e-9]))
    with pytest.raises(NotPositiveDefiniteError, match="at damping 1e-12 is singular .*more damping"):
        denman_beavers(M, 1e-12)


def test_bad_arguments_of_the_root():
    with pytest.raises(ValueError, match="must be symmetric"):
        denman_beavers(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="finite numbers"):
        denman_beavers(torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="damping must be"):
        denman_beavers(torch.eye(2), -1.0)
    with pytest.raises(ValueError, match="max_steps must be a positive integer; got 0"):
        denman_beavers(torch.eye(2), max_steps=0)


@given(st.integers(1, 6), st.floats(0.0, 5.0), st.floats(-8, 8), st.integers(0, 99))
def test_roots_of_any_matrix(dim, log_condition, log_scale, seed):
    condition = 10**log_condition
    M, *_ = spd(dim, condition, scale=10**log_scale, seed=seed)
    found = denman_beavers(M)
    eye = found.root @ found.inverse_root
    assert (found.root @ found.root - M).norm() < 100 * condition**0.5 * EPS[torch.float64] * M.norm()
    assert (eye - torch.eye(dim)).norm() < 100 * condition**0.5 * EPS[torch.float64] * dim


# ---- Nystrom


def numpy_nystrom(M, index):
    C = M.numpy()[:, index]
    return C @ np.linalg.pinv(C[index], rcond=1e-10, hermitian=True) @ C.T


@pytest.mark.parametrize("index", [[0], [3, 1], [11, 0, 5, 6], list(range(12))])
def test_the_stand_in_is_the_formula(index):
    M = of_rank(6)
    found, left_out = nystrom(M, torch.tensor(index))
    expected = numpy_nystrom(M, index)
    assert np.abs(found.to_dense().numpy() - expected).max() < 1e-10
    assert abs(left_out - (1 - np.trace(expected) / M.trace().item())) < 1e-10


@pytest.mark.parametrize("rank", [1, 4, 12])
@pytest.mark.parametrize("more", [0, 1, 30])
def test_exact_when_landmarks_are_as_many_as_the_rank(rank, more):
    M = of_rank(rank)
    found, left_out = nystrom(M, rank + more)
    assert (found.to_dense() - M).norm() < 1e-12 * M.norm() and abs(left_out) < 1e-12
    assert len(found.eigenvalues) == rank


def test_more_landmarks_leave_out_less_and_the_error_is_psd():
    M, *_ = spd(40, 1e6)
    shares = []
    for count in (1, 5, 10, 20, 40):
        found, left_out = nystrom(M, count)
        error = M - found.to_dense()
        assert torch.linalg.eigvalsh(error)[0] > -1e-12
        assert left_out == pytest.approx((error.trace() / M.trace()).item(), abs=1e-12)
        assert torch.linalg.matrix_norm(error, 2) <= error.trace() + 1e-12
        shares.append(left_out)
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.1 and shares[-1] < 1e-12


def test_exact_in_spite_of_a_spectrum_down_to_rounding():
    """A pseudo-inverse of W would lose half of the digits here."""
    M, *_ = spd(60, 1e15)
    found, _ = nystrom(M, 60)
    assert (found.to_dense() - M).norm() < 1e-13 * M.norm()


@pytest.mark.parametrize("damping", [1e-6, 1e-1])
def test_damped_inverse_and_inverse_root_of_the_stand_in(damping):
    """(Ĝ + λI)⁻¹ = (I − C (λW + CᵀC)⁻¹ Cᵀ) / λ, and the inverse root squared is it."""
    M, index = of_rank(6), [0, 2, 4, 7]
    found, _ = nystrom(M, torch.tensor(index))
    C = M[:, index]
    expected = (torch.eye(12) - C @ torch.linalg.solve(damping * C[index] + C.mT @ C, C.mT)) / damping
    x = torch.randn(12, 3)
    root = found.power(-0.5, damping)
    tolerance = 1e-13 * M.norm() / damping  # the formula subtracts numbers of size 1 / λ
    assert (found.solve(x, damping) - expected @ x).norm() < tolerance * x.norm()
    assert (root.matmul(root.matmul(x)) - expected @ x).norm() < tolerance * x.norm()
    assert (found.power(0.5, damping).matmul(root.matmul(x)) - x).norm() < 1e-12 * x.norm()


def test_landmarks_that_others_explain_are_skipped():
    M = of_rank(5)
    M[:, 1], M[1] = M[:, 0], M[0]
    M[1, 1] = M[0, 0]  # entries 0 and 1 are one and the same
    found, _ = nystrom(M, torch.tensor([0, 1]))
    assert len(found.eigenvalues) == 1 and np.abs(found.to_dense().numpy() - numpy_nystrom(M, [0])).max() < 1e-12


def test_a_zero_matrix_needs_no_landmark():
    found, left_out = nystrom(torch.zeros(3, 3), 2)
    assert left_out == 0.0 and (found.to_dense() == 0).all()


@pytest.mark.parametrize("landmarks, words", [
    (0, "landmarks must be at least 1, or indices; got 0"),
    (torch.tensor([0, 0]), "different indices from 0 to 2, at least one; got \\[0, 0\\]"),
    (torch.tensor([3]), "different indices from 0 to 2"),
    (torch.tensor([-1]), "different indices from 0 to 2"),
    (torch.tensor([], dtype=torch.long), "different indices from 0 to 2"),
])  # fmt: skip
def test_bad_landmarks(landmarks, words):
    with pytest.raises(ValueError, match=words):
        nystrom(torch.eye(3), landmarks)


@pytest.mark.parametrize("matrix", [torch.diag(torch.tensor([1.0, -1.0])), torch.tensor([[1.0, 3.0], [3.0, 1.0]])])
def test_an_indefinite_matrix_has_no_stand_in(matrix):
    with pytest.raises(NotPositiveDefiniteError):
        nystrom(matrix, 2)
