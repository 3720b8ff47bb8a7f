"""What facts ask of a model's weights: each a key, and a change of some module's output that makes the fact go.

The key is the activations at the last subject token, else the last prompt token. The output changes there are found
by Adam: toward a neutral answer, or toward maximum entropy, the prompt's own next token held by a KL term (Meng et al.
2022, arXiv:2202.05262). `solve_layers` then gives each layer the write weights that make such changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuronforget.corpora import Batch, Corpus
from neuronforget.edits import Edit
from neuronforget.edits.changes import Change
from neuronforget.erase.ablate import slice_of
from neuronforget.errors import InputError, warn
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_nll
from neuronforget.models.maps import Site
from neuronforget.scores.blocks import state_of, with_state
from neuronforget.taps import TorchHooks

#: From keys [fact, neuron] and wanted output changes [fact, d_model] of one layer to its dW [neuron, d_model].
Solver = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Aim:
    """What takes the answers' place (`target`, or None: maximum entropy), and the settings of the search for it.

    `clamp` bounds an output change, as a multiple of the output's own norm; `kl` weighs what the key's position
    predicted before. Raises InputError for settings that cannot work.
    """

    target: str | None
    steps: int
    lr: float
    kl: float
    clamp: float

    def __post_init__(self) -> None:
        if self.steps < 1 or not min(self.lr, self.clamp) > 0 or not self.kl >= 0:
            raise InputError(f"facts are moved with steps >= 1, lr and clamp > 0, kl >= 0; found {self}")

    def batches(self, lm: LM, forget: Corpus, batch_size: int) -> list[Batch]:
        """Return the facts, with the answers that the model is to come to."""
        neutral = self.target and forget.with_answers([self.target] * len(forget), f"{forget.name} neutral")
        rows = lm.encode(neutral or forget)
        return list(lm.batches(rows, batch_size))

    @property
    def info(self) -> dict[str, Any]:
        """The settings, for an edit's info."""
        return {**vars(self), "target": self.target or "maximum entropy"}


@contextmanager
def moved(
    modules: Sequence[nn.Module], moves: Float[Tensor, "module example d_model"], where: Tensor
) -> Iterator[dict[int, Tensor]]:
    """Add `moves[i]` to the output of module i at each example's position `where`; yields the outputs there."""
    seen: dict[int, Tensor] = {}

    def hook(row: int) -> Any:
        def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            hidden = state_of(output)
            examples = torch.arange(len(where), device=hidden.device)
            view = hidden.view(len(where), -1, hidden.shape[-1])  # OPT flattens examples and tokens
            seen[row] = view[examples, where].detach()
            new = view.index_put((examples, where), moves[row].to(hidden), accumulate=True).view(hidden.shape)
            return with_state(output, new)

        return add

    handles = [module.register_forward_hook(hook(i)) for i, module in enumerate(modules)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def output_changes(
    lm: LM, modules: Sequence[nn.Module], batch: Batch, aim: Aim
) -> Float[Tensor, "module example d_model"]:
    """Find by Adam the output changes that bring the answers to the aim, all modules' together.

    Each is at most `aim.clamp` over the number of modules times its output's norm, and exactly zero where it cannot
    reach the answer (past the last layer that reads that position).
    """
    examples = torch.arange(len(batch.index), device=lm.device)
    width = lm.sites[0].d_model
    moves = torch.zeros((len(modules), len(examples), width), device=lm.device, requires_grad=True)
    optimizer = torch.optim.Adam([moves], lr=aim.lr)
    first, last = batch.answer_mask.int().argmax(1), batch.subject_end
    stays: Tensor | None = None
    reach: Tensor | None = None
    for _ in range(aim.steps):
        with moved(modules, moves, last) as outputs:
            logits = lm.model(**batch.inputs, use_cache=False).logits.float()
        here = logits[examples, last].log_softmax(-1)
        stays = here.detach() if stays is None else stays
        # Where the key is the position that predicts the answer, there is nothing to hold on to.
        held = (stays.exp() * (stays - here)).sum(-1) * (last < first - 1)
        loss = _from_uniform(logits, batch) if aim.target is None else answer_nll(logits, batch)
        if reach is None:  # Adam would make a full step of the rounding noise of a gradient that should be zero
            (grad,) = torch.autograd.grad(loss.sum(), moves, retain_graph=True)
            reach = grad.ne(0).any(-1, keepdim=True)
        (grad,) = torch.autograd.grad((loss + aim.kl * held).sum(), moves)
        moves.grad = grad * reach
        optimizer.step()
        with torch.no_grad():
            norms = torch.stack([outputs[i] for i in range(len(modules))]).float().norm(dim=-1, keepdim=True)
            limit = aim.clamp / len(modules) * norms
            moves *= (limit / moves.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return moves.detach()


def check_reach(moves: list[Tensor], layers: Sequence[int]) -> None:
    """Raise InputError if no output change of any fact reaches an answer."""
    if not any(bool(move.any()) for move in moves):
        where = ", ".join(map(str, layers))
        raise InputError(f"no change of layer {where} where the subject ends reaches an answer: take lower layers")


@torch.no_grad()
def solve_layers(
    lm: LM,
    chosen: Mapping[int, Tensor],
    work: list[Batch],
    wanted: Callable[[int], Float[Tensor, "fact d_model"]],
    solve: Solver,
) -> list[Change]:
    """Solve for the write weights of each layer's neurons, lowest first, under the changes below it.

    `wanted(i)` is asked under them too, for the i-th of the layers: what its output is to change by, for each fact.
    """
    changes: list[Change] = []
    for row, site in enumerate(s for s in lm.sites if s.layer in chosen):
        index = chosen[site.layer]
        with Edit(tuple(changes)).on(lm):
            keys = torch.cat([_keys(lm, site, index, batch) for batch in work])
            asked = wanted(row).double().cpu()
        if not keys.any():
            warn(f"layer {site.layer}: none of {len(index)} neurons is active where a subject ends: nothing is written")
        delta = solve(keys, asked, site.layer)
        before = slice_of(lm, site.write, index)
        rows = delta.T if site.write.dim == 1 else delta
        after = before.double().cpu() + rows
        changes.append(
            Change(site.write.name, after.to(before.device), before, site.write.dim, site.write.index(index), law="add")
        )
    return changes


def _keys(lm: LM, site: Site, index: Tensor, batch: Batch) -> Float[Tensor, "example neuron"]:
    acts = TorchHooks(lm)(batch.inputs).acts[site.layer]
    examples = torch.arange(len(batch.index), device=acts.device)
    acts = acts.view(len(examples), -1, acts.shape[-1])
    return acts[examples, batch.subject_end].index_select(-1, index.to(acts.device)).double().cpu()


def _from_uniform(logits: Float[Tensor, "example token vocab"], batch: Batch) -> Float[Tensor, "example"]:
    """KL(uniform || p), mean over the positions that predict an answer token (nats)."""
    mask = batch.answer_mask[:, 1:]
    logp = logits[:, :-1].log_softmax(-1)
    distance = -logp.mean(-1) - torch.log(torch.tensor(float(logits.shape[-1])))
    return (distance * mask).sum(1) / mask.sum(1)
