"""Which models can be read: every causal language model of the installed transformers, built tiny, is tried.

Of each: are its neurons found, does ablating two of them give what two zeroed inputs of the output projection give, is
it undone to the bit? And again where it has routed experts, opened: do they compute what they did?
`python benchmarks/architectures.py` writes results/<date>-<device>-architectures.json and .md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "kernels")]

import torch  # noqa: E402
import transformers  # noqa: E402
from bench_results import environment, table_of, write_results  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import CONFIG_MAPPING, AutoModelForCausalLM  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402

import neuronforget as nf  # noqa: E402
from neuronforget.models.routed import routed_layers  # noqa: E402
from neuronforget.models.sites import find_sites  # noqa: E402

TOKENS, LENGTH = 64, 9
LARGEST = 20_000_000  # parameters: what its configuration does not make smaller is not built
CLOSE = 1e-4
#: Sizes, under the names that configurations give them: 2 layers of 40 neurons in a residual stream of 16.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "lru_width"), 16),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "decoder_ffn_dim"), 40),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "attention_heads",
                     "decoder_attention_heads", "encoder_attention_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "vocab_size", "vocab_size_per_layer_input"), TOKENS),
    **dict.fromkeys(("head_dim", "kv_lora_rank", "q_lora_rank", "d_kv", "state_size", "ssm_state_size", "mamba_d_head",
                     "mamba_d_state", "hidden_size_per_layer_input", "query_pre_attn_scalar", "mamba_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "laurel_rank", "mamba_n_heads",
                     "num_experts", "num_local_experts", "n_routed_experts", "mamba_num_heads"), 4),
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups", "n_groups", "bos_token_id"), 1),
    "shared_intermediate_size": 40, "moe_intermediate_size": 24, "eos_token_id": 2, "pad_token_id": 0,
    "num_kv_shared_layers": 0, "sliding_window": 16, "attention_window_size": 16, "is_decoder": True,
}  # fmt: skip
#: Settings of single kinds: None leaves out what `SMALL` or its layers would set.
OWN: dict[str, dict[str, Any]] = {
    "recurrent_gemma": {"num_hidden_layers": 3, "num_key_value_heads": 1, "intermediate_size": 96,
                        "layers_block_type": None},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "mamba_dt_rank": 4, "use_mamba_kernels": False, "layer_types": None, "layers_block_type": None},
    "falcon_h1": {"mamba_d_ssm": 32, "layers_block_type": None},
    "nemotron_h": {"num_hidden_layers": 4, "hybrid_override_pattern": "M-*-", "layers_block_type": None,
                   "layer_types": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    **{kind: {"rotary_dim": 4} for kind in ("gptj", "codegen")},
    **{kind: {"head_dim": 4, "first_k_dense_replace": 1} for kind in ("deepseek_v3", "axk1", "youtu")},
    "dots1": {"n_shared_experts": 1},
    "kimi_linear": {"num_experts": 8},
}  # fmt: skip
ROW = {"model": "", "outcome": "", "layers": "", "neurons": "", "output projection": "", "experts": "", "shared": "",
       "why": ""}  # fmt: skip


def small(kind: str) -> Any:
    """Return a kind's configuration, as small as its names let it be. Raises ValueError for one of several models."""
    made = CONFIG_MAPPING[kind]
    usual = made().to_dict()
    if "text_config" in usual:
        raise ValueError("its text model is a kind of its own")
    taken = {*usual, *made.attribute_map}
    settings = {name: value for name, value in SMALL.items() if name in taken} | OWN.get(kind, {})
    lists = {n: v[:2] for n, v in usual.items() if n.endswith(("types", "type")) and isinstance(v, list) and len(v) > 2}
    return made(**{name: value for name, value in (lists | settings).items() if value is not None})


def built(kind: str) -> nn.Module:
    """Return a model of random weights. Raises ValueError for one that stays too large."""
    config = small(kind)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count:,} parameters are left of it")
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # no bias is 0, no norm weight 1
            noise = torch.randn_like(weight)
            weight.copy_(weight + 0.2 * noise if weight.ndim == 1 else 0.3 * noise)
    return model


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    """Return its logits for three sequences of random tokens."""
    tokens = torch.randint(3, TOKENS, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    found: Tensor = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    return found


def zeroed(lm: nf.LM, neurons: nf.Neurons) -> Tensor:
    """Return its logits with these neurons' activations set to zero by hooks."""
    layers = neurons.by_layer()

    def without(layer: int, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        first = inputs[0].clone()
        first[..., list(layers[layer])] = 0
        return (first, *inputs[1:])

    handles = [
        lm.model.get_submodule(site.path).register_forward_pre_hook(lambda _, given, at=site.layer: without(at, given))
        for site in lm.sites
        if site.layer in layers
    ]
    try:
        return outputs(lm.model)
    finally:
        for handle in handles:
            handle.remove()


def tried(model: nn.Module) -> dict[str, Any]:
    """Return what came of one model; `outcome` is read, refused (with the reason) or wrong (with what is).

    `experts` is how many layers' routed experts are read once they are opened, `shared` how many layers' MLPs that all
    tokens share beside these.
    """
    found, shared = tried_once(model), tried_once(model, kind="shared")
    if shared["outcome"] == "wrong":
        found = {**found, "outcome": "wrong", "why": f"shared: {shared['why']}"}
    found["shared"] = shared.get("layers", "")
    if found["outcome"] == "wrong" or not routed_layers(model):
        return found
    before, kept = outputs(model), {name: weight.clone() for name, weight in model.state_dict().items()}
    nf.open_experts(model)
    opened, state = tried_once(model), model.state_dict()
    wrong = {
        "opened experts compute something else": not torch.allclose(outputs(model), before, atol=CLOSE),
        "opened experts are saved otherwise": kept.keys() != state.keys()
        or any(not torch.equal(state[name], kept[name]) for name in kept),
        f"experts: {opened['why']}": opened["outcome"] == "wrong",
    }
    if any(wrong.values()):
        return {**found, "outcome": "wrong", "why": "; ".join(what for what, holds in wrong.items() if holds)}
    if opened["outcome"] != "read":
        return found
    better = found if found["outcome"] == "read" else opened
    return {**better, "experts": opened["layers"], "shared": found["shared"]}


def tried_once(model: nn.Module, kind: Literal["shared"] | None = None) -> dict[str, Any]:
    """Return what came of one model as it is."""
    try:
        lm = nf.LM(model, None, find_sites(model, kind))
        layers = tuple(site.layer for site in lm.sites)
    except nf.InputError as error:
        return {"outcome": "refused", "why": str(error).removeprefix(type(model).__name__).split(":")[0].strip()}
    neurons = nf.Neurons(frozenset({(layers[0], 1), (layers[-1], 3)}), layers, lm.shape[1])
    before, wanted = outputs(model), zeroed(lm, neurons)
    with nf.erase.ablate(lm, neurons).on(lm):
        edited = outputs(model)
    wrong = {
        "the edit is not the zeroed neurons": not torch.allclose(edited, wanted, atol=CLOSE),
        "the edit changes nothing": torch.allclose(before, wanted, atol=1e-6),
        "it is not undone": not torch.equal(outputs(model), before),
    }
    found = {"layers": lm.shape[0], "neurons": lm.shape[1], "output projection": lm.sites[0].path}
    return {"outcome": "wrong" if any(wrong.values()) else "read", **found,
            "why": "; ".join(what for what, holds in wrong.items() if holds)}  # fmt: skip


def rows(kinds: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what came of each kind; "not built" where transformers does not make it of so small a configuration."""
    for kind in kinds:
        try:
            model = built(kind)
            outputs(model)
        except Exception as error:  # transformers' own: there are as many kinds of errors as of models
            yield {**ROW, "model": kind, "outcome": "not built", "why": " ".join(str(error).split())[:80]}
            continue
        yield {**ROW, "model": kind, **tried(model)}


def main() -> None:
    """Try every kind, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), help="model types")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    found = []
    for row in rows(options.kinds):
        found.append(row)
        print(f"{row['model']}: {row['outcome']} {row['output projection'] or row['why']}", flush=True)
    order = {outcome: i for i, outcome in enumerate(("wrong", "read", "refused", "not built"))}
    found.sort(key=lambda row: (order[row["outcome"]], row["model"]))
    counts = {outcome: sum(row["outcome"] == outcome for row in found) for outcome in order}
    notes = (
        "Every kind of causal language model that this transformers has, random and tiny. " +
        ", ".join(f"{outcome}: {count}" for outcome, count in counts.items()) + ". Read: its neurons were found, "
        f"ablating two of them is zeroing them (to {CLOSE:g}), and it is undone to the bit. Experts: in so many layers "
        "routed experts are read once they are opened; the opened model's outputs are those before (to the same), and "
        "so is its state dict (to the bit). Where there is no dense MLP these are its neurons. Shared: in so many "
        "layers the MLPs that all tokens share beside routed experts are read where these are asked for. Not built: "
        "transformers "
        "makes no model of so small a configuration, or the kind is of several models. Nothing is said of these."
    )  # fmt: skip
    print(table_of(found))
    print(write_results("Models that can be read", {"environment": environment("cpu"), "models": found}, notes,
                        options.out, "architectures"))  # fmt: skip


if __name__ == "__main__":
    main()
