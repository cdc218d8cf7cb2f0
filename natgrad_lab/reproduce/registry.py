"""The one list of reproductions: name → claim, criterion and how it is measured."""

from natgrad_lab.reproduce.base import Reproduction
from natgrad_lab.reproduce.invariance import INVARIANCE

REPRODUCTIONS: dict[str, Reproduction] = {each.name: each for each in (INVARIANCE,)}
