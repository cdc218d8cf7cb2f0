"""The digits that are shipped with the package."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from natgrad_lab.datasets.about import credit
from natgrad_lab.datasets.dataset import Dataset, floating

SHA256 = "19762e197c6b643a59fcb94a34c3cb5625774e9ab3b5a71bb4c0701e65ed268e"


def digits(dtype: torch.dtype | None = None) -> Dataset:
    """1797 real handwritten digits, 8 x 8, values 0..16 divided by 16; shipped with the package.

    Args:
        dtype: of the inputs; torch's default dtype if None.
    Raises: FileNotFoundError or ValueError if the shipped file is missing or altered.
    References: [AlpaydinKaynak1998].
    """
    with np.load(_shipped("digits.npz", SHA256), allow_pickle=False) as file:
        images, targets = torch.from_numpy(file["images"]), torch.from_numpy(file["targets"])
    return Dataset(
        name="digits",
        inputs=images.flatten(1).to(floating(dtype)) / 16,
        targets=targets.long(),
        classes=tuple("0123456789"),
        image_shape=(8, 8),
        **credit("digits"),
    )


def _shipped(name: str, sha256: str) -> Path:
    """The shipped data file: inside an installed package, or in `data/` of a checkout. Refuses altered bytes."""
    package = Path(__file__).parent.parent
    places = [package / "data" / name, package.parent / "data" / name]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        tried = " or ".join(str(place) for place in places)
        raise FileNotFoundError(f"The data file {name} is missing; looked for {tried}. Reinstall natgrad_lab.")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is not the file that was shipped: its SHA-256 is {found}, expected {sha256}. "
            f"Restore it (git checkout data/{name}) or reinstall natgrad_lab."
        )
    return path
