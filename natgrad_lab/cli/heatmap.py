"""`natgrad heatmap`: the exact Fisher of your model on your data as one page that can be zoomed, without a kernel."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from natgrad_lab.cli.compare import example
from natgrad_lab.cli.read import load_data, load_model, matching, read_likelihood

console = Console()


def heatmap(
    model: Annotated[str | None, typer.Option(help="my.py:make, a module or what makes one. RUNS that file.")] = None,
    data: Annotated[Path | None, typer.Option(help="An .npz file with inputs and targets, or the name of a data set.")] = None,
    likelihood: Annotated[str, typer.Option(help="categorical, bernoulli, gaussian, or gaussian:VARIANCE.")] = "categorical",
    fisher: Annotated[str, typer.Option(help="exact, monte_carlo or empirical.")] = "exact",
    examples: Annotated[int, typer.Option(help="Only the first so many examples.")] = 100,
    approximation: Annotated[list[str] | None, typer.Option(help="Show this one too, and its error; again for more.")] = None,
    cells: Annotated[int, typer.Option(help="Cells a side down to which the page can be zoomed.")] = 1024,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("heatmap.html"),
    memory: Annotated[float, typer.Option(help="Memory budget in GiB.")] = 1.5,
):
    """Write the exact Fisher, of any number of parameters, as a page to zoom; of a small network on digits without --model."""
    if (model is None) != (data is None):
        raise ValueError("give both --model and --data, or neither (then: the digits and a small network).")
    if examples < 1:
        raise ValueError(f"--examples must be at least 1; got {examples}.")
    if not out.parent.is_dir():
        raise ValueError(f"the folder of {str(out)!r} does not exist. Make it first, or choose another file.")
    from natgrad_lab.explorer import explorer
    from natgrad_lab.explorer.page import page

    chosen = read_likelihood(likelihood)
    network, inputs, targets = example() if model is None else (load_model(model, console), *load_data(data))
    inputs, targets = matching(network, chosen, inputs[:examples], targets[:examples])
    seen = explorer(
        network, chosen, inputs, fisher, approximations=approximation or (), memory_budget=int(memory * 2**30),
        targets=targets if fisher == "empirical" else None,
    )  # fmt: skip
    names = ("a 64-20-20-10 network", "digits") if model is None else (model, data.name)
    title = f"Exact Fisher of {names[0]} on {len(inputs):,} examples of {names[1]}"
    out.write_text(
        page(seen, title if fisher == "exact" else title.replace("Exact", fisher.capitalize()), cells), encoding="utf-8"
    )
    size = out.stat().st_size / 2**20
    console.print(
        f"{out} written, {size:.1f} MB: {seen.layout.dim:,} parameters.", markup=False, highlight=False, soft_wrap=True
    )
