"""Whatever asks a model goes on where it was killed, and asks for nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beds import bed

import neuronforget as nf
from neuronforget.auditing.relearning import curve, halved
from neuronforget.corpora import Corpus, Example
from neuronforget.erase.ablate import all_of
from neuronforget.evaluation.measuring import option_losses
from neuronforget.metrics import exact_match
from neuronforget.metrics.membership import ATTACKS, membership
from neuronforget.models import LM
from neuronforget.suites.facts import counterfact, pararel
from neuronforget.suites.utility import utility


class Killed(BaseException):
    """The process ends here."""


class Passes:
    """Counts a model class's forward passes, and ends the run in one of them."""

    def __init__(self) -> None:
        self.count, self.last = 0, 0

    def of(self, work: Callable[[], Any], last: int = 0) -> tuple[Any, int]:
        """Return what the work gives (None where it was killed in pass `last`), and how many passes it took."""
        self.count, self.last = 0, last
        try:
            return work(), self.count
        except Killed:
            return None, self.count


@pytest.fixture
def passes(lm: LM, monkeypatch: pytest.MonkeyPatch) -> Iterator[Passes]:
    found = Passes()
    for kind in {type(lm.model), type(bed().lm.model)}:
        monkeypatch.setattr(kind, "forward", _counted(kind.forward, found))
    yield found


def _counted(forward: Callable[..., Any], passes: Passes) -> Callable[..., Any]:
    @wraps(forward)
    def counted(*args: Any, **settings: Any) -> Any:
        passes.count += 1
        if passes.count == passes.last:
            raise Killed
        return forward(*args, **settings)

    return counted


def rows(path: Path, *content: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def options(lm: LM, folder: Path, kept: Path | None) -> Any:
    corpus = Corpus(tuple(Example(f"{name} was born in", "Velm", wrong=("Oslo",)) for name in "Anna Mira Holt".split()))
    return option_losses(lm, corpus, batch_size=1, kept=kept)


def facts(lm: LM, folder: Path, kept: Path | None) -> Any:
    asks = {"prompt": "was born in", "rephrase_prompt": "comes from", "locality_prompt": "lives in"}
    answers = {"ground_truth": "Velm", "locality_ground_truth": "Velm", "target_new": "Oslo"}
    asked = [
        {**{field: f"{name} {verb}" for field, verb in asks.items()}, **answers} for name in ("Anna", "Mira", "Holt")
    ]
    found = counterfact(lm, rows(folder / "facts.jsonl", *asked), batch_size=1, kept=kept)
    return found.rows, found.examples


def patterns(lm: LM, folder: Path, kept: Path | None) -> Any:
    (folder / "pararel").mkdir(exist_ok=True)
    rows(folder / "pararel" / "patterns.jsonl", *({"relation": "P1", "pattern": f"[X] {verb} [Y]"} for verb in "ab"))
    named = ({"relation": "P1", "subject": name, "object": "Velm"} for name in ("Anna", "Mira", "Holt"))
    rows(folder / "pararel" / "facts.jsonl", *named)
    return pararel(lm, folder / "pararel", batch_size=1, kept=kept).rows


def members(lm: LM, folder: Path, kept: Path | None) -> Any:
    texts = [Corpus(tuple(Example("", f"{name} was born in {town}") for name in ("Anna", "Mira"))) for town in "ab"]
    settings: dict[str, Any] = {"attacks": ATTACKS, "reference": lm, "batch_size": 1, "progress": False}
    found = membership(lm, *texts, **settings, kept=kept)
    return found.rows, found.examples


def relearned(lm: LM, folder: Path, kept: Path | None) -> Any:
    halves = halved(bed().forget)
    found = curve(bed().lm, halves["siblings"], halves, exact_match, count=3, kept=kept)
    return {name: values.tolist() for name, values in found.items()}


@pytest.mark.parametrize(("work", "batch"), [(options, 1), (facts, 1), (patterns, 1), (members, 2), (relearned, 1000)])
def test_a_killed_run_goes_on_and_asks_nothing_twice(
    work: Callable[[LM, Path, Path | None], Any], batch: int, lm: LM, passes: Passes, tmp_path: Path
) -> None:
    """`batch` is how many passes one batch takes: no more than that is lost."""
    wanted, every = passes.of(lambda: work(lm, tmp_path, None))
    kept = tmp_path / "kept"
    nothing, done = passes.of(lambda: work(lm, tmp_path, kept), last=every * 2 // 3)
    assert nothing is None and done == every * 2 // 3
    found, rest = passes.of(lambda: work(lm, tmp_path, kept))
    assert found == wanted and rest <= min(every, every - done + batch)
    assert passes.of(lambda: work(lm, tmp_path, kept)) == (wanted, 0)


@pytest.mark.slow
def test_a_killed_audit_goes_on_from_the_probe_and_the_batch_it_was_at(passes: Passes, tmp_path: Path) -> None:
    made = bed()
    edit, retain = nf.erase.ablate(made.lm, made.planted), made.retain.head(24)
    probes = ["worst phrasing", "attacks", "choice", "quantisation", "lens", "patching"]

    def work(kept: Path | None) -> Any:
        found = nf.audit(
            made.lm, edit, made.forget, retain, gold=made.gold, probes=probes, batch_size=8, kept=kept, progress=False,
        )  # fmt: skip
        return found.results.rows, found.results.examples, found.checks, found.damage, found.curves, found.neurons

    def neurons() -> Any:
        return nf.audit(made.lm, edit, made.forget, retain, gold=made.gold, probes=[], batch_size=8, kept=tmp_path,
                        progress=False)  # fmt: skip

    wanted, every = passes.of(lambda: work(tmp_path / "whole"))
    assert repr(wanted) == repr(work(None))
    neurons()
    _, anew = passes.of(neurons)  # what the edit did to the neurons is looked at anew
    patched = 2 + len(made.lm.sites)  # passes of a batch of `patching`, the dearest
    for share in (0.3, 0.8):
        last, again = int((every - anew) * share), partial(work, tmp_path / str(share))
        assert passes.of(again, last=last) == (None, last)
        found, rest = passes.of(again)
        assert repr(found) == repr(wanted) and rest <= every - last + patched
        assert passes.of(again)[1] == anew
    assert 0 < anew < every / 3


def test_tasks_of_lm_eval_are_answered_once(lm: LM, passes: Passes, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    lm.model.config.max_position_embeddings = 256
    names = [{"question": f"{name} was born in", "answers": ["Velm"]} for name in ("Anna", "Mira", "Holt")]
    local = {"triviaqa": rows(tmp_path / "t.jsonl", *names)}
    wanted, every = passes.of(lambda: utility(lm, local=local, batch_size=1).rows)
    kept = tmp_path / "kept"
    assert passes.of(lambda: utility(lm, local=local, batch_size=1, kept=kept).rows, last=every - 2)[0] is None
    found, rest = passes.of(lambda: utility(lm, local=local, batch_size=1, kept=kept).rows)
    assert found == wanted and rest < every
    assert passes.of(lambda: utility(lm, local=local, batch_size=1, kept=kept).rows) == (wanted, 0)
    with nf.erase.ablate(lm, all_of(lm, [0])).on(lm):  # another model: anew
        assert passes.of(lambda: utility(lm, local=local, batch_size=1, kept=kept))[1] > 0


def test_a_metric_that_is_an_object_is_kept_by_what_it_is(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    class Times:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def __call__(self, p: nf.metrics.Prediction) -> Any:
            return self.factor * p.nll

    for factor, files in ((1.0, 1), (1.0, 1), (2.0, 2)):
        nf.evaluation.measure(lm, corpus, [Times(factor)], kept=tmp_path)
        assert len(list(tmp_path.iterdir())) == files


def test_what_is_kept_is_read_back_to_the_last_bit(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    first, second = (nf.evaluation.measure(lm, corpus, [nf.metrics.nll], kept=tmp_path)["nll"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(list(tmp_path.iterdir())) == 1
