"""Tables of `tofu_study.py`: TOFU's numbers of every method, tuned and in full, and what the place does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from cells import folded, table
from judging import DAMAGE

from neuronforget.results.intervals import difference

Arms = Mapping[str, Any]
#: Column of the tables -> number of the study (KL: of the model's own measures).
TOFU = ("retain utility", "model utility", "KS", "forget quality", "forget probability", "forget ROUGE",
        "forget truth ratio", "retain probability", "retain ROUGE", "text")  # fmt: skip
OWN = {"KL from gold": ("forget", "kl_gold"), "KL, unseen": ("unseen", "kl_gold"), "retain loss": ("retain", "nll")}
POINTS = {"tuned": f"Tuned: retain loss up by at most {DAMAGE}", "full": "At full strength"}


def tables(splits: Mapping[str, Arms], done: Mapping[str, Any]) -> str:
    """Return all tables in Markdown."""
    about = done["about"]
    words = (f"{done['parameters'] / 1e6:.1f}M parameters, {about['setting']['authors']} authors, "
             f"{about['n']} questions of each set, seed {about['seed']}.")  # fmt: skip
    parts = [words, *(_split(name, arms, done["authors"][name]) for name, arms in splits.items())]
    return "\n\n".join(parts) + "\n"


def _split(name: str, arms: Arms, authors: Sequence[int]) -> str:
    parts = [f"## {name}", f"### {POINTS['tuned']}", _rows(arms, "tuned")]
    parts += [folded(_rows(arms, "full"), POINTS["full"]), "### Does it matter where? Found neurons less random ones"]
    parts += [_where(arms, authors)]
    stayed = [key for key, arm in arms.items() if "@" in key and "tuned" in arm and "tofu" not in arm["tuned"]]
    if stayed:
        parts.append(
            f"At no strength tried within the damage closer to gold than the untouched model: {', '.join(stayed)}."
        )
    failed = [f"- {key}, {what}: {why}" for key, arm in arms.items() for what, why in arm.get("failed", {}).items()]
    return "\n\n".join([*parts, *(["Not measured:\n\n" + "\n".join(failed)] if failed else [])])


def _rows(arms: Arms, point: str) -> str:
    """One row a method, the closest to gold (by KS) first; references on top."""
    known = {key: arm for key, arm in arms.items() if "tofu" in arm.get(point, {})}
    order = sorted((key for key in known if "@" in key), key=lambda key: known[key][point]["tofu"]["KS"][0])
    rows = []
    for key in ["untouched", "gold", *order]:
        found = known[key][point]
        own = [f"{found[corpus][metric]:.2f}" if corpus in found else "" for corpus, metric in OWN.values()]
        own.append(f"{np.mean(found['test']):.2f}" if "test" in found else "")
        verdict = known[key].get("verdict", "") if point == "tuned" or "@" not in key else ""
        rows.append([key, f"{found['strength']:.3g}", *(_cell(found["tofu"][name]) for name in TOFU), *own, verdict])
    return table(["method", "strength", *TOFU, *OWN, "KL, test", "audit"], rows)


def _cell(value: Sequence[float]) -> str:
    """A number with its interval, where it has one; small p-values by their power of ten."""
    mean, *ends = value
    words, *shown = (f"{number:.1e}" if 0 < number < 0.005 else f"{number:.2f}" for number in (mean, *ends))
    return f"{words} [{', '.join(shown)}]" if ends and ends[0] == ends[0] else words


def _where(arms: Arms, authors: Sequence[int]) -> str:
    """What the place does, where tuned and where both cost the same.

    KL, test: on questions that chose nothing, paired, bold where told apart over authors; left out where one of both is
    the untouched model. At equal rise: on those that chose, without an interval.
    """
    start, rows = arms["untouched"]["tuned"], []
    for key in (key for key in arms if key.endswith("@found")):
        pair = [arms.get(name, {}) for name in (key, f"{key.partition('@')[0]}@random")]
        if not all("tuned" in arm for arm in pair):
            continue
        found, random = (arm["tuned"] for arm in pair)
        row = [key.partition("@")[0], *(f"{_rise(point, start):+.3f}" for point in (found, random)), ""]
        if "test" in found and "test" in random:
            less = np.array(found["test"]) - np.array(random["test"])
            value, low, high = difference(less, 0, units=np.array(authors))
            words = f"{value:+.2f} [{low:.2f}, {high:.2f}]"
            row[-1] = f"**{words}**" if low > 0 or high < 0 else words
        here, there = (at_damage(arm["dials"][-1], start) for arm in pair)
        rows.append([*row, f"{here - there:+.2f}"])
    return table(["method", "rise, found", "rise, random", "KL, test", f"KL at a rise of {DAMAGE}"], rows)


def _rise(point: Mapping[str, Any], start: Mapping[str, Any]) -> float:
    return float(point["retain"]["nll"] - start["retain"]["nll"])


def at_damage(dial: Sequence[Mapping[str, Any]], start: Mapping[str, Any]) -> float:
    """Return a dial's KL from gold where its retain loss has risen by the damage, linear between its strengths.

    Where it never does, that of its end.
    """
    points = [start, *dial]
    for one, other in pairwise(points):
        low, high = _rise(one, start), _rise(other, start)
        if low <= DAMAGE < high:
            ends = [point["forget"]["kl_gold"] for point in (one, other)]
            return float(np.interp(DAMAGE, [low, high], ends))
    return float(points[-1]["forget"]["kl_gold"])
