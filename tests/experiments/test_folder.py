"""What a run's folder refuses and survives: a second run, a full disk, another run's files, files that were cut."""

import json
import os
import random
import signal
import sys
import time
import warnings
from dataclasses import replace

import pytest
import torch

from natgrad_lab.experiments import ExperimentConfig, RunFolder, prepare, run
from natgrad_lab.experiments import locking as module

TINY = ExperimentConfig(
    sizes=(64, 5, 10), num_examples=24, batch_size=8, steps=6, method="sgd", lr=0.05, dtype="float64", device="cpu"
)


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which Windows has not")


def forked(work):
    """Do `work` in a fork of this process, which has imported everything; its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which here only wait
        process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


# ---- one run a folder


def test_a_second_run_in_the_folder_is_refused_until_the_first_is_closed(tmp_path):
    steps = run(TINY, folder=tmp_path)
    next(steps)
    for resume in (True, False):
        with pytest.raises(ValueError, match=rf"in use by another run \(process {os.getpid()}\)"):
            run(TINY, folder=tmp_path, resume=resume)
    assert next(steps).step == 2  # the first is not disturbed
    steps.close()
    assert len(list(run(TINY, folder=tmp_path, resume=True))) == 4
    assert len(RunFolder(tmp_path).records()) == 6


def test_a_run_that_was_never_begun_or_was_refused_leaves_no_lock(tmp_path):
    run(TINY, folder=tmp_path)  # thrown away
    with pytest.raises(ValueError, match="holds another run: lr"):
        run(replace(TINY, lr=0.1), folder=tmp_path, resume=True)
    assert len(list(run(TINY, folder=tmp_path, resume=True))) == 6


@forks
def test_another_process_in_the_folder_is_named_and_its_lock_dies_with_it(tmp_path):
    ready, tell = os.pipe()

    def hold():
        steps = run(TINY, folder=tmp_path)
        next(steps)
        os.write(tell, b".")
        time.sleep(60)

    process = forked(hold)
    try:
        assert os.read(ready, 1) == b"."
        with pytest.raises(ValueError, match=rf"in use by another run \(process {process}\)"):
            run(TINY, folder=tmp_path, resume=True)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert len(list(run(TINY, folder=tmp_path, resume=True))) == 6


def test_where_locks_do_not_exist_it_is_said(tmp_path, monkeypatch):
    def take(descriptor):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(module, "_take", take)
    with pytest.warns(UserWarning, match="cannot be locked .Operation not supported.; see to it that only one run"):
        assert len(list(run(TINY, folder=tmp_path))) == 6


# ---- a full disk


@forks
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on file sizes is Linux's")
@pytest.mark.parametrize("limit, name", [(4000, "checkpoint.pt"), (10, "records.jsonl")])
def test_a_disk_that_fills_up_is_named_and_the_last_checkpoint_stays(limit, name, tmp_path):
    """A limit on file sizes stands for the full disk: the system refuses the write in the middle of a file."""
    heard, tell = os.pipe()

    def fill():
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        steps = run(TINY, folder=tmp_path, checkpoint_every=2)
        next(steps), next(steps), next(steps)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        try:
            list(steps)
        except Exception as error:  # a pipe has no size
            os.write(tell, f"{type(error).__name__}: {error}".encode())

    assert os.waitpid(forked(fill), 0)[1] == 0
    os.close(tell)
    last = os.read(heard, 10_000).decode()
    assert last.startswith("OSError: ") and f"{name}' cannot be written (File too large)" in last
    assert "the last good checkpoint is untouched" in last and "resume=True" in last
    assert RunFolder(tmp_path).saved_step() == 2 and not (tmp_path / "checkpoint.part").exists()
    list(run(TINY, folder=tmp_path, resume=True))
    whole = prepare(TINY)
    assert [r.loss for r in RunFolder(tmp_path).records()] == [r.loss for r in run(TINY, whole)]
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(kept[key], value) for key, value in whole.model.state_dict().items())


def test_a_failed_checkpoint_keeps_the_one_before(tmp_path, monkeypatch):
    steps = run(TINY, folder=tmp_path, checkpoint_every=2)
    next(steps), next(steps), next(steps)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"checkpoint.pt' cannot be written \(No space left on device\); the last good"):
            next(steps)
    assert RunFolder(tmp_path).saved_step() == 2 and len(RunFolder(tmp_path).records()) == 4
    assert [record.step for record in run(TINY, folder=tmp_path, resume=True)] == [3, 4, 5, 6]


def test_an_error_that_is_not_the_disks_is_left_as_it_is(tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="^something else$"):
        list(run(TINY, folder=tmp_path))


# ---- files of other runs, and files that were cut


@pytest.mark.parametrize("choices, words", [
    ({"method": "adam"}, "it is of another run: method was 'adam', is 'sgd'"),
    ({"method": "momentum"}, "it is of another run: method was 'momentum', is 'sgd'"),  # its state would even load
    ({"seed": 4}, "it is of another run: seed was 4, is 0"),
    ({"sizes": (64, 6, 10)}, "it is of another run: sizes was"),
])  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused(choices, words, tmp_path):
    list(run(TINY, folder=tmp_path / "mine"))
    list(run(replace(TINY, **choices), folder=tmp_path / "other"))
    (tmp_path / "other" / "checkpoint.pt").replace(tmp_path / "mine" / "checkpoint.pt")
    with pytest.raises(ValueError, match=rf"the checkpoint '.*checkpoint.pt' cannot be read \(.*{words}"):
        run(replace(TINY, steps=9), folder=tmp_path / "mine", resume=True)


def test_a_state_of_another_method_in_our_format_is_refused(tmp_path):
    list(run(TINY, folder=tmp_path))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["optimizer"] = {"state": {}, "param_groups": []}
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt' cannot be read \(ValueError: .*param"):
        run(TINY, folder=tmp_path, resume=True)


def test_a_checkpoint_cut_or_changed_anywhere_is_refused_or_harmless(tmp_path):
    """At 40 places: cut there, or one byte changed there. It is refused by name, or every value in it is as before."""
    list(run(TINY, folder=tmp_path))
    path, chance = tmp_path / "checkpoint.pt", random.Random(0)
    content, refused = path.read_bytes(), 0
    right = torch.load(path, weights_only=True)["model"]
    for place in [chance.randrange(len(content)) for _ in range(40)]:
        changed = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
        for broken in (content[:place], changed):
            path.write_bytes(broken)
            training = prepare(TINY)
            store = RunFolder(tmp_path)
            try:
                store.resume(TINY, training)
            except ValueError as error:
                assert "checkpoint.pt' cannot be read" in str(error)
                refused += 1
            else:
                assert all(torch.equal(right[key], value) for key, value in training.model.state_dict().items())
    assert refused >= 40  # every cut one


def test_records_that_were_cut_are_refused(tmp_path):
    list(run(TINY, folder=tmp_path))
    path = tmp_path / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in (lines[:4], lines[1:] + lines[:1]):
        path.write_bytes(b"".join(kept))
        with pytest.raises(ValueError, match="records.jsonl' does not hold the records of the 6 steps"):
            run(replace(TINY, steps=9), folder=tmp_path, resume=True)
    assert path.read_bytes() == b"".join(lines[1:] + lines[:1])  # refused, not changed


@pytest.mark.parametrize("name", ["records.jsonl", "checkpoint.pt", "evaluations.jsonl"])
@pytest.mark.parametrize("resume", [True, False])
def test_files_that_no_config_goes_with_are_never_overwritten(name, resume, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds {name} without a config.json. Choose another folder"):
        run(TINY, folder=tmp_path, resume=resume)
    assert (tmp_path / name).read_text() == "mine"


def test_the_folder_says_where_it_was_made_and_gone_on_with(tmp_path):
    list(run(TINY, folder=tmp_path))
    list(run(replace(TINY, steps=8), folder=tmp_path, resume=True))
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["device"].startswith("cpu (") and about["threads"] == 1 and about["seed"] == 0
    assert about["likelihood"].startswith("Categorical(") and about["parameters"] == 64 * 5 + 5 + 5 * 10 + 10
    assert [(each["step"], each["torch"]) for each in about["resumed"]] == [(6, torch.__version__)]
    assert not any("git" in key or "user" in key for key in about)


def test_a_checkpoint_period_is_positive(tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every must be a positive number of steps; got 0"):
        run(TINY, folder=tmp_path, checkpoint_every=0)
