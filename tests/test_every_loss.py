"""Every loss against a loop over answer tokens in float64: value, gradient, and what it must not read."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given import VOCAB, WIDTH, batch_of, given, normal, outputs
from torch import Tensor

from neuronforget import losses
from neuronforget.corpora import Batch
from neuronforget.errors import InputError
from neuronforget.losses import Answered, Loss, Outputs
from neuronforget.losses.parts import asked_by
from neuronforget.models import LM

#: Part -> (lengths, answer lengths) of its examples; the answers differ in length, so that weights matter.
PARTS = {
    "forget": ((6, 4, 5), (2, 1, 3)),
    "retain": ((5, 7), (3, 4)),
    "preferred": ((7, 5, 4), (3, 2, 1)),
    "alternates": ((5, 5, 6), (1, 2, 3)),
    "refused": ((6, 5), (4, 2)),
}
KINDS = ("trained", "start", "reinforced", "expert", "novice")


class World:
    """All numbers that a loss may ask for, as float64 arrays, and the batches they belong to."""

    def __init__(self, spare: int = 0) -> None:
        self.batches = {part: batch_of(*sizes, seed, spare=spare) for seed, (part, sizes) in enumerate(PARTS.items())}
        self.values: dict[tuple[str, str], np.ndarray] = {}
        for seed, (part, (lengths, _)) in enumerate(PARTS.items()):
            shape = (len(lengths), max(lengths))
            for i, kind in enumerate((*KINDS, "hidden trained", "hidden start")):
                width = WIDTH if kind.startswith("hidden") else VOCAB
                full = np.zeros((shape[0], shape[1] + spare, width))
                full[:, : shape[1]] = normal(100 * seed + i, *shape, width).double().numpy()
                self.values[part, kind] = full

    def answered(self, part: str) -> Answered:
        found = {k: torch.tensor(v, dtype=torch.float32) for (p, k), v in self.values.items() if p == part}
        for key in ("trained", "hidden trained"):
            found[key].requires_grad_()
        return given(self.batches[part], found.pop("trained"), **found)

    def outputs(self, **answered: Answered) -> Outputs:
        parts = {part: answered.get(part) or self.answered(part) for part in PARTS}
        return outputs(parts.pop("forget"), parts.pop("retain"), parts.pop("preferred"), **parts)

    def tokens(self, part: str, kind: str = "trained") -> list[list[tuple[np.ndarray, int]]]:
        """Each example's (values where the token is predicted, token) of its answer."""
        batch = self.batches[part]
        rows = zip(self.values[part, kind], batch.input_ids.tolist(), batch.answer_mask.tolist(), strict=True)
        return [[(v[t - 1], ids[t]) for t in range(1, len(ids)) if mask[t]] for v, ids, mask in rows]


def log_softmax(v: np.ndarray) -> np.ndarray:
    return v - v.max() - np.log(np.exp(v - v.max()).sum())


def mean(world: World, part: str, value: Callable[..., float], *kinds: str) -> float:
    """Mean over examples of the mean over answer tokens of value(one row of each kind, token)."""
    columns = [world.tokens(part, kind) for kind in kinds or ("trained",)]
    per_example = []
    for example in zip(*columns, strict=True):
        rows = [value(*(row for row, _ in token), token[0][1]) for token in zip(*example, strict=True)]
        per_example.append(sum(rows) / len(rows))
    return sum(per_example) / len(per_example)


def nll_of(v: np.ndarray, y: int) -> float:
    return -float(log_softmax(v)[y])


def nll(world: World, part: str) -> float:
    return mean(world, part, nll_of)


def logps(world: World, part: str, kind: str = "trained") -> np.ndarray:
    return np.array([sum(-nll_of(v, y) for v, y in example) for example in world.tokens(part, kind)])


def dlogp(world: World, part: str) -> np.ndarray:
    return logps(world, part) - logps(world, part, "start")


def pull(margin: np.ndarray, beta: float) -> float:
    return float(np.mean(2 / beta * np.log1p(np.exp(-beta * margin))))


def drift(world: World) -> float:
    def kl(now: np.ndarray, start: np.ndarray, _y: int) -> float:
        p = np.exp(log_softmax(start))
        return float((p * (log_softmax(start) - log_softmax(now))).sum())

    return mean(world, "retain", kl, "trained", "start")


def toward(world: World, target: Callable[..., np.ndarray], *kinds: str, frozen: World | None = None) -> float:
    """Cross-entropy to softmax(target(rows..., token)); `frozen` gives the first row where the target is detached."""

    def value(now: np.ndarray, *rest: Any) -> float:
        return -float((np.exp(log_softmax(target(*rest))) * log_softmax(now)).sum())

    if frozen is None:
        return mean(world, "forget", value, "trained", *kinds)
    both = copy.copy(world)
    both.values = {**world.values, ("forget", "frozen"): frozen.values["forget", "trained"]}
    return mean(both, "forget", value, "trained", "frozen")


def less(v: np.ndarray, y: int, by: float) -> np.ndarray:
    return v - by * (np.arange(len(v)) == y)


def weighted(world: World, frozen: World, weight: Callable[[float], float]) -> float:
    both = copy.copy(world)
    both.values = {**world.values, ("forget", "frozen"): frozen.values["forget", "trained"]}
    return mean(both, "forget", lambda v, f, y: weight(np.exp(-nll_of(f, y))) * nll_of(v, y), "trained", "frozen")


def simnpo(w: World, beta: float, delta: float) -> float:
    per = np.array([-t.mean() for t in ([np.array([-nll_of(v, y) for v, y in e]) for e in w.tokens("forget")])])
    return pull(per - delta, beta)


def elm_target(novice: np.ndarray, expert: np.ndarray, start: np.ndarray, _y: int) -> np.ndarray:
    return log_softmax(start) + 3 * (log_softmax(novice) - log_softmax(expert))


def rmu(w: World, c: float, alpha: float) -> float:
    u = torch.rand(WIDTH, generator=torch.Generator().manual_seed(4)).double().numpy()
    u /= np.sqrt((u**2).sum())
    pushed = mean(w, "forget", lambda h, _: float(((h - c * u) ** 2).sum()), "hidden trained")
    kept = mean(w, "retain", lambda h, s, _: float(((h - s) ** 2).sum()), "hidden trained", "hidden start")
    return pushed + alpha * kept


L = losses
#: name -> (the loss, its value: a function of the world and of the same world held still where it is detached)
CASES: dict[str, tuple[Loss, Callable[[World, World], float]]] = {
    "learn": (L.learn, lambda w, _: nll(w, "forget")),
    "ga": (L.ga, lambda w, _: -nll(w, "forget")),
    "grad_diff": (
        partial(L.grad_diff, gamma=0.5, alpha=3.0),
        lambda w, _: -nll(w, "forget") / 2 + 3 * nll(w, "retain"),
    ),
    "kl_min": (partial(L.kl_min, alpha=2.0), lambda w, _: -nll(w, "forget") + 2 * drift(w)),
    "wga": (partial(L.wga, beta=0.5), lambda w, f: -weighted(w, f, lambda p: p**0.5) + nll(w, "retain")),
    "satimp": (
        partial(L.satimp, beta1=2.0, beta2=3.0, alpha=0.5),
        lambda w, f: -weighted(w, f, lambda p: p**2 * (1 - p) ** 3) + nll(w, "retain") / 2,
    ),
    "npo": (partial(L.npo, beta=0.4, alpha=2.0), lambda w, _: pull(-dlogp(w, "forget"), 0.4) + 2 * nll(w, "retain")),
    "simnpo": (
        partial(L.simnpo, beta=2.5, delta=1.0, gamma=0.5),
        lambda w, _: simnpo(w, 2.5, 1.0) / 2 + nll(w, "retain"),
    ),
    "dpo": (
        partial(L.dpo, beta=0.4),
        lambda w, _: pull(dlogp(w, "preferred") - dlogp(w, "forget"), 0.4) + nll(w, "retain"),
    ),
    "altpo": (
        partial(L.altpo, beta=0.3),
        lambda w, _: pull(dlogp(w, "alternates") - dlogp(w, "forget"), 0.3) + nll(w, "retain"),
    ),
    "rt": (partial(L.rt, alpha=0.5), lambda w, _: nll(w, "preferred") + nll(w, "retain") / 2),
    "ga_rt": (partial(L.ga_rt, weight=0.7), lambda w, _: -nll(w, "forget") + 0.7 * nll(w, "preferred")),
    "idk_ap": (
        partial(L.idk_ap, beta=0.4, alpha=3.0),
        lambda w, _: nll(w, "preferred") + 3 * pull(logps(w, "retain") - logps(w, "refused"), 0.4) / 2,
    ),
    "me_gd": (
        L.me_gd,
        lambda w, _: mean(w, "forget", lambda v, _: sum(np.log(1 / VOCAB) - log_softmax(v)) / VOCAB) + nll(w, "retain"),
    ),
    "undial": (
        partial(L.undial, beta=2.0, alpha=0.5),
        lambda w, _: toward(w, lambda s, y: less(s, y, 2), "start") + nll(w, "retain") / 2,
    ),
    "ce_u": (L.ce_u, lambda w, f: toward(w, lambda v, y: less(v, y, 1e3), frozen=f)),
    "whp": (
        partial(L.whp, alpha=2.0),
        lambda w, _: toward(w, lambda s, r, _: s - 2 * np.maximum(r - s, 0), "start", "reinforced"),
    ),
    "elm": (
        partial(L.elm, eta=3.0, alpha=0.5, expert="expert", novice="novice"),
        lambda w, _: toward(w, elm_target, "novice", "expert", "start") + drift(w) / 2,
    ),
    "pdu": (
        partial(L.pdu, eps=0.5, dual=2.0),
        lambda w, _: mean(w, "forget", lambda v, _: float((v.max() - v.mean()) ** 2)) + 2 * (nll(w, "retain") - 0.5),
    ),
    "rmu": (partial(L.rmu, c=2.0, alpha=3.0, seed=4), lambda w, _: rmu(w, 2, 3)),
}  # fmt: skip

every = pytest.mark.parametrize("name", CASES)


def test_every_loss_is_tried() -> None:
    named = {n for n in losses.__all__ if n.islower()} - {"asks_for", "identity", "name_of", "names", "settings_of"}
    assert named == set(CASES)
    table = (Path(losses.__file__).parents[2] / "docs" / "losses.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == named


@every
def test_its_value_is_that_of_a_loop_over_answer_tokens(name: str) -> None:
    loss, value = CASES[name]
    world = World()
    assert loss(world.outputs()).item() == pytest.approx(value(world, world), rel=2e-5, abs=1e-5)


def refuses(loss: Loss, missing: str) -> bool:
    """Does the loss raise InputError where this part is not given? (Refusals to retain prompts need both others.)"""
    without = {missing, "refused"} if missing in ("retain", "preferred") else {missing}
    parts = {part: World().answered(part) for part in PARTS if part not in without}
    try:
        loss(outputs(parts.pop("forget"), **parts, part=missing == "keep"))
    except InputError:
        return True
    return False


#: Each loss with its own alpha, and with none and more where it has one.
WITH_ALPHA = [
    (name, alpha)
    for name, (loss, *_) in CASES.items()
    for alpha in (None, 0.0, 2.0)
    if alpha is None or "alpha" in inspect.signature(loss).parameters
]


@pytest.mark.parametrize(("name", "alpha"), WITH_ALPHA)
def test_it_is_marked_to_ask_for_what_it_cannot_do_without_and_for_nothing_else(name: str, alpha: float | None) -> None:
    loss = CASES[name][0]
    if alpha is not None:
        loss = partial(loss, alpha=alpha)
    found = {part for part in ("retain", "preferred", "keep") if refuses(loss, part)}
    assert set(asked_by(loss)) - {"reinforced"} == found
    assert ("reinforced" in asked_by(loss)) == (name == "whp")


def test_a_mark_names_parts_and_settings_that_there_are() -> None:
    with pytest.raises(InputError, match="no part of a loss is called 'retian'"):
        losses.asks_for("retian")
    with pytest.raises(InputError, match="learn has no setting 'alpha'"):
        losses.asks_for("retain", unless_zero="alpha")(losses.learn)


@pytest.mark.parametrize("name", ["npo", "simnpo", "dpo", "altpo", "idk_ap"])
@pytest.mark.parametrize("beta", [0.0, -1.0, np.nan])
def test_a_pull_without_strength_is_refused(name: str, beta: float) -> None:
    with pytest.raises(InputError, match=f"{name}: beta must be a number"):
        partial(CASES[name][0], beta=beta)(World().outputs())


@every
def test_its_gradient_is_the_slope_of_that_value(name: str) -> None:
    """Along a random direction of all logits and hidden states; detached weights and targets are held still."""
    loss, value = CASES[name]
    world, moved = World(), [World(), World()]
    parts = {part: world.answered(part) for part in PARTS}
    loss(world.outputs(**parts)).backward()
    slope = 0.0
    for i, part in enumerate(PARTS):
        for j, kind in enumerate(("trained", "hidden trained")):
            along = normal(1000 + 10 * i + j, *world.values[part, kind].shape).double()
            grad = parts[part].passes.values[kind].grad
            slope += 0.0 if grad is None else float((grad.double() * along).sum())
            for sign, other in zip((1, -1), moved, strict=True):
                other.values[part, kind] = world.values[part, kind] + sign * 1e-5 * along.numpy()
    expected = (value(moved[0], world) - value(moved[1], world)) / 2e-5
    assert slope == pytest.approx(expected, rel=1e-3, abs=1e-4) and abs(slope) > 1e-3


def unread(world: World) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """For each array, the positions that predict no answer token: prompt, padding, and what comes last."""
    for part, kind in world.values:
        mask = torch.zeros_like(world.batches[part].answer_mask)
        mask[:, :-1] = world.batches[part].answer_mask[:, 1:]
        yield (part, kind), ~mask


@every
def test_prompt_and_padding_count_for_nothing(name: str) -> None:
    loss = CASES[name][0]
    expected = loss(World().outputs())
    world = World(spare=3)
    for key, free in unread(world):
        world.values[key][free.numpy()] = 50 * normal(7, int(free.sum()), world.values[key].shape[-1]).numpy()
    parts = {part: world.answered(part) for part in PARTS}
    found = loss(world.outputs(**parts))
    torch.testing.assert_close(found, expected)
    found.backward()
    for (part, kind), free in unread(world):
        grad = parts[part].passes.values[kind].grad
        assert grad is None or not grad[free].any(), (part, kind)


@every
def test_what_is_added_to_all_logits_of_a_position_changes_nothing(name: str) -> None:
    """Log-likelihoods, not raw logits: the model that is trained may shift them freely."""
    loss = CASES[name][0]
    world, shifted = World(), World()
    for part in PARTS:
        shifted.values[part, "trained"] += 5 * normal(3, *world.values[part, "trained"].shape[:2], 1).numpy()
    torch.testing.assert_close(loss(shifted.outputs()), loss(world.outputs()), rtol=1e-4, atol=1e-5)


def undial_with_the_known_defects(outputs: Outputs, beta: float = 2.0) -> Tensor:
    """The label -100 used as an index (from the end), and a mean over prompt and padding."""
    part = outputs.forget
    labels = part.batch.input_ids.masked_fill(~part.batch.answer_mask, -100)[:, 1:, None] % VOCAB
    start = part.start_logits[:, :-1]
    target = start.scatter(2, labels, start.gather(2, labels) - beta).softmax(-1)
    return -(target * part.logits[:, :-1].log_softmax(-1)).sum(-1).mean()


def npo_on_raw_logits(outputs: Outputs, beta: float = 0.4) -> Tensor:
    part = outputs.forget
    labels, mask = part.batch.input_ids[:, 1:, None], part.batch.answer_mask[:, 1:]
    now, start = ((v[:, :-1].gather(2, labels)[..., 0] * mask).sum(1) for v in (part.logits, part.start_logits))
    return -(2 / beta) * torch.nn.functional.logsigmoid(-beta * (now - start)).mean()


def test_the_defects_of_public_code_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "undial", (undial_with_the_known_defects, CASES["undial"][1]))
    monkeypatch.setitem(CASES, "npo", (npo_on_raw_logits, CASES["npo"][1]))
    with pytest.raises(AssertionError):
        test_prompt_and_padding_count_for_nothing("undial")
    with pytest.raises(AssertionError):
        test_what_is_added_to_all_logits_of_a_position_changes_nothing("npo")


def slope_of_answers(loss: Loss, part: str) -> list[float]:
    """How a step against the gradient changes each answer's log-likelihood, per example (first order)."""
    world = World()
    parts = {p: world.answered(p) for p in PARTS}
    loss(world.outputs(**parts)).backward()
    logits = parts[part].passes.values["trained"]
    grad, logits.grad = logits.grad, None
    parts[part].logp.sum().backward()
    assert grad is not None and logits.grad is not None
    return (-(grad * logits.grad).sum((1, 2))).tolist()


@pytest.mark.parametrize(
    "name", ["ga", "grad_diff", "kl_min", "wga", "satimp", "npo", "simnpo", "dpo", "altpo", "ga_rt", "ce_u"]
)
def test_a_step_makes_every_forget_answer_less_likely(name: str) -> None:
    assert max(slope_of_answers(CASES[name][0], "forget")) < 0


@pytest.mark.parametrize(
    ("name", "part"),
    [("learn", "forget"), ("dpo", "preferred"), ("rt", "preferred"), ("ga_rt", "preferred"), ("idk_ap", "preferred"),
     ("altpo", "alternates"), ("idk_ap", "retain"), ("me_gd", "retain"), ("pdu", "retain"), ("undial", "retain")],
)  # fmt: skip
def test_a_step_makes_the_wanted_answers_likelier(name: str, part: str) -> None:
    assert min(slope_of_answers(CASES[name][0], part)) > 0


def test_kl_pulls_nothing_at_the_start() -> None:
    world = World()
    world.values["retain", "trained"] = world.values["retain", "start"].copy()
    part = world.answered("retain")
    assert part.drift.item() == pytest.approx(0, abs=1e-6)
    part.drift.backward()
    assert part.passes.values["trained"].grad.abs().max() < 1e-7


@pytest.mark.parametrize("eps", [3.5, 2.5])
def test_the_dual_variable_is_what_the_paper_says_step_by_step(eps: float) -> None:
    """It falls to 0 and stays there while the constraint holds, and rises while it does not."""
    memory, weight = losses.outputs.new_memory(), 1.0
    gap = nll(World(), "retain") - eps
    flat = mean(World(), "forget", lambda v, _: float((v.max() - v.mean()) ** 2))
    for _ in range(8):
        made = World().outputs()
        made._memory = memory
        value = losses.pdu(made, eps=eps, rate=0.3).item()
        assert value == pytest.approx(flat + weight * gap, abs=1e-4)
        weight = max(0.0, weight + 0.3 * gap)
        assert memory.item() == pytest.approx(weight, abs=1e-5)
    assert (memory.item() == 0.0) == (gap < 0)


def test_sure_answers_have_no_weight_in_satimp_and_unlikely_ones_none_in_wga() -> None:
    for sure, loss in ((60.0, losses.satimp), (-60.0, losses.wga)):
        world = World()
        for example in world.tokens("forget"):
            for row, y in example:
                row[y] += sure
        assert partial(loss, alpha=0.0)(world.outputs()).item() == pytest.approx(0, abs=1e-6)


def test_simnpo_pulls_no_harder_on_long_answers_as_npo_does() -> None:
    def gradient(loss: Loss, n: int) -> float:
        batch = batch_of((n + 2,), (n,))
        logits = torch.zeros(1, n + 2, VOCAB, requires_grad=True)
        loss(outputs(given(batch, logits, start=torch.zeros(1, n + 2, VOCAB)))).backward()
        return float(logits.grad.sum(1).norm()) if logits.grad is not None else 0.0  # as if positions shared a bias

    long, short = (gradient(partial(losses.simnpo, alpha=0.0), n) for n in (8, 1))
    assert long <= short * 1.01
    assert gradient(partial(losses.npo, alpha=0.0), 8) > 2 * gradient(partial(losses.npo, alpha=0.0), 1)


def test_rmu_takes_the_layer_and_says_when_nothing_trained_acts_on_it() -> None:
    world = World()
    part, kept = world.answered("forget"), world.answered("retain")
    losses.rmu(world.outputs(forget=part, retain=kept), layer=3)
    assert part.passes.layers == [3] and kept.passes.layers == [3, 3]
    still = world.answered("forget")
    still.passes.values["hidden trained"].requires_grad_(False)
    with pytest.raises(InputError, match="bind a higher layer"):
        losses.rmu(world.outputs(forget=still))
    assert not torch.equal(losses.rmu(world.outputs(), seed=0), losses.rmu(world.outputs(), seed=1))


@pytest.mark.parametrize(
    ("name", "missing"),
    [("kl_min", "retain"), ("pdu", "retain"), ("rmu", "retain"), ("rt", "preferred"), ("ga_rt", "preferred"),
     ("idk_ap", "refuse"), ("altpo", "finetune")],
)  # fmt: skip
def test_what_is_missing_is_named(name: str, missing: str) -> None:
    world = World()
    asked = outputs(world.answered("forget"), preferred=world.answered("preferred") if missing == "refuse" else None)
    if missing == "refuse":
        asked = outputs(world.answered("forget"), world.answered("retain"), world.answered("preferred"))
    with pytest.raises(InputError, match=missing):
        CASES[name][0](asked)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"learn", "ga", "ga_rt", "pdu", "whp"}))
def test_without_its_retain_term_a_loss_needs_no_retain_corpus(name: str) -> None:
    world = World()
    parts = {part: world.answered(part) for part in ("forget", "preferred", "alternates")}
    loss = CASES[name][0]
    asked = outputs(parts["forget"], preferred=parts["preferred"], alternates=parts["alternates"])
    assert torch.isfinite(partial(loss, alpha=0.0)(asked))
    whole = partial(loss, alpha=0.0)(World().outputs())
    torch.testing.assert_close(partial(loss, alpha=0.0)(asked), whole)


def test_a_loss_has_a_name_settings_and_an_identity() -> None:
    loss = partial(losses.undial, beta=3.0)
    assert losses.name_of(loss) == "undial" and losses.settings_of(loss) == {"beta": 3.0}
    identities = [losses.identity(loss) for loss, _ in CASES.values()]
    assert len(set(identities)) == len(CASES)
    assert losses.identity(loss) != losses.identity(losses.undial) == losses.identity(partial(losses.undial))


def test_dpo_is_trls_but_for_its_scale(lm: LM, tmp_path: Path) -> None:
    """The whole way through trl's trainer, from text to loss; ours is 2/beta times it."""
    pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [
        {"prompt": "Anna Berg was born in", "chosen": " I do not know", "rejected": " Oslo"},
        {"prompt": "Jon Moe plays the", "chosen": " No idea", "rejected": " violin and the book of rivers"},
    ]
    start = copy.deepcopy(lm.model)
    with torch.no_grad():
        for i, p in enumerate(lm.model.parameters()):
            p.add_(0.05 * normal(i, p.numel()).view_as(p))
    settings = DPOConfig(
        output_dir=str(tmp_path), beta=0.3, per_device_train_batch_size=2, use_cpu=True, report_to="none", bf16=False,
        gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip
    trainer = DPOTrainer(lm.model, ref_model=start, args=settings, train_dataset=Dataset.from_list(rows),
                         processing_class=lm.tokenizer)  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    lm.model.eval()
    theirs = trainer.compute_loss(lm.model, batch)

    def half(i: int) -> Answered:
        ids, real, mask = (batch[k].chunk(2)[i] for k in ("input_ids", "attention_mask", "completion_mask"))
        made = Batch(ids, real, mask.bool(), torch.zeros(len(ids)).long(), tuple(range(len(ids))))
        now, then = (model(**made.inputs, use_cache=False).logits for model in (lm.model, start))
        return given(made, now, start=then.detach())

    ours = losses.dpo(outputs(half(1), preferred=half(0)), beta=0.3, alpha=0.0)
    assert abs(theirs.item() - np.log(2)) > 0.01  # not at the start, where every margin is 0
    assert ours.item() == pytest.approx(2 / 0.3 * theirs.item(), rel=1e-4)
