"""Problems and clocks for tests of the controller: no torch, no Jupyter."""

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    step: int
    loss: float = 1.0
    status: str = "ok"
    message: str = ""


class Clock:
    """Time that passes only when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Counter:
    """Counts its steps. `length` ends it, `diverges_at` and `fails_at` break it, `gate` holds each step back."""

    restarting = frozenset({"method"})

    def __init__(self, length=None, diverges_at=None, fails_at=None, gate=None, tick=None, previews=False):
        self.previews = previews
        self.length, self.diverges_at, self.fails_at = length, diverges_at, fails_at
        self.gate, self.tick = gate, tick
        self.resets, self.sets, self.snapshots, self.threads = [], [], 0, set()

    def reset(self, **choices):
        self.threads.add(threading.current_thread().name)
        self.count, self.choices = 0, dict(choices)
        self.resets.append(dict(choices))
        if choices.get("method") == "unknown":
            raise ValueError("no method 'unknown'")

    def step(self):
        self.threads.add(threading.current_thread().name)
        if self.gate is not None:
            self.gate.wait(10)
        if self.length is not None and self.count >= self.length:
            return None
        self.count += 1
        if self.tick is not None:
            self.tick(self.count)
        if self.count == self.fails_at:
            raise RuntimeError("step went <wrong>")
        if self.count == self.diverges_at:
            return Record(self.count, float("nan"), "diverged", "loss is nan")
        return Record(self.count, 1.0 / self.count)

    def set(self, **choices):
        self.sets.append(dict(choices))
        self.choices.update(choices)

    def snapshot(self):
        self.snapshots += 1
        return {"count": self.count}

    def preview(self, arrays, changes):
        return {**arrays, "previewed": changes["lr"]} if self.previews and changes.keys() == {"lr"} else None


def wait_until(condition, seconds=60.0):
    """Poll until `condition()`; False if it never held."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.002)):
        if condition():
            return True
        pause.wait(0.002)
    return False
