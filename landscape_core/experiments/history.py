"""What training is told, and what it tells."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from torch import nn

from landscape_core.experiments.data import Images

Optimizer = Literal["sgd", "momentum", "nesterov", "adam", "adamw"]
Schedule = Literal["none", "cosine", "step"]
Precision = Literal["float32", "bf16", "auto"]


def _make_plain(config: TrainConfig) -> None:
    """NumPy's numbers become plain ones, which any file can hold."""
    for column in fields(config):
        value = getattr(config, column.name)
        if isinstance(value, np.generic):
            object.__setattr__(config, column.name, value.item())


def _check_numbers(config: TrainConfig) -> None:
    """Refuse numbers that are none, or out of their range."""
    for name in ("lr", "momentum", "label_smoothing", "weight_decay", "final_lr",
                 "target_loss", "clip"):  # fmt: skip
        if not isinstance(getattr(config, name), Real):
            raise TypeError(f"{name} must be a number, got {getattr(config, name)!r}")
    if not (math.isfinite(config.lr) and config.lr > 0):
        raise ValueError(f"lr must be positive and finite, got {config.lr}")
    for name in ("momentum", "label_smoothing"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be from 0 to below 1, got {getattr(config, name)}")
    for name, least in (("batch_size", 1), ("epochs", 0), ("warmup", 0), ("seed", None)):
        value = getattr(config, name)
        if not isinstance(value, int) or (least is not None and value < least):
            what = "a whole number" if least is None else f"a whole number >= {least}"
            raise ValueError(f"{name} must be {what}, got {value!r}")
    for name in ("weight_decay", "final_lr", "target_loss", "clip"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name} must be 0 or more, got {getattr(config, name)}")


@dataclass(frozen=True)
class TrainConfig:
    """How to train; every value is checked when the configuration is made.

    Attributes
    ----------
    optimizer : {"sgd", "momentum", "nesterov", "adam", "adamw"}
    lr : float
        Peak learning rate.
    momentum : float
        For "momentum" and "nesterov".
    weight_decay : float
        L2 penalty (coupled) for sgd and adam, decoupled for adamw.
    schedule : {"none", "cosine", "step"}
        ``"cosine"`` falls from lr to `final_lr` over all steps; ``"step"`` divides by 10 at
        one half and three quarters of them.
    final_lr : float
        Where the cosine ends.
    warmup : int
        Epochs of linear rise from zero at the start.
    batch_size : int
        A last batch of a single example joins the one before it.
    epochs : int
    target_loss : float
        Training ends after the first epoch whose training loss is this or lower; 0 is never.
        Networks are compared at equal loss by it.
    seed : int
        Order of the data, and any randomness inside the model (dropout).
    label_smoothing : float
        From 0 (none) to below 1.
    clip : float
        Longest gradient of a step, as an l2 norm over all parameters: a longer one is
        shortened to it. 0 is none.
    precision : {"float32", "bf16", "auto"}
        ``"bf16"``: forward passes under bfloat16 autocast; weights stay float32. ``"auto"``:
        what is fast for this model on this device; see :func:`picked_precision`. The history
        says what was picked.

    Examples
    --------
    >>> TrainConfig(lr=-1)
    Traceback (most recent call last):
    ValueError: lr must be positive and finite, got -1
    """

    optimizer: Optimizer = "momentum"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "none"
    final_lr: float = 0.0
    warmup: int = 0
    batch_size: int = 64
    epochs: int = 10
    target_loss: float = 0.0
    seed: int = 0
    label_smoothing: float = 0.0
    clip: float = 0.0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        _make_plain(self)
        choices = {"optimizer": Optimizer, "schedule": Schedule, "precision": Precision}
        for name, options in choices.items():
            if getattr(self, name) not in get_args(options):
                known = ", ".join(map(repr, get_args(options)))
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        _check_numbers(self)
        if self.optimizer == "nesterov" and self.momentum == 0:
            raise ValueError("momentum must be above 0 for optimizer 'nesterov', got 0")

    def lr_at(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Learning rate of step `step` (from 0) of `steps`."""
        rise = self.warmup * steps_per_epoch
        if step < rise:
            return self.lr * (step + 1) / rise
        done = (step - rise) / max(1, steps - rise)
        if self.schedule == "cosine":
            return (
                self.final_lr + (self.lr - self.final_lr) * (1 + math.cos(math.pi * done)) / 2
            )
        if self.schedule == "step":
            return self.lr * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
        return self.lr


DEFAULTS = TrainConfig()


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch left behind.

    `train_loss` and `train_accuracy` are means over the epoch's own steps (of the loss that was
    minimized, label smoothing included), and so is `penalty`, what a regularizer added to it;
    `test_loss` and `test_accuracy` are of the weights at its end. `measured` holds what
    callbacks returned, by name.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    penalty: float = 0.0
    measured: dict[str, float] = field(default_factory=dict)


COLUMNS = tuple(each.name for each in fields(EpochRecord) if each.name != "measured")


@dataclass
class History:
    """The record of a training run.

    Attributes
    ----------
    config : TrainConfig
    epochs : list of EpochRecord
    status : {"done", "diverged"}
    message : str
        Empty when done; else what happened, when, and what to try.
    picked : dict
        ``precision`` and ``channels_last`` of the training.
    """

    config: TrainConfig
    epochs: list[EpochRecord] = field(default_factory=list)
    status: Literal["done", "diverged"] = "done"
    message: str = ""
    picked: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row per epoch; what callbacks measured stands in columns of its own."""
        rows = [asdict(epoch) for epoch in self.epochs]
        more = dict.fromkeys(name for row in rows for name in row["measured"])
        return pd.DataFrame([row | row["measured"] for row in rows], columns=[*COLUMNS, *more])

    def __str__(self) -> str:
        if self.status == "diverged":
            return self.message
        if not self.epochs:
            return "not trained (0 epochs)"
        last = self.epochs[-1]
        return (
            f"{last.epoch} epochs: training loss {last.train_loss:.4g}, "
            f"test loss {last.test_loss:.4g}, test accuracy {last.test_accuracy:.2%}"
        )


@dataclass(frozen=True)
class TrainingState:
    """What a callback sees: `epoch` and `step` are those that were just finished, from 1.

    `step` counts optimizer steps since the start of training.
    """

    epoch: int
    model: nn.Module
    data: Images
    history: History
    step: int = 0


Callback = Callable[[TrainingState], Mapping[str, float] | None]
