"""Sparse initialization."""

import pytest
import torch
from torch import nn

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.models import convnet, mlp, sparse_init


def test_every_unit_listens_to_so_many_inputs():
    model = sparse_init(mlp((200, 300, 10, 7)), torch.Generator().manual_seed(1))
    first, second, third = (model[i] for i in (0, 2, 4))
    assert ((first.weight != 0).sum(1) == 15).all() and ((second.weight != 0).sum(1) == 15).all()
    assert ((third.weight != 0).sum(1) == 10).all()  # it has no more
    assert all((layer.bias == 0).all() for layer in (first, second, third))
    drawn = first.weight[first.weight != 0]  # 4500 of N(0, 1): five standard errors
    assert abs(drawn.mean()) < 5 / 4500**0.5 and abs(drawn.var() - 1) < 5 * (2 / 4500) ** 0.5
    used = (first.weight != 0).double().mean(0)  # every input about equally often: binomial
    assert abs(used.mean() - 15 / 200) < 1e-12 and (used - 0.075).abs().max() < 5 * (0.075 * 0.925 / 300) ** 0.5


def test_scale_bias_seed_and_dtype():
    one, two = (sparse_init(mlp((30, 20, 3), dtype=torch.float32), incoming=4, weight_scale=0.25, bias=0.5) for _ in range(2))
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))
    assert one[0].weight.dtype == torch.float32 and (one[0].bias == 0.5).all()
    assert 0.15 < one[0].weight[one[0].weight != 0].std() < 0.35
    other = sparse_init(mlp((30, 20, 3)), torch.Generator().manual_seed(7), incoming=4)
    assert not torch.equal(other[0].weight, one[0].weight.double())
    state = torch.get_rng_state()
    sparse_init(mlp((5, 3), bias=False))
    assert torch.equal(state, torch.get_rng_state())


def test_refusals():
    with pytest.raises(UnsupportedLayerError, match="the model has a Conv2d"):
        sparse_init(convnet())
    with pytest.raises(ValueError, match="incoming must be a positive integer; got 0"):
        sparse_init(nn.Linear(3, 2), incoming=0)
