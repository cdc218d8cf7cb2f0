"""The same objects from other libraries, where they are installed: first checked equal, then timed in the same run.

Each peer's number is multiplied by a convention factor, stated in its note, before it is compared; a peer that then differs
is not timed, and its row says by how much it is off. `pip install -e .[peers]` installs them.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch

from natgrad_lab.bench.timing import BenchRow, BenchTable
from natgrad_lab.linalg import cg
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import BlockDiagonal

EQUAL = 1e-4  # relative, in float32

Work = Callable[[], object]
Agreement = Callable[[object], tuple[float, float]]
"""What a peer computed → (relative difference to ours, the convention factor it was multiplied by first)."""


@dataclass
class Peers:
    """Peers of one benchmark: what is to be timed, what is to be said of it, and who could not take part."""

    cases: dict[str, Work] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    left_out: list[BenchRow] = field(default_factory=list)

    def add(self, quantity: str, problem: tuple, agreement: Agreement, suffix: str = "") -> None:
        """Make, run once and compare every peer that has `quantity`; `problem` goes to its maker in PEERS."""
        for name, (package, make) in PEERS[quantity].items():
            case = f"{name} {_version(package)}{suffix}"
            try:
                import_module(package)
                work = make(*copy.deepcopy(problem))  # some leave their hooks on a model
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the peer's own deprecations
                    error, factor = agreement(work())
            except Exception as met:  # a peer may fail in any way; its row says how
                first = (str(met).splitlines() or [""])[0][:80]
                self._leave_out(case, f"{type(met).__name__}: {first}")
                continue
            if not error < EQUAL:
                self._leave_out(case, f"not equal, off by {error:.1e} with convention factor {factor:.4g}: not timed")
                continue
            self.cases[case] = _quietly(work)
            self.notes[case] = f"convention factor {factor:.4g}, equal to {error:.0e}"

    def _leave_out(self, case: str, why: str) -> None:
        self.left_out.append(BenchRow(case, float("nan"), float("nan"), 0, why))

    def beside(self, table: BenchTable) -> BenchTable:
        """The table with those that could not take part at its end."""
        return replace(table, rows=table.rows + tuple(self.left_out))


def _quietly(work: Work) -> Work:
    def quiet() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()

    return quiet


def tensor_agreement(ours: Tensor) -> Agreement:
    """Of a matrix, a vector or a number that should be the same up to the factor that fits best."""

    def agreement(theirs: Tensor) -> tuple[float, float]:
        theirs = torch.as_tensor(theirs).to(ours)
        factor = float((ours * theirs).sum() / theirs.square().sum())
        return float((factor * theirs - ours).norm() / ours.norm()), factor

    return agreement


def factor_agreement(ours: BlockDiagonal) -> Agreement:
    """Of K-FAC factors [(G, A), ...], A with the bias last: G ⊗ A is to be equal up to one factor for all layers.

    That factor is stated; how a peer splits it between G and A is its own business.
    """

    def agreement(theirs: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        pairs = [((block.left, block.right), other) for block, other in zip(ours.blocks, theirs, strict=True)]
        scales = [float(g.norm() * a.norm() / (h.norm() * b.norm())) for (g, a), (h, b) in pairs]
        shapes = [(x / x.norm() - y / y.norm()).norm() for own, other in pairs for x, y in zip(own, other, strict=True)]
        return max(float(max(shapes)), max(scales) / min(scales) - 1), scales[0]

    return agreement


def _parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _torch_loss(targets: Tensor) -> torch.nn.Module:
    """The loss of PyTorch that a user of these libraries would take: classes or real targets."""
    return torch.nn.MSELoss() if targets.is_floating_point() else torch.nn.CrossEntropyLoss()


def _curvlinops_ggn(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> object:
    from curvlinops import GGNLinearOperator

    loss = _torch_loss(targets)
    return GGNLinearOperator(model, loss, _parameters(model), [(inputs, targets)], check_deterministic=False)


def _curvlinops_dense(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Work:
    eye = torch.eye(sum(p.numel() for p in _parameters(model)), dtype=inputs.dtype, device=inputs.device)
    return lambda: _curvlinops_ggn(model, inputs, targets) @ eye


def _curvlinops_natural(model: torch.nn.Module, inputs: Tensor, targets: Tensor, damping: float) -> Work:
    """Its products of the Fisher, in this package's conjugate gradients: only the products differ from our own yardstick."""

    def work() -> Tensor:
        operator = _curvlinops_ggn(model, inputs, targets)
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, _parameters(model))])
        direction, _, _ = cg(lambda v: operator @ v, gradient, damping, tolerance=1e-6, max_steps=1000)
        return ParameterLayout(model).from_torch(direction)

    return work


def _curvlinops_top(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Work:
    """The largest eigenvalue alone by SciPy's Lanczos with its own tolerance, as the documentation does it."""
    from scipy.sparse.linalg import eigsh

    def work() -> Tensor:
        operator = _curvlinops_ggn(model, inputs, targets).to_scipy()
        return torch.as_tensor(eigsh(operator, k=1, which="LA", return_eigenvectors=False)[0])

    return work


def _curvlinops_factors(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Work:
    from curvlinops import KFACLinearOperator

    def work() -> list[tuple[Tensor, Tensor]]:
        operator = KFACLinearOperator(
            model, _torch_loss(targets), _parameters(model), [(inputs, targets)], check_deterministic=False,
            fisher_type="type-2", separate_weight_and_bias=False,
        )  # fmt: skip
        operator.compute_kronecker_factors()
        a, g = operator._input_covariances, operator._gradient_covariances
        return [(g[name], a[name]) for name in a]

    return work


def _nngeometry(model: torch.nn.Module, inputs: Tensor, targets: Tensor, kind: str) -> object:
    from nngeometry import object as representations
    from nngeometry.metrics import FIM

    data = torch.utils.data.TensorDataset(inputs, targets)
    loader = torch.utils.data.DataLoader(data, batch_size=len(inputs))
    variant = "regression" if targets.is_floating_point() else "classif_logits"
    return FIM(model, loader, getattr(representations, kind), variant, device=inputs.device)


def _nngeometry_dense(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Work:
    return lambda: _nngeometry(model, inputs, targets, "PMatDense").to_torch()


def _nngeometry_natural(model: torch.nn.Module, inputs: Tensor, targets: Tensor, damping: float) -> Work:
    """Its implicit products, in this package's conjugate gradients."""
    from nngeometry.layercollection import LayerCollection
    from nngeometry.object import PVector

    def work() -> Tensor:
        matrix, layers = _nngeometry(model, inputs, targets, "PMatImplicit"), LayerCollection.from_model(model)
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, _parameters(model))])

        def product(v: Tensor) -> Tensor:
            return matrix.mv(PVector(layers, vector_repr=v)).to_torch()

        direction, _, _ = cg(product, gradient, damping, tolerance=1e-6, max_steps=1000)
        return ParameterLayout(model).from_torch(direction.detach())

    return work


def _nngeometry_factors(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Work:
    def work() -> list[tuple[Tensor, Tensor]]:
        matrix = _nngeometry(model, inputs, targets, "PMatKFAC")
        return [(g, a) for a, g in matrix.data.values()]

    return work


def _backpack_pass(extension: object, model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> torch.nn.Module:
    from backpack import backpack, extend

    extended, loss = extend(copy.deepcopy(model)), extend(_torch_loss(targets))
    with backpack(extension):
        loss(extended(inputs), targets).backward()
    return extended


def _backpack_dense(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Work:
    from backpack.extensions import SqrtGGNExact

    def work() -> Tensor:
        extended = _backpack_pass(SqrtGGNExact(), model, inputs, targets)
        rows = torch.cat([p.sqrt_ggn_exact.flatten(2) for p in extended.parameters()], dim=2).flatten(0, 1)
        return rows.T @ rows

    return work


def _backpack_factors(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Work:
    """Its KFLR; it keeps weight and bias apart, so the bias column of A is the mean input, taken from the same pass."""
    from backpack.extensions import KFLR

    def work() -> list[tuple[Tensor, Tensor]]:
        extended = _backpack_pass(KFLR(), model, inputs, targets)
        found, seen = [], inputs
        for layer in extended:
            if isinstance(layer, torch.nn.Linear):
                g, a = layer.weight.kflr
                mean = seen.mean(0)[:, None]
                found.append((g, torch.cat([torch.cat([a, mean], 1), torch.cat([mean.T, mean.new_ones(1, 1)], 1)])))
            seen = layer(seen).detach()
        return found

    return work


PEERS: dict[str, dict[str, tuple[str, Callable[..., Work]]]] = {
    "dense": {
        "curvlinops": ("curvlinops", _curvlinops_dense),
        "nngeometry": ("nngeometry", _nngeometry_dense),
        "BackPACK": ("backpack", _backpack_dense),
    },
    "natural": {"curvlinops": ("curvlinops", _curvlinops_natural), "nngeometry": ("nngeometry", _nngeometry_natural)},
    "spectrum": {"curvlinops": ("curvlinops", _curvlinops_top)},
    "factors": {
        "curvlinops": ("curvlinops", _curvlinops_factors),
        "nngeometry": ("nngeometry", _nngeometry_factors),
        "BackPACK": ("backpack", _backpack_factors),
    },
}


def _version(package: str) -> str:
    names = {"curvlinops": "curvlinops-for-pytorch", "backpack": "backpack-for-pytorch"}
    try:
        return version(names.get(package, package))
    except PackageNotFoundError:
        return "(not installed)"
