"""Data sets: shipped, generated from a seed, or downloaded once, checked by SHA-256, and kept in a cache folder.

Nothing is downloaded before a set is asked for by name; `natgrad data` lists them all.
"""

from natgrad_lab.datasets.about import ABOUT, About
from natgrad_lab.datasets.catalogue import DATASETS, load
from natgrad_lab.datasets.cifar10 import cifar10
from natgrad_lab.datasets.curves import curves
from natgrad_lab.datasets.dataset import Dataset, autoencoding, train_test
from natgrad_lab.datasets.digits import digits
from natgrad_lab.datasets.download import cache_folder, check, fetch
from natgrad_lab.datasets.files import FILES, RemoteFile
from natgrad_lab.datasets.gaussian import gaussian_blobs, linear_teacher
from natgrad_lab.datasets.mnist import fashion_mnist, mnist
from natgrad_lab.datasets.olivetti import faces, olivetti_faces
from natgrad_lab.datasets.penn_treebank import penn_treebank
from natgrad_lab.datasets.resize import resize
from natgrad_lab.datasets.textures import textures

__all__ = [
    "ABOUT",
    "DATASETS",
    "FILES",
    "About",
    "Dataset",
    "RemoteFile",
    "autoencoding",
    "cache_folder",
    "check",
    "cifar10",
    "curves",
    "digits",
    "faces",
    "fashion_mnist",
    "fetch",
    "gaussian_blobs",
    "linear_teacher",
    "load",
    "mnist",
    "olivetti_faces",
    "penn_treebank",
    "resize",
    "textures",
    "train_test",
]
