"""neuronforget: find the neurons that carry knowledge, erase it with the smallest edit, measure what that did.

Corpus -> Moments -> Scores -> Neurons -> Edit -> Results -> Report; read, record, attribute, select, erase,
evaluate, draw. Heavy libraries (transformers' models, TransformerLens, nnsight, plotly) load when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neuronforget import corpora, erase, losses, metrics, scores, select, testbed
from neuronforget.attribution import attribute
from neuronforget.auditing import Audit, audit
from neuronforget.comparing import compare
from neuronforget.comparing.comparison import Comparison
from neuronforget.corpora import Corpus, Example
from neuronforget.edits import Edit
from neuronforget.edits.certificates import Certificate
from neuronforget.edits.changes import Change
from neuronforget.errors import InputError
from neuronforget.evaluation import evaluate
from neuronforget.ledger import Ledger
from neuronforget.models import LM, load
from neuronforget.models.routed import open_experts
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons
from neuronforget.recording import record
from neuronforget.results import Results
from neuronforget.scores import Scores

if TYPE_CHECKING:
    from neuronforget import figures
    from neuronforget.reporting import report

__version__ = "0.1.0"

__all__ = [
    "LM", "Audit", "Certificate", "Change", "Comparison", "Corpus", "Edit", "Example", "InputError", "Ledger",
    "Moments", "Neurons", "Results", "Scores", "attribute", "audit", "compare", "corpora", "erase", "evaluate",
    "figures", "load", "losses",
    "metrics", "open_experts", "record", "report", "scores", "select", "testbed",
]  # fmt: skip


def __dir__() -> list[str]:
    """Name what loads when it is used, too."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Load plotly and jinja2 when a picture is asked for."""
    if name == "report":
        from neuronforget.reporting import report

        return report
    if name == "figures":
        from importlib import import_module

        return import_module("neuronforget.figures")
    raise AttributeError(f"module 'neuronforget' has no attribute {name!r}")
