"""LM: a language model with its tokenizer, where its neurons lie, and the likelihood of answers."""

from neuronforget.models.lm import (
    LM,
    activations_only,
    check_finite,
    check_whole,
    frozen,
    load,
    load_plain,
    shared_twin,
    swapped,
    without_bars,
)
from neuronforget.models.maps import Part, Site
from neuronforget.models.routed import open_experts
from neuronforget.models.sites import Experts

__all__ = [
    "Experts", "LM", "Part", "Site", "activations_only", "check_finite", "check_whole", "frozen", "load", "load_plain",
    "open_experts", "shared_twin", "swapped", "without_bars",
]  # fmt: skip
