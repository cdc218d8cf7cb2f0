"""The report as one HTML page: self-contained, offline, interactive. All text that came from outside is escaped."""

import html
import json
from importlib.resources import files

from natgrad_lab.comparison.ladder import EXACT
from natgrad_lab.comparison.rows import ALL, METRICS, Row

MAIN_COLUMNS = (
    "efficiency", "cosine", "norm_ratio", "frobenius_error", "block_frobenius_error", "condition", "best_step",
    "predicted_decrease", "achieved_decrease", "kl",
)  # fmt: skip
EXTRA_COLUMNS = (
    "spectral_error", "kl_quadratic", "condition_mean", "condition_nonzero", "laplace_kl", "affine_distance",
    "predicted_undamped", "predicted_decrease_unit", "achieved_decrease_unit", "kl_unit", "kl_quadratic_unit",
)  # fmt: skip
HEALTH_COLUMNS = (
    "rounding", "residual", "clamped", "most_negative", "factorizations", "memory_numbers", "seconds", "seconds_solve",
    "seconds_next",
)  # fmt: skip
LAYER_METRICS = ("efficiency", "cosine", "frobenius_error", "spectral_error")


def page(report) -> str:
    """The whole page."""
    about, best = report.about, _best(report)
    parts = {
        "number": "" if best is None else f'<div class="number">{best.efficiency:.0%}<small>{_text(best.label)}</small></div>',
        "headline": _text(report.headline()),
        "facts": _text(_facts(about)),
        "alerts": _alerts(report),
        "assumptions": _assumptions(report),
        "table": _table(report, MAIN_COLUMNS, EXTRA_COLUMNS, "numbers"),
        "ladder": _ladder(report),
        "sweep_metrics": _options({name: METRICS[name].label for name in _swept(report)}),
        "layers": _layers(report),
        "matrices": _matrices(report),
        "dtype": _text(about["model_dtype"]),
        "health": _table(report, HEALTH_COLUMNS, (), "health"),
        "notes": _notes(report),
        "convention": _text(about["convention"]),
        "provenance": _provenance(report),
        "css": _asset("page.css"),
        "js": _asset("page.js"),
        "plotly": _plotly(),
        "data": _data(report),
    }
    # One pass over the template, so that nothing that is filled in is searched for placeholders again.
    pieces = _asset("page.html").split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))


def _best(report) -> Row | None:
    return next((row for row in report.totals if row.approximation != EXACT and row.efficiency is not None), None)


def _facts(about: dict) -> str:
    frozen = f", {about['num_frozen']:,} frozen" if about["num_frozen"] else ""
    return (
        f"{about['num_parameters']:,} parameters{frozen} in {len(about['layers'])} layers, {about['num_examples']:,} examples, "
        f"likelihood {about['likelihood']}, damping λ = {about['damping']:.3g}, loss {about['loss']:.4g} nats. Exact natural "
        f"gradient by route {about['route']}, residual {about['residual']:.0e}."
    )


def _alerts(report) -> str:
    texts = [f"{name} could not be made: {reason}" for name, reason in report.failures.items()]
    texts += [f"Note: {report.about['note']}"] if report.about["note"] else []
    texts += [f"Warning: {each}" for each in report.about["warnings"]]
    return "".join(f'<p class="alert">{_text(text)}</p>' for text in texts)


def _table(report, main: tuple[str, ...], extra: tuple[str, ...], name: str) -> str:
    head = '<th class="sortable"><button type="button">approximation</button></th>'
    for metric in (METRICS[each] for each in (*main, *extra)):
        kind = "sortable extra" if metric.name in extra else "sortable"
        head += (
            f'<th class="{kind}" data-better="{metric.better}" title="{_text(metric.meaning)}">'
            f'<button type="button">{_text(metric.label)}</button></th>'
        )
    body = "".join(_line(report, row, main, extra) for row in report.totals)
    return f'<table class="sorts" id="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _assumptions(report) -> str:
    pairs = [(row.label, report.texts.get(row.approximation, "")) for row in report.totals]
    return "<dl>" + "".join(f"<dt>{_text(label)}</dt><dd>{_text(text)}</dd>" for label, text in pairs) + "</dl>"


def _line(report, row: Row, main: tuple[str, ...], extra: tuple[str, ...]) -> str:
    about = _text(report.texts.get(row.approximation, ""))
    cells = "".join(_cell(row, each, " extra" if each in extra else "") for each in (*main, *extra))
    kind = ' class="exact"' if row.approximation == EXACT else ""
    return f'<tr{kind}><th scope="row" title="{about}">{_text(row.label)}</th>{cells}</tr>'


def _cell(row: Row, name: str, kind: str) -> str:
    value = getattr(row, name)
    if value is None:
        reason = _text(row.not_available.get(name, "not computed"))
        return f'<td class="missing{kind}" title="{reason}">–</td>'
    return f'<td class="{kind.strip()}" data-value="{value!r}">{METRICS[name].show(value)}</td>'


def _ladder(report) -> str:
    items = []
    for noise in report.ladder.noise:
        items.append(
            f"One sampled target per example, {noise.label}: efficiency {noise.efficiency:.1%} ± "
            f"{noise.efficiency_deviation:.1%}, Frobenius error {noise.frobenius_error:.3g} ± {noise.frobenius_deviation:.2g} "
            f"(mean ± standard deviation over {noise.num_seeds} seeds)."
        )
    if len(report.ladder.damping) == 2:
        exact, factored = report.ladder.damping.values()
        items.append(f"K-FAC with λ added to every eigenvalue: {exact:.1%}; with its own factored damping: {factored:.1%}.")
    items += [f"{rung.label} is missing: {rung.reason}" for rung in report.ladder.rungs if rung.reason]
    return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>" if items else ""


def _layers(report) -> str:
    if not any(row.layer != ALL for row in report.rows):
        return ""
    options = _options({name: METRICS[name].label for name in LAYER_METRICS})
    return (
        "<section><h2>Layer by layer</h2><p>Each layer against its own exact block: for efficiency, as if this layer alone "
        "moved; the cosine is with the layer's part of the exact natural gradient of the whole network.</p>"
        f'<p><label>show <select id="layer-metric">{options}</select></label></p>'
        '<div class="figure" id="layers"></div></section>'
    )


def _matrices(report) -> str:
    names = [name for name in report.pictures if name != EXACT]
    if not names:
        return ""
    labels = {row.approximation: row.label for row in report.totals}
    options = _options({name: labels.get(name, name) for name in names})
    places = "".join(f'<div class="figure" id="matrix-{kind}"></div>' for kind in ("exact", "approximation", "difference"))
    return (
        "<section><h2>The matrices</h2><p>Root mean square of the entries over cells, all on one scale; white lines between "
        "layers. What an approximation leaves out is dark in its picture and bright in the difference.</p>"
        f'<p><label>approximation <select id="matrix">{options}</select></label></p><div class="pair">{places}</div></section>'
    )


def _notes(report) -> str:
    items = [f"{row.label}: {note}" for row in report.totals for note in (*row.notes, *(f"warned: {w}" for w in row.warnings))]
    return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>" if items else ""


def _provenance(report) -> str:
    keys = (
        "created", "natgrad_lab", "torch", "python", "device", "threads", "seed", "model_dtype", "num_examples",
        "num_parameters", "num_rows", "num_outputs", "num_positions", "gradient_norm",
    )  # fmt: skip
    layers = ", ".join(f"{name} {kind} {rows}×{columns}" for name, kind, rows, columns in report.about["layers"])
    pairs = [(key.replace("_", " "), report.about[key]) for key in keys] + [("layers", layers)]
    return "<dl>" + "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in pairs) + "</dl>"


def _swept(report) -> list[str]:
    curves = next(iter(report.sweep.curves.values()), {})
    return [name for name in curves if name in METRICS]


def _data(report) -> str:
    """Figures as JSON that is safe inside a script element."""
    from natgrad_lab.plots import comparison as plots

    figures = {name: make(report) for name, make in plots.FIGURES.items() if name not in ("sweep", "layers")}
    sweeps = {name: plots.sweep_figure(report, name) for name in _swept(report)}
    layers = {name: plots.layers_figure(report, name) for name in LAYER_METRICS}
    matrices: dict = {}
    if report.pictures:
        limits = plots.matrix_limits(report.pictures)
        titles = {"approximation": "approximation F̂", "difference": "difference F̂ - F"}
        for name, kinds in report.pictures.items():
            own = {"approximation": "exact F"} if name == EXACT else titles
            matrices[name] = {kind: plots.matrix_figure(kinds[kind], limits, title) for kind, title in own.items()}
    parts = {name: _plain(value) for name, value in (("figures", figures), ("sweeps", sweeps), ("layers", layers))}
    parts |= {"matrices": {name: _plain(kinds) for name, kinds in matrices.items()}, "slider": _slider(report, plots)}
    text = json.dumps(parts, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(figures: dict) -> dict:
    return {name: json.loads(figure.to_json()) for name, figure in figures.items()}


def _slider(report, plots) -> dict:
    dampings, wanted = report.sweep.dampings, report.about["damping"]
    start = min(range(len(dampings)), key=lambda i: abs(dampings[i] - wanted))
    figure = plots.efficiency_figure(report).update_layout(title={"text": "Efficiency at this damping"})
    bars = [
        {"label": _text(row.label), "colour": plots.colour(row.approximation), "values": values["efficiency"]}
        for row in report.totals[::-1]
        if (values := report.sweep.curves.get(row.approximation)) is not None
    ]
    return {"dampings": dampings, "start": start, "bars": bars, "layout": json.loads(figure.to_json())["layout"]}


def _options(labels: dict[str, str]) -> str:
    return "".join(f'<option value="{_text(name)}">{_text(label)}</option>' for name, label in labels.items())


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _asset(name: str) -> str:
    return files("natgrad_lab.comparison").joinpath("assets", name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("the page needs plotly, which is not installed: pip install 'plotly>=6.1,<8'") from error
    return get_plotlyjs().replace("</script", "<\\/script")
