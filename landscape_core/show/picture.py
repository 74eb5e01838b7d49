"""A figure that fits where it is shown: still in print, interactive on a page."""

from __future__ import annotations

import io
import json
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from PIL import Image

from landscape_core.show.style import DPI, style

PLOTLY_MIME = "application/vnd.plotly.v1+json"


class Picture:
    """A still figure (matplotlib), with or without an interactive twin (plotly).

    A notebook shows the twin where it can, and the still elsewhere: in print, on code hosting
    sites, in the PDF.

    Attributes
    ----------
    still : matplotlib.figure.Figure
    interactive : plotly.graph_objects.Figure or None
    """

    def __init__(self, still: Figure, interactive: go.Figure | None = None) -> None:
        self.still = still
        self.interactive = interactive

    def png(self) -> bytes:
        """The still as PNG."""
        return self._file("png")

    def _file(self, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        with style():
            self.still.savefig(buffer, format=kind, bbox_inches="tight", pil_kwargs=options)
        return buffer.getvalue()

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write ``name.png`` and, with a twin, a self-contained ``name.html`` into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.png"]
        paths[0].write_bytes(self.png())
        if self.interactive is not None:
            paths.append(folder / f"{name}.html")
            self.interactive.write_html(paths[1], include_plotlyjs=True)
        return paths

    @property
    def alt(self) -> str:
        """The axes of the still and what is drawn, in words, for readers who do not see it.

        >>> figure = Figure()
        >>> axes = figure.subplots()
        >>> line = axes.plot([1, 2], label="MLP")
        >>> axes.set(title="Training", xlabel="epoch", ylabel="loss")
        [...]
        >>> Picture(figure).alt
        'Training: loss over epoch (MLP)'
        """
        described = [text for text in map(_described, self.still.axes) if text]
        keys = [text.get_text() for legend in self._legends() for text in legend.get_texts()]
        told = "; ".join(dict.fromkeys(described)) or "figure"
        untold = [key for key in keys if key not in told]
        return f"{told}; key: {', '.join(untold)}" if untold else told

    @property
    def keep_colours(self) -> bool:
        """Whether colours mean heights, so that a dark page must not turn them."""
        fields = ContourSet | QuadMesh
        return any(
            hasattr(axes, "get_zlabel") or any(isinstance(c, fields) for c in axes.collections)
            for axes in self.still.axes
        )

    def _legends(self) -> list[Any]:
        """Legends of the figure and of its parts; those of axes are told with the axes."""
        return [each for part in (self.still, *self.still.subfigs) for each in part.legends]

    def __repr__(self) -> str:
        return "Picture(still)" if self.interactive is None else "Picture(still, interactive)"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        # JupyterLab's renderer of plotly shows a PNG of the same output instead of the live
        # figure; a JPEG it leaves to those who cannot draw the figure.
        if self.interactive is None:
            kind, image = "image/png", self.png()
        else:
            kind, image = "image/jpeg", self._file("jpeg", quality=95, subsampling=0)
        wide, high = (side * 100 // DPI for side in Image.open(io.BytesIO(image)).size)
        told = {
            "alt": self.alt,
            "keep_colours": self.keep_colours,
            "width": wide,
            "height": high,
        }
        bundle = {"text/plain": repr(self), kind: b64encode(image).decode()}
        return bundle | self._twin(), {kind: told}

    def _twin(self) -> dict[str, Any]:
        """The interactive figure, as the notebook at hand can show it."""
        if self.interactive is None:
            return {}
        if "google.colab" in sys.modules:  # Colab does not know plotly's own type
            html = self.interactive.to_html(full_html=False, include_plotlyjs="cdn")
            return {"text/html": html}
        return {PLOTLY_MIME: json.loads(self.interactive.to_json())}


def _described(axes: Axes) -> str:
    """Title, axes and series of one panel; of a colour bar, what the colours mean."""
    x, y, title = axes.get_xlabel(), axes.get_ylabel(), axes.get_title()
    if axes.get_label() == "<colorbar>":
        return f"colour: {y or x}" if x or y else ""
    if hasattr(axes, "get_zlabel"):  # a surface
        x, y = f"{x} and {y}", axes.get_zlabel()
    plotted = " over ".join(part for part in (y, x) if part)
    series = [text for text in axes.get_legend_handles_labels()[1] if text]
    told = ": ".join(part for part in (title, plotted) if part)
    return f"{told} ({', '.join(map(str, series))})" if series else told
