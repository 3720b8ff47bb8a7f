"""Attribute: one function per score, from forget moments (and retain moments) to `[layer, neuron]`."""

from neuronforget.scores.activation import activation_gap, activation_ratio, wanda
from neuronforget.scores.gradient import fisher, grad_x_act, mean_patch, snip
from neuronforget.scores.scores import Scores

__all__ = ["Scores", "activation_gap", "activation_ratio", "fisher", "grad_x_act", "mean_patch", "snip", "wanda"]
