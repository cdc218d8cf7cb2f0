"""Figures as picture files: one browser for all of them, since starting it is most of the work."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go
import plotly.io


def write_images(
    figures: Mapping[str, go.Figure],
    folder: Path,
    browser: str | os.PathLike | None = None,
    kinds: Sequence[str] = ("svg", "png"),
) -> str:
    """Write every figure as `folder/name.kind` on white; a sentence about what was written, or why nothing was.

    Args:
        browser: Chrome or Chromium; None leaves the search to kaleido (BROWSER_PATH, or on PATH).
    """
    folder.mkdir(parents=True, exist_ok=True)
    if browser is not None:
        os.environ.setdefault("BROWSER_PATH", os.fspath(browser))
    shown = [go.Figure(figure).update_layout(paper_bgcolor="white", plot_bgcolor="white") for figure in figures.values()]
    pairs = [(figure, kind) for figure in shown for kind in kinds]
    try:
        plotly.io.write_images(
            [figure for figure, _ in pairs],
            [folder / f"{name}.{kind}" for name in figures for kind in kinds],
            width=1000,
            scale=[2 if kind == "png" else 1 for _, kind in pairs],
        )
    except Exception as error:  # kaleido or its browser: anything from ImportError to a timeout
        reason = " ".join(str(error).split())[:200]
        return (
            f"No figures as files: plotly needs kaleido and a Chrome or Chromium for that ({type(error).__name__}: {reason}). "
            "pip install kaleido, then plotly_get_chrome; the HTML page has every figure."
        )
    return f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))} written."
