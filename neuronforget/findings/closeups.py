"""What a report shows of single neurons and tokens: neuron cards, highlighted texts, and the pictures' numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.auditing.cases import Subject
from neuronforget.auditing.neurons import written
from neuronforget.corpora import Batch, Corpus
from neuronforget.corpora.tokens import piece
from neuronforget.edits import Edit
from neuronforget.errors import InputError, reading
from neuronforget.models import LM, activations_only, frozen
from neuronforget.models.likelihood import answer_nll
from neuronforget.models.routed import neuron_name
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons
from neuronforget.runs import whole_file
from neuronforget.scores import Scores, lens
from neuronforget.taps import TorchHooks
from neuronforget.taps.protocol import by_example

CARDS, TEXTS, TOKENS, EXAMPLES = 8, 8, 6, 3  # neurons with a card, texts, tokens of a neuron's lens, its examples
AROUND = 6  # tokens shown before the one at which a neuron is most active

ByNeuron = Float[np.ndarray, "layer neuron"]


@dataclass(frozen=True)
class Highlight:
    """A text's tokens, and how much the answer's loss (nats) would rise there without some neurons, to first order."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Card:
    """One neuron: its score and rank, the tokens it promotes and suppresses, where it is most active, what edits did.

    `examples` are (text before the token, the token, activation there). `changes` gives, by edit, the
    relative change of its write vector and the RMS change of its activation on forget.
    """

    layer: int
    neuron: int
    score: float
    rank: int
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]
    examples: tuple[tuple[str, str, float], ...]
    changes: dict[str, tuple[float, float]]
    own: int = 0  # neurons of an expert, of a mixture

    @property
    def name(self) -> str:
        """What the neuron is called."""
        return neuron_name(self.layer, self.neuron, self.own)


@dataclass(frozen=True, eq=False)
class Closeups:
    """By corpus the mean `|a g|` of every neuron, by edit and corpus every neuron's shift, texts, and neuron cards."""

    recorded: dict[str, ByNeuron]
    shifts: dict[str, dict[str, ByNeuron]]
    texts: tuple[Highlight, ...]
    cards: tuple[Card, ...]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: the arrays, with texts and cards in its metadata."""
        from safetensors.numpy import save_file

        arrays = {f"recorded/{kind}": values for kind, values in self.recorded.items()}
        arrays |= {f"shifts/{name}/{kind}": values for name, of in self.shifts.items() for kind, values in of.items()}
        meta: dict[str, list[Any]] = {name: [asdict(one) for one in getattr(self, name)] for name in ("texts", "cards")}
        meta["shifts"] = [*self.shifts]
        with whole_file(path) as scratch:
            save_file(arrays, scratch, {"closeups": json.dumps(meta)})

    @classmethod
    def load(cls, path: str | Path) -> Closeups:
        """Read what `save` wrote. Raises InputError for any other file."""
        from safetensors import safe_open

        recorded: dict[str, ByNeuron] = {}
        with reading(path, "close-ups"), safe_open(str(path), "np") as file:
            meta = json.loads((file.metadata() or {})["closeups"])
            shifts: dict[str, dict[str, ByNeuron]] = {name: {} for name in meta["shifts"]}
            for key in file.keys():  # noqa: SIM118 (not a dict)
                of, kind = key.rsplit("/", 1)
                (recorded if of == "recorded" else shifts[of.removeprefix("shifts/")])[kind] = file.get_tensor(key)
            texts = tuple(Highlight(**_frozen(row)) for row in meta["texts"])
            return cls(recorded, shifts, texts, tuple(Card(**_frozen(row)) for row in meta["cards"]))


@checks_kinds
def closeups(
    lm: LM,
    forget: Corpus,
    moments: Mapping[str, Moments],
    scores: Scores,
    neurons: Neurons,
    edits: Mapping[str, Edit],
    shifts: dict[str, dict[str, ByNeuron]],
    *,
    batch_size: int = 64,
) -> Closeups:
    """Look closely at the selected neurons that score highest, and at what some edits did to every neuron.

    `moments` are of "forget" and "retain", `shifts` of every edit on both (`metrics.neuron_shift`). Raises InputError
    for an empty selection.
    """
    if not len(neurons):
        raise InputError("no neuron is selected: there is nothing to look at closely")
    recorded = {kind: (m["abs_ag"] / m.tokens).numpy() for kind, m in moments.items()}
    return Closeups(
        recorded,
        shifts,
        highlights(lm, forget.head(TEXTS), neurons, batch_size=batch_size),
        neuron_cards(
            lm, forget, scores, neurons, edits, {n: s["forget"] for n, s in shifts.items()}, batch_size=batch_size
        ),
    )


@checks_kinds
def highlights(lm: LM, corpus: Corpus, neurons: Neurons, *, batch_size: int = 64) -> tuple[Highlight, ...]:
    """Return, for each text, `-sum a g` over the neurons at every token: where they hold the answer up.

    g is the gradient of the answer's mean loss (nats a token) with respect to the activation.
    """
    rows = lm.encode(corpus)
    found: dict[int, Highlight] = {}
    with activations_only(lm):
        for batch in lm.batches(rows, batch_size):
            out = TorchHooks(lm)(batch.inputs)
            grads = out.grads(answer_nll(out.logits, batch).sum())
            total = torch.zeros(batch.input_ids.shape, dtype=torch.float64)
            for layer, index in neurons.by_layer().items():
                a, g = (by_example(x[layer].detach(), batch.inputs)[..., index] for x in (out.acts, grads))
                total -= (a.double() * g.double()).sum(-1).cpu()
            for place, i in enumerate(batch.index):
                ids = rows[i].ids
                said = tuple(piece(lm.tokenizer, ids, at) for at in range(len(ids)))
                found[i] = Highlight(said, tuple(total[place, : len(ids)].tolist()))
    return tuple(found[i] for i in range(len(rows)))


@checks_kinds
def neuron_cards(
    lm: LM,
    corpus: Corpus,
    scores: Scores,
    neurons: Neurons,
    edits: Mapping[str, Edit],
    shifts: Mapping[str, ByNeuron],
    *,
    count: int = CARDS,
    batch_size: int = 64,
) -> tuple[Card, ...]:
    """Return cards of the selected neurons that score highest; `shifts` are of the edits, on the corpus."""
    place = {layer: i for i, layer in enumerate(scores.layers)}
    ranked = scores.ranked.flatten()
    order = ranked.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(1, len(order) + 1)
    width = scores.values.shape[1]
    chosen = sorted(neurons, key=lambda n: int(rank[place[n[0]] * width + n[1]]))[:count]
    read = _in_words(lm, chosen)
    active = _most_active(lm, corpus, chosen, batch_size)
    changed = {name: written(Subject(name, lm), Subject(name, lm, edit)) for name, edit in edits.items()}
    return tuple(
        Card(
            layer, j, float(scores.values[place[layer], j]), int(rank[place[layer] * width + j]),
            *words, examples,
            {name: (float(changed[name][place[layer], j]), float(shifts[name][place[layer], j])) for name in edits},
            scores.own,
        )
        for (layer, j), words, examples in zip(chosen, read, active, strict=True)
    )  # fmt: skip


def _in_words(lm: LM, chosen: Sequence[tuple[int, int]]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The tokens that each neuron promotes and suppresses; none where the unembedding does not read what it writes."""
    try:
        read = lens(lm, chosen, k=TOKENS)
    except InputError:
        return [((), ())] * len(chosen)
    return [(tuple(t for t, _ in words.promoted), tuple(t for t, _ in words.suppressed)) for words in read]


@torch.no_grad()
def _most_active(
    lm: LM, corpus: Corpus, chosen: Sequence[tuple[int, int]], batch_size: int
) -> list[tuple[tuple[str, str, float], ...]]:
    """Of each neuron the examples in which its activation is largest in magnitude, each by the token where it is."""
    rows = lm.encode(corpus)
    found: list[list[tuple[float, int, int]]] = [[] for _ in chosen]
    with frozen(lm):
        for batch in lm.batches(rows, batch_size):
            acts = TorchHooks(lm)(batch.inputs).acts
            for own, (layer, j) in zip(found, chosen, strict=True):
                own += _peaks(by_example(acts[layer], batch.inputs)[..., j].float().cpu(), batch)
    best: list[dict[tuple[str, str], float]] = [{} for _ in chosen]
    for texts, own in zip(best, found, strict=True):
        for value, i, place in sorted(own, key=lambda peak: -abs(peak[0])):
            if len(texts) < EXAMPLES:
                texts.setdefault(_up_to(lm, rows[i].ids, place), value)  # texts with one beginning count once
    return [tuple((*text, value) for text, value in texts.items()) for texts in best]


def _peaks(act: Float[Tensor, "example token"], batch: Batch) -> list[tuple[float, int, int]]:
    """(signed peak, example, token) of every example."""
    size = act.abs().masked_fill(~batch.attention_mask.bool().cpu(), -1.0)
    at = size.argmax(1)
    values = act.gather(1, at[:, None])[:, 0].tolist()
    return list(zip(values, batch.index, at.tolist(), strict=True))


def _up_to(lm: LM, ids: Sequence[int], place: int) -> tuple[str, str]:
    """The text before a token, and the token."""
    return lm.tokenizer.decode(list(ids[max(0, place - AROUND) : place])), piece(lm.tokenizer, ids, place)


def _frozen(values: Any) -> Any:
    """What JSON holds, with tuples for its lists; a mapping stays one."""
    if isinstance(values, dict):
        return {key: _frozen(value) for key, value in values.items()}
    return tuple(map(_frozen, values)) if isinstance(values, list) else values
