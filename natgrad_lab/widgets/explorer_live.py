"""The Fisher explorer attached to a training loop of any kind: one line in the loop, and a slider back in time."""

import threading
import time
import warnings
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import nn

from natgrad_lab.errors import NonFiniteError, NumericalWarning
from natgrad_lab.explorer import MEMORY_BUDGET, Arrangement, Explorer
from natgrad_lab.fisher.gram import gram_from_scores
from natgrad_lab.fisher.scores import score_pass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import Gram
from natgrad_lab.widgets.explorer import FisherExplorer

_PATIENCE = 2.0  # seconds to wait for a page that does not answer
_MOST_AHEAD = 8  # matrices on their way to a page
_REST = 0.5  # of the time of a look: as long at least the training goes on before the next
_YIELD = 0.1  # seconds, at most, that the training waits for a frame: two threads at once take longer than one by one


@dataclass(frozen=True)
class Snapshot:
    """The rows of one moment, from which any tile of it can be made, and what to call it."""

    gram: Gram
    text: str

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self.gram.tensors())


class Snapshots:
    """Moments in bounded memory: evenly thinned, always with the first and the newest."""

    def __init__(self, budget: int):
        """Keep at most `budget` bytes, but never fewer than two moments."""
        self.budget, self._kept, self._stride, self._count = budget, [], 1, 0

    def append(self, snapshot: Snapshot) -> None:
        """Add the newest; it takes the place of the one before if that is not due to be kept."""
        if self._kept and (self._count - 1) % self._stride:
            self._kept.pop()
        self._kept.append(snapshot)
        self._count += 1
        while len(self._kept) > 2 and sum(each.num_bytes for each in self._kept) > self.budget:
            newest = self._kept[-1]
            self._kept = self._kept[::2]
            self._stride *= 2
            if self._kept[-1] is not newest:
                self._kept.append(newest)

    def all(self) -> tuple[Snapshot, ...]:
        """The kept moments, oldest first."""
        return tuple(self._kept)


class LiveExplorer(FisherExplorer):
    """The exact Fisher of a model in training, on a fixed batch of inputs, in one view that follows.

        view = ng.widgets.LiveExplorer(model, likelihood, inputs)
        display(view)
        for step in ...:  # your loop
            view.update(f"step {step}")

    `update` looks at the model at most every `pace` seconds, in two thirds of the time at most, and not before the page has
    painted what it was sent (a page that does not answer is waited for 2 seconds); otherwise it returns at once. Earlier
    moments stay within `snapshot_budget` bytes, thinned evenly; the slider goes back to them, and at its right end the view
    follows again.
    Cost: of an update that looks: one pass through the network, and the tiles of the view.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        inputs: Tensor,
        fisher_type: str = "exact",
        *,
        targets: Tensor | None = None,
        pace: Real = 0.1,
        memory_budget: int = MEMORY_BUDGET,
        snapshot_budget: int = 2**28,
        clock=time.monotonic,
        state: dict | None = None,
    ):
        """Look once, with all checks."""
        if pace < 0:
            raise ValueError(f"pace must be seconds ≥ 0 between two looks at the model; got {pace}.")
        self._model, self._likelihood, self._inputs = model, likelihood, inputs
        self._fisher_type, self._targets = fisher_type, targets
        self._pace, self._budget, self._clock = pace, max(memory_budget - snapshot_budget, 2**26), clock
        self._layout = ParameterLayout(model)
        self._past, self._at, self._follows, self._painted = Snapshots(snapshot_budget), 0, True, -1
        self._looking, self._arrangement = threading.Lock(), Arrangement()
        snapshot = self._look("start", verify=True)
        self._past.append(snapshot)
        self._looked = (clock(),) * 2  # when the last look began and ended
        super().__init__(self._open(snapshot), state=state or {})

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The moments kept, oldest first."""
        return self._past.all()

    def update(self, text: str = "", now: bool = False) -> bool:
        """Look at the model if it is time, or `now`; call it from the training loop. Says whether it looked.

        Nothing of the model changes, its random numbers and gradients included. Of a model that has diverged (NaN, infinity)
        the page and one NumericalWarning say so, and the last finite moment stays.
        """
        began = self._clock()
        waited, rested = began - self._looked[0], began - self._looked[1]
        is_early = waited < self._pace or rested < _REST * (self._looked[1] - self._looked[0])
        if not now and (is_early or (self._is_behind() and waited < _PATIENCE)):
            return False
        with self._looking:
            try:
                snapshot = self._look(text, verify=False)
            except NonFiniteError as error:  # who looks on does not stop the training
                self._tell_divergence(f"{text}: {error}" if text else str(error))
                self._looked = began, self._clock()
                return False
            with self._ready:
                self._past.append(snapshot)
                if self._follows:
                    self._rearranged = self._arrangement.order != "layer"
                    self._at = len(self._past.all()) - 1
                    self.show(self._open(snapshot))
                    self._ready.wait_for(lambda: self._framed >= self._epoch or not self._wanted, _YIELD)
                else:
                    self._tell_time()
            self._looked = began, self._clock()
        return True

    def _tell_divergence(self, text: str) -> None:
        """On the page, and once as a warning; what was shown stays."""
        self._to_page({"type": "problem", "text": text, "dear": False})
        if not self._diverged:
            warnings.warn(f"the explorer stays at the last finite moment. {text}", NumericalWarning, stacklevel=3)
        self._diverged = True

    def show_snapshot(self, at: int) -> None:
        """Show moment number `at` of `snapshots`; the last one means: follow the training again."""
        with self._ready:
            kept = self._past.all()
            at = max(0, min(at, len(kept) - 1))
            self._at, self._follows = at, at == len(kept) - 1
            self.show(self._open(kept[at]))

    _live, _ahead, _diverged = True, 1, False

    def _is_behind(self) -> bool:
        """Whether some page has as many matrices still to paint as it said it can take before its next answer, and one more."""
        return self._follows and bool(self._wanted) and self._painted < self._epoch - self._ahead

    def _answer(self, kind: str, message: dict) -> None:
        super()._answer(kind, message)
        if kind == "painted":
            self._painted = max(self._painted, int(message["epoch"]))
            self._ahead = min(max(1, int(message.get("ahead", 1))), _MOST_AHEAD)
        if kind == "time":
            self.show_snapshot(int(message["at"]))

    def _look(self, text: str, verify: bool) -> Snapshot:
        generator = torch.Generator(device=self._inputs.device).manual_seed(0)  # the same targets every time
        passed = score_pass(
            self._model, self._likelihood, self._inputs, self._fisher_type, self._targets, generator=generator, verify=verify
        )
        return Snapshot(gram_from_scores(passed), text)

    def _open(self, snapshot: Snapshot) -> Explorer:
        return Explorer(snapshot.gram, self._layout, memory_budget=self._budget, arrangement=self._arrangement)

    def _rearrange(self, wanted: dict) -> Explorer:
        now = self._arrangement
        self._arrangement = replace(now, **wanted)
        try:
            return self._open(self._past.all()[self._at])
        except Exception:
            self._arrangement = now
            raise

    def _times(self) -> dict:
        with self._ready:
            kept = self._past.all()
            self._at = min(self._at, len(kept) - 1)
            return {"count": len(kept), "at": self._at, "text": kept[self._at].text}

    def _tell_time(self) -> None:
        self._to_page({"type": "times"} | self._times())

    def _send_greeting(self, seen: Explorer, epoch: int) -> None:
        super()._send_greeting(seen, epoch)
        if len(self._past.all()) > 1:
            self._tell_time()
