"""Pictures of what an edit left: how fast the facts come back, and what every block still holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neuronforget import figures
from neuronforget.auditing import Audit
from neuronforget.auditing.cases import EDITED
from neuronforget.auditing.relearning import EVERY
from neuronforget.figures.style import label
from neuronforget.reporting.pictures import Picture
from neuronforget.reporting.tables import Table


@dataclass(frozen=True)
class Drawn:
    """How one of an audit's curves is drawn: a value every `step` of what is `across`, on an axis `up` to `top`."""

    title: str
    words: str
    across: str
    up: str = ""  # what the audit measures answers by
    step: int = 1
    top: float | None = None


DRAWN = {
    "taught again": Drawn(
        "Relearning: the facts that are taught again",
        "The whole model is taught half of the facts again. Knowledge that was only hidden comes back sooner than it "
        "is learned by a model that never knew.",
        "training steps",
        step=EVERY,
        top=1.0,
    ),
    "siblings": Drawn(
        "Relearning: the other facts (siblings), which are not taught",
        "The other half of the facts, at the same steps. Nothing of them is taught: what was never there cannot come "
        "back.",
        "training steps",
        step=EVERY,
        top=1.0,
    ),
    "lens": Drawn(
        "Residue: the answer read off every block",
        "Probability of the answer when the model's own last norm and unembedding read each block's states. High in "
        "earlier blocks and low at the end: only the output is suppressed.",
        "block",
        "probability of the answer",
        top=1.0,
    ),
    "patching, states": Drawn(
        "Residue: the edited model's states put into the untouched one",
        "How much less likely (nats per token) the untouched model's answers become when it gets another model's "
        "states at one block. Where the gold twin takes away more than the edited model, knowledge is still there.",
        "block",
        "nats lost",
    ),
    "patching, neurons": Drawn(
        "Residue: the edited model's neurons put into the untouched one",
        "The same, but only the activations of one layer's neurons are replaced.",
        "layer",
        "nats lost",
    ),
}


def residue_pictures(audits: Mapping[str, Audit]) -> list[Picture]:
    """Return the curves of all audits, one picture a probe; each edit has its name, the references are drawn once.

    Where audits measure answers differently, what is drawn in their measure has a picture of each.
    """
    made: list[Picture] = []
    for probe, drawn in DRAWN.items():
        measures = _by_measure(audits, probe, drawn)
        for up, curves in measures.items():
            title = drawn.title if len(measures) == 1 else f"{drawn.title} ({up})"
            places = [str(drawn.step * i) for i in range(max(map(len, curves.values())))]
            rows = tuple((who, *(f"{value:.3f}" for value in curve)) for who, curve in curves.items())
            table = Table(f"{title}, by {drawn.across}", ("model", *places), rows)
            figure = figures.curves(curves, drawn.across, up, step=drawn.step, top=drawn.top)
            made.append(Picture(title, drawn.words, figure, table))
    return made


def _by_measure(audits: Mapping[str, Audit], probe: str, drawn: Drawn) -> dict[str, dict[str, list[float]]]:
    """Words of each measure in which audits have this probe's curves -> edit or reference -> its curve."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, audit in audits.items():
        for who, curve in audit.curves.get(probe, {}).items():
            up = drawn.up or label(audit.damage["metric"])
            found.setdefault(up, {})[name if who == EDITED else who] = curve
    return found
