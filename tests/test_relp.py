"""Relevance rules: each against its closed form, all together by conservation, in every family bit for bit forward."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, lm_of, padded_batch
from torch import Tensor, nn
from torch.nn import functional as F

import neuronforget as nf
from neuronforget import scores
from neuronforget.corpora import Corpus, batches, encode
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_nll
from neuronforget.scores.relevance import relevance_rules
from neuronforget.scores.rules import FrozenAttention, frozen_norms, halved_gates, linear_activations
from neuronforget.taps import TorchHooks


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rules_change_gradients_and_not_one_bit_of_the_forward(family: str) -> None:
    lm, batch = lm_of(family), padded_batch()
    plain = TorchHooks(lm)(batch)
    with relevance_rules(lm) as attention:
        ruled = TorchHooks(lm)(batch)
    assert torch.equal(plain.logits, ruled.logits) and attention.seen == 2
    weights = batch["attention_mask"][..., None] * torch.linspace(-1, 1, 64)
    expected, found = (out.grads((out.logits * weights).sum()) for out in (plain, ruled))
    assert torch.isfinite(found[0]).all() and found[0].abs().max() > 1e-6
    assert (found[0] - expected[0]).abs().max() > 1e-3 * expected[0].abs().max()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in lm.model.modules())


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "olmo", "cohere", "nemotron"])
def test_a_norm_divides_by_a_constant(family: str) -> None:
    lm = lm_of(family)
    lm.model.double()
    norm = next(m for n, m in reversed(list(lm.model.named_modules())) if "norm" in type(m).__name__.lower())
    draw = torch.Generator().manual_seed(0)  # some families' norms compute in fp32, whose rounding goes with the draw
    x = torch.randn(2, 3, 16, dtype=torch.float64, generator=draw).requires_grad_()
    v = torch.randn(2, 3, 16, dtype=torch.float64, generator=draw)
    with frozen_norms(lm):
        (found,) = torch.autograd.grad((norm(x) * v).sum(), x)
    weight = getattr(norm, "weight", None)
    gain = torch.ones(16) if weight is None else weight.detach() + (1 if family in ("gemma", "nemotron") else 0)
    centred = family in ("gpt2", "olmo", "cohere", "nemotron")
    y = x.detach() - x.detach().mean(-1, keepdim=True) if centred else x.detach()
    scaled = v * gain / (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = scaled - scaled.mean(-1, keepdim=True) if centred else scaled
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_norm_that_wants_a_gate_too_is_refused_by_name() -> None:
    class GatedNorm(nn.Module):
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return F.rms_norm(x, x.shape[-1:]) * gate

    lm = lm_of("llama")
    lm.model.model.norm, inner = nn.Module(), lm.model.model.norm
    lm.model.model.norm.gated = GatedNorm()
    lm.model.model.norm.forward = lambda x: lm.model.model.norm.gated(inner(x), torch.ones_like(x))
    with pytest.raises(InputError, match=r"gated \(GatedNorm\) is neither"), frozen_norms(lm):
        TorchHooks(lm)(padded_batch())


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom"])
def test_an_activation_multiplies_by_its_ratio(family: str) -> None:
    lm = lm_of(family)
    parent = lm.model.get_submodule(lm.sites[0].path.rpartition(".")[0])
    act = next(m for n, m in parent.named_children() if "act" in n or "gelu" in n)
    x = torch.tensor([-2.0, -0.3, 0.0, 0.4, 3.0], requires_grad=True)
    with linear_activations(lm):
        out = act(x)
        (found,) = torch.autograd.grad(out.sum(), x)
    expected = torch.where(x == 0, 0.0, act(x) / x).detach()
    assert torch.equal(out, act(x))
    torch.testing.assert_close(found, expected)


def test_each_factor_of_a_gate_takes_half_and_an_ungated_neuron_all() -> None:
    for family, share in (("llama", 0.5), ("phi3", 0.5), ("gpt2", 1.0)):
        lm = lm_of(family)
        project = lm.model.get_submodule(lm.sites[0].path)
        torch.manual_seed(0)
        a = torch.randn(1, 4, 40, requires_grad=True)
        (plain,) = torch.autograd.grad(project(a).sum(), a)
        with halved_gates(lm):
            (found,) = torch.autograd.grad(project(a).sum(), a)
        torch.testing.assert_close(found, share * plain)


def test_attention_patterns_get_no_gradient_and_values_theirs() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3))
    pattern = (q @ k.mT / 8**0.5).softmax(-1).detach()
    expected = pattern.mT.sum(-1, keepdim=True).expand_as(v)
    for attend in (
        lambda: F.scaled_dot_product_attention(q, k, v),
        lambda: F.scaled_dot_product_attention(query=q, key=k, value=v),
        lambda: F.softmax(q @ k.mT / 8**0.5, dim=-1) @ v,
        lambda: (q @ k.mT / 8**0.5).softmax(-1) @ v,
        lambda: torch.softmax(q @ k.mT / 8**0.5, -1) @ v,
    ):
        with FrozenAttention() as mode:
            grads = torch.autograd.grad(attend().sum(), (q, k, v), allow_unused=True)
        assert grads[0] is None and grads[1] is None and mode.seen == 1
        torch.testing.assert_close(grads[2], expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "olmo2", "phi3"])
def test_relevance_is_conserved_from_the_logit_to_the_embedding(family: str, attention: str) -> None:
    """Without biases every rule hands on what it gets: sum of embedding x gradient is the logit itself."""
    lm = lm_of(family, attn_implementation=attention, **({"mlp_bias": False} if family == "llama" else {}))
    seen: list[Tensor] = []
    hook = lm.model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: seen.append(out))
    ids = torch.randint(3, 64, (1, 7), generator=torch.Generator().manual_seed(0))

    def relevance() -> tuple[float, float]:
        logit = lm.model(input_ids=ids, use_cache=False).logits[0, -1, 5]
        (grad,) = torch.autograd.grad(logit, seen[-1])
        return float(logit.detach()), float((seen[-1].detach() * grad).sum())

    with relevance_rules(lm):
        logit, total = relevance()
    without = relevance()[1]
    hook.remove()
    assert total == pytest.approx(logit, rel=1e-4, abs=1e-5) and abs(without - logit) > 1e-3 * abs(logit)


def test_relp_contracts_activations_with_the_ruled_gradient(lm: LM, corpus: Corpus) -> None:
    sums = []
    for batch in batches(encode(corpus, lm.tokenizer), 1, lm.pad_id):
        with relevance_rules(lm):
            out = TorchHooks(lm)(batch.inputs)
        grads = out.grads(answer_nll(out.logits, batch).sum())
        sums.append(torch.stack([-(out.acts[k] * grads[k]).sum((0, 1)).detach().double() for k in (0, 1)]))
    found = nf.attribute(lm, corpus, score=scores.relp, batch_size=3, progress=False)
    torch.testing.assert_close(found.values, torch.stack(sums).mean(0), rtol=1e-3, atol=1e-6)
    assert found.name == "relp" and found.error is not None
    plain = nf.attribute(lm, corpus, score=scores.grad_x_act, tap="torch_hooks", progress=False)
    assert (found.values - plain.values).abs().max() > 1e-3 * plain.values.abs().max()


def test_a_model_in_which_a_rule_has_no_place_is_refused(lm: LM, corpus: Corpus) -> None:
    class OddNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sign() * x.abs().sqrt()

    for block in lm.model.model.layers:
        block.self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(InputError, match="0 attention patterns that can be seen in 2 blocks"):
        nf.attribute(lm, corpus, score=scores.relp, progress=False)
    lm.model.model.norm = OddNorm()
    for score in (scores.relp, scores.direct):
        with pytest.raises(InputError, match=r"model\.norm \(OddNorm\) is neither"):
            nf.attribute(lm, corpus, score=score, progress=False)
    lm.model.model.norm = nn.Identity()
    lm.model.model.layers[0].mlp.act_fn = nn.Identity()
    with pytest.raises(InputError, match="no activation module"):
        nf.attribute(lm, corpus, score=scores.relp, progress=False)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in lm.model.modules())
