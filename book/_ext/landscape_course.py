"""What makes pages a course: pictures of chapters, framed goals, an API that knows its uses.

1. ``{chapter-picture} notebooks/08_width`` shows the figure of the chapter's cell that is
   tagged ``gallery``; ``{colab}`notebooks/08_width` `` leads to the chapter in Colab.
2. The list after "Afterwards you can" is framed, with what one needs beforehand.
3. Each entry of the API names the chapters that use it.
4. Attributes that share a line of a docstring get one each; initials begin no list.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from docutils import nodes
from landscape_book import read_project
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
GOALS = "Afterwards you can"


# --- 1. the gallery ---------------------------------------------------------------------------


class ChapterPicture(SphinxDirective):
    """Holds the place of a picture until all chapters have been read."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the placeholder."""
        chapter = self.arguments[0]
        self.env.note_dependency(self.env.doc2path(chapter))
        return [nodes.container(classes=["landscape-picture"], chapter=chapter)]


def hang_pictures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Fill the places with the figures of the chapters' cells tagged ``gallery``."""
    for place in doctree.findall(nodes.container):
        if chapter := place.get("chapter"):
            # Decoration: the card's own text says what the chapter is about.
            place += _picture(app, chapter)


def _gallery_cell(app: Sphinx, chapter: str) -> nodes.container:
    for cell in app.env.get_doctree(chapter).findall(nodes.container):
        if "tag_gallery" in cell.get("classes", []):
            return cell
    raise ExtensionError(f"{chapter} has no cell tagged gallery, and a card wants its picture")


def _picture(app: Sphinx, chapter: str) -> nodes.image:
    for image in _gallery_cell(app, chapter).findall(nodes.image):
        kept = {name: image[name] for name in ("uri", "candidates", "classes")}
        return nodes.image(**kept, alt="")
    raise ExtensionError(f"the cell of {chapter} that is tagged gallery shows no figure")


def lead_to_colab(
    name: str, rawtext: str, text: str, lineno: int, inliner: Any, *_: Any, **__: Any
) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """A link that opens a chapter in Colab."""
    path = urlsplit(read_project()["urls"]["Repository"]).path
    address = f"https://colab.research.google.com/github{path}/blob/main/{text}.ipynb"
    link = nodes.reference(
        rawtext, "Open in Colab", refuri=address, classes=["landscape-colab"]
    )
    return [link], []


# --- 2. goals ---------------------------------------------------------------------------------


def frame_goals(app: Sphinx, doctree: nodes.document) -> None:
    """Frame the goals of a chapter and what one needs beforehand."""
    for paragraph in list(doctree.findall(nodes.paragraph)):
        if GOALS in paragraph.astext():
            section = paragraph.parent
            at = section.index(paragraph) + 1
            framed: list[nodes.Node] = []
            while at + len(framed) < len(section):
                node = section[at + len(framed)]
                if not isinstance(node, nodes.bullet_list | nodes.paragraph):
                    break
                framed.append(node)
            del section[at : at + len(framed)]
            section.insert(at, nodes.container("", *framed, classes=["landscape-goals"]))
            return


# --- 3. where a name is used ------------------------------------------------------------------


@cache
def chapters_with() -> dict[str, list[str]]:
    """For every name of the package the chapters that use it, in the book's order."""
    found: dict[str, list[str]] = {}
    pages = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for page in pages:
        cells = json.loads(page.read_text())["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        for name in dict.fromkeys(re.findall(r"\blc\.(\w+)", text)):
            found.setdefault(name, []).append(f"notebooks/{page.stem}")
    return found


def name_chapters(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Add to the entry of a class or function the chapters that use it."""
    used = chapters_with().get(name.removeprefix("landscape_core."), [])
    if used and what in ("class", "function", "exception"):
        linked = ", ".join(f":doc:`/{chapter}`" for chapter in used)
        lines += ["", ".. container:: landscape-used", "", f"   Used in {linked}", ""]


# --- 4. what Sphinx would misread in docstrings -----------------------------------------------

NAMES = re.compile(r"(\s*:(?:ivar|vartype) )(\w+(?:, \w+)+)(:.*)")
INITIAL = re.compile(r"^(\s*(?::[^:]+: )?)([A-Z]\.(?: |$))")


def mend_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Give attributes that share a line one each, and keep initials from being list markers."""
    mended: list[str] = []
    rest = [INITIAL.sub(r"\1\\\2", line, count=1) for line in lines]
    while rest:
        shared = NAMES.fullmatch(line := rest.pop(0))
        if not shared:
            mended.append(line)
            continue
        head, names, text = shared.groups()
        more = []
        margin = head[: len(head) - len(head.lstrip())]
        while rest and re.match(margin + r"\s+\S", rest[0]):
            more.append(rest.pop(0))
        for each in names.split(", "):
            mended += [head + each + text, *more]
    lines[:] = mended


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of it with Sphinx."""
    app.add_directive("chapter-picture", ChapterPicture)
    app.add_role("colab", lead_to_colab)
    app.connect("doctree-read", frame_goals)
    app.connect("doctree-resolved", hang_pictures, priority=100)
    app.connect("autodoc-process-docstring", mend_docstring, priority=800)
    app.connect("autodoc-process-docstring", name_chapters, priority=900)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
