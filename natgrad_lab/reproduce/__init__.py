"""Figures of the papers, remade: each with a criterion fixed beforehand, a verdict in one of five words, and its numbers."""

from natgrad_lab.reproduce.base import NOT_ATTEMPTED, WORDS, Check, NotAttempted, Reproduction, Scale, Verdict, Work, conclude
from natgrad_lab.reproduce.ledger import kept_results, ledger_page
from natgrad_lab.reproduce.registry import REPRODUCTIONS
from natgrad_lab.reproduce.running import Result, reproduce

__all__ = [
    "NOT_ATTEMPTED", "REPRODUCTIONS", "WORDS", "Check", "NotAttempted", "Reproduction", "Result", "Scale", "Verdict", "Work",
    "conclude", "kept_results", "ledger_page", "reproduce",
]  # fmt: skip
