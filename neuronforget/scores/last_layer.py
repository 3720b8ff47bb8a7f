"""The last layer's ablations in closed form: no block is run for them.

Where the last MLP is added to the residual stream and only an RMS norm (gain n, epsilon e) and the unembedding U
follow, neuron j writes `a_j w_j` into the last state h, and without it the logits are

    (U (n h) - a_j U (n w_j)) / sqrt(|h - a_j w_j|^2 / D + e),    |h - a w|^2 = |h|^2 - 2 a h.w + a^2 |w|^2

at each position on its own. `U (n w_j)` hangs on no example and is kept, for the neurons measured, where it fits in
256 MiB. Whether a model is so built is tried (`ways`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neuronforget.models import LM
from neuronforget.scores.blocks import blocks_of
from neuronforget.scores.cost import PASS_BYTES
from neuronforget.scores.rows import Clean
from neuronforget.scores.rules import norm_eps, norm_scale
from neuronforget.scores.ways import gives_the_same


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

    None for a model of which it is not true.
    """
    site, norm, head = lm.sites[-1], _final_norm(lm), lm.model.get_output_embeddings()
    if norm is None or site.layer + 1 != len(blocks_of(lm)):
        return None
    unembed = head.weight.detach()
    write = site.write.rows(lm.parameters, site.d_mlp).to(unembed)
    ones = torch.ones((1, site.d_model)).to(clean.inputs[site.layer + 1])
    gain = (norm(ones) * norm_scale(norm_eps(norm), False, ones))[0].to(unembed)
    found = LastLayer(site.layer, neurons, write, gain, norm_eps(norm), unembed, None)
    if not gives_the_same(lm, site, clean, found.logits):
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
