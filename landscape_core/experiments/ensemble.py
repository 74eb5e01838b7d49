"""Many small networks of one architecture, trained at once."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from landscape_core.backends import full_precision
from landscape_core.experiments.data import Images
from landscape_core.experiments.history import EpochRecord, History, TrainConfig
from landscape_core.experiments.seeding import seeded
from landscape_core.experiments.trainer import batches_of
from landscape_core.experiments.training import train
from landscape_core.progress import progress_bar

How = Literal["auto", "together", "separately"]
SMALL = 40_000  # parameters up to which it pays on a CPU
FREE = ("seed", "lr", "momentum", "weight_decay")  # what may differ between the networks


def train_ensemble(
    models: Sequence[nn.Module],
    data: Images,
    configs: Sequence[TrainConfig],
    *,
    how: How = "auto",
    progress: bool = True,
) -> list[History]:
    r"""Train several networks of one architecture in place, each by its own configuration.

    Together, every layer of all networks is one batched operation (``torch.func.vmap`` over
    stacked weights): on a GPU small networks then cost hardly more than one. Each network sees
    its own order of the images, and ends as by :func:`train`, within rounding.

    Parameters
    ----------
    models : sequence of nn.Module
        Of one architecture, on one device. With BatchNorm or other buffers, dropout or frozen
        parameters they are trained one by one.
    data : Images
    configs : sequence of TrainConfig
        One to each model. They may differ in seed, lr, momentum and weight_decay; the
        optimizer is "sgd", "momentum" or "nesterov".
    how : {"auto", "together", "separately"}
        ``"auto"`` is together where it is allowed and pays: on a GPU, and on a CPU for
        perceptrons of fewer than 40,000 parameters (measured: 3.3 times as fast at 3,500, 1.4
        at 26,000, slower from 85,000 on, and for convolutions).
    progress : bool

    Returns
    -------
    list of History
        One to each model. `seconds` of an epoch trained together are those of all networks.

    Raises
    ------
    ValueError
        If the models or configurations cannot be trained together; in one sentence.
    """
    models, configs = list(models), list(configs)
    _check(models, configs, how)
    obstacle = _obstacle(models[0], configs)
    if how == "together" and obstacle:
        raise ValueError(obstacle)
    if how == "separately" or obstacle or (how == "auto" and not _pays(models[0])):
        pairs = zip(models, configs, strict=True)
        return [train(model, data, config, progress=progress) for model, config in pairs]
    return _Together(models, data, configs).train(progress)


class _Together:
    """Stacked networks, and their plain optimizer."""

    def __init__(
        self, models: list[nn.Module], data: Images, configs: list[TrainConfig]
    ) -> None:
        self.models, self.configs = models, configs
        self.device = next(models[0].parameters()).device
        self.shape = copy.deepcopy(models[0]).to("meta")  # only the architecture is called
        parameters, self.buffers = stack_module_state(models)
        self.parameters = {name: p.detach().clone() for name, p in parameters.items()}
        self.velocity = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.train_data = [x.to(self.device) for x in data.train]
        self.test_data = [x.to(self.device) for x in data.test]
        self.orders = [torch.Generator().manual_seed(config.seed) for config in configs]
        self.histories = [History(config) for config in configs]

    def train(self, progress: bool) -> list[History]:
        """All epochs."""
        config = self.configs[0]
        epochs = range(1, config.epochs + 1)
        with seeded(config.seed, self.device), full_precision(self.device):
            for epoch in progress_bar(epochs, unit="epoch", desc="ensemble", progress=progress):
                start = time.perf_counter()
                trained, rates = self._epoch(epoch)
                tested = self._tested()
                seconds = time.perf_counter() - start
                for i, history in enumerate(self.histories):
                    self._record(history, epoch, rates[i], trained[i], tested[i], seconds)
        self._unstack()
        return self.histories

    def _epoch(self, epoch: int) -> tuple[list[list[float]], list[float]]:
        self.shape.train()
        count = len(self.train_data[1])
        orders = [torch.randperm(count, generator=rng) for rng in self.orders]
        config = self.configs[0]
        batches = [batches_of(order, config) for order in orders]
        totals = torch.zeros(len(self.configs), 2, dtype=torch.float64, device=self.device)
        rates = [config.lr for config in self.configs]
        for index, rows in enumerate(zip(*batches, strict=True)):
            step = (epoch - 1) * len(batches[0]) + index
            steps = config.epochs * len(batches[0])
            rates = [c.lr_at(step, steps, len(batches[0])) for c in self.configs]
            together = torch.stack(rows).to(self.device)
            inputs, targets = (x[together] for x in self.train_data)
            losses, hits = self._step(inputs, targets, rates)
            size = together.shape[1]
            totals += torch.stack([losses.double() * size, hits.double()], dim=1)
        means: list[list[float]] = (totals / count).tolist()
        return means, rates

    def _step(
        self, inputs: Tensor, targets: Tensor, rates: list[float]
    ) -> tuple[Tensor, Tensor]:
        leaves = {name: p.requires_grad_() for name, p in self.parameters.items()}

        def loss_of(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor
        ) -> tuple[Tensor, Tensor]:
            outputs = functional_call(self.shape, (parameters, buffers), (x,))
            smoothing = self.configs[0].label_smoothing
            loss = F.cross_entropy(outputs, y, label_smoothing=smoothing)
            return loss, (outputs.argmax(1) == y).sum()

        every = vmap(loss_of, randomness="different")
        losses, hits = every(leaves, self.buffers, inputs, targets)
        slopes = torch.autograd.grad(losses.sum(), list(leaves.values()))
        with torch.no_grad():
            for (name, p), slope in zip(leaves.items(), slopes, strict=True):
                self._descend(name, p, slope, rates)
        return losses.detach(), hits

    def _descend(self, name: str, p: Tensor, slope: Tensor, rates: list[float]) -> None:
        """One step of SGD, as PyTorch's own takes it, with numbers of each network's own."""
        axes = (-1,) + (1,) * (p.ndim - 1)

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=p.dtype, device=p.device).view(axes)

        slope = slope + column([c.weight_decay for c in self.configs]) * p
        kind = self.configs[0].optimizer
        if kind != "sgd":
            momentum = column([c.momentum for c in self.configs])
            velocity = self.velocity[name].mul_(momentum).add_(slope)
            slope = slope + momentum * velocity if kind == "nesterov" else velocity
        p.sub_(column(rates) * slope)

    @torch.no_grad()
    def _tested(self) -> list[list[float]]:
        self.shape.eval()
        inputs, targets = self.test_data
        outputs = vmap(
            lambda p, b: functional_call(self.shape, (p, b), (inputs,)), randomness="different"
        )(self.parameters, self.buffers)
        losses = torch.stack([F.cross_entropy(each, targets) for each in outputs])
        accuracy = (outputs.argmax(2) == targets).double().mean(1)
        found: list[list[float]] = torch.stack([losses.double(), accuracy], dim=1).tolist()
        return found

    def _record(
        self,
        history: History,
        epoch: int,
        rate: float,
        trained: Sequence[float],
        tested: Sequence[float],
        seconds: float,
    ) -> None:
        if history.status == "diverged":
            return
        if not (math.isfinite(trained[0]) and math.isfinite(tested[0])):
            history.status = "diverged"
            history.message = (
                f"diverged in epoch {epoch}: training loss {trained[0]:.4g}, test loss "
                f"{tested[0]:.4g}; try a learning rate below {history.config.lr:g}"
            )
            return
        (loss, accuracy), (test_loss, test_accuracy) = trained, tested
        record = EpochRecord(epoch, rate, loss, accuracy, test_loss, test_accuracy, seconds)
        history.epochs.append(record)

    @torch.no_grad()
    def _unstack(self) -> None:
        for i, model in enumerate(self.models):
            for name, p in model.named_parameters():
                p.copy_(self.parameters[name][i])


def _check(models: list[nn.Module], configs: list[TrainConfig], how: str) -> None:
    if how not in get_args(How):
        options = ", ".join(map(repr, get_args(How)))
        raise ValueError(f"how must be one of {options}, got {how!r}")
    if not models or len(models) != len(configs):
        raise ValueError(
            f"each model needs a configuration, got {len(models)} and {len(configs)}"
        )
    if len({id(model) for model in models}) < len(models):
        raise ValueError("each network must be a model of its own, got one of them twice")
    kinds = [
        (str(model), [(n, p.shape, p.requires_grad) for n, p in model.named_parameters()])
        for model in models
    ]
    if any(each != kinds[0] for each in kinds):
        raise ValueError(
            "all models must be of one architecture, with the same layers, shapes and frozen "
            "parameters"
        )
    if len({model.training for model in models}) > 1:
        raise ValueError("all models must be in one mode, training or evaluation, got both")


def _obstacle(model: nn.Module, configs: list[TrainConfig]) -> str:
    """Why these cannot be trained together; empty if they can."""
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        return (
            "models with BatchNorm cannot be trained together: their running statistics would "
            "mix; train them one by one"
        )
    kept = [name for name, _ in model.named_buffers()]
    if kept:
        return f"models with buffers cannot be trained together, got {kept[0]!r}"
    if any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules()):
        return (
            "models with dropout cannot be trained together: each draws from its own seed; "
            "train them one by one"
        )
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    if frozen:
        return f"models with frozen parameters cannot be trained together, got {frozen[0]!r}"
    common = {replace(c, seed=0, lr=0.5, momentum=0.5, weight_decay=0.5) for c in configs}
    if len(common) > 1:
        return f"configurations may differ only in {', '.join(FREE)}"
    first = configs[0]
    if first.optimizer not in ("sgd", "momentum", "nesterov"):
        return f"optimizer must be 'sgd', 'momentum' or 'nesterov', got {first.optimizer!r}"
    if first.precision != "float32" or first.target_loss or first.clip:
        return "networks trained together need precision 'float32', target_loss 0, clip 0"
    return ""


def _pays(model: nn.Module) -> bool:
    """Whether one batched operation is faster than one after the other."""
    if next(model.parameters()).device.type == "cuda":
        return True
    convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())
    return not convolves and sum(p.numel() for p in model.parameters()) < SMALL
