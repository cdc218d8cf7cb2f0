"""Write autoencoder_races.json and kfac_parts.json: `python -m natgrad_lab.course.measured.autoencoders [NAME ...]`.

`autoencoder_races`: one budget of CPU seconds on two autoencoders, four methods, each tuned with three settings on one seed
and run on three others. `kfac_parts`: K-FAC's algorithm on the smaller one, whole and with one part taken away or changed.
Each takes a few minutes on one core. `kept_races` cuts the kept reproductions down to what is drawn.
"""

import json
import sys
from collections.abc import Callable

import torch

from natgrad_lab.course.measured import FOLDER
from natgrad_lab.environment import checkout
from natgrad_lab.experiments.training import Training
from natgrad_lab.optimizers import METHODS
from natgrad_lab.optimizers.online_ngd import root_inverse
from natgrad_lab.reproduce import race
from natgrad_lab.reproduce.base import Work
from natgrad_lab.reproduce.ledger import kept_results

SEEDS = (1, 2, 3)
PROBLEMS = {
    "digits": {
        "dataset": "digits", "likelihood": "bernoulli", "batch_size": 500,
        "network": {"kind": "autoencoder", "sizes": (48, 24, 8), "activation": "sigmoid", "sparse": 15},
    },
    "curves": {
        "dataset": "curves", "data": {"num_examples": 2000, "size": 16, "margin": 3.0}, "likelihood": "bernoulli",
        "batch_size": 500, "network": {"kind": "autoencoder", "sizes": (120, 60, 30, 6), "activation": "sigmoid", "sparse": 15},
    },
}  # fmt: skip
RACE = {
    "entrants": {
        "momentum": {"method": "momentum", "grid": [{"lr": lr, "momentum": 0.9} for lr in (0.3, 0.1, 0.03)]},
        "adam": {"method": "adam", "grid": [{"lr": lr} for lr in (3e-2, 1e-2, 3e-3)]},
        "online NG": {
            "method": "online_ngd",
            "grid": [{"lr": lr, "damping": d} for lr, d in ((1.0, 1.0), (0.3, 0.1), (0.3, 1.0))],
        },
        "K-FAC": {
            "method": "kfac_adaptive", "fixed": {"weight_decay": 1e-5}, "grid": [{"damping": d} for d in (0.1, 1.0, 10.0)],
        },
    },
    "problems": PROBLEMS, "measure": "error", "updates": 3000, "seconds": 4.0, "evaluations": 40, "evaluate_examples": 1000,
}  # fmt: skip
PARTS = {  # label → changes of kfac_adaptive; "even" takes π away
    "the whole algorithm": {},
    "no momentum (μ = 0)": {"quadratic": {"momentum": False}},
    "no rescaling (α = 1, μ = 0)": {"quadratic": {"rescale": False}},
    "no π (√λ on both)": {"even": True},
    "λ and γ fixed": {"levenberg": None, "gamma_search": None},
    "labels of the data": {"fisher_type": "empirical"},
    "no running averages": {"ema_decay": 0.0},
    "inverses at every update": {"invert_every": 1},
    "block-tridiagonal": {"blocks": "tridiagonal"},
}
PART_UPDATES, LOOK_EVERY = 120, 10


def autoencoder_races() -> dict:
    """Curves of every seed, and what tuning tried."""
    work = Work(RACE, torch.device("cpu"), lambda key, make: _said(key, make()))
    work = Work(RACE, work.device, work.keep, race.tune(work))
    seeds = [{"seed": seed} | race.run(seed, work) for seed in SEEDS]
    return _short({"seeds": seeds, "tuned": work.tuned, "budget": {"seconds": RACE["seconds"], "updates": RACE["updates"]}})


def kfac_parts() -> dict:
    """Errors and CPU seconds of every variant, and of tuned momentum for the same number of updates."""
    problem = race.load(PROBLEMS["digits"], torch.device("cpu"))
    look = {"measure": "error", "evaluate_examples": 1000, "updates": PART_UPDATES, "seconds": 1e9, "evaluations": 24}
    found = {label: [_part_curve(problem, changes, seed, look) for seed in SEEDS] for label, changes in PARTS.items()}
    entrant = RACE["entrants"]["momentum"]
    tried = {
        json.dumps(setting): race.race_one(problem, entrant, setting, 0, look)["errors"][-1] for setting in entrant["grid"]
    }
    best = json.loads(min(tried, key=lambda each: float("inf") if tried[each] is None else tried[each]))
    found["momentum"] = [race.race_one(problem, entrant, best, seed, look) for seed in SEEDS]
    return _short({"curves": found, "updates": PART_UPDATES})


def _part_curve(problem: race.Problem, changes: dict, seed: int, look: dict) -> dict:
    model = problem.make(seed, False).train()
    even = changes.get("even")
    rest = {name: value for name, value in changes.items() if name != "even"}
    optimizer = METHODS["kfac_adaptive"](model, problem.likelihood, damping=1.0, weight_decay=1e-5, seed=seed, **rest)
    if even:
        layers = sum(isinstance(each, torch.nn.Linear) for each in model)
        optimizer.invert = lambda fisher, damping: root_inverse(fisher, damping).map(lambda t: t * layers**0.5)
    training = Training(model, problem.likelihood, problem.inputs, problem.targets, optimizer, problem.batch_size, seed)
    clock, used, status = race._clock(torch.device("cpu")), 0.0, "ok"
    curve = {"updates": [0], "seconds": [0.0], "errors": [race.measure(model, problem, look)]}
    for step in range(PART_UPDATES):
        batch = training.batch(step)
        started = clock()
        failed = race._failed_step(optimizer, *batch)
        used += clock() - started
        if failed or (step + 1) % LOOK_EVERY == 0:
            error = None if failed else race.measure(model, problem, look)
            for name, value in (("updates", step + 1), ("seconds", used), ("errors", error)):
                curve[name].append(value)
        if failed:
            status = f"diverged at update {step + 1}"
            break
    return _said(str(changes), curve | {"status": status})


def kept_races() -> dict:
    """The kept races of autoencoders: curves of every seed, the verdict, what tuning tried."""
    found = {}
    for name, scale in (("kfac-autoencoder", "mnist"), ("online-ngd-autoencoder", "small"), ("prong-fig3", "small")):
        result = next(each for each in kept_results(checkout())[name] if each["scale"] == scale)
        (problem,) = result["tuned"]
        found[name] = {
            "curves": {
                label: [seed["curves"][problem][label] for seed in result["seeds"]] for label in result["tuned"][problem]
            },
            "tuned": result["tuned"][problem], "verdict": result["verdict"]["word"], "scale": scale,
        }  # fmt: skip
    return _short(found)


FILES: dict[str, Callable[[], dict]] = {
    "autoencoder_races": autoencoder_races, "kfac_parts": kfac_parts, "kept_races": kept_races,
}  # fmt: skip


def _said(what: str, curve: dict) -> dict:
    print(what, curve["updates"][-1], f"{curve['seconds'][-1]:.2f} s", curve["errors"][-1], curve["status"], flush=True)
    return curve


def _short(value):
    """Numbers of four digits, through lists and dicts; what is not finite becomes None."""
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_short(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if abs(value) < float("inf") else None
    return value


def main(names: list[str]) -> None:
    """Write the files of these names, or all."""
    for name in names or FILES:
        text = json.dumps(FILES[name](), ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
