"""What a neuron is, in every family: where its weights lie, and that the weights named are the ones used."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import DEPTH, FAMILIES, HEADS, UNKNOWN_TO_LENS, VOCAB, WIDTH, build, lm_of, padded_batch
from safetensors.torch import load_file, save_file
from torch import Tensor

from neuronforget.errors import InputError
from neuronforget.models import LM, activations_only, check_finite, load, shared_twin, without_bars
from neuronforget.models.maps import Part, Site
from neuronforget.taps import TorchHooks

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
NEURONS = torch.tensor([0, 7, 39])

#: Family -> (path of layer 1's output projection, projections that feed it, d_mlp, dimension of a write row).
WHERE = {
    "gpt2": ("transformer.h.1.mlp.c_proj", ("mlp.c_fc",), 40, 0),
    "gpt_neo": ("transformer.h.1.mlp.c_proj", ("mlp.c_fc",), 40, 1),
    "gptj": ("transformer.h.1.mlp.fc_out", ("mlp.fc_in",), 40, 1),
    "gpt_neox": ("gpt_neox.layers.1.mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",), 40, 1),
    "gpt_bigcode": ("transformer.h.1.mlp.c_proj", ("mlp.c_fc",), 40, 1),
    "opt": ("model.decoder.layers.1.fc2", ("fc1",), 40, 1),
    "phi": ("model.layers.1.mlp.fc2", ("mlp.fc1",), 40, 1),
    "phi3": ("model.layers.1.mlp.down_proj", ("mlp.gate_up_proj",), 40, 1),
    "glm": ("model.layers.1.mlp.down_proj", ("mlp.gate_up_proj",), 40, 1),
    "falcon": ("transformer.h.1.mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",), 40, 1),
    "bloom": ("transformer.h.1.mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",), 64, 1),
    "starcoder2": ("model.layers.1.mlp.c_proj", ("mlp.c_fc",), 40, 1),
    "nemotron": ("model.layers.1.mlp.down_proj", ("mlp.up_proj",), 40, 1),
    "mpt": ("transformer.blocks.1.ffn.down_proj", ("ffn.up_proj",), 64, 1),
    "xglm": ("model.layers.1.fc2", ("fc1",), 40, 1),
    "biogpt": ("biogpt.layers.1.fc2", ("fc1",), 40, 1),
    "mixtral": ("model.layers.1.mlp.experts.down", ("mlp.experts.gate", "mlp.experts.up"), 40, 1),
}
GATED = ("model.layers.1.mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj"), 40, 1)
FUSED = ("phi3", "glm")


def zero(model: Any, parts: tuple[Part, ...], neurons: Tensor) -> None:
    named = dict(model.named_parameters())
    with torch.no_grad():
        for part in parts:
            named[part.name].index_fill_(part.dim, part.index(neurons), 0.0)


def module_path(part: Part) -> tuple[str, int]:
    """The half of a projection that a part belongs to; its weight and its bias share one."""
    return part.name.rpartition(".")[0], part.offset


def small(kind: str, **settings: Any) -> Any:
    """Build a model that is not one of the families, such as one that has to be refused."""
    shape = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    tokens = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.CONFIG_MAPPING[kind](**{**shape, **tokens, **settings})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@EVERY_FAMILY
def test_the_neurons_are_found_where_the_family_keeps_them(family: str) -> None:
    model = build(family)
    path, feeds, d_mlp, dim = WHERE.get(family, GATED)
    sites = LM(model).sites
    assert [site.layer for site in sites] == list(range(DEPTH))
    site, block = sites[1], path[: path.index(".1.") + 2]
    assert (site.path, site.d_mlp, site.d_model) == (path, d_mlp, WIDTH)
    assert site.write == Part(f"{path}.weight", dim)
    expected = set()
    for feed in feeds:
        for offset in (0, d_mlp) if family in FUSED else (0,):
            expected.add(Part(f"{block}.{feed}.weight", 1 - dim, offset))
            if getattr(model.get_submodule(f"{block}.{feed}"), "bias", None) is not None:
                expected.add(Part(f"{block}.{feed}.bias", 0, offset))
    assert set(site.read) == expected
    assert len(site.read) == len(expected)
    assert LM(model).shape == (DEPTH, d_mlp)


@EVERY_FAMILY
def test_an_ablated_activation_equals_zeroed_write_weights(family: str) -> None:
    lm, batch = lm_of(family), padded_batch()
    tap = TorchHooks(lm)

    def ablate(act: Tensor) -> Tensor:
        return act.index_fill(-1, NEURONS, 0.0)

    with torch.no_grad():
        before = tap(batch).logits
        hooked = tap(batch, edits={site.layer: ablate for site in lm.sites}).logits
        for site in lm.sites:
            zero(lm.model, (site.write,), NEURONS)
        after = tap(batch).logits
    torch.testing.assert_close(after, hooked, atol=1e-5, rtol=1e-5)
    assert (after - before).abs().max() > 1e-3


@EVERY_FAMILY
def test_a_neuron_without_read_weights_is_silent_and_the_others_do_not_notice(family: str) -> None:
    batch = padded_batch()
    read = lm_of(family).sites[0].read
    for half in dict.fromkeys(map(module_path, read)):  # in a gated MLP the gate alone, or the up half alone
        lm = lm_of(family)
        with torch.no_grad():
            before = TorchHooks(lm)(batch).acts[0]
            zero(lm.model, tuple(part for part in read if module_path(part) == half), NEURONS)
            after = TorchHooks(lm)(batch).acts[0]
        assert (before[..., NEURONS] != 0).any(0).any(0).all()
        assert (after[..., NEURONS] == 0).all()  # act(0) = 0 for every activation function here
        others = [j for j in range(lm.shape[1]) if j not in NEURONS.tolist()]
        torch.testing.assert_close(after[..., others], before[..., others], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in UNKNOWN_TO_LENS])
def test_sites_are_those_of_transformer_lens(family: str) -> None:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    lm = lm_of(family)
    twin, kind = shared_twin(lm.model), type(lm.model).__name__
    bridge = build_bridge_from_module(twin, kind, hf_config=lm.model.config)
    mlps = {layer: block.mlp for layer, block in bridge.blocks_with("mlp")}
    assert sorted(mlps) == [site.layer for site in lm.sites]
    for site in lm.sites:
        mlp = mlps[site.layer]
        rows = torch.arange(site.d_mlp)

        def rows_first(part: Part, rows: Tensor = rows) -> Tensor:
            return lm.parameters[part.name].index_select(part.dim, part.index(rows)).movedim(part.dim, 0)

        assert torch.equal(rows_first(site.write), mlp.W_out)
        theirs = [weight.T for weight in (mlp.W_in, getattr(mlp, "W_gate", None)) if weight is not None]
        ours = [rows_first(part) for part in site.read if part.name.endswith(".weight")]
        assert len(ours) == len(theirs)
        assert all(any(torch.equal(weight, other) for other in ours) for weight in theirs)


def test_most_families_of_these_tests_are_there() -> None:
    assert len(FAMILIES) >= 16


def test_a_model_without_blocks_is_refused() -> None:
    model = small("mamba", intermediate_size=32, state_size=4)
    with pytest.raises(InputError, match="no MLP that can be read"):
        _ = LM(model).sites


def test_a_recurrent_block_that_looks_like_a_gated_mlp_is_not_taken_for_one() -> None:
    settings = {"intermediate_size": 96, "lru_width": 32, "num_key_value_heads": 1}
    sites = LM(small("recurrent_gemma", **settings)).sites
    assert [site.path for site in sites] == [f"model.layers.{i}.mlp_block.down_proj" for i in range(DEPTH)]


def test_of_two_maps_in_a_block_the_wider_one_is_the_mlp() -> None:
    model = build("llama")
    for block in model.model.layers:  # as Gemma 4 does for its embeddings of every layer
        block.per_layer_input_gate = torch.nn.Linear(WIDTH, 8, bias=False)
        block.per_layer_projection = torch.nn.Linear(8, WIDTH, bias=False)
    assert LM(model).sites == lm_of("llama").sites


def test_a_square_mlp_is_refused_because_nothing_tells_its_maps_apart() -> None:
    model = build("llama", intermediate_size=WIDTH)
    with pytest.raises(InputError, match=r"equally well.*sites_override"):
        _ = LM(model).sites
    path = "model.layers.0.mlp.down_proj"
    site = Site(0, path, WIDTH, WIDTH, Part(f"{path}.weight", 1), ())
    assert LM(model, sites_override=(site,)).sites == (site,)


def test_a_checkpoint_whose_structure_does_not_tell_is_loaded_with_its_neurons_named(
    tmp_path: Path, tokenizer: Any
) -> None:
    build("llama", intermediate_size=WIDTH, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "square")
    tokenizer.save_pretrained(tmp_path / "square")
    with pytest.raises(InputError, match=r"equally well.*sites="):
        load(tmp_path / "square")
    path = "model.layers.0.mlp.down_proj"
    site = Site(0, path, WIDTH, WIDTH, Part(f"{path}.weight", 1), ())
    assert load(tmp_path / "square", sites=(site,)).sites == (site,)
    for strange in (
        replace(site, path="model.layers.0.mlp.down"),
        replace(site, write=Part("down.weight", 1)),
        replace(site, d_mlp=WIDTH + 1),
    ):
        with pytest.raises(InputError, match="LlamaForCausalLM has no such site"):
            load(tmp_path / "square", sites=(strange,))


def test_layers_of_different_widths_are_refused() -> None:
    model = build("llama")
    model.model.layers[1].mlp = build("llama", intermediate_size=48).model.layers[1].mlp
    with pytest.raises(InputError, match="different MLP widths"):
        _ = LM(model).sites


@pytest.mark.parametrize("place", ["self_attn", "shared_expert", "adapter"])
def test_a_gated_map_of_attention_experts_or_adapters_is_not_the_mlp(place: str) -> None:
    model = build("llama")
    for block in model.model.layers:  # wider than the MLP, so that only where it stands tells it apart
        shapes = {"gate": (WIDTH, 48), "up": (WIDTH, 48), "down": (48, WIDTH)}
        maps = {name: torch.nn.Linear(*shape) for name, shape in shapes.items()}
        if place != "self_attn":
            block.add_module(place, torch.nn.Module())
        block.get_submodule(place).add_module("compressor", torch.nn.ModuleDict(maps))
    with pytest.warns(match="routes to experts in 2 of its 2 layers") if "expert" in place else nullcontext():
        assert LM(model).sites == lm_of("llama").sites


def test_a_dense_mlp_whose_class_bears_the_family_s_name_is_read() -> None:
    """Granite 4's dense models are of the class of its mixtures; the first layers of others have no experts."""
    sizes = {"num_key_value_heads": 2, "intermediate_size": 40, "shared_intermediate_size": 40}
    mamba = {"mamba_n_heads": 4, "mamba_d_head": 8}
    dense = small("granitemoehybrid", num_local_experts=0, layer_types=["attention"] * 2, **sizes, **mamba)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sites = LM(dense).sites
    assert [site.path for site in sites] == [f"model.layers.{i}.shared_mlp.output_linear" for i in (0, 1)]
    dense.__class__ = type("Mine", (type(dense),), {})  # a class of one's own is of the family of what it is made of
    assert LM(dense).sites == sites
    mixed = small("glm4_moe", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_group=1,
                  topk_group=1, head_dim=8, first_k_dense_replace=1, **sizes)  # fmt: skip
    with pytest.warns(match=r"experts in 1 of its 2 layers: .* only those of 1 layers' dense MLPs") as warned:
        assert [site.path for site in LM(mixed).sites] == ["model.layers.0.mlp.down_proj"]
    assert warned[0].filename == __file__


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_weight_is_named(value: float) -> None:
    lm = lm_of("gpt2")
    check_finite(lm)
    with torch.no_grad():
        lm.parameters["transformer.h.1.mlp.c_fc.weight"][0, 3] = value
    with pytest.raises(InputError, match=r"1 values of transformer\.h\.1\.mlp\.c_fc\.weight"):
        check_finite(lm)


def test_a_saved_model_loads_with_equal_logits_and_tokens(lm: LM, tmp_path: Path) -> None:
    lm.save(tmp_path / "saved")
    again, batch = load(tmp_path / "saved"), padded_batch()
    assert torch.equal(again.model(**batch).logits, lm.model(**batch).logits)
    text = "Anna Berg was born in Oslo"
    assert again.tokenizer(text)["input_ids"] == lm.tokenizer(text)["input_ids"]
    assert again.sites == lm.sites
    assert not again.model.training
    assert "2 layers of 40 neurons" in repr(again)


def test_a_model_is_not_saved_onto_a_file(lm: LM, tmp_path: Path) -> None:
    (tmp_path / "saved").touch()
    with pytest.raises(InputError, match="saved is a file: name a folder"):
        lm.save(tmp_path / "saved")


def test_an_unknown_dtype_is_named_without_asking_for_a_folder_that_was_given(lm: LM, tmp_path: Path) -> None:
    lm.save(tmp_path / "saved")
    with pytest.raises(InputError, match=r"cannot load .*saved: .*'bf16'$"):
        load(tmp_path / "saved", dtype="bf16")


@pytest.mark.parametrize("downloads", [True, False])
def test_saving_and_loading_draw_no_bars_and_leave_the_settings_of_bars(
    downloads: bool, lm: LM, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    def settings() -> tuple[bool, bool]:
        return logging.is_progress_bar_enabled(), are_progress_bars_disabled()

    shown, was = settings()
    logging.enable_progress_bar()
    enable_progress_bars() if downloads else disable_progress_bars()
    try:
        lm.save(tmp_path)
        load(tmp_path)
        assert capfd.readouterr().err == "" and settings() == (True, not downloads)
        with without_bars():
            assert settings() == (False, not downloads)  # a download from the hub shows how far it is
    finally:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        (disable_progress_bars if was else enable_progress_bars)()


def test_loading_keeps_the_stored_dtype_unless_told(lm: LM, tmp_path: Path) -> None:
    lm.model.to(torch.bfloat16)
    lm.save(tmp_path / "saved")
    assert load(tmp_path / "saved").model.dtype == torch.bfloat16
    assert load(tmp_path / "saved", dtype=torch.float32).model.dtype == torch.float32


def test_a_saved_model_with_nan_weights_is_refused(lm: LM, tmp_path: Path) -> None:
    with torch.no_grad():
        next(iter(lm.parameters.values()))[0, 0] = float("nan")
    lm.save(tmp_path / "saved")
    with pytest.raises(InputError, match="NaN or infinite"):
        load(tmp_path / "saved")


def test_a_missing_folder_is_refused_before_anything_is_asked_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no model folder"):
        load("./nowhere")


def test_a_file_is_refused_as_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("weights")
    with pytest.raises(InputError, match="no model folder"):
        load(tmp_path / "model")


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        load(tmp_path)


def test_a_folder_with_a_broken_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no such family"}')
    with pytest.raises(InputError, match="cannot load"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(InputError, match="cannot load"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    with pytest.raises(InputError, match="cannot load"):
        load(tmp_path)


def test_a_damaged_weights_file_is_refused(lm: LM, tmp_path: Path) -> None:
    lm.save(tmp_path / "saved")
    weights = tmp_path / "saved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot load"):
        load(tmp_path / "saved")


def test_a_checkpoint_that_lacks_weights_is_refused_not_completed_at_random(lm: LM, tmp_path: Path) -> None:
    lm.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights .*layers\.1\.mlp\.down_proj"):
        load(tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "phi3", "opt", "falcon"])
def test_a_model_with_zeroed_write_weights_survives_saving(family: str, tmp_path: Path) -> None:
    lm, batch = lm_of(family), padded_batch()
    for site in lm.sites:
        zero(lm.model, (site.write,), NEURONS)
    lm.save(tmp_path / "saved")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, lm.model(**batch).logits)
    named = dict(again.named_parameters())
    for site in lm.sites:
        assert (named[site.write.name].index_select(site.write.dim, site.write.index(NEURONS)) == 0).all()


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2", "falcon"])
def test_a_twin_shares_every_tensor_and_no_module(family: str) -> None:
    model = build(family)
    twin = shared_twin(model)
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(model, kind)()), dict(getattr(twin, kind)())
        assert ours.keys() == theirs.keys()
        assert all(ours[name] is theirs[name] for name in ours)
    assert not {id(m) for m in model.modules()} & {id(m) for m in twin.modules()}
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
        assert torch.equal(model(**padded_batch()).logits, twin(**padded_batch()).logits)


def test_activations_only_puts_flags_and_mode_back_even_after_an_error() -> None:
    lm = lm_of("gpt2")
    lm.model.train()
    lm.model.transformer.h[0].eval()
    names = list(lm.parameters)
    for name in names[::3]:
        lm.parameters[name].requires_grad_(False)
    flags = {name: p.requires_grad for name, p in lm.parameters.items()}
    modes = {name: m.training for name, m in lm.model.named_modules()}
    with pytest.raises(RuntimeError, match="on purpose"), activations_only(lm):
        wanted = [name for name, p in lm.parameters.items() if p.requires_grad]
        assert wanted == ["transformer.wte.weight"]
        assert not any(m.training for m in lm.model.modules())
        raise RuntimeError("on purpose")
    assert {name: p.requires_grad for name, p in lm.parameters.items()} == flags
    assert {name: m.training for name, m in lm.model.named_modules()} == modes


def test_an_offloaded_model_is_refused_unchanged() -> None:
    lm = lm_of("gpt2")
    lm.model.transformer.h[1].to("meta")
    with pytest.raises(InputError, match="offloaded"), activations_only(lm):
        pass
    assert all(p.requires_grad for p in lm.model.parameters())


def test_padding_uses_the_pad_token_else_the_end_of_sequence_else_zero() -> None:
    class Ids:
        def __init__(self, pad: int | None, eos: int | None) -> None:
            self.pad_token_id, self.eos_token_id = pad, eos

    model = build("gpt2")
    for pad, eos, expected in ((5, 2, 5), (0, 2, 0), (None, 2, 2), (None, None, 0)):
        assert LM(model, Ids(pad, eos)).pad_id == expected
    assert LM(model).pad_id == 0


def test_a_digest_names_the_weights(lm: LM, tokenizer: Any) -> None:
    first = lm.digest()
    assert len(first) == 16 and first == LM(build("qwen2", vocab_size=len(tokenizer)), tokenizer).digest()
    weight = next(iter(lm.parameters.values()))
    with torch.no_grad():
        weight[0, 0], weight[0, 1] = weight[0, 1].clone(), weight[0, 0].clone()  # a sum would not see this
    assert lm.digest() != first
    half = lm.digest()
    lm.model.bfloat16()
    assert lm.digest() not in (first, half)


def test_the_rows_of_a_part_are_its_neurons_weights() -> None:
    weight = torch.arange(12.0).reshape(3, 4).requires_grad_()
    across, down = (Part("w", dim, 1).rows({"w": weight}, 2) for dim in (1, 0))
    assert across.tolist() == [[1, 5, 9], [2, 6, 10]] and down.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert not across.requires_grad and across.data_ptr() == weight[0, 1].data_ptr()
