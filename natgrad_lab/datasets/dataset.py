"""What a data set is: inputs, targets, and where they come from.

Inputs are (N, D) rows of numbers, each picture flattened, or (N, T) rows of word numbers. Targets are class numbers (N,),
word numbers (N, T) or real vectors (N, C).
"""

import math
from dataclasses import dataclass, replace

import torch

from natgrad_lab.shapes import Float, Int, Tensor, UInt8


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Inputs, targets, and where they come from."""

    name: str
    inputs: Float[Tensor, "N D"] | UInt8[Tensor, "N D"] | Int[Tensor, "N D"]
    targets: Int[Tensor, " N"] | Int[Tensor, "N T"] | Float[Tensor, "N C"]
    classes: tuple[str, ...] = ()
    """Names of the classes, or the words by number; empty for real-valued targets."""
    image_shape: tuple[int, int] | tuple[int, int, int] | None = None
    """(height, width), or (channels, height, width) if in colour, when each row of `inputs` is a picture."""
    source: str = ""
    licence: str = ""

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def __repr__(self) -> str:
        kind = f"{len(self.classes)} classes" if self.classes else f"{self.num_outputs} outputs"
        return f"Dataset({self.name!r}, {len(self)} examples, {self.inputs.shape[1]} inputs, {kind})"

    @property
    def num_outputs(self) -> int:
        """Outputs a network needs for these targets: one per class or word, or the width of the target vectors."""
        return len(self.classes) or self.targets.shape[1]

    def select(self, index: Tensor | slice) -> "Dataset":
        """The same set with only the examples at `index`, in that order."""
        same = self.targets is self.inputs  # an autoencoder's: kept in memory once
        inputs = self.inputs[index]
        return replace(self, inputs=inputs, targets=inputs if same else self.targets[index])


def autoencoding(dataset: Dataset) -> Dataset:
    """The same set with its inputs as targets, for an autoencoder; no classes. Nothing is copied.

    Values in [0, 1] suit a Bernoulli likelihood (outputs are logits), others a Gaussian one.
    """
    if not dataset.inputs.is_floating_point():
        raise ValueError(
            f"autoencoding needs real inputs; those of {dataset.name} are {dataset.inputs.dtype}. "
            "Load the set with a floating-point dtype."
        )
    return replace(dataset, targets=dataset.inputs, classes=(), source=f"{dataset.source}; targets are the inputs")


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


def floating(dtype: torch.dtype | None) -> torch.dtype:
    """The floating-point dtype asked for; torch's default one if None."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type such as torch.float64; got {dtype}.")
    return dtype


def pixels(images: UInt8[Tensor, "N D"], dtype: torch.dtype | None) -> Float[Tensor, "N D"] | UInt8[Tensor, "N D"]:
    """Bytes 0..255 as numbers from 0 to 1; as they are for dtype=torch.uint8. No other copy is made on the way."""
    return images if dtype is torch.uint8 else images.to(floating(dtype)).div_(255)


def check_counts(**counts: int) -> None:
    """Refuse a count below 1 by its name."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1; got {count}.")


def check_positive(**values: float) -> None:
    """Refuse by its name what is not a finite number above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0; got {value}.")
