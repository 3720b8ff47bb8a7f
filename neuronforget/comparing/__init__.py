"""Compare: every method with its controls in one call."""

from neuronforget.comparing.comparison import Comparison
from neuronforget.comparing.run import compare

__all__ = ["Comparison", "compare"]
