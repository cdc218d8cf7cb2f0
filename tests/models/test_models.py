"""Networks: shapes, initialization, seeds, and sizes that do not exist."""

import math

import pytest
import torch
from torch import nn

from natgrad_lab.models import ACTIVATIONS, deep_linear, mlp


def linears(model):
    return [module for module in model if isinstance(module, nn.Linear)]


def test_the_network_of_the_first_notebook_has_3466_parameters():
    assert sum(p.numel() for p in mlp((64, 32, 32, 10)).parameters()) == 3466


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_an_mlp_is_linear_layers_with_activations_between(activation, bias):
    model = mlp((3, 5, 4, 2), activation, bias)
    assert [(m.in_features, m.out_features) for m in linears(model)] == [(3, 5), (5, 4), (4, 2)]
    assert [type(m) for m in model][1::2] == [ACTIVATIONS[activation]] * 2 and isinstance(model[-1], nn.Linear)
    assert all((m.bias is not None) == bias for m in linears(model))
    x, expected = torch.randn(6, 3), torch.randn(0)
    expected = x
    for i, layer in enumerate(linears(model)):
        expected = expected @ layer.weight.T + (layer.bias if bias else 0)
        expected = expected if i == 2 else ACTIVATIONS[activation]()(expected)
    assert torch.allclose(model(x), expected)


@pytest.mark.parametrize("make", [mlp, deep_linear])
def test_weights_come_from_the_generator_and_not_from_the_global_state(make):
    before = torch.get_rng_state()
    first, again = make((3, 4, 2)), make((3, 4, 2))
    seeded, other = (make((3, 4, 2), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[0].weight, again[0].weight) and torch.equal(first[0].weight, seeded[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


@pytest.mark.parametrize("activation, gain", [("tanh", 1.0), ("identity", 1.0), ("relu", math.sqrt(2)), ("gelu", math.sqrt(2))])
def test_weights_have_the_stated_deviation(activation, gain):
    """40,000 numbers: the relative error of their deviation is 1 / √80,000 = 0.0035; four times that."""
    layer = mlp((200, 200, 3), activation)[0]
    assert abs(layer.weight.std() * math.sqrt(200) / gain - 1) < 0.014
    assert abs(layer.weight.mean()) < 4 * gain / math.sqrt(200) / 200
    assert not layer.bias.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [mlp, deep_linear])
def test_dtype(make, dtype):
    assert {p.dtype for p in make((3, 4, 2), dtype=dtype).parameters()} == {dtype}
    assert {p.dtype for p in make((3, 4, 2)).parameters()} == {torch.float64}  # PyTorch's default, float64 in tests


def test_a_deep_linear_network_is_the_product_of_its_matrices():
    model = deep_linear((3, 5, 4, 2))
    product = model[2].weight @ model[1].weight @ model[0].weight
    x = torch.randn(6, 3)
    assert torch.allclose(model(x), x @ product.T) and len(model) == 3
    assert all(m.bias is None for m in model) and all(m.bias is not None for m in deep_linear((3, 2), bias=True))


@pytest.mark.parametrize("make", [mlp, deep_linear])
@pytest.mark.parametrize("sizes", [(), (3,), (3, 0), (3, -1, 2), (3, 2.5)], ids=str)
def test_sizes_that_do_not_exist(make, sizes):
    with pytest.raises((ValueError, TypeError), match="sizes"):
        make(sizes)


def test_a_misspelt_activation():
    with pytest.raises(ValueError, match="no activation 'tahn'. Did you mean 'tanh'"):
        mlp((3, 2), "tahn")
