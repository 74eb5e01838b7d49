"""Extreme eigenpairs of a symmetric operator."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from landscape_core.curvature.lanczos import KrylovBasis
from landscape_core.curvature.operators import SymmetricOperator, check_operator
from landscape_core.curvature.probes import Seed, generator
from landscape_core.results import Eigenpairs

Which = Literal["LM", "LA", "SA", "BE"]


def top_eigenpairs(
    operator: SymmetricOperator,
    k: int = 1,
    which: Which = "LM",
    *,
    tol: float = 1e-3,
    max_matvecs: int = 500,
    seed: Seed = 0,
) -> Eigenpairs:
    r"""Find k extreme eigenpairs by thick-restart Lanczos.

    Every pair comes with its residual :math:`\|Av - \lambda v\|`; an exact eigenvalue lies
    within that distance of :math:`\lambda`. Work stops when all k residuals are at most
    ``tol * |value|`` (and never below rounding), or when the products are spent; the result
    says which. One starting vector sees one copy of an exactly multiple eigenvalue; nearly
    equal eigenvalues are told apart.

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
    """
    check_operator(operator)
    n = operator.n
    if which not in get_args(Which):
        options = ", ".join(map(repr, get_args(Which)))
        raise ValueError(f"which must be one of {options}, got {which!r}")
    if not isinstance(k, int) or not 1 <= k <= n:
        raise ValueError(f"k must lie between 1 and n = {n}, got {k}")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
    if max_matvecs < k:
        raise ValueError(f"max_matvecs must be at least k = {k}, got {max_matvecs}")
    capacity = min(n, max(2 * k + 20, 40))
    basis = KrylovBasis(operator, capacity, generator(seed, operator.device))
    spent = 0
    while True:
        basis.grow()
        spent += 1
        full, last = basis.size == capacity, spent >= max_matvecs
        # Asking whether it is done waits for the device: not at every step.
        if basis.size < k or not (full or last or basis.size % 5 == 0):
            continue
        values, rotation, residuals, floor = _ritz(basis)
        wanted = _order(values, which)[:k]
        converged = residuals[wanted] <= (tol * values[wanted].abs()).clamp_min(floor)
        if bool(converged.all()) or last or basis.size == n:
            break
        if full:
            kept = _order(values, which)[: (k + capacity) // 2]
            basis.restart(rotation[:, kept])
    vectors = basis.vectors @ rotation[:, wanted]
    return Eigenpairs(values[wanted], vectors, residuals[wanted], converged, spent)


def _ritz(basis: KrylovBasis) -> tuple[Tensor, Tensor, Tensor, float]:
    """Eigenvalues of T, its eigenvectors, the residuals |A Qs - Qs value|, and their floor."""
    projected = basis.projected
    if not bool(torch.isfinite(projected).all()):
        raise FloatingPointError(
            "a product of the operator is not finite: theta or the data hold nan or inf"
        )
    if not basis.symmetric:
        raise ValueError(
            "the operator is not symmetric: the data or the model change between products, or "
            "a layer's second derivative is wrong (torch's weight_norm has this fault)"
        )
    values, rotation = torch.linalg.eigh(projected)
    # The decomposition holds to rounding, so no residual can be claimed to be below it.
    floor = 50 * torch.finfo(values.dtype).eps * float(values.abs().max())
    return values, rotation, (basis.coupling * rotation[-1].abs()).clamp_min(floor), floor


def _order(values: Tensor, which: Which) -> Tensor:
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
