"""Small models whose knowledge is known: where it lies, and what a model that never knew it answers."""

from neuronforget.testbed.build import from_rows, people
from neuronforget.testbed.testbed import Testbed
from neuronforget.testbed.tofu_rows import tofu
from neuronforget.testbed.training import Shape

__all__ = ["Shape", "Testbed", "from_rows", "people", "tofu"]
