"""Substitution in blocks against NumPy's solver: sizes around the blocks', one row, both precisions, both memory orders."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad_lab.substitution import inverted_blocks, solve_rows


def system(size, num_rows, dtype=torch.float64):
    generator = np.random.default_rng(size)
    M = generator.normal(size=(size, size + 3))
    M = (M @ M.T / size + np.eye(size)).astype(np.float64)
    rows = generator.normal(size=(num_rows, size))
    return M, torch.tensor(np.linalg.cholesky(M), dtype=dtype), torch.tensor(rows, dtype=dtype)


@given(size=st.integers(1, 70), num_rows=st.integers(1, 5), block=st.integers(1, 80), by_columns=st.booleans())
def test_rows_are_solved_whatever_the_blocks(size, num_rows, block, by_columns):
    """The condition number is below 30, so that a backward stable solver is off by about 30 * size * eps < 1e-12."""
    M, L, rows = system(size, num_rows)
    L = L.mT.contiguous().mT if by_columns else L
    before = L.clone(), rows.clone()
    solved = solve_rows(rows, L, inverted_blocks(L, block))
    np.testing.assert_allclose(solved.numpy(), np.linalg.solve(M, rows.numpy().T).T, rtol=0, atol=1e-12)
    assert torch.equal(L, before[0]) and torch.equal(rows, before[1])


@pytest.mark.parametrize("size", [128, 129, 300])
def test_float32_is_as_good_as_lapack(size):
    M, L, rows = system(size, 40, torch.float32)
    exact = np.linalg.solve(M, rows.double().numpy().T).T

    def error(found):
        return np.linalg.norm(found.double().numpy() - exact)

    lapack = error(torch.cholesky_solve(rows.T, L).T)
    assert error(solve_rows(rows, L, inverted_blocks(L))) < 3 * lapack  # measured: 0.8 to 1.3 times


@given(st.integers(1, 50), st.integers(1, 60))
def test_the_blocks_are_the_inverses(size, block):
    _, L, _ = system(size, 1)
    for index, inverse in enumerate(inverted_blocks(L, block)):
        part = L[index * block : (index + 1) * block, index * block : (index + 1) * block].numpy()
        expected = np.eye(block)
        expected[: len(part), : len(part)] = np.linalg.inv(part)
        np.testing.assert_allclose(inverse.numpy(), expected, rtol=0, atol=1e-12)
