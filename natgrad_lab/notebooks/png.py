"""Smaller PNG files: a palette of at most 256 colours, one byte a pixel.

Browsers write four bytes a pixel and compress them in haste. A heatmap or a line plot has few colours; as a palette
picture it takes a third of the space, and a notebook can hold more of them.
"""

import struct
import zlib
from itertools import pairwise

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {2: 3, 6: 4}  # colour type → bytes a pixel: RGB, RGBA


def smaller(file: bytes, most: int = 256) -> bytes:
    """The same picture on white with at most `most` colours (<= 256).

    Exact if it has no more; otherwise each pixel takes a colour near its own.
    """
    pixels = decode(file)
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:] / 255
        pixels = np.round(alpha * pixels[..., :3] + (1 - alpha) * 255)
    packed = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    colours, index, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.uint8)
    box, representatives = _boxes(colours, counts, most)
    return _encode(box[index.reshape(packed.shape)], colours[representatives])


def _boxes(colours: np.ndarray, counts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the colours (n, 3) into at most `most` boxes: the number of each one's box, and each box's most frequent colour.

    The box with the greatest extent, weighted by the root of its pixels, is cut along its longest side, in the middle.
    """
    boxes = [np.arange(len(colours))]
    extents = [_extent(colours, counts, boxes[0])]
    while len(boxes) < most and max(extents) > 0:
        worst = int(np.argmax(extents))
        members = boxes[worst]
        low, high = colours[members].min(0).astype(int), colours[members].max(0).astype(int)
        side = int(np.argmax(high - low))
        is_low = colours[members, side] <= (low[side] + high[side]) // 2
        for place, part in ((worst, members[is_low]), (len(boxes), members[~is_low])):
            boxes[place : place + 1], extents[place : place + 1] = [part], [_extent(colours, counts, part)]
    box = np.empty(len(colours), np.uint8)
    for number, members in enumerate(boxes):
        box[members] = number
    return box, np.array([members[np.argmax(counts[members])] for members in boxes])


def _extent(colours: np.ndarray, counts: np.ndarray, members: np.ndarray) -> float:
    return float(np.ptp(colours[members], axis=0).max()) * float(counts[members].sum()) ** 0.5


def decode(file: bytes) -> np.ndarray:
    """Pixels (rows, columns, 3 or 4) of an 8-bit RGB or RGBA file that is not interlaced."""
    if not file.startswith(SIGNATURE):
        raise ValueError("this is no PNG file.")
    chunks, place = {}, len(SIGNATURE)
    while place < len(file):
        length, kind = struct.unpack_from(">I4s", file, place)
        chunks[kind] = chunks.get(kind, b"") + file[place + 8 : place + 8 + length]
        place += 12 + length
    columns, rows, depth, colour_type, *_, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if depth != 8 or colour_type not in _CHANNELS or interlaced:
        raise ValueError(f"only plain 8-bit RGB(A) files are read; got depth {depth}, colour type {colour_type}.")
    channels = _CHANNELS[colour_type]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(rows, 1 + columns * channels)
    above, pixels = np.zeros((columns, channels), np.uint8), []
    for line in lines:
        above = _FILTERS[line[0]](line[1:].reshape(columns, channels), above)
        pixels.append(above)
    return np.stack(pixels)


def _left(line: np.ndarray, above: np.ndarray) -> np.ndarray:
    return np.cumsum(line, axis=0, dtype=np.uint8)


def _average(line: np.ndarray, above: np.ndarray) -> np.ndarray:
    channels = []
    for xs, ups in zip(line.T.tolist(), above.T.tolist(), strict=True):
        left, done = 0, []
        for x, up in zip(xs, ups, strict=True):
            left = (x + (left + up) // 2) & 255
            done.append(left)
        channels.append(done)
    return np.array(channels, np.uint8).T


def _paeth(line: np.ndarray, above: np.ndarray) -> np.ndarray:
    channels = []
    for xs, ups in zip(line.T.tolist(), above.T.tolist(), strict=True):
        left, done = 0, []
        for x, (corner, up) in zip(xs, pairwise([0, *ups]), strict=True):
            to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
            nearest = left if to_left <= min(to_up, to_corner) else up if to_up <= to_corner else corner
            left = (x + nearest) & 255
            done.append(left)
        channels.append(done)
    return np.array(channels, np.uint8).T


_FILTERS = (lambda line, above: line, _left, lambda line, above: line + above, _average, _paeth)


def _encode(index: np.ndarray, palette: np.ndarray) -> bytes:
    lines = np.concatenate([np.zeros((len(index), 1), np.uint8), index], axis=1)
    header = struct.pack(">IIBBBBB", index.shape[1], index.shape[0], 8, 3, 0, 0, 0)
    parts = (b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")
    return SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
