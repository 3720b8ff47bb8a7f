"""Selection by what varies over examples: a null of permuted labels, and stability under resampling."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test, ttest_ind
from torch import Tensor

import neuronforget as nf
from neuronforget import select
from neuronforget.errors import InputError
from neuronforget.moments import Moments
from neuronforget.select.resampling import _halves, pairwise_jaccard


def table(s: Tensor) -> Moments:
    """Moments that hold nothing but a table of s [example, layer, neuron]."""
    n, layers, width = s.shape
    fields = {"mean": torch.zeros((layers, width), dtype=torch.float64)}
    return Moments(fields, n, n, n, 0.0, tuple(range(layers)), table={"s": s.float()}, index=tuple(range(n)))


def corpora(effect: float = 0.0, planted: int = 0, seed: int = 0, n: tuple[int, int] = (24, 30)) -> list[Moments]:
    """Null effects of 2 x 300 neurons of different scales; the first `planted` of each layer are larger on forget."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 2, 300)
    f, r = (torch.randn((m, 2, 300), generator=draw) for m in n)
    f[:, :, :planted] -= effect  # s is minus the predicted rise of the loss
    return [table(x * scale) for x in (f, r)]


@pytest.mark.parametrize("side", ["larger", "both"])
def test_p_values_count_the_relabelings_that_separate_the_examples_as_well(side: Any) -> None:
    f, r = (table(m.table["s"][:4, :, :5]) for m in corpora())
    x = -torch.cat([m.table["s"] for m in (f, r)]).double().numpy()
    found = select.permutation_p(f, r, side=side, permutations=3000, progress=False).numpy()
    splits = [list(c) for c in combinations(range(8), 4)]
    gaps = np.stack([x[c].mean(0) - np.delete(x, c, 0).mean(0) for c in splits])
    size = np.abs if side == "both" else np.asarray
    exact = (size(gaps) >= size(gaps[0]) - 1e-6).mean(0)
    np.testing.assert_allclose(found, exact, atol=0.04)


@pytest.mark.parametrize("null", ["own", "pooled"])
def test_p_values_are_uniform_where_labels_mean_nothing(null: Any) -> None:
    p = torch.cat([select.permutation_p(*corpora(seed=i), null=null, permutations=199, progress=False) for i in (1, 2)])
    for level in (0.05, 0.2, 0.5):
        assert float((p <= level).double().mean()) == pytest.approx(level, abs=4 * (level * (1 - level) / 1200) ** 0.5)


def test_false_discoveries_are_held_to_the_rate_and_planted_effects_are_found() -> None:
    rates, power = [], []
    for seed in range(6):
        chosen = select.permutation_null(*corpora(1.5, 20, seed), q=0.1, progress=False)
        true = sum(j < 20 for _, j in chosen)
        rates.append(1 - true / max(len(chosen), 1))
        power.append(true / 40)
    assert np.mean(rates) < 0.15 and np.mean(power) > 0.9


def test_on_null_data_hardly_anything_is_selected_and_the_selection_may_be_empty() -> None:
    counts = [len(select.permutation_null(*corpora(seed=seed), q=0.05, progress=False)) for seed in range(8)]
    assert sum(c > 0 for c in counts) <= 2 and min(counts) == 0


def test_a_pooled_null_resolves_what_a_neurons_own_cannot() -> None:
    moments = corpora(2.5, 2)
    own = select.permutation_null(*moments, null="own", permutations=199, progress=False)
    pooled = select.permutation_null(*moments, null="pooled", permutations=199, progress=False)
    assert len(own) == 0 and {(0, 0), (0, 1), (1, 0), (1, 1)} <= pooled.members
    assert pooled.info["smallest possible p"] < own.info["smallest possible p"] == 1 / 200


def test_a_silent_neuron_has_p_1() -> None:
    f, r = corpora()
    for m in (f, r):
        m.table["s"][:, 0, 0] = 0.0
    assert select.permutation_p(f, r, permutations=50, progress=False)[0, 0] == 1.0


def test_benjamini_hochberg_is_its_definition() -> None:
    p = torch.tensor([[0.001, 0.3, 0.02], [0.04, 0.013, 0.9]], dtype=torch.float64)
    # ranked .001 .013 .02 .04 .3 .9 against .05 i / 6: the third (.02 <= .025) is the last to pass
    assert select.benjamini_hochberg(p, 0.05).tolist() == [[True, False, True], [False, True, False]]
    assert not select.benjamini_hochberg(torch.full((1, 4), 0.5, dtype=torch.float64), 0.05).any()


def test_strong_effects_are_selected_again_and_noise_is_selected_by_chance() -> None:
    rule = partial(select.per_layer, k=10)

    def unscaled(columns: Any) -> Tensor:
        return -columns["s"] / torch.logspace(-2, 2, 300)

    strong = select.stability(*corpora(8.0, 10), rule, effect=unscaled, progress=False)
    assert strong.jaccard > 0.9 and strong.chance < 0.05 and strong.low <= strong.jaccard <= strong.high
    assert strong.at_least(0.95).members == {(layer, j) for layer in (0, 1) for j in range(10)}
    draw = torch.Generator().manual_seed(0)
    noise = [table(torch.randn((401, 2, 300), generator=draw)) for _ in range(2)]
    found = select.stability(*noise, rule, progress=False)
    assert found.jaccard == pytest.approx(found.chance, abs=0.02) and found.low <= found.jaccard <= found.high
    again = select.stability(*noise, rule, progress=False)
    assert (found.jaccard, found.chance) == (again.jaccard, again.chance)


def test_halves_share_no_example_and_each_is_a_mean() -> None:
    weights = _halves(7, 40, np.random.default_rng(0)).reshape(40, 2, 7)
    assert (weights.prod(1) == 0).all() and np.allclose(weights.sum(2), 1) and {*weights.flat} == {0, np.float32(1 / 3)}
    assert ((weights > 0).sum(1).sum(0) < 40).all()  # each is left out once: 40 draws, one of seven at a time
    assert min((weights[:, 0] > 0).sum(0)) > 8 and max((weights[:, 0] > 0).sum(0)) < 27  # three of seven: 17


def test_corpora_that_vary_differently_about_one_mean_are_not_told_apart() -> None:
    draw = torch.Generator().manual_seed(0)
    f, r = (table(width * torch.randn((n, 2, 300), generator=draw)) for width, n in ((3, 20), (1, 100)))
    p = select.permutation_p(f, r, null="own", permutations=399, progress=False)
    assert float((p <= 0.05).double().mean()) < 0.1  # of the difference of means alone: .17
    x = -torch.cat([m.table["s"][:, 0, :3] for m in (f, r)]).double().numpy()

    def welch(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return ttest_ind(a, b, axis=axis, equal_var=False).statistic

    found = permutation_test((x[:20], x[20:]), welch, alternative="greater", n_resamples=1999, rng=1).pvalue
    np.testing.assert_allclose(p[0, :3].numpy(), found, atol=0.09)


def test_chance_is_that_of_equally_large_random_selections() -> None:
    k, width = 30, 300
    # the overlap of two random sets of 30 in 300 is hypergeometric with mean 3: J about 3 / 57
    found = select.stability(*corpora(), partial(select.per_layer, k=k), resamples=59, progress=False)
    assert found.resamples == 60  # thirty ways to halve, two selections each
    assert found.chance == pytest.approx(k * k / width / (2 * k - k * k / width), rel=0.1)


def test_jaccard_is_shared_over_all() -> None:
    masks = torch.tensor([[[True, True, False]], [[False, True, True]], [[False, False, False]]])
    assert pairwise_jaccard(masks).tolist() == pytest.approx([1 / 3, 0, 0])
    assert pairwise_jaccard(masks[[2, 2]]).tolist() == [1.0]


def people(subjects: list[int], name: str) -> nf.Corpus:
    """An example for each number, about that subject."""
    rows = [{"prompt": f"{name} {i}", "answer": "yes", "subject": f"{name} {who}"} for i, who in enumerate(subjects)]
    return nf.Corpus.from_rows(rows, name=name)


def of_people(counts: tuple[int, int], each: int, seed: int) -> tuple[list[Moments], tuple[nf.Corpus, nf.Corpus]]:
    """No neuron knows forget people from retain people, but each treats a person's examples alike."""
    draw = torch.Generator().manual_seed(seed)
    owners = [torch.arange(n).repeat_interleave(each) for n in counts]
    own = [torch.randn((n, 1, 300), generator=draw) for n in counts]
    noise = [torch.randn((n * each, 1, 300), generator=draw) for n in counts]
    made = [table(2 * o[w] + e) for o, w, e in zip(own, owners, noise, strict=True)]
    return made, (people(owners[0].tolist(), "f"), people(owners[1].tolist(), "r"))


def test_whole_subjects_are_relabelled_where_their_examples_stand_and_fall_together() -> None:
    by_example, by_subject = [], []
    for seed in range(6):
        moments, corpora_ = of_people((5, 12), 8, seed)
        by_example.append(len(select.permutation_null(*moments, q=0.05, progress=False)))
        chosen = select.permutation_null(*moments, q=0.05, subjects=corpora_, progress=False)
        by_subject.append(len(chosen))
        assert chosen.info["unit"] == "subject"
    assert min(by_example) > 20 and sum(n > 0 for n in by_subject) <= 1, (by_example, by_subject)
    rule = partial(select.per_layer, k=10)
    alone, whole = (select.stability(*moments, rule, subjects=s, progress=False) for s in (None, corpora_))
    assert whole.jaccard < alone.jaccard


def test_a_subject_counts_once_by_the_mean_of_its_examples() -> None:
    f, r = corpora(n=(6, 8))
    who = ([0, 1, 0, 2, 2, 0], [0, 0, 1, 1, 2, 2, 3, 3])
    means = [
        table(torch.stack([m.table["s"][[i for i, one in enumerate(own) if one == j]].mean(0) for j in sorted({*own})]))
        for m, own in zip((f, r), who, strict=True)
    ]
    found = select.permutation_p(f, r, subjects=(people(who[0], "f"), people(who[1], "r")), progress=False)
    torch.testing.assert_close(found, select.permutation_p(*means, progress=False), atol=2e-3, rtol=0)
    alone = people(list(range(6)), "f"), people(list(range(8)), "r")  # an example each: nothing to average
    assert torch.equal(
        select.permutation_p(f, r, subjects=alone, progress=False), select.permutation_p(f, r, progress=False)
    )


def test_so_few_subjects_that_no_relabelling_is_rare_are_refused_and_not_called_unspecific() -> None:
    moments, corpora_ = of_people((2, 3), 8, 0)  # 10 ways to choose two of five, 84 to choose three of nine
    with pytest.raises(InputError, match="2 of forget and 3 of retain can be relabelled in 10 ways only"):
        select.permutation_null(*moments, q=0.05, null="own", subjects=corpora_, progress=False)
    assert len(select.permutation_null(*moments, q=0.05, subjects=corpora_, progress=False)) == 0
    moments, corpora_ = of_people((3, 6), 2, 0)
    found = select.permutation_null(*moments, q=0.05, null="own", subjects=corpora_, progress=False)
    assert found.info["smallest possible p"] == 1 / 84


@pytest.mark.usefixtures("untyped")
def test_what_has_no_examples_to_vary_is_refused() -> None:
    f, r = corpora(n=(3, 3))
    bad = replace(r, table={"s": r.table["s"] * torch.nan})
    one, others, told = people([0] * 3, "f"), people([0] * 4, "f"), replace(f, info={"data": "another"})
    rule = partial(select.per_layer, k=10)
    for call, message in (
        (lambda: select.permutation_p(f, replace(r, table={})), "per_example=True"),
        (lambda: select.permutation_p(f, table(r.table["s"][:1])), "single example"),
        (lambda: select.permutation_p(f, table(r.table["s"][:, :1])), "different models"),
        (lambda: select.permutation_p(f, bad), "NaN"),
        (lambda: select.permutation_p(f, r, permutations=0), "at least 1"),
        (lambda: select.permutation_p(f, r, null="all"), "'own' or 'pooled'"),
        (lambda: select.permutation_p(f, r, subjects=(others, others)), "not recorded on corpus 'f', which"),
        (lambda: select.permutation_p(f, r, subjects=(one, one)), "corpus 'f' has a single subject"),
        (lambda: select.permutation_p(told, r, subjects=(one, one)), "not recorded on corpus 'f', which"),
        (lambda: select.permutation_null(f, r, q=0.0), "between 0 and 1"),
        (lambda: select.permutation_null(f, r, null="own", permutations=9), "use 20 or more"),
        (lambda: select.stability(f, replace(r, table={}), rule), "per_example=True"),
        (lambda: select.stability(f, r, rule, resamples=1), "resamples must be 2 or more, found 1"),
        (lambda: select.stability(f, r, partial(select.per_layer, k=301), progress=False), "cannot select"),
    ):
        with pytest.raises(InputError, match=message):
            call()
