"""Curves as plotly Figures and as the dicts that live views send."""

import subprocess
import sys
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest


def records(*losses):
    return [SimpleNamespace(step=step, loss=loss) for step, loss in enumerate(losses, start=1)]


def test_loss_figure_labels_lines_directly_in_method_colours():
    from natgrad_lab.plots import loss_figure, method_colour

    figure = loss_figure({"sgd": records(2.0, 1.0, 0.5), "kfac": records(2.0, 0.1)})
    assert [(trace.name, trace.line.color) for trace in figure.data] == [
        ("sgd", method_colour("sgd")),
        ("kfac", method_colour("kfac")),
    ]
    assert list(figure.data[0].x) == [0, 1, 2] and list(figure.data[0].y) == [2.0, 1.0, 0.5]
    assert not figure.layout.showlegend
    labels = {note.text: (note.x, note.y) for note in figure.layout.annotations}
    assert labels == {"sgd": (2, pytest.approx(np.log10(0.5))), "kfac": (1, pytest.approx(-1))}
    assert figure.layout.yaxis.type == "log" and "nats" in figure.layout.yaxis.title.text
    assert "log" in figure.layout.yaxis.title.text and figure.layout.xaxis.title.text == "optimizer steps taken"


def test_loss_figure_of_one_run_of_nothing_and_of_a_divergence():
    from natgrad_lab.plots import loss_figure

    assert loss_figure(records(1.0), "adam").data[0].name == "adam"
    empty = loss_figure({"sgd": ()})
    assert len(empty.data[0].x) == 0 and [note.text for note in empty.layout.annotations] == ["no step yet"]
    [note] = loss_figure(records(1.0, 0.1, float("nan")), "sgd").layout.annotations
    assert (note.x, note.y) == (1, pytest.approx(-1)), "the label stands at the last finite loss"


@pytest.mark.parametrize(
    "losses, shown, hidden", [((2.0, 0.3), {"0.2", "0.5", "1", "2"}, set()), ((5.0, 1e-4), {"1", "0.001"}, {"0.5"})]
)
def test_loss_ticks_are_whole_numbers(losses, shown, hidden):
    from natgrad_lab.plots import loss_figure

    axis = loss_figure(records(*losses)).layout.yaxis
    assert shown <= set(axis.ticktext) and not hidden & set(axis.ticktext)
    assert [float(text) for text in axis.ticktext] == pytest.approx(list(axis.tickvals))
    assert min(axis.tickvals) <= min(losses) and max(axis.tickvals) >= max(losses)


def test_spectrum_figure_is_ranked_and_marks_the_damping():
    from natgrad_lab.plots import spectrum_figure

    figure = spectrum_figure(np.array([1e-3, 0.0, 5.0, -1e-18, 0.2]), damping=0.01)
    values, line = figure.data
    assert list(values.x) == [1, 2, 3] and list(values.y) == [5.0, 0.2, 1e-3]
    assert list(line.y) == [0.01, 0.01] and "λ = 1.0e-02" in figure.layout.annotations[0].text
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    assert "log" in figure.layout.xaxis.title.text and "log" in figure.layout.yaxis.title.text
    assert [trace.name for trace in spectrum_figure(np.ones(3)).data] == ["eigenvalues"]
    assert [trace.name for trace in spectrum_figure(np.ones(3), 0).data] == ["eigenvalues"]


def test_the_damping_label_keeps_off_the_curve():
    from natgrad_lab.plots import spectrum_figure

    below, above = (spectrum_figure(np.array([1.0, 0.1]), damping).layout.annotations[0] for damping in (0.5, 2.0))
    assert (below.yanchor, above.yanchor) == ("top", "bottom")


def test_specs_are_plain_dicts_with_numeric_arrays():
    from natgrad_lab.plots import loss_spec, spectrum_spec

    for spec in (loss_spec({"sgd": records(1.0, 2.0)}), spectrum_spec(np.ones(3), 0.1)):
        assert type(spec) is dict and set(spec) == {"data", "layout"}
        for trace in spec["data"]:
            assert all(trace[axis].dtype in (np.float32, np.float64) for axis in "xy")


def test_figures_share_no_state():
    from natgrad_lab.plots import loss_spec

    first = loss_spec({"sgd": records(1.0)})
    first["layout"]["xaxis"]["title"]["text"] = "changed"
    assert loss_spec({"sgd": records(1.0)})["layout"]["xaxis"]["title"]["text"] == "optimizer steps taken"


def test_figures_shown_by_plotly_itself_cannot_be_uploaded(monkeypatch):
    """In a notebook, that is."""
    import plotly.io

    from natgrad_lab import plots

    renderer = plotly.io.renderers["plotly_mimetype"]
    monkeypatch.setattr(renderer, "config", {})
    for shell, expected in ((None, {}), (object(), {"showSendToCloud": False, "displaylogo": False})):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        plots._plain_buttons()
        assert renderer.config == expected


def test_a_process_that_shows_no_figure_loads_no_renderers():
    code = "import sys, natgrad_lab.plots, plotly.graph_objects; print({'plotly.io._renderers', 'nbformat'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n", done.stderr


def test_in_a_notebook_nbformat_is_loaded_when_more_than_its_version_is_asked_for():
    """It takes seconds, and plotly asks for its version when a figure is shown. Who looks through all modules loads nothing."""
    code = """
import inspect, sys
from IPython.testing.globalipapp import start_ipython
start_ipython()
import natgrad_lab.plots, plotly.graph_objects as go
from plotly.io import _renderers
inspect.getmodule(inspect.currentframe()), [hasattr(module, "__file__") for module in list(sys.modules.values())]
go.Figure().show("json")
print("nbformat.v4" in sys.modules, _renderers.nbformat.__version__)
import nbformat.v4
from nbformat import __version__
is_one = nbformat is sys.modules["nbformat"] and _renderers.nbformat.v4 is nbformat.v4
print(is_one, __version__, nbformat.v4.new_notebook()["nbformat"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    found = version("nbformat")
    assert done.stdout.splitlines()[-2:] == [f"False {found}", f"True {found} 4"], done.stdout + done.stderr
