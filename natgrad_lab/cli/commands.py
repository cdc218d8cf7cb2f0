"""The commands. What needs torch is imported inside each, so that `natgrad --help` answers at once."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from natgrad_lab import __version__
from natgrad_lab.cli.compare import compare
from natgrad_lab.cli.course import course
from natgrad_lab.cli.dashboard import dashboard
from natgrad_lab.cli.data import data
from natgrad_lab.cli.heatmap import heatmap
from natgrad_lab.cli.reproduce import reproduce
from natgrad_lab.environment import checkout

PASS_ON = {"ignore_unknown_options": True}
PassedOn = Annotated[list[str] | None, typer.Argument(help="Handed on as they are.")]
console = Console()
errors = Console(stderr=True)


class Commands(TyperGroup):
    """Show an error of the package as one message, exit code 2; with --debug, as a traceback."""

    def invoke(self, ctx):
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
            if ctx.params.get("debug"):
                raise
            errors.print(f"natgrad: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    name="natgrad",
    cls=Commands,
    help="Exact and approximate natural gradients of neural networks: compute, look, learn.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main(argv: list[str] | None = None) -> int:
    """Run `natgrad ARGV` (the process's own arguments if None) and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        app(args=argv or ["--help"], prog_name="natgrad")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


def print_version(wanted: bool) -> bool:
    """Answer --version."""
    if wanted:
        print(__version__)
        raise typer.Exit()
    return wanted


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
):
    """Options before the command."""


@app.command(context_settings=PASS_ON)
def lab(options: PassedOn = None):
    """Open JupyterLab on notebooks/. All options go to `jupyter lab`: --no-browser, --port=8899, ..."""
    from natgrad_lab.jupyter import start_lab

    raise typer.Exit(start_lab(checkout(), options or []))


@app.command(context_settings=PASS_ON)
def test(
    options: PassedOn = None,
    fast: Annotated[bool, typer.Option("--fast", help="Leave out the slow tests and the browser tests.")] = False,
    no_browser_tests: Annotated[bool, typer.Option("--no-browser-tests", help="Leave out the browser tests.")] = False,
):
    """Run the tests. Other options and files go to pytest: -x, -k kfac, tests/fisher, ..."""
    from natgrad_lab.suite import run_tests

    raise typer.Exit(run_tests(checkout(), options or [], browser=not no_browser_tests, fast=fast))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False):
    """Say what works on this machine, with a short self-check; exit code 1 with the reason if something does not."""
    from natgrad_lab.doctor import examine

    raise typer.Exit(report(examine(checkout()), as_json))


@app.command()
def selftest(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False):
    """Compute exact Fishers, steps of every method and a live run, and compare; exit code 1 if something is off."""
    from natgrad_lab.doctor import self_check

    raise typer.Exit(report(self_check(checkout()), as_json))


def report(findings: list, as_json: bool) -> int:
    """Print the doctor's findings as a table or as JSON; 0 if all are well, else 1."""
    failed = [finding.name for finding in findings if not finding.ok]
    if as_json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return int(bool(failed))
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark = "[red]fails[/]" if not finding.ok else "[yellow]note[/]" if finding.advice else "[green]ok[/]"
        table.add_row(mark, escape(finding.name), escape(finding.value))
        if finding.advice:
            table.add_row("", "", f"→ {escape(finding.advice)}")
    console.print(table)
    console.print(f"[red]Not healthy: {', '.join(failed)}.[/]" if failed else "[green]Everything works.[/]")
    return int(bool(failed))


@app.command()
def notebooks(
    paths: Annotated[list[Path] | None, typer.Argument(help="Sources (.py); all of notebooks/ if not given.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say which are out of date; exit code 1 if any.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="A trial run with less work; nothing is written.")] = False,
):
    """Run notebooks/*.py and write the .ipynb beside each, with pictures, for readers without a kernel."""
    from natgrad_lab.notebooks import build

    results = build(paths, check=check, fast=fast)
    for result in results:
        console.print(str(result), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(int(check and bool(results)))


@app.command()
def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="dense, step, convolution, natural, autoencoder, spectrum, overview, factors, slider, explorer or conventions."
        ),
    ],
    sizes: Annotated[str | None, typer.Option(help="Widths, as 784,512,256,10; 64,32,32,10 if not given.")] = None,
    examples: Annotated[int | None, typer.Option(help="N; each benchmark has its own if not given.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Times every case is timed.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch; each benchmark has its own if not given.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Write the table as JSON to this file too.")] = None,
):
    """Time what this package does against a yardstick in the same run; ratios are medians over interleaved rounds."""
    from natgrad_lab.cli.bench import measure

    given = {"num_examples": examples, "rounds": rounds, "threads": threads}
    measure(what, sizes, {name: value for name, value in given.items() if value is not None}, device, out, console)


@app.command()
def run(
    method: Annotated[str | None, typer.Option(help="As --list names them; kfac if not given.")] = None,
    model: Annotated[str | None, typer.Option(help="mlp, autoencoder, ..., or my.py:make, which RUNS that file.")] = None,
    dataset: Annotated[str | None, typer.Option("--data", "--dataset", help="digits if not given.")] = None,
    sizes: Annotated[str | None, typer.Option(help="Widths, as 64,32,32,10; fit the data if not given.")] = None,
    init: Annotated[str | None, typer.Option(help="sparse or sparse_tanh; the model's own weights if not given.")] = None,
    activation: Annotated[str | None, typer.Option(help="tanh, relu, sigmoid, gelu, identity, ...")] = None,
    likelihood: Annotated[str | None, typer.Option(help="categorical, bernoulli, gaussian or gaussian:VARIANCE.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; the method's own if not given.")] = None,
    damping: Annotated[float | None, typer.Option(help="λ ≥ 0; the method's own if not given.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the method; again for more.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per step; all if not given.")] = None,
    batch_growth: Annotated[str | None, typer.Option(help="FIRST:STEP, as 1000:500: batches grow until that step.")] = None,
    examples: Annotated[int | None, typer.Option(help="Train on the first so many only.")] = None,
    data_option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the data set; again for more.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps in all; 100 if not given.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Steps between errors on the training and test set.")] = None,
    evaluate_examples: Annotated[int | None, typer.Option(help="Errors on the first so many of each only.")] = None,
    test_fraction: Annotated[float | None, typer.Option(help="Held back where the data have no test set.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, batches and sampled targets; 0 if not given.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch; --resume takes those the run began with.")] = None,
    out: Annotated[Path | None, typer.Option(help="Results folder; a new one under results/ if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, by its own config.")] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    show_list: Annotated[bool, typer.Option("--list", help="Name the methods, models and data sets, and stop.")] = False,
):
    """Train one network by one method, show loss and error, keep the records. Exit code 1 if the run diverged."""
    from natgrad_lab.cli.run import list_names, train

    if show_list:
        list_names(console)
        raise typer.Exit()
    given = {
        "method": method, "model": model, "dataset": dataset, "sizes": sizes, "init": init, "activation": activation,
        "likelihood": likelihood, "lr": lr, "damping": damping, "options": option, "batch_size": batch_size,
        "batch_growth": batch_growth, "num_examples": examples, "data_options": data_option, "steps": steps,
        "evaluate_every": evaluate_every, "evaluate_examples": evaluate_examples, "test_fraction": test_fraction,
        "seed": seed, "dtype": dtype, "device": device,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None and value != []}
    raise typer.Exit(train(given, out, resume, console, threads=threads, checkpoint_every=checkpoint_every))


app.add_typer(course, name="course")
app.command()(compare)
app.command()(dashboard)
app.command()(data)
app.command()(heatmap)
app.command()(reproduce)
