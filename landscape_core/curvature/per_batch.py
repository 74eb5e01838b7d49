"""A trace from new random vectors for each batch.

The matrix of an objective is a mean over batches, A = sum of w_b A_b. Hutchinson's vectors are
usually the same for all b, and their errors add up. With vectors of their own the samples
v'A_b v are independent, and b batches do for the error what b times the products would:

    Var = sum of w_b^2 Var(v'A_b v), against Var(v'Av) for shared vectors.

With two vectors to a batch the scatter within batches gives the error; what the batches differ
by is no part of it, since all are there.
"""

from __future__ import annotations

import math

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
        known = known_moments(pairs)[0]
        operator = operator.deflate(pairs)
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
            return Estimate(found.value, stderr, found.samples, count, why)


def _weighted(sizes: tuple[int, ...], samples: Tensor) -> tuple[float, float, float]:
    """Mean of the rows' means weighted by `sizes`, its error, and the degrees of freedom.

    Of a sum of variances s_b^2 with k degrees of freedom each these are
    (sum s_b^2)^2 / (sum s_b^4 / (k + 2)) - 2 (Welch 1947). Where one large batch dominates the
    sum its own variance may come out small: there are no more than if all v'A_b v had one.
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
