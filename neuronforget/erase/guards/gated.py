"""O3: a low-rank adapter for each request, orthogonal to those before, behind a gate of its own (arXiv:2407.10223).

    y <- W x + strength sum_i w_i(prompt) scale B_i A_i x,   A_i A_j^T = 0 for j < i

`w_i` is near 1 for prompts like those of request i and near 0 for others; it is read off the prompt in a pass without
adapters. The paper keeps A_i nearly orthogonal by a penalty and trains its detector by contrast, on the request alone;
here A_i is put back onto the complement of the earlier ones at every step, and the gate is a Gaussian's distance
(`gate.py`), or where there is a retain corpus the classifier that `eco` has.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, check_disjoint
from neuronforget.edits import Edit
from neuronforget.edits.guarding import Given, Guard, before_pass, mechanism
from neuronforget.erase.adapters import learn_adapter
from neuronforget.erase.beginning import operator
from neuronforget.erase.finetune import Preferred, preferred_answers
from neuronforget.erase.fitting import check_loss
from neuronforget.erase.guards.classifier import Classifier, fitted
from neuronforget.erase.guards.gate import Gate, check_kept, opened_by
from neuronforget.erase.guards.reading import check_layers, corpus_means, prompt_means
from neuronforget.erase.lowrank import LoRA
from neuronforget.errors import InputError
from neuronforget.losses import Loss, name_of, npo
from neuronforget.models import LM

RIDGE = 1e-2
FORGETTING: Loss = partial(npo, alpha=0.0)


@checks_kinds
@operator
def o3(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    after: Edit | None = None,
    loss: Loss = FORGETTING,
    lora: int | LoRA = 8,
    preferred: Preferred = None,
    layer: int | None = None,
    kept: float = 0.95,
    steps: int = 60,
    lr: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """Answer one request to forget: train an adapter on it, orthogonal to those of the guard `after`, and gate it.

    Earlier requests' adapters and gates are kept bit for bit. Without a retain corpus the gate knows the request alone,
    and lets in the `kept` share of its prompts; few prompts, or ones about one subject, do not tell it what is the
    request's own. `info` says how far the gate opens to either corpus. The model's weights stay as they are: this is
    a guard. Raises InputError without peft, for a guard of another kind, and where no directions are left.
    """
    if retain is not None:
        check_disjoint(forget, retain)
    answers = preferred_answers(forget, preferred, seed)
    check_loss(lm, forget, loss, retain=retain, preferred=answers, reinforced=None)
    if retain is None:
        check_kept(kept)
    lora = lora if isinstance(lora, LoRA) else LoRA(lora)
    (block,) = check_layers(lm, None if layer is None else [layer])
    earlier = _earlier(lm, after, lora, block)
    features = corpus_means(lm, forget, [block], batch_size)[:, 0].double()
    others = None if retain is None else corpus_means(lm, retain, [block], batch_size)[:, 0].double()
    gate = opened_by(features, kept=kept, seed=seed) if others is None else fitted(features, others, RIDGE)
    before = {name: torch.cat([e[f"A.{name}"] for e in earlier]) for name in lora.names(lm)} if earlier else {}
    adapter = learn_adapter(
        lm, forget, lora=lora, loss=loss, retain=retain, preferred=answers, orthogonal_to=before, steps=steps, lr=lr,
        batch_size=batch_size, seed=seed, progress=progress,
    )  # fmt: skip
    own = {f"gate.{name}": tensor for name, tensor in gate.tensors.items()}
    own |= {f"{kind}.{n}": v for n, pair in adapter.values.items() for kind, v in zip("AB", pair, strict=True)}
    tensors = {f"{i}.{name}": tensor for i, each in enumerate([*earlier, own]) for name, tensor in each.items()}
    guard = Guard.of(lm, "o3", tensors, requests=len(earlier) + 1, layer=block, scale=adapter.scale)
    about = {"forget": forget.digest(), "loss": name_of(loss), "seed": seed, "gate": type(gate).__name__.lower()}
    about |= {"forget_opens": float(gate.opening(features).mean())}
    about |= {} if others is None else {"retain_opens": float(gate.opening(others).mean())}
    return Edit.guarding(guard, requests=[*(after.info["requests"] if after else ()), about])


def _earlier(lm: LM, after: Edit | None, lora: LoRA, block: int) -> list[dict[str, Tensor]]:
    """The tensors of each request before this one."""
    if after is None:
        return []
    guard = after.guard
    if guard is None or guard.kind != "o3":
        raise InputError(f"after= is the o3 guard of the requests before, found {after!r}")
    guard.check(lm, "before")
    names = {key.partition("A.")[2] for key in guard.tensors if key.startswith("0.A.")}
    if (guard.settings["layer"], guard.settings["scale"]) != (block, lora.scale) or names != set(lora.names(lm)):
        raise InputError("requests of one guard share layer, targets and scale: call o3 as for those before")
    return [
        {key.partition(".")[2]: t for key, t in guard.tensors.items() if key.startswith(f"{i}.")}
        for i in range(guard.settings["requests"])
    ]


@mechanism("o3")
def _install(lm: LM, guard: Guard) -> Iterator[Any]:
    count, block = guard.settings["requests"], guard.settings["layer"]
    own = [
        {k.partition("gate.")[2]: t for k, t in guard.tensors.items() if k.startswith(f"{i}.gate.")}
        for i in range(count)
    ]
    gates = [Gate(**tensors) if "limit" in tensors else Classifier(**tensors) for tensors in own]
    weights: Tensor | None = None  # None: the gates' own pass is without adapters

    def read(given: Given, _kwargs: dict[str, Any]) -> None:
        nonlocal weights
        if given.goes_on:
            return
        weights = None
        features = prompt_means(lm, given.ids, given.prompt, [block])[:, 0]
        weights = guard.strength * torch.stack([gate.opening(features) for gate in gates], 1)

    def adds(pairs: list[tuple[Tensor, Tensor]]) -> Any:
        def hook(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if weights is None:
                return None
            x = inputs[0].reshape(len(weights), -1, inputs[0].shape[-1])  # OPT hands its maps all tokens in one row
            total = torch.zeros((), device=x.device, dtype=x.dtype)
            for (a, b), weight in zip(pairs, weights.T.to(x), strict=True):
                total = total + weight[:, None, None] * (x @ a.to(x).T @ b.to(x).T)
            return output + guard.settings["scale"] * total.reshape(output.shape)

        return hook

    yield before_pass(lm, read)
    for name in (key.partition("A.")[2] for key in guard.tensors if key.startswith("0.A.")):
        pairs = [(guard.tensors[f"{i}.A.{name}"], guard.tensors[f"{i}.B.{name}"]) for i in range(count)]
        yield lm.model.get_submodule(name.removesuffix(".weight")).register_forward_hook(adds(pairs))
