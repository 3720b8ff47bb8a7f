"""Erase: each function returns an `Edit`."""

from neuronforget.erase.ablate import ablate
from neuronforget.erase.finetune import finetune
from neuronforget.erase.rank_one import rank_one

__all__ = ["ablate", "finetune", "rank_one"]
