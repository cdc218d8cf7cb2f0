"""Every notebook, cell by cell in this process; and the made .ipynb beside each source, held to it.

Fast mode, warnings as errors (pytest.ini), no kernel and no browser: `test_notebooks_kernel.py` has those. Lessons that are
not written are not asked for.
"""

import importlib
import json
import os
import re
import threading
import time

import pytest

from natgrad_lab import environment

ROOT = environment.checkout()
SOURCES = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
PROLOGUE, LESSONS = SOURCES[:1], SOURCES[1:]
MADE = [path.with_suffix(".ipynb") for path in SOURCES]
FAST_SECONDS = 10  # of a lesson's cells, in fast mode, on two quiet cores; held to three times that
name = lambda path: path.name  # noqa: E731


@pytest.fixture
def shell(monkeypatch):
    """An IPython shell with fresh names, in fast mode; widgets can be made and say what they would show."""
    import plotly.io
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    import natgrad_lab as ng

    monkeypatch.setenv("NATGRAD_FAST", "1")
    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype")  # a browser otherwise: there is no page
    monkeypatch.chdir(ROOT / "notebooks")
    shell = InteractiveShell.instance()
    shell.reset(new_session=False)
    shell.capture_output = capture_output
    yield shell
    ng.stop_all()
    InteractiveShell.clear_instance()


def run_cells(shell, path):
    """Run the code cells of the source at `path`; return what each printed and displayed, and the seconds it took."""
    from natgrad_lab.notebooks import read

    results = []
    for cell in read(path).cells:
        if cell.cell_type != "code":
            continue
        started = time.process_time()
        with shell.capture_output() as captured:
            result = shell.run_cell(cell.source, silent=False, store_history=False)
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            raise AssertionError(f"{path.name}, the cell\n\n{cell.source}\n\nraises {error!r}") from error
        results.append((cell.source, captured, time.process_time() - started))
    return results


def decorate(path):
    """Import what a lesson uses before the clock runs: giving each function its type checks is the tests' cost, up to 20 s."""
    own = [f"course.{part}.lesson{path.name[:2]}" for part in ("cards", "exercises")] if path in LESSONS else []
    for room in ["comparison", "explorer", "widgets", *own]:
        importlib.import_module(f"natgrad_lab.{room}")


def started_since(threads):
    """The threads that are there now and were not, after a minute's time to end."""
    deadline = time.monotonic() + 60
    while set(threading.enumerate()) - threads and time.monotonic() < deadline:
        time.sleep(0.05)
    return set(threading.enumerate()) - threads


def test_there_are_notebooks():
    assert [path.name[:3] for path in PROLOGUE] == ["00_"]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_cell_runs_and_leaves_no_thread_behind(path, shell, capsys):
    import natgrad_lab as ng

    decorate(path)
    threads = set(threading.enumerate())
    results = run_cells(shell, path)
    assert all(captured.stderr == "" for _, captured, _ in results)
    slowest, seconds = max(results, key=lambda r: r[2]), sum(r[2] for r in results)
    with capsys.disabled():
        print(f"\n{path.name}: {seconds:.1f} s of cells, the slowest {slowest[2]:.1f} s ", end="")
    assert seconds < (60 if path in PROLOGUE else 3 * FAST_SECONDS), f"slowest, {slowest[2]:.1f} s:\n{slowest[0]}"
    live = [thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("natgrad-live")]
    assert len(live) == len([source for source, *_ in results if "widgets.live(" in source])
    ng.stop_all()
    assert started_since(threads) == set()
    checks = [captured.stdout for source, captured, _ in results if "ng.course.check(" in source]
    assert bool(checks) == (path in LESSONS) and all("not written yet" in said for said in checks)


@pytest.mark.parametrize("path", PROLOGUE, ids=name)
def test_running_a_widget_cell_again_leaves_one_run(path, shell):
    import natgrad_lab as ng

    sources = [source for source, *_ in run_cells(shell, path) if "widgets.live(" in source]
    before = ng.widgets.running()
    for source in sources:
        assert shell.run_cell(source).success
    assert ng.widgets.running() == before and len(before) == len(sources) > 0


@pytest.mark.parametrize("path", PROLOGUE, ids=name)
def test_the_form_of_the_prologue(path):
    from natgrad_lab.notebooks import read

    cells = read(path).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert 25 <= len(cells) <= 40
    assert max(len(source.splitlines()) for source in code) <= 15
    opening = prose[0].splitlines()
    assert opening[0].startswith("# ") and [line.split("**")[1] for line in opening if "**" in line][:3] == [
        "Question.", "You need.", "Time.",
    ]  # fmt: skip
    text = "\n".join(prose)
    assert not re.search(r"^[\s>*+-]*\[[^]]+\]:", text, re.MULTILINE), "Markdown swallows a line that begins with [word]:"
    for heading in ("## What we saw", "## Break it", "## Summary", "## Exercises", "## References"):
        assert heading in text, heading
    assert "**Predict" in text and text.count("<details>") == text.count("</details>") >= 2
    assert any("assert " in source for source in code) and any("widgets.live(" in source for source in code)
    assert "NATGRAD_FAST" not in "\n".join(code), "fast mode is read in natgrad_lab.notebooks only"


@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_the_form_of_a_lesson(path):
    from natgrad_lab.notebooks import read

    cells = read(path).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert 25 <= len(cells) <= 60
    assert max(len(source.splitlines()) for source in code) <= 25
    assert prose[0].startswith("# ") and sum(source.startswith("# ") for source in prose) == 1
    text = "\n".join(prose)
    assert not re.search(r"^[\s>*+-]*\[[^]]+\]:", text, re.MULTILINE), "Markdown swallows a line that begins with [word]:"
    for heading in ("What we saw", "Break it", "Summary", "References", "Exercise "):
        assert re.search(rf"(?mi)^#+ .*{heading}", text), f"no heading {heading!r}"
    assert "**Predict" in text and text.count("<details>") == text.count("</details>") >= 2
    assert any("assert " in source for source in code)
    assert "NATGRAD_FAST" not in "\n".join(code), "fast mode is read in natgrad_lab.notebooks only"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_link_leads_somewhere(path):
    """Files beside the notebook exist, and so do the headings that a link within it names; the web is not asked."""
    from natgrad_lab.notebooks import read

    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    headings = {title.strip().replace(" ", "-") for title in re.findall(r"(?m)^#+ (.*)$", text)}
    for target in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", re.sub(r"\$[^$]*\$|`[^`]*`", "", text)):
        place, _, heading = target.partition("#")
        if not re.match(r"https?://|mailto:", target):
            assert not place or (path.parent / place).exists(), f"{path.name} links to {place}, which is not there"
            assert place or heading in headings, f"{path.name} links to #{heading}, which is none of its headings"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_reference_has_an_entry(path):
    entries = (ROOT / "docs" / "references.md").read_text(encoding="utf-8")
    keys = set(re.findall(r"\[([A-Z][A-Za-z]+\d{4})\]", path.read_text(encoding="utf-8")))
    assert keys and {key for key in keys if key not in entries} == set()


# ---- the made files


def test_every_notebook_is_made_from_its_source_as_it_is_now():
    from natgrad_lab.notebooks import build

    assert build(check=True) == []
    assert {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} == {path.name for path in MADE}


@pytest.mark.parametrize("path", MADE, ids=name)
def test_a_made_notebook_was_executed_without_errors_and_warnings(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for output in (output for cell in code for output in cell["outputs"]):
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"


@pytest.mark.parametrize("path", MADE, ids=name)
def test_a_made_notebook_is_small_and_says_nothing_of_the_machine_it_was_made_on(path):
    from natgrad_lab.notebooks.build import MOST_BYTES

    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) <= MOST_BYTES
    notebook = json.loads(text)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"} and "widgets" not in notebook["metadata"]
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            assert set(shown) <= {"text/plain", "image/png", "text/html", "text/markdown"}
            words = str(output.get("text", "")) + str({k: v for k, v in shown.items() if k != "image/png"})
            assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users|usr|opt|var)/|[A-Z]:\\\\", words), words
            assert str(os.path.expanduser("~")) not in words and str(ROOT) not in words


@pytest.mark.parametrize("path", MADE, ids=name)
def test_every_figure_and_widget_of_a_made_notebook_is_a_picture(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    shows = re.compile(r"^(ng\.plots\.\w+_figure\(.*|ng\.widgets\.card\(.*|panel)$")
    for cell in notebook["cells"]:
        lines = "".join(cell["source"]).splitlines()
        if cell["cell_type"] == "code" and lines and shows.match(lines[-1]):
            assert any("image/png" in output.get("data", {}) for output in cell["outputs"]), lines[-1]


# ---- the maker


@pytest.fixture
def folder(tmp_path):
    """A folder with one small source and the .ipynb made from it by hand."""
    import nbformat

    from natgrad_lab.notebooks import read

    source = tmp_path / "01_small.py"
    source.write_text("# %% [markdown]\n# # Two\n\n# %%\n1 + 1\n")
    nbformat.write(read(source), source.with_suffix(".ipynb"))
    return source


@pytest.mark.parametrize(
    "before, after, complaint",
    [
        ("1 + 1", "1 + 2", "01_small.ipynb: cell 1 ('1 + 1'...) is not that of 01_small.py. Run: natgrad notebooks 01_"),
        ("# # Two", "# # Three", "01_small.ipynb: cell 0 ('# Two'...) is not that of 01_small.py"),
        ("1 + 1\n", "1 + 1\n\n# %%\n3\n", "01_small.ipynb has 2 cells, 01_small.py has 3."),
    ],
)
def test_a_source_that_has_moved_on_is_named(folder, before, after, complaint):
    from natgrad_lab.notebooks import build

    assert build([folder], check=True) == []
    folder.write_text(folder.read_text().replace(before, after))
    (said,) = build([folder], check=True)
    assert said.startswith(complaint)


def test_a_notebook_that_was_never_made_and_one_that_does_not_exist(folder, tmp_path):
    from natgrad_lab.notebooks import build

    folder.with_suffix(".ipynb").unlink()
    assert build([folder], check=True) == ["01_small.ipynb has not been made. Run: natgrad notebooks 01_small.py"]
    with pytest.raises(FileNotFoundError, match="no notebook .*02_other.py.*There are: 00_"):
        build([tmp_path / "02_other.py"])
    assert build([SOURCES[0].name], check=True) == build([SOURCES[0].with_suffix(".ipynb")], check=True) == []


def test_fast_mode_is_on_for_anything_but_0(monkeypatch):
    from natgrad_lab.notebooks import is_fast

    for value, expected in (("", False), ("0", False), ("1", True), ("yes", True)):
        monkeypatch.setenv("NATGRAD_FAST", value)
        assert is_fast() is expected
    monkeypatch.delenv("NATGRAD_FAST")
    assert is_fast() is False


def test_a_widget_without_a_picture_is_refused():
    from natgrad_lab.notebooks.build import WIDGET, still

    assert still({"text/plain": "2"}, "1 + 1") == {"text/plain": "2"}
    with pytest.raises(ValueError, match="shows nothing on a page without a kernel:\nslider"):
        still({WIDGET: {}, "text/plain": "IntSlider()"}, "slider")


# ---- pictures


def png_file(pixels, filters=(0,)):
    """Write (rows, columns, 3 or 4) uint8 as PNG with the given line filters in turn, straight from the specification."""
    import struct
    import zlib

    rows, columns, channels = pixels.shape
    lines = []
    for i in range(rows):
        kind = filters[i % len(filters)]
        line = [kind]
        for j in range(columns * channels):
            c = lambda di, dj, j=j, i=i: (  # noqa: E731
                int(pixels.reshape(rows, -1)[i - di, j - dj * channels]) if i >= di and j >= dj * channels else 0
            )
            a, b, corner = c(0, 1), c(1, 0), c(1, 1)
            guess = a + b - corner
            nearest = min((a, b, corner), key=lambda value: abs(guess - value))
            line.append((c(0, 0) - (0, a, b, (a + b) // 2, nearest)[kind]) % 256)
        lines.append(bytes(line))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", columns, rows, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    data = zlib.compress(b"".join(lines))
    halves = chunk(b"IDAT", data[:7]) + chunk(b"IDAT", data[7:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + halves + chunk(b"IEND", b"")


def palette_pixels(file):
    """Read what `smaller` writes, independently of it: (rows, columns, 3) uint8."""
    import struct
    import zlib

    import numpy as np

    columns, rows = struct.unpack(">II", file[16:24])
    assert file[24:29] == bytes([8, 3, 0, 0, 0])
    colours = file.index(b"PLTE")
    (length,) = struct.unpack(">I", file[colours - 4 : colours])
    palette = np.frombuffer(file[colours + 4 : colours + 4 + length], np.uint8).reshape(-1, 3)
    data = file.index(b"IDAT")
    (length,) = struct.unpack(">I", file[data - 4 : data])
    lines = np.frombuffer(zlib.decompress(file[data + 4 : data + 4 + length]), np.uint8).reshape(rows, columns + 1)
    return palette[lines[:, 1:]]


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (3,), (4,), (4, 3, 1, 0, 2)])
def test_every_line_filter_is_undone(channels, filters):
    import numpy as np

    from natgrad_lab.notebooks.png import decode

    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, channels), dtype=np.uint8)
    assert np.array_equal(decode(png_file(pixels, filters)), pixels)


def test_few_colours_are_kept_exactly_and_clear_ones_stand_on_white():
    import numpy as np

    from natgrad_lab.notebooks.png import smaller

    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    picture = table[rng.integers(0, 256, (40, 30))]
    assert np.array_equal(palette_pixels(smaller(png_file(picture, (4, 1, 2)))), picture)
    clear = np.zeros((2, 3, 4), np.uint8)
    clear[0, :, 3] = 255
    assert palette_pixels(smaller(png_file(clear))).tolist() == [[[0, 0, 0]] * 3, [[255, 255, 255]] * 3]


def test_many_colours_become_256_near_ones_and_the_background_stays():
    import numpy as np

    from natgrad_lab.notebooks.png import smaller

    place = np.random.default_rng(0).random(4000)  # a colour map of 4000 colours on white, as in a heatmap
    colours = (255 * np.stack([place, place**2, 0.5 + 0.4 * np.sin(5 * place)], axis=1)).astype(np.uint8)
    picture = np.full((90, 80, 3), 255, np.uint8)
    picture[:50] = colours.reshape(50, 80, 3)
    file = png_file(picture, (4,))
    near = palette_pixels(smaller(file))
    assert len(smaller(file)) < len(file) / 2
    assert len(np.unique(near.reshape(-1, 3), axis=0)) == 256
    assert abs(near.astype(int) - picture).max() <= 4
    assert (near[50:] == 255).all()
    picture[51, :5] = 253  # the edge of a letter
    fewer = palette_pixels(smaller(png_file(picture), 20))
    assert len(np.unique(fewer.reshape(-1, 3), axis=0)) == 20
    assert (fewer[50:] == 255).all()  # the most frequent colour stands for its neighbours


@pytest.mark.parametrize("change, complaint", [(b"\x10\x02\x00\x00\x00", "depth 16"), (b"\x08\x02\x00\x00\x01", "plain 8-bit")])
def test_other_files_are_refused(change, complaint):
    import numpy as np

    from natgrad_lab.notebooks.png import decode

    file = png_file(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=complaint):
        decode(file[:24] + change + file[29:])
    with pytest.raises(ValueError, match="no PNG"):
        decode(b"GIF89a")
