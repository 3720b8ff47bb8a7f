"""lens: what a neuron writes, read in the vocabulary: the top tokens of `w_j @ W_U` (Geva et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora.tokens import piece
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.routed import OWN, neuron_name
from neuronforget.models.sites import expert_info


@dataclass(frozen=True)
class TopTokens:
    """The tokens that one neuron promotes and suppresses most, strongest first, each with its logit per unit of a.

    A neuron whose activation is negative promotes what stands under `suppressed`.
    """

    layer: int
    neuron: int
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    own: int = 0  # neurons of an expert, of a mixture

    def __repr__(self) -> str:
        up, down = (" ".join(repr(token) for token, _ in part) for part in (self.promoted, self.suppressed))
        return f"{neuron_name(self.layer, self.neuron, self.own)}: + {up} | - {down}"


@checks_kinds
@torch.no_grad()
def lens(lm: LM, neurons: Iterable[tuple[int, int]], *, k: int = 10) -> list[TopTokens]:
    """Return the `k` tokens that each neuron's write weights promote and suppress most: no data is needed.

    The final norm is left out, as in `w_j @ W_U` (arXiv:2203.14680), so logits compare within a neuron, not between
    layers. Raises InputError for a neuron that the model has not, and where the unembedding has another width.
    """
    unembedding, sites = unembedding_of(lm), {site.layer: site for site in lm.sites}
    if not 1 <= k <= len(unembedding):
        raise InputError(f"k is the number of tokens: 1 to {len(unembedding)}, found {k}")
    word = lm.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]

    def said(token: int) -> str:
        return piece(lm.tokenizer, [*word, token], len(word))  # within a text, so that a word keeps its blank

    found, own = [], expert_info(lm.model, lm.sites).get(OWN, 0)
    for layer, j in neurons:
        if layer not in sites or not 0 <= j < lm.shape[1]:
            raise InputError(f"no neuron {j} in layer {layer}: the model has layers {tuple(sites)} of {lm.shape[1]}")
        write = sites[layer].write
        vector = lm.parameters[write.name].select(write.dim, j + write.offset)
        logits = unembedding.float() @ vector.to(unembedding.device).float()
        up, down = logits.topk(k), (-logits).topk(k)
        ends = [(top.indices.tolist(), top.values.tolist()) for top in (up, down)]
        promoted, suppressed = [[(said(i), v) for i, v in zip(*end, strict=True)] for end in ends]
        found.append(TopTokens(layer, j, tuple(promoted), tuple((token, -v) for token, v in suppressed), own))
    return found


def unembedding_of(lm: LM) -> Float[Tensor, "vocab d_model"]:
    """Return the weights that read logits. Raises InputError where they do not read the width that neurons write."""
    head = lm.model.get_output_embeddings()
    if head is None or head.weight.shape[1] != lm.sites[0].d_model:
        raise InputError(f"{lm.name}: the unembedding does not read the width that its neurons write")
    return head.weight.detach()
