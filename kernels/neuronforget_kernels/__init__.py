"""The statistics of neuron activations and gradients; needs torch, and Triton for its kernels on a GPU."""

from neuronforget_kernels.fused import fused_attribution
from neuronforget_kernels.gated import swiglu, swiglu_backward
from neuronforget_kernels.layout import Layout
from neuronforget_kernels.moments import Piece, moment_rows, neuron_moments
from neuronforget_kernels.reference import PIECE_FIELDS, TABLE_FIELDS

__all__ = [
    "PIECE_FIELDS",
    "TABLE_FIELDS",
    "Layout",
    "Piece",
    "fused_attribution",
    "moment_rows",
    "neuron_moments",
    "swiglu",
    "swiglu_backward",
]
