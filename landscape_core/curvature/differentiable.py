"""Whether autograd knows all of a second derivative.

Where the backward pass of a custom function cannot be differentiated, autograd may leave its
part out of a product without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from landscape_core.batches import map_tensors

EXAMPLES, ENTRIES = 32, 1 << 20  # at most so many, of outputs at which a criterion is checked
ROUNDED = 64  # roundings of a slope
SMOOTH, APART = 0.05, 0.1  # relative differences
FIRST_ONLY = "Hessian(..., method='finite_difference') needs only first derivatives"


def check_differentiable(
    derivatives: Iterable[Tensor], loss: Tensor, products: bool = True
) -> None:
    """Refuse derivatives that pass through a function which can be differentiated only once.

    `products` says whether they are differentiated along any vector, not only along the
    gradient, where the fused weight_norm makes no error.
    """
    todo: list[Any] = [value.grad_fn for value in derivatives if value.requires_grad]
    if not todo:
        raise ValueError(
            "the gradient does not depend on theta: the loss is linear in theta, or the "
            f"backward pass of {last_operation(loss)} cannot be differentiated; {FIRST_ONLY}"
        )
    seen = set(todo)
    while todo:
        node = todo.pop()
        if products and "WeightNorm" in node.name():
            raise ValueError(
                "torch's fused weight_norm has a wrong second derivative, so that the product "
                "would not be symmetric: write weight = g * v / v.norm(...) in its place"
            )
        if node.name() == "torch::autograd::Error":
            raise ValueError(
                "the loss has no second derivative: the backward pass of "
                f"{last_operation(loss)} cannot be differentiated; {FIRST_ONLY}"
            )
        following = {each for each, _ in node.next_functions if each is not None} - seen
        seen |= following
        todo += following


def last_operation(value: Tensor) -> str:
    """Name the custom function, or else the last operation, that made `value`."""
    custom = _custom_function(value)
    if custom is not None:
        return custom
    return value.grad_fn.name().removesuffix("Backward0") if value.grad_fn else "the criterion"


def _custom_function(value: Tensor) -> str | None:
    """Name the last function with a backward pass of its own that `value` was made by."""
    todo, seen = [value.grad_fn], set()
    while todo:
        node = todo.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return node.name().removesuffix("Backward")
        if "CppNode" in node.name():
            return node.name()
        todo += [following for following, _ in node.next_functions]
    return None


def check_criterion(
    criterion: Callable[[Any, Tensor], Tensor], outputs: Any, targets: Tensor
) -> bool:
    """Refuse a criterion whose slopes change otherwise than autograd says.

    The gradient that comes into a criterion is a constant, so that a custom backward pass which
    cannot be differentiated is taken for one that does not depend on the outputs. Where there
    is one, the slopes are compared at five points in a row, on a few examples; the model is not
    evaluated. Where they do not change smoothly (at a kink), or by no more than they round,
    nothing is claimed.

    Returns
    -------
    bool
        Whether the criterion needs no further check.
    """
    parts = _floating(outputs)
    count = len(targets)
    if all(x.shape[:1] == (count,) for x in parts):
        count = max(1, min(EXAMPLES, ENTRIES * count // max(1, sum(x.numel() for x in parts))))
    few, targets = map_tensors(lambda x: x[:count].detach(), outputs), targets[:count]
    parts = _floating(few)
    if not parts:
        return False
    here = _flat(parts)

    def value(point: Tensor) -> Tensor:
        pieces = iter(point.requires_grad_().split([x.numel() for x in parts]))
        moved = map_tensors(
            lambda x: next(pieces).view_as(x).to(x) if x.is_floating_point() else x, few
        )
        return criterion(moved, targets)

    with torch.enable_grad():
        loss = value(here.clone())
    if _custom_function(loss) is None:
        return True
    step = _step(parts)

    def slope(share: float, twice: bool = False) -> tuple[Tensor, Tensor]:
        point = here + share * step
        return torch.autograd.grad(value(point), point, create_graph=twice)[0], point

    with torch.enable_grad():
        middle, point = slope(0.5, twice=True)
        claimed = torch.zeros_like(here)
        if middle.requires_grad:
            check_differentiable([middle], loss)
            claimed = torch.autograd.grad(middle, point, step)[0]
        before, after = ([slope(share)[0] for share in pair] for pair in ((0, 0.25), (0.75, 1)))
        row = torch.stack([*before, middle.detach(), *after]).double()
    rise = row[-1] - row[0]
    size, length = float(rise.norm()), float(claimed.double().norm())
    # Slopes near 0 may come from a difference of numbers near 1, as p - 1 of a softmax does.
    scale = max(float(row.norm(dim=1).max()), len(targets) ** -0.5)
    rough = float((4 * row.diff(dim=0) - rise).norm(dim=1).max())
    if not (size > ROUNDED * torch.finfo(here.dtype).eps * scale and rough <= SMOOTH * size):
        return False
    if float((claimed - rise).norm()) <= APART * max(size, length):
        return True
    raise ValueError(
        "the loss has no second derivative: the slopes of the criterion change by "
        f"{size / float(step.norm()):.2g} for a unit step of the outputs, and by "
        f"{length / float(step.norm()):.2g} to autograd, because the backward pass of "
        f"{last_operation(loss)} cannot be differentiated, or a part of it is detached; "
        f"{FIRST_ONLY}"
    )


def _floating(value: Any) -> list[Tensor]:
    """Every tensor of real numbers in nested tuples, lists and dicts."""
    found: list[Tensor] = []

    def collect(x: Tensor) -> Tensor:
        if x.is_floating_point():
            found.append(x)
        return x

    map_tensors(collect, value)
    return found


def _flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1) for x in parts])


def _step(parts: list[Tensor]) -> Tensor:
    """A short step of the outputs, flat, on which a criterion is defined.

    It leads from every example towards the next one, so that probabilities stay probabilities;
    where all are equal, towards zero, and from zero upwards.
    """
    rng = torch.Generator("cpu").manual_seed(0)

    def draw(x: Tensor, *shape: int) -> Tensor:
        share = torch.rand(shape, generator=rng, dtype=torch.float64, device="cpu")
        return share.to(x)

    along = _flat([(x.roll(-1, 0) - x) * draw(x, len(x), *[1] * (x.ndim - 1)) for x in parts])
    here = _flat(parts)
    if not bool(along.any()):
        along = -here * draw(here, len(here))
    if not bool(along.any()):
        along = draw(here, len(here))
    largest = along.abs().max()
    length = torch.finfo(here.dtype).eps ** (1 / 3) * (1 + here.abs().max()).sqrt()
    return along * (length / largest).clamp(max=1)
