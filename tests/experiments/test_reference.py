"""The records that ship with the package, and how they get there."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import landscape_core as lc
from landscape_core.experiments.store import REFERENCE

PUBLISH = Path(__file__).resolve().parents[2] / "studies" / "publish.py"
STORES = sorted(path for path in REFERENCE.glob("*") if path.is_dir())


@pytest.mark.parametrize("folder", STORES, ids=lambda path: path.name)
def test_shipped_records_are_whole_and_say_where_they_come_from(folder):
    store = lc.reference(folder.name)
    table = store.table()
    printed = lc.rerun_line("a_chapter")
    assert len(table) == len(list(folder.glob("*.npz")))
    assert set(table["status"]) <= {"done", "diverged"}
    for record in store.find():
        made = record.provenance
        assert made["commit"]
        assert made["data"]
        assert made["seconds"] > 0
        on_gpu = made["device"].startswith("NVIDIA")  # no sum is split among threads there
        assert on_gpu or f"OMP_NUM_THREADS={made['threads']} " in printed
        assert not any(name.startswith("model.") for name in record.arrays)


def test_shipped_records_are_small():
    assert sum(path.stat().st_size for path in REFERENCE.rglob("*")) < 20e6


def half(x: int) -> dict:
    return {"y": x / 2, "curve": np.arange(3) / 7}


def third(x: int) -> dict:
    return {"y": x / 3, "curve": np.arange(3) / 7}


def test_publishing_copies_all_stores_of_a_study(tmp_path):
    for name in ("99_networks", "99_paths", "98_other"):
        lc.Study(name, half, tmp_path / "runs").run(lc.grid(x=[1, 2]), progress=False)
    source = PUBLISH.read_text().replace(
        "import REFERENCE, Store",
        f"import Store\n\nREFERENCE = Path({str(tmp_path / 'ref')!r})",
    )
    (tmp_path / "publish.py").write_text(source)

    def publish(study, *options):
        command = [sys.executable, tmp_path / "publish.py", tmp_path / "runs", study, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = publish("99_study")
    assert done.stdout == "2 records in 99_networks\n2 records in 99_paths\n", done.stderr
    assert len(lc.Store(tmp_path / "ref" / "99_paths").table()) == 2
    (tmp_path / "ref" / "99_paths" / "of_another_run.npz").touch()
    assert publish("99_study", "--add").stdout.endswith("3 records in 99_paths\n")
    assert publish("99_study").stdout == done.stdout
    missing = publish("97_study")
    assert "holds no records of 97_study: run it first" in missing.stderr
    assert missing.returncode == 1


def test_records_that_stay_although_other_code_made_them_are_counted(tmp_path):
    first = lc.Study("99_study", half, tmp_path / "one")
    second = lc.Study("99_study", third, tmp_path / "two")
    first.run(lc.grid(x=[1, 2]), progress=False)
    second.run(lc.grid(x=[2, 3]), progress=False)
    first.publish(tmp_path, add=True)
    first.publish(tmp_path, add=True)
    with pytest.warns(UserWarning, match="1 of the 1 records of 99_study that stay were made"):
        second.publish(tmp_path, add=True)
    assert sorted(lc.Store(tmp_path / "99_study").table().y) == [0.5, 2 / 3, 1.0]
