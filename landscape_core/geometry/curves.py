"""Curves of parameters that bend: Bezier curves and polygons."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral

import torch
from torch import Tensor

from landscape_core.geometry.paths import Path, Segment


class Curve(ABC):
    """A curve between two ends, ``path(t)`` a weighted sum of control points.

    Attributes
    ----------
    points : Tensor, shape (bends + 2, n)
        The control points, ends included.
    history : list of CurveEpoch
        How it was fitted; empty before.
    """

    def __init__(
        self, theta_a: Tensor, theta_b: Tensor, bends: int | Sequence[Tensor] = 1
    ) -> None:
        line = Segment(theta_a, theta_b)
        if isinstance(bends, int | Integral):
            count = int(bends)
            if count < 1:
                raise ValueError(f"bends must be at least 1, got {bends}")
            between = [line((i + 1) / (count + 1)) for i in range(count)]
        else:
            between = [Segment(theta_a, bend).theta_b for bend in bends]
            if not between:
                raise ValueError("bends must hold at least one vector, got none")
        self.points = torch.stack([line.theta_a, *between, line.theta_b])
        self.history: list[CurveEpoch] = []

    @abstractmethod
    def weights(self, t: float) -> list[float]:
        """What each control point counts at t; they sum to one."""

    def __call__(self, t: float) -> Tensor:
        """Parameters at t, shape (n,); both ends are exact, bit for bit."""
        total, *rest = ((w, p) for w, p in zip(self.weights(t), self.points, strict=True) if w)
        theta = total[1] * total[0]
        for weight, point in rest:
            theta.add_(point, alpha=weight)
        return theta

    @property
    def bends(self) -> Tensor:
        """The control points between the ends, shape (bends, n)."""
        return self.points[1:-1]

    def with_bends(self, bends: Tensor, history: list[CurveEpoch]) -> Curve:
        """Return the same kind of curve between the same ends with other bends."""
        curve = type(self)(self.points[0], self.points[-1], list(bends))
        curve.history = history
        return curve


@dataclass(frozen=True)
class CurveEpoch:
    """One epoch of fitting a curve.

    Attributes
    ----------
    epoch : int
        From 1.
    loss : float
        Mean loss over the batches of the epoch, each at a random point of the curve.
    validation : float
        Highest mean loss of the validation objective along the curve; ``nan`` without one.
    """

    epoch: int
    loss: float
    validation: float = field(default=math.nan)


class Bezier(Curve):
    r"""A Bezier curve, :math:`\sum_i \binom{k}{i} (1-t)^{k-i} t^i P_i`; quadratic for one bend.

    Parameters
    ----------
    theta_a, theta_b : Tensor, shape (n,)
        The ends.
    bends : int or sequence of Tensor, shape (n,)
        Control points between the ends, or how many; then they start on the segment.

    References
    ----------
    T. Garipov et al., Loss surfaces, mode connectivity, and fast ensembling, 2018,
    arXiv:1802.10026.

    Examples
    --------
    >>> curve = Bezier(torch.zeros(1), torch.zeros(1), [torch.ones(1)])
    >>> curve(0.5)
    tensor([0.5000])
    """

    def weights(self, t: float) -> list[float]:
        """Bernstein polynomials."""
        k = len(self.points) - 1
        return [math.comb(k, i) * (1 - t) ** (k - i) * t**i for i in range(k + 1)]


class Polygon(Curve):
    """A chain of straight pieces, each taking the same share of t.

    Parameters
    ----------
    theta_a, theta_b : Tensor, shape (n,)
        The ends.
    bends : int or sequence of Tensor, shape (n,)
        Corners between the ends, or how many; then they start on the segment.

    Examples
    --------
    >>> Polygon(torch.zeros(1), torch.zeros(1), [torch.ones(1)])(0.25)
    tensor([0.5000])
    """

    def weights(self, t: float) -> list[float]:
        """Two neighbours share the weight."""
        pieces = len(self.points) - 1
        piece = min(int(t * pieces), pieces - 1)
        along = t * pieces - piece
        weights = [0.0] * (pieces + 1)
        weights[piece], weights[piece + 1] = 1 - along, along
        return weights


def path_length(path: Path, points: int = 201) -> float:
    """Length of a path, as that of a chain through equally spaced points.

    Exact for a segment and, where corners fall on points, for a polygon; for other curves a
    lower bound that converges with the square of the number of points.

    Parameters
    ----------
    path : callable
    points : int
        At least 2.

    Examples
    --------
    >>> round(path_length(Segment(torch.zeros(2), torch.tensor([3.0, 4.0]))), 6)
    5.0
    """
    if not isinstance(points, Integral) or points < 2:
        raise ValueError(f"points must be a whole number of at least 2, got {points}")
    length, last = 0.0, path(0.0).double()
    for i in range(1, points):
        here = path(i / (points - 1)).double()
        length += float((here - last).norm())
        last = here
    return length
