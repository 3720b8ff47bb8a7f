"""record() against brute force: one example at a time, in float64, by definition."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from gauges import tensor_peak
from neuronforget_kernels import PIECE_FIELDS
from torch import Tensor

from neuronforget.corpora import Corpus, Example
from neuronforget.corpora.tokens import Encoded, collate
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_nll
from neuronforget.moments import Moments, merge
from neuronforget.recording import Positions, batches, record
from neuronforget.taps import NAMES

EVERY_TAP = pytest.mark.parametrize("tap", NAMES)


def run(lm: LM, corpus: Corpus, **settings: Any) -> Moments:
    return record(lm, corpus, **{"tap": "torch_hooks", "batch_size": 3, "progress": False, **settings})


def assert_close(found: Tensor, expected: Tensor, what: str = "", rel: float = 1e-4) -> None:
    """Within `rel` of the largest value."""
    limit = rel * max(float(expected.abs().max()), 1e-12)
    worst = float((found.double() - expected.double()).abs().max())
    assert worst <= limit, f"{what}: off by {worst:.2e}, allowed {limit:.2e}"


def assert_same_moments(found: Moments, expected: Moments, rel: float = 1e-4) -> None:
    counts = [(m.tokens, m.examples, m.pooled, m.layers, m.index) for m in (found, expected)]
    assert counts[0] == counts[1]
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    for group in ("fields", "table", "norms"):
        theirs = getattr(expected, group)
        assert getattr(found, group).keys() == theirs.keys()
        for name, value in theirs.items():
            assert_close(getattr(found, group)[name], value, f"{group} {name}", rel)


def tokens_of(example: Example, tokenizer: Any) -> tuple[list[int], int]:
    """Token ids, and where the answer starts (never at 0: nothing predicts the first token)."""
    prompt = example.prompt
    coded = tokenizer(prompt + (" " if prompt else "") + example.answer, return_offsets_mapping=True)
    start = next(t for t, (_, end) in enumerate(coded["offset_mapping"]) if end > len(prompt))
    return coded["input_ids"], max(start, 1)


def brute_force(lm: LM, corpus: Corpus, positions: Positions) -> dict[str, Any]:
    """Every number of Moments from whole activations and gradients of a float64 copy, unbatched."""
    model = build(FAMILY_OF[type(lm.model).__name__], vocab_size=len(lm.tokenizer)).double()
    model.load_state_dict(lm.model.state_dict())
    acts: list[Tensor] = []

    def keep(_module: Any, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].retain_grad()
        acts.append(inputs[0])

    for site in lm.sites:
        model.get_submodule(site.path).register_forward_pre_hook(keep)
    examples: list[tuple[Tensor, Tensor]] = []
    loss = 0.0
    for example in corpus:
        ids, start = tokens_of(example, lm.tokenizer)
        acts.clear()
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nll = -torch.stack([logp[t - 1, ids[t]] for t in range(start, len(ids))]).mean()
        nll.backward()
        kept = slice(start - 1, len(ids) - 1) if positions == "answer" else slice(None)
        a = torch.stack([act.detach().view(len(ids), -1)[kept] for act in acts])
        g = torch.stack([act.grad.view(len(ids), -1)[kept] for act in acts])
        examples.append((a, g))
        loss += float(nll.detach())
    every_a, every_g = (torch.cat([pair[i] for pair in examples], 1) for i in (0, 1))
    s = torch.stack([(a * g).sum(1) for a, g in examples])
    u = torch.stack([g.sum(1) for _, g in examples])
    means = torch.stack([a.mean(1) for a, _ in examples])
    tokens = every_a.shape[1]
    fields = {
        "mean": every_a.mean(1),
        "m2": every_a.var(1, correction=0) * tokens,
        "pool_mean": means.mean(0),
        "pool_m2": means.var(0, correction=0) * len(examples),
        "min": every_a.amin(1),
        "max": every_a.amax(1),
        "abs_sum": every_a.abs().sum(1),
        "positive": (every_a > 0).sum(1),
        "s": s.sum(0),
        "abs_s": s.abs().sum(0),
        "s2": (s**2).sum(0),
        "u": u.sum(0),
        "u2": (u**2).sum(0),
        "us": (u * s).sum(0),
        "abs_ag": (every_a * every_g).abs().sum(1),
        "ag2": ((every_a * every_g) ** 2).sum(1),
        "g2": (every_g**2).sum(1),
    }
    peaks = torch.stack([a.gather(1, a.abs().argmax(1, keepdim=True))[:, 0] for a, _ in examples])
    table = {"s": s, "u": u, "peak": peaks}
    table["sum_a"] = torch.stack([a.sum(1) for a, _ in examples])
    table["sum_a2"] = torch.stack([(a**2).sum(1) for a, _ in examples])
    return {"fields": fields, "table": table, "tokens": tokens, "loss": loss}


FAMILY_OF = {"GPT2LMHeadModel": "gpt2", "OPTForCausalLM": "opt", "Phi3ForCausalLM": "phi3"}


@pytest.mark.parametrize("positions", ["all", "answer"])
@pytest.mark.parametrize("family", list(FAMILY_OF.values()))
def test_every_field_is_what_brute_force_finds(
    family: str, positions: Positions, tokenizer: Any, corpus: Corpus
) -> None:
    lm = LM(build(family, vocab_size=len(tokenizer)), tokenizer)
    expected = brute_force(lm, corpus, positions)
    found = run(lm, corpus, positions=positions, per_example=True)
    assert (found.tokens, found.examples, found.pooled) == (expected["tokens"], len(corpus), len(corpus))
    assert found.loss == pytest.approx(expected["loss"], rel=1e-5)
    assert set(found.fields) == set(PIECE_FIELDS) == set(expected["fields"])
    assert found.table.keys() == expected["table"].keys()
    for name, value in expected["fields"].items():
        assert found[name].dtype == torch.float64
        assert_close(found[name], value, name)
    for name, value in expected["table"].items():
        assert_close(found.table[name], value, name)
    assert_close(found.variance, expected["fields"]["m2"] / expected["tokens"])
    mean_square = expected["table"]["sum_a2"].sum(0) / expected["tokens"]
    assert_close(found.rms, mean_square.sqrt())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("per_example", [False, True])
def test_compiled_code_records_the_same(per_example: bool, lm: LM, corpus: Corpus) -> None:
    plain, found = (
        record(lm, corpus, batch_size=3, per_example=per_example, compiled=on, progress=False) for on in (False, True)
    )
    for table, other in ((plain.fields, found.fields), (plain.table, found.table)):
        for name, values in table.items():
            torch.testing.assert_close(other[name], values, rtol=1e-4, atol=1e-5, msg=name)


def test_norms_are_those_of_the_write_weights(lm: LM, corpus: Corpus) -> None:
    found = run(lm, corpus.head(1))
    for row, site in enumerate(lm.sites):
        columns = lm.model.get_submodule(site.path).weight.detach().double()
        assert_close(found.norms["l1"][row], columns.abs().sum(0), rel=1e-12)
        assert_close(found.norms["l2"][row], columns.square().sum(0).sqrt(), rel=1e-12)


@pytest.mark.parametrize("family", ["qwen2", "opt", "gpt2"])
def test_every_tap_records_equal_moments(family: str, tokenizer: Any, corpus: Corpus) -> None:
    lm = LM(build(family, vocab_size=len(tokenizer)), tokenizer)
    reference, *others = (run(lm, corpus, tap=name, per_example=True) for name in ("torch_hooks", *NAMES))
    for name, found in zip(NAMES, others, strict=True):
        assert found.info["tap"] == name
        assert_same_moments(found, reference, rel=1e-5)
    assert run(lm, corpus.head(1), tap=None).info["tap"] == "transformer_lens"


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_changes_nothing(batch_size: int, lm: LM, corpus: Corpus) -> None:
    settings: dict[str, Any] = {"per_example": True, "positions": "answer"}
    reference = run(lm, corpus, **settings)
    assert_same_moments(run(lm, corpus, batch_size=batch_size, **settings), reference, rel=1e-5)


def test_the_order_of_a_corpus_changes_nothing_but_the_tables_rows(lm: LM, corpus: Corpus) -> None:
    order = [3, 0, 6, 2, 5, 1, 4]
    shuffled = replace(corpus, examples=tuple(corpus.examples[i] for i in order))
    reference, found = run(lm, corpus, per_example=True), run(lm, shuffled, per_example=True)
    assert found.index == reference.index == tuple(range(len(corpus)))
    undone = {name: torch.empty_like(value) for name, value in found.table.items()}
    for name, value in found.table.items():
        undone[name][order] = value
    assert_same_moments(replace(found, table=undone), reference, rel=1e-5)


def test_an_example_in_company_is_recorded_as_it_is_alone(lm: LM, corpus: Corpus) -> None:
    together = run(lm, corpus, batch_size=len(corpus), per_example=True)
    for i, example in enumerate(corpus):
        alone = run(lm, replace(corpus, examples=(example,)), per_example=True)
        for name, value in alone.table.items():
            assert_close(together.table[name][i], value[0], f"example {i}, {name}", rel=1e-5)


def test_rows_of_the_table_sum_to_the_fields(lm: LM, corpus: Corpus) -> None:
    found = run(lm, corpus, per_example=True)
    assert found.index == tuple(range(len(corpus)))
    s, u = found.table["s"].double(), found.table["u"].double()
    by_field = {"s": s, "abs_s": s.abs(), "s2": s**2, "u": u, "u2": u**2, "us": u * s}
    for name, rows in by_field.items():
        assert rows.shape == (len(corpus), *lm.shape)
        assert_close(found[name], rows.sum(0), name, rel=1e-12)
    assert_close(found["mean"] * found.tokens, found.table["sum_a"].sum(0), rel=1e-6)
    assert_close(found.rms**2 * found.tokens, found.table["sum_a2"].sum(0), rel=1e-6)
    assert_close(torch.maximum(found["max"], -found["min"]), found.table["peak"].abs().amax(0), rel=1e-7)


def test_a_table_is_kept_only_when_asked_for(lm: LM, corpus: Corpus) -> None:
    found = run(lm, corpus)
    assert (found.table, found.index) == ({}, ())


@pytest.mark.parametrize("per_example", [False, True])
def test_two_recordings_add_up_to_the_recording_of_both(per_example: bool, lm: LM, corpus: Corpus) -> None:
    first, second = corpus.head(3), replace(corpus, examples=corpus.examples[3:])
    whole = run(lm, corpus, per_example=per_example)
    parts = [run(lm, part, per_example=per_example) for part in (first, second)]
    added = parts[0] + parts[1]
    if per_example:
        assert added.index == (0, 1, 2, 0, 1, 2, 3)  # each corpus counts its own rows
    assert_same_moments(replace(added, index=whole.index), whole, rel=1e-5)
    assert_same_moments(merge(parts), added, rel=0.0)


def test_merging_is_associative_and_commutative(lm: LM, corpus: Corpus) -> None:
    a, b, c = (run(lm, replace(corpus, examples=corpus.examples[i::3])) for i in range(3))
    assert_same_moments((a + b) + c, a + (b + c), rel=1e-12)
    assert_same_moments(a + b, b + a, rel=1e-12)


def test_merged_moments_name_the_data_of_both_and_are_of_like_positions(lm: LM, corpus: Corpus) -> None:
    parts = [Corpus(corpus.examples[:3], "first"), Corpus(corpus.examples[3:6], "second")]
    a, b = (run(lm, part) for part in parts)
    assert (a + b).info | {"corpus": "", "data": ""} == a.info | {"corpus": "", "data": ""}
    assert (a + b).info["corpus"] == "first + second"
    assert (a + b).info["data"] == f"{parts[0].digest()} + {parts[1].digest()}"
    assert (a + a).info == a.info
    many = [replace(a, info={**a.info, "corpus": f"c{i}", "data": f"{i}" * 16}) for i in range(9)]
    assert merge(many).info["corpus"] == (merge(many[:2]) + merge(many[2:])).info["corpus"] == "c0 + c1 + c2 + 6 more"
    assert len(merge(many).info["data"]) < 100 and merge(many).info["data"] != merge(many[::-1]).info["data"]
    with pytest.raises(InputError, match="one was recorded with positions='all', the other with 'answer'"):
        a + run(lm, parts[1], positions="answer")


def test_moments_of_different_models_do_not_merge(lm: LM, corpus: Corpus) -> None:
    other = LM(build("bloom", vocab_size=len(lm.tokenizer)), lm.tokenizer)
    with pytest.raises(InputError, match="different models"):
        run(lm, corpus.head(1)) + run(other, corpus.head(1))


@pytest.mark.parametrize("per_example", [False, True])
def test_saved_moments_load_unchanged(per_example: bool, lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    found = run(lm, corpus, per_example=per_example)
    found.save(tmp_path / "moments.safetensors")
    again = Moments.load(tmp_path / "moments.safetensors")
    assert_same_moments(again, found, rel=0.0)
    assert all(again.table[name].dtype == torch.float32 for name in again.table)
    assert (again.loss, again.info) == (found.loss, found.info)
    assert repr(again) == repr(found)
    assert again.info["corpus"] == "facts"
    assert again.info["data"] == corpus.digest()


def test_what_is_no_moments_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(InputError, match="no such file"):
        Moments.load(tmp_path / "nothing.safetensors")
    (tmp_path / "text").write_text("not tensors")
    with pytest.raises(InputError, match="no moments"):
        Moments.load(tmp_path / "text")
    save_file({"fields.mean": torch.zeros(1, 1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no moments"):
        Moments.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "phi3"])
def test_the_sum_of_s_is_the_gradient_along_the_write_weights(family: str, tokenizer: Any, corpus: Corpus) -> None:
    lm = LM(build(family, vocab_size=len(tokenizer)), tokenizer)
    found = run(lm, corpus)
    losses = []
    for example in corpus:
        ids, start = tokens_of(example, tokenizer)
        logp = lm.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        losses.append(-logp[torch.arange(len(ids) - 1), ids[1:]][start - 1 :].mean())
    torch.stack(losses).sum().backward()
    for row, site in enumerate(lm.sites):
        weight = lm.parameters[site.write.name]
        assert weight.grad is not None
        snip = (weight * weight.grad).detach().double().sum(1 - site.write.dim)
        assert_close(found["s"][row], snip, f"layer {row}")


@pytest.mark.parametrize("where", ["activation", "gradient"])
def test_nan_is_refused_and_the_model_given_back(where: str, lm: LM, corpus: Corpus) -> None:
    if where == "gradient":  # finite on the way forward, NaN on the way back
        lm.model.lm_head.register_full_backward_hook(lambda _m, grads, _o: (grads[0] * torch.nan,))
    else:
        with torch.no_grad():
            lm.parameters[lm.sites[0].read[0].name][3] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        run(lm, corpus)
    assert all(p.requires_grad for p in lm.model.parameters())


def test_an_overflow_is_refused(lm: LM, corpus: Corpus) -> None:
    with torch.no_grad():
        for part in lm.sites[1].read:
            lm.parameters[part.name].mul_(1e30)
    with pytest.raises(InputError, match="wider dtype"):
        run(lm, corpus)


@pytest.mark.usefixtures("untyped")
def test_settings_that_make_no_sense_are_refused(lm: LM, corpus: Corpus) -> None:
    with pytest.raises(InputError, match="batch_size"):
        run(lm, corpus, batch_size=0)
    with pytest.raises(InputError, match=r"positions.*'prompt'"):
        run(lm, corpus, positions="prompt")
    with pytest.raises(InputError, match="unknown tap"):
        run(lm, corpus, tap="hooks")
    with pytest.raises(InputError, match="no tokenizer"):
        run(LM(lm.model), corpus)


def test_moments_of_one_batch_travel_at_their_own_size(lm: LM, corpus: Corpus) -> None:
    found = run(lm, corpus, per_example=True)
    own = sum(x.nbytes for group in (found.fields, found.norms, found.table) for x in group.values())
    assert len(pickle.dumps(found)) < own + 20_000  # processes send them to one another


def test_without_per_example_no_table_leaves_its_device(
    lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = batches.moment_rows

    def with_a_table(*args: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        return real(*args, **settings)[0], torch.empty(5, 3, 40, device="meta")  # cannot be copied

    monkeypatch.setattr(batches, "moment_rows", with_a_table)
    assert run(lm, corpus).table == {}
    with pytest.raises(NotImplementedError, match="meta"):
        run(lm, corpus, per_example=True)


def activations_alive(width: int) -> list[tuple[int, ...]]:
    """Shapes of the tensors that hold a value for each neuron of more than ten tokens."""
    tensors = [x for x in gc.get_objects() if isinstance(x, Tensor) and not isinstance(x, torch.nn.Parameter)]
    return [tuple(x.shape) for x in tensors if x.shape[-1:] == (width,) and x.numel() > 10 * width]


@EVERY_TAP
def test_no_activation_outlives_its_batch(tap: str, lm: LM, corpus: Corpus) -> None:
    seen: list[list[tuple[int, ...]]] = []
    embedding = lm.model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda *_: seen.append(activations_alive(lm.shape[1])))
    gc.collect()
    before = activations_alive(lm.shape[1])
    gc.disable()  # what only a reference cycle keeps alive would fill a GPU all the same
    try:
        run(lm, corpus, tap=tap, batch_size=3)
        after = activations_alive(lm.shape[1])
    finally:
        gc.enable()
        handle.remove()
    assert len(seen) == 3  # batches
    assert [*seen, after] == [before] * 4


def test_a_recording_that_failed_on_its_way_back_keeps_no_activation(lm: LM, corpus: Corpus) -> None:
    def fail(*_: Any) -> None:
        raise ArithmeticError("on purpose")

    gc.collect()
    before = activations_alive(lm.shape[1])
    handle = lm.model.model.norm.register_full_backward_hook(fail)
    with pytest.raises(ArithmeticError, match="on purpose"):
        run(lm, corpus)
    handle.remove()
    gc.collect()
    assert activations_alive(lm.shape[1]) == before
    assert run(lm, corpus).examples == len(corpus)


@EVERY_TAP
def test_recording_leaves_the_model_as_it_was(tap: str, lm: LM, corpus: Corpus) -> None:
    lm.model.train()
    lm.model.model.layers[0].eval()
    names = list(lm.parameters)
    for name in names[::2]:
        lm.parameters[name].requires_grad_(False)
    kept = torch.ones_like(lm.parameters[names[1]])
    lm.parameters[names[1]].grad = kept

    def state() -> list[Any]:
        modes = [m.training for m in lm.model.modules()]
        return [
            modes,
            [(p.requires_grad, p.grad is None) for p in lm.model.parameters()],
            torch.get_rng_state().tolist(),
        ]

    before, weights = state(), {name: p.detach().clone() for name, p in lm.parameters.items()}
    run(lm, corpus, tap=tap)
    assert state() == before
    assert lm.parameters[names[1]].grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert all(torch.equal(p, weights[name]) for name, p in lm.model.named_parameters())


def test_dropout_and_the_callers_no_grad_do_not_reach_a_recording(lm: LM, corpus: Corpus) -> None:
    noisy = LM(build("gpt2", vocab_size=len(lm.tokenizer), resid_pdrop=0.5, attn_pdrop=0.5), lm.tokenizer)
    reference = run(noisy, corpus)
    noisy.model.train()
    assert_same_moments(run(noisy, corpus), reference, rel=0.0)
    with torch.no_grad():
        assert_same_moments(run(noisy, corpus), reference, rel=0.0)


def test_half_precision_is_recorded_in_full(lm: LM, corpus: Corpus) -> None:
    reference = run(lm, corpus)
    lm.model.to(torch.bfloat16)
    found = run(lm, corpus)
    assert all(value.dtype == torch.float64 for value in found.fields.values())
    assert found.loss == pytest.approx(reference.loss, rel=0.02)
    assert_close(found["mean"], reference["mean"], rel=0.05)
    assert found["max"].min() > -torch.inf


def test_the_loss_is_that_of_plain_cross_entropy_and_its_gradient_too(lm: LM) -> None:
    batch = collate([Encoded(0, (5, 9, 7, 3, 8), 2, 0), Encoded(1, (4, 6, 2), 1, 0)], 0)
    logits = torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(0)).double()
    # fp32 is what the losses are computed in, so the inputs are those that fp32 holds.
    ours, by_hand = (logits.float().requires_grad_() for _ in range(2))
    found = answer_nll(ours, batch)
    logp = by_hand.log_softmax(-1)
    expected = torch.stack([-(logp[0, 1, 7] + logp[0, 2, 3] + logp[0, 3, 8]) / 3, -(logp[1, 0, 6] + logp[1, 1, 2]) / 2])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    grads = [torch.autograd.grad(loss.sum(), x)[0] for loss, x in ((found, ours), (expected, by_hand))]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)
    assert not grads[0][:, -1].any()


def test_a_corpus_ten_times_longer_needs_no_more_memory(lm: LM, corpus: Corpus) -> None:
    longer = replace(corpus, examples=corpus.examples * 10)
    peaks = [
        tensor_peak(lambda c=c, n=n: record(lm, c, tap="torch_hooks", batch_size=4, per_example=n, progress=False))
        for c, n in ((corpus, False), (longer, False), (longer, True))
    ]
    state = len(PIECE_FIELDS) * lm.shape[0] * lm.shape[1] * 8 / 1e6
    # The sum so far is alive once more, no graph and no batch; a table, which does grow, shows.
    assert peaks[1] < peaks[0] + 1.01 * state < peaks[2]
