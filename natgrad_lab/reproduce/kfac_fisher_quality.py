"""How good are K-FAC's approximations of the Fisher? [MartensGrosse2015] sec. 3-4, figures 2, 3, 5 and 6.

A tanh network with five hidden layers of 20 units, partly trained; the matrices of its middle four layers (4 x 420 rows):

    F    the exact Fisher
    F̃    every block (i, j), between layers too, replaced by G_ij ⊗ A_ij
    F̆    the diagonal blocks of F̃: block-diagonal K-FAC
    F̂    the diagonal and neighbouring blocks of F̃, the others such that the inverse is block tridiagonal

The claim is about inverses: F̃ has large blocks everywhere, F̃⁻¹ nearly none beyond the neighbours. Inverses are of matrices
with K-FAC's factored damping of the diagonal blocks.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from natgrad_lab import datasets, likelihoods, models
from natgrad_lab.fisher.dense import contract
from natgrad_lab.fisher.scores import score_pass
from natgrad_lab.metrics import efficiency, relative_error
from natgrad_lab.optimizers import METHODS
from natgrad_lab.reproduce.base import Check, Reproduction, Scale, Work, span
from natgrad_lab.reproduce.running import FIRST_SEED
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import BlockTridiagonalInverse, Dense, tridiagonal_tikhonov

CAPTURED = 0.75  # relative error of F̃, largest that still counts as "the coarse structure"
HALF = 0.5  # of the share of F̃'s mass beyond the neighbours that F̃⁻¹ may have there
BETTER = 0.8  # error of F̂⁻¹ against that of F̆⁻¹, at most
WELL = 0.5  # relative error of F̂ in the blocks that it was not given
PARTLY_TRAINED = 0.9  # accuracy at which training is interrupted for the figure
TIE = 0.01  # efficiency that the tridiagonal one may lack against the block-diagonal one, at initialization

HIDDEN, MIDDLE = (20, 20, 20, 20, 20), slice(1, 5)
CELLS, CHUNK = 40, 2000  # of a picture, across; examples a pass


def run(seed: int, work: Work) -> dict:
    """The numbers at initialization, partly trained and later, and pictures for the first seed."""
    config = work.config
    data = datasets.load(config["dataset"], dtype=torch.float64)
    if config["image_size"]:
        data = datasets.resize(data, config["image_size"])
    inputs, targets = data.inputs.to(work.device), data.targets.to(work.device)
    generator = torch.Generator().manual_seed(seed)
    sizes = (inputs.shape[1], *HIDDEN, 10)
    model = models.mlp(sizes, "tanh", generator=generator, dtype=torch.float64).to(work.device)
    found = {"start": measured(Matrices(model, inputs, targets, config["damping"]))}
    optimizer = METHODS["kfac"](model, likelihoods.Categorical(), seed=seed)
    for stage, accuracy in (("trained", PARTLY_TRAINED), ("later", config["later_accuracy"])):
        found[f"{stage} steps"] = train(optimizer, inputs, targets, accuracy, config, generator)
        matrices = Matrices(model, inputs, targets, config["damping"])
        found[stage] = measured(matrices)
        if seed == FIRST_SEED and stage == "trained":
            found["pictures"] = matrices.pictures()
    return found


@torch.no_grad()
def train(optimizer, inputs: Tensor, targets: Tensor, accuracy: float, config: Mapping, generator: torch.Generator) -> int:
    """Step on random batches until so much of all examples is right, or the most steps are taken; how many it has taken."""
    while optimizer.num_steps < config["most_steps"]:
        if (optimizer.model(inputs).argmax(1) == targets).double().mean() >= accuracy:
            break
        batch = torch.randint(len(inputs), (config["batch_size"],), generator=generator).to(inputs.device)
        optimizer.step(inputs[batch], targets[batch])
    return optimizer.num_steps


class Matrices:
    """F, F̃, F̆⁻¹ and F̂ of the middle layers, from one pass over the data; all with `damping` times the mean eigenvalue of "
    "F."""

    def __init__(self, model: nn.Module, inputs: Tensor, targets: Tensor, damping: float):
        """One pass in chunks."""
        sums: list[Tensor] = []
        for start in range(0, len(inputs), CHUNK):
            part = slice(start, start + CHUNK)
            scores = score_pass(
                model, likelihoods.Categorical(), inputs[part], loss_targets=targets[part], verify=start == 0
            )  # fmt: skip
            rows = [layer.rows for layer in scores.layers[MIDDLE]]
            weight = scores.num_examples / len(inputs)
            X, S = (torch.cat(each, -1) for each in zip(*((r.inputs, r.scores.flatten(0, 1)) for r in rows), strict=True))
            count = scores.num_examples
            parts = contract(rows, count), X.mT @ X / count, S.mT @ S / count, scores.gradient()
            sums = [weight * new + (sums[i] if sums else 0) for i, new in enumerate(parts)]
        layers = scores.layout.layers[MIDDLE]
        self.exact, A, G, gradient = sums
        self.gradient = gradient[layers[0].start : layers[-1].slice.stop]
        self.sizes = [layer.size for layer in layers]
        widths = [(layer.shape[0], layer.shape[1]) for layer in layers]
        self.A = [list(row.split([n for _, n in widths], 1)) for row in A.split([n for _, n in widths])]
        self.G = [list(row.split([m for m, _ in widths], 1)) for row in G.split([m for m, _ in widths])]
        self.kronecker = self._blocks(lambda i, j: torch.kron(self.G[i][j].contiguous(), self.A[i][j].contiguous()))
        self.mean = float(self.exact.trace()) / len(self.exact)
        self.chain(damping * self.mean)

    def chain(self, damping: float) -> None:
        """Invert with this damping: `damped` F̃, its `inverse`, F̆⁻¹ `block_inverse`, F̂⁻¹ `chain_inverse`, F̂ itself "
        "`filled`."""
        count = range(len(self.sizes))
        factors = [[M[i][i] for i in count] for M in (self.G, self.A)]
        crosses = [[M[i][i + 1] for i in count[:-1]] for M in (self.G, self.A)]
        chain = BlockTridiagonalInverse(*(tuple(each) for each in (*factors, *crosses)))
        damped = tridiagonal_tikhonov(chain, damping)
        self.filled = damped.to_dense()
        self.chain_inverse = damped.power(-1).to_dense()
        blocks = [torch.kron(left, right) for left, right in zip(damped.left, damped.right, strict=True)]
        self.block_inverse = torch.block_diag(*(torch.linalg.inv(block) for block in blocks))
        self.damped = self.kronecker.clone()
        for place, block in zip(self.places(), blocks, strict=True):
            self.damped[place, place] = block
        self.inverse = torch.linalg.inv(self.damped)

    def places(self) -> list[slice]:
        """Rows of each layer."""
        ends = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        return [slice(*pair) for pair in zip(ends, ends[1:], strict=False)]

    def _blocks(self, block: Callable[[int, int], Tensor]) -> Tensor:
        count = range(len(self.sizes))
        return torch.cat([torch.cat([block(i, j) for j in count], 1) for i in count])

    def only(self, matrix: Float[Tensor, "P P"], wanted: Callable[[int, int], bool]) -> Float[Tensor, "P P"]:
        """The blocks (i, j) that are wanted, zeros elsewhere."""
        where = self.places()
        return self._blocks(lambda i, j: matrix[where[i], where[j]] * wanted(i, j))

    def pictures(self) -> dict[str, list]:
        """Mean |entry| over cells, (40, 40), three digits."""
        shown = {
            "F": self.exact, "F̃": self.kronecker, "F̃ − F": self.kronecker - self.exact, "F̃⁻¹": self.inverse,
            "F̆⁻¹ − F̃⁻¹": self.block_inverse - self.inverse, "F̂⁻¹ − F̃⁻¹": self.chain_inverse - self.inverse,
        }  # fmt: skip
        cells = CELLS, len(self.exact) // CELLS
        means = {name: each.abs().unflatten(1, cells).unflatten(0, cells).mean((1, 3)) for name, each in shown.items()}
        return {name: [[float(f"{x:.3g}") for x in row] for row in each.tolist()] for name, each in means.items()}


def measured(each: Matrices) -> dict:
    """All numbers of one network."""
    off, far = (lambda i, j: i != j), (lambda i, j: abs(i - j) > 1)

    def far_share(matrix: Tensor) -> float:
        return float(each.only(matrix, far).abs().sum() / matrix.abs().sum())

    def blocks_error(matrix: Tensor, wanted: Callable[[int, int], bool], exact: Tensor) -> float:
        return relative_error(each.only(matrix, wanted), each.only(exact, wanted))

    numbers = {
        "kronecker error": relative_error(each.kronecker, each.exact),
        "kronecker error between layers": blocks_error(each.kronecker, off, each.exact),
        "far share": far_share(each.damped),
        "far share of inverse": far_share(each.inverse),
        "block-diagonal inverse error": relative_error(each.block_inverse, each.inverse),
        "tridiagonal inverse error": relative_error(each.chain_inverse, each.inverse),
        "block-diagonal inverse error, diagonal blocks": blocks_error(each.block_inverse, lambda i, j: i == j, each.inverse),
        "tridiagonal inverse error, diagonal blocks": blocks_error(each.chain_inverse, lambda i, j: i == j, each.inverse),
        "filled blocks error": blocks_error(each.filled, far, each.damped),
    }
    return numbers | {"efficiency": efficiencies(each)}


def efficiencies(each: Matrices) -> dict:
    """Of the steps by F̆⁻¹, F̂⁻¹ and F̃⁻¹, against the exact Fisher of these layers, at three dampings."""
    found, before = {}, (each.filled, each.chain_inverse, each.block_inverse, each.damped, each.inverse)
    for relative in (0.01, 0.1, 1.0):
        damping = relative * each.mean
        each.chain(damping)
        inverses = {"block-diagonal": each.block_inverse, "tridiagonal": each.chain_inverse, "full": each.inverse}
        found[f"{relative:g}"] = {
            name: efficiency(inverse @ each.gradient, each.gradient, Dense(each.exact), damping)
            for name, inverse in inverses.items()
        }
    each.filled, each.chain_inverse, each.block_inverse, each.damped, each.inverse = before
    return found


def judge(seeds: Sequence[dict]) -> list[Check]:
    """The six statements, each over all seeds."""
    trained = [seed["trained"] for seed in seeds]

    def check(text: str, values: Sequence[float | None], ok: Callable[[float], bool]) -> Check:
        return Check(text, span(values), all(value is not None and ok(value) for value in values))

    def ratio(above: str, below: str) -> list[float]:
        return [each[above] / each[below] for each in trained]

    ahead = [
        pair["tridiagonal"] - pair["block-diagonal"] for seed in seeds for pair in seed["start"]["efficiency"].values()
    ]  # fmt: skip
    name = "tridiagonal inverse error", "block-diagonal inverse error"
    return [
        check(f"F̃ has the coarse structure of F: ‖F̃ − F‖ / ‖F‖ < {CAPTURED:g}", [e["kronecker error"] for e in trained],
              lambda x: x < CAPTURED),
        check("and between layers: the same of the blocks off the diagonal < 1, better than leaving them out",
              [e["kronecker error between layers"] for e in trained], lambda x: x < 1),
        check(f"the structure is in the inverse: share of |entries| beyond neighbours, F̃⁻¹ against F̃, < {HALF:g}",
              ratio("far share of inverse", "far share"), lambda x: x < HALF),
        check(f"F̂⁻¹ better than F̆⁻¹: ratio of their errors as F̃⁻¹ < {BETTER:g}", ratio(*name), lambda x: x < BETTER),
        check("also on the diagonal blocks alone: ratio < 1", ratio(*(f"{n}, diagonal blocks" for n in name)), lambda x: x < 1),
        check(f"F̂ finds the blocks of F̃ it was not given: relative error < {WELL:g}",
              [e["filled blocks error"] for e in trained], lambda x: x < WELL),
        check("a step by F̂⁻¹ is at least as good as one by F̆⁻¹ at initialization, three dampings: efficiency ahead by ≥ "
              f"−{TIE:g}", ahead, lambda x: x >= -TIE),
    ]  # fmt: skip


def figure(seeds: Sequence[dict]) -> object:
    """Six matrices of the first seed."""
    from natgrad_lab.plots.reproduce import matrices_figure

    return matrices_figure(seeds)


COMMON = {"most_steps": 300, "damping": 0.01}
KFAC_FISHER_QUALITY = Reproduction(
    name="kfac-fisher-quality",
    title="Is the structure in the Fisher, or in its inverse?",
    claim="K-FAC's factors capture the coarse structure of the Fisher; its inverse, not the Fisher itself, is nearly block "
    "tridiagonal; the block-tridiagonal inverse is clearly better than the block-diagonal one.",
    source="[MartensGrosse2015] sec. 3-4, fig. 2, 3, 5, 6",
    criterion=f"middle four layers, all seeds, trained by K-FAC to an accuracy of {PARTLY_TRAINED:g}: relative error of F̃ < "
    f"{CAPTURED:g}, off the diagonal < 1; "
    f"share beyond neighbours in F̃⁻¹ < {HALF:g} of that in F̃; error of F̂⁻¹ < {BETTER:g} of that of F̆⁻¹, and smaller on the "
    f"diagonal blocks; F̂ has F̃'s far blocks to {WELL:g}; at initialization the efficiency of the tridiagonal step is at "
    f"least that of the block-diagonal one less {TIE:g} at λ = 0.01, 0.1 and 1 of the mean eigenvalue. (λ is 0.01 of it "
    "elsewhere. The paper shows pictures; these thresholds are ours)",
    scales={
        "small": Scale(
            {"dataset": "digits", "image_size": None, "batch_size": 512, "later_accuracy": 0.99} | COMMON,
            "8 x 8 digits, 64-20-20-20-20-20-10, instead of 16 x 16 MNIST, 256-20-20-20-20-20-10",
        ),
        "full": Scale({"dataset": "mnist", "image_size": 16, "batch_size": 1000, "later_accuracy": 0.97} | COMMON),
    },
    run=run,
    judge=judge,
    figure=figure,
)
