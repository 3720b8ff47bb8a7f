"""Tap by nnsight. Importing nnsight patches `Tensor.backward` and mounts `.save` on `object`: only here, only on use."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from neuronforget.models import LM
from neuronforget.taps.protocol import NO_EDITS, Pass, Replace


class Trace:
    """Tap by an nnsight trace; gradients are taken outside it (inside, graphs stay alive in cycles)."""

    name = "nnsight"

    def __init__(self, lm: LM) -> None:
        from nnsight import NNsight

        self.lm, self.net = lm, NNsight(lm.model)

    def __call__(self, batch: Mapping[str, Tensor], edits: Mapping[int, Replace] = NO_EDITS) -> Pass:
        net, paths = self.net, {site.layer: site.path for site in self.lm.sites}
        with net.trace(**batch) as tracer:
            cache = tracer.cache(
                modules=[f"model.{path}" for path in paths.values()],
                device=None,
                detach=False,
                include_output=False,
                include_inputs=True,
            )
            for layer in sorted(edits):
                site = net.get(paths[layer])
                site.input = edits[layer](site.input)
            logits = net.output.logits.save()
        return Pass(logits, {layer: cache[f"model.{path}"].input for layer, path in paths.items()})
