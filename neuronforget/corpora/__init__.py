"""Read: named question/answer examples from files, rows or published datasets."""

from neuronforget.corpora.corpus import Corpus, Example, check_disjoint
from neuronforget.corpora.from_jsonl import jsonl
from neuronforget.corpora.from_tofu import tofu
from neuronforget.corpora.tokens import Batch, Encoded, batches, encode

__all__ = ["Batch", "Corpus", "Encoded", "Example", "batches", "check_disjoint", "encode", "jsonl", "tofu"]
