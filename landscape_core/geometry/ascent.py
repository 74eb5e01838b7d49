"""Sharpness in the worst direction: how high the loss rises somewhere in a ball."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from landscape_core.backends import full_precision
from landscape_core.batches import Batch
from landscape_core.batchnorm import norms
from landscape_core.curvature.probes import Seed, generator, probe
from landscape_core.geometry.balls import Ball, Norm, Scaling
from landscape_core.objective import Objective
from landscape_core.progress import progress_bar
from landscape_core.results import Estimate

Slope = Callable[[Tensor], tuple[float, Tensor]]  # theta to loss and gradient
Loss = Callable[[Tensor], float]


@dataclass(frozen=True)
class WorstSharpness:
    r"""The highest rise of the loss that was found in a ball around theta.

    A lower bound of the maximum: ascent can miss the highest point, never overshoot it.

    Attributes
    ----------
    rise : float
        ``L(theta + delta) - L(theta)`` at the highest point found.
    one_step : float
        The same after a single step along the gradient, as it is commonly reported.
    ball : Ball
    starts : array, shape (r,)
        What each start of the ascent reached; the first starts along the gradient, the others
        at random. Where they disagree, more may be found with more steps or starts.
    delta : Tensor, shape (n,)
        The perturbation at the highest point.
    gradients : int
        Gradients spent, each over all examples.
    rounding : float
        Size of the rounding error of a loss; a rise that is not well above it means nothing.
    """

    rise: float
    one_step: float
    ball: Ball
    starts: np.ndarray = field(repr=False)
    delta: Tensor = field(repr=False)
    gradients: int
    rounding: float

    def __str__(self) -> str:
        return f"{self.rise:.4g} at {self.ball}"


def worst_sharpness(
    objective: Objective,
    radius: float = 0.05,
    *,
    norm: Norm = "l2",
    adaptive: Scaling = "none",
    steps: int = 20,
    restarts: int = 1,
    theta: Tensor | None = None,
    seed: Seed = 0,
    progress: bool = False,
) -> WorstSharpness:
    r"""Search the highest loss in a ball around theta, by repeated ascent on its surface.

    .. math:: \max_{\|T^{-1} \delta\| \le \rho} L(\theta + \delta) - L(\theta)

    Each step goes to the point of the surface where the gradient taken at the last one points,
    :math:`\rho\, T^2 g / \|T g\|_2` or :math:`\rho\, T\, \mathrm{sign}(g)`: the power method of
    convex maximization (Journee et al. 2010, arXiv:0811.4724). Where the loss does not rise, it
    goes half as far. The first step is that of SAM and ASAM. On a quadratic without slope the
    l2 maximum is :math:`\rho^2 \lambda_{\max} / 2`. Only theta and the surface are searched: a
    peak inside the ball is not found, and the rise is never below 0. Under
    ``batchnorm="refresh"`` the search goes by the loss at the statistics of theta, and the
    rises are those of L itself, its statistics estimated again, at the points that were found.

    Parameters
    ----------
    objective : Objective
    radius : float
    norm : {"l2", "linf"}
    adaptive : {"none", "element", "filter"}
        What the radius is relative to; see :class:`Ball`.
    steps : int
        Points that each ascent evaluates, at least 1. The first is its start: with 1, the start
        along the gradient is the step of SAM, and every other one a random point.
    restarts : int
        Further starts, at random points of the ball's surface. One at which the loss is nan
        stays where it is.
    theta : Tensor, shape (n,), or None
    seed : int or torch.Generator
    progress : bool

    Returns
    -------
    WorstSharpness

    References
    ----------
    P. Foret et al., Sharpness-aware minimization, 2021, arXiv:2010.01412. J. Kwon et al., ASAM,
    2021, arXiv:2102.11600.

    Examples
    --------
    >>> import torch.nn.functional as F
    >>> x, y = torch.randn(50, 3), torch.randn(50, 1)
    >>> objective = Objective(torch.nn.Linear(3, 1, bias=False), F.mse_loss, (x, y))
    >>> found = worst_sharpness(objective, 0.1)
    >>> found.rise >= found.one_step
    True
    """
    ball = Ball(radius, norm, adaptive)
    centre = _check(objective, ball, steps, restarts, theta)
    statistics = objective.statistics(centre)
    slope = _slope(objective, statistics, objective.batches)
    rng = generator(seed, centre.device)
    scale = ball.scale(objective, centre)
    with progress_bar(total=(1 + restarts) * steps, desc="ascent", progress=progress) as bar:
        return _search(
            slope, centre, ball, scale, steps, restarts, rng, bar.update, _refreshed(objective)
        )


def m_sharpness(
    objective: Objective,
    radius: float = 0.05,
    m: int = 128,
    *,
    norm: Norm = "l2",
    adaptive: Scaling = "none",
    steps: int = 1,
    groups: int | None = None,
    theta: Tensor | None = None,
    seed: Seed = 0,
    progress: bool = False,
) -> Estimate:
    r"""Mean worst-case rise over groups of m examples, each with a worst direction of its own.

    .. math:: \frac{1}{K} \sum_{k=1}^{K} \max_{\|T^{-1} \delta\| \le \rho}
        L_{S_k}(\theta + \delta) - L_{S_k}(\theta)

    The examples are shuffled and cut into groups; the last ones that fill no group are left
    out. The smaller m, the larger it is: at a minimum of the mean loss, single groups still
    have slopes. Under ``batchnorm="refresh"`` all losses are at the statistics of theta.

    Parameters
    ----------
    objective : Objective
    radius : float
    m : int
        Examples in a group; at most all of them.
    norm, adaptive : str
        As for :func:`worst_sharpness`.
    steps : int
        Points that each ascent evaluates; 1 is the step of SAM.
    groups : int or None
        How many groups to look at; None is all of them.
    theta : Tensor, shape (n,), or None
    seed : int or torch.Generator
        Shuffles the examples.
    progress : bool

    Returns
    -------
    Estimate
        Its error is over the groups.

    References
    ----------
    P. Foret et al. 2021, arXiv:2010.01412, section 4.1.
    """
    ball = Ball(radius, norm, adaptive)
    centre = _check(objective, ball, steps, 0, theta)
    count = objective.examples
    if not isinstance(m, Integral) or not 1 <= m <= count:
        raise ValueError(
            f"m must be a whole number from 1 to {count} (all examples), got {m!r}"
        )
    rng = generator(seed, torch.device("cpu"))
    shuffled = torch.randperm(count, generator=rng, device=rng.device)
    order = shuffled[: count - count % m].split(int(m))
    if groups is not None:
        if not isinstance(groups, Integral) or groups < 1:
            raise ValueError(f"groups must be a whole number >= 1, got {groups!r}")
        order = order[:groups]
    statistics = objective.statistics(centre)
    scale = ball.scale(objective, centre)
    rises = []
    for rows in progress_bar(order, desc="m-sharpness", unit="group", progress=progress):
        group = objective.sample(rows)
        slope = _slope(objective, statistics, partial(list, [group]))
        start = generator(0, centre.device)
        rises.append(_search(slope, centre, ball, scale, steps, 0, start).rise)
    return Estimate.of(rises)


def box_sharpness(
    objective: Objective,
    epsilon: float = 1e-3,
    *,
    steps: int = 20,
    restarts: int = 1,
    theta: Tensor | None = None,
    seed: Seed = 0,
    progress: bool = False,
) -> float:
    r"""Keskar's sharpness: the highest rise in a box around theta, in per cent of 1 + L.

    .. math:: 100\; \frac{\max_{|\delta_i| \le \epsilon (|\theta_i| + 1)}
        L(\theta + \delta) - L(\theta)}{1 + L(\theta)}

    The box is neither raw nor relative: rescaling layers changes the measure. Under
    ``batchnorm="refresh"`` the rise is that of L itself, as for :func:`worst_sharpness`.

    Parameters
    ----------
    objective : Objective
    epsilon : float
        Half the width of the box, where a weight is small.
    steps, restarts, theta, seed, progress
        As for :func:`worst_sharpness`.

    References
    ----------
    N. S. Keskar et al., On large-batch training for deep learning, 2017, arXiv:1609.04836.
    """
    ball = Ball(epsilon, "linf")
    centre = _check(objective, ball, steps, restarts, theta)
    slope = _slope(objective, objective.statistics(centre), objective.batches)
    rng = generator(seed, centre.device)
    with progress_bar(total=(1 + restarts) * steps, desc="ascent", progress=progress) as bar:
        found = _search(
            slope, centre, ball, centre.abs() + 1, steps, restarts, rng, bar.update,
            _refreshed(objective),
        )  # fmt: skip
    return 100 * found.rise / (1 + float(objective.loss(centre)))


def _check(
    objective: Objective, ball: Ball, steps: int, restarts: int, theta: Tensor | None
) -> Tensor:
    if ball.norm == "sigma":
        raise ValueError(
            "the worst case needs a bounded ball: norm='l2' or 'linf', got 'sigma'"
        )
    for name, value, least in (("steps", steps, 1), ("restarts", restarts, 0)):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    return objective.theta if theta is None else objective.space.check(theta)


def _slope(
    objective: Objective,
    statistics: dict[str, Tensor],
    batches: Callable[[], Iterable[Batch]],
) -> Slope:
    """Return the function theta -> loss and gradient over `batches`, from one pass."""

    def slope(theta: Tensor) -> tuple[float, Tensor]:
        gradient, loss, count = torch.zeros_like(theta), 0.0, 0
        leaf = theta.detach().requires_grad_()
        for batch in batches():
            with torch.enable_grad(), full_precision(theta.device):
                of_batch = objective.batch_loss(leaf, batch, statistics)
                gradient += torch.autograd.grad(of_batch, leaf)[0] * len(batch[1])
            loss += float(of_batch.detach()) * len(batch[1])
            count += len(batch[1])
        return loss / count, gradient / count

    return slope


def _refreshed(objective: Objective) -> Loss | None:
    """L itself, where it is another function than the one at fixed statistics."""
    if objective.batchnorm != "refresh" or not norms(objective.model):
        return None
    return lambda theta: float(objective.loss(theta))


def _search(
    slope: Slope,
    centre: Tensor,
    ball: Ball,
    scale: Tensor,
    steps: int,
    restarts: int,
    rng: torch.Generator,
    done: Callable[[], object] = lambda: None,
    loss_of: Loss | None = None,
) -> WorstSharpness:
    """Climb from the gradient, and from `restarts` random points, for `steps` steps each.

    `loss_of` is the loss whose rises are reported, where it is not that of `slope`.
    """
    base, uphill = slope(centre)
    if not math.isfinite(base):
        raise ValueError(f"the loss at theta must be finite, got {base}")
    tops: list[tuple[float, Tensor]] = []
    one_step, first = -math.inf, centre
    for start in range(1 + restarts):
        noise = probe(len(centre), centre.dtype, rng, "gaussian")
        point = _onto_surface(ball, scale * uphill if start == 0 else noise, noise)
        highest, best, target, part = -math.inf, point, point, 1.0
        for step in range(steps):
            loss, gradient = slope(centre + scale * point)
            done()
            if start == 0 and step == 0:
                one_step, first = loss - base, point
            if loss > highest:
                highest, best = loss, point
                target, part = _onto_surface(ball, scale * gradient, noise), min(1, 2 * part)
            else:
                part /= 2
            point = (1 - part) * best + part * target
            if ball.norm == "l2":
                point = _onto_surface(ball, point, noise)
        tops.append((highest - base, best))
    if loss_of is not None:
        base = loss_of(centre)
        one_step = loss_of(centre + scale * first) - base
        tops = [(loss_of(centre + scale * point) - base, point) for _, point in tops]
        tops[0] = max(tops[0], (one_step, first), key=_height)
    rise, best = max(tops, key=_height)
    if not math.isfinite(rise):
        raise ValueError(f"the loss must stay finite at {ball}: choose a smaller radius")
    if rise < 0:  # theta itself is in the ball
        rise, best = 0.0, torch.zeros_like(centre)
    rounding = 10 * torch.finfo(centre.dtype).eps * abs(base)
    reached = np.array([top for top, _ in tops])
    spent = int(1 + (1 + restarts) * steps)
    return WorstSharpness(rise, one_step, ball, reached, scale * best, spent, rounding)


def _height(top: tuple[float, Tensor]) -> float:
    """Rise at a point, below all others where it is nan."""
    return -math.inf if math.isnan(top[0]) else top[0]


def _onto_surface(ball: Ball, direction: Tensor, otherwise: Tensor) -> Tensor:
    """Return the point of the ball's surface that lies furthest along a direction."""
    length = direction.norm()
    if not bool(length > 0):
        direction, length = otherwise, otherwise.norm()
    if ball.norm == "linf":
        return ball.radius * direction.sign()
    return direction * (ball.radius / length)
