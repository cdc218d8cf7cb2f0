"""The parts of a report on their own: Lanczos, inner products, the watch, the table, the slider, the ladder."""

import itertools
import math
import warnings

import pytest
import torch
from cases import random_case

from natgrad_lab import comparison, fisher, likelihoods, models
from natgrad_lab.comparison import candidate, products, watch
from natgrad_lab.comparison.lanczos import largest_eigenvalue
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
    QuasiDiagonal,
    SharedRows,
    UnitWise,
)


def psd(size, generator):
    root = torch.randn(size, size, generator=generator)
    return root @ root.T


@pytest.fixture
def problem():
    case = random_case((4, 5, 3), num_examples=7)
    return comparison.Problem(comparison.Batch(*case.data, case.targets), 0.05)


@pytest.fixture
def wide_problem():
    """Fewer rows than parameters."""
    case = random_case((6, 5, 3), num_examples=3)
    return comparison.Problem(comparison.Batch(*case.data, case.targets), 0.05)


# ---- Lanczos


@pytest.mark.parametrize("spectrum", [[3.0], [0.0, 0.0], [1.0, 1.0, 1.0], [-5.0, 1.0, 4.9], [1e-12, 1.0, 1e6]])
def test_lanczos_finds_the_largest_magnitude(spectrum, generator):
    Q = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator)).Q
    matrix = Q @ torch.diag(torch.tensor(spectrum)) @ Q.T
    found = largest_eigenvalue(lambda x: matrix @ x, matrix[0])
    assert math.isclose(found.value, max(spectrum, key=abs), rel_tol=1e-9, abs_tol=1e-15)
    assert found.error <= 1e-5 * abs(found.value)


def test_lanczos_restarts_until_it_has_it(generator, monkeypatch):
    matrix = torch.diag(torch.linspace(0.5, 1, 300))
    monkeypatch.setattr("natgrad_lab.comparison.lanczos._NUMBERS", 300 * 20)  # 20 vectors
    found = largest_eigenvalue(lambda x: matrix @ x, matrix[0])
    assert math.isclose(found.value, 1, rel_tol=1e-4) and abs(found.value - 1) <= found.error


def test_lanczos_in_another_inner_product_solves_the_pencil(generator):
    A, B = psd(30, generator), psd(30, generator) + torch.eye(30)
    found = largest_eigenvalue(lambda x: torch.linalg.solve(B, A @ x), A[0], lambda x: B @ x)
    expected = torch.linalg.eigvals(torch.linalg.solve(B, A)).real.max()
    assert math.isclose(found.value, float(expected), rel_tol=1e-8)


# ---- inner products


@pytest.mark.parametrize("kind", ["khatri-rao", "shared"])
def test_inner_products_are_the_dense_ones(kind, generator):
    if kind == "khatri-rao":
        rows = KhatriRaoRows(torch.randn(4, 3, generator=generator), torch.randn(2, 4, 2, generator=generator))
    else:
        rows = SharedRows(torch.randn(4, 5, 3, generator=generator), torch.randn(2, 4, 5, 2, generator=generator))
    R = rows.to_dense()
    F, (U, V) = R.T @ R, [torch.linalg.qr(psd(size, generator)).Q for size in (2, 3)]
    others = KhatriRaoRows(torch.randn(2, 3, generator=generator), torch.randn(1, 2, 2, generator=generator))
    for matrix in (
        Dense(psd(6, generator)),
        Diagonal(torch.rand(6, generator=generator)),
        Kronecker(psd(2, generator), psd(3, generator)),
        EigenKronecker(U, V, torch.rand(2, 3, generator=generator)),
        LowRank(torch.linalg.qr(torch.randn(6, 2, generator=generator)).Q, torch.tensor([3.0, 2.0]), torch.tensor(0.5)),
        BlockDiagonal((Kronecker(psd(2, generator), psd(3, generator)),)),
        Gram((others,)),
        UnitWise(torch.stack([psd(3, generator), psd(3, generator)])),
        QuasiDiagonal(torch.rand(2, 2, generator=generator) + 1, torch.rand(2, 2, generator=generator), torch.ones(2)),
    ):
        dense = matrix.to_dense()
        assert math.isclose(products.inner((rows,), matrix), float((F * dense).sum()), rel_tol=1e-12), matrix
        assert math.isclose(products.norm_squared(matrix), float(dense.square().sum()), rel_tol=1e-12), matrix


@pytest.mark.parametrize("kinds", list(itertools.product(["khatri-rao", "shared", "dense"], repeat=2)), ids="-".join)
def test_inner_products_of_two_sets_of_rows_are_the_dense_ones(kinds, monkeypatch, generator):
    monkeypatch.setattr(products, "_CHUNK", 40)  # a few columns at a time

    def block(kind, scores, examples):
        if kind == "khatri-rao":
            return KhatriRaoRows(
                torch.randn(examples, 3, generator=generator), torch.randn(scores, examples, 2, generator=generator)
            )
        if kind == "shared":
            inputs, per_position = torch.randn(examples, 5, 3, generator=generator), (scores, examples, 5, 2)
            return SharedRows(inputs, torch.randn(per_position, generator=generator))
        return DenseRows(torch.randn(scores * examples, 6, generator=generator), scores)

    one, two = ([block(kind, *size) for kind in (own, "shared")] for own, size in zip(kinds, [(2, 4), (1, 3)], strict=True))
    R, S = (torch.cat([each.to_dense() for each in blocks], 1) for blocks in (one, two))
    expected = R @ S.T
    torch.testing.assert_close(products.cross_gram(tuple(one), tuple(two)), expected)
    assert math.isclose(products.inner(tuple(one), Gram(tuple(two))), float(expected.square().sum()), rel_tol=1e-12)


@pytest.mark.parametrize("kind", ["khatri-rao", "shared"])
def test_the_trace_against_an_inverse_of_rows_is_the_dense_one(kind, generator):
    def rows(scores, examples):
        if kind == "khatri-rao":
            inputs, each = torch.randn(examples, 3, generator=generator), torch.randn(scores, examples, 2, generator=generator)
            return KhatriRaoRows(inputs, each)
        inputs = torch.randn(examples, 5, 3, generator=generator)
        return SharedRows(inputs, torch.randn(scores, examples, 5, 2, generator=generator))

    one, two, damping = rows(2, 4), rows(1, 3), 0.1
    F, damped = one.to_dense().T @ one.to_dense(), two.to_dense().T @ two.to_dense() + 0.1 * torch.eye(6)
    trace, logdet = products.inverse_trace((one,), Gram((two,)), damping)
    assert math.isclose(trace, float(torch.linalg.solve(damped, F + damping * torch.eye(6)).trace()), rel_tol=1e-10)
    assert math.isclose(logdet, float(torch.logdet(damped)), rel_tol=1e-10)


def test_the_inner_product_with_a_chain_is_the_dense_one():
    case = random_case((3, 4, 3, 2), num_examples=7)
    chain, F = fisher.block_tridiagonal_fisher(*case.data), fisher.gram_fisher(*case.data)
    dense = chain.to_dense()
    assert math.isclose(products.inner(F.blocks, chain), float((F.to_dense() * dense).sum()), rel_tol=1e-12)
    assert math.isclose(products.norm_squared(chain), float(dense.square().sum()), rel_tol=1e-12)


def test_an_inner_product_that_takes_too_long_is_given_up(monkeypatch, generator):
    class Slow(Dense):
        """A structure no rule knows."""

    monkeypatch.setattr(products, "_PATIENCE", 0.0)
    monkeypatch.setattr(products, "_CHUNK", 6)
    rows = KhatriRaoRows(torch.randn(4, 3, generator=generator), torch.randn(2, 4, 2, generator=generator))
    with pytest.raises(products.NotAvailableError, match="would take about .* s; given up above 0 s"):
        products.inner((rows,), Slow(psd(6, generator)))


def test_a_norm_that_needs_a_matrix_too_large_is_refused(monkeypatch, generator):
    class Strange(Dense):
        """A structure no rule knows."""

    monkeypatch.setattr(products, "LARGEST_DENSE", 5)
    products.norm_squared.register(Strange, products.norm_squared.dispatch(object))
    with pytest.raises(products.NotAvailableError, match="whole matrix, 6 x 6"):
        products.norm_squared(Strange(psd(6, generator)))


# ---- the watch


def test_the_watch_counts_factorizations_negative_eigenvalues_and_warnings(generator):
    with watch.watch() as work:
        torch.linalg.cholesky(torch.eye(3).expand(4, 3, 3))
        torch.linalg.eigh(torch.diag(torch.tensor([-0.5, 1.0, 2.0])))
        for _ in range(2):
            warnings.warn("jitter was added", stacklevel=1)
    assert work.factorizations == 5
    assert (work.clamped, work.most_negative) == (1, 0.25)
    assert work.warnings == ["jitter was added"] and work.seconds > 0


# ---- the table, and yours


def test_names_sources_and_registered_ones_are_found():
    def mine(g):
        return 2 * g

    comparison.register("mine", mine, label="my own", about="A test.")
    try:
        case = random_case((3, 3, 2))
        report = comparison.compare(*case.data, case.targets, 0.1)
        row = report.row("mine")
        assert row.label == "my own" and report.texts["mine"] == "A test."
        assert math.isclose(row.efficiency, report.row("identity").efficiency, rel_tol=1e-9)
        with pytest.raises(ValueError, match="'mine' already.*replace=True"):
            comparison.register("mine", mine)
    finally:
        comparison.unregister("mine")
    assert "mine" not in comparison.default_approximations()


def test_a_registered_estimator_joins_the_table_of_estimators():
    def halved(model, likelihood, inputs, fisher_type="exact", targets=None, num_samples=1, generator=None):
        return fisher.kfac_fisher(model, likelihood, inputs, fisher_type, targets, num_samples, generator).map(lambda t: t / 2)

    comparison.register("halved", halved)
    try:
        assert fisher.ESTIMATORS["halved"] is halved
        case = random_case((3, 3, 2))
        report = comparison.compare(*case.data, case.targets, 0.1, ["halved"])
        expected = fisher.kfac_fisher(*case.data).map(lambda t: t / 2).to_dense()
        F = fisher.dense_fisher(*case.data).matrix
        assert math.isclose(report.row("halved").frobenius_error, float((expected - F).norm() / F.norm()), rel_tol=1e-9)
    finally:
        comparison.unregister("halved")
    assert "halved" not in fisher.ESTIMATORS


def test_a_structure_and_a_damped_function_are_taken_as_they_are():
    case = random_case((3, 3, 2))
    diagonal = fisher.diagonal_fisher(*case.data)
    given = {"structure": diagonal, "function": lambda g, damping: diagonal.solve(g, damping), "name": "diagonal"}
    report = comparison.compare(*case.data, case.targets, 0.1, given)
    efficiencies = [report.row(name).efficiency for name in given]
    assert max(efficiencies) - min(efficiencies) < 1e-12
    curves = [report.sweep.curves[name]["efficiency"] for name in given]
    assert torch.allclose(torch.tensor(curves[0]), torch.tensor(curves[1])) and curves[0] == curves[2]


@pytest.mark.parametrize(
    "source, reason",
    [
        (lambda g: g[:-1], r"must turn a gradient \(20,\) into a direction of that shape; got a tensor of shape \(19,\)"),
        (lambda g: g / 0, "gave a direction with nan or infinity"),
        (lambda g: None, "got NoneType"),
        (lambda g: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_direction_that_fails_costs_only_its_own_numbers(source, reason):
    case = random_case((3, 3, 2))
    report = comparison.compare(*case.data, case.targets, 0.1, {"bad": source, "kfac": "kfac"})
    assert report.row("bad").efficiency is None and report.row("kfac").efficiency > 0
    with pytest.raises(ValueError, match=reason):
        raise ValueError(report.row("bad").not_available["efficiency"])
    assert report.sweep.curves["bad"]["efficiency"] == [None] * len(report.sweep.dampings)


def test_an_estimator_that_fails_is_named_with_its_reason():
    def broken(model, likelihood, inputs):
        raise RuntimeError("no such layer")

    def small(model, likelihood, inputs):
        return Diagonal(torch.ones(3))

    case = random_case((3, 3, 2))
    report = comparison.compare(*case.data, case.targets, 0.1, {"broken": broken, "small": small, "kfac": "kfac"})
    assert report.failures["broken"] == "RuntimeError: no such layer"
    assert "for 3 parameters; the model has 20" in report.failures["small"]
    assert "broken" in repr(report) and "kfac" not in report.failures


@pytest.mark.parametrize(
    "given, text",
    [
        (["kfacc"], "Did you mean 'kfac'"),
        ([], "approximations is empty"),
        ({"exact": "kfac"}, "'exact' is taken"),
        ({"": "kfac"}, None),
    ],
)
def test_what_cannot_be_compared_is_refused(given, text):
    case = random_case((3, 3, 2))
    if text is None:
        assert comparison.compare(*case.data, case.targets, 0.1, given).row("").efficiency > 0
        return
    with pytest.raises((ValueError, TypeError), match=text):
        comparison.compare(*case.data, case.targets, 0.1, given)


def test_a_source_that_is_none_of_the_three_is_refused():
    with pytest.raises(TypeError, match="'x' must be a structure .* got int"):
        comparison.register("x", 3)


def test_a_budget_that_is_too_small_says_what_is_needed():
    case = random_case((3, 3, 2))
    with pytest.raises(ValueError, match=r"needs about .* GiB; the budget is .* Give fewer examples, or"):
        comparison.compare(*case.data, case.targets, 0.1, memory_budget=1000)


def test_an_approximation_over_the_budget_is_left_out_with_its_size(monkeypatch, problem):
    monkeypatch.setitem(candidate._NUMBERS, "kfac", lambda layers: 2**40)
    with pytest.raises(products.NotAvailableError, match="needs about 16,384.0 GiB"):
        candidate.make(comparison.default_approximations()["kfac"], problem, 2**31)


# ---- EKFAC's ambiguity


def test_repeated_eigenvalues_of_the_factors_are_named():
    whitened = Kronecker(torch.diag(torch.tensor([1.0, 2.0])), torch.diag(torch.tensor([0.0, 0.0, 3.0, 3.0])))
    generic = Kronecker(torch.diag(torch.tensor([1.0, 2.0])), torch.diag(torch.tensor([0.0, 0.0, 3.0])))
    assert candidate.ambiguity(BlockDiagonal((generic,)), ["0"]) == ""  # zeros repeat: no matter
    text = candidate.ambiguity(BlockDiagonal((generic, whitened)), ["0", "2"])
    assert "A of layer '2' (2 of its eigenvalues)" in text and "'0'" not in text


# ---- damping


@pytest.mark.parametrize("kind", ["kfac", "diagonal", "block_diagonal"])
@pytest.mark.parametrize("which", ["problem", "wide_problem"])
def test_the_slider_agrees_with_a_fresh_solve_at_every_damping(which, kind, request):
    problem = request.getfixturevalue(which)
    batch = problem.batch
    structure = fisher.ESTIMATORS[kind](batch.model, batch.likelihood, batch.inputs)
    slider = comparison.DampingSlider(problem, structure).prepare()
    F, g = problem.exact.gram.to_dense(), problem.gradient
    identity = torch.eye(len(g))
    for damping in (1e-6, 1e-2, 10.0):
        at = slider.at(damping)
        v = torch.linalg.solve(structure.to_dense() + damping * identity, g)
        best = torch.linalg.solve(F + damping * identity, g)
        damped = v @ (F + damping * identity) @ v
        assert math.isclose(at.best_step, float(g @ v / damped), rel_tol=1e-6)
        assert math.isclose(at.efficiency, float((g @ v) ** 2 / damped / (g @ best)), rel_tol=1e-6)
        assert math.isclose(at.cosine, float(v @ best / v.norm() / best.norm()), rel_tol=1e-6)
        assert math.isclose(at.norm_ratio, float(v.norm() / best.norm()), rel_tol=1e-6)
        assert math.isclose(at.predicted_decrease, float((g @ v) ** 2 / damped / 2), rel_tol=1e-6)


def test_a_slider_takes_a_structure_in_float32(wide_problem):
    batch = wide_problem.batch
    kfac = fisher.kfac_fisher(batch.model, batch.likelihood, batch.inputs)
    one, two = (comparison.DampingSlider(wide_problem, each).at(1e-2) for each in (kfac, kfac.map(lambda t: t.float())))
    assert math.isclose(one.efficiency, two.efficiency, rel_tol=1e-5) and one != two


def test_a_slider_factors_nothing_once_it_is_prepared(wide_problem):
    batch = wide_problem.batch
    slider = comparison.DampingSlider(wide_problem, fisher.kfac_fisher(batch.model, batch.likelihood, batch.inputs)).prepare()
    with watch.watch() as work:
        for damping in (1e-3, 1e-2, 1e-1):
            slider.at(damping)
    assert work.factorizations == 0


def test_the_sweep_at_the_headline_damping_is_the_row():
    case = random_case((4, 5, 3), num_examples=7)
    report = comparison.compare(*case.data, case.targets, [1e-3, 1e-2, 1e-1], ["kfac", "diagonal"])
    assert report.about["damping"] == 1e-2 and report.sweep.dampings == (1e-3, 1e-2, 1e-1)
    for name in ("kfac", "diagonal"):
        for metric, values in report.sweep.curves[name].items():
            assert math.isclose(values[1], getattr(report.row(name), metric), rel_tol=1e-12)
    assert max(report.sweep.residuals) < 1e-10
    default = comparison.compare(*case.data, case.targets, 1e-2, ["kfac"]).sweep.dampings
    assert len(default) == 13 and math.isclose(default[0], 1e-5) and math.isclose(default[-1], 10) and default[6] == 1e-2


def test_undamped_works_where_the_fisher_is_invertible_and_is_refused_where_not():
    case = random_case((2, 2, 2), likelihood="gaussian", num_examples=20)
    report = comparison.compare(*case.data, case.targets, 0.0, ["kfac"])
    assert 0 < report.row("kfac").efficiency <= 1
    singular = random_case((4, 4, 3), num_examples=2)
    with pytest.raises(ValueError, match="damping > 0"):
        comparison.compare(*singular.data, singular.targets, 0.0, ["kfac"])


# ---- the ladder


def test_the_ladder_adds_up():
    case = random_case((4, 5, 3), num_examples=7)
    report = comparison.compare(*case.data, case.targets, 0.05)
    rungs = [rung for rung in report.ladder.rungs if rung.efficiency is not None]
    made = {row.approximation for row in report.rows}
    assert [rung.name for rung in rungs] == [name for name in comparison.RUNGS if name in made]
    assert math.isclose(1 - sum(rung.cost for rung in rungs[1:]), rungs[-1].efficiency, rel_tol=1e-9)
    F, kfac = fisher.dense_fisher(*case.data).matrix, fisher.kfac_fisher(*case.data).to_dense()
    shares = report.ladder.shares
    assert math.isclose(sum(shares.values()), float(((kfac - F).norm() / F.norm()) ** 2), rel_tol=1e-9)
    blocks = fisher.block_diagonal_fisher(*case.data).to_dense()
    assert math.isclose(shares["missing cross-layer blocks"], float(((blocks - F).norm() / F.norm()) ** 2), rel_tol=1e-9)
    assert set(report.ladder.damping) == {"exact λI", "factored"}


def test_sampling_noise_is_that_of_its_seeds_and_does_not_move_the_global_state():
    case = random_case((4, 5, 3), num_examples=7)
    before = torch.random.get_rng_state()
    one, two = (comparison.compare(*case.data, case.targets, 0.05, ["kfac"], seed=s) for s in (0, 100))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.ladder.noise == comparison.compare(*case.data, case.targets, 0.05, ["kfac"]).ladder.noise
    assert one.ladder.noise != two.ladder.noise
    errors, F = [], fisher.dense_fisher(*case.data).matrix
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        sampled = fisher.dense_fisher(*case.data, "monte_carlo", generator=generator).matrix
        errors.append(float((sampled - F).norm() / F.norm()))
    floor = next(noise for noise in one.ladder.noise if noise.name == "monte_carlo")
    assert math.isclose(floor.frobenius_error, sum(errors) / 5, rel_tol=1e-9)


def test_factored_damping_is_that_of_the_structure():
    from natgrad_lab.structures import factored_tikhonov

    case = random_case((4, 5, 3), num_examples=7)
    report = comparison.compare(*case.data, case.targets, 0.05, ["kfac_factored"])
    problem = comparison.Problem(comparison.Batch(*case.data, case.targets), 0.05)
    blocks = BlockDiagonal(tuple(factored_tikhonov(block, 0.05) for block in fisher.kfac_fisher(*case.data).blocks))
    v, best = blocks.solve(problem.gradient), problem.natural_gradient(0.05).direction
    assert math.isclose(report.row("kfac_factored").cosine, float(v @ best / v.norm() / best.norm()), rel_tol=1e-9)


# ---- nothing of the user's is changed; any module


def test_the_model_is_left_as_it_was():
    case = random_case((4, 5, 3))
    model = case.model.float().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    comparison.compare(model, case.likelihood, case.inputs.float(), case.targets, 0.05, ["kfac", "empirical"])
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


class Scaled(torch.nn.Module):
    """A layer with no rule: its parameter is used elementwise."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.rand(4))

    def forward(self, x):
        return x * self.scale.exp()


class LastStep(torch.nn.Module):
    """An LSTM and a readout of its last state."""

    def __init__(self):
        super().__init__()
        self.lstm, self.out = torch.nn.LSTM(2, 3, batch_first=True), torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


ANY = {
    "convolution": (
        lambda: torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, 2, 1), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(8, 3)),
        (1, 4, 4),
    ),
    "lstm": (LastStep, (4, 2)),
    "own layer": (lambda: torch.nn.Sequential(torch.nn.Linear(3, 4), Scaled(), torch.nn.Tanh(), torch.nn.Linear(4, 3)), (3,)),
}  # fmt: skip


@pytest.mark.parametrize("name", ANY)
def test_any_module_gets_a_report(name, generator):
    make, shape = ANY[name]
    torch.manual_seed(0)
    model, likelihood = make(), likelihoods.Categorical()
    inputs, targets = torch.randn(5, *shape, generator=generator), torch.tensor([0, 1, 2, 1, 0])
    report = comparison.compare(model, likelihood, inputs, targets, 0.05, ["kfac", "block_diagonal", "diagonal", "empirical"])
    assert report.failures == {}
    F = fisher.dense_fisher(model, likelihood, inputs).matrix
    g = fisher.natural_gradient(model, likelihood, inputs, targets, 0.05).gradient
    damped, best = F + 0.05 * torch.eye(len(F)), torch.linalg.solve(F + 0.05 * torch.eye(len(F)), g)
    for each in ("kfac", "block_diagonal", "diagonal"):
        M = fisher.ESTIMATORS[each](model, likelihood, inputs).to_dense()
        v = torch.linalg.solve(M + 0.05 * torch.eye(len(F)), g)
        row = report.row(each)
        assert math.isclose(row.efficiency, float((g @ v) ** 2 / (v @ damped @ v) / (g @ best)), rel_tol=1e-9)
        assert math.isclose(row.frobenius_error, float((M - F).norm() / F.norm()), rel_tol=1e-9, abs_tol=1e-12)


def test_a_single_layer_has_no_rows_by_layer():
    case = random_case((3, 2))
    report = comparison.compare(*case.data, case.targets, 0.05, ["kfac"])
    assert {row.layer for row in report.rows} == {"all"}
    assert models.mlp((3, 2)) is not None
