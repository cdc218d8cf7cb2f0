"""`natgrad dashboard`: Fisher explorer, conditioning and a race on one page, on the digits or on your model and data.

Voila serves a notebook made here, in a folder of its own: only on this machine (127.0.0.1) and only with the token in the
address that is printed. Whoever has that address can run what the page runs. The model's file is your own code and is executed.
"""

import contextlib
import importlib.util
import io
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()
NEEDED = ("voila", "ipykernel", "ipywidgets", "anywidget", "plotly")
SETTINGS = "NATGRAD_DASHBOARD"  # where the notebook finds what it is to show
POLICY = (  # the page talks to its own server and to nobody else
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws://127.0.0.1:{port}; "
    "frame-ancestors 'none'; form-action 'self'"
)
PAGE = (
    ("markdown", "# natgrad dashboard"),
    ("code", "from natgrad_lab.cli import dashboard\nshown = dashboard.Shown.from_environment()\nshown.about()"),
    ("markdown", "## The exact Fisher\nWheel or +/− to zoom, drag to move; type a parameter's name to go there."),
    ("code", "shown.explorer()"),
    ("markdown", "## Conditioning"),
    ("code", "shown.conditioning()"),
    ("markdown", "## A race\nEvery method starts from the same weights and gets the same seconds."),
    ("code", "shown.race()"),
)


def dashboard(
    model: Annotated[str | None, typer.Option(help="my.py:make, a module or what makes one. RUNS that file.")] = None,
    data: Annotated[Path | None, typer.Option(help="An .npz file with inputs and targets, or the name of a data set.")] = None,
    likelihood: Annotated[str, typer.Option(help="categorical, bernoulli, gaussian, or gaussian:VARIANCE.")] = "categorical",
    examples: Annotated[
        int, typer.Option(help="The Fisher is that of the first so many; the race takes ten times these.")
    ] = 50,
    port: Annotated[int | None, typer.Option(help="On 127.0.0.1; the first free one from 8866 if not given.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
):
    """Serve one page with the Fisher explorer, the dashboard of conditioning and a training race; Ctrl-C ends it."""
    if (model is None) != (data is None):
        raise ValueError("give both --model and --data, or neither (then: the digits and a small network).")
    if examples < 1:
        raise ValueError(f"--examples must be at least 1; got {examples}.")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"natgrad dashboard needs {', '.join(missing)}, not found by {sys.executable}. Install it: "
            "pip install 'natgrad_lab[dashboard]'  (in a checkout: pip install -e '.[dashboard]')"
        )
    if model is not None:  # absolute: the page's kernel runs in another folder
        file, _, name = model.rpartition(":")
        model = f"{Path(file).resolve()}:{name}" if file else model
        data = data.resolve() if data.exists() else data
    shown = Shown(model, str(data) if data is not None else None, likelihood, examples)
    shown.parts()  # whatever does not fit is said here, not in the page
    serve(shown, port, browser)


class Shown:
    """What the page shows: a model, data, a likelihood. Made anew in the kernel of every page that is opened."""

    def __init__(self, model: str | None, data: str | None, likelihood: str = "categorical", examples: int = 50):
        """Nothing is loaded yet."""
        self.model, self.data, self.likelihood, self.examples = model, data, likelihood, examples
        self._parts = None

    @classmethod
    def from_environment(cls) -> "Shown":
        """As `serve` has written it down; what loading prints is not part of the page."""
        shown = cls(**json.loads(os.environ[SETTINGS]))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            shown.parts()
        return shown

    def settings(self) -> str:
        """The same as JSON."""
        return json.dumps({"model": self.model, "data": self.data, "likelihood": self.likelihood, "examples": self.examples})

    def parts(self) -> tuple:
        """(model, likelihood, inputs, targets), checked against each other. Executes the model's file, once."""
        from natgrad_lab.cli.compare import example
        from natgrad_lab.cli.read import load_data, load_model, matching, read_likelihood
        from natgrad_lab.widgets.race_problem import check

        if self._parts is None:
            likelihood = read_likelihood(self.likelihood)
            loaded = example() if self.model is None else (load_model(self.model, console), *load_data(Path(self.data)))
            network, inputs, targets = loaded
            inputs, targets = matching(network, likelihood, inputs[: 10 * self.examples], targets[: 10 * self.examples])
            check(network, likelihood, inputs, targets)
            self._parts = network, likelihood, inputs, targets
        return self._parts

    def about(self):
        """One line for the top of the page."""
        import ipywidgets as ipw

        from natgrad_lab.parameters import ParameterLayout
        from natgrad_lab.widgets.card_text import escape

        network, likelihood, inputs, _ = self.parts()
        names = (
            ("a 64-20-20-10 network after 15 steps of Adam", "the digits") if self.model is None else (self.model, self.data)
        )
        few = min(self.examples, len(inputs))
        words = (
            f"{names[0]} on {names[1]}: {ParameterLayout(network).dim:,} parameters, {type(likelihood).__name__}. The "
            f"Fisher is that of the first {few:,} examples; the race trains on {len(inputs):,}."
        )
        return ipw.HTML(f"<p>{escape(words)}</p>")

    def explorer(self):
        """The exact Fisher, to zoom."""
        import natgrad_lab.widgets as widgets

        network, likelihood, inputs, _ = self.parts()
        return widgets.explore(network, likelihood, inputs[: self.examples])

    def conditioning(self):
        """Spectra and condition numbers."""
        import natgrad_lab.widgets as widgets

        network, likelihood, inputs, _ = self.parts()
        return widgets.conditioning(network, likelihood, inputs[: self.examples])

    def race(self):
        """Methods against each other."""
        import natgrad_lab.widgets as widgets

        network, likelihood, inputs, targets = self.parts()
        return widgets.race(network, likelihood, (inputs, targets))


def serve(shown: Shown, port: int | None, browser: bool) -> None:
    """Run Voila on the page until it ends or Ctrl-C. Raises: RuntimeError with its last words if it does not start."""
    from natgrad_lab.environment import checkout
    from natgrad_lab.jupyter.launch import free_port, lab_environment

    token, port = secrets.token_hex(24), free_port(8866) if port is None else port
    with tempfile.TemporaryDirectory(prefix="natgrad-dashboard-") as folder:
        home = Path(folder)
        (home / "page").mkdir()
        write_page(home / "page" / "dashboard.ipynb")
        # The token goes by a file that only this user can read: command lines are seen by everybody.
        headers = {"Content-Security-Policy": POLICY.format(port=port)}
        settings = {"Voila": {"token": token, "tornado_settings": {"headers": headers}}}
        (home / "voila.json").write_text(json.dumps(settings), encoding="utf-8")
        environ = lab_environment(checkout(), os.environ) | {SETTINGS: shown.settings()}
        environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join([str(home), environ["JUPYTER_CONFIG_PATH"]])
        log = (home / "log").open("w+", encoding="utf-8")
        with log, subprocess.Popen(command(port), cwd=home / "page", env=environ, stdout=log, stderr=log) as server:
            try:
                wait_for(port, server, home / "log")
                address = f"http://127.0.0.1:{port}/?token={token}"
                console.print(f"The dashboard: {address}\nCtrl-C ends it.", markup=False, highlight=False, soft_wrap=True)
                if browser:
                    typer.launch(address)
                server.wait()
            except KeyboardInterrupt:
                console.print("ended.")
            finally:
                server.terminate()


def command(port: int) -> list[str]:
    """How Voila is started: this Python, this machine only, no code cells, this very port."""
    return [
        sys.executable, "-m", "voila", "dashboard.ipynb", "--no-browser", f"--Voila.port={port}", "--Voila.port_retries=0",
        "--Voila.ip=127.0.0.1", "--strip_sources=True",
    ]  # fmt: skip


def write_page(path: Path) -> None:
    """Write the notebook."""
    import nbformat

    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    notebook = nbformat.v4.new_notebook(cells=[make[kind](text) for kind, text in PAGE])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["title"] = "natgrad dashboard"
    nbformat.write(notebook, path)


def wait_for(port: int, server: subprocess.Popen, log: Path, seconds: float = 60.0) -> None:
    """Block until the server answers anything. Raises: RuntimeError with the end of its log."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/voila/static/", timeout=2):
                return
        except urllib.error.HTTPError:
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the dashboard's server did not start on port {port}:\n{log.read_text(encoding='utf-8')[-2000:]}")
