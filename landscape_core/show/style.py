"""One look for every figure: colours that colour-blind readers tell apart, quiet axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import matplotlib as mpl
import seaborn as sns
from matplotlib.axis import Axis, XAxis
from matplotlib.ticker import LogLocator, NullFormatter

P = ParamSpec("P")
R = TypeVar("R")

# In an order in which the first five differ as well where a dark page turns white into black.
_PALETTE = sns.color_palette("colorblind").as_hex()
COLOURS: tuple[str, ...] = tuple(_PALETTE[i] for i in (0, 1, 2, 4, 9, 3, 7, 5, 6, 8))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # a second cue besides colour
LINES = ("-", "--", "-.", ":")
LANDSCAPE = "viridis"  # perceptually uniform, readable in grey
WIDTH = 7.0  # inches; one text column
DPI = 200


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib settings of the project's figures, inside the block only."""
    rc = {
        **sns.axes_style("ticks"),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e3e3e3",
        "grid.linewidth": 0.6,
        "font.family": ["DejaVu Sans"],
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "errorbar.capsize": 2.5,
        "figure.dpi": 100,
        "savefig.dpi": DPI,
        "savefig.facecolor": "white",
    }
    with mpl.rc_context(rc):
        yield


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a plotting function under :func:`style`."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with style():
            return function(*args, **kwargs)

    return run


def looks(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Colour, marker and line style for each name, in order.

    >>> looks(["MLP", "CNN"])["CNN"]["marker"]
    's'
    """
    return {
        name: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[i % len(LINES)],
        }
        for i, name in enumerate(names)
    }


def plain_log_ticks(axis: Axis) -> None:
    """Write the ticks of a logarithmic axis as plain numbers, and enough of them."""
    low, high = axis.get_view_interval()
    if high < 100 * low:
        # Beside each other, in a narrow panel, three to a decade would touch.
        crowded = isinstance(axis, XAxis) and high > 12 * low
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if crowded else (1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
    if high < 1e5 and low > 1e-5:
        axis.set_major_formatter("{x:g}")
