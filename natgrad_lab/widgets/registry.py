"""Which runs are alive, by name: a cell that is run again replaces its run, and everything can be stopped at once."""

import atexit
import threading

_lock = threading.Lock()
_runs: dict[str, object] = {}


def replace(run) -> None:
    """Enter `run` under its name; the run that had the name is closed and joined."""
    with _lock:
        old, _runs[run.name] = _runs.get(run.name), run
    if old is not None:
        old.close()


def forget(run) -> None:
    """Take `run` out, unless its name has gone to another one."""
    with _lock:
        if _runs.get(run.name) is run:
            del _runs[run.name]


def running() -> tuple[str, ...]:
    """Return the names of the runs that are not closed."""
    with _lock:
        return tuple(_runs)


def stop_all() -> None:
    """Close and join every run. Also called when the kernel exits."""
    with _lock:
        runs = list(_runs.values())
    for run in runs:
        run.close()


atexit.register(stop_all)
