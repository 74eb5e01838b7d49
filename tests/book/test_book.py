"""The book's machinery, on a book of two small pages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


class Book:
    """A copy of the book's configuration and of the package, around other pages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("_config.yml", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "landscape_core", folder / "landscape_core", ignore=ignore)
        for name in ("_ext", "_static"):
            shutil.copytree(ROOT / "book" / name, folder / "book" / name, ignore=ignore)
        shutil.copy(ROOT / "book" / "references.bib", folder / "book")
        toc = {"format": "jb-book", "root": "index", "chapters": [{"file": "notebooks/page"}]}
        (folder / "book" / "_toc.yml").write_text(yaml.safe_dump(toc))
        (folder / "book" / "index.md").write_text("# A book\n")
        (folder / "book" / "notebooks").mkdir()
        self.write("import landscape_core as lc\nprint('answer', lc.Estimate(1.0, 0.1, 3))")

    def write(self, source: str, text: str = "# Page", tags: tuple[str, ...] = ()) -> None:
        notebook = nbformat.v4.new_notebook()
        notebook.cells = [
            nbformat.v4.new_markdown_cell(text, id="title"),
            nbformat.v4.new_code_cell(source, id="code", metadata={"tags": list(tags)}),
        ]
        nbformat.write(notebook, self.folder / "book" / "notebooks" / "page.ipynb")

    def build(self) -> subprocess.CompletedProcess[str]:
        settings = {**os.environ, "PYTHONPATH": str(self.folder), "NO_COLOR": "1"}
        tool = Path(sys.executable).with_name("jupyter-book")
        command = [str(tool), "build", "book", "-W", "-n", "--keep-going"]
        return subprocess.run(
            command, cwd=self.folder, env=settings, capture_output=True, text=True
        )

    def page(self, name: str = "notebooks/page") -> str:
        return (self.folder / "_build" / "html" / f"{name}.html").read_text()


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


def executed(build: subprocess.CompletedProcess[str]) -> bool:
    return "Executing notebook" in build.stdout + build.stderr


def test_a_changed_line_of_the_package_executes_the_notebooks_again(book):
    first = book.build()
    assert first.returncode == 0, first.stderr
    assert executed(first)
    assert "answer 1.00 ± 0.10" in book.page()

    unchanged = book.build()
    assert unchanged.returncode == 0, unchanged.stderr
    assert not executed(unchanged)

    module = book.folder / "landscape_core" / "results.py"
    text = module.read_text()
    assert "} ± {" in text
    module.write_text(text.replace("} ± {", "} +- {"))
    changed = book.build()
    assert changed.returncode == 0, changed.stderr
    assert executed(changed)
    assert "answer 1.00 +- 0.10" in book.page()


def test_a_notebook_that_fails_fails_the_build(book):
    book.write("raise RuntimeError('this cell does not work')")
    build = book.build()
    assert build.returncode != 0
    assert "this cell does not work" in build.stdout + build.stderr


def test_interactive_figures_travel_with_their_still(book):
    book.write(
        "import numpy as np, landscape_core as lc\n"
        "x = np.arange(3.0)\n"
        "lc.plot_surface(lc.Plane(x, x, np.ones((3, 3)) + x, None))"
    )
    build = book.build()
    assert build.returncode == 0, build.stdout + build.stderr
    page = book.page()
    assert '<div class="landscape-live"' in page
    assert "landscape-still" in page
    assert page.count("_images/") >= 1
    assert (book.folder / "_build" / "html" / "plotly" / "plotly.min.js").exists()
    fonts = (
        book.folder / "_build" / "html" / "_static" / "mathjax" / "output" / "chtml" / "fonts"
    )
    assert len(list((fonts / "woff-v2").glob("*.woff"))) > 10


SURFACE = (
    "import numpy as np, landscape_core as lc\n"
    "x = np.arange(3.0)\n"
    "lc.plot_contours({'a': lc.Plane(x, x, np.ones((3, 3)) + x, None)})"
)
LANDING = """# A book

```{chapter-picture} notebooks/page
```

{colab}`notebooks/page`
"""


def test_the_landing_page_shows_the_chapters_picture_and_leads_to_colab(book):
    (book.folder / "book" / "index.md").write_text(LANDING)
    goals = "# Page\n\nText. Afterwards you can\n\n- count;\n- add.\n\nRead the first chapter."
    book.write(SURFACE, goals, ("gallery",))
    build = book.build()
    assert build.returncode == 0, build.stdout + build.stderr
    landing, page = book.page("index"), book.page()
    picture = re.search(
        r'landscape-picture.*?<img alt="".*?src="(_images/\w+\.png)"', landing, re.S
    )
    assert picture is not None
    assert f"../{picture[1]}" in page
    assert "/blob/main/notebooks/page.ipynb" in landing
    assert 'alt="a: step along direction 2 over step along direction 1' in page
    framed = re.search(r'<div class="landscape-goals.*?</div>', page, re.S)
    assert "add." in framed[0]
    assert "Read the first chapter." in framed[0]


def test_a_card_without_a_picture_stops_the_build(book):
    (book.folder / "book" / "index.md").write_text(LANDING)
    book.write(SURFACE)
    build = book.build()
    assert build.returncode != 0
    assert "notebooks/page has no cell tagged gallery" in build.stdout + build.stderr
