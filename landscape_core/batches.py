"""Batches of examples, in whatever container they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

Batch = tuple[Any, Tensor]


def as_batches(batches: Any, device: torch.device) -> list[Batch] | Iterable[Batch]:
    """Bring what the user gave to an iterable of (inputs, targets), or say what is wrong.

    Tensors move to `device` once; the batches of a DataLoader move as they are read.
    """
    if isinstance(batches, DataLoader):
        if isinstance(batches.sampler, RandomSampler):
            raise ValueError(
                "the DataLoader shuffles, so L(theta) would change from pass to pass: "
                "make it with shuffle=False"
            )
        return batches
    if is_tuple(batches) and len(batches) == 2 and isinstance(batches[1], Tensor):
        batches = [batches]
    if not isinstance(batches, Sequence):
        raise TypeError(
            "batches must be an (inputs, targets) pair, a list of pairs or a DataLoader, "
            f"got {type(batches).__name__}"
        )
    for index, batch in enumerate(batches):
        pair = is_tuple(batch) and len(batch) == 2 and isinstance(batch[1], Tensor)
        if not pair or batch[1].ndim == 0:
            raise TypeError(f"batch {index} must be (inputs, targets) with a tensor of targets")
    return [(to_device(inputs, device), targets.to(device)) for inputs, targets in batches]


def is_tuple(value: Any) -> bool:
    """Whether `value` is a tuple or a list."""
    return isinstance(value, tuple | list)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply `function` to every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if is_tuple(value):
        return tuple(map_tensors(function, item) for item in value)
    return value


def to_device(inputs: Any, device: torch.device) -> Any:
    """Move every tensor to `device`."""
    return map_tensors(lambda x: x.to(device, non_blocking=True), inputs)


def gather(batches: Iterable[Batch], indices: Tensor) -> Batch:
    """Pick examples, numbered through all batches, into one batch."""
    batches = list(batches)
    starts = torch.tensor([0] + [len(targets) for _, targets in batches]).cumsum(0)
    owner = torch.searchsorted(starts, indices.cpu(), right=True) - 1
    picked = []
    for b in sorted(set(owner.tolist())):
        rows = indices.cpu()[owner == b] - starts[b]
        picked.append(_take(batches[b], rows))
    return _concatenate([inputs for inputs, _ in picked]), torch.cat([y for _, y in picked])


def _take(batch: Batch, rows: Tensor) -> Batch:
    return map_tensors(lambda x: x[rows.to(x.device)], batch)


def _concatenate(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _concatenate([value[key] for value in values]) for key in first}
    if is_tuple(first):
        return tuple(_concatenate(list(items)) for items in zip(*values, strict=True))
    return torch.cat(values)


def hits(outputs: Any, targets: Tensor) -> Tensor | None:
    """Whether each example is classified correctly; None where targets are not labels."""
    labels = not targets.is_floating_point() and targets.ndim == 1
    if not labels or not isinstance(outputs, Tensor) or outputs.ndim != 2:
        return None
    return (outputs.argmax(1) == targets).double()
