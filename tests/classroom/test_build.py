"""What a class gets: no answer in a student's notebook, every answer in an instructor's, metadata that nbgrader takes."""

import json
import re
import zipfile

import pytest

from natgrad_lab.classroom import build as building
from natgrad_lab.classroom.gradescope import build_gradescope
from natgrad_lab.classroom.nbgrader import BEGIN, END, build_nbgrader
from natgrad_lab.classroom.source import own_lines, standalone
from natgrad_lab.course import exercises, judge
from natgrad_lab.course.check import check, student_seed_of
from natgrad_lab.course.lessons import lesson_modules

WRITTEN = [lesson.number for lesson in building.lessons() if lesson.exercises]


NO_MATTER = ('"""', "#", "def ", "for ", "import", "from", "class ")


def cells_of(path, kind="code"):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    out = tmp_path_factory.mktemp("student")
    building.build_student(out, seed="ada")
    return out


@pytest.fixture(scope="module")
def instructor(tmp_path_factory):
    out = tmp_path_factory.mktemp("instructor")
    building.build_instructor(out)
    return out


# ---- students


def test_no_line_of_an_answer_is_in_any_students_file(student):
    """Looked for anew, by another way than the builder's own."""
    files = {path: path.read_text(encoding="utf-8") for path in student.rglob("*") if path.is_file()}
    texts = {path: json.dumps(json.loads(text), ensure_ascii=False) for path, text in files.items()}
    lines = {
        line
        for path in student.glob("*.ipynb")
        for cell in json.loads(files[path])["cells"]
        for line in "".join(cell["source"]).splitlines()
    }
    stripped = {line.strip() for line in lines}
    assert len(texts) == len(building.lessons()) + 1
    for exercise in exercises().values():
        for answer in (exercise.reference, *exercise.others, *(wrong for _, wrong in exercise.wrong)):
            body = [line for line in own_lines(answer)[1:] if len(line) >= 24 and not line.startswith(NO_MATTER)]
            held = [line for line in body if line in stripped]
            if answer.__name__ != "<lambda>" and held:  # one line of several may be what the lesson shows
                assert len(held) == 1 < len(body) and not held[0].startswith("return"), f"{exercise.key}: {held}"
    assert "course.exercises" not in "".join(texts.values())


def test_students_notebooks_have_stubs_and_no_outputs(student):
    for lesson in building.lessons():
        notebook = json.loads((student / lesson.path.with_suffix(".ipynb").name).read_text())
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
        text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
        assert "<!--" not in text
        for exercise in lesson.exercises:
            assert f'raise NotImplementedError("Exercise {exercise.key}")' in text


def test_a_leak_is_refused(monkeypatch, tmp_path):
    key, lines = next(
        (key, lines) for key, lines in building.telling_lines() if len(lines) > 2 and lines[-1].startswith("return")
    )
    assert building.leaks(f"x\n    {lines[-1]}  \ny") == [f"{key}: {lines[-1]}"]
    assert set(building.leaks("\n".join(lines))) >= {f"{key}: {line}" for line in lines}
    assert building.leaks("import torch\n    return x") == [] and building.leaks("") == []
    monkeypatch.setattr(building, "leaks", lambda text: ["3.1: a line"])
    with pytest.raises(ValueError, match="holds lines of answers"):
        building.build_student(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_seed_is_found_and_changes_the_numbers(student, monkeypatch, capsys, tmp_path):
    assert student_seed_of(student) == "ada" and student_seed_of(tmp_path) == ""
    exercise, wrong = next(
        (e, a)
        for e in exercises().values()
        for k, a in e.wrong
        if "line" not in k and judge(e, a).failed[0][2] != judge(e, a, student_seed="ada").failed[0][2]
    )
    monkeypatch.chdir(student)
    assert check(exercise.key, wrong) == judge(exercise, wrong, student_seed="ada") != judge(exercise, wrong)
    assert check(exercise.key, wrong, student_seed="bob") == judge(exercise, wrong, student_seed="bob")
    (tmp_path / ".natgrad").mkdir()
    (tmp_path / ".natgrad" / "student.json").write_text("{")
    with pytest.raises(ValueError, match="should hold"):
        student_seed_of(tmp_path)


def test_lessons_are_chosen_by_number(tmp_path):
    (path,) = building.build_student(tmp_path, [WRITTEN[0]])
    assert path.name.startswith(WRITTEN[0]) and not (tmp_path / ".natgrad").exists()
    with pytest.raises(ValueError, match="no lesson '77'. There are: 00"):
        building.lessons(["77"])


# ---- instructors


def test_every_stub_is_an_answer_that_passes(instructor):
    """The cell alone, in an empty namespace: it needs nothing else."""
    for lesson in building.lessons():
        cells = cells_of(instructor / lesson.path.with_suffix(".ipynb").name)
        assert not any("raise NotImplementedError(" in cell for cell in cells)
        for exercise in lesson.exercises:
            holding = [cell for cell in cells if standalone(exercise.reference).strip() in cell]
            cell = min(holding, key=len)  # a later exercise may use an earlier one as its helper
            scope = {}
            exec(compile(cell, "<cell>", "exec"), scope)
            assert judge(exercise, scope[exercise.name]).passed


def test_instructors_see_the_wrong_answers_and_the_polls(instructor):
    for lesson in building.lessons(WRITTEN):
        text = "\n".join(cells_of(instructor / lesson.path.with_suffix(".ipynb").name, "markdown"))
        for exercise in lesson.exercises:
            assert f"For instructors: {exercise.key}, {exercise.points} points" in text
            assert all(f"* `{key}` " in text for key, _ in exercise.wrong)
        for card in lesson_modules("cards")[lesson.number].CARDS:
            assert card.prediction.question in text


# ---- nbgrader, Gradescope


REQUIRED = {"schema_version": int, "grade": bool, "locked": bool, "solution": bool}
OPTIONAL = {"task": bool, "grade_id": str, "points": int}


def test_nbgrader_metadata_follow_its_schema(tmp_path):
    """Version 3 of nbgrader's cell schema, written out here: it need not be installed."""
    files = build_nbgrader(tmp_path)
    assert {path.parent.name for path in files[:-1]} == {f"lesson_{number}" for number in WRITTEN}
    for path in files[:-1]:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if "nbgrader" in cell["metadata"]]
        ids = [cell["metadata"]["nbgrader"]["grade_id"] for cell in cells]
        here = [e for e in exercises().values() if f"{int(e.key.partition('.')[0]):02d}" == path.name[:2]]
        assert len(set(ids)) == len(ids) == 2 * len(here)
        for cell in cells:
            has = cell["metadata"]["nbgrader"]
            assert set(REQUIRED) <= set(has) <= set(REQUIRED) | set(OPTIONAL) and has["schema_version"] == 3
            assert all(type(value) is (REQUIRED | OPTIONAL)[key] for key, value in has.items())
            assert re.fullmatch(r"[a-zA-Z0-9_\-]+", has["grade_id"]) and ("points" in has) == has["grade"]
            assert has["solution"] != has["grade"] and has["locked"] == has["grade"] and not has["task"]
            compile("".join(cell["source"]), "cell", "exec")
        assert sum(c["metadata"]["nbgrader"].get("points", 0) for c in cells) == sum(e.points for e in here)


def test_nbgraders_release_would_hold_no_answer_and_its_source_passes(tmp_path):
    for path in build_nbgrader(tmp_path)[:-1]:
        solutions = [cell for cell in cells_of(path) if BEGIN in cell]
        for cell in solutions:
            scope = {}
            exec(compile(cell, "<cell>", "exec"), scope)
            (exercise,) = [e for e in exercises().values() if callable(scope.get(e.name))]
            assert judge(exercise, scope[exercise.name]).passed
            release = re.sub(rf"(?s)    {BEGIN}.*?{END}", "    raise NotImplementedError()", cell)
            assert building.leaks(release) == [] and "raise NotImplementedError()" in release
            exec(compile(release, "<cell>", "exec"), {})


def test_the_gradescope_zip(tmp_path):
    with zipfile.ZipFile(build_gradescope(tmp_path / "a.zip", ("03",))) as archive:
        names = set(archive.namelist())
        assert {
            "setup.sh",
            "run_autograder",
            "pyproject.toml",
            "natgrad_lab/course/exercises/lesson03.py",
            "data/digits.npz",
        } <= names
        assert (
            archive.getinfo("run_autograder").external_attr >> 16 & 0o111
            and "--lessons 03" in archive.read("run_autograder").decode()
        )
        assert not [name for name in names if "__pycache__" in name or name.startswith(("tests", "/"))]


def test_binder_gets_the_torch_that_is_pinned():
    from natgrad_lab import environment

    root = environment.checkout()
    (pin,) = re.findall(r"(?m)^torch==(.*)$", (root / "constraints.txt").read_text())
    lines = (root / "binder" / "requirements.txt").read_text().splitlines()
    assert f"torch=={pin}+cpu" in lines and f"--extra-index-url {environment.CPU_TORCH_INDEX}" in lines
    assert (root / "binder" / "postBuild").stat().st_mode & 0o111 and (
        root / "binder" / "runtime.txt"
    ).read_text() == "python-3.11\n"


# ---- sources of functions


@pytest.mark.parametrize("exercise", exercises().values(), ids=lambda e: e.key)
def test_every_reference_stands_alone(exercise):
    scope = {}
    exec(compile(standalone(exercise.reference, "answer"), "<answer>", "exec"), scope)
    assert judge(exercise, scope["answer"]).passed


def test_what_has_no_source_of_its_own_is_refused():
    import functools

    key = 3
    for function in (lambda x: x + key, functools.partial(print, 1), (lambda x, y=key: y)):
        with pytest.raises(ValueError, match="no plain function"):
            standalone(function)


def test_students_notebooks_are_run_as_they_are_and_keep_no_outputs(tmp_path, monkeypatch):
    ran = []

    def execute(notebook, folder):
        ran.append((folder, any("NotImplementedError" in cell.source for cell in notebook.cells)))
        notebook.cells[-1].source = "spoilt"
        if len(ran) == 2:
            raise RuntimeError("a cell failed.")

    monkeypatch.setattr(building, "execute", execute)
    (path,) = building.build_student(tmp_path, ["03"], run=True)
    assert ran == [(tmp_path, True)] and "spoilt" not in path.read_text(encoding="utf-8")
    with pytest.raises(RuntimeError, match="03_exact_natural_gradient.ipynb: a cell failed"):
        building.build_student(tmp_path, ["03"], run=True)
