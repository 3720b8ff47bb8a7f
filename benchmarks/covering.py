"""How often do our intervals, and verdicts, hold what they should? `python benchmarks/covering.py`

Simulated data of a known mean and of a known AUC, and what is claimed where nothing differs (`claiming`). Writes
results/<date>-<device>-coverage.json and .md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "kernels")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench_results import environment, table_of, write_results  # noqa: E402
from claiming import CHECKS, CHOSEN, LEFT, QUESTIONS, WIDTH, audits, claims, selections  # noqa: E402
from gauges import counted  # noqa: E402
from scipy.stats import norm  # noqa: E402

from neuronforget.metrics.membership import auc, resampled_auc  # noqa: E402
from neuronforget.results.intervals import bootstrap, difference, of_auc, of_rate  # noqa: E402
from neuronforget.scores.experts import auroc  # noqa: E402

SUBJECTS, EACH = (2, 3, 5, 10, 20, 50), 10  # subjects, and examples of each
#: What a subject adds to its examples' values, in standard deviations of these; the truth is 0.
BETWEEN = 0.7
RATES, ASKED = (0.02, 0.1, 0.5), (5, 20, 50)  # share of right answers, and subjects that are asked one question
RESAMPLES = 300
TEXTS, TRUE_AUCS, TOGETHER = (10, 30, 100), (0.8, 0.96, 0.99), 20  # texts of an author, where they are not alone
TRUE_NEURONS, NEURONS = (5, 20, 66), 2048


def intervals(repeats: int) -> list[dict[str, Any]]:
    """Return, by number of subjects, how often either interval of a mean holds it."""
    rows, draw = [], np.random.default_rng(0)
    for count in SUBJECTS:
        units, held = np.repeat(np.arange(count), EACH), {bootstrap: 0, difference: 0}
        for seed in range(repeats):
            values = BETWEEN * draw.normal(size=count)[units] + draw.normal(size=len(units))
            for interval in held:
                _, low, high = interval(values, seed, units=units)
                held[interval] += low <= 0 <= high
        rows.append({"subjects": count} | {f.__name__: hits / repeats for f, hits in held.items()})
    return rows


def rates(repeats: int) -> list[dict[str, Any]]:
    """Return how often intervals of a rate hold it, and how often two edits that are alike are told apart."""
    rows, draw = [], np.random.default_rng(0)
    for rate in RATES:
        for count in ASKED:
            row, units = {"bootstrap": 0, "of_rate": 0, "told apart": 0}, np.arange(count)
            for seed in range(repeats):
                one, other = (draw.random((2, count)) < rate).astype(float)
                for interval in (bootstrap, of_rate):
                    _, low, high = interval(one, seed, units=units)
                    row[interval.__name__] += low <= rate <= high
                _, low, high = difference(one - other, seed, units=units, within=(-1, 1))
                row["told apart"] += low > 0 or high < 0
            rows.append({"rate": rate, "subjects": count} | {name: hits / repeats for name, hits in row.items()})
    return rows


def aucs(repeats: int) -> list[dict[str, Any]]:
    """Return, by AUC and number of texts on either side, how often its interval holds it, and a bootstrap's would."""
    rows, draw = [], np.random.default_rng(0)
    for true in TRUE_AUCS:
        for count in TEXTS:
            held = {"of_auc": 0, "bootstrap": 0}
            for seed in range(repeats):
                sides = draw.normal(2**0.5 * norm.ppf(true), size=count), draw.normal(size=count)
                ends = {"of_auc": auc(*sides)[1:]}
                ends["bootstrap"] = tuple(
                    np.quantile(resampled_auc(*sides, seed, resamples=RESAMPLES)[1:], [0.025, 0.975])
                )
                for name, (low, high) in ends.items():
                    held[name] += low <= true <= high
            rows.append({"true AUC": true, "texts": count} | {name: hits / repeats for name, hits in held.items()})
    return rows


def authors(repeats: int) -> list[dict[str, Any]]:
    """Return the same where texts are of authors, who make up 30% of their variance: over texts, and by author."""
    rows, draw = [], np.random.default_rng(0)
    for true in TRUE_AUCS:
        for count in (5, 20):
            units, held = np.repeat(np.arange(count), TOGETHER), {"over texts": 0, "by author": 0}
            for _ in range(repeats):
                noise = (
                    0.3**0.5 * draw.normal(size=count)[units] + 0.7**0.5 * draw.normal(size=len(units)) for _ in "ab"
                )
                sides = [shift + x for shift, x in zip((2**0.5 * norm.ppf(true), 0.0), noise, strict=True)]
                for name, given in (("over texts", None), ("by author", (units, units))):
                    _, low, high = auc(*sides, given)
                    held[name] += low <= true <= high
            rows.append({"true AUC": true, "authors": count} | {name: hits / repeats for name, hits in held.items()})
    return rows


def localised(repeats: int) -> list[dict[str, Any]]:
    """Return how often intervals of a localisation's AUROC hold it: of true neurons all shifted, or a share found."""
    rows, draw = [], np.random.default_rng(0)
    for kind in ("shifted", "part found"):
        for true in (0.8, 0.96, 0.99):
            for count in TRUE_NEURONS:
                held = {"auroc": 0, "DeLong": 0}
                for _ in range(repeats):
                    own, others = draw.normal(size=count), draw.normal(size=NEURONS - count)
                    own += 2**0.5 * norm.ppf(true) if kind == "shifted" else 9.0 * (draw.random(count) < 2 * true - 1)
                    value, error = (float(x) for x in auroc(*(torch.from_numpy(x) for x in (own, others))))
                    low, high = of_auc(value, count, NEURONS - count, error=error)
                    held["auroc"] += low <= true <= high
                    held["DeLong"] += abs(value - true) <= 1.96 * error
                about = {"true neurons": kind, "true AUROC": true, "count": count}
                rows.append(about | {name: hits / repeats for name, hits in held.items()})
    return rows


#: Table -> which part of the repeats it is made of, so that all take some seven minutes on one core.
PARTS = {intervals: 1, rates: 4, aucs: 4, authors: 4, localised: 2, audits: 10, claims: 5, selections: 10}


def main() -> None:
    """Simulate, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=counted, default=1000, help="of the first; of others a part (PARTS)")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"environment": environment("cpu", ("numpy", "scipy", "torch"))}
    repeats = {table.__name__: max(1, options.repeats // part) for table, part in PARTS.items()}
    results |= {table.__name__: table(repeats[table.__name__]) for table in PARTS}
    shares = ", ".join(f"{name} {count}" for name, count in repeats.items())
    notes = (
        f"Share of simulations ({shares}) in which a 95% interval holds the truth: of a mean, {EACH} examples a "
        "subject, by `intervals.bootstrap` and `intervals.difference`; of a rate, one question a subject, by "
        "`bootstrap` and `of_rate`, and how often `difference` tells two edits apart that are alike; of an AUC, by "
        f"`intervals.of_auc` and by {RESAMPLES} bootstrap samples of either side; of {TOGETHER} texts an author; of "
        f"the AUROC of {NEURONS} neurons, by `localisation.auroc` and by DeLong's error. Then shares of what is found "
        f"where there is nothing: of audits of {CHECKS} checks and {QUESTIONS} questions a person, and where "
        f"{LEFT} of the answers are left; of claims where nothing differs; by `permutation_null` at q = 0.05. "
        f"`stability` is of {CHOSEN} of {WIDTH} neurons a layer."
    )
    print("\n\n".join(table_of(rows) for name, rows in results.items() if name != "environment"))
    print(write_results("Coverage of the intervals", results, notes, options.out, "coverage"))


if __name__ == "__main__":
    main()
