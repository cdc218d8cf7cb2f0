"""What a Fisher is a Fisher of: a model, a likelihood, and one batch; as given, and once more in float64."""

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Model, likelihood, N examples, and the seed of sampled targets."""

    model: nn.Module
    likelihood: Likelihood
    inputs: Tensor
    targets: Tensor
    seed: int = 0

    @cached_property
    def layout(self) -> ParameterLayout:
        """The flat order."""
        return ParameterLayout(self.model)

    def generator(self, offset: int = 0) -> torch.Generator:
        """A new generator with seed + offset."""
        return torch.Generator(device=self.layout.device).manual_seed(self.seed + offset)

    def in_double(self) -> tuple["Batch", str]:
        """The same in float64 (itself if it is already); and, if the model cannot be copied, a note that says so."""
        if self.layout.dtype == torch.float64:
            return self, ""
        try:
            model = copy.deepcopy(self.model).double()
        except (RuntimeError, TypeError, ValueError) as error:
            return self, f"the model cannot be copied to float64 ({error}), so everything is in {self.layout.dtype}"
        inputs, targets = (each.double() if each.is_floating_point() else each for each in (self.inputs, self.targets))
        return replace(self, model=model, inputs=inputs, targets=targets), ""
