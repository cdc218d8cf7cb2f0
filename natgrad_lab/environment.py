"""The virtual environment `.venv` of a checkout: what it must hold, whether it does, and how it is made.

Standard library only. `.venv/natgrad_lab.json`, written last, says for which requirements the environment was
completed; `.venv/natgrad_lab.unfinished` stands while pip works, so that what an interruption left is never trusted.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
GIGABYTES_NEEDED = 2.5


class SetupError(Exception):
    """The environment cannot be made; the message says what to do."""


def checkout():
    """The folder with pyproject.toml that this package was loaded from, or None if it is an installed copy."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() and (root / "constraints.txt").is_file() else None


def python_of(venv):
    """The interpreter of a virtual environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def is_running_in(venv):
    """Whether this very interpreter belongs to that environment."""
    return venv.is_dir() and Path(sys.prefix).resolve() == venv.resolve()


def project_table(root):
    """The [project] table of pyproject.toml."""
    import tomllib  # new in Python 3.11: older ones import this file only to say that they are too old

    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(root, extras=()):
    """The requirement strings of pyproject.toml with the given extras."""
    project = project_table(root)
    return [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]


def unmet(listed):
    """Those of the requirements (`name>=1.2,<3`) that this interpreter does not satisfy, with what it has instead."""
    from importlib.metadata import PackageNotFoundError, version

    missing = []
    for requirement in listed:
        name, bounds = re.fullmatch(r"([A-Za-z0-9._-]+)(.*)", requirement.replace(" ", "")).groups()
        try:
            found = version(name)
        except PackageNotFoundError:
            missing.append(f"{requirement} (not installed)")
            continue
        if not all(satisfies(found, bound) for bound in bounds.split(",") if bound):
            missing.append(f"{requirement} (found {found})")
    return missing


def satisfies(version, bound):
    """Whether a version meets one bound such as `>=8`; pre-release and local parts of the version are ignored."""
    operator, limit = re.fullmatch(r"(>=|<=|==|<|>)([0-9.]+)", bound).groups()
    have, want = release(version), release(limit)
    length = max(len(have), len(want))
    have, want = (part + (0,) * (length - len(part)) for part in (have, want))
    return {">=": have >= want, "<=": have <= want, "==": have == want, "<": have < want, ">": have > want}[operator]


def release(version):
    """The numbers of a version: (2, 13, 0) for 2.13.0+cpu."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version).group().split("."))


def fingerprint(root):
    """A hash of all that decides what is in the environment: requirements, pins, place and Python version."""
    pins = (root / "constraints.txt").read_text(encoding="utf-8")
    parts = [project_table(root), pins, str(root), sys.version_info[:2]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_stamp(root):
    """What the last finished installation wrote, or an empty dict."""
    try:
        return json.loads((root / ".venv" / "natgrad_lab.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_up_to_date(root, extras):
    """Whether `.venv` was completed for this very pyproject.toml and constraints.txt, with these extras."""
    venv, stamp = root / ".venv", read_stamp(root)
    usable = python_of(venv).exists() and not (venv / "natgrad_lab.unfinished").exists()
    return usable and stamp.get("fingerprint") == fingerprint(root) and set(extras) <= set(stamp.get("extras", []))


def build(root, extras):
    """Make `.venv`, or bring it up to date. One that was left half-made by an interruption is made anew."""
    venv = root / ".venv"
    with one_at_a_time(root):
        if is_up_to_date(root, extras):  # another process was faster
            return
        stamp, unfinished, python = read_stamp(root), venv / "natgrad_lab.unfinished", python_of(venv)
        extras = sorted({*extras, *stamp.get("extras", [])})
        if venv.exists() and (unfinished.exists() or not python.exists()) and not is_running_in(venv):
            shutil.rmtree(str(venv))
        check_disk(root)
        venv.mkdir(exist_ok=True)
        unfinished.touch()
        if not python.exists():
            print("Making {} with Python {}.{}.".format(venv, *sys.version_info[:2]), flush=True)
            make_environment(venv)
        install(root, python, extras)
        text = json.dumps({"fingerprint": fingerprint(root), "extras": extras})
        (venv / "natgrad_lab.json").write_text(text, encoding="utf-8")
        unfinished.unlink()


def make_environment(venv):
    """Create the virtual environment with pip in it."""
    command = [sys.executable, "-m", "venv", "--prompt", "natgrad_lab", str(venv)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if answer.returncode != 0:
        raise SetupError(
            f"{sys.executable} cannot make a virtual environment in {venv}:\n\n{answer.stdout.decode().strip()}\n\n"
            "On Debian and Ubuntu: apt install python3-venv. Or activate an environment of your own that has the "
            "requirements of pyproject.toml: it is then used."
        )


def install(root, python, extras):
    """Install the tested versions; torch first, so that a machine without an NVIDIA GPU never gets a CUDA build."""
    constraints = root / "constraints.txt"
    pin = next(line for line in constraints.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    kept = []
    if wants_cpu_torch():
        if not has_torch(python, pin):
            print(f"Installing {pin} for the CPU (about 200 MB).", flush=True)
            pip(root, python, "--no-deps", "--retries", "2", "--index-url", CPU_TORCH_INDEX, pin)
        kept = [f"torch=={torch_version(python)}"]  # with its +cpu, so that nothing makes pip take PyPI's instead
    print("Installing the other requirements (about a minute; 1.5 GB in all).", flush=True)
    target = "{}[{}]".format(root, ",".join(extras)) if extras else str(root)
    pip(root, python, "--constraint", str(constraints), *kept, "--editable", target)


def wants_cpu_torch():
    """Whether torch must come from PyTorch's CPU index: PyPI's file for Linux is the CUDA build."""
    return sys.platform.startswith("linux") and shutil.which("nvidia-smi") is None


def has_torch(python, pin):
    """Whether that interpreter has torch at the pinned version, whatever the build."""
    version = torch_version(python)
    return version is not None and satisfies(version, pin[len("torch") :])


def torch_version(python):
    """The version of torch which that interpreter has, such as 2.13.0+cpu; None without one."""
    code = "from importlib.metadata import version; print(version('torch'))"
    answer = subprocess.run([str(python), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return answer.stdout.decode().strip() if answer.returncode == 0 else None


def pip(root, python, *arguments):
    """Run `pip install`: its current line is shown, all of them are kept in .venv/install.log."""
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments]
    log, tail = root / ".venv" / "install.log", []
    environ = dict(os.environ, PYTHONIOENCODING="utf-8")
    with log.open("a", encoding="utf-8") as file:
        file.write("$ {}\n".format(" ".join(command)))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ) as process:
            try:
                for line in iter(process.stdout.readline, b""):
                    text = line.decode("utf-8", "replace").rstrip()
                    file.write(text + "\n")
                    tail = [*tail[-24:], text]
                    show(text)
            except KeyboardInterrupt:
                process.terminate()
                raise
    show("")
    if process.returncode != 0:
        output = "\n  ".join(tail)
        raise SetupError(
            f"pip could not install what is required. Its last lines:\n\n  {output}\n\n"
            f"{advice_for(arguments, output)}\nThe whole output is in {log}."
        )


def show(text):
    """Rewrite the terminal's current line; where the output is no terminal, say nothing."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print("\r" + text[:width].ljust(width) + ("" if text else "\r"), end="", flush=True)


def advice_for(arguments, output):
    """What to do about a failed pip, by what it said and what it was asked."""
    if "No space left" in output:
        return f"The disk is full: free about {GIGABYTES_NEEDED} GB and run the command again."
    if "ResolutionImpossible" in output or "Requires-Python" in output:
        return "The versions in constraints.txt are tested with Python 3.11 to 3.13: try one of those (PYTHON=python3.12)."
    if CPU_TORCH_INDEX in arguments:
        return (
            f"torch for the CPU comes from {CPU_TORCH_INDEX}. If that host is blocked here, get the file elsewhere and "
            "tell pip where it is (PIP_FIND_LINKS=/folder/of/the/file); or install torch and `pip install -e .` in an "
            "environment of your own, activate it, and run the command again. A CUDA build is not installed instead."
        )
    return "Check the network (behind a proxy, set HTTPS_PROXY) and run the command again: it starts over cleanly."


def check_disk(root):
    """Refuse to start an installation that cannot fit."""
    free = shutil.disk_usage(str(root)).free / 1e9
    if free < GIGABYTES_NEEDED and not python_of(root / ".venv").exists():
        raise SetupError(f"the environment needs about {GIGABYTES_NEEDED} GB in {root}; only {free:.1f} GB are free.")


@contextlib.contextmanager
def one_at_a_time(root):
    """Let one process at a time change `.venv`; the operating system releases the lock if the process dies."""
    try:
        (root / ".natgrad").mkdir(exist_ok=True)
        file = (root / ".natgrad" / "install.lock").open("w")
    except OSError as error:
        raise SetupError(
            f"cannot write in {root}: {error}. Copy the folder to where you may write, or activate an environment that "
            "has the requirements of pyproject.toml."
        ) from error
    with file:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
