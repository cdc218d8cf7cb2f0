"""The Olivetti faces, and a stand-in for the FACES set made from them."""

import math

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

from natgrad_lab.datasets.about import credit
from natgrad_lab.datasets.dataset import Dataset, check_counts, floating, pixels
from natgrad_lab.datasets.download import fetch
from natgrad_lab.datasets.matlab import read_bytes_array
from natgrad_lab.names import known
from natgrad_lab.progress import track
from natgrad_lab.shapes import Float, Tensor, UInt8

KEY = "olivetti/olivettifaces.mat"
FACE, PATCH = 64, 25  # pixels a side
PER_PERSON = 10
PEOPLE = {"train": range(30), "test": range(30, 40)}
STATISTICS = 10_000  # training patches that the mean and the scale are taken from
CHUNK = 1000


def olivetti_faces(*, dtype: torch.dtype | None = None) -> Dataset:
    """The Olivetti faces: 40 people, 10 pictures of each, 64 x 64, values divided by 255; the class is the person. Downloaded.

    Args:
        dtype: of the inputs; torch's default dtype if None; torch.uint8 for 0..255 as they are.
    Raises: FileNotFoundError if the file can be had nowhere, saying what to do.
    References: [SamariaHarter1994].
    """
    images = _faces()
    targets = torch.arange(len(images)) // PER_PERSON
    people = tuple(f"person {person}" for person in range(int(targets[-1]) + 1))
    inputs = pixels(images.flatten(1), dtype)
    return Dataset("olivetti_faces", inputs, targets, people, (FACE, FACE), **credit("olivetti_faces"))


def faces(split: str = "train", num_examples: int = STATISTICS, *, seed: int = 0, dtype: torch.dtype | None = None) -> Dataset:
    """Stand-in for FACES: 25 x 25 patches of the Olivetti faces, turned and enlarged at random; autoencoding. Downloaded.

    Each patch is the middle of a face, turned by up to 90° either way and enlarged 1.4 to 1.8 times, the angle and the factor
    uniform, sampled bilinearly; training patches show the first 30 people, test patches the other 10. As in the original,
    pixels are then centred and all are scaled by one number: over the first 10,000 training patches of the seed every pixel
    has mean 0, and the mean variance is 1. Turn, size and crop of the original are known in words only, so results on
    this set must say that it is a stand-in. (The original: 103,500 patches to train on.) Suits a Gaussian likelihood.

    The same seed gives the same patches, however many: the first k of n are `faces(split, k)`.

    Args:
        split: "train" or "test".
        dtype: of the inputs; torch's default dtype if None.
    Raises: FileNotFoundError if the file can be had nowhere, saying what to do.
    References: [HintonSalakhutdinov2006].
    """
    check_counts(num_examples=num_examples)
    known(split, PEOPLE, "split of faces")
    dtype, images = floating(dtype), _faces()
    reference = patches(images, "train", STATISTICS, seed)
    made = reference[:num_examples]
    if split != "train" or num_examples > STATISTICS:
        made = patches(images, split, num_examples, seed)
    mean = reference.mean(0, dtype=torch.float64)
    scale = reference.var(0, correction=0).mean(dtype=torch.float64).sqrt()
    inputs = made.sub_(mean.float()).div_(scale).to(dtype)
    about = credit("faces", f"faces({split!r}, seed={seed})")
    return Dataset("faces (stand-in)", inputs, inputs, image_shape=(PATCH, PATCH), **about)


def patches(images: UInt8[Tensor, "N 64 64"], split: str, num_examples: int, seed: int) -> Float[Tensor, "K D"]:
    """(num_examples, 625) patches in 0..255, float32; a function of the seed, the split and the number of the patch."""
    people = PEOPLE[split]
    draws = np.random.default_rng([seed, people.start]).random((num_examples, 3))
    index = torch.from_numpy(people.start * PER_PERSON + (draws[:, 0] * len(people) * PER_PERSON).astype(np.int64))
    angle, size = torch.from_numpy(math.pi * (draws[:, 1] - 0.5)), torch.from_numpy(1 / (1.4 + 0.4 * draws[:, 2]))
    zero, made = torch.zeros_like(angle), torch.empty(num_examples, PATCH * PATCH)
    turn = [size * angle.cos(), -size * angle.sin(), zero, size * angle.sin(), size * angle.cos(), zero]
    turn = torch.stack(turn, dim=1).unflatten(1, (2, 3)).float()  # (K, 2, 3), on coordinates from -1 to 1
    for start in track(range(0, num_examples, CHUNK), f"cutting faces, {split}"):
        piece = slice(start, start + CHUNK)
        grid = affine_grid(turn[piece], [len(turn[piece]), 1, PATCH, PATCH], align_corners=False)
        made[piece] = grid_sample(images[index[piece], None].float(), grid, align_corners=False).flatten(1)
    return made


def _faces() -> UInt8[Tensor, "N 64 64"]:
    """The 400 faces, upright: the file keeps each as a column, and that column by columns."""
    columns = read_bytes_array(fetch(KEY), "faces")
    if columns.shape != (FACE * FACE, PER_PERSON * 40):
        raise ValueError(f"{KEY} must hold 4096 x 400 bytes; it has {columns.shape}.")
    return torch.from_numpy(columns.T.reshape(-1, FACE, FACE).transpose(0, 2, 1).copy())
