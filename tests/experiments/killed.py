"""Runs that are killed with SIGKILL: forks of this one small process, so that a kill costs milliseconds and not an import.

Reads a job as a JSON line, answers with a JSON line.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from natgrad_lab.experiments import ExperimentConfig, RunFolder, prepare, run

EVERY = 2  # steps between checkpoints


def forked(config, folder, resume, disk_seconds=0.0):
    """Run in a fork, on a disk that needs `disk_seconds` to sync: its process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        sync = os.fsync
        os.fsync = lambda file: (time.sleep(disk_seconds), sync(file))
        training = prepare(config)
        for _ in run(config, training, folder=folder, resume=resume, checkpoint_every=EVERY):
            pass
        status = 0
    finally:
        os._exit(status)


def finished(process):
    """Whether the process ended by itself, well."""
    status = os.waitpid(process, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a run failed"
    return not os.WIFSIGNALED(status)


def kill(process, longest, chance):
    """Kill at a random time; whether it ended before."""
    time.sleep(chance.random() * longest)
    os.kill(process, signal.SIGKILL)
    return finished(process)


def numbers(lines):
    """Everything but times, to the last digit."""
    return [repr(replace(line, seconds=0.0, phases={}) if hasattr(line, "phases") else line) for line in lines]


def same(one, other):
    """Whether two states of tensors, numbers and containers are equal bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one.equal(other) if isinstance(one, torch.Tensor) else repr(one) == repr(other)


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def soak(config, folder, kills, chance):
    """One run killed `kills` times on its way against the same run left alone."""
    list(run(replace(config, steps=2)))  # what is imported late is imported here, once
    started = time.monotonic()
    assert finished(forked(config, folder / "whole", resume=False))
    longest, whole, broken = time.monotonic() - started, RunFolder(folder / "whole"), RunFolder(folder / "killed")
    records, evaluations, in_writing, done, times = numbers(whole.records()), numbers(whole.evaluations()), 0, 0, 0
    while times < kills:
        disk = chance.choice([0.0, longest / 10])
        if kill(forked(config, broken.path, True, disk), longest + 20 * disk, chance):
            done += 1  # to its end before it was killed: from the beginning once more
            check(broken, whole, records, evaluations)
            broken = RunFolder(folder / f"killed{done}")
            continue
        times += 1
        in_writing += (broken.path / "checkpoint.part").exists()
        kept = numbers(broken.records())
        assert kept == records[: len(kept)], "a record differs"
        saved = broken.saved_step()
        assert saved % EVERY == 0 and saved <= len(kept), "the checkpoint is ahead of the records"
        assert saved >= len(kept) - EVERY, "a checkpoint is missing"
    assert finished(forked(config, broken.path, resume=True))
    check(broken, whole, records, evaluations)
    return {"kills": times, "in_writing": in_writing, "completed": done + 1}


def check(broken, whole, records, evaluations):
    assert numbers(broken.records()) == records, "records differ"
    assert numbers(broken.evaluations()) == evaluations, "evaluations differ"
    assert same(checkpoint(broken.path), checkpoint(whole.path)), "weights or optimizer state differ"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = soak(
                ExperimentConfig.from_json(job["config"]), Path(job["folder"]), job["kills"], random.Random(job["seed"])
            )
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
