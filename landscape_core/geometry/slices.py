"""The loss along a line and over a plane through parameter space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from landscape_core.objective import Objective


@dataclass(frozen=True)
class Line:
    """Loss along ``theta + x * direction``.

    Attributes
    ----------
    x : array, shape (p,)
        Steps, in units of the direction.
    loss : array, shape (p,)
        Mean loss over all examples.
    accuracy : array, shape (p,), or None
        Fraction classified correctly; None where targets are not class labels.
    """

    x: np.ndarray
    loss: np.ndarray = field(repr=False)
    accuracy: np.ndarray | None = field(repr=False)


@dataclass(frozen=True)
class Plane:
    """Loss over ``theta + x * d1 + y * d2``.

    Attributes
    ----------
    x, y : array, shape (p,)
        Steps along the first and the second direction, in units of each.
    loss : array, shape (p, p)
        ``loss[i, j]`` is the mean loss at ``(x[j], y[i])``.
    accuracy : array, shape (p, p), or None
    """

    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray = field(repr=False)
    accuracy: np.ndarray | None = field(repr=False)


def line(
    objective: Objective,
    direction: Tensor,
    *,
    span: float = 1.0,
    points: int = 51,
    theta: Tensor | None = None,
    progress: bool = False,
) -> Line:
    """Evaluate loss and accuracy on a line through theta.

    Parameters
    ----------
    objective : Objective
    direction : Tensor, shape (n,)
    span : float
        The line runs from -span to +span, both included, in units of the direction.
    points : int
        Number of equally spaced points, at least 2. An odd number includes theta exactly.
    theta : Tensor, shape (n,), or None
        The centre; None is the objective's own theta.
    progress : bool

    Returns
    -------
    Line

    Raises
    ------
    ValueError
        If the direction is zero or of another model, or span or points is out of range.
    """
    theta = objective.theta if theta is None else objective.space.check(theta)
    direction = _check_direction(objective, direction, "direction")
    x = _steps(span, points)
    values = _scan(objective, (theta + a * direction for a in x.tolist()), points, progress)
    return Line(x, values[0], values[1])


def plane(
    objective: Objective,
    d1: Tensor,
    d2: Tensor,
    *,
    span: float = 1.0,
    points: int = 51,
    theta: Tensor | None = None,
    progress: bool = False,
) -> Plane:
    """Evaluate loss and accuracy on a square grid through theta.

    Each point is computed from theta afresh, never by repeated addition, and only one point
    at a time is held in memory.

    Parameters
    ----------
    objective : Objective
    d1, d2 : Tensor, shape (n,)
        Directions; they need not be orthogonal, but must not be parallel.
    span : float
        Both axes run from -span to +span, both included.
    points : int
        Points along each axis, at least 2. An odd number includes theta exactly.
    theta : Tensor, shape (n,), or None
        The centre; None is the objective's own theta.
    progress : bool

    Returns
    -------
    Plane

    Raises
    ------
    ValueError
        If a direction is zero or of another model, the two are parallel, or span or points is
        out of range.
    """
    theta = objective.theta if theta is None else objective.space.check(theta)
    d1 = _check_direction(objective, d1, "d1")
    d2 = _check_direction(objective, d2, "d2")
    a, b = d1.double(), d2.double()
    cosine = float((a / a.norm()) @ (b / b.norm()))
    if 1 - abs(cosine) < 1e-6:
        raise ValueError(f"d1 and d2 must not be parallel, got a cosine of {cosine:.6f}")
    steps = _steps(span, points)
    rows = steps.tolist()
    grid = ((theta + b * d2) + a * d1 for b in rows for a in rows)
    loss, accuracy = _scan(objective, grid, points * points, progress)
    shape = points, points
    accuracy = None if accuracy is None else accuracy.reshape(shape)
    return Plane(steps, steps.copy(), loss.reshape(shape), accuracy)


def _steps(span: float, points: int) -> np.ndarray:
    """Equally spaced steps whose ends are -span and +span and whose middle is 0, exactly."""
    if not (np.isfinite(span) and span > 0):
        raise ValueError(f"span must be positive and finite, got {span}")
    if not isinstance(points, int) or points < 2:
        raise ValueError(f"points must be a whole number of at least 2, got {points}")
    return span * (2 * np.arange(points) - (points - 1)) / (points - 1)


def _check_direction(objective: Objective, direction: Tensor, name: str) -> Tensor:
    direction = objective.space.check(direction, name)
    norm = float(direction.norm())
    if not (np.isfinite(norm) and norm > 0):
        raise ValueError(f"{name} must be finite and not zero, got a norm of {norm}")
    return direction


def _scan(
    objective: Objective, thetas: Iterator[Tensor], count: int, progress: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Loss and accuracy at each of `count` points, arrays of shape (count,)."""
    losses: list[Tensor] = []
    accuracies: list[Tensor] = []
    for theta in tqdm(thetas, total=count, desc="slice", unit="point", disable=not progress):
        loss, accuracy = objective.loss_and_accuracy(theta)
        losses.append(loss)
        if accuracy is not None:
            accuracies.append(accuracy)
    correct = torch.stack(accuracies).cpu().numpy() if accuracies else None
    return torch.stack(losses).cpu().numpy(), correct
