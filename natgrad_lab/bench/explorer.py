"""The Fisher explorer on a scripted tour: first picture, moves, memory."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from natgrad_lab.bench.timing import BenchTable, problem, table, threads_of
from natgrad_lab.experiments.training import find_device
from natgrad_lab.explorer import TILE, Explorer, explorer
from natgrad_lab.likelihoods import Categorical

LARGE = (784, 512, 256, 10)
SCREEN = 256  # cells that a view has at most, a side


def tour(
    sizes: Sequence[int] = LARGE, num_examples: int = 100, *, rounds: int = 1, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Open the exact Fisher, then make 100 moves: jumps, zooms by the wheel and pans, at all levels down to single entries.

    The yardstick is the first picture with the pass through the network: everything from the model to 256 x 256 cells or
    fewer. A move is a view: all of its tiles (up to 5 x 5) that were not there. Every tour begins anew.
    """
    with threads_of(threads):
        where = find_device(device)
        model, inputs, _ = problem(sizes, num_examples, where)
        measured: dict[str, list[float]] = {"first picture": [], "a move, median of 100": [], "a new tile, median": []}
        for _ in range(rounds):
            started = time.perf_counter()
            seen = explorer(model, Categorical(), inputs)
            seen.overview()
            measured["first picture"].append(time.perf_counter() - started)
            moves, tiles = _moves(seen)
            measured["a move, median of 100"].append(float(np.median(moves)))
            measured["a new tile, median"].append(float(np.median(tiles)))
        exact = seen.sources["exact"]
        held = (exact.num_bytes + seen.store.num_bytes) / 2**20
        notes = {
            "first picture": f"{exact.gram.num_rows} rows; process peak {_peak_gib()}",
            "a move, median of 100": f"slowest {max(moves) * 1e3:.0f} ms; {len(tiles)} tiles in all",
            "a new tile, median": f"slowest {max(tiles) * 1e3:.0f} ms; held {held:.0f} MB",
        }
        title = f"explorer, {'-'.join(map(str, sizes))}, P = {seen.layout.dim:,}"
        return table(title, where, threads, measured, notes)


def _moves(seen: Explorer) -> tuple[list[float], list[float]]:
    """Seconds of each of 100 views, and of each new tile in them."""
    rng, dim = np.random.default_rng(0), seen.layout.dim
    centre, span, moves, tiles = np.array([dim / 2, dim / 2]), float(dim), [], []
    for move in range(100):
        if move % 10 == 0:  # jump
            centre, span = rng.uniform(0, dim, 2), float(dim) ** rng.uniform(0.3, 1)
        elif move % 3 == 0:  # pan
            centre = centre + rng.uniform(-0.6, 0.6, 2) * span
        else:  # wheel
            span = float(np.clip(span * 2 ** rng.choice([-1.5, 1.5]), 16, dim))
        started = time.perf_counter()
        for key in view_tiles(seen, centre, span):
            if not seen.is_ready("exact", *key):
                one = time.perf_counter()
                seen.tile("exact", *key)
                tiles.append(time.perf_counter() - one)
        moves.append(time.perf_counter() - started)
    return moves, tiles


def view_tiles(seen: Explorer, centre: np.ndarray, span: float) -> list[tuple[int, int, int]]:
    """(level, row, column) of all tiles of a view."""
    dim = seen.layout.dim
    starts = [int(np.clip(c - span / 2, 0, dim - 1)) for c in centre]
    stops = [int(np.clip(start + span, start + 1, dim)) for start in starts]
    level = max(seen.pyramid.level_for(start, stop, SCREEN) for start, stop in zip(starts, stops, strict=True))
    cells = [
        [seen.pyramid.cell_at(level, at) // TILE for at in (start, stop - 1)] for start, stop in zip(starts, stops, strict=True)
    ]
    return [(level, i, j) for i in range(cells[0][0], cells[0][1] + 1) for j in range(cells[1][0], cells[1][1] + 1)]


def _peak_gib() -> str:
    """The process's own peak of resident memory, where the system tells."""
    try:
        line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    except (OSError, StopIteration):
        return "memory not known"
    return f"memory {int(line.split()[1]) / 2**20:.2f} GiB"
