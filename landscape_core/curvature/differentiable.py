"""Whether autograd knows all of a second derivative.

Where the backward pass of a custom function cannot be differentiated, autograd may leave its
part out of a product without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from landscape_core.backends import graph_nodes
from landscape_core.batches import map_tensors, tensors_of

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
    bent = [value for value in derivatives if value.requires_grad]
    if not bent:
        raise ValueError(
            "the gradient does not depend on theta: the loss is linear in theta, or the "
            f"backward pass of {last_operation(loss)} cannot be differentiated; {FIRST_ONLY}"
        )
    for node in graph_nodes(bent):
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


def last_operation(value: Tensor) -> str:
    """Name the custom function, or else the last operation, that made `value`."""
    custom = _custom_function(value)
    if custom is not None:
        return custom
    return value.grad_fn.name().removesuffix("Backward0") if value.grad_fn else "the criterion"


def _custom_function(value: Tensor) -> str | None:
    """Name the last function with a backward pass of its own that `value` was made by."""
    for node in graph_nodes([value]):
        name = str(node.name())
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            source = getattr(type(node), "_forward_cls", type(node)).__module__
            if not source.startswith("landscape_core."):  # whose own can be differentiated
                return name.removesuffix("Backward")
        if "CppNode" in name:
            return name
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
    # Slopes near 0 may come from a difference of numbers near 1, as p - 1 of a softmax does.
    least = len(targets) ** -0.5
    agree, size, length = _compare([*before, middle.detach(), *after], claimed, least)
    if agree is None:
        return False
    if agree:
        return True
    raise ValueError(
        "the loss has no second derivative: the slopes of the criterion change by "
        f"{size / float(step.norm()):.2g} for a unit step of the outputs, and by "
        f"{length / float(step.norm()):.2g} to autograd, because the backward pass of "
        f"{last_operation(loss)} cannot be differentiated, or a part of it is detached; "
        f"{FIRST_ONLY}"
    )


def check_model(
    gradient: Callable[[float], Tensor], claimed: Tensor, length: float, outputs: Any
) -> None:
    """Refuse a model whose gradient changes otherwise than autograd says.

    A custom backward pass that uses what its forward pass has computed and saved hides from
    autograd how that depends on the inputs. Where a model has one, its gradients at five
    points in a row are compared, as for a criterion.

    Parameters
    ----------
    gradient : callable
        Gradient of the loss of one batch, shape (n,), at a share of the way from theta.
    claimed : Tensor, shape (n,)
        The product of its Hessian with the whole way, by autograd.
    length : float
        Of the way; the points lie on both sides of theta.
    outputs
        What the model made of the batch, with its graph.
    """
    slopes = [gradient(share) for share in (-0.5, -0.25, 0, 0.25, 0.5)]
    agree, true, wrong = _compare(slopes, claimed, 0.0)
    if agree is False:
        name = next(filter(None, map(_custom_function, tensors_of(outputs))))
        raise ValueError(
            f"the loss has no second derivative: its gradient changes by {true / length:.2g} "
            f"for a unit step of theta, and by {wrong / length:.2g} to autograd, because the "
            f"backward pass of {name} uses what its forward pass saved, or is another "
            f"function's; {FIRST_ONLY}"
        )


def has_custom_functions(outputs: Any) -> bool:
    """Whether a backward pass of somebody's own is in the graph of the outputs."""
    return any(_custom_function(x) is not None for x in tensors_of(outputs))


def _compare(
    slopes: list[Tensor], claimed: Tensor, least: float
) -> tuple[bool | None, float, float]:
    """Whether slopes at five points in a row rise as claimed, and the sizes of both rises.

    None where they do not rise smoothly, or by no more than they round.
    """
    row = torch.stack(slopes).double()
    rise = row[-1] - row[0]
    size, length = float(rise.norm()), float(claimed.double().norm())
    scale = max(float(row.norm(dim=1).max()), least)
    rough = float((4 * row.diff(dim=0) - rise).norm(dim=1).max())
    rounding = ROUNDED * torch.finfo(claimed.dtype).eps * scale
    if not (size > rounding and rough <= SMOOTH * size):
        return None, size, length
    return float((claimed - rise).norm()) <= APART * max(size, length), size, length


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
