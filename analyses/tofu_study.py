"""All methods on TOFU, with models taught from scratch and, for each split, one taught other authors instead (gold).

Each edit is measured where it is tuned: of the strengths that raise the retain loss by at most .05 nats, the one whose
forget answers are closest to the gold model's. Trainings of the whole model are measured at full strength too, as the
published ones are. Reported are TOFU's own numbers, the loss of held-out English text, and verdicts of the audit.

python analyses/tofu_study.py --out tofu                                  # small, two cores; a killed run goes on
python analyses/tofu_study.py --out tofu --splits forget10 --methods all  # every operator and loss
python analyses/tofu_study.py --out tofu --whole --device cuda            # 22M parameters, 180 authors
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from judging import DAMAGE, chosen_point
from methods import Makes, arms, names
from running import in_one_line, keep
from sources import Source, shortlist_exact
from tofu_figure import picture
from tofu_models import LAST, WHOLE, Setting, Taught, asked, models
from tofu_numbers import numbers_of
from tofu_tables import tables

import neuronforget as nf
from neuronforget.corpora.from_tofu import ROWS_PER_AUTHOR
from neuronforget.corpora.lines import rows_of
from neuronforget.evaluation.generation import Decoding
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import kl_gold, nll
from neuronforget.runs import content_key
from neuronforget.suites.tofu import tofu
from neuronforget.suites.tofu_questions import SPLITS, Protocol

STRENGTHS = (1 / 8, 1 / 4, 1 / 2, 1.0)
SHARE = 0.05  # of each layer: what is found
METHODS = (
    "ablate@found ablate@random rank_one@found rank_one@random npo@found npo@random ga@full grad_diff@full npo@full "
    "simnpo@full dpo@full"
).split()
AUDITED = ("ablate@found", "npo@full")
SETTINGS = ("steps", "batch", "n", "measured", "tokens", "rates", "audited", "seed")
RETAIN_ASKED = 400  # rows of TOFU's retain questions, about its first twenty authors
COUNTS = ("steps", "batch", "n", "measured", "tokens")


@dataclass(frozen=True, eq=False)
class Study:
    """One split: the model, its gold model, and how both are asked."""

    split: str
    source: Source
    held_out: nf.Corpus
    options: argparse.Namespace

    @classmethod
    def of(cls, split: str, found: Mapping[str, nf.LM], taught: Taught, options: argparse.Namespace) -> Study:
        """Find the neurons of a split by two stages (grad_x_act, then exact), on as much of forget as is measured."""
        folder, lm = options.data / "tofu", found["full"]
        forget = asked(nf.corpora.tofu(split, path=folder))
        retain = taught.without(forget)
        shown = [corpus.sample(options.measured, options.seed) for corpus in (forget, retain)]
        scores = nf.attribute(lm, *shown, score=shortlist_exact, progress=False)
        refusals = tuple(row["text"] for row in rows_of(folder, "idk_responses", fields=("text",)))
        source = Source(lm, forget, retain, nf.select.per_layer(scores, SHARE), options.seed, found[split],
                        refusals=refusals, measured=options.measured, most=options.measured)  # fmt: skip
        return cls(split, source, taught.held_out, options)

    def numbers(self, lm: nf.LM) -> dict[str, Any]:
        """Return TOFU's numbers of a model as [value, low, high], and the loss of held-out text."""
        options = self.options
        protocol = Protocol(decoding=Decoding(options.tokens, ()))
        found = tofu(lm, self.split, path=options.data / "tofu", retain_lm=self.source.gold, n=options.n,
                     protocol=protocol, batch_size=100, kept=options.out / "kept", seed=options.seed, progress=False,
                     )  # fmt: skip
        values = numbers_of(found, options.seed)
        return {**values, "text": [float(measure(lm, self.held_out, [nll])["nll"].mean())]}

    @cached_property
    def test(self) -> nf.Corpus | None:
        """Forget questions by which no neuron or strength was chosen (edits were shown them), where there are any."""
        used = {example.prompt for example in self.source.corpora["forget"]}
        unused = tuple(example for example in self.source.forget if example.prompt not in used)
        whole = replace(self.source.forget, examples=unused) if unused else None
        return None if whole is None else whole.sample(self.options.measured, self.options.seed)

    @property
    def authors(self) -> list[int]:
        """Which of the split's authors each question of `test` is about."""
        number = {e.prompt: i // ROWS_PER_AUTHOR for i, e in enumerate(self.source.forget)}
        return [] if self.test is None else [number[example.prompt] for example in self.test]

    def measured(self, lm: nf.LM) -> dict[str, Any]:
        """Return TOFU's numbers, and the KL from gold on each question of `test`."""
        found: dict[str, Any] = {"tofu": self.numbers(lm)}
        if self.test is not None:
            found["test"] = measure(lm, self.test, [kl_gold], gold=self.source.twin)["kl_gold"].tolist()
        return found

    def audit(self, edit: nf.Edit | nf.LM) -> str:
        """Return the audit's verdict on an edit."""
        source, corpora = self.source, self.source.corpora
        found = nf.audit(source.lm, edit, corpora["forget"], corpora["retain"], gold=source.gold, seed=source.seed,
                         kept=self.options.out / "kept", progress=False)  # fmt: skip
        return found.verdict

    def arm(self, name: str, make: Makes, start: Mapping[str, Any]) -> dict[str, Any]:
        """Return an arm's dials, what is measured where it is tuned, and of a training of all weights in full.

        What fails of them (a training that diverges, a model that returns NaN, an audit that refuses) is a finding.
        """
        source = self.source
        try:
            edits = make()
            dials = [[source.point(e, s) for s in STRENGTHS if e.graded or s == 1] for e in edits]
        except nf.InputError as error:
            return {"failed": {"edit": str(error)}}
        tuned = chosen_point([point for dial in dials for point in dial], start)
        found: dict[str, Any] = {"dials": dials, "tuned": tuned, "failed": {}}
        edit = next((e.scaled(tuned["strength"]) for e, dial in zip(edits, dials, strict=True) if tuned in dial), None)
        if edit is not None:
            self.add(found, "tuned", lambda: {**tuned, **self.under(edit)})
            if name in self.options.audited:
                self.add(found, "verdict", lambda: self.audit(edit))
        if name.endswith("@full"):
            self.add(found, "full", lambda: {**dials[-1][-1], **self.under(edits[-1])})
        return found

    def under(self, edit: nf.Edit) -> dict[str, Any]:
        """Return what is measured with an edit on."""
        with edit.on(self.source.lm) as edited:
            return self.measured(edited)

    def add(self, found: dict[str, Any], key: str, measured: Callable[[], Any]) -> None:
        """Enter what is measured, or why it could not be."""
        try:
            found[key] = measured()
        except nf.InputError as error:
            found["failed"][key] = str(error)

    def run(self, done: dict[str, Any]) -> Iterator[str]:
        """Fill `done`, arm -> what was measured, saying which is finished."""
        source, options = self.source, self.options
        for name, lm in (("untouched", source.lm), ("gold", source.gold)):
            if name not in done:
                assert lm is not None
                point = {"strength": 0.0, **source.values(lm), **self.measured(lm)}
                done[name] = {"tuned": point, "full": point}
                if name == "gold":
                    done[name]["verdict"] = self.audit(lm)
                yield name
        training = {"steps": options.steps, "batch_size": options.batch}
        plan = arms(source, options.rates, **training)
        wanted = list(plan) if "all" in options.methods else options.methods
        start = {key: value for key, value in done["untouched"]["tuned"].items() if key not in ("tofu", "test")}
        for name in wanted:
            if name not in done:
                done[name] = self.arm(name, plan[name], start)
                yield name


def parser() -> argparse.ArgumentParser:
    """Return the options; their defaults suit two cores."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(os.environ.get("NEURONFORGET_SHARED", "../shared"))
    found.add_argument("--out", type=Path, required=True)
    found.add_argument("--data", type=Path, default=shared / "data", help="folder with tofu and text_corpus")
    found.add_argument("--whole", action="store_true", help="22M parameters, 180 authors: for a GPU")
    found.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    found.add_argument("--methods", nargs="+", default=METHODS, help="method@place, or all")
    found.add_argument("--audited", nargs="*", default=list(AUDITED), help="methods whose verdict is asked for")
    found.add_argument("--steps", type=int, default=25, help="of each training")
    found.add_argument("--batch", type=int, default=16, help="forget examples of a step, and as many of retain")
    found.add_argument("--rates", type=float, nargs="+", default=[1.0], help="of the default learning rate")
    found.add_argument("--n", type=int, default=100, help="questions of each of TOFU's sets; the authors ask 300")
    found.add_argument("--measured", type=int, default=40, help="examples of each corpus where an edit is tuned")
    found.add_argument("--tokens", type=int, default=50, help="of a written answer; the authors allow 200")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--device", default="cpu")
    return found


def check(options: argparse.Namespace, setting: Setting) -> None:
    """Raise InputError for settings that are no study's, before anything is trained."""
    taught = (setting.authors - LAST) * ROWS_PER_AUTHOR
    if min(options.n, RETAIN_ASKED) > taught:
        raise nf.InputError(f"--n {options.n} asks of authors whom the model is not taught: at most {taught}")
    if wrong := [name for name in COUNTS if getattr(options, name) < 1]:
        raise nf.InputError(f"--{wrong[0]} is 1 or more, found {getattr(options, wrong[0])}")
    if not all(0 < rate < float("inf") for rate in options.rates):
        raise nf.InputError(f"--rates are above 0, found {options.rates}")
    asked, known = set(options.methods) - {"all"}, names()
    if unknown := sorted((asked | set(options.audited)) - known):
        raise nf.InputError(f"no method is called {unknown[0]!r}; there are all, {', '.join(sorted(known))}")


def study(options: argparse.Namespace, setting: Setting) -> Iterator[tuple[dict[str, Any], str]]:
    """Measure what is missing of OUT/study.json; yield (all that is done, what was added last)."""
    check(options, setting)
    path = options.out / "study.json"
    taught = Taught.of(options.data, setting)
    about = {key: getattr(options, key) for key in SETTINGS} | {"setting": asdict(setting)}
    about |= {"strengths": STRENGTHS, "share": SHARE, "damage": DAMAGE}
    files = sorted((options.data / "tofu").glob("*.jsonl"))
    data = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    key = content_key(text=taught.text.digest(), others=taught.others.digest(), data=data, **about)
    options.out.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if done.setdefault("key", key) != key:
        raise SystemExit(f"{path} holds another study (models or settings): give another --out")
    found = models(options.data, setting, options.splits, options.device)
    done |= {"about": about, "parameters": sum(p.numel() for p in found["full"].parameters.values())}
    for split in options.splits:
        own, arms = Study.of(split, found, taught, options), done.setdefault("splits", {}).setdefault(split, {})
        done.setdefault("authors", {})[split] = own.authors
        for name in chain([None], own.run(arms)):  # first the authors, also where every arm is there
            keep(path, **{k: v for k, v in done.items() if k != "environment"})
            if name is not None:
                yield done, f"{split}: {name}"


def main(argv: Sequence[str] | None = None) -> None:
    """Teach the models, measure every arm, write `study.json` (as the work goes on), `tables.md` and `tofu.svg`."""
    options = parser().parse_args(argv)
    setting = replace(WHOLE, seed=options.seed) if options.whole else Setting(seed=options.seed)
    with in_one_line():
        for _, name in study(options, setting):
            print(name, flush=True)
    done = json.loads((options.out / "study.json").read_text())
    splits = {split: done["splits"][split] for split in options.splits}
    text = tables(splits, done)
    (options.out / "tables.md").write_text(text)
    (options.out / "tofu.svg").write_text(picture(splits))
    print(text)


if __name__ == "__main__":
    main()
