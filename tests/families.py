"""Tiny random causal language models of many families, built from their configurations: no download."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from neuronforget.models import LM
from neuronforget.models.routed import open_experts, routed_layers

WIDTH, MLP, DEPTH, HEADS, VOCAB, LENGTH = 16, 40, 2, 2, 64, 64

#: Special tokens lie inside the small vocabulary: families whose defaults do not would refuse to be built.
_COMMON = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
#: The names that most configurations share.
_LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": LENGTH,
}
_GEMMA = {**_LLAMA, "head_dim": 8}
_GPT = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": LENGTH, "n_inner": MLP}
_NEO = {"num_layers": DEPTH, "num_heads": HEADS, "attention_types": [[["global", "local"], 1]]}
_MPT = {"d_model": WIDTH, "n_layers": DEPTH, "n_heads": HEADS, "expansion_ratio": 3}
_XGLM = {"d_model": WIDTH, "ffn_dim": MLP, "num_layers": DEPTH, "attention_heads": HEADS}

#: Family -> (what its transformers classes are called, its own settings).
_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", _GPT),
    "gpt_neo": ("GPTNeo", {**_LLAMA, **_NEO, "window_size": 4}),
    "gptj": ("GPTJ", {**_GPT, "rotary_dim": 4}),
    "gpt_neox": ("GPTNeoX", _LLAMA),
    "gpt_bigcode": ("GPTBigCode", _GPT),
    "opt": ("OPT", {**_LLAMA, "ffn_dim": MLP, "word_embed_proj_dim": WIDTH}),
    "phi": ("Phi", _LLAMA),
    "phi3": ("Phi3", _LLAMA),
    "llama": ("Llama", {**_LLAMA, "mlp_bias": True}),
    "mistral": ("Mistral", {**_LLAMA, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {**_LLAMA, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", _GEMMA),
    "gemma": ("Gemma", _GEMMA),
    "gemma2": ("Gemma2", {**_GEMMA, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3", {**_GEMMA, "query_pre_attn_scalar": 8}),
    "glm": ("Glm", _GEMMA),
    "falcon": ("Falcon", {**_LLAMA, "ffn_hidden_size": MLP, "bias": True}),
    "bloom": ("Bloom", {"hidden_size": WIDTH, "n_layer": DEPTH, "n_head": HEADS}),
    "stablelm": ("StableLm", _LLAMA),
    "starcoder2": ("Starcoder2", _LLAMA),
    "olmo": ("Olmo", _LLAMA),
    "olmo2": ("Olmo2", _LLAMA),
    "cohere": ("Cohere", _LLAMA),
    "granite": ("Granite", _LLAMA),
    "nemotron": ("Nemotron", _LLAMA),
    "mpt": ("Mpt", _MPT),
    "xglm": ("XGLM", {**_XGLM, "max_position_embeddings": LENGTH}),
    "biogpt": ("BioGpt", _LLAMA),
    "mixtral": ("Mixtral", {**_LLAMA, "intermediate_size": MLP // 4, "num_local_experts": 4}),
}
#: Configurations that are not called like their model.
_CONFIGS = {"Gemma3": "Gemma3TextConfig"}
#: The families here that TransformerLens does not know, or of which it does not know the neurons.
UNKNOWN_TO_LENS = ("biogpt", "mixtral")


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Fill every parameter, so that no bias is 0, no norm weight 1 and no two slices are alike."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(parameter + 0.2 * noise if parameter.ndim == 1 else 0.3 * noise)


def build(family: str, *, seed: int = 0, **settings: Any) -> Any:
    """Return the family's tiny random model in eval mode, experts opened; `settings` go to its configuration."""
    kind, own = _SETTINGS[family]
    config = getattr(transformers, _CONFIGS.get(kind, f"{kind}Config"))(**{**_COMMON, **own, **settings})
    classes = (f"{kind}ForCausalLM", f"{kind}LMHeadModel")
    model = next(getattr(transformers, c) for c in classes if hasattr(transformers, c))(config).eval()
    randomise(model, seed)
    if routed_layers(model):
        open_experts(model)
    return model


_KNOWN = frozenset(dir(transformers))  # once, for it takes half a second; hasattr would import them all
#: Family -> function that builds its model; families that the installed transformers lacks are absent.
FAMILIES: dict[str, Callable[..., Any]] = {
    family: partial(build, family)
    for family, (kind, _) in _SETTINGS.items()
    if _CONFIGS.get(kind, f"{kind}Config") in _KNOWN
}


def lm_of(family: str, **settings: Any) -> LM:
    """Return the family's model as an LM without tokenizer."""
    return LM(build(family, **settings))


def padded_batch(seed: int = 0) -> dict[str, Tensor]:
    """Return three random sequences of 9, 5 and 2 tokens, padded on the right."""
    ids = torch.randint(3, VOCAB, (3, 9), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(9) < torch.tensor([[9], [5], [2]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}
