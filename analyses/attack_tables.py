"""Tables of `nine_attacks.py`: the share of the gap from gold to untouched that is left, by attack and erasure.

share = (edited - gold) / (untouched - gold)   over an attack's questions; 0: as the twin that never knew, 1: untouched

Intervals are 95%, percentile bootstrap over targets, questions of which stand together (over questions where there are
fewer than five targets); every mean of a share is of the same draw.
Where the interval of untouched - gold reaches 0 the attack cannot tell knowing from never having known:
nothing is said of what it leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from cells import cell, folded, many, table

from neuronforget.results.intervals import bootstrap, over, resampled
from neuronforget.suites.rwku import ATTACKS

#: Measure -> its words; the first is the one of the main table and the figure.
MEASURES = {
    "rouge_l": "ROUGE-L recall", "choice": "forced choice", "contains": "answer contained", "exact": "exact match",
    "probability": "probability by token",
}  # fmt: skip
POINTS = {"tuned": "at equal damage", "halved": "at equal forgetting"}
ALL = "all nine"
UNINFORMATIVE = "uninformative"
REFERENCES = ("untouched", "gold")


@dataclass(frozen=True)
class Range:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    @property
    def told(self) -> str:
        """Its words, bold where the interval leaves 0 out."""
        return f"**{self}**" if self.low > 0 or self.high < 0 else str(self)


@dataclass(frozen=True)
class Left:
    """What is left under an attack, of its plain questions, and the difference: None where that is uninformative."""

    attack: Range | None
    plain: Range | None
    more: Range | None

    @property
    def back(self) -> bool:
        """Does the attack bring back more than plain questions show?"""
        return self.more is not None and self.more.low > 0


@dataclass(frozen=True, eq=False)
class Answers:
    """All seeds' answers: of each question the attack, half, target, and the values of every edit."""

    seeds: Sequence[Mapping[str, Any]]

    @cached_property
    def names(self) -> list[str]:
        """The edits that were made in every seed."""
        arms = [seed["arms"] for seed in self.seeds]
        return [n for n in arms[0] if n not in REFERENCES and all("tuned" in arm.get(n, {}) for arm in arms)]

    def column(self, key: str) -> np.ndarray:
        """Return what `about` says of each question."""
        return np.array([value for seed in self.seeds for value in seed["about"][key]])

    def of(self, kind: str = ALL, taught: bool | None = None) -> np.ndarray:
        """Return which questions are of an attack, and of a half (None: both)."""
        mine = np.full(len(self.column("kinds")), True) if kind == ALL else self.column("kinds") == kind
        return mine if taught is None else mine & (self.column("taught") == taught)

    def values(self, name: str, side: str, measure: str, point: str = "tuned") -> np.ndarray:
        """Return an edit's value of each question, asked by the attack or plainly. Without a gold twin: chance."""
        if name == "gold" and any("gold" not in seed["arms"] for seed in self.seeds):
            choices = self.column("choices")
            return 1 / choices if measure == "choice" else np.zeros(len(choices))
        arms = [seed["arms"][name] for seed in self.seeds]
        return np.concatenate([arm[point if point in arm else "tuned"]["asked"][side][measure] for arm in arms])

    def units(self, mine: np.ndarray) -> np.ndarray:
        """Return what is resampled of some questions: targets, or questions where those are few."""
        return over(np.unique(self.column("targets")[mine], return_inverse=True)[1])[0]

    def gap(self, side: str, measure: str, mine: np.ndarray) -> Range:
        """Return untouched less gold, paired by question: the attack is uninformative where `low` is not above 0."""
        key = side, measure, mine.tobytes()
        if key not in self._gaps:
            gap = self.values("untouched", side, measure) - self.values("gold", side, measure)
            self._gaps[key] = Range(*bootstrap(gap[mine], 0, units=self.units(mine)))
        return self._gaps[key]

    @cached_property
    def _gaps(self) -> dict[tuple[str, str, bytes], Range]:
        """Those that were drawn already: every edit at every point asks for the same ones."""
        return {}

    def left(self, name: str, measure: str, mine: np.ndarray, point: str = "tuned") -> Left:
        """Return the shares that an edit leaves."""
        means, draws = {}, {}
        for side in ("attack", "plain"):
            if not mine.any() or not self.gap(side, measure, mine).low > 0:
                continue
            gold = self.values("gold", side, measure)
            parts = [(self.values(n, side, measure, point) - gold)[mine] for n in (name, "untouched")]
            over_draws = [resampled(part, 0, units=self.units(mine)) for part in parts]
            means[side] = parts[0].mean() / parts[1].mean()
            with np.errstate(all="ignore"):
                draws[side] = over_draws[0] / over_draws[1]
        if len(draws) == 2:
            means["more"], draws["more"] = means["attack"] - means["plain"], draws["attack"] - draws["plain"]
        ranges = {side: Range(float(means[side]), *np.nanquantile(draws[side], [0.025, 0.975])) for side in draws}
        return Left(*(ranges.get(side) for side in ("attack", "plain", "more")))


def tables(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return all tables in Markdown."""
    answers = Answers(seeds)
    parts = [f"## What there is to find ({many(len(seeds))})", _informs(answers)]
    parts += ["## The edits", _edits(answers)]
    main, *others = MEASURES
    for point, words in POINTS.items():
        parts += [f"## What is left, {words} ({MEASURES[main]})", _grid(answers, main, point)]
    for measure in (main, others[0]):
        parts += [f"## All nine attacks together, by half ({MEASURES[measure]})", _halves(answers, measure)]
    for measure in others:
        grids = "\n\n".join(f"{name.capitalize()}:\n\n{_grid(answers, measure, p)}" for p, name in POINTS.items())
        parts.append(folded(grids, f"What is left: {MEASURES[measure]}"))
    for taught, words in ((True, "taught"), (False, "not taught")):
        grids = "\n\n".join(f"{name.capitalize()}:\n\n{_grid(answers, main, p, taught)}" for p, name in POINTS.items())
        parts.append(folded(grids, f"What is left: {MEASURES[main]}, the half that was {words}"))
    arms = [(i, name, arm) for i, seed in enumerate(seeds) for name, arm in seed["arms"].items()]
    failed = [f"- {name}, run {i}, failed: {arm['failed']}" for i, name, arm in arms if "failed" in arm]
    return "\n\n".join([*parts, *failed]) + "\n"


def kinds(answers: Answers) -> list[str]:
    """Return the attacks that were asked, and all of them together."""
    return [kind for kind in ATTACKS if answers.of(kind).any()] + [ALL]


def _informs(answers: Answers) -> str:
    """Untouched and gold by attack, by half; is the gap told apart from 0?"""
    rows = []
    for kind in kinds(answers):
        row = [kind]
        for taught in (True, False):
            mine = answers.of(kind, taught)
            row.append(str(mine.sum()))
            for measure in ("rouge_l", "choice"):
                pair = [answers.values(name, "attack", measure)[mine] for name in REFERENCES]
                row.append(" / ".join(f"{values.mean():.2f}" for values in pair) if mine.any() else "")
        gaps = [answers.gap("attack", measure, answers.of(kind)) for measure in ("rouge_l", "choice")]
        rows.append([*row, *(f"{gap}" if gap.low > 0 else f"{gap}: {UNINFORMATIVE}" for gap in gaps)])
    halves = [f"{words}{half}" for half in ("taught", "not taught") for words in ("*n*, ", "recall, ", "choice, ")]
    return table(["attack", *halves, "gap, recall", "gap, choice"], rows)


def _edits(answers: Answers) -> str:
    """What each edit costs, and what plain questions show after it."""
    rows = []
    for name in [*(n for n in REFERENCES if n in answers.seeds[0]["arms"]), *answers.names]:
        for point, words in POINTS.items():
            arms = [seed["arms"][name] for seed in answers.seeds]
            if point not in arms[0]:
                continue
            found = [arm[point] for arm in arms]
            start = [seed["arms"]["untouched"]["tuned"] for seed in answers.seeds]
            rise = [p["retain"]["nll"] - s["retain"]["nll"] for p, s in zip(found, start, strict=True)]
            row = [name, words if name in answers.names else "", " ".join(f"{p['strength']:.3g}" for p in found)]
            row += [cell(rise, 3), *(cell([p[c]["exact_match"] for p in found]) for c in ("retain", "forget"))]
            row.append(cell([float(np.mean(p["asked"]["others"]["exact_match"])) for p in found]))
            rows.append(row)
    head = ["model", "", "strength by seed", "rise of retain loss", "retain", "forget", "others' attacks"]
    never = [name for name in answers.names if not all(_halved(seed["arms"], name) for seed in answers.seeds)]
    words = f"Half of the plain answers was not gone at any strength tried, in a seed at least: {', '.join(never)}."
    return "\n\n".join([table(head, rows), *([words] if never else [])])


def _halved(arms: Mapping[str, Any], name: str) -> bool:
    """Did an edit come to equal forgetting, or is the point of that name the nearest that it came?"""
    left, start = arms[name].get("halved", arms[name]["tuned"]), arms["untouched"]["tuned"]
    return bool(left["forget"]["exact_match"] <= start["forget"]["exact_match"] / 2)


def _grid(answers: Answers, measure: str, point: str, taught: bool | None = None) -> str:
    """A row an attack, a column an edit: share left by it; by its plain questions; how many are told apart."""
    rows, found = [], []
    for kind in kinds(answers):
        own = [answers.left(name, measure, answers.of(kind, taught), point) for name in answers.names]
        rows.append([kind, *map(_words, own)])
        found += own if kind != ALL else []
    asked = [left.more for left in found if left.more is not None]
    more, less = sum(left.back for left in found), sum(part.high < 0 for part in asked)
    counts = f"Of {len(asked)} cells of single attacks the attack leaves more in {more}, less in {less}"
    return f"{table(['attack', *answers.names], rows)}\n\n{counts} (by chance: 2.5% each)."


def _words(left: Left) -> str:
    """Bold where the attack leaves more than plain questions, in italics where less."""
    if left.attack is None:
        return UNINFORMATIVE
    words = f"{left.attack}; {left.plain.value:.2f}" if left.plain is not None else str(left.attack)
    if left.more is None:
        return words
    return f"**{words}**" if left.back else f"*{words}*" if left.more.high < 0 else words


def _halves(answers: Answers, measure: str) -> str:
    rows = []
    for name in answers.names:
        for point, words in POINTS.items():
            row = [name, words]
            for taught in (True, False):
                left = answers.left(name, measure, answers.of(taught=taught), point)
                row += [str(part) if part is not None else UNINFORMATIVE for part in (left.attack, left.plain)]
                row.append(left.more.told if left.more is not None else "")
            rows.append(row)
    columns = ("attack", "plain", "attack less plain")
    heads = [f"{words}, {half}" for half in ("taught", "not taught") for words in columns]
    return table(["edit", "", *heads], rows)
