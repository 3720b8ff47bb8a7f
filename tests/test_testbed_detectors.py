"""What a testbed's weights give away: each detector against a computation of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from beds import bed
from scipy.optimize import minimize
from scipy.stats import entropy, kurtosis, mannwhitneyu

from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.testbed.detectors import DIRECTIONS, RIDGE, Layer, auroc, combined, detectors, logistic


def random_labels(lm: LM, count: int = 8, seed: int = 0) -> Neurons:
    mask, generator = torch.zeros(lm.shape, dtype=torch.bool), torch.Generator().manual_seed(seed)
    for row in mask:
        row[torch.randperm(lm.shape[1], generator=generator)[:count]] = True
    return Neurons.from_mask(mask, (0, 1))


def test_the_area_is_the_chance_that_a_true_neuron_exceeds_another_of_its_layer() -> None:
    values, mask = torch.tensor([[4.0, 3, 2, 2], [0.0, 9, 1, 2]]), torch.zeros(2, 4, dtype=torch.bool)
    mask[0, 0] = mask[0, 2] = mask[1, 1] = True
    # layer 0: 4 beats both others, 2 ties one and loses to 3; layer 1: 9 beats all
    assert auroc(values, mask)[0] == round((1 + 0.25 + 1) / 3, 3)
    values = torch.randn(1, 60, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(60)[None] < 20
    rank = mannwhitneyu(values[mask], values[~mask]).statistic / (20 * 40)
    assert auroc(values, mask)[0] == round(float(rank), 3)


def test_the_interval_covers_chance_as_often_as_it_says() -> None:
    generator, mask = torch.Generator().manual_seed(0), (torch.arange(60) < 15).expand(3, 60)
    found = [auroc(torch.randn(3, 60, generator=generator), mask) for _ in range(400)]
    covered = np.mean([low <= 0.5 <= high for _, low, high in found])
    assert 0.91 < covered < 0.98
    widths, areas = [high - low for _, low, high in found], [area for area, _, _ in found]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(areas), rel=0.15)


def test_properties_are_what_their_names_say(lm: LM) -> None:
    site, j = lm.sites[1], 7
    gate, up = (lm.parameters[p.name].detach().double() for p in site.read if p.name.endswith("weight"))
    write, head = lm.parameters[site.write.name].detach().double().T, lm.model.get_output_embeddings().weight
    found = {name: float(values[j]) for name, values in Layer.of(lm, site).properties().items()}
    row, logits = write[j].numpy(), (head.detach().double() @ write[j]).numpy()
    to_words = torch.cosine_similarity(head.detach().double(), gate[j][None], dim=1)
    expected = {
        "gate norm": np.linalg.norm(gate[j]), "up norm": np.linalg.norm(up[j]), "write norm": np.linalg.norm(row),
        "write x read norm": np.linalg.norm(row) * np.linalg.norm(up[j]),
        "cosine up, write": float(up[j] @ write[j]) / np.linalg.norm(up[j]) / np.linalg.norm(row),
        "write maximum": np.abs(row).max() / np.linalg.norm(row),
        "write L1/L2": np.abs(row).sum() / np.linalg.norm(row),
        "gate nearest neighbour": max(
            float(gate[j] @ gate[k] / gate[j].norm() / gate[k].norm()) for k in range(len(gate)) if k != j
        ),
        "gate nearest word": to_words.max(), "gate spread over words": to_words.std(),
        "write mean likeness": torch.cosine_similarity(write, write[j][None], dim=1).mean(),
        "up sum": up[j].sum() / up[j].norm(),
        "highest logit": logits.max(),
        "entropy of logits": entropy(np.exp(logits) / np.exp(logits).sum()),
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-6), name
    further = {name: float(values[j]) for name, values in Layer.of(lm, site).unmatched().items()}
    hat = write.numpy() @ np.linalg.pinv(write.numpy())
    assert further["write leverage"] == pytest.approx(float(hat[j, j]), rel=1e-6)
    likeness = torch.cosine_similarity(gate, gate[j][None], dim=1)
    assert further["gate farthest neighbour"] == pytest.approx(float(likeness.min()), rel=1e-6)
    words = head.detach().double().numpy()
    common = np.linalg.eigh(words.T @ words)[1][:, -DIRECTIONS:]
    share = np.square(up[j].numpy() @ common).sum() / float(up[j].square().sum())
    assert further["up in the words' main directions"] == pytest.approx(share, rel=1e-6)
    centred = kurtosis(np.concatenate([row, -row]), fisher=False)  # of the entries about zero
    assert found["write kurtosis"] == pytest.approx(centred, rel=1e-6)
    directions = np.linalg.eigh(up.T.numpy() @ up.numpy())[1][:, -DIRECTIONS:]
    share = np.square(up[j].numpy() @ directions).sum() / float(up[j].square().sum())
    assert found["up in main directions"] == pytest.approx(share, rel=1e-6)


def test_the_regression_is_the_ridge_optimum() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(80, 4, generator=generator).double(), torch.rand(80, generator=generator) < 0.3
    x, y = features.numpy(), labels.numpy()

    def loss(w: np.ndarray) -> float:
        return float(np.sum(np.logaddexp(0, x @ w) - y * (x @ w)) + RIDGE / 2 * w @ w)

    np.testing.assert_allclose(logistic(features, labels).numpy(), minimize(loss, np.zeros(4)).x, atol=1e-4)


def test_the_combined_detector_is_not_fitted_on_the_layer_that_it_judges() -> None:
    generator = torch.Generator().manual_seed(0)
    features, mask = torch.randn(3, 200, 5, generator=generator).double(), torch.zeros(3, 200, dtype=torch.bool)
    mask[:, :50] = True
    features[:, :50, 2] += 3
    first, relabelled = combined(features, mask), mask.clone()
    relabelled[1] = ~mask[1]
    second = combined(features, relabelled)
    assert torch.equal(first[1], second[1]) and not torch.allclose(first[0], second[0])
    assert auroc(first, mask)[0] > 0.95


def test_detectors_find_what_gives_neurons_away_and_nothing_where_labels_are_random() -> None:
    lm = bed().lm
    labels = random_labels(lm, 16)
    blind = detectors(lm, labels)
    assert blind["combined"][1] < 0.5 < blind["combined"][2]
    before = {name: p.detach().clone() for name, p in lm.parameters.items()}
    try:
        with torch.no_grad():
            for site in lm.sites:
                lm.parameters[site.write.name][0, labels.by_layer()[site.layer]] += 2
        found = detectors(lm, labels)
        assert found["write kurtosis"][0] > 0.9 and found["combined"][0] > 0.9
    finally:
        with torch.no_grad():
            for name, p in lm.parameters.items():
                p.copy_(before[name])


def test_no_property_of_the_planted_neurons_gives_them_away() -> None:
    made = bed()
    assert made.planted is not None
    matched = {*Layer.of(made.lm, made.lm.sites[0]).properties(), "index", "combined"}
    for name in matched:
        area, low, high = made.info["detectors"][name]
        assert low <= 0.5 <= high or abs(area - 0.5) < 0.1, name
    assert {"gate leverage", "combined, unmatched"} <= made.info["detectors"].keys() - matched
