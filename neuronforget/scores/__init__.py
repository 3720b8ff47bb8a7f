"""Attribute: one function per score, from forget moments (and retain moments) to `[layer, neuron]`."""

from neuronforget.scores.activation import (
    activation_entropy,
    activation_gap,
    activation_norm,
    activation_ratio,
    wanda,
)
from neuronforget.scores.experts import PeakCounts, expert
from neuronforget.scores.gradient import fisher, grad_x_act, mean_patch, snip
from neuronforget.scores.learned import hard_concrete, slimming
from neuronforget.scores.scores import Scores, reads_examples, runs_model

__all__ = [
    "PeakCounts", "Scores", "activation_entropy", "activation_gap", "activation_norm", "activation_ratio", "expert",
    "fisher", "grad_x_act", "hard_concrete", "mean_patch", "reads_examples", "runs_model", "slimming", "snip", "wanda",
]  # fmt: skip
