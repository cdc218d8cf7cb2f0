"""What a Dataset is, the shipped digits, the sets drawn from Gaussians, and the lists that name all sets."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from natgrad_lab.datasets import (
    ABOUT,
    DATASETS,
    FILES,
    Dataset,
    autoencoding,
    curves,
    digits,
    gaussian_blobs,
    linear_teacher,
    load,
    textures,
    train_test,
)  # fmt: skip

ROOT = Path(__file__).parent.parent.parent
MADE_HERE = [name for name, about in ABOUT.items() if not about.files]


def test_digits_are_the_real_ones():
    data = digits()
    assert data.inputs.shape == (1797, 64) and data.inputs.dtype == torch.float64
    assert data.targets.shape == (1797,) and data.targets.dtype == torch.int64
    assert data.inputs.min() == 0 and data.inputs.max() == 1
    assert torch.equal(data.inputs * 16, (data.inputs * 16).round())
    # the class counts UCI documents for the test part, and the first image's first rows, known from the origin
    assert torch.bincount(data.targets).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (data.inputs[0, :16] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]
    assert data.targets[:10].tolist() == list(range(10))
    assert data.image_shape == (8, 8) and data.classes == tuple("0123456789") and data.num_outputs == 10


def test_digits_follow_the_default_dtype_or_the_one_asked_for():
    assert digits(torch.float32).inputs.dtype == torch.float32
    torch.set_default_dtype(torch.float32)
    assert digits().inputs.dtype == torch.float32


def test_altered_or_missing_digits_are_refused(tmp_path, monkeypatch):
    module = sys.modules["natgrad_lab.datasets.digits"]
    monkeypatch.setattr(module, "__file__", str(tmp_path / "natgrad_lab" / "datasets" / "digits.py"))
    with pytest.raises(FileNotFoundError, match="digits.npz is missing; looked for .*natgrad_lab/data/digits.npz or "):
        digits()
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "digits.npz", images=np.zeros((3, 8, 8), np.uint8), targets=np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="is not the file that was shipped: its SHA-256 is [0-9a-f]{64}, expected"):
        digits()


def test_the_digits_file_has_no_pickle_in_it():
    with np.load(ROOT / "data" / "digits.npz", allow_pickle=False) as file:
        assert {name: file[name].dtype for name in file} == {"images": np.uint8, "targets": np.uint8}


def test_blobs_are_balanced_apart_and_only_a_function_of_the_seed():
    data = gaussian_blobs(301, 3, 5, separation=50.0)
    assert torch.bincount(data.targets).tolist() == [101, 100, 100]
    centres = torch.stack([data.inputs[data.targets == k].mean(0) for k in range(3)])
    assert torch.equal(torch.cdist(data.inputs, centres).argmin(1), data.targets)
    state = torch.get_rng_state()
    assert torch.equal(data.inputs, gaussian_blobs(301, 3, 5, separation=50.0).inputs)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(data.inputs, gaussian_blobs(301, 3, 5, separation=50.0, seed=1).inputs)


def test_blob_noise_has_unit_variance():
    data = gaussian_blobs(9000, 3, 2)
    within = torch.cat([data.inputs[data.targets == k] - data.inputs[data.targets == k].mean(0) for k in range(3)])
    assert abs(within.var() - 1) < 0.04  # 18000 numbers: one deviation of the estimate is √(2/18000) = 0.011


def test_least_squares_recovers_the_teacher_up_to_the_noise():
    for noise in (0.0, 0.5):
        data = linear_teacher(2000, 4, 2, noise=noise)
        design = torch.cat([data.inputs, torch.ones(2000, 1)], dim=1)
        left = data.targets - design @ torch.linalg.lstsq(design, data.targets).solution
        assert abs(left.std() - noise) < (1e-12 if noise == 0 else 0.03)  # √(1/8000)·0.5 = 0.006 is one deviation


@pytest.mark.parametrize("name", MADE_HERE)
def test_every_data_set_says_where_it_comes_from(name):
    data = load(name, **({} if name == "digits" else {"num_examples": 20}))
    assert isinstance(data, Dataset) and data.name.startswith(name) and data.source and data.licence
    assert len(data) == len(data.inputs) == len(data.targets) and torch.isfinite(data.inputs).all()
    assert data.name in repr(data) and data.inputs.dtype == torch.float64
    assert load(name, dtype=torch.float32).inputs.dtype == torch.float32


def test_the_lists_name_the_same_sets_and_files():
    readme = (ROOT / "data" / "README.md").read_text()
    assert set(DATASETS) == set(ABOUT)
    assert all(f"`{name}`" in readme and ABOUT[name].licence and ABOUT[name].origin for name in DATASETS)
    assert {key for about in ABOUT.values() for key in (*about.files, *about.more)} == set(FILES)


def test_every_file_has_a_checksum_a_size_and_an_address_or_a_note():
    for key, file in FILES.items():
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256) and file.num_bytes > 0
        assert re.fullmatch(r"[a-z0-9-]+/[\w.-]+", key)  # a place in the folder, and no way out of it
        assert file.urls or "comes from a mirror only" in file.note
        assert all(re.match(r"https?://", url) and url.endswith(key.split("/")[1]) for url in file.urls)
    assert len({file.sha256 for file in FILES.values()}) == len(FILES)


def test_shipped_files_are_listed_and_small():
    shipped_part = (ROOT / "data" / "README.md").read_text().split("\n## ")[0]
    listed = set(re.findall(r"^\| `([^`]+)`", shipped_part, flags=re.MULTILINE))
    shipped = {path.name for path in (ROOT / "data").iterdir()} - {"README.md"}
    assert shipped == listed
    assert all((ROOT / "data" / name).stat().st_size < 1e6 for name in shipped)


def test_split_is_a_partition_and_repeatable():
    train, test = train_test(digits(), 0.25)
    assert (len(train), len(test)) == (1348, 449)
    rows = torch.cat([train.inputs, test.inputs])
    assert torch.equal(rows.sum(0), digits().inputs.sum(0))  # sums of multiples of 1/16: exact
    again = train_test(digits(), 0.25)[1]
    assert torch.equal(test.inputs, again.inputs) and torch.equal(test.targets, again.targets)
    other = train_test(digits(), 0.25, torch.Generator().manual_seed(3))[1]
    assert not torch.equal(test.targets, other.targets)


def test_select_keeps_inputs_and_targets_together():
    data = digits().select(torch.tensor([5, 2]))
    assert data.targets.tolist() == [5, 2] and torch.equal(data.inputs, digits().inputs[[5, 2]])
    assert len(digits().select(slice(0, 7))) == 7


def test_autoencoding_copies_nothing_also_when_a_part_is_selected():
    data = autoencoding(digits())
    assert data.targets is data.inputs and data.classes == () and data.num_outputs == 64
    part = data.select(slice(3, 8))
    assert part.targets is part.inputs and torch.equal(part.inputs, digits().inputs[3:8])
    assert data.source.startswith(digits().source) and data.source.endswith("targets are the inputs")
    train, test = train_test(data)
    assert torch.equal(train.targets, train.inputs) and torch.equal(test.targets, test.inputs)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: load("digit"), r"no data set 'digit'. Did you mean 'digits'\? There are: digits, gaussian_blobs"),
        (lambda: load("qqq"), r"no data set 'qqq'. There are: "),
        (lambda: load("digits", split="train"), r"no option of digits 'split'. There are: dtype"),
        (lambda: load("mnist", spilt="train"), r"no option of mnist 'spilt'. Did you mean 'split'\?"),
        (
            lambda: autoencoding(Dataset("d", torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2).long())),
            r"real inputs; those of d ",
        ),
        (lambda: curves(0), r"num_examples must be at least 1; got 0"),
        (lambda: curves(5, size=0), r"size must be at least 1; got 0"),
        (lambda: curves(5, sigma=0.0), r"sigma must be a finite number > 0; got 0.0"),
        (lambda: curves(5, margin=13.5), r"margin must be >= 0 and less than half of the picture, 13.5; got 13.5"),
        (lambda: curves(5, margin=float("nan")), r"margin must be >= 0 .*; got nan"),
        (lambda: curves(5, dtype=torch.uint8), r"dtype must be a floating-point type .*; got torch.uint8"),
        (lambda: textures(num_classes=0), r"num_classes must be at least 1; got 0"),
        (lambda: textures(period=float("inf")), r"period must be a finite number > 0; got inf"),
        (lambda: textures(noise=-1.0), r"noise must be a finite number >= 0; got -1.0"),
        (lambda: digits(torch.int64), r"dtype must be a floating-point type .*; got torch.int64"),
        (lambda: gaussian_blobs(0), r"num_examples must be at least 1; got 0"),
        (lambda: gaussian_blobs(3, 2, 0), r"dim must be at least 1; got 0"),
        (lambda: gaussian_blobs(separation=-1.0), r"separation must be a finite number >= 0; got -1"),
        (lambda: linear_teacher(num_outputs=0), r"num_outputs must be at least 1; got 0"),
        (lambda: linear_teacher(noise=float("nan")), r"noise must be a finite number >= 0; got nan"),
        (lambda: train_test(gaussian_blobs(4), 0.0), r"at least one of the 4 examples on each side; got 0.0"),
        (lambda: train_test(gaussian_blobs(4), 0.99), r"at least one of the 4 examples on each side; got 0.99"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
