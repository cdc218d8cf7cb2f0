"""A live run: a problem stepped in one worker thread, and what it looks like now as immutable frames.

Pure Python, no Jupyter. Only the worker ever changes the problem, so a problem needs no lock; callers (who may be on any
thread) only write down what they want, under one condition, and the worker reads it between two steps. Frames are
throttled to `max_fps`, except those a person waits for: the first, after a changed choice, and the last one after a
pause, a step, a failure or the end. A frame computed for an older epoch (before a reset) is dropped.
"""

import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from natgrad_lab.widgets import registry
from natgrad_lab.widgets.history import History

STATES = ("idle", "running", "paused", "failed", "closed")


@runtime_checkable
class Problem(Protocol):
    """What a live run steps. These four methods are called from the worker thread alone.

    A problem may also have `preview(arrays, changes)`: what the arrays of a snapshot become by `set(**changes)`, at once, or
    None if that needs a new snapshot. It must be a pure function: it is called from any thread, also during a step.
    """

    restarting: frozenset[str]  # the choices that take effect only from the start; all others change while running

    def reset(self, **choices) -> None:
        """Go back to step 0 with these choices (all of them)."""

    def step(self) -> Any | None:
        """Do one step and return its record; None when there is none left. `record.status` other than "ok" ends the run."""

    def set(self, **choices) -> None:
        """Change some choices that need no restart."""

    def snapshot(self) -> dict[str, Any]:
        """Return what there is to see now; the run hands it on and never looks inside."""


@dataclass(frozen=True)
class Frame:
    """One look at a run. `epoch` counts the restarts, `step` the steps since; `record` is the newest one."""

    epoch: int
    step: int
    choices: Mapping[str, Any]
    record: Any | None
    history: tuple
    arrays: Mapping[str, Any]
    state: str = "idle"
    message: str = ""  # why the run ended by itself, in words for the reader
    error: str = ""  # the traceback of a failed run


@dataclass(frozen=True)
class _Job:
    epoch: int
    choices: dict[str, Any]
    restart: bool
    changes: dict[str, Any]
    step: bool


@dataclass
class _Wishes:
    """What callers want of the worker; read and written under the run's condition only."""

    restart: bool = True
    show: bool = True
    changes: dict[str, Any] = field(default_factory=dict)
    steps: Real = 0  # how many more; inf while running freely


class LiveRun:
    """Steps `problem` in one named daemon thread and hands a `Frame` to each listener, one frame at a time.

    A run of the same name that is still alive is closed and joined first, so a notebook cell that is run twice leaves
    one thread. `owner` is held weakly: when it is collected, the run closes. `wanted` may say that nobody looks, and
    then throttled frames are not computed. `clock` (seconds) is for tests.
    """

    def __init__(
        self,
        problem: Problem,
        choices: Mapping[str, Any] | None = None,
        *,
        name: str = "live",
        max_fps: Real = 20,
        max_history: int = 1000,
        owner: object | None = None,
        wanted: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Start the worker; it resets the problem and shows the first frame at once, without a step."""
        if not max_fps > 0:
            raise ValueError(f"max_fps must be positive; got {max_fps}.")
        self.problem, self.name, self.max_fps = problem, name, max_fps
        self._choices = dict(choices or {})
        self._wanted, self._clock = wanted, clock
        self._changed = threading.Condition(threading.RLock())
        self._emitting, self._emitter = threading.RLock(), 0
        self._wishes = _Wishes()
        self._state, self._epoch, self._resting = "idle", 0, False
        self._listeners: list[Callable[[Frame], None]] = []
        self._latest: Frame | None = None
        # Below: the worker's own, never touched by callers.
        self._step, self._record, self._message, self._error = 0, None, "", ""
        self._history = History(max_history)
        self._arrays: Mapping[str, Any] = {}
        self._dirty, self._shown_at = False, -float("inf")
        self._thread = threading.Thread(target=self._work, name=f"natgrad-live-{name}", daemon=True)
        registry.replace(self)
        if owner is not None:
            weakref.finalize(owner, self.close).atexit = False
        self._thread.start()

    # ---- what callers may ask for, from any thread

    @property
    def state(self) -> str:
        """One of `STATES`."""
        return self._state

    @property
    def latest(self) -> Frame | None:
        """The newest frame, None before the first."""
        return self._latest

    @property
    def choices(self) -> dict[str, Any]:
        """A copy of the choices now in force."""
        with self._changed:
            return dict(self._choices)

    def subscribe(self, listener: Callable[[Frame], None]) -> None:
        """Call `listener(frame)` for each frame, beginning with the newest one there is.

        It is called from the worker thread, or, where a changed choice can be previewed, from the thread that changed it.
        """
        with self._changed:
            self._listeners.append(listener)
            self._wishes.show = True
            self._changed.notify_all()

    def start(self) -> None:
        """Step until paused."""
        self._go(float("inf"))

    def step(self, n: int = 1) -> None:
        """Do exactly `n` more steps, then pause."""
        if n < 1:
            raise ValueError(f"n must be at least 1; got {n}.")
        self._go(n)

    def pause(self) -> None:
        """Stop after the step under way; the last frame follows."""
        with self._changed:
            if self._state == "running":
                self._state, self._wishes.steps, self._wishes.show = "paused", 0, True
                self._changed.notify_all()

    def reset(self, **choices) -> None:
        """Go back to step 0, idle, with these choices changed."""
        with self._changed:
            self._refuse_if_closed()
            self._choices.update(choices)
            self._restart(state="idle")

    def set(self, **choices) -> None:
        """Change choices. Those named in `problem.restarting` restart the run, which keeps running if it was."""
        with self._changed:
            self._refuse_if_closed()
            changes = {k: v for k, v in choices.items() if k not in self._choices or self._choices[k] != v}
            self._choices.update(changes)
            if not changes:
                return
            if self.problem.restarting & changes.keys():
                self._restart(state="running" if self._state == "running" else "idle")
            elif self._state != "failed":
                self._wishes.changes.update(changes)
                self._changed.notify_all()
        self._show_preview(changes)

    def refresh(self) -> None:
        """Show where the run is now, whatever the throttle says (a view has come back)."""
        with self._changed:
            if self._state not in ("closed", "failed"):
                self._wishes.show = True
                self._changed.notify_all()

    def wait(self, timeout: Real = 10.0) -> bool:
        """Block until the worker has nothing left to do; False if that took longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._resting and not self._has_work(), timeout)

    def close(self) -> None:
        """Stop and join the worker. May be called again, and from a listener."""
        with self._changed:
            self._state = "closed"
            self._changed.notify_all()
        # From inside a listener we must not wait: the worker may be waiting for that listener to return.
        is_inside = threading.get_ident() in (self._emitter, self._thread.ident)
        if not is_inside and self._thread.is_alive():
            self._thread.join(timeout=10.0)
        registry.forget(self)

    # ---- under the condition

    def _refuse_if_closed(self) -> None:
        if self._state == "closed":
            raise RuntimeError(f"The run {self.name!r} is closed. Make a new one (run the cell again).")

    def _go(self, steps: Real) -> None:
        with self._changed:
            self._refuse_if_closed()
            if self._state == "failed":
                raise RuntimeError(f"The run {self.name!r} has failed. Call reset() first, or change a choice.")
            self._state, self._wishes.steps = "running", steps
            self._changed.notify_all()

    def _restart(self, state: str) -> None:
        self._epoch += 1
        self._state = state
        steps = self._wishes.steps if state == "running" else 0
        self._wishes = _Wishes(steps=steps)
        self._changed.notify_all()

    def _has_work(self) -> bool:
        if self._state == "closed":
            return False
        w = self._wishes
        return w.restart or bool(w.changes) or self._state == "running" or w.show

    def _take(self) -> _Job:
        w = self._wishes
        job = _Job(self._epoch, dict(self._choices), w.restart, w.changes, step=self._state == "running")
        # A restart or a changed choice is shown before the next step, so that it is seen at once.
        if job.restart or job.changes:
            job = _Job(job.epoch, job.choices, job.restart, job.changes, step=False)
            w.show = True
        w.restart, w.changes = False, {}
        return job

    # ---- the worker

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._has_work() and self._state != "closed":
                    self._resting = True
                    self._changed.notify_all()
                    self._changed.wait()
                self._resting = False
                if self._state == "closed":
                    self._resting = True
                    self._changed.notify_all()
                    return
                job = self._take()
            try:
                self._do(job)
            except Exception:  # whatever a reader's model raises is shown, not lost
                self._fail(job, traceback.format_exc())

    def _do(self, job: _Job) -> None:
        if job.restart:
            self._step, self._record, self._message, self._error, self._arrays = 0, None, "", "", {}
            self._history.clear()
            self.problem.reset(**job.choices)
            self._dirty = True
        elif job.changes:
            self.problem.set(**job.changes)
            self._dirty = True
        elif job.step:
            self._advance(job)
        if self._is_due():
            self._show(job)

    def _advance(self, job: _Job) -> None:
        record = self.problem.step()
        status = "finished" if record is None else getattr(record, "status", "ok")
        if record is not None:
            self._step, self._record = self._step + 1, record
            self._history.append(record)
        # After a divergence the arrays stay those of the last healthy frame: there is nothing to see in a NaN.
        self._dirty = self._dirty or status == "ok"
        with self._changed:
            if job.epoch != self._epoch:
                return
            self._wishes.steps -= 1
            if status != "ok":
                self._message = getattr(record, "message", "") or f"{status} after {self._step} steps"
            if self._state == "running" and (status != "ok" or self._wishes.steps <= 0):
                self._state, self._wishes.steps, self._wishes.show = "paused", 0, True

    def _is_due(self) -> bool:
        with self._changed:
            if self._wishes.show:
                self._wishes.show = False
                return True
        return self._clock() - self._shown_at >= 1.0 / self.max_fps and self._wanted()

    def _show(self, job: _Job) -> None:
        self._shown_at = self._clock()
        if self._dirty and not self._error:
            self._arrays = MappingProxyType(dict(self.problem.snapshot()))
            self._dirty = False
        self._emit(job)

    def _fail(self, job: _Job, error: str) -> None:
        with self._changed:
            if job.epoch != self._epoch or self._state in ("closed", "failed"):
                return
            self._state, self._wishes, self._error = "failed", _Wishes(restart=False, show=False), error
        try:
            self._emit(job)
        except Exception:  # a listener that cannot even show an error: the state and `latest` still say it
            pass

    def _emit(self, job: _Job) -> None:
        self._hand_out(lambda: self._frame(job))

    def _frame(self, job: _Job) -> Frame | None:
        # If a choice was changed meanwhile, the frame that shows it follows at once and replaces this one.
        if job.epoch != self._epoch or job.step and self._wishes.changes:
            return None
        return Frame(
            job.epoch, self._step, MappingProxyType(job.choices), self._record, self._history.records(), self._arrays,
            self._state, self._message, self._error,
        )  # fmt: skip

    def _show_preview(self, changes: dict[str, Any]) -> None:
        """Show changed choices with the picture there is, from the caller's thread, while the worker is in a step."""
        seen, preview = self._latest, getattr(self.problem, "preview", None)
        arrays = preview(seen.arrays, changes) if preview and seen is not None and seen.arrays else None
        if arrays is not None:
            self._hand_out(lambda: self._preview_frame(seen, arrays))

    def _preview_frame(self, seen: Frame, arrays: Mapping[str, Any]) -> Frame | None:
        newest = self._latest
        if newest.epoch != self._epoch or newest.arrays is not seen.arrays or self._state == "failed":
            return None
        return replace(newest, choices=MappingProxyType(dict(self._choices)), arrays=arrays, state=self._state)

    def _hand_out(self, make: Callable[[], Frame | None]) -> None:
        """Make a frame and give it to all listeners before the next one can be made, so none is overtaken."""
        with self._emitting:
            with self._changed:
                frame = make() if self._state != "closed" else None
                if frame is None:
                    return
                self._latest = frame
                listeners = tuple(self._listeners)
            before, self._emitter = self._emitter, threading.get_ident()
            try:
                for listener in listeners:
                    listener(frame)
            finally:
                self._emitter = before
