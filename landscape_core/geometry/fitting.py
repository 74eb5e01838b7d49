"""Fitting a curve between two networks so that the loss stays low along it."""

from __future__ import annotations

import copy
import math
from numbers import Integral

import torch
from torch import Tensor

from landscape_core.backends import full_precision
from landscape_core.batchnorm import norms
from landscape_core.curvature.probes import Seed, generator
from landscape_core.geometry.curves import Curve, CurveEpoch
from landscape_core.geometry.paths import path_profile
from landscape_core.objective import Objective
from landscape_core.progress import progress_bar


def fit_path(
    objective: Objective,
    path: Curve,
    *,
    epochs: int = 30,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 128,
    validation: Objective | None = None,
    seed: Seed = 0,
    progress: bool = False,
) -> Curve:
    r"""Move the bends of a curve so that the mean loss along it falls.

    Minimizes :math:`\int_0^1 L(\mathrm{path}(t))\,dt` by stochastic gradient descent: every
    step draws a batch and one t, and the gradient at ``path(t)`` goes to each bend by its
    weight at t. A step costs one training step. The learning rate falls to zero along a cosine.

    Parameters
    ----------
    objective : Objective
        Training data. Under ``batchnorm="refresh"`` batches supply their own statistics while
        fitting, as in training; a single example that is left over joins the last batch then.
    path : Bezier or Polygon
        Where to start; it is not changed.
    epochs : int
    lr, momentum, weight_decay : float
    batch_size : int
    validation : Objective or None
        Its highest loss at 11 points of the curve is recorded after every epoch.
    seed : int or torch.Generator
        Draws batches and t; a generator must be on the CPU.
    progress : bool

    Returns
    -------
    Curve
        Of the same kind and with the same ends; ``history`` says how the fit went.

    Raises
    ------
    FloatingPointError
        If the loss stops being finite.

    References
    ----------
    T. Garipov et al., Loss surfaces, mode connectivity, and fast ensembling, 2018,
    arXiv:1802.10026.
    """
    _check(objective, path, epochs, lr, batch_size)
    fitted = copy.copy(objective)
    if objective.batchnorm == "refresh":
        fitted.batchnorm = "batch"
    sizes = _batch_sizes(fitted, int(batch_size))
    rng = generator(seed, torch.device("cpu"))
    history: list[CurveEpoch] = []
    curve = path.with_bends(path.bends.clone(), history)
    bends = list(curve.bends)  # views: a step of the optimizer moves the curve
    optimizer = torch.optim.SGD(bends, lr=lr, momentum=momentum, weight_decay=weight_decay)
    count = sum(sizes)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(sizes))
    with progress_bar(total=epochs, desc="curve", unit="epoch", progress=progress) as bar:
        for epoch in range(1, epochs + 1):
            total = 0.0
            for rows in torch.randperm(count, generator=rng, device="cpu").split(sizes):
                t = float(torch.rand((), generator=rng, dtype=torch.float64, device="cpu"))
                total += len(rows) * _step(fitted, curve, bends, rows, t)
                optimizer.step()
                schedule.step()
            peak = math.nan
            if validation is not None:
                peak = float(path_profile(validation, curve, 11).loss.max())
            history.append(CurveEpoch(epoch, total / count, peak))
            bar.set_postfix(loss=f"{total / count:.4g}", refresh=False)
            bar.update()
    return curve


def _batch_sizes(objective: Objective, batch_size: int) -> list[int]:
    """Sizes of the batches of an epoch; one example alone has no statistics of its own."""
    whole, rest = divmod(objective.examples, batch_size)
    sizes = [batch_size] * whole + [rest] * bool(rest)
    if objective.batchnorm == "batch" and norms(objective.model):
        if batch_size == 1:
            raise ValueError("batch_size must be at least 2 for statistics of batches, got 1")
        if rest == 1 and whole:
            sizes[-2:] = [batch_size + 1]
    return sizes


def _step(
    objective: Objective, curve: Curve, bends: list[Tensor], rows: Tensor, t: float
) -> float:
    """Put the gradients of one batch at one t into `bends`; return its loss."""
    leaf = curve(t).requires_grad_()
    with torch.enable_grad(), full_precision(leaf.device):
        loss = objective.batch_loss(leaf, objective.sample(rows))
        (slope,) = torch.autograd.grad(loss, leaf)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the loss must stay finite, got {value} at t = {t:.3f}: lower lr"
        )
    for bend, weight in zip(bends, curve.weights(t)[1:-1], strict=True):
        bend.grad = weight * slope
    return value


def _check(objective: Objective, path: Curve, epochs: int, lr: float, batch_size: int) -> None:
    if not isinstance(path, Curve):
        kind = type(path).__name__
        raise TypeError(f"path must have bends to fit, such as Bezier(a, b), got {kind}")
    objective.space.check(path.points[0], "the start of path")
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be positive and finite, got {lr}")
