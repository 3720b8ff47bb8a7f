"""Tables of `qwen_case_study.py`: values with 95% bootstrap intervals over questions or texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from cells import folded, table

from neuronforget.results.intervals import bootstrap
from neuronforget.suites.rwku import ATTACKS

State = Mapping[str, Any]
#: Table -> head -> column of a state.
PROBES = {
    "forget 1": "forget 1, rouge_l", "forget 2": "forget 2, rouge_l", "forget 3": "forget 3, rouge_l",
    "neighbours 1": "neighbor 1, rouge_l", "neighbours 2": "neighbor 2, rouge_l",
}  # fmt: skip
MEMBERS = {"loss": "AUC, loss", "zlib": "AUC, zlib", "mink 20%": "AUC, min_k@20%", "mink++ 20%": "AUC, min_k++@20%"}
PUBLISHED = {
    "\"loss\" FM": "log-likelihood, FM", "\"loss\" RM": "log-likelihood, RM",
    "mink++ 100% FM": "mink++ k=100%, FM", "mink++ 100% RM": "mink++ k=100%, RM",
    "TriviaQA exact": "triviaqa, exact", "BBH exact": "bbh, exact",
}  # fmt: skip
SCORERS = {
    "TriviaQA exact": "triviaqa, exact", "contains": "triviaqa, contains", "exact, no stop": "triviaqa, exact, no stop",
    "BBH option": "bbh, option", "neighbours exact": "neighbours, exact",
    "neighbours exact, no stop": "neighbours, exact, no stop",
}  # fmt: skip
SHIFT = {"on forget": "shift, forget", "on retain": "shift, retain"}
TOTALS = {"forget": "forget, rouge_l", "neighbours": "neighbours, rouge_l"}


def tables(done: Mapping[str, Any]) -> str:
    """Return all tables in Markdown."""
    shown = list(entries(done["arms"]))
    parts = {
        "RWKU probes": columns(shown, PROBES),
        "What changed": changes(shown),
        "Loss of the texts that erasures are shown": losses(done["arms"]),
        "Membership": columns(shown, MEMBERS),
        "The published columns": columns(shown, PUBLISHED, digits=3),
        "Scorers": columns(shown, SCORERS) + "\n\n" + _constants(done["arms"]["untouched"]["constants"]),
        "Activation shift": columns(shown[1:], SHIFT, digits=3),
    }
    told = [f"### {name}\n\n{text}" for name, text in parts.items()]
    own = {
        kind: f"forget 3, {kind}, rouge_l" for kind in ATTACKS if f"forget 3, {kind}, rouge_l" in shown[0][2]["values"]
    }
    told.append(folded(columns(shown, own), "Level 3 by attack (recall; few questions each)"))
    told.append(folded(cost_table(done), "What each step cost"))
    return "\n\n".join([*told, _failures(done["arms"])]).strip() + "\n"


def entries(arms: Mapping[str, Any]) -> Iterator[tuple[str, str, State]]:
    """Yield (name, strength, state): references, then trainings in full, then every arm where it is tuned."""
    for name in ("untouched", "gold"):
        if name in arms:
            yield name, "", arms[name]
    there = {name: arm for name, arm in arms.items() if "tuned" in arm}
    yield from ((f"{name}, in full", "1", arm["full"]) for name, arm in there.items() if "full" in arm)
    for name, arm in there.items():
        strength = arm["tuned"]["strength"]
        yield name, f"{strength:.2g}", arm if strength else {**arms["untouched"], **arm}


def losses(arms: Mapping[str, Any]) -> str:
    """Return the loss of forget and retain texts, nats a token, before, in full and where each edit is tuned."""
    there = {name: arm for name, arm in arms.items() if "tuned" in arm}
    full = {f"{name}, in full": point for name, arm in there.items() if "full" in arm
            for point in arm["dial"] if point["strength"] == 1}  # fmt: skip
    points = {"untouched": {"strength": 0.0, **arms["untouched"]["losses"]}, **full}
    points |= {name: arm["tuned"] for name, arm in there.items()}
    rows = [[name, f"{point['strength']:.2g}", f"{point['forget']:.2f}", f"{point['retain']:.2f}"]
            for name, point in points.items()]  # fmt: skip
    return table(["model", "strength", "forget texts", "retain texts"], rows)


def cell(found: Mapping[str, float] | None, digits: int = 2) -> str:
    """Return a value and its interval; how many values were NaN, where some were."""
    if found is None:
        return "-"
    text = f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
    return f"{text} ({found['nan']:.0f} NaN)" if found.get("nan") else text


def columns(shown: Sequence[tuple[str, str, State]], wanted: Mapping[str, str], digits: int = 2) -> str:
    """Return a row of every model, and under it how many questions or texts each column is of."""
    rows = [[name, strength, *(cell(state["values"].get(key), digits) for key in wanted.values())]
            for name, strength, state in shown]  # fmt: skip
    last = shown[-1][2]["values"]
    counts = [str(int(last.get(key, {}).get("n", 0))) for key in wanted.values()]
    return table(["model", "strength", *wanted], [*rows, ["*n*", "", *counts]])


def changes(shown: Sequence[tuple[str, str, State]]) -> str:
    """Return after less before, paired by question; of found neurons also less the mean of their random ones."""
    before, rows = shown[0][2], []
    by_name = {name: state for name, _, state in shown}
    for name, _, state in shown[1:]:
        row = [name, *(_paired(_scores(state, key), _scores(before, key)) for key in TOTALS.values())]
        random = [other for label, other in by_name.items() if label.startswith(f"{name.partition('@')[0]}@random")]
        if name.endswith("@found") and random:
            means = [np.mean([_scores(other, key) for other in random], axis=0) for key in TOTALS.values()]
            row += [_paired(_scores(state, key), mean) for key, mean in zip(TOTALS.values(), means, strict=True)]
        rows.append(row + [""] * (5 - len(row)))
    heads = [f"{name}, {less}" for less in ("after less before", "found less random") for name in TOTALS]
    return table(["model", *heads], rows)


def _scores(state: State, key: str) -> np.ndarray:
    return np.array(state["questions"][key])


def _paired(here: np.ndarray, there: np.ndarray) -> str:
    value, low, high = bootstrap(here - there, 0)
    text = f"{value:.2f} [{low:.2f}, {high:.2f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def _constants(found: Mapping[str, Any]) -> str:
    told = (f"{name} {value:.2f} ({text!r})" for name, (text, value) in found.items())
    return f"Best constant answers: {'; '.join(told)}."


def cost_table(done: Mapping[str, Any]) -> str:
    """Return seconds and peak memory of each step."""
    rows = [[step, f"{own['times']:.0f}", f"{own['seconds'] / own['times']:.2f}", f"{own['GiB']:.2f}"]
            for step, own in done["costs"].items()]  # fmt: skip
    return table(["step", "times", "seconds each", "peak GiB"], rows)


def _failures(arms: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name} failed: {arm['failed']}" for name, arm in arms.items() if "failed" in arm)
