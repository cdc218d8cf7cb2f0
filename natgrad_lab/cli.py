"""The command `natgrad`: parse, call the room that does the work, print. No mathematics here."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from natgrad_lab import __version__
from natgrad_lab.environment import checkout

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
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
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main(argv: list[str] | None = None) -> int:
    """Run `natgrad ARGV` (the process's own arguments if None) and return the exit code."""
    try:
        app(args=argv, prog_name="natgrad")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


@app.callback()
def options(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
):
    """Options before the command."""
    if version:
        console.print(__version__, highlight=False)
        raise typer.Exit()
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command(context_settings=PASS_ON)
def lab(ctx: typer.Context):
    """Open JupyterLab on notebooks/. All options go to `jupyter lab`: --no-browser, --port=8899, ..."""
    from natgrad_lab.jupyter import start_lab

    raise typer.Exit(start_lab(checkout(), ctx.args))


@app.command(context_settings=PASS_ON)
def test(
    ctx: typer.Context,
    fast: Annotated[bool, typer.Option("--fast", help="Leave out the slow tests and the browser tests.")] = False,
    no_browser_tests: Annotated[bool, typer.Option("--no-browser-tests", help="Leave out the browser tests.")] = False,
):
    """Run the tests. Other options and files go to pytest: -x, -k kfac, tests/fisher, ..."""
    from natgrad_lab.suite import run_tests

    raise typer.Exit(run_tests(checkout(), ctx.args, browser=not no_browser_tests, fast=fast))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False):
    """Say what works on this machine, with a short self-check; exit code 1 with the reason if something does not."""
    from natgrad_lab.doctor import examine

    findings = examine(checkout())
    healthy = all(finding.ok for finding in findings)
    if as_json:
        print(json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in findings]}, indent=2))
        raise typer.Exit(0 if healthy else 1)
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark = "[red]fails[/]" if not finding.ok else "[yellow]note[/]" if finding.advice else "[green]ok[/]"
        table.add_row(mark, finding.name, finding.value + (f"\n→ {finding.advice}" if finding.advice else ""))
    console.print(table)
    failed = [finding.name for finding in findings if not finding.ok]
    console.print(f"[red]Not healthy: {', '.join(failed)}.[/]" if failed else "[green]Everything works.[/]")
    raise typer.Exit(0 if healthy else 1)


@app.command()
def data():
    """List the data sets, their origins and licences."""
    from natgrad_lab import datasets

    for name, make in datasets.DATASETS.items():
        one = make()
        console.print(f"[bold]{name}[/]: {len(one)} examples, {one.inputs.shape[1]} inputs, {one.num_outputs} outputs")
        console.print(f"  {one.source}; licence {one.licence}", highlight=False)
