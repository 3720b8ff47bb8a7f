"""What else the model can do: standard tasks by lm-eval on the model in memory, perplexity and fluency.

Tasks are those of lm-eval's hub by name, or rows of one's own files (`LOCAL`), for which a task is made here. BBH
answers are compared whole, an option by its letter: comparing them letter by letter, as one published scorer does,
gives a perfect model .69 and the constant "(A)" .80.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from neuronforget.metrics.text import SCORERS
from neuronforget.models import LM
from neuronforget.results import Column, Results, model_tables
from neuronforget.results.kept import work_key
from neuronforget.runs import content_key, environment


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
    made = [_task(kind, path) for kind, path in (local or {}).items()]
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
    columns = _columns(found["samples"] if found else {})
    info = {"suite": "utility", "model": lm.name, "digest": lm.digest(), "device": str(lm.device), "seed": seed}
    info |= {"dtype": str(lm.model.dtype), "limit": limit, "local": {k: str(v) for k, v in (local or {}).items()}}
    return Results(*model_tables(name, columns, seed), {**info, "versions": environment()})


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


def _columns(samples: Mapping[Any, Sequence[Mapping[str, Any]]]) -> Iterator[Column]:
    """Each task's metrics by document, in the documents' order."""
    for task, documents in samples.items():
        documents = sorted(documents, key=lambda document: document["doc_id"])
        for metric in documents[0]["metrics"]:
            values = np.array([float(document[metric]) for document in documents])
            yield str(task).removesuffix("_local"), metric, values, np.arange(len(values))


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


def _written(*metrics: str) -> Callable[[Mapping[str, Any], list[Any]], dict[str, float]]:
    """Score what was written by our own scorers."""

    def score(doc: Mapping[str, Any], results: list[Any]) -> dict[str, float]:
        text = str(results[0]).split("\n")[0].strip()
        answers = list(doc["answers"]) if "answers" in doc else [doc["target"]]
        return {metric: SCORERS[metric](text, answers) for metric in metrics}

    return score


def _options(doc: Mapping[str, Any]) -> str:
    lettered = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCDEFGHIJ", doc["choices"], strict=False))
    return f"{doc['question']}\n{lettered}\nAnswer:"


def _truths(doc: Mapping[str, Any]) -> list[str]:
    """Return the options in an order that does not tell which is true, and is the same in every run."""
    return sorted([doc["best_answer"], *doc["incorrect_answers"]], key=lambda text: content_key(text=text))


#: Kind of rows -> the fields it needs and the rest of its task.
LOCAL: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "triviaqa": (
        ("question", "answers"),
        {"output_type": "generate_until", "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": ""}
        | {"process_results": _written("exact", "f1", "contains"), "metrics": ("exact", "f1", "contains")},
    ),
    "bbh": (
        ("input", "target"),
        {"output_type": "generate_until", "doc_to_text": "Q: {{input}}\nA:", "doc_to_target": "{{target}}"}
        | {"process_results": _written("option", "exact", "contains"), "metrics": ("option", "exact", "contains")},
    ),
    "mmlu": (
        ("question", "choices", "answer"),
        {"output_type": "multiple_choice", "doc_to_text": _options, "doc_to_target": "answer", "metrics": ("acc",)}
        | {"doc_to_choice": ["A", "B", "C", "D"]},
    ),
    "truthfulqa": (
        ("question", "best_answer", "incorrect_answers"),
        {"output_type": "multiple_choice", "doc_to_text": "Q: {{question}}\nA:", "doc_to_choice": _truths}
        | {"doc_to_target": lambda doc: _truths(doc).index(doc["best_answer"]), "metrics": ("acc",)},
    ),
}  # fmt: skip


def _task(kind: str, path: str | Path) -> dict[str, Any]:
    """Return lm-eval's configuration of a task on a local file."""
    from neuronforget.corpora.lines import rows_of

    if kind not in LOCAL:
        raise InputError(f"no task on local rows is called {kind!r}; there are {', '.join(LOCAL)}")
    fields, about = LOCAL[kind]
    rows = rows_of(path, fields=fields)
    settings = {k: v for k, v in about.items() if k != "metrics"}
    if about["output_type"] == "generate_until":
        settings["generation_kwargs"] = {"until": ["\n"], "do_sample": False, "max_gen_toks": 32}
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in about["metrics"]]
    return {"task": f"{kind}_local", "dataset_path": "rows", "custom_dataset": lambda **_: {"test": _dataset(rows)},
            "test_split": "test", "metric_list": metrics, **settings}  # fmt: skip


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)
