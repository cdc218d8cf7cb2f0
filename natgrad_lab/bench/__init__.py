"""Benchmarks as commands: every figure is a ratio to a yardstick timed in the same interleaved run.

Each round times every case once, in turn, so that a busy machine slows them all; a case's figure is the median over
rounds of its time divided by the yardstick's time in that round. Results are plain rows, for a table and for JSON.
"""

from collections.abc import Callable

from natgrad_lab.bench.exact import autoencoder, factors, natural, overview, slider, spectrum
from natgrad_lab.bench.explorer import tour
from natgrad_lab.bench.steps import conventions, convolution, dense, step
from natgrad_lab.bench.timing import BenchRow, BenchTable, interleaved

BENCHES: dict[str, Callable[..., BenchTable]] = {
    "dense": dense,
    "step": step,
    "convolution": convolution,
    "natural": natural,
    "autoencoder": autoencoder,
    "spectrum": spectrum,
    "overview": overview,
    "factors": factors,
    "slider": slider,
    "explorer": tour,
    "conventions": conventions,
}

__all__ = ["BENCHES", "BenchRow", "BenchTable", "conventions", "dense", "interleaved", "step"]
