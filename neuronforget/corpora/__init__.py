"""Read: named question/answer examples from files, rows or published datasets."""

from neuronforget.corpora.corpus import Corpus, Example, Fingerprint, check_disjoint, digests_of, subjects_of
from neuronforget.corpora.from_counterfact import counterfact
from neuronforget.corpora.from_jsonl import jsonl
from neuronforget.corpora.from_rwku import rwku
from neuronforget.corpora.from_tofu import tofu
from neuronforget.corpora.streams import Source, Stream, disjoint, encoded_batches, stream
from neuronforget.corpora.tokens import Batch, Encoded, batches, collate, encode

__all__ = [
    "Batch", "Corpus", "Encoded", "Example", "Fingerprint", "Source", "Stream", "batches", "check_disjoint", "collate",
    "counterfact", "digests_of", "disjoint", "encode", "encoded_batches", "jsonl", "rwku", "stream", "subjects_of",
    "tofu",
]  # fmt: skip
