"""Deep linear networks: the natural gradient in closed form, its flow and rate, and plain gradient flow as the contrast."""

from natgrad_lab.deep_linear.closed_form import FORMULAS, DeepLinearDirection, natural_gradient
from natgrad_lab.deep_linear.gradient_flow import saxe
from natgrad_lab.deep_linear.moments import data_from_moments
from natgrad_lab.deep_linear.network import layers_of
from natgrad_lab.deep_linear.trajectory import Flow, Rate, flow, product_steps, rate

__all__ = [
    "FORMULAS", "DeepLinearDirection", "Flow", "Rate", "data_from_moments", "flow", "layers_of", "natural_gradient",
    "product_steps", "rate", "saxe",
]  # fmt: skip
