"""Data sets: small real ones shipped with the package, and sets generated from a seed.

Inputs are (N, D) rows of floats; targets are class numbers (N,) or real vectors (N, C). Nothing is downloaded here.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from natgrad_lab.names import known
from natgrad_lab.shapes import Float, Int, Tensor

DIGITS_SHA256 = "19762e197c6b643a59fcb94a34c3cb5625774e9ab3b5a71bb4c0701e65ed268e"


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Inputs, targets, and where they come from."""

    name: str
    inputs: Float[Tensor, "N D"]
    targets: Int[Tensor, " N"] | Float[Tensor, "N C"]
    classes: tuple[str, ...] = ()
    """Names of the classes; empty for real-valued targets."""
    image_shape: tuple[int, int] | None = None
    """(height, width) if each row of `inputs` is an image."""
    source: str = ""
    licence: str = ""

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def __repr__(self) -> str:
        kind = f"{len(self.classes)} classes" if self.classes else f"{self.num_outputs} outputs"
        return f"Dataset({self.name!r}, {len(self)} examples, {self.inputs.shape[1]} inputs, {kind})"

    @property
    def num_outputs(self) -> int:
        """Outputs a network needs for these targets: one per class, or the width of the target vectors."""
        return len(self.classes) or self.targets.shape[1]

    def select(self, index: Tensor | slice) -> "Dataset":
        """The same set with only the examples at `index`, in that order."""
        return replace(self, inputs=self.inputs[index], targets=self.targets[index])


def digits(dtype: torch.dtype | None = None) -> Dataset:
    """1797 real handwritten digits, 8 x 8, values 0..16 divided by 16; shipped with the package.

    Args:
        dtype: of the inputs; torch's default dtype if None.
    Raises: FileNotFoundError or ValueError if the shipped file is missing or altered.
    References: [AlpaydinKaynak1998].
    """
    with np.load(_shipped("digits.npz", DIGITS_SHA256), allow_pickle=False) as file:
        images, targets = torch.from_numpy(file["images"]), torch.from_numpy(file["targets"])
    return Dataset(
        name="digits",
        inputs=images.flatten(1).to(_dtype(dtype)) / 16,
        targets=targets.long(),
        classes=tuple("0123456789"),
        image_shape=(8, 8),
        source="E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning "
        "Repository, doi:10.24432/C50P49 (its test part)",
        licence="CC BY 4.0",
    )


def gaussian_blobs(
    num_examples: int = 300,
    num_classes: int = 3,
    dim: int = 2,
    *,
    separation: float = 3.0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Classes drawn from unit Gaussians whose centres are drawn from a Gaussian of deviation `separation`.

    Class n mod num_classes gives example n, so the classes are as equal in size as they can be.
    """
    _check_counts(num_examples=num_examples, num_classes=num_classes, dim=dim)
    if not (math.isfinite(separation) and separation >= 0):
        raise ValueError(f"separation must be a finite number >= 0; got {separation}.")
    generator, dtype = torch.Generator().manual_seed(seed), _dtype(dtype)
    centres = separation * torch.randn(num_classes, dim, generator=generator, dtype=dtype)  # (classes, D)
    targets = torch.arange(num_examples) % num_classes
    noise = torch.randn(num_examples, dim, generator=generator, dtype=dtype)
    classes = tuple(str(label) for label in range(num_classes))
    source = f"generated: gaussian_blobs(separation={separation}, seed={seed})"
    return Dataset("gaussian_blobs", centres[targets] + noise, targets, classes, source=source, licence="CC0")


def linear_teacher(
    num_examples: int = 200,
    dim: int = 8,
    num_outputs: int = 3,
    *,
    noise: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Regression: targets = W x + b + noise, with x, √dim · W, b and noise / `noise` standard normal.

    With noise 0 a linear network reaches loss 0, and one undamped exact natural-gradient step takes it there.
    """
    _check_counts(num_examples=num_examples, dim=dim, num_outputs=num_outputs)
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be a finite number >= 0; got {noise}.")
    generator, dtype = torch.Generator().manual_seed(seed), _dtype(dtype)
    inputs = torch.randn(num_examples, dim, generator=generator, dtype=dtype)
    weight = torch.randn(num_outputs, dim, generator=generator, dtype=dtype) / math.sqrt(dim)
    bias = torch.randn(num_outputs, generator=generator, dtype=dtype)
    error = noise * torch.randn(num_examples, num_outputs, generator=generator, dtype=dtype)
    source = f"generated: linear_teacher(noise={noise}, seed={seed})"
    return Dataset("linear_teacher", inputs, inputs @ weight.T + bias + error, source=source, licence="CC0")


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "gaussian_blobs": gaussian_blobs,
    "linear_teacher": linear_teacher,
}


def load(name: str, **options) -> Dataset:
    """The data set of that name in DATASETS, made with `options`."""
    return DATASETS[known(name, DATASETS, "data set")](**options)


def train_test(
    dataset: Dataset, test_fraction: float = 0.2, generator: torch.Generator | None = None
) -> tuple[Dataset, Dataset]:
    """Split at random into (train, test); the test part has round(test_fraction · N) examples, both at least one.

    Args:
        generator: draws the permutation; None takes a new one with seed 0, so that the split is the same every time.
    """
    num_test = round(test_fraction * len(dataset)) if math.isfinite(test_fraction) else 0
    if not 0 < num_test < len(dataset):
        raise ValueError(
            f"test_fraction must leave at least one of the {len(dataset)} examples on each side; got {test_fraction}."
        )
    order = torch.randperm(len(dataset), generator=generator or torch.Generator().manual_seed(0))
    return dataset.select(order[num_test:]), dataset.select(order[:num_test])


def _shipped(name: str, sha256: str) -> Path:
    """The shipped data file: inside an installed package, or in `data/` of a checkout. Refuses altered bytes."""
    package = Path(__file__).parent
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


def _dtype(dtype: torch.dtype | None) -> torch.dtype:
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type such as torch.float64; got {dtype}.")
    return dtype


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1; got {count}.")
