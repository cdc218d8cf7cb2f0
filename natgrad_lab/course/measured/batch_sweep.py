"""Steps to a training loss against the batch size, SGD and K-FAC, tuned at each batch size: writes batch_sweep.json.

`python -m natgrad_lab.course.measured.batch_sweep` (about ten minutes on one core). A 64-20-10 tanh network on all 1797
digits, loss on all of them after every step; a run ends where it takes longer than the best one before it.
"""

import json
import math

import torch

from natgrad_lab.course.measured import FOLDER
from natgrad_lab.datasets import digits
from natgrad_lab.likelihoods import Categorical
from natgrad_lab.models import mlp
from natgrad_lab.optimizers import METHODS

BATCHES, TARGET, MOST, SEEDS = tuple(2**k for k in range(3, 11)), 0.1, 3000, (0, 1)
GRIDS = {
    "sgd": [{"lr": lr} for lr in (0.125, 0.25, 0.5, 1.0, 2.0)],
    "kfac": [{"lr": lr, "damping": damping} for damping in (0.1, 0.01) for lr in (0.05, 0.1, 0.2, 0.4, 0.8)],
}


def steps_to(method: str, choice: dict, batch: int, seed: int, most: int) -> float:
    """Steps until the loss on all digits is `TARGET`; ∞ if more than `most`."""
    data = digits(dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    model = mlp((64, 20, 10), generator=generator, dtype=torch.float32)
    optimizer = METHODS[method](model, Categorical(), **choice)
    order = torch.empty(0, dtype=torch.long)
    for step in range(1, most + 1):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(len(data.inputs), generator=generator)])
        now, order = order[:batch], order[batch:]
        optimizer.step(data.inputs[now], data.targets[now])
        with torch.no_grad():
            loss = float(Categorical().nll(model(data.inputs), data.targets).mean())
        if loss <= TARGET:
            return float(step)
        if not math.isfinite(loss):
            break
    return math.inf


def best_of(method: str, batch: int, most: float, first: dict | None) -> tuple[float, dict | None]:
    """(total steps over seeds, choice) of the best choice, `first` tried first; (`most`, None) if none needs fewer."""
    best, chosen = most, None
    for choice in sorted(GRIDS[method], key=lambda choice: choice != first):
        total = 0.0
        for seed in SEEDS:
            total += steps_to(method, choice, batch, seed, int(best - total))
            if total >= best:
                break
        if total < best:
            best, chosen = total, choice
    return best, chosen


def sweep(method: str) -> tuple[list[float], list[dict]]:
    """Mean steps and choices at `BATCHES`. From the largest on: half the batch is given at most four times the steps."""
    steps, choices, most, first = [], [], float(MOST * len(SEEDS)), None
    for batch in reversed(BATCHES):
        total, first = best_of(method, batch, most, first)
        steps.insert(0, total / len(SEEDS))
        choices.insert(0, first)
        most = 4 * total
        print(method, batch, steps[0], first, flush=True)
    return steps, choices


def main() -> None:
    """Measure both methods and write the file."""
    found = {method: sweep(method) for method in GRIDS}
    kept = {"batches": BATCHES, "target": TARGET, "seeds": SEEDS, "grids": GRIDS}
    kept |= {"steps": {m: each[0] for m, each in found.items()}, "best": {m: each[1] for m, each in found.items()}}
    (FOLDER / "batch_sweep.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
