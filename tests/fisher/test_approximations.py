"""Every approximation: what it keeps of the Fisher, where it is exact, where it is not, and which is nearer than which.

Truths come from the loops of `oracles` or are written out here from the textbook formula; tolerances are relative to the
largest entry, 1e-10 where a system is solved or a spectrum taken on the way.
"""

import pytest
import torch
from cases import CASES, KFAC_DIFFERS, KFAC_IS_EXACT, LIKELIHOODS, Case, case_of, random_case
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import blocks_of, fisher_from_jacobians, jacobian, kfac_blocks, linears, output_fisher, trains_bias
from torch import Tensor, nn

from natgrad_lab import fisher
from natgrad_lab.errors import NotPositiveDefiniteError, NumericalWarning, UnsupportedLayerError
from natgrad_lab.fisher import ESTIMATORS, chunks, dense_fisher, score_pass
from natgrad_lab.fisher.best_kronecker import rearranged_maps
from natgrad_lab.fisher.ekfac import ekfac_from_scores, kfac_basis
from natgrad_lab.models import deep_linear
from natgrad_lab.structures import (
    BlockTridiagonalInverse,
    Dense,
    Diagonal,
    EigenKronecker,
    KhatriRaoRows,
    Kronecker,
    QuasiDiagonal,
    UnitWise,
    arrow_matrix,
    bias_free_damping,
    block_tridiagonal,
    from_state,
    input_damping,
    krylov_solve,
    lanczos,
    leading_eigenpairs,
    ollivier_solve,
    tridiagonal_tikhonov,
)

cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())


def off(found, expected):
    """Largest difference, relative to the largest entry."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


def units_of(model):
    """The slice of each unit in the flat order."""
    places = []
    for layer, block in zip(linears(model), blocks_of(model), strict=True):
        width = (block.stop - block.start) // len(layer.weight)
        places += [slice(start, start + width) for start in range(block.start, block.stop, width)]
    return places


def part(matrix, slices):
    return torch.block_diag(*(matrix[place, place] for place in slices))


def truth(case):
    return fisher_from_jacobians(case.model, case.density, case.inputs)


# ---- shared weights: models whose layers see several positions, and their rows from autograd


class Sequences(nn.Module):
    """A layer on a sequence of length 4, averaged, and a layer on the average."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.unflatten(1, (4, 2)))).mean(1))


def convolutions():
    return nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 2, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3))


def grouped():
    return nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 2, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3))


SHARED = {"sequences": Sequences, "convolution": convolutions, "grouped convolution": grouped}
shared = pytest.mark.parametrize("make", SHARED.values(), ids=SHARED.keys())


def shared_case(make, num_examples=6):
    return case_of(make(), "categorical", num_examples=num_examples, num_inputs=8)


def embedding_case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 3))
    inputs = torch.randint(5, (7, 3))
    return Case(model, LIKELIHOODS["categorical"], inputs, torch.zeros(7, dtype=torch.long))


def exact_blocks(case):
    whole = dense_fisher(*case.data).to_dense()
    return [whole[layer.slice, layer.slice] for layer in score_pass(*case.data).layout.layers]


# ---- the same path for all three types


@pytest.mark.parametrize("fisher_type", ["exact", "monte_carlo", "empirical"])
@pytest.mark.parametrize(
    "name, kept",
    [
        ("block_tridiagonal", None),
        ("best_kronecker", blocks_of),
        ("ekfac", blocks_of),
        ("unit_wise", units_of),
        ("low_rank", None),
        ("krylov", None),
    ],
)
def test_of_one_example_each_is_exact_in_what_it_keeps(name, kept, fisher_type):
    """(The Krylov space of a random vector and one example, K <= 3, is complete after four products.)"""
    case = random_case((3, 4, 2, 3), num_examples=1)
    choices = {"targets": case.targets if fisher_type == "empirical" else None}
    whole, found = (
        estimate(*case.data, fisher_type, **choices, generator=torch.Generator().manual_seed(3)).to_dense()
        for estimate in (dense_fisher, ESTIMATORS[name])
    )
    assert off(found, whole if kept is None else part(whole, kept(case.model))) < 1e-10


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in ("dense", "gram", "implicit")])
def test_none_is_the_whole_fisher(name):
    case = random_case((3, 4, 4, 3), num_examples=40)
    choices = {"rank": 5} if name == "low_rank" else {}
    found = ESTIMATORS[name](*case.data, **choices).to_dense()
    exact = truth(case)
    error = float((found - exact).norm() / exact.norm())
    assert 1e-3 < error < 1.5
    assert torch.linalg.eigvalsh(found)[0] > -1e-12 * exact.norm()


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "implicit"])
def test_float32_is_near_float64(name):
    """Two decimal places for eigenvectors of close eigenvalues, five for the rest."""
    case = random_case((3, 4, 3), num_examples=9)
    double = ESTIMATORS[name](*case.data)
    single = ESTIMATORS[name](case.model.float(), case.likelihood, case.inputs.float())
    assert single.dtype == torch.float32
    tolerance = 1e-4 if name == "ekfac" else 1e-5
    assert off(single.to_dense().double(), double.to_dense()) < tolerance


@pytest.mark.parametrize(
    "name", ["block_tridiagonal", "ekfac", "kfac", "one_sided_input", "one_sided_score", "unit_wise", "quasi_diagonal"]
)
@pytest.mark.parametrize("fisher_type", ["exact", "empirical"])
def test_chunks_of_the_batch_give_the_whole(name, fisher_type, monkeypatch):
    case = random_case((3, 4, 3), num_examples=9)
    once = ESTIMATORS[name](*case.data, fisher_type, targets=case.targets)
    monkeypatch.setattr(chunks, "_SMALL", 2)
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 1)
    seen = []
    monkeypatch.setattr(chunks, "track", lambda items, what: seen.extend(items) or iter(items))
    assert off(ESTIMATORS[name](*case.data, fisher_type, targets=case.targets).to_dense(), once.to_dense()) < 1e-10
    assert len(seen) >= 5  # it was cut


def test_ekfac_in_chunks_sees_the_same_samples_twice(monkeypatch):
    """The trace of EKFAC is that of the samples its variances are taken of, and its basis that of the same samples."""
    case = random_case((3, 4, 3), num_examples=9)
    monkeypatch.setattr(chunks, "_SMALL", 2)
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 1)
    ekfac, kfac, dense = (
        ESTIMATORS[name](*case.data, "monte_carlo", generator=torch.Generator().manual_seed(5))
        for name in ("ekfac", "kfac", "dense")
    )
    assert abs(ekfac.trace() / dense.trace() - 1) < 1e-12
    for block, basis in zip(ekfac.blocks, kfac_basis(kfac).blocks, strict=True):
        assert torch.equal(block.left_vectors, basis.left_vectors)


# ---- unit-wise


@cases
def test_unit_wise_keeps_the_units_blocks(make):
    case = make()
    assert off(fisher.unit_wise_fisher(*case.data).to_dense(), part(truth(case), units_of(case.model))) < 1e-12


def test_unit_wise_is_the_block_diagonal_where_a_layer_has_one_unit():
    case = random_case((3, 1, 1, 1), likelihood="bernoulli")
    blocks = fisher.block_diagonal_fisher(*case.data).to_dense()
    assert off(fisher.unit_wise_fisher(*case.data).to_dense(), blocks) < 1e-12
    wide = random_case((3, 2, 2))
    assert off(fisher.unit_wise_fisher(*wide.data).to_dense(), fisher.block_diagonal_fisher(*wide.data).to_dense()) > 1e-2


@shared
def test_unit_wise_of_shared_weights_keeps_the_units_blocks(make):
    case = shared_case(make)
    found = fisher.unit_wise_fisher(*case.data)
    layers = score_pass(*case.data).layout.layers
    for block, exact, layer in zip(found.blocks, exact_blocks(case), layers, strict=True):
        width = layer.shape[1]
        units = [slice(start, start + width) for start in range(0, layer.size, width)]
        assert off(block.to_dense(), part(exact, units)) < 1e-12


def test_unit_wise_of_an_embedding_keeps_its_entries_blocks():
    case = embedding_case()
    exact = exact_blocks(case)[0]
    entries = [slice(2 * entry, 2 * entry + 2) for entry in range(5)]
    assert off(fisher.unit_wise_fisher(*case.data).blocks[0].to_dense(), part(exact, entries)) < 1e-12


def test_unit_wise_refuses_a_large_layer_without_units(monkeypatch):
    monkeypatch.setattr("natgrad_lab.fisher.unit_wise._LARGEST_SINGLE", 4)
    case = case_of(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)), "categorical")
    with pytest.raises(UnsupportedLayerError, match=r"layer '1' \(LayerNorm\) has no units, and its 8 parameters.*at most 4"):
        fisher.unit_wise_fisher(*case.data)


# ---- quasi-diagonal


def ollivier_by_loops(matrix, model, vector, damping=0.0):
    """The formula unit by unit, from the entries of the whole Fisher."""
    step = torch.zeros_like(vector)
    for unit in units_of(model):
        M, g = matrix[unit, unit] + damping * torch.eye(unit.stop - unit.start), vector[unit]
        M_00, g_0 = M[-1, -1], g[-1]
        bias = g_0 / M_00
        for i in range(len(g) - 1):
            step[unit.start + i] = (g[i] * M_00 - g_0 * M[-1, i]) / (M[i, i] * M_00 - M[-1, i] ** 2)
            bias = bias - M[-1, i] / M_00 * step[unit.start + i]
        step[unit.stop - 1] = bias
    return step


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_undamped_quasi_diagonal_solve_is_the_published_formula(likelihood):
    case = random_case((3, 4, 3), likelihood=likelihood, num_examples=9)
    found, exact = fisher.quasi_diagonal_fisher(*case.data), truth(case)
    g = torch.randn(len(exact))
    assert off(found.solve(g), ollivier_by_loops(exact, case.model, g)) < 1e-10


def test_the_published_damping_is_not_the_exact_one():
    case = random_case((3, 4, 3), num_examples=9)
    found, exact, g = fisher.quasi_diagonal_fisher(*case.data), truth(case), torch.randn(31)
    parts = zip(found.blocks, g.split([block.dim for block in found.blocks]), strict=True)
    published = torch.cat([ollivier_solve(block, x, 0.1) for block, x in parts])
    assert off(published, ollivier_by_loops(exact, case.model, g, 0.1)) < 1e-10
    assert off(found.solve(g, 0.1), published) > 1e-3
    block, x = found.blocks[0], g[: found.blocks[0].dim]
    assert torch.equal(ollivier_solve(block, x), block.solve(x))


@cases
def test_quasi_diagonal_keeps_diagonal_and_bias_rows(make):
    case = make()
    found, exact = fisher.quasi_diagonal_fisher(*case.data).to_dense(), truth(case)
    scale = exact.abs().max()
    assert (found.diagonal() - exact.diagonal()).abs().max() <= 1e-12 * scale
    units = iter(units_of(case.model))
    for layer in linears(case.model):
        for unit in (next(units) for _ in range(len(layer.weight))):
            if trains_bias(layer):
                assert (found[unit, unit.stop - 1] - exact[unit, unit.stop - 1]).abs().max() <= 1e-12 * scale
            else:
                assert torch.equal(found[unit, unit], found[unit, unit].diagonal().diag())


def test_quasi_diagonal_is_exact_for_units_with_one_input_and_a_bias():
    case = random_case((1, 1, 1, 1), likelihood="bernoulli")
    assert off(fisher.quasi_diagonal_fisher(*case.data).to_dense(), fisher.unit_wise_fisher(*case.data).to_dense()) < 1e-12
    wide = random_case((2, 1), likelihood="bernoulli")
    assert off(fisher.quasi_diagonal_fisher(*wide.data).to_dense(), fisher.unit_wise_fisher(*wide.data).to_dense()) > 1e-2


def test_the_inverse_of_a_quasi_diagonal_matrix_is_an_arrow_and_the_arrow_is_no_fisher():
    case = random_case((4, 1), likelihood="bernoulli", num_examples=20)
    block = fisher.quasi_diagonal_fisher(*case.data).blocks[0]
    inverse = block.solve(torch.eye(5))
    between = inverse[:4, :4] - inverse[:4, :4].diagonal().diag()
    assert between.abs().max() < 1e-12 * inverse.abs().max() and inverse[:4, 4].abs().min() > 1e-3
    nearly_constant = QuasiDiagonal(torch.full((1, 4), 1.01), torch.ones(1, 4), torch.ones(1))
    assert torch.linalg.eigvalsh(arrow_matrix(nearly_constant))[0] < -0.5
    assert nearly_constant.eigvalsh()[0] > 0


def test_layers_without_bias_keep_their_diagonal():
    case = random_case((3, 4, 3), bias=False)
    found = fisher.quasi_diagonal_fisher(*case.data)
    assert all(isinstance(block, Diagonal) for block in found.blocks)
    assert torch.equal(found.to_dense(), fisher.diagonal_fisher(*case.data).to_dense())


@shared
def test_quasi_diagonal_of_shared_weights_keeps_diagonal_and_bias_rows(make):
    case = shared_case(make)
    found = fisher.quasi_diagonal_fisher(*case.data)
    for block, exact, layer in zip(found.blocks, exact_blocks(case), score_pass(*case.data).layout.layers, strict=True):
        matrix, width = block.to_dense(), layer.shape[1]
        assert off(matrix.diagonal(), exact.diagonal()) < 1e-12
        for stop in range(width, layer.size + 1, width):
            assert off(matrix[stop - width : stop, stop - 1], exact[stop - width : stop, stop - 1]) < 1e-12


def test_a_quasi_diagonal_step_does_not_depend_on_scale_and_offset_of_the_inputs():
    """a → α a + β with compensated weights: the same function, and the same change of the function."""
    case = random_case((3, 3), likelihood="bernoulli", num_examples=9)
    scale, offset = torch.tensor([3.0, 1e-6, -20.0]), torch.tensor([1.0, 0.0, 5.0])
    other = nn.Linear(3, 3)
    with torch.no_grad():
        other.weight.copy_(case.model[0].weight / scale)
        other.bias.copy_(case.model[0].bias - other.weight @ offset)
    changes = []
    for model, inputs in ((case.model, case.inputs), (other, case.inputs * scale + offset)):
        passed = score_pass(model, case.likelihood, inputs, loss_targets=case.targets)
        step = fisher.quasi_diagonal_fisher(model, case.likelihood, inputs).solve(passed.gradient()).view(3, 4)
        changes.append(inputs @ step[:, :3].T + step[:, 3])
    assert off(changes[1], changes[0]) < 1e-8  # an input of size 1e-6 beside its offset 0, and 20 beside 5: a few digits


def test_entries_of_no_psd_matrix_are_refused():
    with pytest.raises(ValueError, match=r"cross² <= weights · bias; 1 entries are not"):
        QuasiDiagonal(torch.ones(1, 2), torch.tensor([[0.5, 1.1]]), torch.ones(1))


def test_a_weight_that_follows_its_bias_to_rounding_is_singular_and_a_small_one_is_not():
    follows = QuasiDiagonal(torch.tensor([[1 + 2.3e-16, 2.0]]), torch.tensor([[1.0, 0.0]]), torch.ones(1))
    with pytest.raises(NotPositiveDefiniteError, match="smallest pivot is 2.22e-16"):
        follows.solve(torch.ones(3))
    small = QuasiDiagonal(torch.tensor([[1e-40, 2.0]]), torch.zeros(1, 2), torch.ones(1))
    assert off(small.solve(torch.ones(3)), torch.tensor([1e40, 0.5, 1.0])) < 1e-14


@pytest.mark.parametrize("damping", [1e-6, 1.0, 1e3, 1e6])
def test_large_inputs_lose_no_digits_in_a_damped_quasi_diagonal_solve(damping):
    """A backward error of rounding: the residual against ‖M‖ ‖solution‖."""
    M = QuasiDiagonal(torch.tensor([[1e6, 1e-6]]), torch.tensor([[999.0, -1e-4]]), torch.ones(1))
    x = torch.randn(3, 9)
    found = M.solve(x, damping)
    residual = M.to_dense() @ found + damping * found - x
    assert (residual.norm(dim=0) <= 1e-14 * (1e6 + damping) * found.norm(dim=0)).all()


def test_a_unit_that_is_singular_to_rounding_is_refused_though_its_cholesky_passes():
    lucky = torch.tensor([[1.0, 1.0], [1.0, 1 + 2.3e-16]])
    assert not torch.linalg.cholesky_ex(lucky).info
    with pytest.raises(NotPositiveDefiniteError, match="smallest pivot is 2.22e-16.*give damping > 0"):
        UnitWise(torch.stack([torch.eye(2), lucky])).solve(torch.ones(4))


# ---- low rank


def test_low_rank_is_the_nearest_of_its_rank():
    case = random_case((3, 4, 3), num_examples=9)
    exact = truth(case)
    values, vectors = torch.linalg.eigh(exact)
    for rank in (1, 4, 10):
        found = fisher.low_rank_fisher(*case.data, rank=rank)
        assert found.basis.shape == (31, rank) and found.rest == 0
        expected = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
        assert off(found.to_dense(), expected) < 1e-10
        error = (found.to_dense() - exact).norm() ** 2
        assert abs(error / values[:-rank].square().sum() - 1) < 1e-8


def test_low_rank_at_full_rank_is_the_fisher_and_damping_keeps_the_complement():
    case = random_case((3, 4, 3))
    found, exact = fisher.low_rank_fisher(*case.data), truth(case)
    assert off(found.to_dense(), exact) < 1e-10 and found.basis.shape[1] == 10  # 5 examples, C - 1 scores each
    g = torch.randn(31)
    assert off(found.solve(g, 0.1), torch.linalg.solve(exact + 0.1 * torch.eye(31), g)) < 1e-10
    outside = torch.linalg.eigh(exact)[1][:, 0]
    assert off(found.solve(outside, 0.1), outside / 0.1) < 1e-10


def test_low_rank_of_nothing_is_nothing():
    case = random_case((3, 4, 2), likelihood="gaussian")
    perfect = case.model(case.inputs).detach()
    found = fisher.low_rank_fisher(*case.data, "empirical", targets=perfect)
    assert found.basis.shape == (26, 0) and not found.to_dense().any()


@pytest.mark.parametrize("bad", [0, -1])
def test_a_bad_rank_is_refused(bad):
    with pytest.raises(ValueError, match=f"rank must be a positive integer; got {bad}"):
        fisher.low_rank_fisher(*random_case((3, 3)).data, rank=bad)


@pytest.mark.parametrize("formed", [0, 8192], ids=["products", "formed"])
@pytest.mark.parametrize("num_examples", [30, 60], ids=["gram", "fisher"])
def test_low_rank_without_an_eigendecomposition_finds_multiple_eigenvalues(formed, num_examples, monkeypatch):
    """One linear layer and a Gaussian: I ⊗ A, every eigenvalue C = 4 times; 120 rows or 240, 164 parameters."""
    monkeypatch.setattr("natgrad_lab.fisher.low_rank._LARGEST_EIGEN", 0)
    monkeypatch.setattr("natgrad_lab.fisher.low_rank._LARGEST_FORMED", formed)
    case = random_case((40, 4), likelihood="gaussian", num_examples=num_examples)
    exact = truth(case)
    found = fisher.low_rank_fisher(*case.data, rank=8)
    assert found.basis.shape == (164, 8)
    assert off(found.eigenvalues.flip(0), torch.linalg.eigvalsh(exact)[-8:]) < 1e-10
    assert off(exact @ found.basis, found.basis * found.eigenvalues) < 1e-8
    assert off(found.basis.T @ found.basis, torch.eye(8)) < 1e-12


def test_eigenpairs_that_do_not_converge_are_stated(monkeypatch):
    monkeypatch.setattr("natgrad_lab.structures.krylov._RESTARTS", 1)
    with pytest.warns(NumericalWarning, match=r"the 3 leading eigenpairs have a residual of \d\.\de-0\d, relative"):
        leading_eigenpairs(Dense(torch.diag(1 + torch.arange(500.0) / 1e4)), 3)


# ---- K-FAC's eigenbasis


def ekfac_by_loops(case):
    """Each layer's mean of (u_Gᵀ DW u_A)² over examples, weighted targets' scores and basis vectors."""
    rows = score_rows(case)
    blocks = []
    for (G, A), block in zip(kfac_blocks(case.model, case.density, case.inputs), blocks_of(case.model), strict=True):
        U = torch.kron(torch.linalg.eigh(G)[1], torch.linalg.eigh(A)[1])
        blocks.append((U * ((rows[:, block] @ U) ** 2).sum(0)) @ U.T)
    return torch.block_diag(*blocks)


def score_rows(case):
    """Rows r with Σ r rᵀ = F, (N C, P), from the loops' Jacobian and any root of the output Fisher."""
    rows = []
    for example, J in zip(case.inputs, jacobian(case.model, case.inputs), strict=True):
        values, vectors = torch.linalg.eigh(output_fisher(case.density, case.model(example[None])[0].detach()))
        rows.append((vectors * values.clamp(min=0).sqrt()).T @ J / len(case.inputs) ** 0.5)
    return torch.cat(rows)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_ekfac_is_the_loops(likelihood):
    case = random_case((3, 4, 3), likelihood=likelihood, num_examples=12)
    assert off(fisher.ekfac_fisher(*case.data).to_dense(), ekfac_by_loops(case)) < 1e-10


@pytest.mark.parametrize("make", KFAC_IS_EXACT.values(), ids=KFAC_IS_EXACT.keys())
@pytest.mark.parametrize("name", ["ekfac", "best_kronecker"])
def test_exact_where_kfac_is(make, name):
    case = make()
    assert off(ESTIMATORS[name](*case.data).to_dense(), part(truth(case), blocks_of(case.model))) < 1e-10


@pytest.mark.parametrize("make", KFAC_DIFFERS.values(), ids=KFAC_DIFFERS.keys())
@pytest.mark.parametrize("name", ["ekfac", "best_kronecker"])
def test_not_exact_where_kfac_is_not(make, name):
    case = make()
    assert off(ESTIMATORS[name](*case.data).to_dense(), part(truth(case), blocks_of(case.model))) > 1e-4


@cases
def test_ekfac_has_the_trace_and_the_diagonal_in_its_basis(make):
    case = make()
    found, exact = fisher.ekfac_fisher(*case.data), truth(case)
    assert abs(found.trace() - exact.trace()) <= 1e-10 * exact.trace()
    for block, place in zip(found.blocks, blocks_of(case.model), strict=True):
        U = torch.kron(block.left_vectors, block.right_vectors)
        diagonal = (U.T @ exact[place, place] @ U).diagonal()
        assert (block.eigenvalues.flatten() - diagonal).abs().max() <= 1e-10 * exact.abs().max()


def test_the_trace_of_kfac_is_another():
    case = random_case((3, 4, 3))
    assert abs(fisher.kfac_fisher(*case.data).trace() / truth(case).trace() - 1) > 1e-3


def test_ekfac_is_ambiguous_where_a_factor_repeats_an_eigenvalue():
    """Inputs with A = I: any rotation of its eigenvectors is legitimate, gives the same K-FAC and another EKFAC."""
    case = random_case((3, 4, 3), bias=False, num_examples=6)
    white = torch.linalg.qr(case.inputs).Q * 6**0.5
    scores = score_pass(case.model, case.likelihood, white)
    basis = kfac_basis(fisher.kfac_fisher(case.model, case.likelihood, white))
    first = basis.blocks[0]
    turned = EigenKronecker(first.left_vectors, torch.linalg.qr(torch.randn(3, 3)).Q, first.eigenvalues)
    other = type(basis)((turned, *basis.blocks[1:]))
    assert off(other.to_dense(), basis.to_dense()) < 1e-10
    one, two = (ekfac_from_scores(scores, basis=each).to_dense() for each in (basis, other))
    assert off(two, one) > 1e-2 and abs(two.trace() / one.trace() - 1) < 1e-12


@shared
@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
def test_ekfac_of_shared_weights_sums_over_positions_before_it_squares(make, weight_sharing):
    case = shared_case(make)
    found = fisher.ekfac_fisher(*case.data, weight_sharing=weight_sharing)
    kfac = fisher.kfac_fisher(*case.data, weight_sharing=weight_sharing)
    for block, rough, exact in zip(found.blocks, kfac.blocks, exact_blocks(case), strict=True):
        for inner in getattr(block, "blocks", [block]):
            assert isinstance(inner, EigenKronecker)
        assert abs(block.trace() / exact.trace() - 1) < 1e-12
        assert (block.to_dense() - exact).norm() < (rough.to_dense() - exact).norm()
    U = torch.kron(found.blocks[-1].left_vectors, found.blocks[-1].right_vectors)
    assert off((U.T @ exact @ U).diagonal(), found.blocks[-1].eigenvalues.flatten()) < 1e-10


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
def test_ekfac_of_an_embedding_is_diagonal_in_its_basis(weight_sharing):
    case = embedding_case()
    block, exact = fisher.ekfac_fisher(*case.data, weight_sharing=weight_sharing).blocks[0], exact_blocks(case)[0]
    U = torch.kron(block.left_vectors, block.right_vectors)
    assert off(block.eigenvalues.flatten(), (U.T @ exact @ U).diagonal()) < 1e-10


# ---- the nearest Kronecker product


def van_loan(block, m, n):
    """Distance and matrix of the nearest Kronecker product, by the singular values of the rearranged block."""
    rearranged = block.view(m, n, m, n).permute(0, 2, 1, 3).reshape(m * m, n * n)
    U, s, V = torch.linalg.svd(rearranged)
    return s[1:].norm(), s[0] * torch.kron(U[:, 0].view(m, m), V[0].view(n, n))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_best_kronecker_is_van_loans(likelihood):
    case = random_case((3, 4, 3), likelihood=likelihood, num_examples=9)
    found = fisher.best_kronecker_fisher(*case.data)
    for block, exact in zip(found.blocks, exact_blocks(case), strict=True):
        distance, nearest = van_loan(exact, len(block.left), len(block.right))
        assert off(block.to_dense(), nearest) < 1e-10
        assert abs((block.to_dense() - exact).norm() - distance) < 1e-10 * exact.norm()
        assert min(torch.linalg.eigvalsh(block.left)[0], torch.linalg.eigvalsh(block.right)[0]) > -1e-14 * exact.norm()


def test_best_kronecker_scales_its_input_factor_as_kfac():
    case = random_case((3, 4, 3))
    pairs = zip(fisher.best_kronecker_fisher(*case.data).blocks, fisher.kfac_fisher(*case.data).blocks, strict=True)
    assert all(abs(best.right.trace() / kfac.right.trace() - 1) < 1e-12 for best, kfac in pairs)


@pytest.mark.parametrize("make", [*SHARED.values(), None], ids=[*SHARED, "embedding"])
def test_best_kronecker_of_shared_weights_is_van_loans(make):
    case = embedding_case() if make is None else shared_case(make)
    found = fisher.best_kronecker_fisher(*case.data)
    for block, exact in zip(found.blocks, exact_blocks(case), strict=True):
        start = 0
        for inner in getattr(block, "blocks", [block]):  # a grouped convolution's groups
            place = slice(start, start + inner.dim)
            distance, _ = van_loan(exact[place, place], len(inner.left), len(inner.right))
            assert abs((inner.to_dense() - exact[place, place]).norm() - distance) < 1e-9 * exact.norm()
            start += inner.dim


def test_both_ways_to_the_rearranged_products_agree():
    rows = KhatriRaoRows(torch.randn(7, 3), torch.randn(2, 7, 4))
    A, G = torch.randn(3, 3), torch.randn(4, 4)
    fast, slow = (f(rows, (4, 3), 7) for f in (rearranged_maps, rearranged_maps.registry[object]))
    assert off(fast[0](A), slow[0](A)) < 1e-12 and off(fast[1](G), slow[1](G)) < 1e-12


def test_a_nearest_product_that_does_not_converge_is_stated(monkeypatch):
    monkeypatch.setattr("natgrad_lab.fisher.best_kronecker._STEPS", 2)
    with pytest.warns(NumericalWarning, match=r"the nearest Kronecker product of layer '\d' still changed by \d.*after 2 iter"):
        fisher.best_kronecker_fisher(*random_case((3, 4, 3), num_examples=9).data)


# ---- which is nearer than which


@settings(max_examples=10)  # of eight estimates each
@given(
    st.fixed_dictionaries(
        {
            "sizes": st.lists(st.integers(1, 4), min_size=2, max_size=4),
            "activation": st.sampled_from(["tanh", "relu", "sigmoid"]),
            "bias": st.booleans(),
            "likelihood": st.sampled_from(list(LIKELIHOODS)),
            "num_examples": st.integers(1, 9),
            "seed": st.integers(0, 1000),
        }
    )
)
def test_the_ladder_descends(choices):
    """In the Frobenius norm, each rung against those it is a special case of; K-FAC lies above both of its betters."""
    case = random_case(**choices)
    exact = truth(case)
    names = ("block_diagonal", "best_kronecker", "ekfac", "kfac", "unit_wise", "diagonal", "low_rank", "dense")
    error = {name: float((ESTIMATORS[name](*case.data).to_dense() - exact).norm()) for name in names}
    slack = 1e-9 * float(exact.norm()) + 1e-300
    for nearer, farther in (
        ("dense", "low_rank"),
        ("block_diagonal", "best_kronecker"),
        ("block_diagonal", "ekfac"),
        ("best_kronecker", "kfac"),
        ("ekfac", "kfac"),
        ("block_diagonal", "unit_wise"),
        ("unit_wise", "diagonal"),
    ):
        assert error[nearer] <= error[farther] + slack, (nearer, farther)


def test_the_ladder_descends_strictly_on_a_network():
    case = random_case((3, 4, 4, 3), num_examples=30)
    exact = truth(case)
    chain = ("block_tridiagonal", "block_diagonal", "best_kronecker", "kfac", "one_sided_input", "diagonal")
    errors = [float((ESTIMATORS[name](*case.data).to_dense() - exact).norm()) for name in chain]
    assert errors == sorted(errors) and min(b - a for a, b in zip(errors, errors[1:], strict=False)) > 1e-3 * exact.norm()


# ---- block-tridiagonal


def khatri_rao_fisher(case):
    """F̃: E[s_i s_jᵀ] ⊗ E[a_i a_jᵀ] for every pair of layers, from formed rows."""
    layers = score_pass(*case.data).layers
    N = len(case.inputs)
    inputs, scores = [each.rows.inputs for each in layers], [each.rows.scores.flatten(0, 1) for each in layers]
    pairs = list(zip(scores, inputs, strict=True))
    return torch.cat([torch.cat([torch.kron(s.T @ t / N, x.T @ y / N) for t, y in pairs], 1) for s, x in pairs])


def beyond_neighbours(matrix, slices):
    pairs = [(a, b) for i, a in enumerate(slices) for b in slices[i + 2 :]]
    return max(float(matrix[a, b].abs().max()) for a, b in pairs)


@pytest.mark.parametrize("num_examples", [1, 4, 30])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_block_tridiagonal_keeps_the_tridiagonal_blocks(likelihood, num_examples):
    """Also where factors are singular: few examples, and the softmax's last layer."""
    case = random_case((3, 4, 2, 3), likelihood=likelihood, num_examples=num_examples)
    found, exact = fisher.block_tridiagonal_fisher(*case.data).to_dense(), khatri_rao_fisher(case)
    slices = blocks_of(case.model)
    for i, a in enumerate(slices):
        for b in slices[max(0, i - 1) : i + 2]:
            assert (found[a, b] - exact[a, b]).abs().max() < 1e-10 * exact.abs().max()


def test_the_inverse_of_the_damped_chain_is_block_tridiagonal():
    case = random_case((3, 4, 2, 4, 3), num_examples=30)
    found = tridiagonal_tikhonov(fisher.block_tridiagonal_fisher(*case.data), 1e-2)
    inverse, slices = torch.linalg.inv(found.to_dense()), blocks_of(case.model)
    assert beyond_neighbours(inverse, slices) < 1e-10 * inverse.abs().max()
    assert beyond_neighbours(found.to_dense(), slices) > 1e-3 * found.to_dense().abs().max()
    g = torch.randn(found.dim, 2)
    assert off(found.solve(g), inverse @ g) < 1e-10
    assert off(found.power(-1).matmul(g), inverse @ g) < 1e-10
    assert abs(found.logdet() - torch.logdet(found.to_dense())) < 1e-8


def test_the_chain_is_the_published_recipe():
    """Ψ, Σ, Ξ, Λ written out with dense matrices and explicit inverses, from the factors damped as published."""
    case = random_case((3, 4, 2, 3), num_examples=30)
    undamped = fisher.block_tridiagonal_fisher(*case.data)
    found, slices = tridiagonal_tikhonov(undamped, 0.04), blocks_of(case.model)
    tilde = khatri_rao_fisher(case)
    for (G, A), place in zip(kfac_blocks(case.model, case.density, case.inputs), slices, strict=True):
        pi = ((A.trace() / len(A)) / (G.trace() / len(G))).sqrt()
        tilde[place, place] = torch.kron(G + 0.2 / pi * torch.eye(len(G)), A + 0.2 * pi * torch.eye(len(A)))
    Xi, precisions = torch.eye(len(tilde)), []
    for a, b in zip(slices, slices[1:], strict=False):
        psi = tilde[a, b] @ torch.linalg.inv(tilde[b, b])
        Xi[a, b] = -psi
        precisions.append(torch.linalg.inv(tilde[a, a] - psi @ tilde[b, b] @ psi.T))
    precisions.append(torch.linalg.inv(tilde[slices[-1], slices[-1]]))
    inverse, g = Xi.T @ torch.block_diag(*precisions) @ Xi, torch.randn(len(tilde))
    assert off(found.solve(g), inverse @ g) < 1e-10
    assert off(found.to_dense() @ inverse, torch.eye(len(tilde))) < 1e-10


@pytest.mark.parametrize(
    "make",
    [
        lambda: random_case((3, 4, 2, 3), num_examples=1),
        lambda: random_case((3, 4, 4, 2), "relu", likelihood="bernoulli", num_examples=1),
        lambda: case_of(deep_linear((3, 4, 2, 4, 3)), "gaussian", num_examples=9),
        lambda: case_of(deep_linear((3, 4, 4, 3), bias=True), "gaussian", num_examples=9),
    ],
    ids=["one example", "one example, relu", "deep linear Gaussian", "deep linear Gaussian with bias"],
)
def test_block_tridiagonal_is_the_whole_fisher(make):
    case = make()
    assert off(fisher.block_tridiagonal_fisher(*case.data).to_dense(), truth(case)) < 1e-10
    assert off(fisher.kfac_fisher(*case.data).to_dense(), truth(case)) > 1e-2


@pytest.mark.parametrize("name", KFAC_DIFFERS)
def test_block_tridiagonal_is_not_the_whole_fisher_otherwise(name):
    case = KFAC_DIFFERS[name]()
    assert off(fisher.block_tridiagonal_fisher(*case.data).to_dense(), truth(case)) > 1e-3


def chained_moments(sizes, leak=0.0):
    """Second moments of a Gaussian chain x_3 → x_2 → x_1; `leak` lets x_1 see x_3 directly."""
    z = torch.linalg.qr(torch.randn(20, sum(sizes))).Q.split(list(sizes), 1)  # uncorrelated to rounding
    last = z[2]
    middle = last @ torch.randn(sizes[2], sizes[1]) + z[1]
    first = middle @ torch.randn(sizes[1], sizes[0]) + z[0] + leak * last @ torch.randn(sizes[2], sizes[0])
    return [[x.T @ y for y in (first, middle, last)] for x in (first, middle, last)]


@pytest.mark.parametrize("leak", [0.0, 0.5])
def test_gradients_that_form_a_chain_are_represented_exactly(leak):
    """Inputs and scores Gaussian chains: F̃ is F̂, its corner too. If the first layer sees the last one directly, it is not."""
    G, A = chained_moments((2, 3, 2), leak), chained_moments((3, 2, 2))
    tilde = torch.cat([torch.cat([torch.kron(G[i][j], A[i][j]) for j in range(3)], 1) for i in range(3)])
    diagonals = [tuple(M[i][i] for i in range(3)) for M in (G, A)]
    crosses = [tuple(M[i][i + 1] for i in range(2)) for M in (G, A)]
    found = BlockTridiagonalInverse(*diagonals, *crosses).to_dense()
    corner = slice(0, 6), slice(12, 16)
    if leak:
        assert off(found[corner], tilde[corner]) > 1e-2
        found[corner], found[corner[::-1]] = tilde[corner], tilde[corner[::-1]]
    assert off(found, tilde) < 1e-10


def test_a_damped_solve_with_the_chain_is_exact_at_any_size(monkeypatch):
    case = random_case((3, 4, 2, 3), num_examples=30)
    found, g = fisher.block_tridiagonal_fisher(*case.data), torch.randn(35, 2)
    expected = torch.linalg.solve(found.to_dense() + 0.01 * torch.eye(found.dim), g[: found.dim])
    assert off(found.solve(g[: found.dim], 0.01), expected) < 1e-10
    monkeypatch.setattr(block_tridiagonal, "LARGEST_DENSE", 10)
    large = fisher.block_tridiagonal_fisher(*case.data)
    assert off(large.solve(g[: found.dim], 0.01), expected) < 1e-10
    narrow = large.map(lambda t: t.float())
    assert off(narrow.solve(g[: found.dim].float(), 0.01).double(), expected) < 1e-5
    assert torch.equal(large.solve(torch.zeros(35), 0.01), torch.zeros(35))
    monkeypatch.setattr(block_tridiagonal, "_ROUNDS", 1)
    with pytest.warns(NumericalWarning, match=r"at damping 0.01 is solved to a relative residual of \d.*; 1e-12 was aimed at"):
        large.solve(g, 0.01)
    with pytest.raises(ValueError, match=r"needs the 35 x 35 matrix formed, and at most 10 rows are.*tridiagonal_tikhonov"):
        large.power(0.5)
    assert off(large.matmul(g[: found.dim]), found.to_dense() @ g[: found.dim]) < 1e-10


@pytest.mark.parametrize("make", [
    lambda: random_case((3, 4, 3), num_examples=30),
    lambda: case_of(deep_linear((3, 3, 3)), "gaussian", num_examples=30),
], ids=["softmax", "linear hidden units"])  # fmt: skip
def test_a_singular_chain_is_refused_undamped_and_solved_damped(make):
    case = make()
    found = fisher.block_tridiagonal_fisher(*case.data)
    g = torch.randn(found.dim)
    for attempt in (lambda: found.solve(g), found.logdet, lambda: found.power(-1)):
        with pytest.raises(NotPositiveDefiniteError, match=r"system at damping 0 .*smallest .*give damping > 0"):
            attempt()
    damped = tridiagonal_tikhonov(found, 1e-3)
    assert "factored damping 0.001" in repr(damped)
    assert off(damped.matmul(damped.solve(g)), g) < 1e-9
    assert off(found.solve(g, 1e-3), torch.linalg.solve(found.to_dense() + 1e-3 * torch.eye(len(g)), g)) < 1e-9


def test_a_damped_chain_in_float32_solves_where_its_decomposition_alone_could_not_tell_it_from_a_singular_one():
    case = random_case((40, 8, 3), num_examples=30)  # fewer examples than inputs: A of the first layer is singular
    found = fisher.block_tridiagonal_fisher(*case.data)
    damping = 1e-10  # the smallest eigenvalue of a factor is 2e-5 of the largest; ten rounding levels are 5e-5
    noise = lambda t: 1e-7 * torch.rand_like(t) * t.abs().max()  # noqa: E731  (symmetric to rounding of float32 only)
    damped = tridiagonal_tikhonov(found.map(lambda t: (t + noise(t)).float()), damping)
    unknowing = BlockTridiagonalInverse(damped.left, damped.right, damped.left_cross, damped.right_cross)
    with pytest.raises(NotPositiveDefiniteError, match="singular to working precision"):
        unknowing.solve(torch.ones(found.dim, dtype=torch.float32))
    g = torch.randn(found.dim)
    exact = tridiagonal_tikhonov(found, damping)
    assert off(damped.solve(g.float()).double(), exact.solve(g)) < 1e-2  # rounding of float32 and that noise, over 2e-5
    assert off(damped.power(-1).matmul(g.float()).double(), exact.solve(g)) < 1e-2
    assert float(damped.logdet()) == pytest.approx(float(exact.logdet()), rel=1e-4)  # float32's sum of logarithms
    assert off(from_state(damped.state()).solve(g.float()), damped.solve(g.float())) == 0


def test_a_chain_whose_damping_is_below_the_rounding_of_its_factors_is_refused():
    found = fisher.block_tridiagonal_fisher(*random_case((40, 8, 3), num_examples=30).data).map(Tensor.float)
    with pytest.raises(NotPositiveDefiniteError, match=r"rounding \(float32\) has eaten the damping.*use float64"):
        tridiagonal_tikhonov(found, 1e-24).solve(torch.randn(found.dim, dtype=torch.float32))


def test_factored_damping_of_the_chain_leaves_the_cross_factors():
    found = fisher.block_tridiagonal_fisher(*random_case((3, 4, 3)).data)
    damped = tridiagonal_tikhonov(found, 0.1)
    assert all(map(torch.equal, damped.left_cross + damped.right_cross, found.left_cross + found.right_cross))
    assert not torch.equal(damped.left[0], found.left[0])
    one, two = damped.to_dense(), found.to_dense() + 0.1 * torch.eye(found.dim)
    assert off(one, two) > 1e-2  # not F̂ + λI


@shared
def test_block_tridiagonal_refuses_shared_weights_by_name(make):
    with pytest.raises(UnsupportedLayerError, match=r"no rule for layer '(1|first)' \((Conv1d|Linear)\).*several positions"):
        fisher.block_tridiagonal_fisher(*shared_case(make).data)


# ---- one-sided


def matrices_of(found, vector):
    """The layers' parts of a vector as matrices [W | b]."""
    parts = vector.split([block.dim for block in found.blocks])
    return [part.view(len(block.left), -1) for part, block in zip(parts, found.blocks, strict=True)]


def test_the_input_side_is_what_prong_does():
    """Centre and whiten the inputs by Σ + εI, step in the new coordinates, come back: no scores, bias not damped."""
    case = random_case((3, 4, 3), num_examples=20)
    found = fisher.one_sided_input_fisher(*case.data, scale="one")
    passed = score_pass(*case.data, loss_targets=case.targets)
    for epsilon in (0.0, 0.3):
        damped = type(found)(tuple(bias_free_damping(block, epsilon) for block in found.blocks))
        steps = matrices_of(found, damped.solve(passed.gradient()))
        for step, gradient, layer in zip(steps, matrices_of(found, passed.gradient()), passed.layers, strict=True):
            a = layer.rows.inputs[:, :-1]
            mean, covariance = a.mean(0), (a - a.mean(0)).T @ (a - a.mean(0)) / 20
            weights, bias = gradient[:, :-1], gradient[:, -1]
            canonical = (weights - torch.outer(bias, mean)) @ torch.linalg.inv(covariance + epsilon * torch.eye(len(mean)))
            assert off(step[:, :-1], canonical) < 1e-10
            assert off(step[:, -1], bias - canonical @ mean) < 1e-10


def test_the_input_side_is_what_sngd_does():
    """Gradient descent on W' = W A_λ^½, with A_λ held fixed, steps W by V A_λ⁻¹."""
    case = random_case((3, 4, 3), num_examples=20)
    found = fisher.one_sided_input_fisher(*case.data, scale="one")
    gradient = score_pass(*case.data, loss_targets=case.targets).gradient()
    damped = type(found)(tuple(input_damping(block, 0.2) for block in found.blocks))
    steps, gradients = matrices_of(found, damped.solve(gradient)), matrices_of(found, gradient)
    for step, V, block in zip(steps, gradients, damped.blocks, strict=True):
        inverse_root = Dense(block.right).power(-0.5).to_dense()
        assert off(step, V @ inverse_root @ inverse_root) < 1e-10
    exact = found.solve(gradient, 0.2)  # G = I: damping the factor is damping the product
    assert off(damped.solve(gradient), exact) < 1e-10


def test_one_sided_factors_are_kfacs_with_the_other_side_white():
    case = random_case((3, 4, 3), num_examples=9)
    pairs = zip(
        fisher.kfac_fisher(*case.data).blocks,
        fisher.one_sided_input_fisher(*case.data).blocks,
        fisher.one_sided_score_fisher(*case.data).blocks,
        strict=True,
    )
    for kfac, inputs, scores in pairs:
        assert torch.equal(inputs.right, kfac.right) and torch.equal(scores.left, kfac.left)
        for side in (inputs, scores):
            assert abs(side.trace() / kfac.trace() - 1) < 1e-12 and off(side.to_dense(), kfac.to_dense()) > 1e-2
        assert off(inputs.left, torch.eye(len(inputs.left)) * inputs.left[0, 0]) == 0
        assert off(scores.right, torch.eye(len(scores.right)) * scores.right[0, 0]) == 0


def test_the_input_side_is_kfac_for_white_scores():
    """One linear layer and a Gaussian: G = I / σ²."""
    case = random_case((3, 4), likelihood="gaussian")
    assert off(fisher.one_sided_input_fisher(*case.data).to_dense(), truth(case)) < 1e-12
    other = random_case((3, 4), likelihood="bernoulli")
    assert off(fisher.one_sided_input_fisher(*other.data).to_dense(), truth(other)) > 1e-3


def test_an_embedding_is_whitened_by_its_frequencies():
    """Its block is A ⊗ G: the sides are the other way round."""
    case = embedding_case()
    block = fisher.one_sided_input_fisher(*case.data, scale="one").blocks[0]
    counts = torch.bincount(case.inputs.flatten(), minlength=5) / case.inputs.numel()
    assert off(block.left, counts.diag()) < 1e-12 and torch.equal(block.right, torch.eye(2))


def test_a_bad_scale_is_refused():
    with pytest.raises(ValueError, match="no scale 'unit'.*trace, one"):
        fisher.one_sided_input_fisher(*random_case((3, 3)).data, scale="unit")


# ---- a few products


def conjugate_gradients(matrix, b, steps):
    x, r = torch.zeros_like(b), b.clone()
    p = r.clone()
    for _ in range(steps):
        alpha = (r @ r) / (p @ matrix @ p)
        x, new = x + alpha * p, r - alpha * matrix @ p
        p, r = new + (new @ new) / (r @ r) * p, new
    return x


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_krylov_solves_as_conjugate_gradients_do_at_every_damping(steps):
    case = random_case((3, 4, 3), num_examples=9)
    exact = truth(case)
    gradient = score_pass(*case.data, loss_targets=case.targets).gradient()
    found = fisher.krylov_fisher(*case.data, targets=case.targets, steps=steps)  # starts from that gradient
    for damping in (1e-3, 0.1, 10.0):
        expected = conjugate_gradients(exact + damping * torch.eye(31), gradient, steps)
        assert off(found.solve(gradient, damping), expected) < 1e-8
        assert off(krylov_solve(Dense(exact), gradient, damping, steps), expected) < 1e-8
    assert f"{steps} products from the gradient" in repr(found)


def test_krylov_is_for_its_own_right_hand_side():
    case = random_case((3, 4, 3), num_examples=9)
    exact, (g, h) = Dense(truth(case)), torch.randn(2, 31)
    found = fisher.krylov_fisher(*case.data, steps=4, start=g)
    assert off(found.solve(g, 0.01), krylov_solve(exact, g, 0.01, 4)) < 1e-8
    assert off(found.solve(h, 0.01), krylov_solve(exact, h, 0.01, 4)) > 1e-2
    both = krylov_solve(exact, g + h, 0.01, 4)
    assert off(krylov_solve(exact, g, 0.01, 4) + krylov_solve(exact, h, 0.01, 4), both) > 1e-3  # not linear
    stacked = krylov_solve(exact, torch.stack([g, h], 1), 0.01, 4)
    assert off(stacked[:, 1], krylov_solve(exact, h, 0.01, 4)) < 1e-10


def test_krylov_is_exact_once_it_holds_the_range():
    case = random_case((3, 4, 3))
    exact, g = truth(case), torch.randn(31)
    found = fisher.krylov_fisher(*case.data, steps=31, start=g)
    assert off(found.to_dense(), exact) < 1e-8 and found.basis.shape[1] <= 12  # rank 10, g, and one of rounding
    assert off(krylov_solve(Dense(exact), g, 0.1, 31), torch.linalg.solve(exact + 0.1 * torch.eye(31), g)) < 1e-8


def test_ritz_values_interlace_from_below():
    M = torch.diag(torch.tensor([5.0, 4, 3, 2, 1]))
    space = lanczos(Dense(M), torch.ones(5), 3)
    ritz, exact = space.eigenvalues, M.diagonal()
    assert (ritz <= exact[:3] + 1e-12).all() and (ritz >= exact[2:] - 1e-12).all()
    assert torch.linalg.eigvalsh(M - space.to_dense())[0] < 0  # M is not above V (VᵀMV) Vᵀ as a matrix


def test_of_nothing_a_krylov_space_is_empty():
    space = lanczos(Dense(torch.eye(3)), torch.zeros(3), 2)
    assert space.basis.shape == (3, 0) and not space.to_dense().any()
    assert torch.equal(krylov_solve(Dense(torch.eye(3)), torch.zeros(3), 0.1, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="steps must be a positive integer; got 0"):
        lanczos(Dense(torch.eye(3)), torch.ones(3), 0)


def test_layers_without_kronecker_structure_keep_their_exact_block():
    case = case_of(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)), "categorical", num_examples=9)
    exact = exact_blocks(case)[1]
    for name in ("ekfac", "best_kronecker", "one_sided_input", "one_sided_score", "unit_wise"):
        assert off(ESTIMATORS[name](*case.data).blocks[1].to_dense(), exact) < 1e-12, name
    diagonal = fisher.quasi_diagonal_fisher(*case.data).blocks[1].to_dense()
    assert off(diagonal, exact.diagonal().diag()) < 1e-12
    assert isinstance(fisher.kfac_fisher(*case.data).blocks[0], Kronecker)


def test_targets_may_be_left_out_of_a_krylov_start():
    case = random_case((3, 4, 3))
    assert "random vector" in repr(fisher.krylov_fisher(*case.data))
    assert "the gradient" in repr(fisher.krylov_fisher(*case.data, "empirical", targets=case.targets))
