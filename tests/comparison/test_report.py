"""The ways out of a report: rows, JSON, page, figures; and `natgrad compare` with its messages and exit codes."""

import importlib.util
import json
import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import typer
from cases import random_case

from natgrad_lab import cli, comparison
from natgrad_lab.cli import compare as command
from natgrad_lab.cli import read
from natgrad_lab.comparison import METRICS, Report, Row
from natgrad_lab.plots import comparison as plots

NASTY = "<script>alert('x')</script>&\"</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def report():
    torch.set_default_dtype(torch.float64)
    case = random_case((4, 5, 3), num_examples=7)
    mine = {"kfac": "kfac", "diagonal": "diagonal", "block_diagonal": "block_diagonal", "identity": "identity"}
    mine |= {NASTY: lambda g: g + 0.1, "bad": lambda model, likelihood, inputs: None}
    return comparison.compare(*case.data, case.targets, 0.05, mine)


def one_path(*_):
    raise AssertionError("must not be called")


# ---- rows and words


def test_every_metric_is_a_field_that_says_what_it_means(report):
    fields = set(Row.__dataclass_fields__)
    assert set(METRICS) <= fields
    others = {"approximation", "label", "layer", "dim", "dtype", "warnings", "notes", "not_available"}
    assert fields - set(METRICS) == others
    for row in report.rows:
        if row.layer == "all":
            missing = {name for name in METRICS if getattr(row, name) is None}
            assert missing == set(row.not_available), row.approximation  # never None without a reason


def test_the_headline_says_in_words_which_is_how_good(report):
    best = report.totals[1]
    assert best.efficiency == max(row.efficiency for row in report.totals[1:] if row.efficiency is not None)
    assert f"At damping λ = 0.05, {best.label} is" in report.headline()
    assert report.totals[0].approximation == "exact"


@pytest.mark.parametrize("efficiency, word", [(1.0, "nearly exact"), (0.95, "nearly exact"), (0.94, "good"), (0.5, "fair"),
                                              (0.2, "poor"), (0.1, "very poor"), (0.0, "very poor")])  # fmt: skip
def test_words_for_efficiencies(efficiency, word):
    from natgrad_lab.comparison.report import _word

    assert _word(efficiency) == word


def test_a_row_that_is_not_there_is_named(report):
    with pytest.raises(ValueError, match="no approximation in this report 'kfca'. Did you mean 'kfac'"):
        report.row("kfca")
    with pytest.raises(ValueError, match="no layer in this report '9'"):
        report.row("kfac", "9")


def test_a_dataframe_has_every_number_or_says_what_to_install(report, monkeypatch):
    if importlib.util.find_spec("pandas"):
        frame = report.to_dataframe()
        assert len(frame) == len(report.rows) and set(METRICS) <= set(frame.columns)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        report.to_dataframe()


# ---- JSON


def test_json_comes_back_as_it_was(report, tmp_path):
    path = report.to_json(tmp_path / "report.json")
    values = json.loads(path.read_text(encoding="utf-8"))
    assert (values["schema"], values["version"]) == ("natgrad_lab.report", 1)
    again = Report.from_json(path)
    assert again.rows == report.rows and again.ladder == report.ladder and again.sweep == report.sweep
    assert again.to_dict() == report.to_dict() and repr(again) == repr(report)
    assert again.to_html(tmp_path / "again.html").stat().st_size > 1e6  # without pictures of matrices
    for key in ("natgrad_lab", "torch", "seed", "device", "convention", "likelihood", "num_examples"):
        assert values["about"][key] not in (None, "")


@pytest.mark.parametrize("text, message", [('{"schema": "other"}', "is no report"), ("[]", "is no report"),
                                           ('{"schema": "natgrad_lab.report", "version": 99}', "version 99")])  # fmt: skip
def test_other_json_is_refused(text, message, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Report.from_json(tmp_path / "x.json")


def test_a_folder_that_is_not_there_is_named(report, tmp_path):
    with pytest.raises(ValueError, match="does not exist; make it first"):
        report.to_json(tmp_path / "none" / "report.json")


# ---- page


def test_the_page_is_one_file_that_asks_for_nothing_and_runs_nothing_of_yours(report, tmp_path):
    text = report.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    head, rest = text.split("<script>", 1)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1)
    assert NASTY not in text and "<script>alert" not in text and "<img src=x" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in head
    assert "<" not in data and ">" not in data and "&" not in data
    assert not re.search(r'(src|href)="?(https?:)?//', head) and "default-src 'none'" in head
    assert text.count("plotly.js v") == 1 and "{{" not in head
    assert "bad could not be made: TypeError" in head and report.about["convention"].split(",")[0] in head


def test_numbers_of_the_page_are_those_of_the_rows(report, tmp_path):
    text = report.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    row = report.row("kfac")
    assert f'data-value="{row.efficiency!r}">{row.efficiency:.1%}</td>' in text
    assert f'data-value="{row.frobenius_error!r}"' in text


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 800])
def test_the_page_works_in_a_browser_without_a_network(report, tmp_path, width):
    """In a thread of its own: Playwright may be running in this one, for the tests of the notebooks."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(look_at_page, report, report.to_html(tmp_path / "report.html"), width).result()


def look_at_page(report, path, width):
    from playwright.sync_api import sync_playwright

    from natgrad_lab.suite import find_chromium

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        errors, requests = [], []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: errors.append("a dialog: text was run"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("#matrix-difference .main-svg")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        first = page.locator("#numbers tbody th").first
        assert first.inner_text() == "exact natural gradient"
        page.locator("#numbers thead button", has_text="efficiency").click()  # the best first, then the other way round
        page.locator("#numbers thead button", has_text="efficiency").click()
        worst = min((row for row in report.totals if row.efficiency is not None), key=lambda row: row.efficiency)
        assert first.inner_text() == worst.label
        before = page.locator("#at-damping").inner_html()
        page.locator("#damping").fill("0")
        page.wait_for_function("document.getElementById('damping-value').textContent === '5.0e-5'")
        page.wait_for_function("text => document.getElementById('at-damping').innerHTML !== text", arg=before)
        page.select_option("#matrix", "diagonal")
        page.select_option("#sweep-metric", "cosine")
        page.check("#all-columns")
        page.wait_for_function("getComputedStyle(document.querySelector('#numbers .extra')).display !== 'none'")
        assert errors == [] and {url.split(":")[0] for url in requests} <= {"file", "data", "blob"}
        browser.close()


# ---- figures


@pytest.mark.parametrize("name", plots.FIGURES)
def test_figures_show_the_numbers_and_escape_names(report, name):
    figure = plots.FIGURES[name](report)
    text = figure.to_json()
    assert figure.data and "<script>" not in text and "\\u003cscript" not in text
    if name == "efficiency":
        shown = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
        assert shown["K-FAC"] == report.row("kfac").efficiency
    if name == "ladder":
        assert list(figure.data[0].y) == [rung.efficiency for rung in report.ladder.rungs if rung.efficiency is not None]
    if name == "layers":
        place = list(figure.data[0].y).index("K-FAC"), list(figure.data[0].x).index("layer 2")
        assert figure.data[0].z[place] == report.row("kfac", "2").efficiency


def test_pictures_are_root_mean_squares_over_cells(report, monkeypatch):
    from natgrad_lab.comparison import pictures

    case = random_case((4, 5, 3), num_examples=7)
    problem = comparison.Problem(comparison.Batch(*case.data, case.targets), 0.05)
    F = problem.exact.gram.to_dense().numpy()
    monkeypatch.setattr(pictures, "CELLS", 10)
    picture = pictures.pictures(problem, [])["exact"]["approximation"]
    edges = np.rint(np.linspace(0, len(F), 11)).astype(int)
    for i in range(10):
        for j in range(10):
            cell = F[edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
            assert math.isclose(picture.values[i, j], np.sqrt((cell**2).mean()), rel_tol=1e-6)
    monkeypatch.setattr(pictures, "LARGEST", 10)
    assert pictures.pictures(problem, []) == {}


# ---- natgrad compare


def run(*arguments):
    """(exit code, text of the error) of the command."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command.compare)
    try:
        return app(args=[str(each) for each in arguments], standalone_mode=False) or 0, ""
    except (ValueError, TypeError) as error:
        return 2, str(error)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "my.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))\n\n\nnumber = 3\n"
    )
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "my.npz", inputs=rng.normal(size=(7, 4)), targets=rng.integers(3, size=7))
    return tmp_path


def given(files, *more, **changed):
    options = {"model": f"{files / 'my.py'}:make", "data": files / "my.npz", "out": files / "report"} | changed
    return run(*(part for name, value in options.items() for part in (f"--{name}", value)), "--no-figures", *more)


def test_the_command_writes_the_report(files, capsys):
    code, error = given(files, "--damping", "1e-3:1e-1:3", "--approximation", "kfac", "--approximation", "diagonal")
    assert (code, error) == (0, "")
    report = Report.from_json(files / "report" / "report.json")
    assert [round(math.log10(damping), 6) for damping in report.sweep.dampings] == [-3, -2, -1]
    assert {row.approximation for row in report.rows} == {"exact", "kfac", "diagonal"}
    assert (files / "report" / "report.html").stat().st_size > 1e6
    assert "which is your own code" in capsys.readouterr().out


def test_exit_codes_follow_the_bounds(files, capsys):
    only = ("--approximation", "kfac")
    assert given(files, *only, "--fail-under", "eff=0.0001") == (0, "")
    assert given(files, *only, "--fail-under", "kfac.eff=1.01") == (1, "")
    assert "K-FAC has efficiency" in capsys.readouterr().out
    assert given(files, *only, "--fail-under", "eff=0.0001", "--fail-under", "cosine=1.01") == (1, "")


@pytest.mark.parametrize(
    "option, value, text",
    [
        ("model", "my.py", "must be FILE.py:NAME"),
        ("model", "none.py:make", "there is no file 'none.py'"),
        ("model", "{files}/my.py:mke", "has no 'mke'; it has torch, nn, make, number"),
        ("model", "{files}/my.py:number", "must be, or return, a torch.nn.Module; got int"),
        ("model", "{files}/my.npz:make", "is no Python file"),
        ("data", "{files}/none.npz", "there is no file"),
        ("data", "{files}/my.py", "is no .npz file"),
        ("data", "{files}/other.npz", "must hold the arrays 'inputs' and 'targets'; it has x, targets"),
        ("data", "{files}/pickled.npz", "is no .npz file of plain arrays"),
        ("data", "{files}/words.npz", "inputs must hold numbers"),
        ("data", "{files}/uneven.npz", "inputs has 3 examples, targets 2"),
        ("likelihood", "categoric", "Did you mean 'categorical'"),
        ("likelihood", "categorical:2", "only gaussian takes a number"),
        ("likelihood", "gaussian:-1", "only gaussian takes a number"),
        ("damping", "1:2", "LOW:HIGH:COUNT"),
        ("damping", "1e-1:1e-2:3", "LOW:HIGH:COUNT"),
        ("damping", "a", "must be a number"),
        ("fail-under", "speed=3", "takes eff=NUMBER"),
        ("fail-under", "eff=high", "takes eff=NUMBER"),
        ("approximation", "kfacc", "Did you mean 'kfac'"),
    ],
)
def test_what_is_wrong_with_an_option_is_said(files, option, value, text):
    np.savez(files / "other.npz", x=np.ones(3), targets=np.ones(3))
    np.savez(files / "pickled.npz", inputs=np.array([{"a": one_path}], dtype=object), targets=np.ones(1))
    np.savez(files / "words.npz", inputs=np.array(["a", "b"]), targets=np.ones(2))
    np.savez(files / "uneven.npz", inputs=np.ones((3, 4)), targets=np.zeros(2, int))
    code, error = given(files, **{option: value.replace("{files}", str(files))})
    assert code == 2 and text in error, error


def test_model_and_data_come_together(files):
    assert run("--model", f"{files / 'my.py'}:make") == (2, "give both --model and --data, or neither (then: the digits and a "
                                                         "small network).")  # fmt: skip


def test_what_is_read_fits_the_network(files):
    model = torch.nn.Linear(4, 3).double()
    inputs, targets = read.load_data(files / "my.npz")
    inputs, targets = read.matching(model, read.read_likelihood("categorical"), inputs.float(), targets.to(torch.uint8))
    assert inputs.dtype == torch.float64 and targets.dtype == torch.int64
    _, real = read.matching(model, read.read_likelihood("gaussian:0.25"), inputs, targets)
    assert real.dtype == torch.float64 and read.read_likelihood("gaussian:0.25").variance == 0.25


def test_figures_that_cannot_be_drawn_are_no_failure(report, tmp_path, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no browser here")

    monkeypatch.setattr("plotly.io.write_images", broken)
    text = command.write_figures(report, tmp_path / "figures")
    assert "no browser here" in text and "pip install kaleido" in text


@pytest.mark.browser
@pytest.mark.slow
def test_figures_are_written_as_svg_and_png(report, tmp_path):
    command.write_figures(report, tmp_path / "figures")
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == {f"{name}.{kind}" for name in plots.FIGURES for kind in ("svg", "png")}
    assert (tmp_path / "figures" / "ladder.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_is_not_in_the_way_of_the_others():
    assert cli.main(["--version"]) == 0
