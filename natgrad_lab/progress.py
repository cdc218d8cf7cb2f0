"""Telling people about long work: an estimate before anything large is begun, and a bar while it runs. On stderr only."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from numbers import Real

GIB = 2**30
_QUIET_SECONDS = 1.0  # work shorter than this shows no bar


def announce(num_bytes: Real, what: str) -> None:
    """Print the memory that `what` is about to take, if it is more than 1 GiB."""
    if num_bytes > GIB:
        print(f"natgrad_lab: {what} takes {num_bytes / GIB:.1f} GiB", file=sys.stderr, flush=True)


def track(items: Sequence, what: str) -> Iterator:
    """Iterate over `items`; after a second, show how far and how long it goes (with rich, if it is there)."""
    started, bar, task = time.monotonic(), None, None
    try:
        for done, item in enumerate(items):
            if bar is None and done and time.monotonic() - started > _QUIET_SECONDS and not _is_unwatched():
                bar, task = _bar(what, len(items))
            if bar is not None:
                bar.update(task, completed=done)
            yield item
    finally:
        if bar is not None:
            bar.stop()


def _is_unwatched() -> bool:
    """Whether notebooks are being made or tested: a bar of a slow machine must not stand in them."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("NATGRAD_STILL", "NATGRAD_FAST"))


class _Silent:
    """Where rich is not installed: one line at the start, nothing after."""

    def __init__(self, what: str, total: int):
        print(f"natgrad_lab: {what}, {total} pieces ...", file=sys.stderr, flush=True)

    def update(self, task: None, completed: int) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


def _bar(what: str, total: int) -> tuple:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return _Silent(what, total), None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=total)
    bar.start()
    return bar, task
