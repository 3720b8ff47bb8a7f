"""Was a text trained on? Scores of single texts, higher for members, and how well they tell members from others (AUC).

At k = 100% Min-K%++ is a calibration statistic: its expectation is 0 whatever the model was trained on. An AUC says
something beside that of the gold twin, or of the untouched model, on the same texts alone: members and others may
differ in more than membership.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Batch, Corpus, check_disjoint, digests_of, encode, subjects_of
from neuronforget.corpora.tokens import join
from neuronforget.edits import Edit
from neuronforget.edits.guarding import asked
from neuronforget.errors import InputError
from neuronforget.models import LM, frozen
from neuronforget.models.likelihood import answer_nll
from neuronforget.results import Results, check_edit_names, example_rows
from neuronforget.results.intervals import RESAMPLES, of_auc, worth
from neuronforget.results.kept import Kept
from neuronforget.runs import environment

KS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
ATTACKS = ("loss", "zlib", "min_k", "min_k++", "reference", "gradient")
MEMBERS, OTHERS = "members", "non-members"


@checks_kinds
def membership(
    lm: LM,
    members: Corpus,
    non_members: Corpus,
    *,
    edits: Mapping[str, Edit] | None = None,
    gold: LM | None = None,
    reference: LM | None = None,
    attacks: Sequence[str] = ATTACKS,
    ks: Sequence[float] = KS,
    batch_size: int = 16,
    kept: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Results:
    """Return the AUC of every attack on the untouched model, on each edit and on the gold twin, with 95% intervals.

    `reference` is a model that saw neither corpus, for the attack of that name; without it `info["missing"]` says so.
    Intervals are over texts, those of one subject counting for what they are worth together (`auc`): nothing is drawn,
    `seed` is written down as everywhere. A text that gives NaN makes the AUC NaN, and is counted. `examples` hold the
    score of every text. `kept` is a folder for them: a killed run goes on. Raises InputError for corpora that share
    texts, unknown attacks and shares not in (0, 1].
    """
    check_disjoint(members, non_members)
    _check_attacks(attacks, ks)
    missing = {}
    if "reference" in attacks and reference is None:
        missing["reference"] = "it compares with a model that saw neither corpus: give reference="
    known = tuple(name for name in attacks if name not in missing)
    settings: dict[str, Any] = {"reference": reference, "batch_size": batch_size, "kept": kept}
    rows, examples, units = [], [], (subjects_of(members), subjects_of(non_members))
    with tqdm(_subjects(lm, edits or {}, gold), desc="membership", disable=not progress) as bar:
        for name, scope, model, edit in bar:
            bar.set_postfix(model=name, refresh=False)
            with edit.on(model) if edit is not None else frozen(model):
                here, there = (text_scores(model, corpus, known, ks, **settings) for corpus in (members, non_members))
            for metric in here:
                about, sides = {"edit": name, "point": "full", "metric": metric}, (here[metric], there[metric])
                strength = float(edit is not None)
                rows.append(_auc_row({**about, "scope": scope, "strength": strength}, *sides, units, seed))
                for side, values, own in zip((MEMBERS, OTHERS), sides, units, strict=True):
                    examples += example_rows({**about, "corpus": side}, values, own)
    info: dict[str, Any] = {"model": lm.name, "digest": lm.digest()}
    info |= {"device": str(lm.device), "dtype": str(lm.model.dtype)}
    info |= {"edits": {name: dict(edit.info) for name, edit in (edits or {}).items()}}
    info |= {name: other.digest() for name, other in (("gold", gold), ("reference", reference)) if other is not None}
    info |= {"data": digests_of((members, non_members)), "missing": missing, "seed": seed}
    return Results(tuple(rows), tuple(examples), {**info, "versions": environment()})


def _check_attacks(attacks: Sequence[str], ks: Sequence[float]) -> None:
    if unknown := set(attacks) - set(ATTACKS):
        raise InputError(f"no attack is called {min(unknown)!r}; there are {', '.join(ATTACKS)}")
    if not all(0 < k <= 1 for k in ks):
        raise InputError(f"shares of tokens lie in (0, 1], found {tuple(ks)}")


def _auc_row(
    names: dict[str, Any], members: np.ndarray, others: np.ndarray, units: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, Any]:
    """Return a row of `Results`: how well one attack tells the two sides apart, by `names` (edit to strength)."""
    value, low, high = auc(members, others, units)
    count, nan = len(members) + len(others), int(np.isnan(members).sum() + np.isnan(others).sum())
    found = {"value": value, "low": low, "high": high, "n": count, "nan": nan, "seed": seed}
    found["units"] = sum(len(np.unique(own)) for own in units)
    return {**names, "corpus": f"{MEMBERS}, {OTHERS}", **found}


@checks_kinds
def text_scores(
    lm: LM, corpus: Corpus, attacks: Sequence[str] = ("loss", "zlib", "min_k", "min_k++"), ks: Sequence[float] = KS,
    *, reference: LM | None = None, batch_size: int = 16, kept: str | Path | None = None,
) -> dict[str, Float[np.ndarray, "text"]]:  # fmt: skip
    """Return each attack's score of every text, over the tokens that count as answer; higher: rather a member.

    - `loss`: mean log-likelihood of a token (nats).
    - `zlib`: the same over the bytes that zlib makes of the text (Carlini et al. 2021, arXiv:2012.07805).
    - `min_k@k`: mean log-likelihood of the share k of tokens that are least likely (Shi et al. 2023, arXiv:2310.16789).
    - `min_k++@k`: the same of (log p - mu) / sigma, the mean and deviation of log p under the model's own next-token
      distribution at that place (Zhang et al. 2024, arXiv:2404.02936).
    - `reference`: mean log-likelihood less that of the reference model, in nats.
    - `gradient`: minus the norm of the loss' gradient over all weights.

    `kept` is a folder for the scores: equal model, texts and settings find them there. Raises InputError for a
    reference model of another tokenizer.
    """
    rows = lm.encode(corpus)
    if reference is not None and [r.ids for r in encode(corpus, reference.tokenizer)] != [r.ids for r in rows]:
        raise InputError(f"{reference.name} tokenises the texts differently from {lm.name}: it cannot be its reference")
    sizes = [len(zlib.compress("".join(join(e.prompt, e.answer)).encode())) for e in corpus]
    other = reference if "reference" in attacks else None

    def scores(batch: Batch) -> list[dict[str, float]]:
        own = list(_token_scores(lm, batch))
        found = [_scores_of(logp, z, sizes[i], attacks, ks) for i, (logp, z) in zip(batch.index, own, strict=True)]
        if other is not None:
            for row, (ours, _), (theirs, _) in zip(found, own, _token_scores(other, batch), strict=True):
                row["reference"] = float(ours.mean() - theirs.mean())
        return found

    work: dict[str, Any] = {"attacks": attacks, "ks": ks, "reference": other, "sizes": sizes, "batch_size": batch_size}
    with frozen(lm), torch.no_grad():
        read = Kept.of(kept, "texts", lm, rows, **work).fill(lm.batches(rows, batch_size), scores)
    if "gradient" in attacks:
        store = Kept.of(kept, "gradients", lm, rows)
        norms = store.fill(lm.batches(rows, 1), lambda batch: [_gradient_norm(lm, batch)])
        read = [row | {"gradient": -norm} for row, norm in zip(read, norms, strict=True)]
    return {name: np.array([row[name] for row in read]) for name in read[0]}


def _scores_of(
    logp: np.ndarray, z: np.ndarray, size: int, attacks: Sequence[str], ks: Sequence[float]
) -> dict[str, float]:
    """Return what one text's tokens say by themselves."""
    found = {name: float(logp.mean()) / by for name, by in (("loss", 1), ("zlib", size)) if name in attacks}
    wanted = {name: values for name, values in (("min_k", logp), ("min_k++", z)) if name in attacks}
    return found | {f"{name}@{100 * k:g}%": float(lowest(values, k)) for name, values in wanted.items() for k in ks}


def lowest(values: np.ndarray, share: float) -> float:
    """Return the mean of the lowest share of values, of one at least."""
    return float(np.sort(values)[: max(1, int(len(values) * share))].mean()) if not np.isnan(values).any() else np.nan


def auc(
    members: np.ndarray, others: np.ndarray, units: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[float, float, float]:
    """Return (AUC, low, high): how often a member scores above another text, ties half, and its 95% interval.

    The interval is `intervals.of_auc`, over texts. `units` numbers the subject of each text of either side: of texts
    that stand and fall together a side counts for as many as they are worth. A score may be infinite; where one is NaN,
    so is all. One text alone on a side has no interval (NaN).
    """
    value = float(resampled_auc(members, others, 0, resamples=0)[0])
    sizes: list[float] = [len(members), len(others)]
    if units is not None and not np.isnan(value):
        shares = _placed(members, others), _placed(others, members)
        sizes = [worth(share, own) for share, own in zip(shares, units, strict=True)]
    return value, *of_auc(value, *sizes)


def _placed(texts: np.ndarray, against: np.ndarray) -> np.ndarray:
    """Of each text the share of the other side that it scores above, ties half."""
    from scipy.stats import rankdata

    return (rankdata(np.concatenate([texts, against]))[: len(texts)] - rankdata(texts)) / len(against)


def resampled_auc(members: np.ndarray, others: np.ndarray, seed: int, *, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the AUC, then that of each bootstrap sample of members and of others; NaN where a score is.

    One seed draws the same texts whatever their scores are, so that functions of two models' AUCs can be resampled.
    """
    from scipy.stats import rankdata
    from sklearn.metrics import roc_auc_score

    values, found = np.concatenate([members, others]), np.full(1 + resamples, np.nan)
    if np.isnan(values).any():
        return found
    values = rankdata(values)  # infinities have a place too
    found[0] = roc_auc_score(np.arange(len(values)) < len(members), values)
    if not resamples or min(len(members), len(others)) < 2:
        return found  # the AUC alone needs no table of pairs
    wins = np.sign(values[: len(members), None] - values[None, len(members) :]) / 2 + 0.5
    draw = np.random.default_rng(seed)
    for i in range(resamples):
        own, theirs = (np.bincount(draw.integers(n, size=n), minlength=n) / n for n in wins.shape)
        found[1 + i] = own @ wins @ theirs
    return found


def _subjects(lm: LM, edits: Mapping[str, Edit], gold: LM | None) -> list[tuple[str, str, LM, Edit | None]]:
    check_edit_names(edits)
    found: list[tuple[str, str, LM, Edit | None]] = [("untouched", "reference", lm, None)]
    found += [("gold", "reference", gold, None)] if gold is not None else []
    return found + [(name, edit.info.get("scope", "neurons"), lm, edit) for name, edit in edits.items()]


def _token_scores(lm: LM, batch: Batch) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each text: log p of its answer tokens, and how many deviations that is above the model's own expectation."""
    with asked(lm, batch):
        logits = lm.model(**batch.inputs, use_cache=False).logits
    for i, row in enumerate(logits):
        mask = batch.answer_mask[i, 1:]
        logp = row[:-1][mask].float().log_softmax(-1)
        p = logp.exp()
        there = torch.where(p > 0, logp, 0.0)  # a token that the model excludes has no part in the mean
        mean = (p * there).sum(-1)
        deviation = ((p * (there - mean[:, None]).square()).sum(-1)).sqrt()
        own = logp.gather(-1, batch.input_ids[i, 1:][mask][:, None]).squeeze(-1)
        z = (own - mean) / deviation.clamp(min=torch.finfo(torch.float32).tiny)
        yield own.double().cpu().numpy(), z.double().cpu().numpy()


def _gradient_norm(lm: LM, batch: Batch) -> float:
    with frozen(lm), torch.enable_grad():
        weights: list[Tensor] = [p.requires_grad_(True) for p in lm.parameters.values()]
        with asked(lm, batch):
            loss = answer_nll(lm.model(**batch.inputs, use_cache=False).logits, batch).sum()
        grads = torch.autograd.grad(loss, weights, allow_unused=True)
    return float(torch.stack([g.float().square().sum() for g in grads if g is not None]).sum().sqrt())
