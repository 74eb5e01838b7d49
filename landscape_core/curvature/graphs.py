"""What a product needs of each batch, kept between products while it fits into memory.

All products at one theta go through the same forward and backward pass. Its autograd graph is
therefore built once per batch and differentiated again for every vector, which takes two
thirds of the time of a fresh pass; batches that do not fit into the budget are passed through
anew each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import psutil
import torch
from torch import Tensor

from landscape_core.backends import check_derivatives, graph_nodes
from landscape_core.batches import Batch, out_of_memory
from landscape_core.objective import Objective


class BatchGraph(Protocol):
    """What is kept of one batch."""

    loss: Tensor

    def tensors(self) -> Iterable[Tensor]:
        """Return tensors whose graphs hold everything that is kept."""


G = TypeVar("G", bound=BatchGraph)


class OneBatch(Generic[G]):
    """The graph of a single batch, in the place of :class:`PerBatch`."""

    keeps = True

    def __init__(self, size: int, graph: G) -> None:
        self.size, self.graph = size, graph

    def graphs(self, build: Callable[[Batch, int], G]) -> Iterator[tuple[int, G, bool]]:
        """Yield it, as one that is kept."""
        yield self.size, self.graph, True


class PerBatch(Generic[G]):
    """The graphs of all batches: those of the first ones that fit are kept, others rebuilt.

    Parameters
    ----------
    objective : Objective
    memory_budget : float or None
        Bytes that may be kept; None is a quarter of the memory that is free now.
    """

    def __init__(
        self,
        objective: Objective,
        memory_budget: float | None = None,
    ) -> None:
        if memory_budget is None:
            memory_budget = free_memory(objective.space.device) / 4
        if not memory_budget >= 0:
            raise ValueError(f"memory_budget must be 0 bytes or more, got {memory_budget}")
        self.objective = objective
        self.budget = memory_budget
        self.held = 0  # bytes
        self.examples = 0
        self._kept: list[tuple[int, G]] = []
        self._full = memory_budget == 0
        self._complete = False

    @property
    def keeps(self) -> bool:
        """Whether the next graph is kept, if it fits."""
        return not self._full

    def graphs(self, build: Callable[[Batch, int], G]) -> Iterator[tuple[int, G, bool]]:
        """Yield for every batch its number of examples, its graph, and whether it is kept.

        `build` makes the graph of a batch, given its number too. It is not stored: an operator
        whose method it is could then not be freed without the garbage collector, which does
        not know how large graphs are.
        """
        for size, graph in self._kept:
            yield size, graph, True
        if not self._complete:
            yield from self._build_the_rest(build)

    def _build_the_rest(
        self, build: Callable[[Batch, int], G]
    ) -> Iterator[tuple[int, G, bool]]:
        first_pass, losses = self.examples == 0, []
        done, seen = len(self._kept), sum(size for size, _ in self._kept)
        for index, batch in enumerate(self.objective.batches()):
            if index < done:
                losses.append(self._kept[index][1].loss)
                continue
            graph, size = build(batch, index), len(batch[1])
            seen += size
            losses.append(graph.loss)
            # Whoever takes these graphs may have gone through others meanwhile, and kept them.
            kept = not self._full and index == len(self._kept) and self._keep(size, graph)
            yield size, graph, kept
            del graph  # before the next one is built
        if first_pass:
            check_losses(losses)
            self.examples = seen
        self._complete = not self._full

    def _keep(self, size: int, graph: G) -> bool:
        need = graph_bytes(graph.tensors())
        if self.held + need > self.budget:
            self._full = True
            return False
        self.held += need
        self._kept.append((size, graph))
        return True


def free_memory(device: torch.device) -> float:
    """Bytes that could be allocated on `device` now."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    return float(psutil.virtual_memory().available)


def graph_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages that the autograd graphs of `tensors` keep alive."""
    storages: dict[int, int] = {}
    for node in graph_nodes(tensors):
        for saved in _saved_tensors(node):
            try:
                storage = saved.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            except RuntimeError:  # sparse tensors and others without a storage of their own
                storages[id(saved)] = saved.numel() * saved.element_size()
    return sum(storages.values())


def _saved_tensors(node: torch.autograd.graph.Node) -> Iterator[Tensor]:
    if hasattr(node, "saved_tensors"):  # a torch.autograd.Function
        yield from (x for x in node.saved_tensors if isinstance(x, Tensor))
        return
    for name in dir(node):
        if name.startswith("_saved_"):
            value = getattr(node, name)
            for item in value if isinstance(value, tuple | list) else [value]:
                if isinstance(item, Tensor):
                    yield item


def check_losses(losses: list[Tensor], first: int = 0) -> None:
    """Refuse a loss that is not finite, and name its batch, the first having that number."""
    values = torch.stack([loss.detach().double().cpu() for loss in losses])
    for index, value in enumerate(values.tolist(), first):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss of every batch must be finite, got {value} for batch {index}: "
                "theta or the data of that batch hold nan or inf"
            )


@contextmanager
def explained() -> Iterator[None]:
    """Say in one sentence what autograd or the allocator could not do."""
    check_derivatives()
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if out_of_memory(error):
            raise MemoryError(
                "memory ran out during a product: lower memory_budget (0 keeps no graphs "
                f"between products) or use smaller batches ({text.splitlines()[0]})"
            ) from error
        if "double backward" in text or "donated buffer" in text:
            raise ValueError(
                "a compiled model has no second derivative: measure the model that was "
                "compiled, model._orig_mod"
            ) from error
        if "not implemented" in text or "differentiate twice" in text:
            raise ValueError(
                f"the loss has no second derivative: {text.splitlines()[0]}; "
                "Hessian(..., method='finite_difference') needs only first derivatives"
            ) from error
        raise
