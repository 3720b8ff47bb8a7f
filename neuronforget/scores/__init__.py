"""Attribute: one function per score, from forget moments (and retain moments) to `[layer, neuron]`."""

from neuronforget.scores.ablation import exact
from neuronforget.scores.activation import (
    activation_entropy,
    activation_gap,
    activation_norm,
    activation_ratio,
    wanda,
)
from neuronforget.scores.experts import PeakCounts, expert
from neuronforget.scores.ghost import value_fisher
from neuronforget.scores.gradient import fisher, grad_x_act, mean_patch, snip
from neuronforget.scores.learned import hard_concrete, slimming
from neuronforget.scores.path import integrated
from neuronforget.scores.relevance import relp
from neuronforget.scores.residual import direct, gradient_drop
from neuronforget.scores.scores import Scores, reads_examples, runs_model
from neuronforget.scores.vocabulary import TopTokens, lens

__all__ = [
    "PeakCounts", "Scores", "TopTokens", "activation_entropy", "activation_gap", "activation_norm", "activation_ratio",
    "direct", "exact", "expert", "fisher", "grad_x_act", "gradient_drop", "hard_concrete", "integrated", "lens",
    "mean_patch", "reads_examples", "relp", "runs_model", "slimming", "snip", "value_fisher", "wanda",
]  # fmt: skip
