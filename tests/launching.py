"""Processes of their own for tests: what they work on, and `torchrun` of two of them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import neuronforget as nf
from neuronforget.corpora import Corpus

ROOT = Path(nf.__file__).parent.parent
#: What the processes of a test work on: the same model and corpus as the fixtures'.
WORKERS = """
    from pathlib import Path
    import torch
    from transformers import Qwen2Tokenizer
    from families import build
    from neuronforget.corpora import jsonl
    from neuronforget.models import LM
    def material():
        torch.set_num_threads(1)
        corpus = jsonl(Path(__file__).with_name("facts.jsonl"))
        tokenizer = Qwen2Tokenizer().train_new_from_iterator([f"{e.prompt} {e.answer}" for e in corpus], 300)
        return LM(build("qwen2", vocab_size=len(tokenizer)), tokenizer), corpus
"""


def script(folder: Path, corpus: Corpus, body: str) -> Path:
    corpus.save(folder / "facts.jsonl")
    (folder / "workers.py").write_text(textwrap.dedent(WORKERS))
    path = folder / "script.py"
    path.write_text(textwrap.dedent(body))
    return path


def environment(folder: Path) -> dict[str, str]:
    paths = [ROOT, ROOT / "kernels", ROOT / "tests", folder]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}


def torchrun(folder: Path, corpus: Corpus, body: str) -> None:
    """Run `body` in two processes of one launch, which are given the folder."""
    launch(folder, script(folder, corpus, body), folder)


def launch(folder: Path, *words: str | Path) -> str:
    """Run a script with its arguments in two processes of one launch, in `folder`; return what they print."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, *words], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[:4000]
    return done.stdout
