"""What the book needs of Sphinx beyond Jupyter Book.

1. Notebooks are executed again when the package changes, not only when their cells do.
2. Figures are described to those who do not see them; interactive ones become a still that
   the browser replaces by the live figure.
3. The site asks nothing of other servers: MathJax and plotly.js are copied into it.
4. The repository's address is read from pyproject.toml, its one place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tomllib
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import plotly
from docutils import nodes
from myst_nb.core import render
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform

import landscape_core

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = "launch-buttons"  # the theme's name for its menu of live services
PLOTLY_MIME = "application/vnd.plotly.v1+json"
STILLS = ("image/png", "image/jpeg")
LOST = """<h1>Page not found</h1>
<p>There is no page at this address. The <a href="{home}index.html">first page</a> leads to
every chapter, and the <a href="{home}search.html">search</a> to every word of them.</p>
"""


# --- 1. outputs follow the package ------------------------------------------------------------


def folder_hash(folder: Path) -> str:
    """SHA-256 of all files in a folder, names included."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def package_hash() -> str:
    """SHA-256 of every file of the package that a notebook's output can depend on."""
    return folder_hash(Path(landscape_core.__file__).parent)


def add_package_hash(app: Sphinx, docname: str, content: list[str]) -> None:
    """Put the hash into a hidden first cell: the cache of outputs is keyed on the cells."""
    comment = f"# landscape_core {package_hash()}"
    text = content[0]
    if '"benchmarks"' in text:
        comment += f", benchmarks {folder_hash(ROOT / 'benchmarks')}"
    if app.env.doc2path(docname).endswith(".ipynb"):
        notebook = nbformat.reads(text, as_version=4)
        cell = nbformat.v4.new_code_cell(comment, metadata={"tags": ["remove-cell"]}, id="hash")
        notebook.cells.insert(0, cell)
        content[0] = nbformat.writes(notebook)
    elif text.startswith("---\nfile_format: mystnb"):
        end = text.index("---\n", 4) + 4
        cell = f"```{{code-cell}} ipython3\n:tags: [remove-cell]\n{comment}\n```\n"
        content[0] = f"{text[:end]}\n{cell}{text[end:]}"


def outdated_pages(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Have Sphinx read all pages again when the package or the site's own files changed.

    Sphinx itself looks at the pages only, and copies no style sheet while none is outdated.
    """
    book = Path(app.srcdir)
    site = [book / "_static", book / "_ext", ROOT / "benchmarks"]
    current = package_hash() + "".join(map(folder_hash, site))
    if current == getattr(env, "landscape_hash", None):
        return []
    env.landscape_hash = current  # type: ignore[attr-defined]
    return list(env.found_docs)


# --- 2. figures -------------------------------------------------------------------------------


class PlotlyRenderer(render.MimeRenderPlugin):  # type: ignore[misc]
    """Write a plotly figure into the page as data; _static/landscape.js draws it."""

    @staticmethod
    def handle_mime(
        renderer: render.NbElementRenderer, data: render.MimeData, inline: bool
    ) -> list[nodes.Element] | None:
        """Return the nodes of a plotly output, None for any other."""
        if inline or data.mime_type != PLOTLY_MIME:
            return None
        figure = json.dumps(data.content, separators=(",", ":")).replace("</", "<\\/")
        layout = data.content.get("layout", {})
        height = layout.get("height", 450)
        use = "move its slider" if layout.get("sliders") else "drag to turn, scroll to zoom"
        html = (
            f'<div class="landscape-live" style="min-height:{height}px" role="group" '
            f'aria-label="Interactive figure: {use}">'
            f'<script type="application/json">{figure}</script></div>'
        )
        return [nodes.raw("", html, format="html")]


class DescribedImage(render.MimeRenderPlugin):  # type: ignore[misc]
    """Take the alternative text of a figure from its output, where the package wrote it."""

    @staticmethod
    def handle_mime(
        renderer: render.NbElementRenderer, data: render.MimeData, inline: bool
    ) -> list[nodes.Element] | None:
        """Return the image of an output that has a description, None for any other."""
        told = data.output_metadata.get(data.mime_type, {})
        if inline or data.mime_type not in STILLS or "alt" not in told:
            return None
        images: list[nodes.Element] = renderer.render_image(data)
        for image in images:
            for size in ("width", "height"):  # as wide as the page allows, however many pixels
                image.attributes.pop(size, None)
            image["alt"] = image.get("alt", told["alt"])  # a chapter's own words come first
            if told.get("keep_colours"):
                image["classes"].append("landscape-keep-colours")
        return images


class KeepStill(SphinxPostTransform):
    """Let the still of an interactive figure travel with it, for print and without scripts."""

    default_priority = 3  # before myst-nb picks one type of each output, at 4
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Copy the image next to the live figure."""
        for bundle in list(self.document.findall(nodes.container)):
            by_type = {child.get("mime_type"): child for child in bundle.children}
            kind = next((kind for kind in STILLS if kind in by_type), None)
            if PLOTLY_MIME in by_type and kind:
                still = nodes.container(classes=["landscape-still"])
                still += [child.deepcopy() for child in by_type[kind].children]
                by_type[PLOTLY_MIME] += still


# --- 3. nothing from other servers ------------------------------------------------------------


def make_static_folder(app: Sphinx) -> None:
    """Have the folder there before anything is copied to it.

    After a build that failed early the theme copies its logo to ``_static`` all the same, and
    without the folder that becomes a file in which every later build fails.
    """
    (Path(app.outdir) / "_static").mkdir(parents=True, exist_ok=True)


def copy_assets(app: Sphinx, error: Exception | None) -> None:
    """Copy MathJax (one script and its fonts) and plotly.js into the built site."""
    if error is not None or app.builder.format != "html":
        return
    output = Path(app.outdir)
    for file in files("sphinx-mathjax-offline") or []:
        path = str(file)
        if "/mathjax/" in path and (path.endswith("/tex-chtml.js") or "/woff-v2/" in path):
            target = output / "_static" / "mathjax" / path.split("/mathjax/")[1]
            _copy(Path(str(file.locate())), target)
    # Not in _static: what lies there is loaded on every page, and plotly.js is large.
    source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    _copy(source, output / "plotly" / "plotly.min.js")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def drop_thebe(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Drop the scripts of thebe (live kernels through another server), which is not used."""
    for kind in ("script_files", "css_files"):
        if kind in context:
            context[kind] = [file for file in context[kind] if "thebe" not in str(file)]


def mend_buttons(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Point the edit buttons of text pages into book/, and offer Colab for notebooks only."""
    if pagename.startswith("notebooks/"):
        return
    groups = context.get("header_buttons", [])
    context["header_buttons"] = [group for group in groups if group.get("label") != LAUNCH]
    for group in context["header_buttons"]:
        for button in group.get("buttons", []):
            if "/edit/" in str(button.get("url")):
                button["url"] = button["url"].replace("/edit/main/", "/edit/main/book/")


def name_toggles(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Name what unfolds a page of the sidebar; the theme only draws an arrow."""
    tree_of_pages = context.get("generate_toctree_html")
    if tree_of_pages is None:
        return

    def named(*args: Any, **kwargs: Any) -> Any:
        tree = tree_of_pages(*args, **kwargs)
        for toggle in tree.select("a + details > summary"):
            page = toggle.parent.find_previous_sibling("a").get_text(strip=True)
            toggle["aria-label"] = f"Pages of {page}"
        return tree

    context["generate_toctree_html"] = named


# --- 4. the repository ------------------------------------------------------------------------


@cache
def read_project() -> dict[str, Any]:
    """The package's name, version and addresses, as pyproject.toml has them."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def set_repository(app: Sphinx, config: Any) -> None:
    """Give the theme's buttons, the site and the pages the addresses of the project."""
    project = read_project()
    config.html_theme_options["repository_url"] = project["urls"]["Repository"]
    site = project["urls"]["Documentation"]
    config.html_baseurl = config.ogp_site_url = site
    home = urlsplit(site).path
    config.notfound_urls_prefix = home  # the page is shown at any address
    config.notfound_context = {"title": "Page not found", "body": LOST.format(home=home)}
    for button in ("repository", "issues", "edit_page"):
        config.html_theme_options[f"use_{button}_button"] = True
    config.version = config.release = project["version"]


def name_repository(app: Sphinx, docname: str, content: list[str]) -> None:
    """Write the repository's address where a page says ``{{ repository }}``, in code too."""
    content[0] = content[0].replace("{{ repository }}", read_project()["urls"]["Repository"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of it with Sphinx."""
    os.environ["TQDM_DISABLE"] = "1"  # progress bars are for people who wait
    # The chapters' networks are small: a second thread gains little, and where the cores are
    # shared with another process, waiting for it costs minutes.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # myst-nb finds its renderers by entry points and keeps them in one cached list: join it.
    render.load_mime_renders().extend([PlotlyRenderer, DescribedImage])
    app.connect("config-inited", set_repository)
    app.connect("builder-inited", make_static_folder)
    app.connect("source-read", add_package_hash)
    app.connect("source-read", name_repository)
    app.connect("env-get-outdated", outdated_pages)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", mend_buttons, priority=901)
    app.connect("html-page-context", name_toggles, priority=902)
    app.connect("build-finished", copy_assets)
    app.add_post_transform(KeepStill)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
