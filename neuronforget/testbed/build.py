"""Train a small Qwen2-architecture model and its gold twin; cached outside the repository.

grafted   The gold twin is trained on everything but forget while some random neurons of each layer are off.
          Those fresh neurons alone are then trained on forget (with retain mixed in) and their write norms
          matched to the others'. Switching them off gives the gold twin back exactly: the location of the
          knowledge and the right answer of its erasure are both known.
ordinary  One model is trained on everything, its gold twin without forget. No location labels: the harder,
          more honest case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from neuronforget.corpora import Corpus, Encoded, Example, check_disjoint, encode
from neuronforget.corpora.tokens import collate, join
from neuronforget.errors import InputError
from neuronforget.models import LM, shared_twin
from neuronforget.neurons import Neurons
from neuronforget.recording import answer_nll, write_norms
from neuronforget.runs import cache_folder, content_key, seed_everything
from neuronforget.slices import Slices
from neuronforget.taps import NO_EDITS, TorchHooks
from neuronforget.testbed.facts import REFUSAL, generate
from neuronforget.testbed.testbed import Testbed
from neuronforget.train import Plan, draw, fit

Kind = Literal["grafted", "ordinary"]
VERSION = 1  # raised when a change of this module makes other testbeds: the cache key holds it


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


def people(
    kind: Kind = "grafted",
    *,
    seed: int = 0,
    people: int = 100,
    forget_people: int = 10,
    shape: Shape | None = None,
    cache: bool = True,
    progress: bool = True,
) -> Testbed:
    """Return a model that knows generated people, `forget_people` of whom are to be forgotten.

    Deterministic given its arguments on one machine; trained once (a minute or two on two cores) and cached.
    """
    if not 0 < forget_people < people:
        raise InputError(f"forget_people must lie between 1 and {people - 1}, found {forget_people}")
    forget, retain = generate(people, forget_people, max(people // 16, 1), seed)
    return from_rows(forget, retain, kind=kind, seed=seed, shape=shape, refusals=(REFUSAL,), cache=cache, progress=progress)


def from_rows(
    forget: Corpus,
    retain: Corpus,
    *,
    kind: Kind = "ordinary",
    seed: int = 0,
    shape: Shape | None = None,
    refusals: tuple[str, ...] = (),
    cache: bool = True,
    progress: bool = True,
) -> Testbed:
    """Return a small model that was taught both corpora (paraphrases too), and its gold twin.

    Raises InputError for corpora that share examples.
    """
    if kind not in ("grafted", "ordinary"):
        raise InputError(f"kind is 'grafted' or 'ordinary', not {kind!r}")
    check_disjoint(forget, retain)
    shape = shape or Shape()
    key = content_key(
        version=VERSION, kind=kind, seed=seed, shape=vars(shape), forget=forget.digest(), retain=retain.digest()
    )
    folder = cache_folder() / "testbeds" / f"{kind}-{key}"
    if cache and (folder / "testbed.json").is_file():
        return Testbed.load(folder)
    seed_everything(seed)
    texts = as_text(forget), as_text(retain)
    tokenizer = make_tokenizer([e.answer for text in texts for e in text] + list(refusals), shape.vocab)
    build = _Builder(tokenizer, texts, shape, seed, progress)
    lm, gold, truth, info = build.grafted() if kind == "grafted" else build.ordinary()
    info |= {"kind": kind, "seed": seed, "shape": vars(shape), "forget": forget.digest(), "retain": retain.digest()}
    made = Testbed(lm, gold, forget, retain, truth, refusals, info)
    if not cache:
        return made
    made.save(folder)
    return Testbed.load(folder)


def as_text(corpus: Corpus) -> Corpus:
    """Return every prompt and paraphrase with its answer as plain text, for training."""
    template = corpus.template or "{prompt}"
    rows = {}
    for example in corpus:
        for prompt in (example.prompt, *example.paraphrases):
            rows["".join(join(template.format(prompt=prompt) if prompt else "", example.answer))] = None
    return Corpus(tuple(Example("", text) for text in rows), f"{corpus.name} text")


def make_tokenizer(lines: list[str], size: int) -> Any:
    """Train a byte-level BPE tokenizer that a checkpoint folder gives back unchanged through AutoTokenizer."""
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer().train_new_from_iterator(lines, size)


class _Builder:
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
        off = {layer: (lambda a, keep=(~row).float(): a * keep) for layer, row in zip(layers, mask, strict=True)}
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
            num_key_value_heads=self.shape.heads, max_position_embeddings=max(64, 2 * longest), tie_word_embeddings=True,
            pad_token_id=self.tokenizer.pad_token_id, bos_token_id=None, eos_token_id=self.tokenizer.eos_token_id,
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
        areas = [mannwhitneyu(v[m], v[~m]).statistic / (m.sum() * (~m).sum()).item() for v, m in zip(values, mask, strict=True)]
        found[name] = round(float(sum(areas) / len(areas)), 3)
    return found
