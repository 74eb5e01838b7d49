"""The loss of a model over a data set as a function of one flat parameter vector, L(theta).

Everything above this module sees a network only through an :class:`Objective`: Lanczos, paths
and weight noise are then the same arithmetic on vectors of n entries. The model is evaluated
by :func:`torch.func.functional_call`: its parameters, buffers and gradients never change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape_core import backends
from landscape_core.batches import (
    Batch,
    as_batches,
    as_call,
    check_sampling,
    fits,
    hits,
    known_length,
    logits_of,
    map_tensors,
    move,
    of_examples,
    pick,
    read,
    take,
)
from landscape_core.batchnorm import BatchNormPolicy, averaged, check_policy, running_names
from landscape_core.criteria import (
    Criterion,
    MeanCheck,
    check_callable,
    check_criterion,
    check_parameters,
    check_targets,
    draws_nothing,
    example_gradients,
    split_loss,
    writes_nothing,
)
from landscape_core.parameter_space import ParameterChoice, ParameterSpace
from landscape_core.results import Estimate, Evaluation


class Objective:
    """The mean loss of a model over data, L(theta), for theta a flat vector of n parameters.

    Parameters
    ----------
    model : nn.Module
        In float32 or float64; a model in bfloat16 or float16 is measured at its weights in
        float32 arithmetic, because second derivatives in half precision err by per cents.
    criterion : callable
        ``criterion(outputs, targets) -> scalar``, the mean over the examples of a batch. Of a
        model that returns a mapping with ``"logits"`` (Hugging Face), it gets the logits.
    batches : pair, sequence of pairs, or DataLoader
        One ``(inputs, targets)``, a list of them, or a loader that gives the same batches every
        time. Inputs may be a tensor, a tuple (positional arguments) or a dict (keyword
        arguments). A dict with ``"labels"``, as Hugging Face loaders give, is inputs and
        targets in one. An example is a row of targets. Measures that sample examples, or take
        them one by one, need the same row of every input and of the outputs to belong to it.
        Batches may be of different sizes: every mean is over examples, not over batches.
    parameters : str, sequence of str, callable or None
        Which parameters make up theta; see :class:`ParameterSpace`.
    batchnorm : {"eval", "batch", "refresh"}
        ``"eval"``: BatchNorm uses the model's running statistics. ``"batch"``: each batch uses
        its own, so L depends on how the data are batched. ``"refresh"``: the statistics are
        estimated again from all the data. All other layers (dropout too) are in eval mode
        under every policy. Under ``"refresh"`` the statistics are

        - estimated at every point by the loss, the accuracy, ``line``, ``plane``,
          ``path_profile``, ``random_sharpness``, ``flatness_profile``, ``noise_robustness``,
          and for the rise that ``worst_sharpness`` and ``box_sharpness`` find;
        - held at those of theta by the gradient, all matrices (also for the curvature that
          comes with a line or a plane), the search of the worst rise, ``m_sharpness``,
          ``batch_sharpness`` and the noise scales.

    Attributes
    ----------
    theta : Tensor, shape (n,)
        A copy of the model's parameters at the time the objective was made. Parameters outside
        theta and buffers are copied then too: later training does not change the objective.
    n : int
        Number of parameters in theta.

    Raises
    ------
    ValueError, TypeError
        If the data are empty or shuffled, or the criterion does not give a scalar mean that
        depends on theta; each in one sentence.

    Examples
    --------
    >>> import torch.nn.functional as F
    >>> x, y = torch.randn(23, 3), torch.randint(2, (23,))
    >>> objective = Objective(nn.Linear(3, 2), F.cross_entropy, (x, y))
    >>> objective.n, objective.gradient().shape
    (8, torch.Size([8]))
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        batches: Batch | Iterable[Batch],
        *,
        parameters: ParameterChoice = None,
        batchnorm: BatchNormPolicy = "eval",
    ) -> None:
        backends.check_model(model)
        check_callable(criterion)
        backends.check_derivatives(model)
        self.model = model
        self.criterion = criterion
        self.batchnorm = batchnorm
        self.space = ParameterSpace(model, parameters)
        self._channels_first = backends.needs_channels_first(model)
        parameters_now = dict(model.named_parameters())
        self.theta = self.space.flatten(parameters_now)
        # Copies, so that what happens to the model afterwards does not change L(theta).
        chosen = set(self.space.names)
        others = {k: p.detach().clone() for k, p in parameters_now.items() if k not in chosen}
        self._constants: dict[str, Tensor] = self._place(others)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._buffers: dict[str, Tensor] = self._place(buffers)
        self._data = as_batches(batches, self._place)
        check_policy(model, batchnorm, self._data)
        self._sampled = False  # whether it has been checked that single examples exist
        self._unchecked: MeanCheck | None = None
        self._unchecked = self._check_criterion()  # until all batches have been read

    def __repr__(self) -> str:
        return f"Objective(n={self.n}, {self.space.dtype}, {self.space.device})"

    @property
    def n(self) -> int:
        """Number of parameters in theta."""
        return self.space.n

    @property
    def constants(self) -> dict[str, Tensor]:
        """Other parameters than those of theta, and buffers, by name."""
        return {**self._constants, **self._buffers}

    @property
    def examples(self) -> int:
        """Number of examples in the data."""
        known = known_length(self._data)
        return sum(len(y) for _, y in self.batches()) if known is None else known

    def batches(self) -> Iterator[Batch]:
        """Yield the data, batch by batch, on the model's device; the first time, checked."""
        check = self._unchecked
        for batch in read(self._data):
            inputs, targets = self._place(batch[0]), self._place(batch[1])
            if check is not None:
                with backends.full_precision(self.space.device):
                    check(targets, partial(self._some_outputs, inputs))
            yield inputs, targets
        if check is self._unchecked:
            self._unchecked = None

    def sample(self, indices: Tensor) -> Batch:
        """Return the examples at `indices`, shape (b,), as one batch.

        ValueError where the rows of inputs, targets and outputs are not the examples.
        """
        if not self._sampled:
            check_sampling(self._data, self.batches(), self._pick, self._some_outputs)
            self._sampled = True
        return self._pick(indices)

    def loss(self, theta: Tensor | None = None) -> Tensor:
        """Mean loss over all examples at theta, a scalar tensor."""
        return self._totals(self._at(theta), accuracy=False)[0]

    def accuracy(self, theta: Tensor | None = None) -> Tensor:
        """Fraction of all examples classified correctly at theta, a scalar tensor."""
        _, correct = self._totals(self._at(theta), accuracy=True)
        if correct is None:
            raise ValueError("accuracy needs class labels: integer targets and (N, C) outputs")
        return correct

    def loss_and_accuracy(
        self, theta: Tensor | None = None, forward: Callable[[Any], Any] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Mean loss and accuracy from one pass; accuracy is None without class labels.

        `forward` gives the outputs of a batch's inputs at theta, where they are to be had for
        less than by the model itself.
        """
        return self._totals(self._at(theta), accuracy=True, forward=forward)

    def gradient(
        self, theta: Tensor | None = None, statistics: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Gradient of the mean loss at theta, shape (n,).

        `statistics` holds BatchNorm at what :meth:`statistics` gave; None computes it.
        """
        theta = self._at(theta)
        if statistics is None:
            statistics = self.statistics(theta)
        total, count = torch.zeros_like(theta), 0
        for batch in self.batches():
            total += self.batch_gradient(theta, batch, statistics) * len(batch[1])
            count += len(batch[1])
        return total / count

    def batch_gradient(
        self, theta: Tensor, batch: Batch, statistics: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Gradient of the mean loss over one batch, shape (n,)."""
        leaf = theta.detach().requires_grad_()
        with torch.enable_grad(), backends.full_precision(self.space.device):
            loss = self.batch_loss(leaf, batch, statistics)
            return torch.autograd.grad(loss, leaf)[0]

    def batch_loss(
        self, theta: Tensor, batch: Batch, statistics: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Mean loss over one batch, differentiable in theta (twice, attention included).

        Parameters
        ----------
        theta : Tensor, shape (n,)
        batch : (inputs, targets)
        statistics : dict or None
            What :meth:`statistics` returned for this theta; None computes it.
        """
        if statistics is None:
            statistics = self.statistics(theta)
        outputs = self.batch_outputs(self.space.unflatten(theta), batch[0], statistics)
        return self.output_loss(outputs, batch[1])

    def batch_outputs(
        self, parameters: Mapping[str, Tensor], inputs: Any, statistics: dict[str, Tensor]
    ) -> Any:
        """What the model makes of the inputs of a batch, differentiable twice.

        `parameters` names and shapes the pieces of theta, as ``space.unflatten`` does.
        """
        with self._modes(), backends.twice_differentiable(self.model, self.space.device):
            return self._outputs(parameters, inputs, statistics)

    def output_loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Mean loss of outputs, a scalar."""
        with backends.full_precision(self.space.device):
            loss = self.criterion(outputs, targets)
        if not isinstance(loss, Tensor):
            raise TypeError(f"criterion must return a tensor, got {type(loss).__name__}")
        if loss.ndim != 0:
            raise ValueError(f"criterion must return a scalar, got shape {tuple(loss.shape)}")
        return loss

    def example_values(self, theta: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Loss of every example, and whether it is classified correctly (1 or 0), shapes (N,).

        In the order of the data. The second is None where targets are not class labels.
        """
        forward = self.forward_at(theta)
        losses, correct = [], []
        with torch.no_grad(), backends.full_precision(self.space.device):
            for inputs, targets in self.batches():
                with self._modes(), fits(inputs):
                    outputs = forward(inputs)
                losses.append(split_loss(self.criterion, outputs, targets))
                correct.append(hits(outputs, targets))
        labelled = [of_batch for of_batch in correct if of_batch is not None]
        return torch.cat(losses), torch.cat(labelled) if len(labelled) == len(losses) else None

    def evaluate(self, theta: Tensor | None = None) -> Evaluation:
        """Loss and accuracy at theta, each with its standard error over the examples."""
        losses, correct = self.example_values(theta)
        accuracy = None if correct is None else Estimate.of_hits(correct)
        return Evaluation(Estimate.of(losses), accuracy)

    def per_example_gradients(
        self, theta: Tensor | None = None, chunk_size: int | None = None
    ) -> Iterator[Tensor]:
        """Yield the gradients of single examples in (b, n) blocks.

        A block is a batch, or as much of it as `chunk_size` examples, which are then all that
        is in memory at once. Under ``batchnorm="batch"`` single examples have no gradient of
        their own: ValueError.
        """
        if self.batchnorm == "batch":
            raise ValueError("per-example gradients need batchnorm='eval' or 'refresh'")
        theta = self._at(theta)
        statistics = self.statistics(theta)
        loss = partial(self.batch_loss, statistics=statistics)
        for batch in of_examples(self.batches(), self._some_outputs):
            count = len(batch[1])
            for rows in torch.arange(count, device="cpu").split(chunk_size or count):
                with backends.full_precision(self.space.device):
                    found = example_gradients(loss, theta, take(batch, rows))
                yield found

    def statistics(self, theta: Tensor) -> dict[str, Tensor]:
        """Running means and variances to use at theta, by name; empty for the model's own.

        Under ``"refresh"``: the means and variances of the batches, averaged over all batches
        in proportion to their examples (and over all uses of a layer). With few, large, mixed
        batches this is close to the statistics of all the data; batches sorted by class would
        miss variance between them.
        """
        if self.batchnorm != "refresh":
            return {}
        names = running_names(self.model)
        found = {name: torch.zeros_like(self._buffers[name]) for name in names}
        pieces = self.space.unflatten(theta.detach())
        with averaged(self.model) as begin:
            for inputs, targets in self.batches():
                begin(len(targets))
                with torch.no_grad(), self._modes(batch_statistics=True), fits(inputs):
                    self._outputs(pieces, inputs, {}, into=found)
        return found

    def forward_at(self, theta: Tensor | None = None) -> Callable[[Any], Any]:
        """Return the outputs at theta as a function of inputs, for `loss_and_accuracy`."""
        theta = self._at(theta)
        pieces, statistics = self.space.unflatten(theta), self.statistics(theta)
        return partial(self._outputs, pieces, statistics=statistics)

    def _at(self, theta: Tensor | None) -> Tensor:
        return self.theta if theta is None else self.space.check(theta)

    def _place(self, value: Any) -> Any:
        """Move tensors to the model's device; half precision becomes theta's."""
        placed = map_tensors(lambda x: move(x, self.space.device, self.space.dtype), value)
        return map_tensors(backends.channels_first, placed) if self._channels_first else placed

    def _outputs(
        self, parameters: Mapping[str, Tensor], inputs: Any, statistics: dict[str, Tensor],
        into: Mapping[str, Tensor] | None = None,
    ) -> Any:  # fmt: skip
        """What the model makes of `inputs`; `into` are buffers that it may write into."""
        buffers = {**self._buffers, **statistics}
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        state = {**self._constants, **parameters, **copies, **(into or {})}
        return logits_of(functional_call(self.model, state, *as_call(inputs)))

    def _modes(self, batch_statistics: bool = False) -> AbstractContextManager[None]:
        """Put the layers in the mode of the policy, and back."""
        batch = batch_statistics or self.batchnorm == "batch"
        return backends.modes(self.model, batch, self.space.device)

    @torch.no_grad()
    def _totals(
        self, theta: Tensor, accuracy: bool, forward: Callable[[Any], Any] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        forward = self.forward_at(theta) if forward is None else forward
        loss = correct = torch.zeros((), dtype=torch.float64, device=theta.device)
        count = labelled = 0
        for inputs, targets in self.batches():
            with self._modes(), fits(inputs):
                outputs = forward(inputs)
            of_batch = self.output_loss(outputs, targets)
            loss = loss + of_batch.double() * len(targets)
            count += len(targets)
            right = hits(outputs, targets) if accuracy else None
            if right is not None:
                correct = correct + right.sum()
                labelled += len(targets)
        return loss / count, correct / count if labelled == count else None

    def _pick(self, indices: Tensor) -> Batch:
        inputs, targets = pick(self._data, indices)
        return self._place(inputs), self._place(targets)

    def _some_outputs(self, inputs: Any) -> Any:
        """Outputs at the objective's own theta and buffers, whatever the policy."""
        with torch.no_grad():
            return self.batch_outputs(self.space.unflatten(self.theta), inputs, {})

    def _check_criterion(self) -> MeanCheck:
        """Refuse what is not a finite scalar mean over examples that depends on theta."""
        several = (batch for batch in self.batches() if len(batch[1]) > 1)
        batch = next(several, None) or next(self.batches())
        leaf = self.theta.clone().requires_grad_()
        pieces = self.space.unflatten(leaf)
        with draws_nothing(self.space.device), writes_nothing(batch[0]):
            statistics = self.statistics(self.theta)
            with torch.enable_grad(), fits(batch[0]):
                outputs = self.batch_outputs(pieces, batch[0], statistics)
        check_targets(self.criterion, outputs, batch[1])
        with torch.enable_grad(), backends.full_precision(self.space.device):
            loss = self.output_loss(outputs, batch[1])
            check_parameters(loss, self.model, pieces, self.space.unflatten(self.theta))
            check_criterion(self.criterion, outputs, batch[1], loss, leaf)
        return MeanCheck(self.criterion, outputs, batch[1])
