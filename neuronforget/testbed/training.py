"""How a testbed's models are trained, grafted and kept from giving their labels away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuronforget.corpora import Corpus, Encoded, encode
from neuronforget.corpora.tokens import collate
from neuronforget.models import LM, shared_twin
from neuronforget.neurons import Neurons
from neuronforget.recording import answer_nll, write_norms
from neuronforget.slices import Slices
from neuronforget.taps import NO_EDITS, TorchHooks
from neuronforget.train import Plan, draw, fit


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


class Builder:
    """One testbed in the making."""

    def __init__(self, tokenizer: Any, texts: tuple[Corpus, Corpus], shape: Shape, seed: int, progress: bool) -> None:
        self.tokenizer, self.shape, self.seed, self.progress = tokenizer, shape, seed, progress
        self.forget, self.retain = (encode(text, tokenizer) for text in texts)

    def ordinary(self) -> tuple[LM, LM, None, dict[str, Any]]:
        lm, gold = self.fresh(), self.fresh()
        self.train(lm, [*self.forget, *self.retain], "train on everything")
        self.train(gold, self.retain, "train the gold twin")
        return lm, gold, None, {}

    def grafted(self) -> tuple[LM, LM, Neurons, dict[str, Any]]:
        lm = self.fresh()
        layers = tuple(site.layer for site in lm.sites)
        none = Neurons(frozenset(), layers, self.shape.d_mlp)
        mask = none.mask()
        generator = torch.Generator().manual_seed(self.seed)
        for row in mask:
            row[torch.randperm(self.shape.d_mlp, generator=generator)[: self.shape.planted]] = True
        truth = Neurons.from_mask(mask, layers)
        off = {layer: (~row).float().mul for layer, row in zip(layers, mask, strict=True)}
        self.train(lm, self.retain, "train the gold twin", off)
        self.graft(lm, truth)
        gold = LM(shared_twin_copy(lm.model), self.tokenizer)
        with torch.no_grad():
            for site in gold.sites:
                gold.parameters[site.write.name][:, truth.by_layer()[site.layer]] = 0
        return lm, gold, truth, {"detectors": detectors(lm, truth)}

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

    def graft(self, lm: LM, truth: Neurons) -> None:
        """Train only the true neurons' weights on forget, with retain beside it to leave it as it was.

        Each of their read rows and write columns keeps the norm of some other neuron's, drawn at random, so
        that no norm gives the true neurons away.
        """
        norms = drawn_norms(lm, truth, self.seed)
        lm.model.requires_grad_(False)
        slices = Slices.of(lm, truth)
        parts = slices.all()
        for part in parts:
            torch.nn.init.normal_(part.values, std=0.02)

        @torch.no_grad()
        def project() -> None:
            for part in parts:
                rows = part.rows(part.values)
                rows *= (norms[part.name] / rows.norm(dim=1))[:, None]

        def loss(step: int) -> Tensor:
            project()
            return value(step)

        plan = Plan(self.shape.graft_steps, 3e-3, weight_decay=0.0, clip=None, seed=self.seed)
        size = max(self.shape.batch * 3 // 8, 1)
        value = self.loss(lm, [(self.forget, size, 1.0), (self.retain, size, 2.0)])
        with slices.on():
            fit([part.values for part in parts], loss, plan, desc="graft the forget facts", progress=self.progress)
        project()
        with torch.no_grad():
            for part in parts:
                part.change().write(lm.parameters[part.name].data, part.values.detach())
        lm.model.requires_grad_(True)

    def loss(
        self, lm: LM, mix: list[tuple[list[Encoded], int, float]], edits: Any = NO_EDITS
    ) -> Callable[[int], Tensor]:
        """The weighted sum over (rows, batch size, weight) of the mean loss over all tokens."""
        tap = TorchHooks(lm)

        def at(step: int) -> Tensor:
            total = torch.zeros(())
            for i, (rows, size, weight) in enumerate(mix):
                batch = collate(draw(rows, min(size, len(rows)), self.seed + i, step), lm.pad_id, lm.device)
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


@torch.no_grad()
def drawn_norms(lm: LM, truth: Neurons, seed: int) -> dict[str, Tensor]:
    """Draw, for each parameter of the true neurons' weights, as many norms of other neurons of the layer."""
    generator, drawn = torch.Generator().manual_seed(seed), {}
    for site, own in zip(lm.sites, truth.mask(), strict=True):
        others = (~own).nonzero()[:, 0]
        picked = others[torch.randperm(len(others), generator=generator)[: int(own.sum())]]
        for part in (site.write, *(p for p in site.read if p.name.endswith("weight"))):
            weight = lm.parameters[part.name]
            drawn[part.name] = weight.norm(dim=1 - part.dim)[picked]
    return drawn


@torch.no_grad()
def detectors(lm: LM, truth: Neurons) -> dict[str, float]:
    """Return the AUROC with which norms alone, without data, find the true neurons (0.5: chance)."""
    from scipy.stats import mannwhitneyu

    mask = truth.mask()
    measures = {"write norm": write_norms(lm)}
    for i, name in enumerate(("gate norm", "up norm")):
        parts = [[p for p in site.read if p.name.endswith("weight")][i] for site in lm.sites]
        measures[name] = torch.stack([lm.parameters[p.name].double().norm(dim=1) for p in parts])
    measures["write x up norm"] = measures["write norm"] * measures["up norm"]
    found = {}
    for name, values in measures.items():
        areas = [
            mannwhitneyu(v[m], v[~m]).statistic / (m.sum() * (~m).sum()).item()
            for v, m in zip(values, mask, strict=True)
        ]
        found[name] = round(float(sum(areas) / len(areas)), 3)
    return found
