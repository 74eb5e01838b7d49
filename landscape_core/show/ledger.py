"""Claims confronted with records: what was said, what was measured, and the verdict by rule.

Claims, rules and explanations are one file, ``reference/claims.yaml``; the reference records
give every number, when the ledger is made.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import linregress
from scipy.stats import t as student_t

from landscape_core.experiments.statistics import (
    Interval,
    correlation,
    mean_interval,
    paired_difference,
)
from landscape_core.experiments.store import REFERENCE, Store
from landscape_core.show.rules import contradiction, verdict, written

CLAIMS = REFERENCE / "claims.yaml"
Where = Mapping[str, Any]
SCALE = {
    "dataset": "{}", "examples": "{} training images", "validation": "{} of them held out",
    "epochs": "{} epochs", "measured": "curvature of {} images",
}  # fmt: skip
SIGNS = {
    "reproduced": "✓", "partly": "≈", "not reproduced": "✗", "not well posed": "?",
    "not yet measured": "…",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One claim and what became of it.

    Attributes
    ----------
    claim, source : str
        What was claimed, and by which study.
    measured : Interval or None
        None where the claim is no statement about a measurement.
    verdict : {"reproduced", "partly", "not reproduced", "not well posed", "not yet measured"}
    rule : str
        How the verdict follows from the measurement; it was written down with the claim.
    explanation, chapter : str
    scale : str
        Of the records: data, images, epochs, machine.
    """

    claim: str
    source: str
    measured: Interval | None
    verdict: str
    rule: str
    explanation: str
    chapter: str
    scale: str


class Ledger:
    """All claims with their verdicts, in the order of the file.

    Parameters
    ----------
    entries : sequence of Entry
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = list(entries)

    def table(self) -> pd.DataFrame:
        """One row to a claim."""
        return pd.DataFrame([vars(entry) for entry in self.entries])

    def counts(self) -> dict[str, int]:
        """How many claims have each verdict."""
        return {str(k): int(v) for k, v in self.table()["verdict"].value_counts().items()}

    def _repr_html_(self) -> str:
        say = html.escape
        rows = "".join(
            f'<tr><td><a href="#claim-{number}">{say(entry.claim)}</a></td>'
            f"<td>{SIGNS[entry.verdict]} {say(entry.verdict)}</td></tr>"
            for number, entry in enumerate(self.entries, 1)
        )
        parts = [
            '<table class="dataframe lc-overview"><thead><tr><th scope="col">claim</th>'
            f'<th scope="col">verdict</th></tr></thead><tbody>{rows}</tbody></table>'
        ]
        source = ""
        for number, entry in enumerate(self.entries, 1):
            measured, rule = "", "Rule" if entry.measured else "Why"
            if entry.measured is not None and math.isfinite(entry.measured.value):
                measured = f"Measured: {say(str(entry.measured))}; {say(entry.scale)}<br>"
            if entry.source != source:
                source = entry.source
                parts.append(f"<h2>{say(source[0].upper() + source[1:])}</h2>")
            parts.append(
                f'<div class="lc-claim" id="claim-{number}"><h3>{say(entry.claim)}</h3>'
                f'<p><strong class="lc-verdict" data-verdict="{say(entry.verdict)}">'
                f"{SIGNS[entry.verdict]} {say(entry.verdict)}</strong></p>"
                f"<p>{measured}{rule}: {say(entry.rule)}</p>"
                f"<p>{say(entry.explanation)} "
                f'<a href="{say(entry.chapter)}">The figure</a>.</p></div>'
            )
        return "\n".join(parts)

    def __repr__(self) -> str:
        return "\n".join(f"{entry.verdict:>16}  {entry.claim}" for entry in self.entries)


def ledger(claims: str | Path | None = None, reference: str | Path | None = None) -> Ledger:
    """Confront the claims of a file with the reference records.

    Parameters
    ----------
    claims : path or None
        None is the file that ships with the package. A list of mappings: `claim`, `source`,
        `chapter`, `explanation`; `measure`, a mapping with the name of a function of
        :data:`MEASURES` as `of` and its arguments; and `rule`, one of ``above: x``,
        ``below: x``, ``between: [a, b]``. A claim that contradicts itself has `inconsistent`
        in their place: see :func:`contradiction`.
    reference : path or None
        The folder of the records; None is that of the package.

    Raises
    ------
    ValueError
        If an entry of the file cannot be read; the sentence names the claim.
    """
    entries = yaml.safe_load(Path(claims or CLAIMS).read_text())
    folder = Path(reference or REFERENCE)
    open_store = cache(lambda name: _ReadOnce(folder / name))
    return Ledger([_entry(each, open_store) for each in entries])


# --- measures: from records to an interval ----------------------------------------------------


def _rows(table: pd.DataFrame, where: Where) -> pd.DataFrame:
    for name, value in where.items():
        several = value if isinstance(value, list) else [value]
        table = table[table[name].isin(several)]
    return table


def mean(store: Store, column: str, where: Where) -> Interval:
    """Mean of a column over seeds."""
    return mean_interval(_rows(store.table(), where)[column].dropna())


def final(store: Store, column: str, where: Where) -> Interval:
    """Mean over seeds of a column of the history, at the last epoch of training."""
    ends = [record.tables["history"][column].iloc[-1] for record in store.find(**where)]
    return mean_interval(ends)


def difference(
    store: Store, column: str, where: Where, base: Where, minus: str | None = None
) -> Interval:
    """Mean paired difference over seeds, of rows `where` and rows `base`.

    With `minus`, of the column minus that one.
    """
    table = store.table()
    values = table[column] - (table[minus] if minus else 0.0)
    table = table.assign(value=values)
    here, there = (
        _rows(table, rows).dropna(subset="value").set_index("seed")["value"]
        for rows in (where, base)
    )
    both = here.index.intersection(there.index)
    return paired_difference(here[both], there[both])


def ratio(store: Store, column: str, where: Where, base: Where) -> Interval:
    """Geometric mean of paired ratios over seeds."""
    table = store.table()
    table = table.assign(log=np.log(table[column]))
    here, there = (_rows(table, rows).set_index("seed")["log"] for rows in (where, base))
    both = here.index.intersection(there.index)
    return _exponential(paired_difference(here[both], there[both]))


def gain(store: Store, column: str, by: str, where: Where, base: Where) -> Interval:
    """Paired difference over seeds between the best setting and a base.

    The best is chosen by the same seeds, which makes the difference a little too large.
    """
    best = _rows(store.table(), where).groupby(by)[column].mean().idxmax()
    return difference(store, column, {**where, by: best}, base)


def unrest(store: Store, column: str, where: Where, base: Where, last: int = 10) -> Interval:
    """Ratio over seeds of a column's variance over the last epochs of training."""
    logs: list[list[float]] = []
    for rows in (where, base):
        runs = sorted(store.find(**rows), key=lambda record: int(record.parameters["seed"]))
        ends = [record.tables["history"][column].tail(last) for record in runs]
        logs.append([math.log(end.var()) for end in ends])
    return _exponential(paired_difference(logs[0], logs[1]))


def rank_correlation(
    store: Store, x: str, y: str, where: Where, minus: str | None = None,
    cells: Sequence[str] = (),
) -> Interval:  # fmt: skip
    """Spearman's correlation of two columns over runs; with `minus`, of y minus that one.

    With `cells`, of the means over the runs in which these columns agree: the seeds of one
    network and setting are no independent points beside those of another.
    """
    table = _rows(store.table(), where)
    table = table.assign(difference=table[y] - (table[minus] if minus else 0.0))
    if cells:
        table = table.groupby(list(cells))[[x, "difference"]].mean()
    return correlation(table[x], table["difference"])


def exponent(store: Store, x: str, y: str, where: Where) -> Interval:
    """The power b of y = a x^b over runs, by least squares of the logarithms."""
    table = _rows(store.table(), where)
    line = linregress(np.log(table[x].astype(float)), np.log(table[y].astype(float)))
    half = float(student_t.ppf(0.975, len(table) - 2) * line.stderr)
    return Interval(line.slope, line.slope - half, line.slope + half, len(table))


def _exponential(logs: Interval) -> Interval:
    """The interval of a ratio from that of its logarithm."""
    value, low, high = (math.exp(x) for x in (logs.value, logs.low, logs.high))
    return Interval(value, low, high, logs.n, logs.level, logs.note)


MEASURING = (mean, final, difference, ratio, gain, unrest, rank_correlation, exponent)
MEASURES: dict[str, Callable[..., Interval]] = {each.__name__: each for each in MEASURING}


class _ReadOnce(Store):
    """A store that is read once, for all the claims about it."""

    @cached_property
    def rows(self) -> pd.DataFrame:
        return super().table()

    @cached_property
    def machines(self) -> dict[str, str]:
        """The machine of each record, by its key."""
        return {record.key: record.machine for record in self._records()}

    def table(self) -> pd.DataFrame:
        return self.rows

    def has(self, some: Where) -> bool:
        """Whether there are records with these values."""
        return self.folder.is_dir() and len(_rows(self.rows, some)) > 0

    def scale(self, where: Where, *others: Where) -> str:
        """Data, images and epochs of the records with these values, machines of all."""
        rows, told = _rows(self.rows, where), []
        for name, text in SCALE.items():
            if name in rows:
                values = [v if isinstance(v, str) else f"{v:,}" for v in rows[name].unique()]
                told.append(text.format(" or ".join(values)))
        keys = {key for side in (where, *others) for key in _rows(self.rows, side).key}
        machines = sorted({self.machines[key] for key in keys})
        return ", ".join([*told, " and ".join(machines)])


def _entry(claim: Mapping[str, Any], open_store: Callable[[str], _ReadOnce]) -> Entry:
    try:
        return _judged(claim, open_store)
    except KeyError as error:
        raise ValueError(f"{claim.get('claim')!r}: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{claim.get('claim')!r}: {error}") from error


def _judged(claim: Mapping[str, Any], open_store: Callable[[str], _ReadOnce]) -> Entry:
    told = {
        name: str(claim[name]).strip() for name in ("claim", "source", "explanation", "chapter")
    }
    if "inconsistent" in claim:
        reason = contradiction(claim["inconsistent"])
        return Entry(measured=None, verdict="not well posed", rule=reason, scale="", **told)
    arguments, rule = dict(claim["measure"]), claim["rule"]
    sentence = written(rule)
    name, store = arguments.pop("of"), open_store(arguments.pop("store"))
    if name not in MEASURES:
        known = ", ".join(MEASURES)
        raise ValueError(f"measure must be one of {known}, got {name!r}")
    sides = [arguments[side] for side in ("where", "base") if side in arguments]
    if not all(store.has(side) for side in sides):
        measured, scale = Interval(math.nan, math.nan, math.nan, 0), ""
    else:
        measured = MEASURES[name](store, **arguments)
        scale = store.scale(*sides)
    return Entry(
        measured=measured,
        verdict=verdict(measured, rule),
        rule=sentence,
        scale=scale,
        **told,
    )
