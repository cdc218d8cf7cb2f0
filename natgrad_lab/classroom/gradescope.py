"""The grader as a Gradescope autograder: a zip with setup.sh, run_autograder and this package; and its results.json.

Written to Gradescope's documented layout; it cannot be run here.
"""

import json
import zipfile
from pathlib import Path

from natgrad_lab.classroom.grade import Record
from natgrad_lab.classroom.report import explain
from natgrad_lab.environment import CPU_TORCH_INDEX, checkout

SETUP = f"""#!/usr/bin/env bash
set -e
apt-get update && apt-get install -y python3 python3-pip python3-venv
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install --no-cache-dir torch --index-url {CPU_TORCH_INDEX}
/autograder/venv/bin/pip install --no-cache-dir -c /autograder/source/constraints.txt /autograder/source
"""
RUN = """#!/usr/bin/env bash
mkdir -p /autograder/results
cd /autograder
venv/bin/python -m natgrad_lab course grade submission --gradescope results/results.json{lessons}
"""
LEFT_OUT = {"__pycache__", ".DS_Store"}


def build_gradescope(out: Path, lessons: tuple[str, ...] = ()) -> Path:
    """Write the zip. Raises: FileNotFoundError in an installed copy, which has no pyproject.toml to install from."""
    root = checkout()
    if root is None:
        raise FileNotFoundError("the Gradescope zip carries this project's source; make it in a source folder.")
    files = [root / name for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "data/digits.npz")]
    files += [p for p in sorted((root / "natgrad_lab").rglob("*")) if p.is_file() and not LEFT_OUT & set(p.parts)]
    run = RUN.format(lessons=f" --lessons {','.join(lessons)}" if lessons else "")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (("setup.sh", SETUP), ("run_autograder", run)):
            entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, text)
        for path in files:
            archive.write(path, path.relative_to(root).as_posix())
    return Path(out)


def results(record: Record) -> dict:
    """What Gradescope reads: one test an exercise, with points and what the checker says."""
    tests = [
        {
            "name": f"{verdict.exercise} {verdict.name}", "score": verdict.points, "max_score": verdict.out_of,
            "output": explain(verdict), "visibility": "visible",
        }
        for verdict in record.verdicts
    ]  # fmt: skip
    return {"score": record.points, "execution_time": record.seconds, "output": "\n".join(record.remarks), "tests": tests}


def write_results(record: Record, path: Path) -> None:
    """results.json."""
    Path(path).write_text(json.dumps(results(record), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
