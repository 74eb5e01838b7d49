"""Training that was interrupted goes on from its last finished epoch."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from landscape_core.experiments.context import current_run
from landscape_core.experiments.data import Images
from landscape_core.experiments.history import Callback, EpochRecord, History
from landscape_core.experiments.trainer import Trainer

# A killed process loses nothing that it has written, only a machine that stops does; forcing
# every short epoch onto the disk would take a third of the time of a small training.
SYNC = 5.0  # seconds


class Checkpoint:
    """The state of one training in a file that is complete or absent.

    Parameters
    ----------
    path : Path
    identity : dict
        Of the training: a file of another one is refused.
    own : bool
        Whether the file is that of a run of a study, which nobody else writes: one that does
        not fit or cannot be read is then simply left behind.
    """

    def __init__(self, path: Path, identity: dict[str, Any], own: bool = False) -> None:
        self.path, self.identity, self.own = path, identity, own
        self.synced = -math.inf

    @classmethod
    def of(
        cls,
        path: str | Path | None,
        trainer: Trainer,
        data: Images,
        callbacks: Sequence[Callback],
    ) -> Checkpoint | None:
        """The checkpoint of a training: of the file named, or of the run in progress."""
        own = path is None
        if path is None:
            run = current_run()
            if run is None:
                return None
            run.trainings += 1
            path = run.folder / f"training_{run.trainings}.pt"
        sizes = [data.train.examples, data.test.examples]
        identity = {
            "config": asdict(trainer.config),
            "regularizer": _described(trainer.regularizer),
            "data": [data.sha256, *sizes, _hash([data.train.inputs, data.test.inputs])],
            "labels": _hash([data.train.targets, data.test.targets]),
            "model": str(trainer.model),
            "initial weights": _hash(trainer.model.state_dict().values()),
            "callbacks": [type(each).__qualname__ for each in callbacks],
        }
        return cls(Path(path), identity, own)

    def restore(self, trainer: Trainer, history: History, callbacks: Sequence[Callback]) -> int:
        """Bring everything to where the file left it; return the epochs that are done.

        Raises
        ------
        ValueError
            If the file is not a checkpoint, or one of another training; it is left as it is.
        """
        if not self.path.exists():
            return 0
        try:
            saved: dict[str, Any] = torch.load(self.path, weights_only=True)
            differs = [
                name for name in self.identity if saved["of"].get(name) != self.identity[name]
            ]
        except Exception as error:
            if self.own:
                return 0
            raise ValueError(
                "checkpoint must name a file that lc.train has written, or none yet; "
                f"{self.path} cannot be read as one ({type(error).__name__})"
            ) from None
        if differs and self.own:
            return 0
        if differs:
            raise ValueError(
                f"checkpoint must be of this training, {self.path} differs in its "
                f"{', '.join(differs)}: remove it, or name another file"
            )
        trainer.load_state_dict(saved["trainer"])
        buffers = dict(trainer.model.named_buffers())
        for name, value in saved["buffers"].items():
            buffers[name].copy_(value)
        history.epochs = [EpochRecord(**epoch) for epoch in saved["epochs"]]
        history.status, history.message = saved["status"]
        for callback, state in zip(callbacks, saved["callbacks"], strict=True):
            if state is not None:
                callback.load_state_dict(state)  # type: ignore[attr-defined]
        return len(history.epochs)

    def write(self, trainer: Trainer, history: History, callbacks: Sequence[Callback]) -> None:
        """Write the state after an epoch, in one step."""
        states = [
            each.state_dict() if hasattr(each, "state_dict") else None for each in callbacks
        ]
        for callback, kept in zip(callbacks, states, strict=True):
            _check_plain(kept, type(callback).__qualname__)
        state = {
            "of": self.identity,
            "trainer": trainer.state_dict(),
            "buffers": dict(trainer.model.named_buffers()),  # also those no state_dict holds
            "epochs": [asdict(epoch) for epoch in history.epochs],
            "status": (history.status, history.message),
            "callbacks": states,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{uuid4().hex[:8]}")
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                if time.monotonic() - self.synced > SYNC:
                    os.fsync(file.fileno())
                    self.synced = time.monotonic()
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)


def _hash(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        )
    return digest.hexdigest()[:16]


def _described(regularizer: Any) -> str:
    """Kind and values of a regularizer; the address of an object is neither."""
    if regularizer is None:
        return "none"
    values = {name: repr(value) for name, value in sorted(vars(regularizer).items())}
    return f"{type(regularizer).__qualname__} {values}"


def _check_plain(state: Any, owner: str) -> None:
    """Refuse what could be written, but not be read back."""
    if isinstance(state, dict):
        state = [*state.keys(), *state.values()]
    if isinstance(state, list | tuple):
        for each in state:
            _check_plain(each, owner)
    elif not (state is None or isinstance(state, bool | int | float | str | Tensor)):
        raise TypeError(
            f"state_dict of {owner} must hold tensors, numbers, strings, lists and dicts, got "
            f"{type(state).__name__}"
        )
