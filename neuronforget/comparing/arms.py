"""The arms of a comparison: every method on the chosen neurons, on their controls and on the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from neuronforget import erase, losses, select
from neuronforget.corpora import Corpus, check_disjoint
from neuronforget.edits import Edit
from neuronforget.erase.catalogue import Operator, check_answers, check_call, further, takes
from neuronforget.errors import InputError
from neuronforget.losses.naming import identity
from neuronforget.models import LM
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons
from neuronforget.runs import content_key

#: The controls that are matched neuron by neuron, which take a selection of at most half of a layer.
MATCHED = ("norm-matched 0", "activation-matched 0")
#: By name, how to make each edit of a comparison.
Recipes = dict[str, Callable[[], Edit]]


@dataclass(frozen=True, eq=False)
class Arms:
    """What all arms of a comparison share: the model, what is to go and what to stay, and how each is trained.

    `preferred` serves DPO, `operators` are run beside the methods of every comparison, and of random `controls` there
    are so many.
    """

    lm: LM
    forget: Corpus
    retain: Corpus
    preferred: Corpus | tuple[str, ...] | None
    operators: Sequence[Operator]
    controls: int
    steps: int
    batch_size: int
    seed: int

    def check(self, audited: Sequence[str], share: float) -> None:
        """Raise InputError for what does not fit the model, and for an edit to audit that will not be made.

        So for an operator that cannot be called: it needs a setting, or its loss asks for what is not given.
        `share` of each layer is to be selected; which neurons, is not known yet.
        """
        check_disjoint(self.forget, self.retain)
        width = self.lm.shape[1]
        selected = select.how_many(share, width)
        for corpus in (self.forget, self.retain):  # said before the work, not after half of it
            self.lm.encode(corpus)
        stand_in = Neurons(frozenset(), tuple(site.layer for site in self.lm.sites), width)
        for operator in self.operators:
            check_call(operator, stand_in if takes(operator, "neurons") else None, {})
            check_answers(operator, self.lm, self.forget, {})
        names = [f"random {i}" for i in range(self.controls)]
        names += MATCHED if 2 * selected <= width else ()
        plan = self.plan(stand_in, dict.fromkeys(names, stand_in), {})
        if unknown := [name for name in audited if name not in plan]:
            raise InputError(f"no edit to audit is called {unknown[0]!r}; there are {', '.join(plan)}")

    def others(self, neurons: Neurons, retain: Moments) -> dict[str, Neurons]:
        """Return random sets of equal size per layer, and one each matched in write norm and activation."""
        found = {f"random {i}": neurons.random_like(1000 * self.seed + i) for i in range(self.controls)}
        with suppress(InputError):  # more than half of a layer is selected
            norm, activation = MATCHED
            found[norm] = neurons.norm_matched(self.lm, self.seed)
            found[activation] = neurons.activation_matched(retain, self.seed)
        return found

    def plan(self, neurons: Neurons, others: Mapping[str, Neurons], moments: Mapping[str, Moments]) -> Recipes:
        """Return how to make each edit: the methods of every comparison, then the further operators."""
        corpora = self.lm, self.forget, self.retain
        ablate, closed = partial(erase.ablate, self.lm), partial(erase.rank_one, *corpora, batch_size=self.batch_size)
        train = partial(
            erase.finetune, *corpora, preferred=self.preferred, steps=self.steps, seed=self.seed,
            batch_size=max(self.batch_size // 2, 1), progress=False,
        )  # fmt: skip
        ga, npo = partial(train, loss=losses.ga), partial(train, loss=losses.npo)
        plan: Recipes = {"ablate": partial(ablate, neurons)}
        plan |= {f"ablate@{name}": partial(ablate, where) for name, where in others.items()}
        plan |= {"ga@neurons": partial(ga, neurons=neurons), "npo@neurons": partial(npo, neurons=neurons)}
        if (somewhere := others.get("random 0")) is not None:
            plan |= {"ga@random 0": partial(ga, neurons=somewhere), "npo@random 0": partial(npo, neurons=somewhere)}
            plan |= {"rank_one@random 0": partial(closed, neurons=somewhere)}
        plan |= {"rank_one@neurons": partial(closed, neurons=neurons), "rank_one@layer": closed}
        plan |= {"ga": ga, "grad_diff": partial(train, loss=losses.grad_diff), "npo": npo}
        if self.preferred or all(example.wrong for example in self.forget):
            plan |= {"dpo": partial(train, loss=losses.dpo)}
        places = {"@neurons": neurons, "@random 0": somewhere}
        return plan | further(self.operators, *corpora, places, moments)

    def made(
        self,
        neurons: Neurons,
        others: Mapping[str, Neurons],
        moments: Mapping[str, Moments],
        *,
        resume: str | Path | None,
        progress: bool,
    ) -> tuple[dict[str, Edit], dict[str, str]]:
        """Return every edit, and why some could not be made. Raises InputError where none could.

        `resume` is a folder where finished ones are kept and looked for.
        """
        edits: dict[str, Edit] = {}
        failed: dict[str, str] = {}
        work = self._work(neurons, others) if resume else {}
        with tqdm(self.plan(neurons, others, moments).items(), desc="erase", disable=not progress) as bar:
            for name, make in bar:
                bar.set_postfix(edit=name, refresh=False)
                path = Path(resume) / f"{content_key(**work, name=name)}.safetensors" if resume else None
                if path and path.is_file():
                    edits[name] = Edit.load(path)
                    continue
                try:
                    edits[name] = make()
                except InputError as error:  # one method's failure is a finding, not the end of the comparison
                    failed[name] = str(error)
                    continue
                if path:
                    edits[name].save(path)
        if not edits:
            raise InputError("no edit could be made: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))
        return edits, failed

    def _work(self, neurons: Neurons, others: Mapping[str, Neurons]) -> dict[str, Any]:
        """Name the work, so that only what equal work has made is taken up again."""
        answers = self.preferred.digest() if isinstance(self.preferred, Corpus) else self.preferred
        own = [identity(operator) for operator in self.operators]
        sets = {name: sorted(where.members) for name, where in {"chosen": neurons, **others}.items()}
        data = self.forget.digest(), self.retain.digest(), answers
        return {"model": self.lm.digest(), "work": (*data, self.steps, self.batch_size, self.seed, sets, own)}
