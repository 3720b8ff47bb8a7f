"""The statistics of neuron activations and gradients; needs torch alone."""

from neuronforget_kernels.reference import PIECE_FIELDS, neuron_moments

__all__ = ["PIECE_FIELDS", "neuron_moments"]
