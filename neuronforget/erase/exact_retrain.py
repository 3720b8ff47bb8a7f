"""SISA: training in shards, so that to forget is to retrain the shards that held it, exactly (arXiv:1912.03817).

Every shard's model is trained from the same start on its share of the corpus alone; answers are the mean of their
probabilities. An example's shard depends on its content (its subject, where it names one), not on the others: what is
left after forgetting is, bit for bit, what training without the forget corpus gives. What the start model knows
stays. The paper's slices, checkpoints inside a shard that save time, are left out.

An ensemble is not one edit of a model. It is kept as one edit of the start model for each shard; what forgetting did
to a shard's model is an edit too (`retrained`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Batch, Corpus, Example
from neuronforget.edits import Edit
from neuronforget.edits.changes import Change
from neuronforget.erase.ablate import finished
from neuronforget.erase.finetune import finetune
from neuronforget.errors import InputError
from neuronforget.losses import learn
from neuronforget.models import LM, frozen

#: Trains the start model on a shard.
Train = Callable[[LM, Corpus], Edit]


@dataclass(frozen=True, eq=False)
class Sisa:
    """An ensemble: each shard's corpus, and the edit that makes the start model into the shard's."""

    shards: tuple[Corpus, ...]
    edits: tuple[Edit, ...] = field(repr=False)
    train: Train = field(repr=False)

    def forget(self, lm: LM, forget: Corpus) -> Sisa:
        """Return the ensemble without the forget corpus: shards that held some of it are trained anew, from `lm`.

        Raises InputError for an example that no shard holds, and where nothing would be left of a shard.
        """
        gone = {_key(example) for example in forget}
        if missing := gone - {_key(example) for shard in self.shards for example in shard}:
            raise InputError(f"no shard was trained on {min(missing)[0][:60]!r}, nor on {len(missing) - 1} others")
        left = [tuple(e for e in shard if _key(e) not in gone) for shard in self.shards]
        if empty := [i for i, examples in enumerate(left) if not examples]:
            raise InputError(f"nothing would be left of shard {empty[0]} of {len(left)}: train fewer, larger shards")
        shards, edits = list(self.shards), list(self.edits)
        for i, examples in enumerate(left):
            if len(examples) < len(shards[i]):
                shards[i] = replace(shards[i], examples=examples)
                edits[i] = self.train(lm, shards[i])
        return replace(self, shards=tuple(shards), edits=tuple(edits))

    @torch.no_grad()
    def logits(self, lm: LM, batch: Batch) -> Float[Tensor, "example token vocab"]:
        """Return the log of the mean of the shards' probabilities; each model is put on `lm` in turn."""
        found = []
        with frozen(lm):
            for edit in self.edits:
                with edit.on(lm):
                    found.append(lm.model(**batch.inputs, use_cache=False).logits.float().log_softmax(-1))
        return torch.stack(found).logsumexp(0) - torch.tensor(float(len(found))).log()


@checks_kinds
def sisa(lm: LM, corpus: Corpus, *, shards: int = 4, train: Train | None = None) -> Sisa:
    """Train `lm` on each of `shards` shards of a corpus, and leave it as it was.

    `train` makes a shard's edit; by default it is `finetune(loss=learn)` on the whole model. Raises InputError where
    a shard would be empty.
    """
    if shards < 1:
        raise InputError(f"shards counts models: 1 or more, found {shards}")
    parts = [replace(corpus, examples=own, name=f"{corpus.name} shard {i}") if own else None
             for i, own in enumerate(_sharded(corpus, shards))]  # fmt: skip
    kept = tuple(part for part in parts if part is not None)
    if len(kept) < shards:
        raise InputError(
            f"{shards - len(kept)} of {shards} shards would be empty (by subject, else by content): take fewer"
        )
    train = partial(finetune, loss=learn, progress=False) if train is None else train
    return Sisa(kept, tuple(train(lm, part) for part in kept), train)


@checks_kinds
def retrained(lm: LM, before: Sisa, after: Sisa, shard: int) -> Edit:
    """Return the edit from a shard's model `before` to the one `after` forgetting: it goes on `before.edits[shard]`.

    Raises InputError for a shard that is not there or was not trained anew, and for shards trained on a part of the
    parameters' values.
    """
    if not 0 <= shard < min(len(before.edits), len(after.edits)):
        raise InputError(f"shard is a number from 0 to {min(len(before.edits), len(after.edits)) - 1}, found {shard}")
    old, new = (ensemble.edits[shard] for ensemble in (before, after))
    if old is new:
        raise InputError(f"shard {shard} held nothing of the forget corpus: its model is as it was")
    if any(change.index is not None for change in (*old.changes, *new.changes)):
        raise InputError("the shards were trained on neurons alone: compare their two edits instead")
    was, now = ({change.name: change for change in edit.changes} for edit in (old, new))
    changes = [Change(n, now[n].after if n in now else was[n].before, was[n].after if n in was else now[n].before)  # type: ignore[arg-type]
               for n in dict.fromkeys([*was, *now])]  # fmt: skip
    sizes = {"shard": shard, "shards": len(after.shards), "examples": len(after.shards[shard])}
    with old.on(lm):
        return finished(lm, None, changes, method="sisa", retrained=True, **sizes)


def _sharded(corpus: Corpus, shards: int) -> list[tuple[Example, ...]]:
    found: list[list[Example]] = [[] for _ in range(shards)]
    for example in corpus:
        name = repr(example.subject if example.subject is not None else _key(example))
        found[int(hashlib.sha256(name.encode()).hexdigest(), 16) % shards].append(example)
    return [tuple(own) for own in found]


def _key(example: Example) -> tuple[str, str]:
    return example.prompt, example.answer
