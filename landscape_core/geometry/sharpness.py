"""How much the loss rises when the weights are disturbed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from landscape_core.curvature.probes import Seed, generator, probe
from landscape_core.objective import Objective
from landscape_core.results import Estimate


@dataclass(frozen=True)
class FlatnessProfile:
    """Rise of the loss at several distances from theta.

    Attributes
    ----------
    radii : array, shape (r,)
        Length of the perturbation, its l2 norm over all of theta.
    samples : array, shape (r, d, 2)
        Rise of the loss, ``L(theta + s * radius * u) - L(theta)``, along each of d random unit
        vectors u, for s = +1 and -1. The same vectors serve every radius.
    rounding : float
        Size of the rounding error of a loss. ``L(theta)`` is subtracted from every sample, so
        no number of directions averages its rounding out: rises that are not well above it
        need a model in float64.
    """

    radii: np.ndarray
    samples: np.ndarray = field(repr=False)
    rounding: float = 0.0

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
        return pd.DataFrame(columns, index=pd.Index(self.radii, name="radius"))


def flatness_profile(
    objective: Objective,
    radii: Sequence[float],
    *,
    directions: int = 16,
    theta: torch.Tensor | None = None,
    seed: Seed = 0,
    progress: bool = False,
) -> FlatnessProfile:
    r"""Measure the mean rise of the loss on spheres around theta.

    The perturbation is :math:`\rho u` with u uniform on the unit sphere in all n parameters.
    Where the loss is quadratic the mean rise is :math:`\rho^2\,\mathrm{Tr} H / (2n)`. The
    measure is raw: rescaling a ReLU network changes it though its function stays the same
    (Dinh et al. 2017, arXiv:1703.04933).

    Parameters
    ----------
    objective : Objective
    radii : sequence of float
        l2 norms of the perturbation, positive.
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
    centre = objective.theta if theta is None else objective.space.check(theta)
    rng = generator(seed, centre.device)
    base = float(objective.loss(centre))
    samples = np.empty((rho.size, directions, 2))
    for j in tqdm(range(directions), desc="flatness", unit="direction", disable=not progress):
        unit = probe(objective.n, centre.dtype, rng, "gaussian")
        unit /= unit.norm()
        for i, radius in enumerate(rho):
            for s, sign in enumerate((1, -1)):
                moved = centre + float(sign * radius) * unit
                samples[i, j, s] = float(objective.loss(moved)) - base
    rounding = 10 * torch.finfo(centre.dtype).eps * abs(base)
    return FlatnessProfile(rho, samples, rounding)
