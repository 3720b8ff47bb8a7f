"""Erase: each function returns an `Edit`; `OPERATORS` has them by name, `make` calls any of them."""

from neuronforget.erase.ablate import ablate
from neuronforget.erase.catalogue import OPERATORS, make
from neuronforget.erase.finetune import finetune
from neuronforget.erase.rank_one import rank_one

__all__ = ["OPERATORS", "ablate", "finetune", "make", "rank_one"]
