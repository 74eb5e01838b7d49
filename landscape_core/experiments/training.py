"""Train a classifier: one configuration in, one history out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Literal, get_args

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from landscape_core.experiments.data import Images, Split
from landscape_core.experiments.regularizers import Regularizer
from landscape_core.experiments.seeding import seeded

Optimizer = Literal["sgd", "momentum", "nesterov", "adam", "adamw"]
Schedule = Literal["none", "cosine", "step"]
Precision = Literal["float32", "bf16"]


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
    precision : {"float32", "bf16"}
        ``"bf16"``: forward passes under bfloat16 autocast; weights stay float32.

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
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        choices = {"optimizer": Optimizer, "schedule": Schedule, "precision": Precision}
        for name, options in choices.items():
            if getattr(self, name) not in get_args(options):
                known = ", ".join(map(repr, get_args(options)))
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to below 1, got {getattr(self, name)}")
        for name, least in (("batch_size", 1), ("epochs", 0), ("warmup", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number >= {least}, got {value}")
        for name in ("weight_decay", "final_lr", "target_loss"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

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


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch left behind.

    `train_loss` and `train_accuracy` are means over the epoch's own steps (of the loss that was
    minimized, label smoothing included), and so is `penalty`, what a regularizer added to it;
    `test_loss` and `test_accuracy` are of the weights at its end.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    penalty: float = 0.0


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
    """

    config: TrainConfig
    epochs: list[EpochRecord] = field(default_factory=list)
    status: Literal["done", "diverged"] = "done"
    message: str = ""

    def table(self) -> pd.DataFrame:
        """One row per epoch."""
        names = [column.name for column in fields(EpochRecord)]
        return pd.DataFrame([asdict(epoch) for epoch in self.epochs], columns=names)

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


Callback = Callable[[TrainingState], None]


def train(
    model: nn.Module,
    data: Images,
    config: TrainConfig = TrainConfig(),
    callbacks: Sequence[Callback] = (),
    *,
    regularizer: Regularizer | None = None,
    progress: bool = True,
) -> History:
    """Train `model` in place, where it is (CPU or GPU), by minibatch cross-entropy.

    On one CPU the same seeds give the same weights, bit for bit. A loss that turns nan or inf
    ends the run, and the history says so; it raises nothing, so a sweep goes on.

    Parameters
    ----------
    model : nn.Module
    data : Images
        See :func:`load` and :func:`images`.
    config : TrainConfig
    callbacks : sequence of callable
        Each is called with a :class:`TrainingState` after every epoch; the model is then in
        evaluation mode. One that has a method ``on_step`` gets that called in the same way
        after every step, with the model in training mode; see :class:`CurvatureTracker`.
    regularizer : Regularizer or None
        What else than the loss decides each step, such as :class:`SAM`. It draws from the
        configuration's seed. Running statistics follow the first pass of each step only.
    progress : bool
        Whether to show a bar with loss and accuracy.

    Returns
    -------
    History
    """
    if not isinstance(data, Images):
        kind = type(data).__name__
        raise TypeError(f"data must be Images, from load(...) or images(...), got {kind}")
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config must be a TrainConfig, got {type(config).__name__}")
    device = next(model.parameters()).device
    train_split = Split(*(x.to(device) for x in data.train))
    test_split = Split(*(x.to(device) for x in data.test))
    optimizer = _optimizer(model, config)
    order_rng = torch.Generator().manual_seed(config.seed)
    probe_rng = torch.Generator(device).manual_seed(config.seed)
    step_of = partial(_gradients, model, config, regularizer, probe_rng)
    history = History(config)
    modes = [(module, module.training) for module in model.modules()]
    watching = [each.on_step for each in callbacks if hasattr(each, "on_step")]
    steps = len(_batches(torch.arange(train_split.examples), config))
    bar = tqdm(range(1, config.epochs + 1), unit="epoch", desc="train", disable=not progress)
    try:
        with seeded(config.seed, device):
            for epoch in bar:
                start = time.perf_counter()
                order = torch.randperm(train_split.examples, generator=order_rng).to(device)

                def after_step(step: int, epoch: int = epoch) -> None:
                    for watch in watching:
                        with seeded(config.seed, device):
                            watch(TrainingState(epoch, model, data, history, step))

                trained = _train_epoch(
                    model, train_split, order, optimizer, config, epoch, step_of, after_step
                )
                model.eval()
                tested = _test(model, test_split, config)
                if not (math.isfinite(trained[0]) and math.isfinite(tested[0])):
                    history.status = "diverged"
                    history.message = (
                        f"diverged in epoch {epoch}: training loss {trained[0]:.4g}, test "
                        f"loss {tested[0]:.4g}; try a learning rate below {config.lr:g}"
                    )
                    break
                rate = optimizer.param_groups[0]["lr"]
                seconds = time.perf_counter() - start
                loss, accuracy, penalty = trained
                history.epochs.append(
                    EpochRecord(epoch, rate, loss, accuracy, *tested, seconds, penalty)
                )
                bar.set_postfix(loss=f"{trained[0]:.3g}", test_accuracy=f"{tested[1]:.2%}")
                for callback in callbacks:
                    # What a callback draws must not change what the training draws.
                    with seeded(config.seed, device):
                        callback(TrainingState(epoch, model, data, history, steps * epoch))
                if loss <= config.target_loss:
                    break
    finally:
        for module, training in modes:
            module.training = training
    return history


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer in ("adam", "adamw"):
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=0.0 if config.optimizer == "sgd" else config.momentum,
        nesterov=config.optimizer == "nesterov",
        weight_decay=config.weight_decay,
    )


def _train_epoch(
    model: nn.Module,
    data: Split,
    order: Tensor,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epoch: int,
    step_of: Callable[[Split], tuple[Tensor, Tensor, Tensor]],
    after_step: Callable[[int], None],
) -> tuple[float, float, float]:
    """One pass over the data; mean loss, accuracy and penalty of its steps."""
    model.train()
    batches = _batches(order, config)
    totals = torch.zeros(3, dtype=torch.float64, device=order.device)
    for index, rows in enumerate(batches):
        step = (epoch - 1) * len(batches) + index
        rate = config.lr_at(step, config.epochs * len(batches), len(batches))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss, hits, penalty = step_of(Split(data.inputs[rows], data.targets[rows]))
        optimizer.step()
        totals += torch.stack([loss.double() * len(rows), hits, penalty.double() * len(rows)])
        after_step(step + 1)
    mean_loss, accuracy, penalized = (totals / len(order)).tolist()
    return mean_loss, accuracy, penalized


def _gradients(
    model: nn.Module,
    config: TrainConfig,
    regularizer: Regularizer | None,
    rng: torch.Generator,
    batch: Split,
) -> tuple[Tensor, Tensor, Tensor]:
    """Leave the gradient of a step in the parameters; return loss, hits and penalty."""
    smoothing = config.label_smoothing
    if regularizer is None:
        outputs = _forward(model, batch.inputs, config)
        loss = F.cross_entropy(outputs, batch.targets, label_smoothing=smoothing)
        loss.backward()
        hits = (outputs.detach().argmax(1) == batch.targets).sum().double()
        return loss.detach(), hits, torch.zeros_like(hits)
    seen: list[Tensor] = []
    statistics: list[Tensor] = []

    def batch_loss(inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = _forward(model, inputs, config)
        if sum(map(len, seen)) < len(batch.targets):  # the first pass, perhaps in parts
            seen.append(outputs.detach().argmax(1))
            if sum(map(len, seen)) == len(batch.targets):
                statistics.extend(buffer.clone() for buffer in model.buffers())
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing)

    parameters = [p for p in model.parameters() if p.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
        step = regularizer.step(batch_loss, parameters, (batch.inputs, batch.targets), rng)
    for p, gradient in zip(parameters, step.gradients, strict=True):
        p.grad = gradient
    with torch.no_grad():
        for buffer, first in zip(model.buffers(), statistics, strict=True):
            buffer.copy_(first)
    hits = (torch.cat(seen) == batch.targets).sum().double()
    return step.loss, hits, step.penalty


def _batches(order: Tensor, config: TrainConfig) -> list[Tensor]:
    batches = list(order.split(config.batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:  # BatchNorm needs two: join the last ones
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@torch.no_grad()
def _test(model: nn.Module, data: Split, config: TrainConfig) -> tuple[float, float]:
    totals = torch.zeros(2, dtype=torch.float64, device=data.targets.device)
    for inputs, targets in data.batches(1024):
        outputs = _forward(model, inputs, config)
        loss = F.cross_entropy(outputs, targets, reduction="sum")
        hits = (outputs.argmax(1) == targets).sum()
        totals += torch.stack([loss.double(), hits.double()])
    mean_loss, accuracy = (totals / data.examples).tolist()
    return mean_loss, accuracy


def _forward(model: nn.Module, inputs: Tensor, config: TrainConfig) -> Tensor:
    bf16 = config.precision == "bf16"
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=bf16):
        outputs: Tensor = model(inputs)
    return outputs.float()
