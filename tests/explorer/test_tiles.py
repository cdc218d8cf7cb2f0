"""Every tile against the dense Fisher, by loops over its cells: all routes, all levels, ragged edges, all structures."""

import numpy as np
import pytest
import torch
from torch import nn

from natgrad_lab.explorer import (
    Approximation,
    Difference,
    ExactFisher,
    Explorer,
    Pyramid,
    difference,
    exact,
    explorer,
    row_pairs,
)
from natgrad_lab.fisher import ESTIMATORS, dense_fisher, gram_fisher, overview
from natgrad_lab.likelihoods import Categorical, Gaussian
from natgrad_lab.models import mlp
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.structures import ConcatRows, Dense, Gram

# Values are sums of products of a few hundred numbers of size one: 1e-13 of the largest entry leaves room for rounding.
CLOSE = 1e-13


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 3, 2), nn.Linear(12, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.conv(x)).flatten(1))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.out = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.norm(self.first(x)))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(6, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.out(self.table(x).mean(1))


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


NETWORKS = {
    "mlp": lambda: (mlp((6, 5, 4, 3)), normal(4, 6)),
    "wide enough to contract over classes": lambda: (mlp((19, 4, 3)), normal(4, 19)),
    "one example, one unit": lambda: (mlp((3, 1)), normal(1, 3)),
    "no bias, dead units": lambda: (mlp((4, 6, 2), "relu", bias=False), -normal(5, 4).abs()),
    "convolution": lambda: (Conv(), normal(3, 2, 3, 3)),
    "normalization": lambda: (Normed(), normal(4, 4)),
    "embedding": lambda: (Words(), torch.tensor([[0, 2, 2], [5, 1, 0]])),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


def by_loops(matrix, rows, columns, how):
    matrix = np.asarray(matrix)
    out = np.empty((len(rows) - 1, len(columns) - 1))
    for r in range(len(rows) - 1):
        for c in range(len(columns) - 1):
            block = matrix[rows[r] : rows[r + 1], columns[c] : columns[c + 1]]
            out[r, c] = np.sqrt((block**2).mean()) if how == "rms" else block.mean()
    return out


def some_edges(dim, seed):
    """Ragged cells, a part of the axis; now and then all of it, or single parameters."""
    rng = np.random.default_rng(seed)
    if seed % 5 == 0:
        return np.arange(dim + 1)[: 3 + seed]
    return np.sort(rng.choice(dim + 1, size=min(dim + 1, int(rng.integers(2, 14))), replace=False))


def assert_tiles_agree(source, dense, count=11, close=CLOSE):
    scale = float(dense.abs().max()) or 1.0
    for seed in range(count):
        rows = some_edges(len(dense), seed)
        columns = rows if seed % 3 == 0 else some_edges(len(dense), 100 + seed)
        for how in ("rms", "mean"):
            got = source.tile(rows, columns, how).numpy()
            np.testing.assert_allclose(
                got, by_loops(dense, rows, columns, how if got.size else how), rtol=0, atol=close * scale
            )


def entry_or(values, how):
    return np.abs(values) if how == "rms" else values


@pytest.mark.parametrize("fisher_type", ["exact", "monte_carlo"])
def test_exact_tiles_at_any_edges(network, fisher_type):
    model, inputs = network
    arguments = model, Categorical(), inputs, fisher_type
    assert_tiles_agree(ExactFisher(gram_fisher(*arguments)), dense_fisher(*arguments).to_dense())


@pytest.mark.parametrize("route", row_pairs.ROUTES)
@pytest.mark.parametrize("fisher_type", ["exact", "monte_carlo"])
def test_every_route_alone(network, route, fisher_type, monkeypatch):
    model, inputs = network
    gram = gram_fisher(model, Categorical(), inputs, fisher_type)
    dense = dense_fisher(model, Categorical(), inputs, fisher_type).to_dense()
    rows = [block.to_dense() for block in gram.blocks]
    monkeypatch.setattr(row_pairs, "_STRIP", 40), monkeypatch.setattr(row_pairs, "_WORKSPACE", 60)
    offsets = np.cumsum([0] + [block.shape[1] for block in rows])
    for i, left in enumerate(gram.blocks):
        for j, right in enumerate(gram.blocks):
            block = dense[offsets[i] : offsets[i + 1], offsets[j] : offsets[j + 1]]
            for seed in range(3):
                edges = some_edges(len(block), seed), some_edges(block.shape[1], seed + 50)
                cost, squares = row_pairs.ROUTES[route]
                if np.isfinite(cost(left, right, *edges)):
                    areas = np.outer(*map(np.diff, edges))
                    expected = by_loops(block, *edges, "rms") ** 2 * areas
                    got = squares(left, right, *edges)
                    # An inner product of Gram matrices cancels: right to rounding of the matrix' own sum of squares.
                    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-13 * float(dense.square().sum()))


def test_every_unit_cut_alike(monkeypatch):
    gram = gram_fisher(*(lambda m, x: (m, Categorical(), x))(*NETWORKS["wide enough to contract over classes"]()))
    for left, right in ((0, 0), (0, 1), (1, 1)):
        left, right = gram.blocks[left], gram.blocks[right]
        dense = (left.to_dense().T @ right.to_dense()).numpy()
        edges = [np.sort(np.concatenate([np.arange(0, n + 1, w), np.arange(3, n, w)])) for n, w in
                 ((block.shape[1], row_pairs.width_of(block)) for block in (left, right))]  # fmt: skip
        expected = by_loops(dense, *edges, "rms") ** 2 * np.outer(*map(np.diff, edges))
        one, two = row_pairs._pieces(left, edges[0]), row_pairs._pieces(right, edges[1])
        assert one.is_grid and two.is_grid
        np.testing.assert_allclose(row_pairs._by_grid(left, right, one, two), expected, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("mode", ["_by_unit", "_by_span"])
def test_both_orders_of_pieces(mode, monkeypatch):
    model, inputs = NETWORKS["wide enough to contract over classes"]()
    other = {"_by_unit": "_by_span", "_by_span": "_by_unit"}[mode]
    monkeypatch.setattr(row_pairs, f"{other}_cost", lambda *_: float("inf"))
    monkeypatch.setattr(row_pairs, f"{mode}_cost", lambda *_: 0.0)
    monkeypatch.setattr(row_pairs, "_WORKSPACE", 20)
    gram = gram_fisher(model, Categorical(), inputs)
    left, right = gram.blocks[:2]
    dense = (left.to_dense().T @ right.to_dense()).numpy()
    edges = np.array([2, 7, 21, 55, 80]), np.array([0, 3, 4, 9, 15])
    expected = by_loops(dense, *edges, "rms") ** 2 * np.outer(*map(np.diff, edges))
    np.testing.assert_allclose(row_pairs.piece_squares(left, right, *edges), expected, rtol=1e-10, atol=1e-16)


def test_table_of_units_or_not(network, monkeypatch):
    model, inputs = network
    gram, dense = gram_fisher(model, Gaussian(), inputs), dense_fisher(model, Gaussian(), inputs).to_dense()
    edges = Pyramid(ParameterLayout(model)).edges(12)
    for once in (0.0, 1e30):
        monkeypatch.setattr(exact, "_ONCE", once)
        monkeypatch.setattr(exact, "_STEP", 30)
        got = ExactFisher(gram).tile(edges, edges)
        np.testing.assert_allclose(got, by_loops(dense, edges, edges, "rms"), rtol=1e-10, atol=1e-14 * float(dense.max()))


@pytest.mark.parametrize("level", range(8))
def test_every_tile_of_every_level_and_its_ragged_ends(level, monkeypatch):
    from natgrad_lab.explorer import explore, pyramid

    monkeypatch.setattr(pyramid, "TILE", 7), monkeypatch.setattr(explore, "TILE", 7)
    model, inputs = mlp((6, 5, 4, 3)), normal(4, 6)
    dense = dense_fisher(model, Categorical(), inputs).to_dense()
    seen = explorer(model, Categorical(), inputs, approximations=["kfac"])
    kfac = ESTIMATORS["kfac"](model, Categorical(), inputs).to_dense()
    count, edges = seen.pyramid.num_tiles(level), seen.pyramid.edges(level)
    for name, truth in (("exact", dense), ("kfac", kfac), ("kfac − exact", kfac - dense)):
        for how in ("rms", "mean"):
            tiles = [[seen.tile(name, level, i, j, how) for j in range(count)] for i in range(count)]
            expected = np.asarray(truth) if level == 0 else by_loops(truth, edges, edges, how)
            # float32 on the way to the page: 6e-8 of each value; zeros come back as the rounding of float64.
            np.testing.assert_allclose(np.block(tiles), expected, rtol=1e-6, atol=1e-9)


def test_overview_is_the_pooled_dense_matrix_and_fills_the_tiles():
    model, inputs = mlp((30, 20, 10)), normal(8, 30)
    seen = explorer(model, Categorical(), inputs)
    level, picture = seen.overview()
    edges = seen.pyramid.edges(level)
    dense = dense_fisher(model, Categorical(), inputs).to_dense()
    expected = by_loops(dense, edges, edges, "rms")
    np.testing.assert_allclose(seen.sources["exact"].tile(edges, edges), expected, rtol=1e-10)
    np.testing.assert_allclose(picture, expected, rtol=1e-6)
    assert seen.is_ready("exact", level, 0, 0, "rms")
    np.testing.assert_array_equal(seen.overview()[1], picture)


def test_agrees_with_the_overview_of_the_fisher_room():
    model, inputs = mlp((9, 8, 7, 3)), normal(6, 9)
    known = overview(model, Categorical(), inputs, resolution=30)
    got = ExactFisher(gram_fisher(model, Categorical(), inputs)).tile(known.edges.numpy(), known.edges.numpy())
    np.testing.assert_allclose(got, known.rms, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("formed", [2**22, 0])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_approximations_and_differences(name, formed, monkeypatch):
    model, inputs = mlp((6, 5, 4, 3)), normal(4, 6)
    monkeypatch.setattr(difference, "_FORMED", formed)
    matrix, dense = ESTIMATORS[name](model, Categorical(), inputs), dense_fisher(model, Categorical(), inputs).to_dense()
    seen = Approximation(matrix, name)
    assert_tiles_agree(seen, matrix.to_dense())
    # A mean square from a difference of sums is right to eps of the entries' squares: its root to 1e-8 where it is 0.
    source = Difference(ExactFisher(gram_fisher(model, Categorical(), inputs)), seen)
    assert_tiles_agree_loosely(source, matrix.to_dense() - dense, float(dense.abs().max()), CLOSE if formed else 3e-8)


def assert_tiles_agree_loosely(source, dense, scale, close):
    for seed in range(12):
        rows, columns = some_edges(len(dense), seed), some_edges(len(dense), seed + 9)
        for how in ("rms", "mean"):
            expected = by_loops(dense, rows, columns, how)
            np.testing.assert_allclose(source.tile(rows, columns, how), expected, rtol=0, atol=close * scale)


def test_kfac_of_a_convolution_minus_exact(monkeypatch):
    monkeypatch.setattr(difference, "_FORMED", 0)
    model, inputs = NETWORKS["convolution"]()
    matrix, dense = ESTIMATORS["kfac"](model, Categorical(), inputs), dense_fisher(model, Categorical(), inputs).to_dense()
    source = Difference(ExactFisher(gram_fisher(model, Categorical(), inputs)), Approximation(matrix))
    assert_tiles_agree_loosely(source, matrix.to_dense() - dense, float(dense.abs().max()), 3e-8)


def test_blocks_side_by_side():
    inner = gram_fisher(*(lambda m, x: (m, Categorical(), x))(*NETWORKS["mlp"]())).blocks
    gram = Gram((ConcatRows(inner[:2]), inner[2]))
    assert_tiles_agree(ExactFisher(gram), gram.to_dense())


def test_refusals():
    model, inputs = NETWORKS["mlp"]()
    source = ExactFisher(gram_fisher(model, Categorical(), inputs))
    with pytest.raises(ValueError, match="ascending whole numbers from 0 to 74"):
        source.tile([0, 5, 5], [0, 1])
    with pytest.raises(ValueError, match="ascending whole numbers"):
        source.tile([0.5, 3], [0, 1])
    with pytest.raises(ValueError, match="cells of one parameter each"):
        source.tile([0, 5], [0, 1], "entries")
    with pytest.raises(ValueError, match="no way to sum up a cell 'max'"):
        source.tile([0, 5], [0, 1], "max")
    with pytest.raises(ValueError, match="two matrices of one size; got 2 and 74"):
        Difference(source, Approximation(Dense(torch.eye(2))))
    with pytest.raises(ValueError, match="the matrices alone take .* Use fewer examples"):
        explorer(model, Categorical(), inputs, memory_budget=10)
    with pytest.raises(ValueError, match="level 0 has 2 tiles a side, from 0 on; got 2"):
        explorer(model, Categorical(), inputs).tile("exact", 0, 2, 0)
    with pytest.raises(ValueError, match="take both of one model"):
        Explorer(source.gram, ParameterLayout(mlp((2, 2))))


def test_the_store_keeps_its_budget_and_the_newest():
    from natgrad_lab.explorer import TileStore

    store = TileStore(1000)
    for n in range(10):
        store.put((n,), np.zeros(50, np.float32))
        store.get((0,))
    assert store.num_bytes == 1000 and store.get((0,)) is not None and store.get((1,)) is None and store.get((9,)) is not None
    store.put((9,), np.zeros(100, np.float32))
    assert store.num_bytes == 1000


def test_nothing_of_the_model_changes():
    model, inputs = NETWORKS["mlp"]()
    before = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    explorer(model, Categorical(), inputs, "monte_carlo", approximations=["kfac"]).overview()
    assert all(map(torch.equal, before, model.parameters())) and all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
