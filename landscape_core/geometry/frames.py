"""Planes through known points of parameter space: three networks, or a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """A plane with orthonormal directions, and where some points lie over it.

    Attributes
    ----------
    centre : Tensor, shape (n,)
    d1, d2 : Tensor, shape (n,)
        Of length 1 and orthogonal: steps along them are l2 distances.
    coordinates : Tensor, shape (m, 2)
        Of the points, seen from the centre along d1 and d2.
    residuals : Tensor, shape (m,)
        l2 distance of each point to the plane. The loss drawn under a point that is far from
        the plane is not the loss at that point.
    explained : Tensor, shape (2,)
        Share of the variance of the points along d1 and d2, the centre taken as their origin.
    """

    centre: Tensor = field(repr=False)
    d1: Tensor = field(repr=False)
    d2: Tensor = field(repr=False)
    coordinates: Tensor
    residuals: Tensor
    explained: Tensor

    def project(self, thetas: Tensor) -> Tensor:
        """Where points lie over the plane: shape (m, n) or (n,) to (m, 2) or (2,)."""
        steps = (thetas - self.centre).double()
        directions = torch.stack([self.d1, self.d2], dim=1).double()
        return (steps @ directions).to(thetas.dtype)


def frame_through(theta_a: Tensor, theta_b: Tensor, theta_c: Tensor) -> Frame:
    """The plane through three networks; a is the centre, and b lies on the first axis.

    Parameters
    ----------
    theta_a, theta_b, theta_c : Tensor, shape (n,)

    Raises
    ------
    ValueError
        If they have different lengths, or lie on one line up to their rounding.

    Examples
    --------
    >>> a, b, c = torch.tensor([[0.0, 0, 0], [2, 0, 0], [1, 0, 3]])
    >>> frame_through(a, b, c).coordinates
    tensor([[0., 0.],
            [2., 0.],
            [1., 3.]])
    """
    thetas = _check([theta_a, theta_b, theta_c])
    along, across = (thetas[1:] - thetas[0]).double()
    first = along / along.norm()
    share = float((across @ first).abs() / along.norm())  # of b's rounding that c inherits
    across = across - (across @ first) * first
    if not float(across.norm()) > (1 + share) * _rounding(thetas):
        raise ValueError("three points make a plane only if they do not lie on one line")
    return _frame(thetas, thetas[0], torch.stack([first, across / across.norm()]))


def frame_of_trajectory(
    thetas: Sequence[Tensor] | Tensor, centre: Tensor | None = None
) -> Frame:
    """The plane that comes closest to the points of a training run, seen from its end.

    The first two principal directions of ``theta_t - centre``, as in Li et al. 2018
    (arXiv:1712.09913). Two directions explain much of the variance of any long random walk too
    (Antognini and Sohl-Dickstein 2018, arXiv:1806.08805): look at the residuals.

    Parameters
    ----------
    thetas : sequence of Tensor, shape (m, n)
        At least three points.
    centre : Tensor, shape (n,), or None
        None is the last point.

    Raises
    ------
    ValueError
        If there are fewer than three points, they have different lengths, or they lie on one
        line with the centre up to their rounding.
    """
    points = _check(list(thetas))
    origin = points[-1] if centre is None else _check_centre(centre, points)
    steps = (points - origin).double()
    # The small matrix of inner products has the same singular values as the large one.
    values, vectors = torch.linalg.eigh(steps @ steps.T)
    rounding = max(_rounding(points), _rounding(origin[None]))
    if not float(values[-2]) > max(1e-12 * float(values[-1]), len(points) * rounding**2):
        raise ValueError("the points lie on one line: their plane is not determined")
    directions = vectors[:, [-1, -2]].T @ steps
    directions = directions / directions.norm(dim=1, keepdim=True)
    return _frame(points, origin, directions)


def _check(thetas: list[Tensor]) -> Tensor:
    if len(thetas) < 3:
        raise ValueError(f"a plane needs at least three points, got {len(thetas)}")
    shapes = {tuple(theta.shape) for theta in thetas}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"points must be vectors of one length, got shapes {sorted(shapes)}")
    points = torch.stack([theta.detach() for theta in thetas])
    if not bool(points.isfinite().all()):
        raise ValueError("points must be finite, got nan or inf")
    return points


def _check_centre(centre: Tensor, points: Tensor) -> Tensor:
    shape = tuple(points.shape[1:])
    if not isinstance(centre, Tensor) or tuple(centre.shape) != shape:
        got = tuple(centre.shape) if isinstance(centre, Tensor) else type(centre).__name__
        raise ValueError(
            f"centre must be a vector like the points, of shape {shape}, got {got}"
        )
    if not bool(centre.isfinite().all()):
        raise ValueError("centre must be finite, got nan or inf")
    return centre.detach()


def _rounding(points: Tensor) -> float:
    """Distance from a line at which points on it can lie because their entries are rounded."""
    return 10 * torch.finfo(points.dtype).eps * float(points.double().norm(dim=1).max())


def _frame(points: Tensor, centre: Tensor, directions: Tensor) -> Frame:
    steps = (points - centre).double()
    coordinates = steps @ directions.T
    residuals = (steps - coordinates @ directions).norm(dim=1)
    explained = coordinates.square().sum(0) / steps.square().sum()
    d1, d2 = directions.to(points.dtype)
    return Frame(
        centre, d1, d2, coordinates.to(points.dtype), residuals.to(points.dtype), explained
    )
