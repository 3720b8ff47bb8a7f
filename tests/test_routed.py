"""Routed experts, opened: the function and the checkpoint stay, and a neuron is one input and one column."""

from __future__ import annotations

import copy
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from commanding import run
from families import DEPTH, VOCAB, WIDTH, build, padded_batch, randomise
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers.integrations.moe import batched_mm_experts_forward, use_experts_implementation

import neuronforget as nf
from neuronforget.auditing.quantisation import TRIPS, quantised
from neuronforget.corpora import Corpus
from neuronforget.erase import second_moments
from neuronforget.findings.closeups import closeups
from neuronforget.models import routed
from neuronforget.models.routed import RoutedMLP, open_experts, routed_layers
from neuronforget.models.sites import find_sites, mostly_routed
from neuronforget.models.stacks import Layout
from neuronforget.reporting.maps import map_pictures
from neuronforget.taps import TorchHooks

EXPERTS, OWN, TOKENS, TOP = 5, 6, 7, 2
SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "num_key_value_heads": 2,
         "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "head_dim": 8}  # fmt: skip
#: A router by softmax, one with biases and gates and ups in turns, one by sigmoid with a shared expert.
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 12, "num_local_experts": 4},
    "gpt_oss": {"intermediate_size": 12, "num_local_experts": 4, "layer_types": ["full_attention"] * DEPTH},
    "glm4_moe": {"intermediate_size": 40, "moe_intermediate_size": 12, "n_routed_experts": 4, "n_shared_experts": 1,
                 "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0},
}  # fmt: skip


def mixture(kind: str, **settings: Any) -> Any:
    """A tiny random mixture as transformers has it."""
    config = transformers.CONFIG_MAPPING[kind](**{**SHAPE, **KINDS.get(kind, {}), **settings})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    randomise(model)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**padded_batch(), use_cache=False).logits
    return found


def of_layout(gated: bool, biased: bool, transposed: bool, concatenated: bool) -> Any:
    """A module of experts in one of transformers' layouts, filled at random."""
    feed, wide = ("gate_up_proj", 2 * OWN) if gated else ("up_proj", OWN)
    shapes = {feed: (wide, WIDTH), "down_proj": (WIDTH, OWN)}

    class Experts(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.num_experts, self.act_fn = EXPERTS, nn.SiLU()
            for name, (rows, columns) in shapes.items():
                shape = (columns, rows) if transposed else (rows, columns)
                setattr(self, name, nn.Parameter(torch.randn(EXPERTS, *shape, dtype=torch.float64)))
                if biased:
                    setattr(self, f"{name}_bias", nn.Parameter(torch.randn(EXPERTS, rows, dtype=torch.float64)))

        def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
            return batched_mm_experts_forward(self, hidden, index, weights)

    if gated and not concatenated:  # as gpt-oss: such a layout comes with a rule of its own
        Experts._apply_gate = lambda self, both: self.act_fn(both[..., ::2]) * both[..., 1::2]  # type: ignore[attr-defined]
    stated = {"has_gate": gated, "has_bias": biased, "is_transposed": transposed, "is_concatenated": concatenated}
    made = use_experts_implementation(Experts, **stated)
    return made(SimpleNamespace(_experts_implementation="eager"))


@pytest.mark.parametrize("layout", product((True, False), repeat=4), ids=str)
def test_opened_experts_compute_what_transformers_computes_in_every_layout(layout: tuple[bool, ...]) -> None:
    torch.manual_seed(0)
    plain = of_layout(*layout)
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    weights, index = torch.rand(TOKENS, EXPERTS, dtype=torch.float64).topk(TOP)
    expected, kept = plain(hidden, index, weights), {n: w.clone() for n, w in plain.state_dict().items()}
    opened = RoutedMLP(plain)
    torch.testing.assert_close(opened(hidden, index, weights), expected, rtol=1e-12, atol=1e-12)
    state = opened.state_dict()
    assert state.keys() == kept.keys() and all(torch.equal(state[name], kept[name]) for name in kept)
    names = {name for name, _ in opened.named_parameters()}
    own = Layout(EXPERTS, *layout)
    assert own.opened(kept).keys() == own.opened_names == names and own.stacked_names == kept.keys()


#: Choices of experts: two of five, one of them never; one expert twice; all; those of a single token.
CHOICES = {
    "two": [[t % 4, (t + 1) % 4] for t in range(TOKENS)],
    "twice": [[t % 5, t % 2] for t in range(TOKENS)],
    "all": [torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(t)).tolist() for t in range(TOKENS)],
    "one token": [[3, 1]],
}


def derivatives(module: Any, index: Tensor, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The output, the gradients of all that goes into it, and the gradient of one of these."""
    torch.manual_seed(1)
    hidden = torch.randn(len(index), WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    weights = torch.rand(index.shape, dtype=torch.float64).to(dtype).requires_grad_()
    inputs = {"hidden": hidden, "weights": weights, **dict(module.named_parameters())}
    out = module(hidden, index, weights)
    grads = torch.autograd.grad(out.square().sum(), list(inputs.values()), create_graph=True)
    (again,) = torch.autograd.grad(grads[0].square().sum(), hidden)
    return {"out": out, "again": again, **dict(zip(inputs, grads, strict=True))}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("layout", [(True, False, False, True), (True, True, True, False), (False, True, False, True)])
def test_neurons_that_are_read_and_maps_that_are_hooked_are_the_same_function(
    layout: tuple[bool, ...], choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(sys.modules[__name__], "OWN", 8)
    plain, index = of_layout(*layout), torch.tensor(CHOICES[choice])
    wanted = derivatives(plain, index)
    stacked = {name: wanted.pop(name) for name, _ in plain.named_parameters()}
    wanted |= Layout(EXPERTS, *layout).opened(stacked)
    opened = RoutedMLP(plain)
    torch.testing.assert_close(derivatives(opened, index), wanted, rtol=1e-11, atol=1e-10)
    with monkeypatch.context() as patch:  # of a GPU's kernel there is a plain form, in single precision
        patch.setattr(routed, "_has_kernel", lambda rows, weights: True)
        found = derivatives(copy.deepcopy(opened).float(), index, torch.float32)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, rtol=0, atol=1e-4 * value.abs().max().item())
    for name in ("down", "up"):
        opened.get_submodule(name).register_forward_pre_hook(lambda _module, inputs: inputs)
        torch.testing.assert_close(derivatives(opened, index), wanted, rtol=1e-11, atol=1e-10)


def test_opened_experts_round_in_half_precision_no_worse_than_transformers_does() -> None:
    torch.manual_seed(0)
    plain, index = of_layout(True, False, False, True), torch.tensor(CHOICES["two"])
    exact = derivatives(plain, index)["out"]
    theirs = derivatives(plain.bfloat16(), index, torch.bfloat16)["out"]
    opened = RoutedMLP(plain)
    for name in ("", "down", "up"):
        opened.get_submodule(name).register_forward_pre_hook(lambda _module, inputs: inputs)
        own = derivatives(opened, index, torch.bfloat16)["out"]
        assert (own - exact).norm() < 1.1 * (theirs - exact).norm()


def test_a_neuron_is_its_expert_s_output_times_the_weight_of_the_route() -> None:
    """One token and one expert at a time, by the weights that transformers keeps."""
    torch.manual_seed(0)
    plain = of_layout(True, False, False, True)
    weights, index = torch.rand(TOKENS, EXPERTS, dtype=torch.float64).topk(TOP)
    hidden, seen = torch.randn(TOKENS, WIDTH, dtype=torch.float64), []
    feed = plain.gate_up_proj.detach().clone()
    opened = RoutedMLP(plain)
    opened.down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    opened(hidden, index, weights)
    for token in range(TOKENS):
        for expert in range(EXPERTS):
            own = seen[0][token, expert * OWN : (expert + 1) * OWN]
            if expert not in index[token]:
                assert (own == 0).all()
                continue
            gate, up = (feed[expert] @ hidden[token]).split(OWN)
            share = weights[token][(index[token] == expert).nonzero()[0, 0]]
            torch.testing.assert_close(own, share * gate * gate.sigmoid() * up)


@pytest.mark.filterwarnings("ignore:Glm4MoeForCausalLM has dense or shared MLPs")
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_computes_as_before_and_is_saved_as_before(kind: str, tmp_path: Path) -> None:
    model = mixture(kind)
    before, kept = logits(model), {n: w.clone() for n, w in model.state_dict().items()}
    twin = copy.deepcopy(model)
    assert open_experts(model) == DEPTH and not routed_layers(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    state = model.state_dict()
    assert state.keys() == kept.keys() and all(torch.equal(state[name], kept[name]) for name in kept)
    nf.LM(model).save(tmp_path)
    assert torch.equal(logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)), before)
    randomise(twin, 1)  # and read back into opened experts, in the form of transformers
    model.load_state_dict(twin.state_dict())
    torch.testing.assert_close(logits(model), logits(twin), rtol=1e-5, atol=1e-5)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_submodule(nf.LM(other).sites[0].path).weight.zero_()
    torch.testing.assert_close(logits(model), logits(twin), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Glm4MoeForCausalLM has dense or shared MLPs")
@pytest.mark.parametrize("kind", KINDS)
def test_an_ablated_neuron_is_one_column_of_its_expert_in_the_export(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    model = mixture(kind, vocab_size=len(tokenizer))
    lm = nf.LM(copy.deepcopy(model), tokenizer)
    open_experts(lm.model)
    expert, neuron = 2, 7
    edit = nf.erase.ablate(lm, nf.Neurons(frozenset({(1, 12 * expert + neuron)}), (0, 1), 48))
    assert edit.certificate(lm).holds
    edit.export(lm, tmp_path / "out")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    (path,) = [path for path in routed_layers(model) if ".1." in path]
    with torch.no_grad():
        down = model.get_submodule(path).down_proj
        (down[expert, neuron] if kind == "gpt_oss" else down[expert, :, neuron]).zero_()
    for (name, own), (_, wanted) in zip(exported.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(own, wanted), name
    with edit.on(lm):
        torch.testing.assert_close(logits(lm.model), logits(model), rtol=1e-5, atol=1e-5)


def test_training_chosen_neurons_moves_their_experts_alone(tokenizer: Any, corpus: Corpus) -> None:
    lm = nf.LM(build("mixtral", vocab_size=len(tokenizer)), tokenizer)  # 4 experts of 10 neurons
    plain = {n: w.clone() for n, w in lm.model.state_dict().items()}
    forget, retain = Corpus(corpus.examples[:3], "forget"), Corpus(corpus.examples[3:], "retain")
    chosen = nf.Neurons(frozenset({(0, j) for j in range(20, 30)}), (0, 1), 40)
    edit = nf.erase.finetune(lm, forget, retain, loss=nf.losses.npo, neurons=chosen, steps=3, lr=1e-2, progress=False)
    assert edit.certificate(lm).holds
    with edit.on(lm):
        moved = {name: (weight != plain[name]) for name, weight in lm.model.state_dict().items()}
    experts = {name: where.flatten(1).any(1).tolist() for name, where in moved.items() if where.any()}
    stem = "model.layers.0.mlp.experts."
    assert experts == {f"{stem}{name}": [False, False, True, False] for name in ("gate_up_proj", "down_proj")}


@pytest.mark.filterwarnings("ignore:Glm4MoeForCausalLM has dense or shared MLPs")
def test_adapters_are_at_experts_and_at_what_lies_beside_them(tokenizer: Any, corpus: Corpus) -> None:
    model = mixture("glm4_moe", num_hidden_layers=3, first_k_dense_replace=1, vocab_size=len(tokenizer))
    open_experts(model)
    lm = nf.LM(model, tokenizer)
    edit = nf.erase.finetune(lm, Corpus(corpus.examples[:3], "f"), Corpus(corpus.examples[3:], "r"), lora=2, steps=2,
                             lr=1e-2, progress=False)  # fmt: skip
    moved, stem = {change.name for change in edit.changes}, "model.layers.1.mlp."
    assert {"model.layers.0.mlp.up_proj.weight", f"{stem}experts.up.weight",
            f"{stem}shared_experts.up_proj.weight"} <= moved  # fmt: skip
    assert edit.certificate(lm).holds and model.config.model_type == "glm4_moe"


def test_the_whole_way_from_a_folder_by_the_command_line(
    tokenizer: Any, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nf.LM(mixture("mixtral", vocab_size=len(tokenizer)), tokenizer).save(tmp_path / "model")
    for name, rows in (("forget", corpus.examples[:3]), ("retain", corpus.examples[3:])):
        Corpus(rows, name).save(tmp_path / f"{name}.jsonl")
    sides = ("--forget", tmp_path / "forget.jsonl", "--retain", tmp_path / "retain.jsonl")
    given, at = ("--model", tmp_path / "model", *sides), tmp_path / "out"
    for asked in (
        ("--experts", "False"),
        ("--top", 1, "--whole-experts", 2),
        ("--share", 0.1, "--top", 1),
        ("--whole-experts", 9),
    ):
        assert run(monkeypatch, "attribute", *given, *asked, "--out", at / "scores") == 2
    assert run(monkeypatch, "attribute", *given, "--whole-experts", 2, "--out", at / "scores") == 0
    chosen, page = nf.Neurons.load(at / "scores" / "neurons.json"), (at / "scores" / "map.html").read_text()
    assert len(chosen) == 24 and chosen.info["rule"] == "experts" and '<h3 id="the-experts">' in page
    assert run(monkeypatch, "erase", *given, "--neurons", at / "scores" / "neurons.json", "--out",
               at / "edit.safetensors", "--export", at / "erased") == 0  # fmt: skip
    assert nf.load(at / "erased").shape == nf.load(tmp_path / "model").shape == (DEPTH, 48)
    nf.LM(build("llama", vocab_size=len(tokenizer)), tokenizer).save(tmp_path / "dense")
    sides = ("--members", tmp_path / "forget.jsonl", "--non-members", tmp_path / "retain.jsonl")
    asked = ("--experts", "True", "--attacks", "reference", "--reference", tmp_path / "dense", "--out", at / "read")
    assert run(monkeypatch, "evaluate", "membership", "--model", tmp_path / "model", *sides, *asked) == 0


def test_what_is_read_is_what_more_layers_have(tokenizer: Any, tmp_path: Path) -> None:
    told = r"load\(\.\.\., experts=True\), or nf\.open_experts\(model\) before nf\.LM, reads theirs"
    instead = r"layers' routed experts; load\(\.\.\., experts='shared'\) reads the shared ones instead$"
    for dense, first, words in ((1, "mlp.experts.down", instead), (2, "mlp.down_proj", told)):
        model = mixture("glm4_moe", num_hidden_layers=3, first_k_dense_replace=dense, vocab_size=len(tokenizer))
        nf.LM(model, tokenizer).save(tmp_path / str(dense))
        with pytest.warns(match=f"no neuron of theirs is scored or edited.*{words}"):
            assert nf.load(tmp_path / str(dense)).sites[-1].path.endswith(first)
        shared = "mlp.shared_experts.down_proj"
        for asked, last in ((True, "mlp.experts.down"), (False, "mlp.down_proj"), ("shared", shared)):
            with pytest.warns(match="no neuron of theirs is scored or edited"):
                assert nf.load(tmp_path / str(dense), experts=asked).sites[-1].path.endswith(last)


#: Mixtures whose shared MLP is one of several, has a gate of its own, or is of fused maps.
SHARED: dict[str, dict[str, Any]] = {
    "glm4_moe": {"n_shared_experts": 2},
    "qwen2_moe": {"intermediate_size": 40, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20,
                  "num_experts": 4, "num_experts_per_tok": 2},
    "granitemoeshared": {"intermediate_size": 12, "shared_intermediate_size": 20, "num_local_experts": 4,
                         "num_experts_per_tok": 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", SHARED)
def test_the_neurons_that_all_tokens_share_are_read_and_erased(
    kind: str, tokenizer: Any, corpus: Corpus, tmp_path: Path
) -> None:
    model = mixture(kind, **SHARED[kind], vocab_size=len(tokenizer))
    nf.LM(model, tokenizer, find_sites(model, "shared")).save(tmp_path / "model")
    with pytest.warns(match=rf"has routed experts or dense MLPs in {DEPTH} of its .* {DEPTH} layers' shared MLPs$"):
        lm = nf.load(tmp_path / "model", experts="shared")
    assert lm.shape == (DEPTH, 24 if kind == "glm4_moe" else 20) and all("shared" in site.path for site in lm.sites)
    scores = nf.attribute(lm, corpus, score=nf.scores.exact, tap="torch_hooks", progress=False)
    edit = nf.erase.ablate(lm, nf.Neurons(frozenset({(1, 3)}), scores.layers, lm.shape[1]))
    nf.open_experts(model)  # the sites stay those of the shared MLPs: no neuron of theirs is an expert's
    named = nf.LM(model, tokenizer, lm.sites)
    assert nf.attribute(named, corpus, tap="torch_hooks", progress=False).own == 0
    with pytest.raises(nf.InputError, match="whole experts need"):
        nf.select.experts(named, scores, 1)
    before = float(nf.record(lm, corpus, tap="torch_hooks", progress=False).loss)
    with edit.on(lm):
        after = float(nf.record(lm, corpus, tap="torch_hooks", progress=False).loss)
    assert float(scores.values[1, 3]) == pytest.approx((after - before) / len(corpus), abs=1e-5)
    edit.export(lm, tmp_path / "erased")
    with pytest.warns(match="shared"):  # the routed experts of a model whose shared neurons were edited
        opened = nf.load(tmp_path / "erased", experts=True)
    weight = dict(opened.model.named_parameters())[lm.sites[1].write.name]
    assert opened.sites[1].path.endswith("experts.down") and not weight.select(lm.sites[1].write.dim, 3).any()


@pytest.mark.filterwarnings("ignore:Qwen2MoeForCausalLM has")
def test_a_comparison_reads_the_shared_neurons_that_are_asked_for(
    tokenizer: Any, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mixture("qwen2_moe", **SHARED["qwen2_moe"], vocab_size=len(tokenizer))
    nf.LM(model, tokenizer, find_sites(model, "shared")).save(tmp_path / "model")
    found: list[tuple[int, int]] = []

    def only_the_model(lm: nf.LM, *_: Any, **__: Any) -> None:
        found.append(lm.shape)
        raise nf.InputError("enough")

    monkeypatch.setattr("neuronforget.comparing.compare", only_the_model)
    for name, rows in (("forget", corpus.examples[:3]), ("retain", corpus.examples[3:])):
        Corpus(rows, name).save(tmp_path / f"{name}.jsonl")
    sides = ("--forget", tmp_path / "forget.jsonl", "--retain", tmp_path / "retain.jsonl")
    for experts in ("shared", "True"):
        asked = ("--experts", experts, "--out", tmp_path / "out")
        assert run(monkeypatch, "compare", "--model", tmp_path / "model", *sides, *asked) == 2
    assert found == [(DEPTH, 20), (DEPTH, 48)]


def test_shared_neurons_are_refused_where_there_are_none(tokenizer: Any, tmp_path: Path) -> None:
    nf.LM(mixture("mixtral", vocab_size=len(tokenizer)), tokenizer).save(tmp_path)
    with pytest.raises(nf.InputError, match="has no MLP that all tokens share beside routed experts"):
        nf.load(tmp_path, experts="shared")
    with pytest.raises(nf.InputError, match="finds the sites by itself"):
        nf.load(tmp_path, experts="shared", sites=nf.load(tmp_path).sites)


def test_experts_are_read_where_the_dense_mlps_cannot_be_told_apart() -> None:
    from architectures import built

    model = built("axk2")
    with pytest.raises(nf.InputError, match="fit an MLP's output equally well"):
        _ = nf.LM(model).sites
    assert mostly_routed(model)


@pytest.mark.filterwarnings("ignore:Glm4MoeForCausalLM routes to experts")
def test_relevance_takes_the_routes_as_constants(tokenizer: Any, corpus: Corpus) -> None:
    from neuronforget.scores.relevance import relevance_rules

    partly = mixture("glm4_moe", num_hidden_layers=3, first_k_dense_replace=2)  # of which the dense MLPs are read
    for model, count in ((build("mixtral"), DEPTH), (partly, 1)):
        with relevance_rules(nf.LM(model)):
            TorchHooks(nf.LM(model))(padded_batch()).logits.square().mean().backward()
        routers = [p.grad for name, p in model.named_parameters() if "mlp.gate.weight" in name]
        assert len(routers) == count and all(grad is None or not grad.any() for grad in routers)
    gated = mixture("gpt_oss", vocab_size=len(tokenizer))
    open_experts(gated)
    with pytest.raises(nf.InputError, match="no activation module beside"):
        nf.attribute(nf.LM(gated, tokenizer), corpus, score=nf.scores.relp, progress=False)


def test_neurons_that_no_fact_meets_are_warned_of(tokenizer: Any, corpus: Corpus) -> None:
    lm = nf.LM(build("mixtral", vocab_size=len(tokenizer)), tokenizer)
    facts = Corpus((nf.Example("Anna Berg was born in", "Oslo", subject="Anna Berg"),), "facts")
    subject = len(tokenizer("Anna Berg").input_ids) - 1
    with torch.no_grad():
        acts = TorchHooks(lm)(lm.collate(lm.encode(facts)).inputs).acts[0][0, subject]
    silent = (acts == 0).nonzero().flatten().tolist()
    assert len(silent) == 20  # of 4 experts of 10 neurons 2 are routed to
    chosen = nf.Neurons(frozenset({(0, silent[0])}), (0, 1), 40)
    retain, none = Corpus(corpus.examples[3:], "retain"), "layer 0: none of 1 neurons is active where a subject ends"
    with pytest.warns(match=none), pytest.raises(nf.InputError, match="rank_one changed nothing"):
        nf.erase.rank_one(lm, facts, retain, neurons=chosen, steps=2)


def test_what_cannot_be_opened_is_refused_and_stays() -> None:
    with pytest.raises(nf.InputError, match="LlamaForCausalLM has no routed experts that can be opened"):
        open_experts(build("llama"))
    with pytest.raises(nf.InputError, match=r"^open_experts: model must be Module .*; found LM$"):
        open_experts(nf.LM(build("llama")))  # type: ignore[arg-type]
    model = mixture("mixtral")
    with pytest.raises(nf.InputError, match=r"routed experts and no dense MLP: nf\.open_experts\(model\)"):
        _ = nf.LM(model).sites
    model.model.layers[1].mlp.experts.to("meta")
    with pytest.raises(nf.InputError, match="offloaded"):
        open_experts(model)
    assert len(routed_layers(model)) == DEPTH
    for beyond in ("has_post_expert_norm", "_is_expert_parallel"):
        other = of_layout(True, False, False, True)
        setattr(other, beyond, True)
        assert not routed_layers(nn.ModuleDict({"experts": other}))
        delattr(other, beyond)  # as in versions of transformers that do not state it
        assert routed_layers(nn.ModuleDict({"experts": other}))


def test_experts_that_something_holds_otherwise_are_refused_and_stay() -> None:
    peft = pytest.importorskip("peft")
    pruned, adapted = mixture("mixtral"), mixture("mixtral")
    prune.random_unstructured(pruned.model.layers[1].mlp.experts, "down_proj", amount=0.3)
    settings = peft.LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.gate_up_proj"])
    peft.inject_adapter_in_model(settings, adapted)
    for model, why in ((pruned, "stored otherwise: model.layers.1"), (adapted, r"have adapters \(model.layers.0.mlp")):
        before = logits(model)
        with pytest.raises(nf.InputError, match=why):
            open_experts(model)
        assert torch.equal(logits(model), before)


def test_a_model_of_which_some_experts_are_open_is_refused_until_all_are() -> None:
    model = mixture("mixtral")
    path, experts = next(iter(routed_layers(model).items()))
    model.set_submodule(path, RoutedMLP(experts))
    with pytest.raises(nf.InputError, match="experts that are not open"):
        _ = nf.LM(model).sites
    assert open_experts(model) == DEPTH and nf.LM(model).shape == (DEPTH, 48)


def test_adapters_on_open_experts_are_named_and_kept_by_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = mixture("mixtral")
    open_experts(model)
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["down"]))
    with pytest.raises(nf.InputError, match=r"has adapters \(model.layers.0.mlp.experts.down\)"):
        _ = nf.LM(model).sites
    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    state = adapted.merge_and_unload().state_dict()
    assert state.keys() == kept.keys() and all(torch.equal(state[name], kept[name]) for name in kept)


def test_experts_are_opened_once() -> None:
    model = mixture("mixtral")
    assert open_experts(model) == DEPTH
    sites, before = nf.LM(model).sites, logits(model)
    assert open_experts(model) == DEPTH and nf.LM(model).sites == sites and torch.equal(logits(model), before)


def test_experts_of_as_many_neurons_as_the_residual_stream_is_wide_are_read() -> None:
    model = mixture("mixtral", intermediate_size=WIDTH // 4)
    open_experts(model)
    assert [site.path for site in nf.LM(model).sites] == [f"model.layers.{i}.mlp.experts.down" for i in range(DEPTH)]


@pytest.mark.parametrize("times", [1e200, 1e308])  # act(gate) * up is infinite, and gate and up themselves
def test_an_expert_that_overflows_on_tokens_that_it_does_not_get_is_not_noticed(times: float) -> None:
    torch.manual_seed(0)
    plain, hidden = of_layout(True, False, False, True), 100 * torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        plain.gate_up_proj[-1] *= times / plain.gate_up_proj[-1].abs().max()
    weights, index = torch.rand(TOKENS, EXPERTS - 1, dtype=torch.float64).topk(TOP)
    expected, opened = plain(hidden, index, weights), RoutedMLP(plain)
    assert opened.up(hidden).isfinite().all() == (times < 1e300)
    found = opened(hidden.requires_grad_(), index, weights.requires_grad_())
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in (hidden, weights, *opened.parameters()))


@pytest.mark.parametrize("width", [12, 10])  # of 10 neurons no whole number of blocks is an expert's
@pytest.mark.parametrize("how", TRIPS)
def test_every_expert_is_quantised_by_itself(how: str, width: int) -> None:
    model = mixture("mixtral", intermediate_size=width)
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj[1] *= 100
    plain = {name: weight.clone() for name, weight in model.state_dict().items() if "experts" in name}
    open_experts(model)
    with quantised(nf.LM(model), how):
        found = {name: weight.clone() for name, weight in model.state_dict().items() if name in plain}
    for name, stacked in plain.items():
        for expert, own in enumerate(stacked):
            maps = own.chunk(2) if "gate_up" in name else (own,)
            assert torch.equal(found[name][expert], torch.cat([TRIPS[how](map_) for map_ in maps])), (name, expert)


def test_an_edit_of_experts_says_what_a_model_or_a_checkpoint_lacks(
    tokenizer: Any, corpus: Corpus, tmp_path: Path
) -> None:
    model = mixture("mixtral", vocab_size=len(tokenizer), mlp_bias=False)
    closed, lm = nf.LM(copy.deepcopy(model), tokenizer), nf.LM(model, tokenizer)
    open_experts(model)
    chosen = nf.Neurons(frozenset({(1, 3)}), (0, 1), 48)
    with pytest.raises(nf.InputError, match=r"its experts are not open: nf\.open_experts"):
        nf.erase.ablate(lm, chosen).apply(closed)
    path = next(iter(routed_layers(closed.model)))
    stacked = closed.parameters[f"{path}.down_proj"].detach()
    edit = nf.Edit((nf.Change(f"{path}.down_proj", stacked + 1, stacked),))
    with edit.on(closed), pytest.raises(nf.InputError, match=r"its experts are open.*experts=False"):
        edit.apply(lm)
    kept = nf.Ledger()
    kept.apply(lm, nf.erase.ablate(lm, chosen), request="one")
    for done in (
        kept.replay,
        kept.undo_all,
        lambda other: nf.Ledger().apply(other, kept.entries[0].edit, request="two"),
    ):
        with pytest.raises(nf.InputError, match=r"its experts are not open: nf\.open_experts"):
            done(closed)
    kept.undo(lm, "one")
    mean = nf.erase.ablate(lm, chosen, mode="mean", moments=nf.record(lm, corpus, progress=False))
    with pytest.raises(nf.InputError, match="cannot hold the bias this edit adds"):
        mean.export(lm, tmp_path / "out")


def test_a_neuron_of_a_mixture_goes_by_its_expert_and_its_number_there(tokenizer: Any, corpus: Corpus) -> None:
    lm = nf.LM(build("mixtral", vocab_size=len(tokenizer)), tokenizer)  # 4 experts of 10 neurons
    forget, retain = Corpus(corpus.examples[:3], "forget"), Corpus(corpus.examples[3:], "retain")
    moments = {side.name: nf.record(lm, side, progress=False) for side in (forget, retain)}
    for scores in (
        nf.scores.grad_x_act(moments["forget"], moments["retain"]),
        nf.attribute(lm, forget, score=nf.scores.exact, neurons=[(1, 13)], progress=False),
    ):
        layer, j = divmod(int(scores.values.abs().argmax()), 40)
        assert f"at layer {layer}, expert {j // 10}, neuron {j % 10};" in repr(scores)
    assert "extreme" in repr(scores) and "layer 1, expert 1, neuron 3" in repr(scores)
    assert repr(nf.scores.lens(lm, [(1, 13)])[0]).startswith("layer 1, expert 1, neuron 3: + ")
    chosen = nf.select.experts(lm, scores, 1)
    shifts: dict[str, Any] = {"forget": moments["forget"]["mean"].numpy()}
    (card, *_) = closeups(lm, forget, moments, scores, chosen, {}, {"none": shifts}).cards
    assert card.name == "layer 1, expert 1, neuron 3"
    found = {picture.title: picture for picture in map_pictures(scores, chosen, None, ())}
    assert found["Map of the neurons"].table.rows[0][:3:2] == (card.name, "yes")
    marks = found["Map of the neurons"].figure.data[1]
    assert [1, 3] in marks.customdata and "expert %{customdata[0]}, neuron" in marks.hovertemplate
    experts = found["The experts"]
    assert experts.table.rows[0] == ("layer 1, expert 1", f"{scores.values[1, 13]:.4g}", "10")
    assert experts.figure.data[0].z[1][1] == scores.values[1].sum() and len(experts.figure.data[0].z[0]) == 4
    plain = nf.Scores(scores.values, "any", "large", (0, 1))
    assert "layer 1, neuron 13" in repr(plain) and len(map_pictures(plain, chosen, None, ())) == 3
    with pytest.raises(nf.InputError, match="nothing to draw by expert"):
        nf.figures.by_expert(plain)


def test_second_moments_that_do_not_fit_are_refused_before_the_work(
    tokenizer: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = nf.LM(build("mixtral", vocab_size=len(tokenizer)), tokenizer)
    facts = Corpus((nf.Example("Anna Berg was born in", "Oslo", subject="Anna Berg"),), "facts")
    need = 8 * 3 * 40**2  # of one layer, and twice while it is solved for
    monkeypatch.setattr(second_moments, "free_bytes", lambda _device: need)
    second_moments.check_room({0: torch.arange(40)})
    monkeypatch.setattr(second_moments, "free_bytes", lambda _device: need - 1)
    for operator in (nf.erase.rank_one, nf.erase.memit, nf.erase.alpha_edit):
        with pytest.raises(nf.InputError, match=r"second moments of 40 neurons of a layer need .*give neurons="):
            operator(lm, facts, Corpus(corpus.examples[3:], "retain"))


def test_the_benchmark_measures_one_model_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    import mixtures

    monkeypatch.setitem(mixtures.SHAPES, "tiny", (4, 2, 8, 16, 1, (2, 6)))
    made, tokens = mixtures.models("tiny", "cpu"), torch.arange(12).view(2, 6)
    with torch.no_grad():
        found = {kind: model(tokens).logits for kind, model in made.items()}
    torch.testing.assert_close(found["opened"], found["mixture"], rtol=1e-5, atol=1e-5)
    assert nf.LM(made["opened"]).shape == nf.LM(made["dense"]).shape == (1, 32)
    row = mixtures.measured("tiny", 1, "cpu")
    for what in ("ms", "MB"):
        assert row[f"{what}: opened/mixture"] == row[f"{what} opened"] / row[f"{what} mixture"] > 0


def test_whole_experts_are_those_whose_neurons_sum_highest(corpus: Corpus) -> None:
    lm = nf.LM(build("mixtral"))  # 4 experts of 10 neurons
    values = torch.randn(2, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = nf.Scores(values, "any", "large", (0, 1))
    sums = {(layer, e): float(values[layer, 10 * e : 10 * e + 10].sum()) for layer in (0, 1) for e in range(4)}
    best = sorted(sums, key=lambda place: sums[place])[-3:]
    chosen = nf.select.experts(lm, scores, 3)
    assert chosen.members == frozenset((layer, 10 * e + j) for layer, e in best for j in range(10))
    assert len(nf.select.experts(lm, scores, 0.5)) == 40
    with pytest.raises(nf.InputError, match="cannot select 9 of 8 experts"):
        nf.select.experts(lm, scores, 9)
    with pytest.raises(nf.InputError, match="LlamaForCausalLM has none whose neurons are read"):
        nf.select.experts(nf.LM(build("llama")), scores)
