"""The flat order: rows of [W | b], there and back, named, and the same for every structure."""

import pytest
import torch
from cases import CASES
from oracles import blocks_of, parameters_of
from torch import nn
from torch.nn.utils import parameters_to_vector

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.parameters import ParameterLayout

cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())


@cases
def test_the_order_is_that_of_the_oracles(make):
    model = make().model
    layout = ParameterLayout(model)
    assert torch.equal(layout.parameter_vector(), parameters_of(model))
    assert [layer.slice for layer in layout.layers] == blocks_of(model)
    assert layout.dim == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert layout.num_frozen == sum(p.numel() for p in model.parameters() if not p.requires_grad)


@cases
def test_to_torch_is_parameters_to_vector_and_from_torch_undoes_it(make):
    model = make().model
    layout = ParameterLayout(model)
    torchs = parameters_to_vector([p for p in model.parameters() if p.requires_grad]).detach()
    assert torch.equal(layout.to_torch(layout.parameter_vector()), torchs)
    assert torch.equal(layout.from_torch(torchs), layout.parameter_vector())
    columns = torch.randn(layout.dim, 3)
    assert torch.equal(layout.from_torch(layout.to_torch(columns)), columns)


@cases
def test_split_gives_views_of_each_parameters_shape(make):
    model = make().model
    layout = ParameterLayout(model)
    vector = layout.parameter_vector()
    pieces = layout.split(vector)
    assert {id(p) for p, _ in pieces} == {id(p) for p in model.parameters() if p.requires_grad}
    for parameter, view in pieces:
        assert view.shape == parameter.shape and torch.equal(view, parameter.detach())
        view.add_(1.0)
    assert torch.equal(vector, layout.parameter_vector() + 1.0)


@cases
def test_every_place_has_its_name(make):
    """The named entry, changed by hand, moves that place of the vector and no other."""
    model = make().model
    layout = ParameterLayout(model)
    before = layout.parameter_vector()
    for index in range(layout.dim):
        name, _, place = layout.parameter_name(index).partition("[")
        parameter, where = model.get_parameter(name), tuple(int(i) for i in place[:-1].split(","))
        value = parameter[where].item()
        with torch.no_grad():
            parameter[where] = value + 1.0
            moved = layout.parameter_vector() != before
            parameter[where] = value
        assert moved.nonzero().tolist() == [[index]]


def test_names_read_as_they_should():
    layout = ParameterLayout(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    assert [layout.parameter_name(i) for i in (0, 1, 2, 3, 9, 12)] == [
        "0.weight[0,0]", "0.weight[0,1]", "0.bias[0]", "0.weight[1,0]", "2.weight[0,0]", "2.bias[0]",
    ]  # fmt: skip
    assert ParameterLayout(nn.Linear(2, 2)).parameter_name(5) == "bias[1]"
    assert ParameterLayout(nn.ParameterDict({"scale": nn.Parameter(torch.ones(()))})).parameter_name(0) == "scale"
    for index in (-1, 13):
        with pytest.raises(IndexError, match=f"parameter {index} of 13: places run from 0 to 12"):
            layout.parameter_name(index)


def test_layers_that_are_no_matrices_follow_each_other_as_they_are():
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 2))
    layout = ParameterLayout(model)
    assert [layer.shape for layer in layout.layers] == [(3, 5), (1, 12), (2, 7)]
    vector = layout.parameter_vector()
    assert torch.equal(vector[:15].view(3, 5), torch.cat([model[0].weight.flatten(1), model[0].bias[:, None]], 1))
    assert torch.equal(vector[15:27], torch.cat([model[2].weight, model[2].bias]))
    assert torch.equal(layout.from_torch(layout.to_torch(vector)), vector)
    assert layout.parameter_name(21) == "2.bias[0]" and layout.parameter_name(0) == "0.weight[0,0,0]"


def test_a_layout_says_its_sizes_and_what_it_leaves_out():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].bias.requires_grad_(False)
    assert repr(ParameterLayout(model)) == "ParameterLayout(10 parameters: 0 3x2, 1 1x4, 3 frozen parameters left out)"
    assert "model 3x3" in repr(ParameterLayout(nn.Linear(2, 3)))


@pytest.mark.parametrize("shape", [(5,), (7,), (6, 1, 1), ()], ids=str)
def test_vectors_of_the_wrong_length(shape):
    layout = ParameterLayout(nn.Linear(2, 2))
    for act in (layout.to_torch, layout.from_torch, layout.split):
        with pytest.raises((ValueError, TypeError), match="6 trainable parameters|Type-check"):
            act(torch.zeros(shape))


def test_frozen_shared_parameters_are_no_tied_weights():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    with pytest.raises(UnsupportedLayerError, match="'2.weight' and '0.weight' are the same parameter"):
        ParameterLayout(model)
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    model.append(nn.Linear(3, 2))
    assert ParameterLayout(model).dim == 8
