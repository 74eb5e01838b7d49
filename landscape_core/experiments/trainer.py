"""Everything that training changes, and one epoch of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape_core.backends import channels_first, needs_channels_first
from landscape_core.experiments.data import Images, Split
from landscape_core.experiments.history import Precision, TrainConfig
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
        self.classes = data.classes
        self.device = next(model.parameters()).device
        self.picked = picked_precision(model, config.precision)
        if self.picked["channels_last"]:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif needs_channels_first(model):
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.data, self.test = self._placed(data.train), self._placed(data.test)
        self.optimizer = make_optimizer(model, config)
        self.order_rng = torch.Generator().manual_seed(config.seed)
        self.probe_rng = torch.Generator(self.device).manual_seed(config.seed)
        self.steps = len(batches_of(torch.arange(self.data.examples), config))  # an epoch's

    def _placed(self, split: Split) -> Split:
        """A split on the model's device, in the memory format that was picked."""
        inputs, targets = (x.to(self.device) for x in split)
        if self.picked["channels_last"]:
            inputs = inputs.to(memory_format=torch.channels_last)
        elif needs_channels_first(self.model):
            inputs = channels_first(inputs)
        return Split(inputs, targets)

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
                self.forward, self.model, config, self.regularizer, self.probe_rng, batch
            )
            if config.clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
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
            outputs = self.forward(inputs)
            loss = F.cross_entropy(outputs, targets, reduction="sum")
            hits = (outputs.argmax(1) == targets).sum()
            totals += torch.stack([loss.double(), hits.double()])
        mean_loss, accuracy = (totals / self.test.examples).tolist()
        return mean_loss, accuracy

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs in float32, in the precision that was picked."""
        half = self.picked["precision"] == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            outputs: Tensor = self.model(inputs)
        # On a GPU a label without an output ends the process, not the run.
        if outputs.ndim != 2 or outputs.shape[1] < self.classes:
            raise ValueError(
                f"the model needs an output for each of the {self.classes} classes, got "
                f"outputs of shape {tuple(outputs.shape)}"
            )
        return outputs.float()

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
    forward: Callable[[Tensor], Tensor],
    model: nn.Module,
    config: TrainConfig,
    regularizer: Regularizer | None,
    rng: torch.Generator,
    batch: Split,
) -> tuple[Tensor, Tensor, Tensor]:
    """Leave the gradient of a step in the parameters; return loss, hits and penalty."""
    smoothing = config.label_smoothing
    if regularizer is None:
        outputs = forward(batch.inputs)
        loss = F.cross_entropy(outputs, batch.targets, label_smoothing=smoothing)
        loss.backward()
        hits = (outputs.detach().argmax(1) == batch.targets).sum().double()
        return loss.detach(), hits, torch.zeros_like(hits)
    seen: list[Tensor] = []
    statistics: list[Tensor] = []

    def batch_loss(inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = forward(inputs)
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


def picked_precision(model: nn.Module, precision: Precision) -> dict[str, Any]:
    """What a training uses: precision of the forward passes, and memory format of images.

    ``"auto"`` picks bfloat16 and channels-last images for models with convolutions where the
    processor multiplies bfloat16 matrices itself (AVX-512 BF16 or AMX; CUDA from Ampere on),
    channels last alone for convolutions on other processors, unless they would be wrong there,
    and float32 as it is for all other models: perceptrons of ordinary width gain nothing on a
    CPU.
    """
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if precision != "auto":
        return {"precision": precision, "channels_last": False}
    on_gpu = next(model.parameters()).device.type == "cuda"
    half = torch.cuda.is_bf16_supported() if on_gpu else _multiplies_bf16()
    return {
        "precision": "bf16" if half and convolves else "float32",
        "channels_last": convolves and not needs_channels_first(model),
    }


def _multiplies_bf16() -> bool:
    """Whether this processor has instructions for bfloat16 matrices."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in names)
