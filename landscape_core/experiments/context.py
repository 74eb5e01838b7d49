"""What a run in progress knows of itself, wherever in its code it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class RunContext:
    """A run in progress.

    Attributes
    ----------
    folder : Path
        For checkpoints; it may not exist yet.
    data : dict of str to str
        Names and hashes of the data sets that were loaded.
    trainings : int
        How many trainings have begun.
    inside : frozenset
        Folder and key of this run and of those in whose code it was asked for.
    """

    folder: Path
    data: dict[str, str] = field(default_factory=dict)
    trainings: int = 0
    inside: frozenset[tuple[Path, str]] = frozenset()


_current: ContextVar[RunContext | None] = ContextVar("run", default=None)


def current_run() -> RunContext | None:
    """The run in whose code this is called, or None."""
    return _current.get()


@contextmanager
def running(context: RunContext) -> Iterator[RunContext]:
    """Make a run the current one inside the block."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


def note_data(name: str, sha256: str) -> None:
    """Remember that the run in progress, if there is one, has loaded a data set."""
    run = current_run()
    if run is not None:
        run.data[name] = sha256
