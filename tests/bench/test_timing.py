"""Rounds and ratios, by a clock that stands still between cases."""

import pytest
import torch

from natgrad_lab.bench import timing

CPU = torch.device("cpu")


@pytest.fixture
def cases(monkeypatch):
    """Cases that take 1, 3 and 50 seconds of a made-up clock."""
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def lasting(seconds):
        def work():
            clock[0] += seconds
            work.calls += 1

        work.calls = 0
        return work

    return {"yardstick": lasting(1.0), "quick": lasting(3.0), "slow": lasting(50.0)}


@pytest.mark.parametrize("budget, rounds", [(float("inf"), (9, 9, 9)), (12.0, (9, 3, 1)), (0.5, (9, 1, 1))])
def test_slow_cases_sit_out_once_their_time_is_spent(cases, budget, rounds):
    """The round that does not count is spent too; every case is timed once at least, the yardstick always."""
    measured = timing.interleaved(cases, 9, CPU, budget)
    assert cases["slow"].calls == {float("inf"): 10, 12.0: 1, 0.5: 1}[budget]
    assert tuple(map(len, measured.values())) == rounds
    assert [set(seconds) for seconds in measured.values()] == [{1.0}, {3.0}, {50.0}]


def test_a_period_of_calls_makes_one_time_their_mean(cases):
    """Of 4 calls every fourth takes 9 seconds, the rest 1: 3 seconds a call, whatever the median call takes."""
    plain, turns = cases["yardstick"], iter(range(1000))

    def work():
        for _ in range(9 if next(turns) % 4 == 0 else 1):
            plain()

    measured = timing.interleaved({"yardstick": cases["quick"], "period": work}, 5, CPU, in_a_row={"period": 4})
    assert measured == {"yardstick": [3.0] * 5, "period": [3.0] * 5}


def test_ratios_are_of_the_same_rounds():
    measured = {"yardstick": [1.0, 1.0, 10.0, 10.0], "slow": [4.0, 4.0], "all": [2.0, 2.0, 20.0, 20.0]}
    rows = timing.table("t", CPU, 1, measured, {"slow": "left out"}).rows
    assert [(row.ratio, row.rounds, row.note) for row in rows] == [(1.0, 4, ""), (4.0, 2, "left out"), (2.0, 4, "")]
