"""Paths between two networks, and how high the loss rises on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, Protocol, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from landscape_core.objective import Objective
from landscape_core.progress import progress_bar
from landscape_core.results import Estimate


class Path(Protocol):
    """A curve of parameters: ``path(t)`` of shape (n,) for t from 0 to 1."""

    def __call__(self, t: float) -> Tensor:
        """Parameters at t."""
        ...


class Segment:
    """The straight line from theta_a to theta_b; both ends are exact, bit for bit.

    Parameters
    ----------
    theta_a, theta_b : Tensor, shape (n,)

    Examples
    --------
    >>> Segment(torch.zeros(2), torch.ones(2))(0.25)
    tensor([0.2500, 0.2500])
    """

    def __init__(self, theta_a: Tensor, theta_b: Tensor) -> None:
        if not (isinstance(theta_a, Tensor) and isinstance(theta_b, Tensor)):
            kind = type(theta_b if isinstance(theta_a, Tensor) else theta_a).__name__
            raise TypeError(f"the ends must be vectors such as objective.theta, got {kind}")
        if theta_a.shape != theta_b.shape or theta_a.ndim != 1:
            raise ValueError(
                "the ends must be vectors of one length, "
                f"got {tuple(theta_a.shape)} and {tuple(theta_b.shape)}"
            )
        self.theta_a, self.theta_b = theta_a.detach(), theta_b.detach()

    def __call__(self, t: float) -> Tensor:
        """Parameters at t, shape (n,)."""
        if t in (0, 1):
            return (self.theta_b if t else self.theta_a).clone()
        return torch.lerp(self.theta_a, self.theta_b, t)


@dataclass(frozen=True)
class PathProfile:
    """Loss and accuracy along a path.

    Standard errors are over the examples: how far the same curve, drawn on another sample of
    as many examples, would typically lie (for the accuracy, see :meth:`Estimate.of_hits`).

    Attributes
    ----------
    t : array, shape (p,)
        From 0 to 1, both included.
    loss, loss_stderr : array, shape (p,)
    accuracy, accuracy_stderr : array, shape (p,), or None
        None where targets are not class labels.
    excess, excess_stderr : array, shape (p,)
        Loss above the straight line between the losses of the two ends,
        ``L(t) - (1-t) L(0) - t L(1)``. The error is that of the difference taken example by
        example, which is smaller than the errors of its parts suggest.
    rise, rise_stderr : array, shape (p,)
        Loss above the mean of the two ends, ``L(t) - (L(0) + L(1)) / 2``, with such an error.
    error_rise, error_rise_stderr : array, shape (p,), or None
        The same for the error rate, the fraction classified wrongly.
    examples : int
    """

    t: np.ndarray
    loss: np.ndarray = field(repr=False)
    loss_stderr: np.ndarray = field(repr=False)
    accuracy: np.ndarray | None = field(repr=False)
    accuracy_stderr: np.ndarray | None = field(repr=False)
    excess: np.ndarray = field(repr=False)
    excess_stderr: np.ndarray = field(repr=False)
    rise: np.ndarray = field(repr=False)
    rise_stderr: np.ndarray = field(repr=False)
    error_rise: np.ndarray | None = field(repr=False)
    error_rise_stderr: np.ndarray | None = field(repr=False)
    examples: int

    def table(self) -> pd.DataFrame:
        """One row per point of the path."""
        columns = {"loss": self.loss, "loss_stderr": self.loss_stderr}
        if self.accuracy is not None and self.accuracy_stderr is not None:
            columns |= {"accuracy": self.accuracy, "accuracy_stderr": self.accuracy_stderr}
        columns |= {"excess": self.excess, "excess_stderr": self.excess_stderr}
        return pd.DataFrame(columns, index=pd.Index(self.t, name="t"))


def path_profile(
    objective: Objective, path: Path, points: int = 61, *, progress: bool = False
) -> PathProfile:
    """Evaluate loss and accuracy along a path.

    Parameters
    ----------
    objective : Objective
        What is measured. With BatchNorm, ``batchnorm="refresh"`` estimates the statistics
        again at every point; the running statistics of one end fit no other network.
    path : callable
        ``path(t) -> Tensor`` of shape (n,), for t from 0 to 1.
    points : int
        Number of equally spaced points, both ends included; at least 2.
    progress : bool

    Returns
    -------
    PathProfile
    """
    if not isinstance(points, Integral) or points < 2:
        raise ValueError(f"points must be a whole number of at least 2, got {points}")
    if not callable(path):
        kind = type(path).__name__
        raise TypeError(f"path must be callable, such as Segment(theta_a, theta_b), got {kind}")
    (start, hit_start), (end, hit_end) = (objective.example_values(path(t)) for t in (0.0, 1.0))
    start, end = start.double(), end.double()
    steps = (np.arange(points) / (points - 1)).tolist()
    rows: list[dict[str, Estimate]] = []
    for t in progress_bar(steps, desc="path", unit="point", progress=progress):
        losses, hit = objective.example_values(path(t))
        losses = losses.double()
        # Written so that it is exactly zero at both ends, and everywhere on a constant path.
        excess = (1 - t) * (losses - start) + t * (losses - end)
        row = {"loss": losses, "excess": excess, "rise": losses - (start + end) / 2}
        if hit is not None and hit_start is not None and hit_end is not None:
            row |= {"accuracy": hit, "error_rise": (hit_start + hit_end) / 2 - hit}
        rows.append(
            {
                name: Estimate.of_hits(values) if name == "accuracy" else Estimate.of(values)
                for name, values in row.items()
            }
        )
    columns: dict[str, Any] = dict.fromkeys(
        ("accuracy", "accuracy_stderr", "error_rise", "error_rise_stderr")
    )
    for name in rows[0]:
        columns[name] = np.array([row[name].value for row in rows])
        columns[f"{name}_stderr"] = np.array([row[name].stderr for row in rows])
    return PathProfile(t=np.array(steps), examples=len(start), **columns)


Above = Literal["line", "mean"]


def barrier(profile: PathProfile, above: Above = "line", of: str = "loss") -> Estimate:
    r"""Height of the barrier on a path.

    .. math:: \max_t \; L(t) - \big[(1-t) L(0) + t L(1)\big] \quad\text{or}\quad
        \max_t \; L(t) - \tfrac12 \big[L(0) + L(1)\big]

    The first, above the line between the ends, is zero or more, and zero on a path that falls
    all the way; the second, above their mean, is at least half the difference of the ends, and
    is the instability of Frankle et al. where it is taken of the error rate. The error is that
    of the highest point, over the examples. Where the curve is rough on the scale of its
    errors, the choice of the highest of many points biases the height upwards, by up to two of
    these errors; on a coarse path a peak can hide between two points.

    Parameters
    ----------
    profile : PathProfile
    above : {"line", "mean"}
        What the height is measured from.
    of : {"loss", "error"}
        The loss, or the fraction classified wrongly (with ``above="mean"``).

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        If the loss is not finite somewhere on the path, or no point lies between the ends,
        where the height above their line is asked for.

    References
    ----------
    J. Frankle et al. 2020, arXiv:1912.05671; R. Entezari et al. 2021, arXiv:2110.06296.
    """
    heights, errors = _heights(profile, above, of)
    if not np.isfinite(profile.loss).all():
        t = profile.t[~np.isfinite(profile.loss)][0]
        raise ValueError(
            f"the loss must be finite along the path, got nan or inf at t = {t:.3g}"
        )
    if above == "line":  # 0 at the ends, without an error
        heights, errors = heights[1:-1], errors[1:-1]
        if heights.size == 0:
            raise ValueError(
                "a height above the line between the ends needs a point between them: profile "
                f"the path at 3 points or more, got {len(profile.t)}"
            )
    peak = int(np.argmax(heights))
    height = float(heights[peak])
    return Estimate(
        max(0.0, height) if above == "line" else height, float(errors[peak]), profile.examples
    )


def _heights(profile: PathProfile, above: Above, of: str) -> tuple[np.ndarray, np.ndarray]:
    if above not in get_args(Above):
        raise ValueError(f"above must be 'line' or 'mean', got {above!r}")
    if (above, of) == ("line", "loss"):
        return profile.excess, profile.excess_stderr
    if (above, of) == ("mean", "loss"):
        return profile.rise, profile.rise_stderr
    if of != "error":
        raise ValueError(f"of must be 'loss' or 'error', got {of!r}")
    if above == "line":
        raise ValueError(
            "the barrier of the error rate is measured above the mean: above='mean'"
        )
    if profile.error_rise is None or profile.error_rise_stderr is None:
        raise ValueError("the error rate needs class labels: integer targets, (N, C) outputs")
    return profile.error_rise, profile.error_rise_stderr
