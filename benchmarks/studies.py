"""Overhead of studies, resuming, workers, ensembles and precisions, in one run.

python benchmarks/studies.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from curvature import machine

import landscape_core as lc


def nothing(x: int) -> dict[str, Any]:
    """A run that costs nothing."""
    return {"y": x}


def training(seed: int, width: int, epochs: int) -> dict[str, Any]:
    """A run that takes about a quarter of a minute on one thread."""
    torch.set_num_threads(1)
    data = lc.load("digits")
    model = lc.MLP(data.input_shape, data.classes, width=width, seed=seed)
    history = lc.train(model, data, lc.TrainConfig(epochs=epochs, seed=seed), progress=False)
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
    """Eight trainings, one after the other and on two workers; with short and longer steps."""
    found = {}
    for width, epochs in ((256, 400), (1024, 80)):
        times = {}
        for count in (None, 2):
            with tempfile.TemporaryDirectory() as folder:
                study = lc.Study("training", training, folder)
                runs = lc.grid(seed=range(8), width=width, epochs=epochs)
                times[count] = seconds(  # starting the workers included
                    lambda: study.run(runs, workers=count, progress=False)  # noqa: B023
                )
        found |= {
            f"width {width}: seconds, serial": times[None],
            f"width {width}: seconds, 2 workers": times[2],
            f"width {width}: speed-up": times[None] / times[2],
        }
    return found


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


def precisions(examples: int) -> dict[str, Any]:
    """Seconds of an epoch in each precision, per 1,000 random images of 32 x 32 pixels."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (examples, 32, 32, 3), dtype=np.uint8)
    part = (pixels, np.arange(examples) % 10)
    data, found = lc.images(part, (pixels[:20], part[1][:20])), {}  # type: dict[str, Any]
    networks = {
        "CNN": lambda: lc.SmallCNN(data.input_shape, 10, width=64, depth=3, hidden=350),
        "ResNet": lambda: lc.ResNet(data.input_shape, 10, width=56),
    }
    for name, make in networks.items():
        for precision in ("float32", "bf16", "auto"):
            config = lc.TrainConfig(epochs=2, batch_size=128, precision=precision)
            history = lc.train(make().to(device), data, config, progress=False)
            found[f"{name}: {precision}"] = 1000 * history.epochs[-1].seconds / examples
        found[f"{name}: picked"] = str(history.picked)
        found[f"{name}: float32 over auto"] = found[f"{name}: float32"] / found[f"{name}: auto"]
    return found


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
        "precisions": precisions(512),
    }
    Path(options.out).write_text(json.dumps(results, indent=1) + "\n")
    for name in ("overhead", "workers", "ensembles", "precisions"):
        print(pd.Series(results[name], name=name).to_string(), "\n")


if __name__ == "__main__":
    main()
