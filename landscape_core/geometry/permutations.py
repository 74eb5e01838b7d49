"""Which units of a network may change places without changing its function.

The hidden units of a layer have no order: permuting them, with the rows of the weights that
make them and the columns of the weights that read them, leaves the function as it is. A
:class:`PermutationSpec` names the groups of units that can be permuted, and says which axis of
which parameter belongs to which group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter or of activations, as units of a group.

    Its entries are ordered as ``(outer, units, inner)``: a convolution's channel that was
    flattened has `inner` pixels, the stacked projections of attention have `outer` 3.
    """

    group: int
    outer: int = 1
    inner: int = 1


@dataclass(frozen=True)
class PermutationSpec:
    """Groups of exchangeable units.

    Attributes
    ----------
    sizes : mapping from group to int
        Number of units of each group.
    axes : mapping from name to mapping from int to Axis
        For parameters and buffers by name: which of their axes belong to which group. Axes that
        are not named stay as they are.

    Examples
    --------
    Four hidden units between two linear layers:

    >>> spec = PermutationSpec(
    ...     {0: 4}, {"0.weight": {0: Axis(0)}, "0.bias": {0: Axis(0)}, "2.weight": {1: Axis(0)}}
    ... )
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> permuted = spec.apply({0: torch.tensor([2, 0, 1, 3])}, model.state_dict())
    >>> x = torch.randn(5, 3)
    >>> torch.allclose(model(x), torch.func.functional_call(model, permuted, x), atol=1e-6)
    True
    """

    sizes: Mapping[int, int]
    axes: Mapping[str, Mapping[int, Axis]] = field(repr=False)

    def apply(
        self, permutations: Mapping[int, Tensor], state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Permute tensors by name; unit i of the result is unit ``permutation[i]`` before."""
        return {
            name: self.permute(permutations, name, tensor) for name, tensor in state.items()
        }

    def permute(
        self,
        permutations: Mapping[int, Tensor],
        name: str,
        tensor: Tensor,
        but: int | None = None,
    ) -> Tensor:
        """Permute the axes of one tensor; the axis numbered `but` stays."""
        for dim, axis in self.axes.get(name, {}).items():
            if dim != but and axis.group in permutations:
                order = permutations[axis.group].to(tensor.device)
                tensor = tensor.index_select(dim, expand(axis, order))
        return tensor

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Refuse a specification that does not fit the tensors."""
        for name, axes in self.axes.items():
            if name not in state:
                known = ", ".join(list(state)[:4])
                raise ValueError(
                    f"the specification names {name!r}; the model has {known}, ..."
                )
            for dim, axis in axes.items():
                shape = tuple(state[name].shape)
                if axis.group not in self.sizes:
                    raise ValueError(
                        f"axis {dim} of {name} is of group {axis.group}, which has no size"
                    )
                wanted = axis.outer * self.sizes[axis.group] * axis.inner
                if dim >= len(shape) or shape[dim] != wanted:
                    raise ValueError(
                        f"axis {dim} of {name} must have {wanted} entries by the "
                        f"specification, got shape {shape}"
                    )

    def identity(self) -> dict[int, Tensor]:
        """The permutations that change nothing."""
        return {group: torch.arange(size, device="cpu") for group, size in self.sizes.items()}


def expand(axis: Axis, order: Tensor) -> Tensor:
    """Positions along an axis whose units are put into `order`."""
    outer = torch.arange(axis.outer, device=order.device) * (len(order) * axis.inner)
    inner = torch.arange(axis.inner, device=order.device)
    places = outer[:, None, None] + order[None, :, None] * axis.inner + inner
    return places.flatten()


def by_unit(tensor: Tensor, dim: int, axis: Axis, size: int) -> Tensor:
    """The entries of a tensor that belong to each unit, shape (size, rest)."""
    moved = tensor.movedim(dim, 0)
    parts = moved.reshape(axis.outer, size, axis.inner, -1)
    return parts.transpose(0, 1).reshape(size, -1)
