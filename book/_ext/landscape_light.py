"""Makes the built site light: small figures, and of icons and widgets those that are shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

LIGHT = b"compressed for the site"
STATE = re.compile(
    r'(<script type="application/vnd\.jupyter\.widget-state\+json">)(.*?)</script>', re.DOTALL
)
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


def leave_out_widgets(app: Sphinx, error: Exception | None) -> None:
    """Keep the state of the widgets that a page shows; the output of others is left out."""
    if error is not None or app.builder.name != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text()
        state = STATE.search(text)
        if state is None:
            continue
        kept = json.loads(state[2])
        models = kept["state"]
        shown, todo = set(), re.findall(r'"model_id": "([0-9a-f]+)"', text)
        while todo:
            model = todo.pop()
            if model in models and model not in shown:
                shown.add(model)
                todo += re.findall(r"IPY_MODEL_([0-9a-f]+)", json.dumps(models[model]))
        kept["state"] = {model: models[model] for model in models if model in shown}
        small = json.dumps(kept).replace("</", "<\\/")
        page.write_text(text[: state.start(2)] + small + text[state.end(2) :])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of it with Sphinx."""
    app.connect("build-finished", lighten_images)
    app.connect("build-finished", leave_out_icons)
    app.connect("build-finished", leave_out_widgets)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
