"""What a measurement returns: numbers that carry their own uncertainty and convergence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy import special
from torch import Tensor


def with_error(value: float, stderr: float) -> str:
    """Write a value and its standard error to the digits that the error leaves meaningful.

    The error keeps one significant digit, two where it begins with a 1.

    >>> with_error(41.2837, 0.213)
    '41.3 ± 0.2'
    >>> with_error(0.000012345, 0.0000013)
    '(1.23 ± 0.13)e-05'
    >>> with_error(3.0, 0.0)
    '3 ± 0'
    >>> with_error(5115.0, 662.0)
    '5100 ± 700'
    """
    if not (math.isfinite(value) and math.isfinite(stderr)) or stderr <= 0:
        return f"{value:.4g} ± {stderr:.1g}"
    largest = max(abs(value), stderr)
    power = math.floor(math.log10(largest))
    if -4 < power < 5:
        power = 0
    value, stderr = value / 10.0**power, stderr / 10.0**power
    first_digit = math.floor(math.log10(stderr))
    digits = 2 if stderr / 10.0**first_digit < 1.95 else 1
    decimals = digits - 1 - first_digit
    value, stderr = round(value, decimals), round(stderr, decimals)
    shown = max(0, decimals)
    text = f"{value:.{shown}f} ± {stderr:.{shown}f}"
    return text if power == 0 else f"({text})e{power:+03d}"


@dataclass(frozen=True)
class Estimate:
    """A mean over random samples, with its standard error.

    Attributes
    ----------
    value : float
        The mean.
    stderr : float
        Its standard error: the standard deviation of the samples over the square root of their
        number; ``nan`` for a single sample. Of a proportion, see :meth:`of_hits`. It tells of
        what the method drew at random alone (probes, minibatches, groups, directions), or of
        the examples, where these are the samples; 0 where nothing was drawn: the value is
        exact for the given data.
    samples : int
        Number of independent samples; of samples that are not alike, one more than the degrees
        of freedom of the error.
    matvecs : int
        Matrix-vector products spent; 0 where none were needed.
    stopped : {"", "rtol", "budget"}
        What ended the sampling where a relative error was asked for: it was reached, or the
        products were spent first. Empty where none was asked for.

    Examples
    --------
    >>> print(Estimate(41.2837, 0.213, samples=64))
    41.3 ± 0.2
    """

    value: float
    stderr: float
    samples: int
    matvecs: int = 0
    stopped: Literal["", "rtol", "budget"] = ""

    @classmethod
    def of(cls, samples: Tensor | np.ndarray | list[float], matvecs: int = 0) -> Estimate:
        """Make the estimate from its independent samples, shape (m,)."""
        if isinstance(samples, Tensor):
            samples = samples.detach().double().cpu().numpy()
        values = np.asarray(samples, dtype=float)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"samples must be a vector of at least one, got {values.shape}")
        with np.errstate(invalid="ignore"):  # of an infinite sample it is nan
            spread = values.std(ddof=1) if values.size > 1 else math.nan
        stderr = float(spread / math.sqrt(values.size))
        return cls(float(values.mean()), stderr, values.size, matvecs)

    @classmethod
    def of_hits(cls, hits: Tensor) -> Estimate:
        """Make the estimate of a proportion from its hits (1) and misses (0), shape (m,).

        The standard error is sqrt(p (1 - p) / (m + 4)), with p after two more hits and two more
        misses (Agresti and Coull 1998, doi:10.1080/00031305.1998.10480550). Without them the
        error would be zero where all examples are right, however few they are. The interval is
        Wilson's: it is not symmetric about the value, and never leaves 0 to 1.

        >>> print(Estimate.of_hits(torch.ones(100)))
        1.000 ± 0.013
        """
        found = cls.of(hits)
        count = found.samples + 4
        share = (found.value * found.samples + 2) / count
        return _Proportion(found.value, math.sqrt(share * (1 - share) / count), found.samples)

    @property
    def relative_error(self) -> float:
        """The standard error over the size of the value."""
        if self.stderr == 0:
            return 0.0
        return self.stderr / abs(self.value) if self.value else math.inf

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's t interval that covers the true mean with probability `level`."""
        check_level(level)
        if self.samples < 2:
            return -math.inf, math.inf
        half = float(special.stdtrit(self.samples - 1, 0.5 + level / 2)) * self.stderr
        return self.value - half, self.value + half

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return with_error(self.value, self.stderr)


def check_level(level: float) -> None:
    """Refuse a level of confidence that is no probability."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")


class _Proportion(Estimate):
    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's interval."""
        check_level(level)
        squared = float(special.ndtri(0.5 + level / 2)) ** 2 / self.samples
        middle = self.value + squared / 2
        half = math.sqrt(squared * (self.value * (1 - self.value) + squared / 4))
        low, high = (middle - half) / (1 + squared), (middle + half) / (1 + squared)
        return max(low, 0.0), min(high, 1.0)


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy at one theta.

    The standard errors say how far the mean over another sample of as many examples from the
    same distribution would typically lie (for the accuracy, see :meth:`Estimate.of_hits`); over
    the given examples both means are exact.

    Attributes
    ----------
    loss : Estimate
        Mean loss over the examples.
    accuracy : Estimate or None
        Fraction of examples classified correctly; None where targets are not class labels.
    """

    loss: Estimate
    accuracy: Estimate | None


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Eigenvalues and eigenvectors of a symmetric operator, with what is known of their error.

    Attributes
    ----------
    values : Tensor, shape (k,)
        Eigenvalues, in the order that was asked for.
    vectors : Tensor, shape (n, k)
        Orthonormal eigenvectors, one to a column.
    residuals : Tensor, shape (k,)
        ``|A v - value * v|``: up to rounding, an eigenvalue of ``A`` lies within this distance
        of each value. Lanczos knows it without another product, from how its basis is coupled
        to the rest of the space; what is smaller than the rounding of products is raised to
        that.
    converged : Tensor of bool, shape (k,)
        Whether each residual met the tolerance that was asked for.
    matvecs : int
        Matrix-vector products spent.
    """

    values: Tensor
    vectors: Tensor = field(repr=False)
    residuals: Tensor
    converged: Tensor
    matvecs: int

    @property
    def relative_residuals(self) -> Tensor:
        """Each residual over the size of its eigenvalue, shape (k,)."""
        return self.residuals / self.values.abs().clamp_min(torch.finfo(self.values.dtype).tiny)

    @property
    def negative(self) -> int:
        """How many of the values are negative by more than their residual."""
        return int((self.values < -self.residuals).sum())

    @property
    def condition_number(self) -> float:
        """Largest over smallest magnitude among the values.

        A lower bound for the condition number of the whole operator.
        """
        sizes = self.values.double().abs()
        return float(sizes.max() / sizes.min()) if float(sizes.min()) > 0 else math.inf

    def __len__(self) -> int:
        return len(self.values)

    def table(self) -> pd.DataFrame:
        """One row per eigenpair: value, residual, converged."""
        columns = {
            "eigenvalue": self.values.double().cpu().numpy(),
            "residual": self.residuals.double().cpu().numpy(),
            "converged": self.converged.cpu().numpy(),
        }
        return pd.DataFrame(columns, index=pd.RangeIndex(1, len(self) + 1, name="pair"))

    @property
    def written(self) -> list[str]:
        """Each eigenvalue with its residual, as text.

        A residual below a ten-thousandth of the value is written as that: it bounds the error
        all the same, and a table has room for five digits.
        """
        pairs = zip(self.values.tolist(), self.residuals.tolist(), strict=True)
        return [
            with_error(value, max(residual, 1e-4 * abs(value)) if residual else 0.0)
            for value, residual in pairs
        ]

    def __str__(self) -> str:
        done = int(self.converged.sum())
        note = f"{done} of {len(self)} converged, {self.matvecs} products"
        return f"{', '.join(self.written)} ({note})"
