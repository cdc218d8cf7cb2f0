"""CIFAR-10, from the binary version of its archive, or from what a mirror has of it."""

import gzip
import io
import tarfile
from collections.abc import Callable

import numpy as np
import torch

from natgrad_lab.datasets.about import credit
from natgrad_lab.datasets.dataset import Dataset, pixels
from natgrad_lab.datasets.download import fetch
from natgrad_lab.names import known
from natgrad_lab.progress import track

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32  # the class, then the red, the green and the blue picture, row by row
BATCHES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}


def cifar10(split: str = "train", *, version: str = "binary", dtype: torch.dtype | None = None) -> Dataset:
    """CIFAR-10: 50,000 colour pictures to train on, 10,000 to test, 3 x 32 x 32, values divided by 255. Downloaded.

    A row of inputs is the red picture, then the green, then the blue.

    Args:
        split: "train" or "test".
        version: "binary", the official archive (170 MB). "first4000", the first 4,000 training pictures alone, unchanged;
            "jpeg", all of them in the official order, but compressed with loss, so that results cannot be compared with
            published ones (needs Pillow). The last two come from a mirror only, and say in `source` what they are.
        dtype: of the inputs; torch's default dtype if None; torch.uint8 for 0..255 as they are (154 MB for all of train).
    Raises: FileNotFoundError if the files can be had nowhere, saying what to do.
    References: [Krizhevsky2009].
    """
    known(split, BATCHES, "split of cifar10")
    read, detail = VERSIONS[known(version, VERSIONS, "version of cifar10")]
    targets, images = read(split)
    about = credit("cifar10", f"{split} part, {detail}")
    inputs = pixels(torch.from_numpy(images), dtype)
    return Dataset("cifar10", inputs, torch.from_numpy(targets.astype(np.int64)), CLASSES, IMAGE_SHAPE, **about)


def binary(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The official archive, read without unpacking it to disk."""
    path, found = fetch("cifar10/cifar-10-binary.tar.gz"), {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in BATCHES[split] and member.isfile():
                found[name] = archive.extractfile(member).read()
    if missing := [name for name in BATCHES[split] if name not in found]:
        raise ValueError(f"{path} has no {', '.join(missing)}.")
    return records(b"".join(found[name] for name in BATCHES[split]), str(path))


def first4000(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The first 4,000 records of data_batch_1."""
    if split != "train":
        raise ValueError(f"cifar10(version='first4000') has a train split only; got {split!r}. Cut it with train_test.")
    path = fetch("cifar10/data_batch_1_first4000.bin.gz")
    return records(gzip.decompress(path.read_bytes()), str(path))


def jpeg(split: str) -> tuple[np.ndarray, np.ndarray]:
    """All pictures as JPEG: SPLIT/CLASS/NNNN.jpg is the NNNN-th picture of its class in the official order."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ModuleNotFoundError("cifar10(version='jpeg') needs Pillow to read JPEG: pip install pillow.") from error
    targets = np.load(fetch(f"cifar10/{split}_labels.npy"), allow_pickle=False)
    path = fetch("cifar10/cifar-10-images-jpeg.tar.gz")
    places = {name: np.flatnonzero(targets == number) for number, name in enumerate(CLASSES)}
    images = np.zeros((len(targets), *IMAGE_SHAPE), np.uint8)
    with tarfile.open(path) as archive:
        members = [member for member in archive if member.isfile() and member.name.startswith(f"{split}/")]
        if len(members) != len(targets):
            raise ValueError(f"{path} has {len(members)} pictures under {split}/, but {len(targets)} classes are listed.")
        for member in track(members, f"decoding cifar10, {split}"):
            _, name, number = member.name.removesuffix(".jpg").split("/")
            picture = np.asarray(Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB"))
            images[places[name][int(number)]] = picture.transpose(2, 0, 1)
    return targets, images.reshape(len(targets), -1)


def records(data: bytes, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Classes (N,) and pictures (N, 3072) of records as the binary version has them."""
    if not data or len(data) % RECORD:
        raise ValueError(f"{path} does not hold whole records of {RECORD} bytes: {len(data)} bytes.")
    rows = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    if rows[:, 0].max() >= len(CLASSES):
        raise ValueError(f"{path} has class {rows[:, 0].max()}; CIFAR-10's are 0 to 9.")
    return rows[:, 0], rows[:, 1:].copy()


VERSIONS: dict[str, tuple[Callable, str]] = {
    "binary": (binary, "binary version"),
    "first4000": (first4000, "only the first 4,000 of data_batch_1"),
    "jpeg": (jpeg, "JPEG, lossy: not the official pixels"),
}
