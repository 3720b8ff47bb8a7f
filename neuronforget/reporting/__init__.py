"""Report: from results and what is beside them to one offline HTML file."""

from neuronforget.reporting.reports import report

__all__ = ["report"]
