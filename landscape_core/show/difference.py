"""Two slices of the loss and their difference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from landscape_core.geometry.slices import Plane
from landscape_core.show.picture import Picture
from landscape_core.show.style import WIDTH, styled
from landscape_core.show.surfaces import STEPS, fill_contours, loss_range


@styled
def plot_difference(
    planes: Mapping[str, Plane],
    *,
    labels: tuple[str, str] = STEPS,
) -> Picture:
    """Contours of two planes on one colour scale, and of the second minus the first.

    Parameters
    ----------
    planes : mapping of title to Plane
        Two, with the same steps along the same kind of directions: otherwise their difference
        at a point means nothing.
    labels : (str, str)
        Of the axes.

    Raises
    ------
    ValueError
        If there are not two planes, or their steps differ.
    """
    if len(planes) != 2:
        raise ValueError(f"planes must be two, a baseline and another, got {len(planes)}")
    (first, a), (second, b) = planes.items()
    if a.loss.shape != b.loss.shape or not (np.allclose(a.x, b.x) and np.allclose(a.y, b.y)):
        raise ValueError("the planes must have the same steps along both directions")
    low, high, log = loss_range([a.loss, b.loss], True)
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (title, plane) in zip(panels, ((first, a), (second, b)), strict=False):
        filled = fill_contours(axes, plane, (low, high), log)
        axes.set(title=title, xlabel=labels[0])
    bar = figure.colorbar(filled, ax=list(panels[:2]), orientation="horizontal", aspect=40)
    ticks = (np.geomspace if log else np.linspace)(low, high, 5)
    bar.set_ticks(ticks.tolist(), labels=[f"{tick:.3g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.set_label("loss (nats), logarithmic" if log else "loss (nats)")
    change = b.loss - a.loss
    reach = float(np.abs(change[np.isfinite(change)]).max(initial=0.0)) or 1.0
    # Straight near zero, logarithmic beyond: differences span several powers of ten.
    scale = SymLogNorm(linthresh=reach / 100, vmin=-reach, vmax=reach)
    shown = panels[2].pcolormesh(b.x, b.y, change, norm=scale, cmap="RdBu_r", shading="nearest")
    panels[2].set(title="second minus first", xlabel=labels[0])
    panels[0].set_ylabel(labels[1])
    panels[2].set(aspect="equal")
    panels[2].grid(False)
    bar = figure.colorbar(shown, ax=panels[2], orientation="horizontal", aspect=18)
    ticks = reach * np.array([-1.0, 0.0, 1.0])
    bar.set_ticks(ticks.tolist(), labels=[f"{tick:.2g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.set_label("difference (nats)")
    for axes in panels:
        axes.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=5)
    return Picture(figure)
