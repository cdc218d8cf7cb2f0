"""Back-pressure between a kernel that draws fast and a page that paints when it can.

At most `slots` messages are in flight; the page acknowledges each after painting it. One more message waits, and a
newer one takes its place. An acknowledgement that does not come within `expire` seconds is given up: nothing ever blocks.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

Message = tuple[dict[str, Any], list]


class FrameFlow:
    """Decides when a message goes out. `send(header, buffers)` does the sending; safe from any thread."""

    def __init__(self, send: Callable[[dict, list], None], slots: int = 2, expire: float = 2.0, clock=time.monotonic):
        """Begin with no view: the first message waits for one to say that it is ready."""
        self._send, self.slots, self.expire, self._clock = send, slots, expire, clock
        self._lock = threading.RLock()
        self._in_flight: dict[int, float] = {}
        self._pending: Message | None = None
        self._last: Message | None = None
        self._views: set[str] = set()
        self._unanswered_since: float | None = None
        self._number = 0

    @property
    def last(self) -> Message | None:
        """The newest message pushed, sent or not."""
        return self._last

    def is_watched(self) -> bool:
        """Whether there is a view and it answers; a page that vanished without a word, or sleeps, does not."""
        with self._lock:
            since = self._unanswered_since
            return bool(self._views) and (since is None or self._clock() - since < 3 * self.expire)

    def push(self, header: dict[str, Any], buffers: list) -> int:
        """Send now if a slot is free, else replace the waiting message. Returns the message's number."""
        with self._lock:
            self._number += 1
            self._last = self._pending = ({**header, "id": self._number}, buffers)
            self._flush()
            return self._number

    def acknowledge(self, view: str, number: int) -> None:
        """The page has painted message `number`."""
        with self._lock:
            self._views.add(view)
            self._unanswered_since = None
            self._in_flight.pop(number, None)
            self._flush()

    def ready(self, view: str) -> None:
        """A page has connected, or come back: forget what was in flight and send the newest again."""
        with self._lock:
            self._views.add(view)
            self._unanswered_since = None
            self._in_flight.clear()
            self._pending = self._last
            self._flush()

    def gone(self, view: str) -> None:
        """A view was removed."""
        with self._lock:
            self._views.discard(view)

    def _flush(self) -> None:
        now = self._clock()
        self._in_flight = {n: sent for n, sent in self._in_flight.items() if now - sent < self.expire}
        if self._pending is None or not self._views or len(self._in_flight) >= self.slots:
            return
        (header, buffers), self._pending = self._pending, None
        self._in_flight[header["id"]] = now
        if self._unanswered_since is None:
            self._unanswered_since = now
        self._send(header, buffers)
