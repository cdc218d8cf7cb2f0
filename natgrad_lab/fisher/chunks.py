"""Batches too large for one pass: the Fisher is a mean over examples, so it is the weighted mean of the chunks' Fishers."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from natgrad_lab.fisher.scores import ScorePass, score_pass
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.progress import GIB, track
from natgrad_lab.shapes import Tensor
from natgrad_lab.structures import StructuredMatrix

MEMORY_BUDGET = GIB  # bytes of captured inputs and scores of one pass; change it for smaller or larger machines
_SMALL = 256  # examples that are never split


def passes(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Iterator[ScorePass]:
    """Score passes over consecutive chunks of the batch, each within `MEMORY_BUDGET`; one pass if it fits.

    Sampled targets are drawn chunk by chunk from the one generator.
    """
    num_examples = len(inputs) if isinstance(inputs, Tensor) and inputs.ndim else 0
    chunk = num_examples
    if num_examples > _SMALL:
        first = score_pass(model, likelihood, inputs[:1], fisher_type, targets if targets is None else targets[:1], num_samples)
        per_example = sum(t.numel() * t.element_size() for layer in first.layers for _, t in layer.rows.tensors())
        chunk = max(_SMALL, int(MEMORY_BUDGET // (2 * per_example)))  # backward holds about as much again
    if chunk >= num_examples:
        yield score_pass(model, likelihood, inputs, fisher_type, targets, num_samples, generator)
        return
    if generator is None:
        generator = torch.Generator(device=inputs.device).manual_seed(0)
    for start in track(range(0, num_examples, chunk), f"passes over {num_examples:,} examples"):
        part = slice(start, start + chunk)
        part_targets = targets if targets is None else targets[part]
        verify = start == 0 or start + chunk > num_examples  # a new number of examples could be taken for a number of steps
        yield score_pass(model, likelihood, inputs[part], fisher_type, part_targets, num_samples, generator, verify=verify)


def averaged(from_scores: Callable[[ScorePass], StructuredMatrix], each: Iterator[ScorePass]) -> StructuredMatrix:
    """The mean of `from_scores` over passes, tensor by tensor and weighted by their examples: right for every estimate that is
    a mean over examples.
    """
    total, seen = None, 0
    for scores in each:
        part, seen = from_scores(scores), seen + scores.num_examples
        if total is None:
            total = part
        else:
            total = total.map(lambda old, new, w=scores.num_examples / seen: old.lerp(new, w), part)
    return total
