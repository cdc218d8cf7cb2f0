"""The expectation over targets, taken in one place, and the pass through the network that all estimators share.

`output_scores` returns K vectors per example whose outer products sum to the output Fisher (exactly, in expectation, or
at the observed target). Backpropagated to every layer they give the rows of Sᵀ J, from which every estimator is made:
F = (1/N) Σ_n Σ_k r_nk r_nkᵀ.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from natgrad_lab.derivatives import ForwardPass, UnrecordableLayer, forward_pass, refuse_weights
from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.fisher.generic import generic_rows
from natgrad_lab.fisher.layers import rule_for
from natgrad_lab.likelihoods import Likelihood, check_likelihood
from natgrad_lab.names import called, known
from natgrad_lab.parameters import Layer, ParameterLayout
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import RowBlock

FISHER_TYPES = ("exact", "monte_carlo", "empirical")


def output_scores(
    likelihood: Likelihood,
    outputs: Float[Tensor, "N S C"],
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "K N S C"]:
    """Vectors s_k with Σ_k s_k s_kᵀ = the output Fisher of each example, at its S positions (S = 1 for plain outputs).

    Positions are independent given the outputs, so the output Fisher is block-diagonal over them.

    Args:
        fisher_type: "exact": the columns of the likelihood's root at every position, K = S C (Categorical: S (C − 1)).
            "monte_carlo": scores at `num_samples` targets drawn from the model, divided by √num_samples; right in
            expectation. "empirical": the score at the observed target, K = 1; not the Fisher, and zero where the model fits
            its data.
        targets: (N S, ...) needed, and used, for "empirical" only.
        generator: for "monte_carlo"; without one, samples come from a new generator with seed 0.
    """
    num_examples, positions, num_outputs = outputs.shape
    flat = outputs.flatten(0, 1)
    if fisher_type == "exact":
        columns = likelihood.fisher_root(flat).permute(2, 0, 1).reshape(-1, num_examples, positions, num_outputs)
        if positions == 1:
            return columns
        scores = outputs.new_zeros(positions, *columns.shape)
        for s in range(positions):
            scores[s, :, :, s] = columns[:, :, s]
        return scores.flatten(0, 1)
    if fisher_type == "monte_carlo":
        drawn = [likelihood.score(flat, sample) for sample in likelihood.sample(flat, num_samples, generator)]
        scores = torch.stack(drawn) / num_samples**0.5 if num_samples > 1 else drawn[0].unsqueeze(0)
    else:
        scores = likelihood.score(flat, targets).unsqueeze(0)
    return scores.unflatten(1, (num_examples, positions))


@dataclass(frozen=True)
class LayerRows:
    """One layer's rows of Sᵀ J (K, N), None without scores, and, if targets of a loss were given, of the loss."""

    layer: Layer
    rows: RowBlock | None
    loss_rows: RowBlock | None


@dataclass(frozen=True)
class ScorePass:
    """Everything estimators and steps need of one batch: one forward and one batched backward pass.

    Attributes:
        outputs: (N, S, C): at S positions per example, 1 for plain outputs.
        layers: rows of Sᵀ J by layer, in the flat order; of a `loss_pass` the loss' rows of the layers it recorded, if any.
        loss, loss_scores: mean over examples of the nll, summed over positions, in nats; None without loss targets.
        num_scores: K, vectors per example.
        note: which layers were taken by the generic route, and what that cost; "" if none.
    """

    layout: ParameterLayout
    fisher_type: str | None
    outputs: Float[Tensor, "N S C"]
    layers: tuple[LayerRows, ...]
    loss: Float[Tensor, ""] | None
    loss_scores: Float[Tensor, "N S C"] | None
    num_scores: int
    note: str = ""
    loss_gradient: Float[Tensor, " P"] | None = None  # known where there are no rows

    @property
    def num_examples(self) -> int:
        """N."""
        return self.outputs.shape[0]

    def gradient(self) -> Float[Tensor, " P"]:
        """Of the mean loss, in the flat order: −(1/N) Σ_n J_nᵀ score_n."""
        if self.loss is None:
            raise ValueError("a gradient needs the observed targets (loss_targets=... of score_pass); got None.")
        if self.loss_gradient is not None:
            return self.loss_gradient
        ones = self.outputs.new_full((self.num_examples,), -1.0 / self.num_examples)
        return torch.cat([layer.loss_rows.rmatmul(ones) for layer in self.layers])


def score_pass(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str | None = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    *,
    loss_targets: Tensor | None = None,
    verify: bool = True,
    layout: ParameterLayout | None = None,
) -> ScorePass:
    """Run the network once on `inputs` and backpropagate the scores of `fisher_type` (and of the loss) to every layer.

    Layers without a rule, or used in a way that cannot be recorded, take the generic route (`note` says so).

    Args:
        inputs: (N, ...). targets, num_samples, generator: as in `output_scores`.
        fisher_type: as there; None, where `loss_targets` are given: no scores, the loss and its rows alone.
        loss_targets: with them the loss and its gradient come from the same pass.
        verify: also check that the weights are finite and that captured pairs reproduce PyTorch's own gradient (a weight
            used twice behind the layer's back would break it) and that examples do not influence each other; costs one
            more backward pass and half a forward pass. Training loops verify the first step of every shape of inputs.
        layout: the model's, if it is known already.
    Raises: as `forward_pass`; ValueError for targets outside the likelihood's domain or a misspelt fisher_type.
    """
    if fisher_type is not None or loss_targets is None:
        refuse_choice(likelihood, fisher_type, targets, num_samples)
    layout = ParameterLayout(model) if layout is None else layout
    if verify:
        refuse_weights(layout)
    with quiet_attention():
        passed = _recorded_pass(model, layout, inputs, tuple(layer for layer in layout.layers if rule_for(layer) is not None))
    outputs = likelihood.positions(passed.outputs)  # (N, S, C)
    fisher_targets, loss_targets = (
        None if given is None else likelihood.flat_targets(passed.outputs, given).detach() for given in (targets, loss_targets)
    )
    loss, loss_scores, scores = None, None, []
    if loss_targets is not None:
        loss, loss_scores = _loss_and_scores(likelihood, outputs, loss_targets)
        scores.append(loss_scores.unsqueeze(0))
    if fisher_type is not None:
        scores.append(output_scores(likelihood, outputs, fisher_type, fisher_targets, num_samples, generator))
    first, scores = int(loss_targets is not None), torch.cat(scores)
    num_scores = len(scores) - first
    vectors = likelihood.from_positions(scores, passed.outputs)
    blocks = captured_rows(passed, vectors)
    if verify:
        refuse_hidden_uses(passed)
        refuse_mixed_examples(model, inputs, passed.outputs)
    generic = tuple(layer for layer in layout.layers if layer.name not in passed.calls)
    if generic:
        with quiet_attention():
            blocks |= generic_rows(model, generic, inputs, vectors)
    layers = tuple(
        LayerRows(
            layer,
            blocks[layer.name].select(first, None) if num_scores else None,
            blocks[layer.name].select(0, 1) if first else None,
        )
        for layer in layout.layers
    )
    note = _note(generic, len(inputs), len(vectors))
    return ScorePass(layout, fisher_type, outputs, layers, loss, loss_scores, num_scores, note)


def loss_pass(
    model: nn.Module,
    likelihood: Likelihood,
    layout: ParameterLayout,
    inputs: Tensor,
    targets: Tensor | None,
    recorded: tuple[Layer, ...] = (),
) -> ScorePass:
    """A pass without scores: the loss on (inputs, targets) and PyTorch's own gradient of it. The cost is SGD's.

    Args: recorded: layers with a rule whose rows of the loss are wanted too; those that cannot be recorded have none.
    """
    if targets is None:
        raise ValueError("a gradient needs the observed targets; got None.")
    passed = _recorded_pass(model, layout, inputs, recorded)
    outputs = likelihood.positions(passed.outputs)
    loss, scores = _loss_and_scores(likelihood, outputs, likelihood.flat_targets(passed.outputs, targets).detach())
    vectors = likelihood.from_positions(scores.unsqueeze(0), passed.outputs)
    gradient, pulled = passed.gradient_and_scores(vectors[0])
    rows = rows_of(passed, pulled)
    layers = tuple(LayerRows(layer, None, rows.get(layer.name)) for layer in layout.layers) if rows else ()
    return ScorePass(layout, None, outputs, layers, loss, scores, 0, loss_gradient=gradient.div_(-len(inputs)))


def _loss_and_scores(likelihood: Likelihood, outputs: Float[Tensor, "N S C"], targets: Tensor) -> tuple[Tensor, Tensor]:
    flat = outputs.flatten(0, 1)
    return likelihood.nll(flat, targets).sum() / len(outputs), likelihood.score(flat, targets).view_as(outputs)


def _recorded_pass(model: nn.Module, layout: ParameterLayout, inputs: Tensor, layers: tuple[Layer, ...]) -> ForwardPass:
    """A pass that records those of the layers that can be recorded."""
    while True:
        try:
            return forward_pass(model, layout, inputs, layers)
        except UnrecordableLayer as error:
            layers = tuple(layer for layer in layers if layer.module is not error.module)


def _note(generic: tuple[Layer, ...], num_examples: int, num_vectors: int) -> str:
    if not generic:
        return ""
    names = ", ".join(called(layer.name, layer.module) for layer in generic)
    return (
        f"no rule covers {names}: generic route, {num_examples} forward and {num_examples * num_vectors} backward passes, "
        f"{num_vectors * num_examples * sum(layer.size for layer in generic):,} numbers"
    )


def captured_rows(passed: ForwardPass, vectors: Tensor) -> dict[str, RowBlock]:
    """Rows of every recorded layer for `vectors` (K, N, ...) at the outputs; calls of one layer are summed."""
    return rows_of(passed, passed.pull_back(vectors))


def rows_of(passed: ForwardPass, pulled: dict[str, tuple[Tensor, ...]]) -> dict[str, RowBlock]:
    """Rows from scores already pulled back to every call."""
    blocks: dict[str, RowBlock] = {}
    for layer in passed.layout.layers:
        rule = rule_for(layer)
        for call, scores in zip(passed.calls.get(layer.name, ()), pulled.get(layer.name, ()), strict=True):
            rows = rule(layer.module, layer, call.inputs, scores)
            blocks[layer.name] = blocks[layer.name].merge(rows) if layer.name in blocks else rows
    return blocks


def refuse_hidden_uses(passed: ForwardPass) -> None:
    """Raise if captured inputs and scores do not tell the whole story of a layer.

    Random vectors are pulled back from a random half of the examples and from the rest. Scores that reach the other half
    mean that examples mix (batch statistics, sums over the batch, rows in another order). A product of inputs and scores
    other than PyTorch's gradient means that the parameters act on the outputs by another path too.
    The bounds are the square root of the machine precision, relative to the largest entry: far above rounding (sums of N
    products), far below a missing or doubled path.
    """
    outputs = passed.outputs
    generator = torch.Generator(device=outputs.device).manual_seed(0)
    vectors = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype, device=outputs.device)
    order = torch.randperm(len(outputs), generator=generator, device=outputs.device)
    half = _like((order < (len(outputs) + 1) // 2), outputs)
    expected = passed.parameter_gradient(vectors)
    ones = outputs.new_ones(len(outputs))
    bound = torch.finfo(outputs.dtype).eps ** 0.5
    scale = float(expected.abs().max())
    pulled = passed.pull_back(torch.stack([vectors * half, vectors * ~half]))
    for name, scores in ((name, each) for name, calls in pulled.items() for each in calls):
        across = torch.where(_like(half.flatten(1)[:, 0], scores[0]), scores[1], scores[0])
        if float(across.abs().max()) > bound * float(scores.abs().max()):
            where = f" (layer {name!r} sees it, or has its examples in another dimension than the first)"
            raise UnsupportedLayerError(_mixing(where))
    both = {name: tuple(scores.sum(0, keepdim=True) for scores in calls) for name, calls in pulled.items()}
    captured = rows_of(passed, both)
    for layer in (layer for layer in passed.layout.layers if layer.name in captured):
        off = captured[layer.name].rmatmul(ones) - expected[layer.slice]
        if float(off.abs().max()) > scale * bound:
            raise UnsupportedLayerError(
                f"the parameters of {called(layer.name, layer.module)} act on the outputs in another way "
                "too (tied weights: used as a plain tensor elsewhere in forward, or in a hook). Give each use its own "
                "layer, or freeze the layer."
            )


def _like(per_example: Tensor, tensor: Tensor) -> Tensor:
    """(N,) with as many further dimensions as `tensor` (N, ...) has."""
    return per_example.view(-1, *[1] * (tensor.ndim - 1))


def refuse_mixed_examples(model: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    """Raise if the outputs of half of the batch change when the other half is left out (by any path, or by chance)."""
    half = inputs.shape[0] // 2
    if half == 0:
        return
    devices = [inputs.device] if inputs.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices), quiet_attention():
        alone = model(inputs[-half:].clone())
    bound = torch.finfo(outputs.dtype).eps ** 0.5 * float(outputs.abs().max())
    if alone.shape != outputs[-half:].shape or float((alone - outputs[-half:]).abs().max()) > bound:
        raise UnsupportedLayerError(_mixing(", or at random"))


def _mixing(how: str) -> str:
    return (
        f"the model's outputs for an example change with the rest of the batch{how}, so examples have no gradient of their "
        "own. Call model.eval(), or remove what mixes examples (batch statistics, sums over the batch, sampling)."
    )


@contextmanager
def quiet_attention() -> Iterator[None]:
    """Compute attention by plain matrix products, which every kind of differentiation knows."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def refuse_choice(likelihood: Likelihood, fisher_type: str, targets: Tensor | None, num_samples: int) -> None:
    """Raise for a likelihood that is none, an unknown fisher_type, missing targets, or a bad number of samples."""
    check_likelihood(likelihood)
    known(fisher_type, FISHER_TYPES, "fisher_type")
    if fisher_type == "empirical" and targets is None:
        raise ValueError("fisher_type='empirical' needs targets: the observed ones, targets=...")
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be a positive integer; got {num_samples!r}.")
