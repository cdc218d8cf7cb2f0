"""Timing: every case once a round, in turn; medians, and ratios to the yardstick of the same round."""

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import MappingProxyType

import torch

from natgrad_lab import __version__, datasets, models
from natgrad_lab.shapes import Tensor


@dataclass(frozen=True)
class BenchRow:
    """One case: its median seconds, and the median ratio to the yardstick (the first row of its table)."""

    case: str
    seconds: float
    ratio: float
    rounds: int
    note: str = ""


@dataclass(frozen=True)
class BenchTable:
    """What was measured, where, and the rows; the first row is the yardstick."""

    title: str
    device: str
    threads: int
    versions: str
    rows: tuple[BenchRow, ...]

    def to_dict(self) -> dict:
        """Plain values for JSON; None where a case was not timed."""
        values = asdict(self)
        for row in values["rows"]:
            row.update({name: None if row["rounds"] == 0 else row[name] for name in ("seconds", "ratio")})
        return values


def interleaved(
    cases: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    budget: float = math.inf,
    in_a_row: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, list[float]]:
    """Seconds of every case in every round; one round that does not count first.

    Args:
        budget: a case, other than the first, that has taken so many seconds is left out of the rounds that remain. Where the
            round that does not count takes them all, it counts, alone.
        in_a_row: how many calls of a case make one time, their mean, where that is not one: calls that differ, in a period.
    """
    times: dict[str, list[float]] = {case: [] for case in cases}
    spent, yardstick = dict.fromkeys(cases, 0.0), next(iter(cases))
    for turn in range(rounds + 1):
        for case, work in cases.items():
            if spent[case] >= budget and times[case] and case != yardstick:
                continue
            calls = in_a_row.get(case, 1)
            seconds = _seconds(work, calls, device)
            spent[case] += calls * seconds
            if turn or (spent[case] >= budget and case != yardstick):
                times[case].append(seconds)
    return times


def _seconds(work: Callable[[], object], calls: int, device: torch.device) -> float:
    wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        work()
    wait(device)
    return (time.perf_counter() - started) / calls


def table(
    title: str, device: torch.device, threads: int, measured: dict[str, list[float]], notes: str | dict[str, str]
) -> BenchTable:
    """Medians, and ratios to the first case in the same rounds, which for a slow case may be the first few.

    Args: notes: by case; a plain string goes to the second row.
    """
    yardstick, cases = next(iter(measured.values())), list(measured)
    notes = notes if isinstance(notes, dict) else {case: notes for case in cases[1:2]}
    rows = tuple(
        BenchRow(
            case,
            statistics.median(seconds),
            statistics.median(own / base for own, base in zip(seconds, yardstick[: len(seconds)], strict=True)),
            len(seconds),
            notes.get(case, ""),
        )
        for case, seconds in measured.items()
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = f"natgrad_lab {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return BenchTable(title, f"{device.type} ({name})", threads, versions, rows)


def problem(sizes: Sequence[int], num_examples: int, device: torch.device) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """A network and a batch of random inputs and classes; digits where they fit."""
    model = models.mlp(sizes, dtype=torch.float32).to(device)
    if sizes[0] == 64 and sizes[-1] == 10 and num_examples <= 1797:
        data = datasets.digits(dtype=torch.float32)
        inputs, targets = data.inputs[:num_examples], data.targets[:num_examples]
    else:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand(num_examples, sizes[0], generator=generator, dtype=torch.float32)
        targets = torch.randint(sizes[-1], (num_examples,), generator=generator)
    return model, inputs.to(device), targets.to(device)


def wait(device: torch.device) -> None:
    """Let a GPU finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Torch's threads, put back afterwards."""
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"threads must be a positive integer; got {count!r}.")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
