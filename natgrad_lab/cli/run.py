"""`natgrad run`: from options to a config, a progress bar with live loss and error, and what to say at the end."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from natgrad_lab import experiments
from natgrad_lab.datasets import DATASETS
from natgrad_lab.experiments import MODELS, ExperimentConfig, RunFolder, StepRecord
from natgrad_lab.experiments.own import is_own_model
from natgrad_lab.optimizers import METHODS


def train(
    given: dict, out: Path | None, resume: bool, console: Console, *, threads: int | None = None, checkpoint_every: int = 50
) -> int:
    """Run the experiment that the options `given` describe; 0 if it went well, 1 if it diverged, 130 if interrupted.

    Args:
        given: fields of ExperimentConfig; those in PARSERS as text. With `resume`, only what shall differ from the kept config.
        out: the results folder; a new one under results/ if None.
        threads: of torch; those of the kept run with `resume`, torch's own choice otherwise.
    """
    given = parsed(given)
    if resume:
        kept, about = kept_config(out), RunFolder(out).about()
        if is_own_model(kept.model) and "model" not in given:
            raise ValueError(
                f"the network of the run in {out} is made by a file, {kept.model}, which going on would execute. If it is "
                f"yours, say so: --model {kept.model}"
            )
        config, threads = replace(kept, **given), threads or about.get("threads")
    else:
        config = ExperimentConfig(**given)
        out = out or Path("results") / f"{config.dataset}-{config.method}-{datetime.now():%Y%m%d-%H%M%S}"
    if threads is not None:
        set_threads(threads)
    if is_own_model(config.model):
        say(console, f"running {config.model.rpartition(':')[0]}, which is your own code")
    records = experiments.run(config, folder=out, resume=resume, checkpoint_every=checkpoint_every)
    folder = RunFolder(out)
    about = folder.about()
    about |= (about.get("resumed") or [{}])[-1]
    say(console, f"{config.model}, {about['parameters']:,} parameters, {about['likelihood']}; on {about['device']}")
    try:
        last = follow(records, config, folder, console)
    except KeyboardInterrupt:
        records.close()  # writes the checkpoint
        own = f" --model {config.model}" if is_own_model(config.model) else ""
        say(console, f"Interrupted. Go on with: natgrad run --resume --out {out}{own}")
        return 130
    say(console, f"Config, records and checkpoint: {out}")
    if last is not None and last.status != "ok":
        say(console, f"{last.status} at step {last.step}: {last.message}", style="red")
        return 1
    return 0


def parsed(given: dict) -> dict:
    """The options with texts read; `--likelihood gaussian:0.25` also sets the variance."""
    given = {name: PARSERS[name](value) if name in PARSERS else value for name, value in given.items()}
    name, colon, variance = given.get("likelihood", "").partition(":")
    if colon:
        try:
            given |= {"likelihood": name, "variance": float(variance)}
        except ValueError:
            raise ValueError(f"--likelihood takes a number after the colon, as gaussian:0.25; got {variance!r}.") from None
        if name != "gaussian":
            raise ValueError(f"--likelihood: only gaussian takes a variance; got {name}:{variance}.")
    return given


def parse_sizes(text: str) -> tuple[int, ...]:
    """(64, 32, 10) from 64,32,10 or 64-32-10."""
    parts = re.split(r"[-,\s]+", text.strip())
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--sizes must be whole numbers with commas between, as 64,32,10; got {text!r}.")
    return tuple(int(part) for part in parts)


def parse_growth(text: str) -> tuple[int, ...]:
    """(1000, 500) from 1000:500."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--batch-growth must be FIRST:STEP, as 1000:500 (1000 examples, all at step 500); got {text!r}.")
    return tuple(int(part) for part in parts)


def parse_options(texts: list[str]) -> dict:
    """{"ema_decay": 0.9} from ["ema_decay=0.9"]; a value is read as JSON where it is JSON, else it is a text."""
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--option and --data-option must be NAME=VALUE, as ema_decay=0.9; got {text!r}.")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def parse_model(text: str) -> str:
    """A name as it is; FILE.py:NAME with the whole path, so that a run is resumed from any folder."""
    file, colon, name = text.rpartition(":")
    return f"{Path(file).resolve()}:{name}" if colon and file else text


PARSERS = {
    "sizes": parse_sizes,
    "batch_growth": parse_growth,
    "options": parse_options,
    "data_options": parse_options,
    "model": parse_model,
}


def set_threads(threads: int) -> None:
    """Let torch use so many threads."""
    if threads < 1:
        raise ValueError(f"--threads must be at least 1; got {threads}.")
    torch.set_num_threads(threads)


def kept_config(folder: Path | None) -> ExperimentConfig:
    """The config of the run to go on with."""
    path = folder and folder / "config.json"
    if path is None or not path.is_file():
        raise ValueError(f"--resume needs --out with the folder of a run; got {folder}, where there is no config.json.")
    return ExperimentConfig.from_json(path.read_text(encoding="utf-8"))


def follow(records: Iterator[StepRecord], config: ExperimentConfig, folder: RunFolder, console: Console) -> StepRecord | None:
    """Iterate a run under a progress bar; its last record, None if it had all its steps already."""
    first = last = None
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4g}"),
        TextColumn("{task.fields[error]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"{config.method} on {config.dataset}", total=config.steps, loss=float("nan"), error="")
        for last in records:
            if first is None:
                first = last
                progress.update(task, completed=last.step - 1)
            progress.update(task, completed=last.step, loss=last.loss)
            if config.evaluate_every is not None and last.step % config.evaluate_every == 0:
                progress.update(task, error=error_text(folder))
    if first is None:
        say(console, f"Nothing to do: the run has its {config.steps} steps.")
    else:
        say(console, f"loss {first.loss:.4g} at step {first.step}, {last.loss:.4g} at step {last.step}")
    if config.evaluate_every is not None:
        say(console, error_text(folder))
    return last


def error_text(folder: RunFolder) -> str:
    """The newest evaluation in words."""
    evaluations = folder.evaluations()
    if not evaluations:
        return ""
    newest = evaluations[-1]
    test = "" if newest.test_error != newest.test_error else f", test {newest.test_error:.4g}"
    return f"error after step {newest.step}: train {newest.train_error:.4g}{test}"


def list_names(console: Console) -> None:
    """Print what --method, --model and --data may be, each with its first line."""
    lines = {
        "--method": {name: first_line(make) for name, make in METHODS.items()},
        "--model": {name: f"{first_line(kind.make)} --sizes: {kind.widths}" for name, kind in MODELS.items()}
        | {"FILE.py:NAME": "a module of your own, or a function without arguments that makes one. RUNS that file."},
        "--data": {name: first_line(make) for name, make in DATASETS.items()},
    }
    for option, names in lines.items():
        table = Table(box=None, show_header=False, pad_edge=False, title=option, title_justify="left")
        for name, text in names.items():
            table.add_row(f"  {escape(name)}", escape(text))
        console.print(table)


def first_line(documented: object) -> str:
    """The first line of a docstring."""
    return (documented.__doc__ or "").strip().split("\n")[0]


def say(console: Console, text: str, **style) -> None:
    """One line as it is, never broken."""
    console.print(text, highlight=False, markup=False, soft_wrap=True, **style)
