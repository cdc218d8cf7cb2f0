"""Every kind of layer, against PyTorch's own gradients of one example at a time, and against each other.

Tolerances are relative to the largest entry: 1e-12 for sums of a few products in float64.
"""

import copy
from functools import cache

import pytest
import torch
from layer_cases import GENERIC, LAYERS, LayerCase, Recurrent, TimeFirst, layer_case, pictures
from oracles import fisher_of_any, module_blocks, scores_of_any
from torch import nn

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.fisher import (
    ESTIMATORS,
    chunks,
    dense_fisher,
    gram_fisher,
    group_edges,
    implicit_fisher,
    kfac_fisher,
    natural_gradient,
    overview,
    score_pass,
    tiled_fisher,
)
from natgrad_lab.likelihoods import Bernoulli, Categorical, Gaussian
from natgrad_lab.optimizers import METHODS
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.structures import Implicit

ALL = LAYERS | GENERIC
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
every = pytest.mark.parametrize("name", ALL)


def off(found, expected):
    """Largest difference, relative to the largest entry."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


def exact(case):
    return fisher_of_any(case.model, case.density, case.inputs, case.class_dim)


@cache
def problem(name):
    """The case of that name and its Fisher by the loops; only to be read."""
    case = ALL[name]()
    return case, exact(case)


@cache
def gradients(name):
    """Scores of its targets by the loops, (N, P)."""
    case, _ = problem(name)
    return scores_of_any(case.model, case.density, case.inputs, case.targets, case.class_dim)


def agrees(found, fisher, tolerance=1e-12):
    """Whether a structure is the matrix; by a few products where there are only products."""
    if isinstance(found, Implicit):
        x = torch.randn(len(fisher), 2).to(found.dtype)
        return off(found.matmul(x).to(fisher), fisher @ x.to(fisher)) < tolerance
    return off(found.to_dense().to(fisher), fisher) < tolerance


def block_part(matrix, model):
    return torch.block_diag(*(matrix[block, block] for block in module_blocks(model)))


# ---- everything exact is exact


@every
def test_exact_estimators_equal_the_loops(name):
    case, fisher = problem(name)
    assert fisher.abs().max() > 1e-3
    expected = {
        "dense": fisher,
        "gram": fisher,
        "implicit": fisher,
        "block_diagonal": block_part(fisher, case.model),
        "diagonal": torch.diag(fisher.diagonal()),
    }
    for estimator, matrix in expected.items():
        assert agrees(ESTIMATORS[estimator](*case.data), matrix), estimator


@every
def test_products_tiles_and_diagonals_of_a_gram_equal_its_dense(name):
    case, fisher = problem(name)
    gram = tiled_fisher(*case.data)
    dim = len(fisher)
    x, v = torch.randn(dim, 2), torch.randn(gram.num_rows, 2)
    rows = torch.cat([block.to_dense() for block in gram.blocks], 1)
    assert off(rows.T @ rows, fisher) < 1e-12
    assert off(gram.row_gram, rows @ rows.T) < 1e-12 and off(gram.diagonal(), fisher.diagonal()) < 1e-12
    assert off(gram.rows_matmul(x), rows @ x) < 1e-12 and off(gram.rmatmul(v), rows.T @ v) < 1e-12
    assert off(gram.rows_matmul(x[:, 0]), rows @ x[:, 0]) < 1e-12 and off(gram.rmatmul(v[:, 0]), rows.T @ v[:, 0]) < 1e-12
    for left in (slice(0, dim), slice(1, 2), slice(dim // 3, -1), slice(dim - 2, dim + 99), slice(-3, None)):
        for right in (slice(0, 1), slice(dim // 2, dim)):
            tile = gram.tile(left, right)
            assert tile.shape == fisher[left, right].shape
            assert (tile - fisher[left, right]).abs().max() <= 1e-12 * fisher.abs().max()


@every
@pytest.mark.parametrize("resolution", [7, 10_000])
def test_an_overview_is_the_rms_of_the_blocks(name, resolution):
    case, fisher = problem(name)
    found = overview(*case.data, resolution=resolution)
    edges = found.edges.tolist()
    assert edges[0] == 0 and edges[-1] == len(fisher) and sorted(set(edges)) == edges
    assert {block.stop for block in module_blocks(case.model)} <= set(edges)
    if resolution > len(fisher):
        assert len(edges) == len(fisher) + 1  # single entries
    groups = list(zip(edges[:-1], edges[1:], strict=True))
    means = torch.zeros(len(groups), len(fisher))
    for row, (start, stop) in zip(means, groups, strict=True):
        row[start:stop] = 1 / (stop - start)
    expected = (means @ fisher.square() @ means.T).sqrt()
    # a square root: what is 0 exactly may come out as sqrt(eps) of the largest
    assert (found.rms.square() - expected.square()).abs().max() < 1e-10 * expected.max() ** 2
    assert (found.rms - expected)[expected > 1e-3 * expected.max()].abs().max() < 1e-10 * expected.max()


@every
def test_the_empirical_fisher_and_the_gradient_equal_the_loops(name):
    case, scores = problem(name)[0], gradients(name)
    expected = scores.T @ scores / len(scores)
    for estimator in ("dense", "gram", "implicit"):
        assert agrees(ESTIMATORS[estimator](*case.data, "empirical", targets=case.targets), expected), estimator
    passed = score_pass(*case.data, loss_targets=case.targets)
    assert off(passed.gradient(), -scores.mean(0)) < 1e-12
    assert abs(passed.loss - case.likelihood.loss(case.model(case.inputs), case.targets)) < 1e-12 * (1 + passed.loss)


@every
def test_the_flat_order_goes_to_torchs_and_back_and_every_place_has_its_name(name):
    model = ALL[name]().model
    layout = ParameterLayout(model)
    torchs = nn.utils.parameters_to_vector([p for p in model.parameters() if p.requires_grad]).detach()
    vector = layout.parameter_vector()
    assert torch.equal(layout.to_torch(vector), torchs) and torch.equal(layout.from_torch(torchs), vector)
    assert [layer.slice for layer in layout.layers] == module_blocks(model)
    for index in range(layout.dim):
        key, _, place = layout.parameter_name(index).partition("[")
        where = tuple(int(i) for i in place.rstrip("]").split(",") if i)
        assert model.get_parameter(key)[where] == vector[index]


@every
@pytest.mark.parametrize("damping", [1e-3])
def test_routes_to_the_natural_gradient_agree(name, damping):
    (case, fisher), scores = problem(name), gradients(name)
    expected = torch.linalg.solve(fisher + damping * torch.eye(len(fisher)), -scores.mean(0))
    condition = 1 + float(torch.linalg.eigvalsh(fisher)[-1]) / damping
    for route in (None, "dense", "gram", "cg"):
        found = natural_gradient(*case.data, case.targets, damping, route=route)
        tolerance = 1e-13 if found.route != "cg" else 1e-7
        assert (found.direction - expected).norm() < tolerance * condition * expected.norm(), found.route
        assert found.residual < 1e-7


@every
def test_float32_agrees_to_its_precision(name):
    case, fisher = problem(name)
    model, inputs = copy.deepcopy(case.model).float(), case.inputs
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    for estimator in ("dense", "gram", "implicit"):
        found = ESTIMATORS[estimator](model, case.likelihood, inputs)
        assert found.dtype == torch.float32 and agrees(found, fisher, 2e-5), estimator


def test_the_generic_route_says_so_and_what_it_costs():
    for name in LAYERS:
        assert score_pass(*LAYERS[name]().data).note == "", name
    for name in GENERIC:
        assert "no rule covers" in dense_fisher(*GENERIC[name]().data).note, name
    case = GENERIC["own parameters"]()
    note = "no rule covers layer '1' (Scale): generic route, 4 forward and 4 backward passes, 20 numbers"
    for estimator in ("dense", "gram", "block_diagonal", "diagonal", "kfac"):
        found = ESTIMATORS[estimator](*case.data)
        assert found.note == note and "generic route" in repr(found), estimator


@pytest.mark.parametrize("name", ["LSTM, two layers, both directions", "Conv2d, stride and padding", "transformer"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(name, mode):
    case, fisher = problem(name)
    x = torch.randn(len(fisher))
    with mode():
        for estimator in ("dense", "implicit"):
            assert off(ESTIMATORS[estimator](*case.data).matmul(x), fisher @ x) < 1e-12


@pytest.mark.parametrize("name", ["LSTM, two layers, both directions", "BatchNorm2d", "transformer", "partly frozen LSTM"])
@pytest.mark.parametrize("estimator", ["dense", "implicit", "kfac"])
def test_a_call_leaves_the_model_as_it_was(name, estimator):
    case = ALL[name]()
    case.model.get_submodule("0" if name in ("BatchNorm2d", "transformer") else "out").train()
    before = copy.deepcopy(case.model.state_dict())
    modes = [module.training for module in case.model.modules()]
    wanted = [parameter.requires_grad for parameter in case.model.parameters()]
    state = torch.get_rng_state()
    for kind in ("exact", "monte_carlo", "empirical"):
        ESTIMATORS[estimator](*case.data, kind, targets=case.targets).matmul(torch.ones(ParameterLayout(case.model).dim))
    assert all(torch.equal(value, before[key]) for key, value in case.model.state_dict().items())
    assert modes == [module.training for module in case.model.modules()]
    assert wanted == [parameter.requires_grad for parameter in case.model.parameters()]
    assert all(parameter.grad is None for parameter in case.model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in case.model.modules())


# ---- one model written in three ways


def three_ways(positions=4):
    """A Linear on a sequence, Conv1d(k=1), Conv2d(1x1): the same function of (N, T, 3) for the same weights."""
    generator = torch.Generator().manual_seed(3)
    weight, bias, readout = (torch.randn(shape, generator=generator) for shape in ((4, 3), (4,), (2, 4)))
    models = []
    for into, layer, back in (
        (lambda x: x, nn.Linear(3, 4), lambda y: y),
        (lambda x: x.mT, nn.Conv1d(3, 4, 1), lambda y: y.mT),
        (lambda x: x.mT.unflatten(2, (2, -1)), nn.Conv2d(3, 4, 1), lambda y: y.flatten(2).mT),
    ):
        model = Sandwich(into, layer, back)
        with torch.no_grad():
            layer.weight.copy_(weight.view_as(layer.weight))
            layer.bias.copy_(bias)
            model.out.weight.copy_(readout)
        models.append(model)
    return models, torch.randn(5, positions, 3, generator=generator)


class Sandwich(nn.Module):
    def __init__(self, into, layer, back):
        super().__init__()
        self.into, self.layer, self.back, self.out = into, layer, back, nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.out(torch.tanh(self.back(self.layer(self.into(x)))).mean(1))


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher_type", ["exact", "monte_carlo"])
def test_a_linear_on_a_sequence_is_a_convolution_of_size_one(weight_sharing, fisher_type):
    models, inputs = three_ways()
    dense = [dense_fisher(model, Categorical(), inputs, fisher_type).to_dense() for model in models]
    kfac = [kfac_fisher(m, Categorical(), inputs, fisher_type, weight_sharing=weight_sharing).to_dense() for m in models]
    for other in (1, 2):
        assert off(dense[other], dense[0]) < 1e-13 and off(kfac[other], kfac[0]) < 1e-13
    assert off(kfac[0], dense[0]) > 1e-2


def test_a_layer_run_twice_is_a_layer_on_two_positions():
    case = layer_case(Pairs(called=True), (2, 3))
    together = copy.deepcopy(case.model)
    together.called = False
    for estimate in (dense_fisher, gram_fisher, kfac_fisher):
        found, expected = (estimate(model, case.likelihood, case.inputs).to_dense() for model in (case.model, together))
        assert off(found, expected) < 1e-13


class Pairs(nn.Module):
    def __init__(self, called):
        super().__init__()
        self.called, self.fc, self.out = called, nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x):
        y = torch.stack([self.fc(x[:, 0]), self.fc(x[:, 1])], 1) if self.called else self.fc(x)
        return self.out(torch.tanh(y).sum(1))


def test_unrolled_recurrent_modules_give_pytorchs_outputs():
    for name, make in LAYERS.items():
        case = make()
        if isinstance(case.model, Recurrent):
            outputs = score_pass(*case.data).outputs
            assert off(outputs, case.likelihood.positions(case.model(case.inputs).detach())) < 1e-13, name


# ---- K-FAC with shared weights


class DeepLinear(nn.Module):
    """Linear layers on every position of (N, T, 3); `pool` takes the positions together, or keeps them."""

    def __init__(self, pool=None, bias=False):
        super().__init__()
        self.layers, self.pool = nn.Sequential(nn.Linear(3, 4, bias=bias), nn.Linear(4, 2, bias=bias)), pool

    def forward(self, x):
        y = self.layers(x)
        return y if self.pool is None else self.pool(y)


SHARING = {
    "every position, expand": (None, False, "expand", True),
    "every position with bias, expand": (None, True, "expand", True),
    "every position, reduce": (None, False, "reduce", False),
    "mean, reduce": (lambda y: y.mean(1), False, "reduce", True),
    "mean with bias, reduce": (lambda y: y.mean(1), True, "reduce", True),
    "mean, expand": (lambda y: y.mean(1), False, "expand", False),
    "sum, reduce": (lambda y: y.sum(1), False, "reduce", True),
    "sum with bias, reduce": (lambda y: y.sum(1), True, "reduce", True),
    "last position, reduce": (lambda y: y[:, -1], False, "reduce", False),
}


@pytest.mark.parametrize("pool, bias, weight_sharing, equal", SHARING.values(), ids=SHARING.keys())
def test_when_kfac_with_shared_weights_is_exact(pool, bias, weight_sharing, equal):
    """Deep linear, Gaussian: expand with a term at every position, reduce with positions summed or averaged."""
    case = layer_case(DeepLinear(pool, bias), (4, 3), "gaussian", num_examples=6)
    blocks = block_part(exact(case), case.model)
    found = kfac_fisher(*case.data, weight_sharing=weight_sharing).to_dense()
    assert (off(found, blocks) < 1e-12) is equal
    if not equal:
        assert off(found, blocks) > 1e-2


def test_kfac_of_a_convolution_with_one_location_is_that_of_a_linear_layer():
    case = pictures(nn.Conv2d(2, 3, (2, 3)), shape=(2, 2, 3))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Tanh(), nn.Linear(3, 2))
    with torch.no_grad():
        linear[1].weight.copy_(case.model[0].weight.flatten(1))
        linear[1].bias.copy_(case.model[0].bias)
    linear[3].load_state_dict(case.model[3].state_dict())
    for weight_sharing in ("expand", "reduce"):
        found = kfac_fisher(*case.data, weight_sharing=weight_sharing).to_dense()
        assert off(found, kfac_fisher(linear, *case.data[1:]).to_dense()) < 1e-13


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
def test_kfac_factors_with_shared_weights_are_the_loops(weight_sharing):
    """Conv1d written as loops over examples, scores and windows."""
    case = layer_case(nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)), (2, 4), "gaussian")
    G, A = torch.zeros(3, 3), torch.zeros(5, 5)
    for x in case.inputs:
        windows = torch.stack([torch.cat([x[:, s : s + 2].flatten(), torch.ones(1)]) for s in range(3)])
        z = case.model[0](x[None]).detach().requires_grad_()
        output = case.model[1:](z)[0]
        scores = [torch.autograd.grad(f, z, retain_graph=True)[0][0] / 0.3**0.5 for f in output]  # (3, S)
        if weight_sharing == "expand":
            A += windows.T @ windows / 12
            G += sum(s @ s.T for s in scores) / 4
        else:
            A += torch.outer(windows.mean(0), windows.mean(0)) / 4
            G += sum(torch.outer(s.sum(1), s.sum(1)) for s in scores) / 4
    block = kfac_fisher(*case.data, weight_sharing=weight_sharing).blocks[0]
    assert off(block.left, G) < 1e-13 and off(block.right, A) < 1e-13


@every
@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
def test_kfac_is_an_approximation_of_the_right_size_everywhere(name, weight_sharing):
    case, fisher = problem(name)
    found = kfac_fisher(*case.data, weight_sharing=weight_sharing)
    dense, blocks = found.to_dense(), block_part(fisher, case.model)
    assert dense.shape == blocks.shape and off(dense, dense.T) < 1e-13
    assert torch.linalg.eigvalsh(dense)[0] > -1e-12 * dense.abs().max()
    if weight_sharing == "expand":
        assert 0.02 < found.trace() / blocks.trace() < 50
    x = torch.randn(len(dense))
    assert off(found.solve(x, 0.1), torch.linalg.solve(dense + 0.1 * torch.eye(len(dense)), x)) < 1e-10


# ---- chunks


CHUNKED = ("Linear on a sequence", "Conv2d of groups", "LSTM", "Embedding", "own parameters", "BatchNorm1d")


def copies(case, count=300):
    """More examples than are never split."""
    index = torch.randint(len(case.inputs), (count,), generator=torch.Generator().manual_seed(1))
    return LayerCase(case.model, case.likelihood, case.inputs[index], case.targets[index], case.class_dim)


@pytest.mark.parametrize("name", CHUNKED)
@pytest.mark.parametrize("fisher_type", ["exact", "empirical"])
def test_chunked_passes_give_what_one_pass_gives(monkeypatch, name, fisher_type):
    case = copies(ALL[name]())
    estimators = ("dense", "block_diagonal", "diagonal")
    whole = [ESTIMATORS[e](*case.data, fisher_type, targets=case.targets).to_dense() for e in estimators]
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 1)
    monkeypatch.setattr(chunks, "_SMALL", 128)
    assert len(list(chunks.passes(*case.data, fisher_type, case.targets))) == 3
    for estimator, expected in zip(estimators, whole, strict=True):
        found = ESTIMATORS[estimator](*case.data, fisher_type, targets=case.targets).to_dense()
        assert off(found, expected) < 1e-12, estimator


def test_kfac_factors_of_chunks_average_to_the_whole(monkeypatch):
    case = copies(ALL["Linear on a sequence"]())
    whole = kfac_fisher(*case.data)
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 1)
    monkeypatch.setattr(chunks, "_SMALL", 128)
    for (_, found), (_, expected) in zip(kfac_fisher(*case.data).tensors(), whole.tensors(), strict=True):
        assert off(found, expected) < 1e-12


def test_samples_of_chunks_differ_and_are_right_on_average(monkeypatch):
    """4 x 75 copies of the same examples: as many independent samples. Trace within 4 standard errors over 20 seeds."""
    case = copies(ALL["Conv2d"]())
    exact_trace = dense_fisher(*case.data).trace()
    one = dense_fisher(*case.data, "monte_carlo", num_samples=2).to_dense()
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 1)
    monkeypatch.setattr(chunks, "_SMALL", 128)
    again = [dense_fisher(*case.data, "monte_carlo", num_samples=2).to_dense() for _ in range(2)]
    assert torch.equal(*again) and not torch.equal(again[0], one)
    traces = torch.stack(
        [dense_fisher(*case.data, "monte_carlo", generator=torch.Generator().manual_seed(s)).trace() for s in range(20)]
    )
    assert abs(traces.mean() - exact_trace) < 4 * traces.std() / 20**0.5


# ---- what is refused, and what is odd and right


def test_positions_of_targets_are_those_of_outputs():
    case = LAYERS["Conv2d at every pixel, classes second"]()
    wrong = case.targets.flatten(1)
    with pytest.raises(ValueError, match=r"one class per position \(class_dim=1\): targets of shape \(4, 2, 2\); got \(4, 4\)"):
        natural_gradient(*case.data, wrong, 1e-2)
    with pytest.raises(ValueError, match=r"targets of shape \(4, 3, 2\)"):
        natural_gradient(case.model, Categorical(), case.inputs, case.targets, 1e-2)


@pytest.mark.parametrize("likelihood", [Gaussian(0.3), Bernoulli()])
def test_pictures_as_outputs_are_rows_of_pixels(likelihood):
    model, inputs = nn.Conv2d(1, 2, 2), torch.randn(4, 1, 3, 3)
    flat = nn.Sequential(model, nn.Flatten())
    found, expected = (dense_fisher(m, likelihood, inputs).to_dense() for m in (model, flat))
    assert off(found, expected) < 1e-14


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.core, self.out = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        lengths = torch.full((len(x),), x.shape[1] - 1)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.out(self.core(packed)[1][0][-1])


@pytest.mark.parametrize("estimator", ["dense", "gram", "implicit"])
def test_packed_sequences_take_the_generic_route(estimator):
    case = layer_case(Packed(), (3, 2))
    assert agrees(ESTIMATORS[estimator](*case.data), exact(case))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_linear_on_time_first_sequences(count):
    case = layer_case(TimeFirst(), (3, 2), num_examples=count)
    for estimator in ("dense", "gram", "implicit"):
        assert agrees(ESTIMATORS[estimator](*case.data), exact(case)), estimator


def test_a_linear_on_time_first_sequences_with_as_many_steps_as_examples():
    """Nothing in the shape says which is which; what the examples do does."""
    case = layer_case(TimeFirst(), (3, 2), num_examples=3)
    with pytest.raises(UnsupportedLayerError, match=r"layer 'inner' sees it, or has its examples in another dimension"):
        dense_fisher(*case.data)
    assert agrees(implicit_fisher(*case.data), exact(case))


@every
def test_a_batch_of_one(name):
    case, _ = problem(name)
    case = LayerCase(case.model, case.likelihood, case.inputs[:1], case.targets[:1], case.class_dim)
    for estimator in ("dense", "gram", "implicit"):
        assert agrees(ESTIMATORS[estimator](*case.data), exact(case)), estimator


def test_an_rnn_that_runs_without_gradients_is_refused():
    class Detached(Recurrent):
        def forward(self, x):
            with torch.no_grad():
                y = self.core(x)[0]
            return self.out(y[:, -1])

    with pytest.raises(UnsupportedLayerError, match=r"layer 'core.ih_l0' \(RNN\) runs where gradients are switched off"):
        dense_fisher(Detached(nn.RNN, batch_first=True), Categorical(), torch.randn(4, 3, 2))


def test_nested_tensors_and_dictionaries_are_refused():
    model = nn.Linear(2, 2)
    nested = torch.nested.nested_tensor([torch.randn(2, 2), torch.randn(3, 2)], layout=torch.jagged)
    for estimate in (dense_fisher, implicit_fisher):
        with pytest.raises((ValueError, TypeError), match="(?i)nested|jagged"):
            estimate(model, Categorical(), nested)

    class Named(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x)}

    for estimate in (dense_fisher, implicit_fisher):
        with pytest.raises(ValueError, match=r"got dict"):
            estimate(Named(2, 2), Categorical(), torch.randn(3, 2))


def test_embeddings_whose_gradient_is_not_that_of_their_output_are_refused():
    for options in ({"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}):
        model = nn.Sequential(nn.Embedding(4, 3, **options), nn.Linear(3, 2))
        for estimate in ESTIMATORS.values():
            with pytest.raises(UnsupportedLayerError, match=r"layer '0' \(Embedding\) renormalizes"):
                estimate(model, Categorical(), torch.randint(4, (5,)))


def test_tiles_and_resolutions_that_make_no_sense_are_refused():
    gram = gram_fisher(*LAYERS["Conv1d"]().data)
    for where in (slice(3, 3), slice(5, 2), slice(0, 10, 2), slice(10_000, 20_000), slice(None, None, -1)):
        with pytest.raises(ValueError, match=f"a tile needs non-empty slices of step 1 within 0 .. {gram.dim}"):
            gram.tile(where, slice(0, 3))
    for resolution in (0, -3):
        with pytest.raises(ValueError, match="resolution must be a positive integer"):
            overview(*LAYERS["Conv1d"]().data, resolution=resolution)


def test_groups_keep_whole_units_where_they_can():
    layout = ParameterLayout(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1, bias=False)))
    assert group_edges(layout, 1).tolist() == [0, 16, 20] and group_edges(layout, 5).tolist() == [0, 4, 8, 12, 16, 20]


def test_many_outputs_at_once():
    """A Bernoulli picture of 28 x 28: K = 784 scores per example."""
    generator = torch.Generator().manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 784)), torch.rand(3, 3, generator=generator)
    diagonal = ESTIMATORS["diagonal"](model, Bernoulli(), inputs)
    x = torch.randn(diagonal.dim, generator=generator)
    gram, implicit = gram_fisher(model, Bernoulli(), inputs), implicit_fisher(model, Bernoulli(), inputs)
    assert off(gram.matmul(x), implicit.matmul(x)) < 1e-12 and off(gram.diagonal(), diagonal.diagonal()) < 1e-12


@pytest.mark.parametrize("make", [lambda: Recurrent(nn.LSTM), lambda: Recurrent(nn.GRU, num_layers=2, batch_first=True)])
@pytest.mark.parametrize("estimator", ["dense", "gram", "implicit"])
def test_hooks_of_the_user_on_a_recorded_layer_act_after_it(make, estimator):
    case = layer_case(make(), (3, 2))
    case.model.core.register_forward_hook(lambda module, args, output: (2 * output[0], output[1]))
    case.model.out.register_forward_hook(lambda module, args, output: torch.tanh(output))
    assert agrees(ESTIMATORS[estimator](*case.data), exact(case))


def test_what_can_be_differentiated_once_only_has_rows_and_no_products():
    case = layer_case(nn.Sequential(nn.EmbeddingBag(4, 3), nn.Linear(3, 2)), (3,), vocabulary=4)
    assert agrees(dense_fisher(*case.data), exact(case)) and agrees(gram_fisher(*case.data), exact(case))
    with pytest.raises(UnsupportedLayerError, match="differentiate only once, backwards.*Use gram_fisher or dense_fisher"):
        implicit_fisher(*case.data)


@pytest.mark.parametrize("method", ["exact_ngd", "kfac"])
def test_a_step_on_a_new_shape_is_verified_again(method):
    """The first step, of 5 examples, takes the generic route; with 3 examples of 3 steps the layer's input looks recordable."""
    optimizer = METHODS[method](TimeFirst(), Categorical())
    optimizer.step(torch.randn(5, 3, 2), torch.zeros(5, dtype=torch.long))
    with pytest.raises(UnsupportedLayerError, match="another dimension than the first"):
        optimizer.step(torch.randn(3, 3, 2), torch.zeros(3, dtype=torch.long))


def test_the_last_chunk_is_verified_again(monkeypatch):
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 1)
    monkeypatch.setattr(chunks, "_SMALL", 4)
    case = layer_case(TimeFirst(), (3, 2), num_examples=7)  # 4, then 3 examples of 3 steps
    with pytest.raises(UnsupportedLayerError, match="another dimension than the first"):
        dense_fisher(*case.data)


@every
@pytest.mark.parametrize("method, choices", [("kfac", {}), ("exact_ngd", {})])
def test_steps_go_downhill_on_every_kind_of_layer(name, method, choices):
    case = ALL[name]()
    optimizer = METHODS[method](case.model, case.likelihood, lr=1e-3, damping=0.1, **choices)
    records = [optimizer.step(case.inputs, case.targets) for _ in range(2)]
    assert records[1].loss < records[0].loss and records[1].status == "ok"


def test_an_overview_of_one_group_a_layer():
    case, fisher = problem("Conv1d")
    blocks = module_blocks(case.model)
    expected = torch.tensor([[float(fisher[a, b].square().mean()) ** 0.5 for b in blocks] for a in blocks])
    assert off(overview(*case.data, resolution=1).rms, expected) < 1e-12


def test_a_model_with_parameters_of_its_own_is_called_the_model():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(300, 20))

        def forward(self, x):
            return x @ self.weight.T

    with pytest.raises(UnsupportedLayerError, match=r"the model itself \(Own\)"):
        kfac_fisher(Own(), Gaussian(), torch.randn(4, 20))
