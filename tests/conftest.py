"""What every test shares: float64, one fixed seed, one thread, and markers that skip cleanly.

natgrad_lab is imported inside functions only: the shape checker has to be installed before the package is loaded.
"""

import os

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("default", deadline=None, max_examples=25)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure(config):
    """Use one thread: sums have one order, and parallel jobs do not fight over the cores."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    """Skip `gpu` tests where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


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
