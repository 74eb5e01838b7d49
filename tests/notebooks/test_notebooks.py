"""The notebooks: stripped, parameterized, runnable alone, and checked by nbval for real."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from running import papermill, run

import landscape_core as lc

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
FAST = {"epochs": 1, "train_examples": 200, "probes": 2, "directions": 2, "slice_points": 3,
        "path_points": 3}  # fmt: skip


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_and_has_one_typed_parameters_cell(path):
    cells = json.loads(path.read_text())["cells"]
    parameters = [cell for cell in cells if "parameters" in tags(cell)]
    assert len(parameters) == 1
    for line in "".join(parameters[0]["source"]).splitlines():
        assert re.fullmatch(r"\w+: .+ = .+  # .+", line), line
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] or "keep_output" in tags(cell)
            assert cell["execution_count"] is None
            assert ("keep_output" in tags(cell)) is ("nbval-check-output" in tags(cell))
    follows = cells[cells.index(parameters[0]) + 1]
    assert "check_parameters" in "".join(follows["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_installs_from_the_address_in_pyproject(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = re.findall(r"git\+(https://\S+?)[\"\\]", path.read_text())
    assert found == [project["urls"]["Repository"]]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_full_scale_parameters_are_those_of_the_notebook(path):
    cells = json.loads((ROOT / "notebooks" / f"{path.stem}.ipynb").read_text())["cells"]
    named = {tag: "".join(c["source"]) for c in cells for tag in tags(c)}
    check = next("".join(c["source"]) for c in cells if "check_param" in "".join(c["source"]))
    namespace: dict = {"lc": lc, "torch": torch}
    exec(named["parameters"], namespace)
    known = set(namespace["__annotations__"])
    chosen = yaml.safe_load(path.read_text())
    assert set(chosen) <= known
    exec(check, namespace | chosen)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epohcs": 3}, "there is no parameter epohcs; did you mean epochs?"),
        ({"epochs": "many"}, "epochs must be int, got 'many' (str)"),
        ({"dataset": "minst"}, "dataset must be one of 'digits'"),
        ({"lr": -1}, "lr must be at least 1e-06, got -1"),
    ],
)
def test_papermill_refuses_a_wrong_parameter_in_one_sentence(tmp_path, parameters, message):
    done = papermill(NOTEBOOKS[0], tmp_path, parameters)
    assert done.returncode != 0
    assert f"ParameterError: {message}" in done.stderr.strip().splitlines()[-1]


def checked_cells() -> nbformat.NotebookNode:
    """The first notebook's imports and the cells whose output nbval compares."""
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    notebook.cells = [
        cell
        for cell in notebook.cells
        if "nbval-check-output" in tags(cell)
        or (cell.cell_type == "code" and cell.source.startswith("import copy"))
    ]
    assert len(notebook.cells) >= 2
    return notebook


@pytest.mark.parametrize("changed", [False, True])
def test_nbval_fails_if_and_only_if_a_checked_number_differs(tmp_path, changed):
    notebook = checked_cells()
    output = notebook.cells[-1].outputs[0]
    assert "3.0" in output.text
    if changed:
        output.text = output.text.replace("3.0", "3.1")
    nbformat.write(notebook, tmp_path / "checked.ipynb")
    shutil.copy(ROOT / "notebooks" / "conftest.py", tmp_path)
    done = run(
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval-lax",
        "--nbval-current-env", "checked.ipynb", cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode != 0) is changed, done.stdout


def test_the_installed_wheel_is_enough_for_a_notebook_which_saves_its_figures(tmp_path):
    # The wheel is unpacked where no other copy of the package can be seen, and the notebook
    # is run, with other parameters than its own, from a folder that holds nothing else.
    site, alone = tmp_path / "site", tmp_path / "alone"
    alone.mkdir()
    pip = (sys.executable, "-m", "pip", "--quiet")
    wheel = run(*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT), cwd=tmp_path)
    assert wheel.returncode == 0, wheel.stderr
    (built,) = tmp_path.glob("landscape_core-*.whl")
    run(*pip, "install", "--no-deps", "--target", str(site), str(built), cwd=tmp_path)
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    where = nbformat.v4.new_code_cell("import landscape_core; print(landscape_core.__file__)")
    notebook.cells.insert(0, where)
    nbformat.write(notebook, alone / "notebook.ipynb")
    chosen = FAST | {"figures": str(tmp_path / "figures")}
    done = papermill("notebook.ipynb", alone, chosen, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    out = nbformat.read(alone / "out.ipynb", as_version=4)
    assert str(site) in out.cells[0].outputs[0].text
    saved = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"training.png", "flatness.png", "paths.png", "surface.png", "surface.html",
            "summary.csv"} <= saved  # fmt: skip
