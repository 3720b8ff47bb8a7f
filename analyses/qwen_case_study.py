"""The Qwen1.5-1.8B case study with a before and an after: one RWKU target, GA, DPO and operators on found neurons.

Each edit is measured where it is tuned: of the strengths that raise the loss of retain texts by no more than
`--damage`, the one at which the forget texts are least likely; random neurons, as many in each layer, are tuned alike.
GA and DPO, run as RWKU runs them (without retain texts), are measured at full strength too: that is what was published.

python analyses/qwen_case_study.py --out qwen                     # a tiny model, made here: 4 minutes of one core
python analyses/qwen_case_study.py --out qwen --model CHECKPOINT  # a local folder or hub id; a killed run goes on
python analyses/qwen_case_study.py --out cost --shape 1.8B --device cuda  # random weights: time and memory alone
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qwen_figure import picture
from qwen_measures import Costs, constants, shift, state
from qwen_rows import SHAPES, TINY, Rows, Size, shaped, tiny
from qwen_tables import cost_table, tables
from running import in_one_line, keep

import neuronforget as nf
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import nll

STRENGTHS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
HALVINGS = 4  # between the last strength that is allowed and the next
#: Trainings of the whole model, as RWKU runs them: without retain texts.
WHOLE = {"ga": nf.losses.ga, "dpo": partial(nf.losses.dpo, alpha=0.0)}
SETTINGS = ("steps", "share", "damage", "draws", "seed", "batch", "shape")
OPERATORS = ("ablate", "npo", "rank_one")


@dataclass(eq=False)
class Study:
    """A model, what is read of the data, and what was measured so far (`done`, written to `path` at every step)."""

    lm: nf.LM
    gold: nf.LM | None
    rows: Rows
    options: argparse.Namespace
    path: Path
    done: dict[str, Any]
    costs: Costs = field(init=False)

    def __post_init__(self) -> None:
        self.costs = Costs(self.lm.device, self.done.setdefault("costs", {}))
        self.done.setdefault("arms", {})
        about = {**self.rows.about(), "model": self.lm.digest(), "gold": self.gold and self.gold.digest()}
        about |= {
            key: getattr(self.options, key) for key in ("steps", "share", "damage", "draws", "seed", "batch", "shape")
        }
        about |= {} if has_tasks() else {"tasks": False}
        if json.loads(json.dumps(about)) != self.done.setdefault("about", json.loads(json.dumps(about))):
            raise SystemExit(f"{self.path} holds another study (model, target or settings): give another --out")

    def measured(self, lm: nf.LM, edit: nf.Edit | None = None) -> dict[str, Any]:
        how = self.options.batch, self.options.seed
        return state(lm, self.rows, self.costs, edit, *how, tasks=has_tasks())

    def losses(self) -> dict[str, float]:
        """Return the loss of the texts that erasures are shown, nats per token, as the model is now."""
        found = (measure(self.lm, corpus, [nll], batch_size=self.options.batch)["nll"] for corpus in self.shown())
        return {corpus.name: float(values.mean()) for corpus, values in zip(self.shown(), found, strict=True)}

    def shown(self) -> tuple[nf.Corpus, nf.Corpus]:
        """Return what erasures are shown: forget, retain."""
        return self.rows.forget, self.rows.retain

    def neurons(self) -> nf.Neurons:
        """Return what `grad_x_act` finds, the same share of each layer."""
        path = self.path.parent / "neurons.json"
        if not path.is_file():
            with self.costs.of("attribution"):
                found = nf.attribute(self.lm, self.rows.forget, self.rows.retain, progress=False)
            nf.select.per_layer(found, self.options.share).save(path)
        return nf.Neurons.load(path)

    def edit(self, name: str, neurons: nf.Neurons | None) -> nf.Edit:
        """Make an edit, or read the one that an earlier run made."""
        path, method = self.path.parent / f"{name.replace(' ', '-')}.safetensors", name.partition("@")[0]
        if path.is_file():
            return nf.Edit.load(path)
        with self.costs.of(method if neurons is None else f"{method} on neurons"):
            made = self.made(method, neurons)
            made.save(path)
        return made  # where the model lies: read back it would lie on the CPU, and be moved each time that it is put on

    def made(self, method: str, neurons: nf.Neurons | None) -> nf.Edit:
        lm, forget, retain, options = self.lm, self.rows.forget, self.rows.retain, self.options
        train = partial(nf.erase.finetune, lm, forget, steps=options.steps, batch_size=options.batch // 2,
                        seed=options.seed, progress=False)  # fmt: skip
        if method in WHOLE:
            return train(None, loss=WHOLE[method])
        if method == "npo":
            return train(retain, loss=nf.losses.npo, neurons=neurons)
        if method == "rank_one":
            return nf.erase.rank_one(lm, forget, retain, neurons=neurons, batch_size=options.batch)
        assert neurons is not None
        return nf.erase.ablate(lm, neurons)

    def arm(self, name: str, neurons: nf.Neurons | None) -> dict[str, Any]:
        """Return an edit's dial and what is measured where it is tuned; trainings of all weights in full too."""
        try:
            edit = self.edit(name, neurons)
            start = {"strength": 0.0, **self.done["arms"]["untouched"]["losses"]}
            with self.costs.of("dial"):
                dial = self.dial(edit, start["retain"] + self.options.damage)
            allowed = [start, *(point for point in dial if point["retain"] <= start["retain"] + self.options.damage)]
            tuned = max(allowed, key=lambda point: point["forget"])
            found = {"dial": dial, "tuned": tuned, "weights": edit.summary()["values"]}
            if tuned is not start:
                found |= self.measured(self.lm, edit.scaled(tuned["strength"]))
            if neurons is None:
                found["full"] = self.measured(self.lm, edit)
        except nf.InputError as error:  # a training that diverges, a model that returns NaN: a finding
            return {"failed": str(error)}
        return found

    def dial(self, edit: nf.Edit, allowed: float) -> list[dict[str, float]]:
        """Measure an edit at all strengths, and at some more around the last that keeps within the allowed loss."""
        points = [self.point(edit, strength) for strength in STRENGTHS]
        for _ in range(HALVINGS):
            within = [i for i, point in enumerate(points) if point["retain"] <= allowed]
            at = within[-1] if within else -1
            if at + 1 == len(points):
                break
            low, high = points[at]["strength"] if within else 0.0, points[at + 1]["strength"]
            points.insert(at + 1, self.point(edit, (low + high) / 2))
        return points

    def point(self, edit: nf.Edit, strength: float) -> dict[str, float]:
        with edit.scaled(strength).on(self.lm):
            return {"strength": strength, **self.losses()}

    def run(self) -> Iterator[str]:
        """Measure what is missing, saying which is finished."""
        arms = self.done["arms"]
        if "untouched" not in arms:
            arms["untouched"] = {"losses": self.losses(), **self.measured(self.lm)}
            arms["untouched"]["constants"] = constants(self.rows)
            yield "untouched"
        if self.gold is not None and "gold" not in arms:
            arms["gold"] = self.measured(self.gold)
            moved = {f"shift, {c.name}": shift(self.lm, self.gold, c, self.options.seed) for c in self.shown()}
            arms["gold"]["values"] |= moved
            yield "gold"
        found = self.neurons()
        places = {"found": found}
        places |= {f"random {i}": found.random_like(self.options.seed + i) for i in range(self.options.draws)}
        plan = {name: None for name in WHOLE}
        plan |= {f"{name}@{place}": neurons for name in OPERATORS for place, neurons in places.items()}
        for name, neurons in plan.items():
            if name not in arms:
                arms[name] = self.arm(name, neurons)
                yield name


def has_tasks() -> bool:
    """Whether lm-eval is installed, which asks TriviaQA and BBH; random weights are timed without it as well."""
    return find_spec("lm_eval") is not None


def study_of(options: argparse.Namespace) -> Study:
    """Read the data, load or make the models, and go on from what OUT holds."""
    if not options.shape and not has_tasks():
        raise nf.InputError("TriviaQA and BBH are asked by lm-eval: pip install 'neuronforget[eval]'")
    options.out.mkdir(parents=True, exist_ok=True)
    size = Size(**{key: getattr(options, key) for key in ("pairs", "words", "others", "n", "trivia", "tasks")})
    rows = Rows.of(options.data, options.target, size, options.out, options.seed)
    gold = None
    if options.shape:
        lm = shaped(rows, options.shape, options.device, options.seed)
    elif options.model:
        lm, *twin = (nf.load(path, device=options.device) for path in (options.model, options.gold) if path)
        gold = twin[0] if twin else None
    else:
        lm, gold = tiny(rows, TINY, options.seed)
    path = options.out / "states.json"
    done = json.loads(path.read_text()) if path.is_file() else {}
    return Study(lm, gold, rows, options, path, done)


def parser() -> argparse.ArgumentParser:
    """Return the options; their defaults suit the tiny model."""
    found, size = argparse.ArgumentParser(description=__doc__.splitlines()[0]), Size()
    shared = Path(os.environ.get("NEURONFORGET_SHARED", "../shared"))
    found.add_argument("--out", type=Path, required=True)
    found.add_argument("--data", type=Path, default=shared / "data", help="folder with rwku, triviaqa and bbh")
    found.add_argument("--target", help="one of RWKU's with training pairs; default: the first")
    found.add_argument("--model", help="checkpoint folder or hub id; default: a tiny one, trained here")
    found.add_argument("--gold", help="a model of the same training without the target, where there is one")
    found.add_argument("--shape", choices=list(SHAPES), help="random weights of this shape: time and memory alone")
    found.add_argument("--device", default="cpu")
    found.add_argument("--pairs", type=int, default=size.pairs, help="training texts of the target, and of others")
    found.add_argument("--words", type=int, default=size.words, help="of a passage; half as many of a training text")
    found.add_argument("--others", type=int, default=size.others, help="targets that are kept")
    found.add_argument("--n", type=int, default=size.n, help="RWKU questions of each level and attack; default: all")
    found.add_argument("--trivia", type=int, default=size.trivia, help="TriviaQA questions")
    found.add_argument("--tasks", type=int, default=size.tasks, help="questions of each BBH task")
    found.add_argument("--steps", type=int, default=30, help="of each training")
    found.add_argument("--damage", type=float, default=0.05, help="allowed rise of the retain loss, nats per token")
    found.add_argument("--share", type=float, default=0.05, help="of each layer's neurons that are found")
    found.add_argument("--draws", type=int, default=2, help="random sets of neurons")
    found.add_argument("--batch", type=int, default=32)
    found.add_argument("--seed", type=int, default=0)
    return found


def main() -> None:
    """Measure every model, write `states.json` (as the work goes on), `tables.md` and `qwen.svg`."""
    options = parser().parse_args()
    with in_one_line():
        study = study_of(options)
        for name in study.run():
            keep(study.path, **study.done)
            print(name, flush=True)
    text = cost_table(study.done) if options.shape else tables(study.done)
    if "TriviaQA, BBH" not in study.done["costs"]:
        text += "\n\nlm-eval is not installed: TriviaQA and BBH are not timed.\n"
    (options.out / "tables.md").write_text(text)
    if not options.shape:
        (options.out / "qwen.svg").write_text(picture(study.done["arms"]))
    print(text)


if __name__ == "__main__":
    main()
