"""What a comparison found, in words: each sentence is read off the results, the unwelcome ones too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
        text += f" The gold twin, which never saw the forget corpus, answers {floor:.1%}: that, not 0%, is the target."
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
    if names:
        values = [results.value(name, "forget") for name in names]
        drop = results.value("untouched", "forget") - min(values)
        verdict = "random neurons do nothing" if drop <= COST * 2 else "so a part of the effect needs no localisation"
        yield (
            f"Ablating as many other neurons ({len(names)} random and matched controls) leaves "
            f"{min(values):.1%} to {max(values):.1%}: {verdict}."
        )


def _trained(results: Results, edits: dict[str, str]) -> Iterator[str]:
    """Does it matter which neurons are trained? Asked at matched damage, since at full strength both may forget."""
    for loss in ("npo", "ga", "rank_one"):
        here, there = f"{loss}@neurons", f"{loss}@random 0"
        if here not in edits or there not in edits:
            continue
        full = [results.value(name, "forget") for name in (here, there)]
        matched = [_at(results, name, "forget") for name in (here, there)]
        text = f"{loss} leaves {full[0]:.1%} of the forget answers on selected neurons, {full[1]:.1%} on random ones"
        if None in matched:
            yield text + "."
            continue
        gap = matched[1] - matched[0]  # type: ignore[operator]
        verdict = (
            "selecting them helped"
            if gap > 0.05
            else "selecting them did not help"
            if gap > -0.05
            else "random neurons did better"
        )
        yield f"{text}; at equal retain damage {matched[0]:.1%} against {matched[1]:.1%}: {verdict}."


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
    if not (results.frame["corpus"] == "forget unseen").any():
        return
    leaks = {}
    for name, scope in edits.items():
        if scope in ("full", "neurons"):
            leaks[name] = results.value(name, "forget unseen") - results.value(name, "forget")
    worse = {name: value for name, value in leaks.items() if value > 0.05}
    if worse:
        listed = ", ".join(f"{name} (+{100 * value:.0f} points)" for name, value in worse.items())
        yield f"Questions in a phrasing that the erasure never saw are still answered more often after: {listed}."
    else:
        yield "No method leaves unseen phrasings answered more than 5 points more often than the trained ones."


def _matched(results: Results, edits: dict[str, str]) -> Iterator[str]:
    budget = results.info.get("damage_budget")
    found = {n: _at(results, n, "forget") for n, scope in edits.items() if scope in ("full", "neurons")}
    known = {n: v for n, v in found.items() if v is not None}
    if budget is None or not known:
        return
    order = sorted(known, key=lambda n: known[n])
    listed = ", ".join(f"{n} {known[n]:.1%}" for n in order)
    yield f"With the retain loss allowed to rise by {budget:g} nats, the forget answers left are: {listed}."
    whole = [n for n in order if edits[n] == "full"]
    aimed = [n for n in order if edits[n] == "neurons"]
    if whole and aimed:
        best = "a neuron-level edit" if known[aimed[0]] < known[whole[0]] - 0.01 else "full-model training"
        if abs(known[aimed[0]] - known[whole[0]]) <= 0.01:
            best = "neither"
        yield f"At that damage the best is {best} ({aimed[0]} {known[aimed[0]]:.1%}, {whole[0]} {known[whole[0]]:.1%})."


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


def _at(results: Results, name: str, corpus: str) -> float | None:
    rows = [r for r in results.rows if (r["edit"], r["corpus"], r["point"]) == (name, corpus, "matched")]
    values = [r["value"] for r in rows if r["metric"] == "exact_match"]
    return values[0] if values else None
