"""`natgrad data`: which data sets there are and which of them are here; fetching and checking their files."""

from typing import Annotated

import typer
from rich.console import Console

from natgrad_lab.names import known

console = Console()


def data(
    action: Annotated[str, typer.Argument(help="list, fetch or check.")] = "list",
    names: Annotated[
        list[str] | None, typer.Argument(help="Data sets: those to fetch, or to list or check; all if none.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="fetch: other versions too, which CIFAR-10 has.")] = False,
):
    """List the data sets, their origins and licences; `fetch NAME` downloads their files, `check` verifies those here."""
    from natgrad_lab.datasets import ABOUT

    for name in names or []:
        known(name, ABOUT, "data set")
    raise typer.Exit(ACTIONS[known(action, ACTIONS, "action")](names or [], everything))


def overview(names: list[str], everything: bool) -> int:
    """Print what each set is, whose, under which licence, and whether its files are here."""
    from natgrad_lab import datasets

    for name in names or datasets.ABOUT:
        about = datasets.ABOUT[name]
        console.print(f"[bold]{name}[/]: {about.what}", highlight=False, soft_wrap=True)
        say(f"  {about.origin}; licence {about.licence}")
        if about.files:
            size = sum(datasets.FILES[key].num_bytes for key in about.files) / 1e6
            missing = sum(not is_here(key) for key in about.files)
            here = f"{missing} of {len(about.files)} files missing" if missing else "here"
            say(f"  download of {size:.1f} MB: {here}")
    say(f"Downloads are kept in {datasets.cache_folder()} (NATGRAD_DATA); NATGRAD_DATA_MIRROR is tried before their origins.")
    return 0


def fetch(names: list[str], everything: bool) -> int:
    """Download what is not here yet, and check all of it."""
    from natgrad_lab import datasets

    if not names:
        raise ValueError("name the data sets to fetch, as: natgrad data fetch mnist. `natgrad data` lists them.")
    for key in files_of(names, everything):
        say(f"{key}: {datasets.fetch(key)}")
    return 0


def check(names: list[str], everything: bool) -> int:
    """Compare all files that are here with their SHA-256: 1 if one is damaged, or missing from a set that was named."""
    from natgrad_lab import datasets

    needed, bad = files_of(names, everything), 0
    for key in files_of(names or list(datasets.ABOUT), everything=True):
        state = datasets.check(key)
        wrong = state != "present" and (state != "absent" or key in needed)
        bad += wrong
        say(f"{key}: {'ok' if state == 'present' else state}", style="red" if wrong else None)
    return int(bad > 0)


ACTIONS = {"list": overview, "fetch": fetch, "check": check}


def files_of(names: list[str], everything: bool) -> list[str]:
    """The keys of the files of these data sets, each once."""
    from natgrad_lab.datasets import ABOUT

    chosen = [ABOUT[name] for name in names]
    return list(dict.fromkeys(key for about in chosen for key in (*about.files, *(about.more if everything else ()))))


def is_here(key: str) -> bool:
    """Whether a file of the right size is in the cache folder; `check` reads it too."""
    from natgrad_lab import datasets

    path = datasets.cache_folder() / key
    return path.is_file() and path.stat().st_size == datasets.FILES[key].num_bytes


def say(text: str, style: str | None = None) -> None:
    """One line as it is."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
