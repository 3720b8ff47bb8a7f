"""How does the cost of attribution grow with the model and with the corpus? As a multiple of a training step's pass.

Random Llamas of three sizes (words as tokens), and corpora of three sizes. The measure is a forward and full backward
pass over the same batches, made in turns with each score, so that a slower machine slows both: what is shown is the
ratio, the middle one of the turns, and its range. `exact` ablates a quarter of each layer's neurons, and is shown four
times as dear, as of all (at one position, where much is shared, that would not do).

python analyses/attribution_cost.py --out cost  # most of the time is `exact`; goes on where it was
python analyses/attribution_cost.py --out cost --turns 9
python analyses/attribution_cost.py --out cost --model CHECKPOINT --forget forget.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cells import table
from running import claim, in_one_line, keep, kept

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / folder) for folder in ("benchmarks", "kernels")]

from bench_results import environment, write_results  # noqa: E402
from cost_figure import picture  # noqa: E402
from gauges import counted, in_turns  # noqa: E402
from problems import problem  # noqa: E402

import neuronforget as nf  # noqa: E402
from neuronforget.models.likelihood import answer_nll  # noqa: E402
from neuronforget.runs import content_key  # noqa: E402

#: Name -> layers, width, neurons of a layer.
MODELS = {"2x256": (2, 64, 256), "4x512": (4, 128, 512), "6x1024": (6, 256, 1024)}
MIDDLE, VOCAB, PROMPT, ANSWER = "4x512", 2000, 8, 4
SIZES, EXAMPLES = (16, 64, 256), 32  # of corpora; of the one that models of each size are given
BATCH, PART = 16, 4  # examples of a batch; of so many neurons `exact` takes one


def scores_of(lm: nf.LM) -> dict[str, tuple[Callable[..., Any], float]]:
    """Return score -> the function that is timed, and what its time is multiplied by to be that of all neurons."""
    some = [(site.layer, j) for site in lm.sites for j in range(0, lm.shape[1], PART)]
    exact = partial(nf.scores.exact, neurons=_rows(lm, some))
    plain = ("grad_x_act", "relp", "gradient_drop", "value_fisher", "integrated")
    found = {name: (getattr(nf.scores, name), 1.0) for name in plain}
    return {**found, "exact": (exact, float(PART))}


def _rows(lm: nf.LM, members: Sequence[tuple[int, int]]) -> nf.Neurons:
    return nf.Neurons(frozenset(members), tuple(site.layer for site in lm.sites), lm.shape[1])


def full_pass(lm: nf.LM, corpus: nf.Corpus) -> None:
    """A training step's forward and backward over every batch, without an optimiser."""
    for batch in lm.batches(corpus, BATCH):
        answer_nll(lm.model(**batch.inputs, use_cache=False).logits, batch).sum().backward()
        lm.model.zero_grad()


def row_of(lm: nf.LM, corpus: nf.Corpus, score: str, turns: int) -> dict[str, Any]:
    """Return the ratio of one score's time to that of a full pass: middle, lowest and highest of the turns."""
    function, times = scores_of(lm)[score]
    calls = {
        "pass": partial(full_pass, lm, corpus),
        "score": partial(nf.attribute, lm, corpus, score=function, batch_size=BATCH, progress=False),
    }
    calls["pass"]()  # the first counts for none
    calls["score"]()
    spent = in_turns(calls, turns, lm.device.type)
    ratios = sorted(times * a / b for a, b in zip(spent["score"], spent["pass"], strict=True))
    return {
        "score": score, "neurons": lm.shape[0] * lm.shape[1], "examples": len(corpus),
        "parameters": sum(p.numel() for p in lm.model.parameters()), "ratio": float(np.median(ratios)),
        "lowest": ratios[0], "highest": ratios[-1], "turns": turns, "pass ms": 1e3 * float(np.median(spent["pass"])),
    }  # fmt: skip


def made(name: str, examples: int) -> tuple[nf.LM, nf.Corpus]:
    """Return a random model of that name, and a corpus of random words."""
    layers, width, neurons = MODELS[name]
    settings = {"hidden_size": width, "intermediate_size": neurons, "num_hidden_layers": layers, "vocab_size": VOCAB,
                "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip
    return problem(settings, examples, PROMPT, ANSWER)


def problems(own: tuple[nf.LM, nf.Corpus] | None) -> Iterator[tuple[str, str, nf.LM, nf.Corpus]]:
    """Yield what varies ("model" or "corpus"), its name, a model and a corpus."""
    if own is None:
        yield from (("model", name, *made(name, EXAMPLES)) for name in MODELS)
        yield from (("corpus", str(size), *made(MIDDLE, size)) for size in SIZES)
        return
    lm, corpus = own
    for size in (*(size for size in SIZES if size < len(corpus)), len(corpus)):
        yield "corpus", str(size), lm, corpus.head(size)


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Return for each thing that varies the ratios by score, and how steeply they grow (1: in proportion)."""
    parts = []
    for what, along in (("model", "neurons"), ("corpus", "examples")):
        mine = [row for row in rows if row["varied"] == what]
        if not mine:
            continue
        names = list(dict.fromkeys(row["name"] for row in mine))
        lines = []
        for score in dict.fromkeys(row["score"] for row in mine):
            found = {row["name"]: row for row in mine if row["score"] == score}
            cells = [_shown(found[name]) if name in found else "" for name in names]
            lines.append([score, *cells, *([f"{slope(list(found.values()), along):.2f}"] if len(found) > 1 else [""])])
        parts.append(f"## By {what}\n\n" + table(["score", *names, f"exponent in {along}"], lines))
    return "\n\n".join(parts) + "\n"


def _shown(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.3g} [{row['lowest']:.3g}, {row['highest']:.3g}]"


def slope(rows: Sequence[dict[str, Any]], along: str) -> float:
    """Return the exponent b of the least-squares fit ratio = c size^b."""
    x, y = (np.log([row[key] for row in rows]) for key in (along, "ratio"))
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    """Time every score on every problem, write `cost.json` (as the work goes on), results, `tables.md`, `cost.svg`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--turns", type=counted, default=3)
    parser.add_argument("--scores", nargs="+", help="some of them")
    parser.add_argument("--model", help="checkpoint folder or hub id, in place of the random models")
    parser.add_argument("--forget", type=Path, help="JSONL rows with prompt and answer")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.model is not None and options.forget is None:
        raise SystemExit("--model needs --forget, a JSONL file with prompt and answer")
    path = options.out / "cost.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else []
    subjects = kept(path, "subjects")
    with in_one_line():
        own, subject = None, "testbeds"
        if options.model is not None:
            own = nf.load(options.model, device=options.device), nf.corpora.jsonl(options.forget)
            subject = content_key(model=own[0].digest(), corpus=own[1].digest())
        claim(path, ["rows"] if rows else [], subjects, "rows", subject)
        for what, name, lm, corpus in problems(own):
            for score in options.scores or scores_of(lm):
                if not any((row["varied"], row["name"], row["score"]) == (what, name, score) for row in rows):
                    rows.append({"varied": what, "name": name, **row_of(lm, corpus, score, options.turns)})
                    keep(path, subjects=subjects, rows=rows)
                    print(f"{what} {name}, {score}: {rows[-1]['ratio']:.3g}", flush=True)
    text = tables(rows)
    (options.out / "tables.md").write_text(text)
    (options.out / "cost.svg").write_text(picture(rows))
    results = {"environment": environment(options.device), "attribution": rows}
    write_results(
        "Cost of attribution", results, __doc__.split("\n\n")[1].replace("\n", " "), options.out, "attribution"
    )
    print(text)


if __name__ == "__main__":
    main()
