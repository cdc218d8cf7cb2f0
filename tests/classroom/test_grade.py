"""Grading in a process apart: the same verdicts as here, whatever students write, and nothing of it gets out."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch

from natgrad_lab.classroom.grade import Settings, grade
from natgrad_lab.classroom.sandbox import Sandbox
from natgrad_lab.classroom.source import standalone
from natgrad_lab.classroom.submissions import Submission
from natgrad_lab.course import exercises, find_exercise, judge
from natgrad_lab.course.diagnose import Mistake

SETTINGS = Settings(lessons=("03",))
RIGHT = """
import torch

def natural_gradient(F, g, damping):
    {evil}
    return torch.linalg.solve(F + damping * torch.eye(len(g)), g)
"""


def submitted(*cells, student="ada"):
    return Submission(student, {"answers.ipynb": list(cells)}, (), "digest")


def graded(sandbox, evil, settings=SETTINGS):
    """(verdict on 3.1, its first key and evidence, all remarks) of a right answer that does something else first."""
    record = grade(submitted(RIGHT.format(evil=evil)), sandbox, settings)
    verdict = record.verdicts[0]
    key, evidence = verdict.failed[0][1:] if verdict.failed else ("", "")
    return verdict, key, evidence, "; ".join(record.remarks), record


# ---- the same verdicts


def answers_of(exercise):
    """(name, source, answer) of everything that its file can be read for."""
    for number, answer in enumerate((exercise.reference, *exercise.others, *(wrong for _, wrong in exercise.wrong))):
        name = f"answer_{exercise.key.replace('.', '_')}_{number}"
        try:
            yield name, standalone(answer, name), answer
        except ValueError:
            continue


def plain(verdict):
    """All of a verdict but the line numbers of errors."""
    return verdict.points, [(part, key, "" if key == "raised" else words) for part, key, words in verdict.failed]


def differing(sandbox, chosen):
    """Names of answers whose verdict over there is another one, and how many were compared."""
    with sandbox.open({name: [source] for _, name, source, _ in chosen}, [name for _, name, *_ in chosen]) as session:
        session.load()
        wrong = []
        for exercise, name, _, answer in chosen:
            session.begin()
            here, there = (judge(exercise, call, student_seed="emmy") for call in (answer, session.answer(name)))
            if plain(here) != plain(there):
                wrong.append((name, str(here), str(there)))
        assert session.remarks == []
    return wrong


def test_answers_get_the_verdict_they_get_here(sandbox, monkeypatch):
    """A right and a wrong answer in turn, of every fourth exercise that has answers that can be written as source."""
    monkeypatch.setattr(sys.modules["natgrad_lab.course.check"], "INSTANCES", 1)
    chosen = []
    for number, exercise in enumerate(list(exercises().values())[::4]):
        some = list(answers_of(exercise))
        chosen.append((exercise, *some[0 if number % 2 == 0 else -1]))
    assert len(chosen) >= 8
    assert differing(sandbox, chosen) == []


def test_generators_and_models_travel_and_come_back(sandbox):
    source = (
        "import torch\ndef draw(generator, words):\n    return torch.randn(3, generator=generator)\n"
        "def out(model, x):\n    return model(x)\n"
        "def spoil(model, x):\n    torch.nn.init.zeros_(next(model.parameters()))\n    return x"
    )
    import natgrad_lab as ng

    generator, twin = (torch.Generator().manual_seed(5) for _ in range(2))
    model, x = ng.models.mlp((3, 4, 2)), torch.randn(5, 3)
    with sandbox.open({"a.py": [source]}, ["draw", "out", "spoil"]) as session:
        session.load()
        for _ in range(2):  # its state comes back: the second draw is another one
            assert torch.equal(session.answer("draw")(generator, words=["a"]), torch.randn(3, generator=twin))
        assert torch.equal(session.answer("out")(model, x), model(x))
        with pytest.raises(Mistake, match="changed_input"):
            session.answer("spoil")(model, x)


def test_the_child_never_holds_an_answer(sandbox):
    source = """
import sys, gc
def natural_gradient(F, g, damping):
    loaded = [name for name in sys.modules if "course.exercises." in name]
    held = [f for f in gc.get_objects() if getattr(f, "__module__", None) == "natgrad_lab.course.exercises.lesson03"]
    return [len(loaded), len(held)]
"""
    with sandbox.open({"a.py": [source]}, ["natural_gradient"]) as session:
        session.load()
        assert session.answer("natural_gradient")(torch.eye(2), torch.ones(2), 0.1) == [0, 0]


# ---- what students write


@pytest.mark.parametrize("evil", [
    "print('x' * 100_000)", "import os; os.write(1, b'\\xff\\x00' * 9)", "open('scratch.txt', 'w').write('x')",
    "import sys; sys.stdout = None", "import warnings; warnings.warn('x')",
    "torch.linalg.inv = lambda M: 1 / 0", "import threading; threading.Thread(target=print, args=('x',)).start()",
    "import sys; sys.stderr.write('x')", "import random; random.random()", "from natgrad_lab.fisher import dense_fisher",
])  # fmt: skip
def test_odd_but_harmless(sandbox, evil):
    verdict, key, evidence, remarks, record = graded(sandbox, evil)
    assert verdict.passed and remarks == "" and len(record.printed) <= 2000, (key, evidence, remarks)


@pytest.mark.parametrize("evil, key, words", [
    ("raise SystemExit", "raised", "SystemExit"),
    ("raise KeyboardInterrupt", "raised", "KeyboardInterrupt"),
    ("raise BaseException('x')", "raised", "BaseException"),
    ("import os; os._exit(0)", "ended", "code 0"),
    ("import os; os.abort()", "ended", "SIGABRT"),
    ("import os; os.write(3, b'rubbish' * 99)", "ended", "grader's channel"),
    ("import os; os.close(3)", "ended", ""),
    ("import os; os.closerange(0, 99)", "ended", ""),
    ("torch.ones(10**11)", "raised", "allocate memory"),
    ("x = bytearray(10**10)", "raised", "MemoryError"),
    ("F.zero_()", "changed_input", ""),
    ("torch.rand(1)", "global_rng", ""),
    ("return object()", "kind", "object"),
    ("return 'words' * 9_000_000", "raised", "too large"),
    ("return undefined", "raised", "undefined"),
    ("import pickle; return type('T', (), {'__reduce__': lambda self: (print, ('x',))})()", "kind", "T"),
])  # fmt: skip
def test_what_goes_wrong_is_named_and_the_rest_goes_on(sandbox, evil, key, words):
    verdict, found, evidence, remarks, record = graded(sandbox, evil)
    assert not verdict.passed and (found, words in evidence) == (key, True), (found, evidence, remarks)
    assert [v.failed[0][1] for v in record.verdicts[1:]] == ["missing"] * (len(record.verdicts) - 1)


REFUSED = [
    ("import natgrad_lab.course.exercises.lesson03", "answers"),
    ("import importlib; importlib.import_module('natgrad_lab.course.exercises.lesson01')", "answers"),
    ("import natgrad_lab as ng; ng.course.find_exercise('3.1')", "answers"),
    ("import natgrad_lab.course as c; open(c.__path__[0] + '/exercises/lesson03.py').read()", "answers"),
    ("import natgrad_lab.course as c, os; os.open(c.__path__[0] + '/exercises/../exercises/lesson03.py', 0)", "answers"),
    ("import os; os.fork()", "start a process"),
    ("import subprocess; subprocess.run(['cat', '/etc/passwd'])", "start a process"),
    ("import os; os.system('true')", "start a process"),
    ("import os; os.execv('/bin/true', ['true'])", "start a process"),
    ("import multiprocessing as m; m.get_context('spawn').Process(target=print).start()", ""),
    ("import socket; socket.create_connection(('127.0.0.1', 9), 1)", "network"),
    ("import urllib.request as u; u.urlopen('http://example.org', timeout=1)", "network"),
    ("import os; os.kill(os.getppid(), 9)", "signal"),
    ("import os, signal; os.killpg(0, signal.SIGTERM)", "signal"),
    ("import ctypes; ctypes.CDLL(None).getpid()", "machine code"),
    ("import ctypes; ctypes.pythonapi.fork()", "machine code"),
    ("open('VICTIM/new', 'w')", "write outside"),
    ("import os; os.remove('VICTIM/kept')", "write outside"),
    ("import shutil; shutil.rmtree('VICTIM')", ""),
    ("import os; os.mkdir('VICTIM/folder')", "write outside"),
    ("import os, natgrad_lab as n; os.symlink(n.__path__[0] + '/course/exercises', 'x'); open('x/lesson03.py')", ""),
    ("open('/proc/1/environ').read()", "other processes"),
]  # fmt: skip


@pytest.mark.parametrize("evil, words", REFUSED)
def test_what_is_refused_is_reported_even_if_the_error_is_swallowed(sandbox, evil, words, tmp_path):
    """VICTIM is a folder of the test's own: a broken wall harms nothing else."""
    (tmp_path / "kept").write_text("kept")
    evil = evil.replace("VICTIM", str(tmp_path))
    swallowed = f"try:\n        {evil}\n    except BaseException:\n        pass"
    verdict, key, evidence, remarks, _ = graded(sandbox, swallowed)
    assert "refused: it tried to" in remarks and words in remarks, (key, evidence, remarks)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.fixture(scope="module")
def quick():
    """A sandbox with little patience."""
    with Sandbox(timeout=1.5) as box:
        box.start()
        yield box


def test_an_endless_loop_costs_its_exercise_only(quick):
    started = time.monotonic()
    evil = RIGHT.format(evil="while True: pass") + "\ndef pullback_step(F, g, J):\n    import time\n    time.sleep(999)\n"
    record = grade(submitted(evil, standalone(find_exercise("3.4").reference)), quick, SETTINGS)
    keys = {v.exercise: v.failed[0][1] if v.failed else "" for v in record.verdicts}
    assert keys["3.1"] == keys["3.2"] == "slow" and keys["3.4"] == "" and time.monotonic() - started < 120
    assert all("1.5 seconds" in words for _, _, words in record.verdicts[0].failed)


def test_a_stranger_left_behind_is_killed(sandbox):
    """Threads of a submission end with it, and so do processes; the next one finds an empty folder."""
    graded(
        sandbox,
        "import threading, time; threading.Thread(target=time.sleep, args=(999,)).start(); open('left.txt', 'w').write('x')",
    )
    verdict, *_, record = graded(sandbox, "import os; assert os.listdir('.') == [], os.listdir('.')")
    assert verdict.passed, verdict
    import psutil

    assert len(psutil.Process(sandbox._process.pid).children(recursive=True)) <= 1


@pytest.mark.parametrize("evil", ["import os; os._exit(3)", "raise SystemExit", "while True: pass", "1 / 0"])
def test_definitions_that_misbehave_when_they_are_read(quick, evil):
    """A default argument runs when the function is defined."""
    cell = f"def stop():\n    {evil}\ndef natural_gradient(F, g, damping, x=stop()):\n    return g"
    record = grade(submitted(cell, standalone(find_exercise("3.4").reference)), quick, SETTINGS)
    assert record.points in (0, find_exercise("3.4").points) and record.verdicts[0].failed[0][1] in ("broken", "missing")
    if record.points == 0:
        assert "reading the definitions failed" in "; ".join(record.remarks)


def test_stubs_missing_functions_and_wrong_files_are_told_apart(sandbox):
    stub = 'def natural_gradient(F, g, damping):\n    raise NotImplementedError("Exercise 3.1")'
    record = grade(
        submitted(stub, "eye = torch.eye(3)\ndef pullback_step(F, g, J):\n    return eye", "x = ["), sandbox, SETTINGS
    )
    keys = {v.exercise: v.failed[0][1] for v in record.verdicts}
    assert keys["3.1"] == "not_written" and keys["3.2"] == "raised" and keys["3.4"] == "missing"
    assert any("eye (line 3)" in remark for remark in record.remarks) and any(
        "is no Python" in remark for remark in record.remarks
    )
    other = grade(submitted("x = 1"), sandbox, SETTINGS)
    assert "is it the right file?" in other.remarks[-1]
    nothing = grade(Submission("x", {}, ("there is no .ipynb or .py to grade",), ""), sandbox, SETTINGS)
    assert nothing.points == 0 and nothing.remarks == ("there is no .ipynb or .py to grade",)


def test_the_evidence_points_at_the_students_own_line(sandbox):
    _, key, evidence, *_ = graded(sandbox, "torch.linalg.solve(F, torch.ones(99))")
    assert key == "raised" and "torch.linalg.solve(F, torch.ones(99))" in evidence


# ---- without namespaces


def test_the_audit_hook_alone_refuses_the_same(tmp_path):
    """Where the kernel gives no namespaces (a container, macOS) Python's hook is the wall."""
    with Sandbox(timeout=6, memory=400, namespaces=False) as box:
        box.start()
        assert "no namespaces" in box.isolation
        assert graded(box, "pass")[0].passed
        (tmp_path / "kept").write_text("kept")
        for evil, words in REFUSED:
            evil = evil.replace("VICTIM", str(tmp_path))
            remarks = graded(box, f"try:\n        {evil}\n    except BaseException:\n        pass")[3]
            assert "refused: it tried to" in remarks and words in remarks, evil
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]
        graded(box, "open('left.txt', 'w').write('x')")
        assert graded(box, "import os; assert os.listdir('.') == []")[0].passed


def test_with_namespaces_the_kernel_refuses_too(sandbox):
    if "namespaces, read-only" not in sandbox.isolation:
        pytest.skip(f"this kernel gives no namespaces: {sandbox.isolation}")
    source = """
import os
import sys
def natural_gradient(F, g, damping):
    found = {}
    with os.scandir("/proc") as entries:
        found["processes"] = len([entry for entry in entries if entry.name.isdecimal()])
    found["devices"] = len(open("/proc/net/dev").read().splitlines()) - 2
    found["pid"] = os.getpid() < 1000
    found["read-only"] = bool(os.statvfs("/").f_flag & os.ST_RDONLY)
    found["answers"] = os.access(EXERCISES + "/lesson03.py", os.F_OK)
    return found
"""
    import natgrad_lab.course as course

    place = os.path.join(course.__path__[0], "exercises")
    with sandbox.open(
        {"a.py": [f"EXERCISES = {place!r}", source.replace("/proc/net", "/proc/self/net")]}, ["natural_gradient"]
    ) as session:
        session.load()
        found = session.answer("natural_gradient")(torch.eye(2), torch.ones(2), 0.1)
    assert found == {"processes": 2, "devices": 1, "pid": True, "read-only": True, "answers": False}


# ---- settings


@pytest.mark.parametrize("bad", [{"timeout": 0}, {"timeout": float("nan")}, {"memory": 0}])
def test_settings_are_refused(bad):
    with pytest.raises(ValueError, match="must be positive"):
        Sandbox(**bad)


def test_a_folder_that_holds_python_cannot_be_hidden():
    with pytest.raises(ValueError, match="folder of their own"):
        Sandbox([Path(torch.__file__).parents[4]])


def test_a_server_that_was_killed_is_started_again():
    with Sandbox(timeout=6) as box:
        assert graded(box, "pass")[0].passed
        box._process.kill()
        box._process.wait()
        assert graded(box, "pass")[0].passed
