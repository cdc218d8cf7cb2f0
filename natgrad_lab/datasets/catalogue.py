"""All data sets by name."""

import inspect
from collections.abc import Callable

from natgrad_lab.datasets.cifar10 import cifar10
from natgrad_lab.datasets.curves import curves
from natgrad_lab.datasets.dataset import Dataset
from natgrad_lab.datasets.digits import digits
from natgrad_lab.datasets.gaussian import gaussian_blobs, linear_teacher
from natgrad_lab.datasets.mnist import fashion_mnist, mnist
from natgrad_lab.datasets.olivetti import faces, olivetti_faces
from natgrad_lab.datasets.penn_treebank import penn_treebank
from natgrad_lab.datasets.textures import textures
from natgrad_lab.names import known

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "gaussian_blobs": gaussian_blobs,
    "linear_teacher": linear_teacher,
    "curves": curves,
    "textures": textures,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "olivetti_faces": olivetti_faces,
    "faces": faces,
    "penn_treebank": penn_treebank,
}


def load(name: str, **options) -> Dataset:
    """The data set of that name in DATASETS, made with `options`; one that it does not take is refused by name."""
    make = DATASETS[known(name, DATASETS, "data set")]
    taken = inspect.signature(make).parameters
    if not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        for option in options:
            known(option, taken, f"option of {name}")
    return make(**options)
