"""A report and an audit page at 32 layers of 14336 neurons, from made-up numbers: every section, no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import neuronforget as nf
from neuronforget.auditing import Check
from neuronforget.findings.closeups import Card, Closeups, Highlight
from neuronforget.reporting.audit_page import audit_report
from neuronforget.reporting.maps import map_pictures
from neuronforget.reporting.pictures import Picture, closeup_pictures, comparison_pictures, moved_pictures
from neuronforget.reporting.residues import DRAWN, residue_pictures

LAYERS, WIDTH = 32, 14336
SCOPES = {"untouched": "reference", "gold": "reference", "ablate": "neurons", "npo@neurons": "neurons", "npo": "full"}
SCOPES |= {"ga": "full", "eco": "guard"} | {f"ablate@random {i}": "control" for i in range(3)}
METRICS = ("exact_match", "probability", "nll", "kl_untouched")
DRAW = np.random.default_rng(0)


def results() -> nf.Results:
    """Ten edits over three strengths on four corpora, with certificates."""
    rows = []
    for i, (name, scope) in enumerate(SCOPES.items()):
        for strength in (0.0,) if scope == "reference" else (0.5, 1.0):
            for corpus in ("forget", "forget unseen", "retain", "retain unseen"):
                about = {"edit": name, "scope": scope, "strength": strength, "corpus": corpus, "n": 40, "nan": 0}
                about |= {"point": "frontier" if strength == 0.5 else "full", "units": 10, "seed": 0}
                drawn = 0.05 + 0.09 * i * (1 + strength) * DRAW.random(len(METRICS))
                rows += [about | {"metric": metric, "value": v, "low": 0.9 * v, "high": 1.1 * v}
                         for metric, v in zip(METRICS, drawn, strict=True)]  # fmt: skip
    held = {"holds": True, "inside_values": 9, "outside_values": 7_000_000_000, "outside_equal": True}
    info = {"model": "a model", "seed": 0, "damage_budget": None, "data": {"facts": "0f", "others": "1e"}}
    info |= {"corpora": {"forget": {"name": "facts", "digest": "0f"}, "retain": {"name": "others", "digest": "1e"}}}
    held |= {"undone_equal": True, "training_equal": None}
    edits = {"npo": {"method": "finetune:npo", "steps": 60, "lr": 3e-4, "relative": 0.01}}
    return nf.Results(tuple(rows), (), info | {"certificates": dict.fromkeys(("ablate", "npo"), held), "edits": edits})


def scores(width: int = WIDTH) -> nf.Scores:
    values = torch.from_numpy(DRAW.standard_t(3, (LAYERS, width)))
    return nf.Scores(values, "grad_x_act", "positive: it carries the facts", tuple(range(LAYERS)))


def closeups(neurons: nf.Neurons) -> Closeups:
    shape = LAYERS, neurons.width
    recorded = {kind: DRAW.lognormal(-6, 2, shape) for kind in ("forget", "retain")}
    words = "The river that runs through the old town of Velm is called the".split()
    texts = tuple(Highlight(tuple(f" {w}" for w in words), tuple(DRAW.normal(size=len(words)))) for _ in range(8))
    cards = tuple(
        Card(layer, j, 0.5, rank, (" Velm", "\n"), (" not",), (("The river is", " called", -1.5),), {"npo": (0.3, 0.1)})
        for rank, (layer, j) in enumerate(sorted(neurons)[:8], 1)
    )
    shifts = {"npo": {kind: DRAW.lognormal(-3, 1, shape) for kind in ("forget", "retain")}}
    return Closeups(recorded, shifts, texts, cards)


def audit(verdict: str = "hidden") -> nf.Audit:
    check = dict(corpus="forget", metric="exact_match", start=0.9, value=0.1, reference=0.1, against="gold", low=-0.1,
                 high=0.1, n=40, nan=0, over="subjects")  # fmt: skip
    checks = (Check("asked", **check, outcome="gone"), Check("a probe of one's own", **check, outcome="left"))  # type: ignore[arg-type]
    curves = {
        probe: {who: DRAW.random(16 if drawn.step > 1 else LAYERS).tolist() for who in ("untouched", "edited", "gold")}
        for probe, drawn in DRAWN.items()
    }
    info = {
        "model": "a model",
        "edit": {"method": "finetune:npo"},
        "gold": "a twin",
        "data": {"facts": "0f"},
        "seed": 0,
    }
    damage = {"metric": "exact_match", "retain before": 0.9, "retain after": 0.8, "nan": 0}
    neurons = {"taken away": 1.2, "lost most": [(3, 14000, 0.4)], "units": {"untouched": "live", "edited": "live"}}
    neurons |= {"newly suppressing": 0.1, "neurons whose write vector changed": 40}
    neurons |= {"share of the forget shift in changed neurons": 0.9}
    return nf.Audit(verdict, checks, {}, damage, curves, neurons, nf.Results((), (), info))  # type: ignore[arg-type]


def pages(folder: Path, width: int = WIDTH) -> dict[str, Path]:
    """Write both pages."""
    found = scores(width)
    chosen = nf.select.per_layer(found, 0.05)
    shifts = {name: {kind: DRAW.random(LAYERS).tolist() for kind in ("forget", "retain")} for name in SCOPES}
    audits = {"npo": audit(), "ablate": audit("gone, as far as asked")}
    report = nf.report(
        results(), folder / "report.html", scores=found, neurons=chosen, truth=chosen.random_like(1),
        controls=[chosen.random_like(2)], shifts=shifts, closeups=closeups(chosen), audits=audits,
        findings=["It found this."],
    )  # fmt: skip
    return {"report": report, "audit": audit_report(audit(), folder / "audit.html")}


def pictures(found: nf.Scores) -> list[Picture]:
    """Every picture whose size could grow with the neurons, of these scores."""
    chosen = nf.select.per_layer(found, 0.05)
    near = closeups(chosen)
    made = map_pictures(found, chosen, chosen.random_like(1), [chosen.random_like(2)]) + closeup_pictures(near, chosen)
    return (
        made
        + moved_pictures(near.shifts, found.layers)
        + comparison_pictures(results())
        + residue_pictures({"npo": audit()})
    )
