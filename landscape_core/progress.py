"""Bars for work that takes a while: one of them at a time.

What a run of a study does would draw bars of its own: dozens of them, of a dozen widgets each.
Inside :func:`speaking_through` a bar therefore draws nothing, and says in the bar that is there
how far it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm as plain_bar
from tqdm.auto import tqdm

PAUSE = 0.5  # seconds from one text to the next
STAGE = "{desc} {n_fmt}/{total_fmt}{postfix}"

_outer: ContextVar[tqdm | None] = ContextVar("bar", default=None)


def progress_bar(
    iterable: Iterable[Any] | None = None, *, progress: bool, **options: Any
) -> tqdm:
    """Make a bar, with the options of tqdm: here, or in the bar that speaks for this code."""
    outer, options["disable"] = _outer.get(), not progress
    if outer is None:
        return tqdm(iterable, **options)
    return _Stage(iterable, outer, **options)


@contextmanager
def speaking_through(bar: tqdm | None = None) -> Iterator[None]:
    """Let a bar speak for all that begin inside the block; without one they are silent."""
    token = _outer.set(bar if bar is not None else plain_bar(disable=True))
    try:
        yield
    finally:
        _outer.reset(token)


class _Stage(plain_bar):  # type: ignore[misc]
    """A bar without a place of its own: its text stands behind another one's."""

    def __init__(self, iterable: Iterable[Any] | None, outer: tqdm, **options: Any) -> None:
        self.outer = outer
        options |= {"disable": options["disable"] or outer.disable, "leave": False}
        options |= {"mininterval": PAUSE, "delay": PAUSE, "bar_format": STAGE}
        super().__init__(iterable, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Say it in the other bar; what is closed leaves nothing there."""
        self.outer.set_postfix_str(str(self) if msg is None else msg)
        return False
