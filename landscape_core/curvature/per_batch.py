"""A trace from new random vectors for each batch.

The matrix of an objective is a mean over batches, A = sum of w_b A_b. Hutchinson's vectors are
usually the same for all b. With vectors of their own the samples v'A_b v are independent:

    Var = sum of w_b^2 Var(v'A_b v), against Var(v'Av) for shared vectors.

Batches that are alike do for the error what so many times the products would; matrices that
cancel in the mean do not. With two vectors to a batch the scatter within batches gives the
error; what the batches differ by is no part of it, since all are there.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from landscape_core.curvature.operators import SymmetricOperator
from landscape_core.curvature.probes import Distribution
from landscape_core.curvature.sampling import LEAST, TOGETHER, known_moments, stop_reason
from landscape_core.results import Eigenpairs, Estimate


def trace_per_batch(
    operator: SymmetricOperator,
    probes: int,
    rtol: float | None,
    pairs: Eigenpairs | None,
    distribution: Distribution,
    rng: torch.Generator,
) -> Estimate:
    """See :func:`trace`."""
    known = 0.0
    if pairs is not None:
        operator = operator.deflate(pairs)
        known = known_moments(pairs)[0]
    rows: list[Tensor] = []  # (batches, probes) of each pass
    count = 0
    while True:
        left = probes - count
        block = min(TOGETHER, left) if rtol is None else min(max(2, count), TOGETHER, left)
        sizes, samples = zip(*operator.trace_samples(block, rng, distribution), strict=True)
        rows.append(torch.stack(samples))
        count += block
        value, stderr, freedom = _weighted(sizes, torch.cat(rows, dim=1))
        if not math.isfinite(value):
            raise FloatingPointError(
                "a product of the operator is not finite: theta or the data hold nan or inf"
            )
        found = Estimate(known + value, stderr, int(freedom) + 1, count)
        reached = rtol is not None and found.samples >= LEAST and found.relative_error <= rtol
        if reached or count == probes:
            why = stop_reason(rtol is not None, reached)
            return replace(found, stopped=why)


def _weighted(sizes: tuple[int, ...], samples: Tensor) -> tuple[float, float, float]:
    """Mean of the rows' means weighted by `sizes`, its error, and the degrees of freedom.

    Of a sum of variances s_b^2 with k degrees of freedom each these are
    (sum s_b^2)^2 / (sum s_b^4 / (k + 2)) - 2 (Welch 1947). Where one large batch dominates the
    sum its own s_b may come out small: the same formula with the squared weights alone is a
    bound, which brings the coverage back to what it should be.
    """
    weights = torch.tensor(sizes, dtype=torch.float64, device="cpu")
    weights /= weights.sum()
    probes = samples.shape[1]
    errors = weights.square() * samples.var(dim=1) / probes
    freedom = float(len(sizes) * (probes - 1))
    for parts in (errors, weights.square()):
        if bool(parts.any()):
            shares = parts / parts.sum()
            freedom = min(freedom, (probes + 1) / float(shares.square().sum()) - 2)
    stderr = math.sqrt(float(errors.sum()))
    return float(weights @ samples.mean(dim=1)), stderr, max(probes - 1.0, freedom)
