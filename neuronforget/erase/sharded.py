"""Train the whole model with its values, gradients and optimiser spread over the processes of a launch (FSDP).

Each process keeps the model itself, in its own dtype and unchanged: it is the start that losses compare with. What is
trained is a twin in fp32 of which a process holds its share, and gathers a block at a time to compute with. So a
weight costs a process 16 bytes divided by the number of processes, beside the model.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from neuronforget.edits.changes import Change
from neuronforget.erase.trained import ByName, Choice, Trained
from neuronforget.errors import InputError
from neuronforget.models import LM, shared_twin
from neuronforget.runs.ranks import Ranks, whole
from neuronforget.scores.blocks import blocks_of


@contextmanager
def sharded(lm: LM, rates: ByName, ranks: Ranks) -> Iterator[Trained]:
    """Train every parameter that has a rate, each of the `ranks` a share of it (`check_sharded` comes first)."""
    gc.collect()  # what FSDP has wrapped refers to itself: an earlier twin may still hold its memory
    twin = LM(shared_twin(lm.model), lm.tokenizer, lm.sites_override)
    _spread(twin, lm, rates, ranks)
    values = twin.parameters

    def changes() -> Iterator[Change]:
        for name in rates:
            after, before = whole(values[name]).cpu(), lm.parameters[name].detach().cpu()
            if not torch.equal(after, before.to(after.dtype)):
                yield Change(name, after, before.clone())

    yield Trained([values[n] for n in rates], list(rates.values()), nullcontext, changes, twin=twin)  # type: ignore


def _spread(twin: LM, lm: LM, rates: ByName, ranks: Ranks) -> None:
    """Give the twin fp32 values of its own, of which this process keeps its share: one block at a time."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(lm.device.type, (ranks.world,))
    policy = MixedPrecisionPolicy(param_dtype=lm.model.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    names = {id(p): name for name, p in lm.parameters.items()}
    own: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for part in (*blocks_of(twin), twin.model):
        for module in part.modules():
            for key, value in module._parameters.items():
                if value is not None and id(value) in names:
                    wide = torch.promote_types(value.dtype, torch.float32)
                    if id(value) not in own:
                        trained = names[id(value)] in rates
                        own[id(value)] = nn.Parameter(value.detach().to(wide, copy=True), requires_grad=trained)
                    module._parameters[key] = own[id(value)]
        fully_shard(part, mesh=mesh, mp_policy=policy)


def check_sharded(choice: Choice, ranks: Ranks) -> None:
    """Raise InputError where there is nothing to spread, nobody to spread it over, or no common dtype."""
    if choice.neurons is not None or choice.lora is not None:
        raise InputError("sharded= spreads the whole model: leave out neurons= and lora=, which need little memory")
    if ranks.world < 2:
        raise InputError("sharded= needs several processes: start them with torchrun or accelerate launch")
    if len(dtypes := {p.dtype for p in choice.lm.parameters.values()}) > 1:
        raise InputError(
            f"{choice.lm.name} has weights of {len(dtypes)} dtypes, which cannot be spread: load it in one dtype"
        )


def largest(lm: LM) -> int:
    """Return the most values that a process gathers at once: those of a block, or of what lies in none."""
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks_of(lm)]
    return max(*sizes, sum(p.numel() for p in lm.parameters.values()) - sum(sizes))
