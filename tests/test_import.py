"""The core runs where there is nothing but torch and numpy; importing the package loads not even those."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Every installed distribution that torch and numpy do not need is hidden, as if it were not there.
ONLY_TORCH_AND_NUMPY = """
import importlib.metadata as metadata, re, sys
from importlib.machinery import PathFinder

def needed(names):
    found, left = set(), list(names)
    while left:
        name = re.sub("[-_.]+", "-", left.pop()).lower()
        if name not in found:
            found.add(name)
            try:
                left += [re.match(r"[\\w.-]+", line).group() for line in metadata.requires(name) or [] if "extra ==" not in line]
            except metadata.PackageNotFoundError:
                pass
    return found

kept = needed(["torch", "numpy"])
hidden = {
    module for module, owners in metadata.packages_distributions().items()
    if not any(re.sub("[-_.]+", "-", owner).lower() in kept | {"natgrad-lab"} for owner in owners)
}

class Visible(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Visible
"""  # noqa: E501


def run(code):
    """Run Python code in a new process at the root of the checkout."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_hiding_hides_what_it_should():
    names = ["jaxtyping", "plotly", "jupyterlab", "ipywidgets", "anywidget", "typer", "rich", "pytest"]
    checks = "".join(f"\ntry:\n    import {name}\nexcept ModuleNotFoundError:\n    print({name!r}, end=' ')" for name in names)
    done = run(ONLY_TORCH_AND_NUMPY + checks)
    assert done.stdout.split() == names, done.stderr


def test_core_rooms_import_and_compute_with_torch_and_numpy_alone():
    done = run(
        ONLY_TORCH_AND_NUMPY
        + """
import natgrad_lab as ng, torch
for room in ("linalg", "structures", "likelihoods", "models", "datasets", "parameters", "derivatives", "fisher", "deep_linear",
             "optimizers", "metrics", "experiments"):
    getattr(ng, room)
data = ng.datasets.digits()
model, likelihood = ng.models.mlp((64, 4, 10)), ng.likelihoods.Categorical()
F = ng.fisher.dense_fisher(model, likelihood, data.inputs[:8])
optimizer = ng.optimizers.METHODS["kfac"](model, likelihood, lr=0.1)
record = optimizer.step(data.inputs[:8], data.targets[:8])
print(F.dim, record.status)
"""
    )
    assert done.stdout.split() == ["310", "ok"], done.stderr


def test_importing_the_package_loads_no_room_and_no_torch():
    done = run("import sys, natgrad_lab; print([m for m in sys.modules if m.startswith(('torch', 'numpy', 'natgrad_lab.'))])")
    assert done.stdout.strip() == "[]", done.stderr
