"""Fetching registered files: a mirror first, then their origins; nothing is read before its SHA-256 is right.

NATGRAD_DATA names the folder they are kept in (the platform's cache folder if unset), NATGRAD_DATA_MIRROR a folder or URL
with the same layout, tried first. A download goes to a temporary file in the same folder, is checked, and then moved, so
that whatever is interrupted, or runs beside it, sees the whole file or none.
"""

import hashlib
import os
import shutil
import sys
import threading
import warnings
from pathlib import Path

from natgrad_lab.datasets.files import FILES, RemoteFile

FOLDER, MIRROR = "NATGRAD_DATA", "NATGRAD_DATA_MIRROR"
ONE_AT_A_TIME = threading.Lock()  # in this process: the second thread that asks finds the file
REASONS = {
    "FileNotFoundError": "not there",
    "ConnectionError": "no connection",
    "ConnectTimeout": "no answer",
    "ReadTimeout": "it stopped answering",
}


def fetch(key: str) -> Path:
    """The path of a registered file, which is downloaded if it is not there or not what it must be.

    Raises: FileNotFoundError naming the file, all that was tried, and where to put the file by hand.
    Warns: UserWarning if a file had to be refused: the one that was kept, or that of a source before the one that served.
    """
    with ONE_AT_A_TIME:
        return _fetch(key, FILES[key], cache_folder() / key)


def _fetch(key: str, file: RemoteFile, path: Path) -> Path:
    state = check(key)
    if state == "present":
        return path
    refused = [f"{path}: {state}"] if path.exists() else []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileNotFoundError(f"{path.parent} cannot be made ({error}). Name another folder by {FOLDER}.") from error
    tried = []
    for source in sources(key):
        try:
            _retrieve(source, path, file)
        except (OSError, ValueError) as error:
            tried.append(f"{source}: {_reason(error)}")
            continue
        if lines := [*refused, *(line for line in tried if "SHA-256" in line)]:
            warnings.warn(f"{key} was taken from {source}, because of: {'; '.join(lines)}", UserWarning, stacklevel=3)
        return path
    raise FileNotFoundError(_help(key, [*refused, *tried]))


def cache_folder() -> Path:
    """Where downloaded files are kept: NATGRAD_DATA, or natgrad_lab in the platform's cache folder."""
    return Path(os.environ.get(FOLDER) or _pooch().os_cache("natgrad_lab")).expanduser().absolute()


def sources(key: str) -> list[str]:
    """Where a file is looked for, in this order."""
    mirror = os.environ.get(MIRROR, "").strip().rstrip("/")
    return [*([f"{mirror}/{key}"] if mirror else []), *FILES[key].urls]


def check(key: str) -> str:
    """ "present", "absent", or what is wrong with the file that is there. Reads the whole file."""
    path, file = cache_folder() / key, FILES[key]
    if path.is_dir():
        return "a folder is in its place"
    if not path.exists():
        return "absent"
    if path.stat().st_size != file.num_bytes:
        return f"it has {path.stat().st_size} bytes, expected {file.num_bytes}"
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return "present" if found == file.sha256 else f"its SHA-256 is {found}, expected {file.sha256}"


def _retrieve(source: str, path: Path, file: RemoteFile) -> None:
    """Bring the file from there to `path`, or raise and leave `path` as it was."""
    pooch = _pooch()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; take it away")
    if source.startswith(("http://", "https://")):
        bar = _Bar(path.name)
        downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16)
    else:
        bar, downloader = None, _copy
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")  # the bar says it already
    try:
        pooch.retrieve(source, f"sha256:{file.sha256}", fname=path.name, path=path.parent, downloader=downloader)
    finally:
        logger.setLevel(level)
        if bar is not None:
            bar.close()


def _copy(source: str, target: str, pooch: None) -> None:
    """What pooch calls to get a file from a folder."""
    shutil.copyfile(Path(source.removeprefix("file://")).expanduser(), target)


def _reason(error: Exception) -> str:
    """In a few words; those of requests name a host three times."""
    if "does not match the known hash" in str(error):
        return "another file, or only a part of it: its SHA-256 is not the registered one"
    name = type(error).__name__
    return REASONS.get(name) or f"{name}: {' '.join(str(error).partition(' for url: ')[0].split())[:200]}"


def _help(key: str, tried: list[str]) -> str:
    """What went wrong and the three ways out."""
    file, lines = FILES[key], "".join(f"\n  {line}" for line in tried) or "\n  nothing: there is no address to try"
    return (
        f"{key} ({file.num_bytes:,} bytes) could not be had. Tried:{lines}\n"
        f"Put the file by hand at {cache_folder() / key} (its SHA-256 is {file.sha256}), or set {MIRROR} to a folder or URL "
        f"that has {key}, or go online and try again.{f' {file.note}' if file.note else ''}"
    )


def _pooch():
    try:
        import pooch
    except ImportError as error:
        raise ModuleNotFoundError("Data sets that are downloaded need pooch: pip install pooch.") from error
    return pooch


class _Bar:
    """A progress bar as pooch drives it, by rich; where it cannot be drawn (a log, inside another bar), one line of text."""

    def __init__(self, name: str):
        self.name, self.total, self.progress, self.task = name, 0, None, None

    def update(self, amount: int) -> None:
        """So many bytes more."""
        if self.progress is None:
            self._start()
        if self.progress:
            self.progress.update(self.task, advance=amount)

    def reset(self) -> None:
        """Back to none; pooch does this at the end, before it fills the bar."""
        if self.progress:
            self.progress.reset(self.task, total=self.total or None)

    def close(self) -> None:
        """Take the bar away."""
        if self.progress:
            self.progress.stop()

    def _start(self) -> None:
        self.progress = False
        try:
            from rich.console import Console
            from rich.errors import LiveError
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:
            return self._say()
        console = Console(stderr=True)
        if not (console.is_terminal or console.is_jupyter):
            return self._say()
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
        progress = Progress(*columns, console=console, transient=True)
        self.task = progress.add_task(self.name, total=self.total or None)
        try:
            progress.start()
        except LiveError:
            return self._say()
        self.progress = progress

    def _say(self) -> None:
        print(f"natgrad_lab: downloading {self.name}, {self.total / 1e6:.1f} MB", file=sys.stderr, flush=True)
