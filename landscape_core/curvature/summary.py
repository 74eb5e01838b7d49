"""The usual numbers of one operator, from one shared set of products."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from numbers import Integral

import pandas as pd
import torch
from torch import Tensor

from landscape_core.backends import without_autocast
from landscape_core.curvature.density import SpectralDensity, density_of, quadratures
from landscape_core.curvature.eigen import expand, krylov_basis, ritz_pairs
from landscape_core.curvature.moments import grow_while_it_pays, largest_basis
from landscape_core.curvature.operators import SymmetricOperator, check_operator
from landscape_core.curvature.probes import Seed, generator
from landscape_core.curvature.sampling import Moments, sample_moments
from landscape_core.results import Eigenpairs, Estimate, with_error


@dataclass(frozen=True, eq=False)
class CurvatureSummary:
    """Eigenvalues at both ends, traces, effective rank and density of one operator.

    Attributes
    ----------
    top : Eigenpairs
        The k largest.
    bottom : Eigenpairs
        The smallest one.
    trace, trace_of_square, effective_rank : Estimate
    density : SpectralDensity
    n : int
    matvecs : int
        Products spent on all of it.
    """

    top: Eigenpairs
    bottom: Eigenpairs
    trace: Estimate
    trace_of_square: Estimate
    effective_rank: Estimate
    density: SpectralDensity = field(repr=False)
    n: int
    matvecs: int

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue."""
        return float(self.top.values[0])

    @property
    def lambda_min(self) -> float:
        """The smallest eigenvalue."""
        return float(self.bottom.values[0])

    @property
    def converged(self) -> bool:
        """Whether all eigenpairs met their tolerance and all estimates their error."""
        pairs = bool(self.top.converged.all()) and bool(self.bottom.converged.all())
        estimates = (self.trace, self.trace_of_square)
        return pairs and all(each.stopped == "rtol" for each in estimates)

    def table(self) -> pd.DataFrame:
        """One row per number: value, error (residual or standard error), and whether it met
        what was asked for."""  # noqa: D205, D209
        rows = []
        ends = [("largest eigenvalue", self.top), ("smallest eigenvalue", self.bottom)]
        for name, pairs in ends:
            residual, met = float(pairs.residuals[0]), bool(pairs.converged[0])
            rows.append((name, float(pairs.values[0]), residual, met))
        for name in ("trace", "trace_of_square", "effective_rank"):
            estimate: Estimate = getattr(self, name)
            met = estimate.stopped == "rtol"
            rows.append((name.replace("_", " "), estimate.value, estimate.stderr, met))
        table = pd.DataFrame(rows, columns=["quantity", "value", "error", "converged"])
        return table.set_index("quantity")

    def __str__(self) -> str:
        lines = [f"curvature of n = {self.n} parameters, {self.matvecs} products"]
        for name, row in self.table().iterrows():
            note = "" if row["converged"] else "  (not converged)"
            lines.append(f"{name:>20}: {with_error(row['value'], row['error'])}{note}")
        others = ", ".join(f"{value:.4g}" for value in self.top.values.tolist())
        return "\n".join([*lines, f"{'top ' + str(len(self.top)):>20}: {others}"])


@without_autocast
def curvature_summary(
    operator: SymmetricOperator,
    k: int = 10,
    *,
    tol: float = 1e-3,
    trace_rtol: float = 0.01,
    square_rtol: float = 0.05,
    steps: int = 30,
    probes: int = 4,
    max_matvecs: int = 1000,
    seed: Seed = 0,
) -> CurvatureSummary:
    r"""Measure both ends of the spectrum, traces, effective rank and density together.

    One Lanczos run finds the k largest eigenpairs and the smallest. Its Ritz vectors are then
    projected out, and the probes of the density, in what is left, are samples of both traces
    as well; single products follow until the traces are as precise as was asked for. No
    product is made twice.

    Parameters
    ----------
    operator : SymmetricOperator
    k : int
        How many of the largest eigenpairs.
    tol : float
        Largest relative residual of an eigenpair; for a smallest eigenvalue closer to zero than
        a hundredth of the largest, relative to that hundredth.
    trace_rtol, square_rtol : float
        Relative standard errors at which the trace and the trace of the square stop.
    steps, probes : int
        Of the density, as for :func:`spectral_density`.
    max_matvecs : int
        Largest number of products, of which at most half go into the eigenpairs.
    seed : int or torch.Generator

    Returns
    -------
    CurvatureSummary

    Examples
    --------
    >>> from landscape_core.curvature.operators import Matrix
    >>> A = Matrix(torch.diag(torch.cat([torch.tensor([9.0, -2.0]), torch.ones(98)])))
    >>> summary = curvature_summary(A, k=1)
    >>> round(summary.lambda_max, 3), round(summary.lambda_min, 3)
    (9.0, -2.0)
    """
    check_operator(operator)
    n = operator.n
    if not isinstance(k, Integral) or not 1 <= k <= n:
        raise ValueError(f"k must lie between 1 and n = {n}, got {k}")
    for name, value in [("tol", tol), ("trace_rtol", trace_rtol), ("square_rtol", square_rtol)]:
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if not isinstance(probes, Integral) or probes < 2:
        raise ValueError(f"probes must be a whole number >= 2, got {probes}")
    if not isinstance(steps, Integral) or steps < 2:
        raise ValueError(f"steps must be a whole number >= 2, got {steps}")
    least = 2 * (k + 1) + steps * probes
    if max_matvecs < least:
        raise ValueError(f"max_matvecs must be at least {least} here, got {max_matvecs}")
    rng = generator(seed, operator.device)
    room = min(max_matvecs // 2, max_matvecs - steps * probes)
    ends, known, spent = _ends(operator, k, tol, trace_rtol, room, rng)
    found = quadratures(operator, steps, probes, known, rng)
    density = density_of(found, known, n)
    spent += density.matvecs
    free = n - len(known)
    samples = torch.stack([moments for _, _, moments in found]) * free

    def enough(moments: Moments) -> bool:
        square = moments.trace_of_square
        return (
            moments.trace.relative_error <= trace_rtol and square.relative_error <= square_rtol
        )

    moments = sample_moments(
        operator, max_matvecs - spent, enough, pairs=known, spent=spent, earlier=samples,
        signed=True, distribution="sphere", rng=rng,
    )  # fmt: skip
    top = _part(ends, slice(0, k))
    bottom = _part(ends, slice(len(ends) - 1, len(ends)))
    trace, square = moments.trace, moments.trace_of_square
    rank = moments.effective_rank
    return CurvatureSummary(
        top, bottom,
        _marked(trace, trace_rtol), _marked(square, square_rtol),
        _marked(rank, 2 * trace_rtol + square_rtol),
        density, n, moments.matvecs,
    )  # fmt: skip


def _ends(
    operator: SymmetricOperator,
    k: int,
    tol: float,
    trace_rtol: float,
    max_matvecs: int,
    rng: torch.Generator,
) -> tuple[Eigenpairs, Eigenpairs, int]:
    """The k largest pairs and then the smallest; all Ritz pairs of the run; products spent."""

    def ends_first(values: Tensor) -> Tensor:
        descending = torch.arange(len(values), device="cpu").flip(0)
        if len(values) <= k:
            return descending
        return torch.cat([descending[:k], descending[-1:], descending[k:-1]])

    def tolerance(values: Tensor) -> Tensor:
        # The smallest may be zero, as of every Gauss-Newton matrix, and have no relative error.
        sizes = values.abs()
        allowed = tol * sizes
        allowed[k:] = tol * sizes[k:].clamp_min(float(sizes.max()) / 100)
        return allowed

    wanted = min(k + 1, operator.n)
    basis = krylov_basis(operator, largest_basis(operator, max(2 * k + 20, 40)), rng)
    spent, _ = expand(basis, ends_first, wanted, tolerance, max_matvecs)
    spent += grow_while_it_pays(basis, 1, trace_rtol, max_matvecs - spent)
    chosen = ends_first(basis.ritz()[0])[:wanted]
    size = basis.size
    left = [i for i in range(size) if i not in set(chosen.tolist())]
    others = torch.tensor(left, dtype=torch.int64, device="cpu")
    every = ritz_pairs(basis, torch.cat([chosen, others]), tolerance, spent)
    return _part(every, slice(0, wanted)), every, spent


def _part(pairs: Eigenpairs, rows: slice) -> Eigenpairs:
    return Eigenpairs(
        pairs.values[rows],
        pairs.vectors[:, rows].clone(),  # a view would keep the whole basis
        pairs.residuals[rows],
        pairs.converged[rows],
        pairs.matvecs,
    )


def _marked(estimate: Estimate, rtol: float) -> Estimate:
    return replace(estimate, stopped="rtol" if estimate.relative_error <= rtol else "budget")
