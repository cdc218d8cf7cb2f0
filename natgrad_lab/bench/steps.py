"""The dense Fisher and the step of every method, each against its yardstick."""

from collections.abc import Callable, Iterable, Sequence

import torch

from natgrad_lab.bench.peers import Peers, tensor_agreement
from natgrad_lab.bench.timing import BenchTable, interleaved, problem, table, threads_of
from natgrad_lab.experiments.training import find_device
from natgrad_lab.fisher import dense_fisher
from natgrad_lab.fisher.scores import score_pass
from natgrad_lab.likelihoods import Categorical, Gaussian
from natgrad_lab.models import convnet, mlp
from natgrad_lab.optimizers import METHODS
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Tensor

_PATIENCE = 4.0  # seconds
KFAC = {
    "kfac, exact scores": {"fisher_type": "exact"},
    "kfac, inverses every 20": {"invert_every": 20},
    "kfac, both every 20": {"update_every": 20, "invert_every": 20},
}


def dense(
    sizes: Sequence[int] = (64, 32, 32, 10), num_examples: int = 512, *, rounds: int = 7, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time the dense exact Fisher against the (N·C × P) GEMM (SᵀJ)ᵀ(SᵀJ) that a textbook would do once J is there.

    float32; the model's forward and backward passes and all checks are counted on our side, forming J is not on theirs.
    Other libraries beside it where they are installed; their matrices are in PyTorch's order, converting ours is not timed.
    """
    with threads_of(threads):
        where, peers = find_device(device), Peers()
        model, inputs, targets = problem(sizes, num_examples, where)
        scores = score_pass(model, Categorical(), inputs)
        rows = torch.cat([layer.rows.to_dense() for layer in scores.layers], dim=1)  # (N C, P)
        dim = rows.shape[1]
        product, buffer = rows.new_empty(dim, dim), rows.new_empty(dim, dim)
        cases = {
            f"GEMM JᵀJ, {rows.shape[0]} x {dim}": lambda: torch.mm(rows.T, rows, out=product),
            "dense_fisher, into a buffer": lambda: dense_fisher(model, Categorical(), inputs, out=buffer),
            "dense_fisher": lambda: dense_fisher(model, Categorical(), inputs),
        }
        layout = ParameterLayout(model)
        ours = layout.to_torch(layout.to_torch(dense_fisher(model, Categorical(), inputs).to_dense()).T)
        peers.add("dense", (model, inputs, targets), tensor_agreement(ours))
        measured = interleaved(cases | peers.cases, rounds, where)
        error = float((buffer - product / num_examples).norm() / buffer.norm())
        notes = {"dense_fisher, into a buffer": f"relative difference to the GEMM {error:.1e}"} | peers.notes
        title = f"dense exact Fisher, {'-'.join(map(str, sizes))}, N = {num_examples}"
        return peers.beside(table(title, where, threads, measured, notes))


def conventions(
    sizes: Sequence[int] = (12, 8, 5), num_examples: int = 64, *, rounds: int = 7, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time the dense Fisher of a Gaussian likelihood beside other libraries' with the loss of PyTorch that goes with it.

    Ours is the mean over examples of JᵀJ / σ², σ² = 1. PyTorch's MSELoss is ‖y − f‖² / C, not ½‖y − f‖², so matrices made
    from it are 2 / C times ours: the convention factor in the notes says who does what.
    """
    with threads_of(threads):
        where, peers = find_device(device), Peers()
        model, inputs, _ = problem(sizes, num_examples, where)
        targets = torch.zeros(num_examples, sizes[-1]).to(inputs)
        layout = ParameterLayout(model)
        ours = layout.to_torch(layout.to_torch(dense_fisher(model, Gaussian(), inputs).to_dense()).T)
        peers.add("dense", (model, inputs, targets), tensor_agreement(ours))
        cases = {"dense_fisher, Gaussian": lambda: dense_fisher(model, Gaussian(), inputs)}
        measured = interleaved(cases | peers.cases, rounds, where)
        title = f"conventions of a Gaussian likelihood, {'-'.join(map(str, sizes))}, N = {num_examples}"
        return peers.beside(table(title, where, threads, measured, peers.notes))


def step(
    sizes: Sequence[int] = (64, 32, 32, 10), num_examples: int = 500, *, rounds: int = 30, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time one step of every method against a step of SGD, on the same network and batch, float32.

    K-FAC is timed with factors and inverses every step (monte_carlo, the default; exact scores beside it), and amortized, as
    the mean of a period of 20 steps: factors every step and inverses every 20, then both every 20. A method that has taken 4
    seconds sits out the rounds that remain; its row says so, and how many rounds were timed (the first one, cold, where it
    took them all).
    """
    with threads_of(threads):
        where = find_device(device)
        cases: dict[str, Callable[[], object]] = {}
        choices: dict[str, tuple[str, dict]] = {name: (name, {}) for name in METHODS}
        choices |= {case: ("kfac", options) for case, options in KFAC.items()}
        plain = "torch SGD, by hand"
        cases[plain] = _plain_sgd(*problem(sizes, num_examples, where))
        for case, (name, options) in choices.items():
            model, inputs, targets = problem(sizes, num_examples, where)
            optimizer = METHODS[name](model, Categorical(), lr=1e-3, **options)
            cases[case] = _stepper(optimizer, inputs, targets)
        measured = interleaved(cases, rounds, where, _PATIENCE, _in_a_row(cases))
        notes = {case: f"left out after {_PATIENCE:g} s" if len(seconds) < rounds else "" for case, seconds in measured.items()}
        title = f"one step, {'-'.join(map(str, sizes))}, N = {num_examples}"
        return table(title, where, threads, measured, notes)


def convolution(
    sizes: Sequence[int] = (64, 10), num_examples: int = 128, *, rounds: int = 15, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time K-FAC's step on 3 convolutions and 2 linear layers against a step of SGD, pictures 3 x 16 x 16, float32.

    Channels 16, 32, 64 with a pooling after each; `sizes` are the outputs of the linear layers.
    """
    with threads_of(threads):
        where = find_device(device)
        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand(num_examples, 3, 16, 16, generator=generator, dtype=torch.float32).to(where)
        targets = torch.randint(sizes[-1], (num_examples,), generator=generator).to(where)

        def network() -> torch.nn.Module:
            front = convnet((3, 16, 16), (16, 32, 64), dtype=torch.float32)[:-1]
            return torch.nn.Sequential(*front, *mlp((256, *sizes), "relu", dtype=torch.float32)).to(where)

        cases = {"torch SGD, by hand": _plain_sgd(network(), inputs, targets)}
        for case, options in ({"kfac": {}} | KFAC).items():
            cases[case] = _stepper(METHODS["kfac"](network(), Categorical(), lr=1e-3, **options), inputs, targets)
        measured = interleaved(cases, rounds, where, in_a_row=_in_a_row(cases))
        title = f"one step, 3 convolutions, then 256-{'-'.join(map(str, sizes))}, N = {num_examples}"
        return table(title, where, threads, measured, "")


def _in_a_row(cases: Iterable[str]) -> dict[str, int]:
    """How many steps make one time: a whole period."""
    return {case: KFAC[case]["invert_every"] for case in cases if "invert_every" in KFAC.get(case, {})}


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
