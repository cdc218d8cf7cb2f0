"""The controller alone: steps, frames, throttle, restarts, failures, threads, memory."""

import gc
import subprocess
import sys
import threading
import time
import tracemalloc

import pytest
from toy import Clock, Counter, Record, wait_until


@pytest.fixture
def make():
    from natgrad_lab.widgets.controller import LiveRun

    def make_run(problem=None, choices=None, **options):
        frames = []
        run = LiveRun(problem or Counter(), choices or {"lr": 0.1, "method": "sgd"}, **options)
        run.subscribe(frames.append)
        assert run.wait()
        return run, frames

    return make_run


def test_first_frame_comes_before_any_step(make):
    run, frames = make()
    assert (run.state, frames[-1].step, frames[-1].arrays["count"]) == ("idle", 0, 0)
    assert frames[-1].record is None and frames[-1].history == ()


def test_step_does_exactly_n_and_then_pauses_with_the_last_frame(make):
    run, frames = make(clock=Clock())
    run.step(7)
    assert run.wait()
    assert (run.state, run.problem.count, run.latest.step, run.latest.state) == ("paused", 7, 7, "paused")
    assert [record.step for record in run.latest.history] == list(range(1, 8))
    assert run.latest.arrays == {"count": 7}


def test_frames_are_immutable(make):
    run, _ = make()
    with pytest.raises(TypeError):
        run.latest.arrays["count"] = 3
    with pytest.raises(TypeError):
        run.latest.choices["lr"] = 3
    with pytest.raises(AttributeError):
        run.latest.step = 3


def test_throttle_shows_ten_frames_a_second_of_a_hundred_steps(make):
    clock = Clock()

    def tick(count):
        clock.now += 0.01

    run, frames = make(Counter(tick=tick), clock=clock, max_fps=10)
    before = len(frames)
    run.step(100)
    assert run.wait()
    shown = [frame.step for frame in frames[before:]]
    assert len(shown) <= 12 and shown[-1] == 100
    assert all(later - earlier >= 10 for earlier, later in zip(shown[1:-2], shown[2:-1], strict=True))


def test_time_that_stands_still_shows_only_the_last_frame(make):
    run, frames = make(clock=Clock())
    before = len(frames)
    run.step(50)
    assert run.wait()
    assert [frame.step for frame in frames[before:]] == [50]


def test_a_changed_choice_is_never_throttled(make):
    gate = threading.Event()
    gate.set()
    clock = Clock()
    run, frames = make(Counter(gate=gate), clock=clock)
    run.start()
    for value in (0.2, 0.3, 0.4):
        run.set(lr=value)
        assert wait_until(lambda value=value: any(frame.choices["lr"] == value for frame in list(frames)))
    assert run.problem.choices["lr"] == 0.4 and run.state == "running" and run.latest.epoch == 0


def test_a_changed_choice_is_previewed_while_the_worker_is_in_a_step(make):
    gate = threading.Event()
    run, frames = make(Counter(gate=gate, previews=True))
    run.start()
    assert wait_until(lambda: run.state == "running")
    for value in (0.2, 0.3):
        run.set(lr=value)
        assert (frames[-1].choices["lr"], frames[-1].arrays["previewed"], frames[-1].step) == (value, value, 0)
    before = len(frames)
    run.set(lr=0.4, momentum=0.9)  # nothing to preview with: it has to wait for the worker
    assert len(frames) == before
    gate.set()
    assert wait_until(lambda: run.latest.step > 3)
    run.pause()
    assert run.wait()
    assert all(frame.choices["lr"] == 0.4 for frame in frames[before:]), "no frame with older choices after a newer one"
    assert run.problem.choices["lr"] == 0.4


def test_no_preview_of_a_failed_closed_or_restarted_run(make):
    run, frames = make(Counter(fails_at=1, previews=True))
    run.start()
    assert wait_until(lambda: run.state == "failed") and run.wait()
    before = len(frames)
    run.set(lr=0.5)
    assert len(frames) == before
    run.reset()
    assert run.wait() and frames[-1].choices["lr"] == 0.5 and "previewed" not in frames[-1].arrays


def test_close_from_a_previewing_listener(make):
    gate = threading.Event()
    run, _ = make(Counter(gate=gate, previews=True))
    run.start()
    assert wait_until(lambda: run.state == "running")
    run.subscribe(lambda frame: run.close() if frame.choices["lr"] == 0.2 else None)
    started = time.monotonic()
    run.set(lr=0.2)
    assert time.monotonic() - started < 60 and run.state == "closed"
    gate.set()
    assert wait_until(lambda: not run._thread.is_alive())


def test_a_changed_choice_shows_while_paused_without_a_step(make):
    run, frames = make(clock=Clock())
    run.step(3)
    run.wait()
    run.set(lr=0.7)
    assert run.wait()
    assert (frames[-1].choices["lr"], frames[-1].step, frames[-1].state) == (0.7, 3, "paused")
    count = len(frames)
    run.set(lr=0.7)
    assert run.wait() and len(frames) == count, "the same value again is no change"


def test_a_restarting_choice_begins_a_new_epoch_and_keeps_running(make):
    run, frames = make()
    run.step(5)
    run.wait()
    run.set(method="kfac")
    assert run.wait()
    assert (frames[-1].epoch, frames[-1].step, frames[-1].history, frames[-1].state) == (1, 0, (), "idle")
    assert run.problem.resets[-1] == {"lr": 0.1, "method": "kfac"}
    run.start()
    run.set(method="sgd")
    assert wait_until(lambda: run.latest.epoch == 2 and run.latest.step > 0)
    assert run.state == "running"


def test_reset_goes_to_step_0_idle(make):
    run, frames = make()
    run.step(4)
    run.wait()
    run.reset()
    assert run.wait()
    assert (run.state, frames[-1].step, frames[-1].epoch) == ("idle", 0, 1)


def test_a_frame_of_an_old_epoch_is_dropped(make):
    gate = threading.Event()
    run, frames = make(Counter(gate=gate))
    run.start()
    assert wait_until(lambda: run.problem.count == 0 and run.state == "running")
    run.reset(lr=0.9)  # while the worker hangs in a step of epoch 0
    before = len(frames)
    gate.set()
    assert run.wait()
    assert [frame.epoch for frame in frames[before:]] == [1]
    assert frames[-1].choices["lr"] == 0.9


def test_pause_shows_the_last_step(make):
    run, frames = make(clock=Clock())
    run.start()
    assert wait_until(lambda: run.problem.count > 20)
    run.pause()
    assert run.wait()
    assert frames[-1].step == run.problem.count and frames[-1].state == "paused"
    done = run.problem.count
    time.sleep(0.02)
    assert run.problem.count == done


@pytest.mark.parametrize(
    "options, steps, words", [({"length": 6}, 6, "finished after 6"), ({"diverges_at": 4}, 4, "loss is nan")]
)
def test_the_end_is_shown_with_its_reason(make, options, steps, words):
    run, frames = make(Counter(**options), clock=Clock())
    run.start()
    assert wait_until(lambda: run.state == "paused") and run.wait()
    assert frames[-1].step == steps and words in frames[-1].message
    assert len(frames[-1].history) == steps


def test_divergence_keeps_the_last_healthy_picture(make):
    clock = Clock()
    run, frames = make(Counter(diverges_at=4), clock=clock, max_fps=10)
    run.step(3)
    run.wait()
    run.start()
    assert wait_until(lambda: run.state == "paused") and run.wait()
    assert frames[-1].arrays == {"count": 3} and frames[-1].record.status == "diverged"


def test_an_exception_fails_the_run_and_keeps_what_it_had(make):
    run, frames = make(Counter(fails_at=3))
    run.start()
    assert wait_until(lambda: run.state == "failed") and run.wait()
    frame = frames[-1]
    assert frame.state == "failed" and "RuntimeError: step went <wrong>" in frame.error and "Traceback" in frame.error
    assert [record.step for record in frame.history] == [1, 2] and frame.arrays
    with pytest.raises(RuntimeError, match="has failed. Call reset"):
        run.start()
    run.problem.fails_at = None
    run.reset()
    assert run.wait() and run.latest.error == "" and run.state == "idle"


def test_a_reset_that_fails_can_be_mended_by_another_choice(make):
    run, frames = make(choices={"method": "unknown"})
    assert run.state == "failed" and "no method 'unknown'" in frames[-1].error
    run.set(method="sgd")
    assert run.wait() and run.state == "idle"


def test_a_view_that_comes_late_learns_of_the_failure(make):
    run, _ = make(choices={"method": "unknown"})
    late = []
    run.subscribe(late.append)
    assert run.wait()
    assert "no method 'unknown'" in late[-1].error and late[-1].state == "failed"


def test_a_listener_that_fails_is_shown_too(make):
    run, frames = make()

    def listener(frame):
        if not frame.error:
            raise KeyError("broken view")

    run.subscribe(listener)
    assert run.wait()
    assert run.state == "failed" and "broken view" in frames[-1].error


def test_only_the_worker_touches_the_problem(make):
    run, _ = make(name="mine")
    run.step(3)
    run.wait()
    assert run.problem.threads == {"natgrad-live-mine"}


def test_the_same_name_replaces_the_run(make):
    from natgrad_lab.widgets import registry

    first, _ = make(name="cell")
    first.start()
    second, _ = make(name="cell")
    assert first.state == "closed" and not first._thread.is_alive()
    assert registry.running() == ("cell",)
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("natgrad-live-cell") == 1 and second.state == "idle"


def test_stop_all_and_close_twice(make):
    from natgrad_lab.widgets import stop_all

    runs = [make(name=name)[0] for name in ("a", "b")]
    stop_all()
    assert all(run.state == "closed" and not run._thread.is_alive() for run in runs)
    runs[0].close()
    with pytest.raises(RuntimeError, match="'a' is closed"):
        runs[0].start()


def test_a_late_step_of_a_closed_run_shows_nothing(make):
    gate = threading.Event()
    run, frames = make(Counter(gate=gate))
    run.start()
    assert wait_until(lambda: run.state == "running")
    closing = threading.Thread(target=run.close)
    closing.start()
    assert wait_until(lambda: run.state == "closed")
    before = len(frames)
    gate.set()
    closing.join(10)
    assert not run._thread.is_alive() and len(frames) == before


def test_close_from_a_listener(make):
    run, _ = make()
    run.subscribe(lambda frame: run.close())
    assert wait_until(lambda: not run._thread.is_alive())


def test_the_owner_takes_the_run_with_it():
    from natgrad_lab.widgets.controller import LiveRun

    class Owner:
        pass

    owner = Owner()
    run = LiveRun(Counter(), {}, owner=owner)
    run.wait()
    del owner
    gc.collect()
    assert run.state == "closed" and not run._thread.is_alive()


def test_the_process_ends_while_a_run_is_going():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from toy import Counter\nfrom natgrad_lab.widgets.controller import LiveRun\n"
        "run = LiveRun(Counter(), {}); run.start(); print('ipywidgets' in sys.modules, 'torch' in sys.modules)"
    )
    here = __file__.rsplit("/", 1)[0]
    result = subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "False False", "")


def test_nobody_looks(make):
    clock = Clock()

    def tick(count):
        clock.now += 1.0

    run, frames = make(Counter(tick=tick), clock=clock, wanted=lambda: False)
    before = len(frames)
    run.step(50)
    assert run.wait()
    assert [frame.step for frame in frames[before:]] == [50]
    run.refresh()
    assert run.wait() and len(frames) == before + 2


def test_hammering_from_four_threads(make):
    run, frames = make(Counter(previews=True), max_fps=1000)
    failures = []

    def hammer(seed):
        actions = [run.start, run.pause, run.reset, lambda: run.step(3), lambda: run.set(lr=seed), run.refresh]
        actions.append(lambda: run.set(method=f"m{seed}"))
        try:
            for i in range(300):
                actions[(i * (seed + 3) + i // 7) % len(actions)]()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    run.pause()
    assert run.wait(20) and failures == [] and run.state in ("idle", "paused")
    epochs = [frame.epoch for frame in frames]
    assert epochs == sorted(epochs)
    last = frames[-1]
    assert (last.step, last.epoch) == (run.problem.count, run._epoch) and dict(last.choices) == run.choices
    run.step(2)
    run.wait()
    assert run.latest.step == last.step + 2


def test_5000_frames_leave_memory_flat(make):
    import numpy as np

    clock = Clock()

    class Pictures(Counter):
        def snapshot(self):
            return {"picture": np.zeros((300, 300), np.float32), "count": self.count}  # as in the panel

    problem = Pictures(tick=lambda count: setattr(clock, "now", clock.now + 1.0))
    from natgrad_lab.widgets.controller import LiveRun

    seen = []
    run = LiveRun(problem, {}, clock=clock, max_history=200)
    run.subscribe(lambda frame: seen.append(frame.step))
    tracemalloc.start()
    try:
        run.step(1000)
        assert run.wait(60)
        gc.collect()
        seen.clear()
        before, _ = tracemalloc.get_traced_memory()
        run.step(5000)
        assert run.wait(120)
        count = len(seen)
        seen.clear()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count >= 5000 and run.latest.step == 6000
    assert after < 1.05 * before, f"{before} → {after} bytes"


def test_history_is_thinned_evenly():
    from natgrad_lab.widgets.history import History

    history = History(capacity=50)
    for step in range(1, 1001):
        history.append(Record(step))
        kept = [record.step for record in history.records()]
        assert len(kept) <= 50 and kept[0] == 1 and kept[-1] == step
        gaps = {later - earlier for earlier, later in zip(kept[:-2], kept[1:-1], strict=True)}
        assert len(gaps) <= 1, "all gaps but the last are one stride"
    with pytest.raises(ValueError, match="capacity must be at least 4; got 3"):
        History(3)


@pytest.mark.parametrize("call, words", [(lambda run: run.step(0), "n must be at least 1; got 0")])
def test_refused(make, call, words):
    run, _ = make()
    with pytest.raises(ValueError, match=words):
        call(run)


def test_max_fps_must_be_positive():
    from natgrad_lab.widgets.controller import LiveRun

    with pytest.raises(ValueError, match="max_fps must be positive; got 0"):
        LiveRun(Counter(), max_fps=0)
