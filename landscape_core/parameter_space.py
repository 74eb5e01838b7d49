"""Which parameters make up theta, and where each stands in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

ParameterChoice = str | Sequence[str] | Callable[[str, Tensor], bool] | None


class ParameterSpace:
    """The parameters of a model that make up theta: their names, shapes and places.

    Parameters
    ----------
    model : nn.Module
    parameters : str, sequence of str, callable or None
        A name or glob pattern (``"layer3.*"``), several of them, or
        ``choose(name, tensor) -> bool``. None takes every parameter that requires a gradient.
        Tied parameters count once.

    Attributes
    ----------
    names, shapes, sizes : tuple
        Of the chosen parameters, in the order in which they stand in theta.
    n : int
        Number of entries of theta.
    dtype : torch.dtype
        Of theta: the parameters' own, or float32 where they are of half precision.

    Raises
    ------
    ValueError
        If nothing matches, or the chosen parameters are not of one real floating dtype on one
        device.

    Examples
    --------
    >>> space = ParameterSpace(nn.Linear(3, 2))
    >>> space.names, space.n
    (('weight', 'bias'), 8)
    """

    def __init__(self, model: nn.Module, parameters: ParameterChoice = None) -> None:
        named = dict(model.named_parameters())
        # A tied parameter has several names: any of them chooses it, its first names it.
        first = {id(parameter): name for name, parameter in named.items()}
        every = list(model.named_parameters(remove_duplicate=False))
        all_names = {name for name, _ in every}
        wanted = {
            first[id(p)] for name, p in every if _is_chosen(name, p, parameters, all_names)
        }
        chosen = {name: p for name, p in named.items() if name in wanted}
        if isinstance(parameters, list | tuple):
            for pattern in parameters:
                if not any(_matches(name, pattern, all_names) for name in all_names):
                    raise ValueError(f"no parameters match {pattern!r}")
        if not chosen:
            kind = "require a gradient" if parameters is None else f"match {parameters!r}"
            known = ", ".join(list(named)[:6]) or "no parameters at all"
            raise ValueError(f"no parameters {kind}; the model has {known}")
        kinds = {(p.dtype, p.device) for p in chosen.values()}
        if len(kinds) > 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ValueError(f"parameters must share one dtype and device, got {found}")
        self.dtype, self.device = kinds.pop()
        if not self.dtype.is_floating_point:
            raise ValueError(f"parameters must be real floating point, got {self.dtype}")
        if self.dtype in (torch.bfloat16, torch.float16):
            self.dtype = torch.float32
        self.names = tuple(chosen)
        self.shapes = tuple(p.shape for p in chosen.values())
        self.sizes = tuple(p.numel() for p in chosen.values())
        self.n = sum(self.sizes)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Concatenate the named tensors into one new vector, shape (n,)."""
        pieces = [tensors[name].detach().reshape(-1) for name in self.names]
        return torch.cat(pieces).to(self.dtype)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Name and shape the pieces of theta: views of it, on a GPU copies.

        Kernels of cuDNN read sixteen bytes at a time, where a view need not begin.
        """
        # One split, not one slice per parameter: its derivative is one concatenation, where
        # every slice would fill a vector of n zeros.
        pieces = theta.split(self.sizes)
        if theta.device.type == "cuda":
            pieces = tuple(piece.clone() for piece in pieces)
        triples = zip(self.names, pieces, self.shapes, strict=True)
        return {name: piece.view(shape) for name, piece, shape in triples}

    def check(self, theta: Tensor, name: str = "theta") -> Tensor:
        """Return `theta` if it is a vector of this space, else say what is wrong with it."""
        if not isinstance(theta, Tensor) or theta.shape != (self.n,):
            got = tuple(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
            raise ValueError(f"{name} must be a tensor of shape ({self.n},), got {got}")
        if theta.dtype != self.dtype or theta.device != self.device:
            raise ValueError(
                f"{name} must be {self.dtype} on {self.device}, "
                f"got {theta.dtype} on {theta.device}"
            )
        return theta.detach()


def _is_chosen(name: str, parameter: Tensor, choice: ParameterChoice, names: set[str]) -> bool:
    if choice is None:
        return parameter.requires_grad
    if callable(choice):
        return bool(choice(name, parameter))
    patterns = [choice] if isinstance(choice, str) else choice
    return any(_matches(name, pattern, names) for pattern in patterns)


def _matches(name: str, pattern: str, names: set[str]) -> bool:
    """Whether a pattern is for this name; what is a name itself is no glob."""
    return name == pattern if pattern in names else fnmatchcase(name, pattern)
