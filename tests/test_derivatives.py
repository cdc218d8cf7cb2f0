"""The one pass: layer inputs and pulled-back vectors against autograd, one example at a time."""

import pytest
import torch
from cases import CASES, random_case
from oracles import flatten, jacobian, linears, trainables, trains_bias
from torch import nn

from natgrad_lab.derivatives import forward_pass
from natgrad_lab.parameters import ParameterLayout

cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())


def passed(case):
    layout = ParameterLayout(case.model)
    return forward_pass(case.model, layout, case.inputs, layout.layers)


def inputs_of(record):
    """What each layer saw, in the flat order; every layer is called once here."""
    return [call.inputs for (call,) in record.calls.values()]


def pulled_of(record, vectors):
    return [scores for (scores,) in record.pull_back(vectors).values()]


@cases
@pytest.mark.parametrize("num_vectors", [1, 4])
def test_captured_pairs_are_the_rows_of_the_jacobian(make, num_vectors):
    """(J_nᵀ v)_layer = s ⊗ [a; 1] for every example n, vector v and layer."""
    case = make()
    record, J = passed(case), jacobian(case.model, case.inputs)
    vectors = torch.randn(num_vectors, *record.outputs.shape)
    expected, columns = torch.einsum("ncp,knc->knp", J, vectors), []
    for layer, a, s in zip(linears(case.model), inputs_of(record), pulled_of(record, vectors), strict=True):
        a = torch.cat([a, torch.ones(len(a), 1)], 1) if trains_bias(layer) else a
        columns.append(torch.einsum("kno,nd->knod", s, a).flatten(2))
    found = torch.cat(columns, 2)
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@cases
def test_outputs_are_the_models_and_the_parameter_gradient_is_pytorchs(make):
    case = make()
    record = passed(case)
    outputs = case.model(case.inputs)
    assert torch.equal(record.outputs, outputs.detach()) and not record.outputs.requires_grad
    vectors = torch.randn_like(outputs)
    grads = torch.autograd.grad(outputs, trainables(case.model), vectors, allow_unused=True, materialize_grads=True)
    assert torch.equal(record.parameter_gradient(vectors), flatten(case.model, grads))


def test_the_graph_can_be_used_again_and_gives_the_same():
    record = passed(random_case((3, 4, 3)))
    vectors = torch.randn(2, 5, 3)
    for first, second in zip(pulled_of(record, vectors), pulled_of(record, vectors), strict=True):
        assert torch.equal(first, second)
    single = pulled_of(record, vectors[:1])
    assert all(torch.allclose(a[:1], b, rtol=1e-14) for a, b in zip(pulled_of(record, vectors), single, strict=True))


def test_a_layer_that_reaches_no_output_gets_zeros():
    case = CASES["a layer that reaches no output"]()
    pulled = pulled_of(passed(case), torch.randn(2, 5, 3))
    assert pulled[1].shape == (2, 5, 2) and not pulled[1].any() and pulled[0].any()


def test_layer_inputs_are_detached_and_survive_later_steps():
    case = random_case((3, 4, 3))
    record = passed(case)
    before = [a.clone() for a in inputs_of(record)]
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.zero_()
    assert all(map(torch.equal, before, inputs_of(record)))
    assert not any(a.requires_grad for a in inputs_of(record))


def test_a_users_own_hooks_are_kept_and_seen():
    """A hook that replaces a layer's input or output is part of the model: what is captured is what was used."""
    case = random_case((3, 4, 3))
    case.model[2].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    hook = case.model[1].register_forward_hook(lambda module, args, output: output + 1)
    record = passed(case)
    assert torch.allclose(inputs_of(record)[1], 2 * (torch.tanh(case.model[0](case.inputs)) + 1))
    assert len(case.model[2]._forward_pre_hooks) == 1 and hook.id in case.model[1]._forward_hooks


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(mode):
    case = random_case((3, 4, 3))
    expected = pulled_of(passed(case), torch.ones(1, 5, 3))
    with mode():
        found = pulled_of(passed(case), torch.ones(1, 5, 3))
        assert not torch.is_grad_enabled()
    assert all(map(torch.equal, found, expected))


def test_integer_inputs_are_taken_by_models_that_take_them():
    embedding = nn.Embedding(5, 4)
    model = nn.Sequential(embedding.requires_grad_(False), nn.Flatten(), nn.Linear(8, 3))
    inputs = torch.randint(5, (6, 2))
    layout = ParameterLayout(model)
    record = forward_pass(model, layout, inputs, layout.layers)
    assert torch.equal(inputs_of(record)[0], embedding(inputs).flatten(1))
