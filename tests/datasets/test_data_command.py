"""`natgrad data`: what it lists, fetches and checks, and with which exit code; `natgrad compare --data NAME`."""

import pytest

from natgrad_lab import cli, datasets
from natgrad_lab.cli.read import load_data


@pytest.fixture
def natgrad(capsys, monkeypatch, folder):
    monkeypatch.setenv("COLUMNS", "300")

    def natgrad(*argv):
        code = cli.main(list(argv))
        return code, *capsys.readouterr()

    return natgrad


@pytest.fixture
def tiny(register, monkeypatch):
    """Two sets of one small file each."""
    monkeypatch.setitem(datasets.ABOUT, "one", datasets.About("a tiny set", "nobody", "none", ("tiny/one",), ("tiny/more",)))
    monkeypatch.setitem(datasets.ABOUT, "two", datasets.About("another", "nobody", "none", ("tiny/two",)))
    for key in ("tiny/one", "tiny/more", "tiny/two"):
        register(key, key.encode() * 1000)


def test_the_list_says_what_is_here(natgrad, tiny, register, folder):
    code, out, _ = natgrad("data")
    assert code == 0 and "one: a tiny set\n  nobody; licence none\n  download of 0.0 MB: 1 of 1 files missing" in out
    assert "mnist: " in out and "download of 170.1 MB: 1 of 1 files missing" in out and str(folder) in out
    assert out.count("STAND-IN") == 2
    register("tiny/one", b"tiny/one" * 1000, put=True)
    assert "a tiny set\n  nobody; licence none\n  download of 0.0 MB: here" in natgrad("data")[1]
    assert natgrad("data", "list", "digits")[1].startswith("digits: ") and "mnist" not in natgrad("data", "list", "digits")[1]


def test_fetch_brings_what_was_named_and_check_verifies_it(natgrad, tiny, tmp_path, folder, monkeypatch):
    for key in ("one", "more"):
        (tmp_path / "mirror" / "tiny").mkdir(parents=True, exist_ok=True)
        (tmp_path / "mirror" / "tiny" / key).write_bytes(f"tiny/{key}".encode() * 1000)
    monkeypatch.setenv("NATGRAD_DATA_MIRROR", str(tmp_path / "mirror"))
    assert natgrad("data", "fetch", "one")[:2] == (0, f"tiny/one: {folder / 'tiny' / 'one'}\n")
    assert not (folder / "tiny" / "more").exists()
    assert natgrad("data", "fetch", "--all", "one")[0] == 0 and (folder / "tiny" / "more").exists()
    code, out, _ = natgrad("data", "check")
    assert code == 0 and "tiny/one: ok\ntiny/more: ok\ntiny/two: absent\n" in out
    assert natgrad("data", "check", "two")[0] == 1  # named, and not there
    (folder / "tiny" / "more").write_bytes(b"tiny/more" * 999 + b"tiny/mere")
    code, out, _ = natgrad("data", "check")
    assert code == 1 and "tiny/more: its SHA-256 is " in out
    code, _, err = natgrad("data", "fetch", "two")
    assert code == 2 and "tiny/two (8,000 bytes) could not be had" in err and "NATGRAD_DATA_MIRROR" in err


@pytest.mark.parametrize(
    "argv, message",
    [
        (["fetch"], "name the data sets to fetch, as: natgrad data fetch mnist"),
        (["fetch", "minst"], "no data set 'minst'. Did you mean 'mnist'?"),
        (["fech", "mnist"], "no action 'fech'. Did you mean 'fetch'?"),
        (["check", "fashion"], "Did you mean 'fashion_mnist'?"),
    ],
)
def test_what_is_misspelt_is_named(natgrad, argv, message):
    code, _, err = natgrad("data", *argv)
    assert code == 2 and message in err


def test_compare_takes_the_name_of_a_data_set(tmp_path, monkeypatch):
    from pathlib import Path

    inputs, targets = load_data(Path("digits"))
    assert inputs.shape == (1797, 64) and targets.shape == (1797,)
    with pytest.raises(ValueError, match="no file 'digit', nor a data set of that name"):
        load_data(Path("digit"))
    monkeypatch.chdir(tmp_path)
    Path("digits").write_text("a file of that name is the file")
    with pytest.raises(ValueError, match="digits is no .npz file"):
        load_data(Path("digits"))
