"""Criteria: the loss of single examples, and checks that a criterion is what L(theta) needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from landscape_core.backends import graph_nodes
from landscape_core.batches import Batch, map_tensors, take, tensors_of, with_tensors

Criterion = Callable[[Any, Tensor], Tensor]
LABELLED = (nn.CrossEntropyLoss, nn.NLLLoss, F.cross_entropy, F.nll_loss)
PROBES = 32  # examples of the first batch whose outputs stand in for those of others


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


def example_gradients(
    loss: Callable[[Tensor, Batch], Tensor], theta: Tensor, batch: Batch
) -> Tensor:
    """Gradient in theta of the loss of each example of a batch, shape (b, n)."""

    def one(theta: Tensor, tensors: list[Tensor], target: Tensor) -> Tensor:
        inputs = with_tensors(batch[0], [x.unsqueeze(0) for x in tensors])
        return loss(theta, (inputs, target.unsqueeze(0)))

    try:
        each = vmap(grad(one), in_dims=(None, 0, 0))
        return each(theta, tensors_of(batch[0]), batch[1]).detach()
    except RuntimeError:  # vmap does not follow every layer, such as recurrent ones
        leaf = theta.detach().requires_grad_()
        with torch.enable_grad():
            losses = (
                loss(leaf, take(batch, torch.tensor([i], device="cpu")))
                for i in range(len(batch[1]))
            )
            return torch.stack([torch.autograd.grad(value, leaf)[0] for value in losses])


def check_callable(criterion: Any) -> None:
    """Refuse a class in the place of its instance, and what cannot be called."""
    if isinstance(criterion, type):
        name = criterion.__name__
        raise TypeError(f"criterion must be a function or an instance: {name}(), got {name}")
    if not callable(criterion):
        raise TypeError(
            "criterion must be a function of outputs and targets, such as F.cross_entropy, "
            f"got {criterion!r}"
        )


def check_targets(criterion: Criterion, outputs: Any, targets: Tensor) -> None:
    """Refuse targets that are more or fewer than the outputs, and labels that have none."""
    if not isinstance(outputs, Tensor):
        return
    if outputs.shape[:1] != targets.shape[:1]:
        raise ValueError(
            "the data must have a target to each output of the model, got outputs of shape "
            f"{tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}"
        )
    kind, options = origin(criterion)
    alike = outputs.ndim > 1 and targets.shape == outputs.shape[:1] + outputs.shape[2:]
    if kind in LABELLED and alike:
        check_range(targets, outputs.shape[1], options.get("ignore_index", -100))


def check_range(labels: Tensor, classes: int, ignored: int) -> None:
    """Refuse labels outside of 0, ..., classes - 1 that are not ignored."""
    if labels.dtype not in (torch.int64, torch.uint8):  # no labels to a cross-entropy
        return
    labels = labels[labels != ignored]
    if labels.numel() == 0:
        return
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(
            f"targets must be labels from 0 to {classes - 1}, as the model has {classes} "
            f"outputs, got labels from {low} to {high}"
        )


class NotFiniteError(ValueError, FloatingPointError):
    """A loss that is nan or infinite where it is to be measured."""


def _are_labels(targets: Tensor) -> bool:
    return not (targets.is_floating_point() or targets.is_complex())


def check_parameters(
    loss: Tensor, model: nn.Module, pieces: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> None:
    """Refuse a loss that reaches parameters of the model by another way than theta.

    A pass is made with the `pieces` of theta in the place of the parameters. Whoever holds
    these themselves, as a penalty in the criterion does, sees them stay where they are; and
    where a pass writes into its weights, they are no longer what was `given`.
    """
    for name, piece in pieces.items():
        if not torch.equal(piece.detach().nan_to_num(), given[name].nan_to_num()):
            raise ValueError(
                f"the model's forward pass writes into its weights, got another {name!r}, so "
                "that theta would change from call to call: let it work on a copy, "
                "weight.clamp(-1, 1) in the place of weight.data.clamp_(-1, 1)"
            )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for node in graph_nodes([loss]):
        held = names.get(id(getattr(node, "variable", None)))
        if held is not None:
            raise ValueError(
                f"the loss must depend on {held!r} through the model's pass, got it from "
                "elsewhere, where it does not follow theta: hold weights in the layers; "
                "leave a penalty out of the criterion (c |theta|^2 adds 2c to each eigenvalue)"
            )


def check_criterion(
    criterion: Criterion, outputs: Any, targets: Tensor, loss: Tensor, theta: Tensor
) -> None:
    """Refuse a `loss` of the first batch that is not the finite mean, a function of theta."""
    slope = None
    if loss.requires_grad:
        slope = torch.autograd.grad(loss, theta, allow_unused=True)[0]
    if slope is None:
        raise ValueError("the loss does not depend on theta: it carries no gradient")
    loss = loss.detach()
    if not bool(loss.isfinite()):
        raise NotFiniteError(f"the loss of the first batch must be finite, got {float(loss)}")
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
    losses = split_loss(criterion, outputs, targets)
    mean, size = float(losses.mean()), max(abs(value), float(losses.abs().mean()))
    rounding = torch.finfo(loss.dtype).eps ** 0.5 * size
    count = len(targets)
    if abs(value - mean) <= rounding:
        if count > 1 and float(losses.max() - losses.min()) <= rounding:
            _check_slope(criterion, outputs, targets)
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


def _check_slope(criterion: Criterion, outputs: Any, targets: Tensor) -> None:
    """Refuse another mean of losses that are all equal, as behind a head of zeros."""
    if not isinstance(outputs, Tensor) or torch.is_inference_mode_enabled():
        return
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        loss = criterion(leaf, targets)
        if not loss.requires_grad:
            return
        slope = torch.autograd.grad(loss, leaf, allow_unused=True)[0]
    if slope is None:
        return
    count, precision = len(targets), torch.finfo(outputs.dtype)
    apart = split_gradient(criterion, outputs, targets)
    off, size = float((count * slope - apart).abs().max()), float(apart.abs().max())
    if off > precision.eps**0.5 * size + count * precision.tiny:
        raise ValueError(
            "criterion must be the mean over examples, got one whose slope in the outputs is "
            "not the mean of theirs: class weights and ignored targets make it another mean"
        )


class MeanCheck:
    """Refuses a criterion that is another mean in some batch, whatever their order.

    Of cross-entropy by its options; of others by value, at outputs of the first batch in the
    place of a batch's own, which would cost a pass, and next to targets of the first batch,
    so that class weights show in batches of one class.
    """

    def __init__(self, criterion: Criterion, outputs: Any, targets: Tensor) -> None:
        self.criterion, self._targets = criterion, targets[:PROBES]
        self._outputs = map_tensors(lambda x: x[:PROBES].detach().clone(), outputs)
        kind, self._options = origin(criterion)
        self._plain = kind in LABELLED and self._options.get("reduction", "mean") == "mean"
        self._weights = [math.inf, -math.inf]

    @torch.no_grad()
    def __call__(self, targets: Tensor, forward: Callable[[], Any]) -> None:
        """Check one batch; `forward` gives its outputs, where others cannot stand in."""
        if self._plain and _are_labels(targets) and targets.ndim == 1:
            self._check_labels(targets)
            return
        alike = targets.shape[1:] == self._targets.shape[1:]
        if alike and isinstance(self._outputs, Tensor):  # as many outputs to each, then
            stand_in = self._outputs[:1].expand(len(targets), *self._outputs.shape[1:])
            check_targets(self.criterion, stand_in, targets)
        if not alike:
            outputs = forward()
        else:
            if targets[0].numel() == 1:
                targets = torch.cat([self._targets, targets])
            rows = torch.arange(len(targets), device=targets.device) % len(self._targets)
            outputs = map_tensors(lambda x: x[rows.to(x.device)], self._outputs)
        check_mean(self.criterion, outputs, targets, self.criterion(outputs, targets))

    def _check_labels(self, labels: Tensor) -> None:
        index, weight = self._options.get("ignore_index", -100), self._options.get("weight")
        ignored = int((labels == index).sum())
        if ignored:
            raise ValueError(
                "criterion must be the mean over examples, got one that ignores "
                f"{ignored} targets of a batch (ignore_index={index}): leave them out"
            )
        if self._outputs.ndim > 1:
            check_range(labels, self._outputs.shape[1], index)
        if weight is None:
            return
        used = weight.detach()[labels.to(weight.device, torch.int64)]
        low, high = self._weights
        self._weights = [min(low, float(used.min())), max(high, float(used.max()))]
        if self._weights[0] < self._weights[1]:
            low, high = self._weights
            raise ValueError(
                "criterion must be the mean over examples, got one with class weights from "
                f"{low:.4g} to {high:.4g}: use weight=None"
            )


def origin(criterion: Any) -> tuple[Any, dict[str, Any]]:
    """The function or class that a criterion comes from, and the options that it has."""
    options: dict[str, Any] = {}
    while isinstance(criterion, partial):
        options = {**criterion.keywords, **options}
        criterion = criterion.func
    if not isinstance(criterion, nn.Module):
        return criterion, options
    names = ("weight", "ignore_index", "reduction")
    own = {name: getattr(criterion, name) for name in names if hasattr(criterion, name)}
    return type(criterion), {**own, **options}


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
    return [x._version for x in tensors_of(value)]
