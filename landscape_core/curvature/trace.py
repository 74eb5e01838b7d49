"""Stochastic trace estimates."""

from __future__ import annotations

import torch

from landscape_core.curvature.operators import SymmetricOperator, check_operator
from landscape_core.curvature.probes import Distribution, Seed, generator, probe
from landscape_core.results import Estimate


def trace(
    operator: SymmetricOperator,
    probes: int = 64,
    *,
    distribution: Distribution = "rademacher",
    seed: Seed = 0,
) -> Estimate:
    r"""Estimate the trace by Hutchinson's method, the mean of :math:`v^\top A v`.

    With Rademacher probes one sample has variance
    :math:`2(\|A\|_F^2 - \sum_i A_{ii}^2)`; with Gaussian ones :math:`2\|A\|_F^2`. Where one
    eigenvalue dominates, samples are skewed, and intervals from fewer than about 50 probes
    cover less than they say.

    Parameters
    ----------
    operator : SymmetricOperator
    probes : int
        Number of random vectors, one product each; at least 2, for the standard error.
    distribution : {"rademacher", "gaussian"}
    seed : int or torch.Generator

    Returns
    -------
    Estimate

    References
    ----------
    M. Hutchinson, A stochastic estimator of the trace of the influence matrix, 1990,
    doi:10.1080/03610919008812866. H. Avron and S. Toledo 2011, doi:10.1145/1944345.1944349.

    Examples
    --------
    A diagonal matrix has no off-diagonal entries, so Rademacher probes are exact:

    >>> from landscape_core.curvature.operators import Matrix
    >>> print(trace(Matrix(torch.diag(torch.tensor([3.0, 1.0]))), probes=8))
    4 ± 0
    """
    check_operator(operator)
    if probes < 2:
        raise ValueError(f"probes must be at least 2, got {probes}")
    rng = generator(seed, operator.device)
    samples = []
    for _ in range(probes):
        v = probe(operator.n, operator.dtype, rng, distribution)
        samples.append((v @ (operator @ v)).double())
    return Estimate.of(torch.stack(samples), matvecs=probes)
