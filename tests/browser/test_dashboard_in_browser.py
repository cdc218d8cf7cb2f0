"""`natgrad dashboard` as a reader starts it: its page in a real Chromium, closed to those without the token."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from waiting import soon

import natgrad_lab as ng

START = "import sys; from natgrad_lab.cli import main; sys.exit(main())"
MODEL = """
import torch
import natgrad_lab as ng
print("loading")
def make():
    torch.manual_seed(0)
    return ng.models.mlp((3, 4, 2), dtype=torch.float64)
"""


@pytest.fixture
def dashboard(tmp_path):
    """(address, everything for the model): the command on a model and data of one's own."""
    (tmp_path / "my.py").write_text(MODEL)
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(12, 3)), generator.integers(0, 2, 12)
    np.savez(tmp_path / "my.npz", inputs=inputs, targets=targets)
    choices = ["--model", "my.py:make", "--data", "my.npz", "--examples", "6", "--no-browser"]
    root = str(Path(__file__).parents[2])
    environ = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    server = subprocess.Popen(
        [sys.executable, "-c", START, "dashboard", *choices], cwd=tmp_path, env=environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines = []
    for line in server.stdout:
        lines.append(line)
        if found := re.search(r"http://\S+", line):
            break
    else:
        pytest.fail("".join(lines))
    yield found[0], torch.from_numpy(inputs[:6])
    server.send_signal(signal.SIGINT)
    rest, _ = server.communicate(timeout=120)
    assert server.returncode == 0 and rest == "ended.\n"


def test_the_page_shows_the_three_and_only_to_who_has_the_token(dashboard, chromium, artifacts):
    address, inputs = dashboard
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address.partition("?")[0]) as answer:
        assert "/login" in answer.url and b"shown.race" not in answer.read()
    context = chromium.new_context(viewport={"width": 1280, "height": 1400})
    page, requests = context.new_page(), []
    page.set_default_timeout(120_000)
    page.on("request", lambda request: requests.append(request.url))
    page.on("requestfailed", lambda request: requests.remove(request.url) if "csp" in (request.failure or "") else None)
    page.goto(address)
    page.locator(".natgrad-race").wait_for()
    page.locator(".natgrad-conditioning .natgrad-plot[data-drawn]").wait_for()
    page.locator(".ngx-pixels").wait_for()
    assert page.locator(".jp-CodeMirrorEditor, .jp-InputArea-editor").count() == 0, "no code is on the page"
    page.get_by_text("26 parameters").first.wait_for()
    assert "loading" not in page.inner_text("body")
    torch.manual_seed(0)
    model = ng.models.mlp((3, 4, 2), dtype=torch.float64)
    values = np.linalg.eigvalsh(ng.fisher.dense_fisher(model, ng.likelihoods.Categorical(), inputs).to_dense().numpy())
    from natgrad_lab.widgets.text import scientific

    expected, headline = (
        f"κ = {scientific(values[-1] / values[-6])}",
        page.locator(".natgrad-conditioning .natgrad-card-headline"),
    )

    def assert_shown():
        assert headline.inner_text() == expected, "6 examples of 2 classes: 6 nonzero eigenvalues"

    soon(assert_shown)
    race = page.locator(".natgrad-race")
    race.get_by_role("button", name="Run").click()
    page.wait_for_function("() => /leads/.test(document.querySelector('.natgrad-race').textContent)")
    race.get_by_role("button", name="Pause").click()
    race.get_by_role("button", name="Run").wait_for()
    for width in (1280, 800):
        page.set_viewport_size({"width": width, "height": 2400})
        page.wait_for_timeout(600)
        page.screenshot(path=str(artifacts / f"dashboard_{width}.png"))
    local = (address.partition("?")[0], address.partition("?")[0].replace("http", "ws"), "data:", "blob:", "about:")
    assert [url for url in requests if not url.startswith(local)] == []
    context.close()
