"""Training in two processes of one launch: the edit of one process, whole batches, budgets and resuming included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from launching import torchrun
from torch import nn

from neuronforget import erase, losses
from neuronforget.corpora import Corpus, Example
from neuronforget.edits import Edit
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.train.stopping import Budget

pytestmark = pytest.mark.slow

LAUNCHED = """
    import json, sys
    from pathlib import Path
    import torch.distributed as dist
    import neuronforget as nf
    from neuronforget.corpora import Corpus
    from neuronforget.runs.ranks import launched
    from workers import material
    from test_launched_training import RUNS, halves, tune
    out = sys.argv[1]
    lm, corpus = material()
    rank = launched(lm.device).rank
    forget, retain = halves(corpus)
    for (name, kind), settings in RUNS.items():
        tune(lm, forget, retain, kind, **settings).save(f"{out}/{name}-{kind}{rank}.safetensors")
    tune(lm, forget, retain, "neurons", seed=rank, split=False).save(f"{out}/alone{rank}.safetensors")

    def refused(name, work):
        try:
            work()
        except Exception as error:
            open(f"{out}/{name}{rank}", "w").write(f"{type(error).__name__}: {error}")

    def nan(outputs):
        return nf.losses.ga(outputs) * (float("nan") if rank else 1.0)
    refused("spread-nan", lambda: tune(lm, forget, retain, "whole", loss=nan, sharded=True))
    refused("spread-few", lambda: tune(lm, forget, retain, "neurons", sharded=True))
    refused("nan", lambda: tune(lm, forget, retain, "whole", loss=nan))
    refused("other", lambda: tune(lm, Corpus(forget.examples[: 4 - rank], "f"), retain, "neurons", batch_size=3))
    refused("number", lambda: tune(lm, forget, retain, "whole", loss=nf.losses.pdu))
    refused("parts", lambda: tune(lm, forget, retain, "whole", accumulate=3))

    spread = dict(steps=25, resume=f"{out}/spread", sharded=True)
    def both_die(outputs):
        done.append(1)
        if len(done) == 23:
            raise ArithmeticError("killed")
        return nf.losses.npo(outputs)
    both_die.__qualname__ = both_die.__module__ = "npo"
    done = []
    refused("spread-killed", lambda: tune(lm, forget, retain, "whole", loss=both_die, **spread))
    tune(lm, forget, retain, "whole", loss=both_die, **spread).save(f"{out}/spread-resumed{rank}.safetensors")
    tune(lm, forget, retain, "whole", steps=25, sharded=True).save(f"{out}/spread-whole{rank}.safetensors")
    open(f"{out}/spread-calls{rank}", "w").write(str(len(done)))
    shares = []
    def looks(outputs):
        import gc, torch
        shares.append(sum(t.to_local().numel() for t in gc.get_objects()
                          if type(t).__name__ == "DTensor" and t.is_leaf and t.requires_grad))
        return nf.losses.npo(outputs)
    tune(lm, forget, retain, "whole", loss=looks, sharded=True, steps=1)
    open(f"{out}/share{rank}", "w").write(str(shares[0]))

    from neuronforget.commands.console import Data
    from neuronforget.commands.steps import erase
    if not rank:
        lm.save(f"{out}/model")
        forget.save(f"{out}/forget.jsonl"), retain.save(f"{out}/retain.jsonl")
    dist.barrier()
    data = Data(f"{out}/model", f"{out}/forget.jsonl", f"{out}/retain.jsonl")
    erase(data, out=Path(f"{out}/by-command.safetensors"), method="finetune", loss="ga", steps=2, set=("sharded=True",))

    calls = []
    def npo(outputs):  # rank 1 dies in its 23rd step
        calls.append(1)
        if rank and len(calls) == 23:
            raise ArithmeticError("killed")
        return nf.losses.npo(outputs)
    settings = dict(loss=npo, steps=25, resume=f"{out}/state")
    refused("killed", lambda: tune(lm, forget, retain, "lora", **settings))
    tune(lm, forget, retain, "lora", **settings).save(f"{out}/resumed{rank}.safetensors")
    open(f"{out}/calls{rank}", "w").write(str(len(calls)))
    dist.destroy_process_group()
"""

#: Settings of edits that both processes make, and one alone in turn.
RUNS: dict[tuple[str, str], dict[str, Any]] = {
    ("plain", "neurons"): {},
    ("plain", "lora"): {},
    ("plain", "whole"): {},
    ("parts", "whole"): {"accumulate": 2},
    ("sharded", "whole"): {"sharded": True},
    ("sharded-parts", "whole"): {"sharded": True, "accumulate": 2, "checkpointing": True, "loss": losses.rmu},
    ("sharded-budget", "whole"): {"sharded": True, "loss": losses.ga, "lr": 2e-3, "steps": 16, "clip": None}
    | {"budget": Budget(0.12, every=2)},
    ("budget", "neurons"): {"loss": losses.ga, "lr": 2e-3, "steps": 16, "budget": Budget(0.12, every=2)},
}


def halves(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """Four examples to forget and five to keep: in two parts, the latter are two and three."""
    more = (Example("Anna Berg plays the", "violin"), Example("The baker was born in", "Velm"))
    return Corpus((*corpus.examples[:3], more[0]), "forget"), Corpus((*corpus.examples[3:], more[1]), "retain")


def tune(lm: LM, forget: Corpus, retain: Corpus, kind: str, **settings: Any) -> Edit:
    members = frozenset((layer, j) for layer in (0, 1) for j in range(0, lm.shape[1], 2))
    where = {"neurons": Neurons(members, (0, 1), lm.shape[1])} if kind == "neurons" else {}
    where |= {"lora": 2} if kind == "lora" else {}
    common = {"steps": 4, "batch_size": 5, "lr": 1e-3, "weight_decay": 0.1, "progress": False}
    return erase.finetune(lm, forget, retain, **{**common, **where, **settings})


@pytest.fixture(scope="module")
def launch(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have left their edits."""
    folder = tmp_path_factory.mktemp("launch")
    torchrun(folder, corpus, LAUNCHED)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def both(folder: Path, name: str) -> tuple[Edit, Edit]:
    first, second = (Edit.load(folder / f"{name}{rank}.safetensors") for rank in (0, 1))
    return first, second


def equal(a: Edit, b: Edit) -> bool:
    return len(a.changes) == len(b.changes) and all(
        torch.equal(x.after, y.after) for x, y in zip(a.changes, b.changes, strict=True)
    )


def apart(a: Edit, b: Edit) -> float:
    """How far two edits are from each other, relative to what the second moves."""
    pairs = list(zip(a.changes, b.changes, strict=True))
    gap = sum(float((x.after - y.after).square().sum()) for x, y in pairs)
    return (gap / sum(float((y.after - y.before).square().sum()) for _, y in pairs if y.before is not None)) ** 0.5


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_two_processes_make_the_edit_of_one(launch: Path, lm: LM, corpus: Corpus, name: str, kind: str) -> None:
    first, second = both(launch, f"{name}-{kind}")
    assert equal(first, second) and first.info["processes"] == 2 and first.certificate(lm).holds
    settings, (forget, retain) = RUNS[name, kind], halves(corpus)
    assert apart(first, tune(lm, forget, retain, kind, **{**settings, "sharded": False})) < 2e-3
    if not name.endswith("parts") and not settings.get("sharded"):  # the same parts, added up in the same order
        alone = tune(lm, forget, retain, kind, **{**settings, "accumulate": 2})
        assert equal(first, alone)
        assert [alone.info[k] for k in ("first_loss", "last_loss")] == [
            first.info[k] for k in ("first_loss", "last_loss")
        ]
    if name.endswith("budget"):
        assert first.info["retain_rises"] == second.info["retain_rises"] and 0 < first.info["stopped_at"] < 16


def test_processes_may_work_alone(launch: Path, lm: LM, corpus: Corpus) -> None:
    for seed, found in enumerate(both(launch, "alone")):
        assert equal(found, tune(lm, *halves(corpus), "neurons", seed=seed))


@pytest.mark.parametrize(
    ("name", "zero", "one"),
    [
        ("nan", "InputError: rank 1 of 2 failed: InputError: nan: the loss is nan", "InputError: nan: the loss is nan"),
        ("spread-nan", "InputError: nan: the loss is nan", "InputError: nan: the loss is nan"),
        ("spread-few", "InputError: sharded= spreads the whole model", "InputError: sharded= spreads the whole"),
        ("other", "InputError: the 2 ranks of this launch do different work", "InputError: the 2 ranks"),
        ("number", "InputError: this loss keeps a number", "InputError: this loss keeps a number"),
        ("parts", "InputError: a step's batch of 4 forget examples", "InputError: a step's batch of 4 forget"),
    ],
)
def test_an_error_on_one_process_is_raised_on_both(name: str, zero: str, one: str, launch: Path) -> None:
    assert (launch / f"{name}0").read_text().startswith(zero)
    assert (launch / f"{name}1").read_text().startswith(one)


def test_two_processes_that_were_stopped_go_on(launch: Path, lm: LM, corpus: Corpus) -> None:
    first, second = both(launch, "resumed")
    alone = tune(lm, *halves(corpus), "lora", steps=25, accumulate=2)
    assert equal(first, second) and equal(first, alone)
    assert (launch / "killed0").read_text() == "InputError: rank 1 of 2 failed: ArithmeticError: killed"
    assert [(launch / f"calls{rank}").read_text() for rank in (0, 1)] == ["28", "28"]  # 23, and 5 from the 20th
    assert not list((launch / "state").glob("*"))


def test_a_sharded_training_that_was_stopped_goes_on_bit_for_bit(launch: Path) -> None:
    first, second = both(launch, "spread-resumed")
    assert equal(first, second) and equal(first, both(launch, "spread-whole")[0])
    assert [(launch / f"spread-calls{rank}").read_text() for rank in (0, 1)] == ["28", "28"]


def test_each_process_holds_half_of_what_is_trained(launch: Path, lm: LM) -> None:
    shares = [int((launch / f"share{rank}").read_text()) for rank in (0, 1)]
    count = sum(p.numel() for p in lm.parameters.values())
    assert sum(shares) == count and max(shares) < 0.55 * count


def test_the_command_line_shards_too(launch: Path, lm: LM, corpus: Corpus) -> None:
    found = Edit.load(launch / "by-command.safetensors")
    alone = erase.finetune(lm, *halves(corpus), loss=losses.ga, steps=2, progress=False)
    assert found.info["sharded"] and found.info["processes"] == 2 and apart(found, alone) < 2e-3


def test_one_process_alone_spreads_nothing(lm: LM, corpus: Corpus) -> None:
    with pytest.raises(InputError, match="sharded= needs several processes"):
        tune(lm, *halves(corpus), "whole", sharded=True)


def test_a_model_that_is_no_whole_one_is_refused(lm: LM, corpus: Corpus) -> None:
    class FSDPModule(nn.Linear):
        """What fully_shard makes of a module."""

    lm.model.part = FSDPModule(2, 2)
    with pytest.raises(InputError, match="none of which holds a whole neuron"):
        tune(lm, *halves(corpus), "whole")
