"""Pictures of a matrix: pooling against loops, limits, bytes, rulings, and the plotly twin."""

import numpy as np
import pytest


@pytest.fixture
def layout():
    import natgrad_lab as ng

    return ng.ParameterLayout(ng.models.mlp((3, 4, 2)))  # 4 x 4 and 2 x 5: 26 parameters


@pytest.fixture
def matrix():
    root = np.random.default_rng(0).normal(size=(6, 26)) * np.logspace(-2, 1, 26)
    return root.T @ root


def pooled_by_loops(matrix, row_edges, column_edges, how):
    values = np.empty((len(row_edges) - 1, len(column_edges) - 1))
    for r in range(len(row_edges) - 1):
        for c in range(len(column_edges) - 1):
            block = matrix[row_edges[r] : row_edges[r + 1], column_edges[c] : column_edges[c + 1]]
            peak = block.flat[np.abs(block).argmax()]
            values[r, c] = np.sqrt((block**2).mean()) if how == "rms" else peak
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 5, 7, 25, 26, 300])
@pytest.mark.parametrize("kind", ["log", "signed", "correlation"])
def test_pooling_agrees_with_loops(matrix, kind, size, dtype):
    from natgrad_lab.plots import fisher_picture

    picture = fisher_picture(matrix.astype(dtype), kind, rows=slice(3, 20), size=size)
    entries = matrix
    if kind == "correlation":
        entries = matrix / np.sqrt(np.outer(matrix.diagonal(), matrix.diagonal()))
    expected = pooled_by_loops(entries, picture.row_edges, picture.column_edges, "rms" if kind == "log" else "peak")
    assert picture.values.dtype == dtype and picture.values.shape == (min(size, 17), min(size, 26))
    np.testing.assert_allclose(picture.values, expected, rtol=1e-4 if dtype == np.float32 else 1e-12)
    assert (picture.row_edges[0], picture.row_edges[-1]) == (3, 20)
    assert np.ptp(np.diff(picture.row_edges)) <= 1, "cells of nearly equal length"


def test_pooling_leaves_the_matrix_alone(matrix):
    from natgrad_lab.plots import fisher_picture

    before = matrix.copy()
    for kind in ("log", "signed", "correlation"):
        for size in (5, 300):
            fisher_picture(matrix, kind, size=size).values[:] = 7
    assert np.array_equal(matrix, before), "a picture may outlive a buffer that is written again"


def test_limits_do_not_depend_on_the_resolution(matrix):
    from natgrad_lab.plots import fisher_picture

    assert len({fisher_picture(matrix, "log", size=size).limits for size in (2, 9, 26)}) == 1
    assert len({fisher_picture(matrix, "signed", size=size).limits for size in (2, 9, 26)}) == 1


@pytest.mark.parametrize("factor", [1e-12, 1.0, 3.0, 1e9])
def test_limits_are_round_and_hold_nearly_everything(factor):
    from natgrad_lab.plots.heatmap import colour_limits

    entries = factor * np.random.default_rng(0).normal(size=20_000)
    low, high = colour_limits(entries, signed=False)
    inside = ((np.abs(entries) >= low) & (np.abs(entries) <= high)).mean()
    halves = 2 * np.log10(high)
    assert inside > 0.94 and halves == pytest.approx(round(halves), abs=1e-9)
    minus, plus = colour_limits(entries, signed=True)
    assert minus == -plus and f"{plus:.0e}"[0] in "125" and (np.abs(entries) <= plus).mean() >= 0.999


@pytest.mark.parametrize("entries", [np.zeros(9), np.array([]), np.array([0.0, np.nan, np.inf])])
def test_limits_of_nothing(entries):
    from natgrad_lab.plots.heatmap import colour_limits

    assert colour_limits(entries, signed=True) == (-1.0, 1.0)
    low, high = colour_limits(entries, signed=False)
    assert 0 < low < high


def test_bytes():
    from natgrad_lab.plots.heatmap import SCALES, Picture

    edges = np.arange(4)
    values = np.array([[0.0, 1e-4, 1e-2], [1.0, 100.0, 1e-9], [1e-1, np.nan, 1.0]])
    log = Picture(values, SCALES["log"], (1e-4, 1.0), edges, edges)
    assert log.to_uint8().tolist() == [[0, 0, 128], [255, 255, 0], [191, 0, 255]]
    signed = Picture(values - 0.5, SCALES["signed"], (-0.5, 0.5), edges, edges)
    assert signed.to_uint8()[0, 0] == 0 and signed.to_uint8()[1, 0] == 255
    zero = Picture(np.zeros((3, 3)), SCALES["signed"], (-1.0, 1.0), edges, edges)
    assert set(zero.to_uint8().flat) <= {127, 128}, "zero is the middle of the map"


def test_a_matrix_of_zeros_and_a_dead_row(matrix):
    from natgrad_lab.plots import fisher_picture

    for kind in ("log", "signed", "correlation"):
        assert fisher_picture(np.zeros((26, 26)), kind, size=5).to_uint8().shape == (5, 5)
    matrix[4] = matrix[:, 4] = 0
    assert np.isfinite(fisher_picture(matrix, "correlation").values).all()


def test_the_title_says_how_cells_were_made(matrix):
    from natgrad_lab.plots import fisher_picture

    assert fisher_picture(matrix, "log", size=5).title == "|F|, log scale; root mean square per cell"
    assert fisher_picture(matrix, "signed", size=5).title == "F, linear scale; largest |entry| per cell, with its sign"
    assert fisher_picture(matrix, "signed").title == "F, linear scale"


def test_rulings_at_layers_units_and_biases(layout):
    from natgrad_lab.plots.heatmap import grid_lines

    lines = grid_lines(layout, np.arange(27))
    assert lines["layers"] == [[0.0, 16.0, "0"], [16.0, 26.0, "2"]]
    assert lines["units"] == [4.0, 8.0, 12.0, 21.0]
    assert lines["biases"] == [3.5, 7.5, 11.5, 15.5, 20.5, 25.5]
    named = [layout.parameter_name(int(place)) for place in lines["biases"]]
    assert named == ["0.bias[0]", "0.bias[1]", "0.bias[2]", "0.bias[3]", "2.bias[0]", "2.bias[1]"]
    part = grid_lines(layout, np.arange(14, 27, 2))  # from inside layer 0, two parameters a cell
    assert part["layers"] == [[0.0, 1.0, "0"], [1.0, 6.0, "2"]] and part["units"] == [3.5]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"kind": "logg"}, "no scale 'logg'; choose one of log, signed, correlation"),
        ({"size": 0}, "size must be at least 1; got 0"),
        ({"rows": slice(5, 5)}, "not empty; got slice"),
        ({"columns": slice(0, 9, 2)}, "step 1"),
    ],
)
def test_refused(matrix, options, words):
    from natgrad_lab.plots import fisher_picture

    with pytest.raises(ValueError, match=words):
        fisher_picture(matrix, **options)


def test_unknown_pooling_is_refused(matrix):
    from natgrad_lab.plots.pooling import pool

    with pytest.raises(ValueError, match="rms, peak; got 'mean'"):
        pool(matrix, np.array([0, 26]), np.array([0, 26]), "mean")


@pytest.mark.parametrize("shape", [(400, 400), (300, 700)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_the_sample_for_limits_sees_every_column(shape, contiguous):
    from natgrad_lab.plots.pooling import sample_entries

    columns = np.broadcast_to(np.arange(shape[1], dtype=float), shape)
    if contiguous:
        columns = np.ascontiguousarray(columns)
    sample = sample_entries(columns, count=20_000)
    assert len(sample) <= 21_000 and len(np.unique(sample)) == shape[1]


@pytest.mark.parametrize("kind", ["log", "signed", "correlation"])
def test_the_plotly_twin_has_the_same_cells_limits_and_lines(matrix, layout, kind):
    from natgrad_lab.plots import fisher_heatmap_figure, fisher_picture

    picture = fisher_picture(matrix, kind, size=10)
    figure = fisher_heatmap_figure(picture, layout)
    [trace] = figure.data
    shown = ((np.asarray(trace.z) - trace.zmin) / (trace.zmax - trace.zmin)).clip(0, 1)
    np.testing.assert_allclose(shown, picture.normalized(), atol=1e-9)
    assert trace.name == "fisher" and picture.title in trace.colorbar.title.text
    assert [shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1] == [pytest.approx(16 / 2.6, abs=0.2)]
    assert figure.layout.xaxis.title.text and list(figure.layout.yaxis.ticktext) == ["layer 0", "layer 2"]
