"""Rules of claims, written down before the results, and the verdicts that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from landscape_core.experiments.statistics import Interval

BOUNDS = ("above", "below", "between")


def verdict(measured: Interval, rule: Mapping[str, Any]) -> str:
    """What a rule says of a measurement.

    ``above: x`` is reproduced where the whole interval lies above x, partly where only the
    value does. ``between: [a, b]`` is reproduced where the whole interval lies in the range,
    partly where it meets the range, or the value is within a factor of two of it, or with
    ``near: x`` within x of it. A single run, which has no interval, reproduces nothing more
    than partly.

    >>> verdict(Interval(0.2, 0.1, 0.3, 5), {"above": 0})
    'reproduced'
    """
    kind, bound, near = _parts(rule)
    if not math.isfinite(measured.value):
        return "not yet measured"
    low, high = measured.low, measured.high
    best = "reproduced"
    if math.isnan(low):  # a single run has no interval that could lie anywhere
        low = high = measured.value
        best = "partly"
    if kind == "between":
        least, most = bound
        if least <= low and high <= most:
            return best
        if low <= most and high >= least:
            return "partly"
        twice = min(least / 2, 2 * least), max(most / 2, 2 * most)
        around = twice if near is None else (least - near, most + near)
        close = around[0] <= measured.value <= around[1]
        return "partly" if close else "not reproduced"
    sign = 1 if kind == "above" else -1
    nearest = min(sign * low, sign * high)
    if nearest > sign * bound:
        return best
    return "partly" if sign * measured.value > sign * bound else "not reproduced"


def _parts(rule: Mapping[str, Any]) -> tuple[str, Any, float | None]:
    """Kind, bound and margin of a rule."""
    if not isinstance(rule, Mapping):
        raise ValueError(f"a rule must be a mapping such as above: 0, got {rule!r}")
    kinds = [kind for kind in rule if kind != "near"]
    if len(kinds) != 1 or kinds[0] not in BOUNDS or ("near" in rule and kinds != ["between"]):
        got = " and ".join(map(repr, rule))
        raise ValueError(
            f"a rule must be one of {', '.join(BOUNDS)}, the last also with near, got {got}"
        )
    (kind,), near = kinds, rule.get("near")
    bound = rule[kind]
    between = kind == "between"
    numbers = [*bound] if between and isinstance(bound, list | tuple) else [bound]
    wanted = "two numbers" if between else "one number"
    real = all(isinstance(x, int | float) for x in [*numbers, 0 if near is None else near])
    if len(numbers) != 1 + between or not real:
        raise ValueError(f"the rule {kind} must have {wanted}, got {dict(rule)!r}")
    return kind, bound, near


def written(rule: Mapping[str, Any]) -> str:
    """A rule as a sentence."""
    kind, bound, near = _parts(rule)
    if kind == "between":
        ends = f"{bound[0]:g} to {bound[1]:g}"
        margin = "a factor of two" if near is None else f"{near:g}"
        return (
            f"reproduced if the whole 95 % interval is within {ends}, partly if it meets that "
            f"range or the value is within {margin} of it"
        )
    where = f"{kind} {bound:g}"
    return (
        f"reproduced if the whole 95 % interval is {where}, partly if only the value itself is"
    )


def contradiction(inconsistent: Mapping[str, Any]) -> str:
    """Why a claim is not well posed, from its own numbers.

    Parameters
    ----------
    inconsistent : mapping
        ``quotient: [a, b]`` with ``stated: c``, where a / b is not c; ``points: n`` of a
        correlation that n points cannot have otherwise; or ``reason``, a sentence.

    >>> contradiction({"quotient": [0.0717, 0.00129], "stated": 18})
    'stated as 18 times, but 0.0717 / 0.00129 = 55.6'
    """
    if "quotient" in inconsistent:
        above, below = inconsistent["quotient"]
        stated, real = inconsistent["stated"], above / below
        if abs(real / stated - 1) < 0.05:
            raise ValueError(f"{above} / {below} is {stated}: there is no contradiction")
        return f"stated as {stated:g} times, but {above:g} / {below:g} = {real:.1f}"
    if "points" in inconsistent:
        count = inconsistent["points"]
        if count > 2:
            raise ValueError(f"{count} points do not determine a correlation")
        return f"a correlation from {count} points is 1 or -1 whatever was measured"
    return str(inconsistent["reason"])
