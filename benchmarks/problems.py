"""What the benchmarks run on: random models of real shapes, random tokens and words."""

from __future__ import annotations

from typing import Any

import torch

from neuronforget.corpora import Batch, Corpus
from neuronforget.models import LM

#: Name -> settings of a Llama of that shape, and examples and tokens of a batch.
SHAPES: dict[str, tuple[dict[str, int], tuple[int, int]]] = {
    "testbed": (
        {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 4, "vocab_size": 2000},
        (64, 12),
    ),
    "30M": (
        {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8,
         "num_key_value_heads": 8, "vocab_size": 8192},
        (4, 128),
    ),
    "Qwen1.5-1.8B": (
        {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16,
         "num_key_value_heads": 16, "vocab_size": 151936},
        (8, 512),
    ),
    "Llama-3-8B": (
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128256},
        (8, 512),
    ),
}  # fmt: skip
#: Standard deviation of the weights of `problem`'s models.
SPREAD = 0.06


def build(name: str, device: str) -> tuple[LM, Batch]:
    """Return the model as an LM, and a batch of random tokens whose second half is the answer."""
    settings, (examples, tokens) = SHAPES[name]
    model = llama(settings, tokens, device)
    ids = torch.randint(0, settings["vocab_size"], (examples, tokens), device=device)
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, tokens // 2 :] = True
    ends = torch.full((examples,), tokens // 2 - 1, device=device)
    return LM(model), Batch(ids, torch.ones_like(ids), answer, ends, tuple(range(examples)))


def problem(
    settings: dict[str, Any], examples: int, prompt: int, answer: int, device: str = "cpu"
) -> tuple[LM, Corpus]:
    """Return a random Llama whose tokens are words, and a corpus of so many random words in prompt and answer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [f"w{i}" for i in range(settings["vocab_size"])]
    coder = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    coder.pre_tokenizer = WhitespaceSplit()
    # Wider weights than usual (0.02), with which a neuron of a random model does too little to be told from rounding.
    model = llama(settings, prompt + answer, device, initializer_range=SPREAD)
    drawn = torch.randint(len(words), (examples, prompt + answer)).tolist()
    lines = [[words[i] for i in line] for line in drawn]
    rows = [{"prompt": " ".join(line[:prompt]), "answer": " ".join(line[prompt:])} for line in lines]
    return LM(model, PreTrainedTokenizerFast(tokenizer_object=coder)), Corpus.from_rows(rows, name="random words")


def llama(settings: dict[str, Any], tokens: int, device: str, **more: Any) -> Any:
    """Return a random Llama, always the same one: fp32 on CPU, bf16 on a GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(LlamaConfig(**settings, max_position_embeddings=tokens, **more)).eval()
    finally:
        torch.set_default_dtype(previous)
