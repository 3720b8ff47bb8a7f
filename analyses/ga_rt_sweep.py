"""What does the weight beside gradient ascent buy? Forgetting against retaining, over the weight of the other term.

    retain     -NLL_forget + w NLL_retain    (grad_diff: ascent and the retain term)
    refusal    -NLL_forget + w NLL_refusal   (ga_rt: ascent and rejection tuning; no retain term)

On the found neurons, the whole model and random neurons, each at full strength, and tuned along a dial: of the
strengths that raise the retain loss by at most .05 nats, the one whose forget answers are closest to the gold twin's
(without a twin: the least likely). w = 0 is gradient ascent alone, and one arm for both.

python analyses/ga_rt_sweep.py --out ga_rt            # three grafted testbeds; a killed run goes on where it was
python analyses/ga_rt_sweep.py --out ga_rt --seeds 0  # one of them, a minute and a half on one core
python analyses/ga_rt_sweep.py --out ga_rt --model CHECKPOINT --forget forget.jsonl --retain retain.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from cells import cell, many, table, told
from ga_rt_figure import picture
from judging import DAMAGE, chosen_point
from running import asking, each, parsed
from sources import Source, sources

import neuronforget as nf
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import exact_match

#: Term -> how the loss is made for a weight.
TERMS: dict[str, Callable[[float], Any]] = {
    "retain": lambda weight: partial(nf.losses.grad_diff, alpha=weight),
    "refusal": lambda weight: partial(nf.losses.ga_rt, weight=weight),
}
WEIGHTS = (0.0, 0.25, 1.0, 4.0, 16.0)
STRENGTHS = (1 / 8, 1 / 4, 1 / 2, 1.0)
STEPS = 60
COLUMNS = {
    "forget": ("forget", "exact_match"),
    "unseen": ("unseen", "exact_match"),
    "retain": ("retain", "exact_match"),
    "loss unseen": ("unseen", "nll"),
    "loss forget": ("forget", "nll"),
    "KL unseen": ("unseen", "kl_gold"),
    "KL forget": ("forget", "kl_gold"),
    "KL retain": ("retain", "kl_gold"),
    "unseen refused": ("refused", "unseen"),
    "retain refused": ("refused", "retain"),
}
#: How far an arm has come: by the twin, or where there is none by the loss; in unseen phrasings, where there are some.
FAR = ("KL unseen", "KL forget", "loss unseen", "loss forget")
Arms = Mapping[str, Any]


def arm(source: Source, term: str, weight: float, neurons: nf.Neurons | None, start: Any) -> dict[str, Any]:
    """Return the dial of one training, its point at full strength and the tuned one."""
    loss = TERMS[term](weight) if weight else nf.losses.ga
    try:
        edit = nf.erase.finetune(source.lm, source.forget, source.retain, loss=loss, neurons=neurons, steps=STEPS,
                                 preferred=source.refusals, seed=source.seed, progress=False)  # fmt: skip
    except nf.InputError as error:  # a training that diverges is a finding
        return {"failed": str(error)}
    dial = [source.point(edit, strength) for strength in STRENGTHS]
    with edit.on(source.lm) as edited:
        dial[-1]["refused"] = refused(source, edited)
    return {"dial": dial, "full": dial[-1], "tuned": chosen_point(dial, start)}


def refused(source: Source, lm: nf.LM) -> dict[str, float]:
    """Return corpus -> share of its prompts that are answered by the refusal."""
    shares = {}
    for name, corpus in source.corpora.items():
        asked = replace(corpus, examples=tuple(replace(e, answer=source.refusals[0]) for e in corpus))
        shares[name] = float(measure(lm, asked, [exact_match])["exact_match"].mean())
    return shares


def name_of(term: str, weight: float, place: str) -> str:
    """Return an arm's name; without weight there is no term."""
    return f"{term if weight else 'ascent'}|{weight:g}|{place}"


def run(source: Source, done: dict[str, Any], weights: Sequence[float] = WEIGHTS) -> Iterator[str]:
    """Fill `done`, "term|weight|place" -> arm, saying which is finished."""
    if "untouched" not in done:
        for name, lm in (("untouched", source.lm), *([("gold", source.gold)] if source.gold is not None else [])):
            point = {"strength": 0.0, **source.values(lm)}
            done[name] = {"full": {**point, "refused": refused(source, lm)}, "tuned": point}
        yield "references"
    for term in TERMS:
        for weight in weights:
            for place, neurons in source.places.items():
                if (key := name_of(term, weight, place)) not in done:
                    done[key] = arm(source, term, weight, neurons, done["untouched"]["tuned"])
                    yield key


def column(seeds: Sequence[Arms], key: str, point: str, name: str) -> list[float]:
    """Return one figure of an arm in each seed; nothing where a seed has no such arm or figure."""
    corpus, metric = COLUMNS[name]
    found = [seed[key][point].get(corpus, {}) for seed in seeds if point in seed.get(key, {})]
    values = [row[metric] for row in found if metric in row]
    return values if len(values) == len(seeds) else []


def tables(seeds: Sequence[Arms]) -> str:
    """Return all tables in Markdown: the weights at full strength and tuned, what the place does, what failed."""
    keys = [key for key in seeds[0] if key.count("|") == 2]
    parts = [f"## References ({many(len(seeds))})", _rows(seeds, [k for k in seeds[0] if k not in keys], "full")]
    for point in ("full", "tuned"):
        words = {"full": "At full strength", "tuned": f"Tuned: retain loss up by at most {DAMAGE}"}[point]
        parts += [f"## {words}", _rows(seeds, keys, point)]
    parts += ["## What the place and the weight do", _paired(seeds, keys)]
    failed = [f"- {key}: {seed[key]['failed']}" for seed in seeds for key in keys if "failed" in seed[key]]
    return "\n\n".join([*parts, *(["## Not made", "\n".join(failed)] if failed else [])]) + "\n"


def far_by(seeds: Sequence[Arms]) -> str:
    """Return the column that says how far an arm has come: the first of `FAR` that there is."""
    return next(name for name in FAR if column(seeds, "untouched", "tuned", name))


def _rows(seeds: Sequence[Arms], keys: Sequence[str], point: str) -> str:
    other = {*FAR} - {far_by(seeds)}  # of what says how far an arm has come one column is shown
    columns = [n for n in COLUMNS if n not in other and any(column(seeds, key, point, n) for key in keys)]
    rows = []
    for key in keys:
        term, weight, place = key.split("|") if "|" in key else (key, "", "")
        cells = [cell(column(seeds, key, point, name)) if column(seeds, key, point, name) else "" for name in columns]
        strengths = sorted({f"{seed[key][point]['strength']:.3g}" for seed in seeds if point in seed[key]}, key=float)
        rows.append([term, weight, place, " to ".join(dict.fromkeys((*strengths[:1], *strengths[-1:]))), *cells])
    return table(["term", "weight", "place", "strength", *columns], rows)


def _paired(seeds: Sequence[Arms], keys: Sequence[str]) -> str:
    """Paired over seeds: KL on unseen phrasings, tuned (without a twin: their loss); bold where told apart."""
    name = far_by(seeds)
    rows = []
    for key in (key for key in keys if key.endswith("|found")):
        term, weight, _ = key.split("|")
        pairs = [(key, f"{term}|{weight}|random"), (key, f"{term}|{weight}|full")]
        pairs += [(f"{term}|{weight}|{place}", f"ascent|0|{place}") for place in ("found", "full", "random")]
        rows.append([term, weight, *(_less(seeds, a, b, name) if a != b else "" for a, b in pairs)])
    less = ["found less random", "found less full", *(f"{p}: less ascent alone" for p in ("found", "full", "random"))]
    return f"{name}, tuned.\n\n" + table(["term", "weight", *less], rows)


def _less(seeds: Sequence[Arms], key: str, other: str, name: str) -> str:
    pair = column(seeds, key, "tuned", name), column(seeds, other, "tuned", name)
    if not all(pair):
        return ""
    return told((np.array(pair[0]) - np.array(pair[1])).tolist())


def main() -> None:
    """Sweep on every seed, write `sweep.json` (as the work goes on), `tables.md` and `ga-rt.svg`."""
    options = parsed(asking(__doc__, seeds=range(3)))
    pictures = {"ga-rt.svg": partial(picture, weights=WEIGHTS)}
    each(options, sources(options), "sweep.json", run, tables, pictures)


if __name__ == "__main__":
    main()
