"""What a verdict says to a student whose answer is none of the usual wrong ones."""

import numpy as np
import pytest
import torch

from natgrad_lab.course import find_exercise, judge
from natgrad_lab.course.check import Verdict
from natgrad_lab.course.diagnose import Mistake, as_tensor, expect


@pytest.mark.parametrize("error, key", [(1e-9, None), (1e-7, "digits"), (1e-3, "unrecognized")])
def test_lost_digits_are_told_from_a_wrong_formula(error, key):
    want = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    got = want + error * torch.tensor([3.0, 0.0, -1.0], dtype=torch.float64)
    if key is None:
        return expect(got, want)
    with pytest.raises(Mistake) as caught:
        expect(got, want)
    assert caught.value.key == key


def test_an_answer_in_float32_loses_digits_and_nothing_else():
    natural = lambda F, g, damping: torch.linalg.solve(F.float() + damping * torch.eye(len(g)).float(), g.float())  # noqa: E731
    assert judge(find_exercise("3.1"), natural).failed[0][1] == "digits"


@pytest.mark.parametrize("value", [torch.ones(2, dtype=torch.complex128), lambda: 0, {"a": 1}, [[1], [2, 3]], "word"])
def test_other_kinds_are_refused(value):
    with pytest.raises(Mistake) as caught:
        as_tensor(value)
    assert caught.value.key == "kind" and "got" in caught.value.evidence


def test_too_few_arguments_point_at_no_line_of_the_checker():
    words = str(judge(find_exercise("3.1"), lambda F: F))
    assert "takes 1 positional argument but 3 were given" in words and "(line" not in words


def test_the_same_mistake_in_several_parts_is_said_once():
    failed = (("values", "raised", "E"), ("scaling", "raised", "E"), ("edge cases", "nothing", ""))
    words = str(Verdict("9.9", "f", 0, 9, failed, "Where did N go?"))
    assert "  values, scaling: It raised an error.\n      E\n  edge cases: It returned nothing." in words
    assert words.endswith("Read again: Where did N go?")


@pytest.mark.parametrize("factor, key", [(0.3, "unrecognized"), (-1, "sign"), (7, "scaled")])
def test_a_wrong_number_is_not_called_a_multiple_of_the_right_one(factor, key):
    with pytest.raises(Mistake) as caught:
        expect(5.0 * factor, 5.0, scalars={"N": 7.0})
    assert caught.value.key == key


def test_a_factor_of_two_needs_no_explanation():
    with pytest.raises(Mistake) as caught:
        expect(torch.ones(3) * 2, torch.ones(3))
    assert caught.value.evidence == "your result is 2 times the right one"


def test_the_line_of_a_decorated_answer_is_its_own():
    @torch.no_grad()
    def decorated(F, g, damping):
        return F @ torch.ones(99, dtype=F.dtype)

    assert "return F @ torch.ones(99" in str(judge(find_exercise("3.1"), decorated))


@pytest.mark.parametrize("key", ["9.1", "12.3", "12.4"])
def test_what_a_later_part_cannot_bear_is_told_once(key):
    words = str(judge(find_exercise(key), lambda *arguments: None))
    assert "Error" not in words and len(words.splitlines()) <= 4, words


def test_numbers_changed_in_a_list_or_a_dict_are_noticed():
    def sorting(gamma, changes, omega, least):
        changes.sort(reverse=True)
        return gamma

    def curing(numbers):
        for probes in numbers.values():
            probes["labels"] = 1.0
        return {}

    for key, answer in (("9.4", sorting), ("12.2", curing)):
        assert judge(find_exercise(key), answer).failed[0][1] == "changed_input"


@pytest.mark.parametrize("answer", [lambda J, z: z.long().softmax(1), lambda J, z: z.to_sparse() != 0.5])
def test_an_operation_that_pytorch_lacks_is_no_missing_answer(answer):
    verdict = judge(find_exercise("2.1"), answer)
    assert verdict.failed[0][1] == "raised" and "NotImplementedError" in str(verdict) and len(str(verdict).splitlines()) < 6


def test_an_exercise_may_be_named_by_a_number():
    assert find_exercise(3.1) is find_exercise("3.1") is find_exercise("natural_gradient")


@pytest.mark.parametrize("answer", [lambda M, a, b: 1.0, lambda M, a, b: a @ M @ b])
def test_nor_is_it_in_an_exercise(answer):
    assert "times the right one" not in str(judge(find_exercise("1.4"), answer))


@pytest.mark.parametrize(
    "rows", [[torch.ones(2), torch.ones(2)], [np.ones(2), [1, 1]], np.ones((2, 3))[::-1, :2], torch.ones(2, 2).to_sparse()]
)
def test_rows_of_any_kind_and_reversed_arrays_are_welcome(rows):
    assert torch.equal(as_tensor(rows, (2, 2)), torch.ones(2, 2, dtype=torch.float64))


def test_one_number_may_come_in_a_list_or_a_matrix_and_two_may_not():
    assert as_tensor(torch.tensor([[2.0]]), ()) == 2 and as_tensor([2], ()).shape == ()
    with pytest.raises(Mistake) as caught:
        as_tensor([1.0, 2.0], ())
    assert caught.value.evidence == "it is (2,) and should be one number"
