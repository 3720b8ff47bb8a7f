"""What did each method do to the neurons? Which fell silent, which learnt to speak against the answers, what moved.

A neuron's direct contribution to an answer is a (w . u): activation, write vector, the answer token's row of the
unembedding less the mean row. Where it was positive and is less, knowledge was taken away (the neuron was silenced);
where it is newly negative, the neuron suppresses. Beside it the shift: how far what a neuron writes (a w) moved, root
mean square over tokens, on forget and on retain; a silenced write vector moves it though the activation stays. All are
split into the found neurons and all others. Each edit as made, and tuned as in `ga_rt_sweep.py`.

python analyses/activation_shift.py --out shift            # three grafted testbeds; a killed run goes on where it was
python analyses/activation_shift.py --out shift --seeds 0  # one of them, a minute on one core
python analyses/activation_shift.py --out shift --model CHECKPOINT --forget forget.jsonl --retain retain.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from cells import cell, folded, many, table, told
from judging import chosen_point, exact, judged, judged_by
from running import asking, each, parsed
from shift_figure import picture
from sources import Source, sources

import neuronforget as nf
from neuronforget.auditing.cases import EDITED, UNTOUCHED, Case, Subject
from neuronforget.auditing.neurons import Moved, moved, write_vectors
from neuronforget.models import frozen
from neuronforget.taps import TorchHooks

LOSSES = ("npo", "ga", "simnpo")
STRENGTHS = (1 / 8, 1 / 4, 1 / 2, 1.0)
STEPS = 60
LISTED = 3  # neurons of each kind
POINTS = {"full": "as made", "tuned": "tuned"}
#: Column -> key of what `about` returns.
COLUMNS = (
    "taken", "taken, in found", "half of it", "suppressing", "suppressing, in found", "suppressing, in edited",
    "shift forget", "shift forget, in found", "shift forget, in edited", "shift retain", "shift retain, in edited",
)  # fmt: skip


def plan(source: Source) -> dict[str, Callable[[], nf.Edit]]:
    """Return how to make each edit, by "method@place"."""
    lm, forget, retain = source.lm, source.forget, source.retain
    found: dict[str, Callable[[], nf.Edit]] = {}
    for place, neurons in source.places.items():
        if neurons is not None:
            found[f"ablate@{place}"] = partial(nf.erase.ablate, lm, neurons)
            found[f"rank_one@{place}"] = partial(nf.erase.rank_one, lm, forget, retain, neurons=neurons)
        for loss in LOSSES:
            found[f"{loss}@{place}"] = partial(
                nf.erase.finetune, lm, forget, retain, loss=getattr(nf.losses, loss), neurons=neurons, steps=STEPS,
                seed=source.seed, progress=False,
            )  # fmt: skip
    order = ["ablate", "rank_one", *LOSSES]
    return dict(sorted(found.items(), key=lambda pair: order.index(pair[0].split("@")[0])))


@torch.no_grad()
def written_shift(lm: nf.LM, other: nf.Edit | nf.LM, corpus: nf.Corpus, batch_size: int = 64) -> np.ndarray:
    """Return by neuron how far what it writes moved: sqrt(mean |a' w' - a w|^2) over tokens, (layer, neuron)."""
    after = Subject(EDITED, other) if isinstance(other, nf.LM) else Subject(EDITED, lm, other)
    total, count = np.zeros(lm.shape), 0
    for batch in lm.batches(corpus, batch_size):
        real = batch.attention_mask.bool().flatten()
        seen = []
        for subject in (Subject(UNTOUCHED, lm), after):
            with subject.on() as now, frozen(now):
                acts = TorchHooks(now)(batch.inputs).acts
                writes = [write.clone() for write in write_vectors(now)]
                seen.append([(acts[site.layer].flatten(0, -2)[real].double(), write.double())
                             for site, write in zip(now.sites, writes, strict=True)])  # fmt: skip
        count += int(real.sum())
        for i, ((a, w), (a2, w2)) in enumerate(zip(*seen, strict=True)):
            square = (a2**2).sum(0) * (w2**2).sum(1) + (a**2).sum(0) * (w**2).sum(1)
            total[i] += (square - 2 * (a * a2).sum(0) * (w * w2).sum(1)).clamp(min=0).cpu().numpy()
    return np.sqrt(total / count)


def about(source: Source, other: nf.Edit | nf.LM, edited: nf.Neurons | None = None) -> dict[str, Any]:
    """Return what an edit (or another model) did to the neurons, and how much of it lies in the found and edited ones.

    Contributions are sums over neurons, in logits for each answer token; shifts are root mean squares over neurons, and
    what lies in some of them is a share of the square. `edited`: None where all were.
    """
    lm, kept = source.lm, source.corpora["retain"]
    after = Subject(EDITED, other) if isinstance(other, nf.LM) else Subject(EDITED, lm, other)
    what = moved(Case((Subject(UNTOUCHED, lm), after), source.forget, kept, seed=source.seed))
    sets = {"found": source.found.mask().numpy()}
    if edited is not None:
        sets["edited"] = edited.mask().numpy()
    row: dict[str, Any] = {"before": float(what.before.sum()), "after": float(what.after.sum())}
    for name, values in (("taken", what.taken), ("suppressing", what.suppressing)):
        row |= {name: float(values.sum())} | {f"{name}, in {who}": _part(values, mine) for who, mine in sets.items()}
        row[f"{name}, by layer"] = values.sum(1).tolist()
    row["half of it"] = _half(what.taken)
    shifts = {"shift forget": written_shift(lm, other, source.forget), "shift retain": written_shift(lm, other, kept)}
    shifts |= {"activation forget": what.shift_forget, "activation retain": what.shift_retain}
    for name, values in shifts.items():
        row[name] = float(np.sqrt((values**2).mean()))
        row |= {f"{name}, in {who}": _part(values**2, mine) for who, mine in sets.items()}
    return {**row, "neurons": _listed(source, what)}


def _half(values: np.ndarray) -> float:
    """How few neurons hold half of it."""
    order = np.sort(values, axis=None)[::-1].cumsum()
    return float(np.searchsorted(order, order[-1] / 2) + 1) if order[-1] > 0 else 0.0


def _part(values: np.ndarray, mine: np.ndarray) -> float:
    return float(values[mine].sum() / values.sum()) if values.sum() > 0 else 0.0


def _listed(source: Source, what: Moved) -> dict[str, list[list[Any]]]:
    """The neurons that lost most and those that suppress most: layer, neuron, before, after, and whether found."""
    mine = source.found.mask().numpy()
    return {
        name: [[source.found.layers[i], j, float(what.before[i, j]), float(what.after[i, j]), bool(mine[i, j])]
               for i, j, _ in rows]
        for name, rows in what.strongest(LISTED).items()
    }  # fmt: skip


def run(source: Source, done: dict[str, Any], only: Sequence[str] | None = None) -> Iterator[str]:
    """Fill `done`, "method@place" -> what each point of it did and measured, saying which is finished."""
    start = {"strength": 0.0, **source.values(source.lm)}
    if "gold" not in done and source.gold is not None:
        point = {"strength": 1.0, **source.values(source.gold), "moved": about(source, source.gold)}
        done["gold"] = {"full": point, "tuned": point}
        yield "gold"
    for name, make in plan(source).items():
        if name in done or (only is not None and name.split("@")[0] not in only):
            continue
        try:
            edit = make()
        except nf.InputError as error:  # one method's failure is a finding
            done[name] = {"failed": str(error)}
            continue
        points = [source.point(edit, strength) for strength in STRENGTHS]
        done[name] = {"full": points[-1], "tuned": chosen_point(points, start)}
        made: dict[float, Any] = {}
        edited = source.places[name.split("@")[1]]
        for point in done[name].values():
            if (strength := point["strength"]) > 0:
                made.setdefault(strength, None)
                made[strength] = made[strength] or about(source, edit.scaled(strength), edited)
                point["moved"] = made[strength]
        yield name


def tables(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return what each method did, as made and tuned, and the first seed's strongest neurons."""
    parts = []
    for point, words in POINTS.items():
        rows = []
        for name in seeds[0]:
            made = [seed[name][point] for seed in seeds if "moved" in seed.get(name, {}).get(point, {})]
            if not made:
                rows.append([name, f"0 of {len(seeds)}", *[""] * (len(COLUMNS) + 2)])
                continue
            row = [name, f"{len(made)} of {len(seeds)}"]
            row += [cell([exact(m, corpus) for m in made]) for corpus in ("unseen", "retain")]
            rows.append([*row, *(_shown(made, column) for column in COLUMNS)])
        known = [arm[at] for seed in seeds for arm in seed.values() for at in POINTS if "forget" in arm.get(at, {})]
        asked = "forget unseen" if any("unseen" in there for there in known) else "forget"
        head = ["method", "seeds", asked, "retain", *COLUMNS]
        parts.append(f"## {words.capitalize()} ({many(len(seeds))})\n\n" + table(head, rows))
    beside = "Beside the gold twin, and in" if "gold" in seeds[0] else "In the last layer, and in"
    parts.append(f"## {beside} activations alone (as made)\n\n" + _beside(seeds))
    listed = [
        [name, kind, f"{layer}.{neuron}", f"{before:.2f}", f"{after:.2f}", "yes" if mine else ""]
        for name, arm in seeds[0].items()
        for kind, rows in arm.get("full", {}).get("moved", {}).get("neurons", {}).items()
        for layer, neuron, before, after, mine in rows
    ]
    head = ["method", "", "layer.neuron", "before", "after", "found"]
    return "\n\n".join([*parts, folded(table(head, listed), "The strongest neurons of the first seed, as made")]) + "\n"


def _beside(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Less the gold twin, paired over seeds; shares of the last layer; how far the activations themselves moved."""
    rows, compared = [], ("taken", "suppressing", "taken, in found") if "gold" in seeds[0] else ()
    for name in seeds[0]:
        if not all("moved" in seed.get(name, {}).get("full", {}) for seed in seeds):
            continue
        made = [seed[name]["full"] for seed in seeds]
        row, far = [name, cell([judged(m) for m in made])], judged_by(made[0])
        for key in compared:
            less = [m["moved"][key] - seed["gold"]["full"]["moved"][key] for m, seed in zip(made, seeds, strict=True)]
            row.append(told(less))
        row += [cell([m["moved"][f"{key}, by layer"][-1] / (m["moved"][key] or 1.0) for m in made])
                for key in ("taken", "suppressing")]  # fmt: skip
        shifts = {"activation forget": 3, "activation forget, in found": 2, "activation retain": 3}
        row += [cell([m["moved"][key] for m in made], digits) for key, digits in shifts.items()]
        rows.append(row)
    if not rows:
        return "No edit could be made in every seed."
    less = [f"{key}, less gold" for key in compared]
    last = [f"{key}, last layer" for key in ("taken", "suppressing")]
    return table(["method", far, *less, *last, "activations, forget", "in found", "activations, retain"], rows)


def _shown(made: Sequence[Mapping[str, Any]], column: str) -> str:
    """A column's mean over seeds; nothing where it has no meaning (all neurons were edited)."""
    values = [point["moved"][column] for point in made if column in point["moved"]]
    return (
        cell(values, 0 if column == "half of it" else 3 if column in ("shift forget", "shift retain") else 2)
        if values
        else ""
    )


def main() -> None:
    """Edit every seed's model, write `shift.json` (as the work goes on), `tables.md` and `shift.svg`."""
    options = parsed(asking(__doc__, seeds=range(3)))
    each(options, sources(options), "shift.json", run, tables, {"shift.svg": picture})


if __name__ == "__main__":
    main()
