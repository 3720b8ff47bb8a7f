"""Does localisation inform erasure? The advantage of chosen over random neurons, regressed on layer, count, operator.

Ordinary testbeds, whole people. Sets that lie in one layer or in all alike, of a few sizes, chosen by a score or at
random in the same layers, edited by several operators and tuned alike (`regime_map.py`). Two regressions by least
squares, on each seed alone, shown as means over seeds with Student's 95% intervals:

    advantage = KL(random) - KL(chosen), nats, on operator, layer and doublings of the count
    KL itself on operator, count, layer, and last whether the neurons were chosen: what each adds to R^2

(of a model of one's own without a gold twin the answers' log-probability in place of the KL), after Hase et al. 2023
(arXiv:2301.04213), who asked this of editing.

python analyses/informs_erasure.py --out informs             # three seeds; a killed run goes on where it was
python analyses/informs_erasure.py --out informs --seeds 5   # one, some three minutes on one core
python analyses/informs_erasure.py --out informs --map regimes --seeds 0 1 2 3 4  # the points of regime_map.py
python analyses/informs_erasure.py --out informs --model CHECKPOINT --forget forget.jsonl --retain retain.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cells import cell, many, table, verdict
from informs_figure import coefficients_drawn
from judging import judged, judged_by
from regime_map import SHAPE, arm, source_of, whole_people
from regime_tables import by_chance, closeness, places, selections
from running import asking, each, in_one_line, kept, parsed
from sources import OWN, Source, sources

import neuronforget as nf

OPERATORS = ("ablate", "rank_one", "simnpo")
COUNTS = (2, 16)  # neurons of the set, as multiples of the model's layers
LAYERS = 4  # that are tried alone: of a deeper model four, evenly spread
#: Of those that regime_map.py tried the best for ablation on whole people: seen on its seeds, 0 to 4, tried on others.
SCORE = nf.scores.fisher
SEEDS = [5, 6, 7]
WIDTH = SHAPE.layers * SHAPE.d_mlp  # neurons of the testbed
WORDS = {"chosen": "{further} with chosen neurons", "random": "{further} with random ones", "": "not told apart"}
FURTHER = {"KL": "closer to gold", "log p": "less is left"}  # what is judged by -> what an advantage is

Row = dict[str, Any]  # seed, operator, layer, count, chosen, and what is left of the answers


def run(source: Source, done: dict[str, Any]) -> Iterator[str]:
    """Fill `done`, "operator|layer|count|chosen or random" -> what is left of the answers (`judged`), tuned."""
    start = source.point(None, 0)
    scores, depth = source.scored(SCORE), source.lm.shape[0]
    alone = sorted({round(i) for i in np.linspace(0, depth - 1, min(LAYERS, depth))})
    layers = {"all": list(range(depth)), **{str(scores.layers[i]): [i] for i in alone}}
    for name, rows in layers.items():
        for count in (times * depth for times in COUNTS):
            chosen = best_of(scores, rows, count)
            for kind, neurons in (("chosen", chosen), ("random", chosen.random_like(source.seed))):
                for operator in OPERATORS:
                    if (key := f"{operator}|{name}|{count}|{kind}") not in done:
                        made = arm(source, operator, neurons, start, relearn=False)
                        done[key] = judged(made["tuned"]) if "tuned" in made else None
                        yield key


def best_of(scores: Any, rows: Sequence[int], count: int) -> nf.Neurons:
    """Return the best neurons of some layers (rows of the scores), equally many in each."""
    each = count // len(rows)
    members = {(scores.layers[i], int(j)) for i in rows for j in scores.values[i].argsort(descending=True)[:each]}
    return nf.Neurons(frozenset(members), tuple(scores.layers), scores.values.shape[1])


def rows_of(done: Mapping[str, Any]) -> list[Row]:
    """Return one seed's points as rows; edits that could not be made are left out."""
    rows = []
    for key, kl in done.items():
        operator, layer, count, kind = key.split("|")
        if kl is not None:
            rows.append(
                {"operator": operator, "layer": layer, "count": int(count), "chosen": kind == "chosen", "left": kl}
            )
    return rows


def rows_of_map(arms: Mapping[str, Any], bed: str, width: int) -> list[Row]:
    """Return one bed and seed of `regime_map.py` as rows; the random ones are the mean of its draws."""
    rows = []
    for operator, size in places(arms):
        about = {"operator": operator, "layer": "all", "count": float(size) * width, "request": bed}
        rows += [{**about, "selection": n, "chosen": True, "left": closeness(arms, operator, size, n)}
                 for n in selections(arms)]  # fmt: skip
        rows += [{**about, "selection": n, "chosen": False, "left": by_chance(arms, operator, size)}
                 for n in selections(arms)]  # fmt: skip
    return [row for row in rows if np.isfinite(row["left"])]


def advantages(rows: Sequence[Row]) -> list[Row]:
    """Return chosen less random, positive where the chosen are closer to gold, one row a pair."""
    same = [name for name in (rows[0] if rows else ()) if name not in ("left", "chosen")]
    random = {tuple(row[n] for n in same): row["left"] for row in rows if not row["chosen"]}
    pairs = [(row, random.get(tuple(row[n] for n in same))) for row in rows if row["chosen"]]
    return [{**{n: row[n] for n in same}, "advantage": kl - row["left"]} for row, kl in pairs if kl is not None]


def design(rows: Sequence[Row], factors: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the columns of a regression: deviations from the mean level of each factor, doublings of the count.

    The levels of a factor sum to zero, so the intercept is the mean over them, at the middle count.
    """
    names, columns = ["mean"], [np.ones(len(rows))]
    for factor in factors:
        if factor == "count":
            doublings = np.log2([row["count"] for row in rows])
            names, columns = [*names, "each doubling of the count"], [*columns, doublings - doublings.mean()]
            continue
        levels = list(dict.fromkeys(row[factor] for row in rows))
        last = np.array([row[factor] == levels[-1] for row in rows], dtype=float)
        for level in levels[:-1]:
            names.append(f"{factor} {level}")
            columns.append(np.array([row[factor] == level for row in rows], dtype=float) - last)
    return names, np.stack(columns, 1)


def fitted(rows: Sequence[Row], target: str, factors: Sequence[str]) -> tuple[dict[str, float], float]:
    """Return coefficients (of a factor's last level too: minus the sum of the others) and R^2, by least squares."""
    names, x = design(rows, factors)
    y = np.array([row[target] for row in rows], dtype=float)
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    made, found = dict(zip(names, beta.tolist(), strict=True)), {"mean": float(beta[0])}
    for factor in factors:
        if factor == "count":
            found["each doubling of the count"] = made["each doubling of the count"]
            continue
        levels = [f"{factor} {level}" for level in dict.fromkeys(row[factor] for row in rows)]
        found |= {level: made[level] for level in levels[:-1]}
        found[levels[-1]] = -sum(made[level] for level in levels[:-1])
    total = float(((y - y.mean()) ** 2).sum())
    return found, 1 - float(((y - x @ beta) ** 2).sum()) / total if total > 0 else 0.0


def factors_of(rows: Sequence[Row]) -> list[str]:
    """Return what varies in these points, in the order in which it is added."""
    wanted = ("request", "operator", "count", "layer", "selection")
    return [name for name in wanted if len({row.get(name) for row in rows}) > 1]


def in_all(seeds: Sequence[Sequence[Row]]) -> Sequence[Sequence[Row]]:
    """Return the points of levels that no seed lacks. Raises InputError where none are left."""
    for factor in ("operator", "layer", "request", "selection"):
        made = set.intersection(*({row.get(factor) for row in advantages(rows)} for rows in seeds))
        seeds = [[row for row in rows if row.get(factor) in made] for rows in seeds]
    if not all(seeds):
        raise nf.InputError("no pair of chosen and random neurons was edited in every seed")
    return seeds


def regressions(seeds: Sequence[Sequence[Row]]) -> tuple[dict[str, list[float]], list[tuple[str, list[float]]]]:
    """Return coefficient -> its value in each seed, and the R^2 of what is left as factors are added."""
    seeds = in_all(seeds)
    factors = factors_of(seeds[0])
    fits = [fitted(advantages(rows), "advantage", factors) for rows in seeds]
    steps, added = [], []
    for factor in [*(f for f in factors if f != "selection"), "chosen"]:
        steps.append(factor)
        added.append((f"+ {factor}", [fitted(rows, "left", steps)[1] for rows in seeds]))
    coefficients = {name: [fit[0][name] for fit in fits] for name in fits[0][0]}
    return {**coefficients, "R^2": [fit[1] for fit in fits]}, added


def tables(seeds: Sequence[Sequence[Row]], kind: str = "KL") -> str:
    """Return both regressions in Markdown, and one sentence of each; `kind` is what is judged by."""
    coefficients, added = regressions(seeds)
    said = WORDS[_word(coefficients["mean"])].format(further=FURTHER[kind])
    *others, final = factors_of(in_all(seeds)[0]) or ["the mean"]
    explain = f"{', '.join(others)} and {final} explain" if others else f"{final} explains"
    lines = [[name, cell(values, 3), _apart(name, values)] for name, values in coefficients.items()]
    before = [last for _, last in added[:1]] + [values for _, values in added[:-1]]
    steps = [[name, cell(values), cell((np.array(values) - np.array(then)).tolist(), 3) if i else ""]
             for i, ((name, values), then) in enumerate(zip(added, before, strict=True))]  # fmt: skip
    edits = sum(len(rows) for rows in seeds)
    words = (f"Mean advantage of chosen neurons: {cell(coefficients['mean'])} nats ({said}); "
             f"{explain} {cell(coefficients['R^2'])} of its variance.")  # fmt: skip
    return "\n\n".join([
        f"## The advantage over random neurons, nats ({many(len(seeds))}, {edits} edits)", words,
        table(["term", "coefficient", "told apart"], lines),
        f"## {kind} itself: what each factor adds", table(["model", "R^2", "added"], steps),
    ]) + "\n"  # fmt: skip


def _apart(name: str, values: Sequence[float]) -> str:
    """In which direction an interval excludes zero: the mean's is the chosen neurons' or the random ones'."""
    more, less = ("chosen", "random") if name == "mean" else ("more", "less")
    return "" if name == "R^2" else {"chosen": more, "random": less}.get(_word(values), "")


def _word(values: Sequence[float]) -> str:
    return {"higher": "chosen", "lower": "random"}.get(verdict(values), "")


def picture(seeds: Sequence[Sequence[Row]], kind: str = "KL") -> str:
    """Return the coefficients with their intervals as SVG."""
    return coefficients_drawn(regressions(seeds)[0], len(seeds), kind)


def main() -> None:
    """Make the points (or read a map's), write `points.json` (as the work goes on), `tables.md` and `informs.svg`."""
    parser = asking(__doc__, SEEDS)
    parser.add_argument("--map", type=Path, help="folder of regime_map.py: its points, of testbeds where it has any")
    options = parsed(parser)
    if options.map is None:
        kind = "KL" if options.model is None or options.gold else "log p"
        found = sources(options, lambda seed: source_of(whole_people(seed), seed))
        shown, drawn = partial(_of_points, tables, kind), partial(_of_points, picture, kind)
        each(options, found, "points.json", run, shown, {"informs.svg": drawn})
        return
    if options.model is not None:
        raise SystemExit("--map holds points that were measured: it takes no --model")
    kinds = kept(options.map / "map.json", "beds")
    beds = {key: arms for key, arms in kinds.items() if not key.startswith(OWN)} or kinds
    chosen = [[row for key, arms in beds.items() if key.endswith(f" {seed}")
               for row in rows_of_map(arms, key.rsplit(" ", 1)[0], WIDTH)] for seed in options.seeds]  # fmt: skip
    if not all(chosen):
        raise SystemExit(f"{options.map / 'map.json'} has not every seed of {options.seeds}")
    kind = judged_by(next(iter(beds.values()))["untouched"]["tuned"]).rsplit(" ", 1)[0]
    with in_one_line():
        text, drawing = tables(chosen, kind), picture(chosen, kind)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "tables.md").write_text(text)
    (options.out / "informs.svg").write_text(drawing)
    print(text)


def _of_points(show: Callable[[Sequence[Sequence[Row]], str], str], kind: str, seeds: Sequence[Any]) -> str:
    return show([rows_of(seed) for seed in seeds], kind)


if __name__ == "__main__":
    main()
