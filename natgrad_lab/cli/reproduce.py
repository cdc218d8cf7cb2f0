"""`natgrad reproduce`: measure one figure of a paper, draw it, and end in one of five verdicts."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from natgrad_lab.cli.compare import write_figures
from natgrad_lab.environment import checkout

console = Console()
COLOURS = {"reproduced": "green", "reproduced in miniature": "green", "partly": "yellow", "not reproduced": "red"}


def reproduce(
    name: Annotated[str | None, typer.Argument(help="One of --list.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Name every reproduction with its claim and criterion.")] = False,
    scale: Annotated[
        str, typer.Option(help="small: minutes on 2 cores; full: the paper's size; kfac-autoencoder also: mnist.")
    ] = "small",
    seeds: Annotated[int | None, typer.Option(help="How many; as many as the criterion asks for if not given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; results/reproduce/NAME-SCALE if not given.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, auto, ...")] = "cpu",
    page: Annotated[Path | None, typer.Option(help="Only write the page of all kept results to this file.")] = None,
):
    """Remake a figure of a paper over several seeds and say whether it came out. Started again, it goes on where it was.

    The verdict is one of: reproduced, reproduced in miniature, partly, not reproduced (exit code 0); not attempted (1).
    """
    from natgrad_lab.reproduce import REPRODUCTIONS, kept_results, ledger_page

    if page is not None:
        page.write_text(ledger_page(kept_results(checkout())), encoding="utf-8")
        console.print(f"{page} written.", markup=False, highlight=False)
        return
    if list_all or name is None:
        list_reproductions(REPRODUCTIONS, kept_results(checkout()))
        return
    raise typer.Exit(run(REPRODUCTIONS, name, scale, seeds, out, device))


def list_reproductions(table: dict, kept: dict) -> None:
    """One paragraph each."""
    for name, each in table.items():
        verdict = ", ".join(result["verdict"]["word"] for result in kept.get(name, [])) or "no result kept"
        console.print(f"[bold]{name}[/]  {escape(each.title)}  [{COLOURS.get(verdict, 'dim')}]{verdict}[/]", highlight=False)
        console.print(f"  claim: {each.claim} {each.source}", markup=False, highlight=False)
        console.print(f"  criterion: {each.criterion}", markup=False, highlight=False)
        if missing := each.missing():
            console.print(f"  {missing}", style="yellow", markup=False, highlight=False)


def run(table: dict, name: str, scale: str, seeds: int | None, out: Path | None, device: str) -> int:
    """Measure under a progress bar, draw, print; 0, or 1 if it was not attempted."""
    from natgrad_lab.names import known
    from natgrad_lab.reproduce import NOT_ATTEMPTED, reproduce

    each = table[known(name, table, "reproduction")]
    known(scale, each.scales, "scale")
    out = out or Path("results") / "reproduce" / f"{name}-{scale}"
    count = each.min_seeds if seeds is None else seeds
    total = count + each.pieces(each.scales[scale].config, count) + (each.tune is not None)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("about"),
        TimeRemainingColumn(), TextColumn("to go"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total)
        try:
            result = reproduce(
                each, out, scale, seeds, device, lambda key: bar.update(task, advance=1, description=f"{name}: {key}")
            )
        except KeyboardInterrupt:
            bar.stop()
            console.print("Interrupted. The same command goes on from the pieces that are done.", markup=False)
            return 130
    show(result)
    if result.seeds:
        result.figures()[name].write_html(out / "figure.html", include_plotlyjs=True)
        console.print(write_figures(result, out), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Every number: {out / 'result.json'}", markup=False, highlight=False, soft_wrap=True)
    return int(result.verdict.word == NOT_ATTEMPTED)


def show(result) -> None:
    """Claim, checks with what was measured, verdict."""
    each, verdict = result.reproduction, result.verdict
    console.print(f"{each.title}: {each.claim} {each.source}", markup=False, highlight=False)
    if verdict.checks:
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        table.add_column("criterion (fixed beforehand)")
        table.add_column(f"measured: median of {len(result.seeds)} seeds (least … most)")
        for check in verdict.checks:
            table.add_row("[green]yes[/]" if check.passed else "[red]no[/]", escape(check.text), escape(check.measured))
        console.print(table)
    else:
        console.print(f"criterion: {each.criterion}", markup=False, highlight=False)
    console.print(f"{each.name}: {verdict}", style=f"bold {COLOURS.get(verdict.word, '')}", markup=False, highlight=False)
