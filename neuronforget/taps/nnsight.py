"""Tap by nnsight. Importing it patches `Tensor.backward` and mounts `.save` on `object`: only here, only on use.

Tracing replaces the `forward` of every module and leaves it so: it gets a twin that shares every tensor with the model.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from neuronforget.models import LM, shared_twin
from neuronforget.taps.protocol import NO_EDITS, Pass, Replace, by_example


class Trace:
    """Tap by an nnsight trace; gradients are taken outside it (inside, graphs stay alive in cycles)."""

    name = "nnsight"

    def __init__(self, lm: LM) -> None:
        from nnsight import NNsight

        self.lm, self.twin = lm, shared_twin(lm.model)
        self.net = NNsight(self.twin)

    def __call__(self, batch: Mapping[str, Tensor], edits: Mapping[int, Replace] = NO_EDITS) -> Pass:
        net, acts = self.net, {}
        if self.twin.training != self.lm.model.training:
            self.twin.train(self.lm.model.training)
        with net.trace(**batch):
            for site in self.lm.sites:  # lowest first: a trace meets its modules in the order of execution
                point = net.get(site.path)
                act = by_example(point.input, batch)
                act = edits[site.layer](act) if site.layer in edits else act
                point.input = act.view_as(point.input)
                acts[site.layer] = act.save()  # type: ignore[attr-defined]
            logits = net.output.logits.save()  # type: ignore[attr-defined]
        return Pass(logits, acts)
