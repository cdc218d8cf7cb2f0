"""Running a reproduction: seeds one after the other, each piece kept as JSON when it is done, then judged."""

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from natgrad_lab import __version__
from natgrad_lab.experiments.storage import write_atomically
from natgrad_lab.experiments.training import find_device
from natgrad_lab.names import known
from natgrad_lab.reproduce.base import NOT_ATTEMPTED, Check, NotAttempted, Reproduction, Scale, Verdict, Work, conclude

FIRST_SEED = 1  # seed 0 is for tuning only


@dataclass(frozen=True)
class Result:
    """What a reproduction found: its verdict, and every number behind it in plain values.

    Attributes:
        seeds: one dict a seed. tuned: what was chosen on the seed for tuning, with all trials; {} if nothing is tuned.
        about: versions and machine of every piece, each kind once. seconds: of all pieces, whenever they were run.
    """

    reproduction: Reproduction
    scale: str
    verdict: Verdict
    seeds: Sequence[dict]
    tuned: dict
    about: Sequence[dict]
    seconds: float

    def to_dict(self) -> dict:
        """Plain values, the same as JSON."""
        each, scale = self.reproduction, self.reproduction.scales[self.scale]
        texts = {key: getattr(each, key) for key in ("name", "title", "claim", "source", "criterion")}
        return texts | {
            "scale": self.scale, "miniature": scale.miniature, "config": dict(scale.config), "verdict": asdict(self.verdict),
            "tuned": self.tuned, "seeds": list(self.seeds), "about": list(self.about), "seconds": round(self.seconds, 1),
        }  # fmt: skip

    def to_json(self) -> str:
        """Strict JSON, one line a seed: numbers that are not finite are null."""
        parts = plain(self.to_dict())
        seeds = ",\n  ".join(json.dumps(seed, allow_nan=False) for seed in parts.pop("seeds"))
        head = json.dumps(parts, indent=1, allow_nan=False, ensure_ascii=False)
        return f'{head[:-2]},\n "seeds": [\n  {seeds}\n ]\n}}\n'

    def figures(self) -> dict:
        """The figure, by the reproduction's name; {} if nothing was measured."""
        return {self.reproduction.name: self.reproduction.figure(self.seeds)} if self.seeds else {}


def reproduce(
    reproduction: Reproduction,
    folder: Path,
    scale: str = "small",
    num_seeds: int | None = None,
    device: str = "cpu",
    tick: Callable[[str], None] = lambda key: None,
) -> Result:
    """Measure, judge, keep `result.json` in `folder`; pieces that an earlier run finished there are taken as they are.

    Args:
        num_seeds: seeds 1, 2, ...; as many as the criterion asks for if None.
        tick: called with the key of every piece that is done.
    Raises: ValueError for a scale that does not exist, or a folder with pieces of another reproduction.
    """
    known(scale, reproduction.scales, "scale")
    num_seeds = reproduction.min_seeds if num_seeds is None else num_seeds
    if not isinstance(num_seeds, int) or num_seeds < 1:
        raise ValueError(f"the number of seeds must be a positive integer; got {num_seeds!r}.")
    chosen, where = reproduction.scales[scale], find_device(device)
    pieces = Pieces(folder, reproduction, chosen, where, tick)
    work, seeds = Work(chosen.config, where, pieces.keep), []
    try:
        if missing := reproduction.missing():
            raise NotAttempted(missing)
        if reproduction.tune is not None:
            work = replace(work, tuned=pieces.keep("tuned", lambda: reproduction.tune(work)))
        for seed in range(FIRST_SEED, FIRST_SEED + num_seeds):
            seeds.append(pieces.keep(f"seed-{seed}", lambda seed=seed: {"seed": seed} | reproduction.run(seed, work)))
        verdict = conclude(reproduction.judge(seeds), num_seeds, reproduction.min_seeds, chosen.miniature)
    except (NotAttempted, FileNotFoundError) as reason:  # the latter: a data set that can be had nowhere
        seeds, verdict = [], Verdict(NOT_ATTEMPTED, str(reason))
    result = Result(reproduction, scale, verdict, seeds, dict(work.tuned), pieces.about, pieces.seconds)
    write_atomically(folder / "result.json", result.to_json().encode())
    return result


class Pieces:
    """The finished pieces of one reproduction in a folder: `pieces/KEY.json` each, whole or absent."""

    def __init__(
        self, folder: Path, reproduction: Reproduction, scale: Scale, device: torch.device, tick: Callable[[str], None]
    ):
        """Make the folder, or go on in it if it holds the same reproduction with the same values."""
        self.folder, self.tick, self._inner = folder / "pieces", tick, 0.0
        self.about: list[dict] = []
        self._machine = machine(device)
        identity = plain({"reproduction": reproduction.name, "config": dict(scale.config)})
        self.folder.mkdir(parents=True, exist_ok=True)
        path = folder / "what.json"
        if path.exists() and json.loads(path.read_text()) != identity:
            raise ValueError(
                f"{str(folder)!r} holds pieces of another reproduction, or of another scale or version of it. Choose another "
                "folder with --out, or delete this one."
            )
        write_atomically(path, json.dumps(identity, indent=1).encode())

    def keep(self, key: str, make: Callable[[], dict]) -> dict:
        """The piece `key`: read if it is there, else made and written. Its seconds are without those of pieces inside it."""
        path = self.folder / f"{key}.json"
        if path.exists():
            piece = json.loads(path.read_text())
        else:
            outside, self._inner, started = self._inner, 0.0, time.perf_counter()
            value = plain(make())
            elapsed = time.perf_counter() - started
            piece = {"value": value, "seconds": elapsed - self._inner, "about": self._machine}
            self._inner = outside + elapsed
            write_atomically(path, json.dumps(piece, allow_nan=False).encode())
        if piece["about"] not in self.about:
            self.about.append(piece["about"])
        self.tick(key)
        return piece["value"]

    @property
    def seconds(self) -> float:
        """Of all pieces in the folder, also of those inside pieces that were read whole."""
        return float(sum(json.loads(path.read_text())["seconds"] for path in self.folder.glob("*.json")))


def machine(device: torch.device) -> dict:
    """Versions, device and threads that a number was measured with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "natgrad_lab": __version__, "torch": torch.__version__, "python": platform.python_version(),
        "device": f"{device.type} ({name})", "threads": torch.get_num_threads(),
    }  # fmt: skip


def plain(value: object) -> object:
    """Dicts, lists, strings and numbers only; numbers that are not finite become None, floats keep 6 digits."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Check | Verdict):
        return plain(asdict(value))
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    raise TypeError(f"a result holds plain values only; got {type(value).__name__}.")
