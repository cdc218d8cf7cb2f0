"""Names of parameters, places typed by a reader, ticks, and the cells of every level."""

import numpy as np
import pytest
import torch
from torch import nn

from natgrad_lab.explorer import Pyramid, describe, find, name_of, ticks
from natgrad_lab.models import mlp
from natgrad_lab.parameters import ParameterLayout


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(2, 3, 2), nn.LayerNorm((3, 2)), nn.Linear(12, 3, bias=False)


LAYOUTS = {
    "mlp": lambda: mlp((6, 5, 4, 3)),
    "convolution, norm, no bias": Everything,
    "bare": lambda: nn.Linear(3, 2),
    "recurrent": lambda: nn.LSTM(2, 3),
    "one parameter": lambda: nn.Linear(1, 1, bias=False),
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return ParameterLayout(LAYOUTS[request.param]())


def test_names_are_the_layouts_and_are_found_again(layout):
    for index in range(layout.dim):
        assert name_of(layout, index) == layout.parameter_name(index)
        assert find(layout, name_of(layout, index))[0] == slice(index, index + 1)
        assert find(layout, str(index)) == (slice(index, index + 1),) * 2
    with pytest.raises(IndexError, match=f"places run from 0 to {layout.dim - 1}"):
        name_of(layout, layout.dim)


def test_what_a_reader_types():
    layout = ParameterLayout(mlp((6, 5, 4, 3)))
    second = layout.layers[1]
    rows, columns = find(layout, "W2[3,4] × W1[0,2]")
    assert rows == slice(second.start + 3 * 6 + 4, second.start + 3 * 6 + 5) and columns == slice(2, 3)
    assert find(layout, "W2") == (second.slice, second.slice) == find(layout, "layer 2")
    assert find(layout, " b1[3] ")[0] == slice(3 * 7 + 6, 3 * 7 + 7)
    assert find(layout, "W1[2]")[0] == slice(14, 21), "a unit with its bias"


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "one name, or two with x between"),
        ("W1 x W2 x W3", "one name, or two with x between"),
        ("W9", "there is no place 'W9'. Try W1, W3"),
        ("W1[0,6]", r"must lie inside \[6\], counted from 0"),
        ("W1[5]", "has the units 0 to 4; got 5"),
        ("W1[0,1,2]", "must lie inside"),
        ("[3]", "is no place"),
        ("999", "places run from 0 to 73"),
        ("W1[-1]", "is no place"),
        ("<script>", "there is no place '<script>'"),
    ],
)
def test_what_is_not_understood_is_said(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        find(ParameterLayout(mlp((6, 5, 4, 3))), text)


def test_no_bias_no_place_for_it():
    with pytest.raises(ValueError, match="has no bias"):
        find(ParameterLayout(mlp((3, 2), bias=False)), "b1[0]")


def test_ticks_lie_inside_and_say_what_is_there(layout):
    for start, stop in ((0, layout.dim), (0, 1), (layout.dim // 3, layout.dim // 2 + 1)):
        for at, label in ticks(layout, start, stop):
            assert start <= at < stop and label
    assert len(ticks(layout, 0, layout.dim)) <= 6 * len(layout.layers) + 6


def test_levels_are_nested_and_cells_keep_to_units_and_layers(layout):
    pyramid = Pyramid(layout)
    finer = set(range(layout.dim + 1))
    assert list(pyramid.edges(0)) == sorted(finer)
    for level in range(pyramid.num_levels):
        edges = pyramid.edges(level)
        assert edges[0] == 0 and edges[-1] == layout.dim and (np.diff(edges) > 0).all() and set(edges) <= finer
        finer = set(edges)
        assert np.diff(edges).max() <= 2**level
        for layer in layout.layers:
            assert {layer.start, layer.slice.stop} <= finer
            inside = [edge - layer.start for edge in edges if layer.start <= edge <= layer.slice.stop]
            units = [(a // layer.shape[1], (b - 1) // layer.shape[1]) for a, b in zip(inside[:-1], inside[1:], strict=True)]
            assert all(a == b or 2**level >= layer.shape[1] for a, b in units), (
                "a cell crosses units only if it holds whole ones"
            )
            if 2**level >= layer.shape[1]:
                assert all(edge % layer.shape[1] == 0 for edge in inside)
        joined = np.concatenate([pyramid.tile_edges(level, n)[:-1] for n in range(pyramid.num_tiles(level))])
        np.testing.assert_array_equal(joined, edges[:-1])
        for index in (0, layout.dim // 2, layout.dim - 1):
            cell = pyramid.cell_at(level, index)
            assert edges[cell] <= index < edges[cell + 1]


def test_groups_of_units_are_nested_at_all_levels():
    pyramid = Pyramid(ParameterLayout(mlp((4, 40, 23))))  # 40 units of 5, 23 of 41
    for level in range(12):
        assert set(pyramid.edges(level + 1)) <= set(pyramid.edges(level))
    assert np.diff(pyramid.edges(5))[:6].tolist() == [20] * 6, "32 hold 6 units of 5: 4 of them to a cell"


def test_level_for_a_span():
    layout = ParameterLayout(mlp((784, 512, 256, 10)))
    pyramid = Pyramid(layout)
    assert pyramid.level_for(0, 100, 128) == 0
    level = pyramid.level_for(0, layout.dim, 256)
    assert pyramid.num_cells(level) <= 256 < pyramid.num_cells(level - 1)


def test_a_page_can_name_everything_from_the_description(layout):
    for layer, about in zip(layout.layers, describe(layout), strict=True):
        assert about["start"] == layer.start and about["units"] * about["width"] == layer.size
        assert sum(int(torch.tensor(piece["shape"]).prod()) for piece in about["pieces"]) == layer.size
