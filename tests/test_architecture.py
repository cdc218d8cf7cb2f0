"""Rooms and arrows: a room imports only rooms above it, and the core imports nothing but torch and numpy."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "natgrad_lab"

# Top to bottom: a room may import those above it.
ROOMS = [
    "environment", "errors", "names", "shapes", "progress", "linalg", "substitution", "structures", "roots",
    "distributed", "likelihoods", "models", "datasets", "parameters", "unrolled", "derivatives", "fisher", "deep_linear",
    "optimizers", "metrics", "validation", "experiments", "plots", "explorer", "comparison", "reproduce", "course",
    "widgets", "notebooks", "classroom", "jupyter", "suite", "bench", "doctor", "cli", "bootstrap", "__main__",
]  # fmt: skip
CORE = ROOMS[ROOMS.index("errors") : ROOMS.index("plots")]
OUTSIDE = {  # room or file -> what else it may import; rooms not named here may import anything installed
    **{room: {"torch", "numpy"} for room in CORE},
    "errors": set(),
    "explorer": {"torch", "numpy"},
    "environment": set(),
    "bootstrap": set(),
    "__main__": set(),
    "shapes": {"torch", "jaxtyping"},
    "progress": {"rich"},
    "datasets/download.py": {"pooch", "rich"},
    "datasets/cifar10.py": {"torch", "numpy", "PIL"},
    "widgets/controller.py": set(),
    "widgets/registry.py": set(),
    "widgets/history.py": set(),
    "widgets/flow.py": set(),
}


def imported(tree):
    """(module, line) of every import, inside functions too; those under `if TYPE_CHECKING:` are never run."""
    types_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in types_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "." * node.level, node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def wrong_imports(package):
    """Sentences naming file, line and import for everything in `package` that the lists above forbid."""
    wrong = []
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package)
        room = path.parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        if room not in ROOMS:
            wrong.append(f"{path}: the room {room!r} is not in ROOMS")
            continue
        allowed = OUTSIDE.get(path.as_posix(), OUTSIDE.get(room))
        for module, line in imported(ast.parse(file.read_text(encoding="utf-8"))):
            top, _, rest = module.partition(".")
            target = rest.split(".")[0]
            if not top:
                wrong.append(f"{path}:{line}: relative import; write the whole path")
            elif top == "natgrad_lab":
                if target in ROOMS and ROOMS.index(target) > ROOMS.index(room):
                    wrong.append(f"{path}:{line}: {room} imports {target}, which is below it")
            elif allowed is not None and top not in allowed | sys.stdlib_module_names:
                wrong.append(f"{path}:{line}: {room} imports {top}")
    return wrong


def test_rooms_import_only_what_is_above_them():
    assert wrong_imports(PACKAGE) == []


def test_the_package_itself_imports_no_room():
    modules = {module for module, _ in imported(ast.parse((PACKAGE / "__init__.py").read_text()))}
    assert {module.split(".")[0] for module in modules} <= sys.stdlib_module_names


def test_every_public_room_is_in_the_list_and_loads():
    import natgrad_lab

    assert set(natgrad_lab._ROOMS) <= set(ROOMS)
    for name in natgrad_lab.__all__:
        assert getattr(natgrad_lab, name) is not None


@pytest.mark.parametrize(
    "path, line, complaint",
    [
        ("linalg.py", "import natgrad_lab.fisher", "linalg imports fisher, which is below it"),
        ("linalg.py", "from natgrad_lab import models", "linalg imports models, which is below it"),
        ("fisher/dense.py", "def f():\n    import natgrad_lab.widgets", "fisher imports widgets, which is below it"),
        ("fisher/dense.py", "from jaxtyping import Float", "fisher imports jaxtyping"),
        ("fisher/dense.py", "from ..plots import style", "relative import"),
        ("experiments/run.py", "import plotly.graph_objects as go", "experiments imports plotly"),
        ("widgets/controller.py", "import ipywidgets", "widgets imports ipywidgets"),
        ("helpers.py", "", "the room 'helpers' is not in ROOMS"),
    ],
)  # fmt: skip
def test_a_wrong_import_is_named(tmp_path, path, line, complaint):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(line)
    found = wrong_imports(tmp_path)
    assert len(found) == 1 and found[0].startswith(path) and complaint in found[0]


def test_what_is_allowed_passes(tmp_path):
    (tmp_path / "fisher").mkdir()
    (tmp_path / "fisher" / "dense.py").write_text(
        "import math, torch\nimport numpy as np\nfrom natgrad_lab.linalg import cg\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from natgrad_lab.widgets import LiveRun\n"
    )
    assert wrong_imports(tmp_path) == []
