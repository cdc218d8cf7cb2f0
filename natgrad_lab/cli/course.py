"""`natgrad course`: the lessons, notebooks and site for a class, and grading."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console()
course = typer.Typer(
    help="The course: list its lessons, build notebooks or a site, check and grade answers.", no_args_is_help=True
)
Lessons = Annotated[str, typer.Option("--lessons", help="Some only, as 03,04; all if not given.")]


@course.command("list")
def show_lessons():
    """The lessons, with the time they take, their exercises and points."""
    from natgrad_lab.classroom.build import lessons

    table = Table("lesson", "time", "exercises", "points", box=None)
    total = 0
    for lesson in lessons():
        keys = ", ".join(f"{e.key} {e.name}" for e in lesson.exercises)
        points = sum(e.points for e in lesson.exercises)
        total += points
        table.add_row(f"{lesson.number} {lesson.title}", lesson.time.rstrip("."), keys, str(points or ""))
    console.print(table)
    say(f"{total} points in all. An answer: natgrad course check FILE; a class: natgrad course build, natgrad course grade.")


@course.command()
def build(
    student: Annotated[Path | None, typer.Option(help="Folder for students' notebooks: no outputs, no answers.")] = None,
    instructor: Annotated[Path | None, typer.Option(help="Folder for instructors' notebooks: answers, talking points.")] = None,
    html: Annotated[Path | None, typer.Option(help="Folder for a static site that needs no network.")] = None,
    nbgrader: Annotated[Path | None, typer.Option(help="Folder for nbgrader's source/ (holds answers).")] = None,
    gradescope: Annotated[Path | None, typer.Option(help="File for Gradescope's autograder, as out.zip.")] = None,
    lessons: Lessons = "",
    student_seed: Annotated[str, typer.Option(help="--student: a name; data of the checks differ by it.")] = "",
    run: Annotated[
        bool,
        typer.Option("--run", help="Execute them: the instructor's pass every check, the student's run unfilled; minutes."),
    ] = False,
):
    """Write the lessons for a class; several of the options may be given at once."""
    from natgrad_lab import classroom

    numbers = parse(lessons)
    if student_seed and student is None or run and student is None and instructor is None:
        raise ValueError("--student-seed belongs to --student, and --run to --student or --instructor.")
    wanted = [
        (student, lambda: classroom.build_student(student, numbers, seed=student_seed, run=run)),
        (instructor, lambda: classroom.build_instructor(instructor, numbers, run=run)),
        (html, lambda: classroom.build_site(html, numbers)),
        (nbgrader, lambda: classroom.build_nbgrader(nbgrader, numbers)),
        (gradescope, lambda: [classroom.build_gradescope(gradescope, numbers)]),
    ]
    if not any(place for place, _ in wanted):
        raise ValueError("say what to build: --student, --instructor, --html, --nbgrader (folders) or --gradescope (a zip).")
    for place, make in wanted:
        if place:
            files = make()
            say(f"{place}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB")


@course.command()
def check(
    file: Annotated[Path, typer.Argument(help="A notebook or script with answers; its functions are RUN here.")],
    lessons: Lessons = "",
):
    """Check the answers in a file of your own. Exit code 1 if one of those that are written is wrong."""
    from natgrad_lab.classroom.own import check_file

    verdicts, remarks = check_file(file, parse(lessons))
    for remark in remarks:
        say(remark, style="yellow")
    for verdict in verdicts:
        say(str(verdict))
    if not verdicts:
        raise ValueError(f"{str(file)!r} defines none of the exercises' functions.")
    written = [verdict for verdict in verdicts if not (verdict.failed and verdict.failed[0][1] == "not_written")]
    say(f"{sum(v.points for v in verdicts)} of {sum(v.out_of for v in verdicts)} points; {len(written)} written.")
    raise typer.Exit(int(any(not verdict.passed for verdict in written)))


@course.command()
def grade(
    submissions: Annotated[Path, typer.Argument(help="Folder with one .ipynb, .py, folder or zip for each student.")],
    csv: Annotated[Path | None, typer.Option("--csv", help="One row a student; finished ones are kept in FILE.jsonl.")] = None,
    gradescope: Annotated[
        Path | None, typer.Option(help="All of SUBMISSIONS is one student's; write results.json here.")
    ] = None,
    lessons: Lessons = "",
    seed: Annotated[str, typer.Option(help="A word that, with each student's name, draws the data of the checks.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds an exercise may take.")] = 20.0,
    memory: Annotated[int, typer.Option(help="MB a submission may take beyond torch.")] = 1024,
    jobs: Annotated[int | None, typer.Option(help="Processes; one for each core if not given.")] = None,
):
    """Grade submissions. Their code runs in a process apart, without network, answers or files of yours to write.

    Its functions are found by name; the rest of a notebook is not run. A container of its own is still the safest place.
    """
    from natgrad_lab.classroom.grade import Settings

    if (csv is None) == (gradescope is None):
        raise ValueError("say where the grades go: --csv grades.csv, or --gradescope results.json for one student.")
    settings = Settings(lessons=parse(lessons), seed=seed, timeout=timeout, memory=memory)
    if gradescope:
        grade_one(submissions, gradescope, settings)
    else:
        grade_folder(
            submissions, csv, settings, jobs or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        )


def grade_one(path: Path, out: Path, settings) -> None:
    """One student, Gradescope's results."""
    from natgrad_lab.classroom.grade import grade_all
    from natgrad_lab.classroom.gradescope import write_results

    if not path.exists():
        raise FileNotFoundError(f"there is no {str(path)!r}.")
    (record,) = grade_all([path], settings)
    write_results(record, out)
    say(f"{record.student}: {record.points} of {record.out_of} points; written to {out}")


def grade_folder(folder: Path, csv: Path, settings, jobs: int) -> None:
    """A class: the CSV, a table of mistakes, and what to look at."""
    from dataclasses import replace

    from natgrad_lab.classroom.grade import chosen, grade_all
    from natgrad_lab.classroom.report import write_csv
    from natgrad_lab.classroom.submissions import submissions

    paths, left_out = submissions(folder)
    if csv.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{str(csv)!r} lies among the submissions; write it elsewhere.")
    if not csv.resolve().parent.is_dir():
        raise ValueError(f"the folder of {str(csv)!r} does not exist. Make it first, or choose another file.")
    chosen(settings.lessons)
    settings = replace(settings, hidden=(str(folder.resolve()),))
    with settings.sandbox() as trial:
        trial.start()
        say(f"Students' code runs with: {trial.isolation}.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task, known = progress.add_task("grading", total=len(paths)), []

        def tell(record, was_there):
            known.extend([record] if was_there else [])
            progress.advance(task)

        records = grade_all(paths, settings, keep=csv.with_name(csv.name + ".jsonl"), jobs=jobs, tell=tell)
    write_csv(records, csv)
    summary(records, left_out, len(known))
    say(f"written to {csv}; the checker's words to {csv}.jsonl")


def summary(records: list, left_out: list[str], known: int) -> None:
    """How often each mistake came up, and the remarks."""
    from natgrad_lab.classroom.report import frequencies

    table = Table("exercise", "mistake", "what it is", "students", box=None)
    for exercise, key, words, count in frequencies(records)[:30]:
        table.add_row(exercise, key, words, str(count))
    console.print(table)
    for record in records:
        for remark in record.remarks:
            say(f"{record.student}: {remark}", style="yellow")
    for line in left_out:
        say(line, style="yellow")
    mean = sum(record.points for record in records) / len(records)
    again = f", {known} of them not graded again" if known else ""
    say(f"{len(records)} submissions{again}; {mean:.1f} of {records[0].out_of} points on average.")


def parse(lessons: str) -> tuple[str, ...]:
    """("03", "04") from "3,04". Raises: ValueError for what is no number."""
    words = [word.strip() for word in lessons.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"--lessons takes numbers, as 03,04; got {lessons!r}.")
    return tuple(dict.fromkeys(f"{int(word):02d}" for word in words))


def say(text: str, style: str | None = None) -> None:
    """One line as it is."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
