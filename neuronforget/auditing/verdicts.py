"""From readings to a verdict: each probe is judged by itself, in numbers, and the worst of them is the verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neuronforget.auditing.cases import EDITED, GOLD, UNTOUCHED, Reading
from neuronforget.errors import InputError, reading
from neuronforget.results import Results, bootstrap, mean
from neuronforget.results import over as resampled_over
from neuronforget.runs import whole_file

ALPHA = 0.05  # over all checks together: that examples were drawn by chance fails so many audits at most
RESAMPLES = 10_000  # the outermost of them are what so many checks ask for
KNOWN_BY = 0.05  # more than the reference: less, and there was nothing to forget
MUCH = 0.5  # of what was known: a check that cannot tell whether so much is left has not found it gone
DAMAGE = 0.1  # of the retain answers: losing more is called destruction

#: What a probe's floor is, where there is no gold twin.
STAND_INS = {"asked": "the most common other answer", "relearning": "taught other answers", "choice": "chance"}

Outcome = Literal["gone", "left", "avoided", "unclear", "not known before"]
Verdict = Literal[
    "broken", "not erased", "hidden", "suppressed", "unclear", "gone, as far as asked", "nothing to forget"
]
WORDS = {"left": "LEFT", "avoided": "AVOIDED", "not known before": "nothing was known"}


@dataclass(frozen=True)
class Check:
    """One probe's judgement on one corpus: what is left, above what a model that never knew gives.

    `value` is the mean of the edited model, `start` that of the untouched one, `reference` that of the gold twin, or of
    what stands in for it (`against`). `low` and `high` are the paired bootstrap interval of value - reference, at 95%
    over all checks together, resampled `over` subjects, or examples where there are fewer than five subjects. "left":
    the interval lies above zero, and the mean above `least` (a share) of start - reference; "avoided": as far below,
    where right and wrong are compared; "unclear": neither, and the interval reaches half of start - reference, or a
    value is NaN.
    """

    probe: str
    corpus: str
    metric: str
    start: float
    value: float
    reference: float
    against: str
    low: float
    high: float
    n: int
    nan: int
    over: str
    outcome: Outcome

    def __str__(self) -> str:
        what = WORDS.get(self.outcome, self.outcome)
        gap = f"{self.value - self.reference:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
        return (
            f"{self.probe}, {self.corpus}: {what} ({self.metric} {self.value:.3f}, untouched {self.start:.3f}, "
            f"{self.against} {self.reference:.3f}; difference {gap}, {self.n} examples, over {self.over})"
        )


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
        return f"{len(found)} of {len(self.checks)} checks find it{listed}"

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
        with reading(path, "an audit"):
            about = json.loads(path.read_text(encoding="utf-8"))
            checks = tuple(Check(**row) for row in about.pop("checks"))
            return cls(checks=checks, results=Results.load(folder), **about)


def judge(readings: Sequence[Reading], seed: int) -> list[Check]:
    """Return a check of every probe, corpus and metric that is judged.

    Asking plainly has half of `ALPHA`, all other probes together the other half (Bonferroni in either): that many more
    ways are tried does not make plain answers harder to notice. Raises InputError where nothing is judged, and for a
    probe that did not read the edited model.
    """
    by: dict[tuple[str, str, str], dict[str, Reading]] = {}
    for found in readings:
        by.setdefault((found.probe, found.corpus, found.metric), {})[found.subject] = found
    if alone := [probe for (probe, _, _), who in by.items() if EDITED not in who]:
        raise InputError(f"probe {alone[0]!r} has no reading of the edited model")
    plain = {corpus: who[EDITED] for (probe, corpus, _), who in by.items() if probe == "asked"}
    judged = [who for who in by.values() if who[EDITED].sign]
    share = Counter(who[EDITED].probe == "asked" for who in judged)
    checks = [_judged(who, plain, seed, 1 - ALPHA / 2 / share[who[EDITED].probe == "asked"]) for who in judged]
    if not checks:
        raise InputError("no probe is judged: choose some that ask for the knowledge")
    return checks


def _judged(who: Mapping[str, Reading], plain: Mapping[str, Reading], seed: int, level: float) -> Check:
    edited, start = who[EDITED], who.get(UNTOUCHED)
    if GOLD in who:
        floor, against = who[GOLD].values, "gold"
    elif edited.floor is not None:
        floor, against = edited.floor, STAND_INS.get(edited.probe, "its floor")
    elif edited.probe != "asked" and edited.corpus in plain:
        floor, against = plain[edited.corpus].values, "the edited model asked plainly"
    else:
        floor, against = np.zeros_like(edited.values), "zero"
    value, reference = mean(edited.values), mean(floor)
    known = mean(start.values) if start is not None else 1.0
    units, over = resampled_over(edited.units)
    gap, low, high = bootstrap(edited.values - floor, seed, units=units, resamples=RESAMPLES, level=level)
    least, much = edited.least * (known - reference), MUCH * (known - reference)
    nan = int(np.isnan(edited.values).sum())
    outcome: Outcome = "gone"
    if known - reference <= KNOWN_BY:
        outcome = "not known before"
    elif edited.sign > 0 and low > 0 and gap > least:
        outcome = "left"
    elif (edited.sign < 0 or edited.two_sided) and high < 0 and gap < -least:
        outcome = "avoided"
    elif nan or not (high < much or edited.sign < 0 <= high):
        outcome = "unclear"
    return Check(edited.probe, edited.corpus, edited.metric, known, value, reference, against, low, high,
                 len(edited.values), nan, over, outcome)  # fmt: skip


def decide(checks: Iterable[Check], guard: str | None, nan: int = 0) -> Verdict:
    """Return the verdict: what is answered when asked is not erased, what any other probe brings back is hidden.

    A model that returns NaN, on `nan` examples when asked, is broken. An answer that is avoided more than by a model
    that never knew is suppressed: it takes the fact to avoid it. Where plain asking is unclear, so is the verdict.
    """
    checks = list(checks)
    if nan:
        return "broken"
    if any(c.outcome == "left" for c in checks if c.probe == "asked"):
        return "not erased"
    if guard is not None or any(c.outcome == "left" for c in checks):
        return "hidden"
    if any(c.outcome == "avoided" for c in checks):
        return "suppressed"
    if all(c.outcome == "not known before" for c in checks if c.probe == "asked"):
        return "nothing to forget"
    if any(c.outcome == "unclear" for c in checks if c.probe == "asked"):
        return "unclear"
    return "gone, as far as asked"


def sentences(audit: Audit) -> Iterable[str]:
    """Yield the verdict, then what speaks for it."""
    left = [c for c in audit.checks if c.outcome in ("left", "avoided")]
    yield f"Verdict: {audit.verdict} ({len(left)} of {len(audit.checks)} checks find it)."
    if guard := audit.damage.get("guard"):
        yield f"A guard ({guard}) changes no weight: taken off, the model knows what it knew."
    yield from (str(check) for check in left)
    yield from _damage(audit.damage)
    yield from _neurons(audit.neurons)
    gone = [c for c in audit.checks if c.outcome == "gone"]
    shown = sorted({f"{r['point']} ({r['corpus']})" for r in audit.results.rows if r["edit"] == EDITED
                    and r["corpus"] != "retain"} - {f"{c.probe} ({c.corpus})" for c in audit.checks})  # fmt: skip
    if never := [c for c in audit.checks if c.outcome == "not known before"]:
        asked_in_vain = "; ".join(f"{c.probe} ({c.corpus})" for c in never)
        yield f"The untouched model shows no more than the reference, so nothing could be found, by: {asked_in_vain}."
    if unclear := [str(c) for c in audit.checks if c.outcome == "unclear"]:
        yield "Too few examples, or no number, to tell whether half of what was known is left:"
        yield from unclear
    if gone:
        yield "Nothing above the reference was found by: " + "; ".join(f"{c.probe} ({c.corpus})" for c in gone) + "."
    if shown:
        yield f"Shown, not judged, as there is no gold twin to compare with: {'; '.join(shown)}."
    yield from (f"Not asked: {probe}: {why}." for probe, why in audit.not_tested.items())
    yield "Intervals are at 95% over all checks together (Bonferroni); what other probes would find is not said here."


def _damage(damage: Mapping[str, Any]) -> Iterable[str]:
    before, after = damage["retain before"], damage["retain after"]
    word = "destroyed" if before - after > DAMAGE * max(before, 1e-9) else "kept"
    yield f"Retain is {word}: {damage['metric']} {before:.3f} before, {after:.3f} after."
    if "KL from gold" in damage:
        far, start = damage["KL from gold"], damage["KL from gold, untouched"]
        yield f"On forget the edited model is {far:.2f} nats from the gold twin, the untouched one {start:.2f}" + (
            ": over-erased, a model that never knew would not answer so." if far > start else "."
        )
    if (nan := damage["nan"]) > 0:
        yield f"The edited model returns NaN on {nan} examples: it is broken, which is no forgetting."


def _neurons(found: Mapping[str, Any]) -> Iterable[str]:
    if "taken away" not in found:
        return
    yield (
        f"Direct contributions of neurons to the answers: {found['taken away']:.2f} logits taken away, "
        f"{found['newly suppressing']:.2f} newly suppressing; {found['neurons whose write vector changed']} write "
        f"vectors changed, and hold {found['share of the forget shift in changed neurons']:.0%} of the shift on forget."
    )
    if (units := found.get("units")) and units[UNTOUCHED] != units[EDITED]:
        yield (
            f"Units: {units[EDITED]} (untouched: {units[UNTOUCHED]}). Dead units cannot relearn: slow relearning is "
            "then no erasure of what others hold."
        )
