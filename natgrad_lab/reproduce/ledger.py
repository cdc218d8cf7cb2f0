"""The page of all reproductions, made from the JSON files that are kept and from nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path

from natgrad_lab.reproduce.base import WORDS
from natgrad_lab.reproduce.registry import REPRODUCTIONS

KEPT = Path("benchmarks") / "reproduce"
_HEAD = """# Reproductions

Figures of the papers, remade by `natgrad reproduce NAME`. Each criterion was fixed before the seeds were run (where a first
trial changed it, it says so); each verdict is one of: {words}.
Numbers are medians over seeds (least … most), read from `benchmarks/reproduce/NAME.json`, which holds every seed. This page
is written by `natgrad reproduce --page docs/reproductions.md`.

| figure | verdict | seeds | computed in |
|---|---|---|---|
"""


def kept_results(root: Path | None) -> dict[str, list[dict]]:
    """name → results of NAME.json and NAME@SCALE.json in `benchmarks/reproduce` of the checkout `root`; {} without one."""
    folder = root / KEPT if root is not None else None
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*.json")) if folder is not None else ():
        found.setdefault(path.stem.split("@")[0], []).append(json.loads(path.read_text(encoding="utf-8")))
    return {name: found[name] for name in REPRODUCTIONS if name in found}


def ledger_page(kept: Mapping[str, list[dict]]) -> str:
    """The page in Markdown: a table of verdicts, then every reproduction with its checks."""
    head = _HEAD.format(words=", ".join(f"*{word}*" for word in WORDS))
    rows = [row for name in REPRODUCTIONS for row in _rows(name, kept.get(name, []))]
    return head + "\n".join(rows) + "\n" + "".join(_section(name, kept.get(name, [])) for name in REPRODUCTIONS)


def _rows(name: str, results: list[dict]) -> list[str]:
    if not results:
        return [f"| [{name}](#{name}) | no result kept | | |"]
    return [
        f"| [{name}](#{name}){_scale(each)} | {each['verdict']['word']} | {len(each['seeds'])} | {_time(each['seconds'])} |"
        for each in results
    ]


def _scale(result: dict) -> str:
    return "" if result["scale"] == "small" else f", scale {result['scale']}"


def _section(name: str, results: list[dict]) -> str:
    each = REPRODUCTIONS[name]
    texts = f"**{each.title}** {each.claim}", f"Source: {each.source}.", f"Criterion: {each.criterion}."
    lines = ["", f"## {name}", *(part for text in texts for part in ("", text))]
    if not results:
        lines += ["", f"No result is kept. `natgrad reproduce {name}` measures it."]
    return "\n".join([*lines, *(line for result in results for line in _verdict(result)), ""])


def _verdict(result: dict) -> list[str]:
    verdict = result["verdict"]
    why = f" ({verdict['why']})" if verdict["why"] else ""
    lines = ["", f"Verdict{_scale(result)}: **{verdict['word']}**{why}."]
    if verdict["checks"]:
        lines += ["", "| asked | measured | |", "|---|---|---|"]
        lines += [_cells(c["text"], c["measured"], "yes" if c["passed"] else "**no**") for c in verdict["checks"]]
    machines = "; ".join(
        f"{about['device']}, {about['threads']} thread{'s' if about['threads'] != 1 else ''}, torch {about['torch']}"
        for about in result["about"]
    )
    if machines:
        lines += ["", f"Scale {result['scale']}, {len(result['seeds'])} seeds, {_time(result['seconds'])} on {machines}."]
    return lines


def _cells(*texts: str) -> str:
    """A row of a table; a bar inside a cell would end it."""
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
