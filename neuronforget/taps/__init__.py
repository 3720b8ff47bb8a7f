"""Read or replace neuron activations: one protocol, three implementations that agree."""

from __future__ import annotations

from importlib.util import find_spec

from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.taps.protocol import NO_EDITS, Pass, Tap
from neuronforget.taps.torch_hooks import TorchHooks

NAMES = ("transformer_lens", "torch_hooks", "nnsight")

__all__ = ["NAMES", "NO_EDITS", "Pass", "Tap", "TorchHooks", "open_tap"]


def open_tap(lm: LM, name: str | None = None) -> Tap:
    """Return a tap on the model as it is now (build another after `.to()`, a resize, a guard on or off).

    Without a name: TransformerLens where it is installed and knows the model's neurons, else plain hooks.
    Raises InputError for an unknown name, a missing library, or a model that the named library does not know.
    """
    if name is not None and name not in NAMES:
        raise InputError(f"unknown tap {name!r}: use one of {', '.join(NAMES)}")
    library = {"transformer_lens": "transformer_lens", "nnsight": "nnsight"}.get(name or "transformer_lens")
    if name == "torch_hooks":
        return TorchHooks(lm)
    if library and find_spec(library) is None:
        if name is None:
            return TorchHooks(lm)
        raise InputError(f"tap {name!r} needs {library}: pip install neuronforget, or use tap='torch_hooks'")
    if name == "nnsight":
        from neuronforget.taps.nnsight import Trace

        return Trace(lm)
    from neuronforget.taps.lens import Lens

    try:
        return Lens(lm)
    except InputError:
        if name is None:
            return TorchHooks(lm)
        raise
