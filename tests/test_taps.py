"""Three taps, one truth: equal logits, activations and gradients, whichever library reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, UNKNOWN_TO_LENS, WIDTH, build, lm_of, padded_batch
from torch import Tensor

from neuronforget import taps
from neuronforget.errors import InputError
from neuronforget.models import LM, activations_only
from neuronforget.models.maps import Part, Site
from neuronforget.taps import NAMES, Tap, TorchHooks, open_tap

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
EVERY_TAP = pytest.mark.parametrize("name", NAMES)


def taps_of(lm: LM, family: str) -> list[Tap]:
    """The reference first, then every other tap that knows the family."""
    others = ("nnsight",) if family in UNKNOWN_TO_LENS else ("transformer_lens", "nnsight")
    return [TorchHooks(lm), *(open_tap(lm, name) for name in others)]


def loss_of(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """A loss over the real tokens alone."""
    return (logits.tanh() * batch["attention_mask"][..., None]).mean()


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Within 1e-5, or within that fraction of the largest value."""
    atol = 1e-5 * max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def dim_odd_neurons(act: Tensor) -> Tensor:
    """An edit that differs by example, token and neuron, so that no axis may be exchanged."""
    examples, tokens, neurons = act.shape
    by_token = torch.linspace(0.2, 1, examples * tokens).view(examples, tokens, 1)
    return act * by_token * (torch.arange(neurons) % 2 + 0.5)


@EVERY_FAMILY
@pytest.mark.parametrize("edited", [False, True], ids=["as it is", "edited"])
def test_taps_agree_on_logits_activations_and_gradients(family: str, edited: bool) -> None:
    lm, batch = lm_of(family), padded_batch()
    edits = {site.layer: dim_odd_neurons for site in lm.sites} if edited else {}
    plain = lm.model(**batch).logits.detach()
    reference, *others = taps_of(lm, family)
    expected = reference(batch, edits=edits)
    grads = expected.grads(loss_of(expected.logits, batch))
    assert edited == bool((expected.logits - plain).abs().max() > 1e-3)
    for layer in expected.acts:
        assert expected.acts[layer].shape == (*batch["input_ids"].shape, lm.shape[1])
        assert grads[layer].abs().max() > 1e-6
    for tap in others:
        found = tap(batch, edits=edits)
        assert_close(found.logits, expected.logits)
        assert found.acts.keys() == expected.acts.keys()
        theirs = found.grads(loss_of(found.logits, batch))
        for layer in expected.acts:
            assert_close(found.acts[layer], expected.acts[layer])
            assert_close(theirs[layer] / grads[layer].abs().max(), grads[layer] / grads[layer].abs().max())


@EVERY_TAP
def test_gradients_are_those_of_a_finite_difference(name: str) -> None:
    lm, batch = lm_of("gpt2"), padded_batch()  # its norms stay in the model's own precision
    lm.model.double()
    tap, step = open_tap(lm, name), 1e-5
    out = tap(batch)
    grad = out.grads(out.logits.tanh().mean())[0][1, 2, 7]

    def shifted(act: Tensor, by: float) -> Tensor:
        shift = torch.zeros_like(act)
        shift[1, 2, 7] = by
        return act + shift

    with torch.no_grad():
        up, down = (tap(batch, edits={0: lambda a, by=by: shifted(a, by)}).logits for by in (step, -step))
    slope = (up.tanh().mean() - down.tanh().mean()) / (2 * step)
    assert float(slope) == pytest.approx(float(grad), rel=1e-3)


@EVERY_TAP
def test_an_edit_in_one_layer_changes_what_later_layers_read(name: str) -> None:
    lm, batch = lm_of("gpt2"), padded_batch()
    tap = open_tap(lm, name)
    before, after = tap(batch), tap(batch, edits={0: torch.zeros_like})
    assert (after.acts[0] == 0).all()
    assert (after.acts[1] - before.acts[1]).abs().max() > 1e-3
    alone = tap(batch, edits={1: torch.zeros_like})
    assert torch.equal(alone.acts[0], before.acts[0])


@EVERY_TAP
def test_a_tap_leaves_nothing_behind(name: str) -> None:
    lm, batch = lm_of("qwen2"), padded_batch()
    before = lm.model(**batch).logits
    tap = open_tap(lm, name)
    tap(batch, edits={0: torch.zeros_like})
    assert torch.equal(lm.model(**batch).logits, before)
    assert_close(tap(batch).logits, before)
    assert all(p.grad is None for p in lm.model.parameters())


@EVERY_TAP
def test_a_tap_works_again_after_an_edit_that_failed(name: str) -> None:
    lm, batch = lm_of("qwen2"), padded_batch()
    tap = open_tap(lm, name)
    before = tap(batch).logits

    def fail(act: Tensor) -> Tensor:
        raise ArithmeticError("on purpose")

    with pytest.raises(Exception, match="on purpose"):
        tap(batch, edits={1: fail})
    assert torch.equal(tap(batch).logits, before)
    assert_close(lm.model(**batch).logits, before)


@EVERY_TAP
def test_a_tap_sees_the_weights_as_they_are_now(name: str) -> None:
    lm, batch = lm_of("gpt2"), padded_batch()
    tap = open_tap(lm, name)
    before = tap(batch).logits
    with torch.no_grad():
        lm.parameters[lm.sites[0].write.name].mul_(0.5)
    assert_close(tap(batch).logits, lm.model(**batch).logits)
    assert (tap(batch).logits - before).abs().max() > 1e-3


@EVERY_TAP
def test_activation_gradients_need_no_weight_that_is_trained(name: str) -> None:
    lm, batch = lm_of("gpt2"), padded_batch()
    out = open_tap(lm, name)(batch)
    expected = out.grads(loss_of(out.logits, batch))
    with activations_only(lm):
        frozen = open_tap(lm, name)(batch)
        found = frozen.grads(loss_of(frozen.logits, batch))
    for layer in expected:
        assert_close(found[layer], expected[layer])


@EVERY_TAP
def test_right_padding_changes_no_real_token(name: str) -> None:
    lm, batch = lm_of("gpt2"), padded_batch()
    tap = open_tap(lm, name)
    together = tap(batch)
    for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        alone = tap({key: value[i : i + 1, :length] for key, value in batch.items()})
        assert_close(together.logits[i, :length], alone.logits[0])
        for layer, act in alone.acts.items():
            assert_close(together.acts[layer][i, :length], act[0])


@EVERY_TAP
def test_a_tap_follows_the_models_training_mode(name: str) -> None:
    lm, batch = LM(build("gpt2", resid_pdrop=0.5)), padded_batch()
    tap = open_tap(lm, name)
    lm.model.train()
    assert not torch.equal(tap(batch).logits, tap(batch).logits)
    lm.model.eval()
    assert torch.equal(tap(batch).logits, tap(batch).logits)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=f"unknown tap 'hooks': use one of {', '.join(NAMES)}"):
        open_tap(lm_of("gpt2"), "hooks")


def test_a_model_that_transformer_lens_does_not_know_is_refused_by_name_and_hooked_by_default() -> None:
    lm = lm_of(UNKNOWN_TO_LENS[0])
    with pytest.raises(InputError, match=r"does not know BioGptForCausalLM.*tap='torch_hooks'"):
        open_tap(lm, "transformer_lens")
    assert isinstance(open_tap(lm), TorchHooks)
    assert open_tap(lm_of("gpt2")).name == "transformer_lens"


def test_a_mapping_that_transformer_lens_does_not_share_is_refused() -> None:
    model = build("gpt2")
    path = "transformer.h.0.attn.c_proj"  # an override may name any projection, TransformerLens has its own
    site = Site(0, path, WIDTH, WIDTH, Part(f"{path}.weight", 0), ())
    with pytest.raises(InputError, match="elsewhere"):
        open_tap(LM(model, sites_override=(site,)), "transformer_lens")
    assert isinstance(open_tap(LM(model, sites_override=(site,))), TorchHooks)


@EVERY_TAP
def test_a_mixture_of_experts_is_refused_by_every_tap(name: str) -> None:
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    config = transformers.MixtralConfig(vocab_size=64, **shape, **heads)
    lm = LM(transformers.MixtralForCausalLM(config))
    with pytest.raises(InputError, match="routed experts"):
        open_tap(lm, name)(padded_batch())


@pytest.mark.parametrize("name", ["transformer_lens", "nnsight"])
def test_a_missing_library_is_named_and_the_default_does_without_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "find_spec", lambda library: None)
    with pytest.raises(InputError, match=f"needs {name}"):
        open_tap(lm_of("gpt2"), name)
    assert isinstance(open_tap(lm_of("gpt2")), TorchHooks)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2", "falcon"])
def test_the_model_saves_and_reloads_after_every_tap(family: str, tmp_path: Path) -> None:
    lm, batch = lm_of(family), padded_batch()
    expected = lm.model(**batch).logits
    for tap in taps_of(lm, family):
        tap(batch, edits={1: torch.zeros_like})
    lm.model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**batch).logits, expected)


@EVERY_TAP
def test_gradients_without_a_graph_are_refused_with_what_to_do(name: str) -> None:
    lm, batch = LM(build("qwen2")), padded_batch()
    lm.model.requires_grad_(False)
    tap = open_tap(lm, name)
    found = tap(batch)
    with pytest.raises(InputError, match="frozen weights"):
        found.grads(found.logits.mean())
    lm.model.get_input_embeddings().requires_grad_(True)
    found = tap(batch)
    assert all(grad.abs().sum() > 0 for grad in found.grads(found.logits.pow(2).mean()).values())


@EVERY_TAP
def test_reentrant_checkpointing_is_refused_where_gradients_are_asked_for(name: str) -> None:
    lm, batch = LM(build("qwen2").train()), padded_batch()
    lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    found = open_tap(lm, name)(batch)
    with pytest.raises(InputError, match="use_reentrant=False"):
        found.grads(found.logits.pow(2).mean())
    lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = open_tap(lm, name)(batch)
    assert all(grad.abs().sum() > 0 for grad in found.grads(found.logits.pow(2).mean()).values())


@EVERY_TAP
def test_a_tap_leaves_every_module_of_the_model_as_it_was(name: str) -> None:
    lm, batch = LM(build("qwen2")), padded_batch()
    _ = lm.sites

    def modules() -> dict[str, set[str]]:
        return {path: set(vars(module)) for path, module in lm.model.named_modules()}

    before = modules()
    found = open_tap(lm, name)(batch)
    assert modules() == before
    with torch.no_grad():
        lm.parameters[f"{lm.sites[0].path}.weight"].zero_()
        assert torch.equal(open_tap(lm, name)(batch).logits, lm.model(**batch).logits)
        assert not torch.equal(lm.model(**batch).logits, found.logits)


def test_importing_the_taps_imports_no_library_but_torch() -> None:
    code = (
        "import sys, torch, neuronforget.taps\n"
        "loaded = {'nnsight', 'transformer_lens', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "assert not hasattr(object, 'save')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})
