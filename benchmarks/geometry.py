"""Speed of slices, fitted curves and alignment, in one run.

    python benchmarks/geometry.py

Same process, same weights and data, alternating order, medians over rounds; prints a table and
writes JSON. A plane is held against as many bare forward passes and against loss-landscapes,
a fitted curve against as many training steps, a penalized step against a plain gradient.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from curvature import machine, peak_memory
from networks import trained
from torch import nn

import landscape_core as lc

POINTS = 51


def alternate(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def slices(options: argparse.Namespace) -> dict[str, Any]:
    """A plane of 51 x 51 points of the smaller perceptron, over one batch."""
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    model, batches = trained("mlp-1024", 300)
    inputs, targets = batches[0]
    objective = lc.Objective(model, F.cross_entropy, (inputs, targets))
    d1, d2 = lc.random_directions(objective, 2)
    metric = Loss(F.cross_entropy, inputs, targets)

    def forwards() -> None:
        with torch.no_grad():
            for _ in range(POINTS**2):
                F.cross_entropy(model(inputs), targets)

    times = alternate(
        {
            "2601 forward passes": forwards,
            "ours": lambda: lc.plane(objective, d1, d2, points=POINTS),
            "loss-landscapes": lambda: loss_landscapes.random_plane(
                model, metric, distance=1, steps=POINTS, normalization="filter"
            ),
        },
        options.rounds,
    )
    return times | {
        "over forward passes": times["ours"] / times["2601 forward passes"],
        "loss-landscapes over ours": times["loss-landscapes"] / times["ours"],
    }


def curves(options: argparse.Namespace) -> dict[str, Any]:
    """Thirty epochs of a fitted Bezier curve against thirty epochs of the same steps."""
    data = lc.load("digits")
    models = [lc.MLP(data.input_shape, data.classes, width=256, seed=seed) for seed in (0, 1)]
    objectives = [lc.Objective(model, F.cross_entropy, data.train) for model in models]
    a, b = (objective.theta for objective in objectives)

    def steps() -> None:
        model = lc.MLP(data.input_shape, data.classes, width=256)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        rng = torch.Generator().manual_seed(0)
        for _ in range(30):
            order = torch.randperm(len(data.train.targets), generator=rng)
            for rows in order.split(128):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(data.train.inputs[rows]), data.train.targets[rows])
                loss.backward()
                optimizer.step()

    times = alternate(
        {
            "training steps": steps,
            "ours": lambda: lc.fit_path(objectives[0], lc.Bezier(a, b), epochs=30),
        },
        options.rounds,
    )
    return times | {"over training steps": times["ours"] / times["training steps"]}


def alignment(options: argparse.Namespace) -> dict[str, Any]:
    """Weight matching of two perceptrons 784-4096-4096-10."""

    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers = [nn.Linear(784, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(4096, 10))

    data = torch.randn(32, 784), torch.arange(32) % 10
    a, b = (lc.Objective(network(seed), F.cross_entropy, data) for seed in (0, 1))
    start = time.perf_counter()
    found = lc.align(a, b)
    return {"seconds": time.perf_counter() - start, "sweeps": found.sweeps}


PENALTIES = {
    "plain gradient": None,
    "flatness penalty, 3 probes": lc.FlatnessPenalty(0.1, 3),
    "flatness penalty, 3 probes, two batches": lc.FlatnessPenalty(0.1, 3, two_batches=True),
    "SAM": lc.SAM(0.05),
    "gradient penalty": lc.GradientPenalty(0.1),
}


def penalized(kind: str) -> Callable[[], Any]:
    """One gradient of a penalized loss, for a batch of 64 colour images."""
    penalty = PENALTIES[kind]
    torch.manual_seed(0)
    layers = [nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 100)]
    model = nn.Sequential(*layers)
    batch = torch.randn(64, 3072), torch.arange(64) % 100
    rng, parameters = torch.Generator().manual_seed(0), list(model.parameters())

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(inputs), targets)

    if penalty is None:
        return lambda: torch.autograd.grad(loss(*batch), parameters)
    return lambda: penalty.step(loss, parameters, batch, rng)


def rise(kind: str) -> int:
    """Rise of this process's peak memory by one step, in bytes."""
    step = penalized(kind)
    before = peak_memory()
    step()
    return peak_memory() - before


def penalties(options: argparse.Namespace) -> dict[str, Any]:
    """Steps with penalties in gradients, and their memory, each in a process of its own."""
    calls = {kind: penalized(kind) for kind in PENALTIES}
    times = alternate(calls, 20 * options.rounds)
    unit = times["plain gradient"]
    found: dict[str, Any] = {f"{kind}, gradients": t / unit for kind, t in times.items()}
    context = multiprocessing.get_context("spawn")
    for kind in PENALTIES:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found[f"{kind}, MB"] = pool.submit(rise, kind).result() / 1e6
    return {"seconds of a plain gradient": unit} | found


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.set_defaults(examples=300)
    default = Path(__file__).parent / "results" / "geometry_cpu.json"
    parser.add_argument("--out", default=str(default))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {
        "machine": machine(options) | {"loss-landscapes": version("loss-landscapes")},
        "plane": slices(options),
        "curve": curves(options),
        "alignment": alignment(options),
        "penalties": penalties(options),
    }
    Path(options.out).write_text(json.dumps(results, indent=1) + "\n")
    for name in ("plane", "curve", "alignment", "penalties"):
        print(pd.Series(results[name], name=name).to_string(), "\n")


if __name__ == "__main__":
    main()
