"""Models that are not what the toolkit reads are refused by one sentence, before any work, and stay as they were."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from beds import bed
from families import WIDTH, build, lm_of, randomise
from torch import nn

import neuronforget as nf
from neuronforget.erase.guards import icu
from neuronforget.taps import open_tap

SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 40, "num_hidden_layers": 2,
                         "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
                         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip


def t5() -> Any:
    config = transformers.T5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=40, num_layers=2, num_heads=2)
    return transformers.T5ForConditionalGeneration(config)


def bart() -> Any:
    sizes = {f"{side}_{kind}": n for side in ("encoder", "decoder")
             for kind, n in (("layers", 2), ("ffn_dim", 40), ("attention_heads", 2))}  # fmt: skip
    return transformers.BartForConditionalGeneration(transformers.BartConfig(vocab_size=64, d_model=WIDTH, **sizes))


def masked() -> Any:
    own = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    config = transformers.ModernBertConfig(**own, cls_token_id=1, sep_token_id=2)
    return transformers.ModernBertForMaskedLM(config)


def packed() -> Any:
    """A map that keeps its weights packed, as bitsandbytes' 4-bit layers do."""
    model = build("llama")
    weight = model.model.layers[1].mlp.down_proj.weight
    model.model.layers[1].mlp.down_proj.weight = nn.Parameter(weight.detach().char().reshape(-1, 1), False)
    return model


def shared() -> Any:
    model = build("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    return model


def normed() -> Any:
    model = build("llama")
    nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.down_proj)
    return model


def adapted() -> Any:
    import peft

    config = peft.LoraConfig(r=2, target_modules=["down_proj", "up_proj"], task_type="CAUSAL_LM")
    return peft.get_peft_model(build("llama"), config)


def xlm(**settings: Any) -> Any:
    sizes = {"vocab_size": 64, "emb_dim": WIDTH, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64}
    return transformers.XLMWithLMHeadModel(transformers.XLMConfig(**sizes, pad_index=0, **settings))


def xlnet() -> Any:
    config = transformers.XLNetConfig(vocab_size=64, d_model=WIDTH, n_layer=2, n_head=2, d_inner=40)
    return transformers.XLNetLMHeadModel(config)


def gemma(**settings: Any) -> Any:
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**SMALL, head_dim=8, **settings))


def seeing() -> Any:
    """Its vision tower comes first, and is as deep and as wide as its text model."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    config = transformers.LlavaConfig(text_config=transformers.LlamaConfig(**SMALL), vision_config=vision)
    return transformers.LlavaForConditionalGeneration(config)


REFUSED = {
    "encoder-decoder: only causal": (t5, bart),
    "does not predict the next token": (
        masked,
        lambda: transformers.LlamaModel(transformers.LlamaConfig(**SMALL)),
        lambda: transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**SMALL)),
    ),
    "reads later tokens too": (xlm, xlnet, lambda: gemma(use_bidirectional_attention=True)),
    "wrapped in torch.compile: give the model inside it, `model._orig_mod`": (
        lambda: torch.compile(build("llama"), backend="eager"),
    ),
    "expected a causal language model of transformers, found Linear": (lambda: nn.Linear(2, 2),),
    r"down_proj.weight is stored as \(640, 1\) torch.int8 \(quantised\?\)": (packed,),
    "down_proj.weight is shared with another layer": (shared,),
    "down_proj.weight is no parameter": (normed,),
    "merge them into it first": (adapted,),
}


@pytest.mark.parametrize(("words", "make"), [(words, make) for words, makes in REFUSED.items() for make in makes])
def test_a_model_that_cannot_be_read_is_refused_by_what_it_is(words: str, make: Any) -> None:
    with pytest.raises(nf.InputError, match=words):
        _ = nf.LM(make()).sites


@pytest.mark.parametrize("make", [lambda: xlm(causal=True), gemma])
def test_their_causal_siblings_are_read(make: Any) -> None:
    assert len(nf.LM(make()).sites) == 2


def test_neurons_are_those_of_the_text_model_where_a_vision_tower_is_as_deep_and_wide() -> None:
    model = seeing()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    assert "vision" in names[0] and len(names) == 2
    assert [site.path for site in nf.LM(model).sites] == [
        f"model.language_model.layers.{i}.mlp.down_proj" for i in range(2)
    ]


def test_a_path_is_no_model() -> None:
    with pytest.raises(nf.InputError, match=r"found str: nf.load\(path\)"):
        nf.LM("gpt2")


def test_a_model_made_under_inference_mode_is_refused_and_keeps_its_flags() -> None:
    with torch.inference_mode():
        model = build("llama")
    lm = nf.LM(model, bed().lm.tokenizer)
    with pytest.raises(nf.InputError, match="loaded under torch"):
        nf.erase.ablate(lm, nf.Neurons(frozenset({(0, 1)}), (0, 1), 40))
    assert all(p.requires_grad for p in model.parameters())


def test_a_tokenizer_of_more_tokens_than_the_model_embeds_is_refused_before_the_embedding_is_asked() -> None:
    lm = nf.LM(build("llama", vocab_size=16), bed().lm.tokenizer)
    with pytest.raises(nf.InputError, match="take the model's own tokenizer, or model"):
        nf.record(lm, bed().forget, progress=False)


def test_a_pad_token_that_was_added_and_never_embedded_changes_nothing() -> None:
    made = bed()
    tokenizer = deepcopy(made.lm.tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[NEW PAD]"})
    assert tokenizer.pad_token_id >= made.lm.model.get_input_embeddings().weight.shape[0]
    pair = [nf.LM(made.lm.model, each) for each in (made.lm.tokenizer, tokenizer)]
    own, other = (nf.record(lm, made.forget, progress=False) for lm in pair)
    assert all(torch.equal(own[name], other[name]) for name in own.fields)


def test_a_library_that_transformer_lens_lacks_leaves_plain_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformer_lens.model_bridge.sources as sources

    def lacking(*_: Any, **__: Any) -> Any:
        raise ImportError("needs the optional torchvision library")

    monkeypatch.setattr(sources, "build_bridge_from_module", lacking)
    lm = lm_of("llama")
    assert open_tap(lm).name == "torch_hooks"
    with pytest.raises(nf.InputError, match="torchvision"):
        open_tap(lm, "transformer_lens")


def hybrid(kind: str) -> nf.LM:
    """A model some of whose layers carry a state in place of keys and values."""
    size = len(bed().lm.tokenizer)
    own = {**SMALL, "vocab_size": size}
    if kind == "Jamba":
        own |= {"num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8}
    else:
        own |= {"layer_types": ["conv", "full_attention"], "block_ff_dim": 40}
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**own)).eval()
    randomise(model)
    return nf.LM(model, bed().lm.tokenizer)


@pytest.mark.parametrize("kind", ["Jamba", "Lfm2"])
def test_a_prompt_without_keys_and_values_is_not_shared_between_rows(kind: str) -> None:
    lm = hybrid(kind)
    with pytest.raises(nf.InputError, match="layers without keys and values of their own"):
        nf.attribute(lm, bed().forget.head(1), score=nf.scores.integrated, progress=False)


def test_icu_is_refused_where_a_model_forgets_what_its_cache_holds() -> None:
    lm, made = hybrid("Jamba"), bed()
    with pytest.raises(nf.InputError, match="does not read a context from its cache"):
        icu(lm, made.forget, made.retain, shown=1, kept=1)


def test_gpt_1_whose_blocks_hand_out_lists_is_scored_and_edited_as_any_other() -> None:
    made = bed()
    sizes = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.OpenAIGPTConfig(vocab_size=len(made.lm.tokenizer), **sizes)
    lm = nf.LM(transformers.OpenAIGPTLMHeadModel(config).eval(), made.lm.tokenizer)
    randomise(lm.model)
    forget, retain = made.forget.head(2), made.retain.head(4)
    for score in (nf.scores.exact, nf.scores.direct, nf.scores.gradient_drop):
        assert nf.attribute(lm, forget, score=score, progress=False).values.abs().max() > 0
    assert nf.erase.memit(lm, forget, retain, layers=[0]).certificate(lm).holds


def test_an_export_is_refused_whose_reader_would_draw_weights_at_random(tmp_path: Path) -> None:
    lm = lm_of("llama")
    nn.utils.parametrizations.weight_norm(lm.model.model.layers[0].self_attn.q_proj)
    edit = nf.erase.ablate(lm, nf.Neurons(frozenset({(0, 1)}), (0, 1), 40))
    with pytest.raises(nf.InputError, match="would draw it at random"):
        edit.export(lm, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:DeepseekV3ForCausalLM routes to experts")
def test_adapters_are_at_every_map_of_a_mixture_and_taken_out_whole() -> None:
    own = {**SMALL, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "q_lora_rank": 16,
           "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
           "v_head_dim": 8, "qk_nope_head_dim": 8, "n_shared_experts": 1,
           "vocab_size": len(bed().lm.tokenizer)}  # fmt: skip
    model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**own)).eval()
    lm, made = nf.LM(model, bed().lm.tokenizer), bed()
    names, start = [name for name, _ in model.named_modules()], lm.digest()
    edit = nf.erase.finetune(lm, made.forget, made.retain, lora=2, steps=1, lr=1e-2, progress=False)
    assert [name for name, _ in model.named_modules()] == names and lm.digest() == start
    moved = {change.name.rpartition("layers.")[2] for change in edit.changes}
    assert {"0.mlp.gate_proj.weight", "1.mlp.shared_experts.gate_proj.weight"} <= moved
    assert edit.certificate(lm).holds and model.config.model_type == "deepseek_v3"


def test_an_audit_is_not_lost_where_the_unembedding_reads_another_width() -> None:
    made = bed()
    lm = nf.LM(build("opt", vocab_size=len(made.lm.tokenizer), word_embed_proj_dim=8), made.lm.tokenizer)
    edit = nf.erase.ablate(lm, nf.Neurons(frozenset({(0, 1)}), (0, 1), 40))
    found = nf.audit(lm, edit, made.forget.head(4), made.retain.head(4), probes=["asked"], progress=False)
    assert "unembedding" in found.not_tested["neurons"]
    assert set(found.neurons) == {"units"} and "Not asked: neurons. Reason: " in str(found)


@pytest.mark.parametrize("template", ["{{ raise_exception('no such role') }}", "{% for m in messages %}{{ m.content }"])
def test_a_chat_template_that_fails_says_so(template: str) -> None:
    tokenizer = deepcopy(bed().lm.tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(nf.InputError, match="chat template refuses a question"):
        nf.record(nf.LM(bed().lm.model, tokenizer), replace(bed().forget, template="chat"), progress=False)


def test_a_row_longer_than_mpt_s_alibi_is_refused_by_its_length() -> None:
    lm = nf.LM(build("mpt", vocab_size=len(bed().lm.tokenizer), max_seq_len=4), bed().lm.tokenizer)
    with pytest.raises(nf.InputError, match="tokens, but the model takes 4"):
        nf.record(lm, bed().forget, progress=False)
