"""Makes the built site light: small figures, and of thousands of icons those that are shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

LIGHT = b"compressed for the site"
ICONS = "_static/scripts/fontawesome.js"
ICON = re.compile(
    r'(?:"(?P<quoted>[a-z0-9-]+)"|\b(?P<plain>[a-z0-9]+)):'  # its name
    r'\[\d+,\d+,\[(?P<aliases>[^\]]*)\],"[0-9a-f]+",'
    r'(?:"[^"]*"|\[(?:"[^"]*",?)*\])\],?'  # one outline, or two
)


def lighten_images(app: Sphinx, error: Exception | None) -> None:
    """Write the site's figures smaller: a palette of 256 colours, or a stronger compression.

    On paper they stay as they are.
    """
    if error is not None or app.builder.name != "html":
        return
    for path in (Path(app.outdir) / "_images").glob("*.*"):
        image = Image.open(path) if path.suffix in (".png", ".jpg", ".jpeg") else None
        if image is None or image.mode == "P" or image.info.get("comment") == LIGHT:
            continue  # not a figure of ours, or done in a build before
        if image.format == "JPEG":
            image.save(path, quality=85, optimize=True, progressive=True, comment=LIGHT)
        else:
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
                path, optimize=True
            )


def leave_out_icons(app: Sphinx, error: Exception | None) -> None:
    """Keep the icons that a page or a script of the theme names; there are two thousand.

    Raises
    ------
    ExtensionError
        If the theme writes its icons in another way.
    """
    folder = Path(app.outdir)
    if error is not None or app.builder.name != "html":
        return
    pages = [*folder.rglob("*.html"), *folder.glob("_static/scripts/*theme*.js")]
    used = {name for page in pages for name in re.findall(r"fa-([a-z0-9-]+)", page.read_text())}
    script = folder / ICONS
    text, found = script.read_text(), 0

    def kept(icon: re.Match[str]) -> str:
        nonlocal found
        names = {icon["quoted"], icon["plain"], *re.findall(r'"([^"]+)"', icon["aliases"])}
        found += bool(names & used)
        return icon[0] if names & used else ""

    script.write_text(ICON.sub(kept, text))
    if not found:
        raise ExtensionError(f"no icon of the site was found in {ICONS}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of it with Sphinx."""
    app.connect("build-finished", lighten_images)
    app.connect("build-finished", leave_out_icons)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
