"""Runs on the workers of Dask: processes of this machine, or of a cluster."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

import torch

from landscape_core.progress import speaking_through

# Dask has workers hand freed memory back at once, which costs a training that takes the same
# megabytes again in every step half of its time, and looks at what they do a hundred times a
# second, which costs small steps a tenth.
WORKERS = {
    "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1},
    "distributed.worker.profile.enabled": False,
}

T = TypeVar("T")
R = TypeVar("R")


def on_client(
    call: Callable[[T], R], tasks: Sequence[T], client: Any, lost: Callable[[T, str], R]
) -> Iterator[R]:
    """Call on each task on a client's workers; results as they come.

    A task whose worker dies is given to another one, a few times; then it is `lost`.
    """
    if not hasattr(client, "map"):
        raise TypeError(
            f"client must be a dask.distributed.Client, got {type(client).__name__}"
        )
    from distributed import as_completed

    # A function of a notebook travels by value, with all modules that its names may mean:
    # `data.classes` then brings torch.classes along, which does not know how to be pickled.
    copyreg.pickle(type(torch.classes), _by_name)  # type: ignore[arg-type]
    futures = client.map(partial(_silently, call), tasks, pure=False, key="run")
    of = dict(zip((future.key for future in futures), tasks, strict=True))
    try:
        for future in as_completed(futures):
            error = future.exception()
            yield future.result() if error is None else lost(of[future.key], repr(error))
    finally:
        client.cancel(futures)


def _silently(call: Callable[[T], R], task: T) -> R:
    with speaking_through():  # a worker has no place for bars
        return call(task)


def _by_name(module: ModuleType) -> tuple[Callable[[str], ModuleType], tuple[str]]:
    return import_module, (f"torch.{module.__name__.rpartition('.')[2]}",)


def on_processes(
    call: Callable[[T], R], tasks: Sequence[T], workers: int, lost: Callable[[T, str], R]
) -> Iterator[R]:
    """Call on each task on so many processes of this machine, its threads divided."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError(
            "workers need dask.distributed: pip install 'landscape-core[distributed]'"
        ) from error
    # Divided by what was asked for, not by what is needed: the numbers of a run depend on its
    # threads, and must not depend on how many others are done with it.
    threads = max(1, torch.get_num_threads() // workers)
    limited = [replace(task, threads=threads) for task in tasks]  # type: ignore[type-var]
    with dask.config.set(WORKERS):
        cluster = LocalCluster(
            n_workers=min(workers, len(tasks)), threads_per_worker=1, processes=True,
            dashboard_address=None, memory_limit=0,
        )  # fmt: skip
    with cluster, Client(cluster) as client:
        yield from on_client(call, limited, client, lost)
