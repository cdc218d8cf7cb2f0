"""The one visual language, for plotly, the canvas and CSS alike.

A method has one colour everywhere, from Okabe and Ito's set, which people with any colour vision can tell apart. Maps are
made in the OKLab space, where equal steps of lightness look equal: magnitudes go from dark to light on a sequential map,
signed values from blue through near-white at 0 to red, equally far on both sides.

References: [OkabeIto2008], [Ottosson2020].
"""

from functools import cache
from numbers import Real

import numpy as np

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
OLIVE, ROSE, WINE, FOREST, TEAL, SAND = "#999933", "#CC6677", "#882255", "#117733", "#44AA99", "#DDCC77"  # beside that set
INDIGO = "#332288"
GREY = "#808080"  # things that belong to no method; readable on white and on black

METHOD_COLOURS = {
    "sgd": ORANGE, "momentum": PURPLE, "adam": SKY, "exact_ngd": VERMILLION, "kfac": GREEN, "online_ngd": OLIVE,
    "diagonal": ROSE, "unit_wise": WINE, "kfac_block_tridiagonal": FOREST, "kfac_adaptive": TEAL, "ekfac": SAND,
    "prong": "#AA4499", "prong_plus": "#88CCEE", "sngd": INDIGO, "rngd": "#661100",
}  # fmt: skip
EXACT = BLUE  # quantities of the exact Fisher
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

# Lightness, chroma and hue (degrees) at equal distances along each map.
_SEQUENTIAL = [
    (0.16, 0.05, 285), (0.324, 0.14, 290), (0.488, 0.17, 340), (0.652, 0.17, 35), (0.816, 0.14, 80), (0.98, 0.06, 105),
]  # fmt: skip
_DIVERGING = [(0.30, 0.13, 260), (0.55, 0.13, 250), (0.80, 0.08, 240), (0.975, 0.0, 240)]
_DIVERGING_HOT = [(0.975, 0.0, 40), (0.80, 0.08, 45), (0.55, 0.16, 32), (0.30, 0.11, 25)]


def method_colour(name: str) -> str:
    """Colour of a method as #RRGGBB; grey for a method that has none."""
    return METHOD_COLOURS.get(name, GREY)


@cache
def colour_table(name: str) -> np.ndarray:
    """256 colours, (256, 3) uint8, read-only: "sequential", or "diverging", whose middle (127 and 128) is near-white."""
    if name not in ("sequential", "diverging"):
        raise ValueError(f"there are the colour tables 'sequential' and 'diverging'; got {name!r}.")
    if name == "sequential":
        table = _sample(_SEQUENTIAL, 256)
    else:
        table = np.concatenate([_sample(_DIVERGING, 128), _sample(_DIVERGING_HOT, 128)])
    table.setflags(write=False)
    return table


def colorscale(name: str) -> list[list]:
    """Return the same colours as plotly wants them: [[place in 0..1, "rgb(r,g,b)"], ...]."""
    table = colour_table(name)
    places = np.linspace(0, 255, 52).round().astype(int)
    return [[float(i / 255), "rgb({},{},{})".format(*table[i])] for i in places]


def template() -> dict:
    """Plotly layout that every figure starts from; backgrounds are clear, so it suits light and dark pages."""
    axis = {
        "showline": True, "linecolor": GREY, "zeroline": False, "gridcolor": "rgba(128,128,128,0.25)", "ticks": "outside",
        "ticklen": 4, "tickfont": {"size": 12}, "exponentformat": "power", "title": {"standoff": 6, "font": {"size": 13}},
    }  # fmt: skip
    return {
        "font": {"family": FONT, "size": 13, "color": "#444444"},
        "title": {"x": 0.0, "xref": "paper", "xanchor": "left", "y": 0.97, "yanchor": "top", "font": {"size": 14}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 66, "r": 16, "t": 34, "b": 44},
        "xaxis": dict(axis),
        "yaxis": dict(axis),
        "showlegend": False,
        "hoverlabel": {"font": {"family": FONT}},
    }


def _sample(points: list[tuple[Real, Real, Real]], count: int) -> np.ndarray:
    """Interpolate a map through OKLCh points (hues the short way round), as (count, 3) uint8."""
    where = np.linspace(0, 1, len(points))
    at = np.linspace(0, 1, count)
    lightness, chroma, hue = np.array(points, dtype=float).T
    hue = np.unwrap(np.deg2rad(hue))
    L, C, H = (np.interp(at, where, channel) for channel in (lightness, chroma, hue))
    colours = _oklch_to_rgb(L, C, H)
    # Where a colour is outside what screens can show, it gets paler, not of another lightness.
    for _ in range(40):
        outside = ((colours < 0) | (colours > 1)).any(-1)
        C = np.where(outside, 0.95 * C, C)
        colours = _oklch_to_rgb(L, C, H)
    return (255 * colours.clip(0, 1)).round().astype(np.uint8)


def _oklch_to_rgb(L: np.ndarray, C: np.ndarray, H: np.ndarray) -> np.ndarray:
    """OKLCh to sRGB, unclipped."""
    lab = np.stack([L, C * np.cos(H), C * np.sin(H)])
    to_lms = np.array([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]])
    to_linear = np.array(
        [[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
         [-0.0041960863, -0.7034186147, 1.7076147010]]
    )  # fmt: skip
    linear = to_linear @ (to_lms @ lab) ** 3
    gamma = 1.055 * np.abs(linear) ** (1 / 2.4) - 0.055
    return np.where(np.abs(linear) <= 0.0031308, 12.92 * linear, np.sign(linear) * gamma).T
