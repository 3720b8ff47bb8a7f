"""How often the intervals hold the truth, where subjects or texts are few: `python benchmarks/covering.py`.

Simulated data of a known mean, of a known AUC, and of models that know nothing. Writes results/
<date>-<device>-coverage.json and .md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "kernels")]

import numpy as np  # noqa: E402
from bench_results import environment, table_of, write_results  # noqa: E402
from gauges import counted  # noqa: E402
from scipy.stats import norm  # noqa: E402

from neuronforget.auditing import Reading  # noqa: E402
from neuronforget.auditing.cases import EDITED, GOLD, UNTOUCHED  # noqa: E402
from neuronforget.auditing.verdicts import judge  # noqa: E402
from neuronforget.intervals import bootstrap, difference  # noqa: E402
from neuronforget.metrics.membership import auc, resampled_auc  # noqa: E402

SUBJECTS, EACH = (2, 3, 5, 10, 20, 50), 10  # subjects, and examples of each
#: What a subject adds to its examples' values, in standard deviations of these; the truth is 0.
BETWEEN = 0.7
TEXTS, TRUE_AUCS = (10, 30, 100), (0.8, 0.96, 0.99)
#: Audited: people, questions of each, checks, and how often a model that never knew is right.
PEOPLE, QUESTIONS, CHECKS = (5, 10, 20), 12, 15
GUESSED = {"guessing": (1, 9), "choice": (7, 3)}


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


def aucs(repeats: int) -> list[dict[str, Any]]:
    """Return, by AUC and number of texts on either side, how often its interval holds it, and a bootstrap's would."""
    rows, draw = [], np.random.default_rng(0)
    for true in TRUE_AUCS:
        for count in TEXTS:
            held = {"of_auc": 0, "bootstrap": 0}
            for seed in range(repeats):
                sides = draw.normal(2**0.5 * norm.ppf(true), size=count), draw.normal(size=count)
                ends = {"of_auc": auc(*sides)[1:]}
                ends["bootstrap"] = tuple(np.quantile(resampled_auc(*sides, seed)[1:], [0.025, 0.975]))
                for name, (low, high) in ends.items():
                    held[name] += low <= true <= high
            rows.append({"true AUC": true, "texts": count} | {name: hits / repeats for name, hits in held.items()})
    return rows


def audits(repeats: int) -> list[dict[str, Any]]:
    """Return, by number of people, the share of audits that find something in a model as ignorant as its twin."""
    rows, draw = [], np.random.default_rng(0)
    for count in PEOPLE:
        for name, law in GUESSED.items():
            found = sum(
                any(check.outcome in ("left", "avoided") for check in judge(_readings(name, law, count, draw), seed))
                for seed in range(repeats)
            )
            rows.append({"people": count, "what": name, "found": found / repeats})
    return rows


def _readings(name: str, law: tuple[float, float], count: int, draw: np.random.Generator) -> list[Reading]:
    """Each person is as easy to guess for the edited model as another is for the twin: the two are alike in law."""
    units = np.repeat(np.arange(count), QUESTIONS)
    about: dict[str, Any] = {"two_sided": True, "floor": np.full(len(units), 0.25)} if name == "choice" else {}
    made = []
    for i in range(CHECKS):
        right = {UNTOUCHED: np.ones(len(units))}
        for who in (EDITED, GOLD):
            right[who] = (draw.random(len(units)) < draw.beta(*law, size=count)[units]).astype(float)
        probe = "asked" if i < 2 else f"probe {i}"
        made += [Reading(probe, who, "forget", f"{i}", x, units, **about) for who, x in right.items()]
    return made


def main() -> None:
    """Simulate, print and write the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=counted, default=1000, help="of each simulation; of audits a fifth")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    results: dict[str, Any] = {"environment": environment("cpu", ("numpy", "scipy"))}
    results |= {"intervals": intervals(options.repeats), "aucs": aucs(options.repeats)}
    results["audits"] = audits(max(1, options.repeats // 5))
    notes = (
        f"Share of {options.repeats} simulations in which a 95% interval holds the truth: of a mean, {EACH} examples a "
        f"subject, by `intervals.bootstrap` and `intervals.difference`; of an AUC, by `intervals.of_auc` and by "
        "1000 bootstrap samples of either side. Last, the share of "
        f"{max(1, options.repeats // 5)} audits of {CHECKS} checks and {QUESTIONS} questions a person that find "
        "something where there is nothing: 0.05 is meant at most."
    )
    print("\n\n".join(table_of(rows) for name, rows in results.items() if name != "environment"))
    print(write_results("Coverage of the intervals", results, notes, options.out, "coverage"))


if __name__ == "__main__":
    main()
