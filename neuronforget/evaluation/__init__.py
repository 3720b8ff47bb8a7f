"""Evaluate: measure edits on corpora, at full strength, along the frontier and at matched damage."""

from neuronforget.evaluation.measuring import measure
from neuronforget.evaluation.run import check_references, evaluate, match_damage

__all__ = ["check_references", "evaluate", "match_damage", "measure"]
