"""The README's Python runs as printed, its tree is the real one, and every reference that is cited exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_architecture import ROOMS
from typer.main import get_command

from natgrad_lab.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
KEY = r"\[([A-Z][A-Za-z]+(?:19|20)\d\d[a-z]?)\]"


def block(language):
    """The README's only code block in that language."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return text


def tree():
    """The lines of the README's tree that name the rooms of the package."""
    (lines,) = re.findall(r"```\nnatgrad_lab/\n(.*?)notebooks/  data/", README, flags=re.DOTALL)
    return lines.splitlines()


@pytest.mark.slow
def test_the_ten_lines_print_what_the_readme_says():
    code = block("python")
    assert len([line for line in code.splitlines() if line]) <= 10
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    residual = r"\de-\d\d"  # its last digit is rounding, which differs between machines
    expected = re.sub(residual, "R", block("text"))
    assert re.sub(residual, "R", done.stdout) == expected, done.stderr
    assert float(re.search(residual, done.stdout)[0]) < 1e-6


def test_the_tree_names_every_room_and_no_other():
    named = {line.split()[0].rstrip("/") for line in tree()}
    package = ROOT / "natgrad_lab"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert named == folders | {path.name for path in package.glob("*.py") if not path.name.startswith("__")}


def test_the_tree_is_in_the_order_of_the_architecture():
    named = [line.split()[0].rstrip("/").removesuffix(".py") for line in tree()]
    assert named == [room for room in ROOMS if room in named]


def test_the_commands_are_those_there_are():
    named = re.findall(r"^\| `natgrad (\w+)", README, flags=re.MULTILINE)
    assert sorted(named) == sorted(get_command(app).commands)


def test_every_file_the_readme_names_exists():
    for name in re.findall(r"`((?:data|docs|tests|notebooks)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name


def test_every_cited_reference_is_listed_and_every_listed_one_is_cited():
    listed = re.findall(rf"^\* \*\*{KEY}\*\*", (ROOT / "docs" / "references.md").read_text(), flags=re.MULTILINE)
    sources = [*(ROOT / "natgrad_lab").rglob("*.py"), *(ROOT / "notebooks").glob("*.py")]
    cited = {key for source in sources for key in re.findall(KEY, source.read_text())}
    assert cited == set(listed) and listed == sorted(listed)
