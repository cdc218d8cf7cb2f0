"""Judge an answer: every part on several random instances; one verdict that says what is wrong and where to read."""

import copy
import hashlib
import inspect
import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from natgrad_lab.course.diagnose import Mistake
from natgrad_lab.course.exercise import Exercise, Part, find_exercise
from natgrad_lab.course.mistakes import mistakes

INSTANCES = 3  # random instances of each part


@dataclass(frozen=True)
class Verdict:
    """What came out: points, and for each part that failed (part, key of the mistake, evidence)."""

    exercise: str
    name: str
    points: int
    out_of: int
    failed: tuple[tuple[str, str, str], ...]
    read: str

    @property
    def passed(self) -> bool:
        """Whether every part holds."""
        return not self.failed

    def _ipython_display_(self) -> None:
        """Show nothing as the last value of a cell: `check` has printed it."""

    def __str__(self) -> str:
        if self.passed:
            return f"✓ {self.exercise} {self.name}: right, {self.points} of {self.out_of} points."
        if self.failed[0][1] == "not_written":
            return f"○ {self.exercise} {self.name}: not written yet ({self.out_of} points)."
        lines = [f"✗ {self.exercise} {self.name}: {self.points} of {self.out_of} points."]
        parts: dict[tuple[str, str], list[str]] = {}
        for part, key, evidence in self.failed:
            parts.setdefault((key, evidence), []).append(part)
        for (key, evidence), names in parts.items():
            lines.append(
                f"  {', '.join(dict.fromkeys(names))}: {mistakes()[key]}" + (f"\n      {evidence}" if evidence else "")
            )
        return "\n".join([*lines, f"  Read again: {self.read}" + ("" if self.read.endswith("?") else ".")])


def check(key: str, answer: Callable, *, student_seed: str = "") -> Verdict:
    """Judge `answer` to exercise `key` and print the verdict. Never raises for a wrong answer, never shows the right one.

    Args:
        key: "3.1", or the function's name.
        answer: the student's function.
        student_seed: draws other instances for other students; the properties are the same. If it is not given, it is
            that of .natgrad/student.json in the working folder, which `natgrad course build --student-seed` writes.
    Raises: ValueError if there is no such exercise.
    """
    verdict = judge(find_exercise(key), answer, student_seed=student_seed or student_seed_of(Path.cwd()))
    print(verdict)
    return verdict


def student_seed_of(folder: Path) -> str:
    """The seed in .natgrad/student.json of a folder; "" without that file. Raises: ValueError if it cannot be read."""
    place = Path(folder) / ".natgrad" / "student.json"
    if not place.is_file():
        return ""
    try:
        return str(json.loads(place.read_text(encoding="utf-8"))["seed"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{place} should hold {{"seed": "a word"}}; remove it or mend it.') from None


def judge(exercise: Exercise, answer: Callable, *, student_seed: str = "", is_guarded: bool = False) -> Verdict:
    """The verdict on `answer`, silently; the same arguments give the same verdict.

    Args:
        exercise: whose properties are asked for.
        answer: a function; one with `is_guarded` raises nothing but `Mistake`, as one that runs in another process.
        student_seed: as in `check`.
        is_guarded: see `answer`.
    """
    safely = answer if is_guarded else guarded(answer)
    failed, points = [], 0
    for part in exercise.parts:
        mistake = _first_mistake(exercise, part, safely, student_seed, failed[-1][1:] if failed else ())
        if mistake is None:
            points += part.points
        else:
            failed.append((part.name, mistake.key, mistake.evidence))
            if mistake.key == "not_written":
                break
    return Verdict(exercise.key, exercise.name, points, exercise.points, tuple(failed), exercise.read)


def _first_mistake(exercise: Exercise, part: Part, answer: Callable, student_seed: str, told: tuple) -> Mistake | None:
    """What the part finds; `told` is the (key, evidence) of an earlier part."""
    before, dtype = torch.get_rng_state(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        for number in range(INSTANCES):
            words = f"{exercise.key}/{part.name}/{number}/{student_seed}"
            seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:6], "big")
            part.check(answer, torch.Generator().manual_seed(seed))
        return None
    except Mistake as mistake:
        return mistake
    except Exception as error:  # the property itself could not bear what the answer returned: the earlier part said why
        return Mistake(*told) if told else Mistake("kind", _said(error))
    finally:
        torch.set_rng_state(before)
        torch.set_default_dtype(dtype)


def guarded(answer: Callable) -> Callable:
    """`answer`, refused if it changes its arguments or the global random numbers; its errors become mistakes."""

    def call(*args, **options):
        kept = copy.deepcopy((args, options))
        state = torch.get_rng_state()
        torch.set_default_dtype(torch.float64)
        try:
            result = answer(*args, **options)
        except Mistake:
            raise
        except NotImplementedError as error:
            if any(words in str(error) for words in ("not implemented for", "Could not run")):  # PyTorch's words
                raise Mistake("raised", _where(error, answer)) from None
            raise Mistake("not_written") from None
        except (Exception, SystemExit) as error:
            raise Mistake("raised", _where(error, answer)) from None
        if not torch.equal(state, torch.get_rng_state()):
            raise Mistake("global_rng")
        if not _same((args, options), kept):
            raise Mistake("changed_input")
        _without_graph((args, options), kept)
        return result

    return call


def _without_graph(now, before) -> None:
    """Undo `requires_grad_` and `backward` on tensors: the caller computes with them, and hands them out again."""
    if isinstance(before, torch.Tensor) and not before.requires_grad:
        now.requires_grad_(False).grad = None
    elif isinstance(before, dict):
        for key in before:
            _without_graph(now[key], before[key])
    elif isinstance(before, list | tuple):
        for a, b in zip(now, before, strict=True):
            _without_graph(a, b)


def _same(now, before) -> bool:
    if isinstance(before, torch.Tensor):
        return torch.equal(torch.nan_to_num(now), torch.nan_to_num(before))
    if isinstance(before, torch.nn.Module):
        return all(_same(a, b) for a, b in zip(now.state_dict().values(), before.state_dict().values(), strict=True))
    if isinstance(before, dict):
        return now.keys() == before.keys() and all(_same(now[key], before[key]) for key in before)
    if isinstance(before, list | tuple):
        return len(now) == len(before) and all(_same(a, b) for a, b in zip(now, before, strict=True))
    return now is before or not isinstance(before, int | float | str) or now == before  # a kept NaN is the same object


def _where(error: BaseException, answer: Callable) -> str:
    """The error and the line of the answer's own file that led to it, if one did: a call with other arguments has none."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(getattr(inspect.unwrap(answer), "__code__", None), "co_filename", "")
    own = next((frame for frame in reversed(frames) if frame.filename == file), None)
    place = f" (line {own.lineno}: {own.line or own.name})" if own else ""
    return _said(error) + place


def _said(error: BaseException) -> str:
    """Its first line: PyTorch appends tables of what it could have run."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
