r"""Tr A, Tr A^2 and the effective rank, from the same products.

One product Av gives a sample of each of two traces, :math:`v^\top A v` and :math:`\|Av\|^2`.
Both samples scatter most along the largest eigenvalues, which a few steps of Lanczos find: with
orthonormal columns Q, A Q = Q T + R and the projection P = I - Q Q',

    Tr A = Tr T + E[v'PAPv],        Tr A^2 = |T|_F^2 + 2 |R|_F^2 + E|PAPv|^2

hold exactly for any Q that is independent of v, so that sampling is left with what Q missed
(Gambhir, Stathopoulos and Orginos 2017, arXiv:1603.05988; Chen and Hallman 2022,
arXiv:2205.01736).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch

from landscape_core.backends import without_autocast
from landscape_core.curvature.eigen import krylov_basis, relative, ritz_pairs
from landscape_core.curvature.lanczos import KrylovBasis
from landscape_core.curvature.operators import SymmetricOperator, check_operator
from landscape_core.curvature.probes import Distribution, Seed, generator
from landscape_core.curvature.sampling import Moments, check_sampling, sample_moments, within
from landscape_core.results import Eigenpairs, Estimate

BASIS_BYTES = 1 << 30  # of a Krylov basis made for its share of a trace
Sampling = Literal["hutchinson", "deflated"]


def leading_subspace(
    operator: SymmetricOperator,
    steps: int,
    power: int,
    rtol: float | None,
    rng: torch.Generator,
) -> Eigenpairs:
    """Ritz pairs of up to `steps` steps of Lanczos, fewer where sampling is cheaper."""
    basis = krylov_basis(operator, min(steps, largest_basis(operator)), rng)
    while basis.size < min(10, basis.capacity):
        basis.grow()
    grow_while_it_pays(basis, power, rtol)
    size = basis.size
    return ritz_pairs(basis, torch.arange(size, device="cpu"), relative(1.0), size)


def largest_basis(operator: SymmetricOperator, least: int = 40) -> int:
    """Vectors that a Krylov basis may have: up to 200, `least` however large n is."""
    itemsize = torch.finfo(operator.dtype).bits // 8
    return max(least, min(200, BASIS_BYTES // (itemsize * operator.n)))


def grow_while_it_pays(
    basis: KrylovBasis, power: int, rtol: float | None, most: int | None = None
) -> int:
    """Grow `basis` until sampling is cheaper; to its capacity if `rtol` is None.

    A step that finds ``gain`` more of the sum of ``value ** (2 power)`` saves about
    ``2 gain / (rtol * sum of value ** power) ** 2`` probes of the trace of ``A ** power``;
    where that is less than two products (its own and its orthogonalization), it stops.
    Returns the number of steps, `most` at most.
    """
    end = basis.capacity if most is None else min(basis.capacity, basis.size + most)

    def sums() -> tuple[float, float]:
        values = basis.ritz()[0]
        return float(values.abs().pow(2 * power).sum()), float(values.pow(power).sum())

    first, earlier = basis.size, sums()[0] if rtol is not None else 0.0
    while basis.size < end:
        basis.grow()
        if rtol is None or (basis.size - first) % 5:
            continue
        found, total = sums()
        if 2 * (found - earlier) / 5 < 2 * (rtol * total) ** 2:
            break
        earlier = found
    return basis.size - first


def estimate_moments(
    operator: SymmetricOperator,
    probes: int,
    goal: Callable[[Moments], Estimate],
    power: int,
    *,
    method: Sampling,
    deflate: Eigenpairs | None,
    rtol: float | None,
    distribution: Distribution,
    seed: Seed,
) -> Moments:
    """What :func:`trace_of_square` and :func:`effective_rank` share, arguments checked."""
    check_operator(operator)
    check_sampling(probes, rtol)
    if method not in get_args(Sampling):
        options = " or ".join(map(repr, get_args(Sampling)))
        raise ValueError(f"method must be {options}, got {method!r}")
    rng, spent = generator(seed, operator.device), 0
    if method == "deflated" and deflate is None:
        deflate = leading_subspace(operator, min(probes // 2, operator.n), power, rtol, rng)
        spent = deflate.matvecs
    return sample_moments(
        operator, probes - spent, within(rtol, goal), pairs=deflate, spent=spent,
        distribution=distribution, rng=rng,
    )  # fmt: skip


@without_autocast
def trace_of_square(
    operator: SymmetricOperator,
    probes: int = 64,
    *,
    method: Sampling = "deflated",
    deflate: Eigenpairs | None = None,
    rtol: float | None = None,
    distribution: Distribution = "rademacher",
    seed: Seed = 0,
) -> Estimate:
    r"""Estimate :math:`\mathrm{Tr}\, A^2 = \|A\|_F^2`, the sum of the squared eigenvalues.

    One sample is :math:`\|Av\|^2`. Where one eigenvalue dominates, it has a relative error of
    about :math:`\sqrt 2`, and 1 % would take 20,000 of them. ``"deflated"`` spends up to half
    of the products on a Krylov basis Q, takes its share of the trace exactly, and samples only
    what is orthogonal to it. Samples are skewed: intervals from fewer than about 20 of them
    cover less than they say.

    Parameters
    ----------
    operator : SymmetricOperator
    probes : int
        Largest number of products.
    method : {"deflated", "hutchinson"}
    deflate : Eigenpairs or None
        Eigenpairs of this operator that are known already; no products go into others then.
    rtol : float or None
        Stop when the standard error is this small against the value; None spends all products.
    distribution : {"rademacher", "gaussian", "sphere"}
    seed : int or torch.Generator

    Returns
    -------
    Estimate
        `stopped` says whether `rtol` was reached.

    References
    ----------
    T. Chen and E. Hallman, Krylov-aware stochastic trace estimation, 2022, arXiv:2205.01736.

    Examples
    --------
    >>> from landscape_core.curvature.operators import Matrix
    >>> print(trace_of_square(Matrix(torch.diag(torch.tensor([3.0, 1.0])))))
    10 ± 0
    """
    return estimate_moments(
        operator, probes, lambda m: m.trace_of_square, 2, method=method, deflate=deflate,
        rtol=rtol, distribution=distribution, seed=seed,
    ).trace_of_square  # fmt: skip


@without_autocast
def effective_rank(
    operator: SymmetricOperator,
    probes: int = 64,
    *,
    method: Sampling = "deflated",
    deflate: Eigenpairs | None = None,
    rtol: float | None = None,
    distribution: Distribution = "rademacher",
    seed: Seed = 0,
) -> Estimate:
    r"""Estimate :math:`(\mathrm{Tr}\, A)^2 / \mathrm{Tr}\, A^2`.

    k equal eigenvalues and zeros otherwise give k; negative eigenvalues make it smaller. Both
    traces come from the same products, and the error takes their correlation into account.

    Parameters
    ----------
    operator : SymmetricOperator
    probes : int
        Largest number of products.
    method : {"deflated", "hutchinson"}
        As for :func:`trace_of_square`.
    deflate : Eigenpairs or None
        Eigenpairs of this operator that are known already; no products go into others then.
    rtol : float or None
        Stop when the standard error is this small against the value; None spends all products.
    distribution : {"rademacher", "gaussian", "sphere"}
    seed : int or torch.Generator

    Returns
    -------
    Estimate
        `stopped` says whether `rtol` was reached.

    References
    ----------
    O. Roy and M. Vetterli, The effective rank, 2007 (by entropy; this is the form by moments,
    also called participation ratio).

    Examples
    --------
    >>> from landscape_core.curvature.operators import Matrix
    >>> print(effective_rank(Matrix(torch.diag(torch.tensor([2.0, 2.0, 0.0])))))
    2 ± 0
    """
    return estimate_moments(
        operator, probes, lambda m: m.effective_rank, 2, method=method, deflate=deflate,
        rtol=rtol, distribution=distribution, seed=seed,
    ).effective_rank  # fmt: skip
