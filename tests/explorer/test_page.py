"""`natgrad heatmap`: what the page holds, that it is safe, and what the command refuses."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from natgrad_lab import cli
from natgrad_lab.explorer import TILE, explorer
from natgrad_lab.explorer.page import page
from natgrad_lab.fisher import dense_fisher
from natgrad_lab.likelihoods import Categorical
from natgrad_lab.models import mlp


def held(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


@pytest.fixture
def inputs():
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cells", [1024, 60])
def test_every_tile_in_the_page_is_the_matrix(inputs, cells):
    model = mlp((12, 9, 4))
    dense = dense_fisher(model, Categorical(), inputs).to_dense().numpy()
    seen = explorer(model, Categorical(), inputs, approximations=["kfac"])
    data = held(page(seen, "title", cells))
    assert data["about"]["finest"] == (0 if cells == 1024 else seen.pyramid.level_for(0, seen.layout.dim, 60))
    assert set(data["tiles"]) == {"exact", "kfac", "kfac − exact"}
    checked = 0
    for reduce, levels in data["tiles"]["exact"].items():
        for level, tiles in levels.items():
            edges, count = seen.pyramid.edges(int(level)), data["counts"][level]
            for place, text in tiles.items():
                i, j = map(int, place.split(","))
                values = np.frombuffer(base64.b64decode(text), np.float32)
                rows, columns = (slice(n * TILE, min((n + 1) * TILE, count)) for n in (i, j))
                values = values.reshape(rows.stop - rows.start, columns.stop - columns.start)
                r, c = rows.start, columns.start + values.shape[1] // 2
                block = dense[edges[r] : edges[r + 1], edges[c] : edges[c + 1]]
                expected = np.sqrt((block**2).mean()) if reduce == "rms" else block.mean()
                np.testing.assert_allclose(values[0, values.shape[1] // 2], expected, rtol=1e-4, atol=1e-9)
                checked += 1
        assert (reduce == "entries") == ("0" in levels) or not levels
    assert checked >= 2


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("</script><img src=x onerror=alert(1)>", nn.Linear(12, 3))

    def forward(self, x):
        return next(self.children())(x)


def test_names_from_outside_are_escaped_and_nothing_is_loaded(inputs):
    text = page(explorer(Odd(), Categorical(), inputs), "<b>{{data}}</b>")
    assert "<img" not in text and "<b>" not in text and text.count("</script>") == 2
    assert "default-src 'none'" in text and not re.search(r"https?://", text)
    assert held(text)["about"]["layers"][0]["name"].startswith("</script>")


def test_cells_must_be_positive(inputs):
    with pytest.raises(ValueError, match="cells must be a positive integer; got 0"):
        page(explorer(mlp((12, 3)), Categorical(), inputs), "", 0)


MODEL = "import natgrad_lab as ng\n\n\ndef make():\n    return ng.models.mlp((6, 5, 3))\n"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "my.py").write_text(MODEL)
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "my.npz", inputs=generator.normal(size=(8, 6)), targets=generator.integers(0, 3, 8))
    return tmp_path


def natgrad(capsys, *argv):
    code = cli.main(list(map(str, argv)))
    return code, *capsys.readouterr()


@pytest.mark.parametrize("fisher", ["exact", "monte_carlo", "empirical"])
def test_the_command_writes_a_page(files, capsys, monkeypatch, fisher):
    monkeypatch.setenv("COLUMNS", "300")
    options = [
        "--model",
        f"{files / 'my.py'}:make",
        "--data",
        files / "my.npz",
        "--out",
        files / "page.html",
        "--fisher",
        fisher,
    ]
    code, out, _ = natgrad(capsys, "heatmap", *options, "--approximation", "kfac")
    assert code == 0 and "written" in out and "53 parameters" in out
    text = (files / "page.html").read_text()
    assert held(text)["about"]["sources"] == ["exact", "kfac", "kfac − exact"] and "on 8 examples" in text


def test_the_command_refuses(files, capsys):
    options = ["--model", f"{files / 'my.py'}:make", "--data", files / "my.npz"]
    for more, complaint in (
        (["--examples", 0], "--examples must be at least 1"),
        (["--out", files / "no" / "page.html"], "does not exist"),
        (["--approximation", "kfak"], "Did you mean 'kfac'"),
        (["--memory", 0], "the matrices alone take"),
        (["--cells", 0], "cells must be a positive integer"),
    ):
        code, _, err = natgrad(capsys, "heatmap", *options, *more)
        assert code == 2 and complaint in err, err


def test_without_a_model_it_shows_the_digits(files, capsys):
    code, out, _ = natgrad(capsys, "heatmap", "--out", files / "page.html", "--cells", 64, "--examples", 20)
    assert code == 0 and "1,930 parameters" in out
    assert "64-20-20-10 network on 20 examples of digits" in (files / "page.html").read_text()
    code, _, err = natgrad(capsys, "heatmap", "--data", files / "my.npz")
    assert code == 2 and "both --model and --data, or neither" in err
