"""Pictures of where the knowledge lies: the map of the scores, their ranks, and the selection by layer and expert."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuronforget import figures
from neuronforget.models.routed import neuron_name
from neuronforget.neurons import Neurons
from neuronforget.reporting.pictures import Picture
from neuronforget.reporting.tables import Table
from neuronforget.scores import Scores


def map_pictures(
    scores: Scores, neurons: Neurons | None, truth: Neurons | None, controls: Sequence[Neurons]
) -> list[Picture]:
    """Return the map of the scores, their rank profile, and the selection by layer."""
    top = scores.ranked.flatten().sort(descending=True, stable=True).indices[:40].tolist()
    width = scores.values.shape[1]
    best = [(scores.layers[i // width], i % width) for i in top]
    rows = [
        (neuron_name(layer, j, scores.own), f"{scores.values[scores.layers.index(layer), j]:.4g}",
         _mark(neurons, (layer, j)), _mark(truth, (layer, j)))
        for layer, j in best
    ]  # fmt: skip
    table = Table(
        "The forty neurons that have most to do with forget, by score",
        ("neuron", scores.name, "selected", "true"),
        tuple(rows),
    )
    found = [
        Picture("Map of the neurons", _map_caption(scores), figures.attribution_map(scores, neurons, truth), table),
        Picture(
            "Rank profile",
            "Scores in descending order, one line per layer. A steep start means that few neurons carry most of the "
            "score. Crosses are true neurons, where these are known.",
            figures.rank_profile(scores, truth),
            _by_rank(scores),
        ),
    ]
    if scores.own:
        found.append(_by_expert(scores, neurons))
    if neurons is not None:
        held = [s.mask().sum(1).tolist() for s in (neurons, *((truth, neurons & truth) if truth else ()))]
        counts = [(str(layer), *map(str, row)) for layer, *row in zip(neurons.layers, *held, strict=True)]
        columns = ("layer", "selected", *(("true", "selected and true") if truth else ()))
        caption = "Neurons selected in each layer and, where the true neurons are known, how many of them are selected."
        found.append(
            Picture(
                "The selection by layer",
                caption,
                figures.layer_share(neurons, controls, truth),
                Table("Neurons by layer", columns, tuple(counts)),
            )
        )
    return found


def _by_expert(scores: Scores, neurons: Neurons | None) -> Picture:
    """The scores of each expert's neurons together, and how many of these are selected."""
    sums, ranked = (v.unflatten(1, (-1, scores.own)).sum(2) for v in (scores.values, scores.ranked))
    held = None if neurons is None else neurons.mask().unflatten(1, (-1, scores.own)).sum(2)
    best = ranked.flatten().sort(descending=True, stable=True).indices[:40].tolist()
    places = [divmod(place, sums.shape[1]) for place in best]
    rows = [
        (f"layer {scores.layers[i]}, expert {e}", f"{sums[i, e]:.4g}", "" if held is None else str(int(held[i, e])))
        for i, e in places
    ]
    return Picture(
        "The experts",
        f"The scores of each expert's {scores.own} neurons, summed. Whole experts are selected by this sum.",
        figures.by_expert(scores),
        Table("The forty experts that have most to do with forget", ("expert", scores.name, "selected"), tuple(rows)),
    )


def _by_rank(scores: Scores) -> Table:
    """Scores at ranks 1, 2, 5, 10, 20 ... of every layer, and the last."""
    width = scores.values.shape[1]
    ranks = [n for power in range(len(str(width))) for n in (10**power, 2 * 10**power, 5 * 10**power) if n < width]
    rows = []
    for layer, values, ranked in zip(scores.layers, scores.values, scores.ranked, strict=True):
        falling = values[ranked.argsort(descending=True, stable=True)]
        rows.append((str(layer), *(f"{falling[rank - 1]:.4g}" for rank in (*ranks, width))))
    return Table(f"{scores.name} by rank within the layer", ("layer", *map(str, (*ranks, width))), tuple(rows))


def _map_caption(scores: Scores) -> str:
    limit = float(np.quantile(scores.values.abs().numpy(), figures.QUANTILE))
    sign = scores.sign[0].upper() + scores.sign[1:]
    return f"{sign}. The colours end at ±{limit:.3g}, the {figures.QUANTILE:.1%} quantile of the magnitudes."


def _mark(neurons: Neurons | None, neuron: tuple[int, int]) -> str:
    return "" if neurons is None else "yes" if neuron in neurons else "no"
