"""Neurons as weights: where a parameter holds theirs, and which linear maps of a module are an MLP's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from neuronforget.models.routed import RoutedMLP


@dataclass(frozen=True)
class Part:
    """Where neuron j's weights lie in one parameter: index `offset + j` of dimension `dim`."""

    name: str
    dim: int
    offset: int = 0

    def index(self, neurons: Tensor) -> Tensor:
        """Return the positions along `dim` of the given neurons."""
        return neurons + self.offset

    def rows(self, parameters: Mapping[str, Tensor], count: int) -> Tensor:
        """Return the weights of `count` neurons, a row each, as a view of the parameter without its gradient."""
        weight = parameters[self.name].detach()
        return (weight if self.dim == 0 else weight.T)[self.offset : self.offset + count]


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


def output_maps(path: str, layer: int, parent: nn.Module, d_model: int) -> Iterator[Site]:
    """Every child of `parent` that can be an output projection, all other linear children feeding it."""
    children = dict(parent.named_children())
    linears = {n: shape for n, child in children.items() if (shape := features(child)) is not None}
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


def features(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear map, Hugging Face's transposed `Conv1D` included."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return tuple(module.weight.shape)  # type: ignore[arg-type, return-value]
    return None


def stored(module: nn.Module) -> tuple[int, int]:
    """The shape of a linear map's weight: `nn.Linear` keeps outputs first."""
    inputs, outputs = features(module)  # type: ignore[misc]
    return (outputs, inputs) if isinstance(module, nn.Linear) else (inputs, outputs)


def _read_parts(path: str, module: nn.Module, d_mlp: int) -> Iterator[Part]:
    dim = 0 if isinstance(module, nn.Linear) else 1
    outputs = features(module)[1]  # type: ignore[index]
    for offset in range(0, outputs, d_mlp):
        yield Part(f"{path}.weight", dim, offset)
        if getattr(module, "bias", None) is not None:
            yield Part(f"{path}.bias", 0, offset)
