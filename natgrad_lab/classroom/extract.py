"""Of a notebook or script, what an exercise's function needs: imports, functions, classes and constants; nothing is run.

A student's file plots, trains and prints. A grader wants one function of it, so it keeps the definition and, name by name,
the top-level statements that it refers to. Calls at top level are left out: `x = torch.eye(3)` is work, `EPS = 1e-8` is not.
Standard library only: the grader's child process uses it on text that nobody has looked at.
"""

import ast
import dis
import re
from dataclasses import dataclass
from types import CodeType

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
IMPORTS = (ast.Import, ast.ImportFrom)
_PLAIN = (
    ast.Constant, ast.Name, ast.Attribute, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.UnaryOp, ast.BinOp, ast.Subscript,
    ast.Slice, ast.operator, ast.unaryop, ast.expr_context,
)  # fmt: skip


@dataclass(frozen=True)
class Definitions:
    """What a file defines.

    Args:
        text: its cells, one after the other; the statements' line numbers count in it.
        kept: imports, functions, classes and simple assignments, in order.
        left_out: names that other top-level statements assign -> line.
        remarks: cells that are no Python.
    """

    text: str
    kept: tuple[ast.stmt, ...]
    left_out: dict[str, int]
    remarks: tuple[str, ...]


def definitions(cells: list[str]) -> Definitions:
    """Parse the code cells of one file; a cell that is no Python is left out with a remark. Nothing is run."""
    text, kept, left_out, remarks = "", [], {}, []
    for number, cell in enumerate(cells, start=1):
        source = _without_magics(cell)
        try:
            statements = ast.parse(source).body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            words = getattr(error, "msg", "") or str(error)
            remarks.append(f"code cell {number}{where} is no Python ({type(error).__name__}: {words[:100]})")
            continue
        offset = text.count("\n")
        for statement in statements:
            ast.increment_lineno(statement, offset)
            if _is_kept(statement):
                kept.append(statement)
            else:
                left_out.update(dict.fromkeys(_stored(statement), statement.lineno))
        text += source.rstrip("\n") + "\n"
    return Definitions(text, tuple(kept), left_out, tuple(remarks))


def needed(found: Definitions, name: str) -> list[ast.stmt]:
    """The kept statements that define `name` and all that it refers to, in order; [] if nothing does.

    Of two definitions of `name` the last counts, but a stub hides no answer. What it refers to is what stood there when it
    was defined: the last definition before it, else the first after it, as if its check were the next cell.
    """
    bound = [binds(statement) for statement in found.kept]
    chosen, todo, seen = set(), [(name, len(bound))], set()
    while todo:
        wanted, before = todo.pop()
        if (wanted, before) in seen:
            continue
        seen.add((wanted, before))
        places = [place for place, names in enumerate(bound) if wanted in names]
        imports = {place for place in places if isinstance(found.kept[place], IMPORTS)}
        others = [place for place in places if place not in imports]
        written = [place for place in others if not is_stub(found.kept[place])] or others
        own = [place for place in written if place < before][-1:] or [place for place in written if place >= before][:1]
        if any(wanted in bound[place] for place in chosen - imports):
            own = []  # one namespace holds one meaning of a name: the one found first
        for place in {*imports, *own} - chosen:
            chosen.add(place)
            todo.extend((other, place) for other in used(found.kept[place]))
    if not any(name in bound[place] for place in chosen):
        return []
    chosen |= {place for place, names in enumerate(bound) if "*" in names or "__future__" in names}
    return [found.kept[place] for place in sorted(chosen, key=lambda place: ("__future__" not in bound[place], place))]


def missing(found: Definitions, statements: list[ast.stmt]) -> dict[str, int]:
    """Names that these statements use and that only a statement which was left out assigns -> its line."""
    has = set().union(*(binds(statement) for statement in statements)) if statements else set()
    uses = set().union(*(used(statement) for statement in statements)) if statements else set()
    return {name: line for name, line in found.left_out.items() if name in uses - has}


def is_stub(statement: ast.stmt) -> bool:
    """Whether it is a function whose body, but for its docstring, only raises NotImplementedError or does nothing."""
    if not isinstance(statement, FUNCTIONS):
        return False
    for inner in statement.body:
        is_words = isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant)
        raises = isinstance(inner, ast.Raise) and "NotImplementedError" in ast.dump(inner)
        if not (is_words or raises or isinstance(inner, ast.Pass)):
            return False
    return True


def binds(statement: ast.stmt) -> set[str]:
    """Names that a kept statement gives a meaning to; "*" for a star import."""
    if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
        return {"__future__"}
    if isinstance(statement, IMPORTS):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        return {statement.name}
    return _stored(statement)


def used(statement: ast.stmt) -> set[str]:
    """Names that a statement looks up among the module's, as its compiled form says: its own local names are not among them."""
    try:
        todo = [compile(ast.Module([statement], []), "<statement>", "exec")]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    names: set[str] = set()
    while todo:
        code = todo.pop()
        names |= {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        todo += [const for const in code.co_consts if isinstance(const, CodeType)]
    return names


def _stored(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _is_kept(statement: ast.stmt) -> bool:
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef, *IMPORTS)):
        return True
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return False
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    names = all(isinstance(node, ast.Name | ast.Tuple | ast.expr_context) for target in targets for node in ast.walk(target))
    is_function = isinstance(statement.value, ast.Lambda)
    return names and (is_function or all(isinstance(node, _PLAIN) for node in ast.walk(statement.value)))


def _without_magics(cell: str) -> str:
    """The cell with lines of IPython (%timeit, !pip, ?help) emptied; other languages' cells (%%bash) become empty."""
    first = cell.lstrip().partition("\n")[0]
    if first.startswith("%%"):
        if not re.match(r"%%(time|timeit|capture|prun)\b", first):
            return ""
        cell = "\n" + cell.lstrip().partition("\n")[2]
    try:
        ast.parse(cell)
        return cell
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return re.sub(r"(?m)^(\s*)([%!?].*|.*\?\??)$", r"\1pass", cell)
