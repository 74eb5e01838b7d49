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

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

from landscape_core.curvature.eigen import krylov_basis, relative, ritz_pairs
from landscape_core.curvature.lanczos import KrylovBasis
from landscape_core.curvature.operators import Deflated, SymmetricOperator, check_operator
from landscape_core.curvature.probes import Distribution, Seed, generator, probes_block
from landscape_core.results import Eigenpairs, Estimate

LEAST = 16  # samples before a standard error is trusted to stop the sampling
BASIS_BYTES = 1 << 30  # of a Krylov basis made for its share of a trace
SMALL = 50_000  # up to this n, probes are multiplied several at a time
TOGETHER = 8
Sampling = Literal["hutchinson", "deflated"]


@dataclass(frozen=True)
class Moments:
    """Paired samples of Tr PAP and Tr (PAP)^2, and what is known of both exactly.

    Attributes
    ----------
    samples : Tensor, shape (m, 2), float64
        ``v'PAPv`` and ``|PAPv|^2``, one probe to a row.
    known : tuple of float
        Tr T and ``|T|_F^2 + 2 |R|_F^2``.
    matvecs : int
    stopped : {"", "rtol", "budget"}
    """

    samples: Tensor
    known: tuple[float, float]
    matvecs: int
    stopped: Literal["", "rtol", "budget"]

    @property
    def trace(self) -> Estimate:
        """Tr A."""
        return self._moment(0)

    @property
    def trace_of_square(self) -> Estimate:
        """Tr A^2, the sum of the squared eigenvalues."""
        return self._moment(1)

    @property
    def effective_rank(self) -> Estimate:
        """(Tr A)^2 / Tr A^2, its error by the delta method on the paired samples."""
        first, second = self.trace.value, self.trace_of_square.value
        if second == 0:
            return Estimate(0.0, 0.0, len(self.samples), self.matvecs, self.stopped)
        slopes = torch.tensor(
            [2 * first / second, -((first / second) ** 2)], dtype=torch.float64
        )
        covariance = torch.atleast_2d(torch.cov(self.samples.T)) / len(self.samples)
        stderr = math.sqrt(max(0.0, float(slopes @ covariance @ slopes)))
        value = first**2 / second
        return Estimate(value, stderr, len(self.samples), self.matvecs, self.stopped)

    def _moment(self, index: int) -> Estimate:
        sampled = Estimate.of(self.samples[:, index])
        value = self.known[index] + sampled.value
        return Estimate(value, sampled.stderr, sampled.samples, self.matvecs, self.stopped)


def known_moments(pairs: Eigenpairs) -> tuple[float, float]:
    """Tr T and |T|_F^2 + 2 |R|_F^2 for T the diagonal matrix of Ritz values."""
    values, residuals = pairs.values.double(), pairs.residuals.double()
    square = float(values.square().sum() + 2 * residuals.square().sum())
    return float(values.sum()), square


Goal = Callable[[Moments], Estimate]


def sample_moments(
    operator: SymmetricOperator,
    probes: int,
    goal: Goal,
    *,
    pairs: Eigenpairs | None = None,
    spent: int = 0,
    rtol: float | None = None,
    distribution: Distribution = "rademacher",
    rng: torch.Generator,
) -> Moments:
    """Draw samples until `goal` of them has a relative error of `rtol`, `probes` at most.

    `spent` counts the products that `pairs` cost.
    """
    known = (0.0, 0.0)
    if pairs is not None:
        deflated = operator.deflate(pairs)
        known = known_moments(pairs)
        if len(pairs) == operator.n:
            return Moments(torch.zeros(2, 2).double(), known, spent, "rtol" if rtol else "")
        operator = deflated
    width = TOGETHER if pairs is not None or operator.n <= SMALL else 1
    rows: list[Tensor] = []
    count = 0
    while True:
        block = min(width, probes - count)
        rows.append(sample_rows(operator, block, distribution, rng))
        count += block
        last = count >= probes
        if not last and (rtol is None or count < LEAST):
            continue
        samples = torch.cat(rows).cpu()
        if not bool(torch.isfinite(samples).all()):
            raise FloatingPointError(
                "a product of the operator is not finite: theta or the data hold nan or inf"
            )
        moments = Moments(samples, known, spent + count, "")
        reached = rtol is not None and goal(moments).relative_error <= rtol
        if reached or last:
            return Moments(samples, known, spent + count, stop_reason(rtol, reached))


def sample_rows(
    operator: SymmetricOperator, count: int, distribution: Distribution, rng: torch.Generator
) -> Tensor:
    """Return `count` rows of v'Av and |Av|^2; of v'PAPv and |PAPv|^2 for a deflated operator.

    With u = P v the two are u'Au and |Au|^2 - |Q'Au|^2: the product need not be projected, and
    a block of vectors is projected in one pass over Q.
    """
    v = probes_block(count, operator.n, operator.dtype, rng, distribution)
    removed = torch.zeros(count, dtype=torch.float64, device=v.device)
    if isinstance(operator, Deflated):
        v = operator.project(v)
        product = operator.base @ v
        along = operator.pairs.vectors.T @ product
        removed = torch.linalg.vector_norm(along, dim=0, dtype=torch.float64).square()
    else:
        product = operator @ v
    first = torch.linalg.vecdot(v, product, dim=0).double()
    second = torch.linalg.vector_norm(product, dim=0, dtype=torch.float64).square()
    return torch.stack([first, (second - removed).clamp_min(0)], dim=1)


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
    return ritz_pairs(basis, torch.arange(size), relative(1.0), size)


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
    goal: Goal,
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
        operator, probes - spent, goal, pairs=deflate, spent=spent, rtol=rtol,
        distribution=distribution, rng=rng,
    )  # fmt: skip


def stop_reason(rtol: float | None, reached: bool) -> Literal["", "rtol", "budget"]:
    """Say what ended a sampling, for :class:`Estimate`."""
    if rtol is None:
        return ""
    return "rtol" if reached else "budget"


def check_sampling(probes: int, rtol: float | None, least: int = 4) -> None:
    """Refuse a budget too small for a standard error, or an error that cannot be reached."""
    if not isinstance(probes, Integral) or probes < least:
        raise ValueError(f"probes must be at least {least}, got {probes}")
    if rtol is not None and not rtol > 0:
        raise ValueError(f"rtol must be positive or None, got {rtol}")


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
    what is orthogonal to it.

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
