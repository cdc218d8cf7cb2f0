"""PRONG on a deep autoencoder: eps, the period T, updates and time. [Desjardins2015] figure 3."""

import statistics
from collections.abc import Sequence

from natgrad_lab.reproduce import race
from natgrad_lab.reproduce.base import Check, Scale, Work, span
from natgrad_lab.reproduce.race_results import OF_SEEDS, at_most, below, final_errors, or_inf, ratios

FEWER, NO_SLOWER = 0.5, 1.0  # updates, and seconds, to SGD-momentum's final error, against its own
TREND = 2.0  # spread of the medians over eps or T, in standard errors of a median: below it there is no trend
DAMPINGS, PERIODS, ONCE = (1e-4, 1e-3, 1e-2, 1e-1, 1.0), (10, 100, 1000), 10**9  # once: whitened at the start alone


def run(seed: int, work: Work) -> dict:
    """The race, and PRONG at its tuned learning rate with other eps and other T."""
    found = race.run(seed, work)
    sweeps: dict[str, dict] = {}
    for name, config in work.config["problems"].items():
        setting = work.tuned[name]["PRONG"]["setting"]
        variants = {f"ε = {eps:g}": {"damping": eps} for eps in work.config["dampings"]}
        variants |= {f"T = {period:g}": {"reparametrize_every": period} for period in (*work.config["periods"], ONCE)}
        loaded: list[race.Problem] = []
        sweeps[name] = {}
        for label, change in variants.items():
            entrant = work.config["entrants"]["PRONG"]

            def one(change: dict = change, config: dict = config, entrant: dict = entrant, setting: dict = setting,
                    loaded: list = loaded) -> dict:  # fmt: skip
                loaded or loaded.append(race.load(config, work.device))
                return race.race_one(loaded[0], entrant, {**setting, **change}, seed, work.config)

            curve = work.keep(f"seed-{seed}-{name}-{label}".replace(" ", ""), one)
            sweeps[name][label] = {"error": curve["errors"][-1], "updates": curve["updates"][-1], "status": curve["status"]}
    return found | {"sweeps": sweeps}


def pieces(config: dict, num_seeds: int) -> int:
    """Those of the race and of the sweeps."""
    sweeps = len(config["problems"]) * (len(config["dampings"]) + len(config["periods"]) + 1) * num_seeds
    return race.pieces(config, num_seeds) + sweeps


def judge(seeds: Sequence[dict]) -> list[Check]:
    """The four panels on every problem."""
    checks = []
    for problem in seeds[0]["curves"]:
        checks += [_trend(seeds, problem), _order(seeds, problem), _once(seeds, problem)]
        fewer, seconds = (ratios(seeds, problem, "PRONG", "momentum", axis) for axis in ("updates", "seconds"))
        text = f"{problem} (c): PRONG reaches the final training error of SGD with momentum in ≤ {FEWER:g} of its updates"
        checks.append(at_most(text, fewer, FEWER))
        checks.append(at_most(f"{problem} (d): and in ≤ {NO_SLOWER:g} of its seconds", seconds, NO_SLOWER))
    return checks


def swept(seeds: Sequence[dict], problem: str, label: str) -> list[float]:
    """Final errors of one variant, inf where it diverged."""
    return [or_inf(seed["sweeps"][problem][label]["error"]) for seed in seeds]


def _labels(seeds: Sequence[dict], problem: str, start: str) -> list[str]:
    return [label for label in seeds[0]["sweeps"][problem] if label.startswith(start)]


def _trend(seeds: Sequence[dict], problem: str) -> Check:
    """(a) ε matters: the medians differ by more than chance, and the best is named."""
    labels = _labels(seeds, problem, "ε")
    errors = {label: swept(seeds, problem, label) for label in labels}
    medians = {label: statistics.median(each) for label, each in errors.items()}
    finite = [label for label in labels if max(errors[label]) < float("inf")]
    text = f"{problem} (a): ε matters: best and worst median differ by > {TREND:g} standard errors, or ε makes it diverge"
    if len(finite) < 2:
        return Check(text, "only one ε or none that does not diverge", len(finite) == 1)
    best, worst = min(finite, key=medians.get), max(finite, key=medians.get)
    noise = max(statistics.stdev(errors[label]) if len(seeds) > 1 else 0.0 for label in (best, worst)) / len(seeds) ** 0.5
    passed = medians[worst] - medians[best] > TREND * noise or len(finite) < len(labels)
    shown = ", ".join(f"{label[4:]}: {medians[label]:.3g}" for label in labels)
    return Check(text, f"median errors {shown}; best {best}", passed)


def _order(seeds: Sequence[dict], problem: str) -> Check:
    """(b) the shorter T, the lower the error."""
    labels = [label for label in _labels(seeds, problem, "T") if label != f"T = {ONCE:g}"]
    medians = [statistics.median(swept(seeds, problem, label)) for label in labels]
    shown = ", ".join(f"{label}: {median:.3g}" for label, median in zip(labels, medians, strict=True))
    text = f"{problem} (b): the shorter T, the lower the final error (medians in order)"
    return Check(text, shown, medians == sorted(medians))


def _once(seeds: Sequence[dict], problem: str) -> Check:
    """(b) whitening at the start alone beats none."""
    ours, plain = swept(seeds, problem, f"T = {ONCE:g}"), final_errors(seeds, problem, "sgd")
    values = [a / b if b < float("inf") else 0.0 for a, b in zip(ours, plain, strict=True)]
    beside = f"; errors {span(ours)} and {span(plain)}"
    return below(f"{problem} (b): whitened at the start alone, error against tuned SGD's without, < 1", values, 1.0, beside)


LRS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
ENTRANTS = {
    "sgd": {"method": "sgd", "grid": [{"lr": lr} for lr in LRS]},
    "momentum": {"method": "momentum", "grid": [{"lr": lr, "momentum": 0.9} for lr in LRS]},
    "SGD + BatchNorm": {"method": "momentum", "batch_norm": True, "grid": [{"lr": lr, "momentum": 0.9} for lr in LRS]},
    "PRONG": {
        "method": "prong", "fixed": {"momentum": 0.9, "reparametrize_every": 20},
        "grid": [{"lr": lr, "damping": eps} for lr in (0.1, 0.03, 0.01) for eps in (1.0, 1e-1)],
    },
}  # fmt: skip
RACE = {"entrants": ENTRANTS, "measure": "error", "dampings": DAMPINGS, "periods": PERIODS}

PRONG_FIG3 = race.race_reproduction(
    name="prong-fig3",
    title="How do ε and T, and whitening at the start, change PRONG on an autoencoder?",
    claim="On a deep MNIST autoencoder PRONG needs fewer updates and less time than SGD and batch normalization; ε regularizes "
    "it, shorter periods help, and whitening at initialization matters.",
    source="[Desjardins2015] fig. 3",
    criterion=f"(a) the medians over ε differ by more than {TREND:g} standard errors or ε makes it diverge; (b) final errors "
    f"in the order of T, and whitening once beats tuned SGD; (c) SGD-momentum's final training error in ≤ {FEWER:g} of its "
    f"updates and (d) ≤ {NO_SLOWER:g} of its seconds; where seeds are counted, in {OF_SEEDS:.0%} of them. RMSprop is not tried",
    judge=judge,
    scales={
        "small": Scale(
            RACE
            | {
                "updates": 1000, "seconds": 10, "evaluations": 24, "evaluate_examples": 1000,
                "problems": {
                    "digits": {"dataset": "digits", "likelihood": "bernoulli", "batch_size": 100,
                               "network": {"kind": "autoencoder", "sizes": (48, 24, 8), "activation": "sigmoid",
                                           "sparse": 15}},
                },
            },
            "8 x 8 digits, autoencoder 64-48-24-8-24-48-64, instead of MNIST and 784-1000-500-250-30",
        ),
        "full": Scale(
            RACE
            | {
                "updates": 20_000, "seconds": 1200, "evaluations": 40, "evaluate_examples": 10_000,
                "problems": {
                    "MNIST": {"dataset": "mnist", "likelihood": "bernoulli", "batch_size": 64,
                              "network": {"kind": "autoencoder", "sizes": (1000, 500, 250, 30), "activation": "sigmoid",
                                          "sparse": 15}},
                },
            },
        ),
    },
    run=run,
    pieces=pieces,
)  # fmt: skip
