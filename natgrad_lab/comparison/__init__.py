"""How far is each approximation from the exact natural gradient, and why: one report that judges them all."""

from natgrad_lab.comparison.batch import Batch
from natgrad_lab.comparison.exact import Problem
from natgrad_lab.comparison.ladder import RUNGS, Ladder
from natgrad_lab.comparison.register import default_approximations, register, unregister
from natgrad_lab.comparison.report import Report
from natgrad_lab.comparison.rows import ALL, METRICS, Row
from natgrad_lab.comparison.run import MEMORY_BUDGET, compare
from natgrad_lab.comparison.sweep import DampingSlider, Position, Sweep

__all__ = [
    "ALL", "MEMORY_BUDGET", "METRICS", "RUNGS", "Batch", "DampingSlider", "Ladder", "Position", "Problem", "Report", "Row",
    "Sweep", "compare", "default_approximations", "register", "unregister",
]  # fmt: skip
