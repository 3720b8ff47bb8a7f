"""What `qwen_case_study.py` reads of RWKU, TriviaQA and BBH, and the models that it makes itself."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import neuronforget as nf
from neuronforget.corpora.lines import rows_of
from neuronforget.corpora.tokens import join
from neuronforget.suites.rwku import CLOZE, LEVELS, MEMBERS, QUESTION
from neuronforget.testbed.build import make_tokenizer
from neuronforget.testbed.training import Shape

#: The shapes of `--shape`: Qwen1.5-1.8B's own, and one for trying the mode.
SHAPES = {
    "1.8B": {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16,
             "num_key_value_heads": 16, "vocab_size": 151936, "tie_word_embeddings": False},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "vocab_size": 1500, "tie_word_embeddings": False},
}  # fmt: skip
HOLDS = 4096  # tokens: the longest BBH question, by a small tokenizer
TINY = Shape(layers=4, d_model=128, d_mlp=512, vocab=2500, steps=220, batch=24, lr=3e-3)


@dataclass(frozen=True)
class Size:
    """How much is read and asked. The defaults suit the tiny model; None asks everything."""

    pairs: int = 30  # of the target, and as many of others that are kept
    words: int = 60  # of a passage, half as many of a pair's texts
    others: int = 4  # targets that are kept
    n: int | None = None  # RWKU questions of each level and attack
    trivia: int = 60
    tasks: int = 2  # rows of each of BBH's 27 tasks


@dataclass(frozen=True, eq=False)
class Rows:
    """One target: what erasures are shown (forget, retain), what is asked, and where the files of other tasks lie."""

    data: Path
    target: str
    size: Size
    forget: nf.Corpus
    retain: nf.Corpus
    members: nf.Corpus
    others: nf.Corpus
    known: nf.Corpus  # the probes of levels 1 and 2, as a model can be taught them
    near: nf.Corpus  # the probes of neighbours
    fame: nf.Corpus  # those of other targets
    local: dict[str, Path]

    @classmethod
    def of(cls, data: Path, target: str | None, size: Size, out: Path, seed: int = 0) -> Rows:
        """Read it all; samples of TriviaQA and BBH go to OUT. Target None: the first that has training pairs."""
        rwku = data / "rwku"
        pairs = rows_of(rwku, "train_pair", fields=("subject", "prompt", "positive", "negative"))
        names = list(dict.fromkeys(row["subject"] for row in pairs))
        target = names[0] if target is None else target
        if target not in names:
            raise nf.InputError(f"RWKU has training pairs of {', '.join(names)}; none of {target!r}")
        kept = [name for name in names if name != target][: size.others]
        words = size.words // 2
        forget = nf.Corpus(tuple(_pairs(pairs, target, size.pairs, words)), "forget")
        retain = [e for name in kept for e in _pairs(pairs, name, max(size.pairs // size.others, 1), words)]
        asked = ("forget 1", "forget 2"), ("neighbor 1", "neighbor 2")
        known, near = (nf.Corpus(tuple(_questions(rwku, levels, {target})), levels[0]) for levels in asked)
        fame = tuple(_questions(rwku, asked[0], set(kept)))
        texts = {
            side: nf.Corpus(tuple(_texts(rows_of(rwku, file, fields=("text", "subject")), target, size.words)), side)
            for side, file in MEMBERS.items()
        }
        local = {"triviaqa": out / "triviaqa.jsonl", "bbh": out / "bbh.jsonl"}
        draw = random.Random(seed)
        trivia = rows_of(data / "triviaqa", "triviaqa", fields=("question", "answers"))
        _write(local["triviaqa"], draw.sample(trivia, min(size.trivia, len(trivia))))
        _write(local["bbh"], _each_task(rows_of(data / "bbh", "bbh", fields=("task", "input", "target")), size, draw))
        corpora = forget, nf.Corpus(tuple(retain), "retain"), texts["members"], texts["non-members"]
        return cls(data, target, size, *corpora, known, near, nf.Corpus(fame, "fame"), local)

    def about(self) -> dict[str, Any]:
        """Return what the numbers depend on: kept with them, so that they are not continued with others."""
        corpora = {c.name: c.digest() for c in (self.forget, self.retain, self.members, self.others)}
        return {"target": self.target, "size": asdict(self.size), "data": corpora}


def _pairs(rows: Iterable[dict[str, Any]], subject: str, count: int, words: int) -> list[nf.corpora.Example]:
    """RWKU's own training rows, evenly spaced: a description (GA's), and a counterfactual one, which DPO prefers."""
    found: dict[str, nf.corpora.Example] = {}
    for row in rows:
        true, false = (_cut(row[key], words) for key in ("positive", "negative"))
        long = min(len(true.split()), len(false.split())) >= words // 2  # many are one line that says nothing
        if row["subject"] == subject and long:
            found.setdefault(true, nf.corpora.Example(_ask(row["prompt"]), true, wrong=(false,), subject=subject))
    every = list(found.values())
    return every[:: max(len(every) // count, 1)][:count]


def _ask(prompt: str) -> str:
    """The last sentence of a prompt: what stands before it introduces the person, in every row alike."""
    return prompt.strip().split(". ")[-1] + "\n"


def _cut(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def _questions(rwku: Path, levels: Iterable[str], subjects: set[str]) -> Iterable[nf.corpora.Example]:
    """Probes with their answers, closed by a line end: where answers stop."""
    for level in levels:
        template = CLOZE if level.endswith(" 1") else QUESTION
        for row in rows_of(rwku, LEVELS[level], fields=("query", "answer", "subject")):
            if row["subject"] in subjects:
                yield nf.corpora.Example(template.format(prompt=row["query"]), f"{row['answer']}\n")


def _texts(rows: Iterable[dict[str, Any]], target: str, words: int) -> list[nf.corpora.Example]:
    """RWKU's passages for membership inference: FM is about the target, RM, in the same folder, about others."""
    texts = dict.fromkeys(_cut(row["text"], words) for row in rows if row["subject"] == target)
    return [nf.corpora.Example("", text) for text in texts]


def _each_task(rows: list[dict[str, Any]], size: Size, draw: random.Random) -> list[dict[str, Any]]:
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(row)
    return [row for own in tasks.values() for row in draw.sample(own, min(size.tasks, len(own)))]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def tiny(rows: Rows, shape: Shape = TINY, seed: int = 0) -> tuple[nf.LM, nf.LM]:
    """Train a tiny Qwen2 model on the target's pairs, passages and probes and on others'; and its gold twin.

    The twin is trained alike without anything of the target. Neither sees RM, attacks, TriviaQA or BBH. Cached.
    """
    derived = replace(rows.known, examples=(*rows.known, *rows.members), name="target")
    retain = replace(rows.near, examples=(*rows.near, *rows.fame, *rows.retain), name="others")
    bed = nf.testbed.from_rows(rows.forget, retain, derived=derived, seed=seed, shape=shape, progress=False)
    for lm in (bed.lm, bed.gold):
        lm.model.config.max_position_embeddings = HOLDS  # positions are rotary: no weight belongs to one
    return bed.lm, bed.gold


def shaped(rows: Rows, shape: str, device: str, seed: int = 0) -> nf.LM:
    """Return a model of a shape with random weights in bfloat16, and a small tokenizer: for time and memory alone."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    texts = ["".join(join(e.prompt, e.answer)) for corpus in (rows.forget, rows.retain, rows.near) for e in corpus]
    tokenizer = make_tokenizer(texts, min(2500, SHAPES[shape]["vocab_size"]))
    config = Qwen2Config(**SHAPES[shape], max_position_embeddings=HOLDS, pad_token_id=tokenizer.pad_token_id,
                         bos_token_id=None, eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    torch.manual_seed(seed)
    with torch.device(device):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16).eval()
    return nf.LM(model, tokenizer)
