"""Benchmarks as commands: every figure is a ratio to a yardstick timed in the same interleaved run.

Each round times every case once, in turn, so that a busy machine slows them all; a case's figure is the median over
rounds of its time divided by the yardstick's time in that round. Results are plain rows, for a table and for JSON.
"""

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from natgrad_lab import __version__, datasets, models
from natgrad_lab.experiments.training import find_device
from natgrad_lab.fisher import dense_fisher
from natgrad_lab.fisher.scores import score_pass
from natgrad_lab.likelihoods import Categorical
from natgrad_lab.optimizers import METHODS
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
        """Plain values for JSON."""
        return asdict(self)


def dense(
    sizes: Sequence[int] = (64, 32, 32, 10), num_examples: int = 512, *, rounds: int = 7, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time the dense exact Fisher against the (N·C × P) GEMM (SᵀJ)ᵀ(SᵀJ) that a textbook would do once J is there.

    float32; the model's forward and backward passes and all checks are counted on our side, forming J is not on theirs.
    """
    with _threads(threads):
        where = find_device(device)
        model, inputs, _ = _problem(sizes, num_examples, where)
        scores = score_pass(model, Categorical(), inputs)
        rows = torch.cat([layer.rows.to_dense() for layer in scores.layers], dim=1)  # (N C, P)
        dim = rows.shape[1]
        product, buffer = rows.new_empty(dim, dim), rows.new_empty(dim, dim)
        cases = {
            f"GEMM JᵀJ, {rows.shape[0]} x {dim}": lambda: torch.mm(rows.T, rows, out=product),
            "dense_fisher, into a buffer": lambda: dense_fisher(model, Categorical(), inputs, out=buffer),
            "dense_fisher": lambda: dense_fisher(model, Categorical(), inputs),
        }
        measured = interleaved(cases, rounds, where)
        error = float((buffer - product / num_examples).norm() / buffer.norm())
        note = f"relative difference to the GEMM {error:.1e}"
        return _table(f"dense exact Fisher, {'-'.join(map(str, sizes))}, N = {num_examples}", where, threads, measured, note)


def step(
    sizes: Sequence[int] = (64, 32, 32, 10), num_examples: int = 500, *, rounds: int = 30, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time one step of every method against a step of SGD, on the same network and batch, float32.

    K-FAC is timed with factors and inverses every step (monte_carlo, the default; exact scores beside it), and amortized:
    factors every step, inverses every 20.
    """
    with _threads(threads):
        where = find_device(device)
        cases: dict[str, Callable[[], object]] = {}
        choices: dict[str, tuple[str, dict]] = {name: (name, {}) for name in METHODS}
        choices["kfac, exact scores"] = ("kfac", {"fisher_type": "exact"})
        choices["kfac, inverses every 20"] = ("kfac", {"invert_every": 20})
        plain = "torch SGD, by hand"
        cases[plain] = _plain_sgd(*_problem(sizes, num_examples, where))
        for case, (name, options) in choices.items():
            model, inputs, targets = _problem(sizes, num_examples, where)
            optimizer = METHODS[name](model, Categorical(), lr=1e-3, **options)
            cases[case] = _stepper(optimizer, inputs, targets)
        measured = interleaved(cases, rounds, where)
        title = f"one step, {'-'.join(map(str, sizes))}, N = {num_examples}"
        return _table(title, where, threads, measured, "")


def interleaved(cases: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every case in every round; one untimed round first."""
    times: dict[str, list[float]] = {case: [] for case in cases}
    for turn in range(rounds + 1):
        for case, work in cases.items():
            _wait(device)
            started = time.perf_counter()
            work()
            _wait(device)
            if turn:
                times[case].append(time.perf_counter() - started)
    return times


def _table(title: str, device: torch.device, threads: int, measured: dict[str, list[float]], note: str) -> BenchTable:
    yardstick = next(iter(measured.values()))
    rows = tuple(
        BenchRow(
            case,
            statistics.median(seconds),
            statistics.median(own / base for own, base in zip(seconds, yardstick, strict=True)),
            len(seconds),
            note if index == 1 else "",
        )
        for index, (case, seconds) in enumerate(measured.items())
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = f"natgrad_lab {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return BenchTable(title, f"{device.type} ({name})", threads, versions, rows)


def _problem(sizes: Sequence[int], num_examples: int, device: torch.device) -> tuple[torch.nn.Module, Tensor, Tensor]:
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


def _plain_sgd(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], object]:
    """The yardstick: what anybody writes, with nothing recorded."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def work() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return work


def _stepper(optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> Callable[[], object]:
    return lambda: optimizer.step(inputs, targets)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"threads must be a positive integer; got {count!r}.")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


BENCHES: dict[str, Callable[..., BenchTable]] = {"dense": dense, "step": step}
