"""The lessons as nbgrader assignments: its cell metadata, solutions between its marks, and checks that give partial points.

nbgrader is not needed to make them and is not run here; the metadata follow version 3 of its schema.
"""

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from natgrad_lab.classroom.build import _cell, lessons, stub_of, write
from natgrad_lab.classroom.source import standalone
from natgrad_lab.course.exercise import Exercise
from natgrad_lab.notebooks import read

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


def build_nbgrader(out: Path, chosen: Iterable[str] = ()) -> list[Path]:
    """Write source/lesson_NN/NN_title.ipynb below `out`, and nbgrader_config.py, for `nbgrader generate_assignment`.

    They hold answers between nbgrader's marks, which its release removes: this folder is for instructors.
    """
    out, written = Path(out), []
    for lesson in lessons(chosen):
        if lesson.exercises:
            notebook = read(lesson.path)
            notebook.cells = [made for cell in notebook.cells for made in _cells(cell)]
            for number, cell in enumerate(notebook.cells):
                cell["id"] = f"cell-{number:02d}"
            folder = out / "source" / f"lesson_{lesson.number}"
            written += write(folder, {lesson.path.with_suffix(".ipynb").name: notebook})
    config = out / "nbgrader_config.py"
    config.write_text('c = get_config()\nc.CourseDirectory.course_id = "natural_gradients"\n', encoding="utf-8")
    return [*written, config]


def metadata(grade_id: str, *, solution: bool, points: int | None = None) -> dict:
    """nbgrader's metadata of an answer cell (solution) or of a locked cell that checks it (points)."""
    has = {"schema_version": 3, "grade_id": grade_id, "solution": solution, "locked": not solution, "task": False}
    return {**has, "grade": points is not None, **({} if points is None else {"points": points})}


def _cells(cell) -> list:
    exercise = stub_of(cell)
    if exercise is not None:
        cell.source = _with_solution(cell.source, exercise)
        cell["metadata"] = {"nbgrader": metadata(f"exercise-{_id(exercise)}", solution=True)}
        return [cell]
    found = re.match(r'ng\.course\.check\("([\d.]+)", (\w+)\)', cell.source) if cell.cell_type == "code" else None
    if not found:
        return [cell]
    from natgrad_lab.course.exercise import find_exercise

    exercise = find_exercise(found[1])
    source = f"import natgrad_lab as ng\n\nverdict = {found[0]}\nassert verdict.points > 0, str(verdict)\nverdict.points"
    made = _cell("code", source)
    made["metadata"] = {"nbgrader": metadata(f"check-{_id(exercise)}", solution=False, points=exercise.points)}
    return [made]


def _with_solution(stub: str, exercise: Exercise) -> str:
    """The stub, its raise replaced by the reference between the marks: helpers and imports are within, so all of it goes."""
    line = next(line for line in stub.splitlines() if "raise NotImplementedError" in line)
    indent = line[: len(line) - len(line.lstrip())]
    reference = standalone(exercise.reference).strip()
    call = f"return {exercise.name}({', '.join(_arguments(exercise))})"
    body = "\n".join([BEGIN, reference, call, END])
    return stub.replace(line, textwrap.indent(body, indent))


def _arguments(exercise: Exercise) -> list[str]:
    import inspect

    marks = {inspect.Parameter.VAR_POSITIONAL: "*{0}", inspect.Parameter.VAR_KEYWORD: "**{0}"}
    marks[inspect.Parameter.KEYWORD_ONLY] = "{0}={0}"
    return [marks.get(p.kind, "{0}").format(name) for name, p in inspect.signature(exercise.reference).parameters.items()]


def _id(exercise: Exercise) -> str:
    return exercise.key.replace(".", "-")
