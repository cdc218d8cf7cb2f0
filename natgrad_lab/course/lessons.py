"""Which lessons there are: each collection of the course has one file lessonNN.py a lesson."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules


@cache
def lesson_modules(collection: str) -> dict[str, object]:
    """{"03": the module course/<collection>/lesson03.py, ...} in order; `collection` is cards, exercises or claims."""
    package = import_module(f"natgrad_lab.course.{collection}")
    names = sorted(module.name for module in iter_modules(package.__path__) if module.name.startswith("lesson"))
    return {name.removeprefix("lesson"): import_module(f"{package.__name__}.{name}") for name in names}
