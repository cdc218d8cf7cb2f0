"""Exact work on networks whose Fisher is never formed: natural gradient, spectrum, overview, and K-FAC's factors."""

import itertools
import statistics
from collections.abc import Sequence

import torch

from natgrad_lab.bench.peers import Peers, factor_agreement, tensor_agreement
from natgrad_lab.bench.timing import BenchTable, interleaved, problem, table, threads_of
from natgrad_lab.experiments.training import find_device
from natgrad_lab.fisher import gram_fisher, group_edges, implicit_fisher, kfac_fisher, natural_gradient, overview_of
from natgrad_lab.fisher.gram import gram_from_scores
from natgrad_lab.fisher.scores import score_pass
from natgrad_lab.likelihoods import Categorical, Gaussian
from natgrad_lab.linalg import cg
from natgrad_lab.models import mlp
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.structures import Gram

LARGE = (784, 512, 256, 10)
AUTOENCODER = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)


def natural(
    sizes: Sequence[int] = LARGE, num_examples: int = 256, *, rounds: int = 5, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time the exact damped natural gradient against conjugate gradients on the Fisher's products, to the same residual.

    The yardstick is CG to 1e-6 with this package's own forward-and-backward products (no preconditioner); beside it the
    same CG on the products of other libraries. float32, λ = 1e-1, 1e-2, 1e-3. Residuals reached are in the notes.
    """
    with threads_of(threads):
        where = find_device(device)
        model, inputs, targets = problem(sizes, num_examples, where)
        likelihood, cases, notes, peers = Categorical(), {}, {}, Peers()
        for damping in (1e-1, 1e-2, 1e-3):

            def by_cg(damping: float = damping) -> None:
                fisher = implicit_fisher(model, likelihood, inputs)
                gradient = natural_gradient_rhs(model, likelihood, inputs, targets)
                _, residual, steps = cg(fisher.matmul, gradient, damping, tolerance=1e-6, max_steps=1000)
                notes[f"CG, λ = {damping:g}"] = f"{steps} products, residual {residual:.1e}"

            def exact(damping: float = damping) -> None:
                found = natural_gradient(model, likelihood, inputs, targets, damping)
                notes[f"natural_gradient, λ = {damping:g}"] = f"{found.route}, residual {found.residual:.1e}"

            cases[f"CG, λ = {damping:g}"], cases[f"natural_gradient, λ = {damping:g}"] = by_cg, exact
            ours = natural_gradient(model, likelihood, inputs, targets, damping).direction
            peers.add("natural", (model, inputs, targets, damping), tensor_agreement(ours), f", λ = {damping:g}")
        measured = interleaved(cases | peers.cases, rounds, where)
        for damping in (1e-1, 1e-2, 1e-3):
            pairs = zip(measured[f"CG, λ = {damping:g}"], measured[f"natural_gradient, λ = {damping:g}"], strict=True)
            faster = statistics.median(slow / fast for slow, fast in pairs)
            notes[f"natural_gradient, λ = {damping:g}"] += f", {faster:.1f} x faster than that CG"
        title = f"natural gradient, {_name(sizes)}, N = {num_examples}"
        return peers.beside(table(title, where, threads, measured, notes | peers.notes))


def natural_gradient_rhs(model: torch.nn.Module, likelihood: Categorical, inputs: torch.Tensor, targets: torch.Tensor):
    """The gradient of the mean loss in the flat order, by PyTorch's backward pass."""
    layout = ParameterLayout(model)
    loss = likelihood.loss(model(inputs), targets)
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return layout.from_torch(torch.cat([gradient.flatten() for gradient in gradients]))


def autoencoder(
    sizes: Sequence[int] = AUTOENCODER, num_examples: int = 512, *, rounds: int = 5, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time a damped solve with the monte_carlo Fisher of a large autoencoder against one plain SGD step on the same batch.

    Any right-hand side will do; it is the gradient, given. float64 on both sides. The checks that a first pass makes
    (`verify`) are left out, as in training loops after their first step. The residual is in the note.
    """
    with threads_of(threads):
        where = find_device(device)
        generator = torch.Generator().manual_seed(0)
        model = mlp(sizes, "sigmoid", dtype=torch.float64).to(where)
        inputs = torch.rand(num_examples, sizes[0], generator=generator, dtype=torch.float64).to(where)
        optimizer, likelihood, notes = torch.optim.SGD(model.parameters(), lr=0.0), Gaussian(), {}

        def step() -> None:
            optimizer.zero_grad()
            likelihood.loss(model(inputs), inputs).backward()
            optimizer.step()

        right = natural_gradient_rhs(model, likelihood, inputs, inputs)
        case, damping = "pass and Gram solve, monte_carlo", 1e-2

        def exact() -> tuple[Gram, torch.Tensor]:
            fisher = gram_from_scores(score_pass(model, likelihood, inputs, "monte_carlo", verify=False))
            return fisher, fisher.solve(right, damping)

        fisher, solution = exact()
        residual = float((fisher.matmul(solution) + damping * solution - right).norm() / right.norm())
        notes[case] = f"λ = {damping:g}, residual {residual:.1e}"
        measured = interleaved({"torch SGD, by hand": step, case: exact}, rounds, where)
        return table(f"natural gradient, {_name(sizes)}, N = {num_examples}", where, threads, measured, notes)


def spectrum(
    sizes: Sequence[int] = LARGE, num_examples: int = 256, *, rounds: int = 3, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time all nonzero eigenvalues through the Gram matrix against the top one alone, all that products give.

    The yardstick is power iteration to a relative change of 1e-6 on this package's own products; beside it SciPy's Lanczos
    on another library's.
    """
    with threads_of(threads):
        where = find_device(device)
        model, inputs, targets = problem(sizes, num_examples, where)
        likelihood, notes = Categorical(), {}

        def top() -> None:
            fisher = implicit_fisher(model, likelihood, inputs)
            generator = torch.Generator().manual_seed(0)
            vector, value, change, steps = torch.randn(fisher.dim, generator=generator).to(inputs), 0.0, 1.0, 0
            while change > 1e-6 and steps < 500:
                image = fisher.matmul(vector / vector.norm())
                new = float(image.norm())
                change, value, vector, steps = abs(new - value) / new, new, image, steps + 1
            notes["top eigenvalue by power iteration"] = f"{steps} products, {value:.6g}"

        def all_of_them() -> None:
            values = gram_fisher(model, likelihood, inputs).eigvalsh()
            notes["all nonzero eigenvalues by the Gram"] = f"{len(values)} eigenvalues, the top one {float(values[-1]):.6g}"

        cases, peers = {"top eigenvalue by power iteration": top, "all nonzero eigenvalues by the Gram": all_of_them}, Peers()
        largest = gram_fisher(model, likelihood, inputs).eigvalsh()[-1]
        peers.add("spectrum", (model, inputs, targets), tensor_agreement(largest), ", top eigenvalue alone")
        measured = interleaved(cases | peers.cases, rounds, where)
        title = f"spectrum, {_name(sizes)}, N = {num_examples}"
        return peers.beside(table(title, where, threads, measured, notes | peers.notes))


def overview(
    sizes: Sequence[int] = LARGE, num_examples: int = 100, *, rounds: int = 5, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time the RMS overview in 200 groups against half the (200 x M²)(M² x 200) GEMM it cannot do without, M its rows."""
    with threads_of(threads):
        where = find_device(device)
        model, inputs, _ = problem(sizes, num_examples, where)
        fisher = gram_fisher(model, Categorical(), inputs)
        edges = group_edges(ParameterLayout(model), 200)
        half = torch.randn(len(edges) - 1, fisher.num_rows**2 // 2).to(inputs)
        cases = {
            f"half the GEMM, {len(half)} x {fisher.num_rows}²": lambda: half @ half.T,
            "overview": lambda: overview_of(fisher, edges),
        }
        measured = interleaved(cases, rounds, where)
        return table(f"overview, {_name(sizes)}, {fisher.num_rows} rows", where, threads, measured, "")


def factors(
    sizes: Sequence[int] = LARGE, num_examples: int = 256, *, rounds: int = 9, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time K-FAC's factors from exact scores (all classes) against those from one sampled target, and beside others'."""
    with threads_of(threads):
        where, peers = find_device(device), Peers()
        model, inputs, targets = problem(sizes, num_examples, where)
        cases = {
            "kfac_fisher, monte_carlo": lambda: kfac_fisher(model, Categorical(), inputs, "monte_carlo"),
            "kfac_fisher, exact": lambda: kfac_fisher(model, Categorical(), inputs),
        }
        ours = kfac_fisher(model, Categorical(), inputs)
        peers.add("factors", (model, inputs, targets), factor_agreement(ours), ", exact")
        measured = interleaved(cases | peers.cases, rounds, where)
        return peers.beside(table(f"K-FAC factors, {_name(sizes)}, N = {num_examples}", where, threads, measured, peers.notes))


def slider(
    sizes: Sequence[int] = LARGE, num_examples: int = 256, *, rounds: int = 20, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time ten moves of the damping slider on a K-FAC, from cached eigendecompositions, against making those."""
    from natgrad_lab.comparison import Batch, DampingSlider, Problem

    with threads_of(threads):
        where = find_device(device)
        model, inputs, targets = problem(sizes, num_examples, where)
        against = Problem(Batch(model, Categorical(), inputs, targets), 1e-2)
        prepared = DampingSlider(against, kfac_fisher(model, Categorical(), inputs)).prepare()
        dampings = itertools.cycle(10.0**exponent for exponent in torch.linspace(-4, 0, 9).tolist())
        fresh = kfac_fisher(model, Categorical(), inputs)
        cases = {
            "eigendecompositions of the factors": lambda: [
                torch.linalg.eigh(f) for b in fresh.blocks for f in (b.left, b.right)
            ],
            "ten moves of the slider": lambda: [prepared.at(next(dampings)) for _ in range(10)],
        }
        measured = interleaved(cases, rounds, where)
        note = "efficiency, cosine, norm ratio, best step, decrease"
        return table(f"damping slider, K-FAC of {_name(sizes)}, N = {num_examples}", where, threads, measured, note)


def _name(sizes: Sequence[int]) -> str:
    return "-".join(map(str, sizes))
