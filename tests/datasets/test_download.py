"""Fetching a file: from where, in which order, and that nothing but the registered bytes is ever handed on."""

import hashlib
import io
import logging
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from rich.console import Console
from rich.errors import LiveError
from rich.progress import Progress

from natgrad_lab.datasets import FILES, cache_folder, check, download, fetch

KEY = "tiny/file.bin"
DATA = bytes(range(256)) * 300  # two chunks of 64 KiB
ROOT = Path(__file__).parent.parent.parent


def mirror(tmp_path, data=DATA):
    """A folder that has the file."""
    (tmp_path / "mirror" / "tiny").mkdir(parents=True)
    (tmp_path / "mirror" / KEY).write_bytes(data)
    return tmp_path / "mirror"


def everything_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_folder_is_a_mirror(tmp_path, register, folder, monkeypatch):
    register(KEY, DATA)
    place = mirror(tmp_path)
    for spelled in (str(place), f"{place}/", f"file://{place}"):
        monkeypatch.setenv("NATGRAD_DATA_MIRROR", spelled)
        path = fetch(KEY)
        assert path == folder / KEY and path.read_bytes() == DATA and everything_in(folder) == ["file.bin"]
        path.unlink()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NATGRAD_DATA_MIRROR", "~/mirror")
    assert fetch(KEY).read_bytes() == DATA
    assert (place / KEY).read_bytes() == DATA  # the mirror is read, never moved


def test_a_url_is_a_mirror_and_the_origin_is_then_left_alone(register, folder, server, monkeypatch):
    register(KEY, DATA, [f"{server.url}/origin/file.bin"])
    server.files = {f"/mirror/{KEY}": DATA, "/origin/file.bin": DATA}
    monkeypatch.setenv("NATGRAD_DATA_MIRROR", f"{server.url}/mirror")
    assert fetch(KEY).read_bytes() == DATA
    assert server.requests == [f"/mirror/{KEY}"]
    assert fetch(KEY).read_bytes() == DATA and len(server.requests) == 1  # what is here is not asked for again


def test_sources_are_tried_in_their_order_until_one_serves(tmp_path, register, folder, server, monkeypatch):
    register(KEY, DATA, [f"{server.url}/one/file.bin", f"{server.url}/two/file.bin"])
    server.files = {"/two/file.bin": DATA}
    monkeypatch.setenv("NATGRAD_DATA_MIRROR", str(tmp_path / "nothing"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a source that only lacks the file is no cause for a warning
        assert fetch(KEY).read_bytes() == DATA
    assert server.requests == ["/one/file.bin", "/two/file.bin"]


def test_another_file_in_the_mirror_is_refused_and_the_origin_asked(tmp_path, register, folder, server, monkeypatch):
    register(KEY, DATA, [f"{server.url}/file.bin"])
    server.files = {"/file.bin": DATA}
    monkeypatch.setenv("NATGRAD_DATA_MIRROR", str(mirror(tmp_path, DATA[:-1] + b"?")))
    with pytest.warns(UserWarning, match=r"tiny/file.bin was taken from http.*mirror/tiny/file.bin: another file"):
        assert fetch(KEY).read_bytes() == DATA
    assert everything_in(folder) == ["file.bin"]


@pytest.mark.parametrize("bad", [DATA[:1000], b"", DATA[:-1] + b"?", DATA + b"?", b"<html>Sign in to the network</html>"])
def test_a_bad_file_in_the_cache_is_replaced_with_a_warning(tmp_path, register, folder, monkeypatch, bad):
    register(KEY, DATA)
    (folder / KEY).parent.mkdir(parents=True)
    (folder / KEY).write_bytes(bad)
    assert check(KEY) not in ("present", "absent")
    monkeypatch.setenv("NATGRAD_DATA_MIRROR", str(mirror(tmp_path)))
    reason = "its SHA-256 is" if len(bad) == len(DATA) else f"it has {len(bad)} bytes, expected {len(DATA)}"
    with pytest.warns(UserWarning, match=f"because of: .*file.bin: {reason}"):
        assert fetch(KEY).read_bytes() == DATA
    assert check(KEY) == "present"


def test_a_download_that_breaks_off_leaves_nothing_behind(register, folder, server):
    register(KEY, DATA, [f"{server.url}/file.bin"])
    server.files, server.halves = {"/file.bin": DATA}, {"/file.bin"}
    with pytest.raises(FileNotFoundError, match=r"http://127.0.0.1:\d+/file.bin: "):
        fetch(KEY)
    assert everything_in(folder) == [] and check(KEY) == "absent"
    server.halves = set()
    assert fetch(KEY).read_bytes() == DATA


def test_a_failed_attempt_leaves_the_file_that_was_there(register, folder, server):
    register(KEY, DATA, [f"{server.url}/file.bin"])
    (folder / KEY).parent.mkdir(parents=True)
    (folder / KEY).write_bytes(DATA[:-1])
    with pytest.raises(FileNotFoundError, match="file.bin: it has 76799 bytes, expected 76800"):
        fetch(KEY)
    assert (folder / KEY).read_bytes() == DATA[:-1]


def test_ctrl_c_leaves_nothing_behind(register, folder, server, monkeypatch):
    register(KEY, DATA, [f"{server.url}/file.bin"])
    server.files = {"/file.bin": DATA}

    def interrupt(bar, amount):
        raise KeyboardInterrupt

    monkeypatch.setattr(download._Bar, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(KEY)
    assert everything_in(folder) == []


def test_without_any_source_the_message_says_what_to_do(tmp_path, register, folder, server, monkeypatch):
    closed = "http://127.0.0.1:9/file.bin"  # nobody listens there
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    register(KEY, DATA, [f"{server.url}/file.bin", closed], note="Or use the other one.")
    monkeypatch.setenv("NATGRAD_DATA_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(FileNotFoundError) as caught:
        fetch(KEY)
    message, sha256 = str(caught.value), hashlib.sha256(DATA).hexdigest()
    assert message.startswith("tiny/file.bin (76,800 bytes) could not be had. Tried:\n")
    assert f"  {tmp_path / 'mirror' / KEY}: not there\n" in message
    assert f"  {server.url}/file.bin: HTTPError: 404 Client Error: Not Found\n" in message
    assert f"  {closed}: no connection\n" in message
    assert f"Put the file by hand at {folder / KEY} (its SHA-256 is {sha256})" in message
    assert "set NATGRAD_DATA_MIRROR to a folder or URL that has tiny/file.bin" in message
    assert message.endswith("Or use the other one.")
    (folder / KEY).write_bytes(DATA)  # by hand, as it says
    assert fetch(KEY) == folder / KEY


def test_a_file_that_comes_from_a_mirror_only_says_so(register):
    register(KEY, DATA, note="It comes from a mirror only.")
    with pytest.raises(FileNotFoundError, match="nothing: there is no address to try(.|\n)*It comes from a mirror only."):
        fetch(KEY)


def test_threads_that_ask_at_once_all_get_the_whole_file(register, folder, server):
    register(KEY, DATA, [f"{server.url}/file.bin"])
    server.files, server.delay = {"/file.bin": DATA}, 0.1
    results, barrier = [], threading.Barrier(4)

    def work():
        barrier.wait()
        results.append(fetch(KEY).read_bytes() == DATA)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4 and everything_in(folder) == ["file.bin"] and len(server.requests) == 1


@pytest.mark.slow
def test_processes_that_ask_at_once_all_get_the_whole_file_even_if_one_is_killed(register, folder, server):
    register(KEY, DATA, [f"{server.url}/file.bin"])
    server.files, server.delay = {"/file.bin": DATA}, 1.0
    code = f"""
import sys, types
package = sys.modules["natgrad_lab.datasets"] = types.ModuleType("datasets")  # without the rest of it, which needs torch
package.__path__ = [{str(ROOT / "natgrad_lab" / "datasets")!r}]
from natgrad_lab.datasets.download import fetch
from natgrad_lab.datasets.files import FILES, RemoteFile
FILES[{KEY!r}] = RemoteFile({FILES[KEY].sha256!r}, {len(DATA)}, ({server.url + "/file.bin"!r},))
print(len(fetch({KEY!r}).read_bytes()))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True) for _ in range(3)]
    while not server.requests and processes[0].poll() is None:
        threading.Event().wait(0.02)
    processes[0].kill()
    processes[0].communicate()
    assert [process.communicate(timeout=60)[0] for process in processes[1:]] == [f"{len(DATA)}\n"] * 2
    assert (folder / KEY).read_bytes() == DATA  # the killed one may leave a temporary file, which nobody reads


def test_a_folder_that_cannot_be_made_is_named(tmp_path, register, monkeypatch):
    register(KEY, DATA)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NATGRAD_DATA", str(tmp_path / "file" / "inside"))
    with pytest.raises(FileNotFoundError, match="inside/tiny cannot be made .*Name another folder by NATGRAD_DATA"):
        fetch(KEY)


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path, register, folder, monkeypatch):
    register(KEY, DATA)
    (folder / KEY).mkdir(parents=True)
    monkeypatch.setenv("NATGRAD_DATA_MIRROR", str(mirror(tmp_path)))
    with pytest.raises(FileNotFoundError, match="file.bin is a folder; take it away"):
        fetch(KEY)


def test_the_cache_folder_is_the_platforms_and_outside_the_checkout(monkeypatch, tmp_path):
    monkeypatch.delenv("NATGRAD_DATA", raising=False)
    assert cache_folder().name == "natgrad_lab" and ROOT not in cache_folder().parents
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NATGRAD_DATA", "~/data")
    assert cache_folder() == tmp_path / "data"


def test_without_pooch_a_file_put_by_hand_is_read_and_others_say_what_to_install(register, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    register(KEY, DATA, put=True)
    assert fetch(KEY).read_bytes() == DATA
    register("tiny/other.bin", DATA, ["http://127.0.0.1:9/"])
    with pytest.raises(ModuleNotFoundError, match="pip install pooch"):
        fetch("tiny/other.bin")


def test_a_bar_is_drawn_and_none_inside_another(register, folder, server, monkeypatch, capsys):
    register(KEY, DATA, [f"{server.url}/file.bin"])
    server.files = {"/file.bin": DATA}
    fetch(KEY).unlink()
    assert capsys.readouterr().err == "natgrad_lab: downloading file.bin, 0.1 MB\n"  # a log
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    fetch(KEY).unlink()
    err = capsys.readouterr().err
    assert "file.bin" in err and "76.8/76.8 kB" in err
    with Progress(console=Console(file=io.StringIO(), force_terminal=True)):
        fetch(KEY).unlink()

    def refuse(progress):
        raise LiveError("Only one live display may be active at once")  # what rich before 14 says inside another bar

    capsys.readouterr()
    monkeypatch.setattr(Progress, "start", refuse)
    assert fetch(KEY).read_bytes() == DATA
    assert capsys.readouterr().err == "natgrad_lab: downloading file.bin, 0.1 MB\n"


def test_poochs_own_messages_are_as_before_afterwards(register, folder, server, capsys, monkeypatch):
    import pooch

    register(KEY, DATA, [f"{server.url}/file.bin"])
    server.files, logger = {"/file.bin": DATA}, pooch.get_logger()
    monkeypatch.setattr(logger, "level", logging.INFO)
    fetch(KEY)
    assert logger.level == logging.INFO and "Downloading" not in capsys.readouterr().err
