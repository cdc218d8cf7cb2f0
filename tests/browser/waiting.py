"""What a page shows follows a key by as long as the machine needs: wait for it, never for a time that should do."""

import time
from collections.abc import Callable

from playwright.sync_api import Error

SECONDS = 60.0


def soon(check: Callable, meanwhile: Callable | None = None):
    """Call `check` until it asserts nothing false, and return what it returns; after SECONDS what is false then is raised.

    `meanwhile` is called before every further attempt. An element that is being replaced counts as not there yet.
    """
    until = time.monotonic() + SECONDS
    while True:
        try:
            return check()
        except (AssertionError, Error, TypeError, ValueError, IndexError, AttributeError):
            if time.monotonic() > until:
                raise
        if meanwhile:
            meanwhile()
        time.sleep(0.05)


def steady(read: Callable, wanted: Callable = lambda value: True):
    """What `read` gives once it is `wanted` and the same three times in a row, a tenth of a second apart."""
    last, times, until = read(), 1, time.monotonic() + SECONDS
    while times < 3 or not wanted(last):
        assert time.monotonic() < until, f"not steady, or not what is wanted: {str(last)[:200]}"
        time.sleep(0.1)
        now = read()
        last, times = now, times + 1 if now == last else 1
    return last


def painted(page) -> None:
    """Wait until the page has painted what it was asked for so far: two of its frames."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(null))))")
