"""The Fisher explorer: from the whole matrix of a network down to single entries, never forming it. No Jupyter here."""

from natgrad_lab.explorer.difference import Difference
from natgrad_lab.explorer.exact import ExactFisher
from natgrad_lab.explorer.explore import MEMORY_BUDGET, Explorer, Region, TileStore, explorer
from natgrad_lab.explorer.places import describe, find, name_of, ticks
from natgrad_lab.explorer.pyramid import TILE, Pyramid
from natgrad_lab.explorer.source import REDUCTIONS, Source
from natgrad_lab.explorer.structure import Approximation

__all__ = [
    "MEMORY_BUDGET",
    "REDUCTIONS",
    "TILE",
    "Approximation",
    "Difference",
    "ExactFisher",
    "Explorer",
    "Pyramid",
    "Region",
    "Source",
    "TileStore",
    "describe",
    "explorer",
    "find",
    "name_of",
    "ticks",
]
