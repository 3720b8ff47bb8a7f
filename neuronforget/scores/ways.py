"""Ways to the logits of rows that each have one neuron at zero, and the trial that a shorter way has to pass.

`through` runs a row from the neuron's own block upward: true of every model that can be run so. Where a block adds to
the residual stream what its neurons write, `above` starts the row in the block above, as what leaves the neuron's own
in the clean run less `a_j w_j`. That a model is so built is not read from its name but tried: a shorter way must give
what `through` gives (in half precision it may not, to rounding).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuronforget.models import LM
from neuronforget.models.maps import Site
from neuronforget.scores.rows import Clean, run_from, run_rows, zeroed

#: From one example and neurons of one layer to the logits of its targets, a row for each neuron at zero.
Way = Callable[[Clean, Int[Tensor, "row"]], Float[Tensor, "row target vocab"]]
#: Neurons on which a shorter way is tried, those that write most, and the gap to rows allowed, relative to the effect.
TRIED, TOLERANCE = 4, 1e-3


def through(lm: LM, site: Site, clean: Clean, neurons: Int[Tensor, "row"]) -> Float[Tensor, "row target vocab"]:
    """Return the logits with one neuron at zero in each row, by rows that run from its own block upward."""
    return run_rows(lm, clean, {site.layer: len(neurons)}, {site.layer: partial(zeroed, neurons)})


def above(lm: LM, site: Site, clean: Clean, neurons: Int[Tensor, "row"]) -> Float[Tensor, "row target vocab"]:
    """Return the same by rows that start in the block above; the neuron's own is not run."""
    state = clean.inputs[site.layer + 1]
    write = site.write.rows(lm.parameters, site.d_mlp)[neurons].to(state).contiguous()
    act = clean.acts[site.layer][0][:, neurons].T.to(state).contiguous()
    return run_from(lm, clean, site.layer + 1, torch.addcmul(state, act[..., None], write[:, None], value=-1))


def gives_the_same(lm: LM, site: Site, clean: Clean, way: Way) -> bool:
    """Does `way` give what `through` gives? Asked of the neurons that write most at the last position."""
    if clean.inputs[site.layer + 1].shape[2:] != (site.d_model,):  # streams beside each other (hyper-connections)
        return False
    write = site.write.rows(lm.parameters, site.d_mlp).float()
    sizes = clean.acts[site.layer][0, -1].abs().to(write) * write.norm(dim=1)
    neurons = sizes.topk(min(TRIED, len(sizes))).indices.cpu()
    rows = through(lm, site, clean, neurons)
    gap, effect = (way(clean, neurons) - rows).norm(), (rows - clean.logits).norm()
    return bool(gap <= TOLERANCE * effect)
