"""The figure of rates: what it draws, relative to the start, and the theory's line."""

import numpy as np
import pytest
import torch


def test_runs_theory_and_contrast_are_drawn_relative_to_their_start():
    from natgrad_lab.plots import method_colour, rate_figure

    t = np.linspace(0, 2, 5)
    figure = rate_figure(
        {"L = 3": (t, 7 * np.exp(-2 * t)), "L = 8": (t[:3], 0.1 * np.exp(-2 * t[:3]))}, {"L = 3": (t, 7 + 0 * t)}
    )
    names = ["natural gradient, L = 3", "natural gradient, L = 8", "gradient flow, L = 3", "theory"]
    assert [trace.name for trace in figure.data] == names
    assert np.allclose(figure.data[0].y, np.exp(-2 * t)) and np.allclose(figure.data[1].y, np.exp(-2 * t[:3]))
    assert list(figure.data[2].y) == [1.0] * 5 and figure.data[2].line.dash == "dash"
    assert np.allclose(figure.data[3].y, np.exp(-2 * np.array(figure.data[3].x))) and figure.data[3].x[-1] == 2
    colours = {method_colour("exact_ngd"): 2, method_colour("sgd"): 1}
    drawn = [trace.line.color for trace in figure.data]
    assert {colour: drawn.count(colour) for colour in colours} == colours
    assert (
        figure.layout.yaxis.type == "log"
        and "log" in figure.layout.yaxis.title.text
        and "t = 0" in figure.layout.yaxis.title.text
    )
    assert figure.layout.xaxis.title.text == "time (lr · steps)" and not figure.layout.showlegend
    labels = {note.text: (note.x, note.y) for note in figure.layout.annotations}
    assert labels == {"L = 3": (2, 0), "e^(−2 t)": (2, pytest.approx(-4 / np.log(10)))}


def test_another_slope_nothing_at_all_and_a_loss_that_reaches_zero():
    from natgrad_lab.plots import rate_figure

    empty = rate_figure({}, slope=-2.5)
    assert [trace.name for trace in empty.data] == ["theory"] and empty.data[0].y[-1] == pytest.approx(np.exp(-2.5))
    [contrast, _] = rate_figure({}, {"L = 1": ([0, 1, 2], [1.0, 0.5, 0.0])}).layout.annotations
    assert (contrast.x, contrast.y) == (1, pytest.approx(np.log10(0.5))), "the label stands at the last loss that can be drawn"


@pytest.mark.parametrize("curve, words", [
    (([0, 1], [1.0]), r"'run' needs one loss for each time; got shapes \(2,\) and \(1,\)"),
    (([0, 1], [0.0, 0.0]), "'run' begins at an excess loss of 0"),
])  # fmt: skip
def test_curves_that_cannot_be_compared_are_refused(curve, words):
    from natgrad_lab.plots import rate_figure

    with pytest.raises(ValueError, match=words):
        rate_figure({"run": curve})


def test_it_takes_a_flow_and_saxes_modes():
    from natgrad_lab import deep_linear
    from natgrad_lab.plots import rate_figure

    X, modes, times = 2**0.5 * torch.eye(2), torch.tensor([3.0, 0.5]), torch.linspace(0, 2, 5)
    flow = deep_linear.flow([0.3 * torch.eye(2)] * 2, X, X @ torch.diag(modes), times)
    u = deep_linear.saxe(modes, 0.09, times)
    figure = rate_figure({"L = 2": (flow.times, flow.excess_losses)}, {"L = 2": (times, ((modes - u) ** 2).sum(1) / 2)})
    natural, plain, theory = (np.array(trace.y) for trace in figure.data)
    assert np.allclose(natural, np.exp(-2 * times.numpy()), rtol=1e-6) and theory[-1] == pytest.approx(natural[-1], rel=1e-6)
    assert plain[-1] < plain[0] and abs(np.log(plain[1] / plain[0]) / 0.5 + 2) > 0.1
