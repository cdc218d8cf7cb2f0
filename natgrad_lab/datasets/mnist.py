"""MNIST and Fashion-MNIST, and the IDX format both are kept in."""

import gzip
import math
from pathlib import Path

import numpy as np
import torch

from natgrad_lab.datasets.about import credit
from natgrad_lab.datasets.dataset import Dataset, pixels
from natgrad_lab.datasets.download import fetch
from natgrad_lab.names import known
from natgrad_lab.shapes import Tensor

SPLITS = {"train": "train", "test": "t10k"}
CLOTHES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def mnist(split: str = "train", *, dtype: torch.dtype | None = None) -> Dataset:
    """MNIST: 60,000 handwritten digits to train on, 10,000 to test, 28 x 28, values 0..255 divided by 255. Downloaded.

    Args:
        split: "train" or "test".
        dtype: of the inputs; torch's default dtype if None; torch.uint8 for 0..255 as they are.
    Raises: FileNotFoundError if the files can be had nowhere, saying what to do.
    References: [LeCun1998].
    """
    return _read("mnist", "mnist", tuple("0123456789"), split, dtype)


def fashion_mnist(split: str = "train", *, dtype: torch.dtype | None = None) -> Dataset:
    """Fashion-MNIST: pieces of clothing, in numbers and format as `mnist`. Downloaded.

    References: [Xiao2017].
    """
    return _read("fashion_mnist", "fashion-mnist", CLOTHES, split, dtype)


def _read(name: str, folder: str, classes: tuple[str, ...], split: str, dtype: torch.dtype | None) -> Dataset:
    start = f"{folder}/{SPLITS[known(split, SPLITS, f'split of {name}')]}"
    images, targets = (read_idx(fetch(f"{start}-{part}-ubyte.gz")) for part in ("images-idx3", "labels-idx1"))
    inputs, shape = pixels(images.flatten(1), dtype), tuple(images.shape[1:])
    return Dataset(name, inputs, targets.long(), classes, shape, **credit(name, f"{split} part"))


def read_idx(path: Path) -> Tensor:
    """The array of bytes in a gzipped IDX file: 0, 0, 8 for bytes, the number of axes, each length as four bytes, the data."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    shape = tuple(np.frombuffer(data, ">u4", axes, offset=4).tolist()) if axes and len(data) >= 4 + 4 * axes else ()
    if not shape or len(data) != 4 + 4 * axes + math.prod(shape):
        raise ValueError(f"{path} is no IDX file of bytes: {len(data)} bytes, starting with {data[:4].hex(' ')}.")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())
