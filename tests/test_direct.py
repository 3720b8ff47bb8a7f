"""Scores with a backward pass of their own, and the vocabulary lens, against hand-made computations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from families import build
from torch import Tensor

import neuronforget as nf
from neuronforget import scores
from neuronforget.corpora import Corpus, batches, encode
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_nll
from neuronforget.scores import residual
from neuronforget.scores.blocks import blocks_of
from neuronforget.taps import TorchHooks

BATCHED = pytest.mark.parametrize("score", [scores.direct, scores.gradient_drop, scores.value_fisher, scores.relp])


def lm_for(family: str, tokenizer: Any, **settings: Any) -> LM:
    return LM(build(family, vocab_size=len(tokenizer), **settings), tokenizer)


def singles(lm: LM, corpus: Corpus) -> Any:
    return batches(encode(corpus, lm.tokenizer), 1, lm.pad_id)


@pytest.mark.parametrize(
    ("family", "cap"), [(f, None) for f in ("llama", "gpt2", "gpt_neox", "opt", "gemma2", "olmo2")] + [("gemma2", 3.0)]
)
def test_direct_is_the_write_vector_on_the_answers_direction(
    family: str, cap: float | None, corpus: Corpus, tokenizer: Any
) -> None:
    """Logits that are capped, `cap tanh(z / cap)`, count by the cap's slope where they are."""
    lm = lm_for(family, tokenizer, **({"final_logit_softcapping": cap} if family == "gemma2" else {}))
    base = lm.model.base_model if family != "opt" else lm.model.model.decoder
    final = next(m for n, m in base.named_children() if n in ("norm", "ln_f", "final_layer_norm"))
    post = {"gemma2": "post_feedforward_layernorm", "olmo2": "post_feedforward_layernorm"}.get(family)
    head = lm.model.get_output_embeddings().weight.detach().double()
    seen: dict[Any, Tensor] = {}
    hooks = [final.register_forward_pre_hook(lambda _m, x: seen.__setitem__("final", x[0][0].detach().double()))]
    for i, block in enumerate(blocks_of(lm)):
        if post is not None:
            norm = block.get_submodule(post)
            hooks.append(
                norm.register_forward_pre_hook(lambda _m, x, i=i: seen.__setitem__(i, x[0][0].detach().double()))
            )

    def frozen(norm: Any, x: Tensor, write: Tensor) -> Tensor:
        """The norm of x at work on another vector, its scale and gain kept: [token, neuron, width]."""
        gain = norm.weight.detach().double() + (1 if "Gemma" in type(norm).__name__ else 0)
        if "LayerNorm" in type(norm).__name__ and "RMS" not in type(norm).__name__:
            write, x = write - write.mean(-1, keepdim=True), x - x.mean(-1, keepdim=True)
        eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", None)
        return write * gain / (x.pow(2).mean(-1)[:, None, None] + eps).sqrt()

    expected = []
    for batch in singles(lm, corpus):
        out = TorchHooks(lm)(batch.inputs)
        targets, mask = batch.input_ids[0, 1:], batch.answer_mask[0, 1:]
        logits = out.logits[0, :-1].detach().double()
        slope = 1 - (logits / cap) ** 2 if cap else torch.ones_like(logits)
        direction = slope.gather(1, targets[:, None]) * head[targets] - slope @ head / len(head)
        rows = []
        for i, site in enumerate(lm.sites):
            weight = lm.parameters[site.write.name].detach().double()
            write = (weight if site.write.dim == 0 else weight.T)[None]
            write = frozen(blocks_of(lm)[i].get_submodule(post), seen[i], write) if post else write
            through = frozen(final, seen["final"], write)[:-1]
            per_token = torch.einsum("tf,tfd,td->tf", out.acts[i][0, :-1].detach().double(), through, direction)
            rows.append(per_token[mask].mean(0))
        expected.append(torch.stack(rows))
    for hook in hooks:
        hook.remove()
    found = nf.attribute(lm, corpus, score=scores.direct, batch_size=3, progress=False)
    mean = torch.stack(expected).mean(0)
    torch.testing.assert_close(found.values, mean, rtol=1e-3, atol=1e-5 * float(mean.abs().max()))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mixtral"])
def test_direct_makes_no_gradient_of_neurons_and_adds_up_a_layer_at_a_time(
    family: str, corpus: Corpus, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of the backward pass is `[.., d_model]`; the rest is `fused_attribution`'s, layer by layer."""
    lm, shapes = lm_for(family, tokenizer), list[tuple[int, ...]]()
    tap, attributed = TorchHooks.__call__, residual.fused_attribution

    def watched(self: TorchHooks, batch: Any) -> Any:
        out = tap(self, batch)
        for act in out.acts.values():
            act.register_hook(lambda _grad: pytest.fail("a gradient of neurons"))
        return out

    def seen(delta: Tensor, write: Tensor, a: Tensor, layout: Any, **settings: Any) -> Any:
        shapes.append((*delta.shape, *write.shape))
        return attributed(delta, write, a, layout, **settings)

    monkeypatch.setattr(TorchHooks, "__call__", watched)
    monkeypatch.setattr(residual, "fused_attribution", seen)
    nf.attribute(lm, corpus, score=scores.direct, batch_size=len(corpus), progress=False)
    tokens = len(corpus) * max(len(row.ids) for row in lm.encode(corpus))
    assert shapes == [(tokens, site.d_model, site.d_mlp, site.d_model) for site in lm.sites]


WRONG = ("Oslo", ("Velm", "Bergen")), ("baker in the old harbour of Velm", ("baker in a town",))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_direct_against_wrong_answers_is_the_change_of_the_logit_difference(
    family: str, corpus: Corpus, tokenizer: Any
) -> None:
    """Take one neuron's writing out of the last state, the norm's scale kept, and see what the difference loses."""
    lm = lm_for(family, tokenizer)
    lm.model.double()
    examples = tuple(replace(corpus.examples[i], answer=a, wrong=w) for i, (a, w) in enumerate(WRONG))
    told = replace(corpus, examples=examples)
    norm = lm.model.transformer.ln_f if family == "gpt2" else lm.model.model.norm
    head = lm.model.get_output_embeddings().weight.detach()
    states: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _m, x: states.append(x[0][0].detach()))
    neurons = [(0, 3), (1, 25), (1, 39)]
    expected = torch.zeros(len(examples), len(neurons), dtype=torch.float64)
    for n, example in enumerate(examples):
        right = tokenizer(f"{example.prompt} {example.answer}")["input_ids"]
        acts = TorchHooks(lm)({"input_ids": torch.tensor([right])}).acts
        state = states[-1]
        centre = state.mean(-1, keepdim=True) if family == "gpt2" else 0
        kept = ((state - centre).pow(2).mean(-1, keepdim=True) + (1e-5 if family == "gpt2" else 1e-6)).sqrt()

        def logits(x: Tensor, kept: Tensor = kept) -> Tensor:
            x = x - x.mean(-1, keepdim=True) if family == "gpt2" else x
            return (x / kept * norm.weight.detach()) @ head.T

        for wrong in example.wrong:
            other = tokenizer(f"{example.prompt} {wrong}")["input_ids"]
            at = next(i for i, (x, y) in enumerate(zip(right, other, strict=False)) if x != y)
            assert at >= len(tokenizer(example.prompt)["input_ids"]) - 1
            for k, (layer, j) in enumerate(neurons):
                weight = lm.parameters[lm.sites[layer].write.name].detach()
                writes = acts[layer][0, :, j, None].detach() * (weight[j] if family == "gpt2" else weight[:, j])
                fall = (logits(state) - logits(state - writes))[at - 1]
                expected[n, k] += (fall[right[at]] - fall[other[at]]) / len(example.wrong)
    hook.remove()
    found = nf.attribute(lm, told, score=scores.direct, against="wrong", batch_size=2, progress=False)
    got = torch.stack([found.values[layer, j] for layer, j in neurons])
    torch.testing.assert_close(got, expected.mean(0), rtol=1e-4, atol=1e-6)
    assert found.name == "direct:wrong" and expected.mean(0).abs().min() > 1e-4
    pair = [replace(told, examples=(example,)) for example in examples]
    apart = nf.attribute(lm, *pair, score=scores.direct, against="wrong", progress=False)
    got = torch.stack([apart.values[layer, j] for layer, j in neurons])
    torch.testing.assert_close(got, expected[0] - expected[1], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("untyped")
def test_direct_against_wrong_answers_needs_some_that_differ(
    lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(wrong: tuple[str, ...], prompt: str = "Anna Berg was born in") -> Corpus:
        return replace(corpus, examples=(replace(corpus.examples[0], prompt=prompt, wrong=wrong),))

    monkeypatch.setattr(lm.model, "forward", None)  # any work would fail
    good = told(("Velm",))
    for pair, message in (
        ((corpus,), r"example 0 .*has no wrong answer.*against='mean'"),
        ((good, corpus.head(1)), "example 0 .*has no wrong answer"),
        ((told(("Velm", "")),), r"example 0: its wrong answer '' cannot be used"),
        ((told(("Velm", "Oslo")),), "parts from the right one nowhere"),
        ((told(("Oslo by the sea",)),), "parts from the right one nowhere"),
        ((told(("Velm",), prompt=""),), "parts from the right one nowhere"),
    ):
        with pytest.raises(InputError, match=message):
            scores.direct(lm, *pair, against="wrong", progress=False)
    with pytest.raises(InputError, match="against must be 'mean' or 'wrong'; found 'other'"):
        scores.direct(lm, good, against="other", progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "bloom", "gemma2"])
def test_gradient_drop_is_the_mean_over_passes_without_one_block(family: str, corpus: Corpus, tokenizer: Any) -> None:
    lm = lm_for(family, tokenizer, **({"n_layer": 3} if family == "bloom" else {"num_hidden_layers": 3}))
    expected = []
    for batch in singles(lm, corpus):
        total = torch.zeros(lm.shape, dtype=torch.float64)
        for block in blocks_of(lm):

            def hook(_m: Any, args: Any, kwargs: Any, out: Any) -> Any:
                stream = args[0] if args else kwargs["hidden_states"]
                states = out[0] if isinstance(out, tuple) else out
                states = stream + (states - stream).detach()
                return (states, *out[1:]) if isinstance(out, tuple) else states

            handle = block.register_forward_hook(hook, with_kwargs=True)
            out = TorchHooks(lm)(batch.inputs)
            handle.remove()
            acts = [out.acts[i] for i in range(3)]
            grads = torch.autograd.grad(answer_nll(out.logits, batch).sum(), acts, allow_unused=True)
            for i, (a, g) in enumerate(zip(acts, grads, strict=True)):
                total[i] += 0 if g is None else (a * g).detach().sum((0, 1)).abs()
        expected.append(total / 2)
    found = nf.attribute(lm, corpus, score=scores.gradient_drop, batch_size=3, progress=False)
    torch.testing.assert_close(found.values, torch.stack(expected).mean(0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma2"])
def test_value_fisher_is_the_squared_gradient_of_the_write_weights(family: str, corpus: Corpus, tokenizer: Any) -> None:
    lm, expected = lm_for(family, tokenizer), []
    for batch in singles(lm, corpus):
        loss = answer_nll(lm.model(**batch.inputs).logits, batch).sum()
        grads = torch.autograd.grad(loss, [lm.parameters[site.write.name] for site in lm.sites])
        expected.append(
            torch.stack([g.double().pow(2).sum(1 - s.write.dim) for g, s in zip(grads, lm.sites, strict=True)])
        )
    found = nf.attribute(lm, corpus, score=scores.value_fisher, batch_size=3, progress=False)
    mean = torch.stack(expected).mean(0)
    torch.testing.assert_close(found.values, mean, rtol=1e-3, atol=1e-6 * float(mean.max()))


@BATCHED
def test_scores_do_not_depend_on_the_batch_and_leave_the_model_as_it_was(lm: LM, corpus: Corpus, score: Any) -> None:
    lm.model.train()
    before = {name: p.detach().clone() for name, p in lm.parameters.items()}
    pair = replace(corpus, examples=corpus.examples[:4]), replace(corpus, examples=corpus.examples[4:])
    one, all_ = (
        nf.attribute(lm, *pair, score=score, batch_size=n, progress=False, contrast="difference") for n in (1, 16)
    )
    np.testing.assert_allclose(one.values, all_.values, atol=1e-5 * float(one.values.abs().max()))
    np.testing.assert_allclose(one.error, all_.error, rtol=2e-3, atol=1e-5 * float(one.error.max()))  # type: ignore[union-attr, arg-type]
    parts = [nf.attribute(lm, c, score=score, progress=False, contrast="difference").values for c in pair]
    torch.testing.assert_close(parts[0] - parts[1], all_.values)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in lm.parameters.items())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in lm.model.modules())
    assert all(p.requires_grad for p in lm.parameters.values())


def test_a_model_of_one_block_has_none_to_drop(corpus: Corpus, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="two or more"):
        lm = lm_for("llama", tokenizer, num_hidden_layers=1)
        nf.attribute(lm, corpus, score=scores.gradient_drop, progress=False)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_lens_reads_write_weights_in_the_vocabulary(family: str, tokenizer: Any) -> None:
    lm = lm_for(family, tokenizer)
    weight = lm.parameters[lm.sites[1].write.name].detach()
    vector = weight[7] if family == "gpt2" else weight[:, 7]
    logits = (lm.model.get_output_embeddings().weight.detach() @ vector).numpy()
    (found,) = scores.lens(lm, [(1, 7)], k=3)
    order = np.argsort(logits)
    assert [t for t, _ in found.promoted] == [tokenizer.decode([i]) for i in order[::-1][:3]]
    assert [v for _, v in found.suppressed] == pytest.approx(logits[order[:3]].tolist(), rel=1e-5)
    assert (found.layer, found.neuron) == (1, 7) and "layer 1, neuron 7: + " in repr(found)
    for neurons, k, message in (([(2, 0)], 3, "layer 2"), ([(0, 40)], 3, "no neuron 40"), ([(0, 0)], 0, "k is")):
        with pytest.raises(InputError, match=message):
            scores.lens(lm, neurons, k=k)
