"""Training races: equal trials, one tuning seed, the clock, ratios; and every registered race run once at a tiny size."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from natgrad_lab import datasets
from natgrad_lab.plots.reproduce_race import median_curve, race_colours
from natgrad_lab.reproduce import REPRODUCTIONS, Scale, Work, race, reproduce
from natgrad_lab.reproduce.race_networks import NETWORKS, normalized, sparsely
from natgrad_lab.reproduce.race_results import at_equal_updates, at_most, below, ratios, reaches, seconds_per_update

RACES = [name for name, each in REPRODUCTIONS.items() if "entrants" in each.scales["small"].config]
TINY = {"updates": 3, "seconds": 60, "evaluations": 4, "evaluate_examples": 20}


def curve(errors, updates=None, seconds=None):
    steps = list(range(len(errors))) if updates is None else updates
    return {"updates": steps, "seconds": seconds or [float(s) for s in steps], "errors": errors, "status": "ok"}


def seed(**curves):
    return {"curves": {"p": curves}}


# ---- numbers of a race


def test_reaching_a_target_is_the_first_checkpoint_at_or_below_it():
    one = curve([5.0, 4.0, 2.0, 3.0], updates=[0, 1, 10, 100], seconds=[0.0, 0.5, 1.5, 9.0])
    assert reaches(one, 4.0) == 1 and reaches(one, 2.5) == 10 and reaches(one, 2.5, "seconds") == 1.5
    assert reaches(one, 1.0) == math.inf
    assert reaches(curve([5.0, None]), 1.0) == math.inf


def test_ratios_compare_with_the_baselines_own_way_to_its_final_error():
    base = curve([9.0, 3.0, 2.0, 3.0], updates=[0, 10, 20, 40])  # its final error, 3, it had after 10 updates
    ours = curve([9.0, 3.0, 1.0], updates=[0, 2, 4])
    assert ratios([seed(a=ours, b=base)], "p", "a", "b") == [0.2]
    assert ratios([seed(a=curve([9.0, 8.0]), b=base)], "p", "a", "b") == [math.inf]
    assert ratios([seed(a=ours, b=curve([9.0, None]))], "p", "a", "b") == [0.0]
    assert ratios([seed(a=curve([9.0, 1.0, None]), b=base)], "p", "a", "b") == [math.inf]  # there, but not for long
    assert ratios([seed(a=curve([9.0, None]), b=curve([9.0, None]))], "p", "a", "b") == [math.inf]


def test_errors_at_equal_updates_are_those_of_the_last_shared_checkpoint():
    ours = curve([9.0, 4.0, 2.0], updates=[0, 10, 20])  # out of time at 20
    base = curve([9.0, 8.0, 4.0, 1.0], updates=[0, 10, 20, 40])
    assert at_equal_updates([seed(a=ours, b=base)], "p", "a", "b") == [0.5]
    assert at_equal_updates([seed(a=base, b=ours)], "p", "a", "b") == [2.0]
    assert at_equal_updates([seed(a=curve([9.0, None]), b=base)], "p", "a", "b") == [math.inf]
    assert at_equal_updates([seed(a=ours, b=curve([9.0, None]))], "p", "a", "b") == [0.0]


def test_cost_of_an_update():
    ours, base = curve([1.0, 1.0], [0, 10], [0.0, 5.0]), curve([1.0, 1.0], [0, 100], [0.0, 10.0])
    assert seconds_per_update([seed(a=ours, b=base)], "p", "a", "b") == [5.0]


@pytest.mark.parametrize(
    "values, at, under",
    [([1.0] * 5, True, False), ([0.5] * 4 + [9.0], True, True), ([0.5] * 3 + [9.0] * 2, False, False), ([], False, False)],
)
def test_four_of_five_seeds_are_enough(values, at, under):
    assert at_most("x", values, 1.0).passed is at and below("x", values, 1.0).passed is under


def test_medians_are_taken_where_all_seeds_have_a_checkpoint():
    curves = [curve([4.0, 2.0, 1.0], [0, 5, 10], [0.0, 1.0, 2.0]), curve([6.0, 4.0], [0, 5], [0.0, 3.0])]
    assert median_curve(curves, "updates") == ([0, 5], [5.0, 3.0]) and median_curve(curves, "seconds")[0] == [0.0, 2.0]
    diverged = median_curve([curve([4.0, None]), curve([4.0, None])], "updates")[1]
    assert diverged[0] == 4.0 and math.isnan(diverged[1])


def test_every_entrant_has_a_colour_of_its_own():
    for name in RACES:
        labels = list(REPRODUCTIONS[name].scales["small"].config["entrants"])
        assert len(set(race_colours(labels).values())) == len(labels)


# ---- the race itself


def blobs(**choices):
    problem = {"dataset": "gaussian_blobs", "likelihood": "categorical", "batch_size": 20, "data": {"num_examples": 60},
               "network": {"kind": "mlp", "hidden": (4,)}}  # fmt: skip
    grid = [{"lr": 0.3}, {"lr": 1e-6}]
    entrants = {"sgd": {"method": "sgd", "grid": grid}, "kfac": {"method": "kfac", "grid": grid[::-1]}}
    return TINY | {"updates": 12, "measure": "loss", "problems": {"blobs": problem}, "entrants": entrants} | choices


def problem_of(config):
    return race.load(config["problems"]["blobs"], torch.device("cpu"))


def work(config, keep=lambda key, make: make(), **choices):
    return Work(config, torch.device("cpu"), keep, **choices)


def test_the_better_setting_is_chosen_on_the_tuning_seed_alone(monkeypatch):
    seeds, one = [], race.race_one
    monkeypatch.setattr(race, "race_one", lambda p, e, s, seed, budget: seeds.append(seed) or one(p, e, s, seed, budget))
    tuned = race.tune(work(blobs()))
    assert {label: each["setting"]["lr"] for label, each in tuned["blobs"].items()} == {"sgd": 0.3, "kfac": 0.3}
    assert seeds == [race.TUNING_SEED] * 4 and [len(each["trials"]) for each in tuned["blobs"].values()] == [2, 2]
    found = race.run(3, work(blobs(), tuned=tuned))["curves"]["blobs"]
    assert seeds[4:] == [3, 3]
    for each in found.values():
        assert each["updates"][0] == 0 and each["updates"][-1] == 12 and each["errors"][-1] < 0.9 * each["errors"][0]
        assert each["seconds"] == sorted(each["seconds"]) and each["status"] == "ok"


def test_unequal_trials_are_refused():
    config = blobs()
    config["entrants"]["kfac"]["grid"] = [{"lr": 0.1}]
    with pytest.raises(ValueError, match="same number of settings.*'sgd': 2, 'kfac': 1"):
        race.tune(work(config))


def test_the_same_seed_gives_the_same_errors_and_another_seed_others():
    config = blobs()
    problem = problem_of(config)
    runs = [race.race_one(problem, config["entrants"]["kfac"], {"lr": 0.3}, each, config)["errors"] for each in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_a_run_that_diverges_ends_and_says_so():
    config = blobs(updates=400)
    problem = problem_of(config)
    entrant = {"method": "sgd"}
    found = race.race_one(problem, entrant, {"lr": 1e300}, 1, config)
    assert found["status"].startswith("diverged at update") and found["errors"][-1] == math.inf
    assert found["updates"][-1] < 400


def test_time_is_up_between_steps_and_the_last_checkpoint_is_measured():
    config = blobs(seconds=0)
    found = race.race_one(problem_of(config), {"method": "sgd"}, {"lr": 0.1}, 1, config)
    assert found["status"] == "out of time" and found["updates"] == [0, 1]


def test_evaluating_is_outside_the_clock(monkeypatch):
    config, now = blobs(updates=4, evaluations=4), [0.0]
    monkeypatch.setattr(race, "_clock", lambda device: lambda: now[0])

    def slow_measure(*given):
        now[0] += 1000.0
        return 1.0

    monkeypatch.setattr(race, "measure", slow_measure)
    found = race.race_one(problem_of(config), {"method": "sgd"}, {"lr": 0.1}, 1, config)
    assert found["seconds"][-1] == 0.0


def test_every_step_is_inside_the_clock(monkeypatch):
    config, looks = blobs(updates=4, evaluations=4), itertools.count()
    monkeypatch.setattr(race, "_clock", lambda device: lambda: float(next(looks)))  # one second from look to look
    found = race.race_one(problem_of(config), {"method": "sgd"}, {"lr": 0.1}, 1, config)
    assert found["seconds"] == [float(step) for step in found["updates"]]


@pytest.mark.parametrize("updates, evaluations", [(1, 4), (3, 4), (1000, 24), (20_000, 40), (7, 2)])
def test_checkpoints_end_with_the_last_update(updates, evaluations):
    marks = race.checkpoints(updates, evaluations)
    assert updates in marks and min(marks) >= 1 and len(marks) <= evaluations + 1


# ---- the networks


def test_batch_normalization_stands_between_the_same_layers():
    data = datasets.gaussian_blobs(12)
    plain, with_norm = (NETWORKS["mlp"](data, 1, norm, hidden=(5, 4)) for norm in (False, True))
    assert [type(each).__name__ for each in with_norm] == [
        "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear",
    ]  # fmt: skip
    linear = [[each.weight for each in net if isinstance(each, nn.Linear)] for net in (plain, with_norm)]
    assert all(torch.equal(a, b) for a, b in zip(*linear, strict=True))
    pictures = datasets.textures(8)
    kinds = [type(each).__name__ for each in NETWORKS["convnet"](pictures, 1, True, channels=(3, 2))]
    assert kinds.count("BatchNorm2d") == 2
    assert normalized(nn.Sequential(nn.Linear(3, 2)))[-1].out_features == 2  # the last layer stays bare


def test_sparse_weights():
    layer = nn.Linear(20, 7)
    sparsely(layer, 15, torch.Generator().manual_seed(0))
    assert ((layer.weight != 0).sum(1) == 15).all() and not layer.bias.any()
    small = nn.Linear(4, 3)
    sparsely(small, 15, torch.Generator().manual_seed(0))
    assert (small.weight != 0).all()


# ---- every race that is registered, once, at a tiny size


def tiny(name):
    """The small scale with three updates, one trial, twenty examples."""
    each = REPRODUCTIONS[name]
    config = {**each.scales["small"].config, **TINY}
    config["entrants"] = {label: {**e, "grid": e["grid"][:1]} for label, e in config["entrants"].items()}
    config["problems"] = {label: {**p, "num_examples": 40, "batch_size": 20} for label, p in config["problems"].items()}
    return dataclasses.replace(each, scales={"small": Scale(config, "tiny")}, min_seeds=1)


def stand_in(name, **options):
    """A few random examples in the form of the data sets that would be downloaded; the others themselves."""
    generator = torch.Generator().manual_seed(0)
    if name == "penn_treebank":
        words = torch.randint(7, (40, 6), generator=generator)
        return datasets.Dataset(name, words[:, :-1].clone(), words[:, 1:].clone(), tuple("abcdefg"))
    shape = {"mnist": (28, 28), "faces": (25, 25), "cifar10": (3, 32, 32)}.get(name)
    if shape is None:
        return datasets.DATASETS[name](**options)
    pictures = torch.rand(40, math.prod(shape), generator=generator)
    return datasets.Dataset(name, pictures, torch.arange(40) % 10, tuple("0123456789"), shape)


@pytest.mark.parametrize("name", RACES)
def test_every_race_runs_is_judged_and_drawn(name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load", stand_in)
    each = tiny(name)
    ticks = []
    result = reproduce(each, tmp_path, num_seeds=1, tick=ticks.append)
    config = each.scales["small"].config
    assert len(ticks) == each.pieces(config, 1) + 2  # the tuning and the seed besides
    for curves in result.seeds[0]["curves"].values():
        assert set(curves) == set(config["entrants"])
        for found in curves.values():
            assert found["updates"][-1] == 3 and found["status"] == "ok", found
    assert result.verdict.checks and result.figures()[name].data
