"""What a comparison found, in words: each sentence is read off the results, the unwelcome ones too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from neuronforget.neurons import Neurons
from neuronforget.results import Results

NEAR = 0.05  # accuracy within which an edit is said to reach the gold twin
COST = 0.01  # retain accuracy that counts as damage


def describe(
    results: Results, neurons: Neurons | None = None, truth: Neurons | None = None, controls: Sequence[Neurons] = ()
) -> Iterator[str]:
    """Yield one finding after the other; those whose inputs are missing are left out."""
    frame = results.frame
    edits = dict(zip(frame["edit"], frame["scope"], strict=True))
    start = results.value("untouched", "forget")
    floor = results.value("gold", "forget") if "gold" in edits else None
    yield _before(results, start, floor)
    if truth is not None and neurons is not None:
        yield _localisation(neurons, truth, controls)
    if "ablate" in edits:
        yield _ablation(results, floor)
    yield from _controls(results, edits)
    yield from _trained(results, edits)
    yield from _destroyed(results, edits)
    yield from _unseen(results, edits)
    yield from _matched(results, edits)
    if floor is not None:
        yield from _over_erased(results, edits, floor)
    yield (
        "Not checked here: whether the knowledge comes back by relearning, quantisation or other prompts. "
        "A low forget accuracy alone does not tell erased from hidden."
    )


def _before(results: Results, start: float, floor: float | None) -> str:
    kept = results.value("untouched", "retain")
    text = f"Before any edit the model answers {start:.1%} of the forget and {kept:.1%} of the retain questions."
    if start < 0.5:
        text += " It hardly knew the forget corpus by exact match: read the probability and loss columns instead."
    if floor is not None:
        text += f" The gold twin, which never saw the forget corpus, answers {floor:.1%} of it: that is the target."
    return text


def _localisation(neurons: Neurons, truth: Neurons, controls: Sequence[Neurons]) -> str:
    text = f"The selection of {len(neurons)} neurons holds {neurons.recall(truth):.0%} of the {len(truth)} true ones"
    if controls:
        chance = sum(c.recall(truth) for c in controls) / len(controls)
        text += f"; the controls, drawn from the other neurons, hold {chance:.0%}, a blind draw would hold "
        text += f"{len(neurons) / (len(neurons.layers) * neurons.width):.0%}"
    return text + "."


def _ablation(results: Results, floor: float | None) -> str:
    left, kept = results.value("ablate", "forget"), results.value("ablate", "retain")
    cost = results.value("untouched", "retain") - kept
    text = f"Ablating it leaves {left:.1%} of the forget answers and costs {100 * cost:.1f} points of retain accuracy."
    if floor is not None:
        text += (
            f" It {'is' if abs(left - floor) <= NEAR else 'is not'} within {100 * NEAR:.0f} points of the gold twin."
        )
    return text


def _controls(results: Results, edits: dict[str, str]) -> Iterator[str]:
    names = [name for name, scope in edits.items() if scope == "control" and name.startswith("ablate@")]
    if not names or "ablate" not in edits:
        return
    start, left = results.value("untouched", "forget"), results.value("ablate", "forget")
    values = [results.value(name, "forget") for name in names]
    if start - left <= 2 * COST:
        verdict = (
            "neither they nor the selection do much: this knowledge does not hang on the neurons that the score found"
        )
    elif start - min(values) <= 2 * COST:
        verdict = "random neurons do nothing"
    elif min(values) <= left:
        verdict = "no less than the selection does, so its location explains nothing"
    else:
        verdict = "so a part of what ablation does needs no localisation"
    yield (
        f"Ablating as many other neurons ({len(names)} random and matched controls) leaves "
        f"{min(values):.1%} to {max(values):.1%}: {verdict}."
    )


def _trained(results: Results, edits: dict[str, str]) -> Iterator[str]:
    """Does it matter which neurons are changed? Asked at matched damage, since at full strength both may forget."""
    for method in ("npo", "ga", "rank_one"):
        here, there = f"{method}@neurons", f"{method}@random 0"
        if here not in edits or there not in edits:
            continue
        full = [results.value(name, "forget") for name in (here, there)]
        text = f"{method} leaves {full[0]:.1%} of the forget answers on selected neurons, {full[1]:.1%} on random ones"
        matched = [_matched_row(results, name) for name in (here, there)]
        if matched[0] is None or matched[1] is None:
            yield text + "."
            continue
        yield (
            f"{text}; at equal retain damage {matched[0]['value']:.1%} against {matched[1]['value']:.1%}: "
            f"{_verdict(matched[0], matched[1])}."
        )


def _verdict(here: dict[str, Any], there: dict[str, Any]) -> str:
    """Compare two rows by their intervals: what overlaps is not called a difference."""
    if here["high"] < there["low"]:
        return "selecting them helped"
    if there["high"] < here["low"]:
        return "random neurons did better"
    return "selecting them made no clear difference"


def _destroyed(results: Results, edits: dict[str, str]) -> Iterator[str]:
    start = results.value("untouched", "retain")
    lost = {n: start - results.value(n, "retain") for n, scope in edits.items() if scope in ("full", "neurons")}
    bad = {name: value for name, value in lost.items() if value > 0.1}
    if bad:
        listed = ", ".join(
            f"{name} ({100 * value:.0f} points)" for name, value in sorted(bad.items(), key=lambda x: -x[1])
        )
        yield f"Destroyed retained knowledge at full strength: {listed}. What they forgot is damage, not erasure."


def _unseen(results: Results, edits: dict[str, str]) -> Iterator[str]:
    """Are phrasings that the erasure never saw still answered? Asked at matched damage, else at full strength."""
    if not (results.frame["corpus"] == "forget unseen").any():
        return
    point = "matched" if (results.frame["point"] == "matched").any() else "full"
    names = [name for name, scope in edits.items() if scope in ("full", "neurons")]
    pairs = {n: [results.value(n, c, point=point) for c in ("forget", "forget unseen")] for n in names}
    worse = {name: pair for name, pair in pairs.items() if pair[1] - pair[0] > NEAR}
    when = "at matched damage" if point == "matched" else "at full strength"
    if worse:
        listed = ", ".join(f"{name} ({pair[0]:.1%} as trained, {pair[1]:.1%} unseen)" for name, pair in worse.items())
        yield f"Questions in phrasings that the erasure never saw are still answered more often, {when}: {listed}."
    else:
        yield f"No method leaves unseen phrasings answered more than 5 points more often than the trained ones, {when}."


def _matched(results: Results, edits: dict[str, str]) -> Iterator[str]:
    budget = results.info.get("damage_budget")
    found = {n: _matched_row(results, n) for n, scope in edits.items() if scope in ("full", "neurons")}
    known = {n: row for n, row in found.items() if row is not None}
    if budget is None or not known:
        return
    order = sorted(known, key=lambda n: known[n]["value"])
    listed = ", ".join(f"{n} {known[n]['value']:.1%}" for n in order)
    yield f"With the retain loss allowed to rise by {budget:g} nats, the forget answers left are: {listed}."
    whole, aimed = ([n for n in order if edits[n] == scope] for scope in ("full", "neurons"))
    if whole and aimed:
        best, rest = known[aimed[0]], known[whole[0]]
        verdict = "neither is clearly better"
        if best["high"] < rest["low"]:
            verdict = "the neuron-level edit is better"
        elif rest["high"] < best["low"]:
            verdict = "full-model training is better"
        yield (
            f"The best neuron-level edit there ({aimed[0]}, {best['value']:.1%}) beside the best full-model one "
            f"({whole[0]}, {rest['value']:.1%}): {verdict} in accuracy."
        )


def _over_erased(results: Results, edits: dict[str, str], floor: float) -> Iterator[str]:
    if not (results.frame["metric"] == "kl_gold").any():
        return
    values = {n: results.value(n, "forget", "kl_gold") for n, scope in edits.items() if scope in ("full", "neurons")}
    nearest, farthest = min(values, key=lambda n: values[n]), max(values, key=lambda n: values[n])
    yield (
        f"Closest to the gold twin's answers on the forget questions is {nearest} ({values[nearest]:.2f} nats); "
        f"farthest is {farthest} ({values[farthest]:.2f} nats; the untouched model: "
        f"{results.value('untouched', 'forget', 'kl_gold'):.2f}). Far from gold with low accuracy means over-erased."
    )


def _matched_row(results: Results, name: str) -> dict[str, Any] | None:
    wanted = (name, "forget", "matched", "exact_match")
    rows = (r for r in results.rows if (r["edit"], r["corpus"], r["point"], r["metric"]) == wanted)
    return next(rows, None)
