"""`natgrad bench`: a table on the screen, and the same as JSON."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from natgrad_lab.cli.run import parse_sizes
from natgrad_lab.names import known


def measure(what: str, sizes: str | None, options: dict, device: str, out: Path | None, console: Console) -> None:
    """Run one benchmark, print its table, and write it to `out` if that is given."""
    from natgrad_lab.bench import BENCHES

    known(what, BENCHES, "benchmark")
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"the folder of {str(out)!r} does not exist. Make it first, or choose another file.")
    if sizes is not None:
        options = {**options, "sizes": parse_sizes(sizes)}
    with console.status(f"natgrad bench {what} ..."):
        table = BENCHES[what](device=device, **options)
    shown = Table(title=f"{table.title}; {table.device}, {table.threads} thread(s); {table.versions}", title_justify="left")
    for name, side in (("case", "left"), ("median", "right"), ("ratio", "right"), ("rounds", "right"), ("note", "left")):
        shown.add_column(name, justify=side)
    for row in table.rows:
        shown.add_row(row.case, f"{row.seconds * 1e3:.2f} ms", f"{row.ratio:.3f}", str(row.rounds), row.note)
    console.print(shown)
    if out is not None:
        out.write_text(json.dumps(table.to_dict(), indent=1) + "\n")
        console.print(f"written to {out}", markup=False)
