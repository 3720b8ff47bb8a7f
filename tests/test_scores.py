"""Every score against the same number computed another way."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import neuronforget as nf
from neuronforget import scores
from neuronforget.corpora import Corpus, batches, encode
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_nll
from neuronforget.moments import Moments
from neuronforget.taps import TorchHooks


@pytest.fixture
def pair(corpus: Corpus) -> tuple[Corpus, Corpus]:
    return replace(corpus, examples=corpus.examples[:4]), replace(corpus, examples=corpus.examples[4:])


@pytest.fixture
def raw(lm: LM, pair: tuple[Corpus, Corpus]) -> list[list[tuple[Tensor, Tensor]]]:
    """For each corpus and example, (a, g) as float64 [layer, token, neuron], one example at a time."""
    tap, found = TorchHooks(lm), []
    for corpus in pair:
        rows = []
        for batch in batches(encode(corpus, lm.tokenizer), 1, lm.pad_id):
            out = tap(batch.inputs)
            grads = out.grads(answer_nll(out.logits, batch).sum())
            acts = torch.stack([out.acts[s.layer].detach()[0] for s in lm.sites]).double()
            rows.append((acts, torch.stack([grads[s.layer][0] for s in lm.sites]).double()))
        found.append(rows)
    return found


@pytest.fixture
def moments(lm: LM, pair: tuple[Corpus, Corpus]) -> list[Moments]:
    return [nf.record(lm, corpus, tap="torch_hooks", progress=False) for corpus in pair]


def example_sums(rows: list[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """(s, u) of every example, [example, layer, neuron]."""
    return (
        np.stack([(a * g).sum(1).numpy() for a, g in rows]),
        np.stack([g.sum(1).numpy() for _, g in rows]),
    )


def all_tokens(rows: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    return torch.cat([a for a, _ in rows], 1).numpy()


def close(found: scores.Scores, expected: np.ndarray, rtol: float = 2e-4) -> None:
    np.testing.assert_allclose(found.values.numpy(), expected, rtol=rtol, atol=2e-4 * np.abs(expected).max())


def test_grad_x_act_is_minus_the_mean_of_s_and_carries_its_standard_error(raw: Any, moments: Any) -> None:
    (sf, _), (sr, _) = map(example_sums, raw)
    found = scores.grad_x_act(*moments)
    close(found, -sf.mean(0) + sr.mean(0))
    errors = [s.std(0, ddof=1) / np.sqrt(len(s)) for s in (sf, sr)]
    assert found.error is not None
    np.testing.assert_allclose(found.error.numpy(), np.hypot(*errors), rtol=1e-3, atol=1e-9)
    close(scores.grad_x_act(moments[0]), -sf.mean(0))


def test_the_z_contrast_divides_by_the_standard_error(moments: Any) -> None:
    plain, z = scores.grad_x_act(*moments), scores.grad_x_act(*moments, contrast="z")
    assert plain.error is not None
    torch.testing.assert_close(z.values * plain.error, plain.values)


def test_mean_patch_puts_the_retain_mean_in_the_neurons_place(raw: Any, moments: Any) -> None:
    (sf, uf), (sr, ur) = map(example_sums, raw)
    mu = all_tokens(raw[1]).mean(1)
    found = scores.mean_patch(*moments)
    close(found, (mu * uf - sf).mean(0) - (mu * ur - sr).mean(0))
    errors = [np.std(mu * u - s, axis=0, ddof=1) / np.sqrt(len(s)) for s, u in ((sf, uf), (sr, ur))]
    assert found.error is not None
    np.testing.assert_allclose(found.error.numpy(), np.hypot(*errors), rtol=1e-3, atol=1e-9)


def test_fisher_is_the_mean_square_of_s(raw: Any, moments: Any) -> None:
    (sf, _), (sr, _) = map(example_sums, raw)
    close(scores.fisher(moments[0]), (sf**2).mean(0))
    retain = (sr**2).mean(0)
    expected = (sf**2).mean(0) / (retain + 1e-3 * np.median(retain, 1, keepdims=True))
    close(scores.fisher(*moments), expected, rtol=1e-2)


def test_a_ratio_of_signed_scores_is_warned_of(moments: list[Moments]) -> None:
    with pytest.warns(UserWarning, match="both signs"):
        scores.grad_x_act(*moments, contrast="ratio")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores.fisher(*moments, contrast="ratio")


@pytest.mark.parametrize(
    ("importance", "measure"),
    [
        ("freq", lambda a: (a > 0).mean(1)),
        ("abs", lambda a: np.abs(a).mean(1)),
        ("rms", lambda a: np.sqrt((a**2).mean(1))),
        ("std", lambda a: a.std(1)),
    ],
)
def test_activation_ratio_compares_importances(
    raw: Any, moments: Any, importance: Any, measure: Callable[[np.ndarray], np.ndarray]
) -> None:
    forget, retain = (measure(all_tokens(rows)) for rows in raw)
    low = 1e-3 * np.clip(torch.tensor(retain).median(1, keepdim=True).values.numpy(), 1e-12, None)
    close(scores.activation_ratio(*moments, importance=importance), forget / (retain + low), rtol=1e-3)


def test_activation_gap_by_token_and_by_example(raw: Any, moments: Any) -> None:
    forget, retain = (all_tokens(rows).mean(1) for rows in raw)
    close(scores.activation_gap(*moments), forget - retain)
    from scipy.stats import ttest_ind

    pooled = [np.stack([a.mean(1).numpy() for a, _ in rows]) for rows in raw]
    welch = scores.activation_gap(*moments, scale="welch").values.numpy()
    expected = ttest_ind(*pooled, equal_var=False).statistic
    np.testing.assert_allclose(welch, expected, rtol=1e-4)
    cohen = scores.activation_gap(*moments, scale="cohen").values.numpy()
    student = ttest_ind(*pooled, equal_var=True).statistic
    np.testing.assert_allclose(cohen, student * np.sqrt(1 / len(pooled[0]) + 1 / len(pooled[1])), rtol=1e-4)


def test_wanda_multiplies_the_write_norm_with_the_rms(lm: LM, raw: Any, moments: Any) -> None:
    norms = np.stack([lm.parameters[s.write.name].detach().abs().sum(0).numpy() for s in lm.sites])
    rms = [np.sqrt((all_tokens(rows) ** 2).mean(1)) for rows in raw]
    close(scores.wanda(moments[0]), norms * rms[0])
    close(scores.wanda(*moments, contrast="difference"), norms * (rms[0] - rms[1]), rtol=1e-2)


def test_activation_entropy_is_signed_specificity_and_leaves_rare_neurons_out(raw: Any, moments: Any) -> None:
    f, r = ((all_tokens(rows) > 0).mean(1) for rows in raw)
    expected = np.zeros_like(f)
    for place in np.ndindex(f.shape):
        shares = np.array([f[place], r[place]]) / (f[place] + r[place] or 1)
        entropy = -sum(p * np.log(p) for p in shares if p > 0)
        if max(f[place], r[place]) >= 0.01:
            expected[place] = (np.log(2) - entropy) * np.sign(f[place] - r[place])
    close(scores.activation_entropy(*moments), expected, rtol=1e-9)
    rare = scores.activation_entropy(*moments, least=1.0).values.numpy()
    always = (f == 1) | (r == 1)
    np.testing.assert_allclose(rare, np.where(always, expected, 0), atol=1e-12)


def test_activation_entropy_is_ln_2_for_a_neuron_that_fires_on_one_corpus_only(moments: Any) -> None:
    forget, retain = (replace(m, fields=dict(m.fields)) for m in moments)
    forget.fields["positive"] = torch.full(forget["mean"].shape, float(forget.tokens), dtype=torch.float64)
    retain.fields["positive"] = torch.zeros_like(forget["positive"])
    retain.fields["positive"][0, 0] = retain.tokens
    found = scores.activation_entropy(forget, retain).values
    assert found[0, 0] == pytest.approx(0.0, abs=1e-12) and found[1, 3] == pytest.approx(np.log(2))
    assert scores.activation_entropy(retain, forget).values[1, 3] == pytest.approx(-np.log(2))


def test_activation_norm_multiplies_mean_magnitude_and_write_norm(lm: LM, raw: Any, moments: Any) -> None:
    norms = np.stack([lm.parameters[s.write.name].detach().norm(dim=0).numpy() for s in lm.sites])
    f, r = (np.abs(all_tokens(rows)).mean(1) * norms for rows in raw)
    close(scores.activation_norm(moments[0]), f)
    close(scores.activation_norm(*moments), f - r, rtol=1e-3)


def test_snip_is_the_gradient_of_the_write_weights_and_minus_grad_x_act(lm: LM, pair: Any, moments: Any) -> None:
    rows = encode(pair[0], lm.tokenizer)
    for batch in batches(rows, 8, lm.pad_id):
        answer_nll(lm.model(**batch.inputs).logits, batch).sum().backward()
    weights = [lm.parameters[site.write.name] for site in lm.sites]
    expected = np.stack([(w * w.grad).sum(0).detach().numpy() for w in weights]) / len(pair[0])  # type: ignore[operator]
    lm.model.zero_grad()
    close(scores.snip(moments[0]), expected)
    torch.testing.assert_close(scores.snip(*moments).values, -scores.grad_x_act(*moments).values)


def test_grad_x_act_has_the_sign_and_the_size_of_a_small_ablation(lm: LM, pair: Any, moments: Any) -> None:
    """Against finite differences of the loss when one neuron is scaled (norms run in fp32, so eps is not tiny)."""
    lm.model.double()
    tap, site, eps = TorchHooks(lm), lm.sites[0], 1e-2
    strongest = int(scores.grad_x_act(moments[0]).values[0].abs().argmax())

    def loss(scale: float) -> float:
        def gate(a: Tensor) -> Tensor:
            a = a.clone()
            a[..., strongest] *= scale
            return a

        total = 0.0
        for batch in batches(encode(pair[0], lm.tokenizer), 8, lm.pad_id):
            logits = tap(batch.inputs, {site.layer: gate}).logits
            logp = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
            mask = batch.answer_mask[:, 1:]
            total += float(-((logp * mask).sum(1) / mask.sum(1)).sum().detach())
        return total / len(pair[0])

    slope = (loss(1 - eps) - loss(1 + eps)) / (2 * eps)
    predicted = float(scores.grad_x_act(moments[0]).values[0, strongest])
    assert predicted == pytest.approx(slope, rel=5e-3)


def test_scores_are_saved_and_read_back(moments: Any, tmp_path: Path) -> None:
    found = scores.grad_x_act(*moments)
    found.save(tmp_path / "scores.safetensors")
    again = scores.Scores.load(tmp_path / "scores.safetensors")
    assert torch.equal(again.values, found.values) and torch.equal(again.error, found.error)  # type: ignore[arg-type]
    assert (again.name, again.sign, again.layers) == (found.name, found.sign, found.layers)


@pytest.mark.usefixtures("untyped")
def test_what_cannot_be_scored_is_refused(moments: Any, tmp_path: Path) -> None:
    for call, message in (
        (lambda: scores.activation_ratio(moments[0]), "give retain too"),
        (lambda: scores.activation_gap(moments[0], scale="welch"), "give retain too"),
        (lambda: scores.activation_entropy(moments[0]), "give retain too"),
        (lambda: scores.activation_entropy(*moments, least=2.0), "share of the tokens"),
        (lambda: scores.activation_entropy(moments[0], replace(moments[1], layers=(0, 5))), "different models"),
        (lambda: scores.grad_x_act(moments[0], contrast="z"), "give retain too"),
        (lambda: scores.fisher(*moments, contrast="z"), "must be 'difference' or 'ratio'; found 'z'"),
        (lambda: scores.fisher(*moments, contrast="sum"), "contrast must be 'difference'"),
        (lambda: scores.activation_ratio(*moments, importance="sum"), "importance must be 'freq'"),
        (lambda: scores.Scores(torch.tensor([[torch.nan]]), "x", "", (0,)), "NaN"),
        (lambda: scores.Scores(torch.zeros(2), "x", "", (0,)), r"\[layer, neuron\]"),
        (lambda: scores.Scores.load(tmp_path / "nowhere"), "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_attribute_is_recording_and_score_in_one_call(lm: LM, pair: Any, moments: Any) -> None:
    found = nf.attribute(lm, *pair, score=scores.fisher, tap="torch_hooks", progress=False, contrast="difference")
    torch.testing.assert_close(found.values, scores.fisher(*moments, contrast="difference").values)
    assert found.info["forget"]["data"] == pair[0].digest()
    with pytest.raises(InputError, match="share"):
        nf.attribute(lm, pair[0], pair[0], progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": torch.manual_seed}, "score 'manual_seed' cannot be called as scores are: too many positional"),
        ({"score": scores.runs_model(lambda lm, forget, retain: None)}, "cannot be called .* unexpected .*batch_size"),
        ({"score": scores.expert, "forget": 1}, "expert needs 2 or more examples of each corpus, found 1 and"),
        ({"score": partial(scores.activation_gap, scale="welch"), "forget": 1}, "scale='welch'. needs 2 or more"),
        ({"score": scores.grad_x_act, "contrast": "z", "forget": 1}, "contrast='z' needs .* 2 or more .*, found 1"),
        ({"score": scores.grad_x_act, "contrast": "z", "alone": True}, "contrast='z' compares two corpora"),
        ({"score": scores.activation_ratio, "alone": True}, "activation_ratio compares two corpora: give retain too"),
        ({"contrst": "z"}, "score 'fisher' has no setting 'contrst'; it has contrast"),
        ({"contrast": "sum"}, "fisher: contrast must be 'difference' or 'ratio'; found 'sum'"),
        ({"score": partial(scores.expert, measure="ap"), "respons": "signed"}, "it has measure, response"),
        ({"score": scores.exact, "limits": 1e9}, "it has position, neurons, contrast, limit$"),
    ],
)
def test_a_setting_that_a_score_has_not_is_said_before_any_recording(
    settings: dict[str, Any], message: str, lm: LM, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuronforget.attribution.record", lambda *_, **__: pytest.fail("recorded"))
    forget = pair[0].head(settings.pop("forget", len(pair[0])))
    retain = None if settings.pop("alone", False) else pair[1]
    with pytest.raises(InputError, match=message):
        nf.attribute(lm, forget, retain, progress=False, **{"score": scores.fisher} | settings)


def test_a_score_is_given_what_it_is_marked_to_read(lm: LM, pair: tuple[Corpus, Corpus]) -> None:
    seen: list[tuple[Any, ...]] = []

    @scores.runs_model
    def mine(model: LM, forget: Corpus, retain: Corpus | None = None, **settings: Any) -> scores.Scores:
        seen.append((model, forget, retain, settings))
        return scores.Scores(torch.ones(lm.shape), "mine", "ones", tuple(site.layer for site in lm.sites))

    @scores.reads_examples
    def peaks(forget: Moments, retain: Moments | None = None, *, scale: float = 1.0) -> scores.Scores:
        assert retain is not None
        gap = forget.table["peak"].mean(0) - retain.table["peak"].mean(0)
        return scores.Scores(scale * gap, "peaks", "positive: peaks on forget", forget.layers)

    found = nf.attribute(lm, *pair, score=mine, batch_size=3, progress=False, factor=2)
    assert seen == [(lm, *pair, {"batch_size": 3, "progress": False, "factor": 2})]
    assert found.info["forget"]["data"] == pair[0].digest() and found.info["retain"]["data"] == pair[1].digest()
    doubled = nf.attribute(lm, *pair, score=partial(peaks, scale=2.0), tap="torch_hooks", progress=False)
    tables = [nf.record(lm, c, tap="torch_hooks", per_example=True, progress=False).table["peak"] for c in pair]
    assert torch.equal(doubled.values, 2 * (tables[0].mean(0) - tables[1].mean(0)))
    alone = nf.attribute(lm, pair[0], score=scores.grad_x_act, tap="torch_hooks", progress=False)
    assert alone.info["retain"] is None


def test_snip_and_grad_x_act_select_the_same_neurons(moments: list[Moments], tmp_path: Path) -> None:
    found = [nf.select.per_layer(score(*moments), 5) for score in (scores.snip, scores.grad_x_act)]
    assert found[0] == found[1]
    scores.snip(*moments).save(tmp_path / "snip")
    assert nf.select.per_layer(scores.Scores.load(tmp_path / "snip"), 5) == found[0]


def test_one_example_has_no_standard_error(lm: LM, pair: tuple[Corpus, Corpus]) -> None:
    one = nf.record(lm, pair[0].head(1), tap="torch_hooks", progress=False)
    both = one, nf.record(lm, pair[1], tap="torch_hooks", progress=False)
    assert scores.grad_x_act(one).error is None and scores.grad_x_act(*both).error is None
    with pytest.raises(InputError, match="two or more examples"):
        scores.grad_x_act(*both, contrast="z")


@pytest.mark.usefixtures("untyped")
def test_an_unknown_contrast_is_no_ratio() -> None:
    with pytest.raises(nf.InputError, match="unknown contrast 'sum'"):
        scores.scores.contrasted((torch.ones(1, 2), torch.ones(1, 2)), "sum")  # type: ignore[arg-type]
