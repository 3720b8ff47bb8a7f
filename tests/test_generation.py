"""What a model writes: its most likely next tokens, in batches, to its stop strings, kept for a second scoring."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import build
from torch import Tensor

from neuronforget import erase
from neuronforget.corpora import Corpus, Example
from neuronforget.errors import InputError
from neuronforget.evaluation.generation import Decoding, generate
from neuronforget.models import LM


def asks(*prompts: str) -> Corpus:
    return Corpus(tuple(Example(prompt, "x") for prompt in prompts), "asks")


PROMPTS = ("Anna Berg was born in", "The capital of", "Tomas", "Who wrote the book of rivers? It was")


def by_hand(lm: LM, prompt: str, tokens: int) -> str:
    """One token after the other, the whole text run again each time."""
    ids = list(lm.tokenizer(prompt)["input_ids"])
    given = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == lm.tokenizer.eos_token_id:
            break
    return lm.tokenizer.decode(ids[given:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gpt_neox", "opt", "gemma3"])
def test_a_batch_is_answered_as_each_prompt_alone_one_token_at_a_time(family: str, lm: LM) -> None:
    own = LM(build(family, vocab_size=len(lm.tokenizer), eos_token_id=1), lm.tokenizer)
    own.model.generation_config.do_sample, own.model.generation_config.temperature = True, 5.0  # not to count
    was = own.model.generation_config
    found = generate(own, asks(*PROMPTS), Decoding(7, ()), batch_size=3, progress=False)
    assert found == [by_hand(own, prompt, 7) for prompt in PROMPTS]
    assert own.model.generation_config is was


def test_an_answer_ends_before_its_stop_string(lm: LM) -> None:
    whole = generate(lm, asks(*PROMPTS), Decoding(12, ()), progress=False)
    word = next(text for text in whole if len(text) > 4)[2:4]
    found = generate(lm, asks(*PROMPTS), Decoding(12, (word, "\n")), progress=False)
    assert found == [text.partition(word)[0].partition("\n")[0].strip() for text in whole] and found != whole


class _Counting(torch.nn.Module):
    """Counts the passes of a model, and dies at a given one."""

    def __init__(self, lm: LM, last: int = 10**9) -> None:
        super().__init__()
        self.passes = 0
        self.handle = lm.model.register_forward_pre_hook(self.count)
        self.last = last

    def count(self, *_: object) -> None:
        self.passes += 1
        if self.passes > self.last:
            raise KeyboardInterrupt


def test_kept_answers_are_not_written_again_and_a_kill_loses_a_batch(lm: LM, tmp_path: Path) -> None:
    decoding, whole = Decoding(5, ()), generate(lm, asks(*PROMPTS), Decoding(5, ()), progress=False)
    killed = _Counting(lm, 12)  # five passes a batch of one: two of four prompts
    with pytest.raises(KeyboardInterrupt):
        generate(lm, asks(*PROMPTS), decoding, batch_size=1, kept=tmp_path, progress=False)
    killed.handle.remove()
    (path,) = tmp_path.iterdir()
    assert path.read_text().count("\n") == 2
    path.write_text(path.read_text()[:-3])  # and its last line was cut
    again = _Counting(lm)
    assert generate(lm, asks(*PROMPTS), decoding, batch_size=1, kept=tmp_path, progress=False) == whole
    assert again.passes == 15
    assert generate(lm, asks(*PROMPTS), decoding, kept=tmp_path, progress=False) == whole and again.passes == 15
    # other settings, another model, a guard and other ends are other answers
    generate(lm, asks(*PROMPTS), Decoding(4, ()), kept=tmp_path, progress=False)
    corpus = Corpus((Example("Anna Berg was born in", "Oslo"),), "f")
    guard = erase.guards.eco(lm, corpus, Corpus((Example("The capital of Xandria is", "Velm"),), "r"), sigma=3.0)
    with guard.on(lm):
        generate(lm, asks(*PROMPTS), decoding, kept=tmp_path, progress=False)
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[5] += 1
    generate(lm, asks(*PROMPTS), decoding, kept=tmp_path, progress=False)
    lm.model.generation_config.eos_token_id = [5, 6]
    generate(lm, asks(*PROMPTS), decoding, kept=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_broken_model_stops_the_run(lm: LM) -> None:
    def spoil(_module: object, _inputs: object, output: Tensor) -> Tensor:
        return output * float("nan")

    handle = lm.model.get_output_embeddings().register_forward_hook(spoil)
    with pytest.raises(InputError, match="returns NaN while it writes"):
        generate(lm, asks("Anna"), progress=False)
    handle.remove()


def test_bad_requests_are_refused(lm: LM) -> None:
    with pytest.raises(InputError, match="no token to go on from"):
        generate(lm, Corpus((Example("", "plain text"),), "text"), progress=False)
    with pytest.raises(InputError, match="and 64 of answer, but the model takes"):
        generate(lm, asks("Anna Berg"), Decoding(64), progress=False)
    for wrong in ({"max_new_tokens": 0}, {"stop": ("",)}):
        with pytest.raises(InputError, match=r"decoding needs|Decoding: max_new_tokens must be a whole number"):
            Decoding(**wrong)  # type: ignore[arg-type]
