"""Batches of examples, in whatever container they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, default_collate

Batch = tuple[Any, Tensor]
Outputs = Callable[[Any], Any]  # what a model makes of the inputs of a batch
ROWS = 32  # examples that are taken apart to see whether the data allow it


def as_batches(batches: Any, place: Callable[[Any], Any]) -> list[Batch] | Iterable[Batch]:
    """Bring what the user gave to an iterable of (inputs, targets), or say what is wrong.

    `place` moves tensors to their device, once; a DataLoader's are left to be moved as read.
    """
    if isinstance(batches, DataLoader):
        _check_loader(batches)
        return batches
    if isinstance(batches, Mapping) or _is_one(batches):
        batches = [batches]
    if not isinstance(batches, Sequence) or isinstance(batches, str):
        raise TypeError(
            "batches must be an (inputs, targets) pair such as data.train, a list of pairs or "
            "a DataLoader, "
            f"got {type(batches).__name__}"
        )
    batches = [as_pair(batch) for batch in batches]
    for index, batch in enumerate(batches):
        _check_pair(batch, index)
    return [(place(inputs), place(targets)) for inputs, targets in batches]


def _is_one(value: Any) -> bool:
    """Whether this is one batch: of a list of batches each part is a pair or a dict itself."""
    if not is_tuple(value) or len(value) != 2:
        return False
    return isinstance(value[1], Tensor) or not isinstance(value[0], tuple | list | Mapping)


def _check_pair(batch: Any, index: int) -> None:
    pair = is_tuple(batch) and len(batch) == 2 and isinstance(batch[1], Tensor)
    if not pair or batch[1].ndim == 0:
        raise TypeError(
            f"batch {index} must be (inputs, targets) with a tensor of targets, "
            f"got {_kinds(batch)}"
        )


def _kinds(batch: Any) -> str:
    if is_tuple(batch):
        return f"({', '.join(type(part).__name__ for part in batch)})"
    return type(batch).__name__


def as_pair(batch: Any) -> Any:
    """Split a dict with "labels" into (inputs, targets); anything else stays as it is."""
    if isinstance(batch, Mapping) and "labels" in batch:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return inputs, batch["labels"]
    return batch


def _check_loader(loader: DataLoader[Any]) -> None:
    """Refuse a loader that would give other examples, or in another order, each time."""
    if loader.batch_sampler is None:
        raise ValueError(
            "the DataLoader must put the batches together itself, got batch_size=None: give it "
            "a batch_size, or give list(loader) in its place"
        )
    sampler = getattr(loader.batch_sampler, "sampler", None)
    if not isinstance(sampler, SequentialSampler):
        kind = type(loader.sampler if sampler is None else sampler).__name__
        raise ValueError(
            f"the DataLoader must give the same examples in the same order each time, got a "
            f"{kind}: make it with shuffle=False (and torch.utils.data.Subset for a part)"
        )
    state = torch.get_rng_state()
    first, again = next(iter(loader), None), next(iter(loader), None)
    torch.set_rng_state(state)
    if first is None:
        raise ValueError("the data are empty: at least one example is needed")
    _check_pair(as_pair(first), 0)
    if not _same(first, again):
        raise ValueError(
            "the DataLoader gives other inputs each time it is read, so L(theta) would change "
            "from pass to pass: switch its random augmentation off"
        )


def read(data: list[Batch] | Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches that hold examples; the random state stays as it is."""
    empty = True
    state = torch.get_rng_state()
    batches = iter(data)  # a DataLoader draws a number here
    torch.set_rng_state(state)
    for inputs, targets in map(as_pair, batches):
        if len(targets):
            empty = False
            yield inputs, targets
    if empty:
        raise ValueError("the data are empty: at least one example is needed")


def known_length(data: list[Batch] | Iterable[Batch]) -> int | None:
    """Return the number of examples, where a DataLoader knows it without being read."""
    if not isinstance(data, DataLoader) or data.collate_fn is not default_collate:
        return None  # what puts examples together may leave some out
    together = data.batch_sampler
    if type(together) is not BatchSampler or together.drop_last:
        return None
    return len(together.sampler)  # type: ignore[arg-type]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b) or bool((a != a).any())  # nan is reported elsewhere
    if isinstance(a, Mapping):
        return all(_same(a[key], b[key]) for key in a)
    if is_tuple(a):
        return all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


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
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts, in their order."""
    found: list[Tensor] = []

    def collect(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_tensors(collect, value)
    return found


def with_tensors(value: Any, tensors: Iterable[Tensor]) -> Any:
    """`value` with other tensors in the place of its own, in the order of `tensors_of`."""
    others = iter(tensors)
    return map_tensors(lambda _: next(others), value)


def move(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`x` on `device`; in `dtype` if it is of half precision; with derivatives allowed."""
    x = x.clone() if x.is_inference() else x
    half = x.dtype in (torch.bfloat16, torch.float16)
    return x.to(device, dtype if half else None, non_blocking=True)


def pick(data: list[Batch] | Iterable[Batch], indices: Tensor) -> Batch:
    """Pick examples, numbered through all batches, into one batch, in the order asked for."""
    if isinstance(data, DataLoader):
        return as_pair(data.collate_fn([data.dataset[int(i)] for i in indices]))
    batches, indices = list(data), indices.cpu()
    if len(batches) == 1:
        return take(batches[0], indices)
    sizes = [len(targets) for _, targets in batches]
    starts = torch.tensor([0, *sizes], device="cpu").cumsum(0)
    owner = torch.searchsorted(starts, indices, right=True) - 1
    picked = [
        take(batches[b], indices[owner == b] - starts[b]) for b in sorted(set(owner.tolist()))
    ]
    inputs, targets = [inputs for inputs, _ in picked], [targets for _, targets in picked]
    together = _concatenate(inputs), torch.cat(targets)
    return take(together, owner.argsort(stable=True).argsort())


def take(batch: Batch, rows: Tensor) -> Batch:
    """Pick rows of a batch, in the order asked for."""
    return map_tensors(lambda x: x[rows.to(x.device)], batch)


def of_examples(batches: Iterable[Batch], outputs: Outputs) -> Iterator[Batch]:
    """Yield `batches`, and refuse those whose rows are not their examples."""
    unchecked = True
    for batch in batches:
        inputs, targets = batch
        if any(x.shape[:1] != targets.shape[:1] for x in tensors_of(inputs)):
            raise _no_examples(batch)
        if unchecked and len(targets) > 1:
            _check_order(batch, partial(take, batch), outputs)
            unchecked = False
        yield batch


OTHERS = (
    "the DataLoader must give all examples of its data set, in their order, where single ones "
    "are needed (torch.utils.data.Subset for a part)"
)


def check_sampling(
    data: list[Batch] | Iterable[Batch],
    batches: Iterable[Batch],
    examples: Callable[[Tensor], Batch],
    outputs: Outputs,
) -> None:
    """Refuse data of which `examples` cannot pick single ones, and read all `batches`."""
    if not isinstance(data, DataLoader):  # of which the data set is asked, not the batches
        deque(of_examples(batches, outputs), maxlen=0)
        return
    start, unchecked = 0, True
    for batch in batches:
        if unchecked and len(batch[1]) > 1:
            _check_order(batch, examples, outputs, start)
            _check_rows(batch, examples(start + torch.arange(len(batch[1]), device="cpu")))
            unchecked = False
        start += len(batch[1])
    together: Any = data.batch_sampler
    if not getattr(together, "drop_last", True) and start != len(together.sampler):
        raise ValueError(f"{OTHERS}, got {start} of {len(together.sampler)}")


def _check_rows(batch: Batch, picked: Batch) -> None:
    """Refuse a batch of a loader that is not of the examples which its place stands for."""
    for x, y in zip(tensors_of(batch), tensors_of(picked), strict=True):
        if x.shape == y.shape and not _close(x, y):
            raise ValueError(f"{OTHERS}, got others")


def _check_order(
    batch: Batch, examples: Callable[[Tensor], Batch], outputs: Outputs, start: int = 0
) -> None:
    """Refuse a batch whose examples, numbered from `start`, have other outputs in other order.

    So it is where rows are steps of time. What a layer makes of all examples together, such as
    the statistics of a batch, does not depend on their order.
    """
    count = min(ROWS, max(2, len(batch[1]) - 1))  # fewer, if possible: the outputs must be too
    rows = torch.arange(count, device="cpu")
    order = torch.cat([rows[1::2], rows[::2]])
    try:
        straight, mixed = (_outputs_of(examples(start + i), outputs) for i in (rows, order))
    except ValueError as error:
        raise _no_examples(batch) from error
    for x, y in zip(straight, mixed, strict=True):
        if x.shape[:1] != (count,) or not _close(x[order.to(x.device)], y):
            raise _no_examples(batch)


def _outputs_of(batch: Batch, outputs: Outputs) -> list[Tensor]:
    with fits(batch[0]):
        return tensors_of(outputs(batch[0]))


def _close(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors differ by rounding alone."""
    if not (x.is_floating_point() or x.is_complex()):
        return torch.equal(x, y)
    rounding = torch.finfo(x.dtype).eps ** 0.5
    size = float(x.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(x, y, rtol=rounding, atol=rounding * size, equal_nan=True)


def _no_examples(batch: Batch) -> ValueError:
    return ValueError(
        "single examples are needed here, so row i of every input, of the targets and of the "
        f"outputs must be example i, which does not hold of inputs: {_shapes(batch[0])}, and "
        f"targets: {_shapes(batch[1])}"
    )


def _concatenate(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, Mapping):
        return {key: _concatenate([value[key] for value in values]) for key in first}
    if is_tuple(first):
        return tuple(_concatenate(list(items)) for items in zip(*values, strict=True))
    return first


def as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a model for the inputs of a batch."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if is_tuple(inputs) else (inputs,)), {}


@contextmanager
def fits(inputs: Any) -> Iterator[None]:
    """Say which inputs a forward pass, run inside, failed on."""
    try:
        yield
    except (NotImplementedError, RecursionError):  # not for want of other inputs
        raise
    except (RuntimeError, IndexError, TypeError) as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"the model must take the inputs of the data, got {_shapes(inputs)}, on which it "
            f"fails: {error}"
        ) from error


def out_of_memory(error: Exception) -> bool:
    """Whether this says that a device, or the machine, has no more memory."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "allocate memory" in str(error)


def _shapes(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if not isinstance(value, Mapping) and not is_tuple(value):
        return type(value).__name__
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return ", ".join(f"{key}: {_shapes(item)}" for key, item in items)


def logits_of(outputs: Any) -> Any:
    """The logits of a model that returns a mapping with them; other outputs as they are."""
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    return outputs


def hits(outputs: Any, targets: Tensor) -> Tensor | None:
    """Whether each example is classified correctly; None where targets are not labels."""
    labels = targets.ndim == 1 and targets.dtype in (torch.int64, torch.int32, torch.uint8)
    scores = isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1
    if not (labels and scores):
        return None
    return (outputs.argmax(1) == targets).double()
