"""Steps written out in NumPy from the formulas: every structured method, and the whole adaptive algorithm."""

import math

import numpy as np
import pytest
import torch
from cases import random_case
from oracles import numpy_factors, numpy_fisher, numpy_gradients, numpy_pass, numpy_weights, softmax
from torch import nn

from natgrad_lab.likelihoods import Categorical, Gaussian
from natgrad_lab.models import convnet, deep_linear, lstm
from natgrad_lab.optimizers import METHODS

# ---- the formulas


def numpy_scores(weights, x):
    """Exact scores at every layer's output, (N, K, out), and the layers' inputs, (N, in + 1)."""
    z, inputs, back = numpy_pass(weights, x)
    p = softmax(z)
    root = np.einsum("nc,cd->ncd", np.sqrt(p), np.eye(p.shape[1])) - p[:, :, None] * np.sqrt(p)[:, None, :]
    return [np.einsum("nck,nco->nko", root, b) for b in back], inputs


def pi_of(G, A):
    return np.sqrt((np.trace(A) / len(A)) / (np.trace(G) / len(G)))


def damped(G, A, gamma):
    pi = pi_of(G, A)
    return G + gamma / pi * np.eye(len(G)), A + pi * gamma * np.eye(len(A))


def block_diagonal_direction(statistics, grads, gamma):
    directions = []
    for (G, A), V in zip(statistics["blocks"], grads, strict=True):
        G, A = damped(G, A, gamma)
        directions.append(np.linalg.solve(G, V) @ np.linalg.inv(A))
    return directions


def chain_direction(statistics, grads, gamma):
    """F̂⁻¹ V through the dense chain: Ξᵀ Λ Ξ with every Ψ and Σ formed as a whole matrix."""
    pairs = [damped(G, A, gamma) for G, A in statistics["blocks"]]
    F = [np.kron(G, A) for G, A in pairs]
    psi = [np.kron(Gx, Ax) @ np.linalg.inv(F[i + 1]) for i, (Gx, Ax) in enumerate(statistics["crosses"])]
    sigma = [F[i] - psi[i] @ F[i + 1] @ psi[i].T for i in range(len(psi))] + [F[-1]]
    v = [g.ravel() for g in grads]
    u = [np.linalg.solve(s, v[i] - (psi[i] @ v[i + 1] if i < len(psi) else 0)) for i, s in enumerate(sigma)]
    u = [u[i] - (psi[i - 1].T @ u[i - 1] if i else 0) for i in range(len(u))]
    return [part.reshape(g.shape) for part, g in zip(u, grads, strict=True)]


def numpy_statistics(weights, x):
    """The blocks (G, A), the factors between neighbours, the diagonal, and the units' blocks, all exact."""
    scores, inputs = numpy_scores(weights, x)
    n = len(x)
    crosses = [
        (np.einsum("nko,nkp->op", s, t) / n, a.T @ b / n)
        for s, t, a, b in zip(scores, scores[1:], inputs, inputs[1:], strict=False)
    ]
    units = [np.einsum("nko,nd,ne->ode", s**2, a, a) / n for s, a in zip(scores, inputs, strict=True)]
    return {"blocks": numpy_factors(weights, x), "crosses": crosses, "units": units}


def mixed(old, new, decay):
    if isinstance(new, dict):
        return {key: mixed(old[key], new[key], decay) for key in new}
    if isinstance(new, list | tuple):
        return [mixed(a, b, decay) for a, b in zip(old, new, strict=True)]
    return decay * old + (1 - decay) * new


def unit_direction(statistics, grads, damping):
    return [
        np.stack([np.linalg.solve(M + damping * np.eye(len(M)), row) for M, row in zip(blocks, V, strict=True)])
        for blocks, V in zip(statistics["units"], grads, strict=True)
    ]


def diagonal_direction(statistics, grads, damping):
    entries = [np.stack([np.diag(M) for M in blocks]) for blocks in statistics["units"]]
    return [V / (e + damping) for e, V in zip(entries, grads, strict=True)]


DIRECTIONS = {
    "kfac": lambda s, g, damping: block_diagonal_direction(s, g, np.sqrt(damping)),
    "kfac_block_tridiagonal": lambda s, g, damping: chain_direction(s, g, np.sqrt(damping)),
    "unit_wise": unit_direction,
    "diagonal": diagonal_direction,
}


# ---- plain steps


@pytest.mark.parametrize("method", DIRECTIONS)
@pytest.mark.parametrize("damping", [1e-2, 0.5])
def test_four_steps_equal_the_formulas(method, damping):
    case, lr, running = random_case((3, 4, 5, 3), num_examples=9), 0.1, None
    optimizer = METHODS[method](case.model, case.likelihood, lr=lr, damping=damping, fisher_type="exact")
    weights, x, y = numpy_weights(case.model), case.inputs.numpy(), case.targets.numpy()
    for k in range(1, 5):
        new = numpy_statistics(weights, x)
        running = new if k == 1 else mixed(running, new, min(1 - 1 / k, 0.95))
        _, grads = numpy_gradients(weights, x, y)
        weights = [w - lr * d for w, d in zip(weights, DIRECTIONS[method](running, grads, damping), strict=True)]
        optimizer.step(case.inputs, case.targets)
        for found, expected in zip(numpy_weights(case.model), weights, strict=True):
            assert np.abs(found - expected).max() < 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("every", [1, 2])
def test_ekfac_equals_its_formula(every):
    """Basis of the averaged factors, renewed every so often; variances averaged in it, and carried over to the next one."""
    case, lr, damping = random_case((3, 4, 3), num_examples=9), 0.05, 0.02
    choices = {"fisher_type": "exact", "invert_every": every}
    optimizer = METHODS["ekfac"](case.model, case.likelihood, lr=lr, damping=damping, **choices)
    weights, x, y = numpy_weights(case.model), case.inputs.numpy(), case.targets.numpy()
    factors, bases, variances = None, None, None
    for k in range(1, 6):
        decay = min(1 - 1 / k, 0.95)
        new = numpy_factors(weights, x)
        factors = new if k == 1 else mixed(factors, new, decay)
        if (k - 1) % every == 0:
            old, bases = bases, [tuple(np.linalg.eigh(f)[1] for f in pair) for pair in factors]
            if old:
                turns = [[(b.T @ o) ** 2 for b, o in zip(*pair, strict=True)] for pair in zip(bases, old, strict=True)]
                variances = [g @ v @ a.T for (g, a), v in zip(turns, variances, strict=True)]
        scores, inputs = numpy_scores(weights, x)
        batch = [
            np.einsum("nko,nd->od", (s @ UG) ** 2, (a @ UA) ** 2) / len(x)
            for s, a, (UG, UA) in zip(scores, inputs, bases, strict=True)
        ]
        variances = batch if k == 1 else mixed(variances, batch, decay)
        _, grads = numpy_gradients(weights, x, y)
        weights = [
            w - lr * UG @ ((UG.T @ V @ UA) / (v + damping)) @ UA.T
            for w, V, v, (UG, UA) in zip(weights, grads, variances, bases, strict=True)
        ]
        optimizer.step(case.inputs, case.targets)
        for found, expected in zip(numpy_weights(case.model), weights, strict=True):
            # eigenvectors of near eigenvalues turn by rounding over their gap
            assert np.abs(found - expected).max() < 1e-7 * np.abs(expected).max()


def test_ekfacs_variances_have_the_fishers_trace_whatever_the_basis():
    case = random_case((3, 4, 3), num_examples=9)
    optimizer = METHODS["ekfac"](case.model, case.likelihood, lr=0.0, fisher_type="exact", invert_every=2)
    for _ in range(4):
        optimizer.step(case.inputs, case.targets)
    exact = np.trace(numpy_fisher(numpy_weights(case.model), case.inputs.numpy()))
    assert math.isclose(float(optimizer.fisher.trace()), exact, rel_tol=1e-12)


# ---- the whole algorithm


class Adaptive:
    """The paper's iteration in NumPy, with exact statistics and F as a whole matrix; periods as the package counts them."""

    def __init__(self, weights, direction, lam, eta, *, T1=5, T2=20, T3=20, momentum=True, counted=True):
        self.weights, self.direction, self.lam, self.eta = weights, direction, lam, eta
        self.T1, self.T2, self.T3, self.momentum, self.counted = T1, T2, T3, momentum, counted
        self.gamma, self.k, self.running, self.last, self.kept = math.sqrt(lam + eta), 0, None, None, None

    def objective(self, weights, x, y):
        return numpy_gradients(weights, x, y)[0] + self.eta / 2 * sum((w**2).sum() for w in weights)

    def step(self, x, y):
        self.k += 1
        new = numpy_statistics(self.weights, x)
        self.running = new if self.k == 1 else mixed(self.running, new, min(1 - 1 / self.k, 0.95))
        grads = [g + self.eta * w for g, w in zip(numpy_gradients(self.weights, x, y)[1], self.weights, strict=True)]
        B = numpy_fisher(self.weights, x)
        B = B + (self.lam + self.eta) * np.eye(len(B))
        refresh, search = (self.k - 1) % self.T3 == 0 or self.k <= 3, self.k > 1 and (self.k - 1) % self.T2 == 0
        if refresh or search:
            self.kept = self.running
        omega = math.sqrt(19 / 20) ** self.T2
        candidates = [self.gamma, omega * self.gamma, self.gamma / omega] if search else [self.gamma]
        flat = np.concatenate([g.ravel() for g in grads])
        found = []
        for gamma in candidates:
            proposal = -np.concatenate([d.ravel() for d in self.direction(self.kept, grads, gamma)])
            D = [proposal] if self.last is None or not self.momentum else [proposal, self.last]
            D = np.stack(D, 1)
            x_best = -np.linalg.solve(D.T @ B @ D, D.T @ flat)
            delta = D @ x_best
            M = flat @ delta + delta @ B @ delta / 2
            assert math.isclose(M, flat @ delta / 2, rel_tol=1e-9)  # at the minimum M = ½ (α ∇hᵀΔ + μ ∇hᵀδ₀)
            found.append((M, gamma, delta, (*x_best, 0.0)[:2]))
        M, self.gamma, delta, (self.alpha, self.mu) = min(found, key=lambda each: each[0])
        ends = np.cumsum([w.size for w in self.weights])[:-1]
        moved = [w + d.reshape(w.shape) for w, d in zip(self.weights, np.split(delta, ends), strict=True)]
        self.used, self.rho = self.lam, math.nan
        if self.k % self.T1 == 0:
            change = self.objective(moved, x, y) - self.objective(self.weights, x, y)
            self.rho = change / (M if self.counted else M - self.lam / 2 * delta @ delta)
            factor = (19 / 20) ** self.T1
            if self.rho > 3 / 4:
                self.lam *= factor
            elif not self.rho >= 1 / 4:
                self.lam /= factor
        self.weights, self.last = moved, delta


@pytest.mark.parametrize("blocks, direction", [("diagonal", block_diagonal_direction), ("tridiagonal", chain_direction)])
@pytest.mark.parametrize("momentum", [True, False])
def test_the_whole_algorithm_equals_numpy(blocks, direction, momentum):
    """14 steps with small periods, so that α, μ, λ, γ and the age of the inverses all come into play."""
    case = random_case((3, 4, 3), num_examples=12)
    counted = momentum
    optimizer = METHODS["kfac_adaptive"](
        case.model, case.likelihood, damping=0.3, weight_decay=0.01, blocks=blocks, fisher_type="exact", invert_every=4,
        levenberg={"every": 2, "include_damping": counted}, gamma_search={"every": 4}, quadratic={"momentum": momentum},
    )  # fmt: skip
    x, y = case.inputs.numpy(), case.targets.numpy()
    oracle = Adaptive(
        numpy_weights(case.model), direction, 0.3, 0.01, T1=2, T2=4, T3=4, momentum=momentum, counted=counted
    )  # fmt: skip
    gammas, lams = set(), set()
    for _ in range(14):
        before = numpy_gradients(oracle.weights, x, y)[0]
        oracle.step(x, y)
        record = optimizer.step(case.inputs, case.targets)
        assert math.isclose(record.loss, before, rel_tol=1e-9)
        for name, value in {"damping": oracle.used, "gamma": oracle.gamma, "alpha": oracle.alpha, "rho": oracle.rho}.items():
            assert math.isclose(getattr(record, name), value, rel_tol=1e-6) or math.isnan(value), name
        assert math.isclose(record.mu, oracle.mu, rel_tol=1e-6, abs_tol=1e-8)
        assert math.isnan(record.rho) == math.isnan(oracle.rho)
        gammas.add(record.gamma)
        lams.add(record.damping)
        for found, expected in zip(numpy_weights(case.model), oracle.weights, strict=True):
            assert np.abs(found - expected).max() < 1e-8 * np.abs(expected).max()
    assert len(gammas) > 2 and len(lams) > 3  # they did move
    assert math.isclose(optimizer.param_groups[0]["damping"], oracle.lam, rel_tol=1e-12)


# ---- where the answer is known


def linear_regression(num_examples=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(4, 2)
    x, y = torch.randn(num_examples, 4, generator=generator), torch.randn(num_examples, 2, generator=generator)
    return model, x, y


def test_one_step_solves_linear_regression_with_alpha_one():
    """K-FAC is exact for one linear layer and a Gaussian: α = 1 and nothing is left to do."""
    model, x, y = linear_regression()
    optimizer = METHODS["kfac_adaptive"](
        model, Gaussian(0.5), damping=0.0, gamma_search=None, levenberg=None, fisher_type="exact"
    )
    record = optimizer.step(x, y)
    assert math.isclose(record.alpha, 1, rel_tol=1e-9)
    assert optimizer.step(x, y).grad_norm < 1e-10


def test_with_momentum_it_is_preconditioned_conjugate_gradients():
    """On a quadratic objective with a fixed preconditioner that is not F: here an old inverse, much damped."""
    model, x, y = linear_regression()
    optimizer = METHODS["kfac_adaptive"](
        model, Gaussian(1.0), damping=0.0, weight_decay=0.1, gamma_search=None, levenberg=None, fisher_type="exact",
        invert_every=1000, burn_in=0,
    )  # fmt: skip
    X = np.hstack([x.numpy(), np.ones((len(x), 1))])
    B = np.kron(np.eye(2), X.T @ X / len(x)) + 0.1 * np.eye(10)
    b = (y.numpy().T @ X / len(x)).ravel()
    A, G, gamma = X.T @ X / len(x), np.eye(2), math.sqrt(0.1)
    P = np.kron(*(np.linalg.inv(m) for m in damped(G, A, gamma)))
    w = numpy_weights(model)[0].ravel() if isinstance(model, nn.Sequential) else None
    w = np.hstack([model.weight.detach().numpy(), model.bias.detach().numpy()[:, None]]).ravel()
    r = b - B @ w
    z = P @ r
    p = z
    for _ in range(6):
        step = (r @ z) / (p @ B @ p)
        w = w + step * p
        before, r = r @ z, r - step * B @ p
        z = P @ r
        p = z + (r @ z) / before * p
        optimizer.step(x, y)
        found = np.hstack([model.weight.detach().numpy(), model.bias.detach().numpy()[:, None]]).ravel()
        assert np.abs(found - w).max() < 1e-8


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_deep_linear_alpha_is_one_over_the_depth(depth):
    """Undamped block K-FAC moves the product L times too far, to first order: the exact model sees it."""
    generator = torch.Generator().manual_seed(1)
    model = deep_linear((3,) * (depth + 1), generator=generator)
    x, y = torch.randn(20, 3, generator=generator), torch.randn(20, 3, generator=generator)
    optimizer = METHODS["kfac_adaptive"](
        model, Gaussian(1.0), damping=0.0, levenberg=None, gamma_search=None, fisher_type="exact"
    )
    assert math.isclose(optimizer.step(x, y).alpha, 1 / depth, rel_tol=1e-9)


# ---- convolutions and recurrent layers


def test_kfc_at_one_location_is_kfac():
    """A convolution whose picture is as large as its kernel is a Linear layer."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Tanh(), nn.Linear(4, 3))
    dense = nn.Sequential(nn.Flatten(), nn.Linear(18, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        dense[1].weight.copy_(conv[0].weight.flatten(1)), dense[1].bias.copy_(conv[0].bias)
        dense[3].load_state_dict(conv[3].state_dict())
    x, y = torch.randn(7, 2, 3, 3, generator=generator), torch.arange(7) % 3
    for method in ("kfac", "ekfac", "kfac_adaptive"):
        one, two = (METHODS[method](model, Categorical(), damping=0.1, fisher_type="exact") for model in (conv, dense))
        for _ in range(2):
            one.step(x, y), two.step(x, y)
        assert (conv[0].weight.flatten(1) - dense[1].weight).abs().max() < 1e-10
        assert (conv[3].weight - dense[3].weight).abs().max() < 1e-10


@pytest.mark.parametrize("method", ["kfac", "ekfac", "kfac_adaptive", "unit_wise", "diagonal"])
@pytest.mark.parametrize("network", ["convnet", "lstm"])
def test_convolutions_and_recurrent_layers_descend(method, network):
    generator = torch.Generator().manual_seed(0)
    if network == "convnet":
        model, x, y = convnet((1, 6, 6), (2, 3), 3), torch.randn(8, 36, generator=generator), torch.arange(8) % 3
    else:
        model, x, y = lstm(2, 3, 3), torch.randn(6, 4, 2, generator=generator), torch.arange(24).view(6, 4) % 3
    lr = 1.0 if method == "kfac_adaptive" else 0.02
    optimizer = METHODS[method](model, Categorical(), lr=lr, damping=0.1)
    records = [optimizer.step(x, y) for _ in range(8)]
    assert records[-1].status == "ok" and records[-1].loss < records[0].loss


def test_weight_sharing_is_a_choice():
    x, y = torch.randn(5, 36), torch.arange(5) % 3
    found = []
    for sharing in ("expand", "reduce"):
        model = convnet((1, 6, 6), (2, 3), 3)
        METHODS["kfac"](model, Categorical(), weight_sharing=sharing, fisher_type="exact").step(x, y)
        found.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    assert (found[0] - found[1]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="no weight_sharing 'expnad'. Did you mean 'expand'"):
        METHODS["ekfac"](convnet((1, 6, 6), (2, 3), 3), Categorical(), weight_sharing="expnad")
