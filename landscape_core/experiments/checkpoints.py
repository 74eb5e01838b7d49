"""Training that was interrupted goes on from its last finished epoch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from landscape_core.experiments.context import current_run
from landscape_core.experiments.history import Callback, EpochRecord, History, TrainConfig
from landscape_core.experiments.trainer import Trainer


class Checkpoint:
    """The state of one training in a file that is complete or absent.

    Parameters
    ----------
    path : Path
    config : TrainConfig
        A file of a training with another configuration is refused.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path, self.config = path, asdict(config)

    @classmethod
    def current(cls, config: TrainConfig) -> Checkpoint | None:
        """The checkpoint of the next training of the run in progress; None outside of one."""
        run = current_run()
        if run is None:
            return None
        run.trainings += 1
        return cls(run.folder / f"training_{run.trainings}.pt", config)

    def restore(self, trainer: Trainer, history: History, callbacks: Sequence[Callback]) -> int:
        """Bring everything to where the file left it; return the epochs that are done.

        Raises
        ------
        ValueError
            If the file belongs to a training with another configuration.
        """
        try:
            saved: dict[str, Any] = torch.load(self.path, weights_only=True)
            trained = saved["config"]
        except FileNotFoundError:
            return 0
        except Exception:  # a damaged file: begin again
            self.path.unlink(missing_ok=True)
            return 0
        if trained != self.config:
            raise ValueError(
                f"checkpoint must be of this training, {self.path} was made with another "
                "configuration: remove it, or name another file"
            )
        trainer.load_state_dict(saved["trainer"])
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
        state = {
            "config": self.config,
            "trainer": trainer.state_dict(),
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
                os.fsync(file.fileno())
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
