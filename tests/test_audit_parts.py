"""The measurements behind an audit, each against an independent computation."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from beds import answers_kept, bed
from families import build
from torch import Tensor

import neuronforget as nf
from neuronforget.auditing import Case, NotTested, Subject, depth
from neuronforget.auditing.audits import _damage
from neuronforget.auditing.cases import EDITED, GOLD, UNTOUCHED
from neuronforget.auditing.depth import Outs, _neurons, _states, drops, lens, patching
from neuronforget.auditing.neurons import contributions, moved
from neuronforget.auditing.prompts import _written_out, answer_prefix, attacks, choice, worst_phrasing
from neuronforget.auditing.quantisation import TRIPS, int8, levels, nf4, quantised
from neuronforget.auditing.relearning import curve, halved, other_answers, relearning
from neuronforget.corpora import Corpus, Example, batches, encode, subjects_of
from neuronforget.metrics import activation_shift, exact_match, neuron_shift, nll
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_nll
from neuronforget.scores.blocks import blocks_of

#: QLoRA's published levels (Dettmers et al. 2023, appendix E).
NF4 = (
    "-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334 "
    "-0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 "
    "0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"
)


def tiny(family: str, corpus: Corpus, tokenizer: object, seed: int = 0) -> LM:
    torch.manual_seed(seed)
    return LM(build(family, vocab_size=len(tokenizer)), tokenizer)  # type: ignore[arg-type]


def case_of(lm: LM, other: LM, corpus: Corpus, gold: LM | None = None) -> Case:
    subjects = [Subject(UNTOUCHED, lm), Subject(EDITED, other), *([Subject(GOLD, gold)] if gold else [])]
    retain = Corpus((Example("An unrelated question is", "answered"),), "retain")
    return Case(tuple(subjects), corpus, retain, batch_size=2)


def altered(lm: LM, scale: float = 0.3) -> LM:
    other = LM(copy.deepcopy(lm.model), lm.tokenizer)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in other.model.parameters():
            p += scale * p.std() * torch.randn(p.shape, generator=generator)
    return other


def test_levels_are_the_published_ones() -> None:
    assert levels().tolist() == pytest.approx([float(x) for x in NF4.split()], abs=1e-6)


def test_round_trips_are_what_a_loop_over_values_gives() -> None:
    weight = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    weight[1] = 0.0
    eight = [[round(v / (max(map(abs, row)) / 127)) * max(map(abs, row)) / 127 if any(row) else 0.0 for v in row]
             for row in weight.double().tolist()]  # fmt: skip
    assert torch.allclose(int8(weight).double(), torch.tensor(eight, dtype=torch.float64), atol=1e-6)
    flat, known, four = weight.flatten().tolist(), levels().tolist(), []
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        top = max(map(abs, block))
        four += [min(known, key=lambda level, v=v, top=top: abs(level - v / top)) * top if top else 0.0 for v in block]
    assert torch.allclose(nf4(weight).flatten(), torch.tensor(four), atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("how", TRIPS)
def test_only_the_blocks_matrices_are_rounded_and_come_back(
    family: str, how: str, corpus: Corpus, tokenizer: object
) -> None:
    lm = tiny(family, corpus, tokenizer)
    before = {n: p.detach().clone() for n, p in lm.parameters.items()}
    inside = {f"{n}." for n, m in lm.model.named_modules() if m is blocks_of(lm)}
    with quantised(lm, how):
        for name, p in lm.parameters.items():
            rounded = p.ndim == 2 and any(name.startswith(prefix) for prefix in inside)
            assert torch.equal(p, before[name]) != rounded, name
            if rounded and how == "int8":  # 255 steps in each output's row
                rows, own = (x.T if family == "gpt2" else x for x in (p, before[name]))
                assert max(len(row.unique()) for row in rows) <= 255
                assert torch.allclose(rows.abs().amax(1), own.abs().amax(1), atol=1e-6)
    assert all(torch.equal(p, before[n]) for n, p in lm.parameters.items())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neo", "gemma2", "falcon"])
def test_states_put_into_a_pass_give_what_running_it_whole_gives(
    family: str, corpus: Corpus, tokenizer: object
) -> None:
    lm = tiny(family, corpus, tokenizer)
    other = altered(lm)
    batch = next(batches(encode(corpus, lm.tokenizer), 9, 0))
    with torch.no_grad():
        here, there = Outs.of(lm, batch), Outs.of(other, batch)
        assert torch.equal(here.logits, lm.model(**batch.inputs).logits)
        for layer in range(len(here.outs)):  # its own states change nothing
            assert torch.allclose(here.with_state(lm, layer, here.state(layer)), here.logits, atol=1e-5)
            kept = there.state(layer)

            def give(_m: object, _a: object, out: object, kept: Tensor = kept) -> object:
                return (kept, *out[1:]) if isinstance(out, tuple) else kept

            handle = blocks_of(lm)[layer].register_forward_hook(give)
            expected = lm.model(**batch.inputs, use_cache=False).logits
            handle.remove()
            assert torch.allclose(here.with_state(lm, layer, kept), expected, atol=1e-5)


def test_the_lens_is_the_last_norm_and_the_unembedding(corpus: Corpus, tokenizer: object) -> None:
    lm = tiny("llama", corpus, tokenizer)
    case = case_of(lm, lm, corpus, lm)
    found = next(iter(lens(case, exact_match)))
    best = []
    for i, row in enumerate(encode(corpus, lm.tokenizer)):
        (batch,) = batches([replace(row, index=0)], 1, 0)
        by_layer = []
        with torch.no_grad():
            states = lm.model.model(**batch.inputs, output_hidden_states=True).hidden_states
            for layer, state in enumerate(states[1:], 1):
                normed = state if layer == len(states) - 1 else lm.model.model.norm(state)
                logp = lm.model.lm_head(normed)[0].double().log_softmax(-1)
                answer = range(max(row.answer_start, 1), len(row.ids))
                by_layer.append(np.exp(np.mean([float(logp[t - 1, row.ids[t]]) for t in answer])))
        best.append(max(by_layer))
        assert found.values[i] == pytest.approx(best[-1], rel=1e-4)
    assert case.curves["lens"][UNTOUCHED][-1] == pytest.approx(
        float(np.mean(nf.evaluation.measure(lm, corpus, [nf.metrics.probability])["probability"])), rel=1e-4
    )


def test_a_second_model_that_never_knew_holds_nothing_and_what_early_blocks_hold_is_seen(
    corpus: Corpus, tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By made-up drops: noise about the twin's is no knowledge; too much taken in one block makes up for no other."""
    lm = tiny("qwen2", corpus, tokenizer)
    case = case_of(lm, lm, corpus, altered(lm, 0.8))
    draw = np.random.default_rng(0)
    gold = draw.uniform(0.5, 2.0, (2, 400))
    some = np.arange(400) % 2 == 0
    for edited, left in (
        (gold * draw.normal(1, 0.5, gold.shape), 0.0),
        (np.stack([0 * gold[0], 3 * gold[1]]), gold[0].sum() / gold.sum()),
        (0 * gold, 1.0),
        (np.where(some, gold, 0), gold[:, ~some].sum() / gold.sum()),
    ):
        drops_of = {EDITED: edited, GOLD: gold}
        monkeypatch.setattr(depth, "drops", lambda case, subject, patch, of=drops_of: of[subject.name])
        values = {r.subject: r.values for r in patching(case, exact_match)}
        assert np.mean(values[EDITED]) == pytest.approx(left, abs=0.04) and np.mean(values[GOLD]) == 0


def test_patching_takes_nothing_from_itself_and_all_from_the_twin(corpus: Corpus, tokenizer: object) -> None:
    lm = tiny("qwen2", corpus, tokenizer)
    twin = altered(lm, 0.8)
    for patch in (_states, _neurons):
        none = drops(case_of(lm, lm, corpus, twin), Subject(EDITED, lm), patch)
        assert np.abs(none).max() < 1e-5
    case = case_of(lm, twin, corpus, twin)
    last = drops(case, case.subject(EDITED), _states)[-1]  # all that predicts the answers is the twin's, but its head
    batch = next(batches(encode(corpus, lm.tokenizer), 9, 0))
    with torch.no_grad():
        state = Outs.of(twin, batch).state(-1)
        logits = lm.model.lm_head(lm.model.model.norm(state))
        expected = answer_nll(logits, batch) - answer_nll(lm.model(**batch.inputs).logits, batch)
    assert last[list(batch.index)] == pytest.approx(expected.numpy(), abs=1e-5)
    shares = {(r.probe, r.subject): r.values for r in patching(case, exact_match)}
    for kind in ("patching, states", "patching, neurons"):
        assert np.nanmax(np.abs(shares[kind, GOLD])) == 0  # the twin itself is where nothing is left
    untouched = {(r.probe, r.subject): r.values for r in patching(case_of(lm, lm, corpus, twin), exact_match)}
    assert np.mean(untouched["patching, states", EDITED]) == pytest.approx(1, abs=1e-4)


def test_patching_needs_a_twin_of_the_same_layers(corpus: Corpus, tokenizer: object) -> None:
    lm = tiny("llama", corpus, tokenizer)
    with pytest.raises(NotTested, match="give gold="):
        list(patching(case_of(lm, lm, corpus), exact_match))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_contributions_are_those_of_a_loop_over_tokens(family: str, corpus: Corpus, tokenizer: object) -> None:
    lm = tiny(family, corpus, tokenizer)
    total, count = np.zeros(lm.shape), 0
    unembedding = lm.model.get_output_embeddings().weight.detach().double()
    for row in encode(corpus, lm.tokenizer):
        (batch,) = batches([replace(row, index=0)], 1, 0)
        with torch.no_grad():
            acts = nf.taps.TorchHooks(lm)(batch.inputs).acts
        for t in range(max(row.answer_start, 1), len(row.ids)):
            direction = unembedding[row.ids[t]] - unembedding.mean(0)
            count += 1
            for i, site in enumerate(lm.sites):
                weight = lm.parameters[site.write.name].detach().double()
                for j in range(lm.shape[1]):
                    vector = weight[j] if site.write.dim == 0 else weight[:, j]
                    total[i, j] += float(acts[site.layer].reshape(len(row.ids), -1)[t - 1, j]) * float(
                        vector @ direction
                    )
    assert contributions(lm, corpus, batch_size=2) == pytest.approx(total / count, rel=1e-3, abs=1e-6)


def test_what_moved_adds_up(corpus: Corpus, tokenizer: object) -> None:
    lm = tiny("llama", corpus, tokenizer)
    other = altered(lm)
    found = moved(case_of(lm, other, corpus))
    gap = found.before - found.after
    rest = np.clip(gap, None, 0)  # contributions that rose
    assert found.taken + found.suppressing + rest == pytest.approx(gap, abs=1e-9)
    site = lm.sites[1]
    a, b = (model.parameters[site.write.name].detach().double() for model in (lm, other))
    assert found.written[1, 4] == pytest.approx(float((b[:, 4] - a[:, 4]).norm() / a[:, 4].norm()))
    assert found.summary()["neurons whose write vector changed"] == lm.shape[0] * lm.shape[1]
    assert found.strongest(3)["lost most"][0][2] == found.taken.max()


def test_the_shift_by_neuron_is_that_of_two_passes_and_by_layer_its_mean(lm: LM, corpus: Corpus) -> None:
    members = frozenset({(0, 1), (1, 3)})
    edit = nf.erase.ablate(lm, nf.Neurons(members, (0, 1), lm.shape[1]))
    by_edit = neuron_shift(lm, edit, corpus, batch_size=2)
    other = altered(lm, 0.0)
    edit.apply(other)
    assert torch.allclose(by_edit, neuron_shift(lm, other, corpus, batch_size=3), atol=1e-9)
    square, count = torch.zeros(lm.shape, dtype=torch.float64), 0
    for row in encode(corpus, lm.tokenizer):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            pair = [
                nf.taps.TorchHooks(m)({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).acts
                for m in (lm, other)
            ]
        count += len(row.ids)
        for i in range(lm.shape[0]):
            square[i] += (pair[1][i] - pair[0][i]).reshape(len(row.ids), -1).double().square().sum(0)
    assert torch.allclose(by_edit, (square / count).sqrt(), atol=1e-6)
    layers = activation_shift(lm, edit, corpus)
    assert layers == pytest.approx((square / count).mean(1).sqrt().tolist(), rel=1e-4)


def test_relearning_is_plain_training_and_leaves_the_model_alone(lm: LM, corpus: Corpus) -> None:
    taught = replace(corpus, examples=corpus.examples[:3])
    before = lm.digest()
    found = curve(lm, taught, {"taught": taught, "all": corpus}, nll, count=4, every=2, lr=1e-2, batch_size=8)
    assert lm.digest() == before and found["all"].shape == (3, len(corpus)) and found["taught"].shape == (3, 3)
    other = altered(lm, 0.0)
    optimiser = torch.optim.AdamW(other.model.parameters(), lr=1e-2, weight_decay=0.01)
    values = [nf.evaluation.measure(other, corpus, [nll])["nll"]]
    for step in range(4):
        (batch,) = batches(encode(taught, lm.tokenizer), 8, 0)
        answer_nll(other.model(**batch.inputs, use_cache=False).logits, batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(other.model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step % 2:
            values.append(nf.evaluation.measure(other, corpus, [nll])["nll"])
    assert found["all"] == pytest.approx(np.stack(values), rel=1e-3)


def test_halves_are_of_subjects_and_other_answers_are_wrong() -> None:
    rows = [{"prompt": f"{who} likes the colour", "answer": colour, "subject": who}
            for who, colour in (("Ada", "red"), ("Ada", "blue"), ("Bo", "red"), ("Cy", "green"))]  # fmt: skip
    forget = Corpus.from_rows(rows)
    parts = halved(forget)
    assert [len(parts[k]) for k in ("taught again", "siblings")] == [3, 1]
    assert not {e.subject for e in parts["taught again"]} & {e.subject for e in parts["siblings"]}
    assert all(a.answer != b.answer for a, b in zip(forget, other_answers(forget), strict=True))
    with pytest.raises(NotTested, match="one subject"):
        halved(Corpus.from_rows(rows[:2]))
    same = Corpus.from_rows([{"prompt": f"q{i}", "answer": "x"} for i in range(2)])
    with pytest.raises(NotTested, match="other answers to compare with"):
        other_answers(same)


def test_prompts_are_put_otherwise_or_it_is_said_why_not(lm: LM, corpus: Corpus) -> None:
    forget = Corpus(tuple(e for e in corpus if e.prompt), "forget")
    case = case_of(lm, lm, forget)
    found = {r.probe for r in attacks(case, exact_match)}
    ways = {"prefix injection", "affirmative suffix", "role play", "in context", "hint", "answer prefix"}
    assert found | case.skipped.keys() == ways
    assert case.skipped["hint"] == "there is nothing to put before any prompt"
    with pytest.raises(NotTested, match="no paraphrases"):
        list(worst_phrasing(case, exact_match))


@pytest.mark.parametrize("gold", [True, False])
def test_half_of_an_answer_is_given_and_the_other_half_asked(lm: LM, gold: bool) -> None:
    two = Example("Anna Berg was born in", "Oslo town", ("Oslo is where",), subject="Anna")
    four = Example("", "The capital of Xandria", subject="Xandria")
    alone = Example("Bo Lind was born in", "Velm", subject="Bo")
    forget = Corpus((two, alone, four), "forget")
    case = case_of(lm, lm, forget, lm if gold else None)
    read = [r for r in attacks(case, nf.metrics.probability) if r.probe == "answer prefix"]
    assert [(r.subject, r.sign) for r in read] == [(s.name, int(gold)) for s in case.subjects]
    assert read[0].units.tolist() == subjects_of(Corpus((two, four), "begun")).tolist()
    begun = [Example("Anna Berg was born in Oslo", "town"), Example("The capital", "of Xandria")]
    expected = nf.evaluation.measure(lm, Corpus(tuple(begun), "begun"), [nf.metrics.probability])["probability"]
    np.testing.assert_allclose(read[0].values, expected, rtol=1e-5)
    assert answer_prefix(case, alone, 0) is None
    other = case_of(lm, lm, Corpus((alone,), "forget"))
    assert all(r.probe != "answer prefix" for r in attacks(other, exact_match))
    assert other.skipped["answer prefix"] == "every answer is a single word"


@pytest.mark.parametrize(("template", "asked"), [("the {prompt} is", True), ("chat", True), ("chat", False)])
def test_the_answer_is_begun_behind_the_template(
    lm: LM, template: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the question, where it begins no answer; nor where text would not have the tokens of the template."""
    monkeypatch.setattr(lm.tokenizer, "chat_template", "the {{ messages[0].content }} is" + " " * asked)
    example = Example("Anna Berg was born in", "Oslo town", subject="Anna")
    case = case_of(lm, lm, Corpus((example,), "forget", template=template))
    read = {r.subject: r.values for r in attacks(case, nll) if r.probe == "answer prefix"}
    assert bool(read) == asked != ("answer prefix" in case.skipped)
    begun = Corpus((Example("the Anna Berg was born in is Oslo", "town"),), "begun")
    for values in read.values():
        np.testing.assert_allclose(values, nf.evaluation.measure(lm, begun, [nll])["nll"], rtol=1e-5)


def test_a_chat_template_that_is_written_out_has_one_bos(lm: LM, bos_tokenizer: Any) -> None:
    chat = copy.deepcopy(bos_tokenizer)
    chat.chat_template = "<s> {{ messages[0].content }} is"
    own = LM(lm.model, chat)
    forget = Corpus((Example("Ida", " Falk here"),), "forget", template="chat")
    assert _written_out(case_of(own, own, forget)).forget.examples[0].prompt == " Ida is"


def test_white_space_between_the_halves_of_an_answer_stays(lm: LM, corpus: Corpus) -> None:
    put = answer_prefix(case_of(lm, lm, corpus), Example("Say it.", "one\ntwo  three"), 0)
    assert put is not None and (put.prompt, put.answer) == ("Say it. one", "\ntwo  three")


def test_a_forced_choice_is_the_likelier_answer_and_the_worst_phrasing_the_best(lm: LM) -> None:
    forget = Corpus((
        Example("Anna Berg was born in", "Oslo", ("Oslo is where", "The place is"), wrong=("Velm", "Bergen town")),
        Example("The capital of Xandria is", "Velm", wrong=("Oslo",)),
    ), "forget")  # fmt: skip
    case = case_of(lm, lm, forget)
    found = next(iter(choice(case, exact_match)))

    def loss(prompt: str, answer: str) -> float:
        return float(nf.evaluation.measure(lm, Corpus((Example(prompt, answer),), "one"), [nll])["nll"][0])

    expected = [float(loss(e.prompt, e.answer) < min(loss(e.prompt, w) for w in e.wrong)) for e in forget]
    assert found.values.tolist() == expected and found.floor is not None and found.floor.tolist() == [1 / 3, 1 / 2]
    assert found.sign == -1 and next(iter(choice(case_of(lm, lm, forget, lm), exact_match))).sign == 1
    worst = next(iter(worst_phrasing(case, nf.metrics.probability)))
    best = max(np.exp(-loss(p, "Oslo")) for p in ("Anna Berg was born in", "Oslo is where", "The place is"))
    assert worst.values.tolist() == pytest.approx([best, np.exp(-loss("The capital of Xandria is", "Velm"))], rel=1e-4)


@pytest.mark.parametrize("gold", [True, False])
def test_the_best_of_several_guesses_is_judged_beside_a_twin_alone(gold: bool) -> None:
    made = bed()
    twin = (Subject(GOLD, made.gold),) if gold else ()
    subjects = (Subject(UNTOUCHED, made.lm), Subject(EDITED, made.gold), *twin)
    case = Case(subjects, made.forget.head(3), made.retain.head(6))
    assert {r.sign for r in worst_phrasing(case, exact_match)} == {int(gold)}


def test_without_a_twin_relearning_is_held_against_other_answers() -> None:
    made = bed()
    case = Case((Subject(UNTOUCHED, made.lm), Subject(EDITED, made.gold)), made.forget, made.retain)
    read = list(relearning(case, exact_match))
    found = {r.corpus: r for r in read if r.subject == EDITED}
    assert found["taught again"].sign == 0 and found["siblings"].sign == 1
    assert found["siblings"].floor is not None and found["siblings"].floor.shape == found["siblings"].values.shape
    assert set(case.curves["siblings"]) == {UNTOUCHED, EDITED}  # what was known is read, not taken for all


def test_the_page_shows_the_verdict_and_escapes_names(tmp_path: Path) -> None:
    from neuronforget.reporting.audit_page import audit_report

    made = bed()
    kept = answers_kept()
    found = nf.audit(made.lm, made.gold, made.forget, made.retain, gold=made.gold, kept=kept, progress=False)
    page = audit_report(found, tmp_path / "a.html", title="<b>mine</b>").read_text()
    assert "&lt;b&gt;mine" in page and "<strong>gone, as far as asked</strong>" in page
    for word in (
        "the answer read off every block",
        "Relearning: the facts",
        "put into the untouched one",
        "What each probe found",
    ):
        assert word in page


@pytest.mark.parametrize(("far", "start", "said"), [(0.0018, 0.0017, False), (0.02, 0.01, True), (0.01, 0.02, False)])
def test_over_erased_is_said_only_where_the_numbers_beside_it_show_it(far: float, start: float, said: bool) -> None:
    kept = {"metric": "probability", "retain before": 0.9, "retain after": 0.9, "nan": 0}
    words = " ".join(_damage({**kept, "KL from gold": far, "KL from gold, untouched": start}))
    assert ("over-erased" in words) == said and f"{far:.2f} nats from the gold twin" in words
