"""The Fisher explorer: from the whole matrix of a network down to single entries, never forming it. No Jupyter here."""

import natgrad_lab.explorer.eigen_cells  # noqa: F401  registers its rule
from natgrad_lab.explorer.arrange import ORDERS, Arrangement
from natgrad_lab.explorer.difference import Difference
from natgrad_lab.explorer.exact import ExactFisher
from natgrad_lab.explorer.explore import MEMORY_BUDGET, REDUCTIONS, Explorer, Region, TileStore, explorer
from natgrad_lab.explorer.places import describe, find, name_of, ticks
from natgrad_lab.explorer.pyramid import TILE, Pyramid
from natgrad_lab.explorer.source import Source, TooDear
from natgrad_lab.explorer.structure import Approximation

__all__ = [
    "MEMORY_BUDGET",
    "ORDERS",
    "REDUCTIONS",
    "TILE",
    "Approximation",
    "Arrangement",
    "Difference",
    "ExactFisher",
    "Explorer",
    "Pyramid",
    "Region",
    "Source",
    "TileStore",
    "TooDear",
    "describe",
    "explorer",
    "find",
    "name_of",
    "ticks",
]
