"""Barriers between many networks at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from landscape_core.geometry.alignment import Method, align, check_constants, check_shapes
from landscape_core.geometry.paths import Above, Segment, barrier, path_profile
from landscape_core.objective import Objective
from landscape_core.progress import progress_bar


@dataclass(frozen=True)
class BarrierMatrix:
    """Barriers on the straight lines between every two of several networks.

    Attributes
    ----------
    heights, errors : array, shape (m, m)
        Height of the barrier and its standard error over the examples; symmetric, 0 on the
        diagonal.
    matched : str or None
        How the second network of each pair was permuted to match the first.
    """

    heights: np.ndarray
    errors: np.ndarray = field(repr=False)
    matched: str | None

    def table(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """The heights, one row and one column to a network."""
        labels = list(names) if names is not None else list(range(len(self.heights)))
        return pd.DataFrame(self.heights, index=labels, columns=labels)

    @property
    def pairs(self) -> np.ndarray:
        """The heights of all pairs, shape (m (m - 1) / 2,)."""
        return self.heights[np.triu_indices(len(self.heights), 1)]


def barrier_matrix(
    objectives: Sequence[Objective],
    *,
    points: int = 11,
    match: Method | None = None,
    above: Above = "line",
    of: str = "loss",
    progress: bool = False,
) -> BarrierMatrix:
    """Measure the barriers between every two networks, each at its objective's theta.

    Parameters
    ----------
    objectives : sequence of Objective
        Of networks of one architecture on the same data, at least two. What theta does not
        hold, frozen parameters and buffers, must be the same in all of them, BatchNorm's
        statistics aside. With BatchNorm use ``batchnorm="refresh"``: the statistics of one
        network do not fit another.
    points : int
        Points of each line, as for :func:`path_profile`.
    match : {"weights", "activations"} or None
        Permute the second network of each pair first, as :func:`align` does.
    above, of : str
        As for :func:`barrier`.
    progress : bool

    Returns
    -------
    BarrierMatrix

    Raises
    ------
    ValueError
        If the networks differ in shape or in what theta does not hold.
    """
    if len(objectives) < 2:
        raise ValueError(f"at least two objectives are needed, got {len(objectives)}")
    for other in objectives[1:]:
        check_shapes(objectives[0], other)
        check_constants(objectives[0], other)
    count = len(objectives)
    heights, errors = np.zeros((count, count)), np.zeros((count, count))
    pairs = list(combinations(range(count), 2))
    for i, j in progress_bar(pairs, desc="barriers", unit="pair", progress=progress):
        a, b = objectives[i], objectives[j]
        end = b.theta if match is None else align(a, b, method=match).theta
        profile = path_profile(a, Segment(a.theta, end), points)
        height = barrier(profile, above, of)
        heights[i, j] = heights[j, i] = height.value
        errors[i, j] = errors[j, i] = height.stderr
    return BarrierMatrix(heights, errors, match)
