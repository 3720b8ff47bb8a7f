"""The last layer's ablations in closed form: no block is run for them.

Where the last MLP is added to the residual stream and only an RMS norm (gain n, epsilon e) and the unembedding U
follow, neuron j writes `a_j w_j` into the last state h, and without it the logits are

    (U (n h) - a_j U (n w_j)) / sqrt(|h - a_j w_j|^2 / D + e),    |h - a w|^2 = |h|^2 - 2 a h.w + a^2 |w|^2

at each position on its own. `U (n w_j)` hangs on no example and is kept, for the neurons measured, where it fits in
256 MiB. That a model is so built is not read from its name but tried: the formula must give what rows
(`rows.run_rows`) give. In half precision it does not, to rounding, and rows are run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neuronforget.models import LM
from neuronforget.scores.blocks import blocks_of
from neuronforget.scores.cost import PASS_BYTES
from neuronforget.scores.rows import Clean, run_rows, zeroed
from neuronforget.scores.rules import norm_eps, norm_scale

#: Neurons on which the formula is tried, those that write most, and the gap to rows allowed, relative to the effect.
TRIED, TOLERANCE = 4, 1e-3


@dataclass(frozen=True, eq=False)
class LastLayer:
    """The weights after the last neurons: `write` w, `gain` n, `unembed` U.

    `products` are U (n w) of the neurons `measured` (in rising order), or None if they do not fit; `logits` are then
    of any neurons.
    """

    layer: int
    measured: Int[Tensor, "measured"]
    write: Float[Tensor, "neuron width"]
    gain: Float[Tensor, "width"]
    eps: float
    unembed: Float[Tensor, "vocab width"]
    products: Float[Tensor, "measured vocab"] | None

    def logits(self, clean: Clean, neurons: Int[Tensor, "row"]) -> Float[Tensor, "row target vocab"]:
        """Return the logits of the targets with one neuron (of those measured) at zero in each row."""
        count = clean.targets.shape[1]
        state = clean.inputs[self.layer + 1][0, -count:].to(self.unembed)
        acts = clean.acts[self.layer][0, -count:][:, neurons].to(self.unembed).T
        write = self.write[neurons.to(self.write.device)]
        if self.products is None:
            product = (write * self.gain) @ self.unembed.T
        else:
            product = self.products[torch.searchsorted(self.measured, neurons).to(self.products.device)]
        whole = (state * self.gain) @ self.unembed.T
        square = state.square().sum(1) - 2 * acts * (write @ state.T) + acts.square() * write.square().sum(1)[:, None]
        scale = (square.clamp_min(0) / state.shape[1] + self.eps).sqrt()
        return torch.addcmul(whole, -acts[..., None], product[:, None]).div_(scale[..., None])


@torch.no_grad()
def last_layer(lm: LM, clean: Clean, neurons: Int[Tensor, "measured"]) -> LastLayer | None:
    """Return the closed form for some of the last layer's neurons (in rising order).

    None for a model of which it is not true (to `TOLERANCE`).
    """
    site, norm, head = lm.sites[-1], _final_norm(lm), lm.model.get_output_embeddings()
    if norm is None or site.layer + 1 != len(blocks_of(lm)):
        return None
    if clean.inputs[site.layer + 1].shape[-1] != site.d_model:  # streams beside each other (hyper-connections)
        return None
    unembed = head.weight.detach()
    write = lm.parameters[site.write.name].detach().to(unembed)
    ones = torch.ones_like(clean.inputs[site.layer + 1][0, :1])
    gain = (norm(ones) * norm_scale(norm_eps(norm), False, ones))[0].to(unembed)
    write = write if site.write.dim == 0 else write.T
    found = LastLayer(site.layer, neurons, write, gain, norm_eps(norm), unembed, None)
    if not _holds(lm, clean, found):
        return None
    if not kept_bytes(lm, neurons):
        return found
    return replace(found, products=(write[neurons.to(write.device)] * gain) @ unembed.T)


def kept_bytes(lm: LM, neurons: Int[Tensor, "measured"]) -> int:
    """Return the memory of the products that the closed form would keep, 0 where it would keep none."""
    if _final_norm(lm) is None:
        return 0
    unembed = lm.model.get_output_embeddings().weight
    size = len(neurons) * len(unembed) * unembed.element_size()
    return size if size <= PASS_BYTES else 0


def _final_norm(lm: LM) -> nn.Module | None:
    """The one norm outside the blocks that takes the residual width and has no bias, if there is just one."""
    inside = {id(module) for module in blocks_of(lm).modules()}
    norms = [
        module for module in lm.model.modules()
        if "norm" in type(module).__name__.lower() and not any(module.children()) and id(module) not in inside
    ]  # fmt: skip
    if len(norms) != 1 or getattr(norms[0], "bias", None) is not None:
        return None
    return norms[0]


def _holds(lm: LM, clean: Clean, found: LastLayer) -> bool:
    """Does the formula give the logits that rows give? Asked of the neurons that write most at the last position."""
    sizes = clean.acts[found.layer][0, -1].abs().to(found.write) * found.write.norm(dim=1)
    neurons = sizes.topk(min(TRIED, len(sizes))).indices.cpu()
    rows = run_rows(lm, clean, {found.layer: len(neurons)}, {found.layer: partial(zeroed, neurons)})
    gap, effect = (found.logits(clean, neurons) - rows).norm(), (rows - clean.logits).norm()
    return bool(gap <= TOLERANCE * effect)
