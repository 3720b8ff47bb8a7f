"""Erase: each function returns an `Edit`; `OPERATORS` has them by name, `make` calls any of them.

`alternates` writes answers for one of them to prefer; `units_of` tells dead units from live ones. Those in `guards`
change no weight: they hide, and are reported as guards.
"""

from neuronforget.erase import guards
from neuronforget.erase.ablate import ablate, ablate_mean
from neuronforget.erase.adapters import Adapter, learn_adapter, llm_eraser
from neuronforget.erase.arithmetic import task_vector
from neuronforget.erase.catalogue import OPERATORS, make
from neuronforget.erase.concept import leace
from neuronforget.erase.damping import aura, dampen, ssd
from neuronforget.erase.drawn import noise, revive
from neuronforget.erase.exact_retrain import Sisa, retrained, sisa
from neuronforget.erase.finetune import finetune
from neuronforget.erase.generated import alternates
from neuronforget.erase.influence import first_order_update, second_order_update
from neuronforget.erase.lowrank import LoRA
from neuronforget.erase.many_layers import alpha_edit, memit
from neuronforget.erase.rank_one import rank_one
from neuronforget.erase.units import units_of
from neuronforget.erase.words import concept_vector, revs
from neuronforget.train.stopping import Budget

__all__ = [
    "OPERATORS", "Adapter", "Budget", "LoRA", "Sisa", "ablate", "ablate_mean", "alpha_edit", "alternates", "aura",
    "concept_vector", "dampen", "finetune", "first_order_update", "guards", "leace", "learn_adapter", "llm_eraser",
    "make", "memit", "noise", "rank_one", "retrained", "revive", "revs", "second_order_update", "sisa", "ssd",
    "task_vector", "units_of",
]  # fmt: skip
