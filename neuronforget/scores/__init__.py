"""Attribute: one function per score, from forget moments (and retain moments) to `[layer, neuron]`."""

from neuronforget.scores.ablation import exact
from neuronforget.scores.activation import activation_gap, activation_ratio, wanda
from neuronforget.scores.gradient import fisher, grad_x_act, mean_patch, snip
from neuronforget.scores.path import integrated
from neuronforget.scores.scores import Scores, reads_examples, runs_model

__all__ = [
    "Scores", "activation_gap", "activation_ratio", "exact", "fisher", "grad_x_act", "integrated", "mean_patch",
    "reads_examples", "runs_model", "snip", "wanda",
]  # fmt: skip
