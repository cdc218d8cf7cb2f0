"""Every exercise: the reference passes, right answers in other styles pass, each wrong one is told what it is."""

import inspect

import pytest
import torch

from natgrad_lab.course import exercises, judge
from natgrad_lab.course.mistakes import BANK, mistakes

ALL = list(exercises().values())
WRONG = [(exercise, key, answer, number) for exercise in ALL for number, (key, answer) in enumerate(exercise.wrong)]
key_of = lambda exercise: exercise.key  # noqa: E731


@pytest.mark.parametrize("exercise", ALL, ids=key_of)
def test_reference_and_other_right_answers_pass(exercise):
    """The reference for three students, the others for one each, in turn."""
    students = ("", "ada", "emmy")
    chosen = [(0, exercise.reference, student) for student in students]
    chosen += [(n, answer, students[n % 3]) for n, answer in enumerate(exercise.others, start=1)]
    for number, answer, student in chosen:
        verdict = judge(exercise, answer, student_seed=student)
        assert verdict.passed, f"answer {number}: {verdict}"


@pytest.mark.parametrize("exercise, key, answer, number", WRONG, ids=[f"{e.key}-{n}-{k}" for e, k, _, n in WRONG])
def test_a_wrong_answer_is_told_its_own_mistake(exercise, key, answer, number):
    verdict = judge(exercise, answer, student_seed=("", "ada")[number % 2])
    assert not verdict.passed and verdict.failed[0][1] == key, f"expected {key}: {mistakes()[key]}\n{verdict}"
    assert verdict.points < verdict.out_of and mistakes()[key] in str(verdict)


@pytest.mark.parametrize("exercise", ALL, ids=key_of)
def test_what_no_one_wrote_is_not_an_error(exercise):
    def stub(*args, **options):
        raise NotImplementedError(exercise.key)

    verdict = judge(exercise, stub)
    assert verdict.points == 0 and "not written yet" in str(verdict)


@pytest.mark.parametrize("exercise", ALL, ids=key_of)
def test_rubbish_is_refused_kindly(exercise):
    for answer in (
        lambda *a, **k: None,
        lambda *a, **k: "rubbish",
        lambda *a, **k: float("nan"),
        lambda *a, **k: 1 / 0,
        lambda: 0,
    ):
        verdict = judge(exercise, answer)
        assert verdict.points < verdict.out_of and verdict.failed[0][2] + mistakes()[verdict.failed[0][1]]


@pytest.mark.parametrize("exercise", ALL, ids=key_of)
def test_an_exercise_is_complete(exercise):
    assert len(exercise.wrong) >= 4 and len(exercise.others) >= 1 and exercise.read
    assert exercise.reference.__name__ == exercise.name and list(inspect.signature(exercise.reference).parameters)
    assert all(part.points > 0 for part in exercise.parts)


def test_the_same_answer_gets_the_same_verdict_and_leaves_the_random_numbers_alone():
    exercise = ALL[0]
    state = torch.get_rng_state()
    assert judge(exercise, exercise.wrong[0][1]) == judge(exercise, exercise.wrong[0][1])
    assert torch.equal(state, torch.get_rng_state())


def test_every_mistake_of_the_bank_is_caught_somewhere():
    if len({exercise.key.partition(".")[0] for exercise in ALL}) < 12:
        pytest.skip("the course is not complete")
    caught = {key for exercise in ALL for key, _ in exercise.wrong}
    assert set(BANK) <= caught, f"never caught: {sorted(set(BANK) - caught)}"
