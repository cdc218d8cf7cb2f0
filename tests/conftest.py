"""What every test shares: float64, one fixed seed, one thread, and options that leave tests out and say so.

natgrad_lab is imported inside functions only: the shape checker has to be installed before the package is loaded.
"""

import os

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("default", deadline=None, max_examples=25)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=15, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser):
    """Offer what `natgrad test` offers, also to those who call pytest."""
    parser.addoption("--fast", action="store_true", help="leave out the slow tests and the browser tests")
    parser.addoption("--no-browser-tests", action="store_true", help="leave out the browser tests")


def pytest_configure(config):
    """Use one thread: sums have one order, and parallel jobs do not fight over the cores."""
    torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)  # after folders have marked what is in them
def pytest_collection_modifyitems(config, items):
    """Deselect what the options leave out; skip what this machine cannot run (never the browser tests in CI)."""
    from natgrad_lab import suite

    fast = config.getoption("--fast")
    left_out = {"slow", "browser"} if fast else {"browser"} if config.getoption("--no-browser-tests") else set()
    deselected = [item for item in items if left_out & set(item.keywords)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if not left_out & set(item.keywords)]
    lacking = {}
    if not torch.cuda.is_available():
        lacking["gpu"] = "no CUDA device"
    if suite.find_chromium() is None and not suite.in_ci():
        lacking["browser"] = f"no browser. {suite.INSTALL_HINT}"
    for item in items:
        for marker in lacking.keys() & set(item.keywords):
            item.add_marker(pytest.mark.skip(reason=lacking[marker]))


@pytest.fixture(autouse=True)
def float64_and_fixed_seed():
    """Run each test in float64 from seed 0, and leave the default dtype as it was."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def generator() -> torch.Generator:
    """Give a generator of its own to a test that draws numbers."""
    return torch.Generator().manual_seed(0)
