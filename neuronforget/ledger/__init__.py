"""Ledger: requests that come one after the other, and how one alone is undone."""

from neuronforget.ledger.ledger import RECORD, Entry, Ledger, check_own_folder

__all__ = ["Entry", "Ledger", "RECORD", "check_own_folder"]
