"""`natgrad course` as an instructor types it."""

import csv
import json

import pytest

from natgrad_lab.classroom.source import standalone
from natgrad_lab.cli import main
from natgrad_lab.course import find_exercise

RIGHT = find_exercise("3.1")


def run(capsys, *argv):
    code = main(["course", *map(str, argv)])
    out = capsys.readouterr()
    return code, out.out + out.err


def test_list(capsys):
    code, said = run(capsys, "list")
    assert code == 0 and "3.1" in said and "natural_gradient" in said and "points in all" in said


def test_check(capsys, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        standalone(RIGHT.reference) + '\ndef pullback_step(F, g, J):\n    raise NotImplementedError("Exercise 3.2")\n'
    )
    code, said = run(capsys, "check", file)
    assert code == 0 and "✓ 3.1" in said and "○ 3.2" in said and "9 of 18 points; 1 written" in said
    file.write_text("def natural_gradient(F, g, damping):\n    return g.clone()\n")
    code, said = run(capsys, "check", file)
    assert code == 1 and "plain gradient" in said and "Read again" in said
    file.write_text("x = 1")
    assert run(capsys, "check", file)[0] == 2 and run(capsys, "check", tmp_path / "no.py")[0] == 2


@pytest.mark.parametrize("argv, complaint", [
    (("build",), "say what to build"),
    (("build", "--student-seed", "ada"), "--student-seed belongs to --student"),
    (("build", "--student", "x", "--lessons", "3a"), "--lessons takes numbers"),
    (("build", "--student", "x", "--lessons", "88"), "no lesson '88'"),
    (("grade", "x"), "say where the grades go"),
    (("grade", "x", "--csv", "g.csv"), "there is no folder 'x'"),
    (("grade", ".", "--csv", "g.csv"), "holds no .ipynb"),
])  # fmt: skip
def test_what_is_refused(capsys, tmp_path, monkeypatch, argv, complaint):
    monkeypatch.chdir(tmp_path)
    code, said = run(capsys, *argv)
    assert code == 2 and complaint in " ".join(said.split())
    assert list(tmp_path.iterdir()) == []


def test_a_class_is_graded_and_again_in_no_time(capsys, tmp_path):
    folder, out = tmp_path / "submissions", tmp_path / "grades.csv"
    folder.mkdir()
    (folder / "ada.py").write_text(standalone(RIGHT.reference))
    theirs = f"open({str(folder / 'ada.py')!r}).read()"
    (folder / "bob.py").write_text(f"def natural_gradient(F, g, damping):\n    {theirs}\n    return g.clone()\n")
    (folder / "=cmd.py").write_text("def natural_gradient(F, g, damping):\n    return g.clone()\n")
    (folder / "notes.txt").write_text("")
    code, said = run(capsys, "grade", folder, "--csv", out, "--lessons", "3", "--jobs", "1", "--timeout", "6")
    words = " ".join(said.split())
    assert code == 0 and "3.1 M16" in words and "left out: notes.txt" in words and "3 submissions" in words
    assert "audit hook" in words and "bob: refused: it tried to open the exercises' answers or other submissions" in words
    rows = {row["student"]: row for row in csv.DictReader(out.read_text(encoding="utf-8-sig").splitlines())}
    assert rows["ada"]["3.1 natural_gradient (9)"] == "9" and "3.1:" not in rows["ada"]["mistakes"]
    assert rows["'=cmd"]["mistakes"].startswith("3.1:M16") and rows["bob"]["mistakes"].startswith("3.1:raised")
    assert len((tmp_path / "grades.csv.jsonl").read_text().splitlines()) == 3
    code, again = run(capsys, "grade", folder, "--csv", out, "--lessons", "3", "--jobs", "1", "--timeout", "6")
    assert code == 0 and "3 submissions, 3 of them not graded again" in again
    code, said = run(capsys, "grade", folder, "--csv", folder / "g.csv")
    assert code == 2 and "lies among the submissions" in " ".join(said.split())


def test_one_student_for_gradescope(capsys, tmp_path):
    (tmp_path / "submission").mkdir()
    (tmp_path / "submission" / "a.py").write_text(standalone(RIGHT.reference))
    code, said = run(capsys, "grade", tmp_path / "submission", "--gradescope", tmp_path / "results.json", "--lessons", "03")
    made = json.loads((tmp_path / "results.json").read_text())
    assert code == 0 and made["score"] == 9 and made["tests"][0]["score"] == 9 and len(made["tests"]) == 4
