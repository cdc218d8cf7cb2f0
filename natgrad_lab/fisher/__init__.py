"""Estimation: (model, likelihood, data) → a structured matrix, one function per file, one signature for all."""

from natgrad_lab.fisher.best_kronecker import best_kronecker_fisher
from natgrad_lab.fisher.block_diagonal import block_diagonal_fisher
from natgrad_lab.fisher.block_tridiagonal import block_tridiagonal_fisher
from natgrad_lab.fisher.dense import dense_fisher
from natgrad_lab.fisher.diagonal import diagonal_fisher
from natgrad_lab.fisher.ekfac import ekfac_fisher
from natgrad_lab.fisher.gram import gram_fisher
from natgrad_lab.fisher.implicit import implicit_fisher
from natgrad_lab.fisher.kfac import kfac_fisher
from natgrad_lab.fisher.krylov import krylov_fisher
from natgrad_lab.fisher.layers import row_block
from natgrad_lab.fisher.low_rank import low_rank_fisher
from natgrad_lab.fisher.natural_gradient import ExactDirection, natural_gradient
from natgrad_lab.fisher.one_sided import one_sided_input_fisher, one_sided_score_fisher
from natgrad_lab.fisher.overview import Overview, group_edges, overview, overview_of
from natgrad_lab.fisher.quasi_diagonal import quasi_diagonal_fisher
from natgrad_lab.fisher.scores import FISHER_TYPES, output_scores, score_pass
from natgrad_lab.fisher.tiled import tiled_fisher
from natgrad_lab.fisher.unit_wise import unit_wise_fisher

# name → estimator; tests, reports and widgets iterate this table
ESTIMATORS = {
    "dense": dense_fisher,
    "gram": gram_fisher,
    "implicit": implicit_fisher,
    "block_tridiagonal": block_tridiagonal_fisher,
    "block_diagonal": block_diagonal_fisher,
    "best_kronecker": best_kronecker_fisher,
    "ekfac": ekfac_fisher,
    "kfac": kfac_fisher,
    "one_sided_input": one_sided_input_fisher,
    "one_sided_score": one_sided_score_fisher,
    "low_rank": low_rank_fisher,
    "krylov": krylov_fisher,
    "unit_wise": unit_wise_fisher,
    "quasi_diagonal": quasi_diagonal_fisher,
    "diagonal": diagonal_fisher,
}

__all__ = [
    "ESTIMATORS",
    "FISHER_TYPES",
    "Overview",
    "ExactDirection",
    "best_kronecker_fisher",
    "block_diagonal_fisher",
    "block_tridiagonal_fisher",
    "dense_fisher",
    "diagonal_fisher",
    "ekfac_fisher",
    "gram_fisher",
    "group_edges",
    "implicit_fisher",
    "kfac_fisher",
    "krylov_fisher",
    "low_rank_fisher",
    "natural_gradient",
    "one_sided_input_fisher",
    "one_sided_score_fisher",
    "output_scores",
    "overview",
    "overview_of",
    "quasi_diagonal_fisher",
    "row_block",
    "score_pass",
    "tiled_fisher",
    "unit_wise_fisher",
]
