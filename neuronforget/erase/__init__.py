"""Erase: each function returns an `Edit`; `alternates` writes answers for one of them to prefer."""

from neuronforget.erase.ablate import ablate
from neuronforget.erase.arithmetic import task_vector
from neuronforget.erase.finetune import finetune
from neuronforget.erase.generated import alternates
from neuronforget.erase.rank_one import rank_one

__all__ = ["ablate", "alternates", "finetune", "rank_one", "task_vector"]
