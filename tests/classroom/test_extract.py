"""What is taken out of a student's file: the function asked for and what it refers to, nothing else, and nothing is run."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natgrad_lab.classroom.extract import definitions, is_stub, missing, needed


def names(cells, name="answer"):
    return [ast.unparse(s).partition("\n")[0] for s in needed(definitions(cells), name)]


def run(cells, name="answer"):
    scope = {}
    exec(compile(ast.Module(needed(definitions(cells), name), []), "<test>", "exec"), scope)
    return scope[name]


def test_only_what_the_function_needs_is_kept_in_order():
    cells = [
        "import math\nimport torch, os\nprint('side effect')\nx = torch.eye(3)\nEPS = 1e-8",
        "def helper(v):\n    return v + OTHER",
        "OTHER = -EPS * 2",
        "class Unused:\n    pass\ndef unused(): return 1",
        "def answer(v):\n    return helper(math.sqrt(v))",
        "answer(3)",
    ]
    assert names(cells) == ["import math", "EPS = 1e-08", "def helper(v):", "OTHER = -EPS * 2", "def answer(v):"]
    assert run(cells)(4) == 2 - 2e-8


def test_the_last_definition_counts_but_a_stub_hides_no_answer():
    stub = 'def answer(v):\n    """Words."""\n    raise NotImplementedError("Exercise 3.1")'
    assert run(["def answer(v): return 1", "def answer(v): return 2"])(0) == 2
    assert run(["def answer(v): return 1", stub])(0) == 1
    with pytest.raises(NotImplementedError):
        run([stub])(0)


def test_a_name_means_what_it_meant_when_the_answer_was_defined():
    before, after = "def helper(): return 1", "def helper(): return 2"
    assert run([before, "def answer(v): return helper()", after])(0) == 1
    assert run(["def answer(v): return helper()", before, after])(0) == 1
    assert run([before, "answer = helper", "def other(): return helper()", after])() == 1
    assert run(["x = 1", "y = x", "x = 5", "def answer(v): return y"])(0) == 1


@pytest.mark.parametrize("body, expected", [
    ("raise NotImplementedError", True), ("pass", True), ("...", True), ('"""Only words."""', True), ("return 1", False),
    ("raise ValueError", False), ("x = 1\n    raise NotImplementedError", False),
])  # fmt: skip
def test_stubs(body, expected):
    assert is_stub(ast.parse(f"def f():\n    {body}").body[0]) is expected


@pytest.mark.parametrize("cell, expected", [
    ("%matplotlib inline\n!pip install torch\nanswer = lambda v: 5\nanswer?", 5),
    ("%%time\ndef answer(v): return 6", 6),
    ("from __future__ import annotations\ndef answer(v: Missing): return 7", 7),
    ("from math import *\ndef answer(v): return floor(8.5)", 8),
    ("def other(v): return 9\nanswer = other", 9),
    ("SIZES: tuple = (1, 10)\ndef answer(v): return SIZES[1]", 10),
    ("def answer(v):\n    return answer(v - 1) if v else 11", 11),
    ("def answer(v):\n    def inner(x):\n        return [y for y in (x,)][0]\n    return inner(12)", 12),
    ("import functools\n@functools.lru_cache\ndef answer(v): return 13", 13),
])  # fmt: skip
def test_forms_that_students_use(cell, expected):
    assert run([cell])(2) == expected


def test_other_cells_and_broken_ones_do_no_harm():
    found = definitions(
        ["%%bash\nrm -rf /", "def broken(:\n", "x = [", "def answer(v): return 1", "(" * 500, "-" * 200_000 + "1", "\0"]
    )
    assert [ast.unparse(s).partition("(")[0] for s in found.kept] == ["def answer"]
    assert len(found.remarks) >= 4 and "code cell 2, line 1 is no Python (SyntaxError" in found.remarks[0]


def test_what_a_function_lacks_is_named_with_its_line():
    found = definitions(
        ["import torch\n\neye = torch.eye(3)\nA, B = torch.ones(2)", "def answer(v, B):\n    A = 1\n    return eye @ v + A + B"]
    )
    assert missing(found, needed(found, "answer")) == {"eye": 3}
    assert needed(found, "nobody") == []


@given(st.lists(st.text(alphabet="def answer():\n =()[]%!x1'\"#@λ\t\\", max_size=60), max_size=4))
def test_any_text_is_borne(cells):
    assert isinstance(needed(definitions(cells), "answer"), list)
