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

import pandas as pd
import yaml

from landscape_core.experiments.statistics import Interval
from landscape_core.experiments.store import REFERENCE, Store
from landscape_core.show.counterexamples import refutation
from landscape_core.show.measures import MEASURES, Where, rows_where
from landscape_core.show.rules import contradiction, verdict, written

CLAIMS = REFERENCE / "claims.yaml"
SCALE = {
    "dataset": "{}", "examples": "{} training images", "validation": "{} of them held out",
    "epochs": "{} epochs", "clip": "gradients clipped at a norm of {}",
    "measured": "measured on {} images",
}  # fmt: skip
OF_ALL = ("train_", "test_", "line_test_")  # how columns begin that are not of those measured
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
        How the verdict follows from the measurement, and whether it was written down late.
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
        ``below: x``, ``between: [a, b]``; `late` is true where these were written down when
        there were records already, and the page says so. A claim that contradicts itself has
        `inconsistent` in their place: see :func:`contradiction`. A theorem that fails has
        `refuted_by`, the name of a function of :data:`COUNTEREXAMPLES`.
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
        return self.folder.is_dir() and len(rows_where(self.rows, some)) > 0

    def scale(self, columns: Sequence[str], where: Where, *others: Where) -> str:
        """Data, images and epochs of the records with these values, machines of all.

        The images that were measured are those of these columns.
        """
        rows, told = rows_where(self.rows, where), []
        of_all = all(each.startswith(OF_ALL) or each.endswith("_all") for each in columns)
        for name, text in SCALE.items():
            if name == "clip" and name in rows and not rows[name].any():
                told.append("gradients not clipped")
            elif name in rows and not (of_all and name == "measured"):
                values = [v if isinstance(v, str) else f"{v:,}" for v in rows[name].unique()]
                told.append(text.format(" or ".join(values)))
        keys = {key for side in (where, *others) for key in rows_where(self.rows, side).key}
        machines = sorted({self.machines[key] for key in keys})
        return ", ".join([*told, " and ".join(machines)])


def _entry(claim: Mapping[str, Any], open_store: Callable[[str], _ReadOnce]) -> Entry:
    try:
        return _judged(claim, open_store)
    except KeyError as error:
        raise ValueError(f"{claim.get('claim')!r}: {error} is missing") from error
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{claim.get('claim')!r}: {error}") from error


def _judged(claim: Mapping[str, Any], open_store: Callable[[str], _ReadOnce]) -> Entry:
    told = {
        name: str(claim[name]).strip() for name in ("claim", "source", "explanation", "chapter")
    }
    if "refuted_by" in claim:
        reason = refutation(claim["refuted_by"])
        return Entry(measured=None, verdict="not reproduced", rule=reason, scale="", **told)
    if "inconsistent" in claim:
        reason = contradiction(claim["inconsistent"])
        return Entry(measured=None, verdict="not well posed", rule=reason, scale="", **told)
    arguments, rule = dict(claim["measure"]), claim["rule"]
    late = "; written down when the records were there" if claim.get("late") else ""
    sentence = written(rule) + late
    name, store = arguments.pop("of"), open_store(arguments.pop("store"))
    if name not in MEASURES:
        known = ", ".join(MEASURES)
        raise ValueError(f"measure must be one of {known}, got {name!r}")
    sides = [arguments[side] for side in ("where", "base") if side in arguments]
    if not all(store.has(side) for side in sides):
        measured, scale = Interval(math.nan, math.nan, math.nan, 0), ""
    else:
        measured = MEASURES[name](store, **arguments)
        named = [arguments.get(each) for each in ("column", "array", "x", "y")]
        scale = store.scale([each for each in named if each], *sides)
    return Entry(
        measured=measured,
        verdict=verdict(measured, rule),
        rule=sentence,
        scale=scale,
        **told,
    )
