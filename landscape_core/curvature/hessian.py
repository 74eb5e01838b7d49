"""Operators of an objective at one theta: what they share, and the Hessian."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from landscape_core.backends import full_precision
from landscape_core.batches import Batch
from landscape_core.curvature.differentiable import (
    check_criterion,
    check_differentiable,
    check_model,
    has_custom_functions,
)
from landscape_core.curvature.graphs import OneBatch, PerBatch, check_losses, explained
from landscape_core.curvature.operators import SymmetricOperator
from landscape_core.curvature.probes import generator, probe
from landscape_core.curvature.rewrites import CheapSecondDerivatives, ExactLayerNorm
from landscape_core.objective import Objective
from landscape_core.parameter_space import ParameterChoice, ParameterSpace

Method = Literal["autograd", "finite_difference"]
T = TypeVar("T")
CHUNK = 16  # columns of a block that go through a graph together


class ObjectiveOperator(SymmetricOperator):
    """A matrix that belongs to an objective at theta, a sum over its batches."""

    def __init__(
        self, objective: Objective, theta: Tensor | None, memory_budget: float | None
    ) -> None:
        if not isinstance(objective, Objective):
            name, kind = type(self).__name__, type(objective).__name__
            raise TypeError(f"{name} needs an Objective(model, criterion, data), got {kind}")
        space = objective.space
        super().__init__(space.n, space.dtype, space.device)
        self.objective = objective
        self.theta = objective.theta if theta is None else space.check(theta).clone()
        self._statistics = objective.statistics(self.theta)
        # One leaf to a parameter: a block then differentiates only what it needs.
        pieces = space.unflatten(self.theta.clone())
        self._leaves = {name: piece.requires_grad_() for name, piece in pieces.items()}
        self._chosen = space.names
        self._graphs: PerBatch[Any] | OneBatch[Any] = PerBatch(objective, memory_budget)
        self._rewritten = True
        self._sound = False  # whether the criterion was found to be differentiable twice
        self._batched = _together_pays(objective.model, space.n, space.device)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that the rows and columns belong to, in order."""
        return self._chosen

    @property
    def layers(self) -> dict[str, list[str]]:
        """Names of the parameters of each layer, by the module that owns them, in order."""
        groups: dict[str, list[str]] = {}
        for name in self._chosen:
            groups.setdefault(name.rpartition(".")[0] or name, []).append(name)
        return groups

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """How many rows belong to each run of parameters of one layer, in order."""
        owners = [name.rpartition(".")[0] or name for name in self._chosen]
        sizes: list[int] = []
        for index, name in enumerate(self._chosen):
            size = self._leaves[name].numel()
            if index and owners[index] == owners[index - 1]:
                sizes[-1] += size
            else:
                sizes.append(size)
        return tuple(sizes)

    def block(self, parameters: ParameterChoice) -> SymmetricOperator:
        """Return the diagonal block of some of the parameters, as an operator of its own.

        `parameters` is a glob pattern, several, or a function, as for :class:`Objective`. The
        block shares what this operator keeps in memory, and costs less to multiply by.
        """
        wanted = ParameterSpace(self.objective.model, parameters).names
        names = tuple(name for name in self._chosen if name in wanted)
        if not names:
            raise ValueError(f"no parameters of theta match {parameters!r}")
        part = copy.copy(self)
        part._chosen = names
        part.n = sum(self._leaves[name].numel() for name in names)
        part.matvecs = 0
        return part

    def _build(self, batch: Batch, index: int) -> Any:
        if self._rewritten:
            try:
                return self._graph(batch, index)
            except torch.cuda.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, ValueError):
                self._rewritten = False  # a model that does more than pass through its layers
        return self._graph(batch, index)

    def _graph(self, batch: Batch, index: int) -> Any:
        raise TypeError(f"{type(self).__name__} does not define what it keeps of a batch")

    def _outputs(self, batch: Batch) -> Any:
        """Outputs of a batch, with a graph that is cheap to differentiate twice."""
        cheap = CheapSecondDerivatives(self._graphs.keeps, self._batched)
        with cheap if self._rewritten else ExactLayerNorm():
            return self.objective.batch_outputs(self._leaves, batch[0], self._statistics)

    def _check_criterion(self, outputs: Any, targets: Tensor) -> None:
        """Refuse a criterion that autograd differentiates only once, until one is sound."""
        if not self._sound:
            self._sound = check_criterion(self.objective.output_loss, outputs, targets)

    def _pieces(self, rows: Tensor) -> dict[str, Tensor]:
        """Views of `rows`, shape (k, n), one to a parameter, shape (k, ...)."""
        sizes = [self._leaves[name].numel() for name in self._chosen]
        parts = zip(self._chosen, rows.split(sizes, dim=1), strict=True)
        return {k: part.view(len(rows), *self._leaves[k].shape) for k, part in parts}

    def map_batches(self, function: Callable[[SymmetricOperator], T]) -> list[tuple[int, T]]:
        """See :meth:`SymmetricOperator.map_batches`; here the batches are the objective's."""

        def build(batch: Batch, index: int) -> Any:
            with explained(), full_precision(self.device):
                graph = self._build(batch, index)
            check_losses([graph.loss], index)
            return graph

        results, most = [], 0
        for size, graph, _ in self._graphs.graphs(build):
            part = copy.copy(self)
            part._graphs, part.matvecs = OneBatch(size, graph), 0
            results.append((size, function(part)))
            most, self._batched = max(most, part.matvecs), part._batched
            del part, graph  # before the next one is built
        self.matvecs += most
        return results

    def _multiply(self, vectors: Tensor) -> Tensor:
        rows = vectors.T.contiguous()  # (k, n)
        with explained(), full_precision(vectors.device):
            if self._batched:
                try:
                    return self._products(rows, CHUNK).T
                except torch.cuda.OutOfMemoryError:
                    raise
                except RuntimeError:  # a function of the model that cannot be batched
                    self._batched = False
            return self._products(rows, 1).T

    def _products(self, rows: Tensor, width: int) -> Tensor:
        """Products with the rows, shape (k, n), `width` of them through a graph at once."""
        total, examples = torch.zeros_like(rows), 0
        into, along = self._pieces(total), self._pieces(rows)
        starts = range(0, len(rows), width)
        for size, graph, kept in self._graphs.graphs(self._build):
            examples += size
            for start in starts:
                part = slice(start, start + width)
                retain = kept or start != starts[-1]
                directions = {name: piece[part] for name, piece in along.items()}
                for name, product in graph.multiply(directions, retain).items():
                    into[name][part].add_(product, alpha=size)
        return total.div_(examples)


class Hessian(ObjectiveOperator):
    r"""The Hessian of an objective at theta, :math:`H = \nabla^2 L(\theta)`.

    A product is the derivative of the gradient along v,
    :math:`Hv = \nabla_\theta \langle \nabla L(\theta), v \rangle`, summed over all batches in
    proportion to their examples (Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147). The graphs
    of the gradients are kept between products while they fit, and a product then costs about
    two gradients; three where they do not.

    Parameters
    ----------
    objective : Objective
    theta : Tensor, shape (n,), or None
        Where; None is the objective's own theta.
    method : {"autograd", "finite_difference"}
        ``"finite_difference"`` needs only first derivatives: central differences of gradients
        at a distance of ``(1 + |theta| / 10) * eps ** (1/3) / 10``, where ``eps ** (1/3)`` is
        5e-3 in float32 and 6e-6 in float64. A product costs four gradients: two more, at twice
        the distance, tell its error, and no residual is claimed to be below that. It is about
        ``eps ** (2/3)`` at best. Where the loss has kinks within the distance, as that of a
        ReLU network in float32, it may be as large as the product: use float64 there.
    memory_budget : float or None
        Bytes to keep between products: less memory, more time. None is a quarter of what is
        free; 0 keeps nothing.

    Raises
    ------
    ValueError
        If theta does not belong to the objective, or the loss has no second derivative.
    FloatingPointError
        From a product, if the loss of a batch is not finite.
    MemoryError
        From a product.

    Examples
    --------
    >>> import torch.nn.functional as F
    >>> x, y = torch.randn(50, 3), torch.randn(50, 1)
    >>> H = Hessian(Objective(torch.nn.Linear(3, 1, bias=False), F.mse_loss, (x, y)))
    >>> torch.allclose(H.dense(), 2 / 50 * x.T @ x, atol=1e-5)
    True
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor | None = None,
        *,
        method: Method = "autograd",
        memory_budget: float | None = None,
    ) -> None:
        super().__init__(objective, theta, memory_budget)
        if method not in get_args(Method):
            options = " or ".join(map(repr, get_args(Method)))
            raise ValueError(f"method must be {options}, got {method!r}")
        self.method = method
        if method == "finite_difference":
            self.rounding = torch.finfo(self.dtype).eps ** (2 / 3)
        self._followed = False  # whether the model's own backward passes were checked
        self._largest = self._error = 0.0  # largest product of a unit vector, and its error

    def _graph(self, batch: Batch, index: int) -> _GradientGraph:
        leaves = self._leaves
        with torch.enable_grad():
            outputs = self._outputs(batch)
            self._check_criterion(outputs, batch[1])
            loss = self.objective.output_loss(outputs, batch[1])
            pieces = torch.autograd.grad(
                loss, list(leaves.values()), create_graph=True, allow_unused=True
            )
        named = zip(leaves, pieces, strict=True)
        gradient = {k: g for k, g in named if g is not None and g.requires_grad}
        check_differentiable(gradient.values(), loss)
        graph = _GradientGraph(loss.detach(), leaves, gradient)
        if not self._followed and has_custom_functions(outputs):
            self._check_model(graph, outputs, batch)
        self._followed = True
        return graph

    def _check_model(self, graph: _GradientGraph, outputs: Any, batch: Batch) -> None:
        """Compare a product with differences of gradients of the first batch."""
        v = probe(self.n, self.dtype, generator(0, self.device), "sphere") / self.n**0.5
        size = 1 + 0.1 * float(self.theta.norm())
        step = size * torch.finfo(self.dtype).eps ** (1 / 3) * v
        found = graph.multiply(self._pieces(step[None]), True)
        along = self._widen(self._pieces(step[None]))

        def gradient(share: float) -> Tensor:
            point = self.theta + share * along
            return self._cut(self.objective.batch_gradient(point, batch, self._statistics))

        claimed = self._cut(self._widen(found))
        check_model(gradient, claimed, float(step.norm()), outputs)

    def _widen(self, pieces: Mapping[str, Tensor]) -> Tensor:
        """A vector in theta, shape (n,), of pieces of shape (1, ...), zero in all others."""
        full = {name: torch.zeros_like(leaf) for name, leaf in self._leaves.items()}
        full |= {name: piece[0] for name, piece in pieces.items()}
        return self.objective.space.flatten(full)

    def _cut(self, full: Tensor) -> Tensor:
        """The entries of a vector in theta that this matrix is of."""
        pieces = self.objective.space.unflatten(full)
        return torch.cat([pieces[name].reshape(-1) for name in self._chosen])

    def map_batches(self, function: Callable[[SymmetricOperator], T]) -> list[tuple[int, T]]:
        """See :meth:`SymmetricOperator.map_batches`; not with finite differences."""
        if self.method == "finite_difference":
            raise ValueError(
                "batches have matrices of their own with method='autograd', "
                "got 'finite_difference'"
            )
        return super().map_batches(function)

    def _multiply(self, vectors: Tensor) -> Tensor:
        if self.method == "autograd":
            return super()._multiply(vectors)
        if self.matvecs == vectors.shape[1]:  # the first product
            check_losses(self._losses())
        with explained(), full_precision(vectors.device):
            columns = [self._difference(vectors[:, i]) for i in range(vectors.shape[1])]
        return torch.stack(columns, dim=1) if columns else vectors.clone()

    def _losses(self) -> list[Tensor]:
        with torch.no_grad():
            return [
                self.objective.batch_loss(self.theta, batch, self._statistics)
                for batch in self.objective.batches()
            ]

    def _difference(self, v: Tensor) -> Tensor:
        length = v.norm()
        if not bool(length > 0):
            return torch.zeros_like(v)
        size = 1 + 0.1 * float(self.theta.norm())
        step = 0.1 * size * torch.finfo(self.dtype).eps ** (1 / 3) / length
        along = self._widen(self._pieces(v.unsqueeze(0)))

        def product(step: Tensor) -> Tensor:
            ahead = self.objective.gradient(self.theta + step * along, self._statistics)
            behind = self.objective.gradient(self.theta - step * along, self._statistics)
            return self._cut((ahead - behind) / (2 * step))

        near, far = product(step), product(2 * step)
        # A jump of the gradient next to theta enters the far one with half of its weight.
        error = 2 * float((near - far).norm() / length)
        self._error = max(self._error, error)
        self._largest = max(self._largest, error, float(near.norm() / length))
        least = torch.finfo(self.dtype).eps ** (2 / 3)
        self.rounding = max(least, self._error / self._largest) if self._largest else least
        return near


@dataclass
class _GradientGraph:
    """The gradient of the mean loss of one batch, as a function of theta."""

    loss: Tensor
    leaves: Mapping[str, Tensor]
    gradient: dict[str, Tensor]

    def tensors(self) -> Iterable[Tensor]:
        return self.gradient.values()

    def multiply(self, directions: Mapping[str, Tensor], retain: bool) -> dict[str, Tensor]:
        names = [name for name in directions if name in self.gradient]
        return derivative(
            [self.gradient[name] for name in names],
            {name: self.leaves[name] for name in directions},
            [directions[name] for name in names],
            retain,
        )


def derivative(
    outputs: Sequence[Tensor],
    inputs: Mapping[str, Tensor],
    weights: Sequence[Tensor],
    retain: bool,
) -> dict[str, Tensor]:
    """Vector-Jacobian products of `outputs`, for k weights stacked on the first axis."""
    if not outputs:
        return {}
    together = len(weights[0]) > 1
    products = torch.autograd.grad(
        list(outputs),
        list(inputs.values()),
        [w if together else w[0] for w in weights],
        retain_graph=retain,
        allow_unused=True,
        is_grads_batched=together,
    )
    named = zip(inputs, products, strict=True)
    return {k: p if together else p.unsqueeze(0) for k, p in named if p is not None}


def _together_pays(model: nn.Module, n: int, device: torch.device) -> bool:
    """Whether several vectors should go through a graph at once.

    It saves the overhead of small layers: 16 vectors cost half as much each for n = 3,500, but
    1.4 times as much for n = 1,900,000 (one CPU thread). Autograd cannot batch convolutions.
    """
    kinds = (nn.modules.conv._ConvNd, nn.modules.pooling._MaxPoolNd, nn.RNNBase)
    if any(isinstance(module, kinds) for module in model.modules()):
        return False
    return n <= (50_000 if device.type == "cpu" else 1_000_000)
