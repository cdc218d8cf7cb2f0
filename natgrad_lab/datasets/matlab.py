"""Arrays of bytes from MATLAB 5 files, which is all of that format that is needed here."""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_BYTES, _MATRIX, _COMPRESSED = 2, 14, 15  # types of elements


def read_bytes_array(path: Path, name: str) -> np.ndarray:
    """The array that a MATLAB 5 file keeps under `name`, in its own shape, if its values are stored as bytes.

    MATLAB stores whole numbers from 0 to 255 so, whatever the class of the array; and it keeps columns together.

    Raises: ValueError if the file is no MATLAB 5 file, is cut off, or has no such array.
    """
    data, found = path.read_bytes(), []
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or not data.startswith(b"MATLAB 5.0"):
        raise ValueError(f"{path} is no MATLAB 5 file: it starts with {data[:20]!r}.")
    try:
        for kind, body in _elements(data[128:], order):
            if kind == _COMPRESSED:
                ((kind, body),) = _elements(zlib.decompress(body), order)
            if kind == _MATRIX:
                _, (_, shape), (_, title), (stored, values), *_ = _elements(body, order)
                found.append(title.decode("latin-1"))
                if found[-1] == name and stored == _BYTES:
                    shape = struct.unpack(f"{order}{len(shape) // 4}i", shape)
                    return np.frombuffer(values, np.uint8, math.prod(shape)).reshape(shape, order="F")
    except (struct.error, zlib.error, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    raise ValueError(f"{path} has no array {name!r} stored as bytes; it has {', '.join(found) or 'nothing'}.")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The type and the bytes of one element after the other. Short ones (up to four bytes) have both in eight bytes."""
    start = 0
    while start < len(data):
        kind, length = struct.unpack_from(f"{order}II", data, start)
        if kind >> 16:
            kind, length, body = kind & 0xFFFF, kind >> 16, start + 4
            end = start + 8
        else:
            body = start + 8
            end = body + length + (-length % 8 if kind != _COMPRESSED else 0)
        if body + length > len(data):
            raise ValueError(f"an element of {length} bytes is cut off")
        yield kind, data[body : body + length]
        start = end
