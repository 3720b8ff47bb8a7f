"""The whole path on a real small model with plain text (NEURONFORGET_SHARED, default ../shared; skipped without it)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

import neuronforget as nf

pytestmark = pytest.mark.slow

SHARED = Path(os.environ.get("NEURONFORGET_SHARED", "../shared"))
STORIES = SHARED / "data/text_corpus/tinystories.jsonl.gz"


@pytest.mark.skipif(
    not ((SHARED / "models/stories260k").is_dir() and STORIES.is_file()),
    reason="no folder with stories260k and its text",
)
def test_the_whole_path_runs_on_stories260k_with_two_sets_of_stories(tmp_path: Path) -> None:
    lm = nf.load(SHARED / "models/stories260k")
    stories = nf.corpora.jsonl(STORIES, n=8, max_tokens=32)
    forget = replace(stories, examples=stories.examples[:3], name="forget")
    retain = replace(stories, examples=stories.examples[3:], name="retain")
    found = nf.compare(lm, forget, retain, steps=4, controls=1, progress=False)
    found.save(tmp_path / "out")
    value = found.results.value
    assert value("untouched", "forget", "nll") < 2.5  # it is a model of such stories
    assert value("npo@neurons", "forget", "nll") > value("untouched", "forget", "nll")
    assert "dpo" not in set(found.results.frame["edit"])  # no preferred answers were given
    assert (tmp_path / "out" / "report.html").is_file()
