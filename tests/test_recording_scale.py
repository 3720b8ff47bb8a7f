"""Recording at scale: killed and resumed, on several processes, over several devices, with too little memory."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import environment, script, torchrun
from neuronforget_kernels import Layout
from test_recording import assert_same_moments, run
from torch import nn

import neuronforget as nf
from neuronforget import attribution
from neuronforget.corpora import Corpus, encode, stream
from neuronforget.errors import InputError
from neuronforget.models import LM, activations_only
from neuronforget.moments import Moments, merge
from neuronforget.recording import batches, recording
from neuronforget.recording.unfinished import Tally, Unfinished
from neuronforget.runs.ranks import Ranks


class Killed(BaseException):
    """What ends a run without any handler of errors."""


def dies_at(monkeypatch: pytest.MonkeyPatch, batch: int, error: BaseException | None = None) -> list[int]:
    """Let the recording die before its given batch (counted from 0); return a list of the batches' sizes."""
    measured: list[int] = []
    measure = recording.record_batch

    def counted(tap: Any, lm: LM, rows: Any, **settings: Any) -> Moments:
        if len(measured) == batch:
            raise error or Killed
        measured.append(len(rows.index))
        return measure(tap, lm, rows, **settings)

    monkeypatch.setattr(recording, "record_batch", counted)
    return measured


def assert_bit_equal(found: Moments, expected: Moments) -> None:
    assert_same_moments(found, expected, rel=0.0)
    assert found.loss == expected.loss and found.info == expected.info
    for name, value in expected.fields.items():
        assert torch.equal(found.fields[name], value), name


def rows_of(corpus: Corpus) -> list[dict[str, str]]:
    return [{"prompt": e.prompt, "answer": e.answer} for e in corpus]


# Killed and resumed


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 2, 3])
def test_a_killed_recording_goes_on_and_ends_bit_equal(
    batch: int, streamed: bool, lm: LM, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stream(rows_of(corpus), name="facts", window=5) if streamed else corpus
    whole = run(lm, source, batch_size=2, per_example=True)
    sizes = [2, 2, 1, 2] if streamed else [2, 2, 2, 1]
    with monkeypatch.context() as patch:
        assert dies_at(patch, batch) == []
        with pytest.raises(Killed):
            run(lm, source, batch_size=2, per_example=True, resume=Unfinished(tmp_path / "state", every=0))
    assert len(list((tmp_path / "state").glob("*"))) == min(batch, 1)
    with monkeypatch.context() as patch:
        measured = dies_at(patch, -1)
        found = run(lm, source, batch_size=2, per_example=True, resume=tmp_path / "state")
        assert measured == sizes[batch:]  # nothing twice
    assert_bit_equal(found, whole)
    assert not (tmp_path / "state").exists()


def test_a_recording_killed_again_and_again_ends_bit_equal(
    lm: LM, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(lm, corpus, batch_size=1)
    for _ in range(len(corpus) - 1):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            dies_at(patch, 1)
            run(lm, corpus, batch_size=1, resume=Unfinished(tmp_path, every=0))
    assert_bit_equal(run(lm, corpus, batch_size=1, resume=tmp_path), whole)


def other_model(lm: LM, corpus: Corpus) -> tuple[LM, Corpus, dict[str, Any]]:
    with torch.no_grad():
        lm.parameters[lm.sites[0].write.name][0, 0] += 1
    return lm, corpus, {}


OTHER_WORK: dict[str, Callable[[LM, Corpus], tuple[LM, Corpus, dict[str, Any]]]] = {
    "model": other_model,
    "corpus": lambda lm, corpus: (lm, corpus.head(6), {}),
    "positions": lambda lm, corpus: (lm, corpus, {"positions": "answer"}),
    "batch size": lambda lm, corpus: (lm, corpus, {"batch_size": 2}),
    "table": lambda lm, corpus: (lm, corpus, {"per_example": True}),
    "tap": lambda lm, corpus: (lm, corpus, {"tap": "nnsight"}),
}


@pytest.mark.parametrize("what", OTHER_WORK)
def test_only_equal_work_is_continued(
    what: str, lm: LM, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dies_at(patch, 1)
        run(lm, corpus, resume=Unfinished(tmp_path, every=0))
    (left,) = tmp_path.iterdir()
    lm, corpus, settings = OTHER_WORK[what](lm, corpus)
    assert_bit_equal(run(lm, corpus, resume=tmp_path, **settings), run(lm, corpus, **settings))
    assert left.is_file()  # the other work can still go on


@pytest.mark.parametrize("change", ["an earlier row", "fewer rows"])
def test_a_stream_that_has_changed_is_not_continued(
    change: str, lm: LM, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(corpus)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dies_at(patch, 3)
        run(lm, stream(rows, window=2), batch_size=2, resume=Unfinished(tmp_path, every=0))
    (left,) = tmp_path.iterdir()
    if change == "fewer rows":
        rows = rows[:3]
    else:
        rows[1]["answer"] += " and more"
    with pytest.raises(InputError, match=rf"{left.name} holds.*the corpus has changed.*delete"):
        run(lm, stream(rows, window=2), batch_size=2, resume=tmp_path)


def test_the_state_is_written_when_it_is_due(
    lm: LM, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for every, left in ((1000.0, 0), (0.0, 1)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            dies_at(patch, 2)
            run(lm, corpus, resume=Unfinished(tmp_path, every=every))
        assert len(list(tmp_path.iterdir())) == left


def test_a_damaged_or_unwritable_state_is_said(
    lm: LM, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dies_at(patch, 1)
        run(lm, corpus, resume=Unfinished(tmp_path, every=0))
    (left,) = tmp_path.iterdir()
    left.write_bytes(left.read_bytes()[:100])
    with pytest.raises(InputError, match=r"holds no moments .*: delete .*safetensors to begin anew"):
        run(lm, corpus, resume=tmp_path)
    run(lm, corpus).save(left)  # moments, of a recording that ended
    with pytest.raises(InputError, match=r"no recording to go on with .*: delete .*safetensors to begin anew"):
        run(lm, corpus, resume=tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        run(lm, corpus, resume=left / "below a file")


KILLED = """
    import os, signal, sys
    import neuronforget as nf
    from neuronforget.recording import recording
    from neuronforget.recording.unfinished import Tally, Unfinished
    from workers import material
    lm, corpus = material()
    measure, done = recording.record_batch, []
    def counted(*args, **settings):
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(1)
        return measure(*args, **settings)
    recording.record_batch = counted
    nf.record(lm, corpus, tap="torch_hooks", batch_size=1, per_example=True, progress=False,
              resume=Unfinished(sys.argv[1], every=0))
"""


def test_a_process_killed_outright_leaves_a_state_that_goes_on(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    state = tmp_path / "state"
    done = subprocess.run(
        [sys.executable, script(tmp_path, corpus, KILLED), state],
        env=environment(tmp_path),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    (left,) = state.iterdir()
    (state / f".{left.name}-half.safetensors").write_text("what a kill in the middle of writing leaves")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings: dict[str, Any] = {"batch_size": 1, "per_example": True}
        found = run(lm, corpus, resume=state, **settings)
        assert_bit_equal(found, run(lm, corpus, **settings))
    finally:
        torch.set_num_threads(threads)
    assert not state.exists()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_an_attribution_killed_in_either_corpus_goes_on(
    batch: int, streamed: bool, lm: LM, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, retain = corpus.head(3), Corpus(corpus.examples[3:], "rest")
    if streamed:  # of one name: only their parts in the attribution tell them apart
        forget, retain = (stream(rows_of(c)) for c in (forget, retain))
    settings: dict[str, Any] = {"tap": "torch_hooks", "batch_size": 2, "progress": False}
    whole = nf.attribute(lm, forget, retain, **settings)
    monkeypatch.setattr(attribution, "Unfinished", partial(Unfinished, every=0))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dies_at(patch, batch)
        nf.attribute(lm, forget, retain, resume=tmp_path / "state", **settings)
    with monkeypatch.context() as patch:
        measured = dies_at(patch, -1)
        found = nf.attribute(lm, forget, retain, resume=tmp_path / "state", **settings)
        assert measured == [2, 1, 2, 2][batch:]
    assert torch.equal(found.values, whole.values) and found.info == whole.info
    assert not (tmp_path / "state").exists()


def test_a_score_that_runs_the_model_gets_the_folder_if_it_has_a_use_for_it(lm: LM, corpus: Corpus) -> None:
    given: list[Any] = []

    @nf.scores.runs_model
    def mine(lm: LM, forget: Corpus, *, batch_size: int, progress: bool, resume: Any = None) -> nf.Scores:
        given.append(resume)
        return nf.Scores(torch.zeros(lm.shape, dtype=torch.float64), "mine", "none", (0, 1))

    nf.attribute(lm, corpus, score=mine, resume="here", progress=False)
    nf.attribute(lm, corpus, score=mine, progress=False)
    assert given == ["here", None]


# On several processes

LAUNCHED = """
    import os, sys, time
    from dataclasses import replace
    import torch, torch.distributed as dist
    import neuronforget as nf
    from neuronforget.recording import recording
    from neuronforget.corpora import stream
    from neuronforget.runs.ranks import launched
    from neuronforget.recording.unfinished import Tally, Unfinished
    from workers import material
    out = sys.argv[1]
    lm, corpus = material()
    s = dict(tap="torch_hooks", batch_size=2, progress=False)
    moments = nf.record(lm, corpus, per_example=True, **s)  # joins the processes
    rank, world = dist.get_rank(), dist.get_world_size()
    moments.save(f"{out}/moments{rank}.safetensors")
    rows = [{"prompt": e.prompt, "answer": e.answer} for e in corpus]
    nf.record(lm, stream(rows, window=5), per_example=True, **s).save(f"{out}/streamed{rank}.safetensors")
    nf.record(lm, corpus.head(1), **s).save(f"{out}/one{rank}.safetensors")
    nf.record(lm, corpus, split=False, per_example=True, **s).save(f"{out}/alone{rank}.safetensors")
    rest = replace(corpus, examples=corpus.examples[3:], name="rest")
    nf.attribute(lm, corpus.head(3), rest, **s).save(f"{out}/scores{rank}.safetensors")

    def refused(name, work):
        try:
            work()
        except Exception as error:
            open(f"{out}/{name}{rank}", "w").write(f"{type(error).__name__}: {error}")

    measure = recording.record_batch
    def fails(*args, **settings):
        if rank == 1:
            raise ArithmeticError("on purpose")
        return measure(*args, **settings)
    recording.record_batch = fails
    refused("batch", lambda: nf.record(lm, corpus, **s))
    recording.record_batch = measure
    refused("rows", lambda: nf.record(lm, stream(rows[: 7 - 4 * rank]), **s))
    refused("other", lambda: nf.record(lm, corpus.head(3 + rank), **s))
    refused("tap", lambda: nf.record(lm, corpus, **{**s, "tap": "nothing" if rank else "torch_hooks"}))

    done = []
    def dies(*args, **settings):  # rank 0 dies before its second batch, which stops rank 1 in the same round
        if rank == 0 and done:
            raise ArithmeticError("killed")
        done.append(1)
        return measure(*args, **settings)
    recording.record_batch = dies
    refused("killed", lambda: nf.record(lm, corpus, resume=Unfinished(f"{out}/state", every=0), per_example=True, **s))
    recording.record_batch = measure
    nf.record(lm, corpus, resume=f"{out}/state", per_example=True, **s).save(f"{out}/resumed{rank}.safetensors")

    clear = Unfinished.clear
    def late(*given):  # rank 0 is the last to clear up
        time.sleep(0.5 * (1 - rank))
        clear(*given)
    Unfinished.clear = late
    for name, work in (("record", nf.record), ("attribute", nf.attribute)):
        work(lm, corpus, resume=f"{out}/{name}", **s)
        open(f"{out}/left by {name}{rank}", "w").write(str(os.path.exists(f"{out}/{name}")))
    dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def launch(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes of one `torchrun` have left what they found."""
    folder = tmp_path_factory.mktemp("launch")
    torchrun(folder, corpus, LAUNCHED)
    return folder


def both(folder: Path, name: str) -> list[Moments]:
    return [Moments.load(folder / f"{name}{rank}.safetensors") for rank in (0, 1)]


def shares(lm: LM, corpus: Corpus, per_example: bool = True) -> Moments:
    """What two ranks find, by one process: each rank's batches of two alone, then merged in rank order."""
    rows = sorted(encode(corpus, lm.tokenizer), key=lambda row: (-len(row.ids), row.index))
    own = [[row.index for i, row in enumerate(rows) if i // 2 % 2 == rank] for rank in (0, 1)]
    parts = []
    for index in own:
        part = Corpus(tuple(corpus.examples[i] for i in sorted(index)), corpus.name)
        parts.append(run(lm, part, batch_size=2, per_example=per_example))
    order = [i for index in own for i in sorted(index)]
    merged = merge(parts)
    by_place = sorted(range(len(order)), key=lambda row: order[row])
    table = {name: values[by_place] for name, values in merged.table.items()}
    return Moments(**{**vars(merged), "table": table, "index": tuple(sorted(order))})


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["record", "attribute"])
def test_no_process_goes_on_before_all_have_cleared_up(launch: Path, name: str) -> None:
    """Else one removes the folder in which another's next recording begins."""
    assert [(launch / f"left by {name}{rank}").read_text() for rank in (0, 1)] == ["False", "False"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_find_what_one_finds_with_their_shares(launch: Path, lm: LM, corpus: Corpus) -> None:
    first, second = both(launch, "moments")
    assert_bit_equal(first, second)
    expected = shares(lm, corpus)
    assert_same_moments(first, expected, rel=0.0)
    assert first.loss == expected.loss
    alone = run(lm, corpus, batch_size=2, per_example=True)
    assert first.index == tuple(range(len(corpus))) and first.info == alone.info
    assert_same_moments(first, alone, rel=1e-12)
    assert all(torch.equal(first.table[name], value) for name, value in alone.table.items())
    for found in both(launch, "alone"):
        assert_bit_equal(found, alone)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_share_a_stream_too_and_one_example(launch: Path, lm: LM, corpus: Corpus) -> None:
    first, second = both(launch, "streamed")
    assert_bit_equal(first, second)
    assert_same_moments(first, run(lm, stream(rows_of(corpus), window=5), batch_size=2, per_example=True), rel=1e-12)
    for found in both(launch, "one"):
        assert_bit_equal(found, run(lm, corpus.head(1)))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_attribute_alike(launch: Path, lm: LM, corpus: Corpus) -> None:
    first, second = (nf.Scores.load(launch / f"scores{rank}.safetensors") for rank in (0, 1))
    assert torch.equal(first.values, second.values) and first.info == second.info
    rest = Corpus(corpus.examples[3:], "rest")
    alone = nf.attribute(lm, corpus.head(3), rest, tap="torch_hooks", batch_size=2, progress=False)
    assert torch.allclose(first.values, alone.values, rtol=1e-10, atol=0) and first.info == alone.info


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "zero", "one"),
    [
        ("batch", "InputError: rank 1 of 2 failed: ArithmeticError: on purpose", "ArithmeticError: on purpose"),
        ("tap", "InputError: rank 1 of 2 failed: InputError: unknown tap", "InputError: unknown tap"),
        ("rows", "InputError: the 2 ranks of this launch do different work", "InputError: the 2 ranks"),
        ("other", "InputError: the 2 ranks of this launch do different work", "InputError: the 2 ranks"),
    ],
)
def test_an_error_on_one_process_is_raised_on_both(name: str, zero: str, one: str, launch: Path) -> None:
    assert (launch / f"{name}0").read_text().startswith(zero)
    assert (launch / f"{name}1").read_text().startswith(one)


@pytest.mark.slow
def test_two_processes_that_were_stopped_go_on(launch: Path) -> None:
    assert (launch / "killed1").read_text().startswith("InputError: rank 0 of 2 failed: ArithmeticError: killed")
    for found, expected in zip(both(launch, "resumed"), both(launch, "moments"), strict=True):
        assert_bit_equal(found, expected)
    assert not (launch / "state").exists()


def test_a_process_of_its_own_talks_to_nobody() -> None:
    alone = Ranks()
    assert alone.gather("x") == ["x"] and list(alone.each("x")) == ["x"]
    with pytest.raises(KeyError), alone.together():
        raise KeyError("as it was")


# Over several devices, and in parts


@pytest.mark.parametrize("tap", ["torch_hooks", "transformer_lens", "nnsight"])
def test_a_model_dispatched_by_accelerate_is_recorded_as_it_was(tap: str, lm: LM, corpus: Corpus) -> None:
    from accelerate import dispatch_model
    from accelerate.hooks import AlignDevicesHook

    expected = run(lm, corpus, tap=tap, per_example=True)
    parts = ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")
    places = {**{f"model.{part}": "cpu" for part in parts}, "lm_head": "cpu"}
    spread = LM(dispatch_model(lm.model, places, main_device="cpu", force_hooks=True), lm.tokenizer)
    hooked = [m for m in lm.model.modules() if isinstance(getattr(m, "_hf_hook", None), AlignDevicesHook)]
    assert len(hooked) > 4
    assert_same_moments(run(spread, corpus, tap=tap, per_example=True), expected, rel=1e-6)


def test_a_layers_statistics_are_reduced_where_the_layer_lies() -> None:
    places: list[set[str]] = []

    def piece(a: torch.Tensor, g: torch.Tensor, layout: Layout) -> Any:
        places.append({x.device.type for x in (a, g, layout)})
        return a.sum(0), a

    low = torch.ones(1, 2, 3, device="meta", requires_grad=True)
    high = (low * 2).tanh()
    asked: list[torch.device] = []

    def layout(device: torch.device) -> Layout:
        asked.append(device)
        return replace(Layout.of(torch.zeros(2, dtype=torch.long), 1), device=device)

    got = batches._reduce_backwards({0: low, 1: high}, high.sum(), layout, piece)
    assert set(got) == {0, 1} and places == [{"meta"}, {"meta"}] and [d.type for d in asked] == ["meta", "meta"]


def test_layers_of_one_device_are_put_together_there_and_those_of_several_on_cpu() -> None:
    def rows(device: str) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, 18, 4, device=device), torch.zeros(5, 2, 4, device=device)

    assert batches._home([rows("meta"), rows("meta")]) == torch.device("meta")
    assert batches._home([rows("meta"), rows("cpu")]) == torch.device("cpu")


def test_a_tally_keeps_fields_where_the_batches_are_and_gives_them_on_cpu(lm: LM, corpus: Corpus) -> None:
    part = run(lm, corpus, per_example=True)
    tally = Tally()
    tally.put(part)  # as from a file: on CPU
    tally.put(part.on("meta"))
    assert tally._sums is not None and tally._sums["mean"].device.type == "meta"
    tally = Tally()
    for _ in range(3):
        tally.add(part, "")
    assert tally.total is not None
    assert_same_moments(tally.total, merge([part] * 3), rel=0)
    assert tally.total.index == part.index * 3 and len(tally.total.table["s"]) == 3 * len(part.index)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_a_model_offloaded_to_cpu_or_disk_is_refused(where: str, lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    from accelerate import cpu_offload, disk_offload

    if where == "cpu":
        cpu_offload(lm.model, execution_device=torch.device("cpu"))
    else:
        disk_offload(lm.model, str(tmp_path), execution_device=torch.device("cpu"))
    with pytest.raises(InputError, match="offloaded to CPU or disk: load it whole"):
        run(lm, corpus)
    with pytest.raises(InputError, match="offloaded to CPU or disk"), activations_only(lm):
        raise AssertionError("not reached")


@pytest.fixture
def group(tmp_path: Path) -> Any:
    """A process group of this one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def fsdp2(model: nn.Module) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


def fsdp1(model: nn.Module) -> Any:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def tensor_parallel(model: Any) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    down = model.model.layers[0].mlp.down_proj
    down.weight = nn.Parameter(distribute_tensor(down.weight.detach(), init_device_mesh("cpu", (1,))))
    return model


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("shard", [fsdp1, fsdp2, tensor_parallel])
def test_a_model_sharded_over_processes_is_refused(shard: Callable[[Any], Any], lm: LM, corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"sharded over processes.*device_map"):
        run(LM(shard(lm.model), lm.tokenizer), corpus)


@pytest.mark.usefixtures("group")
def test_a_wrapped_model_is_refused_and_the_model_inside_recorded(lm: LM, corpus: Corpus) -> None:
    wrapped = nn.parallel.DistributedDataParallel(lm.model)
    with pytest.raises(InputError, match=r"give the model inside it, `model\.module`"):
        run(LM(wrapped, lm.tokenizer), corpus)
    assert_same_moments(run(LM(wrapped.module, lm.tokenizer), corpus), run(lm, corpus), rel=0.0)


def test_checkpointing_of_training_is_off_while_recording(lm: LM, corpus: Corpus) -> None:
    expected = run(lm, corpus)
    lm.model.gradient_checkpointing_enable({"use_reentrant": True})
    lm.model.train()
    assert_same_moments(run(lm, corpus), expected, rel=0.0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_reentrant_checkpoints_of_the_models_own_are_refused(reentrant: bool, lm: LM, corpus: Corpus) -> None:
    from torch.utils.checkpoint import checkpoint

    expected = run(lm, corpus)
    mlp = lm.model.model.layers[1].mlp
    forward = mlp.forward
    mlp.forward = lambda x: checkpoint(forward, x, use_reentrant=reentrant)
    if reentrant:
        with pytest.raises(InputError, match=r"layers \[1\] carry no gradient.*use_reentrant=False"):
            run(lm, corpus)
    else:
        assert_same_moments(run(lm, corpus), expected, rel=0.0)


# With too little memory

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("MPS backend out of memory"),
]


@pytest.mark.parametrize("error", FULL, ids=["cuda", "cpu", "mps"])
def test_too_little_memory_is_answered_by_a_batch_size(
    error: RuntimeError, lm: LM, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(len(row.ids) for row in encode(corpus, lm.tokenizer))
    dies_at(monkeypatch, 0, error)
    with pytest.raises(InputError) as raised:
        run(lm, corpus, batch_size=6, resume=tmp_path)
    assert f"out of memory on cpu with 6 examples of up to {longest} tokens: try batch_size=3" in str(raised.value)
    assert raised.value.__context__ is None and raised.value.__cause__ is None  # the batch's tensors are free
    assert not list(tmp_path.iterdir()) and all(p.requires_grad for p in lm.model.parameters())
    with pytest.raises(InputError, match=r"with 1 examples .* max_tokens"):
        run(lm, corpus, batch_size=1)


def test_other_errors_of_torch_are_left_as_they_are(lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    dies_at(monkeypatch, 0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(lm, corpus)


def test_real_memory_that_runs_out_is_said(lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    lm.model.lm_head.register_forward_hook(lambda *_: torch.empty(2**60))
    with pytest.raises(InputError, match="out of memory on cpu with 3 examples"):
        run(lm, corpus)
