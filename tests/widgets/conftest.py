import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_run_is_left():
    """Stop what a test started; no test may leave a thread."""
    yield
    import threading

    from natgrad_lab.widgets import registry

    registry.stop_all()
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("natgrad-live")]
    assert left == []


@pytest.fixture
def page(monkeypatch):
    """A fake page that receives what widgets send."""
    from frontend import FakePage

    return FakePage(monkeypatch)
