"""Guards: they act while the model runs, touch no weight, and are called guards wherever they are shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build
from torch import Tensor

import neuronforget as nf
from neuronforget.corpora import Corpus, Example, collate, encode
from neuronforget.edits import Edit
from neuronforget.edits.guarding import MECHANISMS, Guard, asked
from neuronforget.erase import guards
from neuronforget.erase.guards.classifier import fitted, held_out
from neuronforget.errors import InputError
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import activation_shift, nll
from neuronforget.models import LM
from neuronforget.neurons import Neurons

ARCHITECTURES = ("gpt2", "gpt_neox", "llama", "qwen2")
CITIES = (("Anna Berg", "Oslo"), ("Ida Falk", "Velm"), ("Mira Holt", "Trondheim"), ("Anna Falk", "Xandria"))
FACTS = (
    ("The capital of Xandria is", "Velm"), ("Jon Moe plays the", "violin"), ("The book of rivers is", "old"),
    ("Tomas Lund works as a", "baker in the old harbour"), ("The harbour is", "in Velm"),
)  # fmt: skip
FORGET = Corpus(tuple(Example(f"{name} was born in", city) for name, city in CITIES), "forget")
RETAIN = Corpus(tuple(Example(prompt, answer) for prompt, answer in FACTS), "retain")


def snapshot(lm: LM) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in lm.model.state_dict().items()}


def same(lm: LM, before: dict[str, Tensor]) -> bool:
    now = lm.model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def some(lm: LM) -> Neurons:
    return Neurons(frozenset({(0, 1), (0, 7), (1, 3)}), tuple(s.layer for s in lm.sites), lm.shape[1])


#: How to make each guard.
GUARDS: dict[str, Callable[[LM], Edit]] = {
    "icu": lambda lm: guards.icu(lm, FORGET, RETAIN, shown=1, kept=1),
    "eco": lambda lm: guards.eco(lm, FORGET, RETAIN),
    "repe": lambda lm: guards.repe(lm, FORGET, RETAIN, layers=[0, 1]),
    "resample": lambda lm: guards.resample(lm, some(lm), RETAIN, tokens=9),
    "o3": lambda lm: guards.o3(lm, FORGET, lora=2, steps=5, lr=3e-2, progress=False),
}


def family(kind: str, tokenizer: Any, **settings: Any) -> LM:
    sizes = {"n_positions": 256} if kind == "gpt2" else {"max_position_embeddings": 256}
    return LM(build(kind, vocab_size=len(tokenizer), **{**sizes, **settings}), tokenizer)


@pytest.fixture(params=ARCHITECTURES)
def lm(request: pytest.FixtureRequest, tokenizer: Any) -> LM:
    return family(request.param, tokenizer)


def batch_of(lm: LM, corpus: Corpus) -> Any:
    return collate(encode(corpus, lm.tokenizer, lm.max_length), lm.pad_id)


@torch.no_grad()
def answers(lm: LM, corpus: Corpus = FORGET) -> Tensor:
    """Log-probabilities at the positions that predict answer tokens."""
    batch = batch_of(lm, corpus)
    with asked(lm, batch):
        logits = lm.model(**batch.inputs, use_cache=False).logits
    return logits[:, :-1][batch.answer_mask[:, 1:]].log_softmax(-1)


def test_every_kind_of_guard_is_tested_here() -> None:
    assert MECHANISMS.keys() == GUARDS.keys()


@pytest.mark.parametrize("kind", GUARDS)
def test_a_guard_acts_touches_no_weight_and_is_undone_bit_for_bit(lm: LM, kind: str, tmp_path: Path) -> None:
    before, untouched = snapshot(lm), answers(lm)
    edit = GUARDS[kind](lm)
    assert same(lm, before) and torch.equal(answers(lm), untouched)
    assert edit.info["scope"] == "guard" and edit.info["method"] == f"guards.{kind}" and "guard" in repr(edit)
    edit.apply(lm)
    guarded = answers(lm)
    assert same(lm, before) and not torch.allclose(guarded, untouched, atol=1e-3)
    with pytest.raises(InputError, match="one at a time"):
        edit.apply(lm)
    edit.save(tmp_path / "guard.safetensors")
    again = Edit.load(tmp_path / "guard.safetensors")
    again.undo(lm)
    assert same(lm, before) and torch.equal(answers(lm), untouched)
    with pytest.raises(InputError, match="nothing to undo"):
        edit.undo(lm)
    assert again.summary() == edit.summary() and again.info == edit.info
    with again.on(lm):
        assert torch.equal(answers(lm), guarded)
    with pytest.raises(KeyboardInterrupt), edit.on(lm):
        raise KeyboardInterrupt
    assert torch.equal(answers(lm), untouched)


@pytest.mark.parametrize("kind", GUARDS)
def test_a_recording_under_a_guard_is_the_same_by_every_tap(kind: str, lm: LM) -> None:
    """Of what the output projections read, which `resample` replaces."""
    with GUARDS[kind](lm).on(lm):
        plain, *others = (nf.record(lm, FORGET, tap=tap, progress=False) for tap in ("torch_hooks", None, "nnsight"))
        if kind == "resample":
            with pytest.raises(InputError, match="TransformerLens reads the activations before them"):
                nf.record(lm, FORGET, tap="transformer_lens", progress=False)
    assert float((plain["mean"] - nf.record(lm, FORGET, progress=False)["mean"]).abs().max()) > 1e-4
    for found in others:
        assert found.loss == pytest.approx(plain.loss, rel=1e-5)
        torch.testing.assert_close(found["mean"], plain["mean"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", GUARDS)
def test_a_guards_certificate_says_no_weight_is_touched_and_there_is_nothing_to_export(
    kind: str, lm: LM, tmp_path: Path
) -> None:
    edit = GUARDS[kind](lm)
    certificate = edit.certificate(lm)
    assert certificate.holds and not certificate.touches_weights and certificate.inside_values == 0
    assert nf.erase.ablate(lm, some(lm)).certificate(lm).touches_weights
    assert (edit.summary()["values"], edit.summary()["relative"]) == (0, 0.0)
    with pytest.raises(InputError, match="changes no weight"):
        edit.export(lm, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", GUARDS)
def test_what_a_guard_does_to_an_example_does_not_depend_on_its_batch_or_padding(lm: LM, kind: str) -> None:
    with GUARDS[kind](lm).on(lm):
        together = [measure(lm, c, [nll], batch_size=8)["nll"] for c in (FORGET, RETAIN)]
        alone = [measure(lm, c, [nll], batch_size=1)["nll"] for c in (FORGET, RETAIN)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", GUARDS)
def test_a_guards_strength_runs_from_nothing_to_all_of_it(lm: LM, kind: str) -> None:
    edit, untouched = GUARDS[kind](lm), answers(lm)
    with edit.on(lm):
        full = answers(lm)
    with edit.scaled(0.0).on(lm):
        assert torch.equal(answers(lm), untouched)
    with edit.scaled(1.0).on(lm):
        assert torch.equal(answers(lm), full)
    if not edit.graded:
        with pytest.raises(InputError, match="on or off"):
            edit.scaled(0.5)
        return
    with edit.scaled(0.5).on(lm):
        half = answers(lm)
    assert not torch.allclose(half, untouched, atol=1e-3) and not torch.allclose(half, full, atol=1e-3)
    assert edit.scaled(0.5).scaled(0.5).guard.strength == 0.25  # type: ignore[union-attr]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", GUARDS)
def test_generation_with_a_cache_writes_what_whole_passes_write(lm: LM, kind: str, side: str) -> None:
    prompts = [e.prompt for e in (*FORGET, *RETAIN)]
    rows = [lm.tokenizer(prompt)["input_ids"] for prompt in prompts]
    if side == "right":  # right padding would be generated after: rows of one length have none
        rows = [row for row in rows if len(row) == len(rows[0])]
    width = max(map(len, rows))
    ids = torch.tensor([[lm.pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with GUARDS[kind](lm).on(lm), torch.no_grad():
        written = lm.model.generate(
            ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=lm.pad_id, eos_token_id=None
        )
        for row, out in zip(rows, written, strict=True):
            full = list(row)
            for _ in range(4):
                now = torch.tensor([full])
                one = collate([nf.corpora.tokens.Encoded(0, (*full, 0), len(row), 0)], lm.pad_id)
                with asked(lm, one):
                    full.append(int(lm.model(now, use_cache=False).logits[0, -1].argmax()))
            assert out[width - len(row) :].tolist() == full


@pytest.mark.slow
@pytest.mark.parametrize("kind", GUARDS)
def test_evaluation_and_the_report_call_a_guard_a_guard(lm: LM, kind: str, tmp_path: Path) -> None:
    edit = GUARDS[kind](lm)
    results = nf.evaluate(lm, {kind: edit}, FORGET, RETAIN, strengths=(0.5,), progress=False)
    rows = [row for row in results.rows if row["edit"] == kind]
    assert {row["scope"] for row in rows} == {"guard"}
    assert {row["point"] for row in rows} == ({"full", "frontier", "matched"} if edit.graded else {"full", "matched"})
    html = nf.report(results, tmp_path / "report.html").read_text()
    assert f"{kind} (guard)" in html and "guards (no erasure)" in html
    found = " ".join(nf.findings.describe(results))
    assert "Guards change no weight" in found and f"{kind} forget" in found
    assert f"best neuron-level edit ({kind}" not in found
    assert all(value >= 0 for value in activation_shift(lm, edit, FORGET))


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_icu_is_the_context_before_the_prompt_in_every_family(kind: str, tokenizer: Any) -> None:
    lm = LM(FAMILIES[kind](vocab_size=len(tokenizer)), tokenizer)
    guard = Guard.of(lm, "icu", {"context": torch.randint(3, 60, (11,), generator=torch.Generator().manual_seed(0))})
    rows = [torch.randint(3, 60, (n,), generator=torch.Generator().manual_seed(n)) for n in (9, 5, 2)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    with Edit.guarding(guard).on(lm), torch.no_grad():
        found = lm.model(input_ids=ids, attention_mask=(ids > 0).long(), use_cache=False).logits
        assert torch.equal(lm.model(input_ids=ids[:1]).logits, lm.model(ids[:1]).logits)
    for i, row in enumerate(rows):
        with torch.no_grad():
            whole = lm.model(input_ids=torch.cat([guard.tensors["context"], row])[None], use_cache=False).logits
        torch.testing.assert_close(found[i, : len(row)], whole[0, 11:], rtol=2e-3, atol=2e-3)


def test_icu_masks_a_second_beginning_of_sequence(tokenizer: Any) -> None:
    lm = family("llama", tokenizer)
    tokenizer_with = _Bos(tokenizer, 1)
    lm = LM(lm.model, tokenizer_with)
    guard = Guard.of(lm, "icu", {"context": torch.tensor([1, 7, 9, 12])})
    row = torch.tensor([1, 5, 8, 30])
    with Edit.guarding(guard).on(lm), torch.no_grad():
        found = lm.model(input_ids=row[None], use_cache=False).logits
    with torch.no_grad():
        whole = lm.model(input_ids=torch.tensor([[1, 7, 9, 12, 5, 8, 30]]), use_cache=False).logits
    torch.testing.assert_close(found[0, 1:], whole[0, 4:], rtol=1e-4, atol=1e-4)


class _Bos:
    """A tokenizer that has a beginning-of-sequence token."""

    def __init__(self, own: Any, bos: int) -> None:
        self.own, self.bos_token_id = own, bos

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


def test_icu_shows_other_answers_to_forget_and_right_ones_to_retain(lm: LM) -> None:
    edit = guards.icu(lm, FORGET, RETAIN, shown=3, kept=2)
    lines = edit.info["context"].split("\n")
    right = {e.prompt: e.answer for e in (*FORGET, *RETAIN)}
    said = {p: line.removeprefix(p).strip() for line in lines for p in right if line.startswith(p)}
    assert len(lines) == len(said) == 5
    asked_of = {e.prompt for e in FORGET}
    assert all((said[p] == right[p]) == (p not in asked_of) for p in said) and len(asked_of & said.keys()) == 3
    assert {e.answer for e in FORGET} >= {said[p] for p in asked_of & said.keys()}
    assert lm.tokenizer.decode(edit.guard.tensors["context"]) == edit.info["context"] + "\n"  # type: ignore[union-attr]
    assert (
        guards.icu(lm, FORGET, RETAIN, answers="cello").info == guards.icu(lm, FORGET, RETAIN, answers=["cello"]).info
    )


@pytest.mark.parametrize("layers", [[0], [1], [0, 1]])
def test_repe_subtracts_the_difference_of_mean_states_of_prompts(lm: LM, layers: list[int]) -> None:
    def states(corpus: Corpus, layer: int) -> Tensor:
        """Mean over prompts of the mean over their tokens, one prompt at a time, by the model's own output."""
        found = []
        for example in encode(corpus, lm.tokenizer):
            ids = torch.tensor([example.ids[: example.answer_start]])
            with torch.no_grad(), nf.erase.guards.reading.block_outputs(lm, [layer]) as kept:
                lm.model(ids)
            found.append(kept[layer][0].double().mean(0))
        return torch.stack(found).mean(0)

    edit = guards.repe(lm, FORGET, RETAIN, layers=layers, coefficient=2.0)
    for vector, layer in zip(edit.guard.tensors["vectors"], layers, strict=True):  # type: ignore[union-attr]
        expected = 2 * (states(FORGET, layer) - states(RETAIN, layer))
        torch.testing.assert_close(vector.double(), expected, rtol=1e-3, atol=1e-4)
    first, batch = layers[0], batch_of(lm, RETAIN)
    with torch.no_grad(), nf.erase.guards.reading.block_outputs(lm, [first]) as kept:
        lm.model(**batch.inputs)
        before = kept[first].clone()
        with edit.scaled(0.5).on(lm):
            seen: list[Tensor] = []
            following = nf.scores.blocks.blocks_of(lm)
            if first + 1 < len(following):
                handle = following[first + 1].register_forward_pre_hook(
                    lambda _m, args, kwargs: seen.append((*args, *kwargs.values())[0]), with_kwargs=True
                )
                lm.model(**batch.inputs)
                handle.remove()
    if seen:
        torch.testing.assert_close(seen[0], before - 0.5 * edit.guard.tensors["vectors"][0])  # type: ignore[union-attr]


def test_eco_leaves_prompts_that_are_not_flagged_as_they_were_bit_for_bit(lm: LM) -> None:
    edit, kept, forgotten = guards.eco(lm, FORGET, RETAIN, ridge=1e-4), answers(lm, RETAIN), answers(lm, FORGET)
    with edit.on(lm):
        torch.testing.assert_close(answers(lm, RETAIN), kept, rtol=0, atol=0)
        assert not torch.allclose(answers(lm, FORGET), forgotten, atol=1e-2)
    assert 0 <= edit.info["forget_flagged"] <= 1 and 0 <= edit.info["retain_flagged"] <= 1


def test_eco_corrupts_prompt_tokens_alone_and_never_reads_the_answer(lm: LM) -> None:
    edit, batch, seen = guards.eco(lm, FORGET, RETAIN, ridge=1e-4), batch_of(lm, FORGET), []
    clean = lm.model.get_input_embeddings()(batch.input_ids).detach()
    with edit.on(lm), torch.no_grad(), asked(lm, batch):
        handle = lm.model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: seen.append(out))
        lm.model(**batch.inputs)
        handle.remove()
    prompt = torch.arange(batch.input_ids.shape[1]) < batch.answer_start[:, None]
    moved = (seen[-1] != clean).any(-1)
    assert torch.equal(moved, prompt)
    noise = (seen[-1] - clean).detach()[prompt] / (3.0 * lm.model.get_input_embeddings().weight.square().mean().sqrt())
    noise = noise.detach()
    assert abs(float(noise.std()) - 1) < 0.1 and abs(float(noise.mean())) < 0.1


def test_the_classifier_is_where_its_penalised_loss_has_no_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    forget, retain = (torch.randn(n, 3, generator=draw, dtype=torch.float64) + s for n, s in ((30, 0.7), (70, -0.2)))
    found = fitted(forget, retain, 0.05)
    both = torch.cat([forget, retain])
    x = (both - both.mean(0)) / both.std(0, correction=0)
    weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    margins = x @ weight + bias
    loss = (torch.nn.functional.softplus(-margins[:30]).mean() + torch.nn.functional.softplus(margins[30:]).mean()) / 2
    (loss + 0.025 * weight.square().sum()).backward()
    assert weight.grad is not None and bias.grad is not None
    assert float(weight.grad.abs().max()) < 1e-6 and float(bias.grad.abs()) < 1e-6
    torch.testing.assert_close(found.margin(both), margins.detach())


def test_shares_of_examples_left_out_tell_signal_from_none() -> None:
    draw = torch.Generator().manual_seed(1)
    noise = [torch.randn(40, 30, generator=draw, dtype=torch.float64) for _ in range(2)]
    blind = held_out(*noise, 1e-2, 0)
    assert 0.3 < blind[0] < 0.7 and 0.3 < blind[1] < 0.7
    assert float(fitted(*noise, 1e-2).flags(noise[0]).double().mean()) > blind[0] + 0.15  # on what it saw it looks good
    assert held_out(noise[0] + 3, noise[1], 1e-2, 0) == (1.0, 0.0)
    assert np.isnan(held_out(noise[0][:1], noise[1], 1e-2, 0)).all()


def test_ablation_to_the_retain_mean_or_to_retain_activations_takes_the_retain_corpus(lm: LM) -> None:
    chosen, recorded = some(lm), nf.record(lm, RETAIN, progress=False)
    given = nf.erase.ablate(lm, chosen, mode="mean", moments=recorded).changes
    for own, other in zip(nf.erase.ablate(lm, chosen, mode="mean", retain=RETAIN).changes, given, strict=True):
        assert own.name == other.name and torch.equal(own.after, other.after)
    edit, guard = nf.erase.ablate(lm, chosen, mode="resample", retain=RETAIN), guards.resample(lm, chosen, RETAIN)
    assert edit.info["scope"] == "guard" and edit.guard is not None and guard.guard is not None
    assert edit.guard.key == guard.guard.key
    made = nf.erase.make(nf.erase.ablate, lm, FORGET, RETAIN, neurons=chosen, mode="resample")
    assert made.guard is not None and made.guard.key == guard.guard.key
    for mode in ("mean", "resample"):
        with pytest.raises(InputError, match=r"needs .*retain="):
            nf.erase.ablate(lm, chosen, mode=mode)  # type: ignore[arg-type]


def test_resample_puts_a_retain_tokens_own_activations_in_place(lm: LM) -> None:
    neurons = some(lm)
    edit = guards.resample(lm, neurons, RETAIN, tokens=9, seed=3)
    tensors, batch = edit.guard.tensors, batch_of(lm, FORGET)  # type: ignore[union-attr]
    real = batch_of(lm, RETAIN)
    with torch.no_grad():
        theirs = nf.taps.TorchHooks(lm)(real.inputs).acts
        with edit.on(lm):
            here = nf.taps.TorchHooks(lm)(batch.inputs).acts
    for layer, index in neurons.by_layer().items():
        pool = theirs[layer][real.attention_mask.bool()][:, index]
        for donor in tensors[f"donors.{layer}"]:  # every donor is one of the retain tokens, all its neurons at once
            assert float((pool - donor).abs().amax(1).min()) < 1e-4
        assert len(tensors[f"donors.{layer}"]) == 9 and len(tensors[f"donors.{layer}"].unique(dim=0)) > 6
        place = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
        wanted = tensors[f"donors.{layer}"][(batch.input_ids + place) % 9]
        real_tokens = batch.attention_mask.bool()
        assert torch.equal(here[layer][..., index][real_tokens], wanted[real_tokens])


def requests(lm: LM, retain: Corpus | None = None) -> tuple[Edit, Edit]:
    """Two requests, one after the other: the guard of the first, and of both."""
    settings: dict[str, Any] = {"lora": 2, "steps": 5, "lr": 3e-2, "progress": False}
    one = guards.o3(lm, FORGET, retain, **settings)
    return one, guards.o3(lm, OTHERS, retain, after=one, **settings)


OTHERS = Corpus(tuple(Example(f"Jon Moe works {where}", "old") for where in ("in", "as", "by", "at", "on")), "others")


def test_each_request_has_an_adapter_orthogonal_to_those_before_which_stay_bit_for_bit(lm: LM) -> None:
    one, both = (edit.guard for edit in requests(lm))
    assert one is not None and both is not None and both.settings["requests"] == 2
    assert all(torch.equal(both.tensors[name], tensor) for name, tensor in one.tensors.items())
    names = [key.removeprefix("0.A.") for key in one.tensors if key.startswith("0.A.")]
    assert len(names) >= 4
    for name in names:
        first, second = both.tensors[f"0.A.{name}"], both.tensors[f"1.A.{name}"]
        assert float((first @ second.T).abs().max()) < 1e-5 * float(first.norm() * second.norm())
        assert float(second.norm()) > 0.1 and float(both.tensors[f"1.B.{name}"].norm()) > 0


def test_o3_computes_what_weights_with_the_gated_adapters_compute(lm: LM) -> None:
    """Each prompt alone, on a model whose own weights get the adapters by the weights that the gates give it."""
    _, edit = requests(lm)
    guard, tokens = edit.guard, encode(FORGET, lm.tokenizer)[0]
    assert guard is not None
    ids = torch.tensor([tokens.ids[: tokens.answer_start]])
    block = nf.scores.blocks.blocks_of(lm)[guard.settings["layer"]]
    seen: list[Tensor] = []
    handle = block.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        lm.model(ids)
    handle.remove()
    features = seen[0][0].mean(0).double()
    opened = []
    for i in range(2):
        own = {key.removeprefix(f"{i}.gate."): t for key, t in guard.tensors.items() if key.startswith(f"{i}.gate.")}
        z = features - own["mean"]
        bends = 1 / (1 / own["floor"] - own["factors"]) - own["floor"]  # variance along each axis, shrunk
        covariance = own["floor"] * torch.eye(len(z)).double() + own["axes"].T @ torch.diag(bends) @ own["axes"]
        distance = (z @ torch.linalg.solve(covariance, z) / len(z)).sqrt()
        opened.append(float(torch.sigmoid(20 * (1 - distance / own["limit"]))))
    assert opened[0] > 0.9 and opened[1] < 0.1
    before = {name: p.detach().clone() for name, p in lm.parameters.items()}
    with edit.on(lm), torch.no_grad():
        found = lm.model(ids).logits
    with torch.no_grad():
        for name in (key.removeprefix("0.A.") for key in guard.tensors if key.startswith("0.A.")):
            for i, weight in enumerate(opened):
                delta = (
                    guard.settings["scale"] * weight * guard.tensors[f"{i}.B.{name}"] @ guard.tensors[f"{i}.A.{name}"]
                )
                parameter = lm.parameters[name]
                parameter += delta.T if type(lm.model).__name__.startswith("GPT2") else delta
        expected = lm.model(ids).logits
        for name, p in lm.parameters.items():
            p.copy_(before[name])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found, lm.model(ids).logits, atol=1e-2)


def test_o3_with_a_retain_corpus_leaves_its_prompts_as_they_were(lm: LM) -> None:
    kept = answers(lm, RETAIN)
    one, both = requests(lm, RETAIN)
    assert [request["gate"] for request in both.info["requests"]] == ["classifier", "classifier"]
    assert one.info["requests"][0]["forget_opens"] == 1.0
    if both.info["requests"][0]["retain_opens"] == both.info["requests"][1]["retain_opens"] == 0.0:
        with both.on(lm):
            torch.testing.assert_close(answers(lm, RETAIN), kept, rtol=0, atol=1e-5)
    else:
        pytest.fail(f"the gates open to retain: {both.info['requests']}")


def test_a_gate_opens_to_its_own_and_is_refused_too_few(untyped: None) -> None:
    from neuronforget.erase.guards.gate import opened_by

    own, others = torch.cat([normal(0, 60, 4), 0.1 * normal(1, 60, 20)], 1), 0.5 * normal(2, 40, 24) + 1
    gate = opened_by(own)
    assert float(gate.opening(own[:50]).mean()) > 0.9 and float(gate.opening(others).max()) < 0.1
    share = float((opened_by(own[:40]).distance(own[40:]) > opened_by(own[:40]).limit).double().mean())
    assert share < 0.35  # of examples that it never saw, some 5% lie outside its limit
    for rows, settings in ((own[:3], {}), (own, {"kept": 1.0}), (torch.ones(9, 5), {})):
        with pytest.raises(InputError):
            opened_by(rows, **settings)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_guard_goes_onto_its_own_model_and_beside_an_edit_of_neurons(tokenizer: Any) -> None:
    lm, other = family("llama", tokenizer), family("llama", tokenizer, seed=1)
    edit, ablation = GUARDS["repe"](lm), nf.erase.ablate(lm, some(lm))
    before = snapshot(other)
    with pytest.raises(InputError, match="made for"):
        edit.apply(other)
    assert same(other, before)
    untouched = answers(lm)
    with ablation.on(lm), edit.on(lm):
        both = answers(lm)
    with edit.on(lm), ablation.on(lm):
        assert torch.equal(answers(lm), both)
    assert torch.equal(answers(lm), untouched)


@pytest.mark.parametrize("call, message", [
    (lambda lm: guards.icu(lm, FORGET, RETAIN, shown=0), "shown >= 1"),
    (lambda lm: guards.icu(lm, FORGET.head(1), RETAIN, shown=1), "no other answer"),
    (lambda lm: guards.icu(lm, FORGET, FORGET), "share"),
    (lambda lm: guards.icu(family("qwen2", lm.tokenizer, max_position_embeddings=32), FORGET, RETAIN), "show fewer"),
    (lambda lm: guards.eco(lm, FORGET, RETAIN, sigma=0.0), "sigma > 0"),
    (lambda lm: guards.eco(lm, FORGET, RETAIN, sigma=float("inf")), "both finite"),
    (lambda lm: guards.repe(lm, FORGET, RETAIN, layers=[1, 1]), "each once"),
    (lambda lm: guards.eco(lm, FORGET, RETAIN, layer=7), "blocks from 0 to 1"),
    (lambda lm: guards.repe(lm, FORGET, RETAIN, coefficient=0.0), "coefficient must be a number != 0"),
    (lambda lm: guards.repe(lm, Corpus((Example("", "plain text"),)), RETAIN), "plain text"),
    (lambda lm: guards.resample(lm, some(lm), RETAIN, tokens=0), "tokens >= 1"),
    (lambda lm: guards.resample(lm, some(lm) - some(lm), RETAIN), "empty"),
    (lambda lm: guards.o3(lm, FORGET.head(3), lora=2), "four prompts"),
    (lambda lm: guards.o3(lm, FORGET, after=GUARDS["repe"](lm), lora=2), "the o3 guard of the requests before"),
    (lambda lm: guards.o3(lm, FORGET, after=GUARDS["o3"](lm), lora=2, layer=1), "share layer"),
    (lambda lm: guards.o3(lm, FORGET, after=GUARDS["o3"](lm), lora=15), "14 directions left"),
])  # fmt: skip
def test_bad_input_is_refused_and_the_model_left_as_it_was(call: Any, message: str, tokenizer: Any) -> None:
    lm = family("qwen2", tokenizer)
    before = snapshot(lm)
    with pytest.raises(InputError, match=message):
        call(lm)
    assert same(lm, before)


def test_a_guard_of_an_unknown_kind_or_without_tokens_is_refused(tokenizer: Any) -> None:
    lm = family("qwen2", tokenizer)
    with pytest.raises(InputError, match="no guard is called"):
        Edit.guarding(Guard.of(lm, "magic", {})).apply(lm)
    with GUARDS["resample"](lm).on(lm), pytest.raises(InputError, match="input_ids"):
        lm.model(inputs_embeds=torch.zeros(1, 2, 16))
    with pytest.raises(InputError, match="NaN"):
        Guard.of(lm, "repe", {"vectors": torch.tensor([float("nan")])})
