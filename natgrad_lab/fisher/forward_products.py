"""Fv's half: SᵀJ v by a forward derivative, for quadratic forms vᵀFw = (1/N) ⟨SᵀJ v, SᵀJ w⟩ of the exact Fisher."""

from torch import nn

from natgrad_lab.derivatives import output_derivative
from natgrad_lab.fisher.scores import quiet_attention
from natgrad_lab.likelihoods import Likelihood
from natgrad_lab.parameters import ParameterLayout
from natgrad_lab.shapes import Float, Tensor


class ForwardProducts:
    """v ↦ SᵀJ v (M,) on one batch, with S Sᵀ the output Fisher of every example and M the number of all outputs.

    Exact for every model that PyTorch differentiates forwards or twice; nothing of the Fisher is approximated or formed.
    Cost: about two forward passes a vector.
    References: [MartensGrosse2015] appendix C.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood, layout: ParameterLayout, inputs: Tensor):
        """Nothing is computed yet."""
        self.num_examples = len(inputs)
        self._at = model, layout, inputs
        self._likelihood = likelihood

    def __call__(self, vector: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        """SᵀJ v, stacked over examples, positions and outputs."""
        with quiet_attention():
            outputs, moved = output_derivative(*self._at, vector)
        flat, moved = (self._likelihood.positions(each).flatten(0, 1) for each in (outputs, moved))  # (N S, C)
        return self._likelihood.transposed_root_product(flat, moved).flatten()
