"""What is handed in is read, never unpacked; and a class's grades are kept, resumed and written as a CSV."""

import csv
import io
import json
import zipfile
from dataclasses import replace

import pytest

from natgrad_lab.classroom import grade as grading
from natgrad_lab.classroom import report
from natgrad_lab.classroom.gradescope import results
from natgrad_lab.classroom.submissions import names_of, read_submission, submissions
from natgrad_lab.course.check import Verdict

CODE = "def natural_gradient(F, g, damping):\n    return g\n"


def notebook(*cells):
    kinds = [{"cell_type": "markdown", "source": "text"}, *({"cell_type": "code", "source": cell} for cell in cells)]
    return json.dumps({"cells": kinds, "nbformat": 4, "nbformat_minor": 5, "metadata": {}})


def zipped(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


@pytest.fixture
def folder(tmp_path):
    """One submission of each kind."""
    place = tmp_path / "submissions"
    (place / "carl" / "sub").mkdir(parents=True)
    (place / "ada.ipynb").write_text(notebook(CODE, ["x = 1\n", "y = 2"]))
    (place / "bob.py").write_text(CODE)
    (place / "carl" / "sub" / "one.py").write_text(CODE)
    (place / "carl" / "notes.txt").write_text("=1+1")
    zipped(place / "dora.zip", [("a/b.py", CODE), ("__MACOSX/._b.py", "junk"), ("c.ipynb", notebook("z = 1"))])
    (place / ".hidden.py").write_text("")
    (place / "essay.pdf").write_text("")
    return place


def test_each_kind_is_read(folder):
    paths, left_out = submissions(folder)
    assert names_of(paths) == ["ada", "bob", "carl", "dora"] and left_out == [
        "left out: essay.pdf (no .ipynb, .py, .zip or folder)"
    ]
    read = {s.student: s.files for s in map(read_submission, paths, names_of(paths))}
    assert read == {
        "ada": {"ada.ipynb": [CODE, "x = 1\ny = 2"]}, "bob": {"bob.py": [CODE]}, "carl": {"sub/one.py": [CODE]},
        "dora": {"a/b.py": [CODE], "c.ipynb": ["z = 1"]},
    }  # fmt: skip


def test_two_with_one_name_are_told_apart(folder):
    (folder / "bob.zip").write_bytes((folder / "dora.zip").read_bytes())
    assert names_of(submissions(folder)[0]) == ["ada", "bob.py", "bob.zip", "carl", "dora"]


@pytest.mark.parametrize("place", ["nothing", "ada.py"])
def test_no_folder(tmp_path, place):
    with pytest.raises(FileNotFoundError, match="one file, folder or zip for each student"):
        submissions(tmp_path / place)
    with pytest.raises(ValueError, match="holds no"):
        submissions(tmp_path)


@pytest.mark.parametrize("name, data, complaint", [
    ("a.zip", b"no zip at all", "cannot be read: BadZipFile"),
    ("a.py", b"\xff\xfe\x00", "no notebook or UTF-8 text"),
    ("a.ipynb", b"[1, 2]", "no notebook"),
    ("a.ipynb", b'{"cells": 3}', "no notebook"),
    ("a.ipynb", b"[" * 200_000, "no notebook"),
    ("a.ipynb", b'{"cells": [7]}', "no notebook"),
])  # fmt: skip
def test_rubbish_is_a_remark(tmp_path, name, data, complaint):
    (tmp_path / name).write_bytes(data)
    read = read_submission(tmp_path / name, "a")
    assert read.files == {} and complaint in read.remarks[0] and "nothing" not in read.remarks
    assert read.remarks[-1] == "there is no .ipynb or .py to grade"


def test_a_notebook_with_large_pictures_is_read_and_there_is_an_end(tmp_path, monkeypatch):
    cell = {"cell_type": "code", "source": CODE, "outputs": [{"data": {"image/png": "A" * 50_000_000}}]}
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [cell]}))
    read = read_submission(tmp_path / "a.ipynb", "a")
    assert read.files == {"a.ipynb": [CODE]} and read.remarks == ()
    monkeypatch.setattr("natgrad_lab.classroom.submissions.MOST_FILE", 49_000_000)
    assert "not a plain file of at most 49 MB" in read_submission(tmp_path / "a.ipynb", "a").remarks[0]


def test_a_zip_leads_nowhere(tmp_path):
    link = zipfile.ZipInfo("link.py")
    link.external_attr = 0o120777 << 16
    path = zipped(tmp_path / "a.zip", [("../../evil.py", CODE), ("/abs.py", CODE), (link, "/etc/passwd"), ("ok.py", CODE)])
    read = read_submission(path, "a")
    assert set(read.files) == {"../../evil.py", "/abs.py", "ok.py"} and read.remarks == ("link.py: a link is not followed",)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"] and not (tmp_path.parent / "evil.py").exists()


def test_a_bomb_is_not_swallowed(tmp_path, monkeypatch):
    monkeypatch.setattr("natgrad_lab.classroom.submissions.MOST_FILE", 20_000_000)
    path = zipped(tmp_path / "a.zip", [("bomb.py", b"0" * 30_000_000), ("ok.py", CODE)])
    assert path.stat().st_size < 100_000
    assert "more than 20 MB" in read_submission(path, "a").remarks[0]
    many = zipped(tmp_path / "b.zip", [(f"{i}.py", "") for i in range(600)])
    assert "more than 500 entries" in read_submission(many, "b").remarks[0]


def test_links_in_folders_are_not_followed(tmp_path):
    (tmp_path / "secret.py").write_text(CODE)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link.py").symlink_to(tmp_path / "secret.py")
    (tmp_path / "b.py").symlink_to(tmp_path / "secret.py")
    for name in ("a", "b.py"):
        read = read_submission(tmp_path / name, name)
        assert read.files == {} and "a link is not followed" in read.remarks[0]


# ---- a class


@pytest.fixture
def counted(monkeypatch):
    """Grading that counts, in place of the sandbox."""
    calls = []

    def fake(submission, sandbox, settings):
        calls.append(submission.student)
        failed = () if submission.student == "ada" else (("structure", "M16", "x"),)
        verdict = Verdict("3.1", "natural_gradient", 9 - 5 * len(failed), 9, failed, "Damping")
        return grading.Record(
            submission.student, grading.fingerprint(submission, settings), (verdict,), submission.remarks, 0.1
        )

    monkeypatch.setattr(grading, "grade", fake)
    return calls


def test_what_is_graded_is_not_graded_again_unless_something_changed(folder, tmp_path, counted, monkeypatch):
    paths, keep = submissions(folder)[0], tmp_path / "kept.jsonl"
    settings = grading.Settings(lessons=("03",))
    first = grading.grade_all(paths, settings, keep=keep)
    assert counted == ["ada", "bob", "carl", "dora"] and [r.student for r in first] == counted
    told = []
    assert grading.grade_all(paths, settings, keep=keep, tell=lambda record, was: told.append((record.student, was))) == first
    assert len(counted) == 4 and told == [(name, True) for name in counted]
    (folder / "bob.py").write_text(CODE + "\n# new")
    assert len(grading.grade_all(paths, settings, keep=keep)) == 4 and counted[4:] == ["bob"]
    grading.grade_all(paths, replace(settings, seed="autumn"), keep=keep)
    assert counted[5:] == ["ada", "bob", "carl", "dora"]
    monkeypatch.setattr(grading, "course_version", lambda: "another")
    grading.grade_all(paths[:1], settings, keep=keep)
    assert counted[9:] == ["ada"]


def test_a_torn_line_is_graded_again(folder, tmp_path, counted):
    paths, keep = submissions(folder)[0], tmp_path / "kept.jsonl"
    settings = grading.Settings(lessons=("03",))
    first = grading.grade_all(paths, settings, keep=keep)
    keep.write_text(keep.read_text()[:-40] + "\n[1]\nnull\n")
    assert grading.grade_all(paths, settings, keep=keep) == first and counted[4:] == ["dora"]


def test_lessons_that_there_are_not():
    with pytest.raises(ValueError, match="no lesson '99' with exercises. There are: 0"):
        grading.chosen(("99",))
    assert {e.key[0] for e in grading.chosen(("03",))} == {"3"}


def test_the_csv_and_no_formula_in_it():
    evil = '=HYPERLINK("http://x","y")'
    verdicts = (
        Verdict("3.1", "natural_gradient", 4, 9, (("structure", "M16", ""),), "Damping"),
        Verdict("3.2", "pullback_step", 0, 9, (("shape", "raised", "+1\nValueError: x (line 3: y)"),), "x"),
    )
    records = [
        grading.Record(evil, "f", verdicts, ("-2+3", "@x\r\n=1"), 0.1),
        grading.Record("zoë, 'q\" ｅ", "f", tuple(replace(v, points=9, failed=()) for v in verdicts), (), 0.1),
    ]
    rows = list(csv.reader(io.StringIO(report.csv_text(records))))
    assert rows[0] == [
        "student",
        "3.1 natural_gradient (9)",
        "3.2 pullback_step (9)",
        "points",
        "out of",
        "mistakes",
        "remarks",
    ]
    assert rows[1][:5] == ["'" + evil, "4", "0", "4", "18"] and rows[1][5] == "3.1:M16 3.2:raised"
    assert rows[1][6].startswith("'-2+3; @x") and "ValueError" in rows[1][6]
    assert rows[2] == ["zoë, 'q\" ｅ", "9", "9", "18", "18", "", ""]
    assert all(not cell.startswith(("=", "+", "-", "@", "\t", "\r")) and "\n" not in cell for row in rows for cell in row)
    assert report.frequencies(records)[0][::3] == ("3.1", 1) and len(report.frequencies(records)) == 2


def test_gradescope_results():
    verdicts = (Verdict("3.1", "natural_gradient", 4, 9, (("structure", "M16", "w"),), "Damping"),)
    made = results(grading.Record("ada", "f", verdicts, ("careful",), 1.5))
    assert json.loads(json.dumps(made)) == made and made["score"] == 4 and made["execution_time"] == 1.5
    (test,) = made["tests"]
    assert (test["score"], test["max_score"], test["visibility"]) == (4, 9, "visible") and "plain gradient" in test["output"]
