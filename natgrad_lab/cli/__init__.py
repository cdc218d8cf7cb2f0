"""The command `natgrad`: parse, call the room that does the work, print. No mathematics here."""

from natgrad_lab.cli.commands import app, main

__all__ = ["app", "main"]
