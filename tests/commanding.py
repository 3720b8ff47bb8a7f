"""The command line, run in the test's own process."""

from __future__ import annotations

import sys

import pytest

from neuronforget.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run the command line in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["neuronforget", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
