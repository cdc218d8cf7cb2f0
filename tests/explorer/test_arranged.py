"""Inverses, correlations, other orders and white coordinates: every tile against the dense matrix, numbers against eigvalsh."""

import numpy as np
import pytest
import torch
from torch import nn

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.explorer import Approximation, TooDear, eigen_cells, explorer, inverse
from natgrad_lab.explorer import arrange as arrange_module
from natgrad_lab.explorer import correlation as correlation_module
from natgrad_lab.fisher import ESTIMATORS, dense_fisher, gram_fisher
from natgrad_lab.likelihoods import Categorical, Gaussian
from natgrad_lab.models import mlp
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.structures import EigenKronecker

DAMPING = 0.03
# float32 on the way to the page is 6e-8 of a value; a sum in which much cancels is right to rounding of the largest entry.
RTOL, ATOL = 1e-6, 1e-12


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(1)
    return mlp((6, 5, 4, 3)), normal(4, 6)


@pytest.fixture
def seen(network):
    model, inputs = network
    return explorer(model, Categorical(), inputs, approximations=["kfac", "ekfac", "unit_wise"]).arranged(damping=DAMPING)


def cells_of(dense, edges, how):
    out = np.empty((len(edges) - 1,) * 2)
    for r, c in np.ndindex(out.shape):
        block = dense[edges[r] : edges[r + 1], edges[c] : edges[c + 1]]
        out[r, c] = np.sqrt((block**2).mean()) if how == "rms" else block.mean()
    return out


def assert_all_tiles(seen, name, dense, hows=(("rms", "rms"), ("mean", "mean")), atol=ATOL):
    """Every tile of every level, by loops over the dense matrix."""
    dense = np.asarray(dense, dtype=np.float64)
    scale = np.abs(dense).max() or 1.0
    for level in range(seen.pyramid.num_levels + 2):
        edges = seen.pyramid.edges(level)
        count = seen.pyramid.num_tiles(level)
        for reduce, how in hows:
            expected = dense if level == 0 else cells_of(dense, edges, how)
            tiles = np.block([[seen.tile(name, level, i, j, reduce) for j in range(count)] for i in range(count)])
            np.testing.assert_allclose(tiles, expected, rtol=RTOL, atol=atol * scale, err_msg=f"{name} {level} {reduce}")


def dense_of(network, name, **choices):
    model, inputs = network
    return np.asarray(ESTIMATORS[name](model, Categorical(), inputs, **choices).to_dense())


def damped_inverse(matrix):
    return np.linalg.inv(matrix + DAMPING * np.eye(len(matrix)))


def correlated(matrix):
    scale = np.array([1 / np.sqrt(d) if d > 0 else 0.0 for d in np.diag(matrix)])
    return matrix * np.outer(scale, scale)


def test_inverses_and_their_differences(network, seen):
    exact = damped_inverse(dense_of(network, "dense"))
    assert_all_tiles(seen, "inverse of exact", exact)
    for name in ("kfac", "ekfac", "unit_wise"):
        own = damped_inverse(dense_of(network, name))
        assert_all_tiles(seen, f"inverse of {name}", own)
        assert_all_tiles(seen, f"inverse of {name} − inverse of exact", own - exact)


@pytest.mark.parametrize("examples", [2, 40])
def test_inverse_through_rows_or_the_matrix(examples):
    """2 examples give 4 rows for 30 parameters; 40 give 80 and the matrix itself."""
    model, inputs = mlp((5, 3, 3), dtype=torch.float64), normal(examples, 5)
    seen = explorer(model, Categorical(), inputs).arranged(damping=DAMPING)
    dense = np.asarray(dense_fisher(model, Categorical(), inputs).to_dense())
    assert_all_tiles(seen, "inverse of exact", damped_inverse(dense))


def test_inverse_of_cells_that_are_not_formed(network, monkeypatch):
    model, inputs = network
    gram, dense = gram_fisher(model, Categorical(), inputs), dense_of(network, "dense")
    monkeypatch.setattr(inverse, "_COLUMNS", 40), monkeypatch.setattr(inverse, "_HELD", 300)
    monkeypatch.setattr(inverse, "ELEMENT", 1e9)  # so that forming is never cheaper
    source = inverse.InverseExact(inverse.RowSpectrum(gram), DAMPING)
    rows, columns = np.array([0, 3, 17, 40, 74]), np.array([2, 17, 30, 60])
    full = damped_inverse(dense)
    expected = [[np.sqrt((full[a:b, c:d] ** 2).mean()) for c, d in zip(columns[:-1], columns[1:], strict=True)]
                for a, b in zip(rows[:-1], rows[1:], strict=True)]  # fmt: skip
    np.testing.assert_allclose(source.tile(rows, columns), expected, rtol=1e-9)
    monkeypatch.setattr(inverse, "_DEAR", 10)
    with pytest.raises(TooDear, match="colours with a sign"):
        source.tile(rows, columns)
    source.tile(rows, columns, "mean")


def test_rows_that_are_too_many_are_refused(network, monkeypatch):
    model, inputs = network
    monkeypatch.setattr(inverse, "ROWS_LIMIT", 3)
    seen = explorer(model, Categorical(), inputs)
    with pytest.raises(ValueError, match="RRᵀ of 8 rows is not diagonalized"):
        seen.tile("inverse of exact", 0, 0, 0)
    assert "not diagonalized" in seen.analysis()["notes"][0] and seen.tile("exact", 0, 0, 0).shape == (64, 64)


def test_correlations(network, seen):
    hows = ("correlation size", "rms"), ("correlation", "mean")
    exact = correlated(dense_of(network, "dense"))
    assert_all_tiles(seen, "exact", exact, hows)
    assert_all_tiles(seen, "inverse of exact", correlated(damped_inverse(dense_of(network, "dense"))), hows)
    for name in ("kfac", "ekfac", "unit_wise"):
        assert_all_tiles(seen, name, correlated(dense_of(network, name)), hows)
    assert_all_tiles(seen, "kfac − exact", correlated(dense_of(network, "kfac")) - exact, hows)
    assert np.abs(np.diag(seen.tile("exact", 0, 0, 0, "correlation")) - 1).max() < 1e-6


def test_correlations_of_many_rows_and_of_dead_units(monkeypatch):
    monkeypatch.setattr(correlation_module, "_FORMED", 0)
    model, inputs = mlp((4, 6, 2), "relu"), -normal(5, 4).abs()
    seen = explorer(model, Gaussian(), inputs)
    dense = np.asarray(dense_fisher(model, Gaussian(), inputs).to_dense())
    assert (np.diag(dense) == 0).any()
    assert_all_tiles(seen, "exact", correlated(dense), (("correlation size", "rms"), ("correlation", "mean")))


def permuted(dense, names, seen):
    place = {name: i for i, name in enumerate(names)}
    order = [place[seen.name_at(i)] for i in range(len(dense))]
    assert sorted(order) == list(range(len(dense)))
    return dense[np.ix_(order, order)], order


def test_units_by_their_share_of_the_trace(network, seen):
    layout = seen.layout
    names = [layout.parameter_name(i) for i in range(layout.dim)]
    ordered, dense = seen.arranged(order="unit"), dense_of(network, "dense")
    shown, order = permuted(dense, names, ordered)
    for layer in layout.layers:
        sizes = np.diag(shown)[layer.slice].reshape(layer.shape).sum(1)
        assert (np.diff(sizes) <= 1e-15).all() and set(order[layer.slice]) == set(range(layer.start, layer.slice.stop))
    assert_all_tiles(ordered, "exact", shown)
    assert_all_tiles(ordered, "inverse of exact", damped_inverse(shown))
    for name in ("kfac", "ekfac", "unit_wise"):
        other, _ = permuted(dense_of(network, name), names, ordered)
        assert_all_tiles(ordered, name, other)
        assert_all_tiles(ordered, f"inverse of {name}", damped_inverse(other))
    # A root mean square of a difference of sums that cancel is right to the root of rounding.
    assert_all_tiles(ordered, "kfac − exact", permuted(dense_of(network, "kfac"), names, ordered)[0] - shown, atol=3e-8)
    for place in (0, 7, 40, 73):
        assert ordered.region(ordered.name_at(place)).rows == slice(place, place + 1)
    unit = ordered.region("W1[2]")
    assert {ordered.name_at(i) for i in range(unit.rows.start, unit.rows.stop)} == set(names[14:21])
    assert ordered.region("W2").rows == layout.layers[1].slice


def test_parameters_by_the_leading_eigenvector(network, seen, monkeypatch):
    names = [seen.layout.parameter_name(i) for i in range(seen.layout.dim)]
    ordered, dense = seen.arranged(order="eigenvector"), dense_of(network, "dense")
    shown, order = permuted(dense, names, ordered)
    leading = np.linalg.eigh(dense)[1][:, -1][order]
    leading *= np.sign(leading[np.abs(leading).argmax()])
    assert (np.diff(leading) <= 1e-9).all()
    assert_all_tiles(ordered, "exact", shown)
    assert_all_tiles(ordered, "kfac", permuted(dense_of(network, "kfac"), names, ordered)[0])
    assert_all_tiles(ordered, "inverse of exact", damped_inverse(shown))
    assert ordered.region("W2[3,2]").rows == slice(*(lambda i: (i, i + 1))(order.index(names.index("2.weight[3,2]"))))
    with pytest.raises(ValueError, match="'W2' is spread over this order"):
        ordered.region("W2")
    monkeypatch.setattr(arrange_module, "_GATHERED", 5)
    with pytest.raises(ValueError, match="Use fewer examples"):
        seen.arranged(order="eigenvector", damping=1.0)


def test_white_coordinates(network):
    """Against a network written in (V, d): V U (h − c) + d at V = W U⁻¹, with U, c found from eigh of the covariance here."""
    model, inputs = network
    seen = explorer(model, Categorical(), inputs, approximations=["kfac", "diagonal"]).arranged(white=True, damping=DAMPING)
    h, layers = inputs, []
    for module in model:
        if isinstance(module, nn.Linear):
            c = h.mean(0)
            values, vectors = torch.linalg.eigh((h - c).T @ (h - c) / len(h))
            U = (vectors / (values + DAMPING).sqrt()).T
            outer = nn.Linear(*module.weight.shape[::-1])
            with torch.no_grad():
                inner = nn.Linear(len(c), len(c)).requires_grad_(False)
                inner.weight.copy_(U), inner.bias.copy_(-U @ c)
                outer.weight.copy_(module.weight @ torch.linalg.inv(U)), outer.bias.copy_(module.bias + module.weight @ c)
            layers += [inner, outer]
        else:
            layers.append(module)
        h = module(h).detach()
    white = nn.Sequential(*layers)
    torch.testing.assert_close(white(inputs), model(inputs))
    dense = dense_fisher(white, Categorical(), inputs).to_dense()
    # Eigenvectors have no sign, and those of equal eigenvalues (0, the batch being small) no place: compare what has.
    exact = seen.sources["exact"].entries(slice(0, 74), slice(0, 74))
    torch.testing.assert_close(torch.linalg.eigvalsh(exact), torch.linalg.eigvalsh(dense), rtol=1e-8, atol=1e-10)
    kfac = ESTIMATORS["kfac"](white, Categorical(), inputs).to_dense()
    own = seen.sources["kfac"].entries(slice(0, 74), slice(0, 74))
    torch.testing.assert_close(torch.linalg.eigvalsh(own), torch.linalg.eigvalsh(kfac), rtol=1e-8, atol=1e-10)
    assert "diagonal" not in seen.sources and seen.analysis()["spectra"][1]["name"] == "before whitening"
    assert_all_tiles(seen, "exact", exact)
    assert_all_tiles(seen, "inverse of exact", damped_inverse(np.asarray(exact)))
    moments = seen.sources["exact"].gram.blocks[1].inputs
    covariance = torch.cov(moments[:, :-1].T, correction=0)
    assert float((covariance - torch.diag(covariance.diagonal())).abs().max()) < 1e-12 and (moments[:, -1] == 1).all()


def test_white_coordinates_are_refused_for_other_layers():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 2))
    seen = explorer(model, Categorical(), normal(3, 1, 3, 3))
    with pytest.raises(UnsupportedLayerError, match="layer '0' is a Conv2d"):
        seen.arranged(white=True)


def test_numbers_beside_the_picture(network, seen):
    dense, found = dense_of(network, "dense"), seen.analysis()
    values = np.linalg.eigvalsh(dense)[::-1]
    exact = found["spectra"][0]
    np.testing.assert_allclose(exact["eigenvalues"], values[: exact["rank"]], rtol=1e-8)
    assert values[exact["rank"]] < 1e-14 * values[0] and exact["rank"] + exact["null"] == found["dim"] == 74
    assert exact["condition"] == pytest.approx(values[0] / values[exact["rank"] - 1], rel=1e-6)
    for spectrum in found["spectra"][1:]:
        approximation = dense_of(network, spectrum["name"])
        values, vectors = np.linalg.eigh(approximation + DAMPING * np.eye(74))
        root = (vectors / np.sqrt(values)) @ vectors.T
        expected = np.linalg.eigvalsh(root @ dense @ root)[::-1][: spectrum["rank"]]
        np.testing.assert_allclose(spectrum["eigenvalues"], expected, rtol=1e-8)
    assert [spectrum["name"] for spectrum in found["spectra"]] == ["exact F", "kfac", "ekfac", "unit_wise"]
    for row, layer in zip(found["layers"], seen.layout.layers, strict=True):
        block = dense[layer.slice, layer.slice]
        assert row["share"] == pytest.approx(np.trace(block) / np.trace(dense), rel=1e-10)
        assert row["largest"] == pytest.approx(np.linalg.eigvalsh(block)[-1], rel=1e-8) and row["parameters"] == layer.size
    again = seen.arranged(order="eigenvector").analysis()
    np.testing.assert_allclose(again["spectra"][0]["eigenvalues"], exact["eigenvalues"], rtol=1e-10)
    assert again["layers"] == found["layers"]


@pytest.mark.parametrize("rows", [3, 9])  # fewer and more rows of scores than parameters
def test_preconditioned_spectra_in_float32_are_those_of_float64(rows):
    torch.manual_seed(0)
    model, inputs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)), normal(rows, 3)
    names = ["kfac", "ekfac", "unit_wise", "diagonal"]
    wide = explorer(model.double(), Categorical(), inputs, approximations=names).analysis()
    single = explorer(model.float(), Categorical(), inputs.float(), approximations=names).analysis()
    assert single["notes"] == wide["notes"] == [] and [each["name"] for each in single["spectra"]] == ["exact F", *names]
    for one, two in zip(single["spectra"], wide["spectra"], strict=True):
        count = min(one["rank"], two["rank"])
        assert count > 2 and one["rank"] == single["spectra"][0]["rank"], "of the rank of F: rounding adds nothing"
        # float32 factors are right to 1e-7 of their largest eigenvalue, and 1 / damping makes 1e-4 of that
        found, expected = (np.array(each["eigenvalues"][:count]) for each in (one, two))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_preconditioner_adds_nothing_to_the_rank_of_the_fisher(dtype):
    model, inputs = torch.nn.Linear(3, 3, dtype=dtype), normal(30, 3).to(dtype)  # adding to all logits changes nothing: rank 8
    found = explorer(model, Categorical(), inputs, approximations=["kfac", "unit_wise"]).arranged(damping=1e-6).analysis()
    assert [each["rank"] for each in found["spectra"]] == [8, 8, 8]


def test_large_preconditioners_are_named_not_computed(network, monkeypatch):
    from natgrad_lab.explorer import analysis

    monkeypatch.setattr(analysis, "_SOLVED", 5)
    model, inputs = network
    found = explorer(model, Categorical(), inputs, approximations=["kfac"]).analysis()
    assert len(found["spectra"]) == 1 and "preconditioned by kfac: 8 solves" in found["notes"][0]


def test_eigen_kronecker_in_pieces(monkeypatch):
    monkeypatch.setattr(eigen_cells, "_FORMED", 0), monkeypatch.setattr(eigen_cells, "_WORKSPACE", 50)
    left, right = (torch.linalg.qr(normal(n, n))[0] for n in (4, 7))
    matrix = EigenKronecker(left, right, normal(4, 7).abs())
    source, dense = Approximation(matrix), np.asarray(matrix.to_dense())
    for edges in ([0, 7, 14, 28], [0, 3, 9, 15, 16, 27], [5, 6, 20]):
        edges = np.array(edges)
        np.testing.assert_allclose(source.tile(edges, edges), cells_of(dense, edges, "rms"), rtol=1e-9)
        np.testing.assert_allclose(source.tile(edges, edges, "mean"), cells_of(dense, edges, "mean"), atol=1e-14)


def test_arrangements_share_what_they_can(network):
    model, inputs = network
    seen = explorer(model, Categorical(), inputs)
    tile = seen.tile("exact", 1, 0, 0)
    assert seen.arranged(damping=0.5).tile("exact", 1, 0, 0) is tile
    assert seen.arranged(order="unit").arranged(order="layer").tile("exact", 1, 0, 0) is tile
    inverse_tile = seen.tile("inverse of exact", 1, 0, 0)
    assert not np.allclose(seen.arranged(damping=0.5).tile("inverse of exact", 1, 0, 0), inverse_tile)
    with pytest.raises(ValueError, match="no order of parameters 'size'"):
        seen.arranged(order="size")
    with pytest.raises(ValueError, match="must be positive"):
        seen.arranged(damping=0)
    assert ParameterLayout(model).dim == seen.layout.dim
