"""Influence: products with curvature, solutions with it, and updates that come where retraining comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import build
from torch import Tensor, nn

import neuronforget as nf
from neuronforget.corpora import Corpus
from neuronforget.edits import Edit
from neuronforget.erase.curvature import Objective, checked, conjugate_gradients
from neuronforget.erase.influence import first_order_update, moved, parts_of, second_order_update, undone
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.neurons import Neurons


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def snapshot(lm: LM) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in lm.model.state_dict().items()}


def same(lm: LM, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


def some(lm: LM) -> Neurons:
    return Neurons(frozenset({(0, 1), (0, 7), (1, 3)}), tuple(s.layer for s in lm.sites), lm.shape[1])


def split(corpus: Corpus) -> tuple[Corpus, Corpus]:
    return replace(corpus, examples=corpus.examples[:2], name="f"), replace(corpus, examples=corpus.examples[2:])


def network() -> tuple[Objective, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]:
    """Two batches through tanh and softmax: the objective, its loss and outputs as functions of flat parameters."""
    first, second = normal(0, 4, 3).requires_grad_(), normal(1, 3, 4).requires_grad_()
    inputs, labels = normal(2, 8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])

    def z_of(flat: Tensor) -> Tensor:
        return torch.tanh(inputs @ flat[:12].view(4, 3).T) @ flat[12:].view(3, 4).T

    def nll(z: Tensor, places: slice = slice(0, 8)) -> Tensor:
        return nn.functional.cross_entropy(z, labels[places], reduction="sum") / 8

    def part(places: slice) -> Any:
        return (lambda: torch.tanh(inputs[places] @ first.T) @ second.T), (lambda z: nll(z, places))

    objective = Objective([first, second], [part(slice(0, 5)), part(slice(5, 8))])
    flat = torch.cat([first.detach().reshape(-1), second.detach().reshape(-1)])
    return objective, lambda f: nll(z_of(f)), z_of, flat


def test_products_are_those_of_the_explicit_matrices() -> None:
    objective, loss, outputs, flat = network()
    hessian = torch.autograd.functional.hessian(loss, flat)
    jacobian = torch.autograd.functional.jacobian(outputs, flat).flatten(0, 1)
    p = outputs(flat).softmax(-1)
    inner = torch.block_diag(*[torch.diag(row) - torch.outer(row, row) for row in p]) / 8
    newton = jacobian.T @ inner @ jacobian
    unit = torch.eye(24, dtype=torch.float64)
    torch.testing.assert_close(torch.stack([objective.product(u, "hessian") for u in unit]), hessian)
    torch.testing.assert_close(torch.stack([objective.product(u, "gauss_newton") for u in unit]), newton)
    assert float((hessian - newton).abs().max()) > 0.01 and float(torch.linalg.eigvalsh(hessian)[0]) < -1e-3
    torch.testing.assert_close(objective.gradient(), torch.autograd.functional.jacobian(loss, flat))
    torch.testing.assert_close(objective.loss(), loss(flat))


def test_conjugate_gradients_solve_what_an_explicit_solver_solves() -> None:
    root, b = normal(3, 30, 20), normal(4, 20)
    matrix = root.T @ root / 30
    found = conjugate_gradients(lambda v: matrix @ v, b, damping=0.1, tolerance=1e-10)
    torch.testing.assert_close(found.x, torch.linalg.solve(matrix + 0.1 * torch.eye(20).double(), b))
    assert found.residual <= 1e-10 and found.steps <= 25
    rough = conjugate_gradients(lambda v: matrix @ v, b, damping=0.1, tolerance=0.3)
    assert rough.steps < found.steps and 1e-3 < rough.residual <= 0.3


def test_what_is_not_solved_is_refused() -> None:
    root, b = normal(3, 30, 20), normal(4, 20)
    matrix = root.T @ root / 30
    good = torch.linalg.solve(matrix, b)
    for call, message in (
        (lambda: conjugate_gradients(lambda v: matrix @ v, b, damping=0.0, steps=3), "relative residual"),
        (lambda: conjugate_gradients(lambda v: (matrix - torch.eye(20)) @ v, b, damping=0.0), "negative|no minimum"),
        (lambda: conjugate_gradients(lambda v: v, 0 * b, damping=1.0), "zero"),
        (lambda: checked(lambda v: matrix @ v, 1.1 * good, b, damping=0.0, steps=1, tolerance=0.05), "0.1 after"),
        (lambda: checked(lambda v: matrix @ v, good * torch.nan, b, damping=0.0, steps=1, tolerance=0.5), "nan"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert checked(lambda v: matrix @ v, 1.1 * good, b, damping=0.0, steps=1, tolerance=0.2).residual == pytest.approx(
        0.1
    )


def test_one_newton_step_on_what_is_left_is_exact_where_the_loss_is_quadratic() -> None:
    inputs, targets = normal(5, 40, 6), normal(6, 40)

    def least(rows: slice, ridge: float) -> Tensor:
        x, y = inputs[rows], targets[rows]
        return torch.linalg.solve(x.T @ x + ridge * torch.eye(6).double(), x.T @ y)

    theta = least(slice(0, 40), 3.0).requires_grad_()  # the ridge of the whole, 3, is one of 3/35 on the mean of 35

    def part(rows: slice, size: int) -> Any:
        return (lambda: inputs[rows] @ theta), (lambda z: (z - targets[rows]).square().sum() / 2 / size)

    forget, retain = Objective([theta], [part(slice(0, 5), 5)]), Objective([theta], [part(slice(5, 40), 35)])
    b = 5 / 35 * forget.gradient()
    found = conjugate_gradients(lambda v: retain.product(v, "hessian"), b, damping=3 / 35, tolerance=1e-12)
    torch.testing.assert_close(theta.detach() + found.x, least(slice(5, 40), 3.0))


class Bigram(nn.Module):
    """Logits of the next token from the one before, `W e`: softmax regression, convex in its only parameter."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(_name_or_path="bigram", get_text_config=lambda: SimpleNamespace())
        self.embedding = nn.Embedding(vocabulary, 6)
        self.embedding.weight = nn.Parameter(normal(7, vocabulary, 6), requires_grad=False)
        self.head = nn.Parameter(torch.zeros(vocabulary, 6, dtype=torch.float64))

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> Any:
        return SimpleNamespace(logits=self.embedding(input_ids).detach() @ self.head.T)


RIDGE = 0.02


def trained(lm: LM, parts: list[tuple[Corpus, int]]) -> Tensor:
    """Return the head at the minimum of the summed NLL of the corpora, each over its size, plus ridge / 2 |W|^2."""
    lm.model.head.data.zero_()
    optimizer = torch.optim.LBFGS([lm.model.head], max_iter=4000, tolerance_grad=1e-12, tolerance_change=0,
                                  history_size=50, line_search_fn="strong_wolfe")  # fmt: skip
    pieces = [part for corpus, size in parts for part in parts_of(lm, corpus, size, 64)]

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = torch.stack([loss(out()) for out, loss in pieces]).sum() + RIDGE / 2 * lm.model.head.square().sum()
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(closure)
    assert float(lm.model.head.grad.abs().max()) < 1e-8
    lm.model.head.grad = None
    return lm.model.head.detach().clone()


def missed(lm: LM, forget: Corpus, retain: Corpus, **settings: Any) -> tuple[float, float]:
    """Distance from exact retraining on retain: of the model trained on both, and of its update."""
    exact = trained(lm, [(retain, len(retain))])
    start = trained(lm, [(retain, len(retain)), (forget, len(retain))])
    edit = second_order_update(lm, forget, retain, damping=RIDGE, tolerance=1e-9, steps=2000, batch_size=3, **settings)
    with edit.on(lm):
        after = lm.model.head.detach().clone()
    assert torch.equal(lm.model.head.detach(), start)
    return float((start - exact).norm()), float((after - exact).norm())


@pytest.mark.parametrize("over", ["retain", "all"])
def test_on_a_convex_loss_the_update_misses_exact_retraining_by_the_square_of_what_was_removed(
    over: Any, corpus: Corpus, tokenizer: Any
) -> None:
    lm = LM(Bigram(len(tokenizer)), tokenizer)
    forget, retain = split(corpus)
    found = []
    for copies in (8, 16):
        many = replace(retain, examples=retain.examples * copies)
        found.append(missed(lm, forget, many, over=over))
    assert all(update < 0.25 * nothing for nothing, update in found)
    assert found[0][0] / found[1][0] == pytest.approx(2, rel=0.2)
    assert found[0][1] / found[1][1] == pytest.approx(4, rel=0.25)


def test_wrong_curvature_would_not_pass_as_retraining(corpus: Corpus, tokenizer: Any) -> None:
    lm = LM(Bigram(len(tokenizer)), tokenizer)
    forget, retain = split(corpus)
    many = replace(retain, examples=retain.examples * 8)
    exact = trained(lm, [(many, len(many))])
    start = trained(lm, [(many, len(many)), (forget, len(many))])
    best = second_order_update(lm, forget, many, damping=RIDGE, tolerance=1e-9, steps=2000)
    wrong = [best.scaled(0.8), best.scaled(1.2), second_order_update(lm, forget, many, damping=2 * RIDGE, steps=2000)]

    def miss(edit: Edit) -> float:
        with edit.on(lm):
            return float((lm.model.head.detach() - exact).norm())

    assert all(miss(edit) > 2 * miss(best) for edit in wrong) and miss(best) < 0.25 * float((start - exact).norm())


ARCHITECTURES = ("gpt2", "gpt_neox", "llama", "qwen2")


@pytest.fixture(params=ARCHITECTURES)
def family(request: pytest.FixtureRequest, tokenizer: Any) -> LM:
    return LM(build(request.param, vocab_size=len(tokenizer)), tokenizer)


def test_products_of_a_language_model_are_what_finite_differences_say(family: LM, corpus: Corpus) -> None:
    lm = LM(family.model.double(), family.tokenizer)
    before = snapshot(lm)
    with moved(lm, None) as at:
        objective = Objective(at.parameters, parts_of(lm, corpus, len(corpus), 3))
        v = normal(8, sum(p.numel() for p in at.parameters))
        v = v / v.norm()

        def shifted(step: float) -> tuple[Tensor, list[Tensor]]:
            with torch.no_grad():
                for p, d in zip(at.parameters, objective.shaped(step * v), strict=True):
                    p.add_(d)
            found = objective.gradient(), [out().detach() for out, _ in objective.parts]
            with torch.no_grad():
                for p, d in zip(at.parameters, objective.shaped(step * v), strict=True):
                    p.sub_(d)
            return found

        # Llama's norms compute in fp32 whatever the model is in: no smaller step tells more than their rounding.
        step = 1e-5 if "GPT" in type(lm.model).__name__ else 1e-3
        (up, z_up), (down, z_down) = shifted(step), shifted(-step)
        there = objective.product(v, "hessian")
        assert float((there - (up - down) / (2 * step)).norm() / there.norm()) < (1e-5 if step < 1e-4 else 1e-2)
        bend = 0.0
        for (out, loss), high, low in zip(objective.parts, z_up, z_down, strict=True):
            along, z = (high - low) / (2 * step), out().detach()
            bend += float((along * torch.autograd.functional.hvp(loss, z, along)[1]).sum())
        assert float(v @ objective.product(v, "gauss_newton")) == pytest.approx(bend, rel=1e-5 if step < 1e-4 else 1e-3)
    for name, value in lm.model.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_the_step_on_slices_solves_the_explicit_system(family: LM, corpus: Corpus) -> None:
    forget, retain = split(corpus)
    neurons = Neurons(frozenset({(0, 1)}), some(family).layers, family.shape[1])
    edit = second_order_update(family, forget, retain, neurons=neurons, damping=0.1, tolerance=1e-4)
    with moved(family, neurons) as at:
        objective = Objective(at.parameters, parts_of(family, retain, len(retain), 8))
        b = len(forget) / len(retain) * undone(family, at.parameters, forget, None, 8, 0)
        matrix = torch.stack([objective.product(u, "gauss_newton") for u in torch.eye(len(b))])
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-3, atol=1e-4 * float(matrix.abs().max()))
    expected = torch.linalg.solve(matrix.double() + 0.1 * torch.eye(len(b)).double(), b.double())
    found = torch.cat([(c.after - c.before).double().reshape(-1) for c in edit.changes])  # type: ignore[operator]
    assert float((found - expected).norm() / expected.norm()) < 1e-2
    assert edit.info["residual"] <= 1e-4 and edit.info["neurons"] == 1


UPDATES: dict[str, Callable[..., Edit]] = {
    "first": lambda lm, f, r, **k: first_order_update(lm, f, **k),
    "second": lambda lm, f, r, **k: second_order_update(lm, f, r, damping=1.0, **k),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("order", UPDATES)
def test_an_update_raises_the_forget_loss_keeps_to_its_neurons_and_is_undone_bit_for_bit(
    order: str, whole: bool, family: LM, corpus: Corpus, tmp_path: Path
) -> None:
    forget, retain = split(corpus)
    before, flags = snapshot(family), [p.requires_grad for p in family.model.parameters()]
    edit = UPDATES[order](family, forget, retain, neurons=None if whole else some(family))
    assert same(family, before) and flags == [p.requires_grad for p in family.model.parameters()]
    assert edit.info["scope"] == ("full" if whole else "neurons") and edit.certificate(family).holds
    edit.save(tmp_path / "edit.safetensors")
    again = Edit.load(tmp_path / "edit.safetensors")

    def loss() -> float:
        return float(nf.evaluation.measure(family, forget, [nf.metrics.nll])["nll"].mean())

    start = loss()
    with edit.scaled(0.05).on(family):
        assert loss() > start
    again.apply(family)
    assert not same(family, before)
    edit.undo(family)
    assert same(family, before)


def test_the_first_order_step_is_the_gradient_of_the_mean_nll(lm: LM, corpus: Corpus) -> None:
    forget, _ = split(corpus)
    edit = first_order_update(lm, forget, tau=0.5)
    total = torch.zeros(())
    for row in nf.corpora.encode(forget, lm.tokenizer):
        ids = torch.tensor([row.ids])
        logp = lm.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        total = total - logp[max(row.answer_start, 1) - 1 :].mean() / len(forget)
    grads = torch.autograd.grad(total, list(lm.parameters.values()), allow_unused=True)
    expected = {n: g for n, g in zip(lm.parameters, grads, strict=True) if g is not None}
    for change in edit.changes:
        moved_by = change.after - change.before  # type: ignore[operator]
        torch.testing.assert_close(moved_by, 0.5 * expected[change.name], rtol=1e-2, atol=1e-5)
    other = first_order_update(lm, forget, tau=0.5, preferred=["violin"])
    back = first_order_update(lm, forget.with_answers(["violin"] * len(forget), "v"), tau=0.5)
    by = [{c.name: c.after - c.before for c in e.changes} for e in (edit, other, back)]  # type: ignore[operator]
    for name in by[0].keys() & by[1].keys() & by[2].keys():
        torch.testing.assert_close(by[1][name], by[0][name] - by[2][name], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("call, message", [
    (lambda lm, f, r: first_order_update(lm, f, tau=0.0), "tau > 0"),
    (lambda lm, f, r: first_order_update(lm, f, preferred=[]), "holds no answer"),
    (lambda lm, f, r: second_order_update(lm, f, f), "share"),
    (lambda lm, f, r: second_order_update(lm, f, r, damping=-1.0), "damping >= 0"),
    (lambda lm, f, r: second_order_update(lm, f, r, damping=1e-6, steps=2), "relative residual"),
    (lambda lm, f, r: second_order_update(lm, f, r, curvature="hessian", damping=1e-4), "no minimum"),
    (lambda lm, f, r: second_order_update(lm, f, r, neurons=some(lm) - some(lm)), "empty"),
    (lambda lm, f, r: second_order_update(LM(lm.model.bfloat16(), lm.tokenizer), f, r), "full precision"),
])  # fmt: skip
def test_bad_input_is_refused_and_the_model_left_as_it_was(call: Any, message: str, lm: LM, corpus: Corpus) -> None:
    forget, retain = split(corpus)
    before = snapshot(lm)
    with pytest.raises(InputError, match=message):
        call(lm, forget, retain)
    assert "full precision" in message or same(lm, before)


def test_settings_that_are_no_choice_are_refused(lm: LM, corpus: Corpus, untyped: None) -> None:
    forget, retain = split(corpus)
    for settings, message in (({"over": "some"}, "over must be"), ({"curvature": "fisher"}, "curvature must be")):
        with pytest.raises(InputError, match=message):
            second_order_update(lm, forget, retain, **settings)  # type: ignore[arg-type]
