"""What a model has to be before neurons are looked for in it: said by what it is, in one sentence, before any work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from neuronforget.errors import InputError


def check_kind(model: Any) -> None:
    """Raise InputError unless `model` is a decoder that predicts the next token, unwrapped and with plain weights.

    An encoder's neurons, a masked language model's or a classifier's would be found by their structure too, and every
    number from them would be of another question.
    """
    check_unwrapped(model)
    kind, config = type(model).__name__, getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        raise InputError(f"expected a causal language model of transformers, found {kind}: nf.load(path) loads one")
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{kind} is an encoder-decoder: only causal language models (decoders alone) are supported")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None or kind.endswith("ForMaskedLM"):
        raise InputError(f"{kind} does not predict the next token: load the checkpoint with AutoModelForCausalLM")
    if _reads_ahead(config):
        raise InputError(f"{kind} reads later tokens too (bidirectional): only causal language models are supported")
    if getattr(model, "hf_quantizer", None) is not None:
        raise InputError(f"{kind} is quantised: load it in a floating dtype; the audit asks what 8 and 4 bits change")


def _reads_ahead(config: Any) -> bool:
    """Does the configuration let a token see those after it? Gemma's encoders, XLM's masked models, XLNet."""
    config = config.get_text_config()
    both = getattr(config, "use_bidirectional_attention", None) in (True, "all")
    return both or getattr(config, "causal", None) is False or getattr(config, "attn_type", None) == "bi"


def check_unwrapped(model: Any) -> None:
    """Raise InputError for a model that something wraps: its weights have other names there than in a checkpoint."""
    for wrapper, inside in (("DistributedDataParallel", "module"), ("OptimizedModule", "_orig_mod")):
        if wrapper in {kind.__name__ for kind in type(model).__mro__}:
            by = "torch.compile" if wrapper == "OptimizedModule" else wrapper
            raise InputError(f"the model is wrapped in {by}: give the model inside it, `model.{inside}`")


def check_weights(model: nn.Module, names: Iterable[str], shapes: Iterable[tuple[int, ...]]) -> None:
    """Raise InputError unless each name is that of a floating parameter of its own, of the shape given."""
    own = dict(model.named_parameters())
    every = dict(model.named_parameters(remove_duplicate=False))
    for name, shape in zip(names, shapes, strict=True):
        if name in own and own[name].is_floating_point() and tuple(own[name].shape) == shape:
            continue
        found = every.get(name)
        if found is None:
            why = "is no parameter (a parametrisation, pruning or a quantised layer computes it)"
        elif name not in own:
            why = "is shared with another layer"
        else:
            why = f"is stored as {tuple(found.shape)} {found.dtype} (quantised?), not as {shape} floating values"
        raise InputError(f"{type(model).__name__}: {name} {why}: neurons need dense weights of their own")


def adapted_maps(model: nn.Module) -> list[str]:
    """Return the modules that adapters (peft's layers) stand in for."""
    return [n for n, m in model.named_modules() if "BaseTunerLayer" in {kind.__name__ for kind in type(m).__mro__}]


def rows_of_embedding(model: Any) -> int:
    """Return how many tokens the model has an embedding for."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_tokens(model: Any, tokenizer: Any) -> None:
    """Raise InputError for a tokenizer of more tokens than the model embeds.

    Of its added tokens only the pad may lie outside: it is masked (see `LM.pad_id`).
    """
    known, size = rows_of_embedding(model), getattr(tokenizer, "vocab_size", None)
    if isinstance(size, int) and size > known > 0:  # of a sharded model a process may hold none
        raise InputError(
            f"the tokenizer has {size} tokens, {type(model).__name__} embeds {known}: "
            "take the model's own tokenizer, or model.resize_token_embeddings(len(tokenizer))"
        )


def check_trainable(parameters: Iterable[torch.Tensor]) -> None:
    """Raise InputError for weights made under `torch.inference_mode()`: no gradient ever passes them."""
    if any(parameter.is_inference() for parameter in parameters):
        raise InputError("the model was loaded under torch.inference_mode(): load it outside, or under torch.no_grad()")
