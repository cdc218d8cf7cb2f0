"""The panel and its views against a front end that is not there."""

import base64
import struct
import zlib

import numpy as np
import pytest
import torch
from toy import wait_until

SIZES = (4, 5, 3)


def tiny_config(**choices):
    import natgrad_lab as ng

    values = {"sizes": SIZES, "dataset": "gaussian_blobs", "method": "sgd", "batch_size": 16, "steps": 1000}
    return ng.experiments.ExperimentConfig(**{**values, **choices})


@pytest.fixture
def panel(page, monkeypatch):
    import natgrad_lab as ng
    from natgrad_lab import datasets

    monkeypatch.setitem(datasets.DATASETS, "gaussian_blobs", lambda **keys: datasets.gaussian_blobs(60, 3, 4, **keys))
    made = ng.widgets.TrainingPanel(tiny_config(), probe_size=7)
    assert made.run.wait()
    page.ready(made.heat, made.spectrum, made.loss)
    assert made.run.wait()
    yield made
    made.close()


@pytest.fixture
def canvas(page):
    import natgrad_lab as ng
    from natgrad_lab.plots import fisher_picture

    layout = ng.ParameterLayout(ng.models.mlp(SIZES))
    generator = np.random.default_rng(0)
    root = generator.normal(size=(9, layout.dim))
    matrix = root.T @ root
    view = ng.widgets.HeatmapCanvas()
    view.example = (matrix, layout, fisher_picture)
    yield view
    view.close()


# ---- the canvas


def test_one_byte_per_cell_and_the_colour_tables_once(page, canvas):
    from natgrad_lab.plots import colour_table

    matrix, layout, fisher_picture = canvas.example
    page.ready(canvas)
    picture = fisher_picture(matrix, "log", size=10)
    canvas.show(picture, layout, stamp="s")
    canvas.show(picture, layout)
    (header, buffers), _ = page.sent(canvas)
    assert (header["rows"], header["columns"], header["stamp"], len(buffers[0])) == (10, 10, "s", 100)
    assert np.array_equal(np.frombuffer(buffers[0], np.uint8).reshape(10, 10), picture.to_uint8())
    [(message, tables)] = page.sent(canvas, "colours")
    assert message["names"] == ("sequential", "diverging")
    assert bytes(tables[0]) == colour_table("sequential").tobytes() and len(tables[1]) == 768


def test_frames_wait_for_the_page(page, canvas):
    matrix, layout, fisher_picture = canvas.example
    page.auto = False
    page.ready(canvas)
    for number in range(5):
        canvas.show(fisher_picture(matrix * 10.0**number, "log"), layout, stamp=str(number))
    assert [header["stamp"] for header, _ in page.sent(canvas)] == ["0", "1"]
    page.tell(canvas, type="painted", id=page.sent(canvas)[0][0]["id"])
    assert [header["stamp"] for header, _ in page.sent(canvas)] == ["0", "1", "4"]


def test_a_reload_gets_the_last_frame_and_gone_stops(page, canvas):
    matrix, layout, fisher_picture = canvas.example
    canvas.show(fisher_picture(matrix), layout, stamp="only")
    assert page.sent(canvas) == [] and not canvas.is_watched
    page.ready(canvas)
    page.tell(canvas, type="ready", view="reloaded")
    assert [header["stamp"] for header, _ in page.sent(canvas)] == ["only", "only"]
    page.tell(canvas, type="gone", view="v")
    assert canvas.is_watched
    page.tell(canvas, type="gone", view="reloaded")
    assert not canvas.is_watched


def ask(page, canvas, row, column):
    page.tell(canvas, type="cell", row=row, column=column, id=page.sent(canvas)[-1][0]["id"])
    content, _ = page.sent(canvas, "text")[-1]
    assert (content["row"], content["column"]) == (row, column)
    return content["text"]


def value_in(text):
    return float(text.split(" = ")[1])


def test_pointing_reads_the_entry_of_the_dense_matrix(page, canvas):
    matrix, layout, fisher_picture = canvas.example
    page.ready(canvas)
    canvas.show(fisher_picture(matrix, "signed"), layout)
    for row, column in ((0, 0), (3, 17), (24, 42), (layout.dim - 1, 5)):
        text = ask(page, canvas, row, column)
        assert text.startswith(f"{layout.parameter_name(row)} × {layout.parameter_name(column)}: F = ")
        assert value_in(text) == pytest.approx(matrix[row, column], rel=1e-5)
    canvas.show(fisher_picture(matrix, "log"), layout)
    text = ask(page, canvas, 3, 17)
    assert "|F| = " in text and value_in(text) == pytest.approx(abs(matrix[3, 17]), rel=1e-5)
    canvas.show(fisher_picture(matrix, "correlation"), layout)
    expected = matrix[3, 17] / np.sqrt(matrix[3, 3] * matrix[17, 17])
    assert value_in(ask(page, canvas, 3, 17)) == pytest.approx(expected, rel=1e-5)


def test_pointing_at_a_pooled_cell_names_both_groups(page, canvas):
    matrix, layout, fisher_picture = canvas.example
    page.ready(canvas)
    picture = fisher_picture(matrix, "log", size=10)
    canvas.show(picture, layout)
    text = ask(page, canvas, 2, 7)
    rows, columns = picture.row_edges[2:4], picture.column_edges[7:9]
    block = matrix[rows[0] : rows[1], columns[0] : columns[1]]
    assert value_in(text) == pytest.approx(np.sqrt((block**2).mean()), rel=1e-5)
    names = [layout.parameter_name(int(i)) for i in (rows[0], rows[1] - 1, columns[0], columns[1] - 1)]
    assert text.startswith(f"{names[0]} … {names[1]} × {names[2]} … {names[3]}: root mean square of {block.size} entries")


def test_pointing_outside_is_not_answered(page, canvas):
    matrix, layout, fisher_picture = canvas.example
    page.ready(canvas)
    canvas.show(fisher_picture(matrix), layout)
    page.tell(canvas, type="cell", row=-1, column=0, id=1)
    page.tell(canvas, type="cell", row=0, column=layout.dim, id=1)
    assert page.sent(canvas, "text") == []


def decode_png(text):
    data = base64.b64decode(text)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    place, idat = 8, b""
    while place < len(data):
        (length,), kind = struct.unpack(">I", data[place : place + 4]), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + length]
        (crc,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        assert crc == zlib.crc32(kind + body)
        idat += body if kind == b"IDAT" else b""
        place += 12 + length
    lines = np.frombuffer(zlib.decompress(idat), np.uint8).reshape(height, 1 + 3 * width)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, 3)


def test_static_pages_get_a_png(page, canvas):
    from natgrad_lab.plots import colour_table

    matrix, layout, fisher_picture = canvas.example
    bundle = canvas._repr_mimebundle_()
    assert "image/png" not in (bundle[0] if isinstance(bundle, tuple) else bundle)
    picture = fisher_picture(matrix, "signed")
    canvas.show(picture, layout)
    bundle = canvas._repr_mimebundle_()
    image = (bundle[0] if isinstance(bundle, tuple) else bundle)["image/png"]
    assert np.array_equal(decode_png(image), colour_table("diverging")[picture.to_uint8()])


def test_a_closed_canvas_is_silent(page, canvas):
    matrix, layout, fisher_picture = canvas.example
    page.ready(canvas)
    canvas.close()
    canvas.show(fisher_picture(matrix), layout)
    canvas.close()


# ---- the plot


def test_arrays_go_in_binary_and_redraws_are_rare(page):
    from toy import Clock

    import natgrad_lab as ng

    clock = Clock()
    view = ng.widgets.PlotView(clock=clock)
    page.ready(view)
    x = np.arange(4, dtype=np.float32)
    spec = {"data": [{"x": x, "y": x.astype(np.float64), "name": "n"}], "layout": {"title": "t"}}
    assert view.show(lambda: spec)
    header, buffers = page.sent(view)[0]
    trace = header["figure"]["data"][0]
    assert trace["x"] == {"$buffer": 0, "dtype": "float32"} and trace["y"] == {"$buffer": 1, "dtype": "float64"}
    assert np.array_equal(np.frombuffer(buffers[0], np.float32), x) and trace["name"] == "n"
    clock.now = 0.24
    assert not view.show(lambda: pytest.fail("must not be made"))
    assert view.show(lambda: spec, urgent=True)
    clock.now = 0.5
    assert view.show(lambda: spec)
    assert len(page.sent(view)) == 3
    view.close()


def test_plotly_is_sent_when_a_page_asks(page):
    from plotly.offline import get_plotlyjs

    import natgrad_lab as ng

    view = ng.widgets.PlotView()
    page.ready(view)
    assert page.sent(view, "library") == []
    page.tell(view, type="library")
    [(_, [code])] = page.sent(view, "library")
    assert bytes(code).decode() == get_plotlyjs()
    view.close()


# ---- the panel


def test_the_first_picture_comes_before_start(page, panel):
    frames = page.sent(panel.heat)
    assert frames and "step=0" in frames[-1][0]["stamp"]
    assert "κ = " in panel.headline.value and "largest / smallest nonzero" in panel.headline.value
    assert panel.controls.start.description == "Start" and panel.run.state == "idle"
    assert page.sent(panel.spectrum) and page.sent(panel.loss)


def test_start_pause_step_reset(page, panel):
    page.click(panel.controls.step)
    assert panel.run.wait() and panel.run.latest.step == 1
    page.click(panel.controls.start)
    assert wait_until(lambda: panel.run.latest.step > 10)
    assert panel.controls.start.description == "Pause" and panel.controls.step.disabled
    page.click(panel.controls.start)
    assert panel.run.wait() and panel.run.state == "paused"
    assert f"step={panel.run.latest.step} " in page.sent(panel.heat)[-1][0]["stamp"]
    assert f"step {panel.run.latest.step}<" in panel.status.value
    page.click(panel.controls.reset)
    assert panel.run.wait() and (panel.run.latest.step, panel.run.state) == (0, "idle")
    assert "press Start" in panel.status.value


def test_each_step_is_seen_in_a_new_fisher(page, panel):
    from natgrad_lab.widgets import compute

    seen, buffers = [], set()
    for _ in range(3):
        page.click(panel.controls.step)
        assert panel.run.wait()
        problem = panel.run.problem
        training = problem._training
        state = {"model": training.model, "likelihood": training.likelihood, "inputs": training.inputs[:7]}
        expected = compute({**state, "scale": "log", "damping": 0.01})
        shown = panel.run.latest.arrays
        np.testing.assert_allclose(shown["eigenvalues"], expected["eigenvalues"])
        np.testing.assert_array_equal(shown["picture"].values, expected["picture"].values)
        seen.append(shown["condition_number"])
        buffers.add(problem._fisher.matrix.data_ptr())
    assert len(set(seen)) == 3 and len(buffers) == 1, "one buffer is written again and again"


def test_sliders_reach_the_optimizer_and_the_page(page, panel):
    page.slide(panel.controls.lr, 0.025)
    page.slide(panel.controls.damping, 3.0)
    assert panel.run.wait()
    assert panel.run.problem._training.optimizer.param_groups[0]["lr"] == 0.025
    assert page.sent(panel.heat)[-1][0]["stamp"].endswith("lr=0.025 damping=3")
    assert "λ = 3.0 × 10⁰" in panel.headline.value
    page.click(panel.controls.step)
    assert panel.run.wait() and panel.run.latest.record.lr == 0.025


def test_a_new_method_restarts_with_its_own_rate_and_keeps_the_old_curve(page, panel):
    from natgrad_lab.widgets.controls import default_of

    page.click(panel.controls.start)
    assert wait_until(lambda: panel.run.latest.step > 3)
    page.click(panel.controls.start)
    assert panel.run.wait()
    page.choose(panel.controls.method, "kfac")
    assert panel.run.wait()
    frame = panel.run.latest
    assert (frame.step, frame.epoch, frame.choices["method"]) == (0, 1, "kfac")
    assert panel.controls.lr.value == frame.choices["lr"] == default_of("kfac", "lr")
    names = [trace["name"] for trace in page.sent(panel.loss)[-1][0]["figure"]["data"]]
    assert names == ["sgd", "kfac"]
    assert panel.run.problem._training.optimizer.param_groups[0]["damping"] == frame.choices["damping"]
    page.click(panel.controls.step)
    assert panel.run.wait()
    page.choose(panel.controls.method, "sgd")
    assert panel.run.wait()
    names = [trace["name"] for trace in page.sent(panel.loss)[-1][0]["figure"]["data"]]
    assert names == ["kfac", "sgd"], "the current method is the last one, and there once"


def test_scales_and_parts(page, panel):
    page.choose(panel.controls.scale, "signed F")
    assert panel.run.wait() and page.sent(panel.heat)[-1][0]["colours"] == "diverging"
    label = next(text for text in panel.controls.picture._options_labels if text.startswith("layer 0 × layer 2"))
    page.choose(panel.controls.picture, label)
    assert panel.run.wait()
    header = page.sent(panel.heat)[-1][0]
    assert (header["rows"], header["columns"]) == (25, 18)
    assert [name for *_, name in header["grid"]["columns"]["layers"]] == ["2"]


def test_an_error_stands_escaped_above_the_plots(page, panel):
    def broken():
        raise ValueError("no <b>good</b> & bad")

    panel.run.problem.step = broken
    page.click(panel.controls.step)
    assert wait_until(lambda: panel.run.state == "failed") and panel.run.wait()
    assert "ValueError: no &lt;b&gt;good&lt;/b&gt; &amp; bad" in panel.error.value and "<b>good" not in panel.error.value
    assert "Traceback" in panel.error.value and panel.children.index(panel.error) < len(panel.children) - 1
    assert panel.controls.start.disabled and not panel.controls.reset.disabled
    page.click(panel.controls.start)
    assert "has failed. Call reset()" in panel.error.value
    page.click(panel.controls.reset)
    assert panel.run.wait() and panel.error.value == "" and not panel.controls.start.disabled


def test_a_second_panel_replaces_the_first(page, panel):
    import natgrad_lab as ng

    panel.run.start()
    second = ng.widgets.live(tiny_config(), probe_size=7)
    assert panel.run.state == "closed" and second.run.wait()
    second.close()
    second.close()


def test_a_page_that_leaves_costs_nothing_and_comes_back(page, panel):
    page.tell(panel.heat, type="gone")
    page.click(panel.controls.start)
    assert wait_until(lambda: panel.run.problem._training.step > 30)
    shown = len(page.sent(panel.heat))
    before = panel.run.problem._training.step
    assert wait_until(lambda: panel.run.problem._training.step > before + 30)
    assert len(page.sent(panel.heat)) == shown
    page.tell(panel.heat, type="ready", view="again")
    assert wait_until(lambda: len(page.sent(panel.heat)) > shown + 1)


def test_own_model_is_trained_as_a_copy(page):
    import natgrad_lab as ng

    model = ng.models.mlp((2, 6, 3), activation="relu", bias=False)
    before = [parameter.clone() for parameter in model.parameters()]
    panel = ng.widgets.TrainingPanel(model=model, dataset=ng.datasets.gaussian_blobs(40), probe_size=500)
    panel.run.step(5)
    assert panel.run.wait() and panel.run.latest.step == 5 and panel.run.latest.error == ""
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
    assert "on 40 probe examples" in panel.headline.value
    panel.close()


@pytest.mark.parametrize(
    "options, words",
    [({"likelihood": "x"}, "go with model="), ({"dataset": "x"}, "go with model="), ({"model": "x"}, "needs dataset=")],
)
def test_half_given_models_are_refused(page, options, words):
    import natgrad_lab as ng

    known = {
        "likelihood": ng.likelihoods.Categorical(),
        "dataset": ng.datasets.gaussian_blobs(20),
        "model": ng.models.mlp((2, 3)),
    }
    with pytest.raises(ValueError, match=words):
        ng.widgets.TrainingPanel(**{name: known[name] for name in options})


def test_static_twin_and_html(page, panel, tmp_path):
    page.click(panel.controls.step)
    assert panel.run.wait()
    figure = panel.static_figure()
    assert [trace.name for trace in figure.data] == ["fisher", "eigenvalues", "damping", "sgd"]
    assert figure.data[0].z.shape == (43, 43) and "condition number" in figure.layout.title.text
    text = panel.to_html(tmp_path / "panel.html").read_text(encoding="utf-8")
    assert "Plotly.newPlot" in text and "<script src=" not in text


def test_the_panel_leaves_a_png_on_static_pages(page, panel):
    bundle = panel._repr_mimebundle_()
    assert decode_png((bundle[0] if isinstance(bundle, tuple) else bundle)["image/png"]).shape == (43, 43, 3)
