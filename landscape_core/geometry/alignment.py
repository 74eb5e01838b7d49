"""Permuting the units of one network so that it matches another; the function stays."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from landscape_core.batches import as_call, logits_of, tensors_of
from landscape_core.curvature.probes import Seed, generator
from landscape_core.geometry.permutations import Axis, PermutationSpec, by_unit
from landscape_core.geometry.tracing import trace_permutations, unit_activations
from landscape_core.geometry.units import batchnorm_buffers
from landscape_core.objective import Objective

Method = Literal["weights", "activations"]
STARTS, STEPS = 8, 10  # of the local search, besides the permutation it is at
CPU = torch.device("cpu")  # where permutations are found, whatever the default device


@dataclass(frozen=True)
class Alignment:
    """A network with its units permuted to match another one.

    Attributes
    ----------
    model : nn.Module
        The permuted network, a copy; BatchNorm's statistics are permuted too.
    theta : Tensor, shape (n,)
        Its parameters, in the order of the objective's theta.
    permutations : mapping from group to Tensor
        Unit i of a group is unit ``permutation[i]`` of the network before.
    spec : PermutationSpec
    distances : (float, float)
        l2 distance of theta to the other network's, before and after.
    change : float
        Largest change of an output, relative to the largest output: rounding. From the first,
        the middle and the last batch.
    sweeps : int
        Passes over the groups that were matched by weights, until none moved any more.
    """

    model: nn.Module = field(repr=False)
    theta: Tensor = field(repr=False)
    permutations: dict[int, Tensor] = field(repr=False)
    spec: PermutationSpec
    distances: tuple[float, float]
    change: float
    sweeps: int


def align(
    objective_a: Objective,
    objective_b: Objective,
    *,
    method: Method = "weights",
    spec: PermutationSpec | None = None,
    seed: Seed = 0,
) -> Alignment:
    r"""Permute the hidden units of network b to match those of network a.

    ``"weights"``: the permutations P that minimize :math:`|\theta_a - P \theta_b|`, one group
    of units at a time, until none moves. This is exact by linear assignment where no weight has
    both axes in the group; otherwise, as in a square layer of a residual stream, a local search
    that never raises the distance. ``"activations"``: for each group the assignment with the
    largest sum of correlations between the units' activations on the data of `objective_a`;
    groups inside a layer of PyTorch's, such as heads of attention, are matched by weights
    afterwards.

    Parameters
    ----------
    objective_a, objective_b : Objective
        Of networks of one architecture, each at its own theta. What theta does not hold, frozen
        parameters and buffers, must be the same in both, BatchNorm's statistics aside.
    method : {"weights", "activations"}
    spec : PermutationSpec or None
        Which units can be exchanged; None traces the model with :func:`trace_permutations`.
        Units that buffers other than BatchNorm's belong to must keep their places.
    seed : int or torch.Generator
        Order of the groups and starts of the local search, for "weights"; a generator must be
        on the CPU.

    Returns
    -------
    Alignment
        ``Segment(objective_a.theta, alignment.theta)`` is the path between the two. With
        BatchNorm, measure it under ``batchnorm="refresh"`` (Jordan et al. 2022,
        arXiv:2211.08403).

    Raises
    ------
    ValueError
        If the networks differ in shape or in what theta does not hold, nothing can be permuted,
        or the outputs change by more than rounding, which means that the specification is
        wrong.

    References
    ----------
    S. Ainsworth et al., Git Re-Basin, 2023, arXiv:2209.04836. R. Entezari et al. 2021,
    arXiv:2110.06296.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be 'weights' or 'activations', got {method!r}")
    check_shapes(objective_a, objective_b)
    models = [_at_theta(objective) for objective in (objective_a, objective_b)]
    arguments, keywords = _first_inputs(objective_a)
    if spec is None:
        spec = trace_permutations(models[1], *arguments, **keywords)
    state_a, state_b = map(_tensors, models)
    spec.check(state_b)
    _check_theta_holds(spec, models[1], objective_b)
    check_constants(objective_a, objective_b)
    if not spec.sizes:
        raise ValueError("no units of this network can change places")
    order, seen = generator(seed, CPU), None
    if method == "activations":
        used = [_at_theta(each, used=True) for each in (objective_a, objective_b)]
        seen = _match_activations(spec, used, objective_a)
    statistics = batchnorm_buffers(models[1])
    permutations, sweeps = match_weights(spec, state_a, state_b, order, seen, statistics)
    permuted = copy.deepcopy(models[1])
    moved = spec.apply(permutations, state_b)
    with torch.no_grad():
        for name, tensor in _named(permuted):
            tensor.copy_(moved[name])
    change = _output_change(models[1], permuted, objective_a)
    if not change < 100 * torch.finfo(objective_b.theta.dtype).eps ** 0.75:
        raise ValueError(
            f"the outputs changed by {change:.2g} of their size: the specification names units "
            "that cannot change places"
        )
    theta = objective_b.space.flatten(dict(permuted.named_parameters()))
    ends = (objective_b.theta, theta)
    before, after = (float((objective_a.theta - end).norm()) for end in ends)
    return Alignment(permuted, theta, permutations, spec, (before, after), change, sweeps)


def check_shapes(objective_a: Objective, objective_b: Objective) -> None:
    """Refuse networks whose theta is not made of the same parameters."""
    if objective_a.space.names != objective_b.space.names or (
        objective_a.space.shapes != objective_b.space.shapes
    ):
        raise ValueError("the networks must have the same parameters, of the same shapes")


def check_constants(objective_a: Objective, objective_b: Objective) -> None:
    """Refuse networks of which one, with the theta of the other, is not the other."""
    a, b = objective_a.constants, objective_b.constants
    names = {**a, **b}.keys() - batchnorm_buffers(objective_a.model)
    other = sorted(name for name in names if not _equal(a.get(name), b.get(name)))
    if other:
        raise ValueError(
            "frozen parameters and buffers must be the same in both networks, got others in "
            f"{', '.join(other[:4])}: a path changes theta alone"
        )


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b.to(a))


def match_weights(
    spec: PermutationSpec,
    state_a: dict[str, Tensor],
    state_b: dict[str, Tensor],
    rng: torch.Generator,
    known: Mapping[int, Tensor] | None = None,
    leave_out: Collection[str] = (),
    most: int = 100,
) -> tuple[dict[int, Tensor], int]:
    """Permutations of b that bring its weights closest to those of a, and the sweeps made.

    Coordinate descent: a step is taken only if it lowers the distance. It is the best one by
    linear assignment where no weight has both axes in the group, and found by a local search
    otherwise. Where it ends need not be the best of all. Groups that are `known` stay as they
    are; tensors to `leave_out` move along, and do not count.
    """
    known = known or {}
    permutations = spec.identity() | dict(known)
    users: dict[int, list[str]] = {group: [] for group in spec.sizes}
    for name, axes in spec.axes.items():
        for group in {axis.group for axis in axes.values()}:
            if state_b[name].is_floating_point() and name not in leave_out:
                users[group].append(name)
    groups = [group for group in spec.sizes if group not in known]
    gains = {
        group: _Similarity(spec, state_a, state_b, group, users[group]) for group in groups
    }
    # A group is due until it was solved after the last move of any that it shares weights with.
    due, sweeps = set(groups), 0
    starts = torch.Generator(CPU)  # of its own: the order of the groups does not depend on it
    starts.set_state(rng.get_state())
    while due and sweeps < most:
        sweeps += 1
        for index in torch.randperm(len(groups), generator=rng, device=CPU).tolist():
            group = groups[index]
            if group not in due:
                continue
            due.discard(group)
            found = gains[group].better(permutations, starts)
            if found is not None:
                permutations[group] = found
                due |= {g for g in groups if g != group and set(users[g]) & set(users[group])}
    return permutations, sweeps


class _Similarity:
    """Inner products of the weights of every unit of a with every unit of b, on the CPU.

    They change only where the other axes have moved: what did not move is not multiplied
    again.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        state_a: dict[str, Tensor],
        state_b: dict[str, Tensor],
        group: int,
        names: list[str],
    ) -> None:
        self.spec, self.group = spec, group
        self.pairs = {name: (state_a[name], state_b[name]) for name in names}
        self.size = spec.sizes[group]
        self.total = torch.zeros(self.size, self.size, dtype=torch.float64, device=CPU)
        self.parts: list[tuple[str, int, Axis, Tensor]] = [
            (name, dim, axis, by_unit(state_a[name], dim, axis, self.size))
            for name in names
            for dim, axis in spec.axes[name].items()
            if axis.group == group
        ]
        self.seen: list[Tensor | None] = [None] * len(self.parts)

    def better(self, permutations: dict[int, Tensor], rng: torch.Generator) -> Tensor | None:
        """A permutation of the group that lowers the distance; None where none was found."""
        if len(self.parts) > len(self.pairs):  # a weight has both axes in the group
            return self._searched(permutations, rng)
        gain = self.at(permutations)
        found, rows = _assign(gain), torch.arange(self.size, device=CPU)
        new, old = gain[rows, found].sum(), gain[rows, permutations[self.group]].sum()
        return found if new > old + 1e-6 * old.abs() else None

    def _searched(self, permutations: dict[int, Tensor], rng: torch.Generator) -> Tensor | None:
        """The best of repeated assignments, from here and from random permutations.

        Each takes the other axis of a weight as permuted before, so it can raise the distance.
        """
        here = permutations[self.group]
        starts = [torch.randperm(self.size, generator=rng, device=CPU) for _ in range(STARTS)]
        best, most = None, self._product(permutations)
        for found in [here, *starts]:
            for _ in range(STEPS):
                before = found
                found = _assign(self.at(permutations | {self.group: before}))
                if torch.equal(found, before):
                    break
                new = self._product(permutations | {self.group: found})
                if new > most + 1e-6 * abs(most):
                    best, most = found, new
        return best

    def _product(self, permutations: dict[int, Tensor]) -> float:
        """The inner product of the weights of a with those of b, all axes permuted."""
        return sum(
            float(a.double().mul(self.spec.permute(permutations, name, b)).sum())
            for name, (a, b) in self.pairs.items()
        )

    def at(self, permutations: dict[int, Tensor]) -> Tensor:
        """The inner products with all other axes of b permuted, shape (size, size)."""
        for i, (name, dim, axis, of_a) in enumerate(self.parts):
            other = self.spec.permute(permutations, name, self.pairs[name][1], but=dim)
            of_b, before = by_unit(other, dim, axis, self.size), self.seen[i]
            if before is None:
                self.total += (of_a @ of_b.T).double().cpu()
            else:
                moved = (of_b != before).any(0)
                change = (of_b[:, moved] - before[:, moved]).T
                self.total += (of_a[:, moved] @ change).double().cpu()
            self.seen[i] = of_b
        return self.total


def _match_activations(
    spec: PermutationSpec, models: list[nn.Module], objective: Objective
) -> dict[int, Tensor]:
    """Assign units by the correlations of their activations over all examples.

    Groups inside a layer of PyTorch's, such as the heads of attention, are not seen.
    """
    sums: dict[int, list[Tensor]] = {}
    middle: dict[int, list[Tensor]] = {}  # squares of what is far from 0 lose the spread
    for inputs, _ in objective.batches():
        arguments, keywords = as_call(inputs)
        of_a, of_b = (unit_activations(model, spec, *arguments, **keywords) for model in models)
        for group in of_a:
            both = [of_a[group], of_b[group]]
            means = middle.setdefault(group, [rows.mean(1, keepdim=True) for rows in both])
            rows_a, rows_b = (rows - mean for rows, mean in zip(both, means, strict=True))
            parts = [rows_a @ rows_b.T, rows_a.sum(1), rows_b.sum(1),
                     rows_a.square().sum(1), rows_b.square().sum(1),
                     torch.tensor(float(rows_a.shape[1]), device=CPU)]  # fmt: skip
            parts = [part.double().cpu() for part in parts]
            known = sums.get(group)
            sums[group] = (
                parts if known is None else [x + y for x, y in zip(known, parts, strict=True)]
            )
    permutations = {}
    for group, (product, a, b, aa, bb, count) in sums.items():
        covariance = product / count - torch.outer(a, b) / count**2
        spread_a = (aa / count - (a / count) ** 2).clamp_min(0).sqrt()
        spread_b = (bb / count - (b / count) ** 2).clamp_min(0).sqrt()
        scale = torch.outer(spread_a, spread_b)
        correlation = torch.where(scale > 0, covariance / scale, 0.0)  # dead units match any
        permutations[group] = _assign(correlation)
    return permutations


def _assign(gain: Tensor) -> Tensor:
    """The permutation that maximizes the sum of ``gain[i, permutation[i]]``."""
    _, columns = linear_sum_assignment(gain.numpy(), maximize=True)
    return torch.from_numpy(columns)


def _at_theta(objective: Objective, used: bool = False) -> nn.Module:
    """A copy of an objective's model, in eval mode, with the parameters of its theta.

    Its statistics of BatchNorm are its own, or those that the objective has `used`.
    """
    model = copy.deepcopy(objective.model).eval()
    model.to(objective.space.dtype)
    pieces = objective.constants | objective.space.unflatten(objective.theta)
    if used:
        pieces |= objective.statistics(objective.theta)
    with torch.no_grad():
        for name, tensor in _named(model):
            tensor.copy_(pieces[name])
    return model


def _named(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, a tied one by its first name only."""
    return [*model.named_parameters(), *model.named_buffers()]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by each of their names."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor.detach() for name, tensor in named}


def _check_theta_holds(spec: PermutationSpec, model: nn.Module, objective: Objective) -> None:
    """Refuse a specification that moves what is not in theta, BatchNorm's statistics aside."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    kept = sorted(set(spec.axes) & set(buffers) - batchnorm_buffers(model))
    if kept:
        raise ValueError(
            "the specification must leave units in their places that buffers belong to, got "
            f"{', '.join(kept[:4])}: a path changes theta alone"
        )
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    held = {name for name, parameter in every if first[id(parameter)] in objective.space.names}
    outside = sorted(set(spec.axes) - held - set(buffers))
    if outside:
        raise ValueError(
            "theta must hold all parameters whose units change places, it lacks "
            f"{', '.join(outside[:4])}: make the objectives without `parameters`, of "
            "networks with nothing frozen"
        )


def _first_inputs(objective: Objective) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inputs, _ = next(iter(objective.batches()))
    return as_call(inputs)


@torch.no_grad()
def _output_change(a: nn.Module, b: nn.Module, objective: Objective) -> float:
    count = sum(1 for _ in objective.batches())
    changes, sizes = [], []
    for index, (inputs, _) in enumerate(objective.batches()):
        if index in (0, count // 2, count - 1):
            arguments, keywords = as_call(inputs)
            outputs = (logits_of(model(*arguments, **keywords)) for model in (a, b))
            for first, second in zip(*map(tensors_of, outputs), strict=True):
                changes.append((first - second).abs().max())
                sizes.append(first.abs().max())
    change = torch.stack(changes).max()
    return float(change / torch.stack(sizes).max()) if change else 0.0  # all may be zero
