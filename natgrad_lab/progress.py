"""Telling people about long work: an estimate before anything large is begun, and a bar while it runs. On stderr only."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from numbers import Real

GIB = 2**30
_QUIET_SECONDS = 1.0  # work shorter than this shows no bar
_LINE_SECONDS = 30.0


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


class _Lines:
    """Where no bar can be drawn (a log file, rich not installed): a line at the start, and then every half a minute."""

    def __init__(self, what: str, total: int):
        self._what, self._total, self._said = what, total, time.monotonic()
        print(f"natgrad_lab: {what}, {total} pieces ...", file=sys.stderr, flush=True)

    def update(self, task: None, completed: int) -> None:
        """Say how far it is, if that was not said lately."""
        if time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            print(f"natgrad_lab: {self._what}, {completed} of {self._total}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Do nothing."""


def _bar(what: str, total: int) -> tuple:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return _Lines(what, total), None
    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        return _Lines(what, total), None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(what, total=total)
    bar.start()
    return bar, task
