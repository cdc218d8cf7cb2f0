"""Exercises as plain data: a reference, properties with points, and the wrong answers each of which must be recognized."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from natgrad_lab.course.lessons import lesson_modules
from natgrad_lab.names import known


@dataclass(frozen=True)
class Part:
    """A group of properties.

    Args:
        name: "shape", "scaling", "structure" or "edge cases".
        points: it is worth.
        check: (answer, generator) -> None; draws a random instance (pairwise distinct sizes, float64) from the generator,
            calls the answer and raises `Mistake` through the functions of `diagnose`.
    """

    name: str
    points: int
    check: Callable[[Callable, torch.Generator], None]


@dataclass(frozen=True)
class Exercise:
    """A small pure function that a student writes.

    Args:
        key: "3.1": the lesson and a number.
        name: the function's name, as the student has to write it.
        reference: a right answer, never shown to students; its signature is the one in the notebook.
        parts: its properties, the easy ones first. Arguments that checks pass to the answer are tensors, numbers, words,
            lists, dicts, nn.Modules of `natgrad_lab.models` or generators, because a grader sends them to another process.
        wrong: (key of MISTAKES, wrong answer): the checker has to find exactly this mistake.
        others: right answers in another style (loops, einsum, in-place): they have to pass.
        read: heading of the paragraph in the notebook that helps.
    """

    key: str
    name: str
    reference: Callable
    parts: tuple[Part, ...]
    wrong: tuple[tuple[str, Callable], ...]
    others: tuple[Callable, ...]
    read: str

    @property
    def points(self) -> int:
        """What it is worth in all."""
        return sum(part.points for part in self.parts)


@cache
def exercises() -> dict[str, Exercise]:
    """Every exercise of the course by key, in order."""
    found: dict[str, Exercise] = {}
    for module in lesson_modules("exercises").values():
        for exercise in module.EXERCISES:
            if exercise.key in found or any(exercise.name == other.name for other in found.values()):
                raise ValueError(f"exercise {exercise.key} ({exercise.name}): the key or the name is taken.")
            found[exercise.key] = exercise
    return found


def find_exercise(key: str | float) -> Exercise:
    """The exercise "3.1", 3.1, or the one with that function name. Raises: ValueError that lists them."""
    key = str(key)
    by_name = {exercise.name: exercise for exercise in exercises().values()}
    return by_name[key] if key in by_name else exercises()[known(key, exercises(), "exercise")]
