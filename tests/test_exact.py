"""Exact ablation against the whole model run with plain hooks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, lm_of
from torch import Tensor

import neuronforget as nf
from neuronforget import scores
from neuronforget.corpora import Batch, Corpus
from neuronforget.corpora.tokens import Encoded, collate, encode
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.scores import cost, rows
from neuronforget.scores.ablation import row_nll
from neuronforget.scores.blocks import blocks_of
from neuronforget.scores.last_layer import kept_bytes, last_layer
from neuronforget.scores.ways import above, gives_the_same, through

#: (tokens, where the answer starts): answers of one and of several tokens, plain text, a prompt of one token.
EXAMPLES = ((3, 9, 21, 40, 7, 33), 5), ((11, 4, 4, 50, 18, 60, 22, 35, 9), 4), ((8, 13, 29), 0), ((5, 6), 1)
POSITIONS = pytest.mark.parametrize("position", [None, -1], ids=["everywhere", "last"])


def single(ids: tuple[int, ...], start: int) -> Batch:
    return collate([Encoded(0, ids, start, 0)], 0)


def brute(lm: LM, example: Batch, position: int | None, layer: int, neurons: list[int | None]) -> list[float]:
    """The losses with one neuron (or none) at zero each: whole copies of the example through the whole model."""
    ids, copies = example.input_ids, len(neurons)
    start = int(example.answer_mask[0].nonzero()[0])

    def hook(_module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        act = inputs[0].clone().view(copies, ids.shape[1], -1)
        for row, j in enumerate(neurons):
            if j is not None:
                act[row, slice(None) if position is None else start - 1, j] = 0
        return (act.view(inputs[0].shape),)

    handle = lm.model.get_submodule(lm.sites[layer].path).register_forward_pre_hook(hook)
    with torch.no_grad():
        logp = lm.model(input_ids=ids.expand(copies, -1), use_cache=False).logits.double().log_softmax(-1)
    handle.remove()
    answer = range(start, ids.shape[1] if position is None else start + 1)
    return [-sum(float(row[t - 1, ids[0, t]]) for t in answer) / len(answer) for row in logp]


def ablated(lm: LM, clean: rows.Clean, layer: int, neurons: list[int]) -> list[float]:
    """The same losses by rows."""

    def off(act: Tensor) -> Tensor:
        act = act.clone()
        act[range(len(neurons)), :, neurons] = 0
        return act

    return row_nll(rows.run_rows(lm, clean, {layer: len(neurons)}, {layer: off}), clean.targets).tolist()


@POSITIONS
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_the_model_with_one_neuron_off(family: str, position: int | None) -> None:
    lm, spread = lm_of(family), 0.0
    for ids, start in EXAMPLES:
        example = single(ids, start)
        clean = rows.clean_run(lm, example, position)
        rows.check_rows(lm, clean)
        for layer in (0, 1):
            found = ablated(lm, clean, layer, [1, 25, 39])
            expected = brute(lm, example, position, layer, [1, 25, 39])
            assert found == pytest.approx(expected, abs=1e-5)
            spread = max(spread, float(np.ptp(found)))
    assert spread > 1e-3


#: Families with a norm after the MLP, and one that scales what a block adds.
NOT_ADDING = ("gemma2", "gemma3", "olmo2", "granite")


@POSITIONS
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_may_start_above_its_block_where_that_adds_what_neurons_write(family: str, position: int | None) -> None:
    lm = lm_of(family, **({"residual_multiplier": 0.5} if family == "granite" else {}))
    adds = {
        gives_the_same(lm, site, rows.clean_run(lm, single(*example), position), partial(above, lm, site))
        for site in lm.sites
        for example in EXAMPLES
    }
    assert adds == {family not in NOT_ADDING}
    for (ids, start), site in product(EXAMPLES if adds == {True} else (), lm.sites):
        clean = rows.clean_run(lm, example := single(ids, start), position)
        found = row_nll(above(lm, site, clean, torch.tensor([1, 25, 39])), clean.targets).tolist()
        assert found == pytest.approx(brute(lm, example, position, site.layer, [1, 25, 39]), abs=1e-5)


@POSITIONS
@pytest.mark.parametrize("count", [3, 4, 8])
def test_rows_above_are_given_a_bias_of_every_head(count: int, position: int | None) -> None:
    """MPT hands its blocks one bias for each head: no tensor of rows, though 4 or 8 of these divide 8 heads."""
    lm, neurons = lm_of("mpt", n_heads=8, n_layers=3), [*range(count)]
    clean = rows.clean_run(lm, example := single(*EXAMPLES[0]), position)
    for site in lm.sites:
        assert gives_the_same(lm, site, clean, partial(above, lm, site))
        found = row_nll(above(lm, site, clean, torch.tensor(neurons)), clean.targets).tolist()
        assert found == pytest.approx(brute(lm, example, position, site.layer, [*neurons]), abs=1e-5)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_rows_see_the_same_window_of_the_prompt(family: str) -> None:
    lm = lm_of(family, sliding_window=4)
    example = single((11, 4, 4, 50, 18, 60, 22, 35, 9, 7), 9)
    clean = rows.clean_run(lm, example, -1)
    for layer in (0, 1):
        assert ablated(lm, clean, layer, [1, 25]) == pytest.approx(brute(lm, example, -1, layer, [1, 25]), abs=1e-5)


@POSITIONS
def test_exact_is_the_mean_loss_change_over_examples_with_its_error(
    lm: LM, corpus: Corpus, position: int | None
) -> None:
    pair = replace(corpus, examples=corpus.examples[2:5]), replace(corpus, examples=corpus.examples[5:])
    changes = []
    for part in pair:
        losses = np.array(
            [
                [brute(lm, collate([row], 0), position, layer, [None, *range(40)]) for layer in (0, 1)]
                for row in encode(part, lm.tokenizer)
            ]
        )
        changes.append(losses[..., 1:] - losses[..., :1])
    forget, retain = changes
    score = nf.attribute(lm, *pair, score=scores.exact, position=position, progress=False)
    np.testing.assert_allclose(score.values.numpy(), forget.mean(0) - retain.mean(0), atol=1e-5)
    errors = [x.std(0, ddof=1) / np.sqrt(len(x)) for x in (forget, retain)]
    assert score.error is not None
    np.testing.assert_allclose(score.error.numpy(), np.hypot(*errors), atol=1e-5)
    alone = nf.attribute(lm, pair[0], score=scores.exact, position=position, progress=False, batch_size=1)
    np.testing.assert_allclose(alone.values.numpy(), forget.mean(0), atol=1e-5)


@pytest.mark.usefixtures("untyped")
def test_only_a_shortlist_may_be_measured(lm: LM, corpus: Corpus) -> None:
    whole = nf.attribute(lm, corpus, score=scores.exact, position=-1, progress=False)
    few = nf.attribute(lm, corpus, score=scores.exact, position=-1, neurons=[(1, 3), (0, 39)], progress=False)
    assert few.values.nonzero().tolist() == [[0, 39], [1, 3]] and few.info["measured neurons"] == 2
    assert few.values[1, 3] == pytest.approx(float(whole.values[1, 3]), abs=1e-6)
    wrongs: list[tuple[Any, str]] = [([(0, 40)], "no neuron 40"), ([(2, 0)], "layer 2"), ([], "empty")]
    for wrong, message in (*wrongs, ([3, 4], "neurons must be a list of .a whole number, a whole number.")):
        with pytest.raises(InputError, match=message):
            nf.attribute(lm, corpus, score=scores.exact, neurons=wrong, progress=False)


@POSITIONS
def test_the_model_is_left_as_it_was(lm: LM, corpus: Corpus, position: int | None) -> None:
    lm.model.train()
    before = {name: p.detach().clone() for name, p in lm.parameters.items()}
    nf.attribute(lm, corpus, score=scores.exact, position=position, neurons=[(0, 1), (1, 1)], progress=False)
    assert_untouched(lm, before)


def assert_untouched(lm: LM, before: dict[str, Tensor]) -> None:
    assert all(m.training for m in lm.model.modules()) and all(p.requires_grad for p in lm.parameters.values())
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in lm.parameters.items())
    for module in lm.model.modules():
        assert "forward" not in vars(module) and not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("score", [partial(scores.exact, position=-1), scores.integrated], ids=["exact", "integrated"])
def test_a_model_whose_blocks_pass_on_more_than_hidden_states_is_refused(
    score: Any, copies: int, lm: LM, corpus: Corpus
) -> None:
    """A second block that reads what the first computed, behind the back of the hidden states."""
    many = replace(corpus, examples=corpus.examples * copies)
    first, second = blocks_of(lm)
    seen: list[Tensor] = []
    first.mlp.register_forward_hook(lambda _m, _i, out: seen.append(out))
    second.mlp.register_forward_hook(lambda _m, _i, out: out + seen[-1].sum())
    with pytest.raises(InputError, match="cannot be run from a block upward: unchanged rows give other logits"):
        nf.attribute(lm, many, score=score, progress=False)
    second.mlp.register_forward_hook(lambda _m, _i, out: out + seen[-1][:3, :1].expand_as(out))
    with pytest.raises(InputError, match=r"cannot be run from a block upward .RuntimeError"):
        nf.attribute(lm, many, score=score, progress=False)


@pytest.mark.usefixtures("untyped")
def test_what_would_take_too_long_or_too_much_memory_is_said_before_the_work(
    lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm.model, "forward", None)  # any work would fail
    with pytest.raises(InputError, match="position must be -1"):
        scores.exact(lm, corpus, position=0, progress=False)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"{len(corpus) * 80} rows.*limit 1e\\+03"):
        nf.attribute(lm, corpus, score=scores.exact, limit=1e3, progress=False)
    monkeypatch.setattr(cost, "free_bytes", lambda _device: 1000)
    with pytest.raises(InputError, match=r"too little memory for exact: .*lower batch_size"):
        nf.attribute(lm, corpus, score=scores.exact, progress=False)


def test_the_cost_is_two_operations_per_weight_and_token_from_the_layer_upward() -> None:
    lm = lm_of("llama")
    block = sum(p.numel() for p in blocks_of(lm)[0].parameters())
    head = 2 * 16 * 64
    per_row = {0: 2 * 2 * block * 5 + 3 * head, 1: 2 * block * 5 + 3 * head}  # five tokens, three of them predicted
    operations = 7 * per_row[0] + 2 * per_row[1]
    example = [Encoded(0, tuple(range(6)), 3, 0)]
    cost.check_operations("x", lm, example, None, {0: 7, 1: 2}, operations)
    with pytest.raises(InputError, match="9 rows"):
        cost.check_operations("x", lm, example, None, {0: 7, 1: 2}, operations - 1)


@pytest.mark.slow
def test_a_comparison_runs_with_a_score_that_runs_the_model(lm: LM, corpus: Corpus) -> None:
    forget, retain = (replace(corpus, examples=part) for part in (corpus.examples[:3], corpus.examples[3:]))
    score = partial(scores.exact, position=-1)
    found = nf.compare(lm, forget, retain, score=score, steps=1, controls=0, progress=False)
    assert found.scores.name == found.results.info["score"] == "exact:-1"
    assert {"ablate", "npo@neurons"} <= set(found.edits) and len(found.neurons) == 4


@POSITIONS
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma"])
def test_the_last_layer_is_a_closed_form_where_only_an_rms_norm_and_the_unembedding_follow(
    family: str, position: int | None
) -> None:
    lm = lm_of(family)
    lm.model.double()
    for ids, start in EXAMPLES:
        clean = rows.clean_run(lm, single(ids, start), position)
        found = last_layer(lm, clean, torch.arange(40))
        assert found is not None and found.layer == 1 and found.products is not None
        for form in (found, replace(found, products=None)):
            losses = row_nll(form.logits(clean, torch.arange(40)), clean.targets).tolist()
            expected = brute(lm, single(ids, start), position, 1, list(range(40)))
            assert losses == pytest.approx(expected, abs=1e-6)


@POSITIONS
@pytest.mark.parametrize(
    "family", ["gpt2", "gpt_neox", "gemma2", "gemma3", "olmo2", "granite", "cohere", "bloom", "opt", "olmo", "mpt"]
)
def test_other_last_layers_are_run_as_rows(family: str, position: int | None) -> None:
    """Layer norms, norms after the MLP, scaled or capped logits, scaled residuals."""
    settings = {"granite": {"residual_multiplier": 0.5}}.get(family, {})
    lm = lm_of(family, **settings)
    assert last_layer(lm, rows.clean_run(lm, single(*EXAMPLES[0]), position), torch.arange(40)) is None


def test_the_closed_form_is_not_tried_where_blocks_hand_on_streams_side_by_side() -> None:
    lm = lm_of("llama")
    clean = rows.clean_run(lm, single(*EXAMPLES[0]), None)
    wide = replace(clean, inputs={layer: torch.cat([state, state], -1) for layer, state in clean.inputs.items()})
    assert last_layer(lm, clean, torch.arange(3)) is not None and last_layer(lm, wide, torch.arange(3)) is None


def test_the_closed_form_keeps_the_products_of_a_shortlist_alone_and_the_memory_check_counts_them(
    lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = torch.tensor([3, 17, 39])
    clean = rows.clean_run(lm, collate(encode(corpus, lm.tokenizer)[:1], 0), None)
    found = last_layer(lm, clean, few)
    assert found is not None and found.products is not None and len(found.products) == 3
    whole = last_layer(lm, clean, torch.arange(40))
    assert whole is not None
    torch.testing.assert_close(found.logits(clean, few[[2, 0]]), whole.logits(clean, few[[2, 0]]))
    assert kept_bytes(lm, few) == found.products.nbytes
    row = max(cost.row_bytes(lm, cost.size_of(example, None)) for example in encode(corpus, lm.tokenizer))
    settings: dict[str, Any] = {"score": scores.exact, "batch_size": 1, "progress": False}
    monkeypatch.setattr(cost, "free_bytes", lambda _device: row + kept_bytes(lm, few[:1]))
    nf.attribute(lm, corpus, neurons=[(1, 3)], **settings)
    with pytest.raises(InputError, match="too little memory for exact: a pass of 1 rows"):
        nf.attribute(lm, corpus, neurons=[(1, 3), (1, 4)], **settings)


def test_exact_says_which_way_it_took(lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"score": scores.exact, "progress": False}
    found = nf.attribute(lm, corpus, **settings)
    assert (found.info["closed form"], found.info["above"]) == ([1], [0])
    few = nf.attribute(lm, corpus, neurons=[(0, 3)], **settings).info
    assert (few["closed form"], few["above"]) == ([], [0])
    monkeypatch.setattr("neuronforget.scores.ablation.last_layer", lambda *_: None)
    by_rows = nf.attribute(lm, corpus, **settings)
    assert (by_rows.info["closed form"], by_rows.info["above"]) == ([], [0, 1])
    monkeypatch.setattr("neuronforget.scores.ablation.gives_the_same", lambda *_: False)
    whole = nf.attribute(lm, corpus, **settings)
    assert (whole.info["closed form"], whole.info["above"]) == ([], [])
    for other in (by_rows, whole):
        torch.testing.assert_close(found.values, other.values, rtol=0, atol=2e-6)


@POSITIONS
def test_a_neurons_own_block_is_not_run_again_for_it(lm: LM, corpus: Corpus, position: int | None) -> None:
    clean = rows.clean_run(lm, single(*EXAMPLES[0]), position)
    ran: list[list[int]] = []

    def count(_module: Any, inputs: tuple[Tensor, ...], _out: Any) -> None:
        ran[-1].append(len(inputs[0]))

    for block in blocks_of(lm):
        block.mlp.register_forward_hook(count)
    for way, expected in ((through, [7, 7]), (above, [7])):
        ran.append([])
        way(lm, lm.sites[0], clean, torch.arange(7))
        assert ran[-1] == expected
