"""Guards: each function returns an `Edit` that changes no weight; it acts while the model runs, and is no erasure."""

from neuronforget.erase.guards.control_vector import repe
from neuronforget.erase.guards.corruption import eco
from neuronforget.erase.guards.gated import o3
from neuronforget.erase.guards.in_context import icu
from neuronforget.erase.guards.resampling import resample

__all__ = ["eco", "icu", "o3", "repe", "resample"]
