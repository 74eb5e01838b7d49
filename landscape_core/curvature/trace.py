"""Stochastic estimates of the trace and of the diagonal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from landscape_core.backends import without_autocast
from landscape_core.curvature.moments import leading_subspace
from landscape_core.curvature.operators import SymmetricOperator, check_operator
from landscape_core.curvature.per_batch import trace_per_batch
from landscape_core.curvature.probes import Distribution, Seed, generator, probes_block
from landscape_core.curvature.sampling import TOGETHER, check_sampling, sample_moments, within
from landscape_core.curvature.xtrace import xtrace
from landscape_core.results import Eigenpairs, Estimate

TraceMethod = Literal["hutchinson", "per_batch", "deflated", "hutch++", "xtrace"]


LEAST_PROBES = {"hutchinson": 2, "per_batch": 2, "deflated": 4, "hutch++": 12, "xtrace": 12}


@without_autocast
def trace(
    operator: SymmetricOperator,
    probes: int = 64,
    *,
    method: TraceMethod = "hutchinson",
    deflate: Eigenpairs | None = None,
    rtol: float | None = None,
    distribution: Distribution = "rademacher",
    seed: Seed = 0,
) -> Estimate:
    r"""Estimate the trace from products with random vectors.

    ``"hutchinson"`` averages :math:`v^\top A v`. With Rademacher probes one sample has variance
    :math:`2(\|A\|_F^2 - \sum_i A_{ii}^2)`; with Gaussian ones :math:`2\|A\|_F^2`.
    ``"per_batch"`` does so with new vectors for each batch of the operator's objective. Each
    batch then errs on its own, and the errors average out: b batches that are alike divide the
    variance by b, from the same products. Two products are enough where there are many such
    batches, and each costs a single gradient where the operator is a :class:`Fisher` matrix.

    Where a few eigenvalues dominate, the others do better than ``"hutchinson"``:
    ``"deflated"`` first takes up to half of the products for a Krylov basis, whose share of the
    trace is exact, and samples the rest (from a network's Hessian by means over signs of its
    layers, where that pays); ``"hutch++"`` does so with a random sketch (a third of the
    products, and a third for its share); ``"xtrace"`` lets every vector serve in both roles in
    turn.

    Intervals of ``"hutchinson"`` from fewer than about 50 probes cover less than they say where
    one eigenvalue dominates, because the samples are skewed; so do those of ``"per_batch"`` of
    few batches, and from two or three products where one batch's matrix far exceeds the others.

    Parameters
    ----------
    operator : SymmetricOperator
    probes : int
        Largest number of products; at least 2; 4 for "deflated", 12 for "hutch++" and "xtrace".
    method : {"hutchinson", "per_batch", "deflated", "hutch++", "xtrace"}
    deflate : Eigenpairs or None
        Eigenpairs of this operator that are known already, for "hutchinson" and "per_batch":
        their share is taken exactly, and the samples scatter less. Exact for any orthonormal
        vectors with their Rayleigh quotients.
    rtol : float or None
        Stop when the standard error is this small against the value; None spends all products.
    distribution : {"rademacher", "gaussian", "sphere"}
        "xtrace" always uses the sphere.
    seed : int or torch.Generator

    Returns
    -------
    Estimate
        `stopped` says whether `rtol` was reached. For "per_batch" the standard error is that
        of the scatter within each batch, and `samples` is one more than its degrees of freedom.

    References
    ----------
    M. Hutchinson 1990, doi:10.1080/03610919008812866. H. Avron and S. Toledo 2011,
    doi:10.1145/1944345.1944349. R. Meyer, C. Musco, C. Musco and D. Woodruff, Hutch++, 2021,
    arXiv:2010.09649. E. Epperly, J. Tropp and R. Webber, XTrace, 2024, arXiv:2301.07825.
    T. Chen and E. Hallman 2022, arXiv:2205.01736. Degrees of freedom: B. Welch 1947,
    doi:10.1093/biomet/34.1-2.28.

    Examples
    --------
    A diagonal matrix has no off-diagonal entries, so Rademacher probes are exact:

    >>> from landscape_core.curvature.operators import Matrix
    >>> print(trace(Matrix(torch.diag(torch.tensor([3.0, 1.0]))), probes=8))
    4 ± 0
    """
    check_operator(operator)
    if method not in get_args(TraceMethod):
        options = ", ".join(map(repr, get_args(TraceMethod)))
        raise ValueError(f"method must be one of {options}, got {method!r}")
    check_sampling(probes, rtol, LEAST_PROBES[method])
    if deflate is not None and method not in ("hutchinson", "per_batch"):
        raise ValueError(
            f"deflate goes with method='hutchinson' or 'per_batch', got {method!r}"
        )
    if distribution not in get_args(Distribution):
        options = ", ".join(map(repr, get_args(Distribution)))
        raise ValueError(f"distribution must be one of {options}, got {distribution!r}")
    rng, spent, pairs = generator(seed, operator.device), 0, deflate
    if method == "per_batch":
        return trace_per_batch(operator, probes, rtol, deflate, distribution, rng)
    if method == "xtrace":
        return xtrace(operator, probes, rtol, rng)
    if method == "deflated":
        pairs = leading_subspace(operator, min(probes // 2, operator.n), 1, rtol, rng)
        spent = pairs.matvecs
    if method == "hutch++":
        pairs = _sketch(operator, min(probes // 3, operator.n), distribution, rng)
        spent = pairs.matvecs
    return sample_moments(
        operator, probes - spent, within(rtol, lambda m: m.trace), pairs=pairs, spent=spent,
        signed=method == "deflated", distribution=distribution, rng=rng,
    ).trace  # fmt: skip


def _sketch(
    operator: SymmetricOperator, k: int, distribution: Distribution, rng: torch.Generator
) -> Eigenpairs:
    """An orthonormal basis Q of A S for k random vectors S, with the diagonal of Q'AQ."""
    sketch = operator @ probes_block(k, operator.n, operator.dtype, rng, distribution)
    basis = torch.linalg.qr(sketch)[0]
    product = operator @ basis
    values = torch.linalg.vecdot(basis, product, dim=0)
    residuals = (product - basis * values).norm(dim=0)
    converged = torch.zeros_like(values, dtype=torch.bool)
    return Eigenpairs(values, basis, residuals, converged, 2 * k)


@dataclass(frozen=True, eq=False)
class DiagonalEstimate:
    """An estimate of every entry of the diagonal.

    Attributes
    ----------
    value : Tensor, shape (n,)
    stderr : Tensor, shape (n,)
        Standard error of each entry.
    samples, matvecs : int
    stopped : {"", "rtol", "budget"}
        As for :class:`Estimate`.
    """

    value: Tensor = field(repr=False)
    stderr: Tensor = field(repr=False)
    samples: int
    matvecs: int
    stopped: Literal["", "rtol", "budget"] = ""

    @property
    def relative_error(self) -> float:
        """Length of the vector of standard errors over the length of the diagonal."""
        return _ratio(self.stderr, self.value)


def _ratio(error: Tensor, value: Tensor) -> float:
    """Length of `error` over that of `value`, in float64: squares of float32 may not exist."""
    lengths = [float(torch.linalg.vector_norm(x, dtype=torch.float64)) for x in (error, value)]
    if lengths[0] == 0:
        return 0.0
    return lengths[0] / lengths[1] if lengths[1] > 0 else float("inf")


@without_autocast
def diagonal(
    operator: SymmetricOperator,
    probes: int = 64,
    *,
    rtol: float | None = None,
    seed: Seed = 0,
) -> DiagonalEstimate:
    r"""Estimate the diagonal as the mean of :math:`v \circ Av` over Rademacher vectors.

    One sample of entry i has variance :math:`\sum_{j \ne i} A_{ij}^2`.

    Parameters
    ----------
    operator : SymmetricOperator
    probes : int
        Largest number of products, at least 4.
    rtol : float or None
        Stop when the standard errors, as a vector, are this small against the diagonal.
    seed : int or torch.Generator

    Returns
    -------
    DiagonalEstimate

    References
    ----------
    C. Bekas, E. Kokiopoulou and Y. Saad, An estimator for the diagonal of a matrix, 2007,
    doi:10.1016/j.apnum.2007.01.003.

    Examples
    --------
    >>> from landscape_core.curvature.operators import Matrix
    >>> diagonal(Matrix(torch.diag(torch.tensor([3.0, 1.0])))).value
    tensor([3., 1.])
    """
    check_operator(operator)
    check_sampling(probes, rtol)
    rng = generator(seed, operator.device)
    mean = torch.zeros(operator.n, dtype=operator.dtype, device=operator.device)
    # Welford's running sum of squared deviations, in units of the largest entry seen first.
    spread, count, unit = torch.zeros_like(mean), 0, torch.zeros_like(mean[0])
    stopped: Literal["", "rtol", "budget"] = ""
    while count < probes:
        v = probes_block(min(TOGETHER, probes - count), operator.n, operator.dtype, rng)
        for sample in (v * (operator @ v)).T:
            if count == 0:
                unit = sample.abs().max()
                unit = torch.where(unit > 0, unit, torch.ones_like(unit))
            count += 1
            step = (sample - mean) / unit
            mean += unit * (step / count)
            spread += step * ((sample - mean) / unit)
        if rtol is not None:
            stopped = "budget"
            stderr = unit * (spread / (count - 1) / count).sqrt()
            if _ratio(stderr, mean) <= rtol:
                stopped = "rtol"
                break
    if not bool(torch.isfinite(mean).all()):
        raise FloatingPointError(
            "a product of the operator is not finite: theta or the data hold nan or inf"
        )
    stderr = unit * (spread / (count - 1) / count).sqrt()
    return DiagonalEstimate(mean, stderr, count, count, stopped)
