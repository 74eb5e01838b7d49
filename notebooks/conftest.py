"""Let nbval compare outputs that are kept in stripped notebooks."""

import os

import pytest

# nbval reads a cell's messages when the cell has ended. Of the thousands
# that progress bars send, the queue would drop the last ones, and nbval
# would wait for them in vain.
os.environ.setdefault("TQDM_DISABLE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Number the cells that keep their output.

    nbstripout removes all numbers, and nbval takes a cell without one
    for a cell that was never run.
    """
    for item in items:
        cell = getattr(item, "cell", None)
        if (
            cell is not None
            and cell.get("outputs")
            and cell.execution_count is None
        ):
            cell.execution_count = 0
