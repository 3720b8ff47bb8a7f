"""Measure: metrics, functions from a model's predictions to one number per example; and of a localisation."""

from neuronforget.metrics import knockout, localisation, subsets
from neuronforget.metrics.memory import (
    Metric,
    Prediction,
    exact_match,
    kl_gold,
    nll,
    probability,
    rank,
    token_accuracy,
)
from neuronforget.metrics.shift import activation_shift, neuron_shift

__all__ = [
    "Metric", "Prediction", "activation_shift", "exact_match", "kl_gold", "knockout", "localisation", "neuron_shift",
    "nll", "probability", "rank", "subsets", "token_accuracy",
]  # fmt: skip
