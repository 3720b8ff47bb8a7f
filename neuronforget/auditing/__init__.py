"""Audit: is the knowledge erased, or only hidden? Every probe, beside the untouched model and the gold twin."""

from neuronforget.auditing.audits import Audit
from neuronforget.auditing.cases import Case, NotTested, Probe, Reading, Subject
from neuronforget.auditing.run import PROBES, audit
from neuronforget.auditing.verdicts import Check

__all__ = ["Audit", "Case", "Check", "NotTested", "PROBES", "Probe", "Reading", "Subject", "audit"]
