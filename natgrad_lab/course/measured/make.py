"""Write the JSON files of this folder: `python -m natgrad_lab.course.measured.make [NAME ...]`.

`prong_grid` trains (about five minutes on one core); the others are cut out of the kept reproductions of a checkout.
"""

import json
import statistics
import sys
from collections.abc import Callable

import torch

from natgrad_lab.course.measured import FOLDER
from natgrad_lab.environment import checkout
from natgrad_lab.reproduce import race
from natgrad_lab.reproduce.ledger import kept_results

DAMPINGS, PERIODS, ONCE = (1e-4, 1e-3, 1e-2, 1e-1, 1.0), (1, 10, 100), 10**9
SEEDS, UPDATES = (1, 2, 3), 400
KEPT = "seed", "before", "after", "training", "function change"


def kept(name: str) -> dict:
    """The result of a reproduction at its small scale."""
    return next(each for each in kept_results(checkout())[name] if each["scale"] == "small")


def prong_fig2() -> dict:
    """Conditioning and loss while training, every seed; before and after the first reparametrization."""
    result = kept("prong-fig2")
    return {
        "seeds": [{key: seed[key] for key in KEPT} for seed in result["seeds"]],
        "config": result["config"], "verdict": result["verdict"]["word"],
    }  # fmt: skip


def prong_grid() -> dict:
    """The autoencoder of prong-fig3 with every ε and T at its tuned learning rate; medians over three seeds."""
    result = kept("prong-fig3")
    budget = result["config"] | {"updates": UPDATES}
    settings = {label: each["setting"] for label, each in result["tuned"]["digits"].items()}
    problem = race.load(budget["problems"]["digits"], torch.device("cpu"))
    runs = {label: (budget["entrants"][label], settings[label]) for label in ("sgd", "momentum", "SGD + BatchNorm")}
    for damping in DAMPINGS:
        for period in (*PERIODS, ONCE):
            change = {"lr": settings["PRONG"]["lr"], "damping": damping, "reparametrize_every": period}
            runs[f"{damping:g} {period}"] = (budget["entrants"]["PRONG"], change)
    curves = {}
    for label, (entrant, setting) in runs.items():
        each = [race.race_one(problem, entrant, setting, seed, budget) for seed in SEEDS]
        curves[label] = {
            "updates": each[0]["updates"],
            "errors": [_short(statistics.median(values)) for values in zip(*(one["errors"] for one in each), strict=True)],
            "seconds": [_short(statistics.median(values)) for values in zip(*(one["seconds"] for one in each), strict=True)],
            "last errors": [_short(one["errors"][-1]) for one in each],
        }
        print(label, curves[label]["errors"][-1], flush=True)
    return {"curves": curves, "settings": settings, "seeds": list(SEEDS), "updates": UPDATES}


def races(problem: str, *names: str) -> dict:
    """Curves of reproductions on one problem: entrant → one curve a seed, and the verdicts."""
    found: dict = {"curves": {}, "verdicts": {}, "checks": {}, "settings": {}}
    for name in names:
        result = kept(name)
        found["verdicts"][name] = result["verdict"]["word"]
        found["checks"][name] = result["verdict"]["checks"]
        for entrant in result["seeds"][0]["curves"][problem]:
            found["settings"].setdefault(entrant, result["tuned"][problem][entrant]["setting"])
            found["curves"].setdefault(entrant, [seed["curves"][problem][entrant] for seed in result["seeds"]])
    return found


FILES: dict[str, Callable[[], dict]] = {
    "prong_fig2": prong_fig2,
    "prong_grid": prong_grid,
    "sngd_races": lambda: races("digits", "sngd-batchnorm", "sngd-mnist"),
    "cnn_races": lambda: races("textures", "kfc-cnn", "prong-fig4-cifar"),
}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def main(names: list[str]) -> None:
    """Write the files of these names, or all."""
    for name in names or FILES:
        text = json.dumps(FILES[name](), ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
