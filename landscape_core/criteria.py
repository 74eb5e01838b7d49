"""Criteria: the loss of single examples, and checks that a criterion is what L(theta) needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from landscape_core.batches import map_tensors

Criterion = Callable[[Any, Tensor], Tensor]


def split_loss(criterion: Criterion, outputs: Any, targets: Tensor) -> Tensor:
    """Loss of each example of a batch, shape (b,), from the outputs of the whole batch."""

    def one(output: Any, target: Tensor) -> Tensor:
        single = map_tensors(lambda x: x.unsqueeze(0), output)
        return criterion(single, target.unsqueeze(0))

    try:
        return vmap(one)(outputs, targets)
    except (RuntimeError, TypeError, ValueError):  # vmap does not follow every criterion
        return torch.stack(
            [one(map_tensors(itemgetter(i), outputs), y) for i, y in enumerate(targets)]
        )


def split_gradient(criterion: Criterion, outputs: Tensor, targets: Tensor) -> Tensor:
    """Gradient of the loss of each example in its own outputs, the shape of `outputs`."""
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        total = split_loss(criterion, leaf, targets).sum()
        return torch.autograd.grad(total, leaf)[0]


def check_criterion(criterion: Criterion, outputs: Any, targets: Tensor, loss: Tensor) -> None:
    """Refuse a `loss` of the first batch that is not the finite mean over its examples."""
    loss = loss.detach()
    if not bool(loss.isfinite()):
        raise ValueError(f"the loss of the first batch must be finite, got {float(loss)}")
    check_mean(criterion, outputs, targets, loss)


@torch.no_grad()
def check_mean(criterion: Criterion, outputs: Any, targets: Tensor, loss: Tensor) -> None:
    """Refuse a finite `loss` of a batch that is not the mean over its examples.

    Class weights show only in a batch of several classes, ignored targets where there are any.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        return
    outputs = map_tensors(Tensor.detach, outputs)
    mean = float(split_loss(criterion, outputs, targets).mean())
    rounding = torch.finfo(loss.dtype).eps ** 0.5 * max(abs(value), abs(mean))
    count = len(targets)
    if abs(value - mean) <= rounding:
        return
    if abs(value - mean * count) <= count * rounding:
        raise ValueError(
            f"criterion must be the mean over examples, got their sum ({value:.4g}, where "
            f"the mean is {mean:.4g}): use reduction='mean'"
        )
    raise ValueError(
        f"criterion must be the mean over examples, got {value:.4g} for a batch whose "
        f"examples have a mean of {mean:.4g}: class weights, ignored targets and shapes "
        "that broadcast make it another mean"
    )


@contextmanager
def draws_nothing(device: torch.device) -> Iterator[None]:
    """Refuse a forward pass, run inside, that draws random numbers; put the generator back."""
    cuda = device.type == "cuda"
    before = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if cuda else [])
    yield
    after = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if cuda else [])
    if all(map(torch.equal, before, after)):
        return
    torch.set_rng_state(before[0])
    if cuda:
        torch.cuda.set_rng_state(before[1], device)
    raise ValueError(
        "the model's forward pass draws random numbers even in eval mode, so L(theta) would "
        "change from call to call: write dropout as nn.Dropout, or with training=self.training"
    )


@contextmanager
def writes_nothing(inputs: Any) -> Iterator[None]:
    """Refuse a forward pass, run inside, that writes into its inputs."""
    before = _versions(inputs)
    yield
    if _versions(inputs) != before:
        raise ValueError(
            "the model's forward pass writes into its inputs, so the data would change from "
            "call to call: let it work on a copy (x * 2 in the place of x.mul_(2))"
        )


def _versions(value: Any) -> list[int]:
    """How often each tensor in `value` was written to."""
    found: list[Tensor] = []

    def collect(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_tensors(collect, value)
    return [x._version for x in found]
