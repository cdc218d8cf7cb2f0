"""The source of one function, made to stand alone: with the helpers, constants and imports of its module that it uses."""

import ast
import copy
import inspect
import linecache
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import CodeType

from natgrad_lab.classroom.extract import binds, definitions, missing, needed


def standalone(function: Callable, name: str = "") -> str:
    """Python text that defines `function` under `name` (its own if not given) and needs nothing else of its module.

    Raises: ValueError where there is no such text: a closure, a partial, a class's method, or a helper made by a call.
    """
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None or code.co_freevars or function.__defaults__ and function.__name__ == "<lambda>":
        raise ValueError(f"{function!r} is no plain function: its source does not say all of it.")
    (text, found), own = _module(code.co_filename), function.__name__
    name = name or own
    if own == "<lambda>":
        node = _find_lambda(ast.parse(text), code)
        if node is None:
            raise ValueError(f"the lambda at line {code.co_firstlineno} was not found in its file.")
        own = f"_{name}_answer"
        statement = ast.parse(f"{own} = {ast.unparse(node)}").body[0]
        found = replace(found, kept=(*found.kept, statement))
    statements = needed(found, own)
    lost = missing(found, statements)
    if not statements or lost:
        raise ValueError(f"{function!r} needs {', '.join(lost) or 'a definition'}, which is made by a call.")
    if own != name and any(name in binds(statement) for statement in statements):
        statements = [_Rename(name, f"right_{name}").visit(copy.deepcopy(statement)) for statement in statements]
        text = ""
    alias = [f"{name} = {own}"] if own != name else []
    return "\n\n".join([*_lines(text, statements), *alias]) + "\n"


class _Rename(ast.NodeTransformer):
    """One name for another, in uses and in the definition."""

    def __init__(self, old: str, new: str):
        self.old, self.new = old, new

    def visit_Name(self, node):  # noqa: N802
        node.id = self.new if node.id == self.old else node.id
        return node

    def visit_FunctionDef(self, node):  # noqa: N802
        node.name = self.new if node.name == self.old else node.name
        return self.generic_visit(node)


@cache
def _module(file: str):
    text = "".join(linecache.getlines(file))
    return text, definitions([text])


def expression(function: Callable) -> str:
    """A lambda as it would be written on one line; "" for anything else."""
    function = inspect.unwrap(function)
    if getattr(function, "__name__", "") != "<lambda>":
        return ""
    node = _find_lambda(ast.parse(_module(function.__code__.co_filename)[0]), function.__code__)
    return ast.unparse(node) if node else ""


def own_lines(function: Callable) -> list[str]:
    """The lines of the function itself, stripped; [] where there is no source."""
    try:
        return [line.strip() for line in textwrap.dedent(inspect.getsource(function)).splitlines() if line.strip()]
    except (OSError, TypeError):
        return []


def _find_lambda(tree: ast.Module, code: CodeType) -> ast.Lambda | None:
    """The smallest lambda around all the places that the code's instructions come from."""
    places = [place for place in code.co_positions() if None not in place and place[3] > 0]
    first, last = min((p[0], p[2]) for p in places), max((p[1], p[3]) for p in places)
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Lambda)
        and (node.lineno, node.col_offset) <= first
        and last <= (node.end_lineno, node.end_col_offset)
    ]
    return max(around, key=lambda node: (node.lineno, node.col_offset), default=None)


def _lines(text: str, statements: list[ast.stmt]) -> list[str]:
    """Their source as it is written where `text` has it, else as ast writes it; imports first."""
    lines = text.splitlines()
    imports = [s for s in statements if isinstance(s, ast.Import | ast.ImportFrom)]
    others = [s for s in statements if s not in imports]
    first = lambda s: min([s.lineno, *(d.lineno for d in getattr(s, "decorator_list", []))])  # noqa: E731
    written = lambda s: "\n".join(lines[first(s) - 1 : s.end_lineno])  # noqa: E731
    is_new = lambda s: not text or any(name.endswith("_answer") for name in binds(s))  # noqa: E731
    source = [ast.unparse(s) if is_new(s) else written(s) for s in others]
    return (["\n".join(ast.unparse(s) for s in imports)] if imports else []) + source
