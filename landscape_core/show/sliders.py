"""What the interactive figures with a slider have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from landscape_core.show.surfaces import GREY, MARK

LOG = {"type": "log", "dtick": "D2", "tickformat": "~g"}  # at 1, 2 and 5, written in full
GRID = "rgba(128,128,128,0.35)"
NO_BUTTONS = ["zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale", "resetscale"]


def slider(name: str, labels: Sequence[str], changes: Sequence[list[Any]], active: int) -> Any:
    """A slider that restyles traces; it needs no frames, so any page that draws it moves it.

    Parameters
    ----------
    name : str
        Stands before the chosen label.
    labels : sequence of str
    changes : sequence of list
        Arguments of plotly's ``restyle`` for each label.
    active : int
    """
    return {
        "active": active,
        "steps": [
            {"label": label, "method": "restyle", "args": change}
            for label, change in zip(labels, changes, strict=True)
        ],
        "currentvalue": {"prefix": f"{name}: ", "font": {"size": 15}},
        "pad": {"t": 48, "b": 6},
        "bgcolor": "rgba(128,128,128,0.25)",
        "activebgcolor": MARK,
        "bordercolor": GREY,
        "tickcolor": GREY,
    }


def seen(groups: Sequence[int | None], active: int) -> list[bool]:
    """Which traces show at a position: those of its group, and those of none.

    >>> seen([0, 0, 1, None], 1)
    [False, False, True, True]
    """
    return [group is None or group == active for group in groups]


def axis(title: str = "", **options: Any) -> dict[str, Any]:
    """A quiet axis, legible on a white page and on a dark one."""
    text = {"text": title, "font": {"size": 12}, "standoff": 6}
    return {"color": GREY, "gridcolor": GRID, "zeroline": False, "title": text, **options}


def layout(height: int, sliders: list[Any], **options: Any) -> dict[str, Any]:
    """Layout of a flat figure with sliders; a finger that drags on it scrolls the page."""
    return {
        "sliders": sliders,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "font": {"color": GREY},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 64, "r": 36, "t": 40, "b": 10},
        "height": height,
        "template": "none",
        "dragmode": False,
        "modebar": {"remove": NO_BUTTONS},
        **options,
    }


def spread(count: int, most: int = 4) -> list[int]:
    """Up to `most` of `count` positions, evenly from first to last: what a still shows.

    >>> spread(10), spread(3)
    ([0, 3, 6, 9], [0, 1, 2])
    """
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
