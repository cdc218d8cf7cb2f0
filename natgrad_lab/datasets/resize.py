"""Smaller pictures by averaging over areas."""

from dataclasses import replace

import torch

from natgrad_lab.datasets.dataset import Dataset
from natgrad_lab.shapes import Float, Tensor


def resize(dataset: Dataset, size: int | tuple[int, int]) -> Dataset:
    """The same set with pictures of `size` (height and width, or one number for both), each channel by itself.

    A new pixel is the mean of the old picture over the area that it covers, old pixels cut by its border counted by the
    part inside: exact for any size, and the plain mean of blocks where the old size is a multiple of the new one. The mean
    of each picture stays what it was. Larger pictures are refused: there is nothing to average.

    Where the targets are the inputs (`autoencoding`), they are made small too.
    """
    if dataset.image_shape is None:
        raise ValueError(f"resize needs pictures; {dataset.name} has no image_shape.")
    if not dataset.inputs.is_floating_point():
        raise ValueError(f"resize needs real inputs; those of {dataset.name} are {dataset.inputs.dtype}. Load it with a dtype.")
    *channels, height, width = dataset.image_shape
    rows, columns = (size, size) if isinstance(size, int) else size
    if not (1 <= rows <= height and 1 <= columns <= width):
        raise ValueError(f"size must be between 1 and the picture's own {height} x {width}; got {rows} x {columns}.")
    down, across = (area_weights(*pair).to(dataset.inputs) for pair in ((height, rows), (width, columns)))
    images = dataset.inputs.unflatten(1, (*channels, height, width))
    inputs = (down @ images @ across.T).flatten(1)
    return replace(
        dataset,
        inputs=inputs,
        targets=inputs if dataset.targets is dataset.inputs else dataset.targets,
        image_shape=(*channels, rows, columns),
        source=f"{dataset.source}; area means, {height} x {width} to {rows} x {columns}",
    )


def area_weights(old: int, new: int) -> Float[Tensor, "new old"]:
    """Row i: which part of [i, i+1) · old / new lies in each [j, j+1). Rows sum to 1; counted in whole numbers of 1/new."""
    left, here = torch.arange(new)[:, None] * old, torch.arange(old) * new
    shared = torch.minimum(left + old, here + new) - torch.maximum(left, here)
    return shared.clamp(min=0).to(torch.float64) / old
