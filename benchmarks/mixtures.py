"""What opened experts cost: `python benchmarks/mixtures.py`.

One step is what attribution needs of a model: the forward pass and the backward pass of activations, each layer's
neurons read on the way. The same random mixture as transformers computes it (its neurons cannot be read) and with its
experts opened, with its neurons read and without, beside a dense model of as many neurons, in turns. Writes
results/<date>-<device>-mixtures.json and .md.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "kernels")]

import torch  # noqa: E402
import transformers  # noqa: E402
from bench_results import environment, table_of, write_results  # noqa: E402
from gauges import counted, gpu_peak, in_turns, medians, tensor_peak  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import neuronforget as nf  # noqa: E402
from neuronforget.models.maps import Site  # noqa: E402

VOCAB, HEADS = 1024, 8
#: Name -> experts, experts of a token, neurons of each, residual width, layers, examples and tokens of a batch.
SHAPES = {
    "8 of 512": (8, 2, 512, 256, 4, (8, 64)),
    "64 of 64": (64, 4, 64, 256, 4, (8, 64)),
    "OLMoE-1B-7B": (64, 8, 1024, 2048, 16, (4, 256)),
}


def models(name: str, device: str) -> dict[str, nn.Module]:
    """Return the mixture, the same with its experts opened, and a dense model of as many neurons."""
    experts, top, own, width, layers, (_, tokens) = SHAPES[name]
    shape = {"vocab_size": VOCAB, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": HEADS,
             "num_key_value_heads": HEADS, "max_position_embeddings": tokens}  # fmt: skip
    torch.manual_seed(0)
    routed = transformers.MixtralConfig(
        intermediate_size=own, num_local_experts=experts, num_experts_per_tok=top, **shape
    )
    found: dict[str, nn.Module] = {"mixture": transformers.MixtralForCausalLM(routed)}
    found["opened"] = copy.deepcopy(found["mixture"])
    nf.open_experts(found["opened"])
    found["dense"] = transformers.LlamaForCausalLM(transformers.LlamaConfig(intermediate_size=experts * own, **shape))
    return {kind: model.to(device, torch.bfloat16 if device == "cuda" else None).eval().requires_grad_(False)
            for kind, model in found.items()}  # fmt: skip


def step(model: Any, tokens: Tensor, sites: Sequence[Site] = ()) -> None:
    """Compute the loss and its gradients of every activation, reading those of `sites` until theirs are known."""
    kept: dict[str, Tensor] = {}

    def read(path: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept[path] = inputs[0].detach()
        inputs[0].register_hook(lambda _grad: kept.update({path: _grad.new_empty(0)}))

    hooks = [model.get_submodule(site.path).register_forward_pre_hook(partial(read, site.path)) for site in sites]
    embedded = model.get_input_embeddings()(tokens).requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    torch.autograd.grad(logits.float().log_softmax(-1)[..., 0].mean(), embedded)


def measured(name: str, turns: int, device: str) -> dict[str, Any]:
    """Return milliseconds and MB of each, and the ratios of the opened mixture to the others."""
    made = models(name, device)
    tokens = torch.randint(VOCAB, SHAPES[name][5], generator=torch.Generator().manual_seed(1)).to(device)
    read = {kind: nf.LM(made[kind]).sites for kind in ("opened", "dense")}
    calls: dict[str, Callable[[], None]] = {kind: partial(step, model, tokens, read.get(kind, ()))
                                            for kind, model in made.items()}  # fmt: skip
    calls["opened, unread"] = partial(step, made["opened"], tokens)
    for call in calls.values():
        call()
    times = {kind: 1e3 * seconds for kind, seconds in medians(in_turns(calls, turns, device)).items()}
    peaks = {kind: (gpu_peak if device == "cuda" else tensor_peak)(call) for kind, call in calls.items()}
    row: dict[str, Any] = {"shape": name, "neurons a layer": SHAPES[name][0] * SHAPES[name][2]}
    for what, found in (("ms", times), ("MB", peaks)):
        row |= {f"{what} {kind}": value for kind, value in found.items()}
        for one, other in (("opened", "mixture"), ("opened", "dense"), ("opened, unread", "mixture")):
            row[f"{what}: {one}/{other}"] = found[one] / found[other]
    return row


def main() -> None:
    """Measure the shapes named, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), help="default: the small ones; on a GPU OLMoE's")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--turns", type=counted, default=7)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    small = [name for name in SHAPES if name != "OLMoE-1B-7B"]
    shapes = options.shapes or (small if options.device == "cpu" else ["OLMoE-1B-7B"])
    rows = [measured(name, options.turns, options.device) for name in shapes]
    notes = (
        f"Forward and activation backward of random models of {VOCAB} tokens, median of {options.turns} in turns; "
        "peaks are of one step, "
        + ("weights of all three included" if options.device == "cuda" else "beside the weights")
        + ". `mixture`: experts as transformers computes them; `opened`: after `nf.open_experts`, its "
        "neurons read; `opened, unread`: the same without; `dense`: a Llama of as many neurons a layer, read."
    )
    print(table_of(rows))
    print(write_results("Benchmark of opened experts", {"environment": environment(options.device), "mixtures": rows},
                        notes, options.out, "mixtures"))  # fmt: skip


if __name__ == "__main__":
    main()
