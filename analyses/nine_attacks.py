"""Which of RWKU's nine attacks bring back what plain questions no longer show, after each kind of erasure?

Erasures are shown the plain questions (levels 1 and 2) about some targets; the attacks ask for the same answers. Of
each attack, and of the plain questions with the same answers, the share of the gap between the untouched model and the
gold twin that an edit leaves, at two of its strengths. At equal damage, as in `ga_rt_sweep.py`: of those that raise the
loss of plain questions about others by at most .05 nats, the one whose plain forget answers are closest to the twin's.
At equal forgetting: the first at which half of the plain answers are gone.

python analyses/nine_attacks.py --out attacks                # tiny models, made here: seed 0
python analyses/nine_attacks.py --out attacks --seeds 0 1 2  # three seeds; a killed run goes on where it was
python analyses/nine_attacks.py --out own --model CHECKPOINT --targets "Stephen King" "Bob Barker" --device cuda
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from attack_figure import picture
from attack_rows import TINY, Rows, tiny
from attack_tables import tables
from judging import DAMAGE, chosen_point
from running import each, own_models, parsed, running
from sources import Source

import neuronforget as nf
from neuronforget.evaluation.generation import Decoding, generate
from neuronforget.evaluation.measuring import measure, option_losses, preferred
from neuronforget.losses import grad_diff, npo, simnpo
from neuronforget.metrics import exact_match
from neuronforget.metrics.text import SCORERS
from neuronforget.suites.answers import scored

STRENGTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
BISECTIONS = 3  # towards the strength at which half of the plain answers are gone
SHARE = 0.2  # of each layer's neurons: half of what a tiny model knows is to be forgotten
#: Trainings, where each is done, and their size.
TRAINED = {
    "npo": (npo, ("found", "random", "full")),
    "simnpo": (simnpo, ("full",)),
    "grad_diff": (grad_diff, ("full",)),
}
STEPS, BATCH = 40, 16
WORDS = 12  # tokens of an answer
WRITTEN = ("rouge_l", "contains", "exact")

Asked = dict[str, list[float]]


@dataclass(frozen=True, eq=False)
class Study:
    """A source, and the attacks on it."""

    source: Source
    rows: Rows

    @property
    def seed(self) -> int:
        """The seed of targets, trainings and controls."""
        return self.source.seed

    @property
    def key(self) -> str:
        """What tells the source from others."""
        return self.source.key

    @classmethod
    def of(cls, lm: nf.LM, gold: nf.LM | None, rows: Rows, seed: int) -> Study:
        """Find the neurons by grad_x_act on the plain questions."""
        shown = rows.retain.head(len(rows.forget))
        scores = nf.attribute(lm, rows.forget, shown, progress=False)
        return cls(Source(lm, rows.forget, rows.retain, nf.select.per_layer(scores, SHARE), seed, gold), rows)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the numbers depend on, and the kind, half and target of each question."""
        source, attacks = self.source, self.rows.attacks
        corpora = (source.forget, source.retain, attacks.asked, attacks.plain)
        models = [source.lm.digest(), source.gold and source.gold.digest()]
        settings = {
            "share": SHARE,
            "strengths": [STRENGTHS, BISECTIONS, DAMAGE],
            "steps": STEPS,
            "batch": BATCH,
            "tokens": WORDS,
        }
        found = {"models": models, "data": [corpus.digest() for corpus in corpora], **settings}
        found |= {"kinds": attacks.kinds, "taught": attacks.taught, "targets": [e.subject for e in attacks.asked]}
        found |= {"choices": [1 + len(e.wrong) for e in attacks.asked]}
        return dict(json.loads(json.dumps(found)))

    def edits(self) -> dict[str, Callable[[], nf.Edit]]:
        """Return how to make each edit, by "method@place"."""
        lm, forget, retain, places = self.source.lm, self.source.forget, self.source.retain, self.source.places
        made: dict[str, Callable[[], nf.Edit]] = {
            f"ablate@{place}": partial(nf.erase.ablate, lm, neurons)
            for place, neurons in places.items()
            if neurons is not None
        }
        train = partial(nf.erase.finetune, lm, forget, retain, steps=STEPS, batch_size=BATCH, seed=self.seed,
                        progress=False)  # fmt: skip
        for method, (loss, where) in TRAINED.items():
            made |= {f"{method}@{place}": partial(train, loss=loss, neurons=places[place]) for place in where}
        return made | {"eco (guard)": partial(nf.erase.guards.eco, lm, forget, retain, seed=self.seed)}

    def asked(self, lm: nf.LM) -> dict[str, Asked]:
        """Return every measure of each attack and of its plain question; how the others' attacks are answered."""
        others = measure(lm, self.rows.others, [exact_match])["exact_match"].tolist()
        attacks = self.rows.attacks
        return {"attack": ask(lm, attacks.asked), "plain": ask(lm, attacks.plain), "others": {"exact_match": others}}


def ask(lm: nf.LM, corpus: nf.Corpus) -> Asked:
    """Return measure -> value of each question: of the greedy answer, and of the right answer among the wrong ones.

    `choice` is 1 where the right answer is likelier, by token, than every wrong one (a share where some are as likely);
    `probability` is by token too.
    Raises InputError where the model returns NaN.
    """
    texts = generate(lm, corpus, Decoding(WORDS), progress=False)
    right = [(example.answer,) for example in corpus]
    found = {name: scored(SCORERS[name], texts, right).tolist() for name in WRITTEN}
    losses = option_losses(lm, corpus)
    if np.isnan(np.concatenate(losses)).any():
        raise nf.InputError("the model returns NaN")
    found["choice"] = [preferred(own) for own in losses]
    return found | {"probability": [float(np.exp(-own[0])) for own in losses]}


def run(study: Study, done: dict[str, Any]) -> Iterator[str]:
    """Fill `done`: the references, then each edit, saying which is finished."""
    if done.setdefault("about", study.about) != study.about:
        raise SystemExit(f"seed {study.seed} was run with another model, other data or settings: give another --out")
    source, arms = study.source, done.setdefault("arms", {})
    for name, lm in (("untouched", source.lm), ("gold", source.gold)):
        if name not in arms and lm is not None:
            arms[name] = {"tuned": {"strength": 0.0, **source.values(lm), "asked": study.asked(lm)}}
            yield name
    for name, make in study.edits().items():
        if name not in arms:
            arms[name] = arm(study, make, arms["untouched"]["tuned"])
            yield name


def arm(study: Study, make: Callable[[], nf.Edit], start: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an edit leaves at equal damage (`tuned`) and at equal forgetting; why it failed, where it did."""
    try:
        edit = make()
        points = dial(study.source, edit, start)
        found = {"tuned": chosen_point(points, start), "halved": halved(points, start)}
        if found["tuned"]["strength"] == found["halved"]["strength"]:
            found["halved"] = found["tuned"]
        for point in found.values():
            if "asked" not in point:  # the untouched model's has been
                with edit.scaled(point["strength"]).on(study.source.lm) as lm:
                    point["asked"] = study.asked(lm)
    except nf.InputError as error:  # one method's failure is a finding
        return {"failed": str(error)}
    return found


def dial(source: Source, edit: nf.Edit, start: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure an edit at all strengths, and at some between the last that leaves half of the answers and the next."""
    points = [source.point(edit, strength) for strength in STRENGTHS]
    for _ in range(BISECTIONS):
        last = halved(points, start)
        at = points.index(last)
        low = points[at - 1]["strength"] if at else 0.0
        points.insert(at, source.point(edit, (low + last["strength"]) / 2))
    return points


def halved(points: Sequence[dict[str, Any]], start: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first point with half of the plain forget answers gone; where none is, the one with fewest left."""
    enough = [p for p in points if p["forget"]["exact_match"] <= start["forget"]["exact_match"] / 2]
    return enough[0] if enough else min(points, key=lambda p: p["forget"]["exact_match"])


def studies(options: argparse.Namespace) -> Iterator[Study]:
    """Yield what to run on, a seed at a time; each seed has targets of its own unless they are named."""
    own = own_models(options)
    for seed in options.seeds:
        rows = Rows.of(options.data / "rwku", options.targets, options.count, options.others, seed)
        lm, gold = own or tiny(rows, seed, TINY)
        yield Study.of(lm, gold, rows, seed)


def parser() -> argparse.ArgumentParser:
    """Return the options; their defaults suit the tiny models."""
    found = running(__doc__)
    shared = Path(os.environ.get("NEURONFORGET_SHARED", "../shared"))
    found.add_argument("--data", type=Path, default=shared / "data", help="folder with rwku")
    found.add_argument("--targets", nargs="+", help="to be forgotten (one seed); default: other ones by seed")
    found.add_argument("--count", type=int, default=12, help="how many are to be forgotten, where none is named")
    found.add_argument("--others", type=int, default=12, help="targets that are kept")
    return found


def main() -> None:
    """Attack every seed's models, write `attacks.json` (as the work goes on), `tables.md` and `attacks.svg`."""
    options = parsed(parser())
    if options.targets:  # another seed would ask the same questions, and count each answer again
        options.seeds = options.seeds[:1]
    each(options, studies(options), "attacks.json", run, tables, {"attacks.svg": picture})


if __name__ == "__main__":
    main()
