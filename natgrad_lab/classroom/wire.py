"""Messages between the grader and the process that runs a student's code.

A message is a header in JSON and a body of raw bytes. What the child sends is never unpickled: tensors and arrays travel as
their bytes with dtype and shape, and everything else as JSON; whatever does not fit this form raises `BadMessage`.
"""

import io
import json
import math
import pickle
import struct

import numpy as np
import torch

MAGIC = b"NGL1"
FRAME = struct.Struct(">4sII")
MOST_HEADER, MOST_BODY, MOST_DEPTH = 8_000_000, 256_000_000, 20
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64, torch.int64,
        torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
_ARRAYS = {name for name in _DTYPES if name != "bfloat16"}


class BadMessage(Exception):
    """Bytes that are no message of ours."""


class _Pickler(pickle.Pickler):
    """Plain tensors as NumPy arrays, which takes a tenth of the time of torch's own way."""

    def reducer_override(self, value):
        """How to make `value` again; NotImplemented leaves it to pickle."""
        is_plain = type(value) is torch.Tensor and value.layout == torch.strided and value.device.type == "cpu"
        if not is_plain or value.requires_grad or value.dtype == torch.bfloat16 or value.is_conj() or value.is_neg():
            return NotImplemented
        return torch.from_numpy, (value.contiguous().numpy(),)


def pickled(arguments) -> bytes:
    """What a check passes to an answer, for a process that trusts the grader; never the other way round."""
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(arguments)
    return file.getvalue()


def pack(header: dict, body: bytes = b"") -> bytes:
    """One message."""
    words = json.dumps(header).encode()
    if len(words) > MOST_HEADER or len(body) > MOST_BODY:
        raise BadMessage(f"a message of {(len(words) + len(body)) / 1e6:.0f} MB is too large")
    return FRAME.pack(MAGIC, len(words), len(body)) + words + body


def sizes(start: bytes) -> tuple[int, int]:
    """(header bytes, body bytes) that the first FRAME.size bytes announce. Raises: BadMessage."""
    magic, header, body = FRAME.unpack(start)
    if magic != MAGIC or header > MOST_HEADER or body > MOST_BODY:
        raise BadMessage("that is no message")
    return header, body


def unpack(words: bytes) -> dict:
    """The header. Raises: BadMessage."""
    try:
        header = json.loads(words)
    except (ValueError, RecursionError):
        raise BadMessage("the header is no JSON") from None
    if not isinstance(header, dict):
        raise BadMessage("the header is no object")
    return header


def encode(value, body: bytearray, depth: int = 0):
    """What an answer returned, as JSON; the bytes of its tensors are appended to `body`."""
    if value is None or isinstance(value, bool | str) or type(value) in (int, float):
        return {"is": "plain", "value": value}
    if depth < MOST_DEPTH and isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized:
        return _encode_tensor(value, body)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.name in _ARRAYS:
        return {"is": "array", **_encode_bytes(torch.from_numpy(np.array(value, order="C")), body)}
    if depth < MOST_DEPTH and isinstance(value, list | tuple):
        return {"is": "tuple" if isinstance(value, tuple) else "list", "items": [encode(v, body, depth + 1) for v in value]}
    if depth < MOST_DEPTH and isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        return {"is": "dict", "items": [[key, encode(v, body, depth + 1)] for key, v in value.items()]}
    return {"is": "other", "type": type(value).__name__[:60]}


def decode(header, body: bytes | memoryview):
    """What `encode` wrote; a value of another kind becomes an object whose class has that name. Raises: BadMessage."""
    try:
        return _READ[header["is"]](header, memoryview(body))
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError, OverflowError) as error:
        raise BadMessage(f"{type(error).__name__} in a result") from None


def _encode_tensor(value: torch.Tensor, body: bytearray) -> dict:
    graph = "inner" if value.grad_fn is not None else "leaf" if value.requires_grad else ""
    return {"is": "tensor", "graph": graph, **_encode_bytes(value.detach().cpu().resolve_conj().resolve_neg(), body)}


def _encode_bytes(value: torch.Tensor, body: bytearray) -> dict:
    place = len(body)
    body += value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "at": place}


def _tensor(header: dict, body: memoryview) -> torch.Tensor:
    dtype, shape, place = _DTYPES[header["dtype"]], header["shape"], header["at"]
    if not all(type(size) is int and 0 <= size < 1 << 40 for size in [*shape, place]) or len(shape) > 60:
        raise BadMessage("a shape that is none")
    count = math.prod(shape)
    if place + count * dtype.itemsize > len(body):
        raise BadMessage("fewer bytes than the shape says")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool:  # a byte that is neither 0 nor 1 is no bool
        return torch.frombuffer(bytearray(body[place : place + count]), dtype=torch.uint8).ne(0).reshape(shape)
    return torch.frombuffer(bytearray(body[place : place + count * dtype.itemsize]), dtype=dtype).reshape(shape)


def _tensor_with_graph(header: dict, body: memoryview) -> torch.Tensor:
    value = _tensor(header, body)
    if header["graph"] not in ("leaf", "inner") or not (value.is_floating_point() or value.is_complex()):
        return value
    leaf = value.requires_grad_()
    return leaf.clone() if header["graph"] == "inner" else leaf


def _plain(header: dict, body: memoryview):
    value = header["value"]
    if value is not None and not isinstance(value, bool | int | float | str):
        raise BadMessage("a plain value that is none")
    return value


def _array(header: dict, body: memoryview) -> np.ndarray:
    return _tensor(header, body).numpy()


_READ = {
    "plain": _plain,
    "tensor": _tensor_with_graph,
    "array": lambda header, body: _array(header, body) if header["shape"] else _array(header, body)[()],
    "list": lambda header, body: [decode(item, body) for item in header["items"]],
    "tuple": lambda header, body: tuple(decode(item, body) for item in header["items"]),
    "dict": lambda header, body: {_plain({"value": key}, body): decode(item, body) for key, item in header["items"]},
    "other": lambda header, body: type(
        "".join(c for c in str(header["type"])[:60] if c.isalnum() or c == "_") or "object", (), {}
    )(),
}
