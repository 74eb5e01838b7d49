"""How much the loss rises when the weights are disturbed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from landscape_core.curvature.eigen import top_eigenpairs
from landscape_core.curvature.hessian import Hessian
from landscape_core.curvature.probes import Seed, generator, probe
from landscape_core.geometry.balls import Ball, Norm, Scaling, adaptive_scale
from landscape_core.objective import Objective
from landscape_core.progress import progress_bar
from landscape_core.results import Eigenpairs, Estimate


@dataclass(frozen=True)
class FlatnessProfile:
    """Rise of the loss at several distances from theta.

    Attributes
    ----------
    radii : array, shape (r,)
        Size of the perturbation; :attr:`unit` says of what.
    samples : array, shape (r, d, 2)
        Rise of the loss, ``L(theta + s * radius * T u) - L(theta)``, along each of d random
        vectors u, for s = +1 and -1. The same vectors serve every radius.
    rounding : float
        Size of the rounding error of a loss. ``L(theta)`` is subtracted from every sample, so
        no number of directions averages its rounding out: rises that are not well above it
        need a model in float64.
    norm, adaptive : str
        What the radii mean, as for :class:`Ball`.
    """

    radii: np.ndarray
    samples: np.ndarray = field(repr=False)
    rounding: float = 0.0
    norm: Norm = "l2"
    adaptive: Scaling = "none"

    @property
    def unit(self) -> str:
        """What the radii measure, in words."""
        return Ball(1.0, self.norm, self.adaptive).unit

    @property
    def rises(self) -> list[Estimate]:
        """Mean rise at each radius, with its standard error over directions.

        The two signs of a direction are averaged first: the slope of the loss cancels exactly,
        and the error is that of the curvature and of rounding alone.
        """
        rises = [Estimate.of(row.mean(axis=1)) for row in self.samples]
        return [replace(r, stderr=math.hypot(r.stderr, self.rounding)) for r in rises]

    def table(self) -> pd.DataFrame:
        """One row per radius: mean rise, its standard error, the largest rise seen."""
        rises = self.rises
        columns = {
            "rise": [rise.value for rise in rises],
            "stderr": [rise.stderr for rise in rises],
            "largest": self.samples.max(axis=(1, 2)),
        }
        return pd.DataFrame(columns, index=pd.Index(self.radii, name=f"radius ({self.unit})"))


def flatness_profile(
    objective: Objective,
    radii: Sequence[float],
    *,
    norm: Norm = "l2",
    adaptive: Scaling = "none",
    directions: int = 16,
    theta: torch.Tensor | None = None,
    seed: Seed = 0,
    progress: bool = False,
) -> FlatnessProfile:
    r"""Measure the mean rise of the loss at random points around theta, at several distances.

    The perturbation is :math:`\rho\, T u`, with u uniform on the unit sphere in all n
    parameters (``norm="l2"``) or standard normal (``"sigma"``). Where the loss is quadratic the
    mean rise is :math:`\rho^2\,\mathrm{Tr}(THT) / 2`, divided by n on the sphere. With
    ``adaptive="none"``, T = 1, the measure is raw: rescaling a ReLU network changes it though
    its function stays the same (Dinh et al. 2017, arXiv:1703.04933).

    Parameters
    ----------
    objective : Objective
    radii : sequence of float
        Sizes of the perturbation, positive.
    norm : {"l2", "sigma"}
        What they measure: the l2 norm over all of theta, or the standard deviation of each
        entry. The second is about sqrt(n) times as large a perturbation.
    adaptive : {"none", "element", "filter"}
        What they are relative to; see :class:`Ball`.
    directions : int
        Number of random unit vectors, at least 2; each is followed both ways.
    theta : Tensor, shape (n,), or None
        The centre; None is the objective's own theta.
    seed : int or torch.Generator
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    FlatnessProfile

    Raises
    ------
    ValueError
        If a radius is not positive and finite, there is none, or directions < 2.
    """
    rho = np.asarray(radii, dtype=float)
    if rho.ndim != 1 or rho.size == 0:
        raise ValueError(f"radii must be a list of at least one number, got {radii!r}")
    if not (np.isfinite(rho) & (rho > 0)).all():
        bad = rho[~(np.isfinite(rho) & (rho > 0))][0]
        raise ValueError(f"radius must be positive and finite, got {bad}")
    if directions < 2:
        raise ValueError(f"directions must be at least 2, got {directions}")
    if norm == "linf":
        raise ValueError("random perturbations need norm='l2' or 'sigma', got 'linf'")
    Ball(float(rho[0]), norm, adaptive)
    centre = objective.theta if theta is None else objective.space.check(theta)
    rng = generator(seed, centre.device)
    base = float(objective.loss(centre))
    scale = adaptive_scale(objective, centre, adaptive)
    samples = np.empty((rho.size, directions, 2))
    for j in progress_bar(
        range(directions), desc="flatness", unit="direction", progress=progress
    ):
        unit = probe(objective.n, centre.dtype, rng, "gaussian")
        unit = scale * (unit / unit.norm() if norm == "l2" else unit)
        for i, radius in enumerate(rho):
            for s, sign in enumerate((1, -1)):
                moved = centre + float(sign * radius) * unit
                samples[i, j, s] = float(objective.loss(moved)) - base
    rounding = 10 * torch.finfo(centre.dtype).eps * abs(base)
    return FlatnessProfile(rho, samples, rounding, norm, adaptive)


@dataclass(frozen=True)
class RandomSharpness:
    """Rise of the loss at random points at one distance from theta.

    Attributes
    ----------
    mean : Estimate
        Over directions, both ways of each averaged first.
    largest : float
        The highest of all; it grows with their number, and is far below the worst case.
    ball : Ball
    """

    mean: Estimate
    largest: float
    ball: Ball

    def __str__(self) -> str:
        return f"{self.mean} (largest {self.largest:.3g}) at {self.ball}"


def random_sharpness(
    objective: Objective,
    radius: float = 0.05,
    *,
    norm: Norm = "l2",
    adaptive: Scaling = "none",
    directions: int = 64,
    theta: torch.Tensor | None = None,
    seed: Seed = 0,
    progress: bool = False,
) -> RandomSharpness:
    """Measure how much the loss rises at random points at one distance from theta.

    :func:`flatness_profile` at one radius, with the same parameters.

    Examples
    --------
    >>> import torch.nn.functional as F
    >>> x, y = torch.randn(50, 3), torch.randn(50, 1)
    >>> objective = Objective(torch.nn.Linear(3, 1, bias=False), F.mse_loss, (x, y))
    >>> random_sharpness(objective, 0.1).ball.unit
    'l2 norm over all weights'
    """
    ball = Ball(radius, norm, adaptive)
    profile = flatness_profile(
        objective, [radius], norm=norm, adaptive=adaptive, directions=directions,
        theta=theta, seed=seed, progress=progress,
    )  # fmt: skip
    return RandomSharpness(profile.rises[0], float(profile.samples.max()), ball)


@dataclass(frozen=True)
class NoiseRobustness:
    """Loss and accuracy under random noise in the weights.

    Attributes
    ----------
    sigmas : array, shape (s,)
        Standard deviation of the noise of each weight, relative to its size or its filter's.
    losses, accuracies : array, shape (s, d)
        For each of d draws; accuracies are None where targets are not class labels.
    adaptive : {"element", "filter"}
    """

    sigmas: np.ndarray
    losses: np.ndarray = field(repr=False)
    accuracies: np.ndarray | None = field(repr=False)
    adaptive: Scaling

    @property
    def loss(self) -> list[Estimate]:
        """Mean loss at each sigma, with its standard error over draws."""
        return [Estimate.of(row) for row in self.losses]

    @property
    def accuracy(self) -> list[Estimate] | None:
        """Mean accuracy at each sigma, with its standard error over draws."""
        if self.accuracies is None:
            return None
        return [Estimate.of(row) for row in self.accuracies]

    def table(self) -> pd.DataFrame:
        """One row per sigma."""
        columns = {
            "loss": [x.value for x in self.loss],
            "loss_stderr": [x.stderr for x in self.loss],
        }
        if self.accuracy is not None:
            columns["accuracy"] = [x.value for x in self.accuracy]
            columns["accuracy_stderr"] = [x.stderr for x in self.accuracy]
        unit = Ball(1.0, "sigma", self.adaptive).unit
        return pd.DataFrame(columns, index=pd.Index(self.sigmas, name=f"sigma ({unit})"))


def noise_robustness(
    objective: Objective,
    sigmas: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    *,
    adaptive: Scaling = "element",
    draws: int = 16,
    theta: torch.Tensor | None = None,
    seed: Seed = 0,
    progress: bool = False,
) -> NoiseRobustness:
    r"""Measure loss and accuracy at :math:`\theta + \sigma T z`, z standard normal.

    With ``adaptive="element"`` the noise multiplies, :math:`\theta_i (1 + \sigma z_i)`, and
    rescaling the layers of a ReLU network changes nothing.

    Parameters
    ----------
    objective : Objective
    sigmas : sequence of float
        Positive.
    adaptive : {"none", "element", "filter"}
    draws : int
        At least 2; the same vectors z serve every sigma.
    theta : Tensor, shape (n,), or None
    seed : int or torch.Generator
    progress : bool
    """
    levels = [Ball(float(sigma), "sigma", adaptive).radius for sigma in sigmas]
    if not levels:
        raise ValueError("sigmas must hold at least one number, got none")
    if draws < 2:
        raise ValueError(f"draws must be at least 2, got {draws}")
    centre = objective.theta if theta is None else objective.space.check(theta)
    rng, scale = generator(seed, centre.device), adaptive_scale(objective, centre, adaptive)
    losses, accuracies = np.empty((len(levels), draws)), np.empty((len(levels), draws))
    labelled = True
    for j in progress_bar(range(draws), desc="weight noise", unit="draw", progress=progress):
        noise = scale * probe(objective.n, centre.dtype, rng, "gaussian")
        for i, sigma in enumerate(levels):
            loss, accuracy = objective.loss_and_accuracy(centre + sigma * noise)
            losses[i, j] = float(loss)
            labelled = labelled and accuracy is not None
            accuracies[i, j] = math.nan if accuracy is None else float(accuracy)
    return NoiseRobustness(np.array(levels), losses, accuracies if labelled else None, adaptive)


def relative_curvature(
    objective: Objective,
    k: int = 1,
    *,
    adaptive: Scaling = "element",
    theta: torch.Tensor | None = None,
    tol: float = 1e-3,
    seed: Seed = 0,
) -> Eigenpairs:
    r"""Largest eigenvalues of :math:`T H T`, the curvature under relative changes of weights.

    With ``T = diag(|theta|)`` it does not change when layers of a ReLU network are rescaled
    without changing its function: then :math:`\theta' = S\theta`,
    :math:`H' = S^{-1} H S^{-1}` and :math:`T' = S T`. The worst rise at a small adaptive radius
    is :math:`\rho^2 / 2` times the largest.

    Parameters
    ----------
    objective : Objective
    k : int
    adaptive : {"element", "filter", "none"}
    theta : Tensor, shape (n,), or None
    tol, seed
        As for :func:`top_eigenpairs`.
    """
    centre = objective.theta if theta is None else objective.space.check(theta)
    scale = adaptive_scale(objective, centre, Ball(1.0, "l2", adaptive).adaptive)
    return top_eigenpairs(Hessian(objective, centre).scaled(scale), k, "LA", tol=tol, seed=seed)
