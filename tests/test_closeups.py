"""Close-ups: cards, highlights and their pictures hold the numbers of a plain computation."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from beds import bed

import neuronforget as nf
from neuronforget import figures
from neuronforget.corpora import encode
from neuronforget.corpora.tokens import piece
from neuronforget.errors import InputError
from neuronforget.findings.closeups import CARDS, Closeups, _up_to, closeups, highlights, neuron_cards
from neuronforget.metrics import neuron_shift
from neuronforget.reporting.pictures import closeup_pictures, moved_pictures
from neuronforget.taps import TorchHooks


@pytest.fixture(scope="module")
def found() -> tuple[Closeups, nf.Scores, nf.Neurons, dict[str, nf.Edit]]:
    made = bed()
    retain = made.retain.head(30)
    moments = {
        "forget": nf.record(made.lm, made.forget, progress=False),
        "retain": nf.record(made.lm, retain, progress=False),
    }
    scores = nf.scores.grad_x_act(*moments.values())
    neurons = nf.select.per_layer(scores, 0.05)
    edits = {"ablate": nf.erase.ablate(made.lm, neurons), "one": nf.erase.ablate(made.lm, next_best(scores, neurons))}
    corpora = {"forget": made.forget, "retain": retain}
    shifts = {n: {kind: neuron_shift(made.lm, e, c).numpy() for kind, c in corpora.items()} for n, e in edits.items()}
    return closeups(made.lm, made.forget, moments, scores, neurons, edits, shifts), scores, neurons, edits


def next_best(scores: nf.Scores, neurons: nf.Neurons) -> nf.Neurons:
    """The selected neuron that scores highest, alone."""
    best = max(neurons, key=lambda n: float(scores.ranked[scores.layers.index(n[0]), n[1]]))
    return nf.Neurons(frozenset({best}), neurons.layers, neurons.width)


def test_a_highlight_is_the_slope_of_the_loss_as_the_neurons_fade(found: Any) -> None:
    """By finite differences: the neurons' activations at one token are made a little less and a little more.

    The norms of this model compute in float32, so that a smaller step would measure rounding.
    """
    _, _, neurons, _ = found
    lm = nf.LM(copy.deepcopy(bed().lm.model).double(), bed().lm.tokenizer)
    corpus = bed().forget.head(2)
    for row, light in zip(encode(corpus, lm.tokenizer), highlights(lm, corpus, neurons), strict=True):
        (batch,) = nf.corpora.batches([row], 1, lm.pad_id)
        assert light.tokens == tuple(lm.tokenizer.decode([token]) for token in row.ids)

        def loss(place: int, size: float, batch: Any = batch) -> float:
            def faded(act: torch.Tensor, layer: int) -> torch.Tensor:
                act = act.clone()
                act[:, place, neurons.by_layer().get(layer, torch.zeros(0, dtype=torch.long))] *= 1 - size
                return act

            edits = {site.layer: partial(faded, layer=site.layer) for site in lm.sites}
            logits = TorchHooks(lm)(batch.inputs, edits).logits.detach().log_softmax(-1)
            mask = batch.answer_mask[:, 1:]
            return -float(logits[:, :-1][mask].gather(-1, batch.input_ids[:, 1:][mask][:, None]).mean())

        for place in range(len(row.ids) - 1):
            slope = (loss(place, 1e-2) - loss(place, -1e-2)) / 2e-2
            assert light.values[place] == pytest.approx(slope, rel=3e-3, abs=1e-4)
        assert light.values[-1] == 0  # nothing comes after the last token


def test_the_tokens_of_a_highlight_are_the_text() -> None:
    """Llama's tokenizer takes the blank off a word that is decoded alone: joined, such words would run together."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "\u2581One", "\u2581day", ",", "\u2581she", "\u2581sa", "w", "<0xC3>", "<0xA9>", "\u2581", "."]
    base = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True))
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    base.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    own = nf.LM(bed().lm.model, PreTrainedTokenizerFast(tokenizer_object=base, bos_token="<s>"))
    ids = [1, 2, 3, 4, 5, 6, 9, 7, 8, 10]
    assert [piece(own.tokenizer, ids, at) for at in range(6)] == ["One", " day", ",", " she", " sa", "w"]
    assert _up_to(own, ids, 3) == ("One day,", " she")
    assert [piece(own.tokenizer, [1, token], 1) for token in (2, 3, 6)] == [" day", ",", "w"]
    assert own.tokenizer.decode(ids[:6]) == "".join(piece(own.tokenizer, ids, at) for at in range(6))


def test_no_token_of_a_letter_in_several_bytes_is_shown_as_nothing(tokenizer: Any) -> None:
    ids = tokenizer("Ida \u2581 Falk")["input_ids"]
    shown = [piece(tokenizer, ids, at) for at in range(len(ids))]
    assert all(shown) and shown.count("\ufffd") == 3 and shown[0] in "Ida"


def test_a_card_says_what_its_neuron_does_and_what_was_done_to_it(found: Any) -> None:
    near, scores, neurons, edits = found
    made = bed()
    assert len(near.cards) == min(CARDS, len(neurons))
    assert [card.rank for card in near.cards] == sorted(card.rank for card in near.cards)
    first = near.cards[0]
    shift = {name: neuron_shift(made.lm, edit, made.forget) for name, edit in edits.items()}
    acts: dict[tuple[int, int], list[float]] = {}
    for card in near.cards:
        at = scores.layers.index(card.layer), card.neuron
        assert (card.layer, card.neuron) in neurons and card.score == float(scores.values[at])
        assert card.rank == 1 + int((scores.ranked > scores.ranked[at]).sum())
        (words,) = nf.scores.lens(made.lm, [(card.layer, card.neuron)], k=6)
        assert card.promoted == tuple(token for token, _ in words.promoted)
        assert card.changes["ablate"] == (pytest.approx(1.0), pytest.approx(float(shift["ablate"][at]), rel=1e-6))
        assert card.changes["one"][0] == (pytest.approx(1.0) if card == first else 0.0)
        acts[card.layer, card.neuron] = [value for *_, value in card.examples]
    moments = nf.record(made.lm, made.forget, progress=False)
    for (layer, j), values in acts.items():
        at = scores.layers.index(layer), j
        most = max(abs(float(moments["min"][at])), abs(float(moments["max"][at])))
        assert abs(values[0]) == pytest.approx(most, rel=1e-4) and sorted(map(abs, values), reverse=True) == list(
            map(abs, values)
        )
    before, token, _ = first.examples[0]
    texts = [made.lm.tokenizer.decode(row.ids) for row in encode(made.forget, made.lm.tokenizer)]
    assert token and any(before + token in text for text in texts)


def test_the_pictures_hold_the_numbers(found: Any) -> None:
    near, scores, neurons, _ = found
    made = closeup_pictures(near, neurons)
    assert [p.title for p in made] == ["Forget against retain", "Where the selection acts"]
    heat = made[0].figure.data[0]
    assert int(np.nansum(heat.customdata)) == scores.values.numel()
    assert len(made[0].figure.data[2].x) == len(neurons)
    assert made[1].figure.data[0].z.shape[0] == len(near.texts)
    moved = moved_pictures(near.shifts, scores.layers)
    assert [p.title for p in moved] == ["How far each neuron moved: ablate", "How far each neuron moved: one"]
    ridge = moved[1].figure
    assert [t for t in ridge.layout.yaxis.ticktext] == [str(layer) for layer in scores.layers]
    still = int((near.shifts["one"]["forget"] == 0).sum(1)[0])
    assert f"{still} neurons did not move" in ridge.data[1].hovertemplate


def test_the_report_shows_the_cards(found: Any, tmp_path: Path) -> None:
    near, scores, neurons, edits = found
    results = nf.evaluate(bed().lm, edits, bed().forget, bed().retain.head(30), strengths=(), damage=None,
                          progress=False)  # fmt: skip
    page = nf.report(results, tmp_path / "r.html", scores=scores, neurons=neurons, closeups=near).read_text()
    first = near.cards[0]
    for words in (f"Layer {first.layer}, neuron {first.neuron}", f"{first.score:.4g}, rank 1", "<td>100%</td>"):
        assert words in page
    assert page.count('<article class="card">') == len(near.cards)
    for head in ("change of write weights", "change of activation (RMS)"):
        assert page.count(f'<th scope="col">{head}</th>') == len(near.cards)
    assert "0% leaves them as they were, ablation to zero is 100%" in page


def test_nothing_moved_and_nothing_selected(found: Any) -> None:
    near, scores, _, _ = found
    still = np.zeros((2, 5))
    assert isinstance(figures.ridgelines({"forget": still}, (0, 1)), go.Figure)
    assert isinstance(figures.density(still, still, "x"), go.Figure) and isinstance(figures.tokens([], "x"), go.Figure)
    none = nf.Neurons(frozenset(), scores.layers, scores.values.shape[1])
    with pytest.raises(InputError, match="no neuron is selected"):
        closeups(bed().lm, bed().forget, {}, scores, none, {}, {})
    assert neuron_cards(bed().lm, bed().forget, scores, none, {}, {}) == ()
    assert near.recorded["forget"].shape == scores.values.shape
