"""Everything that training changes, and one epoch of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape_core.experiments.data import Images, Split
from landscape_core.experiments.history import TrainConfig
from landscape_core.experiments.regularizers import Regularizer


class Trainer:
    """A model in training: what an epoch needs, and what going on from there needs.

    Parameters
    ----------
    model : nn.Module
        Trained in place, where it is.
    data : Images
    config : TrainConfig
    regularizer : Regularizer or None
    """

    def __init__(
        self,
        model: nn.Module,
        data: Images,
        config: TrainConfig,
        regularizer: Regularizer | None = None,
    ) -> None:
        self.model, self.config, self.regularizer = model, config, regularizer
        self.device = next(model.parameters()).device
        self.data = Split(*(x.to(self.device) for x in data.train))
        self.test = Split(*(x.to(self.device) for x in data.test))
        self.optimizer = make_optimizer(model, config)
        self.order_rng = torch.Generator().manual_seed(config.seed)
        self.probe_rng = torch.Generator(self.device).manual_seed(config.seed)
        self.steps = len(batches_of(torch.arange(self.data.examples), config))  # an epoch's

    def epoch(self, epoch: int, after_step: Callable[[int], None]) -> list[float]:
        """One pass over the data; mean loss, accuracy and penalty of its steps."""
        config, optimizer = self.config, self.optimizer
        order = torch.randperm(self.data.examples, generator=self.order_rng).to(self.device)
        self.model.train()
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        for index, rows in enumerate(batches_of(order, config)):
            step = (epoch - 1) * self.steps + index
            rate = config.lr_at(step, config.epochs * self.steps, self.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            batch = Split(self.data.inputs[rows], self.data.targets[rows])
            loss, hits, penalty = gradients_of(
                self.model, config, self.regularizer, self.probe_rng, batch
            )
            optimizer.step()
            count = len(rows)
            totals += torch.stack([loss.double() * count, hits, penalty.double() * count])
            after_step(step + 1)
        means: list[float] = (totals / len(order)).tolist()
        return means

    @torch.no_grad()
    def tested(self) -> tuple[float, float]:
        """Mean loss and accuracy on the test images, in evaluation mode."""
        self.model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for inputs, targets in self.test.batches(1024):
            outputs = forward(self.model, inputs, self.config)
            loss = F.cross_entropy(outputs, targets, reduction="sum")
            hits = (outputs.argmax(1) == targets).sum()
            totals += torch.stack([loss.double(), hits.double()])
        mean_loss, accuracy = (totals / self.test.examples).tolist()
        return mean_loss, accuracy

    def state_dict(self) -> dict[str, Any]:
        """What the next epoch depends on: weights, optimizer and all random generators."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order_rng.get_state(),
            "probes": self.probe_rng.get_state(),
            "global": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order_rng.set_state(state["order"].cpu())
        self.probe_rng.set_state(state["probes"].cpu())
        torch.set_rng_state(state["global"].cpu())
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of a configuration."""
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


def gradients_of(
    model: nn.Module,
    config: TrainConfig,
    regularizer: Regularizer | None,
    rng: torch.Generator,
    batch: Split,
) -> tuple[Tensor, Tensor, Tensor]:
    """Leave the gradient of a step in the parameters; return loss, hits and penalty."""
    smoothing = config.label_smoothing
    if regularizer is None:
        outputs = forward(model, batch.inputs, config)
        loss = F.cross_entropy(outputs, batch.targets, label_smoothing=smoothing)
        loss.backward()
        hits = (outputs.detach().argmax(1) == batch.targets).sum().double()
        return loss.detach(), hits, torch.zeros_like(hits)
    seen: list[Tensor] = []
    statistics: list[Tensor] = []

    def batch_loss(inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = forward(model, inputs, config)
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


def batches_of(order: Tensor, config: TrainConfig) -> list[Tensor]:
    """Cut an epoch's order of examples into batches."""
    batches = list(order.split(config.batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:  # BatchNorm needs two: join the last ones
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def forward(model: nn.Module, inputs: Tensor, config: TrainConfig) -> Tensor:
    """Outputs in float32, in the precision of the configuration."""
    bf16 = config.precision == "bf16"
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=bf16):
        outputs: Tensor = model(inputs)
    return outputs.float()
