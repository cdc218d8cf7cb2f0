"""Solving with psd matrices: the policy of jitter and refusal, and conjugate gradients."""

import platform
import subprocess
import sys

import pytest
import torch

from natgrad_lab import linalg
from natgrad_lab.errors import NotPositiveDefiniteError, NumericalWarning


def psd(spectrum):
    Q = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum))).Q
    return linalg.symmetrize((Q * torch.as_tensor(spectrum, dtype=Q.dtype)) @ Q.mT)


def test_symmetrize_averages_with_the_transpose():
    torch.testing.assert_close(linalg.symmetrize(torch.tensor([[1.0, 4], [2, 3]])), torch.tensor([[1.0, 3], [3, 3]]))


@pytest.mark.parametrize("damping", [0.0, 1e-3, 10.0])
def test_damped_cholesky_factors_the_damped_matrix(damping):
    M = psd([1.0, 2, 3])
    before = M.clone()
    L = linalg.damped_cholesky(M, damping)
    torch.testing.assert_close(L @ L.mT, M + damping * torch.eye(3))
    assert torch.equal(M, before)


def test_psd_solve_takes_vectors_and_columns():
    M, X = psd([1.0, 2, 3]), torch.randn(3, 4)
    torch.testing.assert_close(linalg.psd_solve(M, X, 0.1), torch.linalg.solve(M + 0.1 * torch.eye(3), X))
    torch.testing.assert_close(linalg.psd_solve(M, X[:, 0], 0.1), linalg.psd_solve(M, X, 0.1)[:, 0])


@pytest.mark.parametrize("seed", range(8))
def test_a_singular_matrix_is_refused_even_where_cholesky_passes_by_luck(seed):
    torch.manual_seed(seed)
    rows = torch.randn(4, 6)
    with pytest.raises(NotPositiveDefiniteError, match="a 6 x 6 system at damping 0 is singular.*give damping > 0"):
        linalg.damped_cholesky(rows.mT @ rows)


def test_some_of_those_pass_a_bare_cholesky():
    """Otherwise the test above would show nothing."""
    passed = 0
    for seed in range(8):
        torch.manual_seed(seed)
        rows = torch.randn(4, 6)
        passed += torch.linalg.cholesky_ex(rows.mT @ rows).info.item() == 0
    assert passed > 0


def test_a_large_failure_is_explained_without_an_eigendecomposition(monkeypatch):
    monkeypatch.setattr(linalg, "_DIAGNOSE_DIM", 1)
    with pytest.raises(NotPositiveDefiniteError, match="its Cholesky factorization breaks down"):
        linalg.damped_cholesky(torch.diag(torch.tensor([1.0, -1])))


def test_an_indefinite_matrix_is_refused_at_any_small_damping():
    with pytest.raises(NotPositiveDefiniteError, match="smallest eigenvalue is -0.9.*give more damping"):
        linalg.damped_cholesky(torch.diag(torch.tensor([1.0, -1])), 0.1)


@pytest.mark.parametrize("multiple", [0.01, 4])
def test_jitter_is_stated_with_its_size(multiple):
    """A negative eigenvalue of 3 eps, as rounding leaves one; damping 4 eps passes Cholesky, but is mostly eaten."""
    eps = torch.finfo(torch.float64).eps
    M = torch.diag(torch.tensor([1.0, -3 * eps]))
    with pytest.warns(NumericalWarning, match=r"jitter 2.22e-15 was added, so the result is for damping"):
        L = linalg.damped_cholesky(M, multiple * eps)
    assert (L @ L.mT)[1, 1].item() == pytest.approx((10 + multiple - 3) * eps, rel=1e-2, abs=0)


@pytest.mark.parametrize("solver", [linalg.damped_cholesky, linalg.psd_eigh, linalg.psd_eigvalsh])
def test_bad_matrices_are_refused(solver):
    with pytest.raises(ValueError, match=r"finite numbers; got 1 of 4 .* at \(1, 0\)"):
        solver(torch.tensor([[1.0, 0], [float("nan"), 1]]))
    with pytest.raises(ValueError, match="must be symmetric"):
        solver(torch.tensor([[1.0, 0.3], [0, 1]]))


def test_a_large_but_finite_matrix_is_finite():
    linalg.check_finite(torch.full((4,), 1e308), "x")  # the sum overflows, the entries do not


def test_eigenvalues_negative_by_rounding_become_zero():
    M = psd([-1e-16, 0.0, 1.0])
    for values in (linalg.psd_eigh(M)[0], linalg.psd_eigvalsh(M)):
        assert (values >= 0).all() and values[0] <= 1e-15
    with pytest.raises(NotPositiveDefiniteError, match="has -0.001.*rounding explains only -"):
        linalg.psd_eigvalsh(psd([-1e-3, 0.5, 1.0]))


def test_float64_is_tried_where_float32_does_not_converge(monkeypatch):
    def stubborn(solve):
        def attempt(matrix):
            if matrix.dtype == torch.float32:
                raise torch.linalg.LinAlgError("did not converge")
            return solve(matrix)

        return attempt

    M = psd([1.0, 2.0]).float()
    for name in ("eigh", "eigvalsh"):
        monkeypatch.setattr(torch.linalg, name, stubborn(getattr(torch.linalg, name)))
    (values, vectors), alone = linalg.psd_eigh(M), linalg.psd_eigvalsh(M)
    assert values.dtype == vectors.dtype == alone.dtype == torch.float32
    torch.testing.assert_close((vectors * values) @ vectors.mT, M)


@pytest.mark.parametrize("columns", [(), (3,)])
def test_cg_solves_in_at_most_rank_steps(columns):
    M, b = psd([1.0, 2, 3, 4, 5]), torch.randn(5, *columns)
    x, residual, steps = linalg.cg(lambda v: M @ v, b, 0.1, tolerance=1e-12)
    torch.testing.assert_close(x, torch.linalg.solve(M + 0.1 * torch.eye(5), b))
    assert steps <= 6 and residual <= 1e-12


def test_cg_of_zero_is_zero():
    x, residual, steps = linalg.cg(lambda v: v, torch.zeros(3))
    assert (x == 0).all() and residual == 0 and steps == 0
    x, *_ = linalg.cg(lambda v: 2 * v, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))  # one zero column beside another
    torch.testing.assert_close(x, torch.tensor([[0.5, 0.0], [0.5, 0.0]]))


def test_cg_says_where_it_stopped():
    M, b = psd([1e-6, 1e-3, 1.0]), torch.ones(3)
    with pytest.warns(NumericalWarning, match="cg stopped after 1 steps at relative residual"):
        _, residual, steps = linalg.cg(lambda v: M @ v, b, max_steps=1)
    assert steps == 1 and residual > 1e-6


def test_cg_refuses_an_indefinite_matrix():
    M = torch.diag(torch.tensor([1.0, -1.0]))
    with pytest.raises(NotPositiveDefiniteError, match="cg met curvature"):
        linalg.cg(lambda v: M @ v, torch.tensor([0.1, 1.0]))


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_bad_damping_is_refused(damping):
    for attempt in (linalg.damped_cholesky, lambda M, d: linalg.cg(lambda v: M @ v, torch.ones(2), d)):
        with pytest.raises(ValueError, match=f"damping must be a finite number >= 0; got {damping}"):
            attempt(torch.eye(2), damping)


STEPS = """
import resource, statistics, torch
from natgrad_lab import likelihoods, models, optimizers
torch.set_num_threads(1)
model = models.mlp((784, 512, 256, 10), dtype=torch.float32)
kfac = optimizers.METHODS["kfac"](model, likelihoods.Categorical(), lr=1e-3)
inputs, targets, faults = torch.rand(256, 784), torch.arange(256) % 10, [0]
for _ in range(12):
    kfac.step(inputs, targets)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(statistics.median(after - before for before, after in zip(faults[4:], faults[5:])))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands freed memory back at once")
def test_the_temporaries_of_a_step_are_not_paged_in_anew():
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200  # pages; 1,700 without keep_freed_memory
