"""The benchmark's results as tables: what was measured, against what was aimed at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

RIVALS = ["curvlinops", "hessian-eigenthings", "PyHessian"]
CPU = Path(__file__).parent / "results" / "curvature_cpu.json"


def read(path: Path = CPU) -> dict[str, Any]:
    """Read the results of a run."""
    return json.loads(path.read_text())


def products(results: dict[str, Any]) -> pd.DataFrame:
    """One product of every package, in gradients."""
    rows = []
    for name, found in results["models"].items():
        if "product" not in found:
            continue
        times = found["product"]
        unit = times["gradient"]
        fastest = min(times[rival] for rival in RIVALS)
        rows.append({
            "network": name,
            "parameters": found["n"],
            "gradient, s": unit,
            "kept": times["ours"] / unit,
            "kept, amortized": times["amortized"] / unit,
            "nothing kept": times["ours, nothing kept"] / unit,
            **{rival: times[rival] / unit for rival in RIVALS},
            "amortized / fastest": times["amortized"] / fastest,
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("network")


def tasks(results: dict[str, Any]) -> pd.DataFrame:
    """Every task on every network: seconds of ours and of the fastest other, and the goal."""
    rows = []
    for name, found in results["models"].items():
        for task, (ours, theirs, goal) in _pairs(found).items():
            rows.append({
                "network": name,
                "task": task,
                "ours, s": ours["seconds"],
                "products": ours["products"],
                "others, s": theirs["seconds"],
                "their products": theirs.get("products"),
                "projected": theirs.get("projected", False),
                "ratio": theirs["seconds"] / ours["seconds"],
                "goal": goal,
            })  # fmt: skip
    table = pd.DataFrame(rows).set_index(["network", "task"])
    return table.assign(met=table["ratio"] >= table["goal"])


def _pairs(found: dict[str, Any]) -> dict[str, tuple[dict, dict, float]]:
    pairs = {}
    if "eigenpairs" in found:
        times = found["eigenpairs"]
        others = [times[rival] for rival in RIVALS if rival in times]
        pairs["top 10 eigenpairs"] = (times["ours"], min(others, key=_seconds), 1.5)
    for task, label, goal in [
        ("trace", "trace to 1 %", 2.0),
        ("square", "Tr(H²) to 5 %", 5.0),
        ("density", "density at equal error", 1.5),
    ]:
        if task in found:
            pairs[label] = (found[task]["ours"], found[task]["theirs"], goal)
    if {"summary", *pairs} and len(pairs) == 4 and "summary" in found:
        parts = [theirs["seconds"] for _, theirs, _ in pairs.values()]
        lowest = found["summary"]["lambda_min_theirs"]
        composed = {"seconds": sum(parts) + lowest["seconds"], "projected": True}
        pairs["summary"] = (found["summary"], composed, 3.0)
    return pairs


def _seconds(entry: dict[str, Any]) -> float:
    return entry["seconds"]


def memory(results: dict[str, Any]) -> pd.DataFrame:
    """Rise of the peak memory over that of a gradient, in MB."""
    rows = []
    for name, found in results["models"].items():
        for task, peaks in found.get("memory", {}).items():
            rows.append(
                {"network": name, "task": task, **{k: v / 1e6 for k, v in peaks.items()}}
            )
    return pd.DataFrame(rows).set_index(["network", "task"]) if rows else pd.DataFrame()


def text(results: dict[str, Any]) -> str:
    """All tables, for a terminal."""
    pieces = [products(results).round(2), tasks(results).round(2), memory(results).round(0)]
    return "\n\n".join(piece.to_string() for piece in pieces if len(piece))


def growth(results: dict[str, Any]) -> pd.DataFrame:
    """Seconds of a product against examples and against parameters."""
    rows = [
        {
            "varied": kind,
            "count": count,
            "seconds": spent,
            "seconds per million": 1e6 * spent / count,
        }
        for kind, series in results["growth"].items()
        for count, spent in series
    ]
    return pd.DataFrame(rows).set_index(["varied", "count"])
