"""A run on disk: config, versions, records as JSON lines, and a checkpoint that is whole or absent, never half."""

import json
import os
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from natgrad_lab import __version__
from natgrad_lab.experiments.config import ExperimentConfig
from natgrad_lab.experiments.training import Training
from natgrad_lab.optimizers import StepRecord


class RunFolder:
    """The folder of one run: `config.json`, `about.json`, `records.jsonl`, `checkpoint.pt`."""

    def __init__(self, path: str | os.PathLike):
        """Make the folder if need be. Raises ValueError, before anything is computed, if it cannot be written."""
        self.path = Path(path)
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
    def records_path(self) -> Path:
        """One JSON object a line, one line a step."""
        return self.path / "records.jsonl"

    @property
    def checkpoint_path(self) -> Path:
        """Weights and optimizer state after some step."""
        return self.path / "checkpoint.pt"

    def begin(self, config: ExperimentConfig, training: Training) -> None:
        """Start a run here. Refuses a folder that holds one already."""
        if self.config_path.exists():
            raise ValueError(
                f"{str(self.path)!r} holds a run already. Continue it with resume=True (--resume), or choose another folder."
            )
        device = training.inputs.device
        about = {
            "natgrad_lab": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
        }
        write_atomically(self.path / "about.json", json.dumps(about, indent=1).encode())
        write_atomically(self.config_path, config.to_json().encode())

    def resume(self, config: ExperimentConfig, training: Training) -> None:
        """Load the checkpoint into `training` and drop the records after it: they will be made again, the same.

        Only `steps` may differ from the config of the run that is continued. Without a checkpoint the run begins anew.
        """
        if not self.config_path.exists():
            self.begin(config, training)
            return
        kept = self._kept_config()
        old, new = json.loads(kept.to_json()), json.loads(config.to_json())
        changed = [name for name in new if new[name] != old[name] and name not in ("steps", "device")]
        if changed:
            given = "; ".join(f"{name} was {old[name]!r}, is {new[name]!r}" for name in changed)
            raise ValueError(
                f"{str(self.path)!r} holds another run: {given}. Resume with its config, or choose another folder."
            )
        if self.checkpoint_path.exists():
            self._load(training)
        lines = self.records_path.read_bytes().splitlines(keepends=True) if self.records_path.exists() else []
        write_atomically(self.records_path, b"".join(lines[: training.step]))
        write_atomically(self.config_path, config.to_json().encode())

    def save(self, training: Training) -> None:
        """Write the checkpoint: the old one stays until the new one is complete on disk."""
        state = {
            "format": "natgrad_lab checkpoint 1",
            "step": training.step,
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
        }
        temporary = self.checkpoint_path.with_suffix(".part")
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.checkpoint_path)

    def append(self, record: StepRecord) -> None:
        """Add one record as a line; nan and infinities as JSON's own non-standard words, as Python reads and writes them."""
        with open(self.records_path, "a") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def records(self) -> list[StepRecord]:
        """All whole records; a last line cut short by a kill is left out."""
        if not self.records_path.exists():
            return []
        lines = self.records_path.read_text().split("\n")
        return [StepRecord(**json.loads(line)) for line in lines[:-1]]

    def _kept_config(self) -> ExperimentConfig:
        try:
            return ExperimentConfig.from_json(self.config_path.read_text())
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{str(self.config_path)!r} is no config of this package ({error}). Restore it, or choose another folder."
            ) from error

    def _load(self, training: Training) -> None:
        try:
            state = torch.load(self.checkpoint_path, map_location=training.inputs.device, weights_only=True)
            if not isinstance(state, dict) or state.get("format") != "natgrad_lab checkpoint 1":
                raise ValueError("it is not in this package's format")
            training.model.load_state_dict(state["model"])
            training.optimizer.load_state_dict(state["optimizer"])
            training.step = state["step"]
        except Exception as error:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no text'])[0]}"
            raise ValueError(
                f"the checkpoint {str(self.checkpoint_path)!r} cannot be read ({reason}). It is cut short or from elsewhere; "
                "delete it to begin the run again."
            ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at `path` in one step, so that a reader or a kill sees the old bytes or the new ones."""
    temporary = path.with_suffix(path.suffix + ".part")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
