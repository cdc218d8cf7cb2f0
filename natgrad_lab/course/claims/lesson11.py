"""The numbers of lesson 11."""

import numpy as np

from natgrad_lab.course.cards import lesson11 as lesson

GD, HALF, NGD = lesson.POWERS.values()


def _steps(power: float, batch: int) -> float:
    return lesson.steps_curve(power, 1.0, 1.0, 0.01)[lesson.BATCHES.index(batch)]


def gd_steps_256() -> float:
    """Steps of gradient descent at batch size 256 to a loss of 0.01, in thousands."""
    return _steps(GD, 256) / 1000


def gd_steps_1024() -> float:
    """The same at 1024."""
    return _steps(GD, 1024) / 1000


def gd_steps_million() -> float:
    """The same at 2²⁰."""
    return _steps(GD, 2**20) / 1000


def ngd_steps_256() -> float:
    """Steps of the natural gradient at 256, in thousands."""
    return _steps(NGD, 256) / 1000


def half_steps_million() -> float:
    """Steps at p = ½ and 2²⁰."""
    return _steps(HALF, 2**20)


def ngd_steps_million() -> float:
    """Steps of the natural gradient at 2²⁰."""
    return _steps(NGD, 2**20)


def gd_efficiency_1024() -> float:
    """Percent of the efficiency at the smallest batch that gradient descent has at 1024."""
    return 100 * lesson.BATCHES[0] * _steps(GD, lesson.BATCHES[0]) / (1024 * _steps(GD, 1024))


def gd_critical() -> float:
    """Critical batch size of gradient descent."""
    return lesson.critical_batch(lesson.steps_curve(GD, 1.0, 1.0, 0.01))


def critical_ratio() -> float:
    """Critical batch size of the natural gradient over that of gradient descent."""
    return lesson.critical_batch(lesson.steps_curve(NGD, 1.0, 1.0, 0.01)) / gd_critical()


def _best_damping(lr: str, batch: int) -> float:
    return float(lesson.CARDS[2].result({"lr": lr, "batch": batch})["chosen"])


def damping_256() -> float:
    """Best damping at learning rate 1 and batch size 256."""
    return _best_damping("fixed at 1", 256)


def damping_65536() -> float:
    """The same at 65,536."""
    return _best_damping("fixed at 1", 2**16)


def damping_range_tuned() -> float:
    """Largest over smallest best damping up to a batch size of 65,536, learning rate tuned."""
    best = lesson.CARDS[2].result({"lr": "tuned for every point"})["best"][: lesson.COARSE.index(2**16) + 1]
    return float(np.max(best) / np.min(best))


def stale_updates() -> float:
    """Updates to the target with 64 workers in three roles, over those with fresh inverses and the same batch."""
    result = lesson.CARDS[1].result({"mode": "K-FAC, three roles"})
    return result["updates"] / lesson.stale_steps(float(result["batch"]), 0, 1.0)


def speedup() -> float:
    """Time of SGD over that of K-FAC in three roles, 256 workers."""
    times = [lesson.CARDS[1].result({"mode": mode, "workers": 256})["time"] for mode in ("SGD", "K-FAC, three roles")]
    return times[0] / times[1]


def sweep_sgd() -> float:
    """Last batch size with an efficiency of 0.8, SGD on digits."""
    return lesson.CARDS[3].result()["critical"]["sgd"]


def sweep_kfac() -> float:
    """The same of K-FAC."""
    return lesson.CARDS[3].result()["critical"]["kfac"]
