"""The course in a class: student and instructor notebooks, a site, and grading in a process that knows no answers.

    natgrad course build --student out/      what students get
    natgrad course grade submissions/ --csv grades.csv

Imported lazily: the grader's child process (`child.py`) starts from this package and must stay small.
"""

from importlib import import_module

_NAMES = {
    "Sandbox": "sandbox", "Record": "grade", "grade": "grade", "grade_all": "grade", "submissions": "submissions",
    "build_student": "build", "build_instructor": "build", "build_site": "site", "build_nbgrader": "nbgrader",
    "build_gradescope": "gradescope", "standalone": "source",
}  # fmt: skip
__all__ = list(_NAMES)


def __getattr__(name: str):
    """Import the public name from the file that defines it."""
    if name not in _NAMES:
        raise AttributeError(f"natgrad_lab.classroom has no {name!r}. It has: {', '.join(__all__)}.")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
