"""The arms of a comparison: every method on the chosen neurons, on their controls and on the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from neuronforget import erase, losses
from neuronforget.corpora import Corpus
from neuronforget.edits import Edit
from neuronforget.erase.catalogue import Operator, further
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons
from neuronforget.runs import content_key, whole_file

#: The controls that are matched neuron by neuron, which take a selection of at most half of a layer.
MATCHED = ("norm-matched 0", "activation-matched 0")


def random_controls(lm: LM, neurons: Neurons, retain: Moments, count: int, seed: int) -> dict[str, Neurons]:
    """Return `count` random sets of equal size per layer, and one each matched in write norm and activation."""
    found = {f"random {i}": neurons.random_like(1000 * seed + i) for i in range(count)}
    with suppress(InputError):  # more than half of a layer is selected
        norm, activation = MATCHED
        found[norm] = neurons.norm_matched(lm, seed)
        found[activation] = neurons.activation_matched(retain, seed)
    return found


def methods(
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    neurons: Neurons,
    controls: dict[str, Neurons],
    preferred: Corpus | tuple[str, ...] | None,
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> dict[str, Callable[[], Edit]]:
    """Return, by name, how to make each edit of the comparison."""

    def train(loss: losses.Loss, where: Neurons | None = None) -> Callable[[], Edit]:
        return lambda: erase.finetune(
            lm, forget, retain, loss=loss, neurons=where, preferred=preferred, steps=steps,
            batch_size=max(batch_size // 2, 1), seed=seed, progress=False,
        )  # fmt: skip

    def ablate(where: Neurons) -> Callable[[], Edit]:
        return lambda: erase.ablate(lm, where)

    def closed(where: Neurons | None) -> Callable[[], Edit]:
        return lambda: erase.rank_one(lm, forget, retain, neurons=where, batch_size=batch_size)

    plan = {"ablate": ablate(neurons)}
    plan |= {f"ablate@{name}": ablate(where) for name, where in controls.items()}
    plan |= {"ga@neurons": train(losses.ga, neurons), "npo@neurons": train(losses.npo, neurons)}
    if "random 0" in controls:
        somewhere = controls["random 0"]
        plan |= {"ga@random 0": train(losses.ga, somewhere), "npo@random 0": train(losses.npo, somewhere)}
        plan |= {"rank_one@random 0": closed(somewhere)}
    plan |= {"rank_one@neurons": closed(neurons), "rank_one@layer": closed(None)}
    plan |= {"ga": train(losses.ga), "grad_diff": train(losses.grad_diff), "npo": train(losses.npo)}
    if preferred or all(example.wrong for example in forget):
        plan |= {"dpo": train(losses.dpo)}
    return plan


def check_audited(
    audited: Sequence[str],
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    preferred: Corpus | tuple[str, ...] | None,
    operators: Iterable[Operator],
    controls: int,
    selected: int,
) -> None:
    """Raise InputError for an edit to audit that a comparison does not make; which neurons are selected is not known.

    `selected` is how many there will be of each layer.
    """
    stand_in = Neurons(frozenset(), tuple(site.layer for site in lm.sites), lm.shape[1])
    names = [f"random {i}" for i in range(controls)]
    names += MATCHED if 2 * selected <= lm.shape[1] else ()
    others = dict.fromkeys(names, stand_in)
    plan = methods(lm, forget, retain, stand_in, others, preferred, steps=1, batch_size=1, seed=0)
    places = {"@neurons": stand_in, "@random 0": others.get("random 0")}
    plan |= further(operators, lm, forget, retain, places, {})
    if unknown := [name for name in audited if name not in plan]:
        raise InputError(f"no edit to audit is called {unknown[0]!r}; there are {', '.join(plan)}")


def made(
    lm: LM, plan: dict[str, Callable[[], Edit]], resume: str | Path | None, work: Any, progress: bool
) -> tuple[dict[str, Edit], dict[str, str]]:
    """Make every edit of the plan, and return the reasons why some could not be; `resume` reads finished ones back."""
    edits: dict[str, Edit] = {}
    failed: dict[str, str] = {}
    model = lm.digest() if resume else ""
    with tqdm(total=len(plan), desc="erase", disable=not progress) as bar:
        for name, make in plan.items():
            bar.set_postfix(edit=name, refresh=False)
            key = content_key(model=model, work=work, name=name)
            path = Path(resume) / f"{key}.safetensors" if resume else None
            if path and path.is_file():
                edits[name] = Edit.load(path)
            else:
                try:
                    edits[name] = make()
                except InputError as error:  # one method's failure is a finding, not the end of the comparison
                    failed[name] = str(error)
                else:
                    if path:
                        with whole_file(path) as scratch:
                            edits[name].save(scratch)
            bar.update()
    if not edits:
        raise InputError("no edit could be made: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))
    return edits, failed
