"""Train a classifier: one configuration in, one history out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from landscape_core.backends import check_model, full_precision
from landscape_core.experiments.checkpoints import Checkpoint
from landscape_core.experiments.data import Images
from landscape_core.experiments.history import (
    COLUMNS,
    DEFAULTS,
    Callback,
    EpochRecord,
    History,
    TrainConfig,
    TrainingState,
)
from landscape_core.experiments.regularizers import Regularizer
from landscape_core.experiments.seeding import seeded
from landscape_core.experiments.trainer import Trainer
from landscape_core.progress import progress_bar


def train(
    model: nn.Module,
    data: Images,
    config: TrainConfig = DEFAULTS,
    callbacks: Sequence[Callback] = (),
    *,
    regularizer: Regularizer | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Train `model` in place, where it is (CPU or GPU), by minibatch cross-entropy.

    On one machine the same seeds give the same weights, bit for bit. On a GPU, for that, all
    bits of float32 are multiplied and cuDNN adds in one order, at some cost in speed. A loss
    that turns nan or inf ends the run, and the history says so; it raises nothing, so a sweep
    goes on.

    Parameters
    ----------
    model : nn.Module
    data : Images
        See :func:`load` and :func:`images`.
    config : TrainConfig
    callbacks : sequence of callable
        Each is called with a :class:`TrainingState` after every epoch; the model is then in
        evaluation mode. What it returns, a dict of numbers under names that no column of the
        history has yet, becomes part of it. One that has a method ``on_step`` gets that called
        in the same way after every step, with the model in training mode; see
        :class:`CurvatureTracker`.
    regularizer : Regularizer or None
        What else than the loss decides each step, such as :class:`SAM`. It draws from the
        configuration's seed. Running statistics follow the first pass of each step only.
    checkpoint : path or None
        A file that is written after every epoch. Where it is there already, training goes on
        where it left off, and ends with the same weights, bit for bit on a CPU, as if it had
        never been interrupted. A callback that remembers something needs ``state_dict`` and
        ``load_state_dict`` for that. Inside a run of a :class:`Study` the file is chosen, and
        removed when the run is finished.
    progress : bool
        Whether to show a bar with loss and accuracy.

    Returns
    -------
    History
    """
    check_model(model)
    if not isinstance(data, Images):
        kind = type(data).__name__
        raise TypeError(f"data must be Images, from load(...) or images(...), got {kind}")
    if regularizer is not None and not isinstance(regularizer, Regularizer):
        raise TypeError(f"regularizer must be one such as SAM(0.05), got {regularizer!r}")
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config must be a TrainConfig, got {type(config).__name__}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model must have a parameter to train, got none that needs a gradient")
    kinds = {p.dtype for p in model.parameters()}
    if kinds != {torch.float32}:
        got = ", ".join(sorted(map(str, kinds)))
        raise ValueError(f"the parameters of model must be torch.float32, got {got}")
    trainer = Trainer(model, data, config, regularizer)
    history = History(config, picked=trainer.picked)
    saved = Checkpoint.of(checkpoint, trainer, data, callbacks)
    modes = [(module, module.training) for module in model.modules()]
    try:
        with seeded(config.seed, trainer.device), full_precision(trainer.device):
            done = saved.restore(trainer, history, callbacks) if saved else 0
            bar = progress_bar(
                total=config.epochs, initial=done, unit="epoch", desc="train",
                progress=progress,
            )  # fmt: skip
            with bar:
                while not _ended(history):
                    _epoch(trainer, data, history, callbacks, bar)
                    if saved:
                        saved.write(trainer, history, callbacks)
    finally:
        if trainer.picked["channels_last"]:
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for module, training in modes:
            module.training = training
    return history


def _ended(history: History) -> bool:
    """Whether there is nothing left to train."""
    epochs, config = history.epochs, history.config
    if history.status == "diverged" or len(epochs) >= config.epochs:
        return True
    return (
        bool(epochs) and config.target_loss > 0 and epochs[-1].train_loss <= config.target_loss
    )


def _epoch(
    trainer: Trainer, data: Images, history: History, callbacks: Sequence[Callback], bar: tqdm
) -> None:
    """Train one epoch, test it, record it, and tell the callbacks."""
    start, epoch, config = time.perf_counter(), len(history.epochs) + 1, trainer.config
    watching = [each.on_step for each in callbacks if hasattr(each, "on_step")]

    def tell(callback: Callback, step: int) -> Mapping[str, float]:
        # What a callback draws must not change what the training draws.
        with seeded(config.seed, trainer.device):
            state = TrainingState(epoch, trainer.model, data, history, step)
            measured = callback(state)
        return measured if isinstance(measured, Mapping) else {}

    def after_step(step: int) -> None:
        for watch in watching:
            tell(watch, step)

    loss, accuracy, penalty = trainer.epoch(epoch, after_step)
    tested = trainer.tested()
    if not (math.isfinite(loss) and math.isfinite(tested[0])):
        history.status = "diverged"
        history.message = (
            f"diverged in epoch {epoch}: training loss {loss:.4g}, test loss {tested[0]:.4g}; "
            f"try a learning rate below {config.lr:g}"
        )
        return
    rate, seconds = trainer.optimizer.param_groups[0]["lr"], time.perf_counter() - start
    record = EpochRecord(epoch, rate, loss, accuracy, *tested, seconds, penalty)
    history.epochs.append(record)
    bar.set_postfix(loss=f"{loss:.3g}", test_accuracy=f"{tested[1]:.2%}", refresh=False)
    bar.update()
    for callback in callbacks:
        measured = tell(callback, trainer.steps * epoch)
        for name, value in measured.items():
            if name in COLUMNS or name in record.measured:
                raise ValueError(
                    f"what a callback returns needs a name of its own, got {name!r}"
                )
            record.measured[name] = _number(name, value)


def _number(name: str, value: Any) -> float:
    """A number that a callback returned, as a plain one."""
    try:
        return value if isinstance(value, bool | int) else float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"a callback must return numbers by name, got {type(value).__name__} for {name!r}"
        ) from None
