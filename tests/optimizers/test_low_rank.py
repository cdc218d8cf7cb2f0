"""K-FAC's steps where inverses are not formed and gradients go by rows: the same steps, and the same records."""

import math

import pytest
import torch
from cases import random_case

from natgrad_lab.optimizers import METHODS, damping, low_rank
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.structures import Kronecker, KroneckerInverse


@pytest.fixture(params=["formed", "substituted"])
def kind(request, monkeypatch):
    """All inverses formed, or none; the kind of a layer's inverse."""
    monkeypatch.setattr(damping, "_FORMED", {"formed": 10**6, "substituted": 1}[request.param])
    return {"formed": Kronecker, "substituted": KroneckerInverse}[request.param]


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


def dense_step(optimizer, slope, lam):
    """δ and F by dense matrices, from the statistics that the optimizer holds."""
    parts = []
    for block in optimizer.fisher.blocks:
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
