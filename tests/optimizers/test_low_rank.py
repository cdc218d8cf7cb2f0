"""K-FAC's steps where inverses are not formed and gradients go by rows: the same steps, and the same records."""

import copy
import math

import pytest
import torch
from cases import random_case
from torch.nn import functional

from natgrad_lab.fisher.scores import loss_pass, score_pass
from natgrad_lab.optimizers import METHODS, damping, low_rank, natural_gradient
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.structures import FormedKroneckerInverse, Kronecker, KroneckerInverse, kronecker_inverse


@pytest.fixture(params=["formed", "formed when used", "substituted in blocks", "substituted"])
def kind(request, monkeypatch):
    """All inverses formed, or none, and then every way of substitution; the kind of a layer's inverse."""
    if request.param == "formed":
        monkeypatch.setattr(damping, "_FORMED", 10**6)
        return FormedKroneckerInverse
    monkeypatch.setattr(damping, "_FORMED", 1)
    if request.param != "formed when used":
        monkeypatch.setattr(kronecker_inverse, "BLOCK", 0)
        monkeypatch.setattr(kronecker_inverse, "_FEW", 0 if request.param == "substituted in blocks" else 10**6)
    return KroneckerInverse


@pytest.fixture
def products(monkeypatch):
    """How often rows were multiplied with a factor of the Fisher."""
    seen, plain = [], Kronecker.right_rows

    def noted(self, rows):
        seen.append(id(self))
        return plain(self, rows)

    monkeypatch.setattr(Kronecker, "right_rows", noted)
    return seen


def vector(model):
    return ParameterLayout(model).parameter_vector()


def dense_step(optimizer, slope, lam, inverted=None):
    """δ and F by dense matrices, from the statistics that the optimizer holds, or that its inverse was made from."""
    parts = []
    for block in (inverted or optimizer.fisher).blocks:
        G, A = block.left, block.right
        pi = math.sqrt((A.trace() / len(A)) / (G.trace() / len(G)))
        root = math.sqrt(lam)
        G, A = G + root / pi * torch.eye(len(G)), A + pi * root * torch.eye(len(A))
        parts.append(torch.kron(G, A))
    return torch.linalg.solve(torch.block_diag(*parts), slope), optimizer.fisher.to_dense()


@pytest.mark.parametrize("num_examples", [1, 3, 20])
@pytest.mark.parametrize("lam", [1e-3, 1.0, 1e4])
def test_steps_and_records_equal_the_dense_formulas(kind, num_examples, lam):
    """Fewer examples than units, and more. At λ = 1e4 a difference would have lost four digits, and is not taken."""
    case = random_case((9, 8, 7, 3), num_examples=num_examples)
    optimizer = METHODS["kfac"](case.model, case.likelihood, lr=0.1, damping=lam, fisher_type="exact")
    for _ in range(2):
        before = vector(case.model)
        optimizer_gradient = optimizer._evaluate(case.inputs, case.targets).gradient
        record = optimizer.step(case.inputs, case.targets)
        assert all(isinstance(block, kind) for block in optimizer.inverse.blocks)
        direction, F = dense_step(optimizer, optimizer_gradient, lam)
        update = vector(case.model) - before
        assert (update + 0.1 * direction).norm() < 1e-9 * update.norm() + 1e-15  # the last: parameters near 1 are rounded
        kl = 0.01 * float(direction @ F @ direction) / 2
        assert math.isclose(record.kl, kl, rel_tol=1e-9)
        assert math.isclose(record.predicted_decrease, 0.1 * float(optimizer_gradient @ direction) - kl, rel_tol=1e-9)


@pytest.mark.parametrize("num_examples", [2, 20])
@pytest.mark.parametrize("periods", [(1, 3), (3, 3), (2, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("lam", [1e-1, 1e4])
def test_kept_inverses_and_statistics_give_the_dense_formulas_too(num_examples, periods, lam):
    """The inverse may be older than the Fisher, and the batch of a step another than the Fisher's: the direction is of the
    former, the record's KL of the latter. Layers with more units than examples go by rows, at any step.
    """
    case = random_case((9, 8, 7, 3), num_examples=2 * num_examples)
    choices = {"fisher_type": "exact", "update_every": periods[0], "invert_every": periods[1]}
    optimizer = METHODS["kfac"](case.model, case.likelihood, lr=0.1, damping=lam, **choices)
    inverted = None
    for step in range(7):
        half = slice(0, num_examples) if step % 2 else slice(num_examples, None)
        inputs, targets = case.inputs[half], case.targets[half]
        kept, before = optimizer.inverse, vector(case.model)
        slope = score_pass(case.model, case.likelihood, inputs, None, loss_targets=targets).gradient()
        record = optimizer.step(inputs, targets)
        if optimizer.inverse is not kept:
            inverted = optimizer.fisher
        direction, F = dense_step(optimizer, slope, lam, inverted)
        update = vector(case.model) - before
        assert (update + 0.1 * direction).norm() < 1e-9 * update.norm() + 1e-15, step
        assert math.isclose(record.kl, 0.01 * float(direction @ F @ direction) / 2, rel_tol=1e-9), step


@pytest.mark.parametrize("every", [1, 2])
def test_the_fisher_is_multiplied_with_only_where_the_inverse_is_older(every, monkeypatch, products):
    """The product of an inverse with its own Fisher is known. An inverse that serves longer is formed in the end."""
    monkeypatch.setattr(damping, "_FORMED", 1)
    case = random_case((9, 8, 7, 3), num_examples=2)
    optimizer = METHODS["kfac"](case.model, case.likelihood, lr=0.1, damping=1e-2, invert_every=every)
    assert optimizer.invert is (damping.USED_ONCE[damping.factored_inverse] if every == 1 else damping.factored_inverse)
    optimizer.invert = damping.USED_ONCE[damping.factored_inverse]
    counts = []
    for _ in range(6):
        products.clear()
        record = optimizer.step(case.inputs, case.targets)
        counts.append(len(products) > 0)
        D = optimizer.inverse.matmul(optimizer.inverse.solve(torch.ones(optimizer.fisher.dim)))  # the inverse is one
        assert torch.allclose(D, torch.ones_like(D), atol=1e-8) and record.kl > 0
    assert counts == [every == 2 and step % 2 == 1 for step in range(6)]


def test_in_float32_the_kl_keeps_its_digits_at_any_damping(kind):
    """Where λ is 1e14 times the Fisher, s − d (G + d)⁻¹ s would be all rounding."""
    for lam in (1e-4, 1e-1, 1e2, 1e6, 1e14):
        kls = []
        for dtype in (torch.float32, torch.float64):
            case = random_case((9, 8, 7, 3), num_examples=3)
            case.model.to(dtype)
            choices = {"lr": 0.1, "damping": lam, "fisher_type": "exact"}
            optimizer = METHODS["kfac"](case.model, case.likelihood, **choices)
            kls.append(optimizer.step(case.inputs.to(dtype), case.targets).kl)
        assert math.isclose(*kls, rel_tol=2e-3), lam  # eps / 1e-3 of what may be lost, and the sums of both products


def test_what_has_cancelled_is_not_taken_for_a_product():
    rows = torch.tensor([[1.0, 2.0]])
    assert low_rank._undamped(rows, rows / (1 + 1e-6), 1.0) is None  # M = 1e-6 I
    assert torch.allclose(low_rank._undamped(rows, rows / 3, 2.0), rows / 3)  # M = I
    assert torch.equal(low_rank._undamped(0 * rows, 0 * rows, 2.0), 0 * rows)


@pytest.fixture
def recorded(monkeypatch):
    """How many layers every pass without scores recorded."""
    seen, plain = [], natural_gradient.loss_pass

    def noted(*args):
        scores = plain(*args)
        seen.append(sum(layer.loss_rows is not None for layer in scores.layers))
        return scores

    monkeypatch.setattr(natural_gradient, "loss_pass", noted)
    return seen


def test_between_refreshes_small_batches_go_by_rows_and_need_no_product_with_the_fisher(products, recorded):
    """2 examples and layers of 8, 7 and 3 units: rows are less work for all. The inverse is of the kept Fisher."""
    case = random_case((9, 8, 7, 3), num_examples=2)
    optimizer = METHODS["kfac"](case.model, case.likelihood, lr=0.1, damping=1e-2, update_every=3, invert_every=3)
    for _ in range(6):
        products.clear()
        optimizer.step(case.inputs, case.targets)
        factors = {id(block) for block in optimizer.fisher.blocks}
        assert not factors & set(products)
    assert recorded == [3, 3, 3, 3]
    optimizer.step(case.inputs.repeat(30, 1), case.targets.repeat(30))  # a refresh
    optimizer.step(case.inputs.repeat(30, 1), case.targets.repeat(30))
    assert recorded[4:] == [0]  # 60 examples: matrices are less work


def test_a_pass_without_scores_has_the_rows_of_what_it_recorded_and_of_nothing_else():
    """Σ over examples of the rows is the gradient. A layer whose weights are used without calling it has none."""
    case = random_case((4, 5, 3), num_examples=6)
    first, layout = case.model[0], ParameterLayout(case.model)
    full = loss_pass(case.model, case.likelihood, layout, case.inputs, case.targets, layout.layers)
    for layer in full.layers:
        summed = layer.loss_rows.rmatmul(torch.full((6,), -1 / 6))
        assert torch.allclose(summed, full.gradient()[layer.layer.slice], rtol=1e-12, atol=1e-15) and layer.rows is None
    case.model.forward = lambda x: case.model[1:](functional.linear(x, first.weight, first.bias))
    part = loss_pass(case.model, case.likelihood, layout, case.inputs, case.targets, layout.layers)
    assert [layer.loss_rows is None for layer in part.layers] == [True, False]
    assert torch.allclose(part.gradient(), full.gradient(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("before", [1, 2, 4])
def test_between_refreshes_it_is_saved_and_loaded_bit_for_bit(before):
    """What is known of the inverse and its Fisher is known after loading too: the same products, the same digits."""
    case = random_case((9, 8, 7, 3), num_examples=2)
    choices = {"lr": 0.1, "damping": 1e-2, "update_every": 3, "invert_every": 3}
    optimizer = METHODS["kfac"](case.model, case.likelihood, **choices)
    for _ in range(before):
        optimizer.step(case.inputs, case.targets)
    weights, state = copy.deepcopy(case.model.state_dict()), copy.deepcopy(optimizer.state_dict())
    expected = [optimizer.step(case.inputs, case.targets) for _ in range(4)]
    other = random_case((9, 8, 7, 3), num_examples=2, seed=1)
    other.model.load_state_dict(weights)
    restored = METHODS["kfac"](other.model, case.likelihood, **choices)
    restored.load_state_dict(state)
    found = [restored.step(case.inputs, case.targets) for _ in range(4)]
    assert torch.equal(vector(other.model), vector(case.model))
    assert [(r.loss, r.kl, r.predicted_decrease) for r in found] == [(r.loss, r.kl, r.predicted_decrease) for r in expected]
