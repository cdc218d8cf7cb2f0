"""Check the answers in a file of one's own, in this process: no wall, the same verdicts as in a notebook."""

from pathlib import Path

from natgrad_lab.classroom.grade import chosen
from natgrad_lab.classroom.session import define_all
from natgrad_lab.classroom.submissions import read_submission
from natgrad_lab.course.check import Verdict, judge, student_seed_of


def check_file(path: Path, lessons: tuple[str, ...] = ()) -> tuple[list[Verdict], list[str]]:
    """(verdicts on the exercises that the file defines, remarks). Its functions are run.

    Raises: FileNotFoundError.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}.")
    submission, answers, verdicts = read_submission(path, Path(path).stem), {}, []
    asked = chosen(lessons)
    loaded = define_all(submission.files, [exercise.name for exercise in asked], answers)
    remarks = [*submission.remarks, *loaded["remarks"]]
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    for exercise in asked:
        state = loaded["found"].get(exercise.name)
        if state is None:
            continue
        if state["is"] == "broken":
            failed = (("all", "broken", state["evidence"]),)
            verdicts.append(Verdict(exercise.key, exercise.name, 0, exercise.points, failed, exercise.read))
            continue
        verdicts.append(judge(exercise, answers[exercise.name], student_seed=student_seed_of(folder)))
        if state["remark"] and not verdicts[-1].passed:
            remarks.append(f"{exercise.key}: {state['remark']}")
    return verdicts, remarks
