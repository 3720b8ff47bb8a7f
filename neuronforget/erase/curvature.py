"""Curvature times a vector, and the inverse of curvature times a vector, checked.

    H = d2L / dtheta2   or, Gauss-Newton:   G = J^T (d2L / dz2) J,   z the outputs, J = dz / dtheta

G is H without the term that a converged model does not have; it is never indefinite, which H of a language model is.
Neither is formed: a product costs some two backward passes. What solves `(H + damping) x = b` also says how well: the
relative residual |H x + damping x - b| / |b| is computed afresh, and a large one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.errors import InputError
from neuronforget.train import draw

Curvature = Literal["gauss_newton", "hessian"]
#: One batch: its outputs, and its share of the loss as a function of them.
Part = tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]
#: Multiplies a flat vector.
Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Objective:
    """A loss as a sum over batches, of `parameters` that carry gradients; vectors over them are flat."""

    parameters: Sequence[Tensor]
    parts: Sequence[Part]

    def loss(self) -> Float[Tensor, ""]:
        """Return the loss, without gradients."""
        with torch.no_grad():
            return torch.stack([loss(outputs()) for outputs, loss in self.parts]).sum()

    def gradient(self) -> Float[Tensor, "n"]:
        """Return the loss' gradient."""
        return torch.stack([self._flat(_grad(loss(out()), self.parameters)) for out, loss in self.parts]).sum(0)

    def product(self, vector: Float[Tensor, "n"], kind: Curvature, parts: Sequence[Part] = ()) -> Float[Tensor, "n"]:
        """Return curvature times `vector`, of the given `parts` (without any: of all)."""
        times = self._gauss_newton if kind == "gauss_newton" else self._hessian
        shaped = self.shaped(vector)
        with twice_differentiable():
            return torch.stack([self._flat(times(shaped, *part)) for part in parts or self.parts]).sum(0)

    def shaped(self, vector: Float[Tensor, "n"]) -> list[Tensor]:
        """Return a flat vector in the shapes of the parameters."""
        pieces = vector.split([p.numel() for p in self.parameters])
        return [piece.view_as(p).to(p.dtype) for piece, p in zip(pieces, self.parameters, strict=True)]

    def _hessian(
        self, vector: list[Tensor], outputs: Callable[[], Tensor], loss: Callable[[Tensor], Tensor]
    ) -> list[Tensor | None]:
        slopes = _grad(loss(outputs()), self.parameters, create_graph=True)
        along = [(s * v).sum() for s, v in zip(slopes, vector, strict=True) if s is not None and s.requires_grad]
        return _grad(torch.stack(along).sum(), self.parameters)

    def _gauss_newton(
        self, vector: list[Tensor], outputs: Callable[[], Tensor], loss: Callable[[Tensor], Tensor]
    ) -> list[Tensor | None]:
        z = outputs()
        probe = torch.zeros_like(z, requires_grad=True)
        back = _grad(z, self.parameters, along=probe, create_graph=True)  # J^T u, linear in u: its slope is J
        there = [(b * v).sum() for b, v in zip(back, vector, strict=True) if b is not None]
        (forward,) = torch.autograd.grad(torch.stack(there).sum(), probe, retain_graph=True)
        at = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(at), at, create_graph=True)
        (curved,) = torch.autograd.grad(slope, at, grad_outputs=forward)
        return _grad(z, self.parameters, along=curved)

    def _flat(self, values: Sequence[Tensor | None]) -> Tensor:
        pairs = zip(values, self.parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if v is None else v).detach().reshape(-1) for v, p in pairs])


@dataclass(frozen=True, eq=False)
class Solution:
    """`x` of `(H + damping) x = b`, its relative residual, and how many products it took."""

    x: Float[Tensor, "n"]
    residual: float
    steps: int


def conjugate_gradients(
    apply: Apply, b: Float[Tensor, "n"], *, damping: float, steps: int = 100, tolerance: float = 1e-2
) -> Solution:
    """Solve `(H + damping) x = b` to a relative residual of `tolerance`, in at most `steps` products.

    Raises InputError along a direction of no or negative curvature, and where the residual stays above.
    """
    x, left = torch.zeros_like(b), b.clone()
    along, size, taken = left.clone(), left @ left, 0
    goal = tolerance * b.norm() / 2  # half: the recursion's residual drifts from the true one
    while taken < steps and left.norm() > goal:
        pushed = apply(along) + damping * along
        bend, taken = along @ pushed, taken + 1
        if not bend > 0:
            raise InputError(
                f"no minimum: the curvature along step {taken} is {float(bend / (along @ along)):.2g}; raise damping "
                f"(now {damping:g}) above its negative, or take curvature='gauss_newton'"
            )
        x = x + size / bend * along
        left = left - size / bend * pushed
        along, size = left + (left @ left) / size * along, left @ left
    return checked(apply, x, b, damping=damping, steps=taken, tolerance=tolerance)


def adam(
    batches: Sequence[Apply],
    b: Float[Tensor, "n"],
    *,
    damping: float,
    steps: int,
    lr: float,
    tolerance: float,
    seed: int = 0,
) -> Solution:
    """Minimise `x (H + damping) x / 2 - b x` by Adam, `H` a batch at a time (LLMEraser); `batches` add up to H.

    `lr` is relative to the root mean square of b, and falls to zero. Raises InputError where the residual over all
    batches stays above `tolerance`.
    """
    x = torch.zeros_like(b, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=lr * float(b.square().mean().sqrt()) or 1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        (place,) = draw(range(len(batches)), 1, seed, step)
        now = x.detach()
        x.grad = len(batches) * batches[place](now) + damping * now - b
        optimizer.step()
        schedule.step()
    return checked(
        lambda v: torch.stack([times(v) for times in batches]).sum(0),
        x.detach(), b, damping=damping, steps=steps, tolerance=tolerance,
    )  # fmt: skip


def checked(
    apply: Apply, x: Float[Tensor, "n"], b: Float[Tensor, "n"], *, damping: float, steps: int, tolerance: float
) -> Solution:
    """Return `x` with its residual, from one more product. Raises InputError where it is above `tolerance`."""
    if not b.any():
        raise InputError("the gradient to be undone is zero: there is nothing to solve for")
    residual = float((apply(x) + damping * x - b).norm() / b.norm())
    if not residual <= tolerance:
        raise InputError(
            f"the inverse curvature times the gradient is not solved for: relative residual {residual:.2g} after "
            f"{steps} steps, asked for {tolerance:g}; raise steps or damping (now {damping:g}), or allow more tolerance"
        )
    return Solution(x, residual, steps)


def check_solver(damping: float, steps: int, tolerance: float) -> None:
    """Raise InputError for settings that no solver can work with."""
    if not damping >= 0 or steps < 1 or not 0 < tolerance < 1:
        found = f"damping={damping}, steps={steps}, tolerance={tolerance}"
        raise InputError(f"solving needs damping >= 0, steps >= 1 and a tolerance between 0 and 1; found {found}")


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within the block attention is computed in a way that has second derivatives (fused kernels have none)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        yield


def _grad(
    value: Tensor, parameters: Sequence[Tensor], *, along: Tensor | None = None, create_graph: bool = False
) -> list[Tensor | None]:
    found = torch.autograd.grad(
        value, list(parameters), grad_outputs=along, create_graph=create_graph, allow_unused=True
    )
    return list(found)
