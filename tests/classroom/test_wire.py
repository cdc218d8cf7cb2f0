"""Messages: what comes back is what was sent, and bytes from a stranger are refused, not obeyed."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad_lab.classroom import wire


def there_and_back(value):
    body = bytearray()
    header = json.loads(json.dumps(wire.encode(value, body)))
    return wire.decode(header, bytes(body))


@pytest.mark.parametrize("value", [
    None, True, 3, -2.5, "word", [1, [2.0, "x"]], (1, (2,)), {"a": 1, 2: [3]}, [], (), {}, math.inf,
])  # fmt: skip
def test_plain_values(value):
    back = there_and_back(value)
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize("value", [
    torch.randn(3, 2), torch.randn(2, 5).mT, torch.randn(4)[::2], torch.tensor(1.5), torch.empty(0, 3), torch.arange(4),
    torch.tensor([True, False]), torch.randn(2, dtype=torch.complex128).conj(), torch.ones(2, dtype=torch.bfloat16),
    torch.ones(2, 3).expand(4, 2, 3), torch.tensor([math.nan, math.inf]),
])  # fmt: skip
def test_tensors(value):
    back = there_and_back(value)
    assert back.dtype == value.dtype and torch.equal(back.nan_to_num(), value.nan_to_num()) and back.shape == value.shape


def test_arrays_and_graphs():
    back = there_and_back((np.arange(6.0).reshape(2, 3).T, np.float64(2.5), np.zeros(0)))
    assert np.array_equal(back[0], np.arange(6.0).reshape(2, 3).T) and back[1] == 2.5 and back[2].shape == (0,)
    leaf = torch.ones(2, requires_grad=True)
    first, second = there_and_back([leaf, leaf * 2])
    assert (
        first.requires_grad and first.is_leaf and second.grad_fn is not None and not there_and_back(leaf.detach()).requires_grad
    )


@pytest.mark.parametrize(
    "value", [object(), {1.5, 2}, b"bytes", 1 + 2j, {(1, 2): 3}, torch.eye(2).to_sparse(), np.array([None]), len]
)
def test_other_things_come_as_their_type_only(value):
    assert type(there_and_back([value])[0]).__name__ == type(value).__name__


def test_endless_nesting_ends():
    loop = []
    loop.append(loop)
    value = there_and_back(loop)
    for _ in range(wire.MOST_DEPTH - 1):
        value = value[0]
    assert type(value[0]).__name__ == "list" and value[0] != []


@pytest.mark.parametrize("header", [
    {}, {"is": "code"}, {"is": "tensor"}, {"is": "list", "items": 3},
    {"is": "dict", "items": [[[], {"is": "plain", "value": 1}]]},
    {"is": "plain", "value": {"a": 1}}, {"is": "plain"}, [], None, 7, {"is": "other", "type": "a b; c" * 50, "x": 1},
    {"is": "array", "dtype": "object", "shape": [1], "at": 0}, {"is": "array", "dtype": "bfloat16", "shape": [1], "at": 0},
    *({"is": "tensor", "graph": "", "dtype": "float64", **bad} for bad in (
        {"shape": [100], "at": 0}, {"shape": [-1], "at": 0}, {"shape": [1], "at": -8}, {"shape": [1], "at": 9},
        {"shape": [2**62, 4], "at": 0}, {"shape": ["1"], "at": 0}, {"shape": [True], "at": 0}, {"shape": 1, "at": 0},
        {"shape": [1] * 100, "at": 0},
    )),
])  # fmt: skip
def test_rubbish_is_refused(header):
    try:
        value = wire.decode(header, b"\0" * 16)
    except wire.BadMessage:
        return
    assert isinstance(header, dict) and header["is"] == "other" and len(type(value).__name__) <= 60
    assert type(value).__name__.isidentifier()


KEYS = ("is", "items", "value", "dtype", "shape", "at", "graph")


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=7),
    max_leaves=20,
))  # fmt: skip
def test_no_json_does_more_than_raise_badmessage(header):
    try:
        wire.decode(header, b"12345678")
    except wire.BadMessage:
        pass


@pytest.mark.parametrize("start", [b"\0" * 12, b"NGL1" + b"\xff" * 8, b"GET / HTTP/1", wire.FRAME.pack(b"NGL1", 1, 1 << 31)])
def test_a_frame_that_is_none(start):
    with pytest.raises(wire.BadMessage):
        wire.sizes(start)


@pytest.mark.parametrize("words", [b"\xff", b"[1]", b"{", b"[" * 100_000, b"1" * 5000, pickle.dumps({"a": 1})])
def test_a_header_that_is_none(words):
    with pytest.raises(wire.BadMessage):
        wire.unpack(words)


def test_a_message_has_a_largest_size():
    with pytest.raises(wire.BadMessage, match="too large"):
        wire.pack({"words": "x" * (wire.MOST_HEADER + 1)})
    message = wire.pack({"a": 1}, b"body")
    header, body = wire.sizes(message[: wire.FRAME.size])
    assert wire.unpack(message[wire.FRAME.size : wire.FRAME.size + header]) == {"a": 1} and message[-body:] == b"body"


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6.0).reshape(2, 3).mT, torch.tensor(3.0), torch.zeros(0, 2), torch.ones(3).expand(2, 3),
        torch.tensor([True, False]), torch.ones(2, dtype=torch.bfloat16), torch.tensor([1 + 2j]).conj(),
        torch.ones(2, requires_grad=True), torch.arange(3, dtype=torch.int32),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_arrive_as_they_were_sent(value):
    first, (second, words) = pickle.loads(wire.pickled((value, [value, {"a": 1.5}])))
    assert first is second and words == {"a": 1.5}
    assert first.dtype == value.dtype and first.requires_grad == value.requires_grad and torch.equal(first, value)
    with torch.no_grad():
        first.zero_()  # it can be written to: a student may work in place
    assert not first.any()


def test_a_model_arrives_with_its_parameters():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh())
    (again,) = pickle.loads(wire.pickled((model,)))
    assert torch.equal(again(torch.ones(1, 2)), model(torch.ones(1, 2))) and again[0].weight.requires_grad
