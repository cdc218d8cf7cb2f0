"""A run on disk: config, versions, records as JSON lines, and a checkpoint that is whole or absent, never half."""

import json
import os
import platform
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy
import torch

from natgrad_lab import __version__
from natgrad_lab.experiments.config import ExperimentConfig
from natgrad_lab.experiments.evaluation import Evaluation
from natgrad_lab.experiments.locking import FolderLock
from natgrad_lab.experiments.own import file_sha256, is_own_model
from natgrad_lab.experiments.training import Training
from natgrad_lab.optimizers import StepRecord

FORMAT = "natgrad_lab checkpoint 2"


class RunFolder:
    """The folder of one run: `config.json`, `about.json`, `records.jsonl`, `evaluations.jsonl`, `checkpoint.pt`.

    A line is handed to the operating system as soon as its step is done, which a kill of the process cannot undo. Lines are
    on the disk itself before the checkpoint that follows them, so that after a power failure no checkpoint is ahead of them.
    """

    def __init__(self, path: str | os.PathLike):
        """Make the folder if need be. Raises ValueError, before anything is computed, if it cannot be written."""
        self.path = Path(path)
        self._lock: FolderLock | None = None
        self._config = ""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise ValueError(
                f"the results folder {str(self.path)!r} cannot be written ({error.strerror or error}). Choose another with "
                "--out, or change its permissions."
            ) from error

    @property
    def config_path(self) -> Path:
        """The config as JSON."""
        return self.path / "config.json"

    @property
    def about_path(self) -> Path:
        """Versions, device and threads, at the start and at every resume."""
        return self.path / "about.json"

    @property
    def records_path(self) -> Path:
        """One JSON object a line, one line a step."""
        return self.path / "records.jsonl"

    @property
    def evaluations_path(self) -> Path:
        """One JSON object a line, one line an evaluation."""
        return self.path / "evaluations.jsonl"

    @property
    def checkpoint_path(self) -> Path:
        """Weights and optimizer state after some step."""
        return self.path / "checkpoint.pt"

    def lock(self) -> None:
        """Keep other runs out. Raises ValueError if one is in here."""
        self._lock = FolderLock(self.path / ".lock")

    def unlock(self) -> None:
        """Let others in again."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def check(self, config: ExperimentConfig, resume: bool) -> None:
        """Refuse, before any data are loaded, a folder that holds a run already, or with `resume` another one.

        Only `steps` and `device` may differ from the config of the run that is continued.
        """
        if self.config_path.exists() and not resume:
            raise ValueError(
                f"{str(self.path)!r} holds a run already. Continue it with resume=True (--resume), or choose another folder."
            )
        if not self.config_path.exists():
            mine = (self.records_path, self.evaluations_path, self.checkpoint_path)
            foreign = ", ".join(path.name for path in mine if path.exists())
            if foreign:
                raise ValueError(f"{str(self.path)!r} holds {foreign} without a config.json. Choose another folder.")
            return
        changes = _changes(self._kept_config(), config)
        if changes:
            raise ValueError(
                f"{str(self.path)!r} holds another run: {changes}. Resume with its config, or choose another folder."
            )
        if is_own_model(config.model) and self.about().get("model_sha256") != (found := file_sha256(config.model)):
            raise ValueError(
                f"the file of model {config.model!r} is not the one that {str(self.path)!r} was begun with (its SHA-256 is "
                f"{found}, was {self.about().get('model_sha256')}). Restore it, or choose another folder."
            )

    def begin(self, config: ExperimentConfig, training: Training) -> None:
        """Start a run here, the folder being checked."""
        self._config = config.to_json()
        about = machine(training.inputs.device) | {
            "seed": config.seed,
            "likelihood": repr(training.likelihood),
            "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
            "resumed": [],
        }
        if is_own_model(config.model):
            about["model_sha256"] = file_sha256(config.model)
        write_atomically(self.about_path, json.dumps(about, indent=1).encode())
        write_atomically(self.config_path, self._config.encode())

    def resume(self, config: ExperimentConfig, training: Training) -> None:
        """Load the checkpoint into `training` and drop what was recorded after it: it will be made again, the same.

        Without a checkpoint the run begins anew.
        """
        if not self.config_path.exists():
            self.begin(config, training)
            return
        self._config = config.to_json()
        if self.checkpoint_path.exists():
            self._load(config, training)
        self._keep_lines_until(training.step)
        training.evaluations[:] = self.evaluations()
        about = self.about()
        about["resumed"] = [*about.get("resumed", []), {"step": training.step, **machine(training.inputs.device)}]
        write_atomically(self.about_path, json.dumps(about, indent=1).encode())
        write_atomically(self.config_path, self._config.encode())

    def save(self, training: Training) -> None:
        """Write the checkpoint: the old one stays until the new one is complete on disk."""
        state = {
            "format": FORMAT,
            "config": self._config,
            "step": training.step,
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
        }
        temporary = self.checkpoint_path.with_suffix(".part")
        with self._writing(self.checkpoint_path):
            for path in (self.records_path, self.evaluations_path):
                if path.exists():
                    _sync(path)
            try:
                with open(temporary, "wb") as file:
                    torch.save(state, file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.checkpoint_path)
            finally:
                temporary.unlink(missing_ok=True)
            _sync(self.path)

    def append(self, record: StepRecord) -> None:
        """Add one record as a line; nan and infinities as JSON's own non-standard words, as Python reads and writes them."""
        self._append(self.records_path, record)

    def append_evaluation(self, evaluation: Evaluation) -> None:
        """Add one evaluation as a line."""
        self._append(self.evaluations_path, evaluation)

    def records(self) -> list[StepRecord]:
        """All whole records; a last line cut short by a kill is left out."""
        return [StepRecord(**json.loads(line)) for line in _whole_lines(self.records_path)]

    def evaluations(self) -> list[Evaluation]:
        """All whole evaluations."""
        return [Evaluation(**json.loads(line)) for line in _whole_lines(self.evaluations_path)]

    def about(self) -> dict:
        """What `about.json` holds; {} if it is not there or broken."""
        try:
            about = json.loads(self.about_path.read_text())
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}

    def _append(self, path: Path, value: object) -> None:
        with self._writing(path), open(path, "a") as file:
            file.write(json.dumps(asdict(value)) + "\n")

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Turn what a full disk raises into one sentence; torch wraps it into an error of its own."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is None:
                raise
            there = "the last good checkpoint is untouched" if self.checkpoint_path.exists() else "there is no checkpoint yet"
            raise OSError(
                f"{str(path)!r} cannot be written ({cause.strerror or cause}); {there}. Make room, or make it writable, and go "
                "on with resume=True (--resume)."
            ) from error

    def _keep_lines_until(self, step: int) -> None:
        """Drop records and evaluations after `step`, and half lines. Refuses records that do not reach it."""
        records = _whole_lines(self.records_path)
        if len(records) < step or step and json.loads(records[step - 1])["step"] != step:
            raise ValueError(
                f"{str(self.records_path)!r} does not hold the records of the {step} steps that the checkpoint is after. "
                "Restore it, or choose another folder."
            )
        evaluations = [line for line in _whole_lines(self.evaluations_path) if json.loads(line)["step"] <= step]
        for path, lines in ((self.records_path, records[:step]), (self.evaluations_path, evaluations)):
            if path.exists():
                write_atomically(path, b"".join(lines))

    def _kept_config(self) -> ExperimentConfig:
        try:
            return ExperimentConfig.from_json(self.config_path.read_text())
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{str(self.config_path)!r} is no config of this package ({error}). Restore it, or choose another folder."
            ) from error

    def saved_step(self) -> int:
        """The step that the checkpoint is after; 0 without one."""
        with self._reading_checkpoint():
            return self._checkpoint("cpu", mmap=True)["step"] if self.checkpoint_path.exists() else 0

    def _checkpoint(self, device: torch.device | str, mmap: bool = False) -> dict:
        state = torch.load(self.checkpoint_path, map_location=device, weights_only=True, mmap=mmap)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError("it is not in this package's format")
        return state

    def _load(self, config: ExperimentConfig, training: Training) -> None:
        with self._reading_checkpoint():
            with zipfile.ZipFile(self.checkpoint_path) as file:  # torch.load does not compare the tensors' checksums
                if (bad := file.testzip()) is not None:
                    raise ValueError(f"the bytes of {bad} are not those that were written")
            state = self._checkpoint(training.inputs.device)
            changes = _changes(ExperimentConfig.from_json(state["config"]), config)
            if changes:
                raise ValueError(f"it is of another run: {changes}")
            training.model.load_state_dict(state["model"])
            training.optimizer.load_state_dict(state["optimizer"])
            training.step = state["step"]

    @contextmanager
    def _reading_checkpoint(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no text'])[0]}"
            raise ValueError(
                f"the checkpoint {str(self.checkpoint_path)!r} cannot be read ({reason}). It is cut short or from elsewhere; "
                "delete it to begin the run again."
            ) from error


def machine(device: torch.device) -> dict[str, object]:
    """Versions, device and threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "natgrad_lab": __version__, "torch": torch.__version__, "numpy": numpy.__version__,
        "python": platform.python_version(), "platform": platform.platform(), "device": f"{device} ({name or 'unknown'})",
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at `path` in one step, so that a reader or a kill sees the old bytes or the new ones."""
    temporary = path.with_suffix(path.suffix + ".part")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _changes(old: ExperimentConfig, new: ExperimentConfig) -> str:
    """In words, which fields differ that make it another run; "" if none."""
    old, new = json.loads(old.to_json()), json.loads(new.to_json())
    changed = [name for name in new if new[name] != old[name] and name not in ("steps", "device")]
    return "; ".join(f"{name} was {old[name]!r}, is {new[name]!r}" for name in changed)


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def _sync(path: Path) -> None:
    """Wait until file or folder is on the disk; a folder where the system can (not on Windows)."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
