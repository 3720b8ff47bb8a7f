"""What a training will take of a device's memory beside the model, told from shapes before the work.

For each trained value 4 bytes of itself in fp32, 4 of its gradient, 8 of AdamW's two means, 4 if a budget keeps it, and
what it was before; the edit then holds the old and new values of all that it covers. For a backward pass, a token
keeps in every block about 12 times the width, 4 times the neurons (3 without a gate; of opened experts one more, and
its state, but only for the experts that it is routed to, where nothing hooks their maps) and its row of attention
weights or of the mask, and the logits once, with their softmax and its gradient.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import astuple, dataclass

from neuronforget.erase.sharded import largest
from neuronforget.erase.trained import Choice
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.routed import OWN
from neuronforget.models.sites import expert_info
from neuronforget.runs.memory import free_bytes
from neuronforget.scores.blocks import blocks_of

WIDE = 4  # bytes of a value in fp32


@dataclass(frozen=True)
class Trainees:
    """What is trained: how many values, the bytes of what they replace, the inputs a token gives them in fp32.

    `merged`: the bytes of what adapters are added to. `processes`: how many each hold a share (`erase.sharded`), and
    gather `gathered` values to compute with.
    """

    values: int
    before: int
    inputs: int = 0
    merged: int = 0
    processes: int = 1
    gathered: int = 0

    @classmethod
    def of(cls, choice: Choice, names: Collection[str], processes: int = 1) -> Trainees:
        """Count those of a choice that lie in the parameters `names`, spread over so many processes."""
        lm, neurons, lora = choice.lm, choice.neurons, choice.lora
        shapes = {name: (p.numel(), p.shape, p.element_size()) for name, p in lm.parameters.items() if name in names}
        if lora is not None:
            ins = {name: lm.model.get_submodule(name.removesuffix(".weight")) for name in shapes}
            widths = [getattr(m, "in_features", getattr(m, "nx", 0)) for m in ins.values()]
            merged = sum(numel * size for numel, _, size in shapes.values())
            return cls(sum(lora.rank * sum(shape) for _, shape, _ in shapes.values()), 0, sum(widths), merged)
        if neurons is None:
            count, before = sum(n for n, _, _ in shapes.values()), sum(n * size for n, _, size in shapes.values())
            return cls(count, before, processes=processes, gathered=largest(lm) if processes > 1 else 0)
        values = before = inputs = 0
        chosen = neurons.by_layer()
        for site in lm.sites:
            for part in (site.write, *site.read):
                if site.layer in chosen and part.name in shapes:
                    numel, shape, size = shapes[part.name]
                    count = len(chosen[site.layer]) * numel // shape[part.dim]
                    values, before = values + count, before + count * size
                    inputs += len(chosen[site.layer]) + (0 if part is site.write else site.d_model)
        return cls(values, before, inputs)


@dataclass(frozen=True)
class Footprint:
    """Bytes beside the model: old values and fp32 copies, gradients, optimiser, a budget's copy, a batch's states.

    `edit`, when those are gone: what the edit holds that the copies do not.
    """

    copies: int
    gradients: int
    optimiser: int
    kept: int
    activations: int
    edit: int

    @property
    def total(self) -> int:
        """The most that is needed at once: while it trains, or when the edit is made."""
        return max(sum(astuple(self)) - self.edit, self.copies + self.edit)

    def __str__(self) -> str:
        names = ("copies", "gradients", "optimiser", "budget", "activations", "then the edit")
        named = zip(names, astuple(self), strict=True)
        parts = ", ".join(f"{name} {_said(size)}" for name, size in named if size)
        return f"{_said(self.total)} beside the model ({parts})"

    def check(self, lm: LM) -> None:
        """Raise InputError where that cannot fit in the memory that is free on the model's devices."""
        free = sum(free_bytes(device) for device in {p.device for p in lm.model.parameters()})
        if self.total <= free:
            return
        if self.edit + self.copies == self.total:
            advice = "adapt fewer maps (LoRA(targets=)), or give some layers lr 0"
        elif self.activations > self.total - self.activations:
            advice = "raise accumulate=, lower batch_size=, shorten the examples, or set checkpointing=True"
        else:
            advice = "train neurons= or adapters (lora=) alone, or give most layers lr 0"
        raise InputError(f"too little memory: training needs about {self}, {_said(free)} are free; {advice}")


def footprint(
    lm: LM, trainees: Trainees, batches: Iterable[tuple[int, int]], *, budget: bool = False, checkpointing: bool = False
) -> Footprint:
    """Estimate what training takes where a loss runs `batches`, each of (examples, tokens), before it goes back."""
    wide = WIDE * trainees.values // trainees.processes
    states = sum(rows * _states(lm, tokens, trainees.inputs, checkpointing) for rows, tokens in batches)
    edit = trainees.before + 2 * trainees.merged
    if trainees.processes == 1:
        return Footprint(trainees.before + wide, wide, 2 * wide, wide if budget else 0, states, edit)
    # a block in fp32 while it is taken apart, then its values and gradients; the edit lies on the CPU
    copies, edit = wide + 2 * WIDE * trainees.gathered, 2 * edit if lm.device.type == "cpu" else 0
    return Footprint(copies, wide, 2 * wide, wide if budget else 0, states, edit)


def _states(lm: LM, tokens: int, inputs: int, checkpointing: bool) -> int:
    """One example's bytes of states that are kept for the backward pass."""
    config, width, size = lm.model.config.get_text_config(), lm.sites[0].d_model, lm.model.dtype.itemsize
    eager = getattr(config, "_attn_implementation", "") == "eager"
    attention = 2 * WIDE * getattr(config, "num_attention_heads", 1) * tokens if eager else size * tokens
    block = size * (12 * width + _neuron_states(lm, bool(inputs))) + attention
    depth = len(blocks_of(lm))
    wide = WIDE * inputs if size < WIDE else 0  # what adapters and slices are given is copied to fp32
    blocks = depth * size * width + block + wide // depth if checkpointing else depth * block + wide
    vocab = lm.model.get_input_embeddings().weight.shape[0]
    return tokens * (blocks + vocab * (2 * WIDE + size))


def _neuron_states(lm: LM, hooked: bool) -> int:
    """A token's values at the neurons of a block; `hooked`: adapters or slices are at the maps that feed them."""
    copies = 4 if len([part for part in lm.sites[0].read if part.name.endswith("weight")]) > 1 else 3
    chosen = getattr(lm.model.config.get_text_config(), "num_experts_per_tok", None)
    own = expert_info(lm.model, lm.sites).get(OWN, 0)
    if hooked or not own or not chosen:  # every expert computes every token, if there are any
        return copies * lm.shape[1]
    return chosen * ((copies + 1) * own + lm.sites[0].d_model)


def _said(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
