"""`natgrad test`: run the tests, and see to it that there is a browser for those that need one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome", "msedge")
TOGETHER = ("-q", "-n", "auto", "--dist", "worksteal", "-m", "not browser")
IN_BROWSERS = ("-q", "-n", "2", "--dist", "worksteal", "-m", "browser")  # each worker has a JupyterLab and a browser of its own
SOME_FAILED = 1  # pytest's exit code
ONCE_MORE = ("-q", "-m", "browser", "--last-failed", "--last-failed-no-failures", "none")
INSTALL_HINT = (
    "Install Chromium (Debian: apt-get install chromium; Fedora: dnf install chromium; macOS: brew install --cask "
    "chromium) or say where one is: BROWSER_PATH=/path/to/chrome"
)


def find_chromium() -> str | None:
    """The browser for tests and pictures: BROWSER_PATH if set, else the first of BROWSERS on PATH, or None."""
    chosen = os.environ.get("BROWSER_PATH")
    if chosen:
        return chosen if Path(chosen).is_file() else None
    found = (shutil.which(name) for name in BROWSERS)
    return next((path for path in found if path), None)


def run_tests(root: Path | None, options: Sequence[str] = (), *, browser: bool = True, fast: bool = False) -> int:
    """Run pytest on the tests of the checkout `root`; return its exit code (5 if nothing was run).

    Without `options` the tests run in two turns, one thread each: most of them on all cores at once; then, two at a time, those
    in a browser. Those that failed in a browser are run once more with the machine to themselves, which is said; what fails
    twice is a failure.

    A missing browser is installed where that is possible (root, apt-get). Where it is not, the browser tests are left
    out with a message, except in CI (CI=true), where that is a failure.

    Args:
        options: passed to pytest.
        browser: False leaves out the browser tests.
        fast: leaves out the browser tests and the slow ones.
    """
    if root is None or not (root / "tests").is_dir():
        raise FileNotFoundError("The tests come with the source folder, not with the installed package: run `make test` there.")
    if not fast and browser and find_chromium() is None and not install_chromium():
        if in_ci():
            print(f"natgrad test: no browser, and the browser tests must run in CI. {INSTALL_HINT}", file=sys.stderr)
            return 1
        print(f"natgrad test: no browser found, so the BROWSER TESTS ARE LEFT OUT. {INSTALL_HINT}", flush=True)
        browser = False
    elif fast:
        print("natgrad test --fast: without the slow tests and the browser tests.", flush=True)
    elif not browser:
        print("natgrad test --no-browser-tests: without the browser tests.", flush=True)
    ours = ["--fast"] if fast else [] if browser else ["--no-browser-tests"]
    pytest = [sys.executable, "-m", "pytest", *ours]
    if options:
        return subprocess.call([*pytest, *options], cwd=root)
    one_thread = dict(os.environ, OMP_NUM_THREADS="1")
    together = subprocess.call([*pytest, *TOGETHER], cwd=root, env=one_thread)
    if fast or not browser:
        return together
    files = browser_tests(root)
    in_browsers = subprocess.call([*pytest, *IN_BROWSERS, *files], cwd=root, env=one_thread)
    if in_browsers == SOME_FAILED:
        print("natgrad test: the BROWSER TESTS THAT FAILED above are RUN ONCE MORE, one at a time; this counts.", flush=True)
        in_browsers = subprocess.call([*pytest, *ONCE_MORE, *files], cwd=root, env=one_thread)
    return together or in_browsers


def browser_tests(root: Path) -> list[str]:
    """The test files with browser tests, from `root`: all others need not be imported to find that they have none."""
    files = sorted((root / "tests").rglob("test_*.py"))
    chosen = (file for file in files if file.parent.name == "browser" or "mark.browser" in file.read_text(encoding="utf-8"))
    return [file.relative_to(root).as_posix() for file in chosen]


def install_chromium() -> bool:
    """Install Debian's Chromium, if this is root on a machine with apt-get; whether there is a browser now."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return False
    print("Installing Chromium for the browser tests (apt-get; about 120 MB).", flush=True)
    environ = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]):
        answer = subprocess.run(["apt-get", "-q", *command], env=environ, capture_output=True, text=True)
        if answer.returncode != 0:
            print("\n".join([*answer.stdout.splitlines()[-5:], *answer.stderr.splitlines()[-10:]]), file=sys.stderr)
            return False
    return find_chromium() is not None


def in_ci() -> bool:
    """Whether this is a continuous-integration run."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")
