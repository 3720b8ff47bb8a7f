"""Draw: pure functions, numbers in, `plotly.graph_objects.Figure` out."""

from neuronforget.figures.auditing import checks, curves
from neuronforget.figures.comparison import dots, frontier
from neuronforget.figures.layers import activation_shift, by_expert, layer_share
from neuronforget.figures.map import QUANTILE, attribution_map, rank_profile
from neuronforget.figures.neurons import density, ridgelines, tokens

__all__ = [
    "QUANTILE", "activation_shift", "attribution_map", "by_expert", "checks", "curves", "density", "dots", "frontier",
    "layer_share", "rank_profile", "ridgelines", "tokens",
]  # fmt: skip
