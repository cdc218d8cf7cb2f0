"""Start JupyterLab on notebooks/. Options we do not choose go to `jupyter lab`, and the user's own win over ours."""

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SETTINGS = Path(__file__).parent
NEEDED = ("jupyterlab", "ipykernel", "ipywidgets", "anywidget", "plotly", "jupytext")


def start_lab(root: Path | None, options: Sequence[str] = ()) -> int:
    """Run `jupyter lab` on `root`/notebooks with `options`; return its exit code. On Linux and macOS it replaces us.

    Args:
        root: the checkout, or None in an installed copy, which carries no notebooks.
    Raises: FileNotFoundError or ModuleNotFoundError with what to do if something is missing.
    """
    folder = notebooks_folder(root)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"JupyterLab with the widgets needs {', '.join(missing)}, not found by {sys.executable}. Run `make lab` "
            f"(or `python3 -m natgrad_lab lab`), which installs it, or: pip install {' '.join(missing)}"
        )
    for path in write_missing(folder):
        print(f"Made {path.name} from {path.with_suffix('.py').name}.")
    command = [sys.executable, "-m", "jupyterlab", *lab_options(folder, options)]
    environ = lab_environment(root, os.environ)
    print(f"Starting JupyterLab on {folder}; Ctrl-C twice stops it.", flush=True)
    if os.name != "nt":
        os.execve(command[0], command, environ)
    return subprocess.call(command, env=environ)


def notebooks_folder(root: Path | None) -> Path:
    """The folder of the notebooks; FileNotFoundError with what to do where there is none."""
    if root is None or not (root / "notebooks").is_dir():
        place = "an installed package carries none" if root is None else f"{root / 'notebooks'} does not exist"
        raise FileNotFoundError(f"There are no notebooks here: {place}. Get the source folder and run `make lab` in it.")
    return root / "notebooks"


def write_missing(folder: Path) -> list[Path]:
    """Write the `.ipynb` of each source that has none, not executed (`natgrad notebooks` executes); return them."""
    missing = [path for path in sorted(folder.glob("[0-9]*.py")) if not path.with_suffix(".ipynb").exists()]
    if missing:
        import nbformat

        from natgrad_lab.notebooks import read

        for path in missing:
            nbformat.write(read(path), path.with_suffix(".ipynb"))
    return [path.with_suffix(".ipynb") for path in missing]


def lab_options(folder: Path, options: Sequence[str]) -> list[str]:
    """The options for `jupyter lab`: ours where the user said nothing, then the user's."""
    ours = []
    if not _says(options, "--port", "--ServerApp.port"):
        ours.append(f"--port={free_port()}")
    if not _says(options, "--log-level", "--Application.log_level", "--ServerApp.log_level", "--debug"):
        ours.append("--log-level=WARN")  # leaves the address with its token, and what goes wrong
    positional = [option for option in options if not option.startswith("-")]
    if not positional and not _says(options, "--notebook-dir", "--ServerApp.root_dir"):
        ours.append(f"--ServerApp.root_dir={folder}")
    if is_root() and is_container() and not _says(options, "--allow-root", "--ServerApp.allow_root"):
        ours.append("--allow-root")
    return [*ours, *options]


def lab_environment(root: Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The process environment: our settings in front of the user's (which stay untouched), one core left free.

    The browser and the server need that core: with all of them training, plots come late or not at all.
    """
    result = dict(environ)
    before = [result["JUPYTER_CONFIG_PATH"]] if result.get("JUPYTER_CONFIG_PATH") else []
    result["JUPYTER_CONFIG_PATH"] = os.pathsep.join([str(SETTINGS), *before])
    result.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment, not one the user once installed
    result.setdefault("OMP_NUM_THREADS", str(max(1, cores() - 1)))
    if root is not None:  # a conda environment need not have the package itself installed
        paths = [path for path in result.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(root)]
        result["PYTHONPATH"] = os.pathsep.join([str(root), *paths])
    return result


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_port(first: int = 8888, tries: int = 50) -> int:
    """The first port from `first` on that nobody listens on; one the system picks if none of `tries` is free."""
    for port in [*range(first, first + tries), 0]:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return probe.getsockname()[1]
            except OSError:
                continue
    raise OSError(f"No free port from {first} to {first + tries - 1}; pass one: --port=NUMBER")


def is_root() -> bool:
    """Whether we run as the superuser, as which Jupyter does not start unless told to."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def is_container() -> bool:
    """Whether this is a container, where running as root is usual."""
    return "container" in os.environ or any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))


def _says(options: Sequence[str], *names: str) -> bool:
    return any(option.split("=", 1)[0] in names for option in options)
