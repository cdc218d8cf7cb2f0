"""Grids and races: every combination once, each in a folder of its own, interrupted and gone on with."""

import math
from dataclasses import replace

import pytest

from natgrad_lab.experiments import Evaluation, ExperimentConfig, Outcome, StepRecord, best, grid, race, run, sweep

TINY = ExperimentConfig(
    dataset="gaussian_blobs", sizes=(2, 4, 3), num_examples=30, steps=5, method="sgd", lr=0.1, dtype="float64", device="cpu",
    evaluate_every=5,
)  # fmt: skip


def losses(outcomes):
    return [[record.loss for record in outcome.records] for outcome in outcomes]


def test_a_grid_is_every_combination():
    configs = grid(TINY, lr=(0.1, 0.3), seed=range(3))
    assert [(config.lr, config.seed) for config in configs] == [(a, b) for a in (0.1, 0.3) for b in (0, 1, 2)]
    assert {replace(config, lr=0.1, seed=0) == TINY for config in configs} == {True} and grid(TINY) == [TINY]
    with pytest.raises(ValueError, match="no field of ExperimentConfig 'learning_rate'"):
        grid(TINY, learning_rate=(1.0,))


def test_a_race_gives_what_the_runs_give(tmp_path):
    configs, ticked = grid(TINY, method=("sgd", "kfac"), seed=(0, 1)), []
    alone = [[record.loss for record in run(config)] for config in configs]
    assert losses(race(configs)) == alone
    outcomes = race(configs, tmp_path, tick=ticked.append)
    assert losses(outcomes) == alone and ticked == outcomes and [outcome.config for outcome in outcomes] == configs
    assert len(list(tmp_path.iterdir())) == 4 and all(len(outcome.evaluations) == 2 for outcome in outcomes)


def test_a_race_goes_on_where_it_was_and_does_not_repeat_what_is_done(tmp_path, monkeypatch):
    configs = grid(TINY, lr=(0.1, 0.2, 0.3))
    whole = race(configs)
    race(configs[:1], tmp_path)
    steps = run(configs[1], folder=tmp_path / sweep.run_name(configs[1]), checkpoint_every=1)
    next(steps), next(steps), steps.close()
    prepared, prepare = [], sweep.prepare
    monkeypatch.setattr(sweep, "prepare", lambda config: prepared.append(config) or prepare(config))
    again = race(configs, tmp_path)
    assert prepared == configs[1:] and losses(again) == losses(whole)
    assert [outcome.evaluations for outcome in again] == [outcome.evaluations for outcome in whole] or all(
        repr(a.evaluations) == repr(b.evaluations) for a, b in zip(again, whole, strict=True)
    )
    assert race([replace(config, steps=3) for config in configs], tmp_path)[0].records[-1].step == 3 and len(prepared) == 2
    assert [outcome.records[-1].step for outcome in race([replace(TINY, lr=0.1, steps=7)], tmp_path)] == [7]


def test_records_ahead_of_the_checkpoint_are_not_taken_for_the_end(tmp_path):
    """A kill between the last record and its checkpoint."""
    folder = tmp_path / sweep.run_name(TINY)
    steps = run(TINY, folder=folder, checkpoint_every=2)
    for _ in range(4):
        next(steps)
    saved = (folder / "checkpoint.pt").read_bytes()
    list(steps)
    (folder / "checkpoint.pt").write_bytes(saved)
    race([TINY], tmp_path)
    assert sweep.RunFolder(folder).saved_step() == 5


@pytest.mark.filterwarnings("ignore::natgrad_lab.errors.NumericalWarning")
def test_what_diverges_or_cannot_begin_is_an_outcome_too(tmp_path):
    linear = replace(TINY, dataset="linear_teacher", sizes=(8, 3), activation="identity", steps=60)
    configs = [replace(linear, lr=1e30), replace(linear, method="exact_ngd", damping=0.0, num_examples=2), linear]
    outcomes = race(configs, tmp_path)
    assert [outcome.is_complete for outcome in outcomes] == [False, outcomes[1].is_complete, True]
    assert outcomes[0].records[-1].status == "diverged" and len(outcomes[0].records) < 60
    again = race(configs, tmp_path)
    assert repr(losses(again)) == repr(losses(outcomes)) and again[0].records[-1].status == "diverged"


def test_the_first_step_that_fails_is_said(monkeypatch):
    from natgrad_lab.errors import NonFiniteError

    def broken(*args, **options):
        raise NonFiniteError("weights hold NaN")

    monkeypatch.setattr(sweep, "run", broken)
    (outcome,) = race([TINY])
    assert outcome.message == "NonFiniteError: weights hold NaN" and not outcome.is_complete and outcome.records == ()


def test_the_best_is_the_lowest_of_those_that_came_to_an_end():
    def outcome(loss, status="ok"):
        return Outcome(TINY, (StepRecord(1, 1.0, status=status),), (Evaluation(0, 0.0, 0.0), Evaluation(5, loss, 1 / loss)))

    outcomes = [outcome(0.3), outcome(0.1, "diverged"), outcome(math.nan), outcome(0.2)]
    assert best(outcomes) is outcomes[3] and best(outcomes, "train_error") is outcomes[0]
    with pytest.raises(ValueError, match="none of the 4 runs was completed with a finite test_loss"):
        best(outcomes, "test_loss")
    with pytest.raises(ValueError, match="no score 'tran_loss'. Did you mean 'train_loss'"):
        best(outcomes, "tran_loss")


def test_another_config_has_another_folder():
    names = {sweep.run_name(config) for config in grid(TINY, lr=(0.1, 0.2), options=({}, {"a": 1}), seed=(0, 1))}
    assert len(names) == 8
    assert sweep.run_name(replace(TINY, steps=9, device="auto")) == sweep.run_name(TINY)
