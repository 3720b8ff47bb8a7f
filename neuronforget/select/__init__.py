"""Select: from scores, or from the examples behind them, to a set of neurons."""

from neuronforget.select.budget import retain_budget
from neuronforget.select.examples import Effect, zero_ablation
from neuronforget.select.permutation import benjamini_hochberg, permutation_null, permutation_p
from neuronforget.select.ranking import difference, experts, how_many, per_layer, percentile, ratio, threshold, top
from neuronforget.select.resampling import Stability, stability

__all__ = [
    "Effect", "Stability", "benjamini_hochberg", "difference", "experts", "how_many", "per_layer", "percentile",
    "permutation_null", "permutation_p", "ratio", "retain_budget", "stability", "threshold", "top", "zero_ablation",
]  # fmt: skip
