"""Live views: a controller without Jupyter (`LiveRun`), two small canvases, and a thin panel.

Imported lazily: the controller needs only the standard library; ipywidgets and anywidget load with the first view.
"""

from importlib import import_module

_NAMES = {
    "Frame": "controller", "LiveRun": "controller", "stop_all": "registry", "running": "registry",
    "HeatmapCanvas": "heatmap", "PlotView": "curves", "TrainingPanel": "panel", "live": "panel",
    "TrainingProblem": "training", "compute": "state", "FisherExplorer": "explorer", "explore": "explorer",
    "LiveExplorer": "explorer_live", "card": "card_view", "CardView": "card_view", "race": "race_panel",
    "RacePanel": "race_panel", "conditioning": "conditioning_panel", "ConditioningPanel": "conditioning_panel",
}  # fmt: skip
__all__ = list(_NAMES)


def __getattr__(name: str):
    """Import the public name from the file that defines it; say what to install if a view lacks its library."""
    if name not in _NAMES:
        raise AttributeError(f"natgrad_lab.widgets has no {name!r}. It has: {', '.join(__all__)}.")
    try:
        return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name in ("ipywidgets", "anywidget", "plotly", "traitlets"):
            raise ModuleNotFoundError(
                f"{name} draws in a notebook and needs {error.name}: pip install ipywidgets anywidget plotly",
                name=error.name,
            ) from error
        raise
