"""Lesson 01, maps and globes: why a gradient depends on the map.

A map sends a place on the globe to a place on paper. J is its derivative, from steps on the globe (east, north) to steps on
paper (x, y). A Gaussian is a place on a globe too: (μ, σ) is one map of it, and the Fisher information is its metric.
"""

from numbers import Real

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.plots.style import EXACT, GREY, PURPLE, method_colour, template

ROOT_2 = float(np.sqrt(2))

# ---- maps of the globe (angles in radians, the globe has radius 1)


def _stereographic(latitude, longitude):
    radius = 2 * np.tan(np.pi / 4 - latitude / 2)
    return radius * np.sin(longitude), -radius * np.cos(longitude)


PROJECTIONS = {  # name → (latitude, longitude) to (x, y)
    "equirectangular": lambda latitude, longitude: (longitude, latitude),
    "Mercator": lambda latitude, longitude: (longitude, np.arctanh(np.sin(latitude))),
    "Lambert equal-area": lambda latitude, longitude: (longitude, np.sin(latitude)),
    "stereographic": _stereographic,
}
_STRETCH = {  # stretch of a step east, and of a step north
    "equirectangular": lambda latitude: (1 / np.cos(latitude), 1.0),
    "Mercator": lambda latitude: (1 / np.cos(latitude), 1 / np.cos(latitude)),
    "Lambert equal-area": lambda latitude: (1 / np.cos(latitude), np.cos(latitude)),
    "stereographic": lambda latitude: (2 / (1 + np.sin(latitude)), 2 / (1 + np.sin(latitude))),
}


def map_jacobian(projection: str, latitude: Real, longitude: Real = 0.0) -> np.ndarray:
    """J (2, 2): a small step (east, north) on the globe becomes J (east, north) on paper; angles in degrees."""
    east, north = _STRETCH[projection](np.radians(latitude))
    turn = np.radians(longitude) if projection == "stereographic" else 0.0
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return rotation @ np.diag([east, north])


def walked(projection: str, latitude: Real, slope: np.ndarray) -> np.ndarray:
    """The step on the globe that follows the map's own gradient: (JᵀJ)⁻¹ slope, for the true slope (east, north)."""
    J = map_jacobian(projection, latitude)
    return np.linalg.solve(J.T @ J, slope)


def degrees_between(a: np.ndarray, b: np.ndarray) -> float:
    """Angle between two vectors (2,)."""
    return float(np.degrees(np.arctan2(abs(a[0] * b[1] - a[1] * b[0]), a @ b)))


def projection_lab(state: dict) -> dict:
    """Both arrows, and what the map does to areas and shapes at this latitude."""
    projection, latitude = state["projection"], float(state["latitude"])
    angle = np.radians(state["direction"])
    slope = np.array([np.cos(angle), np.sin(angle)])
    J, step = map_jacobian(projection, latitude), walked(projection, latitude, slope)
    stretch = np.linalg.svd(J, compute_uv=False)
    return {
        "projection": projection, "latitude": latitude, "view": state["view"], "slope": slope, "walked": step, "jacobian": J,
        "angle": degrees_between(slope, step), "length": float(np.linalg.norm(step)), "area": float(np.linalg.det(J)),
        "anisotropy": float(stretch[0] / stretch[1]),
    }  # fmt: skip


def _on_globe(latitude, longitude):
    """Seen from far away above 35° north (x, y), and whether it faces us (z > 0)."""
    tilt = np.radians(35)
    x, y, z = np.cos(latitude) * np.sin(longitude), np.sin(latitude), np.cos(latitude) * np.cos(longitude)
    y, z = np.cos(tilt) * y - np.sin(tilt) * z, np.sin(tilt) * y + np.cos(tilt) * z
    return np.where(z > 0, x, np.nan), np.where(z > 0, y, np.nan)


def _lines(curves: list) -> tuple[np.ndarray, np.ndarray]:
    """Several curves (x, y) as one trace: gaps between them."""
    gap = np.array([np.nan])
    return tuple(np.concatenate([np.concatenate([curve[axis], gap]) for curve in curves]) for axis in (0, 1))


def _draw_globe_or_map(result: dict) -> go.Figure:
    globe, figure = result["view"] == "globe", go.Figure(layout=template())
    place = _on_globe if globe else PROJECTIONS[result["projection"]]
    along, sides = np.radians(np.linspace(-60, 60, 61)), np.radians(np.linspace(0, 80, 41))
    grid = [place(np.full(61, np.radians(latitude)), along) for latitude in range(0, 81, 20)]
    grid += [place(sides, np.full(41, np.radians(longitude))) for longitude in range(-60, 61, 20)]
    x, y = _lines(grid)
    figure.add_scatter(x=x, y=y, name="lines every 20°", mode="lines", line={"color": GREY, "width": 0.7}, hoverinfo="skip")
    turn = np.linspace(0, 2 * np.pi, 41)
    circles = []
    for latitude in np.radians([0, 20, 40, 60]):
        north, east = latitude + 0.09 * np.sin(turn), 0.09 * np.cos(turn) / np.cos(latitude)
        circles += [place(north, np.radians(longitude) + east) for longitude in (-40, 0, 40)]
    x, y = _lines(circles)
    figure.add_scatter(
        x=x, y=y, name="circles on the globe", mode="lines", line={"color": PURPLE, "width": 1.5}, hoverinfo="skip"
    )
    _arrows(figure, result, place, globe)
    figure.update_layout(showlegend=True, legend={"x": 1.0, "y": 1.0, "xanchor": "left"}, height=430, width=720)
    figure.update_xaxes(title_text="x on paper", visible=not globe, constrain="domain", showgrid=False)
    figure.update_yaxes(title_text="y on paper", visible=not globe, scaleanchor="x", constrain="domain", showgrid=False)
    return figure


def _arrows(figure: go.Figure, result: dict, place, globe: bool) -> None:
    latitude = np.radians(result["latitude"])
    start = np.array([float(each) for each in place(np.array(latitude), np.array(0.0))])
    steps = {"steepest on the globe": (result["slope"], EXACT), "steepest on the map": (result["walked"], method_colour("sgd"))}
    drawn = {name: step if globe else result["jacobian"] @ step for name, (step, _) in steps.items()}
    if globe:  # a step (east, north) as seen from where we look: its derivative, taken numerically
        tiny = 1e-5
        for name, (east, north) in drawn.items():
            moved = place(np.array(latitude + tiny * north), np.array(tiny * east / np.cos(latitude)))
            drawn[name] = (np.array([float(each) for each in moved]) - start) / tiny
    longest = max(np.linalg.norm(step) for step in drawn.values())
    for name, (_, colour) in steps.items():
        end = start + 0.5 * drawn[name] / longest
        figure.add_scatter(
            x=[start[0], end[0]], y=[start[1], end[1]], name=name, mode="lines+markers", line={"color": colour, "width": 4},
            marker={"symbol": ["circle", "arrow"], "size": [5, 15], "angleref": "previous", "color": colour},
        )  # fmt: skip


# ---- Gaussians: points (μ, σ) and other coordinates of the same points

COORDINATES = {  # name → (labels, (μ, σ) to the coordinates, back)
    "(μ, σ)": (("mean μ", "standard deviation σ"), lambda m, s: (m, s), lambda a, b: (a, b)),
    "(μ, log σ)": (("mean μ", "log σ"), lambda m, s: (m, np.log(s)), lambda a, b: (a, np.exp(b))),
    "(μ, σ²)": (("mean μ", "variance σ²"), lambda m, s: (m, s**2), lambda a, b: (a, np.sqrt(b))),
    "(μ/σ², −1/2σ²)": (
        ("μ/σ²", "−1/(2σ²)"), lambda m, s: (m / s**2, -0.5 / s**2), lambda a, b: (-0.5 * a / b, np.sqrt(-0.5 / b)),
    ),
}  # fmt: skip


def coordinate_jacobian(coordinates: str, mean: Real, sigma: Real) -> np.ndarray:
    """∂ coordinates / ∂(μ, σ), (2, 2)."""
    return {
        "(μ, σ)": np.eye(2),
        "(μ, log σ)": np.diag([1.0, 1 / sigma]),
        "(μ, σ²)": np.diag([1.0, 2 * sigma]),
        "(μ/σ², −1/2σ²)": np.array([[1 / sigma**2, -2 * mean / sigma**3], [0.0, 1 / sigma**3]]),
    }[coordinates]


def gaussian_metric(coordinates: str, mean: Real, sigma: Real) -> np.ndarray:
    """The Fisher information of N(μ, σ²) in these coordinates, (2, 2): K⁻ᵀ diag(1/σ², 2/σ²) K⁻¹, K the Jacobian."""
    back = np.linalg.inv(coordinate_jacobian(coordinates, mean, sigma))
    return back.T @ np.diag([1 / sigma**2, 2 / sigma**2]) @ back


def kl(p: tuple[Real, Real], q: tuple[Real, Real]) -> float:
    """KL(N(p) ‖ N(q)) in nats, for (mean, standard deviation)."""
    ratio = (p[1] / q[1]) ** 2
    return float(0.5 * (ratio - 1 - np.log(ratio) + ((p[0] - q[0]) / q[1]) ** 2))


def rao(p: tuple[Real, Real], q: tuple[Real, Real]) -> float:
    """Length of the shortest path between two Gaussians in the Fisher metric: √2 arccosh(1 + (½Δμ² + Δσ²) / (2σ₁σ₂))."""
    gap = 0.5 * (p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2
    return float(np.sqrt(2) * 2 * np.arcsinh(np.sqrt(gap / (4 * p[1] * q[1]))))


def arc(p: tuple[Real, Real], q: tuple[Real, Real], stretch: Real = ROOT_2, count: int = 2001) -> np.ndarray:
    """(count, 2): the arc from p to q that is part of a circle about a point of σ = 0 once μ is divided by `stretch`.

    With √2 it is the shortest path; with 1 it is the circle that is often drawn in its place.
    """
    (m1, s1), (m2, s2) = (p[0] / stretch, p[1]), (q[0] / stretch, q[1])
    if m1 == m2:
        return np.stack([np.full(count, p[0]), np.geomspace(s1, s2, count)], 1)
    centre = (m2**2 + s2**2 - m1**2 - s1**2) / (2 * (m2 - m1))
    radius = np.hypot(m1 - centre, s1)
    # places along the arc at equal distances of the half-plane: tan(angle / 2) grows geometrically
    halves = [np.tan(np.arctan2(s, m - centre) / 2) for m, s in ((m1, s1), (m2, s2))]
    angle = 2 * np.arctan(np.geomspace(*halves, count))
    return np.stack([stretch * (centre + radius * np.cos(angle)), radius * np.sin(angle)], 1)


def straight(p: tuple[Real, Real], q: tuple[Real, Real], coordinates: str, count: int = 2001) -> np.ndarray:
    """(count, 2) as (μ, σ): the straight line between p and q in these coordinates."""
    _, there, back = COORDINATES[coordinates]
    a, b = (np.array(there(*point)) for point in (p, q))
    at = np.linspace(0, 1, count)[:, None]
    return np.stack(back(*((1 - at) * a + at * b).T), 1)


def length(path: np.ndarray) -> float:
    """Length of a path (count, 2) of points (μ, σ) in the Fisher metric, by the midpoint rule."""
    middle, step = (path[1:] + path[:-1]) / 2, np.diff(path, axis=0)
    return float(np.sqrt(step[:, 0] ** 2 + 2 * step[:, 1] ** 2) @ (1 / middle[:, 1]))


def half_plane(state: dict) -> dict:
    """Three paths between N(0, σ₁²) and N(shift, σ₂²), their lengths, and other measures of how far apart these are."""
    p, q = (0.0, float(state["sigma_1"])), (float(state["shift"]), float(state["sigma_2"]))
    paths = {
        "shortest path": arc(p, q), "straight line": straight(p, q, state["coordinates"]), "circle in (μ, σ)": arc(p, q, 1.0),
    }  # fmt: skip
    return {
        "coordinates": state["coordinates"], "p": p, "q": q, "paths": paths, "rao": rao(p, q),
        "lengths": {name: length(path) for name, path in paths.items()},
        "euclid": float(np.hypot(p[0] - q[0], p[1] - q[1])), "root_2kl": float(np.sqrt(2 * kl(p, q))),
    }  # fmt: skip


_PATH_STYLE = {
    "shortest path": (EXACT, "solid"), "straight line": (method_colour("sgd"), "dash"), "circle in (μ, σ)": (GREY, "dot"),
}  # fmt: skip


_SHORT = {"shortest path": "shortest", "straight line": "straight", "circle in (μ, σ)": "circle"}


def _draw_half_plane(result: dict) -> go.Figure:
    labels, there, _ = COORDINATES[result["coordinates"]]
    lengths = ", ".join(f"{result['lengths'][name]:.3f} {word}" for name, word in _SHORT.items())
    titles = (f"Fisher length: {lengths}", "the two densities")
    figure = make_subplots(1, 2, column_widths=[0.6, 0.4], horizontal_spacing=0.13, subplot_titles=titles)
    figure.update_layout(template())
    figure.update_annotations(font_size=13)
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        axis.update(template()["xaxis"])
    for name, path in result["paths"].items():
        colour, dash = _PATH_STYLE[name]
        x, y = there(*path[::20].T)
        figure.add_scatter(x=x, y=y, name=name, mode="lines", line={"color": colour, "dash": dash, "width": 3}, row=1, col=1)
    turn, ellipses = np.linspace(0, 2 * np.pi, 41), []
    for mean, sigma in result["paths"]["shortest path"][:: 2000 // 4]:
        K, centre = coordinate_jacobian(result["coordinates"], mean, sigma), there(mean, sigma)
        disc = K @ np.stack([0.2 * sigma * np.cos(turn), 0.2 * sigma / np.sqrt(2) * np.sin(turn)])
        ellipses.append((centre[0] + disc[0], centre[1] + disc[1]))
    x, y = _lines(ellipses)
    line = {"color": PURPLE, "width": 1.5}
    figure.add_scatter(x=x, y=y, name="Fisher radius 0.2", mode="lines", line=line, hoverinfo="skip", row=1, col=1)
    at = np.linspace(*_support(result["p"], result["q"]), 301)
    for number, (mean, sigma) in enumerate((result["p"], result["q"]), 1):
        density = np.exp(-0.5 * ((at - mean) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        name = "first" if number == 1 else "second"
        line = {"color": "#444444", "width": 2, "dash": "solid" if number == 1 else "dash"}
        figure.add_scatter(x=at, y=density, name=name, mode="lines", line=line, row=1, col=2)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.22, "x": 0}, height=430, width=760)
    figure.update_xaxes(title_text=labels[0], row=1, col=1)
    figure.update_yaxes(title_text=labels[1], row=1, col=1)
    figure.update_xaxes(title_text="value of the variable", row=1, col=2)
    figure.update_yaxes(title_text="density", row=1, col=2)
    return figure


def _support(p: tuple[Real, Real], q: tuple[Real, Real]) -> tuple[Real, Real]:
    return min(p[0] - 3 * p[1], q[0] - 3 * q[1]), max(p[0] + 3 * p[1], q[0] + 3 * q[1])


# ---- KL and its quadratic

HERE = (1.0, 1.0)  # the Gaussian that steps start from
STEPS = np.geomspace(3e-3, 0.5, 25)


def kl_and_quadratic(coordinates: str, degrees: Real, sizes: np.ndarray, both_ways: bool = False) -> tuple:
    """KL(here ‖ there) and ½δᵀFδ for steps δ of Fisher length `sizes`; both_ways: the mean over +δ and −δ.

    At 0 degrees a step goes along the first coordinate, at 90 along the second, each measured in its own Fisher length.
    """
    _, there, back = COORDINATES[coordinates]
    F, here = gaussian_metric(coordinates, *HERE), np.array(there(*HERE))
    direction = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]) / np.sqrt(np.diag(F))
    direction = direction / np.sqrt(direction @ F @ direction)
    signs = (1, -1) if both_ways else (1,)
    moved = [[kl(HERE, back(*(here + sign * size * direction))) for sign in signs] for size in sizes]
    return np.mean(moved, axis=1), 0.5 * sizes**2


def error_power(coordinates: str, degrees: Real, both_ways: bool = False) -> float:
    """The power of the step with which |KL − ½δᵀFδ| grows, fitted on small steps."""
    sizes = np.geomspace(3e-3, 3e-2, 7)
    exact, quadratic = kl_and_quadratic(coordinates, degrees, sizes, both_ways)
    return float(np.polyfit(np.log(sizes), np.log(np.abs(exact - quadratic)), 1)[0])


def kl_taylor(state: dict) -> dict:
    """KL, its quadratic, and their difference along a ray of steps."""
    choices = state["coordinates"], float(state["direction"])
    exact, quadratic = kl_and_quadratic(*choices, STEPS, state["both_ways"])
    power = error_power(*choices, state["both_ways"])
    return {"steps": STEPS, "kl": exact, "quadratic": quadratic, "power": power, "both_ways": state["both_ways"]}


def _draw_taylor(result: dict) -> go.Figure:
    figure = go.Figure(layout=template())
    error = np.abs(result["kl"] - result["quadratic"])
    for name, values, colour, dash in (
        ("KL", result["kl"], EXACT, "solid"), ("½ δᵀFδ", result["quadratic"], method_colour("sgd"), "dash"),
        ("difference", error, GREY, "solid"),
    ):  # fmt: skip
        line = {"color": colour, "dash": dash, "width": 3}
        figure.add_scatter(x=result["steps"], y=values, name=name, mode="lines", line=line)
    figure.update_layout(showlegend=True, legend={"x": 0.02, "y": 0.98, "bgcolor": "rgba(0,0,0,0)"})
    figure.update_xaxes(title_text="length of the step √(δᵀFδ)", type="log")
    figure.update_yaxes(title_text="nats", type="log")
    return figure


CARDS = (
    Card(
        name="projection_lab",
        title="Steepest on the map, steepest on the globe",
        message="A gradient taken on a map is an arrow of the map: change the map and the arrow turns.",
        controls=(
            Control("projection", "map", tuple(PROJECTIONS), "equirectangular"),
            Control("latitude", "latitude (degrees north)", tuple(range(0, 81, 10)), 60),
            Control("direction", "true uphill direction (degrees from east)", tuple(range(0, 360, 15)), 45),
            Control("view", "look at", ("map", "globe"), "map"),
        ),
        compute=projection_lab,
        draw=_draw_globe_or_map,
        headline=lambda r: (
            f"{r['angle']:.1f}°",
            f"off on the ground, and {r['length']:.2f} times as long; here the map multiplies areas by {r['area']:.2f} and "
            f"one side of a square by {r['anisotropy']:.2f} against the other",
        ),
        caption=(
            "A part of the globe with lines every 20 degrees, equal circles, and two arrows that start at the chosen latitude: "
            "uphill as it is on the globe, and uphill as the gradient on this map says."
        ),
        presets={
            "optimal": {"projection": "equirectangular", "latitude": 0},
            "break it": {"projection": "Lambert equal-area", "latitude": 80},
            "conformal": {"projection": "Mercator", "latitude": 60},
        },
        prediction=Prediction(
            question="At 60° north a hill rises to the north-east. By how many degrees does the gradient on an equirectangular "
            "map miss that direction?",
            answer=lambda r: round(r["angle"], 1),
            unit="degrees",
            explanation="It is {answer} degrees. The map stretches east-west lines there, so the hill looks flatter that way.",
        ),
    ),
    Card(
        name="gaussian_half_plane",
        title="How far apart are two Gaussians?",
        message="The shortest path between two Gaussians is an arc through wider ones, whatever coordinates we draw it in.",
        controls=(
            Control("shift", "difference of the means", (0.0, 0.5, 1.0, 2.0, 4.0), 2.0),
            Control("sigma_1", "σ of the first", (0.1, 0.5, 1.0, 2.0, 10.0), 1.0),
            Control("sigma_2", "σ of the second", (0.1, 0.5, 1.0, 2.0, 10.0), 1.0),
            Control("coordinates", "coordinates", tuple(COORDINATES), "(μ, σ)"),
        ),
        compute=half_plane,
        draw=_draw_half_plane,
        headline=lambda r: (
            f"{r['rao']:.3f}",
            f"Rao distance; straight line {r['lengths']['straight line']:.3f}, Euclid {r['euclid']:.3f}, "
            f"√(2 KL) {r['root_2kl']:.3f}",
        ),
        caption=(
            "Left: three paths between two Gaussians in the chosen coordinates, with their Fisher lengths, and ellipses of "
            "equal Fisher radius. Right: the two densities."
        ),
        presets={
            "optimal": {"shift": 0.5, "sigma_1": 1.0, "sigma_2": 1.0},
            "break it": {"shift": 0.5, "sigma_1": 0.1, "sigma_2": 0.1},
            "wide": {"shift": 0.5, "sigma_1": 10.0, "sigma_2": 10.0},
        },
        prediction=Prediction(
            question="From a Gaussian with mean 0 to one with mean 2, both with σ = 1: which path is the shortest?",
            options=("σ stays 1 all the way", "over Gaussians with a larger σ", "over Gaussians with a smaller σ"),
            answer=lambda r: "over Gaussians with a larger σ",
            explanation="The answer: {answer}. Where σ is large, a shift of the mean changes the distribution less.",
        ),
    ),
    Card(
        name="kl_taylor",
        title="The Fisher is the beginning of the KL",
        message="Half a step squared in the Fisher is the KL, up to an error that shrinks faster than the step.",
        controls=(
            Control("coordinates", "coordinates", tuple(COORDINATES), "(μ, σ)"),
            Control("direction", "direction (90 is along the second coordinate)", (30, 60, 90, 120, 150), 60),
            Control("both_ways", "mean over a step and its opposite", (False, True), False),
        ),
        compute=kl_taylor,
        draw=_draw_taylor,
        headline=lambda r: (f"{r['power']:.2f}", "is the power of the step with which ½ δᵀFδ goes wrong"),
        caption=(
            "KL between a Gaussian and its neighbour, its quadratic and their difference, in nats, against the step's length; "
            "both axes are logarithmic, so a power is a slope."
        ),
        presets={"optimal": {"both_ways": True}, "break it": {"coordinates": "(μ/σ², −1/2σ²)", "direction": 90}},
        prediction=Prediction(
            question="We halve the step. By what factor does the difference between KL and ½ δᵀFδ shrink, about?",
            answer=lambda r: round(2 ** r["power"], 1),
            unit="times",
            explanation="About {answer} times: the difference begins with the third power of the step.",
        ),
    ),
)  # fmt: skip
