"""The dense Fisher and the step of every method, each against its yardstick."""

from collections.abc import Callable, Sequence

import torch

from natgrad_lab.bench.timing import BenchTable, interleaved, problem, table, threads_of
from natgrad_lab.experiments.training import find_device
from natgrad_lab.fisher import dense_fisher
from natgrad_lab.fisher.scores import score_pass
from natgrad_lab.likelihoods import Categorical
from natgrad_lab.optimizers import METHODS
from natgrad_lab.shapes import Tensor


def dense(
    sizes: Sequence[int] = (64, 32, 32, 10), num_examples: int = 512, *, rounds: int = 7, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time the dense exact Fisher against the (N·C × P) GEMM (SᵀJ)ᵀ(SᵀJ) that a textbook would do once J is there.

    float32; the model's forward and backward passes and all checks are counted on our side, forming J is not on theirs.
    """
    with threads_of(threads):
        where = find_device(device)
        model, inputs, _ = problem(sizes, num_examples, where)
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
        return table(f"dense exact Fisher, {'-'.join(map(str, sizes))}, N = {num_examples}", where, threads, measured, note)


def step(
    sizes: Sequence[int] = (64, 32, 32, 10), num_examples: int = 500, *, rounds: int = 30, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time one step of every method against a step of SGD, on the same network and batch, float32.

    K-FAC is timed with factors and inverses every step (monte_carlo, the default; exact scores beside it), and amortized:
    factors every step, inverses every 20.
    """
    with threads_of(threads):
        where = find_device(device)
        cases: dict[str, Callable[[], object]] = {}
        choices: dict[str, tuple[str, dict]] = {name: (name, {}) for name in METHODS}
        choices["kfac, exact scores"] = ("kfac", {"fisher_type": "exact"})
        choices["kfac, inverses every 20"] = ("kfac", {"invert_every": 20})
        plain = "torch SGD, by hand"
        cases[plain] = _plain_sgd(*problem(sizes, num_examples, where))
        for case, (name, options) in choices.items():
            model, inputs, targets = problem(sizes, num_examples, where)
            optimizer = METHODS[name](model, Categorical(), lr=1e-3, **options)
            cases[case] = _stepper(optimizer, inputs, targets)
        measured = interleaved(cases, rounds, where)
        title = f"one step, {'-'.join(map(str, sizes))}, N = {num_examples}"
        return table(title, where, threads, measured, "")


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
