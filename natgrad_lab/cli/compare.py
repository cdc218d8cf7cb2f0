"""`natgrad compare`: judge approximations on your model and data, write the report, and say in the exit code if it is enough.

The model's file is your own code and is executed. The data file is read as plain arrays; nothing in it is executed.
"""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from natgrad_lab.cli.read import load_data, load_model, matching, read_likelihood

console = Console()


def compare(
    model: Annotated[str | None, typer.Option(help="my.py:make, a module or what makes one. RUNS that file.")] = None,
    data: Annotated[Path | None, typer.Option(help="An .npz file with inputs and targets, or the name of a data set.")] = None,
    likelihood: Annotated[str, typer.Option(help="categorical, bernoulli, gaussian, or gaussian:VARIANCE.")] = "categorical",
    damping: Annotated[str, typer.Option(help="λ as 1e-2, or LOW:HIGH:COUNT as 1e-4:1:9 (headline: the middle).")] = "1e-2",
    approximation: Annotated[list[str] | None, typer.Option(help="Only this one; again for more. All by default.")] = None,
    examples: Annotated[int | None, typer.Option(help="Only the first so many examples.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.json and figures/.")] = Path("report"),
    fail_under: Annotated[
        list[str] | None, typer.Option(help="eff=0.5, kfac.eff=0.7, cosine=0.9: exit code 1 if any is lower.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of sampled targets.")] = 0,
    memory: Annotated[float, typer.Option(help="Memory budget in GiB.")] = 2.0,
    figures: Annotated[bool, typer.Option(help="Also write every figure as SVG and PNG.")] = True,
):
    """Judge approximations of the Fisher by the exact natural gradient; the digits and a small network without --model."""
    demands = [parse_demand(each) for each in fail_under or []]
    dampings = parse_damping(damping)
    if (model is None) != (data is None):
        raise ValueError("give both --model and --data, or neither (then: the digits and a small network).")
    from natgrad_lab import comparison

    chosen = read_likelihood(likelihood)
    network, inputs, targets = example() if model is None else (load_model(model, console), *load_data(data))
    if model is None:
        chosen = read_likelihood("categorical")
    inputs, targets = inputs[:examples], targets[:examples]
    inputs, targets = matching(network, chosen, inputs, targets)
    out.mkdir(parents=True, exist_ok=True)
    report = comparison.compare(
        network, chosen, inputs, targets, dampings, approximation or None, seed=seed, memory_budget=memory * 2**30
    )
    show(report)
    report.to_html(out / "report.html")
    report.to_json(out / "report.json")
    console.print(f"{out / 'report.html'} and report.json written.", markup=False, highlight=False, soft_wrap=True)
    if figures:
        console.print(write_figures(report, out / "figures"), markup=False, highlight=False, soft_wrap=True)
    broken = [text for demand in demands for text in failures(report, *demand)]
    for text in broken:
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(int(bool(broken)))


def parse_damping(text: str) -> float | list[float]:
    """1e-2 → 0.01; 1e-4:1:9 → nine numbers at equal ratios."""
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) != 3 or not 0 < numbers[0] < numbers[1] or numbers[2] != int(numbers[2]) or numbers[2] < 2:
        raise ValueError(
            "--damping must be a number, or LOW:HIGH:COUNT with 0 < LOW < HIGH and COUNT at least 2, as 1e-4:1:9; got "
            f"{text!r}."
        )
    low, high, count = math.log(numbers[0]), math.log(numbers[1]), int(numbers[2])
    return [math.exp(low + (high - low) * i / (count - 1)) for i in range(count)]


def parse_demand(text: str) -> tuple[str | None, str, float]:
    """eff=0.5 → (None, "efficiency", 0.5); kfac.eff=0.5 → ("kfac", "efficiency", 0.5)."""
    name, _, number = text.partition("=")
    approximation, _, metric = name.rpartition(".")
    metric = {"eff": "efficiency"}.get(metric, metric)
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if metric not in ("efficiency", "cosine") or not math.isfinite(bound):
        raise ValueError(
            f"--fail-under takes eff=NUMBER or cosine=NUMBER, with the name of an approximation before it if only one is meant "
            f"(kfac.eff=0.5); got {text!r}."
        )
    return approximation or None, metric, bound


def failures(report, approximation: str | None, metric: str, bound: float) -> list[str]:
    """Sentences about approximations that miss the bound, or whose number is not there."""
    if approximation is not None and approximation in report.failures:
        return [f"fails: {approximation} could not be made: {report.failures[approximation]}"]
    rows = [report.row(approximation)] if approximation else [row for row in report.totals if row.approximation != "exact"]
    texts = []
    for row in rows:
        value = getattr(row, metric)
        if value is None:
            texts.append(f"fails: {row.label} has no {metric}: {row.not_available.get(metric, 'not computed')}")
        elif value < bound:
            texts.append(f"fails: {row.label} has {metric} {value:.3g}, under {bound:g}")
    if approximation is None:
        texts += [f"fails: {name} could not be made: {reason}" for name, reason in report.failures.items()]
    return texts


def example() -> tuple:
    """200 digits and a 64-20-20-10 network after 15 steps of Adam: what the report shows without --model."""
    from natgrad_lab import datasets, likelihoods, models, optimizers

    digits = datasets.digits().select(slice(0, 200))
    network = models.mlp((64, 20, 20, 10))
    adam = optimizers.METHODS["adam"](network, likelihoods.Categorical(), lr=1e-2, damping=0.0)
    for _ in range(15):
        adam.step(digits.inputs, digits.targets)
    console.print("no --model: 200 digits, a 64-20-20-10 network after 15 steps of Adam", highlight=False)
    return network, digits.inputs, digits.targets


def show(report) -> None:
    """The headline and the main numbers."""
    console.print(report.headline(), style="bold", markup=False, highlight=False)
    table = Table(box=None, pad_edge=False)
    for name in ("approximation", "efficiency", "cosine", "Frobenius error", "best step α*", "seconds"):
        table.add_column(name, justify="left" if name == "approximation" else "right")
    from natgrad_lab.comparison import METRICS

    for row in report.totals:
        names = ("efficiency", "cosine", "frobenius_error", "best_step", "seconds")
        values = ((METRICS[name], getattr(row, name)) for name in names)
        table.add_row(escape(row.label), *("–" if value is None else metric.show(value) for metric, value in values))
    console.print(table)
    for name, reason in report.failures.items():
        console.print(f"{name} could not be made: {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def write_figures(result, folder: Path) -> str:
    """Every figure of `result.figures()` as SVG and PNG; a sentence about what was written, or why nothing was."""
    from natgrad_lab.plots.files import write_images
    from natgrad_lab.suite import find_chromium

    return write_images(result.figures(), folder, find_chromium())
