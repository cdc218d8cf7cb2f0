"""Two notebooks in a real kernel (all of them run in test_notebooks.py); and the maker, from source to executed file."""

import json

import psutil
import pytest

from natgrad_lab import environment

ROOT = environment.checkout()
SOURCES = sorted((ROOT / "notebooks").glob("[0-9]*.py"))[:2]  # the prologue and a lesson: a kernel costs seconds
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("path", "fast"), list(zip(SOURCES, (True, False), strict=True)), ids=["fast", "with pictures"])
def test_a_real_kernel_runs_every_cell(path, fast):
    from natgrad_lab.notebooks import execute, read

    notebook = read(path)
    execute(notebook, path.parent, fast=fast, timeout=120)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    widgets = [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    still = {"image/png", "application/vnd.plotly.v1+json"}  # a picture, or the figure it is made from
    assert widgets and (fast or all(still & set(output.data) for output in widgets))
    assert "widgets" not in notebook.metadata
    children = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [command for command in children if "ipykernel" in command]


SOURCE = """# %% [markdown]
# # Small

# %%
import os, sys
print(sys.executable == {python!r}, os.path.basename(os.getcwd()), os.environ["NATGRAD_FAST"])

# %%
import plotly.graph_objects as go
go.Figure(go.Scatter(y=[1, 3, 2]))
"""


@pytest.fixture
def source(tmp_path):
    import sys

    path = tmp_path / "01_small.py"
    path.write_text(SOURCE.format(python=sys.executable))
    return path


@pytest.mark.browser
def test_a_source_becomes_an_executed_notebook_and_the_same_one_again(source):
    from natgrad_lab.notebooks import build

    (built,) = build([source])
    assert built.path == source.with_suffix(".ipynb") and built.cells == 3 and built.size == built.path.stat().st_size
    first = built.path.read_bytes()
    notebook = json.loads(first)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "".join(code[0]["outputs"][0]["text"]) == f"True {source.parent.name} 0\n"
    assert list(code[1]["outputs"][0]["data"]) == ["image/png"]
    assert build([source], check=True) == []
    build([source])
    assert built.path.read_bytes() == first
    assert sorted(path.name for path in source.parent.iterdir() if path.is_file()) == ["01_small.ipynb", "01_small.py"]


@pytest.mark.parametrize(
    "cell, error, complaint",
    [
        ("1 / 0", RuntimeError, "ZeroDivisionError"),
        ("import warnings; warnings.warn('careful')", RuntimeError, "writes to stderr.*careful"),
        ("import os; print(os.path.expanduser('~'))", ValueError, "names a folder of this machine"),
        ("print('x' * 300_000)", ValueError, "would be 30. KB; at most 300"),
    ],
)
def test_what_must_not_be_published_is_refused_and_nothing_is_written(tmp_path, cell, error, complaint):
    from natgrad_lab.notebooks import build

    path = tmp_path / "01_bad.py"
    path.write_text(f"# %%\n{cell}\n")
    with pytest.raises(error, match=f"(?s){complaint}"):
        build([path])
    assert [child.name for child in tmp_path.iterdir()] == ["01_bad.py"]
