"""What else the model can do: standard tasks by lm-eval on the model in memory, perplexity and fluency.

Tasks are those of lm-eval's hub by name, or rows of one's own files (`local_tasks`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, Example
from neuronforget.errors import InputError, reason
from neuronforget.evaluation.generation import Decoding, generate
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import nll
from neuronforget.models import LM
from neuronforget.results import Column, Results, model_tables
from neuronforget.results.kept import work_key
from neuronforget.runs import content_key, environment
from neuronforget.suites.answers import check_name
from neuronforget.suites.local_tasks import constants, task_of


@checks_kinds
def utility(
    lm: LM,
    tasks: Sequence[str] = (),
    *,
    local: Mapping[str, str | Path] | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    name: str = "model",
    kept: str | Path | None = None,
    seed: int = 0,
) -> Results:
    """Return a row of every task and metric, with a bootstrap interval over its documents.

    Of `local` tasks rows of the edit "best constant" are what one and the same answer (or place of an option) to every
    document scores, the best that there is (`answers.constant`), and "words" is how long the written answers are.
    `tasks` are names of lm-eval's tasks, from the hub; `local` maps "triviaqa", "bbh", "mmlu", "truthfulqa" to a JSONL
    file of such rows; each is run on its first `limit` documents. Greedy answers stop at line ends. `kept` is a folder
    for answers and likelihoods (lm-eval's own cache): a killed run goes on. Raises InputError without lm-eval, for
    an unknown task or file, for rows without a task's fields, and where the model returns NaN.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(f"utility tasks need lm-eval ({error}): pip install 'neuronforget[eval]'") from None
    check_name(name)
    made = [task_of(kind, path) for kind, path in (local or {}).items()]
    if not (tasks or made):
        raise InputError("no task is given: name some of lm-eval's, or give files by local=")
    wrapped = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size, max_length=lm.max_length)
    cache = str(Path(kept) / f"tasks-{work_key(lm, batch_size=batch_size)}") if kept is not None else None
    with _asking(lm):
        found = lm_eval.simple_evaluate(
            wrapped, tasks=[*tasks, *made], limit=limit, bootstrap_iters=0, log_samples=True, random_seed=seed,
            numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed, use_cache=cache,
            verbosity="ERROR",
            # its own tasks are some ten thousand files: they are looked through where one of them is asked alone
            task_manager=TaskManager(include_defaults=bool(tasks)),
        )  # fmt: skip
    samples = {str(task): documents for task, documents in (found["samples"] if found else {}).items()}
    rows, examples = model_tables(name, _columns(samples), seed)
    best = {}
    for kind in local or {}:
        best[_named(f"{kind}_local", samples)] = constants(kind, samples[f"{kind}_local"])
    columns = [(task, metric, v, np.arange(len(v))) for task, own in best.items() for metric, (_, v) in own.items()]
    rows += model_tables("best constant", columns, seed)[0]
    info: dict[str, Any] = {"suite": "utility", "model": lm.name, "digest": lm.digest(), "device": str(lm.device)}
    info |= {"dtype": str(lm.model.dtype), "limit": limit, "local": {k: str(v) for k, v in (local or {}).items()}}
    info |= {"seed": seed, "data": {_named(task, samples): _digest(own) for task, own in samples.items()}}
    info |= {"best constants": {task: {m: text for m, (text, _) in own.items()} for task, own in best.items()}}
    return Results(rows, examples, {**info, "versions": environment()})


@contextmanager
def _asking(lm: LM) -> Iterator[None]:
    """Within the block lm-eval prints nothing and NaN stops the model; what goes wrong is said in one line."""
    guard = lm.model.register_forward_hook(_not_nan)
    try:
        with redirect_stdout(StringIO()):
            yield
    except InputError:
        raise
    except (KeyError, ValueError, FileNotFoundError, ConnectionError) as error:
        raise InputError(f"lm-eval: {reason(error)}") from error
    finally:
        guard.remove()


def _named(task: str, samples: Mapping[str, Any]) -> str:
    """Return what a task is called: local rows by their kind, unless lm-eval's own task of that name is asked too."""
    short = task.removesuffix("_local")
    return task if short in samples else short


def _columns(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Column]:
    """Each task's metrics by document, in the documents' order; where a task has several filters, of each by name."""
    for task, documents in samples.items():
        filters = list(dict.fromkeys(document["filter"] for document in documents))
        for chosen in filters:
            own = sorted((d for d in documents if d["filter"] == chosen), key=lambda document: document["doc_id"])
            for metric in own[0]["metrics"]:
                values = np.array([float(document[metric]) for document in own])
                named = metric if len(filters) == 1 else f"{metric}, {chosen}"
                yield _named(task, samples), named, values, np.arange(len(values))


def _digest(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return a hash of what a task's documents hold, by lm-eval's own hash of each."""
    return content_key(documents=[d["doc_hash"] for d in sorted(documents, key=lambda document: document["doc_id"])])


def _not_nan(_model: Any, _given: Any, out: Any) -> None:
    """Of options whose likelihoods are NaN lm-eval takes the first: stop the run in its place."""
    if torch.isnan(out.logits[:, -1]).any():
        raise InputError("the model returns NaN while a task is asked: it is broken, which is not forgetting")


@checks_kinds
def perplexity(lm: LM, corpus: Corpus, *, batch_size: int = 32, kept: str | Path | None = None) -> dict[str, float]:
    """Return `token`: exp of the mean loss of a token, and `byte`: bits of a byte of the text that is predicted.

    Bits of a byte compare models of different tokenizers; perplexities of tokens do not.
    """
    rows = lm.encode(corpus)
    counts = np.array([len(row.ids) - max(row.answer_start, 1) for row in rows])
    total = float((measure(lm, corpus, [nll], batch_size=batch_size, kept=kept)["nll"] * counts).sum())
    said = sum(len(lm.tokenizer.decode(row.ids[max(row.answer_start, 1) :]).encode()) for row in rows)
    return {"token": math.exp(total / counts.sum()), "byte": total / math.log(2) / said}


@checks_kinds
def fluency(
    lm: LM,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 100,
    batch_size: int = 16,
    kept: str | Path | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Return the n-gram entropy (bits) of what the model goes on to say after each prompt: low where it repeats."""
    corpus = Corpus(tuple(Example(prompt, "x") for prompt in prompts), "prompts")
    texts = generate(lm, corpus, Decoding(max_new_tokens, ()), batch_size=batch_size, kept=kept, progress=progress)
    return np.array([ngram_entropy(text) for text in texts])


def ngram_entropy(text: str) -> float:
    """Return the mean of 2/3 of the entropy of a text's pairs of words and 4/3 of that of its triples, in bits.

    As Meng et al. 2022 (arXiv:2202.05262) weigh them; words are split at white space.
    """
    words = text.split()
    return sum(weight * _entropy(words, n) for n, weight in ((2, 2 / 3), (3, 4 / 3))) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = sum(counts.values())
    return -sum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0
