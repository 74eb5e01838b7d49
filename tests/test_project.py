"""Promises of the project's own files to each other."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import landscape_core as lc

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORT_NAMES = {"PyYAML": "yaml", "scikit-learn": "sklearn", "pillow": "PIL"}


def test_the_package_requires_what_it_imports_and_nothing_else():
    source = "\n".join(path.read_text() for path in (ROOT / "landscape_core").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", source, re.MULTILINE))
    required = {re.match(r"[\w-]+", line).group() for line in PROJECT["dependencies"]}
    required = {IMPORT_NAMES.get(name, name) for name in required}
    assert required <= imported
    # Extras, imported where they are asked for.
    required |= {"dask", "distributed", "ipywidgets", "IPython"}
    assert imported - required - {"landscape_core"} <= set(sys.stdlib_module_names)


def test_requirements_repeat_the_ranges_of_pyproject():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    ranges = {line for line in lines if line and not line.startswith(("#", "-e"))}
    extras = PROJECT["optional-dependencies"]
    assert ranges <= {*PROJECT["dependencies"], *extras["book"], *extras["test"]}
    names = {re.match(r"[\w-]+", line).group() for line in ranges}
    assert {"jupyter-book", "jupyterlab", "torch", "torchvision", "ipywidgets", "matplotlib",
            "seaborn", "papermill", "nbval", "numpy"} <= names  # fmt: skip


def test_constraints_name_the_tested_versions_of_every_requirement():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pinned["torch"] == "2.13.0"
    assert pinned["torchvision"] == "0.28.0"
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["book"]:
        assert re.match(r"[\w-]+", line).group() in pinned, line


def test_every_public_name_is_documented_once():
    pages = "\n".join(path.read_text() for path in (ROOT / "book" / "api").glob("*.md"))
    documented = re.findall(r"\.\. auto(?:class|function|exception):: (\w+)", pages)
    assert sorted(documented) == sorted(lc.__all__)
    overview = (ROOT / "book" / "api.md").read_text()
    assert sorted(re.findall(r"^   (\w+)$", overview, re.MULTILINE)) == sorted(documented)
    assert all(getattr(lc, name).__doc__ for name in lc.__all__)


def test_what_is_not_used_is_not_imported():
    script = (
        "import sys, landscape_core as lc\n"
        "lc.Objective, lc.Hessian, lc.top_eigenpairs, lc.trace, lc.spectral_density\n"
        "print(sorted({'matplotlib', 'scipy.stats', 'seaborn', 'sklearn'} & {*sys.modules}))\n"
        "lc.plot_lines\n"
        "print('matplotlib' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert ran.stdout.decode().splitlines() == ["[]", "True"]


def test_a_misspelt_name_is_refused():
    with pytest.raises(AttributeError, match="hessian"):
        getattr(lc, "hessian")  # noqa: B009
    assert set(lc.__all__) <= set(dir(lc))


def test_the_version_stands_in_one_place():
    assert lc.__version__ == PROJECT["version"]


FLOORS = [  # each may import from those before it
    ("results", "backends", "batches", "batchnorm", "criteria", "parameter_space", "progress"),
    ("objective",),
    ("curvature",),
    ("evaluator",),
    ("geometry",),
    ("experiments",),
    ("show",),
]


def test_imports_go_one_way_and_drawing_stays_on_the_top_floor():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    for path in (ROOT / "landscape_core").rglob("*.py"):
        room = path.relative_to(ROOT / "landscape_core").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        source = path.read_text()
        for name in re.findall(r"^\s*from landscape_core\.(\w+)", source, re.MULTILINE):
            assert floor[name] <= floor[room], f"{path.name} imports {name}"
        if room != "show":
            assert not re.search(
                r"^\s*(?:from|import) (?:matplotlib|plotly|seaborn)", source, re.M
            )
        if room in ("curvature", "geometry"):
            assert "experiments" not in source


def test_no_module_outgrows_its_room():
    for path in (ROOT / "landscape_core").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path.name


def test_every_paper_that_is_cited_stands_in_the_references():
    listed = (ROOT / "book" / "references.bib").read_text()
    texts = [*(ROOT / "landscape_core").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]
    identifier = re.compile(
        r"(?:arXiv:|arxiv\.org/abs/)(\d{4}\.\d{4,5})|doi(?:\.org/|:)(10\.\d{4,}/[\w./-]*\w)"
    )
    cited = {found for path in texts for found in identifier.findall(path.read_text())}
    assert len(cited) > 40
    assert {a or b for a, b in cited if (a or b) not in listed} == set()
