"""Ship records of a study with the package: python studies/publish.py STORE STUDY [--add]."""

import argparse
from pathlib import Path

from landscape_core.experiments.store import REFERENCE, Store

LIMIT = 20e6  # bytes, of all studies together
LEAVE_OUT = ["model"]  # weights are made again from the seed


def publish(store: Path, study: str, *, add: bool, reference: Path = REFERENCE) -> list[Path]:
    """Copy the records of all stores of a study, such as 08_paths of 08_width."""
    number = study.split("_")[0]
    found = [path for path in sorted(store.glob(f"{number}_*")) if path.is_dir()]
    if not found:
        raise SystemExit(f"{store} holds no records of {study}: run it first")
    shipped = [Store(path).publish(reference, leave_out=LEAVE_OUT, add=add) for path in found]
    size = sum(path.stat().st_size for path in reference.rglob("*.npz"))
    if size > LIMIT:
        raise SystemExit(f"reference records may take {LIMIT:,.0f} bytes, got {size:,}")
    return shipped


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Ship the records of a study with the package."
    )
    parser.add_argument("store", type=Path, help="folder of the records, such as runs")
    parser.add_argument("study", help="such as 08_width")
    parser.add_argument("--add", action="store_true", help="keep what is shipped of other runs")
    chosen = parser.parse_args()
    for folder in publish(chosen.store, chosen.study, add=chosen.add):
        print(f"{len(list(folder.glob('*.npz')))} records in {folder.name}")
