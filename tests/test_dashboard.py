"""`natgrad dashboard` without a server: what it refuses, what its page holds, how it is closed to others."""

import importlib.util
import json
import subprocess

import numpy as np
import pytest

from natgrad_lab.cli import dashboard as module
from natgrad_lab.cli import main


def fails(capsys, *options):
    code = main(["dashboard", "--no-browser", *options])
    return code, capsys.readouterr().err


def test_without_voila_it_says_what_to_install(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "voila" else find(name, *rest))
    code, text = fails(capsys)
    assert code == 2 and "needs voila" in text and "pip install 'natgrad_lab[dashboard]'" in text


@pytest.mark.parametrize(
    "options, words",
    [
        (("--model", "my.py:make"), "give both --model and --data"),
        (("--examples", "0"), "--examples must be at least 1"),
        (("--likelihood", "gausian"), "Did you mean 'gaussian'"),
        (("--likelihood", "bernoulli"), "targets"),
    ],
)
def test_what_does_not_fit_is_said_before_a_server_starts(capsys, monkeypatch, options, words):
    monkeypatch.setattr(module, "serve", lambda *args: pytest.fail("must not start"))
    code, text = fails(capsys, *options)
    assert code == 2 and words in text


def test_a_model_of_ones_own_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("import torch\nprint('hello')\nnet = torch.nn.Linear(3, 2)\n")
    np.savez(tmp_path / "d.npz", inputs=np.zeros((30, 3), np.float32), targets=np.zeros(30, int))
    served = []
    monkeypatch.setattr(module, "serve", lambda *args: served.append(args))
    assert main(["dashboard", "--model", "net.py:net", "--data", "d.npz", "--examples", "2", "--no-browser"]) == 0
    [(shown, port, browser)] = served
    assert (port, browser) == (None, False)
    monkeypatch.setenv(module.SETTINGS, shown.settings())
    monkeypatch.chdir("/")
    again = module.Shown.from_environment()
    assert json.loads(again.settings())["model"] == f"{tmp_path / 'net.py'}:net"
    assert len(again.parts()[2]) == 20 and "8 parameters" in again.about().value


def test_the_page_is_a_notebook_and_the_server_is_for_this_machine_only(tmp_path):
    import nbformat

    module.write_page(tmp_path / "page.ipynb")
    notebook = nbformat.read(tmp_path / "page.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert "shown.race()" in [cell.source for cell in notebook.cells]
    command = module.command(8866)
    assert "--Voila.ip=127.0.0.1" in command and "--strip_sources=True" in command
    assert not any("token" in part for part in command), "everybody can read command lines"


def test_a_server_that_does_not_start_gives_its_last_words(tmp_path):
    (tmp_path / "log").write_text("no such port")
    with subprocess.Popen(["true"]) as server:
        server.wait()
        with pytest.raises(RuntimeError, match="(?s)did not start on port 1:.no such port"):
            module.wait_for(1, server, tmp_path / "log")
