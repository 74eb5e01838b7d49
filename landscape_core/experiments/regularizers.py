"""Regularizers of training: what else than the loss of the batch decides a step.

Each turns the loss of a batch into a gradient, from the batch alone and the generator that it
is handed, so that training stays a pure function of its seeds. Plain weight decay is part of
:class:`TrainConfig`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape_core.curvature.probes import Distribution, probe

BatchLoss = Callable[[Tensor, Tensor], Tensor]  # inputs and targets to their mean loss
Gradients = tuple[Tensor, ...]


@dataclass(frozen=True)
class RegularizedStep:
    """What a step descends.

    Attributes
    ----------
    loss : Tensor, shape ()
        Of the batch, without the penalty.
    penalty : Tensor, shape ()
        What is added to it; for :class:`SAM` the rise of the loss that it looked at.
    gradients : tuple of Tensor
        One to each parameter.
    """

    loss: Tensor
    penalty: Tensor
    gradients: Gradients


class Regularizer(ABC):
    """Turns the loss of a batch into the gradient of a training step."""

    @abstractmethod
    def step(
        self,
        loss: BatchLoss,
        parameters: Sequence[Tensor],
        batch: tuple[Tensor, Tensor],
        rng: torch.Generator,
    ) -> RegularizedStep:
        """Gradient of one batch.

        Parameters
        ----------
        loss : callable
            ``loss(inputs, targets) -> scalar``, the mean over these examples, at the present
            parameters.
        parameters : sequence of Tensor
        batch : (inputs, targets)
        rng : torch.Generator
            On the device of the parameters.
        """


@dataclass(frozen=True)
class FlatnessPenalty(Regularizer):
    r"""Penalize the squared Hessian, ``weight * Tr(H_B^2) / B`` for a batch of B examples.

    Hutchinson's estimate from K probes, its gradient taken through the products:

    .. math:: \frac{\lambda}{B K} \sum_k |H_B v_k|^2 \quad\text{or}\quad
        \frac{\lambda}{B K} \sum_k (H_{B_1} v_k)^\top (H_{B_2} v_k)

    The first also punishes how the Hessians of single examples differ, by their variance over
    B: ``E Tr(H_B^2) = Tr(H^2) + Var / B``. The second, from the two halves of the batch, has
    the expectation Tr(H^2) alone, and can be negative in a single step. For ReLU networks the
    kinks contribute nothing to the gradient of either.

    Parameters
    ----------
    weight : float
        Lambda.
    probes : int
        K.
    distribution : {"rademacher", "gaussian"}
        The first has the smaller variance, and is drawn faster.
    two_batches : bool
        Whether to use the second form.

    Examples
    --------
    >>> FlatnessPenalty(0.1)
    FlatnessPenalty(weight=0.1, probes=3, distribution='rademacher', two_batches=False)
    """

    weight: float
    probes: int = 3
    distribution: Distribution = "rademacher"
    two_batches: bool = False

    def __post_init__(self) -> None:
        _check_positive("weight", self.weight, zero=True)
        if not isinstance(self.probes, int) or self.probes < 1:
            raise ValueError(f"probes must be a whole number >= 1, got {self.probes!r}")
        if self.distribution not in ("gaussian", "rademacher"):
            raise ValueError(
                f"distribution must be 'gaussian' or 'rademacher', got {self.distribution!r}"
            )

    def step(
        self,
        loss: BatchLoss,
        parameters: Sequence[Tensor],
        batch: tuple[Tensor, Tensor],
        rng: torch.Generator,
    ) -> RegularizedStep:
        """See :meth:`Regularizer.step`."""
        task, slopes = _slopes(loss, parameters, batch, 2 if self.two_batches else 1)
        scale = self.weight / (len(batch[1]) * self.probes)
        sizes = [p.numel() for p in parameters]
        squares = torch.zeros((), device=task.device)
        # The derivative of a'b is that of a weighted by b, and of b weighted by a: the products
        # need no graph of their own. The scale is multiplied in at the end, once.
        unit = scale if self.two_batches else 2 * scale
        roots, weights = [task], [torch.full_like(task, 1 / unit if unit else 1.0)]
        for _ in range(self.probes if unit else 0):
            flat = probe(sum(sizes), parameters[0].dtype, rng, self.distribution)
            v = [d.view_as(p) for d, p in zip(flat.split(sizes), parameters, strict=True)]
            products = [_grad(slope, parameters, v, keep=True) for slope in slopes]
            for first, second in zip(products[0], products[-1], strict=True):
                squares = squares + torch.dot(
                    first.detach().flatten(), second.detach().flatten()
                )
                both = [(first, second), (second, first)][: len(products)]
                roots += [root for root, _ in both if root.requires_grad]
                weights += [weight.detach() for root, weight in both if root.requires_grad]
        gradients = _grad(roots, parameters, weights)
        if unit:
            torch._foreach_mul_(list(gradients), unit)
        return RegularizedStep(task.detach(), scale * squares, gradients)


@dataclass(frozen=True)
class GradientPenalty(Regularizer):
    r"""Penalize the squared length of the gradient, ``weight * |g_B|^2``.

    As for :class:`FlatnessPenalty`, `two_batches` takes the inner product of the gradients of
    two halves, whose expectation is the squared length of the gradient of all examples, without
    the variance of single ones.

    References
    ----------
    D. Barrett and B. Dherin, Implicit gradient regularization, 2021, arXiv:2009.11162.
    """

    weight: float
    two_batches: bool = False

    def __post_init__(self) -> None:
        _check_positive("weight", self.weight, zero=True)

    def step(
        self,
        loss: BatchLoss,
        parameters: Sequence[Tensor],
        batch: tuple[Tensor, Tensor],
        rng: torch.Generator,
    ) -> RegularizedStep:
        """See :meth:`Regularizer.step`."""
        task, slopes = _slopes(loss, parameters, batch, 2 if self.two_batches else 1)
        pairs = zip(slopes[0], slopes[-1], strict=True)
        penalty = self.weight * torch.stack([torch.sum(a * b) for a, b in pairs]).sum()
        return RegularizedStep(
            task.detach(), penalty.detach(), _grad(task + penalty, parameters)
        )


@dataclass(frozen=True)
class SAM(Regularizer):
    r"""Sharpness-aware minimization: descend by the gradient at a worse point close by.

    .. math:: g\big(\theta + \rho\, T^2 g / |T g|\big), \qquad T = 1 \text{ or } |\theta| + c

    With ``adaptive=True`` the ball is relative to each weight (ASAM). A step costs two.

    Parameters
    ----------
    radius : float
        Rho, an l2 norm over all weights, relative to them with `adaptive`.
    adaptive : bool
    offset : float
        c, which keeps weights of zero movable; only with `adaptive`.

    References
    ----------
    P. Foret et al. 2021, arXiv:2010.01412; J. Kwon et al. 2021, arXiv:2102.11600.
    """

    radius: float
    adaptive: bool = False
    offset: float = 0.01

    def __post_init__(self) -> None:
        _check_positive("radius", self.radius)
        _check_positive("offset", self.offset, zero=True)

    def step(
        self,
        loss: BatchLoss,
        parameters: Sequence[Tensor],
        batch: tuple[Tensor, Tensor],
        rng: torch.Generator,
    ) -> RegularizedStep:
        """See :meth:`Regularizer.step`."""
        here = loss(*batch)
        slope = _grad(here, parameters)
        kept = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            scales = [p.abs() + self.offset if self.adaptive else None for p in parameters]
            bent = [
                g if s is None else s * g for g, s in zip(slope, scales, strict=True)
            ]  # T g
            length = torch.stack([b.square().sum() for b in bent]).sum().sqrt()
            # At a point without slope there is no worse direction: stay.
            factor = torch.where(length > 0, self.radius / length, torch.zeros_like(length))
            for p, b, s in zip(parameters, bent, scales, strict=True):
                p.add_(factor * (b if s is None else s * b))
        try:
            there = loss(*batch)
            gradients = _grad(there, parameters)
        finally:
            with torch.no_grad():
                for p, old in zip(parameters, kept, strict=True):
                    p.copy_(old)
        return RegularizedStep(here.detach(), (there - here).detach(), gradients)


@dataclass(frozen=True)
class LabelNoise(Regularizer):
    """Draw the labels of a fraction of each batch at random, anew in every step.

    Parameters
    ----------
    fraction : float
        From 0 to 1: the probability that an example gets a label drawn from `classes` at
        random, its own among them.
    classes : int

    References
    ----------
    G. Blanc et al., Implicit regularization for deep neural networks driven by an
    Ornstein-Uhlenbeck like process, 2020, arXiv:1904.09080.
    """

    fraction: float
    classes: int

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction must be from 0 to 1, got {self.fraction}")
        if not isinstance(self.classes, int) or self.classes < 2:
            raise ValueError(f"classes must be a whole number >= 2, got {self.classes!r}")

    def step(
        self,
        loss: BatchLoss,
        parameters: Sequence[Tensor],
        batch: tuple[Tensor, Tensor],
        rng: torch.Generator,
    ) -> RegularizedStep:
        """See :meth:`Regularizer.step`."""
        inputs, targets = batch
        shape, device = targets.shape, targets.device
        chosen = torch.rand(shape, generator=rng, device=device) < self.fraction
        drawn = torch.randint(self.classes, shape, generator=rng, device=device)
        value = loss(inputs, torch.where(chosen, drawn.to(targets.dtype), targets))
        zero = torch.zeros_like(value)
        return RegularizedStep(value.detach(), zero.detach(), _grad(value, parameters))


def _grad(
    values: Tensor | Sequence[Tensor],
    parameters: Sequence[Tensor],
    vectors: Sequence[Tensor] | None = None,
    *,
    keep: bool = False,
) -> Gradients:
    """Gradients in all parameters; with `keep`, such that they can be differentiated again."""
    values = [values] if isinstance(values, Tensor) else values
    if vectors is not None:  # what does not depend on any parameter has no product
        pairs = [(x, v) for x, v in zip(values, vectors, strict=True) if x.requires_grad]
        values, vectors = [x for x, _ in pairs], [v for _, v in pairs]
    return torch.autograd.grad(
        values, parameters, vectors, create_graph=keep, retain_graph=True if keep else None,
        allow_unused=True, materialize_grads=True,
    )  # fmt: skip


def _slopes(
    loss: BatchLoss, parameters: Sequence[Tensor], batch: tuple[Tensor, Tensor], count: int
) -> tuple[Tensor, list[Gradients]]:
    """Mean loss of a batch, and the gradients of its `count` parts, to be differentiated."""
    inputs, targets = batch
    if len(targets) < count:
        raise ValueError(f"two batches need at least {count} examples, got {len(targets)}")
    parts = zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True)
    losses, shares = [], []
    for x, y in parts:
        losses.append(loss(x, y))
        shares.append(len(y) / len(targets))
    mean = torch.stack([w * value for w, value in zip(shares, losses, strict=True)]).sum()
    return mean, [_grad(value, parameters, keep=True) for value in losses]


def _check_positive(name: str, value: float, zero: bool = False) -> None:
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        least = "0 or more" if zero else "positive"
        raise ValueError(f"{name} must be {least} and finite, got {value}")
