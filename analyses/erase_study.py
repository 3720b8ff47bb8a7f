"""What `erase_methods.py` measures on one testbed: points of an edit beside the gold twin, and relearning."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from where_knowledge_lives import shortlist_exact

import neuronforget as nf
from neuronforget.comparison import sampled
from neuronforget.losses import learn
from neuronforget.measuring import measure
from neuronforget.metrics import exact_match, kl_gold, nll
from neuronforget.testbed.facts import FIRST, LAST

SHARE = 0.05  # of each layer: what is found
MEASURED = 150  # retain examples, and half as many strangers
TAUGHT, EVERY = 30, 3  # steps of relearning, and how often it is measured

Point = dict[str, Any]


class Remembered(torch.nn.Module):
    """A model that computes each batch once: the gold twin is asked the same questions beside every edit."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.asked, self.answers = model, {}

    def forward(self, **inputs: Any) -> Any:
        """Return what the model returns."""
        key = inputs["input_ids"].numpy().tobytes(), inputs["attention_mask"].numpy().tobytes()
        if key not in self.answers:
            self.answers[key] = self.asked(**inputs)
        return self.answers[key]


@dataclass(frozen=True, eq=False)
class Study:
    """One testbed, what is measured on it, and the neurons that were found."""

    bed: nf.testbed.Testbed
    gold: nf.LM = field(repr=False)
    corpora: dict[str, nf.Corpus]
    found: nf.Neurons
    seed: int

    @classmethod
    def of(cls, bed: nf.testbed.Testbed, seed: int, measured: int = MEASURED) -> Study:
        """Find the neurons by two stages (grad_x_act, then exact), on as many retain as forget examples."""
        shown = bed.retain.head(len(bed.forget))
        scores = nf.attribute(bed.lm, bed.forget, shown, score=shortlist_exact, progress=False)
        corpora = {"forget": bed.forget, "retain": sampled(bed.retain, measured, seed)}
        corpora |= {"strangers": strangers(bed, measured // 2, seed)}
        if (unseen := bed.forget.paraphrased()) is not None:
            corpora["forget unseen"] = unseen
        gold = nf.LM(Remembered(bed.gold.model), bed.gold.tokenizer)
        return cls(bed, gold, corpora, nf.select.per_layer(scores, SHARE), seed)

    def point(self, edit: nf.Edit | None, strength: float) -> Point:
        """Measure an edit at a strength (None: the model as it is)."""
        if edit is None or strength == 0:
            return {"strength": 0.0, **self.values(self.bed.lm)}
        with edit.scaled(strength).on(self.bed.lm) as edited:
            return {"strength": strength, **self.values(edited)}

    def values(self, lm: nf.LM) -> Point:
        """Return corpus -> metric -> mean over its examples."""
        wanted = (exact_match, nll, kl_gold)
        return {
            name: {m: float(v.mean()) for m, v in measure(lm, corpus, wanted, gold=self.gold).items()}
            for name, corpus in self.corpora.items()
        }


def strangers(bed: nf.testbed.Testbed, count: int, seed: int) -> nf.Corpus:
    """Return retain questions asked of people whom neither model has met."""
    known = {example.subject for corpus in (bed.forget, bed.retain) for example in corpus}
    names = [name for a in FIRST for b in LAST if (name := f"{a} {b}") not in known]
    asked = sampled(bed.retain, count, seed + 2)
    rows = [
        replace(e, prompt=e.prompt.replace(str(e.subject), names[(31 * i) % len(names)]), paraphrases=(), subject=None)
        for i, e in enumerate(asked)
    ]
    return nf.Corpus(tuple(rows), "strangers")


def relearning(lm: nf.LM, forget: nf.Corpus) -> dict[str, list[float]]:
    """Return accuracy as the model learns half of the forget people again: on them, and on the others."""
    people = list(dict.fromkeys(example.subject for example in forget))
    first = set(people[: (len(people) + 1) // 2])
    halves = {
        name: replace(forget, examples=tuple(e for e in forget if (e.subject in first) == taught), name=name)
        for name, taught in (("taught", True), ("siblings", False))
    }
    curve: dict[str, list[float]] = {"step": [], "taught": [], "siblings": []}
    steps = iter(range(TAUGHT + 1))

    def relearn(outputs: nf.losses.Outputs) -> Any:
        if (step := next(steps)) % EVERY == 0:
            curve["step"].append(step)
            for name, corpus in halves.items():
                curve[name].append(float(measure(lm, corpus, [exact_match])["exact_match"].mean()))
        return learn(outputs)

    nf.erase.finetune(lm, halves["taught"], loss=relearn, steps=TAUGHT + 1, progress=False)
    return curve


def references(study: Study) -> dict[str, Any]:
    """Return the untouched model and the gold twin as arms, and what was found."""
    truth = study.bed.truth
    assert truth is not None
    found = {"found": len(study.found), "true": len(truth), "recall": study.found.recall(truth)}
    lm, gold, forget = study.bed.lm, study.bed.gold, study.bed.forget
    return {
        "untouched": {"tuned": study.point(None, 0), "relearning": relearning(lm, forget)},
        "gold": {"tuned": {"strength": 0.0, **study.values(gold)}, "relearning": relearning(gold, forget)},
        "neurons": found,
    }
