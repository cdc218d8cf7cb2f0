"""The readers of downloaded sets, on tiny files in their true formats, written here from the formats' descriptions."""

import gzip
import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
import torch

from natgrad_lab import datasets
from natgrad_lab.datasets import cifar10, faces, fashion_mnist, mnist, olivetti_faces, penn_treebank
from natgrad_lab.datasets.matlab import read_bytes_array
from natgrad_lab.datasets.mnist import read_idx

RANDOM = np.random.default_rng(0)


def idx(array):
    """IDX: two zero bytes, 8 for unsigned bytes, the number of axes, big-endian lengths, the bytes by rows."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", length) for length in array.shape)
    return head + bytes(array.ravel().tolist())


# ---- MNIST


def put_mnist(register, folder, part, images, labels):
    register(f"{folder}/{part}-images-idx3-ubyte.gz", gzip.compress(idx(images)), put=True)
    register(f"{folder}/{part}-labels-idx1-ubyte.gz", gzip.compress(idx(labels)), put=True)


@pytest.mark.parametrize("make, place", [(mnist, "mnist"), (fashion_mnist, "fashion-mnist")])
@pytest.mark.parametrize("split, part", [("train", "train"), ("test", "t10k")])
def test_idx_pictures_become_rows(register, make, place, split, part):
    images, labels = RANDOM.integers(0, 256, (5, 4, 3)).astype(np.uint8), np.array([3, 0, 9, 9, 1], np.uint8)
    put_mnist(register, place, part, images, labels)
    data = make(split)
    assert data.inputs.dtype == torch.float64 and data.image_shape == (4, 3) and data.num_outputs == 10
    assert (data.inputs.numpy() == np.array([[pixel / 255 for pixel in image.ravel()] for image in images])).all()
    assert data.targets.tolist() == [3, 0, 9, 9, 1] and data.targets.dtype == torch.int64
    assert f"{split} part" in data.source and data.licence == datasets.ABOUT[data.name].licence
    raw = make(split, dtype=torch.uint8)
    assert raw.inputs.dtype == torch.uint8 and (raw.inputs.numpy() == images.reshape(5, 12)).all()
    assert make(split, dtype=torch.float16).inputs.dtype == torch.float16


@pytest.mark.parametrize(
    "spoil",
    [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b"\0\0\x0d" + data[3:], lambda data: data[:9],
     lambda data: b"", lambda data: b"\0\0\x08\0", lambda data: b"\0\0\x08\x07" + data[4:]],
)  # fmt: skip
def test_what_is_no_idx_file_is_refused(tmp_path, spoil):
    data = idx(RANDOM.integers(0, 256, (2, 3, 2)).astype(np.uint8))
    (tmp_path / "a.gz").write_bytes(gzip.compress(data))
    assert read_idx(tmp_path / "a.gz").shape == (2, 3, 2)
    (tmp_path / "a.gz").write_bytes(gzip.compress(spoil(data)))
    with pytest.raises(ValueError, match="a.gz is no IDX file of bytes: "):
        read_idx(tmp_path / "a.gz")


# ---- CIFAR-10


def cifar_records(labels):
    """(bytes of the records, pictures (N, 3, 32, 32))."""
    pictures = RANDOM.integers(0, 256, (len(labels), 3, 32, 32)).astype(np.uint8)
    data = b""
    for label, picture in zip(labels, pictures, strict=True):
        data += bytes([label]) + b"".join(bytes(channel.ravel().tolist()) for channel in picture)
    return data, pictures


def tar(files):
    """A gzipped tar archive of these files."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def test_the_binary_archive_of_cifar10_is_read_in_the_order_of_its_batches(register):
    batches = {number: cifar_records([number, 9 - number]) for number in (3, 1, 5, 2, 4)}
    test = cifar_records([7, 7, 0])
    files = {f"cifar-10-batches-bin/data_batch_{number}.bin": data for number, (data, _) in batches.items()}
    files |= {"cifar-10-batches-bin/test_batch.bin": test[0], "cifar-10-batches-bin/readme.html": b"<html>"}
    register("cifar10/cifar-10-binary.tar.gz", tar(files), put=True)
    data = cifar10()
    assert data.targets.tolist() == [1, 8, 2, 7, 3, 6, 4, 5, 5, 4]
    pictures = np.concatenate([batches[number][1] for number in range(1, 6)])
    assert (data.inputs.unflatten(1, data.image_shape).numpy() == pictures / 255).all() and data.image_shape == (3, 32, 32)
    data = cifar10("test", dtype=torch.uint8)
    assert data.targets.tolist() == [7, 7, 0] and (data.inputs.numpy().reshape(-1, 3, 32, 32) == test[1]).all()
    assert data.classes[7] == "horse" and "binary version" in data.source


def test_a_lone_part_of_cifar10_says_that_it_is_one(register):
    data, pictures = cifar_records([6, 9, 9])
    register("cifar10/data_batch_1_first4000.bin.gz", gzip.compress(data), put=True)
    found = cifar10(version="first4000")
    assert (found.inputs.numpy().reshape(-1, 3, 32, 32) == pictures / 255).all() and found.targets.tolist() == [6, 9, 9]
    assert "first 4,000 of data_batch_1" in found.source
    with pytest.raises(ValueError, match="has a train split only; got 'test'"):
        cifar10("test", version="first4000")


@pytest.mark.parametrize(
    "files, message",
    [
        ({"cifar-10-batches-bin/data_batch_1.bin": b""}, "has no data_batch_2.bin, data_batch_3.bin"),
        ({f"x/data_batch_{k}.bin": bytes(3073 if k < 5 else 3072) for k in range(1, 6)}, "whole records of 3073 bytes"),
        ({f"x/data_batch_{k}.bin": b"\x0a" + bytes(3072) for k in range(1, 6)}, "has class 10; CIFAR-10's are 0 to 9"),
        ({f"x/data_batch_{k}.bin": b"" for k in range(1, 6)}, "whole records of 3073 bytes: 0 bytes"),
    ],
)
def test_archives_that_are_not_cifar10_are_refused(register, files, message):
    register("cifar10/cifar-10-binary.tar.gz", tar(files), put=True)
    with pytest.raises(ValueError, match=message):
        cifar10()


def test_jpeg_pictures_come_in_the_official_order(register):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow to write and read JPEG")
    labels, shade, files = [3, 0, 3, 9], [10, 90, 170, 250], {}
    for place, (name, number) in enumerate([("cat", 0), ("airplane", 0), ("cat", 1), ("truck", 0)]):
        target = io.BytesIO()
        image.new("RGB", (32, 32), (shade[place],) * 3).save(target, "JPEG")
        files[f"test/{name}/{number:04d}.jpg"] = target.getvalue()
    files = dict(sorted(files.items())) | {"train/cat/0000.jpg": b"not looked at"}
    register("cifar10/cifar-10-images-jpeg.tar.gz", tar(files), put=True)
    saved = io.BytesIO()
    np.save(saved, np.array(labels, np.uint8))
    register("cifar10/test_labels.npy", saved.getvalue(), put=True)
    data = cifar10("test", version="jpeg", dtype=torch.uint8)
    assert data.targets.tolist() == labels and "JPEG, lossy" in data.source
    assert (data.inputs.float().mean(1) - torch.tensor(shade, dtype=torch.float32)).abs().max() < 2  # JPEG rounds
    del files["test/cat/0001.jpg"]
    register("cifar10/cifar-10-images-jpeg.tar.gz", tar(files), put=True)
    with pytest.raises(ValueError, match="has 3 pictures under test/, but 4 classes are listed"):
        cifar10("test", version="jpeg")


def test_jpeg_without_pillow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pillow"):
        cifar10(version="jpeg")


# ---- the Olivetti faces


def element(kind, data, order="<"):
    """One element of a MATLAB 5 file: type, length, data, padded to eight bytes; up to four bytes in the short form."""
    if 0 < len(data) <= 4:
        return struct.pack(f"{order}I", len(data) << 16 | kind) + data.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def matlab(arrays, order="<", compress=True, stored=2):
    """A MATLAB 5 file of double arrays whose whole numbers are stored as bytes (stored=2), as MATLAB does."""
    body = b""
    for name, array in arrays.items():
        values = array.ravel(order="F").astype({2: "u1", 9: f"{order}f8"}[stored]).tobytes()
        parts = element(6, struct.pack(f"{order}II", 6, 0), order)
        parts += element(5, struct.pack(f"{order}{array.ndim}i", *array.shape), order)
        parts += element(1, name.encode(), order) + element(stored, values, order)
        one = element(14, parts, order)
        packed = zlib.compress(one)
        body += struct.pack(f"{order}II", 15, len(packed)) + packed if compress else one
    head = b"MATLAB 5.0 MAT-file, made in a test".ljust(124) + struct.pack(f"{order}H", 0x0100)
    return head + struct.pack(f"{order}H", 0x4D49) + body


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [True, False])
def test_matlab_arrays_of_bytes(tmp_path, order, compress):
    wanted, other = RANDOM.integers(0, 256, (3, 5)), RANDOM.integers(0, 256, (1, 2))
    (tmp_path / "a.mat").write_bytes(matlab({"q": other, "faces": wanted, "a_longer_name": other}, order, compress))
    assert (read_bytes_array(tmp_path / "a.mat", "faces") == wanted).all()
    assert (read_bytes_array(tmp_path / "a.mat", "q") == other).all()
    assert (read_bytes_array(tmp_path / "a.mat", "a_longer_name") == other).all()


@pytest.mark.parametrize(
    "data, message",
    [
        (matlab({"u": np.ones((2, 3))}), "has no array 'faces' stored as bytes; it has u"),
        (matlab({"faces": np.ones((2, 3))}, stored=9), "has no array 'faces' stored as bytes; it has faces"),
        (matlab({}), "it has nothing"),
        (matlab({"faces": np.ones((20, 3))}, compress=False)[:-30], "is damaged: an element of"),
        (matlab({"faces": np.ones((20, 3))})[:-9], "is damaged"),
        (matlab({"faces": np.ones((20, 3))})[:131], "is damaged"),
        (matlab({"faces": np.ones((20, 3))}).replace(b"x", b"y", 1)[:140] + bytes(60), "is damaged"),
        (b"\x89HDF\r\n" + bytes(200), "is no MATLAB 5 file: it starts with b'.x89HDF"),
        (b"", "is no MATLAB 5 file"),
    ],
)
def test_other_matlab_files_are_refused(tmp_path, data, message):
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_bytes_array(tmp_path / "a.mat", "faces")


@pytest.fixture
def people(register):
    """A file of 400 made-up faces, and the faces upright."""
    images = RANDOM.integers(0, 256, (400, 64, 64)).astype(np.uint8)
    columns = np.stack([image.T.ravel() for image in images], axis=1)  # column by column, one face a column
    register("olivetti/olivettifaces.mat", matlab({"faces": columns}), put=True)
    return images


def test_the_faces_stand_upright_ten_a_person(people):
    data = olivetti_faces()
    assert (data.inputs.numpy().reshape(-1, 64, 64) == people / 255).all()
    assert data.targets.tolist() == [n // 10 for n in range(400)] and data.num_outputs == 40


def test_other_numbers_of_faces_are_refused(register):
    register("olivetti/olivettifaces.mat", matlab({"faces": np.ones((4096, 40))}), put=True)
    with pytest.raises(ValueError, match="must hold 4096 x 400 bytes"):
        olivetti_faces()


def by_hand(images, draw, first, count):
    """One patch: 25 x 25 places spread over the middle of a face, turned, each interpolated between four pixels."""
    face = images[first + int(draw[0] * count)].astype(float)
    angle, size = np.pi * (draw[1] - 0.5), 1 / (1.4 + 0.4 * draw[2])
    patch = np.empty((25, 25))
    for row in range(25):
        for column in range(25):
            x, y = (column - 12) * 64 / 25, (row - 12) * 64 / 25  # from the middle, in pixels
            across = 31.5 + size * (np.cos(angle) * x - np.sin(angle) * y)
            down = 31.5 + size * (np.sin(angle) * x + np.cos(angle) * y)
            assert 0 <= across <= 63 and 0 <= down <= 63  # nothing from outside the face
            i, j = int(down), int(across)
            a, b = down - i, across - j
            corners = face[np.ix_([i, min(i + 1, 63)], [j, min(j + 1, 63)])]
            patch[row, column] = np.array([1 - a, a]) @ corners @ np.array([1 - b, b])
    return patch.ravel()


@pytest.mark.parametrize("split, first, count", [("train", 0, 300), ("test", 300, 100)])
def test_patches_are_turned_enlarged_middles_of_faces(people, monkeypatch, split, first, count):
    module = __import__("sys").modules["natgrad_lab.datasets.olivetti"]
    monkeypatch.setattr(module, "STATISTICS", 50)
    data, reference = faces(split, 7, seed=3), faces("train", 50, seed=3)
    assert reference.inputs.mean(0).abs().max() < 1e-5  # float32 pixels up to 255 over their deviation
    assert abs(reference.inputs.var(0, correction=0).mean() - 1) < 1e-5
    draws = {start: np.random.default_rng([3, start // 10]).random((50, 3)) for start in (0, 300)}
    train = np.stack([by_hand(people, draw, 0, 300) for draw in draws[0]])
    made = np.stack([by_hand(people, draw, first, count) for draw in draws[first][:7]])
    expected = (made - train.mean(0)) / np.sqrt(train.var(0).mean())
    assert np.abs(data.inputs.numpy() - expected).max() < 1e-4  # 255 · 1e-7 · the steepness between pixels
    monkeypatch.setattr(module, "CHUNK", 3)
    assert torch.equal(faces(split, 7, seed=3).inputs, data.inputs)
    assert torch.equal(faces(split, 60, seed=3).inputs[:7], data.inputs)
    assert not torch.equal(faces(split, 7, seed=4).inputs, data.inputs)
    assert data.targets is data.inputs and data.image_shape == (25, 25) and "stand-in" in data.name + data.source


# ---- Penn Treebank

TEXT = {
    "train": " a b a <unk> \n c a b \n d <unk> e \n",
    "valid": " b b e \n",
    "test": " e d a \n b \n",
}


@pytest.fixture
def text(register):
    for split, words in TEXT.items():
        register(f"ptb/ptb.{split}.txt", words.encode(), put=True)


def test_words_are_numbered_by_how_often_the_train_part_has_them(text):
    data = penn_treebank(length=4)
    # <eos> and a three times, <unk> and b twice; equal ones by the alphabet
    assert data.classes == ("<eos>", "a", "<unk>", "b", "c", "d", "e") and data.num_outputs == 7
    words = "a b a <unk> <eos> c a b <eos> d <unk> e <eos>".split()
    numbers = [data.classes.index(word) for word in words]
    assert data.inputs.tolist() == [numbers[0:4], numbers[4:8], numbers[8:12]]
    assert data.targets.tolist() == [numbers[1:5], numbers[5:9], numbers[9:13]]
    assert "rows of 4 words, 0 at its end left out; 7 different words" in data.source and "others" not in data.source


def test_other_splits_have_the_numbers_of_the_train_part(text):
    data = penn_treebank("test", length=2)
    words = (
        [data.classes[number] for number in data.inputs.flatten()],
        [data.classes[number] for number in data.targets.flatten()],
    )
    assert words == (["e", "d", "a", "<eos>"], ["d", "a", "<eos>", "b"]) and "1 at its end left out" in data.source


@pytest.mark.parametrize(
    "num_words, kept", [(3, "<eos> a <unk>"), (2, "<eos> <unk>"), (1, "<unk>"), (7, "<eos> a <unk> b c d e")]
)
def test_rare_words_become_unknown_and_the_source_counts_them(text, num_words, kept):
    data = penn_treebank(length=12, num_words=num_words)
    assert data.classes == tuple(kept.split())
    words = "a b a <unk> <eos> c a b <eos> d <unk> e <eos>".split()
    expected = [word if word in kept.split() else "<unk>" for word in words]
    assert [data.classes[number] for number in data.inputs[0]] == expected[:12]
    rare = sum(word not in kept.split() for word in words)
    assert f"{num_words} different words, {rare} others are <unk>" in data.source


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: penn_treebank("dev"), "no split of penn_treebank 'dev'"),
        (lambda: penn_treebank(length=0), "length must be at least 1; got 0"),
        (lambda: penn_treebank("valid", length=4), "length must be less than the 4 words of the valid part; got 4"),
        (lambda: penn_treebank(num_words=0), "num_words must be between 1 and the 7 words of the train part; got 0"),
        (lambda: penn_treebank(num_words=8), "num_words must be between 1 and the 7 words of the train part; got 8"),
        (lambda: mnist("valid"), "no split of mnist 'valid'"),
        (lambda: mnist(dtype=torch.int64), "dtype must be a floating-point type"),
        (lambda: cifar10("valid"), "no split of cifar10 'valid'"),
        (lambda: cifar10(version="python"), "no version of cifar10 'python'"),
        (lambda: faces("valid"), "no split of faces 'valid'"),
        (lambda: faces(num_examples=0), "num_examples must be at least 1; got 0"),
        (lambda: faces(dtype=torch.uint8), "dtype must be a floating-point type"),
    ],
)
def test_bad_choices_are_named(text, register, call, message):
    put_mnist(register, "mnist", "train", np.zeros((1, 2, 2), np.uint8), np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match=message):
        call()


def test_a_word_that_the_train_part_lacks_needs_an_unknown_to_stand_for_it(register):
    for split, words in {"train": "a b \n", "test": "a z b \n"}.items():
        register(f"ptb/ptb.{split}.txt", words.encode(), put=True)
    with pytest.raises(ValueError, match="1 words of the test part are not in the train part, which has no <unk>"):
        penn_treebank("test", length=2)
