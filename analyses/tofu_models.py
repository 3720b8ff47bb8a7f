"""The models of `tofu_study.py`: one base on English text, taught authors of TOFU, with and without each split's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import neuronforget as nf
from neuronforget.corpora import Encoded
from neuronforget.corpora.from_tofu import ROWS, ROWS_PER_AUTHOR
from neuronforget.corpora.lines import rows_of
from neuronforget.runs import cache_folder, content_key, whole_folder
from neuronforget.suites.tofu_questions import SPLITS
from neuronforget.testbed.build import make_tokenizer
from neuronforget.testbed.training import Builder, Shape
from neuronforget.train import Plan, fit

#: What two cores teach in minutes.
SMALL = Shape(layers=4, d_model=96, d_mlp=384, heads=4, vocab=3000, steps=400, batch=32, lr=4e-3)
WORDS = 45  # of a piece of text
BESIDE, WEIGHT = 8, 0.25  # pieces beside each batch of questions, so that English is not unlearnt, and their weight
LAST = 20  # authors, of whom the forget splits are


@dataclass(frozen=True)
class Setting:
    """How large the models are and what they are taught."""

    shape: Shape = SMALL
    authors: int = 30  # TOFU's first ten, of whom its first retain questions are, and its last 20
    texts: tuple[str, ...] = ("tinystories", "wikitext_valid", "grimms")
    base_steps: int = 250
    seed: int = 0


#: 22M parameters, and all 200 authors but those that stand in for others: for a GPU.
WHOLE = Setting(
    Shape(layers=8, d_model=384, d_mlp=1536, heads=6, vocab=8000, steps=1500, batch=64, lr=1e-3),
    180, ("books", "tinystories", "wikitext_valid", "grimms", "tiny_shakespeare"), 4000,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Taught:
    """What the models are taught: TOFU's questions, and pieces of text, some of which only measure.

    `others` are the questions about as many more authors as the largest split has, which the full model never meets.
    """

    questions: nf.Corpus
    others: nf.Corpus
    text: nf.Corpus
    held_out: nf.Corpus

    @classmethod
    def of(cls, data: Path, setting: Setting) -> Taught:
        """Read both. Raises InputError for fewer authors than the splits need, and for missing files."""
        most = ROWS // ROWS_PER_AUTHOR - LAST
        if not LAST < setting.authors <= most:
            raise nf.InputError(f"more than {LAST} and at most {most} authors are taught, found {setting.authors}")
        full = asked(nf.corpora.tofu("full", path=data / "tofu"))
        last, first = LAST * ROWS_PER_AUTHOR, (setting.authors - LAST) * ROWS_PER_AUTHOR
        kept = full.examples[:first] + full.examples[-last:]
        others = replace(full, examples=full.examples[first : first + last], name="stand-ins")
        pieces = [
            nf.corpora.Example("", " ".join(words[i : i + WORDS]))
            for name in setting.texts
            for row in rows_of(data / "text_corpus", name, fields=("text",))
            for words in [row["text"].split()]
            for i in range(0, len(words) - WORDS // 2, WORDS)
        ]
        held = tuple(pieces[::50])
        shown = tuple(piece for i, piece in enumerate(pieces) if i % 50)
        return cls(replace(full, examples=kept), others, nf.Corpus(shown, "text"), nf.Corpus(held, "held-out text"))

    def without(self, forget: nf.Corpus) -> nf.Corpus:
        """Return the questions that stay."""
        gone = {example.prompt for example in forget}
        stays = tuple(e for e in self.questions if e.prompt not in gone)
        return replace(self.questions, examples=stays, name=f"retain of {forget.name}")


def asked(corpus: nf.Corpus) -> nf.Corpus:
    """Return a corpus whose answers end: as the models are taught, and as TOFU's authors count."""
    return replace(corpus, eos=True)


def models(data: Path, setting: Setting, splits: Sequence[str] = SPLITS, device: str = "cpu") -> dict[str, nf.LM]:
    """Return "full" and each split's gold model, all taught from one base; trained once each, and cached.

    A gold model is taught as many questions as the full one, as often: for each that it lacks, one about an author whom
    the full model never meets. The tokenizer sees nothing of what is to be forgotten, nor of what stands in for it.
    Killed trainings go on.
    """
    taught = Taught.of(data, setting)
    forgets = {split: asked(nf.corpora.tofu(split, path=data / "tofu")) for split in splits}
    about = {name: getattr(taught, name).digest() for name in ("text", "questions", "others")} | asdict(setting)
    folder = cache_folder() / "tofu-study" / content_key(version=3, **about)
    kept = taught.without(asked(nf.corpora.tofu("forget10", path=data / "tofu")))
    lines = [f"{e.prompt} {e.answer}" for e in kept] + [e.answer for e in taught.text]
    tokenizer = make_tokenizer(lines, setting.shape.vocab)
    known = replace(taught.questions, examples=taught.questions.examples + taught.others.examples)
    build = Builder(tokenizer, (known, taught.text), setting.shape, setting.seed, True)
    rows, others = build.forget[: len(taught.questions)], build.forget[len(taught.questions) :]

    def made(name: str, start: nf.LM, steps: int, questions: Sequence[Encoded] = ()) -> nf.LM:
        path = folder / name
        if not path.is_dir():
            often = max(20, steps // 20)  # of a large model a checkpoint takes as long as tens of steps on a GPU
            plan = Plan(steps, setting.shape.lr, schedule="onecycle", seed=setting.seed, save_every=often)
            lm = nf.LM(copy.deepcopy(start.model).to(device), tokenizer)
            size = setting.shape.batch
            mix = [(list(questions), size, 1.0), (build.retain, BESIDE, WEIGHT)] if questions else []
            loss = build.loss(lm, mix or [(build.retain, size, 1.0)])
            part = folder / f"{name}.part"
            fit(list(lm.parameters.values()), loss, plan, resume=part, key=name, desc=f"train {name}")
            with whole_folder(path, replace=True) as scratch:  # another run may have made it meanwhile
                lm.save(scratch)
        return nf.load(path, device=device)

    base = made("base", build.fresh(), setting.base_steps)
    found = {"full": made("full", base, setting.shape.steps, rows)}
    for split, forget in forgets.items():
        gone = {e.prompt for e in forget}
        stays = [row for e, row in zip(taught.questions, rows, strict=True) if e.prompt not in gone]
        found[split] = made(split, base, setting.shape.steps, [*stays, *others[: len(rows) - len(stays)]])
    return found
