"""Small models whose knowledge is known: where it lies, and what a model that never knew it answers."""

from neuronforget.testbed.build import from_rows, people
from neuronforget.testbed.testbed import Testbed

__all__ = ["Testbed", "from_rows", "people"]
