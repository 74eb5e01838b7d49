"""Tables of results, with every error in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd


def summary_table(columns: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One column per network, one row per quantity; estimates print with their errors.

    A quantity that a network lacks is shown as a dash.

    Examples
    --------
    >>> from landscape_core.results import Estimate
    >>> summary_table({"MLP": {"trace": Estimate(41.28, 0.21, 64), "parameters": 9034}})
                       MLP
    trace       41.3 ± 0.2
    parameters       9,034
    """
    written = {
        name: {row: _write(value) for row, value in rows.items()}
        for name, rows in columns.items()
    }
    return pd.DataFrame(written).fillna("–")


def _write(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
