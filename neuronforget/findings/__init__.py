"""What results say in words, and single neurons seen from close."""

from neuronforget.findings.closeups import Closeups
from neuronforget.findings.findings import audited, describe

__all__ = ["Closeups", "audited", "describe"]
