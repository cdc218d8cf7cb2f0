"""`natgrad run`: from options to a config, a progress bar with the live loss, and what to say at the end."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from natgrad_lab import experiments
from natgrad_lab.experiments import ExperimentConfig, StepRecord


def train(given: dict, out: Path | None, resume: bool, console: Console) -> int:
    """Run the experiment that the options `given` describe; 0 if it went well, 1 if it diverged, 130 if interrupted.

    Args:
        given: fields of ExperimentConfig; `sizes` as text. With `resume`, only what shall differ from the kept config.
        out: the results folder; a new one under results/ if None.
    """
    if "sizes" in given:
        given = {**given, "sizes": parse_sizes(given["sizes"])}
    if resume:
        config = replace(kept_config(out), **given)
    else:
        config = ExperimentConfig(**{"sizes": (), **given})
        out = out or Path("results") / f"{config.dataset}-{config.method}-{datetime.now():%Y%m%d-%H%M%S}"
    records, last = experiments.run(config, folder=out, resume=resume), None
    try:
        last = follow(records, config, console)
    except KeyboardInterrupt:
        records.close()  # writes the checkpoint
        console.print(f"Interrupted. Go on with: natgrad run --resume --out {out}", markup=False, soft_wrap=True)
        return 130
    console.print(f"Config, records and checkpoint: {out}", highlight=False, markup=False, soft_wrap=True)
    if last is not None and last.status != "ok":
        console.print(f"{last.status} at step {last.step}: {last.message}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0


def parse_sizes(text: str) -> tuple[int, ...]:
    """(64, 32, 10) from 64,32,10 or 64-32-10."""
    parts = re.split(r"[-,\s]+", text.strip())
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--sizes must be whole numbers with commas between, as 64,32,10; got {text!r}.")
    return tuple(int(part) for part in parts)


def kept_config(folder: Path | None) -> ExperimentConfig:
    """The config of the run to go on with."""
    path = folder and folder / "config.json"
    if path is None or not path.is_file():
        raise ValueError(f"--resume needs --out with the folder of a run; got {folder}, where there is no config.json.")
    return ExperimentConfig.from_json(path.read_text(encoding="utf-8"))


def follow(records: Iterator[StepRecord], config: ExperimentConfig, console: Console) -> StepRecord | None:
    """Iterate a run under a progress bar; its last record, None if it had all its steps already."""
    first = last = None
    text, loss = TextColumn("{task.description}"), TextColumn("loss {task.fields[loss]:.4g}")
    with Progress(text, BarColumn(), MofNCompleteColumn(), loss, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(f"{config.method} on {config.dataset}", total=config.steps, loss=float("nan"))
        for last in records:
            first = first or last
            progress.update(task, completed=last.step, loss=last.loss)
    if first is None:
        console.print(f"Nothing to do: the run has its {config.steps} steps.")
    else:
        console.print(f"loss {first.loss:.4g} at step {first.step}, {last.loss:.4g} at step {last.step}")
    return last
