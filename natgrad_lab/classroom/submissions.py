"""What students hand in: notebooks, scripts, folders and zip files, one of them a student. Read, never unpacked or run."""

import hashlib
import json
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path

MOST_FILE, MOST_ALL, MOST_FILES = 100_000_000, 200_000_000, 500  # bytes (a notebook holds its pictures), bytes, entries
KINDS = (".ipynb", ".py")


@dataclass(frozen=True)
class Submission:
    """The code cells of one student's files.

    Args:
        student: the name of the file or folder, without its ending.
        files: path within the submission -> code cells; a script is one cell.
        remarks: what was left out, and why.
        digest: SHA-256 of everything that was read.
    """

    student: str
    files: dict[str, list[str]]
    remarks: tuple[str, ...]
    digest: str


def submissions(folder: Path) -> tuple[list[Path], list[str]]:
    """(the submissions in a folder, sentences about what else lies there). Raises: FileNotFoundError, ValueError if none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}. It should hold one file, folder or zip for each student.")
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__"))]
    found = [path for path in entries if path.is_dir() or path.suffix.lower() in (*KINDS, ".zip")]
    if not found:
        raise ValueError(f"{str(folder)!r} holds no .ipynb, .py or .zip and no folder.")
    return found, [f"left out: {path.name} (no .ipynb, .py, .zip or folder)" for path in entries if path not in found]


def names_of(paths: list[Path]) -> list[str]:
    """A student's name for each path: without ending, or with it where two would be the same."""
    stems = [path.name if path.is_dir() else path.stem for path in paths]
    return [path.name if stems.count(stem) > 1 else stem for path, stem in zip(paths, stems, strict=True)]


def read_submission(path: Path, student: str) -> Submission:
    """Read one submission; what cannot be read becomes a remark, never an error. Links are not followed."""
    contents, remarks = _contents(Path(path))
    digest, files, total = hashlib.sha256(), {}, 0
    for name, data in sorted(contents.items()):
        digest.update(f"{name}\0{len(data)}\0".encode("utf-8", "surrogatepass") + data)
        total += len(data)
        if total > MOST_ALL:
            remarks.append(f"more than {MOST_ALL / 1e6:.0f} MB in all; {name} and what follows is left out")
            break
        cells = _cells(name, data)
        if isinstance(cells, str):
            remarks.append(f"{name}: {cells}")
        else:
            files[name] = cells
    if not files:
        remarks.append("there is no .ipynb or .py to grade")
    digest.update("\0".join(remarks).encode("utf-8", "surrogatepass"))
    return Submission(student, files, tuple(remark[:300] for remark in remarks[:20]), digest.hexdigest())


def _contents(path: Path) -> tuple[dict[str, bytes], list[str]]:
    try:
        if path.is_symlink():
            return {}, ["a link is not followed"]
        if path.is_dir():
            return _folder(path)
        if path.suffix.lower() == ".zip":
            return _zip(path)
        if not path.is_file() or path.stat().st_size > MOST_FILE:
            return {}, [f"not a plain file of at most {MOST_FILE / 1e6:.0f} MB"]
        return {path.name: path.read_bytes()}, []
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError, EOFError) as error:
        return {}, [f"cannot be read: {type(error).__name__}: {error}"]


def _folder(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    contents, remarks, seen = {}, [], 0
    for path in sorted(folder.rglob("*")):
        seen += 1
        name = path.relative_to(folder).as_posix()
        if seen > MOST_FILES:
            remarks.append(f"more than {MOST_FILES} files; the rest is left out")
            break
        if path.suffix.lower() not in KINDS or _is_junk(name):
            continue
        kind = path.lstat()
        if not stat.S_ISREG(kind.st_mode) or folder.resolve() not in path.resolve().parents:
            remarks.append(f"{name}: a link is not followed")
        elif kind.st_size > MOST_FILE:
            remarks.append(f"{name}: more than {MOST_FILE / 1e6:.0f} MB")
        else:
            contents[name] = path.read_bytes()
    return contents, remarks


def _zip(path: Path) -> tuple[dict[str, bytes], list[str]]:
    """Nothing is written to disk, so no name in the archive can lead anywhere."""
    contents, remarks, total = {}, [], 0
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > MOST_FILES:
            remarks.append(f"more than {MOST_FILES} entries; the rest is left out")
        for entry in entries[:MOST_FILES]:
            if entry.is_dir() or Path(entry.filename).suffix.lower() not in KINDS or _is_junk(entry.filename):
                continue
            if stat.S_ISLNK(entry.external_attr >> 16):
                remarks.append(f"{entry.filename}: a link is not followed")
                continue
            with archive.open(entry) as file:
                data = file.read(MOST_FILE + 1)  # what the entry says of its size may be a lie
            total += len(data)
            if len(data) > MOST_FILE or total > MOST_ALL:
                remarks.append(f"{entry.filename}: more than {MOST_FILE / 1e6:.0f} MB, or {MOST_ALL / 1e6:.0f} MB in all")
                break
            contents[entry.filename] = data
    return contents, remarks


def _is_junk(name: str) -> bool:
    return any(part.startswith((".", "__")) and part not in (".", "..") for part in name.split("/"))


def _cells(name: str, data: bytes) -> list[str] | str:
    """The code cells, or why there are none."""
    try:
        text = data.decode("utf-8-sig")
        if name.lower().endswith(".py"):
            return [text.replace("\r\n", "\n")]
        cells = json.loads(text)
        cells = cells["cells"] if "cells" in cells else cells["worksheets"][0]["cells"]
        codes = [cell.get("source", cell.get("input", "")) for cell in cells if cell.get("cell_type") == "code"]
        return ["".join(code) if isinstance(code, list) else str(code) for code in codes]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        return f"no notebook or UTF-8 text ({type(error).__name__})"
