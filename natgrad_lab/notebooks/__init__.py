"""The notebooks of the checkout: how they are made from their sources, and whether they are to be fast."""

from natgrad_lab.notebooks.build import Built, build, difference_of, execute, is_fast, read, sources

__all__ = ["Built", "build", "difference_of", "execute", "is_fast", "read", "sources"]
