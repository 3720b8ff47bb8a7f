"""How a testbed's models are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuronforget.arguments import checks_kinds, numbers
from neuronforget.corpora import Corpus, Encoded, encode
from neuronforget.models import LM, shared_twin
from neuronforget.models.likelihood import answer_nll
from neuronforget.taps import NO_EDITS, TorchHooks
from neuronforget.train import Plan, draw, fit


@checks_kinds
@numbers(
    layers=">= 1", d_model=">= 1", d_mlp=">= 1", heads=">= 1", vocab=">= 1", steps=">= 1", graft_steps=">= 1",
    batch=">= 1", lr="> 0", planted=">= 0",
)  # fmt: skip
@dataclass(frozen=True)
class Shape:
    """Size of the model and length of its training; the defaults suit `people`."""

    layers: int = 4
    d_model: int = 128
    d_mlp: int = 512
    heads: int = 4
    vocab: int = 2000
    steps: int = 320
    graft_steps: int = 240
    batch: int = 256
    lr: float = 2e-3
    planted: int = 24
    #: Planted value vectors keep their norms, only their directions are trained: more of them are needed.
    keep_norms: bool = False


class Builder:
    """One testbed in the making."""

    def __init__(self, tokenizer: Any, texts: tuple[Corpus, Corpus], shape: Shape, seed: int, progress: bool) -> None:
        self.tokenizer, self.shape, self.seed, self.progress = tokenizer, shape, seed, progress
        self.forget, self.retain = (encode(text, tokenizer) for text in texts)

    def ordinary(self) -> tuple[LM, LM]:
        """Return (model, gold twin), each trained from the same start."""
        lm, gold = self.fresh(), self.fresh()
        self.train(lm, [*self.forget, *self.retain], "train on everything")
        self.train(gold, self.retain, "train the gold twin")
        return lm, gold

    def fresh(self) -> LM:
        """A new random model; equal seeds give equal weights."""
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(self.seed)
        longest = max(len(row.ids) for row in (*self.forget, *self.retain))
        config = Qwen2Config(
            vocab_size=len(self.tokenizer), hidden_size=self.shape.d_model, intermediate_size=self.shape.d_mlp,
            num_hidden_layers=self.shape.layers, num_attention_heads=self.shape.heads,
            num_key_value_heads=self.shape.heads, max_position_embeddings=max(64, 2 * longest),
            tie_word_embeddings=True, pad_token_id=self.tokenizer.pad_token_id, bos_token_id=None,
            eos_token_id=self.tokenizer.eos_token_id,
        )  # fmt: skip
        return LM(Qwen2ForCausalLM(config).eval(), self.tokenizer)

    def train(self, lm: LM, rows: list[Encoded], desc: str, edits: Any = NO_EDITS) -> None:
        """Train every parameter on all tokens of `rows`."""
        plan = Plan(self.shape.steps, self.shape.lr, schedule="onecycle", seed=self.seed)
        loss = self.loss(lm, [(rows, self.shape.batch, 1.0)], edits)
        fit(list(lm.parameters.values()), loss, plan, desc=desc, progress=self.progress)

    def loss(
        self, lm: LM, mix: list[tuple[list[Encoded], int, float]], edits: Any = NO_EDITS
    ) -> Callable[[int], Tensor]:
        """The weighted sum over (rows, batch size, weight) of the mean loss over all tokens."""
        tap = TorchHooks(lm)

        def at(step: int) -> Tensor:
            total = torch.zeros(())
            for i, (rows, size, weight) in enumerate(mix):
                batch = lm.collate(draw(rows, min(size, len(rows)), self.seed + i, step))
                count = batch.answer_mask[:, 1:].sum(1)
                nll = answer_nll(tap(batch.inputs, edits).logits, batch)
                total = total + weight * (nll * count).sum() / count.sum()
            return total

        return at


def shared_twin_copy(model: Any) -> Any:
    """Return an independent copy of a model."""
    twin = shared_twin(model)
    own = {name: value.detach().clone() for name, value in model.state_dict().items()}
    twin.load_state_dict(own, assign=True)
    twin.tie_weights()
    return twin
