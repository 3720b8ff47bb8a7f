"""A model's MLP neurons, found by structure; nothing is looked up by model family.

A neuron is one input of an MLP's output projection: after the non-linearity and after the gate. Its write
weights are the column (row, in GPT-2's `Conv1D`) of the output projection that it multiplies, its read
weights the rows of the projections that feed it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

from torch import Tensor, nn

from neuronforget.errors import InputError, warn
from neuronforget.models.kinds import adapted_maps, check_weights
from neuronforget.models.maps import Site, output_maps, stored
from neuronforget.models.routed import OWN, RoutedMLP, has_opened, open_experts, routed_layers

#: Whose neurons are meant: of routed experts, of MLPs that all tokens share beside these, or of dense MLPs.
Kind = Literal["routed", "shared", "dense"]
#: Whose neurons are meant in a mixture: its routed experts' (True), its dense MLPs' (False), its shared experts'.
Experts = bool | Literal["shared"]


#: Words in a class or attribute name below the block, the family's own name apart, of what is routed to.
_ROUTED = ("moe", "expert")
#: Of what is no MLP of the model's own, and of all that is no dense one.
_APART = ("attn", "attention", "adapter")
_NOT_MLP = (*_ROUTED, *_APART)
#: Of what all tokens share beside routed experts.
_SHARED = ("shared",)


def check_sites(model: nn.Module, sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """Return sites that were named by hand. Raises InputError for one that the model has not."""
    modules, weights = dict(model.named_modules()), dict(model.named_parameters())
    for site in sites:
        place, weight = modules.get(site.path), weights.get(site.write.name)
        if place is None or weight is None or _narrow(weight, site):
            what = f"{site.path!r} with {site.d_mlp} neurons in dimension {site.write.dim} of {site.write.name!r}"
            raise InputError(f"{type(model).__name__} has no such site: {what}; named_parameters() lists what there is")
    return tuple(sites)


def _narrow(weight: Tensor, site: Site) -> bool:
    """Has a weight too few rows or columns for the neurons? Of a sharded model a process may hold none of it."""
    return weight.numel() > 0 and weight.shape[site.write.dim] < site.write.offset + site.d_mlp


def find_sites(model: nn.Module, kind: Kind | None = None) -> tuple[Site, ...]:
    """Find each block's output projection [d_mlp -> d_model] and the projections that feed it.

    It is the linear map into the residual width whose siblings map the residual width to its own input
    width (once or twice: gated; or to double that width: fused gate and up). Attention, routed experts and
    adapters are left out; of several such maps in a block (Gemma 4 gates its layer embeddings like an MLP)
    the widest is meant. Without `kind` routed experts are meant where they were opened (`open_experts`), else dense
    MLPs. Warns of layers that have another kind. Raises InputError where there is no such map, two fit equally well,
    or widths differ.
    """
    name, opened = type(model).__name__, has_opened(model)
    if opened and routed_layers(model):
        raise InputError(f"{name} has experts that are not open (interrupted?): call nf.open_experts(model)")
    kind = kind or ("routed" if opened else "dense")
    blocks, sites = _sites(model, kind)
    if sites:
        _check_stored(model, sites)
        if others := sum(_has_others(block, sites[0].d_model, _family(model), kind) for block in blocks):
            warn(_of_others(model, others, len(blocks), len(sites), kind))
        return sites
    if kind == "shared":
        raise InputError(f"{name} has no MLP that all tokens share beside routed experts")
    if adapted := adapted_maps(model):
        raise InputError(
            f"{name} has adapters ({adapted[0]}) and no dense MLP beside them: merge them into it first "
            "(peft's merge_and_unload)"
        )
    if routed_layers(model):
        raise InputError(f"{name} has routed experts and no dense MLP: nf.open_experts(model) makes them readable")
    raise InputError(
        f"{name} has no MLP that can be read: neurons are the inputs of an MLP's output projection; "
        "if you know them, name them: load(..., sites=) or LM(..., sites_override=)"
    )


def experts_of_a_layer(model: nn.Module, sites: tuple[Site, ...]) -> int:
    """Return how many experts each layer has. Raises InputError unless the sites are theirs, as many in all layers."""
    counts = {experts.layout.count for experts in _experts_at(model, sites)}
    if len(counts) != 1:
        found = f"layers of {sorted(counts)} experts" if counts else "none whose neurons are read (nf.open_experts)"
        raise InputError(f"whole experts need as many in each layer; {type(model).__name__} has {found}")
    return counts.pop()


def expert_info(model: nn.Module, sites: tuple[Site, ...]) -> dict[str, int]:
    """Return what is told with numbers of a mixture: how many neurons each expert has, if the sites are theirs."""
    experts = next(_experts_at(model, sites), None)
    return {} if experts is None else {OWN: len(experts.up.weight) // experts.layout.count}


def _experts_at(model: nn.Module, sites: tuple[Site, ...]) -> Iterator[RoutedMLP]:
    parents = (model.get_submodule(site.path.rpartition(".")[0]) for site in sites)
    return (parent for parent in parents if isinstance(parent, RoutedMLP))


def meant_sites(model: nn.Module, experts: Experts | None, sites: tuple[Site, ...] | None) -> tuple[Site, ...] | None:
    """Open the experts if their neurons are meant; return sites that `find_sites` would not find by itself, if any."""
    if experts == "shared":
        if sites is not None:
            raise InputError("experts='shared' finds the sites by itself: give sites= without it")
        return find_sites(model, "shared")
    if experts or (experts is None and sites is None and mostly_routed(model)):
        open_experts(model)
    return sites


def mostly_routed(model: nn.Module) -> bool:
    """Have more layers routed experts that can be opened than a dense MLP that can be read?"""
    if not (routed := len(routed_layers(model))):
        return False
    with suppress(InputError):  # two maps that fit equally well, say: then experts are all there is
        return routed > len(_sites(model, "dense")[1])
    return True


def _sites(model: nn.Module, kind: Kind) -> tuple[list[nn.Module], tuple[Site, ...]]:
    """The blocks and their sites of a kind; none where there are none."""
    name, family, config = type(model).__name__, _family(model), model.config.get_text_config()  # type: ignore[union-attr, operator]
    depth = getattr(config, "num_hidden_layers", None)
    width = getattr(config, "hidden_size", None) or model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    for path, blocks in _lists_of(model, depth):
        found = [_block_site(f"{path}.{i}", i, block, width, family, kind) for i, block in enumerate(blocks)]
        sites = tuple(site for site in found if site is not None)
        if len({site.d_mlp for site in sites}) > 1:
            raise InputError(f"{name}: layers of different MLP widths are not supported")
        if sites:
            return list(blocks), sites
    return [], ()


def _of_others(model: nn.Module, others: int, depth: int, read: int, kind: Kind) -> str:
    """What is not read, and how it could be."""
    name, left = type(model).__name__, "no neuron of theirs is scored or edited, only those of"
    where = f"in {others} of its {depth} layers"
    if kind == "shared":
        return f"{name} has routed experts or dense MLPs {where}: {left} {read} layers' shared MLPs"
    if kind == "routed":
        instead = "; load(..., experts='shared') reads the shared ones instead" if _sites(model, "shared")[1] else ""
        return f"{name} has dense or shared MLPs {where}: {left} {read} layers' routed experts{instead}"
    how = "load(..., experts=True), or nf.open_experts(model) before nf.LM,"
    instead = f"; {how} reads theirs instead" if routed_layers(model) else ""
    return f"{name} routes to experts {where}: {left} {read} layers' dense MLPs{instead}"


def _lists_of(model: nn.Module, depth: int | None) -> list[tuple[str, nn.ModuleList]]:
    """The lists of so many modules, the decoder's first: the tower of another modality may be as deep and as wide."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    own = {id(module) for module in decoder.modules()} if isinstance(decoder, nn.Module) else set()
    found = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    return sorted(found, key=lambda one: id(one[1]) not in own)


def _check_stored(model: nn.Module, sites: tuple[Site, ...]) -> None:
    """Raise InputError unless every weight of a neuron is a parameter of its own, in the shape its module states."""
    names = [p.name for site in sites for p in (site.write, *site.read) if p.name.endswith(".weight")]
    modules = [model.get_submodule(name.removesuffix(".weight")) for name in names]
    check_weights(model, names, [stored(module) for module in modules])


def _block_site(path: str, layer: int, block: nn.Module, d_model: int, family: str, kind: Kind) -> Site | None:
    found: list[Site] = []
    for name, parent in block.named_modules():
        if _is_of(kind, block, name, parent, family):
            found += output_maps(f"{path}.{name}".rstrip("."), layer, parent, d_model)
    widest = [site for site in found if site.d_mlp == max(other.d_mlp for other in found)]
    if len(widest) > 1:
        paths = " and ".join(site.path for site in widest)
        raise InputError(
            f"{paths} fit an MLP's output equally well; say which it is: load(..., sites=) or LM(..., sites_override=)"
        )
    return widest[0] if widest else None


def _family(model: nn.Module) -> str:
    """What the model's class is called before its task, as its modules' classes are: a Qwen3MoeMLP may be dense."""
    own = (kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    return re.split("For[A-Z]|LMHead|Model", next(own, type(model)).__name__)[0]


def _has_others(block: nn.Module, d_model: int, family: str, kind: Kind) -> bool:
    """Has a block neurons of other kinds than what is read?"""
    others = {n: m for n, m in block.named_modules() if not _is_of(kind, block, n, m, family)}
    if kind != "routed":
        parents = {name.rpartition(".")[0] for name, _ in block.named_parameters()}
        if any(_is_one_of(_ROUTED, block, name, family) for name in parents & others.keys()):
            return True
    dense = (m for n, m in others.items() if not _is_one_of(_APART, block, n, family))
    return kind != "dense" and any(any(output_maps("", 0, m, d_model)) for m in dense if not isinstance(m, RoutedMLP))


def _is_of(kind: Kind, block: nn.Module, name: str, module: nn.Module, family: str) -> bool:
    """Can a module below the block have neurons of this kind?"""
    if kind == "routed" or isinstance(module, RoutedMLP):
        return kind == "routed" and isinstance(module, RoutedMLP)
    if kind == "shared":
        return _is_one_of(_SHARED, block, name, family) and not _is_one_of(_APART, block, name, family)
    return not _is_one_of(_NOT_MLP, block, name, family)


def _is_one_of(kinds: tuple[str, ...], block: nn.Module, name: str, family: str) -> bool:
    """Does an attribute or a class, from below the block down to the named submodule, bear one of these words?"""
    words = name.split(".") if name else []
    classes = [type(block.get_submodule(".".join(words[:i]))).__name__ for i in range(1, len(words) + 1)]
    named = (*words, *(own.removeprefix(family) for own in classes))
    return any(kind in word.lower() for word in named for kind in kinds)
