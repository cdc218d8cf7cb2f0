"""What works on this machine: versions, device, widgets, browser, and a self-check that computes.

Each check is a function that returns findings; one that raises is a finding that failed, with its text.
"""

import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from natgrad_lab import environment, suite
from natgrad_lab.jupyter import launch

SHOWN_VERSIONS = ("torch", "numpy", "plotly", "jupyterlab", "ipykernel", "ipywidgets", "anywidget")
LAB_EXTENSIONS = ("@jupyter-widgets/jupyterlab-manager", "anywidget")


@dataclass(frozen=True)
class Finding:
    """One line of the report. `ok` False makes the doctor fail; `advice` says what to do."""

    name: str
    value: str
    ok: bool = True
    advice: str = ""


def examine(root: Path | None) -> list[Finding]:
    """Run every check. `root` is the checkout, None for an installed package."""
    checks = (versions, machine, widgets, browser)
    return [finding for check in checks for finding in attempt(check, root)] + self_check(root)


def self_check(root: Path | None) -> list[Finding]:
    """Compute something with each part and compare; a few seconds."""
    return [finding for check in (exact_fisher, methods, live_run) for finding in attempt(check, root)]


def attempt(check: Callable[[Path | None], list[Finding]], root: Path | None) -> list[Finding]:
    """The findings of a check, or the exception it died of as a failed one."""
    try:
        return check(root)
    except Exception as error:  # a broken installation can raise anything; the report must come out all the same
        where = traceback.extract_tb(error.__traceback__)[-1]
        advice = f"raised in {where.filename}, line {where.lineno}"
        return [Finding(check.__name__.replace("_", " "), f"{type(error).__name__}: {error}", False, advice)]


def versions(root: Path | None) -> list[Finding]:
    """Python and the packages; a failed finding for each requirement that is not met."""
    python = Finding("Python", f"{platform.python_version()} ({sys.executable})", sys.version_info >= (3, 11))
    found = [Finding(name, _version(name), _version(name) != "not installed") for name in SHOWN_VERSIONS]
    unmet = environment.unmet(environment.requirements(root)) if root else []
    advice = f"run `make lab`, or: {sys.executable} -m pip install -e {root}"
    return [python, *found, *(Finding("requirement", text, ok=False, advice=advice) for text in unmet)]


def machine(root: Path | None) -> list[Finding]:
    """System, device, threads and free disk."""
    device = "CPU"
    advice = ""
    if torch.cuda.is_available():
        device = f"CUDA: {torch.cuda.get_device_name()}"
    elif torch.backends.mps.is_available():
        device = "CPU (Apple MPS is present; it has no float64, so it is not chosen by itself)"
    elif shutil.which("nvidia-smi"):
        device = f"CPU: torch {torch.__version__} does not use the NVIDIA GPU of this machine"
        advice = "the README says how to install a CUDA build of torch"
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return [
        Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        Finding("device", device, advice=advice),
        Finding("threads", f"torch uses {torch.get_num_threads()} of {launch.cores()} cores"),
        Finding("free disk", f"{free:.1f} GB", ok=free > 0.5, advice="" if free > 0.5 else "free some space"),
    ]


def widgets(root: Path | None) -> list[Finding]:
    """Whether live widgets will show: their libraries, the lab's extensions, and our own scripts."""
    import anywidget
    import ipywidgets
    from jupyter_core.paths import jupyter_path

    libraries = f"ipywidgets {ipywidgets.__version__}, anywidget {anywidget.__version__}"
    folders = [Path(path) for path in jupyter_path("labextensions")]
    missing = [name for name in LAB_EXTENSIONS if not any((f / name / "package.json").is_file() for f in folders)]
    extensions = Finding(
        "lab extensions",
        f"missing: {', '.join(missing)}" if missing else ", ".join(LAB_EXTENSIONS),
        ok=not missing,
        advice="pip install --force-reinstall --no-deps jupyterlab_widgets anywidget" if missing else "",
    )
    scripts = sorted((Path(__file__).parent / "widgets").glob("*.js"))
    empty = [script.name for script in scripts if not script.stat().st_size]
    ours = Finding(
        "widget scripts",
        ", ".join(script.name for script in scripts) or "none found",
        ok=bool(scripts) and not empty,
        advice="" if scripts and not empty else "reinstall natgrad_lab: its JavaScript files are missing or empty",
    )
    return [Finding("widgets", libraries), extensions, ours]


def browser(root: Path | None) -> list[Finding]:
    """The browser for the browser tests: nothing else needs it, so that its absence is no failure."""
    found = suite.find_chromium()
    if found is None:
        return [Finding("Chromium", "none: the browser tests need one", advice=suite.INSTALL_HINT)]
    return [Finding("Chromium", found)]


def exact_fisher(root: Path | None) -> list[Finding]:
    """The exact Fisher of a small net by two routes that share no contraction, and a natural gradient's residual."""
    from natgrad_lab import datasets, fisher, likelihoods, metrics, models

    begin = time.perf_counter()
    digits = datasets.digits(dtype=torch.float64)
    inputs, targets = digits.inputs[:20], digits.targets[:20]
    model, likelihood = models.mlp((64, 6, 10), dtype=torch.float64), likelihoods.Categorical()
    dense = fisher.dense_fisher(model, likelihood, inputs).to_dense()
    gram = fisher.gram_fisher(model, likelihood, inputs).to_dense()
    error = float(metrics.relative_error(gram, dense))
    found = fisher.natural_gradient(model, likelihood, inputs, targets, damping=1e-2)
    seconds = time.perf_counter() - begin
    return [
        Finding("exact Fisher", f"dense and Gram agree to {error:.1e} ({seconds:.1f} s)", ok=error < 1e-10),
        Finding("natural gradient", f"route {found.route}, residual {found.residual:.1e}", ok=found.residual < 1e-8),
    ]


def methods(root: Path | None) -> list[Finding]:
    """One step of every optimizer on a small net: it must return a finite loss and move the parameters."""
    from natgrad_lab import datasets, likelihoods, models, optimizers

    data = datasets.gaussian_blobs(30, 3, 4, dtype=torch.float64)
    findings = []
    for name, make in optimizers.METHODS.items():
        model = models.mlp((4, 5, 3), dtype=torch.float64)
        before = torch.nn.utils.parameters_to_vector(model.parameters()).clone()
        record = make(model, likelihoods.Categorical(), lr=0.1).step(data.inputs, data.targets)
        moved = not torch.equal(before, torch.nn.utils.parameters_to_vector(model.parameters()))
        findings.append(Finding(f"step of {name}", f"loss {record.loss:.4f}", ok=record.status == "ok" and moved))
    return findings


def live_run(root: Path | None) -> list[Finding]:
    """Five steps in the worker thread that the live widgets use."""
    from natgrad_lab.widgets.controller import LiveRun

    class Counting:
        restarting = frozenset()

        def reset(self, **choices):
            self.count = 0

        def step(self):
            self.count += 1
            return self.count

        def set(self, **choices):
            pass

        def snapshot(self):
            return {"count": self.count}

    run = LiveRun(Counting(), name=f"doctor-{os.getpid()}")
    try:
        run.step(5)
        rested = run.wait(timeout=5.0)
        frame = run.latest
    finally:
        run.close()
    done = rested and frame is not None and frame.step == 5 and frame.arrays["count"] == 5
    return [Finding("live run", "5 steps in a worker thread" if done else f"did not finish: {frame}", ok=done)]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
