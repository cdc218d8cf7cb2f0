"""A real JupyterLab on a temporary folder, and a real Chromium that opens one notebook of it.

Each test gets a notebook with the cells it names, so a failure says which. The page and the kernel are those of an earlier test
that passed, emptied: loading JupyterLab and importing PyTorch takes most of the time otherwise. All requests are recorded:
nothing may leave this machine. Screenshots go to artifacts/, which git ignores.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PASSED = pytest.StashKey[bool]()
ARTIFACTS = ROOT / "artifacts"
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
]  # fmt: skip


def pytest_collection_modifyitems(items):
    """Mark everything in this folder `browser`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def artifacts():
    """The folder of screenshots."""
    ARTIFACTS.mkdir(exist_ok=True)
    return ARTIFACTS


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """(address with token, folder): JupyterLab as `make lab` sets it up, with settings and data of its own."""
    home = tmp_path_factory.mktemp("jupyter")
    folder = home / "notebooks"
    _copy_notebooks(folder)
    token, port = secrets.token_hex(16), _free_port()
    environment = dict(os.environ) | {
        "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_PATH": str(ROOT / "natgrad_lab" / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}",
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1",
        f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    log = (home / "lab.log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_it_answers(f"http://127.0.0.1:{port}/api?token={token}", server, home / "lab.log")
        yield f"http://127.0.0.1:{port}", token, folder
    finally:
        # The kernels are children of the server's session; all go together.
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(5)
        log.close()


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests; a context (cookies, cache) each."""
    if CHROMIUM is None:
        pytest.fail("no Chromium found: apt-get install chromium, or leave these tests out with -m 'not browser'.")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Remember whether the test itself passed, for its fixtures' ends."""
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report


@pytest.fixture(scope="session")
def spare_notebooks():
    """Notebooks whose tests have passed, emptied, for the next test."""
    books = []
    yield books
    for book in books:
        book.close()


@pytest.fixture
def notebook(lab, chromium, spare_notebooks, request):
    """Give `notebook(*cells)`: it puts these cells into a notebook, or opens an existing `file`, and runs it all.

    `before` is run first, in the kernel only.
    """
    opened = []

    def open_notebook(*cells: str, file: str = "", before: str = "", width: int = 1280, height: int = 1000) -> "Notebook":
        if spare_notebooks and not file:
            book = spare_notebooks.pop()
            book.page.set_viewport_size({"width": width, "height": height})
            book.put(cells)
        else:
            book = Notebook(lab, chromium, cells, file, width, height)
            book.open()
        opened.append(book)
        if before:
            book.ask_kernel(before)
        book.run_all()
        return book

    yield open_notebook
    for book in opened:
        if request.node.stash.get(PASSED, False) and book.may_be_used_again:
            book.empty()
            spare_notebooks.append(book)
        else:
            book.close()


class Notebook:
    """One notebook in one browser page."""

    def __init__(self, lab, chromium, cells, file, width, height):
        """Write the file, if it is new, and make the page."""
        self.address, self.token, folder = lab
        self.name = file or f"test_{secrets.token_hex(4)}.ipynb"
        self.may_be_used_again = not file  # a test that changes more than cells and names in the kernel says no
        if not file:
            (folder / self.name).write_text(json.dumps(_notebook_file(cells)), encoding="utf-8")
        self.context = chromium.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self._note(message))
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))

    def _note(self, message) -> None:
        if message.type == "error":
            self.complaints.append(f"{message.text} ({message.location.get('url', '')})")

    def open(self) -> None:
        """Load JupyterLab with the notebook in front, without the side bar."""
        self.page.goto(f"{self.address}/lab/tree/{self.name}?reset&token={self.token}")
        self.wait_open()
        if self.page.is_visible("#jp-left-stack"):
            self.command("application:toggle-left-area")

    def wait_open(self) -> None:
        """Wait until the notebook is there and its kernel answers."""
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        self.page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel")

    def command(self, name: str, **arguments) -> None:
        """Run a JupyterLab command and wait until it is done."""
        self.page.evaluate(
            "([name, args]) => window.jupyterapp.commands.execute(name, args).then(() => null)", [name, arguments]
        )

    def run_all(self) -> None:
        """Run every cell; returns when the last has finished."""
        self.command("notebook:run-all-cells")

    def button(self, label: str):
        """The panel's button with this text."""
        return self.page.locator(f"button.jupyter-button:has-text('{label}')")

    def drawn(self, selector: str = ".natgrad-heatmap-pixels") -> int:
        """How many frames a view has painted."""
        return int(self.page.locator(selector).first.get_attribute("data-drawn") or 0)

    def wait_drawn(self, more_than: int = 0, selector: str = ".natgrad-heatmap-pixels") -> None:
        """Wait until a view has painted more than so many frames."""
        self.page.wait_for_function(
            "([selector, count]) => Number(document.querySelector(selector)?.dataset.drawn || 0) > count",
            arg=[selector, more_than],
        )

    def pixels(self) -> str:
        """The bytes of the heatmap's canvas, as a data address."""
        return self.page.evaluate("() => document.querySelector('.natgrad-heatmap-pixels').toDataURL()")

    def ask_kernel(self, code: str) -> str:
        """Run `code` in the notebook's kernel from outside the page and return what it prints."""
        return self.page.evaluate(_EXECUTE, code)

    def screenshot(self, name: str) -> Path:
        """Keep what the page looks like."""
        ARTIFACTS.mkdir(exist_ok=True)
        path = ARTIFACTS / f"{name}.png"
        self.page.screenshot(path=str(path))
        return path

    def outside_requests(self) -> list[str]:
        """Return the requests that were meant for another machine."""
        local = (self.address, self.address.replace("http", "ws"), "data:", "blob:", "about:")
        return [url for url in self.requests if not url.startswith(local)]

    def put(self, cells) -> None:
        """Other cells in place of those there are, with nothing noted yet."""
        self.page.evaluate(_PUT, list(cells))
        self.requests.clear(), self.complaints.clear()

    def empty(self) -> None:
        """Take away the cells and what they have made in the kernel, all but imported modules."""
        self.page.mouse.move(0, 0)
        self.put([""])
        self.ask_kernel(_FORGET)

    def close(self) -> None:
        """Stop the kernel and close the page."""
        self.may_be_used_again = False
        try:
            self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        except Exception as error:  # the page may be gone already
            print(f"kernel not stopped from the page: {error}")
        self.context.close()

    def watch(self) -> None:
        """Begin to note in the page when keys are pressed and when the canvas is painted (the frame after is on screen)."""
        self.page.evaluate(_WATCH)

    def noted(self) -> dict:
        """What `watch` has noted: milliseconds of "keys", and of "paints" with their stamps."""
        return self.page.evaluate("() => window.natgradNoted")


_WATCH = """() => {
  const noted = (window.natgradNoted = { keys: [], paints: [] });
  const canvas = document.querySelector(".natgrad-heatmap-pixels");
  document.addEventListener("keydown", (event) => noted.keys.push(event.timeStamp), true);
  new MutationObserver(() => {
    const stamp = canvas.dataset.stamp;
    requestAnimationFrame(() => noted.paints.push([performance.now(), stamp]));
  }).observe(canvas, { attributes: true, attributeFilter: ["data-drawn"] });
}"""

_PUT = """(sources) => {
  const book = window.jupyterapp.shell.currentWidget.content, cells = book.model.sharedModel;
  cells.transact(() => {
    cells.deleteCellRange(0, cells.cells.length);
    cells.insertCells(0, sources.map((source) => ({ cell_type: "code", source, metadata: {}, outputs: [] })));
  });
  book.activeCellIndex = 0;
  book.node.scrollTop = 0;
}"""

_FORGET = """
import os, ipywidgets, natgrad_lab
os.environ.pop("NATGRAD_FAST", None)
natgrad_lab.stop_all()
ipywidgets.Widget.close_all()
get_ipython().run_line_magic("reset", "-f")
"""

_EXECUTE = """async (code) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({ code, store_history: false });
  let text = "";
  future.onIOPub = (message) => {
    if (message.header.msg_type === "stream") text += message.content.text;
    if (message.header.msg_type === "error") text += message.content.evalue;
  };
  await future.done;
  return text;
}"""


def _copy_notebooks(folder: Path) -> None:
    """The project's notebooks, each as .ipynb: the generated one, or made here from its .py."""
    import jupytext

    folder.mkdir()
    for source in sorted((ROOT / "notebooks").glob("*.py")):
        generated = source.with_suffix(".ipynb")
        if generated.exists():
            shutil.copy(generated, folder)
        else:
            jupytext.write(jupytext.read(source), folder / generated.name)


def _notebook_file(cells) -> dict:
    return {
        "nbformat": 4, "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "cells": [
            {"id": f"cell-{i}", "cell_type": "code", "source": cell, "metadata": {}, "outputs": [], "execution_count": None}
            for i, cell in enumerate(cells)
        ],
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_it_answers(address: str, server: subprocess.Popen, log: Path, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")
