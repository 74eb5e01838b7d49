"""A page of numbers, sentences and figures: shown in a notebook, printed, or saved."""

from __future__ import annotations

import html
import json
import math
import platform
import re
import textwrap
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pylatexenc.latexencode import unicode_to_latex

from landscape_core.results import Eigenpairs, Estimate, with_error
from landscape_core.show.picture import Picture

STYLE = """<style>
.lc-page {max-width: 46rem; margin: 0 auto; padding: 1rem; font: 16px/1.5 system-ui, sans-serif;
 color: inherit; background: transparent}
.lc-page h1, .lc-page h2, .lc-page h3 {color: inherit}
.lc-page table {border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; color: inherit}
.lc-page tr {background: transparent !important}
.lc-page td, .lc-page th {text-align: left; padding: .2rem .6rem; color: inherit;
 border-bottom: 1px solid rgba(128,128,128,.4)}
.lc-page td.number {text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap}
.lc-page td.note {opacity: .75; font-size: 85%}
.lc-page img {width: 100%; height: auto; background: white}
.lc-page figure {margin: 1rem 0}
.lc-page figcaption {color: inherit; font-size: 90%; font-weight: normal}
@media (max-width: 600px) {
 .lc-page tr {display: block; border-bottom: 1px solid rgba(128,128,128,.4); padding: .2rem 0}
 .lc-page td, .lc-page td.number {display: block; text-align: left; border: 0; padding: 0;
  white-space: normal}
}
</style>"""
PREAMBLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{amsmath,amssymb,booktabs,graphicx,lmodern,longtable}
\date{}"""
TABLE = r"""\begin{longtable}{p{.35\linewidth}lp{.3\linewidth}}
\toprule quantity & value & note \\ \midrule\endhead"""
TEXT = 80  # columns of what is printed
PAPER = "<style>body {color: #1a1a1a; background: #fff}</style>"  # of a page on its own


@dataclass(frozen=True)
class Number:
    """One number of a page.

    Attributes
    ----------
    quantity : str
    value : Estimate, float, int or str
    error : float or None
        Of a value that is no estimate; an estimate has its own.
    unit, note : str
    """

    quantity: str
    value: Estimate | float | int | str
    error: float | None = None
    unit: str = ""
    note: str = ""

    @classmethod
    def of_pair(cls, quantity: str, pairs: Eigenpairs, index: int) -> Number:
        """Make it of one eigenvalue, with its residual as the error."""
        met = bool(pairs.converged[index])
        value, residual = float(pairs.values[index]), float(pairs.residuals[index])
        return cls(quantity, value, residual, note="" if met else "not converged")

    @property
    def written(self) -> str:
        """The value with its error and unit."""
        if isinstance(self.value, Estimate):
            text = str(self.value)
        elif isinstance(self.value, str):
            text = self.value
        elif isinstance(self.value, int):
            text = f"{self.value:,}"
        else:
            text = (
                f"{self.value:.4g}"
                if self.error is None
                else with_error(self.value, self.error)
            )
        return f"{text} {self.unit}".rstrip()

    def plain(self) -> dict[str, Any]:
        """As JSON takes it; what is not finite becomes null."""
        estimate = isinstance(self.value, Estimate)
        value = self.value.value if isinstance(self.value, Estimate) else self.value
        error = self.value.stderr if isinstance(self.value, Estimate) else self.error
        kind = "standard error" if estimate else ("residual" if error is not None else None)
        return {
            "quantity": self.quantity, "value": _finite(value), "error": _finite(error),
            "error is": kind, "unit": self.unit, "note": self.note,
        }  # fmt: skip


def _md(text: str) -> str:
    """Text as Markdown shows it, in one line."""
    return re.sub(r"([\\`*_|<>\[\]&])", r"\\\1", " ".join(text.split()))


def _tex(text: str) -> str:
    """A text as LaTeX takes it."""
    return str(unicode_to_latex(text, unknown_char_policy="keep", unknown_char_warning=False))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass
class Section:
    """Numbers under one heading, with figures."""

    heading: str
    numbers: list[Number]
    figures: list[tuple[Picture, str]] = field(default_factory=list)

    def write_figures(self, folder: Path, stem: str) -> Iterator[tuple[str, str]]:
        """Write each figure into the folder; its file's name and its caption."""
        for place, (picture, caption) in enumerate(self.figures):
            name = f"{stem}{place}.png"
            (folder / name).write_bytes(picture.png())
            yield name, caption


class Page:
    """What :func:`report` returns.

    Attributes
    ----------
    title : str
    sections : list of Section
    reading : list of str
        What the numbers mean, in sentences.
    spent : dict
        Seconds that it took.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.sections: list[Section] = []
        self.reading: list[str] = []
        self.spent: dict[str, float] = {}

    def add(self, heading: str, numbers: Sequence[Number]) -> None:
        """Begin a section."""
        self.sections.append(Section(heading, list(numbers)))

    def draw(self, picture: Picture, caption: str) -> None:
        """Put a figure into the last section."""
        self.sections[-1].figures.append((picture, caption))

    def say(self, sentence: str) -> None:
        """Add to the reading."""
        self.reading.append(sentence)

    @property
    def numbers(self) -> list[Number]:
        """All numbers, in order."""
        return [number for section in self.sections for number in section.numbers]

    def __getitem__(self, quantity: str) -> Number:
        """The number of that name."""
        for number in self.numbers:
            if number.quantity == quantity:
                return number
        known = ", ".join(repr(number.quantity) for number in self.numbers)
        raise KeyError(f"quantity must be one of {known}, got {quantity!r}")

    def __str__(self) -> str:
        lines = [self.title, "=" * len(self.title)]
        width = max((len(number.quantity) for number in self.numbers), default=0)
        for section in self.sections:
            lines += ["", section.heading, "-" * len(section.heading)]
            for number in section.numbers:
                note = f"  ({number.note})" if number.note else ""
                lines.append(f"{number.quantity:<{width}}  {number.written}{note}")
        reading = (textwrap.fill(each, TEXT) for each in self.reading)
        return "\n".join([*lines, "", "Reading", "-------", *reading])

    def __repr__(self) -> str:
        return f"Page({self.title!r}, {len(self.numbers)} numbers)"

    def _repr_html_(self) -> str:
        inside = self._body()  # of a page that has headings of its own
        for level in (2, 1):
            inside = inside.replace(f"<h{level}>", f"<h{level + 1}>")
            inside = inside.replace(f"</h{level}>", f"</h{level + 1}>")
        return STYLE + inside

    def markdown(self, folder: Path | None = None, stem: str = "") -> str:
        """The page as Markdown; figures are written beside it where a folder is named."""
        lines = [f"# {_md(self.title)}"]
        for index, section in enumerate(self.sections):
            lines += [
                "",
                f"## {_md(section.heading)}",
                "",
                "| quantity | value | note |",
                "|---|---|---|",
            ]
            for n in section.numbers:
                lines.append(f"| {' | '.join(map(_md, (n.quantity, n.written, n.note)))} |")
            if folder is not None:
                for name, caption in section.write_figures(folder, f"{stem}_{index}"):
                    lines += ["", f"![{_md(caption)}](<{name}>)"]
        reading = (f"- {_md(sentence)}" for sentence in self.reading)
        return "\n".join([*lines, "", "## Reading", "", *reading, ""])

    def latex(self, folder: Path | None = None, stem: str = "") -> str:
        """The page as LaTeX; figures are written beside it where a folder is named."""
        lines = [PREAMBLE, rf"\title{{{_tex(self.title)}}}", r"\begin{document}\maketitle"]
        for index, section in enumerate(self.sections):
            lines += ["", rf"\section{{{_tex(section.heading)}}}", TABLE]
            for n in section.numbers:
                row = " & ".join(map(_tex, (n.quantity, n.written, n.note)))
                lines.append(rf"{row} \\")
            lines.append(r"\bottomrule\end{longtable}")
            if folder is not None:
                for name, caption in section.write_figures(folder, f"{stem}_{index}"):
                    lines += [
                        r"\begin{figure}[ht]\centering",
                        rf"\includegraphics[width=\linewidth]{{{name}}}",
                        rf"\caption{{{_tex(caption)}}}\end{{figure}}",
                    ]
        lines += ["", r"\section{Reading}", *(f"{_tex(x)}\n" for x in self.reading)]
        return "\n".join([*lines, r"\end{document}", ""])

    def plain(self) -> dict[str, Any]:
        """Numbers, reading and versions, as JSON takes them."""
        return {
            "title": self.title,
            "numbers": [
                {"section": section.heading, **number.plain()}
                for section in self.sections
                for number in section.numbers
            ],
            "reading": self.reading,
            "spent": self.spent,
            "versions": {
                "landscape-core": version("landscape-core"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }

    def save(self, path: str | Path) -> Path:
        """Write the page as .html, .md, .tex, .json or .txt, by its ending.

        Figures of .md and .tex are written beside it.
        """
        path = Path(path)
        writers = {
            ".html": lambda: self._whole(),
            ".md": lambda: self.markdown(path.parent, path.stem),
            ".tex": lambda: self.latex(path.parent, path.stem),
            ".json": lambda: json.dumps(self.plain(), indent=1) + "\n",
            ".txt": lambda: f"{self}\n",
        }
        if path.suffix not in writers:
            raise ValueError(f"path must end in {', '.join(writers)}, got {path.name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(writers[path.suffix](), encoding="utf-8")
        return path

    def _whole(self) -> str:
        head = (
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(self.title)}</title>"
        )
        body = f"<head>{head}{STYLE}{PAPER}</head><body>{self._body()}</body>"
        return f'<!doctype html><html lang="en">{body}</html>\n'

    def _body(self) -> str:
        parts = [f"<h1>{html.escape(self.title)}</h1>"]
        reading = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.reading)
        for section in self.sections:
            rows = "".join(
                f"<tr><td>{html.escape(n.quantity)}</td><td class='number'>"
                f"{html.escape(n.written)}</td><td class='note'>{html.escape(n.note)}</td></tr>"
                for n in section.numbers
            )
            parts.append(f"<h2>{html.escape(section.heading)}</h2><table>{rows}</table>")
            for picture, caption in section.figures:
                image = b64encode(picture.png()).decode()
                told = html.escape(caption)
                parts.append(
                    f"<figure><img alt='{told}' src='data:image/png;base64,{image}'>"
                    f"<figcaption>{told}</figcaption></figure>"
                )
        parts.append(f"<h2>Reading</h2><ul>{reading}</ul>")
        return f"<div class='lc-page'>{''.join(parts)}</div>"
