"""Extreme eigenpairs of a symmetric operator."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

from landscape_core.backends import without_autocast
from landscape_core.curvature.lanczos import ROUNDINGS, KrylovBasis
from landscape_core.curvature.operators import SymmetricOperator, check_operator
from landscape_core.curvature.probes import Seed, generator, probe
from landscape_core.results import Eigenpairs

Which = Literal["LM", "LA", "SA", "BE"]
COLD, WARM = 10, 5  # products besides k before convergence is believed
MIXED = 0.01  # part of a random vector in a known start
Choice = Callable[[Tensor], Tensor]  # ascending values to indices, most wanted first
Tolerance = Callable[[Tensor], Tensor]  # values to the residuals that they may have


@without_autocast
def top_eigenpairs(
    operator: SymmetricOperator,
    k: int = 1,
    which: Which = "LM",
    *,
    tol: float = 1e-3,
    max_matvecs: int = 500,
    start: Tensor | None = None,
    seed: Seed = 0,
) -> Eigenpairs:
    r"""Find k extreme eigenpairs by thick-restart Lanczos.

    Every pair comes with its residual :math:`\|Av - \lambda v\|`; up to rounding, an exact
    eigenvalue lies within that distance of :math:`\lambda`. Lanczos knows it without another
    product, from how its basis is coupled to the rest of the space; what is smaller than the
    rounding of products is raised to that. Work stops when all k residuals are at most
    ``tol * |value|`` (and never below rounding), or when the products are spent; the result
    says which. One starting vector sees one copy of an exactly multiple eigenvalue; nearly
    equal eigenvalues are told apart. Memory is bounded: at most ``max(2 k + 20, 40)`` vectors
    of n numbers.

    Parameters
    ----------
    operator : SymmetricOperator
    k : int
        How many pairs, 1 <= k <= n.
    which : {"LM", "LA", "SA", "BE"}
        Largest magnitude, largest, smallest, or both ends (the larger half from the top).
    tol : float
        Largest relative residual.
    max_matvecs : int
        Largest number of products.
    start : Tensor, shape (n,) or (n, p), or None
        Known approximate eigenvectors, such as those found for a theta nearby: fewer products
        are then needed. None draws a vector.
    seed : int or torch.Generator
        Draws the starting vector.

    Returns
    -------
    Eigenpairs
        Ordered from the most to the least wanted: by magnitude for LM, downwards for LA,
        upwards for SA; BE takes the largest, the smallest, the second largest and so on.

    Raises
    ------
    ValueError
        If an argument is out of range, or the operator turns out not to be symmetric.
    FloatingPointError
        If a product is not finite.

    References
    ----------
    K. Wu and H. Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems,
    2000, doi:10.1137/S0895479898334605.

    Examples
    --------
    >>> from landscape_core.curvature.operators import Matrix
    >>> pairs = top_eigenpairs(Matrix(torch.diag(torch.tensor([5.0, -7.0, 1.0]))), k=2)
    >>> [round(value, 4) for value in pairs.values.tolist()]
    [-7.0, 5.0]
    >>> pairs.negative, round(pairs.condition_number, 2)
    (1, 1.4)
    """
    check_operator(operator)
    if which not in get_args(Which):
        options = ", ".join(map(repr, get_args(Which)))
        raise ValueError(f"which must be one of {options}, got {which!r}")
    if not isinstance(k, Integral) or not 1 <= k <= operator.n:
        raise ValueError(f"k must lie between 1 and n = {operator.n}, got {k}")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
    if max_matvecs < k:
        raise ValueError(f"max_matvecs must be at least k = {k}, got {max_matvecs}")
    basis = krylov_basis(operator, max(2 * k + 20, 40), seed, start)
    spent, wanted = expand(
        basis, lambda values: order(values, which), k, relative(tol), max_matvecs
    )
    return ritz_pairs(basis, wanted, relative(tol), spent)


@without_autocast
def power_iteration(
    operator: SymmetricOperator,
    *,
    tol: float = 1e-3,
    max_matvecs: int = 500,
    seed: Seed = 0,
) -> Eigenpairs:
    r"""Find the eigenpair of largest magnitude by :math:`v \leftarrow Av / \|Av\|`.

    The textbook method, kept for comparison: the error shrinks by
    :math:`|\lambda_2 / \lambda_1|` a product, where Lanczos, from the same products, needs
    about the square root of their number. The value is :math:`v^\top A v`, sign included, and
    the residual :math:`\|Av - \lambda v\|` belongs to the v that is returned.

    Parameters
    ----------
    operator : SymmetricOperator
    tol : float
        Largest relative residual.
    max_matvecs : int
        Largest number of products.
    seed : int or torch.Generator

    Returns
    -------
    Eigenpairs
        One pair.

    References
    ----------
    G. Golub and C. Van Loan, Matrix Computations, 4th edition, 2013, section 8.2.

    Examples
    --------
    >>> from landscape_core.curvature.operators import Matrix
    >>> pair = power_iteration(Matrix(torch.diag(torch.tensor([5.0, -7.0, 1.0]))), tol=1e-5)
    >>> round(float(pair.values[0]), 4)
    -7.0
    """
    check_operator(operator)
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
    if max_matvecs < 1:
        raise ValueError(f"max_matvecs must be at least 1, got {max_matvecs}")
    rng = generator(seed, operator.device)
    v = torch.randn(operator.n, generator=rng, device=operator.device, dtype=operator.dtype)
    for spent in range(1, max_matvecs + 1):
        v = v / v.norm()
        product = operator @ v
        unit = product.abs().max()  # its squares may not exist
        unit = torch.where(unit > 0, unit, torch.ones_like(unit))
        value = v @ product
        residual = unit * (product / unit - value / unit * v).norm()
        if operator.rounding > torch.finfo(operator.dtype).eps:  # of finite differences
            residual = residual.clamp_min(operator.rounding * value.abs())
        if not bool(torch.isfinite(residual)):
            raise FloatingPointError(
                "a product of the operator is not finite: theta or the data hold nan or inf"
            )
        converged = residual <= tol * value.abs()
        if bool(converged) or not bool(product.any()):
            break
        if spent < max_matvecs:
            v = product / unit
    return Eigenpairs(value[None], v[:, None], residual[None], converged[None], spent)


def krylov_basis(
    operator: SymmetricOperator, capacity: int, seed: Seed, start: Tensor | None = None
) -> KrylovBasis:
    """Make an empty basis for `operator`, beginning with `start` (columns are added up)."""
    if start is not None:
        if not isinstance(start, Tensor):
            kind = type(start).__name__
            raise TypeError(f"start must be a tensor of eigenvectors, got {kind}")
        if start.ndim not in (1, 2) or start.shape[0] != operator.n:
            raise ValueError(
                f"start must have shape ({operator.n},) or ({operator.n}, p), "
                f"got {tuple(start.shape)}"
            )
        start = start.detach().to(operator.device, operator.dtype)
        start = start.sum(1) if start.ndim == 2 else start
        if not bool(start.norm() > 0) or not bool(torch.isfinite(start).all()):
            raise ValueError("start must be finite and not zero")
    rng = generator(seed, operator.device)
    if start is not None:  # what it is orthogonal to must be found too
        other = probe(operator.n, operator.dtype, rng, "sphere") / operator.n**0.5
        start = start / start.norm() + MIXED * other
    return KrylovBasis(operator, min(operator.n, capacity), rng, start)


def relative(tol: float) -> Tolerance:
    """Residuals of `tol` times the size of each eigenvalue."""
    return lambda values: tol * values.abs()


def expand(
    basis: KrylovBasis, choice: Choice, k: int, tolerance: Tolerance, max_matvecs: int
) -> tuple[int, Tensor]:
    """Grow and restart `basis` until the k wanted pairs converge or the products are spent.

    Returns the products spent and the indices of the wanted Ritz values.
    """
    # Asking whether it is done makes a GPU wait, and costs a small matrix as much as a product.
    every = 1 if basis.operator.n > 20_000 else 2
    if basis.operator.device.type != "cpu":
        every = 5
    # A vector that begins close to an eigenvector, or a matrix close to a multiple of I, looks
    # converged before the largest eigenvalue has had a chance to show.
    least = min(basis.operator.n, k + (WARM if basis.warm else COLD))
    spent = 0
    while True:
        basis.grow()
        spent += 1
        full, last = basis.size == basis.capacity, spent >= max_matvecs
        early = spent < least or basis.size % every
        if basis.size < k or (early and not (full or last)):
            continue
        values, rotation, residuals, floor = basis.ritz()
        wanted = choice(values)[:k]
        # Products round: what is left of the tolerance is for the residual that they have.
        allowed = (0.9 * tolerance(values[wanted])).clamp_min(floor / 25)
        done = bool((residuals[wanted] <= allowed).all())
        if done or last or basis.size == basis.operator.n:
            return spent, wanted
        if full:
            basis.restart(rotation[:, choice(values)[: (k + basis.capacity) // 2]])


def ritz_pairs(
    basis: KrylovBasis, wanted: Tensor, tolerance: Tolerance, matvecs: int
) -> Eigenpairs:
    """Turn the Ritz pairs numbered `wanted` into a result; the basis is used up."""
    values, rotation, residuals, floor = basis.ritz()
    values, residuals = values[wanted], residuals[wanted].clamp_min(floor)
    # Rounding of the arithmetic does not count against a pair; an error of products does.
    arithmetic = ROUNDINGS * torch.finfo(basis.operator.dtype).eps / basis.operator.rounding
    converged = residuals <= tolerance(values).clamp_min(floor * min(1.0, arithmetic))
    v = basis.take(rotation[:, wanted])
    return Eigenpairs(values.to(v), v, residuals.to(v), converged.to(v.device), matvecs)


def order(values: Tensor, which: Which) -> Tensor:
    """Indices of ascending `values`, most wanted first."""
    if which == "LM":
        return values.abs().argsort(descending=True)
    ascending = torch.arange(len(values), device=values.device)
    if which == "SA":
        return ascending
    descending = ascending.flip(0)
    if which == "LA":
        return descending
    half = (len(values) + 1) // 2
    both = torch.empty_like(ascending)  # top, bottom, next top, next bottom ...
    both[0::2] = descending[:half]
    both[1::2] = ascending[: len(values) - half]
    return both
