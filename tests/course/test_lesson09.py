"""The numbers of lesson 09's cards, by a second way; the files they read are those of the reproductions."""

import json
import math
import statistics

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from natgrad_lab import environment, models
from natgrad_lab.course.cards import lesson09 as lesson
from natgrad_lab.course.measured import measured


@pytest.mark.parametrize("name, file, baseline, entrant", [
    ("MNIST, K-FAC", "kfac-autoencoder@mnist", "momentum", "K-FAC"),
    ("digits, online NG", "online-ngd-autoencoder", "sgd", "online natural gradient"),
    ("digits, PRONG", "prong-fig3", "momentum", "PRONG"),
])  # fmt: skip
def test_races_are_those_of_the_kept_reproductions(name, file, baseline, entrant):
    kept = json.loads((environment.checkout() / "benchmarks" / "reproduce" / f"{file}.json").read_text(encoding="utf-8"))
    (problem,) = kept["tuned"]
    assert measured("kept_races")[lesson.RACES[name][1]]["verdict"] == kept["verdict"]["word"]
    for axis in lesson.AXES:
        found = []
        for seed in kept["seeds"]:
            ours, theirs = seed["curves"][problem][entrant], seed["curves"][problem][baseline]
            target = theirs["errors"][-1]
            own = next(at for at, error in zip(theirs[axis], theirs["errors"], strict=True) if error <= target)
            reached = [
                at for at, error in zip(ours[axis], ours["errors"], strict=True) if error is not None and error <= target
            ]
            found.append(reached[0] / own if reached else math.inf)
        assert list(lesson.needs(name, axis)) == pytest.approx(found, rel=2e-3)  # kept with four digits


def test_every_part_is_compared_with_the_whole_of_its_own_seed():
    curves = measured("kfac_parts")["curves"]
    assert lesson.part_error(lesson.WHOLE) == statistics.median(each["errors"][-1] for each in curves[lesson.WHOLE])
    assert set(lesson.PARTS) == set(curves) - {lesson.WHOLE, "momentum"} and len(lesson.PARTS) >= 7
    for label in lesson.PARTS:
        last = [
            mine["errors"][-1] / whole["errors"][-1] for mine, whole in zip(curves[label], curves[lesson.WHOLE], strict=True)
        ]
        assert lesson.part_ratios(label) == pytest.approx(last) and all(0 < each < 10 for each in last)


def test_gradients_cost_what_torch_counts():
    width, batch = 48, 20
    model = models.mlp((width,) * 4, "tanh", dtype=torch.float64)
    inputs = torch.randn(batch, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(inputs).sum().backward()
    assert counter.get_total_flops() == lesson.cost((width,) * 4, batch, 1)["gradient"]


def test_factors_and_direction_cost_what_torch_counts():
    a, b, batch = 12, 7, 30
    X, S, V = (torch.zeros(*shape, dtype=torch.float64) for shape in ((batch, a), (batch, b), (b, a)))
    phases = lesson.cost((a, b), batch, 4)
    with FlopCounterMode(display=False) as counter:
        A, G = X.mT @ X, S.mT @ S
    assert counter.get_total_flops() == phases["factors"]
    with FlopCounterMode(display=False) as counter:
        G @ V @ A
    assert counter.get_total_flops() == phases["direction"]
    assert (
        phases["inverses"] == (2 * a**3 + 2 * b**3) / 4 and lesson.cost((a, b), batch, 1)["inverses"] == 4 * phases["inverses"]
    )


def test_counted_and_timed_updates_agree_to_a_factor_of_two():
    curves = measured("kept_races")["kfac-autoencoder"]["curves"]
    each = [
        statistics.median(run["seconds"][-1] / run["updates"][-1] for run in curves[name]) for name in ("K-FAC", "momentum")
    ]
    counted = lesson.relative_cost((784, 1000, 500, 250, 30, 250, 500, 1000, 784), 500, 20)
    assert 0.5 < counted / (each[0] / each[1]) < 2


def test_the_live_race_trains_all_three():
    result = lesson.LIVE_RACE.result({"seconds": 0.5, "network": "64-16-4"})
    for (curve,) in result["curves"].values():
        assert curve["status"] in ("ok", "out of time") and curve["errors"][-1] < curve["errors"][0]
        assert curve["seconds"] == sorted(curve["seconds"]) and curve["seconds"][-1] >= 0.5
