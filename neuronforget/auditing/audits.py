"""Audit: erased or hidden, with everything that was asked; and what it says in sentences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuronforget.auditing.cases import DAMAGE, EDITED, UNTOUCHED
from neuronforget.auditing.verdicts import Check, Verdict
from neuronforget.errors import reading
from neuronforget.results import Results
from neuronforget.runs import whole_file


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """Erased or hidden: the verdict, the checks behind it, what could not be asked and why, and every number.

    `results` has a row of each subject, probe (as its point), corpus and metric, with the examples behind it. `curves`
    are by name and subject (relearning by look, lens and patching by block), `neurons` what the edit did to them.
    """

    verdict: Verdict
    checks: tuple[Check, ...]
    not_tested: dict[str, str]
    damage: dict[str, Any]
    curves: dict[str, dict[str, list[float]]]
    neurons: dict[str, Any]
    results: Results

    @property
    def evidence(self) -> str:
        """How many checks find the knowledge, and which."""
        found = [f"{c.probe} ({c.corpus})" for c in self.checks if c.outcome in ("left", "avoided")]
        listed = f": {', '.join(found)}" if found else ""
        return f"{len(found)} of {len(self.checks)} checks find the knowledge{listed}"

    @property
    def words(self) -> str:
        """The verdict in one sentence, with the checks that speak for it."""
        return f"{self.verdict} ({self.evidence})."

    @property
    def findings(self) -> tuple[str, ...]:
        """Everything it found, in sentences with their numbers; the unwelcome first."""
        return tuple(sentences(self))

    def __str__(self) -> str:
        return "\n".join(self.findings)

    def __repr__(self) -> str:
        return f"Audit({self.words})"

    def save(self, folder: str | Path) -> None:
        """Write the results and `audit.json` into a new folder."""
        self.results.save(folder)
        about = {k: v for k, v in vars(self).items() if k not in ("results", "checks")}
        with whole_file(Path(folder) / "audit.json") as scratch:
            scratch.write_text(json.dumps({**about, "checks": [asdict(c) for c in self.checks]}, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> Audit:
        """Read what `save` wrote."""
        path = Path(folder) / "audit.json"
        with reading(path, "audit"):
            about = json.loads(path.read_text(encoding="utf-8"))
            checks = tuple(Check(**row) for row in about.pop("checks"))
            return cls(checks=checks, results=Results.load(folder), **about)


def sentences(audit: Audit) -> Iterable[str]:
    """Yield the verdict, then what speaks for it."""
    left = [c for c in audit.checks if c.outcome in ("left", "avoided")]
    yield f"Verdict: {audit.verdict} ({len(left)} of {len(audit.checks)} checks find the knowledge)."
    if guard := audit.damage.get("guard"):
        yield f"A guard ({guard}) changes no weight. Once it is off, the model knows what it knew."
    yield from (str(check) for check in left)
    if few := [f"{c.probe} ({c.corpus})" for c in left if c.over == "examples"]:
        yield (
            f"There are fewer than five subjects, so intervals are over examples: {'; '.join(few)}. What luck "
            "in guessing about so few subjects could show is not counted."
        )
    yield from _damage(audit.damage)
    yield from _neurons(audit.neurons)
    gone = [c for c in audit.checks if c.outcome == "gone"]
    shown = sorted({f"{r['point']} ({r['corpus']})" for r in audit.results.rows if r["edit"] == EDITED
                    and r["corpus"] != "retain"} - {f"{c.probe} ({c.corpus})" for c in audit.checks})  # fmt: skip
    if never := [c for c in audit.checks if c.outcome == "not known before"]:
        asked_in_vain = "; ".join(f"{c.probe} ({c.corpus})" for c in never)
        yield "Nothing could be found by these, as the untouched model shows hardly more than the reference: " + (
            f"{asked_in_vain}."
        )
    if unclear := [str(c) for c in audit.checks if c.outcome == "unclear"]:
        yield "Too few subjects or examples, or NaN, to tell whether knowledge is left:"
        yield from unclear
    if gone:
        yield "Nothing above the reference was found by: " + "; ".join(f"{c.probe} ({c.corpus})" for c in gone) + "."
    if shown:
        yield f"Shown but not judged, as there is no gold twin to compare with: {'; '.join(shown)}."
    yield from (f"Not asked: {probe}. Reason: {why}." for probe, why in audit.not_tested.items())
    yield "Intervals are at 95% over all checks together (Bonferroni). What other probes would find is not known."


def _damage(damage: Mapping[str, Any]) -> Iterable[str]:
    before, after = damage["retain before"], damage["retain after"]
    destroyed = damage.get("destroyed", before - after > DAMAGE * max(before, 1e-9))  # an old audit does not say
    word = "destroyed" if destroyed else "kept"
    why = " The forget answers that it lost are damage, not erasure." if destroyed else ""
    yield f"Retain is {word}: {damage['metric']} {before:.3f} before, {after:.3f} after.{why}"
    if "KL from gold" in damage:
        far, start = damage["KL from gold"], damage["KL from gold, untouched"]
        farther = round(far, 2) > round(start, 2)  # in what the sentence shows, no less
        yield f"On forget, the edited model is {far:.2f} nats from the gold twin, the untouched model {start:.2f}." + (
            " It is over-erased: a model that never knew would not answer like this." if farther else ""
        )
    if (nan := damage["nan"]) > 0:
        yield f"The edited model returns NaN on {nan} examples. It is broken, which is not forgetting."


def _neurons(found: Mapping[str, Any]) -> Iterable[str]:
    if "taken away" not in found:
        return
    yield (
        f"Direct contributions of neurons to the answers: {found['taken away']:.2f} logits taken away, "
        f"{found['newly suppressing']:.2f} newly suppressing. {found['neurons whose write vector changed']} write "
        "vectors changed. These neurons account for "
        f"{found['share of the forget shift in changed neurons']:.0%} of the shift on forget."
    )
    if (units := found.get("units")) and units[UNTOUCHED] != units[EDITED]:
        yield (
            f"Units: {units[EDITED]} (untouched: {units[UNTOUCHED]}). Dead units cannot relearn, so with them slow "
            "relearning does not show that what other units hold was erased."
        )
