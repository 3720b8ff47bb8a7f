"""Measure: metrics are functions from a model's predictions to one number per example; others judge a localisation."""

from neuronforget.metrics import knockout, localisation, membership, subsets, text
from neuronforget.metrics.memory import (
    Metric,
    Prediction,
    exact_match,
    extraction_strength,
    kl_gold,
    kl_untouched,
    nll,
    probability,
    rank,
    token_accuracy,
)
from neuronforget.metrics.shift import activation_shift, neuron_shift

__all__ = [
    "Metric", "Prediction", "activation_shift", "exact_match", "extraction_strength", "kl_gold", "kl_untouched",
    "knockout", "localisation", "membership", "neuron_shift", "nll", "probability", "rank", "subsets", "text",
    "token_accuracy",
]  # fmt: skip
