"""Statistics over seeds: intervals, paired differences, correlations.

Each says how many samples it stands on, and what so few of them cannot show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy import stats

from landscape_core.results import check_level

Method = Literal["pearson", "spearman", "kendall"]
Values = Sequence[float] | np.ndarray | pd.Series
FEW = 5  # fewer samples than this are said out loud
MANY = 50  # pairs from which a bootstrap covers no less than Student's interval
ENOUGH = 10  # pairs from which the usual p-values of correlations hold well enough


@dataclass(frozen=True)
class Interval:
    """A number with an interval.

    Attributes
    ----------
    value, low, high : float
        The ends are nan where there are too few samples for an interval.
    n : int
        Samples.
    level : float
        Of confidence.
    note : str
        What so few samples cannot show; empty where there are enough.
    rows : int or None
        Of the group that a table is about, which has them in a column of its own: where no
        value is missing, they are n, and the number is written without it.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95
    note: str = ""
    rows: int | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        ends = "no interval" if math.isnan(self.low) else f"{self.low:.3g} to {self.high:.3g}"
        if self.n == self.rows and not self.note:  # the row says it
            return f"{self.value:.3g} ({ends})"
        note = f"; {self.note}" if self.note else ""
        return f"{self.value:.3g} ({ends}, n = {self.n}{note})"

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside of the interval."""
        return self.low > 0 or self.high < 0


def mean_interval(
    values: Values, level: float = 0.95, limits: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    r"""The mean of independent samples, such as seeds, with Student's interval.

    .. math:: \bar x \pm t_{n-1}\, s / \sqrt n

    Parameters
    ----------
    values : sequence of float
    level : float
        Of confidence.
    limits : (float, float)
        What no sample can be below or above, as 0 and 1 for a share; the interval ends there.

    Examples
    --------
    >>> print(mean_interval([1.0, 2.0, 3.0]))
    2 (-0.484 to 4.48, n = 3; an interval from 3 samples is very uncertain)
    """
    check_level(level)
    x = _finite(values, "values")
    lowest, highest = limits
    if x.min() < lowest or x.max() > highest:
        raise ValueError(f"values must lie within {limits}, got {x.min():g} to {x.max():g}")
    n, mean = len(x), float(x.mean())
    if n < 2:
        return Interval(mean, math.nan, math.nan, n, level, note_on(n))
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
    low, high = max(lowest, mean - half), min(highest, mean + half)
    return Interval(mean, low, high, n, level, note_on(n))


def limits_of(column: str, values: Values) -> tuple[float, float]:
    """What the values of a column cannot pass: an accuracy is a share, unless in per cent."""
    share = column.endswith("accuracy") and np.min(values) >= 0 and np.max(values) <= 1
    return (0.0, 1.0) if share else (-math.inf, math.inf)


def paired_difference(
    a: Values, b: Values, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of ``a - b`` over pairs, such as two treatments of the same seeds.

    The interval is Student's, from fifty pairs on a bootstrap over pairs (bias-corrected and
    accelerated; Efron 1987, doi:10.1080/01621459.1987.10478410). Of five normal differences a
    bootstrap at 95 % covers 84 %, of twenty 92 %; Student's interval covers 95 % of both, and
    no less than the bootstrap where the differences are skewed.

    Examples
    --------
    >>> round(paired_difference([2.0, 3.0, 4.1, 5.2, 6.0], [1.0, 2.0, 3.0, 4.0, 5.0]).value, 3)
    1.06
    """
    check_level(level)
    if isinstance(a, pd.Series) and isinstance(b, pd.Series) and not a.index.equals(b.index):
        raise ValueError("pairs of two series need the same index, in the same order")
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape:
        raise ValueError(f"pairs need as many of one as of the other, got {len(x)}, {len(y)}")
    difference = _finite(x - y, "differences")
    if len(difference) < MANY or np.ptp(difference) == 0:
        return mean_interval(difference, level)
    found = stats.bootstrap(
        (difference,), np.mean, confidence_level=level, n_resamples=resamples,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    mean = float(difference.mean())
    return Interval(mean, float(found.low), float(found.high), len(difference), level)


def correlation(
    x: Values, y: Values, method: Method = "spearman", level: float = 0.95
) -> Interval:
    r"""A correlation with its interval, by Fisher's transformation.

    .. math:: \tanh\left( \operatorname{artanh} r \pm z\, c / \sqrt{n - d} \right)

    with c = 1, d = 3 for Pearson, :math:`c^2 = 1 + r^2 / 2`, d = 3 for Spearman, and
    :math:`c^2 = 0.437`, d = 4 for Kendall (Bonett and Wright 2000,
    doi:10.1007/BF02294183). Two points always correlate perfectly: from fewer than five there
    is no interval.

    Examples
    --------
    >>> print(correlation([1, 2], [5, 3]))
    -1 (no interval, n = 2; two points always give 1 or -1)
    """
    if method not in get_args(Method):
        options = ", ".join(map(repr, get_args(Method)))
        raise ValueError(f"method must be one of {options}, got {method!r}")
    check_level(level)
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"pairs need as many of one as of the other, got {len(a)}, {len(b)}")
    _finite(np.concatenate([a, b]), "values")
    n = len(a)
    if n < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        constant = "a quantity that does not vary correlates with nothing"
        return Interval(math.nan, math.nan, math.nan, n, level, constant)
    call: dict[str, Any] = {
        "pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau,
    }  # fmt: skip
    r = float(call[method](a, b).statistic)
    if n < FEW:
        return Interval(r, math.nan, math.nan, n, level, note_on(n, pairs=True))
    spread = {"pearson": 1.0, "spearman": 1 + r**2 / 2, "kendall": 0.437}[method]
    error = math.sqrt(spread / (n - (4 if method == "kendall" else 3)))
    if abs(r) > 1 - 1e-12:
        perfect = "a perfect correlation has no such interval"
        return Interval(r, math.nan, math.nan, n, level, perfect)
    half = float(stats.norm.ppf((1 + level) / 2)) * error
    centre = math.atanh(r)
    low, high = math.tanh(centre - half), math.tanh(centre + half)
    return Interval(r, low, high, n, level, "")


def holm(p: Values) -> np.ndarray:
    """P-values corrected for their number, by Holm's method; nan stays and is not counted.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=float)
    corrected = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return corrected


def p_value(x: pd.Series, y: pd.Series, method: Method) -> float:
    """Of a correlation; of fewer than ten pairs from all permutations."""
    n = len(x)
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    if n < ENOUGH:
        return _p_of_permutations(x.to_numpy(float), y.to_numpy(float), method)
    call: Any = {
        "pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau,
    }[method]  # fmt: skip
    # What approximates the distribution of ranks gives 0 where they agree perfectly.
    least = 0.0 if method == "pearson" else 2 / math.factorial(n)
    return max(float(call(x, y).pvalue), least)


def _p_of_permutations(a: np.ndarray, b: np.ndarray, method: Method) -> float:
    """The share of the orders of b that agree with a at least as well, in either direction."""
    orders = _orders(len(a))
    if method == "kendall":
        i, j = np.triu_indices(len(a), 1)
        up_a, up_b = (np.sign(np.subtract.outer(v, v)).astype(np.int8) for v in (a, b))
        agreement = up_b[orders[:, i], orders[:, j]] @ up_a[i, j]
    else:
        if method == "spearman":
            a, b = stats.rankdata(a), stats.rankdata(b)
        a, b = (v / np.linalg.norm(v) for v in (a - a.mean(), b - b.mean()))
        agreement = b[orders] @ a
    found = np.abs(agreement)
    return float(np.mean(found >= found[0] - 1e-9))  # the first order is the one at hand


@cache
def _orders(n: int) -> np.ndarray:
    """All orders of n places, shape (n!, n), the usual one first."""
    return np.array(list(permutations(range(n))), dtype=np.int8)


def _finite(values: Values | np.ndarray, name: str) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name} must be a list of at least one number, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite, got {x[~np.isfinite(x)][0]}")
    return x


def note_on(n: int, pairs: bool = False) -> str:
    """What so few samples cannot show; nothing where there are enough."""
    if n == 0:
        return "no values"
    if pairs and n == 2:
        return "two points always give 1 or -1"
    if n == 1:
        return "one sample has no spread"
    if pairs and n < FEW:
        return "too few pairs for an interval"
    return f"an interval from {n} samples is very uncertain" if n < FEW else ""
