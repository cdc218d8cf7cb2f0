"""Estimation: (model, likelihood, data) → a structured matrix, one function per file, one signature for all."""

from natgrad_lab.fisher.block_diagonal import block_diagonal_fisher
from natgrad_lab.fisher.dense import dense_fisher
from natgrad_lab.fisher.diagonal import diagonal_fisher
from natgrad_lab.fisher.gram import gram_fisher
from natgrad_lab.fisher.implicit import implicit_fisher
from natgrad_lab.fisher.kfac import kfac_fisher
from natgrad_lab.fisher.layers import row_block
from natgrad_lab.fisher.natural_gradient import ExactDirection, natural_gradient
from natgrad_lab.fisher.overview import Overview, group_edges, overview, overview_of
from natgrad_lab.fisher.scores import FISHER_TYPES, output_scores, score_pass
from natgrad_lab.fisher.tiled import tiled_fisher

# name → estimator; tests, reports and widgets iterate this table
ESTIMATORS = {
    "dense": dense_fisher,
    "gram": gram_fisher,
    "implicit": implicit_fisher,
    "block_diagonal": block_diagonal_fisher,
    "kfac": kfac_fisher,
    "diagonal": diagonal_fisher,
}

__all__ = [
    "ESTIMATORS",
    "FISHER_TYPES",
    "Overview",
    "ExactDirection",
    "block_diagonal_fisher",
    "dense_fisher",
    "diagonal_fisher",
    "gram_fisher",
    "group_edges",
    "implicit_fisher",
    "kfac_fisher",
    "natural_gradient",
    "output_scores",
    "overview",
    "overview_of",
    "row_block",
    "score_pass",
    "tiled_fisher",
]
