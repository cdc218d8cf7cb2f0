"""The downloaded sets against what is known of them from their origins. They need a mirror, and never use the network."""

import os

import pytest
import torch

from natgrad_lab import datasets
from natgrad_lab.datasets import ABOUT, FILES

MIRROR = os.environ.get("NATGRAD_DATA_MIRROR")
pytestmark = pytest.mark.skipif(not MIRROR, reason="NATGRAD_DATA_MIRROR is not set: a folder or URL with the data files")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def real(cache, monkeypatch):
    """Load a set from the mirror alone; a mirror that lacks it skips the test."""
    monkeypatch.setenv("NATGRAD_DATA", str(cache))
    for key, file in list(FILES.items()):
        monkeypatch.setitem(FILES, key, datasets.RemoteFile(file.sha256, file.num_bytes, (), file.note))

    def real(name, *arguments, **options):
        try:
            return getattr(datasets, name)(*arguments, **options)
        except FileNotFoundError as error:
            if ": not there" not in str(error):
                raise
            pytest.skip(str(error).splitlines()[0])

    return real


@pytest.mark.parametrize("name", [name for name, about in ABOUT.items() if about.files])
def test_the_files_are_the_registered_ones(real, name):
    for key in ABOUT[name].files:
        try:
            assert datasets.fetch(key).is_file() and datasets.check(key) == "present"
        except FileNotFoundError as error:
            assert ": not there" in str(error)
            pytest.skip(f"the mirror has no {key}")


@pytest.mark.parametrize(
    "name, split, first, mean, deviation",
    [
        ("mnist", "train", [5, 0, 4, 1, 9], 0.1307, 0.3081),
        ("mnist", "test", [7, 2, 1, 0, 4], 0.1325, 0.3105),
        ("fashion_mnist", "train", [9, 0, 0, 3, 0], 0.2860, 0.3530),
        ("fashion_mnist", "test", [9, 2, 1, 1, 6], 0.2868, 0.3524),
    ],
)
def test_mnist_and_fashion_mnist(real, name, split, first, mean, deviation):
    data = real(name, split, dtype=torch.float32)
    assert data.inputs.shape == ((60_000 if split == "train" else 10_000), 784) and data.image_shape == (28, 28)
    assert data.targets[:5].tolist() == first and data.num_outputs == 10
    assert abs(data.inputs.mean(dtype=torch.float64) - mean) < 1e-4 and abs(data.inputs.double().std() - deviation) < 1e-4
    if name == "fashion_mnist":
        assert torch.bincount(data.targets).tolist() == [len(data) // 10] * 10
    for size in (10, 16):
        small = datasets.resize(data.select(slice(0, 500)), size)
        assert small.inputs.shape == (500, size * size)
        assert (small.inputs.mean(1) - data.inputs[:500].mean(1)).abs().max() < 1e-5


def test_the_first_pictures_of_cifar10(real):
    data = real("cifar10", version="first4000", dtype=torch.uint8)
    assert data.inputs.shape == (4000, 3072) and data.targets[0] == 6
    assert data.inputs[0, :5].tolist() == [59, 43, 50, 68, 98] and data.inputs[0, -3:].tolist() == [140, 84, 72]


def test_all_of_cifar10(real):
    data = real("cifar10", dtype=torch.uint8)
    assert data.inputs.shape == (50_000, 3072) and torch.bincount(data.targets).tolist() == [5000] * 10
    assert data.inputs[0, :5].tolist() == [59, 43, 50, 68, 98]
    channels = data.inputs.unflatten(1, (3, 1024))
    means = torch.stack([channels[:, channel].float().mean() / 255 for channel in range(3)])
    assert (means - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 1e-3


@pytest.mark.slow
def test_compressed_cifar10_is_in_the_official_order(real):
    pytest.importorskip("PIL.Image", reason="needs Pillow to read JPEG")
    data = real("cifar10", "test", version="jpeg", dtype=torch.uint8)
    assert torch.bincount(data.targets).tolist() == [1000] * 10 and data.targets[:5].tolist() == [3, 8, 8, 0, 6]
    assert abs(data.inputs.float().mean() / 255 - 0.4766) < 2e-3  # of the official test part: 0.4942 0.4851 0.4504


def test_the_olivetti_faces(real):
    data = real("olivetti_faces", dtype=torch.uint8)
    assert data.inputs.shape == (400, 4096) and torch.bincount(data.targets).tolist() == [10] * 40
    # scikit-learn has these divided by their largest value, 242
    assert [round(value / 242, 4) for value in data.inputs[0, :5].tolist()] == [0.3099, 0.3678, 0.4174, 0.4421, 0.5289]
    patches = real("faces", num_examples=10_000, dtype=torch.float32)
    assert patches.inputs.shape == (10_000, 625) and patches.inputs.mean(0).abs().max() < 1e-4
    assert abs(patches.inputs.double().var(0, correction=0).mean() - 1) < 1e-5


@pytest.mark.parametrize("split, words", [("train", 929_589), ("valid", 73_760), ("test", 82_430)])
def test_penn_treebank(real, split, words):
    data = real("penn_treebank", split, length=20)
    assert data.num_outputs == 10_000 and {"<eos>", "<unk>", "N"} <= set(data.classes)
    assert data.inputs.shape == data.targets.shape == ((words - 1) // 20, 20)
    assert f"{(words - 1) % 20} at its end left out" in data.source
    assert torch.equal(data.inputs.flatten()[1:], data.targets.flatten()[:-1])
    assert data.classes[:4] == ("the", "<unk>", "<eos>", "N")
    if split == "train":
        start = " ".join(data.classes[word] for word in data.inputs.flatten()[:31])
        assert start.startswith("aer banknote berlitz") and start.endswith("<eos> pierre <unk> N years old will")
