"""Paired samples of Tr A and Tr A^2, and when there are enough of them.

One product Av gives both v'Av and |Av|^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch
from scipy.linalg import hadamard
from torch import Tensor

from landscape_core.curvature.operators import SMALL, Deflated, SymmetricOperator
from landscape_core.curvature.probes import Distribution, probes_block
from landscape_core.results import Eigenpairs, Estimate

LEAST = 16  # samples before a standard error is trusted to stop the sampling
FEWER = 10  # the same where each is a mean over signs
PILOT = 4  # means over signs that decide whether they pay
TOGETHER = 8


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
            [2 * first / second, -((first / second) ** 2)], dtype=torch.float64, device="cpu"
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


Enough = Callable[[Moments], bool]


def sample_moments(
    operator: SymmetricOperator,
    probes: int,
    enough: Enough | None,
    *,
    pairs: Eigenpairs | None = None,
    spent: int = 0,
    earlier: Tensor | None = None,
    signed: bool = False,
    distribution: Distribution = "rademacher",
    rng: torch.Generator,
) -> Moments:
    """Draw samples until there are `enough`, by `probes` products at most; None takes them all.

    `spent` counts the products that `pairs` and the `earlier` samples cost. `signed` allows
    means over :func:`layer_signs`, where they pay; the earlier samples are then left out.
    """
    known = (0.0, 0.0)
    if pairs is not None:
        deflated = operator.deflate(pairs)
        known = known_moments(pairs)
        if len(pairs) == operator.n:
            none = torch.zeros(2, 2, dtype=torch.float64, device="cpu")
            return Moments(none, known, spent, "rtol" if enough else "")
        operator = deflated
    rows: list[Tensor] = []
    signs = layer_signs(operator, probes) if signed else None
    if signs is not None:
        rows, together = _pilot(operator, signs, distribution, rng)
        count = PILOT * len(signs)
        signs = signs if together else None
    else:
        count = 0
    if signs is None and earlier is not None:
        rows.append(earlier.to(operator.device))  # a quadrature's, from the CPU
    while True:
        last = count >= probes
        if last or (enough and sum(map(len, rows)) >= (LEAST if signs is None else FEWER)):
            samples = torch.cat(rows).cpu()
            if not bool(torch.isfinite(samples).all()):
                raise FloatingPointError(
                    "a product of the operator is not finite: theta or the data hold nan or inf"
                )
            moments = Moments(samples, known, spent + count, "")
            reached = enough is not None and enough(moments)
            if reached or last:
                why = stop_reason(enough is not None, reached)
                return Moments(samples, known, spent + count, why)
        left = probes - count
        if signs is not None and left >= len(signs):
            rows.append(sample_rows(operator, 1, distribution, rng, signs).mean(0)[None])
            count += len(signs)
        else:
            wide = operator.n <= SMALL or isinstance(operator, Deflated)
            block = min(TOGETHER if wide else 1, left)
            rows.append(sample_rows(operator, block, distribution, rng))
            count += block


def layer_signs(operator: SymmetricOperator, probes: int) -> Tensor | None:
    r"""Rows of signs, one to a layer, that remove the noise of blocks between layers.

    Averaged over rows s of a Hadamard matrix, the probes D v with D = diag(s by layer) give

        mean of (Dv)'A(Dv) = sum over layers l of v_l'A_ll v_l,

    because what stands between two layers meets as many +1 as -1. In a piecewise linear
    network all that distinguishes the Hessian from the Gauss-Newton matrix stands there, and
    once the outliers are deflated it is most of what is left. None where there is one layer or
    the products are few; layers further apart than the rows suffice for share their signs.
    """
    layers = len(operator.layer_sizes)
    size = min(8, 1 << (layers - 1).bit_length())
    if layers < 2 or probes < 12 * size:
        return None
    rows = torch.from_numpy(hadamard(size)).to(operator.device, operator.dtype)
    return rows[:, torch.arange(layers, device=operator.device) % size]


def _pilot(
    operator: SymmetricOperator, signs: Tensor, distribution: Distribution, rng: torch.Generator
) -> tuple[list[Tensor], bool]:
    """First samples by groups of signs, and whether such groups are worth their products."""
    groups = [sample_rows(operator, 1, distribution, rng, signs) for _ in range(PILOT)]
    first = torch.stack(groups)[:, :, 0]  # (groups, signs)
    together = len(signs) * first.mean(1).var() < first.flatten().var()
    return [group.mean(0)[None] for group in groups], bool(together)


def sample_rows(
    operator: SymmetricOperator,
    count: int,
    distribution: Distribution,
    rng: torch.Generator,
    signs: Tensor | None = None,
) -> Tensor:
    """Return rows of v'Av and |Av|^2; of v'PAPv and |PAPv|^2 for a deflated operator.

    With u = P v the two are u'Au and |Au|^2 - |Q'Au|^2: the product need not be projected, and
    a block of vectors is projected in one pass over Q. Every v gives a row, or one for each row
    of `signs`.
    """
    v = probes_block(count, operator.n, operator.dtype, rng, distribution)
    if signs is not None:
        v = v.repeat_interleave(len(signs), dim=1)
        for piece, sign in zip(v.split(operator.layer_sizes), signs.T, strict=True):
            piece *= sign.repeat(count)
    removed = torch.zeros(v.shape[1], dtype=torch.float64, device=v.device)
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


def within(rtol: float | None, goal: Callable[[Moments], Estimate]) -> Enough | None:
    """Whether `goal` of the moments has a relative error of `rtol`."""
    if rtol is None:
        return None
    return lambda moments: goal(moments).relative_error <= rtol


def stop_reason(asked: bool, reached: bool) -> Literal["", "rtol", "budget"]:
    """Say what ended a sampling, for :class:`Estimate`."""
    if not asked:
        return ""
    return "rtol" if reached else "budget"


def check_sampling(probes: int, rtol: float | None, least: int = 4) -> None:
    """Refuse a budget too small for a standard error, or an error that cannot be reached."""
    if not isinstance(probes, Integral) or probes < least:
        raise ValueError(f"probes must be at least {least}, got {probes}")
    if rtol is not None and not rtol > 0:
        raise ValueError(f"rtol must be positive or None, got {rtol}")
