"""The expectation over targets, taken in one place, and the pass through the network that all estimators share.

`output_scores` returns K vectors per example whose outer products sum to the output Fisher (exactly, in expectation, or
at the observed target). Backpropagated to every layer they give the rows of Sᵀ J, from which every estimator is made:
F = (1/N) Σ_n Σ_k r_nk r_nkᵀ.
"""

from dataclasses import dataclass

import torch
from torch import nn

from natgrad_lab.derivatives import ForwardPass, forward_pass, refuse_weights
from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.fisher.layers import row_block, rule_for
from natgrad_lab.likelihoods import Likelihood, check_likelihood
from natgrad_lab.names import known
from natgrad_lab.parameters import Layer, ParameterLayout
from natgrad_lab.shapes import Float, Tensor
from natgrad_lab.structures import KhatriRaoRows

FISHER_TYPES = ("exact", "monte_carlo", "empirical")


def output_scores(
    likelihood: Likelihood,
    outputs: Float[Tensor, "N C"],
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "K N C"]:
    """Vectors s_k with Σ_k s_k s_kᵀ = the output Fisher of each example.

    Args:
        fisher_type: "exact": the C columns of the likelihood's root, K = C. "monte_carlo": scores at `num_samples` targets
            drawn from the model, divided by √num_samples; right in expectation. "empirical": the score at the observed
            target, K = 1; not the Fisher, and zero where the model fits its data.
        targets: needed, and used, for "empirical" only.
        generator: for "monte_carlo"; without one, samples come from a new generator with seed 0.
    """
    if fisher_type == "exact":
        return likelihood.fisher_root(outputs).permute(2, 0, 1)
    if fisher_type == "monte_carlo":
        samples = likelihood.sample(outputs, num_samples, generator)
        return torch.stack([likelihood.score(outputs, sample) for sample in samples]) / num_samples**0.5
    return likelihood.score(outputs, targets).unsqueeze(0)


@dataclass(frozen=True)
class LayerRows:
    """One layer's rows of Sᵀ J (K, N) and, if targets of a loss were given, of the loss."""

    layer: Layer
    rows: KhatriRaoRows
    loss_rows: KhatriRaoRows | None


@dataclass(frozen=True)
class ScorePass:
    """Everything estimators and steps need of one batch: one forward and one batched backward pass.

    Attributes:
        outputs: (N, C).
        layers: rows of Sᵀ J by layer, in the flat order.
        loss: mean nll at the loss targets, in nats; None without them.
    """

    layout: ParameterLayout
    fisher_type: str
    outputs: Float[Tensor, "N C"]
    layers: tuple[LayerRows, ...]
    loss: Float[Tensor, ""] | None

    @property
    def num_examples(self) -> int:
        """N."""
        return self.outputs.shape[0]

    @property
    def num_scores(self) -> int:
        """K, vectors per example."""
        return self.layers[0].rows.scores.shape[0]

    def gradient(self) -> Float[Tensor, " P"]:
        """Of the mean loss, in the flat order: −(1/N) Σ_n J_nᵀ score_n."""
        if self.loss is None:
            raise ValueError("a gradient needs the observed targets (loss_targets=... of score_pass); got None.")
        ones = self.outputs.new_full((self.num_examples,), -1.0 / self.num_examples)
        return torch.cat([layer.loss_rows.rmatmul(ones) for layer in self.layers])


def score_pass(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Tensor,
    fisher_type: str = "exact",
    targets: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    *,
    loss_targets: Tensor | None = None,
    verify: bool = True,
) -> ScorePass:
    """Run the network once on `inputs` and backpropagate the scores of `fisher_type` (and of the loss) to every layer.

    Args:
        inputs: (N, ...). targets, num_samples, generator: as in `output_scores`.
        loss_targets: with them the loss and its gradient come from the same pass.
        verify: also check that the weights are finite and that captured pairs reproduce PyTorch's own gradient (a weight
            used twice behind the layer's back would break it) and that examples do not influence each other; costs one
            more backward pass and half a forward pass. Training loops verify their first step.
    Raises: as `forward_pass`; ValueError for targets outside the likelihood's domain or a misspelt fisher_type.
    """
    _refuse_choice(likelihood, fisher_type, targets, num_samples)
    layout = ParameterLayout(model)
    rules = [rule_for(row_block, layer) for layer in layout.layers]
    if verify:
        refuse_weights(layout)
    passed = forward_pass(model, layout, inputs)
    for given in (targets, loss_targets):
        if given is not None:
            likelihood.validate(passed.outputs, given)
    scores = output_scores(likelihood, passed.outputs, fisher_type, targets, num_samples, generator)
    loss = None
    if loss_targets is not None:
        loss_targets = loss_targets.detach()
        loss = likelihood.nll(passed.outputs, loss_targets).mean()
        scores = torch.cat([likelihood.score(passed.outputs, loss_targets).unsqueeze(0), scores])
    pulled = passed.pull_back(scores)
    first = 0 if loss_targets is None else 1
    layers = []
    for layer, rule, layer_inputs, layer_scores in zip(layout.layers, rules, passed.layer_inputs, pulled, strict=True):
        rows = rule(layer.module, layer, layer_inputs, layer_scores)
        loss_rows = KhatriRaoRows(rows.inputs, rows.scores[:1]) if first else None
        layers.append(LayerRows(layer, KhatriRaoRows(rows.inputs, rows.scores[first:]), loss_rows))
    if verify:
        refuse_hidden_uses(passed)
        refuse_mixed_examples(model, inputs, passed.outputs)
    return ScorePass(layout, fisher_type, passed.outputs, tuple(layers), loss)


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
    half = (order < (len(outputs) + 1) // 2).unsqueeze(1)
    expected = passed.parameter_gradient(vectors)
    ones = outputs.new_ones(len(outputs))
    bound = torch.finfo(outputs.dtype).eps ** 0.5
    scale = float(expected.abs().max())
    pulled = passed.pull_back(torch.stack([vectors * half, vectors * ~half]))
    for layer, inputs, scores in zip(passed.layout.layers, passed.layer_inputs, pulled, strict=True):
        across = torch.where(half.view(-1, *[1] * (scores.ndim - 2)), scores[1], scores[0])
        if float(across.abs().max()) > bound * float(scores.abs().max()):
            raise UnsupportedLayerError(_mixing(f" (layer {layer.name!r} sees it)"))
        rows = rule_for(row_block, layer)(layer.module, layer, inputs, scores.sum(0, keepdim=True))
        if float((rows.rmatmul(ones) - expected[layer.slice]).abs().max()) > scale * bound:
            raise UnsupportedLayerError(
                f"the parameters of layer {layer.name!r} ({type(layer.module).__name__}) act on the outputs in another way "
                "too (tied weights: used as a plain tensor elsewhere in forward, or in a hook). Give each use its own "
                "layer, or freeze the layer."
            )


def refuse_mixed_examples(model: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    """Raise if the outputs of half of the batch change when the other half is left out (by any path, or by chance)."""
    half = inputs.shape[0] // 2
    if half == 0:
        return
    devices = [inputs.device] if inputs.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        alone = model(inputs[-half:].clone())
    bound = torch.finfo(outputs.dtype).eps ** 0.5 * float(outputs.abs().max())
    if alone.shape != outputs[-half:].shape or float((alone - outputs[-half:]).abs().max()) > bound:
        raise UnsupportedLayerError(_mixing(", or at random"))


def _mixing(how: str) -> str:
    return (
        f"the model's outputs for an example change with the rest of the batch{how}, so examples have no gradient of their "
        "own. Call model.eval(), or remove what mixes examples (batch statistics, sums over the batch, sampling)."
    )


def _refuse_choice(likelihood: Likelihood, fisher_type: str, targets: Tensor | None, num_samples: int) -> None:
    check_likelihood(likelihood)
    known(fisher_type, FISHER_TYPES, "fisher_type")
    if fisher_type == "empirical" and targets is None:
        raise ValueError("fisher_type='empirical' needs targets: the observed ones, targets=...")
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be a positive integer; got {num_samples!r}.")
