"""Overhead of studies, resuming, workers, and ensembles, in one run.

python benchmarks/studies.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from curvature import machine

import landscape_core as lc


def nothing(x: int) -> dict[str, Any]:
    """A run that costs nothing."""
    return {"y": x}


def training(seed: int) -> dict[str, Any]:
    """A run that takes a quarter of a minute on one thread."""
    torch.set_num_threads(1)
    data = lc.load("digits")
    model = lc.MLP(data.input_shape, data.classes, width=256, seed=seed)
    history = lc.train(model, data, lc.TrainConfig(epochs=400, seed=seed), progress=False)
    return {"history": history}


def seconds(call: Any) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def overhead() -> dict[str, float]:
    """Of a run, and of finding 1,000 finished ones."""
    with tempfile.TemporaryDirectory() as folder:
        study = lc.Study("nothing", nothing, folder)
        runs = lc.grid(x=range(1000))
        first = seconds(lambda: study.run(runs, progress=False))
        again = seconds(lambda: lc.Study("nothing", nothing, folder).run(runs, progress=False))
    return {"milliseconds a run": first, "seconds to resume 1,000 runs": again}


def workers() -> dict[str, float]:
    """Eight trainings, one after the other and on two workers."""
    times = {}
    for count in (None, 2):
        with tempfile.TemporaryDirectory() as folder:
            study = lc.Study("training", training, folder)
            runs = lc.grid(seed=range(8))
            times[count] = seconds(lambda: study.run(runs, workers=count, progress=False))  # noqa: B023
    return {
        "seconds, serial": times[None],
        "seconds, 2 workers": times[2],
        "speed-up": times[None] / times[2],
    }


def ensembles(networks: int) -> dict[str, float]:
    """Networks trained together, and one by one, on a GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data, found = lc.load("digits"), {}
    configs = [lc.TrainConfig(seed=seed, epochs=3) for seed in range(networks)]
    for how in ("separately", "together"):
        models = [
            lc.MLP(data.input_shape, data.classes, width=32, seed=seed).to(device)
            for seed in range(networks)
        ]
        lc.train_ensemble(models[:1], data, configs[:1], how=how, progress=False)
        found[f"seconds, {how}"] = seconds(
            lambda: lc.train_ensemble(models, data, configs, how=how, progress=False)  # noqa: B023
        )
    ratio = found["seconds, separately"] / found["seconds, together"]
    return {"networks": networks} | found | {"separately over together": ratio}


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=16)
    parser.set_defaults(examples=0)
    default = Path(__file__).parent / "results" / "studies_cpu.json"
    parser.add_argument("--out", default=str(default))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        "machine": machine(options),
        "overhead": overhead(),
        "workers": workers(),
        "ensembles": ensembles(options.networks),
    }
    Path(options.out).write_text(json.dumps(results, indent=1) + "\n")
    for name in ("overhead", "workers", "ensembles"):
        print(pd.Series(results[name], name=name).to_string(), "\n")


if __name__ == "__main__":
    main()
