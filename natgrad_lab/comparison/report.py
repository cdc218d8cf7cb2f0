"""The report: rows, ladder, sweep, provenance; and the ways out of it (table, figure, page, JSON)."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from natgrad_lab.comparison.ladder import EXACT, Ladder
from natgrad_lab.comparison.pictures import MatrixPicture
from natgrad_lab.comparison.rows import ALL, METRICS, Row
from natgrad_lab.comparison.sweep import Sweep
from natgrad_lab.names import known

SCHEMA, SCHEMA_VERSION = "natgrad_lab.report", 1
_WORDS = ((0.95, "nearly exact"), (0.8, "good"), (0.5, "fair"), (0.2, "poor"), (0.0, "very poor"))


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What `compare` found.

    Attributes:
        rows: for the exact natural gradient and every approximation, one row for the whole network and one per layer.
        ladder: what each assumption costs. sweep: the same approximations at other dampings.
        failures: name → why it could not be made. texts: name → what it assumes.
        about: versions, seed, sizes, convention. pictures: small images of the matrices, up to 2,000 parameters.
    """

    rows: tuple[Row, ...]
    ladder: Ladder
    sweep: Sweep
    failures: dict[str, str]
    about: dict
    pictures: dict[str, dict[str, MatrixPicture]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def totals(self) -> list[Row]:
        """Rows about the whole network, best efficiency first (the exact one leads; rows without come last)."""
        rows = [row for row in self.rows if row.layer == ALL]
        rank = {row.approximation: -1.0 if row.efficiency is None else row.efficiency for row in rows}
        return sorted(rows, key=lambda row: (row.approximation != EXACT, -rank[row.approximation]))

    def row(self, approximation: str, layer: str = ALL) -> Row:
        """The row of one approximation."""
        known(approximation, dict.fromkeys(row.approximation for row in self.rows), "approximation in this report")
        own = {row.layer: row for row in self.rows if row.approximation == approximation}
        return own[known(layer, own, "layer in this report")]

    def headline(self) -> str:
        """Which approximation is how good, in words."""
        if not self.about["gradient_norm"]:
            return "The gradient is zero on this batch: there is no direction to judge, only matrices."
        judged = [row for row in self.totals if row.efficiency is not None and row.approximation != EXACT]
        if not judged:
            return "No approximation could be judged; the table says why."
        best = judged[0]
        text = (
            f"At damping λ = {self.about['damping']:.3g}, {best.label} is {_word(best.efficiency)}: the best step along it "
            f"reaches {_percent(best.efficiency)} of the decrease that the exact natural gradient promises."
        )
        others = {"kfac": "K-FAC", "identity": "the plain gradient"}
        tails = [
            f"{label} reaches {_percent(row.efficiency)} ({_word(row.efficiency)})"
            for row in judged
            if row is not best and (label := others.get(row.approximation))
        ]
        return " ".join([text, *([", ".join(tails) + "."] if tails else [])])

    def to_dataframe(self):
        """All rows as a pandas DataFrame."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas, which is not installed: pip install pandas") from error
        return pandas.DataFrame([row.flat() for row in self.rows])

    def figure(self):
        """The main figure (plotly): efficiency of every approximation."""
        from natgrad_lab.plots import comparison as plots

        return plots.efficiency_figure(self)

    def figures(self) -> dict:
        """Every figure by name: efficiency, ladder, errors, sweep, layers, and steps."""
        from natgrad_lab.plots import comparison as plots

        return {name: make(self) for name, make in plots.FIGURES.items()}

    def to_html(self, path: str | os.PathLike) -> Path:
        """Write one self-contained page that works offline; returns its path."""
        from natgrad_lab.comparison.page import page

        return _write(path, page(self))

    def to_json(self, path: str | os.PathLike) -> Path:
        """Write everything but the pictures; returns the path."""
        return _write(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def to_dict(self) -> dict:
        """Plain values, as JSON holds them."""
        meanings = {m.name: {"label": m.label, "meaning": m.meaning, "better": m.better} for m in METRICS.values()}
        return {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "headline": self.headline(),
            "about": self.about,
            "metrics": meanings,
            "rows": [row.flat() for row in self.rows],
            "ladder": self.ladder.to_dict(),
            "sweep": self.sweep.to_dict(),
            "failures": self.failures,
            "texts": self.texts,
        }

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> "Report":
        """Read what `to_json` wrote."""
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise ValueError(f"{str(path)!r} is no report of natgrad_lab: its schema is not {SCHEMA!r}.")
        if values["version"] != SCHEMA_VERSION:
            raise ValueError(
                f"{str(path)!r} is a report of version {values['version']}; this natgrad_lab reads version {SCHEMA_VERSION}."
            )
        rows = tuple(Row.from_flat(row) for row in values["rows"])
        parts = Ladder.from_dict(values["ladder"]), Sweep.from_dict(values["sweep"])
        return cls(rows, *parts, values["failures"], values["about"], texts=values["texts"])

    def __repr__(self) -> str:
        """The headline and a table."""
        lines = [self.headline(), "", f"{'approximation':34} {'efficiency':>10} {'cosine':>8} {'Frobenius':>10} {'α*':>9}"]
        for row in self.totals:
            cells = [(row.efficiency, 10, ".1%"), (row.cosine, 8, ".3f")]
            cells += [(row.frobenius_error, 10, ".3g"), (row.best_step, 9, ".3g")]
            lines.append(f"{row.label:34} " + " ".join(_cell(*cell) for cell in cells))
        lines += [f"{name:34} not made: {reason}" for name, reason in self.failures.items()]
        return "\n".join(lines)


def _cell(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"


def _word(efficiency: float) -> str:
    return next(word for bound, word in _WORDS if efficiency >= bound)


def _percent(share: float) -> str:
    return f"{share:.0%}" if 0.1 <= share <= 0.994 else f"{share:.2%}"


def _write(path: str | os.PathLike, text: str) -> Path:
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"the folder {str(path.parent)!r} does not exist; make it first, or write the report elsewhere.")
    path.write_text(text, encoding="utf-8")
    return path
