"""Evaluate: measure edits on corpora, at full strength, along the frontier and at matched damage."""

from neuronforget.evaluation.measuring import METRICS, measure
from neuronforget.evaluation.run import check_references, evaluate, match_damage

__all__ = ["METRICS", "check_references", "evaluate", "match_damage", "measure"]
