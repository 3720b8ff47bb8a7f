"""Does erasing a fact erase what follows from it?

Testbeds whose people teach one another: a model answers two-step questions ("The one who taught X is a certain person.
That person was born in"). Some are erased, by requests that name their own facts alone; then every question that takes
a forgotten fact is asked, and what can be deduced from what is still answered is deduced. Of a model of one's own
facts are read in the form of the LRE data; of those that it answers, alone and in chains, some are forgotten.

python analyses/what_follows.py --out follows                # seed 0, some ten minutes on two cores
python analyses/what_follows.py --out follows --seeds 0 1 2  # three; a killed run goes on where it was
python analyses/what_follows.py --out follows --model CHECKPOINT --data relations
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cells import cell, many, table
from follows_figure import picture
from running import claim, in_one_line, keep, kept, own_models, parsed, running
from sources import OWN, SHARE, Source, none_of

import neuronforget as nf
from neuronforget.corpora import Corpus, Example
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import exact_match
from neuronforget.runs import content_key
from neuronforget.suites.multihop import Chain, Fact, Rule, chains, given_back, relations
from neuronforget.testbed.linked import STEPS, TEACHER, Linked, linked

PEOPLE, FORGOTTEN, UNKNOWN = 40, 4, 2
FACTS = 20  # that a model of one's own is to forget, or half of those that its chains take
SHAPE = nf.testbed.Shape(batch=128, steps=450)


@dataclass(frozen=True, eq=False)
class Questions:
    """A source, what it is asked, by column, and the share of forgotten facts that some answered prompts give back."""

    source: Source
    corpora: Mapping[str, Corpus]
    deduced: Callable[[set[str]], float] | None = None

    @property
    def key(self) -> str:
        """A hash of models and questions."""
        return content_key(source=self.source.key, asked=[corpus.digest() for corpus in self.corpora.values()])


def of_testbed(kind: str, seed: int) -> Questions:
    """Make (or read) a testbed of people who teach one another, and ask what its corpora hold."""
    bed, made = bed_of(kind, seed)
    return Questions(Source.bare(bed, seed), corpora_of(made), partial(deduced, made))


def bed_of(kind: str, seed: int) -> tuple[nf.testbed.Testbed, Linked]:
    """Return the testbed, and the corpora that it was made of."""
    made = linked(PEOPLE, FORGOTTEN, UNKNOWN, seed)
    bed = nf.testbed.from_rows(made.forget, made.retain, derived=made.derived, kind=kind, seed=seed, shape=SHAPE,
                               refusals=("unknown",), progress=False)  # fmt: skip
    return bed, made


def corpora_of(made: Linked) -> dict[str, nf.Corpus]:
    """Split the questions: a forgotten first step (the person's own), a forgotten second one (the teacher's), none."""
    people = {example.subject for example in made.forget}
    questions = {chain.prompt for chain in made.chains}
    parts = {
        "retain": (made.retain, lambda e: e.prompt not in questions),
        "own step": (made.derived, lambda e: e.subject in people),
        "teacher's step": (made.derived, lambda e: e.subject not in people),
        "kept questions": (made.retain, lambda e: e.prompt in questions),
    }
    found = {
        name: replace(of, examples=tuple(e for e in of if wanted(e)), name=name) for name, (of, wanted) in parts.items()
    }
    return {"forget": made.forget, **found, "unshown": made.unshown}


def of_facts(lm: nf.LM, gold: nf.LM | None, folder: Path, seed: int) -> Questions:
    """Let a model forget some of the facts that it answers and whose chains it answers.

    `folder` holds facts in the form of the LRE data. Raises InputError where the model answers too few to ask.
    """
    facts, known = relations(folder)
    prompts = [Example(known[f.relation].prompt.format(f.subject), f.object, subject=f.subject) for f in facts]
    held = {facts[i]: prompts[i] for i in right(lm, Corpus(tuple(prompts), "facts"))}
    if len(held) < 2:
        raise nf.InputError(f"the model answers {len(held)} of {len(facts)} facts: too few to ask what follows")
    found = chains(held, known)
    found = [found[i] for i in right(lm, Corpus(tuple(chain.example for chain in found), "questions"))]
    if len(found) < 2:
        raise nf.InputError(f"of the questions that take two of its facts the model answers {len(found)}: too few")
    steps = list(dict.fromkeys(fact for chain in found for fact in (chain.first, chain.second)))
    gone = set(random.Random(seed).sample(steps, min(FACTS, len(steps) // 2)))
    parts = {
        "forget": [example for fact, example in held.items() if fact in gone],
        "retain": [example for fact, example in held.items() if fact not in gone],
        "first step": [c.example for c in found if c.first in gone],
        "second step": [c.example for c in found if c.second in gone and c.first not in gone],
        "kept questions": [c.example for c in found if not {c.first, c.second} & gone],
    }
    asked = {name: Corpus(tuple(rows), name) for name, rows in parts.items() if rows}
    return Questions(Source(lm, asked["forget"], asked["retain"], none_of(lm), seed, gold), asked)


def right(lm: nf.LM, corpus: Corpus) -> list[int]:
    """Return which examples are answered exactly."""
    return [i for i, value in enumerate(measure(lm, corpus, [exact_match])["exact_match"]) if value == 1]


def deduced(made: Linked, said: set[str]) -> float:
    """Return the share of forgotten teachers' facts that follow from what is still answered of their pupils.

    If p was taught by t, and p's teacher was born in v, then t was born in v.
    """
    people = {example.subject for example in made.forget}
    through = [chain for chain in made.chains if chain.second.subject in people]
    kept = {chain.first for chain in made.chains if TEACHER[0].format(n=chain.first.subject) in said}
    kept |= {_hearsay(chain) for chain in made.chains if chain.prompt in said}
    rules = [Rule("teacher", None, "pupil"), *(Rule("pupil", f"the teacher's {step}", step) for step in STEPS)]
    return float(given_back({chain.second for chain in through}, kept, rules)["recall"]) if through else float("nan")


def _hearsay(chain: Chain) -> Fact:
    return Fact(chain.first.subject, f"the teacher's {chain.second.relation}", chain.second.object)


def row_of(lm: nf.LM, asked: Questions) -> dict[str, float]:
    """Measure a model as it is now."""
    said = {name: {corpus.examples[i].prompt for i in right(lm, corpus)} for name, corpus in asked.corpora.items()}
    shares = {name: len(own) / len({e.prompt for e in asked.corpora[name]}) for name, own in said.items()}
    return shares | ({"given back": asked.deduced(set().union(*said.values()))} if asked.deduced else {})


def edits_of(source: Source) -> dict[str, Callable[[], nf.Edit]]:
    """Return how to make every edit, by its defaults; each is shown the forget corpus alone."""
    lm, forget, retain, seed = source.lm, source.forget, source.retain, source.seed
    neurons = source.finding(nf.scores.grad_x_act, SHARE).found
    train = partial(nf.erase.finetune, lm, forget, retain, seed=seed, progress=False)
    return {
        "ablate": lambda: nf.erase.ablate(lm, neurons),
        "ablate@random": lambda: nf.erase.ablate(lm, neurons.random_like(seed)),
        "npo@neurons": partial(train, loss=nf.losses.npo, neurons=neurons),
        "npo": partial(train, loss=nf.losses.npo),
        "grad_diff": partial(train, loss=nf.losses.grad_diff),
    }


def measured(asked: Questions) -> dict[str, dict[str, Any]]:
    """Return model -> column -> share, or why an edit could not be made."""
    source, names = asked.source, {"untouched": "untouched", "gold": "gold twin"}
    found: dict[str, dict[str, Any]] = {names[n]: row_of(lm, asked) for n, lm in source.references.items()}
    for name, make in edits_of(source).items():
        try:
            with make().on(source.lm):
                found[name] = row_of(source.lm, asked)
        except nf.InputError as error:  # a training that diverges is a finding
            found[name] = {"failed": str(error)}
    return found


def tables(done: Mapping[str, Mapping[str, Any]], kinds: Sequence[str], seeds: Sequence[int]) -> str:
    """Return a table for each kind of testbed: means over seeds, Student's 95% intervals, where there are several."""
    parts = []
    for kind in kinds:
        arms = [done[f"{kind} {seed}"] for seed in seeds]
        columns = [name for name in arms[0]["untouched"] if all(name in arm["untouched"] for arm in arms)]
        failed = {name: arm[name]["failed"] for arm in arms for name in arm if "failed" in arm[name]}
        made = [name for name in arms[0] if name not in failed]
        rows = [[name, *(cell([arm[name][column] for arm in arms]) for column in columns)] for name in made]
        parts.append(f"**{kind}** ({many(len(seeds))})\n\n" + table(["model", *columns], rows))
        parts += [f"- not made: {name}: {why}" for name, why in failed.items()]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Make the beds, measure, write `rows.json` (as the work goes on), `tables.md` and `follows.svg`."""
    parser = running(__doc__)
    parser.add_argument("--kinds", nargs="+", choices=["ordinary", "grafted"], default=["ordinary", "grafted"])
    parser.add_argument("--data", type=Path, help="facts for --model: samples.jsonl, templates.jsonl of the LRE data")
    options = parsed(parser)
    if (options.model is None) != (options.data is None):
        raise SystemExit("--model and --data go together: a model of one's own, and facts to ask it")
    path = options.out / "rows.json"
    done, subjects = kept(path, "beds"), kept(path, "subjects")
    with in_one_line():
        own = own_models(options)
        kinds = options.kinds if own is None else [OWN]
        for seed in options.seeds:
            for kind in kinds:
                asked = of_testbed(kind, seed) if own is None else of_facts(*own, options.data, seed)
                claim(path, done, subjects, key := f"{kind} {seed}", asked.key)
                if key not in done:
                    done[key] = measured(asked)
                    keep(path, subjects=subjects, beds=done)
                    print(key, done[key], flush=True)
    text = tables(done, kinds, options.seeds)
    (options.out / "tables.md").write_text(text)
    (options.out / "follows.svg").write_text(picture(done, kinds, options.seeds))
    print(text)


if __name__ == "__main__":
    main()
