"""What the study notebooks write down is what their records hold."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from running import papermill

import landscape_core as lc
from landscape_core.experiments.store import Store

ROOT = Path(__file__).resolve().parents[2]


def small(name: str, folder: Path, **parameters: object) -> Path:
    """Run a study at a small size; the folder that it wrote to."""
    given = parameters | {"store": str(folder / "store"), "figures": str(folder / "out")}
    done = papermill(ROOT / "notebooks" / f"{name}.ipynb", folder, given)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_the_report_and_results_of_the_sweep_are_those_of_its_records(tmp_path):
    out = small(
        "07_fa_regularization", tmp_path, epochs=3, seeds=3, examples=100, test_examples=100,
        weights=[0.0, 0.1], two_batches=[0.1], gelu=[0.1], points=0, width=8,
    )  # fmt: skip
    store = Store(tmp_path / "store" / "07_fa_regularization")
    table, written = store.table(), json.loads((out / "results.json").read_text())
    runs = pd.DataFrame(written["runs"])
    assert len(runs) == len(table)
    for column in ("test_accuracy", "lambda_max", "trace_of_square"):
        assert sorted(runs[column]) == pytest.approx(sorted(table[column]), rel=1e-6)
    assert len(written["epochs"]) == len(store.tables("history"))
    sweep = table.query(
        "method == 'Tr(H²) penalty' and activation == 'relu' and epochs == 3 and clip == 1"
    )
    report = (out / "report.md").read_text()
    for _, rows in sweep.groupby("weight"):
        for column in ("test_accuracy", "trace_of_square"):
            mean = lc.mean_interval(rows[column])
            assert f"{mean.value:.3g} ({mean.low:.3g} to {mean.high:.3g}" in report
    told = lc.correlation(sweep.trace_of_square, sweep.test_accuracy)
    assert f"over all runs: {told}." in report


def test_the_figures_of_residual_networks_are_written(tmp_path):
    out = small(
        "10_resnet_vs_cnn", tmp_path, examples=60, test_examples=60, width=7, epochs=1, seeds=2,
        controls=1, measured=40, sizes=[20, 40], budget=22, ends=3, slice_points=3,
        curve_examples=30, curve_epochs=1, curve_batch=10, points=3, cost_widths=[8, 16, 32],
        batch_size=20,
    )  # fmt: skip
    kinds = ("plain_CNN", "ResNet")
    names = {"training", "spectra", "measures", "paths", "contours", "accuracy"}
    names |= {f"surface_of_{kind}" for kind in kinds}
    assert {path.stem for path in out.glob("*.png")} == names
    table = Store(tmp_path / "store" / "10_geometry").table()
    written = pd.read_json(out / "results.json")
    assert sorted(written.lambda_max) == pytest.approx(sorted(table.lambda_max), rel=1e-6)


def test_the_report_and_the_table_of_epochs_are_those_of_the_records(tmp_path):
    high, low = [0.2, 16], [0.1, 50]
    out = small(
        "09_noise_regimes", tmp_path, epochs=3, seeds=2, examples=200, test_examples=100,
        validation=50, measured=50, width=16, high=high, low=low, controls=[],
        transformers=[], points=0,
    )  # fmt: skip
    store = Store(tmp_path / "store" / "09_noise_regimes")
    key = ["architecture", "lr", "batch_size", "seed", "epoch"]
    written = pd.read_csv(out / "epochs.csv").sort_values(key)
    assert len(written) == 4 * 2 * 3
    for name, columns in (
        ("history", ["loss", "validation_loss", "test_loss", "sharpness_mean"]),
        ("curvature", ["lambda_max", "residual", "converged"]),
    ):
        kept = store.tables(name).sort_values(key)
        for column in columns:
            assert written[column].tolist() == pytest.approx(kept[column].tolist())
    report = (out / "report.tex").read_text()
    for _, rows in store.table().groupby("architecture"):
        for column in ("test_accuracy", "lambda_max"):
            wide = rows.pivot_table(index="seed", columns="lr", values=column)
            change = lc.paired_difference(wide[high[0]], wide[low[0]])
            assert f"{change.value:.3g} ({change.low:.3g} to {change.high:.3g}" in report
