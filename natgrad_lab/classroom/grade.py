"""Grade submissions: the properties of every exercise, judged here, on answers that run elsewhere (`sandbox.py`).

Each finished submission is one line of a JSON-lines file beside the CSV; a second run grades only those whose bytes, course
or settings changed. With several jobs each is a process with a fork server of its own.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import natgrad_lab
from natgrad_lab.classroom.sandbox import PACKAGE, Sandbox
from natgrad_lab.classroom.submissions import Submission, names_of, read_submission
from natgrad_lab.course.check import Verdict, judge
from natgrad_lab.course.exercise import Exercise, exercises


@dataclass(frozen=True)
class Record:
    """One graded submission: its verdicts in the course's order, and what an instructor should know."""

    student: str
    fingerprint: str
    verdicts: tuple[Verdict, ...]
    remarks: tuple[str, ...]
    seconds: float | int
    printed: str = field(default="", repr=False)

    @property
    def points(self) -> int:
        """In all."""
        return sum(verdict.points for verdict in self.verdicts)

    @property
    def out_of(self) -> int:
        """The most there was to get."""
        return sum(verdict.out_of for verdict in self.verdicts)


@dataclass(frozen=True)
class Settings:
    """How to grade.

    Args:
        lessons: ("03", "04"), or () for all.
        seed: a word that, with the student's name, draws the instances.
        timeout: seconds an exercise may take.
        memory: MB beyond torch.
        hidden: folders that students' code must not read.
        namespaces: as in `Sandbox`.
    """

    lessons: tuple[str, ...] = ()
    seed: str = ""
    timeout: float | int = 20.0
    memory: int = 1024
    hidden: tuple[str, ...] = ()
    namespaces: bool | None = None

    def sandbox(self) -> Sandbox:
        """A sandbox with these settings."""
        return Sandbox(self.hidden, timeout=self.timeout, memory=self.memory, namespaces=self.namespaces)


def chosen(lessons: tuple[str, ...]) -> list[Exercise]:
    """The exercises of these lessons, of all if none is named. Raises: ValueError for a lesson without exercises."""
    there = sorted({f"{int(key.partition('.')[0]):02d}" for key in exercises()})
    for lesson in lessons:
        if lesson not in there:
            raise ValueError(f"there is no lesson {lesson!r} with exercises. There are: {', '.join(there)}.")
    return [e for key, e in exercises().items() if not lessons or f"{int(key.partition('.')[0]):02d}" in lessons]


@cache
def course_version() -> str:
    """The package's version and a hash of what decides verdicts: the exercises, the checker, the grader."""
    digest = hashlib.sha256()
    for folder in ("course", "classroom"):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            if not {"cards", "claims"} & set(path.parts):
                digest.update(path.name.encode() + path.read_bytes())
    return f"{natgrad_lab.__version__}+{digest.hexdigest()[:12]}"


def fingerprint(submission: Submission, settings: Settings) -> str:
    """What a verdict depends on; a submission with the same one is not graded again."""
    words = [submission.student, submission.digest, course_version(), settings.lessons, settings.seed]
    words += [settings.timeout, settings.memory]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:24]


def grade(submission: Submission, sandbox: Sandbox, settings: Settings) -> Record:
    """Judge every exercise of one submission; nothing that a student writes makes this raise."""
    started, verdicts = time.perf_counter(), []
    asked = chosen(settings.lessons)
    with sandbox.open(submission.files, [exercise.name for exercise in asked]) as session:
        is_read = bool(submission.files) and session.load()
        remarks = list(submission.remarks)
        for exercise in asked:
            state = session.found.get(exercise.name, {"is": "missing"})
            if state["is"] == "written":
                session.begin()
                seed = f"{settings.seed}/{submission.student}"
                verdicts.append(judge(exercise, session.answer(exercise.name), student_seed=seed, is_guarded=True))
                if not verdicts[-1].passed and state.get("remark"):
                    remarks.append(f"{exercise.key}: {state['remark']}")
            else:
                key = "not_written" if state["is"] == "stub" else state["is"]
                failed = (("all", key if key in ("not_written", "missing") else "broken", state.get("evidence", "")),)
                verdicts.append(Verdict(exercise.key, exercise.name, 0, exercise.points, failed, exercise.read))
        remarks += [remark for remark in session.remarks if remark not in remarks]
    if is_read and all(v.failed and v.failed[0][1] == "missing" for v in verdicts):
        remarks.append("none of the exercises' functions was found: is it the right file?")
    words = tuple(remarks)
    seconds = round(time.perf_counter() - started, 3)
    return Record(submission.student, fingerprint(submission, settings), tuple(verdicts), words, seconds, session.printed)


def grade_all(
    paths: list[Path],
    settings: Settings,
    *,
    keep: Path | None = None,
    jobs: int = 1,
    tell: Callable[[Record, bool], None] | None = None,
) -> list[Record]:
    """Grade many, in the order of `paths`.

    Args:
        paths: one a student.
        keep: JSON-lines file of finished records: read first, and each new one is appended at once.
        jobs: processes; one grades in this process.
        tell: called with each record and whether it was there already.
    """
    done = read_records(keep) if keep else {}
    students, found, todo = names_of(paths), {}, []
    for path, student in zip(paths, students, strict=True):
        submission = read_submission(path, student)
        record = done.get(fingerprint(submission, settings))
        if record is None:
            todo.append((path, student))
        else:
            found[student] = record
            if tell:
                tell(record, True)
    for record in _graded(todo, settings, jobs):
        found[record.student] = record
        if keep:
            with open(keep, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        if tell:
            tell(record, False)
    return [found[student] for student in students]


def read_records(path: Path) -> dict[str, Record]:
    """Fingerprint -> record of every whole line; a line that an interruption tore is left out, and graded again."""
    records = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []:
        try:
            has = json.loads(line)
            verdicts = tuple(
                Verdict(**{**verdict, "failed": tuple(tuple(part) for part in verdict["failed"])})
                for verdict in has["verdicts"]
            )
            record = Record(**{**has, "verdicts": verdicts, "remarks": tuple(has["remarks"])})
            records[record.fingerprint] = record
        except (ValueError, KeyError, TypeError):
            continue
    return records


def _graded(todo: list[tuple[Path, str]], settings: Settings, jobs: int) -> Iterator[Record]:
    if jobs == 1 or len(todo) < 2:
        with settings.sandbox() as sandbox:
            yield from (grade(read_submission(path, student), sandbox, settings) for path, student in todo)
        return
    with ProcessPoolExecutor(min(jobs, len(todo)), get_context("spawn"), _begin_job, (settings,)) as pool:
        waiting = {pool.submit(_job, path, student) for path, student in todo}
        try:
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
        except BrokenProcessPool:
            raise RuntimeError("a grading process ended unexpectedly; run the command again: what is graded is kept.") from None
        finally:
            pool.shutdown(cancel_futures=True)


_JOB: dict = {}  # of a worker process: its settings and its sandbox


def _begin_job(settings: Settings) -> None:
    import torch

    torch.set_num_threads(1)
    _JOB.update(settings=settings, sandbox=settings.sandbox())


def _job(path: Path, student: str) -> Record:
    return grade(read_submission(path, student), _JOB["sandbox"], _JOB["settings"])
