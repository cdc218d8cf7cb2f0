"""Do the newest wish only: a wish made while the last one is worked on replaces the one that waits; nothing queues."""

import threading
from collections.abc import Callable
from typing import Any

from natgrad_lab.widgets import registry


class Newest:
    """Calls `work(wish)` for the newest wish, one at a time, from whatever threads `ask` is called.

    Without `thread` the caller who finds nobody at work does it; with `thread`, a daemon thread of that name does, which
    ends when nothing is left to do. `work` shows its own errors. A thread of the same name that was begun before is
    stopped first: a cell that is run twice leaves one.
    """

    def __init__(self, work: Callable[[Any], None], thread: str | None = None):
        """Begin idle."""
        self._work, self.name = work, thread or ""
        self._changed = threading.Condition()
        self._wishes: list = []
        self._is_working = False
        self._worker: threading.Thread | None = None

    @property
    def is_working(self) -> bool:
        """Whether a wish is being worked on, or waits."""
        return self._is_working

    def ask(self, wish: Any) -> None:
        """Wish for something."""
        with self._changed:
            self._wishes = [wish]
            if self._is_working:
                return
            self._is_working = True
            if self.name:
                self._worker = threading.Thread(target=self._until_done, name=self.name, daemon=True)
        if not self.name:
            self._until_done()
            return
        registry.replace(self)
        self._worker.start()

    def wait(self, timeout: float = 30.0) -> bool:
        """Block until nothing is left to do; False if that took longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_working, timeout)

    def close(self) -> None:
        """Forget what waits, and wait for what is under way. It may be asked again."""
        with self._changed:
            self._wishes = []
        worker = self._worker
        if worker is not None and worker is not threading.current_thread() and worker.is_alive():
            worker.join(timeout=10.0)
        registry.forget(self)

    def _until_done(self) -> None:
        while True:
            with self._changed:
                if not self._wishes:
                    self._is_working = False
                    self._changed.notify_all()
                    break
                wish = self._wishes.pop()
            try:
                self._work(wish)
            except BaseException:
                with self._changed:
                    self._is_working = False
                    self._changed.notify_all()
                raise
        if self.name:
            registry.forget(self)
