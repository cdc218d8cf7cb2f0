"""SIGKILL at random moments, in steps and while checkpoints are written: nothing is lost, and the end is the same bit for bit.

NATGRAD_KILLS=100 kills every method so often; without it a few methods are killed a few times.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from natgrad_lab.experiments import ExperimentConfig
from natgrad_lab.optimizers import METHODS

SOAK = int(os.environ.get("NATGRAD_KILLS", "0"))
KILLS = SOAK or 5
FEW = [name for name in ("momentum", "adam", "exact_ngd", "kfac", "kfac_adaptive", "ekfac", "prong") if name in METHODS]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which Windows has not")


@pytest.fixture(scope="module")
def killer():
    """Process that runs, kills and compares; see killed.py."""
    command = [sys.executable, "-W", "error::UserWarning", str(Path(__file__).with_name("killed.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def soak(config, folder, seed):
            job = {"config": config.to_json(), "folder": str(folder), "kills": KILLS, "seed": seed}
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield soak
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.timeout(0 if SOAK else 300)
@pytest.mark.parametrize("method", list(METHODS) if SOAK else FEW)
def test_a_run_killed_again_and_again_ends_as_if_left_alone(method, killer, tmp_path):
    config = ExperimentConfig(
        sizes=(64, 5, 10), num_examples=40, batch_size=14, batch_growth=(7, 6), steps=12, method=method, lr=0.02, damping=0.1,
        dtype="float64", device="cpu", test_fraction=0.9, evaluate_every=3,
    )  # fmt: skip
    seed = random.SystemRandom().randrange(10**6) if SOAK else 0
    answer = killer(config, tmp_path, seed)
    print(method, seed, answer)
    assert "error" not in answer, (seed, answer)
    assert answer["kills"] == KILLS
