"""What an instructor reads: a CSV with one row a student, how often each mistake came up, and words for one verdict."""

import csv
import io
from collections import Counter
from pathlib import Path

from natgrad_lab.classroom.grade import Record
from natgrad_lab.course.check import Verdict
from natgrad_lab.course.mistakes import mistakes

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "＝", "＋", "－", "＠")


def write_csv(records: list[Record], path: Path) -> None:
    """Student, points an exercise, total, the first mistake of each exercise, remarks. Written whole or not at all."""
    part = Path(path).with_name(Path(path).name + ".part")
    part.write_text(csv_text(records), encoding="utf-8-sig", newline="")
    part.replace(path)


def csv_text(records: list[Record]) -> str:
    """The CSV; a cell that a spreadsheet would take for a formula begins with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text)
    columns = [f"{v.exercise} {v.name} ({v.out_of})" for v in records[0].verdicts] if records else []
    writer.writerow([safe(word) for word in ["student", *columns, "points", "out of", "mistakes", "remarks"]])
    for record in records:
        first = [f"{v.exercise}:{v.failed[0][1]}" for v in record.verdicts if v.failed]
        points = [v.points for v in record.verdicts]
        words = [safe(" ".join(first)), safe("; ".join([*record.remarks, *_evidence(record)]))]
        writer.writerow([safe(record.student), *points, record.points, record.out_of, *words])
    return text.getvalue()


def safe(word: str) -> str:
    """The word on one line, never a formula."""
    word = "".join(c if c.isprintable() else " " for c in word).strip()
    return "'" + word if word.startswith(_FORMULA) else word


def frequencies(records: list[Record]) -> list[tuple[str, str, str, int]]:
    """(exercise, key of the first mistake, its words, students), the most frequent first."""
    seen = Counter((v.exercise, v.failed[0][1]) for record in records for v in record.verdicts if v.failed)
    rows = [(exercise, key, mistakes().get(key, key), count) for (exercise, key), count in seen.items()]
    return sorted(rows, key=lambda row: (-row[3], row[0], row[1]))


def explain(verdict: Verdict) -> str:
    """The verdict in the checker's words."""
    return str(verdict)


def _evidence(record: Record) -> list[str]:
    """Where an answer raised or ended: the first line of why."""
    telling = ("raised", "broken", "ended", "slow")
    return [f"{v.exercise}: {v.failed[0][2]}"[:200] for v in record.verdicts if v.failed and v.failed[0][1] in telling]
