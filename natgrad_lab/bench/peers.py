"""The same objects from other libraries, where they are installed: first checked equal, then timed in one run.

Each peer's number is multiplied by a stated convention factor before it is compared; a peer that then differs is not timed,
and its row says by how much it is off.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch

from natgrad_lab.bench.timing import BenchRow, BenchTable, interleaved, problem, table, threads_of
from natgrad_lab.experiments.training import find_device
from natgrad_lab.fisher import dense_fisher
from natgrad_lab.likelihoods import Categorical
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Tensor

_EQUAL = 1e-4  # relative, in float32


def peers(
    sizes: Sequence[int] = (64, 32, 32, 10), num_examples: int = 512, *, rounds: int = 3, threads: int = 1, device: str = "cpu"
) -> BenchTable:
    """Time the dense exact Fisher of a classifier beside curvlinops, nngeometry and BackPACK (`pip install -e .[peers]`).

    The yardstick is ours. Peers' matrices are in PyTorch's order; ours is converted, which is not timed. All of them give
    the mean over examples of JᵀΛJ for `CrossEntropyLoss()`, so the convention factor is 1 for each.
    """
    with threads_of(threads):
        where = find_device(device)
        model, inputs, targets = problem(sizes, num_examples, where)
        layout = ParameterLayout(model)
        ours = layout.to_torch(layout.to_torch(dense_fisher(model, Categorical(), inputs).to_dense()).T)
        cases: dict[str, Callable[[], object]] = {"natgrad_lab": lambda: dense_fisher(model, Categorical(), inputs)}
        left_out, notes = [], {}
        for name, (package, make) in PEERS.items():
            case = f"{name} {_version(package)}"
            try:
                import_module(package)
                work = make(model, inputs, targets)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the peer's own deprecations
                    error = float((work() - ours).norm() / ours.norm())
            except Exception as problem_met:  # a peer may fail in any way; its row says how
                first = (str(problem_met).splitlines() or [""])[0][:80]
                left_out.append(BenchRow(case, float("nan"), float("nan"), 0, f"{type(problem_met).__name__}: {first}"))
                continue
            if not error < _EQUAL:
                left_out.append(BenchRow(case, float("nan"), float("nan"), 0, f"not equal, off by {error:.1e}: not timed"))
                continue
            cases[case], notes[case] = work, f"convention factor 1, equal to {error:.0e}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measured = interleaved(cases, rounds, where)
        title = f"dense exact Fisher beside other libraries, {'-'.join(map(str, sizes))}, N = {num_examples}"
        done = table(title, where, threads, measured, notes)
        return replace(done, rows=done.rows + tuple(left_out))


def _curvlinops(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], Tensor]:
    from curvlinops import GGNLinearOperator

    parameters = [p for p in model.parameters() if p.requires_grad]
    eye = torch.eye(sum(p.numel() for p in parameters), dtype=inputs.dtype, device=inputs.device)

    def work() -> Tensor:
        loss = torch.nn.CrossEntropyLoss()
        return GGNLinearOperator(model, loss, parameters, [(inputs, targets)], check_deterministic=False) @ eye

    return work


def _nngeometry(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], Tensor]:
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDense

    data = torch.utils.data.TensorDataset(inputs, targets)
    loader = torch.utils.data.DataLoader(data, batch_size=len(inputs))

    def work() -> Tensor:
        options = {"model": model, "loader": loader, "representation": PMatDense, "device": inputs.device}
        matrix = FIM(**options, variant="classif_logits", n_output=model[-1].out_features)
        return matrix.get_dense_tensor() if hasattr(matrix, "get_dense_tensor") else matrix.to_torch()

    return work


def _backpack(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], Tensor]:
    import copy

    from backpack import backpack, extend
    from backpack.extensions import SqrtGGNExact

    extended, loss = extend(copy.deepcopy(model)), extend(torch.nn.CrossEntropyLoss())

    def work() -> Tensor:
        extended.zero_grad()
        with backpack(SqrtGGNExact()):
            loss(extended(inputs), targets).backward()
        rows = torch.cat([p.sqrt_ggn_exact.flatten(2) for p in extended.parameters()], dim=2).flatten(0, 1)
        return rows.T @ rows

    return work


PEERS: dict[str, tuple[str, Callable]] = {
    "curvlinops": ("curvlinops", _curvlinops),
    "nngeometry": ("nngeometry", _nngeometry),
    "BackPACK": ("backpack", _backpack),
}


def _version(package: str) -> str:
    names = {"curvlinops": "curvlinops-for-pytorch", "backpack": "backpack-for-pytorch"}
    try:
        return version(names.get(package, package))
    except PackageNotFoundError:
        return "(not installed)"
