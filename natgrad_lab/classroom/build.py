"""The lessons as notebooks for a class: for students without outputs and answers, for instructors with both.

The sources are notebooks/*.py; what a student gets holds no line of any answer, and `leaks` says so before it is written.
"""

import json
import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from natgrad_lab.classroom.source import expression, own_lines, standalone
from natgrad_lab.course.exercise import Exercise, exercises
from natgrad_lab.course.lessons import lesson_modules
from natgrad_lab.course.mistakes import mistakes
from natgrad_lab.notebooks import execute, read, sources

STUB = re.compile(r'raise NotImplementedError\("Exercise ([\d.]+)"\)')
CLAIM = re.compile(r"<!--\s*\w+\s*-->")
SHORTEST = 24  # characters: a shorter line says nothing
_TRIVIAL = re.compile(r"(async def|def|class|import|from|@|#|[rf]?\"\"\"|for .* in .*:$)")


@dataclass(frozen=True)
class Lesson:
    """A lesson's source, its title and the time it states."""

    number: str
    path: Path
    title: str
    time: str

    @property
    def exercises(self) -> list[Exercise]:
        """Its exercises, in order."""
        return [e for key, e in exercises().items() if f"{int(key.partition('.')[0]):02d}" == self.number]


def lessons(chosen: Iterable[str] = ()) -> list[Lesson]:
    """The lessons with these numbers ("03"), or all, the prologue "00" among them. Raises: ValueError for one there is not."""
    there = {path.name[:2]: path for path in sources()}
    for number in chosen:
        if number not in there:
            raise ValueError(f"there is no lesson {number!r}. There are: {', '.join(there)}.")
    return [_lesson(there[number], number) for number in (chosen or there)]


def build_student(out: Path, chosen: Iterable[str] = (), *, seed: str = "", run: bool = False) -> list[Path]:
    """Write the students' notebooks into the folder `out`: no outputs, no answers.

    Args:
        seed: a student's or a class's word; written to .natgrad/student.json, where `ng.course.check` finds it and draws
            other instances, so that numbers differ while the properties are the same.
        run: execute them as they are, in `out`, to see that every cell runs before anything is solved; outputs are not kept.
    Raises: ValueError if a line of an answer stands in a notebook; RuntimeError for a cell that fails or warns.
    """
    notebooks = {}
    for lesson in lessons(chosen):
        notebook = read(lesson.path)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = CLAIM.sub("", cell.source)
        found = leaks(_text(notebook))
        if found:
            raise ValueError(f"{lesson.path.name} holds lines of answers, so it is not for students:\n" + "\n".join(found))
        notebooks[lesson.path.with_suffix(".ipynb").name] = notebook
    written = write(Path(out), notebooks)
    if seed:
        place = Path(out) / ".natgrad" / "student.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps({"seed": seed}) + "\n", encoding="utf-8")
        written.append(place)
    for name, notebook in notebooks.items() if run else ():
        _run(deepcopy(notebook), Path(out), name)
    return written


def build_instructor(out: Path, chosen: Iterable[str] = (), *, run: bool = False) -> list[Path]:
    """Write the instructors' notebooks: answers in place of the stubs, wrong answers as talking points, a plan in front.

    Args:
        run: execute them, which keeps the outputs and shows that every check passes; minutes in all.
    """
    notebooks = {}
    for lesson in lessons(chosen):
        notebook = read(lesson.path)
        notebook.cells = [made for cell in notebook.cells for made in _for_instructors(cell)]
        notebook.cells[1:1] = [_cell("markdown", _plan(lesson))]
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number:02d}"
        if run:
            _run(notebook, lesson.path.parent, lesson.path.name)
        notebooks[lesson.path.with_suffix(".ipynb").name] = notebook
    return write(Path(out), notebooks)


def _run(notebook, folder: Path, name: str) -> None:
    try:
        execute(notebook, folder)
    except RuntimeError as error:
        raise RuntimeError(f"{name}: {error}") from None


def write(out: Path, notebooks: dict) -> list[Path]:
    """Write notebooks by name into a folder, which is made."""
    import nbformat

    out.mkdir(parents=True, exist_ok=True)
    for name, notebook in notebooks.items():
        nbformat.validate(notebook)
        (out / name).write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    return [out / name for name in notebooks]


def leaks(text: str) -> list[str]:
    """A sentence for each line of `text` that gives away an exercise's right or wrong answer.

    That is a line that returns a result, the only telling line of an answer, or two lines of one; a single line of several
    may be what the lesson has shown. Short lines, signatures and imports tell nothing.
    """
    lines, found = {re.sub(r"\s+", "", line) for line in text.splitlines()}, {}
    for key, answer in telling_lines():
        hits = [line for line in answer if re.sub(r"\s+", "", line) in lines]
        if len(hits) >= min(2, len(answer)) or any(line.startswith("return ") for line in hits):
            found.update(dict.fromkeys(f"{key}: {line}" for line in hits))
    return list(found)


def telling_lines() -> list[tuple[str, tuple[str, ...]]]:
    """(exercise, the lines that would tell something) of every answer that is a function."""
    found = []
    for exercise in exercises().values():
        for answer in (exercise.reference, *exercise.others, *(answer for _, answer in exercise.wrong)):
            own = [] if answer.__name__ == "<lambda>" else own_lines(answer)
            lines = tuple(line for line in own if len(line) >= SHORTEST and not _TRIVIAL.match(line))
            found += [(exercise.key, lines)] if lines else []
    return found


def stub_of(cell) -> Exercise | None:
    """The exercise whose stub a cell holds."""
    found = STUB.search(cell.source) if cell.cell_type == "code" else None
    return exercises()[found[1]] if found else None


def _for_instructors(cell) -> list:
    exercise = stub_of(cell)
    if exercise is None:
        return [cell]
    imports = [line for line in cell.source.splitlines() if re.match(r"(import|from) ", line)]
    cell.source = "\n".join([*imports, standalone(exercise.reference).strip()])
    return [cell, _cell("markdown", talking_points(exercise))]


def talking_points(exercise: Exercise) -> str:
    """The wrong answers that the checker knows, as they may come up in class."""
    lines = [
        f"**For instructors: {exercise.key}, {exercise.points} points** "
        f"({', '.join(f'{part.name} {part.points}' for part in exercise.parts)}). Wrong answers that the checker names:",
        "",
    ]
    for key, answer in exercise.wrong:
        written = expression(answer)
        lines.append(f"* `{key}` {mistakes()[key]}" + (f" `{written}`" if written else ""))
        source = own_lines(answer)
        if answer.__name__ != "<lambda>" and 0 < len(source) <= 12:
            lines += ["", "  ```python", *("  " + line for line in _indented(answer)), "  ```", ""]
    return "\n".join(lines)


def _indented(answer) -> list[str]:
    import inspect
    import textwrap

    return textwrap.dedent(inspect.getsource(answer)).rstrip().splitlines()


def _plan(lesson: Lesson) -> str:
    cards = getattr(lesson_modules("cards").get(lesson.number), "CARDS", ())
    lines = [f"**For instructors.** {lesson.time}", ""]
    lines += [f"* Exercise {e.key} `{e.name}`: {e.points} points; read again: {e.read}." for e in lesson.exercises]
    for card in cards:
        prediction = card.prediction
        wanted = " / ".join(prediction.options) if prediction.options else f"a number ({prediction.unit or 'no unit'})"
        answer = "" if card.seconds else f" Answer at the default: {_short(prediction.answer(card.result()))}."
        lines.append(f"* Card `{card.name}`, a poll before it is shown: {prediction.question} {wanted}.{answer}")
    return "\n".join(lines)


def _short(value) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _lesson(path: Path, number: str) -> Lesson:
    words = path.read_text(encoding="utf-8")
    title = re.search(r"(?m)^# # (.*)$", words)
    time = re.search(r"(?m)^# - \*\*Time\.\*\* (.*)$", words)
    return Lesson(number, path, title[1] if title else path.stem, time[1] if time else "")


def _cell(kind: str, source: str):
    import nbformat

    return nbformat.v4.new_code_cell(source) if kind == "code" else nbformat.v4.new_markdown_cell(source)


def _text(notebook) -> str:
    return "\n".join(cell.source for cell in notebook.cells)
