"""Notebooks: `notebooks/*.py` is the source that is written and reviewed; the `.ipynb` beside it is made from it.

The made file is executed and needs no kernel to be read: figures and widgets stand in it as PNG, and nothing in it
depends on when or where it was made (ids, times, paths), so that it changes only when the source or a number does.
"""

import base64
import logging
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from natgrad_lab.environment import checkout
from natgrad_lab.notebooks.png import smaller

PACKAGE = Path(__file__).resolve().parent.parent
MOST_BYTES, COLOURS = 300_000, 128
PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def is_fast() -> bool:
    """Whether notebooks are to do with less (fewer seeds, fewer steps): NATGRAD_FAST is set, to anything but 0."""
    return os.environ.get("NATGRAD_FAST", "0") not in ("", "0")


@dataclass(frozen=True)
class Built:
    """One notebook that was made."""

    path: Path
    cells: int
    seconds: float
    size: int

    def __str__(self) -> str:
        return f"{self.path.name}: {self.cells} cells, {self.seconds:.0f} s, {self.size / 1000:.0f} KB"


def build(paths: Iterable[str | os.PathLike] | None = None, *, check: bool = False, fast: bool = False) -> list:
    """Make the `.ipynb` of each source, or, with `check`, only say which ones have to be made again.

    Args:
        paths: sources (`.py`, or the `.ipynb` beside it), or names of some in notebooks/; None: all of them.
        check: execute and write nothing.
        fast: execute with NATGRAD_FAST=1, draw and write nothing: a trial run.
    Returns: a `Built` for each notebook; with `check` a sentence for each that is out of date, so [] if all is well.
    Raises: RuntimeError if a cell fails or warns; ValueError if a notebook has become too large or holds a path.
    """
    chosen = sources() if paths is None else [_source(path) for path in paths]
    if check:
        return [difference for path in chosen if (difference := difference_of(path))]
    return [_build(path, fast) for path in chosen]


def sources() -> list[Path]:
    """All sources, in order. Raises FileNotFoundError in an installed copy, which carries none."""
    root = checkout()
    found = sorted((root / "notebooks").glob("[0-9]*.py")) if root is not None else []
    if not found:
        raise FileNotFoundError("There are no notebooks here: they come with the source folder, in notebooks/.")
    return found


def _source(path: str | os.PathLike) -> Path:
    given = Path(path).with_suffix(".py")
    known = {source.name: source for source in sources()}
    if given.is_file():
        return given
    if given.name == str(given) and given.name in known:
        return known[given.name]
    raise FileNotFoundError(f"no notebook {str(path)!r}. There are: {', '.join(known)}.")


def read(path: Path):
    """The notebook in a source, with ids that depend on the cells' places only."""
    import jupytext

    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
    return notebook


def difference_of(path: Path) -> str:
    """Say where the `.ipynb` beside the source `path` is not what the source says; "" where it is."""
    import nbformat

    made = path.with_suffix(".ipynb")
    remedy = f"Run: natgrad notebooks {path.name}"
    if not made.is_file():
        return f"{made.name} has not been made. {remedy}"
    cells = [[(cell.cell_type, cell.source) for cell in n.cells] for n in (read(path), nbformat.read(made, as_version=4))]
    for number, (want, have) in enumerate(zip(*cells, strict=False)):
        if want != have:
            return f"{made.name}: cell {number} ({have[1][:40]!r}...) is not that of {path.name}. {remedy}"
    if len(cells[0]) != len(cells[1]):
        return f"{made.name} has {len(cells[1])} cells, {path.name} has {len(cells[0])}. {remedy}"
    return ""


def execute(notebook, folder: Path, *, fast: bool = False, timeout: int = 300) -> None:
    """Run all cells, in place, in a new kernel of this very interpreter, with `folder` as working directory.

    Raises: RuntimeError with the cell's text if a cell fails or writes to stderr (a warning).
    """
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    class ThisPython(KernelSpecManager):
        """Every kernel is this interpreter, whatever kernels are installed on the machine."""

        def get_kernel_spec(self, kernel_name):
            """Start ipykernel from `sys.executable`; its warning that messages are signed but not encrypted is left out."""
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
            return KernelSpec(argv=argv, display_name=kernel_name, language="python")

    search = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    # NATGRAD_STILL: cards give the figure from which a picture is drawn. A trial run draws none.
    modes = {"NATGRAD_FAST": str(int(fast)), "NATGRAD_STILL": str(int(not fast))}
    environ = {**os.environ, "PYTHONPATH": search, **modes}
    client = NotebookClient(
        notebook, km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython()), timeout=timeout,
        store_widget_state=False, record_timing=False, resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    try:
        client.execute(env=environ, cleanup_kc=True)  # the kernel ends here although the manager is ours
    except CellExecutionError as error:
        raise RuntimeError(f"a cell failed.\n{error}") from None
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise RuntimeError(f"a cell writes to stderr:\n{cell.source}\n\n{output.text}")


def _build(path: Path, fast: bool) -> Built:
    import nbformat

    started = time.perf_counter()
    notebook = read(path)
    execute(notebook, path.parent, fast=fast)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.pop("metadata", None)
            if "data" in output and not fast:
                output["data"], output["metadata"] = still(output["data"], cell.source), {}
    text = nbformat.writes(notebook) + "\n"
    _refuse(path, notebook, len(text.encode()))
    if not fast:
        part = path.with_suffix(".ipynb.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path.with_suffix(".ipynb"))
    return Built(path.with_suffix(".ipynb"), len(notebook.cells), time.perf_counter() - started, len(text.encode()))


def still(data: dict, source: str) -> dict:
    """What of an output can be seen without a kernel: a figure's or a widget's PNG, else text."""
    if PLOTLY in data:
        picture = figure_png(data[PLOTLY])
    elif "image/png" in data:
        picture = base64.b64decode(data["image/png"])
    elif WIDGET in data:
        raise ValueError(f"the widget of this cell shows nothing on a page without a kernel:\n{source}")
    else:
        return data
    return {"image/png": base64.b64encode(smaller(picture, COLOURS)).decode("ascii")}


def figure_png(figure: dict) -> bytes:
    """Draw a plotly figure on white as a PNG file. Needs kaleido and a Chromium (BROWSER_PATH, or on PATH)."""
    import plotly.graph_objects as go

    drawn = go.Figure({"data": figure["data"], "layout": figure["layout"]})
    size = {"width": drawn.layout.width or 720, "height": drawn.layout.height or 400}
    drawn.update_layout(paper_bgcolor="white", plot_bgcolor="white", **size)
    try:
        import kaleido  # noqa: F401  (it makes the logger that the next line quietens)

        # When the browser says goodbye, its reader logs a traceback, for "{bye}" is no JSON.
        logging.getLogger("choreographer.channels.pipe").setLevel(logging.CRITICAL)
        return drawn.to_image("png", scale=1.25)
    except (ValueError, ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"no picture of a figure could be made ({error}). It takes kaleido and Chromium: pip install 'kaleido>=1', and "
            "apt-get install chromium, or BROWSER_PATH=/path/to/chrome."
        ) from error


def _refuse(path: Path, notebook, size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(
            f"{path.stem}.ipynb would be {size / 1000:.0f} KB; at most {MOST_BYTES / 1000:.0f}. Draw smaller pictures."
        )
    places = {str(PACKAGE.parent), str(Path.home())} - {"/"}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            for place in places:
                if place in text:
                    raise ValueError(f"an output of {path.stem} names a folder of this machine, {place}:\n{cell.source}")
