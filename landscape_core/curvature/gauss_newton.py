"""Positive semidefinite relatives of the Hessian: J' M J, J the Jacobian of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape_core.backends import full_precision
from landscape_core.batches import Batch
from landscape_core.criteria import Criterion, origin, split_gradient
from landscape_core.curvature.differentiable import check_differentiable
from landscape_core.curvature.graphs import OneBatch, check_losses, explained
from landscape_core.curvature.hessian import ObjectiveOperator, derivative
from landscape_core.curvature.probes import Distribution, generator, probe
from landscape_core.objective import Objective

FisherKind = Literal["exact", "monte_carlo", "empirical"]
NOT_SOFTMAX = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
    nn.GaussianNLLLoss, nn.PoissonNLLLoss, nn.SoftMarginLoss, nn.MultiMarginLoss,
    nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss,
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits, F.gaussian_nll_loss, F.poisson_nll_loss,
    F.soft_margin_loss, F.multi_margin_loss, F.multilabel_margin_loss,
    F.multilabel_soft_margin_loss,
)  # fmt: skip
OutputProduct = Callable[[Tensor], Tensor]  # (b, ...) to (b, ...), or both with k in front


class GaussNewton(ObjectiveOperator):
    r"""The generalized Gauss-Newton matrix, :math:`G = \frac{1}{N} \sum_i J_i^\top M_i J_i`.

    J is the Jacobian of the model's outputs in theta, M the Hessian of the criterion in the
    outputs. G is the Hessian of the objective with the model linearized at theta; it is
    positive semidefinite for a convex criterion. A product costs about 1.3
    gradients (Schraudolph 2002, doi:10.1162/08997660260028683).

    Parameters
    ----------
    objective : Objective
        Of a model whose output is one tensor.
    theta : Tensor, shape (n,), or None
        Where; None is the objective's own theta.
    memory_budget : float or None
        Bytes to keep between products; None is a quarter of what is free, 0 keeps nothing.

    Examples
    --------
    For a model linear in theta it is the Hessian:

    >>> import torch.nn.functional as F
    >>> x, y = torch.randn(50, 3), torch.arange(50) % 2
    >>> objective = Objective(torch.nn.Linear(3, 2), F.cross_entropy, (x, y))
    >>> from landscape_core.curvature.hessian import Hessian
    >>> torch.allclose(GaussNewton(objective).dense(), Hessian(objective).dense(), atol=1e-6)
    True
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor | None = None,
        *,
        memory_budget: float | None = None,
    ) -> None:
        super().__init__(objective, theta, memory_budget)

    def _graph(self, batch: Batch, index: int) -> _OutputGraph:
        with torch.enable_grad():
            outputs = self._outputs(batch)
        fixed = check_outputs(outputs).detach().requires_grad_()
        with torch.enable_grad():
            loss = self.objective.output_loss(fixed, batch[1])
            weights = torch.zeros_like(outputs, requires_grad=True)
            back = torch.autograd.grad(
                outputs, list(self._leaves.values()), weights, create_graph=True,
                allow_unused=True,
            )  # fmt: skip
        named = zip(self._leaves, back, strict=True)
        back_of = {k: g for k, g in named if g is not None and g.requires_grad}
        check_differentiable(back_of.values(), outputs)
        inner = self._output_product(fixed, loss, batch[1], index)
        return _OutputGraph(loss.detach(), self._leaves, outputs, weights, back_of, inner)

    def _output_product(
        self, outputs: Tensor, loss: Tensor, targets: Tensor, index: int
    ) -> OutputProduct:
        """Return the product with M over the number of examples, for the outputs of a batch."""
        self._check_criterion(outputs, targets)
        with torch.enable_grad():
            slope = torch.autograd.grad(loss, outputs, create_graph=True)[0]
        if not slope.requires_grad:  # a criterion linear in the outputs has no curvature
            return torch.zeros_like

        def product(directions: Tensor) -> Tensor:
            rows = directions.reshape(-1, *outputs.shape)
            done = [torch.autograd.grad(slope, outputs, w, retain_graph=True)[0] for w in rows]
            return torch.stack(done).view_as(directions)

        return product


class Fisher(GaussNewton):
    r"""The Fisher information matrix of a classifier, or its empirical namesake.

    ``"exact"``: :math:`\frac{1}{N} \sum_i J_i^\top (\mathrm{diag}\, p_i - p_i p_i^\top) J_i`
    with p the softmax of the outputs; it equals the Gauss-Newton matrix of cross-entropy and
    does not depend on the targets. ``"monte_carlo"``: the same expectation over `samples`
    labels of each example, drawn from p: unbiased over `seed`. ``"empirical"``: the mean of
    :math:`g_i g_i^\top` over the gradients of the examples at their own targets, for any
    criterion; not an estimate of the Fisher matrix (Kunstner et al. 2019, arXiv:1905.12558).

    Its trace takes no second derivatives: ``trace(Fisher(objective), 2, method="per_batch")``
    costs one gradient a sample. The trace of the exact matrix is that of the Hessian of
    cross-entropy where the network is piecewise linear in every parameter: a ReLU network that
    uses each of them once, with fixed statistics of BatchNorm.

    Parameters
    ----------
    objective : Objective
        For "exact" and "monte_carlo" with outputs of shape (N, C), logits whose softmax the
        criterion takes.
    theta : Tensor, shape (n,), or None
        Where; None is the objective's own theta.
    kind : {"exact", "monte_carlo", "empirical"}
    samples : int
        Labels per example, for "monte_carlo".
    seed : int
        Draws them; the same labels for every product.
    memory_budget : float or None
        Bytes to keep between products; None is a quarter of what is free, 0 keeps nothing.

    References
    ----------
    S. Amari, Natural gradient works efficiently in learning, 1998,
    doi:10.1162/089976698300017746. J. Martens 2020, arXiv:1412.1193.

    Examples
    --------
    >>> import torch.nn.functional as F
    >>> x, y = torch.randn(50, 3), torch.arange(50) % 2
    >>> objective = Objective(torch.nn.Linear(3, 2), F.cross_entropy, (x, y))
    >>> gradients = torch.cat(list(objective.per_example_gradients()))
    >>> empirical = Fisher(objective, kind="empirical").dense()
    >>> torch.allclose(empirical, gradients.T @ gradients / 50, atol=1e-6)
    True
    """

    kind: FisherKind
    samples: int
    seed: int

    def __init__(
        self,
        objective: Objective,
        theta: Tensor | None = None,
        *,
        kind: FisherKind = "exact",
        samples: int = 1,
        seed: int = 0,
        memory_budget: float | None = None,
    ) -> None:
        super().__init__(objective, theta, memory_budget=memory_budget)
        if kind not in get_args(FisherKind):
            options = ", ".join(map(repr, get_args(FisherKind)))
            raise ValueError(f"kind must be one of {options}, got {kind!r}")
        if not isinstance(seed, Integral) or seed < 0:
            raise ValueError(f"seed must be a whole number >= 0, got {seed!r}")
        if not isinstance(samples, Integral) or samples < 1:
            raise ValueError(f"samples must be a whole number >= 1, got {samples}")
        if kind == "empirical" and objective.batchnorm == "batch":
            raise ValueError("single examples have no gradient under batchnorm='batch'")
        self.kind, self.samples, self.seed = kind, int(samples), int(seed)

    def _output_product(
        self, outputs: Tensor, loss: Tensor, targets: Tensor, index: int
    ) -> _Softmax | _Outer:
        fixed = outputs.detach()
        if self.kind == "empirical":
            slopes = split_gradient(self.objective.criterion, fixed, targets)
            return _Outer(slopes.unsqueeze(0))
        if fixed.ndim != 2 or fixed.shape[1] < 2:
            raise ValueError(
                f"kind={self.kind!r} needs logits of shape (N, C), got {tuple(fixed.shape)}; "
                "kind='empirical' takes any criterion"
            )
        check_softmax(self.objective.criterion, self.kind, fixed, targets)
        p = fixed.softmax(1)
        if self.kind == "exact":
            return _Softmax(p)
        check_losses([loss], index)
        rng = generator(1_000_003 * self.seed + index, fixed.device)
        labels = torch.multinomial(p, self.samples, replacement=True, generator=rng)  # (b, S)
        one_hot = F.one_hot(labels.T, p.shape[1])  # (S, b, C)
        return _Outer(p - one_hot.to(p.dtype))

    def trace_samples(
        self, count: int, rng: torch.Generator, distribution: Distribution = "rademacher"
    ) -> list[tuple[int, Tensor]]:
        """|J'Rz|^2 for M = RR' and new probes z: one gradient a sample, no second derivative.

        With signs for z only pairs scatter: of different examples, outputs or drawn labels.
        """
        own = type(self)._multiply is not ObjectiveOperator._multiply  # a matrix of one's own
        if own or isinstance(self._graphs, OneBatch):
            return super().trace_samples(count, rng, distribution)
        results, losses = [], []
        leaves = [self._leaves[name] for name in self._chosen]
        for index, batch in enumerate(self.objective.batches()):
            with explained(), full_precision(self.device):
                with torch.enable_grad():
                    outputs = check_outputs(
                        self.objective.batch_outputs(self._leaves, batch[0], self._statistics)
                    )
                fixed = outputs.detach()
                losses.append(self.objective.output_loss(fixed, batch[1]))
                inner, samples = self._output_product(fixed, losses[-1], batch[1], index), []
                for left in reversed(range(count)):
                    z = probe(inner.shape.numel(), outputs.dtype, rng, distribution)
                    gradient = torch.autograd.grad(
                        outputs, leaves, inner.root(z.view(inner.shape)),
                        retain_graph=left > 0, allow_unused=True,
                    )  # fmt: skip
                    samples.append(_squared_length(gradient, z))
            results.append((len(batch[1]), torch.stack(samples).cpu()))
            del outputs, fixed, inner, gradient  # before the next ones are made
        check_losses(losses)
        self.matvecs += count
        return results


def _squared_length(pieces: Iterable[Tensor | None], like: Tensor) -> Tensor:
    """Sum of all squares, in float64 on the device of `like`; None is a piece of zeros."""
    lengths = (
        torch.linalg.vector_norm(piece, dtype=torch.float64).square()
        for piece in pieces if piece is not None
    )  # fmt: skip
    return sum(lengths, like.new_zeros((), dtype=torch.float64))


def check_outputs(outputs: Any) -> Tensor:
    """Refuse outputs that are more than one tensor."""
    if not isinstance(outputs, Tensor):
        kind = type(outputs).__name__
        raise TypeError(f"the model's output must be one tensor, got {kind}")
    return outputs


def check_softmax(criterion: Criterion, kind: str, outputs: Tensor, targets: Tensor) -> None:
    """Refuse criteria and targets that do not belong to the softmax of the outputs.

    The slope of such a criterion is the softmax minus probabilities: those of the targets.
    """
    source, _ = origin(criterion)
    dense = targets.shape == outputs.shape  # else labels, or what the criterion makes them of
    got = ""
    if source in NOT_SOFTMAX:
        got = source.__name__
    elif dense and bool(((targets.double().sum(1) - 1).abs() > 1e-2).any()):
        got = "targets that are no probabilities of classes"
    elif not _is_cross_entropy(criterion, outputs, targets):
        got = "one whose slopes are not those of cross-entropy"
    if got:
        raise ValueError(
            f"kind={kind!r} needs a criterion on the softmax of the outputs, got {got}: "
            "kind='empirical' and GaussNewton take any criterion"
        )


def _is_cross_entropy(criterion: Criterion, outputs: Tensor, targets: Tensor) -> bool:
    """Whether its slopes are softmax minus the same probabilities at two outputs."""
    points = [outputs, (outputs / 2).log_softmax(1)]
    slopes = [split_gradient(criterion, point, targets) for point in points]
    if not all(bool(slope.isfinite().all()) for slope in slopes):
        return True  # a loss that is not finite is refused with the number of its batch
    logits = bool((outputs.logsumexp(1).abs() > 1e-3).any())
    for share in (1.0,) if logits else (1.0, 0.0):  # minus these alone: of log-probabilities
        pairs = zip(points, slopes, strict=True)
        there, elsewhere = (share * z.softmax(1) - slope for z, slope in pairs)
        sums = (there.sum(1) - 1).abs().max()
        off = torch.stack(
            [sums, -there.min(), there.max() - 1, (there - elsewhere).abs().max()]
        )
        if bool((off < 1e-2).all()):
            return True
    return False


@dataclass
class _Softmax:
    """M = diag(p) - p p' over the examples, and its root diag(sqrt p) - p sqrt(p)'."""

    p: Tensor  # (b, C)

    @property
    def shape(self) -> torch.Size:
        """Of what `root` takes."""
        return self.p.shape

    def __call__(self, directions: Tensor) -> Tensor:
        p = self.p
        return p * (directions - (p * directions).sum(-1, keepdim=True)) / len(p)

    def root(self, z: Tensor) -> Tensor:
        """R z with R R' = M."""
        along = self.p.sqrt() * z
        return (along - self.p * along.sum(-1, keepdim=True)) / len(self.p) ** 0.5


@dataclass
class _Outer:
    """Mean over S and b of q q', for q the rows of `slopes`, shape (S, b, ...)."""

    slopes: Tensor

    @property
    def shape(self) -> torch.Size:
        """Of what `root` takes: a number for every q."""
        return self.slopes.shape[:2]

    def __call__(self, directions: Tensor) -> Tensor:
        samples, count = self.shape
        rows = self.slopes.reshape(*self.shape, -1)
        flat = directions.reshape(-1, count, rows.shape[2])  # (k, b, c)
        along = torch.einsum("sbc,kbc->ksb", rows, flat)
        done = torch.einsum("ksb,sbc->kbc", along, rows) / (samples * count)
        return done.view_as(directions)

    def root(self, z: Tensor) -> Tensor:
        """R z with R R' = M."""
        summed = torch.einsum("sb,sbc->bc", z, self.slopes.reshape(*self.shape, -1))
        return summed.view(self.slopes.shape[1:]) / self.shape.numel() ** 0.5


@dataclass
class _OutputGraph:
    """The outputs of one batch as a function of theta, and the curvature on top of them.

    `back` are the products u'J for u = `weights`. They are linear in u, so that their
    derivative along v in the place of theta is J v: two backward passes make a forward one.
    """

    loss: Tensor
    leaves: Mapping[str, Tensor]
    outputs: Tensor
    weights: Tensor
    back: dict[str, Tensor]
    inner: OutputProduct

    def tensors(self) -> Iterable[Tensor]:
        return [self.outputs, *self.back.values()]

    def multiply(self, directions: Mapping[str, Tensor], retain: bool) -> dict[str, Tensor]:
        names = [name for name in directions if name in self.back]
        pushed = derivative(
            [self.back[name] for name in names],
            {"outputs": self.weights},
            [directions[name] for name in names],
            retain=True,
        )
        if not pushed:
            return {}
        leaves = {name: self.leaves[name] for name in directions}
        return derivative([self.outputs], leaves, [self.inner(pushed["outputs"])], retain)
