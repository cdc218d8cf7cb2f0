"""The course as plain data: interactive figures (cards), exercises with a checker that says why, and measured claims.

    ng.widgets.card("two_maps")                 an interactive figure of a lesson, in a notebook
    ng.course.check("3.1", natural_gradient)    check an answer; says which mistake it is, never the answer

Lesson NN lives in four files of the same name: notebooks/NN_title.py (the story), course/cards/lessonNN.py (its
figures), course/exercises/lessonNN.py (references, properties, wrong answers), course/claims/lessonNN.py (its numbers).
"""

# The packages first: imported later, they would take the places of the functions `cards`, `claims` and `exercises`.
import natgrad_lab.course.cards
import natgrad_lab.course.claims
import natgrad_lab.course.exercises  # noqa: F401
from natgrad_lab.course.card import Card, Control, Prediction, cards, find_card
from natgrad_lab.course.check import Verdict, check, judge
from natgrad_lab.course.exercise import Exercise, Part, exercises, find_exercise
from natgrad_lab.course.ledger import claims, differences

__all__ = [
    "Card", "Control", "Exercise", "Part", "Prediction", "Verdict", "cards", "check", "claims", "differences", "exercises",
    "find_card", "find_exercise", "judge",
]  # fmt: skip
