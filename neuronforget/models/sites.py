"""A model's MLP neurons, found by structure; nothing is looked up by model family.

A neuron is one input of an MLP's output projection: after the non-linearity and after the gate. Its write
weights are the column (row, in GPT-2's `Conv1D`) of the output projection that it multiplies, its read
weights the rows of the projections that feed it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor, nn

from neuronforget.errors import InputError, warn
from neuronforget.models.kinds import adapted_maps, check_weights
from neuronforget.models.routed import RoutedMLP, has_opened, routed_layers


@dataclass(frozen=True)
class Part:
    """Where neuron j's weights lie in one parameter: index `offset + j` of dimension `dim`."""

    name: str
    dim: int
    offset: int = 0

    def index(self, neurons: Tensor) -> Tensor:
        """Return the positions along `dim` of the given neurons."""
        return neurons + self.offset


@dataclass(frozen=True)
class Site:
    """The neurons of one layer: `path` is the output projection, whose input they are."""

    layer: int
    path: str
    d_mlp: int
    d_model: int
    write: Part
    read: tuple[Part, ...]

    @property
    def bias(self) -> str:
        """Name of the output projection's bias, whether or not the model has one."""
        return f"{self.path}.bias"


#: Words in a class or attribute name below the block, the family's own name apart, of what is routed to.
_ROUTED = ("moe", "expert")
#: Of what is no MLP of the model's own, and of all that is no dense one.
_APART = ("attn", "attention", "adapter")
_NOT_MLP = (*_ROUTED, *_APART)


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


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Find each block's output projection [d_mlp -> d_model] and the projections that feed it.

    It is the linear map into the residual width whose siblings map the residual width to its own input
    width (once or twice: gated; or to double that width: fused gate and up). Attention, routed experts and
    adapters are left out; of several such maps in a block (Gemma 4 gates its layer embeddings like an MLP)
    the widest is meant. Where experts were opened (`open_experts`), they alone are meant. Warns of layers that have
    the other kind. Raises InputError where there is no such map, two fit equally well, or widths differ.
    """
    kind, opened = type(model).__name__, has_opened(model)
    if opened and routed_layers(model):
        raise InputError(f"{kind} has experts that are not open (interrupted?): call nf.open_experts(model)")
    blocks, sites = _sites(model, opened)
    if sites:
        _check_stored(model, sites)
        if others := sum(_has_others(block, sites[0].d_model, _family(model), opened) for block in blocks):
            warn(_of_others(model, others, len(blocks), len(sites), opened))
        return sites
    if adapted := adapted_maps(model):
        raise InputError(
            f"{kind} has adapters ({adapted[0]}) and no dense MLP beside them: merge them into it first "
            "(peft's merge_and_unload)"
        )
    if routed_layers(model):
        raise InputError(f"{kind} has routed experts and no dense MLP: nf.open_experts(model) makes them readable")
    raise InputError(
        f"{kind} has no MLP that can be read: neurons are the inputs of an MLP's output projection; "
        "if you know them, name them: load(..., sites=) or LM(..., sites_override=)"
    )


def mostly_routed(model: nn.Module) -> bool:
    """Have more layers routed experts that can be opened than a dense MLP that can be read?"""
    if not (routed := len(routed_layers(model))):
        return False
    with suppress(InputError):  # two maps that fit equally well, say: then experts are all there is
        return routed > len(_sites(model, opened=False)[1])
    return True


def _sites(model: nn.Module, opened: bool) -> tuple[list[nn.Module], tuple[Site, ...]]:
    """The blocks and their sites, of opened experts or of dense MLPs; none where there are none."""
    kind, family, config = type(model).__name__, _family(model), model.config.get_text_config()  # type: ignore[union-attr, operator]
    depth = getattr(config, "num_hidden_layers", None)
    width = getattr(config, "hidden_size", None) or model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    for path, blocks in _lists_of(model, depth):
        found = [_block_site(f"{path}.{i}", i, block, width, family, opened) for i, block in enumerate(blocks)]
        sites = tuple(site for site in found if site is not None)
        if len({site.d_mlp for site in sites}) > 1:
            raise InputError(f"{kind}: layers of different MLP widths are not supported")
        if sites:
            return list(blocks), sites
    return [], ()


def _of_others(model: nn.Module, others: int, depth: int, read: int, opened: bool) -> str:
    """What is not read, and how it could be."""
    kind = type(model).__name__
    if opened:
        what = f"{kind} has dense or shared MLPs in {others} of its {depth} layers"
        return f"{what}: no neuron of theirs is scored or edited, only those of {read} layers' routed experts"
    where = f"{kind} routes to experts in {others} of its {depth} layers"
    how = "load(..., experts=True), or nf.open_experts(model) before nf.LM,"
    instead = f"; {how} reads theirs instead" if routed_layers(model) else ""
    return f"{where}: no neuron of theirs is scored or edited, only those of {read} layers' dense MLPs{instead}"


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
    check_weights(model, names, [_stored(module) for module in modules])


def _stored(module: nn.Module) -> tuple[int, int]:
    """The shape of a linear map's weight: `nn.Linear` keeps outputs first."""
    inputs, outputs = _features(module)  # type: ignore[misc]
    return (outputs, inputs) if isinstance(module, nn.Linear) else (inputs, outputs)


def _block_site(path: str, layer: int, block: nn.Module, d_model: int, family: str, opened: bool) -> Site | None:
    found: list[Site] = []
    for name, parent in block.named_modules():
        if isinstance(parent, RoutedMLP) if opened else not _is_one_of(_NOT_MLP, block, name, family):
            found += _output_maps(f"{path}.{name}".rstrip("."), layer, parent, d_model)
    widest = [site for site in found if site.d_mlp == max(other.d_mlp for other in found)]
    if len(widest) > 1:
        paths = " and ".join(site.path for site in widest)
        raise InputError(
            f"{paths} fit an MLP's output equally well; say which it is: load(..., sites=) or LM(..., sites_override=)"
        )
    return widest[0] if widest else None


def _output_maps(path: str, layer: int, parent: nn.Module, d_model: int) -> Iterator[Site]:
    """Every child of `parent` that can be an output projection, all other linear children feeding it."""
    children = dict(parent.named_children())
    linears = {n: shape for n, child in children.items() if (shape := _features(child)) is not None}
    for name, (d_mlp, out) in linears.items():
        if isinstance(parent, RoutedMLP) and name != "down":
            continue
        feeds = {n: shape for n, shape in linears.items() if n != name}
        if out != d_model or not feeds or any(inputs != d_model for inputs, _ in feeds.values()):
            continue
        widths = [outputs for _, outputs in feeds.values()]
        if set(widths) <= {d_mlp, 2 * d_mlp} and sum(widths) <= 2 * d_mlp:
            read = [part for n in feeds for part in _read_parts(f"{path}.{n}", children[n], d_mlp)]
            write = Part(f"{path}.{name}.weight", 1 if isinstance(children[name], nn.Linear) else 0)
            yield Site(layer, f"{path}.{name}", d_mlp, d_model, write, tuple(read))


def _family(model: nn.Module) -> str:
    """What the model's class is called before its task, as its modules' classes are: a Qwen3MoeMLP may be dense."""
    own = (kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    return re.split("For[A-Z]|LMHead|Model", next(own, type(model)).__name__)[0]


def _has_others(block: nn.Module, d_model: int, family: str, opened: bool) -> bool:
    """Has a block experts beside what is read, or, if they are read, a dense MLP or experts that all tokens share?"""
    if not opened:
        return any(_is_one_of(_ROUTED, block, n.rpartition(".")[0], family) for n, _ in block.named_parameters())
    parents = (m for n, m in block.named_modules() if not _is_one_of(_APART, block, n, family))
    return any(any(_output_maps("", 0, m, d_model)) for m in parents if not isinstance(m, RoutedMLP))


def _is_one_of(kinds: tuple[str, ...], block: nn.Module, name: str, family: str) -> bool:
    """Does an attribute or a class, from below the block down to the named submodule, bear one of these words?"""
    words = name.split(".") if name else []
    classes = [type(block.get_submodule(".".join(words[:i]))).__name__ for i in range(1, len(words) + 1)]
    named = (*words, *(own.removeprefix(family) for own in classes))
    return any(kind in word.lower() for word in named for kind in kinds)


def _features(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear map, Hugging Face's transposed `Conv1D` included."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return tuple(module.weight.shape)  # type: ignore[arg-type, return-value]
    return None


def _read_parts(path: str, module: nn.Module, d_mlp: int) -> Iterator[Part]:
    dim = 0 if isinstance(module, nn.Linear) else 1
    outputs = _features(module)[1]  # type: ignore[index]
    for offset in range(0, outputs, d_mlp):
        yield Part(f"{path}.weight", dim, offset)
        if getattr(module, "bias", None) is not None:
            yield Part(f"{path}.bias", 0, offset)
