"""Let nbval compare outputs that are kept in stripped notebooks."""

import pytest


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
