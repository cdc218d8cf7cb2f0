"""Prose and code cannot drift: every number that a lesson states is measured again."""

import re

import pytest

from natgrad_lab import environment
from natgrad_lab.course import differences, exercises
from natgrad_lab.course.ledger import unclaimed, value_and_unit
from natgrad_lab.course.lessons import lesson_modules
from natgrad_lab.notebooks import read

SOURCES = {
    path.name[:2]: path for path in sorted((environment.checkout() / "notebooks").glob("[0-9]*.py")) if path.name[:2] != "00"
}


def prose(lesson):
    return "\n\n".join(cell.source for cell in read(SOURCES[lesson]).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("lesson", SOURCES)
def test_every_number_in_the_prose_is_measured(lesson):
    assert differences(lesson, prose(lesson)) == []
    assert unclaimed(prose(lesson)) == []


@pytest.mark.parametrize("lesson", SOURCES)
def test_cards_and_exercises_are_in_their_notebook(lesson):
    cells = read(SOURCES[lesson]).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    headings = set(re.findall(r"(?m)^#+ (.*)$", prose(lesson)))
    for card in lesson_modules("cards")[lesson].CARDS:
        assert f'ng.widgets.card("{card.name}")' in code
    for exercise in lesson_modules("exercises")[lesson].EXERCISES:
        assert f'ng.course.check("{exercise.key}", {exercise.name})' in code
        assert exercise.read in headings, f"{exercise.key} sends readers to {exercise.read!r}, which is no heading"
        assert f'raise NotImplementedError("Exercise {exercise.key}")' in code
        assert exercise.key.startswith(f"{int(lesson)}.")


@pytest.mark.parametrize("text, value, unit", [
    ("31.0", 31.0, 0.1), ("9.4e-3", 9.4e-3, 1e-4), ("3,466", 3466, 1), ("2.3 × 10⁵", 2.3e5, 1e4),
    ("−0.20", -0.2, 0.01), ("1e-14", 1e-14, 1e-14),
])  # fmt: skip
def test_numbers_as_printed(text, value, unit):
    assert value_and_unit(text) == pytest.approx((value, unit))


def test_a_wrong_or_unmeasured_number_is_named():
    assert "not measured" not in differences("03", "")
    wrong = differences("03", "it is **9.99**<!--gd_gap--> and 3<!--nobody-->")
    assert any("states 9.99 for gd_gap" in line for line in wrong) and any("'nobody'" in line for line in wrong)
    assert any("ngd_gap and does not state it" in line for line in wrong)


def test_unclaimed_numbers_are_found_and_formulas_are_not():
    assert unclaimed("It is 3.5 and 12 % and 2 × 10⁵ of them, in 10 steps.") == ["3.5", "12 %", "2 × 10⁵"]
    assert unclaimed("Take $x = 0.5$ and `lr=0.1`; 0.5<!--half--> is claimed. Three of 12.") == []
    assert exercises()
