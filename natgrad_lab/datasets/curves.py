"""Pictures of random smooth curves: a stand-in for the CURVES set."""

import numpy as np
import torch

from natgrad_lab.datasets.about import credit
from natgrad_lab.datasets.dataset import Dataset, check_counts, check_positive, floating
from natgrad_lab.progress import track
from natgrad_lab.shapes import Float, Tensor

POINTS = 60  # on each curve
CHUNK = 256  # pictures drawn at a time


def curves(
    num_examples: int = 20_000,
    *,
    seed: int = 0,
    size: int = 28,
    sigma: float = 1.25,
    margin: float = 5.0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Stand-in for CURVES: pictures, size x size, of the quadratic curve through three random points; autoencoding.

    The points are uniform at least `margin` pixels from the border. A pixel is exp(−d² / 2σ²), d its distance to the nearest
    of 60 points on the curve, so that six numbers say all there is in a picture. How the original set draws its curves is
    not published; σ and the margin are chosen such that 18 principal components leave about the squared error that is
    reported for the original. Results on this set must say that it is a stand-in.

    The same seed gives the same pictures, however many: the first k of n are `curves(k)`. Take another seed to test on
    (the original has 20,000 pictures to train on and 10,000 to test).

    Cost: 120 operations a pixel; one chunk of 256 pictures besides the result.
    References: [HintonSalakhutdinov2006].
    """
    check_counts(num_examples=num_examples, size=size)
    check_positive(sigma=sigma)
    if not 0 <= margin < (size - 1) / 2:
        raise ValueError(f"margin must be >= 0 and less than half of the picture, {(size - 1) / 2}; got {margin}.")
    dtype = floating(dtype)
    points = np.random.default_rng(seed).uniform(margin, size - 1 - margin, (num_examples, 3, 2))
    paths = torch.from_numpy(through(points)).to(torch.float64 if dtype is torch.float64 else torch.float32)
    images = torch.empty(num_examples, size * size, dtype=dtype)
    for start in track(range(0, num_examples, CHUNK), "drawing curves"):
        images[start : start + CHUNK] = draw(paths[start : start + CHUNK], size, sigma).flatten(1)
    about = credit("curves", f"curves(seed={seed}, size={size}, sigma={sigma}, margin={margin})")
    return Dataset("curves (stand-in)", images, images, image_shape=(size, size), **about)


def through(points: np.ndarray) -> np.ndarray:
    """(N, 60, 2) places along the quadratic curves that pass at times 0, ½ and 1 through the points (N, 3, 2)."""
    time = np.linspace(0, 1, POINTS)
    basis = np.stack([2 * (time - 0.5) * (time - 1), -4 * time * (time - 1), 2 * time * (time - 0.5)])
    return np.einsum("kt,nkd->ntd", basis, points)


def draw(paths: Float[Tensor, "N T 2"], size: int, sigma: float) -> Float[Tensor, "N size size"]:
    """exp(−d² / 2σ²) at each pixel, d the distance to the nearest place of the path; x is the column, y the row."""
    grid = torch.arange(size, dtype=paths.dtype)
    across, down = ((grid - paths[:, :, axis, None]).square() for axis in (0, 1))  # (N, T, size)
    nearest = down[:, 0, :, None] + across[:, 0, None, :]  # (N, size, size)
    for step in range(1, paths.shape[1]):
        torch.minimum(nearest, down[:, step, :, None] + across[:, step, None, :], out=nearest)
    return nearest.div_(-2 * sigma**2).exp_()
